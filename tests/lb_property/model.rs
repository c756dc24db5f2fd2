//! What the balancer has to do with each packet, after the dispatch rules: a reading of its own, kept apart from
//! the datapath, for affinity `address`.
//!
//! A backend whose MAC is not known takes nothing, in whatever state it is. Nothing expires, as a run takes no second of
//! anyone's time-out.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::rc::Rc;

use lb::kernel::counters::Count;
use lb::lb::backend::{NewBackend, Wanted};
use lb::lb::datapath::{OnDown, Other, Policy, ReturnPath, Settings};
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
    /// The label in an SPI was no backend's.
    pub label_unknown: bool,
    /// A backend chose an SPI that has not its label.
    pub label_disagrees: bool,
}

/// A client's session, or an IKE SA beside that: one that the client has begun at another backend, as its own takes no
/// starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub backend: u32,
    pub state: State,
    /// `None` as long as only a backend has been heard.
    pub ingress: Option<u8>,
    pub sent: Count,
    /// Of the newest IKE SA begun or answered; `None` where only echo requests or ESP came.
    initiator_spi: Option<u64>,
    /// The SPIs of the last message in which the backend showed what it knows of an SA of both; both are its proof.
    answered: Option<(u64, u64)>,
}

#[derive(Clone, Debug)]
pub struct Backend {
    pub mac: Option<Mac>,
    pub learned: bool,
    pub sent: Count,
    pub wanted: Wanted,
    /// The interface that it is behind.
    pub port: u32,
    weight: u32,
    label: Option<u32>,
}

impl Backend {
    pub fn takes_packets(&self) -> bool {
        self.mac.is_some() && self.wanted != Wanted::Down
    }

    fn takes_starts(&self) -> bool {
        self.mac.is_some() && self.wanted == Wanted::Active
    }
}

/// What a backend is sought for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Sought {
    Starts,
    Packets,
}

#[derive(Clone, Debug)]
pub struct Model {
    settings: Settings,
    pub backends: Vec<Backend>,
    names: Vec<String>,
    pub sessions: BTreeMap<IpAddr, Session>,
    /// By initiator SPI.
    pub beside: BTreeMap<u64, Session>,
    fragments: HashMap<FragmentKey, u32>,
    ring: Rc<[u32]>,
    slots: Rc<[u32]>,
    /// Turns that were taken of the ring; unknown once a turn fell to a backend that takes no starts.
    pub turn: Option<u64>,
    /// What a client's hash came to, where its own slot is of a backend that takes nothing, by the backends that do.
    detours: HashMap<(IpAddr, Sought, Vec<u32>), u32>,
    /// The backend that the datapath chose for the packet at hand: consulted only where the rules leave a choice.
    observed: Option<u32>,
    /// Whether it was consulted.
    open: bool,
    /// What the packet at hand has to be counted for.
    table_full: bool,
    label_unknown: bool,
    label_disagrees: bool,
}

impl Model {
    /// A datapath that was just set up so, after `turns` turns of its ring.
    pub fn new(settings: &Settings, backends: &[NewBackend], turns: u64) -> Self {
        let backend = |new: &NewBackend| Backend {
            mac: new.mac.map(|mac| mac.into_array()),
            learned: false,
            sent: Count::default(),
            wanted: new.wanted,
            port: new.port,
            weight: new.weight,
            label: new.label,
        };
        let mut model = Self {
            settings: settings.clone(),
            backends: backends.iter().map(backend).collect(),
            names: backends.iter().map(|new| new.name.clone()).collect(),
            sessions: BTreeMap::new(),
            beside: BTreeMap::new(),
            fragments: HashMap::new(),
            ring: Rc::new([]),
            slots: Rc::new([]),
            turn: Some(turns),
            detours: HashMap::new(),
            observed: None,
            open: false,
            table_full: false,
            label_unknown: false,
            label_disagrees: false,
        };
        // What is down keeps its slots, so that nobody else's clients move with it.
        model.slots = schedule::hash_slots(&model.candidates(|_| true)).into();
        model.reschedule();
        model
    }

    fn candidates(&self, condition: impl Fn(&Backend) -> bool) -> Vec<Candidate> {
        (0..)
            .zip(&self.backends)
            .filter(|(_, backend)| condition(backend))
            .map(|(index, backend)| Candidate {
                index,
                name: self.names[index as usize].clone(),
                weight: backend.weight,
            })
            .collect()
    }

    fn reschedule(&mut self) {
        let of = |wanted| schedule::ring(&self.candidates(|backend| backend.wanted == wanted));
        let active = of(Wanted::Active);
        self.ring = if active.is_empty() { of(Wanted::Draining) } else { active }.into();
    }

    /// The user wants something else of a backend, and the schedules follow.
    pub fn set_wanted(&mut self, index: u32, wanted: Wanted) {
        self.backends[index as usize].wanted = wanted;
        self.reschedule();
    }

    /// A frame that arrives on client-side interface `ingress`.
    pub fn client_sends(&mut self, ingress: u8, frame: &[u8], observed: Option<u32>) -> Outcome {
        self.begin(observed);
        let result = self.client_outcome(ingress, frame);
        self.finish(result)
    }

    fn begin(&mut self, observed: Option<u32>) {
        self.observed = observed;
        self.open = false;
        self.table_full = false;
        self.label_unknown = false;
        self.label_disagrees = false;
    }

    fn finish(&self, result: Outcome) -> Outcome {
        Outcome {
            open: self.open,
            table_full: self.table_full,
            label_unknown: self.label_unknown,
            label_disagrees: self.label_disagrees,
            ..result
        }
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
            Message::Ike(ike) => self.ike(client, ingress, ike, bytes),
            Message::EchoRequest if !self.sessions.contains_key(&client) => {
                self.start(client, ingress, None, bytes)
            }
            // Whoever has no session has no tunnel whose NAT binding must stay alive.
            Message::Keepalive if !self.sessions.contains_key(&client) => {
                return outcome(Verdict::KeepaliveDropped, Way::Drop);
            }
            Message::EspInUdp { spi } | Message::Esp { spi } | Message::Ah { spi } => {
                // SPIs below are reserved (RFC 4303, section 2.1), so no backend has chosen them.
                let label = (spi >= 0x100).then(|| u64::from(spi) << 32);
                match label.and_then(|bits| self.backend_of_label(bits)) {
                    Some(backend) => self.forward(Verdict::Stateless, backend, client, bytes),
                    None => self.by_session_or_hash(client, seen_on, bytes),
                }
            }
            Message::Keepalive | Message::EchoRequest | Message::EchoReply => {
                self.by_session_or_hash(client, seen_on, bytes)
            }
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

    fn ike(&mut self, client: IpAddr, ingress: u8, ike: Ike, bytes: u64) -> Outcome {
        let spis = (ike.initiator_spi, ike.responder_spi);
        let own = self.sessions.get(&client);
        // The session's own SA needs no label, and is not beside it.
        let of_session = own.is_some_and(|session| session.answered == Some(spis) && ike.responder_spi != 0);
        if !of_session {
            let own = own.map(|session| session.backend);
            let spi = if ike.of_initiator { ike.responder_spi } else { ike.initiator_spi };
            if !ike.start
                && spi != 0
                && let Some(backend) = self.backend_of_label(spi)
                && own != Some(backend)
            {
                return self.forward(Verdict::Stateless, backend, client, bytes);
            }
        }
        let Some(session) = self.sessions.get_mut(&client) else {
            return if ike.start {
                self.start(client, ingress, Some(ike.initiator_spi), bytes)
            } else {
                self.by_hash(client, bytes)
            };
        };
        session.ingress = Some(ingress);
        let session = session.clone();
        if !of_session && let Some(result) = self.beside(client, &session, ingress, ike, bytes) {
            return result;
        }
        self.hear_client(client, session, ike);
        self.by_session_or_hash(client, Some(ingress), bytes)
    }

    /// What an IKE message has to do with SAs beside its client's session; `None` where that is nothing.
    fn beside(
        &mut self,
        client: IpAddr,
        session: &Session,
        ingress: u8,
        ike: Ike,
        bytes: u64,
    ) -> Option<Outcome> {
        let key = ike.initiator_spi;
        let Some(beside) = self.beside.get(&key) else {
            let begins = ike.start
                && session.initiator_spi != Some(key)
                && !self.backends[session.backend as usize].takes_starts();
            if !begins {
                return None;
            }
            // The packet has a way without a session, too.
            if !self.room() {
                self.table_full = true;
                return None;
            }
            let Some(backend) = self.choose(client) else {
                return Some(outcome(Verdict::NoBackend, Way::Drop));
            };
            self.beside.insert(key, Session::embryonic(backend, ingress, Some(key)));
            let result = self.forward(Verdict::New, backend, client, bytes);
            self.count_beside(key, result, bytes);
            return Some(result);
        };
        let (backend, proven) = (beside.backend, self.proves(beside, ike));
        if self.is_left(backend) {
            return None;
        }
        self.beside.get_mut(&key).expect("it was there").ingress = Some(ingress);
        let result = self.forward(Verdict::Session, backend, client, bytes);
        if proven {
            let beside = self.beside.remove(&key).expect("it was there");
            let session = self.sessions.get_mut(&client).expect("it is what the SA is beside of");
            session.backend = backend;
            session.state = State::Established;
            session.initiator_spi = beside.initiator_spi;
            session.answered = beside.answered;
            if result.verdict == Verdict::Session {
                session.sent = session.sent + Count { packets: 1, bytes };
            }
        } else {
            self.count_beside(key, result, bytes);
        }
        Some(result)
    }

    fn count_beside(&mut self, key: u64, result: Outcome, bytes: u64) {
        if matches!(result.verdict, Verdict::New | Verdict::Session) {
            let beside = self.beside.get_mut(&key).expect("it is there");
            beside.sent = beside.sent + Count { packets: 1, bytes };
        }
    }

    fn proves(&self, session: &Session, ike: Ike) -> bool {
        ike.responder_spi != 0
            && match self.settings.return_path {
                ReturnPath::Here => session.answered == Some((ike.initiator_spi, ike.responder_spi)),
                ReturnPath::Direct => true,
            }
    }

    /// What a client's IKE message teaches about its session: a new SA, or the proof that it heard its backend. Where the
    /// session's backend has gone it teaches nothing.
    fn hear_client(&mut self, client: IpAddr, mut session: Session, ike: Ike) {
        if session.state == State::Established || self.is_left(session.backend) {
            return;
        }
        if ike.start {
            session.note_start(ike.initiator_spi);
        }
        // The rules do not say what becomes of a proof beyond the number of sessions. Whoever was let in before
        // that was reached has a tunnel now, and would lose it with an embryonic session's time-out.
        if self.proves(&session, ike) {
            session.state = State::Established;
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
            self.table_full = true;
            return self.by_hash(client, bytes);
        }
        let Some(backend) = self.choose(client) else { return outcome(Verdict::NoBackend, Way::Drop) };
        let mut session = Session::embryonic(backend, ingress, initiator_spi);
        session.sent = Count { packets: 1, bytes };
        self.sessions.insert(client, session);
        self.forward(Verdict::New, backend, client, bytes)
    }

    /// The backend for a start.
    fn choose(&mut self, client: IpAddr) -> Option<u32> {
        match self.settings.policy {
            Policy::RoundRobin | Policy::LeastSessions => self.take_turn(),
            Policy::Maglev => self.hash(client, Sought::Starts),
        }
    }

    /// To the client's session, whose client was just heard on an ingress interface if one is given.
    fn by_session_or_hash(&mut self, client: IpAddr, seen_on: Option<u8>, bytes: u64) -> Outcome {
        let Some(session) = self.sessions.get_mut(&client) else { return self.by_hash(client, bytes) };
        session.ingress = seen_on.or(session.ingress);
        let backend = session.backend;
        let result = self.forward(Verdict::Session, backend, client, bytes);
        if result.verdict == Verdict::Session {
            let session = self.sessions.get_mut(&client).expect("it is there");
            session.sent = session.sent + Count { packets: 1, bytes };
        }
        result
    }

    fn by_hash(&mut self, client: IpAddr, bytes: u64) -> Outcome {
        match self.hash(client, Sought::Packets) {
            Some(backend) => self.forward(Verdict::Stateless, backend, client, bytes),
            None => outcome(Verdict::NoBackend, Way::Drop),
        }
    }

    fn later_fragment(&mut self, ingress: u8, packet: &Packet, bytes: u64) -> Outcome {
        let known = packet.fragment.and_then(|key| self.fragments.get(&key).copied());
        let of_session = self.sessions.get(&packet.source).map(|session| session.backend);
        match known.filter(|&backend| !self.is_left(backend)) {
            // The first fragment went elsewhere than the session, as it came before it.
            Some(backend) if of_session != Some(backend) => {
                self.forward(Verdict::Stateless, backend, packet.source, bytes)
            }
            _ => self.by_session_or_hash(packet.source, Some(ingress), bytes),
        }
    }

    /// Whether what belongs to a backend goes by hash for now. One of unknown MAC is waited for.
    fn is_left(&self, backend: u32) -> bool {
        self.backends[backend as usize].wanted == Wanted::Down && self.settings.on_down == OnDown::Rehash
    }

    /// To a backend; if that is down, by hash, or nowhere where it is waited for.
    fn forward(&mut self, verdict: Verdict, backend: u32, client: IpAddr, bytes: u64) -> Outcome {
        if self.backends[backend as usize].takes_packets() {
            let sent = &mut self.backends[backend as usize].sent;
            *sent = *sent + Count { packets: 1, bytes };
            return outcome(verdict, Way::Backend(backend));
        }
        if self.is_left(backend) {
            return self.by_hash(client, bytes);
        }
        outcome(Verdict::NoBackend, Way::Drop)
    }

    /// The backend that the first bits of an SPI name, if it is one that counts.
    fn backend_of_label(&mut self, spi: u64) -> Option<u32> {
        if self.settings.spi_shard == 0 {
            return None;
        }
        let label = (spi >> (64 - self.settings.spi_shard)) as u32;
        let found = self.backends.iter().position(|backend| backend.label == Some(label));
        self.label_unknown = found.is_none();
        found.map(|index| index as u32).filter(|&index| !self.is_left(index))
    }

    fn other(&self) -> Outcome {
        match self.settings.other {
            Other::Drop => outcome(Verdict::OtherDropped, Way::Drop),
            Other::Pass => outcome(Verdict::OtherPassed, Way::Pass),
        }
    }

    fn takers(&self, condition: impl Fn(&Backend) -> bool) -> Vec<u32> {
        (0..).zip(&self.backends).filter(|(_, backend)| condition(backend)).map(|(index, _)| index).collect()
    }

    /// Backends that take what is sought. Where no active one has a weight, draining ones take starts, and the rules do
    /// not say whether one that has no weight does too.
    fn takers_of(&self, sought: Sought) -> Vec<u32> {
        let starts = match sought {
            Sought::Starts => self.takers(|backend| backend.takes_starts() && backend.weight > 0),
            Sought::Packets => Vec::new(),
        };
        if starts.is_empty() { self.takers(Backend::takes_packets) } else { starts }
    }

    /// What the datapath chose of `takers`, which all are as good.
    fn choose_observed(&mut self, takers: &[u32]) -> Option<u32> {
        self.open = true;
        self.observed.filter(|index| takers.contains(index)).or(takers.first().copied())
    }

    /// The next backend in turn. Where the ring has backends that take no starts, any other one may take their turns, and
    /// then whose turn it is follows from what the datapath does next. Draining ones have no order that was promised.
    fn take_turn(&mut self) -> Option<u32> {
        let mut takers = self.takers_of(Sought::Starts);
        let all_take = self.ring.iter().all(|&index| self.backends[index as usize].takes_starts());
        if takers.iter().any(|index| self.ring.contains(index)) {
            takers.retain(|index| self.ring.contains(index));
        }
        match self.turn {
            Some(turn) if all_take && !self.ring.is_empty() => {
                self.turn = Some(turn + 1);
                self.ring.get(turn as usize % self.ring.len()).copied()
            }
            _ => {
                self.turn = None;
                self.choose_observed(&takers)
            }
        }
    }

    /// The backend that the client's address alone leads to. Where that one takes nothing, any other will do,
    /// but it has to be the same as long as the same backends do.
    fn hash(&mut self, client: IpAddr, sought: Sought) -> Option<u32> {
        let takers = self.takers_of(sought);
        if let Some(own) = self.slots.get(slot(client) as usize)
            && takers.contains(own)
        {
            return Some(*own);
        }
        let chosen = self.choose_observed(&takers)?;
        Some(*self.detours.entry((client, sought, takers)).or_insert(chosen))
    }

    /// A frame that arrives on the interface of backends `port`.
    pub fn backend_sends(&mut self, port: u32, frame: &[u8]) -> Outcome {
        self.begin(None);
        let result = self.backend_outcome(port, frame);
        self.finish(result)
    }

    fn backend_outcome(&mut self, port: u32, frame: &[u8]) -> Outcome {
        let (_, from) = frame::macs(frame);
        let content = frame::read(frame, Direction::ToClient);
        let sender = self.sender(port, from);
        // What is forwarded teaches the backend's MAC. A switch in between may have frames of its own, such as LLDP.
        let other = matches!(&content, Content::Ip(packet) if packet.message == Message::Other);
        if !other && !matches!(content, Content::Malformed | Content::Unknown) {
            self.learn(sender, from);
        }
        match content {
            Content::Malformed => outcome(Verdict::Malformed, Way::Drop),
            Content::Neighbour => outcome(Verdict::Neighbour, self.every_ingress()),
            Content::Unknown => self.other(),
            Content::Ip(_) if other => self.other(),
            Content::Ip(packet) => {
                let known = self.sessions.get(&packet.destination).map(|session| session.ingress);
                self.hear_backend(from, sender, packet.destination, packet.message);
                let way = match known.flatten() {
                    Some(ingress) => Way::Ingress(ingress),
                    None => self.every_ingress(),
                };
                outcome(Verdict::Returned, way)
            }
        }
    }

    fn every_ingress(&self) -> Way {
        if self.settings.ingress_count == 1 { Way::Ingress(0) } else { Way::EveryIngress }
    }

    /// The only backend behind an interface, or else the one that has the frame's MAC.
    fn sender(&self, port: u32, from: Mac) -> Option<u32> {
        match self.takers(|backend| backend.port == port)[..] {
            [only] => Some(only),
            _ => self.takers(|backend| backend.mac == Some(from)).first().copied(),
        }
    }

    /// The backend's MAC, if none was given. The rules do not say whether it may change later: it does not, or else
    /// two stations behind one interface would take tunnels from each other with every frame.
    fn learn(&mut self, sender: Option<u32>, from: Mac) {
        let Some(sender) = sender else { return };
        let backend = &mut self.backends[sender as usize];
        if backend.mac.is_none() && !is_group(from) && from != [0; 6] {
            backend.mac = Some(from);
            backend.learned = true;
        }
    }

    /// What a backend's message teaches about its client.
    fn hear_backend(&mut self, from: Mac, sender: Option<u32>, client: IpAddr, message: Message) {
        if let (Message::Ike(ike), Some(sender)) = (message, sender) {
            let spi = if ike.of_initiator { ike.initiator_spi } else { ike.responder_spi };
            let bits = self.settings.spi_shard;
            if bits != 0
                && spi != 0
                && !ike.notifies
                && let Some(label) = self.backends[sender as usize].label
            {
                self.label_disagrees = spi >> (64 - bits) != u64::from(label);
            }
        }
        if self.sessions.contains_key(&client) {
            if let Message::Ike(ike) = message {
                self.hear_answer(from, sender, client, ike);
            } else if matches!(message, Message::Esp { .. } | Message::Ah { .. } | Message::EspInUdp { .. })
                && let Some(session) = self.sessions.get_mut(&client)
                && sender == Some(session.backend)
            {
                session.state = State::Established;
            }
            return;
        }
        // ESP is sent to none but an authenticated client, and who begins an IKE SA will be answered.
        let (state, initiator_spi) = match message {
            Message::Esp { .. } | Message::EspInUdp { .. } | Message::Ah { .. } => (State::Established, None),
            Message::Ike(ike) if ike.start => (State::Embryonic, Some(ike.initiator_spi)),
            _ => return,
        };
        let Some(backend) = sender else { return };
        if self.backends[backend as usize].wanted != Wanted::Down && self.room() {
            let session = Session {
                backend,
                state,
                ingress: None,
                sent: Count::default(),
                initiator_spi,
                answered: None,
            };
            self.sessions.insert(client, session);
        }
    }

    /// What a backend's IKE message teaches about the session of the client that it is for. Only the session's own
    /// backend can say what SPI it chose; frames of unknown stations count as its own. A backend may have begun
    /// the SA itself, or answer to an older one of two that the client has begun: what it says last counts. A notification
    /// in clear shows nothing, as it may repeat SPIs that somebody else made up (RFC 7296, section 2.21.4).
    fn hear_answer(&mut self, from: Mac, sender: Option<u32>, client: IpAddr, ike: Ike) {
        if ike.responder_spi == 0 || ike.notifies {
            return;
        }
        let session = self.sessions.get_mut(&client).expect("whoever asks has seen it");
        let own = self.backends[session.backend as usize].mac == Some(from);
        let of_another = !own && self.backends.iter().any(|backend| backend.mac == Some(from));
        let spis = (ike.initiator_spi, ike.responder_spi);
        if !of_another {
            if session.state == State::Embryonic {
                session.initiator_spi = Some(ike.initiator_spi);
                session.answered = Some(spis);
            }
        } else if let Some(beside) = self.beside.get_mut(&ike.initiator_spi)
            && Some(beside.backend) == sender
        {
            beside.answered = Some(spis);
        }
    }
}

impl Session {
    fn embryonic(backend: u32, ingress: u8, initiator_spi: Option<u64>) -> Self {
        Self {
            backend,
            state: State::Embryonic,
            ingress: Some(ingress),
            sent: Count::default(),
            initiator_spi,
            answered: None,
        }
    }

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
    Outcome { verdict, way, table_full: false, open: false, label_unknown: false, label_disagrees: false }
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
