//! Echo replies a second, of the responder and of the kernel's own stack, side by side.
//!
//! Requests, made in the kernel by BPF_PROG_TEST_RUN with live frames, come in on `eth1`, whose far end counts and drops the replies.
//! All of it runs on one core, so a figure is what a request and its reply cost together, sender and receiver included.

use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::AsFd;

use ::lb::echo::attach::{self, Request};
use ::lb::echo::datapath::Maps;
use ::lb::echo::skeleton::types::echo_verdict;
use ::lb::echo::{GROUP, VERDICTS};
use ::lb::kernel::detach;
use ::lb::kernel::interface::Interface;
use ::lb::kernel::pins::Root;
use ::lb::kernel::program::Program;
use ::lb::kernel::xdp::{Link, Mode};
use ::lb::{output, stats};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};

use crate::common::namespace::{Namespace, veth};
use crate::common::packet::Ping;
use crate::echo::{OWN4, OWN6, PEER4, PEER6, request};
use crate::live::Receiver;
use crate::restore::Restorer;
use crate::{floor, median};

/// Requests of one measurement.
const REQUESTS: u32 = 300_000;

/// How many times the kernel's replies a second the responder's have to be, in native mode.
const TARGET: f64 = 2.0;

/// Who answers.
#[derive(Clone, Copy, PartialEq)]
enum Responder {
    /// Nobody: each frame goes back as it came.
    Reflector,
    Echo,
    Kernel,
}

const RESPONDERS: [(&str, Responder); 3] = [
    ("bare XDP_TX", Responder::Reflector),
    ("lb echo", Responder::Echo),
    ("kernel's stack", Responder::Kernel),
];

/// Two namespaces, with a veth between them.
struct Path {
    asking: Namespace,
    answering: Namespace,
}

impl Path {
    fn new() -> Self {
        let [asking, answering] = ["lb-bench-ask", "lb-bench-echo"].map(Namespace::new);
        veth((&asking, "out"), (&answering, "eth1"));
        // A veth takes redirected frames where its far end has GRO or an XDP program.
        answering.exec(&["ethtool", "-K", "eth1", "gro", "on"]);
        // The far end drops everything, so it cannot say what its MAC is.
        let path = Self { asking, answering };
        let mac = path.macs().0.map(|byte| format!("{byte:02x}")).join(":");
        for (own, peer, bits) in
            [(IpAddr::from(OWN4), IpAddr::from(PEER4), 24), (IpAddr::from(OWN6), IpAddr::from(PEER6), 64)]
        {
            path.answering.ip(&["address", "add", &format!("{own}/{bits}"), "dev", "eth1"]);
            path.answering.ip(&["neighbour", "add", &peer.to_string(), "lladdr", &mac, "dev", "eth1"]);
        }
        path
    }

    /// The MACs of `out` and of `eth1`.
    fn macs(&self) -> ([u8; 6], [u8; 6]) {
        let mac = |namespace: &Namespace, interface: &'static str| {
            let mac = namespace.within(|| Interface::find(interface).and_then(|found| found.mac()));
            mac.expect("a veth has a MAC").into_array()
        };
        (mac(&self.asking, "out"), mac(&self.answering, "eth1"))
    }

    /// Measures while somebody answers, and makes sure that the replies are the responder's, if they are to be.
    fn answered_by(
        &self,
        responder: Responder,
        mode: Mode,
        measure: impl FnOnce() -> (u64, f64),
    ) -> (u64, f64) {
        match responder {
            Responder::Kernel => measure(),
            Responder::Reflector => {
                let mut storage = MaybeUninit::uninit();
                let open = floor::FloorSkelBuilder::default().open(&mut storage).expect("the floor opens");
                let floors = open.load().expect("the floor loads");
                let program = Program::from_fd(floors.progs.floor_tx.as_fd()).expect("a handle");
                let _link = self.answering.within(|| {
                    let interface = Interface::find("eth1").expect("an interface");
                    Link::attach(&program, &interface, mode).expect("the reflector attaches")
                });
                measure()
            }
            Responder::Echo => {
                let root = Root::new(format!("/sys/fs/bpf/lb-bench-{}", std::process::id()));
                let name = "bench".to_owned();
                let request = Request {
                    name: Some(name.clone()),
                    dev: "eth1".into(),
                    mode,
                    netns: Some(self.answering.name().to_owned()),
                    replace: false,
                    any: false,
                    rate: None,
                    addresses: Vec::new(),
                    with_peer: false,
                };
                attach::attach(&root, &request).expect("the responder attaches");
                let measured = measure();
                let maps = Maps::open(&root.instance(GROUP, &name).expect("a name")).expect("its maps");
                let counts = stats::read(&maps.verdicts, VERDICTS.len()).expect("counters can be read");
                let replies = counts[echo_verdict::ECHO_REPLY.0 as usize].packets;
                // The kernel has a word or two of its own to say, as on IPv6 groups.
                assert!(
                    replies + 100 >= measured.0,
                    "{replies} of {} replies were the responder's",
                    measured.0
                );
                detach::detach(&root, GROUP, &name).expect("the responder detaches");
                measured
            }
        }
    }
}

pub fn run(quick: bool) {
    let rounds = if quick { 3 } else { 7 };
    println!(
        "One core, replies a second through veth, sender and receiver included; median of {rounds} rounds.\n"
    );
    let path = Path::new();
    let (from, to) = path.macs();
    let receiver = Receiver::new(&path.asking, "out");
    let mut storage = MaybeUninit::uninit();
    let mut sender = Restorer::new(&mut storage);
    for mode in [Mode::Drv, Mode::Skb] {
        for v6 in [false, true] {
            let frame = Ping { to, from, ..request(v6) }.frame();
            let mut figures = RESPONDERS.map(|_| Vec::new());
            // Of all rounds together.
            let mut replies = RESPONDERS.map(|_| 0);
            for _ in 0..rounds {
                for (index, (_, responder)) in RESPONDERS.into_iter().enumerate() {
                    let (arrived, per_second) = path.answered_by(responder, mode, || {
                        receiver.measure(|| sender.send(&path.asking, "out", &frame, REQUESTS))
                    });
                    assert!(
                        arrived > u64::from(REQUESTS) / 2,
                        "only {arrived} of {REQUESTS} replies arrived"
                    );
                    figures[index].push(per_second);
                    replies[index] += arrived;
                }
            }
            print(
                &format!("IPv{}, {mode} mode", if v6 { 6 } else { 4 }),
                mode,
                figures.map(median),
                replies.map(|count| 1.0 - count as f64 / (f64::from(REQUESTS) * rounds as f64)),
            );
        }
    }
}

fn print(title: &str, mode: Mode, figures: [f64; 3], lost: [f64; 3]) {
    let [.., kernel] = figures;
    let rows = RESPONDERS.iter().zip(figures.iter().zip(lost)).map(|((name, responder), (figure, lost))| {
        let ratio = figure / kernel;
        let (target, met) = if *responder == Responder::Echo && mode == Mode::Drv {
            let met = if ratio >= TARGET { "met" } else { "missed" };
            (format!("{TARGET} x kernel's stack"), format!("{ratio:.2}, {met}"))
        } else {
            (String::new(), String::new())
        };
        let lost = format!("{:.2}", 100.0 * lost.max(0.0));
        vec![(*name).into(), format!("{:.2}", figure / 1e6), lost, format!("{ratio:.2}"), target, met]
    });
    println!("{title}");
    let columns = ["", "MILLION/S", "LOST %", "X KERNEL", "TARGET", ""];
    println!("{}\n", output::table(&columns, &[1, 2, 3], rows));
}
