//! Sessions carried from one instance to another by `lb session export` and `import`, and as tunnels see them listed.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::common::packet::{self, Ike};
use crate::lab::{BACKENDS, Ended, Family, LB, Lab, Network, PATIENCE, Running, eventually};
use crate::packets::{Tap, Taps, contains};
use crate::traffic::{answer, destination};

/// A tunnel whose handshake is done: an IKE SA from one UDP port of a client.
#[derive(Clone, Copy, Debug)]
struct Tunnel {
    client: IpAddr,
    /// Its NAT's port; 500 and 4500 where there is none.
    port: Option<u16>,
    initiator_spi: u64,
    backend: usize,
}

impl Tunnel {
    const RESPONDER: u64 = 0x8877_6655_0000_0000;

    /// Goes through a handshake on port 500, and on port 4500 from the second message on.
    #[track_caller]
    fn establish(network: &Wired, client: IpAddr, port: Option<u16>, initiator_spi: u64) -> Self {
        let (vip, from) = (packet::vip(client), port.unwrap_or(500));
        let start = packet::udp((client, from), (vip, 500), &Ike::init(initiator_spi).bytes());
        let backend = destination(&network.client, &network.backends, &start);
        let tunnel = Self { client, port, initiator_spi, backend };
        let back = Ike::init_response(initiator_spi, tunnel.responder_spi()).bytes();
        let back = answer(backend, packet::udp((vip, 500), (client, from), &back));
        network.backends.0[backend].send(&back);
        network.client.wait_for("the answer", |seen| contains(seen, &back[14..]));
        let second = destination(&network.client, &network.backends, &tunnel.ike());
        assert_eq!(second, backend, "the second packet goes where the first one went");
        tunnel
    }

    fn responder_spi(&self) -> u64 {
        Self::RESPONDER + self.initiator_spi % 0x1000
    }

    fn ike(&self) -> Vec<u8> {
        let message = Ike::auth(self.initiator_spi, self.responder_spi());
        packet::ike_nat(self.client, self.port.unwrap_or(4500), message)
    }

    /// ESP, in UDP where there is a NAT.
    fn esp(&self) -> Vec<u8> {
        let spi = 0x1000 + self.initiator_spi as u32 % 0x1000;
        match self.port {
            Some(port) => packet::esp_in_udp(self.client, port, spi),
            None => packet::esp(self.client, spi),
        }
    }

    /// Sends ESP and IKE, both of which have to reach the tunnel's backend.
    #[track_caller]
    fn check(&self, network: &Wired) {
        for (what, frame) in [("ESP", self.esp()), ("IKE", self.ike()), ("ESP", self.esp())] {
            let reached = destination(&network.client, &network.backends, &frame);
            assert_eq!(reached, self.backend, "{what} of {self:?}");
        }
    }
}

/// A network with raw sockets at all its ends.
struct Wired {
    network: Network,
    client: Tap,
    backends: Taps,
}

impl Wired {
    #[track_caller]
    fn new() -> Self {
        let network = Network::new();
        Self { client: Tap::new(&network.client, "eth1"), backends: Taps::new(&network), network }
    }

    fn lab(&self) -> &Lab {
        &self.network.lab
    }
}

/// A file of exported sessions, gone when this is dropped.
struct Exported(PathBuf);

impl Exported {
    /// What `lb session export` prints.
    #[track_caller]
    fn of(lab: &Lab) -> Self {
        Self::with(lab, &lab.lb("session export").done())
    }

    #[track_caller]
    fn with(lab: &Lab, text: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let root = lab.root.file_name().expect("a root has a name").to_string_lossy();
        let name = format!("{root}-{}.jsonl", COUNT.fetch_add(1, Ordering::Relaxed));
        let exported = Self(std::env::temp_dir().join(name));
        fs::write(&exported.0, text).expect("a file can be written");
        exported
    }

    fn import(&self, lab: &Lab, options: &str) -> Ended {
        lab.lb(&format!("session import {} {options}", self.0.display()))
    }
}

impl Drop for Exported {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// An import of a file that has `text`.
#[track_caller]
fn import(lab: &Lab, text: &str, options: &str) -> Ended {
    Exported::with(lab, text).import(lab, options)
}

/// The sessions with what does not change by itself.
#[track_caller]
fn steady(lab: &Lab) -> Vec<Value> {
    let mut sessions = lab.sessions();
    for session in &mut sessions {
        let session = session.as_object_mut().unwrap();
        session.remove("age_s");
        session.remove("idle_s");
    }
    sessions
}

/// How many sessions the counters of the datapath say that there are.
#[track_caller]
fn established(lab: &Lab) -> u64 {
    lab.status()["established"].as_u64().unwrap()
}

/// Names the backends in another order than [`Network::attach`] does, so that their numbers are others.
#[track_caller]
fn attach_reversed(lab: &Lab, options: &str) {
    let ports = Network::ports_with_macs();
    let (ingress, egress) = ports.rsplit_once(' ').unwrap();
    let egress: Vec<&str> = egress.split(',').rev().collect();
    lab.attach(&format!("{ingress} {} {options}", egress.join(","))).done();
}

/// A header, and a line for each established session of an address.
fn addresses(clients: impl IntoIterator<Item = IpAddr>, backend: &str) -> String {
    let lines = clients.into_iter().map(|client| {
        let line = json!({
            "kind": "address", "client": client, "backend": backend, "state": "established",
            "initiator_spi": "0x1", "responder_spi": "0x2", "ingress": "eth1",
            "age_s": 9, "idle_s": 4, "packets": 7, "bytes": 700,
        });
        format!("{line}\n")
    });
    format!("{}\n{}", json!({"lb_sessions": 1, "affinity": "address"}), lines.collect::<String>())
}

#[test]
fn root_clients_go_on_at_their_backends_in_another_instance() {
    let mut wired = Wired::new();
    wired.network.attach("");
    let mut tunnels = Vec::new();
    for (family, base) in Family::BOTH.into_iter().zip([0x100, 0x200]) {
        for number in 1..=7 {
            let spi = base + u64::from(number);
            tunnels.push(Tunnel::establish(&wired, family.client(number), None, spi));
        }
        // Who has only begun goes on too.
        let client = family.client(8);
        destination(&wired.client, &wired.backends, &packet::ike(client, Ike::init(base + 8)));
    }
    let before = steady(wired.lab());
    assert_eq!(before.len(), 16);
    let exported = Exported::of(wired.lab());
    wired.lab().lb("detach").done();

    wired.network.lab.max_sessions *= 2;
    attach_reversed(wired.lab(), "");
    assert_eq!(exported.import(wired.lab(), "").done(), "imported 16 sessions\n");
    assert_eq!(steady(wired.lab()), before);
    assert_eq!(established(wired.lab()), 14);
    for tunnel in &tunnels {
        tunnel.check(&wired);
    }
    assert_eq!(wired.lab().verdict("stateless"), 0);
    // And the way back: the client's interface was carried too, and the answer of a begun handshake counts.
    for (family, base) in Family::BOTH.into_iter().zip([0x100, 0x200]) {
        let client = family.client(8);
        let start = packet::ike(client, Ike::init(base + 8));
        let backend = destination(&wired.client, &wired.backends, &start);
        let back = answer(backend, packet::ike_back(client, Ike::init_response(base + 8, 0x77)));
        wired.backends.0[backend].send(&back);
        wired.client.wait_for("the answer", |seen| contains(seen, &back[14..]));
        let second = packet::ike(client, Ike::auth(base + 8, 0x77));
        assert_eq!(destination(&wired.client, &wired.backends, &second), backend);
    }
    assert_eq!(established(wired.lab()), 16);
    assert_eq!(wired.lab().verdict("new"), 0);

    // The same once more changes nothing.
    let json = exported.import(wired.lab(), "--json").json();
    assert_eq!(json, json!({"imported": 0, "kept": 16, "expired": 0}));
    assert_eq!(wired.lab().lb("session flush").done(), "ended 16 sessions\n");
    assert_eq!(established(wired.lab()), 0);
}

#[test]
fn root_tunnels_go_on_at_their_backends_in_another_instance() {
    let mut wired = Wired::new();
    wired.network.attach("--affinity tunnel");
    let mut tunnels = Vec::new();
    for (family, base) in Family::BOTH.into_iter().zip([0x100, 0x200]) {
        // Six behind one address, and two without a NAT.
        for number in 1..=6 {
            let (port, spi) = (40_000 + number, base + u64::from(number));
            tunnels.push(Tunnel::establish(&wired, family.client(1), Some(port), spi));
        }
        for number in 2..=3 {
            let spi = base + 0x10 + u64::from(number);
            tunnels.push(Tunnel::establish(&wired, family.client(number), None, spi));
        }
    }
    for tunnel in &tunnels {
        tunnel.check(&wired);
    }
    let reached: std::collections::BTreeSet<usize> = tunnels.iter().map(|tunnel| tunnel.backend).collect();
    assert_eq!(reached.len(), BACKENDS, "all backends are used");
    let before = steady(wired.lab());
    assert_eq!(before.len(), tunnels.len());
    let exported = Exported::of(wired.lab());
    wired.lab().lb("detach").done();

    wired.network.lab.max_sessions *= 2;
    attach_reversed(wired.lab(), "--affinity tunnel");
    assert_eq!(exported.import(wired.lab(), "").done(), "imported 16 sessions\n");
    assert_eq!(steady(wired.lab()), before);
    assert_eq!(established(wired.lab()), 16);
    for tunnel in &tunnels {
        tunnel.check(&wired);
    }
    assert_eq!(wired.lab().verdict("stateless"), 0);
    let json = exported.import(wired.lab(), "--json").json();
    assert_eq!(json, json!({"imported": 0, "kept": 16, "expired": 0}));

    let address = exported.import(wired.lab(), "--overwrite --json").json();
    assert_eq!(address["imported"], 16);
    assert_eq!(established(wired.lab()), 16);
    assert_eq!(wired.lab().lb("session flush").done(), "ended 16 sessions\n");
    assert_eq!(established(wired.lab()), 0);
    assert_eq!(wired.lab().lb("session export").done().lines().count(), 1, "no entry is left");
}

#[test]
fn root_tunnels_are_shown_and_ended_one_by_one() {
    let wired = Wired::new();
    wired.network.attach("--affinity tunnel");
    let client = Family::V4.client(1);
    let tunnels: Vec<Tunnel> = (1..=3)
        .map(|number| Tunnel::establish(&wired, client, Some(40_000 + number), 0xabc0 + u64::from(number)))
        .collect();
    let v6 = Tunnel::establish(&wired, Family::V6.client(2), Some(41_000), 0xabcd);
    for tunnel in tunnels.iter().chain([&v6]) {
        tunnel.check(&wired);
        let shown = SocketAddr::new(tunnel.client, tunnel.port.unwrap()).to_string();
        let found = wired.lab().lb(&format!("session get {shown} --json")).json();
        assert_eq!(found.as_array().map(Vec::len), Some(1), "{found}");
        assert_eq!(found[0]["client"], shown);
        assert_eq!(found[0]["spi"], format!("{:#018x}", tunnel.initiator_spi));
        assert_eq!(found[0]["backend"], format!("eth{}", tunnel.backend + 2));
        assert_eq!(found[0]["state"], "established");
        // The handshake's two, and those that were checked. The client's stack, which has no IKE, adds ICMP errors.
        assert!(found[0]["packets"].as_u64().unwrap() >= 5, "{found}");
    }
    let of_address = wired.lab().lb(&format!("session get {client} --json")).json();
    assert_eq!(of_address.as_array().map(Vec::len), Some(3));
    assert!(wired.lab().lb("session list").done().starts_with("CLIENT "), "there is a table too");
    let counts: u64 = wired.lab().backends("sessions").iter().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(counts, 4);

    let one = SocketAddr::new(client, 40_002);
    assert_eq!(wired.lab().lb(&format!("session del {one}")).done(), "ended 1 session\n");
    wired.lab().lb(&format!("session del {one}")).failed(1, &["no session"]);
    let exported = wired.lab().lb("session export").done();
    assert!(!exported.contains("000000000000abc2"), "its ways are gone too: {exported}");
    tunnels[0].check(&wired);
    tunnels[2].check(&wired);
    assert_eq!(wired.lab().lb(&format!("session del {client}")).done(), "ended 2 sessions\n");
    assert!(!wired.lab().lb("session export").done().contains(&format!("{client}\"")));
    v6.check(&wired);
    assert_eq!(established(wired.lab()), 1);
}

#[test]
fn root_what_cannot_be_imported_changes_nothing() {
    let lab = Lab::with_ports(5);
    lab.attach("--ingress eth1 --egress eth2..eth5 --quiet").done();
    let client = |number: u32| packet::client(number, number % 2 == 1);
    import(&lab, &addresses((0..3).map(client), "eth2"), "").done();
    let before = steady(&lab);
    assert_eq!(before.len(), 3);

    let good = addresses((10..20).map(client), "eth3");
    let max = lab.max_sessions;
    let with = |from: &str, to: &str| good.replacen(from, to, 1);
    // Of the last line, so that all others were good.
    let last = |from: &str, to: &str| {
        let at = good.rfind(from).unwrap();
        format!("{}{to}{}", &good[..at], &good[at + from.len()..])
    };
    for (text, words) in [
        (String::new(), &["not even a header"][..]),
        (good.lines().skip(1).collect(), &["line 1", "no header"]),
        (with("\"lb_sessions\":1", "\"lb_sessions\":7"), &["line 1", "format is 7", "format 1"]),
        (with("\"address\"", "\"tunnel\""), &["--affinity tunnel", "--affinity address"]),
        (with("}", ",\"entries\":11}"), &["11 entries", "10 follow"]),
        (last("eth3", "eth9"), &["line 11", "no backend eth9", "eth2, eth3, eth4, eth5"]),
        (last("established", "up"), &["line 11", "unknown variant `up`"]),
        (last("\"packets\":7", "\"packets\":-7"), &["line 11", "-7"]),
        (last("}\n", ""), &["line 11"]),
        (format!("{good}\n"), &["line 12"]),
        (format!("{good}{}", good.lines().last().unwrap()), &["line 12", "same key as line 11"]),
        (
            addresses((10..10 + max - 2).map(client), "eth3"),
            &[&format!("{} established", max - 2), "and 3 are", &format!("--max-sessions {max}")],
        ),
    ] {
        import(&lab, &text, "").failed(1, &[&["cannot import", "nothing is imported"], words].concat());
        assert_eq!(steady(&lab), before, "{words:?}");
        assert_eq!(established(&lab), 3);
    }
    lab.lb("session import /nowhere/at-all").failed(1, &["/nowhere/at-all", "No such file"]);
    lab.lb("session import /tmp").failed(1, &["/tmp", "directory"]);
    lab.lb("session import").misused(&["<FILE>"]);
    lab.lb("session --name other import /dev/null").failed(1, &["/dev/null"]);
    let file = Exported::with(&lab, &good);
    lab.lb(&format!("session --name other import {}", file.0.display())).failed(1, &["no instance", "other"]);
    // There is room for exactly this many.
    let full = addresses((10..10 + max - 3).map(client), "eth3");
    assert_eq!(import(&lab, &full, "").done(), format!("imported {} sessions\n", max - 3));
    assert_eq!(established(&lab), u64::from(max));
}

#[test]
fn root_an_import_that_finds_no_place_takes_out_what_it_has_put() {
    let mut lab = Lab::with_ports(2);
    // The least table there is, which a few tunnels with many endpoints fill.
    lab.max_sessions = 1;
    lab.attach("--ingress eth1 --egress eth2 --affinity tunnel --quiet").done();
    let line = |kind: &str, number: u32, rest: &str| {
        format!(
            "{{\"kind\":\"{kind}\",\"client\":\"{}\",{rest}\"backend\":\"eth2\",\"state\":\"established\",\
             \"initiator_spi\":\"0x5\",\"responder_spi\":\"0x6\",\"age_s\":9,\"idle_s\":4,\"packets\":7,\"bytes\":700}}\n",
            packet::client(number, false)
        )
    };
    let header = "{\"lb_sessions\":1,\"affinity\":\"tunnel\"}\n";
    let few = format!("{header}{}", line("address", 999, ""));
    import(&lab, &few, "").done();
    let before = lab.lb("session export").done();
    let mut many = format!("{header}{}", line("sa", 0, "\"port\":4500,"));
    for number in 0..300 {
        many += &line("endpoint", number, "\"port\":4500,");
    }
    import(&lab, &many, "").failed(1, &["line ", "no room", "--max-sessions", "nothing is imported"]);
    let entries = |text: &str| text.lines().count();
    assert_eq!(entries(&lab.lb("session export").done()), entries(&before));
    assert_eq!(established(&lab), 0);
    assert_eq!(steady(&lab).len(), 1);
}

#[test]
fn root_an_empty_table_can_be_carried() {
    let lab = Lab::with_ports(2);
    lab.attach("--ingress eth1 --egress eth2 --quiet").done();
    let exported = lab.lb("session export").done();
    assert_eq!(exported, "{\"lb_sessions\":1,\"affinity\":\"address\",\"entries\":0}\n");
    assert_eq!(import(&lab, &exported, "").done(), "imported 0 sessions\n");
    // From standard input, and printed to nobody.
    let mut command = lab.command("session import - --json");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(addresses([packet::client(1, true)], "eth2").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"{\"imported\":1,\"kept\":0,\"expired\":0}\n");
    let line = format!("{LB} session export --pin-root {} | head -c 1", lab.root.display());
    let printed = Ended::of(Command::new("sh").args(["-c", &line]));
    assert_eq!((printed.stdout.as_str(), printed.stderr.as_str()), ("{", ""));
}

#[test]
fn root_who_is_here_already_stays() {
    let wired = Wired::new();
    wired.network.attach("");
    let number = |n: u8| Family::V4.client(n);
    let here = Tunnel::establish(&wired, number(1), None, 0x11);
    let begun = packet::ike(number(2), Ike::init(0x12));
    destination(&wired.client, &wired.backends, &begun);
    // All of them at one backend, which is neither's.
    let begun_at = wired.lab().lb(&format!("session get {} --json", number(2))).json()[0]["backend"].clone();
    let other = (0..BACKENDS)
        .find(|&index| index != here.backend && begun_at != format!("eth{}", index + 2))
        .expect("there are more than two");
    let text = addresses((1..=3).map(number), &format!("eth{}", other + 2));
    let json = import(wired.lab(), &text, "--json").json();
    assert_eq!(json, json!({"imported": 2, "kept": 1, "expired": 0}));
    here.check(&wired);
    // What was proven elsewhere counts for more than a start that anyone may have sent.
    for client in [number(2), number(3)] {
        assert_eq!(destination(&wired.client, &wired.backends, &packet::esp(client, 0x77)), other);
    }
    assert_eq!(established(wired.lab()), 3);
    let json = import(wired.lab(), &text, "--overwrite --json").json();
    assert_eq!(json["imported"], 3);
    assert_eq!(destination(&wired.client, &wired.backends, &here.esp()), other);
    assert_eq!(established(wired.lab()), 3);
    assert_eq!(wired.lab().backends("sessions")[other], 3);

    // Too old for this instance.
    let old = addresses([number(4)], "eth2").replace("\"idle_s\":4", "\"idle_s\":864000");
    assert_eq!(import(wired.lab(), &old, "").done(), "imported 0 sessions, left out 1 that had expired\n");
    // As old as the clock of a machine that was booted just now has no number for.
    let old = addresses([number(5)], "eth2").replace("\"age_s\":9", "\"age_s\":40000000");
    import(wired.lab(), &old, "").done();
    let found = wired.lab().lb(&format!("session get {} --json", number(5))).json();
    assert!((40_000_000..40_000_060).contains(&found[0]["age_s"].as_u64().unwrap()), "{found}");
}

#[test]
fn root_a_killed_import_leaves_a_table_that_works() {
    const SESSIONS: u32 = 40_000;
    let mut wired = Wired::new();
    wired.network.lab.max_sessions = SESSIONS;
    wired.network.attach("");
    let client = |number: u32| packet::client(number, false);
    let exported = Exported::with(wired.lab(), &addresses((1..=SESSIONS).map(client), "eth4"));
    // Until one was killed halfway.
    let mut there = Vec::new();
    for _ in 0..20 {
        let import = format!("session import {}", exported.0.display());
        let mut import = Running::start(&mut wired.lab().command(&import));
        assert!(eventually(PATIENCE, || established(wired.lab()) > 0 || !import.is_running()));
        import.signal(Signal::SIGKILL);
        import.kill();
        there = wired.lab().sessions();
        assert!(there.iter().all(|session| session["backend"] == "eth4" && session["packets"] == 7));
        assert_eq!(established(wired.lab()), there.len() as u64);
        if there.len() < SESSIONS as usize {
            break;
        }
        wired.lab().lb("session flush").done();
        assert_eq!(established(wired.lab()), 0);
    }
    assert!((1..SESSIONS as usize).contains(&there.len()), "{} are there", there.len());
    let frame = packet::esp(client(SESSIONS + 1), 0x99);
    assert!(destination(&wired.client, &wired.backends, &frame) < BACKENDS);
    // Once more, and all of it is there.
    let json = exported.import(wired.lab(), "--json").json();
    assert_eq!(json, json!({"imported": SESSIONS as usize - there.len(), "kept": there.len(), "expired": 0}));
    assert_eq!(established(wired.lab()), u64::from(SESSIONS));
    for number in [1, SESSIONS / 2, SESSIONS] {
        assert_eq!(destination(&wired.client, &wired.backends, &packet::esp(client(number), 0x99)), 2);
    }
}

#[test]
fn root_entries_of_one_client_are_one_session() {
    let lab = Lab::with_ports(3);
    lab.attach("--ingress eth1 --egress eth2,eth3 --affinity tunnel --quiet").done();
    let clients: Vec<IpAddr> = (1..=4).map(|number| packet::client(number, number % 2 == 0)).collect();
    let line = |kind: &str, client: usize, state: &str, spis: (u64, u64), more: Value| {
        let mut line = json!({
            "kind": kind, "client": clients[client], "backend": "eth2", "state": state,
            "initiator_spi": format!("{:#x}", spis.0), "responder_spi": format!("{:#x}", spis.1),
            "age_s": 90, "idle_s": 10 * (client + 1), "packets": 1, "bytes": 100,
        });
        line.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        format!("{line}\n")
    };
    let port = json!({"port": 4500});
    let text = [
        "{\"lb_sessions\":1,\"affinity\":\"tunnel\"}\n".to_owned(),
        // An SA with all that leads to it, one of it at another backend, and the SA that it was rekeyed to.
        line("sa", 0, "established", (0xa, 0xb), port.clone()),
        line("endpoint", 0, "established", (0xa, 0xb), json!({"port": 4500, "idle_s": 2})),
        line("endpoint", 0, "established", (0xa, 0xb), json!({"port": 4501})),
        line("esp", 0, "learned", (0xa, 0), json!({"spi": "0x1000"})),
        line("esp", 0, "learned", (0xa, 0), json!({"spi": "0x1001", "backend": "eth3", "packets": 1000})),
        line("address", 0, "established", (0xa, 0xb), json!({})),
        line("sa", 0, "learned", (0xc, 0xd), port.clone()),
        // What a backend has shown of a client by ESP in UDP, and by plain ESP.
        line("endpoint", 1, "established", (0, 0), port.clone()),
        line("address", 1, "established", (0, 0), json!({})),
        line("address", 2, "established", (0, 0), json!({})),
        line("esp", 2, "learned", (0, 0), json!({"spi": "0x1000"})),
        // Who has pinged, and who has begun.
        line("address", 3, "embryonic", (0, 0), json!({"idle_s": 1})),
        line("sa", 3, "embryonic", (0xe, 0), json!({"port": 500, "idle_s": 1})),
    ];
    assert_eq!(import(&lab, &text.concat(), "").done(), "imported 5 sessions\n");
    let endpoint = |client: usize, port| SocketAddr::new(clients[client], port).to_string();
    let of = |client: String| {
        let sessions = lab.lb(&format!("session get {client} --json")).json();
        let sessions = sessions.as_array().unwrap().iter();
        let shown = sessions.map(|session| {
            let number = |key: &str| session[key].as_u64().unwrap();
            assert_eq!(session["backend"], "eth2");
            assert_eq!(number("bytes"), 100 * number("packets"));
            let text = |key: &str| session[key].as_str().unwrap_or("-").to_owned();
            (text("client"), text("spi"), text("state"), number("packets"), number("idle_s") / 10)
        });
        shown.collect::<Vec<_>>()
    };
    let established = || "established".to_owned();
    assert_eq!(
        of(clients[0].to_string()),
        [(endpoint(0, 4500), "0x000000000000000a".into(), established(), 6, 0)]
    );
    assert_eq!(of(endpoint(1, 4500)), [(endpoint(1, 4500), "-".into(), established(), 2, 2)]);
    assert_eq!(of(clients[2].to_string()), [(clients[2].to_string(), "-".into(), established(), 2, 3)]);
    assert_eq!(
        of(clients[3].to_string()),
        [
            (clients[3].to_string(), "-".into(), "embryonic".into(), 1, 0),
            (endpoint(3, 500), "0x000000000000000e".into(), "embryonic".into(), 1, 0),
        ]
    );
    assert_eq!(lab.backends("sessions"), [5, 0]);
    for (client, count) in [(0, 1), (1, 1), (2, 1), (3, 2)] {
        assert_eq!(lab.lb(&format!("session del {} --json", clients[client])).json()["removed"], count);
    }
    assert_eq!(lab.lb("session export").done().lines().count(), 1, "no entry is left");
}
