//! Bringing the balancer onto its interfaces, upgrading it in place, and taking it off.
//!
//! An attach is all or nothing. Links detach by themselves when the command ends before they are pinned, and the
//! pin that says "whole" is made last: whatever cuts an attach short, the next attach or detach finds the rest
//! and clears it away.

use std::io;
use std::net::IpAddr;

use thiserror::Error;

use super::backend::{self, Backend, NewBackend};
use super::change::{
    self, ChangeError, Live, RESOLVE_TIMEOUT, Spec, SpecError, assign_labels, free_index, interface_warnings,
    link_here,
};
use super::datapath::{BACKENDS_MAX, Datapath, DatapathError, INGRESS_MAX, Maps, ReturnPath, Settings};
use super::skeleton::types;
use super::{GROUP, interfaces};
use crate::kernel::detach::{self, DetachError};
use crate::kernel::interface::{Interface, InterfaceError};
use crate::kernel::neighbour;
use crate::kernel::netns::{self, NetnsError};
use crate::kernel::pins::{Instance, PinError, Root};
use crate::kernel::table::TableError;
use crate::kernel::value::{copy_text, text};
use crate::kernel::xdp::{Link, Mode, XdpError};

/// What to attach.
#[derive(Clone, Debug)]
pub struct Request {
    pub name: String,
    /// The interfaces towards the clients.
    pub ingress: Vec<String>,
    /// The backends, and by them the interfaces towards them.
    pub backends: Vec<Spec>,
    pub mode: Mode,
    pub settings: Settings,
    /// What is to happen where an instance of that name is attached.
    pub replace: Replace,
}

/// What an attach does to an instance of its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replace {
    /// Nothing: that is an error.
    #[default]
    No,
    /// It gets the programs and the settings. Interfaces are to be the same, and backends stay as they are but for the
    /// MACs that are given.
    Programs,
    /// It gets interfaces and backends too: what differs is changed, the rest is not touched. `force` ends the sessions
    /// of backends that go.
    All { force: bool },
}

impl Request {
    /// The interfaces towards the backends, each once.
    pub fn egress(&self) -> Vec<&str> {
        let mut devs: Vec<&str> = Vec::new();
        for backend in &self.backends {
            if !devs.contains(&backend.dev.as_str()) {
                devs.push(&backend.dev);
            }
        }
        devs
    }
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
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error(
        "--down-after counts the time until backends answer, and with --return-path direct nobody here sees their answers; leave one of the two out"
    )]
    DownAfterDirect,
    #[error("several backends are behind {dev}; `lb backend set NAME --mac MAC` says which one's MAC it is")]
    WhoseMac { dev: String },
    #[error(
        "{interface} is an {now} of instance {name}; detach first: an upgrade in place does not turn an interface round"
    )]
    Turned { interface: String, now: &'static str, name: String },
    #[error(
        "instance {name} is attached in mode {found}; an upgrade in place does not change that, detach first"
    )]
    OtherMode { name: String, found: String },
    #[error(
        "the backends that go have sessions: {counts}; `lb backend drain` them first and wait, or end the sessions with --force"
    )]
    HaveSessions { counts: String },
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
    let egress = request.egress();
    if let Some(both) = request.ingress.iter().find(|name| egress.contains(&name.as_str())) {
        return Err(AttachError::BothSides(both.clone()));
    }
    for (what, given, most) in
        [("ingress", request.ingress.len(), INGRESS_MAX), ("egress", egress.len(), BACKENDS_MAX)]
    {
        if given > most {
            return Err(AttachError::TooMany { what, given, most });
        }
    }
    let settings = &request.settings;
    if !settings.down_after.is_zero() && settings.return_path == ReturnPath::Direct {
        return Err(AttachError::DownAfterDirect);
    }
    Ok(change::check(&request.backends, &request.ingress, settings.spi_shard)?)
}

/// An interface and what it is to be.
struct Port {
    interface: Interface,
    /// As it was given.
    given: String,
    role: types::lb_role,
    /// Key of the interface in the map of its side.
    index: u16,
}

impl Port {
    fn is_egress(&self) -> bool {
        self.role == types::lb_role::LB_EGRESS
    }
}

fn attach_here(root: &Root, request: &Request) -> Result<Attached, AttachError> {
    let ports = find_ports(request)?;
    let request = &by_proper_names(request, &ports);
    let instance = root.instance(GROUP, &request.name)?;
    if request.mode == Mode::Hw {
        return Err(AttachError::Offload("device, LRU and per-CPU maps".into()));
    }

    let lock = root.lock()?;
    if instance.exists() {
        if instance.is_whole() {
            if request.replace == Replace::No {
                return Err(AttachError::Taken { name: request.name.clone() });
            }
            let warnings = replace(&instance, request, &ports)?;
            return Ok(Attached { replaced: true, warnings });
        }
        instance.remove()?;
    }

    let mut backends = request.backends.clone();
    let mut warnings = resolve(&request.settings.vips, &ports, &mut backends);
    let interfaces: Vec<Interface> = ports.iter().map(|port| port.interface.clone()).collect();
    warnings.extend(interface_warnings(&interfaces, request.mode));
    assign_labels(&mut backends, request.settings.spi_shard);
    change::check(&backends, &request.ingress, request.settings.spi_shard)?;

    let settings = Settings { ingress_count: request.ingress.len() as u32, ..request.settings.clone() };
    let mut datapath = Datapath::load(&settings)?;
    fill(&datapath.maps, &ports, &backends, request.mode)?;
    let links = link(&datapath, &ports, request.mode)?;
    if let Err(error) = pin(&instance, &mut datapath, &links) {
        // The links that have a pin would stay.
        let _ = instance.remove();
        return Err(error);
    }
    drop(lock);
    Ok(Attached { replaced: false, warnings })
}

fn find_ports(request: &Request) -> Result<Vec<Port>, AttachError> {
    let mut ports: Vec<Port> = Vec::new();
    let mut seen: Vec<(u32, &str)> = Vec::new();
    let ingress = request.ingress.iter().map(String::as_str).collect();
    // Egress first: when the first client's frame comes, its way back is there.
    for (role, list) in [(types::lb_role::LB_EGRESS, request.egress()), (types::lb_role::LB_INGRESS, ingress)]
    {
        for (index, name) in (0u16..).zip(list) {
            let interface = Interface::find(name)?;
            // Two names, as an alternative name is one, may be of one interface.
            if let Some((_, other)) = seen.iter().find(|(other, _)| *other == interface.index) {
                return Err(AttachError::SameInterface((*other).into(), name.into()));
            }
            seen.push((interface.index, name));
            ports.push(Port { interface, given: name.into(), role, index });
        }
    }
    Ok(ports)
}

/// The request with the names that interfaces have in the place of alternative names.
fn by_proper_names(request: &Request, ports: &[Port]) -> Request {
    let proper =
        |given: &str| ports.iter().find(|port| port.given == given).map(|port| port.interface.name.clone());
    let mut request = request.clone();
    for ingress in &mut request.ingress {
        *ingress = proper(ingress).unwrap_or_default();
    }
    for backend in &mut request.backends {
        let dev = proper(&backend.dev).unwrap_or_default();
        // One that is named after its interface.
        if backend.name == backend.dev {
            backend.name.clone_from(&dev);
        }
        backend.dev = dev;
    }
    request
}

/// The egress port of this name.
fn port_named<'a>(ports: &'a [Port], dev: &str) -> &'a Port {
    let port = ports.iter().find(|port| port.is_egress() && port.interface.name == dev);
    port.expect("there is a port for each backend's interface")
}

/// Asks behind each egress interface whose only backend has no MAC which one owns the first VIP.
fn resolve(vips: &[IpAddr], ports: &[Port], backends: &mut [Spec]) -> Vec<String> {
    let mut unknown: Vec<&mut Spec> = backends.iter_mut().filter(|backend| backend.mac.is_none()).collect();
    if unknown.is_empty() {
        return Vec::new();
    }
    let Some(&vip) = vips.first() else {
        let names: Vec<&str> = unknown.iter().map(|backend| backend.dev.as_str()).collect();
        return vec![format!(
            "no MAC is known behind {}: a backend gets clients only when it has sent a frame, such as an answer to ARP; mend: --vip ADDR asks the backends now, NAME=MAC says it",
            names.join(", ")
        )];
    };
    let asked: Vec<Interface> =
        unknown.iter().map(|backend| port_named(ports, &backend.dev).interface.clone()).collect();
    let answers = neighbour::resolve_all(&asked, vip, RESOLVE_TIMEOUT);
    let mut warnings = Vec::new();
    for (backend, answer) in unknown.iter_mut().zip(answers) {
        let how = format!("as {}=MAC", backend.dev);
        match change::answered(answer, &backend.dev, vip, &how) {
            Ok(mac) => backend.mac = Some(mac),
            Err(warning) => warnings.push(warning),
        }
    }
    warnings
}

fn fill(maps: &Maps, ports: &[Port], backends: &[Spec], mode: Mode) -> Result<(), AttachError> {
    for port in ports {
        let side = if port.is_egress() { &maps.egress_ports } else { &maps.ingress_ports };
        side.set(&port.index.into(), &port.interface.index)?;
        let mut entry = types::lb_interface {
            ifindex: port.interface.index,
            index: port.index,
            role: port.role,
            mode: mode.attached(),
            backend: interfaces::SEVERAL,
            ..Default::default()
        };
        copy_text(&mut entry.name, &port.interface.name);
        interfaces::insert(maps, entry)?;
    }
    let new = |backend: &Spec| backend.at(port_named(ports, &backend.dev).index.into());
    let backends: Vec<NewBackend> = backends.iter().map(new).collect();
    backend::install(maps, &backends)?;
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

/// What an upgrade in place has to do, all of it checked.
struct Plan<'a> {
    /// Interfaces that stay, and the links to them.
    kept: Vec<(&'a Port, Link)>,
    new: Vec<&'a Port>,
    /// Interfaces that go.
    gone: Vec<types::lb_interface>,
    /// The backends as they are to be.
    backends: Vec<Spec>,
    /// The backends that go.
    leaving: Vec<Backend>,
}

/// Puts this build's programs, with this request's settings, in the place of an instance's, and changes its interfaces and
/// backends as far as the request asks for it.
fn replace(instance: &Instance, request: &Request, ports: &[Port]) -> Result<Vec<String>, AttachError> {
    let maps = Maps::open(instance)?;
    let live = Live::new(instance, &maps, request.settings.netns.as_deref())?;
    let (mut plan, mut warnings) = plan(&live, &maps, instance, request, ports)?;
    let bits = request.settings.spi_shard;
    let settings = Settings { ingress_count: ingress_count(&maps, &plan)?, ..request.settings.clone() };
    let mut datapath = Datapath::load_upgrade(&settings, instance)?;

    // From here on only the kernel can refuse. New interfaces come first, as that is what it may well do.
    let mut plugged: Vec<(&Port, u32)> = Vec::new();
    for port in &plan.new {
        let program = if port.is_egress() { &datapath.backend } else { &datapath.client };
        match live.plug(port.role, &port.interface, program, request.mode) {
            Ok(index) => plugged.push((port, index)),
            Err(error) => {
                for (port, _) in plugged {
                    let _ = live.unplug(port.role, port.interface.index);
                }
                return Err(error.into());
            }
        }
    }
    let there = interfaces::list(&maps)?;
    let port_of = |dev: &str| -> u32 {
        let port = port_named(ports, dev);
        let entry = there.iter().find(|entry| entry.ifindex == port.interface.index);
        entry.map_or(0, |entry| entry.index.into())
    };

    // Labels of one width mean nothing to programs that go by another. Without any, sessions decide.
    if live.label_bits() != bits {
        for known in live.backends()? {
            backend::set_label(&maps, known.index, None)?;
        }
    }
    let labels: Vec<Option<u32>> = plan.backends.iter_mut().map(|spec| spec.label.take()).collect();
    let mut leaving = std::mem::take(&mut plan.leaving);
    let gone: Vec<u32> = leaving.iter().map(|known| known.index).collect();
    let staying = |all: Vec<Backend>| -> Vec<Backend> {
        all.into_iter().filter(|known| !gone.contains(&known.index)).collect()
    };
    let mut all = live.backends()?;
    let is_new = |spec: &&Spec| all.iter().all(|known| known.name != spec.name);
    // Those that leave do so last, when others are there to take their clients, unless there is no room for both.
    if all.len() + plan.backends.iter().filter(is_new).count() > BACKENDS_MAX {
        all = staying(all);
        live.take_out(&leaving, &all)?;
        leaving.clear();
    }
    let mut taken: Vec<u32> = all.iter().map(|known| known.index).collect();
    for (spec, label) in plan.backends.iter().zip(&labels) {
        let port = port_of(&spec.dev);
        if let Some(known) = all.iter().find(|known| known.name == spec.name) {
            let kept = if live.label_bits() == bits { *label } else { None };
            live.turn(known, &Spec { label: kept, ..spec.clone() }, port)?;
        } else {
            let index = free_index(&taken);
            backend::clear(&maps, index)?;
            backend::put(&maps, index, &spec.at(port))?;
            taken.push(index);
        }
    }
    // The index of one that has left already may be a new one's by now.
    let rest = |all| if leaving.is_empty() { all } else { staying(all) };
    backend::reschedule_to(&maps, &rest(live.backends()?))?;
    for (port, link) in &plan.kept {
        let program = if port.is_egress() { &datapath.backend } else { &datapath.client };
        link.replace(program)
            .map_err(|source| AttachError::Replace { interface: port.interface.name.clone(), source })?;
    }
    let rest = rest(live.backends()?);
    for (spec, label) in plan.backends.iter().zip(labels) {
        let known = rest.iter().find(|known| known.name == spec.name);
        if let Some(known) = known.filter(|known| known.label != label) {
            backend::set_label(&maps, known.index, label)?;
        }
    }
    if !leaving.is_empty() {
        live.take_out(&leaving, &rest)?;
    }
    for entry in &plan.gone {
        live.unplug(entry.role, entry.ifindex)?;
    }
    datapath.pin_config(instance)?;

    let here: Vec<Interface> = ports.iter().map(|port| port.interface.clone()).collect();
    warnings.extend(interface_warnings(&here, request.mode));
    let known = backend::list(&maps)?;
    let unresolved = |known: &&Backend| {
        known.mac.is_none() && !plan.new.iter().any(|port| port.interface.name == known.dev)
    };
    // The programs that are there take every answer, so nobody can be asked now.
    for known in known.iter().filter(unresolved) {
        warnings.push(format!(
            "no MAC is known behind {0}: it gets no packets until it sends a frame; mend: {0}=MAC says it",
            known.dev
        ));
    }
    Ok(warnings)
}

/// Checks all of an upgrade that can be checked before anything is changed.
fn plan<'a>(
    live: &Live<'_>,
    maps: &Maps,
    instance: &Instance,
    request: &Request,
    ports: &'a [Port],
) -> Result<(Plan<'a>, Vec<String>), AttachError> {
    let found = interfaces::list(maps)?;
    if request.replace == Replace::Programs {
        let found_texts =
            found.iter().map(|i| describe(i.role, &text(&i.name), Mode::from_attached(i.mode))).collect();
        let wanted_texts =
            ports.iter().map(|port| describe(port.role, &port.interface.name, Some(request.mode))).collect();
        check_same(&instance.name, found_texts, wanted_texts)?;
    }
    if let Some(other) = found.iter().find(|entry| entry.mode != request.mode.attached()) {
        let found = Mode::from_attached(other.mode).map_or("?".into(), |mode| mode.to_string());
        return Err(AttachError::OtherMode { name: instance.name.clone(), found });
    }
    let (mut kept, mut new) = (Vec::new(), Vec::new());
    for port in ports {
        match found.iter().find(|entry| entry.ifindex == port.interface.index) {
            // Numbers are of one namespace: the interface that is here may be another.
            Some(entry) if entry.role == port.role => match link_here(instance, port.role, entry.ifindex) {
                Some(link) => kept.push((port, link)),
                None => return Err(elsewhere(instance, maps, port)),
            },
            Some(entry) => {
                let interface = port.interface.name.clone();
                let now = interfaces::role_name(entry.role);
                return Err(AttachError::Turned { interface, now, name: instance.name.clone() });
            }
            None if request.replace == Replace::Programs => return Err(elsewhere(instance, maps, port)),
            None => new.push(port),
        }
    }
    let stays = |entry: &types::lb_interface| ports.iter().any(|port| port.interface.index == entry.ifindex);
    let gone: Vec<types::lb_interface> = found.iter().filter(|entry| !stays(entry)).copied().collect();

    let known = live.backends()?;
    let mut backends = match request.replace {
        Replace::All { .. } => completed(&request.backends, &known),
        _ => with_macs(&known, &request.backends)?,
    };
    // Labels of more bits than there are now are no reason to refuse: they were for another width.
    if live.label_bits() != request.settings.spi_shard && request.replace == Replace::Programs {
        backends.iter_mut().for_each(|backend| backend.label = None);
    }
    let bits = request.settings.spi_shard;
    change::check(&backends, &request.ingress, bits)?;
    assign_labels(&mut backends, bits);
    let leaving: Vec<Backend> =
        known.into_iter().filter(|known| backends.iter().all(|spec| spec.name != known.name)).collect();
    if request.replace != (Replace::All { force: true }) {
        let mut counts = Vec::new();
        for gone in &leaving {
            let sessions = change::sessions_at(maps, gone.index)?;
            if sessions > 0 {
                counts.push(format!("{sessions} at {}", gone.name));
            }
        }
        if !counts.is_empty() {
            return Err(AttachError::HaveSessions { counts: counts.join(", ") });
        }
    }
    // Behind interfaces that have no program yet, somebody can answer.
    let is_new =
        |spec: &&mut Spec| new.iter().any(|port: &&Port| port.is_egress() && port.interface.name == spec.dev);
    let mut asked: Vec<Spec> = backends.iter_mut().filter(is_new).map(|spec| spec.clone()).collect();
    let warnings = resolve(&request.settings.vips, ports, &mut asked);
    for spec in &mut backends {
        if let Some(answered) = asked.iter().find(|asked| asked.name == spec.name) {
            spec.mac = answered.mac;
        }
    }
    change::check(&backends, &request.ingress, bits)?;
    Ok((Plan { kept, new, gone, backends, leaving }, warnings))
}

/// The backends of a file, with what it leaves open taken from those that are there.
fn completed(specs: &[Spec], known: &[Backend]) -> Vec<Spec> {
    let complete = |spec: &Spec| {
        let mut spec = spec.clone();
        if let Some(known) = known.iter().find(|known| known.name == spec.name) {
            spec.mac = spec.mac.or(known.mac);
            spec.label = spec.label.or(known.label);
            spec.wanted = spec.wanted.or(Some(known.wanted));
        }
        spec
    };
    specs.iter().map(complete).collect()
}

/// The backends that are there, with the MACs that are given for those behind interfaces.
fn with_macs(known: &[Backend], given: &[Spec]) -> Result<Vec<Spec>, AttachError> {
    let mut specs: Vec<Spec> = known.iter().map(Spec::from).collect();
    for given in given.iter().filter(|given| given.mac.is_some()) {
        let mut behind = specs.iter_mut().filter(|spec| spec.dev == given.dev);
        match (behind.next(), behind.next()) {
            (Some(only), None) => only.mac = given.mac,
            _ => return Err(AttachError::WhoseMac { dev: given.dev.clone() }),
        }
    }
    Ok(specs)
}

fn elsewhere(instance: &Instance, maps: &Maps, port: &Port) -> AttachError {
    let netns = maps.config().map(|config| text(&config.lb_config.netns)).unwrap_or_default();
    AttachError::Elsewhere {
        name: instance.name.clone(),
        place: if netns.is_empty() { netns } else { format!(" in the namespace {netns}") },
        interface: port.interface.name.clone(),
    }
}

/// One more than the greatest index that an ingress interface has after an upgrade. An interface that goes leaves a hole.
fn ingress_count(maps: &Maps, plan: &Plan<'_>) -> Result<u32, TableError> {
    let goes = |entry: &types::lb_interface| plan.gone.iter().any(|gone| gone.ifindex == entry.ifindex);
    let all = interfaces::list(maps)?;
    let mut taken: Vec<u32> = all
        .iter()
        .filter(|entry| entry.role == types::lb_role::LB_INGRESS)
        .map(|entry| entry.index.into())
        .collect();
    // New ones come while those that go are still there.
    for _ in plan.new.iter().filter(|port| !port.is_egress()) {
        let free = (0..).find(|index| !taken.contains(index)).unwrap_or_default();
        taken.push(free);
    }
    let left = |index: &&u32| {
        !all.iter().any(|entry| {
            entry.role == types::lb_role::LB_INGRESS && u32::from(entry.index) == **index && goes(entry)
        })
    };
    Ok(taken.iter().filter(left).max().map_or(1, |most| most + 1))
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

/// Takes an instance off its interfaces; see [`detach::detach`].
///
/// # Errors
///
/// As there.
pub fn detach(root: &Root, name: &str) -> Result<(), DetachError> {
    detach::detach(root, GROUP, name)
}
