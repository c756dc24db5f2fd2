//! `lb session`: which client is at which backend.

use std::net::IpAddr;

use clap::Subcommand;
use serde::Serialize;
use serde_json::json;

use super::{Failure, Global};
use crate::lb::backend;
use crate::lb::datapath::Maps;
use crate::lb::session::{Session, Sessions, State};
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
    pub(super) fn run(self, maps: &Maps, global: &Global) -> Result<(), Failure> {
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
