//! What datapaths count, as XDP's users know it: for each verdict and for each XDP action packets, packets a second, kilobytes and
//! megabits a second, and the period that the rates are of. All datapaths show their counters by this.

use serde_json::{Map, Value, json};

use crate::kernel::counters::{self, Count};
use crate::kernel::table::{Table, TableError};
use crate::kernel::value::MapValue;
use crate::output;

/// What a program has done with a frame (include/uapi/linux/bpf.h, `enum xdp_action`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Aborted,
    Drop,
    Pass,
    Tx,
    Redirect,
}

/// The actions in the kernel's order, each with its name and meaning.
pub const ACTIONS: [(Action, &str, &str); 5] = [
    (Action::Aborted, "XDP_ABORTED", "dropped for an error of the program"),
    (Action::Drop, "XDP_DROP", "dropped"),
    (Action::Pass, "XDP_PASS", "to this machine's stack"),
    (Action::Tx, "XDP_TX", "back out of the interface that it came in on"),
    (Action::Redirect, "XDP_REDIRECT", "out of another interface"),
];

/// A place where a frame's way through a datapath may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The stable name.
    pub name: &'static str,
    pub action: Action,
    pub meaning: &'static str,
}

impl Verdict {
    pub const fn new(name: &'static str, action: Action, meaning: &'static str) -> Self {
        Self { name, action, meaning }
    }
}

/// The counts of a datapath's verdicts at one moment, in the order of its list.
///
/// # Errors
///
/// What the kernel says about reading the map.
pub fn read<V: MapValue + Into<Count>>(
    table: &Table<u32, V>,
    verdicts: usize,
) -> Result<Vec<Count>, TableError> {
    (0..verdicts as u32).map(|index| counters::read(table, index)).collect()
}

/// Packets and bytes a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    pub packets_per_s: f64,
    pub bytes_per_s: f64,
}

/// What `count` comes to a second, over `seconds`.
pub fn rate(count: Count, seconds: f64) -> Rate {
    let per_second =
        |number: u64| if seconds > 0.0 { (number as f64 / seconds * 10.0).round() / 10.0 } else { 0.0 };
    Rate { packets_per_s: per_second(count.packets), bytes_per_s: per_second(count.bytes) }
}

/// A line of a view: a name, what it means, its count, and what it was at an earlier reading.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    pub name: &'a str,
    pub meaning: &'a str,
    pub count: Count,
    /// The earlier count, and the seconds since.
    pub since: Option<(Count, f64)>,
}

impl Line<'_> {
    fn rate(&self) -> Option<(Rate, f64)> {
        self.since.map(|(before, seconds)| (rate(self.count - before, seconds), seconds))
    }

    fn cells(&self) -> Vec<String> {
        let kilobytes = |bytes: f64| format!("{:.1}", bytes / 1e3);
        let mut cells = vec![self.name.to_owned(), self.count.packets.to_string()];
        match self.rate() {
            None => cells.push(kilobytes(self.count.bytes as f64)),
            Some((rate, seconds)) => cells.extend([
                format!("{:.0}", rate.packets_per_s),
                kilobytes(self.count.bytes as f64),
                format!("{:.2}", rate.bytes_per_s * 8.0 / 1e6),
                format!("{seconds:.3}"),
            ]),
        }
        cells.push(self.meaning.to_owned());
        cells
    }
}

/// A table of lines under a title; with rates where the lines have an earlier reading.
pub fn table<'a>(title: &str, lines: impl IntoIterator<Item = Line<'a>>) -> String {
    let lines: Vec<Line<'_>> = lines.into_iter().collect();
    let columns: &[&str] = if lines.iter().any(|line| line.since.is_some()) {
        &["PACKETS", "PPS", "KBYTES", "MBIT/S", "PERIOD"]
    } else {
        &["PACKETS", "KBYTES"]
    };
    let header = [&[title], columns, &[""]].concat();
    let right: Vec<usize> = (1..=columns.len()).collect();
    output::table(&header, &right, lines.iter().map(Line::cells))
}

/// The same for programs: an object with a member for each line, its name in lower case.
pub fn json<'a>(lines: impl IntoIterator<Item = Line<'a>>) -> Value {
    let named = lines.into_iter().map(|line| {
        let mut value = json!(line.count);
        if let (Some((rate, _)), Some(object)) = (line.rate(), value.as_object_mut()) {
            object.insert("packets_per_s".into(), json!(rate.packets_per_s));
            object.insert("bytes_per_s".into(), json!(rate.bytes_per_s));
        }
        (line.name.to_ascii_lowercase(), value)
    });
    Value::Object(named.collect::<Map<String, Value>>())
}

/// A line for each of what is named in `names`.
pub fn named<'a, const N: usize>(
    names: [(&'a str, &'a str); N],
    now: &'a [Count; N],
    since: Option<(&'a [Count; N], f64)>,
) -> impl Iterator<Item = Line<'a>> {
    names.into_iter().enumerate().map(move |(index, (name, meaning))| Line {
        name,
        meaning,
        count: now[index],
        since: since.map(|(before, seconds)| (before[index], seconds)),
    })
}

/// A line for each verdict.
pub fn by_verdict<'a>(
    verdicts: &'a [Verdict],
    now: &'a [Count],
    since: Option<(&'a [Count], f64)>,
) -> impl Iterator<Item = Line<'a>> {
    verdicts.iter().enumerate().map(move |(index, verdict)| Line {
        name: verdict.name,
        meaning: verdict.meaning,
        count: now[index],
        since: since.map(|(before, seconds)| (before[index], seconds)),
    })
}

/// A line for each XDP action: the sums of the verdicts that end in it.
pub fn by_action<'a>(
    verdicts: &'a [Verdict],
    now: &'a [Count],
    since: Option<(&'a [Count], f64)>,
) -> impl Iterator<Item = Line<'a>> {
    ACTIONS.into_iter().map(move |(action, name, meaning)| {
        let sum = |counts: &[Count]| -> Count {
            verdicts
                .iter()
                .zip(counts)
                .filter(|(verdict, _)| verdict.action == action)
                .map(|(_, count)| *count)
                .sum()
        };
        Line { name, meaning, count: sum(now), since: since.map(|(before, seconds)| (sum(before), seconds)) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERDICTS: [Verdict; 3] = [
        Verdict::new("reply", Action::Tx, "sent back"),
        Verdict::new("other", Action::Pass, "let through"),
        Verdict::new("odd", Action::Pass, "let through too"),
    ];

    fn count(packets: u64, bytes: u64) -> Count {
        Count { packets, bytes }
    }

    #[test]
    fn actions_are_the_sums_of_their_verdicts() {
        let now = [count(1, 100), count(2, 200), count(3, 300)];
        let packets: Vec<u64> = by_action(&VERDICTS, &now, None).map(|line| line.count.packets).collect();
        assert_eq!(packets, [0, 0, 5, 1, 0]);
    }

    #[test]
    fn rates_are_of_what_came_since() {
        let (before, now) = ([count(100, 1000); 3], [count(300, 251_000); 3]);
        let table = table("VERDICT", by_verdict(&VERDICTS[..1], &now, Some((&before, 2.0))));
        let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["VERDICT", "PACKETS", "PPS", "KBYTES", "MBIT/S", "PERIOD"]);
        assert_eq!(rows[1][..6], ["reply", "300", "100", "251.0", "1.00", "2.000"]);
    }

    #[test]
    fn totals_have_no_rates() {
        let table = table("VERDICT", by_verdict(&VERDICTS, &[count(1, 98); 3], None));
        assert!(table.starts_with("VERDICT  PACKETS  KBYTES\nreply          1     0.1"), "{table}");
    }
}
