//! `lb backend`: the concentrators behind the balancer.

use clap::Subcommand;

use super::{Failure, Global, Name, open};
use crate::lb::backend::{self, Load};
use crate::output;

#[derive(Debug, Subcommand)]
pub enum BackendCommand {
    /// All backends, and what each has to do
    List,
}

impl BackendCommand {
    pub(super) fn run(self, name: &Name, global: &Global) -> Result<(), Failure> {
        match self {
            Self::List => show_backends(&backend::loads(&open(global, name)?)?, global),
        }
        Ok(())
    }
}

fn show_backends(backends: &[Load], global: &Global) {
    if global.json {
        output::json(&backends);
    } else {
        output::line(backend_table(backends));
    }
}

/// The rows of `lb backend list`, as `lb stats` shows them too.
pub(super) fn backend_table(backends: &[Load]) -> String {
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
