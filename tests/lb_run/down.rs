//! Backends that are down, by the user's wish or because they do not answer, and those of weight 0.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use lb::lb::backend::{self, Wanted};
use lb::lb::datapath::{Affinity, OnDown, Policy, Settings};
use lb::lb::skeleton::types::lb_verdict;

use crate::common::packet::{
    ah, arp, client, echo_reply, echo_request, esp, esp_back, esp_in_udp, fragments, icmp_error,
};
use crate::draining::{AFFINITIES, by, packets_of, with_each};
use crate::fixture::{Balancer, Side, settings};
use crate::peer::Peer;

const SESSION: lb_verdict = lb_verdict::LB_SESSION;
const NEW: lb_verdict = lb_verdict::LB_NEW;
const STATELESS: lb_verdict = lb_verdict::LB_STATELESS;
const NO_BACKEND: lb_verdict = lb_verdict::LB_NO_BACKEND;

const SPI: u32 = 0xc1c2_c3c4;

/// The one backend that a client's packets go to by hash.
#[track_caller]
fn one_way(balancer: &Balancer, frames: &[(&str, Vec<u8>)]) -> u32 {
    let outcomes: Vec<_> = frames.iter().map(|(_, frame)| balancer.outcome(frame)).collect();
    let to = outcomes[0].1.expect("a backend");
    for ((description, _), outcome) in frames.iter().zip(outcomes) {
        assert_eq!(outcome, (STATELESS, Some(to)), "{description}");
    }
    to
}

#[test]
fn root_packets_of_sessions_go_by_hash_meanwhile_and_back_again() {
    with_each(&settings(), |balancer, address, _| {
        let peer = Peer::new(1, address);
        let down = balancer.connect(&peer);
        balancer.expect("ESP", peer.data(SPI), (SESSION, down));
        let plain = balancer.outcome(&peer.plain(SPI));
        assert_eq!(plain, (SESSION, Some(down)));
        balancer.want(down, Wanted::Down);
        let instead = one_way(balancer, &packets_of(&peer));
        assert_eq!(instead, balancer.hashed(address), "this one is not down, so the hash has its way");
        balancer.pass();
        assert_eq!(one_way(balancer, &packets_of(&peer)), instead);
        balancer.expect("the start that the session is from", peer.start(), (STATELESS, instead));
        let quoted = icmp_error(
            client(3, address.is_ipv6()),
            if address.is_ipv6() { 2 } else { 3 },
            &peer.data_back(),
            60,
        );
        balancer.expect("an error about it", quoted, (STATELESS, instead));
        balancer.want(down, Wanted::Active);
        for (description, frame) in packets_of(&peer) {
            balancer.expect(description, frame, (SESSION, down));
        }
    });
}

#[test]
fn root_the_next_start_moves_a_session_for_good() {
    with_each(&settings(), |balancer, address, _| {
        let peer = Peer::new(1, address);
        let down = balancer.connect(&peer);
        balancer.want(down, Wanted::Down);
        let renewed = peer.with_sa(1);
        let new = balancer.greet(&renewed);
        assert_ne!(new, down);
        let instead = balancer.hashed(address);
        balancer.expect("ESP before the proof", peer.data(SPI), (STATELESS, instead));
        balancer.expect("the proof", renewed.auth(), (SESSION, new));
        balancer.answer(new, renewed.ike_back());
        balancer.expect("ESP after it", renewed.data(SPI), (SESSION, new));
        balancer.want(down, Wanted::Active);
        for (description, frame) in packets_of(&renewed) {
            balancer.expect(description, frame, (SESSION, new));
        }
        assert_eq!(balancer.sessions.established(), 1);
    });
}

#[test]
fn root_sessions_wait_for_a_backend_where_they_are_to_hold() {
    with_each(&Settings { on_down: OnDown::Hold, ..settings() }, |balancer, address, other| {
        let peer = Peer::new(1, address);
        let down = balancer.connect(&peer);
        balancer.expect("ESP", peer.plain(SPI), (SESSION, down));
        balancer.want(down, Wanted::Down);
        for (description, frame) in packets_of(&peer) {
            balancer.expect_dropped(description, frame, NO_BACKEND);
        }
        // Who has no session has nothing to wait for.
        let hashing = (1..)
            .map(|number| client(number, address.is_ipv6()))
            .find(|&each| each != address && balancer.hashed(each) == down);
        let to = one_way(
            balancer,
            &[("ESP", esp(hashing.unwrap(), SPI)), ("ESP in UDP", esp_in_udp(hashing.unwrap(), 4500, SPI))],
        );
        assert_ne!(to, down);
        let newcomer = balancer.outcome(&Peer::new(2, other).start());
        assert_eq!(newcomer.0, NEW);
        assert_ne!(newcomer.1, Some(down));
        balancer.want(down, Wanted::Active);
        for (description, frame) in packets_of(&peer) {
            balancer.expect(description, frame, (SESSION, down));
        }
    });
}

#[test]
fn root_one_that_goes_down_and_comes_back_moves_its_own_alone() {
    let balancer = Balancer::new(&by(Affinity::Address), 4);
    let other = Balancer::new(&by(Affinity::Tunnel), 4);
    let clients: Vec<IpAddr> = (0..300).map(|number| client(number, number % 2 == 1)).collect();
    let ways = |balancer: &Balancer| -> Vec<u32> {
        clients
            .iter()
            .map(|&client| {
                one_way(
                    balancer,
                    &[
                        ("ESP", esp(client, 7)),
                        ("ESP in UDP", esp_in_udp(client, 4500, 8)),
                        ("AH", ah(client, 9)),
                        ("an answer to a ping", echo_reply(client)),
                    ],
                )
            })
            .collect()
    };
    let before = ways(&balancer);
    assert_eq!(before, clients.iter().map(|&client| balancer.hashed(client)).collect::<Vec<_>>());
    for balancer in [&balancer, &other] {
        balancer.want(1, Wanted::Down);
    }
    let meanwhile = ways(&balancer);
    let mut heirs: HashMap<u32, u32> = HashMap::new();
    for (&before, &now) in before.iter().zip(&meanwhile) {
        assert!(now == before || before == 1, "a client of {before} moved to {now}");
        assert_ne!(now, 1);
        *heirs.entry(now).or_default() += u32::from(before == 1);
    }
    assert!(heirs.values().all(|&count| count > 8), "one heir has too much: {heirs:?}");
    assert_eq!(meanwhile, ways(&other), "two balancers disagree");
    balancer.want(1, Wanted::Active);
    assert_eq!(ways(&balancer), before);
}

#[test]
fn root_fragments_leave_a_backend_that_is_down() {
    with_each(&settings(), |balancer, address, _| {
        let peer = Peer::new(1, address);
        let down = balancer.connect(&peer);
        let [first, later] = fragments(&peer.data(SPI), 32, 1, &[]);
        balancer.expect("the first fragment", first.clone(), (SESSION, down));
        balancer.want(down, Wanted::Down);
        let instead = balancer.hashed(address);
        balancer.expect("the rest of it", later.clone(), (STATELESS, instead));
        balancer.expect("the first fragment", first, (STATELESS, instead));
        balancer.want(down, Wanted::Active);
        balancer.expect("the rest of it goes where the first went", later, (STATELESS, instead));
    });
}

#[test]
fn root_without_any_backend_up_tunnels_are_dropped() {
    with_each(&settings(), |balancer, address, other| {
        let peer = Peer::new(1, address);
        balancer.connect(&peer);
        (0..4).for_each(|index| balancer.want(index, Wanted::Down));
        for (description, frame) in packets_of(&peer) {
            balancer.expect_dropped(description, frame, NO_BACKEND);
        }
        balancer.expect_dropped("a start", Peer::new(2, other).start(), NO_BACKEND);
        balancer.expect_dropped("a ping", echo_request(other), NO_BACKEND);
        balancer.expect_dropped("ESP", esp(other, 7), NO_BACKEND);
    });
}

#[test]
fn root_a_weight_of_0_takes_no_new_clients_and_keeps_its_own() {
    for policy in [Policy::RoundRobin, Policy::Maglev, Policy::LeastSessions] {
        with_each(&Settings { policy, ..settings() }, |balancer, address, _| {
            let peer = Peer::new(1, address);
            let idle = balancer.connect(&peer);
            let weigh = |weight| {
                backend::set_weight(&balancer.datapath.maps, idle, weight).unwrap();
                backend::reschedule(&balancer.datapath.maps).unwrap();
            };
            weigh(0);
            for (description, frame) in packets_of(&peer) {
                if (description, balancer.settings.affinity) != ("plain ESP", Affinity::Tunnel) {
                    balancer.expect(description, frame, (SESSION, idle));
                }
            }
            for number in 100..140 {
                let newcomer = client(number, address.is_ipv6());
                assert_ne!(balancer.outcome(&esp(newcomer, 7)).1, Some(idle), "by hash");
                let (verdict, to) = balancer.outcome(&Peer::new(number as u16, newcomer).start());
                assert_eq!(verdict, NEW);
                assert_ne!(to, Some(idle), "{policy:?}");
            }
            weigh(1);
        });
    }
}

#[test]
fn root_where_no_backend_has_a_weight_nothing_is_dropped() {
    for policy in [Policy::RoundRobin, Policy::Maglev, Policy::LeastSessions] {
        for affinity in AFFINITIES {
            let mut balancer = Balancer::new(&Settings { policy, ..by(affinity) }, 2);
            balancer.weigh(&[0, 0]);
            let v4 = client(1, false);
            assert_eq!(balancer.outcome(&Peer::new(1, v4).start()).0, NEW);
            assert_eq!(balancer.outcome(&esp(client(2, true), 7)).0, STATELESS);
        }
    }
}

fn with_health() -> Settings {
    Settings { down_after: Duration::from_secs(20), ..settings() }
}

fn asked(balancer: &Balancer, index: u32) -> u32 {
    balancer.datapath.maps.backends.get(&index).unwrap().unwrap().asked
}

#[test]
fn root_a_backend_that_leaves_its_clients_without_an_answer_is_down() {
    with_each(&with_health(), |balancer, address, other| {
        let peer = Peer::new(1, address);
        let mute = balancer.connect(&peer);
        assert_eq!(asked(balancer, mute), 0, "it has answered");
        balancer.expect("ESP", peer.data(SPI), (SESSION, mute));
        balancer.expect("IKE", peer.auth(), (SESSION, mute));
        assert_eq!(asked(balancer, mute), 0, "none of that has to be answered");
        balancer.expect("a ping", echo_request(address), (SESSION, mute));
        let since = asked(balancer, mute);
        assert_ne!(since, 0);
        balancer.age_question(mute, 15);
        let since = asked(balancer, mute).min(since);
        balancer.expect("another ping", echo_request(address), (SESSION, mute));
        assert_eq!(asked(balancer, mute), since, "the first question counts");
        balancer.expect("ESP after 15 seconds", peer.data(SPI), (SESSION, mute));
        balancer.age_question(mute, 8);

        let instead = balancer.hashed(address);
        assert_eq!(one_way(balancer, &packets_of(&peer)), instead);
        let listed = backend::list(&balancer.datapath.maps).unwrap();
        assert_eq!(listed[mute as usize].state, backend::State::Down);
        for number in 0..8 {
            let newcomer = Peer::new(100 + number, client(100 + u32::from(number), address.is_ipv6()));
            let (verdict, to) = balancer.outcome(&newcomer.start());
            assert_eq!(verdict, NEW);
            assert_ne!(to, Some(mute), "a start goes to a backend that does not answer");
        }
        let hashing = (1..)
            .map(|number| client(number, address.is_ipv6()))
            .find(|&each| balancer.hashed(each) == mute)
            .unwrap();
        assert_ne!(one_way(balancer, &[("ESP", esp(hashing, 7))]), mute);

        // Any frame of it will do, and one of another backend will not.
        balancer.answer((mute + 1) % 4, arp(1, [0xff; 6]));
        assert_eq!(one_way(balancer, &packets_of(&peer)), instead);
        balancer.answer(mute, arp(1, [0xff; 6]));
        assert_eq!(asked(balancer, mute), 0);
        for (description, frame) in packets_of(&peer) {
            if description != "a ping" {
                balancer.expect(description, frame, (SESSION, mute));
            }
        }
        balancer.answer(mute, esp_back(other, 9));
        (0..4).for_each(|index| drop(balancer.answer(index, arp(1, [0xff; 6]))));
    });
}

#[test]
fn root_sessions_wait_for_a_backend_that_does_not_answer_where_they_are_to_hold() {
    with_each(&Settings { on_down: OnDown::Hold, ..with_health() }, |balancer, address, _| {
        let peer = Peer::new(1, address);
        let mute = balancer.connect(&peer);
        balancer.expect("a ping", echo_request(address), (SESSION, mute));
        balancer.age_question(mute, 30);
        for (description, frame) in packets_of(&peer) {
            balancer.expect_dropped(description, frame, NO_BACKEND);
        }
        balancer.answer(mute, arp(1, [0xff; 6]));
        balancer.expect("ESP", peer.data(SPI), (SESSION, mute));
        (0..4).for_each(|index| drop(balancer.answer(index, arp(1, [0xff; 6]))));
    });
}

#[test]
fn root_nobody_is_asked_for_an_answer_where_that_does_not_count() {
    let balancer = Balancer::new(&settings(), 1);
    let peer = Peer::new(1, client(1, false));
    balancer.outcome(&peer.start());
    balancer.outcome(&echo_request(peer.address));
    assert_eq!(asked(&balancer, 0), 0);
    // What another version has left says nothing either.
    let backends = &balancer.datapath.maps.backends;
    let mut backend = backends.get(&0).unwrap().unwrap();
    backend.asked = 1;
    backends.set(&0, &backend).unwrap();
    assert_eq!(balancer.outcome(&peer.start()), (SESSION, Some(0)));
    assert_eq!(balancer.send(Side::Client, &peer.start()).action, crate::fixture::XDP_REDIRECT);
}
