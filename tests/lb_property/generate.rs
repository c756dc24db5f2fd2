//! Random packets from both sides. Clients, SPIs and fragment identifiers are few, so that packets meet the state
//! that others left; addresses hold the number of the run, so that hashes differ from run to run.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{
    IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader,
    UdpHeader,
};
use lb::lb::backend::Wanted;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::common::packet::{self, CLIENT_MAC, GATEWAY_MAC, Ike};
use crate::frame::Mac;

/// The longest sequence of packets.
pub const STEPS_MAX: usize = 120;

/// What the SPIs that backends choose for IKE begin with: the labels of two backends, and of none.
const RESPONDER_SPIS: [u64; 3] = [0x2000_0000_0000_0000, 0x7000_0000_0000_0000, 0xe000_0000_0000_0000];

/// SPIs of ESP and AH: with the labels of three backends, with that of none, and a reserved one. In UDP, an SPI of zero
/// would be the marker of IKE.
const ESP_SPIS: [u32; 5] = [0xc000_0001, 0x2000_0003, 0x7000_0002, 0xf000_0001, 0x40];

/// Clients; the first half speaks IPv4, the second IPv6.
const CLIENTS: u8 = 6;

#[derive(Clone, Debug)]
pub enum Event {
    Packet(Step),
    /// The user wants something else of a backend.
    Change {
        backend: u8,
        wanted: Wanted,
    },
}

#[derive(Clone, Debug)]
pub struct Step {
    pub side: Side,
    pub packet: PacketPlan,
    /// What happens to the lawful frame on the way; nothing, mostly.
    pub damage: Vec<Damage>,
    /// Look for a frame that takes a way that it should not.
    pub probe: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum Side {
    Client { ingress: u8 },
    Backend { sender: Sender, mac: SenderMac },
}

#[derive(Clone, Copy, Debug)]
pub enum Sender {
    /// The backend of the IKE SA, where it is beside the client's session, or of the session; the first one where there is
    /// none.
    OfSession,
    Number(u8),
}

#[derive(Clone, Copy, Debug)]
pub enum SenderMac {
    Own,
    /// Of a machine in the backend's place.
    Another(u8),
    /// No station's.
    Group,
    Zero,
}

#[derive(Clone, Debug)]
pub struct PacketPlan {
    pub client: u8,
    pub content: Plan,
    /// To an address that is not the VIP.
    pub elsewhere: bool,
    /// The message ends early, and all lengths agree that it does.
    pub short: Option<Short>,
    pub fragment: Option<FragmentPlan>,
    pub wrapping: Wrapping,
}

#[derive(Clone, Debug)]
pub enum Plan {
    Ike {
        nat: bool,
        sa: u8,
        responder: Option<u8>,
        kind: IkeKind,
    },
    Keepalive,
    /// `spi` is a number in `ESP_SPIS`.
    EspInUdp {
        spi: u8,
    },
    Esp {
        spi: u8,
    },
    Ah {
        spi: u8,
    },
    Icmp {
        echo: Echo,
    },
    IcmpError {
        by_router: bool,
        about: u8,
        kind: u8,
        quote: u8,
    },
    OtherIcmp {
        kind: u8,
    },
    Arp {
        to: Station,
    },
    /// ND and MLD.
    Discovery {
        kind: u8,
        to: Station,
    },
    OtherUdp {
        port: u16,
    },
    OtherProtocol {
        number: u8,
    },
    OtherEthertype {
        number: u16,
    },
}

#[derive(Clone, Copy, Debug)]
pub enum Echo {
    Request,
    Reply,
}

#[derive(Clone, Copy, Debug)]
pub enum IkeKind {
    Init,
    InitResponse,
    Auth,
    AuthResponse,
    MainMode,
    /// INVALID_IKE_SPI, with the SPIs of what it complains of.
    Notification,
    Odd {
        version: u8,
        exchange: u8,
        flags: u8,
    },
}

#[derive(Clone, Copy, Debug)]
pub enum Station {
    Group,
    Backend(u8),
    Gateway,
}

/// How many bytes are left of a message.
#[derive(Clone, Copy, Debug)]
pub enum Short {
    /// Behind the UDP header, or the IP header where there is no UDP.
    Message(u8),
    /// Behind the IP header.
    Packet(u8),
}

#[derive(Clone, Copy, Debug)]
pub struct FragmentPlan {
    id: u8,
    part: Part,
}

#[derive(Clone, Copy, Debug)]
pub enum Part {
    First,
    Middle,
    Last,
    /// A fragment header around a whole datagram, which IPv6 has.
    Whole,
}

#[derive(Clone, Debug, Default)]
pub struct Wrapping {
    /// Ethertypes of VLAN tags.
    tags: Vec<u16>,
    /// Words of IPv4 options.
    options: u8,
    /// IPv6 extension headers: type, and length in units of eight bytes behind the first eight.
    extensions: Vec<(u8, u8)>,
    /// Options behind a fragment header, not before.
    options_in_fragment: bool,
    /// Ethernet padding.
    padding: u8,
}

#[derive(Clone, Debug)]
pub enum Damage {
    Truncate(Index),
    Extend(Vec<u8>),
    /// A byte near the start of the frame, where headers are.
    Flip(Index, u8),
    /// Everything from there on is noise.
    Noise(Index, u64),
    Lie(Lie, i16),
}

#[derive(Clone, Copy, Debug)]
pub enum Lie {
    /// IPv4's total or IPv6's payload length is off by that much.
    IpLength,
    /// UDP's length is off by that much.
    UdpLength,
    /// IHL becomes that much, and IPv6's version.
    FirstNibbles,
}

/// Where in a frame the headers that lies are told in begin.
struct Places {
    ip: usize,
    payload: usize,
}

impl Step {
    /// Whether the packet is sound and belongs to a tunnel, so that no balancer with an active backend may drop it.
    pub fn is_of_tunnel(&self) -> bool {
        let sound = self.damage.is_empty()
            && !self.packet.elsewhere
            && self.packet.short.is_none()
            && self.packet.wrapping.tags.len() <= 2
            && self.packet.wrapping.extensions.len() <= 7;
        let tunnel = match self.packet.content {
            Plan::Ike { .. }
            | Plan::EspInUdp { .. }
            | Plan::Esp { .. }
            | Plan::Ah { .. }
            | Plan::Icmp { .. } => true,
            // The first fragment of an error may hold too little of the quoted packet.
            Plan::IcmpError { quote, .. } => quote >= 60 && self.packet.fragment.is_none(),
            _ => false,
        };
        sound && tunnel
    }

    /// The frame of run number `run`, sent by backend `sender` if it comes from the backends' side.
    pub fn frame(&self, run: u16, sender: u32) -> Vec<u8> {
        let plan = &self.packet;
        let to_client = matches!(self.side, Side::Backend { .. });
        let peer = match plan.content {
            Plan::IcmpError { by_router: true, .. } if !to_client => router(run, is_v6(plan.client)),
            _ => client(run, plan.client),
        };
        let here = if plan.elsewhere { elsewhere(peer) } else { packet::vip(peer) };
        let (source, destination) = if to_client { (here, peer) } else { (peer, here) };

        let mut to = if to_client { CLIENT_MAC } else { GATEWAY_MAC };
        let mut from = CLIENT_MAC;
        if let Side::Backend { mac, .. } = self.side {
            from = match mac {
                SenderMac::Own => packet::backend_mac(sender as u8),
                SenderMac::Another(number) => [0x02, 0, 0, 1, 0, number],
                SenderMac::Group => [0x33, 0x33, 0, 0, 0, 1],
                SenderMac::Zero => [0; 6],
            };
        }
        if let Plan::Arp { to: station } | Plan::Discovery { to: station, .. } = plan.content {
            to = station.mac(to);
        }

        let mut frame = [to, from].concat();
        for tag in &plan.wrapping.tags {
            frame.extend(tag.to_be_bytes());
            frame.extend([0, 7]);
        }
        let mut places = Places { ip: frame.len() + 2, payload: frame.len() + 2 };
        match plan.content {
            Plan::Arp { .. } => {
                frame.extend([0x08, 0x06]);
                frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
                frame.extend([0x5a; 20]);
            }
            Plan::OtherEthertype { number } => {
                frame.extend(number.to_be_bytes());
                frame.extend([0x5a; 40]);
            }
            _ => {
                let (protocol, payload) = plan.payload(run, source, destination, to_client);
                places.payload += plan.ip(&mut frame, run, source, destination, protocol, &payload);
            }
        }
        frame.extend(std::iter::repeat_n(0, plan.wrapping.padding.into()));
        for damage in &self.damage {
            damage.do_to(&mut frame, &places);
        }
        // The kernel takes no frame for a test run that is shorter than an Ethernet header.
        frame.resize(frame.len().max(14), 0);
        frame
    }
}

impl Station {
    fn mac(self, gateway: Mac) -> Mac {
        match self {
            Self::Group => [0xff; 6],
            Self::Backend(index) => packet::backend_mac(index),
            Self::Gateway => gateway,
        }
    }
}

impl PacketPlan {
    /// Of IKE, in run number `run`.
    pub fn initiator_spi(&self, run: u16) -> Option<u64> {
        match self.content {
            Plan::Ike { sa, .. } => Some(initiator_spi(run, self.client, sa)),
            _ => None,
        }
    }

    /// What stands behind the IP header, and its protocol.
    fn payload(&self, run: u16, source: IpAddr, destination: IpAddr, to_client: bool) -> (u8, Vec<u8>) {
        let v6 = source.is_ipv6();
        let udp = |port: u16, payload: &[u8]| {
            let payload = match self.short {
                Some(Short::Message(left)) => &payload[..payload.len().min(left.into())],
                _ => payload,
            };
            let other = if port == 500 { 500 } else { 40000 };
            let ports = if to_client { (port, other) } else { (other, port) };
            (17, udp(source, destination, ports, payload))
        };
        let icmp = |v4_kind: u8, v6_kind: u8, rest: &[u8]| {
            let kind = if v6 { v6_kind } else { v4_kind };
            let protocol = if v6 { 58 } else { 1 };
            (protocol, [&[kind, 0, 0, 0, 0, 1, 0, 1], rest].concat())
        };
        let (protocol, mut payload) = match self.content {
            Plan::Ike { nat, sa, responder, kind } => {
                let mut message = kind.message(run, self.client, sa, responder).bytes();
                if let IkeKind::Notification = kind {
                    message[16] = 41;
                }
                if nat { udp(4500, &[vec![0; 4], message].concat()) } else { udp(500, &message) }
            }
            Plan::Keepalive => udp(4500, &[0xff]),
            Plan::EspInUdp { spi } => udp(4500, &packet::esp_bytes(esp_spi(spi))),
            Plan::Esp { spi } => (50, packet::esp_bytes(esp_spi(spi))),
            Plan::Ah { spi } => (51, [&[50, 4, 0, 0][..], &esp_spi(spi).to_be_bytes(), &[0xa4; 56]].concat()),
            Plan::Icmp { echo: Echo::Request } => icmp(8, 128, &[0x5a; 48]),
            Plan::Icmp { echo: Echo::Reply } => icmp(0, 129, &[0x5a; 48]),
            Plan::IcmpError { about, kind, quote, .. } => {
                let about = client(run, about % (CLIENTS / 2) + if v6 { CLIENTS / 2 } else { 0 });
                let esp = packet::esp_bytes(0xc000_0002);
                let mut quoted = ip_header(packet::vip(about), about, 50, esp.len());
                quoted.extend(esp);
                quoted.truncate(quote.into());
                icmp([3, 11, 12][usize::from(kind % 3)], kind % 4 + 1, &quoted)
            }
            Plan::OtherIcmp { kind } => icmp(kind, kind, &[0; 8]),
            Plan::Discovery { kind, .. } => (58, [&[kind, 0, 0, 0][..], &[0x5a; 20]].concat()),
            Plan::OtherUdp { port } => udp(port, &[0x5a; 20]),
            Plan::OtherProtocol { number } => (number, vec![0x5a; 30]),
            Plan::Arp { .. } | Plan::OtherEthertype { .. } => unreachable!("no IP"),
        };
        match self.short {
            Some(Short::Packet(left)) => payload.truncate(left.into()),
            Some(Short::Message(left)) if protocol != 17 => payload.truncate(left.into()),
            _ => {}
        }
        (protocol, payload)
    }

    /// Appends an IP packet, or the planned fragment of it. Returns the length of its headers.
    fn ip(
        &self,
        frame: &mut Vec<u8>,
        run: u16,
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        payload: &[u8],
    ) -> usize {
        // The first fragment ends, and a later one begins, behind 40 bytes, or as near as the payload allows.
        let cut = 40.min(payload.len() / 8 * 8);
        let (offset, more, part) = match self.fragment.map(|fragment| fragment.part) {
            None | Some(Part::Whole) => (0, false, payload),
            Some(Part::First) => (0, true, &payload[..cut]),
            Some(Part::Middle) => (cut.max(8), true, &payload[cut..]),
            Some(Part::Last) => (cut.max(8), false, &payload[cut..]),
        };
        let offset = IpFragOffset::try_new(offset as u16 / 8).expect("a small offset");
        let id = self.fragment.map_or(0, |fragment| run << 3 | u16::from(fragment.id & 7));

        frame.extend(if source.is_ipv6() { [0x86, 0xdd] } else { [0x08, 0x00] });
        let at = frame.len();
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header =
                    Ipv4Header::new(0, 64, protocol.into(), source.octets(), destination.octets())
                        .expect("no length");
                let options = vec![1u8; usize::from(self.wrapping.options.min(10)) * 4];
                header.options = Ipv4Options::try_from(&options[..]).expect("at most 40 bytes");
                header.set_payload_len(part.len()).expect("a short packet");
                (header.identification, header.fragment_offset, header.more_fragments) = (id, offset, more);
                header.dont_fragment = false;
                header.header_checksum = header.calc_header_checksum();
                frame.extend(header.to_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut chain: Vec<(u8, Vec<u8>)> = Vec::new();
                for &(kind, length) in &self.wrapping.extensions {
                    chain.push((kind, vec![0; 6 + usize::from(length) * 8]));
                }
                if self.fragment.is_some() {
                    let place = if self.wrapping.options_in_fragment { 0 } else { chain.len() };
                    chain.insert(place, (44, Vec::new()));
                }
                let mut headers = Vec::new();
                for (index, (kind, body)) in chain.iter().enumerate() {
                    let next = IpNumber(chain.get(index + 1).map_or(protocol, |(kind, _)| *kind));
                    if *kind == 44 {
                        let header = Ipv6FragmentHeader::new(next, offset, more, id.into());
                        headers.extend(header.to_bytes());
                    } else {
                        let header = Ipv6RawExtHeader::new_raw(next, body).expect("a lawful extension");
                        headers.extend(header.to_bytes());
                    }
                    // A later fragment shows nothing of the headers behind its own.
                    if *kind == 44 && offset.value() != 0 {
                        break;
                    }
                }
                let header = Ipv6Header {
                    payload_length: (headers.len() + part.len()) as u16,
                    next_header: IpNumber(chain.first().map_or(protocol, |(kind, _)| *kind)),
                    hop_limit: 64,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Default::default()
                };
                frame.extend(header.to_bytes());
                frame.extend(headers);
            }
            _ => unreachable!("both ends are of one family"),
        }
        let length = frame.len() - at;
        frame.extend(part);
        length
    }
}

impl IkeKind {
    fn message(self, run: u16, client: u8, sa: u8, responder: Option<u8>) -> Ike {
        let initiator_spi = initiator_spi(run, client, sa);
        // The same for all SAs of a client: only both SPIs together name one.
        let responder_spi = responder.map_or(0, |choice| {
            RESPONDER_SPIS[usize::from(choice) % RESPONDER_SPIS.len()]
                | u64::from(client) << 8
                | u64::from(choice)
        });
        let message = Ike { responder_spi, ..Ike::init(initiator_spi) };
        match self {
            Self::Init => message,
            Self::InitResponse => Ike { flags: 0x20, ..message },
            Self::Auth => Ike { exchange: 35, ..message },
            Self::AuthResponse => Ike { exchange: 35, flags: 0x20, ..message },
            Self::Notification => Ike { exchange: 37, flags: 0x20, ..message },
            Self::MainMode => Ike { version: 0x10, exchange: 2, flags: 0, ..message },
            Self::Odd { version, exchange, flags } => Ike { version, exchange, flags, ..message },
        }
    }
}

impl Damage {
    fn do_to(&self, frame: &mut Vec<u8>, places: &Places) {
        if frame.is_empty() {
            return;
        }
        match self {
            Self::Truncate(at) => frame.truncate(at.index(frame.len())),
            Self::Extend(tail) => frame.extend(tail),
            Self::Flip(at, bits) => {
                let at = at.index(frame.len().min(100));
                frame[at] ^= bits;
            }
            Self::Noise(from, seed) => {
                let mut state = *seed;
                let from = from.index(frame.len());
                for byte in &mut frame[from..] {
                    // A linear congruential generator; its high bits are random enough.
                    state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                    *byte = (state >> 56) as u8;
                }
            }
            Self::Lie(Lie::FirstNibbles, value) => {
                if let Some(byte) = frame.get_mut(places.ip) {
                    *byte = *byte & 0xf0 | (*value as u8 & 0x0f);
                    if *value > 16 {
                        *byte ^= 0x20;
                    }
                }
            }
            Self::Lie(lie, value) => {
                let v6 = frame.get(places.ip).is_some_and(|byte| byte >> 4 == 6);
                let at = match lie {
                    Lie::UdpLength => places.payload + 4,
                    _ => places.ip + if v6 { 4 } else { 2 },
                };
                if let Some(field) = frame.get_mut(at..at + 2) {
                    let old = u16::from_be_bytes([field[0], field[1]]);
                    field.copy_from_slice(&old.wrapping_add_signed(*value).to_be_bytes());
                }
            }
        }
    }
}

fn initiator_spi(run: u16, client: u8, sa: u8) -> u64 {
    0x1000_0000_0000_0000 | u64::from(run) << 16 | u64::from(client) << 8 | u64::from(sa)
}

fn esp_spi(number: u8) -> u32 {
    ESP_SPIS[usize::from(number) % ESP_SPIS.len()]
}

fn is_v6(client: u8) -> bool {
    client % CLIENTS >= CLIENTS / 2
}

/// The address of a client in run number `run`.
pub fn client(run: u16, number: u8) -> IpAddr {
    let number = number % CLIENTS;
    host(run, number + 1, is_v6(number))
}

/// A router between clients and balancer, which reports errors.
fn router(run: u16, v6: bool) -> IpAddr {
    host(run, 200, v6)
}

fn host(run: u16, number: u8, v6: bool) -> IpAddr {
    let [high, low] = run.to_be_bytes();
    if v6 {
        // All in one /64: a client is an address, not a network.
        Ipv6Addr::new(0x2001, 0xdb8, run, 0, 0, 0, 0, number.into()).into()
    } else {
        Ipv4Addr::new(10, high, low, number).into()
    }
}

/// An address of the same family that is no VIP.
fn elsewhere(like: IpAddr) -> IpAddr {
    if like.is_ipv6() {
        Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 7).into()
    } else {
        Ipv4Addr::new(198, 51, 100, 7).into()
    }
}

fn udp(source: IpAddr, destination: IpAddr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let header = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => UdpHeader::with_ipv4_checksum(
            ports.0,
            ports.1,
            &Ipv4Header::new(0, 64, IpNumber::UDP, source.octets(), destination.octets()).expect("no length"),
            payload,
        ),
        (IpAddr::V6(source), IpAddr::V6(destination)) => UdpHeader::with_ipv6_checksum(
            ports.0,
            ports.1,
            &Ipv6Header { source: source.octets(), destination: destination.octets(), ..Default::default() },
            payload,
        ),
        _ => unreachable!("both ends are of one family"),
    };
    [&header.expect("a short datagram").to_bytes()[..], payload].concat()
}

/// An IP header without options.
fn ip_header(source: IpAddr, destination: IpAddr, protocol: u8, payload: usize) -> Vec<u8> {
    let whole = packet::raw(source, destination, IpNumber(protocol), &vec![0; payload]);
    whole[14..whole.len() - payload].to_vec()
}

/// Sequences of packets, from both sides, and of what is done to backends meanwhile.
pub fn sequences() -> impl Strategy<Value = Vec<Event>> {
    let packets = |steps: Vec<Step>| steps.into_iter().map(Event::Packet).collect::<Vec<_>>();
    let part = || {
        prop_oneof![
            12 => step().prop_map(move |step| packets(vec![step])),
            2 => handshake().prop_map(packets),
            1 => cut_datagram().prop_map(packets),
        ]
    };
    let restless = prop_oneof![30 => part(), 1 => change().prop_map(|change| vec![change])];
    prop_oneof![vec(part(), 1..STEPS_MAX), vec(restless, 1..STEPS_MAX)].prop_map(|parts| {
        let mut events: Vec<Event> = parts.into_iter().flatten().collect();
        events.truncate(STEPS_MAX);
        events
    })
}

fn change() -> impl Strategy<Value = Event> {
    let wanted = select(vec![Wanted::Active, Wanted::Draining, Wanted::Down]);
    (0..4u8, wanted).prop_map(|(backend, wanted)| Event::Change { backend, wanted })
}

fn step() -> impl Strategy<Value = Step> {
    (side(), packet_plan(), damages(), prop::bool::weighted(0.2))
        .prop_map(|(side, packet, damage, probe)| Step { side, packet, damage, probe })
}

/// Start, answer and proof, or something that only looks like it: the answer may come from another backend, or be a
/// notification. Parts of it come in any order too, as single steps.
fn handshake() -> impl Strategy<Value = Vec<Step>> {
    let exchange = prop_oneof![
        6 => Just([IkeKind::Init, IkeKind::InitResponse, IkeKind::Auth]),
        1 => Just([IkeKind::Init, IkeKind::Notification, IkeKind::Auth]),
        1 => Just([IkeKind::MainMode; 3]),
    ];
    (0..CLIENTS, 0..3u8, any::<bool>(), 0..2u8, 0..3u8, sender(), exchange).prop_map(
        |(client, sa, nat, ingress, choice, sender, kinds)| {
            let step = |side, responder, kind, nat| Step {
                side,
                packet: PacketPlan {
                    client,
                    content: Plan::Ike { nat, sa, responder, kind },
                    elsewhere: false,
                    short: None,
                    fragment: None,
                    wrapping: Wrapping::default(),
                },
                damage: vec![],
                probe: false,
            };
            let from_client = Side::Client { ingress };
            let from_backend = Side::Backend { sender, mac: SenderMac::Own };
            vec![
                step(from_client, None, kinds[0], false),
                step(from_backend, Some(choice), kinds[1], false),
                step(from_client, Some(choice), kinds[2], nat),
            ]
        },
    )
}

/// The fragments of one datagram, in order or not.
fn cut_datagram() -> impl Strategy<Value = Vec<Step>> {
    let parts = Just(vec![Part::First, Part::Middle, Part::Last]).prop_shuffle();
    (side(), packet_plan(), 0..4u8, parts).prop_map(|(side, packet, id, parts)| {
        let step = |part| Step {
            side,
            packet: PacketPlan { fragment: Some(FragmentPlan { id, part }), ..packet.clone() },
            damage: vec![],
            probe: false,
        };
        parts.into_iter().map(step).collect()
    })
}

fn sender() -> impl Strategy<Value = Sender> {
    prop_oneof![4 => Just(Sender::OfSession), 1 => (0..4u8).prop_map(Sender::Number)]
}

fn side() -> impl Strategy<Value = Side> {
    let mac = prop_oneof![
        24 => Just(SenderMac::Own),
        2 => (0..2u8).prop_map(SenderMac::Another),
        1 => Just(SenderMac::Group),
        1 => Just(SenderMac::Zero),
    ];
    prop_oneof![
        3 => (0..2u8).prop_map(|ingress| Side::Client { ingress }),
        1 => (sender(), mac).prop_map(|(sender, mac)| Side::Backend { sender, mac }),
    ]
}

fn packet_plan() -> impl Strategy<Value = PacketPlan> {
    let fragment = prop_oneof![
        7 => Just(None),
        1 => (0..4u8, select(vec![Part::First, Part::Middle, Part::Last, Part::Whole]))
            .prop_map(|(id, part)| Some(FragmentPlan { id, part })),
    ];
    // Just too short, and just long enough.
    let left =
        || prop_oneof![0..50u8, select(vec![0u8, 1, 3, 4, 7, 8, 11, 12, 27, 28, 31, 32, 35, 36, 39, 40])];
    let short = prop_oneof![
        10 => Just(None),
        1 => left().prop_map(|left| Some(Short::Message(left))),
        1 => left().prop_map(|left| Some(Short::Packet(left))),
    ];
    (0..CLIENTS, plan(), prop::bool::weighted(0.04), short, fragment, wrapping()).prop_map(
        |(client, content, elsewhere, short, fragment, wrapping)| {
            // ND and MLD are IPv6's.
            let client = match content {
                Plan::Discovery { .. } => client % (CLIENTS / 2) + CLIENTS / 2,
                _ => client,
            };
            PacketPlan { client, content, elsewhere, short, fragment, wrapping }
        },
    )
}

fn plan() -> impl Strategy<Value = Plan> {
    let kind = prop_oneof![
        5 => Just(IkeKind::Init),
        1 => Just(IkeKind::InitResponse),
        4 => Just(IkeKind::Auth),
        1 => Just(IkeKind::AuthResponse),
        2 => Just(IkeKind::MainMode),
        1 => Just(IkeKind::Notification),
        1 => (
            select(vec![0x10u8, 0x20, 0x21, 0x30, 0x00]),
            select(vec![34u8, 34, 34, 33, 35, 36, 38]),
            select(vec![0u8, 0x08, 0x20, 0x28]),
        )
            .prop_map(|(version, exchange, flags)| IkeKind::Odd { version, exchange, flags }),
    ];
    let responder = prop_oneof![1 => Just(None), 1 => (0..3u8).prop_map(Some)];
    let ike = (any::<bool>(), 0..3u8, responder, kind).prop_map(|(nat, sa, responder, kind)| Plan::Ike {
        nat,
        sa,
        responder,
        kind,
    });
    let error = (any::<bool>(), 0..CLIENTS, any::<u8>(), prop_oneof![4 => Just(60u8), 1 => 0..60u8])
        .prop_map(|(by_router, about, kind, quote)| Plan::IcmpError { by_router, about, kind, quote });
    let discovery = (prop_oneof![6 => 129..=138u8, 1 => Just(143u8)], station())
        .prop_map(|(kind, to)| Plan::Discovery { kind, to });
    prop_oneof![
        24 => ike,
        3 => Just(Plan::Keepalive),
        5 => (0..5u8).prop_map(|spi| Plan::EspInUdp { spi }),
        5 => (0..5u8).prop_map(|spi| Plan::Esp { spi }),
        2 => (0..5u8).prop_map(|spi| Plan::Ah { spi }),
        3 => select(vec![Echo::Request, Echo::Request, Echo::Reply]).prop_map(|echo| Plan::Icmp { echo }),
        4 => error,
        1 => prop_oneof![0..20u8, any::<u8>()].prop_map(|kind| Plan::OtherIcmp { kind }),
        1 => station().prop_map(|to| Plan::Arp { to }),
        2 => discovery,
        1 => select(vec![53u16, 501, 4501, 0, 40000]).prop_map(|port| Plan::OtherUdp { port }),
        1 => prop_oneof![select(vec![6u8, 2, 1, 58, 44, 0, 59, 60, 4, 41, 47, 135]), any::<u8>()]
            .prop_map(|number| Plan::OtherProtocol { number }),
        1 => select(vec![0x88ccu16, 0x0026, 0x8847, 0x9100, 0x0806, 0x0800, 0x86dd])
            .prop_map(|number| Plan::OtherEthertype { number }),
    ]
}

fn station() -> impl Strategy<Value = Station> {
    prop_oneof![Just(Station::Group), (0..4u8).prop_map(Station::Backend), Just(Station::Gateway)]
}

fn wrapping() -> impl Strategy<Value = Wrapping> {
    let tags = prop_oneof![8 => Just(0usize), 2 => Just(1), 2 => Just(2), 1 => Just(3)]
        .prop_flat_map(|count| vec(select(vec![0x8100u16, 0x88a8]), count));
    let extension = || (select(vec![0u8, 43, 60]), prop_oneof![4 => Just(0u8), 1 => 1..4u8]);
    let extensions =
        prop_oneof![8 => vec(extension(), 0), 3 => vec(extension(), 1..3), 1 => vec(extension(), 6..10)];
    let options = prop_oneof![6 => Just(0u8), 2 => 1..=10u8];
    let padding = prop_oneof![3 => Just(0u8), 1 => 1..20u8];
    (tags, options, extensions, any::<bool>(), padding).prop_map(
        |(tags, options, extensions, options_in_fragment, padding)| Wrapping {
            tags,
            options,
            extensions,
            options_in_fragment,
            padding,
        },
    )
}

fn damages() -> impl Strategy<Value = Vec<Damage>> {
    prop_oneof![10 => Just(vec![]), 3 => vec(damage(), 1..3)]
}

fn damage() -> impl Strategy<Value = Damage> {
    let lie = (
        select(vec![Lie::IpLength, Lie::UdpLength, Lie::FirstNibbles]),
        prop_oneof![6 => -40..40i16, 1 => any::<i16>()],
    );
    prop_oneof![
        3 => any::<Index>().prop_map(Damage::Truncate),
        1 => vec(any::<u8>(), 1..30).prop_map(Damage::Extend),
        4 => (any::<Index>(), 1..=255u8).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        1 => (any::<Index>(), any::<u64>()).prop_map(|(from, seed)| Damage::Noise(from, seed)),
        3 => lie.prop_map(|(lie, value)| Damage::Lie(lie, value)),
    ]
}
