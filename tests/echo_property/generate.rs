//! Random frames: requests of all kinds, requests that something has happened to, and noise. Addresses and MACs are mostly those
//! that decide something.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb::echo::datapath::View;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::common::packet::{Ping, poked};
use crate::model;

pub const OWN_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0xfe];
const OTHER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0xc1];

const OWN4: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(192, 0, 2, 1)];
const OWN6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1), Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 0xfe)];
const BROADCASTS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 255), Ipv4Addr::new(192, 0, 2, 255)];

/// The interface that all frames come in on.
pub fn view() -> View {
    View {
        mac: OWN_MAC.into(),
        ttl: 64,
        hop_limit: 255,
        addresses: OWN4.map(IpAddr::from).into_iter().chain(OWN6.map(IpAddr::from)).collect(),
        broadcasts: BROADCASTS.to_vec(),
    }
}

#[derive(Clone, Debug)]
pub enum Input {
    Request(Plan),
    /// Anything, behind MACs and an ethertype if those are given.
    Noise {
        ethertype: Option<u16>,
        bytes: Vec<u8>,
    },
}

/// An echo request, and what is done to it.
#[derive(Clone, Debug)]
pub struct Plan {
    pub ping: Ping,
    pub oddities: Vec<Oddity>,
    /// Whether checksums are made right after all that.
    pub mended: bool,
}

#[derive(Clone, Debug)]
pub enum Oddity {
    To([u8; 6]),
    From([u8; 6]),
    Destination(Place),
    Source(Place),
    Kind(u8),
    Code(u8),
    ThirdTag(u16),
    /// What follows the IP header is said to be something else.
    Protocol(u8),
    /// Words of IPv4 options.
    Options(u8),
    /// An IPv6 extension header: its protocol, the units of eight bytes behind its first, and what it says.
    Extension(u8, u8, [u8; 6]),
    /// Flags and offset of IPv4, or a fragment header of IPv6 with these.
    Fragment(u16),
    /// The message ends here, and IP agrees.
    Message(u8),
    Flip(Index, u8),
    /// The same near the start of the frame, where headers are.
    FlipHeader(Index, u8),
    Truncate(Index),
    Extend(Vec<u8>),
    /// Everything from there on is noise.
    Noise(Index, Vec<u8>),
    /// The length that IP states is off by that much.
    IpLength(i16),
    /// The first byte of IP: version, and IHL.
    FirstByte(u8),
}

/// An address of either family.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Place {
    fn of(self, family: IpAddr) -> IpAddr {
        if family.is_ipv6() { self.v6.into() } else { self.v4.into() }
    }
}

impl Input {
    pub fn frame(&self) -> Vec<u8> {
        match self {
            Self::Request(plan) => plan.frame(),
            Self::Noise { ethertype, bytes } => {
                let head: Vec<u8> = ethertype
                    .map(|number| [&OWN_MAC[..], &OTHER_MAC, &number.to_be_bytes()].concat())
                    .unwrap_or_default();
                least([head, bytes.clone()].concat())
            }
        }
    }

    /// Whether this is a request as any host may send it to an address of ours, and so is to be answered.
    pub fn is_plain(&self) -> bool {
        matches!(self, Self::Request(plan) if plan.oddities.is_empty())
    }
}

/// The kernel takes no frame for a test run that is shorter than an Ethernet header.
fn least(mut frame: Vec<u8>) -> Vec<u8> {
    frame.resize(frame.len().max(14), 0);
    frame
}

impl Plan {
    fn frame(&self) -> Vec<u8> {
        let mut ping = self.ping.clone();
        self.oddities.iter().for_each(|oddity| oddity.plan(&mut ping));
        let mut frame = ping.frame();
        let ip_at = ping.ip_at();
        for oddity in &self.oddities {
            frame = oddity.damage(frame, ip_at);
        }
        if let Some(packet) = model::locate(&frame).filter(|_| self.mended) {
            packet.set_header_checksum(&mut frame);
            packet.set_checksum(&mut frame);
        }
        least(frame)
    }
}

impl Oddity {
    /// What can be said before the frame is built.
    fn plan(&self, ping: &mut Ping) {
        let family = ping.source;
        match *self {
            Self::To(mac) => ping.to = mac,
            Self::From(mac) => ping.from = mac,
            Self::Destination(place) => ping.destination = place.of(family),
            Self::Source(place) => ping.source = place.of(family),
            Self::Kind(kind) => ping.kind = kind,
            Self::Code(code) => ping.code = code,
            Self::ThirdTag(tag) => ping.tags = vec![0x8100, 0x8100, tag],
            Self::Extension(protocol, words, options) if family.is_ipv6() => {
                let mut header = [&[0, words][..], &options].concat();
                header.resize(8 + 8 * usize::from(words), 0);
                ping.extensions.push((protocol, header));
            }
            Self::Fragment(number) if family.is_ipv6() => {
                let [high, low] = number.to_be_bytes();
                ping.extensions.push((44, vec![0, 0, high, low, 0, 0, 0, 7]));
            }
            _ => {}
        }
    }

    /// What is done to the built frame, whose IP header is at `ip_at` if nothing has happened to that yet.
    fn damage(&self, mut frame: Vec<u8>, ip_at: usize) -> Vec<u8> {
        let v4 = frame.get(ip_at).is_some_and(|byte| byte >> 4 == 4);
        let length_at = if v4 { ip_at + 2 } else { ip_at + 4 };
        let length = |frame: &[u8]| {
            frame.get(length_at..).and_then(|rest| rest.first_chunk()).map(|bytes| u16::from_be_bytes(*bytes))
        };
        match self {
            Self::Protocol(number) if frame.len() > ip_at + 9 => {
                frame[if v4 { ip_at + 9 } else { ip_at + 6 }] = *number;
            }
            Self::Options(words) if v4 && frame.len() >= ip_at + 20 => {
                frame[ip_at] = 0x45 + words;
                let total = length(&frame).unwrap_or_default().wrapping_add(4 * u16::from(*words));
                frame = poked(frame, length_at, &total.to_be_bytes());
                frame.splice(ip_at + 20..ip_at + 20, vec![1; usize::from(*words) * 4]);
            }
            Self::Fragment(number) if v4 && frame.len() > ip_at + 8 => {
                frame = poked(frame, ip_at + 6, &number.to_be_bytes());
            }
            Self::Message(bytes) => {
                if let Some(packet) = model::locate(&frame) {
                    let cut = packet.message.len().saturating_sub(usize::from(*bytes));
                    let total = length(&frame).unwrap_or_default() - cut as u16;
                    frame = poked(frame, length_at, &total.to_be_bytes());
                    frame.truncate(packet.message.end - cut);
                }
            }
            Self::Flip(index, mask) if !frame.is_empty() => {
                let at = index.index(frame.len());
                frame[at] ^= mask;
            }
            Self::FlipHeader(index, mask) if !frame.is_empty() => {
                let at = index.index(frame.len().min(80));
                frame[at] ^= mask;
            }
            Self::Truncate(index) => frame.truncate(index.index(frame.len() + 1)),
            Self::Extend(bytes) => frame.extend(bytes),
            Self::Noise(index, bytes) => {
                let at = index.index(frame.len() + 1);
                for (byte, noise) in frame[at..].iter_mut().zip(bytes.iter().cycle()) {
                    *byte = *noise;
                }
            }
            Self::IpLength(by) => {
                if let Some(length) = length(&frame) {
                    frame = poked(frame, length_at, &length.wrapping_add_signed(*by).to_be_bytes());
                }
            }
            Self::FirstByte(byte) if frame.len() > ip_at => frame[ip_at] = *byte,
            _ => {}
        }
        frame
    }
}

fn hosts() -> impl Strategy<Value = Place> {
    let few = (2..20u8).prop_map(|number| Place {
        v4: Ipv4Addr::new(10, 0, 0, number),
        v6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()),
    });
    let many = (0x0100_0000..0x7f00_0000_u32, any::<u64>())
        .prop_map(|(v4, low)| Place { v4: v4.into(), v6: (0x2001_0db8_u128 << 96 | u128::from(low)).into() });
    // One of ours is no sender, but there are 2^30 others.
    prop_oneof![1 => few, 2 => many]
        .prop_filter("another host", |place| !OWN4.contains(&place.v4) && !BROADCASTS.contains(&place.v4))
}

fn places() -> impl Strategy<Value = Place> {
    let v4 = prop_oneof![
        select(&OWN4[..]),
        select(&BROADCASTS[..]),
        select(vec![
            0,
            1,
            0x00ff_ffff,
            0x7f00_0001,
            0xe000_0001,
            0xefff_ffff,
            0xf000_0000,
            u32::MAX,
            u32::MAX - 1
        ])
        .prop_map(Ipv4Addr::from),
        any::<Ipv4Addr>(),
    ];
    let v6 = prop_oneof![
            select(&OWN6[..]),
            select(
                &[
                    "::",
                    "::1",
                    "::2",
                    "ff02::1",
                    "ff0e::1",
                    "::ffff:10.0.0.1",
                    "::ffff:10.0.0.2",
                    "::10.0.0.1"
                ][..]
            )
            .prop_map(|text| text.parse().expect("an address")),
            any::<Ipv4Addr>().prop_map(|v4| v4.to_ipv6_mapped()),
            any::<Ipv6Addr>(),
        ];
    prop_oneof![(v4, v6).prop_map(|(v4, v6)| Place { v4, v6 }), hosts()]
}

fn macs() -> impl Strategy<Value = [u8; 6]> {
    prop_oneof![
        select(vec![
            OWN_MAC,
            OTHER_MAC,
            [0; 6],
            [0xff; 6],
            [0x01, 0, 0x5e, 0, 0, 1],
            [0x33, 0x33, 0, 0, 0, 1]
        ]),
        (0..48usize).prop_map(|bit| {
            let mut mac = OWN_MAC;
            mac[bit / 8] ^= 1 << (bit % 8);
            mac
        }),
        any::<[u8; 6]>(),
    ]
}

fn payloads() -> impl Strategy<Value = Vec<u8>> {
    let lengths = prop_oneof![
        30 => 0..80usize,
        4 => 80..1480usize,
        4 => 1480..1500usize,
        2 => 1500..3600usize,
        1 => 3600..9000usize,
    ];
    // A few bytes again and again are as good as more, and quicker made.
    let content = prop_oneof![
        1 => Just(vec![0]),
        1 => Just(vec![0xff]),
        4 => vec(any::<u8>(), 1..20),
    ];
    (lengths, content).prop_map(|(length, content)| content.into_iter().cycle().take(length).collect())
}

fn words() -> impl Strategy<Value = u16> {
    prop_oneof![select(vec![0u16, 1, 0x00ff, 0xff00, 0xfffe, 0xffff]), any::<u16>()]
}

fn tags() -> impl Strategy<Value = Vec<u16>> {
    let tag = || select(vec![0x8100u16, 0x88a8]);
    prop_oneof![3 => Just(Vec::new()), 2 => vec(tag(), 1), 2 => vec(tag(), 2)]
}

/// Headers of nothing but padding.
fn paddings() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
    let padding = || select(vec![vec![0, 0, 1, 4, 0, 0, 0, 0], vec![0; 8]]);
    let headers = (any::<bool>(), vec(padding(), 1..=8)).prop_map(|(hop_by_hop, headers)| {
        let protocol = |index: usize| if index == 0 && hop_by_hop { 0 } else { 60 };
        headers.into_iter().enumerate().map(|(index, header)| (protocol(index), header)).collect()
    });
    prop_oneof![3 => Just(Vec::new()), 1 => headers]
}

/// Requests that nothing is wrong with.
fn requests() -> impl Strategy<Value = Ping> {
    let ip = (any::<bool>(), any::<bool>(), hosts(), any::<u8>(), any::<u8>(), words());
    // Zeros alone have a checksum of their own.
    let zeros = (0..1600usize).prop_map(|length| (0, 0, vec![0; length]));
    let message = prop_oneof![20 => (words(), words(), payloads()), 1 => zeros];
    let rest = (tags(), paddings(), prop_oneof![3 => Just(Vec::new()), 1 => vec(any::<u8>(), 0..30)]);
    (ip, message, rest).prop_map(
        |(
            (v6, second, host, service, ttl, label),
            (identifier, sequence, payload),
            (tags, extensions, trailer),
        )| {
            let own = usize::from(second);
            let (source, destination) =
                if v6 { (host.v6.into(), OWN6[own].into()) } else { (host.v4.into(), OWN4[own].into()) };
            Ping {
                to: OWN_MAC,
                from: OTHER_MAC,
                tags,
                service,
                label,
                ttl,
                identifier,
                sequence,
                payload,
                extensions: if v6 { extensions } else { Vec::new() },
                trailer,
                ..Ping::request(source, destination)
            }
        },
    )
}

fn oddities() -> impl Strategy<Value = Oddity> {
    let protocols = || select(vec![0u8, 1, 6, 17, 43, 44, 50, 51, 58, 59, 60, 135]);
    let options = prop_oneof![
        Just([1, 4, 0, 0, 0, 0]),
        Just([0; 6]),
        Just([5, 2, 0, 0, 1, 0]),
        Just([1, 2, 0, 0, 1, 0]),
        any::<[u8; 6]>()
    ];
    let fragment = prop_oneof![
        select(vec![0u16, 0x2000, 0x4000, 0x8000, 0xc000, 0x6000, 0x1fff, 1, 2, 6, 8, 9, 0xfff8]),
        any::<u16>()
    ];
    prop_oneof![
        1 => macs().prop_map(Oddity::To),
        1 => macs().prop_map(Oddity::From),
        2 => places().prop_map(Oddity::Destination),
        2 => places().prop_map(Oddity::Source),
        1 => select(vec![0u8, 3, 8, 11, 13, 128, 129, 135, 136]).prop_map(Oddity::Kind),
        1 => any::<u8>().prop_map(Oddity::Code),
        1 => select(vec![0x8100u16, 0x88a8]).prop_map(Oddity::ThirdTag),
        1 => prop_oneof![protocols(), any::<u8>()].prop_map(Oddity::Protocol),
        1 => (1..=10u8).prop_map(Oddity::Options),
        2 => (select(vec![0u8, 43, 60]), prop_oneof![4 => Just(0u8), 1 => 0..4u8], options)
            .prop_map(|(protocol, words, options)| Oddity::Extension(protocol, words, options)),
        1 => fragment.prop_map(Oddity::Fragment),
        1 => (0..20u8).prop_map(Oddity::Message),
        2 => (any::<Index>(), 1..=255u8).prop_map(|(index, mask)| Oddity::Flip(index, mask)),
        3 => (any::<Index>(), 0..8u8).prop_map(|(index, bit)| Oddity::FlipHeader(index, 1 << bit)),
        2 => any::<Index>().prop_map(Oddity::Truncate),
        1 => vec(any::<u8>(), 1..100).prop_map(Oddity::Extend),
        1 => (any::<Index>(), vec(any::<u8>(), 1..40)).prop_map(|(index, bytes)| Oddity::Noise(index, bytes)),
        2 => prop_oneof![-20..20i16, any::<i16>()].prop_map(Oddity::IpLength),
        1 => prop_oneof![0x40..0x70u8, any::<u8>()].prop_map(Oddity::FirstByte),
    ]
}

pub fn inputs() -> impl Strategy<Value = Input> {
    let plans = (requests(), prop_oneof![1 => Just(0), 3 => 1..=1usize, 2 => 2..4usize], any::<bool>())
        .prop_flat_map(|(ping, count, mended)| {
            vec(oddities(), count)
                .prop_map(move |oddities| Input::Request(Plan { ping: ping.clone(), oddities, mended }))
        });
    let noise = (
        proptest::option::of(select(vec![0x0800u16, 0x86dd, 0x8100, 0x88a8, 0x0806])),
        prop_oneof![8 => vec(any::<u8>(), 0..120), 1 => vec(any::<u8>(), 0..4000)],
    )
        .prop_map(|(ethertype, bytes)| Input::Noise { ethertype, bytes });
    prop_oneof![9 => plans, 1 => noise]
}
