//! What the commands of companions that sit on one interface have in common.

use clap::Args;
use serde_json::json;

use super::stats::Repeat;
use super::{Failure, Global};
use crate::instance::{self, Attached, cut_short};
use crate::kernel::counters::Count;
use crate::kernel::pins::{self, Instance, PinError};
use crate::kernel::table::{Table, TableError};
use crate::kernel::value::MapValue;
use crate::kernel::xdp::Mode;
use crate::kernel::{detach, object};
use crate::output;
use crate::stats::{self, Verdict};

/// Which interface a program is attached to, and how.
#[derive(Clone, Debug, Args)]
pub struct On {
    /// The interface
    #[arg(long, value_name = "IF")]
    pub dev: String,
    /// Name of the instance; that of the interface if none is given
    #[arg(long, value_parser = instance_name)]
    pub name: Option<String>,
    /// Where in the kernel it works
    #[arg(long, value_enum, default_value_t = Mode::Drv)]
    pub mode: Mode,
    /// Upgrade the instance in place if it is attached already; no packet is lost, no count forgotten
    #[arg(long)]
    pub replace: bool,
}

/// Which instance a command is about.
#[derive(Clone, Debug, Args)]
#[group(id = "place", required = true, multiple = true)]
pub struct Place {
    /// The interface that it is attached to
    #[arg(long, value_name = "IF", group = "place")]
    dev: Option<String>,
    /// Name of the instance
    #[arg(long, value_parser = instance_name, group = "place")]
    name: Option<String>,
}

fn instance_name(text: &str) -> Result<String, PinError> {
    pins::check_name(text).map(|()| text.into())
}

impl Place {
    /// The instance that is meant, whole or not.
    fn find(&self, global: &Global, group: &'static str) -> Result<Instance, Failure> {
        let root = global.root();
        let Some(name) = &self.name else {
            let dev = self.dev.as_deref().unwrap_or_default();
            return Ok(instance::find(&root, group, dev, global.netns.as_deref())?);
        };
        let instance = root.instance(group, name)?;
        if !instance.exists() {
            let known = detach::known_names(&root, group)?;
            return Err(detach::DetachError::Unknown { name: name.clone(), known }.into());
        }
        Ok(instance)
    }
}

/// Reports an attach: its warnings, and what was done.
pub(super) fn report_attached(global: &Global, attached: &Attached, mode: Mode) {
    for warning in &attached.warnings {
        global.warn(warning);
    }
    let Instance { name, group, .. } = &attached.instance;
    if global.json {
        output::json(&json!({
            "name": name, "group": group, "replaced": attached.replaced, "warnings": attached.warnings,
        }));
    }
    let done = if attached.replaced { "replaced" } else { "attached" };
    global.done(&format!("{done} {group} {name}: {} ({mode})", attached.interface.name));
}

/// Reports which instances are gone.
pub(super) fn report_detached(global: &Global, gone: &[Instance]) {
    if global.json {
        output::json(&gone.iter().map(|instance| &instance.name).collect::<Vec<_>>());
    }
    for Instance { name, group, .. } in gone {
        // The balancer is the group without a name of its own.
        let group = if group == crate::lb::GROUP { String::new() } else { format!("{group} ") };
        global.done(&format!("detached {group}{name}"));
    }
}

/// Takes an instance off its interface.
#[derive(Debug, Args)]
pub struct Detach {
    #[command(flatten)]
    place: Place,
}

impl Detach {
    pub(super) fn run(self, global: &Global, group: &'static str) -> Result<(), Failure> {
        let instance = self.place.find(global, group)?;
        detach::detach(&global.root(), group, &instance.name)?;
        report_detached(global, &[instance]);
        Ok(())
    }
}

/// Shows the counters of an instance.
#[derive(Debug, Args)]
pub struct Stats {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    repeat: Repeat,
}

impl Stats {
    /// Shows the counters in the map `verdicts`, whose values are `V`.
    pub(super) fn run<V: MapValue + Into<Count>>(
        self,
        global: &Global,
        group: &'static str,
        verdicts: &[Verdict],
    ) -> Result<(), Failure> {
        let instance = self.place.find(global, group)?;
        if !instance.is_whole() {
            return Err(cut_short(&instance).into());
        }
        let path = instance.map_pin("verdicts");
        let table: Table<u32, V> = Table::open(&path).map_err(|error: TableError| instance.corrupt(error))?;
        self.repeat.run(
            &instance.name,
            || Ok(stats::read(&table, verdicts.len())?),
            || instance.is_whole() && object::is_pinned_at(table.handle(), &path),
            |now, since| {
                let since = since.map(|(before, seconds)| (before.as_slice(), seconds));
                let by_verdict = || stats::by_verdict(verdicts, now, since);
                let by_action = || stats::by_action(verdicts, now, since);
                if global.json {
                    let mut document = json!({
                        "name": instance.name, "group": group,
                        "verdicts": stats::json(by_verdict()), "actions": stats::json(by_action()),
                    });
                    if let Some((_, seconds)) = since {
                        document["period_s"] = json!(seconds);
                    }
                    output::json(&document);
                } else {
                    let end = if since.is_some() { "\n" } else { "" };
                    output::line(format!(
                        "{}\n\n{}{end}",
                        stats::table("VERDICT", by_verdict()),
                        stats::table("ACTION", by_action())
                    ));
                }
            },
        )
    }
}
