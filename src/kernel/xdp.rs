//! XDP programs on interfaces: attached by links that carry their mode, as `bpf_link_create` makes them.
//!
//! A link detaches its program when its last handle goes: the descriptor that a process has, or a pin. Netlink's
//! way of attaching is not used; its way of detaching says "done" to the wrong mode and does nothing.

use std::ffi::CString;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use thiserror::Error;

use super::interface::Interface;
use super::program::{Program, check};

/// Where in the kernel the program runs (include/uapi/linux/if_link.h, `XDP_FLAGS_*_MODE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// In the driver, before the kernel makes a socket buffer: the fast one
    Drv,
    /// In the network stack: works with every driver, at several times the cost per packet
    Skb,
    /// In the network card
    Hw,
}

impl Mode {
    fn flag(self) -> u32 {
        match self {
            Self::Drv => libbpf_sys::XDP_FLAGS_DRV_MODE,
            Self::Skb => libbpf_sys::XDP_FLAGS_SKB_MODE,
            Self::Hw => libbpf_sys::XDP_FLAGS_HW_MODE,
        }
    }

    /// The kernel's number for an attached program's mode (`XDP_ATTACHED_*`).
    pub fn attached(self) -> u8 {
        let number = match self {
            Self::Drv => libbpf_sys::XDP_ATTACHED_DRV,
            Self::Skb => libbpf_sys::XDP_ATTACHED_SKB,
            Self::Hw => libbpf_sys::XDP_ATTACHED_HW,
        };
        number as u8
    }

    /// The mode that the kernel's number stands for.
    pub fn from_attached(number: u8) -> Option<Self> {
        [Self::Drv, Self::Skb, Self::Hw].into_iter().find(|mode| mode.attached() == number)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Drv => "drv",
            Self::Skb => "skb",
            Self::Hw => "hw",
        })
    }
}

/// Why a program could not be attached, replaced or detached.
#[derive(Debug, Error)]
pub enum XdpError {
    #[error(
        "cannot attach to {interface}: XDP program {program} is there already; `lb status` says whether it is lb's, and `lb detach` removes that; `bpftool link show` names the link of another's, `bpftool link detach id LINK` removes it; one without a link goes by `ip link set dev {interface} xdp off`"
    )]
    Occupied { interface: String, program: String },
    #[error(
        "cannot attach to {interface}: its driver{driver} has no native XDP; use --mode skb, which costs several times more per packet"
    )]
    NoNative { interface: String, driver: String },
    #[error(
        "cannot attach to {interface}: its MTU is too large for native XDP here; lower it (`ip link set dev {interface} mtu 1500`), on the far end too if it is a veth, or use --mode skb, which costs several times more per packet"
    )]
    Mtu { interface: String },
    #[error("cannot attach to {interface} in {mode} mode: {source}{hint}")]
    Attach { interface: String, mode: Mode, source: io::Error, hint: &'static str },
    #[error("cannot {action} the link {path}: {source}")]
    Link { action: &'static str, path: String, source: io::Error },
}

/// An attachment of a program to an interface.
#[derive(Debug)]
pub struct Link(OwnedFd);

/// What the kernel says of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    pub program_id: u32,
    /// 0 where the interface is gone.
    pub ifindex: u32,
}

/// The hint that every refusal for lack of privileges ends with.
pub const PRIVILEGES: &str = "; run as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN";

impl Link {
    /// Attaches `program` to `interface`, which is in the caller's network namespace.
    ///
    /// # Errors
    ///
    /// Each [`XdpError`] but `Link`; the interface is left as it was.
    pub fn attach(program: &Program, interface: &Interface, mode: Mode) -> Result<Self, XdpError> {
        let options = libbpf_sys::bpf_link_create_opts {
            sz: size_of::<libbpf_sys::bpf_link_create_opts>() as _,
            flags: mode.flag(),
            ..Default::default()
        };
        // SAFETY: `options` is valid for the call, and the descriptors are open.
        let created = check(unsafe {
            libbpf_sys::bpf_link_create(
                program.as_fd().as_raw_fd(),
                interface.index as i32,
                libbpf_sys::BPF_XDP,
                &raw const options,
            )
        });
        match created {
            // SAFETY: the kernel has just opened this descriptor for us.
            Ok(fd) => Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) })),
            Err(source) => Err(explain(source, interface, mode)),
        }
    }

    /// Opens the link that is pinned at `path`.
    ///
    /// # Errors
    ///
    /// `NotFound` where there is none; `InvalidInput` where it is something else than a link.
    pub fn open(path: &Path) -> io::Result<Self> {
        let path = c_path(path);
        // SAFETY: `path` is a C string that lives until the call returns.
        let fd = check(unsafe { libbpf_sys::bpf_obj_get(path.as_ptr()) })?;
        // SAFETY: the kernel has just opened this descriptor for us.
        let link = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        // The kernel gives out maps and programs by the same call, and information on them by the same call too. A
        // link's id is what no other kind of object has (kernel/bpf/syscall.c, `bpf_link_show_fdinfo`).
        let kind = fs::read_to_string(format!("/proc/self/fdinfo/{}", link.0.as_raw_fd()))?;
        if kind.lines().any(|line| line.starts_with("link_id:")) {
            Ok(link)
        } else {
            Err(io::Error::from_raw_os_error(libc::EINVAL))
        }
    }

    /// Opens the link that is pinned at `path` if it is to the interface `ifindex` of the caller's network namespace. A number alone
    /// does not tell: the interface may have been made anew, or be one of another namespace.
    pub fn open_here(path: &Path, ifindex: u32) -> Option<Self> {
        let link = Self::open(path).ok()?;
        let program = link.info().ok()?.program_id;
        let here = attached_programs(ifindex).ok()?;
        here.iter().any(|(_, id)| *id == program).then_some(link)
    }

    /// Keeps the link alive by a name in bpffs.
    ///
    /// # Errors
    ///
    /// What the kernel says, such as that the name exists.
    pub fn pin(&self, path: &Path) -> Result<(), XdpError> {
        let c = c_path(path);
        // SAFETY: `c` is a C string that lives until the call returns.
        check(unsafe { libbpf_sys::bpf_obj_pin(self.0.as_raw_fd(), c.as_ptr()) })
            .map(drop)
            .map_err(|source| XdpError::Link { action: "pin", path: path.display().to_string(), source })
    }

    /// What the kernel says of the link now.
    ///
    /// # Errors
    ///
    /// `InvalidInput` where the descriptor is no link.
    pub fn info(&self) -> io::Result<LinkInfo> {
        let mut info = libbpf_sys::bpf_link_info::default();
        let mut length = size_of_val(&info) as u32;
        // SAFETY: `info` is valid for `length` bytes, and all zero, so it asks for no buffer to be filled.
        check(unsafe {
            libbpf_sys::bpf_link_get_info_by_fd(self.0.as_raw_fd(), &raw mut info, &raw mut length)
        })?;
        // SAFETY: links that this module makes and opens are XDP's, whose part of the union `xdp` is; and it is
        // one number, which any bytes are.
        let ifindex = unsafe { info.__bindgen_anon_1.xdp.ifindex };
        Ok(LinkInfo { program_id: info.prog_id, ifindex })
    }

    /// Puts `program` in the place of the link's program. Every packet meets either one or the other.
    ///
    /// # Errors
    ///
    /// What the kernel says, such as that the interface is gone.
    pub fn replace(&self, program: &Program) -> io::Result<()> {
        // SAFETY: both descriptors are open; without options the kernel replaces whatever is there.
        check(unsafe {
            libbpf_sys::bpf_link_update(self.0.as_raw_fd(), program.as_fd().as_raw_fd(), std::ptr::null())
        })
        .map(drop)
    }

    /// Takes the program off the interface at once, whoever else holds the link. A link whose interface
    /// is gone counts as detached.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn detach(&self) -> io::Result<()> {
        if self.info()?.ifindex == 0 {
            return Ok(());
        }
        // SAFETY: the descriptor is open.
        check(unsafe { libbpf_sys::bpf_link_detach(self.0.as_raw_fd()) }).map(drop)
    }
}

/// The programs on an interface, of the caller's network namespace, by mode.
///
/// # Errors
///
/// What the kernel says, such as that there is no such interface.
pub fn attached_programs(ifindex: u32) -> io::Result<Vec<(Mode, u32)>> {
    let found = query(ifindex)?;
    let ids = [(Mode::Drv, found.drv_prog_id), (Mode::Skb, found.skb_prog_id), (Mode::Hw, found.hw_prog_id)];
    Ok(ids.into_iter().filter(|(_, id)| *id != 0).collect())
}

/// Whether an interface of the caller's network namespace takes frames that native XDP redirects to it, now.
/// `None` where the kernel does not say, as before Linux 6.3.
pub fn takes_redirected_frames(ifindex: u32) -> Option<bool> {
    // include/uapi/linux/netdev.h, NETDEV_XDP_ACT_NDO_XMIT; the kernel checks it in xdp_ok_fwd_dev's callers.
    const NDO_XMIT: u64 = 1 << 2;
    let features = query(ifindex).ok()?.feature_flags;
    // No features at all is what an older kernel says of every interface, and asking for a driver's XDP
    // where there is none is refused anyway.
    (features != 0).then_some(features & NDO_XMIT != 0)
}

fn query(ifindex: u32) -> io::Result<libbpf_sys::bpf_xdp_query_opts> {
    let mut found = libbpf_sys::bpf_xdp_query_opts {
        sz: size_of::<libbpf_sys::bpf_xdp_query_opts>() as _,
        ..Default::default()
    };
    // SAFETY: `found` is valid for the size that it names.
    check(unsafe { libbpf_sys::bpf_xdp_query(ifindex as i32, 0, &raw mut found) })?;
    Ok(found)
}

fn explain(source: io::Error, interface: &Interface, mode: Mode) -> XdpError {
    let name = interface.name.clone();
    match source.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => {
            let programs = attached_programs(interface.index).unwrap_or_default();
            let program = programs.first().map_or("of another kind".to_owned(), |(_, id)| id.to_string());
            XdpError::Occupied { interface: name, program }
        }
        Some(libc::EOPNOTSUPP) if mode == Mode::Drv => XdpError::NoNative {
            driver: interface.driver().map(|driver| format!(" ({driver})")).unwrap_or_default(),
            interface: name,
        },
        Some(libc::ERANGE) => XdpError::Mtu { interface: name },
        Some(libc::EPERM | libc::EACCES) => {
            XdpError::Attach { interface: name, mode, source, hint: PRIVILEGES }
        }
        _ if mode == Mode::Drv => {
            XdpError::Attach { interface: name, mode, source, hint: "; --mode skb works with every driver" }
        }
        _ => XdpError::Attach { interface: name, mode, source, hint: "" },
    }
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path that was given as an argument has no NUL")
}
