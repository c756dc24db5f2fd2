//! Random clients out of many, so that no packet meets a session that the caches hold, and starts of new ones.

use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use ::lb::kernel::program::Program;
use ::lb::lb::datapath::{Affinity, Datapath, Settings};
use ::lb::lb::session::Sessions;
use ::lb::lb::skeleton::types::lb_verdict;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags};

use crate::common::packet::{self, Ike};
use crate::{Base, Bench, INITIATOR, Line, REPEAT, RESPONDER, balancer, count, median, nanoseconds};

#[allow(clippy::all)]
mod walk {
    include!(concat!(env!("OUT_DIR"), "/walk.skel.rs"));
}

/// A packet of which the walk makes one for each client: where the four bytes of the client's address are, and where
/// those of an SPI are if that is the client's own too; 0 is nowhere.
pub struct Template {
    frame: Vec<u8>,
    address: u32,
    spi: u32,
}

impl Template {
    /// The packet of some client.
    pub fn frame(&self) -> &[u8] {
        &self.frame
    }
}

/// Every packet that a client is measured by.
pub struct Templates {
    pub init: Template,
    pub answer: Template,
    pub auth: Template,
    pub auth_nat: Template,
    pub esp: Template,
    pub in_udp: Template,
    pub back: Template,
}

impl Templates {
    /// With an initiator SPI for each client where `affinity` tells clients apart by that.
    pub fn new(affinity: Affinity, v6: bool) -> Self {
        let some = packet::client(0, v6);
        let plain =
            |frame: Vec<u8>, destination| Template { address: address_at(v6, destination), spi: 0, frame };
        // The lower half of the SPI, behind the header of UDP and `marker` bytes.
        let ike = |frame: Vec<u8>, destination, marker: u32| {
            let spi = packet::l4_at(&frame) as u32 + 8 + marker + 4;
            let spi = if affinity == Affinity::Tunnel { spi } else { 0 };
            Template { spi, ..plain(frame, destination) }
        };
        Self {
            init: ike(packet::ike(some, Ike::init(INITIATOR)), false, 0),
            answer: ike(packet::ike_back(some, Ike::init_response(INITIATOR, RESPONDER)), true, 0),
            auth: ike(packet::ike(some, Ike::auth(INITIATOR, RESPONDER)), false, 0),
            auth_nat: ike(packet::ike_nat(some, 4500, Ike::auth(INITIATOR, RESPONDER)), false, 4),
            esp: plain(packet::esp(some, 0x1007), false),
            in_udp: plain(packet::esp_in_udp(some, 4500, 0x1007), false),
            back: plain(packet::esp_back(some, 0x1009), true),
        }
    }
}

/// Where the four bytes of an address that tell clients apart are in a frame without VLAN tags.
fn address_at(v6: bool, destination: bool) -> u32 {
    match (v6, destination) {
        (false, false) => 14 + 12,
        (false, true) => 14 + 16,
        (true, false) => 14 + 8 + 4,
        (true, true) => 14 + 24 + 4,
    }
}

/// The program that gives each run another client, in front of the program under test.
pub struct Walker<'obj> {
    skeleton: walk::WalkSkel<'obj>,
    program: Program,
    base: u32,
}

impl<'obj> Walker<'obj> {
    pub fn new(storage: &'obj mut MaybeUninit<libbpf_rs::OpenObject>, v6: bool) -> Self {
        let open = walk::WalkSkelBuilder::default().open(storage).expect("the walk opens");
        let skeleton = open.load().expect("the walk loads");
        let program = Program::from_fd(skeleton.progs.walk.as_fd()).expect("a handle");
        let base = match packet::client(0, v6) {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => (u128::from(v6) >> 64) as u32,
        };
        Self { skeleton, program, base }
    }

    fn aim(&mut self, program: &Program, template: &Template, clients: u32, random: bool) {
        let fd = program.as_fd().as_raw_fd().to_ne_bytes();
        let next = &self.skeleton.maps.next;
        next.update(&0u32.to_ne_bytes(), &fd, MapFlags::ANY).expect("a program can follow");
        let state = self.skeleton.maps.bss_data.as_deref_mut().expect("the walk has variables");
        (state.walk_offset, state.walk_also) = (template.address, template.spi);
        state.walk_base = self.base;
        state.walk_clients = clients;
        state.walk_random = random.into();
    }

    /// Nanoseconds of a run, with a client of the first `clients` at random each time.
    pub fn random(&mut self, program: &Program, template: &Template, clients: u32) -> f64 {
        self.aim(program, template, clients, true);
        nanoseconds(&self.program, &template.frame, REPEAT)
    }

    /// The same, with `count` clients one after the other, from number `first` on.
    pub fn in_turn(&mut self, program: &Program, template: &Template, first: u32, count: u32) -> f64 {
        self.aim(program, template, u32::MAX, false);
        self.skeleton.maps.bss_data.as_deref_mut().expect("the walk has variables").walk_steps = first.into();
        nanoseconds(&self.program, &template.frame, count)
    }

    /// Takes clients through the handshake that proves them, and through a packet of what they have.
    pub fn establish(&mut self, loaded: &Datapath, templates: &Templates, clients: u32) {
        let Templates { init, answer, auth, auth_nat, esp, in_udp, .. } = templates;
        for (program, template) in [
            (&loaded.client, init),
            (&loaded.backend, answer),
            (&loaded.client, auth_nat),
            (&loaded.client, auth),
            (&loaded.client, esp),
            (&loaded.client, in_udp),
        ] {
            self.in_turn(program, template, 0, clients);
        }
        let established = Sessions::open(&loaded.maps).expect("sessions").established();
        assert_eq!(established, u64::from(clients), "not every client has a session");
    }
}

pub fn run(bench: &Bench, affinity: Affinity, v6: bool) {
    let mut storage = MaybeUninit::uninit();
    let mut walker = Walker::new(&mut storage, v6);
    let templates = Templates::new(affinity, v6);
    let sizes: &[u32] = if bench.quick { &[1, 100_000] } else { &[1, 1_000, 100_000, 1_000_000] };
    // The floors that are shown are those of the last size.
    let (mut lines, mut floors) = (Vec::new(), [0.0; 2]);
    for &clients in sizes {
        let settings = Settings {
            affinity,
            // Room for the clients and for the new ones that are measured.
            max_sessions: 2 * clients + 100_000,
            start_rate: 10_000_000,
            ..Settings::default()
        };
        let loaded = balancer(&settings, 4);
        walker.establish(&loaded, &templates, clients);

        // A new client for each run, beyond those that have a session; half of the room in all.
        let new_per_round = 50_000 / bench.rounds as u32;
        let mut next_new = clients;
        let cases = [
            ("established ESP", &loaded.client, &templates.esp),
            ("established ESP in UDP", &loaded.client, &templates.in_udp),
            ("established IKE", &loaded.client, &templates.auth),
            ("return path ESP", &loaded.backend, &templates.back),
        ];
        let mut times = vec![Vec::new(); 3 + cases.len()];
        for _ in 0..bench.rounds {
            let empty = nanoseconds(&bench.empty, &templates.esp.frame, REPEAT);
            times[0].push(empty);
            times[1].push(nanoseconds(&bench.redirect, &templates.esp.frame, REPEAT));
            // What the walk adds; it is no part of any figure.
            let walk = walker.random(&bench.empty, &templates.init, clients) - empty;
            for ((_, program, template), times) in cases.iter().zip(&mut times[3..]) {
                times.push(walker.random(program, template, clients) - walk);
            }
            let before = count(&loaded, lb_verdict::LB_NEW);
            times[2].push(walker.in_turn(&loaded.client, &templates.init, next_new, new_per_round) - walk);
            next_new += new_per_round;
            let new = count(&loaded, lb_verdict::LB_NEW) - before;
            assert_eq!(new, u64::from(new_per_round), "not every start got a session");
        }
        let times: Vec<f64> = times.into_iter().map(median).collect();
        floors = [times[0], times[1]];
        // What affinity `tunnel` may cost is said of one client, against `address`.
        let most = match affinity {
            Affinity::Tunnel => None,
            Affinity::Address if clients <= 1_000 => Some(2.0),
            Affinity::Address => (clients >= 1_000_000).then_some(11.0),
        };
        for ((name, ..), time) in cases.iter().zip(&times[3..]) {
            let target = most.map(|most| (Base::Redirect, most));
            lines.push(Line::new(format!("{name}, {clients} sessions"), *time, target));
        }
        let target = (affinity == Affinity::Address).then_some((Base::Redirect, 18.0));
        lines.push(Line::new(format!("new session, {clients} sessions"), times[2], target));
    }
    let [empty, redirect] = floors;
    let floors =
        [Line::new("empty program", empty, None), Line::new("bare bpf_redirect_map", redirect, None)];
    let lines: Vec<Line> = floors.into_iter().chain(lines).collect();
    let family = if v6 { 6 } else { 4 };
    crate::print(
        &format!("IPv{family}, affinity {affinity}, random clients out of all that have a session"),
        &lines,
    );
}
