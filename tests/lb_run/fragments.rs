//! Fragments: the first one shows what its packet is, the others follow it.

use std::net::IpAddr;

use etherparse::IpNumber;

use crate::common::packet::{
    Ike, ah, client, echo_request, esp, esp_back, esp_in_udp, fragments, icmp_error, ike, ike_nat, l4_at,
    padded, poked, raw, tcp, udp, vip, with_extensions,
};
use crate::families;
use crate::fixture::Expected::{Hash, New, Session};
use crate::fixture::{
    Balancer, INITIATOR, MALFORMED, OTHER, RESPONDER, Side, XDP_REDIRECT, from_client, settings,
};

/// IKE_AUTH of 1,500 bytes, as certificates make it.
fn long_auth(client: IpAddr) -> Vec<u8> {
    ike_nat(client, 4500, Ike { extra: 1500, ..Ike::auth(INITIATOR, RESPONDER) })
}

#[test]
fn root_first_fragments_are_what_they_begin_with() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, _| {
        let first = |frame: &[u8]| fragments(frame, 64, 1, &[])[0].clone();
        for (description, frame) in [
            ("IKE, shorter than its UDP length", long_auth(client)),
            ("ESP", esp(client, 7)),
            ("AH", raw(client, vip(client), IpNumber(51), &[1; 80])),
            ("ESP in UDP", esp_in_udp(client, 4500, 7)),
        ] {
            let frame = first(&frame);
            balancer.check(&from_client(description, frame.clone(), Hash(client)).remembers_fragment());
            let fixture = from_client(description, frame, Session(client));
            balancer.check(&fixture.with_established(client).remembers_fragment());
        }
        let start = first(&ike(client, Ike::init(INITIATOR)));
        balancer.check(&from_client("a start", start, New(client)).remembers_fragment());
        let ping = first(&padded(echo_request(client)));
        balancer.check(&from_client("a ping", ping, New(client)).remembers_fragment());
        let proof = first(&long_auth(client));
        let fixture = from_client("a proof", proof, Session(client)).with_answer(client);
        balancer.check(&fixture.remembers_fragment().establishes());
        let other = udp((client, 500), (vip(client), 53), &[0; 100]);
        balancer.check(&from_client("of another port", first(&other), OTHER));
        balancer.check(&from_client(
            "of TCP",
            fragments(&tcp(client, vip(client), 80), 16, 1, &[])[0].clone(),
            OTHER,
        ));
    });
}

#[test]
fn root_first_fragments_without_a_whole_header_are_malformed() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, _| {
        for (description, frame, bytes) in [
            ("UDP alone", long_auth(client), 8),
            ("half of an IKE header", long_auth(client), 24),
            ("an IKE header but its last bytes", ike(client, Ike::init(INITIATOR)), 32),
            ("8 bytes of AH", ah(client, 7), 8),
            ("an ICMP error with half of a quote", icmp_error(client, 3, &esp_back(client, 9), 60), 16),
        ] {
            balancer.check(&from_client(description, fragments(&frame, bytes, 1, &[])[0].clone(), MALFORMED));
        }
        let short = poked(long_auth(client), l4_at(&long_auth(client)) + 4, &[0, 7]);
        balancer.check(&from_client("UDP of 7 bytes", fragments(&short, 64, 1, &[])[0].clone(), MALFORMED));
    });
}

#[test]
fn root_later_fragments_without_their_first_go_by_session_or_else_by_hash() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, other| {
        let protocol = |number, name| (name, raw(client, vip(client), IpNumber(number), &[1; 64]));
        let icmp = if client.is_ipv6() { 58 } else { 1 };
        for (description, frame) in
            [protocol(17, "UDP"), protocol(50, "ESP"), protocol(51, "AH"), protocol(icmp, "ICMP")]
        {
            let [first, later] = fragments(&frame, 32, 1, &[]);
            balancer.check(&from_client(description, later.clone(), Hash(client)));
            balancer.check(&from_client(description, later.clone(), Session(client)).with_start(client));
            balancer
                .check(&from_client(description, later.clone(), Session(client)).with_established(client));
            // Its id is another's.
            let fixture = from_client("another client's first fragment", later.clone(), Hash(client));
            let of_other = fragments(&raw(other, vip(other), IpNumber(50), &[1; 64]), 32, 1, &[])[0].clone();
            balancer.check(&fixture.after(Side::Client, of_other));
            // A last fragment can be of a single byte.
            let [_, last] = fragments(&raw(client, vip(client), IpNumber(50), &[1; 33]), 32, 1, &[]);
            balancer.check(&from_client("a byte", last, Hash(client)));
            let fixture = from_client("a later fragment that came first", first, Hash(client));
            if description == "ESP" {
                balancer.check(&fixture.after(Side::Client, later).remembers_fragment());
            }
        }
        for number in [6, 132, if client.is_ipv6() { 1 } else { 58 }] {
            let frame = raw(client, vip(client), IpNumber(number), &[1; 64]);
            let later = fragments(&frame, 32, 1, &[])[1].clone();
            balancer.check(&from_client(format!("protocol {number}"), later, OTHER).with_established(client));
        }
    });
}

#[test]
fn root_later_fragments_follow_their_first() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, _| {
        let [first, later] = fragments(&long_auth(client), 64, 1, &[]);
        let fixture = from_client("of a session", later.clone(), Session(client));
        balancer.check(&fixture.with_established(client).after(Side::Client, first.clone()));
        let fixture = from_client("of no session", later, Hash(client));
        balancer.check(&fixture.after(Side::Client, first));
    });
}

/// A router's ICMP error about a packet to `client`, which begins with `first` and `later` fragments. They follow the
/// session of a client whose address only the first one has.
fn error_about(client: IpAddr, router: IpAddr, id: u16) -> [Vec<u8>; 2] {
    let kind = if client.is_ipv6() { 1 } else { 3 };
    fragments(&icmp_error(router, kind, &esp_back(client, 9), 80), 64, id, &[])
}

#[test]
fn root_the_fragment_table_wins_over_session_and_hash() {
    families(|client, router| {
        let balancer = Balancer::new(&settings(), 4);
        let sent_to = |frame: &[u8]| {
            let run = balancer.send(Side::Client, frame);
            assert_eq!(run.action, XDP_REDIRECT);
            u32::from(run.packet[5]) - 1
        };
        let hashed = balancer.hashed(router);
        balancer.turn_to((hashed + 1) % 4);
        balancer.establish(client);
        let [first, later] = error_about(client, router, 1);
        let backend = balancer.backend_of(client).expect("a session");
        assert_ne!(backend, hashed);
        assert_eq!(sent_to(&first), backend);
        assert_eq!(sent_to(&later), backend, "by the fragment table");
        assert_eq!(sent_to(&error_about(client, router, 2)[1]), hashed, "of another packet");

        // The router is a client itself, with a session elsewhere.
        balancer.turn_to((backend + 1) % 4);
        balancer.establish(router);
        let own = balancer.backend_of(router).expect("a session");
        assert_ne!(backend, own);
        assert_eq!(sent_to(&later), backend, "by the fragment table");
        assert_eq!(sent_to(&error_about(client, router, 2)[1]), own, "by session");

        // RFC 8200, section 4.5 gives the rest of a packet 60 seconds to come.
        balancer.age_fragments(58);
        assert_eq!(sent_to(&later), backend, "still by the fragment table");
        balancer.age_fragments(4);
        assert_eq!(sent_to(&later), own, "by session, as the fragment is too old");
    });
}

#[test]
fn root_fragments_of_other_packets_are_told_apart() {
    let balancer = Balancer::new(&settings(), 4);
    let client = client(1, false);
    let all: Vec<Vec<u8>> = [(1, 17), (2, 17), (1, 50)]
        .map(|(id, protocol)| {
            let mut payload = Ike::auth(INITIATOR, RESPONDER).bytes();
            payload.splice(0..0, [0x11, 0x94, 0x11, 0x94, 0, 200, 0, 0, 0, 0, 0, 1]);
            fragments(&raw(client, vip(client), IpNumber(protocol), &payload), 64, id, &[])[0].clone()
        })
        .into();
    for (number, frame) in all.iter().enumerate() {
        let others = all[..number].iter().fold(
            from_client(format!("fragment {number}"), frame.clone(), Hash(client)).remembers_fragment(),
            |fixture, frame| fixture.after(Side::Client, frame.clone()),
        );
        balancer.check(&others);
    }
}

#[test]
fn root_ipv6_fragment_headers_are_looked_behind() {
    let balancer = Balancer::new(&settings(), 4);
    let client = client(1, true);
    let start = ike(client, Ike::init(INITIATOR));
    let atomic = with_extensions(&start, &[44]);
    balancer.check(&from_client("an atomic fragment is a whole packet", atomic, New(client)));
    let behind = with_extensions(&start, &[0, 60, 44, 60]);
    balancer.check(&from_client("with options around", behind, New(client)));
    let long = [&start[..], &[0; 9]].concat();
    balancer.check(&from_client("with padding", with_extensions(&long, &[44]), New(client)));

    for (description, options) in
        [("destination options", &[60][..]), ("a routing header", &[43]), ("two", &[60, 60])]
    {
        let [first, later] = fragments(&long_auth(client), 64, 1, options);
        let fixture =
            from_client(format!("a first fragment with {description}"), first.clone(), Hash(client));
        balancer.check(&fixture.remembers_fragment());
        let description = format!("a later fragment behind {description}");
        balancer.check(&from_client(&description, later.clone(), Hash(client)));
        balancer.check(&from_client(&description, later.clone(), Session(client)).with_established(client));
        let fixture = from_client(&description, later, Hash(client));
        balancer.check(&fixture.after(Side::Client, first));
    }
    // More fragments to come, at no offset, and only of TCP.
    let [first, later] = fragments(&tcp(client, vip(client), 80), 16, 1, &[]);
    balancer.check(&from_client("TCP", first, OTHER));
    balancer.check(&from_client("TCP", later, OTHER));
    let cut = with_extensions(&raw(client, vip(client), IpNumber(59), &[]), &[44]);
    balancer.check(&from_client("a fragment header and nothing behind", cut.clone(), OTHER));
    let lying = poked(cut, 14 + 4, &[0, 7]);
    balancer.check(&from_client("a fragment header of 7 bytes", lying, MALFORMED));
}
