//! Backends: the VPN concentrators that clients are spread over, as the datapath's maps have them.
//!
//! A backend has an index for as long as it is there, and is behind a port, an interface's key in `egress_ports`. Who
//! writes here holds the lock of the pins' root; `change` has the commands that do.

use std::mem::offset_of;
use std::sync::atomic::Ordering;
use std::thread;

use macaddr::MacAddr6;
use serde::Serialize;

use super::datapath::{BACKENDS_MAX, DatapathError, Maps};
use super::schedule::{self, Candidate};
use super::session::{self, Sessions};
use super::skeleton::types::{self, lb_limits};
use crate::kernel::counters::{self, Count};
use crate::kernel::table::{SharedWords, TableError};
use crate::kernel::value::{MapValue, copy_text, text};

/// The weight of a backend that none was given.
pub const DEFAULT_WEIGHT: u32 = 1;

/// What a backend without a label has for one.
const NO_LABEL: u32 = lb_limits::LB_NO_LABEL.0;

/// What the user wants of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Wanted {
    /// That it takes everything.
    #[default]
    Active,
    /// That it keeps what it has, and gets no new clients.
    Draining,
    /// That it gets nothing.
    Down,
}

impl Wanted {
    /// The stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Down => "down",
        }
    }

    fn state(self) -> types::lb_backend_state {
        match self {
            Self::Active => types::lb_backend_state::LB_ACTIVE,
            Self::Draining => types::lb_backend_state::LB_DRAINING,
            Self::Down => types::lb_backend_state::LB_DOWN,
        }
    }

    fn from_state(state: types::lb_backend_state) -> Option<Self> {
        [Self::Active, Self::Draining, Self::Down].into_iter().find(|wanted| wanted.state() == state)
    }
}

/// What a backend is ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It takes packets.
    Active,
    /// It takes packets of the clients that it has.
    Draining,
    /// It takes none, by the user's wish or because it has not answered for too long.
    Down,
    /// Its MAC is not known yet, so it gets nothing.
    Unresolved,
}

impl State {
    /// The stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Down => "down",
            Self::Unresolved => "unresolved",
        }
    }
}

/// A backend as the datapath has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    pub index: u32,
    pub name: String,
    /// Key of the interface that it is behind, in `egress_ports`.
    pub port: u32,
    /// That interface.
    pub dev: String,
    /// `None` as long as it is unresolved.
    pub mac: Option<MacAddr6>,
    /// Whether the MAC was learned from the backend's frames.
    pub learned: bool,
    /// 0 to 256.
    pub weight: u32,
    /// What its SPIs begin with.
    pub label: Option<u32>,
    pub wanted: Wanted,
    pub state: State,
    /// Seconds since it last sent anything; `None` if it never did.
    pub heard_s: Option<u32>,
}

/// A backend to be set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewBackend {
    pub name: String,
    /// Key of the interface that it is behind, in `egress_ports`.
    pub port: u32,
    pub mac: Option<MacAddr6>,
    pub weight: u32,
    /// What its SPIs begin with.
    pub label: Option<u32>,
    pub wanted: Wanted,
}

impl Default for NewBackend {
    fn default() -> Self {
        Self {
            name: String::new(),
            port: 0,
            mac: None,
            weight: DEFAULT_WEIGHT,
            label: None,
            wanted: Wanted::default(),
        }
    }
}

/// Sets up the backends of a datapath that has none, and their schedules.
///
/// # Errors
///
/// What the kernel says about writing the maps.
pub fn install(maps: &Maps, backends: &[NewBackend]) -> Result<(), TableError> {
    for (index, backend) in (0u32..).zip(backends) {
        put(maps, index, backend)?;
    }
    refresh_tables(maps, &list(maps)?)
}

/// Writes a backend at an index that no other has. It gets packets by sessions and labels at once, and by schedules
/// after [`reschedule`].
pub(super) fn put(maps: &Maps, index: u32, backend: &NewBackend) -> Result<(), TableError> {
    let mut entry = types::lb_backend {
        port: backend.port,
        weight: backend.weight,
        label: backend.label.unwrap_or(NO_LABEL),
        ..Default::default()
    };
    copy_text(&mut entry.name, &backend.name);
    entry.station.state = backend.wanted.state();
    maps.backends.set(&index, &entry)?;
    if let Some(mac) = backend.mac {
        set_mac(maps, index, mac)?;
    }
    if let Some(label) = backend.label {
        maps.labels.set(&label, &(index + 1))?;
    }
    Ok(())
}

/// Says which MAC a backend has.
///
/// # Errors
///
/// What the kernel says about writing the maps.
pub fn set_mac(maps: &Maps, index: u32, mac: MacAddr6) -> Result<(), TableError> {
    let new = mac.into_array();
    let mut old = [0; 6];
    edit(maps, index, |entry| {
        old = entry.station.mac;
        entry.station.mac = new;
        entry.station.learned = 0;
    })?;
    if old != new {
        forget_mac(maps, index, old)?;
    }
    maps.backend_macs.set(&mac_key(new), &index)
}

/// Removes what says that a MAC is a backend's. Where two backends change their MACs, the old one of the second is the
/// first one's by now.
fn forget_mac(maps: &Maps, index: u32, mac: [u8; 6]) -> Result<(), TableError> {
    let key = mac_key(mac);
    if maps.backend_macs.get(&key)? == Some(index) { maps.backend_macs.delete(&key) } else { Ok(()) }
}

fn mac_key(mac: [u8; 6]) -> u64 {
    let mut key = [0; 8];
    key[..6].copy_from_slice(&mac);
    u64::from_ne_bytes(key)
}

/// Says what is wanted of a backend. Schedules follow with [`reschedule`].
///
/// # Errors
///
/// What the kernel says about writing the maps.
pub fn set_wanted(maps: &Maps, index: u32, wanted: Wanted) -> Result<(), TableError> {
    edit(maps, index, |entry| {
        entry.station.state = wanted.state();
        // Whoever calls it back to work gives it the whole time to answer.
        if wanted == Wanted::Active {
            entry.asked = 0;
        }
    })
}

/// Puts a backend behind another interface.
pub(super) fn set_port(maps: &Maps, index: u32, port: u32) -> Result<(), TableError> {
    edit(maps, index, |entry| entry.port = port)
}

/// Gives a backend a weight. Schedules follow with [`reschedule`].
///
/// # Errors
///
/// What the kernel says about writing the maps.
pub fn set_weight(maps: &Maps, index: u32, weight: u32) -> Result<(), TableError> {
    edit(maps, index, |entry| entry.weight = weight)
}

/// Gives a backend a label, or takes its label away.
///
/// # Errors
///
/// What the kernel says about writing the maps.
pub fn set_label(maps: &Maps, index: u32, label: Option<u32>) -> Result<(), TableError> {
    let mut old = NO_LABEL;
    edit(maps, index, |entry| old = std::mem::replace(&mut entry.label, label.unwrap_or(NO_LABEL)))?;
    // As with MACs, the old one may be another's by now.
    if maps.labels.get(&old)? == Some(index + 1) && Some(old) != label {
        maps.labels.set(&old, &0)?;
    }
    label.map_or(Ok(()), |label| maps.labels.set(&label, &(index + 1)))
}

/// Changes a backend's entry. What the datapath writes there at the same moment, when it was last heard or the MAC that
/// it has just learned, may be lost; the next frame brings it again.
fn edit(maps: &Maps, index: u32, change: impl FnOnce(&mut types::lb_backend)) -> Result<(), TableError> {
    let Some(mut entry) = maps.backends.get(&index)? else { return Ok(()) };
    change(&mut entry);
    maps.backends.set(&index, &entry)
}

/// Ends a backend's sessions and makes the datapath forget it, but for the schedules, which are to be without it already.
/// Returns how many sessions that were. An index that nobody has may still hold what a removal that was cut short has left.
pub(super) fn clear(maps: &Maps, index: u32) -> Result<usize, TableError> {
    let Some(entry) = maps.backends.get(&index)? else { return Ok(0) };
    if entry.name[0] == 0 {
        return Ok(0);
    }
    let ended = Sessions::open(maps)?.remove_at(index);
    set_label(maps, index, None)?;
    forget_mac(maps, index, entry.station.mac)?;
    maps.backends.set(&index, &types::lb_backend::default())?;
    maps.backend_counters.set_per_cpu(&index, &types::counter::default())?;
    maps.backend_sessions.set(&index, &0)?;
    Ok(ended)
}

/// Says that there is no such backend any more, so that it gets nothing and new sessions go elsewhere.
pub(super) fn set_absent(maps: &Maps, index: u32) -> Result<(), TableError> {
    edit(maps, index, |entry| entry.station.state = types::lb_backend_state::LB_ABSENT)
}

/// Makes the schedules anew from what the backends are now. Returns when the next change may come.
///
/// # Errors
///
/// What the kernel says about the maps.
pub fn reschedule(maps: &Maps) -> Result<(), TableError> {
    reschedule_to(maps, &list(maps)?)
}

/// The same, as if the backends were these.
pub(super) fn reschedule_to(maps: &Maps, backends: &[Backend]) -> Result<(), TableError> {
    refresh_tables(maps, backends)?;
    thread::sleep(schedule::SETTLE);
    Ok(())
}

/// Brings all that follows from the backends up to date.
fn refresh_tables(maps: &Maps, all: &[Backend]) -> Result<(), TableError> {
    let of = |wanted: &[Wanted]| -> Vec<Candidate> {
        let some = all.iter().filter(|backend| wanted.contains(&backend.wanted));
        let candidate = |backend: &Backend| Candidate {
            index: backend.index,
            name: backend.name.clone(),
            weight: backend.weight,
        };
        some.map(candidate).collect()
    };
    super::interfaces::assign(maps, all)?;
    let end = all.last().map_or(0, |last| last.index + 1);
    set_end(maps, end)?;
    let mut ring = schedule::ring(&of(&[Wanted::Active]));
    if ring.is_empty() {
        ring = schedule::ring(&of(&[Wanted::Draining]));
    }
    // Those that are down keep their slots, which the datapath passes over: when one comes back, nothing else moves.
    let hash_slots = schedule::hash_slots(&of(&[Wanted::Active, Wanted::Draining, Wanted::Down]));
    schedule::swap_in(maps, &ring, &hash_slots)
}

/// Says how far the datapath has to look through the backends.
fn set_end(maps: &Maps, end: u32) -> Result<(), TableError> {
    const OFFSET: usize = offset_of!(types::lb_runtime, backends);
    const WORD: usize = OFFSET / size_of::<u64>();
    // A word of its own, but for padding.
    const { assert!(OFFSET % size_of::<u64>() == 0) };
    let runtime = types::lb_runtime { backends: end, ..Default::default() };
    let bytes = runtime.as_bytes()[OFFSET..].first_chunk().expect("it is within the struct");
    SharedWords::new(&maps.runtime)?.words()[WORD].store(u64::from_ne_bytes(*bytes), Ordering::Release);
    Ok(())
}

/// The backends in the order of their indexes, which is that in which they were given.
///
/// # Errors
///
/// What the kernel says about reading the maps.
pub fn list(maps: &Maps) -> Result<Vec<Backend>, TableError> {
    let devs = egress_names(maps)?;
    let down_after = maps.config()?.lb_config.down_after;
    let now = session::now();
    let mut found = Vec::new();
    for index in 0..BACKENDS_MAX as u32 {
        let Some(entry) = maps.backends.get(&index)? else { continue };
        let Some(wanted) = Wanted::from_state(entry.station.state) else { continue };
        let mac = (entry.station.mac != [0; 6]).then(|| MacAddr6::from(entry.station.mac));
        // As the datapath sees it (bpf/lb/backends.h, backend_is_mute).
        let mute = down_after != 0 && entry.asked != 0 && now.saturating_sub(entry.asked) > down_after;
        let state = match wanted {
            _ if mute => State::Down,
            Wanted::Down => State::Down,
            _ if mac.is_none() => State::Unresolved,
            Wanted::Active => State::Active,
            Wanted::Draining => State::Draining,
        };
        found.push(Backend {
            index,
            name: text(&entry.name),
            port: entry.port,
            dev: devs
                .iter()
                .find(|(port, _)| *port == entry.port)
                .map(|(_, dev)| dev.clone())
                .unwrap_or_default(),
            mac,
            learned: entry.station.learned != 0,
            weight: entry.weight,
            label: (entry.label != NO_LABEL).then_some(entry.label),
            wanted,
            state,
            heard_s: (entry.last_seen != 0).then(|| now.saturating_sub(entry.last_seen)),
        });
    }
    Ok(found)
}

fn egress_names(maps: &Maps) -> Result<Vec<(u32, String)>, TableError> {
    let egress = |entry: &types::lb_interface| entry.ifindex != 0 && entry.role == types::lb_role::LB_EGRESS;
    let entries = super::interfaces::list(maps)?;
    Ok(entries.iter().filter(|e| egress(e)).map(|e| (e.index.into(), text(&e.name))).collect())
}

/// A backend, what it has to do, and what it was sent; the rows of `lb backend list`.
#[derive(Clone, Debug, Serialize)]
pub struct Load {
    pub name: String,
    pub dev: String,
    pub mac: Option<String>,
    pub weight: u32,
    pub state: State,
    /// Sessions of either state.
    pub sessions: usize,
    #[serde(flatten)]
    pub sent: Count,
    /// Whether the MAC was learned from the backend's frames.
    pub mac_learned: bool,
    /// What its SPIs begin with.
    pub label: Option<u32>,
    /// Seconds since the backend last sent anything.
    pub heard_s: Option<u32>,
}

/// What each backend has to do.
///
/// # Errors
///
/// What the kernel says about reading the maps.
pub fn loads(maps: &Maps) -> Result<Vec<Load>, DatapathError> {
    let sessions = Sessions::open(maps)?.by_backend();
    list(maps)?
        .into_iter()
        .map(|backend| {
            Ok(Load {
                sessions: sessions.get(backend.index as usize).copied().unwrap_or_default(),
                sent: counters::read(&maps.backend_counters, backend.index)?,
                mac: backend.mac.map(|mac| mac.to_string().to_lowercase()),
                name: backend.name,
                dev: backend.dev,
                weight: backend.weight,
                state: backend.state,
                mac_learned: backend.learned,
                label: backend.label,
                heard_s: backend.heard_s,
            })
        })
        .collect()
}
