//! The backend side: what goes back to clients, and what is learned on the way.

use etherparse::IpNumber;
use lb::lb::backend;
use lb::lb::session::State::{Embryonic, Established};
use lb::lb::skeleton::types::lb_verdict;

use crate::common::packet::{
    Ike, arp, backend_mac, client, esp, esp_back, esp_bytes, fragments, icmp, ike, ike_back, ike_nat_back,
    padded, raw, sent_by, sent_to, tcp, udp, vip, with_extensions, with_options,
};
use crate::families;
use crate::fixture::Expected::{Neighbour, Returned};
use crate::fixture::{Balancer, INITIATOR, MALFORMED, OTHER, RESPONDER, Side, Way, from_backend, settings};

const UNKNOWN_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x77];

#[test]
fn root_what_belongs_to_tunnels_returns() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, other| {
        let vip = vip(client);
        let from_4500 = |payload: &[u8]| udp((vip, 4500), (client, 61234), payload);
        let whole = raw(vip, client, IpNumber(17), &[1; 64]);
        let echo: u8 = if client.is_ipv6() { 128 } else { 8 };
        // With the state of the session that a client without one has from then on.
        let mut frames = vec![
            ("IKE", ike_back(client, Ike::init_response(INITIATOR, RESPONDER)), None),
            ("a start of the backend's", ike_back(client, Ike::init(9)), Some(Embryonic)),
            ("a start on port 4500", ike_nat_back(client, 4500, Ike::init(9)), Some(Embryonic)),
            ("a cookie demand", ike_back(client, Ike::init_response(INITIATOR, 0)), None),
            ("IKE on port 4500", ike_nat_back(client, 4500, Ike::auth(INITIATOR, RESPONDER)), None),
            ("IKE to any port", ike_nat_back(client, 1024, Ike::auth(INITIATOR, RESPONDER)), None),
            ("a keepalive", padded(from_4500(&[0xff])), None),
            ("ESP in UDP", from_4500(&esp_bytes(7)), Some(Established)),
            ("ESP", esp_back(client, 7), Some(Established)),
            ("AH", raw(vip, client, IpNumber(51), &[1; 40]), Some(Established)),
            ("a ping", icmp(vip, client, echo, &[0; 60]), None),
            (
                "an answer to a ping",
                icmp(vip, client, if client.is_ipv6() { 129 } else { 0 }, &[0; 60]),
                None,
            ),
            ("an ICMP error", icmp(vip, client, 3, &[&[0; 4], &esp(client, 7)[14..]].concat()), None),
            ("an ICMP error without a quote", padded(icmp(vip, client, 3, &[0; 4])), None),
            ("a first fragment", fragments(&esp_back(client, 7), 64, 1, &[])[0].clone(), Some(Established)),
            ("a later fragment", fragments(&whole, 32, 1, &[])[1].clone(), None),
        ];
        if client.is_ipv6() {
            let behind = with_extensions(&esp_back(client, 7), &[0, 60]);
            frames.push(("behind extension headers", behind, Some(Established)));
            frames.push(("behind destination options", fragments(&whole, 32, 1, &[60])[1].clone(), None));
        } else {
            frames.push(("an ICMP redirect", icmp(vip, client, 5, &[0x45; 60]), None));
            frames.push(("a timestamp", icmp(vip, client, 13, &[0; 60]), None));
            frames.push(("behind options", with_options(&esp_back(client, 7), 15), Some(Established)));
        }
        for (description, frame, state) in frames {
            let fixture = from_backend(description, frame, Returned(client)).teaches(state);
            balancer.check(&fixture);
            balancer.check(&fixture.clone().with_established(other));
            balancer.check(&fixture.clone().with_start(client));
            balancer.check(&fixture.with_established(client));
        }
    });
}

#[test]
fn root_what_belongs_to_no_tunnel_does_not_return() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, _| {
        let vip = vip(client);
        for (description, frame, expected) in [
            ("TCP", tcp(vip, client, 500), OTHER),
            // Backends send from the well-known ports; that a packet goes to one says nothing.
            ("UDP to port 500", udp((vip, 53), (client, 500), &Ike::init(9).bytes()), OTHER),
            ("UDP to port 4500", udp((vip, 53), (client, 4500), &[0xff]), OTHER),
            ("27 bytes of IKE", udp((vip, 500), (client, 500), &Ike::init(9).bytes()[..27]), MALFORMED),
            ("nothing from port 4500", padded(udp((vip, 4500), (client, 4500), &[])), MALFORMED),
            ("2 bytes from port 4500", padded(udp((vip, 4500), (client, 4500), &[0xff; 2])), MALFORMED),
            ("7 bytes of ESP in UDP", udp((vip, 4500), (client, 4500), &[1; 7]), MALFORMED),
            ("7 bytes of ESP", padded(raw(vip, client, IpNumber(50), &[1; 7])), MALFORMED),
            ("11 bytes of AH", padded(raw(vip, client, IpNumber(51), &[1; 11])), MALFORMED),
            (
                "7 bytes of ICMP",
                raw(vip, client, IpNumber(if client.is_ipv6() { 58 } else { 1 }), &[1; 7]),
                MALFORMED,
            ),
        ] {
            balancer.check(&from_backend(description, frame.clone(), expected));
            balancer.check(&from_backend(description, frame, expected).with_established(client));
        }
    });
}

#[test]
fn root_macs_are_learned_from_what_backends_send() {
    let request = |mac| sent_by(arp(1, [0xff; 6]), mac);
    let to_all = Neighbour(Way::Port(0));
    families(|client, _| {
        let balancer = Balancer::of(&settings(), &[Some(backend_mac(0)), None, None]);
        // Fixtures that do not learn leave the backend that is heard as it is.
        balancer.hear(1);
        for mac in [[0; 6], [0xff; 6], [0x01, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]] {
            balancer.check(&from_backend("a source that is no station", request(mac), to_all));
        }
        balancer.hear(0);
        balancer.check(&from_backend("a given MAC stays", request(UNKNOWN_MAC), to_all));
        let frame = sent_by(esp_back(client, 7), backend_mac(1));
        let fixture = from_backend("ESP", frame, Returned(client)).teaches(Established);
        balancer.check(&fixture.learns(1, backend_mac(1)));
        balancer.check(&from_backend("ARP", request(backend_mac(2)), to_all).learns(2, backend_mac(2)));

        let learned: Vec<bool> = backend::list(&balancer.datapath.maps)
            .expect("backends can be read")
            .iter()
            .map(|backend| backend.learned)
            .collect();
        assert_eq!(learned, [false, true, true]);
        let reply = |mac| sent_to(arp(2, [0xff; 6]), mac);
        for index in 0..3 {
            let frame = reply(backend_mac(index));
            assert_eq!(balancer.way(Side::Client, &frame, None), Some(Way::Port(index.into())));
        }
    });
}

#[test]
fn root_a_learned_backend_takes_clients() {
    let balancer = Balancer::of(&settings(), &[None]);
    let start = |number| ike(client(number, false), Ike::init(INITIATOR));
    assert_eq!(balancer.outcome(&start(1)), (lb_verdict::LB_NO_BACKEND, None));
    balancer.send(Side::Backend, &sent_by(arp(1, [0xff; 6]), backend_mac(0)));
    assert_eq!(balancer.outcome(&start(1)), (lb_verdict::LB_NEW, Some(0)));
    assert_eq!(balancer.outcome(&esp(client(2, true), 7)), (lb_verdict::LB_STATELESS, Some(0)));
}

#[test]
fn root_backends_are_heard() {
    let balancer = Balancer::new(&settings(), 2);
    let heard = || {
        let backends = backend::list(&balancer.datapath.maps).expect("backends can be read");
        backends.iter().map(|backend| backend.heard_s).collect::<Vec<_>>()
    };
    assert_eq!(heard(), [None, None]);
    balancer.hear(1);
    balancer.send(Side::Backend, &esp_back(client(1, false), 7));
    assert!(matches!(heard()[..], [None, Some(0 | 1)]), "{:?}", heard());
}
