//! What the kernel itself says is there, and programs of others that are in the way.

use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use libbpf_rs::query::{LinkInfoIter, MapInfo, MapInfoIter, ProgInfoIter, ProgInfoQueryOptions};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapHandle, Xdp, XdpFlags};

use super::command::eventually;
use super::folder::listing;
use super::namespace::Namespace;
use lb::kernel::interface::Interface;
use lb::kernel::program::Program;
use lb::kernel::xdp::{Link, Mode};

mod floor {
    include!(concat!(env!("OUT_DIR"), "/floor.skel.rs"));
}

/// The ids of everything in the kernel that belongs together. Other tests attach and detach meanwhile, so each says what is its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    pub maps: BTreeSet<u32>,
    pub programs: BTreeSet<u32>,
    pub links: BTreeSet<u32>,
}

impl Footprint {
    /// The maps that `is_ours` is true of, and what there is with them.
    pub fn with_maps(is_ours: impl Fn(&MapInfo) -> bool) -> Self {
        let maps = MapInfoIter::default().filter(is_ours).map(|map| map.id).collect();
        Self::around(maps, BTreeSet::new())
    }

    /// What is pinned below a folder, and what there is with it.
    #[track_caller]
    pub fn pinned(folder: &Path) -> Self {
        let (mut maps, mut programs) = (BTreeSet::new(), BTreeSet::new());
        for path in listing(folder).iter().filter(|path| path.is_file()) {
            if let Ok(link) = Link::open(path) {
                programs.insert(link.info().expect("it is a link").program_id);
            } else {
                let map = MapHandle::from_pinned_path(path).expect("what is no link is a map");
                maps.insert(map.info().expect("it is a map").info.id);
            }
        }
        Self::around(maps, programs)
    }

    /// These maps and programs, the programs of the maps, the maps of the programs, and the programs' links.
    fn around(mut maps: BTreeSet<u32>, mut programs: BTreeSet<u32>) -> Self {
        let options = ProgInfoQueryOptions::default().include_map_ids(true);
        for program in ProgInfoIter::with_query_opts(options) {
            if programs.contains(&program.id) || program.map_ids.iter().any(|id| maps.contains(id)) {
                programs.insert(program.id);
                maps.extend(program.map_ids);
            }
        }
        let links = LinkInfoIter::default().filter(|link| programs.contains(&link.prog_id));
        Self { links: links.map(|link| link.id).collect(), maps, programs }
    }

    /// What of it is still there.
    fn rest(&self) -> Self {
        let there = |ids: &BTreeSet<u32>, now: BTreeSet<u32>| ids.intersection(&now).copied().collect();
        Self {
            maps: there(&self.maps, MapInfoIter::default().map(|map| map.id).collect()),
            programs: there(&self.programs, ProgInfoIter::default().map(|program| program.id).collect()),
            links: there(&self.links, LinkInfoIter::default().map(|link| link.id).collect()),
        }
    }

    /// Waits until nothing of it is there. The kernel frees programs and maps a little after their last user has gone.
    #[track_caller]
    pub fn assert_gone(&self) {
        let gone = eventually(Duration::from_secs(10), || self.rest() == Self::default());
        assert!(gone, "the kernel still has {:?}", self.rest());
    }
}

/// A program of somebody else on an interface, until this is dropped.
pub struct Occupant {
    pub program: u32,
    kept: Kept,
}

enum Kept {
    Link(Link),
    Netlink { namespace: String, ifindex: u32, program: Program },
}

impl Occupant {
    /// Puts a program that drops everything on an interface, by a link.
    #[track_caller]
    pub fn by_link(namespace: &Namespace, interface: &str, mode: Mode) -> Self {
        let program = load();
        let link = namespace.within(|| {
            let interface = Interface::find(interface).expect("the interface is there");
            Link::attach(&program, &interface, mode).expect("nothing is in the way yet")
        });
        Self { program: program.id().expect("it is loaded"), kept: Kept::Link(link) }
    }

    /// The same, by netlink as `ip link set dev … xdp obj …` does.
    #[track_caller]
    pub fn by_netlink(namespace: &Namespace, interface: &str) -> Self {
        let program = load();
        let ifindex = namespace.within(|| {
            let interface = Interface::find(interface).expect("the interface is there");
            Xdp::new(program.as_fd())
                .attach(interface.index as i32, XdpFlags::DRV_MODE)
                .expect("nothing is in the way");
            interface.index
        });
        let id = program.id().expect("it is loaded");
        let namespace = namespace.name().to_owned();
        Self { program: id, kept: Kept::Netlink { namespace, ifindex, program } }
    }
}

impl Drop for Occupant {
    fn drop(&mut self) {
        match &self.kept {
            // A dropped link may live on for a moment, in a process that another test is just starting.
            Kept::Link(link) => {
                let _ = link.detach();
            }
            Kept::Netlink { namespace, ifindex, program } => {
                let _ = lb::kernel::netns::within(Some(namespace), || {
                    Xdp::new(program.as_fd()).detach(*ifindex as i32, XdpFlags::DRV_MODE)
                });
            }
        }
    }
}

#[track_caller]
fn load() -> Program {
    let mut storage = MaybeUninit::uninit();
    let skeleton = floor::FloorSkelBuilder::default().open(&mut storage).unwrap().load().unwrap();
    Program::from_fd(skeleton.progs.floor_empty.as_fd()).unwrap()
}
