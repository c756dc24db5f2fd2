//! What `lb::kernel` finds out about namespaces, interfaces, neighbours and bpffs, on real ones.

mod common;

use std::fs::{self, File};
use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{env, process};

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags};
use nix::sys::socket::{setsockopt, sockopt};

use common::namespace::{Namespace, run, veth};
use lb::kernel::bpffs::{self, BpffsError};
use lb::kernel::interface::Interface;
use lb::kernel::neighbour;
use lb::kernel::netns::{self, NetnsError};
use lb::kernel::program::Program;
use lb::kernel::veth::warnings as veth_warnings;
use lb::kernel::xdp::{Link, Mode, takes_redirected_frames};

mod floor {
    include!(concat!(env!("OUT_DIR"), "/floor.skel.rs"));
}

/// Set for the part of a test that runs in a process of its own; tells it what it was given.
const INNER: &str = "LB_TEST_INNER";

/// What the outer part gave to the inner, `None` in the outer.
fn inner() -> Option<String> {
    env::var(INNER).ok()
}

/// Runs the test `name` once more, by a command line that begins with the words in `before`.
#[track_caller]
fn run_inner(name: &str, given: &str, before: &[&str]) {
    let program = env::current_exe().expect("a test knows its own program");
    let mut command = Command::new(before[0]);
    command.args(&before[1..]).arg(program).args(["--exact", name, "--nocapture"]).env(INNER, given);
    let printed = run(&mut command);
    assert!(printed.contains("1 passed"), "the inner part did not run: {printed}");
}

/// A process that is killed with the test.
struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn find(name: &str) -> Interface {
    Interface::find(name).expect("the interface is there")
}

// Namespaces

#[test]
fn root_within_changes_the_network_namespace_of_the_work_alone() {
    let namespace = Namespace::new("lb-within");
    namespace.ip(&["link", "add", "inside0", "type", "veth", "peer", "name", "inside1"]);
    let of = |what: &str| fs::read_link(format!("/proc/thread-self/ns/{what}")).unwrap();
    let (net, mnt) = (of("net"), of("mnt"));

    for value in [namespace.name(), &format!("/run/netns/{}", namespace.name())] {
        let (inside, net_inside, mnt_inside) =
            netns::within(Some(value), || (Interface::find("inside0"), of("net"), of("mnt"))).unwrap();
        assert_eq!(inside.unwrap().name, "inside0");
        assert_ne!(net_inside, net);
        assert_eq!(mnt_inside, mnt, "the mount namespace stays");
    }
    assert_eq!(of("net"), net);
    assert!(Interface::find("inside0").is_err());
}

#[test]
fn root_a_panic_inside_goes_on_outside() {
    let namespace = Namespace::new("lb-panic");
    let result =
        catch_unwind(AssertUnwindSafe(|| netns::within(Some(namespace.name()), || panic!("of the work"))));
    assert_eq!(result.unwrap_err().downcast_ref::<&str>(), Some(&"of the work"));
}

#[test]
fn root_an_unknown_namespace_is_an_error_that_lists_some() {
    let _namespace = Namespace::new("lb-listed");
    let error = netns::enter("lb-no-such-namespace").unwrap_err().to_string();
    assert!(
        error.starts_with("there is no network namespace lb-no-such-namespace under /run/netns (there: "),
        "{error}"
    );
}

#[test]
fn root_files_that_are_no_network_namespace_are_refused() {
    for path in ["/proc/self/status", "/proc/self/ns/mnt"] {
        let error = netns::enter(path).unwrap_err();
        assert!(matches!(error, NetnsError::Foreign { .. }), "{error}");
    }
}

#[test]
fn root_without_sys_admin_a_namespace_stays_closed() {
    if let Some(name) = inner() {
        let error = netns::enter(&name).unwrap_err();
        assert!(matches!(error, NetnsError::Privilege { .. }), "{error}");
        return;
    }
    let namespace = Namespace::new("lb-closed");
    run_inner(
        "root_without_sys_admin_a_namespace_stays_closed",
        namespace.name(),
        &["setpriv", "--bounding-set=-sys_admin"],
    );
}

// Interfaces

#[test]
fn root_an_interface_tells_its_mac_driver_and_state() {
    let namespace = Namespace::new("lb-facts");
    namespace.ip(&["link", "add", "eth1", "type", "veth", "peer", "name", "eth2"]);
    namespace.ip(&["link", "set", "eth1", "address", "02:00:00:00:00:0a"]);
    namespace.ip(&["link", "property", "add", "dev", "eth1", "altname", "the-client-side"]);
    namespace.within(|| {
        let interface = find("eth1");
        assert_eq!(interface.mac().unwrap().to_string(), "02:00:00:00:00:0A");
        assert_eq!(interface.driver().as_deref(), Some("veth"));
        assert!(!interface.is_up().unwrap());
        assert_eq!(find("the-client-side"), interface);
        assert_eq!(Interface::by_index(interface.index), Some(interface));

        let error = Interface::find("eth9").unwrap_err().to_string();
        assert!(error.contains("(there: eth2, eth1, lo)"), "{error}");
    });
    namespace.ip(&["link", "set", "eth1", "up"]);
    assert!(namespace.within(|| find("eth1").is_up().unwrap()));
}

// The far end of a veth

/// A balancer between a sender and a receiver.
struct Line {
    sender: Namespace,
    balancer: Namespace,
    receiver: Namespace,
}

const SENDER: &str = "10.9.0.1";
const RECEIVER: &str = "10.9.0.2";

impl Line {
    fn new() -> Self {
        let line = Self {
            sender: Namespace::new("lb-sender"),
            balancer: Namespace::new("lb-middle"),
            receiver: Namespace::new("lb-receiver"),
        };
        veth((&line.balancer, "eth1"), (&line.sender, "eth1"));
        veth((&line.balancer, "eth2"), (&line.receiver, "eth1"));
        for (here, address, there, peer) in [
            (&line.sender, SENDER, &line.receiver, RECEIVER),
            (&line.receiver, RECEIVER, &line.sender, SENDER),
        ] {
            let mac = there.within(|| find("eth1").mac().unwrap()).to_string();
            here.ip(&["addr", "add", &format!("{address}/24"), "dev", "eth1"]);
            here.ip(&["neigh", "add", peer, "lladdr", &mac, "dev", "eth1", "nud", "permanent"]);
        }
        line
    }

    fn warnings(&self, mode: Mode) -> Vec<String> {
        self.balancer.within(|| veth_warnings(&[find("eth1"), find("eth2")], mode))
    }

    /// Does what warnings say.
    #[track_caller]
    fn mend(warnings: &[String]) {
        for warning in warnings {
            let (_, command) = warning.split_once("; mend: ").expect("a warning says how to mend it");
            run(Command::new("sh").args(["-c", command]));
        }
    }

    /// How many of ten datagrams of `size` bytes reach the receiver through a program that redirects in `mode`; with
    /// `segment` the sender leaves it to the interface to cut them into parts of so many bytes, and parts count.
    #[track_caller]
    fn received(&self, mode: Mode, size: usize, segment: Option<i32>) -> usize {
        // A port of its own each time: a command that another test is just starting may still hold the last one.
        let receiver = self.receiver.within(|| UdpSocket::bind((RECEIVER, 0))).unwrap();
        let target = receiver.local_addr().unwrap();
        receiver.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let sender = self.sender.within(|| UdpSocket::bind((SENDER, 0))).unwrap();
        if let Some(segment) = segment {
            setsockopt(&sender, sockopt::UdpGsoSegment, &segment).unwrap();
        }
        self.balancer.within(|| {
            let mut storage = MaybeUninit::uninit();
            let skeleton = floor::FloorSkelBuilder::default().open(&mut storage).unwrap().load().unwrap();
            let (from, to) = (find("eth1"), find("eth2"));
            skeleton.maps.ports.update(&0u32.to_ne_bytes(), &to.index.to_ne_bytes(), MapFlags::ANY).unwrap();
            let program = Program::from_fd(skeleton.progs.floor_redirect.as_fd()).unwrap();
            // The other interface gets one too: that is how the balancer has it, and it switches segmentation off.
            let links = [&from, &to].map(|interface| Link::attach(&program, interface, mode).unwrap());
            for _ in 0..10 {
                sender.send_to(&vec![0x5a; size], target).unwrap();
            }
            let mut buffer = vec![0; 65536];
            let received = std::iter::from_fn(|| receiver.recv(&mut buffer).ok()).count();
            links.iter().for_each(detach);
            received
        })
    }
}

#[test]
fn root_native_mode_needs_what_the_warnings_say() {
    let line = Line::new();
    assert_eq!(line.received(Mode::Drv, 100, None), 0, "as the kernel makes veths, everything is lost");

    let (sender, receiver) = (line.sender.name(), line.receiver.name());
    let warnings = line.warnings(Mode::Drv);
    assert_eq!(
        warnings,
        [
            format!(
                "eth1 is a veth whose far end, eth1 in namespace {sender}, has GRO off: frames redirected to it are lost; mend: ip netns exec {sender} ethtool -K eth1 gro on"
            ),
            format!(
                "eth1 is a veth whose far end, eth1 in namespace {sender}, has tx-checksumming on: TCP and UDP that it sends arrive with wrong checksums; mend: ip netns exec {sender} ethtool -K eth1 tx off"
            ),
            format!(
                "eth2 is a veth whose far end, eth1 in namespace {receiver}, has GRO off: frames redirected to it are lost; mend: ip netns exec {receiver} ethtool -K eth1 gro on"
            ),
            format!(
                "eth2 is a veth whose far end, eth1 in namespace {receiver}, has tx-checksumming on: TCP and UDP that it sends arrive with wrong checksums; mend: ip netns exec {receiver} ethtool -K eth1 tx off"
            ),
        ]
    );

    let (gro, checksums): (Vec<_>, Vec<_>) =
        warnings.into_iter().partition(|warning| warning.contains("GRO"));
    Line::mend(&gro);
    assert_eq!(line.warnings(Mode::Drv), checksums);
    assert_eq!(line.received(Mode::Drv, 100, None), 0, "UDP without a checksum is dropped");

    Line::mend(&checksums);
    assert!(line.warnings(Mode::Drv).is_empty());
    assert_eq!(line.received(Mode::Drv, 100, None), 10);
}

#[test]
fn root_generic_mode_needs_what_the_warnings_say() {
    let line = Line::new();
    assert_eq!(line.received(Mode::Skb, 100, None), 10, "neither GRO nor checksums are needed");
    assert_eq!(line.received(Mode::Skb, 10_000, Some(1_000)), 0, "what is larger than the MTU is lost");

    let (sender, receiver) = (line.sender.name(), line.receiver.name());
    let warnings = line.warnings(Mode::Skb);
    assert_eq!(
        warnings,
        [
            format!(
                "eth1 is a veth whose far end, eth1 in namespace {sender}, has segmentation offload on: packets of up to 64 KB that it sends are lost in skb mode; mend: ip netns exec {sender} ethtool -K eth1 tso off tx-udp-segmentation off"
            ),
            format!(
                "eth2 is a veth whose far end, eth1 in namespace {receiver}, has segmentation offload on: packets of up to 64 KB that it sends are lost in skb mode; mend: ip netns exec {receiver} ethtool -K eth1 tso off tx-udp-segmentation off"
            ),
        ]
    );
    Line::mend(&warnings);
    assert!(line.warnings(Mode::Skb).is_empty());
    assert_eq!(line.received(Mode::Skb, 10_000, Some(1_000)), 100);
}

#[test]
fn root_gro_that_was_switched_on_too_early_is_noticed_and_mended() {
    let (near, far) = (Namespace::new("lb-gro-near"), Namespace::new("lb-gro-far"));
    near.ip(&["link", "add", "eth2", "type", "veth", "peer", "name", "eth1", "netns", far.name()]);
    near.ip(&["link", "set", "eth2", "up"]);
    far.exec(&["ethtool", "-K", "eth1", "tx", "off", "gro", "on"]);
    far.ip(&["link", "set", "eth1", "up"]);
    let look = || {
        near.within(|| {
            let interface = Interface::find("eth2").unwrap();
            let takes = takes_redirected_frames(interface.index);
            (takes, veth_warnings(&[interface], Mode::Drv))
        })
    };
    let (takes, warnings) = look();
    // Before Linux 6.3 the kernel does not say.
    let Some(takes) = takes else { return };
    assert_eq!(warnings.len(), usize::from(!takes), "{warnings:?}");
    for command in
        warnings.iter().filter_map(|line| line.split_once("; mend: ")).flat_map(|(_, mend)| mend.split("; "))
    {
        let words: Vec<&str> = command.split(' ').collect();
        run(Command::new(words[0]).args(&words[1..]));
    }
    assert_eq!(look(), (Some(true), Vec::new()));
}

/// Takes a program off at once. A dropped link may live on for a moment, in a process that another test is just starting.
#[track_caller]
fn detach(link: &Link) {
    link.detach().unwrap();
}

#[test]
fn root_a_native_program_at_the_far_end_does_for_gro() {
    let line = Line::new();
    let mut storage = MaybeUninit::uninit();
    let skeleton = floor::FloorSkelBuilder::default().open(&mut storage).unwrap().load().unwrap();
    let program = Program::from_fd(skeleton.progs.floor_empty.as_fd()).unwrap();
    let attach = |mode| line.receiver.within(|| Link::attach(&program, &find("eth1"), mode).unwrap());
    let complaint = |warnings: Vec<String>| {
        warnings.iter().any(|warning| warning.contains("eth2 is") && warning.contains("has GRO off"))
    };

    let link = attach(Mode::Skb);
    assert!(complaint(line.warnings(Mode::Drv)), "a program in generic mode starts no NAPI");
    detach(&link);
    let _link = attach(Mode::Drv);
    assert!(!complaint(line.warnings(Mode::Drv)));
}

#[test]
fn root_a_far_end_in_the_same_namespace_is_looked_at() {
    let namespace = Namespace::new("lb-same");
    veth((&namespace, "eth1"), (&namespace, "far1"));
    let name = namespace.name();
    let warnings = namespace.within(|| veth_warnings(&[find("eth1")], Mode::Drv));
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains(&format!("far end, far1 in namespace {name}, has GRO off")), "{warnings:?}");
    Line::mend(&warnings);
    assert!(namespace.within(|| veth_warnings(&[find("eth1")], Mode::Drv)).is_empty());
}

#[test]
fn root_a_far_end_where_the_user_is_needs_no_prefix() {
    if let Some(balancer) = inner() {
        let warnings = netns::within(Some(&balancer), || veth_warnings(&[find("eth1")], Mode::Drv)).unwrap();
        assert!(
            warnings[0].ends_with(
                "far end, eth7, has GRO off: frames redirected to it are lost; mend: ethtool -K eth7 gro on"
            ),
            "{warnings:?}"
        );
        Line::mend(&warnings);
        let warnings = netns::within(Some(&balancer), || veth_warnings(&[find("eth1")], Mode::Drv)).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        return;
    }
    let (balancer, user) = (Namespace::new("lb-middle"), Namespace::new("lb-user"));
    veth((&balancer, "eth1"), (&user, "eth7"));
    let enter = format!("--net=/run/netns/{}", user.name());
    run_inner("root_a_far_end_where_the_user_is_needs_no_prefix", balancer.name(), &["nsenter", &enter]);
}

#[test]
fn root_a_far_end_in_a_container_without_a_name_is_found_by_its_process() {
    let balancer = Namespace::new("lb-middle");
    let container = Background(Command::new("unshare").args(["--net", "sleep", "60"]).spawn().unwrap());
    let id = container.0.id();
    let own = || fs::read_link(format!("/proc/{id}/ns/net")).ok();
    let ours = fs::read_link("/proc/self/ns/net").ok();
    let start = Instant::now();
    while own() == ours {
        assert!(start.elapsed() < Duration::from_secs(5), "the container has no namespace");
        sleep(Duration::from_millis(5));
    }
    let peer = ["peer", "name", "eth1", "netns", &id.to_string()];
    balancer.ip(&[&["link", "add", "eth1", "type", "veth"], &peer[..]].concat());

    let warnings = balancer.within(|| veth_warnings(&[find("eth1")], Mode::Drv));
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(
        warnings[0].contains(&format!("far end, eth1 in the namespace of process {id} (")),
        "{warnings:?}"
    );
    Line::mend(&warnings);
    assert!(balancer.within(|| veth_warnings(&[find("eth1")], Mode::Drv)).is_empty());
}

#[test]
fn root_a_far_end_out_of_sight_is_said_to_be() {
    let (balancer, hidden) = (Namespace::new("lb-middle"), Namespace::new("lb-hidden"));
    veth((&balancer, "eth1"), (&hidden, "eth1"));
    // The open file keeps the namespace, which then has neither a name nor a process.
    let _kept = File::open(format!("/run/netns/{}", hidden.name())).unwrap();
    drop(hidden);
    for (mode, advice) in [(Mode::Drv, "gro on tx off"), (Mode::Skb, "tso off tx-udp-segmentation off")] {
        let warnings = balancer.within(|| veth_warnings(&[find("eth1")], mode));
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("is out of sight") && warnings[0].contains(advice), "{warnings:?}");
    }
}

// Neighbours

#[test]
fn root_owners_are_found_behind_interfaces_without_addresses() {
    let balancer = Namespace::new("lb-middle");
    balancer.sysctl("net/ipv6/conf/all/disable_ipv6", "1");
    balancer.sysctl("net/ipv6/conf/default/disable_ipv6", "1");
    let (one, two, silent) =
        (Namespace::new("lb-one"), Namespace::new("lb-two"), Namespace::new("lb-silent"));
    for (interface, backend) in [("eth2", &one), ("eth3", &two), ("eth4", &silent)] {
        veth((&balancer, interface), (backend, "eth1"));
    }
    // The second has no link-local address to answer from.
    two.ip(&["link", "set", "eth1", "addrgenmode", "none"]);
    two.ip(&["-6", "addr", "flush", "dev", "eth1"]);
    for (backend, mac) in [(&one, "aa:bb:cc:00:00:01"), (&two, "aa:bb:cc:00:00:02")] {
        backend.ip(&["link", "set", "eth1", "address", mac]);
        backend.ip(&["addr", "add", "192.0.0.2/24", "dev", "eth1"]);
        backend.ip(&["addr", "add", "2001:db8::2/64", "dev", "eth1"]);
    }

    let timeout = Duration::from_millis(800);
    for address in ["192.0.0.2", "2001:db8::2"] {
        let address: IpAddr = address.parse().unwrap();
        let ask = |names: &[&str]| {
            let start = Instant::now();
            let answers = balancer.within(|| {
                let interfaces: Vec<Interface> = names.iter().map(|name| find(name)).collect();
                neighbour::resolve_all(&interfaces, address, timeout)
            });
            let macs: Vec<Option<String>> =
                answers.into_iter().map(|answer| answer.unwrap().map(|mac| mac.to_string())).collect();
            (macs, start.elapsed())
        };
        let owners = [Some("AA:BB:CC:00:00:01".to_owned()), Some("AA:BB:CC:00:00:02".to_owned()), None];
        let (macs, took) = ask(&["eth2", "eth3"]);
        assert_eq!(macs, owners[..2], "{address}");
        assert!(took < timeout, "nothing is waited for when all have answered: {took:?}");
        let (macs, took) = ask(&["eth2", "eth3", "eth4"]);
        assert_eq!(macs, owners, "{address}");
        assert!(took >= timeout && took < timeout * 2, "all interfaces share one timeout: {took:?}");
    }

    balancer.ip(&["link", "set", "eth2", "down"]);
    let error = balancer
        .within(|| neighbour::resolve(&find("eth2"), "192.0.0.2".parse().unwrap(), timeout))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NetworkDown);
    assert!(error.to_string().contains("ip link set dev eth2 up"), "{error}");
}

#[test]
fn root_asking_does_no_harm_to_an_address_that_is_just_being_taken() {
    let (balancer, backend) = (Namespace::new("lb-middle"), Namespace::new("lb-taking"));
    veth((&balancer, "eth2"), (&backend, "eth1"));
    backend.sysctl("net/ipv6/conf/all/accept_dad", "1");
    backend.sysctl("net/ipv6/conf/eth1/accept_dad", "1");
    backend.sysctl("net/ipv6/conf/eth1/dad_transmits", "1");
    backend.ip(&["addr", "add", "2001:db8::2/64", "dev", "eth1"]);
    assert!(backend.ip(&["addr", "show", "dev", "eth1", "tentative"]).contains("2001:db8::2"));

    let address = "2001:db8::2".parse().unwrap();
    let answer =
        balancer.within(|| neighbour::resolve(&find("eth2"), address, Duration::from_secs(5))).unwrap();
    assert_eq!(
        answer,
        Some(backend.within(|| find("eth1").mac().unwrap())),
        "it answers once it has the address"
    );
    // The other addresses of the interface are still being taken, perhaps.
    let state = backend.ip(&["addr", "show", "dev", "eth1", "scope", "global"]);
    assert!(state.contains("2001:db8::2"), "{state}");
    assert!(!state.contains("dadfailed") && !state.contains("tentative"), "{state}");
}

#[test]
fn root_without_net_raw_asking_is_an_error() {
    if let Some(balancer) = inner() {
        let ask = || neighbour::resolve(&find("eth1"), "192.0.0.2".parse().unwrap(), Duration::from_secs(5));
        let error = netns::within(Some(&balancer), ask).unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        return;
    }
    let balancer = Namespace::new("lb-middle");
    veth((&balancer, "eth1"), (&balancer, "far1"));
    run_inner(
        "root_without_net_raw_asking_is_an_error",
        balancer.name(),
        &["setpriv", "--bounding-set=-net_raw"],
    );
}

// bpffs

#[test]
fn root_the_pin_root_is_made_on_bpffs_for_root_alone() {
    let outer = format!("/sys/fs/bpf/lb-test-{}", process::id());
    let root = Path::new(&outer).join("deeper");
    let made = bpffs::ensure(&root).and_then(|()| bpffs::ensure(&root));
    let mode = fs::metadata(&root).map(|metadata| metadata.permissions().mode() & 0o777);
    let dotted = bpffs::ensure(&root.join("a.b"));
    let _ = fs::remove_dir(&root);
    let _ = fs::remove_dir(&outer);
    made.unwrap();
    assert_eq!(mode.unwrap(), 0o700);
    assert!(matches!(dotted, Err(BpffsError::Dot { .. })), "{dotted:?}");
}

#[test]
fn root_under_ip_netns_exec_the_error_names_netns() {
    const ROOT: &str = "/sys/fs/bpf/lb-test-hidden";
    if inner().is_some() {
        let error = bpffs::ensure(Path::new(ROOT)).unwrap_err();
        assert!(matches!(error, BpffsError::Hidden), "{error}");
        assert!(error.to_string().contains("lb --netns NAME"), "{error}");
        return;
    }
    let namespace = Namespace::new("lb-exec");
    let before = ["ip", "netns", "exec", namespace.name()];
    run_inner("root_under_ip_netns_exec_the_error_names_netns", "", &before);
    assert!(!Path::new(ROOT).exists());
}

/// What begins a process that is the init of a container whose `/sys/fs/bpf` is no bpffs.
const CONTAINER: [&str; 8] = [
    "unshare",
    "--pid",
    "--fork",
    "--mount",
    "--mount-proc",
    "sh",
    "-c",
    "umount --lazy /sys/fs/bpf && exec \"$@\"",
];

#[test]
fn root_bpffs_is_mounted_in_the_mount_namespace_of_init() {
    const ROOT: &str = "/sys/fs/bpf/lb-test-mounted/deeper";
    if inner().is_some() {
        bpffs::ensure(Path::new(ROOT)).unwrap();
        assert!(Path::new(ROOT).is_dir());
        return;
    }
    run_inner(
        "root_bpffs_is_mounted_in_the_mount_namespace_of_init",
        "",
        &[&CONTAINER[..], &["sh"]].concat(),
    );
    assert!(!Path::new(ROOT).exists(), "that was in the container");
}

#[test]
fn root_without_sys_admin_bpffs_cannot_be_mounted() {
    if inner().is_some() {
        let error = bpffs::ensure(Path::new("/sys/fs/bpf/lb-test-mounted")).unwrap_err();
        assert!(matches!(error, BpffsError::Privilege { .. }), "{error}");
        return;
    }
    let before = [&CONTAINER[..], &["sh", "setpriv", "--bounding-set=-sys_admin"]].concat();
    run_inner("root_without_sys_admin_bpffs_cannot_be_mounted", "", &before);
}
