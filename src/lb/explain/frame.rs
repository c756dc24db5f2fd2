//! Frames in words, and frames made of words: what `lb explain` says of a packet, and the packet that it makes of
//! `--proto esp --src A …`.
//!
//! The headers are read by the rules of `bpf/include/parse.h` and `ipsec.h`, for what is shown alone: the verdict is the
//! program's.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use etherparse::{IpHeaders, IpNumber, PacketBuilder, PacketBuilderStep};
use macaddr::MacAddr6;
use serde::Serialize;

/// The ports of IKE, and of IKE and ESP where a NAT may be in the way.
pub const IKE: u16 = 500;
pub const NAT: u16 = 4500;

/// The least that Ethernet carries, without its frame check sequence.
const FRAME_MIN: usize = 60;

const ETHERNET_BYTES: usize = 14;
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const VLAN: [u16; 2] = [0x8100, 0x88a8];
/// As many tags as the datapath looks behind.
const VLAN_TAGS_MAX: usize = 2;
const EXTENSIONS_MAX: usize = 8;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
const ESP: u8 = 50;
const AH: u8 = 51;
const ICMPV6: u8 = 58;

/// The flags of an IKE header (RFC 7296, section 3.1).
const FLAG_INITIATOR: u8 = 0x08;
const FLAG_RESPONSE: u8 = 0x20;
const IKE_SA_INIT: u8 = 34;
const INFORMATIONAL: u8 = 37;

/// What can be read in a frame's headers. Fields that it does not have are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Packet {
    /// `esp`, `ah`, `ike`, `esp_in_udp`, `keepalive`, `udp`, `tcp`, `icmp`, `icmpv6`, `arp`, `fragment` (a later one), or the
    /// number of the IP protocol as `ip_47` or of the ethertype as `0x88cc`.
    pub protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
    /// Of ESP and AH.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "hex32")]
    pub spi: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "hex64")]
    pub initiator_spi: Option<u64>,
    /// Zero as long as there is none.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "hex64")]
    pub responder_spi: Option<u64>,
    /// The kind of IKE exchange, such as `IKE_SA_INIT`, or its number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exchange: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<bool>,
    /// Whether the sender began the IKE SA.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_initiator: Option<bool>,
    /// Of ICMP, by name where it is one that matters here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp: Option<String>,
    /// Whom the packet was sent to that an ICMP error quotes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quoted_destination: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quoted_destination_port: Option<u16>,
    /// What all fragments of one packet have in common.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fragment_id: Option<u32>,
    /// Where this fragment belongs in its packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fragment_offset: Option<u32>,
    /// VLAN identifiers, the outermost first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vlans: Vec<u16>,
    pub source_mac: String,
    pub destination_mac: String,
    /// Of the whole frame.
    pub bytes: usize,
}

fn hex32<S: serde::Serializer>(value: &Option<u32>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("0x{:08x}", value.unwrap_or_default()))
}

fn hex64<S: serde::Serializer>(value: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("0x{:016x}", value.unwrap_or_default()))
}

/// The source MAC of a frame; zero where it has none.
pub fn source_mac(frame: &[u8]) -> MacAddr6 {
    mac(frame, 6)
}

/// The destination MAC of a frame; zero where it has none.
pub fn destination_mac(frame: &[u8]) -> MacAddr6 {
    mac(frame, 0)
}

fn mac(frame: &[u8], at: usize) -> MacAddr6 {
    frame.get(at..at + 6).and_then(|bytes| <[u8; 6]>::try_from(bytes).ok()).unwrap_or_default().into()
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn ipv4(bytes: &[u8], at: usize) -> Option<IpAddr> {
    Some(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?.into())
}

fn ipv6(bytes: &[u8], at: usize) -> Option<IpAddr> {
    Some(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?.into())
}

impl Packet {
    /// Reads a frame's headers as far as they go.
    pub fn read(frame: &[u8]) -> Self {
        let mut packet = Self {
            source_mac: source_mac(frame).to_string().to_lowercase(),
            destination_mac: destination_mac(frame).to_string().to_lowercase(),
            bytes: frame.len(),
            ..Self::default()
        };
        // What cannot be read is left out; what could be stays.
        let _ = packet.read_ethernet(frame);
        packet
    }

    fn read_ethernet(&mut self, frame: &[u8]) -> Option<()> {
        let mut ethertype = be16(frame, 12)?;
        let mut at = ETHERNET_BYTES;
        while VLAN.contains(&ethertype) && self.vlans.len() < VLAN_TAGS_MAX {
            self.vlans.push(be16(frame, at)? & 0x0fff);
            ethertype = be16(frame, at + 2)?;
            at += 4;
        }
        self.protocol = match ethertype {
            ARP => "arp".into(),
            IPV4 => "ipv4".into(),
            IPV6 => "ipv6".into(),
            other => format!("0x{other:04x}"),
        };
        match ethertype {
            ARP => self.read_arp(frame.get(at..)?),
            IPV4 => self.read_ipv4(frame.get(at..)?),
            IPV6 => self.read_ipv6(frame.get(at..)?),
            _ => None,
        }
    }

    /// RFC 826, for IPv4 over Ethernet.
    fn read_arp(&mut self, arp: &[u8]) -> Option<()> {
        self.source = Some(ipv4(arp, 14)?);
        self.destination = Some(ipv4(arp, 24)?);
        Some(())
    }

    fn read_ipv4(&mut self, ip: &[u8]) -> Option<()> {
        let header = usize::from(ip.first()? & 0x0f) * 4;
        let total = usize::from(be16(ip, 2)?);
        let offset = be16(ip, 6)?;
        let protocol = *ip.get(9)?;
        self.source = Some(ipv4(ip, 12)?);
        self.destination = Some(ipv4(ip, 16)?);
        if offset & 0x3fff != 0 {
            self.fragment_id = Some(be16(ip, 4)?.into());
            self.fragment_offset = Some(u32::from(offset & 0x1fff) * 8);
        }
        self.read_protocol(protocol, ip.get(header..total.min(ip.len()))?)
    }

    fn read_ipv6(&mut self, ip: &[u8]) -> Option<()> {
        let end = (40 + usize::from(be16(ip, 4)?)).min(ip.len());
        let mut protocol = *ip.get(6)?;
        self.source = Some(ipv6(ip, 8)?);
        self.destination = Some(ipv6(ip, 24)?);
        let mut at = 40;
        for _ in 0..EXTENSIONS_MAX {
            match protocol {
                0 | 43 | 60 => {
                    protocol = *ip.get(at)?;
                    at += (usize::from(*ip.get(at + 1)?) + 1) * 8;
                }
                FRAGMENT => {
                    let offset = be16(ip, at + 2)?;
                    // Neither an offset nor more to come: a whole packet (RFC 6946).
                    if offset & 0xfff9 != 0 {
                        self.fragment_id = Some(be32(ip, at + 4)?);
                        self.fragment_offset = Some((offset & 0xfff8).into());
                    }
                    protocol = *ip.get(at)?;
                    at += 8;
                    if offset & 0xfff8 != 0 {
                        break;
                    }
                }
                _ => break,
            }
        }
        self.read_protocol(protocol, ip.get(at..end)?)
    }

    fn read_protocol(&mut self, protocol: u8, payload: &[u8]) -> Option<()> {
        if self.fragment_offset.is_some_and(|offset| offset != 0) {
            self.protocol = "fragment".into();
            return Some(());
        }
        self.protocol = match protocol {
            ICMP => "icmp".into(),
            TCP => "tcp".into(),
            UDP => "udp".into(),
            ESP => "esp".into(),
            AH => "ah".into(),
            ICMPV6 => "icmpv6".into(),
            other => format!("ip_{other}"),
        };
        match protocol {
            ESP => self.spi = Some(be32(payload, 0)?),
            AH => self.spi = Some(be32(payload, 4)?),
            TCP | UDP => {
                self.source_port = Some(be16(payload, 0)?);
                self.destination_port = Some(be16(payload, 2)?);
                if protocol == UDP {
                    let end = usize::from(be16(payload, 4)?).min(payload.len());
                    self.read_udp(payload.get(8..end)?)?;
                }
            }
            ICMP | ICMPV6 => self.read_icmp(protocol, payload)?,
            _ => {}
        }
        Some(())
    }

    fn read_udp(&mut self, payload: &[u8]) -> Option<()> {
        let ports = [self.source_port?, self.destination_port?];
        if ports.contains(&IKE) {
            self.read_ike(payload)
        } else if !ports.contains(&NAT) {
            Some(())
        } else if payload == [0xff] {
            self.protocol = "keepalive".into();
            Some(())
        } else if be32(payload, 0)? == 0 {
            self.read_ike(payload.get(4..)?)
        } else {
            self.spi = Some(be32(payload, 0)?);
            self.protocol = "esp_in_udp".into();
            Some(())
        }
    }

    fn read_ike(&mut self, ike: &[u8]) -> Option<()> {
        let flags = *ike.get(19)?;
        self.initiator_spi = Some(be64(ike, 0)?);
        self.responder_spi = Some(be64(ike, 8)?);
        self.protocol = "ike".into();
        self.exchange = Some(match ike.get(18)? {
            34 => "IKE_SA_INIT".into(),
            35 => "IKE_AUTH".into(),
            36 => "CREATE_CHILD_SA".into(),
            37 => "INFORMATIONAL".into(),
            other => other.to_string(),
        });
        // IKEv1 has neither flag (RFC 2408, section 3.1).
        if ike.get(17)? >> 4 == 2 {
            self.response = Some(flags & FLAG_RESPONSE != 0);
            self.from_initiator = Some(flags & FLAG_INITIATOR != 0);
        }
        Some(())
    }

    fn read_icmp(&mut self, protocol: u8, icmp: &[u8]) -> Option<()> {
        let kind = *icmp.first()?;
        let (name, is_error) = match (protocol, kind) {
            (ICMP, 8) | (ICMPV6, 128) => ("echo request", false),
            (ICMP, 0) | (ICMPV6, 129) => ("echo reply", false),
            (ICMP, 3) | (ICMPV6, 1) => ("unreachable", true),
            (ICMPV6, 2) => ("packet too big", true),
            (ICMP, 11) | (ICMPV6, 3) => ("time exceeded", true),
            (ICMP, 12) | (ICMPV6, 4) => ("parameter problem", true),
            (ICMPV6, 133) => ("router solicitation", false),
            (ICMPV6, 134) => ("router advertisement", false),
            (ICMPV6, 135) => ("neighbour solicitation", false),
            (ICMPV6, 136) => ("neighbour advertisement", false),
            (ICMPV6, 130..=132 | 143) => ("MLD", false),
            _ => ("", false),
        };
        self.icmp = Some(if name.is_empty() { format!("type {kind}") } else { name.into() });
        if is_error {
            self.read_quote(protocol, icmp.get(8..)?)?;
        }
        Some(())
    }

    fn read_quote(&mut self, protocol: u8, quote: &[u8]) -> Option<()> {
        let (udp, is_udp) = if protocol == ICMP {
            self.quoted_destination = Some(ipv4(quote, 16)?);
            let whole = be16(quote, 6)? & 0x1fff == 0;
            (usize::from(quote.first()? & 0x0f) * 4, whole && *quote.get(9)? == UDP)
        } else {
            self.quoted_destination = Some(ipv6(quote, 24)?);
            (40, *quote.get(6)? == UDP)
        };
        if is_udp {
            self.quoted_destination_port = Some(be16(quote, udp + 2)?);
        }
        Some(())
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for vlan in &self.vlans {
            write!(f, "vlan {vlan} ")?;
        }
        f.write_str(if self.protocol.is_empty() { "?" } else { &self.protocol })?;
        if let Some(icmp) = &self.icmp {
            write!(f, " {icmp}")?;
        }
        if let (Some(source), Some(destination)) = (self.source, self.destination) {
            let end = |address: IpAddr, port: Option<u16>| match port {
                Some(port) => SocketAddr::new(address, port).to_string(),
                None => address.to_string(),
            };
            write!(f, " {} -> {}", end(source, self.source_port), end(destination, self.destination_port))?;
        }
        if let Some(spi) = self.spi {
            write!(f, " spi 0x{spi:08x}")?;
        }
        if let (Some(initiator), Some(responder)) = (self.initiator_spi, self.responder_spi) {
            if let Some(exchange) = &self.exchange {
                write!(f, " {exchange}")?;
            }
            if self.response == Some(true) {
                f.write_str(" response")?;
            }
            write!(f, " spis 0x{initiator:016x} 0x{responder:016x}")?;
        }
        if let Some(quoted) = self.quoted_destination {
            write!(f, " about a packet to {quoted}")?;
        }
        if let (Some(id), Some(offset)) = (self.fragment_id, self.fragment_offset) {
            write!(f, " fragment {id} at {offset}")?;
        }
        Ok(())
    }
}

/// What to make a packet of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// The frame's source MAC.
    pub from: MacAddr6,
    pub source: IpAddr,
    /// Of the same family as the source.
    pub destination: IpAddr,
    pub content: Content,
}

/// What is in the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Esp { spi: u32 },
    Ah { spi: u32 },
    EspInUdp { ports: Ports, spi: u32 },
    Keepalive { ports: Ports },
    Udp { ports: Ports },
    Ike { ports: Ports, message: Message },
    Echo { reply: bool },
}

/// The ports of a UDP datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    pub source: u16,
    pub destination: u16,
}

/// A message of IKEv2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    pub initiator_spi: u64,
    pub responder_spi: u64,
    pub response: bool,
    /// Whether the sender began the SA.
    pub from_initiator: bool,
}

impl Message {
    /// The header, and behind it as many bytes as let it pass for a message.
    fn bytes(self) -> Vec<u8> {
        const EXTRA: usize = 32;
        let exchange = if self.responder_spi == 0 { IKE_SA_INIT } else { INFORMATIONAL };
        let flags = if self.response { FLAG_RESPONSE } else { 0 }
            | if self.from_initiator { FLAG_INITIATOR } else { 0 };
        // The first payload is a security association (33) or encrypted (46).
        let next = if self.responder_spi == 0 { 33 } else { 46 };
        let mut bytes = Vec::new();
        bytes.extend(self.initiator_spi.to_be_bytes());
        bytes.extend(self.responder_spi.to_be_bytes());
        bytes.extend([next, 0x20, exchange, flags]);
        bytes.extend(0u32.to_be_bytes());
        bytes.extend((28 + EXTRA as u32).to_be_bytes());
        bytes.extend([0; EXTRA]);
        bytes
    }
}

/// Where frames are sent to that are made here: no station's MAC, as the program overwrites it.
const NOBODY: [u8; 6] = [0x02, 0, 0, 0, 0, 0xfe];

impl Tuple {
    /// The frame as it would be on the wire.
    ///
    /// # Errors
    ///
    /// Where the addresses are of two families.
    pub fn frame(&self) -> Result<Vec<u8>, String> {
        let ip = |protocol, payload: &[u8]| -> Result<Vec<u8>, String> {
            let mut frame = Vec::new();
            self.ip()?.write(&mut frame, IpNumber(protocol), payload).map_err(|error| error.to_string())?;
            Ok(frame)
        };
        let udp = |ports: Ports, payload: &[u8]| -> Result<Vec<u8>, String> {
            let mut frame = Vec::new();
            let step = self.ip()?.udp(ports.source, ports.destination);
            step.write(&mut frame, payload).map_err(|error| error.to_string())?;
            Ok(frame)
        };
        // The sequence number, and as much as a small packet has.
        let esp = |spi: u32| [&spi.to_be_bytes()[..], &1u32.to_be_bytes(), &[0; 48]].concat();
        let mut frame = match self.content {
            Content::Esp { spi } => ip(ESP, &esp(spi))?,
            Content::Ah { spi } => {
                // RFC 4302, section 2: ESP inside, a header of six words with an ICV of 96 bits.
                let header = [&[ESP, 4, 0, 0][..], &spi.to_be_bytes(), &1u32.to_be_bytes(), &[0; 12]];
                ip(AH, &[&header.concat()[..], &esp(spi)].concat())?
            }
            Content::EspInUdp { ports, spi } => udp(ports, &esp(spi))?,
            Content::Keepalive { ports } => udp(ports, &[0xff])?,
            Content::Udp { ports } => udp(ports, &[0; 32])?,
            Content::Ike { ports, message } => {
                // RFC 3948, section 2.2: on port 4500 four zero bytes tell IKE from ESP.
                let marker: &[u8] =
                    if ports.source == NAT || ports.destination == NAT { &[0; 4] } else { &[] };
                udp(ports, &[marker, &message.bytes()].concat())?
            }
            Content::Echo { reply } => {
                let mut frame = Vec::new();
                let step = self.ip()?;
                let payload = [0; 56];
                let written = if self.source.is_ipv4() {
                    step.icmpv4_raw(if reply { 0 } else { 8 }, 0, [0, 1, 0, 1]).write(&mut frame, &payload)
                } else {
                    step.icmpv6_raw(if reply { 129 } else { 128 }, 0, [0, 1, 0, 1])
                        .write(&mut frame, &payload)
                };
                written.map_err(|error| error.to_string())?;
                frame
            }
        };
        frame.resize(frame.len().max(FRAME_MIN), 0);
        Ok(frame)
    }

    fn ip(&self) -> Result<PacketBuilderStep<IpHeaders>, String> {
        let ethernet = PacketBuilder::ethernet2(self.from.into_array(), NOBODY);
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                Ok(ethernet.ipv4(source.octets(), destination.octets(), 64))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                Ok(ethernet.ipv6(source.octets(), destination.octets(), 64))
            }
            (source, destination) => {
                Err(format!("{source} and {destination} are of two families; no packet has both"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0xc1];

    fn tuple(content: Content, v6: bool) -> Tuple {
        let (source, destination) =
            if v6 { ("2001:db8::1", "2001:db8::2") } else { ("192.0.2.1", "192.0.0.2") };
        Tuple {
            from: MAC.into(),
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            content,
        }
    }

    /// Every content is read as what it was made of.
    #[test]
    fn what_is_made_is_read() {
        let ports = Ports { source: 4500, destination: 4500 };
        let message =
            Message { initiator_spi: 0x1234, responder_spi: 0, response: false, from_initiator: true };
        let ike = Ports { source: 500, destination: 500 };
        let other = Ports { source: 1000, destination: 53 };
        for (content, wanted) in [
            (Content::Esp { spi: 0x1000 }, "esp A -> B spi 0x00001000"),
            (Content::Ah { spi: 0x1000 }, "ah A -> B spi 0x00001000"),
            (Content::EspInUdp { ports, spi: 0xabcd_0000 }, "esp_in_udp A:4500 -> B:4500 spi 0xabcd0000"),
            (Content::Keepalive { ports }, "keepalive A:4500 -> B:4500"),
            (Content::Udp { ports: other }, "udp A:1000 -> B:53"),
            (
                Content::Ike { ports: ike, message },
                "ike A:500 -> B:500 IKE_SA_INIT spis 0x0000000000001234 0x0000000000000000",
            ),
            (
                Content::Ike { ports, message: Message { responder_spi: 5, response: true, ..message } },
                "ike A:4500 -> B:4500 INFORMATIONAL response spis 0x0000000000001234 0x0000000000000005",
            ),
        ] {
            for v6 in [false, true] {
                let tuple = tuple(content, v6);
                let frame = tuple.frame().unwrap();
                assert!(frame.len() >= FRAME_MIN);
                let packet = Packet::read(&frame);
                let end = |address: IpAddr| if v6 { format!("[{address}]") } else { address.to_string() };
                let wanted = wanted
                    .replace("A:", &format!("{}:", end(tuple.source)))
                    .replace("B:", &format!("{}:", end(tuple.destination)))
                    .replace("A ", &format!("{} ", tuple.source))
                    .replace("> B", &format!("> {}", tuple.destination));
                assert_eq!(packet.to_string(), wanted);
                assert_eq!(source_mac(&frame), MAC.into());
            }
        }
        let ping = Packet::read(&tuple(Content::Echo { reply: false }, true).frame().unwrap());
        assert_eq!(ping.to_string(), "icmpv6 echo request 2001:db8::1 -> 2001:db8::2");
        let mut mixed = tuple(Content::Esp { spi: 1 }, true);
        mixed.source = "192.0.2.1".parse().unwrap();
        assert!(mixed.frame().unwrap_err().contains("two families"));
    }

    #[test]
    fn tags_are_read_and_looked_behind() {
        let frame = tuple(Content::Esp { spi: 0x1000 }, false).frame().unwrap();
        let tagged = [&frame[..12], &[0x88, 0xa8, 0, 7, 0x81, 0, 0x20, 8], &frame[12..]].concat();
        assert_eq!(
            Packet::read(&tagged).to_string(),
            "vlan 7 vlan 8 esp 192.0.2.1 -> 192.0.0.2 spi 0x00001000"
        );
    }

    /// A frame that is cut anywhere is read as far as it goes.
    #[test]
    fn a_frame_that_ends_early_is_no_panic() {
        let ports = Ports { source: 500, destination: 500 };
        let message = Message { initiator_spi: 1, responder_spi: 2, response: false, from_initiator: true };
        for v6 in [false, true] {
            let frame = tuple(Content::Ike { ports, message }, v6).frame().unwrap();
            for length in 0..frame.len() {
                let _ = Packet::read(&frame[..length]).to_string();
            }
        }
        assert_eq!(Packet::read(&[]).to_string(), "?");
    }

    #[test]
    fn json_has_no_fields_that_the_packet_has_not() {
        let frame = tuple(Content::Esp { spi: 0x1000 }, false).frame().unwrap();
        let json = serde_json::to_value(Packet::read(&frame)).unwrap();
        assert_eq!(json["spi"], "0x00001000");
        assert_eq!(json["source_mac"], "02:00:00:00:00:c1");
        assert!(json.get("initiator_spi").is_none() && json.get("vlans").is_none(), "{json}");
    }
}
