//! What is no plain echo request goes to the stack as it came: other protocols and messages, fragments, options, and
//! frames that end too early.

use etherparse::IpNumber;
use etherparse::checksum::Sum16BitWords;
use lb::echo::skeleton::types::echo_verdict;

use crate::common::packet::{
    self, IP_AT, Ping, fragments, icmp, l4_at, padded, poked, raw, tagged, tcp, udp, with_options,
};
use crate::fixture::{OWN_MAC, OWN4, OWN6, PEER4, PEER6, Responder, families};
use crate::reply::TAGS;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

/// The frame behind each of the tags that are looked behind.
fn in_all_tags(frame: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    TAGS.iter().map(|tags| tagged(frame, tags))
}

/// Settings do not matter for what is no request.
#[track_caller]
fn responders(work: impl Fn(&Responder)) {
    [false, true].map(Responder::new).iter().for_each(work);
}

/// An options header, with what comes behind its length.
fn options_header(protocol: u8, options: &[u8]) -> (u8, Vec<u8>) {
    assert_eq!((options.len() + 2) % 8, 0, "headers are multiples of eight bytes");
    let words = (options.len() + 2) / 8 - 1;
    (protocol, [&[0, u8::try_from(words).expect("few options")], options].concat())
}

/// PadN that fills so many bytes, two at least.
fn pad_n(bytes: usize) -> Vec<u8> {
    let mut option = vec![0; bytes];
    option[0] = 1;
    option[1] = (bytes - 2) as u8;
    option
}

/// A request of IPv4 with these flags, under a right header checksum.
fn request_with_flags(flags: u16) -> Vec<u8> {
    let mut frame = poked(Ping::request(PEER4.into(), OWN4.into()).frame(), IP_AT + 6, &flags.to_be_bytes());
    frame[IP_AT + 10..IP_AT + 12].fill(0);
    let check = Sum16BitWords::new().add_slice(&frame[IP_AT..IP_AT + 20]).ones_complement();
    poked(frame, IP_AT + 10, &check.to_ne_bytes())
}

/// All ways to fill so many bytes with Pad1 and PadN.
fn paddings(bytes: usize) -> Vec<Vec<u8>> {
    if bytes == 0 {
        return vec![Vec::new()];
    }
    let first = |option: Vec<u8>| {
        paddings(bytes - option.len()).into_iter().map(move |rest| [&option[..], &rest].concat())
    };
    first(vec![0]).chain((2..=bytes).flat_map(|length| first(pad_n(length)))).collect()
}

#[test]
fn root_other_protocols_go_to_the_stack() {
    responders(|responder| {
        let passes = |description: &str, frame: Vec<u8>| {
            for frame in in_all_tags(&frame) {
                responder.passes(description, frame, echo_verdict::ECHO_NOT_ECHO);
            }
        };
        families(|Ping { source, destination, .. }| {
            passes("UDP", udp((source, 7), (destination, 7), &[8; 60]));
            passes("TCP", tcp(source, destination, 80));
            for number in (0..=255).filter(|number| ![1, 58].contains(number)) {
                // Extension headers have tests of their own.
                if source.is_ipv4() || ![HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION].contains(&number) {
                    let message = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];
                    passes("a protocol", raw(source, destination, IpNumber(number), &message));
                }
            }
        });
        // The other family's ICMP, with the checksum that it would need.
        let v4 = icmp(PEER4.into(), OWN4.into(), 8, &[7; 60]);
        passes("ICMP in IPv6", raw(PEER6.into(), OWN6.into(), IpNumber::ICMP, &v4[l4_at(&v4)..]));
        let v6 = icmp(PEER6.into(), OWN6.into(), 128, &[7; 60]);
        passes("ICMPv6 in IPv4", raw(PEER4.into(), OWN4.into(), IpNumber::IPV6_ICMP, &v6[l4_at(&v6)..]));
        passes("IPv4 in IPv4", raw(PEER4.into(), OWN4.into(), IpNumber(4), &v4[IP_AT..]));
        passes("IPv6 in IPv6", raw(PEER6.into(), OWN6.into(), IpNumber(41), &v6[IP_AT..]));

        passes("an ARP request", packet::arp(1, [0xff; 6]));
        passes("an ARP answer", packet::arp(2, OWN_MAC));
        let behind_ethertype =
            |number: u16| [&OWN_MAC[..], &OWN_MAC, &number.to_be_bytes(), &v4[IP_AT..]].concat();
        for number in [0, 46, 1500, 0x0600, 0x0801, 0x08dd, 0x8847, 0x8863, 0x88cc, 0x88e5, 0x9100, 0xffff] {
            passes("an ethertype", behind_ethertype(number));
        }
        responder.passes(
            "no byte behind the ethertype",
            v4[..12].repeat(2)[..14].to_vec(),
            echo_verdict::ECHO_NOT_ECHO,
        );
    });
}

#[test]
fn root_other_messages_go_to_the_stack() {
    responders(|responder| {
        families(|request| {
            for kind in (0..=255).filter(|kind| *kind != request.kind) {
                let frame = Ping { kind, ..request.clone() }.frame();
                responder.passes(format!("type {kind}"), frame, echo_verdict::ECHO_NOT_ECHO);
            }
            for code in 1..=255 {
                for tags in TAGS {
                    let frame = Ping { code, tags: tags.to_vec(), ..request.clone() }.frame();
                    responder.passes(format!("code {code}"), frame, echo_verdict::ECHO_NOT_ECHO);
                }
            }
        });
    });
}

#[test]
fn root_a_third_tag_is_for_the_stack() {
    responders(|responder| {
        families(|request| {
            for tags in TAGS.iter().filter(|tags| tags.len() == 2) {
                for inner in [&[0x8100][..], &[0x88a8], &[0x8100, 0x8100]] {
                    let request = Ping { tags: [tags, inner].concat(), ..request.clone() };
                    responder.passes("three tags", request.frame(), echo_verdict::ECHO_NOT_ECHO);
                }
            }
        });
    });
}

#[test]
fn root_ipv4_options_go_to_the_stack() {
    let responder = Responder::new(false);
    let request = Ping::request(PEER4.into(), OWN4.into());
    for words in 6..=15 {
        for frame in in_all_tags(&with_options(&request.frame(), words)) {
            responder.passes(format!("a header of {words} words"), frame, echo_verdict::ECHO_OPTIONS);
        }
    }
}

#[test]
fn root_padding_in_ipv6_extension_headers_is_answered_and_kept() {
    let responder = Responder::new(false);
    let request = Ping::request(PEER6.into(), OWN6.into());
    for options in [pad_n(6), vec![0; 6]] {
        for protocol in [HOP_BY_HOP, DESTINATION] {
            for tags in TAGS {
                let extensions = vec![options_header(protocol, &options)];
                let request = Ping { tags: tags.to_vec(), extensions, ..request.clone() };
                responder.answers(format!("{options:02x?} in header {protocol}"), &request);
            }
        }
    }
    for first in [HOP_BY_HOP, DESTINATION] {
        for headers in 1..=8 {
            let mut extensions = vec![options_header(DESTINATION, &pad_n(6)); headers];
            extensions[0].0 = first;
            for bytes in [0, 1, 56, 1400, 1492] {
                let request = Ping {
                    extensions: extensions.clone(),
                    payload: vec![0xa5; bytes],
                    tags: vec![0x88a8, 0x8100],
                    ..request.clone()
                };
                responder.answers(format!("{headers} headers, {bytes} bytes"), &request);
            }
        }
    }
}

#[test]
fn root_ipv6_extension_headers_that_say_something_go_to_the_stack() {
    let responder = Responder::new(false);
    let request = Ping::request(PEER6.into(), OWN6.into());
    let passes = |description: String, extensions: &[(u8, Vec<u8>)], verdict| {
        for tags in TAGS {
            let request = Ping { tags: tags.to_vec(), extensions: extensions.to_vec(), ..request.clone() };
            responder.passes(description.clone(), request.frame(), verdict);
        }
    };
    for protocol in [HOP_BY_HOP, DESTINATION] {
        let padding = || options_header(protocol, &pad_n(6));
        for option in 2..=255 {
            let header = options_header(protocol, &[option, 4, 0, 0, 0, 0]);
            passes(format!("option {option}"), &[header], echo_verdict::ECHO_OPTIONS);
            let last = options_header(protocol, &[1, 2, 0, 0, option, 0]);
            passes(format!("option {option} behind padding"), &[last], echo_verdict::ECHO_OPTIONS);
        }
        let router_alert = options_header(HOP_BY_HOP, &[5, 2, 0, 0, 1, 0]);
        passes("a router alert".into(), &[router_alert], echo_verdict::ECHO_OPTIONS);
        // Linux drops padding that is not zero or more than aligns to eight bytes (RFC 4942, section 2.1.9.5).
        for byte in 2..6 {
            let header = options_header(protocol, &poked(pad_n(6), byte, &[1]));
            passes(format!("padding with a one in byte {byte}"), &[header], echo_verdict::ECHO_OPTIONS);
        }
        for bytes in [14, 22, 254] {
            let header = options_header(protocol, &pad_n(bytes));
            passes(format!("{bytes} bytes of padding"), &[header], echo_verdict::ECHO_OPTIONS);
            let header = options_header(protocol, &vec![0; bytes]);
            passes(format!("{bytes} bytes of Pad1"), &[header], echo_verdict::ECHO_OPTIONS);
        }
        // Nor does anybody send padding in pieces.
        let in_pieces = paddings(6);
        assert!(in_pieces.len() > 2 && in_pieces.contains(&vec![0; 6]) && in_pieces.contains(&pad_n(6)));
        for options in in_pieces.iter().filter(|options| **options != [0; 6] && **options != pad_n(6)) {
            let header = options_header(protocol, options);
            passes(format!("padding in pieces, {options:02x?}"), &[header], echo_verdict::ECHO_OPTIONS);
        }
        for length in [5, 6, 7, 255] {
            let header = options_header(protocol, &[1, length, 0, 0, 0, 0]);
            passes(format!("an option of {length} beyond its header"), &[header], echo_verdict::ECHO_OPTIONS);
        }
        let cut = options_header(protocol, &[0, 0, 0, 0, 0, 1]);
        passes("an option without its length".into(), &[cut], echo_verdict::ECHO_OPTIONS);
        for kind in [0, 2, 3, 4, 253] {
            for left in [0, 1] {
                let routing = |bytes: usize| {
                    let mut header = vec![0; bytes];
                    header[1..4].copy_from_slice(&[(bytes / 8 - 1) as u8, kind, left]);
                    (ROUTING, header)
                };
                passes(format!("routing {kind}"), &[routing(8)], echo_verdict::ECHO_OPTIONS);
                passes(format!("routing {kind}"), &[padding(), routing(24)], echo_verdict::ECHO_OPTIONS);
            }
        }
        let nine = vec![padding(); 9];
        passes("nine headers".into(), &nine, echo_verdict::ECHO_MALFORMED);
        // Hop-by-hop options stand right behind the IPv6 header alone (RFC 8200, section 4.1).
        let late = options_header(HOP_BY_HOP, &pad_n(6));
        passes("late hop-by-hop options".into(), &[padding(), late], echo_verdict::ECHO_OPTIONS);
    }
    // AH, ESP, mobility, HIP and shim6 are walked over by nobody here, and 59 is the end.
    for protocol in [50, 51, 59, 135, 139, 140] {
        let header = (protocol, vec![0; 8]);
        passes(format!("header {protocol}"), &[header], echo_verdict::ECHO_NOT_ECHO);
    }
}

#[test]
fn root_all_fragments_go_to_the_stack() {
    responders(|responder| {
        families(|request| {
            let padding = |protocol| options_header(protocol, &pad_n(6));
            let whole = Ping { payload: vec![0x5a; 200], ..request.clone() }.frame();
            let of = |frame: &[u8], extensions: &[u8]| fragments(frame, 64, 7, extensions).to_vec();
            let mut parts = of(&whole, &[]);
            let udp = of(&udp((request.source, 7), (request.destination, 7), &[8; 200]), &[]);
            if request.source.is_ipv6() {
                parts.push(of(&whole, &[DESTINATION])[0].clone());
                let header = |offset_and_more: u16| {
                    let [high, low] = offset_and_more.to_be_bytes();
                    (FRAGMENT, vec![0, 0, high, low, 0, 0, 0, 7])
                };
                for before in [&[][..], &[HOP_BY_HOP], &[DESTINATION], &[HOP_BY_HOP, DESTINATION]] {
                    // Neither offset nor more: an atomic fragment; the two reserved bits mean nothing.
                    for offset_and_more in
                        [0, 0x0002, 0x0006, 1, 8, 9, 0x00f0, 0x7ff8, 0x8000, 0xfff8, 0xffff]
                    {
                        let mut extensions: Vec<_> = before.iter().copied().map(padding).collect();
                        extensions.push(header(offset_and_more));
                        parts.push(Ping { extensions: extensions.clone(), ..request.clone() }.frame());
                        // A later fragment does not hold what its headers would be followed by.
                        if offset_and_more < 8 {
                            extensions.push(padding(DESTINATION));
                            parts.push(Ping { extensions, ..request.clone() }.frame());
                        }
                    }
                }
            } else {
                // All in one go: more, and each bit of the offset.
                for offset_and_more in [0x2000u16, 0x2001].into_iter().chain((0..13).map(|bit| 1 << bit)) {
                    for others in [0, 0x4000, 0x8000] {
                        let bytes = (offset_and_more | others).to_be_bytes();
                        parts.push(poked(request.frame(), IP_AT + 6, &bytes));
                    }
                }
            }
            for part in parts {
                for part in in_all_tags(&part) {
                    responder.passes("a fragment of ICMP", part, echo_verdict::ECHO_FRAGMENT);
                }
            }
            for part in udp {
                for part in in_all_tags(&part) {
                    responder.passes("a fragment of UDP", part, echo_verdict::ECHO_NOT_ECHO);
                }
            }
        });
    });
}

#[test]
fn root_a_request_that_is_cut_off_is_never_answered() {
    responders(|responder| {
        families(|request| {
            for tags in TAGS {
                for headers in [0, 1, 8] {
                    let headers = if request.source.is_ipv6() { headers } else { 0 };
                    let request = Ping {
                        tags: tags.to_vec(),
                        extensions: vec![options_header(DESTINATION, &pad_n(6)); headers],
                        ..request.clone()
                    };
                    let whole = request.frame();
                    // 14 bytes are the least that the kernel takes for a frame.
                    for bytes in 14..whole.len() {
                        let description = format!("{bytes} bytes of {}", whole.len());
                        responder.passes(description, whole[..bytes].to_vec(), echo_verdict::ECHO_MALFORMED);
                    }
                    responder.answers("the whole request", &request);
                }
            }
        });
    });
}

/// As above, but IP agrees that the packet ends there.
#[test]
fn root_a_message_that_is_cut_off_is_never_answered() {
    let responder = Responder::new(false);
    families(|request| {
        let request = Ping { payload: (1..=56).collect(), ..request };
        let whole = request.frame();
        let icmp_at = request.icmp_at();
        for left in 0..whole.len() - icmp_at {
            let cut = &whole[icmp_at..][..left];
            let protocol = if request.source.is_ipv6() { IpNumber::IPV6_ICMP } else { IpNumber::ICMP };
            let frame = raw(request.source, request.destination, protocol, cut);
            let verdict =
                if left < 8 { echo_verdict::ECHO_MALFORMED } else { echo_verdict::ECHO_BAD_CHECKSUM };
            for frame in in_all_tags(&frame) {
                responder.passes(format!("{left} bytes of ICMP"), frame.clone(), verdict);
                responder.passes(format!("{left} bytes of ICMP, padded"), padded(frame), verdict);
            }
        }
    });
}

#[test]
fn root_ip_headers_that_contradict_themselves_go_to_the_stack() {
    responders(|responder| {
        let v4 = Ping::request(PEER4.into(), OWN4.into()).frame();
        let v6 = Ping::request(PEER6.into(), OWN6.into()).frame();
        let malformed = |description: &str, frame: Vec<u8>| {
            for frame in in_all_tags(&frame) {
                responder.passes(description, frame, echo_verdict::ECHO_MALFORMED);
            }
        };
        for first in (0..=255).filter(|first| !(0x45..=0x4f).contains(first)) {
            malformed("no IPv4, or a short header", poked(v4.clone(), IP_AT, &[first]));
        }
        for first in (0..=255).filter(|first| first >> 4 != 6) {
            malformed("no IPv6", poked(v6.clone(), IP_AT, &[first]));
        }
        let (v4_bytes, v6_bytes) = ((v4.len() - IP_AT) as u16, (v6.len() - IP_AT - 40) as u16);
        for total in (0..28).chain([v4_bytes + 1, 0x7fff, 0x8000, 0xffff]) {
            malformed("a length of IPv4", poked(v4.clone(), IP_AT + 2, &total.to_be_bytes()));
        }
        for payload in (0..8).chain([v6_bytes + 1, 0x7fff, 0x8000, 0xffff]) {
            malformed("a length of IPv6", poked(v6.clone(), IP_AT + 4, &payload.to_be_bytes()));
        }
        malformed("IPv4 in IPv6's ethertype", poked(v4, 12, &[0x86, 0xdd]));
        malformed("IPv6 in IPv4's ethertype", poked(v6, 12, &[0x08, 0x00]));

        // A flag that is none, under a right header checksum.
        for flags in [0x8000, 0xc000] {
            malformed("a reserved flag", request_with_flags(flags));
        }

        // Extension headers that reach beyond the packet.
        let request = Ping::request(PEER6.into(), OWN6.into());
        let extended = Ping { extensions: vec![options_header(DESTINATION, &pad_n(6))], ..request }.frame();
        for words in [8, 9, 255] {
            malformed("a header beyond the packet", poked(extended.clone(), IP_AT + 41, &[words]));
        }
    });
}
