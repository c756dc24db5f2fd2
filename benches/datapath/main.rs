//! What a packet costs in the datapaths, in nanoseconds and against two floors.
//!
//! The floors are an empty program, and the cheapest one that sends a frame: one that does nothing but `bpf_redirect_map` for the
//! balancer, one that returns `XDP_TX` for the echo responder. All numbers of one line of output come from one run, a round at a time over
//! all cases, and the median of the rounds is shown: ratios hold on a noisy machine, nanoseconds less so.
//!
//! `cargo bench` runs everything; `cargo bench -- --quick` fewer rounds and sizes; `cargo bench -- lb` or `-- echo` one datapath.

#[path = "../../tests/common/mod.rs"]
mod common;
mod echo;
mod echo_end_to_end;
mod end_to_end;
mod live;
mod many_clients;
mod one_client;
mod restore;
mod scale;

use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use ::lb::kernel::program::{Program, RunOptions};
use ::lb::lb::backend::{self, NewBackend};
use ::lb::lb::datapath::{Affinity, Datapath, Settings};
use ::lb::lb::skeleton::types::lb_verdict;
use ::lb::lb::stats;
use ::lb::output;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

mod floor {
    include!(concat!(env!("OUT_DIR"), "/floor.skel.rs"));
}

const INITIATOR: u64 = 0x1111_2222_3333_4444;
/// Its top eight bits are the label of the first backend.
const RESPONDER: u64 = 0x0055_6666_7777_8888;

/// How many bits of SPIs name a backend, where any do. All measured packets are of the first one, whose label is 0.
const LABEL_BITS: u32 = 8;

/// Runs of a program in one measurement.
const REPEAT: u32 = 200_000;

/// The datapaths that can be measured apart, each by its command.
const DATAPATHS: [&str; 2] = ["lb", "echo"];

fn main() {
    // Cargo passes options of its own, such as --bench.
    let (options, wanted): (Vec<_>, Vec<_>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
    if let Some(unknown) = wanted.iter().find(|name| !DATAPATHS.contains(&name.as_str())) {
        eprintln!("there is no datapath {unknown} to measure, only {}", DATAPATHS.join(" and "));
        std::process::exit(2);
    }
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|other| other == name);
    let quick = options.iter().any(|option| option == "--quick");
    libbpf_rs::set_print(None);
    pin_to_one_core();
    if wants("lb") {
        balancing(quick);
    }
    if wants("echo") {
        echo::run(quick);
        echo_end_to_end::run(quick);
    }
}

fn balancing(quick: bool) {
    let rounds = if quick { 3 } else { 11 };
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

    let bench = Bench { empty, redirect, rounds, quick };
    for v6 in [false, true] {
        one_client::run(&bench, v6);
    }
    for v6 in if quick { &[false][..] } else { &[false, true] } {
        many_clients::run(&bench, Affinity::Address, *v6);
    }
    many_clients::run(&bench, Affinity::Tunnel, false);
    scale::backends(&bench);
    scale::flood(&bench);
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

/// What all tables of the balancer are measured with.
struct Bench {
    empty: Program,
    redirect: Program,
    rounds: usize,
    quick: bool,
}

/// What a line is held against: the most that it may cost is a multiple of that line.
#[derive(Clone, Copy)]
enum Base {
    Empty,
    Redirect,
    /// Another line of the same table, by its name.
    Line(&'static str),
}

/// A line of a table: its name, its nanoseconds, and its target.
struct Line {
    name: String,
    time: f64,
    target: Option<(Base, f64)>,
}

impl Line {
    fn new(name: impl Into<String>, time: f64, target: Option<(Base, f64)>) -> Self {
        Self { name: name.into(), time, target }
    }
}

/// Prints lines, of which the first two are the empty program and the bare redirect.
fn print(title: &str, lines: &[Line]) {
    print_beside(title, "X REDIRECT", lines);
}

/// Prints lines, of which the first two are the empty program and the cheapest one that sends a frame; `column` says how often
/// a line costs what the second one does.
fn print_beside(title: &str, column: &str, lines: &[Line]) {
    let (empty, sending) = (lines[0].time, lines[1].time);
    let row = |line: &Line| {
        let (target, met) = match line.target {
            None => (String::new(), String::new()),
            Some((base, most)) => {
                let (base, of) = match base {
                    Base::Empty => (empty, "empty"),
                    Base::Redirect => (sending, "redirect"),
                    Base::Line(name) => {
                        let base = lines.iter().find(|other| other.name == name).expect("the line is there");
                        (base.time, name)
                    }
                };
                let ratio = line.time / base;
                let met = if ratio <= most { "met" } else { "missed" };
                (format!("{most} x {of}"), format!("{ratio:.2}, {met}"))
            }
        };
        vec![
            line.name.clone(),
            format!("{:.1}", line.time),
            format!("{:.2}", line.time / empty),
            format!("{:.2}", line.time / sending),
            target,
            met,
        ]
    };
    println!("{title}");
    let columns = ["", "NS", "X EMPTY", column, "TARGET", ""];
    println!("{}\n", output::table(&columns, &[1, 2, 3], lines.iter().map(row)));
}

fn nanoseconds(program: &Program, packet: &[u8], repeat: u32) -> f64 {
    let options = RunOptions { repeat, ..Default::default() };
    program.run(packet, options).expect("the program runs").duration.as_nanos() as f64
}

/// Nanoseconds of this thread's own time, to fractions of one, where the kernel says how long a run took in whole ones.
fn cpu_nanoseconds(program: &Program, packet: &[u8], repeat: u32) -> f64 {
    let now = || {
        let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a thread has a clock");
        time.tv_sec() as f64 * 1e9 + time.tv_nsec() as f64
    };
    let start = now();
    nanoseconds(program, packet, repeat);
    (now() - start) / f64::from(repeat)
}

/// The kernel's own time of a run; all runs have to end in this verdict, or something else is measured than is said.
fn nanoseconds_of(
    loaded: &Datapath,
    verdict: lb_verdict,
    program: &Program,
    packet: &[u8],
    repeat: u32,
) -> f64 {
    let before = count(loaded, verdict);
    let time = nanoseconds(program, packet, repeat);
    assert_eq!(count(loaded, verdict) - before, u64::from(repeat), "not every run ended in {verdict:?}");
    time
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The programs with so many backends, each behind an interface of its own. Where SPIs have labels, a backend's is its number.
fn balancer(settings: &Settings, backends: u16) -> Datapath {
    /// The loopback interface: nothing is sent in a test run.
    const LOOPBACK: u32 = 1;
    let loaded = Datapath::load(settings).expect("the programs load");
    let new = (0..backends).map(|index| {
        let [high, low] = index.to_be_bytes();
        NewBackend {
            name: format!("eth{}", index + 2),
            port: index.into(),
            mac: Some([0xaa, 0xbb, 0xcc, 0, high, low + 1].into()),
            label: (settings.spi_shard > 0).then_some(index.into()),
            ..NewBackend::default()
        }
    });
    backend::install(&loaded.maps, &new.collect::<Vec<_>>()).expect("the backends can be set up");
    for port in 0..backends.into() {
        loaded.maps.egress_ports.set(&port, &LOOPBACK).expect("a port can be set");
    }
    loaded.maps.ingress_ports.set(&0, &LOOPBACK).expect("a port can be set");
    loaded
}

fn count(loaded: &Datapath, verdict: lb_verdict) -> u64 {
    let position =
        stats::VERDICTS.iter().position(|(other, ..)| *other == verdict).expect("a verdict is listed");
    stats::read_verdicts(&loaded.maps).expect("counters can be read")[position].packets
}
