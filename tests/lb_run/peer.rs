//! A client that is a tunnel, with its own SPIs and UDP ports: what it sends, and what its backend answers.

use std::net::IpAddr;

use lb::lb::datapath::Affinity;
use lb::lb::session::{Key, State};
use lb::lb::skeleton::types::lb_verdict;

use crate::common::packet::{
    Ike, esp, esp_back, esp_bytes, esp_in_udp, ike_nat, ike_nat_back, padded, udp, vip,
};
use crate::fixture::{Balancer, Side};

#[derive(Clone, Copy, Debug)]
pub struct Peer {
    pub address: IpAddr,
    /// Where its packets to port 500 come from.
    pub port: u16,
    /// Where its packets to port 4500 come from.
    pub nat_port: u16,
    pub initiator_spi: u64,
    pub responder_spi: u64,
}

impl Peer {
    /// Peer number `number`, all of whose numbers are its own, behind an address that it may share.
    pub fn new(number: u16, address: IpAddr) -> Self {
        Self {
            address,
            port: 10_000 + number,
            nat_port: 20_000 + number,
            initiator_spi: 0x1111_0000_0000_0000 + u64::from(number),
            responder_spi: 0x2222_0000_0000_0000 + u64::from(number),
        }
    }

    /// One behind no NAT, whose ports are the well-known ones.
    pub fn bare(number: u16, address: IpAddr) -> Self {
        Self { port: 500, nat_port: 4500, ..Self::new(number, address) }
    }

    /// The same peer after its NAT gave it another port, and perhaps after it went elsewhere.
    pub fn at(self, address: IpAddr, nat_port: u16) -> Self {
        Self { address, nat_port, ..self }
    }

    /// The same peer with another IKE SA.
    pub fn with_sa(self, number: u64) -> Self {
        let (initiator_spi, responder_spi) =
            (self.initiator_spi + (number << 32), self.responder_spi + (number << 32));
        Self { initiator_spi, responder_spi, ..self }
    }

    pub fn sa(&self) -> Key {
        Key::Sa(self.initiator_spi)
    }

    /// Where its IKE begins.
    pub fn first_endpoint(&self) -> Key {
        Key::IkeEndpoint(self.address, self.port)
    }

    /// Where the rest comes from.
    pub fn endpoint(&self) -> Key {
        Key::Endpoint(self.address, self.nat_port)
    }

    /// A message to port 500.
    pub fn ike_500(&self, message: Ike) -> Vec<u8> {
        udp((self.address, self.port), (vip(self.address), 500), &message.bytes())
    }

    /// A message to port 4500.
    pub fn ike(&self, message: Ike) -> Vec<u8> {
        ike_nat(self.address, self.nat_port, message)
    }

    /// IKE_SA_INIT on port 500.
    pub fn start(&self) -> Vec<u8> {
        self.ike_500(Ike::init(self.initiator_spi))
    }

    /// The answer to that.
    pub fn answer(&self) -> Vec<u8> {
        let message = Ike::init_response(self.initiator_spi, self.responder_spi);
        udp((vip(self.address), 500), (self.address, self.port), &message.bytes())
    }

    /// IKE_AUTH on port 4500, and with the same bytes whatever a client sends later.
    pub fn auth(&self) -> Vec<u8> {
        self.ike(Ike::auth(self.initiator_spi, self.responder_spi))
    }

    /// A message of its backend on port 4500, encrypted as all are from IKE_AUTH on. The backend did not begin the SA.
    pub fn ike_back(&self) -> Vec<u8> {
        let message =
            Ike { next_payload: 46, flags: 0x20, ..Ike::auth(self.initiator_spi, self.responder_spi) };
        ike_nat_back(self.address, self.nat_port, message)
    }

    /// ESP in UDP with the SPI that its backend chose.
    pub fn data(&self, spi: u32) -> Vec<u8> {
        esp_in_udp(self.address, self.nat_port, spi)
    }

    /// ESP in UDP of its backend.
    pub fn data_back(&self) -> Vec<u8> {
        udp((vip(self.address), 4500), (self.address, self.nat_port), &esp_bytes(0xc0de_0001))
    }

    /// ESP in no UDP.
    pub fn plain(&self, spi: u32) -> Vec<u8> {
        esp(self.address, spi)
    }

    /// ESP in no UDP, of its backend.
    pub fn plain_back(&self) -> Vec<u8> {
        esp_back(self.address, 0xc0de_0001)
    }

    pub fn keepalive(&self) -> Vec<u8> {
        padded(udp((self.address, self.nat_port), (vip(self.address), 4500), &[0xff]))
    }
}

impl Balancer {
    /// Goes through a peer's start and the answer to it. Returns the backend.
    #[track_caller]
    pub fn greet(&self, peer: &Peer) -> u32 {
        let (verdict, backend) = self.outcome(&peer.start());
        assert_eq!(verdict, lb_verdict::LB_NEW, "the start of {peer:?}");
        let backend = backend.expect("a start goes to a backend");
        self.answer(backend, peer.answer());
        backend
    }

    /// Goes through a peer's handshake to its last answer, and lets some time pass. Returns the backend.
    #[track_caller]
    pub fn connect(&self, peer: &Peer) -> u32 {
        let backend = self.greet(peer);
        let proven = self.outcome(&peer.auth());
        assert_eq!(proven, (lb_verdict::LB_SESSION, Some(backend)), "the proof of {peer:?}");
        let key = match self.settings.affinity {
            Affinity::Address => Key::Address(peer.address),
            Affinity::Tunnel => peer.sa(),
        };
        let entry = self.entry(key).map(|entry| (entry.state, entry.backend));
        assert_eq!(entry, Some((State::Established, backend)), "{peer:?}");
        self.answer(backend, peer.ike_back());
        self.pass();
        backend
    }

    /// Lets some time pass: what the datapath does once a second for an entry, it does again.
    pub fn pass(&self) {
        self.age_sessions(3);
    }

    /// Sends what comes from a peer, and ends the test where that goes elsewhere than `wanted`.
    #[track_caller]
    pub fn expect(&self, what: &str, frame: Vec<u8>, wanted: (lb_verdict, u32)) {
        assert_eq!(self.outcome(&frame), (wanted.0, Some(wanted.1)), "{what}");
    }

    /// The same where it is to be dropped.
    #[track_caller]
    pub fn expect_dropped(&self, what: &str, frame: Vec<u8>, verdict: lb_verdict) {
        assert_eq!(self.outcome(&frame), (verdict, None), "{what}");
        assert_eq!(self.send(Side::Client, &frame).action, crate::fixture::XDP_DROP, "{what}");
    }
}
