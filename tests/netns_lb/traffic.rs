//! Packets from clients to backends and back, each in both modes.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use macaddr::MacAddr6;
use serde_json::Value;

use crate::common::namespace::Namespace;
use crate::common::packet::{self, Ike};
use crate::lab::{BACKENDS, Family, Network, PATIENCE, batch, eventually};
use crate::packets::{IKE, NAT, Servers, Tap, Taps, contains, ike_bytes, udp};
use lb::kernel::interface::Interface;
use lb::kernel::neighbour;

/// Makes two tests of each function, one for each mode.
macro_rules! in_both_modes {
    ($($name:ident),+ $(,)?) => {
        mod root_skb {
            $(#[test] fn $name() { super::$name("skb"); })+
        }
        mod root_drv {
            $(#[test] fn $name() { super::$name("drv"); })+
        }
    };
}

in_both_modes!(
    all_of_a_client_goes_to_the_backend_of_its_first_packet,
    ten_clients_are_spread_evenly,
    pings_of_any_size_are_answered,
    macs_are_resolved_by_the_vip,
    macs_are_learned_from_frames,
    tcp_is_dropped,
    tcp_is_passed_to_the_local_stack,
    vlan_tagged_frames_are_balanced,
    packets_without_a_session_agree_on_a_backend,
    answers_go_to_the_interface_that_the_client_is_behind,
    the_vip_is_found_though_a_backend_is_down,
    sessions_expire,
    sessions_are_shown_and_ended,
);

const INITIATOR_SPI: u64 = 0x1122_3344_5566_0000;
const RESPONDER_SPI: u64 = 0x8877_6655_4433_0000;

/// A network whose balancer is attached to all of it.
#[track_caller]
fn attached(mode: &str, options: &str) -> Network {
    let network = Network::new();
    network.attach(&format!("--mode {mode} {options}"));
    network
}

/// Begins IKE on a port from one of the client's addresses, up to the message that proves to the balancer that the
/// client hears its backend. Returns the backend's index.
#[track_caller]
fn establish(network: &Network, servers: &Servers, family: Family, number: u8, port: u16) -> usize {
    let client = udp(&network.client, family.client(number), port);
    let vip = SocketAddr::new(family.vip(), port);
    let (initiator, responder) = (INITIATOR_SPI + u64::from(number), RESPONDER_SPI + u64::from(number));

    let start = ike_bytes(port, Ike::init(initiator));
    client.send_to(&start, vip).unwrap();
    let (backend, from) = servers.receiver_of(&start);
    assert_eq!(from, SocketAddr::new(family.client(number), port), "addresses and ports stay");

    let answer = ike_bytes(port, Ike::init_response(initiator, responder));
    servers.0[backend].send_to(&answer, from).unwrap();
    let mut buffer = [0; 2048];
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let (length, sender) = client.recv_from(&mut buffer).expect("the answer returns");
    assert_eq!((&buffer[..length], sender), (&answer[..], vip));

    let second = ike_bytes(port, Ike::auth(initiator, responder));
    client.send_to(&second, vip).unwrap();
    assert_eq!(servers.receiver_of(&second).0, backend, "the second packet goes where the first one went");
    backend
}

/// The backends' names in the order in which `Network` has them.
fn name(backend: usize) -> String {
    format!("eth{}", backend + 2)
}

/// Where one more frame of the client goes; it has to reach one backend alone.
#[track_caller]
pub fn destination(client: &Tap, backends: &Taps, frame: &[u8]) -> usize {
    client.send(frame);
    // The kernel takes a VLAN tag off before it shows a frame to a raw socket.
    let is_tag = |at: usize| matches!(frame[at..at + 2], [0x81, 0x00] | [0x88, 0xa8]);
    let ethertype = (12..).step_by(4).find(|&at| !is_tag(at)).expect("a frame has an ethertype");
    let counts = backends.count(1, |seen| contains(seen, &frame[ethertype + 2..]));
    assert_eq!(counts.iter().sum::<usize>(), 1, "it reaches one backend, and once: {counts:?}");
    counts.iter().position(|&count| count == 1).expect("one has it")
}

/// A frame as a backend sends it to the client.
pub fn answer(backend: usize, frame: Vec<u8>) -> Vec<u8> {
    packet::sent_to(packet::sent_by(frame, packet::backend_mac(backend as u8)), packet::CLIENT_MAC)
}

/// The one session of an address.
#[track_caller]
fn session(network: &Network, client: IpAddr) -> Value {
    let sessions = network.lab.lb(&format!("session get {client} --json")).json();
    assert_eq!(sessions.as_array().map(Vec::len), Some(1), "{sessions}");
    sessions[0].clone()
}

fn all_of_a_client_goes_to_the_backend_of_its_first_packet(mode: &str) {
    let network = attached(mode, "");
    let (tap, taps) = (Tap::new(&network.client, "eth1"), Taps::new(&network));
    for family in Family::BOTH {
        // One client begins on port 500, the other on 4500.
        for (number, port) in [(1, IKE), (2, NAT)] {
            let servers = Servers::new(&network, family, port);
            let backend = establish(&network, &servers, family, number, port);
            let client = family.client(number);
            let known = session(&network, client);
            assert_eq!(known["backend"], name(backend));
            assert_eq!(known["state"], "established");
            assert_eq!(known["packets"], 2);

            let message = Ike::auth(INITIATOR_SPI + u64::from(number), RESPONDER_SPI + u64::from(number));
            for (what, frame) in [
                ("ESP", packet::esp(client, 0x1234)),
                ("AH", packet::ah(client, 0x1235)),
                ("ESP in UDP", packet::esp_in_udp(client, 4500, 0x1236)),
                ("IKE on port 500", packet::ike(client, message)),
                ("IKE behind a NAT", packet::ike_nat(client, 61234, message)),
                ("a ping", packet::echo_request(client)),
            ] {
                assert_eq!(destination(&tap, &taps, &frame), backend, "{what} of {client}");
            }
            assert_eq!(session(&network, client)["packets"], 8);
        }
    }
    assert_eq!(network.lab.verdict("new"), 4);
    assert_eq!(network.lab.verdict("stateless"), 0);
    assert_eq!(network.lab.status()["established"], 4);
}

fn ten_clients_are_spread_evenly(mode: &str) {
    let network = attached(mode, "");
    for family in Family::BOTH {
        let servers = Servers::new(&network, family, IKE);
        let mut counts = [0; BACKENDS];
        for number in 1..=10 {
            counts[establish(&network, &servers, family, number, IKE)] += 1;
        }
        counts.sort_unstable();
        assert_eq!(counts, [2, 2, 3, 3]);
    }
    assert_eq!(network.lab.backends("sessions"), [5, 5, 5, 5]);
    // Each client's first IKE message and its second.
    assert_eq!(network.lab.backends("packets"), [10, 10, 10, 10]);
    assert_eq!(network.lab.verdict("new"), 20);
    assert_eq!(network.lab.verdict("session"), 20);
    assert_eq!(network.lab.verdict("returned"), 20);
}

fn pings_of_any_size_are_answered(mode: &str) {
    let network = attached(mode, "");
    for family in Family::BOTH {
        for (number, size, fragments) in [(1, 0, 1), (2, 1400, 1), (3, 4000, 3)] {
            let before: Vec<Value> = network.lab.backends("packets");
            assert_eq!(network.ping(family, number, &format!("-c 3 -i 0.02 -s {size}")), 3);
            let after = network.lab.backends("packets");
            let sent: Vec<u64> =
                before.iter().zip(&after).map(|(a, b)| b.as_u64().unwrap() - a.as_u64().unwrap()).collect();
            let reached: Vec<&u64> = sent.iter().filter(|&&packets| packets > 0).collect();
            assert_eq!(reached, [&(3 * fragments)], "all fragments reach one backend: {sent:?}");
        }
        // A start that does not fit into one frame, as one with certificates.
        let servers = Servers::new(&network, family, IKE);
        let client = udp(&network.client, family.client(4), IKE);
        for extra in [3000, 100] {
            let start = Ike { extra, ..Ike::init(INITIATOR_SPI) }.bytes();
            client.send_to(&start, (family.vip(), IKE)).unwrap();
            let (backend, _) = servers.receiver_of(&start);
            assert_eq!(session(&network, family.client(4))["backend"], name(backend));
        }
    }
    assert_eq!(network.lab.verdict("malformed"), 0);
}

fn macs_are_resolved_by_the_vip(mode: &str) {
    let network = Network::new();
    let given: Vec<String> = (0..BACKENDS as u8)
        .map(|index| MacAddr6::from(packet::backend_mac(index)).to_string().to_lowercase())
        .collect();
    for family in Family::BOTH {
        // Who has been told one MAC asks for the others alone.
        for egress in ["eth2..eth5", "eth2,eth3,eth4=AA:BB:CC:00:00:03,eth5"] {
            let arguments = format!("--ingress eth1 --egress {egress} --mode {mode} --vip {}", family.vip());
            let ended = network.lab.attach(&arguments);
            assert_eq!(ended.stderr, "");
            ended.done();
            assert_eq!(network.lab.backends("mac"), given);
            assert_eq!(network.lab.backends("state"), ["active"; BACKENDS]);
            assert_eq!(network.lab.backends("mac_learned"), [false; BACKENDS]);
            assert_eq!(network.ping(family, 1, "-c 1"), 1);
            // Other addresses are not balanced.
            let other = if family == Family::V4 { Family::V6 } else { Family::V4 };
            let dropped = network.lab.verdict("other_dropped");
            Tap::new(&network.client, "eth1").send(&packet::echo_request(other.client(1)));
            assert!(eventually(PATIENCE, || network.lab.verdict("other_dropped") == dropped + 1));
            network.lab.lb("detach").done();
        }
    }
    // Two backends of one MAC could not be told apart.
    let second = &network.backends[1];
    second.ip(&["link", "set", "eth1", "address", &given[0]]);
    let arguments = format!("--ingress eth1 --egress eth2..eth5 --mode {mode} --vip {}", packet::VIP4);
    network.lab.attach(&arguments).failed(1, &["eth2", "eth3", &given[0], "NAME=MAC"]);
    network.lab.assert_no_trace();

    // An address that nobody has.
    let ended =
        network.lab.attach(&format!("--ingress eth1 --egress eth2,eth3 --mode {mode} --vip 192.0.0.77"));
    for interface in ["eth2", "eth3"] {
        let warned = |line: &str| {
            line.starts_with("lb: warning: ")
                && line.contains(&format!("behind {interface} owns 192.0.0.77"))
                && line.contains(&format!("{interface}=MAC"))
        };
        assert!(ended.stderr.lines().any(warned), "{ended:?}");
    }
    ended.done();
}

fn macs_are_learned_from_frames(mode: &str) {
    let network = Network::new();
    for backend in &network.backends {
        // Without IPv6 a backend says nothing unless it is asked to.
        backend.sysctl("net/ipv6/conf/eth1/disable_ipv6", "1");
    }
    network.lab.attach(&format!("--ingress eth1 --egress eth2..eth5 --mode {mode} --quiet")).done();
    assert_eq!(network.lab.backends("state"), ["unresolved"; BACKENDS]);
    assert!(network.lab.backends("mac").iter().all(Value::is_null));
    let (tap, taps) = (Tap::new(&network.client, "eth1"), Taps::new(&network));
    tap.send(&packet::ike(Family::V4.client(1), Ike::init(INITIATOR_SPI)));
    assert!(eventually(PATIENCE, || network.lab.verdict("no_backend") == 1));

    // The first backend speaks, and is the only one to get clients.
    // An echo reply that the client has not asked for: it does not answer, nor does it ask who sent it.
    let reply = packet::icmp(Family::V4.vip(), Family::V4.client(0), 0, &[7; 60]);
    let speak = |backend: usize| taps.0[backend].send(&answer(backend, reply.clone()));
    speak(0);
    let states = ["active", "unresolved", "unresolved", "unresolved"];
    assert!(eventually(PATIENCE, || network.lab.backends("state") == states));
    assert_eq!(network.lab.backends("mac")[0], "aa:bb:cc:00:00:01");
    assert_eq!(network.lab.backends("mac_learned")[0], true);
    let start =
        |number: u8| packet::ike(Family::V4.client(number), Ike::init(INITIATOR_SPI + u64::from(number)));
    for number in 1..=5 {
        assert_eq!(destination(&tap, &taps, &start(number)), 0);
    }
    (1..BACKENDS).for_each(speak);
    assert!(eventually(PATIENCE, || network.lab.backends("state") == ["active"; BACKENDS]));
    let mut backends: Vec<usize> = (6..=9).map(|number| destination(&tap, &taps, &start(number))).collect();
    backends.sort_unstable();
    assert_eq!(backends, [0, 1, 2, 3]);
}

fn tcp_is_dropped(mode: &str) {
    let network = attached(mode, "");
    let (tap, taps) = (Tap::new(&network.client, "eth1"), Taps::new(&network));
    for (n, family) in (1..).zip(Family::BOTH) {
        let frame = packet::tcp(family.client(1), family.vip(), 22);
        tap.send(&frame);
        assert!(eventually(PATIENCE, || network.lab.verdict("other_dropped") == n));
        assert_eq!(taps.count(0, |seen| contains(seen, &frame[14..])), [0; BACKENDS]);
    }
}

fn tcp_is_passed_to_the_local_stack(mode: &str) {
    let network = Network::new();
    let balancer = &network.lab.balancer;
    let mac = balancer.within(|| Interface::find("eth1").unwrap().mac().unwrap());
    let client_mac = MacAddr6::from(packet::CLIENT_MAC);
    balancer.sysctl("net/ipv6/conf/eth1/disable_ipv6", "0");
    network.attach(&format!("--mode {mode} --other pass"));
    for (own, peer, prefix) in [("192.0.0.9", Family::V4, 24), ("2001:db8::9", Family::V6, 64)] {
        // ARP and ND are the backends' affair, so both sides are told whom they talk to.
        let nodad = if peer == Family::V6 { "nodad" } else { "" };
        let client = peer.client(0);
        batch(
            balancer,
            &format!(
                "addr add {own}/{prefix} dev eth1 {nodad}\n\
                 neigh replace {client} lladdr {client_mac} dev eth1 nud permanent\n"
            ),
        );
        batch(&network.client, &format!("neigh replace {own} lladdr {mac} dev eth1 nud permanent\n"));

        let address = SocketAddr::new(own.parse().unwrap(), 8080);
        let listener = balancer.within(|| TcpListener::bind(address)).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            stream.write_all(text.as_bytes()).unwrap();
        });
        let mut stream = network
            .client
            .within(|| TcpStream::connect_timeout(&address, PATIENCE))
            .expect("the stack answers");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // More than a packet can hold.
        let text = "balancer".repeat(20_000);
        stream.write_all(text.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut echoed = String::new();
        stream.read_to_string(&mut echoed).unwrap();
        assert!(echoed == text, "{} bytes of {} came back", echoed.len(), text.len());
        server.join().unwrap();
    }
    assert!(network.lab.verdict("other_passed") > 20);
    assert_eq!(network.lab.verdict("other_dropped"), 0);
}

fn vlan_tagged_frames_are_balanced(mode: &str) {
    let network = attached(mode, "");
    let (tap, taps) = (Tap::new(&network.client, "eth1"), Taps::new(&network));
    for (number, family) in (1..).zip(Family::BOTH) {
        let client = family.client(number);
        let start = packet::ike(client, Ike::init(INITIATOR_SPI));
        let backend = destination(&tap, &taps, &packet::tagged(&start, &[0x8100]));
        for (tags, spi) in [(&[0x8100][..], 0x2001), (&[0x88a8, 0x8100], 0x2002), (&[], 0x2003)] {
            let frame = packet::tagged(&packet::esp(client, spi), tags);
            assert_eq!(destination(&tap, &taps, &frame), backend, "{tags:x?}");
        }
        assert_eq!(session(&network, client)["packets"], 4);
    }
    // A backend's tagged answer returns too.
    let client = Family::V4.client(1);
    let answer = packet::tagged(&answer(0, packet::esp_back(client, 0x2004)), &[0x8100]);
    taps.0[0].send(&answer);
    tap.wait_for("the answer", |seen| contains(seen, &answer[answer.len() - 80..]));
}

fn packets_without_a_session_agree_on_a_backend(mode: &str) {
    let network = attached(mode, "");
    let (tap, taps) = (Tap::new(&network.client, "eth1"), Taps::new(&network));
    let mut reached = [false; BACKENDS];
    for number in 1..=10 {
        let client = Family::V4.client(number);
        let backend = destination(&tap, &taps, &packet::esp(client, 0x3000));
        for frame in [
            packet::esp_in_udp(client, 4500, 0x3001),
            packet::ike(client, Ike::auth(INITIATOR_SPI, RESPONDER_SPI)),
            packet::ah(client, 0x3002),
        ] {
            assert_eq!(destination(&tap, &taps, &frame), backend);
        }
        reached[backend] = true;
    }
    assert!(reached.iter().filter(|&&some| some).count() > 1, "not all go to one");
    assert_eq!(network.lab.verdict("stateless"), 40);
    assert_eq!(network.lab.sessions(), Vec::<Value>::new());
    tap.send(&packet::keepalive(Family::V4.client(1)));
    assert!(eventually(PATIENCE, || network.lab.verdict("keepalive_dropped") == 1));
}

fn answers_go_to_the_interface_that_the_client_is_behind(mode: &str) {
    const SECOND_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0xc2];
    let network = Network::new();
    let second = Namespace::new("lb-c");
    network.join("eth6", &second, SECOND_MAC);
    let addresses = ["192.0.0.21", "2001:db8::21"];
    batch(
        &second,
        &format!("addr add {}/24 dev eth1\naddr add {}/64 dev eth1 nodad\n", addresses[0], addresses[1]),
    );
    let ports = Network::ports_with_macs().replace("--ingress eth1", "--ingress eth1,eth6");
    let ended = network.lab.attach(&format!("{ports} --mode {mode}"));
    assert_eq!(ended.stderr, "");
    ended.done();

    let (tap, second_tap, taps) =
        (Tap::new(&network.client, "eth1"), Tap::new(&second, "eth1"), Taps::new(&network));
    for (family, address) in Family::BOTH.into_iter().zip(addresses) {
        let answers = |tap: &Tap| {
            // An echo reply: type 0 behind an IPv4 header without options, or type 129 behind an IPv6 header.
            let is_answer = |seen: &Vec<u8>| match family {
                Family::V4 => seen[12..14] == [8, 0] && seen[23] == 1 && seen[34] == 0,
                Family::V6 => seen[12..14] == [0x86, 0xdd] && seen[20] == 58 && seen[54] == 129,
            };
            tap.frames().iter().filter(|seen| is_answer(seen)).count()
        };
        assert_eq!(network.ping(family, 1, "-c 3 -i 0.02"), 3);
        assert_eq!((answers(&tap), answers(&second_tap)), (3, 0));
        let vip = family.vip().to_string();
        let printed = second.exec(&["ping", "-n", "-c", "3", "-i", "0.02", "-w", "20", "-I", address, &vip]);
        assert!(printed.contains(" 0% packet loss"), "{printed}");
        assert_eq!((answers(&tap), answers(&second_tap)), (0, 3));
    }

    // A client that is seen behind the other interface is answered there.
    let client = Family::V4.client(1);
    let back = |spi| answer(0, packet::esp_back(client, spi));
    let seen =
        |tap: &Tap, frame: &[u8]| tap.frames().iter().filter(|seen| contains(seen, &frame[14..])).count();
    taps.0[0].send(&back(0x4000));
    tap.wait_for("the answer", |seen| contains(seen, &back(0x4000)[14..]));
    second_tap.send(&packet::esp(client, 0x4001));
    assert_eq!(
        taps.count(1, |seen| contains(seen, &packet::esp(client, 0x4001)[14..])).iter().sum::<usize>(),
        1
    );
    taps.0[0].send(&back(0x4002));
    second_tap.wait_for("the answer", |seen| contains(seen, &back(0x4002)[14..]));
    assert_eq!(seen(&tap, &back(0x4002)), 0);

    // Nobody knows where a client without a session is: it is looked for behind both.
    let stranger = answer(0, packet::esp_back(Family::V4.client(9), 0x4003));
    taps.0[0].send(&stranger);
    for tap in [&tap, &second_tap] {
        tap.wait_for("the answer", |seen| contains(seen, &stranger[14..]));
    }
}

fn the_vip_is_found_though_a_backend_is_down(mode: &str) {
    let network = attached(mode, "");
    let ask = |family: Family| {
        let found = network.client.within(|| {
            neighbour::resolve(&Interface::find("eth1").unwrap(), family.vip(), Duration::from_secs(10))
                .unwrap()
        });
        found.unwrap_or_else(|| panic!("nobody owns {}", family.vip())).into_array()
    };
    for down in 0..BACKENDS {
        let backend = &network.backends[down];
        backend.ip(&["link", "set", "eth1", "down"]);
        for family in Family::BOTH {
            let found = ask(family);
            let owner = (0..BACKENDS).find(|&index| packet::backend_mac(index as u8) == found);
            assert!(owner.is_some_and(|index| index != down), "{found:x?}");
        }
        backend.ip(&["link", "set", "eth1", "up"]);
        backend.ip(&["addr", "replace", "2001:db8::2/64", "dev", "eth1", "nodad"]);
    }
    assert_eq!(network.lab.state(), "attached");
}

fn sessions_expire(mode: &str) {
    let network = attached(mode, "--idle-timeout 1s");
    let servers = Servers::new(&network, Family::V4, IKE);
    let backend = establish(&network, &servers, Family::V4, 1, IKE);
    let client = Family::V4.client(1);
    assert!(eventually(PATIENCE, || network.lab.sessions().is_empty()), "it has ended");
    network.lab.lb(&format!("session get {client}")).failed(1, &["no session"]);

    // The next start begins a new one, whose turn it is.
    assert_ne!(establish(&network, &servers, Family::V4, 1, IKE), backend);
    assert_eq!(session(&network, client)["packets"], 2, "it counts from nothing");
    assert_eq!(network.lab.verdict("new"), 2);

    // What is used does not expire.
    let tap = Tap::new(&network.client, "eth1");
    for spi in 0..15 {
        tap.send(&packet::esp(client, 0x5000 + spi));
        thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(session(&network, client)["packets"], 17);
    assert_eq!(network.lab.verdict("stateless"), 0);
}

fn sessions_are_shown_and_ended(mode: &str) {
    let network = attached(mode, "--policy maglev");
    let mut backends = Vec::new();
    for family in Family::BOTH {
        let servers = Servers::new(&network, family, IKE);
        for number in 1..=3 {
            backends.push((family.client(number), establish(&network, &servers, family, number, IKE)));
        }
    }
    assert_eq!(network.lab.sessions().len(), 6);
    for (client, backend) in &backends {
        assert_eq!(session(&network, *client)["backend"], name(*backend));
        let there = network.lab.lb(&format!("session list --backend {} --json", name(*backend))).json();
        let there = there.as_array().unwrap();
        assert!(there.iter().any(|session| session["client"] == client.to_string()), "{there:?}");
        assert!(there.iter().all(|session| session["backend"] == name(*backend)), "{there:?}");
    }
    let mapped = format!("::ffff:{}", backends[0].0);
    assert_eq!(
        network.lab.lb(&format!("session get {mapped} --json")).json()[0]["client"],
        backends[0].0.to_string()
    );

    assert_eq!(network.lab.lb(&format!("session del {}", backends[0].0)).done(), "ended 1 session\n");
    network.lab.lb(&format!("session del {}", backends[0].0)).failed(1, &["no session"]);
    assert_eq!(network.lab.lb(&format!("session del {} --json", backends[3].0)).json()["removed"], 1);
    assert_eq!(network.lab.sessions().len(), 4);
    assert_eq!(network.lab.status()["established"], 4);
    assert_eq!(network.lab.lb("session flush").done(), "ended 4 sessions\n");
    assert_eq!(network.lab.lb("session flush --json").json()["removed"], 0);
    assert_eq!(network.lab.sessions(), Vec::<Value>::new());
    assert_eq!(network.lab.backends("sessions"), [0; BACKENDS]);

    // With this policy clients come back to where they were.
    for family in Family::BOTH {
        let servers = Servers::new(&network, family, IKE);
        for number in 1..=3 {
            let backend = establish(&network, &servers, family, number, IKE);
            assert!(backends.contains(&(family.client(number), backend)));
        }
    }
}
