//! Whole frames, sent and seen on real interfaces.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, bind, recv, send, socket,
};

use super::command::{PATIENCE, eventually};
use super::namespace::Namespace;
use lb::kernel::interface::Interface;

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
        let mut buffer = [0; 8192];
        let mut next = || {
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).ok()?;
            Some(buffer[..length].to_vec())
        };
        std::iter::from_fn(&mut next).filter(|frame| frame.get(6..12) != Some(&self.mac)).collect()
    }

    /// Waits for a frame that `wanted` is true of.
    #[track_caller]
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&[u8]) -> bool) {
        let seen = || self.frames().iter().any(|frame| wanted(frame));
        assert!(eventually(PATIENCE, seen), "{what} is not seen");
    }
}
