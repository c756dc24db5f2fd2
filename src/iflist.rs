//! `IFLIST`: the interfaces of a command line, as names, `NAME=MAC` pairs and inclusive ranges.

use std::str::FromStr;

use macaddr::MacAddr6;
use thiserror::Error;

/// One interface of a list, and the MAC that was given for the station behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub name: String,
    pub mac: Option<MacAddr6>,
}

/// The interfaces of one `IFLIST`, each at most once, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceList(pub Vec<Listed>);

/// The most interfaces that a range may have: far more than any machine, far fewer than a typing error gives.
const RANGE_MAX: usize = 1024;

/// Why a text is no `IFLIST`.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum InterfaceListError {
    #[error("an interface is missing; write a list such as eth2..eth5 or eth2=aa:bb:cc:00:00:01,eth3")]
    Empty,
    #[error("{0:?} is no interface name: at most 15 bytes, no space, no '/'")]
    Name(String),
    #[error("{0:?} is no range: write it as eth2..eth5, one name and two numbers")]
    Range(String),
    #[error("the range {0:?} runs backwards; write the smaller number first")]
    Reversed(String),
    #[error("the range {0:?} has more than {RANGE_MAX} interfaces")]
    Long(String),
    #[error("the range {0:?} cannot share one MAC; write each interface with its own")]
    RangeMac(String),
    #[error("{0:?} is no MAC address; write six bytes such as aa:bb:cc:00:00:01")]
    Mac(String),
    #[error("the MAC {0} is not that of one station: it is {1}")]
    Station(MacAddr6, &'static str),
    #[error("{0} is listed twice")]
    Twice(String),
}

impl FromStr for InterfaceList {
    type Err = InterfaceListError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut listed: Vec<Listed> = Vec::new();
        for item in text.split(',') {
            for interface in parse_item(item.trim())? {
                if listed.iter().any(|other| other.name == interface.name) {
                    return Err(InterfaceListError::Twice(interface.name));
                }
                listed.push(interface);
            }
        }
        Ok(Self(listed))
    }
}

fn parse_item(item: &str) -> Result<Vec<Listed>, InterfaceListError> {
    let (names, mac) = match item.split_once('=') {
        Some((names, mac)) => (names, Some(parse_mac(mac)?)),
        None => (item, None),
    };
    if names.is_empty() {
        return Err(InterfaceListError::Empty);
    }
    let names = match names.split_once("..") {
        Some(_) if mac.is_some() => return Err(InterfaceListError::RangeMac(names.into())),
        Some((first, last)) => expand(names, first, last)?,
        None => vec![names.to_owned()],
    };
    names
        .into_iter()
        .map(
            |name| if lawful(&name) { Ok(Listed { name, mac }) } else { Err(InterfaceListError::Name(name)) },
        )
        .collect()
}

/// Whether the kernel would take the name (net/core/dev.c, `dev_valid_name`).
fn lawful(name: &str) -> bool {
    name.len() < libc::IFNAMSIZ
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
}

fn expand(range: &str, first: &str, last: &str) -> Result<Vec<String>, InterfaceListError> {
    let wrong = || InterfaceListError::Range(range.into());
    let (prefix, from) = split_number(first).ok_or_else(wrong)?;
    let (other_prefix, to) = split_number(last).ok_or_else(wrong)?;
    if prefix != other_prefix {
        return Err(wrong());
    }
    // A leading zero belongs to the name: eth08..eth11 has four interfaces of two digits.
    let width = if from.starts_with('0') { from.len() } else { 0 };
    let (from, to): (u32, u32) = (from.parse().map_err(|_| wrong())?, to.parse().map_err(|_| wrong())?);
    if from > to {
        return Err(InterfaceListError::Reversed(range.into()));
    }
    if (to - from) as usize >= RANGE_MAX {
        return Err(InterfaceListError::Long(range.into()));
    }
    Ok((from..=to).map(|number| format!("{prefix}{number:0width$}")).collect())
}

/// A name's text and the number that it ends with.
fn split_number(name: &str) -> Option<(&str, &str)> {
    let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = &name[prefix.len()..];
    (!prefix.is_empty() && !number.is_empty()).then_some((prefix, number))
}

/// Parses the MAC address of one station.
///
/// # Errors
///
/// Where the text is no MAC, or one that no station has: zero, broadcast, multicast.
pub fn parse_mac(text: &str) -> Result<MacAddr6, InterfaceListError> {
    let mac: MacAddr6 = text.parse().map_err(|_| InterfaceListError::Mac(text.into()))?;
    if mac.is_nil() {
        Err(InterfaceListError::Station(mac, "zero"))
    } else if mac.is_broadcast() {
        Err(InterfaceListError::Station(mac, "broadcast"))
    } else if mac.is_multicast() {
        Err(InterfaceListError::Station(mac, "multicast"))
    } else {
        Ok(mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        text.parse::<InterfaceList>().unwrap().0.into_iter().map(|listed| listed.name).collect()
    }

    #[test]
    fn ranges_include_both_ends() {
        assert_eq!(names("eth2..eth5"), ["eth2", "eth3", "eth4", "eth5"]);
        assert_eq!(names("eth9..eth11,lan0"), ["eth9", "eth10", "eth11", "lan0"]);
        assert_eq!(names("eth08..eth10"), ["eth08", "eth09", "eth10"]);
        assert_eq!(names("eth3..eth3"), ["eth3"]);
    }

    #[test]
    fn a_mac_belongs_to_its_interface() {
        let list: InterfaceList = "eth2=aa:bb:cc:00:00:01,eth3".parse().unwrap();
        assert_eq!(list.0[0].mac, Some(MacAddr6::new(0xaa, 0xbb, 0xcc, 0, 0, 1)));
        assert_eq!(list.0[1].mac, None);
    }

    #[test]
    fn what_is_no_list_is_refused_with_its_reason() {
        use InterfaceListError as E;
        let error = |text: &str| text.parse::<InterfaceList>().unwrap_err();
        assert_eq!(error(""), E::Empty);
        assert_eq!(error("eth1,"), E::Empty);
        assert_eq!(error("eth5..eth2"), E::Reversed("eth5..eth2".into()));
        assert_eq!(error("eth2..lan5"), E::Range("eth2..lan5".into()));
        assert_eq!(error("eth2.."), E::Range("eth2..".into()));
        assert_eq!(error("..eth2"), E::Range("..eth2".into()));
        assert_eq!(error("eth1..eth99999999999"), E::Range("eth1..eth99999999999".into()));
        assert_eq!(error("eth1..eth5000"), E::Long("eth1..eth5000".into()));
        assert_eq!(error("eth2,eth1..eth3"), E::Twice("eth2".into()));
        assert_eq!(error("eth2=aa:bb"), E::Mac("aa:bb".into()));
        assert_eq!(error("eth2..eth3=aa:bb:cc:00:00:01"), E::RangeMac("eth2..eth3".into()));
        assert!(matches!(error("eth2=00:00:00:00:00:00"), E::Station(_, "zero")));
        assert!(matches!(error("eth2=ff:ff:ff:ff:ff:ff"), E::Station(_, "broadcast")));
        assert!(matches!(error("eth2=01:00:5e:00:00:01"), E::Station(_, "multicast")));
        assert_eq!(error("an-interface-name"), E::Name("an-interface-name".into()));
    }
}
