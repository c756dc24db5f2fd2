//! Two balancers side by side behind a router that spreads flows over both: a client's packets reach one backend by
//! whichever balancer they go, and the loss of a balancer moves nobody.
//!
//! ```text
//!                       ┌─ left:  eth1 ┌────┐ eth2..5 ─── eth1 of each backend
//!  client ─ eth1 router ┤              └────┘
//!                       └─ right: eth1 ┌────┐ eth2..5 ─── eth2 of each backend
//!                                      └────┘
//! ```
//!
//! A balancer owns no address, so it cannot be the router's next hop. Each path is a network of its own: the backends, all of
//! them, own its address 2, and so the router's question who has it crosses the balancer and is answered by any of them. The
//! VIP is an address of the backends on no network at all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::thread;
use std::time::Duration;

use macaddr::MacAddr6;

use crate::common::namespace::{Namespace, run};
use crate::common::packet::{self, Ike};
use crate::common::topology::{Document, Link, repository, topology};
use crate::lab::{BACKENDS, Family, LB, Lab, PATIENCE, batch, eventually};
use crate::packets::{IKE, NAT, Servers, ike_bytes, udp};
use crate::stream::{Flow, Outcome, Receivers, Running, Sender};

/// The two paths, by the name of the router's interface and the backends' one.
const PATHS: [(&str, &str); 2] = [("left", "eth1"), ("right", "eth2")];

const ROUTER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x20];

/// How many clients there are, and from how many ports each sends ESP in UDP.
const CLIENTS: u8 = 6;
const PORTS: u16 = 3;

/// Packets of ESP a second.
const PACE: u64 = 20_000;

struct Network {
    labs: [Lab; 2],
    client: Namespace,
    router: Namespace,
    backends: Vec<Namespace>,
    family: Family,
}

impl Network {
    /// The networks of both paths, and a route to the VIP over both. `options` are those of both balancers.
    #[track_caller]
    fn new(family: Family, options: &str) -> Self {
        let network = Self {
            labs: [Lab::empty(), Lab::empty()],
            client: Namespace::new("lb-c"),
            router: Namespace::new("lb-r"),
            backends: (0..BACKENDS).map(|_| Namespace::new("lb-b")).collect(),
            family,
        };
        for namespace in network.backends.iter().chain([&network.client, &network.router]) {
            for scope in ["all", "default"] {
                namespace.sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0");
                // A next hop whose link is down counts as gone, as with a routing daemon.
                for family in ["ipv4", "ipv6"] {
                    namespace.sysctl(&format!("net/{family}/conf/{scope}/ignore_routes_with_linkdown"), "1");
                }
            }
        }
        network.router.sysctl("net/ipv4/ip_forward", "1");
        network.router.sysctl("net/ipv6/conf/all/forwarding", "1");
        // By ports too: IKE, ESP in UDP and ESP of one client take whichever path they happen to.
        network.router.sysctl("net/ipv4/fib_multipath_hash_policy", "1");
        network.router.sysctl("net/ipv6/fib_multipath_hash_policy", "1");

        network.link((&network.router, "eth1", ROUTER_MAC), (&network.client, "eth1", packet::CLIENT_MAC));
        for (path, (router_side, backend_side)) in (0u8..).zip(PATHS) {
            let balancer = &network.labs[usize::from(path)].balancer;
            let near = [0x02, 0, 0, 0, path + 1, 1];
            network
                .link((&network.router, router_side, near), (balancer, "eth1", [0x02, 0, 0, 0, path + 1, 0]));
            for (index, backend) in (0u8..).zip(&network.backends) {
                let far = [0x02, 0, 0, 0, path + 1, 0x80 + index];
                let mac = [0xaa, 0xbb, 0xcc, 0, path, index + 1];
                network.link((balancer, &format!("eth{}", index + 2), far), (backend, backend_side, mac));
            }
        }

        // Many addresses of the client are told apart by the balancers alone.
        let bits = network.bits();
        let mut lines = format!("addr add {} dev eth1 nodad\n", network.at(0, 1));
        for number in 1..=10 {
            lines += &format!("addr add {}/{bits} dev eth1 nodad\n", family.client(number));
        }
        lines += &format!("route add {}/{bits} via {}\n", family.vip(), network.hop(0, 254));
        batch(&network.client, &lines);
        let mut lines = format!("addr add {} dev eth1 nodad\n", network.at(0, 254));
        for number in 1..=10 {
            lines += &format!("route add {}/{bits} via {}\n", family.client(number), network.hop(0, 1));
        }
        for (path, (router_side, _)) in (1..).zip(PATHS) {
            lines += &format!("addr add {} dev {router_side} nodad\n", network.at(path, 1));
        }
        batch(&network.router, &lines);
        for backend in &network.backends {
            let mut lines = format!("addr add {}/{bits} dev lo\n", family.vip());
            for (path, (_, backend_side)) in (1..).zip(PATHS) {
                lines += &format!("addr add {} dev {backend_side} nodad\n", network.at(path, 2));
            }
            // The answers take whichever path they happen to.
            lines += &format!(
                "route add default nexthop via {} dev eth1 nexthop via {} dev eth2\n",
                network.hop(1, 1),
                network.hop(2, 1)
            );
            batch(backend, &lines);
        }
        network.route(&[0, 1]);
        for (path, lab) in (0u8..).zip(&network.labs) {
            let macs = (0..BACKENDS as u8).map(|index| {
                format!("eth{}={}", index + 2, MacAddr6::from([0xaa, 0xbb, 0xcc, 0, path, index + 1]))
            });
            let egress = macs.collect::<Vec<_>>().join(",");
            let vip = family.vip();
            let ended = lab.attach(&format!("--ingress eth1 --egress {egress} --vip {vip} {options}"));
            assert_eq!(ended.stderr, "", "a lab that is set up well has nothing to mend");
            ended.done();
        }
        network
    }

    /// Links two interfaces by a veth that redirected frames survive, at whichever end.
    #[track_caller]
    fn link(&self, one: (&Namespace, &str, [u8; 6]), other: (&Namespace, &str, [u8; 6])) {
        let add = format!(
            "link add {} address {} type veth peer name {} address {} netns {}\n",
            one.1,
            MacAddr6::from(one.2),
            other.1,
            MacAddr6::from(other.2),
            other.0.name()
        );
        batch(one.0, &add);
        for (namespace, interface, _) in [one, other] {
            namespace.ip(&["link", "set", interface, "up"]);
        }
        for (namespace, interface, _) in [one, other] {
            let features = ["gro", "on", "tx", "off", "tso", "off", "gso", "off"];
            namespace.exec(&[&["ethtool", "-K", interface], &features[..]].concat());
        }
    }

    fn bits(&self) -> u8 {
        if self.family == Family::V6 { 128 } else { 32 }
    }

    /// Address `number` in the network of a path, 1 or 2; 0 is the one between client and router.
    fn hop(&self, path: u8, number: u8) -> IpAddr {
        match self.family {
            Family::V4 => IpAddr::from([10, 0, path, number]),
            Family::V6 => IpAddr::from([0xfd00, 0, 0, path.into(), 0, 0, 0, number.into()]),
        }
    }

    fn at(&self, path: u8, number: u8) -> String {
        format!("{}/{}", self.hop(path, number), self.bits() - 64.min(self.bits() / 2).max(8))
    }

    /// Sends what is for the VIP over these paths.
    #[track_caller]
    fn route(&self, paths: &[usize]) {
        let mut words = vec!["route".to_owned(), "replace".into(), self.family.vip().to_string()];
        for &path in paths {
            let hop = self.hop(path as u8 + 1, 2).to_string();
            words.extend(["nexthop".into(), "via".into(), hop, "dev".into(), PATHS[path].0.into()]);
        }
        self.router.ip(&words.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// Switches all links of a balancer on or off.
    #[track_caller]
    fn power(&self, path: usize, state: &str) {
        let lines = (1..=BACKENDS + 1).map(|index| format!("link set eth{index} {state}\n"));
        batch(&self.labs[path].balancer, &lines.collect::<String>());
    }

    /// How many packets of clients a balancer has forwarded.
    fn forwarded(&self, path: usize) -> u64 {
        ["session", "new", "stateless"].iter().map(|verdict| self.labs[path].verdict(verdict)).sum()
    }

    fn servers(&self, port: u16) -> Servers {
        let open = |backend| {
            let socket = udp(backend, self.family.vip(), port);
            socket.set_nonblocking(true).expect("a socket can be asked without waiting");
            socket
        };
        Servers(self.backends.iter().map(open).collect())
    }

    /// What comes to each backend, on either path.
    fn receivers(&self) -> Receivers {
        let both = &PATHS.map(|(_, interface)| interface)[..];
        let backends: Vec<_> = self.backends.iter().map(|backend| (backend, both)).collect();
        Receivers::new(&backends)
    }

    /// A frame as the client sends it to the router.
    fn routed(&self, frame: Vec<u8>) -> Vec<u8> {
        packet::sent_to(frame, ROUTER_MAC)
    }
}

/// One client, and its IKE.
struct Client {
    number: u8,
    address: IpAddr,
    /// What sends to ports 500 and 4500.
    sockets: [UdpSocket; 2],
    /// What ESP in UDP comes from.
    ports: Vec<u16>,
    backend: usize,
    /// What the SPIs of its backend begin with, in eight bits.
    label: u8,
    messages: u32,
}

impl Client {
    const PORTS: [u16; 2] = [IKE, NAT];

    /// A client with an address of its own, whose ESP comes from several ports.
    #[track_caller]
    fn establish(network: &Network, servers: &[Servers; 2], number: u8) -> Self {
        let address = network.family.client(number);
        let sockets = Self::PORTS.map(|port| udp(&network.client, address, port));
        let ports = (0..PORTS).map(|port| NAT + port * 1000).collect();
        let client = Self { number, address, sockets, ports, backend: 0, label: 0, messages: 0 };
        client.begin(network, servers, &[0; BACKENDS])
    }

    /// One of many clients behind one address, each with ports of its own. The SPIs of each backend have a label.
    #[track_caller]
    fn behind_nat(network: &Network, servers: &[Servers; 2], number: u8, labels: &[u8]) -> Self {
        let address = network.family.client(1);
        let own = [10_000, 20_000].map(|port| port + u16::from(number));
        let sockets = own.map(|port| udp(&network.client, address, port));
        let client =
            Self { number, address, sockets, ports: vec![own[1]], backend: 0, label: 0, messages: 0 };
        client.begin(network, servers, labels)
    }

    /// Begins on port 500, and goes on on port 4500 as clients do.
    #[track_caller]
    fn begin(mut self, network: &Network, servers: &[Servers; 2], labels: &[u8]) -> Self {
        let start = Ike::init(self.spis().0).bytes();
        self.sockets[0].send_to(&start, SocketAddr::new(network.family.vip(), IKE)).unwrap();
        let (backend, from) = servers[0].receiver_of(&start);
        (self.backend, self.label) = (backend, labels[backend]);
        let (initiator, responder) = self.spis();
        self.hear(0, &servers[0], from, &Ike::init_response(initiator, responder).bytes());
        self.go_on(network, servers);
        self
    }

    fn spis(&self) -> (u64, u64) {
        let number = u64::from(self.number);
        (0x1ccc_0000_0000_0000 + number, u64::from(self.label) << 56 | 0x00dd_0000_0000_0000 | number)
    }

    /// Its backend answers from a port; it has to get that, whichever way it comes.
    #[track_caller]
    fn hear(&self, port: usize, servers: &Servers, from: SocketAddr, answer: &[u8]) {
        servers.0[self.backend].send_to(answer, from).unwrap();
        let mut buffer = [0; 2048];
        self.sockets[port].set_read_timeout(Some(PATIENCE)).unwrap();
        let (length, _) = self.sockets[port].recv_from(&mut buffer).expect("the answer returns");
        assert_eq!(buffer[..length], *answer);
    }

    /// Sends one more message from each port; its backend has to get it, and its answer has to return.
    #[track_caller]
    fn go_on(&mut self, network: &Network, servers: &[Servers; 2]) {
        let (initiator, responder) = self.spis();
        for index in [1, 0] {
            self.messages += 1;
            // Each message has a length of its own, by which it is known.
            let message = Ike { extra: 100 + self.messages as usize, ..Ike::auth(initiator, responder) };
            let bytes = ike_bytes(Self::PORTS[index], message);
            let vip = SocketAddr::new(network.family.vip(), Self::PORTS[index]);
            self.sockets[index].send_to(&bytes, vip).unwrap();
            let (backend, from) = servers[index].receiver_of(&bytes);
            assert_eq!(backend, self.backend, "client {} on port {}", self.number, vip.port());
            self.hear(index, &servers[index], from, &bytes);
        }
    }

    /// Its ESP, from each port and without one.
    fn flows(&self, network: &Network) -> Vec<Flow> {
        let spi = u32::from(self.label) << 24 | 0x0040_0000 | u32::from(self.number);
        let frames = self.ports.iter().map(|&port| packet::esp_in_udp(self.address, port, spi));
        let mut flows: Vec<Flow> = frames.map(|frame| Flow::esp_in_udp(network.routed(frame))).collect();
        flows.push(Flow::esp(network.routed(packet::esp(self.address, spi + 0x1_0000))));
        flows
    }
}

/// All clients' ESP, and flow by flow the backend that has to get it.
fn streams(network: &Network, clients: &[Client]) -> (Sender, Vec<usize>) {
    let (mut sender, mut places) = (Sender::default(), Vec::new());
    for client in clients {
        let flows = client.flows(network);
        places.extend(flows.iter().map(|_| client.backend));
        sender.add(&network.client, "eth1", 1, flows);
    }
    (sender, places)
}

/// Nothing of the flow is lost or comes twice, and one place has it all. What was under way on one path may be
/// overtaken by what comes on the other.
#[track_caller]
fn assert_kept(flow: &Outcome, backend: usize) {
    assert_eq!((flow.lost(), flow.places()), (0, vec![backend]), "{flow:?}");
    assert_eq!(flow.late, flow.skipped, "{flow:?}");
}

#[test]
fn root_a_client_has_one_backend_through_either_of_two_balancers() {
    two_balancers(Family::V4, "--policy maglev --return-path direct --mode drv");
}

#[test]
fn root_a_client_has_one_backend_through_either_of_two_balancers_in_skb_mode() {
    two_balancers(Family::V4, "--policy maglev --return-path direct --mode skb");
}

#[test]
fn root_an_ipv6_client_has_one_backend_through_either_of_two_balancers() {
    two_balancers(Family::V6, "--policy maglev --return-path direct --mode drv");
}

fn two_balancers(family: Family, options: &str) {
    let network = Network::new(family, options);
    let servers = Client::PORTS.map(|port| network.servers(port));
    let mut clients: Vec<Client> =
        (1..=CLIENTS).map(|number| Client::establish(&network, &servers, number)).collect();
    let used: BTreeSet<usize> = clients.iter().map(|client| client.backend).collect();
    assert!(used.len() > 1, "clients are spread over backends: {used:?}");

    let (sender, places) = streams(&network, &clients);

    // The router spreads flows over both balancers; then one is taken out of its routes, and put back.
    let mut go_on = |network: &Network| {
        for client in &mut clients {
            client.go_on(network, &servers);
        }
    };
    let running = Running::start(sender, network.receivers(), PACE);
    thread::sleep(Duration::from_millis(300));
    for path in 0..PATHS.len() {
        assert!(network.forwarded(path) > 100, "flows take {path} too");
    }
    for paths in [&[0][..], &[0, 1], &[1], &[0, 1]] {
        network.route(paths);
        go_on(&network);
        // Packets that were routed before are still on their way for a moment.
        thread::sleep(Duration::from_millis(100));
        let idle = (0..PATHS.len()).find(|path| !paths.contains(path));
        let before = idle.map(|path| network.forwarded(path));
        thread::sleep(Duration::from_millis(200));
        assert_eq!(idle.map(|path| network.forwarded(path)), before, "nothing takes a path without a route");
    }
    let (report, sender, receivers) = running.finish(0);
    for (flow, backend) in report.flows.iter().zip(&places) {
        assert_kept(flow, *backend);
    }
    let moved = report.sent;

    // A balancer goes away at once: the router and the backends see that their links are down.
    let running = Running::start(sender, receivers, PACE);
    thread::sleep(Duration::from_millis(200));
    network.power(0, "down");
    go_on(&network);
    let before = network.forwarded(1);
    let goes_on = || network.forwarded(1) > before + 1_000;
    assert!(eventually(PATIENCE, goes_on), "the other one has all");
    let (report, ..) = running.finish(moved);
    let mut lost = 0;
    for (flow, backend) in report.flows.iter().zip(&places) {
        assert_eq!(flow.places(), [*backend], "no session is lost: {flow:?}");
        lost += flow.lost();
    }
    println!(
        "{options}: {moved} packets on changing paths, none lost; {lost} of {} with a path cut",
        report.sent - moved
    );

    // Who comes now goes where the balancer that is gone would send him.
    let mut newcomer = Client::establish(&network, &servers, CLIENTS + 1);
    network.power(0, "up");
    network.route(&[0]);
    newcomer.go_on(&network, &servers);
    for lab in &network.labs {
        assert_eq!(lab.verdict("no_backend"), 0);
        assert_eq!(lab.verdict("malformed"), 0);
    }
    assert!(eventually(PATIENCE, || network.labs.iter().all(|lab| lab.state() == "attached")));
}

#[test]
fn root_labels_lead_tunnels_behind_one_address_through_either_of_two_balancers() {
    let network = Network::new(
        Family::V4,
        "--affinity tunnel --spi-shard 8 --policy round-robin --return-path direct --mode drv",
    );
    let labels = network.labs.each_ref().map(|lab| -> Vec<u8> {
        lab.backends("label").iter().map(|label| label.as_u64().expect("there is a label") as u8).collect()
    });
    assert_eq!(labels[0], labels[1], "balancers with the same backends agree on labels");

    // All begin at one balancer; the other one never hears of them.
    network.route(&[0]);
    let servers = Client::PORTS.map(|port| network.servers(port));
    let mut clients: Vec<Client> = (1..=2 * BACKENDS as u8)
        .map(|number| Client::behind_nat(&network, &servers, number, &labels[0]))
        .collect();
    let used: BTreeSet<usize> = clients.iter().map(|client| client.backend).collect();
    assert_eq!(used.len(), BACKENDS, "clients of one address are at all backends");

    let (sender, places) = streams(&network, &clients);
    let running = Running::start(sender, network.receivers(), PACE);
    thread::sleep(Duration::from_millis(300));
    for paths in [&[0, 1][..], &[1]] {
        network.route(paths);
        thread::sleep(Duration::from_millis(300));
    }
    let (report, ..) = running.finish(0);
    for (flow, backend) in report.flows.iter().zip(&places) {
        assert_kept(flow, *backend);
    }
    assert!(network.forwarded(1) > 1_000, "the other balancer has had its part");
    network.power(0, "down");
    for client in &mut clients {
        client.go_on(&network, &servers);
    }
    assert_eq!(network.labs[1].verdict("no_backend"), 0);
}

const LAB: &str = "lab/ecmp.clab.yml";

/// The VIP and the network of each path, as the configuration files of the lab have them.
const LAB_VIPS: [&str; 2] = ["192.0.0.2", "2001:db8::2"];

#[test]
fn the_lab_with_two_balancers_is_whole() {
    let Document { prefix, topology } = topology(LAB, "userspace");
    assert_eq!(prefix, "", "namespaces are called by the nodes' bare names");
    let groups: BTreeMap<&str, &str> =
        topology.nodes.iter().map(|(name, node)| (name.as_str(), node.group.as_str())).collect();
    let mut expected = BTreeMap::from([("CL1", "client"), ("R1", "router")]);
    expected.extend(["LB1", "LB2"].map(|name| (name, "balancer")));
    expected.extend(["TEIP1", "TEIP2", "TEIP3", "TEIP4"].map(|name| (name, "concentrator")));
    assert_eq!(groups, expected);
    assert!(topology.nodes.values().all(|node| node.kind == "linux"));

    // Each link by its ends, the balancer's or the router's first.
    let mut links = BTreeSet::new();
    for Link { kind, mtu, endpoints } in &topology.links {
        assert_eq!((kind.as_str(), *mtu), ("veth", 1500));
        let mut ends: Vec<String> = endpoints
            .iter()
            .map(|end| format!("{}:{}{}", end.node, end.interface, end.mac.as_deref().unwrap_or_default()))
            .collect();
        ends.sort();
        assert!(links.insert(ends.join(" ")), "{ends:?} is there twice");
    }
    let mut expected = BTreeSet::from(["CL1:eth1 R1:eth1".to_owned()]);
    for path in 1..=2 {
        expected.insert(format!("LB{path}:eth1 R1:eth{}", path + 1));
        expected.insert(format!("LB{path}:eth6 R1:eth{}", path + 3));
        // What is eth2 at one balancer is so at the other: the name decides whose clients are whose.
        for n in 1..=4 {
            expected.insert(format!("LB{path}:eth{} TEIP{n}:eth{path}aa:bb:cc:00:0{path}:0{n}", n + 1));
        }
    }
    expected.extend((1..=4).map(|n| format!("R1:eth{} TEIP{n}:eth3", n + 5)));
    assert_eq!(links, expected);

    for (name, group) in topology.groups {
        let mut sources = BTreeMap::new();
        for bind in &group.binds {
            let [source, target, mode] = bind.split(':').collect::<Vec<_>>().try_into().unwrap();
            assert_eq!(mode, "ro", "{bind}");
            let source = repository().join("lab").join(source);
            assert!(source.is_file(), "{name} binds {} which is not there", source.display());
            assert!(sources.insert(target.to_owned(), source).is_none(), "{name} binds {target} twice");
        }
        for command in &group.exec {
            let source = sources.get(command).unwrap_or_else(|| panic!("{name} runs {command}, unbound"));
            let executable = fs::metadata(source).unwrap().permissions().mode() & 0o111 != 0;
            assert!(executable, "{} cannot be run", source.display());
        }
    }

    // The balancers' configurations differ in the number of the path, and in nothing else.
    let [one, two] = ["LB1", "LB2"]
        .map(|name| fs::read_to_string(repository().join(format!("lab/frr/{name}.conf"))).unwrap());
    for (ours, theirs) in [
        ("LB1", "LB2"),
        ("Balancer 1", "Balancer 2"),
        ("10.1.1.", "10.1.2."),
        ("10.0.1.2", "10.0.2.2"),
        ("fd00:0:0:1::2", "fd00:0:0:2::2"),
    ] {
        assert!(one.contains(ours) && two.contains(theirs), "{ours}, {theirs}");
    }
    let path = |text: &str, number: char| -> String {
        let numbered = [
            format!("LB{number}"),
            format!("Balancer {number}"),
            format!("10.1.{number}."),
            format!("10.0.{number}.2"),
            format!("fd00:0:0:{number}::2"),
        ];
        numbered.iter().fold(text.to_owned(), |text, part| text.replace(part, "PATH"))
    };
    assert_eq!(path(&one, '1'), path(&two, '2'));
}

/// The lab of `lab/ecmp.clab.yml`, in namespaces, with a balancer on each path.
struct BgpLab {
    prefix: String,
}

impl BgpLab {
    fn script(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(repository().join("scripts/lab"));
        command.args(["--prefix", &self.prefix]).args(arguments);
        command
    }

    /// Runs a command of scripts/lab to its end, and returns what it printed.
    #[track_caller]
    fn run(&self, arguments: &[&str]) -> String {
        run(&mut self.script(arguments))
    }

    fn lb(&self, arguments: &str) -> Command {
        let mut command = Command::new(LB);
        command.args(arguments.split_whitespace());
        command.args(["--pin-root", &format!("/sys/fs/bpf/{}", self.prefix)]);
        command
    }

    #[track_caller]
    fn attach(&self, path: u8) {
        let egress: Vec<String> = (1..=4).map(|n| format!("eth{}=aa:bb:cc:00:0{path}:0{n}", n + 1)).collect();
        let prefix = &self.prefix;
        run(&mut self.lb(&format!(
            "attach --name lb{path} --netns {prefix}-LB{path} --ingress eth1 --egress {} --vip {} --vip {} \
             --policy maglev --return-path direct",
            egress.join(","),
            LAB_VIPS[0],
            LAB_VIPS[1],
        )));
        self.run(&["shell", &format!("LB{path}"), "/run/lab/announce", "on"]);
    }

    /// Waits until the router sends what is for the VIP over these paths, of both families.
    #[track_caller]
    fn wait_for_paths(&self, wanted: &[u8]) {
        let hops = |vip: &str| {
            let family = if vip.contains(':') { "-6" } else { "-4" };
            let route = self.run(&["shell", "R1", "ip", family, "route", "show", vip, "proto", "bgp"]);
            let uses = |path: &u8| route.contains(&format!(" dev eth{} ", path + 1));
            (1..=2).filter(uses).collect::<Vec<u8>>()
        };
        let done = || LAB_VIPS.iter().all(|vip| hops(vip) == wanted);
        assert!(eventually(2 * PATIENCE, done), "the router's routes are not over {wanted:?}");
    }

    /// Every tunnel carries packets, and the concentrators have as many as is said.
    #[track_caller]
    fn spread(&self, family: &str) -> String {
        self.run(&["tunnels", "ping", "--count", "1", "--family", family]);
        let status = self.run(&["tunnels", "status", "--family", family]);
        status.lines().last().expect("it says how many there are").to_owned()
    }
}

impl Drop for BgpLab {
    fn drop(&mut self) {
        // A failure here would hide the one that ends the test.
        let _ = self.lb("detach --all --quiet").status();
        let _ = self.script(&["--quiet", "down"]).status();
    }
}

#[test]
fn root_bgp_takes_balancers_out_and_in_and_every_tunnel_stays() {
    let lab = BgpLab { prefix: format!("lbe{}", std::process::id()) };
    lab.run(&["up", "--topology", LAB]);
    for path in [1, 2] {
        lab.attach(path);
    }
    lab.wait_for_paths(&[1, 2]);
    let mut before = Vec::new();
    for family in ["4", "6"] {
        lab.run(&["tunnels", "up", "--family", family]);
        before.push(lab.spread(family));
    }
    let spread = || vec![lab.spread("4"), lab.spread("6")];
    assert_eq!(spread(), before);

    // One is taken out of service in good order.
    lab.run(&["shell", "LB1", "/run/lab/announce", "off"]);
    lab.wait_for_paths(&[2]);
    run(&mut lab.lb("detach --name lb1"));
    assert_eq!(spread(), before);
    lab.attach(1);
    lab.wait_for_paths(&[1, 2]);

    // The other one's machine goes away.
    let power = |state: &str| {
        let lines: String = (1..=6).map(|n| format!("ip link set eth{n} {state}; ")).collect();
        lab.run(&["shell", "LB2", "bash", "-ec", &lines]);
    };
    power("down");
    lab.wait_for_paths(&[1]);
    assert_eq!(spread(), before);
    power("up");
    lab.wait_for_paths(&[1, 2]);
    assert_eq!(spread(), before);
}
