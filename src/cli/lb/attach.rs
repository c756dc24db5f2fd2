//! `lb attach`, and what `--foreground` does after it.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use super::{Failure, Global, Name, Usage};
use crate::cli::on_signal;
use crate::iflist::InterfaceList;
use crate::kernel::counters::Count;
use crate::kernel::pins::Instance;
use crate::kernel::xdp::Mode;
use crate::lb::GROUP;
use crate::lb::attach::{self, AttachError, Replace, Request};
use crate::lb::config::{self, Config, MAX_SESSIONS, SPI_SHARD, START_RATE};
use crate::lb::datapath::{Affinity, Maps, OnDown, Other, Policy, ReturnPath, Settings, VIPS_MAX};
use crate::lb::skeleton::types::lb_verdict;
use crate::lb::stats::{self, VERDICTS};
use crate::output;
use crate::stats::{Rate, rate};

#[derive(Debug, Args)]
pub struct Attach {
    /// Interfaces towards the clients: names and inclusive ranges, such as eth1,eth7..eth9
    #[arg(long, value_name = "IFLIST", required_unless_present = "config")]
    ingress: Option<InterfaceList>,
    /// Interfaces towards the backends, one backend behind each; NAME=MAC gives a backend's MAC
    #[arg(long, value_name = "IFLIST", required_unless_present = "config")]
    egress: Option<InterfaceList>,
    /// Where in the kernel the programs run [default: drv]
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    #[command(flatten)]
    name: Name,
    /// Take all this from a TOML file, whose keys are these options' names, and which may have a [[backend]] for each backend
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = [
            "ingress", "egress", "vips", "policy", "affinity", "spi_shard", "max_sessions", "idle_timeout",
            "start_rate", "other", "on_down", "down_after", "return_path",
        ]
    )]
    config: Option<PathBuf>,
    /// Balance this address alone, and find the backends' MACs by it; may be repeated [default: every address]
    #[arg(long = "vip", value_name = "ADDR")]
    vips: Vec<IpAddr>,
    /// How a new client's backend is chosen
    #[arg(long, value_enum, default_value = "round-robin")]
    policy: Policy,
    /// What counts as one client
    #[arg(long, value_enum, default_value = "address")]
    affinity: Affinity,
    /// The top BITS bits of the SPIs that a backend chooses name it, see `lb backend strongswan`
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u32).range(SPI_SHARD))]
    spi_shard: Option<u32>,
    /// How many clients can have an established session; takes 256 bytes for each, 1 KiB with --affinity tunnel
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(MAX_SESSIONS), default_value_t = Settings::default().max_sessions)]
    max_sessions: u32,
    /// How long an established session may be silent, such as 90m or 24h
    #[arg(long, value_name = "DUR", value_parser = config::idle_timeout, default_value = "24h")]
    idle_timeout: Duration,
    /// New sessions a second, in total; a twentieth of it for one source
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(START_RATE), default_value_t = Settings::default().start_rate)]
    start_rate: u32,
    /// What happens to packets that are none of a VPN's
    #[arg(long, value_enum, default_value = "drop")]
    other: Other,
    /// What becomes of the sessions at a backend that is down
    #[arg(long, value_enum, default_value = "rehash")]
    on_down: OnDown,
    /// Take a backend for down that has answered nothing for so long; 0 is never
    #[arg(long, value_name = "DUR", value_parser = config::down_after, default_value = "0")]
    down_after: Duration,
    /// Which way the backends' answers take: through this balancer, or past it
    #[arg(long, value_enum, default_value = "here")]
    return_path: ReturnPath,
    /// Upgrade in place if an instance of that name is attached: no packet is lost, no session forgotten
    ///
    /// Interfaces have to be the same, and backends stay as they are but for MACs that are given. With --config, interfaces
    /// and backends become what the file says too: what differs is changed, the rest is not touched.
    #[arg(long)]
    replace: bool,
    /// End the sessions of backends that the file does not have any more
    #[arg(long, requires_all = ["replace", "config"], conflicts_with_all = ["ingress", "egress"])]
    force: bool,
    /// Stay, print a line of counters each second, and detach on Ctrl-C or SIGTERM
    #[arg(long)]
    foreground: bool,
}

impl Attach {
    pub(super) fn run(self, global: &Global) -> Result<(), Failure> {
        let request = match &self.config {
            Some(path) => self.request_of_file(path, global)?,
            None => self.request(global)?,
        };
        let root = global.root();
        attach::validate(&request).map_err(|error| match &self.config {
            Some(path) => format!("{}: {error}", path.display()).into(),
            None => Failure::from(Usage(error.to_string())),
        })?;
        // Before the attach, so that no signal finds it done and nobody to undo it.
        let stopped = if self.foreground { Some(on_signal()?) } else { None };
        let attached = attach::attach(&root, &request).map_err(usage)?;
        for warning in &attached.warnings {
            global.warn(warning);
        }
        if let Some(stopped) = stopped {
            return foreground(global, &root.instance(GROUP, &request.name)?, &stopped);
        }
        if global.json {
            output::json(&json!({
                "name": request.name, "replaced": attached.replaced, "warnings": attached.warnings,
            }));
        }
        global.done(&format!(
            "{} {}: {} -> {} ({})",
            if attached.replaced { "replaced" } else { "attached" },
            request.name,
            request.ingress.join(","),
            request.egress().join(","),
            request.mode
        ));
        Ok(())
    }

    fn request(&self, global: &Global) -> Result<Request, Failure> {
        let list = |list: &Option<InterfaceList>| list.clone().map(|list| list.0).unwrap_or_default();
        let (ingress, egress) = (list(&self.ingress), list(&self.egress));
        if let Some(listed) = ingress.iter().find(|listed| listed.mac.is_some()) {
            return Err(Usage(format!(
                "--ingress {}=MAC: a MAC belongs to a backend, so to --egress",
                listed.name
            ))
            .into());
        }
        if self.vips.len() > VIPS_MAX {
            return Err(Usage(format!(
                "more than {VIPS_MAX} VIPs; leave --vip out to balance every address"
            ))
            .into());
        }
        for vip in &self.vips {
            config::check_vip(*vip).map_err(Usage)?;
        }
        Ok(Request {
            name: self.name.name.clone(),
            ingress: ingress.into_iter().map(|listed| listed.name).collect(),
            backends: config::one_behind_each(&egress),
            mode: self.mode.unwrap_or(Mode::Drv),
            settings: Settings {
                policy: self.policy,
                affinity: self.affinity,
                on_down: self.on_down,
                spi_shard: self.spi_shard.unwrap_or_default(),
                down_after: self.down_after,
                other: self.other,
                return_path: self.return_path,
                max_sessions: self.max_sessions,
                idle_timeout: self.idle_timeout,
                start_rate: self.start_rate,
                vips: self.vips.clone(),
                netns: global.netns.clone(),
                ..Settings::default()
            },
            replace: if self.replace { Replace::Programs } else { Replace::No },
        })
    }

    fn request_of_file(&self, path: &Path, global: &Global) -> Result<Request, Failure> {
        let file = Config::read(path)?;
        Ok(Request {
            name: self.name.name.clone(),
            ingress: file.ingress,
            backends: file.backends,
            mode: self.mode.or(file.mode).unwrap_or(Mode::Drv),
            settings: Settings { netns: global.netns.clone(), ..file.settings },
            replace: if self.replace { Replace::All { force: self.force } } else { Replace::No },
        })
    }
}

/// Errors that are the command line's fault though only the library can see them.
fn usage(error: AttachError) -> Failure {
    match error {
        AttachError::SameInterface(..) => Usage(error.to_string()).into(),
        other => other.into(),
    }
}

/// Prints a line of totals each second until a signal comes, then detaches; so also when the lines find no reader
/// any more. Ends too when somebody else has detached.
fn foreground(global: &Global, instance: &Instance, stopped: &mpsc::Receiver<()>) -> Result<(), Failure> {
    let maps = Maps::open(instance)?;
    let watched = watch(global, instance, &maps, stopped);
    if !maps.are_of(instance) {
        global.done(&format!("{} was detached by another command", instance.name));
        return watched;
    }
    attach::detach(&global.root(), &instance.name)?;
    if watched.is_ok() {
        global.done(&format!("detached {}", instance.name));
    }
    match watched {
        Err(error) if error.downcast_ref().is_some_and(is_broken_pipe) => Ok(()),
        result => result,
    }
}

fn is_broken_pipe(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

fn watch(
    global: &Global,
    instance: &Instance,
    maps: &Maps,
    stopped: &mpsc::Receiver<()>,
) -> Result<(), Failure> {
    let mut before = (Instant::now(), stats::read_verdicts(maps)?);
    while stopped.recv_timeout(Duration::from_secs(1)).is_err() {
        if !maps.are_of(instance) {
            break;
        }
        let after = (Instant::now(), stats::read_verdicts(maps)?);
        let seconds = (after.0 - before.0).as_secs_f64();
        let established = maps.session_totals.get(&0)?.unwrap_or_default().established;
        output::try_line(totals(global, &before.1, &after.1, seconds, established))?;
        before = after;
    }
    Ok(())
}

/// The counter line: what went each way, in all and in the last second.
fn totals(global: &Global, before: &[Count], after: &[Count], seconds: f64, established: u64) -> String {
    let sum = |counts: &[Count], wanted: &dyn Fn(lb_verdict) -> bool| -> Count {
        VERDICTS
            .iter()
            .zip(counts)
            .filter(|((verdict, ..), _)| wanted(*verdict))
            .map(|(_, count)| *count)
            .sum()
    };
    let forwarded =
        |verdict| [lb_verdict::LB_SESSION, lb_verdict::LB_NEW, lb_verdict::LB_STATELESS].contains(&verdict);
    let returned = |verdict| verdict == lb_verdict::LB_RETURNED;
    let dropped = |verdict| {
        [
            lb_verdict::LB_MALFORMED,
            lb_verdict::LB_KEEPALIVE_DROPPED,
            lb_verdict::LB_OTHER_DROPPED,
            lb_verdict::LB_NO_BACKEND,
        ]
        .contains(&verdict)
    };
    let part = |wanted: &dyn Fn(lb_verdict) -> bool| {
        let total = sum(after, wanted);
        (total, rate(total - sum(before, wanted), seconds))
    };
    let (forwarded, returned, dropped) = (part(&forwarded), part(&returned), part(&dropped));
    if global.json {
        let value = |(total, rate): (Count, Rate)| {
            json!({
                "packets": total.packets, "bytes": total.bytes,
                "packets_per_s": rate.packets_per_s, "bytes_per_s": rate.bytes_per_s,
            })
        };
        json!({
            "forwarded": value(forwarded), "returned": value(returned), "dropped": value(dropped),
            "established": established,
        })
        .to_string()
    } else {
        let text = |(total, rate): (Count, Rate)| format!("{} ({:.0}/s)", total.packets, rate.packets_per_s);
        format!(
            "forwarded {}  returned {}  dropped {}  established {established}",
            text(forwarded),
            text(returned),
            text(dropped)
        )
    }
}
