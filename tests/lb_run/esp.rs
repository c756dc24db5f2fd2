//! Data of tunnels: ESP, AH, and ESP in UDP.

use etherparse::IpNumber;

use crate::common::packet::{ah, esp, esp_bytes, esp_in_udp, padded, raw, to_4500, vip};
use crate::families;
use crate::fixture::Expected::{Hash, Session};
use crate::fixture::{Balancer, MALFORMED, from_client, settings};

#[test]
fn root_data_goes_by_session_or_else_by_hash() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, other| {
        for (description, frame) in [
            ("ESP", esp(client, 7)),
            ("ESP of 8 bytes", raw(client, vip(client), IpNumber(50), &esp_bytes(7)[..8])),
            ("AH", ah(client, 7)),
            ("AH of 12 bytes", raw(client, vip(client), IpNumber(51), &[1; 12])),
            ("ESP in UDP", esp_in_udp(client, 4500, 7)),
            ("ESP in UDP from any port", esp_in_udp(client, 1024, 7)),
            ("ESP in UDP of 8 bytes", to_4500(client, &esp_bytes(7)[..8])),
            ("ESP in UDP with SPI 0xffffffff", esp_in_udp(client, 4500, u32::MAX)),
            ("ESP in UDP whose SPI begins with zeros", esp_in_udp(client, 4500, 1)),
        ] {
            balancer.check(&from_client(description, frame.clone(), Hash(client)));
            balancer.check(&from_client(description, padded(frame.clone()), Hash(client)));
            balancer.check(&from_client(description, frame.clone(), Hash(client)).with_established(other));
            balancer.check(&from_client(description, frame.clone(), Session(client)).with_start(client));
            // That data comes proves nothing: anyone can send it.
            balancer.check(&from_client(description, frame.clone(), Session(client)).with_answer(client));
            balancer.check(&from_client(description, frame, Session(client)).with_established(client));
        }
    });
}

#[test]
fn root_data_without_its_header_is_malformed() {
    let balancer = Balancer::new(&settings(), 4);
    families(|client, _| {
        for (protocol, name, least) in [(50, "ESP", 8), (51, "AH", 12)] {
            for length in [0, 1, least - 1] {
                let frame = raw(client, vip(client), IpNumber(protocol), &vec![1; length]);
                let description = format!("{length} bytes of {name}");
                balancer.check(&from_client(&description, frame.clone(), MALFORMED));
                balancer.check(&from_client(&description, padded(frame), MALFORMED).with_established(client));
            }
        }
    });
}
