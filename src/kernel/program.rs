//! Programs in the kernel: who they are, and runs of them on packets of our own (BPF_PROG_TEST_RUN).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// A loaded program.
#[derive(Debug)]
pub struct Program(OwnedFd);

/// What one call of BPF_PROG_TEST_RUN gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// What the program returned, the XDP action of an XDP program; of the last repetition.
    pub action: u32,
    /// The packet as the program left it.
    pub packet: Vec<u8>,
    /// Mean time of a repetition.
    pub duration: Duration,
}

/// How to run a program.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunOptions {
    /// How often; 0 is once. The packet is not reset in between.
    pub repeat: u32,
    /// The interface that the packet seems to come in on, by index in the caller's network namespace; the
    /// loopback interface if `None`.
    pub ingress_ifindex: Option<u32>,
    /// Send the packets for real (`BPF_F_TEST_XDP_LIVE_FRAMES`). The packet and the action are not returned then.
    pub live: bool,
}

impl Program {
    /// Another handle on a program that libbpf has loaded.
    ///
    /// # Errors
    ///
    /// Where file descriptors are short.
    pub fn from_fd(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self(fd.try_clone_to_owned()?))
    }

    /// The program with this id.
    ///
    /// # Errors
    ///
    /// `NotFound` where there is none (any more).
    pub fn from_id(id: u32) -> io::Result<Self> {
        // SAFETY: the call takes and returns numbers alone.
        let fd = check(unsafe { libbpf_sys::bpf_prog_get_fd_by_id(id) })?;
        // SAFETY: the kernel has just opened this descriptor for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The kernel's number for the program.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn id(&self) -> io::Result<u32> {
        Ok(self.info()?.id)
    }

    /// The program's name, cut to 15 bytes by the kernel.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn name(&self) -> io::Result<String> {
        let info = self.info()?;
        // SAFETY: the kernel ends the name with a NUL within the array.
        Ok(unsafe { CStr::from_ptr(info.name.as_ptr()) }.to_string_lossy().into_owned())
    }

    /// Total time of all runs and their number, since `BPF_STATS_RUN_TIME` was enabled.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn run_time(&self) -> io::Result<(Duration, u64)> {
        let info = self.info()?;
        Ok((Duration::from_nanos(info.run_time_ns), info.run_cnt))
    }

    fn info(&self) -> io::Result<libbpf_sys::bpf_prog_info> {
        let mut info = libbpf_sys::bpf_prog_info::default();
        let mut length = size_of_val(&info) as u32;
        // SAFETY: `info` is valid for `length` bytes, and all zero, so it asks for no array to be filled.
        check(unsafe {
            libbpf_sys::bpf_prog_get_info_by_fd(self.0.as_raw_fd(), &raw mut info, &raw mut length)
        })?;
        Ok(info)
    }

    /// Runs an XDP program on `packet`, a frame of at least 14 bytes.
    ///
    /// # Errors
    ///
    /// What the kernel says: a frame under 14 bytes is `InvalidInput`.
    pub fn run(&self, packet: &[u8], options: RunOptions) -> io::Result<Run> {
        // A program may grow a packet by the headroom that XDP leaves, 256 bytes.
        let mut out = vec![0u8; packet.len() + 256];
        let context = libbpf_sys::xdp_md {
            data_end: packet.len() as u32,
            ingress_ifindex: options.ingress_ifindex.unwrap_or_default(),
            ..Default::default()
        };
        let mut run = libbpf_sys::bpf_test_run_opts {
            sz: size_of::<libbpf_sys::bpf_test_run_opts>() as _,
            data_in: packet.as_ptr().cast(),
            data_size_in: packet.len() as u32,
            repeat: options.repeat.try_into().unwrap_or(i32::MAX),
            ..Default::default()
        };
        if options.ingress_ifindex.is_some() {
            run.ctx_in = (&raw const context).cast();
            run.ctx_size_in = size_of_val(&context) as u32;
        }
        if options.live {
            run.flags = libbpf_sys::BPF_F_TEST_XDP_LIVE_FRAMES;
        } else {
            run.data_out = out.as_mut_ptr().cast();
            run.data_size_out = out.len() as u32;
        }
        // SAFETY: all pointers in `run` are to buffers of the sizes beside them, which live until the call returns.
        check(unsafe { libbpf_sys::bpf_prog_test_run_opts(self.0.as_raw_fd(), &raw mut run) })?;
        out.truncate(if options.live { 0 } else { run.data_size_out as usize });
        Ok(Run { action: run.retval, packet: out, duration: Duration::from_nanos(run.duration.into()) })
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Turns libbpf's return values, negative error numbers, into results.
pub(super) fn check(returned: i32) -> io::Result<i32> {
    if returned < 0 { Err(io::Error::from_raw_os_error(-returned)) } else { Ok(returned) }
}
