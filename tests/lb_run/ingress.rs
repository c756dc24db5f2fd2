//! Several interfaces towards the clients: each client is answered where it was last seen.

use std::net::IpAddr;

use lb::kernel::interface::Interface;
use lb::kernel::xdp::{Link, Mode};
use lb::lb::datapath::Settings;
use lb::lb::interfaces;
use lb::lb::skeleton::types::{lb_interface, lb_role};

use crate::common::namespace::{Namespace, veth};
use crate::common::packet::{
    Ike, arp, client, echo_request, esp, esp_back, esp_in_udp, fragments, icmp, icmp_error, ike, ike_back,
    keepalive, vip,
};
use crate::families;
use crate::fixture::{Balancer, INITIATOR, RESPONDER, Side, Way, XDP_REDIRECT, settings};

/// A balancer with three client-side interfaces, in a network namespace of their own.
pub fn with_three(settings: Settings, work: impl FnOnce(&Balancer, [u32; 3]) + Send) {
    let namespace = Namespace::new("lb-ingress");
    for number in 0..3 {
        veth((&namespace, &format!("in{number}")), (&namespace, &format!("peer{number}")));
    }
    namespace.within(|| {
        let balancer = Balancer::new(&Settings { ingress_count: 3, ..settings }, 4);
        let mut links = Vec::new();
        let ingress = [0u16, 1, 2].map(|index| {
            let interface = Interface::find(&format!("in{index}")).expect("the interface is there");
            let entry = lb_interface {
                ifindex: interface.index,
                index,
                role: lb_role::LB_INGRESS,
                ..Default::default()
            };
            interfaces::insert(&balancer.datapath.maps, entry).expect("an interface can be set");
            balancer
                .datapath
                .maps
                .ingress_ports
                .set(&index.into(), &interface.index)
                .expect("a port can be set");
            // The kernel takes packets of a test run for those of an interface only where XDP is on.
            links.push(Link::attach(&balancer.datapath.client, &interface, Mode::Drv).expect("it attaches"));
            interface.index
        });
        work(&balancer, ingress);
    });
}

/// A ping of a backend's, which says nothing about its client.
pub fn echo_back(client: IpAddr) -> Vec<u8> {
    icmp(vip(client), client, if client.is_ipv6() { 128 } else { 8 }, &[0; 60])
}

#[test]
fn root_answers_go_where_the_client_was_last_seen() {
    with_three(settings(), |balancer, ingress| {
        families(|client, router| {
            balancer.sessions.flush();
            let answered = || balancer.way(Side::Backend, &esp_back(client, 7), None);
            let asked = || balancer.way(Side::Backend, &echo_back(client), None);
            let send = |frame: &[u8], index: usize| {
                assert_eq!(balancer.send_on(Side::Client, frame, Some(ingress[index])).action, XDP_REDIRECT);
            };
            assert_eq!(asked(), Some(Way::All), "nobody knows where the client is");
            send(&esp(client, 7), 1);
            assert_eq!(asked(), Some(Way::All), "what has no session is not remembered");
            assert_eq!(answered(), Some(Way::All), "ESP shows whose client it is, not where");
            assert_eq!(answered(), Some(Way::All));
            send(&esp(client, 7), 2);
            assert_eq!(answered(), Some(Way::Port(2)), "the client of a session is heard");
            balancer.sessions.flush();
            send(&ike(client, Ike::init(INITIATOR)), 1);
            assert_eq!(answered(), Some(Way::Port(1)));
            let answer = ike_back(client, Ike::init_response(INITIATOR, RESPONDER));
            assert_eq!(balancer.way(Side::Backend, &answer, None), Some(Way::Port(1)));
            send(&ike(client, Ike::auth(INITIATOR, RESPONDER)), 2);
            assert_eq!(balancer.sessions.established(), 1);
            assert_eq!(answered(), Some(Way::Port(2)));
            let later = fragments(&esp(client, 7), 32, 1, &[])[1].clone();
            for (index, frame) in
                [esp(client, 7), esp_in_udp(client, 4500, 7), keepalive(client), echo_request(client), later]
                    .into_iter()
                    .enumerate()
            {
                send(&frame, index % 3);
                assert_eq!(answered(), Some(Way::Port(index as u32 % 3)));
                let session = balancer.sessions.of(client).next().expect("a session");
                assert_eq!(usize::from(session.ingress), index % 3);
            }
            send(&esp(client, 7), 2);
            let kind = if client.is_ipv6() { 1 } else { 3 };
            send(&icmp_error(router, kind, &esp_back(client, 7), 40), 0);
            assert_eq!(answered(), Some(Way::Port(2)), "a router's error does not say where the client is");
            let stranger = balancer.way(Side::Backend, &esp_back(router, 7), None);
            assert_eq!(stranger, Some(Way::All));
        });
    });
}

#[test]
fn root_neighbours_of_backends_go_to_all_client_sides() {
    with_three(settings(), |balancer, _| {
        for frame in [arp(1, [0xff; 6]), arp(2, [2, 0, 0, 0, 0, 0xc1])] {
            assert_eq!(balancer.way(Side::Backend, &frame, None), Some(Way::All));
        }
    });
}

#[test]
fn root_each_client_has_an_ingress_of_its_own() {
    with_three(settings(), |balancer, ingress| {
        for number in 0..30 {
            let frame = ike(client(number, number % 2 == 1), Ike::init(INITIATOR));
            balancer.send_on(Side::Client, &frame, Some(ingress[number as usize % 3]));
        }
        for number in 0..30 {
            let way = balancer.way(Side::Backend, &esp_back(client(number, number % 2 == 1), 7), None);
            assert_eq!(way, Some(Way::Port(number % 3)));
        }
    });
}
