//! Frames a second from one veth to another, through the balancer and through a bare redirect.
//!
//! A sender's frames, made in the kernel by BPF_PROG_TEST_RUN with live frames, come in on `eth1`; the program under
//! test sends them out on `eth2`, whose far end counts and drops them. All of it runs on one core, so a figure is
//! what the whole path costs, sender and receiver included.

use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::AsFd;

use ::lb::iflist::Listed;
use ::lb::kernel::interface::Interface;
use ::lb::kernel::pins::Root;
use ::lb::kernel::program::Program;
use ::lb::kernel::xdp::{Link, Mode};
use ::lb::lb::attach::{self, Replace, Request};
use ::lb::lb::config;
use ::lb::lb::datapath::Settings;
use ::lb::lb::skeleton::types::lb_verdict;
use ::lb::lb::{GROUP, datapath::Maps, stats::Stats};
use ::lb::output;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};

use crate::common::namespace::{Namespace, veth};
use crate::common::packet::{self, Ike};
use crate::live::{Receiver, Sender, set_port};
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

    let redirect = Program::from_fd(floors.progs.floor_redirect.as_fd()).expect("a handle");
    set_port(&path.middle, "eth2", &floors.maps.ports);
    let receiver = Receiver::new(&path.receiver, "in");
    // Frames a second that arrive of those sent.
    let measure = |frame: &[u8]| -> f64 {
        let (arrived, per_second) = receiver.measure(|| out.send(frame, FRAMES));
        assert!(arrived > u64::from(FRAMES) * 9 / 10, "only {arrived} of {FRAMES} frames arrived");
        per_second
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

/// Sends the handshake of `client` through the path.
fn establish(out: &Sender<'_>, back: &Sender<'_>, client: IpAddr) {
    out.send(&packet::ike(client, Ike::init(INITIATOR)), 1);
    back.send(&packet::ike_back(client, Ike::init_response(INITIATOR, RESPONDER)), 1);
    out.send(&packet::ike(client, Ike::auth(INITIATOR, RESPONDER)), 1);
}
