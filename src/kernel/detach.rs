//! Taking an instance off its interfaces, with a look afterwards at whether it is off.

use std::collections::HashSet;

use thiserror::Error;

use super::interface::Interface;
use super::pins::{Instance, PinError, Root};
use super::xdp::{self, Link};

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
pub fn detach(root: &Root, group: &str, name: &str) -> Result<(), DetachError> {
    let instance = root.instance(group, name)?;
    let lock = root.lock_existing()?;
    if lock.is_none() || !instance.exists() {
        return Err(DetachError::Unknown { name: name.into(), known: known_names(root, group)? });
    }
    remove(&instance)
}

/// The end of a message about a name that is unknown: which ones are known.
///
/// # Errors
///
/// Where the root cannot be read.
pub fn known_names(root: &Root, group: &str) -> Result<String, PinError> {
    let instances = root.instances()?.into_iter().filter(|instance| instance.group == group);
    let names: Vec<String> = instances.map(|instance| instance.name).collect();
    Ok(if names.is_empty() { String::new() } else { format!("; there is {}", names.join(", ")) })
}

/// Detaches all instances of all groups. Returns them.
///
/// # Errors
///
/// As [`detach`], for the first instance that cannot be detached; all others are gone.
pub fn detach_all(root: &Root) -> Result<Vec<Instance>, DetachError> {
    let Some(_lock) = root.lock_existing()? else { return Ok(Vec::new()) };
    let mut gone = Vec::new();
    let mut failed = Ok(());
    for instance in root.instances()?.into_iter().filter(Instance::is_of_lb) {
        match remove(&instance) {
            Ok(()) => gone.push(instance),
            Err(error) => failed = failed.and(Err(error)),
        }
    }
    failed.map(|()| gone)
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
