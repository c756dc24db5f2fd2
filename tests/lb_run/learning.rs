//! What the return path teaches about clients without a session, and what is put into the table by hand.

use std::net::IpAddr;

use lb::kernel::program::RunOptions;
use lb::kernel::value::MapValue;
use lb::lb::backend::Wanted;
use lb::lb::datapath::{Affinity, Settings};
use lb::lb::interfaces;
use lb::lb::session::Key;
use lb::lb::session::State::{Embryonic, Established, Learned};
use lb::lb::skeleton::types::{self, lb_import_result, lb_verdict, session_kind, session_state};

use crate::common::packet::{
    Ike, backend_mac, client, echo_request, esp, esp_back, ike, ike_back, ike_nat, ike_nat_back, sent_by,
};
use crate::draining::with_each;
use crate::families;
use crate::fixture::{Balancer, INGRESS_UNKNOWN, Row, Side, Way, settings};
use crate::ingress::{echo_back, with_three};
use crate::peer::Peer;
use crate::tunnel::by_tunnel;

const SESSION: lb_verdict = lb_verdict::LB_SESSION;
const STATELESS: lb_verdict = lb_verdict::LB_STATELESS;

const SPI: u32 = 0xc1c2_c3c4;

/// What a backend's ESP makes of a client without an entry.
fn taught(affinity: Affinity, peer: &Peer, in_udp: bool, backend: u32) -> Vec<Row> {
    let mut rows = vec![(Key::Address(peer.address), Established, backend)];
    if in_udp && affinity == Affinity::Tunnel {
        rows.push((peer.endpoint(), Established, backend));
    }
    rows.sort();
    rows
}

#[test]
fn root_esp_of_a_backend_shows_whose_client_it_is_for() {
    with_each(&settings(), |balancer, address, _| {
        let peer = Peer::new(1, address);
        let affinity = balancer.settings.affinity;
        let hashed = balancer.hashed(address);
        for backend in (0..4).filter(|&backend| backend != hashed) {
            for in_udp in [true, false] {
                balancer.forget();
                let frame = if in_udp { peer.data_back() } else { peer.plain_back() };
                balancer.answer(backend, frame.clone());
                assert_eq!(balancer.rows(), taught(affinity, &peer, in_udp, backend));
                let entry = balancer.entry(Key::Address(address)).unwrap();
                assert_eq!((entry.ingress, entry.packets, entry.initiator_spi), (INGRESS_UNKNOWN, 0, 0));
                let ours = if in_udp { peer.data(SPI) } else { peer.plain(SPI) };
                balancer.expect("ESP", ours, (SESSION, backend));
                balancer.expect("a ping", echo_request(address), (SESSION, backend));
                // Whoever teaches second is too late.
                balancer.answer(hashed, frame);
                balancer.expect("a ping", echo_request(address), (SESSION, backend));
                let known = balancer.entry(Key::Address(address)).unwrap();
                assert_eq!((known.state, known.backend, known.ingress), (Established, backend, 0));
            }
        }
    });
}

#[test]
fn root_what_a_backend_sends_but_esp_and_starts_teaches_nothing() {
    with_each(&settings(), |balancer, address, _| {
        let peer = Peer::new(1, address);
        for frame in [
            peer.answer(),
            peer.ike_back(),
            ike_back(address, Ike::init_response(peer.initiator_spi, 0)),
            echo_back(address),
            Peer { nat_port: 4500, ..peer }.keepalive(),
        ] {
            balancer.answer(1, frame);
            assert!(balancer.rows().is_empty(), "{:?}", balancer.rows());
        }
    });
}

#[test]
fn root_backends_that_are_drained_teach_and_those_that_are_down_do_not() {
    with_each(&settings(), |balancer, address, _| {
        let peer = Peer::new(1, address);
        for (wanted, teaches) in [(Wanted::Draining, true), (Wanted::Down, false), (Wanted::Active, true)] {
            balancer.want(2, wanted);
            for frame in [peer.data_back(), peer.plain_back(), ike_back(address, Ike::init(9))] {
                balancer.forget();
                balancer.answer(2, frame);
                assert_eq!(!balancer.rows().is_empty(), teaches, "{wanted:?}");
            }
        }
    });
}

#[test]
fn root_a_sender_that_nobody_knows_teaches_nothing() {
    with_each(&settings(), |balancer, address, _| {
        let peer = Peer::new(1, address);
        // Several backends are behind the interface.
        let entry = types::lb_interface {
            ifindex: 1,
            backend: interfaces::SEVERAL,
            role: types::lb_role::LB_EGRESS,
            ..Default::default()
        };
        interfaces::insert(&balancer.datapath.maps, entry).unwrap();
        for frame in [peer.data_back(), peer.plain_back(), ike_back(address, Ike::init(9))] {
            balancer.send(Side::Backend, &sent_by(frame.clone(), [2, 0, 0, 0, 0, 0x99]));
            assert!(balancer.rows().is_empty());
            balancer.send(Side::Backend, &sent_by(frame, backend_mac(2)));
            assert!(!balancer.rows().is_empty());
            assert!(balancer.rows().iter().all(|row| row.2 == 2), "its MAC says whose frame it is");
            balancer.forget();
        }
        balancer.hear(0);
    });
}

#[test]
fn root_a_full_table_learns_nothing_new() {
    with_each(&Settings { max_sessions: 2, ..settings() }, |balancer, address, other| {
        let v6 = address.is_ipv6();
        let peers = [Peer::new(1, client(21, v6)), Peer::new(2, client(22, v6))];
        let backend = peers.map(|peer| balancer.connect(&peer))[0];
        let newcomer = Peer::new(3, other);
        let before = balancer.rows();
        for frame in [newcomer.data_back(), newcomer.plain_back(), ike_back(other, Ike::init(9))] {
            balancer.answer(backend, frame);
        }
        assert_eq!(balancer.rows(), before);
        balancer.expect("ESP", newcomer.data(SPI), (STATELESS, balancer.hashed(other)));
        balancer.sessions.remove(peers[0].address);
        balancer.answer(backend, newcomer.data_back());
        balancer.expect("ESP where there is room", newcomer.data(SPI), (SESSION, backend));
    });
}

#[test]
fn root_esp_moves_no_client_that_is_known() {
    with_each(&settings(), |balancer, address, _| {
        let peer = Peer::new(1, address);
        let backend = balancer.greet(&peer);
        let other = (backend + 1) % 4;
        balancer.answer(other, peer.plain_back());
        balancer.expect("a ping", echo_request(address), (SESSION, backend));
        balancer.expect("IKE", peer.auth(), (SESSION, backend));
        for frame in [peer.data_back(), peer.plain_back(), ike_back(address, Ike::init(9))] {
            balancer.answer(other, frame);
        }
        balancer.expect("ESP", peer.data(SPI), (SESSION, backend));
        balancer.expect("plain ESP", peer.plain(SPI), (SESSION, backend));
        balancer.expect(
            "a start",
            peer.with_sa(1).start(),
            (
                if balancer.settings.affinity == Affinity::Tunnel { lb_verdict::LB_NEW } else { SESSION },
                backend,
            ),
        );
    });
}

/// A backend begins the SA, and its client proves that it hears it.
#[test]
fn root_a_handshake_that_a_backend_begins_stays_with_it() {
    for nat in [false, true] {
        with_each(&settings(), |balancer, address, _| {
            let backend = (balancer.hashed(address) + 1) % 4;
            let affinity = balancer.settings.affinity;
            let (theirs, ours) = (0x7777, 0x8888);
            let back =
                |message| if nat { ike_nat_back(address, 4500, message) } else { ike_back(address, message) };
            let forth = |message| if nat { ike_nat(address, 4500, message) } else { ike(address, message) };
            balancer.answer(backend, back(Ike::init(theirs)));
            let key = if affinity == Affinity::Tunnel { Key::Sa(theirs) } else { Key::Address(address) };
            assert_eq!(balancer.rows(), [(key, Embryonic, backend)]);
            balancer.expect("its answer", forth(Ike::init_response(theirs, ours)), (SESSION, backend));
            assert_eq!(balancer.entry(key).unwrap().state, Embryonic, "that may be anyone's");
            balancer.answer(backend, back(Ike::auth(theirs, ours)));
            let answer = Ike { flags: 0x20, next_payload: 46, ..Ike::auth(theirs, ours) };
            balancer.expect("its proof", forth(answer), (SESSION, backend));
            assert_eq!(balancer.entry(key).unwrap().state, Established);
            balancer.expect("plain ESP", esp(address, SPI), (SESSION, backend));
            assert_eq!(balancer.sessions.established(), 1);
        });
    }
}

#[test]
fn root_a_tunnel_that_was_learned_goes_on_with_its_ike() {
    families(|address, _| {
        let balancer = Balancer::new(&by_tunnel(), 4);
        let peer = Peer::new(1, address);
        let backend = (balancer.hashed(address) + 1) % 4;
        balancer.answer(backend, peer.data_back());
        balancer.expect("IKE", peer.auth(), (SESSION, backend));
        let sa = balancer.entry(peer.sa()).expect("learned of a bound endpoint");
        assert_eq!((sa.state, sa.backend), (Learned, backend));
        balancer.answer(backend, peer.ike_back());
        balancer.expect("IKE", peer.auth(), (SESSION, backend));
        assert_eq!(balancer.entry(peer.sa()).unwrap().state, Established);
        let moved = peer.at(address, 43_210);
        balancer.expect("IKE from elsewhere", moved.auth(), (SESSION, backend));
        balancer.expect("its ESP", moved.data(SPI), (SESSION, backend));
    });
}

/// Answers go where the tunnel was last seen, and else where its address was.
#[test]
fn root_answers_to_tunnels_go_where_they_were_last_seen() {
    with_three(by_tunnel(), |balancer, ingress| {
        families(|address, other| {
            balancer.forget();
            let send = |frame: &[u8], index: usize| {
                drop(balancer.send_on(Side::Client, frame, Some(ingress[index])))
            };
            let way = |frame: Vec<u8>| balancer.way(Side::Backend, &frame, None);
            let (one, two) = (Peer::new(1, address), Peer::new(2, address));
            for (peer, index) in [(&one, 1), (&two, 2)] {
                assert_eq!(way(peer.answer()), if index == 1 { Some(Way::All) } else { Some(Way::Port(1)) });
                send(&peer.start(), index);
                let backend = balancer.entry(peer.sa()).unwrap().backend;
                balancer.answer(backend, peer.answer());
                assert_eq!(way(peer.answer()), Some(Way::Port(index as u32)));
                send(&peer.auth(), index);
                assert_eq!(way(peer.data_back()), Some(Way::Port(index as u32)));
                assert_eq!(way(peer.ike_back()), Some(Way::Port(index as u32)));
            }
            assert_eq!(way(one.data_back()), Some(Way::Port(1)));
            assert_eq!(way(one.plain_back()), Some(Way::Port(2)), "the newest SA's");
            send(&one.data(SPI), 0);
            assert_eq!(way(one.data_back()), Some(Way::Port(0)));
            assert_eq!(way(two.data_back()), Some(Way::Port(2)));
            assert_eq!(way(esp_back(other, 7)), Some(Way::All), "nobody knows where that one is");
        });
    });
}

/// A client's address was seen, and its tunnel is learned from the backend's ESP.
#[test]
fn root_answers_to_endpoints_that_were_not_seen_go_where_their_address_was() {
    with_three(by_tunnel(), |balancer, ingress| {
        families(|address, _| {
            balancer.forget();
            let peer = Peer::new(1, address);
            balancer.send_on(Side::Client, &echo_request(address), Some(ingress[2]));
            balancer.hear(1);
            // The first one, and those after it.
            assert_eq!(balancer.way(Side::Backend, &peer.data_back(), None), Some(Way::Port(2)));
        });
    });
}

fn given(client: IpAddr, kind: session_kind, state: session_state, replace: bool) -> types::lb_import {
    let address = types::address::from(client);
    let spi = 0x0102_0304_0506_0708u64.to_be();
    let mut given = types::lb_import::default();
    given.entry.key.kind = kind;
    given.entry.key.address = match kind {
        session_kind::SESSION_SA => types::address { words: [spi, 0] },
        _ => address,
    };
    given.entry.key.detail = if kind == session_kind::SESSION_ENDPOINT { 4500 } else { 0 };
    given.entry.meta.last_seen =
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap().tv_sec() as u32;
    given.entry.meta.backend = 2;
    given.entry.meta.ingress = INGRESS_UNKNOWN;
    given.entry.meta.tag = (state.0 | kind.0 << 4) as u8;
    given.entry.client = address;
    given.entry.initiator_spi = spi;
    given.entry.port = 4500;
    given.entry.replace = replace.into();
    given.responder_spi = 0x1112_1314_1516_1718u64.to_be();
    given.packets = 11;
    given.bytes = 1234;
    given.created = given.entry.meta.last_seen.saturating_sub(5);
    given
}

fn import(balancer: &Balancer, entry: &types::lb_import) -> lb_import_result {
    let run = balancer.datapath.import.run(entry.as_bytes(), RunOptions::default()).expect("it runs");
    lb_import_result(run.action)
}

#[test]
fn root_an_entry_is_put_into_the_table_as_it_was() {
    let balancer = Balancer::new(&by_tunnel(), 4);
    families(|address, _| {
        balancer.forget();
        for kind in [session_kind::SESSION_SA, session_kind::SESSION_ENDPOINT, session_kind::SESSION_ADDRESS]
        {
            let entry = given(address, kind, session_state::SESSION_ESTABLISHED, false);
            assert_eq!(import(&balancer, &entry), lb_import_result::LB_IMPORT_DONE);
        }
        let spi = 0x0102_0304_0506_0708;
        assert_eq!(
            balancer.rows(),
            [
                (Key::Sa(spi), Established, 2),
                (Key::Endpoint(address, 4500), Established, 2),
                (Key::Address(address), Established, 2),
            ]
        );
        for entry in balancer.sessions.entries() {
            assert_eq!((entry.packets, entry.bytes, entry.initiator_spi), (11, 1234, spi));
            assert_eq!((entry.client, entry.responder_spi), (address, 0x1112_1314_1516_1718));
            assert!((5..8).contains(&entry.age.as_secs()));
        }
        assert_eq!(balancer.sessions.established(), 1);
        let peer = Peer {
            nat_port: 4500,
            initiator_spi: spi,
            responder_spi: 0x1112_1314_1516_1718,
            ..Peer::new(1, address)
        };
        balancer.expect("ESP", peer.data(SPI), (SESSION, 2));
        balancer.expect("IKE from elsewhere", peer.at(address, 7).auth(), (SESSION, 2));
        balancer.expect("its ESP", peer.at(address, 7).data(SPI), (SESSION, 2));

        // What is there stays, unless it is to be replaced.
        let mut other = given(address, session_kind::SESSION_SA, session_state::SESSION_ESTABLISHED, false);
        other.entry.meta.backend = 3;
        for (replace, backend) in [(0, 2), (1, 3)] {
            other.entry.replace = replace;
            assert_eq!(import(&balancer, &other), lb_import_result::LB_IMPORT_DONE);
            assert_eq!(balancer.entry(Key::Sa(spi)).unwrap().backend, backend);
        }
        let counts = &balancer.datapath.maps.backend_sessions;
        assert_eq!((2..4).map(|index| counts.get(&index).unwrap().unwrap()).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(balancer.sessions.established(), 1);
    });
}

#[test]
fn root_an_entry_without_room_is_not_put() {
    let balancer = Balancer::new(&settings(), 4);
    let bucket = balancer.bucket(client(0, false));
    let of_bucket: Vec<IpAddr> = (0..)
        .map(|number| client(number, number % 2 == 1))
        .filter(|&client| balancer.bucket(client) == bucket)
        .take(17)
        .collect();
    let entry = |client, state| given(client, session_kind::SESSION_ADDRESS, state, false);
    for &client in &of_bucket[..16] {
        let established = entry(client, session_state::SESSION_ESTABLISHED);
        assert_eq!(import(&balancer, &established), lb_import_result::LB_IMPORT_DONE);
    }
    let last = of_bucket[16];
    for state in [session_state::SESSION_ESTABLISHED, session_state::SESSION_EMBRYONIC] {
        assert_eq!(import(&balancer, &entry(last, state)), lb_import_result::LB_IMPORT_NO_ROOM);
    }
    assert_eq!(balancer.entry(Key::Address(last)), None);
    assert_eq!(balancer.sessions.established(), 16);
    balancer.sessions.remove(of_bucket[3]);
    let embryonic = entry(last, session_state::SESSION_EMBRYONIC);
    assert_eq!(import(&balancer, &embryonic), lb_import_result::LB_IMPORT_DONE);
    assert_eq!(balancer.sessions.established(), 15);
}

#[test]
fn root_what_is_no_entry_is_refused() {
    let balancer = Balancer::new(&settings(), 4);
    let whole =
        given(client(1, false), session_kind::SESSION_ADDRESS, session_state::SESSION_ESTABLISHED, false);
    let bytes = whole.as_bytes();
    for length in [14, 64, bytes.len() - 1] {
        let run = balancer.datapath.import.run(&bytes[..length], RunOptions::default()).expect("it runs");
        assert_eq!(lb_import_result(run.action), lb_import_result::LB_IMPORT_FAILED, "{length} bytes");
        assert!(balancer.rows().is_empty());
    }
    assert_eq!(import(&balancer, &whole), lb_import_result::LB_IMPORT_DONE);
    assert_eq!(balancer.rows().len(), 1);
}
