//! From attach to detach, and all that may come between.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lb::kernel::interface::Interface;
use serde_json::json;

use crate::common::command::{cut_short, moments};
use crate::common::namespace::{Namespace, batch, run, veth};
use crate::lab::{Ended, Family, Lab, Mode, PATIENCE, Pings, Running, peer_option, xdp_programs};

/// Floods of pings, one after the other, until they are told to stop.
struct Flood {
    stop: Arc<AtomicBool>,
    pings: JoinHandle<Vec<Pings>>,
}

impl Flood {
    fn start(lab: &Lab, family: Family) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let mut ping = lab.ping_command(family.host(1), &format!("-f -c 500 -W {}", PATIENCE.as_secs()));
        let pings = thread::spawn(move || {
            let mut floods = Vec::new();
            while !told.load(Ordering::Relaxed) {
                floods.push(Pings::of(&Ended::of(&mut ping).stdout));
            }
            floods
        });
        Self { stop, pings }
    }

    /// Stops; no ping may have been lost. Returns how many there were.
    #[track_caller]
    fn finish_without_loss(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let floods = self.pings.join().expect("the floods do not panic");
        assert!(floods.len() > 1, "the flood has hardly begun");
        assert!(floods.iter().all(|flood| flood.received == flood.sent), "pings are lost: {floods:?}");
        floods.iter().map(|flood| flood.sent).sum()
    }
}

/// The ids of the programs of all instances.
#[track_caller]
fn programs(lab: &Lab) -> BTreeSet<u64> {
    let namespaces = [&lab.near, &lab.far];
    namespaces.into_iter().flat_map(xdp_programs).map(|(_, id)| id).collect()
}

/// The number of an interface.
#[track_caller]
fn index(namespace: &Namespace, interface: &str) -> String {
    namespace.within(|| Interface::find(interface)).expect("the interface is there").index.to_string()
}

// Upgrades in place

fn replace_loses_nothing(mode: Mode) {
    let lab = Lab::new();
    lab.attach(mode, "");
    let mut sent = 0;
    for family in Family::BOTH {
        lab.ping(family.host(1), 3, "").all(3);
        sent += 3;
        let before = xdp_programs(&lab.near);
        let flood = Flood::start(&lab, family);
        for arguments in ["", "--any", "--rate 1000000/s", "--address 10.0.0.77", ""] {
            lab.attach(mode, &format!("--replace {arguments}"));
        }
        sent += flood.finish_without_loss();
        assert_ne!(xdp_programs(&lab.near), before, "it is another program");
    }
    assert_eq!(lab.replies(), sent, "no count is forgotten");
    let footprint = lab.footprint();
    let kept = if mode == Mode::Drv { 2 } else { 1 };
    assert_eq!(footprint.programs.len(), kept, "the old programs have gone: {footprint:?}");
    lab.lb("echo detach --dev eth0").done();
    lab.assert_no_trace();
    footprint.assert_gone();
}

#[test]
fn root_replace_loses_no_ping_and_no_count_in_drv_mode() {
    replace_loses_nothing(Mode::Drv);
}

#[test]
fn root_replace_loses_no_ping_and_no_count_in_skb_mode() {
    replace_loses_nothing(Mode::Skb);
}

#[test]
fn root_replacing_the_far_end_loses_nothing() {
    let lab = Lab::new();
    lab.pass("").done();
    lab.attach(Mode::Drv, "");
    let flood = Flood::start(&lab, Family::V4);
    for _ in 0..10 {
        assert_eq!(lab.pass("--replace").done(), "replaced pass far0: far0 (drv)\n");
    }
    let sent = flood.finish_without_loss();
    assert_eq!(lab.replies(), sent);
    let passed = lab.lb("pass stats --dev far0 --json").json();
    assert!(passed["verdicts"]["passed"]["packets"].as_u64().unwrap() >= sent, "{passed}");
}

#[test]
fn root_replace_where_nothing_is_attached_attaches() {
    let lab = Lab::new();
    let attached = lab.echo("--replace --with-peer").done();
    assert_eq!(attached, "attached echo eth0: eth0 (drv)\n");
    assert_eq!(lab.echo("--replace").done(), "replaced echo eth0: eth0 (drv)\n");
    lab.lb("echo detach --dev eth0").done();
    assert_eq!(lab.pass("--replace --mode skb").done(), "attached pass far0: far0 (skb)\n");
    lab.lb("pass detach --dev far0").done();
    lab.assert_no_trace();
}

#[test]
fn root_replace_keeps_the_interface_and_the_mode() {
    let lab = Lab::new();
    lab.near.ip(&["link", "add", "eth1", "type", "veth", "peer", "name", "far1"]);
    lab.attach(Mode::Drv, "");
    let before = programs(&lab);
    let detach = "`lb echo detach --name eth0` first";
    lab.echo("--replace --mode skb").failed(1, &["eth0 is on eth0 drv", "says eth0 skb", detach, "--name"]);
    let netns = lab.near.name();
    lab.lb(&format!("echo attach --dev eth1 --name eth0 --replace --netns {netns}"))
        .failed(1, &["eth0 is on eth0 drv", "says eth1 drv", detach, "--name"]);
    assert_eq!(programs(&lab), before, "what was refused has changed nothing");

    lab.pass("--name p --mode skb").failed(1, &["far0", "is there already"]);
    lab.lb("echo detach --dev eth0").done();
    lab.pass("--name p --mode skb").done();
    lab.pass("--name p --replace")
        .failed(1, &["p is on far0 skb", "says far0 drv", "`lb pass detach --name p` first"]);
}

#[test]
fn root_replace_does_not_take_an_interface_of_the_same_name_for_its_own() {
    let lab = Lab::new();
    lab.attach(Mode::Skb, "");
    // Its number is the same too.
    let other = Namespace::new("lb-o");
    let number = index(&lab.near, "eth0");
    let numbered =
        ["link", "add", "eth0", "index", &number, "type", "veth", "peer", "name", "x0", "index", "77"];
    other.ip(&numbered);
    let before = programs(&lab);
    let wanted =
        ["eth0 is attached in the namespace", lab.near.name(), "--name", "`lb echo detach --name eth0`"];
    let there = format!("echo attach --netns {} --dev eth0 --mode skb", other.name());
    lab.lb(&format!("{there} --replace")).failed(1, &wanted);
    lab.lb(&there).failed(1, &["eth0 is attached already", lab.near.name(), "--name"]);
    assert_eq!(xdp_programs(&other), []);
    assert_eq!(programs(&lab), before);

    // Nor one that was made anew.
    lab.near.ip(&["link", "del", "eth0"]);
    lab.near.ip(&numbered);
    lab.echo("--mode skb --replace").failed(1, &["eth0", "`lb echo detach --name eth0`"]);
    assert_eq!(xdp_programs(&lab.near), []);
    lab.lb("echo detach --dev eth0").done();
    lab.echo("--mode skb --replace").done();
    assert_eq!(xdp_programs(&lab.near).len(), 1);
    lab.lb("echo detach --dev eth0").done();
    lab.assert_no_trace();
}

#[test]
fn root_what_is_attached_already_is_refused_with_three_ways_out() {
    let lab = Lab::new();
    lab.attach(Mode::Drv, "");
    let before = programs(&lab);
    for arguments in ["", "--mode skb", "--with-peer", "--any"] {
        lab.echo(arguments).failed(
            1,
            &[
                "eth0 is attached already, to eth0",
                "`lb echo attach --replace` upgrades it",
                "`lb echo detach --name eth0` removes it",
                "--name",
            ],
        );
    }
    // By another name it is the interface that is taken.
    let id = xdp_programs(&lab.near)[0].1;
    lab.echo("--name other").failed(1, &["eth0", &format!("XDP program {id} is there already")]);
    assert_eq!(programs(&lab), before);
    lab.lb("detach --all").done();

    lab.pass("").done();
    lab.pass("").failed(
        1,
        &["far0 is attached already, to far0", "`lb pass attach --replace`", "`lb pass detach --name far0`"],
    );
}

// Names

#[test]
fn root_an_instance_is_named_after_its_interface() {
    let lab = Lab::empty();
    lab.link("eth0.10");
    let (near, far) = (lab.near.name(), lab.far.name());
    let attached = lab.lb(&format!("echo attach --dev eth0.10 --netns {near} --with-peer")).done();
    assert_eq!(attached, "attached echo eth0_10: eth0.10 (drv)\n");
    lab.ping(Family::V4.host(1), 3, "").all(3);
    let stats = lab.lb("echo stats --dev eth0.10 --json").json();
    assert_eq!((&stats["name"], &stats["verdicts"]["reply"]["packets"]), (&"eth0_10".into(), &3.into()));
    assert_eq!(lab.lb("echo stats --name eth0_10 --json").json(), stats);
    assert_eq!(lab.interfaces()[0].0, "eth0.10");
    // An interface of the name that the instance has is another one.
    lab.lb("echo stats --dev eth0_10").failed(1, &["no lb echo is attached to eth0_10", "there is eth0_10"]);
    assert_eq!(lab.lb("echo detach --dev eth0.10").done(), "detached echo eth0_10\n");
    lab.assert_no_trace();

    let named = lab.lb(&format!("echo attach --dev eth0.10 --netns {near} --name n --with-peer")).done();
    assert_eq!(named, "attached echo n: eth0.10 (drv)\n");
    assert_eq!(lab.lb("echo stats --dev eth0.10 --json").json()["name"], "n");
    lab.lb("echo detach --name n").done();
    lab.assert_no_trace();

    // An alternative name is as good as any.
    lab.near.ip(&["link", "property", "add", "dev", "eth0.10", "altname", "an-alternative-name"]);
    let alternative = format!("--dev an-alternative-name --netns {near}");
    let attached = lab.lb(&format!("echo attach {alternative} --mode skb")).done();
    assert_eq!(attached, "attached echo eth0_10: eth0.10 (skb)\n");
    lab.lb(&format!("echo stats {alternative}")).done();
    lab.lb(&format!("echo detach {alternative}")).done();
    lab.lb(&format!("pass attach --dev far0 --netns {far}")).done();
    lab.lb(&format!("pass detach --dev far0 --netns {far}")).done();
    lab.assert_no_trace();
}

#[test]
fn root_interfaces_of_one_name_in_two_namespaces_need_two_names() {
    let lab = Lab::new();
    let other = Namespace::new("lb-o");
    veth((&other, "eth0"), (&other, "x0"));
    lab.attach(Mode::Drv, "");
    let (near, there) = (lab.near.name(), other.name());
    let attach = format!("echo attach --dev eth0 --netns {there} --mode skb");
    lab.lb(&attach).failed(1, &["eth0 is attached already", near, "--name gives this one another name"]);
    lab.lb(&format!("{attach} --name two")).done();

    // Without a namespace nobody knows which is meant.
    for command in ["detach", "stats"] {
        lab.lb(&format!("echo {command} --dev eth0"))
            .failed(1, &["several instances", "eth0", "two", "say which one by --name"]);
    }
    let name = |arguments: &str| lab.lb(&format!("echo stats --json {arguments}")).json()["name"].clone();
    assert_eq!(name(&format!("--dev eth0 --netns {near}")), "eth0");
    assert_eq!(name(&format!("--dev eth0 --netns {there}")), "two");
    assert_eq!(name("--name two"), "two");
    lab.lb(&format!("echo detach --dev eth0 --netns {}", lab.far.name()))
        .failed(1, &["no lb echo is attached to eth0 in the namespace", lab.far.name(), "eth0, two"]);
    let detached = lab.lb(&format!("echo detach --dev eth0 --netns {there}")).done();
    assert_eq!(detached, "detached echo two\n");
    assert_eq!((xdp_programs(&other).len(), xdp_programs(&lab.near).len()), (0, 1));
    // One is left, and there is no doubt.
    lab.lb("echo detach --dev eth0").done();
    lab.assert_no_trace();
}

#[test]
fn root_groups_have_names_of_their_own() {
    let lab = Lab::new();
    lab.pass("--name x").done();
    lab.attach(Mode::Drv, "--name x");
    lab.lb("echo stats --name x").done();
    lab.lb("pass stats --name x").done();
    lab.lb("detach --name x").failed(1, &["no instance named x"]);
    lab.lb("echo detach --name x").done();
    lab.assert_xdp_on(&["far0"]);
    lab.lb("echo detach --name x").failed(1, &["no instance named x"]);
    lab.lb("pass detach --name x").done();
    lab.assert_no_trace();
}

// The end

#[test]
fn root_detach_leaves_no_trace() {
    for mode in Mode::BOTH {
        let lab = Lab::new();
        lab.attach(mode, "--rate 100/s --any");
        lab.ping(Family::V4.host(1), 3, "").all(3);
        let footprint = lab.footprint();
        let interfaces = if mode == Mode::Drv { 2 } else { 1 };
        assert_eq!(footprint.links.len(), interfaces, "{footprint:?}");
        assert!(footprint.maps.len() > 4, "{footprint:?}");
        assert_eq!(lab.lb("echo detach --dev eth0").done(), "detached echo eth0\n");
        lab.assert_no_trace();
        footprint.assert_gone();

        lab.pass(&format!("--mode {mode}")).done();
        let footprint = lab.footprint();
        assert_eq!((footprint.programs.len(), footprint.links.len()), (1, 1), "{footprint:?}");
        assert_eq!(lab.lb("pass detach --dev far0").done(), "detached pass far0\n");
        lab.assert_no_trace();
        footprint.assert_gone();
    }
}

#[test]
fn root_detach_all_removes_every_group() {
    let lab = Lab::new();
    let netns = lab.near.name();
    batch(&lab.near, "link add in type veth peer name in-far\nlink add out type veth peer name out-far\n");
    let balancer = format!("attach --netns {netns} --ingress in --egress out --mode skb --max-sessions 4096");
    lab.lb(&balancer).done();
    lab.attach(Mode::Drv, "");
    lab.lb(&format!("pass attach --netns {netns} --dev in-far --mode skb")).done();
    lab.assert_xdp_on(&["eth0", "far0", "in", "in-far", "out"]);
    let groups = |status: serde_json::Value| -> Vec<String> {
        let all = status.as_array().unwrap();
        all.iter().map(|instance| instance["group"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(groups(lab.lb("status --json").json()), ["echo", "lb", "pass"]);
    let footprint = lab.footprint();

    // A folder of nobody's group is nobody's business.
    let printed = lab.lb("detach --all").done();
    let mut lines: Vec<&str> = printed.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["detached default", "detached echo eth0", "detached pass in-far"]);
    lab.assert_no_trace();
    footprint.assert_gone();
    assert_eq!(lab.lb("status --json").json(), json!([]));
    assert_eq!(lab.lb("detach --all").done(), "nothing is attached\n");
}

#[test]
fn root_an_interface_that_is_gone_is_shown_and_can_be_detached() {
    let lab = Lab::new();
    lab.attach(Mode::Drv, "");
    lab.ping(Family::V4.host(1), 3, "").all(3);
    let footprint = lab.footprint();
    lab.near.ip(&["link", "del", "eth0"]);
    let status = lab.status();
    assert_eq!(status["state"], "degraded");
    let problem = status["problem"].as_str().unwrap();
    for words in ["eth0 is gone", "far0 is gone", "`lb echo detach --name eth0`"] {
        assert!(problem.contains(words), "{problem}");
    }
    assert_eq!(status["interfaces"][0]["program_id"], serde_json::Value::Null);
    let table = lab.lb("status");
    assert!(table.stderr.contains(problem), "{table:?}");
    assert!(table.done().contains("gone"));
    assert_eq!(lab.replies(), 3, "the counts are there still");
    lab.echo("--replace").failed(1, &["no interface eth0"]);

    // Made anew, it is another one.
    lab.link("eth0");
    lab.echo("").failed(1, &["eth0 is attached already", "lb echo detach"]);
    lab.lb("echo detach --dev eth0").done();
    lab.assert_no_trace();
    footprint.assert_gone();
    lab.attach(Mode::Drv, "");
    lab.ping(Family::V4.host(1), 3, "").all(3);
}

#[test]
fn root_a_namespace_that_is_gone_does_not_keep_from_detaching() {
    for (how, all) in [("echo detach --dev eth0", false), ("detach --all", true)] {
        let lab = Lab::new();
        lab.attach(Mode::Drv, "");
        let footprint = lab.footprint();
        run(Command::new("ip").args(["netns", "del", lab.near.name()]));
        let is_degraded = || lab.state() == "degraded";
        assert!(crate::lab::eventually(PATIENCE, is_degraded), "{}", lab.status());
        if !all {
            lab.lb(&format!("echo detach --dev eth0 --netns {}", lab.near.name()))
                .failed(1, &[lab.near.name(), "--netns"]);
        }
        lab.lb(how).done();
        assert!(!lab.root.exists());
        footprint.assert_gone();
    }
}

#[test]
fn root_a_far_end_that_has_moved_loses_its_program_at_detach() {
    let lab = Lab::new();
    lab.attach(Mode::Drv, "");
    let other = Namespace::new("lb-o");
    lab.far.ip(&["link", "set", "far0", "netns", other.name()]);
    assert_eq!(xdp_programs(&other).len(), 1);
    lab.lb("echo detach --dev eth0").done();
    assert_eq!(xdp_programs(&other), []);
    lab.assert_no_trace();
}

// Cut short

/// The arguments of the attaches that are cut short.
fn attach_arguments(lab: &Lab) -> String {
    lab.echo_arguments("--with-peer --quiet")
}

/// How long a command takes here and now.
#[track_caller]
fn time_of(lab: &Lab, arguments: &str) -> Duration {
    let start = Instant::now();
    lab.lb(arguments).done();
    start.elapsed()
}

/// Has the next attach repair what was cut short, or the next detach.
#[track_caller]
fn repair(lab: &Lab, by_attach: bool) {
    let status = lab.lb("status --json").json();
    if by_attach && status[0]["state"] != "attached" {
        lab.lb(&attach_arguments(lab)).done();
        assert_eq!(lab.state(), "attached");
        lab.ping(Family::V4.host(1), 3, "").all(3);
        lab.lb("echo detach --dev eth0").done();
    } else if status[0].is_null() {
        lab.lb("detach --all").done();
    } else {
        lab.lb("echo detach --dev eth0").done();
    }
    lab.assert_no_trace();
}

#[test]
fn root_an_attach_that_is_killed_at_any_moment_is_repaired() {
    let lab = Lab::new();
    let arguments = attach_arguments(&lab);
    let whole = time_of(&lab, &arguments);
    lab.lb("echo detach --dev eth0").done();
    for (moment, after) in moments(whole).enumerate() {
        cut_short(&mut lab.command(&arguments), after);
        let status = lab.lb("status --json").json();
        match status[0]["state"].as_str() {
            None | Some("attached") => {}
            Some("broken") => {
                lab.lb("echo stats --dev eth0").failed(1, &["cut short", "lb echo detach --name eth0"]);
            }
            other => panic!("after {after:?} the state is {other:?}"),
        }
        repair(&lab, moment % 2 == 0);
    }
}

/// How many pins there are of the instance on `eth0`.
fn pins(lab: &Lab) -> usize {
    fs::read_dir(lab.root.join("echo/eth0")).map_or(0, Iterator::count)
}

/// Starts a command, and kills it as soon as something is so.
fn cut_short_when(lab: &Lab, arguments: &str, is_so: impl Fn() -> bool) {
    let mut running = Running::start(&mut lab.command(arguments));
    while !is_so() && running.is_running() {}
    running.kill();
}

/// The moments above come before most pins or after all of them; these are in between.
#[test]
fn root_an_attach_and_a_detach_that_are_killed_between_two_pins_are_repaired() {
    let lab = Lab::new();
    let arguments = attach_arguments(&lab);
    lab.lb(&arguments).done();
    let all = pins(&lab);
    for number in 0..all {
        cut_short_when(&lab, "echo detach --dev eth0", || pins(&lab) < all - number);
        repair(&lab, number % 2 == 0);
        cut_short_when(&lab, &arguments, || pins(&lab) > number);
        repair(&lab, number % 2 == 1);
        lab.lb(&arguments).done();
    }
}

#[test]
fn root_an_attach_of_pass_that_is_killed_at_any_moment_is_repaired() {
    let lab = Lab::new();
    let arguments = format!("pass attach --netns {} --dev far0 --quiet", lab.far.name());
    let whole = time_of(&lab, &arguments);
    lab.lb("pass detach --dev far0").done();
    for (moment, after) in moments(whole).enumerate() {
        cut_short(&mut lab.command(&arguments), after);
        let status = lab.lb("status --json").json();
        if moment % 2 == 0 && status[0]["state"] != "attached" {
            lab.lb(&arguments).done();
            assert_eq!(lab.state(), "attached");
        }
        lab.lb("detach --all").done();
        lab.assert_no_trace();
    }
}

#[test]
fn root_a_replace_that_is_killed_at_any_moment_loses_nothing() {
    let lab = Lab::new();
    lab.attach(Mode::Drv, "");
    let arguments = lab.echo_arguments("--with-peer --replace --quiet");
    let whole = time_of(&lab, &arguments);
    let flood = Flood::start(&lab, Family::V4);
    for after in moments(whole) {
        cut_short(&mut lab.command(&arguments), after);
        assert_eq!(lab.state(), "attached", "after {after:?}");
    }
    lab.lb(&arguments).done();
    let sent = flood.finish_without_loss();
    assert_eq!(lab.replies(), sent);
    assert_eq!(lab.footprint().programs.len(), 2);
    lab.lb("echo detach --dev eth0").done();
    lab.assert_no_trace();
}

#[test]
fn root_a_first_far_end_in_a_replace_that_is_killed_is_no_trouble() {
    let lab = Lab::new();
    let arguments = lab.echo_arguments("--with-peer --replace --quiet");
    lab.echo("--quiet").done();
    let whole = time_of(&lab, &arguments);
    for after in moments(whole).step_by(3) {
        lab.lb("detach --all --quiet").done();
        lab.echo("--quiet").done();
        cut_short(&mut lab.command(&arguments), after);
        // Once more completes it.
        lab.lb(&arguments).done();
        lab.ping(Family::V4.host(1), 3, "").all(3);
        assert_eq!(lab.interfaces().len(), 2, "after {after:?}: {:?}", lab.interfaces());
        lab.lb("echo detach --dev eth0").done();
        lab.assert_no_trace();
    }
}

#[test]
fn root_a_detach_that_is_killed_at_any_moment_is_repaired() {
    let lab = Lab::new();
    for moment in 0..12 {
        lab.lb(&attach_arguments(&lab)).done();
        cut_short(&mut lab.command("echo detach --dev eth0"), Duration::from_micros(moment * 1000));
        repair(&lab, moment % 2 == 0);
    }
}

// Side by side

#[test]
fn root_of_two_attaches_with_one_name_one_wins() {
    let lab = Lab::new();
    let arguments = lab.echo_arguments(peer_option(Mode::Drv));
    let (one, other) = (lab.command(&arguments), lab.command(&arguments));
    let ended = [one, other].map(|mut command| Running::start(&mut command)).map(Running::end);
    let (done, failed): (Vec<Ended>, Vec<Ended>) =
        ended.into_iter().partition(|ended| ended.status.success());
    assert_eq!((done.len(), failed.len()), (1, 1), "{done:?} {failed:?}");
    failed[0].clone().failed(1, &["attached already", "--replace", "lb echo detach", "--name"]);
    assert_eq!(lab.footprint().programs.len(), 2);
    lab.ping(Family::V4.host(1), 3, "").all(3);
    lab.lb("echo detach --dev eth0").done();
    lab.assert_no_trace();
}

#[test]
fn root_attaches_and_detaches_in_the_same_root_do_not_disturb_each_other() {
    let lab = Lab::empty();
    for number in 0..4 {
        veth((&lab.near, &format!("eth{number}")), (&lab.far, &format!("far{number}")));
    }
    thread::scope(|scope| {
        for number in 0..4 {
            let lab = &lab;
            scope.spawn(move || {
                for _ in 0..4 {
                    let netns = lab.near.name();
                    lab.lb(&format!("echo attach --dev eth{number} --netns {netns} --with-peer --any"))
                        .done();
                    lab.lb(&format!("echo stats --dev eth{number}")).done();
                    lab.lb(&format!("echo detach --dev eth{number}")).done();
                }
            });
        }
    });
    lab.assert_no_trace();
}
