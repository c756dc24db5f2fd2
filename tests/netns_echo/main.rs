//! The binary's `lb echo` and `lb pass` on real interfaces: what is answered, its life, its errors; and scripts/echo-lab.

#[path = "../common/mod.rs"]
mod common;

mod answers;
mod errors;
mod frames;
mod lab;
mod lifecycle;
mod peer;
mod script;
mod shown;
mod watch;
