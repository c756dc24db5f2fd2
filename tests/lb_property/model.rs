//! What the balancer has to do with each packet, after the dispatch rules: a reading of its own, kept apart from
//! the datapath, for affinity `address`.
//!
//! A backend is active here if its MAC is known. Nothing expires, as a run takes no second of anyone's time-out.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::rc::Rc;

use lb::kernel::counters::Count;
use lb::lb::backend::NewBackend;
use lb::lb::datapath::{Other, Policy, ReturnPath, Settings};
use lb::lb::schedule::{self, Candidate, HASH_SLOTS};
use lb::lb::session::State;

use crate::frame::{self, Content, Direction, FragmentKey, Ike, Mac, Message, Packet};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Session,
    New,
    Stateless,
    Neighbour,
    Returned,
    Malformed,
    KeepaliveDropped,
    OtherDropped,
    OtherPassed,
    NoBackend,
}

impl Verdict {
    /// The name in `lb stats`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::New => "new",
            Self::Stateless => "stateless",
            Self::Neighbour => "neighbour",
            Self::Returned => "returned",
            Self::Malformed => "malformed",
            Self::KeepaliveDropped => "keepalive_dropped",
            Self::OtherDropped => "other_dropped",
            Self::OtherPassed => "other_passed",
            Self::NoBackend => "no_backend",
        }
    }
}

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Drop,
    Pass,
    /// To one backend, with its MAC as the destination.
    Backend(u32),
    EveryBackend,
    Ingress(u8),
    EveryIngress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub verdict: Verdict,
    pub way: Way,
    /// The start found no room for a session.
    pub table_full: bool,
    /// The rules leave it open which backend gets the packet.
    pub open: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub backend: u32,
    pub state: State,
    pub ingress: u8,
    pub sent: Count,
    /// Of the newest IKE SA begun or answered; `None` where only echo requests came.
    initiator_spi: Option<u64>,
    /// The SPIs of the last message in which the backend showed what it knows of an SA of both; both are its proof.
    answered: Option<(u64, u64)>,
}

#[derive(Clone, Debug)]
pub struct Backend {
    pub mac: Option<Mac>,
    pub learned: bool,
    pub sent: Count,
    weight: u32,
}

#[derive(Clone, Debug)]
pub struct Model {
    settings: Settings,
    pub backends: Vec<Backend>,
    pub sessions: BTreeMap<IpAddr, Session>,
    fragments: HashMap<FragmentKey, u32>,
    ring: Rc<[u32]>,
    slots: Rc<[u32]>,
    /// Turns that were taken of the ring; unknown once a turn fell to a backend of unknown MAC.
    turn: Option<usize>,
    /// What a client's hash came to, where its own slot is of an unresolved backend, by the backends then active.
    detours: HashMap<(IpAddr, Vec<u32>), u32>,
    /// The backend that the datapath chose for the packet at hand: consulted only where the rules leave a choice.
    observed: Option<u32>,
    /// Whether it was consulted.
    open: bool,
}

impl Model {
    pub fn new(settings: &Settings, backends: &[NewBackend]) -> Self {
        let candidates: Vec<Candidate> = (0..)
            .zip(backends)
            .map(|(index, new)| Candidate { index, name: new.name.clone(), weight: new.weight })
            .collect();
        let backend = |new: &NewBackend| Backend {
            mac: new.mac.map(|mac| mac.into_array()),
            learned: false,
            sent: Count::default(),
            weight: new.weight,
        };
        Self {
            settings: settings.clone(),
            backends: backends.iter().map(backend).collect(),
            sessions: BTreeMap::new(),
            fragments: HashMap::new(),
            ring: schedule::ring(&candidates).into(),
            slots: schedule::hash_slots(&candidates).into(),
            turn: Some(0),
            detours: HashMap::new(),
            observed: None,
            open: false,
        }
    }

    /// A frame that arrives on client-side interface `ingress`.
    pub fn client_sends(&mut self, ingress: u8, frame: &[u8], observed: Option<u32>) -> Outcome {
        self.observed = observed;
        self.open = false;
        let result = self.client_outcome(ingress, frame);
        Outcome { open: self.open, ..result }
    }

    fn client_outcome(&mut self, ingress: u8, frame: &[u8]) -> Outcome {
        match frame::read(frame, Direction::ToBackend) {
            Content::Malformed => outcome(Verdict::Malformed, Way::Drop),
            Content::Neighbour => outcome(Verdict::Neighbour, self.way_of_neighbour(frame)),
            Content::Unknown => self.other(),
            Content::Ip(packet) => {
                let vips = &self.settings.vips;
                if !vips.is_empty() && !vips.contains(&packet.destination) {
                    return self.other();
                }
                self.dispatch(ingress, &packet, frame.len() as u64)
            }
        }
    }

    fn way_of_neighbour(&self, frame: &[u8]) -> Way {
        let (to, _) = frame::macs(frame);
        if is_group(to) {
            return Way::EveryBackend;
        }
        match self.backends.iter().position(|backend| backend.mac == Some(to)) {
            Some(index) => Way::Backend(index as u32),
            None => Way::EveryBackend,
        }
    }

    fn dispatch(&mut self, ingress: u8, packet: &Packet, bytes: u64) -> Outcome {
        let client = packet.source;
        let seen_on = Some(ingress);
        let result = match packet.message {
            Message::Ike(ike) => {
                if let Some(session) = self.sessions.get(&client).cloned() {
                    self.hear_client(client, session, ike);
                    self.by_session_or_hash(client, seen_on, bytes)
                } else if ike.start {
                    self.start(client, ingress, Some(ike.initiator_spi), bytes)
                } else {
                    self.by_hash(client, bytes)
                }
            }
            Message::EchoRequest if !self.sessions.contains_key(&client) => {
                self.start(client, ingress, None, bytes)
            }
            // Whoever has no session has no tunnel whose NAT binding must stay alive.
            Message::Keepalive if !self.sessions.contains_key(&client) => {
                return outcome(Verdict::KeepaliveDropped, Way::Drop);
            }
            Message::Keepalive
            | Message::EspInUdp
            | Message::Esp
            | Message::Ah
            | Message::EchoRequest
            | Message::EchoReply => self.by_session_or_hash(client, seen_on, bytes),
            // A router sends it as often as the client: it says nothing about where the client is.
            Message::IcmpError { client } => {
                let client = client.expect("an error on its way to a backend was looked into");
                self.by_session_or_hash(client, None, bytes)
            }
            Message::LaterFragment => self.later_fragment(ingress, packet, bytes),
            Message::OtherIcmp | Message::Other => return self.other(),
        };
        if let (Way::Backend(backend), Some(key)) = (result.way, packet.fragment)
            && packet.message != Message::LaterFragment
        {
            self.fragments.insert(key, backend);
        }
        result
    }

    /// What a client's IKE message teaches about its session: a new SA, or the proof that it heard its backend.
    fn hear_client(&mut self, client: IpAddr, mut session: Session, ike: Ike) {
        if session.state == State::Established {
            return;
        }
        if ike.start {
            session.note_start(ike.initiator_spi);
        } else {
            let proven = match self.settings.return_path {
                ReturnPath::Here => session.answered == Some((ike.initiator_spi, ike.responder_spi)),
                ReturnPath::Direct => ike.responder_spi != 0,
            };
            // The rules do not say what becomes of a proof beyond the number of sessions. Whoever was let in before
            // that was reached has a tunnel now, and would lose it with an embryonic session's time-out.
            if proven {
                session.state = State::Established;
            }
        }
        self.sessions.insert(client, session);
    }

    /// Whether one more session may be established.
    fn room(&self) -> bool {
        let established =
            self.sessions.values().filter(|session| session.state == State::Established).count();
        established < self.settings.max_sessions as usize
    }

    fn start(&mut self, client: IpAddr, ingress: u8, initiator_spi: Option<u64>, bytes: u64) -> Outcome {
        if !self.room() {
            let result = self.by_hash(client, bytes);
            return Outcome { table_full: result.verdict == Verdict::Stateless, ..result };
        }
        let chosen = match self.settings.policy {
            Policy::RoundRobin | Policy::LeastSessions => self.take_turn(),
            Policy::Maglev => self.hash(client),
        };
        let Some(backend) = chosen else { return outcome(Verdict::NoBackend, Way::Drop) };
        let session = Session {
            backend,
            state: State::Embryonic,
            ingress,
            sent: Count { packets: 1, bytes },
            initiator_spi,
            answered: None,
        };
        self.sessions.insert(client, session);
        self.forward(Verdict::New, backend, bytes)
    }

    /// To the client's session, whose client was just heard on an ingress interface if one is given.
    fn by_session_or_hash(&mut self, client: IpAddr, seen_on: Option<u8>, bytes: u64) -> Outcome {
        let Some(session) = self.sessions.get_mut(&client) else { return self.by_hash(client, bytes) };
        session.sent = session.sent + Count { packets: 1, bytes };
        session.ingress = seen_on.unwrap_or(session.ingress);
        let backend = session.backend;
        self.forward(Verdict::Session, backend, bytes)
    }

    fn by_hash(&mut self, client: IpAddr, bytes: u64) -> Outcome {
        match self.hash(client) {
            Some(backend) => self.forward(Verdict::Stateless, backend, bytes),
            None => outcome(Verdict::NoBackend, Way::Drop),
        }
    }

    fn later_fragment(&mut self, ingress: u8, packet: &Packet, bytes: u64) -> Outcome {
        let known = packet.fragment.and_then(|key| self.fragments.get(&key).copied());
        let of_session = self.sessions.get(&packet.source).map(|session| session.backend);
        match known {
            // The first fragment went elsewhere than the session, as it came before it.
            Some(backend) if of_session != Some(backend) => self.forward(Verdict::Stateless, backend, bytes),
            _ => self.by_session_or_hash(packet.source, Some(ingress), bytes),
        }
    }

    fn forward(&mut self, verdict: Verdict, backend: u32, bytes: u64) -> Outcome {
        let sent = &mut self.backends[backend as usize].sent;
        *sent = *sent + Count { packets: 1, bytes };
        outcome(verdict, Way::Backend(backend))
    }

    fn other(&self) -> Outcome {
        match self.settings.other {
            Other::Drop => outcome(Verdict::OtherDropped, Way::Drop),
            Other::Pass => outcome(Verdict::OtherPassed, Way::Pass),
        }
    }

    /// Backends that take new clients.
    fn takers(&self) -> Vec<u32> {
        let takes = |backend: &Backend| backend.mac.is_some() && backend.weight > 0;
        (0..).zip(&self.backends).filter(|(_, backend)| takes(backend)).map(|(index, _)| index).collect()
    }

    fn is_taker(&self, index: u32) -> bool {
        self.takers().contains(&index)
    }

    /// The next backend in turn. With unresolved ones in the ring any active one may take their turns, and then
    /// whose turn it is follows from what the datapath does next.
    fn take_turn(&mut self) -> Option<u32> {
        let takers = self.takers();
        let all_take = self.ring.iter().all(|index| takers.contains(index));
        match self.turn {
            Some(turn) if all_take => {
                self.turn = Some(turn + 1);
                self.ring.get(turn % self.ring.len().max(1)).copied()
            }
            _ => {
                self.open = true;
                let chosen =
                    self.observed.filter(|&index| self.is_taker(index)).or(takers.first().copied())?;
                let turns: Vec<usize> =
                    (0..self.ring.len()).filter(|&turn| self.ring[turn] == chosen).collect();
                self.turn = match turns[..] {
                    [turn] if all_take => Some(turn + 1),
                    _ => None,
                };
                Some(chosen)
            }
        }
    }

    /// The backend that the client's address alone leads to. Where that one is unresolved, any active one will do,
    /// but it has to be the same as long as the same backends are active.
    fn hash(&mut self, client: IpAddr) -> Option<u32> {
        let &own = self.slots.get(slot(client) as usize)?;
        if self.is_taker(own) {
            return Some(own);
        }
        self.open = true;
        let takers = self.takers();
        let first = takers.first().copied()?;
        let observed = self.observed.filter(|&index| self.is_taker(index));
        Some(*self.detours.entry((client, takers)).or_insert(observed.unwrap_or(first)))
    }

    /// A frame that arrives on the interface of backend `port`.
    pub fn backend_sends(&mut self, port: u32, frame: &[u8]) -> Outcome {
        let (_, from) = frame::macs(frame);
        let content = frame::read(frame, Direction::ToClient);
        // What is forwarded teaches the backend's MAC. A switch in between may have frames of its own, such as LLDP.
        let other = matches!(&content, Content::Ip(packet) if packet.message == Message::Other);
        if !other && !matches!(content, Content::Malformed | Content::Unknown) {
            self.learn(port, from);
        }
        match content {
            Content::Malformed => outcome(Verdict::Malformed, Way::Drop),
            Content::Neighbour => outcome(Verdict::Neighbour, self.every_ingress()),
            Content::Unknown => self.other(),
            Content::Ip(_) if other => self.other(),
            Content::Ip(packet) => {
                if let Message::Ike(ike) = packet.message {
                    self.hear_backend(from, packet.destination, ike);
                }
                let way = match self.sessions.get(&packet.destination) {
                    Some(session) => Way::Ingress(session.ingress),
                    None => self.every_ingress(),
                };
                outcome(Verdict::Returned, way)
            }
        }
    }

    fn every_ingress(&self) -> Way {
        if self.settings.ingress_count == 1 { Way::Ingress(0) } else { Way::EveryIngress }
    }

    /// The backend's MAC, if none was given. The rules do not say whether it may change later: it does not, or else
    /// two stations behind one interface would take tunnels from each other with every frame.
    fn learn(&mut self, port: u32, from: Mac) {
        let backend = &mut self.backends[port as usize];
        if backend.mac.is_none() && !is_group(from) && from != [0; 6] {
            backend.mac = Some(from);
            backend.learned = true;
        }
    }

    /// What a backend's IKE message teaches about the session of the client that it is for. Only the session's own
    /// backend can say what SPI it chose; frames of unknown stations count as its own. A backend may have begun
    /// the SA itself, or answer to an older one of two that the client has begun: what it says last counts. A notification
    /// in clear shows nothing, as it may repeat SPIs that somebody else made up (RFC 7296, section 2.21.4).
    fn hear_backend(&mut self, from: Mac, client: IpAddr, ike: Ike) {
        let Some(session) = self.sessions.get_mut(&client) else { return };
        let own = self.backends[session.backend as usize].mac == Some(from);
        let of_another = !own && self.backends.iter().any(|backend| backend.mac == Some(from));
        if ike.responder_spi != 0 && !ike.notifies && !of_another {
            session.initiator_spi = Some(ike.initiator_spi);
            session.answered = Some((ike.initiator_spi, ike.responder_spi));
        }
    }
}

impl Session {
    /// A client begins an IKE SA. What was answered to the one before proves nothing any more; a message that
    /// is sent again begins nothing.
    fn note_start(&mut self, initiator_spi: u64) {
        if self.initiator_spi != Some(initiator_spi) {
            self.initiator_spi = Some(initiator_spi);
            self.answered = None;
        }
    }
}

fn outcome(verdict: Verdict, way: Way) -> Outcome {
    Outcome { verdict, way, table_full: false, open: false }
}

pub fn is_group(mac: Mac) -> bool {
    mac[0] & 1 != 0
}

/// The hash slot of an address: `bpf/include/address.h` has the formula, on which balancers side by side agree.
fn slot(client: IpAddr) -> u32 {
    const PUBLIC_SEED: u64 = 0x6c62;
    let octets = match client {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let word = |at: usize| u64::from_le_bytes(octets[at..at + 8].try_into().unwrap());
    let mut hash = (word(0) ^ PUBLIC_SEED).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 32;
    hash = hash.wrapping_add(word(8));
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^= hash >> 32;
    (((hash >> 32) * u64::from(HASH_SLOTS)) >> 32) as u32
}
