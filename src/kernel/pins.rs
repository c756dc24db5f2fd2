//! Names in bpffs: where an instance of a datapath keeps what outlives the command that made it.
//!
//! `<root>/<group>/<name>/` holds one pin per map, one per link, and last `config`, the map with the
//! program's read-only data. An instance without `config` is one whose attach or detach was cut short: whoever meets it,
//! attach or detach, clears it away. One lock on the root orders attaches and detaches; the kernel takes it from a
//! process that dies.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;

use super::bpffs::{self, BpffsError};
use super::xdp::{Link, PRIVILEGES};

/// Where everything is pinned unless `--pin-root` says otherwise.
pub const DEFAULT_ROOT: &str = "/sys/fs/bpf/lb";

/// The pin that is made last and removed first: an instance that has it is whole.
pub const CONFIG: &str = "config";

/// Where an upgrade pins the new programs' `config` until they are in place.
pub const CONFIG_NEXT: &str = "config-next";

/// The groups that instances are of: the folders of the root that are lb's.
const GROUPS: [&str; 3] = ["lb", "echo", "pass"];

const LINK_PREFIX: &str = "link-";

const MAP_PREFIX: &str = "map-";

/// What went wrong with pins.
#[derive(Debug, Error)]
pub enum PinError {
    #[error(transparent)]
    Bpffs(#[from] BpffsError),
    #[error("cannot {action} {}: {source}{}", path.display(), hint(source))]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{} holds {entries}, which is not lb's; move it away, or choose another --name or --pin-root", path.display())]
    Foreign { path: PathBuf, entries: String },
    #[error("cannot make sense of {}: {source}; `{detach}` clears it away", path.display())]
    Corrupt { path: PathBuf, detach: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("bad name {name:?}: 1 to 31 letters, digits, '-' and '_'")]
    Name { name: String },
}

fn hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied { PRIVILEGES } else { "" }
}

/// A folder of bpffs under which instances live.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

/// The root, locked against other attaches and detaches.
#[derive(Debug)]
pub struct Locked {
    root: Root,
    _lock: Flock<File>,
}

/// One instance's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub group: String,
    pub name: String,
    pub path: PathBuf,
}

/// Whether an instance may be called so.
///
/// # Errors
///
/// [`PinError::Name`] where bpffs or the datapath's own fields would not take the name.
pub fn check_name(name: &str) -> Result<(), PinError> {
    let lawful = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 31 || !name.chars().all(lawful) {
        return Err(PinError::Name { name: name.into() });
    }
    Ok(())
}

impl Root {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The folder that an instance has or would have.
    ///
    /// # Errors
    ///
    /// [`PinError::Name`], see [`check_name`].
    pub fn instance(&self, group: &str, name: &str) -> Result<Instance, PinError> {
        check_name(name)?;
        Ok(Instance { group: group.into(), name: name.into(), path: self.0.join(group).join(name) })
    }

    /// All instances, whole or not, in the order of group and name. None where there is no root.
    ///
    /// # Errors
    ///
    /// Where a folder exists and cannot be read.
    pub fn instances(&self) -> Result<Vec<Instance>, PinError> {
        let mut found = Vec::new();
        for group in folders(&self.0)? {
            for name in folders(&self.0.join(&group))? {
                let path = self.0.join(&group).join(&name);
                found.push(Instance { group: group.clone(), name, path });
            }
        }
        Ok(found)
    }

    /// Makes the root if it is missing, mounting bpffs where that is possible, and locks it.
    ///
    /// # Errors
    ///
    /// Where there is no bpffs and none can be mounted, or privileges are missing.
    pub fn lock(&self) -> Result<Locked, PinError> {
        loop {
            bpffs::ensure(&self.0)?;
            let file = File::open(&self.0).map_err(failed("open", &self.0))?;
            let lock = Flock::lock(file, FlockArg::LockExclusive)
                .map_err(|(_, error)| failed("lock", &self.0)(error.into()))?;
            // The one who held the lock may have removed the folder: then this locks nothing that has a name.
            let locked = lock.metadata().map_err(failed("examine", &self.0))?;
            if fs::metadata(&self.0)
                .is_ok_and(|named| (named.dev(), named.ino()) == (locked.dev(), locked.ino()))
            {
                return Ok(Locked { root: self.clone(), _lock: lock });
            }
        }
    }

    /// The same, but where there is no root there is nothing to lock.
    ///
    /// # Errors
    ///
    /// As [`Root::lock`].
    pub fn lock_existing(&self) -> Result<Option<Locked>, PinError> {
        // What may not be looked at may be there: without the right to, nobody is told that there is nothing.
        if self.0.try_exists().map_err(failed("look for", &self.0))? {
            self.lock().map(Some)
        } else {
            Ok(None)
        }
    }
}

impl Locked {
    /// The root that is locked.
    pub fn root(&self) -> &Root {
        &self.root
    }
}

impl Drop for Locked {
    /// Removes the folders that nothing is in: a root without instances is a trace.
    fn drop(&mut self) {
        for group in GROUPS {
            let _ = fs::remove_dir(self.root.0.join(group));
        }
        let _ = fs::remove_dir(&self.root.0);
    }
}

impl Instance {
    /// Whether its attach came to its end.
    pub fn is_whole(&self) -> bool {
        self.pin(CONFIG).exists()
    }

    /// The command that removes it.
    pub fn detach_command(&self) -> String {
        // The balancer's commands are the ones without a group.
        let group = if self.group == GROUPS[0] { String::new() } else { format!("{} ", self.group) };
        format!("lb {group}detach --name {}", self.name)
    }

    /// That its pins make no sense, for this reason.
    pub fn corrupt(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> PinError {
        PinError::Corrupt { path: self.path.clone(), detach: self.detach_command(), source: source.into() }
    }

    /// Whether its group is one of lb's.
    pub fn is_of_lb(&self) -> bool {
        GROUPS.contains(&self.group.as_str())
    }

    /// Whether there is anything of it.
    pub fn exists(&self) -> bool {
        self.path.exists()
    }

    /// The path of the pin `name`.
    pub fn pin(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The path for a map. By a prefix, so that a build that knows other maps can remove them.
    pub fn map_pin(&self, name: &str) -> PathBuf {
        self.path.join(format!("{MAP_PREFIX}{name}"))
    }

    /// The path for the link to an interface. By index: a name may hold a dot, which bpffs refuses.
    pub fn link_pin(&self, role: &str, ifindex: u32) -> PathBuf {
        self.path.join(format!("{LINK_PREFIX}{role}-{ifindex}"))
    }

    /// Makes the folder.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn create(&self) -> Result<(), PinError> {
        fs::create_dir_all(&self.path).map_err(failed("create", &self.path))
    }

    /// The paths of its links.
    ///
    /// # Errors
    ///
    /// Where the folder cannot be read.
    pub fn links(&self) -> Result<Vec<PathBuf>, PinError> {
        let names = self.entries()?.into_iter().filter(|name| name.starts_with(LINK_PREFIX));
        Ok(names.map(|name| self.pin(&name)).collect())
    }

    /// The names in its folder.
    ///
    /// # Errors
    ///
    /// Where the folder cannot be read.
    pub fn entries(&self) -> Result<Vec<String>, PinError> {
        let entries = fs::read_dir(&self.path).map_err(failed("list", &self.path))?;
        let mut names: Vec<String> = entries
            .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
            .collect();
        names.sort();
        Ok(names)
    }

    /// Detaches its links and removes them, its maps and its folder. What else is in the folder stays.
    ///
    /// # Errors
    ///
    /// [`PinError::Foreign`] where something else was there, after all that is lb's has gone.
    pub fn remove(&self) -> Result<(), PinError> {
        // First of all: whatever cuts this short, what is left is not whole, and the next one clears it away.
        self.unpin(CONFIG)?;
        self.unpin(CONFIG_NEXT)?;
        for path in self.links()? {
            self.remove_link(&path)?;
        }
        for name in self.entries()?.iter().filter(|name| name.starts_with(MAP_PREFIX)) {
            self.unpin(name)?;
        }
        let left = self.entries()?;
        if !left.is_empty() {
            return Err(PinError::Foreign { path: self.path.clone(), entries: left.join(", ") });
        }
        fs::remove_dir(&self.path).map_err(failed("remove", &self.path))
    }

    /// Detaches the link that is pinned at `path`, and removes the pin. What is no link, for all its name, stays.
    ///
    /// # Errors
    ///
    /// What the kernel or the file system says.
    pub fn remove_link(&self, path: &Path) -> Result<(), PinError> {
        match Link::open(path) {
            Ok(link) => link.detach().map_err(failed("detach", path))?,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
            Err(error) => return Err(failed("open", path)(error)),
        }
        fs::remove_file(path).map_err(failed("remove", path))
    }

    /// Removes a map's pin, if there is one.
    fn unpin(&self, name: &str) -> Result<(), PinError> {
        let path = self.pin(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            // A folder with a map's name is somebody else's.
            Err(error) if error.raw_os_error() == Some(libc::EISDIR) => Ok(()),
            result => result.map_err(failed("remove", &path)),
        }
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PinError + use<> {
    let path = path.to_owned();
    move |source| PinError::Io { action, path, source }
}

/// The names of the folders in a folder, sorted; none where there is no such folder.
fn folders(path: &Path) -> Result<Vec<String>, PinError> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.map_err(failed("list", path))?,
    };
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    Ok(names)
}
