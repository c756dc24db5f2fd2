//! The balancer's programs, loaded and filled as `attach` does, but on no interface.

use lb::lb::backend::{self, NewBackend};
use lb::lb::datapath::{Datapath, Settings};

use super::packet;

/// The loopback interface: the kernel takes it as a port, and a test run without live frames sends nothing.
const LOOPBACK: u32 = 1;

/// A datapath with `backends` backends of known MACs.
#[track_caller]
pub fn datapath(settings: &Settings, backends: u8) -> Datapath {
    let macs: Vec<_> = (0..backends).map(|index| Some(packet::backend_mac(index).into())).collect();
    datapath_of(settings, &macs)
}

/// A datapath with a backend for each element; `None` is one of unknown MAC.
#[track_caller]
pub fn datapath_of(settings: &Settings, macs: &[Option<macaddr::MacAddr6>]) -> Datapath {
    let datapath = Datapath::load(settings).expect("the programs load");
    let new: Vec<NewBackend> = macs
        .iter()
        .zip(0..)
        .map(|(mac, port)| NewBackend {
            name: format!("eth{}", port + 2),
            port,
            mac: *mac,
            ..NewBackend::default()
        })
        .collect();
    backend::install(&datapath.maps, &new).expect("the backends can be set up");
    for index in 0..macs.len() as u32 {
        datapath.maps.egress_ports.set(&index, &LOOPBACK).expect("an egress port can be set");
    }
    for index in 0..settings.ingress_count {
        datapath.maps.ingress_ports.set(&index, &LOOPBACK).expect("an ingress port can be set");
    }
    datapath
}
