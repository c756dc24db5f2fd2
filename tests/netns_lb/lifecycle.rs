//! From attach to detach, and all that may come between.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::command::{assert_keys, cut_short, moments};
use crate::lab::{BACKENDS, Ended, Family, Lab, Network, PATIENCE, Running, eventually};
use crate::packets::Stream;

const PORTS: &str = "--ingress eth1 --egress eth2,eth3 --mode skb";

// What is printed

#[test]
fn root_what_is_attached_is_shown_with_the_documented_keys() {
    let network = Network::new();
    let lab = &network.lab;
    network.attach("--mode skb");
    assert_eq!(network.ping(Family::V4, 1, "-c 1"), 1);

    let status = lab.status();
    assert_keys(
        &status,
        &[
            "affinity",
            "down_after_s",
            "established",
            "group",
            "idle_timeout_s",
            "interfaces",
            "max_sessions",
            "name",
            "netns",
            "on_down",
            "policy",
            "problem",
            "spi_shard",
            "start_rate",
            "state",
            "vips",
        ],
    );
    assert_eq!(status["name"], "default");
    assert_eq!(status["group"], "lb");
    assert_eq!(status["state"], "attached");
    assert_eq!(status["max_sessions"], lab.max_sessions);
    assert_eq!(status["netns"], lab.balancer.name());
    let interfaces = status["interfaces"].as_array().unwrap();
    for (n, interface) in (1..).zip(interfaces) {
        assert_keys(interface, &["dev", "mode", "program_id", "role"]);
        assert_eq!(interface["dev"], format!("eth{n}"));
        assert_eq!(interface["role"], if n == 1 { "ingress" } else { "egress" });
        assert_eq!(interface["mode"], "skb");
    }
    let programs: BTreeSet<u64> = lab.program_ids().into_iter().collect();
    assert_eq!(programs, lab.footprint().programs.into_iter().map(u64::from).collect());

    let sessions = lab.sessions();
    assert_eq!(sessions.len(), 1);
    assert_keys(&sessions[0], &["age_s", "backend", "bytes", "client", "idle_s", "packets", "state"]);
    assert_eq!(sessions[0]["client"], "192.0.1.1");
    assert_eq!(sessions[0]["state"], "embryonic");
    assert_eq!(sessions[0]["packets"], 1);
    // An Ethernet header of 14 bytes, IP's of 20, ICMP's of 8, and ping's usual 56.
    assert_eq!(sessions[0]["bytes"], 98);
    assert_eq!(lab.lb("session get 192.0.1.1 --json").json(), Value::from(sessions.clone()));

    let backends = lab.lb("backend list --json").json();
    assert_eq!(backends.as_array().map(Vec::len), Some(BACKENDS));
    let documented = [
        "bytes",
        "dev",
        "heard_s",
        "label",
        "mac",
        "mac_learned",
        "name",
        "packets",
        "sessions",
        "state",
        "weight",
    ];
    assert_keys(&backends[0], &documented);
    assert_eq!(backends[0]["mac"], "aa:bb:cc:00:00:01");
    let of_client =
        backends.as_array().unwrap().iter().find(|b| b["name"] == sessions[0]["backend"]).unwrap();
    assert_eq!((&of_client["sessions"], &of_client["packets"]), (&1.into(), &1.into()));

    let stats = lab.lb("stats --json").json();
    assert_keys(&stats, &["actions", "backends", "name", "unplaced_starts", "verdicts"]);
    assert_keys(
        &stats["verdicts"],
        &[
            "keepalive_dropped",
            "malformed",
            "neighbour",
            "new",
            "no_backend",
            "other_dropped",
            "other_passed",
            "returned",
            "session",
            "stateless",
        ],
    );
    assert_keys(&stats["verdicts"]["new"], &["bytes", "packets"]);
    assert_eq!(stats["verdicts"]["new"]["packets"], 1);
    assert_eq!(stats["verdicts"]["returned"]["packets"], 1);
    assert_keys(&stats["unplaced_starts"], &["source_rate", "table_full", "total_rate"]);
    assert_keys(&stats["backends"][0], &documented);
}

#[test]
fn root_what_is_attached_is_shown_in_tables() {
    let lab = Lab::with_ports(3);
    lab.attach(PORTS).done();
    for (arguments, words) in [
        ("status", &["NAME", "default", "eth3", "egress", "skb", "attached"][..]),
        ("stats", &["VERDICT", "session", "keepalive_dropped", "BACKEND", "eth2"]),
        ("backend list", &["BACKEND", "MAC", "eth3"]),
        ("session list", &["CLIENT", "STATE"]),
    ] {
        let printed = lab.lb(arguments).done();
        for word in words {
            assert!(printed.contains(word), "{word} is not in the answer of {arguments}: {printed}");
        }
    }
}

#[test]
fn root_nothing_attached_is_no_error() {
    let lab = Lab::empty();
    assert_eq!(lab.lb("status --json").json(), Value::Array(Vec::new()));
    assert_eq!(lab.lb("status").done(), "nothing is attached\n");
    assert_eq!(lab.lb("detach --all").done(), "nothing is attached\n");
    assert_eq!(lab.lb("detach --all --json").json(), Value::Array(Vec::new()));
    assert!(!lab.root.exists(), "asking makes no folder");
}

#[test]
fn root_stats_come_again_and_again_with_rates() {
    let lab = Lab::with_ports(3);
    lab.attach(PORTS).done();
    let start = Instant::now();
    let documents = lab.lb("stats --interval 100ms --count 3 --json").documents();
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!(documents.len(), 3);
    for document in &documents {
        assert_eq!(document["name"], "default");
        assert_keys(&document["verdicts"]["new"], &["bytes", "bytes_per_s", "packets", "packets_per_s"]);
    }
    assert!(lab.lb("stats --interval 20ms --count 1").done().contains("PPS"));
}

#[test]
fn root_stats_end_when_the_instance_is_detached() {
    let lab = Lab::with_ports(3);
    lab.attach(PORTS).done();
    let stats = Running::start(&mut lab.command("stats --interval 50ms --json"));
    stats.line();
    lab.lb("detach").done();
    let ended = stats.end();
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr.contains("detached"), "{ended:?}");
}

#[test]
fn root_quiet_and_verbose_say_less_and_more() {
    let lab = Lab::with_ports(3);
    let ended = lab.attach(&format!("{PORTS} --quiet"));
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("", ""));
    ended.done();
    assert_eq!(lab.lb("-q detach").done(), "");

    let ended = lab.attach(&format!("{PORTS} --verbose"));
    assert!(ended.stderr.contains("libbpf: "), "{ended:?}");
    assert!(ended.done().starts_with("attached default: eth1 -> eth2,eth3 (skb)"));
}

#[test]
fn root_attach_and_detach_say_in_json_what_they_did() {
    let lab = Lab::with_ports(3);
    let attached = lab.attach(&format!("{PORTS} --json"));
    let warned: Vec<String> = attached.stderr.lines().map(ToOwned::to_owned).collect();
    let document = attached.json();
    assert_keys(&document, &["name", "replaced", "warnings"]);
    assert_eq!((&document["name"], &document["replaced"]), (&"default".into(), &false.into()));
    let warnings = document["warnings"].as_array().unwrap();
    let shown: Vec<String> =
        warnings.iter().map(|text| format!("lb: warning: {}", text.as_str().unwrap())).collect();
    assert_eq!(warned, shown);
    assert_eq!(lab.attach(&format!("{PORTS} --replace --json")).json()["replaced"], true);
    assert_eq!(lab.lb("detach --json").json(), Value::from(vec!["default"]));
    lab.attach(PORTS).done();
    assert_eq!(lab.lb("detach --all --json").json(), Value::from(vec!["default"]));
}

#[test]
fn root_what_stands_in_the_way_of_packets_is_said_with_its_mend() {
    let lab = Lab::with_ports(3);
    lab.balancer.ip(&["link", "set", "eth3", "down"]);
    // Every warning gives a command or an option, and one run later there is none.
    let ended = lab.attach("--ingress eth1 --egress eth2=02:00:00:00:00:02,eth3 --mode drv");
    let (mut commands, mut options) = (Vec::new(), Vec::new());
    for line in ended.stderr.lines() {
        let (warning, mend) = line.split_once("; mend: ").unwrap_or_else(|| panic!("no mend: {line}"));
        assert!(warning.starts_with("lb: warning: "), "{line}");
        if mend.contains("=MAC") { options.push(warning) } else { commands.push(mend) }
    }
    assert!(options.iter().any(|warning| warning.contains("eth3")), "{options:?}");
    assert!(commands.contains(&"ip link set dev eth3 up"), "{commands:?}");
    for command in commands {
        let inside = if command.starts_with("ip netns exec") { "" } else { lab.balancer.name() };
        let run =
            if inside.is_empty() { command.into() } else { format!("ip netns exec {inside} {command}") };
        Ended::of(Command::new("sh").args(["-c", &run])).done();
    }
    ended.done();
    lab.lb("detach").done();
    let ports = "--ingress eth1 --egress eth2=02:00:00:00:00:02,eth3=02:00:00:00:00:03";
    let ended = lab.attach(&format!("{ports} --mode drv"));
    assert_eq!(ended.stderr, "");
    ended.done();
}

#[test]
fn root_a_reader_that_goes_away_is_no_error() {
    let lab = Lab::with_ports(3);
    lab.attach(PORTS).done();
    for arguments in ["session list", "session list --json", "stats", "status", "stats --interval 10ms"] {
        // A reader that is gone before the first line is what `| head` is in the worst case.
        let (reader, writer) = UnixStream::pair().unwrap();
        drop(reader);
        let mut command = lab.command(arguments);
        command.stdin(Stdio::null()).stdout(OwnedFd::from(writer)).stderr(Stdio::piped());
        let output = command.spawn().unwrap().wait_with_output().unwrap();
        assert!(output.status.success(), "{arguments}: {output:?}");
        assert!(output.stderr.is_empty(), "{arguments}: {output:?}");
    }
}

// Detach

#[test]
fn root_detach_leaves_nothing_behind() {
    let lab = Lab::with_ports(3);
    for mode in ["skb", "drv"] {
        let before = lab.balancer.ip(&["link", "show"]);
        lab.attach(&format!("--ingress eth1 --egress eth2,eth3 --mode {mode} --quiet")).done();
        let footprint = lab.footprint();
        assert_eq!(footprint.programs.len(), 2);
        assert_eq!(footprint.links.len(), 3);
        lab.assert_xdp_on(&["eth1", "eth2", "eth3"]);
        assert!(lab.instance().join("config").exists());

        assert_eq!(lab.lb("detach").done(), "detached default\n");
        lab.assert_no_trace();
        footprint.assert_gone();
        assert_eq!(lab.balancer.ip(&["link", "show"]), before);
    }
    lab.lb("detach").failed(1, &["no instance named default"]);
}

#[test]
fn root_two_instances_side_by_side() {
    let lab = Lab::with_ports(6);
    lab.attach("--name one --ingress eth1 --egress eth2,eth3 --mode skb").done();
    lab.attach("--name two --ingress eth4 --egress eth5,eth6 --mode drv --quiet").done();
    let status = lab.lb("status --json").json();
    let names: Vec<&Value> = status.as_array().unwrap().iter().map(|instance| &instance["name"]).collect();
    assert_eq!(names, ["one", "two"]);
    assert_eq!(lab.lb("stats --name two --json").json()["name"], "two");
    assert_eq!(lab.lb("backend --name two list --json").json()[0]["name"], "eth5");
    lab.lb("stats").failed(1, &["no instance named default", "there is one, two"]);

    lab.lb("detach --name one").done();
    assert_eq!(lab.status()["name"], "two");
    lab.assert_xdp_on(&["eth4", "eth5", "eth6"]);
    lab.attach("--name three --ingress eth1 --egress eth2,eth3 --mode skb").done();
    let printed = lab.lb("detach --all").done();
    assert_eq!(printed, "detached three\ndetached two\n");
    lab.assert_no_trace();
}

#[test]
fn root_interfaces_of_any_lawful_name_can_be_attached() {
    let lab = Lab::with_ports(3);
    // bpffs takes no dot in a name; VLAN interfaces have one.
    lab.balancer.ip(&["link", "set", "eth2", "name", "eth9.7"]);
    lab.balancer.ip(&["link", "property", "add", "dev", "eth3", "altname", "a-name-of-more-than-15-bytes"]);
    lab.attach("--ingress eth1 --egress eth9.7,eth3 --mode skb").done();
    assert_eq!(lab.backends("dev"), ["eth9.7", "eth3"]);
    lab.attach("--name other --ingress eth1 --egress eth3,a-name-of --mode skb").failed(1, &["a-name-of"]);
    lab.lb("detach").done();
    lab.assert_no_trace();
}

#[test]
fn root_an_interface_that_is_gone_degrades_the_instance() {
    let lab = Lab::with_ports(3);
    lab.attach(PORTS).done();
    lab.balancer.ip(&["link", "del", "eth2"]);
    let status = lab.status();
    assert_eq!(status["state"], "degraded", "{status}");
    assert_eq!(status["interfaces"][1]["program_id"], Value::Null);
    assert!(status["interfaces"][2]["program_id"].is_number(), "the others go on: {status}");
    let problem = status["problem"].as_str().unwrap();
    assert!(problem.contains("eth2 is gone") && problem.contains("lb detach"), "{problem}");
    let ended = lab.lb("status");
    assert!(ended.stderr.contains("eth2 is gone"), "{ended:?}");
    assert!(ended.done().contains("gone"));
    lab.lb("stats --json").done();

    // An interface of the same name is another one.
    lab.balancer.ip(&["link", "add", "eth2", "type", "veth", "peer", "name", "far2"]);
    assert_eq!(lab.state(), "degraded");
    lab.attach(&format!("{PORTS} --replace")).failed(1, &["eth2 that is here", "lb detach", "--name"]);
    lab.lb("detach").done();
    lab.assert_no_trace();
}

#[test]
fn root_a_namespace_that_is_gone_degrades_the_instance() {
    let mut lab = Lab::with_ports(3);
    lab.attach(PORTS).done();
    let footprint = lab.footprint();
    // The name goes with the namespace, and a lab without interfaces takes its place.
    drop(std::mem::replace(&mut lab.balancer, crate::common::namespace::Namespace::new("lb-t")));
    assert!(eventually(PATIENCE, || lab.state() == "degraded"), "{}", lab.status());
    lab.lb("detach").done();
    footprint.assert_gone();
    lab.assert_no_trace();
}

// Replace

#[test]
fn root_replace_of_nothing_attaches() {
    let lab = Lab::with_ports(3);
    assert!(lab.attach(&format!("{PORTS} --replace")).done().starts_with("attached default"));
    assert_eq!(lab.state(), "attached");
}

#[test]
fn root_replace_of_something_else_is_refused() {
    let lab = Lab::with_ports(4);
    lab.attach(PORTS).done();
    let before = lab.program_ids();
    lab.attach("--ingress eth1 --egress eth2,eth4 --mode skb --replace")
        .failed(1, &["egress eth3 skb", "egress eth4 skb", "detach first"]);
    lab.attach("--ingress eth1 --egress eth2 --mode skb --replace")
        .failed(1, &["egress eth3 skb", "detach first"]);
    lab.attach("--ingress eth2 --egress eth1,eth3 --mode skb --replace")
        .failed(1, &["ingress eth2 skb", "ingress eth1 skb"]);
    lab.attach("--ingress eth1 --egress eth2,eth3 --mode drv --replace")
        .failed(1, &["ingress eth1 skb", "ingress eth1 drv", "detach first"]);
    let other = lab.max_sessions * 2;
    lab.attach(&format!("{PORTS} --replace")).done();
    let replaced = lab.program_ids();
    assert_ne!(replaced, before);
    let arguments = lab.attach_arguments(&format!("{PORTS} --replace"));
    let arguments = arguments.replace(&lab.max_sessions.to_string(), &other.to_string());
    lab.lb(&arguments).failed(1, &["--max-sessions", &lab.max_sessions.to_string(), &other.to_string()]);
    assert_eq!(lab.program_ids(), replaced, "what was refused has changed nothing");
    assert_eq!(lab.state(), "attached");
}

#[test]
fn root_replace_takes_new_settings() {
    let lab = Lab::with_ports(3);
    lab.attach(PORTS).done();
    let arguments = "--policy maglev --vip 192.0.0.2 --idle-timeout 90m --start-rate 500 --replace";
    assert!(lab.attach(&format!("{PORTS} {arguments}")).done().starts_with("replaced default"));
    let status = lab.status();
    assert_eq!(status["policy"], "maglev");
    assert_eq!(status["vips"], Value::from(vec!["192.0.0.2"]));
    assert_eq!(status["idle_timeout_s"], 5400);
    assert_eq!(status["start_rate"], 500);
    lab.lb("detach").done();
    lab.assert_no_trace();
}

#[test]
fn root_replace_takes_new_macs() {
    let lab = Lab::with_ports(3);
    let ports = |one: &str, other: &str| format!("--ingress eth1 --egress eth2{one},eth3{other} --mode skb");
    let [first, second, third] = ["02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"];
    lab.attach(&ports(&format!("={first}"), &format!("={second}"))).done();
    let replace = |one: &str, other: &str| lab.attach(&format!("{} --replace", ports(one, other)));
    for (one, other, wanted) in [
        // Swapped, kept, and one of them new.
        (format!("={second}"), format!("={first}"), [second, first]),
        (String::new(), String::new(), [second, first]),
        (format!("={third}"), String::new(), [third, first]),
    ] {
        replace(&one, &other).done();
        assert_eq!(lab.backends("mac"), wanted);
    }
    replace("", &format!("={third}")).failed(1, &["eth2", "eth3", third, "NAME=MAC"]);
    assert_eq!(lab.backends("mac"), [third, first]);
}

fn replace_loses_nothing(mode: &str) {
    let network = Network::new();
    let lab = &network.lab;
    network.attach(&format!("--mode {mode}"));
    assert_eq!(network.ping(Family::V4, 2, "-c 3 -i 0.01"), 3);
    let (programs, session) = (lab.program_ids(), lab.lb("session get 192.0.2.1 --json").json());
    let new = lab.verdict("new");

    let stream = Stream::start(&network, Family::V4);
    let mut pings = network.client.command("ping");
    pings.args(["-n", "-q", "-i", "0.01", "-w", "60", "-I", "192.0.3.1", "192.0.0.2"]);
    let pings = Running::start(&mut pings);
    for _ in 0..3 {
        network.attach(&format!("--mode {mode} --replace"));
    }
    pings.signal(Signal::SIGINT);
    let printed = pings.end().done();
    assert!(printed.contains(" 0% packet loss"), "{printed}");
    stream.finish_without_loss();

    let replaced = lab.program_ids();
    assert!(replaced.iter().all(|id| !programs.contains(id)), "{programs:?} and {replaced:?}");
    lab.assert_xdp_on(&["eth1", "eth2", "eth3", "eth4", "eth5"]);
    let after = lab.lb("session get 192.0.2.1 --json").json();
    assert_eq!((&after[0]["backend"], &after[0]["packets"]), (&session[0]["backend"], &3.into()));
    assert_eq!(lab.verdict("new"), new + 2, "the stream's client and the pings' have one session each");
    let footprint = lab.footprint();
    assert_eq!(footprint.programs.len(), 2, "the old programs have gone: {footprint:?}");
    lab.lb("detach").done();
    footprint.assert_gone();
    lab.assert_no_trace();
}

#[test]
fn root_replace_loses_no_packet_and_no_session_in_skb_mode() {
    replace_loses_nothing("skb");
}

#[test]
fn root_replace_loses_no_packet_and_no_session_in_drv_mode() {
    replace_loses_nothing("drv");
}

// Foreground

#[test]
fn root_foreground_prints_a_line_each_second_and_detaches_at_a_signal() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let lab = Lab::with_ports(3);
        let mut foreground =
            Running::start(&mut lab.command(&lab.attach_arguments(&format!("{PORTS} --foreground"))));
        let start = Instant::now();
        for _ in 0..2 {
            let line = foreground.line();
            assert!(
                line.starts_with("forwarded ") && line.contains("returned ") && line.contains("dropped "),
                "{line}"
            );
        }
        assert!(start.elapsed() >= Duration::from_millis(900), "a line each second");
        assert_eq!(lab.state(), "attached");
        assert!(foreground.is_running());
        foreground.signal(signal);
        let ended = foreground.end();
        assert!(ended.clone().done().ends_with("detached default\n"), "{ended:?}");
        lab.assert_no_trace();
    }
}

#[test]
fn root_foreground_obeys_a_signal_at_any_moment() {
    let lab = Lab::with_ports(3);
    let arguments = lab.attach_arguments(&format!("{PORTS} --foreground"));
    let whole = time_of_attach(&lab, PORTS);
    lab.lb("detach").done();
    for (moment, after) in moments(whole).enumerate().step_by(2) {
        let signal = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP][moment % 3];
        let foreground = Running::start(&mut lab.command(&arguments));
        thread::sleep(after);
        foreground.signal(signal);
        let ended = foreground.end();
        // Before it listens, which is before it does anything, a signal ends it.
        assert!(matches!(ended.status.code(), Some(0) | None), "{signal} after {after:?}: {ended:?}");
        lab.assert_no_trace();
    }
}

#[test]
fn root_foreground_detaches_when_nobody_reads_its_lines() {
    let lab = Lab::with_ports(3);
    let (reader, writer) = UnixStream::pair().unwrap();
    let mut command = lab.command(&lab.attach_arguments(&format!("{PORTS} --foreground --quiet")));
    command.stdin(Stdio::null()).stdout(OwnedFd::from(writer)).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    drop(command);
    drop(reader);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    lab.assert_no_trace();
}

#[test]
fn root_foreground_leaves_what_somebody_else_attached_alone() {
    let lab = Lab::with_ports(3);
    let arguments = lab.attach_arguments(&format!("{PORTS} --foreground"));
    let mut foreground = Running::start(&mut lab.command(&arguments));
    foreground.line();
    // An upgrade is still its own instance.
    lab.attach(&format!("{PORTS} --replace")).done();
    foreground.line();
    foreground.line();
    assert!(foreground.is_running());
    // Another one of the same name is not.
    lab.lb("detach").done();
    lab.attach(PORTS).done();
    let ended = foreground.end();
    assert!(ended.done().contains("detached by another command"));
    assert_eq!(lab.state(), "attached");
    lab.lb("detach").done();
    lab.assert_no_trace();
}

#[test]
fn root_foreground_prints_json() {
    let lab = Lab::with_ports(3);
    let arguments = lab.attach_arguments(&format!("{PORTS} --foreground --json"));
    let foreground = Running::start(&mut lab.command(&arguments));
    let line: Value = serde_json::from_str(&foreground.line()).unwrap();
    assert_keys(&line, &["dropped", "established", "forwarded", "returned"]);
    assert_keys(&line["forwarded"], &["bytes", "bytes_per_s", "packets", "packets_per_s"]);
    foreground.signal(Signal::SIGINT);
    foreground.end().done();
    lab.assert_no_trace();
}

#[test]
fn root_foreground_ends_when_somebody_else_detaches() {
    let lab = Lab::with_ports(3);
    let foreground =
        Running::start(&mut lab.command(&lab.attach_arguments(&format!("{PORTS} --foreground"))));
    foreground.line();
    lab.lb("detach").done();
    let ended = foreground.end();
    assert!(ended.done().contains("detached by another command"));
    lab.assert_no_trace();
}

#[test]
fn root_killed_processes_lose_no_packet() {
    let network = Network::new();
    let lab = &network.lab;
    let attach = lab.attach_arguments(&format!("{} --mode drv --foreground", Network::ports_with_macs()));
    let foreground = Running::start(&mut lab.command(&attach));
    foreground.line();
    let stream = Stream::start(&network, Family::V4);

    foreground.signal(Signal::SIGKILL);
    assert_eq!(foreground.end().status.code(), None);
    assert_eq!(lab.state(), "attached");
    let others = ["stats --interval 10ms", "session list", "backend list", "status"];
    for (arguments, delay) in others.into_iter().flat_map(|arguments| [2, 20].map(|delay| (arguments, delay)))
    {
        let mut running = Running::start(&mut lab.command(arguments));
        thread::sleep(Duration::from_millis(delay));
        running.kill();
    }
    assert_eq!(lab.state(), "attached");
    stream.finish_without_loss();
    lab.lb("detach").done();
    lab.assert_no_trace();
}

// Cut short

/// How long an attach takes here and now.
fn time_of_attach(lab: &Lab, arguments: &str) -> Duration {
    let start = Instant::now();
    lab.attach(arguments).done();
    start.elapsed()
}

#[test]
fn root_an_attach_that_is_killed_at_any_moment_is_repaired() {
    let lab = Lab::with_ports(3);
    let arguments = format!("{PORTS} --quiet");
    let whole = time_of_attach(&lab, &arguments);
    lab.lb("detach").done();
    for (moment, after) in moments(whole).enumerate() {
        cut_short(&mut lab.command(&lab.attach_arguments(&arguments)), after);
        let status = lab.lb("status --json").json();
        let state = status[0]["state"].as_str().map(ToOwned::to_owned);
        match state.as_deref() {
            None | Some("attached" | "broken") => {}
            other => panic!("after {after:?} the state is {other:?}"),
        }
        if state.as_deref() == Some("broken") {
            lab.lb("stats").failed(1, &["cut short", "lb detach"]);
        }
        repair(&lab, &arguments, moment % 2 == 0);
    }
}

/// Has the next attach repair what was cut short, or the next detach.
#[track_caller]
fn repair(lab: &Lab, arguments: &str, by_attach: bool) {
    let status = lab.lb("status --json").json();
    if by_attach && status[0]["state"] != "attached" {
        lab.attach(arguments).done();
        assert_eq!(lab.state(), "attached");
        lab.lb("detach").done();
    } else if status[0].is_null() {
        lab.lb("detach --all").done();
    } else {
        lab.lb("detach").done();
    }
    lab.assert_no_trace();
}

#[test]
fn root_a_replace_that_is_killed_at_any_moment_loses_nothing() {
    let network = Network::new();
    let lab = &network.lab;
    let arguments = format!("{} --mode drv --replace --quiet", Network::ports_with_macs());
    network.attach("--mode drv");
    let whole = time_of_attach(lab, &arguments);
    let stream = Stream::start(&network, Family::V4);
    for after in moments(whole) {
        cut_short(&mut lab.command(&lab.attach_arguments(&arguments)), after);
        assert_eq!(lab.state(), "attached", "after {after:?}");
    }
    lab.attach(&arguments).done();
    let ids: BTreeSet<u64> = lab.program_ids().into_iter().collect();
    assert_eq!(ids.len(), 2, "all interfaces have the newest programs");
    stream.finish_without_loss();
    assert_eq!(lab.sessions().len(), 1);
    lab.lb("detach").done();
    lab.assert_no_trace();
}

#[test]
fn root_a_detach_that_is_killed_at_any_moment_is_repaired() {
    let lab = Lab::with_ports(3);
    for moment in 0..10 {
        lab.attach(PORTS).done();
        cut_short(&mut lab.command("detach"), Duration::from_micros(moment * 1500));
        repair(&lab, PORTS, moment % 2 == 0);
    }
}

// Side by side

#[test]
fn root_of_two_attaches_with_one_name_one_wins() {
    let lab = Lab::with_ports(3);
    let arguments = lab.attach_arguments(PORTS);
    let (one, other) = (lab.command(&arguments), lab.command(&arguments));
    let ended = [one, other].map(|mut command| Running::start(&mut command)).map(Running::end);
    let (done, failed): (Vec<Ended>, Vec<Ended>) =
        ended.into_iter().partition(|ended| ended.status.success());
    assert_eq!((done.len(), failed.len()), (1, 1), "{done:?} {failed:?}");
    failed[0].clone().failed(1, &["attached already", "--replace", "lb detach", "--name"]);
    assert_eq!(lab.state(), "attached");
    assert_eq!(lab.footprint().programs.len(), 2);
    lab.lb("detach").done();
    lab.assert_no_trace();
}

#[test]
fn root_of_two_attaches_to_the_same_interfaces_one_wins() {
    let lab = Lab::with_ports(3);
    let of = |name: &str| lab.command(&lab.attach_arguments(&format!("{PORTS} --name {name}")));
    let ended = [of("one"), of("two")].map(|mut command| Running::start(&mut command)).map(Running::end);
    let (done, failed): (Vec<Ended>, Vec<Ended>) =
        ended.into_iter().partition(|ended| ended.status.success());
    assert_eq!((done.len(), failed.len()), (1, 1), "{done:?} {failed:?}");
    let id = lab.program_ids()[1];
    failed[0].clone().failed(1, &["eth2", &format!("XDP program {id} is there already")]);
    assert_eq!(lab.footprint().links.len(), 3);
    lab.lb("detach --all").done();
    lab.assert_no_trace();
}

#[test]
fn root_attaches_and_detaches_in_the_same_root_do_not_disturb_each_other() {
    let lab = Lab::with_ports(8);
    thread::scope(|scope| {
        for n in 0..4 {
            let lab = &lab;
            scope.spawn(move || {
                let (client, backend) = (2 * n + 1, 2 * n + 2);
                for _ in 0..4 {
                    let ports = format!("--ingress eth{client} --egress eth{backend} --mode skb --name n{n}");
                    lab.attach(&ports).done();
                    lab.lb(&format!("detach --name n{n}")).done();
                }
            });
        }
    });
    lab.assert_no_trace();
}

#[test]
fn root_pins_are_for_root_alone() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::with_ports(3);
    lab.attach(PORTS).done();
    let mode = fs::metadata(&lab.root).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o700);
}
