//! ARP, ND and MLD, which every backend has to hear, or the one that is meant.

use std::net::{IpAddr, Ipv6Addr};

use crate::common::packet::{
    CLIENT_MAC, GATEWAY_MAC, VIP6, arp, backend_mac, client, icmp, raw, sent_to, tagged, with_extensions,
};
use crate::fixture::Expected::{Neighbour, Returned};
use crate::fixture::{Balancer, MALFORMED, OTHER, Way, from_backend, from_client, settings};

const BROADCAST: [u8; 6] = [0xff; 6];

/// ND or MLD of a type, as a client sends it to an address and a MAC.
fn icmpv6(kind: u8, to: Ipv6Addr, mac: [u8; 6]) -> Vec<u8> {
    sent_to(icmp(client(1, true), to.into(), kind, &[0; 24]), mac)
}

#[test]
fn root_arp_goes_to_whom_its_mac_names_or_to_all() {
    let balancer = Balancer::new(&settings(), 4);
    for (description, frame, way) in [
        ("a request to all", arp(1, BROADCAST), Way::All),
        ("a gratuitous reply to all", arp(2, BROADCAST), Way::All),
        ("a request to a group", arp(1, [1, 0, 0x5e, 0, 0, 1]), Way::All),
        ("a reply to the first backend", arp(2, backend_mac(0)), Way::Port(0)),
        ("a reply to the last backend", arp(2, backend_mac(3)), Way::Port(3)),
        ("a probe of a backend", arp(1, backend_mac(2)), Way::Port(2)),
        ("a reply to a MAC that nobody has", arp(2, GATEWAY_MAC), Way::All),
        ("a request in a VLAN", tagged(&arp(1, BROADCAST), &[0x8100]), Way::All),
        ("a reply in two VLANs", tagged(&arp(2, backend_mac(1)), &[0x88a8, 0x8100]), Way::Port(1)),
        ("ARP without Ethernet's padding", arp(1, BROADCAST)[..42].to_vec(), Way::All),
    ] {
        balancer.check(&from_client(description, frame, Neighbour(way)));
    }
    balancer.check(&from_client("27 bytes of ARP", arp(1, BROADCAST)[..41].to_vec(), MALFORMED));
    balancer.check(&from_client("ARP and nothing", arp(1, BROADCAST)[..14].to_vec(), MALFORMED));
}

#[test]
fn root_nd_goes_to_whom_its_mac_names_or_to_all() {
    let balancer = Balancer::new(&settings(), 4);
    let group = [0x33, 0x33, 0xff, 0, 0, 2];
    let solicited = "ff02::1:ff00:2".parse().unwrap();
    for (kind, name) in [
        (133, "router solicitation"),
        (134, "router advertisement"),
        (135, "neighbour solicitation"),
        (136, "neighbour advertisement"),
        (137, "redirect"),
    ] {
        for (to, mac, way) in [
            (solicited, group, Way::All),
            (VIP6, backend_mac(2), Way::Port(2)),
            (VIP6, GATEWAY_MAC, Way::All),
        ] {
            let frame = icmpv6(kind, to, mac);
            balancer.check(&from_client(format!("{name} to {to}"), frame.clone(), Neighbour(way)));
            let tags = tagged(&frame, &[0x8100]);
            balancer.check(&from_client(format!("{name} in a VLAN"), tags, Neighbour(way)));
        }
    }
}

#[test]
fn root_mld_goes_to_all() {
    let balancer = Balancer::new(&settings(), 4);
    let group: Ipv6Addr = "ff02::16".parse().unwrap();
    for (kind, name) in [(130, "query"), (131, "report"), (132, "done"), (143, "report of version 2")] {
        let frame = icmpv6(kind, group, [0x33, 0x33, 0, 0, 0, 0x16]);
        // As it really is: behind a hop-by-hop header with a router alert (RFC 2710, section 3).
        let frame = with_extensions(&frame, &[0]);
        balancer.check(&from_client(format!("MLD {name}"), frame, Neighbour(Way::All)));
    }
}

#[test]
fn root_neighbours_from_backends_go_to_clients() {
    let balancer = Balancer::new(&settings(), 4);
    let to_client = |kind, mac| sent_to(icmp(VIP6.into(), client(1, true), kind, &[0; 24]), mac);
    for (description, frame) in [
        ("an ARP request", arp(1, BROADCAST)),
        ("an ARP reply", arp(2, CLIENT_MAC)),
        ("a neighbour solicitation", to_client(135, [0x33, 0x33, 0xff, 0, 0, 1])),
        ("a neighbour advertisement", to_client(136, CLIENT_MAC)),
        ("MLD", with_extensions(&to_client(143, [0x33, 0x33, 0, 0, 0, 0x16]), &[0])),
    ] {
        balancer.check(&from_backend(description, frame, Neighbour(Way::Port(0))));
    }
    let ping: IpAddr = client(1, true);
    let frame = icmp(VIP6.into(), ping, 128, &[0; 24]);
    balancer.check(&from_backend("a ping is none", frame, Returned(ping)));
}

#[test]
fn root_other_ethertypes_are_none_of_a_vpn() {
    let balancer = Balancer::new(&settings(), 4);
    for ethertype in [0x0027u16, 0x0842, 0x8035, 0x8847, 0x8863, 0x88cc, 0x9100, 0xffff] {
        let frame = [&BROADCAST[..], &CLIENT_MAC, &ethertype.to_be_bytes(), &[0; 46]].concat();
        balancer.check(&from_client(format!("ethertype {ethertype:04x}"), frame.clone(), OTHER));
        balancer.check(&from_backend(format!("ethertype {ethertype:04x}"), frame, OTHER));
    }
    // IPv4's groups are IGMP's matter, which is no tunnel's.
    let igmp = raw(client(1, false), "224.0.0.22".parse().unwrap(), 2.into(), &[0x22; 16]);
    balancer.check(&from_client("IGMP", igmp, OTHER));
}
