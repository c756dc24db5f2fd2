//! Packets through the balancer: real sockets in the clients' and backends' namespaces, and whole frames.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::common::namespace::Namespace;
use crate::common::packet::{Ike, esp_bytes};
pub use crate::common::tap::Tap;
use crate::lab::{Family, Network, PATIENCE};

/// How long to look for packets that should not come.
pub const SILENCE: Duration = Duration::from_millis(30);

/// How long to wait where there is nothing yet.
const PAUSE: Duration = Duration::from_millis(1);

/// The port of IKE, and the one of IKE and ESP where a NAT may be in the way.
pub const IKE: u16 = 500;
pub const NAT: u16 = 4500;

/// A UDP socket inside a namespace.
#[track_caller]
pub fn udp(namespace: &Namespace, address: IpAddr, port: u16) -> UdpSocket {
    let socket = namespace.within(|| UdpSocket::bind((address, port))).expect("the address is there");
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket takes a timeout");
    socket
}

/// Sockets of all backends on one port of the VIP.
pub struct Servers(pub Vec<UdpSocket>);

impl Servers {
    #[track_caller]
    pub fn new(network: &Network, family: Family, port: u16) -> Self {
        let open = |backend| {
            let socket = udp(backend, family.vip(), port);
            socket.set_nonblocking(true).expect("a socket can be asked without waiting");
            socket
        };
        Self(network.backends.iter().map(open).collect())
    }

    /// Which backend gets `payload`, and who sent it. No other backend may get it, nor any of them twice.
    #[track_caller]
    pub fn receiver_of(&self, payload: &[u8]) -> (usize, SocketAddr) {
        let mut found = Vec::new();
        let mut buffer = [0; 8192];
        let start = Instant::now();
        let mut last = start;
        while found.is_empty() || last.elapsed() < SILENCE {
            assert!(start.elapsed() < PATIENCE, "no backend gets the datagram");
            for (index, socket) in self.0.iter().enumerate() {
                while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    if buffer[..length] == *payload {
                        found.push((index, from));
                        last = Instant::now();
                    }
                }
            }
            thread::sleep(PAUSE);
        }
        assert_eq!(found.len(), 1, "one backend gets it, and once");
        found[0]
    }
}

/// Bytes of IKE as they go over port 500 or 4500.
pub fn ike_bytes(port: u16, message: Ike) -> Vec<u8> {
    if port == NAT { [&[0; 4][..], &message.bytes()].concat() } else { message.bytes() }
}

/// Raw sockets of all backends.
pub struct Taps(pub Vec<Tap>);

impl Taps {
    #[track_caller]
    pub fn new(network: &Network) -> Self {
        Self(network.backends.iter().map(|backend| Tap::new(backend, "eth1")).collect())
    }

    /// How many frames each backend sees that `wanted` is true of. Waits until there are as many as `expected` in all, and
    /// a little longer for those that should not be.
    pub fn count(&self, expected: usize, wanted: impl Fn(&[u8]) -> bool) -> Vec<usize> {
        let mut counts = vec![0; self.0.len()];
        let start = Instant::now();
        let mut complete = None;
        while start.elapsed() < PATIENCE && complete.is_none_or(|since: Instant| since.elapsed() < SILENCE) {
            for (count, tap) in counts.iter_mut().zip(&self.0) {
                *count += tap.frames().iter().filter(|frame| wanted(frame)).count();
            }
            if counts.iter().sum::<usize>() >= expected {
                complete.get_or_insert_with(Instant::now);
            }
            thread::sleep(PAUSE);
        }
        counts
    }
}

/// Whether the bytes hold `part`.
pub fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Backends that send every datagram on port 4500 back to where it came from, until this is dropped.
pub struct Echo {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Echo {
    #[track_caller]
    pub fn start(network: &Network, family: Family) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answer = |socket: UdpSocket| {
            let stop = stop.clone();
            thread::spawn(move || {
                let mut buffer = [0; 8192];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                        let _ = socket.send_to(&buffer[..length], from);
                    }
                }
            })
        };
        let sockets: Vec<UdpSocket> =
            network.backends.iter().map(|backend| udp(backend, family.vip(), NAT)).collect();
        let threads = sockets.into_iter().map(answer).collect();
        Self { stop, threads }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What came of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    pub sent: usize,
    pub answered: usize,
}

/// ESP in UDP from one client to the VIP and back, without a pause, until it is told to stop.
pub struct Stream {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<io::Result<Tally>>,
    _echo: Echo,
}

/// How many packets of a stream may be under way. No queue is so short that it would lose any of them.
const WINDOW: usize = 16;

impl Stream {
    /// Begins with an IKE packet, so that the client has a session, and returns when an answer has come.
    #[track_caller]
    pub fn start(network: &Network, family: Family) -> Self {
        let echo = Echo::start(network, family);
        let socket = udp(&network.client, family.client(1), NAT);
        socket.connect((family.vip(), NAT)).expect("there is a route");
        let mut buffer = [0; 8192];
        let start = Instant::now();
        let begin = ike_bytes(NAT, Ike::init(0x5747_2ea1_0000_0001));
        loop {
            socket.send(&begin).expect("a datagram can be sent");
            if socket.recv(&mut buffer).is_ok() {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "nobody answers");
        }
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let sender = thread::spawn(move || send_until(&socket, &told));
        Self { stop, sender, _echo: echo }
    }

    /// Stops, and waits for the last answers.
    #[track_caller]
    pub fn finish(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        self.sender.join().expect("the sender does not panic").expect("datagrams can be sent")
    }

    /// Stops; every packet has to have been answered.
    #[track_caller]
    pub fn finish_without_loss(self) -> usize {
        let Tally { sent, answered } = self.finish();
        assert_eq!(answered, sent, "packets are lost");
        assert!(sent > WINDOW, "the stream has hardly begun");
        sent
    }
}

fn send_until(socket: &UdpSocket, stop: &AtomicBool) -> io::Result<Tally> {
    /// What has had no answer for so long is lost.
    const LOST: Duration = Duration::from_secs(5);
    let mut waiting: HashSet<u32> = HashSet::new();
    let mut tally = Tally { sent: 0, answered: 0 };
    let mut heard = Instant::now();
    let mut buffer = [0; 8192];
    loop {
        let stopped = stop.load(Ordering::Relaxed);
        while !stopped && waiting.len() < WINDOW {
            tally.sent += 1;
            let mut packet = esp_bytes(0x1000);
            packet[4..8].copy_from_slice(&(tally.sent as u32).to_be_bytes());
            socket.send(&packet)?;
            waiting.insert(tally.sent as u32);
        }
        if stopped && waiting.is_empty() {
            return Ok(tally);
        }
        if let Ok(length) = socket.recv(&mut buffer) {
            let number = buffer[4..8].try_into().map(u32::from_be_bytes);
            if length > 8 && number.is_ok_and(|number| waiting.remove(&number)) {
                tally.answered += 1;
                heard = Instant::now();
            }
        } else if heard.elapsed() > LOST {
            waiting.clear();
            heard = Instant::now();
        }
    }
}
