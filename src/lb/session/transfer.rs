//! Carrying sessions to another machine, or across a layout of maps that an upgrade in place cannot keep.
//!
//! A snapshot is lines of JSON: a header, then a line for each entry of the session table. Backends and interfaces go by
//! name and times as ages, as numbers and clocks differ between machines. An import reads and judges all lines before it
//! touches the table, and then puts entry by entry, each whole: whatever cuts it short leaves a table that works, and
//! the same import once more puts what is missing.
//!
//! The entries of one client belong together, so that a client is imported or kept as one. An established session that
//! is there already stays: it is newer. What is there and not established makes room, as a start that anyone may have
//! sent says less than a session that was proven.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::{self, BufRead, Read, Write};
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Entry, Key, Sessions, State, TO_IKE, now, tag};
use crate::kernel::program::{Program, RunOptions};
use crate::kernel::table::TableError;
use crate::kernel::value::{MapValue, text};
use crate::lb::backend;
use crate::lb::datapath::{Affinity, Datapath, DatapathError, Maps};
use crate::lb::interfaces;
use crate::lb::skeleton::types;

crate::map_values! { types::lb_import }

/// The format that this build writes and understands. Raised when a reader of the former one would go wrong.
pub const FORMAT: u64 = 1;

/// Bytes of the longest line that can be one of ours, several times over.
const LINE_MAX: u64 = 4096;

/// The line of a snapshot's first entry: the header comes before.
const FIRST_LINE: usize = 2;

/// What stands for an interface that no client was seen on.
const NO_INGRESS: u8 = types::lb_limits::LB_INGRESS_UNKNOWN.0 as u8;

/// What is wrong with a line.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Fault {
    #[error("it is longer than {LINE_MAX} bytes")]
    Long,
    #[error("it is not UTF-8")]
    Text,
    #[error("{0}")]
    Json(String),
    #[error("it is no header of exported sessions: {0}")]
    Header(String),
    #[error("its format is {0}, and this build of lb reads format {FORMAT}")]
    Format(u64),
    #[error("{key} belongs to kind {kind}, and it has none")]
    Missing { kind: &'static str, key: &'static str },
    #[error("{key} does not belong to kind {kind}")]
    Superfluous { kind: &'static str, key: &'static str },
    #[error("an IKE SA has an initiator_spi other than 0")]
    NoSpi,
    #[error("kind {kind} does not occur with affinity address")]
    Kind { kind: &'static str },
    #[error("it has the same key as line {0}")]
    Twice(usize),
    #[error("there is no backend {name}; there is {known}")]
    Backend { name: String, known: String },
    #[error(
        "the table has no room for it: its bucket is full of sessions that stay; attach with a greater --max-sessions"
    )]
    NoRoom,
}

/// Why no sessions were exported or imported.
#[derive(Debug, Error)]
pub enum TransferError {
    #[error("line {line}: {fault}; nothing is imported")]
    Line { line: usize, fault: Fault },
    #[error("{0}; nothing is imported")]
    Read(io::Error),
    #[error("there is not even a header; nothing is imported")]
    Empty,
    #[error(
        "the header speaks of {told} entries, and {found} follow: the end is missing, or lines were changed; nothing is imported"
    )]
    Count { told: u64, found: usize },
    #[error(
        "they are sessions of --affinity {found}, and this instance has --affinity {wanted}; nothing is imported"
    )]
    Affinity { found: Affinity, wanted: Affinity },
    #[error(
        "they have {new} established sessions that are not here, and {here} are: more than --max-sessions {max}; nothing is imported"
    )]
    Room { new: usize, here: u64, max: u32 },
    #[error("cannot write what is exported: {0}")]
    Write(io::Error),
    #[error(
        "cannot run the program that puts sessions into the table: {0}; what it has put is taken out again"
    )]
    Run(io::Error),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Datapath(#[from] DatapathError),
}

fn at(line: usize) -> impl Fn(Fault) -> TransferError {
    move |fault| TransferError::Line { line, fault }
}

/// Entries of a session table, away from any table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    affinity: Affinity,
    /// In the order of their lines. The indices of backends and interfaces are those of the names below.
    entries: Vec<Entry>,
    backends: Vec<String>,
    interfaces: Vec<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Header {
    lb_sessions: u64,
    affinity: Affinity,
    /// How many lines follow, so that a file whose end is missing is found out. May be left out of what was put together
    /// by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    entries: Option<u64>,
}

/// The version alone, to be read before anything that depends on it.
#[derive(Deserialize)]
struct Version {
    lb_sessions: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Address,
    Sa,
    Endpoint,
    #[serde(rename = "ike-endpoint")]
    IkeEndpoint,
    Esp,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Sa => "sa",
            Self::Endpoint => "endpoint",
            Self::IkeEndpoint => "ike-endpoint",
            Self::Esp => "esp",
        }
    }
}

/// An SPI as `0x` and its digits, which JSON's numbers might not keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
struct Spi<const DIGITS: usize>(u64);

impl<const DIGITS: usize> From<Spi<DIGITS>> for String {
    fn from(spi: Spi<DIGITS>) -> Self {
        format!("0x{:0DIGITS$x}", spi.0)
    }
}

impl<const DIGITS: usize> TryFrom<String> for Spi<DIGITS> {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let digits = text.strip_prefix("0x").filter(|digits| {
            (1..=DIGITS).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
        });
        let number = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        number
            .map(Self)
            .ok_or_else(|| format!("{text:?} is no SPI: 0x and up to {DIGITS} hexadecimal digits"))
    }
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Line {
    kind: Kind,
    client: IpAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    /// Of ESP or AH.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spi: Option<Spi<8>>,
    backend: String,
    state: State,
    initiator_spi: Spi<16>,
    responder_spi: Spi<16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ingress: Option<String>,
    age_s: u32,
    idle_s: u32,
    packets: u64,
    bytes: u64,
}

impl Line {
    fn of(entry: &Entry, snapshot: &Snapshot) -> Self {
        let (kind, port, spi) = match entry.key {
            Key::Address(_) => (Kind::Address, None, None),
            Key::Sa(_) => (Kind::Sa, Some(entry.port), None),
            Key::Endpoint(_, port) => (Kind::Endpoint, Some(port), None),
            Key::IkeEndpoint(_, port) => (Kind::IkeEndpoint, Some(port), None),
            Key::Esp(_, spi) => (Kind::Esp, None, Some(Spi(spi.into()))),
        };
        Self {
            kind,
            client: entry.client,
            port,
            spi,
            backend: snapshot.backends[entry.backend as usize].clone(),
            state: entry.state,
            initiator_spi: Spi(entry.initiator_spi),
            responder_spi: Spi(entry.responder_spi),
            ingress: snapshot.interfaces.get(usize::from(entry.ingress)).cloned(),
            age_s: seconds(entry.age),
            idle_s: seconds(entry.idle),
            packets: entry.packets,
            bytes: entry.bytes,
        }
    }

    /// What the entry is found by, where the line has all that belongs to its kind and nothing else.
    fn key(&self, affinity: Affinity) -> Result<Key, Fault> {
        let kind = self.kind.name();
        let client = self.client.to_canonical();
        if self.port.is_some() && matches!(self.kind, Kind::Address | Kind::Esp) {
            return Err(Fault::Superfluous { kind, key: "port" });
        }
        if self.spi.is_some() && self.kind != Kind::Esp {
            return Err(Fault::Superfluous { kind, key: "spi" });
        }
        if affinity == Affinity::Address
            && matches!(self.kind, Kind::Endpoint | Kind::IkeEndpoint | Kind::Esp)
        {
            return Err(Fault::Kind { kind });
        }
        let port = || self.port.ok_or(Fault::Missing { kind, key: "port" });
        match self.kind {
            Kind::Address => Ok(Key::Address(client)),
            Kind::Sa if self.initiator_spi.0 == 0 => Err(Fault::NoSpi),
            Kind::Sa => port().map(|_| Key::Sa(self.initiator_spi.0)),
            Kind::Endpoint => Ok(Key::Endpoint(client, port()?)),
            Kind::IkeEndpoint => Ok(Key::IkeEndpoint(client, port()?)),
            Kind::Esp => {
                let spi = self.spi.ok_or(Fault::Missing { kind, key: "spi" })?;
                Ok(Key::Esp(client, spi.0 as u32))
            }
        }
    }
}

fn seconds(duration: Duration) -> u32 {
    duration.as_secs().try_into().unwrap_or(u32::MAX)
}

impl Snapshot {
    /// Copies what is in the table of an instance.
    ///
    /// # Errors
    ///
    /// What the kernel says about reading the maps.
    pub fn take(maps: &Maps) -> Result<Self, TransferError> {
        let (backends, interfaces) = (backend_names(maps)?, ingress_names(maps)?);
        let mut snapshot = Self {
            affinity: Affinity::of(&maps.config()?),
            entries: Sessions::open(maps)?.entries().collect(),
            backends: Vec::new(),
            interfaces: Vec::new(),
        };
        // A backend may have been removed since.
        snapshot.entries.retain(|entry| backends.contains_key(&entry.backend));
        snapshot.entries.sort_by_key(|entry| (entry.client, entry.key));
        snapshot.name(&backends, &interfaces);
        Ok(snapshot)
    }

    /// Turns the indices of an instance into those of the names that occur.
    fn name(&mut self, backends: &HashMap<u32, String>, interfaces: &HashMap<u8, String>) {
        let used: BTreeSet<u32> = self.entries.iter().map(|entry| entry.backend).collect();
        let seen: BTreeSet<u8> = self.entries.iter().map(|entry| entry.ingress).collect();
        let seen: Vec<u8> = seen.into_iter().filter(|index| interfaces.contains_key(index)).collect();
        let used: Vec<u32> = used.into_iter().collect();
        self.backends = used.iter().map(|index| backends[index].clone()).collect();
        self.interfaces = seen.iter().map(|index| interfaces[index].clone()).collect();
        for entry in &mut self.entries {
            entry.backend = used.partition_point(|&index| index < entry.backend) as u32;
            entry.ingress = seen.binary_search(&entry.ingress).map_or(NO_INGRESS, |position| position as u8);
        }
    }

    /// Writes the lines.
    ///
    /// # Errors
    ///
    /// What the system says about writing.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let header =
            Header { lb_sessions: FORMAT, affinity: self.affinity, entries: Some(self.entries.len() as u64) };
        serde_json::to_writer(&mut *out, &header)?;
        for entry in &self.entries {
            out.write_all(b"\n")?;
            serde_json::to_writer(&mut *out, &Line::of(entry, self))?;
        }
        out.write_all(b"\n")?;
        out.flush()
    }

    /// Reads what [`Snapshot::write`] has written, all of it.
    ///
    /// # Errors
    ///
    /// Where it cannot be read, and at the first line that is wrong by itself.
    pub fn read(mut input: impl BufRead) -> Result<Self, TransferError> {
        let header = next_line(&mut input, 1)?.ok_or(TransferError::Empty)?;
        let header = read_header(&header).map_err(at(1))?;
        let mut snapshot = Self {
            affinity: header.affinity,
            entries: Vec::new(),
            backends: Vec::new(),
            interfaces: Vec::new(),
        };
        let (mut backends, mut interfaces) = (Names::default(), Names::default());
        let mut lines: HashMap<Key, usize> = HashMap::new();
        for number in FIRST_LINE.. {
            let Some(line) = next_line(&mut input, number)? else { break };
            let entry =
                read_entry(&line, header.affinity, &mut backends, &mut interfaces).map_err(at(number))?;
            if let Some(first) = lines.insert(entry.key, number) {
                return Err(at(number)(Fault::Twice(first)));
            }
            snapshot.entries.push(entry);
        }
        if let Some(told) = header.entries.filter(|&told| told != snapshot.entries.len() as u64) {
            return Err(TransferError::Count { told, found: snapshot.entries.len() });
        }
        (snapshot.backends, snapshot.interfaces) = (backends.names, interfaces.names);
        Ok(snapshot)
    }

    /// Turns the indices of the names into those of an instance.
    fn find(&mut self, maps: &Maps) -> Result<(), TransferError> {
        let found = Affinity::of(&maps.config()?);
        if found != self.affinity {
            return Err(TransferError::Affinity { found: self.affinity, wanted: found });
        }
        let (backends, interfaces) = (backend_names(maps)?, ingress_names(maps)?);
        let index_of =
            |name: &String| backends.iter().find(|(_, known)| *known == name).map(|(index, _)| *index);
        let there: Vec<Option<u32>> = self.backends.iter().map(index_of).collect();
        let seen: Vec<u8> = self
            .interfaces
            .iter()
            .map(|name| {
                interfaces.iter().find(|(_, known)| *known == name).map_or(NO_INGRESS, |(index, _)| *index)
            })
            .collect();
        for (line, entry) in (FIRST_LINE..).zip(&mut self.entries) {
            entry.backend = there[entry.backend as usize].ok_or_else(|| {
                let mut known: Vec<&str> = backends.values().map(String::as_str).collect();
                known.sort_unstable();
                let name = self.backends[entry.backend as usize].clone();
                at(line)(Fault::Backend { name, known: known.join(", ") })
            })?;
            entry.ingress = seen.get(usize::from(entry.ingress)).copied().unwrap_or(NO_INGRESS);
        }
        Ok(())
    }

    /// Puts the entries into the table of an instance, whose maps `datapath` is loaded on. `overwrite` makes those here
    /// give way that are established.
    ///
    /// # Errors
    ///
    /// Where an entry names what this instance has not, where there are more sessions than it may have, or where an entry
    /// finds no place. Then the table is as it was, but for entries of starts and of learned ways that had to make room
    /// as they have to for anyone.
    pub fn import(mut self, datapath: &Datapath, overwrite: bool) -> Result<Imported, TransferError> {
        let maps = &datapath.maps;
        self.find(maps)?;
        let sessions = Sessions::open(maps)?;
        // What has expired has no say, and room is counted by what there is.
        sessions.free_where(|entry| sessions.has_expired(entry));
        let plan = Plan::of(&self, &sessions, overwrite);
        let (new, here) = (plan.new_sessions, sessions.established());
        let max = sessions.config.established_max;
        if new > 0 && here as i64 + new as i64 > i64::from(max) {
            return Err(TransferError::Room { new, here, max });
        }
        plan.carry_out(&self, &sessions, &datapath.import)?;
        Ok(plan.imported)
    }
}

/// What came of an import, in sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// They are here now as they were there.
    pub imported: usize,
    /// Their client has one here, which stays.
    pub kept: usize,
    /// They had been silent for longer than sessions may be here.
    pub expired: usize,
}

/// Which entries belong together: those of one IKE SA, or, where none is known, of one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Group {
    Tunnel(u64),
    Other(Key),
}

fn group(entry: &Entry, affinity: Affinity) -> Group {
    match affinity {
        Affinity::Address => Group::Other(Key::Address(entry.client)),
        Affinity::Tunnel if entry.initiator_spi != 0 => Group::Tunnel(entry.initiator_spi),
        Affinity::Tunnel => Group::Other(entry.key),
    }
}

/// What is to become of an entry of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    /// Nothing has its key.
    Put,
    /// It takes the place of this one.
    Replace(Entry),
    /// One that is here stays.
    Keep,
    Expired,
}

struct Plan {
    /// Of each entry, in the order of the snapshot's.
    fates: Vec<Fate>,
    affinity: Affinity,
    /// By how many the established sessions will grow.
    new_sessions: usize,
    imported: Imported,
}

impl Plan {
    fn of(snapshot: &Snapshot, sessions: &Sessions, overwrite: bool) -> Self {
        let affinity = snapshot.affinity;
        let positions: HashMap<Key, usize> =
            snapshot.entries.iter().enumerate().map(|(position, entry)| (entry.key, position)).collect();
        let mut fates = vec![Fate::Put; snapshot.entries.len()];
        let mut stay: HashSet<Group> = HashSet::new();
        let mut replaced_sessions = 0;
        for here in sessions.entries() {
            let Some(&position) = positions.get(&here.key) else { continue };
            let entry = &snapshot.entries[position];
            let same = here.backend == entry.backend;
            let says_more =
                entry.state > here.state || (same && here.initiator_spi == 0 && entry.initiator_spi != 0);
            if entry.state >= here.state && (overwrite || says_more) {
                replaced_sessions += usize::from(is_established_session(&here, affinity));
                fates[position] = Fate::Replace(here);
                continue;
            }
            fates[position] = Fate::Keep;
            // An address may have many tunnels behind it, and its entry says nothing of them.
            if !same && (affinity == Affinity::Address || entry.is_sa()) {
                stay.insert(group(entry, affinity));
            }
        }
        let served: HashSet<(IpAddr, u32)> = (snapshot.entries.iter())
            .filter(|entry| entry.key.has_port())
            .map(|entry| (entry.client, entry.backend))
            .collect();
        let mut fortunes: HashMap<Group, Fortune> = HashMap::new();
        let mut new_sessions = 0;
        for (entry, fate) in snapshot.entries.iter().zip(&mut fates) {
            let group = group(entry, affinity);
            if sessions.has_expired(entry) {
                *fate = Fate::Expired;
            } else if stay.contains(&group) {
                *fate = Fate::Keep;
            }
            let put = matches!(fate, Fate::Put | Fate::Replace(_));
            new_sessions += usize::from(put && is_established_session(entry, affinity));
            let fortune = fortunes.entry(group).or_default();
            fortune.is_session |= is_session(entry, &served);
            fortune.is_put |= put;
            fortune.is_kept |= *fate == Fate::Keep;
        }
        let mut imported = Imported::default();
        for fortune in fortunes.values().filter(|fortune| fortune.is_session) {
            if fortune.is_put {
                imported.imported += 1;
            } else if fortune.is_kept {
                imported.kept += 1;
            } else {
                imported.expired += 1;
            }
        }
        Self { fates, affinity, new_sessions: new_sessions.saturating_sub(replaced_sessions), imported }
    }

    fn carry_out(
        &self,
        snapshot: &Snapshot,
        sessions: &Sessions,
        program: &Program,
    ) -> Result<(), TransferError> {
        let mut order: Vec<usize> = (0..self.fates.len())
            .filter(|&position| matches!(self.fates[position], Fate::Put | Fate::Replace(_)))
            .collect();
        // An established entry may take the place of another, so they come first.
        order.sort_by_key(|&position| std::cmp::Reverse(snapshot.entries[position].state));
        for (done, &position) in order.iter().enumerate() {
            let replaces = matches!(self.fates[position], Fate::Replace(_));
            let put = put(program, &snapshot.entries[position], replaces);
            let failure = match put {
                Ok(true) => continue,
                Ok(false) => at(FIRST_LINE + position)(Fault::NoRoom),
                Err(error) => TransferError::Run(error),
            };
            self.undo(snapshot, sessions, program, &order[..done]);
            return Err(failure);
        }
        self.end_former(snapshot, sessions);
        Ok(())
    }

    /// Takes out what was put, and puts back what it replaced. What cannot be put back has lost its place to another
    /// client by now.
    fn undo(&self, snapshot: &Snapshot, sessions: &Sessions, program: &Program, done: &[usize]) {
        let mut added: HashMap<Key, u32> = HashMap::new();
        for &position in done {
            let entry = &snapshot.entries[position];
            match &self.fates[position] {
                Fate::Replace(former) => {
                    let _ = put(program, former, true);
                }
                _ => {
                    added.insert(entry.key, entry.backend);
                }
            }
        }
        sessions.free_where(|entry| added.get(&entry.key) == Some(&entry.backend));
    }

    /// Ends what still leads to the former backends of clients that have been moved.
    fn end_former(&self, snapshot: &Snapshot, sessions: &Sessions) {
        let moved: HashMap<Group, u32> = (self.fates.iter().zip(&snapshot.entries))
            .filter(|(fate, entry)| matches!(fate, Fate::Replace(former) if former.backend != entry.backend))
            .map(|(_, entry)| (group(entry, self.affinity), entry.backend))
            .collect();
        if moved.is_empty() {
            return;
        }
        let imported: HashSet<Key> = snapshot.entries.iter().map(|entry| entry.key).collect();
        sessions.free_where(|entry| {
            let moved = moved.get(&group(entry, self.affinity));
            moved.is_some_and(|&backend| backend != entry.backend) && !imported.contains(&entry.key)
        });
    }
}

/// What becomes of the entries of a group.
#[derive(Clone, Copy, Debug, Default)]
struct Fortune {
    is_session: bool,
    is_put: bool,
    is_kept: bool,
}

/// Whether an entry is a session as [`Sessions::iter`] has them, where nothing else of its client is one. `served` has the
/// clients that are known by an SA or an endpoint, each with its backend.
fn is_session(entry: &Entry, served: &HashSet<(IpAddr, u32)>) -> bool {
    match entry.key {
        _ if entry.state == State::Learned => false,
        Key::Esp(..) => false,
        Key::Address(_) if entry.initiator_spi == 0 && entry.state == State::Established => {
            !served.contains(&(entry.client, entry.backend))
        }
        _ => true,
    }
}

/// Whether an entry is one of those that `--max-sessions` is about.
fn is_established_session(entry: &Entry, affinity: Affinity) -> bool {
    entry.state == State::Established
        && match affinity {
            Affinity::Address => matches!(entry.key, Key::Address(_)),
            Affinity::Tunnel => entry.is_sa(),
        }
}

/// Puts an entry into the table. False where it finds no place.
fn put(program: &Program, entry: &Entry, replaces: bool) -> io::Result<bool> {
    let run = program.run(to_kernel(entry, replaces).as_bytes(), RunOptions::default())?;
    match types::lb_import_result(run.action) {
        types::lb_import_result::LB_IMPORT_DONE => Ok(true),
        types::lb_import_result::LB_IMPORT_NO_ROOM => Ok(false),
        _ => Err(io::Error::other("it is of another build of lb")),
    }
}

fn to_kernel(entry: &Entry, replaces: bool) -> types::lb_import {
    let mut given = types::lb_import::default();
    let client = types::address::from(entry.client);
    let now = now();
    given.entry.key.kind = entry.key.kind();
    match entry.key {
        Key::Sa(spi) => given.entry.key.address.words[0] = spi.to_be(),
        Key::Endpoint(_, port) => {
            given.entry.key.address = client;
            given.entry.key.detail = port.into();
        }
        Key::IkeEndpoint(_, port) => {
            given.entry.key.address = client;
            given.entry.key.detail = u32::from(port) | TO_IKE;
        }
        Key::Esp(_, spi) => {
            given.entry.key.address = client;
            given.entry.key.detail = spi;
        }
        Key::Address(_) => given.entry.key.address = client,
    }
    given.entry.meta = types::session_meta {
        // What was last used before this machine's clock began is so by the difference, all the same.
        last_seen: now.wrapping_sub(seconds(entry.idle)),
        backend: entry.backend as u16,
        ingress: entry.ingress,
        tag: tag(entry.state.number(), entry.key.kind()),
    };
    given.entry.client = client;
    given.entry.initiator_spi = entry.initiator_spi.to_be();
    given.entry.port = entry.port.into();
    given.entry.replace = replaces.into();
    given.responder_spi = entry.responder_spi.to_be();
    given.packets = entry.packets;
    given.bytes = entry.bytes;
    given.created = now.wrapping_sub(seconds(entry.age).min(i32::MAX as u32));
    given
}

/// The names of an instance's backends by their index.
fn backend_names(maps: &Maps) -> Result<HashMap<u32, String>, TableError> {
    Ok(backend::list(maps)?.into_iter().map(|backend| (backend.index, backend.name)).collect())
}

/// The names of an instance's client-side interfaces by their index.
fn ingress_names(maps: &Maps) -> Result<HashMap<u8, String>, TableError> {
    let ingress = |entry: &types::lb_interface| entry.role == types::lb_role::LB_INGRESS;
    let found = interfaces::list(maps)?.into_iter().filter(ingress);
    Ok(found.filter_map(|entry| Some((entry.index.try_into().ok()?, text(&entry.name)))).collect())
}

/// Names in the order of their first use.
#[derive(Default)]
struct Names {
    names: Vec<String>,
    positions: HashMap<String, usize>,
}

impl Names {
    fn position(&mut self, name: String) -> usize {
        *self.positions.entry(name).or_insert_with_key(|name| {
            self.names.push(name.clone());
            self.names.len() - 1
        })
    }
}

/// Reads a line without its end, if there is one more.
fn next_line(input: &mut impl BufRead, number: usize) -> Result<Option<Vec<u8>>, TransferError> {
    let mut line = Vec::new();
    input.by_ref().take(LINE_MAX).read_until(b'\n', &mut line).map_err(TransferError::Read)?;
    match line.last() {
        None => return Ok(None),
        Some(b'\n') => {
            line.pop();
        }
        Some(_) if line.len() as u64 == LINE_MAX => return Err(at(number)(Fault::Long)),
        Some(_) => {}
    }
    Ok(Some(line))
}

fn parse<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T, Fault> {
    let text = std::str::from_utf8(line).map_err(|_| Fault::Text)?;
    // The parser knows of one line alone.
    serde_json::from_str(text)
        .map_err(|error| Fault::Json(error.to_string().replace(" at line 1 column ", " at byte ")))
}

fn read_header(line: &[u8]) -> Result<Header, Fault> {
    let header = |fault| match fault {
        Fault::Json(problem) => Fault::Header(problem),
        other => other,
    };
    let version: Version = parse(line).map_err(header)?;
    if version.lb_sessions != FORMAT {
        return Err(Fault::Format(version.lb_sessions));
    }
    parse(line).map_err(header)
}

fn read_entry(
    line: &[u8],
    affinity: Affinity,
    backends: &mut Names,
    interfaces: &mut Names,
) -> Result<Entry, Fault> {
    let line: Line = parse(line)?;
    let key = line.key(affinity)?;
    Ok(Entry {
        key,
        client: line.client.to_canonical(),
        port: line.port.unwrap_or(0),
        backend: backends.position(line.backend) as u32,
        ingress: line.ingress.map_or(NO_INGRESS, |name| {
            // No instance has more of them than this.
            interfaces.position(name).try_into().unwrap_or(NO_INGRESS)
        }),
        state: line.state,
        initiator_spi: line.initiator_spi.0,
        responder_spi: line.responder_spi.0,
        age: Duration::from_secs(line.age_s.into()),
        idle: Duration::from_secs(line.idle_s.into()),
        packets: line.packets,
        bytes: line.bytes,
    })
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    const HEADER: &str = r#"{"lb_sessions":1,"affinity":"tunnel"}"#;

    /// An entry's line, with some of its values replaced; `null` takes one away.
    fn line(changes: serde_json::Value) -> String {
        let mut line = serde_json::json!({
            "kind": "sa", "client": "192.0.2.7", "port": 4500, "backend": "eth2", "state": "established",
            "initiator_spi": "0x1122334455667788", "responder_spi": "0x01", "ingress": "eth1",
            "age_s": 7, "idle_s": 3, "packets": 5, "bytes": 1086,
        });
        for (key, value) in changes.as_object().unwrap() {
            let object = line.as_object_mut().unwrap();
            if value.is_null() {
                object.remove(key)
            } else {
                object.insert(key.clone(), value.clone())
            };
        }
        line.to_string()
    }

    fn read(lines: &[&str]) -> Result<Snapshot, TransferError> {
        Snapshot::read((lines.join("\n") + "\n").as_bytes())
    }

    fn error(lines: &[&str]) -> String {
        read(lines).unwrap_err().to_string()
    }

    fn entries() -> impl Strategy<Value = (Affinity, Vec<Entry>)> {
        let client = prop_oneof![
            any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())),
            any::<u128>().prop_map(|bits| IpAddr::V6(bits.into()).to_canonical()),
        ];
        let state = prop_oneof![Just(State::Embryonic), Just(State::Learned), Just(State::Established)];
        let numbers = any::<(u8, u16, u32, u64, u64, u32, u32, u64, u64)>();
        let entry = (client, state, 0..3u32, prop_oneof![Just(NO_INGRESS), 0..3u8], numbers);
        (any::<bool>(), prop::collection::vec(entry, 0..40)).prop_map(|(tunnel, entries)| {
            let affinity = if tunnel { Affinity::Tunnel } else { Affinity::Address };
            let entries = entries.into_iter().map(|(client, state, backend, ingress, numbers)| {
                let (kind, port, spi, initiator_spi, responder_spi, age, idle, packets, bytes) = numbers;
                let key = match kind % if tunnel { 5 } else { 2 } {
                    0 => Key::Address(client),
                    1 => Key::Sa(initiator_spi.max(1)),
                    2 => Key::Endpoint(client, port),
                    3 => Key::IkeEndpoint(client, port),
                    _ => Key::Esp(client, spi),
                };
                Entry {
                    key,
                    client,
                    port: if key.has_port() { port } else { 0 },
                    backend,
                    ingress,
                    state,
                    initiator_spi: if let Key::Sa(spi) = key { spi } else { initiator_spi },
                    responder_spi,
                    age: Duration::from_secs(age.into()),
                    idle: Duration::from_secs(idle.into()),
                    packets,
                    bytes,
                }
            });
            let mut entries: Vec<Entry> = entries.collect();
            entries.sort_by_key(|entry| (entry.client, entry.key));
            entries.dedup_by_key(|entry| entry.key);
            (affinity, entries)
        })
    }

    proptest! {
        #[test]
        fn what_is_written_can_be_read((affinity, entries) in entries()) {
            let backends = (0..3).map(|index| (index, format!("TEIP {index}"))).collect();
            let interfaces = (0..3).map(|index| (index, format!("eth\"{index}"))).collect();
            let mut written =
                Snapshot { affinity, entries: entries.clone(), backends: Vec::new(), interfaces: Vec::new() };
            written.name(&backends, &interfaces);
            let mut lines = Vec::new();
            written.write(&mut lines).unwrap();
            prop_assert_eq!(lines.iter().filter(|&&byte| byte == b'\n').count(), entries.len() + 1);

            let read = Snapshot::read(&lines[..]).unwrap();
            prop_assert_eq!(read.affinity, affinity);
            prop_assert_eq!(read.entries.len(), entries.len());
            for (read_entry, entry) in read.entries.iter().zip(entries) {
                prop_assert_eq!(&read.backends[read_entry.backend as usize], &backends[&entry.backend]);
                let interface = read.interfaces.get(usize::from(read_entry.ingress));
                prop_assert_eq!(interface, interfaces.get(&entry.ingress));
                let (backend, ingress) = (entry.backend, entry.ingress);
                prop_assert_eq!(Entry { backend, ingress, ..read_entry.clone() }, entry);
            }
        }

        #[test]
        fn no_line_upsets_the_reader(noise in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..300) {
            let whole = format!("{HEADER}\n{}\n", line(serde_json::json!({})));
            let cut = cut.min(whole.len());
            let _ = Snapshot::read(&whole.as_bytes()[..cut]);
            let _ = Snapshot::read(&[whole.as_bytes(), &noise].concat()[..]);
            let _ = Snapshot::read(&[&whole.as_bytes()[..cut], &noise].concat()[..]);
        }
    }

    #[test]
    fn the_first_line_that_is_wrong_is_named() {
        let good = line(serde_json::json!({}));
        assert_eq!(read(&[HEADER, &good]).unwrap().entries.len(), 1);
        for (changes, words) in [
            (serde_json::json!({"client": "192.0.2"}), "invalid IP address"),
            (serde_json::json!({"client": null}), "client"),
            (serde_json::json!({"kind": "tunnel"}), "unknown variant `tunnel`"),
            (serde_json::json!({"state": "busy"}), "unknown variant `busy`"),
            (serde_json::json!({"port": 65536}), "65536"),
            (serde_json::json!({"port": null}), "port belongs to kind sa"),
            (serde_json::json!({"spi": "0x1"}), "spi does not belong to kind sa"),
            (serde_json::json!({"kind": "esp", "spi": "0x1"}), "port does not belong to kind esp"),
            (serde_json::json!({"kind": "esp", "port": null}), "spi belongs to kind esp"),
            (serde_json::json!({"kind": "endpoint", "port": null}), "port belongs to kind endpoint"),
            (serde_json::json!({"kind": "address"}), "port does not belong to kind address"),
            (serde_json::json!({"kind": "esp", "port": null, "spi": "0x123456789"}), "is no SPI"),
            (serde_json::json!({"initiator_spi": "0x0"}), "an IKE SA has an initiator_spi"),
            (serde_json::json!({"initiator_spi": "1122334455667788"}), "is no SPI"),
            (serde_json::json!({"initiator_spi": "0x+1"}), "is no SPI"),
            (serde_json::json!({"initiator_spi": 17}), "invalid type"),
            (serde_json::json!({"packets": -1}), "invalid value"),
            (serde_json::json!({"packets": "5"}), "invalid type"),
            (serde_json::json!({"age_s": 4_294_967_296u64}), "4294967296"),
            (serde_json::json!({"colour": "blue"}), "unknown field `colour`"),
            (serde_json::json!({"backend": "e".repeat(5000)}), "longer than 4096 bytes"),
        ] {
            let other = line(serde_json::json!({"initiator_spi": "0x99"}));
            let error = error(&[HEADER, &other, &line(changes), &good]);
            assert!(error.starts_with("line 3: "), "{error}");
            assert!(error.contains(words) && error.ends_with("; nothing is imported"), "{words}: {error}");
        }
        assert_eq!(
            error(&[HEADER, &good, "x", &good]),
            "line 3: expected value at byte 1; nothing is imported"
        );
        assert!(error(&[HEADER, &good, ""]).starts_with("line 3: "));
        assert!(error(&[HEADER, &good[..good.len() - 1]]).starts_with("line 2: "));
        let twice = error(&[HEADER, &good, &good]);
        assert_eq!(twice, "line 3: it has the same key as line 2; nothing is imported");
        let not_text = [HEADER.as_bytes(), b"\n\xff\xfe\n"].concat();
        let not_text = Snapshot::read(&not_text[..]).unwrap_err().to_string();
        assert_eq!(not_text, "line 2: it is not UTF-8; nothing is imported");
        let header = r#"{"lb_sessions":1,"affinity":"address"}"#;
        let endpoint = line(serde_json::json!({"kind": "endpoint"}));
        assert!(error(&[header, &endpoint]).contains("kind endpoint does not occur with affinity address"));
    }

    #[test]
    fn a_header_comes_first() {
        assert!(matches!(Snapshot::read(&b""[..]), Err(TransferError::Empty)));
        let good = line(serde_json::json!({}));
        for (header, words) in [
            ("", "it is no header"),
            (&good[..], "it is no header"),
            ("[]", "it is no header"),
            (r#"{"affinity":"tunnel"}"#, "it is no header of exported sessions: missing field `lb_sessions`"),
            (r#"{"lb_sessions":2,"what":"ever"}"#, "its format is 2, and this build of lb reads format 1"),
            (r#"{"lb_sessions":1,"affinity":"prefix"}"#, "unknown variant `prefix`"),
            (r#"{"lb_sessions":1,"affinity":"tunnel","colour":"blue"}"#, "unknown field `colour`"),
        ] {
            let error = error(&[header, &good]);
            assert!(error.starts_with("line 1: ") && error.contains(words), "{words}: {error}");
        }
        let mut told = String::new();
        write!(told, r#"{{"lb_sessions":1,"affinity":"tunnel","entries":{}}}"#, 2).unwrap();
        assert!(error(&[&told, &good]).contains("speaks of 2 entries, and 1 follow"));
    }
}
