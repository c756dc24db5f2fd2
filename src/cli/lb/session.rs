//! `lb session`: which client is at which backend.

use std::fs::File;
use std::io::{self, BufReader, BufWriter};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Serialize;
use serde_json::json;

use super::{Failure, Global, Name, Usage, open};
use crate::lb::GROUP;
use crate::lb::backend;
use crate::lb::datapath::{BACKENDS_MAX, Datapath, Maps};
use crate::lb::session::transfer::{Imported, Snapshot, TransferError};
use crate::lb::session::{Client, Session, Sessions, State};
use crate::output;

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
        /// The client's address, or with --affinity tunnel one UDP port of it: ADDR, ADDR:PORT or [ADDR]:PORT
        #[arg(value_name = "ADDR")]
        client: Client,
    },
    /// End the sessions of one client: its tunnel's packets go by hash from then on, and its next start may go elsewhere
    Del {
        /// The client's address, or with --affinity tunnel one UDP port of it: ADDR, ADDR:PORT or [ADDR]:PORT
        #[arg(value_name = "ADDR")]
        client: Client,
    },
    /// End all sessions: the packets of every tunnel go by hash from then on, until its client starts anew
    Flush,
    /// Print all sessions as lines of JSON, for `lb session import` on this machine or another
    Export,
    /// Take over what `lb session export` has printed: all of it, or nothing where anything is wrong
    ///
    /// Backends go by name, times by age. A client that has an established session here keeps it.
    Import {
        /// What was exported; - for standard input
        file: PathBuf,
        /// Let the file's sessions take the place of established ones here
        #[arg(long)]
        overwrite: bool,
    },
}

/// A session as it is shown; an element of `lb session list --json`.
#[derive(Debug, Serialize)]
struct Shown {
    client: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    spi: Option<String>,
    backend: String,
    state: State,
    age_s: u64,
    idle_s: u64,
    packets: u64,
    bytes: u64,
}

impl SessionCommand {
    pub(super) fn run(self, name: &Name, global: &Global) -> Result<(), Failure> {
        if let Self::Import { file, overwrite } = self {
            return import(&file, overwrite, name, global);
        }
        let maps = open(global, name)?;
        let sessions = Sessions::open(&maps)?;
        let checked = |client: Client| match client.port {
            Some(_) if !sessions.are_tunnels() => {
                Err(Usage(format!("{client}: with --affinity address a client has no port; leave it out")))
            }
            _ => Ok(client),
        };
        match self {
            Self::List { backend: None } => show_sessions(&maps, &sessions, sessions.iter(), global)?,
            Self::List { backend: Some(wanted) } => {
                let backends = backend::list(&maps)?;
                let Some(wanted) = backends.iter().find(|backend| backend.name == wanted) else {
                    let known: Vec<&str> = backends.iter().map(|backend| backend.name.as_str()).collect();
                    return Err(format!("there is no backend {wanted}; there is {}", known.join(", ")).into());
                };
                let there = sessions.iter().filter(|session| session.backend == wanted.index);
                show_sessions(&maps, &sessions, there, global)?;
            }
            Self::Get { client } => {
                let found: Vec<Session> = sessions.of(checked(client)?).collect();
                if found.is_empty() {
                    return Err(no_session(client));
                }
                show_sessions(&maps, &sessions, found.into_iter(), global)?;
            }
            Self::Del { client } => {
                let removed = sessions.remove(checked(client)?);
                if removed == 0 {
                    return Err(no_session(client));
                }
                show_removed(removed, global);
            }
            Self::Flush => show_removed(sessions.flush(), global),
            Self::Export => export(&maps)?,
            Self::Import { .. } => {}
        }
        Ok(())
    }
}

fn no_session(client: Client) -> Failure {
    format!("{client} has no session; `lb session list` shows who has").into()
}

fn show_sessions(
    maps: &Maps,
    sessions: &Sessions,
    wanted: impl Iterator<Item = Session>,
    global: &Global,
) -> Result<(), Failure> {
    let mut names = vec!["?".to_owned(); BACKENDS_MAX];
    for backend in backend::list(maps)? {
        names[backend.index as usize] = backend.name;
    }
    let mut wanted: Vec<Session> = wanted.collect();
    wanted.sort_by_key(|session| (session.client, session.port, session.spi));
    let shown = wanted.iter().map(|session| Shown {
        client: Client { address: session.client, port: session.port }.to_string(),
        spi: session.spi.map(|spi| format!("{spi:#018x}")),
        backend: names.get(session.backend as usize).map_or("?", String::as_str).to_owned(),
        state: session.state,
        age_s: session.age.as_secs(),
        idle_s: session.idle.as_secs(),
        packets: session.packets,
        bytes: session.bytes,
    });
    if global.json {
        output::json(&shown.collect::<Vec<_>>());
        return Ok(());
    }
    let tunnels = sessions.are_tunnels();
    let rows = shown.map(|shown| {
        let mut cells = vec![shown.client];
        if tunnels {
            cells.push(shown.spi.unwrap_or("-".into()));
        }
        cells.extend([
            shown.backend,
            if shown.state == State::Embryonic { "embryonic" } else { "established" }.into(),
            output::seconds(shown.age_s),
            output::seconds(shown.idle_s),
            shown.packets.to_string(),
            shown.bytes.to_string(),
        ]);
        cells
    });
    let (header, right): (&[&str], _) = if tunnels {
        (&["CLIENT", "SPI", "BACKEND", "STATE", "AGE", "IDLE", "PACKETS", "BYTES"], [4, 5, 6, 7])
    } else {
        (&["CLIENT", "BACKEND", "STATE", "AGE", "IDLE", "PACKETS", "BYTES"], [3, 4, 5, 6])
    };
    output::line(output::table(header, &right, rows));
    Ok(())
}

fn show_removed(removed: usize, global: &Global) {
    if global.json {
        output::json(&json!({ "removed": removed }));
    } else {
        global.done(&format!("ended {}", sessions(removed)));
    }
}

fn sessions(count: usize) -> String {
    format!("{count} session{}", if count == 1 { "" } else { "s" })
}

fn export(maps: &Maps) -> Result<(), TransferError> {
    let snapshot = Snapshot::take(maps)?;
    match snapshot.write(&mut BufWriter::new(io::stdout().lock())) {
        // A reader that has gone away, as `head` does, has had enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(TransferError::Write(error)),
        _ => Ok(()),
    }
}

fn import(file: &Path, overwrite: bool, name: &Name, global: &Global) -> Result<(), Failure> {
    let shown = if file == Path::new("-") { "standard input".into() } else { file.display().to_string() };
    let failed =
        |error: &dyn std::error::Error| -> Failure { format!("cannot import {shown}: {error}").into() };
    // Read to its end before anything is locked: it may come slowly.
    let snapshot = if file == Path::new("-") {
        Snapshot::read(io::stdin().lock())
    } else {
        File::open(file).map_err(TransferError::Read).and_then(|file| Snapshot::read(BufReader::new(file)))
    };
    let snapshot = snapshot.map_err(|error| failed(&error))?;

    let root = global.root();
    let _lock = root.lock_existing()?;
    open(global, name)?;
    let datapath = Datapath::load_again(&root.instance(GROUP, &name.name)?)?;
    let imported = snapshot.import(&datapath, overwrite).map_err(|error| failed(&error))?;
    if global.json {
        output::json(&imported);
        return Ok(());
    }
    let Imported { imported, kept, expired } = imported;
    let mut done = format!("imported {}", sessions(imported));
    if kept > 0 {
        done += &format!(", kept {kept} that were here");
    }
    if expired > 0 {
        done += &format!(", left out {expired} that had expired");
    }
    global.done(&done);
    Ok(())
}
