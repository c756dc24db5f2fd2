//! scripts/echo-lab, its outer end in a namespace of the test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use crate::common::command::Ended;
use crate::common::folder::listing;
use crate::common::kernel::Footprint;
use crate::common::namespace::Namespace;
use crate::lab::{LB, PATIENCE, Pings, xdp_programs};

/// Where the script has its instances.
const ROOT: &str = "/sys/fs/bpf/lb";

/// A namespace to run the script in, and a name for its lab. What is left of both goes when this is dropped.
struct Outside {
    namespace: Namespace,
    name: String,
}

impl Outside {
    #[track_caller]
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self { namespace: Namespace::new("lb-u"), name: format!("u{}-{count}", process::id()) }
    }

    /// Runs the script to its end; each word is an argument.
    #[track_caller]
    fn script(&self, arguments: &str) -> Ended {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/echo-lab");
        Ended::of(self.namespace.command(script).args(arguments.split_whitespace()))
    }

    /// Builds the lab, or builds it again.
    #[track_caller]
    fn up(&self, options: &str) -> String {
        self.script(&format!("up --lb {LB} {options} {}", self.name)).done()
    }

    #[track_caller]
    fn down(&self) {
        let ended = self.script(&format!("down --lb {LB} {}", self.name));
        assert_eq!(ended.stderr, "");
        ended.done();
        self.assert_nothing_left();
    }

    /// Runs the binary with the script's own pin root.
    #[track_caller]
    fn lb(&self, arguments: &str) -> Ended {
        Ended::of(self.namespace.command(LB).args(arguments.split_whitespace()))
    }

    /// Pings from inside.
    #[track_caller]
    fn ping(&self, to: &str, options: &str) -> Pings {
        let mut command = Command::new("ip");
        command.args([
            "netns",
            "exec",
            &self.name,
            "ping",
            "-n",
            "-q",
            "-W",
            &PATIENCE.as_secs().to_string(),
        ]);
        Pings::of(&Ended::of(command.args(options.split_whitespace()).arg(to)).done())
    }

    #[track_caller]
    fn replies(&self) -> u64 {
        let stats: Value = self.lb(&format!("echo stats --dev {} --json", self.name)).json();
        stats["verdicts"]["reply"]["packets"].as_u64().expect("a counter is a number")
    }

    /// The folders of both its instances.
    fn pins(&self) -> [PathBuf; 2] {
        ["echo", "pass"].map(|group| Path::new(ROOT).join(group).join(&self.name))
    }

    #[track_caller]
    fn assert_nothing_left(&self) {
        for path in self.pins().iter().chain([&self.mark(), &Path::new("/run/netns").join(&self.name)]) {
            assert!(!path.exists(), "{} is left: {:?}", path.display(), listing(path));
        }
        let links: Value = serde_json::from_str(&self.namespace.ip(&["-json", "link", "show"])).unwrap();
        let names: Vec<&Value> = links.as_array().unwrap().iter().map(|link| &link["ifname"]).collect();
        assert_eq!(names, ["lo"]);
    }

    /// What says that a lab is the script's own.
    fn mark(&self) -> PathBuf {
        format!("/run/lb-echo-lab.{}", self.name).into()
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let arguments = ["down", "--lb", LB, &self.name];
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/echo-lab");
        let _ = self.namespace.command(script).args(arguments).output();
    }
}

#[test]
fn root_the_script_builds_a_lab_that_answers_and_removes_it_wholly() {
    let outside = Outside::new();
    outside.down();
    for mode in ["drv", "skb"] {
        let options = format!("--mode {mode}");
        let name = &outside.name;
        let up = outside.up(&options);
        assert!(up.ends_with(&format!("{name} answers at 10.0.0.1 and fd00::1\n")), "{up}");
        let programs = xdp_programs(&outside.namespace);
        assert_eq!(programs.len(), 1);
        let footprints = outside.pins().map(|folder| Footprint::pinned(&folder));
        // Its first ping is the one that the issue shows.
        outside.ping("10.0.0.1", "-c 100 -i 0.01").all(100);
        assert_eq!(outside.replies(), 100);
        for to in ["10.0.0.1", "fd00::1"] {
            for size in [3000, 20000] {
                outside.ping(to, &format!("-c 5 -i 0.01 -s {size}")).all(5);
            }
        }
        assert_eq!(outside.replies(), 100, "fragments are the stack's");

        // Again, which upgrades what is there.
        outside.up(&options);
        assert_ne!(xdp_programs(&outside.namespace), programs);
        outside.ping("fd00::1", "-c 20 -i 0.01").all(20);
        assert_eq!(outside.replies(), 120);
        outside.down();
        footprints.iter().for_each(Footprint::assert_gone);
        outside.down();
    }
}

#[test]
fn root_the_script_mends_a_lab_of_which_a_part_is_gone() {
    let outside = Outside::new();
    outside.up("");
    let name = &outside.name;
    for damage in [
        vec!["ip", "netns", "del", name],
        vec!["ip", "link", "del", name],
        vec![LB, "echo", "detach", "--name", name],
        vec![LB, "pass", "detach", "--name", name],
    ] {
        outside.namespace.exec(&damage);
        outside.up("");
        outside.ping("10.0.0.1", "-c 10 -i 0.01").all(10);
        assert_eq!(outside.replies(), 10, "{damage:?}");
        outside.lb(&format!("echo detach --name {name}")).done();
        outside.up("");
    }
    // What is gone needs no removal.
    outside.namespace.exec(&["ip", "netns", "del", name]);
    outside.down();
}

/// That `up` refuses, and leaves what is in its way as it is.
#[track_caller]
fn assert_refused(outside: &Outside, words: &[&str]) {
    let ended = outside.script(&format!("up --lb {LB} {}", outside.name));
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert_eq!(ended.stderr.lines().count(), 1, "an error is one line: {ended:?}");
    assert!(ended.stderr.starts_with("scripts/echo-lab: "), "{ended:?}");
    assert!(words.iter().all(|word| ended.stderr.contains(word)), "{ended:?}");
    assert!(!outside.mark().exists());
    // Nor does `down` take it for its own.
    outside.script(&format!("down --lb {LB} {}", outside.name)).done();
}

#[test]
fn root_the_script_refuses_a_name_that_is_taken() {
    let outside = Outside::new();
    let name = &outside.name;
    outside.namespace.exec(&["ip", "netns", "add", name]);
    assert_refused(&outside, &["a namespace", name, "another name"]);
    outside.namespace.exec(&["ip", "netns", "del", name]);

    outside.namespace.ip(&["link", "add", name, "type", "bridge"]);
    assert_refused(&outside, &["an interface", name, "another name"]);
    outside.namespace.ip(&["link", "del", name]);

    // An instance of somebody else is not the lab's to replace or to detach.
    outside.namespace.ip(&["link", "add", "e0", "type", "veth", "peer", "name", "e1"]);
    for group in ["echo", "pass"] {
        outside.lb(&format!("{group} attach --dev e0 --name {name} --mode skb --quiet")).done();
        assert_refused(&outside, &["an instance of lb", group, name, "another name"]);
        assert_eq!(xdp_programs(&outside.namespace).len(), 1);
        outside.lb(&format!("{group} detach --name {name}")).done();
    }
    outside.namespace.ip(&["link", "del", "e0"]);
    outside.up("");
    outside.down();
}

#[test]
fn root_the_script_refuses_a_machine_that_is_in_its_network() {
    let outside = Outside::new();
    let other = Outside { namespace: Namespace::new("lb-u"), name: format!("{}x", outside.name) };
    outside.up("");
    let second = Outside { namespace: Namespace::new("lb-u"), name: format!("{}y", outside.name) };
    let ended = Ended::of(
        outside.namespace.command(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/echo-lab")).args([
            "up",
            "--lb",
            LB,
            &second.name,
        ]),
    );
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("10.0.0.0/24"), "{ended:?}");
    second.assert_nothing_left();
    outside.ping("10.0.0.1", "-c 3 -i 0.01").all(3);

    // Another namespace is another machine.
    other.up("");
    other.ping("10.0.0.1", "-c 3 -i 0.01").all(3);
    other.down();
    outside.ping("10.0.0.1", "-c 3 -i 0.01").all(3);
    outside.down();
}

#[test]
fn root_the_script_finds_room_for_its_ipv6_network() {
    let outside = Outside::new();
    outside.namespace.ip(&["link", "add", "e0", "type", "veth", "peer", "name", "e1"]);
    outside.namespace.ip(&["address", "add", "fd00::1/64", "dev", "e0", "nodad"]);
    outside.namespace.ip(&["link", "set", "e0", "up"]);
    outside.namespace.ip(&["link", "set", "e1", "up"]);
    let up = outside.up("");
    assert!(up.ends_with(" answers at 10.0.0.1 and fd00:0:0:1::1\n"), "{up}");
    outside.ping("fd00:0:0:1::1", "-c 10 -i 0.01").all(10);
    assert_eq!(outside.replies(), 10);
    outside.namespace.ip(&["link", "del", "e0"]);
    outside.down();
}

#[test]
fn root_wrong_usage_of_the_script_is_said_in_a_line() {
    let outside = Outside::new();
    for (arguments, words) in [
        ("", &["up", "down", "--help"][..]),
        ("sideways", &["sideways", "--help"]),
        ("up --mode hw", &["--mode", "drv", "skb", "hw"]),
        ("up --mode", &["--mode"]),
        ("up --lb /no/such/file", &["--lb", "/no/such/file"]),
        ("up a/b", &["a/b", "no name"]),
        ("up a-name-that-is-too-long", &["a-name-that-is-too-long", "15"]),
        ("up --fast", &["--fast", "--help"]),
    ] {
        let ended = outside.script(arguments);
        assert_eq!(ended.status.code(), Some(2), "{arguments}: {ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{arguments}: {ended:?}");
        assert!(words.iter().all(|word| ended.stderr.contains(word)), "{arguments}: {ended:?}");
    }
    let help = outside.script("--help").done();
    for word in ["up", "down", "--mode drv|skb", "--lb FILE", "NAME"] {
        assert!(help.contains(word), "{word} is not in {help}");
    }
    assert!(!fs::exists(outside.mark()).unwrap());
}
