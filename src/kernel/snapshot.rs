//! Maps that are looked at and not touched: opened for reading alone, so that the kernel refuses whatever would change
//! them, and read as a whole.

use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use nix::sys::mman::{MapFlags as MmapFlags, ProtFlags, mmap, munmap};

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

/// All entries of a map. Of a hash table that changes meanwhile, each entry is as it was at some moment of the call.
///
/// # Errors
///
/// What the kernel says.
pub fn entries<K: MapValue, V: MapValue>(table: &Table<K, V>) -> Result<Vec<(K, V)>, TableError> {
    let map = table.handle();
    // One batch is enough for all, so none has to be shorter than what the kernel keeps together.
    let batch = map
        .lookup_batch(map.max_entries(), MapFlags::ANY, MapFlags::ANY)
        .map_err(|source| TableError::Kernel { action: "read", map: name(map), source })?;
    Ok(batch.filter_map(|(key, value)| Some((K::from_bytes(&key)?, V::from_bytes(&value)?))).collect())
}

/// All values of an array, by their index.
///
/// # Errors
///
/// What the kernel says.
pub fn values<V: MapValue>(table: &Table<u32, V>) -> Result<Vec<V>, TableError> {
    let values: Vec<V> = entries(table)?.into_iter().map(|(_, value)| value).collect();
    let map = table.handle();
    if values.len() == map.max_entries() as usize {
        return Ok(values);
    }
    // The batch does not say why it ended.
    let source = std::io::Error::other(format!("it gave {} of its entries", values.len())).into();
    Err(TableError::Kernel { action: "read", map: name(map), source })
}

fn name(map: &MapHandle) -> String {
    map.name().to_string_lossy().into_owned()
}

/// The entries of a `BPF_F_MMAPABLE` array, seen in the memory that the programs use, and not to be written: storing
/// there would end this process.
#[derive(Debug)]
pub struct Words {
    memory: NonNull<AtomicU64>,
    words: usize,
}

impl Words {
    /// Maps all entries of `table` for reading.
    ///
    /// # Errors
    ///
    /// [`TableError::Mmap`] where the map is not `BPF_F_MMAPABLE`, or memory is short.
    pub fn new<V: MapValue>(table: &Table<u32, V>) -> Result<Self, TableError> {
        let map = table.handle();
        let bytes = map.max_entries() as usize * size_of::<V>();
        let length = NonZeroUsize::new(bytes).expect("the kernel makes no map without entries");
        // SAFETY: a new mapping, at an address that the kernel chooses, touches no memory in use.
        let memory =
            unsafe { mmap(None, length, ProtFlags::PROT_READ, MmapFlags::MAP_SHARED, map.as_fd(), 0) }
                .map_err(|error| TableError::Mmap { map: name(map), source: error.into() })?;
        Ok(Self { memory: memory.cast(), words: bytes / size_of::<u64>() })
    }

    /// How many words of 64 bits there are.
    pub fn count(&self) -> usize {
        self.words
    }

    /// One word, as it is now.
    ///
    /// # Panics
    ///
    /// Where there are not so many.
    pub fn load(&self, index: usize) -> u64 {
        assert!(index < self.words, "word {index} of {}", self.words);
        // SAFETY: the word lies in the mapping, which is aligned to pages and stays until `self` is dropped. Others
        // write to it, which is what atomics are for; loads of this size do not write.
        unsafe { self.memory.add(index).as_ref() }.load(Ordering::Acquire)
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: `new` mapped exactly this, and nothing borrows from it.
        let unmapped = unsafe { munmap(self.memory.cast(), self.words * size_of::<u64>()) };
        debug_assert!(unmapped.is_ok(), "a mapping that exists can be unmapped");
    }
}

// SAFETY: the memory is read by atomic loads alone, and belongs to no thread.
unsafe impl Send for Words {}
