//! What the far end of a veth must be like for frames to survive.
//!
//! What the checks below rest on was measured with UDP on Linux 6.1, 6.12 and 6.18 (tests/netns_kernel.rs does it
//! again), with TCP and ping on 6.18. A frame's way was sender, veth, balancer, veth, receiver, with a program that
//! redirects on both of the balancer's interfaces:
//!
//! - native mode, GRO off at the far end of the veth that is redirected into: everything is lost, ping too
//!   (drivers/net/veth.c, `veth_xdp_xmit`: without NAPI there, there is no ring to put the frame into). GRO or a
//!   native XDP program there starts NAPI.
//! - native mode, GRO switched on at the far end while its link was down and the near end's up: the same, though
//!   `ethtool -k` shows GRO on. The near end's XDP features say so (since Linux 6.3); switching GRO off and on mends it.
//! - native mode, transmit checksum offload on at the sender: every UDP datagram and TCP segment arrives with a wrong
//!   checksum and is dropped; ping works. An XDP frame has no place for "the checksum is yet to be computed".
//! - native mode, segmentation offload: no harm, attaching switches it off at the far end (`veth_fix_features`).
//! - generic mode, GRO and transmit checksum offload: no harm, the frame stays a socket buffer all the way.
//! - generic mode, segmentation offload on at the sender: packets larger than the MTU of the interface that is
//!   redirected into are lost (net/core/filter.c, `xdp_ok_fwd_dev`), and so is all TCP in bulk, and UDP sent with
//!   `UDP_SEGMENT`.

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo};

use super::interface::Interface;
use super::netns::NetnsError;
use super::xdp::{self, Mode};
use super::{netlink, netns};

const GRO: &str = "rx-gro";
/// Two calls of ethtool: one that says both would change nothing.
const GRO_AGAIN: &str = "gro off;gro on";
const CHECKSUM: [&str; 3] = ["tx-checksum-ip-generic", "tx-checksum-ipv4", "tx-checksum-ipv6"];
const SEGMENTATION: [&str; 3] = ["tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-udp-segmentation"];

/// The other end of a veth, as far as frames are concerned.
#[derive(Clone, Debug, Default)]
struct FarEnd {
    name: String,
    place: Place,
    /// The features that are on.
    features: HashSet<String>,
    /// Whether it has an XDP program in native mode.
    has_native_xdp: bool,
    /// Whether the near end takes redirected frames, as the kernel says; `None` where it does not say.
    near_takes_frames: Option<bool>,
}

/// Where an interface is, and how a user gets there.
#[derive(Clone, Debug, Default)]
struct Place {
    /// Follows the interface's name in a sentence: ` in namespace TEIP1`, or nothing where the user is there already.
    label: String,
    /// What a command that is to run there begins with, and a space; or nothing.
    prefix: String,
    /// What `--netns` takes to get there; `None` where the user is there already.
    netns: Option<String>,
}

/// A network namespace that can be entered.
#[derive(Clone, Debug)]
struct Namespace {
    path: String,
    place: Place,
    /// Device and inode: two paths with the same are one namespace.
    identity: (u64, u64),
}

/// What stands in the way of frames that are redirected from and to `interfaces`, of the caller's network namespace,
/// in this mode: a line each, with the command that mends it. Interfaces that are no veth have none.
pub fn warnings(interfaces: &[Interface], mode: Mode) -> Vec<String> {
    // No veth has a card to run a program in.
    if mode == Mode::Hw {
        return Vec::new();
    }
    // Looking for namespaces means looking at every process: not where no veth asks for it.
    let mut namespaces = None;
    let mut found = Vec::new();
    for interface in interfaces {
        let Some(peer) = peer(interface) else { continue };
        let namespaces = namespaces.get_or_insert_with(namespaces_in_sight);
        // What holds while a link is down says nothing of the time when it is up.
        let is_up = interface.is_up().unwrap_or(false);
        let near_takes_frames = xdp::takes_redirected_frames(interface.index).filter(|_| is_up);
        match far_end(&peer, namespaces).map(|far_end| FarEnd { near_takes_frames, ..far_end }) {
            Some(far_end) => found.extend(judge(&interface.name, &far_end, mode)),
            None => found.push(unseen(&interface.name, &peer, mode)),
        }
    }
    found
}

/// What becomes of frames that a program sends back out of the interface that they came in on (`XDP_TX`), in native mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reflection {
    /// They leave: the interface is no veth, or its far end has an XDP program.
    Works,
    /// They are lost: the far end has no XDP program (drivers/net/veth.c, `veth_xdp_xmit`; GRO there does not do).
    Bare(BareEnd),
    /// Nobody knows: the far end, of this number, is in a namespace that cannot be entered from here.
    Unseen(u32),
}

/// A veth's far end that has no XDP program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BareEnd {
    pub interface: Interface,
    /// What `--netns` takes to get there; `None` where the user is there already.
    pub netns: Option<String>,
    /// Follows its name in a sentence.
    label: String,
    /// The file of its namespace; `None` where that is the namespace of the near end.
    path: Option<String>,
}

impl BareEnd {
    /// Runs `work` in its network namespace.
    ///
    /// # Errors
    ///
    /// Where that cannot be entered.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        netns::within(self.path.as_deref(), work)
    }
}

impl fmt::Display for BareEnd {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}{}", self.interface.name, self.label)
    }
}

/// What becomes of frames that a program on `interface`, of the caller's network namespace, sends back in native mode.
pub fn reflection(interface: &Interface) -> Reflection {
    let Some(peer) = peer(interface) else { return Reflection::Works };
    let namespaces = namespaces_in_sight();
    let Some(far) = far_end(&peer, &namespaces) else { return Reflection::Unseen(peer.index) };
    if far.has_native_xdp {
        return Reflection::Works;
    }
    let path = peer.namespace.and_then(|_| namespace_of(&peer, &namespaces)).map(|found| found.path.clone());
    Reflection::Bare(BareEnd {
        interface: Interface { name: far.name, index: peer.index },
        netns: far.place.netns,
        label: far.place.label,
        path,
    })
}

/// Whether an interface is one end of a veth.
pub fn is_veth(interface: &Interface) -> bool {
    peer(interface).is_some()
}

/// What the kernel says of a veth's other end.
#[derive(Clone, Copy, Debug)]
struct Peer {
    /// Its number in its own network namespace.
    index: u32,
    /// The number by which this network namespace knows the other's, `None` where it is this one.
    namespace: Option<i32>,
}

/// The other end of `interface`, `None` if it is no veth.
fn peer(interface: &Interface) -> Option<Peer> {
    let link = netlink::link_by_index(interface.index).ok()??;
    let is_veth = |info: &LinkInfo| matches!(info, LinkInfo::Kind(InfoKind::Veth));
    let (mut veth, mut index, mut namespace) = (false, None, None);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::LinkInfo(infos) => veth = infos.iter().any(is_veth),
            LinkAttribute::Link(number) => index = Some(*number),
            LinkAttribute::LinkNetNsId(id) => namespace = Some(*id),
            _ => {}
        }
    }
    Some(Peer { index: index?, namespace }).filter(|_| veth)
}

/// Looks at the other end, `None` where its namespace is out of sight or may not be entered.
fn far_end(peer: &Peer, namespaces: &[Namespace]) -> Option<FarEnd> {
    let namespace = namespace_of(peer, namespaces);
    let look = || {
        let interface = Interface::by_index(peer.index)?;
        let programs = xdp::attached_programs(interface.index).unwrap_or_default();
        Some(FarEnd {
            features: interface.features().ok()?,
            has_native_xdp: programs.iter().any(|(mode, _)| *mode == Mode::Drv),
            near_takes_frames: None,
            name: interface.name,
            place: namespace.map(|namespace| namespace.place.clone()).unwrap_or_default(),
        })
    };
    match (namespace, peer.namespace) {
        (_, None) => look(),
        (Some(namespace), Some(_)) => netns::within(Some(&namespace.path), look).ok()?,
        (None, Some(_)) => None,
    }
}

/// The namespace of the other end, where it is in sight.
fn namespace_of<'a>(peer: &Peer, namespaces: &'a [Namespace]) -> Option<&'a Namespace> {
    let here = identity("/proc/thread-self/ns/net");
    namespaces.iter().find(|namespace| match peer.namespace {
        None => Some(namespace.identity) == here,
        Some(id) => {
            let file = File::open(&namespace.path);
            file.and_then(|file| netlink::namespace_id(file.as_fd())).is_ok_and(|found| found == Some(id))
        }
    })
}

/// The namespaces in which a far end may be: the one that the command was started in, those with a name, those of
/// containers, which often have no name but have processes.
fn namespaces_in_sight() -> Vec<Namespace> {
    let mut candidates = vec![("/proc/self/ns/net".into(), Place::default())];
    for (name, path) in netns::named() {
        let place = Place {
            label: format!(" in namespace {name}"),
            prefix: format!("ip netns exec {name} "),
            netns: Some(name.clone()),
        };
        candidates.push((path.display().to_string(), place));
    }
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(id) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        let path = format!("/proc/{id}/ns/net");
        let place = Place {
            label: format!(" in the namespace of process {id} ({})", name.trim_end()),
            prefix: format!("nsenter --net={path} "),
            netns: Some(path.clone()),
        };
        candidates.push((path, place));
    }

    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for (path, place) in candidates {
        if let Some(identity) = identity(&path).filter(|identity| seen.insert(*identity)) {
            found.push(Namespace { path, place, identity });
        }
    }
    found
}

/// Device and inode of the namespace that a path stands for.
fn identity(path: &str) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// The faults of a far end.
fn judge(near: &str, far: &FarEnd, mode: Mode) -> Vec<String> {
    let has = |names: &[&str]| names.iter().any(|name| far.features.contains(*name));
    let mut faults = Vec::new();
    if mode == Mode::Drv {
        if !has(&[GRO]) && !far.has_native_xdp {
            faults.push(("GRO off: frames redirected to it are lost", "gro on"));
        } else if far.near_takes_frames == Some(false) {
            faults.push((
                "GRO that was switched on before the link was up, which does not count: frames redirected to it are lost",
                GRO_AGAIN,
            ));
        }
        if has(&CHECKSUM) {
            faults.push((
                "tx-checksumming on: TCP and UDP that it sends arrive with wrong checksums",
                "tx off",
            ));
        }
    }
    if mode == Mode::Skb && has(&SEGMENTATION) {
        let what = "segmentation offload on: packets of up to 64 KB that it sends are lost in skb mode";
        faults.push((what, "tso off tx-udp-segmentation off"));
    }
    let FarEnd { name, place: Place { label, prefix, .. }, .. } = far;
    let line = |(what, mend): (&str, &str)| {
        let commands: Vec<String> =
            mend.split(';').map(|features| format!("{prefix}ethtool -K {name} {features}")).collect();
        format!("{near} is a veth whose far end, {name}{label}, has {what}; mend: {}", commands.join("; "))
    };
    faults.into_iter().map(line).collect()
}

/// What to say of a far end that cannot be looked at.
fn unseen(near: &str, peer: &Peer, mode: Mode) -> String {
    let index = peer.index;
    let wanted = match mode {
        Mode::Skb => "`ethtool -K NAME tso off tx-udp-segmentation off`, or packets of up to 64 KB are lost",
        _ => "`ethtool -K NAME gro on tx off`, or frames and checksums are lost",
    };
    format!(
        "{near} is a veth whose far end, interface number {index} of another network namespace, is out of sight; make sure of it there: {wanted}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn far_end_with(features: &[&str]) -> FarEnd {
        FarEnd {
            name: "eth1".into(),
            place: Place {
                label: " in namespace TEIP1".into(),
                prefix: "ip netns exec TEIP1 ".into(),
                netns: Some("TEIP1".into()),
            },
            features: features.iter().map(ToString::to_string).collect(),
            has_native_xdp: false,
            near_takes_frames: None,
        }
    }

    const DEFAULTS: [&str; 4] =
        ["tx-checksum-ip-generic", "tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-udp-segmentation"];

    #[test]
    fn a_far_end_as_the_kernel_makes_it_has_two_faults_in_native_mode() {
        assert_eq!(
            judge("eth2", &far_end_with(&DEFAULTS), Mode::Drv),
            [
                "eth2 is a veth whose far end, eth1 in namespace TEIP1, has GRO off: frames redirected to it are lost; mend: ip netns exec TEIP1 ethtool -K eth1 gro on",
                "eth2 is a veth whose far end, eth1 in namespace TEIP1, has tx-checksumming on: TCP and UDP that it sends arrive with wrong checksums; mend: ip netns exec TEIP1 ethtool -K eth1 tx off",
            ]
        );
    }

    #[test]
    fn a_far_end_as_the_kernel_makes_it_has_one_fault_in_generic_mode() {
        assert_eq!(
            judge("eth2", &far_end_with(&DEFAULTS), Mode::Skb),
            [
                "eth2 is a veth whose far end, eth1 in namespace TEIP1, has segmentation offload on: packets of up to 64 KB that it sends are lost in skb mode; mend: ip netns exec TEIP1 ethtool -K eth1 tso off tx-udp-segmentation off",
            ]
        );
    }

    #[test]
    fn a_prepared_far_end_has_no_fault() {
        assert!(judge("eth2", &far_end_with(&[GRO]), Mode::Drv).is_empty());
        assert!(judge("eth2", &far_end_with(&["tx-checksum-ip-generic"]), Mode::Skb).is_empty());
    }

    #[test]
    fn a_native_program_at_the_far_end_stands_in_for_gro() {
        assert!(judge("eth2", &FarEnd { has_native_xdp: true, ..far_end_with(&[]) }, Mode::Drv).is_empty());
    }

    #[test]
    fn gro_that_does_not_count_is_switched_off_and_on() {
        let far = FarEnd { near_takes_frames: Some(false), ..far_end_with(&[GRO]) };
        let lines = judge("eth2", &far, Mode::Drv);
        assert_eq!(lines.len(), 1, "{lines:?}");
        let mend =
            "; mend: ip netns exec TEIP1 ethtool -K eth1 gro off; ip netns exec TEIP1 ethtool -K eth1 gro on";
        assert!(lines[0].ends_with(mend), "{lines:?}");
    }

    #[test]
    fn where_the_user_is_already_the_command_has_no_prefix() {
        let far = FarEnd { place: Place::default(), ..far_end_with(&[]) };
        let lines = judge("eth2", &far, Mode::Drv);
        assert!(lines[0].contains("far end, eth1, has GRO off"), "{lines:?}");
        assert!(lines[0].ends_with("; mend: ethtool -K eth1 gro on"), "{lines:?}");
    }

    #[test]
    fn only_veths_have_warnings() {
        let loopback = Interface::find("lo").unwrap();
        assert!(warnings(&[loopback], Mode::Drv).is_empty());
    }
}
