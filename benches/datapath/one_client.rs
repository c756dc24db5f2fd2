//! One client's packets, which the caches hold: by the session of its address, by that of its tunnel, and by the labels in its SPIs.

use std::net::IpAddr;

use ::lb::kernel::program::{Program, RunOptions};
use ::lb::lb::datapath::{Affinity, Datapath, Settings};
use ::lb::lb::session::Sessions;
use ::lb::lb::skeleton::types::lb_verdict;

use crate::common::packet::{self, Ike};
use crate::{
    Base, Bench, INITIATOR, LABEL_BITS, Line, REPEAT, RESPONDER, balancer, median, nanoseconds,
    nanoseconds_of,
};

/// A program on one packet, again and again.
struct Case<'a> {
    name: &'static str,
    loaded: &'a Datapath,
    program: &'a Program,
    packet: Vec<u8>,
    verdict: lb_verdict,
    target: Option<(Base, f64)>,
}

/// Most, for a packet of an established tunnel, of the bare redirect.
const OF_REDIRECT: Option<(Base, f64)> = Some((Base::Redirect, 2.0));

/// Most, with affinity `tunnel`, of the same packet with affinity `address`.
const TUNNEL: f64 = 1.5;

/// The same, of ESP that is placed by its label.
const LABEL: f64 = 1.0;

pub fn run(bench: &Bench, v6: bool) {
    let (known, unknown) = (packet::client(1, v6), packet::client(2, v6));
    let by_address = balancer(&Settings::default(), 4);
    let by_tunnel = balancer(&Settings { affinity: Affinity::Tunnel, ..Settings::default() }, 4);
    let by_label = balancer(&Settings { spi_shard: LABEL_BITS, ..Settings::default() }, 4);
    for loaded in [&by_address, &by_tunnel, &by_label] {
        establish(loaded, known);
    }
    let esp = packet::esp(known, 0x1007);
    let auth = packet::ike(known, Ike::auth(INITIATOR, RESPONDER));
    let in_udp = packet::esp_in_udp(known, 4500, 0x1007);
    let strange = packet::esp(unknown, 0xff00_1007);
    let back = packet::esp_back(known, 0x1009);
    let tcp = packet::tcp(known, packet::vip(known), 80);
    let case = |name, loaded, packet: &Vec<u8>, verdict, target| {
        let loaded: &Datapath = loaded;
        let program = if verdict == lb_verdict::LB_RETURNED { &loaded.backend } else { &loaded.client };
        Case { name, loaded, program, packet: packet.clone(), verdict, target }
    };
    let of = |name, most| Some((Base::Line(name), most));
    let (session, stateless) = (lb_verdict::LB_SESSION, lb_verdict::LB_STATELESS);
    let cases = [
        case("established ESP", &by_address, &esp, session, OF_REDIRECT),
        case("established IKE", &by_address, &auth, session, OF_REDIRECT),
        case("established ESP in UDP", &by_address, &in_udp, session, OF_REDIRECT),
        case("unknown ESP (stateless)", &by_address, &strange, stateless, Some((Base::Redirect, 1.8))),
        case("dropped TCP", &by_address, &tcp, lb_verdict::LB_OTHER_DROPPED, Some((Base::Empty, 1.2))),
        case("return path ESP", &by_address, &back, lb_verdict::LB_RETURNED, OF_REDIRECT),
        case("tunnel: established ESP", &by_tunnel, &esp, session, of("established ESP", TUNNEL)),
        case("tunnel: established IKE", &by_tunnel, &auth, session, of("established IKE", TUNNEL)),
        case(
            "tunnel: established ESP in UDP",
            &by_tunnel,
            &in_udp,
            session,
            of("established ESP in UDP", TUNNEL),
        ),
        case(
            "tunnel: unknown ESP (stateless)",
            &by_tunnel,
            &strange,
            stateless,
            of("unknown ESP (stateless)", TUNNEL),
        ),
        case(
            "tunnel: return path ESP",
            &by_tunnel,
            &back,
            lb_verdict::LB_RETURNED,
            of("return path ESP", TUNNEL),
        ),
        case("label: established ESP", &by_label, &esp, stateless, of("established ESP", LABEL)),
        case("label: established IKE", &by_label, &auth, session, None),
        case(
            "label: established ESP in UDP",
            &by_label,
            &in_udp,
            stateless,
            of("established ESP in UDP", LABEL),
        ),
        case("label: return path ESP", &by_label, &back, lb_verdict::LB_RETURNED, None),
    ];

    let mut times = vec![Vec::new(); cases.len()];
    let mut floors = [Vec::new(), Vec::new()];
    for _ in 0..bench.rounds {
        floors[0].push(nanoseconds(&bench.empty, &esp, REPEAT));
        floors[1].push(nanoseconds(&bench.redirect, &esp, REPEAT));
        for (case, times) in cases.iter().zip(&mut times) {
            times.push(nanoseconds_of(case.loaded, case.verdict, case.program, &case.packet, REPEAT));
        }
    }
    let [empty, redirect] = floors.map(median);
    let mut lines =
        vec![Line::new("empty program", empty, None), Line::new("bare bpf_redirect_map", redirect, None)];
    let measured =
        cases.iter().zip(times).map(|(case, times)| Line::new(case.name, median(times), case.target));
    lines.extend(measured);
    crate::print(&format!("IPv{}, one client", if v6 { 6 } else { 4 }), &lines);
}

/// Goes through the handshake that proves a client, on both ports.
fn establish(loaded: &Datapath, client: IpAddr) {
    let run = |program: &Program, packet: Vec<u8>| {
        program.run(&packet, RunOptions::default()).expect("the program runs");
    };
    run(&loaded.client, packet::ike(client, Ike::init(INITIATOR)));
    run(&loaded.backend, packet::ike_back(client, Ike::init_response(INITIATOR, RESPONDER)));
    // What is measured on port 500 is the second one here, so that it is where its client was last seen.
    run(&loaded.client, packet::ike_nat(client, 4500, Ike::auth(INITIATOR, RESPONDER)));
    run(&loaded.client, packet::ike(client, Ike::auth(INITIATOR, RESPONDER)));
    assert_eq!(Sessions::open(&loaded.maps).expect("sessions").established(), 1);
}
