//! IKE on both its ports, and the keepalives beside it.

use lb::lb::skeleton::types::lb_verdict;

use crate::common::packet::{
    Ike, backend_mac, ike, ike_back, ike_nat, keepalive, padded, sent_by, to_4500, udp, vip,
};
use crate::families;
use crate::fixture::Expected::{Dropped, Hash, New, Session};
use crate::fixture::{Balancer, INITIATOR, MALFORMED, OTHER, RESPONDER, Side, from_client, settings};

const KEEPALIVE_DROPPED: crate::fixture::Expected = Dropped(lb_verdict::LB_KEEPALIVE_DROPPED);

/// An IKEv1 main mode or aggressive mode message (exchange 2 or 4).
fn v1(exchange: u8, responder_spi: u64) -> Ike {
    Ike { version: 0x10, exchange, flags: 0, responder_spi, ..Ike::init(INITIATOR) }
}

#[test]
fn root_starts_get_the_next_backend_in_turn() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, _| {
        let start = Ike::init(INITIATOR);
        let from_port = |port| udp((client, port), (vip(client), 500), &start.bytes());
        for (description, frame) in [
            ("IKE_SA_INIT", ike(client, start)),
            ("IKE_SA_INIT without any payload", ike(client, Ike { extra: 0, ..start })),
            ("IKE_SA_INIT of a client behind NAT, which is on any port", from_port(61234)),
            ("IKE_SA_INIT on port 4500", ike_nat(client, 4500, start)),
            ("IKE_SA_INIT on port 4500 from any port", ike_nat(client, 1024, start)),
            ("IKEv1 main mode", ike(client, v1(2, 0))),
            ("IKEv1 aggressive mode", ike(client, v1(4, 0))),
            ("IKEv1 main mode on port 4500", ike_nat(client, 4500, v1(2, 0))),
        ] {
            balancer.check(&from_client(description, frame, New(client)));
        }
    });
}

#[test]
fn root_starts_of_a_known_client_follow_its_session() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, other| {
        let again = ike(client, Ike::init(INITIATOR));
        let anew = ike(client, Ike::init(99));
        for (description, frame) in [
            ("a retransmitted start", again.clone()),
            ("a start with another SPI", anew.clone()),
            ("a start on the other port", ike_nat(client, 4500, Ike::init(INITIATOR))),
            ("an IKEv1 start", ike(client, v1(2, 0))),
        ] {
            balancer.check(&from_client(description, frame.clone(), Session(client)).with_start(client));
            balancer.check(&from_client(description, frame, Session(client)).with_established(client));
        }
        balancer.check(&from_client("another client's start", again, New(client)).with_start(other));
    });
}

#[test]
fn root_ike_that_starts_nothing_goes_by_session_or_else_by_hash() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, other| {
        let init = Ike::init(INITIATOR);
        let response = Ike::init_response(INITIATOR, 0);
        for (description, message) in [
            ("IKE_AUTH", Ike::auth(INITIATOR, 9)),
            ("the cookie demand of a responder, which has no SPI yet", response),
            ("IKE_SA_INIT without an initiator SPI", Ike::init(0)),
            ("IKE_SA_INIT with both SPIs", Ike { responder_spi: 9, ..init }),
            ("a responder SPI alone", Ike::auth(0, 9)),
            ("IKE_AUTH without a responder SPI", Ike::auth(INITIATOR, 0)),
            ("INFORMATIONAL without a responder SPI", Ike { exchange: 37, ..init }),
            ("IKE_SESSION_RESUME, which this balancer does not know", Ike { exchange: 38, ..init }),
            ("IKE_SA_INIT of a version that is not known yet", Ike { version: 0x30, ..init }),
            ("a private exchange", Ike { exchange: 240, ..init }),
            ("IKEv1 main mode with both cookies", v1(2, 9)),
            ("IKEv1 without an initiator cookie", Ike { initiator_spi: 0, ..v1(2, 0) }),
        ] {
            for frame in [ike(client, message), ike_nat(client, 61234, message)] {
                balancer.check(&from_client(description, frame.clone(), Hash(client)));
                balancer
                    .check(&from_client(description, frame.clone(), Hash(client)).with_established(other));
                balancer.check(&from_client(description, frame.clone(), Session(client)).with_start(client));
                balancer.check(&from_client(description, frame, Session(client)).with_established(client));
            }
        }
    });
}

#[test]
fn root_a_proof_establishes_a_session() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, _| {
        let auth = Ike::auth(INITIATOR, RESPONDER);
        for (description, frame) in [
            ("IKE_AUTH with the backend's SPI", ike(client, auth)),
            ("the same on port 4500", ike_nat(client, 4500, auth)),
            ("the same from any port", ike_nat(client, 1024, auth)),
        ] {
            balancer
                .check(&from_client(description, frame, Session(client)).with_answer(client).establishes());
        }
        for (description, message) in [
            ("a responder SPI that the backend did not choose", Ike::auth(INITIATOR, RESPONDER + 1)),
            ("an initiator SPI that the backend did not answer", Ike::auth(INITIATOR + 1, RESPONDER)),
            ("a retransmitted start", Ike::init(INITIATOR)),
            ("no SPI of the client", Ike::auth(0, RESPONDER)),
        ] {
            let fixture = from_client(description, ike(client, message), Session(client));
            balancer.check(&fixture.with_answer(client));
        }
        let fixture =
            from_client("an answer to another start", ike(client, Ike::auth(99, RESPONDER)), Session(client));
        balancer.check(&fixture.with_answer(client).after(Side::Client, ike(client, Ike::init(99))));

        // Sessions are placed one further than the hash.
        let own = backend_mac((balancer.hashed(client) as u8 + 1) % 4);
        let other = backend_mac(balancer.hashed(client) as u8);
        let answer = ike_back(client, Ike::init_response(INITIATOR, RESPONDER));
        let answered_by = |description, mac| {
            let fixture = from_client(description, ike(client, auth), Session(client)).with_start(client);
            fixture.after(Side::Backend, sent_by(answer.clone(), mac))
        };
        balancer.check(&answered_by("an answer of the session's own backend", own).establishes());
        balancer.check(&answered_by("an answer of another backend", other));

        // An answer that repeats what anyone may have asked is no choice of the backend's.
        let forged = Ike::auth(INITIATOR, 9);
        for complaint in [
            Ike { next_payload: 41, flags: 0x20, ..forged },
            Ike { next_payload: 41, flags: 0x20, exchange: 34, ..forged },
            Ike { next_payload: 11, exchange: 5, flags: 0, version: 0x10, ..forged },
        ] {
            let complaint = ike_back(client, complaint);
            let fixture = from_client("the SPIs of an INVALID_IKE_SPI", ike(client, forged), Session(client));
            balancer.check(&fixture.with_start(client).after(Side::Backend, complaint.clone()));
            let fixture = from_client("the SPIs of an answer", ike(client, auth), Session(client));
            balancer.check(&fixture.with_answer(client).after(Side::Backend, complaint).establishes());
        }
        balancer.check(
            &from_client("a proof without an answer", ike(client, auth), Session(client)).with_start(client),
        );
    });
}

#[test]
fn root_ike_shorter_than_its_header_is_malformed() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, _| {
        let header = Ike { extra: 0, ..Ike::init(INITIATOR) }.bytes();
        for length in [0, 1, 8, 27] {
            let to_500 = udp((client, 500), (vip(client), 500), &header[..length]);
            let description = format!("{length} bytes of IKE");
            balancer.check(&from_client(&description, to_500.clone(), MALFORMED));
            balancer.check(&from_client(&description, padded(to_500), MALFORMED).with_established(client));
            let marked = to_4500(client, &[&[0; 4], &header[..length]].concat());
            balancer.check(&from_client(format!("{description} on port 4500"), marked, MALFORMED));
        }
        let keepalive = udp((client, 500), (vip(client), 500), &[0xff]);
        balancer.check(&from_client("a keepalive on port 500", padded(keepalive), MALFORMED));
    });
}

#[test]
fn root_keepalives_live_by_a_session() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, other| {
        let short = to_4500(client, &[0xff]);
        for frame in [keepalive(client), short.clone(), [&short[..], &[0xff; 9]].concat()] {
            balancer.check(&from_client("a keepalive of nobody", frame.clone(), KEEPALIVE_DROPPED));
            let of_other = from_client("a keepalive of another", frame.clone(), KEEPALIVE_DROPPED);
            balancer.check(&of_other.with_established(other));
            let embryonic =
                from_client("a keepalive of an embryonic session", frame.clone(), Session(client));
            balancer.check(&embryonic.with_start(client));
            let established = from_client("a keepalive", frame, Session(client));
            balancer.check(&established.with_established(client));
        }
    });
}

#[test]
fn root_payloads_on_port_4500_that_are_nothing_are_malformed() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, _| {
        for payload in [
            &[][..],
            &[0],
            &[0xfe],
            &[0xff, 0xff],
            &[0, 0],
            &[1, 2, 3],
            &[0xff; 3],
            &[0; 3],
            &[0; 4],
            &[1; 4],
            &[0xff; 4],
            &[1; 7],
        ] {
            let description = format!("{payload:02x?} on port 4500");
            let frame = to_4500(client, payload);
            balancer.check(&from_client(&description, frame.clone(), MALFORMED));
            // Ethernet's padding is no part of the payload.
            balancer.check(&from_client(&description, padded(frame.clone()), MALFORMED));
            balancer.check(&from_client(&description, frame, MALFORMED).with_established(client));
        }
    });
}

#[test]
fn root_other_ports_are_no_ike() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, _| {
        for port in [0, 53, 499, 501, 4499, 4501, 65535] {
            // Clients send to the well-known ports; that a packet comes from one says nothing.
            let frame = udp((client, 500), (vip(client), port), &Ike::init(INITIATOR).bytes());
            balancer.check(&from_client(format!("UDP port {port}"), frame, OTHER));
        }
    });
}
