//! What a request becomes: MACs and addresses swapped, type, TTL and checksums of a reply, and all else as it was.

use std::hash::Hasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use lb::echo::datapath::{ADDRESSES_MAX, View};
use lb::echo::skeleton::types::echo_verdict;
use siphasher::sip::SipHasher13;

use crate::common::packet::{IP_AT, Ping, poked};
use crate::fixture::{Expected, PEER4, PEER6, Responder, answered, families, view};

/// VLAN tags that are looked behind.
pub const TAGS: [&[u16]; 6] =
    [&[], &[0x8100], &[0x88a8], &[0x88a8, 0x8100], &[0x8100, 0x8100], &[0x8100, 0x88a8]];

/// Written out, so that the packet builder is not believed in everything.
#[test]
fn root_a_reply_is_what_rfc_792_and_rfc_4443_say() {
    let responder = Responder::new(false);
    let request = [
        &[0x02, 0, 0, 0, 0, 0xfe, 0x02, 0, 0, 0, 0, 0xc1, 0x08, 0x00][..],
        &[0x45, 0xb8, 0x00, 0x20, 0xab, 0xcd, 0x40, 0x00, 0x39, 0x01, 0x81, 0x55],
        &[10, 0, 0, 2, 10, 0, 0, 1],
        &[8, 0, 0xf7, 0x5f, 0x00, 0x07, 0x00, 0x09, 0x00, 0x01, 0x00, 0x8f],
    ];
    let reply = [
        &[0x02, 0, 0, 0, 0, 0xc1, 0x02, 0, 0, 0, 0, 0xfe, 0x08, 0x00][..],
        &[0x45, 0xb8, 0x00, 0x20, 0xab, 0xcd, 0x40, 0x00, 0x3d, 0x01, 0x7d, 0x55],
        &[10, 0, 0, 1, 10, 0, 0, 2],
        &[0, 0, 0xff, 0x5f, 0x00, 0x07, 0x00, 0x09, 0x00, 0x01, 0x00, 0x8f],
    ];
    assert_eq!(responder.run(&request.concat()).packet, reply.concat());

    let own = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let peer = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    let request = [
        &[0x02, 0, 0, 0, 0, 0xfe, 0x02, 0, 0, 0, 0, 0xc1, 0x86, 0xdd][..],
        &[0x6b, 0x81, 0x23, 0x45, 0x00, 0x0c, 0x3a, 0x39],
        &peer,
        &own,
        &[128, 0, 0x85, 0x14, 0x00, 0x07, 0x00, 0x09, 0x00, 0x01, 0x00, 0x8f],
    ];
    let reply = [
        &[0x02, 0, 0, 0, 0, 0xc1, 0x02, 0, 0, 0, 0, 0xfe, 0x86, 0xdd][..],
        &[0x6b, 0x81, 0x23, 0x45, 0x00, 0x0c, 0x3a, 0x3e],
        &own,
        &peer,
        &[129, 0, 0x84, 0x14, 0x00, 0x07, 0x00, 0x09, 0x00, 0x01, 0x00, 0x8f],
    ];
    assert_eq!(responder.run(&request.concat()).packet, reply.concat());
}

#[test]
fn root_requests_of_every_size_and_tagging_are_answered() {
    let responder = Responder::new(false);
    families(|request| {
        for tags in TAGS {
            // 1472 fill an MTU of 1500 with IPv4, 1452 with IPv6; 1492 make the longest message whose checksum is checked.
            for bytes in (0..=64).chain([127, 128, 999, 1452, 1471, 1472, 1473, 1491, 1492, 1493, 1494]) {
                let payload = (0..bytes).map(|byte| (byte * 7) as u8).collect();
                let request = Ping { tags: tags.to_vec(), payload, ..request.clone() };
                responder.answers(format!("{bytes} bytes behind tags {tags:04x?}"), &request);
            }
        }
    });
}

#[test]
fn root_tags_are_sent_back_whatever_they_say() {
    let responder = Responder::new(false);
    families(|request| {
        for tags in &TAGS[1..] {
            let request = Ping { tags: tags.to_vec(), ..request.clone() };
            // Priority and VLAN, from a priority tag alone to the last number.
            for control in [0u16, 1, 0x0fff, 0x1000, 0xe000, 0xffff] {
                let poke = |frame| poked(frame, IP_AT, &control.to_be_bytes());
                let mut fixture = answered(format!("tag {control:#06x}"), &request);
                fixture.frame = poke(fixture.frame);
                if let Expected::Reply(reply) = &mut fixture.expected {
                    *reply = poke(reply.clone());
                }
                responder.check(&fixture);
            }
        }
    });
}

#[test]
fn root_all_other_fields_stay_as_they_are() {
    let responder = Responder::new(false);
    families(|request| {
        for value in [0, 1, 0x00ff, 0x0800, 0x7fff, 0x8000, 0xff00, 0xfffe, 0xffff] {
            responder.answers("an identifier", &Ping { identifier: value, ..request.clone() });
            responder.answers("a sequence number", &Ping { sequence: value, ..request.clone() });
            responder.answers("an identification or flow label", &Ping { label: value, ..request.clone() });
        }
        for service in 0..=255 {
            responder.answers("a type of service or traffic class", &Ping { service, ..request.clone() });
        }
    });
}

#[test]
fn root_replies_have_the_ttl_of_this_host_whatever_the_request_had() {
    let responder = Responder::new(false);
    for ttl in [1, 64, 255] {
        let own = View { ttl, hop_limit: 255 - ttl, ..view() };
        responder.set(&own);
        families(|request| {
            for theirs in 0..=255 {
                let request = Ping { ttl: theirs, label: u16::from(theirs) * 251, ..request.clone() };
                let ours = if request.source.is_ipv6() { own.hop_limit } else { own.ttl };
                let reply = request.reply(ours).frame();
                assert_eq!(responder.run(&request.frame()).packet, reply, "{theirs} to {ours}");
            }
        });
    }
}

#[test]
fn root_padding_of_ethernet_is_no_part_of_the_request() {
    let responder = Responder::new(false);
    families(|request| {
        for (bytes, trailer) in
            [(0, vec![0; 18]), (1, vec![0; 17]), (5, vec![0xee; 13]), (56, vec![0xff; 900])]
        {
            for tags in TAGS {
                let request = Ping {
                    tags: tags.to_vec(),
                    payload: vec![0x5a; bytes],
                    trailer: trailer.clone(),
                    ..request.clone()
                };
                responder.answers(format!("{bytes} bytes, and {} of padding", trailer.len()), &request);
            }
        }
    });
}

#[test]
fn root_every_address_of_a_full_view_is_answered_for_and_no_other() {
    // Addresses in a row hardly ever meet in a bucket, scattered ones do.
    let address = |number: u64| -> IpAddr {
        let mut hasher = SipHasher13::new();
        hasher.write_u64(number);
        let bits = hasher.finish();
        if number % 2 == 0 {
            Ipv4Addr::from_bits(0x0b00_0000 | bits as u32 & 0x00ff_ffff).into()
        } else {
            Ipv6Addr::from_bits((0xfd00_u128 << 112) | u128::from(bits)).into()
        }
    };
    let addresses: Vec<IpAddr> = (0..ADDRESSES_MAX as u64).map(address).collect();
    let view = View { addresses: addresses.clone(), broadcasts: Vec::new(), ..view() };
    let responder = Responder::with(false, Duration::ZERO, &view);
    let views = responder.datapath.maps.views.get(&0).expect("it can be read").expect("a view is set");
    let encoded = views.views[views.current as usize];
    let full = encoded.buckets.iter().any(|bucket| bucket.slots.iter().all(|slot| slot.kind != 0));
    assert!(full, "no bucket is full, so its last place is not looked at");
    for address in &addresses {
        let peer = if address.is_ipv6() { PEER6.into() } else { PEER4.into() };
        responder.answers(format!("a request to {address}"), &Ping::request(peer, *address));
        let next: IpAddr = match address {
            IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() ^ 1).into(),
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() ^ 1 << 64).into(),
        };
        assert!(!addresses.contains(&next));
        let stranger = Ping::request(peer, next).frame();
        responder.passes(format!("a request to {next}"), stranger, echo_verdict::ECHO_OTHER_ADDRESS);
    }
}
