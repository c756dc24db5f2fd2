//! The file system that pins live in.

use std::collections::HashSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use thiserror::Error;

/// Where every tool expects bpffs (Documentation/filesystems/bpf.rst).
const MOUNT_POINT: &str = "/sys/fs/bpf";

/// Mode of the folders that are made: what is pinned is nobody's but root's.
const FOLDER_MODE: u32 = 0o700;

/// Why there is no folder for pins.
#[derive(Debug, Error)]
pub enum BpffsError {
    #[error(
        "there is no bpffs at /sys/fs/bpf in this mount namespace, and a mount made here would end with it, as under `ip netns exec`: run `lb --netns NAME …` from outside instead"
    )]
    Hidden,
    #[error(
        "there is no bpffs at /sys/fs/bpf, and it cannot be mounted: {source}; mend: mount -t bpf bpf /sys/fs/bpf"
    )]
    Mount { source: io::Error },
    #[error(
        "the pin root {root} is not on a bpffs; mend: mkdir -p {root} && mount -t bpf bpf {root}, or leave --pin-root out"
    )]
    NotBpffs { root: String },
    #[error(
        "the pin root {root} has a part that bpffs refuses, a name with a dot; give --pin-root a path without"
    )]
    Dot { root: String },
    #[error(
        "the pin root {root} has a part that is a file, not a folder; remove it or give another --pin-root"
    )]
    NotAFolder { root: String },
    #[error("no privilege to use the pin root {root}: run as root (CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF)")]
    Privilege { root: String },
    #[error(
        "cannot make the pin root {root}: {source}; give another --pin-root, or see what lies in the way"
    )]
    Io { root: String, source: io::Error },
}

/// Makes sure that the folder `root` is there and lies on a bpffs.
///
/// A bpffs that is missing from `/sys/fs/bpf` is mounted, but only where the mount outlives the command: in the
/// mount namespace of the machine's or the container's init. A private mount namespace in which a bpffs is in
/// sight is as good as any.
///
/// # Errors
///
/// Each [`BpffsError`].
pub fn ensure(root: &Path) -> Result<(), BpffsError> {
    let shown = || root.display().to_string();
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::PermissionDenied => BpffsError::Privilege { root: shown() },
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            BpffsError::NotAFolder { root: shown() }
        }
        _ => BpffsError::Io { root: shown(), source },
    };

    let path = std::path::absolute(root).map_err(failed)?;
    let mut nearest = nearest_existing(&path).map_err(failed)?;
    if !is_bpffs(&nearest).map_err(failed)? {
        if path.starts_with(MOUNT_POINT) && !is_bpffs(Path::new(MOUNT_POINT)).unwrap_or(false) {
            mount_where_it_lasts(root)?;
            nearest = nearest_existing(&path).map_err(failed)?;
        }
        if !is_bpffs(&nearest).map_err(failed)? {
            return Err(BpffsError::NotBpffs { root: shown() });
        }
    }

    // bpffs would answer EPERM to a dot, which reads as a lack of privilege.
    let missing = path.strip_prefix(&nearest).unwrap_or(Path::new(""));
    if missing.to_string_lossy().contains('.') {
        return Err(BpffsError::Dot { root: shown() });
    }
    DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(&path).map_err(failed)
}

fn mount_where_it_lasts(root: &Path) -> Result<(), BpffsError> {
    let init = mount_numbers("/proc/1/mountinfo").map_err(|source| BpffsError::Mount { source })?;
    let here = mount_numbers("/proc/thread-self/mountinfo").map_err(|source| BpffsError::Mount { source })?;
    if init.is_disjoint(&here) {
        return Err(BpffsError::Hidden);
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RELATIME;
    mount(Some("bpf"), MOUNT_POINT, Some("bpf"), flags, Some("mode=0700")).map_err(|errno| match errno {
        Errno::EPERM | Errno::EACCES => BpffsError::Privilege { root: root.display().to_string() },
        _ => BpffsError::Mount { source: errno.into() },
    })
}

/// The numbers of the mounts that a process sees. No two mounts of a machine share a number (fs/namespace.c,
/// `mnt_alloc_id`), copies in another mount namespace have their own: two processes with a number in common are in one
/// mount namespace. `/proc/PID/ns/mnt` would say so too, but not to everyone: init may have capabilities that root lacks
/// here, and then it cannot be read.
fn mount_numbers(mountinfo: &str) -> io::Result<HashSet<u32>> {
    let text = fs::read_to_string(mountinfo)?;
    Ok(text.lines().filter_map(|line| line.split(' ').next()?.parse().ok()).collect())
}

/// The longest part of `path`, which is absolute, that exists.
fn nearest_existing(path: &Path) -> io::Result<PathBuf> {
    for ancestor in path.ancestors() {
        match fs::metadata(ancestor) {
            Ok(_) => return Ok(ancestor.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // What bpffs says to a name that it would not make (kernel/bpf/inode.c, `bpf_lookup`).
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

fn is_bpffs(path: &Path) -> io::Result<bool> {
    Ok(statfs(path)?.filesystem_type() == BPF_FS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_elsewhere_is_refused_with_the_command_that_mends_it() {
        let root = std::env::temp_dir().join(format!("lb-no-bpffs-{}", std::process::id())).join("pins");
        let error = ensure(&root).unwrap_err();
        assert!(matches!(error, BpffsError::NotBpffs { .. }), "{error}");
        assert!(error.to_string().contains(&format!("mount -t bpf bpf {}", root.display())), "{error}");
        assert!(!root.parent().unwrap().exists(), "nothing is made where it cannot serve");
    }

    #[test]
    fn a_root_below_a_file_is_refused() {
        let file = std::env::temp_dir().join(format!("lb-file-{}", std::process::id()));
        fs::write(&file, "").unwrap();
        let result = ensure(&file.join("pins"));
        fs::remove_file(&file).unwrap();
        assert!(matches!(result, Err(BpffsError::NotAFolder { .. })), "{result:?}");
    }

    #[test]
    fn the_nearest_existing_folder_is_found() {
        assert_eq!(
            nearest_existing(Path::new("/proc/self/no-such/deeper")).unwrap(),
            Path::new("/proc/self")
        );
        assert_eq!(nearest_existing(Path::new("/")).unwrap(), Path::new("/"));
    }
}
