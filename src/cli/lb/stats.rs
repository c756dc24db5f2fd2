//! `lb stats`: what there is to count, once or again and again.

use clap::Args;

use super::backend::backend_table;
use super::{Failure, Global, Name, open};
use crate::cli::stats::Repeat;
use crate::lb::GROUP;
use crate::lb::stats::{LABELS, Stats, UNPLACED, verdicts};
use crate::{output, stats};

#[derive(Debug, Args)]
pub struct StatsArgs {
    #[command(flatten)]
    name: Name,
    #[command(flatten)]
    repeat: Repeat,
}

impl StatsArgs {
    pub(super) fn run(self, global: &Global) -> Result<(), Failure> {
        let maps = open(global, &self.name)?;
        let name = &self.name.name;
        let instance = global.root().instance(GROUP, name)?;
        self.repeat.run(
            name,
            || Ok(Stats::read(&maps)?),
            || maps.are_of(&instance),
            |now, since| print_stats(global, name, now, since),
        )
    }
}

fn print_stats(global: &Global, name: &str, now: &Stats, since: Option<(&Stats, f64)>) {
    if global.json {
        output::json(&now.to_json(name, since));
        return;
    }
    let verdicts = verdicts();
    let before = since.map(|(old, seconds)| (&old.verdicts[..], seconds));
    let mut parts = vec![
        stats::table("VERDICT", stats::by_verdict(&verdicts, &now.verdicts, before)),
        stats::table("ACTION", stats::by_action(&verdicts, &now.verdicts, before)),
    ];
    if now.unplaced.iter().any(|count| count.packets > 0) {
        let causes = UNPLACED.map(|(_, name, meaning)| (name, meaning));
        let before = since.map(|(old, seconds)| (&old.unplaced, seconds));
        parts.push(stats::table("START WITHOUT SESSION", stats::named(causes, &now.unplaced, before)));
    }
    if let Some(labels) = &now.labels {
        let names = LABELS.map(|(_, name, meaning)| (name, meaning));
        let before = since.and_then(|(old, seconds)| Some((old.labels.as_ref()?, seconds)));
        parts.push(stats::table("SPI LABEL", stats::named(names, labels, before)));
    }
    parts.push(backend_table(&now.backends));
    if since.is_some() {
        parts.push(String::new());
    }
    output::line(parts.join("\n\n"));
}
