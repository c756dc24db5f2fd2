//! Sums of per-CPU packet and byte counters (`bpf/include/counters.h`).

use std::ops::{Add, Sub};

use super::table::{Table, TableError};
use super::value::MapValue;

/// Packets, and the bytes of their whole frames (from the Ethernet header on, without FCS).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

impl Add for Count {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { packets: self.packets + other.packets, bytes: self.bytes + other.bytes }
    }
}

impl Sub for Count {
    type Output = Self;

    /// What was counted since `other`; 0 where the counter began anew in between.
    fn sub(self, other: Self) -> Self {
        Self {
            packets: self.packets.saturating_sub(other.packets),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }
}

impl std::iter::Sum for Count {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), Add::add)
    }
}

/// Entry `index` of a per-CPU array of counters, summed over the CPUs.
///
/// # Errors
///
/// What the kernel says about reading the map.
pub fn read<V: MapValue + Into<Count>>(table: &Table<u32, V>, index: u32) -> Result<Count, TableError> {
    Ok(table.get_per_cpu(&index)?.into_iter().map(Into::into).sum())
}
