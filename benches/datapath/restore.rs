//! One frame, again and again, for programs that change it.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

use ::lb::kernel::program::{Program, RunOptions};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, OpenObject};

use crate::common::namespace::Namespace;
use crate::live::set_port;
use crate::{REPEAT, cpu_nanoseconds};

#[allow(clippy::all)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/restore.skel.rs"));
}

/// The program that writes a frame's first bytes, in front of a program under test or of an interface.
pub struct Restorer<'obj> {
    skeleton: skeleton::RestoreSkel<'obj>,
    restore: Program,
    /// What can be behind it instead of a program under test.
    empty: Program,
    sender: Program,
}

impl<'obj> Restorer<'obj> {
    pub fn new(storage: &'obj mut MaybeUninit<OpenObject>) -> Self {
        let open = skeleton::RestoreSkelBuilder::default().open(storage).expect("the program opens");
        let skeleton = open.load().expect("the program loads");
        let handle =
            |program: &libbpf_rs::ProgramMut<'_>| Program::from_fd(program.as_fd()).expect("a handle");
        let restore = handle(&skeleton.progs.restore);
        let empty = handle(&skeleton.progs.restore_and_drop);
        let sender = handle(&skeleton.progs.restore_and_send);
        Self { skeleton, restore, empty, sender }
    }

    /// Takes from `frame` what each run is to begin with.
    fn keep(&mut self, frame: &[u8]) {
        let words = &mut self.skeleton.maps.bss_data.as_deref_mut().expect("it has variables").restore_words;
        for (word, bytes) in words.iter_mut().zip(frame.chunks_exact(size_of::<u64>())) {
            *word = u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
        }
    }

    /// Nanoseconds of a run, which begins with `frame`, with this program behind it; with an empty one if `None`.
    pub fn nanoseconds(&mut self, program: Option<&Program>, frame: &[u8]) -> f64 {
        let fd = program.unwrap_or(&self.empty).as_fd().as_raw_fd().to_ne_bytes();
        let next = &self.skeleton.maps.next;
        next.update(&0u32.to_ne_bytes(), &fd, MapFlags::ANY).expect("a program can follow");
        self.keep(frame);
        cpu_nanoseconds(&self.restore, frame, REPEAT)
    }

    /// Sends `frame` so many times out of an interface of a namespace.
    pub fn send(&mut self, namespace: &Namespace, interface: &str, frame: &[u8], times: u32) {
        set_port(namespace, interface, &self.skeleton.maps.ports);
        self.keep(frame);
        let options = RunOptions { repeat: times, live: true, ..Default::default() };
        let sender = &self.sender;
        namespace.within(|| sender.run(frame, options)).expect("frames are sent");
    }
}
