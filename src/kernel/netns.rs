//! Network namespaces: doing something inside one, as `--netns` asks.
//!
//! Only the network namespace changes. The mount namespace stays the caller's, so that the pins under bpffs
//! stay in sight; `ip netns exec` hides them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::{fs, thread};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use thiserror::Error;

/// Where `ip netns add` keeps namespaces by name (`man 8 ip-netns`), and where it did before /run.
const FOLDERS: [&str; 2] = ["/run/netns", "/var/run/netns"];

/// How many names an error lists.
const LISTED: usize = 8;

/// Why a network namespace could not be entered.
#[derive(Debug, Error)]
pub enum NetnsError {
    #[error(
        "there is no network namespace {name} under /run/netns ({there}); give one of them to --netns, or a path such as /proc/PID/ns/net"
    )]
    Unknown { name: String, there: String },
    #[error(
        "cannot open the network namespace {path}: {source}; give --netns a path that is there, as /proc/PID/ns/net is for a running process, or a name under /run/netns"
    )]
    Open { path: String, source: io::Error },
    #[error(
        "{path} is not a network namespace; give --netns a name under /run/netns, or a path such as /proc/PID/ns/net"
    )]
    Foreign { path: String },
    #[error("no privilege to enter the network namespace {path}: run as root (CAP_SYS_ADMIN)")]
    Privilege { path: String },
    #[error(
        "cannot enter the network namespace {path}: {source}; `ip netns` lists the namespaces that are there"
    )]
    Enter { path: String, source: io::Error },
}

/// Moves the calling thread, and no other, into a network namespace; threads that it starts later begin there.
///
/// `namespace` is a path if it has a `/`, such as `/proc/123/ns/net`, else a name under `/run/netns`.
///
/// # Errors
///
/// Each [`NetnsError`]; the thread is then where it was.
pub fn enter(namespace: &str) -> Result<(), NetnsError> {
    let path = locate(namespace)?;
    let shown = || path.display().to_string();
    let file = File::open(&path).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => NetnsError::Privilege { path: shown() },
        _ => NetnsError::Open { path: shown(), source },
    })?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|errno| match errno {
        Errno::EINVAL => NetnsError::Foreign { path: shown() },
        Errno::EPERM => NetnsError::Privilege { path: shown() },
        _ => NetnsError::Enter { path: shown(), source: errno.into() },
    })
}

/// Runs `work` inside a network namespace, in the caller's if `None`, and returns what it returned. The caller's
/// own thread never changes its namespace. A panic of `work` goes on in the caller.
///
/// # Errors
///
/// Each [`NetnsError`]; `work` has not run then.
pub fn within<T: Send>(namespace: Option<&str>, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    let Some(namespace) = namespace else { return Ok(work()) };
    thread::scope(|scope| {
        let inside = scope.spawn(|| enter(namespace).map(|()| work()));
        inside.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// The number of the calling thread's network namespace, its inode, which no other has at the same time; 0 without /proc.
pub fn identity() -> u64 {
    fs::metadata("/proc/thread-self/ns/net").map_or(0, |metadata| metadata.ino())
}

/// The network namespaces that have a name, and their files, sorted by name.
pub fn named() -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    for entry in FOLDERS.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten() {
        if let Ok(name) = entry.file_name().into_string() {
            found.entry(name).or_insert(entry.path());
        }
    }
    found
}

/// The file that stands for a namespace.
fn locate(namespace: &str) -> Result<PathBuf, NetnsError> {
    if namespace.contains('/') {
        return Ok(namespace.into());
    }
    let file = FOLDERS.iter().map(|folder| Path::new(folder).join(namespace)).find(|path| path.exists());
    // Joined to an empty name, the folder itself would be found.
    file.filter(|_| !namespace.is_empty()).ok_or_else(|| NetnsError::Unknown {
        name: if namespace.is_empty() { "\"\"".into() } else { namespace.into() },
        there: shorten(&named().into_keys().collect::<Vec<_>>())
            .map_or("there is none".into(), |names| format!("there: {names}")),
    })
}

/// The first few of `names` in a line, and how many more there are; `None` if there are none.
pub(super) fn shorten(names: &[String]) -> Option<String> {
    let shown = names.iter().take(LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => None,
        count if count > LISTED => Some(format!("{shown} and {} more", count - LISTED)),
        _ => Some(shown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_an_error_that_names_it() {
        let error = enter("no-such-namespace").unwrap_err();
        assert!(matches!(&error, NetnsError::Unknown { name, .. } if name == "no-such-namespace"), "{error}");
        assert!(error.to_string().contains("--netns"), "{error}");
    }

    #[test]
    fn an_empty_name_is_unknown() {
        assert!(matches!(enter(""), Err(NetnsError::Unknown { .. })));
    }

    #[test]
    fn a_path_that_is_not_there_is_an_error() {
        let error = enter("/proc/0/ns/net").unwrap_err();
        assert!(matches!(&error, NetnsError::Open { path, .. } if path == "/proc/0/ns/net"), "{error}");
    }

    #[test]
    fn without_a_namespace_the_work_runs_here() {
        let here = thread::current().id();
        assert_eq!(within(None, || thread::current().id()).unwrap(), here);
    }

    #[test]
    fn work_does_not_run_where_the_namespace_is_unknown() {
        let result = within(Some("no-such-namespace"), || panic!("the work ran"));
        assert!(result.is_err());
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<String> = (0..10).map(|number| format!("n{number}")).collect();
        assert_eq!(shorten(&names).unwrap(), "n0, n1, n2, n3, n4, n5, n6, n7 and 2 more");
        assert_eq!(shorten(&names[..2]).unwrap(), "n0, n1");
        assert_eq!(shorten(&[]), None);
    }
}
