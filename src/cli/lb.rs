//! The balancer's commands.

use std::io;
use std::net::IpAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;

use super::{Failure, Global, Usage};
use crate::iflist::InterfaceList;
use crate::kernel::counters::Count;
use crate::kernel::pins::{self, Instance, PinError};
use crate::kernel::xdp::Mode;
use crate::lb::attach::{self, AttachError, DetachError, Request};
use crate::lb::backend::{self, Load};
use crate::lb::datapath::{Maps, Other, Policy, ReturnPath, Settings, VIPS_MAX};
use crate::lb::session::{Session, Sessions, State};
use crate::lb::skeleton::types::lb_verdict;
use crate::lb::stats::{self, Rate, Stats, UNPLACED, VERDICTS};
use crate::lb::{DEFAULT_NAME, GROUP, status};
use crate::output;

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
    /// Show backends
    Backend {
        #[command(flatten)]
        name: Name,
        #[command(subcommand)]
        command: BackendCommand,
    },
}

/// Which instance a command is about.
#[derive(Debug, Args)]
pub struct Name {
    /// Name of the instance
    #[arg(long, global = true, value_parser = instance_name, default_value = DEFAULT_NAME)]
    name: String,
}

#[derive(Debug, Args)]
pub struct Attach {
    /// Interfaces towards the clients: names and inclusive ranges, such as eth1,eth7..eth9
    #[arg(long, value_name = "IFLIST")]
    ingress: InterfaceList,
    /// Interfaces towards the backends, one backend behind each; NAME=MAC gives a backend's MAC
    #[arg(long, value_name = "IFLIST")]
    egress: InterfaceList,
    /// Where in the kernel the programs run
    #[arg(long, value_enum, default_value = "drv")]
    mode: Mode,
    #[command(flatten)]
    name: Name,
    /// Balance this address alone, and find the backends' MACs by it; may be repeated [default: every address]
    #[arg(long = "vip", value_name = "ADDR")]
    vips: Vec<IpAddr>,
    /// How a new client's backend is chosen
    #[arg(long, value_enum, default_value = "round-robin")]
    policy: Policy,
    /// What counts as one client: `address`, its IP address
    #[arg(long, value_enum, default_value = "address")]
    affinity: Affinity,
    /// How many clients can have an established session; takes 256 bytes for each
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4_194_304), default_value_t = Settings::default().max_sessions)]
    max_sessions: u32,
    /// How long an established session may be silent, such as 90m or 24h
    #[arg(long, value_name = "DUR", value_parser = idle_timeout, default_value = "24h")]
    idle_timeout: Duration,
    /// New sessions a second, in total; a twentieth of it for one source
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000), default_value_t = Settings::default().start_rate)]
    start_rate: u32,
    /// What happens to packets that are none of a VPN's
    #[arg(long, value_enum, default_value = "drop")]
    other: Other,
    /// Which way the backends' answers take: through this balancer, or past it
    #[arg(long, value_enum, default_value = "here")]
    return_path: ReturnPath,
    /// Upgrade in place if an instance of that name is attached: no packet is lost, no session forgotten
    #[arg(long)]
    replace: bool,
    /// Stay, print a line of counters each second, and detach on Ctrl-C or SIGTERM
    #[arg(long)]
    foreground: bool,
}

/// What the datapath takes for one client.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Affinity {
    /// An IP address
    Address,
}

#[derive(Debug, Args)]
pub struct Detach {
    #[command(flatten)]
    name: Name,
    /// Every instance under the pin root
    #[arg(long, conflicts_with = "name")]
    all: bool,
}

#[derive(Debug, Args)]
pub struct StatsArgs {
    #[command(flatten)]
    name: Name,
    /// Print again and again, with rates, until Ctrl-C
    #[arg(long, value_name = "DUR", value_parser = interval)]
    interval: Option<Duration>,
    /// Print as often as this
    #[arg(long, value_name = "N", requires = "interval", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub enum SessionCommand {
    /// All sessions
    List {
        /// Only those at this backend
        #[arg(long, value_name = "B")]
        backend: Option<String>,
    },
    /// The sessions of one client
    Get {
        /// The client's address
        address: IpAddr,
    },
    /// End the sessions of one client: its tunnel's packets go by hash from then on, and its next start may go elsewhere
    Del {
        /// The client's address
        address: IpAddr,
    },
    /// End all sessions: the packets of every tunnel go by hash from then on, until its client starts anew
    Flush,
}

#[derive(Debug, Subcommand)]
pub enum BackendCommand {
    /// All backends, and what each has to do
    List,
}

fn instance_name(text: &str) -> Result<String, PinError> {
    pins::check_name(text).map(|()| text.into())
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write it as 30s, 90m or 24h"))
}

fn idle_timeout(text: &str) -> Result<Duration, String> {
    let parsed = duration(text)?;
    let range = Duration::from_secs(1)..=Duration::from_secs(i32::MAX as u64);
    if range.contains(&parsed) { Ok(parsed) } else { Err("it must be from 1s to 68 years".into()) }
}

fn interval(text: &str) -> Result<Duration, String> {
    let parsed = duration(text)?;
    let range = Duration::from_millis(10)..=Duration::from_secs(24 * 3600);
    if range.contains(&parsed) { Ok(parsed) } else { Err("it must be from 10ms to 24h".into()) }
}

impl Command {
    pub(super) fn run(self, global: &Global) -> Result<(), Failure> {
        match self {
            Self::Attach(attach) => attach.run(global),
            Self::Detach(detach) => detach.run(global),
            Self::Status => show_status(global),
            Self::Stats(stats) => stats.run(global),
            Self::Session { name, command } => command.run(&open(global, &name)?, global),
            Self::Backend { name, command: BackendCommand::List } => {
                show_backends(&backend::loads(&open(global, &name)?)?, global);
                Ok(())
            }
        }
    }
}

/// The maps of the instance that a command is about.
fn open(global: &Global, name: &Name) -> Result<Maps, Failure> {
    let root = global.root();
    let instance = root.instance(GROUP, &name.name)?;
    if instance.is_whole() {
        return Ok(Maps::open(&instance)?);
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
    Err(DetachError::Unknown { name: instance.name, known: attach::known_names(&root)? }.into())
}

impl Attach {
    fn run(self, global: &Global) -> Result<(), Failure> {
        let Affinity::Address = self.affinity;
        let request = self.request(global)?;
        let root = global.root();
        attach::validate(&request).map_err(|error| Usage(error.to_string()))?;
        // Before the attach, so that no signal finds it done and nobody to undo it.
        let stopped = if self.foreground { Some(on_signal()?) } else { None };
        let attached = attach::attach(&root, &request).map_err(usage)?;
        for warning in &attached.warnings {
            global.warn(warning);
        }
        if let Some(stopped) = stopped {
            return foreground(global, &root.instance(GROUP, &request.name)?, &stopped);
        }
        let names = |list: &[crate::iflist::Listed]| {
            list.iter().map(|listed| listed.name.as_str()).collect::<Vec<_>>().join(",")
        };
        if global.json {
            output::json(&json!({
                "name": request.name, "replaced": attached.replaced, "warnings": attached.warnings,
            }));
        }
        global.done(&format!(
            "{} {}: {} -> {} ({})",
            if attached.replaced { "replaced" } else { "attached" },
            request.name,
            names(&request.ingress),
            names(&request.egress),
            request.mode
        ));
        Ok(())
    }

    fn request(&self, global: &Global) -> Result<Request, Usage> {
        if let Some(listed) = self.ingress.0.iter().find(|listed| listed.mac.is_some()) {
            return Err(Usage(format!(
                "--ingress {}=MAC: a MAC belongs to a backend, so to --egress",
                listed.name
            )));
        }
        if self.vips.len() > VIPS_MAX {
            return Err(Usage(format!(
                "more than {VIPS_MAX} VIPs; leave --vip out to balance every address"
            )));
        }
        if let Some(vip) = self.vips.iter().find(|vip| vip.is_multicast() || vip.is_unspecified()) {
            return Err(Usage(format!("--vip {vip}: no host can own that address")));
        }
        Ok(Request {
            name: self.name.name.clone(),
            ingress: self.ingress.0.clone(),
            egress: self.egress.0.clone(),
            mode: self.mode,
            settings: Settings {
                policy: self.policy,
                other: self.other,
                return_path: self.return_path,
                max_sessions: self.max_sessions,
                idle_timeout: self.idle_timeout,
                start_rate: self.start_rate,
                vips: self.vips.clone(),
                ingress_count: self.ingress.0.len() as u32,
                netns: global.netns.clone(),
            },
            replace: self.replace,
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

/// Hears of SIGINT, SIGTERM and SIGHUP from now on, instead of being ended by them.
fn on_signal() -> Result<mpsc::Receiver<()>, Failure> {
    let (stop, stopped) = mpsc::channel();
    ctrlc::set_handler(move || {
        // A second signal finds nobody to tell, and the first one is being obeyed.
        let _ = stop.send(());
    })?;
    Ok(stopped)
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
        (total, stats::rate(total - sum(before, wanted), seconds))
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

impl Detach {
    fn run(self, global: &Global) -> Result<(), Failure> {
        let names = if self.all {
            attach::detach_all(&global.root())?
        } else {
            attach::detach(&global.root(), &self.name.name)?;
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

impl StatsArgs {
    fn run(self, global: &Global) -> Result<(), Failure> {
        let maps = open(global, &self.name)?;
        let name = &self.name.name;
        let mut before = (Instant::now(), Stats::read(&maps)?);
        let Some(interval) = self.interval else {
            print_stats(global, name, &before.1, None);
            return Ok(());
        };
        let instance = global.root().instance(GROUP, name)?;
        let mut due = before.0;
        for _ in 0..self.count.unwrap_or(u64::MAX) {
            due += interval;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if !maps.are_of(&instance) {
                return Err(format!("{name} has been detached meanwhile").into());
            }
            let after = (Instant::now(), Stats::read(&maps)?);
            print_stats(global, name, &after.1, Some((&before.1, (after.0 - before.0).as_secs_f64())));
            before = after;
        }
        Ok(())
    }
}

fn print_stats(global: &Global, name: &str, now: &Stats, since: Option<(&Stats, f64)>) {
    if global.json {
        output::json(&now.to_json(name, since));
        return;
    }
    let row = |name: &str, meaning: &str, count: Count, old: Option<Count>| {
        let mut cells = vec![name.to_owned(), count.packets.to_string(), count.bytes.to_string()];
        if let (Some(old), Some((_, seconds))) = (old, since) {
            let rate = stats::rate(count - old, seconds);
            cells.push(format!("{:.1}", rate.packets_per_s));
            cells.push(format!("{:.1}", rate.bytes_per_s));
        }
        cells.push(meaning.to_owned());
        cells
    };
    let header = |first| {
        let rates: &[&str] = if since.is_some() { &["PACKETS/S", "BYTES/S"] } else { &[] };
        [&[first, "PACKETS", "BYTES"], rates, &[""]].concat()
    };
    let mut parts = Vec::new();
    let verdicts = (0..VERDICTS.len())
        .map(|i| row(VERDICTS[i].1, VERDICTS[i].2, now.verdicts[i], since.map(|(old, _)| old.verdicts[i])));
    parts.push(output::table(&header("VERDICT"), &[1, 2, 3, 4][..header("").len() - 2], verdicts));
    if now.unplaced.iter().any(|count| count.packets > 0) {
        let unplaced = (0..UNPLACED.len()).map(|i| {
            row(UNPLACED[i].1, UNPLACED[i].2, now.unplaced[i], since.map(|(old, _)| old.unplaced[i]))
        });
        parts.push(output::table(
            &header("START WITHOUT SESSION"),
            &[1, 2, 3, 4][..header("").len() - 2],
            unplaced,
        ));
    }
    parts.push(backend_table(&now.backends));
    if since.is_some() {
        parts.push(String::new());
    }
    output::line(parts.join("\n\n"));
}

/// A session as it is shown; an element of `lb session list --json`.
#[derive(Debug, Serialize)]
struct Shown {
    client: IpAddr,
    backend: String,
    state: State,
    age_s: u64,
    idle_s: u64,
    packets: u64,
    bytes: u64,
}

impl SessionCommand {
    fn run(self, maps: &Maps, global: &Global) -> Result<(), Failure> {
        let sessions = Sessions::open(maps)?;
        match self {
            Self::List { backend } => {
                let mut shown = shown(maps, sessions.iter())?;
                if let Some(wanted) = backend {
                    let names: Vec<String> =
                        backend::list(maps)?.into_iter().map(|backend| backend.name).collect();
                    if !names.contains(&wanted) {
                        return Err(
                            format!("there is no backend {wanted}; there is {}", names.join(", ")).into()
                        );
                    }
                    shown.retain(|session| session.backend == wanted);
                }
                show_sessions(&shown, global);
            }
            Self::Get { address } => {
                let shown = shown(maps, sessions.of(address.to_canonical()))?;
                if shown.is_empty() {
                    return Err(no_session(address));
                }
                show_sessions(&shown, global);
            }
            Self::Del { address } => {
                let removed = sessions.remove(address.to_canonical());
                if removed == 0 {
                    return Err(no_session(address));
                }
                show_removed(removed, global);
            }
            Self::Flush => show_removed(sessions.flush(), global),
        }
        Ok(())
    }
}

fn no_session(address: IpAddr) -> Failure {
    format!("{address} has no session; `lb session list` shows who has").into()
}

fn shown(maps: &Maps, sessions: impl Iterator<Item = Session>) -> Result<Vec<Shown>, Failure> {
    let backends = backend::list(maps)?;
    let name = |index| {
        backends
            .iter()
            .find(|backend| backend.index == index)
            .map_or("?".into(), |backend| backend.name.clone())
    };
    let mut shown: Vec<Shown> = sessions
        .map(|session| Shown {
            client: session.client,
            backend: name(session.backend),
            state: session.state,
            age_s: session.age.as_secs(),
            idle_s: session.idle.as_secs(),
            packets: session.packets,
            bytes: session.bytes,
        })
        .collect();
    shown.sort_by_key(|session| session.client);
    Ok(shown)
}

fn show_sessions(sessions: &[Shown], global: &Global) {
    if global.json {
        output::json(&sessions);
        return;
    }
    let rows = sessions.iter().map(|session| {
        vec![
            session.client.to_string(),
            session.backend.clone(),
            match session.state {
                State::Embryonic => "embryonic".into(),
                State::Established => "established".into(),
            },
            output::seconds(session.age_s),
            output::seconds(session.idle_s),
            session.packets.to_string(),
            session.bytes.to_string(),
        ]
    });
    let header = ["CLIENT", "BACKEND", "STATE", "AGE", "IDLE", "PACKETS", "BYTES"];
    output::line(output::table(&header, &[3, 4, 5, 6], rows));
}

fn show_removed(removed: usize, global: &Global) {
    if global.json {
        output::json(&json!({ "removed": removed }));
    } else {
        global.done(&format!("ended {removed} session{}", if removed == 1 { "" } else { "s" }));
    }
}

fn show_backends(backends: &[Load], global: &Global) {
    if global.json {
        output::json(&backends);
    } else {
        output::line(backend_table(backends));
    }
}

fn backend_table(backends: &[Load]) -> String {
    let rows = backends.iter().map(|backend| {
        vec![
            backend.name.clone(),
            backend.dev.clone(),
            match &backend.mac {
                Some(mac) if backend.mac_learned => format!("{mac} (learned)"),
                Some(mac) => mac.clone(),
                None => "unknown".into(),
            },
            backend.weight.to_string(),
            match backend.state {
                backend::State::Active => "active".into(),
                backend::State::Unresolved => "unresolved".into(),
            },
            backend.heard_s.map_or("never".into(), |ago| format!("{} ago", output::seconds(ago.into()))),
            backend.sessions.to_string(),
            backend.sent.packets.to_string(),
            backend.sent.bytes.to_string(),
        ]
    });
    let header = ["BACKEND", "DEV", "MAC", "WEIGHT", "STATE", "HEARD", "SESSIONS", "PACKETS", "BYTES"];
    output::table(&header, &[3, 6, 7, 8], rows)
}
