//! The balancer's user space: everything about it but the command line.
//!
//! `attach` brings programs onto interfaces and pins them; from then on no process is needed. The other modules
//! read and change what is pinned.

pub mod attach;
pub mod backend;
pub mod change;
pub mod config;
pub mod datapath;
pub mod explain;
pub mod interfaces;
pub mod schedule;
pub mod session;
pub mod stats;
pub mod status;
pub mod strongswan;

/// The generated skeleton of `bpf/lb.bpf.c`; its `types` are the structs of `bpf/include/lb.h`.
#[allow(clippy::all, clippy::pedantic)]
pub mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/lb.skel.rs"));
}

/// The folder of the balancer's instances under the pin root.
pub const GROUP: &str = "lb";

/// The name of an instance that none was given.
pub const DEFAULT_NAME: &str = "default";
