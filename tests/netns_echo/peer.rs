//! The far end of a veth: what is said of it, and what `--with-peer` does with it.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::{self, Child, Command};

use lb::kernel::xdp::{self, Link};
use serde_json::{Value, json};

use crate::common::kernel::Occupant;
use crate::common::namespace::{Namespace, batch, run};
use crate::common::packet::{CLIENT_MAC, GATEWAY_MAC, Ping};
use crate::common::tap::Tap;
use crate::lab::{Ended, Family, Lab, Mode, PATIENCE, Pings, SILENCE, eventually, xdp_programs};

/// The command that a warning says is the mend, without the program's name.
#[track_caller]
fn mend(warning: &str) -> String {
    let (_, rest) = warning.split_once("; mend: lb ").unwrap_or_else(|| panic!("no mend in {warning:?}"));
    rest.split_once(", or ").map_or(rest, |(command, _)| command).trim_end().to_owned()
}

/// Attaches where replies are lost. Returns what is said of it.
#[track_caller]
fn attach_in_vain(lab: &Lab, arguments: &str) -> String {
    let ended = lab.lb(arguments);
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    assert!(ended.stderr.starts_with("lb: warning: "), "{ended:?}");
    let warning = ended.stderr.clone();
    ended.done();
    warning
}

/// The name of the program on an interface, as `ip link show` has it.
#[track_caller]
fn program_on(namespace: &Namespace, interface: &str) -> Option<String> {
    let links: Value =
        serde_json::from_str(&namespace.ip(&["-json", "-details", "link", "show", "dev", interface]))
            .unwrap();
    Some(links[0].get("xdp")?["prog"]["name"].as_str()?.to_owned())
}

#[test]
fn root_a_bare_far_end_is_said_with_the_command_that_mends_it() {
    let lab = Lab::new();
    let warning = attach_in_vain(&lab, &lab.echo_arguments(""));
    let far = lab.far.name();
    assert_eq!(
        warning,
        format!(
            "lb: warning: eth0 is a veth whose far end, far0 in namespace {far}, has no XDP program: replies sent back to it are lost; mend: lb pass attach --dev far0 --netns {far}, or attach with --with-peer\n"
        )
    );
    for family in Family::BOTH {
        lab.ping_in_vain(family.host(1), 3, "");
    }
    assert_eq!(lab.replies(), 6, "they were answered, and lost");

    lab.lb(&mend(&warning)).done();
    for family in Family::BOTH {
        lab.ping(family.host(1), 10, "").all(10);
    }
    assert_eq!(lab.replies(), 26);
    // Now there is nothing to say, and the other program is its own instance.
    let ended = lab.echo("--replace");
    assert_eq!(ended.stderr, "");
    ended.done();
    lab.lb("echo detach --name eth0").done();
    lab.assert_xdp_on(&["far0"]);
    lab.lb("pass detach --dev far0").done();
    lab.assert_no_trace();
}

#[test]
fn root_generic_mode_needs_nothing_at_the_far_end() {
    let lab = Lab::new();
    lab.attach(Mode::Skb, "");
    lab.ping(Family::V4.host(1), 10, "").all(10);
    lab.assert_xdp_on(&["eth0"]);
    lab.lb("echo detach --dev eth0").done();
    lab.assert_no_trace();

    lab.echo("--mode skb --with-peer").failed(2, &["--with-peer", "skb", "leave it out"]);
    lab.echo("--mode hw --with-peer").failed(2, &["--with-peer", "hw", "leave it out"]);
    lab.assert_no_trace();
}

#[test]
fn root_the_far_end_is_given_its_program_and_loses_it_again() {
    let lab = Lab::new();
    lab.attach(Mode::Drv, "");
    for family in Family::BOTH {
        lab.ping(family.host(1), 10, "").all(10);
    }
    let interfaces = lab.status()["interfaces"].clone();
    let (near, far) = (xdp_programs(&lab.near), xdp_programs(&lab.far));
    assert_eq!((near.len(), far.len()), (1, 1));
    assert_eq!(
        interfaces,
        json!([
            { "dev": "eth0", "role": "dev", "mode": "drv", "program_id": near[0].1 },
            { "dev": "far0", "role": "peer", "mode": "drv", "program_id": far[0].1 },
        ])
    );
    assert_eq!(program_on(&lab.far, "far0").as_deref(), Some("lb_pass"));
    // It is of the responder's instance, not one of its own.
    lab.lb("pass detach --dev far0").failed(1, &["no lb pass is attached to far0"]);
    lab.lb("pass stats --dev far0").failed(1, &["no lb pass is attached to far0"]);
    lab.pass("").failed(1, &["far0", &format!("XDP program {} is there already", far[0].1)]);

    let footprint = lab.footprint();
    assert_eq!((footprint.programs.len(), footprint.links.len()), (2, 2), "{footprint:?}");
    lab.lb("echo detach --dev eth0").done();
    lab.assert_no_trace();
    footprint.assert_gone();
}

#[test]
fn root_a_far_end_in_the_same_namespace_is_found() {
    let lab = Lab::empty();
    let [near, far] = [GATEWAY_MAC, CLIENT_MAC].map(macaddr::MacAddr6::from);
    let lines = format!(
        "link add eth0 address {near} type veth peer name far0 address {far}\naddress add 10.0.0.1/24 dev eth0\nlink set eth0 up\nlink set far0 up\n"
    );
    batch(&lab.near, &lines);
    let tap = Tap::new(&lab.near, "far0");
    let request = Ping::request(Family::V4.host(2), Family::V4.host(1));
    let (frame, reply) = (request.frame(), request.reply(64).frame());
    let is_answered = || {
        tap.send(&frame);
        tap.wait_for("the reply", |frame| frame == reply);
    };

    let netns = lab.near.name();
    let warning = attach_in_vain(&lab, &lab.echo_arguments(""));
    assert_eq!(mend(&warning), format!("pass attach --dev far0 --netns {netns}"));
    lab.lb(&mend(&warning)).done();
    is_answered();
    lab.lb("detach --all").done();
    lab.assert_no_trace();

    // Who is there already needs no way there.
    let inside = ["nsenter", &format!("--net=/run/netns/{netns}"), "--"];
    let ended = Ended::of(&mut lab.command_by(&inside, "echo attach --dev eth0"));
    assert_eq!(mend(&ended.stderr), "pass attach --dev far0");
    ended.done();
    Ended::of(&mut lab.command_by(&inside, &mend(&warning))).done();
    is_answered();
    lab.lb("detach --all").done();

    lab.attach(Mode::Drv, "");
    is_answered();
    lab.assert_xdp_on(&["eth0", "far0"]);
    lab.lb("echo detach --dev eth0").done();
    lab.assert_no_trace();
}

#[test]
fn root_a_far_end_where_the_user_is_needs_no_way_there() {
    let lab = Lab::new();
    let inside = ["nsenter", &format!("--net=/run/netns/{}", lab.far.name()), "--"];
    let ended = Ended::of(&mut lab.command_by(&inside, &lab.echo_arguments("")));
    assert_eq!(mend(&ended.stderr), "pass attach --dev far0");
    let command = mend(&ended.stderr);
    ended.done();
    Ended::of(&mut lab.command_by(&inside, &command)).done();
    lab.ping(Family::V4.host(1), 3, "").all(3);
}

/// A process in a network namespace that has no name; it and the namespace go when this is dropped.
struct Unnamed(Child);

impl Unnamed {
    #[track_caller]
    fn new() -> Self {
        let process =
            Command::new("unshare").args(["--net", "sleep", "600"]).spawn().expect("unshare is there");
        let unnamed = Self(process);
        let of = |id: &str| std::fs::read_link(format!("/proc/{id}/ns/net")).ok();
        let is_apart = || of(&unnamed.0.id().to_string()) != of("self") && unnamed.is_asleep();
        assert!(eventually(PATIENCE, is_apart), "the process has no namespace of its own");
        unnamed
    }

    /// Whether it has come to its last program.
    fn is_asleep(&self) -> bool {
        std::fs::read_to_string(format!("/proc/{}/comm", self.0.id())).is_ok_and(|name| name == "sleep\n")
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Moves `far0` into the namespace at `path`, and gives it its address there.
#[track_caller]
fn move_far_end(lab: &Lab, unnamed: &Unnamed) {
    lab.far.ip(&["link", "set", "far0", "netns", &unnamed.0.id().to_string()]);
    let there = "ip link set lo up && ip address add 10.0.0.2/24 dev far0 && ip link set far0 up";
    run(&mut inside(&unnamed.path(), &["sh", "-c", there]));
}

/// A command inside the namespace at `path`.
fn inside(path: &str, words: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={path}")).arg("--").args(words);
    command
}

#[track_caller]
fn ping_from(path: &str, count: u64) -> Pings {
    let (count, patience) = (count.to_string(), SILENCE.as_secs_f64().to_string());
    let ping = ["ping", "-n", "-q", "-c", &count, "-i", "0.01", "-W", &patience, "10.0.0.1"];
    Pings::of(&Ended::of(&mut inside(path, &ping)).stdout)
}

#[test]
fn root_a_far_end_in_a_namespace_without_a_name_is_found_by_its_process() {
    let (lab, unnamed) = (Lab::new(), Unnamed::new());
    move_far_end(&lab, &unnamed);
    let path = unnamed.path();
    let warning = attach_in_vain(&lab, &lab.echo_arguments(""));
    assert_eq!(mend(&warning), format!("pass attach --dev far0 --netns {path}"));
    assert!(
        warning.contains(&format!("in the namespace of process {} (sleep)", unnamed.0.id())),
        "{warning}"
    );
    ping_from(&path, 3).none(3);
    lab.lb(&mend(&warning)).done();
    ping_from(&path, 3).all(3);
    lab.lb("detach --all").done();

    lab.attach(Mode::Drv, "");
    ping_from(&path, 3).all(3);
    let programs = || run(&mut inside(&path, &["ip", "link", "show", "far0"]));
    assert!(programs().contains("prog/xdp"), "{}", programs());
    lab.lb("echo detach --dev eth0").done();
    assert!(!programs().contains("prog/xdp"), "{}", programs());
    lab.assert_no_trace();
}

#[test]
fn root_a_far_end_that_is_out_of_reach_is_said_and_is_no_error_unless_it_is_asked_for() {
    let (lab, mut unnamed) = (Lab::new(), Unnamed::new());
    move_far_end(&lab, &unnamed);
    // Nothing but a descriptor of this process keeps the namespace: it has no name, and no process is in it.
    let namespace = File::open(unnamed.path()).unwrap();
    let path = format!("/proc/{}/fd/{}", process::id(), namespace.as_raw_fd());
    unnamed.kill();

    lab.echo("--with-peer").failed(1, &["--with-peer", "far end of eth0", "out of reach", "lb pass attach"]);
    lab.assert_no_trace();
    let warning = attach_in_vain(&lab, &lab.echo_arguments(""));
    for words in ["eth0", "out of sight", "; mend: lb pass attach --dev NAME"] {
        assert!(warning.contains(words), "{warning}");
    }
    ping_from(&path, 3).none(3);
    // Whoever knows a way there can mend it.
    lab.lb(&format!("pass attach --dev far0 --netns {path}")).done();
    ping_from(&path, 3).all(3);
    lab.lb("detach --all").done();
    lab.assert_no_trace();
}

#[test]
fn root_a_far_end_that_goes_out_of_sight_keeps_its_program() {
    let (lab, mut unnamed) = (Lab::new(), Unnamed::new());
    move_far_end(&lab, &unnamed);
    lab.attach(Mode::Drv, "");
    let namespace = File::open(unnamed.path()).unwrap();
    let path = format!("/proc/{}/fd/{}", process::id(), namespace.as_raw_fd());
    unnamed.kill();
    for arguments in ["--replace", "--replace --with-peer"] {
        let ended = lab.echo(arguments);
        assert_eq!(ended.stderr, "", "there is a program");
        ended.done();
        ping_from(&path, 3).all(3);
    }
    lab.lb("echo detach --dev eth0").done();
    let link = run(&mut inside(&path, &["ip", "link", "show", "far0"]));
    assert!(!link.contains("prog/xdp"), "{link}");
    lab.assert_no_trace();
}

#[test]
fn root_a_program_of_somebody_else_at_the_far_end_is_left_alone() {
    let lab = Lab::new();
    let occupant = Occupant::by_link(&lab.far, "far0", xdp::Mode::Drv);
    let there = vec![("far0".to_owned(), u64::from(occupant.program))];
    for arguments in ["", "--with-peer", "--with-peer --replace"] {
        let ended = lab.echo(arguments);
        assert_eq!(ended.stderr, "", "a program in native mode is all that a reply needs");
        ended.done();
        assert_eq!(xdp_programs(&lab.far), there);
        assert_eq!(lab.interfaces(), [("eth0".to_owned(), "dev".to_owned())]);
        if arguments != "--with-peer" {
            lab.lb("echo detach --dev eth0").done();
            assert_eq!(xdp_programs(&lab.far), there);
        }
    }
    drop(occupant);
    lab.assert_no_trace();

    // `lb pass` of somebody else is somebody else's too.
    lab.pass("").done();
    lab.attach(Mode::Drv, "");
    lab.ping(Family::V4.host(1), 3, "").all(3);
    lab.lb("echo detach --dev eth0").done();
    lab.assert_xdp_on(&["far0"]);
    assert_eq!(lab.state(), "attached");
    lab.lb("pass detach --dev far0").done();
    lab.assert_no_trace();
}

#[test]
fn root_a_generic_program_at_the_far_end_is_no_help_and_is_in_the_way() {
    let lab = Lab::new();
    let occupant = Occupant::by_link(&lab.far, "far0", xdp::Mode::Skb);
    let there = format!("XDP program {} is there already", occupant.program);
    lab.echo("--with-peer").failed(1, &["far0", &there]);
    lab.assert_xdp_on(&["far0"]);
    assert!(!lab.root.exists(), "nothing is pinned");

    assert!(attach_in_vain(&lab, &lab.echo_arguments("")).contains("has no XDP program"));
    lab.echo("--with-peer --replace").failed(1, &["far0", &there]);
    assert_eq!((lab.state().as_str(), lab.interfaces().len()), ("attached", 1));
    lab.lb("echo detach --dev eth0").done();
    lab.assert_xdp_on(&["far0"]);
    drop(occupant);
    lab.assert_no_trace();
}

#[test]
fn root_what_is_no_veth_has_no_far_end() {
    let lab = Lab::empty();
    lab.near.ip(&["tuntap", "add", "eth0", "mode", "tap"]);
    lab.near.ip(&["address", "add", "10.0.0.1/24", "dev", "eth0"]);
    lab.near.ip(&["link", "set", "eth0", "up"]);
    lab.echo("--with-peer").failed(1, &["--with-peer", "eth0 is no veth", "leave --with-peer out"]);
    lab.assert_no_trace();
    let ended = lab.echo("");
    assert_eq!(ended.stderr, "");
    ended.done();
    lab.echo("--replace --with-peer").failed(1, &["--with-peer", "eth0 is no veth"]);
    assert_eq!(lab.state(), "attached", "what was refused has changed nothing");
    lab.lb("echo detach --dev eth0").done();
    lab.assert_no_trace();
}

#[test]
fn root_an_upgrade_gives_a_far_end_its_program() {
    let lab = Lab::new();
    attach_in_vain(&lab, &lab.echo_arguments(""));
    lab.attach(Mode::Drv, "--replace");
    lab.ping(Family::V4.host(1), 3, "").all(3);
    // And gives it again where somebody has taken it off.
    let role = |interface: &(String, String)| interface.1.clone();
    let peer = lab.root.join("echo/eth0");
    let pins = crate::common::folder::listing(&peer);
    let pin = pins.iter().find(|path| path.to_string_lossy().contains("link-peer")).unwrap();
    Link::open(pin).unwrap().detach().unwrap();
    assert_eq!(lab.state(), "degraded");
    lab.ping_in_vain(Family::V4.host(1), 3, "");
    assert!(attach_in_vain(&lab, &lab.echo_arguments("--replace")).contains("has no XDP program"));
    lab.attach(Mode::Drv, "--replace");
    lab.ping(Family::V4.host(1), 3, "").all(3);
    assert_eq!(lab.state(), "attached");
    assert_eq!(lab.interfaces().iter().map(role).collect::<Vec<_>>(), ["dev", "peer"]);
    // An upgrade that does not ask for it keeps it.
    let ended = lab.echo("--replace");
    assert_eq!(ended.stderr, "");
    ended.done();
    lab.ping(Family::V4.host(1), 3, "").all(3);
    lab.lb("echo detach --dev eth0").done();
    lab.assert_no_trace();
}

#[test]
fn root_a_far_end_that_is_down_is_given_its_program() {
    let lab = Lab::new();
    lab.far.ip(&["link", "set", "far0", "down"]);
    lab.attach(Mode::Drv, "");
    lab.far.ip(&["link", "set", "far0", "up"]);
    lab.ping(Family::V4.host(1), 3, "").all(3);
}
