//! Sessions as user space sees and ends them (`bpf/include/session.h` has the rules of the table).
//!
//! The table has entries, and people see sessions. Where a client is an address, its entry is its session, and an IKE SA
//! that it has begun at another backend is one beside it. Where a client is a tunnel, a session is an IKE SA, and the
//! entries of its endpoints and of its ESP count for it.

pub mod transfer;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::mem::offset_of;
use std::net::{AddrParseError, IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::datapath::{BACKENDS_MAX, Maps};
use super::skeleton::types::{self, session_kind, session_state};
use crate::kernel::table::{SharedWords, TableError};
use crate::kernel::value::MapValue;

/// Marks the port of an endpoint that speaks to port 500.
const TO_IKE: u32 = types::message_port::PORT_TO_IKE.0;
const SESSION_WORDS: usize = size_of::<types::session>() / size_of::<u64>();
const META_WORD: usize = offset_of!(types::session, meta) / size_of::<u64>();
const ESTABLISHED_WORD: usize = offset_of!(types::session_totals, established) / size_of::<u64>();

/// Where a tag has the kind; below is the state.
const KIND_SHIFT: u32 = 4;

/// How far a session has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The client has been heard, and has not yet proved to hear its backend.
    Embryonic,
    /// An unproven packet said so of something that is established. No session is in this state, but entries are.
    Learned,
    /// The client has proved that it hears its backend.
    Established,
}

impl State {
    fn of_tag(tag: u8) -> Option<Self> {
        match session_state((tag & ((1 << KIND_SHIFT) - 1)).into()) {
            session_state::SESSION_EMBRYONIC => Some(Self::Embryonic),
            session_state::SESSION_LEARNED => Some(Self::Learned),
            session_state::SESSION_ESTABLISHED => Some(Self::Established),
            _ => None,
        }
    }

    fn number(self) -> session_state {
        match self {
            Self::Embryonic => session_state::SESSION_EMBRYONIC,
            Self::Learned => session_state::SESSION_LEARNED,
            Self::Established => session_state::SESSION_ESTABLISHED,
        }
    }
}

/// What an entry is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The initiator SPI of an IKE SA, from wherever it comes.
    Sa(u64),
    /// An address and a UDP port that speaks to port 4500.
    Endpoint(IpAddr, u16),
    /// An address and a UDP port that speaks to port 500.
    IkeEndpoint(IpAddr, u16),
    /// An address and the SPI of ESP or AH.
    Esp(IpAddr, u32),
    Address(IpAddr),
}

impl Key {
    fn kind(self) -> session_kind {
        match self {
            Self::Sa(_) => session_kind::SESSION_SA,
            Self::Endpoint(..) | Self::IkeEndpoint(..) => session_kind::SESSION_ENDPOINT,
            Self::Esp(..) => session_kind::SESSION_ESP,
            Self::Address(_) => session_kind::SESSION_ADDRESS,
        }
    }

    /// Whether its entry has a client's port.
    fn has_port(self) -> bool {
        matches!(self, Self::Sa(_) | Self::Endpoint(..) | Self::IkeEndpoint(..))
    }
}

/// An entry of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: Key,
    /// The address of the key; of an SA, where it was last seen.
    pub client: IpAddr,
    /// The port of the key; of an SA, where it was last seen; else 0.
    pub port: u16,
    /// Index of the backend.
    pub backend: u32,
    /// Index of the client-side interface that the client was last seen on; `LB_INGRESS_UNKNOWN` if it was not.
    pub ingress: u8,
    pub state: State,
    /// Of the newest IKE SA that it belongs to; 0 where none is known.
    pub initiator_spi: u64,
    /// What the backend answered to that; 0 where it has not.
    pub responder_spi: u64,
    /// Since its first packet, to the second.
    pub age: Duration,
    /// Since either direction was last used, to the second.
    pub idle: Duration,
    /// Forwarded from the client to its backend.
    pub packets: u64,
    /// Of those packets' whole frames.
    pub bytes: u64,
}

impl Entry {
    /// The session that the entry is by itself. `tunnel` says whether a client is a tunnel.
    fn session(&self, tunnel: bool) -> Session {
        let has_port = self.key.has_port();
        Session {
            client: self.client,
            port: (tunnel && has_port).then_some(self.port),
            spi: (tunnel && self.initiator_spi != 0).then_some(self.initiator_spi),
            backend: self.backend,
            ingress: self.ingress,
            state: self.state,
            age: self.age,
            idle: self.idle,
            packets: self.packets,
            bytes: self.bytes,
        }
    }

    /// What entries of one tunnel have in common. An entry elsewhere is no way to it.
    fn tunnel(&self) -> (u64, u32) {
        (self.initiator_spi, self.backend)
    }

    fn is_sa(&self) -> bool {
        matches!(self.key, Key::Sa(_))
    }
}

/// A client's session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub client: IpAddr,
    /// The UDP port that a tunnel was last seen from; `None` where the client is an address.
    pub port: Option<u16>,
    /// The initiator SPI of a tunnel, where it is known.
    pub spi: Option<u64>,
    /// Index of the backend.
    pub backend: u32,
    /// Index of the client-side interface that the client was last seen on.
    pub ingress: u8,
    /// Embryonic or established.
    pub state: State,
    /// Since its first packet, to the second.
    pub age: Duration,
    /// Since either direction was last used, to the second.
    pub idle: Duration,
    /// Forwarded from the client to its backend.
    pub packets: u64,
    /// Of those packets' whole frames.
    pub bytes: u64,
}

impl Session {
    /// Counts what another entry of the session has counted.
    fn add(&mut self, entry: &Entry) {
        self.idle = self.idle.min(entry.idle);
        self.packets += entry.packets;
        self.bytes += entry.bytes;
    }
}

/// Whose sessions are meant: those of an address, or of one UDP port of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    pub address: IpAddr,
    pub port: Option<u16>,
}

impl Client {
    fn has(&self, address: IpAddr, port: Option<u16>) -> bool {
        self.address == address && (self.port.is_none() || self.port == port)
    }
}

impl From<IpAddr> for Client {
    fn from(address: IpAddr) -> Self {
        Self { address: address.to_canonical(), port: None }
    }
}

impl FromStr for Client {
    type Err = AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<SocketAddr>() {
            Ok(endpoint) => Ok(Self { port: Some(endpoint.port()), ..Self::from(endpoint.ip()) }),
            Err(_) => text.parse::<IpAddr>().map(Self::from),
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.address, port).fmt(formatter),
            None => self.address.fmt(formatter),
        }
    }
}

/// The session table of an instance, in the memory that it shares with the datapath.
#[derive(Debug)]
pub struct Sessions {
    slots: SharedWords,
    totals: SharedWords,
    /// How many sessions each backend has, which the policy least-sessions goes by.
    tallies: SharedWords,
    config: types::session_config,
}

impl Sessions {
    /// Looks into the table of an instance.
    ///
    /// # Errors
    ///
    /// Where the table cannot be mapped into memory.
    pub fn open(maps: &Maps) -> Result<Self, TableError> {
        Ok(Self {
            slots: SharedWords::new(&maps.sessions)?,
            totals: SharedWords::new(&maps.session_totals)?,
            tallies: SharedWords::new(&maps.backend_sessions)?,
            config: maps.config()?.session_config,
        })
    }

    /// Whether a client is a tunnel, and not an address.
    pub fn are_tunnels(&self) -> bool {
        self.config.primary == session_kind::SESSION_SA
    }

    /// All entries that have not expired, in no order. The datapath goes on meanwhile: each entry is as it was at
    /// some moment of the walk.
    pub fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        let now = now();
        let entries = self.slots().filter_map(move |slot| read(slot, now));
        entries.map(|(_, entry)| entry).filter(|entry| !self.has_expired(entry))
    }

    /// All sessions that have not expired, in no order.
    pub fn iter(&self) -> Box<dyn Iterator<Item = Session> + '_> {
        if self.are_tunnels() {
            Box::new(self.tunnels().into_iter())
        } else {
            let is_session = |entry: &Entry| entry.state != State::Learned;
            Box::new(self.entries().filter(is_session).map(|entry| entry.session(false)))
        }
    }

    /// The sessions of one client.
    pub fn of(&self, client: impl Into<Client>) -> impl Iterator<Item = Session> + '_ {
        let client = client.into();
        self.iter().filter(move |session| client.has(session.client, session.port))
    }

    /// How many sessions are established, those included that have expired and have not been missed.
    pub fn established(&self) -> u64 {
        self.totals.words()[ESTABLISHED_WORD].load(Ordering::Relaxed)
    }

    /// How many sessions there are at each backend, by its index.
    pub fn by_backend(&self) -> Vec<usize> {
        let mut counts = vec![0; BACKENDS_MAX];
        for session in self.iter() {
            if let Some(count) = counts.get_mut(session.backend as usize) {
                *count += 1;
            }
        }
        counts
    }

    /// Ends the sessions of one client, with all that leads to them. Returns how many there were.
    pub fn remove(&self, client: impl Into<Client>) -> usize {
        let client = client.into();
        let sessions: Vec<Session> = self.of(client).collect();
        let tunnels: HashSet<(u64, u32)> =
            sessions.iter().filter_map(|session| Some((session.spi?, session.backend))).collect();
        self.free_where(|entry| {
            let port = entry.key.has_port().then_some(entry.port);
            client.has(entry.client, port) || tunnels.contains(&entry.tunnel())
        });
        sessions.len()
    }

    /// Ends all sessions at a backend. Returns how many there were.
    pub fn remove_at(&self, backend: u32) -> usize {
        let count = self.iter().filter(|session| session.backend == backend).count();
        self.free_where(|entry| entry.backend == backend);
        count
    }

    /// Ends all sessions. Returns how many there were.
    pub fn flush(&self) -> usize {
        let count = self.iter().count();
        self.free_where(|_| true);
        count
    }

    /// Sessions where a client is a tunnel: each IKE SA with what its other entries have counted, and what has become
    /// known of a client by other ways.
    fn tunnels(&self) -> Vec<Session> {
        let mut sessions: Vec<Session> = Vec::new();
        let mut by_spi = HashMap::new();
        for entry in self.entries().filter(|entry| entry.is_sa() && entry.state != State::Learned) {
            by_spi.insert(entry.tunnel(), sessions.len());
            sessions.push(entry.session(true));
        }
        let mut left = Vec::new();
        for entry in self.entries() {
            match by_spi.get(&entry.tunnel()) {
                Some(_) if entry.is_sa() && entry.state != State::Learned => {}
                Some(&position) => sessions[position].add(&entry),
                None => left.push(entry),
            }
        }
        let mut by_endpoint = HashMap::new();
        let mut by_address = HashMap::new();
        for (position, session) in sessions.iter().enumerate() {
            by_endpoint.insert((session.client, session.port, session.backend), position);
            by_address.insert((session.client, session.backend), position);
        }
        // What is a session by itself comes before what only belongs to one; an SA may have come meanwhile.
        left.sort_by_key(|entry| (entry.state == State::Learned, entry.key));
        for entry in left {
            let found = match entry.key {
                _ if entry.initiator_spi != 0 && by_spi.contains_key(&entry.tunnel()) => {
                    by_spi.get(&entry.tunnel())
                }
                // The SA that a tunnel goes over to by a rekey.
                Key::Sa(_) => by_endpoint.get(&(entry.client, Some(entry.port), entry.backend)),
                // What a backend has shown of a client by its ESP, with no SA known, is one session. ESP in UDP shows an
                // endpoint and its address, plain ESP an address, whose SPIs are noted then.
                Key::Address(_) if entry.initiator_spi == 0 && entry.state == State::Established => {
                    by_address.get(&(entry.client, entry.backend))
                }
                Key::Esp(..) if entry.initiator_spi == 0 => by_address.get(&(entry.client, entry.backend)),
                _ => None,
            };
            if let Some(&position) = found {
                sessions[position].add(&entry);
            } else if entry.state != State::Learned && !matches!(entry.key, Key::Esp(..)) {
                let session = entry.session(true);
                by_spi.insert(entry.tunnel(), sessions.len());
                by_endpoint.insert((session.client, session.port, session.backend), sessions.len());
                by_address.insert((session.client, session.backend), sessions.len());
                sessions.push(session);
            }
        }
        sessions
    }

    fn slots(&self) -> impl Iterator<Item = &[AtomicU64]> {
        self.slots.words().chunks_exact(SESSION_WORDS)
    }

    fn has_expired(&self, entry: &Entry) -> bool {
        let timeout = match entry.state {
            State::Embryonic => self.config.embryonic_timeout,
            State::Learned | State::Established => self.config.established_timeout,
        };
        entry.idle > Duration::from_secs(timeout.into())
    }

    /// Takes entries out of their slots, expired ones too.
    fn free_where(&self, condition: impl Fn(&Entry) -> bool) {
        let now = now();
        for slot in self.slots() {
            // Again where it was used in the same moment.
            while let Some((word, _)) = read(slot, now).filter(|(_, entry)| condition(entry)) {
                let mut meta = meta_of(word);
                meta.tag = tag(session_state::SESSION_FREE, session_kind((meta.tag >> KIND_SHIFT).into()));
                let freed = slot[META_WORD].compare_exchange(
                    word,
                    word_of(meta),
                    Ordering::AcqRel,
                    Ordering::Acquire,
                );
                if freed.is_ok() {
                    self.tally_freed(meta_of(word));
                    break;
                }
            }
        }
    }

    /// Keeps the counts true, as session_tally() of `session.h` does.
    fn tally_freed(&self, old: types::session_meta) {
        let state = State::of_tag(old.tag);
        if u32::from(old.tag >> KIND_SHIFT) != self.config.primary.0 || state == Some(State::Learned) {
            return;
        }
        if state == Some(State::Established) {
            self.totals.words()[ESTABLISHED_WORD].fetch_sub(1, Ordering::AcqRel);
        }
        if let Some(tally) = self.tallies.words().get(usize::from(old.backend)) {
            tally.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Copies a slot that is in use, with the word of its meta. Equal words before and after, but for the time and the interface,
/// say that it did not change hands meanwhile.
fn read(slot: &[AtomicU64], now: u32) -> Option<(u64, Entry)> {
    let before = meta_of(slot[META_WORD].load(Ordering::Acquire));
    let state = State::of_tag(before.tag)?;
    let mut bytes = [0; size_of::<types::session>()];
    for (bytes, word) in bytes.chunks_exact_mut(size_of::<u64>()).zip(slot) {
        bytes.copy_from_slice(&word.load(Ordering::Acquire).to_ne_bytes());
    }
    let word = slot[META_WORD].load(Ordering::Acquire);
    let meta = meta_of(word);
    if (before.backend, before.tag) != (meta.backend, meta.tag) {
        return None;
    }
    let session = types::session::from_bytes(&bytes)?;
    let client = IpAddr::from(session.client);
    let initiator_spi = u64::from_be(session.initiator_spi);
    let port = session.detail as u16;
    let key = match session_kind((meta.tag >> KIND_SHIFT).into()) {
        session_kind::SESSION_ADDRESS => Key::Address(client),
        session_kind::SESSION_SA => Key::Sa(initiator_spi),
        session_kind::SESSION_ENDPOINT if session.detail & TO_IKE != 0 => Key::IkeEndpoint(client, port),
        session_kind::SESSION_ENDPOINT => Key::Endpoint(client, port),
        session_kind::SESSION_ESP => Key::Esp(client, session.detail),
        _ => return None,
    };
    // As the datapath has it: its clock may be a second ahead, and what was imported may be older than the clock.
    let since = |then: u32| Duration::from_secs(u64::try_from(now.wrapping_sub(then) as i32).unwrap_or(0));
    let entry = Entry {
        key,
        client,
        port: if key.has_port() { port } else { 0 },
        backend: meta.backend.into(),
        ingress: meta.ingress,
        state,
        initiator_spi,
        responder_spi: u64::from_be(session.responder_spi),
        age: since(session.created),
        idle: since(meta.last_seen),
        packets: session.packets,
        bytes: session.bytes,
    };
    Some((word, entry))
}

fn tag(state: session_state, kind: session_kind) -> u8 {
    (state.0 | kind.0 << KIND_SHIFT) as u8
}

fn meta_of(word: u64) -> types::session_meta {
    types::session_meta::from_bytes(&word.to_ne_bytes())
        .expect("the kernel reads meta as one word of 64 bits")
}

fn word_of(meta: types::session_meta) -> u64 {
    u64::from_bytes(meta.as_bytes()).expect("the kernel reads meta as one word of 64 bits")
}

/// Seconds of CLOCK_MONOTONIC, the datapath's clock.
pub(super) fn now() -> u32 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| time.tv_sec() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_addresses_or_endpoints() {
        for (text, address, port) in [
            ("192.0.2.7", "192.0.2.7", None),
            ("192.0.2.7:4500", "192.0.2.7", Some(4500)),
            ("2001:db8::7", "2001:db8::7", None),
            ("[2001:db8::7]:4500", "2001:db8::7", Some(4500)),
            ("::ffff:192.0.2.7", "192.0.2.7", None),
            ("[::ffff:192.0.2.7]:500", "192.0.2.7", Some(500)),
        ] {
            let client: Client = text.parse().unwrap();
            assert_eq!(client, Client { address: address.parse().unwrap(), port });
        }
        assert_eq!("[2001:db8::7]:4500".parse::<Client>().unwrap().to_string(), "[2001:db8::7]:4500");
        for text in ["", "192.0.2", "192.0.2.7:", "192.0.2.7:65536", "[2001:db8::7]", "gateway"] {
            assert!(text.parse::<Client>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_tag_says_its_state_and_kind() {
        for state in [State::Embryonic, State::Learned, State::Established] {
            for kind in [session_kind::SESSION_ADDRESS, session_kind::SESSION_ESP] {
                let tag = tag(state.number(), kind);
                assert_eq!(State::of_tag(tag), Some(state));
                assert_eq!(u32::from(tag >> KIND_SHIFT), kind.0);
            }
        }
        for state in [session_state::SESSION_EMPTY, session_state::SESSION_FREE, session_state::SESSION_BUSY]
        {
            assert_eq!(State::of_tag(tag(state, session_kind::SESSION_ESP)), None);
        }
    }
}
