//! What is attached, from the pins and the kernel alone.

use serde::Serialize;
use thiserror::Error;

use super::datapath::{Affinity, DatapathError, Maps, OnDown, Policy};
use super::skeleton::types;
use super::{GROUP, interfaces};
use crate::kernel::pins::{Instance, PinError, Root};
use crate::kernel::table::TableError;
use crate::kernel::value::text;
use crate::kernel::xdp::{Link, Mode};

/// How an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Attached, on all its interfaces.
    Attached,
    /// Attached, but some interface is gone, or has lost its program.
    Degraded,
    /// Its attach or detach was cut short, or its pins make no sense.
    Broken,
}

/// One interface of an instance.
#[derive(Clone, Debug, Serialize)]
pub struct Attachment {
    pub dev: String,
    pub role: &'static str,
    pub mode: Option<Mode>,
    /// `None` where the interface is gone, or the link to it.
    pub program_id: Option<u32>,
}

/// An instance; an element of `lb status --json`.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    pub name: String,
    pub group: String,
    pub state: State,
    pub interfaces: Vec<Attachment>,
    /// The network namespace of the interfaces as it was given to attach; `None` if none was.
    pub netns: Option<String>,
    #[serde(flatten)]
    pub settings: Option<Shown>,
    /// What to do about it, if something is wrong.
    pub problem: Option<String>,
}

/// The settings of an instance.
#[derive(Clone, Debug, Serialize)]
pub struct Shown {
    pub policy: Policy,
    pub affinity: Affinity,
    pub on_down: OnDown,
    /// Seconds without an answer after which a backend counts as down; 0 is never.
    pub down_after_s: u32,
    /// How many top bits of an SPI name its backend; 0 if none do.
    pub spi_shard: u32,
    pub vips: Vec<std::net::IpAddr>,
    pub max_sessions: u32,
    pub idle_timeout_s: u32,
    /// Starts a second.
    pub start_rate: u32,
    pub established: u64,
}

/// Why there is no status.
#[derive(Debug, Error)]
pub enum StatusError {
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    #[error(transparent)]
    Table(#[from] TableError),
}

/// The status of each instance under a root. An instance that cannot be read is one that is broken, and no error.
///
/// # Errors
///
/// Where the root cannot be read.
pub fn all(root: &Root) -> Result<Vec<Status>, PinError> {
    let instances = root.instances()?.into_iter().filter(|instance| instance.group == GROUP);
    Ok(instances.map(|instance| one(&instance)).collect())
}

fn one(instance: &Instance) -> Status {
    let broken = |problem: String| Status {
        name: instance.name.clone(),
        group: instance.group.clone(),
        state: State::Broken,
        interfaces: Vec::new(),
        netns: None,
        settings: None,
        problem: Some(problem),
    };
    if !instance.is_whole() {
        return broken(format!(
            "its attach or detach was cut short; `lb detach --name {}` clears it away",
            instance.name
        ));
    }
    read(instance).unwrap_or_else(|error| broken(error.to_string()))
}

fn read(instance: &Instance) -> Result<Status, StatusError> {
    let maps = Maps::open(instance)?;
    let config = maps.config()?;
    let mut attachments = Vec::new();
    let mut problems = Vec::new();
    for entry in interfaces::list(&maps)? {
        let dev = text(&entry.name);
        let role = interfaces::role_name(entry.role);
        let link = Link::open(&instance.link_pin(role, entry.ifindex)).and_then(|link| link.info());
        let program_id = match link {
            Ok(info) if info.ifindex == entry.ifindex => Some(info.program_id),
            Ok(_) => {
                problems.push(format!("{dev} is gone"));
                None
            }
            Err(_) => {
                problems.push(format!("the link to {dev} is gone"));
                None
            }
        };
        attachments.push(Attachment { dev, role, mode: Mode::from_attached(entry.mode), program_id });
    }
    let netns = text(&config.lb_config.netns);
    let problem = (!problems.is_empty())
        .then(|| format!("{}; `lb detach --name {}`, then attach anew", problems.join(", "), instance.name));
    Ok(Status {
        name: instance.name.clone(),
        group: instance.group.clone(),
        state: if problem.is_some() { State::Degraded } else { State::Attached },
        interfaces: attachments,
        netns: (!netns.is_empty()).then_some(netns),
        settings: Some(shown(&maps, &config)?),
        problem,
    })
}

fn shown(maps: &Maps, config: &types::rodata) -> Result<Shown, TableError> {
    let lb = &config.lb_config;
    let totals = maps.session_totals.get(&0)?.unwrap_or_default();
    Ok(Shown {
        policy: Policy::of(config),
        affinity: Affinity::of(config),
        on_down: OnDown::of(config),
        down_after_s: lb.down_after,
        spi_shard: lb.label_bits,
        vips: lb.vips.iter().take(lb.vip_count as usize).map(|vip| (*vip).into()).collect(),
        max_sessions: config.session_config.established_max,
        idle_timeout_s: config.session_config.established_timeout,
        start_rate: lb.start_rate,
        established: totals.established,
    })
}
