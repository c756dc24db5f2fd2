//! What is attached, from the maps and the kernel alone.

use serde::Serialize;
use serde_json::Value;
use thiserror::Error;

use super::datapath::{Affinity, DatapathError, Maps, OnDown, Policy};
use super::interfaces;
use super::skeleton::types;
use crate::instance::{Port, Status};
use crate::kernel::pins::{Instance, PinError};
use crate::kernel::table::TableError;
use crate::kernel::value::text;
use crate::kernel::xdp::Mode;

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

/// The status of an instance.
///
/// # Errors
///
/// Where its maps cannot be read.
pub fn read(instance: &Instance) -> Result<Status, StatusError> {
    let maps = Maps::open(instance)?;
    let config = maps.config()?;
    let port = |entry: types::lb_interface| Port {
        dev: text(&entry.name),
        ifindex: entry.ifindex,
        role: interfaces::role_name(entry.role).into(),
        mode: Mode::from_attached(entry.mode),
    };
    let ports: Vec<Port> = interfaces::list(&maps)?.into_iter().map(port).collect();
    let netns = text(&config.lb_config.netns);
    let settings = match serde_json::to_value(shown(&maps, &config)?) {
        Ok(Value::Object(settings)) => settings,
        _ => unreachable!("a struct with named fields is an object"),
    };
    Ok(Status::new(instance, &ports, (!netns.is_empty()).then_some(netns), settings))
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
