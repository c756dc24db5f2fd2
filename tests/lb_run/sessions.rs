//! Sessions over time: how they are proven, how long they live, and what a flood or a full table does to them.

use std::collections::HashMap;
use std::hint::spin_loop;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use lb::lb::datapath::{ReturnPath, Settings};
use lb::lb::session::State;
use lb::lb::skeleton::types::{lb_unplaced, lb_verdict};

use crate::common::packet::{
    Ike, client, echo_request, esp, esp_back, esp_in_udp, ike, ike_back, ike_nat, keepalive,
};
use crate::fixture::Expected::{Hash, New, Session};
use crate::fixture::{Balancer, INITIATOR, RESPONDER, Side, from_client, settings};
use crate::{families, walk};

const NEW: lb_verdict = lb_verdict::LB_NEW;
const SESSION: lb_verdict = lb_verdict::LB_SESSION;
const STATELESS: lb_verdict = lb_verdict::LB_STATELESS;

/// Starts beyond any flood of a test.
const UNLIMITED: u32 = 100_000_000;

fn start(client: IpAddr) -> Vec<u8> {
    ike(client, Ike::init(INITIATOR))
}

fn proof(client: IpAddr) -> Vec<u8> {
    ike(client, Ike::auth(INITIATOR, RESPONDER))
}

#[test]
fn root_where_answers_pass_elsewhere_a_responder_spi_is_the_proof() {
    let balancer = Balancer::new(&Settings { return_path: ReturnPath::Direct, ..settings() }, 4);
    families(|client, _| {
        for frame in
            [proof(client), ike_nat(client, 4500, Ike::auth(INITIATOR, 9)), ike(client, Ike::auth(8, 9))]
        {
            balancer.check(
                &from_client("a responder SPI", frame, Session(client)).with_start(client).establishes(),
            );
        }
        let after_ping = from_client("after a ping", proof(client), Session(client));
        balancer.check(&after_ping.after(Side::Client, echo_request(client)).establishes());
        for (description, frame) in [
            ("a start", start(client)),
            ("ESP", esp(client, 7)),
            ("ESP in UDP", esp_in_udp(client, 4500, 7)),
            ("a ping", echo_request(client)),
            ("a keepalive", keepalive(client)),
        ] {
            balancer.check(&from_client(description, frame, Session(client)).with_start(client));
        }
        balancer.check(&from_client("without a session", proof(client), Hash(client)));
    });
}

#[test]
fn root_a_spoofed_start_does_not_keep_a_client_from_its_proof() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, _| {
        let fixture =
            from_client("the next message after one of its backend", proof(client), Session(client));
        let fixture = fixture.with_answer(client).after(Side::Client, ike(client, Ike::init(99)));
        let answer = Ike { next_payload: 46, flags: 0x20, ..Ike::auth(INITIATOR, RESPONDER) };
        balancer.check(&fixture.after(Side::Backend, ike_back(client, answer)).establishes());
    });
}

#[test]
fn root_a_session_that_began_with_a_ping_is_proven_by_ike() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, _| {
        let fixture = from_client("a proof", proof(client), Session(client));
        let fixture = fixture.after(Side::Client, echo_request(client)).after(Side::Client, start(client));
        let answer = ike_back(client, Ike::init_response(INITIATOR, RESPONDER));
        balancer.check(&fixture.after(Side::Backend, answer).establishes());
    });
}

#[test]
fn root_no_start_moves_an_established_client() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, _| {
        balancer.sessions.flush();
        balancer.establish(client);
        let backend = balancer.backend_of(client);
        for spi in 1..100 {
            assert_eq!(balancer.outcome(&ike(client, Ike::init(spi))), (SESSION, backend));
            balancer.send(Side::Backend, &ike_back(client, Ike::init_response(spi, spi)));
            assert_eq!(balancer.outcome(&ike(client, Ike::auth(spi, spi))), (SESSION, backend));
            assert_eq!(balancer.outcome(&echo_request(client)), (SESSION, backend));
        }
        assert_eq!(balancer.outcome(&esp(client, 7)), (SESSION, backend));
        assert_eq!(balancer.sessions.established(), 1);
    });
}

#[test]
fn root_a_flood_of_starts_moves_no_established_client() {
    let balancer = Balancer::new(&Settings { start_rate: UNLIMITED, ..settings() }, 4);
    let established: HashMap<IpAddr, u32> = (0..60)
        .map(|number| {
            let client = client(number, number % 2 == 1);
            balancer.establish(client);
            (client, balancer.backend_of(client).expect("a session"))
        })
        .collect();
    for number in 1000..51_000 {
        let client = client(number, number % 2 == 1);
        let frame = if number % 3 == 0 { echo_request(client) } else { start(client) };
        balancer.send(Side::Client, &frame);
    }
    // The last ones are there, so the flood did fill the table.
    assert!(balancer.sessions.iter().count() > 200);
    assert_eq!(balancer.sessions.established(), 60);
    for (client, backend) in established {
        let session = balancer.sessions.of(client).next().expect("the session is still there");
        assert_eq!((session.state, session.backend), (State::Established, backend), "{client}");
        assert_eq!(balancer.outcome(&esp(client, 7)), (SESSION, Some(backend)), "{client}");
    }
    // Nor is a new client kept out.
    let client = client(60_000, false);
    balancer.establish(client);
    assert_eq!(balancer.sessions.established(), 61);
}

#[test]
fn root_a_full_table_places_starts_by_hash() {
    families(|newcomer, _| {
        let balancer = Balancer::new(&Settings { max_sessions: 3, ..settings() }, 4);
        let others = [10, 11, 12].map(|number| client(number, newcomer.is_ipv6()));
        let full = |description, frame, expected| {
            others.iter().fold(from_client(description, frame, expected), |fixture, &other| {
                fixture.with_established(other)
            })
        };
        let unplaced = lb_unplaced::LB_UNPLACED_TABLE_FULL;
        for (description, frame) in [
            ("a start", start(newcomer)),
            ("a start on port 4500", ike_nat(newcomer, 4500, Ike::init(INITIATOR))),
            ("a ping", echo_request(newcomer)),
        ] {
            balancer.check(&full(description, frame, Hash(newcomer)).unplaced(unplaced));
        }
        for (description, frame) in [
            ("a proof", proof(newcomer)),
            ("ESP", esp(newcomer, 7)),
            ("ESP in UDP", esp_in_udp(newcomer, 4500, 7)),
        ] {
            let fixture = full(description, frame, Hash(newcomer));
            let fixture = fixture.after(Side::Client, start(newcomer));
            balancer.check(
                &fixture.after(Side::Backend, ike_back(newcomer, Ike::init_response(INITIATOR, RESPONDER))),
            );
        }
        balancer.check(&full("a start of a known client", start(others[0]), Session(others[0])));
        let room = from_client("a start where there is room", start(newcomer), New(newcomer));
        balancer.check(&room.with_established(others[0]).with_established(others[1]));
    });
}

#[test]
fn root_a_full_bucket_places_starts_by_hash() {
    let balancer = Balancer::new(&settings(), 4);
    let bucket = balancer.bucket(client(0, false));
    let of_bucket: Vec<IpAddr> = (0..)
        .map(|number| client(number, number % 2 == 1))
        .filter(|&client| balancer.bucket(client) == bucket)
        .take(18)
        .collect();
    let (newcomers, established) = of_bucket.split_at(2);
    let full = |fixture| {
        established
            .iter()
            .fold(fixture, |fixture: crate::fixture::Fixture, &client| fixture.with_established(client))
    };
    let fixture = full(from_client("a start", start(newcomers[0]), Hash(newcomers[0])));
    balancer.check(&fixture.unplaced(lb_unplaced::LB_UNPLACED_TABLE_FULL));
    let elsewhere =
        (0..).map(|number| client(number, true)).find(|&client| balancer.bucket(client) != bucket).unwrap();
    balancer.check(&full(from_client("a start elsewhere", start(elsewhere), New(elsewhere))));

    // The least recently seen of those that are not proven makes room.
    balancer.sessions.flush();
    established[..15].iter().for_each(|&client| balancer.establish(client));
    assert_eq!(balancer.outcome(&start(newcomers[0])).0, NEW);
    assert_eq!(balancer.outcome(&start(newcomers[1])).0, NEW);
    assert_eq!(balancer.backend_of(newcomers[0]), None);
    assert!(balancer.backend_of(newcomers[1]).is_some());
    assert_eq!(balancer.sessions.established(), 15);
}

#[test]
fn root_embryonic_sessions_make_room_by_their_age() {
    let balancer = Balancer::new(&Settings { start_rate: UNLIMITED, ..settings() }, 4);
    let bucket = balancer.bucket(client(0, false));
    let of_bucket: Vec<IpAddr> = (0..)
        .map(|number| client(number, false))
        .filter(|&client| balancer.bucket(client) == bucket)
        .take(17)
        .collect();
    let (newcomer, known) = of_bucket.split_last().unwrap();
    for &client in known {
        balancer.outcome(&start(client));
    }
    balancer.age_sessions(5);
    for &client in &known[1..] {
        balancer.outcome(&esp(client, 7));
    }
    assert_eq!(balancer.outcome(&start(*newcomer)).0, NEW);
    assert_eq!(balancer.backend_of(known[0]), None, "the one that was silent goes");
    assert!(known[1..].iter().all(|&client| balancer.backend_of(client).is_some()));
}

#[test]
fn root_starts_over_the_rate_of_their_source_go_by_hash() {
    let unplaced = lb_unplaced::LB_UNPLACED_SOURCE_RATE;
    // 20 a second in all leave one a second to a source.
    let balancer = || Balancer::new(&Settings { start_rate: 20, ..settings() }, 4);
    let (one, neighbour): (IpAddr, IpAddr) =
        ("2001:db8:1::1".parse().unwrap(), "2001:db8:1::2".parse().unwrap());
    let fixture = from_client("a start of the same /64", start(neighbour), Hash(neighbour)).with_start(one);
    balancer().check(&fixture.unplaced(unplaced));
    let other: IpAddr = "2001:db8:2::1".parse().unwrap();
    balancer().check(&from_client("a start of another /64", start(other), New(other)).with_start(one));
    let (one, neighbour) = (client(1, false), client(2, false));
    balancer()
        .check(&from_client("a start of another address", start(neighbour), New(neighbour)).with_start(one));

    let balancer = balancer();
    for number in 0..2 {
        let client = client(number, number == 1);
        assert_eq!(balancer.outcome(&start(client)).0, NEW);
        balancer.sessions.remove(client);
        let hashed = Some(balancer.hashed(client));
        for frame in [start(client), echo_request(client), esp(client, 7), start(client)] {
            assert_eq!(balancer.outcome(&frame), (STATELESS, hashed));
        }
    }
    thread::sleep(Duration::from_millis(1100));
    for number in 0..2 {
        assert_eq!(balancer.outcome(&start(client(number, number == 1))).0, NEW);
    }
}

#[test]
fn root_starts_over_the_total_rate_go_by_hash() {
    let unplaced = lb_unplaced::LB_UNPLACED_TOTAL_RATE;
    families(|client, other| {
        let balancer = Balancer::new(&Settings { start_rate: 1, ..settings() }, 4);
        let fixture =
            from_client("a second start in a second", start(client), Hash(client)).with_start(other);
        balancer.check(&fixture.unplaced(unplaced));
    });
    let balancer = Balancer::new(&Settings { start_rate: 50, ..settings() }, 4);
    let placed = (0..100).filter(|&number| balancer.outcome(&start(client(number, false))).0 == NEW).count();
    // A second's worth at once, and what comes back while the test runs.
    assert!((50..100).contains(&placed), "{placed} starts were placed");
    thread::sleep(Duration::from_millis(300));
    assert_eq!(balancer.outcome(&start(client(200, false))).0, NEW);
}

#[test]
fn root_established_sessions_end_by_silence() {
    let settings = Settings { idle_timeout: Duration::from_secs(1), max_sessions: 1, ..settings() };
    let balancer = Balancer::new(&settings, 4);
    let (one, other) = (client(1, false), client(2, true));
    balancer.establish(one);
    assert_eq!(
        balancer.outcome(&start(other)),
        (STATELESS, Some(balancer.hashed(other))),
        "the table is full"
    );
    // Idle seconds are whole ones, so that after 2.2 s more than one has passed for sure.
    thread::sleep(Duration::from_millis(2200));
    assert_eq!(balancer.backend_of(one), None);
    assert_eq!(balancer.outcome(&esp(one, 7)), (STATELESS, Some(balancer.hashed(one))));
    assert_eq!(balancer.outcome(&keepalive(one)).0, lb_verdict::LB_KEEPALIVE_DROPPED);

    // Each start that finds the table full looks through one bucket for sessions that have expired.
    let buckets = balancer.datapath.maps.config().unwrap().session_config.buckets;
    let tries = (0..buckets).position(|_| balancer.outcome(&start(other)).0 == NEW);
    assert!(tries.is_some(), "the session that ended keeps the table full");
    assert_eq!(balancer.sessions.established(), 0);
}

#[test]
fn root_a_client_comes_back_after_its_session_ended() {
    let settings = Settings { idle_timeout: Duration::from_secs(20), ..settings() };
    let balancer = Balancer::new(&settings, 4);
    families(|client, _| {
        balancer.sessions.flush();
        balancer.establish(client);
        balancer.age_sessions(22);
        assert_eq!(balancer.outcome(&esp(client, 7)), (STATELESS, Some(balancer.hashed(client))));
        balancer.establish(client);
        assert_eq!(balancer.sessions.of(client).count(), 1);
        assert_eq!(balancer.sessions.established(), 1, "the slot was taken over");
    });
}

#[test]
fn root_either_direction_keeps_a_session() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, _| {
        let used: [(Side, Vec<u8>); 3] = [
            (Side::Client, esp(client, 7)),
            (Side::Client, keepalive(client)),
            (Side::Backend, esp_back(client, 7)),
        ];
        for (side, frame) in used {
            balancer.sessions.flush();
            balancer.outcome(&start(client));
            for _ in 0..3 {
                balancer.age_sessions(28);
                balancer.send(side, &frame);
            }
            assert_eq!(balancer.outcome(&esp(client, 7)).0, SESSION);
            balancer.age_sessions(32);
            assert_eq!(
                balancer.outcome(&esp(client, 7)).0,
                STATELESS,
                "30 s of silence end an embryonic session"
            );
            assert_eq!(balancer.sessions.of(client).count(), 0);
        }
    });
}

#[test]
fn root_established_sessions_outlive_the_embryonic_timeout() {
    let balancer = Balancer::new(&settings(), 4);
    let client = client(1, false);
    balancer.establish(client);
    let backend = balancer.backend_of(client);
    balancer.age_sessions(60);
    assert_eq!(balancer.outcome(&esp(client, 7)), (SESSION, backend));
}

#[test]
fn root_a_session_that_is_removed_is_gone() {
    let balancer = Balancer::new(&settings(), 4);
    let (one, other) = (client(1, false), client(2, true));
    balancer.establish(one);
    balancer.establish(other);
    assert_eq!(balancer.sessions.remove(one), 1);
    assert_eq!(balancer.sessions.remove(one), 0);
    assert_eq!(balancer.outcome(&esp(one, 7)), (STATELESS, Some(balancer.hashed(one))));
    assert_eq!(balancer.outcome(&esp(other, 7)).0, SESSION);
    assert_eq!(balancer.sessions.established(), 1);
    assert_eq!(balancer.sessions.flush(), 1);
    assert_eq!(balancer.sessions.established(), 0);
}

#[test]
fn root_sessions_count_what_clients_send() {
    let balancer = Balancer::new(&settings(), 4);
    let client = client(1, false);
    let frames = [start(client), esp(client, 7), keepalive(client), echo_request(client)];
    for frame in &frames {
        balancer.send(Side::Client, frame);
        balancer.send(Side::Backend, &esp_back(client, 7));
    }
    let session = balancer.sessions.of(client).next().expect("a session");
    let bytes: usize = frames.iter().map(Vec::len).sum();
    assert_eq!((session.packets, session.bytes), (4, bytes as u64));
}

/// One session of two packets for each of these clients, and nobody else's.
#[track_caller]
fn assert_one_session_each(balancer: &Balancer, clients: &[IpAddr]) -> HashMap<IpAddr, u32> {
    assert!(balancer.unplaced().iter().all(|(_, count)| count.packets == 0), "{:?}", balancer.unplaced());
    let mut sessions: HashMap<IpAddr, Vec<_>> = HashMap::new();
    for session in balancer.sessions.iter() {
        sessions.entry(session.client).or_default().push((session.backend, session.packets));
    }
    assert_eq!(sessions.len(), clients.len());
    let one_of = |client: &IpAddr| match sessions[client][..] {
        [(backend, 2)] => (*client, backend),
        ref found => panic!("{client} has these sessions, with their packets: {found:?}"),
    };
    clients.iter().map(one_of).collect()
}

#[test]
fn root_two_cpus_agree_about_a_new_client() {
    let clients: Vec<IpAddr> = (0..5000).map(|number| client(number, number % 2 == 1)).collect();
    let settings = Settings { max_sessions: 40_000, start_rate: UNLIMITED, ..settings() };
    let balancer = Balancer::new(&settings, 4);
    let arrived = AtomicU32::new(0);
    let work = || {
        let sent = |(number, &client): (u32, &IpAddr)| {
            let frame = start(client);
            // Nobody sleeps here: waking up takes longer than the moment in which two CPUs can meet. Where there is but
            // one, the other thread has to have it.
            arrived.fetch_add(1, Ordering::AcqRel);
            for turn in 1u32.. {
                if arrived.load(Ordering::Acquire) >= 2 * (number + 1) {
                    break;
                }
                if turn % 1024 == 0 { thread::yield_now() } else { spin_loop() }
            }
            u32::from(balancer.send(Side::Client, &frame).packet[5]) - 1
        };
        (0..).zip(&clients).map(sent).collect::<Vec<u32>>()
    };
    let (one, other) = thread::scope(|scope| {
        let thread = scope.spawn(work);
        (work(), thread.join().expect("the other thread ends well"))
    });
    let backends = assert_one_session_each(&balancer, &clients);
    for ((client, one), other) in clients.iter().zip(one).zip(other) {
        assert_eq!((one, other), (backends[client], backends[client]), "{client}");
    }
}

#[test]
fn root_two_cpus_agree_about_a_crowd_of_new_clients() {
    const CLIENTS: u32 = 50_000;
    for v6 in [false, true] {
        let settings = Settings { max_sessions: 8 * CLIENTS, start_rate: UNLIMITED, ..settings() };
        let balancer = Balancer::new(&settings, 4);
        // The kernel goes through the clients by itself. Whoever is behind has less to do, so the two keep meeting.
        let work = || walk::starts(&balancer.datapath.client, v6, CLIENTS);
        thread::scope(|scope| {
            scope.spawn(work);
            work();
        });
        let clients: Vec<IpAddr> = (0..CLIENTS).map(|number| client(number, v6)).collect();
        assert_one_session_each(&balancer, &clients);
    }
}
