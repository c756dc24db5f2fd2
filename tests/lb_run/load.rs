//! Policy `least-sessions`, and the counts that it goes by.

use std::collections::HashSet;
use std::net::IpAddr;

use lb::lb::backend::{self, Wanted};
use lb::lb::datapath::{Affinity, Policy, Settings};
use lb::lb::session::{Key, State};
use lb::lb::skeleton::types::lb_verdict;

use crate::common::packet::{Ike, client, echo_request, ike_back};
use crate::draining::{AFFINITIES, by};
use crate::fixture::{Balancer, Side};
use crate::peer::Peer;

const NEW: lb_verdict = lb_verdict::LB_NEW;

fn least(affinity: Affinity) -> Settings {
    Settings { policy: Policy::LeastSessions, max_sessions: 256, ..by(affinity) }
}

/// What the datapath counts of each backend.
fn counts(balancer: &Balancer) -> Vec<u64> {
    let counts = &balancer.datapath.maps.backend_sessions;
    (0..4).map(|index| counts.get(&index).unwrap().unwrap()).collect()
}

/// The same, from the table.
fn recount(balancer: &Balancer) -> (Vec<u64>, u64) {
    let (mut counts, mut established) = (vec![0; 4], 0);
    for entry in balancer.sessions.entries() {
        let is_session = match balancer.settings.affinity {
            Affinity::Address => matches!(entry.key, Key::Address(_)),
            Affinity::Tunnel => matches!(entry.key, Key::Sa(_)),
        };
        if is_session && entry.state != State::Learned {
            counts[entry.backend as usize] += 1;
            established += u64::from(entry.state == State::Established);
        }
    }
    (counts, established)
}

#[track_caller]
fn assert_true_counts(balancer: &Balancer, when: &str) {
    let (counted, established) = recount(balancer);
    assert_eq!(counts(balancer), counted, "{when}");
    assert_eq!(balancer.sessions.established(), established, "{when}");
}

#[test]
fn root_starts_go_to_the_least_loaded_for_its_weight() {
    for affinity in AFFINITIES {
        let mut balancer = Balancer::new(&least(affinity), 4);
        let start = |number: u16| {
            let peer = Peer::new(number, client(number.into(), number % 2 == 1));
            let (verdict, to) = balancer.outcome(&peer.start());
            assert_eq!(verdict, NEW);
            (peer, to.expect("a backend"))
        };
        let started: Vec<(Peer, u32)> = (0..40).map(start).collect();
        assert_eq!(counts(&balancer), [10; 4]);
        // Who has lost sessions is the next to get some.
        for (peer, _) in started.iter().filter(|(_, backend)| *backend == 2).take(6) {
            assert_eq!(balancer.sessions.remove(peer.address), 1);
        }
        assert_eq!(counts(&balancer), [10, 10, 4, 10]);
        assert!((100..106).all(|number| start(number).1 == 2));
        assert_eq!(counts(&balancer), [10; 4]);
        assert_true_counts(&balancer, "after the removal");

        assert_eq!(balancer.sessions.flush(), 40);
        assert_eq!(counts(&balancer), [0; 4]);
        balancer.weigh(&[1, 2, 0, 5]);
        for number in 0..80 {
            let peer = Peer::new(number, client(number.into(), number % 2 == 1));
            balancer.outcome(&peer.start());
        }
        assert_eq!(counts(&balancer), [10, 20, 0, 50]);

        // Those that take no starts have none to take, whatever they have little of.
        balancer.sessions.flush();
        balancer.weigh(&[1, 1, 1, 1]);
        balancer.want(0, Wanted::Draining);
        balancer.want(1, Wanted::Down);
        for number in 0..20 {
            balancer.outcome(&Peer::new(number, client(number.into(), false)).start());
        }
        assert_eq!(counts(&balancer), [0, 0, 10, 10]);
    }
}

#[test]
fn root_equals_take_turns() {
    for affinity in AFFINITIES {
        let balancer = Balancer::new(&least(affinity), 4);
        let mut firsts = HashSet::new();
        for number in 0..8u16 {
            let peer = Peer::new(number, client(number.into(), false));
            firsts.insert(balancer.outcome(&peer.start()).1);
            balancer.sessions.flush();
        }
        assert_eq!(firsts.len(), 4, "among equals it is not always the same one");
    }
}

#[test]
fn root_sessions_that_have_expired_are_missed_by_the_starts_that_follow() {
    for affinity in AFFINITIES {
        let balancer = Balancer::new(&least(affinity), 4);
        for number in 0..40u16 {
            balancer.outcome(&Peer::new(number, client(number.into(), false)).start());
        }
        assert_eq!(counts(&balancer), [10; 4]);
        balancer.age_sessions(32);
        assert_eq!(counts(&balancer), [10; 4], "nobody has looked yet");
        sweep(&balancer, 1000);
        assert_true_counts(&balancer, "after a look at the whole table");
        assert!(counts(&balancer).iter().sum::<u64>() < 40);
    }
}

/// As many starts as look through the whole table.
fn sweep(balancer: &Balancer, first: u32) {
    let buckets = balancer.datapath.maps.config().unwrap().session_config.buckets;
    for number in 0..buckets.div_ceil(8) {
        let peer = Peer::new((first + number) as u16, client(first + number, true));
        balancer.send(Side::Client, &peer.start());
    }
}

/// The generator of Numerical Recipes, for choices that are the same in each run.
struct Choices(u64);

impl Choices {
    fn below(&mut self, count: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % count
    }
}

#[test]
fn root_counts_stay_true_whatever_happens() {
    for affinity in AFFINITIES {
        // Buckets overflow, so that entries are taken over.
        let balancer = Balancer::new(&Settings { max_sessions: 24, ..least(affinity) }, 4);
        let mut choices = Choices(if affinity == Affinity::Tunnel { 1 } else { 2 });
        let mut switched = 0;
        for step in 0..6000 {
            let number = choices.below(40) as u16;
            let address: IpAddr = client(u32::from(number) / 2, number % 4 < 2);
            let peer = Peer::new(number, address).with_sa(choices.below(4) as u64);
            let sender = choices.below(4) as u32;
            let kind = choices.below(100);
            match kind {
                0..30 => drop(balancer.outcome(&peer.start())),
                30..55 => {
                    let backend = match affinity {
                        Affinity::Address => {
                            balancer.entry(peer.sa()).or_else(|| balancer.entry(Key::Address(address)))
                        }
                        Affinity::Tunnel => balancer.entry(peer.sa()),
                    };
                    let backend = backend.map_or(sender, |entry| entry.backend);
                    balancer.answer(backend, peer.answer());
                    let before = recount(&balancer).0;
                    balancer.outcome(&peer.auth());
                    switched += u32::from(before != recount(&balancer).0);
                }
                55..60 => drop(balancer.outcome(&peer.auth())),
                60..65 => drop(balancer.outcome(&peer.data(0x1000 + u32::from(number)))),
                65..70 => drop(balancer.outcome(&echo_request(address))),
                70..75 => drop(balancer.answer(sender, peer.data_back())),
                75..80 => drop(balancer.answer(sender, peer.plain_back())),
                80..84 => {
                    drop(balancer.answer(sender, ike_back(address, Ike::init(u64::from(number) << 40 | 1))))
                }
                84..88 => drop(balancer.sessions.remove(address)),
                88..90 => drop(balancer.sessions.remove_at(sender)),
                90 => drop(balancer.sessions.flush()),
                91..97 => {
                    let wanted =
                        [Wanted::Active, Wanted::Active, Wanted::Draining, Wanted::Down][choices.below(4)];
                    backend::set_wanted(&balancer.datapath.maps, sender, wanted).unwrap();
                }
                97..99 => balancer.age_sessions(choices.below(20) as u32),
                _ => balancer.age_sessions(31),
            }
            if step % 20 == 19 {
                // Nothing expires between the sweep and the count: what is near its end is made to end before.
                balancer.age_sessions(2);
                sweep(&balancer, 2000 + step);
                let (_, established) = recount(&balancer);
                assert_true_counts(&balancer, &format!("{affinity:?}, step {step}"));
                assert!(established <= 24, "{established} sessions are established");
            }
        }
        assert!(switched > 2, "{switched} sessions went from one backend to another");
    }
}
