//! Network interfaces of the caller's network namespace: finding them, and what the kernel knows of each.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsRawFd;

use macaddr::MacAddr6;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use thiserror::Error;

use super::netlink;
use super::netns::shorten;
use super::value::text;

/// An interface, as it was when it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's own name for it, also where it was found by an alternative name.
    pub name: String,
    /// Its number in its network namespace.
    pub index: u32,
}

/// Why an interface cannot be used.
#[derive(Debug, Error)]
pub enum InterfaceError {
    #[error(
        "there is no interface {name} in this network namespace ({there}); if it is in another one, name that with --netns"
    )]
    Unknown { name: String, there: String },
    #[error("the interface {name} has no MAC address, so no Ethernet frames; use an Ethernet interface")]
    NotEthernet { name: String },
    #[error(
        "cannot ask the kernel about the interface {name}: {source}; `ip link show` tells whether it is still there"
    )]
    Kernel { name: String, source: io::Error },
}

impl Interface {
    /// The interface with this name or alternative name.
    ///
    /// # Errors
    ///
    /// `Unknown`, which lists the names that there are, those like `name` first; `Kernel`.
    pub fn find(name: &str) -> Result<Self, InterfaceError> {
        let failed = |source| InterfaceError::Kernel { name: name.into(), source };
        match netlink::link_by_name(name).map_err(failed)? {
            Some(link) => Ok(Self::from_link(&link)),
            None => {
                let links = netlink::links().map_err(failed)?;
                let names = links.iter().map(|link| Self::from_link(link).name).collect();
                let there = shorten(&similar_first(name, names));
                let there = there.map_or("there is none".into(), |names| format!("there: {names}"));
                let name = if name.is_empty() { "\"\"".into() } else { name.into() };
                Err(InterfaceError::Unknown { name, there })
            }
        }
    }

    /// The interface with this number, `None` where there is none (any more).
    pub fn by_index(index: u32) -> Option<Self> {
        netlink::link_by_index(index).ok()?.map(|link| Self::from_link(&link))
    }

    /// Its MAC address.
    ///
    /// # Errors
    ///
    /// `NotEthernet` where it has none, as tunnel devices, or one of zeroes, as the loopback device; `Kernel`.
    pub fn mac(&self) -> Result<MacAddr6, InterfaceError> {
        let link = self.link()?;
        let address = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok(),
            _ => None,
        });
        let mac = address.map(MacAddr6::from).filter(|mac| !mac.is_nil());
        mac.ok_or_else(|| InterfaceError::NotEthernet { name: self.name.clone() })
    }

    /// Whether it is switched on, with or without a carrier.
    ///
    /// # Errors
    ///
    /// `Kernel`.
    pub fn is_up(&self) -> Result<bool, InterfaceError> {
        Ok(self.link()?.header.flags.contains(LinkFlags::Up))
    }

    /// What stands in the way of every frame: that it is switched off, with the command that mends it.
    pub fn down_warning(&self) -> Option<String> {
        let name = &self.name;
        (!self.is_up().unwrap_or(true))
            .then(|| format!("{name} is down: no frame passes it; mend: ip link set dev {name} up"))
    }

    /// Whether it takes frames for every MAC because somebody asked it to.
    ///
    /// # Errors
    ///
    /// `Kernel`.
    pub fn is_promiscuous(&self) -> Result<bool, InterfaceError> {
        Ok(self.link()?.header.flags.contains(LinkFlags::Promisc))
    }

    /// Whether it is a network card, real or emulated, which may filter frames by MAC: its driver says which bus it
    /// is on. What exists in the kernel alone says nothing, or a name that is no place on a bus.
    pub fn is_card(&self) -> bool {
        let mut answer = DriverInfo { command: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
        // SAFETY: `DriverInfo` is what ETHTOOL_GDRVINFO fills in.
        if unsafe { ethtool(&self.name, &mut answer) }.is_err() {
            return false;
        }
        // Behind the versions of driver and firmware, 32 bytes each (include/uapi/linux/ethtool.h).
        let bus = text(&answer.rest[64..96]);
        !["", "N/A", "tun", "tap"].contains(&bus.as_str())
    }

    /// Its driver's name, such as `veth` or `virtio_net`; `None` where the driver does not say.
    pub fn driver(&self) -> Option<String> {
        let mut answer = DriverInfo { command: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
        // SAFETY: `DriverInfo` is what ETHTOOL_GDRVINFO fills in.
        unsafe { ethtool(&self.name, &mut answer) }.ok()?;
        Some(text(&answer.driver)).filter(|driver| !driver.is_empty())
    }

    /// The features that are on, by the names that `ethtool -k` shows or, where those are names of groups, by the
    /// kernel's own (net/ethtool/common.c, `netdev_features_strings`): GRO is `rx-gro`.
    pub(super) fn features(&self) -> io::Result<HashSet<String>> {
        let mut count =
            SetInfo { command: ETHTOOL_GSSET_INFO, reserved: 0, mask: 1 << ETH_SS_FEATURES, count: 0 };
        // SAFETY: `SetInfo` is what ETHTOOL_GSSET_INFO fills in; the mask asks for one number.
        unsafe { ethtool(&self.name, &mut count) }?;
        let known = count.count as usize;
        if known > FEATURES_MAX {
            return Err(io::Error::other(format!("this kernel has {known} interface features")));
        }

        let mut names = Strings {
            command: ETHTOOL_GSTRINGS,
            set: ETH_SS_FEATURES,
            count: known as u32,
            names: [[0; 32]; FEATURES_MAX],
        };
        // SAFETY: `Strings` is what ETHTOOL_GSTRINGS fills in, and there is room for as many names as the kernel has.
        unsafe { ethtool(&self.name, &mut names) }?;

        let mut states = Features {
            command: ETHTOOL_GFEATURES,
            blocks: FEATURES_MAX.div_ceil(32) as u32,
            states: [FeatureBlock::default(); FEATURES_MAX.div_ceil(32)],
        };
        // SAFETY: `Features` is what ETHTOOL_GFEATURES fills in, up to the number of blocks that it is given.
        unsafe { ethtool(&self.name, &mut states) }?;

        let is_on = |number: usize| states.states[number / 32].active & (1 << (number % 32)) != 0;
        Ok((0..known).filter(|&number| is_on(number)).map(|number| text(&names.names[number])).collect())
    }

    pub(super) fn from_link(link: &LinkMessage) -> Self {
        let name = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        });
        Self { name: name.unwrap_or_default(), index: link.header.index }
    }

    fn link(&self) -> Result<LinkMessage, InterfaceError> {
        let failed = |source| InterfaceError::Kernel { name: self.name.clone(), source };
        let link = netlink::link_by_index(self.index).map_err(failed)?;
        link.ok_or_else(|| failed(io::Error::from_raw_os_error(libc::ENODEV)))
    }
}

/// `names` with those first that differ from `name` in their digits at the end only.
fn similar_first(name: &str, mut names: Vec<String>) -> Vec<String> {
    let stem = |name: &str| name.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
    let wanted = stem(name);
    // The sort is stable: within both parts the kernel's order, the one of `ip link`, stays.
    names.sort_by_key(|name| stem(name) != wanted);
    names
}

// Commands and structures of include/uapi/linux/ethtool.h, in host byte order.

const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETH_SS_FEATURES: u32 = 4;

/// How many features there is room for. Linux 6.18 has about 60, and can have no more than 64 as long as they are
/// the bits of one number.
const FEATURES_MAX: usize = 256;

/// `struct ethtool_drvinfo`
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

/// `struct ethtool_sset_info` with room for one count
#[repr(C)]
struct SetInfo {
    command: u32,
    reserved: u32,
    mask: u64,
    count: u32,
}

/// `struct ethtool_gstrings`
#[repr(C)]
struct Strings {
    command: u32,
    set: u32,
    count: u32,
    names: [[u8; 32]; FEATURES_MAX],
}

/// `struct ethtool_gfeatures`
#[repr(C)]
struct Features {
    command: u32,
    blocks: u32,
    states: [FeatureBlock; FEATURES_MAX.div_ceil(32)],
}

/// `struct ethtool_get_features_block`: a bit for each of 32 features
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FeatureBlock {
    available: u32,
    requested: u32,
    active: u32,
    never_changed: u32,
}

/// Asks the driver of an interface (`SIOCETHTOOL`).
///
/// # Safety
///
/// `request` begins with a command, and has the layout and the room that this command wants.
unsafe fn ethtool<T>(name: &str, request: &mut T) -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut asked: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays the zero that ends the name.
    let end = asked.ifr_name.len() - 1;
    for (to, from) in asked.ifr_name[..end].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    asked.ifr_ifru.ifru_data = std::ptr::from_mut(request).cast();
    // SAFETY: `asked` points to `request`, which outlives the call and, says the caller, suits its command.
    nix::errno::Errno::result(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut asked)
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_found() {
        let loopback = Interface::find("lo").unwrap();
        assert_eq!(loopback.name, "lo");
        assert_eq!(Interface::by_index(loopback.index), Some(loopback));
    }

    #[test]
    fn an_unknown_interface_is_an_error_that_lists_those_that_are_there() {
        let error = Interface::find("no-such-name").unwrap_err().to_string();
        assert!(
            error.starts_with("there is no interface no-such-name in this network namespace (there: "),
            "{error}"
        );
        assert!(error.contains("lo") && error.contains("--netns"), "{error}");
        assert!(Interface::find("").is_err());
        assert_eq!(Interface::by_index(0x7fff_fff0), None);
    }

    #[test]
    fn the_loopback_interface_has_no_mac() {
        let result = Interface::find("lo").unwrap().mac();
        assert!(matches!(result, Err(InterfaceError::NotEthernet { .. })), "{result:?}");
    }

    #[test]
    fn features_have_their_names() {
        // The loopback device has had this one, always on, since there are features.
        let features = Interface::find("lo").unwrap().features().unwrap();
        assert!(features.contains("loopback"), "{features:?}");
        assert!(!features.contains(""), "{features:?}");
    }

    #[test]
    fn an_interface_that_is_gone_is_an_error() {
        let gone = Interface { name: "gone0".into(), index: 0x7fff_fff0 };
        assert!(matches!(gone.mac(), Err(InterfaceError::Kernel { .. })));
        assert!(gone.is_up().is_err());
        assert_eq!(gone.driver(), None);
        assert!(gone.features().is_err());
    }

    #[test]
    fn names_like_the_wanted_one_are_listed_first() {
        let names = ["lo", "eth1", "wlan0", "eth2"].map(String::from).into();
        assert_eq!(similar_first("eth9", names), ["eth1", "eth2", "lo", "wlan0"]);
    }
}
