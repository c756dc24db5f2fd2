//! A reference model of the balancer and the programs in the kernel get the same random packets, and have to agree
//! after each of them on all that can be seen: verdict, XDP action, the frame that comes out, the port that it goes
//! to, all sessions, all counters, and what is known of the backends.
//!
//! `model.rs` decides, `frame.rs` reads frames for it, `generate.rs` makes the packets.

#[path = "../common/mod.rs"]
mod common;
mod frame;
mod generate;
mod model;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use common::namespace::{self, Namespace};
use common::packet;
use frame::{Content, Direction, Mac, Message};
use generate::{Event, Sender, Side, Step};
use lb::kernel::counters::{self, Count};
use lb::kernel::interface::Interface;
use lb::kernel::program::{Run, RunOptions};
use lb::lb::backend::{self, NewBackend, Wanted};
use lb::lb::datapath::{Datapath, OnDown, Other, Policy, ReturnPath, Settings};
use lb::lb::interfaces;
use lb::lb::session::{Key, Sessions, State};
use lb::lb::skeleton::types;
use lb::lb::stats::{self, LABELS, UNPLACED, VERDICTS};
use model::{Model, Outcome, Session, Verdict, Way};
use proptest::prelude::*;
use proptest::test_runner::{TestError, TestRunner};

/// Sequences of packets, unless PROPTEST_CASES says how many.
const CASES: u32 = 200;

/// A loaded datapath is used for so many sequences.
const CASES_PER_LOAD: u32 = 40;

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;

/// What an instance is set up with.
struct Profile {
    settings: Settings,
    /// Weight of each backend, and whether its MAC is given.
    backends: &'static [(u32, bool)],
    /// How many backends are behind one interface.
    behind_one: u8,
}

/// The SPI labels of backends, where there are labels.
const LABEL_BITS: u32 = 4;
const BACKEND_LABELS: [u32; 4] = [2, 7, 12, 9];

impl Profile {
    fn backends(&self) -> Vec<NewBackend> {
        let new = |(index, &(weight, given)): (u8, &(u32, bool))| NewBackend {
            name: format!("eth{}", index + 2),
            port: (index / self.behind_one).into(),
            mac: given.then(|| packet::backend_mac(index).into()),
            weight,
            label: (self.settings.spi_shard != 0).then(|| BACKEND_LABELS[usize::from(index)]),
            ..NewBackend::default()
        };
        (0..).zip(self.backends).map(new).collect()
    }

    /// How many interfaces the backends are behind.
    fn egress_count(&self) -> u32 {
        (self.backends.len() as u32).div_ceil(self.behind_one.into())
    }
}

fn profiles() -> Vec<Profile> {
    // A small table is read in a moment, and clients share its buckets. No rate is ever reached: times are no subject here.
    let usual = Settings { max_sessions: 16, start_rate: 10_000_000, ..Settings::default() };
    let vips = vec![packet::VIP4.into(), packet::VIP6.into()];
    let all = &[(1, true); 4];
    let profile = |settings, backends| Profile { settings, backends, behind_one: 1 };
    vec![
        profile(usual.clone(), all),
        profile(
            Settings {
                policy: Policy::Maglev,
                other: Other::Pass,
                vips: vips.clone(),
                ingress_count: 2,
                ..usual.clone()
            },
            &[(1, true), (2, true), (0, true), (3, true)],
        ),
        profile(
            Settings {
                vips,
                ingress_count: 2,
                return_path: ReturnPath::Direct,
                on_down: OnDown::Hold,
                ..usual.clone()
            },
            &[(3, true), (1, true), (2, true)],
        ),
        profile(
            Settings { ingress_count: 2, ..usual.clone() },
            &[(1, true), (1, false), (1, true), (1, false)],
        ),
        profile(Settings { policy: Policy::Maglev, other: Other::Pass, ..usual.clone() }, &[(1, false); 4]),
        profile(Settings { max_sessions: 2, ingress_count: 2, ..usual.clone() }, &[(1, true), (1, true)]),
        profile(Settings { spi_shard: LABEL_BITS, on_down: OnDown::Hold, ..usual.clone() }, all),
        Profile {
            settings: Settings { spi_shard: LABEL_BITS, ingress_count: 2, ..usual },
            backends: all,
            behind_one: 2,
        },
    ]
}

/// The interfaces that all instances are set up with. Both ends of a veth are in the same namespace, as no frame is sent.
struct Ports {
    ingress: Vec<u32>,
    egress: Vec<u32>,
}

impl Ports {
    fn new(namespace: &Namespace) -> Self {
        for [one, other] in [["in0", "in1"], ["eg0", "eg1"], ["eg2", "eg3"]] {
            namespace::veth((namespace, one), (namespace, other));
        }
        let indexes = |names: &[&str]| {
            namespace.within(|| {
                names
                    .iter()
                    .map(|name| Interface::find(name).expect("the interface is there").index)
                    .collect()
            })
        };
        Self { ingress: indexes(&["in0", "in1"]), egress: indexes(&["eg0", "eg1", "eg2", "eg3"]) }
    }
}

/// A loaded datapath.
struct Instance<'a> {
    datapath: Datapath,
    sessions: Sessions,
    ports: &'a Ports,
    /// Which ports are in the maps: by role, then by index.
    open_ports: RefCell<BTreeSet<(Role, u32)>>,
    uses: Cell<u32>,
    /// Whether the backends are not as they were set up.
    changed: Cell<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Ingress,
    Egress,
}

impl<'a> Instance<'a> {
    fn load(profile: &Profile, ports: &'a Ports) -> Self {
        let datapath = Datapath::load(&profile.settings).expect("the programs load");
        let used_ingress = &ports.ingress[..profile.settings.ingress_count as usize];
        let used_egress = &ports.egress[..profile.egress_count() as usize];
        for (role, used) in
            [(types::lb_role::LB_INGRESS, used_ingress), (types::lb_role::LB_EGRESS, used_egress)]
        {
            for (index, &ifindex) in (0..).zip(used) {
                let entry = types::lb_interface { ifindex, index, role, ..Default::default() };
                interfaces::insert(&datapath.maps, entry).expect("an interface can be added");
            }
        }
        let sessions = Sessions::open(&datapath.maps).expect("the sessions can be read");
        Self {
            datapath,
            sessions,
            ports,
            open_ports: RefCell::default(),
            uses: Cell::new(0),
            changed: Cell::new(true),
        }
    }

    /// As after loading, so that a sequence does the same whatever came before.
    fn reset(&self, profile: &Profile) {
        self.uses.set(self.uses.get() + 1);
        self.sessions.flush();
        let maps = &self.datapath.maps;
        for key in maps.fragments.keys() {
            maps.fragments.delete(&key).expect("a fragment can be forgotten");
        }
        let mut runtime = maps.runtime().expect("the runtime can be read");
        runtime.ring_next = 0;
        maps.runtime.set(&0, &runtime).expect("the runtime can be written");
        // Backends of unknown MACs have learned some.
        let learns = profile.backends.iter().any(|(_, given)| !given);
        if !self.changed.replace(false) && !learns {
            return;
        }
        for key in maps.backend_macs.keys() {
            maps.backend_macs.delete(&key).expect("a MAC can be forgotten");
        }
        backend::install(maps, &profile.backends()).expect("the backends can be set up");
    }

    /// Makes these ports, of those that the instance has, the only ones that frames can be sent to.
    fn open_only(&self, profile: &Profile, wanted: impl Fn(Role, u32) -> bool) {
        let maps = &self.datapath.maps;
        let mut open = self.open_ports.borrow_mut();
        for (role, map, used, ifindexes) in [
            (Role::Ingress, &maps.ingress_ports, profile.settings.ingress_count, &self.ports.ingress),
            (Role::Egress, &maps.egress_ports, profile.egress_count(), &self.ports.egress),
        ] {
            for index in 0..used {
                if wanted(role, index) && open.insert((role, index)) {
                    map.set(&index, &ifindexes[index as usize]).expect("a port can be set");
                } else if !wanted(role, index) && open.remove(&(role, index)) {
                    map.delete(&index).expect("a port can be taken away");
                }
            }
        }
    }

    fn see(&self, backends: u32) -> Sight {
        let maps = &self.datapath.maps;
        // What `lb backend list` has in addition takes a look at all interfaces, for each packet here.
        let (mut sent, mut macs) = (Vec::new(), Vec::new());
        for index in 0..backends {
            sent.push(counters::read(&maps.backend_counters, index).expect("counters can be read"));
            let station =
                maps.backends.get(&index).expect("backends can be read").expect("it is one").station;
            macs.push(((station.mac != [0; 6]).then_some(station.mac), station.learned != 0));
        }
        let unplaced = UNPLACED
            .map(|(cause, ..)| counters::read(&maps.unplaced, cause.0).expect("counters can be read"));
        let labels = LABELS
            .map(|(kind, ..)| counters::read(&maps.label_counters, kind.0).expect("counters can be read"));
        let mut sessions = BTreeMap::new();
        for entry in self.sessions.entries() {
            let seen = SeenSession {
                backend: entry.backend,
                state: entry.state,
                ingress: (entry.ingress != INGRESS_UNKNOWN).then_some(entry.ingress),
                sent: Count { packets: entry.packets, bytes: entry.bytes },
            };
            assert_eq!(sessions.insert(entry.key, seen), None, "{:?} has two entries", entry.key);
        }
        let tallies = (0..backends)
            .map(|index| maps.backend_sessions.get(&index).expect("tallies can be read").unwrap_or_default())
            .collect();
        Sight {
            verdicts: stats::read_verdicts(maps).expect("counters can be read"),
            unplaced,
            labels,
            sent,
            macs,
            established: self.sessions.established(),
            tallies,
            sessions,
        }
    }
}

/// What an entry has for an interface whose client was not heard yet.
const INGRESS_UNKNOWN: u8 = types::lb_limits::LB_INGRESS_UNKNOWN.0 as u8;

/// All that can be seen of an instance at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sight {
    verdicts: [Count; VERDICTS.len()],
    unplaced: [Count; UNPLACED.len()],
    labels: [Count; LABELS.len()],
    /// What each backend was sent.
    sent: Vec<Count>,
    macs: Vec<(Option<Mac>, bool)>,
    established: u64,
    /// How many sessions each backend has.
    tallies: Vec<u64>,
    /// And what is beside them.
    sessions: BTreeMap<Key, SeenSession>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct SeenSession {
    backend: u32,
    state: State,
    ingress: Option<u8>,
    sent: Count,
}

impl From<&Session> for SeenSession {
    fn from(session: &Session) -> Self {
        Self { backend: session.backend, state: session.state, ingress: session.ingress, sent: session.sent }
    }
}

impl Sight {
    /// What the next sight has to be after a frame of `bytes` bytes that ended so.
    fn after(&self, outcome: Outcome, bytes: u64, start: &Self, model: &Model) -> Self {
        let one = Count { packets: 1, bytes };
        let mut next = self.clone();
        let verdict = VERDICTS
            .iter()
            .position(|(_, name, _)| *name == outcome.verdict.name())
            .expect("each verdict is counted");
        next.verdicts[verdict] = next.verdicts[verdict] + one;
        let count = |list: &mut [Count], position: Option<usize>| {
            let position = position.expect("it is counted");
            list[position] = list[position] + one;
        };
        if outcome.table_full {
            count(&mut next.unplaced, UNPLACED.iter().position(|(_, name, _)| *name == "table_full"));
        }
        if outcome.label_unknown {
            count(&mut next.labels, LABELS.iter().position(|(_, name, _)| *name == "unknown"));
        }
        if outcome.label_disagrees {
            count(&mut next.labels, LABELS.iter().position(|(_, name, _)| *name == "disagree"));
        }
        next.sent =
            start.sent.iter().zip(&model.backends).map(|(&before, backend)| before + backend.sent).collect();
        next.macs = model.backends.iter().map(|backend| (backend.mac, backend.learned)).collect();
        let sessions = model.sessions.iter().map(|(&client, session)| (Key::Address(client), session.into()));
        let beside = model.beside.iter().map(|(&spi, session)| (Key::Sa(spi), session.into()));
        next.sessions = sessions.chain(beside).collect();
        let established = |session: &&Session| session.state == State::Established;
        next.established = model.sessions.values().filter(established).count() as u64;
        next.tallies = (0..next.tallies.len() as u32)
            .map(|index| model.sessions.values().filter(|session| session.backend == index).count() as u64)
            .collect();
        next
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

/// Sends one sequence through a datapath and through a new model.
fn run_sequence(
    profile: &Profile,
    instance: &Instance<'_>,
    run: u16,
    events: &[Event],
    coverage: &Coverage,
) -> Result<(), TestCaseError> {
    instance.reset(profile);
    let turns = || instance.datapath.maps.runtime().expect("the runtime can be read").ring_next;
    let mut model = Model::new(&profile.settings, &profile.backends(), turns());
    let start = instance.see(profile.backends.len() as u32);
    let mut before = start.clone();
    for (number, event) in events.iter().enumerate() {
        let step = match event {
            Event::Packet(step) => step,
            &Event::Change { backend, wanted } => {
                let backend = u32::from(backend) % profile.backends.len() as u32;
                let maps = &instance.datapath.maps;
                backend::set_wanted(maps, backend, wanted).expect("a backend can be changed");
                backend::reschedule(maps).expect("schedules can be made");
                model.set_wanted(backend, wanted);
                instance.changed.set(true);
                coverage.count(wanted.name());
                continue;
            }
        };
        // Where the rules leave the choice to the datapath, it says itself how far its ring has got.
        model.turn = model.turn.or_else(|| Some(turns()));
        let fail = |frame: &[u8], what: String| {
            let side = format!("{:?}", step.side);
            Err(TestCaseError::fail(format!("packet {number}, {side}: {what}\nframe: {}", hex(frame))))
        };
        let sender = match step.side {
            Side::Backend { sender: Sender::OfSession, .. } => {
                let beside = step.packet.initiator_spi(run).and_then(|spi| model.beside.get(&spi));
                let session = || model.sessions.get(&generate::client(run, step.packet.client));
                beside.or_else(session).map_or(0, |session| session.backend)
            }
            Side::Backend { sender: Sender::Number(number), .. } => {
                u32::from(number) % profile.backends.len() as u32
            }
            Side::Client { .. } => 0,
        };
        let frame = step.frame(run, sender);
        let (program, ifindex) = match step.side {
            Side::Client { ingress } => {
                let ingress = u32::from(ingress) % profile.settings.ingress_count;
                (&instance.datapath.client, instance.ports.ingress[ingress as usize])
            }
            Side::Backend { .. } => {
                let port = model.backends[sender as usize].port;
                (&instance.datapath.backend, instance.ports.egress[port as usize])
            }
        };
        let decide = |model: &mut Model, observed| match step.side {
            Side::Client { ingress } => {
                model.client_sends(ingress % profile.settings.ingress_count as u8, &frame, observed)
            }
            Side::Backend { .. } => {
                let port = model.backends[sender as usize].port;
                model.backend_sends(port, &frame)
            }
        };

        // Where a frame is redirected to shows by which ports there are. One that goes unchanged to a single port,
        // and should, must be lost where all ports but that one are there.
        let foreseen = decide(&mut model.clone(), None);
        let unchanged = matches!(
            (foreseen.verdict, foreseen.way),
            (Verdict::Neighbour, Way::Backend(_)) | (Verdict::Neighbour | Verdict::Returned, Way::Ingress(_))
        );
        let missing = step.probe && unchanged;
        instance.open_only(profile, |role, index| match foreseen.way {
            _ if foreseen.open => true,
            Way::Backend(backend) => {
                role == Role::Ingress || (index == model.backends[backend as usize].port) != missing
            }
            Way::Ingress(ingress) => role == Role::Egress || (index == u32::from(ingress)) != missing,
            // A broadcast alone needs no port to be a redirection.
            Way::EveryBackend => role == Role::Ingress,
            Way::EveryIngress => role == Role::Egress,
            Way::Drop | Way::Pass => true,
        });

        let options = RunOptions { ingress_ifindex: Some(ifindex), ..Default::default() };
        let ran = program.run(&frame, options).expect("the program runs");
        let after = instance.see(profile.backends.len() as u32);
        let (to, _) = frame::macs(&ran.packet);
        let observed = model.backends.iter().position(|backend| backend.mac == Some(to));
        let mut outcome = decide(&mut model, observed.map(|index| index as u32));
        if missing {
            outcome = Outcome { verdict: Verdict::NoBackend, way: Way::Drop, ..outcome };
        }

        let expected = before.after(outcome, frame.len() as u64, &start, &model);
        if after != expected {
            return fail(&frame, format!("{outcome:?}\n{}", differences(&expected, &after)));
        }
        let action = match outcome.way {
            Way::Drop => XDP_DROP,
            Way::Pass => XDP_PASS,
            _ => XDP_REDIRECT,
        };
        if ran.action != action {
            return fail(&frame, format!("{outcome:?}, and the action is {}", ran.action));
        }
        let mut output = frame.clone();
        if let (Way::Backend(backend), Verdict::Session | Verdict::New | Verdict::Stateless) =
            (outcome.way, outcome.verdict)
        {
            output[..6].copy_from_slice(&model.backends[backend as usize].mac.expect("it takes packets"));
        }
        if ran.packet != output {
            return fail(&frame, format!("{outcome:?}, and out came\n       {}", hex(&ran.packet)));
        }
        if let Err(broken) = check_promises(profile, &model, step, &frame, &ran, &before, &after) {
            return fail(&frame, broken);
        }

        coverage.count(outcome.verdict.name());
        if outcome.table_full {
            coverage.count("table full");
        }
        if after.established > before.established {
            coverage.count("proof");
        }
        if outcome.open {
            coverage.count("detour");
        }
        if !before.sessions.keys().eq(after.sessions.keys())
            && after.sessions.keys().any(|key| matches!(key, Key::Sa(_)))
        {
            coverage.count("beside");
        }
        if before.sessions.len() > after.sessions.len() {
            coverage.count("switch");
        }
        if outcome.label_unknown {
            coverage.count("label unknown");
        }
        if outcome.label_disagrees {
            coverage.count("label disagrees");
        }
        if outcome.verdict == Verdict::Returned && after.sessions.len() > before.sessions.len() {
            coverage.count("taught");
        }
        if let Content::Ip(packet) = frame::read(&frame, direction(step)) {
            let name = format!("{:?}", packet.message);
            let name = name.split([' ', '(']).next().unwrap_or_default();
            coverage.count(format!("{:?} {name}", direction(step)));
        }
        before = after;
    }
    Ok(())
}

fn direction(step: &Step) -> Direction {
    match step.side {
        Side::Client { .. } => Direction::ToBackend,
        Side::Backend { .. } => Direction::ToClient,
    }
}

/// What users are promised, checked on what the datapath did alone: the model has no say here.
fn check_promises(
    profile: &Profile,
    model: &Model,
    step: &Step,
    frame: &[u8],
    ran: &Run,
    before: &Sight,
    after: &Sight,
) -> Result<(), String> {
    let is = |index: u32, wanted| model.backends[index as usize].wanted == wanted;
    for (key, session) in &before.sessions {
        if session.state != State::Established {
            continue;
        }
        // A new SA of a client whose backend is to have no new ones may take the session with it.
        let may_move = before.sessions.keys().any(|key| matches!(key, Key::Sa(_)));
        let stays = |now: &SeenSession| {
            now.state == State::Established && (now.backend == session.backend || may_move)
        };
        let now = after.sessions.get(key);
        if !now.is_some_and(stays) {
            return Err(format!("the established session {key:?} became {now:?}"));
        }
    }
    if matches!(step.side, Side::Client { .. }) {
        let waits = |index| {
            before.macs[index as usize].0.is_none()
                || is(index, Wanted::Down) && profile.settings.on_down == OnDown::Hold
        };
        let all = || 0..profile.backends.len() as u32;
        let awake = all().all(|index| !waits(index)) && all().any(|index| !is(index, Wanted::Down));
        if step.is_of_tunnel() && awake && ran.action != XDP_REDIRECT {
            return Err(format!("a packet of a tunnel is not forwarded, the action is {}", ran.action));
        }
        // What the client itself sends goes to the backend of its session, a new session's first packet included.
        // A later fragment follows its first one, which may have come before the session.
        if let Content::Ip(packet) = frame::read(frame, Direction::ToBackend)
            && !matches!(packet.message, Message::IcmpError { .. } | Message::LaterFragment)
            && let Some(session) = after.sessions.get(&Key::Address(packet.source))
            && is(session.backend, Wanted::Active)
            && before.macs[session.backend as usize].0.is_some()
            && profile.settings.spi_shard == 0
            && !before.sessions.keys().any(|key| matches!(key, Key::Sa(_)))
            && ran.action == XDP_REDIRECT
            && after.macs[session.backend as usize].0 != Some(frame::macs(&ran.packet).0)
        {
            return Err(format!("a packet of {} does not go to the backend of its session", packet.source));
        }
    }
    Ok(())
}

fn differences(expected: &Sight, found: &Sight) -> String {
    let mut text = String::new();
    let mut note = |what: &str, expected: String, found: String| {
        if expected != found {
            let _ = writeln!(text, "{what}: the model has {expected}, the datapath {found}");
        }
    };
    for (index, (_, name, _)) in VERDICTS.iter().enumerate() {
        note(name, format!("{:?}", expected.verdicts[index]), format!("{:?}", found.verdicts[index]));
    }
    for (index, (_, name, _)) in UNPLACED.iter().enumerate() {
        note(name, format!("{:?}", expected.unplaced[index]), format!("{:?}", found.unplaced[index]));
    }
    for (index, (_, name, _)) in LABELS.iter().enumerate() {
        let name = format!("labels that {name}");
        note(&name, format!("{:?}", expected.labels[index]), format!("{:?}", found.labels[index]));
    }
    note("sent to backends", format!("{:?}", expected.sent), format!("{:?}", found.sent));
    note("MACs", format!("{:?}", expected.macs), format!("{:?}", found.macs));
    note("established", expected.established.to_string(), found.established.to_string());
    note("sessions of backends", format!("{:?}", expected.tallies), format!("{:?}", found.tallies));
    let clients: BTreeSet<_> = expected.sessions.keys().chain(found.sessions.keys()).collect();
    for client in clients {
        let session = |sight: &Sight| format!("{:?}", sight.sessions.get(client));
        note(&format!("{client:?}"), session(expected), session(found));
    }
    text
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[test]
fn root_model_and_datapath_agree_on_every_packet() {
    let namespace = Namespace::new("lb-property");
    let ports = Ports::new(&namespace);
    // Interfaces are looked up in the namespace of whoever asks.
    namespace.within(|| {
        let profiles = profiles();
        let instances: Vec<RefCell<Option<Instance<'_>>>> =
            profiles.iter().map(|_| RefCell::default()).collect();
        let coverage = Coverage::default();

        let mut config = ProptestConfig {
            failure_persistence: None,
            max_shrink_iters: 2000,
            max_shrink_time: 40_000,
            ..Default::default()
        };
        if std::env::var_os("PROPTEST_CASES").is_none() {
            config.cases = CASES;
        }
        let cases = config.cases;
        let input = (0..profiles.len(), any::<u16>().no_shrink(), generate::sequences());
        let result = TestRunner::new(config).run(&input, |(profile, run, events)| {
            let mut slot = instances[profile].borrow_mut();
            if slot.as_ref().is_none_or(|instance| instance.uses.get() >= CASES_PER_LOAD) {
                *slot = Some(Instance::load(&profiles[profile], &ports));
            }
            let instance = slot.as_ref().expect("it was just loaded");
            run_sequence(&profiles[profile], instance, run, &events, &coverage)
        });
        match result {
            Ok(()) => {}
            Err(TestError::Fail(reason, (profile, _, events))) => {
                panic!("{reason}\nprofile {profile}: {:?}\nevents: {events:#?}", profiles[profile].settings)
            }
            Err(TestError::Abort(reason)) => panic!("{reason}"),
        }

        let counts = coverage.0.into_inner();
        println!("{counts:#?}");
        if cases >= CASES {
            for (_, verdict, _) in VERDICTS {
                assert!(counts.contains_key(verdict), "no packet came to verdict {verdict}");
            }
            for what in [
                "table full",
                "proof",
                "detour",
                "beside",
                "switch",
                "taught",
                "label unknown",
                "label disagrees",
                "active",
                "draining",
                "down",
            ] {
                assert!(counts.contains_key(what), "nothing came to: {what}");
            }
        }
    });
}
