//! The balancer's datapath, packet by packet: every row of its dispatch table and every malformed variant, on the loaded
//! programs (BPF_PROG_TEST_RUN).
//!
//! A fixture is one packet, what came before it, and all that is to come of it: verdict, XDP action, the bytes
//! that leave, the interface they leave by, and every counter and session. What no single packet
//! shows, such as floods, time and two CPUs at once, has tests of its own.

mod backends;
#[path = "../common/mod.rs"]
mod common;
mod down;
mod draining;
mod esp;
mod fixture;
mod fragments;
mod headers;
mod icmp;
mod ike;
mod ingress;
mod labels;
mod learning;
mod load;
mod neighbour;
mod peer;
mod schedule;
mod sessions;
mod tunnel;
mod walk;

use std::net::IpAddr;

/// Runs `work` for IPv4 and for IPv6, with a client of the family and another one.
#[track_caller]
fn families(work: impl Fn(IpAddr, IpAddr)) {
    for v6 in [false, true] {
        work(common::packet::client(1, v6), common::packet::client(2, v6));
    }
}
