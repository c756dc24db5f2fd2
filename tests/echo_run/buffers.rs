//! Frames longer than a page, which the program gets in several buffers.

use std::fmt::Debug;
use std::io::{Write, stderr};
use std::mem::MaybeUninit;
use std::ops::RangeInclusive;

use lb::echo::VERDICTS;
use lb::echo::datapath::{CHECKED_MAX, Maps};
use lb::echo::skeleton::EchoSkelBuilder;
use lb::echo::skeleton::types::echo_verdict;
use lb::kernel::program::Run;
use lb::kernel::table::Table;
use lb::kernel::value::MapValue;
use lb::stats;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{ErrorKind, MapHandle, MapImpl, ProgramInput, ProgramMut};

use crate::common::packet::{Ping, poked, udp};
use crate::fixture::{Expected, Fixture, Responder, answered, families, passed, stranger, view};
use crate::reply::TAGS;

/// Longer than any first buffer of a test run.
const LONG: usize = 9000;

/// What a frame has before anything else, and a first buffer at least.
const ETHERNET: usize = 14;

/// What is counted of a packet that ends before its frame does: the packet, and of what lies behind it as much as the first
/// buffer has.
fn counted(request: &Ping) -> RangeInclusive<u64> {
    let frame = request.frame().len() as u64;
    frame - request.trailer.len() as u64..=frame
}

fn payload(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|byte| (byte * 31 + byte / 256) as u8).collect()
}

#[test]
fn root_long_requests_are_answered() {
    let responder = Responder::new(false);
    families(|request| {
        for tags in TAGS {
            for bytes in [2000, 3400, 3999, 4000, 4001, 8191, 8192, 8951, 8952, 8972, LONG] {
                let request = Ping { tags: tags.to_vec(), payload: payload(bytes), ..request.clone() };
                responder.answers(format!("{bytes} bytes behind tags {tags:04x?}"), &request);
            }
        }
        // As much as IP has a length for.
        let most = if request.source.is_ipv6() { 65527 } else { 65507 };
        for bytes in [most - 1, most] {
            responder.answers("a request of all bytes", &Ping { payload: payload(bytes), ..request.clone() });
        }
        // Around the end of the first buffer, wherever that is.
        for bytes in 3300..3600 {
            let request = Ping { payload: payload(bytes), ..request.clone() };
            responder.answers(format!("{bytes} bytes"), &request);
        }
    });
}

/// Whoever gets the reply looks at its checksum himself.
#[test]
fn root_long_requests_with_a_wrong_checksum_get_a_reply_as_wrong() {
    let responder = Responder::new(false);
    families(|request| {
        for tags in TAGS {
            let request = Ping { tags: tags.to_vec(), payload: payload(LONG), ..request.clone() };
            // The checksum stays, as though a word of the payload had changed on the way.
            let mut fixture = answered("a byte is wrong", &request);
            let flip = |frame: &mut Vec<u8>| *frame.last_mut().expect("it has a payload") ^= 0x55;
            flip(&mut fixture.frame);
            if let Expected::Reply(reply) = &mut fixture.expected {
                flip(reply);
            }
            responder.check(&fixture);
        }
    });
}

#[test]
fn root_a_short_packet_in_a_long_frame_is_checked_and_answered() {
    let responder = Responder::new(false);
    families(|request| {
        for tags in TAGS {
            for bytes in [0, 56, 1472] {
                let request = Ping {
                    tags: tags.to_vec(),
                    payload: payload(bytes),
                    trailer: vec![0xee; LONG - bytes],
                    ..request.clone()
                };
                let whole = answered(format!("{bytes} bytes in a long frame"), &request);
                responder.check_counted(&whole, counted(&request));
                let wrong = poked(request.frame(), request.icmp_at() + 2, &[0, 0]);
                let wrong = passed("a wrong checksum", wrong, echo_verdict::ECHO_BAD_CHECKSUM);
                responder.check_counted(&wrong, counted(&request));
            }
        }
    });
}

#[test]
fn root_long_frames_that_are_passed_are_counted_whole_and_stay_as_they_are() {
    let responder = Responder::new(false);
    families(|request| {
        let long = Ping { payload: payload(LONG), ..request.clone() };
        let (source, destination) = (request.source, request.destination);
        let reply = Ping { kind: request.reply(1).kind, ..long.clone() };
        let frames = [
            ("UDP", udp((source, 1), (destination, 2), &payload(LONG)), echo_verdict::ECHO_NOT_ECHO),
            ("a reply", reply.frame(), echo_verdict::ECHO_NOT_ECHO),
            ("to another MAC", Ping { to: [0xff; 6], ..long.clone() }.frame(), echo_verdict::ECHO_OTHER_MAC),
            (
                "to another address",
                Ping { destination: stranger(source), ..long.clone() }.frame(),
                echo_verdict::ECHO_OTHER_ADDRESS,
            ),
            ("from us", Ping { source: destination, ..long.clone() }.frame(), echo_verdict::ECHO_BAD_SOURCE),
            ("cut off", long.frame()[..LONG].to_vec(), echo_verdict::ECHO_MALFORMED),
            ("ARP", poked(long.frame(), 12, &[0x08, 0x06]), echo_verdict::ECHO_NOT_ECHO),
        ];
        for (description, frame, verdict) in frames {
            responder.passes(description, frame, verdict);
        }

        let trailer = payload(LONG);
        let short = Ping { trailer: trailer.clone(), ..request };
        let datagram = [udp((source, 1), (destination, 2), &[0; 56]), trailer].concat();
        for (description, frame, verdict) in [
            ("short UDP", datagram, echo_verdict::ECHO_NOT_ECHO),
            ("short, a code", Ping { code: 1, ..short.clone() }.frame(), echo_verdict::ECHO_NOT_ECHO),
            (
                "short to another MAC",
                Ping { to: [0xff; 6], ..short.clone() }.frame(),
                echo_verdict::ECHO_OTHER_MAC,
            ),
        ] {
            responder.check_counted(&passed(description, frame, verdict), counted(&short));
        }
    });
}

/// A driver may put less than the headers, or any part of the message, into the first buffer.
#[test]
fn root_a_first_buffer_may_end_anywhere() {
    let mut storage = MaybeUninit::uninit();
    let mut open = EchoSkelBuilder::default().open(&mut storage).expect("the object opens");
    let rodata = open.maps.rodata_data.as_deref_mut().expect("the object has read-only data");
    rodata.echo_config.any = 0;
    rodata.echo_config.source_interval = 0;
    let skeleton = open.load().expect("the program loads");
    let maps = Maps { verdicts: table(&skeleton.maps.verdicts), views: table(&skeleton.maps.data_views) };
    maps.set_view(&view()).expect("the view can be set");
    let counts = || stats::read(&maps.verdicts, VERDICTS.len()).expect("counters can be read");
    let run = |frame: &[u8], first: usize| cut_run(&skeleton.progs.lb_echo, frame, first);

    if let Err(error) = run(&[0; 64], 32) {
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        // Past the test harness, which shows nothing of a test that passes.
        let _ = writeln!(stderr(), "not tested: this kernel cuts no frames for test runs, Linux 6.18 does");
        return;
    }
    let check = |fixture: &Fixture, first: usize| {
        let before = counts();
        let run = run(&fixture.frame, first).expect("the program runs");
        let whole = fixture.frame.len() as u64;
        fixture.compare(&run, &before, &counts(), whole..=whole);
    };
    let padding = (60, vec![0, 0, 1, 4, 0, 0, 0, 0]);
    families(|request| {
        let headers: &[usize] = if request.source.is_ipv6() { &[0, 3] } else { &[0] };
        for (&headers, tags) in headers.iter().flat_map(|headers| TAGS.map(|tags| (headers, tags))) {
            for bytes in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 56, 63, 64, 65, 511, 1491, 1492, 1493] {
                let request = Ping {
                    tags: tags.to_vec(),
                    extensions: vec![padding.clone(); headers],
                    payload: payload(bytes),
                    ..request.clone()
                };
                let frame = request.frame();
                let needed = request.icmp_at() + 8;
                let description = |first: usize| format!("{bytes} bytes, {first} of {} first", frame.len());
                let mut wrong = frame.clone();
                wrong[request.icmp_at() + 7] ^= 1;
                let near = |first: &usize| bytes < 70 || *first < needed + 70 || frame.len() < first + 70;
                for first in (ETHERNET..frame.len()).filter(near) {
                    if first < needed {
                        check(
                            &passed(description(first), frame.clone(), echo_verdict::ECHO_MALFORMED),
                            first,
                        );
                        continue;
                    }
                    check(&answered(description(first), &request), first);
                    if bytes <= CHECKED_MAX - 8 {
                        let wrong =
                            passed(description(first), wrong.clone(), echo_verdict::ECHO_BAD_CHECKSUM);
                        check(&wrong, first);
                    }
                }
            }
        }
    });
}

#[track_caller]
fn table<K: MapValue, V: MapValue>(map: &MapImpl<'_, impl Debug>) -> Table<K, V> {
    Table::new(MapHandle::try_from(map).expect("a handle")).expect("a map of this layout")
}

/// Runs a program on a frame whose first buffer holds `first` bytes.
fn cut_run(program: &ProgramMut<'_>, frame: &[u8], first: usize) -> Result<Run, libbpf_rs::Error> {
    // struct xdp_md: `data_end` is its second word.
    let mut context = [0, first as u32, 0, 0, 0, 0].map(u32::to_ne_bytes).concat();
    let mut out = vec![0; frame.len()];
    let input = ProgramInput {
        context_in: Some(&mut context),
        data_in: Some(frame),
        data_out: Some(&mut out),
        ..ProgramInput::default()
    };
    let output = program.test_run(input)?;
    let (action, duration) = (output.return_value, output.duration);
    Ok(Run { action, packet: out, duration })
}
