//! `lb echo`: the responder to pings.

use std::net::IpAddr;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::companion::{Detach, On, Stats, report_attached, report_detached};
use super::{Failure, Global, Usage, on_signal};
use crate::echo::attach::{self, Rate, Request};
use crate::echo::datapath::{Maps, View, is_host};
use crate::echo::skeleton;
use crate::echo::watch::{Changes, Watcher};
use crate::echo::{GROUP, VERDICTS};
use crate::instance::Attached;
use crate::kernel::detach as kernel;
use crate::kernel::object;
use crate::kernel::xdp::Mode;
use crate::output;

/// How soon a signal, or that somebody else has detached, is seen.
const TICK: Duration = Duration::from_millis(200);

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Put the responder on an interface
    ///
    /// Echo requests of IPv4 and IPv6 for the interface's own MAC and addresses are answered there; everything else goes to the
    /// stack. Returns at once; everything is pinned in bpffs and stays until `lb echo detach`.
    Attach(Attach),
    /// Take it off again
    Detach(Detach),
    /// Show where frames ended: counters of the verdicts and of the XDP actions
    Stats(Stats),
}

#[derive(Debug, Args)]
pub struct Attach {
    #[command(flatten)]
    on: On,
    /// Answer for every host's address, not only for the interface's own
    #[arg(long)]
    any: bool,
    /// Answer for this address too
    #[arg(long = "address", value_name = "ADDR", value_parser = host)]
    addresses: Vec<IpAddr>,
    /// Answer each source at most so often, as 100/s, 30/m or 10/h, and drop what is more; a second's worth may come at once
    #[arg(long, value_name = "N/s")]
    rate: Option<Rate>,
    /// Give the far end of a veth the program that it needs (`lb pass`), and take it off again at detach
    #[arg(long)]
    with_peer: bool,
    /// Stay, and follow what the interface's addresses and MAC become; detaches on Ctrl-C
    #[arg(long)]
    watch_addresses: bool,
}

fn host(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text.parse().map_err(|error| format!("{error}"))?;
    if !is_host(address) {
        return Err("no host on a wire can own that address".into());
    }
    Ok(address)
}

impl Command {
    pub(super) fn run(self, global: &Global) -> Result<(), Failure> {
        match self {
            Self::Attach(attach) => attach.run(global),
            Self::Detach(detach) => detach.run(global, GROUP),
            Self::Stats(stats) => stats.run::<skeleton::types::counter>(global, GROUP, &VERDICTS),
        }
    }
}

impl Attach {
    fn run(self, global: &Global) -> Result<(), Failure> {
        if self.with_peer && self.on.mode != Mode::Drv {
            return Err(Usage(format!(
                "--with-peer: in {} mode replies leave a veth without a program at its far end; leave it out",
                self.on.mode
            ))
            .into());
        }
        let request = Request {
            name: self.on.name,
            dev: self.on.dev,
            mode: self.on.mode,
            netns: global.netns.clone(),
            replace: self.on.replace,
            any: self.any,
            rate: self.rate,
            addresses: self.addresses,
            with_peer: self.with_peer,
        };
        // Before the attach, so that no signal finds it done and nobody to undo it, and no change comes unheard.
        let watching = if self.watch_addresses {
            Some((on_signal()?, Changes::listen(request.netns.as_deref(), &request.dev)?))
        } else {
            None
        };
        let attached = attach::attach(&global.root(), &request)?;
        report_attached(global, &attached, request.mode);
        match watching {
            Some((stopped, changes)) => watch(global, &attached, changes, &stopped),
            None => Ok(()),
        }
    }
}

/// Follows the interface until a signal comes, then detaches; so also where the interface is gone. Ends too when somebody else has
/// detached.
fn watch(
    global: &Global,
    attached: &Attached,
    changes: Changes,
    stopped: &Receiver<()>,
) -> Result<(), Failure> {
    let (root, instance) = (global.root(), &attached.instance);
    let maps = Maps::open(instance)?;
    let mut watcher = Watcher::new(&root, attached, &maps, changes);
    let is_there =
        || instance.is_whole() && object::is_pinned_at(maps.views.handle(), &instance.map_pin("views"));
    let mut result = Ok(());
    while result.is_ok() && stopped.try_recv().is_err() {
        let seen = watcher.wait(TICK);
        if !is_there() {
            global.done(&format!("{} was detached by another command", instance.name));
            return Ok(());
        }
        match seen {
            Ok(None) => {}
            Ok(Some(view)) => show(global, &view),
            Err(error) => result = Err(error.into()),
        }
    }
    kernel::detach(&root, GROUP, &instance.name)?;
    report_detached(global, std::slice::from_ref(instance));
    result
}

fn show(global: &Global, view: &View) {
    let addresses: Vec<String> = view.addresses.iter().map(ToString::to_string).collect();
    if global.json {
        output::json(
            &serde_json::json!({ "mac": view.mac.to_string().to_lowercase(), "addresses": addresses }),
        );
    }
    let addresses = if addresses.is_empty() { "no address".into() } else { addresses.join(", ") };
    global.done(&format!("answering for {addresses} at {}", view.mac.to_string().to_lowercase()));
}
