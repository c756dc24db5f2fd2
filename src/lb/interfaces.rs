//! The interfaces of an instance, as its map `interfaces` has them: a hash table with open addressing by ifindex
//! (`bpf/include/lb.h`).

use std::thread;

use super::backend::Backend;
use super::datapath::Maps;
use super::schedule::SETTLE;
use super::skeleton::types;
use crate::kernel::table::TableError;

const SLOTS: u32 = types::lb_limits::LB_INTERFACES.0;
const PROBES: u32 = types::lb_limits::LB_INTERFACE_PROBES.0;
const FACTOR: u32 = types::lb_limits::LB_INTERFACE_FACTOR.0;
/// What an interface has for its only backend that has none, or several.
pub const SEVERAL: u16 = types::lb_limits::LB_BACKENDS_MAX.0 as u16;
const SHIFT: u32 = types::lb_limits::LB_INTERFACE_SHIFT.0;

/// Adds an interface. The limits on interfaces keep the table over two thirds empty, so that there is a free entry
/// within the datapath's search.
///
/// # Errors
///
/// What the kernel says about the map; [`TableError::Full`] where the search was too short after all.
pub fn insert(maps: &Maps, entry: types::lb_interface) -> Result<(), TableError> {
    for probe in 0..PROBES {
        let slot = ((entry.ifindex.wrapping_mul(FACTOR) >> SHIFT) + probe) % SLOTS;
        let there = maps.interfaces.get(&slot)?.unwrap_or_default();
        if there.ifindex == 0 || there.ifindex == entry.ifindex {
            return maps.interfaces.set(&slot, &entry);
        }
    }
    Err(TableError::Full { map: "interfaces".into() })
}

/// Removes an interface. What lies behind it in the searches of others moves up; a packet that is looking for one of those
/// meanwhile finds it at either place.
///
/// # Errors
///
/// What the kernel says about the map.
pub fn remove(maps: &Maps, ifindex: u32) -> Result<(), TableError> {
    let at = |slot: u32| maps.interfaces.get(&slot).map(Option::unwrap_or_default);
    let home = |ifindex: u32| ifindex.wrapping_mul(FACTOR) >> SHIFT;
    // How far a slot is behind another one, as the search goes.
    let distance = |from: u32, to: u32| (to + SLOTS - from) % SLOTS;
    let mut hole = None;
    for probe in 0..PROBES {
        let slot = (home(ifindex) + probe) % SLOTS;
        if at(slot)?.ifindex == ifindex {
            hole = Some(slot);
            break;
        }
    }
    let Some(mut hole) = hole else { return Ok(()) };
    let mut next = hole;
    loop {
        next = (next + 1) % SLOTS;
        let entry = at(next)?;
        if entry.ifindex == 0 {
            break;
        }
        if distance(home(entry.ifindex), next) >= distance(hole, next) {
            maps.interfaces.set(&hole, &entry)?;
            // Whoever has passed the hole already finds the entry where it was.
            thread::sleep(SETTLE);
            hole = next;
        }
    }
    maps.interfaces.set(&hole, &types::lb_interface::default())
}

/// Says of each egress interface which backend is behind it, where it is one alone.
///
/// # Errors
///
/// What the kernel says about the map.
pub fn assign(maps: &Maps, backends: &[Backend]) -> Result<(), TableError> {
    for slot in 0..SLOTS {
        let mut entry = maps.interfaces.get(&slot)?.unwrap_or_default();
        if entry.ifindex == 0 || entry.role != types::lb_role::LB_EGRESS {
            continue;
        }
        let mut behind = backends.iter().filter(|backend| backend.port == u32::from(entry.index));
        let only = match (behind.next(), behind.next()) {
            (Some(only), None) => only.index as u16,
            _ => SEVERAL,
        };
        if entry.backend != only {
            entry.backend = only;
            maps.interfaces.set(&slot, &entry)?;
        }
    }
    Ok(())
}

/// All interfaces, ingress first, each side in the order in which it was given.
///
/// # Errors
///
/// What the kernel says about the map.
pub fn list(maps: &Maps) -> Result<Vec<types::lb_interface>, TableError> {
    let mut found = Vec::new();
    for slot in 0..SLOTS {
        let entry = maps.interfaces.get(&slot)?.unwrap_or_default();
        if entry.ifindex != 0 {
            found.push(entry);
        }
    }
    found.sort_by_key(|entry| (entry.role.0, entry.index));
    Ok(found)
}

/// The stable name of a role.
pub fn role_name(role: types::lb_role) -> &'static str {
    if role == types::lb_role::LB_EGRESS { "egress" } else { "ingress" }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many as there can be, with consecutive numbers and with numbers that are far apart in equal steps.
    #[test]
    fn every_lawful_set_of_interfaces_fits() {
        let most = types::lb_limits::LB_BACKENDS_MAX.0 + types::lb_limits::LB_INGRESS_MAX.0;
        for step in [1, 2, 3, 5, 64, 1000, 1024, 2048, 4096, 65536] {
            let mut taken = vec![false; SLOTS as usize];
            for number in 0..most {
                let ifindex = 2 + number.wrapping_mul(step);
                let first = ifindex.wrapping_mul(FACTOR) >> SHIFT;
                let free =
                    (0..PROBES).map(|probe| ((first + probe) % SLOTS) as usize).find(|&slot| !taken[slot]);
                taken[free.unwrap_or_else(|| panic!("no room for {ifindex}, step {step}"))] = true;
            }
        }
    }
}
