//! Who is answered, and for whom: MACs, destinations and sources.

use std::net::IpAddr;
use std::time::Duration;

use lb::echo::datapath::View;
use lb::echo::skeleton::types::echo_verdict;

use crate::common::packet::{CLIENT_MAC, Ping};
use crate::fixture::{BROADCAST, OWN_MAC, OWN4, OWN6, PEER4, PEER6, Responder, families, view};
use crate::reply::TAGS;

/// What no host on a wire has as its address: nobody, this network, loopback, groups, all; and in IPv6 what stands for an
/// IPv4 address.
const NO_HOSTS: [&str; 26] = [
    "0.0.0.0",
    "0.0.0.1",
    "0.255.255.255",
    "127.0.0.0",
    "127.0.0.1",
    "127.255.255.255",
    "224.0.0.0",
    "224.0.0.1",
    "232.1.2.3",
    "239.255.255.255",
    "255.255.255.255",
    "::",
    "::1",
    "ff00::",
    "ff01::1",
    "ff02::1",
    "ff02::1:ff00:1",
    "ff05::1:3",
    "ff0e::101",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "::ffff:0.0.0.0",
    "::ffff:10.0.0.1",
    "::ffff:10.0.0.2",
    "::ffff:10.0.0.255",
    "::ffff:127.0.0.1",
    "::ffff:255.255.255.255",
];

/// Addresses of hosts, many of them next to some of no host.
const HOSTS: [&str; 24] = [
    "1.0.0.0",
    "10.0.0.0",
    "10.0.0.254",
    "10.0.1.255",
    "126.255.255.255",
    "128.0.0.0",
    "169.254.1.1",
    "192.0.2.255",
    "223.255.255.255",
    "240.0.0.0",
    "255.255.255.0",
    "255.255.255.254",
    "::2",
    "::10.0.0.1",
    "::fffe:10.0.0.1",
    "::1:0:10.0.0.1",
    "0:0:0:1:0:ffff:a00:1",
    "64:ff9b::a00:1",
    "100::",
    "2001:db8::ffff",
    "fd00::",
    "fe80::1",
    "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "ff:ff02::1",
];

fn parsed(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|text| text.parse().expect("an address")).collect()
}

/// One of ours and one of a peer, of the family of `address`.
fn ours_and_peer(address: IpAddr) -> (IpAddr, IpAddr) {
    if address.is_ipv6() { (OWN6.into(), PEER6.into()) } else { (OWN4.into(), PEER4.into()) }
}

/// The request as it comes without tags, with one, and with two.
fn in_all_tags(request: &Ping) -> impl Iterator<Item = Ping> {
    TAGS.iter().map(|tags| Ping { tags: tags.to_vec(), ..request.clone() })
}

#[test]
fn root_only_frames_to_the_own_mac_are_answered() {
    for any in [false, true] {
        let responder = Responder::new(any);
        families(|request| {
            let bits = (0..48).map(|bit| {
                let mut mac = OWN_MAC;
                mac[bit / 8] ^= 1 << (bit % 8);
                mac
            });
            let others = [
                [0xff; 6],
                [0; 6],
                [0x01, 0, 0x5e, 0, 0, 1],
                [0x33, 0x33, 0, 0, 0, 1],
                [0x33, 0x33, 0xff, 0, 0, 1],
                CLIENT_MAC,
            ];
            for to in bits.chain(others) {
                for request in in_all_tags(&Ping { to, ..request.clone() }) {
                    let description = format!("to {to:02x?}");
                    responder.passes(description, request.frame(), echo_verdict::ECHO_OTHER_MAC);
                }
            }
        });
    }
}

#[test]
fn root_only_own_addresses_are_answered_for_without_any() {
    let responder = Responder::new(false);
    for address in parsed(&HOSTS).into_iter().chain([PEER4.into(), PEER6.into()]) {
        let (_, peer) = ours_and_peer(address);
        for request in in_all_tags(&Ping::request(peer, address)) {
            let description = format!("to {address} behind tags {:04x?}", request.tags);
            responder.passes(description, request.frame(), echo_verdict::ECHO_OTHER_ADDRESS);
        }
    }
    families(|request| {
        in_all_tags(&request).for_each(|request| responder.answers("to an address of ours", &request));
    });
}

#[test]
fn root_all_hosts_are_answered_for_with_any() {
    let responder = Responder::new(true);
    for address in parsed(&HOSTS) {
        let (_, peer) = ours_and_peer(address);
        for request in in_all_tags(&Ping::request(peer, address)) {
            responder.answers(format!("to {address} behind tags {:04x?}", request.tags), &request);
        }
    }
    families(|request| {
        in_all_tags(&request).for_each(|request| responder.answers("to an address of ours", &request));
    });
}

#[test]
fn root_what_is_no_host_is_never_answered_for() {
    let none = parsed(&NO_HOSTS);
    // Not even where somebody has given it as an address of ours. What stands for an IPv4 address is that one in a view.
    let addresses = none.iter().copied().filter(|address| address.to_canonical() == *address).collect();
    let wrong = View { addresses, ..view() };
    for (any, view) in [(false, &view()), (true, &view()), (false, &wrong), (true, &wrong)] {
        let responder = Responder::with(any, Duration::ZERO, view);
        for &address in none.iter().chain(&[BROADCAST.into()]) {
            let (_, peer) = ours_and_peer(address);
            for request in in_all_tags(&Ping::request(peer, address)) {
                let description = format!("to {address} behind tags {:04x?}", request.tags);
                responder.passes(description, request.frame(), echo_verdict::ECHO_OTHER_ADDRESS);
            }
        }
    }
}

#[test]
fn root_what_is_no_host_is_never_answered() {
    for any in [false, true] {
        let responder = Responder::new(any);
        for source in parsed(&NO_HOSTS).into_iter().chain([OWN4.into(), OWN6.into(), BROADCAST.into()]) {
            let (ours, _) = ours_and_peer(source);
            for request in in_all_tags(&Ping::request(source, ours)) {
                let description = format!("from {source} behind tags {:04x?}", request.tags);
                responder.passes(description, request.frame(), echo_verdict::ECHO_BAD_SOURCE);
            }
        }
    }
}

#[test]
fn root_all_hosts_are_answered() {
    for any in [false, true] {
        let responder = Responder::new(any);
        for source in parsed(&HOSTS) {
            let (ours, _) = ours_and_peer(source);
            for request in in_all_tags(&Ping::request(source, ours)) {
                responder.answers(format!("from {source} behind tags {:04x?}", request.tags), &request);
            }
        }
    }
}

#[test]
fn root_nobody_is_answered_who_asks_itself() {
    let responder = Responder::new(true);
    for address in parsed(&HOSTS) {
        let frame = Ping::request(address, address).frame();
        responder.passes(format!("{address} to itself"), frame, echo_verdict::ECHO_BAD_SOURCE);
    }
    // Another address of ours is no other host's either.
    let second: IpAddr = "10.0.0.9".parse().expect("an address");
    responder.set(&View { addresses: vec![OWN4.into(), second], ..view() });
    for (source, destination) in [(second, OWN4.into()), (OWN4.into(), second), (second, PEER4.into())] {
        let frame = Ping::request(source, destination).frame();
        responder.passes(format!("{source} to {destination}"), frame, echo_verdict::ECHO_BAD_SOURCE);
    }
}

/// The reply would go to a group, to nobody, or to this host itself.
#[test]
fn root_no_mac_that_is_no_other_hosts_is_answered() {
    for any in [false, true] {
        let responder = Responder::new(any);
        families(|request| {
            for from in [
                [0; 6],
                [0xff; 6],
                [0x01, 0, 0, 0, 0, 0],
                [0x01, 0, 0x5e, 0, 0, 1],
                [0x33, 0x33, 0, 0, 0, 1],
                [0x03, 0, 0, 0, 0, 0xc1],
                OWN_MAC,
            ] {
                for request in in_all_tags(&Ping { from, ..request.clone() }) {
                    let description = format!("from {from:02x?}");
                    responder.passes(description, request.frame(), echo_verdict::ECHO_BAD_SOURCE);
                }
            }
        });
    }
}

#[test]
fn root_every_mac_of_a_host_is_answered() {
    let responder = Responder::new(false);
    families(|request| {
        for from in [
            [0, 0, 0, 0, 0, 1],
            [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff],
            [0x02, 0, 0, 0, 0, 0xff],
            [0, 0x80, 0, 0, 0, 0],
        ] {
            responder.answers(format!("from {from:02x?}"), &Ping { from, ..request.clone() });
        }
    });
}
