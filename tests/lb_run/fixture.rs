//! What a fixture is, and how it is run: one packet, and all that may come of it.

use std::mem::offset_of;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::Duration;

use lb::kernel::counters::{self, Count};
use lb::kernel::program::{Program, Run, RunOptions};
use lb::kernel::table::{SharedWords, Table};
use lb::kernel::value::MapValue;
use lb::lb::backend::{self, NewBackend, Wanted};
use lb::lb::datapath::{Datapath, Settings};
use lb::lb::interfaces;
use lb::lb::schedule::{self, Candidate};
use lb::lb::session::{Entry, Key, Sessions, State};
use lb::lb::skeleton::types::{self, lb_unplaced, lb_verdict};
use lb::lb::stats;
use libbpf_rs::query::{ProgInfoIter, ProgInfoQueryOptions};
use libbpf_rs::{MapCore, MapHandle};
use nix::time::{ClockId, clock_gettime};

use crate::common::datapath::datapath_of;
use crate::common::decode;
use crate::common::packet::{self, Ike};

pub const XDP_DROP: u32 = 1;
pub const XDP_PASS: u32 = 2;
pub const XDP_REDIRECT: u32 = 4;

pub const INITIATOR: u64 = 0x1111_2222_3333_4444;
pub const RESPONDER: u64 = 0x5555_6666_7777_8888;

/// By how many seconds a fixture's sessions are made older before its packet is sent, to see whom it refreshes.
const AGE: u32 = 10;

/// Where a client is that no packet has come from yet.
pub const INGRESS_UNKNOWN: u8 = types::lb_limits::LB_INGRESS_UNKNOWN.0 as u8;

/// Which of the two programs a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Backend,
}

/// Which interface of the other side a packet goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Port(u32),
    All,
}

/// What is to become of a fixture's packet. Addresses are those of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// To the backend of this client's session.
    Session(IpAddr),
    /// To the backend whose turn it is, where this client has an embryonic session from now on.
    New(IpAddr),
    /// To the backend that this client's address hashes to, and nobody has a session for it.
    Hash(IpAddr),
    /// ARP, ND or MLD.
    Neighbour(Way),
    /// From a backend, to the interface that this client was last seen on, if it has a session.
    Returned(IpAddr),
    Dropped(lb_verdict),
    /// To the stack of this machine.
    Passed,
}

pub const MALFORMED: Expected = Expected::Dropped(lb_verdict::LB_MALFORMED);
pub const OTHER: Expected = Expected::Dropped(lb_verdict::LB_OTHER_DROPPED);
pub const NO_BACKEND: Expected = Expected::Dropped(lb_verdict::LB_NO_BACKEND);

impl Expected {
    fn verdict(self) -> lb_verdict {
        match self {
            Self::Session(_) => lb_verdict::LB_SESSION,
            Self::New(_) => lb_verdict::LB_NEW,
            Self::Hash(_) => lb_verdict::LB_STATELESS,
            Self::Neighbour(_) => lb_verdict::LB_NEIGHBOUR,
            Self::Returned(_) => lb_verdict::LB_RETURNED,
            Self::Dropped(verdict) => verdict,
            Self::Passed => lb_verdict::LB_OTHER_PASSED,
        }
    }

    fn action(self) -> u32 {
        match self {
            Self::Dropped(_) => XDP_DROP,
            Self::Passed => XDP_PASS,
            _ => XDP_REDIRECT,
        }
    }

    fn client(self) -> Option<IpAddr> {
        match self {
            Self::Session(client) | Self::New(client) | Self::Hash(client) | Self::Returned(client) => {
                Some(client)
            }
            _ => None,
        }
    }
}

/// A packet, what comes before it, and what is to come of it.
#[derive(Clone, Debug)]
pub struct Fixture {
    description: String,
    before: Vec<(Side, Vec<u8>)>,
    side: Side,
    frame: Vec<u8>,
    expected: Expected,
    establishes: bool,
    remembers_fragment: bool,
    unplaced: Option<lb_unplaced>,
    learns: Option<(u32, [u8; 6])>,
    teaches: Option<State>,
}

/// A fixture whose packet comes from the client side.
pub fn from_client(description: impl Into<String>, frame: Vec<u8>, expected: Expected) -> Fixture {
    Fixture {
        description: description.into(),
        before: Vec::new(),
        side: Side::Client,
        frame,
        expected,
        establishes: false,
        remembers_fragment: false,
        unplaced: None,
        learns: None,
        teaches: None,
    }
}

/// A fixture whose packet comes from the backend side.
pub fn from_backend(description: impl Into<String>, frame: Vec<u8>, expected: Expected) -> Fixture {
    Fixture { side: Side::Backend, ..from_client(description, frame, expected) }
}

impl Fixture {
    /// A packet that comes before, and is not looked at.
    pub fn after(mut self, side: Side, frame: Vec<u8>) -> Self {
        self.before.push((side, frame));
        self
    }

    /// This client's first packet comes before: it has an embryonic session.
    pub fn with_start(self, client: IpAddr) -> Self {
        self.after(Side::Client, packet::ike(client, Ike::init(INITIATOR)))
    }

    /// This client's start comes before, and the backend's answer.
    pub fn with_answer(self, client: IpAddr) -> Self {
        let answer = packet::ike_back(client, Ike::init_response(INITIATOR, RESPONDER));
        self.with_start(client).after(Side::Backend, answer)
    }

    /// This client's handshake comes before: it has an established session.
    pub fn with_established(self, client: IpAddr) -> Self {
        self.with_answer(client).after(Side::Client, packet::ike(client, Ike::auth(INITIATOR, RESPONDER)))
    }

    /// The session becomes an established one.
    pub fn establishes(mut self) -> Self {
        self.establishes = true;
        self
    }

    /// The packet's way is noted for later fragments.
    pub fn remembers_fragment(mut self) -> Self {
        self.remembers_fragment = true;
        self
    }

    /// A start that gets no session, for this cause.
    pub fn unplaced(mut self, cause: lb_unplaced) -> Self {
        self.unplaced = Some(cause);
        self
    }

    /// The packet teaches a backend's MAC.
    pub fn learns(mut self, backend: u32, mac: [u8; 6]) -> Self {
        self.learns = Some((backend, mac));
        self
    }

    /// The packet gives its client, if that has none, a session of this state at the backend that sent it.
    pub fn teaches(mut self, state: impl Into<Option<State>>) -> Self {
        self.teaches = state.into();
        self
    }
}

/// A session as fixtures compare it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    client: IpAddr,
    backend: u32,
    ingress: u8,
    established: bool,
    /// Whether a packet of either direction has just used it.
    fresh: bool,
    packets: u64,
    bytes: u64,
}

/// All that a packet may change, but for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct World {
    verdicts: Vec<(&'static str, Count)>,
    unplaced: Vec<(&'static str, Count)>,
    backends: Vec<(Option<[u8; 6]>, Count)>,
    sessions: Vec<Seen>,
    established: u64,
    fragments: usize,
}

/// A loaded balancer, the loopback interface as port of all its backends and clients.
pub struct Balancer {
    pub datapath: Datapath,
    pub sessions: Sessions,
    pub settings: Settings,
    words: SharedWords,
    fragments: MapHandle,
    hash_slots: Vec<u32>,
    /// How many backends there are.
    count: u32,
    /// Whose frames those from the backend side are.
    heard: AtomicU32,
}

/// How a client's packet was counted, and to which backend it went if it did.
pub type Outcome = (lb_verdict, Option<u32>);

/// An entry of the session table, without its times and counts.
pub type Row = (Key, State, u32);

/// Settings with a table small enough to be looked through after each packet.
pub fn settings() -> Settings {
    Settings { max_sessions: 64, ..Settings::default() }
}

impl Balancer {
    /// One with `backends` backends of known MACs.
    #[track_caller]
    pub fn new(settings: &Settings, backends: u8) -> Self {
        Self::of(settings, &(0..backends).map(|index| Some(packet::backend_mac(index))).collect::<Vec<_>>())
    }

    /// One with a backend for each element; `None` is one of unknown MAC.
    #[track_caller]
    pub fn of(settings: &Settings, macs: &[Option<[u8; 6]>]) -> Self {
        let datapath = datapath_of(settings, &macs.iter().map(|mac| mac.map(Into::into)).collect::<Vec<_>>());
        let balancer = Self {
            sessions: Sessions::open(&datapath.maps).expect("the sessions can be read"),
            words: SharedWords::new(&datapath.maps.sessions).expect("the sessions can be mapped"),
            fragments: map_of(&datapath.client, "fragments"),
            hash_slots: schedule::hash_slots(&candidates(&vec![1; macs.len()])),
            settings: settings.clone(),
            count: macs.len() as u32,
            heard: AtomicU32::new(0),
            datapath,
        };
        balancer.hear(0);
        balancer
    }

    /// Makes what comes from the backend side come from `backend`: frames of a test run come in on the loopback
    /// interface, which becomes the one of that backend.
    #[track_caller]
    pub fn hear(&self, backend: u32) {
        self.heard.store(backend, Ordering::Relaxed);
        let backend = u16::try_from(backend).expect("few backends");
        let entry = types::lb_interface {
            ifindex: 1,
            index: backend,
            backend,
            role: types::lb_role::LB_EGRESS,
            ..Default::default()
        };
        interfaces::insert(&self.datapath.maps, entry).expect("an interface can be set");
    }

    /// Runs a program on a frame.
    #[track_caller]
    pub fn send(&self, side: Side, frame: &[u8]) -> Run {
        self.send_on(side, frame, None)
    }

    /// The same for a frame that came in on an interface of this thread's network namespace.
    #[track_caller]
    pub fn send_on(&self, side: Side, frame: &[u8], ingress_ifindex: Option<u32>) -> Run {
        let program = match side {
            Side::Client => &self.datapath.client,
            Side::Backend => &self.datapath.backend,
        };
        let options = RunOptions { ingress_ifindex, ..Default::default() };
        program.run(frame, options).expect("the program runs")
    }

    /// Sends a frame of a backend, from its own MAC.
    #[track_caller]
    pub fn answer(&self, backend: u32, frame: Vec<u8>) -> Run {
        self.hear(backend);
        let mac = self.mac(backend).expect("a backend that sends has a MAC");
        self.send(Side::Backend, &packet::sent_by(frame, mac))
    }

    /// Sends a client's frame.
    #[track_caller]
    pub fn outcome(&self, frame: &[u8]) -> Outcome {
        let counts = || stats::read_verdicts(&self.datapath.maps).expect("counters can be read");
        let before = counts();
        let run = self.send(Side::Client, frame);
        let position = counts().iter().zip(before).position(|(after, before)| *after != before);
        let to = (0..self.count).find(|&index| self.mac(index) == run.packet.first_chunk().copied());
        (stats::VERDICTS[position.expect("the packet is counted")].0, to)
    }

    /// Goes through the handshake that establishes a client.
    #[track_caller]
    pub fn establish(&self, client: IpAddr) {
        self.send(Side::Client, &packet::ike(client, Ike::init(INITIATOR)));
        self.hear(self.backend_of(client).expect("a start makes a session"));
        self.send(Side::Backend, &packet::ike_back(client, Ike::init_response(INITIATOR, RESPONDER)));
        self.send(Side::Client, &packet::ike(client, Ike::auth(INITIATOR, RESPONDER)));
        let state = self.sessions.of(client).next().map(|session| session.state);
        assert_eq!(state, Some(State::Established), "{client} did not get established");
    }

    /// The backend of a client's session.
    pub fn backend_of(&self, client: IpAddr) -> Option<u32> {
        self.sessions.of(client).next().map(|session| session.backend)
    }

    /// The entry of a key.
    pub fn entry(&self, key: Key) -> Option<Entry> {
        self.sessions.entries().find(|entry| entry.key == key)
    }

    /// All entries, in the order of their keys.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> =
            self.sessions.entries().map(|entry| (entry.key, entry.state, entry.backend)).collect();
        rows.sort();
        rows
    }

    /// Says what is wanted of a backend, as `lb backend` does.
    #[track_caller]
    pub fn want(&self, backend: u32, wanted: Wanted) {
        backend::set_wanted(&self.datapath.maps, backend, wanted).expect("a backend can be set");
        backend::reschedule(&self.datapath.maps).expect("the schedules can be made");
    }

    /// Gives backends their labels, in the order of their indexes.
    #[track_caller]
    pub fn label(&self, labels: &[Option<u32>]) {
        for (index, label) in (0..).zip(labels) {
            backend::set_label(&self.datapath.maps, index, *label).expect("a label can be set");
        }
    }

    /// Ends all that was remembered of clients.
    pub fn forget(&self) {
        self.sessions.flush();
        self.forget_fragments();
    }

    /// The backend that a client hashes to, worked out beside the datapath.
    pub fn hashed(&self, client: IpAddr) -> u32 {
        self.hash_slots[slot(client, 0x6c62, self.hash_slots.len())]
    }

    /// The bucket of the session table that a client's session is in.
    pub fn bucket(&self, client: IpAddr) -> usize {
        let config = self.datapath.maps.config().expect("readable").session_config;
        slot(client, config.seed, config.buckets as usize)
    }

    /// Sets up the backends anew, with other weights.
    #[track_caller]
    pub fn weigh(&mut self, weights: &[u32]) {
        let new: Vec<NewBackend> = (0..)
            .zip(weights)
            .map(|(index, &weight)| NewBackend {
                name: format!("eth{}", index + 2),
                port: index,
                mac: self.mac(index).map(Into::into),
                weight,
                ..NewBackend::default()
            })
            .collect();
        backend::install(&self.datapath.maps, &new).expect("the backends can be set up");
        self.hash_slots = schedule::hash_slots(&candidates(weights));
    }

    /// Makes all sessions look as if they had last been used `seconds` seconds earlier.
    pub fn age_sessions(&self, seconds: u32) {
        await_uptime(seconds);
        const WORDS: usize = size_of::<types::session>() / 8;
        const META: usize = offset_of!(types::session, meta) / 8;
        for slot in self.words.words().chunks_exact(WORDS) {
            let mut meta = types::session_meta::from_bytes(&slot[META].load(Ordering::Relaxed).to_ne_bytes())
                .expect("meta is one word");
            meta.last_seen = meta.last_seen.saturating_sub(seconds);
            slot[META].store(u64::from_bytes(meta.as_bytes()).expect("one word is meta"), Ordering::Relaxed);
        }
    }

    /// Makes what a backend was asked look as if it had been asked `seconds` seconds earlier, if it was.
    pub fn age_question(&self, index: u32, seconds: u32) {
        await_uptime(seconds);
        let backends = &self.datapath.maps.backends;
        let mut backend = backends.get(&index).expect("readable").expect("a backend");
        backend.asked = backend.asked.saturating_sub(seconds);
        backends.set(&index, &backend).expect("a backend can be set");
    }

    /// Makes all fragments look as if they had been seen `seconds` seconds earlier.
    pub fn age_fragments(&self, seconds: u32) {
        await_uptime(seconds);
        let seen = offset_of!(types::lb_fragment, seen);
        for key in self.fragments.keys() {
            let any = libbpf_rs::MapFlags::ANY;
            let mut value = self.fragments.lookup(&key, any).expect("readable").expect("just listed");
            let field = value[seen..].first_chunk_mut().expect("a field of four bytes");
            *field = u32::from_ne_bytes(*field).saturating_sub(seconds).to_ne_bytes();
            self.fragments.update(&key, &value, any).expect("a fragment can be written");
        }
    }

    /// Makes it the turn of `backend`.
    pub fn turn_to(&self, backend: u32) {
        let mut runtime = self.datapath.maps.runtime().expect("readable");
        runtime.ring_next = backend.into();
        self.datapath.maps.runtime.set(&0, &runtime).expect("the turn can be set");
    }

    /// Runs a fixture on an empty table, and ends the test if anything comes of it that is not expected.
    #[track_caller]
    pub fn check(&self, fixture: &Fixture) {
        self.forget();
        if let Some(client) = fixture.expected.client() {
            // Sessions are placed where the hash would not have, or a test could not tell the two ways.
            let next = (self.hashed(client) + 1) % self.count;
            self.turn_to(next);
            self.hear(next);
        }
        if let Some((backend, _)) = fixture.learns {
            self.hear(backend);
        }
        for (side, frame) in &fixture.before {
            self.send(*side, frame);
        }
        self.age_sessions(AGE);

        let before = self.world();
        let turn = self.datapath.maps.runtime().expect("readable").ring_next % u64::from(self.count);
        let run = self.send(fixture.side, &fixture.frame);
        let after = self.world();
        let mut faults = Vec::new();
        if run.action != fixture.expected.action() {
            faults.push(format!("XDP action {} in place of {}", run.action, fixture.expected.action()));
        }
        let (world, backend) = self.foresee(fixture, &before, turn as u32);
        let mut frame = fixture.frame.clone();
        if let Some(index) = backend {
            frame[..6].copy_from_slice(&self.mac(index).expect("the backend is resolved"));
        }
        if run.packet != frame {
            faults.push("the packet came out otherwise than this:".into());
            faults.push(decode::show(&frame));
        }
        faults.extend(world.differences(&after));
        faults.extend(self.way_fault(fixture, &before, backend));
        assert!(
            faults.is_empty(),
            "{}\n{:?}\n{}\nin: {}\nout: {}",
            fixture.description,
            fixture.expected,
            faults.join("\n"),
            decode::show(&fixture.frame),
            decode::show(&run.packet),
        );
    }

    /// What `before` is to become, and which backend the packet is to go to; `turn` is whose turn it is.
    fn foresee(&self, fixture: &Fixture, before: &World, turn: u32) -> (World, Option<u32>) {
        let mut world = before.clone();
        let count = Count { packets: 1, bytes: fixture.frame.len() as u64 };
        let add = |counts: &mut Vec<(&'static str, Count)>, name| {
            for (other, total) in counts {
                if *other == name {
                    *total = *total + count;
                }
            }
        };
        add(&mut world.verdicts, verdict_name(fixture.expected.verdict()));
        if let Some(cause) = fixture.unplaced {
            add(&mut world.unplaced, cause_name(cause));
        }
        if let Some((index, mac)) = fixture.learns {
            world.backends[index as usize].0 = Some(mac);
        }
        world.fragments += usize::from(fixture.remembers_fragment);

        let session = |world: &mut World, client| {
            world.sessions.iter().position(|session| session.client == client).inspect(|&position| {
                world.sessions[position].fresh = true;
            })
        };
        let backend = match fixture.expected {
            Expected::Session(client) => {
                let position = session(&mut world, client).expect("the fixture gives the client a session");
                let session = &mut world.sessions[position];
                session.packets += 1;
                session.bytes += count.bytes;
                session.established |= fixture.establishes;
                Some(session.backend)
            }
            Expected::New(client) => {
                let backend = turn;
                world.sessions.push(Seen {
                    client,
                    backend,
                    ingress: 0,
                    established: false,
                    fresh: true,
                    packets: 1,
                    bytes: count.bytes,
                });
                world.sessions.sort();
                Some(backend)
            }
            Expected::Hash(client) => Some(self.hashed(client)),
            Expected::Returned(client) => {
                let heard = self.heard.load(Ordering::Relaxed);
                let established = fixture.teaches == Some(State::Established);
                match (session(&mut world, client), fixture.teaches) {
                    // ESP from the session's own backend, which has so authenticated the client.
                    (Some(position), Some(_)) if established && world.sessions[position].backend == heard => {
                        world.established += u64::from(!world.sessions[position].established);
                        world.sessions[position].established = true;
                    }
                    (None, Some(_)) => {
                        world.sessions.push(Seen {
                            client,
                            backend: heard,
                            ingress: INGRESS_UNKNOWN,
                            established,
                            fresh: true,
                            packets: 0,
                            bytes: 0,
                        });
                        world.sessions.sort();
                        world.established += u64::from(established);
                    }
                    _ => {}
                }
                None
            }
            _ => None,
        };
        if let Some(index) = backend {
            let sent = &mut world.backends[index as usize].1;
            *sent = *sent + count;
        }
        world.established += u64::from(fixture.establishes);
        (world, backend)
    }

    fn world(&self) -> World {
        let maps = &self.datapath.maps;
        let mut sessions: Vec<Seen> = self
            .sessions
            .iter()
            .map(|session| Seen {
                client: session.client,
                backend: session.backend,
                ingress: session.ingress,
                established: session.state == State::Established,
                fresh: session.idle.as_secs() < u64::from(AGE) / 2,
                packets: session.packets,
                bytes: session.bytes,
            })
            .collect();
        sessions.sort();
        let verdicts = stats::read_verdicts(maps).expect("counters can be read");
        let backends = (0..self.count).map(|index| {
            let sent = counters::read(&maps.backend_counters, index).expect("a counter");
            (self.mac(index), sent)
        });
        World {
            verdicts: stats::VERDICTS
                .iter()
                .zip(verdicts)
                .map(|((_, name, _), count)| (*name, count))
                .collect(),
            unplaced: self.unplaced(),
            backends: backends.collect(),
            sessions,
            established: self.sessions.established(),
            fragments: self.fragments.keys().count(),
        }
    }

    /// The MAC of a backend, if it is resolved.
    #[track_caller]
    pub fn mac(&self, index: u32) -> Option<[u8; 6]> {
        let backend = self.datapath.maps.backends.get(&index).expect("readable").expect("a backend");
        (backend.station.mac != [0; 6]).then_some(backend.station.mac)
    }

    /// How many starts got no session, by cause.
    #[track_caller]
    pub fn unplaced(&self) -> Vec<(&'static str, Count)> {
        let count = |cause| counters::read(&self.datapath.maps.unplaced, cause).expect("a counter");
        let all = stats::UNPLACED.map(|(cause, name, _)| (name, count(cause.0)));
        all.into()
    }

    fn forget_fragments(&self) {
        let keys: Vec<Vec<u8>> = self.fragments.keys().collect();
        for key in keys {
            self.fragments.delete(&key).expect("a fragment can be forgotten");
        }
    }

    /// What is wrong with the interface that a forwarded packet leaves by.
    fn way_fault(&self, fixture: &Fixture, before: &World, backend: Option<u32>) -> Option<String> {
        let expected = match fixture.expected {
            Expected::Neighbour(way) => way,
            Expected::Returned(client) => {
                let session = before.sessions.iter().find(|session| session.client == client);
                match session {
                    Some(session) if session.ingress != INGRESS_UNKNOWN => Way::Port(session.ingress.into()),
                    _ if self.settings.ingress_count == 1 => Way::Port(0),
                    _ => Way::All,
                }
            }
            _ => Way::Port(backend?),
        };
        let found = self.way(fixture.side, &fixture.frame, None);
        (found != Some(expected)).then(|| format!("it leaves by {found:?} in place of {expected:?}"))
    }

    /// Which way a packet leaves. Without any port only a broadcast is redirected, with one port only what
    /// goes to that one: so the answer is the kernel's.
    pub fn way(&self, side: Side, frame: &[u8], ingress_ifindex: Option<u32>) -> Option<Way> {
        let ports: &Table<u32, u32> = match side {
            Side::Client => &self.datapath.maps.egress_ports,
            Side::Backend => &self.datapath.maps.ingress_ports,
        };
        let all: Vec<(u32, u32)> = ports
            .keys()
            .into_iter()
            .filter_map(|key| Some((key, ports.get(&key).expect("a port can be read")?)))
            .collect();
        let redirected = || self.send_on(side, frame, ingress_ifindex).action == XDP_REDIRECT;
        all.iter().for_each(|(key, _)| ports.delete(key).expect("a port can be removed"));
        let mut way = redirected().then_some(Way::All);
        for (key, interface) in &all {
            ports.set(key, interface).expect("a port can be set");
            if way.is_none() && redirected() {
                way = Some(Way::Port(*key));
            }
            ports.delete(key).expect("a port can be removed");
        }
        all.iter().for_each(|(key, interface)| ports.set(key, interface).expect("a port can be set"));
        way
    }
}

impl World {
    fn differences(&self, found: &Self) -> Vec<String> {
        let differ = |what: &str, expected: String, found: String| {
            (expected != found).then(|| format!("{what}:\n  expected {expected}\n  found    {found}"))
        };
        [
            differ("verdicts", counted(&self.verdicts), counted(&found.verdicts)),
            differ("unplaced starts", counted(&self.unplaced), counted(&found.unplaced)),
            differ("backends", format!("{:?}", self.backends), format!("{:?}", found.backends)),
            differ("sessions", format!("{:?}", self.sessions), format!("{:?}", found.sessions)),
            differ("sessions established", self.established.to_string(), found.established.to_string()),
            differ("fragments", self.fragments.to_string(), found.fragments.to_string()),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

fn candidates(weights: &[u32]) -> Vec<Candidate> {
    let named = |(index, &weight)| Candidate { index, name: format!("eth{}", index + 2), weight };
    (0..).zip(weights).map(named).collect()
}

/// Waits until the machine has been up for so long: before that nothing can have been seen so many seconds ago.
fn await_uptime(seconds: u32) {
    let uptime = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("there is a clock").tv_sec();
    let wait = i64::from(seconds) + 1 - uptime;
    sleep(Duration::from_secs(wait.try_into().unwrap_or_default()));
}

/// Where among `count` slots a client's address hashes to: address_hash() and hash_to_range() of the datapath.
fn slot(client: IpAddr, seed: u64, count: usize) -> usize {
    let words = types::address::from(client).words;
    let mut hash = (words[0] ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 32;
    hash = hash.wrapping_add(words[1]);
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^= hash >> 32;
    (((hash >> 32) * count as u64) >> 32) as usize
}

fn counted(counts: &[(&str, Count)]) -> String {
    let shown = counts.iter().filter(|(_, count)| *count != Count::default());
    shown
        .map(|(name, count)| format!("{name} {}/{}", count.packets, count.bytes))
        .collect::<Vec<_>>()
        .join(", ")
}

fn verdict_name(verdict: lb_verdict) -> &'static str {
    let found = stats::VERDICTS.iter().find(|(other, ..)| *other == verdict);
    found.expect("each verdict has a name").1
}

fn cause_name(cause: lb_unplaced) -> &'static str {
    let found = stats::UNPLACED.iter().find(|(other, ..)| *other == cause);
    found.expect("each cause has a name").1
}

/// A map that a program uses and the library has no need of.
#[track_caller]
fn map_of(program: &Program, name: &str) -> MapHandle {
    let id = program.id().expect("a loaded program has a number");
    ProgInfoIter::with_query_opts(ProgInfoQueryOptions::default().include_map_ids(true))
        .find(|info| info.id == id)
        .expect("a loaded program is listed")
        .map_ids
        .into_iter()
        .filter_map(|id| MapHandle::from_map_id(id).ok())
        .find(|map| map.name() == name)
        .unwrap_or_else(|| panic!("the program has no map {name}"))
}
