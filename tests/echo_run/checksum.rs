//! Checksums of requests and of their replies: every value of the field, wrong ones, and both zeros.

use lb::echo::datapath::CHECKED_MAX;
use lb::echo::skeleton::types::echo_verdict;

use crate::common::decode;
use crate::common::packet::{IP_AT, Ping, poked};
use crate::fixture::{HOP_LIMIT, OWN4, OWN6, PEER4, PEER6, Responder, TTL, XDP_TX, families};
use crate::reply::TAGS;

/// Bytes of payload of the longest message whose checksum is checked.
const CHECKED_PAYLOAD: usize = CHECKED_MAX - 8;

fn word(frame: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

fn reply_of(request: &Ping) -> Vec<u8> {
    request.reply(if request.source.is_ipv6() { HOP_LIMIT } else { TTL }).frame()
}

/// The request with a first word of payload under which its checksum is `check`. Of the sum's two zeros, a computation gives
/// 0 alone.
#[track_caller]
fn with_checksum(request: &Ping, check: u16) -> Ping {
    let at = request.icmp_at() + 2;
    let with = |word: u16| {
        let payload = [&word.to_be_bytes(), &request.payload[2..]].concat();
        Ping { payload, ..request.clone() }
    };
    // In one's complement arithmetic, which counts modulo 0xffff, the word that is added is taken from the checksum.
    let without = word(&with(0).frame(), at);
    let difference = (u32::from(without) + 0xffff - u32::from(check)) % 0xffff;
    let request = with(difference as u16);
    assert_eq!(word(&request.frame(), at), check % 0xffff);
    request
}

/// Each reply is what a computation over all of it gives.
#[track_caller]
fn sweep(request: &Ping) {
    let responder = Responder::new(false);
    let field = request.icmp_at() + 2;
    let mut seen = vec![false; 0x1_0000];
    for check in 0..=0xffff_u16 {
        // The header's checksum goes through its values beside it.
        let request = with_checksum(&Ping { label: check, ..request.clone() }, check);
        let frame = poked(request.frame(), field, &check.to_be_bytes());
        seen[usize::from(word(&frame, field))] = true;
        let run = responder.run(&frame);
        let reply = reply_of(&request);
        assert!(
            run.action == XDP_TX && run.packet == reply,
            "checksum {check:#06x}, action {}\nin:  {}\nout: {}\nexpected: {}",
            run.action,
            decode::show(&frame),
            decode::show(&run.packet),
            decode::show(&reply)
        );
    }
    assert!(seen.iter().all(|seen| *seen));
    assert_eq!(responder.counts()[echo_verdict::ECHO_REPLY.0 as usize].packets, 0x1_0000);
}

#[test]
fn root_every_checksum_of_ipv4_is_followed() {
    sweep(&Ping { payload: (0..9).collect(), ..Ping::request(PEER4.into(), OWN4.into()) });
}

#[test]
fn root_every_checksum_of_ipv6_is_followed() {
    sweep(&Ping { payload: (0..9).collect(), ..Ping::request(PEER6.into(), OWN6.into()) });
}

/// What a message longer than the checked ones has in its checksum, right or wrong, it has in its reply, by the same
/// amount. Of the two zeros, a reply of IPv4 has the one that is right for every message, and one of IPv6 the usual one.
#[test]
fn root_an_unchecked_checksum_is_wrong_afterwards_by_as_much_as_before() {
    let responder = Responder::new(false);
    families(|request| {
        let v6 = request.source.is_ipv6();
        let request = Ping { payload: vec![0x5a; CHECKED_PAYLOAD + 1], ..request };
        let field = request.icmp_at() + 2;
        let (right, frame, reply) = (request.frame(), request.frame(), reply_of(&request));
        for check in 0..=0xffff_u16 {
            let error = u32::from(check) + 0xffff - u32::from(word(&right, field));
            let expected = match (u32::from(word(&reply, field)) + error) % 0xffff {
                0 if !v6 => 0xffff,
                expected => expected as u16,
            };
            let run = responder.run(&poked(frame.clone(), field, &check.to_be_bytes()));
            let expected = poked(reply.clone(), field, &expected.to_be_bytes());
            assert!(
                run.action == XDP_TX && run.packet == expected,
                "checksum {check:#06x}, action {}\nout: {}\nexpected: {}",
                run.action,
                decode::show(&run.packet),
                decode::show(&expected)
            );
        }
    });
}

/// A reply of zeros alone has the sum 0, whose complement is 0xffff; where other bytes sum up to 0xffff, it is 0.
#[test]
fn root_both_zeros_of_a_reply_are_those_of_a_whole_computation() {
    let responder = Responder::new(false);
    families(|request| {
        let v4 = request.source.is_ipv4();
        let zeros = Ping { identifier: 0, sequence: 0, ..request };
        for bytes in [0, 1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 17, 56, 57, 58, 59, 1472, CHECKED_PAYLOAD] {
            for tags in TAGS {
                let zeros = Ping { tags: tags.to_vec(), payload: vec![0; bytes], ..zeros.clone() };
                let field = zeros.icmp_at() + 2;
                if v4 {
                    assert_eq!(word(&zeros.frame(), field), 0xf7ff);
                    assert_eq!(word(&reply_of(&zeros), field), 0xffff);
                }
                responder.answers(format!("{bytes} zeros"), &zeros);

                let identifier = Ping { identifier: 0xffff, ..zeros.clone() };
                let sequence = Ping { sequence: 0xffff, ..zeros.clone() };
                let both = Ping { identifier: 0x1234, sequence: 0xedcb, ..zeros.clone() };
                let mut requests = vec![identifier, sequence, both];
                // Two bytes that sum up to 0xffff, wherever they are; an odd one at the end is the upper half of a word.
                for at in (0..bytes.saturating_sub(1)).filter(|at| bytes < 64 || at % 97 == 0) {
                    let payload = poked(zeros.payload.clone(), at, &[0xff, 0xff]);
                    requests.push(Ping { payload, ..zeros.clone() });
                }
                if let Some(last) = bytes.checked_sub(1).filter(|last| last % 2 == 0) {
                    let payload = poked(zeros.payload.clone(), last, &[0xff]);
                    requests.push(Ping { identifier: 0x00ff, payload, ..zeros.clone() });
                }
                for request in requests {
                    if v4 {
                        assert_eq!(word(&request.frame(), field), 0xf7ff);
                        assert_eq!(word(&reply_of(&request), field), 0);
                    }
                    responder.answers(format!("{bytes} bytes that sum up to 0xffff"), &request);
                }
            }
        }
    });
}

#[test]
fn root_requests_with_a_wrong_checksum_go_to_the_stack() {
    let responder = Responder::new(false);
    families(|request| {
        for bytes in [0, 1, 2, 3, 8, 55, 56, 1472, CHECKED_PAYLOAD - 1, CHECKED_PAYLOAD] {
            for tags in TAGS {
                let request = Ping {
                    tags: tags.to_vec(),
                    payload: (0..bytes).map(|byte| byte as u8).collect(),
                    ..request.clone()
                };
                let (frame, at) = (request.frame(), request.icmp_at());
                let wrong = |at: usize, bit: usize| {
                    let mut frame = frame.clone();
                    frame[at] ^= 1 << bit;
                    responder.passes(
                        format!("{bytes} bytes, bit {bit} of byte {at} is wrong"),
                        frame,
                        echo_verdict::ECHO_BAD_CHECKSUM,
                    );
                };
                // Every bit behind type and code; of long messages some, and those at the end.
                let last = frame.len() - 1;
                for byte in
                    (at + 2..frame.len()).filter(|byte| bytes < 64 || byte % 101 == 0 || *byte > last - 9)
                {
                    (0..8).for_each(|bit| wrong(byte, bit));
                }
                let zero = poked(frame.clone(), at + 2, &[0, 0]);
                responder.passes("no checksum", zero, echo_verdict::ECHO_BAD_CHECKSUM);
            }
        }
    });
}

#[test]
fn root_the_longest_checked_message_is_the_stated_one() {
    let responder = Responder::new(false);
    families(|request| {
        for (bytes, checked) in
            [(CHECKED_PAYLOAD, true), (CHECKED_PAYLOAD + 1, false), (CHECKED_PAYLOAD + 2, false)]
        {
            let request = Ping { payload: vec![1; bytes], ..request.clone() };
            let mut frame = request.frame();
            *frame.last_mut().expect("it has a payload") ^= 0x80;
            assert_eq!(responder.run(&frame).action != XDP_TX, checked, "{bytes} bytes");
        }
    });
}

/// ICMPv6 covers the addresses, the length and the next header; ICMP does not.
#[test]
fn root_the_pseudo_header_is_of_icmpv6_alone() {
    let responder = Responder::new(true);
    let v4 = Ping::request(PEER4.into(), OWN4.into());
    let plain = v4.frame();
    // Addresses that change places keep the sum of the header.
    let other = Ping {
        source: OWN6.into(),
        destination: "fd00::8".parse().expect("an address"),
        ..Ping::request(PEER6.into(), OWN6.into())
    };
    let moved = poked(
        Ping { source: PEER6.into(), destination: OWN6.into(), ..other.clone() }.frame(),
        other.icmp_at() + 2,
        &other.frame()[other.icmp_at() + 2..][..2],
    );
    responder.passes("the checksum of other addresses", moved, echo_verdict::ECHO_BAD_CHECKSUM);
    let with = |address: &str| Ping { destination: address.parse().expect("an address"), ..v4.clone() };
    for address in ["10.0.0.3", "192.0.2.7"] {
        let request = with(address);
        assert_eq!(request.frame()[request.icmp_at()..], plain[v4.icmp_at()..]);
        responder.answers(format!("the same message to {address}"), &request);
    }
}

#[test]
fn root_requests_with_a_wrong_header_checksum_go_to_the_stack() {
    let responder = Responder::new(false);
    let request = Ping::request(PEER4.into(), OWN4.into());
    for tags in TAGS {
        let request = Ping { tags: tags.to_vec(), ..request.clone() };
        let (frame, at) = (request.frame(), request.ip_at());
        // Bits that make no other verdict: service, identification, "don't fragment", TTL, the checksum.
        let plain = [1, 4, 5, 8, 10, 11].into_iter().flat_map(|byte| (0..8).map(move |bit| (byte, bit)));
        for (byte, bit) in plain.chain([(6, 6)]) {
            let mut frame = frame.clone();
            frame[at + byte] ^= 1 << bit;
            let description = format!("bit {bit} of byte {byte} is wrong");
            responder.passes(description, frame, echo_verdict::ECHO_BAD_CHECKSUM);
        }
        for check in [0u16, 0xffff] {
            let frame = poked(frame.clone(), at + 10, &check.to_be_bytes());
            responder.passes("no header checksum", frame, echo_verdict::ECHO_BAD_CHECKSUM);
        }
    }
}

/// 0xffff stands for 0 there, as the sum of a header is never zero.
#[test]
fn root_both_zeros_of_a_header_checksum_are_right() {
    let responder = Responder::new(false);
    let request = Ping::request(PEER4.into(), OWN4.into());
    let label = (0..=0xffff)
        .find(|&label| word(&Ping { label, ..request.clone() }.frame(), IP_AT + 10) == 0)
        .expect("an identification that makes the sum 0xffff");
    let request = Ping { label, ..request };
    responder.answers("a header checksum of 0", &request);
    let run = responder.run(&poked(request.frame(), IP_AT + 10, &[0xff, 0xff]));
    assert_eq!((run.action, run.packet), (XDP_TX, reply_of(&request)));
}
