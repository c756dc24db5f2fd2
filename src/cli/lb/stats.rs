//! `lb stats`: what there is to count, once or again and again.

use std::time::{Duration, Instant};

use clap::Args;

use super::backend::backend_table;
use super::{Failure, Global, Name, duration, open};
use crate::kernel::counters::Count;
use crate::lb::GROUP;
use crate::lb::stats::{self, LABELS, Stats, UNPLACED, VERDICTS};
use crate::output;

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

fn interval(text: &str) -> Result<Duration, String> {
    let parsed = duration(text)?;
    let range = Duration::from_millis(10)..=Duration::from_secs(24 * 3600);
    if range.contains(&parsed) { Ok(parsed) } else { Err("it must be from 10ms to 24h".into()) }
}

impl StatsArgs {
    pub(super) fn run(self, global: &Global) -> Result<(), Failure> {
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
    let table = |title, names: &[(&str, &str)], counts: &[Count], old: Option<&[Count]>| {
        let rows = (0..names.len()).map(|i| row(names[i].0, names[i].1, counts[i], old.map(|old| old[i])));
        output::table(&header(title), &[1, 2, 3, 4][..header("").len() - 2], rows)
    };
    let old = since.map(|(old, _)| old);
    let verdicts = VERDICTS.map(|(_, name, meaning)| (name, meaning));
    let mut parts = vec![table("VERDICT", &verdicts, &now.verdicts, old.map(|old| &old.verdicts[..]))];
    if now.unplaced.iter().any(|count| count.packets > 0) {
        let causes = UNPLACED.map(|(_, name, meaning)| (name, meaning));
        let old = old.map(|old| &old.unplaced[..]);
        parts.push(table("START WITHOUT SESSION", &causes, &now.unplaced, old));
    }
    if let Some(labels) = &now.labels {
        let names = LABELS.map(|(_, name, meaning)| (name, meaning));
        let old = old.and_then(|old| old.labels.as_ref()).map(|labels| &labels[..]);
        parts.push(table("SPI LABEL", &names, labels, old));
    }
    parts.push(backend_table(&now.backends));
    if since.is_some() {
        parts.push(String::new());
    }
    output::line(parts.join("\n\n"));
}
