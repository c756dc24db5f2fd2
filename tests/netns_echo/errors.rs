//! What cannot be done: each error is one line that says what to do, and leaves everything as it was.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};

use crate::common::folder::{TemporaryFolder, listing};
use crate::common::kernel::Occupant;
use crate::common::namespace::run;
use crate::lab::{Ended, Family, LB, Lab, Mode, xdp_programs};
use lb::kernel::xdp;

/// Runs the binary without a pin root or a namespace: for what is wrong whatever there is.
#[track_caller]
fn lb(arguments: &str) -> Ended {
    Ended::of(Command::new(LB).args(arguments.split_whitespace()))
}

// The command line

#[test]
fn options_that_are_no_option_are_wrong_usage() {
    for (arguments, words) in [
        ("echo", &["attach", "detach", "stats"][..]),
        ("pass", &["attach", "detach", "stats"]),
        ("echo attach", &["--dev"]),
        ("pass attach", &["--dev"]),
        ("echo attach eth0", &["eth0"]),
        ("echo detach", &["--dev", "--name"]),
        ("echo stats", &["--dev", "--name"]),
        ("pass detach", &["--dev", "--name"]),
        ("pass stats", &["--dev", "--name"]),
        ("echo detach --all", &["--all"]),
        ("echo attach --dev eth0 --mode fast", &["drv", "skb", "hw"]),
        ("echo attach --dev eth0 --address here", &["here"]),
        ("echo attach --dev eth0 --address 224.0.0.1", &["224.0.0.1", "no host"]),
        ("echo attach --dev eth0 --address ff02::1", &["ff02::1", "no host"]),
        ("echo attach --dev eth0 --address 255.255.255.255", &["255.255.255.255", "no host"]),
        ("echo attach --dev eth0 --address 0.0.0.0", &["0.0.0.0", "no host"]),
        ("echo attach --dev eth0 --address ::", &["::", "no host"]),
        ("echo attach --dev eth0 --address 127.0.0.1", &["127.0.0.1", "no host"]),
        ("echo attach --dev eth0 --address ::1", &["::1", "no host"]),
        ("echo attach --dev eth0 --address 10.0.0.0/24", &["10.0.0.0/24"]),
        ("echo attach --dev eth0 --rate 100", &["100/s, 30/m or 10/h"]),
        ("echo attach --dev eth0 --rate 0/s", &["1 to 1000000"]),
        ("echo attach --dev eth0 --rate 1000001/s", &["1 to 1000000"]),
        ("echo attach --dev eth0 --rate 5/d", &["100/s, 30/m or 10/h"]),
        ("echo attach --dev eth0 --rate=-1/s", &["100/s, 30/m or 10/h"]),
        ("echo stats --dev eth0 --count 3", &["--interval"]),
        ("echo stats --dev eth0 --interval 1ns", &["10ms"]),
        ("pass stats --dev eth0 --interval 1s --count 0", &["--count"]),
        // What only the responder has.
        ("pass attach --dev eth0 --any", &["--any"]),
        ("pass attach --dev eth0 --with-peer", &["--with-peer"]),
        ("pass attach --dev eth0 --address 10.0.0.1", &["--address"]),
    ] {
        lb(arguments).misused(words);
    }
    for group in ["echo", "pass"] {
        for name in ["a.b", "../x", "a/b", "a-name-of-more-than-31-characters"] {
            for command in ["attach --dev eth0", "detach", "stats"] {
                lb(&format!("{group} {command} --name {name}")).misused(&[name, "1 to 31 letters, digits"]);
            }
        }
    }
}

// What is not there

#[test]
fn root_what_is_unknown_is_named_with_what_there_is() {
    let lab = Lab::new();
    let netns = lab.near.name();
    for group in ["echo", "pass"] {
        lab.lb(&format!("{group} attach --dev eth9 --netns {netns}"))
            .failed(1, &["no interface eth9", "there: eth0, lo", "--netns"]);
        lab.lb(&format!("{group} attach --dev eth0 --netns lb-no-such-namespace"))
            .failed(1, &["lb-no-such-namespace", "--netns"]);
        lab.lb(&format!("{group} attach --dev eth0 --netns /proc/self/status"))
            .failed(1, &["/proc/self/status", "--netns"]);
        for command in ["stats", "detach"] {
            lab.lb(&format!("{group} {command} --name gone")).failed(1, &["no instance named gone"]);
            lab.lb(&format!("{group} {command} --dev eth9"))
                .failed(1, &[&format!("no lb {group} is attached to eth9")]);
        }
    }
    lab.assert_no_trace();

    lab.attach(Mode::Drv, "--name one");
    for command in ["stats", "detach"] {
        lab.lb(&format!("echo {command} --name gone")).failed(1, &["no instance named gone", "there is one"]);
        lab.lb(&format!("echo {command} --dev eth9"))
            .failed(1, &["no lb echo is attached to eth9", "there is one"]);
        lab.lb(&format!("echo {command} --dev eth0 --netns {}", lab.far.name()))
            .failed(1, &["no lb echo is attached to eth0", lab.far.name(), "there is one"]);
    }
    assert_eq!(lab.state(), "attached");
}

// What cannot be done

#[test]
fn root_interfaces_that_cannot_answer_are_refused() {
    let lab = Lab::new();
    for group in ["echo", "pass"] {
        for mode in Mode::BOTH {
            lab.lb(&format!("{group} attach --dev lo --netns {} --mode {mode}", lab.near.name()))
                .failed(1, &["lo has no MAC address", "use an Ethernet interface"]);
        }
    }
    lab.echo("--mode hw").failed(1, &["--mode hw", "maps", "use --mode drv"]);
    lab.pass("--mode hw").failed(1, &["--mode hw", "maps", "use --mode drv"]);

    // A bridge has no native XDP.
    lab.near.ip(&["link", "add", "br0", "type", "bridge"]);
    lab.near.ip(&["link", "set", "br0", "up"]);
    let bridge = format!("--dev br0 --netns {}", lab.near.name());
    for arguments in ["echo attach", "echo attach --with-peer", "pass attach"] {
        lab.lb(&format!("{arguments} {bridge}")).failed(1, &["br0", "no native XDP", "use --mode skb"]);
    }
    lab.assert_no_trace();
    lab.lb(&format!("echo attach {bridge} --mode skb --quiet")).done();
    lab.assert_xdp_on(&["br0"]);
}

#[test]
fn root_more_addresses_than_there_can_be_are_an_error() {
    let lab = Lab::new();
    let given: String = (0..256).map(|number| format!(" --address 10.9.{}.1", number)).collect();
    lab.echo(&given).failed(1, &["256 there can be", "--any"]);
    lab.assert_no_trace();
    lab.attach(Mode::Skb, "");
    lab.echo(&format!("--mode skb --replace {given}")).failed(1, &["256 there can be", "--any"]);
    lab.ping(Family::V4.host(1), 3, "").all(3);
    assert_eq!(lab.replies(), 3);
    assert_eq!(lab.status()["addresses"], serde_json::json!([]));
}

#[test]
fn root_a_program_that_is_there_stays_and_is_named() {
    for (occupied, wanted) in
        [("skb", "skb"), ("skb", "drv"), ("drv", "skb"), ("drv", "drv"), ("netlink", "drv")]
    {
        let lab = Lab::new();
        let occupant = match occupied {
            "skb" => Occupant::by_link(&lab.near, "eth0", xdp::Mode::Skb),
            "drv" => Occupant::by_link(&lab.near, "eth0", xdp::Mode::Drv),
            _ => Occupant::by_netlink(&lab.near, "eth0"),
        };
        let there = format!("XDP program {} is there already", occupant.program);
        let with_peer = if wanted == "drv" { "--with-peer" } else { "" };
        for replace in ["", "--replace"] {
            lab.echo(&format!("--mode {wanted} {with_peer} {replace}"))
                .failed(1, &["eth0", &there, "bpftool", "xdp off"]);
            lab.lb(&format!("pass attach --netns {} --dev eth0 --mode {wanted} {replace}", lab.near.name()))
                .failed(1, &["eth0", &there]);
        }
        assert_eq!(xdp_programs(&lab.near), [("eth0".to_owned(), occupant.program.into())]);
        assert_eq!(xdp_programs(&lab.far), []);
        assert!(!lab.root.exists(), "nothing is pinned");
        lab.lb("detach --all").done();
        lab.assert_xdp_on(&["eth0"]);
        drop(occupant);
        lab.assert_no_trace();
    }
}

#[test]
fn root_detach_keeps_off_a_program_that_came_later() {
    let lab = Lab::new();
    lab.attach(Mode::Skb, "");
    let pins = listing(&lab.root);
    fs::remove_file(pins.iter().find(|path| path.to_string_lossy().contains("link-dev")).unwrap()).unwrap();
    let occupant = Occupant::by_link(&lab.near, "eth0", xdp::Mode::Skb);
    let status = lab.status();
    assert_eq!(status["state"], "degraded");
    assert!(status["problem"].as_str().unwrap().contains("eth0"), "{status}");
    lab.echo("--mode skb --replace").failed(1, &["eth0", "lb echo detach"]);
    lab.lb("echo detach --dev eth0").done();
    assert_eq!(xdp_programs(&lab.near), [("eth0".to_owned(), occupant.program.into())]);
    drop(occupant);
    lab.assert_no_trace();
}

// Privileges

#[test]
fn root_without_root_each_command_says_so() {
    let lab = Lab::new();
    let folder = TemporaryFolder::new(&lab.root);
    // The build's own folder may be one that nobody else can look into. Copied by another process: a program that this
    // one holds open for writing, or that another test's fork does, cannot be run.
    let binary = folder.0.join("lb");
    run(Command::new("cp").arg(LB).arg(&binary));
    let as_nobody = |arguments: &str, root: &Path| {
        let mut command = lab.near.command("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&binary);
        command.args(arguments.split_whitespace()).arg("--pin-root").arg(root).current_dir("/");
        Ended::of(&mut command)
    };
    for command in
        ["echo attach --dev eth0", "echo attach --dev eth0 --watch-addresses", "pass attach --dev eth0"]
    {
        as_nobody(command, &lab.root).failed(1, &["run as root"]);
        as_nobody(&format!("{command} --netns {}", lab.near.name()), &lab.root).failed(1, &["run as root"]);
    }
    lab.assert_no_trace();

    lab.attach(Mode::Skb, "");
    lab.pass("").done();
    for arguments in [
        "status",
        "echo stats --dev eth0",
        "echo stats --name eth0",
        "echo detach --dev eth0",
        "echo detach --name eth0",
        "echo attach --dev eth0 --mode skb --replace",
        "pass stats --dev far0",
        "pass detach --dev far0",
        "detach --all",
    ] {
        as_nobody(arguments, &lab.root).failed(1, &["run as root"]);
    }
    assert_eq!(lab.lb("status --json").json().as_array().map(Vec::len), Some(2));
    lab.assert_xdp_on(&["eth0", "far0"]);
}

#[test]
fn root_without_capabilities_attach_says_which() {
    let lab = Lab::new();
    let inside = format!("--net=/run/netns/{}", lab.near.name());
    for (taken, words) in [
        ("-all", &["CAP_"][..]),
        ("-sys_admin,-bpf,-perfmon,-net_admin", &["CAP_BPF", "CAP_NET_ADMIN"]),
        ("-sys_admin,-bpf", &["CAP_BPF"]),
        ("-sys_admin,-net_admin", &["CAP_NET_ADMIN"]),
    ] {
        let bounds = format!("--bounding-set={taken}");
        let before = ["nsenter", &inside, "--", "setpriv", &bounds];
        for command in ["echo attach --dev eth0 --mode skb", "pass attach --dev eth0"] {
            Ended::of(&mut lab.command_by(&before, command)).failed(1, words);
            lab.assert_no_trace();
        }
    }
    // What the error asks for is enough.
    let before =
        ["nsenter", &inside, "--", "setpriv", "--bounding-set=-all,+bpf,+perfmon,+net_admin,+dac_override"];
    Ended::of(&mut lab.command_by(&before, "echo attach --dev eth0 --mode skb")).done();
    lab.ping(Family::V4.host(1), 3, "").all(3);
    assert_eq!(lab.replies(), 3);
    Ended::of(&mut lab.command_by(&before, "echo detach --dev eth0")).done();
    Ended::of(&mut lab.command_by(&before, "pass attach --dev eth0")).done();
    lab.lb("detach --all").done();
    lab.assert_no_trace();
}

// What the kernel and the file systems lack

#[test]
fn root_without_btf_attach_says_what_to_boot() {
    let lab = Lab::new();
    let hide =
        ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\""];
    for arguments in [&lab.echo_arguments(""), &format!("pass attach --dev far0 --netns {}", lab.far.name())]
    {
        Ended::of(&mut lab.command_by(&hide, arguments)).failed(1, &["BTF", "CONFIG_DEBUG_INFO_BTF=y"]);
        lab.assert_no_trace();
    }
}

#[test]
fn root_without_bpffs_attach_names_netns() {
    let lab = Lab::new();
    let exec = ["ip", "netns", "exec", lab.near.name()];
    for command in
        ["echo attach --dev eth0 --watch-addresses", "echo attach --dev eth0", "pass attach --dev eth0"]
    {
        Ended::of(&mut lab.command_by(&exec, command)).failed(1, &["bpffs", "lb --netns"]);
    }
    lab.assert_no_trace();

    let folder = TemporaryFolder::new(&lab.root);
    let root = folder.0.display().to_string();
    lb(&format!("{} --pin-root {root}", lab.echo_arguments("")))
        .failed(1, &[&root, "not on a bpffs", "mount -t bpf", "--pin-root"]);
}

// Pins that make no sense

/// A new array map of one entry, pinned.
#[track_caller]
fn pin_array(path: &Path, value: &[u8]) {
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
        ..Default::default()
    };
    let mut map =
        MapHandle::create(MapType::Array, Some("foreign"), 4, value.len() as u32, 1, &options).unwrap();
    map.update(&0u32.to_ne_bytes(), value, MapFlags::ANY).unwrap();
    map.pin(path).unwrap();
}

/// The pin of the instance on `eth0` whose name begins so.
#[track_caller]
fn pin(lab: &Lab, start: &str) -> PathBuf {
    let folder = lab.root.join("echo/eth0");
    let pins = listing(&folder);
    let found = pins.into_iter().find(|path| path.file_name().unwrap().to_string_lossy().starts_with(start));
    found.unwrap_or_else(|| panic!("no {start} in {}", folder.display()))
}

#[test]
fn root_what_was_cut_short_is_shown_and_cleared_away() {
    // What an attach has not come to yet, or a detach has come to already: the record is the last pin, and the first one to go.
    for missing in [
        &["config"][..],
        &["config", "link-peer"],
        &["config", "link-dev", "link-peer"],
        &["config", "map-v"],
    ] {
        let lab = Lab::new();
        for mend in ["attach", "replace", "detach", "detach --all"] {
            println!("{missing:?}, {mend}");
            lab.attach(Mode::Drv, "");
            for start in missing {
                fs::remove_file(pin(&lab, start)).unwrap();
            }
            let status = lab.status();
            assert_eq!(status["state"], "broken");
            let problem = status["problem"].as_str().unwrap();
            assert!(problem.contains("cut short; `lb echo detach --name eth0`"), "{problem}");
            lab.lb("status").done();
            lab.lb("echo stats --dev eth0").failed(1, &["cut short", "lb echo detach --name eth0"]);
            lab.lb("echo stats --name eth0").failed(1, &["cut short"]);
            match mend {
                "attach" | "replace" => {
                    let replace = if mend == "replace" { "--replace" } else { "" };
                    let attached = lab.echo(&format!("--with-peer {replace}")).done();
                    assert_eq!(attached, "attached echo eth0: eth0 (drv)\n");
                    lab.ping(Family::V4.host(1), 3, "").all(3);
                    assert_eq!(lab.state(), "attached");
                    lab.lb("echo detach --dev eth0").done();
                }
                "detach" => drop(lab.lb("echo detach --dev eth0").done()),
                _ => drop(lab.lb("detach --all").done()),
            }
            lab.assert_no_trace();
        }
    }
}

/// A damage to the pins of an instance, whether it is seen in its status, and words of the error of an upgrade.
type Damage = (&'static str, fn(&Lab), bool, &'static [&'static str]);

#[test]
fn root_a_damaged_instance_is_shown_and_cleared_away() {
    let damages: [Damage; 4] = [
        (
            "a map is gone",
            |lab| fs::remove_file(pin(lab, "map-views")).unwrap(),
            false,
            &["lb echo detach --name eth0"],
        ),
        (
            "a map is of somebody else",
            |lab| {
                let path = pin(lab, "map-views");
                fs::remove_file(&path).unwrap();
                pin_array(&path, &[0; 8]);
            },
            false,
            &["views", "lb echo detach --name eth0"],
        ),
        (
            "the record is of another build",
            |lab| {
                let path = pin(lab, "config");
                fs::remove_file(&path).unwrap();
                let mut record = br#"{"layout":999,"new":"thing"}"#.to_vec();
                record.resize(64, 0);
                pin_array(&path, &record);
            },
            true,
            &["layout 999", "needs layout", "lb echo detach --name eth0"],
        ),
        (
            "the record is no record",
            |lab| {
                let path = pin(lab, "config");
                fs::remove_file(&path).unwrap();
                pin_array(&path, &[0xff; 64]);
            },
            true,
            &["lb echo detach --name eth0"],
        ),
    ];
    for (damage, apply, is_seen, words) in damages {
        println!("{damage}");
        let lab = Lab::new();
        lab.attach(Mode::Drv, "");
        let before = xdp_programs(&lab.near);
        apply(&lab);
        if is_seen {
            assert_eq!(lab.state(), "broken");
        }
        lab.lb("status").done();
        lab.echo("--replace").failed(1, words);
        lab.echo("").failed(1, &["attached already", "lb echo detach"]);
        assert_eq!(xdp_programs(&lab.near), before);
        lab.lb("echo detach --dev eth0").done();
        lab.assert_no_trace();
    }
}

#[test]
fn root_what_is_not_ours_in_the_folder_stays_and_is_named() {
    let lab = Lab::new();
    lab.attach(Mode::Drv, "");
    let folder = lab.root.join("echo/eth0");
    fs::create_dir(folder.join("theirs")).unwrap();
    pin_array(&folder.join("link-theirs"), &[0; 8]);
    assert_eq!(lab.state(), "attached", "it is in nobody's way");
    let theirs = ["link-theirs", "theirs", "not lb's", "move it away"];
    lab.lb("echo detach --dev eth0").failed(1, &theirs);
    lab.assert_xdp_on(&[]);
    lab.echo("").failed(1, &theirs);
    lab.lb("detach --all").failed(1, &theirs);
    fs::remove_dir(folder.join("theirs")).unwrap();
    fs::remove_file(folder.join("link-theirs")).unwrap();
    lab.attach(Mode::Drv, "");
    lab.lb("echo detach --dev eth0").done();
    lab.assert_no_trace();
}
