//! `--watch-addresses`: what is answered follows the interface, until somebody ends it.

use std::net::IpAddr;
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::command::assert_keys;
use crate::common::packet::{CLIENT_MAC, GATEWAY_MAC, Ping};
use crate::common::tap::Tap;
use crate::lab::{Ended, Family, Lab, Mode, PATIENCE, Running, eventually, peer_option};

/// Starts a responder that follows its interface, and waits until it is attached and has said what it answers for. Returns that
/// line too.
#[track_caller]
fn watch(lab: &Lab, mode: Mode, arguments: &str) -> (Running, String) {
    let arguments =
        lab.echo_arguments(&format!("--watch-addresses --mode {mode} {} {arguments}", peer_option(mode)));
    let running = Running::start(&mut lab.command(&arguments));
    assert_eq!(running.line(), format!("attached echo eth0: eth0 ({mode})"));
    let line = running.line();
    assert!(line.starts_with("answering for "), "{line}");
    (running, line)
}

/// Ends it as Ctrl-C does.
#[track_caller]
fn interrupt(lab: &Lab, running: Running) {
    running.signal(Signal::SIGINT);
    let ended = running.end();
    assert_eq!(ended.stderr, "");
    assert!(ended.clone().done().ends_with("detached echo eth0\n"), "{ended:?}");
    lab.assert_no_trace();
}

/// Adds an address to `eth0`, or removes it.
#[track_caller]
fn address(lab: &Lab, action: &str, address: IpAddr) {
    let prefix = if address.is_ipv6() { 64 } else { 24 };
    lab.near.ip(&["address", action, &format!("{address}/{prefix}"), "dev", "eth0"]);
}

/// Whether a ping is answered by the responder, as its counter says.
#[track_caller]
fn is_replied(lab: &Lab, to: IpAddr) -> bool {
    let before = lab.replies();
    let options = ["-c", "1", "-W", "0.1"];
    let mut ping = lab.far.command("ping");
    Ended::of(ping.args(options).arg(to.to_string()));
    lab.replies() > before
}

fn addresses_are_followed(mode: Mode) {
    let lab = Lab::new();
    let (running, line) = watch(&lab, mode, "");
    for family in Family::BOTH {
        assert!(line.contains(&family.host(1).to_string()), "{line}");
    }
    for family in Family::BOTH {
        let new = family.host(5);
        // So that pings are sent, whoever has the address.
        lab.neighbour(new, GATEWAY_MAC);
        lab.ping_in_vain(new, 2, "");
        assert!(!is_replied(&lab, new));

        address(&lab, "add", new);
        let line = running.line();
        assert!(line.contains(&format!("{new}, ")) && line.contains(&family.host(1).to_string()), "{line}");
        let before = lab.replies();
        lab.ping(new, 10, "").all(10);
        assert_eq!(lab.replies(), before + 10);

        address(&lab, "del", new);
        let line = running.line();
        assert!(!line.contains(&new.to_string()), "{line}");
        let others = lab.verdict("other_address");
        lab.ping_in_vain(new, 2, "");
        assert_eq!((lab.replies(), lab.verdict("other_address")), (before + 10, others + 2));
        lab.ping(family.host(1), 3, "").all(3);
    }
    interrupt(&lab, running);
}

#[test]
fn root_addresses_that_come_and_go_are_followed_in_drv_mode() {
    addresses_are_followed(Mode::Drv);
}

#[test]
fn root_addresses_that_come_and_go_are_followed_in_skb_mode() {
    addresses_are_followed(Mode::Skb);
}

#[test]
fn root_a_new_mac_is_followed() {
    const NEW: [u8; 6] = [0x02, 0, 0, 0, 0, 0x77];
    let lab = Lab::new();
    let (running, line) = watch(&lab, Mode::Drv, "");
    assert!(line.ends_with(" at 02:00:00:00:00:fe"), "{line}");
    let tap = Tap::new(&lab.far, "far0");
    let request = |to| Ping { to, ..Ping::request(Family::V4.host(2), Family::V4.host(1)) };
    let answered = |request: &Ping| {
        let reply = request.reply(64).frame();
        tap.send(&request.frame());
        tap.wait_for("the reply", |frame| frame == reply);
    };
    answered(&request(GATEWAY_MAC));

    lab.near.ip(&["link", "set", "eth0", "address", &macaddr::MacAddr6::from(NEW).to_string()]);
    let line = running.line();
    assert!(line.ends_with(" at 02:00:00:00:00:77"), "{line}");
    answered(&request(NEW));
    tap.send(&request(GATEWAY_MAC).frame());
    assert!(eventually(PATIENCE, || lab.verdict("other_mac") == 1));
    assert_eq!(lab.replies(), 2);
    interrupt(&lab, running);
}

#[test]
fn root_without_a_watch_an_upgrade_brings_the_view_up_to_date() {
    let lab = Lab::new();
    lab.attach(Mode::Drv, "");
    for family in Family::BOTH {
        let (old, new) = (family.host(1), family.host(5));
        lab.neighbour(old, GATEWAY_MAC);
        address(&lab, "add", new);
        // The stack answers meanwhile.
        assert!(!is_replied(&lab, new));
        lab.ping(new, 3, "").all(3);
        lab.attach(Mode::Drv, "--replace");
        assert!(is_replied(&lab, new));

        address(&lab, "del", old);
        assert!(is_replied(&lab, old));
        lab.attach(Mode::Drv, "--replace");
        assert!(!is_replied(&lab, old));
        lab.ping_in_vain(old, 2, "");
    }
}

#[test]
fn root_an_address_that_may_be_anothers_is_not_answered_for() {
    let lab = Lab::new();
    let [v4, v6] = Family::BOTH.map(|family| family.host(5));
    for scope in ["all", "eth0"] {
        lab.near.sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "1");
    }
    // The other end has it.
    lab.far.ip(&["address", "add", &format!("{v6}/64"), "dev", "far0", "nodad"]);
    let (running, _) = watch(&lab, Mode::Drv, "");
    address(&lab, "add", v6);
    let failed = || lab.near.ip(&["address", "show", "dev", "eth0"]).contains("dadfailed");
    assert!(eventually(PATIENCE, failed), "the duplicate is not found");
    address(&lab, "add", v4);
    let line = running.line();
    assert!(line.contains(&v4.to_string()) && !line.contains(&v6.to_string()), "{line}");
    let ended = lab.echo("--replace");
    assert!(ended.stderr.contains(&format!("{v6} is not eth0's")), "{ended:?}");
    assert!(ended.stderr.contains("--watch-addresses"), "{ended:?}");
    ended.done();

    // One that nobody else has is answered for as soon as that is known.
    let own = Family::V6.host(6);
    address(&lab, "add", own);
    assert!(running.line().contains(&own.to_string()));
    lab.ping(own, 3, "").all(3);
    interrupt(&lab, running);
}

#[test]
fn root_the_watch_prints_json() {
    let lab = Lab::new();
    let arguments = lab.echo_arguments("--watch-addresses --with-peer --json");
    let running = Running::start(&mut lab.command(&arguments));
    let document = || serde_json::from_str::<Value>(&running.line()).unwrap();
    let attached = document();
    assert_keys(&attached, &["group", "name", "replaced", "warnings"]);
    let view = document();
    assert_keys(&view, &["addresses", "mac"]);
    assert_eq!(view["mac"], "02:00:00:00:00:fe");
    let addresses = view["addresses"].as_array().unwrap();
    for family in Family::BOTH {
        assert!(addresses.contains(&family.host(1).to_string().into()), "{view}");
    }
    address(&lab, "add", Family::V4.host(5));
    assert!(document()["addresses"].as_array().unwrap().contains(&Family::V4.host(5).to_string().into()));
    running.signal(Signal::SIGINT);
    assert_eq!(running.end().json(), serde_json::json!(["eth0"]));
    lab.assert_no_trace();
}

// Its end

#[test]
fn root_a_signal_detaches_and_is_no_error() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let lab = Lab::new();
        let (running, _) = watch(&lab, Mode::Drv, "");
        let footprint = lab.footprint();
        running.signal(signal);
        let ended = running.end();
        assert!(ended.clone().done().ends_with("detached echo eth0\n"), "{ended:?}");
        lab.assert_no_trace();
        footprint.assert_gone();
    }
}

#[test]
fn root_a_watch_without_addresses_says_so_and_waits_for_one() {
    let lab = Lab::new();
    lab.near.ip(&["address", "flush", "dev", "eth0"]);
    let arguments = lab.echo_arguments("--watch-addresses --with-peer");
    let running = Running::start(&mut lab.command(&arguments));
    running.line();
    assert_eq!(running.line(), "answering for no address at 02:00:00:00:00:fe");
    address(&lab, "add", Family::V4.host(1));
    running.line();
    lab.ping(Family::V4.host(1), 3, "").all(3);
    assert_eq!(lab.replies(), 3);
    running.signal(Signal::SIGINT);
    let ended = running.end();
    assert!(ended.stderr.contains("eth0 has no address: nothing is answered; mend: "), "{ended:?}");
    ended.done();
    lab.assert_no_trace();
}

#[test]
fn root_a_detach_by_somebody_else_ends_the_watch() {
    let lab = Lab::new();
    let (running, _) = watch(&lab, Mode::Drv, "");
    lab.lb("echo detach --dev eth0").done();
    let ended = running.end();
    assert!(ended.clone().done().contains("detached by another command"), "{ended:?}");
    lab.assert_no_trace();

    // Also where another instance has its name by then, which stays.
    let (running, _) = watch(&lab, Mode::Drv, "");
    running.signal(Signal::SIGSTOP);
    lab.lb("echo detach --dev eth0").done();
    lab.attach(Mode::Drv, "");
    running.signal(Signal::SIGCONT);
    let ended = running.end();
    assert!(ended.clone().done().contains("detached by another command"), "{ended:?}");
    lab.ping(Family::V4.host(1), 3, "").all(3);
    lab.lb("echo detach --dev eth0").done();
    lab.assert_no_trace();
}

/// That a watch ends with an error because the interface is gone, and leaves nothing.
#[track_caller]
fn assert_gone(lab: &Lab, running: Running) {
    let ended = running.end();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert_eq!(ended.stderr.lines().count(), 1, "an error is one line: {ended:?}");
    assert!(ended.stderr.starts_with("lb: ") && ended.stderr.contains("eth0"), "{ended:?}");
    assert!(ended.stdout.ends_with("detached echo eth0\n"), "{ended:?}");
    lab.assert_no_trace();
}

#[test]
fn root_an_interface_that_is_deleted_ends_the_watch_with_an_error() {
    for mode in Mode::BOTH {
        let lab = Lab::new();
        let (running, _) = watch(&lab, mode, "");
        lab.near.ip(&["link", "del", "eth0"]);
        assert_gone(&lab, running);
    }
}

#[test]
fn root_an_interface_that_is_made_anew_is_another() {
    let lab = Lab::new();
    let (running, _) = watch(&lab, Mode::Drv, "");
    // It gets no look at the time in between.
    running.signal(Signal::SIGSTOP);
    lab.near.ip(&["link", "del", "eth0"]);
    lab.link("eth0");
    running.signal(Signal::SIGCONT);
    assert_gone(&lab, running);
}

#[test]
fn root_a_program_that_somebody_takes_off_ends_the_watch_with_an_error() {
    let lab = Lab::new();
    let (running, _) = watch(&lab, Mode::Skb, "");
    let pins = crate::common::folder::listing(&lab.root);
    let is_link = |path: &&std::path::PathBuf| path.to_string_lossy().contains("link-dev");
    let pin: &Path = pins.iter().find(is_link).unwrap();
    lb::kernel::xdp::Link::open(pin).unwrap().detach().unwrap();
    // A change makes it look.
    address(&lab, "add", Family::V4.host(5));
    assert_gone(&lab, running);
}

#[test]
fn root_an_interface_that_is_renamed_is_the_same() {
    let lab = Lab::new();
    let (running, _) = watch(&lab, Mode::Drv, "");
    // Older kernels rename only what is down, and what is down loses its IPv6 addresses.
    lab.near.ip(&["link", "set", "eth0", "down"]);
    lab.near.ip(&["link", "set", "eth0", "name", "wan0"]);
    lab.near.ip(&["link", "set", "wan0", "up"]);
    let new = Family::V4.host(5);
    lab.near.ip(&["address", "add", &format!("{new}/24"), "dev", "wan0"]);
    while !running.line().contains(&new.to_string()) {}
    let before = lab.replies();
    lab.ping(new, 3, "").all(3);
    assert_eq!(lab.replies(), before + 3);
    interrupt(&lab, running);
}

#[test]
fn root_an_upgrade_by_somebody_else_is_kept() {
    let lab = Lab::new();
    let (running, _) = watch(&lab, Mode::Drv, "");
    let [given, new] = [77, 5].map(|number| Family::V4.host(number));
    lab.neighbour(given, GATEWAY_MAC);
    lab.attach(Mode::Drv, &format!("--replace --address {given}"));
    assert!(is_replied(&lab, given));
    address(&lab, "add", new);
    while !running.line().contains(&new.to_string()) {}
    for address in [given, new, Family::V4.host(1)] {
        lab.ping(address, 3, "").all(3);
        assert!(is_replied(&lab, address));
    }
    interrupt(&lab, running);
}

#[test]
fn root_an_upgrade_may_begin_to_watch() {
    let lab = Lab::new();
    lab.attach(Mode::Drv, "");
    lab.ping(Family::V4.host(1), 3, "").all(3);
    let arguments = lab.echo_arguments("--watch-addresses --replace");
    let running = Running::start(&mut lab.command(&arguments));
    assert_eq!(running.line(), "replaced echo eth0: eth0 (drv)");
    running.line();
    address(&lab, "add", Family::V4.host(5));
    running.line();
    lab.ping(Family::V4.host(5), 3, "").all(3);
    assert_eq!(lab.replies(), 6);
    interrupt(&lab, running);
}

#[test]
fn root_a_watch_where_nothing_can_be_attached_fails_at_once() {
    let lab = Lab::new();
    lab.attach(Mode::Drv, "");
    lab.echo("--watch-addresses").failed(1, &["eth0 is attached already"]);
    assert_eq!(lab.state(), "attached");
    lab.lb(&lab.echo_arguments("--watch-addresses").replace("eth0", "eth9"))
        .failed(1, &["no interface eth9"]);
}

#[test]
fn root_a_watch_that_is_killed_leaves_a_responder_that_works() {
    let lab = Lab::new();
    let (mut running, _) = watch(&lab, Mode::Drv, "");
    running.kill();
    lab.ping(Family::V4.host(1), 10, "").all(10);
    assert_eq!((lab.state().as_str(), lab.replies()), ("attached", 10));
    lab.lb("echo detach --dev eth0").done();
    lab.assert_no_trace();
}

#[test]
fn root_what_happens_at_the_far_end_is_no_concern_of_the_watch() {
    let lab = Lab::new();
    let (mut running, _) = watch(&lab, Mode::Drv, "");
    lab.far.ip(&["link", "set", "far0", "address", &macaddr::MacAddr6::from(CLIENT_MAC).to_string()]);
    lab.far.ip(&["link", "set", "far0", "down"]);
    lab.far.ip(&["link", "set", "far0", "up"]);
    lab.ping(Family::V4.host(1), 3, "").all(3);
    assert!(running.is_running());
    interrupt(&lab, running);
}
