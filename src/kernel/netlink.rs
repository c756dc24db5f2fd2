//! Questions to the kernel about interfaces and network namespaces, by route netlink (`man 7 rtnetlink`).
//!
//! Every question is about the caller's network namespace.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{
    DefaultNla, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// An interface's alternative name, in a question (include/uapi/linux/if_link.h). As a question it finds the
/// main name too, and unlike `IFLA_IFNAME` it may be longer than 15 bytes.
const IFLA_ALT_IFNAME: u16 = 53;

/// The interface with this index, `None` where there is none.
pub(super) fn link_by_index(index: u32) -> io::Result<Option<LinkMessage>> {
    let mut wanted = LinkMessage::default();
    wanted.header.index = index;
    link(wanted)
}

/// The interface with this name or alternative name, `None` where there is none.
pub(super) fn link_by_name(name: &str) -> io::Result<Option<LinkMessage>> {
    let mut text = name.as_bytes().to_vec();
    text.push(0);
    let mut wanted = LinkMessage::default();
    wanted.attributes.push(LinkAttribute::Other(DefaultNla::new(IFLA_ALT_IFNAME, text)));
    link(wanted)
}

/// All interfaces.
pub(super) fn links() -> io::Result<Vec<LinkMessage>> {
    let mut wanted = LinkMessage::default();
    wanted.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let answers = ask(RouteNetlinkMessage::GetLink(wanted), NLM_F_DUMP)?;
    Ok(answers.into_iter().filter_map(into_link).collect())
}

/// The addresses of all interfaces.
pub(super) fn addresses() -> io::Result<Vec<AddressMessage>> {
    let answers = ask(RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_DUMP)?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => Some(message),
            _ => None,
        })
        .collect())
}

/// The number by which the caller's network namespace knows the one that `namespace` is open on (RTM_GETNSID);
/// `None` where it has given none.
///
/// # Errors
///
/// EINVAL where the descriptor is not of a network namespace.
pub(super) fn namespace_id(namespace: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let mut wanted = NsidMessage::default();
    wanted.attributes.push(NsidAttribute::Fd(namespace.as_raw_fd() as u32));
    let answers = ask(RouteNetlinkMessage::GetNsId(wanted), 0)?;
    let attributes = answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewNsId(message) => Some(message.attributes),
        _ => None,
    });
    // A number below zero is NETNSA_NSID_NOT_ASSIGNED.
    Ok(attributes.unwrap_or_default().into_iter().find_map(|attribute| match attribute {
        NsidAttribute::Id(id) if id >= 0 => Some(id),
        _ => None,
    }))
}

fn link(wanted: LinkMessage) -> io::Result<Option<LinkMessage>> {
    match ask(RouteNetlinkMessage::GetLink(wanted), 0) {
        Ok(answers) => Ok(answers.into_iter().find_map(into_link)),
        // ERANGE: the name is longer than any can be.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ERANGE)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn into_link(answer: RouteNetlinkMessage) -> Option<LinkMessage> {
    match answer {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    }
}

/// Sends one question and collects its answers: one, or with `NLM_F_DUMP` all up to the end that the kernel marks.
fn ask(question: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;

    let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(question));
    message.header.flags = NLM_F_REQUEST | flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut answers = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let answer = decode::<RouteNetlinkMessage>(rest)?;
            // Messages start at multiples of four bytes.
            let length = (answer.header.length as usize).next_multiple_of(4).clamp(4, rest.len().max(4));
            rest = rest.get(length..).unwrap_or_default();
            match answer.payload {
                NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Done(_) => return Ok(answers),
                _ => {}
            }
        }
        if flags & NLM_F_DUMP == 0 {
            return Ok(answers);
        }
    }
}

fn decode<T: NetlinkDeserializable>(bytes: &[u8]) -> io::Result<NetlinkMessage<T>> {
    NetlinkMessage::deserialize(bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    fn name(link: &LinkMessage) -> Option<&str> {
        link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.as_str()),
            _ => None,
        })
    }

    #[test]
    fn the_loopback_interface_is_found_by_name_by_index_and_in_the_list() {
        let by_name = link_by_name("lo").unwrap().expect("every network namespace has it");
        let by_index = link_by_index(by_name.header.index).unwrap().expect("it is there");
        assert_eq!(name(&by_index), Some("lo"));
        assert!(links().unwrap().iter().any(|link| name(link) == Some("lo")));
    }

    #[test]
    fn what_is_not_there_is_none() {
        assert!(link_by_name("no-such-name").unwrap().is_none());
        assert!(link_by_name("").unwrap().is_none());
        assert!(link_by_name(&"x".repeat(500)).unwrap().is_none());
        assert!(link_by_index(u32::MAX >> 1).unwrap().is_none());
    }

    #[test]
    fn a_file_that_is_no_namespace_is_an_error() {
        let file = File::open("/proc/self/status").unwrap();
        assert_eq!(namespace_id(file.as_fd()).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
