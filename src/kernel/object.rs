//! The maps of a loaded BPF object by name: kept in bpffs for others to find, and taken over by an upgrade in place.

use std::os::fd::AsFd;
use std::path::Path;

use libbpf_rs::{MapCore, MapHandle, Object, OpenMapMut};
use thiserror::Error;

use super::pins::{self, Instance, PinError};
use super::program::Program;
use super::xdp::PRIVILEGES;

/// Why an object could not be loaded, or its maps could not be kept or taken over.
#[derive(Debug, Error)]
pub enum ObjectError {
    #[error(
        "this kernel shows no BTF at {path}, which CO-RE programs need; boot a kernel built with CONFIG_DEBUG_INFO_BTF=y, as Debian's and Ubuntu's are"
    )]
    NoBtf { path: &'static str },
    #[error("cannot load the programs: {source}{hint}")]
    Load { source: libbpf_rs::Error, hint: String },
    #[error("cannot keep a handle on {what}: {source}")]
    Handle { what: String, source: libbpf_rs::Error },
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(
        "instance {name} has a map {map} of {found} entries, and this build of lb needs {wanted}; `{detach}` first: what it holds starts afresh"
    )]
    Size { name: String, map: String, found: u32, wanted: u32, detach: String },
}

const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Whether CO-RE programs can be loaded here.
///
/// # Errors
///
/// [`ObjectError::NoBtf`].
pub fn check_btf() -> Result<(), ObjectError> {
    if Path::new(BTF).exists() { Ok(()) } else { Err(ObjectError::NoBtf { path: BTF }) }
}

/// What libbpf says of opening or loading an object, with what to do about it. `takes_them` says which kernels load it.
pub fn load_error(source: libbpf_rs::Error, takes_them: &str) -> ObjectError {
    let words = "`lb -v` shows the verifier's words";
    // The kernel has two errors here, EPERM for privileges and EACCES from the verifier; libbpf-rs tells them as one.
    let hint = match source.kind() {
        libbpf_rs::ErrorKind::PermissionDenied => format!("{PRIVILEGES}; if that is so already, {words}"),
        // E2BIG, for which libbpf-rs has no kind: the verifier has looked at a million instructions and given up.
        _ if source.to_string().contains(&format!("os error {}", libc::E2BIG)) => {
            format!(": this kernel's verifier gives up on them; {takes_them}; {words}")
        }
        _ => format!("; {words}"),
    };
    ObjectError::Load { source, hint }
}

/// A handle on a loaded program, which outlives its object.
///
/// # Errors
///
/// [`ObjectError::Handle`] where file descriptors are short.
pub fn program(program: &impl AsFd) -> Result<Program, ObjectError> {
    Program::from_fd(program.as_fd())
        .map_err(|error| ObjectError::Handle { what: "a program".into(), source: error.into() })
}

/// Maps of an object, each with the name that it is pinned by.
#[derive(Debug)]
pub struct Maps(Vec<(&'static str, MapHandle)>);

impl Maps {
    /// Takes from a loaded object the maps that `pin_name` has a name for.
    ///
    /// # Errors
    ///
    /// [`ObjectError::Handle`] where file descriptors are short.
    pub fn of(
        object: &Object,
        pin_name: impl Fn(&std::ffi::OsStr) -> Option<&'static str>,
    ) -> Result<Self, ObjectError> {
        let mut maps = Vec::new();
        for map in object.maps() {
            let Some(name) = pin_name(map.name()) else { continue };
            maps.push((name, MapHandle::try_from(&map).map_err(handle_error(name))?));
        }
        Ok(Self(maps))
    }

    /// Another handle on the map of this name, which the object has.
    ///
    /// # Errors
    ///
    /// [`ObjectError::Handle`] where file descriptors are short.
    pub fn handle(&self, name: &str) -> Result<MapHandle, ObjectError> {
        let (_, map) = self.0.iter().find(|(other, _)| *other == name).expect("each map is listed");
        MapHandle::try_from(map).map_err(handle_error(name))
    }

    /// Pins all maps but the configuration, whose pin says that the instance is whole.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn pin(&mut self, instance: &Instance) -> Result<(), ObjectError> {
        for (name, map) in self.0.iter_mut().filter(|(name, _)| *name != pins::CONFIG) {
            let failed = |source| ObjectError::Handle { what: format!("pin {name}"), source };
            map.pin(instance.map_pin(name)).map_err(failed)?;
        }
        Ok(())
    }
}

/// Pins a map as the configuration of an instance, which makes it whole; in the place of an older one, if there is one, without
/// a moment between.
///
/// # Errors
///
/// What the kernel says.
pub fn pin_config(config: &mut MapHandle, instance: &Instance) -> Result<(), ObjectError> {
    let failed = |source| ObjectError::Handle { what: "pin config".into(), source };
    let next = instance.pin(pins::CONFIG_NEXT);
    // An upgrade that was cut short may have left its own.
    match std::fs::remove_file(&next) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error.into())),
        _ => {}
    }
    config.pin(&next).map_err(failed)?;
    std::fs::rename(&next, instance.pin(pins::CONFIG)).map_err(|error| failed(error.into()))
}

/// Puts the pinned map in the place of a new one. libbpf would take any number of entries for granted.
///
/// # Errors
///
/// Where there is no such pin, or where it has another number of entries.
pub fn reuse(instance: &Instance, name: &str, map: &mut OpenMapMut<'_>) -> Result<(), ObjectError> {
    let pinned =
        MapHandle::from_pinned_path(instance.map_pin(name)).map_err(|error| instance.corrupt(error))?;
    // Of another kind, it would be the verifier who notices, and its words are not for users.
    let kind = (map.map_type(), map.key_size(), map.value_size());
    if (pinned.map_type(), pinned.key_size(), pinned.value_size()) != kind {
        return Err(instance
            .corrupt(format!("its map {name} is none that this build of lb has made"))
            .into());
    }
    if pinned.max_entries() != map.max_entries() {
        return Err(ObjectError::Size {
            name: instance.name.clone(),
            map: name.into(),
            found: pinned.max_entries(),
            wanted: map.max_entries(),
            detach: instance.detach_command(),
        });
    }
    map.reuse_fd(pinned.as_fd()).map_err(handle_error(name))
}

/// Whether a map is the one that is pinned at `path` now: an instance may have been detached since the map was opened, and another
/// one attached by its name.
pub fn is_pinned_at(map: &MapHandle, path: &Path) -> bool {
    let id = |map: &MapHandle| map.info().map(|info| info.info.id);
    let pinned = MapHandle::from_pinned_path(path).and_then(|map| id(&map));
    pinned.is_ok_and(|pinned| id(map).is_ok_and(|own| own == pinned))
}

fn handle_error(name: &str) -> impl FnOnce(libbpf_rs::Error) -> ObjectError + use<> {
    let what = format!("map {name}");
    move |source| ObjectError::Handle { what, source }
}
