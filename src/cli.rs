//! The command line: every command and option, and what each does with the library.

mod companion;
mod echo;
mod lb;
mod pass;
mod stats;
mod status;

use std::path::PathBuf;
use std::sync::mpsc;

use clap::{Parser, Subcommand};

use crate::kernel::pins::{DEFAULT_ROOT, Root};

/// Spread IPsec tunnels over VPN concentrators with XDP, and answer pings
///
/// `lb attach` puts the balancer on its interfaces and returns; from then on the kernel does the work, and no process
/// needs to run. `lb detach` takes it off again. The commands of a companion have its name in front, as `lb echo attach`.
#[derive(Debug, Parser)]
#[command(name = "lb", version, propagate_version = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options that every command takes.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options of every command")]
struct Global {
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    /// Folder in bpffs that holds what outlives a command
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_ROOT)]
    pin_root: PathBuf,
    /// Network namespace of the interfaces: a name as `ip netns` has it, or a path
    #[arg(long, global = true, value_name = "NAME|PATH")]
    netns: Option<String>,
    /// Show what libbpf and the kernel's verifier say
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    verbose: bool,
    /// Print neither warnings nor what was done
    #[arg(short, long, global = true)]
    quiet: bool,
}

impl Global {
    fn root(&self) -> Root {
        Root::new(&self.pin_root)
    }

    fn warn(&self, text: &str) {
        if !self.quiet {
            eprintln!("lb: warning: {text}");
        }
    }

    fn done(&self, text: &str) {
        if !self.quiet && !self.json {
            crate::output::line(text);
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Lb(lb::Command),
    /// Show what is attached
    Status,
    /// Answer pings in the driver
    #[command(subcommand)]
    Echo(echo::Command),
    /// Let everything pass: what the far end of a veth needs
    #[command(subcommand)]
    Pass(pass::Command),
}

/// Why a command failed.
pub type Failure = Box<dyn std::error::Error>;

/// Wrong usage that only the command itself can see, such as two options that contradict each other.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

impl Cli {
    /// Carries out the command.
    ///
    /// # Errors
    ///
    /// What failed, as one line that says what to do. [`Usage`] where the command line is wrong.
    pub fn run(self) -> Result<(), Failure> {
        if self.global.verbose {
            libbpf_rs::set_print(Some((libbpf_rs::PrintLevel::Debug, |_, text| eprint!("{text}"))));
        } else {
            libbpf_rs::set_print(None);
        }
        match self.command {
            Command::Lb(command) => command.run(&self.global),
            Command::Status => status::run(&self.global),
            Command::Echo(command) => command.run(&self.global),
            Command::Pass(command) => command.run(&self.global),
        }
    }
}

/// Hears of SIGINT, SIGTERM and SIGHUP from now on, instead of being ended by them.
fn on_signal() -> Result<mpsc::Receiver<()>, Failure> {
    let (stop, stopped) = mpsc::channel();
    ctrlc::set_handler(move || {
        // A second signal finds nobody to tell, and the first one is being obeyed.
        let _ = stop.send(());
    })?;
    Ok(stopped)
}
