//! `--rate`: a second's worth of requests at once, then as many as the rate allows, for each source by itself.

use std::net::{IpAddr, Ipv4Addr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lb::echo::skeleton::types::{echo_limits, echo_verdict};

use crate::common::packet::{Ping, poked};
use crate::fixture::{
    Expected, Fixture, OWN4, OWN6, PEER4, PEER6, Responder, TTL, XDP_DROP, XDP_TX, families, stranger, view,
};

/// So long that nothing comes back during a test.
const HOUR: Duration = Duration::from_secs(3600);

/// How far the clock of the program may be behind: a tick of the slowest kernels.
const TICK: Duration = Duration::from_millis(10);

fn limited(interval: Duration) -> Responder {
    Responder::with(false, interval, &view())
}

/// How many of `requests` requests in a row are answered. The others are to be dropped and counted.
#[track_caller]
fn burst(responder: &Responder, request: &Ping, requests: u64) -> u64 {
    let frame = request.frame();
    let verdicts = |responder: &Responder| {
        let counts = responder.counts();
        [echo_verdict::ECHO_REPLY, echo_verdict::ECHO_RATE_LIMITED].map(|verdict| counts[verdict.0 as usize])
    };
    let before = verdicts(responder);
    let answered = (0..requests).filter(|_| match responder.run(&frame).action {
        XDP_TX => true,
        XDP_DROP => false,
        action => panic!("action {action} of a request that is answered or dropped"),
    });
    let answered = answered.count() as u64;
    let after = verdicts(responder);
    let bytes = frame.len() as u64;
    for (index, packets) in [(0, answered), (1, requests - answered)] {
        let count = after[index] - before[index];
        assert_eq!((count.packets, count.bytes), (packets, packets * bytes));
    }
    answered
}

#[test]
fn root_what_is_in_excess_is_dropped_as_it_came() {
    for interval in [HOUR, Duration::MAX] {
        let responder = limited(interval);
        families(|request| {
            responder.answers("the first one", &request);
            for _ in 0..3 {
                responder.check(&Fixture {
                    description: format!("one too many, at {interval:?}"),
                    frame: request.frame(),
                    expected: Expected::RateLimited,
                });
            }
        });
    }
}

#[test]
fn root_a_seconds_worth_may_come_at_once() {
    for (interval, worth) in
        [(2000, 1), (1000, 1), (501, 1), (500, 2), (300, 3), (100, 10), (20, 50), (10, 100)]
    {
        let interval = Duration::from_millis(interval);
        let responder = limited(interval);
        families(|request| {
            let start = Instant::now();
            let answered = burst(&responder, &request, worth + 50);
            // What comes back while the requests are sent is theirs too.
            let back = ((start.elapsed() + TICK).as_nanos() / interval.as_nanos()) as u64 + 1;
            assert!((worth..=worth + back).contains(&answered), "{answered} of {worth} at {interval:?}");
        });
    }
}

#[test]
fn root_no_limit_is_no_limit() {
    let responder = limited(Duration::ZERO);
    families(|request| assert_eq!(burst(&responder, &request, 5000), 5000));
}

#[test]
fn root_tokens_come_back_at_the_rate_and_no_more_than_a_seconds_worth() {
    let interval = Duration::from_millis(200);
    let responder = limited(interval);
    let request = Ping::request(PEER4.into(), OWN4.into());
    let start = Instant::now();
    let mut answered = burst(&responder, &request, 100);
    assert!(answered >= 5, "{answered}");
    for pause in [250, 450] {
        let before = Instant::now();
        sleep(Duration::from_millis(pause));
        let least = (before.elapsed() - TICK).as_millis() / interval.as_millis();
        let came = burst(&responder, &request, 100);
        assert!(u128::from(came) >= least, "{came} of {least} came back in {pause} ms");
        answered += came;
    }
    let most = 5 + (start.elapsed() + TICK).as_millis() / interval.as_millis() + 1;
    assert!(u128::from(answered) <= most, "{answered} were answered in {:?}", start.elapsed());

    sleep(Duration::from_millis(1500));
    let start = Instant::now();
    let after_a_rest = burst(&responder, &request, 100);
    let back = (start.elapsed() + TICK).as_millis() / interval.as_millis() + 1;
    assert!((5..=5 + back).contains(&u128::from(after_a_rest)), "{after_a_rest} after a rest");
}

#[test]
fn root_each_source_has_its_own_rate() {
    let responder = limited(HOUR);
    let sources: [(IpAddr, IpAddr); 5] = [
        (PEER4.into(), OWN4.into()),
        (Ipv4Addr::new(10, 0, 0, 3).into(), OWN4.into()),
        (PEER6.into(), OWN6.into()),
        // Differs in the first half alone, and in the last bit.
        ("fd00:0:0:1::2".parse().expect("an address"), OWN6.into()),
        ("fd00::3".parse().expect("an address"), OWN6.into()),
    ];
    for (source, destination) in sources {
        let request = Ping::request(source, destination);
        assert_eq!(burst(&responder, &request, 3), 1, "{source}");
        // Whatever else it says.
        let another = Ping { tags: vec![0x8100], from: [2, 0, 0, 0, 0, 9], identifier: 9, ..request };
        assert_eq!(burst(&responder, &another, 3), 0, "{source}");
    }
}

#[test]
fn root_only_what_would_be_answered_takes_a_token() {
    let responder = limited(HOUR);
    families(|request| {
        let wrong = poked(request.frame(), request.icmp_at() + 2, &[0xde, 0xad]);
        responder.passes("a wrong checksum", wrong, echo_verdict::ECHO_BAD_CHECKSUM);
        let elsewhere = Ping { destination: stranger(request.source), ..request.clone() };
        responder.passes("to another", elsewhere.frame(), echo_verdict::ECHO_OTHER_ADDRESS);
        let reply = Ping { kind: request.reply(TTL).kind, ..request.clone() };
        responder.passes("a reply", reply.frame(), echo_verdict::ECHO_NOT_ECHO);
        responder.answers("the first request", &request);
        // And who may ask no more is still looked at like all others.
        responder.passes("a reply after that", reply.frame(), echo_verdict::ECHO_NOT_ECHO);
    });
}

#[test]
fn root_more_sources_than_are_known_at_a_time_are_all_answered() {
    let responder = limited(HOUR);
    let sources = 3 * echo_limits::ECHO_SOURCES.0 / 2;
    for number in 0..sources {
        let source = Ipv4Addr::from_bits(0x0b00_0000 + number);
        let request = Ping { payload: Vec::new(), ..Ping::request(source.into(), OWN4.into()) };
        assert_eq!(responder.run(&request.frame()).action, XDP_TX, "{source}");
    }
}
