//! The balancer's binary on real interfaces: its life, its errors, and the packets that it forwards.

#[path = "../common/mod.rs"]
mod common;

mod backends;
mod config;
mod errors;
mod explain;
mod flood;
mod lab;
mod lifecycle;
mod packets;
mod scaleout;
mod sessions;
mod stats;
mod stream;
mod traffic;
mod upgrade;
