//! `lb explain`: it says what the wire shows, and leaves everything as it is.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::packet::{self, Ike};
use crate::lab::{Ended, Family, Lab, Network, Running, TemporaryFolder, eventually};
use crate::packets::{IKE, NAT, Servers, Stream, Tap, ike_bytes, udp};
use lb::kernel::interface::Interface;
use lb::kernel::program::{Program, RunOptions};
use lb::lb::explain::capture::Capture;

const BOTH_PORTS: [u16; 2] = [IKE, NAT];

/// A pcap file of Ethernet frames, a millisecond apart.
fn pcap(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = header(1);
    for (number, frame) in (0u32..).zip(frames) {
        let length = frame.len() as u32;
        for word in [1_700_000_000, number % 1000 * 1000, length, length] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(frame);
    }
    bytes
}

fn header(linktype: u32) -> Vec<u8> {
    [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65535, linktype]
        .iter()
        .flat_map(|word: &u32| word.to_le_bytes())
        .collect()
}

/// A key of a map, and its value, or its values on each CPU.
type Entry = (Vec<u8>, Vec<Vec<u8>>);

/// Files of a test beside its lab.
struct Files(TemporaryFolder);

impl Files {
    #[track_caller]
    fn new(lab: &Lab) -> Self {
        Self(TemporaryFolder::new(&lab.root))
    }

    #[track_caller]
    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.0.join(name);
        fs::write(&path, bytes).expect("a temporary file can be written");
        path
    }
}

/// What is said of each packet of a file.
#[track_caller]
fn explain(lab: &Lab, file: &Path, options: &str) -> Vec<Value> {
    lab.lb(&format!("explain --json {options} {}", file.display())).documents()
}

/// One key of each document.
fn column<'a>(documents: &'a [Value], key: &str) -> Vec<&'a str> {
    documents.iter().map(|document| document[key].as_str().unwrap_or("-")).collect()
}

/// A lab of five ports, one client side and four backends, on which no frame ever is: what lives in its tables was put there
/// by runs of the attached programs.
struct Quiet {
    lab: Lab,
    client: Program,
    backend: Program,
    indexes: Vec<u32>,
}

impl Quiet {
    #[track_caller]
    fn new(arguments: &str) -> Self {
        let lab = Lab::with_ports(5);
        lab.attach(&format!("{} {arguments}", Network::ports_with_macs())).done();
        let ids = lab.program_ids();
        let program = |id: u64| Program::from_id(id as u32).expect("it is attached");
        let index = |number| Interface::find(&format!("eth{number}")).expect("it is there").index;
        let indexes = lab.balancer.within(|| (1..=5).map(index).collect());
        Self { client: program(ids[0]), backend: program(ids[1]), indexes, lab }
    }

    /// Runs the attached program of a client-side interface on a frame. Returns the MAC that the frame has then.
    #[track_caller]
    fn client_sends(&self, frame: &[u8]) -> [u8; 6] {
        self.run(&self.client, 0, frame)
    }

    /// The same for the interface of backend `index`.
    #[track_caller]
    fn backend_sends(&self, index: usize, frame: &[u8]) {
        self.run(&self.backend, 1 + index, frame);
    }

    #[track_caller]
    fn run(&self, program: &Program, interface: usize, frame: &[u8]) -> [u8; 6] {
        let options = RunOptions { ingress_ifindex: Some(self.indexes[interface]), ..RunOptions::default() };
        let run = self.lab.balancer.within(|| program.run(frame, options)).expect("the program runs");
        run.packet[..6].try_into().expect("a frame has a MAC")
    }

    /// A client with an established session. Returns its backend.
    #[track_caller]
    fn establish(&self, client: IpAddr, spi: u64) -> usize {
        let backend = backend_of(self.client_sends(&packet::ike(client, Ike::init(spi))));
        let answer = packet::ike_back(client, Ike::init_response(spi, !spi));
        self.backend_sends(backend, &packet::sent_by(answer, packet::backend_mac(backend as u8)));
        self.client_sends(&packet::ike(client, Ike::auth(spi, !spi)));
        backend
    }

    /// Every entry of every pinned map, byte by byte.
    #[track_caller]
    fn dump(&self) -> BTreeMap<String, Vec<Entry>> {
        let entries = fs::read_dir(self.lab.instance()).expect("the instance has a folder");
        let mut maps = BTreeMap::new();
        for path in entries.map(|entry| entry.expect("a folder can be read").path()) {
            let name = path.file_name().expect("it has a name").to_string_lossy().into_owned();
            if name.starts_with("link-") {
                continue;
            }
            let map = MapHandle::from_pinned_path(&path).expect("it is a map");
            let entries: Vec<Entry> = match map.map_type() {
                MapType::Array | MapType::Hash | MapType::LruHash => {
                    let all = map.lookup_batch(map.max_entries(), MapFlags::ANY, MapFlags::ANY);
                    all.expect("a map can be read").map(|(key, value)| (key, vec![value])).collect()
                }
                MapType::PercpuArray => {
                    let value = |key: &[u8]| map.lookup_percpu(key, MapFlags::ANY).expect("it can be read");
                    map.keys().map(|key| (key.clone(), value(&key).expect("it is there"))).collect()
                }
                _ => {
                    let value = |key: &[u8]| map.lookup(key, MapFlags::ANY).expect("it can be read");
                    map.keys().map(|key| (key.clone(), value(&key).into_iter().collect())).collect()
                }
            };
            maps.insert(name, entries);
        }
        maps
    }
}

fn backend_of(mac: [u8; 6]) -> usize {
    (0..4).position(|index| packet::backend_mac(index) == mac).expect("it is sent to a backend")
}

fn dev(backend: usize) -> String {
    format!("eth{}", backend + 2)
}

/// Frames of every kind, of many clients, from both sides.
fn mixture(count: u32) -> Vec<Vec<u8>> {
    let frame = |number: u32| {
        let client = packet::client(number / 20, number % 2 == 1);
        let spi = u64::from(number) + 1;
        let by_backend = |frame| packet::sent_by(frame, packet::backend_mac((number / 20 % 4) as u8));
        let ike = || packet::ike(client, Ike { extra: 600, ..Ike::init(spi) });
        match number % 20 {
            0 | 1 => packet::ike(client, Ike::init(spi)),
            2 | 3 => by_backend(packet::ike_back(client, Ike::init_response(spi - 2, !spi))),
            4 | 5 => packet::ike(client, Ike::auth(spi - 4, !(spi - 2))),
            6 | 7 => packet::esp(client, number),
            8 | 9 => packet::esp_in_udp(client, 4500, 0x1000 + number),
            10 => packet::echo_request(client),
            11 => packet::arp(1, [0xff; 6]),
            12 => packet::fragments(&ike(), 512, number as u16, &[])[0].clone(),
            13 => packet::fragments(&ike(), 512, number as u16 - 1, &[])[1].clone(),
            14 => packet::tcp(client, packet::vip(client), 443),
            15 => packet::keepalive(client),
            // Of a client that never starts anything.
            16 => packet::ah(packet::client(5000 + number, false), 0x1000),
            17 => by_backend(packet::esp_back(client, 0x2000)),
            18 => packet::tagged(&packet::esp(client, 0x1000), &[0x88a8, 0x8100]),
            _ => packet::esp(client, 0x1000)[..40].to_vec(),
        }
    };
    (0..count).map(frame).collect()
}

#[test]
fn root_explain_names_the_backend_of_each_session() {
    for affinity in ["address", "tunnel"] {
        let quiet = Quiet::new(&format!("--affinity {affinity}"));
        let lab = &quiet.lab;
        let files = Files::new(lab);
        let mut frames = Vec::new();
        let mut wanted = Vec::new();
        for number in 1..=6u8 {
            let client = if number % 2 == 0 { Family::V6 } else { Family::V4 }.client(number);
            let spi = 0x1000 + u64::from(number);
            let backend = dev(quiet.establish(client, spi));
            let sessions = lab.lb(&format!("session get {client} --json")).json();
            assert_eq!(sessions[0]["backend"], backend.as_str(), "{sessions}");
            let of_client = [
                packet::esp(client, 0xc0ff_ee00),
                packet::ah(client, 0xc0ff_ee00),
                packet::esp_in_udp(client, 500, 0xc0ff_ee00),
                packet::ike(client, Ike::auth(spi, !spi)),
                packet::ike(client, Ike::init(0x7777_0000 + spi)),
                packet::echo_request(client),
            ];
            wanted.extend(of_client.iter().map(|_| backend.clone()));
            frames.extend(of_client);
        }
        let said = explain(lab, &files.write("sessions.pcap", &pcap(&frames)), "");
        assert_eq!(column(&said, "backend"), wanted, "{affinity}: {said:?}");
        for said in &said {
            assert_eq!(said["out"], serde_json::json!([said["backend"]]), "{said}");
            assert_eq!((&said["side"], &said["table"]), (&"client".into(), &"sessions".into()), "{said}");
        }

        // The same of packets that the options describe.
        let (client, spi) = (Family::V4.client(1), 0x1001u64);
        let addresses = format!("--src {client} --dst {}", packet::VIP4);
        for what in [
            "--proto esp --spi 0xc0ffee00".to_owned(),
            "--proto udp --sport 500 --dport 4500 --spi 0xc0ffee00".to_owned(),
            format!("--proto ike --ispi {spi:#x} --rspi {:#x}", !spi),
        ] {
            let said = lab.lb(&format!("explain --json {what} {addresses}")).json();
            assert_eq!(said["backend"], wanted[0].as_str(), "{affinity}: {said}");
            assert_eq!(said["verdict"], "session", "{affinity}: {said}");
            if affinity == "address" {
                assert_eq!(said["detail"], format!("session of address {client}"), "{said}");
            } else if what.contains("ike") {
                assert_eq!(said["detail"], format!("IKE SA 0x{spi:016x}"), "{said}");
            } else if what.contains("udp") {
                assert_eq!(said["detail"], format!("endpoint {client}:500"), "{said}");
            }
        }
    }
}

/// What is said of a start is what then happens, however often it was asked for before.
#[test]
fn root_explain_foretells_where_the_next_start_goes() {
    for policy in ["round-robin", "maglev"] {
        let quiet = Quiet::new(&format!("--policy {policy}"));
        for number in 1..=3u8 {
            let client = Family::V4.client(number);
            let line =
                format!("explain --json --proto ike --ispi 0x{number} --src {client} --dst {}", packet::VIP4);
            let said = [(); 2].map(|()| quiet.lab.lb(&line).json());
            assert_eq!(said[0], said[1], "explaining changes nothing");
            assert_eq!(said[0]["verdict"], "new", "{}", said[0]);
            assert_eq!(said[0]["reason"], "policy", "{}", said[0]);
            let happens = backend_of(quiet.client_sends(&packet::ike(client, Ike::init(number.into()))));
            assert_eq!(said[0]["backend"], dev(happens).as_str(), "{}", said[0]);
        }
    }
}

/// The promise itself: each byte of each map is what it was, whatever a thousand packets would have done.
#[test]
fn root_explaining_a_thousand_packets_changes_no_byte_of_any_map() {
    for arguments in ["", "--affinity tunnel --policy least-sessions", "--start-rate 1"] {
        let quiet = Quiet::new(arguments);
        let files = Files::new(&quiet.lab);
        quiet.establish(Family::V4.client(1), 1);
        quiet.establish(Family::V6.client(2), 2);
        let first = packet::fragments(&packet::esp(Family::V4.client(1), 0x1000), 24, 7, &[]);
        quiet.client_sends(&first[0]);
        let file = files.write("mixture.pcap", &pcap(&mixture(1000)));
        let footprint = quiet.lab.footprint();
        let before = quiet.dump();
        assert!(before.len() > 15 && before["map-fragments"].len() == 1, "{:?}", before.keys());
        assert!(before["map-hash_slots"].len() > 65537, "an array is read as a whole");

        let said = explain(&quiet.lab, &file, "");
        assert_eq!(said.len(), 1000);
        let verdicts = column(&said, "verdict");
        for verdict in ["new", "session", "stateless", "returned", "neighbour", "malformed", "other_dropped"]
        {
            assert!(
                verdicts.contains(&verdict) || arguments.contains("rate"),
                "{arguments}: no packet is {verdict}: {verdicts:?}"
            );
        }
        let after = quiet.dump();
        for (name, entries) in &before {
            assert_eq!(entries, &after[name], "{name} has changed");
        }
        assert_eq!(before, after);
        let gone = eventually(Duration::from_secs(10), || quiet.lab.footprint() == footprint);
        assert!(gone, "the copy is left: {:?} instead of {footprint:?}", quiet.lab.footprint());
    }
}

/// A client's packets in a capture find what came before, on the copy: the start, the answer, the proof.
#[test]
fn root_the_packets_of_a_capture_are_explained_in_their_order() {
    let quiet = Quiet::new("--vip 192.0.0.2");
    let files = Files::new(&quiet.lab);
    let client = Family::V4.client(1);
    let frames = [
        packet::esp(client, 0x1000),
        packet::ike(client, Ike::init(7)),
        packet::sent_by(packet::ike_back(client, Ike::init_response(7, 8)), packet::backend_mac(0)),
        packet::ike(client, Ike::auth(7, 8)),
        packet::tagged(&packet::esp(client, 0x1000), &[0x88a8, 0x8100]),
        packet::tagged(&packet::esp(client, 0x1000), &[0x88a8, 0x8100, 0x8100]),
        // From the VIP, by a MAC that nobody has.
        packet::esp_back(client, 0x2000),
        packet::sent_to(packet::arp(1, [0xff; 6]), packet::backend_mac(2)),
        packet::arp(1, [0xff; 6]),
        packet::esp("192.0.2.77".parse().expect("an address"), 0x1000),
    ];
    let said = explain(&quiet.lab, &files.write("a.pcap", &pcap(&frames)), "");
    let what = |key| column(&said, key);
    assert_eq!(
        what("verdict"),
        [
            "stateless",
            "new",
            "returned",
            "session",
            "session",
            "other_dropped",
            "returned",
            "neighbour",
            "neighbour",
            "stateless"
        ]
    );
    assert_eq!(
        what("side"),
        [
            "client", "client", "backend", "client", "client", "client", "backend", "client", "client",
            "client"
        ]
    );
    assert_eq!(
        what("reason"),
        [
            "hash", "policy", "verdict", "address", "address", "verdict", "verdict", "verdict", "verdict",
            "hash"
        ]
    );
    assert_eq!(what("backend")[1..6], ["eth2", "eth2", "eth2", "eth2", "-"]);
    assert_eq!(what("dev")[..3], ["eth1", "eth1", "eth2"]);
    assert_eq!(what("backend")[6], "-", "nobody has that MAC");
    assert!(said[6]["note"].as_str().is_some_and(|note| note.contains("source MAC")), "{}", said[6]);
    assert_eq!(said[2]["out"], serde_json::json!(["eth1"]));
    assert_eq!(said[7]["out"], serde_json::json!(["eth4"]));
    assert_eq!(said[8]["out"], serde_json::json!(["eth2", "eth3", "eth4", "eth5"]));
    assert_eq!(said[4]["packet"]["vlans"], serde_json::json!([42, 42]));
    assert_eq!(said[0]["detail"], format!("no session: hash of {client}"));
    assert_eq!(said[0]["time"], "2023-11-14T22:13:20.000000000Z");
    let numbers: Vec<u64> = said.iter().filter_map(|one| one["number"].as_u64()).collect();
    assert_eq!(numbers, (1..=frames.len() as u64).collect::<Vec<_>>());
    assert_eq!(quiet.lab.sessions(), Vec::<Value>::new(), "nothing of it has happened");

    // The same for people, and all from the side or the interface that is said.
    let table = quiet.lab.lb(&format!("explain {}", files.0.0.join("a.pcap").display())).done();
    assert_eq!(table.lines().count(), frames.len() + 1, "{table}");
    assert!(table.contains("session of address 192.0.1.1"), "{table}");
    let file = files.write("b.pcap", &pcap(&frames[..4]));
    assert_eq!(column(&explain(&quiet.lab, &file, "--side backend"), "side"), ["backend"; 4]);
    assert_eq!(column(&explain(&quiet.lab, &file, "--dev eth4"), "backend"), ["eth4"; 4]);
    assert_eq!(column(&explain(&quiet.lab, &file, "--dev eth1"), "side"), ["client"; 4]);
}

/// Starts are counted by the time that their capture has, not by how fast they are explained.
#[test]
fn root_a_rate_is_that_of_the_capture() {
    let quiet = Quiet::new("--start-rate 20");
    let files = Files::new(&quiet.lab);
    let client = Family::V4.client(1);
    // One source has one start a second: of two at once, the second one goes by hash.
    let starts: Vec<Vec<u8>> = (1..=4u64)
        .map(|number| packet::ike(packet::client(number as u32 % 2, false), Ike::init(number)))
        .collect();
    let mut bytes = header(1);
    for (frame, seconds) in starts.iter().zip([100u32, 100, 200, 300]) {
        for word in [seconds, 0, frame.len() as u32, frame.len() as u32] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(frame);
    }
    let said = explain(&quiet.lab, &files.write("slow.pcap", &bytes), "");
    assert_eq!(column(&said, "reason")[..2], ["policy", "policy"]);
    let fast: Vec<Vec<u8>> =
        (0..64).map(|number| packet::ike(packet::client(number, false), Ike::init(1))).collect();
    let said = explain(&quiet.lab, &files.write("fast.pcap", &pcap(&fast)), "");
    let reasons = column(&said, "reason");
    assert!(reasons.contains(&"rate"), "{reasons:?}");
    let mut slow = header(1);
    for (frame, second) in fast.iter().zip((1000u32..).step_by(2)) {
        for word in [second, 0, frame.len() as u32, frame.len() as u32] {
            slow.extend(word.to_le_bytes());
        }
        slow.extend(frame);
    }
    let said = explain(&quiet.lab, &files.write("slow.pcap", &slow), "");
    assert_eq!(column(&said, "reason"), ["policy"; 64]);
    assert!(quiet.lab.sessions().is_empty(), "{client} has none");
}

/// Real packets, captured by tcpdump at the client: explain names for each the backend that had it on its own wire.
#[test]
fn root_explain_of_a_capture_names_the_backend_that_the_wire_shows() {
    for options in ["--affinity address --policy round-robin", "--affinity tunnel --policy maglev"] {
        let network = Network::new();
        network.attach(options);
        let files = Files::new(&network.lab);
        let path = files.0.0.join("wire.pcap");
        let mut command = network.client.command("tcpdump");
        command.args(["-i", "eth1", "-U", "--immediate-mode", "-Z", "root", "-w"]).arg(&path);
        let tcpdump = Running::start(&mut command);
        let listening = || fs::metadata(&path).is_ok_and(|file| file.len() >= 24);
        assert!(eventually(crate::lab::PATIENCE, listening), "tcpdump does not begin");

        let taps: Vec<Tap> = network.backends.iter().map(|backend| Tap::new(backend, "eth1")).collect();
        let back = Tap::new(&network.client, "eth1");
        let family = Family::V4;
        let servers = BOTH_PORTS.map(|port| Servers::new(&network, family, port));
        for number in 1..=6u8 {
            let client = family.client(number);
            let spi = 0x0a0b_0000 + u64::from(number);
            let sockets = BOTH_PORTS.map(|port| udp(&network.client, client, port));
            let init = ike_bytes(IKE, Ike::init(spi));
            sockets[0].send_to(&init, (family.vip(), IKE)).expect("it can be sent");
            let (backend, from) = servers[0].receiver_of(&init);
            let answer = ike_bytes(IKE, Ike::init_response(spi, !spi));
            servers[0].0[backend].send_to(&answer, from).expect("it can be sent");
            sockets[0].recv(&mut [0; 2048]).expect("the answer comes");
            // Longer than a frame: fragments.
            let auth = ike_bytes(NAT, Ike { extra: 3000, ..Ike::auth(spi, !spi) });
            sockets[1].send_to(&auth, (family.vip(), NAT)).expect("it can be sent");
            let (auth_backend, from) = servers[1].receiver_of(&auth);
            assert_eq!(auth_backend, backend, "the handshake stays at one backend");
            servers[1].0[backend].send_to(&packet::esp_bytes(0x2000), from).expect("it can be sent");
            let esp = packet::esp_bytes(0x1000 + u32::from(number));
            sockets[1].send_to(&esp, (family.vip(), NAT)).expect("it can be sent");
            assert_eq!(servers[1].receiver_of(&esp).0, backend);
            assert_eq!(network.ping(family, number, "-c 1"), 1);
        }
        back.wait_for("an answer", |_| true);
        let mut wire: HashMap<Vec<u8>, usize> = HashMap::new();
        for (index, tap) in taps.iter().enumerate() {
            for frame in tap.frames().iter().filter(|frame| frame[12..14] == [0x08, 0x00]) {
                wire.insert(frame[14..].to_vec(), index);
            }
        }
        tcpdump.signal(Signal::SIGINT);
        tcpdump.end();

        let captured: Vec<Vec<u8>> = Capture::open(&path)
            .expect("tcpdump writes a capture")
            .map(|packet| packet.expect("it is whole").frame)
            .collect();
        let said = explain(&network.lab, &path, "");
        assert_eq!(said.len(), captured.len());
        let (mut there, mut returned) = (0, 0);
        for (frame, said) in captured.iter().zip(&said) {
            if let Some(backend) = wire.get(&frame[14..]) {
                there += 1;
                assert_eq!(said["backend"], dev(*backend).as_str(), "{said}");
                assert_eq!(said["side"], "client", "{said}");
            } else if let Some(backend) = (0..4).position(|index| frame[6..12] == packet::backend_mac(index))
            {
                returned += 1;
                assert_eq!(said["backend"], dev(backend).as_str(), "{said}");
                assert_eq!(said["side"], "backend", "{said}");
            }
        }
        // A start, three fragments, ESP and a ping of each client; its answers to all but the ESP.
        assert!(there >= 6 * 6 && returned >= 6 * 3, "{there} there, {returned} back: {said:?}");
    }
}

/// A stream of packets goes on at full speed while the tables are copied again and again.
#[test]
fn root_explaining_under_traffic_loses_no_packet() {
    let network = Network::new();
    network.attach("");
    let stream = Stream::start(&network, Family::V4);
    let client = Family::V4.client(1);
    let backend = network.lab.lb(&format!("session get {client} --json")).json()[0]["backend"].clone();
    for _ in 0..3 {
        let line = format!("explain --json --proto udp --spi 0x1000 --src {client} --dst {}", packet::VIP4);
        let said = network.lab.lb(&line).json();
        assert_eq!(said["verdict"], "session", "{said}");
        assert_eq!(said["backend"], backend, "{said}");
    }
    stream.finish_without_loss();
}

/// The rules beside sessions, policy and hash of the address: what they are called, and which backend they name.
#[test]
fn root_every_rule_has_its_words() {
    let told = |lab: &Lab, options: &str, client: IpAddr| {
        let line = format!("explain --json --src {client} --dst {} {options}", packet::VIP4);
        let said = lab.lb(&line).json();
        let text = |key: &str| said[key].as_str().unwrap_or("-").to_owned();
        (["verdict", "reason", "table", "backend"].map(text), text("detail"))
    };
    let shown = |verdict: &str, reason: &str, table: &str, backend: &str| {
        [verdict, reason, table, backend].map(str::to_owned)
    };
    let client = Family::V4.client(1);
    let esp = "--proto esp --spi 0x90000001";

    let quiet = Quiet::new("--spi-shard 4");
    quiet.lab.lb("backend set eth4 --label 9").done();
    let (row, detail) = told(&quiet.lab, esp, client);
    assert_eq!(row, shown("stateless", "label", "labels", "eth4"));
    assert_eq!(detail, "label 9 of SPI 0x90000001");
    let (row, detail) = told(&quiet.lab, "--proto ike --ispi 5 --rspi 0x9000000000000001", client);
    assert_eq!(row, shown("stateless", "label", "labels", "eth4"));
    assert_eq!(detail, "label 9 of IKE SPI 0x9000000000000001");

    // A later fragment says nothing of a client of its own accord here: its first one went by a label.
    let files = Files::new(&quiet.lab);
    let fragments = packet::fragments(&packet::esp(client, 0x9000_0001), 24, 7, &[]);
    let said = explain(&quiet.lab, &files.write("fragments.pcap", &pcap(&fragments)), "");
    assert_eq!(column(&said, "reason"), ["label", "fragment"]);
    assert_eq!(column(&said, "backend"), ["eth4", "eth4"]);
    assert_eq!(said[1]["detail"], "first fragment of packet 7");

    for on_down in ["rehash", "hold"] {
        let quiet = Quiet::new(&format!("--on-down {on_down}"));
        let own = dev(quiet.establish(client, 1));
        quiet.lab.lb(&format!("backend drain {own}")).done();
        let (row, _) = told(&quiet.lab, esp, client);
        assert_eq!(row, shown("session", "address", "sessions", &own));
        let (row, _) = told(&quiet.lab, "--proto ike --ispi 99", client);
        assert_eq!(row[..3], shown("new", "policy", "ring", "")[..3]);
        assert_ne!(row[3], own, "a draining backend gets no start");

        quiet.lab.lb(&format!("backend down {own}")).done();
        let (row, detail) = told(&quiet.lab, esp, client);
        if on_down == "rehash" {
            assert_eq!(row[..3], shown("stateless", "down", "hash_slots", "")[..3]);
            assert_ne!(row[3], own, "what is down gets nothing");
            assert_eq!(detail, format!("the backend of its session is down: hash of {client}"));
            for backend in (0..4).map(dev).filter(|backend| *backend != own) {
                quiet.lab.lb(&format!("backend down {backend}")).done();
            }
            let (row, detail) = told(&quiet.lab, "--proto esp --spi 0x1000", Family::V4.client(2));
            assert_eq!(row, shown("no_backend", "hash", "hash_slots", "-"));
            assert!(detail.ends_with("; no backend takes packets"), "{detail}");
        } else {
            assert_eq!(row, shown("no_backend", "down", "sessions", "-"));
            assert!(detail.contains("takes no packets now, and --on-down hold"), "{detail}");
        }
    }
}

/// Tells a thread to stop when this is dropped, also by a test that fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Slots change hands without a pause while the table is copied: what is established stands out unharmed.
#[test]
fn root_a_copy_is_right_while_starts_come_in() {
    let quiet = Quiet::new("--start-rate 10000000");
    let clients: Vec<(IpAddr, String)> = (1..=5u8)
        .map(|number| {
            let client = Family::V4.client(number);
            (client, dev(quiet.establish(client, number.into())))
        })
        .collect();
    let frames: Vec<Vec<u8>> = clients.iter().map(|(client, _)| packet::esp(*client, 0x1000)).collect();
    let files = Files::new(&quiet.lab);
    let file = files.write("esp.pcap", &pcap(&frames));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let flood = scope.spawn(|| {
            for number in 0u32.. {
                if stop.load(Ordering::Relaxed) {
                    return number;
                }
                let client = packet::client(1000 + number, number % 2 == 1);
                quiet.client_sends(&packet::ike(client, Ike::init(u64::from(number) + 1)));
            }
            0
        });
        let stopping = Stop(&stop);
        for _ in 0..3 {
            let said = explain(&quiet.lab, &file, "");
            for (said, (client, backend)) in said.iter().zip(&clients) {
                assert_eq!(said["backend"], backend.as_str(), "{said}");
                assert_eq!(said["detail"], format!("session of address {client}"), "{said}");
            }
        }
        drop(stopping);
        assert!(flood.join().expect("the flood does not panic") > 1000, "that was no flood");
    });
}

#[test]
fn root_frames_that_no_program_gets_are_said_to_be_so() {
    let quiet = Quiet::new("");
    let files = Files::new(&quiet.lab);
    let client = Family::V4.client(1);
    let backend = quiet.establish(client, 1);
    let long = packet::raw(client, packet::VIP4.into(), etherparse::IpNumber(50), &[7; 5000]);
    let mut bytes = pcap(&[vec![1; 13], long, Vec::new()]);
    // 60 of 1,400 bytes were captured, as with `tcpdump -s 60`.
    let cut = packet::raw(client, packet::VIP4.into(), etherparse::IpNumber(50), &[7; 1366]);
    for word in [1_700_000_001u32, 0, 60, 1400] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(&cut[..60]);
    // The longest frame that goes, and one byte more.
    for length in [3520usize, 3521] {
        let frame = packet::raw(client, packet::VIP4.into(), etherparse::IpNumber(50), &vec![7; length - 34]);
        assert_eq!(frame.len(), length);
        for word in [1_700_000_002u32, 0, length as u32, length as u32] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(&frame);
    }
    let said = explain(&quiet.lab, &files.write("odd.pcap", &bytes), "");
    assert_eq!(column(&said, "reason"), ["not_run", "not_run", "not_run", "address", "address", "not_run"]);
    assert_eq!(column(&said, "verdict"), ["-", "-", "-", "session", "session", "-"]);
    assert!(said[0]["detail"].as_str().is_some_and(|text| text.contains("too short")), "{}", said[0]);
    assert!(said[1]["detail"].as_str().is_some_and(|text| text.contains("too long")), "{}", said[1]);
    assert!(
        said[3]["note"].as_str().is_some_and(|text| text.contains("60 of its 1400 bytes")),
        "{}",
        said[3]
    );
    assert_eq!(said[3]["backend"], dev(backend).as_str());
}

#[test]
fn root_broken_captures_and_wrong_usage_are_clear_errors() {
    let quiet = Quiet::new("");
    let lab = &quiet.lab;
    let files = Files::new(lab);
    let run = |file: &Path| lab.lb(&format!("explain --json {}", file.display()));
    let frame = packet::esp(Family::V4.client(1), 0x1000);
    let whole = pcap(&[frame.clone(), frame.clone()]);

    run(&files.write("empty", b"")).failed(1, &["is empty"]);
    run(&files.write("text", b"this is no capture, whatever its name")).failed(1, &["is no capture"]);
    run(&files.write("header", &whole[..20])).failed(1, &["within its header"]);
    run(&files.write("cooked", &header(113))).failed(1, &["Linux cooked", "tcpdump -i eth1"]);
    run(&files.0.0.join("missing")).failed(1, &["missing", "No such file"]);
    run(&files.0.0).failed(1, &["cannot read"]);
    assert_eq!(run(&files.write("none", &header(1))).documents(), Vec::<Value>::new());

    // What is whole before the break is explained, the break is an error.
    let cut = run(&files.write("cut", &whole[..whole.len() - 1]));
    assert_eq!(cut.status.code(), Some(1), "{cut:?}");
    assert_eq!(cut.stdout.lines().count(), 1, "{cut:?}");
    assert!(cut.stderr.contains("cut short") && cut.stderr.contains("packet 2"), "{cut:?}");
    let mut broken = whole.clone();
    let second = 24 + 16 + frame.len();
    broken[second + 8..second + 12].copy_from_slice(&u32::MAX.to_le_bytes());
    let broken = run(&files.write("broken", &broken));
    assert_eq!(broken.status.code(), Some(1), "{broken:?}");
    assert_eq!(broken.stdout.lines().count(), 1, "{broken:?}");
    assert!(broken.stderr.contains("packet 2"), "{broken:?}");

    let file = files.write("whole", &whole);
    let with = |options: &str| lab.lb(&format!("explain {options} {}", file.display()));
    with("--name nobody").failed(1, &["no instance named nobody", "default"]);
    with("--dev eth9").failed(1, &["eth9", "eth1, eth2"]);
    with("--dev eth2 --side client").failed(1, &["eth2 is an egress interface", "--side client"]);
    lab.lb("explain").misused(&["FILE.pcap"]);
    with("--proto esp --src 192.0.2.1 --dst 192.0.0.2").misused(&["--proto"]);
    let tuple = |options: &str| lab.lb(&format!("explain --src 192.0.2.1 --dst 192.0.0.2 {options}"));
    tuple("--proto esp").failed(2, &["needs --spi"]);
    tuple("--proto icmp --spi 0x1000").failed(2, &["takes no --spi"]);
    tuple("--proto esp --spi 0x1000 --backend eth9").failed(1, &["no backend eth9", "eth2, eth3"]);
    tuple("--proto esp --spi xyz").misused(&["0x"]);
    lab.lb("explain --proto icmp --src 192.0.2.1 --dst 2001:db8::2").failed(2, &["two families"]);
}

/// A packet of a backend, made by options.
#[test]
fn root_a_backends_packet_is_explained_as_returned() {
    let quiet = Quiet::new("--vip 192.0.0.2");
    let client = Family::V4.client(1);
    let line = format!("explain --json --proto esp --spi 0x1000 --src 192.0.0.2 --dst {client}");
    let said = quiet.lab.lb(&format!("{line} --backend eth4")).json();
    assert_eq!(said["verdict"], "returned", "{said}");
    assert_eq!((&said["backend"], &said["dev"]), (&"eth4".into(), &"eth4".into()), "{said}");
    assert_eq!(said["packet"]["source_mac"], "aa:bb:cc:00:00:03", "{said}");
    assert_eq!(said["out"], serde_json::json!(["eth1"]), "{said}");
    // By the VIP alone it is known to be from that side, not from whom.
    let said = quiet.lab.lb(&line).json();
    assert_eq!((&said["side"], &said["backend"]), (&"backend".into(), &Value::Null), "{said}");
    let answered = Ended::of(&mut quiet.lab.command(&format!("{line} --side client"))).json();
    assert_eq!(answered["side"], "client", "{answered}");
}
