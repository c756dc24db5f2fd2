//! `lb attach --config`: everything from a file, and the difference alone where something is attached.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use macaddr::MacAddr6;
use serde_json::Value;

use crate::backends::state;
use crate::common::packet;
use crate::lab::{Ended, Family, LB, Lab, Network, TemporaryFolder};

/// A configuration file for one lab.
struct File<'a> {
    lab: &'a Lab,
    path: PathBuf,
    _folder: TemporaryFolder,
}

impl<'a> File<'a> {
    #[track_caller]
    fn new(lab: &'a Lab) -> Self {
        let folder = TemporaryFolder::new(&lab.root);
        Self { lab, path: folder.0.join("lb.toml"), _folder: folder }
    }

    /// Writes the file, and attaches as it says.
    #[track_caller]
    fn attach(&self, text: &str, options: &str) -> Ended {
        let text = format!("max-sessions = {}\n{text}", self.lab.max_sessions);
        fs::write(&self.path, text).expect("a file can be written");
        let netns = self.lab.balancer.name();
        self.lab.lb(&format!("attach --netns {netns} --config {} {options}", self.path.display()))
    }
}

/// A backend's table, with a MAC that ends in `mac`.
fn table(name: &str, dev: &str, mac: u8, more: &str) -> String {
    format!("[[backend]]\nname = \"{name}\"\ndev = \"{dev}\"\nmac = \"02:00:00:00:00:{mac:02x}\"\n{more}\n")
}

/// The numbers of the pins of an instance: another one is another object.
fn pins(lab: &Lab) -> BTreeMap<String, u64> {
    let entries = fs::read_dir(lab.instance()).expect("an instance has a folder").flatten();
    let number = |entry: &fs::DirEntry| entry.metadata().expect("a pin can be looked at").ino();
    entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), number(&entry))).collect()
}

/// How many sessions each backend has, by its name.
#[track_caller]
fn sessions(lab: &Lab) -> BTreeMap<String, u64> {
    let list = lab.lb("backend list --json").json();
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let row = |backend: &Value| (text(&backend["name"]), backend["sessions"].as_u64().expect("a number"));
    list.as_array().expect("a list").iter().map(row).collect()
}

#[test]
fn a_file_is_the_one_place_that_says_what_is() {
    let lb = |arguments: &str| Ended::of(Command::new(LB).args(arguments.split_whitespace()));
    for option in [
        "--ingress eth1",
        "--egress eth2",
        "--vip 192.0.2.1",
        "--policy maglev",
        "--affinity address",
        "--spi-shard 2",
        "--max-sessions 5",
        "--idle-timeout 5m",
        "--start-rate 5",
        "--other drop",
        "--on-down hold",
        "--down-after 5s",
        "--return-path here",
    ] {
        let name = option.split_whitespace().next().unwrap();
        lb(&format!("attach --config lb.toml {option}")).misused(&["--config", name]);
    }
    lb("attach").misused(&["--ingress", "--egress"]);
    lb("attach --config lb.toml --force").misused(&["--replace"]);
    lb("attach --config /no/such/file").failed(1, &["/no/such/file"]);
}

#[test]
fn root_a_file_with_an_error_attaches_nothing() {
    let lab = Lab::with_ports(5);
    let file = File::new(&lab);
    let ports = "ingress = \"eth1\"\negress = \"eth2..eth4\"\nmode = \"skb\"\n";
    let path = file.path.display().to_string();
    let at = |place: &str| format!("{path}:{place}: ");
    for (text, place, words) in [
        ("ingress = \"eth1\"\nigress = \"eth2\"\n".to_owned(), at("3:1"), &["igress"][..]),
        (format!("{ports}max-sessions = 5\n"), at("5:1"), &["max-sessions", "duplicate"]),
        (format!("{ports}idle-timeout = 5\n"), at("5:16"), &["idle-timeout", "string"]),
        (format!("{ports}[[backend]]\nname = 5\n"), at("6:8"), &["name", "string"]),
        (format!("{ports}vip = "), at("5:7"), &["vip"]),
        ("ingress = \"eth1\"\n".into(), format!("{path}: "), &["egress", "missing"]),
        (format!("{ports}{}", table("a", "eth1", 1, "")), format!("{path}: "), &["eth1", "name it once"]),
        (
            ports.to_owned() + &table("a", "eth5", 1, "") + &table("b", "eth5", 1, ""),
            format!("{path}: "),
            &["a and b", "02:00:00:00:00:01"],
        ),
        (
            format!(
                "{ports}[[backend]]\nname = \"a\"\ndev = \"eth2\"\n[[backend]]\nname = \"b\"\ndev = \"eth2\"\n"
            ),
            format!("{path}: "),
            &["several backends behind eth2", "MAC"],
        ),
        (
            ports.to_owned() + &table("a", "eth5", 1, "") + &table("a", "eth5", 2, ""),
            format!("{path}: "),
            &["two backends", "a;"],
        ),
        (ports.to_owned() + &table("a", "eth5", 1, "label = 1"), format!("{path}: "), &["a", "--spi-shard"]),
        (
            format!("spi-shard = 2\n{ports}{}", table("a", "eth5", 1, "label = 4")),
            format!("{path}: "),
            &["label 4", "2 bits"],
        ),
        (
            "spi-shard = 3\n".to_owned()
                + ports
                + &table("a", "eth5", 1, "label = 4")
                + &table("b", "eth5", 2, "label = 4"),
            format!("{path}: "),
            &["a and b", "label, 4"],
        ),
        (format!("spi-shard = 1\n{ports}"), format!("{path}: "), &["3 backends", "1 bits"]),
        (
            format!("down-after = \"5s\"\nreturn-path = \"direct\"\n{ports}"),
            format!("{path}: "),
            &["--down-after", "direct"],
        ),
    ] {
        let error = file.attach(&text, "").failed(1, words);
        assert!(error.starts_with(&format!("lb: {place}")), "{error} does not start with {place}");
    }
    file.attach(&format!("{ports}[[backend]]\nname = \"eth77\"\n"), "").failed(1, &["no interface eth77"]);
    lab.assert_no_trace();
}

#[test]
fn root_a_file_says_everything() {
    let lab = Lab::with_ports(5);
    let file = File::new(&lab);
    let text = "ingress = \"eth1\"\negress = \"eth2=02:00:00:00:00:02\"\nmode = \"skb\"\nvip = [\"192.0.0.2\", \"2001:db8::2\"]\n\
                policy = \"least-sessions\"\naffinity = \"tunnel\"\nspi-shard = 3\non-down = \"hold\"\n\
                down-after = \"7s\"\nidle-timeout = \"90m\"\nstart-rate = 77\nother = \"drop\"\nreturn-path = \"here\"\n"
        .to_owned()
        + &table("teip1", "eth3", 0x31, "weight = 5\nlabel = 6")
        + &table("teip2", "eth3", 0x32, "state = \"draining\"");
    assert!(file.attach(&text, "").done().starts_with("attached default: eth1 -> eth3,eth2 (skb)"));
    let status = lab.status();
    for (key, value) in [
        ("policy", Value::from("least-sessions")),
        ("affinity", "tunnel".into()),
        ("vips", vec!["192.0.0.2", "2001:db8::2"].into()),
        ("spi_shard", 3.into()),
        ("on_down", "hold".into()),
        ("down_after_s", 7.into()),
        ("idle_timeout_s", 5400.into()),
        ("start_rate", 77.into()),
        ("max_sessions", lab.max_sessions.into()),
    ] {
        assert_eq!(status[key], value, "{key}");
    }
    assert_eq!(lab.backends("name"), ["teip1", "teip2", "eth2"]);
    assert_eq!(lab.backends("weight"), [5, 1, 1]);
    assert_eq!(lab.backends("label"), [6, 0, 1]);
    assert_eq!(lab.backends("state"), ["active", "draining", "active"]);
    lab.lb("detach").done();
    lab.assert_no_trace();
}

#[test]
fn root_a_replacement_changes_what_differs_and_nothing_else() {
    let lab = Lab::with_ports(7);
    let file = File::new(&lab);
    let head = "mode = \"skb\"\n";
    let first = format!("{head}ingress = \"eth1,eth7\"\n")
        + &table("a", "eth2", 0xa, "")
        + &table("b", "eth3", 0xb, "weight = 4")
        + &table("c", "eth3", 0xc, "")
        + &table("d", "eth4", 0xd, "");
    file.attach(&first, "").done();
    lab.lb("backend drain a").done();
    let before = pins(&lab);

    // The same once more: new programs, and nothing else.
    assert!(file.attach(&first, "--replace").done().starts_with("replaced default"));
    assert_eq!(
        lab.backends("state"),
        ["draining", "active", "active", "active"],
        "what the file leaves open stays"
    );
    let after = pins(&lab);
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    assert!(before.iter().all(|(name, number)| name == "config" || after[name] == *number));

    // A backend goes, one comes, one changes, one moves; an ingress goes, another one comes.
    let second = format!("{head}ingress = \"eth7,eth6\"\npolicy = \"maglev\"\n")
        + &table("a", "eth2", 0x1a, "state = \"active\"")
        + &table("c", "eth3", 0xc, "weight = 2")
        + &table("d", "eth5", 0xd, "")
        + &table("e", "eth5", 0xe, "");
    file.attach(&second, "--replace").done();
    assert_eq!(lab.backends("name"), ["a", "c", "d", "e"]);
    assert_eq!(lab.backends("dev"), ["eth2", "eth3", "eth5", "eth5"]);
    assert_eq!(lab.backends("weight"), [1, 2, 1, 1]);
    assert_eq!(lab.backends("state"), ["active"; 4]);
    assert_eq!(lab.backends("mac")[0], "02:00:00:00:00:1a");
    lab.assert_xdp_on(&["eth2", "eth3", "eth5", "eth6", "eth7"]);
    assert_eq!((lab.state(), lab.status()["policy"].clone()), ("attached".into(), "maglev".into()));
    let end = pins(&lab);
    for (name, number) in &before {
        let kept = name.starts_with("map-")
            || ["eth2", "eth3", "eth7"].iter().any(|dev| is_link_to(&lab, name, dev));
        assert!(!kept || end.get(name) == Some(number), "{name}");
    }

    // What cannot be leaves everything as it was.
    let before = (state(&lab), pins(&lab));
    for (text, words) in [
        (format!("{second}{}", table("f", "eth4", 0xe, "")), &["e and f"][..]),
        (format!("{second}{}", table("f", "eth77", 0xf, "")), &["no interface eth77"]),
        (second.replace("skb", "drv"), &["mode skb", "detach"]),
        (format!("affinity = \"tunnel\"\n{second}"), &["--affinity"]),
        (second.replace("eth7,eth6", "eth7,eth2").replace("\"eth2\"", "\"eth1\""), &["eth2", "detach"]),
        (format!("spi-shard = 1\n{second}"), &["4 backends", "1 bits"]),
    ] {
        file.attach(&text, "--replace").failed(1, words);
        assert_eq!((state(&lab), pins(&lab)), before, "{text}");
    }
    file.attach(&second, "").failed(1, &["attached already", "--replace"]);
    // Nor does an interface that has somebody else's program.
    let occupant =
        crate::common::kernel::Occupant::by_link(&lab.balancer, "eth4", lb::kernel::xdp::Mode::Skb);
    let text = second.replace("eth7,eth6", "eth1,eth7,eth6") + &table("f", "eth4", 0xf, "");
    file.attach(&text, "--replace").failed(1, &["eth4", &occupant.program.to_string()]);
    assert_eq!((state(&lab), pins(&lab)), before);
    drop(occupant);
    file.attach(&text, "--replace").done();
    lab.lb("detach").done();
    lab.assert_no_trace();
}

/// Whether a pin is that of the link to an interface.
fn is_link_to(lab: &Lab, pin: &str, dev: &str) -> bool {
    let number =
        lab.balancer.within(|| lb::kernel::interface::Interface::find(dev).expect("it is there").index);
    pin.starts_with("link-") && pin.ends_with(&format!("-{number}"))
}

#[test]
fn root_a_replacement_keeps_the_sessions_of_what_stays() {
    let network = Network::new();
    let lab = &network.lab;
    let file = File::new(lab);
    let table = |index: u8, more: &str| {
        let mac = MacAddr6::from(packet::backend_mac(index));
        format!("[[backend]]\nname = \"eth{}\"\nmac = \"{mac}\"\n{more}\n", index + 2)
    };
    let all: Vec<String> = (0..4).map(|index| table(index, "")).collect();
    let head = "mode = \"skb\"\ningress = \"eth1\"\n";
    file.attach(&format!("{head}{}", all.concat()), "").done();
    let ping = |client: u8| assert_eq!(network.ping(Family::V4, client, "-c 1"), 1, "client {client}");
    (1..=8).for_each(ping);
    let at_first = lab.sessions();
    assert!(sessions(lab).values().all(|count| *count == 2));

    // One with sessions does not go just so.
    let rest = format!("{head}{}", [&all[0], &all[1], &all[2]].map(String::as_str).concat());
    let before = (state(lab), pins(lab));
    file.attach(&rest, "--replace").failed(1, &["2 at eth5", "drain", "--force"]);
    assert_eq!((state(lab), pins(lab)), before);
    file.attach(&rest, "--replace --force").done();
    assert_eq!(
        sessions(lab),
        [("eth2", 2), ("eth3", 2), ("eth4", 2)].map(|(name, count)| (name.into(), count)).into()
    );
    let stayed = |session: &&Value| session["backend"] != "eth5";
    let mut kept: Vec<&Value> = at_first.iter().filter(stayed).map(|session| &session["client"]).collect();
    let now = lab.sessions();
    let mut found: Vec<&Value> = now.iter().map(|session| &session["client"]).collect();
    kept.sort_by_key(|client| client.to_string());
    found.sort_by_key(|client| client.to_string());
    assert_eq!(kept, found);

    // One that has been drained empty does.
    lab.lb("session flush").done();
    let two = format!("{head}{}", [&all[0], &all[1]].map(String::as_str).concat());
    file.attach(&two, "--replace").done();
    (1..=8).for_each(ping);
    assert_eq!(sessions(lab), [("eth2", 4), ("eth3", 4)].map(|(name, count)| (name.into(), count)).into());
}
