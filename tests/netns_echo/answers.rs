//! Real pings, and traffic that is none of the responder's business.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use crate::common::namespace::Namespace;
use crate::lab::{Ended, Family, Lab, Mode, PATIENCE, Pings};

/// How many pings of a size.
const PINGS: u64 = 10;

/// The most that a ping can carry over IPv4.
const MOST: u64 = 65507;

// Pings

/// Pings of sizes that fit into a frame, which the responder answers, and of sizes that do not, whose fragments are the stack's.
fn all_sizes_are_answered(mode: Mode) {
    let lab = Lab::new();
    lab.attach(mode, "");
    let (mut answered, mut bytes) = (0, 0);
    for family in Family::BOTH {
        let largest = 1514 - family.headers();
        for size in [0, 1, 56, largest, largest + 1, 1472, 3000, 20000, MOST] {
            lab.ping(family.host(1), PINGS, &format!("-s {size}")).all(PINGS);
            if size <= largest {
                answered += PINGS;
                bytes += PINGS * (family.headers() + size);
            }
        }
    }
    let stats = lab.stats();
    assert_eq!(stats["verdicts"]["reply"], serde_json::json!({ "packets": answered, "bytes": bytes }));
    assert_eq!(stats["actions"]["xdp_tx"], stats["verdicts"]["reply"]);
    // 65507 bytes are 45 frames.
    let fragments = stats["verdicts"]["fragment"]["packets"].as_u64().unwrap();
    assert!(fragments > 2 * 45 * PINGS, "{stats}");
}

#[test]
fn root_pings_of_all_sizes_are_answered_in_drv_mode() {
    all_sizes_are_answered(Mode::Drv);
}

#[test]
fn root_pings_of_all_sizes_are_answered_in_skb_mode() {
    all_sizes_are_answered(Mode::Skb);
}

fn floods_are_answered(mode: Mode) {
    const FLOOD: u64 = 2000;
    let lab = Lab::new();
    lab.attach(mode, "");
    for family in Family::BOTH {
        let mut flood = lab.ping_command(family.host(1), &format!("-f -c {FLOOD} -W {}", PATIENCE.as_secs()));
        Pings::of(&Ended::of(&mut flood).done()).all(FLOOD);
    }
    assert_eq!(lab.replies(), 2 * FLOOD);
}

#[test]
fn root_a_flood_of_pings_is_answered_in_drv_mode() {
    floods_are_answered(Mode::Drv);
}

#[test]
fn root_a_flood_of_pings_is_answered_in_skb_mode() {
    floods_are_answered(Mode::Skb);
}

/// Frames of several buffers.
fn jumbo_frames_are_answered(mode: Mode) {
    let lab = Lab::new();
    lab.near.ip(&["link", "set", "eth0", "mtu", "9000"]);
    lab.far.ip(&["link", "set", "far0", "mtu", "9000"]);
    lab.attach(mode, "");
    let mut bytes = 0;
    for family in Family::BOTH {
        let largest = 9014 - family.headers();
        // A page, less what the kernel keeps of it, is about 3500 bytes.
        for size in [1472, 1473, 3300, 3600, 4000, 4096, 8000, largest] {
            lab.ping(family.host(1), PINGS, &format!("-M do -s {size}")).all(PINGS);
            bytes += PINGS * (family.headers() + size);
        }
        lab.ping(family.host(1), PINGS, &format!("-s {MOST}")).all(PINGS);
    }
    let reply = serde_json::json!({ "packets": 2 * 8 * PINGS, "bytes": bytes });
    assert_eq!(lab.stats()["verdicts"]["reply"], reply);
}

#[test]
fn root_jumbo_frames_are_answered_in_drv_mode() {
    jumbo_frames_are_answered(Mode::Drv);
}

#[test]
fn root_jumbo_frames_are_answered_in_skb_mode() {
    jumbo_frames_are_answered(Mode::Skb);
}

#[test]
fn root_an_mtu_that_is_raised_while_attached_is_no_trouble() {
    let lab = Lab::new();
    lab.attach(Mode::Drv, "");
    lab.near.ip(&["link", "set", "eth0", "mtu", "9000"]);
    lab.far.ip(&["link", "set", "far0", "mtu", "9000"]);
    for family in Family::BOTH {
        lab.ping(family.host(1), PINGS, "-M do -s 8000").all(PINGS);
    }
    assert_eq!(lab.replies(), 2 * PINGS);
}

#[test]
fn root_pings_from_the_responder_are_the_stacks() {
    for mode in Mode::BOTH {
        let lab = Lab::new();
        lab.attach(mode, "");
        for family in Family::BOTH {
            let options = format!("-n -q -c {PINGS} -i 0.002 -W {}", PATIENCE.as_secs());
            let mut ping = lab.near.command("ping");
            ping.args(options.split(' ')).arg(family.host(2).to_string());
            Pings::of(&Ended::of(&mut ping).done()).all(PINGS);
        }
        assert_eq!(lab.replies(), 0);
        assert!(lab.verdict("not_echo") >= 2 * PINGS);
    }
}

// Everything else

/// Bytes that tell where in a stream they are.
fn pattern(length: usize) -> Vec<u8> {
    (0..length as u32)
        .flat_map(|number| number.wrapping_mul(0x9e37_79b9).to_be_bytes())
        .take(length)
        .collect()
}

/// Sends bytes over TCP from one namespace to another, and back.
#[track_caller]
fn tcp(from: &Namespace, to: (&Namespace, IpAddr)) {
    let bytes = pattern(4 << 20);
    let listener = to.0.within(|| TcpListener::bind((to.1, 0))).expect("the address is there");
    let port = listener.local_addr().expect("a listener has an address").port();
    let server = thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut received = Vec::new();
        stream.read_to_end(&mut received)?;
        stream.write_all(&received)
    });
    let stream = from.within(|| TcpStream::connect_timeout(&SocketAddr::new(to.1, port), PATIENCE));
    let mut stream = stream.expect("a connection comes about");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket takes a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a socket takes a timeout");
    stream.write_all(&bytes).expect("bytes can be sent");
    stream.shutdown(std::net::Shutdown::Write).expect("the connection is there");
    let mut returned = Vec::new();
    stream.read_to_end(&mut returned).expect("bytes come back");
    server.join().expect("the server does not panic").expect("the server has no error");
    assert!(returned == bytes, "{} of {} bytes came back", returned.len(), bytes.len());
}

/// Sends datagrams from one namespace to another, and back, one at a time. Some are larger than a frame.
#[track_caller]
fn udp(from: &Namespace, to: (&Namespace, IpAddr)) {
    let any: IpAddr = if to.1.is_ipv6() { [0; 16].into() } else { [0; 4].into() };
    let open = |namespace: &Namespace, address: IpAddr| {
        let socket = namespace.within(|| UdpSocket::bind((address, 0))).expect("the address is there");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket takes a timeout");
        socket
    };
    let (client, server) = (open(from, any), open(to.0, to.1));
    let address = server.local_addr().expect("a socket has an address");
    let mut buffer = vec![0; 1 << 16];
    for length in [1, 2, 100, 1400, 1472, 4000, 20000, 60000].into_iter().cycle().take(200) {
        let bytes = pattern(length);
        client.send_to(&bytes, address).expect("a datagram can be sent");
        let (received, client_address) = server.recv_from(&mut buffer).expect("the datagram arrives");
        server.send_to(&buffer[..received], client_address).expect("a datagram can be sent");
        let received = client.recv(&mut buffer).expect("the datagram comes back");
        assert!(buffer[..received] == bytes, "{received} of {length} bytes came back");
    }
}

/// How many packets with a wrong checksum a namespace has seen, of all protocols.
#[track_caller]
fn wrong_checksums(namespace: &Namespace) -> u64 {
    let v4 = namespace.exec(&["cat", "/proc/net/snmp"]);
    let lines: Vec<Vec<&str>> = v4.lines().map(|line| line.split_whitespace().collect()).collect();
    let mut counters = Vec::new();
    // A line of names, then one of numbers.
    for pair in lines.chunks(2) {
        counters.extend(pair[0].iter().position(|name| *name == "InCsumErrors").map(|place| pair[1][place]));
    }
    let v6 = namespace.exec(&["cat", "/proc/net/snmp6"]);
    let lines = v6.lines().filter(|line| line.contains("InCsumErrors"));
    counters.extend(lines.filter_map(|line| line.split_whitespace().nth(1)));
    // ICMP, TCP and UDP of IPv4, which has TCP of IPv6 too; ICMP and UDP of IPv6.
    assert!(counters.len() >= 5, "{v4}{v6}");
    counters.iter().map(|counter| counter.parse::<u64>().expect("a counter is a number")).sum()
}

/// Offloads are as the kernel sets them.
fn traffic_arrives_whole(mode: Mode) {
    let lab = Lab::new();
    lab.attach(mode, "");
    for family in Family::BOTH {
        for (from, to) in [(&lab.far, (&lab.near, family.host(1))), (&lab.near, (&lab.far, family.host(2)))] {
            tcp(from, to);
            udp(from, to);
        }
    }
    assert_eq!([&lab.near, &lab.far].map(wrong_checksums), [0, 0]);
    assert_eq!(lab.replies(), 0);
    assert!(lab.stats()["verdicts"]["not_echo"]["bytes"].as_u64().unwrap() > 4 * (4 << 20));
}

#[test]
fn root_other_traffic_arrives_whole_in_drv_mode() {
    traffic_arrives_whole(Mode::Drv);
}

#[test]
fn root_other_traffic_arrives_whole_in_skb_mode() {
    traffic_arrives_whole(Mode::Skb);
}
