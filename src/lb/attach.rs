//! Bringing the balancer onto its interfaces, upgrading it in place, and taking it off.
//!
//! An attach is all or nothing. Links detach by themselves when the command ends before they are pinned, and the
//! pin that says "whole" is made last: whatever cuts an attach short, the next attach or detach finds the rest
//! and clears it away.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use macaddr::MacAddr6;
use thiserror::Error;

use super::backend::{self, DEFAULT_WEIGHT, NewBackend};
use super::datapath::{BACKENDS_MAX, Datapath, DatapathError, INGRESS_MAX, Maps, Settings};
use super::skeleton::types;
use super::{GROUP, interfaces};
use crate::iflist::Listed;
use crate::kernel::interface::{self, Interface, InterfaceError};
use crate::kernel::neighbour;
use crate::kernel::netns::{self, NetnsError};
use crate::kernel::pins::{Instance, PinError, Root};
use crate::kernel::table::TableError;
use crate::kernel::value::{copy_text, text};
use crate::kernel::xdp::{self, Link, Mode, XdpError};

/// How long backends have to say which MAC owns the VIP.
const RESOLVE_TIMEOUT: Duration = Duration::from_millis(1200);

/// What to attach.
#[derive(Clone, Debug)]
pub struct Request {
    pub name: String,
    pub ingress: Vec<Listed>,
    pub egress: Vec<Listed>,
    pub mode: Mode,
    pub settings: Settings,
    /// Whether an instance of that name is to be upgraded in place.
    pub replace: bool,
}

/// What came of an attach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
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
    Datapath(#[from] DatapathError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Xdp(#[from] XdpError),
    #[error("{0} is an ingress and an egress; a frame would go back where it came from: name it once")]
    BothSides(String),
    #[error("{0} and {1} are one interface; name it once")]
    SameInterface(String, String),
    #[error(
        "--mode hw: network cards take only small hash and array maps, and this datapath needs {0}; use --mode drv"
    )]
    Offload(String),
    #[error("{given} {what} interfaces are more than the {most} there can be")]
    TooMany { what: &'static str, given: usize, most: usize },
    #[error(
        "{first} and {second} have a backend of one MAC, {mac}, and nothing could tell them apart; give each its own as NAME=MAC"
    )]
    SharedMac { mac: String, first: String, second: String },
    #[error(
        "an instance named {name} is attached already; `lb attach --replace` upgrades it in place, `lb detach --name {name}` removes it, --name gives this one another name"
    )]
    Taken { name: String },
    #[error(
        "--replace keeps the interfaces and the mode: instance {name} has {found}, and this command line says {wanted}; detach first"
    )]
    OtherInterfaces { name: String, found: String, wanted: String },
    #[error(
        "instance {name} is attached{place}, but not to the {interface} that is here; give this one another --name, or `lb detach --name {name}` and attach anew"
    )]
    Elsewhere { name: String, place: String, interface: String },
    #[error(
        "cannot replace the program on {interface}: {source}; `lb attach --replace` once more completes the upgrade"
    )]
    Replace { interface: String, source: io::Error },
}

/// Attaches as `request` says.
///
/// # Errors
///
/// Each [`AttachError`]; then every interface is as it was, and nothing is pinned. The exception is `Replace`,
/// where some interfaces may have the new program already, which works on the same maps as the old.
pub fn attach(root: &Root, request: &Request) -> Result<Attached, AttachError> {
    validate(request)?;
    netns::within(request.settings.netns.as_deref(), || attach_here(root, request))?
}

/// What can be said of a request without asking the kernel.
///
/// # Errors
///
/// Each error that is wrong usage.
pub fn validate(request: &Request) -> Result<(), AttachError> {
    if let Some(both) = request.ingress.iter().find(|i| request.egress.iter().any(|e| e.name == i.name)) {
        return Err(AttachError::BothSides(both.name.clone()));
    }
    for (what, list, most) in
        [("ingress", &request.ingress, INGRESS_MAX), ("egress", &request.egress, BACKENDS_MAX)]
    {
        if list.len() > most {
            return Err(AttachError::TooMany { what, given: list.len(), most });
        }
    }
    check_macs(request.egress.iter().map(|listed| (listed.name.clone(), listed.mac)))
}

/// An interface and what it is to be.
struct Port {
    interface: Interface,
    role: types::lb_role,
    /// Key of the interface in the map of its side.
    index: u16,
    mac: Option<MacAddr6>,
}

impl Port {
    fn is_egress(&self) -> bool {
        self.role == types::lb_role::LB_EGRESS
    }
}

fn attach_here(root: &Root, request: &Request) -> Result<Attached, AttachError> {
    let mut ports = find_ports(request)?;
    let instance = root.instance(GROUP, &request.name)?;
    if request.mode == Mode::Hw {
        return Err(AttachError::Offload("device, LRU and per-CPU maps".into()));
    }

    let lock = root.lock()?;
    if instance.exists() {
        if instance.is_whole() {
            if !request.replace {
                return Err(AttachError::Taken { name: request.name.clone() });
            }
            let warnings = replace(&instance, request, &ports)?;
            return Ok(Attached { replaced: true, warnings });
        }
        instance.remove()?;
    }

    let mut warnings = resolve(&request.settings.vips, &mut ports);
    warnings.extend(interface_warnings(&ports, request.mode));
    let egress = ports.iter().filter(|port| port.is_egress());
    check_macs(egress.map(|port| (port.interface.name.clone(), port.mac)))?;

    let mut datapath = Datapath::load(&request.settings)?;
    fill(&datapath.maps, &ports, request.mode)?;
    let links = link(&datapath, &ports, request.mode)?;
    if let Err(error) = pin(&instance, &mut datapath, &links) {
        // The links that have a pin would stay.
        let _ = instance.remove();
        return Err(error);
    }
    drop(lock);
    Ok(Attached { replaced: false, warnings })
}

/// What stands in the way of frames at these interfaces.
fn interface_warnings(ports: &[Port], mode: Mode) -> Vec<String> {
    let mut warnings = Vec::new();
    for Port { interface, .. } in ports {
        let name = &interface.name;
        if !interface.is_up().unwrap_or(true) {
            warnings.push(format!("{name} is down: no frame passes it; mend: ip link set dev {name} up"));
        }
        // Frames keep the MAC of the far side: a backend's on the way there, a client router's on the way back.
        if interface.is_card() && !interface.is_promiscuous().unwrap_or(true) {
            warnings.push(format!(
                "{name} is not promiscuous: a card drops frames that are not for its own MAC, as all here are; mend: ip link set dev {name} promisc on"
            ));
        }
    }
    let interfaces: Vec<Interface> = ports.iter().map(|port| port.interface.clone()).collect();
    warnings.extend(interface::veth_warnings(&interfaces, mode));
    warnings
}

/// Refuses two backends of one MAC, which nothing could tell apart.
fn check_macs(backends: impl Iterator<Item = (String, Option<MacAddr6>)>) -> Result<(), AttachError> {
    let mut seen: Vec<(String, MacAddr6)> = Vec::new();
    for (name, mac) in backends {
        let Some(mac) = mac else { continue };
        if let Some((first, _)) = seen.iter().find(|(_, other)| *other == mac) {
            return Err(AttachError::SharedMac {
                mac: mac.to_string().to_lowercase(),
                first: first.clone(),
                second: name,
            });
        }
        seen.push((name, mac));
    }
    Ok(())
}

fn find_ports(request: &Request) -> Result<Vec<Port>, AttachError> {
    let mut ports: Vec<Port> = Vec::new();
    let mut seen: Vec<(u32, String)> = Vec::new();
    // Egress first: when the first client's frame comes, its way back is there.
    for (role, list) in
        [(types::lb_role::LB_EGRESS, &request.egress), (types::lb_role::LB_INGRESS, &request.ingress)]
    {
        for (index, listed) in (0u16..).zip(list) {
            let interface = Interface::find(&listed.name)?;
            // Two names, as an alternative name is one, may be of one interface.
            if let Some((_, other)) = seen.iter().find(|(other, _)| *other == interface.index) {
                return Err(AttachError::SameInterface(other.clone(), listed.name.clone()));
            }
            seen.push((interface.index, listed.name.clone()));
            ports.push(Port { interface, role, index, mac: listed.mac });
        }
    }
    Ok(ports)
}

/// Asks behind each egress interface without a MAC which one owns the first VIP.
fn resolve(vips: &[IpAddr], ports: &mut [Port]) -> Vec<String> {
    let mut unknown: Vec<&mut Port> =
        ports.iter_mut().filter(|port| port.is_egress() && port.mac.is_none()).collect();
    if unknown.is_empty() {
        return Vec::new();
    }
    let Some(&vip) = vips.first() else {
        let names: Vec<&str> = unknown.iter().map(|port| port.interface.name.as_str()).collect();
        return vec![format!(
            "no MAC is known behind {}: a backend gets clients only when it has sent a frame, such as an answer to ARP; mend: --vip ADDR asks the backends now, NAME=MAC says it",
            names.join(", ")
        )];
    };
    let asked: Vec<Interface> = unknown.iter().map(|port| port.interface.clone()).collect();
    let answers = neighbour::resolve_all(&asked, vip, RESOLVE_TIMEOUT);
    let mut warnings = Vec::new();
    for (port, answer) in unknown.iter_mut().zip(answers) {
        let name = &port.interface.name;
        match answer {
            Ok(Some(mac)) => port.mac = Some(mac),
            Ok(None) => warnings.push(format!(
                "nobody behind {name} owns {vip}: it gets no packets until it sends a frame; mend: bring the backend up, or give its MAC as {name}=MAC"
            )),
            Err(error) => warnings.push(format!(
                "cannot ask behind {name} who owns {vip}: {error}; mend: give the backend's MAC as {name}=MAC"
            )),
        }
    }
    warnings
}

fn fill(maps: &Maps, ports: &[Port], mode: Mode) -> Result<(), AttachError> {
    let backends: Vec<NewBackend> = ports
        .iter()
        .filter(|port| port.is_egress())
        .map(|port| NewBackend { name: port.interface.name.clone(), mac: port.mac, weight: DEFAULT_WEIGHT })
        .collect();
    backend::install(maps, &backends)?;
    for port in ports {
        let side = if port.is_egress() { &maps.egress_ports } else { &maps.ingress_ports };
        side.set(&port.index.into(), &port.interface.index)?;
        let mut entry = types::lb_interface {
            ifindex: port.interface.index,
            index: port.index,
            role: port.role,
            mode: mode.attached(),
            ..Default::default()
        };
        copy_text(&mut entry.name, &port.interface.name);
        interfaces::insert(maps, entry)?;
    }
    Ok(())
}

fn link<'a>(datapath: &Datapath, ports: &'a [Port], mode: Mode) -> Result<Vec<(&'a Port, Link)>, XdpError> {
    ports
        .iter()
        .map(|port| {
            let program = if port.is_egress() { &datapath.backend } else { &datapath.client };
            Ok((port, Link::attach(program, &port.interface, mode)?))
        })
        .collect()
}

fn pin(instance: &Instance, datapath: &mut Datapath, links: &[(&Port, Link)]) -> Result<(), AttachError> {
    instance.create()?;
    datapath.pin_maps(instance)?;
    for (port, link) in links {
        link.pin(&instance.link_pin(interfaces::role_name(port.role), port.interface.index))?;
    }
    datapath.pin_config(instance)?;
    Ok(())
}

/// Puts this build's programs, with this request's settings, in the place of an instance's.
fn replace(instance: &Instance, request: &Request, ports: &[Port]) -> Result<Vec<String>, AttachError> {
    let maps = Maps::open(instance)?;
    let found = interfaces::list(&maps)?;
    let found_texts =
        found.iter().map(|i| describe(i.role, &text(&i.name), Mode::from_attached(i.mode))).collect();
    let wanted_texts =
        ports.iter().map(|port| describe(port.role, &port.interface.name, Some(request.mode))).collect();
    check_same(&instance.name, found_texts, wanted_texts)?;
    let links = ports
        .iter()
        .map(|port| {
            link_here(instance, port).ok_or_else(|| {
                let netns = maps.config().map(|config| text(&config.lb_config.netns)).unwrap_or_default();
                AttachError::Elsewhere {
                    name: instance.name.clone(),
                    place: if netns.is_empty() { netns } else { format!(" in the namespace {netns}") },
                    interface: port.interface.name.clone(),
                }
            })
        })
        .collect::<Result<Vec<Link>, AttachError>>()?;

    let given = |dev: &str| ports.iter().find(|port| port.is_egress() && port.interface.name == dev)?.mac;
    let backends = backend::list(&maps)?;
    check_macs(backends.iter().map(|known| (known.name.clone(), given(&known.dev).or(known.mac))))?;

    let mut datapath = Datapath::load_upgrade(&request.settings, instance)?;
    for port in ports.iter().filter(|port| port.is_egress()) {
        let Some(mac) = port.mac else { continue };
        let entry = found.iter().find(|i| i.ifindex == port.interface.index);
        backend::set_mac(&datapath.maps, entry.map_or(0, |entry| entry.index.into()), mac)?;
    }
    for (port, link) in ports.iter().zip(&links) {
        let program = if port.is_egress() { &datapath.backend } else { &datapath.client };
        link.replace(program)
            .map_err(|source| AttachError::Replace { interface: port.interface.name.clone(), source })?;
    }
    datapath.pin_config(instance)?;

    let mut warnings = interface_warnings(ports, request.mode);
    // The programs that are there take every answer, so nobody can be asked now.
    for known in backend::list(&datapath.maps)?.iter().filter(|known| known.mac.is_none()) {
        warnings.push(format!(
            "no MAC is known behind {0}: it gets no packets until it sends a frame; mend: {0}=MAC says it",
            known.dev
        ));
    }
    Ok(warnings)
}

/// An interface and what it is to be, as an error names it.
fn describe(role: types::lb_role, name: &str, mode: Option<Mode>) -> String {
    format!("{} {name} {}", interfaces::role_name(role), mode.map_or("?".into(), |mode| mode.to_string()))
}

/// Whether the interfaces of an instance and of a request go by the same descriptions, in whatever order.
fn check_same(name: &str, mut found: Vec<String>, mut wanted: Vec<String>) -> Result<(), AttachError> {
    found.sort();
    wanted.sort();
    if found == wanted {
        return Ok(());
    }
    Err(AttachError::OtherInterfaces {
        name: name.into(),
        found: found.join(", "),
        wanted: wanted.join(", "),
    })
}

/// The instance's link to an interface, if it is to the one that is here. A name and a number do not tell: the interface
/// may have been made anew, or be one of another network namespace.
fn link_here(instance: &Instance, port: &Port) -> Option<Link> {
    let path = instance.link_pin(interfaces::role_name(port.role), port.interface.index);
    let link = Link::open(&path).ok()?;
    let program = link.info().ok()?.program_id;
    let here = xdp::attached_programs(port.interface.index).ok()?;
    here.iter().any(|(_, id)| *id == program).then_some(link)
}

/// Why an instance could not be detached.
#[derive(Debug, Error)]
pub enum DetachError {
    #[error("no instance named {name} is attached{known}")]
    Unknown { name: String, known: String },
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(
        "{interface} still has XDP program {program} of instance {name}; `ip link set dev {interface} xdp off` removes it"
    )]
    StillThere { interface: String, program: u32, name: String },
}

/// Takes an instance off its interfaces and removes its pins; whether or not its attach came to its end, and
/// whether or not its interfaces and their namespace are still there.
///
/// # Errors
///
/// Where there is no such instance, where the kernel refuses, or where something that is not lb's is among its pins.
pub fn detach(root: &Root, name: &str) -> Result<(), DetachError> {
    let instance = root.instance(GROUP, name)?;
    let lock = root.lock_existing()?;
    if lock.is_none() || !instance.exists() {
        return Err(DetachError::Unknown { name: name.into(), known: known_names(root)? });
    }
    remove(&instance)
}

/// The end of a message about a name that is unknown: which ones are known.
///
/// # Errors
///
/// Where the root cannot be read.
pub fn known_names(root: &Root) -> Result<String, PinError> {
    let instances = root.instances()?.into_iter().filter(|instance| instance.group == GROUP);
    let names: Vec<String> = instances.map(|instance| instance.name).collect();
    Ok(if names.is_empty() { String::new() } else { format!("; there is {}", names.join(", ")) })
}

/// Detaches all instances of the balancer. Returns their names.
///
/// # Errors
///
/// As [`detach`], for the first instance that cannot be detached; all others are gone.
pub fn detach_all(root: &Root) -> Result<Vec<String>, DetachError> {
    let Some(_lock) = root.lock_existing()? else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    let mut failed = Ok(());
    for instance in root.instances()?.into_iter().filter(|instance| instance.group == GROUP) {
        match remove(&instance) {
            Ok(()) => names.push(instance.name),
            Err(error) => failed = failed.and(Err(error)),
        }
    }
    failed.map(|()| names)
}

fn remove(instance: &Instance) -> Result<(), DetachError> {
    let mut programs = HashSet::new();
    let mut ifindexes = Vec::new();
    for path in instance.links()? {
        if let Ok(info) = Link::open(&path).and_then(|link| link.info()) {
            programs.insert(info.program_id);
            ifindexes.push(info.ifindex);
        }
    }
    instance.remove()?;
    // The kernel is asked, not trusted. Interfaces of other namespaces cannot be asked from here, and need not
    // be: their links were detached by the call that says so.
    for ifindex in ifindexes {
        let attached = xdp::attached_programs(ifindex).unwrap_or_default();
        if let Some((_, program)) = attached.iter().find(|(_, id)| programs.contains(id)) {
            let interface = Interface::by_index(ifindex).map_or(ifindex.to_string(), |found| found.name);
            return Err(DetachError::StillThere {
                interface,
                program: *program,
                name: instance.name.clone(),
            });
        }
    }
    Ok(())
}
