//! ESP at tens of thousands of packets a second, of which every single one is accounted for.
//!
//! A program at the far end checks the sequence numbers, and no more packets are under way than the shortest queue between
//! holds: a packet that is lost is lost by what stands between, not by the test.

use std::fs;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, SockaddrLike, bind, send, socket};
use serde_json::Value;

use crate::common::namespace::{Namespace, run};
use crate::common::packet::{self, Ike};
use crate::lab::{BACKENDS, Family, Network, PATIENCE, eventually};
use crate::packets::{NAT, Tap, Taps};
use lb::kernel::interface::Interface;
use lb::kernel::program::{Program, RunOptions};
use lb::kernel::table::Table;
use lb::kernel::value::MapValue;
use lb::kernel::xdp::{Link, Mode};

mod program {
    include!(concat!(env!("OUT_DIR"), "/stream.skel.rs"));
}
use program::types::{stream_tally, stream_totals};

lb::map_values! { stream_tally, stream_totals }

/// How many packets may be under way. A veth takes 256 before it loses any (drivers/net/veth.c, `VETH_RING_SIZE`), and a
/// flood has its own share (`bpf/testing/stream.bpf.c`).
const WINDOW: u64 = 128;

/// Packets of one leg between two looks at the clock.
const BATCH: u64 = 32;

/// What has not arrived for so long is lost.
const LOST: Duration = Duration::from_secs(2);

/// The mark of counted frames, and how many flows there can be (`bpf/testing/stream.bpf.c`).
const MAGIC: u32 = 0x5357_464c;
const FLOWS: usize = 64;

/// Where streams end.
pub struct Receivers {
    places: Vec<Place>,
    totals: Table<u32, stream_totals>,
}

struct Place {
    links: Vec<Link>,
    tallies: Table<u32, stream_tally>,
}

impl Receivers {
    /// Counts, and takes away, what comes to these interfaces: each pair is a place of its own.
    #[track_caller]
    pub fn new(places: &[(&Namespace, &[&str])]) -> Self {
        let mut totals = None;
        let places = places.iter().map(|(namespace, interfaces)| {
            let mut storage = MaybeUninit::uninit();
            let mut open = program::StreamSkelBuilder::default().open(&mut storage).expect("it opens");
            if let Some(totals) = &totals {
                let totals: &Table<u32, stream_totals> = totals;
                open.maps.stream_totals.reuse_fd(totals.handle().as_fd()).expect("a map is shared");
            }
            let skeleton = open.load().expect("it loads");
            totals.get_or_insert_with(|| table(&skeleton.maps.stream_totals));
            let program = Program::from_fd(skeleton.progs.stream_receive.as_fd()).expect("a handle");
            let attach = |name: &&str| {
                let interface = Interface::find(name).expect("the interface is there");
                Link::attach(&program, &interface, Mode::Drv).expect("nothing is in the way")
            };
            let links = namespace.within(|| interfaces.iter().map(attach).collect());
            Place { links, tallies: table(&skeleton.maps.stream_tallies) }
        });
        let places = places.collect();
        Self { places, totals: totals.expect("there is a place") }
    }

    /// `eth1` of each backend of a network, and then of its client.
    #[track_caller]
    pub fn of(network: &Network) -> Self {
        let places: Vec<_> = network.backends.iter().chain([&network.client]).collect();
        Self::new(&places.iter().map(|namespace| (*namespace, &["eth1"][..])).collect::<Vec<_>>())
    }

    fn totals(&self) -> stream_totals {
        self.totals.get(&0).expect("it can be read").expect("an array has its entries")
    }

    /// What the places have of a flow.
    fn outcome(&self, number: usize, sent: u32) -> Outcome {
        let tally = |place: &Place| {
            place.tallies.get(&(number as u32)).expect("it can be read").expect("an array has its entries")
        };
        let tallies: Vec<stream_tally> = self.places.iter().map(tally).collect();
        Outcome {
            sent: sent.into(),
            received: tallies.iter().map(|tally| tally.received).collect(),
            late: tallies.iter().map(|tally| tally.late).sum(),
            skipped: tallies.iter().map(|tally| tally.skipped).sum(),
        }
    }

    /// Sends so many starts, each from a source and with an initiator SPI of its own, out of `eth1` of a namespace. `start` is
    /// what they look like otherwise. Returns how many arrived.
    #[track_caller]
    pub fn flood(&self, namespace: &Namespace, start: &[u8], count: u64) -> u64 {
        let udp = packet::l4_at(start);
        // No checksum: it would cover what is replaced.
        let start = packet::poked(start.to_vec(), udp + 6, &[0, 0]);
        let mut storage = MaybeUninit::uninit();
        let mut open = program::StreamSkelBuilder::default().open(&mut storage).expect("it opens");
        open.maps.stream_totals.reuse_fd(self.totals.handle().as_fd()).expect("a map is shared");
        let skeleton = open.load().expect("it loads");
        let port = MapHandle::try_from(&skeleton.maps.stream_port).expect("a handle");
        let program = Program::from_fd(skeleton.progs.stream_flood.as_fd()).expect("a handle");
        namespace.within(move || {
            let index = Interface::find("eth1").expect("the interface is there").index;
            port.update(&0u32.to_ne_bytes(), &index.to_ne_bytes(), MapFlags::ANY).expect("a port can be set");
        });
        let before = self.totals();
        let since = Instant::now();
        loop {
            let made = self.totals().flood_made - before.flood_made;
            let Some(left) = count.checked_sub(made).filter(|&left| left > 0) else { break };
            assert!(since.elapsed() < 10 * PATIENCE, "the flood stops after {made} starts");
            let options = RunOptions { repeat: left.min(50_000) as u32, live: true, ..Default::default() };
            program.run(&start, options).expect("frames are sent");
        }
        let arrived = || self.totals().flood_arrived - before.flood_arrived;
        eventually(LOST, || arrived() >= count);
        arrived()
    }
}

impl Drop for Receivers {
    fn drop(&mut self) {
        // A dropped link may live on for a moment, in a process that another test is just starting.
        for link in self.places.iter().flat_map(|place| &place.links) {
            let _ = link.detach();
        }
    }
}

fn table<K: MapValue, V: MapValue>(map: &libbpf_rs::MapMut<'_>) -> Table<K, V> {
    Table::new(MapHandle::try_from(map).expect("a handle")).expect("the sizes are the skeleton's")
}

/// One sender's packets to one receiver.
#[derive(Clone, Debug)]
pub struct Flow {
    /// What its packets look like, with the last one's sequence number.
    frame: Vec<u8>,
    sequence_at: usize,
    sent: u32,
}

impl Flow {
    /// Plain ESP as the frame is.
    pub fn esp(frame: Vec<u8>) -> Self {
        let sequence_at = packet::l4_at(&frame) + 4;
        Self { frame, sequence_at, sent: 0 }
    }

    /// ESP in UDP as the frame is. The checksum of UDP, which would cover the sequence number, is left out.
    pub fn esp_in_udp(frame: Vec<u8>) -> Self {
        let udp = packet::l4_at(&frame);
        Self { frame: packet::poked(frame, udp + 6, &[0, 0]), sequence_at: udp + 8 + 4, sent: 0 }
    }

    /// Marks the frame as one of flow `number`.
    fn mark(&mut self, number: usize) {
        let number = u16::try_from(number).expect("flows are few").to_ne_bytes();
        let sequence_at = u16::try_from(self.sequence_at).expect("frames are short").to_ne_bytes();
        let mark = [&MAGIC.to_ne_bytes()[..], &number, &sequence_at].concat();
        let at = self.frame.len() - mark.len();
        self.frame[at..].copy_from_slice(&mark);
    }

    fn send(&mut self, socket: &OwnedFd) {
        let sequence = (self.sent + 1).to_be_bytes();
        self.frame[self.sequence_at..][..sequence.len()].copy_from_slice(&sequence);
        send(socket.as_raw_fd(), &self.frame, MsgFlags::empty()).expect("a frame can be sent");
        self.sent += 1;
    }
}

/// Where streams begin.
#[derive(Default)]
pub struct Sender {
    legs: Vec<Leg>,
    flows: Vec<Flow>,
}

/// Flows that leave by one interface.
struct Leg {
    socket: OwnedFd,
    /// Its turn comes once in so many.
    every: usize,
    /// Its flows, and the one that is next.
    flows: std::ops::Range<usize>,
    next: usize,
}

impl Sender {
    /// Lets flows leave by an interface, once in so many turns.
    #[track_caller]
    pub fn add(&mut self, namespace: &Namespace, interface: &str, every: usize, flows: Vec<Flow>) {
        let first = self.flows.len();
        self.flows.extend(flows);
        assert!(self.flows.len() <= FLOWS, "there is room for {FLOWS} flows");
        for (number, flow) in self.flows.iter_mut().enumerate().skip(first) {
            flow.mark(number);
        }
        let socket = namespace.within(|| raw_socket(interface)).expect("root may open raw sockets");
        self.legs.push(Leg { socket, every, flows: first..self.flows.len(), next: first });
    }

    /// Sends as [`Running::start`] says.
    fn run(&mut self, receivers: &Receivers, pace: u64, stop: &AtomicBool) {
        let start = Instant::now();
        let before = receivers.totals().arrived;
        let (mut sent, mut lost) = (0u64, 0);
        // Waits until no more than `most` packets are under way.
        let mut wait = |sent: u64, most: u64| {
            let since = Instant::now();
            loop {
                let under_way = sent.saturating_sub(receivers.totals().arrived - before + lost);
                if under_way <= most {
                    return;
                }
                if since.elapsed() > LOST {
                    lost += under_way;
                    return;
                }
                thread::sleep(Duration::from_micros(20));
            }
        };
        for turn in 0.. {
            for leg in self.legs.iter_mut().filter(|leg| turn % leg.every == 0) {
                for _ in 0..BATCH {
                    self.flows[leg.next].send(&leg.socket);
                    leg.next = if leg.next + 1 < leg.flows.end { leg.next + 1 } else { leg.flows.start };
                }
                sent += BATCH;
                wait(sent, WINDOW - BATCH);
            }
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let due = start + Duration::from_secs_f64(sent as f64 / pace as f64);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        wait(sent, 0);
    }
}

/// Puts this thread before all others, as its pace is what is asked for: tests run side by side.
fn hurry() {
    let this = fs::read_link("/proc/thread-self").expect("there is /proc");
    let thread = this.file_name().expect("a thread has a number");
    run(Command::new("renice").args(["-n", "-19", "-p"]).arg(thread));
}

/// A socket that sends frames out of an interface, and hears nothing.
fn raw_socket(interface: &str) -> nix::Result<OwnedFd> {
    let raw = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    let address = getifaddrs()?
        .filter(|found| found.interface_name == interface)
        .filter_map(|found| found.address)
        .find(|address| address.family() == Some(AddressFamily::Packet))
        .expect("the interface is there");
    bind(raw.as_raw_fd(), &address)?;
    Ok(raw)
}

/// Streams that go on until they are told to stop.
pub struct Running {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Sender>,
    receivers: Arc<Receivers>,
    since: Instant,
}

/// What came of one flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub sent: u64,
    /// How much of it each place got.
    pub received: Vec<u64>,
    /// Sequence numbers that were repeated, or overtaken by a later one.
    pub late: u64,
    /// Sequence numbers that were left out by those that came.
    pub skipped: u64,
}

impl Outcome {
    /// The places that got any of it.
    pub fn places(&self) -> Vec<usize> {
        (0..self.received.len()).filter(|&place| self.received[place] > 0).collect()
    }

    pub fn lost(&self) -> i64 {
        self.sent as i64 - self.received.iter().sum::<u64>() as i64
    }

    /// Every number came, once, in order, to one place. Returns which.
    #[track_caller]
    pub fn whole(&self) -> usize {
        let places = self.places();
        assert_eq!((self.lost(), self.late, self.skipped, places.len()), (0, 0, 0, 1), "{self:?}");
        places[0]
    }
}

/// What came of streams, since their first beginning.
#[derive(Clone, Debug)]
pub struct Report {
    pub flows: Vec<Outcome>,
    pub sent: u64,
    /// Packets a second, since the last start.
    pub rate: f64,
}

impl Running {
    /// Sends `pace` packets a second, or as many as can be if that is fewer.
    #[track_caller]
    pub fn start(mut sender: Sender, receivers: Receivers, pace: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let receivers = Arc::new(receivers);
        let (told, counted) = (stop.clone(), receivers.clone());
        let thread = thread::spawn(move || {
            hurry();
            sender.run(&counted, pace, &told);
            sender
        });
        Self { stop, thread, receivers, since: Instant::now() }
    }

    pub fn receivers(&self) -> &Receivers {
        &self.receivers
    }

    /// Stops, and waits for what is under way.
    #[track_caller]
    pub fn finish(self, before: u64) -> (Report, Sender, Receivers) {
        self.stop.store(true, Ordering::Relaxed);
        let sender = self.thread.join().expect("the sender does not panic");
        let elapsed = self.since.elapsed();
        let receivers = Arc::into_inner(self.receivers).expect("the sender has let go of it");
        let flows: Vec<Outcome> = sender
            .flows
            .iter()
            .enumerate()
            .map(|(number, flow)| receivers.outcome(number, flow.sent))
            .collect();
        let sent: u64 = flows.iter().map(|flow| flow.sent).sum();
        let report = Report { rate: (sent - before) as f64 / elapsed.as_secs_f64(), sent, flows };
        (report, sender, receivers)
    }
}

/// One client's end of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    pub address: IpAddr,
    /// The source port of what goes to port 4500.
    pub port: u16,
    pub initiator_spi: u64,
    /// The SPI that the backend answers with, until its own bits are put in.
    pub responder_spi: u64,
}

impl End {
    /// Client number `number` of a network, 1 to 10, with an address of its own.
    pub fn numbered(family: Family, number: u8) -> Self {
        let spi = u64::from(number) | if family == Family::V6 { 0x100 } else { 0 };
        Self {
            address: family.client(number),
            port: NAT,
            initiator_spi: 0x1aaa_0000_0000_0000 + spi,
            responder_spi: 0x2bbb_0000_0000_0000 + spi,
        }
    }

    /// Client number `number` of many behind one NAT, the first of the network's addresses.
    pub fn behind_nat(number: u8) -> Self {
        let one = Self::numbered(Family::V4, number);
        Self { address: Family::V4.client(1), port: 20_000 + u16::from(number), ..one }
    }

    /// Its ESP in UDP.
    pub fn esp_in_udp(&self) -> Flow {
        Flow::esp_in_udp(packet::esp_in_udp(self.address, self.port, self.spi()))
    }

    /// ESP that the backend sends to it.
    pub fn esp_back(&self, backend: usize) -> Flow {
        Flow::esp(answer(backend, packet::esp_back(self.address, self.spi() + 1)))
    }

    /// Whether a row of `lb session list` is its own.
    fn has(&self, row: &Value) -> bool {
        match row["spi"].as_str() {
            None => row["client"] == self.address.to_string(),
            Some(spi) => {
                spi.ends_with(&format!("{:016x}", self.initiator_spi))
                    && row["client"] == SocketAddr::new(self.address, self.port).to_string()
            }
        }
    }

    fn spi(&self) -> u32 {
        0x3000_0000 | (self.initiator_spi as u32 & 0xffff) << 8
    }
}

/// A frame as a backend sends it to the client.
pub fn answer(backend: usize, frame: Vec<u8>) -> Vec<u8> {
    packet::sent_to(packet::sent_by(frame, packet::backend_mac(backend as u8)), packet::CLIENT_MAC)
}

/// Takes clients through IKE, up to the message that proves that they hear their backends. Returns each one's backend.
#[track_caller]
pub fn establish(network: &Network, ends: &[End]) -> Vec<usize> {
    let (client, backends) = (Tap::new(&network.client, "eth1"), Taps::new(network));
    for End { address, port, initiator_spi, .. } in ends {
        client.send(&packet::ike_nat(*address, *port, Ike::init(*initiator_spi)));
    }
    let mut rows = Vec::new();
    let mut all_have = || {
        let sessions = network.lab.sessions();
        rows = ends.iter().map(|end| sessions.iter().find(|row| end.has(row)).cloned()).collect();
        rows.iter().all(Option::is_some)
    };
    assert!(eventually(PATIENCE, &mut all_have), "not all of {ends:?} get sessions");
    let index = |row: &Option<Value>| {
        let name = row.as_ref().and_then(|row| row["backend"].as_str()).expect("a session has a backend");
        (0..BACKENDS).find(|index| format!("eth{}", index + 2) == name).expect("it is one of these")
    };
    let placed: Vec<usize> = rows.iter().map(index).collect();
    let all_are_proven = || {
        for (end, &backend) in ends.iter().zip(&placed) {
            let End { address, port, initiator_spi, responder_spi } = *end;
            let reply = Ike::init_response(initiator_spi, responder_spi);
            backends.0[backend].send(&answer(backend, packet::ike_nat_back(address, port, reply)));
            client.send(&packet::ike_nat(address, port, Ike::auth(initiator_spi, responder_spi)));
        }
        let sessions = network.lab.sessions();
        let is_proven = |end: &End| sessions.iter().any(|row| end.has(row) && row["state"] == "established");
        ends.iter().all(is_proven)
    };
    assert!(eventually(PATIENCE, all_are_proven), "not all of {ends:?} are proven");
    placed
}

/// Traffic of tunnels both ways: from clients ESP in UDP, and a quarter as much from each backend. With it, flow by flow, the
/// place of [`Receivers::of`] where it has to come out.
#[track_caller]
pub fn both_ways(network: &Network, ends: &[End], backends: &[usize]) -> (Sender, Vec<usize>) {
    let mut places = backends.to_vec();
    let mut sender = Sender::default();
    sender.add(&network.client, "eth1", 1, ends.iter().map(End::esp_in_udp).collect());
    for (index, backend) in network.backends.iter().enumerate() {
        let its_own = ends.iter().zip(backends).filter(|(_, other)| **other == index);
        let flows: Vec<Flow> = its_own.map(|(end, _)| end.esp_back(index)).collect();
        assert!(!flows.is_empty(), "each backend has a tunnel");
        places.extend(flows.iter().map(|_| BACKENDS));
        sender.add(backend, "eth1", BACKENDS, flows);
    }
    (sender, places)
}
