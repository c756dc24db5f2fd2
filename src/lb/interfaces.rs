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
    let mut table = Vec::new();
    for slot in 0..SLOTS {
        table.push(maps.interfaces.get(&slot)?.unwrap_or_default());
    }
    let ifindexes: Vec<u32> = table.iter().map(|entry| entry.ifindex).collect();
    let Some((moves, freed)) = removal(&ifindexes, ifindex) else { return Ok(()) };
    for (from, to) in moves {
        maps.interfaces.set(&to, &table[from as usize])?;
        // Whoever has passed the new place already finds the entry at the old one.
        thread::sleep(SETTLE);
    }
    maps.interfaces.set(&freed, &types::lb_interface::default())
}

/// The slots whose entries move, from and to, when an interface is removed, and the slot that is free in the end. `None` where
/// there is no such interface.
fn removal(table: &[u32], ifindex: u32) -> Option<(Vec<(u32, u32)>, u32)> {
    let at = |slot: u32| table[slot as usize];
    let home = |ifindex: u32| ifindex.wrapping_mul(FACTOR) >> SHIFT;
    // How far a slot is behind another one, as the search goes.
    let distance = |from: u32, to: u32| (to + SLOTS - from) % SLOTS;
    let mut hole =
        (0..PROBES).map(|probe| (home(ifindex) + probe) % SLOTS).find(|&slot| at(slot) == ifindex)?;
    let mut moves = Vec::new();
    let mut next = (hole + 1) % SLOTS;
    while at(next) != 0 {
        if distance(home(at(next)), next) >= distance(hole, next) {
            moves.push((next, hole));
            hole = next;
        }
        next = (next + 1) % SLOTS;
    }
    Some((moves, hole))
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

    /// Where the datapath's search finds an interface (bpf/lb/maps.h).
    fn search(table: &[u32], ifindex: u32) -> Option<u32> {
        let first = ifindex.wrapping_mul(FACTOR) >> SHIFT;
        (0..PROBES)
            .map(|probe| (first + probe) % SLOTS)
            .take_while(|&slot| table[slot as usize] != 0)
            .find(|&slot| table[slot as usize] == ifindex)
    }

    #[test]
    fn whoever_stays_is_found_at_every_moment_of_a_removal() {
        for step in [1, 3, 1024, 65536] {
            let all: Vec<u32> = (0..576).map(|number| 2 + number * step).collect();
            let mut table = vec![0; SLOTS as usize];
            for &ifindex in &all {
                let first = ifindex.wrapping_mul(FACTOR) >> SHIFT;
                let free =
                    (0..PROBES).map(|probe| (first + probe) % SLOTS).find(|&slot| table[slot as usize] == 0);
                table[free.unwrap() as usize] = ifindex;
            }
            for (number, &gone) in all.iter().enumerate() {
                let (moves, freed) = removal(&table, gone).unwrap();
                for (from, to) in moves {
                    table[to as usize] = table[from as usize];
                    assert!(all[number + 1..].iter().all(|&stays| search(&table, stays).is_some()));
                }
                table[freed as usize] = 0;
                assert!(all[number + 1..].iter().all(|&stays| search(&table, stays).is_some()));
                assert_eq!(search(&table, gone), None);
                assert_eq!(removal(&table, gone), None);
            }
            assert!(table.iter().all(|&slot| slot == 0));
        }
    }

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
