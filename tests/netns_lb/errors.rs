//! What cannot be done: each error is one line that says what to do, and leaves everything as it was.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};

use crate::common::kernel::Occupant;
use crate::common::namespace::run;
use crate::lab::{Ended, LB, Lab, TemporaryFolder};
use lb::kernel::xdp::Mode;

const PORTS: &str = "--ingress eth1 --egress eth2,eth3 --mode skb";

/// Runs the binary without a pin root or a namespace: for what is wrong whatever there is.
#[track_caller]
fn lb(arguments: &str) -> Ended {
    Ended::of(Command::new(LB).args(arguments.split_whitespace()))
}

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

// The command line

#[test]
fn options_that_are_no_option_are_wrong_usage() {
    let ingress = |list: &str| format!("attach --ingress {list} --egress eth2");
    let egress = |list: &str| format!("attach --ingress eth1 --egress {list}");
    for (arguments, words) in [
        ("", &["Usage"][..]),
        ("attach", &["--ingress", "--egress"]),
        ("attach --ingress eth1", &["--egress"]),
        ("attach --egress eth1", &["--ingress"]),
        ("detach --all --name x", &["--all", "--name"]),
        ("status --name x", &["--name"]),
        ("status -q -v", &["--quiet", "--verbose"]),
        ("stats --count 3", &["--interval"]),
        ("stats --interval 1ns", &["10ms"]),
        ("stats --interval soon", &["30s"]),
        ("stats --interval 1s --count 0", &["--count"]),
        ("session get here", &["here"]),
        ("session", &["list"]),
        (&ingress("eth5..eth2"), &["eth5..eth2", "smaller number first"]),
        (&ingress("eth1,eth1"), &["eth1 is listed twice"]),
        (&ingress("eth1,"), &["an interface is missing"]),
        (&ingress("eth/1"), &["eth/1", "no interface name"]),
        (&egress(",eth2"), &["an interface is missing"]),
        (&egress("eth2..eth4,eth3"), &["eth3 is listed twice"]),
        (&egress("eth2..wan4"), &["no range"]),
        (&egress("eth2=aa:bb:cc"), &["aa:bb:cc", "six bytes"]),
        (&egress("eth2=00:00:00:00:00:00"), &["zero"]),
        (&egress("eth2=ff:ff:ff:ff:ff:ff"), &["broadcast"]),
        (&egress("eth2=01:00:5e:00:00:01"), &["multicast"]),
        (&egress("eth2..eth4=aa:bb:cc:00:00:01"), &["cannot share one MAC"]),
        (&egress("eth2 --vip here"), &["here"]),
        (&egress("eth2 --mode fast"), &["drv", "skb", "hw"]),
        (&egress("eth2 --policy best"), &["round-robin", "maglev"]),
        (&egress("eth2 --max-sessions 0"), &["--max-sessions", "1.."]),
        (&egress("eth2 --max-sessions 4294967295"), &["--max-sessions"]),
        (&egress("eth2 --max-sessions many"), &["--max-sessions"]),
        (&egress("eth2 --idle-timeout 0"), &["--idle-timeout"]),
        (&egress("eth2 --idle-timeout 0s"), &["1s"]),
        (&egress("eth2 --idle-timeout 500ms"), &["1s"]),
        (&egress("eth2 --start-rate 0"), &["--start-rate"]),
    ] {
        lb(arguments).misused(words);
    }
    // An argument of no letters at all cannot be written with the spaces that part the others.
    Ended::of(Command::new(LB).args(["attach", "--ingress", "", "--egress", "eth2"])).misused(&["missing"]);
}

#[test]
fn options_that_contradict_each_other_are_wrong_usage() {
    for (arguments, words) in [
        ("--ingress eth1 --egress eth2,eth1", &["eth1", "name it once"][..]),
        ("--ingress eth1..eth3 --egress eth3..eth5", &["eth3", "name it once"]),
        ("--ingress eth1=02:00:00:00:00:01 --egress eth2", &["eth1=MAC", "--egress"]),
        (
            "--ingress eth1 --egress eth2=02:00:00:00:00:01,eth3=02:00:00:00:00:01",
            &["eth2", "eth3", "its own"],
        ),
        ("--ingress eth1 --egress eth2 --vip 224.0.0.1", &["224.0.0.1", "no host"]),
        ("--ingress eth1 --egress eth2 --vip ff02::1", &["ff02::1", "no host"]),
        ("--ingress eth1 --egress eth2 --vip 0.0.0.0", &["0.0.0.0", "no host"]),
        ("--ingress in0..in64 --egress eth2", &["65 ingress interfaces", "64"]),
        ("--ingress eth1 --egress out0..out512", &["513 egress interfaces", "512"]),
    ] {
        lb(&format!("attach {arguments}")).failed(2, words);
    }
    let vips: String = (1..=17).map(|n| format!(" --vip 192.0.2.{n}")).collect();
    lb(&format!("attach --ingress eth1 --egress eth2 {vips}")).failed(2, &["16 VIPs", "leave --vip out"]);
    for arguments in [
        "attach --ingress eth1 --egress eth2",
        "detach",
        "stats",
        "session list",
        "session flush",
        "backend list",
    ] {
        for name in ["a.b", "../x", "a/b", "a-name-of-more-than-31-characters"] {
            lb(&format!("{arguments} --name {name}")).misused(&[name, "1 to 31 letters, digits"]);
        }
    }
}

// What is not there

#[test]
fn root_what_is_unknown_is_named_with_what_there_is() {
    let lab = Lab::with_ports(3);
    lab.attach("--ingress eth1 --egress eth2,eth7")
        .failed(1, &["no interface eth7", "eth1", "eth2", "--netns"]);
    lab.attach("--ingress eth9 --egress eth2,eth3").failed(1, &["no interface eth9", "--netns"]);
    lab.lb("attach --ingress eth1 --egress eth2 --netns lb-no-such-namespace")
        .failed(1, &["lb-no-such-namespace", lab.balancer.name().split('-').next().unwrap(), "--netns"]);
    lab.lb("attach --ingress eth1 --egress eth2 --netns /proc/self/status")
        .failed(1, &["/proc/self/status", "--netns"]);
    lab.lb("attach --ingress eth1 --egress eth2 --netns /no/such/file")
        .failed(1, &["/no/such/file", "--netns"]);
    lab.assert_no_trace();

    for arguments in
        ["detach --name gone", "stats --name gone", "session --name gone list", "backend --name gone list"]
    {
        lab.lb(arguments).failed(1, &["no instance named gone"]);
    }
    lab.attach(PORTS).done();
    for arguments in ["detach --name gone", "stats --name gone", "session --name gone flush"] {
        lab.lb(arguments).failed(1, &["no instance named gone", "there is default"]);
    }
    lab.lb("session list --backend eth9").failed(1, &["no backend eth9", "there is eth2, eth3"]);
    for arguments in ["session get 192.0.2.9", "session del 2001:db8::9", "session get 192.0.2.9 --json"] {
        lab.lb(arguments).failed(1, &["has no session", "lb session list"]);
    }
}

#[test]
fn root_two_names_of_one_interface_are_wrong_usage() {
    let lab = Lab::with_ports(3);
    lab.balancer.ip(&["link", "property", "add", "dev", "eth1", "altname", "lan"]);
    lab.attach("--ingress eth1 --egress eth2,lan").failed(2, &["lan", "eth1", "name it once"]);
    lab.attach("--ingress eth1,lan --egress eth2").failed(2, &["lan", "eth1", "name it once"]);
    lab.assert_no_trace();
}

// What is in the way

#[test]
fn root_a_name_that_is_taken_is_refused_with_three_ways_out() {
    let lab = Lab::with_ports(5);
    lab.attach(PORTS).done();
    let programs = lab.program_ids();
    for arguments in [PORTS, "--ingress eth4 --egress eth5"] {
        lab.attach(arguments).failed(1, &["default is attached already", "--replace", "lb detach", "--name"]);
    }
    assert_eq!(lab.program_ids(), programs);
}

#[test]
fn root_a_program_that_is_there_stays_and_is_named() {
    for (interface, occupied, wanted) in [
        ("eth2", "skb", "skb"),
        ("eth2", "skb", "drv"),
        ("eth2", "drv", "skb"),
        ("eth3", "drv", "drv"),
        // The last of all: every other interface has its program by then.
        ("eth1", "drv", "drv"),
        ("eth1", "netlink", "drv"),
    ] {
        let lab = Lab::with_ports(3);
        let occupant = match occupied {
            "skb" => Occupant::by_link(&lab.balancer, interface, Mode::Skb),
            "drv" => Occupant::by_link(&lab.balancer, interface, Mode::Drv),
            _ => Occupant::by_netlink(&lab.balancer, interface),
        };
        let there = format!("XDP program {} is there already", occupant.program);
        lab.attach(&format!("--ingress eth1 --egress eth2,eth3 --mode {wanted}"))
            .failed(1, &[interface, &there, "bpftool", "xdp off"]);
        lab.assert_xdp_on(&[interface]);
        let link = lab.balancer.ip(&["-details", "link", "show", interface]);
        assert!(link.contains(&format!("prog/xdp id {}", occupant.program)), "{link}");
        assert!(!lab.root.exists(), "nothing is pinned");

        // Detaching keeps off it as well.
        lab.lb("detach --all").done();
        lab.assert_xdp_on(&[interface]);
        drop(occupant);
        lab.assert_no_trace();
    }
}

#[test]
fn root_detach_keeps_off_a_program_that_came_later() {
    let lab = Lab::with_ports(3);
    lab.attach(PORTS).done();
    // The owner of eth2's link takes it off, and somebody else comes.
    let links = fs::read_dir(lab.instance()).unwrap().map(|entry| entry.unwrap().path());
    let link = links.filter(|path| path.to_string_lossy().contains("link-egress")).min().unwrap();
    fs::remove_file(link).unwrap();
    let occupant = Occupant::by_link(&lab.balancer, "eth2", Mode::Skb);
    let status = lab.status();
    assert_eq!(status["state"], "degraded");
    assert!(status["problem"].as_str().unwrap().contains("eth2"), "{status}");
    lab.attach(&format!("{PORTS} --replace")).failed(1, &["eth2", "lb detach"]);
    lab.lb("detach").done();
    lab.assert_xdp_on(&["eth2"]);
    drop(occupant);
    lab.assert_no_trace();
}

// What the interface cannot do

#[test]
fn root_a_driver_without_native_xdp_is_refused_and_skb_mode_works() {
    let lab = Lab::with_ports(3);
    lab.balancer.ip(&["link", "add", "br0", "type", "bridge"]);
    lab.balancer.ip(&["link", "set", "br0", "up"]);
    for (ports, interfaces) in [
        ("--ingress br0 --egress eth2,eth3", ["br0", "eth2", "eth3"]),
        ("--ingress eth1 --egress eth2,br0", ["br0", "eth1", "eth2"]),
    ] {
        lab.attach(&format!("{ports} --mode drv")).failed(1, &["br0", "no native XDP", "--mode skb"]);
        lab.assert_no_trace();
        lab.attach(&format!("{ports} --mode skb")).done();
        lab.assert_xdp_on(&interfaces);
        lab.lb("detach").done();
        lab.assert_no_trace();
    }
}

#[test]
fn root_an_mtu_too_large_for_native_xdp_is_refused_and_skb_mode_works() {
    let lab = Lab::with_ports(3);
    for interface in ["eth2", "far2"] {
        lab.balancer.ip(&["link", "set", interface, "mtu", "9000"]);
    }
    lab.attach("--ingress eth1 --egress eth2,eth3 --mode drv")
        .failed(1, &["eth2", "MTU", "mtu 1500", "--mode skb"]);
    lab.assert_no_trace();
    lab.attach(PORTS).done();
}

#[test]
fn root_offload_is_refused() {
    let lab = Lab::with_ports(3);
    lab.attach("--ingress eth1 --egress eth2,eth3 --mode hw").failed(1, &["--mode hw", "maps", "--mode drv"]);
    lab.assert_no_trace();
}

// Privileges

#[test]
fn root_without_root_each_command_says_so() {
    let lab = Lab::with_ports(3);
    let folder = TemporaryFolder::new(&lab.root);
    // The build's own folder may be one that nobody else can look into. Copied by another process: a program that this
    // one holds open for writing, or that another test's fork does, cannot be run.
    let binary = folder.0.join("lb");
    assert!(Command::new("cp").arg(LB).arg(&binary).status().unwrap().success());
    let binary = binary.to_str().unwrap();
    let as_nobody = |arguments: &str, root: &Path| {
        let mut command = lab.balancer.command("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", binary]);
        command.args(arguments.split_whitespace()).arg("--pin-root").arg(root).current_dir("/");
        Ended::of(&mut command)
    };
    as_nobody(&format!("attach {PORTS}"), &lab.root).failed(1, &["run as root"]);
    let mut command = Command::new(binary);
    command.args(lab.attach_arguments(PORTS).split_whitespace()).arg("--pin-root").arg(&lab.root);
    Ended::of(command.uid(65534).gid(65534).current_dir("/")).failed(1, &["run as root"]);
    lab.assert_no_trace();

    lab.attach(PORTS).done();
    for arguments in [
        "status",
        "stats",
        "session list",
        "session flush",
        "backend list",
        "detach",
        "detach --all",
        &format!("attach {PORTS} --replace"),
    ] {
        as_nobody(arguments, &lab.root).failed(1, &["run as root"]);
        // Nor is it said that nothing is there where nobody may look at all.
        as_nobody(arguments, &lab.root.join("deeper")).failed(1, &["run as root"]);
    }
    assert_eq!(lab.state(), "attached");
}

#[test]
fn root_without_capabilities_attach_says_which() {
    let lab = Lab::with_ports(3);
    let inside = format!("--net=/run/netns/{}", lab.balancer.name());
    let arguments = format!("attach {PORTS} --max-sessions {}", lab.max_sessions);
    for (taken, words) in [
        ("-all", &["CAP_"][..]),
        ("-sys_admin,-bpf,-perfmon,-net_admin", &["CAP_BPF", "CAP_NET_ADMIN"]),
        ("-sys_admin,-bpf", &["CAP_BPF"]),
        ("-sys_admin,-net_admin", &["CAP_NET_ADMIN"]),
    ] {
        let bounds = format!("--bounding-set={taken}");
        let before = ["nsenter", &inside, "--", "setpriv", &bounds];
        Ended::of(&mut lab.command_by(&before, &arguments)).failed(1, words);
        lab.assert_no_trace();
    }
    // What the error asks for is enough.
    let before =
        ["nsenter", &inside, "--", "setpriv", "--bounding-set=-all,+bpf,+perfmon,+net_admin,+dac_override"];
    Ended::of(&mut lab.command_by(&before, &arguments)).done();
    assert_eq!(lab.state(), "attached");
}

// What the kernel and the file systems lack

#[test]
fn root_without_btf_attach_says_what_to_boot() {
    let lab = Lab::with_ports(3);
    let hide =
        ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\""];
    Ended::of(&mut lab.command_by(&hide, &lab.attach_arguments(PORTS)))
        .failed(1, &["BTF", "CONFIG_DEBUG_INFO_BTF=y"]);
    lab.assert_no_trace();
}

#[test]
fn root_without_bpffs_attach_names_netns() {
    let lab = Lab::with_ports(3);
    let hide = ["unshare", "--mount", "sh", "-c", "umount --lazy /sys/fs/bpf && exec \"$0\" \"$@\""];
    Ended::of(&mut lab.command_by(&hide, &lab.attach_arguments(PORTS))).failed(1, &["bpffs", "lb --netns"]);
    let exec = ["ip", "netns", "exec", lab.balancer.name()];
    Ended::of(&mut lab.command_by(&exec, &format!("attach {PORTS}"))).failed(1, &["bpffs", "lb --netns"]);
    lab.assert_no_trace();
}

#[test]
fn root_a_pin_root_elsewhere_is_refused_with_the_command_that_mends_it() {
    let mut lab = Lab::with_ports(3);
    let folder = TemporaryFolder::new(&lab.root);
    let bpffs = std::mem::replace(&mut lab.root, folder.0.join("pins"));
    let shown = lab.root.display().to_string();
    lab.attach(PORTS).failed(1, &[&shown, "mount -t bpf", "--pin-root"]);
    assert!(!lab.root.exists());

    fs::write(&lab.root, "").unwrap();
    lab.root.push("deeper");
    lab.attach(PORTS).failed(1, &[&shown, "a file", "--pin-root"]);

    lab.root = bpffs.join("with.dot");
    lab.attach(PORTS).failed(1, &["with.dot", "a name with a dot", "--pin-root"]);
    lab.root = bpffs;
    lab.assert_no_trace();

    // A bpffs of one's own is as good as any.
    lab.root = folder.0.clone();
    run(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&folder.0));
    let attached = lab.attach(PORTS);
    let detached = lab.lb("detach");
    run(Command::new("umount").arg(&folder.0));
    attached.done();
    detached.done();
}

// Pins that make no sense

/// Where an instance has pinned a map.
#[track_caller]
fn map_pin(folder: &Path, map: &str) -> PathBuf {
    let mut paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let found = paths.find(|path| path.to_string_lossy().rsplit(['/', '-']).next() == Some(map));
    found.unwrap_or_else(|| panic!("no pin of {map} in {}", folder.display()))
}

/// A damage to the pins of an instance, and words of the error of what needs them.
type Damage = (&'static str, fn(&Path), &'static [&'static str]);

#[test]
fn root_a_damaged_instance_is_shown_and_cleared_away() {
    let damages: [Damage; 6] = [
        (
            "a map is gone",
            |folder| fs::remove_file(map_pin(folder, "backends")).unwrap(),
            &["lb detach --name default"],
        ),
        (
            "a map has become a folder",
            |folder| {
                let pin = map_pin(folder, "verdicts");
                fs::remove_file(&pin).unwrap();
                fs::create_dir(&pin).unwrap();
            },
            &["lb detach --name default"],
        ),
        (
            "a map is of somebody else",
            |folder| {
                let pin = map_pin(folder, "verdicts");
                fs::remove_file(&pin).unwrap();
                pin_array(&pin, &[0; 8]);
            },
            &["lb detach"],
        ),
        (
            "a map is a link",
            |folder| {
                let pin = map_pin(folder, "ring");
                fs::remove_file(&pin).unwrap();
                let mut links = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
                let link = links.find(|path| path.to_string_lossy().contains("link-ingress")).unwrap();
                fs::rename(link, pin).unwrap();
            },
            &["lb detach --name default"],
        ),
        (
            "the layout is another",
            |folder| {
                fs::remove_file(folder.join("config")).unwrap();
                pin_array(&folder.join("config"), &[&999u32.to_ne_bytes()[..], &[0; 60]].concat());
            },
            &["layout 999", "lb detach --name default"],
        ),
        (
            "the configuration is of this layout, and of other size",
            |folder| {
                fs::remove_file(folder.join("config")).unwrap();
                let layout = lb::lb::datapath::LAYOUT.to_ne_bytes();
                pin_array(&folder.join("config"), &[&layout[..], &[0; 4]].concat());
            },
            &["lb detach"],
        ),
    ];
    for (damage, apply, words) in damages {
        println!("{damage}");
        let lab = Lab::with_ports(3);
        lab.attach(PORTS).done();
        apply(&lab.instance());
        let status = lab.status();
        assert_eq!(status["state"], "broken", "{status}");
        let problem = status["problem"].as_str().unwrap();
        assert!(words.iter().all(|word| problem.contains(word)), "{problem}");
        lab.lb("status").done();
        for arguments in ["stats", "session list", "backend list"] {
            lab.lb(arguments).failed(1, words);
        }
        lab.attach(&format!("{PORTS} --replace")).failed(1, words);
        lab.attach(PORTS).failed(1, &["attached already", "lb detach"]);
        if damage == "a map has become a folder" {
            // It is not ours, and empty it is not either for all that lb knows.
            lab.lb("detach").failed(1, &["verdicts", "not lb's"]);
            fs::remove_dir(map_pin(&lab.instance(), "verdicts")).unwrap();
        }
        lab.lb("detach").done();
        lab.assert_no_trace();
    }
}

#[test]
fn root_what_is_not_ours_in_the_folder_stays_and_is_named() {
    let lab = Lab::with_ports(3);
    lab.attach(PORTS).done();
    fs::create_dir(lab.instance().join("theirs")).unwrap();
    pin_array(&lab.instance().join("their-map"), &[0; 8]);
    pin_array(&lab.instance().join("link-theirs"), &[0; 8]);
    assert_eq!(lab.state(), "attached", "it is in nobody's way");

    let theirs = ["link-theirs", "their-map", "theirs", "not lb's", "move it away"];
    lab.lb("detach").failed(1, &theirs);
    lab.assert_xdp_on(&[]);
    let status = lab.status();
    assert_eq!(status["state"], "broken");
    lab.lb("detach --all").failed(1, &theirs);
    lab.attach(PORTS).failed(1, &theirs);
    lab.assert_xdp_on(&[]);
    fs::remove_dir(lab.instance().join("theirs")).unwrap();
    for name in ["link-theirs", "their-map"] {
        fs::remove_file(lab.instance().join(name)).unwrap();
    }
    lab.attach(PORTS).done();
    lab.lb("detach").done();
    lab.assert_no_trace();
}

#[test]
fn root_a_foreign_instance_does_not_keep_detach_all_from_the_others() {
    let lab = Lab::with_ports(4);
    lab.attach("--name a --ingress eth1 --egress eth2 --mode skb").done();
    lab.attach("--name b --ingress eth3 --egress eth4 --mode skb").done();
    fs::create_dir(lab.root.join("lb/a/theirs")).unwrap();
    lab.lb("detach --all --quiet").failed(1, &["theirs", "not lb's"]);
    lab.assert_xdp_on(&[]);
    fs::remove_dir(lab.root.join("lb/a/theirs")).unwrap();
    lab.lb("detach --all").done();
    lab.assert_no_trace();
}
