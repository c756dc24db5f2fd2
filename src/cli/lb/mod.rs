//! The balancer's commands.

mod attach;
mod backend;
mod explain;
mod session;
mod stats;

use clap::{Args, Subcommand};

use super::{Failure, Global, Usage};
use crate::kernel::pins::{self, Instance, PinError};
use crate::lb::attach::{self as library, DetachError};
use crate::lb::config::duration;
use crate::lb::datapath::Maps;
use crate::lb::{DEFAULT_NAME, GROUP, status};
use crate::output;
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
    /// Show what is attached
    Status,
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
    /// Every instance under the pin root
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
            Self::Status => show_status(global),
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
        return Err(format!(
            "an attach or detach of {0} was cut short; `lb detach --name {0}` clears it away",
            instance.name
        )
        .into());
    }
    // Without the right to look, nothing seems to be there.
    if let Err(error) = std::fs::metadata(&instance.path)
        && error.kind() == std::io::ErrorKind::PermissionDenied
    {
        return Err(PinError::Io { action: "open", path: instance.path, source: error }.into());
    }
    Err(DetachError::Unknown { name: instance.name, known: library::known_names(&root)? }.into())
}

impl Detach {
    fn run(self, global: &Global) -> Result<(), Failure> {
        let names = if self.all {
            library::detach_all(&global.root())?
        } else {
            library::detach(&global.root(), &self.name.name)?;
            vec![self.name.name]
        };
        if global.json {
            output::json(&names);
        } else if names.is_empty() {
            global.done("nothing is attached");
        }
        for name in names {
            global.done(&format!("detached {name}"));
        }
        Ok(())
    }
}

fn show_status(global: &Global) -> Result<(), Failure> {
    let all = status::all(&global.root())?;
    if global.json {
        output::json(&all);
        return Ok(());
    }
    if all.is_empty() {
        global.done("nothing is attached");
        return Ok(());
    }
    let rows = all.iter().flat_map(|status| {
        let title = [status.name.clone(), status.group.clone()];
        let state = serde_json::to_value(status.state).unwrap_or_default();
        let state = state.as_str().unwrap_or_default().to_owned();
        if status.interfaces.is_empty() {
            return vec![[title.to_vec(), vec![state], vec!["-".into(); 4]].concat()];
        }
        status
            .interfaces
            .iter()
            .map(|attachment| {
                [
                    title.to_vec(),
                    vec![
                        state.clone(),
                        attachment.dev.clone(),
                        attachment.role.into(),
                        attachment.mode.map_or("-".into(), |mode| mode.to_string()),
                        attachment.program_id.map_or("gone".into(), |id| id.to_string()),
                    ],
                ]
                .concat()
            })
            .collect()
    });
    output::line(output::table(&["NAME", "GROUP", "STATE", "DEV", "ROLE", "MODE", "PROGRAM"], &[6], rows));
    for status in &all {
        if let Some(problem) = &status.problem {
            global.warn(&format!("{}: {problem}", status.name));
        }
    }
    Ok(())
}
