//! What `lb attach --config FILE` reads: all that `lb attach` takes as options, and backends in more detail, as TOML.
//!
//! Keys are the long names of the options. An error says at which line and column of which file it is, and which key it
//! is about.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use macaddr::MacAddr6;
use serde::Deserialize;
use serde::de::{self, Deserializer};
use thiserror::Error;

use super::backend::{DEFAULT_WEIGHT, Wanted};
use super::change::Spec;
use super::datapath::{Affinity, LABEL_BITS_MAX, OnDown, Other, Policy, ReturnPath, Settings, VIPS_MAX};
use super::schedule::WEIGHT_MAX;
use crate::iflist::{self, InterfaceList, Listed};
use crate::kernel::xdp::Mode;

/// What --max-sessions may be.
pub const MAX_SESSIONS: RangeInclusive<i64> = 1..=4_194_304;

/// What --start-rate may be.
pub const START_RATE: RangeInclusive<i64> = 1..=10_000_000;

/// What --spi-shard may be.
pub const SPI_SHARD: RangeInclusive<i64> = 1..=LABEL_BITS_MAX as i64;

/// What --weight may be.
pub const WEIGHT: RangeInclusive<i64> = 0..=WEIGHT_MAX as i64;

/// Parses a span of time.
///
/// # Errors
///
/// What is wrong with the text, and how to write it.
pub fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write it as 30s, 90m or 24h"))
}

/// Parses what --idle-timeout may be.
///
/// # Errors
///
/// As [`duration`], and where it is too short or too long.
pub fn idle_timeout(text: &str) -> Result<Duration, String> {
    let parsed = duration(text)?;
    let range = Duration::from_secs(1)..=Duration::from_secs(i32::MAX as u64);
    if range.contains(&parsed) { Ok(parsed) } else { Err("it must be from 1s to 68 years".into()) }
}

/// Parses what --down-after may be.
///
/// # Errors
///
/// As [`duration`], and where it is too short or too long.
pub fn down_after(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let parsed = duration(text)?;
    let range = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
    if parsed.is_zero() || range.contains(&parsed) {
        Ok(parsed)
    } else {
        Err("it must be 0 for never, or from 1s to 24h".into())
    }
}

/// Checks an address that is to be balanced.
///
/// # Errors
///
/// Where no host can own it.
pub fn check_vip(vip: IpAddr) -> Result<(), String> {
    if vip.is_multicast() || vip.is_unspecified() {
        return Err(format!("--vip {vip}: no host can own that address"));
    }
    Ok(())
}

/// What a file says.
#[derive(Clone, Debug)]
pub struct Config {
    pub ingress: Vec<String>,
    pub backends: Vec<Spec>,
    /// `None` where the file leaves it to the command line.
    pub mode: Option<Mode>,
    /// All but what the command line says: the namespace and the number of client-side interfaces.
    pub settings: Settings,
}

/// Why a file cannot be had.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}:{line}:{column}: {key}{message}", path.display())]
    Syntax { path: PathBuf, line: usize, column: usize, key: String, message: String },
    #[error("{}: {message}", path.display())]
    Content { path: PathBuf, message: String },
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// Where it cannot be read, is no TOML, or has a key or a value that means nothing.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.into(), source })?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text).map_err(|error| syntax(path, text, &error))?;
        let content = |message: String| ConfigError::Content { path: path.into(), message };
        let missing = |what: &str| content(format!("{what} is missing"));
        let ingress = file.ingress.clone().ok_or_else(|| missing("ingress = \"IFLIST\""))?;
        if let Some(listed) = ingress.0.iter().find(|listed| listed.mac.is_some()) {
            return Err(content(format!("ingress {}=MAC: a MAC belongs to a backend", listed.name)));
        }
        if file.egress.is_none() && file.backend.is_empty() {
            return Err(missing("egress = \"IFLIST\", or a [[backend]] with its dev,"));
        }
        let backends = file.backends().map_err(content)?;
        let usual = Settings::default();
        Ok(Self {
            ingress: ingress.0.into_iter().map(|listed| listed.name).collect(),
            backends,
            mode: file.mode,
            settings: Settings {
                policy: file.policy.unwrap_or_default(),
                affinity: file.affinity.unwrap_or_default(),
                on_down: file.on_down.unwrap_or_default(),
                spi_shard: file.spi_shard.unwrap_or_default(),
                down_after: file.down_after.unwrap_or_default(),
                other: file.other.unwrap_or_default(),
                return_path: file.return_path.unwrap_or_default(),
                max_sessions: file.max_sessions.unwrap_or(usual.max_sessions),
                idle_timeout: file.idle_timeout.unwrap_or(usual.idle_timeout),
                start_rate: file.start_rate.unwrap_or(usual.start_rate),
                vips: file.vip,
                ..usual
            },
        })
    }
}

/// One backend for each interface of a list, named after it.
pub fn one_behind_each(egress: &[Listed]) -> Vec<Spec> {
    let spec = |listed: &Listed| Spec {
        name: listed.name.clone(),
        dev: listed.name.clone(),
        mac: listed.mac,
        weight: DEFAULT_WEIGHT,
        label: None,
        wanted: None,
    };
    egress.iter().map(spec).collect()
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    #[serde(default, deserialize_with = "list")]
    ingress: Option<InterfaceList>,
    #[serde(default, deserialize_with = "list")]
    egress: Option<InterfaceList>,
    mode: Option<Mode>,
    #[serde(default, deserialize_with = "vips")]
    vip: Vec<IpAddr>,
    policy: Option<Policy>,
    affinity: Option<Affinity>,
    #[serde(default, deserialize_with = "spi_shard")]
    spi_shard: Option<u32>,
    on_down: Option<OnDown>,
    #[serde(default, deserialize_with = "down_after_value")]
    down_after: Option<Duration>,
    #[serde(default, deserialize_with = "max_sessions")]
    max_sessions: Option<u32>,
    #[serde(default, deserialize_with = "idle_timeout_value")]
    idle_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "start_rate")]
    start_rate: Option<u32>,
    other: Option<Other>,
    return_path: Option<ReturnPath>,
    #[serde(default)]
    backend: Vec<BackendTable>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct BackendTable {
    name: String,
    #[serde(default)]
    dev: Option<String>,
    #[serde(default, deserialize_with = "mac")]
    mac: Option<MacAddr6>,
    #[serde(default, deserialize_with = "weight")]
    weight: Option<u32>,
    label: Option<u32>,
    state: Option<Wanted>,
}

impl File {
    /// The backends in the order of the file; then one for each interface of `egress` that has none there.
    fn backends(&self) -> Result<Vec<Spec>, String> {
        let detailed = self.backend.iter().map(|table| Spec {
            name: table.name.clone(),
            dev: table.dev.clone().unwrap_or_else(|| table.name.clone()),
            mac: table.mac,
            weight: table.weight.unwrap_or(DEFAULT_WEIGHT),
            label: table.label,
            wanted: table.state,
        });
        let mut all: Vec<Spec> = detailed.collect();
        let egress = self.egress.as_ref().map(|list| list.0.as_slice()).unwrap_or_default();
        for spec in one_behind_each(egress) {
            match all.iter().find(|other| other.dev == spec.dev) {
                Some(other) if spec.mac.is_some() => {
                    return Err(format!(
                        "egress says {}=MAC, and [[backend]] {} is behind it; give the MAC there",
                        spec.dev, other.name
                    ));
                }
                Some(_) => {}
                None => all.push(spec),
            }
        }
        Ok(all)
    }
}

/// Says where an error is, and what it is about.
fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let start = error.span().map_or(0, |span| span.start).min(text.len());
    let before = text.get(..start).unwrap_or_default();
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = text[line_start..].lines().next().unwrap_or_default();
    // The key of the line: where a value is wrong, it says which.
    let key = line.split_once('=').map(|(key, _)| key.trim()).unwrap_or_default();
    let message = error.message().lines().collect::<Vec<_>>().join("; ");
    let known = key.is_empty() || message.contains(&format!("`{key}`"));
    ConfigError::Syntax {
        path: path.into(),
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
        key: if known { String::new() } else { format!("{key}: ") },
        message,
    }
}

/// Text, or a list of texts.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of texts")]
enum Texts {
    One(String),
    Many(Vec<String>),
}

fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<InterfaceList>, D::Error> {
    let text = match Texts::deserialize(deserializer)? {
        Texts::One(text) => text,
        Texts::Many(texts) => texts.join(","),
    };
    text.parse().map(Some).map_err(de::Error::custom)
}

fn vips<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpAddr>, D::Error> {
    let texts = match Texts::deserialize(deserializer)? {
        Texts::One(text) => vec![text],
        Texts::Many(texts) => texts,
    };
    let parsed: Vec<IpAddr> = texts
        .iter()
        .map(|text| {
            let vip: IpAddr = text.parse().map_err(|_| format!("{text:?} is no IP address"))?;
            check_vip(vip).map(|()| vip)
        })
        .collect::<Result<_, String>>()
        .map_err(de::Error::custom)?;
    if parsed.len() > VIPS_MAX {
        return Err(de::Error::custom(format!(
            "more than {VIPS_MAX} VIPs; leave vip out to balance every address"
        )));
    }
    Ok(parsed)
}

fn mac<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<MacAddr6>, D::Error> {
    let text = String::deserialize(deserializer)?;
    iflist::parse_mac(&text).map(Some).map_err(de::Error::custom)
}

fn number<'de, D: Deserializer<'de>>(
    deserializer: D,
    range: &RangeInclusive<i64>,
) -> Result<Option<u32>, D::Error> {
    let number = i64::deserialize(deserializer)?;
    if !range.contains(&number) {
        let (start, end) = (range.start(), range.end());
        return Err(de::Error::custom(format!("{number} is not from {start} to {end}")));
    }
    u32::try_from(number).map(Some).map_err(de::Error::custom)
}

fn weight<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    number(deserializer, &WEIGHT)
}

fn spi_shard<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    number(deserializer, &SPI_SHARD)
}

fn max_sessions<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    number(deserializer, &MAX_SESSIONS)
}

fn start_rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    number(deserializer, &START_RATE)
}

fn idle_timeout_value<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    idle_timeout(&String::deserialize(deserializer)?).map(Some).map_err(de::Error::custom)
}

fn down_after_value<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    down_after(&String::deserialize(deserializer)?).map(Some).map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("lb.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_says_all_that_options_say_and_more() {
        let config = parse(
            r#"
            ingress = ["eth1", "eth9"]
            egress = "eth2..eth4"
            mode = "skb"
            vip = "192.0.2.1"
            policy = "least-sessions"
            affinity = "tunnel"
            spi-shard = 4
            on-down = "hold"
            down-after = "10s"
            max-sessions = 1000
            idle-timeout = "90m"
            start-rate = 500
            other = "pass"
            return-path = "here"
            [[backend]]
            name = "one"
            dev = "eth2"
            mac = "02:00:00:00:00:01"
            weight = 3
            label = 7
            state = "draining"
            [[backend]]
            name = "two"
            dev = "eth2"
            mac = "02:00:00:00:00:02"
            [[backend]]
            name = "eth5"
            "#,
        )
        .unwrap();
        assert_eq!(config.ingress, ["eth1", "eth9"]);
        let names: Vec<(&str, &str, u32)> =
            config.backends.iter().map(|spec| (spec.name.as_str(), spec.dev.as_str(), spec.weight)).collect();
        assert_eq!(
            names,
            [
                ("one", "eth2", 3),
                ("two", "eth2", 1),
                ("eth5", "eth5", 1),
                ("eth3", "eth3", 1),
                ("eth4", "eth4", 1)
            ]
        );
        assert_eq!((config.backends[0].label, config.backends[0].wanted), (Some(7), Some(Wanted::Draining)));
        assert_eq!(config.mode, Some(Mode::Skb));
        let wanted = Settings {
            policy: Policy::LeastSessions,
            affinity: Affinity::Tunnel,
            spi_shard: 4,
            on_down: OnDown::Hold,
            down_after: Duration::from_secs(10),
            max_sessions: 1000,
            idle_timeout: Duration::from_secs(5400),
            start_rate: 500,
            other: Other::Pass,
            return_path: ReturnPath::Here,
            vips: vec!["192.0.2.1".parse().unwrap()],
            ..Settings::default()
        };
        assert_eq!(config.settings, wanted);
    }

    #[test]
    fn an_error_says_where_it_is_and_which_key_it_is_about() {
        let error = |text: &str| parse(text).unwrap_err();
        for (text, place, words) in [
            ("ingress = \"eth1\"\nigress = \"eth2\"\n", "lb.toml:2:1: ", &["`igress`", "`ingress`"][..]),
            ("egress = \"eth2\"\ningress = 1\n", "lb.toml:2:11: ingress: ", &["a list of texts"]),
            (
                "ingress = \"eth5..eth2\"\n",
                "lb.toml:1:11: ingress: ",
                &["eth5..eth2", "smaller number first"],
            ),
            ("weight = 1\n", "lb.toml:1:1: ", &["`weight`"]),
            ("max-sessions = \"many\"\n", "lb.toml:1:16: max-sessions: ", &["many"]),
            ("max-sessions = 0\n", "lb.toml:1:16: max-sessions: ", &["0 is not from 1"]),
            ("idle-timeout = 90\n", "lb.toml:1:16: idle-timeout: ", &["90"]),
            ("idle-timeout = \"soon\"\n", "lb.toml:1:16: idle-timeout: ", &["30s"]),
            ("spi-shard = 13\n", "lb.toml:1:13: spi-shard: ", &["from 1 to 12"]),
            ("policy = \"best\"\n", "lb.toml:1:10: policy: ", &["best", "least-sessions"]),
            ("vip = \"224.0.0.1\"\n", "lb.toml:1:7: vip: ", &["no host"]),
            ("vip = [\"here\"]\n", "lb.toml:1:7: vip: ", &["here"]),
            ("[[backend]]\nname = \"a\"\nweight = 257\n", "lb.toml:3:10: weight: ", &["from 0 to 256"]),
            (
                "[[backend]]\nname = \"a\"\nmac = \"01:00:5e:00:00:01\"\n",
                "lb.toml:3:7: mac: ",
                &["multicast"],
            ),
            ("[[backend]]\nname = \"a\"\nmaks = 1\n", "lb.toml:3:1: ", &["`maks`", "`mac`"]),
            ("[[backend]]\nname = \"a\"\nlabel = -1\n", "lb.toml:3:9: label: ", &["-1"]),
            ("[[backend]]\nname = \"a\"\nstate = \"up\"\n", "lb.toml:3:9: state: ", &["up", "draining"]),
            ("[[backend]]\ndev = \"eth2\"\n", "lb.toml:1:1: ", &["`name`"]),
            ("[backend]\nname = \"a\"\n", "lb.toml:1:1: ", &["sequence"]),
            ("ingress = \"eth1\"\ningress = \"eth2\"\n", "lb.toml:2:1: ", &["ingress"]),
            ("ingress = \n", "lb.toml:1:", &["ingress"]),
            ("ingress = \"eth1\"\n", "lb.toml: ", &["egress", "missing"]),
            ("egress = \"eth1\"\n", "lb.toml: ", &["ingress", "missing"]),
        ] {
            let found = error(text);
            assert!(found.starts_with(place), "{found} does not start with {place}");
            assert_eq!(found.lines().count(), 1, "{found}");
            for word in words {
                assert!(found.contains(word), "{word} is not in {found}");
            }
        }
    }

    #[test]
    fn a_mac_is_said_once() {
        let text = "ingress = \"eth1\"\negress = \"eth2=02:00:00:00:00:01\"\n[[backend]]\nname = \"eth2\"\n";
        assert!(parse(text).unwrap_err().contains("give the MAC there"));
    }
}
