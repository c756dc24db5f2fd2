//! Clients whose addresses change under traffic: by themselves, which MOBIKE (RFC 4555) is for, or because a NAT has
//! forgotten them.

use crate::lab::{Lab, Ping, Tunnel, assert_none_lost, await_answers, await_that, places};
use crate::wire::{Seen, Wire};

/// How many pings a tunnel may lose while its client moves: it takes IKE that long to notice, and to ask.
const MOVE_GAP: u32 = 100;

/// The number of a tunnel's client.
fn number(tunnel: &Tunnel) -> u32 {
    tunnel.node["CL".len()..].parse().expect("clients have numbers")
}

/// A client leaves the NAT: it gets its address outside, and loses the one inside.
#[track_caller]
pub fn leave_nat(lab: &Lab, tunnel: &Tunnel) {
    let n = number(tunnel);
    change_address(lab, tunnel, &format!("192.0.{n}.1/32"), &format!("10.77.0.{n}/24"));
}

/// A client gets an address and loses another. The default route holds throughout, by the address that is there.
#[track_caller]
fn change_address(lab: &Lab, tunnel: &Tunnel, new: &str, old: &str) {
    let source = new.split('/').next().expect("there is a first part");
    lab.node(&tunnel.node).sh(&format!(
        "ip address add {new} dev eth1
         ip route replace default via 10.77.0.254 dev eth1 onlink src {source}
         ip address del {old} dev eth1
         ip route replace default via 10.77.0.254 dev eth1 onlink src {source}"
    ));
}

/// Waits until the backends know some tunnels by other addresses or ports than before, and returns all of them: each
/// is where it was.
#[track_caller]
fn await_new_endpoints(lab: &Lab, before: &[Tunnel], moving: usize) -> Vec<Tunnel> {
    let moved = |now: &[Tunnel]| {
        now.iter().zip(before).take(moving).all(|(now, before)| now.endpoint != before.endpoint)
    };
    await_that("the backends know the new addresses", || lab.tunnels_now().is_ok_and(|now| moved(&now)));
    let now = lab.tunnels();
    assert_eq!(places(&now), places(before));
    now
}

/// The IKE SAs are those of before, so nobody had to start anew.
#[track_caller]
fn assert_same_sas(now: &[Tunnel], before: &[Tunnel], seen: &Seen) {
    for (now, before) in now.iter().zip(before) {
        assert_eq!(now.initiator_spi, before.initiator_spi, "{now:?} was {before:?}");
    }
    assert_eq!(seen.ike.len(), before.len(), "there are other IKE SAs: {:?}", seen.ike);
}

#[track_caller]
fn assert_silence_is_short(pings: &[Ping]) {
    for ping in pings {
        assert!(ping.longest_gap() <= MOVE_GAP, "{} pings in a row were lost", ping.longest_gap());
    }
}

#[test]
fn root_lab_mobike_clients_stay_at_their_backends() {
    let lab = Lab::up(4, "");
    let wire = Wire::tap(&lab);
    let tunnels = lab.tunnels_up();
    let pings = lab.ping(&tunnels);
    await_answers(&pings, 5);

    // Two clients move within the NAT, out of it, and back into it; two stay.
    for tunnel in &tunnels[..2] {
        let n = number(tunnel);
        lab.node(&tunnel.node).sh("echo 1 >/proc/sys/net/ipv4/conf/all/promote_secondaries");
        change_address(&lab, tunnel, &format!("10.77.0.{}/24", 100 + n), &format!("10.77.0.{n}/24"));
    }
    let inside = await_new_endpoints(&lab, &tunnels, 2);
    await_answers(&pings, 20);

    for tunnel in &tunnels[..2] {
        let n = number(tunnel);
        change_address(&lab, tunnel, &format!("192.0.{n}.1/32"), &format!("10.77.0.{}/24", 100 + n));
    }
    let outside = await_new_endpoints(&lab, &inside, 2);
    await_answers(&pings, 20);
    assert_eq!(outside[0].endpoint, "192.0.1.1:4500");

    for tunnel in &tunnels[..2] {
        let n = number(tunnel);
        change_address(&lab, tunnel, &format!("10.77.0.{n}/24"), &format!("192.0.{n}.1/32"));
    }
    let back = await_new_endpoints(&lab, &outside, 2);
    await_answers(&pings, 20);

    assert_silence_is_short(&pings[..2]);
    assert_none_lost(&pings[2..]);
    lab.assert_nothing_dropped();
    let seen = wire.end();
    seen.assert_whole();
    assert_same_sas(&back, &tunnels, &seen);
}

/// The router forgets every client, and gives them other ports from then on.
#[track_caller]
fn rebind(lab: &Lab, ports: &str) {
    lab.node("NAT1").sh(&format!(
        "printf '%s\\n' 'flush chain ip lab hide' \
             'add rule ip lab hide oifname \"eth1\" ip saddr 10.77.0.0/16 meta l4proto udp masquerade to :{ports}' |
             nft -f -
         conntrack -F 2>&1"
    ));
}

#[test]
fn root_lab_clients_whose_nat_forgets_them_stay_at_their_backends() {
    let lab = Lab::up(8, "");
    let wire = Wire::tap(&lab);
    let tunnels = lab.tunnels_up();
    // A client notices that its NAT has forgotten it by what its backend says of its address when it asks whether the
    // backend is alive, which it does after two silent seconds: it compares that with the answer of the time before.
    await_that("all clients have asked once", || {
        let seen = wire.seen();
        tunnels.iter().all(|tunnel| seen.ike[&tunnel.initiator_spi].packets >= 3)
    });
    let pings = lab.ping(&tunnels);
    // Two seconds: ESP that comes from another port is known by its SPI, which the balancer notes once a second.
    await_answers(&pings, 40);
    let mut before = tunnels.clone();
    for ports in ["20000-29999", "30000-39999"] {
        rebind(&lab, ports);
        let now = await_new_endpoints(&lab, &before, tunnels.len());
        assert!(now.iter().all(|tunnel| tunnel.endpoint[10..] >= *ports), "{now:?}");
        await_answers(&pings, 20);
        before = now;
    }
    assert_silence_is_short(&pings);
    lab.assert_nothing_dropped();
    let seen = wire.end();
    seen.assert_whole();
    assert_same_sas(&before, &tunnels, &seen);
}
