//! What a packet costs in the datapath, in nanoseconds and against two floors.
//!
//! The floors are an empty program, and a program that does nothing but `bpf_redirect_map`: the cheapest thing
//! that sends a frame to another interface. All numbers of one line of output come from one run, a round at a time over
//! all cases, and the median of the rounds is shown: ratios hold on a noisy machine, nanoseconds less so.
//!
//! `cargo bench` runs everything; `cargo bench -- --quick` fewer rounds.

#[path = "../../tests/common/mod.rs"]
mod common;
mod end_to_end;

use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use ::lb::kernel::program::{Program, RunOptions};
use ::lb::lb::datapath::{Datapath, Settings};
use ::lb::lb::session::Sessions;
use ::lb::lb::skeleton::types::lb_verdict;
use ::lb::lb::stats;
use ::lb::output;
use common::datapath;
use common::packet::{self, Ike};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

mod floor {
    include!(concat!(env!("OUT_DIR"), "/floor.skel.rs"));
}

#[allow(clippy::all)]
mod walk {
    include!(concat!(env!("OUT_DIR"), "/walk.skel.rs"));
}

const INITIATOR: u64 = 0x1111_2222_3333_4444;
const RESPONDER: u64 = 0x5555_6666_7777_8888;

/// Runs of a program in one measurement.
const REPEAT: u32 = 200_000;

fn main() {
    // Cargo passes options of its own, such as --bench.
    let quick = std::env::args().any(|argument| argument == "--quick");
    let rounds = if quick { 3 } else { 11 };
    libbpf_rs::set_print(None);
    pin_to_one_core();
    println!(
        "One core, program only (BPF_PROG_TEST_RUN); median of {rounds} rounds of {REPEAT} runs each.\n"
    );

    let mut storage = MaybeUninit::uninit();
    let open = floor::FloorSkelBuilder::default().open(&mut storage).expect("the floor opens");
    let floors = open.load().expect("the floor loads");
    let loopback = 1u32.to_ne_bytes();
    floors.maps.ports.update(&0u32.to_ne_bytes(), &loopback, MapFlags::ANY).expect("a port can be set");
    let empty = Program::from_fd(floors.progs.floor_empty.as_fd()).expect("a handle");
    let redirect = Program::from_fd(floors.progs.floor_redirect.as_fd()).expect("a handle");

    for v6 in [false, true] {
        single_client(v6, rounds, &empty, &redirect);
    }
    for v6 in [false, true] {
        many_clients(v6, rounds, &empty, &redirect);
    }
    end_to_end::run(quick);
}

/// Keeps this process, and the interrupts that it causes, on the first core that it may use.
fn pin_to_one_core() {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).expect("the process has cores");
    let first =
        (0..CpuSet::count()).find(|&core| allowed.is_set(core) == Ok(true)).expect("one core at least");
    let mut one = CpuSet::new();
    one.set(first).expect("a core's number fits");
    sched_setaffinity(this, &one).expect("a process may give up cores");
}

/// A program on one packet, again and again.
struct Case<'a> {
    name: &'a str,
    program: &'a Program,
    packet: Vec<u8>,
    /// The verdict that the packet must have, or the benchmark measures something else than it says.
    verdict: Option<lb_verdict>,
    /// The most that it may cost, as a multiple of the empty program or of the redirect.
    target: Option<(Floor, f64)>,
}

#[derive(Clone, Copy)]
enum Floor {
    Empty,
    Redirect,
}

fn nanoseconds(program: &Program, packet: &[u8], repeat: u32) -> f64 {
    let options = RunOptions { repeat, ..Default::default() };
    program.run(packet, options).expect("the program runs").duration.as_nanos() as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn single_client(v6: bool, rounds: usize, empty: &Program, redirect: &Program) {
    let loaded = datapath::datapath(&Settings::default(), 4);
    let (known, unknown) = (packet::client(1, v6), packet::client(2, v6));
    establish(&loaded, known);
    let esp = packet::esp(known, 7);
    let cases = [
        Case { name: "empty program", program: empty, packet: esp.clone(), verdict: None, target: None },
        Case {
            name: "bare bpf_redirect_map",
            program: redirect,
            packet: esp.clone(),
            verdict: None,
            target: None,
        },
        Case {
            name: "established ESP",
            program: &loaded.client,
            packet: esp,
            verdict: Some(lb_verdict::LB_SESSION),
            target: Some((Floor::Redirect, 2.0)),
        },
        Case {
            name: "established IKE",
            program: &loaded.client,
            packet: packet::ike(known, Ike::auth(INITIATOR, RESPONDER)),
            verdict: Some(lb_verdict::LB_SESSION),
            target: Some((Floor::Redirect, 2.0)),
        },
        Case {
            name: "established ESP in UDP",
            program: &loaded.client,
            packet: packet::esp_in_udp(known, 4500, 7),
            verdict: Some(lb_verdict::LB_SESSION),
            target: Some((Floor::Redirect, 2.0)),
        },
        Case {
            name: "unknown ESP (stateless)",
            program: &loaded.client,
            packet: packet::esp(unknown, 7),
            verdict: Some(lb_verdict::LB_STATELESS),
            target: Some((Floor::Redirect, 1.8)),
        },
        Case {
            name: "dropped TCP",
            program: &loaded.client,
            packet: packet::tcp(known, packet::vip(known), 80),
            verdict: Some(lb_verdict::LB_OTHER_DROPPED),
            target: Some((Floor::Empty, 1.2)),
        },
        Case {
            name: "return path ESP",
            program: &loaded.backend,
            packet: packet::esp_back(known, 9),
            verdict: Some(lb_verdict::LB_RETURNED),
            target: Some((Floor::Redirect, 2.0)),
        },
    ];

    let mut times = vec![Vec::new(); cases.len()];
    for _ in 0..rounds {
        for (case, times) in cases.iter().zip(&mut times) {
            let before = case.verdict.map(|verdict| count(&loaded, verdict));
            times.push(nanoseconds(case.program, &case.packet, REPEAT));
            if let (Some(verdict), Some(before)) = (case.verdict, before) {
                let counted = count(&loaded, verdict) - before;
                assert_eq!(counted, u64::from(REPEAT), "{}: the verdict is another", case.name);
            }
        }
    }
    let times: Vec<f64> = times.into_iter().map(median).collect();
    let rows =
        cases.iter().zip(&times).map(|(case, &time)| row(case.name, time, times[0], times[1], case.target));
    print(&format!("IPv{}, one session", if v6 { 6 } else { 4 }), rows);
}

fn row(name: &str, time: f64, empty: f64, redirect: f64, target: Option<(Floor, f64)>) -> Vec<String> {
    let (target, met) = match target {
        None => (String::new(), String::new()),
        Some((floor, most)) => {
            let (base, of) = match floor {
                Floor::Empty => (empty, "empty"),
                Floor::Redirect => (redirect, "redirect"),
            };
            (format!("{most} x {of}"), if time <= most * base { "met".into() } else { "missed".into() })
        }
    };
    vec![
        name.into(),
        format!("{time:.1}"),
        format!("{:.2}", time / empty),
        format!("{:.2}", time / redirect),
        target,
        met,
    ]
}

fn print(title: &str, rows: impl Iterator<Item = Vec<String>>) {
    println!("{title}");
    println!("{}\n", output::table(&["", "NS", "X EMPTY", "X REDIRECT", "TARGET", ""], &[1, 2, 3], rows));
}

fn count(loaded: &Datapath, verdict: lb_verdict) -> u64 {
    let position =
        stats::VERDICTS.iter().position(|(other, ..)| *other == verdict).expect("a verdict is listed");
    stats::read_verdicts(&loaded.maps).expect("counters can be read")[position].packets
}

/// Goes through the handshake that proves a client.
fn establish(loaded: &Datapath, client: IpAddr) {
    let run = |program: &Program, packet: Vec<u8>| {
        program.run(&packet, RunOptions::default()).expect("the program runs")
    };
    run(&loaded.client, packet::ike(client, Ike::init(INITIATOR)));
    run(&loaded.backend, packet::ike_back(client, Ike::init_response(INITIATOR, RESPONDER)));
    run(&loaded.client, packet::ike(client, Ike::auth(INITIATOR, RESPONDER)));
    assert_eq!(Sessions::open(&loaded.maps).expect("sessions").established(), 1);
}

/// Where the four bytes of an address that tell clients apart are in a frame without VLAN tags.
fn address_offset(v6: bool, destination: bool) -> u32 {
    match (v6, destination) {
        (false, false) => 14 + 12,
        (false, true) => 14 + 16,
        (true, false) => 14 + 8 + 4,
        (true, true) => 14 + 24 + 4,
    }
}

/// The program that gives each run another client, in front of the program under test.
struct Walker<'obj> {
    skeleton: walk::WalkSkel<'obj>,
    program: Program,
}

impl Walker<'_> {
    /// Puts `program` behind the walk over `clients` clients.
    fn aim(&mut self, program: &Program, v6: bool, destination: bool, clients: u32, random: bool) {
        let fd = program.as_fd().as_raw_fd().to_ne_bytes();
        self.skeleton
            .maps
            .next
            .update(&0u32.to_ne_bytes(), &fd, MapFlags::ANY)
            .expect("a program can follow");
        let state = self.skeleton.maps.bss_data.as_deref_mut().expect("the walk has variables");
        state.walk_offset = address_offset(v6, destination);
        state.walk_base = match packet::client(0, v6) {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => (u128::from(v6) >> 64) as u32,
        };
        state.walk_clients = clients;
        state.walk_random = random.into();
        if !random {
            state.walk_steps = 0;
        }
    }
}

fn many_clients(v6: bool, rounds: usize, empty: &Program, redirect: &Program) {
    let mut storage = MaybeUninit::uninit();
    let open = walk::WalkSkelBuilder::default().open(&mut storage).expect("the walk opens");
    let skeleton = open.load().expect("the walk loads");
    let program = Program::from_fd(skeleton.progs.walk.as_fd()).expect("a handle");
    let mut walker = Walker { skeleton, program };

    let mut rows = Vec::new();
    for clients in [1u32, 1_000, 100_000, 1_000_000] {
        let settings = Settings {
            // Room for the clients and for the new ones that are measured.
            max_sessions: 2 * clients + 100_000,
            start_rate: 10_000_000,
            ..Settings::default()
        };
        let loaded = datapath::datapath(&settings, 4);
        let some = packet::client(0, v6);
        let init = packet::ike(some, Ike::init(INITIATOR));
        let answer = packet::ike_back(some, Ike::init_response(INITIATOR, RESPONDER));
        let auth = packet::ike(some, Ike::auth(INITIATOR, RESPONDER));
        let (esp, back) = (packet::esp(some, 7), packet::esp_back(some, 9));

        for (program, packet, destination) in
            [(&loaded.client, &init, false), (&loaded.backend, &answer, true), (&loaded.client, &auth, false)]
        {
            walker.aim(program, v6, destination, clients, false);
            nanoseconds(&walker.program, packet, clients);
        }
        let established = Sessions::open(&loaded.maps).expect("sessions").established();
        assert_eq!(established, u64::from(clients), "not every client has a session");

        // A new client for each run, beyond those that have a session; half of the room in all.
        let new_per_round = 50_000 / rounds as u32;
        let mut next_new = clients;
        let mut times = vec![Vec::new(); 6];
        for _ in 0..rounds {
            times[0].push(nanoseconds(empty, &esp, REPEAT));
            times[1].push(nanoseconds(redirect, &esp, REPEAT));
            walker.aim(empty, v6, false, clients, true);
            // What the walk adds; it is no part of any figure.
            let walk = nanoseconds(&walker.program, &esp, REPEAT) - times[0].last().expect("a time");
            for (number, program, packet, destination, limit) in [
                (2, &loaded.client, &esp, false, REPEAT),
                (3, &loaded.client, &auth, false, REPEAT),
                (4, &loaded.backend, &back, true, REPEAT),
            ] {
                walker.aim(program, v6, destination, clients, true);
                times[number].push(nanoseconds(&walker.program, packet, limit) - walk);
            }
            walker.aim(&loaded.client, v6, false, u32::MAX, false);
            walker.skeleton.maps.bss_data.as_deref_mut().expect("variables").walk_steps = next_new.into();
            let new_before = count(&loaded, lb_verdict::LB_NEW);
            times[5].push(nanoseconds(&walker.program, &init, new_per_round) - walk);
            next_new += new_per_round;
            let new = count(&loaded, lb_verdict::LB_NEW) - new_before;
            assert_eq!(new, u64::from(new_per_round), "not every start got a session");
        }
        let times: Vec<f64> = times.into_iter().map(median).collect();
        let most = if clients <= 1_000 { Some(2.0) } else { (clients >= 1_000_000).then_some(11.0) };
        let target = most.map(|most| (Floor::Redirect, most));
        for (name, number, target) in [
            ("established ESP", 2, target),
            ("established IKE", 3, target),
            ("return path ESP", 4, target),
            ("new session", 5, Some((Floor::Redirect, 18.0))),
        ] {
            rows.push(row(&format!("{name}, {clients} sessions"), times[number], times[0], times[1], target));
        }
    }
    print(
        &format!("IPv{}, random clients out of all that have a session", if v6 { 6 } else { 4 }),
        rows.into_iter(),
    );
}
