//! Frames a second from one veth to another, through the balancer and through a bare redirect.
//!
//! A sender's frames, made in the kernel by BPF_PROG_TEST_RUN with live frames, come in on `eth1`; the program under
//! test sends them out on `eth2`, whose far end counts and drops them. All of it runs on one core, so a figure is
//! what the whole path costs, sender and receiver included.

use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use ::lb::iflist::Listed;
use ::lb::kernel::interface::Interface;
use ::lb::kernel::pins::Root;
use ::lb::kernel::program::{Program, RunOptions};
use ::lb::kernel::xdp::{Link, Mode};
use ::lb::lb::attach::{self, Replace, Request};
use ::lb::lb::config;
use ::lb::lb::datapath::Settings;
use ::lb::lb::skeleton::types::lb_verdict;
use ::lb::lb::{GROUP, datapath::Maps, stats::Stats};
use ::lb::output;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle};

use crate::common::namespace::{Namespace, veth};
use crate::common::packet::{self, Ike};
use crate::{INITIATOR, RESPONDER, floor, median};

/// Frames of one measurement.
const FRAMES: u32 = 500_000;

/// The namespaces, and the balancer's interfaces in the middle one.
struct Path {
    sender: Namespace,
    middle: Namespace,
    receiver: Namespace,
}

impl Path {
    fn new() -> Self {
        let [sender, middle, receiver] = ["lb-bench-tx", "lb-bench-lb", "lb-bench-rx"].map(Namespace::new);
        veth((&sender, "out"), (&middle, "eth1"));
        veth((&middle, "eth2"), (&receiver, "in"));
        // A veth takes redirected frames where its far end has GRO or an XDP program.
        middle.exec(&["ethtool", "-K", "eth1", "gro", "on"]);
        Self { sender, middle, receiver }
    }
}

pub fn run(quick: bool) {
    let rounds = if quick { 3 } else { 7 };
    println!(
        "One core, frames a second through veth, sender and receiver included; median of {rounds} rounds.\n"
    );
    let path = Path::new();
    let mut storage = MaybeUninit::uninit();
    let open = floor::FloorSkelBuilder::default().open(&mut storage).expect("the floor opens");
    let floors = open.load().expect("the floor loads");
    let (out, back) = (Sender::new(&path.sender, "out"), Sender::new(&path.receiver, "in"));

    let count = Program::from_fd(floors.progs.floor_count.as_fd()).expect("a handle");
    let redirect = Program::from_fd(floors.progs.floor_redirect.as_fd()).expect("a handle");
    let _receiver = path.receiver.within(|| {
        let interface = Interface::find("in").expect("the receiver's interface");
        Link::attach(&count, &interface, Mode::Drv).expect("the receiver counts")
    });
    set_port(&path.middle, "eth2", &floors.maps.ports);

    let arrived = || -> u64 {
        let values = floors.maps.arrived.lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY);
        let values = values.expect("counters can be read").expect("an array has its entries");
        values.iter().map(|bytes| u64::from_ne_bytes(bytes[..8].try_into().expect("a counter"))).sum()
    };
    // Frames a second that arrive of those sent.
    let measure = |frame: &[u8]| -> f64 {
        let before = arrived();
        let start = Instant::now();
        out.send(frame, FRAMES);
        let mut last = arrived();
        let mut end = Instant::now();
        // Frames may still be under way when the sender is done.
        loop {
            std::thread::sleep(Duration::from_millis(5));
            let now = arrived();
            if now == last {
                break;
            }
            (last, end) = (now, Instant::now());
        }
        let counted = last - before;
        assert!(counted > u64::from(FRAMES) * 9 / 10, "only {counted} of {FRAMES} frames arrived");
        counted as f64 / (end - start).as_secs_f64()
    };

    for mode in [Mode::Drv, Mode::Skb] {
        let client = packet::client(1, false);
        let esp = packet::esp(client, 7);
        let balanced = || {
            let root = Root::new(format!("/sys/fs/bpf/lb-bench-{}", std::process::id()));
            let name = "bench".to_owned();
            let backend = Listed { name: "eth2".into(), mac: Some(packet::backend_mac(0).into()) };
            let request = Request {
                name: name.clone(),
                ingress: vec!["eth1".into()],
                backends: config::one_behind_each(&[backend]),
                mode,
                settings: Settings { netns: Some(path.middle.name().to_owned()), ..Settings::default() },
                replace: Replace::No,
            };
            attach::attach(&root, &request).expect("the balancer attaches");
            let maps = Maps::open(&root.instance(GROUP, &name).expect("a name")).expect("its maps");
            establish(&out, &back, client);
            let figure = measure(&esp);
            let sessions = Stats::read(&maps).expect("counters").verdict(lb_verdict::LB_SESSION);
            assert!(sessions.packets >= u64::from(FRAMES) * 9 / 10, "the frames were not those of a session");
            attach::detach(&root, &name).expect("the balancer detaches");
            figure
        };
        let bare = || {
            let _link = path.middle.within(|| {
                let interface = Interface::find("eth1").expect("an interface");
                Link::attach(&redirect, &interface, mode).expect("the redirect attaches")
            });
            measure(&esp)
        };
        let mut figures = [Vec::new(), Vec::new()];
        for _ in 0..rounds {
            figures[0].push(bare());
            figures[1].push(balanced());
        }
        let [bare, balanced] = figures.map(median);
        let rows = [("bare bpf_redirect_map", bare), ("established ESP", balanced)].map(|(name, figure)| {
            vec![name.into(), format!("{:.2}", figure / 1e6), format!("{:.2}", figure / bare)]
        });
        println!("{mode} mode");
        println!("{}\n", output::table(&["", "MILLION/S", "X REDIRECT"], &[1, 2], rows));
    }
}

/// Points a program that redirects at an interface.
fn set_port(namespace: &Namespace, interface: &str, map: &libbpf_rs::MapMut<'_>) {
    // A thread of its own needs a handle of its own.
    let map = MapHandle::try_from(map).expect("a handle");
    namespace.within(move || {
        let index = Interface::find(interface).expect("an interface").index;
        map.update(&0u32.to_ne_bytes(), &index.to_ne_bytes(), MapFlags::ANY).expect("a port can be set");
    });
}

/// Sends frames out of an interface, made by the kernel itself.
struct Sender<'a> {
    namespace: &'a Namespace,
    redirect: Program,
}

impl<'a> Sender<'a> {
    fn new(namespace: &'a Namespace, interface: &str) -> Self {
        let mut storage = MaybeUninit::uninit();
        let open = floor::FloorSkelBuilder::default().open(&mut storage).expect("the floor opens");
        let skeleton = open.load().expect("the floor loads");
        set_port(namespace, interface, &skeleton.maps.ports);
        // The program holds its maps when the skeleton has gone.
        Self {
            namespace,
            redirect: Program::from_fd(skeleton.progs.floor_redirect.as_fd()).expect("a handle"),
        }
    }

    fn send(&self, frame: &[u8], times: u32) {
        let options = RunOptions { repeat: times, live: true, ..Default::default() };
        self.namespace.within(|| self.redirect.run(frame, options)).expect("frames are sent");
    }
}

/// Sends the handshake of `client` through the path.
fn establish(out: &Sender<'_>, back: &Sender<'_>, client: IpAddr) {
    out.send(&packet::ike(client, Ike::init(INITIATOR)), 1);
    back.send(&packet::ike_back(client, Ike::init_response(INITIATOR, RESPONDER)), 1);
    out.send(&packet::ike(client, Ike::auth(INITIATOR, RESPONDER)), 1);
}
