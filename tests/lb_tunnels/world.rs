//! Clients, NATs, backends, and the packets under way between them: who sends what, and what is answered to it.
//!
//! Both ends are real as far as it matters to whoever is between: they speak when they have what they need to, and answer
//! what reaches them. What a packet belongs to is known here, and not to the balancer.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::common::packet::{self, Ike};

pub const HOSTS: usize = 7;
pub const BACKENDS: usize = 4;
/// What the SPIs that each backend chooses begin with, where they have labels of so many bits.
pub const LABELS: [u32; BACKENDS] = [3, 8, 12, 5];
pub const LABEL_BITS: u32 = 4;
/// Two of NATs, and five of hosts by themselves.
pub const ADDRESSES: usize = 7;
const NATS: usize = 2;

/// An address and a UDP port.
pub type Endpoint = (IpAddr, u16);

/// What is to be known of an IKE SA by either end.
#[derive(Clone, Copy, Debug)]
pub struct IkeSa {
    pub initiator_spi: u64,
    pub responder_spi: u64,
    client_began: bool,
    client_has: bool,
    backend_has: bool,
}

#[derive(Clone, Copy, Debug)]
struct ChildSa {
    /// What the backend chose, for what it receives.
    to_backend: u32,
    to_client: u32,
    client_has: bool,
    backend_has: bool,
}

/// A client's tunnel: an IKE SA, those that follow on it by rekeying, and their CHILD SAs.
#[derive(Clone, Debug)]
pub struct Tunnel {
    pub host: usize,
    /// Where its first packet went.
    pub home: Option<usize>,
    /// Its backend has been down meanwhile: the client gives it up.
    pub lost: bool,
    ike: Vec<IkeSa>,
    children: Vec<ChildSa>,
    cookie: bool,
    answered: bool,
    /// Where the backend believes the client to be.
    peer: Option<Endpoint>,
}

#[derive(Clone, Debug)]
struct Host {
    address: usize,
    /// As the NAT shows them, or its own.
    port_500: u16,
    port_4500: u16,
    /// Goes to port 4500 though there is no NAT, as MOBIKE asks for.
    floats: bool,
    current: Option<usize>,
    former: Option<usize>,
    pending: Option<usize>,
}

/// What a packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum What {
    Init {
        cookie: bool,
    },
    CookieDemand,
    InitResponse,
    Auth,
    AuthResponse,
    Informational,
    InformationalResponse,
    /// The number of the new SA in the tunnel.
    RekeyIke(usize),
    RekeyIkeResponse(usize),
    RekeyChild(usize),
    RekeyChildResponse(usize),
    Esp,
    Keepalive,
    Ping,
    IcmpError,
    Stray,
}

/// What a frame has of its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// RFC 7383: number, and how many there are.
    IkeFragment(usize, usize),
    IpFirst,
    IpLater,
}

/// A packet under way.
#[derive(Clone, Debug)]
pub struct Packet {
    pub frame: Vec<u8>,
    pub what: What,
    pub part: Part,
    pub tunnel: Option<usize>,
    /// The same for all parts of a message.
    pub message: u64,
    /// The client's end; of an ICMP error that of the packet that it is about.
    pub client: Endpoint,
    /// Whether there are UDP ports.
    pub udp: bool,
    pub spis: (u64, u64),
    pub esp_spi: u32,
}

#[derive(Clone, Debug)]
pub struct World {
    pub tunnels: Vec<Tunnel>,
    hosts: Vec<Host>,
    /// From clients.
    pub up: Vec<Packet>,
    /// From backends, with their numbers.
    pub down: Vec<(usize, Packet)>,
    pub cookies: bool,
    /// Whether SPIs have labels.
    labels: bool,
    /// Parts of messages that have reached the other end.
    arrived: HashMap<u64, HashSet<usize>>,
    counter: u64,
}

pub fn address(number: usize) -> IpAddr {
    match number % ADDRESSES {
        number @ (4 | 6) => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, number as u16).into(),
        number => Ipv4Addr::new(10, 9, 0, 1 + number as u8).into(),
    }
}

pub fn number_of(wanted: IpAddr) -> usize {
    (0..ADDRESSES).find(|&number| address(number) == wanted).unwrap_or(0)
}

fn is_nat(address: usize) -> bool {
    address < NATS
}

impl World {
    pub fn new(labels: bool) -> Self {
        let host = |number: usize| {
            let address = [0, 0, 0, 1, 1, 2, 4][number];
            let mut host = Host {
                address,
                port_500: 500,
                port_4500: 4500,
                floats: number % 2 == 0,
                current: None,
                former: None,
                pending: None,
            };
            if is_nat(address) {
                host.port_500 = 20_000 + number as u16;
                host.port_4500 = 30_000 + number as u16;
            }
            host
        };
        Self {
            tunnels: Vec::new(),
            hosts: (0..HOSTS).map(host).collect(),
            up: Vec::new(),
            down: Vec::new(),
            cookies: false,
            labels,
            arrived: HashMap::new(),
            counter: 0,
        }
    }

    fn count(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// SPIs are random numbers to whoever does not know.
    fn ike_spi(&mut self) -> u64 {
        self.count().wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
    }

    fn esp_spi(&mut self) -> u32 {
        0x0100_0000 | (self.count() as u32).wrapping_mul(0x9e37_79b1)
    }

    /// The same, chosen by the backend of a tunnel.
    fn ike_spi_of_backend(&mut self, tunnel: usize) -> u64 {
        let spi = self.ike_spi();
        let Some(home) = self.tunnels[tunnel].home.filter(|_| self.labels) else { return spi };
        u64::from(LABELS[home]) << (64 - LABEL_BITS) | spi >> LABEL_BITS
    }

    fn esp_spi_of_backend(&mut self, tunnel: usize) -> u32 {
        let spi = self.esp_spi();
        let Some(home) = self.tunnels[tunnel].home.filter(|_| self.labels) else { return spi };
        LABELS[home] << (32 - LABEL_BITS) | spi >> LABEL_BITS
    }

    /// The tunnel that a client uses, or the one before.
    pub fn tunnel_of(&self, host: usize, old: bool) -> Option<usize> {
        let host = &self.hosts[host];
        let former = host.former.filter(|_| old);
        former.or(host.current).filter(|&tunnel| !self.tunnels[tunnel].lost)
    }

    /// Where a client's packets to a port seem to come from.
    fn endpoint(&self, host: usize, nat_port: bool) -> Endpoint {
        let host = &self.hosts[host];
        (address(host.address), if nat_port { host.port_4500 } else { host.port_500 })
    }

    /// Whether a tunnel has had one IKE SA, and its client no other tunnel.
    pub fn is_alone(&self, tunnel: usize) -> bool {
        let host = self.tunnels[tunnel].host;
        self.tunnels[tunnel].ike.len() == 1
            && self.tunnels.iter().filter(|other| other.host == host).count() == 1
    }

    /// Whether a client is where packets from an endpoint come from now.
    pub fn is_at(&self, tunnel: usize, client: Endpoint) -> bool {
        let host = self.tunnels[tunnel].host;
        [false, true].iter().any(|&nat_port| self.endpoint(host, nat_port) == client)
    }

    /// Whether a client encapsulates, and whether its IKE is on port 4500.
    fn encapsulates(&self, host: usize) -> bool {
        is_nat(self.hosts[host].address)
    }

    fn uses_4500(&self, host: usize) -> bool {
        self.encapsulates(host) || self.hosts[host].floats
    }

    /// A backend has gone down, and its tunnels with it.
    pub fn lose(&mut self, backend: usize) {
        for tunnel in self.tunnels.iter_mut().filter(|tunnel| tunnel.home == Some(backend)) {
            tunnel.lost = true;
        }
        for host in &mut self.hosts {
            for place in [&mut host.current, &mut host.former, &mut host.pending] {
                *place = place.filter(|&tunnel| !self.tunnels[tunnel].lost);
            }
        }
    }

    // What clients do.

    pub fn start(&mut self, host: usize) {
        if self.hosts[host].pending.is_some() || self.tunnels.len() >= 40 {
            return;
        }
        let initiator_spi = self.ike_spi();
        let sa = IkeSa {
            initiator_spi,
            responder_spi: 0,
            client_began: true,
            client_has: true,
            backend_has: false,
        };
        self.tunnels.push(Tunnel {
            host,
            home: None,
            lost: false,
            ike: vec![sa],
            children: Vec::new(),
            cookie: false,
            answered: false,
            peer: None,
        });
        self.hosts[host].pending = Some(self.tunnels.len() - 1);
        self.retransmit(host);
    }

    /// The request of a handshake that is not answered yet.
    pub fn retransmit(&mut self, host: usize) {
        let Some(tunnel) = self.hosts[host].pending else { return };
        if !self.tunnels[tunnel].answered {
            let cookie = self.tunnels[tunnel].cookie;
            // A new SA for one that is there begins where that one is.
            let nat_port = self.hosts[host].current.is_some() && self.uses_4500(host);
            let client = self.endpoint(host, nat_port);
            self.client_ike(tunnel, 0, What::Init { cookie }, client, nat_port, Part::Whole);
            return;
        }
        let nat_port = self.uses_4500(host);
        let client = self.endpoint(host, nat_port);
        // By turns in one packet, in fragments of IP, and of IKE.
        match self.counter % 3 {
            0 => self.client_ike(tunnel, 0, What::Auth, client, nat_port, Part::Whole),
            1 => self.client_ike(tunnel, 0, What::Auth, client, nat_port, Part::IpFirst),
            _ => self.client_ike(tunnel, 0, What::Auth, client, nat_port, Part::IkeFragment(0, 2)),
        }
    }

    pub fn client_esp(&mut self, host: usize, old: bool) {
        let Some(tunnel) = self.tunnel_of(host, old) else { return };
        let children = self.tunnels[tunnel].children.iter().filter(|child| child.client_has);
        let Some(child) = children.rev().nth(usize::from(old)).or(self.tunnels[tunnel].children.first())
        else {
            return;
        };
        let spi = child.to_backend;
        let udp = self.encapsulates(host);
        let client = self.endpoint(host, true);
        let frame =
            if udp { packet::esp_in_udp(client.0, client.1, spi) } else { packet::esp(client.0, spi) };
        let message = self.count();
        self.up.push(Packet {
            frame,
            what: What::Esp,
            part: Part::Whole,
            tunnel: Some(tunnel),
            message,
            client,
            udp,
            spis: (0, 0),
            esp_spi: spi,
        });
    }

    pub fn keepalive(&mut self, host: usize) {
        let Some(tunnel) = self.tunnel_of(host, false).filter(|_| self.encapsulates(host)) else { return };
        let client = self.endpoint(host, true);
        let frame = packet::padded(packet::udp(client, (packet::vip(client.0), 4500), &[0xff]));
        self.other_up(What::Keepalive, Some(tunnel), client, frame);
    }

    pub fn ping(&mut self, host: usize) {
        let client = self.endpoint(host, false);
        self.other_up(What::Ping, None, client, packet::echo_request(client.0));
    }

    /// About the last that the backend sent to the client.
    pub fn icmp_error(&mut self, host: usize) {
        let Some(tunnel) = self.tunnel_of(host, false) else { return };
        let Some(peer) = self.tunnels[tunnel].peer.filter(|_| self.encapsulates(host)) else { return };
        let router: IpAddr = match peer.0 {
            IpAddr::V4(_) => Ipv4Addr::new(10, 9, 0, 200).into(),
            IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 200).into(),
        };
        let about = packet::udp((packet::vip(peer.0), 4500), peer, &packet::esp_bytes(0x0123_4567));
        let kind = if peer.0.is_ipv6() { 1 } else { 3 };
        let length = about.len() - packet::IP_AT;
        let frame = packet::icmp_error(router, kind, &about, length);
        self.other_up(What::IcmpError, Some(tunnel), peer, frame);
    }

    pub fn stray(&mut self, what: crate::plan::Stray, at: usize, near: bool) {
        use crate::plan::Stray;
        let number = self.count();
        let at_address = address(at);
        // Near: from where a client is, that is who is on the way can send it.
        let neighbour = self.hosts.iter().find(|host| near && host.address == at % ADDRESSES);
        let port = neighbour.map_or(50_000 + (number % 5000) as u16, |host| host.port_4500);
        let client = (at_address, port);
        let (i, r) =
            (number.wrapping_mul(0xd134_2543_de82_ef95) | 1, number.wrapping_mul(0xaf25_1af3_b0f0_25b5) | 1);
        let frame = match what {
            Stray::Start => packet::ike_nat(at_address, port, Ike::init(i)),
            Stray::Ike => packet::ike_nat(at_address, port, Ike::auth(i, r)),
            Stray::Response => packet::ike_nat(at_address, port, Ike { flags: 0x20, ..Ike::auth(i, r) }),
            Stray::Esp => packet::esp_in_udp(at_address, port, 0x7000_0000 | number as u32),
            Stray::Keepalive => packet::udp(client, (packet::vip(at_address), 4500), &[0xff]),
            Stray::Noise => packet::udp(client, (packet::vip(at_address), 4500), &[0; 3]),
        };
        self.other_up(What::Stray, None, client, frame);
    }

    fn other_up(&mut self, what: What, tunnel: Option<usize>, client: Endpoint, frame: Vec<u8>) {
        let message = self.count();
        let udp = matches!(what, What::Keepalive | What::IcmpError);
        self.up.push(Packet {
            frame,
            what,
            part: Part::Whole,
            tunnel,
            message,
            client,
            udp,
            spis: (0, 0),
            esp_spi: 0,
        });
    }

    /// An IKE SA that an end has, with its number: the newest, or one before.
    fn ike_sa(&self, tunnel: usize, old: bool, has: impl Fn(&IkeSa) -> bool) -> Option<usize> {
        let sas = &self.tunnels[tunnel].ike;
        let own: Vec<usize> = (0..sas.len()).filter(|&number| has(&sas[number])).collect();
        let before = own.len().checked_sub(2).filter(|_| old).map(|at| own[at]);
        before.or(own.last().copied())
    }

    fn client_request(&mut self, host: usize, old: bool, what: impl FnOnce(&mut Self, usize) -> What) {
        let Some(tunnel) = self.tunnel_of(host, old) else { return };
        let Some(sa) = self.ike_sa(tunnel, old, |sa| sa.client_has) else { return };
        let what = what(self, tunnel);
        let nat_port = self.uses_4500(host);
        let client = self.endpoint(host, nat_port);
        self.client_ike(tunnel, sa, what, client, nat_port, Part::Whole);
    }

    pub fn informational(&mut self, host: usize, old: bool) {
        self.client_request(host, old, |_, _| What::Informational);
    }

    pub fn rekey_child(&mut self, host: usize) {
        self.client_request(host, false, |world, tunnel| What::RekeyChild(world.new_child(tunnel)));
    }

    pub fn rekey_ike(&mut self, host: usize) {
        self.client_request(host, false, |world, tunnel| What::RekeyIke(world.new_ike(tunnel, true)));
    }

    fn new_child(&mut self, tunnel: usize) -> usize {
        let child = ChildSa {
            to_backend: self.esp_spi_of_backend(tunnel),
            to_client: self.esp_spi(),
            client_has: false,
            backend_has: false,
        };
        self.tunnels[tunnel].children.push(child);
        self.tunnels[tunnel].children.len() - 1
    }

    fn new_ike(&mut self, tunnel: usize, client_began: bool) -> usize {
        let (of_client, of_backend) = (self.ike_spi(), self.ike_spi_of_backend(tunnel));
        let (initiator_spi, responder_spi) =
            if client_began { (of_client, of_backend) } else { (of_backend, of_client) };
        let sa = IkeSa { initiator_spi, responder_spi, client_began, client_has: false, backend_has: false };
        self.tunnels[tunnel].ike.push(sa);
        self.tunnels[tunnel].ike.len() - 1
    }

    /// To another address, which the client tells its backend.
    pub fn go(&mut self, host: usize, to: usize) {
        let to = to % ADDRESSES;
        let taken = !is_nat(to) && self.hosts.iter().any(|other| other.address == to);
        let family = |address_number| address(address_number).is_ipv6();
        if taken || family(to) != family(self.hosts[host].address) && self.hosts[host].pending.is_some() {
            return;
        }
        self.hosts[host].address = to;
        (self.hosts[host].port_500, self.hosts[host].port_4500) = (500, 4500);
        if is_nat(to) {
            self.rebind(host);
        }
        self.informational(host, false);
    }

    pub fn rebind(&mut self, host: usize) {
        if is_nat(self.hosts[host].address) {
            let number = self.count() as u16;
            self.hosts[host].port_500 = 10_000 + number;
            self.hosts[host].port_4500 = 40_000 + number;
        }
    }

    // What backends do by themselves.

    pub fn backend_esp(&mut self, host: usize, old: bool) {
        let Some(tunnel) = self.tunnel_of(host, old) else { return };
        let (Some(home), Some(peer)) = (self.tunnels[tunnel].home, self.tunnels[tunnel].peer) else { return };
        let Some(child) = self.tunnels[tunnel].children.iter().rfind(|child| child.backend_has) else {
            return;
        };
        let spi = child.to_client;
        let udp = is_nat(number_of(peer.0));
        let frame = if udp {
            packet::udp((packet::vip(peer.0), 4500), peer, &packet::esp_bytes(spi))
        } else {
            packet::esp_back(peer.0, spi)
        };
        let message = self.count();
        let packet = Packet {
            frame,
            what: What::Esp,
            part: Part::Whole,
            tunnel: Some(tunnel),
            message,
            client: peer,
            udp,
            spis: (0, 0),
            esp_spi: spi,
        };
        self.down.push((home, packet));
    }

    fn backend_request(&mut self, host: usize, old: bool, what: impl FnOnce(&mut Self, usize) -> What) {
        let Some(tunnel) = self.tunnel_of(host, old) else { return };
        let (Some(home), Some(peer)) = (self.tunnels[tunnel].home, self.tunnels[tunnel].peer) else { return };
        let Some(sa) = self.ike_sa(tunnel, old, |sa| sa.backend_has) else { return };
        let what = what(self, tunnel);
        self.backend_ike(home, tunnel, sa, what, peer);
    }

    pub fn backend_informational(&mut self, host: usize, old: bool) {
        self.backend_request(host, old, |_, _| What::Informational);
    }

    pub fn backend_rekey_child(&mut self, host: usize) {
        self.backend_request(host, false, |world, tunnel| What::RekeyChild(world.new_child(tunnel)));
    }

    pub fn backend_rekey_ike(&mut self, host: usize) {
        self.backend_request(host, false, |world, tunnel| What::RekeyIke(world.new_ike(tunnel, false)));
    }

    // What is on the wire.

    fn client_ike(
        &mut self,
        tunnel: usize,
        sa: usize,
        what: What,
        client: Endpoint,
        nat_port: bool,
        part: Part,
    ) {
        let ike = self.tunnels[tunnel].ike[sa];
        let message = header(ike, what, ike.client_began, part);
        let frame = if nat_port {
            packet::ike_nat(client.0, client.1, message)
        } else {
            packet::udp(client, (packet::vip(client.0), 500), &message.bytes())
        };
        let number = self.count();
        let packet = Packet {
            frame,
            what,
            part,
            tunnel: Some(tunnel),
            message: number,
            client,
            udp: true,
            spis: (message.initiator_spi, message.responder_spi),
            esp_spi: 0,
        };
        match part {
            Part::IpFirst => {
                let [first, later] = packet::fragments(&packet.frame, 64, number as u16, &[]);
                self.up.push(Packet { frame: first, ..packet.clone() });
                self.up.push(Packet { frame: later, part: Part::IpLater, ..packet });
            }
            Part::IkeFragment(_, of) => {
                for at in 0..of {
                    self.up.push(Packet { part: Part::IkeFragment(at, of), ..packet.clone() });
                }
            }
            _ => self.up.push(packet),
        }
    }

    fn backend_ike(&mut self, backend: usize, tunnel: usize, sa: usize, what: What, client: Endpoint) {
        let ike = self.tunnels[tunnel].ike[sa];
        let message = header(ike, what, !ike.client_began, Part::Whole);
        self.backend_message(backend, Some(tunnel), message, what, client);
    }

    fn backend_message(
        &mut self,
        backend: usize,
        tunnel: Option<usize>,
        message: Ike,
        what: What,
        client: Endpoint,
    ) {
        // As the client's port tells: those that NATs give for port 500 are below 30000.
        let to_500 = client.1 < 30_000 && client.1 != 4500;
        let frame = if to_500 {
            packet::udp((packet::vip(client.0), 500), client, &message.bytes())
        } else {
            packet::ike_nat_back(client.0, client.1, message)
        };
        let number = self.count();
        let packet = Packet {
            frame,
            what,
            part: Part::Whole,
            tunnel,
            message: number,
            client,
            udp: true,
            spis: (message.initiator_spi, message.responder_spi),
            esp_spi: 0,
        };
        self.down.push((backend, packet));
    }

    // What comes of packets that arrive.

    /// Whether all parts of a message are there.
    fn is_whole(&mut self, packet: &Packet) -> bool {
        let (part, of) = match packet.part {
            Part::Whole => return true,
            Part::IkeFragment(part, of) => (part, of),
            Part::IpFirst => (0, 2),
            Part::IpLater => (1, 2),
        };
        let parts = self.arrived.entry(packet.message).or_default();
        parts.insert(part);
        parts.len() == of
    }

    /// At a backend.
    pub fn reach_backend(&mut self, backend: usize, packet: &Packet) {
        let Some(tunnel) = packet.tunnel else {
            // Whoever begins an SA is answered.
            if packet.what == What::Stray && packet.frame.len() > 150 {
                let at = packet.frame.len() - Ike::init(0).bytes().len();
                let i = u64::from_be_bytes(packet.frame[at..at + 8].try_into().expect("eight bytes"));
                let r = self.ike_spi();
                if packet.frame[at + 18] == 34 {
                    let message = Ike::init_response(i, r);
                    self.backend_message(backend, None, message, What::Stray, packet.client);
                }
            }
            return;
        };
        if self.tunnels[tunnel].home != Some(backend) || !self.is_whole(packet) {
            return;
        }
        let to = packet.client;
        let sa = self.tunnels[tunnel].ike.iter().position(|sa| sa.initiator_spi == packet.spis.0);
        match packet.what {
            What::Init { cookie: false } if self.cookies && !self.tunnels[tunnel].ike[0].backend_has => {
                let message = Ike {
                    flags: 0x20,
                    next_payload: 41,
                    ..Ike::init(self.tunnels[tunnel].ike[0].initiator_spi)
                };
                self.backend_message(backend, Some(tunnel), message, What::CookieDemand, to);
                return;
            }
            What::Init { .. } => {
                if !self.tunnels[tunnel].ike[0].backend_has {
                    let spi = self.ike_spi_of_backend(tunnel);
                    let sa = &mut self.tunnels[tunnel].ike[0];
                    (sa.responder_spi, sa.backend_has) = (spi, true);
                }
                self.backend_ike(backend, tunnel, 0, What::InitResponse, to);
                return;
            }
            _ => {}
        }
        let Some(known) = sa.filter(|&sa| self.tunnels[tunnel].ike[sa].backend_has).or(
            // Only ESP has no IKE SA.
            matches!(packet.what, What::Esp).then_some(0),
        ) else {
            return;
        };
        let answer = match packet.what {
            What::Auth => {
                if self.tunnels[tunnel].children.is_empty() {
                    self.new_child(tunnel);
                    self.tunnels[tunnel].children[0].backend_has = true;
                }
                What::AuthResponse
            }
            What::Informational => What::InformationalResponse,
            What::RekeyIke(new) => {
                self.tunnels[tunnel].ike[new].backend_has = true;
                What::RekeyIkeResponse(new)
            }
            What::RekeyChild(new) => {
                self.tunnels[tunnel].children[new].backend_has = true;
                What::RekeyChildResponse(new)
            }
            What::RekeyIkeResponse(new) => {
                self.tunnels[tunnel].ike[new].backend_has = true;
                return;
            }
            What::RekeyChildResponse(new) => {
                self.tunnels[tunnel].children[new].backend_has = true;
                return;
            }
            What::Esp => {
                // Without UDP it shows no port.
                if packet.udp {
                    self.tunnels[tunnel].peer = Some(to);
                }
                return;
            }
            _ => return,
        };
        self.tunnels[tunnel].peer = Some(to);
        self.backend_ike(backend, tunnel, known, answer, to);
    }

    /// At a client, if there is still one where it is for.
    pub fn reach_client(&mut self, packet: &Packet) {
        let Some(tunnel) = packet.tunnel else { return };
        let host = self.tunnels[tunnel].host;
        if !self.is_at(tunnel, packet.client) || self.tunnels[tunnel].lost {
            return;
        }
        let nat_port = self.uses_4500(host);
        let from = self.endpoint(host, nat_port);
        let pending = self.hosts[host].pending == Some(tunnel);
        let sa =
            self.tunnels[tunnel].ike.iter().position(|sa| sa.initiator_spi == packet.spis.0 && sa.client_has);
        match packet.what {
            What::CookieDemand if pending && !self.tunnels[tunnel].answered => {
                self.tunnels[tunnel].cookie = true;
                self.retransmit(host);
            }
            What::InitResponse if pending && !self.tunnels[tunnel].answered => {
                self.tunnels[tunnel].answered = true;
                self.retransmit(host);
            }
            What::AuthResponse if pending => {
                if let Some(child) = self.tunnels[tunnel].children.first_mut() {
                    child.client_has = true;
                }
                let host = &mut self.hosts[host];
                host.pending = None;
                host.former = host.current;
                host.current = Some(tunnel);
            }
            What::Informational => {
                if let Some(sa) = sa {
                    self.client_ike(tunnel, sa, What::InformationalResponse, from, nat_port, Part::Whole);
                }
            }
            What::RekeyIke(new) => {
                self.tunnels[tunnel].ike[new].client_has = true;
                if let Some(sa) = sa {
                    self.client_ike(tunnel, sa, What::RekeyIkeResponse(new), from, nat_port, Part::Whole);
                }
            }
            What::RekeyChild(new) => {
                self.tunnels[tunnel].children[new].client_has = true;
                if let Some(sa) = sa {
                    self.client_ike(tunnel, sa, What::RekeyChildResponse(new), from, nat_port, Part::Whole);
                }
            }
            What::RekeyIkeResponse(new) => self.tunnels[tunnel].ike[new].client_has = true,
            What::RekeyChildResponse(new) => self.tunnels[tunnel].children[new].client_has = true,
            _ => {}
        }
    }
}

/// An IKE message of one end, of an SA that `of_initiator` says whether that end began.
fn header(sa: IkeSa, what: What, of_initiator: bool, part: Part) -> Ike {
    let (exchange, response) = match what {
        What::Init { .. } => (34, false),
        What::CookieDemand | What::InitResponse => (34, true),
        What::Auth => (35, false),
        What::AuthResponse => (35, true),
        What::RekeyIke(_) | What::RekeyChild(_) => (36, false),
        What::RekeyIkeResponse(_) | What::RekeyChildResponse(_) => (36, true),
        What::InformationalResponse => (37, true),
        _ => (37, false),
    };
    let next_payload = match part {
        _ if exchange == 34 => 33,
        Part::IkeFragment(..) => 53,
        _ => 46,
    };
    Ike {
        initiator_spi: sa.initiator_spi,
        responder_spi: if matches!(what, What::Init { .. }) { 0 } else { sa.responder_spi },
        next_payload,
        version: 0x20,
        exchange,
        flags: if of_initiator { 0x08 } else { 0 } | if response { 0x20 } else { 0 },
        extra: 100,
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", self.what)?;
        if self.part != Part::Whole {
            write!(formatter, " ({:?})", self.part)?;
        }
        if self.spis.0 != 0 {
            write!(formatter, " {:x}/{:x}", self.spis.0 >> 48, self.spis.1 >> 48)?;
        }
        if self.esp_spi != 0 {
            write!(formatter, " {:x}", self.esp_spi)?;
        }
        if let Some(tunnel) = self.tunnel {
            write!(formatter, " of tunnel {tunnel}")?;
        }
        write!(formatter, ", client {}", self.client.0)?;
        if self.udp { write!(formatter, " port {}", self.client.1) } else { Ok(()) }
    }
}
