//! Frames as clients, backends and bystanders send them, for tests and benchmarks.
//!
//! `etherparse` lays out the headers; what it has no notion of, IKE and the ESP family, is a few bytes here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{
    IpDscp, IpEcn, IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv4Options,
    Ipv6Extensions, Ipv6FlowLabel, Ipv6Header, PacketBuilder, PacketBuilderStep,
};

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
    /// The first payload; 33 is a security association, 41 a notification.
    pub next_payload: u8,
    pub version: u8,
    pub exchange: u8,
    pub flags: u8,
    pub extra: usize,
}

impl Ike {
    /// IKE_SA_INIT request.
    pub fn init(initiator_spi: u64) -> Self {
        Self {
            initiator_spi,
            responder_spi: 0,
            next_payload: 33,
            version: 0x20,
            exchange: 34,
            flags: 0x08,
            extra: 100,
        }
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
        bytes.extend([self.next_payload, self.version, self.exchange, self.flags]);
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

/// Where the IP header begins in a frame without VLAN tags.
pub const IP_AT: usize = 14;

/// Where what follows the IP header begins in a frame of these builders, before any is inserted by those below.
pub fn l4_at(frame: &[u8]) -> usize {
    IP_AT + if is_v6(frame) { 40 } else { 20 }
}

fn is_v6(frame: &[u8]) -> bool {
    frame[12..14] == [0x86, 0xdd]
}

/// IKE over UDP 4500 from the VIP to a client behind NAT.
pub fn ike_nat_back(client: IpAddr, port: u16, message: Ike) -> Vec<u8> {
    udp((vip(client), 4500), (client, port), &[vec![0; 4], message.bytes()].concat())
}

/// A UDP datagram from a client to port 4500.
pub fn to_4500(client: IpAddr, payload: &[u8]) -> Vec<u8> {
    udp((client, 4500), (vip(client), 4500), payload)
}

/// A NAT keepalive, padded to the least that Ethernet carries.
pub fn keepalive(client: IpAddr) -> Vec<u8> {
    padded(to_4500(client, &[0xff]))
}

/// An authentication header with 12 bytes of ICV, from a client (RFC 4302, section 2).
pub fn ah(client: IpAddr, spi: u32) -> Vec<u8> {
    let header = [&[17, 4, 0, 0][..], &spi.to_be_bytes(), &1u32.to_be_bytes(), &[0xa4; 12], &[0; 16]];
    raw(client, vip(client), IpNumber(51), &header.concat())
}

/// ICMP, or with IPv6 addresses ICMPv6, of a type; `body` is all that follows the checksum, at least four bytes.
pub fn icmp(source: IpAddr, destination: IpAddr, kind: u8, body: &[u8]) -> Vec<u8> {
    let (rest, payload) = body.split_first_chunk().expect("ICMP has four bytes behind its checksum");
    let mut frame = Vec::new();
    let written = if source.is_ipv6() {
        ip(source, destination).icmpv6_raw(kind, 0, *rest).write(&mut frame, payload)
    } else {
        ip(source, destination).icmpv4_raw(kind, 0, *rest).write(&mut frame, payload)
    };
    written.expect("a test's packet has lawful lengths");
    frame
}

/// Ping of a client to the VIP.
pub fn echo_request(client: IpAddr) -> Vec<u8> {
    icmp(client, vip(client), if client.is_ipv6() { 128 } else { 8 }, &[7; 60])
}

/// An echo request or reply of either family, all of whose fields are a test's to choose; checksums and lengths are made to
/// fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ping {
    /// Destination MAC.
    pub to: [u8; 6],
    /// Source MAC.
    pub from: [u8; 6],
    /// Ethertypes of VLAN tags, the outermost first.
    pub tags: Vec<u16>,
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Type of service, or traffic class.
    pub service: u8,
    /// Identification, or the lower bits of the flow label.
    pub label: u16,
    /// TTL, or hop limit.
    pub ttl: u8,
    pub kind: u8,
    pub code: u8,
    pub identifier: u16,
    pub sequence: u16,
    pub payload: Vec<u8>,
    /// IPv6 extension headers, each with its protocol; the first byte of each comes to name the next one.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// What lies in the frame behind the packet.
    pub trailer: Vec<u8>,
}

impl Ping {
    /// A request of 56 bytes.
    pub fn request(source: IpAddr, destination: IpAddr) -> Self {
        Self {
            to: GATEWAY_MAC,
            from: CLIENT_MAC,
            tags: Vec::new(),
            source,
            destination,
            service: 0,
            label: 0x1234,
            ttl: 57,
            kind: if source.is_ipv6() { 128 } else { 8 },
            code: 0,
            identifier: 0x4c42,
            sequence: 1,
            payload: (0..56).collect(),
            extensions: Vec::new(),
            trailer: Vec::new(),
        }
    }

    /// The reply, as a host sends it that leaves all other fields as they are.
    pub fn reply(&self, ttl: u8) -> Self {
        Self {
            to: self.from,
            from: self.to,
            source: self.destination,
            destination: self.source,
            ttl,
            kind: if self.source.is_ipv6() { 129 } else { 0 },
            ..self.clone()
        }
    }

    pub fn frame(&self) -> Vec<u8> {
        let [[a, b], [c, d]] = [self.identifier, self.sequence].map(u16::to_be_bytes);
        let rest = [a, b, c, d];
        let ethernet = PacketBuilder::ethernet2(self.from, self.to);
        let mut frame = Vec::new();
        let written = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = Ipv4Header {
                    dscp: IpDscp::try_new(self.service >> 2).expect("six bits"),
                    ecn: IpEcn::try_new(self.service & 3).expect("two bits"),
                    identification: self.label,
                    time_to_live: self.ttl,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Default::default()
                };
                let ip = ethernet.ip(IpHeaders::Ipv4(header, Ipv4Extensions::default()));
                ip.icmpv4_raw(self.kind, self.code, rest).write(&mut frame, &self.payload)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = Ipv6Header {
                    traffic_class: self.service,
                    flow_label: Ipv6FlowLabel::try_new(self.label.into()).expect("16 of 20 bits"),
                    hop_limit: self.ttl,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Default::default()
                };
                let ip = ethernet.ip(IpHeaders::Ipv6(header, Ipv6Extensions::default()));
                ip.icmpv6_raw(self.kind, self.code, rest).write(&mut frame, &self.payload)
            }
            (source, destination) => panic!("{source} and {destination} are of two families"),
        };
        written.expect("a test's packet has lawful lengths");
        if !self.extensions.is_empty() {
            frame = ipv6_rewritten(&frame, &frame[l4_at(&frame)..], &self.extensions);
        }
        [tagged(&frame, &self.tags), self.trailer.clone()].concat()
    }

    /// Where the IP header begins in the frame.
    pub fn ip_at(&self) -> usize {
        IP_AT + 4 * self.tags.len()
    }

    /// Where the ICMP message begins in the frame.
    pub fn icmp_at(&self) -> usize {
        let extensions: usize = self.extensions.iter().map(|(_, bytes)| bytes.len()).sum();
        self.ip_at() + if self.source.is_ipv6() { 40 } else { 20 } + extensions
    }
}

/// A client's answer to a ping of the VIP.
pub fn echo_reply(client: IpAddr) -> Vec<u8> {
    icmp(client, vip(client), if client.is_ipv6() { 129 } else { 0 }, &[7; 60])
}

/// An ICMP error to the VIP about a frame, of which it quotes `bytes` bytes from the IP header on.
pub fn icmp_error(router: IpAddr, kind: u8, about: &[u8], bytes: usize) -> Vec<u8> {
    let quote = &about[IP_AT..][..bytes];
    icmp(router, vip(router), kind, &[&[0; 4], quote].concat())
}

/// ARP for IPv4 over Ethernet (RFC 826); operation 1 asks, 2 answers.
pub fn arp(operation: u8, to: [u8; 6]) -> Vec<u8> {
    let (sender, target) = (Ipv4Addr::new(192, 0, 0, 1), VIP4);
    let fields =
        [&[0, 1, 8, 0, 6, 4, 0, operation][..], &CLIENT_MAC, &sender.octets(), &[0; 6], &target.octets()];
    padded([&to[..], &CLIENT_MAC, &[0x08, 0x06], &fields.concat()].concat())
}

/// The frame with another destination MAC.
pub fn sent_to(mut frame: Vec<u8>, mac: [u8; 6]) -> Vec<u8> {
    frame[..6].copy_from_slice(&mac);
    frame
}

/// The frame with another source MAC.
pub fn sent_by(mut frame: Vec<u8>, mac: [u8; 6]) -> Vec<u8> {
    frame[6..12].copy_from_slice(&mac);
    frame
}

/// The frame with the zeros that Ethernet adds to short ones.
pub fn padded(mut frame: Vec<u8>) -> Vec<u8> {
    frame.resize(frame.len().max(60), 0);
    frame
}

/// The frame with VLAN tags of these ethertypes, the outermost first.
pub fn tagged(frame: &[u8], tags: &[u16]) -> Vec<u8> {
    let (macs, rest) = frame.split_at(12);
    let tags: Vec<u8> =
        tags.iter().flat_map(|tag| [tag.to_be_bytes(), 42u16.to_be_bytes()].concat()).collect();
    [macs, &tags, rest].concat()
}

/// The frame with `bytes` at an offset.
pub fn poked(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[at..][..bytes.len()].copy_from_slice(bytes);
    frame
}

/// An IPv4 frame with another header and payload; lengths and checksum are made to fit.
fn ipv4_rewritten(frame: &[u8], payload: &[u8], change: impl FnOnce(&mut Ipv4Header)) -> Vec<u8> {
    let (mut header, _) =
        Ipv4Header::from_slice(&frame[IP_AT..]).expect("a test's packet has an IPv4 header");
    change(&mut header);
    header.set_payload_len(payload.len()).expect("a test's packet has lawful lengths");
    header.header_checksum = header.calc_header_checksum();
    [&frame[..IP_AT], &header.to_bytes(), payload].concat()
}

/// An IPv4 frame whose header is `words` words of 32 bits long, by options that do nothing.
pub fn with_options(frame: &[u8], words: usize) -> Vec<u8> {
    let options = vec![1; (words - 5) * 4];
    ipv4_rewritten(frame, &frame[l4_at(frame)..], |header| {
        header.options = Ipv4Options::try_from(&options[..]).expect("ten words of options at most");
    })
}

/// An IPv6 frame with `payload` behind headers that are given with their protocols.
fn ipv6_rewritten(frame: &[u8], payload: &[u8], extensions: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let (mut header, _) =
        Ipv6Header::from_slice(&frame[IP_AT..]).expect("a test's packet has an IPv6 header");
    let mut behind = Vec::new();
    for (i, (_, bytes)) in extensions.iter().enumerate() {
        behind.push(extensions.get(i + 1).map_or(header.next_header.0, |(protocol, _)| *protocol));
        behind.extend(&bytes[1..]);
    }
    behind.extend(payload);
    header.next_header = extensions.first().map_or(header.next_header, |(protocol, _)| IpNumber(*protocol));
    header.payload_length = u16::try_from(behind.len()).expect("a test's packet has lawful lengths");
    [&frame[..IP_AT], &header.to_bytes(), &behind].concat()
}

/// An IPv6 frame with extension headers of these protocols, each of eight bytes. A fragment header (44) among them
/// makes an atomic fragment (RFC 6946).
pub fn with_extensions(frame: &[u8], protocols: &[u8]) -> Vec<u8> {
    let extensions: Vec<_> = protocols.iter().map(|&protocol| (protocol, vec![0; 8])).collect();
    ipv6_rewritten(frame, &frame[l4_at(frame)..], &extensions)
}

/// The frame in two fragments, the first one with `bytes` bytes behind its headers. `extensions` are those of IPv6 that
/// stand behind the fragment header, and so in the first fragment alone.
pub fn fragments(frame: &[u8], bytes: usize, id: u16, extensions: &[u8]) -> [Vec<u8>; 2] {
    assert_eq!(bytes % 8, 0, "fragments are cut every eight bytes");
    let at = l4_at(frame);
    if !is_v6(frame) {
        let offset = IpFragOffset::try_new(bytes as u16 / 8).expect("an offset fits");
        let (first, later) = frame[at..].split_at(bytes);
        return [
            ipv4_rewritten(frame, first, |header| {
                header.identification = id;
                header.more_fragments = true;
            }),
            ipv4_rewritten(frame, later, |header| {
                header.identification = id;
                header.fragment_offset = offset;
            }),
        ];
    }
    let behind = with_extensions(frame, extensions);
    let (first, later) = behind[at..].split_at(bytes + 8 * extensions.len());
    let fragment = |offset_and_more: u16| {
        let [high, low] = offset_and_more.to_be_bytes();
        let [id_high, id_low] = id.to_be_bytes();
        (44, vec![0, 0, high, low, 0, 0, id_high, id_low])
    };
    [(fragment(1), first), (fragment(first.len() as u16), later)]
        .map(|(header, payload)| ipv6_rewritten(&behind, payload, &[header]))
}
