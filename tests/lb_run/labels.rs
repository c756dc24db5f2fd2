//! SPIs whose first bits name the backend that chose them: what is established finds its backend without any table.

use std::net::IpAddr;

use lb::kernel::counters;
use lb::lb::backend::{self, Wanted};
use lb::lb::datapath::{Affinity, OnDown, ReturnPath, Settings};
use lb::lb::session::State::{Embryonic, Established};
use lb::lb::skeleton::types::{lb_label_count, lb_verdict};

use crate::common::packet::{
    Ike, ah, client, esp, esp_in_udp, fragments, ike, ike_back, ike_nat, ike_nat_back,
};
use crate::draining::with_each;
use crate::fixture::{Balancer, settings};
use crate::peer::Peer;

const SESSION: lb_verdict = lb_verdict::LB_SESSION;
const NEW: lb_verdict = lb_verdict::LB_NEW;
const STATELESS: lb_verdict = lb_verdict::LB_STATELESS;
const NO_BACKEND: lb_verdict = lb_verdict::LB_NO_BACKEND;

/// Labels of four bits for four backends, not in their order, and the last one has none.
const LABELS: [Option<u32>; 4] = [Some(0), Some(15), Some(6), None];
/// A label that no backend has.
const NOBODYS: u32 = 9;

fn sharded() -> Settings {
    Settings { spi_shard: 4, ..settings() }
}

/// Both affinities and families, with labels.
#[track_caller]
fn with_labels(settings: &Settings, work: impl Fn(&Balancer, IpAddr, IpAddr)) {
    with_each(settings, |balancer, address, other| {
        balancer.label(&LABELS);
        work(balancer, address, other);
    });
}

fn esp_spi(label: u32) -> u32 {
    label << 28 | 0x0abc_def1
}

fn ike_spi(label: u32) -> u64 {
    u64::from(label) << 60 | 0x0123_4567_89ab_cdef
}

fn count(balancer: &Balancer, kind: lb_label_count) -> u64 {
    counters::read(&balancer.datapath.maps.label_counters, kind.0).unwrap().packets
}

fn unknown(balancer: &Balancer) -> u64 {
    count(balancer, lb_label_count::LB_LABEL_UNKNOWN)
}

fn disagreeing(balancer: &Balancer) -> u64 {
    count(balancer, lb_label_count::LB_LABEL_DISAGREES)
}

/// A backend whose label has the same place as nothing that the hash or the policy say of `address`.
fn labelled(balancer: &Balancer, address: IpAddr) -> (u32, u32) {
    let found = (0..3).find(|&index| index != balancer.hashed(address));
    let index = found.expect("three backends have labels");
    (index, LABELS[index as usize].expect("it has a label"))
}

#[test]
fn root_esp_goes_by_its_label_and_leaves_no_trace() {
    with_labels(&sharded(), |balancer, address, _| {
        let before = unknown(balancer);
        for (index, label) in (0..).zip(LABELS).filter_map(|(index, label)| Some((index, label?))) {
            let spi = esp_spi(label);
            for (description, frame) in [
                ("ESP", esp(address, spi)),
                ("AH", ah(address, spi)),
                ("ESP in UDP", esp_in_udp(address, 4500, spi)),
                ("ESP in UDP from any port", esp_in_udp(address, 61_234, spi)),
                ("the least SPI of the label", esp(address, (label << 28).max(256))),
                ("its greatest SPI", esp(address, label << 28 | 0x0fff_ffff)),
                ("a first fragment", fragments(&esp(address, spi), 32, 5, &[])[0].clone()),
                ("the rest of it", fragments(&esp(address, spi), 32, 5, &[])[1].clone()),
            ] {
                balancer.expect(description, frame, (STATELESS, index));
            }
        }
        assert!(balancer.rows().is_empty());
        assert_eq!(unknown(balancer), before);
        // Below 256 SPIs are reserved, and say nothing.
        balancer.expect("a reserved SPI", esp(address, 255), (STATELESS, balancer.hashed(address)));
        assert_eq!(unknown(balancer), before);
    });
}

#[test]
fn root_ike_goes_by_the_label_of_the_spi_that_its_backend_chose() {
    with_labels(&sharded(), |balancer, address, _| {
        let (index, label) = labelled(balancer, address);
        let other = LABELS[(0..3).find(|&other| other != index as usize).unwrap()].unwrap();
        let (backends, clients) = (ike_spi(label), ike_spi(other));
        let of_client = Ike::auth(clients, backends);
        let of_responder = Ike { flags: 0, exchange: 37, ..Ike::auth(backends, clients) };
        let v1 = Ike { version: 0x10, exchange: 2, flags: 0, ..of_client };
        for (description, message) in [
            ("a client that began the SA", of_client),
            ("the same, answering", Ike { flags: 0x28, ..of_client }),
            ("a client whose backend began the SA", of_responder),
            ("the same, answering", Ike { flags: 0x20, ..of_responder }),
            ("IKEv1", v1),
            ("IKEv1 with other flags", Ike { flags: 1, exchange: 5, ..v1 }),
        ] {
            balancer.expect(description, ike(address, message), (STATELESS, index));
            balancer.expect(description, ike_nat(address, 4500, message), (STATELESS, index));
            balancer.expect(description, ike_nat(address, 61_234, message), (STATELESS, index));
        }
        assert!(balancer.rows().is_empty());
    });
}

#[test]
fn root_starts_have_no_label() {
    with_labels(&sharded(), |balancer, address, _| {
        let before = unknown(balancer);
        for label in [LABELS[1].unwrap(), NOBODYS] {
            balancer.forget();
            let peer = Peer { initiator_spi: ike_spi(label), ..Peer::new(1, address) };
            let turn = (0..4).find(|&index| index != 1 && index != balancer.hashed(address)).unwrap();
            balancer.turn_to(turn);
            balancer.expect("a start", peer.start(), (NEW, turn));
            balancer.expect("the same again", peer.start(), (SESSION, turn));
            let with_cookie = Ike { extra: 140, ..Ike::init(peer.initiator_spi) };
            balancer.expect("with a cookie", peer.ike_500(with_cookie), (SESSION, turn));
        }
        assert_eq!(unknown(balancer), before);
    });
}

#[test]
fn root_a_label_of_nobody_is_counted_and_the_rest_decides() {
    with_labels(&sharded(), |balancer, address, other| {
        let before = unknown(balancer);
        let hashed = balancer.hashed(address);
        balancer.expect("ESP", esp(address, esp_spi(NOBODYS)), (STATELESS, hashed));
        assert_eq!(unknown(balancer), before + 1);
        let message = Ike::auth(7, ike_spi(NOBODYS));
        balancer.expect("IKE", ike(address, message), (STATELESS, hashed));
        assert_eq!(unknown(balancer), before + 2);

        let peer = Peer { responder_spi: ike_spi(NOBODYS), ..Peer::new(1, other) };
        let backend = balancer.connect(&peer);
        let before = unknown(balancer);
        balancer.expect("ESP of a session", peer.data(esp_spi(NOBODYS)), (SESSION, backend));
        assert_eq!(unknown(balancer), before + 1);
        balancer.expect("IKE of a session", peer.auth(), (SESSION, backend));
        assert_eq!(unknown(balancer), before + 1, "the recorded SPIs have decided");
    });
}

#[test]
fn root_the_recorded_pair_wins_over_the_label() {
    with_labels(&sharded(), |balancer, address, _| {
        let (_, label) = labelled(balancer, address);
        let index = LABELS.iter().position(|other| *other == Some(label)).unwrap() as u32;
        // Any backend but the one that the label names.
        let turn = (0..4).find(|&turn| turn != index && turn != balancer.hashed(address)).unwrap();
        balancer.turn_to(turn);
        let peer = Peer { responder_spi: ike_spi(label), ..Peer::new(1, address) };
        assert_eq!(balancer.connect(&peer), turn);
        balancer.expect("IKE of the session", peer.auth(), (SESSION, turn));
        let unrecorded = Ike::auth(peer.initiator_spi, peer.responder_spi + 1);
        balancer.expect("another SPI with the label", peer.ike(unrecorded), (STATELESS, index));
        let of_another = Ike::auth(peer.initiator_spi + 1, peer.responder_spi);
        balancer.expect("another SA with the label", peer.ike(of_another), (STATELESS, index));
        balancer.expect("ESP with the label", peer.data(esp_spi(label)), (STATELESS, index));
        balancer.forget();
        balancer.expect("IKE that nobody has recorded", peer.auth(), (STATELESS, index));
    });
}

#[test]
fn root_a_session_at_the_backend_of_the_label_counts_its_packets() {
    for return_path in [ReturnPath::Here, ReturnPath::Direct] {
        with_labels(&Settings { return_path, ..sharded() }, |balancer, address, _| {
            let (index, label) = labelled(balancer, address);
            balancer.turn_to(index);
            let peer = Peer { responder_spi: ike_spi(label), ..Peer::new(1, address) };
            balancer.expect("a start", peer.start(), (NEW, index));
            // What a tunnel's backend has not shown is not the SA's own, but the label says where it is from.
            let shown = return_path == ReturnPath::Direct || balancer.settings.affinity == Affinity::Address;
            let verdict = if shown { SESSION } else { STATELESS };
            balancer.expect("IKE before its answer", peer.auth(), (verdict, index));
            let state = balancer.sessions.iter().next().unwrap().state;
            assert_eq!(state, if return_path == ReturnPath::Direct { Established } else { Embryonic });
            balancer.answer(index, peer.answer());
            balancer.expect("the proof", peer.auth(), (SESSION, index));
            assert_eq!(balancer.sessions.established(), 1);
        });
    }
}

#[test]
fn root_established_tunnels_keep_their_backends_when_all_tables_are_empty() {
    for spi_shard in [4, 12] {
        with_each(&Settings { spi_shard, ..sharded() }, |balancer, address, _| {
            let top = (1 << spi_shard) - 1;
            let labels = [0, top, top / 2, 1];
            balancer.label(&labels.map(Some));
            let mut tunnels = Vec::new();
            for number in 0..20u16 {
                let address = client(50 + u32::from(number), address.is_ipv6());
                let peer = Peer::new(number, address);
                let backend = balancer.outcome(&peer.start()).1.expect("a backend");
                let label = labels[backend as usize];
                let responder_spi = u64::from(label) << (64 - spi_shard) | u64::from(number) | 0x100;
                let peer = Peer { responder_spi, ..peer };
                balancer.answer(backend, peer.answer());
                balancer.expect("the proof", peer.auth(), (SESSION, backend));
                tunnels.push((peer, backend, label << (32 - spi_shard) | 0x100 | u32::from(number)));
            }
            balancer.forget();
            let before = unknown(balancer);
            for (peer, backend, spi) in tunnels {
                balancer.expect("ESP in UDP", peer.data(spi), (STATELESS, backend));
                balancer.expect("ESP", peer.plain(spi), (STATELESS, backend));
                balancer.expect("IKE", peer.auth(), (STATELESS, backend));
                balancer.expect(
                    "from another port",
                    peer.at(peer.address, 9).data(spi),
                    (STATELESS, backend),
                );
                balancer.expect("from elsewhere", peer.at(address, 9).auth(), (STATELESS, backend));
            }
            assert_eq!((unknown(balancer), disagreeing(balancer)), (before, 0));
        });
    }
}

#[test]
fn root_labels_of_backends_that_take_nothing() {
    for on_down in [OnDown::Rehash, OnDown::Hold] {
        with_labels(&Settings { on_down, ..sharded() }, |balancer, address, _| {
            let (index, label) = labelled(balancer, address);
            let hashed = balancer.hashed(address);
            let frames =
                [("ESP", esp(address, esp_spi(label))), ("IKE", ike(address, Ike::auth(7, ike_spi(label))))];
            balancer.want(index, Wanted::Draining);
            for (description, frame) in frames.clone() {
                balancer.expect(description, frame, (STATELESS, index));
            }
            balancer.want(index, Wanted::Down);
            for (description, frame) in frames.clone() {
                match on_down {
                    OnDown::Rehash => balancer.expect(description, frame, (STATELESS, hashed)),
                    OnDown::Hold => balancer.expect_dropped(description, frame, NO_BACKEND),
                }
            }
            balancer.want(index, Wanted::Active);
            let maps = &balancer.datapath.maps;
            backend::set_label(maps, index, None).unwrap();
            let before = unknown(balancer);
            for (description, frame) in frames {
                balancer.expect(description, frame, (STATELESS, hashed));
            }
            assert_eq!(unknown(balancer), before + 2, "nobody has that label any more");
        });
    }
}

#[test]
fn root_spis_without_their_backends_label_are_counted() {
    with_labels(&sharded(), |balancer, address, _| {
        let own = |index: u32| ike_spi(LABELS[index as usize].unwrap());
        let answers = |message: Ike| (ike_back(address, message), ike_nat_back(address, 4500, message));
        let judge = |index, message, counts: u64, what: &str| {
            let (plain, nat) = answers(message);
            for frame in [plain, nat] {
                let before = disagreeing(balancer);
                balancer.answer(index, frame);
                assert_eq!(disagreeing(balancer) - before, counts, "{what} of backend {index}");
            }
        };
        // What the client has chosen has a label that no backend has.
        let theirs = ike_spi(NOBODYS);
        for index in 0..3u32 {
            let foreign = ike_spi(LABELS[(index as usize + 1) % 3].unwrap());
            for (spi, counts) in [(own(index), 0), (foreign, 1), (ike_spi(NOBODYS), 1)] {
                judge(index, Ike::init_response(theirs, spi), counts, "an answer");
                judge(
                    index,
                    Ike { flags: 0x20, next_payload: 46, ..Ike::auth(theirs, spi) },
                    counts,
                    "a later answer",
                );
                judge(
                    index,
                    Ike { flags: 0, next_payload: 46, ..Ike::auth(theirs, spi) },
                    counts,
                    "a request of the responder",
                );
                judge(
                    index,
                    Ike { flags: 0x08, next_payload: 46, ..Ike::auth(spi, theirs) },
                    counts,
                    "a message of an SA that it began",
                );
                judge(index, Ike::init(spi), counts, "a start");
            }
            judge(index, Ike::init_response(theirs, 0), 0, "a demand for a cookie");
        }
        judge(3, Ike::init_response(theirs, theirs), 0, "an answer of the backend without a label");
    });
}

#[test]
fn root_ikev1_answers_are_judged_by_the_responders_cookie() {
    with_labels(&sharded(), |balancer, address, _| {
        for (index, spi, counts) in [(1, ike_spi(LABELS[1].unwrap()), 0), (1, ike_spi(NOBODYS), 1)] {
            let message = Ike { version: 0x10, exchange: 2, flags: 0, ..Ike::auth(ike_spi(NOBODYS), spi) };
            let before = disagreeing(balancer);
            balancer.answer(index, ike_back(address, message));
            assert_eq!(disagreeing(balancer) - before, counts);
        }
    });
}

#[test]
fn root_a_complaint_repeats_spis_that_its_backend_has_not_chosen() {
    with_labels(&sharded(), |balancer, address, _| {
        // INVALID_IKE_SPI: the client may have asked for any.
        for complaint in [
            Ike { next_payload: 41, flags: 0x20, exchange: 37, ..Ike::auth(7, ike_spi(NOBODYS)) },
            Ike { next_payload: 11, flags: 0, exchange: 5, version: 0x10, ..Ike::auth(7, ike_spi(NOBODYS)) },
        ] {
            let before = disagreeing(balancer);
            balancer.answer(1, ike_back(address, complaint));
            assert_eq!(disagreeing(balancer), before);
        }
    });
}

#[test]
fn root_without_the_option_spis_have_no_labels() {
    with_each(&settings(), |balancer, address, _| {
        balancer.label(&LABELS);
        for (_, label) in (0..).zip(LABELS).filter_map(|(index, label): (u32, _)| Some((index, label?))) {
            balancer.expect("ESP", esp(address, esp_spi(label)), (STATELESS, balancer.hashed(address)));
            let message = Ike::auth(7, ike_spi(label));
            balancer.expect("IKE", ike(address, message), (STATELESS, balancer.hashed(address)));
            balancer.answer(1, ike_back(address, Ike::init_response(7, ike_spi(NOBODYS))));
        }
        assert_eq!((unknown(balancer), disagreeing(balancer)), (0, 0));
    });
}
