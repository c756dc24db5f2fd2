//! The program that lets everything pass, and its user space but for the command line.

use std::ffi::OsStr;
use std::mem::MaybeUninit;

use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use serde_json::{Map, Value};

use crate::instance::{self, AttachError, Attached, Loaded};
use crate::kernel::counters::Count;
use crate::kernel::object::{self, ObjectError};
use crate::kernel::pins::{Instance, Root};
use crate::kernel::xdp::Mode;
use crate::stats::{Action, Verdict};
use skeleton::PassSkelBuilder;
use skeleton::types::{self, pass_limits, pass_verdict};

/// The generated skeleton of `bpf/pass.bpf.c`.
#[allow(clippy::all, clippy::pedantic)]
pub mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/pass.skel.rs"));
}

/// The folder of instances under the pin root.
pub const GROUP: &str = "pass";

/// The verdicts, in the order of `enum pass_verdict`.
pub const VERDICTS: [Verdict; pass_verdict::PASS_VERDICTS.0 as usize] =
    [Verdict::new("passed", Action::Pass, "everything")];

crate::map_values! { types::counter }

impl From<types::counter> for Count {
    fn from(counter: types::counter) -> Self {
        Self { packets: counter.packets, bytes: counter.bytes }
    }
}

/// What to attach.
#[derive(Clone, Debug)]
pub struct Request {
    /// That of the interface if `None`.
    pub name: Option<String>,
    pub dev: String,
    pub mode: Mode,
    pub netns: Option<String>,
    pub replace: bool,
}

/// Loads the program with new maps, or on those of `old`.
///
/// # Errors
///
/// Where the kernel refuses it, and where maps are not what this build needs.
pub fn load(old: Option<&Instance>) -> Result<Loaded<Map<String, Value>>, ObjectError> {
    object::check_btf()?;
    let load_error = |source| object::load_error(source, "Linux 6.1 and newer take them");
    let mut storage = MaybeUninit::uninit();
    let mut open = PassSkelBuilder::default().open(&mut storage).map_err(load_error)?;
    if let Some(instance) = old {
        object::reuse(instance, "verdicts", &mut open.maps.verdicts)?;
    }
    let skeleton = open.load().map_err(load_error)?;
    Ok(Loaded {
        program: object::program(&skeleton.progs.lb_pass)?,
        maps: object::Maps::of(skeleton.object(), pin_name)?,
        settings: Map::new(),
        warnings: Vec::new(),
    })
}

fn pin_name(map: &OsStr) -> Option<&'static str> {
    (map == "verdicts").then_some("verdicts")
}

/// Attaches as `request` says.
///
/// # Errors
///
/// Each [`AttachError`]; then the interface is as it was, and nothing is pinned.
pub fn attach(root: &Root, request: &Request) -> Result<Attached, AttachError> {
    let common = instance::Request {
        group: GROUP,
        name: request.name.clone(),
        dev: request.dev.clone(),
        mode: request.mode,
        netns: request.netns.clone(),
        replace: request.replace,
        layout: pass_limits::PASS_LAYOUT.0,
    };
    instance::attach(
        root,
        &common,
        |interface, kept| {
            let mut loaded = load(kept.map(|kept| &kept.instance))?;
            loaded.warnings.extend(interface.down_warning());
            Ok(loaded)
        },
        |_, _| Ok(Vec::new()),
    )
}
