//! The balancer's programs and maps: loaded anew, or opened from where an instance has pinned them.

use std::ffi::OsStr;
use std::fmt;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{MapCore, MapHandle};
use thiserror::Error;

use super::skeleton::{LbSkelBuilder, types};
use crate::kernel::counters::Count;
use crate::kernel::object::{self, ObjectError};
use crate::kernel::pins::{self, Instance, PinError};
use crate::kernel::program::Program;
use crate::kernel::snapshot;
use crate::kernel::table::{Table, TableError};
use crate::kernel::value::{address_of_words, address_words, copy_text};

/// The layout of pinned maps that this build makes and understands.
pub const LAYOUT: u32 = types::lb_limits::LB_LAYOUT.0;

/// How many backends there can be.
pub const BACKENDS_MAX: usize = types::lb_limits::LB_BACKENDS_MAX.0 as usize;

/// How many client-side interfaces there can be.
pub const INGRESS_MAX: usize = types::lb_limits::LB_INGRESS_MAX.0 as usize;

/// How many VIPs there can be.
pub const VIPS_MAX: usize = types::lb_limits::LB_VIPS_MAX.0 as usize;

/// The greatest number of bits of an SPI that name a backend.
pub const LABEL_BITS_MAX: u32 = types::lb_limits::LB_LABEL_BITS_MAX.0;

/// Seconds without a packet after which a session that was never proven ends.
pub const EMBRYONIC_TIMEOUT: u32 = 30;

/// One source's share of the start rate is the total by this: a NAT with many clients behind it fits into it.
const SOURCE_SHARE: u64 = 20;

crate::map_values! {
    types::rodata, types::session, types::session_bucket, types::session_meta, types::session_totals,
    types::lb_backend, types::lb_explained, types::lb_fragment, types::lb_fragment_key, types::lb_interface,
    types::lb_runtime, types::lb_schedule, types::lb_station, types::counter
}

impl From<types::counter> for Count {
    fn from(counter: types::counter) -> Self {
        Self { packets: counter.packets, bytes: counter.bytes }
    }
}

/// How a new client's backend is chosen.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize, serde::Serialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// The next backend in turn
    #[default]
    RoundRobin,
    /// By a consistent hash of the client's address: balancers side by side agree without talking
    Maglev,
    /// The backend that has the fewest sessions for its weight
    LeastSessions,
}

impl Policy {
    /// What programs with this configuration go by.
    pub fn of(config: &types::rodata) -> Self {
        match config.lb_config.policy {
            types::lb_policy::LB_MAGLEV => Self::Maglev,
            types::lb_policy::LB_LEAST_SESSIONS => Self::LeastSessions,
            _ => Self::RoundRobin,
        }
    }
}

/// What the datapath takes for one client.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize, serde::Serialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Affinity {
    /// An IP address
    #[default]
    Address,
    /// An IKE SA with its ESP: many clients may be behind one address
    Tunnel,
}

impl Affinity {
    /// What programs with this configuration go by.
    pub fn of(config: &types::rodata) -> Self {
        if config.lb_config.affinity == types::lb_affinity::LB_BY_TUNNEL {
            Self::Tunnel
        } else {
            Self::Address
        }
    }

    /// How many slots the session table has for each session that may be established (`bpf/include/session.h`). A tunnel
    /// has an entry for its SA, its endpoints and its SPIs each.
    fn slots_per_session(self) -> u32 {
        match self {
            Self::Address => 4,
            Self::Tunnel => 16,
        }
    }
}

impl fmt::Display for Affinity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Address => "address",
            Self::Tunnel => "tunnel",
        })
    }
}

/// What becomes of the sessions at a backend that is down.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize, serde::Serialize,
)]
#[serde(rename_all = "lowercase")]
pub enum OnDown {
    /// Their packets go to another backend, and so does their client's next start
    #[default]
    Rehash,
    /// They wait: their packets are dropped until it is back
    Hold,
}

impl OnDown {
    /// What programs with this configuration go by.
    pub fn of(config: &types::rodata) -> Self {
        if config.lb_config.on_down == types::lb_on_down::LB_HOLD { Self::Hold } else { Self::Rehash }
    }
}

/// What happens to packets that are none of a VPN's.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize, serde::Serialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Other {
    /// They are dropped
    #[default]
    Drop,
    /// This machine's network stack gets them
    Pass,
}

/// Which way the backends' answers take.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Deserialize, serde::Serialize,
)]
#[serde(rename_all = "lowercase")]
pub enum ReturnPath {
    /// Through this balancer, which learns from them
    #[default]
    Here,
    /// Past it
    Direct,
}

/// What is decided when programs are loaded, and stays as it is until they are replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub policy: Policy,
    pub affinity: Affinity,
    pub on_down: OnDown,
    /// How many top bits of an SPI name the backend that chose it; 0 if none do. At most [`LABEL_BITS_MAX`].
    pub spi_shard: u32,
    /// After how long without an answer a backend counts as down. Whole seconds count; zero is never.
    pub down_after: Duration,
    pub other: Other,
    pub return_path: ReturnPath,
    /// How many clients can have an established session; at least 1.
    pub max_sessions: u32,
    /// How long an established session may be silent. Whole seconds count.
    pub idle_timeout: Duration,
    /// New sessions a second, of all sources together; at least 1.
    pub start_rate: u32,
    /// The addresses that are balanced; all of them if there is none. At most [`VIPS_MAX`].
    pub vips: Vec<IpAddr>,
    pub ingress_count: u32,
    /// The network namespace as it was given on the command line.
    pub netns: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            affinity: Affinity::default(),
            on_down: OnDown::default(),
            spi_shard: 0,
            down_after: Duration::ZERO,
            other: Other::default(),
            return_path: ReturnPath::default(),
            max_sessions: 131_072,
            idle_timeout: Duration::from_secs(24 * 3600),
            start_rate: 20_000,
            vips: Vec::new(),
            ingress_count: 1,
            netns: None,
        }
    }
}

/// Why programs and maps could not be had.
#[derive(Debug, Error)]
pub enum DatapathError {
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(
        "instance {name} has maps of layout {found}, and this build of lb needs layout {LAYOUT}; to keep the sessions: `lb session export` with the old lb, `lb detach --name {name}`, attach anew, `lb session import`"
    )]
    Layout { name: String, found: u32 },
    #[error(
        "instance {name} has room for {found} sessions, and this command line asks for --max-sessions {wanted}; leave it as it was, or detach first"
    )]
    Sessions { name: String, found: u32, wanted: u32 },
    #[error(
        "instance {name} has --affinity {found}, whose sessions are of no use to --affinity {wanted}; leave it as it was, or detach first"
    )]
    Affinity { name: String, found: Affinity, wanted: Affinity },
    #[error(transparent)]
    Pin(#[from] PinError),
}

/// Names, as they are pinned, of all maps but the read-only data.
pub const MAPS: [&str; 21] = [
    "backend_counters",
    "backend_macs",
    "backend_sessions",
    "backends",
    "egress_ports",
    "explained",
    "fragments",
    "hash_slots",
    "ingress_ports",
    "interfaces",
    "label_counters",
    "labels",
    "ring",
    "runtime",
    "scenes",
    "session_locks",
    "session_totals",
    "sessions",
    "source_rates",
    "unplaced",
    "verdicts",
];

/// The maps that user space reads or writes, the same for a loaded and for a pinned instance.
#[derive(Debug)]
pub struct Maps {
    pub backend_counters: Table<u32, types::counter>,
    /// Keys are the six bytes of a MAC, then two zero bytes.
    pub backend_macs: Table<u64, u32>,
    /// Sessions of each backend by its index, of either state.
    pub backend_sessions: Table<u32, u64>,
    pub backends: Table<u32, types::lb_backend>,
    pub egress_ports: Table<u32, u32>,
    pub explained: Table<u32, types::lb_explained>,
    pub fragments: Table<types::lb_fragment_key, types::lb_fragment>,
    pub hash_slots: Table<u32, u32>,
    pub ingress_ports: Table<u32, u32>,
    pub interfaces: Table<u32, types::lb_interface>,
    pub label_counters: Table<u32, types::counter>,
    /// The index of each label's backend plus 1; 0 is none.
    pub labels: Table<u32, u32>,
    pub ring: Table<u32, u32>,
    pub runtime: Table<u32, types::lb_runtime>,
    pub session_totals: Table<u32, types::session_totals>,
    pub sessions: Table<u32, types::session_bucket>,
    /// Token buckets of sources.
    pub source_rates: Table<u32, u64>,
    pub unplaced: Table<u32, types::counter>,
    pub verdicts: Table<u32, types::counter>,
    /// The read-only data of the programs.
    pub config: Table<u32, types::rodata>,
}

impl Maps {
    /// Takes each map from where `handle` finds it by name.
    fn gather(handle: impl Fn(&str) -> Result<MapHandle, DatapathError>) -> Result<Self, DatapathError> {
        Ok(Self {
            backend_counters: Table::new(handle("backend_counters")?)?,
            backend_macs: Table::new(handle("backend_macs")?)?,
            backend_sessions: Table::new(handle("backend_sessions")?)?,
            backends: Table::new(handle("backends")?)?,
            egress_ports: Table::new(handle("egress_ports")?)?,
            explained: Table::new(handle("explained")?)?,
            fragments: Table::new(handle("fragments")?)?,
            hash_slots: Table::new(handle("hash_slots")?)?,
            ingress_ports: Table::new(handle("ingress_ports")?)?,
            interfaces: Table::new(handle("interfaces")?)?,
            label_counters: Table::new(handle("label_counters")?)?,
            labels: Table::new(handle("labels")?)?,
            ring: Table::new(handle("ring")?)?,
            runtime: Table::new(handle("runtime")?)?,
            session_totals: Table::new(handle("session_totals")?)?,
            sessions: Table::new(handle("sessions")?)?,
            source_rates: Table::new(handle("source_rates")?)?,
            unplaced: Table::new(handle("unplaced")?)?,
            verdicts: Table::new(handle("verdicts")?)?,
            config: Table::new(handle(pins::CONFIG)?)?,
        })
    }

    /// Opens the maps of an instance that this build or one of the same layout has attached.
    ///
    /// # Errors
    ///
    /// Where a pin is missing or no map, and where the layout is another.
    pub fn open(instance: &Instance) -> Result<Self, DatapathError> {
        Self::open_by(instance, |path| MapHandle::from_pinned_path(path))
    }

    /// The same for reading alone: the kernel refuses what would change them.
    ///
    /// # Errors
    ///
    /// As [`Maps::open`].
    pub fn open_to_read(instance: &Instance) -> Result<Self, DatapathError> {
        Self::open_by(instance, snapshot::open)
    }

    fn open_by(
        instance: &Instance,
        pinned: impl Fn(&Path) -> libbpf_rs::Result<MapHandle>,
    ) -> Result<Self, DatapathError> {
        let open = |path: PathBuf| pinned(&path).map_err(|error| instance.corrupt(error));
        let config = instance.pin(pins::CONFIG);
        check_layout(instance, &open(config.clone())?)?;
        Self::gather(|name| {
            Ok(open(if name == pins::CONFIG { config.clone() } else { instance.map_pin(name) })?)
        })
        .map_err(|error| match error {
            DatapathError::Table(error) => instance.corrupt(error).into(),
            other => other,
        })
    }

    /// Whether these are the maps that `instance` has now: it may have been detached since they were opened, and
    /// another one attached by its name. An upgrade in place keeps them.
    pub fn are_of(&self, instance: &Instance) -> bool {
        instance.is_whole() && object::is_pinned_at(self.sessions.handle(), &instance.map_pin("sessions"))
    }

    /// The programs' read-only data.
    ///
    /// # Errors
    ///
    /// What the kernel says about reading it.
    pub fn config(&self) -> Result<types::rodata, TableError> {
        Ok(self.config.get(&0)?.expect("an array has all its entries"))
    }

    /// What all CPUs share.
    ///
    /// # Errors
    ///
    /// What the kernel says about reading it.
    pub fn runtime(&self) -> Result<types::lb_runtime, TableError> {
        Ok(self.runtime.get(&0)?.expect("an array has all its entries"))
    }
}

/// Reads the layout without relying on anything but that it comes first.
fn check_layout(instance: &Instance, config: &MapHandle) -> Result<(), DatapathError> {
    let bytes = config
        .lookup(&0u32.to_ne_bytes(), libbpf_rs::MapFlags::ANY)
        .map_err(|source| ObjectError::Handle { what: "the configuration".into(), source })?
        .unwrap_or_default();
    let found = bytes.first_chunk().map_or(0, |first| u32::from_ne_bytes(*first));
    if found == LAYOUT { Ok(()) } else { Err(DatapathError::Layout { name: instance.name.clone(), found }) }
}

/// Loaded programs with their maps. Nothing is attached or pinned.
#[derive(Debug)]
pub struct Datapath {
    /// For the interfaces towards the clients.
    pub client: Program,
    /// For the interfaces towards the backends.
    pub backend: Program,
    /// Never attached: run on one entry, it puts that into the session table.
    pub import: Program,
    pub maps: Maps,
    /// Every map by the name to pin it by.
    handles: object::Maps,
}

impl Datapath {
    /// Loads the programs with new, empty maps.
    ///
    /// # Errors
    ///
    /// Where the kernel lacks BTF, or refuses the programs.
    pub fn load(settings: &Settings) -> Result<Self, DatapathError> {
        let seed = random();
        Self::build(None, |rodata| configure(rodata, settings, seed))
    }

    /// Loads the programs with new, empty maps, with the configuration of others, and to write down what each packet meets.
    /// A client's place in the new session table is the same as in that of the others.
    ///
    /// # Errors
    ///
    /// As [`Datapath::load`].
    pub fn load_explaining(config: &types::rodata) -> Result<Self, DatapathError> {
        Self::build(None, |rodata| {
            rodata.session_config = config.session_config;
            rodata.lb_config = config.lb_config;
            rodata.lb_config.explain = 1;
        })
    }

    /// Loads the programs on the maps of `instance`, with its own configuration.
    ///
    /// # Errors
    ///
    /// As [`Datapath::load`], and where the maps are not what this build needs.
    pub fn load_again(instance: &Instance) -> Result<Self, DatapathError> {
        let config = Maps::open(instance)?.config()?;
        Self::build(Some(instance), |rodata| {
            rodata.session_config = config.session_config;
            rodata.lb_config = config.lb_config;
        })
    }

    /// Loads the programs on the maps of `instance`.
    ///
    /// # Errors
    ///
    /// As [`Datapath::load`], and where the maps are not what this build or these settings need.
    pub fn load_upgrade(settings: &Settings, instance: &Instance) -> Result<Self, DatapathError> {
        let maps = Maps::open(instance)?;
        let config = maps.config()?;
        let name = || instance.name.clone();
        let (found, wanted) = (Affinity::of(&config), settings.affinity);
        if found != wanted {
            return Err(DatapathError::Affinity { name: name(), found, wanted });
        }
        let (found, wanted) = (config.session_config.established_max, settings.max_sessions);
        if found != wanted {
            return Err(DatapathError::Sessions { name: name(), found, wanted });
        }
        // A client's place in the table is by this hash, and the table stays.
        let seed = config.session_config.seed;
        Self::build(Some(instance), |rodata| configure(rodata, settings, seed))
    }

    fn build(
        old: Option<&Instance>,
        configure: impl FnOnce(&mut types::rodata),
    ) -> Result<Self, DatapathError> {
        object::check_btf()?;
        let mut storage = MaybeUninit::uninit();
        let mut open = LbSkelBuilder::default().open(&mut storage).map_err(load_error)?;

        let rodata = open.maps.rodata_data.as_deref_mut().expect("the object has read-only data");
        configure(rodata);
        let buckets = rodata.session_config.buckets;
        open.maps.sessions.set_max_entries(buckets).map_err(load_error)?;
        if let Some(instance) = old {
            for mut map in open.open_object_mut().maps_mut() {
                if let Some(name) = pin_name(map.name()).filter(|name| *name != pins::CONFIG) {
                    object::reuse(instance, name, &mut map)?;
                }
            }
        }

        let skeleton = open.load().map_err(load_error)?;
        let handles = object::Maps::of(skeleton.object(), pin_name)?;
        Ok(Self {
            client: object::program(&skeleton.progs.lb_client)?,
            backend: object::program(&skeleton.progs.lb_backend)?,
            import: object::program(&skeleton.progs.lb_import)?,
            maps: Maps::gather(|name| Ok(handles.handle(name)?))?,
            handles,
        })
    }

    /// Pins all maps but the configuration, whose pin says that the instance is whole.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn pin_maps(&mut self, instance: &Instance) -> Result<(), DatapathError> {
        Ok(self.handles.pin(instance)?)
    }

    /// Pins the configuration; in the place of an older one, if there is one, without a moment between.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn pin_config(&mut self, instance: &Instance) -> Result<(), DatapathError> {
        Ok(object::pin_config(&mut self.handles.handle(pins::CONFIG)?, instance)?)
    }
}

const SESSION_WAYS: u32 = size_of::<types::session_bucket>() as u32 / size_of::<types::session>() as u32;

fn configure(rodata: &mut types::rodata, settings: &Settings, seed: u64) {
    let session = &mut rodata.session_config;
    session.seed = seed;
    let slots = settings.max_sessions.saturating_mul(settings.affinity.slots_per_session());
    session.buckets = (slots / SESSION_WAYS).max(4);
    session.established_max = settings.max_sessions;
    session.embryonic_timeout = EMBRYONIC_TIMEOUT;
    session.established_timeout = settings.idle_timeout.as_secs().try_into().unwrap_or(i32::MAX as u32);

    session.primary = match settings.affinity {
        Affinity::Address => types::session_kind::SESSION_ADDRESS,
        Affinity::Tunnel => types::session_kind::SESSION_SA,
    };
    session.sweeps = (settings.policy == Policy::LeastSessions).into();

    let config = &mut rodata.lb_config;
    config.policy = match settings.policy {
        Policy::RoundRobin => types::lb_policy::LB_ROUND_ROBIN,
        Policy::Maglev => types::lb_policy::LB_MAGLEV,
        Policy::LeastSessions => types::lb_policy::LB_LEAST_SESSIONS,
    };
    config.affinity = match settings.affinity {
        Affinity::Address => types::lb_affinity::LB_BY_ADDRESS,
        Affinity::Tunnel => types::lb_affinity::LB_BY_TUNNEL,
    };
    config.on_down = match settings.on_down {
        OnDown::Rehash => types::lb_on_down::LB_REHASH,
        OnDown::Hold => types::lb_on_down::LB_HOLD,
    };
    config.label_bits = settings.spi_shard;
    config.down_after = settings.down_after.as_secs().try_into().unwrap_or(i32::MAX as u32);
    config.explain = 0;
    config.other = match settings.other {
        Other::Drop => types::lb_other::LB_OTHER_DROP,
        Other::Pass => types::lb_other::LB_OTHER_PASS,
    };
    config.return_path = match settings.return_path {
        ReturnPath::Here => types::lb_return_path::LB_RETURN_HERE,
        ReturnPath::Direct => types::lb_return_path::LB_RETURN_DIRECT,
    };
    config.ingress_count = settings.ingress_count;
    config.start_rate = settings.start_rate;
    config.start_interval = 1_000_000_000 / u64::from(settings.start_rate.max(1));
    config.source_interval = config.start_interval * SOURCE_SHARE;
    config.vip_count = settings.vips.len() as u32;
    for (slot, vip) in config.vips.iter_mut().zip(&settings.vips) {
        *slot = types::address::from(*vip);
    }
    copy_text(&mut config.netns, settings.netns.as_deref().unwrap_or_default());
}

/// A random number from the system, by way of what seeds the hash maps of the standard library.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

fn load_error(source: libbpf_rs::Error) -> DatapathError {
    object::load_error(source, "Linux 6.12 takes them all, 6.1 takes --affinity address").into()
}

/// The name to pin a map of the object by; `None` for the programs' variables, which are not kept.
fn pin_name(map: &OsStr) -> Option<&'static str> {
    // libbpf names the sections of variables after the object.
    let rodata = map.as_encoded_bytes().ends_with(b".rodata");
    if rodata { Some(pins::CONFIG) } else { MAPS.into_iter().find(|name| map == *name) }
}

impl From<IpAddr> for types::address {
    fn from(address: IpAddr) -> Self {
        Self { words: address_words(address) }
    }
}

impl From<types::address> for IpAddr {
    fn from(address: types::address) -> Self {
        address_of_words(address.words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_map_of_the_object_is_pinned_and_removed() {
        let mut storage = MaybeUninit::uninit();
        let open = LbSkelBuilder::default().open(&mut storage).unwrap();
        let object = open.open_object().maps();
        let mut names: Vec<String> = object.map(|map| map.name().to_string_lossy().into_owned()).collect();
        names.retain(|name| !name.contains('.'));
        names.sort();
        assert_eq!(names, MAPS);
    }

    #[test]
    fn the_layout_is_the_first_thing_that_another_version_reads() {
        assert_eq!(std::mem::offset_of!(types::rodata, lb_layout), 0);
    }
}
