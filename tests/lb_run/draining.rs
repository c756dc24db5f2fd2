//! Backends that are drained: they keep what they have, and what has no session may be theirs, but no start.

use std::net::IpAddr;

use lb::lb::backend::Wanted;
use lb::lb::datapath::{Affinity, Policy, Settings};
use lb::lb::session::Key;
use lb::lb::session::State::{Embryonic, Established};
use lb::lb::skeleton::types::lb_verdict;

use crate::common::packet::{Ike, client, echo_reply, echo_request, esp};
use crate::families;
use crate::fixture::{Balancer, settings};
use crate::peer::Peer;

const SESSION: lb_verdict = lb_verdict::LB_SESSION;
const NEW: lb_verdict = lb_verdict::LB_NEW;
const STATELESS: lb_verdict = lb_verdict::LB_STATELESS;

const SPI: u32 = 0xc1c2_c3c4;

pub const AFFINITIES: [Affinity; 2] = [Affinity::Address, Affinity::Tunnel];

pub fn by(affinity: Affinity) -> Settings {
    Settings { affinity, ..settings() }
}

/// Runs `work` for both affinities and both families, on a balancer of four active backends without any entry, with two addresses
/// that hash to none of the backends whose turn comes next.
#[track_caller]
pub fn with_each(settings: &Settings, work: impl Fn(&Balancer, IpAddr, IpAddr)) {
    for affinity in AFFINITIES {
        let balancer = Balancer::new(&Settings { affinity, ..settings.clone() }, 4);
        families(|address, other| {
            (0..4).for_each(|index| balancer.want(index, Wanted::Active));
            balancer.forget();
            let free =
                (0..4).find(|&index| [address, other].iter().all(|&each| balancer.hashed(each) != index));
            balancer.turn_to(free.expect("more backends than addresses"));
            work(&balancer, address, other);
        });
    }
}

/// What a client's packets of all kinds but starts are.
pub fn packets_of(peer: &Peer) -> [(&'static str, Vec<u8>); 6] {
    [
        ("ESP in UDP", peer.data(SPI)),
        ("plain ESP", peer.plain(SPI)),
        ("IKE", peer.auth()),
        ("a keepalive", peer.keepalive()),
        ("a ping", echo_request(peer.address)),
        ("an answer to a ping", echo_reply(peer.address)),
    ]
}

#[test]
fn root_a_known_client_starts_elsewhere_and_moves_by_its_proof() {
    with_each(&settings(), |balancer, address, _| {
        let peer = Peer::new(1, address);
        let old = balancer.connect(&peer);
        balancer.want(old, Wanted::Draining);
        for (description, frame) in packets_of(&peer) {
            balancer.expect(description, frame, (SESSION, old));
        }
        let renewed = peer.with_sa(1);
        let (verdict, to) = balancer.outcome(&renewed.start());
        let new = to.expect("a backend");
        assert_eq!(verdict, NEW);
        assert_ne!(new, old, "a start went to a draining backend");
        let beside = balancer.entry(renewed.sa()).map(|entry| (entry.state, entry.backend));
        assert_eq!(beside, Some((Embryonic, new)));
        balancer.expect("the start again", renewed.start(), (SESSION, new));
        balancer.expect(
            "the start on port 4500",
            renewed.ike(Ike::init(renewed.initiator_spi)),
            (SESSION, new),
        );
        // Where a tunnel is the client, an SPI that its backend has not shown is another's: the endpoint's.
        let not_shown = if balancer.settings.affinity == Affinity::Tunnel { old } else { new };
        balancer.expect("a responder SPI from nowhere", renewed.auth(), (SESSION, not_shown));
        let unmoved = |when: &str| {
            for (description, frame) in packets_of(&peer) {
                balancer.expect(&format!("{description} {when}"), frame, (SESSION, old));
            }
            assert_eq!(balancer.sessions.established(), 1);
        };
        unmoved("before any answer");
        balancer.answer(old, renewed.answer());
        balancer.expect("a proof that another backend answered", renewed.auth(), (SESSION, not_shown));
        unmoved("after an answer of the old backend");
        balancer.answer(new, renewed.answer());
        unmoved("before the proof");

        balancer.expect("the proof", renewed.auth(), (SESSION, new));
        balancer.answer(new, renewed.ike_back());
        assert_eq!(balancer.sessions.established(), 1);
        for (description, frame) in packets_of(&renewed) {
            if (description, balancer.settings.affinity) != ("plain ESP", Affinity::Tunnel) {
                balancer.expect(description, frame, (SESSION, new));
            }
        }
        balancer.expect("plain ESP with a new SPI", renewed.plain(SPI + 1), (SESSION, new));
        let session = match balancer.settings.affinity {
            Affinity::Address => Key::Address(address),
            Affinity::Tunnel => renewed.sa(),
        };
        let session = balancer.entry(session).expect("a session");
        assert_eq!((session.state, session.backend), (Established, new));
        assert_eq!(
            (session.initiator_spi, session.responder_spi),
            (renewed.initiator_spi, renewed.responder_spi)
        );
        if balancer.settings.affinity == Affinity::Address {
            assert_eq!(balancer.entry(renewed.sa()), None, "what was beside is the session now");
            assert_eq!(balancer.rows().len(), 1);
        }
    });
}

#[test]
fn root_a_handshake_that_has_begun_goes_on() {
    with_each(&settings(), |balancer, address, _| {
        let peer = Peer::new(1, address);
        let old = balancer.greet(&peer);
        balancer.want(old, Wanted::Draining);
        balancer.expect("the start again", peer.start(), (SESSION, old));
        balancer.expect(
            "the start with a cookie",
            peer.ike_500(Ike { extra: 140, ..Ike::init(peer.initiator_spi) }),
            (SESSION, old),
        );
        balancer.expect("the proof", peer.auth(), (SESSION, old));
        balancer.expect("the start once more", peer.start(), (SESSION, old));
        balancer.expect("ESP", peer.data(SPI), (SESSION, old));
        assert_eq!(balancer.sessions.established(), 1);
    });
}

#[test]
fn root_pings_stay_and_their_client_starts_elsewhere() {
    with_each(&settings(), |balancer, address, _| {
        let old = balancer.outcome(&echo_request(address)).1.expect("a backend");
        balancer.want(old, Wanted::Draining);
        balancer.expect("a ping", echo_request(address), (SESSION, old));
        let peer = Peer::new(1, address);
        let new = balancer.greet(&peer);
        assert_ne!(new, old);
        balancer.expect("the proof", peer.auth(), (SESSION, new));
        balancer.expect("a ping after it", echo_request(address), (SESSION, new));
        balancer.expect("ESP", peer.data(SPI), (SESSION, new));
    });
}

#[test]
fn root_others_stay_and_new_clients_go_elsewhere() {
    for policy in [Policy::RoundRobin, Policy::Maglev, Policy::LeastSessions] {
        with_each(&Settings { policy, ..settings() }, |balancer, address, _| {
            let v6 = address.is_ipv6();
            let peers: Vec<Peer> =
                (0..12).map(|number| Peer::new(number, client(10 + u32::from(number), v6))).collect();
            let backends: Vec<u32> = peers.iter().map(|peer| balancer.connect(peer)).collect();
            let drained = backends[0];
            balancer.want(drained, Wanted::Draining);
            for (peer, &backend) in peers.iter().zip(&backends) {
                balancer.expect("ESP", peer.data(SPI), (SESSION, backend));
                if backend != drained {
                    let renewed = peer.with_sa(1);
                    let verdict = if balancer.settings.affinity == Affinity::Tunnel { NEW } else { SESSION };
                    balancer.expect("a start at an active backend", renewed.start(), (verdict, backend));
                }
            }
            let mut starts = [0; 4];
            for number in 100..130 {
                let newcomer = client(number, v6);
                balancer.expect(
                    "ESP without a session",
                    esp(newcomer, SPI),
                    (STATELESS, balancer.hashed(newcomer)),
                );
                let (verdict, to) = balancer.outcome(&Peer::new(number as u16, newcomer).start());
                assert_eq!(verdict, NEW);
                starts[to.expect("a backend") as usize] += 1;
            }
            let hashes = (100..130).filter(|&number| balancer.hashed(client(number, v6)) == drained).count();
            assert!(hashes > 0, "some of these hash to the draining backend, and go there");
            assert_eq!(starts[drained as usize], 0, "{policy:?}");
            let others: Vec<u32> =
                (0..4).filter(|&index| index != drained as usize).map(|index| starts[index]).collect();
            assert!(others.iter().all(|&count| count > 2), "{policy:?}: {starts:?}");
            assert!(policy != Policy::RoundRobin || others == [10; 3], "{starts:?}");
        });
    }
}

#[test]
fn root_where_none_is_active_draining_backends_share_the_starts() {
    for policy in [Policy::RoundRobin, Policy::Maglev, Policy::LeastSessions] {
        with_each(&Settings { policy, ..settings() }, |balancer, address, _| {
            (0..4).for_each(|index| balancer.want(index, Wanted::Draining));
            let mut starts = [0; 4];
            for number in 100..140 {
                let newcomer = client(number, address.is_ipv6());
                let (verdict, to) = balancer.outcome(&Peer::new(number as u16, newcomer).start());
                assert_eq!(verdict, NEW);
                let to = to.expect("a backend");
                starts[to as usize] += 1;
                assert!(policy != Policy::Maglev || to == balancer.hashed(newcomer));
            }
            assert!(starts.iter().all(|&count| count > 2), "{starts:?}");
            assert!(policy == Policy::Maglev || starts == [10; 4], "{starts:?}");
            // One that is active takes them all.
            balancer.want(2, Wanted::Active);
            for number in 200..210 {
                let peer = Peer::new(number, client(number.into(), address.is_ipv6()));
                balancer.expect("a start", peer.start(), (NEW, 2));
            }
        });
    }
}

#[test]
fn root_a_handshake_beside_a_session_outlasts_the_end_of_the_draining() {
    with_each(&settings(), |balancer, address, _| {
        let peer = Peer::new(1, address);
        let old = balancer.connect(&peer);
        balancer.want(old, Wanted::Draining);
        let renewed = peer.with_sa(1);
        let new = balancer.outcome(&renewed.start()).1.expect("a backend");
        assert_ne!(old, new);
        balancer.want(old, Wanted::Active);
        balancer.expect("the start again", renewed.start(), (SESSION, new));
        balancer.answer(new, renewed.answer());
        balancer.expect("ESP", peer.data(SPI), (SESSION, old));
        balancer.expect("the proof", renewed.auth(), (SESSION, new));
        balancer.answer(new, renewed.ike_back());
        balancer.expect("ESP after it", renewed.data(SPI), (SESSION, new));
        balancer.expect("IKE after it", renewed.auth(), (SESSION, new));
    });
}

#[test]
fn root_what_is_beside_a_session_ends_by_itself() {
    with_each(&settings(), |balancer, address, _| {
        let peer = Peer::new(1, address);
        let old = balancer.connect(&peer);
        balancer.want(old, Wanted::Draining);
        let renewed = peer.with_sa(1);
        assert_eq!(balancer.outcome(&renewed.start()).0, NEW);
        balancer.age_sessions(32);
        assert_eq!(balancer.entry(renewed.sa()), None);
        balancer.expect("ESP", peer.data(SPI), (SESSION, old));
        let (verdict, to) = balancer.outcome(&renewed.start());
        assert_eq!(verdict, NEW);
        assert_ne!(to, Some(old));
        // Each SA has its own.
        let third = peer.with_sa(2);
        let (verdict, to) = balancer.outcome(&third.start());
        assert_eq!(verdict, NEW);
        assert_ne!(to, Some(old));
    });
}

#[test]
fn root_a_draining_backend_that_teaches_a_client_keeps_it() {
    with_each(&settings(), |balancer, address, _| {
        let peer = Peer::new(1, address);
        let old = (balancer.hashed(address) + 1) % 4;
        balancer.want(old, Wanted::Draining);
        balancer.answer(old, peer.data_back());
        balancer.expect("ESP", peer.data(SPI), (SESSION, old));
        let (verdict, to) = balancer.outcome(&peer.ike(Ike::init(peer.initiator_spi)));
        assert_eq!(verdict, NEW);
        assert_ne!(to, Some(old));
    });
}

#[test]
fn root_a_start_that_may_have_no_entry_stays_with_the_session() {
    // One new entry a second for each source.
    with_each(&Settings { start_rate: 20, ..settings() }, |balancer, address, _| {
        let peer = Peer::new(1, address);
        let old = balancer.connect(&peer);
        balancer.want(old, Wanted::Draining);
        let renewed = peer.with_sa(1);
        balancer.expect("a start over the rate", renewed.start(), (SESSION, old));
        balancer.answer(old, renewed.answer());
        balancer.expect("what follows it", renewed.auth(), (SESSION, old));
        balancer.expect("ESP", peer.data(SPI), (SESSION, old));
    });
}
