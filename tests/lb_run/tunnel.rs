//! Affinity `tunnel`: many clients behind one address, each an IKE SA with all that belongs to it.

use std::net::IpAddr;

use lb::lb::backend::Wanted;
use lb::lb::datapath::{Affinity, Policy, ReturnPath, Settings};
use lb::lb::session::Key;
use lb::lb::session::State::{Embryonic, Established, Learned};
use lb::lb::skeleton::types::lb_verdict;

use crate::common::packet::{
    Ike, ah, backend_mac, client, echo_reply, echo_request, esp, esp_back, esp_in_udp, fragments, icmp_error,
    ike, ike_back, ike_nat_back, sent_by, with_extensions, with_options,
};
use crate::families;
use crate::fixture::{Balancer, Row, Side, settings};
use crate::peer::Peer;

const SESSION: lb_verdict = lb_verdict::LB_SESSION;
const NEW: lb_verdict = lb_verdict::LB_NEW;
const STATELESS: lb_verdict = lb_verdict::LB_STATELESS;
const KEEPALIVE_DROPPED: lb_verdict = lb_verdict::LB_KEEPALIVE_DROPPED;

const SPI: u32 = 0xc1c2_c3c4;

pub fn by_tunnel() -> Settings {
    Settings { affinity: Affinity::Tunnel, ..settings() }
}

/// Makes it the turn of a backend that nobody's address among these hashes to, so that a test can tell policy and hash apart.
fn turn_away(balancer: &Balancer, addresses: &[IpAddr]) {
    let free = (0..4).find(|index| addresses.iter().all(|&address| balancer.hashed(address) != *index));
    balancer.turn_to(free.expect("more backends than addresses"));
}

/// Runs `work` on a balancer of four backends without any entry, for both families, with a client's address and another one.
#[track_caller]
fn with_tunnels(work: impl Fn(&Balancer, IpAddr, IpAddr)) {
    let balancer = Balancer::new(&by_tunnel(), 4);
    families(|address, other| {
        balancer.forget();
        turn_away(&balancer, &[address, other]);
        work(&balancer, address, other);
    });
}

fn sorted(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort();
    rows
}

#[test]
fn root_a_start_makes_an_sa_and_what_follows_stays_with_it() {
    with_tunnels(|balancer, address, _| {
        let peer = Peer::new(1, address);
        let (verdict, to) = balancer.outcome(&peer.start());
        let backend = to.expect("a backend");
        assert_eq!(verdict, NEW);
        let rows = sorted(vec![(peer.sa(), Embryonic, backend), (Key::Address(address), Embryonic, backend)]);
        assert_eq!(balancer.rows(), rows);

        balancer.expect("a start sent again", peer.start(), (SESSION, backend));
        let demand = ike_back(address, Ike { next_payload: 41, ..Ike::init_response(peer.initiator_spi, 0) });
        balancer.answer(backend, demand);
        let with_cookie = Ike { next_payload: 41, extra: 140, ..Ike::init(peer.initiator_spi) };
        balancer.expect("a start with a cookie", peer.ike_500(with_cookie), (SESSION, backend));
        balancer.expect("a start on port 4500", peer.ike(Ike::init(peer.initiator_spi)), (SESSION, backend));
        let elsewhere = Peer { port: 9, ..peer };
        balancer.expect("a start from another port", elsewhere.start(), (SESSION, backend));
        assert_eq!(balancer.rows(), rows, "none of that proves or binds anything");

        let entry = balancer.entry(peer.sa()).expect("an entry");
        assert_eq!((entry.client, entry.port, entry.ingress), (address, peer.port, 0));
        assert_eq!((entry.responder_spi, entry.packets), (0, 5));
    });
}

#[test]
fn root_ikev1_is_an_sa_too() {
    with_tunnels(|balancer, address, _| {
        let peer = Peer::new(1, address);
        let v1 = |responder_spi| Ike {
            version: 0x10,
            exchange: 2,
            flags: 0,
            responder_spi,
            ..Ike::init(peer.initiator_spi)
        };
        let (verdict, to) = balancer.outcome(&peer.ike_500(v1(0)));
        assert_eq!(verdict, NEW);
        let backend = to.expect("a backend");
        balancer.expect("again", peer.ike_500(v1(0)), (SESSION, backend));
        balancer.answer(backend, ike_back(address, v1(peer.responder_spi)));
        balancer.expect("the next message", peer.ike(v1(peer.responder_spi)), (SESSION, backend));
        assert_eq!(balancer.entry(peer.sa()).unwrap().state, Established);
        assert_eq!(balancer.entry(peer.endpoint()).unwrap().backend, backend);
    });
}

#[test]
fn root_clients_behind_one_address_are_spread_and_each_stays_whole() {
    with_tunnels(|balancer, address, _| {
        let peers: Vec<Peer> = (0..40).map(|number| Peer::new(number, address)).collect();
        let backends: Vec<u32> = peers.iter().map(|peer| balancer.connect(peer)).collect();
        for index in 0..4 {
            assert_eq!(backends.iter().filter(|&&backend| backend == index).count(), 10, "{backends:?}");
        }
        for _ in 0..2 {
            for (peer, &backend) in peers.iter().zip(&backends) {
                let spi = SPI + u32::from(peer.port);
                balancer.expect("ESP", peer.data(spi), (SESSION, backend));
                balancer.expect("a keepalive", peer.keepalive(), (SESSION, backend));
                balancer.expect("IKE", peer.auth(), (SESSION, backend));
                let known = balancer.entry(Key::Esp(address, spi)).expect("its SPI was noted");
                assert_eq!((known.state, known.backend), (Learned, backend));
            }
            balancer.pass();
        }
        assert_eq!(balancer.sessions.established(), 40);
        assert_eq!(balancer.sessions.iter().count(), 40);
    });
}

#[test]
fn root_a_proof_binds_where_it_came_from_and_where_the_start_did() {
    with_tunnels(|balancer, address, _| {
        let peer = Peer::new(1, address);
        let backend = balancer.greet(&peer);
        balancer.expect("ESP before it", peer.data(SPI), (STATELESS, balancer.hashed(address)));
        let embryonic =
            sorted(vec![(peer.sa(), Embryonic, backend), (Key::Address(address), Embryonic, backend)]);
        for (description, message) in [
            ("a responder SPI that its backend did not choose", Ike::auth(peer.initiator_spi, 9)),
            ("no responder SPI", Ike { exchange: 35, ..Ike::init(peer.initiator_spi) }),
        ] {
            balancer.outcome(&peer.ike(message));
            assert_eq!(balancer.rows(), embryonic, "{description} proves nothing");
        }
        assert_eq!(balancer.sessions.established(), 0);

        balancer.expect("the proof", peer.auth(), (SESSION, backend));
        let proven = sorted(vec![
            (peer.sa(), Established, backend),
            (peer.first_endpoint(), Established, backend),
            (peer.endpoint(), Established, backend),
            (Key::Address(address), Established, backend),
        ]);
        assert_eq!(balancer.rows(), proven);
        assert_eq!(balancer.sessions.established(), 1);
        let entry = balancer.entry(peer.sa()).unwrap();
        assert_eq!((entry.client, entry.port), (address, peer.nat_port), "where it was last seen");
        assert_eq!(entry.responder_spi, peer.responder_spi);
        for key in [peer.first_endpoint(), peer.endpoint(), Key::Address(address)] {
            assert_eq!(balancer.entry(key).unwrap().initiator_spi, peer.initiator_spi, "{key:?}");
        }
        balancer.expect("ESP after it", peer.data(SPI), (SESSION, backend));
        balancer.expect(
            "more IKE on port 500",
            peer.ike_500(Ike::auth(peer.initiator_spi, peer.responder_spi)),
            (SESSION, backend),
        );
    });
}

#[test]
fn root_an_answer_of_another_backend_or_a_complaint_is_no_proof() {
    with_tunnels(|balancer, address, _| {
        let peer = Peer::new(1, address);
        let backend = balancer.outcome(&peer.start()).1.expect("a backend");
        balancer.answer((backend + 1) % 4, peer.answer());
        let complaint =
            Ike { next_payload: 41, ..Ike::init_response(peer.initiator_spi, peer.responder_spi) };
        balancer.answer(backend, ike_back(address, complaint));
        assert_eq!(balancer.entry(peer.sa()).unwrap().responder_spi, 0);
        balancer.outcome(&peer.auth());
        assert_eq!(balancer.entry(peer.sa()).unwrap().state, Embryonic);
        balancer.answer(backend, peer.answer());
        balancer.expect("the proof", peer.auth(), (SESSION, backend));
        assert_eq!(balancer.entry(peer.sa()).unwrap().state, Established);
        // What was recorded stays, whatever is said later.
        balancer.answer(backend, Peer { responder_spi: 5, ..peer }.answer());
        assert_eq!(balancer.entry(peer.sa()).unwrap().responder_spi, peer.responder_spi);
    });
}

#[test]
fn root_where_answers_pass_elsewhere_a_responder_spi_is_the_proof_of_an_sa() {
    let balancer = Balancer::new(&Settings { return_path: ReturnPath::Direct, ..by_tunnel() }, 4);
    families(|address, _| {
        balancer.forget();
        let peer = Peer::new(1, address);
        let backend = balancer.outcome(&peer.start()).1.expect("a backend");
        balancer.expect("a proof", peer.auth(), (SESSION, backend));
        assert_eq!(balancer.entry(peer.sa()).unwrap().state, Established);
        balancer.expect("ESP", peer.data(SPI), (SESSION, backend));
    });
}

/// A client that speaks to whom its first start went by hash is not led astray by a second one that got a session.
#[test]
fn root_a_responder_that_is_not_the_sas_own_is_reached_by_hash() {
    with_tunnels(|balancer, address, _| {
        let peer = Peer::new(1, address);
        let backend = balancer.greet(&peer);
        let hashed = balancer.hashed(address);
        assert_ne!(backend, hashed);
        let theirs = peer.ike(Ike::auth(peer.initiator_spi, 77));
        balancer.expect("another responder's SPI", theirs.clone(), (STATELESS, hashed));
        assert_eq!(balancer.entry(peer.sa()).unwrap().state, Embryonic);
        balancer.expect("its own", peer.auth(), (SESSION, backend));
        // Once one has won, it has won.
        balancer.expect("another responder's SPI after the proof", theirs, (SESSION, backend));
        assert_eq!(balancer.entry(peer.sa()).unwrap().responder_spi, peer.responder_spi);
    });
}

/// The same where the SA's own backend demands a cookie, or has not answered: whatever the client has for a responder SPI
/// is another's.
#[test]
fn root_a_responder_is_reached_by_hash_before_the_sas_own_has_answered() {
    with_tunnels(|balancer, address, _| {
        let peer = Peer::new(1, address);
        let hashed = balancer.hashed(address);
        let backend = balancer.outcome(&peer.start()).1.expect("a backend");
        assert_ne!(backend, hashed);
        balancer.answer(hashed, peer.answer());
        balancer.expect("the SPI that the hash's backend chose", peer.auth(), (STATELESS, hashed));
    });
}

#[test]
fn root_an_endpoint_moves_with_the_recorded_spis_and_no_others() {
    with_tunnels(|balancer, address, elsewhere| {
        let peer = Peer::new(1, address);
        let backend = balancer.connect(&peer);
        let hashed = balancer.hashed(elsewhere);
        for (description, moved) in [
            ("another port", peer.at(address, 31_000)),
            ("another address", peer.at(elsewhere, 31_001)),
            ("another address with the same port", peer.at(elsewhere, peer.nat_port)),
        ] {
            for message in
                [Ike::auth(peer.initiator_spi, 9), Ike { exchange: 37, ..Ike::init(peer.initiator_spi) }]
            {
                balancer.expect(description, moved.ike(message), (SESSION, backend));
                assert_eq!(balancer.entry(moved.endpoint()), None, "{description} without the pair");
            }
            balancer.expect_esp_unknown(&moved, &peer);
            balancer.expect(description, moved.auth(), (SESSION, backend));
            let bound = balancer.entry(moved.endpoint()).expect("it is bound");
            assert_eq!(
                (bound.state, bound.backend, bound.initiator_spi),
                (Established, backend, peer.initiator_spi)
            );
            let sa = balancer.entry(peer.sa()).unwrap();
            assert_eq!((sa.client, sa.port), (moved.address, moved.nat_port), "{description}");
            balancer.expect(description, moved.data(SPI + 9), (SESSION, backend));
            balancer.expect("its keepalive", moved.keepalive(), (SESSION, backend));
            balancer.pass();
        }
        let newest = balancer.entry(Key::Address(elsewhere)).expect("the new address has its newest SA");
        assert_eq!((newest.state, newest.backend), (Established, backend));
        assert_eq!(balancer.sessions.established(), 1, "all of it is one tunnel");
        assert_ne!(hashed, backend);
    });
}

impl Balancer {
    /// ESP in UDP from where a peer has not been bound goes by hash, and does not bind.
    #[track_caller]
    fn expect_esp_unknown(&self, moved: &Peer, peer: &Peer) {
        if self.entry(moved.endpoint()).is_none() {
            self.expect("ESP first", moved.data(SPI ^ 1), (STATELESS, self.hashed(moved.address)));
            assert_eq!(self.entry(moved.endpoint()), None, "unknown ESP binds nothing of {peer:?}");
        }
    }
}

/// What one client had is another's after that: its NAT has given the port to someone else. As anyone may put that source
/// address before a message, it is the backend's answer that says so.
#[test]
fn root_ike_takes_over_an_endpoint_that_was_anothers() {
    with_tunnels(|balancer, address, _| {
        let (one, other) = (Peer::new(1, address), Peer::new(2, address));
        let (first, second) = (balancer.connect(&one), balancer.connect(&other));
        assert_ne!(first, second);
        let moved = other.at(address, one.nat_port);
        balancer.expect("ESP alone", moved.data(SPI), (SESSION, first));
        balancer.expect("IKE", moved.auth(), (SESSION, second));
        balancer.expect("ESP after IKE", moved.data(SPI), (SESSION, first));
        balancer.answer(second, Peer { responder_spi: 5, ..moved }.answer());
        balancer.answer(first, moved.ike_back());
        let in_clear = Ike { flags: 0x20, ..Ike::auth(moved.initiator_spi, moved.responder_spi) };
        balancer.answer(second, ike_nat_back(address, moved.nat_port, in_clear));
        balancer.answer(second, other.ike_back());
        balancer.expect("ESP before its answer", moved.data(SPI), (SESSION, first));
        balancer.answer(second, moved.ike_back());
        balancer.expect("ESP after its answer", moved.data(SPI), (SESSION, second));
        balancer.pass();
        balancer.expect("ESP later", moved.data(SPI), (SESSION, second));
        // The one that had it is heard again from its new port, which is free.
        let back = one.at(address, 40_000);
        balancer.expect("IKE of the first", back.auth(), (SESSION, first));
        balancer.expect("its ESP", back.data(SPI), (SESSION, first));
        balancer.expect("ESP of the second", moved.data(SPI), (SESSION, second));
        for peer in [&one, &other] {
            assert_eq!(balancer.entry(peer.sa()).unwrap().state, Established);
        }
    });
}

#[test]
fn root_esp_moves_no_binding() {
    with_tunnels(|balancer, address, elsewhere| {
        let (one, other) = (Peer::new(1, address), Peer::new(2, address));
        let (first, second) = (balancer.connect(&one), balancer.connect(&other));
        balancer.expect("ESP", one.data(SPI), (SESSION, first));
        balancer.expect("ESP", other.data(SPI + 1), (SESSION, second));
        balancer.pass();
        let before = balancer.rows();
        // Endpoints are bound, SPIs are known, and each of these has the one of one tunnel and the other of another.
        for _ in 0..2 {
            balancer.expect("another's SPI", one.data(SPI + 1), (SESSION, first));
            balancer.expect("another's SPI", other.data(SPI), (SESSION, second));
            balancer.pass();
        }
        assert_eq!(balancer.rows(), before);
        // An SPI is known with its address alone.
        let stranger = one.at(elsewhere, one.nat_port);
        balancer.expect(
            "the SPI from elsewhere",
            stranger.data(SPI),
            (STATELESS, balancer.hashed(elsewhere)),
        );
        assert_eq!(balancer.rows(), before);
        // Plain ESP has an entry of its own, which none of an endpoint moves.
        balancer.expect("plain ESP", one.plain(SPI), (SESSION, first));
        balancer.expect("plain ESP", one.plain(SPI + 1), (SESSION, second));
        assert_eq!(balancer.rows(), before);
    });
}

#[test]
fn root_esp_from_another_port_adds_that_if_its_spi_is_known() {
    with_tunnels(|balancer, address, _| {
        let (one, other) = (Peer::new(1, address), Peer::new(2, address));
        let (first, second) = (balancer.connect(&one), balancer.connect(&other));
        balancer.expect("ESP", one.data(SPI), (SESSION, first));
        balancer.pass();
        let moved = one.at(address, 33_333);
        balancer.expect(
            "an SPI that nobody has noted",
            moved.data(SPI + 1),
            (STATELESS, balancer.hashed(address)),
        );
        assert_eq!(balancer.entry(moved.endpoint()), None);
        balancer.expect("the tunnel's SPI", moved.data(SPI), (SESSION, first));
        let added = balancer.entry(moved.endpoint()).expect("an endpoint was added");
        assert_eq!((added.state, added.backend, added.initiator_spi), (Learned, first, one.initiator_spi));
        assert!(balancer.entry(one.endpoint()).is_some(), "the old one stays");
        balancer.expect("any SPI from there now", moved.data(SPI + 2), (SESSION, first));
        balancer.expect("a keepalive from there", moved.keepalive(), (SESSION, first));
        // IKE outweighs what ESP has told.
        balancer.pass();
        let taken = other.at(address, 33_333);
        balancer.expect("IKE of another tunnel", taken.auth(), (SESSION, second));
        balancer.answer(second, taken.ike_back());
        balancer.expect("its ESP", taken.data(SPI), (SESSION, second));
        assert_eq!(balancer.entry(taken.endpoint()).unwrap().state, Established);
    });
}

#[test]
fn root_spis_below_256_are_reserved_and_not_noted() {
    with_tunnels(|balancer, address, _| {
        let peer = Peer::new(1, address);
        let backend = balancer.connect(&peer);
        for (spi, noted) in [(255, false), (256, true), (u32::MAX, true)] {
            balancer.expect("ESP", peer.data(spi), (SESSION, backend));
            assert_eq!(balancer.entry(Key::Esp(address, spi)).is_some(), noted, "SPI {spi}");
            balancer.pass();
        }
    });
}

#[test]
fn root_plain_esp_goes_by_its_spi_or_by_the_newest_sa_of_its_address() {
    for protocol in [esp, ah] {
        with_tunnels(|balancer, address, other| {
            let peer = Peer::bare(1, address);
            let hashed = balancer.hashed(address);
            balancer.expect("before any IKE", protocol(address, SPI), (STATELESS, hashed));
            let first = balancer.greet(&peer);
            assert_ne!(first, hashed);
            balancer.expect("before the proof", protocol(address, SPI), (STATELESS, hashed));
            assert_eq!(balancer.entry(Key::Esp(address, SPI)), None);
            balancer.outcome(&peer.auth());
            balancer.expect("after the proof", protocol(address, SPI), (SESSION, first));
            let noted = balancer.entry(Key::Esp(address, SPI)).expect("its SPI is noted");
            assert_eq!((noted.state, noted.backend), (Learned, first));
            assert_eq!(noted.initiator_spi, peer.initiator_spi);

            // Another client of that address, elsewhere: it is the newest one from there.
            let newer = Peer { port: 501, nat_port: 4501, ..Peer::bare(2, address) };
            let second = balancer.connect(&newer);
            assert_ne!(first, second);
            balancer.expect("a known SPI", protocol(address, SPI), (SESSION, first));
            balancer.expect("a new SPI", protocol(address, SPI + 1), (SESSION, second));
            balancer.expect("a known SPI", protocol(address, SPI), (SESSION, first));
            balancer.expect("another's", protocol(other, SPI), (STATELESS, balancer.hashed(other)));
        });
    }
}

#[test]
fn root_a_rekey_from_either_side_is_learned() {
    with_tunnels(|balancer, address, _| {
        for (number, began_by_client) in [(1, true), (2, false)] {
            let peer = Peer::new(number, address);
            let backend = balancer.connect(&peer);
            // In a rekeyed SA the initiator is who began the rekey, and its SPI stands first.
            let rekeyed = peer.with_sa(1);
            let (of_client, of_backend) = if began_by_client { (0x08, 0) } else { (0, 0x08) };
            let message = |flags| Ike {
                next_payload: 46,
                exchange: 37,
                flags,
                ..Ike::auth(rekeyed.initiator_spi, rekeyed.responder_spi)
            };
            let from_backend = ike_nat_back(address, peer.nat_port, message(of_backend));
            let row = |key| balancer.entry(key).map(|entry| (entry.state, entry.backend));

            balancer.expect("its first message", peer.ike(message(of_client)), (SESSION, backend));
            assert_eq!(row(rekeyed.sa()), Some((Learned, backend)), "from the client");
            assert_eq!(row(peer.sa()), Some((Established, backend)), "the old SA goes on meanwhile");
            balancer.answer(backend, from_backend.clone());
            assert_eq!(balancer.entry(rekeyed.sa()).unwrap().responder_spi, rekeyed.responder_spi);
            balancer.pass();
            balancer.expect("its second message", peer.ike(message(of_client)), (SESSION, backend));
            assert_eq!(row(rekeyed.sa()), Some((Established, backend)));
            balancer.answer(backend, from_backend.clone());
            assert_eq!(row(peer.sa()), Some((Learned, backend)), "one endpoint has one session");
            assert_eq!(balancer.sessions.established(), u64::from(number));
            let moved = rekeyed.at(address, peer.nat_port + 1000);
            balancer.expect(
                "the rekeyed SA from elsewhere",
                moved.ike(message(of_client)),
                (SESSION, backend),
            );
            assert_eq!(row(moved.endpoint()), Some((Established, backend)));

            // The backend may be the first to speak.
            let again = peer.with_sa(2);
            let message = |flags| Ike {
                next_payload: 46,
                exchange: 37,
                flags,
                ..Ike::auth(again.initiator_spi, again.responder_spi)
            };
            balancer.answer(backend, ike_nat_back(address, peer.nat_port, message(of_backend)));
            let entry = balancer.entry(again.sa()).expect("learned from the backend");
            assert_eq!(
                (entry.state, entry.backend, entry.responder_spi),
                (Learned, backend, again.responder_spi)
            );
            balancer.expect("the answer", peer.ike(message(of_client)), (SESSION, backend));
            assert_eq!(row(again.sa()), Some((Established, backend)));
        }
    });
}

#[test]
fn root_a_pair_that_nobody_knows_is_learned_of_bound_endpoints_alone() {
    with_tunnels(|balancer, address, other| {
        let peer = Peer::new(1, address);
        balancer.connect(&peer);
        let hashed = balancer.hashed(address);
        let before = balancer.rows();
        let unknown = Peer { nat_port: 44_444, ..peer.with_sa(1) };
        balancer.expect("from an unknown port", unknown.auth(), (STATELESS, hashed));
        balancer.expect(
            "from an unknown address",
            unknown.at(other, peer.nat_port).auth(),
            (STATELESS, balancer.hashed(other)),
        );
        assert_eq!(balancer.rows(), before);
        // A backend that the endpoint is not bound to has no say.
        let backend = balancer.entry(peer.endpoint()).unwrap().backend;
        let rekeyed = peer.with_sa(1);
        balancer.answer((backend + 1) % 4, rekeyed.ike_back());
        assert_eq!(balancer.rows(), before);
        // Nor does a complaint name an SA.
        let complaint = Ike { next_payload: 41, ..Ike::init_response(rekeyed.initiator_spi, 9) };
        balancer.answer(backend, ike_nat_back(address, peer.nat_port, complaint));
        assert_eq!(balancer.rows(), before);
    });
}

#[test]
fn root_a_start_follows_what_its_endpoint_is_bound_to() {
    with_tunnels(|balancer, address, _| {
        let peer = Peer::new(1, address);
        let backend = balancer.connect(&peer);
        // Its turn, so that the policy would choose another.
        balancer.turn_to((backend + 1) % 4);
        for (number, from) in
            [(1, peer.with_sa(1).start()), (2, peer.ike(Ike::init(peer.with_sa(2).initiator_spi)))]
        {
            let renewed = peer.with_sa(number);
            balancer.expect("a start of reauthentication", from, (NEW, backend));
            let row = |key| balancer.entry(key).map(|entry| entry.state);
            assert_eq!(row(renewed.sa()), Some(Embryonic));
            assert_eq!(
                balancer.entry(Key::Address(address)).unwrap().state,
                Established,
                "no start unmakes a proof"
            );
            balancer.answer(backend, renewed.answer());
            balancer.expect("its proof", renewed.auth(), (SESSION, backend));
            assert_eq!(row(renewed.sa()), Some(Established));
            balancer.expect("IKE of the SA before", peer.auth(), (SESSION, backend));
            balancer.expect("ESP", peer.data(SPI), (SESSION, backend));
            balancer.pass();
        }
        // An endpoint that is not bound follows nothing.
        let other = Peer::new(2, address);
        balancer.turn_to((backend + 2) % 4);
        balancer.expect("a start of another client", other.start(), (NEW, (backend + 2) % 4));
    });
}

#[test]
fn root_keepalives_are_for_bound_endpoints() {
    with_tunnels(|balancer, address, _| {
        let peer = Peer::new(1, address);
        balancer.expect_dropped("of nobody", peer.keepalive(), KEEPALIVE_DROPPED);
        balancer.greet(&peer);
        balancer.expect_dropped("before the proof", peer.keepalive(), KEEPALIVE_DROPPED);
        balancer.outcome(&peer.auth());
        let backend = balancer.entry(peer.sa()).unwrap().backend;
        balancer.age_sessions(10);
        balancer.expect("of the tunnel", peer.keepalive(), (SESSION, backend));
        assert!(balancer.entry(peer.endpoint()).unwrap().idle.as_secs() < 5, "it keeps the endpoint");
        let other = peer.at(address, 50_000);
        balancer.expect_dropped("from another port of the address", other.keepalive(), KEEPALIVE_DROPPED);
        assert_eq!(balancer.entry(other.endpoint()), None);
    });
}

#[test]
fn root_pings_go_by_their_address() {
    with_tunnels(|balancer, address, _| {
        let hashed = balancer.hashed(address);
        balancer.expect("an answer to a ping", echo_reply(address), (STATELESS, hashed));
        let (verdict, to) = balancer.outcome(&echo_request(address));
        let pinged = to.expect("a backend");
        assert_eq!(verdict, NEW);
        assert_ne!(pinged, hashed);
        assert_eq!(balancer.rows(), [(Key::Address(address), Embryonic, pinged)]);
        balancer.expect("again", echo_request(address), (SESSION, pinged));
        balancer.expect("an answer to a ping", echo_reply(address), (SESSION, pinged));

        // The newest SA has the address from its proof on; its start alone has what nobody has proven.
        let one = Peer::new(1, address);
        let first = balancer.greet(&one);
        assert_ne!(first, pinged);
        balancer.expect("after a start", echo_request(address), (SESSION, first));
        balancer.outcome(&one.auth());
        balancer.expect("after its proof", echo_request(address), (SESSION, first));
        let other = Peer::new(2, address);
        let second = balancer.greet(&other);
        assert_ne!(first, second);
        balancer.expect("after another start", echo_request(address), (SESSION, first));
        balancer.outcome(&other.auth());
        balancer.expect("after its proof", echo_request(address), (SESSION, second));
        assert_eq!(balancer.sessions.established(), 2);
    });
}

#[test]
fn root_errors_go_to_whom_they_quote() {
    with_tunnels(|balancer, address, router| {
        let (one, other) = (Peer::new(1, address), Peer::new(2, address));
        let (first, second) = (balancer.connect(&one), balancer.connect(&other));
        let kind = if address.is_ipv6() { 2 } else { 3 };
        let headers = if address.is_ipv6() { 40 } else { 20 };
        let error = |about: &[u8], bytes| icmp_error(router, kind, about, bytes);
        let whole = |about: &[u8]| error(about, about.len() - 14);
        for (peer, backend) in [(&one, first), (&other, second)] {
            balancer.expect("about ESP in UDP", whole(&peer.data_back()), (SESSION, backend));
            balancer.expect(
                "about its first 8 bytes",
                error(&peer.data_back(), headers + 8),
                (SESSION, backend),
            );
            balancer.expect("about IKE", whole(&peer.ike_back()), (SESSION, backend));
            balancer.expect("about IKE on port 500", whole(&peer.answer()), (SESSION, backend));
            if address.is_ipv4() {
                let options = with_options(&peer.data_back(), 15);
                balancer.expect("behind options", whole(&options), (SESSION, backend));
            }
        }
        // The newest SA of the address has what names no endpoint.
        for (description, frame) in [
            ("about ESP", whole(&one.plain_back())),
            ("about 7 bytes of UDP", error(&one.data_back(), headers + 7)),
            ("about a header alone", error(&one.data_back(), headers)),
            ("about an endpoint that nobody has", whole(&one.at(address, 55_555).data_back())),
            ("about a later fragment", whole(&fragments(&one.data_back(), 32, 1, &[])[1])),
        ] {
            balancer.expect(description, frame, (SESSION, second));
        }
        if address.is_ipv6() {
            let hidden = with_extensions(&one.data_back(), &[60]);
            balancer.expect("behind extension headers", whole(&hidden), (SESSION, second));
        }
        let strange = whole(&esp_back(router, 7));
        balancer.expect("about a client that nobody knows", strange, (STATELESS, balancer.hashed(router)));
        assert_eq!(balancer.entry(Key::Address(router)), None);
    });
}

/// IKE_AUTH with certificates, in fragments of IP.
fn long_auth(peer: &Peer) -> [Vec<u8>; 2] {
    let message = Ike { extra: 1500, ..Ike::auth(peer.initiator_spi, peer.responder_spi) };
    fragments(&peer.ike(message), 512, peer.port, &[])
}

#[test]
fn root_fragments_follow_their_first_one() {
    with_tunnels(|balancer, address, _| {
        let (one, other) = (Peer::new(1, address), Peer::new(2, address));
        let (first, second) = (balancer.greet(&one), balancer.greet(&other));
        assert_ne!(first, second);
        for (peer, backend) in [(&one, first), (&other, second)] {
            let [start, rest] = long_auth(peer);
            balancer.expect("a proof in fragments", start, (SESSION, backend));
            assert_eq!(balancer.entry(peer.sa()).unwrap().state, Established);
            balancer.expect("the rest of it", rest, (STATELESS, backend));
        }
        let [_, rest] = long_auth(&one);
        balancer.expect("the rest of the first one", rest, (STATELESS, first));
        balancer.pass();
        // ESP in UDP, which IP has cut.
        let [start, rest] = fragments(&one.data(SPI), 32, 77, &[]);
        balancer.expect("ESP in UDP", start, (SESSION, first));
        balancer.expect("the rest of it", rest, (STATELESS, first));
        let [start, rest] = fragments(&one.plain(SPI), 32, 78, &[]);
        balancer.expect("what overtakes its first fragment", rest.clone(), (SESSION, second));
        balancer.expect("plain ESP", start, (SESSION, first));
        balancer.expect("the rest of it", rest, (STATELESS, first));
    });
}

#[test]
fn root_fragments_that_overtake_go_to_the_newest_sa_of_their_source() {
    with_tunnels(|balancer, address, _| {
        let peer = Peer::new(1, address);
        let [_, rest] = long_auth(&peer);
        balancer.expect("of a stranger", rest.clone(), (STATELESS, balancer.hashed(address)));
        let backend = balancer.greet(&peer);
        balancer.expect("of the only handshake", rest.clone(), (SESSION, backend));
        balancer.outcome(&peer.auth());
        balancer.expect("of the only tunnel", rest, (SESSION, backend));
    });
}

#[test]
fn root_fragments_of_ike_follow_their_sa() {
    with_tunnels(|balancer, address, _| {
        let peer = Peer::new(1, address);
        let backend = balancer.greet(&peer);
        // RFC 7383: each is a whole message with both SPIs, the first payload is 53.
        for _ in 0..3 {
            let message = Ike { next_payload: 53, ..Ike::auth(peer.initiator_spi, peer.responder_spi) };
            balancer.expect("a fragment of IKE_AUTH", peer.ike(message), (SESSION, backend));
            assert_eq!(balancer.entry(peer.sa()).unwrap().state, Established);
        }
    });
}

#[test]
fn root_a_flood_of_starts_neither_evicts_nor_moves_a_tunnel() {
    let settings = Settings { start_rate: 100_000_000, max_sessions: 16, ..by_tunnel() };
    let balancer = Balancer::new(&settings, 4);
    families(|address, elsewhere| {
        balancer.forget();
        let peers: Vec<Peer> = (0..10).map(|number| Peer::new(number, address)).collect();
        let backends: Vec<u32> = peers.iter().map(|peer| balancer.connect(peer)).collect();
        for (peer, &backend) in peers.iter().zip(&backends) {
            balancer.expect("ESP", peer.data(SPI + u32::from(peer.port)), (SESSION, backend));
        }
        let kept: Vec<Row> = balancer.rows().into_iter().filter(|row| row.1 != Embryonic).collect();
        for number in 0..20_000u32 {
            let source = client(1000 + number, address.is_ipv6());
            let spoofed = match number % 3 {
                // From anywhere, from the tunnels' own endpoints, and with what is no start.
                0 => ike(source, Ike::init(u64::from(number) << 8)),
                1 => Peer { initiator_spi: u64::from(number) << 8, ..peers[number as usize % 10] }.start(),
                _ => echo_request(source),
            };
            balancer.send(Side::Client, &spoofed);
        }
        assert!(balancer.rows().len() > 200, "the flood fills the table");
        let left: Vec<Row> = balancer.rows().into_iter().filter(|row| row.1 != Embryonic).collect();
        assert_eq!(left, kept);
        for (peer, &backend) in peers.iter().zip(&backends) {
            balancer.expect("ESP", peer.data(SPI), (SESSION, backend));
            balancer.expect("IKE", peer.auth(), (SESSION, backend));
            let known = peer.at(address, peer.nat_port + 500);
            balancer.expect(
                "ESP from another port",
                known.data(SPI + u32::from(peer.port)),
                (SESSION, backend),
            );
        }
        assert_eq!(balancer.sessions.established(), 10);
        // Who comes in the very second of the flood may lose its entry as any other.
        balancer.age_sessions(2);
        let newcomer = Peer::new(20, elsewhere);
        balancer.connect(&newcomer);
    });
}

#[test]
fn root_esp_keeps_its_tunnel_alive() {
    let balancer =
        Balancer::new(&Settings { idle_timeout: std::time::Duration::from_secs(100), ..by_tunnel() }, 4);
    families(|address, _| {
        for udp in [true, false] {
            balancer.forget();
            let peer = Peer::new(1, address);
            let backend = balancer.connect(&peer);
            let frame = if udp { peer.data(SPI) } else { peer.plain(SPI) };
            for _ in 0..3 {
                balancer.age_sessions(60);
                balancer.expect("ESP", frame.clone(), (SESSION, backend));
            }
            balancer.expect("IKE after a silence", peer.auth(), (SESSION, backend));
            assert_eq!(balancer.entry(peer.sa()).unwrap().state, Established);
            assert_eq!(balancer.sessions.established(), 1);
            balancer.age_sessions(102);
            balancer.expect("ESP after its end", frame, (STATELESS, balancer.hashed(address)));
            balancer.expect("IKE after its end", peer.auth(), (STATELESS, balancer.hashed(address)));
        }
    });
}

#[test]
fn root_maglev_places_starts_by_their_address() {
    let balancer = Balancer::new(&Settings { policy: Policy::Maglev, ..by_tunnel() }, 4);
    families(|address, _| {
        balancer.forget();
        for number in 0..8 {
            let peer = Peer::new(number, address);
            assert_eq!(balancer.connect(&peer), balancer.hashed(address));
        }
    });
}

#[test]
fn root_starts_over_the_rate_agree_with_what_follows_them() {
    // One a second of each source.
    let balancer = Balancer::new(&Settings { start_rate: 20, ..by_tunnel() }, 4);
    families(|address, _| {
        balancer.forget();
        turn_away(&balancer, &[address]);
        let (one, other) = (Peer::new(1, address), Peer::new(2, address));
        let hashed = balancer.hashed(address);
        assert_ne!(balancer.greet(&one), hashed);
        let before = balancer.rows();
        balancer.expect("a start over the rate", other.start(), (STATELESS, hashed));
        balancer.answer(hashed, other.answer());
        balancer.expect("its proof", other.auth(), (STATELESS, hashed));
        balancer.expect("its ESP", other.data(SPI), (STATELESS, hashed));
        assert_eq!(balancer.rows(), before);
        // Its backend's ESP shows who has it.
        balancer.answer(hashed, other.data_back());
        balancer.expect("its ESP", other.data(SPI), (SESSION, hashed));
    });
}

/// The same where the endpoint has a tunnel already, at a backend that takes no starts.
#[test]
fn root_starts_over_the_rate_of_a_bound_endpoint_agree_with_what_follows_them() {
    let balancer = Balancer::new(&Settings { start_rate: 20, ..by_tunnel() }, 4);
    families(|address, _| {
        balancer.forget();
        turn_away(&balancer, &[address]);
        let peer = Peer { nat_port: 4500, ..Peer::new(1, address) };
        let backend = balancer.connect(&peer);
        balancer.want(backend, Wanted::Draining);
        let renewed = peer.with_sa(1);
        let (verdict, to) = balancer.outcome(&renewed.start());
        assert_ne!(verdict, NEW, "the start is over the rate");
        balancer.answer(to.expect("a backend"), renewed.answer());
        let proof = balancer.outcome(&renewed.auth());
        balancer.want(backend, Wanted::Active);
        assert_eq!(proof.1, to, "the start went there, and so does what proves it");
    });
}

#[test]
fn root_a_known_spi_takes_nothing_of_its_sources_rate() {
    with_tunnels(|balancer, address, _| {
        let peer = Peer::new(1, address);
        let backend = balancer.connect(&peer);
        balancer.expect("ESP", peer.data(SPI), (SESSION, backend));
        balancer.pass();
        let rates = &balancer.datapath.maps.source_rates;
        let taken = || {
            rates
                .keys()
                .into_iter()
                .filter_map(|key| rates.get(&key).unwrap().filter(|word| *word > 0).map(|word| (key, word)))
                .collect::<Vec<_>>()
        };
        let before = taken();
        assert_eq!(before.len(), 1, "one source has sent so far");
        balancer.expect("ESP", peer.data(SPI), (SESSION, backend));
        let after = taken();
        rates.set(&before[0].0, &0).unwrap();
        assert_eq!(after, before, "an entry that is there takes no room");
    });
}

/// A stranger begins an SA in a client's name before that client comes, and proves it from his own address.
#[test]
fn root_a_start_in_anothers_name_does_not_take_its_endpoint() {
    with_tunnels(|balancer, address, elsewhere| {
        let victim = Peer::new(1, address);
        let stranger = Peer::new(9, elsewhere);
        let in_its_name = Peer { address, port: victim.nat_port, ..stranger };
        let strange = balancer.outcome(&in_its_name.start()).1.expect("a backend");
        let backend = balancer.connect(&victim);
        assert_ne!(strange, backend);
        balancer.expect("the start from his own address", stranger.start(), (SESSION, strange));
        balancer.answer(strange, stranger.answer());
        balancer.expect("his proof", stranger.auth(), (SESSION, strange));
        balancer.expect("the client's ESP", victim.data(SPI), (SESSION, backend));
        balancer.expect("its keepalive", victim.keepalive(), (SESSION, backend));
        assert_eq!(balancer.entry(victim.sa()).unwrap().state, Established);
    });
}

/// One SA that is seen in a thousand places has only so many entries, and leaves room for others.
#[test]
fn root_an_sa_that_moves_about_does_not_fill_the_table() {
    let balancer = Balancer::new(&Settings { max_sessions: 16, ..by_tunnel() }, 4);
    families(|address, other| {
        balancer.forget();
        let mover = Peer::new(1, address);
        let backend = balancer.connect(&mover);
        for number in 0..3000 {
            let moved = mover.at(client(2000 + number, address.is_ipv6()), 1024 + number as u16);
            balancer.expect("IKE from elsewhere", moved.auth(), (SESSION, backend));
        }
        let established = balancer.rows().iter().filter(|row| row.1 == Established).count();
        assert!(established <= 8, "one SA has {established} established entries");
        // What it has left behind makes room for starts when it has been idle as long as a start may be.
        balancer.age_sessions(32);
        let newcomer = Peer::new(2, other);
        balancer.connect(&newcomer);
    });
}

/// Nor has it more than its source's share of what is new.
#[test]
fn root_moves_count_for_the_rate_of_their_source() {
    // One new entry a second for each source.
    let balancer = Balancer::new(&Settings { start_rate: 20, ..by_tunnel() }, 4);
    families(|address, elsewhere| {
        balancer.forget();
        let peer = Peer::new(1, address);
        let backend = balancer.connect(&peer);
        let there = |port| peer.at(elsewhere, port);
        balancer.expect("the first move", there(30_000).auth(), (SESSION, backend));
        assert!(balancer.entry(there(30_000).endpoint()).is_some());
        for port in 30_001..30_040 {
            balancer.expect("another move", there(port).auth(), (SESSION, backend));
        }
        let bound = balancer
            .rows()
            .iter()
            .filter(|row| matches!(row.0, Key::Endpoint(at, _) if at == elsewhere))
            .count();
        assert!(bound < 10, "{bound} endpoints of one source are bound at once");
    });
}

/// The client closes the SA that it has replaced by one at another backend.
#[test]
fn root_an_sa_that_was_replaced_takes_nothing_back() {
    with_tunnels(|balancer, address, _| {
        for peer in [Peer::new(1, address), Peer::bare(2, address)] {
            let old = balancer.connect(&peer);
            balancer.want(old, Wanted::Draining);
            let renewed = peer.with_sa(1);
            let new = balancer.connect(&renewed);
            balancer.want(old, Wanted::Active);
            assert_ne!(old, new);
            balancer.expect("ESP", renewed.data(SPI), (SESSION, new));
            balancer.expect("the end of the old SA", peer.auth(), (SESSION, old));
            balancer.answer(old, peer.ike_back());
            balancer.expect("ESP of the new one", renewed.data(SPI + 1), (SESSION, new));
            balancer.expect("plain ESP of the new one", renewed.plain(SPI + 2), (SESSION, new));
            balancer.expect("its IKE", renewed.auth(), (SESSION, new));
            assert_eq!(balancer.entry(renewed.sa()).unwrap().state, Established);
            balancer.forget();
        }
    });
}

/// What comes from the wrong MAC is not the backend's.
#[test]
fn root_backends_behind_one_interface_are_told_apart_by_mac() {
    with_tunnels(|balancer, address, _| {
        let peer = Peer::new(1, address);
        let backend = balancer.outcome(&peer.start()).1.expect("a backend");
        let other = (backend + 1) % 4;
        // The interface is another backend's; the MAC says who it was.
        balancer.hear(other);
        balancer.send(Side::Backend, &sent_by(peer.answer(), backend_mac(other as u8)));
        assert_eq!(balancer.entry(peer.sa()).unwrap().responder_spi, 0);
        balancer.send(Side::Backend, &sent_by(peer.answer(), backend_mac(backend as u8)));
        assert_eq!(balancer.entry(peer.sa()).unwrap().responder_spi, peer.responder_spi);
        balancer.hear(0);
    });
}

#[test]
fn root_ports_of_zero_are_no_endpoints() {
    with_tunnels(|balancer, address, _| {
        let frame = esp_in_udp(address, 0, SPI);
        balancer.expect("ESP in UDP", frame, (STATELESS, balancer.hashed(address)));
        let peer = Peer { nat_port: 0, ..Peer::new(1, address) };
        let backend = balancer.connect(&peer);
        balancer.expect("its ESP", peer.data(SPI), (SESSION, backend));
        balancer.expect_dropped("its keepalive", peer.keepalive(), KEEPALIVE_DROPPED);
    });
}
