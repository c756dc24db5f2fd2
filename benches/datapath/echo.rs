//! What the echo responder costs, program only: replies, and what it lets pass.
//!
//! A reply is no request any more, so `restore` stands in front and writes the request's headers anew. What that costs is measured in
//! the same round, as the time of `restore` with an empty program behind it less that of the empty program by itself, and subtracted.
//! Each round loads all programs anew: where the kernel happens to put a program makes a difference of a nanosecond or two.

use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::time::Duration;

use ::lb::echo::VERDICTS;
use ::lb::echo::datapath::{Datapath, Settings, View};
use ::lb::echo::skeleton::types::echo_verdict;
use ::lb::kernel::program::Program;
use ::lb::{pass, stats};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};

use crate::common::packet::{self, GATEWAY_MAC, Ping};
use crate::restore::Restorer;
use crate::{Base, Line, REPEAT, cpu_nanoseconds, floor, median, print_beside};

/// Ours, and who asks: addresses for documentation (RFC 5737, RFC 3849).
pub const OWN4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const OWN6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
pub const PEER4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub const PEER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

/// TTL and hop limit, of requests as of replies.
const TTL: u8 = 64;

/// The name of the floor that replies are held against.
const XDP_TX: &str = "bare XDP_TX";

/// Most, for a reply, of the floor.
const REPLY: Option<(Base, f64)> = Some((Base::Line(XDP_TX), 1.6));

/// What `ping` sends if it is not told otherwise: 56 bytes of payload, and an own neighbour's TTL.
pub fn request(v6: bool) -> Ping {
    let (peer, own): (IpAddr, IpAddr) =
        if v6 { (PEER6.into(), OWN6.into()) } else { (PEER4.into(), OWN4.into()) };
    Ping { ttl: TTL, ..Ping::request(peer, own) }
}

/// A frame, and where it is to end.
struct Case {
    name: &'static str,
    frame: Vec<u8>,
    verdict: echo_verdict,
    /// Whether each source may ask only so often.
    limited: bool,
    /// Whether `restore` stands in front.
    restored: bool,
    target: Option<(Base, f64)>,
}

fn cases() -> Vec<Case> {
    let reply = |name, ping: Ping, target| {
        let verdict = echo_verdict::ECHO_REPLY;
        Case { name, frame: ping.frame(), verdict, limited: false, restored: true, target }
    };
    let long = |v6, bytes| Ping { payload: vec![0x5a; bytes], ..request(v6) };
    let udp = |name, v6, restored| {
        let Ping { source, destination, .. } = request(v6);
        let frame = packet::udp((source, 40_000), (destination, 53), &[0; 64]);
        Case { name, frame, verdict: echo_verdict::ECHO_NOT_ECHO, limited: false, restored, target: None }
    };
    vec![
        reply("IPv4 reply", request(false), REPLY),
        reply("IPv6 reply", request(true), REPLY),
        Case { limited: true, ..reply("IPv4 reply, with --rate", request(false), None) },
        Case { limited: true, ..reply("IPv6 reply, with --rate", request(true), None) },
        reply("IPv4 reply, 1500 bytes", long(false, 1472), None),
        reply("IPv6 reply, 1500 bytes", long(true, 1452), None),
        udp("IPv4 UDP to the stack", false, false),
        udp("IPv6 UDP to the stack", true, false),
        udp("IPv4 UDP, behind restore", false, true),
    ]
}

pub fn run(quick: bool) {
    let rounds = if quick { 5 } else { 31 };
    println!(
        "The echo responder, one core, program only (BPF_PROG_TEST_RUN); median of {rounds} rounds of {REPEAT} runs each."
    );
    let cases = cases();
    let [mut empty, mut transmit, mut restoring, mut passing] = [const { Vec::new() }; 4];
    let mut times = vec![Vec::new(); cases.len()];
    for _ in 0..rounds {
        let (mut storage, mut restore_storage) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        let open = floor::FloorSkelBuilder::default().open(&mut storage).expect("the floor opens");
        let floors = open.load().expect("the floor loads");
        let program =
            |program: &libbpf_rs::ProgramMut<'_>| Program::from_fd(program.as_fd()).expect("a handle");
        let (floor_empty, floor_tx) = (program(&floors.progs.floor_empty), program(&floors.progs.floor_tx));
        let mut restorer = Restorer::new(&mut restore_storage);
        let unlimited = load(Duration::ZERO);
        // No run comes too early, but each has a bucket to ask.
        let limited = load(Duration::from_nanos(1));
        let pass = pass::load(None).expect("the program loads");

        let frame = request(false).frame();
        let nothing = cpu_nanoseconds(&floor_empty, &frame, REPEAT);
        empty.push(nothing);
        transmit.push(cpu_nanoseconds(&floor_tx, &frame, REPEAT));
        let restore = restorer.nanoseconds(None, &frame) - nothing;
        restoring.push(restore);
        for (case, times) in cases.iter().zip(&mut times) {
            let loaded = if case.limited { &limited } else { &unlimited };
            let before = count(loaded, case.verdict);
            times.push(if case.restored {
                restorer.nanoseconds(Some(&loaded.program), &case.frame) - restore
            } else {
                cpu_nanoseconds(&loaded.program, &case.frame, REPEAT)
            });
            let ended = count(loaded, case.verdict) - before;
            assert_eq!(ended, u64::from(REPEAT), "{}: not every run ended in {:?}", case.name, case.verdict);
        }
        passing.push(cpu_nanoseconds(&pass.program, &frame, REPEAT));
    }
    println!("Of runs with `restore` in front, what it costs is subtracted: {:.1} ns.\n", median(restoring));
    let mut lines =
        vec![Line::new("empty program", median(empty), None), Line::new(XDP_TX, median(transmit), None)];
    let measured = cases.into_iter().zip(times);
    lines.extend(measured.map(|(case, times)| Line::new(case.name, median(times), case.target)));
    lines.push(Line::new("lb pass", median(passing), None));
    print_beside("echo requests as `ping` sends them, 56 bytes of payload", "X XDP_TX", &lines);
}

/// The responder, knowing its interface.
fn load(source_interval: Duration) -> Datapath {
    let loaded = Datapath::load(&Settings { any: false, source_interval }, None).expect("the program loads");
    let view = View {
        mac: GATEWAY_MAC.into(),
        ttl: TTL,
        hop_limit: TTL,
        addresses: vec![OWN4.into(), OWN6.into()],
        broadcasts: vec![Ipv4Addr::new(192, 0, 2, 255)],
    };
    loaded.maps.set_view(&view).expect("the program learns of its interface");
    loaded
}

/// How many frames have ended so.
fn count(loaded: &Datapath, verdict: echo_verdict) -> u64 {
    let counts = stats::read(&loaded.maps.verdicts, VERDICTS.len()).expect("counters can be read");
    counts[verdict.0 as usize].packets
}
