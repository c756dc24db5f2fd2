//! What the program knows of its interface, changed while packets run.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use lb::echo::datapath::{ADDRESSES_MAX, Datapath, DatapathError, Settings, View};
use lb::echo::skeleton::types::echo_verdict;
use lb::kernel::program::RunOptions;

use crate::common::packet::{CLIENT_MAC, Ping};
use crate::fixture::{
    HOP_LIMIT, OWN_MAC, OWN4, OWN6, PEER4, PEER6, Responder, TTL, XDP_PASS, XDP_TX, families, stranger, view,
};

/// Action and frame.
type Outcome = (u32, Vec<u8>);

#[test]
fn root_without_a_view_nothing_is_answered() {
    for any in [false, true] {
        let datapath = Datapath::load(&Settings { any, source_interval: Duration::ZERO }, None)
            .expect("the program loads");
        families(|request| {
            for to in [OWN_MAC, [0; 6], [0xff; 6]] {
                let frame = Ping { to, ..request.clone() }.frame();
                let run = datapath.program.run(&frame, RunOptions::default()).expect("the program runs");
                assert_eq!((run.action, run.packet), (XDP_PASS, frame), "to {to:02x?}, any {any}");
            }
        });
    }
}

#[test]
fn root_a_view_takes_the_place_of_the_one_before() {
    let responder = Responder::new(false);
    families(|request| {
        let (old, new) = (request.destination, stranger(request.destination));
        let to_new = Ping { destination: new, ..request.clone() };
        responder.answers("to the old address", &request);
        responder.passes("to the new address", to_new.frame(), echo_verdict::ECHO_OTHER_ADDRESS);

        responder.set(&View { addresses: vec![old, new], ..view() });
        responder.answers("to the old address, of two", &request);
        responder.answers("to the new address, of two", &to_new);
        let from_new = Ping { source: new, ..request.clone() };
        responder.passes("from the new address", from_new.frame(), echo_verdict::ECHO_BAD_SOURCE);

        responder.set(&View { addresses: vec![new], ..view() });
        responder.passes("to an address that is gone", request.frame(), echo_verdict::ECHO_OTHER_ADDRESS);
        responder.answers("to the new address, alone", &to_new);

        responder.set(&View { addresses: Vec::new(), ..view() });
        for request in [&request, &to_new] {
            responder.passes("to no address", request.frame(), echo_verdict::ECHO_OTHER_ADDRESS);
        }

        responder.set(&View { mac: CLIENT_MAC.into(), ..view() });
        responder.passes("to a MAC that is gone", request.frame(), echo_verdict::ECHO_OTHER_MAC);
        let to_new_mac = Ping { to: CLIENT_MAC, from: OWN_MAC, ..request.clone() };
        responder.answers("to the new MAC", &to_new_mac);

        responder.set(&view());
        responder.answers("as in the beginning", &request);
    });
}

#[test]
fn root_broadcast_addresses_come_and_go() {
    let responder = Responder::new(true);
    let broadcast = Ipv4Addr::new(10, 0, 3, 255);
    let request = Ping::request(PEER4.into(), broadcast.into());
    responder.answers("to what is no broadcast address here", &request);
    responder.set(&View { broadcasts: vec![broadcast], ..view() });
    responder.passes("to a broadcast address", request.frame(), echo_verdict::ECHO_OTHER_ADDRESS);
    let from = Ping::request(broadcast.into(), OWN4.into());
    responder.passes("from a broadcast address", from.frame(), echo_verdict::ECHO_BAD_SOURCE);
    responder.set(&view());
    responder.answers("to it after it is gone", &request);
    responder.answers("from it after it is gone", &from);
}

#[test]
fn root_a_view_with_too_many_addresses_changes_nothing() {
    let responder = Responder::new(false);
    let addresses = (0..=ADDRESSES_MAX as u32).map(|number| Ipv4Addr::from_bits(0x0b00_0000 + number).into());
    let result = responder.datapath.maps.set_view(&View { addresses: addresses.collect(), ..view() });
    assert!(matches!(result, Err(DatapathError::TooMany { .. })), "{result:?}");
    families(|request| responder.answers("as before", &request));
}

/// Packets may be looking at it, and would see it change under their eyes.
#[test]
fn root_a_view_in_use_is_not_written() {
    let responder = Responder::new(false);
    let maps = &responder.datapath.maps;
    let stored = || maps.views.get(&0).expect("views can be read").expect("there is one entry");
    for round in 0..4 {
        let before = stored();
        responder.set(&View { ttl: 100 + round, ..view() });
        let (after, used) = (stored(), before.current as usize);
        assert_eq!(after.current, 1 - before.current, "round {round}");
        assert_eq!(after.views[used].ttl, before.views[used].ttl, "round {round}");
        assert_eq!(after.views[1 - used].ttl, 100 + round, "round {round}");
    }
}

/// Says so when it is dropped, also by an assertion: who waits for it would else wait for ever.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a packet meets is one view or the other, and after the change the new one.
#[test]
fn root_packets_meet_whole_views_while_they_change() {
    let responder = Responder::new(false);
    let second: [IpAddr; 2] = [stranger(OWN4.into()), stranger(OWN6.into())];
    let one = view();
    let other = View {
        mac: [2, 0, 0, 0, 0, 0xfd].into(),
        ttl: TTL + 100,
        hop_limit: HOP_LIMIT + 100,
        addresses: second.to_vec(),
        broadcasts: Vec::new(),
    };
    // A request that each view alone answers, and one that neither does, as it is half of each.
    let to_one = [Ping::request(PEER4.into(), OWN4.into()), Ping::request(PEER6.into(), OWN6.into())];
    let to_other = [0, 1].map(|family| Ping {
        to: other.mac.into_array(),
        destination: second[family],
        ..to_one[family].clone()
    });
    let mixed = [0, 1].map(|family| Ping { to: OWN_MAC, ..to_other[family].clone() });
    let reply = |request: &Ping, view: &View| -> Outcome {
        let ttl = if request.source.is_ipv6() { view.hop_limit } else { view.ttl };
        (XDP_TX, request.reply(ttl).frame())
    };
    let cases: Vec<(Vec<u8>, Option<Outcome>)> = to_one
        .iter()
        .map(|request| (request.frame(), Some(reply(request, &one))))
        .chain(to_other.iter().map(|request| (request.frame(), Some(reply(request, &other)))))
        .chain(mixed.iter().map(|request| (request.frame(), None)))
        .collect();

    let done = AtomicBool::new(false);
    let program = &responder.datapath.program;
    let [answered, passed] = thread::scope(|scope| {
        let runner = scope.spawn(|| {
            let mut seen = [0u64; 2];
            while !done.load(Ordering::Relaxed) {
                for (frame, reply) in &cases {
                    let run = program.run(frame, RunOptions::default()).expect("the program runs");
                    let outcome = (run.action, run.packet);
                    let is_reply = Some(&outcome) == reply.as_ref();
                    assert!(is_reply || outcome == (XDP_PASS, frame.clone()), "half a view: {outcome:02x?}");
                    seen[usize::from(!is_reply)] += 1;
                }
            }
            seen
        });
        let ends = Done(&done);
        for round in 0..20 {
            let (view, ours, theirs) =
                if round % 2 == 0 { (&other, &to_other, &to_one) } else { (&one, &to_one, &to_other) };
            responder.set(view);
            for family in [0, 1] {
                let run = responder.run(&ours[family].frame());
                assert_eq!((run.action, run.packet), reply(&ours[family], view), "round {round}");
                assert_eq!(responder.run(&theirs[family].frame()).action, XDP_PASS, "round {round}");
            }
        }
        drop(ends);
        runner.join().expect("no packet met half a view")
    });
    assert!(answered > 0 && passed > 0, "{answered} replies, {passed} passed");
}
