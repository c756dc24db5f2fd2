//! `lb backend`: the concentrators behind the balancer.

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use macaddr::MacAddr6;
use serde_json::json;

use super::{Failure, Global, Name, instance};
use crate::cli::on_signal;
use crate::iflist;
use crate::lb::backend::{self, Backend, Load, Wanted};
use crate::lb::change::{self, ChangeError, Live, Spec};
use crate::lb::config::{WEIGHT, duration};
use crate::lb::datapath::Maps;
use crate::lb::strongswan::Snippet;
use crate::output;

/// How often a wait looks whether it is over.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Subcommand)]
pub enum BackendCommand {
    /// All backends, and what each has to do
    List,
    /// Add a backend; the interface that it is behind is attached if it is a new one
    Add(Add),
    /// Remove a backend; the interface that it was behind is let go if nothing else is behind it
    ///
    /// One that has sessions is not removed unless --wait or --force says so.
    Remove(Remove),
    /// Give a backend no new clients; what it has stays
    Drain {
        /// Name of the backend
        #[arg(value_name = "B")]
        backend: String,
    },
    /// Give a backend everything again
    Activate {
        /// Name of the backend
        #[arg(value_name = "B")]
        backend: String,
    },
    /// Give a backend nothing any more; what becomes of its sessions is --on-down's to say
    Down {
        /// Name of the backend
        #[arg(value_name = "B")]
        backend: String,
    },
    /// Change a backend
    Set(Set),
    /// Print what to write into a strongSwan backend's strongswan.conf, so that its SPIs name it (--spi-shard)
    Strongswan {
        /// Name of the backend
        #[arg(value_name = "B")]
        backend: String,
    },
}

#[derive(Debug, Args)]
pub struct Add {
    /// Name of the new backend
    #[arg(value_name = "B")]
    backend: String,
    /// The interface that it is behind: an egress interface of the instance, or a new one
    #[arg(long, value_name = "IF")]
    dev: String,
    /// Its MAC; needed where several backends are behind one interface [default: asked for, or learned]
    #[arg(long, value_name = "MAC", value_parser = iflist::parse_mac)]
    mac: Option<MacAddr6>,
    /// Its share of new clients, 0 to 256
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(WEIGHT), default_value_t = backend::DEFAULT_WEIGHT)]
    weight: u32,
    /// What its SPIs begin with (--spi-shard) [default: the lowest that is free]
    #[arg(long, value_name = "N")]
    label: Option<u32>,
}

#[derive(Debug, Args)]
pub struct Remove {
    /// Name of the backend
    #[arg(value_name = "B")]
    backend: String,
    /// Drain it, wait until it has no session any more, and then remove it; give up after DUR, such as 30m
    #[arg(long, value_name = "DUR", num_args = 0..=1, value_parser = duration, conflicts_with = "force")]
    wait: Option<Option<Duration>>,
    /// End its sessions; remove it even if it is the only one
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
pub struct Set {
    /// Name of the backend
    #[arg(value_name = "B")]
    backend: String,
    #[command(flatten)]
    values: Values,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Values {
    /// Its share of new clients, 0 to 256
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(WEIGHT))]
    weight: Option<u32>,
    /// Its MAC
    #[arg(long, value_name = "MAC", value_parser = iflist::parse_mac)]
    mac: Option<MacAddr6>,
    /// What its SPIs begin with (--spi-shard)
    #[arg(long, value_name = "N")]
    label: Option<u32>,
}

impl BackendCommand {
    pub(super) fn run(self, name: &Name, global: &Global) -> Result<(), Failure> {
        match self {
            Self::List => show_backends(&backend::loads(&super::open(global, name)?)?, global),
            Self::Add(add) => return add.run(name, global),
            Self::Remove(remove) => return remove.run(name, global),
            Self::Drain { backend } => return set_wanted(&backend, Wanted::Draining, name, global),
            Self::Activate { backend } => return set_wanted(&backend, Wanted::Active, name, global),
            Self::Down { backend } => return set_wanted(&backend, Wanted::Down, name, global),
            Self::Set(set) => {
                let (changed, maps) =
                    change(name, global, |live| live.set(&set.backend, |spec| set.values.apply(spec)))?;
                report(&maps, &changed, global, &format!("changed {}", changed.name))?;
            }
            Self::Strongswan { backend } => {
                let maps = super::open(global, name)?;
                let snippet = Snippet::new(&maps, &change::find(&maps, &backend)?)?;
                if global.json {
                    output::json(&snippet);
                } else {
                    output::line(snippet.to_string());
                }
            }
        }
        Ok(())
    }
}

/// Changes an instance, with nobody else changing anything meanwhile. Gives the maps back too, to look at what came of it.
fn change<T>(
    name: &Name,
    global: &Global,
    work: impl FnOnce(&Live<'_>) -> Result<T, ChangeError>,
) -> Result<(T, Maps), Failure> {
    let _lock = global.root().lock_existing()?;
    let instance = instance(global, name)?;
    let maps = Maps::open(&instance)?;
    let done = work(&Live::new(&instance, &maps, global.netns.as_deref())?)?;
    Ok((done, maps))
}

/// Says what was done to a backend; as JSON, shows the backend as `lb backend list` does.
fn report(maps: &Maps, changed: &Backend, global: &Global, text: &str) -> Result<(), Failure> {
    if global.json {
        let loads = backend::loads(maps)?;
        output::json(&loads.iter().find(|load| load.name == changed.name));
    }
    global.done(text);
    Ok(())
}

fn counted(sessions: usize) -> String {
    format!("{sessions} session{}", if sessions == 1 { "" } else { "s" })
}

fn set_wanted(backend: &str, wanted: Wanted, name: &Name, global: &Global) -> Result<(), Failure> {
    let ((changed, all), maps) = change(name, global, |live| {
        let changed = live.set_wanted(backend, wanted)?;
        Ok((changed, live.backends()?))
    })?;
    if !all.iter().any(|other| other.wanted == Wanted::Active) {
        global.warn(if all.iter().any(|other| other.wanted == Wanted::Draining) {
            "no backend is active, so draining ones get new clients all the same"
        } else {
            "every backend is down: all packets to them are dropped"
        });
    }
    let sessions = change::sessions_at(&maps, changed.index)?;
    report(&maps, &changed, global, &format!("{backend} is {}, with {}", wanted.name(), counted(sessions)))
}

impl Add {
    fn run(self, name: &Name, global: &Global) -> Result<(), Failure> {
        let spec = Spec {
            name: self.backend,
            dev: self.dev,
            mac: self.mac,
            weight: self.weight,
            label: self.label,
            wanted: None,
        };
        let ((added, warnings), maps) = change(name, global, |live| live.add(spec))?;
        for warning in &warnings {
            global.warn(warning);
        }
        let label = added.label.map(|label| format!(", label {label}")).unwrap_or_default();
        report(&maps, &added, global, &format!("added {} behind {}{label}", added.name, added.dev))
    }
}

impl Remove {
    fn run(self, name: &Name, global: &Global) -> Result<(), Failure> {
        if let Some(limit) = self.wait {
            return self.wait(limit, name, global);
        }
        let (ended, _) = change(name, global, |live| live.remove(&self.backend, self.force))?;
        self.show(ended, global);
        Ok(())
    }

    fn show(&self, ended: usize, global: &Global) {
        if global.json {
            output::json(&json!({ "removed": self.backend, "sessions_ended": ended }));
        }
        let ended = if ended > 0 { format!(" and ended {}", counted(ended)) } else { String::new() };
        global.done(&format!("removed {}{ended}", self.backend));
    }

    fn wait(&self, limit: Option<Duration>, name: &Name, global: &Global) -> Result<(), Failure> {
        let stopped = on_signal()?;
        let backend = &self.backend;
        let (_, maps) = change(name, global, |live| {
            live.check_removable(backend)?;
            match live.set_wanted(backend, Wanted::Draining) {
                // One that is down gets nothing either.
                Err(ChangeError::Already { .. }) => Ok(()),
                result => result.map(drop),
            }
        })?;
        let start = Instant::now();
        let mut last = None;
        loop {
            let sessions = change::sessions_at(&maps, change::find(&maps, backend)?.index)?;
            if sessions == 0 {
                match change(name, global, |live| live.remove(backend, false)) {
                    Ok((ended, _)) => {
                        self.show(ended, global);
                        return Ok(());
                    }
                    // A tunnel that goes by hash has come to speak in this very moment.
                    Err(error) if error.downcast_ref().is_some_and(has_sessions) => {}
                    Err(error) => return Err(error),
                }
            } else if last != Some(sessions) {
                global.done(&format!("{backend} is draining, with {}", counted(sessions)));
                last = Some(sessions);
            }
            let why = if limit.is_some_and(|limit| start.elapsed() >= limit) {
                "the time is up"
            } else if stopped.recv_timeout(LOOK).is_ok() {
                "stopped"
            } else {
                continue;
            };
            return Err(format!(
                "{why}: {backend} is not removed but draining, with {}; `lb backend remove {backend}` with --wait goes on, with --force ends them, `lb backend activate {backend}` calls it back",
                counted(sessions)
            )
            .into());
        }
    }
}

fn has_sessions(error: &ChangeError) -> bool {
    matches!(error, ChangeError::HasSessions { .. })
}

impl Values {
    fn apply(&self, spec: &mut Spec) {
        spec.weight = self.weight.unwrap_or(spec.weight);
        spec.mac = self.mac.or(spec.mac);
        spec.label = self.label.or(spec.label);
    }
}

fn show_backends(backends: &[Load], global: &Global) {
    if global.json {
        output::json(&backends);
    } else {
        output::line(backend_table(backends));
    }
}

/// The rows of `lb backend list`, as `lb stats` shows them too. Labels are shown where there are any.
pub(super) fn backend_table(backends: &[Load]) -> String {
    let labelled = backends.iter().any(|backend| backend.label.is_some());
    let label = |text: String| if labelled { vec![text] } else { Vec::new() };
    let rows = backends.iter().map(|backend| {
        let mac = match &backend.mac {
            Some(mac) if backend.mac_learned => format!("{mac} (learned)"),
            Some(mac) => mac.clone(),
            None => "unknown".into(),
        };
        let heard =
            backend.heard_s.map_or("never".into(), |ago| format!("{} ago", output::seconds(ago.into())));
        [
            vec![backend.name.clone(), backend.dev.clone(), mac, backend.weight.to_string()],
            label(backend.label.map_or("-".into(), |label| label.to_string())),
            vec![
                backend.state.name().into(),
                heard,
                backend.sessions.to_string(),
                backend.sent.packets.to_string(),
                backend.sent.bytes.to_string(),
            ],
        ]
        .concat()
    });
    let (header, numbers): (&[&str], &[usize]) = if labelled {
        (
            &["BACKEND", "DEV", "MAC", "WEIGHT", "LABEL", "STATE", "HEARD", "SESSIONS", "PACKETS", "BYTES"],
            &[3, 4, 7, 8, 9],
        )
    } else {
        (
            &["BACKEND", "DEV", "MAC", "WEIGHT", "STATE", "HEARD", "SESSIONS", "PACKETS", "BYTES"],
            &[3, 6, 7, 8],
        )
    };
    output::table(header, numbers, rows)
}
