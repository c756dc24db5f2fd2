//! Frames as clients, backends and bystanders send them, for tests and benchmarks.
//!
//! `etherparse` lays out the headers; what it has no notion of, IKE and the ESP family, is a few bytes here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{IpNumber, PacketBuilder, PacketBuilderStep};

/// Where clients' frames come from.
pub const CLIENT_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0xc1];
/// Where clients send frames to: a MAC that no backend has, so that a test sees it rewritten.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0xfe];
pub const VIP4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 2);
pub const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

/// The MAC of backend `index`.
pub fn backend_mac(index: u8) -> [u8; 6] {
    [0xaa, 0xbb, 0xcc, 0, 0, index + 1]
}

/// IPv4 client number `number`, or with `v6` an IPv6 one, in a /64 of its own.
pub fn client(number: u32, v6: bool) -> IpAddr {
    if v6 {
        let bits = u128::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)) + (u128::from(number) << 64);
        Ipv6Addr::from(bits).into()
    } else {
        Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + number).into()
    }
}

/// The VIP of the family of `peer`.
pub fn vip(peer: IpAddr) -> IpAddr {
    if peer.is_ipv6() { VIP6.into() } else { VIP4.into() }
}

/// A frame up to its IP header.
pub fn ip(source: IpAddr, destination: IpAddr) -> PacketBuilderStep<etherparse::IpHeaders> {
    let ethernet = PacketBuilder::ethernet2(CLIENT_MAC, GATEWAY_MAC);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            ethernet.ipv4(source.octets(), destination.octets(), 64)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            ethernet.ipv6(source.octets(), destination.octets(), 64)
        }
        _ => panic!("{source} and {destination} are of two families"),
    }
}

/// A frame with `payload` right behind the IP header.
pub fn raw(source: IpAddr, destination: IpAddr, protocol: IpNumber, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    ip(source, destination).write(&mut frame, protocol, payload).expect("a test's packet has lawful lengths");
    frame
}

/// A UDP datagram.
pub fn udp(source: (IpAddr, u16), destination: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    ip(source.0, destination.0)
        .udp(source.1, destination.1)
        .write(&mut frame, payload)
        .expect("a test's packet has lawful lengths");
    frame
}

/// An IKE header (RFC 7296, section 3.1), with `extra` bytes of payload behind it.
#[derive(Clone, Copy, Debug)]
pub struct Ike {
    pub initiator_spi: u64,
    pub responder_spi: u64,
    pub version: u8,
    pub exchange: u8,
    pub flags: u8,
    pub extra: usize,
}

impl Ike {
    /// IKE_SA_INIT request.
    pub fn init(initiator_spi: u64) -> Self {
        Self { initiator_spi, responder_spi: 0, version: 0x20, exchange: 34, flags: 0x08, extra: 100 }
    }

    /// IKE_SA_INIT response.
    pub fn init_response(initiator_spi: u64, responder_spi: u64) -> Self {
        Self { responder_spi, flags: 0x20, ..Self::init(initiator_spi) }
    }

    /// IKE_AUTH request.
    pub fn auth(initiator_spi: u64, responder_spi: u64) -> Self {
        Self { responder_spi, exchange: 35, ..Self::init(initiator_spi) }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.initiator_spi.to_be_bytes());
        bytes.extend(self.responder_spi.to_be_bytes());
        bytes.extend([33, self.version, self.exchange, self.flags]);
        bytes.extend(1u32.to_be_bytes());
        bytes.extend((28 + self.extra as u32).to_be_bytes());
        bytes.extend(std::iter::repeat_n(0x5a, self.extra));
        bytes
    }
}

/// IKE on port 500, from a client to its VIP.
pub fn ike(client: IpAddr, message: Ike) -> Vec<u8> {
    udp((client, 500), (vip(client), 500), &message.bytes())
}

/// IKE on port 500, from the VIP to a client.
pub fn ike_back(client: IpAddr, message: Ike) -> Vec<u8> {
    udp((vip(client), 500), (client, 500), &message.bytes())
}

/// IKE on port 4500: four zero bytes first.
pub fn ike_nat(client: IpAddr, port: u16, message: Ike) -> Vec<u8> {
    udp((client, port), (vip(client), 4500), &[vec![0; 4], message.bytes()].concat())
}

/// What ESP looks like from outside: an SPI, a sequence number, and 64 bytes.
pub fn esp_bytes(spi: u32) -> Vec<u8> {
    [&spi.to_be_bytes()[..], &1u32.to_be_bytes(), &[0xe5; 64]].concat()
}

/// ESP from a client.
pub fn esp(client: IpAddr, spi: u32) -> Vec<u8> {
    raw(client, vip(client), IpNumber(50), &esp_bytes(spi))
}

/// ESP from the VIP to a client.
pub fn esp_back(client: IpAddr, spi: u32) -> Vec<u8> {
    raw(vip(client), client, IpNumber(50), &esp_bytes(spi))
}

/// ESP in UDP from a client.
pub fn esp_in_udp(client: IpAddr, port: u16, spi: u32) -> Vec<u8> {
    udp((client, port), (vip(client), 4500), &esp_bytes(spi))
}

/// An empty TCP segment.
pub fn tcp(source: IpAddr, destination: IpAddr, port: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    ip(source, destination)
        .tcp(40000, port, 1, 65535)
        .syn()
        .write(&mut frame, &[])
        .expect("a test's packet has lawful lengths");
    frame
}
