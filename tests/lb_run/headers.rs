//! The way to what a packet is: VLAN tags, IPv4 options, IPv6 extension headers, lengths that lie, and `--vip`.

use std::net::IpAddr;

use etherparse::IpNumber;
use lb::lb::datapath::{Other, Settings};
use lb::lb::session::State::Established;
use lb::lb::skeleton::types::lb_verdict;

use crate::common::packet::{
    Ike, VIP4, VIP6, client, esp, esp_back, esp_in_udp, fragments, ike, ike_nat, l4_at, padded, poked, raw,
    tagged, tcp, udp, vip, with_extensions, with_options,
};
use crate::families;
use crate::fixture::Expected::{Hash, New, Passed, Returned, Session};
use crate::fixture::{Balancer, Fixture, INITIATOR, MALFORMED, OTHER, from_backend, from_client, settings};

fn start(client: IpAddr) -> Vec<u8> {
    ike(client, Ike::init(INITIATOR))
}

/// The same packet from either side, when what is wrong with it is not a matter of direction.
fn from_both(description: &str, frame: Vec<u8>, expected: crate::fixture::Expected) -> [Fixture; 2] {
    [from_client(description, frame.clone(), expected), from_backend(description, frame, expected)]
}

#[test]
fn root_vlan_tags_are_looked_behind() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, _| {
        for tags in [&[0x8100][..], &[0x88a8], &[0x88a8, 0x8100], &[0x8100, 0x8100]] {
            let description = format!("tags {tags:04x?}");
            let fixture = |frame: &[u8], expected| from_client(&description, tagged(frame, tags), expected);
            balancer.check(&fixture(&start(client), New(client)));
            balancer.check(&fixture(&ike_nat(client, 4500, Ike::init(INITIATOR)), New(client)));
            balancer.check(&fixture(&esp(client, 7), Hash(client)));
            balancer.check(&fixture(&esp(client, 7), Session(client)).with_established(client));
            balancer.check(&fixture(&tcp(client, vip(client), 80), OTHER));
            let back = from_backend(&description, tagged(&esp_back(client, 7), tags), Returned(client));
            balancer.check(&back.with_established(client));
        }
        for tags in [[0x8100; 3], [0x88a8, 0x8100, 0x8100]] {
            for fixture in from_both("three tags", tagged(&esp(client, 7), &tags), OTHER) {
                balancer.check(&fixture);
            }
        }
    });
    let tags = tagged(&start(client(1, false)), &[0x88a8, 0x8100]);
    for bytes in [14, 15, 17, 18, 20, 21] {
        for fixture in from_both(&format!("{bytes} bytes of tags"), tags[..bytes].to_vec(), MALFORMED) {
            balancer.check(&fixture);
        }
    }
}

#[test]
fn root_ipv4_options_are_skipped() {
    let balancer = Balancer::new(&settings(), 4);
    let client = client(1, false);
    for words in 6..=15 {
        let description = format!("a header of {words} words");
        let fixture =
            |frame: &[u8], expected| from_client(&description, with_options(frame, words), expected);
        balancer.check(&fixture(&start(client), New(client)));
        balancer.check(&fixture(&esp(client, 7), Session(client)).with_established(client));
        balancer.check(&fixture(&esp_in_udp(client, 4500, 7), Hash(client)));
        balancer.check(&fixture(&tcp(client, vip(client), 80), OTHER));
        let back = with_options(&esp_back(client, 7), words);
        balancer.check(&from_backend(&description, back, Returned(client)).teaches(Established));
        let tags = tagged(&with_options(&start(client), words), &[0x88a8, 0x8100]);
        balancer.check(&from_client(&description, tags, New(client)));
        let [first, later] =
            fragments(&with_options(&[&esp(client, 7)[..], &[0; 64]].concat(), 5), 64, 1, &[]);
        balancer.check(
            &from_client(&description, with_options(&first, words), Hash(client)).remembers_fragment(),
        );
        balancer.check(&from_client(&description, with_options(&later, words), Hash(client)));
    }
}

#[test]
fn root_ipv6_extension_headers_are_walked_up_to_eight() {
    let balancer = Balancer::new(&settings(), 4);
    let client = client(1, true);
    for protocol in [0, 43, 60] {
        for count in 1..=8 {
            let chain = vec![protocol; count];
            let description = format!("{count} headers of protocol {protocol}");
            let fixture =
                |frame: &[u8], expected| from_client(&description, with_extensions(frame, &chain), expected);
            balancer.check(&fixture(&start(client), New(client)));
            balancer.check(&fixture(&esp(client, 7), Session(client)).with_established(client));
            balancer.check(&fixture(&tcp(client, vip(client), 80), OTHER));
            let back = with_extensions(&esp_back(client, 7), &chain);
            balancer.check(&from_backend(&description, back, Returned(client)).teaches(Established));
        }
        for count in [9, 10, 40] {
            let frame = with_extensions(&start(client), &vec![protocol; count]);
            for fixture in from_both(&format!("{count} headers of protocol {protocol}"), frame, MALFORMED) {
                balancer.check(&fixture);
            }
        }
    }
    let mixed = with_extensions(&start(client), &[0, 60, 43, 44, 60]);
    balancer.check(&from_client("one of each", tagged(&mixed, &[0x88a8, 0x8100]), New(client)));
    let atomic = with_extensions(&start(client), &[0, 0, 0, 0, 0, 0, 0, 0, 44]);
    balancer.check(&from_client("a ninth that is a fragment header", atomic, MALFORMED));
    let none = raw(client, vip(client), IpNumber(59), &[]);
    balancer.check(&from_client("no next header", none, OTHER));
    let mobility = raw(client, vip(client), IpNumber(135), &[59, 0, 0, 0, 0, 0, 0, 0]);
    balancer.check(&from_client("mobility, which is the end of the walk", mobility, OTHER));

    // A long header: 16 bytes of options in front of the start.
    let long = with_extensions(
        &[&start(client)[..54], &[17, 0, 0, 0, 0, 0, 0, 0], &start(client)[54..]].concat(),
        &[60],
    );
    let long = poked(poked(long, 54, &[17, 1]), 18, &((start(client).len() - 54 + 16) as u16).to_be_bytes());
    balancer.check(&from_client("a header of 16 bytes", long.clone(), New(client)));
    let beyond = poked(long.clone(), 55, &[255]);
    balancer.check(&from_client("a header beyond the packet", beyond, MALFORMED));
    let short = poked(with_extensions(&start(client), &[60]), 18, &[0, 7]);
    balancer.check(&from_client("a header of 8 bytes in 7", short, MALFORMED));
    let cut = with_extensions(&start(client), &[60]);
    balancer.check(&from_client("a header of one byte", poked(cut[..55].to_vec(), 18, &[0, 1]), MALFORMED));
}

#[test]
fn root_lengths_that_lie_are_malformed() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, _| {
        for whole in [start(client), esp(client, 7), esp_in_udp(client, 4500, 7)] {
            let (field, headers) = if client.is_ipv6() { (18, 54) } else { (16, 14) };
            let bytes = whole.len() - headers;
            for length in [bytes + 1, bytes + 100, 0xffff] {
                let frame = poked(whole.clone(), field, &(length as u16).to_be_bytes());
                for fixture in from_both("an IP length beyond the frame", frame.clone(), MALFORMED) {
                    balancer.check(&fixture);
                }
                let tags = tagged(&frame, &[0x8100]);
                balancer.check(&from_client("in a VLAN", tags, MALFORMED).with_established(client));
            }
            let longer = [&whole[..], &[0xee; 30]].concat();
            let expected = if whole == start(client) { New(client) } else { Hash(client) };
            balancer.check(&from_client("a frame that is longer than its packet", longer, expected));
        }
        // The packet ends where IP says, whatever the frame goes on with.
        let esp_at = l4_at(&esp(client, 7));
        let claim = esp_at + 7 - if client.is_ipv6() { 54 } else { 14 };
        let field = if client.is_ipv6() { 18 } else { 16 };
        let frame = poked(esp(client, 7), field, &(claim as u16).to_be_bytes());
        balancer.check(&from_client("7 bytes of ESP as IP says", frame, MALFORMED));
        let no_udp = poked(start(client), field, &((claim - 7) as u16).to_be_bytes());
        balancer.check(&from_client("no byte of UDP as IP says", no_udp, MALFORMED));
        let half_udp = poked(start(client), field, &(claim as u16).to_be_bytes());
        balancer.check(&from_client("7 bytes of UDP as IP says", half_udp, MALFORMED));
    });
}

#[test]
fn root_udp_lengths_that_lie_are_malformed() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, _| {
        let whole = start(client);
        let field = l4_at(&whole) + 4;
        let bytes = whole.len() - l4_at(&whole);
        for length in [0, 1, 7, bytes + 1, 0xffff] {
            let frame = poked(whole.clone(), field, &(length as u16).to_be_bytes());
            for fixture in from_both("a UDP length", frame, MALFORMED) {
                balancer.check(&fixture);
            }
        }
        // What lies behind UDP's own end is none of the message.
        let shorter = poked(whole.clone(), field, &(8u16 + 28).to_be_bytes());
        balancer.check(&from_client("UDP that ends before IP does", shorter, New(client)));
        let too_short = poked(whole, field, &(8u16 + 27).to_be_bytes());
        balancer.check(&from_client("UDP that ends within IKE", too_short, MALFORMED));
        // Other ports are not asked for more than a length that holds.
        let other = udp((client, 1), (vip(client), 2), &[]);
        balancer.check(&from_client("UDP of 8 bytes", padded(other.clone()), OTHER));
        let lying = poked(other, field, &[0, 9]);
        balancer.check(&from_client("UDP of 9 bytes in 8", padded(lying), MALFORMED));
    });
}

#[test]
fn root_ip_headers_that_contradict_themselves_are_malformed() {
    let balancer = Balancer::new(&settings(), 4);
    let v4 = start(client(1, false));
    for words in 0..5 {
        for fixture in from_both("a short header", poked(v4.clone(), 14, &[0x40 | words]), MALFORMED) {
            balancer.check(&fixture);
        }
    }
    for total in [0u16, 1, 19] {
        let frame = poked(v4.clone(), 16, &total.to_be_bytes());
        balancer.check(&from_client("a total length shorter than its header", frame, MALFORMED));
    }
    let options = poked(with_options(&v4, 15), 16, &[0, 59]);
    balancer.check(&from_client("a total length within the options", options, MALFORMED));
    let no_options = [&poked(v4.clone(), 14, &[0x4f])[..], &[]].concat();
    let cut = poked(no_options[..34].to_vec(), 16, &[0, 20]);
    balancer.check(&from_client("options beyond the packet", cut, MALFORMED));

    for (number, first) in [(0x00, 0x45), (0x35, 0x45), (0x55, 0x45), (0x65, 0x45), (0xf5, 0x45)] {
        assert_ne!(number, first);
        balancer.check(&from_client(
            "no IPv4 in IPv4's ethertype",
            poked(v4.clone(), 14, &[number]),
            MALFORMED,
        ));
    }
    let v6 = start(client(1, true));
    for number in [0x00, 0x45, 0x50, 0x70, 0xf0] {
        balancer.check(&from_client(
            "no IPv6 in IPv6's ethertype",
            poked(v6.clone(), 14, &[number]),
            MALFORMED,
        ));
    }
    let empty = poked(v6, 18, &[0, 0]);
    balancer.check(&from_client("IPv6 without payload, as a jumbogram has it", empty, MALFORMED));
}

#[test]
fn root_every_truncation_is_malformed() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, _| {
        let extended =
            |frame: Vec<u8>| if client.is_ipv6() { with_extensions(&frame, &[0, 44]) } else { frame };
        for whole in
            [extended(start(client)), tagged(&esp(client, 7), &[0x8100]), esp_in_udp(client, 4500, 7)]
        {
            // 14 bytes are the least that the kernel takes for a frame.
            for bytes in 14..whole.len() {
                let outcome = balancer.outcome(&whole[..bytes]);
                assert_eq!(outcome, (lb_verdict::LB_MALFORMED, None), "{bytes} bytes of the frame");
            }
        }
    });
}

#[test]
fn root_only_vips_are_balanced_where_some_are_given() {
    let second = "192.0.0.9".parse().unwrap();
    let vips: Vec<IpAddr> = vec![VIP4.into(), second, VIP6.into()];
    for other in [Other::Drop, Other::Pass] {
        let refused = if other == Other::Pass { Passed } else { OTHER };
        let balancer = Balancer::new(&Settings { vips: vips.clone(), other, ..settings() }, 4);
        families(|client, _| {
            balancer.check(&from_client("a start to a VIP", start(client), New(client)));
            balancer.check(&from_client("ESP to a VIP", esp(client, 7), Session(client)).with_start(client));
            let stranger: IpAddr =
                if client.is_ipv6() { "2001:db8::3".parse().unwrap() } else { "192.0.0.3".parse().unwrap() };
            let init = Ike::init(INITIATOR).bytes();
            for (description, frame) in [
                ("a start", udp((client, 500), (stranger, 500), &init)),
                ("ESP", raw(client, stranger, IpNumber(50), &[1; 64])),
                ("a keepalive", udp((client, 4500), (stranger, 4500), &[0xff])),
                (
                    "a later fragment",
                    fragments(&raw(client, stranger, IpNumber(50), &[1; 64]), 32, 1, &[])[1].clone(),
                ),
                (
                    "a ping",
                    crate::common::packet::icmp(
                        client,
                        stranger,
                        if client.is_ipv6() { 128 } else { 8 },
                        &[0; 60],
                    ),
                ),
                ("TCP", tcp(client, stranger, 80)),
            ] {
                balancer.check(&from_client(format!("{description} to another"), frame.clone(), refused));
                let known = from_client(format!("{description} of a client"), frame, refused);
                balancer.check(&known.with_established(client));
            }
            let short = raw(client, stranger, IpNumber(50), &[1; 7]);
            balancer.check(&from_client("malformed comes first", short, MALFORMED));
            // What backends send is from whatever addresses they have.
            let back = raw(stranger, client, IpNumber(50), &[1; 64]);
            let fixture = from_backend("ESP of a backend", back, Returned(client));
            balancer.check(&fixture.teaches(Established));
        });
        let client = client(1, false);
        let to_second = udp((client, 500), (second, 500), &Ike::init(INITIATOR).bytes());
        balancer.check(&from_client("a start to the second VIP", to_second, New(client)));
        let all = crate::fixture::Expected::Neighbour(crate::fixture::Way::All);
        balancer.check(&from_client("ARP", crate::common::packet::arp(1, [0xff; 6]), all));
    }
}

#[test]
fn root_what_is_none_of_a_vpn_is_dropped_or_passed() {
    for (other, expected) in [(Other::Drop, OTHER), (Other::Pass, Passed)] {
        let balancer = Balancer::new(&Settings { other, ..settings() }, 4);
        families(|client, _| {
            let mut frames =
                vec![tcp(client, vip(client), 500), udp((client, 1000), (vip(client), 53), &[1; 30])];
            frames
                .extend([4, 41, 47, 132].map(|number| raw(client, vip(client), IpNumber(number), &[1; 40])));
            for frame in frames {
                balancer.check(&from_client("of a stranger", frame.clone(), expected));
                balancer.check(&from_client("of a client", frame.clone(), expected).with_established(client));
                balancer.check(&from_backend("of a backend", frame, expected));
            }
        });
    }
}
