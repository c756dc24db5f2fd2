//! Frames between network namespaces, sent by the kernel itself and counted where they arrive.

use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use ::lb::kernel::interface::Interface;
use ::lb::kernel::program::{Program, RunOptions};
use ::lb::kernel::xdp::{Link, Mode};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle};

use crate::common::namespace::Namespace;
use crate::floor;

/// Points a program that redirects at an interface.
pub fn set_port(namespace: &Namespace, interface: &str, map: &libbpf_rs::MapMut<'_>) {
    // A thread of its own needs a handle of its own.
    let map = MapHandle::try_from(map).expect("a handle");
    namespace.within(move || {
        let index = Interface::find(interface).expect("an interface").index;
        map.update(&0u32.to_ne_bytes(), &index.to_ne_bytes(), MapFlags::ANY).expect("a port can be set");
    });
}

/// Sends frames out of an interface.
pub struct Sender<'a> {
    namespace: &'a Namespace,
    redirect: Program,
}

impl<'a> Sender<'a> {
    pub fn new(namespace: &'a Namespace, interface: &str) -> Self {
        let mut storage = MaybeUninit::uninit();
        let open = floor::FloorSkelBuilder::default().open(&mut storage).expect("the floor opens");
        let skeleton = open.load().expect("the floor loads");
        set_port(namespace, interface, &skeleton.maps.ports);
        // The program holds its maps when the skeleton has gone.
        Self {
            namespace,
            redirect: Program::from_fd(skeleton.progs.floor_redirect.as_fd()).expect("a handle"),
        }
    }

    pub fn send(&self, frame: &[u8], times: u32) {
        let options = RunOptions { repeat: times, live: true, ..Default::default() };
        self.namespace.within(|| self.redirect.run(frame, options)).expect("frames are sent");
    }
}

/// Counts and drops what arrives at an interface, as long as it lives.
pub struct Receiver {
    arrived: MapHandle,
    _link: Link,
}

impl Receiver {
    pub fn new(namespace: &Namespace, interface: &str) -> Self {
        let mut storage = MaybeUninit::uninit();
        let open = floor::FloorSkelBuilder::default().open(&mut storage).expect("the floor opens");
        let skeleton = open.load().expect("the floor loads");
        let count = Program::from_fd(skeleton.progs.floor_count.as_fd()).expect("a handle");
        let link = namespace.within(|| {
            let interface = Interface::find(interface).expect("the receiver's interface");
            Link::attach(&count, &interface, Mode::Drv).expect("the receiver counts")
        });
        Self { arrived: MapHandle::try_from(&skeleton.maps.arrived).expect("a handle"), _link: link }
    }

    fn arrived(&self) -> u64 {
        let values = self.arrived.lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY);
        let values = values.expect("counters can be read").expect("an array has its entries");
        values.iter().map(|bytes| u64::from_ne_bytes(bytes[..8].try_into().expect("a counter"))).sum()
    }

    /// How many frames arrive while and after `send` sends them, and how many a second.
    pub fn measure(&self, send: impl FnOnce()) -> (u64, f64) {
        let before = self.arrived();
        let start = Instant::now();
        send();
        let mut last = self.arrived();
        let mut end = Instant::now();
        // Frames may still be under way when the sender is done.
        loop {
            std::thread::sleep(Duration::from_millis(5));
            let now = self.arrived();
            if now == last {
                break;
            }
            (last, end) = (now, Instant::now());
        }
        let counted = last - before;
        (counted, counted as f64 / (end - start).as_secs_f64())
    }
}
