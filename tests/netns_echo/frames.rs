//! Frames that no ping sends: VLAN tags, groups, addresses of others; what is answered, and byte by byte how.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::packet::{GATEWAY_MAC, Ping};
use crate::common::tap::Tap;
use crate::lab::{Ended, Family, Lab, Mode, PATIENCE, Pings, SILENCE, eventually};

/// Ethertypes of VLAN tags: 802.1Q and 802.1ad.
const CUSTOMER: u16 = 0x8100;
const SERVICE: u16 = 0x88a8;

/// The TTL of replies.
const TTL: u8 = 64;

/// Sends a request, and waits for its reply.
#[track_caller]
fn assert_answered(tap: &Tap, request: &Ping) {
    let reply = request.reply(TTL).frame();
    tap.send(&request.frame());
    tap.wait_for(&format!("the reply to {request:?}"), |frame| frame == reply);
}

/// Sends requests, and waits a while in which no answer to any of them may come, by whomever.
#[track_caller]
fn assert_silent(tap: &Tap, requests: &[Ping]) {
    tap.frames();
    for request in requests {
        tap.send(&request.frame());
    }
    thread::sleep(SILENCE);
    for frame in tap.frames() {
        // Every answer brings it back.
        let is_answer = requests.iter().any(|request| contains(&frame, &request.payload));
        assert!(!is_answer, "there is an answer: {frame:02x?}");
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// A request from the second host of the network.
fn to(destination: IpAddr) -> Ping {
    let family = if destination.is_ipv6() { Family::V6 } else { Family::V4 };
    Ping::request(family.host(2), destination)
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("a test's address is one")
}

// VLAN tags

fn tags_come_back(mode: Mode) {
    let lab = Lab::new();
    lab.attach(mode, "");
    let tap = Tap::new(&lab.far, "far0");
    let lists = [&[][..], &[CUSTOMER], &[SERVICE], &[SERVICE, CUSTOMER], &[CUSTOMER, CUSTOMER]];
    for family in Family::BOTH {
        for tags in lists {
            assert_answered(&tap, &Ping { tags: tags.to_vec(), ..to(family.host(1)) });
        }
    }
    assert_eq!(lab.replies(), 2 * lists.len() as u64);

    // The stack has no interface for tagged frames, so nobody answers what the responder does not.
    let tagged = |request: Ping, tags: &[u16]| Ping { tags: tags.to_vec(), ..request };
    let others = Family::BOTH.map(|family| tagged(to(family.host(9)), &[CUSTOMER]));
    let too_many = Family::BOTH.map(|family| tagged(to(family.host(1)), &[CUSTOMER; 3]));
    assert_silent(&tap, &[others, too_many].concat());
    assert_eq!(lab.replies(), 2 * lists.len() as u64);
    assert_eq!(lab.verdict("other_address"), 2);
}

#[test]
fn root_tagged_requests_are_answered_with_their_tags_in_drv_mode() {
    tags_come_back(Mode::Drv);
}

#[test]
fn root_tagged_requests_are_answered_with_their_tags_in_skb_mode() {
    tags_come_back(Mode::Skb);
}

// Whose address

fn any_answers_for_others(mode: Mode) {
    let lab = Lab::new();
    lab.attach(mode, "");
    let mut others = Vec::new();
    for family in Family::BOTH {
        let (neighbour, elsewhere) = (family.host(99), family.elsewhere());
        lab.neighbour(neighbour, GATEWAY_MAC);
        lab.far.ip(&["route", "add", &elsewhere.to_string(), "via", &family.host(1).to_string()]);
        others.extend([neighbour, elsewhere]);
    }
    for other in &others {
        lab.ping_in_vain(*other, 5, "");
    }
    assert_eq!((lab.replies(), lab.verdict("other_address")), (0, 20));

    lab.attach(mode, "--replace --any");
    for other in &others {
        lab.ping(*other, 5, "").all(5);
    }
    assert_eq!(lab.replies(), 20);

    // And no more when it is left out again.
    lab.attach(mode, "--replace");
    lab.ping_in_vain(others[0], 3, "");
    assert_eq!(lab.replies(), 20);
}

#[test]
fn root_other_addresses_are_answered_for_with_any_alone_in_drv_mode() {
    any_answers_for_others(Mode::Drv);
}

#[test]
fn root_other_addresses_are_answered_for_with_any_alone_in_skb_mode() {
    any_answers_for_others(Mode::Skb);
}

#[test]
fn root_addresses_that_are_given_are_answered_for() {
    let lab = Lab::new();
    let given = [Family::V4.host(77), Family::V6.host(77), Family::V4.host(78)].map(|host| host.to_string());
    lab.attach(Mode::Drv, &given.clone().map(|host| format!("--address {host}")).join(" "));
    for family in Family::BOTH {
        for number in [77, 79] {
            lab.neighbour(family.host(number), GATEWAY_MAC);
        }
        lab.ping(family.host(1), 3, "").all(3);
        lab.ping(family.host(77), 3, "").all(3);
        lab.ping_in_vain(family.host(79), 3, "");
    }
    assert_eq!((lab.replies(), lab.verdict("other_address")), (12, 6));
    assert_eq!(lab.status()["addresses"], serde_json::json!(given));
}

fn groups_are_never_answered_for(mode: Mode) {
    let lab = Lab::new();
    // The stack would answer for the groups that it is in.
    lab.near.sysctl("net/ipv6/icmp/echo_ignore_multicast", "1");
    lab.attach(mode, "");
    let tap = Tap::new(&lab.far, "far0");
    let groups = [
        ("224.0.0.1", [0x01, 0, 0x5e, 0, 0, 1]),
        ("239.1.2.3", [0x01, 0, 0x5e, 1, 2, 3]),
        ("255.255.255.255", [0xff; 6]),
        ("10.0.0.255", [0xff; 6]),
        ("ff02::1", [0x33, 0x33, 0, 0, 0, 1]),
        ("ff0e::101", [0x33, 0x33, 0, 0, 1, 1]),
    ];
    let mut requests = Vec::new();
    for (group, mac) in groups {
        requests.push(to(address(group)));
        requests.push(Ping { to: mac, ..to(address(group)) });
        requests.push(Ping { tags: vec![CUSTOMER], ..to(address(group)) });
    }
    for any in ["", "--any"] {
        lab.attach(mode, &format!("--replace {any}"));
        assert_silent(&tap, &requests);
        for ping in ["-b 10.0.0.255", "-I far0 224.0.0.1", "-I far0 -b 255.255.255.255"] {
            let ping = format!("-n -q -c 2 -i 0.01 -W {} {ping}", SILENCE.as_secs_f64());
            let printed = Ended::of(lab.far.command("ping").args(ping.split(' '))).stdout;
            Pings::of(&printed).none(2);
        }
    }
    assert_eq!(lab.replies(), 0);
}

#[test]
fn root_groups_and_broadcasts_are_never_answered_for_in_drv_mode() {
    groups_are_never_answered_for(Mode::Drv);
}

#[test]
fn root_groups_and_broadcasts_are_never_answered_for_in_skb_mode() {
    groups_are_never_answered_for(Mode::Skb);
}

#[test]
fn root_sources_that_are_no_other_host_are_not_answered() {
    let lab = Lab::new();
    lab.attach(Mode::Drv, "--any");
    let tap = Tap::new(&lab.far, "far0");
    let sources =
        ["10.0.0.255", "224.0.0.1", "255.255.255.255", "0.0.0.0", "10.0.0.1", "ff02::2", "::", "fd00::1"];
    for source in sources.map(address) {
        let family = if source.is_ipv6() { Family::V6 } else { Family::V4 };
        tap.send(&Ping { source, ..to(family.host(1)) }.frame());
    }
    // What the stack says to them is its own.
    let counted = || (lab.replies(), lab.verdict("bad_source"));
    assert!(eventually(PATIENCE, || counted() == (0, sources.len() as u64)), "{:?}", counted());
}

#[test]
fn root_frames_for_another_mac_are_not_answered() {
    let lab = Lab::new();
    lab.attach(Mode::Drv, "--any");
    let tap = Tap::new(&lab.far, "far0");
    let requests = Family::BOTH.map(|family| Ping { to: [0x02, 0, 0, 0, 0, 0xaa], ..to(family.host(1)) });
    assert_silent(&tap, &requests);
    assert_eq!((lab.replies(), lab.verdict("other_mac")), (0, 2));
}

// How often

#[test]
fn root_a_source_that_asks_too_often_is_dropped_and_counted_and_no_other_is() {
    const REQUESTS: u64 = 100;
    for family in Family::BOTH {
        let lab = Lab::new();
        let prefix = if family == Family::V4 { 24 } else { 64 };
        for number in [3, 4] {
            let other = format!("{}/{prefix}", family.host(number));
            let nodad: &[&str] = if family == Family::V6 { &["nodad"] } else { &[] };
            lab.far.ip(&[&["address", "add", &other, "dev", "far0"], nodad].concat());
        }
        let start = Instant::now();
        lab.attach(Mode::Drv, "--rate 10/s");
        let options = format!("-c {REQUESTS} -i 0.002 -W {} -I {}", SILENCE.as_secs_f64(), family.host(2));
        let ended = Ended::of(&mut lab.ping_command(family.host(1), &options));
        let pings = Pings::of(&ended.stdout);
        // A second's worth may come at once.
        let most = 10 * (start.elapsed() + Duration::from_secs(2)).as_secs();
        assert!((10..=most).contains(&pings.received), "{pings:?}, and {most} at most");
        assert_eq!(pings.sent, REQUESTS);
        let counted = [lab.replies(), lab.verdict("rate_limited")];
        assert_eq!(counted, [pings.received, REQUESTS - pings.received]);

        // As many as another source may send at once.
        for number in [3, 4] {
            lab.ping(family.host(1), 10, &format!("-I {}", family.host(number))).all(10);
        }
        assert_eq!(lab.verdict("rate_limited"), counted[1]);
        assert_eq!(lab.stats()["actions"]["xdp_drop"]["packets"], counted[1]);
        assert_eq!(lab.status()["rate_per_s"], 10.0);

        // Without the limit nothing is dropped.
        lab.attach(Mode::Drv, "--replace");
        lab.ping(family.host(1), REQUESTS, "").all(REQUESTS);
        assert_eq!(lab.verdict("rate_limited"), counted[1]);
    }
}
