//! Maps with typed keys and values.

use std::io;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use nix::sys::mman::{MapFlags as MmapFlags, ProtFlags, mmap, munmap};
use thiserror::Error;

use super::value::MapValue;

/// What went wrong with a map.
#[derive(Debug, Error)]
pub enum TableError {
    #[error("cannot {action} map {map}: {source}")]
    Kernel { action: &'static str, map: String, source: libbpf_rs::Error },
    #[error(
        "map {map} has keys of {key} and values of {value} bytes, not the {expected_key} and {expected_value} of this build of lb"
    )]
    Layout { map: String, key: usize, value: usize, expected_key: usize, expected_value: usize },
    #[error("map {map} has no room left")]
    Full { map: String },
    #[error("cannot map {map} into memory: {source}")]
    Mmap { map: String, source: io::Error },
}

/// A map whose keys are `K` and whose values, one or one for each CPU, are `V`.
#[derive(Debug)]
pub struct Table<K, V> {
    handle: MapHandle,
    types: PhantomData<(K, V)>,
}

impl<K: MapValue, V: MapValue> Table<K, V> {
    /// Takes a map for what its sizes say it is.
    ///
    /// # Errors
    ///
    /// [`TableError::Layout`] where keys or values are of other sizes.
    pub fn new(handle: MapHandle) -> Result<Self, TableError> {
        let (key, value) = (handle.key_size() as usize, handle.value_size() as usize);
        if (key, value) != (size_of::<K>(), size_of::<V>()) {
            return Err(TableError::Layout {
                map: name(&handle),
                key,
                value,
                expected_key: size_of::<K>(),
                expected_value: size_of::<V>(),
            });
        }
        Ok(Self { handle, types: PhantomData })
    }

    /// Opens the map that is pinned at `path`.
    ///
    /// # Errors
    ///
    /// Where there is none, where it may not be opened, or where it has other sizes.
    pub fn open(path: &Path) -> Result<Self, TableError> {
        let handle = MapHandle::from_pinned_path(path).map_err(|source| TableError::Kernel {
            action: "open",
            map: path.display().to_string(),
            source,
        })?;
        Self::new(handle)
    }

    /// The value of `key`, or `None` where the map has none.
    ///
    /// # Errors
    ///
    /// What the kernel says but that the key is absent.
    pub fn get(&self, key: &K) -> Result<Option<V>, TableError> {
        let found = self.handle.lookup(key.as_bytes(), MapFlags::ANY).map_err(self.failed("read"))?;
        Ok(found.and_then(|bytes| V::from_bytes(&bytes)))
    }

    /// The values of `key` on each CPU, of a per-CPU map; empty where the map has none.
    ///
    /// # Errors
    ///
    /// What the kernel says but that the key is absent.
    pub fn get_per_cpu(&self, key: &K) -> Result<Vec<V>, TableError> {
        let found = self.handle.lookup_percpu(key.as_bytes(), MapFlags::ANY).map_err(self.failed("read"))?;
        Ok(found.unwrap_or_default().iter().filter_map(|bytes| V::from_bytes(bytes)).collect())
    }

    /// Sets the value of `key`.
    ///
    /// # Errors
    ///
    /// What the kernel says, such as that the map is full.
    pub fn set(&self, key: &K, value: &V) -> Result<(), TableError> {
        self.handle.update(key.as_bytes(), value.as_bytes(), MapFlags::ANY).map_err(self.failed("write to"))
    }

    /// Sets the values of the keys `first`, `first + 1` … of an array with one call.
    ///
    /// # Errors
    ///
    /// What the kernel says, such as that the map has fewer entries.
    pub fn set_from(&self, first: u32, values: &[V]) -> Result<(), TableError>
    where
        K: From<u32>,
    {
        if values.is_empty() {
            return Ok(());
        }
        let count = u32::try_from(values.len()).unwrap_or(u32::MAX);
        let keys: Vec<u8> = (first..first.saturating_add(count))
            .flat_map(|index| K::from(index).as_bytes().to_vec())
            .collect();
        let values: Vec<u8> = values.iter().flat_map(|value| value.as_bytes().to_vec()).collect();
        self.handle
            .update_batch(&keys, &values, count, MapFlags::ANY, MapFlags::ANY)
            .map_err(self.failed("write to"))
    }

    /// Sets the value of `key` on every CPU, of a per-CPU map.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn set_per_cpu(&self, key: &K, value: &V) -> Result<(), TableError> {
        let cpus = libbpf_rs::num_possible_cpus().map_err(self.failed("write to"))?;
        let values = vec![value.as_bytes().to_vec(); cpus];
        self.handle.update_percpu(key.as_bytes(), &values, MapFlags::ANY).map_err(self.failed("write to"))
    }

    /// Removes `key`. Nothing happens where the map has none.
    ///
    /// # Errors
    ///
    /// What the kernel says but that the key is absent.
    pub fn delete(&self, key: &K) -> Result<(), TableError> {
        match self.handle.delete(key.as_bytes()) {
            Err(error) if error.kind() == libbpf_rs::ErrorKind::NotFound => Ok(()),
            result => result.map_err(self.failed("delete from")),
        }
    }

    /// All keys at the time of the call.
    pub fn keys(&self) -> Vec<K> {
        self.handle.keys().filter_map(|bytes| K::from_bytes(&bytes)).collect()
    }

    /// The map itself.
    pub fn handle(&self) -> &MapHandle {
        &self.handle
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(libbpf_rs::Error) -> TableError + '_ {
        move |source| TableError::Kernel { action, map: name(&self.handle), source }
    }
}

fn name(handle: &MapHandle) -> String {
    handle.name().to_string_lossy().into_owned()
}

/// The entries of a `BPF_F_MMAPABLE` array as this process sees them: the same memory that the programs
/// in the kernel use, so all access is atomic.
#[derive(Debug)]
pub struct SharedWords {
    memory: NonNull<AtomicU64>,
    words: usize,
}

impl SharedWords {
    /// Maps all entries of `table` for reading and writing.
    ///
    /// # Errors
    ///
    /// [`TableError::Mmap`] where the map is not `BPF_F_MMAPABLE`, or memory is short.
    pub fn new<V: MapValue>(table: &Table<u32, V>) -> Result<Self, TableError> {
        let bytes = table.handle.max_entries() as usize * size_of::<V>();
        let length = NonZeroUsize::new(bytes).expect("the kernel makes no map without entries");
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address that the kernel chooses, touches no memory in use.
        let memory =
            unsafe { mmap(None, length, protection, MmapFlags::MAP_SHARED, table.handle.as_fd(), 0) }
                .map_err(|error| TableError::Mmap { map: name(&table.handle), source: error.into() })?;
        Ok(Self { memory: memory.cast(), words: bytes / size_of::<u64>() })
    }

    /// The entries one after the other, as words of 64 bits.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has this many words, is page aligned, and stays until `self` is dropped. Others
        // write to it, which is what atomics are for.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.words) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: `new` mapped exactly this, and no borrow of `words` outlives `self`.
        let unmapped = unsafe { munmap(self.memory.cast(), self.words * size_of::<u64>()) };
        debug_assert!(unmapped.is_ok(), "a mapping that exists can be unmapped");
    }
}

// SAFETY: the memory is reached through atomics alone, and belongs to no thread.
unsafe impl Send for SharedWords {}
// SAFETY: the same.
unsafe impl Sync for SharedWords {}
