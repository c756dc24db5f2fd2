//! Who gets the next client, and who gets those that come without a session.

use std::net::IpAddr;

use lb::lb::backend;
use lb::lb::datapath::{Policy, Settings};
use lb::lb::skeleton::types::lb_verdict;

use crate::common::packet::{
    Ike, ah, arp, backend_mac, client, echo_reply, echo_request, esp, esp_in_udp, ike, keepalive,
};
use crate::families;
use crate::fixture::Expected::{Dropped, Neighbour};
use crate::fixture::{Balancer, INITIATOR, NO_BACKEND, Way, from_client, settings};

const NEW: lb_verdict = lb_verdict::LB_NEW;
const STATELESS: lb_verdict = lb_verdict::LB_STATELESS;

/// Room for the sessions of a thousand clients.
fn roomy() -> Settings {
    Settings { max_sessions: 4096, ..Settings::default() }
}

fn start(client: IpAddr) -> Vec<u8> {
    ike(client, Ike::init(INITIATOR))
}

/// IPv4 and IPv6 clients by turns.
fn clients(count: u32) -> impl Iterator<Item = IpAddr> {
    (0..count).map(|number| client(number, number % 2 == 1))
}

#[test]
fn root_clients_take_the_backends_in_turn() {
    let balancer = Balancer::new(&roomy(), 4);
    for (number, client) in clients(1000).enumerate() {
        let expected = Some(number as u32 % 4);
        assert_eq!(balancer.outcome(&start(client)), (NEW, expected), "client {number}");
        // What belongs to a session takes no turn, nor does what has none.
        assert_eq!(balancer.outcome(&esp(client, 7)), (lb_verdict::LB_SESSION, expected));
        balancer.outcome(&esp("192.0.2.1".parse().unwrap(), 7));
    }
    let loads = backend::loads(&balancer.datapath.maps).expect("loads can be read");
    assert_eq!(loads.iter().map(|load| load.sessions).collect::<Vec<_>>(), [250; 4]);
}

#[test]
fn root_weights_share_out_turns_and_hashes() {
    let weights = [1, 2, 0, 5];
    let mut balancer = Balancer::new(&roomy(), 4);
    balancer.weigh(&weights);
    let (mut turns, mut hashes) = ([0; 4], [0; 4]);
    for client in clients(800) {
        let (verdict, to) = balancer.outcome(&esp(client, 7));
        assert_eq!((verdict, to), (STATELESS, Some(balancer.hashed(client))));
        hashes[to.unwrap() as usize] += 1;
        let (verdict, to) = balancer.outcome(&start(client));
        assert_eq!(verdict, NEW);
        turns[to.unwrap() as usize] += 1;
    }
    assert_eq!(turns, weights.map(|weight| weight * 100));
    for (count, weight) in hashes.into_iter().zip(weights) {
        assert!((weight * 70..=weight * 130).contains(&count), "{hashes:?} for the weights {weights:?}");
    }
}

#[test]
fn root_unresolved_backends_are_skipped() {
    let macs = [None, Some(backend_mac(1)), None, Some(backend_mac(3))];
    let balancer = Balancer::of(&roomy(), &macs);
    let other = Balancer::of(&roomy(), &macs);
    let mut starts = [0; 4];
    for client in clients(200) {
        let (verdict, to) = balancer.outcome(&esp(client, 7));
        assert_eq!(verdict, STATELESS);
        assert_eq!(balancer.outcome(&esp_in_udp(client, 4500, 7)), (STATELESS, to), "{client} goes two ways");
        assert_eq!(other.outcome(&esp(client, 7)), (STATELESS, to), "two balancers disagree about {client}");
        let to = to.expect("a backend") as usize;
        assert!(macs[to].is_some(), "{client} goes to backend {to}");
        let hashed = balancer.hashed(client) as usize;
        assert!(to == hashed || macs[hashed].is_none(), "{client} goes to {to} in place of {hashed}");

        let (verdict, to) = balancer.outcome(&start(client));
        assert_eq!(verdict, NEW);
        starts[to.expect("a backend") as usize] += 1;
    }
    assert_eq!(starts, [0, 100, 0, 100]);
}

#[test]
fn root_a_single_resolved_backend_takes_everything() {
    let mut macs = [None; 40];
    macs[33] = Some(backend_mac(33));
    let balancer = Balancer::of(&roomy(), &macs);
    for client in clients(40) {
        assert_eq!(balancer.outcome(&esp(client, 7)), (STATELESS, Some(33)));
        assert_eq!(balancer.outcome(&start(client)), (NEW, Some(33)));
    }
}

#[test]
fn root_without_a_backend_tunnels_are_dropped() {
    let balancer = Balancer::of(&settings(), &[None, None]);
    families(|client, _| {
        for (description, frame) in [
            ("a start", start(client)),
            ("IKE", ike(client, Ike::auth(INITIATOR, 9))),
            ("ESP", esp(client, 7)),
            ("AH", ah(client, 7)),
            ("ESP in UDP", esp_in_udp(client, 4500, 7)),
            ("a ping", echo_request(client)),
            ("an answer to a ping", echo_reply(client)),
        ] {
            balancer.check(&from_client(description, frame, NO_BACKEND));
        }
        let dropped = Dropped(lb_verdict::LB_KEEPALIVE_DROPPED);
        balancer.check(&from_client("a keepalive", keepalive(client), dropped));
    });
    balancer.check(&from_client("ARP resolves them", arp(1, [0xff; 6]), Neighbour(Way::All)));
}

#[test]
fn root_sessions_wait_for_a_backend_that_is_unresolved() {
    let balancer = Balancer::new(&settings(), 2);
    let client = client(1, false);
    balancer.establish(client);
    let index = balancer.backend_of(client).expect("a session");
    let backends = &balancer.datapath.maps.backends;
    let resolved = backends.get(&index).unwrap().unwrap();
    let mut unresolved = resolved;
    unresolved.station.mac = [0; 6];
    backends.set(&index, &unresolved).unwrap();
    for frame in [esp(client, 7), start(client)] {
        assert_eq!(balancer.outcome(&frame), (lb_verdict::LB_NO_BACKEND, None));
    }
    backends.set(&index, &resolved).unwrap();
    assert_eq!(balancer.outcome(&esp(client, 7)), (lb_verdict::LB_SESSION, Some(index)));
}

#[test]
fn root_maglev_places_starts_by_hash_alike_everywhere() {
    let settings = Settings { policy: Policy::Maglev, ..roomy() };
    let (here, there) = (Balancer::new(&settings, 4), Balancer::new(&settings, 4));
    let seed = |balancer: &Balancer| balancer.datapath.maps.config().unwrap().session_config.seed;
    assert_ne!(seed(&here), seed(&there), "the session tables must not be laid out alike");
    for client in clients(500) {
        let to = Some(here.hashed(client));
        assert_eq!(here.outcome(&esp(client, 7)), (STATELESS, to));
        assert_eq!(here.outcome(&start(client)), (NEW, to));
        assert_eq!(here.outcome(&esp(client, 7)), (lb_verdict::LB_SESSION, to));
        assert_eq!(there.outcome(&start(client)), (NEW, to));
    }
}

#[test]
fn root_the_hash_is_the_same_for_all_protocols_of_a_client() {
    let balancer = Balancer::new(&settings(), 4);
    for client in clients(100) {
        let to = (STATELESS, Some(balancer.hashed(client)));
        for frame in [
            esp(client, 7),
            esp(client, 8),
            ah(client, 7),
            esp_in_udp(client, 4500, 7),
            esp_in_udp(client, 61234, 9),
            ike(client, Ike::auth(1, 2)),
            echo_reply(client),
        ] {
            assert_eq!(balancer.outcome(&frame), to, "{client}");
        }
    }
}
