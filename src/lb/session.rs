//! Sessions as user space sees and ends them (`bpf/include/session.h` has the rules of the table).

use std::mem::offset_of;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::datapath::Maps;
use super::skeleton::types;
use crate::kernel::table::{SharedWords, TableError};
use crate::kernel::value::MapValue;

const SESSION_WORDS: usize = size_of::<types::session>() / size_of::<u64>();
const META_WORD: usize = offset_of!(types::session, meta) / size_of::<u64>();
const CLIENT_WORD: usize = offset_of!(types::session, client) / size_of::<u64>();
const ESTABLISHED_WORD: usize = offset_of!(types::session_totals, established) / size_of::<u64>();

/// How far a session has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The client has been heard, and has not yet proved to hear its backend.
    Embryonic,
    /// It has.
    Established,
}

/// A client's session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub client: IpAddr,
    /// Index of the backend.
    pub backend: u32,
    /// Index of the client-side interface that the client was last seen on.
    pub ingress: u8,
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

/// The session table of an instance, in the memory that it shares with the datapath.
#[derive(Debug)]
pub struct Sessions {
    slots: SharedWords,
    totals: SharedWords,
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
            config: maps.config()?.session_config,
        })
    }

    /// All sessions that have not expired, in no order. The datapath goes on meanwhile: each session is as it
    /// was at some moment of the walk.
    pub fn iter(&self) -> impl Iterator<Item = Session> + '_ {
        let now = now();
        self.slots().filter_map(move |slot| self.read(slot, now))
    }

    /// The sessions of one address.
    pub fn of(&self, client: IpAddr) -> impl Iterator<Item = Session> + '_ {
        self.iter().filter(move |session| session.client == client)
    }

    /// How many sessions are established, those included that have expired and have not been missed.
    pub fn established(&self) -> u64 {
        self.totals.words()[ESTABLISHED_WORD].load(Ordering::Relaxed)
    }

    /// Ends the sessions of one address. Returns how many there were.
    pub fn remove(&self, client: IpAddr) -> usize {
        self.remove_if(|session| session.client == client)
    }

    /// Ends all sessions. Returns how many there were.
    pub fn flush(&self) -> usize {
        self.remove_if(|_| true)
    }

    fn remove_if(&self, condition: impl Fn(&Session) -> bool) -> usize {
        let now = now();
        self.slots()
            .filter(|slot| {
                let found = self.read(slot, now).filter(|session| condition(session));
                found.is_some_and(|session| self.free(slot, session.client))
            })
            .count()
    }

    fn slots(&self) -> impl Iterator<Item = &[AtomicU64]> {
        self.slots.words().chunks_exact(SESSION_WORDS)
    }

    /// Copies a slot, if it is in use. Equal meta words before and after say that it did not change hands meanwhile.
    fn read(&self, slot: &[AtomicU64], now: u32) -> Option<Session> {
        let meta = slot[META_WORD].load(Ordering::Acquire);
        if meta == 0 {
            return None;
        }
        let bytes: Vec<u8> =
            slot.iter().flat_map(|word| word.load(Ordering::Acquire).to_ne_bytes()).collect();
        let before = meta_of(meta);
        let after = meta_of(slot[META_WORD].load(Ordering::Acquire));
        if (before.backend, before.state) != (after.backend, after.state) {
            return None;
        }
        let session = types::session::from_bytes(&bytes)?;
        let (state, timeout) = match after.state {
            types::session_state::SESSION_EMBRYONIC => (State::Embryonic, self.config.embryonic_timeout),
            types::session_state::SESSION_ESTABLISHED => {
                (State::Established, self.config.established_timeout)
            }
            _ => return None,
        };
        // The datapath's clock may be a second ahead or behind.
        let since = |then: u32| now.saturating_sub(then);
        let idle = since(after.last_seen);
        (idle <= timeout).then(|| Session {
            client: session.client.into(),
            backend: after.backend.into(),
            ingress: after.ingress,
            state,
            age: Duration::from_secs(since(session.created).into()),
            idle: Duration::from_secs(idle.into()),
            packets: session.packets,
            bytes: session.bytes,
        })
    }

    /// Takes the session of `client` out of its slot. False where it ended by itself.
    fn free(&self, slot: &[AtomicU64], client: IpAddr) -> bool {
        let word = &slot[META_WORD];
        // The slot may have changed hands since it was read.
        let is_of_client = || {
            let words = [0, 1].map(|i| slot[CLIENT_WORD + i].load(Ordering::Acquire));
            IpAddr::from(types::address { words }) == client
        };
        let freed = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            let mut meta = meta_of(word);
            let in_use = meta.state == types::session_state::SESSION_EMBRYONIC
                || meta.state == types::session_state::SESSION_ESTABLISHED;
            meta.state = types::session_state::SESSION_FREE;
            (in_use && is_of_client()).then(|| word_of(meta))
        });
        if freed.is_ok_and(|old| meta_of(old).state == types::session_state::SESSION_ESTABLISHED) {
            self.totals.words()[ESTABLISHED_WORD].fetch_sub(1, Ordering::AcqRel);
        }
        freed.is_ok()
    }
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
