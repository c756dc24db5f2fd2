//! Affinity `tunnel` under random interleavings of what real tunnels do: clients behind NATs and by themselves, each with
//! an IKE state machine, and backends that answer; packets are lost, doubled and overtaken, backends are drained and go
//! down, and strangers send what they like. No packet of a tunnel may reach a second backend.
//!
//! `plan.rs` makes up what happens, `world.rs` has clients and backends, `oracle.rs` says what the rules demand.

#[path = "../common/mod.rs"]
mod common;
mod oracle;
mod plan;
mod world;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;
use std::mem::offset_of;
use std::net::IpAddr;
use std::sync::atomic::Ordering;

use common::namespace::{self, Namespace};
use common::packet;
use lb::kernel::interface::Interface;
use lb::kernel::program::RunOptions;
use lb::kernel::table::SharedWords;
use lb::lb::backend::{self, NewBackend, Wanted};
use lb::lb::datapath::{Affinity, Datapath, OnDown, Policy, Settings};
use lb::lb::interfaces;
use lb::lb::session::{Key, Sessions, State};
use lb::lb::skeleton::types::{self, lb_verdict};
use oracle::{Due, Oracle};
use plan::{Event, Fate};
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestError, TestRunner};
use world::{BACKENDS, Packet, World};

/// Plans, unless PROPTEST_CASES says how many.
const CASES: u32 = 200;

/// What chance goes by, unless PROPTEST_RNG_SEED says so.
const SEED: u64 = 7296;

/// Packets that settle at once, so that none goes round for ever.
const SETTLE_MAX: usize = 120;

fn profiles() -> Vec<Settings> {
    let usual = Settings {
        affinity: Affinity::Tunnel,
        max_sessions: 64,
        start_rate: 10_000_000,
        ingress_count: 2,
        ..Settings::default()
    };
    vec![
        usual.clone(),
        Settings { policy: Policy::Maglev, ..usual.clone() },
        Settings { policy: Policy::LeastSessions, ..usual.clone() },
        Settings { on_down: OnDown::Hold, ..usual.clone() },
        Settings { spi_shard: world::LABEL_BITS, ..usual },
    ]
}

/// A loaded datapath, which writes down why it decides as it does.
struct Instance {
    datapath: Datapath,
    sessions: Sessions,
    slots: SharedWords,
    ingress: [u32; 2],
    egress: [u32; BACKENDS],
    /// Whether the backends are not as they were set up.
    changed: Cell<bool>,
}

impl Instance {
    fn load(settings: &Settings, ports: &[u32; 6]) -> Self {
        let config = Datapath::load(settings)
            .expect("the programs load")
            .maps
            .config()
            .expect("the configuration can be read");
        let datapath = Datapath::load_explaining(&config).expect("the programs load");
        let (ingress, egress) = ([ports[0], ports[1]], [ports[2], ports[3], ports[4], ports[5]]);
        let maps = &datapath.maps;
        for (role, ifindexes, map) in [
            (types::lb_role::LB_INGRESS, &ingress[..], &maps.ingress_ports),
            (types::lb_role::LB_EGRESS, &egress[..], &maps.egress_ports),
        ] {
            for (index, &ifindex) in (0u16..).zip(ifindexes) {
                let entry = types::lb_interface { ifindex, index, role, ..Default::default() };
                interfaces::insert(maps, entry).expect("an interface can be added");
                map.set(&index.into(), &ifindex).expect("a port can be set");
            }
        }
        let sessions = Sessions::open(maps).expect("the sessions can be read");
        let slots = SharedWords::new(&maps.sessions).expect("the sessions can be mapped");
        Self { datapath, sessions, slots, ingress, egress, changed: Cell::new(true) }
    }

    /// As after loading, so that a plan does the same whatever came before.
    fn reset(&self) {
        self.sessions.flush();
        let maps = &self.datapath.maps;
        for key in maps.fragments.keys() {
            maps.fragments.delete(&key).expect("a fragment can be forgotten");
        }
        let mut runtime = maps.runtime().expect("the runtime can be read");
        runtime.ring_next = 0;
        maps.runtime.set(&0, &runtime).expect("the runtime can be written");
        if !self.changed.replace(false) {
            return;
        }
        let new = |index: u8| NewBackend {
            name: format!("eth{}", index + 2),
            port: index.into(),
            mac: Some(packet::backend_mac(index).into()),
            label: Some(world::LABELS[usize::from(index)]),
            ..NewBackend::default()
        };
        let backends: Vec<NewBackend> = (0..BACKENDS as u8).map(new).collect();
        backend::install(maps, &backends).expect("the backends can be set up");
    }

    /// Makes a second pass, as far as entries can tell.
    fn age(&self) {
        const WORDS: usize = size_of::<types::session>() / size_of::<u64>();
        const META: usize = offset_of!(types::session, meta) / size_of::<u64>();
        for slot in self.slots.words().chunks_exact(WORDS) {
            // The time is the first half of meta.
            let mut bytes = slot[META].load(Ordering::Relaxed).to_ne_bytes();
            let (time, _) = bytes.split_first_chunk_mut().expect("eight bytes");
            *time = u32::from_ne_bytes(*time).wrapping_sub(1).to_ne_bytes();
            slot[META].store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
        }
    }

    fn told(&self) -> types::lb_explained {
        self.datapath.maps.explained.get(&0).expect("it can be read").expect("an array has all its entries")
    }

    /// The backend that an SPI at an address is noted for.
    fn noted(&self, address: IpAddr, spi: u32) -> Option<usize> {
        let key = Key::Esp(address, spi);
        self.sessions.entries().find(|entry| entry.key == key).map(|entry| entry.backend as usize)
    }
}

/// What a run came across, to show that it did not miss its subject.
#[derive(Debug, Default)]
struct Coverage(RefCell<BTreeMap<String, u64>>);

impl Coverage {
    fn count(&self, what: impl Into<String>) {
        *self.0.borrow_mut().entry(what.into()).or_default() += 1;
    }
}

/// One plan in the making.
struct Run<'a> {
    instance: &'a Instance,
    coverage: &'a Coverage,
    world: World,
    oracle: Oracle,
    /// What has happened, in words.
    log: String,
}

type Step = Result<(), String>;

impl Run<'_> {
    fn event(&mut self, event: Event) -> Step {
        let _ = writeln!(self.log, "{event:?}");
        let world = &mut self.world;
        match event {
            Event::Start { host } => world.start(host.into()),
            Event::Retransmit { host } => world.retransmit(host.into()),
            Event::Esp { host, old } => world.client_esp(host.into(), old),
            Event::Keepalive { host } => world.keepalive(host.into()),
            Event::Ping { host } => world.ping(host.into()),
            Event::Informational { host, old } => world.informational(host.into(), old),
            Event::RekeyChild { host } => world.rekey_child(host.into()),
            Event::RekeyIke { host } => world.rekey_ike(host.into()),
            Event::Move { host, address } => world.go(host.into(), address.into()),
            Event::Rebind { host } => world.rebind(host.into()),
            Event::BackendEsp { host, old } => world.backend_esp(host.into(), old),
            Event::BackendInformational { host, old } => world.backend_informational(host.into(), old),
            Event::BackendRekeyChild { host } => world.backend_rekey_child(host.into()),
            Event::BackendRekeyIke { host } => world.backend_rekey_ike(host.into()),
            Event::IcmpError { host } => world.icmp_error(host.into()),
            Event::Stray { stray, address, near } => world.stray(stray, address.into(), near),
            Event::Reroute { address } => {
                let route = &mut self.oracle.route[usize::from(address)];
                *route = 1 - *route;
            }
            Event::Change { backend, wanted } => self.change(backend.into(), wanted),
            Event::ChangeHome { host, wanted } => {
                let tunnel = self.world.tunnel_of(host.into(), false);
                if let Some(home) = tunnel.and_then(|tunnel| self.world.tunnels[tunnel].home) {
                    self.change(home, wanted);
                }
            }
            Event::Cookies { on } => world.cookies = on,
            Event::Pause => self.instance.age(),
            Event::Up { which, fate } => {
                if !world.up.is_empty() {
                    let at = usize::from(which) % world.up.len();
                    let packet = take(&mut world.up, at, fate);
                    self.up(&packet, fate)?;
                }
            }
            Event::Down { which, fate } => {
                if !world.down.is_empty() {
                    let at = usize::from(which) % world.down.len();
                    let (backend, packet) = take(&mut world.down, at, fate);
                    self.down(backend, &packet, fate)?;
                }
            }
            Event::Settle => {
                for _ in 0..SETTLE_MAX {
                    if !self.world.up.is_empty() {
                        let packet = self.world.up.remove(0);
                        self.up(&packet, Fate::Arrives)?;
                    } else if !self.world.down.is_empty() {
                        let (backend, packet) = self.world.down.remove(0);
                        self.down(backend, &packet, Fate::Arrives)?;
                    }
                }
                self.check_table()?;
            }
        }
        Ok(())
    }

    fn change(&mut self, backend: usize, wanted: Wanted) {
        let maps = &self.instance.datapath.maps;
        backend::set_wanted(maps, backend as u32, wanted).expect("a backend can be changed");
        backend::reschedule(maps).expect("schedules can be made");
        self.instance.changed.set(true);
        self.oracle.wanted[backend] = wanted;
        if wanted == Wanted::Down {
            self.world.lose(backend);
            self.world.down.retain(|(from, _)| *from != backend);
        }
        self.coverage.count(wanted.name());
    }

    /// A packet of a client comes to the balancer.
    fn up(&mut self, packet: &Packet, fate: Fate) -> Step {
        if fate == Fate::LostBefore {
            let _ = writeln!(self.log, "    lost: {packet}");
            return Ok(());
        }
        let instance = self.instance;
        let due = self.oracle.due(&self.world, packet, |address, spi| instance.noted(address, spi));
        let ingress = self.oracle.ingress(packet.client.0);
        let options = RunOptions {
            ingress_ifindex: Some(instance.ingress[usize::from(ingress)]),
            ..Default::default()
        };
        let ran = instance.datapath.client.run(&packet.frame, options).expect("the program runs");
        let told = instance.told();
        let reached = (told.backend < BACKENDS as u32).then_some(told.backend as usize);
        let (verdict, reason) = (told.verdict, told.reason);
        let to = reached.map_or("nowhere".into(), |backend| format!("backend {backend}"));
        let _ =
            writeln!(self.log, "    to {to}: {packet}, on {ingress}: {verdict:?}, {reason:?}, due: {due:?}");
        if let Some(backend) = reached
            && ran.packet[..6] != packet::backend_mac(backend as u8)
        {
            return Err("the frame has another MAC than that of its backend".into());
        }
        let started = |wanted| reached.is_some_and(|backend| self.oracle.wanted[backend] == wanted);
        let good = match due {
            Due::Backend(backend) => reached == Some(backend),
            Due::Somewhere => reached.is_some(),
            Due::Start if self.oracle.wanted.contains(&Wanted::Active) => started(Wanted::Active),
            Due::Start => started(Wanted::Draining),
            Due::Anything => true,
        };
        if !good {
            return Err(format!("a packet has to reach {due:?}, and went to {to}: {packet}"));
        }
        self.coverage.count(match due {
            Due::Backend(_) => {
                format!("{:?}", packet.what).split([' ', '(']).next().unwrap_or_default().into()
            }
            _ => format!("{due:?}"),
        });
        let Some(backend) = reached else { return Ok(()) };
        if let Some(tunnel) = packet.tunnel {
            let tunnel = &mut self.world.tunnels[tunnel];
            tunnel.home = tunnel.home.or(Some(backend));
        }
        self.oracle.passed_up(&self.world, packet, backend, due);
        if fate == Fate::LostBehind {
            let _ = writeln!(self.log, "    lost behind the balancer");
        } else {
            self.world.reach_backend(backend, packet);
        }
        Ok(())
    }

    /// A packet of a backend comes to the balancer.
    fn down(&mut self, backend: usize, packet: &Packet, fate: Fate) -> Step {
        if fate == Fate::LostBefore {
            let _ = writeln!(self.log, "    lost: {packet}");
            return Ok(());
        }
        let frame = packet::sent_by(packet.frame.clone(), packet::backend_mac(backend as u8));
        let options =
            RunOptions { ingress_ifindex: Some(self.instance.egress[backend]), ..Default::default() };
        self.instance.datapath.backend.run(&frame, options).expect("the program runs");
        let told = self.instance.told();
        let due = self.oracle.passed_down(&self.world, packet, backend);
        let to = if told.to_all != 0 { "all".into() } else { told.port.to_string() };
        let _ = writeln!(self.log, "    from backend {backend} to interface {to}: {packet}, due: {due:?}");
        if told.verdict != lb_verdict::LB_RETURNED {
            return Err(format!("what a backend sends is not returned: {:?}, {packet}", told.verdict));
        }
        let there = |ingress: &u8| told.to_all == 0 && told.port == u32::from(*ingress);
        if !due.is_empty() && !due.iter().any(there) {
            return Err(format!("a client was last seen on {due:?}, and its packet goes to {to}: {packet}"));
        }
        if fate == Fate::LostBehind {
            let _ = writeln!(self.log, "    lost behind the balancer");
        } else {
            self.world.reach_client(packet);
        }
        Ok(())
    }

    /// What the session table has to show after all that came before.
    fn check_table(&self) -> Step {
        let (mut established, mut tallies) = (0, [0u64; BACKENDS]);
        let mut endpoints = HashMap::new();
        for entry in self.instance.sessions.entries() {
            match entry.key {
                Key::Sa(_) if entry.state != State::Learned => {
                    tallies[entry.backend as usize] += 1;
                    if entry.state == State::Established {
                        established += 1;
                    }
                }
                Key::Sa(_) => {}
                // An endpoint, of whichever of the two ports that it speaks to.
                _ if entry.port != 0 => {
                    endpoints.insert((entry.client, entry.port), entry.backend as usize);
                }
                _ => {}
            }
        }
        let counted = self.instance.sessions.established();
        if counted != established {
            return Err(format!("{established} sessions are established, and counted are {counted}"));
        }
        let (least, most) = (self.oracle.sessions_min(&self.world), self.oracle.sessions_max());
        if !(least..=most).contains(&(established as usize)) {
            return Err(format!("{established} sessions are established of {least} tunnels, {most} SAs"));
        }
        for (index, tally) in (0..).zip(tallies) {
            let counted = self.instance.datapath.maps.backend_sessions.get(&index).expect("it can be read");
            if counted != Some(tally) {
                return Err(format!("backend {index} has {tally} sessions, and counted are {counted:?}"));
            }
        }
        for (client, home) in self.oracle.certain_endpoints(&self.world) {
            if endpoints.get(&client) != Some(&home) {
                let found = endpoints.get(&client);
                return Err(format!("{client:?} has to be bound to backend {home}, and is to {found:?}"));
            }
        }
        Ok(())
    }
}

fn take<T: Clone>(packets: &mut Vec<T>, at: usize, fate: Fate) -> T {
    if fate == Fate::Doubled { packets[at].clone() } else { packets.remove(at) }
}

fn run_plan(settings: &Settings, instance: &Instance, events: &[Event], coverage: &Coverage) -> Step {
    instance.reset();
    let labels = settings.spi_shard != 0;
    let mut run = Run {
        instance,
        coverage,
        world: World::new(labels),
        oracle: Oracle::new(settings.on_down == OnDown::Hold, labels),
        log: String::new(),
    };
    for &event in events.iter().chain(&[Event::Settle]) {
        if let Err(broken) = run.event(event) {
            return Err(format!("{broken}\n{}", run.log));
        }
    }
    for _ in &run.oracle.proven {
        coverage.count("proof");
    }
    let homes: HashSet<_> = run.world.tunnels.iter().filter_map(|tunnel| tunnel.home).collect();
    if homes.len() == BACKENDS {
        coverage.count("all backends");
    }
    Ok(())
}

#[test]
fn root_no_packet_of_a_tunnel_reaches_a_second_backend() {
    let namespace = Namespace::new("lb-tunnels");
    for [one, other] in [["in0", "in1"], ["eg0", "eg1"], ["eg2", "eg3"]] {
        namespace::veth((&namespace, one), (&namespace, other));
    }
    namespace.within(|| {
        let ports = ["in0", "in1", "eg0", "eg1", "eg2", "eg3"]
            .map(|name| Interface::find(name).expect("the interface is there").index);
        let profiles = profiles();
        let instances: Vec<RefCell<Option<Instance>>> = profiles.iter().map(|_| RefCell::default()).collect();
        let coverage = Coverage::default();

        let mut config = ProptestConfig {
            failure_persistence: None,
            max_shrink_iters: 4000,
            max_shrink_time: 40_000,
            ..Default::default()
        };
        if std::env::var_os("PROPTEST_CASES").is_none() {
            config.cases = CASES;
        }
        if std::env::var_os("PROPTEST_RNG_SEED").is_none() {
            config.rng_seed = RngSeed::Fixed(SEED);
        }
        let cases = config.cases;
        let input = (0..profiles.len(), plan::plans());
        let result = TestRunner::new(config).run(&input, |(profile, events)| {
            let mut slot = instances[profile].borrow_mut();
            let instance = slot.get_or_insert_with(|| Instance::load(&profiles[profile], &ports));
            run_plan(&profiles[profile], instance, &events, &coverage).map_err(TestCaseError::fail)
        });
        match result {
            Ok(()) => {}
            Err(TestError::Fail(reason, (profile, _))) => panic!("{reason}\n{:?}", profiles[profile]),
            Err(TestError::Abort(reason)) => panic!("{reason}"),
        }

        let counts = coverage.0.into_inner();
        println!("{counts:#?}");
        if cases >= CASES {
            for what in
                ["proof", "all backends", "Start", "Somewhere", "Esp", "Keepalive", "IcmpError", "RekeyIke"]
            {
                assert!(counts.contains_key(what), "nothing came to: {what}");
            }
        }
    });
}
