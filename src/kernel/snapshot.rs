//! Maps that are looked at and not touched: opened for reading alone, so that the kernel refuses whatever would change
//! them, and read as a whole.

use std::path::Path;

use libbpf_rs::{MapCore, MapFlags, MapHandle};

use super::table::{Table, TableError};
use super::value::MapValue;

/// Opens the map that is pinned at `path`, for reading.
///
/// # Errors
///
/// Where there is none, or where it may not be opened.
pub fn open(path: &Path) -> libbpf_rs::Result<MapHandle> {
    MapHandle::from_pinned_path_with_file_flags(path, libbpf_sys::BPF_F_RDONLY)
}

/// All entries of a map. Of a map that changes meanwhile, each entry is as it was at some moment of the call.
///
/// # Errors
///
/// What the kernel says.
pub fn entries<K: MapValue, V: MapValue>(table: &Table<K, V>) -> Result<Vec<(K, V)>, TableError> {
    // One batch is enough for all, so none has to be shorter than what the kernel keeps together.
    Ok(batches(table, table.handle().max_entries())?.collect())
}

/// The entries of a map, `count` of them read at once when the first of those is asked for. Of a hash table, `count` has to
/// be what the kernel keeps together, such as all.
///
/// # Errors
///
/// What the kernel says.
pub fn batches<K: MapValue, V: MapValue>(
    table: &Table<K, V>,
    count: u32,
) -> Result<impl Iterator<Item = (K, V)>, TableError> {
    let map = table.handle();
    let batch = map
        .lookup_batch(count, MapFlags::ANY, MapFlags::ANY)
        .map_err(|source| TableError::Kernel { action: "read", map: name(map), source })?;
    Ok(batch.filter_map(|(key, value)| Some((K::from_bytes(&key)?, V::from_bytes(&value)?))))
}

/// All values of an array, by their index.
///
/// # Errors
///
/// What the kernel says.
pub fn values<V: MapValue>(table: &Table<u32, V>) -> Result<Vec<V>, TableError> {
    let values: Vec<V> = entries(table)?.into_iter().map(|(_, value)| value).collect();
    check_count(table, values.len())?;
    Ok(values)
}

/// Whether `count` is how many entries an array has: batches do not say why they end.
///
/// # Errors
///
/// Where it is not.
pub fn check_count<V: MapValue>(table: &Table<u32, V>, count: usize) -> Result<(), TableError> {
    let map = table.handle();
    if count == map.max_entries() as usize {
        return Ok(());
    }
    let source =
        std::io::Error::other(format!("it gave {count} of its {} entries", map.max_entries())).into();
    Err(TableError::Kernel { action: "read", map: name(map), source })
}

fn name(map: &MapHandle) -> String {
    map.name().to_string_lossy().into_owned()
}
