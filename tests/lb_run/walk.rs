//! Many clients in a row without a system call for each, by the program that benchmarks use (`bpf/testing/walk.bpf.c`).

use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use lb::kernel::program::{Program, RunOptions};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags};

use crate::common::packet::{Ike, client, ike};

#[allow(clippy::all)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/walk.skel.rs"));
}

/// A start of each of the first `clients` clients, one after the other on this CPU.
#[track_caller]
pub fn starts(program: &Program, v6: bool, clients: u32) {
    let mut storage = MaybeUninit::uninit();
    let open = skeleton::WalkSkelBuilder::default().open(&mut storage).expect("the walk opens");
    let mut walk = open.load().expect("the walk loads");
    let fd = program.as_fd().as_raw_fd().to_ne_bytes();
    walk.maps.next.update(&0u32.to_ne_bytes(), &fd, MapFlags::ANY).expect("a program can follow");

    // The four bytes that tell clients apart (`client`): IPv4 ends with them, an IPv6 /64 does.
    let state = walk.maps.bss_data.as_deref_mut().expect("the walk has variables");
    (state.walk_offset, state.walk_base) = match client(0, v6) {
        IpAddr::V4(v4) => (14 + 12, v4.into()),
        IpAddr::V6(v6) => (14 + 8 + 4, (u128::from(v6) >> 64) as u32),
    };
    state.walk_clients = clients;

    let first = Program::from_fd(walk.progs.walk.as_fd()).expect("a handle");
    let options = RunOptions { repeat: clients, ..Default::default() };
    first.run(&ike(client(0, v6), Ike::init(1)), options).expect("the program runs");
}
