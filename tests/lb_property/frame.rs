//! What a frame says, read slowly and plainly: one reading of the dispatch rules' first columns, and of their list
//! of what is malformed. It shares no line and no idea of buffers with the datapath's own reader.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub type Mac = [u8; 6];

/// Extension headers that are walked before a chain counts as malformed, a fragment header included.
const EXTENSIONS_MAX: usize = 8;

/// VLAN tags that are skipped.
const TAGS_MAX: usize = 2;

/// Which way a frame goes: it decides whose port says what a UDP datagram carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToBackend,
    ToClient,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Malformed,
    /// ARP, ND or MLD.
    Neighbour,
    Ip(Packet),
    /// Neither ARP nor IP.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Set in every fragment of a datagram that was cut; not in one that is a whole datagram with a fragment header.
    pub fragment: Option<FragmentKey>,
    pub message: Message,
}

/// What all fragments of a datagram have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub id: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    Ike(Ike),
    Keepalive,
    /// ESP, ESP in UDP, or AH, with the SPI that its receiver chose.
    EspInUdp {
        spi: u32,
    },
    Esp {
        spi: u32,
    },
    Ah {
        spi: u32,
    },
    EchoRequest,
    EchoReply,
    /// An ICMP error about a packet to `client`; `None` where nobody looked, on the way to a client.
    IcmpError {
        client: Option<IpAddr>,
    },
    /// A fragment but the first, of a protocol that tunnels use.
    LaterFragment,
    OtherIcmp,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ike {
    pub initiator_spi: u64,
    pub responder_spi: u64,
    /// Whether it is the first message of a new SA.
    pub start: bool,
    /// Whether it is a notification in clear.
    pub notifies: bool,
    /// Whether who sends it began the SA, as far as it tells: IKEv1 does not, and clients are taken to begin.
    pub of_initiator: bool,
}

/// A part of the frame is missing, or contradicts another.
struct Malformed;

type Reading<T> = Result<T, Malformed>;

/// Who the frame is for, and from.
pub fn macs(frame: &[u8]) -> (Mac, Mac) {
    (frame[..6].try_into().unwrap(), frame[6..12].try_into().unwrap())
}

pub fn read(frame: &[u8], direction: Direction) -> Content {
    ethernet(frame, direction).unwrap_or(Content::Malformed)
}

fn ethernet(frame: &[u8], direction: Direction) -> Reading<Content> {
    let mut kind = number(frame, 12, 2)?;
    let mut rest = &frame[14..];
    for _ in 0..TAGS_MAX {
        if kind == 0x8100 || kind == 0x88a8 {
            kind = number(rest, 2, 2)?;
            rest = &rest[4..];
        }
    }
    match kind {
        0x0806 => {
            // An ARP message for Ethernet and IPv4.
            first(rest, 28)?;
            Ok(Content::Neighbour)
        }
        0x0800 => ipv4(rest, direction),
        0x86dd => ipv6(rest, direction),
        _ => Ok(Content::Unknown),
    }
}

fn ipv4(bytes: &[u8], direction: Direction) -> Reading<Content> {
    let header = first(bytes, 20)?;
    let header_length = usize::from(header[0] & 15) * 4;
    let total = number(header, 2, 2)? as usize;
    if header[0] >> 4 != 4 || header_length < 20 || total < header_length {
        return Err(Malformed);
    }
    let payload = &first(bytes, total)?[header_length..];
    let source: IpAddr = v4(header, 12)?.into();
    let destination: IpAddr = v4(header, 16)?.into();
    let protocol = header[9];
    let cut = number(header, 6, 2)?;
    let (offset, more) = (cut & 0x1fff, cut & 0x2000 != 0);
    let key = FragmentKey { source, destination, protocol, id: number(header, 4, 2)? as u32 };
    let fragment = (offset != 0 || more).then_some(key);
    let carried = match protocol {
        17 => Carried::Udp,
        50 => Carried::Esp,
        51 => Carried::Ah,
        1 => Carried::Icmp4,
        _ => Carried::Other,
    };
    let message = if offset != 0 {
        if carried == Carried::Other { Message::Other } else { Message::LaterFragment }
    } else {
        message(carried, payload, fragment.is_some(), direction)?
    };
    Ok(Content::Ip(Packet { source, destination, fragment, message }))
}

fn ipv6(bytes: &[u8], direction: Direction) -> Reading<Content> {
    let header = first(bytes, 40)?;
    if header[0] >> 4 != 6 {
        return Err(Malformed);
    }
    let mut payload = first(&bytes[40..], number(header, 4, 2)? as usize)?;
    // An IPv4-mapped source is the IPv4 client of that address: the session table has one form for both.
    let source = v6(header, 8)?.to_canonical();
    let destination = v6(header, 24)?.to_canonical();
    let mut next = header[6];
    let mut fragment = None;
    for _ in 0..EXTENSIONS_MAX {
        match next {
            // Hop-by-hop options, routing header, destination options.
            0 | 43 | 60 => {
                let extension = first(payload, 8)?;
                let length = 8 + usize::from(extension[1]) * 8;
                first(payload, length)?;
                next = extension[0];
                payload = &payload[length..];
            }
            44 => {
                let extension = first(payload, 8)?;
                next = extension[0];
                let cut = number(extension, 2, 2)?;
                let (offset, more) = (cut & 0xfff8, cut & 1 != 0);
                let key =
                    FragmentKey { source, destination, protocol: next, id: number(extension, 4, 4)? as u32 };
                if offset != 0 {
                    // Options may stand between the fragment header and what is carried, and only the first fragment
                    // shows them: such a fragment may belong to a tunnel, and is treated as if.
                    let hidden = is_extension(next) && next != 44;
                    let may_be_tunnel = carried_v6(next) != Carried::Other || hidden;
                    let message = if may_be_tunnel { Message::LaterFragment } else { Message::Other };
                    return Ok(Content::Ip(Packet { source, destination, fragment: Some(key), message }));
                }
                if more {
                    fragment = Some(key);
                }
                payload = &payload[8..];
            }
            _ => break,
        }
    }
    if is_extension(next) {
        return Err(Malformed);
    }
    let carried = carried_v6(next);
    if carried == Carried::Icmp6 {
        let kind = first(payload, 8)?[0];
        if matches!(kind, 130..=137 | 143) {
            return Ok(Content::Neighbour);
        }
    }
    let message = message(carried, payload, fragment.is_some(), direction)?;
    Ok(Content::Ip(Packet { source, destination, fragment, message }))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Carried {
    Udp,
    Esp,
    Ah,
    Icmp4,
    Icmp6,
    Other,
}

fn carried_v6(next: u8) -> Carried {
    match next {
        17 => Carried::Udp,
        50 => Carried::Esp,
        51 => Carried::Ah,
        58 => Carried::Icmp6,
        _ => Carried::Other,
    }
}

fn is_extension(next: u8) -> bool {
    matches!(next, 0 | 43 | 44 | 60)
}

/// What stands behind the IP header of a whole datagram or, if `cut`, of its first fragment.
fn message(carried: Carried, payload: &[u8], cut: bool, direction: Direction) -> Reading<Message> {
    Ok(match carried {
        Carried::Udp => udp(payload, cut, direction)?,
        Carried::Esp => {
            first(payload, 8)?;
            Message::Esp { spi: number(payload, 0, 4)? as u32 }
        }
        Carried::Ah => {
            first(payload, 12)?;
            Message::Ah { spi: number(payload, 4, 4)? as u32 }
        }
        Carried::Icmp4 => match first(payload, 8)?[0] {
            8 => Message::EchoRequest,
            0 => Message::EchoReply,
            3 | 11 | 12 => Message::IcmpError { client: quoted(&payload[8..], 4, direction)? },
            _ => Message::OtherIcmp,
        },
        Carried::Icmp6 => match first(payload, 8)?[0] {
            128 => Message::EchoRequest,
            129 => Message::EchoReply,
            1..=4 => Message::IcmpError { client: quoted(&payload[8..], 6, direction)? },
            _ => Message::OtherIcmp,
        },
        Carried::Other => Message::Other,
    })
}

/// The client that the packet in an ICMP error was for. An error that a backend sends is not looked into, as the
/// client it goes to is its destination.
fn quoted(quote: &[u8], version: u8, direction: Direction) -> Reading<Option<IpAddr>> {
    if direction == Direction::ToClient {
        return Ok(None);
    }
    if version == 4 {
        let header = first(quote, 20)?;
        if header[0] >> 4 != 4 {
            return Err(Malformed);
        }
        Ok(Some(v4(header, 16)?.into()))
    } else {
        let header = first(quote, 40)?;
        if header[0] >> 4 != 6 {
            return Err(Malformed);
        }
        Ok(Some(v6(header, 24)?.to_canonical()))
    }
}

fn udp(bytes: &[u8], cut: bool, direction: Direction) -> Reading<Message> {
    first(bytes, 8)?;
    let length = number(bytes, 4, 2)? as usize;
    if length < 8 || (length > bytes.len() && !cut) {
        return Err(Malformed);
    }
    // A first fragment holds less than the datagram's length says.
    let payload = &bytes[8..length.min(bytes.len())];
    let port = match direction {
        Direction::ToBackend => number(bytes, 2, 2)?,
        Direction::ToClient => number(bytes, 0, 2)?,
    };
    match port {
        500 => Ok(Message::Ike(ike(payload, direction)?)),
        4500 if payload == [0xff] => Ok(Message::Keepalive),
        4500 if first(payload, 4)? == [0; 4] => Ok(Message::Ike(ike(&payload[4..], direction)?)),
        4500 => {
            first(payload, 8)?;
            Ok(Message::EspInUdp { spi: number(payload, 0, 4)? as u32 })
        }
        _ => Ok(Message::Other),
    }
}

fn ike(bytes: &[u8], direction: Direction) -> Reading<Ike> {
    let header = first(bytes, 28)?;
    let (next_payload, major, exchange, flags) = (header[16], header[17] >> 4, header[18], header[19]);
    let (initiator_spi, responder_spi) = (number(header, 0, 8)?, number(header, 8, 8)?);
    let starts = match major {
        // Main mode and all others of IKEv1 begin with a responder cookie of zero.
        1 => true,
        // IKE_SA_INIT, and no response to one: those may have a zero there as well (RFC 7296, section 2.6).
        2 => exchange == 34 && flags & 0x20 == 0,
        _ => false,
    };
    Ok(Ike {
        initiator_spi,
        responder_spi,
        // The rules do not say what becomes of an initiator SPI of zero. RFC 7296, section 3.1 forbids it, so nobody
        // misses a session who sends one.
        start: starts && initiator_spi != 0 && responder_spi == 0,
        notifies: next_payload == if major == 1 { 11 } else { 41 },
        of_initiator: if major == 1 { direction == Direction::ToBackend } else { flags & 0x08 != 0 },
    })
}

fn first(bytes: &[u8], count: usize) -> Reading<&[u8]> {
    bytes.get(..count).ok_or(Malformed)
}

/// The big-endian number of `count` bytes at `at`.
fn number(bytes: &[u8], at: usize, count: usize) -> Reading<u64> {
    let bytes = bytes.get(at..at + count).ok_or(Malformed)?;
    Ok(bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

fn v4(bytes: &[u8], at: usize) -> Reading<Ipv4Addr> {
    Ok(Ipv4Addr::from(number(bytes, at, 4)? as u32))
}

fn v6(bytes: &[u8], at: usize) -> Reading<Ipv6Addr> {
    let halves = (number(bytes, at, 8)?, number(bytes, at + 8, 8)?);
    Ok(Ipv6Addr::from(u128::from(halves.0) << 64 | u128::from(halves.1)))
}
