//! Whole frames, sent and seen on real interfaces.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, bind,
    recvmsg, send, setsockopt, socket, sockopt,
};

use super::command::{PATIENCE, eventually};
use super::namespace::Namespace;
use lb::kernel::interface::Interface;

/// That each frame comes with what the kernel has taken out of it (`man 7 packet`, PACKET_AUXDATA).
#[derive(Clone, Copy)]
struct Auxdata;

nix::setsockopt_impl!(Auxdata, libc::SOL_PACKET, libc::PACKET_AUXDATA, bool, sockopt::SetBool);

/// A raw socket on an interface of a namespace: sends whole frames, and sees all that come.
pub struct Tap {
    socket: OwnedFd,
    /// The interface's own, by which it is told what has been sent there.
    mac: [u8; 6],
}

impl Tap {
    #[track_caller]
    pub fn new(namespace: &Namespace, name: &str) -> Self {
        let open = || -> nix::Result<OwnedFd> {
            let tap =
                socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
            let address = getifaddrs()?
                .filter(|interface| interface.interface_name == name)
                .filter_map(|interface| interface.address)
                .find(|address| address.family() == Some(AddressFamily::Packet))
                .expect("the interface is there");
            bind(tap.as_raw_fd(), &address)?;
            setsockopt(&tap, Auxdata, &true)?;
            Ok(tap)
        };
        let socket = namespace.within(open).expect("root may open raw sockets");
        let mac = namespace.within(|| Interface::find(name).and_then(|interface| interface.mac()));
        Self { socket, mac: mac.expect("the interface is there").into_array() }
    }

    /// Sends a frame.
    #[track_caller]
    pub fn send(&self, frame: &[u8]) {
        send(self.socket.as_raw_fd(), frame, MsgFlags::empty()).expect("a frame can be sent");
    }

    /// The frames that have come since the last call.
    pub fn frames(&self) -> Vec<Vec<u8>> {
        let mut buffer = vec![0; 1 << 16];
        std::iter::from_fn(|| self.next(&mut buffer))
            .filter(|frame| frame.get(6..12) != Some(&self.mac))
            .collect()
    }

    /// The next frame, as it was on the wire: the kernel takes the outermost VLAN tag out of it, and hands it over beside it.
    fn next(&self, buffer: &mut [u8]) -> Option<Vec<u8>> {
        let mut control = nix::cmsg_space!(libc::tpacket_auxdata);
        let (length, tag) = {
            let mut parts = [IoSliceMut::new(buffer)];
            let descriptor = self.socket.as_raw_fd();
            let message =
                recvmsg::<()>(descriptor, &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT).ok()?;
            let mut beside = message.cmsgs().expect("there is room for what comes beside a frame");
            (message.bytes, beside.find_map(|part| vlan_tag(&part)))
        };
        let (macs, rest) = buffer[..length].split_at(length.min(12));
        Some([macs, &tag.unwrap_or_default(), rest].concat())
    }

    /// Waits for a frame that `wanted` is true of.
    #[track_caller]
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&[u8]) -> bool) {
        let seen = || self.frames().iter().any(|frame| wanted(frame));
        assert!(eventually(PATIENCE, seen), "{what} is not seen");
    }
}

/// The VLAN tag in a `struct tpacket_auxdata`, as it is in a frame.
fn vlan_tag(part: &ControlMessageOwned) -> Option<Vec<u8>> {
    let ControlMessageOwned::Unknown(part) = part else { return None };
    let is_auxdata =
        (part.cmsg_header.cmsg_level, part.cmsg_header.cmsg_type) == (libc::SOL_PACKET, libc::PACKET_AUXDATA);
    let status = u32::from_ne_bytes(*part.data_bytes.first_chunk()?);
    if !is_auxdata || status & libc::TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    // Tag and ethertype are the last two fields, of 16 bits each in the host's order.
    let [a, b, c, d] = *part.data_bytes.get(16..20)?.first_chunk()?;
    let [tag, ethertype] = [[a, b], [c, d]].map(u16::from_ne_bytes);
    Some([ethertype, tag].map(u16::to_be_bytes).concat())
}
