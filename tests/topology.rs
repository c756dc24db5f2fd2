//! The lab: its topology files say what the project's documentation promises, everything that they name is
//! in the repository, and `scripts/lab` builds exactly that and removes it again.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use common::topology::{Document, Topology, repository, topology};

const CONCENTRATORS: [&str; 4] = ["TEIP1", "TEIP2", "TEIP3", "TEIP4"];

const TOPOLOGY: &str = "topology.clab.yml";
const NAT_TOPOLOGY: &str = "lab/nat.clab.yml";

/// The links as the issue draws them: the balancer's interface, the far node, and its MAC where it is fixed.
fn drawn_links() -> Vec<(String, String, Option<String>)> {
    let mut links = vec![("eth1".to_owned(), "CL1".to_owned(), None)];
    for (index, node) in CONCENTRATORS.iter().enumerate() {
        let mac = format!("aa:bb:cc:00:00:{:02x}", index + 1);
        links.push((format!("eth{}", index + 2), (*node).to_owned(), Some(mac)));
    }
    links
}

fn script(name: &str, arguments: &[&str]) -> Output {
    Command::new(repository().join("scripts").join(name))
        .args(arguments)
        .env_remove("LB_LAB_PREFIX")
        .env_remove("LB_LAB_ESP")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[track_caller]
fn assert_one_line(output: &Output, status: i32, words: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    for word in words {
        assert!(error.contains(word), "no {word:?} in: {error}");
    }
}

#[test]
fn names_the_nodes_and_links_of_the_lab() {
    let Document { prefix, topology } = topology(TOPOLOGY, "userspace");
    assert_eq!(prefix, "", "namespaces are called by the nodes' bare names");

    let groups: BTreeMap<_, _> =
        topology.nodes.iter().map(|(name, node)| (name.as_str(), node.group.as_str())).collect();
    let mut expected = BTreeMap::from([("CL1", "client"), ("LB1", "balancer")]);
    expected.extend(CONCENTRATORS.map(|node| (node, "concentrator")));
    assert_eq!(groups, expected);
    assert!(topology.nodes.values().all(|node| node.kind == "linux"));

    let mut links = Vec::new();
    for link in &topology.links {
        let balancer = link.endpoints.iter().find(|end| end.node == "LB1").expect("every link ends at LB1");
        let far = link.endpoints.iter().find(|end| end.node != "LB1").expect("no link from LB1 to itself");
        assert_eq!((link.kind.as_str(), link.mtu, far.interface.as_str()), ("veth", 1500, "eth1"));
        assert_eq!(balancer.mac, None);
        links.push((balancer.interface.clone(), far.node.clone(), far.mac.clone()));
    }
    links.sort();
    assert_eq!(links, drawn_links());
}

/// The lab with the NAT is the other lab, with a router and more clients in place of the one.
#[test]
fn names_the_nodes_and_links_of_the_lab_with_a_nat() {
    let plain = topology(TOPOLOGY, "userspace").topology;
    let Document { prefix, topology } = topology(NAT_TOPOLOGY, "userspace");
    assert_eq!(prefix, "");
    let clients: Vec<_> =
        topology.nodes.iter().filter(|(_, node)| node.group == "client").map(|(name, _)| name).collect();
    assert_eq!(clients, (1..=20).map(|n| format!("CL{n:02}")).collect::<Vec<_>>().iter().collect::<Vec<_>>());
    for (number, name) in (1..).zip(clients) {
        assert_eq!(topology.nodes[name].env["LB_LAB_NUMBER"], number);
    }

    let ends = |topology: &Topology, near: &str| {
        let mut links = Vec::new();
        for link in topology.links.iter().filter(|link| link.endpoints.iter().any(|end| end.node == near)) {
            assert_eq!((link.kind.as_str(), link.mtu), ("veth", 1500));
            let near_end = link.endpoints.iter().find(|end| end.node == near).unwrap();
            let far = link.endpoints.iter().find(|end| end.node != near).unwrap();
            assert_eq!((far.interface.as_str(), &near_end.mac), ("eth1", &None));
            links.push((near_end.interface.clone(), far.node.clone(), far.mac.clone()));
        }
        links.sort();
        links
    };
    let mut expected = ends(&plain, "LB1");
    expected[0].1 = "NAT1".to_owned();
    assert_eq!(ends(&topology, "LB1"), expected);
    let hidden: BTreeMap<_, _> =
        ends(&topology, "NAT1").into_iter().map(|(near, far, _)| (far, near)).collect();
    let expected = (1..=20).map(|n| (format!("CL{n:02}"), format!("eth{}", n + 1)));
    let expected: BTreeMap<_, _> = expected.chain([("LB1".to_owned(), "eth1".to_owned())]).collect();
    assert_eq!(hidden, expected);
}

#[test]
fn binds_and_runs_what_the_repository_has() {
    for (file, esp) in [(TOPOLOGY, "userspace"), (TOPOLOGY, "kernel"), (NAT_TOPOLOGY, "userspace")] {
        let directory = repository().join(Path::new(file).parent().unwrap());
        for (name, group) in topology(file, esp).topology.groups {
            let mut sources = BTreeMap::new();
            for bind in &group.binds {
                let [source, target, mode] = bind.split(':').collect::<Vec<_>>().try_into().unwrap();
                assert_eq!(mode, "ro", "{bind}");
                let source: PathBuf = directory.join(source);
                assert!(source.is_file(), "{name} binds {} which is not there", source.display());
                assert!(sources.insert(target.to_owned(), source).is_none(), "{name} binds {target} twice");
            }
            for command in &group.exec {
                let source = sources.get(command).unwrap_or_else(|| panic!("{name} runs {command}, unbound"));
                let status = Command::new("test").arg("-x").arg(source).status().unwrap();
                assert!(status.success(), "{} cannot be run", source.display());
            }
        }
    }
}

#[test]
fn scripts_refuse_bad_input_in_one_line() {
    let cases: [(&str, &[&str], &str); 18] = [
        ("lab", &[], "COMMAND"),
        ("lab", &["fly"], "fly"),
        ("lab", &["up", "--esp", "magic"], "magic"),
        ("lab", &["up", "extra"], "extra"),
        ("lab", &["up", "--clients", "0"], "'0'"),
        ("lab", &["up", "--clients", "2"], "no more than 1"),
        ("lab", &["--prefix", "a/b", "up"], "a/b"),
        ("lab", &["configure", "strongswan"], "NODE"),
        ("lab", &["configure", "ipsec", "CL1"], "ipsec"),
        ("lab", &["configure", "swanctl", "LB1"], "LB1"),
        ("lab", &["tunnels", "fly"], "fly"),
        ("lab", &["tunnels", "ping", "--count", "0"], "'0'"),
        ("lab", &["tunnels", "up", "--family", "5"], "5"),
        ("setup", &["everything"], "everything"),
        ("demo", &["--mode", "hw"], "hw"),
        ("demo", &["--mode"], "--mode"),
        ("demo", &["--lb", "/nonexistent"], "/nonexistent"),
        ("demo", &["now"], "now"),
    ];
    for (name, arguments, word) in cases {
        assert_one_line(&script(name, arguments), 2, &[word]);
    }
}

/// A lab with names of its own, which is removed with the test.
struct Lab {
    prefix: String,
}

impl Lab {
    fn new(name: &str) -> Self {
        Self { prefix: format!("test-{name}-{}", std::process::id()).replace('-', "_") }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        script("lab", &[&["--prefix", &self.prefix], arguments].concat())
    }

    #[track_caller]
    fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn netns(&self, node: &str) -> PathBuf {
        Path::new("/run/netns").join(format!("{}-{node}", self.prefix))
    }

    /// The processes of all nodes, each at least one.
    fn processes(&self) -> Vec<String> {
        let mut processes = Vec::new();
        for node in topology(TOPOLOGY, "userspace").topology.nodes.keys() {
            let name = format!("{}-{node}", self.prefix);
            let output = Command::new("ip").args(["netns", "pids", &name]).output().unwrap();
            let pids = String::from_utf8(output.stdout).unwrap();
            assert!(!pids.is_empty(), "nothing runs in {node}");
            processes.extend(pids.lines().map(str::to_owned));
        }
        processes
    }

    fn state(&self) -> PathBuf {
        Path::new("/run/lb-lab").join(format!("lab.{}", self.prefix))
    }

    #[track_caller]
    fn assert_gone(&self) {
        for node in topology(TOPOLOGY, "userspace").topology.nodes.keys() {
            assert!(!self.netns(node).exists(), "{node} is still there");
        }
        assert!(!self.state().exists());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.run(&["down"]);
    }
}

/// What `ip -json link` says of one interface in one node.
fn link(lab: &Lab, node: &str, interface: &str) -> Value {
    let text = lab.succeed(&["shell", node, "ip", "-json", "link", "show", "dev", interface]);
    serde_json::from_str::<Value>(&text).unwrap()[0].clone()
}

fn addresses(interfaces: &Value, name: &str) -> BTreeSet<String> {
    let interfaces = interfaces.as_array().unwrap();
    let interface = interfaces.iter().find(|interface| interface["name"] == name).unwrap();
    let addresses = interface["addresses"].as_array().unwrap().iter();
    addresses.map(|address| address.as_str().unwrap().to_owned()).collect()
}

fn set<const N: usize>(fixed: [&str; N], numbered: impl Fn(u32) -> Vec<String>) -> BTreeSet<String> {
    fixed.into_iter().map(str::to_owned).chain((1..=10).flat_map(numbered)).collect()
}

#[test]
fn root_lab_is_what_the_topology_says() {
    let lab = Lab::new("built");
    lab.succeed(&["up"]);

    let status: Value = serde_json::from_str(&lab.succeed(&["status", "--json"])).unwrap();
    assert_eq!((&status["up"], &status["esp"]), (&Value::from(true), &Value::from("userspace")));
    let nodes: BTreeMap<&str, &Value> = status["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| (node["node"].as_str().unwrap(), node))
        .collect();
    assert_eq!(nodes.keys().copied().collect::<Vec<_>>(), ["CL1", "LB1", "TEIP1", "TEIP2", "TEIP3", "TEIP4"]);

    let client = &nodes["CL1"]["interfaces"];
    let outer = |n| vec![format!("192.0.{n}.1/32"), format!("2001:db8:0:{n}::1/128")];
    let inner = |n| vec![format!("10.1.0.{n}/32"), format!("2001:db8:a1::{n}/128")];
    assert_eq!(addresses(client, "eth1"), set(["192.0.0.1/24", "2001:db8::1/64"], outer));
    assert_eq!(addresses(client, "lo"), set(["127.0.0.1/8", "::1/128"], inner));
    for interface in ["eth1", "eth2", "eth3", "eth4", "eth5"] {
        assert_eq!(addresses(&nodes["LB1"]["interfaces"], interface), BTreeSet::new());
    }
    for node in CONCENTRATORS {
        let own = &nodes[node]["interfaces"];
        assert_eq!(addresses(own, "eth1"), set(["192.0.0.2/24", "2001:db8::2/64"], |_| vec![]));
        let loopback = ["127.0.0.1/8", "::1/128", "10.2.2.2/32", "2001:db8:a2::2/128"];
        assert_eq!(addresses(own, "lo"), set(loopback, |_| vec![]));
    }

    for (interface, far, mac) in drawn_links() {
        let near_end = link(&lab, "LB1", &interface);
        let far_end = link(&lab, &far, "eth1");
        assert_eq!(near_end["link_index"], far_end["ifindex"], "LB1 {interface}");
        assert_eq!(far_end["link_index"], near_end["ifindex"], "{far} eth1");
        assert!(mac.is_none_or(|mac| far_end["address"] == mac), "{far_end}");
        // A native XDP redirect into the pair needs the first, and TCP and UDP need the second.
        let features = lab.succeed(&["shell", &far, "ethtool", "-k", "eth1"]);
        for feature in
            ["generic-receive-offload: on", "tx-checksumming: off", "tcp-segmentation-offload: off"]
        {
            assert!(features.contains(feature), "{far}: no {feature:?} in {features}");
        }
    }

    for family in ["4", "6"] {
        let output = lab.run(&["tunnels", "status", "--json", "--family", family]);
        assert_eq!(output.status.code(), Some(1), "no tunnel is up yet");
        let tunnels: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&tunnels["established"], &tunnels["expected"]), (&Value::from(0), &Value::from(10)));
        assert_eq!(tunnels["tunnels"][9]["tunnel"], if family == "4" { "tun10" } else { "tun6-10" });
    }

    assert_one_line(&lab.run(&["shell", "CL2"]), 2, &["CL2", "TEIP4"]);
    let again = format!("scripts/lab --prefix {} down", lab.prefix);
    assert_one_line(&lab.run(&["up"]), 1, &["up already", &again]);
    let processes = lab.processes();
    lab.succeed(&["down"]);
    lab.assert_gone();
    for process in processes {
        // One that only waits for its parent to take notice has no namespaces any more.
        let namespace = Path::new("/proc").join(&process).join("ns/net");
        assert!(!namespace.exists(), "process {process} is still there");
    }
    assert!(lab.succeed(&["down"]).contains("nothing to remove"));
    assert_one_line(&lab.run(&["tunnels", "up"]), 1, &["not up"]);
}

#[test]
fn root_lab_killed_while_it_is_built_can_be_removed() {
    let lab = Lab::new("killed");
    for milliseconds in [100, 200, 300, 400, 600] {
        let mut up = Command::new(repository().join("scripts/lab"))
            .args(["--prefix", &lab.prefix, "up"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        sleep(Duration::from_millis(milliseconds));
        up.kill().unwrap();
        up.wait().unwrap();
        lab.succeed(&["down"]);
        lab.assert_gone();
    }
    // What comes after is a whole lab.
    lab.succeed(&["up"]);
    lab.succeed(&["status"]);
}

#[test]
fn root_lab_leaves_a_namespace_alone_that_is_not_its_own() {
    let lab = Lab::new("foreign");
    let name = format!("{}-TEIP3", lab.prefix);
    let ip =
        |verb: &str| assert!(Command::new("ip").args(["netns", verb, &name]).status().unwrap().success());
    ip("add");
    assert_one_line(&lab.run(&["up"]), 1, &[&name, "--prefix"]);
    assert_one_line(&lab.run(&["up", "--check"]), 1, &[&name, "--prefix"]);
    lab.succeed(&["down"]);
    let there = lab.netns("TEIP3").exists();
    ip("delete");
    assert!(there, "the lab removed what it had not made");
    lab.assert_gone();
}

#[test]
fn root_lab_with_a_nat_hides_its_clients() {
    let lab = Lab::new("nat");
    lab.succeed(&["up", "--topology", NAT_TOPOLOGY, "--clients", "2"]);
    let status: Value = serde_json::from_str(&lab.succeed(&["status", "--json"])).unwrap();
    let nodes: Vec<_> = status["nodes"].as_array().unwrap().iter().map(|node| &node["node"]).collect();
    assert_eq!(nodes, ["CL01", "CL02", "NAT1", "LB1", "TEIP1", "TEIP2", "TEIP3", "TEIP4"]);

    // Without the balancer nobody answers, so the router itself is asked what it sends.
    let neighbour = "ip neigh replace 192.0.0.2 lladdr aa:bb:cc:00:00:01 dev eth1";
    lab.succeed(&["shell", "NAT1", "bash", "-c", neighbour]);
    let mut watch = Command::new(repository().join("scripts/lab"))
        .args(["--prefix", &lab.prefix, "shell", "NAT1"])
        .args(["timeout", "20", "tcpdump", "--immediate-mode", "-nli", "eth1", "-c", "1", "udp port 4500"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Nobody says when tcpdump listens, so packets are sent until it has ended.
    let send = ["shell", "CL02", "bash", "-c", "echo >/dev/udp/192.0.0.2/4500"];
    let mut tries = 0..100;
    while watch.try_wait().unwrap().is_none() && tries.next().is_some() {
        lab.succeed(&send);
        sleep(Duration::from_millis(50));
    }
    let seen = watch.wait_with_output().unwrap();
    let line = String::from_utf8(seen.stdout).unwrap();
    assert!(line.contains("IP 192.0.0.1.") && line.contains("> 192.0.0.2.4500"), "{line}");

    // What is configured holds until it is replaced, and what is not understood is refused.
    let configure = |nodes: &[&str], text: &str| {
        let file = lab.state().join("tried");
        fs::write(&file, text).unwrap();
        lab.run(&[&["configure", "swanctl", "--input", file.to_str().unwrap()], nodes].concat())
    };
    assert!(
        configure(&["CL01", "CL02"], "connections { extra { remote_addrs = 192.0.0.2 } }").status.success()
    );
    let known = lab.succeed(&["shell", "CL02", "swanctl", "--list-conns"]);
    assert!(known.contains("extra:") && known.contains("tun02:"), "{known}");
    for (wrong, word) in
        [("connections { extra { rekey_time = ten } }", "rekey_time"), ("connections {", "syntax")]
    {
        assert_one_line(&configure(&["CL01"], wrong), 1, &["CL01", word]);
    }
    assert!(configure(&["CL01"], "").status.success());
    let known = lab.succeed(&["shell", "CL01", "swanctl", "--list-conns"]);
    assert!(!known.contains("extra:"), "{known}");

    lab.succeed(&["down"]);
    assert!(!lab.netns("NAT1").exists() && !lab.netns("CL02").exists() && !lab.state().exists());
}
