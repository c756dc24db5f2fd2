//! Backends that come, go and change while the balancer works.

use std::process::Command;
use std::thread;
use std::time::Duration;

use macaddr::MacAddr6;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::namespace::Namespace;
use crate::common::packet;
use crate::lab::{Ended, Family, LB, Lab, Network, PATIENCE, Running, batch, eventually};

const PORTS: &str =
    "--ingress eth1 --egress eth2=02:00:00:00:00:02,eth3=02:00:00:00:00:03,eth4=02:00:00:00:00:04 --mode skb";

/// All that a change may change: what is attached, what the backends are, and what is pinned.
#[track_caller]
pub fn state(lab: &Lab) -> (Value, Value, Vec<String>) {
    let mut pins: Vec<String> = std::fs::read_dir(lab.instance())
        .expect("an instance has a folder")
        .map(|entry| entry.expect("it can be read").file_name().to_string_lossy().into_owned())
        .collect();
    pins.sort();
    let mut backends = lab.lb("backend list --json").json();
    for backend in backends.as_array_mut().expect("a list") {
        // That changes by itself.
        backend["heard_s"] = Value::Null;
    }
    (lab.lb("status --json").json(), backends, pins)
}

/// Whether backends have these names.
#[track_caller]
fn assert_names(lab: &Lab, wanted: &[&str]) {
    assert_eq!(lab.backends("name"), wanted);
}

/// The backend of that name, as `lb backend list` has it.
#[track_caller]
fn backend(lab: &Lab, name: &str) -> Value {
    let list = lab.lb("backend list --json").json();
    let found = list.as_array().expect("a list").iter().find(|backend| backend["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {list}")).clone()
}

/// How many sessions each backend has.
#[track_caller]
fn sessions(lab: &Lab) -> Vec<u64> {
    lab.backends("sessions").iter().map(|count| count.as_u64().expect("a number")).collect()
}

#[test]
fn what_is_no_change_is_wrong_usage() {
    for (arguments, words) in [
        ("backend", &["list", "add", "remove", "drain", "activate", "down", "set", "strongswan"][..]),
        ("backend add eth9", &["--dev"]),
        ("backend add eth9 --dev eth9 --weight 257", &["257", "0..=256"]),
        ("backend add eth9 --dev eth9 --weight -1", &["-1"]),
        ("backend add eth9 --dev eth9 --mac 01:00:5e:00:00:01", &["multicast"]),
        ("backend add eth9 --dev eth9 --mac ff:ff:ff:ff:ff:ff", &["broadcast"]),
        ("backend add eth9 --dev eth9 --mac 00:00:00:00:00:00", &["zero"]),
        ("backend add eth9 --dev eth9 --label four", &["four"]),
        ("backend set eth9", &["--weight", "--mac", "--label"]),
        ("backend set eth9 --weight 300", &["300", "0..=256"]),
        ("backend remove", &["<B>"]),
        ("backend remove eth9 --wait --force", &["--wait", "--force"]),
        ("backend remove eth9 --wait soon", &["soon", "30s"]),
        ("backend drain", &["<B>"]),
        ("attach --ingress eth1 --egress eth2 --spi-shard 0", &["--spi-shard", "1..=12"]),
        ("attach --ingress eth1 --egress eth2 --spi-shard 13", &["--spi-shard", "1..=12"]),
        ("attach --ingress eth1 --egress eth2 --down-after 10ms", &["--down-after", "1s"]),
        ("attach --ingress eth1 --egress eth2 --on-down wait", &["rehash", "hold"]),
        ("attach --ingress eth1 --egress eth2 --affinity port", &["address", "tunnel"]),
        ("attach --ingress eth1 --egress eth2 --replace --force", &["--force", "--ingress"]),
    ] {
        Ended::of(Command::new(LB).args(arguments.split_whitespace())).misused(words);
    }
    for (arguments, words) in [
        ("--egress eth2,eth3,eth4 --spi-shard 1", &["3 backends", "1 bits", "--spi-shard"][..]),
        ("--egress eth2 --down-after 5s --return-path direct", &["--down-after", "--return-path direct"]),
    ] {
        let arguments = format!("attach --ingress eth1 {arguments}");
        Ended::of(Command::new(LB).args(arguments.split_whitespace())).failed(2, words);
    }
}

#[test]
fn root_backends_come_and_go() {
    let lab = Lab::with_ports(6);
    lab.attach(PORTS).done();
    assert_names(&lab, &["eth2", "eth3", "eth4"]);

    // One behind a new interface, and another one behind the same.
    let done = lab.lb("backend add teip9 --dev eth5 --mac 02:00:00:00:00:09 --weight 3").done();
    assert_eq!(done, "added teip9 behind eth5\n");
    lab.assert_xdp_on(&["eth1", "eth2", "eth3", "eth4", "eth5"]);
    let added = lab.lb("backend add teip10 --dev eth5 --mac 02:00:00:00:00:0a --json").json();
    assert_eq!((&added["name"], &added["dev"]), (&"teip10".into(), &"eth5".into()));
    assert_names(&lab, &["eth2", "eth3", "eth4", "teip9", "teip10"]);
    assert_eq!(lab.backends("weight"), [1, 1, 1, 3, 1]);
    assert_eq!(lab.state(), "attached");

    // What a removed one leaves is taken by the next one.
    assert_eq!(lab.lb("backend remove eth3").done(), "removed eth3\n");
    lab.assert_xdp_on(&["eth1", "eth2", "eth4", "eth5"]);
    assert_names(&lab, &["eth2", "eth4", "teip9", "teip10"]);
    lab.lb("backend add other --dev eth6 --mac 02:00:00:00:00:03").done();
    assert_names(&lab, &["eth2", "other", "eth4", "teip9", "teip10"]);

    // An interface stays as long as anybody is behind it.
    lab.lb("backend remove teip9").done();
    lab.assert_xdp_on(&["eth1", "eth2", "eth4", "eth5", "eth6"]);
    lab.lb("backend remove teip10").done();
    lab.assert_xdp_on(&["eth1", "eth2", "eth4", "eth6"]);
    assert_eq!(lab.state(), "attached");

    // The programs go with an upgrade in place, and the backends stay.
    lab.attach(&format!("{} --replace", PORTS.replace("eth3=02:00:00:00:00:03", "eth6"))).done();
    assert_names(&lab, &["eth2", "other", "eth4"]);
    assert_eq!(lab.state(), "attached");

    // The last one goes by force alone, and another one can come in its place.
    for name in ["eth2", "eth4"] {
        lab.lb(&format!("backend remove {name}")).done();
    }
    lab.lb("backend remove other").failed(1, &["only backend", "--force", "lb detach"]);
    lab.lb("backend remove other --wait").failed(1, &["only backend"]);
    assert_eq!(backend(&lab, "other")["state"], "active");
    lab.lb("backend remove other --force").done();
    assert_names(&lab, &[]);
    lab.lb("backend add eth2 --dev eth2 --mac 02:00:00:00:00:02").done();
    assert_names(&lab, &["eth2"]);
    lab.assert_xdp_on(&["eth1", "eth2"]);
    assert_eq!(lab.state(), "attached");

    lab.lb("detach").done();
    lab.assert_no_trace();
}

#[test]
fn root_changes_that_cannot_be_leave_everything_as_it_was() {
    let lab = Lab::with_ports(6);
    lab.lb("backend drain eth2").failed(1, &["no instance named default"]);
    lab.lb("backend add eth2 --dev eth2").failed(1, &["no instance named default"]);
    let ports = PORTS.replace("--mode", "--spi-shard 3 --mode").replace("eth4=02:00:00:00:00:04", "eth4");
    lab.attach(&ports).done();
    lab.lb("backend drain eth3").done();
    let before = state(&lab);
    for (arguments, words) in [
        ("add eth2 --dev eth5", &["eth2 already", "backend set eth2"][..]),
        ("add new --dev eth1", &["new", "eth1 is an ingress"]),
        ("add new --dev eth77", &["no interface eth77", "eth5"]),
        ("add new --dev eth2", &["new", "several backends behind eth2", "--mac"]),
        ("add new --dev eth4 --mac 02:00:00:00:00:05", &["eth4", "several", "backend set eth4 --mac"]),
        ("add new --dev eth5 --mac 02:00:00:00:00:02", &["eth2 and new", "02:00:00:00:00:02"]),
        ("add new --dev eth5 --label 8", &["label 8", "3 bits", "0 to 7"]),
        ("add new --dev eth5 --label 1", &["eth3 and new", "label, 1"]),
        ("add a/b --dev eth5", &["a/b", "1 to 31 letters"]),
        ("add a-name-of-more-than-31-characters --dev eth5", &["1 to 31 letters"]),
        ("remove eth77", &["no backend eth77", "eth2, eth3, eth4"]),
        ("remove eth77 --wait", &["no backend eth77"]),
        ("remove eth77 --force", &["no backend eth77"]),
        ("drain eth77", &["no backend eth77", "eth2, eth3, eth4"]),
        ("drain eth3", &["eth3 is draining already"]),
        ("activate eth2", &["eth2 is active already"]),
        ("set eth77 --weight 1", &["no backend eth77"]),
        ("set eth3 --weight 9 --mac 02:00:00:00:00:02", &["eth2 and eth3", "02:00:00:00:00:02"]),
        ("set eth3 --weight 9 --label 2", &["eth3 and eth4", "label, 2"]),
        ("set eth3 --weight 9 --label 9", &["label 9", "3 bits"]),
        ("strongswan eth77", &["no backend eth77"]),
    ] {
        lab.lb(&format!("backend {arguments}")).failed(1, words);
        assert_eq!(state(&lab), before, "lb backend {arguments}");
    }
    // An interface that has somebody else's program.
    let occupant =
        crate::common::kernel::Occupant::by_link(&lab.balancer, "eth5", lb::kernel::xdp::Mode::Skb);
    lab.lb("backend add new --dev eth5 --mac 02:00:00:00:00:05")
        .failed(1, &["eth5", &occupant.program.to_string()]);
    assert_eq!(state(&lab), before);
    drop(occupant);

    // An interface of the same name elsewhere.
    let other = Lab::with_ports(6);
    lab.lb(&format!("backend add new --dev eth2 --mac 02:00:00:00:00:05 --netns {}", other.balancer.name()))
        .failed(1, &["eth2 that is here", "--netns"]);
    assert_eq!(state(&lab), before);

    // Eight labels are for eight backends.
    lab.lb("backend set eth4 --mac 02:00:00:00:00:04").done();
    for number in 3..8 {
        lab.lb(&format!("backend add b{number} --dev eth5 --mac 02:00:00:00:01:0{number}")).done();
    }
    assert_eq!(lab.backends("label"), (0..8).collect::<Vec<_>>());
    lab.lb("backend add b8 --dev eth5 --mac 02:00:00:00:01:08").failed(1, &["9 backends", "3 bits", "8"]);
}

#[test]
fn root_labels_name_backends() {
    let lab = Lab::with_ports(4);
    lab.attach(PORTS).done();
    assert_eq!(lab.backends("label"), [Value::Null, Value::Null, Value::Null]);
    lab.lb("backend strongswan eth2").failed(1, &["no labels", "--spi-shard"]);
    lab.lb("backend set eth2 --label 1").failed(1, &["eth2", "--spi-shard"]);

    // An upgrade in place gives labels, of other widths too, and takes them.
    lab.attach(&format!("{PORTS} --spi-shard 4 --replace")).done();
    assert_eq!(lab.backends("label"), [0, 1, 2]);
    lab.lb("backend set eth2 --label 15").done();
    let snippet = lab.lb("backend strongswan eth2").done();
    for line in [
        "spi_label = 0xf000000000000000",
        "spi_mask = 0xf000000000000000",
        "spi_min = 0xf0000000",
        "spi_max = 0xffffffff",
    ] {
        assert!(snippet.contains(line), "{line} is not in {snippet}");
    }
    lab.attach(&format!("{PORTS} --spi-shard 4 --replace")).done();
    assert_eq!(lab.backends("label"), [15, 1, 2], "labels stay");
    lab.attach(&format!("{PORTS} --spi-shard 2 --replace")).done();
    assert_eq!(lab.backends("label"), [0, 1, 2]);
    let snippet = lab.lb("backend strongswan eth2 --json").json();
    assert_eq!(snippet["spi_min"], "0x00000100", "lower ones are reserved");
    assert_eq!(snippet["spi_max"], "0x3fffffff");
    lab.attach(&format!("{PORTS} --replace")).done();
    assert_eq!(lab.backends("label"), [Value::Null, Value::Null, Value::Null]);
    assert_eq!(lab.status()["spi_shard"], 0);
}

#[test]
fn root_settings_are_shown_and_kept_apart() {
    let lab = Lab::with_ports(4);
    let options = "--policy least-sessions --affinity tunnel --spi-shard 5 --on-down hold --down-after 20s";
    lab.attach(&format!("{PORTS} {options}")).done();
    let status = lab.status();
    for (key, value) in [
        ("policy", Value::from("least-sessions")),
        ("affinity", "tunnel".into()),
        ("spi_shard", 5.into()),
        ("on_down", "hold".into()),
        ("down_after_s", 20.into()),
    ] {
        assert_eq!(status[key], value, "{key}");
    }
    // Keys of one affinity mean nothing to the other.
    let before = state(&lab);
    lab.attach(&format!("{PORTS} --replace"))
        .failed(1, &["--affinity tunnel", "--affinity address", "detach"]);
    assert_eq!(state(&lab), before);
    lab.attach(&format!("{PORTS} --affinity tunnel --replace")).done();
    let status = lab.status();
    assert_eq!((&status["policy"], &status["on_down"]), (&"round-robin".into(), &"rehash".into()));
    assert_eq!((&status["spi_shard"], &status["down_after_s"]), (&0.into(), &0.into()));
}

#[test]
fn root_as_many_backends_as_there_can_be() {
    let lab = Lab::with_ports(3);
    lab.attach("--ingress eth1 --egress eth2=02:00:00:00:00:02 --mode skb").done();
    let file = std::env::temp_dir().join(format!("lb-backends-{}.toml", std::process::id()));
    let write = |count: u32| {
        let one = |n: u32| {
            format!(
                "[[backend]]\nname = \"b{n}\"\ndev = \"eth3\"\nmac = \"02:00:00:01:{:02x}:{:02x}\"\n",
                n >> 8,
                n & 255
            )
        };
        let all: String = (0..count).map(one).collect();
        let sessions = lab.max_sessions;
        std::fs::write(
            &file,
            format!("ingress = \"eth1\"\nmode = \"skb\"\nmax-sessions = {sessions}\n{all}"),
        )
        .unwrap();
    };
    let netns = lab.balancer.name();
    let replace = format!("attach --replace --netns {netns} --config {}", file.display());
    write(513);
    lab.lb(&replace).failed(1, &["513 backends", "512"]);
    write(512);
    lab.lb(&replace).done();
    assert_eq!(lab.backends("name").len(), 512);
    lab.lb("backend add more --dev eth3 --mac 02:00:00:00:00:09").failed(1, &["513 backends", "512"]);
    lab.lb("backend remove b17").done();
    lab.lb("backend add more --dev eth3 --mac 02:00:00:00:00:09").done();
    assert_eq!(lab.backends("name")[17], "more");
    let _ = std::fs::remove_file(file);
    lab.lb("detach").done();
    lab.assert_no_trace();
}

// With packets

/// Pings once from each of these clients; all have to be answered.
#[track_caller]
fn ping(network: &Network, clients: impl Iterator<Item = u8>) {
    for client in clients {
        assert_eq!(network.ping(Family::V4, client, "-c 1"), 1, "client {client}");
    }
}

/// A network with the backends `eth2` to `eth5`, in `skb` mode.
#[track_caller]
fn network() -> Network {
    let network = Network::new();
    network.attach("--mode skb");
    network
}

#[test]
fn root_a_draining_backend_keeps_what_it_has_and_gets_no_more() {
    let network = network();
    let lab = &network.lab;
    ping(&network, 1..=4);
    assert_eq!(sessions(lab), [1, 1, 1, 1]);
    assert_eq!(lab.lb("backend drain eth3").done(), "eth3 is draining, with 1 session\n");
    assert_eq!(lab.backends("state"), ["active", "draining", "active", "active"]);
    ping(&network, 5..=10);
    assert_eq!(sessions(lab), [3, 1, 3, 3]);
    // Its own client is still its own, as long as it does not start anew.
    let at = |client: u8| -> Value {
        let found = lab.lb(&format!("session get {} --json", Family::V4.client(client))).json();
        found[0]["backend"].clone()
    };
    assert_eq!(at(2), "eth3");

    assert_eq!(lab.lb("backend activate eth3").done(), "eth3 is active, with 1 session\n");
    lab.lb("session flush").done();
    ping(&network, 1..=8);
    assert_eq!(sessions(lab), [2, 2, 2, 2]);
}

#[test]
fn root_a_backend_that_is_down_gets_nothing() {
    let network = network();
    let lab = &network.lab;
    ping(&network, 1..=4);
    lab.lb("backend down eth3").done();
    let packets = backend(lab, "eth3")["packets"].clone();
    ping(&network, 1..=10);
    assert_eq!(backend(lab, "eth3")["packets"], packets);
    assert_eq!(backend(lab, "eth3")["state"], "down");

    for name in ["eth2", "eth4"] {
        lab.lb(&format!("backend drain {name}")).done();
    }
    let ended = lab.lb("backend drain eth5");
    assert!(ended.stderr.contains("no backend is active"), "{ended:?}");
    ended.done();
    lab.lb("session flush").done();
    ping(&network, 1..=2);
    for name in ["eth2", "eth4"] {
        lab.lb(&format!("backend down {name}")).done();
    }
    let ended = lab.lb("backend down eth5");
    assert!(ended.stderr.contains("every backend is down"), "{ended:?}");
    ended.done();
    let dropped = lab.verdict("no_backend");
    assert_eq!(network.ping(Family::V4, 1, "-c 1 -W 1 -w 1"), 0);
    assert!(lab.verdict("no_backend") > dropped);
    lab.lb("backend activate eth2").done();
    ping(&network, 1..=10);
}

#[test]
fn root_a_backend_that_answers_nothing_counts_as_down() {
    let network = Network::new();
    network.attach("--mode skb --down-after 1s");
    let lab = &network.lab;
    ping(&network, 1..=4);
    let mute = &network.backends[1];
    mute.ip(&["link", "set", "eth1", "down"]);
    let down = || {
        network.ping(Family::V4, 2, "-c 1 -W 1 -w 1");
        backend(lab, "eth3")["state"] == "down"
    };
    assert!(eventually(PATIENCE, down));
    let packets = backend(lab, "eth3")["packets"].clone();
    ping(&network, 1..=10);
    assert_eq!(backend(lab, "eth3")["packets"], packets);

    // Any frame of its own ends that.
    batch(mute, "link set eth1 up\nroute replace 192.0.0.0/16 via 192.0.0.1\n");
    let heard = || {
        let _ = Ended::of(mute.command("ping").args(["-c", "1", "-W", "1", "192.0.0.1"]));
        backend(lab, "eth3")["state"] == "active"
    };
    assert!(eventually(PATIENCE, heard));
    lab.lb("session flush").done();
    ping(&network, 1..=8);
    assert_eq!(sessions(lab), [2, 2, 2, 2]);
}

#[test]
fn root_a_change_that_is_killed_is_made_good_by_the_next() {
    let lab = Lab::with_ports(5);
    lab.attach(PORTS).done();
    let add = "backend add new --dev eth5 --mac 02:00:00:00:00:05 --quiet";
    for delay in (0..30).map(|n| Duration::from_millis(2 * n)) {
        for change in [add, "backend remove new --force --quiet"] {
            let mut running = Running::start(&mut lab.command(change));
            thread::sleep(delay);
            running.kill();
            lab.lb("backend list").done();
        }
        // Whatever has come of it, it can be brought to an end.
        let names = lab.backends("name");
        if !names.contains(&"new".into()) {
            lab.lb(add).done();
        }
        assert_names(&lab, &["eth2", "eth3", "eth4", "new"]);
        lab.assert_xdp_on(&["eth1", "eth2", "eth3", "eth4", "eth5"]);
        lab.lb("backend remove new --force").done();
        lab.assert_xdp_on(&["eth1", "eth2", "eth3", "eth4"]);
        assert_eq!(lab.state(), "attached");
    }
    lab.lb("detach").done();
    lab.assert_no_trace();
}

#[test]
fn root_weights_change_while_packets_pass() {
    let network = network();
    let lab = &network.lab;
    for (name, weight) in [("eth2", 3), ("eth4", 0), ("eth5", 0)] {
        lab.lb(&format!("backend set {name} --weight {weight}")).done();
    }
    ping(&network, 1..=8);
    assert_eq!(sessions(lab), [6, 2, 0, 0]);
}

#[test]
fn root_the_backend_with_the_fewest_sessions_gets_the_next_client() {
    let network = Network::new();
    network.attach("--mode skb --policy least-sessions");
    let lab = &network.lab;
    ping(&network, 1..=8);
    assert_eq!(sessions(lab), [2, 2, 2, 2]);
    let list = lab.sessions();
    for session in list.iter().filter(|session| session["backend"] == "eth4") {
        lab.lb(&format!("session del {}", session["client"].as_str().expect("an address"))).done();
    }
    ping(&network, 9..=10);
    assert_eq!(sessions(lab), [2, 2, 2, 2]);
}

#[test]
fn root_a_backend_with_sessions_is_removed_by_force_alone() {
    let network = network();
    let lab = &network.lab;
    ping(&network, 1..=8);
    lab.lb("backend remove eth3").failed(1, &["eth3 has 2 sessions", "--force", "--wait", "drain"]);
    assert_eq!(sessions(lab), [2, 2, 2, 2]);
    assert_eq!(lab.lb("backend remove eth3 --force").done(), "removed eth3 and ended 2 sessions\n");
    assert_eq!(sessions(lab), [2, 2, 2]);
    assert_eq!(lab.sessions().len(), 6);
    lab.balancer.ip(&["link", "show", "eth3"]);
    lab.assert_xdp_on(&["eth1", "eth2", "eth4", "eth5"]);
    // Its clients start anew elsewhere, and the others have noticed nothing.
    ping(&network, 1..=8);
    assert_eq!(sessions(lab).iter().sum::<u64>(), 8);

    let mac = MacAddr6::from(packet::backend_mac(1));
    lab.lb(&format!("backend add eth3 --dev eth3 --mac {mac}")).done();
    lab.lb("session flush").done();
    ping(&network, 1..=8);
    assert_eq!(sessions(lab), [2, 2, 2, 2]);
    assert_eq!(backend(lab, "eth3")["packets"], 2, "it is a new one");
}

#[test]
fn root_a_removal_can_wait() {
    let network = network();
    let lab = &network.lab;
    ping(&network, 1..=4);
    // What it says while it waits is no error.
    let ended = lab.lb("backend remove eth3 --wait 300ms");
    assert_eq!(ended.stdout, "eth3 is draining, with 1 session\n");
    Ended { stdout: String::new(), ..ended }
        .failed(1, &["the time is up", "eth3", "draining", "1 session;", "activate eth3"]);
    assert_eq!(backend(lab, "eth3")["state"], "draining");

    let waiting = Running::start(&mut lab.command("backend remove eth3 --wait"));
    assert_eq!(waiting.line(), "eth3 is draining, with 1 session");
    waiting.signal(Signal::SIGINT);
    let ended = waiting.end();
    ended.failed(1, &["stopped", "eth3", "draining", "1 session;", "activate eth3"]);
    assert_eq!(backend(lab, "eth3")["state"], "draining");

    let waiting = Running::start(&mut lab.command("backend remove eth3 --wait"));
    assert_eq!(waiting.line(), "eth3 is draining, with 1 session");
    // Others are not kept waiting.
    lab.lb("backend set eth4 --weight 2").done();
    let session = lab.sessions().into_iter().find(|session| session["backend"] == "eth3").unwrap();
    lab.lb(&format!("session del {}", session["client"].as_str().unwrap())).done();
    assert_eq!(waiting.line(), "removed eth3");
    waiting.end().done();
    assert_names(lab, &["eth2", "eth4", "eth5"]);
    // One without sessions is removed at once.
    lab.lb("session flush").done();
    assert_eq!(lab.lb("backend remove eth4 --wait").done(), "removed eth4\n");
}

/// Puts a switch behind `eth6`, and two backends behind that.
#[track_caller]
fn switch(network: &Network) -> [Namespace; 3] {
    let switch = Namespace::new("lb-s");
    network.join("eth6", &switch, [2, 0, 0, 0, 0, 0x66]);
    batch(&switch, "link add br0 type bridge\nlink set br0 up\nlink set eth1 master br0\n");
    let backend = |index: u8| {
        let backend = Namespace::new("lb-b");
        for scope in ["all", "default"] {
            backend.sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0");
        }
        let mac = MacAddr6::from(packet::backend_mac(index));
        batch(
            &switch,
            &format!(
                "link add port{index} type veth peer name eth1 address {mac} netns {}\n\
                 link set port{index} master br0\nlink set port{index} up\n",
                backend.name()
            ),
        );
        let lines = format!(
            "link set eth1 up\naddr add {}/24 dev eth1\nroute add 192.0.0.0/16 via {}\n",
            packet::VIP4,
            Family::V4.client(0)
        );
        batch(&backend, &lines);
        backend.exec(&["ethtool", "-K", "eth1", "tx", "off"]);
        backend
    };
    let backends = [backend(10), backend(11)];
    // Ports of a bridge learn and forward at once, without the protocol that would keep them waiting.
    thread::sleep(Duration::from_millis(100));
    let [first, second] = backends;
    [switch, first, second]
}

#[track_caller]
fn several_backends_behind_one_interface(mode: &str) {
    let network = Network::new();
    let lab = &network.lab;
    let [_switch, first, _second] = switch(&network);
    let mac = |index: u8| MacAddr6::from(packet::backend_mac(index)).to_string().to_lowercase();
    let attached =
        lab.attach(&format!("--ingress eth1 --egress eth2={},eth6={} --mode {mode}", mac(0), mac(10)));
    attached.done();
    lab.lb("backend add second --dev eth6").failed(1, &["second", "several", "--mac"]);
    lab.lb(&format!("backend add second --dev eth6 --mac {}", mac(11))).done();
    assert_eq!(lab.backends("dev"), ["eth2", "eth6", "eth6"]);
    ping(&network, 1..=9);
    assert_eq!(sessions(lab), [3, 3, 3]);
    ping(&network, 1..=9);
    assert_eq!(lab.backends("packets"), [6, 6, 6]);
    // Each has been heard, by its own MAC.
    assert!(lab.backends("heard_s").iter().all(Value::is_u64), "{:?}", lab.backends("heard_s"));

    // The one that is gone takes nothing along.
    lab.lb("backend remove eth6 --force").done();
    assert_eq!(sessions(lab), [3, 3]);
    drop(first);
    let before = backend(lab, "second")["packets"].as_u64().unwrap();
    ping(&network, 1..=9);
    assert_eq!(sessions(lab).iter().sum::<u64>(), 9);
    assert!(backend(lab, "second")["packets"].as_u64().unwrap() > before);
    assert!(eventually(PATIENCE, || lab.state() == "attached"));
    lab.lb("detach").done();
    lab.assert_no_trace();
}

#[test]
fn root_several_backends_behind_one_interface_in_skb_mode() {
    several_backends_behind_one_interface("skb");
}

#[test]
fn root_several_backends_behind_one_interface_in_drv_mode() {
    several_backends_behind_one_interface("drv");
}
