//! Changes to an instance that is attached: backends that come, go and change, and the interfaces that they bring.
//!
//! Each change is a list of backends as it is to be, which is checked as a whole (`Spec`, [`check`]) before anything is
//! written. Who changes holds the lock of the pins' root.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use macaddr::MacAddr6;
use thiserror::Error;

use super::backend::{self, Backend, NewBackend, Wanted};
use super::datapath::{BACKENDS_MAX, DatapathError, Maps};
use super::interfaces;
use super::schedule::{self, WEIGHT_MAX};
use super::session::Sessions;
use super::skeleton::types;
use crate::kernel::interface::{Interface, InterfaceError};
use crate::kernel::neighbour;
use crate::kernel::netns::{self, NetnsError};
use crate::kernel::pins::{Instance, PinError};
use crate::kernel::program::Program;
use crate::kernel::table::TableError;
use crate::kernel::value::{copy_text, text};
use crate::kernel::veth;
use crate::kernel::xdp::{Link, Mode, XdpError};

/// How long backends have to say which MAC owns the VIP.
pub(super) const RESOLVE_TIMEOUT: Duration = Duration::from_millis(1200);

/// A backend as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub name: String,
    /// The interface that it is behind.
    pub dev: String,
    /// `None`: the one that it has or will be learned to have.
    pub mac: Option<MacAddr6>,
    pub weight: u32,
    /// What its SPIs begin with; only where labels are in use.
    pub label: Option<u32>,
    /// `None`: as it is, active if it is new.
    pub wanted: Option<Wanted>,
}

impl Spec {
    /// What to set up for a backend that is new, behind a port.
    pub(super) fn at(&self, port: u32) -> NewBackend {
        NewBackend {
            name: self.name.clone(),
            port,
            mac: self.mac,
            weight: self.weight,
            label: self.label,
            wanted: self.wanted.unwrap_or_default(),
        }
    }
}

impl From<&Backend> for Spec {
    fn from(backend: &Backend) -> Self {
        Self {
            name: backend.name.clone(),
            dev: backend.dev.clone(),
            mac: backend.mac,
            weight: backend.weight,
            label: backend.label,
            wanted: Some(backend.wanted),
        }
    }
}

/// Why backends cannot be so.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SpecError {
    #[error("{given} backends are more than the {BACKENDS_MAX} there can be")]
    TooMany { given: usize },
    #[error("bad backend name {name:?}: 1 to 31 letters, digits, '.', '-', '_' and ':'")]
    Name { name: String },
    #[error("two backends are named {name}; give each its own name")]
    SharedName { name: String },
    #[error("{name}: a weight is from 0 to {WEIGHT_MAX}, and {weight} is not")]
    Weight { name: String, weight: u32 },
    #[error(
        "{name}: {dev} is an ingress, and a frame would go back where it came from; put it behind another interface"
    )]
    Ingress { name: String, dev: String },
    #[error(
        "{first} and {second} have a backend of one MAC, {mac}, and nothing could tell them apart; give each its own as NAME=MAC or --mac MAC"
    )]
    SharedMac { mac: String, first: String, second: String },
    #[error(
        "{name} is one of several backends behind {dev}, which only MACs tell apart, and its own is not known; give it: --mac MAC, or `lb backend set {name} --mac MAC` if it is there already"
    )]
    NoMac { name: String, dev: String },
    #[error(
        "{name}: a label means nothing without --spi-shard; `lb attach --replace --spi-shard BITS` begins with it"
    )]
    NoLabels { name: String },
    #[error("{name}: label {label} does not fit into {bits} bits, which hold 0 to {}; attach with a greater --spi-shard", (1u64 << bits) - 1)]
    Label { name: String, label: u32, bits: u32 },
    #[error("{first} and {second} have one label, {label}; give each its own")]
    SharedLabel { label: u32, first: String, second: String },
    #[error("{given} backends do not fit into labels of {bits} bits, which tell {} apart; attach with a greater --spi-shard", 1u64 << bits)]
    TooFewLabels { given: usize, bits: u32 },
}

/// Whether there can be such backends, as far as the kernel need not be asked. `label_bits` is 0 without labels.
///
/// # Errors
///
/// The first thing that is wrong with them.
pub fn check(backends: &[Spec], ingress: &[String], label_bits: u32) -> Result<(), SpecError> {
    if backends.len() > BACKENDS_MAX {
        return Err(SpecError::TooMany { given: backends.len() });
    }
    if label_bits > 0 && backends.len() as u64 > 1 << label_bits {
        return Err(SpecError::TooFewLabels { given: backends.len(), bits: label_bits });
    }
    for (position, this) in backends.iter().enumerate() {
        let (name, before) = (this.name.clone(), &backends[..position]);
        let lawful = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
        // A backend that is named after its interface has what the kernel takes for a name.
        if name != this.dev && (name.is_empty() || name.len() > 31 || !name.chars().all(lawful)) {
            return Err(SpecError::Name { name });
        }
        if before.iter().any(|other| other.name == name) {
            return Err(SpecError::SharedName { name });
        }
        if this.weight > WEIGHT_MAX {
            return Err(SpecError::Weight { name, weight: this.weight });
        }
        if ingress.contains(&this.dev) {
            return Err(SpecError::Ingress { name, dev: this.dev.clone() });
        }
        if let Some(mac) = this.mac
            && let Some(first) = before.iter().find(|other| other.mac == Some(mac))
        {
            let mac = mac.to_string().to_lowercase();
            return Err(SpecError::SharedMac { mac, first: first.name.clone(), second: name });
        }
        let alone = backends.iter().filter(|other| other.dev == this.dev).count() == 1;
        if !alone && this.mac.is_none() {
            return Err(SpecError::NoMac { name, dev: this.dev.clone() });
        }
        let Some(label) = this.label else { continue };
        if label_bits == 0 {
            return Err(SpecError::NoLabels { name });
        }
        if u64::from(label) >= 1 << label_bits {
            return Err(SpecError::Label { name, label, bits: label_bits });
        }
        if let Some(first) = before.iter().find(|other| other.label == Some(label)) {
            return Err(SpecError::SharedLabel { label, first: first.name.clone(), second: name });
        }
    }
    Ok(())
}

/// Gives each backend that has no label the lowest that is free; where labels are not in use, it takes all away.
pub fn assign_labels(backends: &mut [Spec], label_bits: u32) {
    if label_bits == 0 {
        backends.iter_mut().for_each(|backend| backend.label = None);
        return;
    }
    let taken: BTreeSet<u32> = backends.iter().filter_map(|backend| backend.label).collect();
    let mut free = (0..).filter(|label| !taken.contains(label));
    for backend in backends.iter_mut().filter(|backend| backend.label.is_none()) {
        backend.label = free.next();
    }
}

/// Why nothing was changed.
#[derive(Debug, Error)]
pub enum ChangeError {
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("there is no backend {name}; there is {known}")]
    Unknown { name: String, known: String },
    #[error("there is a backend {name} already; `lb backend set {name}` changes it")]
    Taken { name: String },
    #[error("{name} is {state} already")]
    Already { name: String, state: &'static str },
    #[error(
        "{name} has {sessions} session{}; `lb backend remove {name} --wait` drains it first, --force ends them, `lb backend drain {name}` keeps new clients away", if *sessions == 1 { "" } else { "s" }
    )]
    HasSessions { name: String, sessions: usize },
    #[error(
        "{name} is the only backend, and without it every packet is dropped; --force removes it all the same, `lb detach` the balancer"
    )]
    Last { name: String },
    #[error(
        "instance {name} is attached{place}, but not to the {interface} that is here; --netns says which namespace is meant"
    )]
    Elsewhere { name: String, place: String, interface: String },
    #[error("instance {name} has no link to any of its {role} interfaces; detach, then attach anew")]
    NoProgram { name: String, role: &'static str },
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
}

/// An instance that is being changed.
#[derive(Debug)]
pub struct Live<'a> {
    instance: &'a Instance,
    maps: &'a Maps,
    config: types::rodata,
    /// The namespace of the interfaces.
    netns: Option<String>,
}

impl<'a> Live<'a> {
    /// Looks at an instance that is whole, whose root the caller has locked. `netns` says where its interfaces are
    /// if not where they were at its attach.
    ///
    /// # Errors
    ///
    /// What the kernel says about the maps.
    pub fn new(instance: &'a Instance, maps: &'a Maps, netns: Option<&str>) -> Result<Self, ChangeError> {
        let config = maps.config()?;
        let attached = text(&config.lb_config.netns);
        let netns = netns.map(ToOwned::to_owned).or((!attached.is_empty()).then_some(attached));
        Ok(Self { instance, maps, config, netns })
    }

    /// How many bits of SPIs name backends; 0 if none do.
    pub fn label_bits(&self) -> u32 {
        self.config.lb_config.label_bits
    }

    /// The backends that there are.
    ///
    /// # Errors
    ///
    /// What the kernel says about the maps.
    pub fn backends(&self) -> Result<Vec<Backend>, ChangeError> {
        Ok(backend::list(self.maps)?)
    }

    /// The backend of that name.
    ///
    /// # Errors
    ///
    /// Where there is none, with the names that there are.
    pub fn find(&self, name: &str) -> Result<Backend, ChangeError> {
        find(self.maps, name)
    }

    fn ingress(&self) -> Result<Vec<String>, ChangeError> {
        let ingress = |entry: &types::lb_interface| entry.role == types::lb_role::LB_INGRESS;
        let all = interfaces::list(self.maps)?;
        Ok(all.iter().filter(|entry| ingress(entry)).map(|entry| text(&entry.name)).collect())
    }

    fn check(&self, specs: &[Spec]) -> Result<(), ChangeError> {
        Ok(check(specs, &self.ingress()?, self.label_bits())?)
    }

    /// Adds a backend. A label that is not given is the lowest that is free. Returns what the user should know and mend.
    ///
    /// # Errors
    ///
    /// Each [`ChangeError`]; then everything is as it was.
    pub fn add(&self, new: Spec) -> Result<(Backend, Vec<String>), ChangeError> {
        let name = new.name.clone();
        let there = self.backends()?;
        // A change that was cut short may have left an interface.
        self.unplug_idle(&there)?;
        if there.iter().any(|other| other.name == name) {
            return Err(ChangeError::Taken { name });
        }
        let mut specs: Vec<Spec> = there.iter().map(Spec::from).chain([new]).collect();
        if self.label_bits() > 0 {
            // Before labels are given to those without one: the error about too many is the clearer one.
            self.check(&specs)?;
            assign_labels(&mut specs, self.label_bits());
        }
        let mut spec = specs.pop().expect("the new one is the last");
        let warnings = netns::within(self.netns.as_deref(), || -> Result<Vec<String>, ChangeError> {
            let (interface, port) = self.port_of(&spec.dev)?;
            // By another of its names, perhaps.
            spec.dev = interface.name.clone();
            let mut warnings = Vec::new();
            if port.is_none() && spec.mac.is_none() {
                let (mac, warning) = resolve(&self.vips(), &interface);
                spec.mac = mac;
                warnings.extend(warning);
            }
            specs.push(spec);
            self.check(&specs)?;
            let spec = specs.last().expect("it was pushed");
            let index = free_index(&there.iter().map(|other| other.index).collect::<Vec<_>>());
            let (port, plugged) = match port {
                Some(port) => (port, false),
                None => {
                    let (egress, mode) = (types::lb_role::LB_EGRESS, self.mode()?);
                    let port = self.plug(egress, &interface, &self.program(egress)?, mode)?;
                    warnings.extend(interface_warnings(std::slice::from_ref(&interface), mode));
                    (port, true)
                }
            };
            let put = || -> Result<(), TableError> {
                backend::clear(self.maps, index)?;
                backend::put(self.maps, index, &spec.at(port))?;
                backend::reschedule(self.maps)
            };
            if let Err(error) = put() {
                // What was written is taken back as far as the kernel lets us; its own error is the one to show.
                if let Ok(half) = self.find(&name) {
                    let _ = self.take_out(&[half], &there);
                }
                if plugged {
                    let _ = self.unplug(types::lb_role::LB_EGRESS, interface.index);
                }
                return Err(error.into());
            }
            self.unplug_idle(&self.backends()?)?;
            Ok(warnings)
        })??;
        Ok((self.find(&name)?, warnings))
    }

    /// The backend of that name, if there is another one to take its place.
    ///
    /// # Errors
    ///
    /// Where there is none, or it is the only one.
    pub fn check_removable(&self, name: &str) -> Result<Backend, ChangeError> {
        let found = self.find(name)?;
        if self.backends()?.len() == 1 {
            return Err(ChangeError::Last { name: name.into() });
        }
        Ok(found)
    }

    /// Removes a backend, and its interface if nothing else is behind that and it is not the last one. Returns how many sessions that ended.
    ///
    /// # Errors
    ///
    /// Without `force` where it has sessions, or is the only one.
    pub fn remove(&self, name: &str, force: bool) -> Result<usize, ChangeError> {
        let gone = if force { self.find(name)? } else { self.check_removable(name)? };
        let rest: Vec<Backend> =
            self.backends()?.into_iter().filter(|other| other.index != gone.index).collect();
        let sessions = sessions_at(self.maps, gone.index)?;
        if !force && sessions > 0 {
            return Err(ChangeError::HasSessions { name: name.into(), sessions });
        }
        let ended = self.take_out(&[gone], &rest)?;
        self.unplug_idle(&rest)?;
        Ok(ended)
    }

    /// Removes backends, but not their interfaces. `rest` are those that stay. Returns how many sessions that ended.
    pub(super) fn take_out(&self, gone: &[Backend], rest: &[Backend]) -> Result<usize, ChangeError> {
        backend::reschedule_to(self.maps, rest)?;
        for gone in gone {
            backend::set_absent(self.maps, gone.index)?;
        }
        // Packets under way may still make a session there.
        thread::sleep(schedule::SETTLE);
        let mut ended = 0;
        for gone in gone {
            ended += backend::clear(self.maps, gone.index)?;
        }
        Ok(ended)
    }

    /// Lets go of the egress interfaces that none of these backends is behind. One stays in any case: from it a later
    /// one gets its program.
    fn unplug_idle(&self, backends: &[Backend]) -> Result<(), ChangeError> {
        let egress = |entry: &types::lb_interface| entry.role == types::lb_role::LB_EGRESS;
        let all: Vec<_> = interfaces::list(self.maps)?.into_iter().filter(egress).collect();
        let mut left = all.len();
        for entry in all {
            let behind = |backend: &Backend| backend.port == u32::from(entry.index);
            if left > 1 && !backends.iter().any(behind) {
                self.unplug(entry.role, entry.ifindex)?;
                left -= 1;
            }
        }
        Ok(())
    }

    /// Says what is wanted of a backend. Returns it as it is now.
    ///
    /// # Errors
    ///
    /// Where it is so already, or there is no such backend.
    pub fn set_wanted(&self, name: &str, wanted: Wanted) -> Result<Backend, ChangeError> {
        let found = self.find(name)?;
        // One that has not answered for too long can be called back: then it has as long again.
        let called_back = wanted == Wanted::Active && found.state == backend::State::Down;
        if found.wanted == wanted && !called_back {
            return Err(ChangeError::Already { name: name.into(), state: wanted.name() });
        }
        backend::set_wanted(self.maps, found.index, wanted)?;
        backend::reschedule(self.maps)?;
        self.find(name)
    }

    /// Changes a backend to what `change` makes of it. Returns it as it is now.
    ///
    /// # Errors
    ///
    /// Each [`SpecError`]; then everything is as it was.
    pub fn set(&self, name: &str, change: impl FnOnce(&mut Spec)) -> Result<Backend, ChangeError> {
        let found = self.find(name)?;
        let all = self.backends()?;
        let mut specs: Vec<Spec> = all.iter().map(Spec::from).collect();
        let this = all.iter().position(|other| other.index == found.index).unwrap_or_default();
        change(&mut specs[this]);
        self.check(&specs)?;
        self.turn(&found, &specs[this], found.port)?;
        backend::reschedule(self.maps)?;
        self.find(name)
    }

    /// Makes a backend what `spec` says, without the schedules. Writes nothing that is so already: a MAC that was
    /// learned stays a learned one.
    pub(super) fn turn(&self, found: &Backend, spec: &Spec, port: u32) -> Result<(), TableError> {
        if found.port != port {
            backend::set_port(self.maps, found.index, port)?;
        }
        if found.weight != spec.weight {
            backend::set_weight(self.maps, found.index, spec.weight)?;
        }
        if let Some(mac) = spec.mac.filter(|mac| found.mac != Some(*mac)) {
            backend::set_mac(self.maps, found.index, mac)?;
        }
        if found.label != spec.label {
            backend::set_label(self.maps, found.index, spec.label)?;
        }
        match spec.wanted.filter(|wanted| found.wanted != *wanted) {
            Some(wanted) => backend::set_wanted(self.maps, found.index, wanted),
            None => Ok(()),
        }
    }

    fn vips(&self) -> Vec<IpAddr> {
        let config = &self.config.lb_config;
        config.vips.iter().take(config.vip_count as usize).map(|vip| (*vip).into()).collect()
    }

    /// The mode that the instance's links have.
    fn mode(&self) -> Result<Mode, ChangeError> {
        let all = interfaces::list(self.maps)?;
        Ok(all.first().and_then(|entry| Mode::from_attached(entry.mode)).unwrap_or(Mode::Drv))
    }

    /// An interface of the caller's namespace, and its key in `egress_ports` if it is the instance's already.
    fn port_of(&self, dev: &str) -> Result<(Interface, Option<u32>), ChangeError> {
        let interface = Interface::find(dev)?;
        let all = interfaces::list(self.maps)?;
        let Some(entry) = all.iter().find(|entry| entry.ifindex == interface.index) else {
            return Ok((interface, None));
        };
        if link_here(self.instance, entry.role, interface.index).is_none() {
            let place = self.netns.as_ref().map(|netns| format!(" in the namespace {netns}"));
            return Err(ChangeError::Elsewhere {
                name: self.instance.name.clone(),
                place: place.unwrap_or_default(),
                interface: dev.into(),
            });
        }
        let egress = entry.role == types::lb_role::LB_EGRESS;
        Ok((interface, egress.then_some(entry.index.into())))
    }

    /// Puts a program on one more interface. All or nothing. Returns the interface's key in the map of its side.
    pub(super) fn plug(
        &self,
        role: types::lb_role,
        interface: &Interface,
        program: &Program,
        mode: Mode,
    ) -> Result<u32, ChangeError> {
        let all = interfaces::list(self.maps)?;
        let taken: Vec<u16> =
            all.iter().filter(|entry| entry.role == role).map(|entry| entry.index).collect();
        let index = (0u16..).find(|index| !taken.contains(index)).unwrap_or_default();
        let mut entry = types::lb_interface {
            ifindex: interface.index,
            index,
            role,
            mode: mode.attached(),
            backend: interfaces::SEVERAL,
            ..Default::default()
        };
        copy_text(&mut entry.name, &interface.name);
        let pin = self.instance.link_pin(interfaces::role_name(role), interface.index);
        let plugged = || -> Result<(), ChangeError> {
            // The ports first: when the first frame comes, its way back is there.
            self.ports(role).set(&index.into(), &interface.index)?;
            interfaces::insert(self.maps, entry)?;
            let link = Link::attach(program, interface, mode)?;
            // A change that was cut short may have left its own.
            let _ = std::fs::remove_file(&pin);
            Ok(link.pin(&pin)?)
        };
        if let Err(error) = plugged() {
            let _ = interfaces::remove(self.maps, interface.index);
            let _ = self.ports(role).delete(&index.into());
            return Err(error);
        }
        Ok(index.into())
    }

    /// Takes the instance off an interface.
    pub(super) fn unplug(&self, role: types::lb_role, ifindex: u32) -> Result<(), ChangeError> {
        let pin = self.instance.link_pin(interfaces::role_name(role), ifindex);
        // An interface that is gone has taken its link along.
        if let Ok(link) = Link::open(&pin) {
            let failed =
                |source| XdpError::Link { action: "detach", path: pin.display().to_string(), source };
            link.detach().map_err(failed)?;
            let failed =
                |source| XdpError::Link { action: "remove", path: pin.display().to_string(), source };
            std::fs::remove_file(&pin).map_err(failed)?;
        }
        let all = interfaces::list(self.maps)?;
        if let Some(entry) = all.iter().find(|entry| entry.role == role && entry.ifindex == ifindex) {
            interfaces::remove(self.maps, ifindex)?;
            self.ports(role).delete(&entry.index.into())?;
        }
        Ok(())
    }

    fn ports(&self, role: types::lb_role) -> &crate::kernel::table::Table<u32, u32> {
        if role == types::lb_role::LB_EGRESS { &self.maps.egress_ports } else { &self.maps.ingress_ports }
    }

    /// The program that is on the interfaces of a role.
    fn program(&self, role: types::lb_role) -> Result<Program, ChangeError> {
        let all = interfaces::list(self.maps)?;
        let name = interfaces::role_name(role);
        all.iter()
            .filter(|entry| entry.role == role)
            .find_map(|entry| {
                let link = Link::open(&self.instance.link_pin(name, entry.ifindex)).ok()?;
                Program::from_id(link.info().ok()?.program_id).ok()
            })
            .ok_or_else(|| ChangeError::NoProgram { name: self.instance.name.clone(), role: name })
    }
}

/// The backend of that name.
///
/// # Errors
///
/// Where there is none, with the names that there are.
pub fn find(maps: &Maps, name: &str) -> Result<Backend, ChangeError> {
    let all = backend::list(maps)?;
    let known = all.iter().map(|other| other.name.as_str()).collect::<Vec<_>>().join(", ");
    let known = if known.is_empty() { "none".into() } else { known };
    all.into_iter()
        .find(|other| other.name == name)
        .ok_or_else(|| ChangeError::Unknown { name: name.into(), known })
}

/// How many sessions a backend has.
///
/// # Errors
///
/// What the kernel says about the maps.
pub fn sessions_at(maps: &Maps, index: u32) -> Result<usize, TableError> {
    Ok(Sessions::open(maps)?.by_backend().get(index as usize).copied().unwrap_or_default())
}

/// The lowest index that no backend has.
pub(super) fn free_index(taken: &[u32]) -> u32 {
    (0..).find(|index| !taken.contains(index)).unwrap_or_default()
}

/// The instance's link to an interface, if it is to the one that is here.
pub(super) fn link_here(instance: &Instance, role: types::lb_role, ifindex: u32) -> Option<Link> {
    Link::open_here(&instance.link_pin(interfaces::role_name(role), ifindex), ifindex)
}

/// Asks behind an interface that has no program yet who owns the first VIP; the MAC, or what the user should know.
fn resolve(vips: &[IpAddr], interface: &Interface) -> (Option<MacAddr6>, Option<String>) {
    let name = &interface.name;
    let Some(&vip) = vips.first() else {
        return (
            None,
            Some(format!(
                "no MAC is known behind {name}: a backend gets clients only when it has sent a frame, such as an answer to ARP; mend: --mac MAC says it"
            )),
        );
    };
    match answered(neighbour::resolve(interface, vip, RESOLVE_TIMEOUT), name, vip, "by --mac") {
        Ok(mac) => (Some(mac), None),
        Err(warning) => (None, Some(warning)),
    }
}

/// The MAC that somebody behind the interface `dev` has answered with, or what the user should know; `how` ends the mend with the
/// way to give the MAC.
pub(super) fn answered<E: std::fmt::Display>(
    answer: Result<Option<MacAddr6>, E>,
    dev: &str,
    vip: IpAddr,
    how: &str,
) -> Result<MacAddr6, String> {
    match answer {
        Ok(Some(mac)) => Ok(mac),
        Ok(None) => Err(format!(
            "nobody behind {dev} owns {vip}: it gets no packets until it sends a frame; mend: bring the backend up, or give its MAC {how}"
        )),
        Err(error) => Err(format!(
            "cannot ask behind {dev} who owns {vip}: {error}; mend: give the backend's MAC {how}"
        )),
    }
}

/// What stands in the way of frames at these interfaces.
pub(super) fn interface_warnings(interfaces: &[Interface], mode: Mode) -> Vec<String> {
    let mut warnings = Vec::new();
    for interface in interfaces {
        let name = &interface.name;
        warnings.extend(interface.down_warning());
        // Frames keep the MAC of the far side: a backend's on the way there, a client router's on the way back.
        if interface.is_card() && !interface.is_promiscuous().unwrap_or(true) {
            warnings.push(format!(
                "{name} is not promiscuous: a card drops frames that are not for its own MAC, as all here are; mend: ip link set dev {name} promisc on"
            ));
        }
    }
    warnings.extend(veth::warnings(interfaces, mode));
    warnings
}
