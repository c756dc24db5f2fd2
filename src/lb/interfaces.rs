//! The interfaces of an instance, as its map `interfaces` has them: a hash table with open addressing by ifindex
//! (`bpf/include/lb.h`).

use super::datapath::Maps;
use super::skeleton::types;
use crate::kernel::table::TableError;

const SLOTS: u32 = types::lb_limits::LB_INTERFACES.0;
const PROBES: u32 = types::lb_limits::LB_INTERFACE_PROBES.0;

/// Adds an interface. With the table over half empty, as the limits on interfaces keep it, there is a free entry within
/// the datapath's search.
///
/// # Errors
///
/// What the kernel says about the map.
pub fn insert(maps: &Maps, entry: types::lb_interface) -> Result<(), TableError> {
    for probe in 0..PROBES {
        let slot = (entry.ifindex + probe) % SLOTS;
        let there = maps.interfaces.get(&slot)?.unwrap_or_default();
        if there.ifindex == 0 || there.ifindex == entry.ifindex {
            return maps.interfaces.set(&slot, &entry);
        }
    }
    Err(TableError::Full { map: "interfaces".into() })
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
