//! A reference model of the echo responder and the program in the kernel get the same random frames, and have to agree on each:
//! verdict, XDP action, the bytes that leave, and what is counted. Whatever is sent back is looked at once more without the
//! model: a reply must be the correct reply to a correct request.
//!
//! `model.rs` decides, `generate.rs` makes the frames.

#[path = "../common/mod.rs"]
mod common;
mod generate;
mod model;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use common::decode;
use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice};
use generate::Input;
use lb::echo::VERDICTS;
use lb::echo::datapath::{CHECKED_MAX, Datapath, Settings};
use lb::kernel::counters::Count;
use lb::kernel::program::RunOptions;
use lb::stats;
use model::{Model, Verdict};
use proptest::prelude::*;
use proptest::test_runner::{TestError, TestRunner};

/// Frames, unless PROPTEST_CASES says how many.
const CASES: u32 = 40_000;

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

/// So long that nobody is answered twice.
const HOUR: Duration = Duration::from_secs(3600);

/// A loaded responder, and its model.
struct Pair {
    datapath: Datapath,
    model: RefCell<Model>,
    settings: Settings,
}

impl Pair {
    fn new(settings: Settings) -> Self {
        let datapath = Datapath::load(&settings, None).expect("the program loads");
        let view = generate::view();
        datapath.maps.set_view(&view).expect("the view can be set");
        let first_buffer = first_buffer(&datapath);
        Self { datapath, model: RefCell::new(Model::new(&settings, &view, first_buffer)), settings }
    }

    fn counts(&self) -> Vec<Count> {
        counts(&self.datapath)
    }

    /// Feeds a frame to both.
    fn check(&self, input: &Input, coverage: &Coverage) -> Result<(), TestCaseError> {
        let frame = input.frame();
        let before = self.counts();
        let run = self.datapath.program.run(&frame, RunOptions::default()).expect("the program runs");
        let after = self.counts();
        let outcome = self.model.borrow_mut().judge(&frame);

        let fail = |what: &str| {
            let found: Vec<String> = (0..VERDICTS.len())
                .filter(|&index| before[index] != after[index])
                .map(|index| format!("{}: {:?}", VERDICTS[index].name, after[index] - before[index]))
                .collect();
            Err(TestCaseError::fail(format!(
                "{what}\nthe model has {:?}, {} bytes, the program {}, action {}\nin:  {}\nout: {}\nmodel: {}",
                outcome.verdict,
                outcome.bytes,
                found.join(", "),
                run.action,
                decode::show(&frame),
                decode::show(&run.packet),
                decode::show(&outcome.frame),
            )))
        };
        let mut expected = before.clone();
        let index = VERDICTS.iter().position(|verdict| verdict.name == outcome.verdict.name());
        let counted = &mut expected[index.expect("each verdict is counted")];
        *counted = *counted + Count { packets: 1, bytes: outcome.bytes };
        let action = match outcome.verdict {
            Verdict::Reply => XDP_TX,
            Verdict::RateLimited => XDP_DROP,
            _ => XDP_PASS,
        };
        if after != expected || run.action != action {
            return fail("verdicts differ");
        }
        if run.packet != outcome.frame {
            return fail("frames differ");
        }
        if run.action != XDP_TX && run.packet != frame {
            return fail("a frame is changed that is not answered");
        }
        if run.action == XDP_TX
            && let Err(broken) = check_reply(&frame, &run.packet)
        {
            return fail(broken);
        }
        let may_be_limited = !self.settings.source_interval.is_zero() && run.action == XDP_DROP;
        if input.is_plain() && run.action != XDP_TX && !may_be_limited {
            return fail("a plain request is not answered");
        }
        coverage.note(input, &frame, &run.packet, outcome.verdict, &self.settings);
        Ok(())
    }
}

fn counts(datapath: &Datapath) -> Vec<Count> {
    stats::read(&datapath.maps.verdicts, VERDICTS.len()).expect("counters can be read")
}

/// How much of a long frame lies in the first buffer of a test run. The program says it: of a packet that ends in there, no
/// more of its frame is counted.
fn first_buffer(datapath: &Datapath) -> usize {
    let source = ([10, 0, 0, 2].into(), 1);
    let datagram = common::packet::udp(source, ([10, 0, 0, 1].into(), 2), &[]);
    let frame = [datagram, vec![0; 9000]].concat();
    let sum = |datapath: &Datapath| counts(datapath).into_iter().sum::<Count>();
    let before = sum(datapath);
    datapath.program.run(&frame, RunOptions::default()).expect("the program runs");
    usize::try_from((sum(datapath) - before).bytes).expect("a short frame")
}

/// What everybody is promised of a reply, as a parser of its own sees it.
fn check_reply(request: &[u8], reply: &[u8]) -> Result<(), &'static str> {
    if request.len() != reply.len() || request[..6] != reply[6..12] || request[6..12] != reply[..6] {
        return Err("the reply's MACs or length are not those of the request");
    }
    if request[6] & 1 == 1 {
        return Err("the reply is to a group");
    }
    let parsed = |frame| {
        SlicedPacket::from_ethernet(frame).map_err(|_| "what is answered, or the answer, cannot be parsed")
    };
    let (request, reply) = (parsed(request)?, parsed(reply)?);
    if request.is_ip_payload_fragmented() || reply.is_ip_payload_fragmented() {
        return Err("a fragment");
    }
    if request.vlan_ids() != reply.vlan_ids() {
        return Err("the tags changed");
    }
    match (&request.net, &reply.net) {
        (Some(NetSlice::Ipv4(request)), Some(NetSlice::Ipv4(reply))) => {
            let (request, reply) = (request.header().to_header(), reply.header().to_header());
            let swapped = etherparse::Ipv4Header {
                source: request.destination,
                destination: request.source,
                time_to_live: generate::view().ttl,
                ..request.clone()
            };
            let expected =
                etherparse::Ipv4Header { header_checksum: swapped.calc_header_checksum(), ..swapped };
            if reply != expected || reply.ihl() != 5 {
                return Err("the reply's IPv4 header is not that of the request, swapped");
            }
        }
        (Some(NetSlice::Ipv6(request)), Some(NetSlice::Ipv6(reply))) => {
            let (before, after) = (request.header().to_header(), reply.header().to_header());
            let swapped = etherparse::Ipv6Header {
                source: before.destination,
                destination: before.source,
                hop_limit: generate::view().hop_limit,
                ..before
            };
            if after != swapped || request.extensions().slice() != reply.extensions().slice() {
                return Err("the reply's IPv6 headers are not those of the request, swapped");
            }
        }
        _ => return Err("no IP"),
    }
    match (&request.transport, &reply.transport) {
        (Some(TransportSlice::Icmpv4(request)), Some(TransportSlice::Icmpv4(reply))) => {
            let echoed = match (request.icmp_type(), reply.icmp_type()) {
                (Icmpv4Type::EchoRequest(request), Icmpv4Type::EchoReply(reply)) => request == reply,
                _ => false,
            };
            if !echoed || request.payload() != reply.payload() {
                return Err("no echo");
            }
            let sums = [request.slice(), reply.slice()].map(|message| {
                etherparse::checksum::Sum16BitWords::new().add_slice(message).ones_complement()
            });
            if request.slice().len() <= CHECKED_MAX && sums != [0, 0] {
                return Err("a checksum is wrong");
            }
        }
        (Some(TransportSlice::Icmpv6(request_message)), Some(TransportSlice::Icmpv6(reply_message))) => {
            let echoed = match (request_message.icmp_type(), reply_message.icmp_type()) {
                (Icmpv6Type::EchoRequest(request), Icmpv6Type::EchoReply(reply)) => request == reply,
                _ => false,
            };
            if !echoed || request_message.payload() != reply_message.payload() {
                return Err("no echo");
            }
            let is_right =
                |packet: &SlicedPacket<'_>, message: &etherparse::Icmpv6Slice<'_>| match &packet.net {
                    Some(NetSlice::Ipv6(ip)) => {
                        message.is_checksum_valid(ip.header().source(), ip.header().destination())
                    }
                    _ => false,
                };
            let right = is_right(&request, request_message) && is_right(&reply, reply_message);
            if request_message.slice().len() <= CHECKED_MAX && !right {
                return Err("a checksum is wrong");
            }
        }
        _ => return Err("no ICMP"),
    }
    Ok(())
}

/// What a run came across, to show that it did not miss its subject.
#[derive(Debug, Default)]
struct Coverage(RefCell<BTreeMap<&'static str, u64>>);

/// What there is beside verdicts.
const SUBJECTS: [&str; 16] = [
    "a reply of IPv4",
    "a reply of IPv6",
    "a reply in a tag",
    "a reply in two tags",
    "a reply behind extension headers",
    "a reply of several buffers",
    "a reply whose checksum is not checked",
    "a reply of zeros",
    "a reply with a checksum of 0",
    "a reply for an address that is not ours",
    "a reply to an odd request",
    "a reply with bytes behind it",
    "noise",
    "noise behind an ethertype",
    "a plain request",
    "a frame of 14 bytes",
];

impl Coverage {
    fn count(&self, what: &'static str) {
        *self.0.borrow_mut().entry(what).or_default() += 1;
    }

    fn note(&self, input: &Input, frame: &[u8], out: &[u8], verdict: Verdict, settings: &Settings) {
        self.count(verdict.name());
        let note = |is: bool, what: &'static str| {
            assert!(SUBJECTS.contains(&what), "{what}");
            if is {
                self.count(what);
            }
        };
        note(input.is_plain(), "a plain request");
        note(matches!(input, Input::Noise { ethertype: None, .. }), "noise");
        note(matches!(input, Input::Noise { ethertype: Some(_), .. }), "noise behind an ethertype");
        note(frame.len() == 14, "a frame of 14 bytes");
        if verdict != Verdict::Reply {
            return;
        }
        let packet = model::locate(out).expect("a reply is ICMP");
        let v6 = packet.source.is_ipv6();
        let tags = packet.message.start - if v6 { 54 } else { 34 };
        let message = &out[packet.message.clone()];
        note(!v6, "a reply of IPv4");
        note(v6, "a reply of IPv6");
        note(!v6 && tags == 4, "a reply in a tag");
        note(!v6 && tags == 8, "a reply in two tags");
        note(v6 && tags > 8, "a reply behind extension headers");
        note(frame.len() > 4096, "a reply of several buffers");
        note(message.len() > CHECKED_MAX, "a reply whose checksum is not checked");
        note(
            message[..4] == [0, 0, 0xff, 0xff] && message[4..].iter().all(|byte| *byte == 0),
            "a reply of zeros",
        );
        note(message[2..4] == [0, 0], "a reply with a checksum of 0");
        let ours = generate::view().addresses.contains(&packet.source);
        note(settings.any && !ours, "a reply for an address that is not ours");
        note(!input.is_plain(), "a reply to an odd request");
        note(packet.message.end < out.len(), "a reply with bytes behind it");
    }
}

#[test]
fn root_model_and_program_agree_on_every_frame() {
    let pairs = [(false, Duration::ZERO), (true, Duration::ZERO), (false, HOUR), (true, HOUR)]
        .map(|(any, source_interval)| Pair::new(Settings { any, source_interval }));
    let coverage = Coverage::default();
    let mut config = ProptestConfig { failure_persistence: None, ..Default::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    let cases = config.cases;
    let input = (prop_oneof![3 => 0..2usize, 1 => 2..4usize], generate::inputs());
    let result = TestRunner::new(config).run(&input, |(pair, input)| pairs[pair].check(&input, &coverage));
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, (pair, input))) => {
            panic!("{reason}\n{:?}\n{input:#?}", pairs[pair].settings)
        }
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }

    let counts = coverage.0.into_inner();
    println!("{counts:#?}");
    if cases >= CASES {
        for what in VERDICTS.iter().map(|verdict| verdict.name).chain(SUBJECTS) {
            assert!(counts.contains_key(what), "nothing came to: {what}");
        }
    }
}
