//! The addresses of an interface of the caller's network namespace, and word of their changes.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::time::Duration;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::interface::Interface;
use super::netlink;

/// Multicast groups of route netlink (include/uapi/linux/rtnetlink.h, `enum rtnetlink_groups`).
const GROUPS: [u32; 3] = [libc::RTNLGRP_LINK, libc::RTNLGRP_IPV4_IFADDR, libc::RTNLGRP_IPV6_IFADDR];

/// The addresses that an interface has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Those that it answers to.
    pub hosts: BTreeSet<IpAddr>,
    /// The broadcast addresses of its IPv4 networks.
    pub broadcasts: BTreeSet<Ipv4Addr>,
    /// Those that are not its own yet, or not at all: duplicate address detection is under way, or has found another owner
    /// (RFC 4862, section 5.4).
    pub tentative: BTreeSet<IpAddr>,
}

impl Addresses {
    /// The addresses of `interface` now.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn of(interface: &Interface) -> io::Result<Self> {
        let mut found = Self::default();
        for message in netlink::addresses()?.iter().filter(|message| message.header.index == interface.index)
        {
            found.add(message);
        }
        Ok(found)
    }

    fn add(&mut self, message: &AddressMessage) {
        let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
        let (mut local, mut address) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                // The interface's own; of a point-to-point link `Address` is the far end's.
                AddressAttribute::Local(ip) => local = Some(*ip),
                AddressAttribute::Address(ip) => address = Some(*ip),
                AddressAttribute::Broadcast(ip) => {
                    self.broadcasts.insert(*ip);
                }
                AddressAttribute::Flags(all) => flags = *all,
                _ => {}
            }
        }
        let Some(ip) = local.or(address) else { return };
        if flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed)
            && !flags.contains(AddressFlags::Optimistic)
        {
            self.tentative.insert(ip);
            return;
        }
        self.hosts.insert(ip);
        if let (AddressFamily::Inet, IpAddr::V4(ip)) = (message.header.family, ip) {
            self.broadcasts.extend(directed_broadcast(ip, message.header.prefix_len));
        }
    }
}

/// The address of all hosts of a network (RFC 919, section 7), which networks of one or two addresses do not have (RFC 3021).
fn directed_broadcast(host: Ipv4Addr, prefix: u8) -> Option<Ipv4Addr> {
    let hosts = u32::MAX.checked_shr(prefix.into())?;
    (prefix < 31).then(|| Ipv4Addr::from_bits(host.to_bits() | hosts))
}

/// Word of changes to the interfaces and addresses of the network namespace that it was made in.
#[derive(Debug)]
pub struct Watch(Socket);

impl Watch {
    /// Listens from now on.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn new() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        socket.set_non_blocking(true)?;
        Ok(Self(socket))
    }

    /// Waits until something has changed, at most for `limit`. Says whether it has; what, the caller asks.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn wait(&mut self, limit: Duration) -> io::Result<bool> {
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], limit) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => return Ok(false),
            result => result?,
        };
        loop {
            match self.0.recv_from_full() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                // More has happened than the socket holds: something has changed.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_has_its_address() {
        let loopback = Interface::find("lo").unwrap();
        let found = Addresses::of(&loopback).unwrap();
        assert!(found.hosts.contains(&IpAddr::from(Ipv4Addr::LOCALHOST)), "{found:?}");
    }

    #[test]
    fn networks_have_one_broadcast_address_or_none() {
        let of =
            |text: &str, prefix| directed_broadcast(text.parse().unwrap(), prefix).map(|ip| ip.to_string());
        assert_eq!(of("10.0.0.1", 24).as_deref(), Some("10.0.0.255"));
        assert_eq!(of("10.1.2.3", 8).as_deref(), Some("10.255.255.255"));
        assert_eq!(of("10.0.0.1", 30).as_deref(), Some("10.0.0.3"));
        assert_eq!(of("10.0.0.1", 31), None);
        assert_eq!(of("10.0.0.1", 32), None);
    }
}
