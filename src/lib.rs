//! The library behind the `lb` binary; tests and benchmarks use it too.
//!
//! `kernel` deals with the kernel and knows no datapath; each other module is the user space of one.

pub mod cli;
pub mod echo;
pub mod iflist;
pub mod instance;
pub mod kernel;
pub mod lb;
pub mod output;
pub mod pass;
pub mod stats;
