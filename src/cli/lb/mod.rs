//! The balancer's commands.

mod attach;
mod backend;
mod explain;
mod session;
mod stats;

use clap::{Args, Subcommand};

use super::companion::report_detached;
use super::{Failure, Global, Usage};
use crate::instance::cut_short;
use crate::kernel::detach::{self, DetachError};
use crate::kernel::pins::{self, Instance, PinError};
use crate::lb::attach as library;
use crate::lb::datapath::Maps;
use crate::lb::{DEFAULT_NAME, GROUP};
use attach::Attach;
use backend::BackendCommand;
use explain::Explain;
use session::SessionCommand;
use stats::StatsArgs;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Put the balancer on its interfaces
    ///
    /// Returns as soon as packets are forwarded. Everything is pinned in bpffs and stays until `lb detach`.
    Attach(Box<Attach>),
    /// Take the balancer off its interfaces, with all its state
    Detach(Detach),
    /// Show where packets ended: counters of the verdicts, and of each backend
    Stats(StatsArgs),
    /// Show and end sessions: which client is at which backend
    Session {
        #[command(flatten)]
        name: Name,
        #[command(subcommand)]
        command: SessionCommand,
    },
    /// Show backends, and add, remove and change them while packets pass
    Backend {
        #[command(flatten)]
        name: Name,
        #[command(subcommand)]
        command: BackendCommand,
    },
    /// Show what would become of packets, and by which rule
    ///
    /// Runs the attached program's own code on the packets of a capture, or on one packet that the options describe, and
    /// changes nothing: the program is loaded a second time, on a copy of the tables, with no reference to the live ones,
    /// which are opened for reading alone. No frame leaves. The packets of a capture are explained in their order, each as if it
    /// came now: a packet finds what those before it have left in the copy.
    Explain(Box<Explain>),
}

/// Which instance a command is about.
#[derive(Debug, Args)]
pub struct Name {
    /// Name of the instance
    #[arg(long, global = true, value_parser = instance_name, default_value = DEFAULT_NAME)]
    name: String,
}

#[derive(Debug, Args)]
pub struct Detach {
    #[command(flatten)]
    name: Name,
    /// Every instance of every group under the pin root
    #[arg(long, conflicts_with = "name")]
    all: bool,
}

fn instance_name(text: &str) -> Result<String, PinError> {
    pins::check_name(text).map(|()| text.into())
}

impl Command {
    pub(super) fn run(self, global: &Global) -> Result<(), Failure> {
        match self {
            Self::Attach(attach) => attach.run(global),
            Self::Detach(detach) => detach.run(global),
            Self::Stats(stats) => stats.run(global),
            Self::Session { name, command } => command.run(&name, global),
            Self::Backend { name, command } => command.run(&name, global),
            Self::Explain(explain) => explain.run(global),
        }
    }
}

/// The maps of the instance that a command is about.
fn open(global: &Global, name: &Name) -> Result<Maps, Failure> {
    Ok(Maps::open(&instance(global, name)?)?)
}

/// The instance that a command is about.
fn instance(global: &Global, name: &Name) -> Result<Instance, Failure> {
    let root = global.root();
    let instance = root.instance(GROUP, &name.name)?;
    if instance.is_whole() {
        return Ok(instance);
    }
    if instance.exists() {
        return Err(cut_short(&instance).into());
    }
    // Without the right to look, nothing seems to be there.
    if let Err(error) = std::fs::metadata(&instance.path)
        && error.kind() == std::io::ErrorKind::PermissionDenied
    {
        return Err(PinError::Io { action: "open", path: instance.path, source: error }.into());
    }
    Err(DetachError::Unknown { name: instance.name, known: detach::known_names(&root, GROUP)? }.into())
}

impl Detach {
    fn run(self, global: &Global) -> Result<(), Failure> {
        let gone = if self.all {
            detach::detach_all(&global.root())?
        } else {
            let root = global.root();
            let instance = root.instance(GROUP, &self.name.name)?;
            library::detach(&root, &instance.name)?;
            vec![instance]
        };
        if gone.is_empty() {
            global.done("nothing is attached");
        }
        report_detached(global, &gone);
        Ok(())
    }
}
