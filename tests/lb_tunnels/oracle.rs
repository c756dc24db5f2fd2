//! What the rules say of each packet, from what has passed the balancer before: which backend has to get it, or that
//! they leave it open.
//!
//! A packet of a tunnel has to reach the tunnel's backend. These are free to go elsewhere, but not to be dropped:
//!
//!   - packets of a tunnel whose backend has been down since the tunnel began;
//!   - a fragment that overtakes its first one, or whose first one is lost;
//!   - ESP in UDP from an endpoint that no IKE packet with proven SPIs and no answer has named yet, with an SPI that was
//!     not noted at its address;
//!   - ESP in UDP from an endpoint that another tunnel of the same client has, at another backend: a client that follows
//!     up its tunnel gets a new backend when the old one is drained;
//!   - plain ESP with an SPI that is new, where the newest tunnel of its address is another one;
//!   - IKE of an SA that was never heard of (a rekeyed one), from an endpoint that is new or another tunnel's.
//!
//! Where SPIs have labels, only the first two of these are left.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use lb::lb::backend::Wanted;

use crate::world::{ADDRESSES, BACKENDS, Endpoint, Packet, Part, What, World, number_of};

/// What has to become of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// It reaches this backend.
    Backend(usize),
    /// It reaches a backend that takes new clients.
    Start,
    /// It is not dropped.
    Somewhere,
    Anything,
}

#[derive(Clone, Debug)]
pub struct Oracle {
    pub wanted: [Wanted; BACKENDS],
    /// Whether what belongs to a backend that is down is dropped.
    holds: bool,
    /// Whether the SPIs that backends choose say whose they are.
    labels: bool,
    /// On which interface each address is.
    pub route: [u8; ADDRESSES],
    /// Whose tunnel ESP from an endpoint belongs to; `None` where that has become uncertain.
    bound: HashMap<Endpoint, Option<usize>>,
    /// The newest tunnel of an address.
    newest: HashMap<IpAddr, Option<usize>>,
    /// SAs that have been heard of, by initiator SPI.
    sas: HashSet<u64>,
    /// What a backend has answered to an initiator SPI.
    answered: HashMap<u64, u64>,
    /// Where an SA has proved to be.
    places: HashMap<u64, Endpoint>,
    start_at: HashMap<usize, Endpoint>,
    pub proven: HashSet<usize>,
    /// Tunnels whose backends have answered at a place that they have proved to be at.
    confirmed: HashSet<usize>,
    /// SAs that have not moved since they were proved where they began.
    at_home: HashSet<u64>,
    /// The SA that an endpoint is bound to.
    holders: HashMap<Endpoint, u64>,
    /// The clients that have been at an endpoint.
    visitors: HashMap<Endpoint, HashSet<usize>>,
    /// SAs that a newer one of the same client has followed up: they bind nothing that anyone has.
    replaced: HashSet<u64>,
    /// SPIs of plain ESP that have gone to their tunnel's backend, and those that have not.
    spis: HashMap<(IpAddr, u32), bool>,
    fragments: HashMap<u64, usize>,
    /// Where a tunnel was last seen, and the endpoint that it may share with others of its client.
    seen: HashMap<usize, (IpAddr, u8)>,
    seen_at: HashMap<Endpoint, u8>,
    /// Where anything of an address was last seen, as all of that may be routed one way.
    seen_address: HashMap<IpAddr, u8>,
}

impl Oracle {
    pub fn new(holds: bool, labels: bool) -> Self {
        Self {
            wanted: [Wanted::Active; BACKENDS],
            holds,
            labels,
            route: [0; ADDRESSES],
            bound: HashMap::new(),
            newest: HashMap::new(),
            sas: HashSet::new(),
            answered: HashMap::new(),
            places: HashMap::new(),
            start_at: HashMap::new(),
            proven: HashSet::new(),
            confirmed: HashSet::new(),
            at_home: HashSet::new(),
            holders: HashMap::new(),
            visitors: HashMap::new(),
            replaced: HashSet::new(),
            spis: HashMap::new(),
            fragments: HashMap::new(),
            seen: HashMap::new(),
            seen_at: HashMap::new(),
            seen_address: HashMap::new(),
        }
    }

    /// The interface that a packet from an address comes in on.
    pub fn ingress(&self, client: IpAddr) -> u8 {
        self.route[number_of(client)]
    }

    fn some_up(&self) -> bool {
        self.wanted.iter().any(|&wanted| wanted != Wanted::Down)
    }

    /// The backend of the tunnel that an endpoint or address is known to be of.
    fn home_of(world: &World, known: Option<&Option<usize>>) -> Option<usize> {
        let tunnel = &world.tunnels[known.copied().flatten()?];
        tunnel.home.filter(|_| !tunnel.lost)
    }

    /// With labels more SAs may have spoken there than are known here.
    fn bound_home(&self, world: &World, client: Endpoint) -> Option<usize> {
        Self::home_of(world, self.bound.get(&client)).filter(|_| !self.labels)
    }

    /// What has to become of a packet from a client. `noted` says which backend the table has for an SPI at an address.
    pub fn due(&self, world: &World, packet: &Packet, noted: impl Fn(IpAddr, u32) -> Option<usize>) -> Due {
        if !self.some_up() {
            return Due::Anything;
        }
        // Something else may lead to a backend that is waited for.
        let somewhere =
            if self.holds && self.wanted.contains(&Wanted::Down) { Due::Anything } else { Due::Somewhere };
        let certain = |home: Option<usize>| home.map_or(somewhere, Due::Backend);
        let bound = self.bound_home(world, packet.client);
        match packet.what {
            What::Ping => return somewhere,
            What::IcmpError => return certain(bound),
            What::Stray => return Due::Anything,
            What::Keepalive => return bound.map_or(Due::Anything, Due::Backend),
            _ => {}
        }
        let number = packet.tunnel.expect("all others are of tunnels");
        let tunnel = &world.tunnels[number];
        if tunnel.lost {
            return somewhere;
        }
        let Some(home) = tunnel.home else {
            let follows = bound.filter(|&home| self.wanted[home] == Wanted::Active);
            return follows.map_or(Due::Start, Due::Backend);
        };
        let own = Some(home);
        match packet.what {
            _ if packet.part == Part::IpLater => certain(self.fragments.get(&packet.message).copied()),
            What::Init { .. } => Due::Backend(home),
            // No table is needed.
            _ if self.labels => Due::Backend(home),
            What::Esp if packet.udp => match self.bound.get(&packet.client) {
                Some(_) => certain(bound.filter(|_| bound == own)),
                None => certain(noted(packet.client.0, packet.esp_spi).filter(|&noted| noted == home)),
            },
            What::Esp => match self.spis.get(&(packet.client.0, packet.esp_spi)) {
                Some(known) => certain(own.filter(|_| *known)),
                None => {
                    let newest = Self::home_of(world, self.newest.get(&packet.client.0));
                    certain(own.filter(|_| newest == own))
                }
            },
            _ if self.sas.contains(&packet.spis.0) => Due::Backend(home),
            _ => certain(own.filter(|_| bound == own)),
        }
    }

    /// Whether `tunnel` is a newer one of the client that `of` is a tunnel of.
    fn follows_up(world: &World, tunnel: usize, of: usize) -> bool {
        tunnel > of && world.tunnels[tunnel].host == world.tunnels[of].host
    }

    /// Whether an endpoint or address has a tunnel that an SA of `tunnel` does not take it from: one that its client has
    /// followed it up with.
    fn keeps(&self, world: &World, known: Option<usize>, tunnel: usize, spi: u64) -> bool {
        self.replaced.contains(&spi)
            && known.is_some_and(|known| {
                Self::follows_up(world, known, tunnel)
                    && self.confirmed.contains(&known)
                    && !world.tunnels[known].lost
            })
    }

    /// Whether a tunnel is there, and its client has no newer one at another backend: which of the two has an endpoint depends
    /// on where they have met, and on what has been learned from packets that prove nothing.
    fn has_no_rival(&self, world: &World, tunnel: usize) -> bool {
        let rival =
            |&other: &usize| Self::follows_up(world, other, tunnel) && !Self::same_home(world, other, tunnel);
        !world.tunnels[tunnel].lost && !self.proven.iter().any(rival)
    }

    /// An IKE packet with SPIs that are proven has come from an endpoint. What another tunnel has there becomes its own when
    /// its backend has answered there, as its SPIs may have been seen by a stranger.
    fn claim(&mut self, world: &World, tunnel: usize, spi: u64, client: Endpoint) {
        let sure = Some(tunnel).filter(|&tunnel| self.has_no_rival(world, tunnel));
        self.visitors.entry(client).or_default().insert(world.tunnels[tunnel].host);
        let claimed = match self.bound.get(&client).copied() {
            None => sure,
            Some(known) if self.keeps(world, known, tunnel, spi) => return,
            Some(Some(known)) if known == tunnel || Self::same_home(world, known, tunnel) => sure,
            Some(_) => None,
        };
        self.holders.entry(client).or_insert(spi);
        self.bound.insert(client, claimed);
    }

    /// The backend has answered where its client has proved to be.
    fn confirm(&mut self, world: &World, tunnel: usize, spi: u64, client: Endpoint) {
        self.confirmed.insert(tunnel);
        let known = self.bound.get(&client).copied().flatten();
        if self.keeps(world, known, tunnel, spi) || self.replaced.contains(&spi) {
            return;
        }
        // What is sent again from where another client is now says nothing of that.
        let sure = self.has_no_rival(world, tunnel) && world.is_at(tunnel, client);
        self.bound.insert(client, sure.then_some(tunnel));
        let before = self.holders.insert(client, spi).filter(|&before| before != spi);
        if let Some(before) = before.filter(|_| self.at_home.contains(&spi)) {
            self.replaced.insert(before);
        }
    }

    fn same_home(world: &World, one: usize, other: usize) -> bool {
        let (one, other) = (&world.tunnels[one], &world.tunnels[other]);
        one.home == other.home && !one.lost && !other.lost
    }

    /// A tunnel has come to an address, or has begun there.
    fn arrive(&mut self, world: &World, tunnel: usize, spi: u64, address: IpAddr, begins: bool) {
        let sure = Some(tunnel).filter(|&tunnel| !world.tunnels[tunnel].lost);
        let newest = match self.newest.get(&address).copied() {
            None => sure,
            Some(known) if self.keeps(world, known, tunnel, spi) => None,
            Some(_) if begins => sure,
            Some(Some(known)) if Self::same_home(world, known, tunnel) => sure,
            Some(_) => None,
        };
        self.newest.insert(address, newest);
    }

    /// A packet from a client went to a backend.
    pub fn passed_up(&mut self, world: &World, packet: &Packet, backend: usize, due: Due) {
        let ingress = self.ingress(packet.client.0);
        if packet.what != What::IcmpError {
            self.seen_address.insert(packet.client.0, ingress);
        }
        let Some(number) = packet.tunnel else { return };
        // What goes by its label alone is noted nowhere.
        let known = !self.labels || self.sas.contains(&packet.spis.0);
        let certain = due == Due::Backend(backend) && known;
        match packet.what {
            _ if packet.what == What::IcmpError || packet.part == Part::IpLater => return,
            // It has found its endpoint, whoever's that is.
            What::Keepalive => {
                self.seen_at.insert(packet.client, ingress);
                if certain {
                    self.seen.insert(number, (packet.client.0, ingress));
                }
            }
            _ if !certain && due != Due::Start => {}
            _ => {
                self.seen.insert(number, (packet.client.0, ingress));
                self.seen_at.insert(packet.client, ingress);
            }
        }
        if packet.part == Part::IpFirst {
            self.fragments.insert(packet.message, backend);
        }
        let (initiator_spi, responder_spi) = packet.spis;
        match packet.what {
            What::Keepalive => {}
            What::Esp if packet.udp => {
                if certain && !self.bound.contains_key(&packet.client) {
                    self.bound.insert(packet.client, Some(number));
                }
            }
            What::Esp if self.labels => {}
            What::Esp => {
                self.spis.entry((packet.client.0, packet.esp_spi)).or_insert(certain);
            }
            What::Init { .. } => {
                self.sas.insert(initiator_spi);
                self.start_at.entry(number).or_insert(packet.client);
            }
            _ if self.answered.get(&initiator_spi) == Some(&responder_spi) => {
                let before = self.places.insert(initiator_spi, packet.client);
                let first = self.proven.insert(number);
                let start = self.start_at.get(&number).copied();
                let at_home = start.is_some_and(|start| start.0 == packet.client.0);
                if before.is_some_and(|before| before != packet.client) {
                    self.at_home.remove(&initiator_spi);
                } else if first && at_home {
                    self.at_home.insert(initiator_spi);
                }
                self.claim(world, number, initiator_spi, packet.client);
                if first && at_home {
                    self.claim(world, number, initiator_spi, start.expect("it is at home there"));
                }
                if before.is_none_or(|before| before.0 != packet.client.0) {
                    self.arrive(world, number, initiator_spi, packet.client.0, first && at_home);
                }
            }
            _ => {
                if certain {
                    self.sas.insert(initiator_spi);
                }
            }
        }
    }

    /// A packet of a backend went by. Returns the interfaces that it may leave on, where its client has been seen.
    pub fn passed_down(&mut self, world: &World, packet: &Packet, backend: usize) -> Vec<u8> {
        let Some(number) = packet.tunnel else { return Vec::new() };
        let tunnel = &world.tunnels[number];
        let seen = self.seen.get(&number).filter(|(address, _)| *address == packet.client.0 && !tunnel.lost);
        // It counts where an SA is that has proved to be there. What goes by label is not noted, and which of several SAs
        // of a client has heard last is not asked for.
        let heard = match packet.what {
            What::Esp if packet.udp => self.bound.contains_key(&packet.client),
            What::Esp => self.newest.contains_key(&packet.client.0),
            What::CookieDemand | What::InitResponse => self.start_at.get(&number) == Some(&packet.client),
            _ => self.places.get(&packet.spis.0) == Some(&packet.client),
        };
        let seen = seen.filter(|_| heard && world.is_alone(number) && !self.labels);
        let near = [self.seen_at.get(&packet.client), self.seen_address.get(&packet.client.0)];
        let at = seen.into_iter().flat_map(|_| near.into_iter().flatten().copied());
        let seen = seen.map(|&(_, ingress)| ingress).into_iter().chain(at).collect();
        match packet.what {
            What::CookieDemand => {}
            What::Esp => {
                let teaches = packet.udp && self.wanted[backend] != Wanted::Down;
                if teaches && !self.bound.contains_key(&packet.client) {
                    self.bound.insert(packet.client, Some(number).filter(|_| !tunnel.lost));
                }
            }
            _ => {
                let known = self.sas.contains(&packet.spis.0);
                if self.places.get(&packet.spis.0) == Some(&packet.client)
                    && tunnel.home == Some(backend)
                    && packet.what != What::InitResponse
                {
                    self.confirm(world, number, packet.spis.0, packet.client);
                }
                if known || !self.labels && self.bound_home(world, packet.client) == Some(backend) {
                    self.sas.insert(packet.spis.0);
                    if tunnel.home == Some(backend) {
                        self.answered.insert(packet.spis.0, packet.spis.1);
                    }
                }
            }
        }
        seen
    }

    /// How many tunnels are certain to have an established session: the newest of each client that shares no endpoint with
    /// another client, before or after it.
    pub fn sessions_min(&self, world: &World) -> usize {
        let newest = |tunnel: &&usize| {
            let host = world.tunnels[**tunnel].host;
            let alone = |hosts: &HashSet<usize>| !hosts.contains(&host) || hosts.len() == 1;
            !world.tunnels[**tunnel].lost
                && !self.proven.iter().any(|&other| Self::follows_up(world, other, **tunnel))
                && self.visitors.values().all(alone)
        };
        self.proven.iter().filter(newest).count()
    }

    /// How many sessions there can be: as many as IKE SAs have been proved. With labels more may have been learned.
    pub fn sessions_max(&self) -> usize {
        if self.labels { usize::MAX } else { self.places.len() }
    }

    /// Endpoints that are certain to be a tunnel's, with its backend.
    pub fn certain_endpoints(&self, world: &World) -> Vec<(Endpoint, usize)> {
        let certain = self.bound.keys().filter_map(|&client| Some((client, self.bound_home(world, client)?)));
        certain.collect()
    }
}
