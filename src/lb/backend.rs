//! Backends: the VPN concentrators that clients are spread over.

use macaddr::MacAddr6;
use serde::Serialize;

use super::datapath::{DatapathError, Maps};
use super::schedule::{self, Candidate};
use super::session::{self, Sessions};
use super::skeleton::types;
use crate::kernel::counters::{self, Count};
use crate::kernel::table::TableError;
use crate::kernel::value::{copy_text, text};

/// The weight of a backend that none was given.
pub const DEFAULT_WEIGHT: u32 = 1;

/// What a backend is ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It takes packets.
    Active,
    /// Its MAC is not known yet, so it gets nothing.
    Unresolved,
}

/// A backend as the datapath has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    pub index: u32,
    pub name: String,
    /// The interface that it is behind.
    pub dev: String,
    /// `None` as long as it is unresolved.
    pub mac: Option<MacAddr6>,
    /// Whether the MAC was learned from the backend's frames.
    pub learned: bool,
    /// 0 to 256.
    pub weight: u32,
    pub state: State,
    /// Seconds since it last sent anything; `None` if it never did.
    pub heard_s: Option<u32>,
}

/// A backend to be set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewBackend {
    pub name: String,
    pub mac: Option<MacAddr6>,
    pub weight: u32,
}

/// Sets up the backends of a datapath that has none, each behind the port of its own index, and their schedules.
///
/// # Errors
///
/// What the kernel says about writing the maps.
pub fn install(maps: &Maps, backends: &[NewBackend]) -> Result<(), TableError> {
    let mut candidates = Vec::new();
    for (index, backend) in (0u32..).zip(backends) {
        let mut entry = types::lb_backend { port: index, weight: backend.weight, ..Default::default() };
        copy_text(&mut entry.name, &backend.name);
        entry.station.state = types::lb_backend_state::LB_UNRESOLVED;
        maps.backends.set(&index, &entry)?;
        if let Some(mac) = backend.mac {
            set_mac(maps, index, mac)?;
        }
        candidates.push(Candidate { index, name: backend.name.clone(), weight: backend.weight });
    }
    let ring = schedule::ring(&candidates);
    maps.ring.set_first(&ring)?;
    maps.hash_slots.set_first(&schedule::hash_slots(&candidates))?;
    let runtime = types::lb_runtime {
        ring_slots: ring.len() as u32,
        backends: backends.len() as u32,
        ..Default::default()
    };
    maps.runtime.set(&0, &runtime)
}

/// Says which MAC a backend has.
///
/// # Errors
///
/// What the kernel says about writing the maps.
pub fn set_mac(maps: &Maps, index: u32, mac: MacAddr6) -> Result<(), TableError> {
    let Some(mut entry) = maps.backends.get(&index)? else { return Ok(()) };
    let old = entry.station;
    entry.station = types::lb_station {
        mac: mac.into_array(),
        state: types::lb_backend_state::LB_ACTIVE,
        ..Default::default()
    };
    maps.backends.set(&index, &entry)?;
    let old_key = mac_key(old.mac);
    // Where two backends change their MACs, the old one of the second is the first one's by now.
    if old.mac != entry.station.mac && maps.backend_macs.get(&old_key)? == Some(index) {
        maps.backend_macs.delete(&old_key)?;
    }
    maps.backend_macs.set(&mac_key(entry.station.mac), &index)
}

fn mac_key(mac: [u8; 6]) -> u64 {
    let mut key = [0; 8];
    key[..6].copy_from_slice(&mac);
    u64::from_ne_bytes(key)
}

/// The backends in the order in which they were given.
///
/// # Errors
///
/// What the kernel says about reading the maps.
pub fn list(maps: &Maps) -> Result<Vec<Backend>, TableError> {
    let devs = egress_names(maps)?;
    let now = session::now();
    let mut found = Vec::new();
    for index in 0..maps.runtime()?.backends {
        let Some(entry) = maps.backends.get(&index)? else { continue };
        let state = match entry.station.state {
            types::lb_backend_state::LB_ACTIVE => State::Active,
            types::lb_backend_state::LB_UNRESOLVED => State::Unresolved,
            _ => continue,
        };
        found.push(Backend {
            index,
            name: text(&entry.name),
            dev: devs
                .iter()
                .find(|(port, _)| *port == entry.port)
                .map(|(_, dev)| dev.clone())
                .unwrap_or_default(),
            mac: (state == State::Active).then(|| MacAddr6::from(entry.station.mac)),
            learned: entry.station.learned != 0,
            weight: entry.weight,
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
    /// Seconds since the backend last sent anything.
    pub heard_s: Option<u32>,
}

/// What each backend has to do.
///
/// # Errors
///
/// What the kernel says about reading the maps.
pub fn loads(maps: &Maps) -> Result<Vec<Load>, DatapathError> {
    let mut sessions = vec![0usize; super::datapath::BACKENDS_MAX];
    for session in Sessions::open(maps)?.iter() {
        if let Some(count) = sessions.get_mut(session.backend as usize) {
            *count += 1;
        }
    }
    list(maps)?
        .into_iter()
        .map(|backend| {
            Ok(Load {
                sessions: sessions[backend.index as usize],
                sent: counters::read(&maps.backend_counters, backend.index)?,
                mac: backend.mac.map(|mac| mac.to_string().to_lowercase()),
                name: backend.name,
                dev: backend.dev,
                weight: backend.weight,
                state: backend.state,
                mac_learned: backend.learned,
                heard_s: backend.heard_s,
            })
        })
        .collect()
}
