//! `lb explain`: what the balancer would do with a packet, and by which rule, without doing it.
//!
//! The answer is not a second opinion: it is the attached program's own code, run by `BPF_PROG_TEST_RUN`. That nothing
//! changes on the way is not left to care either:
//!
//! - The programs are loaded a second time, with `lb_config.explain` set, on maps of their own. These are filled with a
//!   copy of what the live ones hold. The second load has no reference to any live map, so nothing that it does can
//!   reach one.
//! - The live maps are opened for reading alone, and not mapped into memory. The kernel refuses to write through such a
//!   descriptor.
//! - Nothing is pinned or attached, and the copies end with this process. In their tables of ports every interface is
//!   the loopback interface, and a test run carries no redirect out: no frame leaves.
//!
//! While the copy is made, commands that change backends and schedules wait, by the lock of the pins' root; the datapath
//! goes on. So a session that changes in that moment is copied as it was before or after, whole in either case: a slot that is
//! just getting another key is looked at until it has it (`bpf/include/session.h` has the rules).
//!
//! The packets of a capture are explained in their order, on one copy: each finds what those before it have left there, as
//! the second fragment finds the first one, or a client's proof its start. They are taken as coming now, one after the
//! other, whenever they were captured: what is idle for too long now is not there.

pub mod capture;
pub mod frame;

use std::net::IpAddr;
use std::time::{Duration, SystemTime};
use std::{fs, io, thread};

use macaddr::MacAddr6;
use serde::{Serialize, Serializer};
use thiserror::Error;

use super::datapath::{BACKENDS_MAX, Datapath, DatapathError, LABEL_BITS_MAX, Maps, OnDown, Policy};
use super::interfaces::{self, SEVERAL};
use super::skeleton::types::{self, lb_reason, lb_verdict};
use super::stats::VERDICTS;
use crate::kernel::object::ObjectError;
use crate::kernel::pins::{Instance, PinError, Root};
use crate::kernel::program::{Program, RunOptions};
use crate::kernel::snapshot;
use crate::kernel::table::{Table, TableError};
use crate::kernel::value::text;
use frame::Packet;

/// Every interface of the copy. Each network namespace has it, under this number.
const LOOPBACK: u32 = 1;

/// The shortest and the longest frame that XDP gets in one piece: an Ethernet header; a page without the headroom and
/// without the kernel's own notes at its end, which drivers and test runs leave alike.
const FRAME_MIN: usize = 14;
const FRAME_MAX: usize = 3520;

/// What the copy needs beside the session table.
const OTHER_BYTES: u64 = 32 * 1024 * 1024;

/// How often a slot is looked at that changes hands, before it counts as free: as in the moment before.
const SLOT_TRIES: u32 = 1000;

/// After this time every token bucket is full again (`bpf/include/rate.h`).
const RATE_BURST: Duration = Duration::from_secs(1);

/// How many buckets of sessions are copied at once.
const BUCKETS: u32 = 512;

/// Where a slot's tag has its state.
const STATE_MASK: u8 = 0xf;

/// Why a packet cannot be explained.
#[derive(Debug, Error)]
pub enum ExplainError {
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(
        "explaining takes a copy of the session table, {needed} MiB, and {free} MiB of memory are free; attach with a smaller --max-sessions, or explain on a machine with more memory after `lb session export` and `import`"
    )]
    Memory { needed: u64, free: u64 },
    #[error("instance {name} has no interface {dev}; it has {known}")]
    Dev { name: String, dev: String, known: String },
    #[error("instance {name} has no backend {backend}; it has {known}")]
    Backend { name: String, backend: String, known: String },
    #[error(
        "{dev} is an {role} interface of instance {name}, and --side {side} says otherwise; leave one of them out"
    )]
    Side { name: String, dev: String, role: &'static str, side: Side },
    #[error("the kernel does not run the program on packet {number}: {source}")]
    Run { number: u64, source: io::Error },
    #[error(
        "the program said nothing of packet {number}, or what its output contradicts: {what}; this is a bug"
    )]
    Contradiction { number: u64, what: String },
}

/// Which side of the balancer a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    Client,
    Backend,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Backend => "backend",
        })
    }
}

/// A packet to be explained.
#[derive(Clone, Debug)]
pub struct Subject {
    pub number: u64,
    pub time: Option<SystemTime>,
    /// As much of the frame as there is.
    pub frame: Vec<u8>,
    /// How long the frame was.
    pub length: usize,
}

/// What would become of a packet; the rows of `lb explain`.
#[derive(Clone, Debug, Serialize)]
pub struct Explained {
    pub number: u64,
    /// When it was captured, as RFC 3339 has it.
    #[serde(serialize_with = "rfc3339")]
    pub time: Option<SystemTime>,
    pub packet: Packet,
    pub side: Side,
    /// The interface that it was taken to come in on.
    pub dev: Option<String>,
    /// A key of `lb stats --json`; `None` where the program cannot be run on the packet.
    pub verdict: Option<&'static str>,
    /// Where it goes; of a packet from the backend side, who sent it.
    pub backend: Option<String>,
    /// The interfaces that it leaves by.
    pub out: Vec<String>,
    /// The rule: `address`, `sa`, `endpoint`, `esp`, `label`, `fragment`, `policy`, `hash`, `rate`, `full` or `down`; `verdict`
    /// where the verdict says it all; `not_run`.
    pub reason: &'static str,
    /// The map that the rule looked into.
    pub table: Option<&'static str>,
    /// The rule in words.
    pub detail: String,
    /// What is to be known about this answer.
    pub note: Option<String>,
}

fn rfc3339<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.collect_str(&humantime::format_rfc3339_nanos(*time)),
        None => serializer.serialize_none(),
    }
}

/// Where packets are said to come from.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// `None`: as the packet itself looks.
    pub side: Option<Side>,
    /// An interface of the instance.
    pub dev: Option<String>,
}

/// The copy of an instance, on which packets are explained.
#[derive(Debug)]
pub struct Explainer {
    name: String,
    copy: Datapath,
    config: types::rodata,
    /// Of the live instance: in the copy, the loopback interface stands for whichever a packet comes in on.
    interfaces: Vec<types::lb_interface>,
    vips: Vec<IpAddr>,
    rates: Rates,
}

/// Starts are counted by the time of their capture, not by how fast they are explained.
#[derive(Debug, Default)]
struct Rates {
    /// Since when, by the packets' own time.
    since: Option<SystemTime>,
    /// Whether any token was taken.
    used: bool,
}

impl Explainer {
    /// Copies the state of an instance.
    ///
    /// # Errors
    ///
    /// Where there is not enough memory for that, or what the kernel says.
    pub fn new(root: &Root, instance: &Instance) -> Result<Self, ExplainError> {
        // Backends, schedules and configuration are of one moment, as no command changes them meanwhile.
        let lock = root.lock_existing()?;
        let live = Maps::open_to_read(instance)?;
        let config = live.config()?;
        check_memory(config.session_config.buckets)?;
        let copy = Datapath::load_explaining(&config).map_err(|error| no_memory(error, &config))?;
        copy_tables(&live, &copy.maps)?;
        let interfaces = interfaces::list(&live)?;
        drop(lock);
        copy_sessions(&live.sessions, &copy.maps.sessions)?;
        let vips = config.lb_config.vips.iter().take(config.lb_config.vip_count as usize);
        Ok(Self {
            name: instance.name.clone(),
            copy,
            interfaces,
            vips: vips.map(|vip| IpAddr::from(*vip)).collect(),
            rates: Rates::default(),
            config,
        })
    }

    /// What the balancer would do with a packet.
    ///
    /// # Errors
    ///
    /// Where `from` names what the instance does not have, or what the kernel says.
    pub fn explain(&mut self, subject: Subject, from: &Origin) -> Result<Explained, ExplainError> {
        let Subject { number, time, mut frame, length } = subject;
        let mut note = None;
        if frame.len() < length && length <= FRAME_MAX {
            note = Some(format!(
                "{} of its {length} bytes were captured, the rest counts as zeros",
                frame.len()
            ));
            frame.resize(length, 0);
        }
        let packet = Packet::read(&frame);
        let (side, interface) = self.place(&frame, &packet, from)?;
        let mut explained = Explained {
            number,
            time,
            side,
            dev: interface.map(|interface| text(&interface.name)),
            packet,
            verdict: None,
            backend: None,
            out: Vec::new(),
            reason: "not_run",
            table: None,
            detail: String::new(),
            note,
        };
        if frame.len() < FRAME_MIN {
            explained.detail = format!("too short to be a frame: {} bytes", frame.len());
            return Ok(explained);
        }
        if length > FRAME_MAX {
            explained.detail = format!(
                "too long: {length} bytes, and a program gets {FRAME_MAX} at most in one piece; a sender's segmentation offload makes such frames"
            );
            return Ok(explained);
        }
        self.fill_rates(time)?;
        self.enter_by(side, interface)?;
        let told = self.run(number, side, &frame)?;
        self.rates.used |= told.verdict == lb_verdict::LB_NEW || told.reason == lb_reason::LB_BECAUSE_RATE;
        self.describe(&mut explained, &told, &frame)?;
        Ok(explained)
    }

    /// The MAC of a backend, and the name of its interface.
    ///
    /// # Errors
    ///
    /// Where there is none of that name, or what the kernel says.
    pub fn backend(&self, name: &str) -> Result<(MacAddr6, String), ExplainError> {
        let backends = self.backends()?;
        let Some((_, entry)) = backends.iter().find(|(_, entry)| text(&entry.name) == name) else {
            let known: Vec<String> = backends.iter().map(|(_, entry)| text(&entry.name)).collect();
            return Err(ExplainError::Backend {
                name: self.name.clone(),
                backend: name.into(),
                known: known.join(", "),
            });
        };
        Ok((entry.station.mac.into(), self.port_name(types::lb_role::LB_EGRESS, entry.port)))
    }

    /// Which side a packet comes from that is made here, from an address and a MAC of nobody.
    ///
    /// # Errors
    ///
    /// Where `from` names what the instance does not have, or what the kernel says.
    pub fn side_of(&self, from: &Origin, source: Option<IpAddr>) -> Result<Side, ExplainError> {
        Ok(self.place(&[], &Packet { source, ..Packet::default() }, from)?.0)
    }

    fn backends(&self) -> Result<Vec<(u32, types::lb_backend)>, TableError> {
        let mut backends = Vec::new();
        for index in 0..self.copy.maps.runtime()?.backends {
            let entry = self.copy.maps.backends.get(&index)?.unwrap_or_default();
            if entry.station.state != types::lb_backend_state::LB_ABSENT {
                backends.push((index, entry));
            }
        }
        Ok(backends)
    }

    /// Which side a packet comes from, and by which interface if that is known.
    fn place(
        &self,
        frame: &[u8],
        packet: &Packet,
        from: &Origin,
    ) -> Result<(Side, Option<types::lb_interface>), ExplainError> {
        if let Some(dev) = &from.dev {
            let Some(interface) = self.interfaces.iter().find(|interface| text(&interface.name) == *dev)
            else {
                let known: Vec<String> = self.interfaces.iter().map(|i| text(&i.name)).collect();
                return Err(ExplainError::Dev {
                    name: self.name.clone(),
                    dev: dev.clone(),
                    known: known.join(", "),
                });
            };
            let is_egress = interface.role == types::lb_role::LB_EGRESS;
            let side = if is_egress { Side::Backend } else { Side::Client };
            if let Some(said) = from.side.filter(|said| *said != side) {
                let role = interfaces::role_name(interface.role);
                return Err(ExplainError::Side {
                    name: self.name.clone(),
                    dev: dev.clone(),
                    role,
                    side: said,
                });
            }
            return Ok((side, Some(*interface)));
        }
        let sender = self.owner(frame::source_mac(frame))?;
        let is_from_vip = || packet.source.is_some_and(|source| self.vips.contains(&source));
        let looks = if sender.is_some() || is_from_vip() { Side::Backend } else { Side::Client };
        let side = from.side.unwrap_or(looks);
        let of = |role, index: u32| {
            self.interfaces.iter().find(|i| i.role == role && u32::from(i.index) == index).copied()
        };
        Ok(match side {
            Side::Client => (side, of(types::lb_role::LB_INGRESS, 0)),
            Side::Backend => (side, sender.and_then(|(_, entry)| of(types::lb_role::LB_EGRESS, entry.port))),
        })
    }

    /// The backend that has a MAC.
    fn owner(&self, mac: MacAddr6) -> Result<Option<(u32, types::lb_backend)>, TableError> {
        let mut key = [0; 8];
        key[..6].copy_from_slice(mac.as_bytes());
        let Some(index) = self.copy.maps.backend_macs.get(&u64::from_ne_bytes(key))? else { return Ok(None) };
        Ok(self.copy.maps.backends.get(&index)?.map(|entry| (index, entry)))
    }

    /// Makes the loopback interface the one that the next packet comes in on.
    fn enter_by(&self, side: Side, interface: Option<types::lb_interface>) -> Result<(), TableError> {
        let unknown = types::lb_interface {
            role: if side == Side::Client { types::lb_role::LB_INGRESS } else { types::lb_role::LB_EGRESS },
            backend: SEVERAL,
            ..Default::default()
        };
        let entry = types::lb_interface { ifindex: LOOPBACK, ..interface.unwrap_or(unknown) };
        interfaces::insert(&self.copy.maps, entry)
    }

    /// Fills the token buckets where the packets' own time has moved on far enough.
    fn fill_rates(&mut self, now: Option<SystemTime>) -> Result<(), TableError> {
        let Some(now) = now else { return Ok(()) };
        let since = *self.rates.since.get_or_insert(now);
        if now.duration_since(since).is_ok_and(|passed| passed > RATE_BURST) {
            self.rates.since = Some(now);
            if std::mem::take(&mut self.rates.used) {
                let maps = &self.copy.maps;
                maps.source_rates.set_from(0, &vec![0; types::lb_limits::LB_SOURCES.0 as usize])?;
                let runtime = types::lb_runtime { starts: 0, ..maps.runtime()? };
                maps.runtime.set(&0, &runtime)?;
            }
        }
        Ok(())
    }

    /// Runs the program of a side on a frame, and checks what it says against what it did.
    fn run(&self, number: u64, side: Side, frame: &[u8]) -> Result<types::lb_explained, ExplainError> {
        let nothing = types::lb_explained { verdict: lb_verdict::LB_VERDICTS, ..Default::default() };
        self.copy.maps.explained.set(&0, &nothing)?;
        let program: &Program = if side == Side::Client { &self.copy.client } else { &self.copy.backend };
        let run = program
            .run(frame, RunOptions::default())
            .map_err(|source| ExplainError::Run { number, source })?;
        let told = self.copy.maps.explained.get(&0)?.unwrap_or(nothing);
        let contradiction = |what: String| Err(ExplainError::Contradiction { number, what });
        let is_redirected = run.action == libbpf_sys::XDP_REDIRECT;
        let is_forwarded = [
            lb_verdict::LB_SESSION,
            lb_verdict::LB_NEW,
            lb_verdict::LB_STATELESS,
            lb_verdict::LB_NEIGHBOUR,
            lb_verdict::LB_RETURNED,
        ]
        .contains(&told.verdict);
        if told.verdict == lb_verdict::LB_VERDICTS || is_redirected != is_forwarded {
            return contradiction(format!("verdict {}, action {}", told.verdict.0, run.action));
        }
        if side == Side::Client && is_forwarded && told.verdict != lb_verdict::LB_NEIGHBOUR {
            let backend = self.copy.maps.backends.get(&told.backend)?.unwrap_or_default();
            let sent_to = frame::destination_mac(&run.packet);
            if sent_to != MacAddr6::from(backend.station.mac) {
                return contradiction(format!("backend {}, sent to {sent_to}", text(&backend.name)));
            }
        }
        Ok(told)
    }

    /// Puts in words what the program has said.
    fn describe(
        &self,
        explained: &mut Explained,
        told: &types::lb_explained,
        frame: &[u8],
    ) -> Result<(), ExplainError> {
        let verdict = VERDICTS.iter().find(|(verdict, ..)| *verdict == told.verdict);
        explained.verdict = verdict.map(|(_, name, _)| *name);
        explained.reason = reason_name(told.reason);
        explained.table = self.table(told, explained.side);
        let out_role = match explained.side {
            Side::Client => types::lb_role::LB_EGRESS,
            Side::Backend => types::lb_role::LB_INGRESS,
        };
        let backend = if explained.side == Side::Backend {
            self.sender(explained, frame)?
        } else if (told.backend as usize) < BACKENDS_MAX {
            self.copy.maps.backends.get(&told.backend)?
        } else {
            None
        };
        explained.backend = backend.map(|entry| text(&entry.name));
        if explained.side == Side::Backend && explained.backend.is_none() {
            let unknown = "no backend is known by its source MAC, so it teaches nothing";
            explained.note = Some(match explained.note.take() {
                Some(note) => format!("{note}; {unknown}"),
                None => unknown.into(),
            });
        }
        explained.out = match told.verdict {
            lb_verdict::LB_NEIGHBOUR | lb_verdict::LB_RETURNED if told.to_all != 0 => {
                let side = self.interfaces.iter().filter(|interface| interface.role == out_role);
                side.map(|interface| text(&interface.name)).collect()
            }
            lb_verdict::LB_NEIGHBOUR
            | lb_verdict::LB_RETURNED
            | lb_verdict::LB_SESSION
            | lb_verdict::LB_NEW
            | lb_verdict::LB_STATELESS => vec![self.port_name(out_role, told.port)],
            _ => Vec::new(),
        };
        explained.detail = self.words(told, explained);
        Ok(())
    }

    /// The backend that a packet of the backend side is from, as the datapath tells it: the only one behind the interface,
    /// or the one that has the MAC.
    fn sender(&self, explained: &Explained, frame: &[u8]) -> Result<Option<types::lb_backend>, TableError> {
        let dev = explained.dev.as_deref();
        let interface = self.interfaces.iter().find(|i| dev.is_some_and(|dev| text(&i.name) == dev));
        if let Some(interface) = interface.filter(|interface| interface.backend != SEVERAL) {
            return self.copy.maps.backends.get(&interface.backend.into());
        }
        Ok(self.owner(frame::source_mac(frame))?.map(|(_, entry)| entry))
    }

    fn port_name(&self, role: types::lb_role, port: u32) -> String {
        let mut of_role = self.interfaces.iter().filter(|interface| interface.role == role);
        of_role
            .find(|interface| u32::from(interface.index) == port)
            .map_or("?".into(), |interface| text(&interface.name))
    }

    /// The map that decided.
    fn table(&self, told: &types::lb_explained, side: Side) -> Option<&'static str> {
        match told.reason {
            lb_reason::LB_BECAUSE_ADDRESS
            | lb_reason::LB_BECAUSE_SA
            | lb_reason::LB_BECAUSE_ENDPOINT
            | lb_reason::LB_BECAUSE_ESP => Some("sessions"),
            lb_reason::LB_BECAUSE_DOWN if told.verdict == lb_verdict::LB_NO_BACKEND => Some("sessions"),
            lb_reason::LB_BECAUSE_LABEL => Some("labels"),
            lb_reason::LB_BECAUSE_FRAGMENT => Some("fragments"),
            lb_reason::LB_BECAUSE_POLICY => Some(match Policy::of(&self.config) {
                Policy::RoundRobin => "ring",
                Policy::Maglev => "hash_slots",
                Policy::LeastSessions => "backend_sessions",
            }),
            lb_reason::LB_BECAUSE_HASH
            | lb_reason::LB_BECAUSE_RATE
            | lb_reason::LB_BECAUSE_FULL
            | lb_reason::LB_BECAUSE_DOWN => Some("hash_slots"),
            _ => match told.verdict {
                lb_verdict::LB_RETURNED if told.to_all == 0 && self.config.lb_config.ingress_count > 1 => {
                    Some("sessions")
                }
                lb_verdict::LB_NEIGHBOUR if told.to_all == 0 && side == Side::Client => Some("backend_macs"),
                _ => None,
            },
        }
    }

    /// The rule in words.
    fn words(&self, told: &types::lb_explained, explained: &Explained) -> String {
        let packet = &explained.packet;
        let out = explained.out.join(", ");
        let client = match explained.side {
            Side::Client => packet.quoted_destination.or(packet.source),
            Side::Backend => packet.destination,
        };
        let client_text = client.map_or("the client".into(), |client| client.to_string());
        match told.verdict {
            lb_verdict::LB_MALFORMED => return "a header does not fit or contradicts itself".into(),
            lb_verdict::LB_NEIGHBOUR => return format!("ARP, ND or MLD: to {out}"),
            lb_verdict::LB_KEEPALIVE_DROPPED => return "a NAT keepalive of no session".into(),
            lb_verdict::LB_OTHER_DROPPED | lb_verdict::LB_OTHER_PASSED => {
                let foreign = packet.destination.filter(|to| {
                    !self.vips.is_empty() && explained.side == Side::Client && !self.vips.contains(to)
                });
                return match foreign {
                    Some(destination) => format!("{destination} is no VIP"),
                    None => "neither IKE, ESP, AH nor what of ICMP is for a VPN".into(),
                };
            }
            lb_verdict::LB_RETURNED if told.to_all != 0 => {
                return format!("{client_text} was not heard yet: to {out}");
            }
            lb_verdict::LB_RETURNED if self.config.lb_config.ingress_count > 1 => {
                return format!("{client_text} was last seen on {out}");
            }
            lb_verdict::LB_RETURNED => return format!("to {client_text}: the clients are behind {out}"),
            _ => {}
        }
        if (told.verdict, told.reason) == (lb_verdict::LB_NO_BACKEND, lb_reason::LB_BECAUSE_DOWN) {
            let waits = match OnDown::of(&self.config) {
                OnDown::Hold => ", and --on-down hold waits for it",
                OnDown::Rehash => "",
            };
            return format!("the backend of its session takes no packets now{waits}");
        }
        let hash = format!("hash of {client_text}");
        let rule = match told.reason {
            lb_reason::LB_BECAUSE_ADDRESS => format!("session of address {client_text}"),
            lb_reason::LB_BECAUSE_SA => {
                format!("IKE SA 0x{:016x}", packet.initiator_spi.unwrap_or_default())
            }
            lb_reason::LB_BECAUSE_ENDPOINT => {
                let port = match packet.quoted_destination {
                    Some(_) => packet.quoted_destination_port,
                    None => packet.source_port,
                };
                let endpoint = match (client, port) {
                    (Some(client), Some(port)) => std::net::SocketAddr::new(client, port).to_string(),
                    _ => client_text,
                };
                format!("endpoint {endpoint}")
            }
            lb_reason::LB_BECAUSE_ESP => {
                format!("SPI 0x{:08x} of {client_text}", packet.spi.unwrap_or_default())
            }
            lb_reason::LB_BECAUSE_LABEL => label_words(packet, self.config.lb_config.label_bits),
            lb_reason::LB_BECAUSE_FRAGMENT => {
                format!("first fragment of packet {}", packet.fragment_id.unwrap_or_default())
            }
            lb_reason::LB_BECAUSE_POLICY => {
                let policy = match Policy::of(&self.config) {
                    Policy::RoundRobin => "round-robin",
                    Policy::Maglev => "maglev",
                    Policy::LeastSessions => "least-sessions",
                };
                match packet.initiator_spi {
                    Some(spi) => format!("start of IKE SA 0x{spi:016x}: policy {policy}"),
                    None => format!("ping of a client without a session: policy {policy}"),
                }
            }
            lb_reason::LB_BECAUSE_HASH => format!("no session: {hash}"),
            lb_reason::LB_BECAUSE_RATE => format!("a start over the rate (--start-rate): {hash}"),
            lb_reason::LB_BECAUSE_FULL => format!("a start, and the session table is full: {hash}"),
            lb_reason::LB_BECAUSE_DOWN => format!("the backend of its session is down: {hash}"),
            _ => verdict_meaning(told.verdict).into(),
        };
        match &explained.backend {
            _ if told.verdict != lb_verdict::LB_NO_BACKEND => rule,
            _ if told.reason == lb_reason::LB_BECAUSE_VERDICT => {
                "the interface that it would leave by is gone".into()
            }
            Some(backend) => format!("{rule}; the interface of {backend} is gone"),
            None => format!("{rule}; no backend takes packets"),
        }
    }
}

/// The stable name of a reason.
fn reason_name(reason: lb_reason) -> &'static str {
    match reason {
        lb_reason::LB_BECAUSE_ADDRESS => "address",
        lb_reason::LB_BECAUSE_SA => "sa",
        lb_reason::LB_BECAUSE_ENDPOINT => "endpoint",
        lb_reason::LB_BECAUSE_ESP => "esp",
        lb_reason::LB_BECAUSE_LABEL => "label",
        lb_reason::LB_BECAUSE_FRAGMENT => "fragment",
        lb_reason::LB_BECAUSE_POLICY => "policy",
        lb_reason::LB_BECAUSE_HASH => "hash",
        lb_reason::LB_BECAUSE_RATE => "rate",
        lb_reason::LB_BECAUSE_FULL => "full",
        lb_reason::LB_BECAUSE_DOWN => "down",
        _ => "verdict",
    }
}

fn verdict_meaning(wanted: lb_verdict) -> &'static str {
    VERDICTS.iter().find(|(verdict, ..)| *verdict == wanted).map_or("", |(_, _, meaning)| meaning)
}

/// The label that decided, of the SPI that the backend chose: ESP's own; of IKE the one of whichever end the client is not.
fn label_words(packet: &Packet, bits: u32) -> String {
    if bits == 0 || bits > LABEL_BITS_MAX {
        return "a label".into();
    }
    if let Some(spi) = packet.spi {
        return format!("label {} of SPI 0x{spi:08x}", spi >> (32 - bits));
    }
    let client_began = packet.from_initiator.unwrap_or(true);
    let spi = if client_began { packet.responder_spi } else { packet.initiator_spi }.unwrap_or_default();
    format!("label {} of IKE SPI 0x{spi:016x}", spi >> (64 - bits))
}

const MIB: u64 = 1024 * 1024;

/// What a copy takes, in bytes.
fn copy_bytes(buckets: u32) -> u64 {
    u64::from(buckets) * size_of::<types::session_bucket>() as u64 + OTHER_BYTES
}

/// Refuses a copy that would take the memory of others.
fn check_memory(buckets: u32) -> Result<(), ExplainError> {
    let needed = copy_bytes(buckets);
    match free_memory() {
        Some(free) if free < needed => Err(ExplainError::Memory { needed: needed / MIB, free: free / MIB }),
        _ => Ok(()),
    }
}

/// Says what is meant where the kernel has no memory for a copy after all, as where a control group limits it.
fn no_memory(error: DatapathError, config: &types::rodata) -> ExplainError {
    match &error {
        DatapathError::Object(ObjectError::Load { source, .. })
            if source.kind() == libbpf_rs::ErrorKind::OutOfMemory =>
        {
            let needed = copy_bytes(config.session_config.buckets) / MIB;
            ExplainError::Memory { needed, free: free_memory().unwrap_or_default() / MIB }
        }
        _ => error.into(),
    }
}

/// What can be had without taking it from anyone, in bytes.
fn free_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Copies all that decides about packets but the sessions. Counters stay at zero, as nobody reads them here.
fn copy_tables(live: &Maps, copy: &Maps) -> Result<(), TableError> {
    copy.backends.set_from(0, &snapshot::values(&live.backends)?)?;
    copy.backend_sessions.set_from(0, &snapshot::values(&live.backend_sessions)?)?;
    copy.labels.set_from(0, &snapshot::values(&live.labels)?)?;
    copy.session_totals.set_from(0, &snapshot::values(&live.session_totals)?)?;
    let runtime = live.runtime()?;
    copy.runtime.set(&0, &runtime)?;
    // Of the schedules, the half that counts. Nobody changes which one that is, as the lock is held.
    let types::lb_schedule { half, ring_slots } = runtime.schedule;
    let first = half * types::lb_limits::LB_RING_MAX.0;
    for slot in first..first + ring_slots {
        copy.ring.set(&slot, &live.ring.get(&slot)?.unwrap_or_default())?;
    }
    let count = types::lb_limits::LB_HASH_SLOTS.0;
    let slots = snapshot::values(&live.hash_slots)?;
    let counts = slots.chunks(count as usize).nth(half as usize).unwrap_or_default();
    copy.hash_slots.set_from(half * count, counts)?;
    for (source, full) in snapshot::entries(&live.source_rates)?.iter().filter(|(_, full)| *full != 0) {
        copy.source_rates.set(source, full)?;
    }
    for (mac, backend) in snapshot::entries(&live.backend_macs)? {
        copy.backend_macs.set(&mac, &backend)?;
    }
    for (key, fragment) in snapshot::entries(&live.fragments)? {
        copy.fragments.set(&key, &fragment)?;
    }
    for (from, to) in [(&live.ingress_ports, &copy.ingress_ports), (&live.egress_ports, &copy.egress_ports)] {
        // Only which ports there are: an interface that has gone has none.
        for port in from.keys() {
            if from.get(&port)?.is_some() {
                to.set(&port, &LOOPBACK)?;
            }
        }
    }
    Ok(())
}

/// Copies each slot as it was at some moment. All are read twice, a piece of the table at a time: what is alike was not
/// just changing hands.
fn copy_sessions(
    live: &Table<u32, types::session_bucket>,
    copy: &Table<u32, types::session_bucket>,
) -> Result<(), TableError> {
    let first = snapshot::batches(live, BUCKETS)?;
    let second = snapshot::batches(live, BUCKETS)?;
    let mut piece = Vec::new();
    let mut count = 0;
    for ((_, before), (index, mut bucket)) in first.zip(second) {
        for slot in 0..bucket.slots.len() {
            if !same_entry(&before.slots[slot], &bucket.slots[slot]) {
                bucket.slots[slot] = settled(live, index, slot)?;
            }
        }
        count += 1;
        piece.push(bucket);
        if piece.len() == BUCKETS as usize {
            put_piece(copy, count, &piece)?;
            piece.clear();
        }
    }
    put_piece(copy, count, &piece)?;
    snapshot::check_count(live, count)
}

/// Writes the buckets before number `end`, which nothing is in yet.
fn put_piece(
    copy: &Table<u32, types::session_bucket>,
    end: usize,
    piece: &[types::session_bucket],
) -> Result<(), TableError> {
    let is_used = |slot: &types::session| slot.meta.tag != types::session_state::SESSION_EMPTY.0 as u8;
    if piece.iter().any(|bucket| bucket.slots.iter().any(is_used)) {
        copy.set_from((end - piece.len()) as u32, piece)?;
    }
    Ok(())
}

/// A slot that changes, as soon as two readings of it are alike.
fn settled(
    live: &Table<u32, types::session_bucket>,
    index: u32,
    slot: usize,
) -> Result<types::session, TableError> {
    let mut before: Option<types::session> = None;
    for _ in 0..SLOT_TRIES {
        let now = live.get(&index)?.unwrap_or_default().slots[slot];
        if before.is_some_and(|before| same_entry(&before, &now)) {
            return Ok(now);
        }
        before = Some(now);
        // The CPU that changes it may be the one that this runs on.
        thread::yield_now();
    }
    // Never an unused one: a search goes on behind this slot.
    let tag = types::session_state::SESSION_FREE.0 as u8;
    Ok(types::session { meta: types::session_meta { tag, ..Default::default() }, ..Default::default() })
}

/// Whether two readings of a slot are of one entry, and neither while it changes hands. Times, interfaces and counts may
/// differ.
fn same_entry(one: &types::session, other: &types::session) -> bool {
    let key = |session: &types::session| {
        (
            (session.meta.tag, session.meta.backend),
            (session.client.words, session.detail, session.created),
            (session.initiator_spi, session.responder_spi),
        )
    };
    let is_busy = u32::from(one.meta.tag & STATE_MASK) == types::session_state::SESSION_BUSY.0;
    !is_busy && key(one) == key(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_of_one_entry_are_told_from_those_of_two() {
        let entry = |state: types::session_state, backend, detail| types::session {
            meta: types::session_meta { tag: state.0 as u8, backend, ..Default::default() },
            detail,
            ..Default::default()
        };
        let (busy, embryonic) = (types::session_state::SESSION_BUSY, types::session_state::SESSION_EMBRYONIC);
        let one = entry(embryonic, 1, 7);
        let counted = types::session { packets: 1, bytes: 60, ..one };
        assert!(same_entry(&one, &counted));
        assert!(!same_entry(&one, &entry(embryonic, 2, 7)), "another backend");
        assert!(!same_entry(&one, &entry(embryonic, 1, 8)), "another key");
        assert!(!same_entry(&entry(busy, 0, 7), &entry(busy, 0, 7)), "neither while it changes hands");
        assert!(same_entry(&types::session::default(), &types::session::default()), "never used");
    }

    #[test]
    fn every_reason_has_a_name() {
        let names: std::collections::HashSet<_> =
            (0..lb_reason::LB_REASONS.0).map(|number| reason_name(lb_reason(number))).collect();
        assert_eq!(names.len(), lb_reason::LB_REASONS.0 as usize);
    }

    #[test]
    fn a_table_that_does_not_fit_is_refused() {
        assert!(check_memory(1).is_ok());
        let error = check_memory(u32::MAX).unwrap_err().to_string();
        assert!(error.contains("--max-sessions"), "{error}");
    }

    #[test]
    fn labels_are_the_first_bits_of_the_spi_that_the_backend_chose() {
        let esp = Packet { spi: Some(0x2000_0001), ..Packet::default() };
        assert_eq!(label_words(&esp, 4), "label 2 of SPI 0x20000001");
        let ike = Packet {
            initiator_spi: Some(0x1000_0000_0000_0001),
            responder_spi: Some(0x3000_0000_0000_0001),
            from_initiator: Some(true),
            ..Packet::default()
        };
        assert_eq!(label_words(&ike, 4), "label 3 of IKE SPI 0x3000000000000001");
        let rekeyed = Packet { from_initiator: Some(false), ..ike };
        assert_eq!(label_words(&rekeyed, 4), "label 1 of IKE SPI 0x1000000000000001");
    }
}
