//! When a frame is to be answered, and with what, in plain Rust: written from the words of RFC 791, 792, 4443 and 8200 and of what
//! the responder promises, not from its program.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use etherparse::Ipv4Header;
use etherparse::checksum::Sum16BitWords;
use lb::echo::datapath::{CHECKED_MAX, Settings, View};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Reply,
    RateLimited,
    NotEcho,
    OtherMac,
    OtherAddress,
    BadSource,
    Fragment,
    Options,
    BadChecksum,
    Malformed,
}

impl Verdict {
    /// As the responder's counters are called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reply => "reply",
            Self::RateLimited => "rate_limited",
            Self::NotEcho => "not_echo",
            Self::OtherMac => "other_mac",
            Self::OtherAddress => "other_address",
            Self::BadSource => "bad_source",
            Self::Fragment => "fragment",
            Self::Options => "options",
            Self::BadChecksum => "bad_checksum",
            Self::Malformed => "malformed",
        }
    }
}

/// What becomes of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub verdict: Verdict,
    /// As it leaves the program.
    pub frame: Vec<u8>,
    /// What it is counted as.
    pub bytes: u64,
}

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const FRAGMENT: u8 = 44;

/// Extension headers that are walked over.
const HEADERS_MAX: usize = 8;

/// An ICMP or ICMPv6 packet, all of whose parts are ranges of its frame.
#[derive(Clone, Debug)]
pub struct Packet {
    ip_at: usize,
    pub source: IpAddr,
    pub destination: IpAddr,
    /// IPv6 extension headers, each with its protocol.
    extensions: Vec<(u8, Range<usize>)>,
    pub message: Range<usize>,
}

/// What the headers of a frame say.
enum Reading {
    /// Not IP.
    Other,
    Ip {
        /// Where the packet ends, as IP states it.
        end: usize,
        content: Result<Packet, Verdict>,
    },
}

fn two(frame: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?))
}

/// `None` for a header that does not fit, or contradicts itself. Headers have to be in the first `reach` bytes.
fn read(frame: &[u8], reach: usize) -> Option<Reading> {
    let near = &frame[..frame.len().min(reach)];
    let mut at = 12;
    let tags = (0..2).take_while(|tag| matches!(two(near, 12 + 4 * tag), Some(0x8100 | 0x88a8))).count();
    at += 4 * tags;
    match two(near, at)? {
        0x0800 => read_v4(frame, near, at + 2),
        0x86dd => read_v6(frame, near, at + 2),
        _ => Some(Reading::Other),
    }
}

/// RFC 791, section 3.1.
fn read_v4(frame: &[u8], near: &[u8], ip_at: usize) -> Option<Reading> {
    let header: &[u8; 20] = near.get(ip_at..)?.first_chunk()?;
    let header_bytes = usize::from(header[0] & 15) * 4;
    let end = ip_at + usize::from(two(header, 2)?);
    if header[0] >> 4 != 4 || header_bytes < 20 || ip_at + header_bytes > end || end > frame.len() {
        return None;
    }
    let address =
        |at: usize| -> IpAddr { <[u8; 4]>::try_from(&header[at..at + 4]).expect("four bytes").into() };
    let packet = Packet {
        ip_at,
        source: address(12),
        destination: address(16),
        extensions: Vec::new(),
        message: ip_at + header_bytes..end,
    };
    let flags_and_offset = two(header, 6)?;
    let content = if header[9] != ICMP {
        Err(Verdict::NotEcho)
    } else if flags_and_offset & 0x3fff != 0 {
        Err(Verdict::Fragment)
    } else {
        Ok(packet)
    };
    Some(Reading::Ip { end, content })
}

/// RFC 8200, sections 3 and 4.
fn read_v6(frame: &[u8], near: &[u8], ip_at: usize) -> Option<Reading> {
    let header: &[u8; 40] = near.get(ip_at..)?.first_chunk()?;
    let mut at = ip_at + 40;
    let end = at + usize::from(two(header, 4)?);
    if header[0] >> 4 != 6 || end > frame.len() {
        return None;
    }
    let address =
        |at: usize| -> IpAddr { <[u8; 16]>::try_from(&header[at..at + 16]).expect("16 bytes").into() };
    let mut protocol = header[6];
    let mut extensions = Vec::new();
    let mut fragment = false;
    while matches!(protocol, 0 | 43 | 44 | 60) {
        let extension = near.get(at..)?;
        let bytes = if protocol == FRAGMENT { 8 } else { 8 + 8 * usize::from(*extension.get(1)?) };
        if extensions.len() == HEADERS_MAX || at + bytes > end {
            return None;
        }
        extensions.push((protocol, at..at + bytes));
        let is_fragment = protocol == FRAGMENT;
        protocol = extension[0];
        at += bytes;
        if is_fragment {
            let offset_and_more = two(extension, 2)?;
            // Two reserved bits are between the offset and the last one. What follows a later part's header is no header.
            fragment |= offset_and_more & 0xfff9 != 0;
            extension.get(..8)?;
            if offset_and_more & 0xfff8 != 0 {
                break;
            }
        }
    }
    let (source, destination) = (address(8), address(24));
    let content = if protocol != ICMPV6 {
        Err(Verdict::NotEcho)
    } else if fragment {
        Err(Verdict::Fragment)
    } else {
        Ok(Packet { ip_at, source, destination, extensions, message: at..end })
    };
    Some(Reading::Ip { end, content })
}

/// The ICMP or ICMPv6 packet in a frame that has one, whole and of whatever type.
pub fn locate(frame: &[u8]) -> Option<Packet> {
    match read(frame, frame.len())? {
        Reading::Ip { content: Ok(packet), .. } if packet.message.len() >= 8 => Some(packet),
        _ => None,
    }
}

impl Packet {
    fn is_v6(&self) -> bool {
        self.source.is_ipv6()
    }

    /// The sum over all that the checksum of the message covers, the field itself among it.
    fn sum(&self, frame: &[u8]) -> Sum16BitWords {
        let sum = Sum16BitWords::new();
        let sum = match (self.source, self.destination) {
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let length = u32::try_from(self.message.len()).expect("a short message").to_be_bytes();
                sum.add_slice(&source.octets())
                    .add_slice(&destination.octets())
                    .add_slice(&length)
                    .add_2bytes([0, ICMPV6])
            }
            _ => sum,
        };
        sum.add_slice(&frame[self.message.clone()])
    }

    /// Gives the message the checksum that a computation over all of it gives.
    pub fn set_checksum(&self, frame: &mut [u8]) {
        let field = self.message.start + 2..self.message.start + 4;
        frame[field.clone()].fill(0);
        let check = self.sum(frame).ones_complement();
        frame[field].copy_from_slice(&check.to_ne_bytes());
    }

    /// The same for the header of IPv4.
    pub fn set_header_checksum(&self, frame: &mut [u8]) {
        if let Ok((header, _)) = Ipv4Header::from_slice(&frame[self.ip_at..]) {
            let check = header.calc_header_checksum();
            frame[self.ip_at + 10..self.ip_at + 12].copy_from_slice(&check.to_be_bytes());
        }
    }

    /// Options of IPv4, or IPv6 extension headers other than eight bytes of padding.
    fn says_something(&self, frame: &[u8]) -> Option<Verdict> {
        if !self.is_v6() {
            return (self.message.start - self.ip_at > 20).then_some(Verdict::Options);
        }
        self.extensions.iter().enumerate().find_map(|(index, (protocol, range))| match protocol {
            44 => Some(Verdict::Fragment),
            0 if index > 0 => Some(Verdict::Options),
            0 | 60 => {
                let padding =
                    matches!(frame[range.clone()], [_, _, 1, 4, 0, 0, 0, 0] | [_, _, 0, 0, 0, 0, 0, 0]);
                (!padding).then_some(Verdict::Options)
            }
            _ => Some(Verdict::Options),
        })
    }
}

fn is_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_loopback() || v4.is_multicast() || v4 == Ipv4Addr::BROADCAST || v4.octets()[0] == 0)
        }
        IpAddr::V6(v6) => {
            let none = [Ipv6Addr::UNSPECIFIED, Ipv6Addr::LOCALHOST].contains(&v6);
            !(none || v6.is_multicast() || v6.to_ipv4_mapped().is_some())
        }
    }
}

/// A responder.
pub struct Model {
    settings: Settings,
    view: View,
    /// How much of a frame lies in its first buffer.
    first_buffer: usize,
    /// Who has been answered. Where there is a limit, it is one answer, and no more as long as the test runs.
    answered: HashSet<IpAddr>,
}

impl Model {
    pub fn new(settings: &Settings, view: &View, first_buffer: usize) -> Self {
        Self { settings: settings.clone(), view: view.clone(), first_buffer, answered: HashSet::new() }
    }

    /// What the responder is to do with a frame.
    pub fn judge(&mut self, frame: &[u8]) -> Outcome {
        let whole = frame.len() as u64;
        let outcome = |verdict, bytes| Outcome { verdict, frame: frame.to_vec(), bytes };
        let (end, content) = match read(frame, self.first_buffer) {
            None => return outcome(Verdict::Malformed, whole),
            Some(Reading::Other) => return outcome(Verdict::NotEcho, whole),
            Some(Reading::Ip { end, content }) => (end, content),
        };
        // What lies behind the packet in another buffer is not counted.
        let bytes = if end > self.first_buffer { whole } else { whole.min(self.first_buffer as u64) };
        let verdict = content.and_then(|packet| self.refusal(frame, &packet).map_or(Ok(packet), Err));
        let packet = match verdict {
            Ok(packet) => packet,
            Err(verdict) => return outcome(verdict, bytes),
        };
        if !self.settings.source_interval.is_zero() && !self.answered.insert(packet.source) {
            return outcome(Verdict::RateLimited, bytes);
        }
        Outcome { verdict: Verdict::Reply, frame: self.reply(frame, &packet), bytes }
    }

    /// Why an ICMP packet is not answered, whoever asks how often.
    fn refusal(&self, frame: &[u8], packet: &Packet) -> Option<Verdict> {
        let Packet { source, destination, .. } = *packet;
        let request = if packet.is_v6() { 128 } else { 8 };
        if packet.message.len() < 8 || packet.message.start + 8 > self.first_buffer {
            return Some(Verdict::Malformed);
        }
        if frame[packet.message.start..][..2] != [request, 0] {
            return Some(Verdict::NotEcho);
        }
        if let Some(verdict) = packet.says_something(frame) {
            return Some(verdict);
        }
        if !packet.is_v6() && frame[packet.ip_at + 6] & 0x80 != 0 {
            return Some(Verdict::Malformed);
        }

        let view = &self.view;
        let own_mac = view.mac.into_array();
        if frame[..6] != own_mac {
            return Some(Verdict::OtherMac);
        }
        let ours = |address| view.addresses.contains(&address);
        let broadcast = |address| view.broadcasts.iter().any(|broadcast| IpAddr::from(*broadcast) == address);
        if !is_host(destination) || broadcast(destination) || !(ours(destination) || self.settings.any) {
            return Some(Verdict::OtherAddress);
        }
        let from = &frame[6..12];
        if from == own_mac || from == [0; 6] || from[0] & 1 == 1 {
            return Some(Verdict::BadSource);
        }
        if !is_host(source) || broadcast(source) || ours(source) || source == destination {
            return Some(Verdict::BadSource);
        }

        // A sum that is right is 0xffff with its checksum, whichever of the two zeros that is.
        let header = Sum16BitWords::new().add_slice(&frame[packet.ip_at..][..20]);
        let checked = packet.message.len() <= CHECKED_MAX;
        if !packet.is_v6() && header.ones_complement() != 0
            || checked && packet.sum(frame).ones_complement() != 0
        {
            return Some(Verdict::BadChecksum);
        }
        None
    }

    fn reply(&self, frame: &[u8], packet: &Packet) -> Vec<u8> {
        let mut reply = frame.to_vec();
        reply[..6].copy_from_slice(&frame[6..12]);
        reply[6..12].copy_from_slice(&frame[..6]);
        let (ttl_at, source, destination, kind, ttl) = if packet.is_v6() {
            (7, 8..24, 24..40, 129, self.view.hop_limit)
        } else {
            (8, 12..16, 16..20, 0, self.view.ttl)
        };
        let at = |range: Range<usize>| packet.ip_at + range.start..packet.ip_at + range.end;
        reply[at(source.clone())].copy_from_slice(&frame[at(destination.clone())]);
        reply[at(destination)].copy_from_slice(&frame[at(source)]);
        reply[packet.ip_at + ttl_at] = ttl;
        let message = packet.message.start;
        reply[message] = kind;
        if !packet.is_v6() {
            packet.set_header_checksum(&mut reply);
        }
        if packet.message.len() <= CHECKED_MAX {
            packet.set_checksum(&mut reply);
            return reply;
        }
        // One's complement sums are numbers modulo 0xffff; what the type takes from the sum, the checksum gains.
        let before = u32::from(two(frame, message + 2).expect("a whole header"));
        let after = if packet.is_v6() { before + 0xffff - 0x0100 } else { before + 0x0800 } % 0xffff;
        // Where nobody has looked whether all is zero, the zero that is right for every message.
        let after = if after == 0 && !packet.is_v6() { 0xffff } else { after };
        reply[message + 2..message + 4].copy_from_slice(&(after as u16).to_be_bytes());
        reply
    }
}
