//! Who owns an address behind an interface: ARP (RFC 826) and neighbour discovery (RFC 4861), asked from an interface
//! that has no address itself.

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::slice;
use std::time::{Duration, Instant};

use etherparse::icmpv6::{
    Icmpv6PayloadSlice, NdpOptionSlice, NdpOptionType, NeighborSolicitationPayload,
    TYPE_NEIGHBOR_ADVERTISEMENT,
};
use etherparse::{
    ArpEthIpv4Packet, ArpOperation, Icmpv6Type, LinkSlice, NetSlice, PacketBuilder, SlicedPacket,
    TransportSlice,
};
use macaddr::MacAddr6;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, bind, recv, send, socket,
};

use super::interface::Interface;

/// How long to wait for an answer before asking again.
const REPEAT: Duration = Duration::from_millis(300);

/// How many frames to read before looking at the time.
const FRAMES_IN_A_ROW: usize = 256;

/// The hop limit of neighbour discovery: no router has passed the packet on (RFC 4861, section 7.1).
const ND_HOP_LIMIT: u8 = 255;

/// The MAC address that owns `address` behind `interface`, `None` where nobody answered within `timeout`.
///
/// # Errors
///
/// As [`resolve_all`] has them for each interface.
pub fn resolve(interface: &Interface, address: IpAddr, timeout: Duration) -> io::Result<Option<MacAddr6>> {
    let mut answers = resolve_all(slice::from_ref(interface), address, timeout);
    answers.pop().expect("there is an answer for each interface")
}

/// Asks behind each of `interfaces`, of the caller's network namespace, who owns `address`, and returns their
/// answers in the same order: a MAC address, or `None` where nobody answered within `timeout`. All are asked at
/// once, and repeatedly.
///
/// The question says nothing that a host could learn wrongly. For IPv4 it is an ARP probe, which has no sender
/// address (RFC 5227, section 2.1.1). For IPv6 it comes from the link-local address that belongs to the
/// interface's MAC (RFC 4862, section 5.3) and not from `::`, since a solicitation from `::` makes a host that is
/// just taking the address believe in a duplicate and give it up (RFC 4862, section 5.4.3).
///
/// An XDP program on an interface would keep the answers from us: ask before attaching.
///
/// # Errors
///
/// For each interface by itself: it is down, gone, or no Ethernet; no privilege (CAP_NET_RAW).
pub fn resolve_all(
    interfaces: &[Interface],
    address: IpAddr,
    timeout: Duration,
) -> Vec<io::Result<Option<MacAddr6>>> {
    let mut questions: Vec<Question> =
        interfaces.iter().map(|interface| Question::new(interface, address)).collect();
    let deadline = Instant::now() + timeout;
    loop {
        let repeat = (Instant::now() + REPEAT).min(deadline);
        questions.iter_mut().for_each(Question::ask);
        while Instant::now() < repeat {
            if !questions.iter().any(Question::is_open) {
                break;
            }
            wait(&questions, repeat);
            questions.iter_mut().for_each(|question| question.listen(address));
        }
        if Instant::now() >= deadline || !questions.iter().any(Question::is_open) {
            return questions.into_iter().map(Question::into_answer).collect();
        }
    }
}

/// Where the question about one interface stands.
enum Question {
    Open { socket: OwnedFd, frame: Vec<u8> },
    Answered(MacAddr6),
    Failed(io::Error),
}

impl Question {
    fn new(interface: &Interface, address: IpAddr) -> Self {
        match open(interface, address) {
            Ok((socket, frame)) => Self::Open { socket, frame },
            Err(error) => Self::Failed(error),
        }
    }

    fn is_open(&self) -> bool {
        matches!(self, Self::Open { .. })
    }

    fn ask(&mut self) {
        let Self::Open { socket, frame } = self else { return };
        match send(socket.as_raw_fd(), frame, MsgFlags::empty()) {
            // A queue that is full now will not be at the next time.
            Ok(_) | Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => *self = Self::Failed(errno.into()),
        }
    }

    /// Reads what has come in so far.
    fn listen(&mut self, address: IpAddr) {
        let Self::Open { socket, .. } = self else { return };
        // An answer is far smaller than this; of larger frames the rest is cut off.
        let mut frame = [0; 2048];
        // Under a flood there would always be one more frame: the deadline gets its turn in between.
        for _ in 0..FRAMES_IN_A_ROW {
            match recv(socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Ok(length) => {
                    if let Some(mac) = answer(&frame[..length], address) {
                        *self = Self::Answered(mac);
                        return;
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(errno) => {
                    *self = Self::Failed(errno.into());
                    return;
                }
            }
        }
    }

    fn into_answer(self) -> io::Result<Option<MacAddr6>> {
        match self {
            Self::Open { .. } => Ok(None),
            Self::Answered(mac) => Ok(Some(mac)),
            Self::Failed(error) => Err(error),
        }
    }
}

/// Waits until something comes in, or it is `until`.
fn wait(questions: &[Question], until: Instant) {
    let mut sockets: Vec<PollFd> = questions
        .iter()
        .filter_map(|question| match question {
            Question::Open { socket, .. } => Some(PollFd::new(socket.as_fd(), PollFlags::POLLIN)),
            _ => None,
        })
        .collect();
    // Whole milliseconds, rounded up: rounded down, the last one would be spent in a busy loop.
    let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    // Whether this ended by a frame, by time or by a signal makes no difference to what the caller does next.
    let _ = poll(&mut sockets, timeout);
}

/// A socket on the interface that gets the answers, and the frame that asks.
fn open(interface: &Interface, address: IpAddr) -> io::Result<(OwnedFd, Vec<u8>)> {
    if !interface.is_up().map_err(io::Error::other)? {
        let name = &interface.name;
        let message = format!("the interface is down (`ip link set dev {name} up` switches it on)");
        return Err(io::Error::new(io::ErrorKind::NetworkDown, message));
    }
    let mac = interface.mac().map_err(io::Error::other)?;
    let (protocol, frame) = match address {
        IpAddr::V4(address) => (libc::ETH_P_ARP, arp_probe(mac, address)),
        IpAddr::V6(address) => (libc::ETH_P_IPV6, neighbour_solicitation(mac, address)),
    };

    // Protocol 0 receives nothing: frames of other interfaces cannot come in before the socket is bound to ours.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
    bind(socket.as_raw_fd(), &link_address(interface.index, protocol as u16))?;
    Ok((socket, frame))
}

/// The address of a packet socket (`man 7 packet`): one interface, and one Ethernet protocol in host byte order.
fn link_address(index: u32, protocol: u16) -> LinkAddr {
    // SAFETY: all zeroes is a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index as i32;
    address.sll_protocol = protocol.to_be();
    let length = mem::size_of_val(&address) as libc::socklen_t;
    // SAFETY: the pointer is to a `sockaddr_ll` that is filled in, and the length is its own.
    unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) }.expect("the family is AF_PACKET")
}

/// An ARP probe (RFC 5227, section 2.1.1): a request whose sender address is zero, so that nobody's cache changes.
fn arp_probe(mac: MacAddr6, address: Ipv4Addr) -> Vec<u8> {
    let probe = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: mac.into_array(),
        sender_ipv4: [0; 4],
        target_mac: [0; 6],
        target_ipv4: address.octets(),
    };
    let packet = PacketBuilder::ethernet2(mac.into_array(), [0xff; 6]).arp(probe.into());
    let mut frame = Vec::with_capacity(packet.size());
    packet.write(&mut frame).expect("a vector takes every frame");
    frame
}

/// A neighbour solicitation (RFC 4861, section 4.3) to the address's solicited-node group (RFC 4291, section 2.7.1;
/// its MAC by RFC 2464, section 7), with the interface's MAC as the place to answer to.
fn neighbour_solicitation(mac: MacAddr6, address: Ipv6Addr) -> Vec<u8> {
    let mac = mac.into_array();
    let [.., a, b, c] = address.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    let mut payload = NeighborSolicitationPayload { target_address: address }.to_bytes().to_vec();
    // The option's length is in units of 8 bytes.
    payload.extend([NdpOptionType::SOURCE_LINK_LAYER_ADDRESS.0, 1]);
    payload.extend(mac);

    let packet = PacketBuilder::ethernet2(mac, [0x33, 0x33, 0xff, a, b, c])
        .ipv6(link_local(mac).octets(), group.octets(), ND_HOP_LIMIT)
        .icmpv6(Icmpv6Type::NeighborSolicitation);
    let mut frame = Vec::with_capacity(packet.size(payload.len()));
    packet.write(&mut frame, &payload).expect("a vector takes every frame");
    frame
}

/// The link-local address that belongs to a MAC address (RFC 4862, section 5.3; RFC 2464, section 4).
fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// The MAC address that a frame says owns `address`, `None` if it says nothing of the kind.
fn answer(frame: &[u8], address: IpAddr) -> Option<MacAddr6> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let mac = match address {
        IpAddr::V4(address) => arp_reply(&packet, address),
        IpAddr::V6(address) => neighbour_advertisement(&packet, address),
    }?;
    // A group or the zero address cannot own an address.
    Some(mac).filter(|mac| mac.is_unicast() && !mac.is_nil())
}

fn arp_reply(packet: &SlicedPacket<'_>, address: Ipv4Addr) -> Option<MacAddr6> {
    let Some(NetSlice::Arp(arp)) = &packet.net else { return None };
    let reply = arp.to_packet().try_eth_ipv4().ok()?;
    (reply.operation == ArpOperation::REPLY && reply.sender_ipv4_addr() == address)
        .then(|| reply.sender_mac.into())
}

/// Checks what RFC 4861, section 7.1.2, asks for, and reads the target's MAC address from the option that carries it.
/// An answer to one host may lack that option (section 4.4); then the frame's source is the target.
fn neighbour_advertisement(packet: &SlicedPacket<'_>, address: Ipv6Addr) -> Option<MacAddr6> {
    let Some(NetSlice::Ipv6(ip)) = &packet.net else { return None };
    let Some(TransportSlice::Icmpv6(icmp)) = &packet.transport else { return None };
    let header = ip.header();
    if icmp.type_u8() != TYPE_NEIGHBOR_ADVERTISEMENT
        || header.hop_limit() != ND_HOP_LIMIT
        || !icmp.is_checksum_valid(header.source(), header.destination())
    {
        return None;
    }
    let Ok(Icmpv6PayloadSlice::NeighborAdvertisement(advertisement)) = icmp.payload_slice() else {
        return None;
    };
    if advertisement.target_address() != address {
        return None;
    }
    let option = advertisement.options_iterator().flatten().find_map(|option| match option {
        NdpOptionSlice::TargetLinkLayerAddress(option) => {
            <[u8; 6]>::try_from(option.link_layer_address()).ok()
        }
        _ => None,
    });
    let source = match &packet.link {
        Some(LinkSlice::Ethernet2(ethernet)) => Some(ethernet.source()),
        _ => None,
    };
    option.or(source).map(MacAddr6::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: MacAddr6 = MacAddr6::new(0x02, 0, 0, 0, 0, 0x01);
    const THEIRS: MacAddr6 = MacAddr6::new(0xaa, 0xbb, 0xcc, 0, 0, 0x01);
    const PROXY: MacAddr6 = MacAddr6::new(0xaa, 0xbb, 0xcc, 0, 0, 0x02);
    const VIP4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 2);
    const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0x12, 0x3456);

    fn arp(operation: ArpOperation, sender: MacAddr6, address: Ipv4Addr) -> Vec<u8> {
        let packet = ArpEthIpv4Packet {
            operation,
            sender_mac: sender.into_array(),
            sender_ipv4: address.octets(),
            target_mac: OURS.into_array(),
            target_ipv4: [0; 4],
        };
        let packet = PacketBuilder::ethernet2(THEIRS.into_array(), OURS.into_array()).arp(packet.into());
        let mut frame = Vec::new();
        packet.write(&mut frame).unwrap();
        // A frame of Ethernet has at least 60 bytes.
        frame.resize(60, 0);
        frame
    }

    fn advertisement(target: Ipv6Addr, option: Option<MacAddr6>, hop_limit: u8) -> Vec<u8> {
        let header = etherparse::icmpv6::NeighborAdvertisementHeader {
            router: false,
            solicited: true,
            r#override: true,
        };
        let mut payload = target.octets().to_vec();
        if let Some(mac) = option {
            payload.extend([NdpOptionType::TARGET_LINK_LAYER_ADDRESS.0, 1]);
            payload.extend(mac.into_array());
        }
        let packet = PacketBuilder::ethernet2(THEIRS.into_array(), OURS.into_array())
            .ipv6(target.octets(), link_local(OURS.into_array()).octets(), hop_limit)
            .icmpv6(Icmpv6Type::NeighborAdvertisement(header));
        let mut frame = Vec::new();
        packet.write(&mut frame, &payload).unwrap();
        frame
    }

    #[test]
    fn an_arp_probe_has_the_bytes_of_the_rfc() {
        let frame = arp_probe(OURS, VIP4);
        let expected = [
            // Ethernet: to all, from us, ARP
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0, 0, 0, 0, 0x01, 0x08, 0x06,
            // Ethernet and IPv4, 6 and 4 bytes, request
            0, 1, 0x08, 0x00, 6, 4, 0, 1, // sender: our MAC, no address
            0x02, 0, 0, 0, 0, 0x01, 0, 0, 0, 0, // target: no MAC, the VIP
            0, 0, 0, 0, 0, 0, 192, 0, 0, 2,
        ];
        assert_eq!(frame, expected);
    }

    #[test]
    fn a_neighbour_solicitation_goes_to_the_group_of_the_address() {
        let frame = neighbour_solicitation(OURS, VIP6);
        assert_eq!(frame[..6], [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(NetSlice::Ipv6(ip)) = &packet.net else { panic!("no IPv6: {packet:?}") };
        assert_eq!(ip.header().source_addr(), "fe80::ff:fe00:1".parse::<Ipv6Addr>().unwrap());
        assert_eq!(ip.header().destination_addr(), "ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap());
        assert_eq!(ip.header().hop_limit(), 255);
        let Some(TransportSlice::Icmpv6(icmp)) = &packet.transport else { panic!("no ICMPv6: {packet:?}") };
        assert!(icmp.is_checksum_valid(ip.header().source(), ip.header().destination()));
        let Icmpv6PayloadSlice::NeighborSolicitation(asked) = icmp.payload_slice().unwrap() else {
            panic!("no solicitation: {icmp:?}")
        };
        assert_eq!(asked.target_address(), VIP6);
        assert_eq!(asked.options(), [1, 1, 0x02, 0, 0, 0, 0, 0x01]);
    }

    #[test]
    fn an_arp_reply_names_the_owner() {
        assert_eq!(answer(&arp(ArpOperation::REPLY, THEIRS, VIP4), VIP4.into()), Some(THEIRS));
    }

    #[test]
    fn other_arp_says_nothing() {
        let request = arp(ArpOperation::REQUEST, THEIRS, VIP4);
        let of_another = arp(ArpOperation::REPLY, THEIRS, Ipv4Addr::new(192, 0, 0, 3));
        let to_all = arp(ArpOperation::REPLY, MacAddr6::broadcast(), VIP4);
        let nil = arp(ArpOperation::REPLY, MacAddr6::nil(), VIP4);
        for frame in [request, of_another, to_all, nil] {
            assert_eq!(answer(&frame, VIP4.into()), None, "{frame:x?}");
        }
    }

    #[test]
    fn an_advertisement_names_the_owner_in_its_option_else_by_its_source() {
        assert_eq!(answer(&advertisement(VIP6, Some(PROXY), 255), VIP6.into()), Some(PROXY));
        assert_eq!(answer(&advertisement(VIP6, None, 255), VIP6.into()), Some(THEIRS));
    }

    #[test]
    fn an_advertisement_that_the_rfc_refuses_says_nothing() {
        let of_another = advertisement("2001:db8::1".parse().unwrap(), Some(THEIRS), 255);
        let routed = advertisement(VIP6, Some(THEIRS), 254);
        let mut damaged = advertisement(VIP6, Some(THEIRS), 255);
        *damaged.last_mut().unwrap() ^= 1;
        for frame in [of_another, routed, damaged] {
            assert_eq!(answer(&frame, VIP6.into()), None, "{frame:x?}");
        }
    }

    #[test]
    fn cut_and_altered_frames_do_no_harm() {
        for (frame, address) in [
            (arp(ArpOperation::REPLY, THEIRS, VIP4), IpAddr::from(VIP4)),
            (advertisement(VIP6, Some(PROXY), 255), IpAddr::from(VIP6)),
        ] {
            for length in 0..frame.len() {
                answer(&frame[..length], address);
            }
            for position in 0..frame.len() {
                let mut altered = frame.clone();
                altered[position] = !altered[position];
                answer(&altered, address);
            }
        }
    }

    #[test]
    fn an_interface_that_is_gone_is_an_error_at_once() {
        let gone = Interface { name: "gone0".into(), index: 0x7fff_fff0 };
        let start = Instant::now();
        let result = resolve(&gone, VIP4.into(), Duration::from_secs(5));
        assert!(result.unwrap_err().to_string().contains("gone0"));
        assert!(start.elapsed() < Duration::from_secs(2));
    }
}
