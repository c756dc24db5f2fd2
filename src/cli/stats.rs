//! Counters once, or again and again with rates.

use std::time::{Duration, Instant};

use clap::Args;

use super::Failure;
use crate::lb::config::duration;

/// How often counters are shown.
#[derive(Clone, Debug, Args)]
pub struct Repeat {
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

impl Repeat {
    /// Reads and prints counters of the instance `name`, as often as was asked for. `print` has the earlier reading and the seconds
    /// since, where there is one. `is_there` says whether what is read is still that instance's.
    pub(super) fn run<T>(
        &self,
        name: &str,
        read: impl Fn() -> Result<T, Failure>,
        is_there: impl Fn() -> bool,
        print: impl Fn(&T, Option<(&T, f64)>),
    ) -> Result<(), Failure> {
        let mut before = (Instant::now(), read()?);
        let Some(interval) = self.interval else {
            print(&before.1, None);
            return Ok(());
        };
        let mut due = before.0;
        for _ in 0..self.count.unwrap_or(u64::MAX) {
            due += interval;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if !is_there() {
                return Err(format!("{name} has been detached meanwhile").into());
            }
            let after = (Instant::now(), read()?);
            print(&after.1, Some((&before.1, (after.0 - before.0).as_secs_f64())));
            before = after;
        }
        Ok(())
    }
}
