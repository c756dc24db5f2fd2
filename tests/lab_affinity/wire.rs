//! What arrives at the backends: every packet of their interfaces, sorted by the tunnel that it says it belongs to.
//! This is the judge of the tests here: it knows nothing of the balancer's tables.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::net::Ipv4Addr;
use std::process::{Child, ChildStderr, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use etherparse::{LaxPacketHeaders, NetHeaders, TransportHeader};

use crate::lab::{BACKENDS, Lab};

/// A backend is known by its place, from 0.
pub type At = BTreeSet<usize>;

/// Payload that says that a message is a fragment of one (RFC 7383).
const IKE_FRAGMENT: u8 = 53;
const IKE_NOTIFY: u8 = 41;
const IKE_SA_INIT: u8 = 34;
const COOKIE: u16 = 16390;

/// What was seen of one IKE SA on its way to the backends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ike {
    pub at: At,
    /// Addresses and ports that it came from.
    pub from: BTreeSet<(Ipv4Addr, u16)>,
    /// The client is this SA's original initiator (the I flag of what it sends). An SA that a backend rekeyed has another.
    pub by_client: bool,
    pub packets: u64,
}

/// What was seen of ESP with one SPI, or from one endpoint, on its way to the backends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    pub at: At,
    pub packets: u64,
}

/// All that was seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// By the initiator's SPI.
    pub ike: BTreeMap<u64, Ike>,
    /// By the SPI.
    pub esp: BTreeMap<u32, Flow>,
    /// Of UDP 4500, by address and port.
    pub endpoints: BTreeMap<(Ipv4Addr, u16), Flow>,
    /// IP fragments, by source and identification.
    pub fragments: BTreeMap<(Ipv4Addr, u16), Flow>,
    /// IKE messages that are fragments.
    pub ike_fragments: u64,
    /// Answers of the backends that ask for a cookie.
    pub cookies: u64,
}

impl Seen {
    /// Takes notice of a frame on the interface of one backend.
    fn frame(&mut self, backend: usize, frame: &[u8]) {
        let Ok(headers) = LaxPacketHeaders::from_ethernet(frame) else { return };
        let Some(NetHeaders::Ipv4(ip, _)) = &headers.net else { return };
        // The backends' own MACs, as the topology gives them.
        let from_backend = frame[6..11] == [0xaa, 0xbb, 0xcc, 0, 0];
        let source = Ipv4Addr::from(ip.source);
        if ip.is_fragmenting_payload() && !from_backend {
            self.fragments.entry((source, ip.identification)).or_default().packet(backend);
        }
        let Some(TransportHeader::Udp(udp)) = &headers.transport else { return };
        let payload = headers.payload.slice();
        if from_backend {
            self.answer(udp.source_port, payload);
            return;
        }
        match udp.destination_port {
            500 => self.ike(backend, (source, udp.source_port), payload),
            4500 => {
                self.endpoints.entry((source, udp.source_port)).or_default().packet(backend);
                match payload {
                    [0, 0, 0, 0, message @ ..] => self.ike(backend, (source, udp.source_port), message),
                    [a, b, c, d, _, _, _, _, ..] => {
                        let spi = u32::from_be_bytes([*a, *b, *c, *d]);
                        self.esp.entry(spi).or_default().packet(backend);
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn ike(&mut self, backend: usize, from: (Ipv4Addr, u16), message: &[u8]) {
        let Some((spi, rest)) = message.split_first_chunk() else { return };
        let ike = self.ike.entry(u64::from_be_bytes(*spi)).or_default();
        ike.at.insert(backend);
        ike.from.insert(from);
        ike.packets += 1;
        // The responder's SPI, the next payload, the version, the exchange, and the flags.
        ike.by_client = rest.get(11).is_some_and(|flags| flags & 0x08 != 0);
        self.ike_fragments += u64::from(rest.get(8) == Some(&IKE_FRAGMENT));
    }

    fn answer(&mut self, port: u16, payload: &[u8]) {
        let message = if port == 4500 { payload.get(4..).unwrap_or_default() } else { payload };
        let notification = message.get(34..36).map(|kind| u16::from_be_bytes([kind[0], kind[1]]));
        let asks = message.get(16) == Some(&IKE_NOTIFY)
            && message.get(18) == Some(&IKE_SA_INIT)
            && notification == Some(COOKIE);
        self.cookies += u64::from(asks);
    }

    /// No packet of any IKE SA, of any ESP SA, or of any fragmented datagram was seen at a second backend.
    #[track_caller]
    pub fn assert_whole(&self) {
        for (spi, ike) in &self.ike {
            assert_eq!(ike.at.len(), 1, "IKE of {spi:#018x}: {ike:?}");
        }
        for (spi, flow) in &self.esp {
            assert_eq!(flow.at.len(), 1, "ESP of {spi:#010x}: {flow:?}");
        }
        for (datagram, flow) in &self.fragments {
            assert_eq!(flow.at.len(), 1, "fragments of {datagram:?}: {flow:?}");
        }
    }

    /// No client's address and port was seen at a second backend. (A NAT may give a port to another client later.)
    #[track_caller]
    pub fn assert_endpoints_whole(&self) {
        for (endpoint, flow) in &self.endpoints {
            assert_eq!(flow.at.len(), 1, "{endpoint:?}: {flow:?}");
        }
    }
}

impl Flow {
    fn packet(&mut self, backend: usize) {
        self.at.insert(backend);
        self.packets += 1;
    }
}

/// A capture on the interface of every backend, until it is dropped.
pub struct Wire {
    seen: Arc<Mutex<Seen>>,
    captures: Vec<(Child, BufReader<ChildStderr>, JoinHandle<()>)>,
}

impl Wire {
    /// Begins to watch. What is sent from now on is seen.
    #[track_caller]
    pub fn tap(lab: &Lab) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let capture = |backend: usize| {
            let mut child = lab
                .node(&format!("TEIP{}", backend + 1))
                .child("tcpdump")
                .args(["--immediate-mode", "-U", "-n", "-i", "eth1", "-B", "16384", "-w", "-", "ip"])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("tcpdump is installed");
            let mut errors = BufReader::new(child.stderr.take().expect("it is piped"));
            let mut line = String::new();
            while !line.contains("listening on") {
                line.clear();
                assert_ne!(
                    errors.read_line(&mut line).expect("tcpdump can be read"),
                    0,
                    "tcpdump does not start"
                );
            }
            let output = BufReader::new(child.stdout.take().expect("it is piped"));
            let seen = Arc::clone(&seen);
            let reader =
                thread::spawn(move || read(output, |frame| seen.lock().unwrap().frame(backend, frame)));
            (child, errors, reader)
        };
        let captures = (0..BACKENDS).map(capture).collect();
        Self { seen, captures }
    }

    /// What has been seen up to now.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    /// Forgets what has been seen.
    pub fn forget(&self) {
        *self.seen.lock().unwrap() = Seen::default();
    }

    /// Ends the capture, which has to be complete.
    #[track_caller]
    pub fn end(mut self) -> Seen {
        for (mut child, mut errors, reader) in self.captures.drain(..) {
            // Asked politely, it says how many packets it has missed.
            interrupt(&child);
            let mut text = String::new();
            errors.read_to_string(&mut text).expect("tcpdump can be read");
            reader.join().expect("what it says can be read");
            child.wait().expect("a child can be waited for");
            assert!(text.contains("\n0 packets dropped by kernel"), "the capture is not complete: {text}");
        }
        self.seen()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for (child, ..) in &mut self.captures {
            interrupt(child);
            let _ = child.wait();
        }
    }
}

/// Sends SIGINT to what `Node::child` has started.
pub fn interrupt(child: &Child) {
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT);
}

/// Reads a pcap stream of this machine's byte order, as tcpdump writes it, to its end.
fn read(mut stream: impl Read, mut each: impl FnMut(&[u8])) {
    let mut header = [0; 24];
    if stream.read_exact(&mut header).is_err() {
        return;
    }
    let mut record = [0; 16];
    while stream.read_exact(&mut record).is_ok() {
        let length = u32::from_ne_bytes(record[8..12].try_into().expect("four bytes"));
        let mut frame = vec![0; length as usize];
        if stream.read_exact(&mut frame).is_err() {
            return;
        }
        each(&frame);
    }
}
