//! Where packets ended, counted by the datapath.

use serde_json::{Value, json};

use super::backend::{self, Load};
use super::datapath::{DatapathError, Maps};
use super::skeleton::types::{lb_label_count, lb_unplaced, lb_verdict};
use crate::kernel::counters::{self, Count};
use crate::kernel::table::TableError;
use crate::stats::{self as view, Action, Verdict};

/// Each verdict's stable name and what it means, in the order in which they are shown.
pub const VERDICTS: [(lb_verdict, &str, &str); 10] = [
    (lb_verdict::LB_SESSION, "session", "forwarded to the backend of the client's session"),
    (lb_verdict::LB_NEW, "new", "forwarded, and the client got a session"),
    (lb_verdict::LB_STATELESS, "stateless", "forwarded by the hash of the client's address"),
    (lb_verdict::LB_NEIGHBOUR, "neighbour", "ARP, ND and MLD, forwarded"),
    (lb_verdict::LB_RETURNED, "returned", "from backends to clients"),
    (lb_verdict::LB_MALFORMED, "malformed", "dropped: a header does not fit or contradicts itself"),
    (lb_verdict::LB_KEEPALIVE_DROPPED, "keepalive_dropped", "dropped: NAT keepalives of no session"),
    (lb_verdict::LB_OTHER_DROPPED, "other_dropped", "dropped: not IKE, ESP, AH or ICMP for a VIP"),
    (lb_verdict::LB_OTHER_PASSED, "other_passed", "the same, passed to this machine's stack"),
    (lb_verdict::LB_NO_BACKEND, "no_backend", "dropped: nowhere to go"),
];

/// Each cause for which a start gets no session, with its stable name and meaning.
pub const UNPLACED: [(lb_unplaced, &str, &str); 3] = [
    (lb_unplaced::LB_UNPLACED_SOURCE_RATE, "source_rate", "too many starts from one source"),
    (lb_unplaced::LB_UNPLACED_TOTAL_RATE, "total_rate", "too many starts in all (--start-rate)"),
    (
        lb_unplaced::LB_UNPLACED_TABLE_FULL,
        "table_full",
        "no room for a session (--max-sessions; rarely, its bucket)",
    ),
];

/// What became visible of SPI labels, each with its stable name and meaning.
pub const LABELS: [(lb_label_count, &str, &str); 2] = [
    (
        lb_label_count::LB_LABEL_DISAGREES,
        "disagree",
        "a backend chose an SPI without its label (lb backend strongswan)",
    ),
    (lb_label_count::LB_LABEL_UNKNOWN, "unknown", "a client's packet with a label that is no backend's"),
];

/// All counters of an instance at one moment.
#[derive(Clone, Debug)]
pub struct Stats {
    /// In the order of [`VERDICTS`].
    pub verdicts: [Count; VERDICTS.len()],
    /// Starts that were forwarded by hash for want of a session, in the order of [`UNPLACED`].
    pub unplaced: [Count; UNPLACED.len()],
    /// In the order of [`LABELS`]; `None` where SPIs have no labels.
    pub labels: Option<[Count; LABELS.len()]>,
    pub backends: Vec<Load>,
}

impl Stats {
    /// Reads all counters.
    ///
    /// # Errors
    ///
    /// What the kernel says about reading the maps.
    pub fn read(maps: &Maps) -> Result<Self, DatapathError> {
        let mut unplaced = [Count::default(); UNPLACED.len()];
        for (count, (cause, ..)) in unplaced.iter_mut().zip(UNPLACED) {
            *count = counters::read(&maps.unplaced, cause.0)?;
        }
        let mut labels = None;
        if maps.config()?.lb_config.label_bits != 0 {
            let counts = labels.insert([Count::default(); LABELS.len()]);
            for (count, (kind, ..)) in counts.iter_mut().zip(LABELS) {
                *count = counters::read(&maps.label_counters, kind.0)?;
            }
        }
        Ok(Self { verdicts: read_verdicts(maps)?, unplaced, labels, backends: backend::loads(maps)? })
    }

    /// The count of one verdict.
    pub fn verdict(&self, verdict: lb_verdict) -> Count {
        let position = VERDICTS.iter().position(|(other, ..)| *other == verdict);
        position.map_or(Count::default(), |position| self.verdicts[position])
    }

    /// The document of `lb stats --json`. `since` is an earlier reading and the seconds from it: then there are rates.
    pub fn to_json(&self, name: &str, since: Option<(&Self, f64)>) -> Value {
        let verdicts = verdicts();
        let before = since.map(|(old, seconds)| (&old.verdicts[..], seconds));
        let unplaced = UNPLACED.map(|(_, name, meaning)| (name, meaning));
        let mut document = json!({
            "name": name,
            "verdicts": view::json(view::by_verdict(&verdicts, &self.verdicts, before)),
            "actions": view::json(view::by_action(&verdicts, &self.verdicts, before)),
            "unplaced_starts": view::json(view::named(
                unplaced, &self.unplaced, since.map(|(old, seconds)| (&old.unplaced, seconds)),
            )),
            "backends": self.backends,
        });
        if let Some(labels) = &self.labels {
            let names = LABELS.map(|(_, name, meaning)| (name, meaning));
            let before = since.and_then(|(old, seconds)| Some((old.labels.as_ref()?, seconds)));
            document["labels"] = view::json(view::named(names, labels, before));
        }
        if let Some((_, seconds)) = since {
            document["period_s"] = json!(seconds);
        }
        document
    }
}

/// The verdicts with the XDP actions that they end in, in the order of [`VERDICTS`].
pub fn verdicts() -> [Verdict; VERDICTS.len()] {
    VERDICTS.map(|(verdict, name, meaning)| {
        let action = match verdict {
            lb_verdict::LB_SESSION
            | lb_verdict::LB_NEW
            | lb_verdict::LB_STATELESS
            | lb_verdict::LB_NEIGHBOUR
            | lb_verdict::LB_RETURNED => Action::Redirect,
            lb_verdict::LB_OTHER_PASSED => Action::Pass,
            _ => Action::Drop,
        };
        Verdict::new(name, action, meaning)
    })
}

/// The counts of all verdicts, in the order of [`VERDICTS`].
///
/// # Errors
///
/// What the kernel says about reading the map.
pub fn read_verdicts(maps: &Maps) -> Result<[Count; VERDICTS.len()], TableError> {
    let mut counts = [Count::default(); VERDICTS.len()];
    for (count, (verdict, ..)) in counts.iter_mut().zip(VERDICTS) {
        *count = counters::read(&maps.verdicts, verdict.0)?;
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verdict_has_a_name() {
        let mut numbers: Vec<u32> = VERDICTS.iter().map(|(verdict, ..)| verdict.0).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..lb_verdict::LB_VERDICTS.0).collect::<Vec<_>>());
        let causes: Vec<u32> = UNPLACED.iter().map(|(cause, ..)| cause.0).collect();
        assert_eq!(causes, (0..lb_unplaced::LB_UNPLACED.0).collect::<Vec<_>>());
        let labels: Vec<u32> = LABELS.iter().map(|(kind, ..)| kind.0).collect();
        assert_eq!(labels, (0..lb_label_count::LB_LABEL_COUNTS.0).collect::<Vec<_>>());
    }
}
