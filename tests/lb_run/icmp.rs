//! Ping, ICMP errors about packets of backends, and the rest of ICMP.

use std::net::IpAddr;

use lb::lb::datapath::{Other, Settings};

use crate::common::packet::{
    Ike, client, echo_reply, echo_request, esp_back, esp_in_udp, icmp, icmp_error, ike_back, l4_at, padded,
    poked, vip, with_extensions, with_options,
};
use crate::families;
use crate::fixture::Expected::{Hash, New, Passed, Session};
use crate::fixture::{Balancer, INITIATOR, MALFORMED, OTHER, RESPONDER, from_client, settings};

#[test]
fn root_echo_requests_are_starts_that_prove_nothing() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, other| {
        let ping = echo_request(client);
        balancer.check(&from_client("a ping", ping.clone(), New(client)));
        balancer
            .check(&from_client("another client's ping", ping.clone(), New(client)).with_established(other));
        let again = from_client("a second ping", ping.clone(), Session(client));
        balancer.check(&again.after(crate::fixture::Side::Client, ping.clone()));
        balancer.check(&from_client("after a start", ping.clone(), Session(client)).with_start(client));
        balancer.check(&from_client("after an answer", ping.clone(), Session(client)).with_answer(client));
        balancer.check(&from_client("of a tunnel", ping, Session(client)).with_established(client));
        let least = icmp(client, vip(client), if client.is_ipv6() { 128 } else { 8 }, &[0; 4]);
        balancer.check(&from_client("a ping without data", least, New(client)));
    });
}

#[test]
fn root_echo_replies_go_by_session_or_else_by_hash() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, other| {
        let reply = echo_reply(client);
        balancer.check(&from_client("a reply", reply.clone(), Hash(client)).with_established(other));
        balancer.check(&from_client("a reply", reply.clone(), Session(client)).with_start(client));
        balancer.check(&from_client("a reply", reply, Session(client)).with_established(client));
    });
}

/// Types of ICMP errors, of the family of an address.
fn errors(client: IpAddr) -> &'static [u8] {
    if client.is_ipv6() { &[1, 2, 3, 4] } else { &[3, 11, 12] }
}

#[test]
fn root_errors_follow_the_client_that_they_quote() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, router| {
        // The two must not hash alike, or the test could not tell whom the packet follows.
        assert_ne!(balancer.hashed(client), balancer.hashed(router));
        let esp = esp_back(client, 9);
        let ip_header = l4_at(&esp) - 14;
        for &kind in errors(client) {
            for (quote, bytes) in [
                (&esp, esp.len() - 14),
                (&esp, ip_header + 8),
                (&esp, ip_header),
                (&ike_back(client, Ike::init_response(INITIATOR, RESPONDER)), ip_header + 8),
            ] {
                let frame = icmp_error(router, kind, quote, bytes);
                let description = format!("type {kind} with {bytes} bytes of quote");
                balancer.check(&from_client(&description, frame.clone(), Hash(client)));
                balancer.check(&from_client(&description, frame.clone(), Session(client)).with_start(client));
                let of_both = from_client(&description, frame.clone(), Session(client));
                balancer.check(&of_both.with_established(router).with_established(client));
                let of_router = from_client(&description, frame, Hash(client));
                balancer.check(&of_router.with_established(router));
            }
            let own = icmp_error(client, kind, &esp, ip_header + 8);
            balancer
                .check(&from_client("from the client itself", own, Session(client)).with_established(client));
        }
    });
}

#[test]
fn root_errors_quote_headers_with_options_and_extensions() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, router| {
        let esp = esp_back(client, 9);
        let quoted = if client.is_ipv6() { with_extensions(&esp, &[0, 43]) } else { with_options(&esp, 15) };
        for bytes in [l4_at(&esp) - 14, quoted.len() - 14] {
            let frame = icmp_error(router, errors(client)[0], &quoted, bytes);
            balancer.check(&from_client("a quote", frame, Session(client)).with_established(client));
        }
    });
}

#[test]
fn root_errors_that_name_no_client_are_malformed() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, router| {
        let esp = esp_back(client, 9);
        let ip_header = l4_at(&esp) - 14;
        for &kind in errors(client) {
            for bytes in [0, 1, ip_header - 1] {
                let frame = icmp_error(router, kind, &esp, bytes);
                let description = format!("type {kind} with {bytes} bytes of quote");
                balancer.check(&from_client(&description, padded(frame.clone()), MALFORMED));
                // More of the quote in the frame than IP says there is.
                let hidden = [frame, vec![0x45; 40]].concat();
                balancer.check(&from_client(&description, hidden, MALFORMED));
            }
            let other_version = if client.is_ipv6() { 0x45 } else { 0x60 };
            for version in [0x00, other_version, 0x35] {
                let frame = icmp_error(router, kind, &poked(esp.clone(), 14, &[version]), ip_header + 8);
                balancer.check(&from_client("a quote of no such version", frame, MALFORMED));
            }
        }
        if client.is_ipv4() {
            let frame = icmp_error(router, 3, &poked(esp, 14, &[0x44]), 28);
            balancer.check(&from_client("a quoted header of 16 bytes", frame, MALFORMED));
        }
    });
}

#[test]
fn root_other_types_are_none_of_a_vpn() {
    families(|client, _| {
        // Redirect, router advertisement and solicitation of IPv4 are among them; ICMPv6 has ND for these.
        let others: &[u8] = if client.is_ipv6() {
            &[0, 5, 100, 127, 138, 139, 140, 141, 142, 144, 151, 160, 255]
        } else {
            &[1, 2, 4, 5, 6, 7, 9, 10, 13, 14, 15, 16, 17, 18, 30, 42, 43, 128, 129, 255]
        };
        for (other, expected) in [(Other::Drop, OTHER), (Other::Pass, Passed)] {
            let balancer = Balancer::new(&Settings { other, ..settings() }, 4);
            for &kind in others {
                let frame = icmp(client, vip(client), kind, &[0x45; 64]);
                let description = format!("type {kind}");
                balancer.check(&from_client(&description, frame.clone(), expected));
                balancer.check(&from_client(&description, frame, expected).with_established(client));
            }
        }
    });
}

#[test]
fn root_icmp_of_the_other_family_is_none() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, _| {
        let (protocol, ping) = if client.is_ipv6() { (1, 8) } else { (58, 128) };
        let frame = crate::common::packet::raw(client, vip(client), protocol.into(), &[ping; 16]);
        balancer.check(&from_client("ICMP of the other family", frame, OTHER));
    });
}

#[test]
fn root_icmp_shorter_than_its_header_is_malformed() {
    let balancer = Balancer::new(&settings(), 4);
    let protocol = |client: IpAddr| if client.is_ipv6() { 58 } else { 1 };
    for client in [client(1, false), client(1, true)] {
        for length in [0, 1, 4, 7] {
            let bytes = vec![if client.is_ipv6() { 128 } else { 8 }; length];
            let frame = crate::common::packet::raw(client, vip(client), protocol(client).into(), &bytes);
            let description = format!("{length} bytes of ICMP");
            balancer.check(&from_client(&description, frame.clone(), MALFORMED));
            balancer.check(&from_client(&description, padded(frame), MALFORMED).with_established(client));
        }
        // An ESP in UDP that is no ICMP at all, for the frame's own sake.
        balancer.check(&from_client("no ICMP", esp_in_udp(client, 1, 7), Hash(client)));
    }
}
