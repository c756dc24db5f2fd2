//! Bringing the responder onto an interface, and onto the far end of a veth the program that lets its replies pass.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::GROUP;
use super::datapath::{Datapath, DatapathError, LAYOUT, Settings, View};
use crate::instance::{self, AttachError, Attached, Kept, Loaded, Port};
use crate::kernel::addresses::Addresses;
use crate::kernel::interface::Interface;
use crate::kernel::pins::Root;
use crate::kernel::veth::{self, BareEnd, Reflection};
use crate::kernel::xdp::{Link, Mode};
use crate::pass;

/// The role of a veth's far end.
pub const PEER: &str = "peer";

/// The TTL and hop limit of a system that does not say.
const DEFAULT_TTL: u8 = 64;

/// What to attach.
#[derive(Clone, Debug)]
pub struct Request {
    /// That of the interface if `None`.
    pub name: Option<String>,
    pub dev: String,
    pub mode: Mode,
    pub netns: Option<String>,
    pub replace: bool,
    pub any: bool,
    pub rate: Option<Rate>,
    /// What is answered for besides the interface's own addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether a veth's far end gets the program that lets replies pass.
    pub with_peer: bool,
}

/// How many requests of one source are answered in a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub requests: u32,
    pub per: Duration,
}

/// What the record of an instance says of its settings.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Shown {
    pub any: bool,
    /// Requests of one source a second; `None` without a limit.
    pub rate_per_s: Option<serde_json::Number>,
    /// What was given by --address.
    pub addresses: Vec<IpAddr>,
}

/// Why there is no responder, besides what [`AttachError`] has.
#[derive(Debug, Error)]
pub enum EchoError {
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    #[error(
        "cannot ask the kernel for the addresses of {dev}: {source}; `ip address show dev {dev}` asks too"
    )]
    Addresses { dev: String, source: std::io::Error },
    #[error(
        "{dev} is gone, or somebody has taken its program off: nothing is answered any more; attach anew when it is back"
    )]
    Gone { dev: String },
    #[error("--with-peer: {dev} is no veth, so it has no far end; leave --with-peer out")]
    NoVeth { dev: String },
    #[error(
        "--with-peer: the far end of {dev}, interface number {index} of another network namespace, is out of reach from here; run `lb pass attach --dev NAME` there, and leave --with-peer out"
    )]
    OutOfReach { dev: String, index: u32 },
}

impl From<EchoError> for AttachError {
    fn from(error: EchoError) -> Self {
        Self::Companion(Box::new(error))
    }
}

/// Attaches as `request` says.
///
/// # Errors
///
/// Each [`AttachError`]; then the interface and its far end are as they were, and nothing is pinned.
pub fn attach(root: &Root, request: &Request) -> Result<Attached, AttachError> {
    let common = instance::Request {
        group: GROUP,
        name: request.name.clone(),
        dev: request.dev.clone(),
        mode: request.mode,
        netns: request.netns.clone(),
        replace: request.replace,
        layout: LAYOUT,
    };
    instance::attach(
        root,
        &common,
        |interface, kept| {
            let settings = settings(request);
            let (view, mut warnings) = view(interface, request.any, &request.addresses)?;
            warnings.extend(interface.down_warning());
            if request.mode == Mode::Drv && !request.with_peer && !has_peer(kept) {
                warnings.extend(reflection_warning(interface));
            }
            let old = kept.map(|kept| &kept.instance);
            let datapath = Datapath::load(&settings, old).map_err(EchoError::from)?;
            datapath.maps.set_view(&view).map_err(EchoError::from)?;
            Ok(Loaded {
                program: datapath.program,
                maps: datapath.handles,
                settings: shown(request),
                warnings,
            })
        },
        |interface, kept| {
            if !request.with_peer || has_peer(kept) {
                return Ok(Vec::new());
            }
            let dev = || interface.name.clone();
            match veth::reflection(interface) {
                Reflection::Bare(far) => Ok(vec![open_far_end(&far)?]),
                Reflection::Unseen(index) => Err(EchoError::OutOfReach { dev: dev(), index }.into()),
                Reflection::Works if veth::is_veth(interface) => Ok(Vec::new()),
                Reflection::Works => Err(EchoError::NoVeth { dev: dev() }.into()),
            }
        },
    )
}

/// Whether an upgrade keeps the program at the far end.
fn has_peer(kept: Option<&Kept>) -> bool {
    kept.is_some_and(|kept| kept.ports.iter().any(|port| port.role == PEER))
}

/// Attaches the program that lets everything pass to a far end, in native mode.
fn open_far_end(far: &BareEnd) -> Result<(Port, Link), AttachError> {
    let loaded = pass::load(None)?;
    let interface = &far.interface;
    let link = far.within(|| Link::attach(&loaded.program, interface, Mode::Drv))??;
    let port = Port {
        dev: interface.name.clone(),
        ifindex: interface.index,
        role: PEER.into(),
        mode: Some(Mode::Drv),
    };
    Ok((port, link))
}

/// What a user should know of a veth on which replies are lost.
fn reflection_warning(interface: &Interface) -> Option<String> {
    let dev = &interface.name;
    match veth::reflection(interface) {
        Reflection::Works => None,
        Reflection::Bare(far) => {
            let netns = far.netns.as_ref().map_or(String::new(), |netns| format!(" --netns {netns}"));
            Some(format!(
                "{dev} is a veth whose far end, {far}, has no XDP program: replies sent back to it are lost; mend: lb pass attach --dev {}{netns}, or attach with --with-peer",
                far.interface.name
            ))
        }
        Reflection::Unseen(index) => Some(format!(
            "{dev} is a veth whose far end, interface number {index} of another network namespace, is out of sight: without an XDP program there, replies sent back to it are lost; mend: lb pass attach --dev NAME there"
        )),
    }
}

fn settings(request: &Request) -> Settings {
    Settings {
        any: request.any,
        source_interval: request.rate.map_or(Duration::ZERO, |rate| rate.interval()),
    }
}

fn shown(request: &Request) -> Shown {
    let per_second = |rate: Rate| f64::from(rate.requests) / rate.per.as_secs_f64();
    Shown {
        any: request.any,
        rate_per_s: request.rate.map(per_second).and_then(serde_json::Number::from_f64),
        addresses: request.addresses.clone(),
    }
}

impl Rate {
    /// Time from one request to the next.
    pub fn interval(self) -> Duration {
        self.per / self.requests.max(1)
    }
}

impl std::str::FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let how = || format!("{text:?} is no rate; write it as 100/s, 30/m or 10/h");
        let (requests, per) = text.split_once('/').ok_or_else(how)?;
        let per = Duration::from_secs(match per {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return Err(how()),
        });
        let requests: u32 = requests.parse().map_err(|_| how())?;
        if (1..=1_000_000).contains(&requests) {
            Ok(Self { requests, per })
        } else {
            Err("it must be from 1 to 1000000 requests".into())
        }
    }
}

/// What the program is to know of `interface`, which is in the caller's network namespace, with addresses that it answers for
/// `also`; and what the user should know of it.
///
/// # Errors
///
/// What the kernel says about the interface.
pub(super) fn view(
    interface: &Interface,
    any: bool,
    also: &[IpAddr],
) -> Result<(View, Vec<String>), AttachError> {
    let dev = &interface.name;
    let own = Addresses::of(interface).map_err(|source| EchoError::Addresses { dev: dev.clone(), source })?;
    let mut addresses = also.to_vec();
    addresses.extend(&own.hosts);
    let mut warnings = Vec::new();
    if addresses.is_empty() && !any {
        warnings.push(format!(
            "{dev} has no address: nothing is answered; mend: give it one and then `lb echo attach --replace`, or name it by --address, or answer for all by --any"
        ));
    }
    // Every interface has a link-local address, which is so for a second after it was switched on.
    for address in own.tentative.iter().filter(|address| !is_link_local(address)) {
        warnings.push(format!(
            "{address} is not {dev}'s until no other host is found to have it: the stack answers for it; mend: `lb echo attach --replace` later, or attach with --watch-addresses"
        ));
    }
    let view = View {
        mac: interface.mac()?,
        ttl: sysctl("ipv4/ip_default_ttl"),
        hop_limit: sysctl(&format!("ipv6/conf/{dev}/hop_limit")),
        addresses,
        broadcasts: own.broadcasts.into_iter().collect(),
    };
    Ok((view, warnings))
}

fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// A network parameter of the caller's network namespace; 64 where there is none, as without IPv6.
fn sysctl(key: &str) -> u8 {
    let text = fs::read_to_string(format!("/proc/sys/net/{key}")).unwrap_or_default();
    text.trim().parse().unwrap_or(DEFAULT_TTL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_requests_in_a_time() {
        let interval = |text: &str| text.parse::<Rate>().map(Rate::interval);
        assert_eq!(interval("100/s"), Ok(Duration::from_millis(10)));
        assert_eq!(interval("30/m"), Ok(Duration::from_secs(2)));
        assert_eq!(interval("1/h"), Ok(Duration::from_secs(3600)));
        for wrong in ["", "100", "0/s", "-1/s", "1/d", "1000001/s", "s/1", "1.5/s"] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
    }
}
