//! What an instance says of itself, for the commands that come later: a JSON document in a map that no program uses.
//!
//! It is the instance's `config`, so that it is pinned last and replaced as a whole.

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::object::{self, ObjectError};
use super::pins::{self, Instance, PinError};
use super::value::text;

/// Pins `document` as the configuration of an instance, which makes it whole; in the place of an older one, if there is one.
///
/// # Errors
///
/// What the kernel says.
pub fn write(instance: &Instance, document: &impl Serialize) -> Result<(), ObjectError> {
    let failed = |source| ObjectError::Handle { what: "the record of the instance".into(), source };
    let mut bytes = serde_json::to_vec(document).expect("a record has text keys alone");
    // A zero ends it, as `text` wants it; the kernel's values are of multiples of eight bytes.
    bytes.resize((bytes.len() + 1).next_multiple_of(8), 0);
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
        ..Default::default()
    };
    let mut map = MapHandle::create(MapType::Array, Some("record"), 4, bytes.len() as u32, 1, &options)
        .map_err(failed)?;
    map.update(&0u32.to_ne_bytes(), &bytes, MapFlags::ANY).map_err(failed)?;
    object::pin_config(&mut map, instance)
}

/// The document of an instance.
///
/// # Errors
///
/// Where there is none, or where it is another than a `T`.
pub fn read<T: DeserializeOwned>(instance: &Instance) -> Result<T, PinError> {
    let map = MapHandle::from_pinned_path(instance.pin(pins::CONFIG));
    let value = map.and_then(|map| map.lookup(&0u32.to_ne_bytes(), MapFlags::ANY));
    let bytes = value.map_err(|error| instance.corrupt(error))?.unwrap_or_default();
    serde_json::from_str(&text(&bytes)).map_err(|error| instance.corrupt(error))
}
