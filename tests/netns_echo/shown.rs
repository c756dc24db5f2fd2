//! What is printed: statistics as XDP users know them, status, and what was done.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::common::command::assert_keys;
use crate::lab::{Family, Lab, Mode, Running};

/// The verdicts of the responder, and the actions that every program may end in.
const VERDICTS: [&str; 10] = [
    "reply",
    "rate_limited",
    "not_echo",
    "other_mac",
    "other_address",
    "bad_source",
    "fragment",
    "options",
    "bad_checksum",
    "malformed",
];
const ACTIONS: [&str; 5] = ["xdp_aborted", "xdp_drop", "xdp_pass", "xdp_tx", "xdp_redirect"];

/// The rows of a table as words: its header, and a row for each line up to the next empty one.
fn rows<'a>(printed: &'a str, title: &str) -> Vec<Vec<&'a str>> {
    let lines = printed.lines().skip_while(|line| !line.starts_with(title));
    lines.take_while(|line| !line.is_empty()).map(|line| line.split_whitespace().collect()).collect()
}

fn number(text: &str) -> f64 {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no number"))
}

// Statistics

#[test]
fn root_stats_are_shown_for_each_verdict_and_each_action() {
    let lab = Lab::new();
    lab.attach(Mode::Drv, "");
    lab.ping(Family::V4.host(1), 20, "").all(20);
    let stats = lab.stats();
    assert_keys(&stats, &["actions", "group", "name", "verdicts"]);
    assert_eq!((&stats["name"], &stats["group"]), (&"eth0".into(), &"echo".into()));
    assert_keys(&stats["verdicts"], &VERDICTS);
    assert_keys(&stats["actions"], &ACTIONS);
    assert_keys(&stats["verdicts"]["reply"], &["bytes", "packets"]);
    // Ethernet's header of 14 bytes, IP's of 20, ICMP's of 8, and ping's usual 56.
    assert_eq!(stats["verdicts"]["reply"], json!({ "packets": 20, "bytes": 20 * 98 }));
    assert_eq!(stats["actions"]["xdp_tx"], stats["verdicts"]["reply"]);

    let printed = lab.lb("echo stats --dev eth0").done();
    let (verdicts, actions) = (rows(&printed, "VERDICT"), rows(&printed, "ACTION"));
    assert_eq!(verdicts[0], ["VERDICT", "PACKETS", "KBYTES"]);
    assert_eq!(actions[0], ["ACTION", "PACKETS", "KBYTES"]);
    let names = |rows: &[Vec<&str>]| rows[1..].iter().map(|row| row[0].to_lowercase()).collect::<Vec<_>>();
    assert_eq!(names(&verdicts), VERDICTS);
    assert_eq!(names(&actions), ACTIONS);
    assert_eq!(verdicts[1][..3], ["reply", "20", "2.0"]);
    assert_eq!(actions[4][..3], ["XDP_TX", "20", "2.0"]);
    assert!(verdicts[1..].iter().chain(&actions[1..]).all(|row| row.len() > 3), "each says what it means");
}

#[test]
fn root_stats_come_again_and_again_with_rates() {
    let lab = Lab::new();
    lab.attach(Mode::Drv, "");
    let running = Running::start(&mut lab.command("echo stats --dev eth0 --interval 250ms --count 2"));
    let ping = lab.ping(Family::V4.host(1), 50, "");
    ping.all(50);
    let printed = running.end().done();
    let tables: Vec<&str> = printed.split("VERDICT").collect();
    assert_eq!(tables.len(), 3, "two readings: {printed}");
    for title in ["VERDICT", "ACTION"] {
        let rows = rows(&printed, title);
        assert_eq!(rows[0], [title, "PACKETS", "PPS", "KBYTES", "MBIT/S", "PERIOD"]);
        for row in &rows[1..] {
            let [packets, rate, kilobytes, megabits, period] =
                [1, 2, 3, 4, 5].map(|column| number(row[column]));
            // Other readings may come late, never early.
            assert!(period >= 0.249, "{row:?}");
            // Nothing had been counted before the first reading but what came between attach and it.
            assert!(rate <= (packets / period).ceil(), "{row:?}");
            assert!(megabits <= kilobytes * 8.0 / 1e3 / period + 0.01, "{row:?}");
        }
    }
}

#[test]
fn root_stats_in_json_have_rates_with_an_interval() {
    let lab = Lab::new();
    lab.attach(Mode::Drv, "");
    let running = Running::start(&mut lab.command("echo stats --dev eth0 --interval 100ms --json"));
    let document = || serde_json::from_str::<Value>(&running.line()).unwrap();
    assert_eq!(document()["verdicts"]["reply"]["packets"], 0);
    lab.ping(Family::V4.host(1), 20, "").all(20);
    // Rates over their periods come to what was counted.
    let [mut packets, mut bytes] = [0.0; 2];
    loop {
        let stats = document();
        assert_keys(&stats, &["actions", "group", "name", "period_s", "verdicts"]);
        let reply = &stats["verdicts"]["reply"];
        assert_keys(reply, &["bytes", "bytes_per_s", "packets", "packets_per_s"]);
        assert_eq!(&stats["actions"]["xdp_tx"], reply);
        let period = stats["period_s"].as_f64().unwrap();
        assert!(period > 0.01, "{stats}");
        packets += reply["packets_per_s"].as_f64().unwrap() * period;
        bytes += reply["bytes_per_s"].as_f64().unwrap() * period;
        if reply["packets"] == 20 {
            break;
        }
    }
    assert!(
        (packets - 20.0).abs() < 0.5 && (bytes - 20.0 * 98.0).abs() < 5.0,
        "{packets} packets, {bytes} bytes"
    );
    drop(running);

    let start = Instant::now();
    assert_eq!(lab.lb("echo stats --dev eth0 --interval 100ms --count 3 --json").documents().len(), 3);
    assert!(start.elapsed() >= Duration::from_millis(300));
}

#[test]
fn root_stats_of_pass_are_the_same_view() {
    let lab = Lab::new();
    lab.pass("").done();
    lab.lb(&lab.echo_arguments("--quiet")).done();
    lab.ping(Family::V4.host(1), 20, "").all(20);
    let stats = lab.lb("pass stats --dev far0 --json").json();
    assert_keys(&stats, &["actions", "group", "name", "verdicts"]);
    assert_eq!((&stats["name"], &stats["group"]), (&"far0".into(), &"pass".into()));
    assert_keys(&stats["verdicts"], &["passed"]);
    assert_keys(&stats["actions"], &ACTIONS);
    assert_eq!(stats["actions"]["xdp_pass"], stats["verdicts"]["passed"]);
    assert!(stats["verdicts"]["passed"]["packets"].as_u64().unwrap() >= 20, "{stats}");
    let printed = lab.lb("pass stats --name far0 --interval 20ms --count 1").done();
    assert_eq!(rows(&printed, "VERDICT")[0], ["VERDICT", "PACKETS", "PPS", "KBYTES", "MBIT/S", "PERIOD"]);
    assert_eq!(rows(&printed, "VERDICT").len(), 2);
    assert_eq!(rows(&printed, "ACTION").len(), 6);
}

#[test]
fn root_stats_end_when_the_instance_is_detached() {
    let lab = Lab::new();
    for (attach, group) in [(lab.echo_arguments("--mode skb"), "echo"), (String::new(), "pass")] {
        if attach.is_empty() {
            lab.pass("").done();
        } else {
            lab.lb(&attach).done();
        }
        let name = if group == "echo" { "eth0" } else { "far0" };
        let stats =
            Running::start(&mut lab.command(&format!("{group} stats --name {name} --interval 50ms --json")));
        stats.line();
        lab.lb(&format!("{group} detach --name {name}")).done();
        let ended = stats.end();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert_eq!(ended.stderr, format!("lb: {name} has been detached meanwhile\n"));
    }
}

#[test]
fn root_stats_of_another_instance_of_the_same_name_are_not_taken_for_the_first_ones() {
    let lab = Lab::new();
    lab.attach(Mode::Skb, "");
    let stats = Running::start(&mut lab.command("echo stats --dev eth0 --interval 300ms --json"));
    stats.line();
    lab.lb("echo detach --dev eth0").done();
    lab.attach(Mode::Skb, "");
    let ended = stats.end();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("detached meanwhile"), "{ended:?}");

    // An upgrade is still its own instance.
    let stats = Running::start(&mut lab.command("echo stats --dev eth0 --interval 50ms --count 8 --json"));
    stats.line();
    lab.attach(Mode::Skb, "--replace");
    assert_eq!(stats.end().documents().len(), 7);
}

#[test]
fn root_stats_end_at_a_signal() {
    let lab = Lab::new();
    lab.attach(Mode::Skb, "");
    let stats = Running::start(&mut lab.command("echo stats --dev eth0 --interval 50ms --json"));
    stats.line();
    stats.signal(Signal::SIGTERM);
    assert_eq!(stats.end().stderr, "");
    assert_eq!(lab.state(), "attached");
}

// Status

#[test]
fn root_status_shows_responders_and_what_their_far_ends_have() {
    let lab = Lab::new();
    lab.attach(Mode::Drv, "--address 10.0.0.77 --rate 30/m");
    let (near, far) = (lab.near.name(), lab.far.name());
    let status = lab.status();
    let keys = ["addresses", "any", "group", "interfaces", "name", "netns", "problem", "rate_per_s", "state"];
    assert_keys(&status, &keys);
    assert_keys(&status["interfaces"][0], &["dev", "mode", "program_id", "role"]);
    let shown = |key: &str| status[key].clone();
    assert_eq!(
        keys.map(shown).map(|value| if value.is_array() { Value::Null } else { value }),
        json!([null, false, "echo", null, "eth0", near, null, 0.5, "attached"]).as_array().unwrap()[..]
    );
    assert_eq!(shown("addresses"), json!(["10.0.0.77"]));
    let table = lab.lb("status").done();
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "GROUP", "STATE", "DEV", "ROLE", "MODE", "PROGRAM"]);
    let program = |number: usize| status["interfaces"][number]["program_id"].to_string();
    assert_eq!(rows[1], ["eth0", "echo", "attached", "eth0", "dev", "drv", &program(0)]);
    assert_eq!(rows[2], ["eth0", "echo", "attached", "far0", "peer", "drv", &program(1)]);
    assert_eq!(rows.len(), 3);
    lab.lb("echo detach --dev eth0").done();

    lab.pass("--mode skb --name p").done();
    let status = lab.status();
    assert_keys(&status, &["group", "interfaces", "name", "netns", "problem", "state"]);
    let program = status["interfaces"][0]["program_id"].clone();
    assert!(program.is_u64(), "{status}");
    assert_eq!(
        status,
        json!({
            "name": "p",
            "group": "pass",
            "state": "attached",
            "interfaces": [{ "dev": "far0", "role": "dev", "mode": "skb", "program_id": program }],
            "netns": far,
            "problem": null,
        })
    );
}

#[test]
fn root_nothing_attached_is_no_error() {
    let lab = Lab::empty();
    assert_eq!(lab.lb("status --json").json(), json!([]));
    assert_eq!(lab.lb("status").done(), "nothing is attached\n");
    assert_eq!(lab.lb("detach --all").done(), "nothing is attached\n");
    assert!(!lab.root.exists(), "asking makes no folder");
}

// What was done

#[test]
fn root_attach_and_detach_say_what_they_did() {
    let lab = Lab::new();
    let attached = lab.echo("--json");
    let warned: Vec<String> = attached.stderr.lines().map(ToOwned::to_owned).collect();
    let document = attached.json();
    assert_keys(&document, &["group", "name", "replaced", "warnings"]);
    assert_eq!(
        [&document["group"], &document["name"], &document["replaced"]],
        [&json!("echo"), &json!("eth0"), &json!(false)]
    );
    let warnings = document["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 1);
    assert_eq!(warned, [format!("lb: warning: {}", warnings[0].as_str().unwrap())]);
    let replaced = lab.echo("--replace --with-peer --json").json();
    assert_eq!((&replaced["replaced"], &replaced["warnings"]), (&true.into(), &json!([])));
    assert_eq!(lab.lb("echo detach --dev eth0 --json").json(), json!(["eth0"]));
    assert_eq!(lab.pass("--json").json()["group"], "pass");
    assert_eq!(lab.lb("pass detach --dev far0 --json").json(), json!(["far0"]));

    assert_eq!(lab.echo("--mode skb").done(), "attached echo eth0: eth0 (skb)\n");
    assert_eq!(lab.echo("--mode skb --replace").done(), "replaced echo eth0: eth0 (skb)\n");
    assert_eq!(lab.lb("echo detach --dev eth0").done(), "detached echo eth0\n");
    lab.assert_no_trace();
}

#[test]
fn root_quiet_and_verbose_say_less_and_more() {
    let lab = Lab::new();
    let ended = lab.echo("--quiet");
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("", ""));
    ended.done();
    assert_eq!(lab.lb("-q echo detach --dev eth0").done(), "");
    let ended = lab.echo("--with-peer --verbose");
    assert!(ended.stderr.contains("libbpf: "), "{ended:?}");
    assert_eq!(ended.done(), "attached echo eth0: eth0 (drv)\n");
}

#[test]
fn root_what_keeps_pings_unanswered_is_said_with_its_mend() {
    let lab = Lab::new();
    lab.near.ip(&["address", "flush", "dev", "eth0"]);
    lab.near.ip(&["link", "set", "eth0", "down"]);
    let ended = lab.echo("--with-peer");
    let lines: Vec<&str> = ended.stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{ended:?}");
    for (line, words) in
        lines.iter().zip([["eth0 has no address", "--any"], ["eth0 is down", "ip link set dev eth0 up"]])
    {
        assert!(line.starts_with("lb: warning: ") && line.contains("; mend: "), "{line}");
        assert!(words.iter().all(|word| line.contains(word)), "{line}");
    }
    ended.done();
    // One that answers for all, or for what it is told, needs no address.
    for arguments in ["--any", "--address 10.0.0.1"] {
        let ended = lab.echo(&format!("--with-peer --replace {arguments}"));
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
        assert!(ended.stderr.contains("eth0 is down"), "{ended:?}");
    }
    lab.far.ip(&["link", "set", "far0", "down"]);
    let ended = lab.pass("--replace --name down --mode skb");
    assert!(ended.stderr.contains("is there already"), "{ended:?}");
    lab.lb("echo detach --dev eth0").done();
    let ended = lab.pass("");
    assert!(ended.stderr.contains("far0 is down"), "{ended:?}");
    ended.done();
}
