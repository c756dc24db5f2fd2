//! What all instances have in common, and the life of those that sit on one interface: attach, upgrade in place, status.
//!
//! An attach is all or nothing. Links detach by themselves when the command ends before they are pinned, and the record, which
//! says "whole", is pinned last: whatever cuts an attach short, the next attach or detach finds the rest and clears it away.

use std::io;
use std::path::PathBuf;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::kernel::interface::{Interface, InterfaceError};
use crate::kernel::netns::{self, NetnsError};
use crate::kernel::object::{self, ObjectError};
use crate::kernel::pins::{Instance, PinError, Root};
use crate::kernel::program::Program;
use crate::kernel::record;
use crate::kernel::xdp::{Link, Mode, XdpError};

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
    pub role: String,
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
    /// What else its group has to say.
    #[serde(flatten)]
    pub settings: Map<String, Value>,
    /// What to do about it, if something is wrong.
    pub problem: Option<String>,
}

impl Status {
    /// The status of an instance whose interfaces are `ports`.
    pub fn new(
        instance: &Instance,
        ports: &[Port],
        netns: Option<String>,
        settings: Map<String, Value>,
    ) -> Self {
        let mut problems = Vec::new();
        let interfaces = ports.iter().map(|port| port.attachment(instance, &mut problems)).collect();
        let problem = (!problems.is_empty())
            .then(|| format!("{}; `{}`, then attach anew", problems.join(", "), instance.detach_command()));
        Self {
            name: instance.name.clone(),
            group: instance.group.clone(),
            state: if problem.is_some() { State::Degraded } else { State::Attached },
            interfaces,
            netns,
            settings,
            problem,
        }
    }

    /// The status of an instance that cannot be read, by `read`'s error or because its attach was cut short.
    pub fn of<E: std::fmt::Display>(
        instance: &Instance,
        read: impl FnOnce(&Instance) -> Result<Self, E>,
    ) -> Self {
        let problem = if instance.is_whole() {
            match read(instance) {
                Ok(status) => return status,
                Err(error) => error.to_string(),
            }
        } else {
            cut_short(instance)
        };
        Self {
            name: instance.name.clone(),
            group: instance.group.clone(),
            state: State::Broken,
            interfaces: Vec::new(),
            netns: None,
            settings: Map::new(),
            problem: Some(problem),
        }
    }
}

/// What to say of an instance that is not whole.
pub fn cut_short(instance: &Instance) -> String {
    format!(
        "an attach or detach of {} was cut short; `{}` clears it away",
        instance.name,
        instance.detach_command()
    )
}

/// An interface that a program is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Port {
    pub dev: String,
    /// Its number in its network namespace.
    pub ifindex: u32,
    pub role: String,
    pub mode: Option<Mode>,
}

impl Port {
    /// The pin of the link to it.
    fn pin(&self, instance: &Instance) -> PathBuf {
        instance.link_pin(&self.role, self.ifindex)
    }

    /// Whether its program is on it.
    pub fn is_attached(&self, instance: &Instance) -> bool {
        let link = Link::open(&self.pin(instance)).and_then(|link| link.info());
        link.is_ok_and(|info| info.ifindex == self.ifindex)
    }

    fn attachment(&self, instance: &Instance, problems: &mut Vec<String>) -> Attachment {
        let dev = &self.dev;
        let link = Link::open(&self.pin(instance)).and_then(|link| link.info());
        let program_id = match link {
            Ok(info) if info.ifindex == self.ifindex => Some(info.program_id),
            Ok(_) => {
                problems.push(format!("{dev} is gone, or somebody has taken its program off"));
                None
            }
            Err(_) => {
                problems.push(format!("the link to {dev} is gone"));
                None
            }
        };
        Attachment { dev: dev.clone(), role: self.role.clone(), mode: self.mode, program_id }
    }
}

/// The role of the interface that a companion was attached to.
pub const DEV: &str = "dev";

/// What an instance of a companion says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Record<S> {
    /// Of its maps.
    layout: u32,
    /// The network namespace as it was given on the command line.
    pub netns: Option<String>,
    /// Tells that namespace from others: its inode.
    pub namespace: u64,
    /// The first one is its own, which it is named after.
    pub ports: Vec<Port>,
    pub settings: S,
}

/// The part of a record that is the same in every layout.
#[derive(Deserialize)]
struct Header {
    layout: u32,
}

impl<S: for<'a> Deserialize<'a>> Record<S> {
    /// Reads the record of an instance, whose maps are to be of this layout.
    ///
    /// # Errors
    ///
    /// `Layout`, and where the record makes no sense.
    pub fn read(instance: &Instance, layout: u32) -> Result<Self, RecordError> {
        let found = record::read::<Header>(instance)?.layout;
        if found != layout {
            let detach = instance.detach_command();
            return Err(RecordError::Layout { name: instance.name.clone(), found, layout, detach });
        }
        Ok(record::read(instance)?)
    }
}

impl<S> Record<S> {
    /// The interface that the instance was attached to.
    pub fn dev(&self) -> &str {
        self.ports.first().map_or("?", |port| &port.dev)
    }
}

/// Why a record could not be read.
#[derive(Debug, Error)]
pub enum RecordError {
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(
        "instance {name} has maps of layout {found}, and this build of lb needs layout {layout}; `{detach}`, then attach anew"
    )]
    Layout { name: String, found: u32, layout: u32, detach: String },
}

/// What to attach to one interface.
#[derive(Clone, Debug)]
pub struct Request {
    pub group: &'static str,
    /// That of the interface, as far as pins allow it, if `None`.
    pub name: Option<String>,
    pub dev: String,
    pub mode: Mode,
    /// The network namespace as it was given on the command line.
    pub netns: Option<String>,
    /// Whether an instance of this name that is attached already is upgraded in place.
    pub replace: bool,
    /// Of the maps.
    pub layout: u32,
}

/// What came of an attach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    pub instance: Instance,
    pub interface: Interface,
    /// Whether an instance was upgraded in place.
    pub replaced: bool,
    /// What the user should know and mend, a line each.
    pub warnings: Vec<String>,
}

/// Why nothing was attached.
#[derive(Debug, Error)]
pub enum AttachError {
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Xdp(#[from] XdpError),
    /// What only the companion itself knows.
    #[error(transparent)]
    Companion(Box<dyn std::error::Error + Send + Sync>),
    #[error(
        "--mode hw: network cards take only small hash and array maps, and this datapath needs per-CPU maps; use --mode drv"
    )]
    Offload,
    #[error(
        "an instance named {name} is attached already, to {dev}{place}; `lb {group} attach --replace` upgrades it in place, `{detach}` removes it, --name gives this one another name"
    )]
    Taken { name: String, group: &'static str, dev: String, place: String, detach: String },
    #[error(
        "--replace keeps the interface and the mode: instance {name} is on {found}, and this command line says {wanted}; `{detach}` first, or give this one another --name"
    )]
    Other { name: String, found: String, wanted: String, detach: String },
    #[error(
        "instance {name} is attached{place}, but not to the {dev} that is here; give this one another --name, or `{detach}` and attach anew"
    )]
    Elsewhere { name: String, place: String, dev: String, detach: String },
    #[error(
        "cannot replace the program on {dev}: {source}; `lb {group} attach --replace` once more completes the upgrade"
    )]
    Replace { dev: String, group: &'static str, source: io::Error },
}

/// A program that is loaded and told all that it has to know.
#[derive(Debug)]
pub struct Loaded<S> {
    pub program: Program,
    pub maps: object::Maps,
    /// What the record says of it.
    pub settings: S,
    pub warnings: Vec<String>,
}

/// What an upgrade in place keeps.
#[derive(Clone, Debug)]
pub struct Kept {
    pub instance: Instance,
    /// Its interfaces but for its own, as far as their programs are still there.
    pub ports: Vec<Port>,
}

/// Attaches a program to an interface as `request` says.
///
/// `load` loads it for this interface, of the network namespace that it is called in, anew or on the maps of an instance. `more`
/// attaches what else there is to attach.
///
/// # Errors
///
/// Each [`AttachError`]; then the interface is as it was, and nothing is pinned. The exception is `Replace`.
pub fn attach<S: Serialize>(
    root: &Root,
    request: &Request,
    load: impl FnOnce(&Interface, Option<&Kept>) -> Result<Loaded<S>, AttachError> + Send,
    more: impl FnOnce(&Interface, Option<&Kept>) -> Result<Vec<(Port, Link)>, AttachError> + Send,
) -> Result<Attached, AttachError> {
    netns::within(request.netns.as_deref(), || attach_here(root, request, load, more))?
}

fn attach_here<S: Serialize>(
    root: &Root,
    request: &Request,
    load: impl FnOnce(&Interface, Option<&Kept>) -> Result<Loaded<S>, AttachError>,
    more: impl FnOnce(&Interface, Option<&Kept>) -> Result<Vec<(Port, Link)>, AttachError>,
) -> Result<Attached, AttachError> {
    let interface = Interface::find(&request.dev)?;
    interface.mac()?;
    if request.mode == Mode::Hw {
        return Err(AttachError::Offload);
    }
    let name = request.name.clone().unwrap_or_else(|| default_name(&interface.name));
    let instance = root.instance(request.group, &name)?;
    let own = Port {
        dev: interface.name.clone(),
        ifindex: interface.index,
        role: DEV.into(),
        mode: Some(request.mode),
    };

    let _lock = root.lock()?;
    let old = if instance.is_whole() {
        Some(upgradable(&instance, request, &own)?)
    } else {
        if instance.exists() {
            instance.remove()?;
        }
        None
    };
    let kept = old.as_ref().map(|(kept, _)| kept);
    let loaded = load(&interface, kept)?;
    let mut new = Vec::new();
    if old.is_none() {
        new.push((own.clone(), Link::attach(&loaded.program, &interface, request.mode)?));
    }
    let others = more(&interface, kept)?;
    let mut ports = vec![own];
    ports.extend(kept.into_iter().flat_map(|kept| kept.ports.clone()));
    ports.extend(others.iter().map(|(port, _)| port.clone()));
    new.extend(others);
    let record = Record {
        layout: request.layout,
        netns: request.netns.clone(),
        namespace: netns::identity(),
        ports,
        settings: loaded.settings,
    };

    if let Some((_, link)) = &old {
        pin_links(&instance, &new)?;
        link.replace(&loaded.program).map_err(|source| AttachError::Replace {
            dev: interface.name.clone(),
            group: request.group,
            source,
        })?;
        record::write(&instance, &record)?;
    } else {
        let mut maps = loaded.maps;
        let pinned = instance.create().map_err(AttachError::from).and_then(|()| {
            maps.pin(&instance)?;
            pin_links(&instance, &new)?;
            Ok(record::write(&instance, &record)?)
        });
        if let Err(error) = pinned {
            // The links that have a pin would stay.
            let _ = instance.remove();
            return Err(error);
        }
    }
    Ok(Attached { instance, interface, replaced: old.is_some(), warnings: loaded.warnings })
}

fn pin_links(instance: &Instance, links: &[(Port, Link)]) -> Result<(), XdpError> {
    links.iter().try_for_each(|(port, link)| link.pin(&port.pin(instance)))
}

/// What `request` keeps of an instance that it may upgrade, and the link to its interface.
fn upgradable(instance: &Instance, request: &Request, own: &Port) -> Result<(Kept, Link), AttachError> {
    let record = Record::<IgnoredAny>::read(instance, request.layout);
    let name = instance.name.clone();
    let detach = instance.detach_command();
    let place = |record: &Record<_>| {
        record.netns.as_ref().map_or(String::new(), |netns| format!(" in the namespace {netns}"))
    };
    if !request.replace {
        // Whatever its layout, it is there.
        let (dev, place) = record
            .map_or(("an interface".into(), String::new()), |record| (record.dev().into(), place(&record)));
        return Err(AttachError::Taken { name, group: request.group, dev, place, detach });
    }
    let record = record?;
    let found = record.ports.first().cloned().unwrap_or_else(|| own.clone());
    if (&found.dev, found.mode) != (&own.dev, own.mode) {
        let describe =
            |port: &Port| format!("{} {}", port.dev, port.mode.map_or("?".into(), |mode| mode.to_string()));
        return Err(AttachError::Other { name, found: describe(&found), wanted: describe(own), detach });
    }
    // Numbers are of one namespace: the interface that is here may be another.
    let Some(link) = Link::open_here(&own.pin(instance), own.ifindex) else {
        return Err(AttachError::Elsewhere { name, place: place(&record), dev: own.dev.clone(), detach });
    };
    let ports: Vec<Port> =
        record.ports.into_iter().skip(1).filter(|port| port.is_attached(instance)).collect();
    // Others have lost their interface or their program, or are of an upgrade that was cut short. Their names may be wanted.
    let known: Vec<_> = [own].into_iter().chain(&ports).map(|port| port.pin(instance)).collect();
    for path in instance.links()?.into_iter().filter(|path| !known.contains(path)) {
        instance.remove_link(&path)?;
    }
    Ok((Kept { instance: instance.clone(), ports }, link))
}

/// The name of an instance after its interface: bpffs takes no dots.
pub fn default_name(dev: &str) -> String {
    let lawful = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    dev.chars().take(31).map(lawful).collect()
}

/// Why an instance was not found.
#[derive(Debug, Error)]
pub enum FindError {
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error("no lb {group} is attached to {dev}{place}{known}")]
    Nobody { group: &'static str, dev: String, place: String, known: String },
    #[error(
        "several instances of lb {group} are on interfaces named {dev}: {names}; say which one by --name"
    )]
    Several { group: &'static str, dev: String, names: String },
}

/// The instance on an interface; with `netns` on one of that network namespace. Its interface need not be there any more.
///
/// # Errors
///
/// Each [`FindError`].
pub fn find(root: &Root, group: &'static str, dev: &str, netns: Option<&str>) -> Result<Instance, FindError> {
    // An alternative name is as good as any.
    let (namespace, proper) = netns::within(netns, || {
        (netns::identity(), Interface::find(dev).map_or(dev.into(), |found| found.name))
    })?;
    let mut known = Vec::new();
    let mut found = Vec::new();
    for instance in root.instances()?.into_iter().filter(|instance| instance.group == group) {
        known.push(instance.name.clone());
        let is_it = match record::read::<Record<IgnoredAny>>(&instance) {
            Ok(record) => record.dev() == proper && (netns.is_none() || record.namespace == namespace),
            // It cannot say where it is, if it is anywhere.
            Err(_) => instance.name == default_name(dev),
        };
        if is_it {
            found.push(instance);
        }
    }
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(FindError::Nobody {
            group,
            dev: dev.into(),
            place: netns.map_or(String::new(), |netns| format!(" in the namespace {netns}")),
            known: if known.is_empty() { String::new() } else { format!("; there is {}", known.join(", ")) },
        }),
        _ => Err(FindError::Several {
            group,
            dev: dev.into(),
            names: found.iter().map(|instance| instance.name.as_str()).collect::<Vec<_>>().join(", "),
        }),
    }
}

/// The status of an instance of a companion.
///
/// # Errors
///
/// Where its record cannot be read.
pub fn status(instance: &Instance) -> Result<Status, PinError> {
    let record = record::read::<Record<Map<String, Value>>>(instance)?;
    Ok(Status::new(instance, &record.ports, record.netns, record.settings))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_are_named_after_their_interfaces() {
        assert_eq!(default_name("eth0"), "eth0");
        assert_eq!(default_name("eth0.10"), "eth0_10");
        assert_eq!(default_name(&"x".repeat(40)).len(), 31);
    }
}
