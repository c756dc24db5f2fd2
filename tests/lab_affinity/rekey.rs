//! SAs that are replaced by others under traffic: rekeyed by either side, or authenticated anew.

use crate::lab::{Lab, Ping, Tunnel, assert_none_lost, await_answers, await_that, places};
use crate::wire::{Seen, Wire};

/// Has everything rekeyed, step by step: IKE and then ESP, by all clients and then by all backends. Each tunnel has
/// had three IKE SAs and three pairs of ESP SAs then, and the wire has seen all of them.
#[track_caller]
pub fn rekey_all(lab: &Lab) -> Vec<Tunnel> {
    let mut tunnels = lab.tunnels();
    let clients: Vec<(String, String)> =
        tunnels.iter().map(|tunnel| (tunnel.node.clone(), tunnel.name.clone())).collect();
    let backends: Vec<(String, String)> =
        lab.names("TEIP").iter().map(|node| ((*node).to_owned(), "vpn-concentrator".to_owned())).collect();
    for side in [clients, backends] {
        for sa in ["ike", "child"] {
            for (node, name) in &side {
                lab.node(node).sh(&format!("swanctl --rekey --{sa} {name}"));
            }
            let mut now = Vec::new();
            await_that("everything is rekeyed", || {
                now = lab.tunnels_now().unwrap_or_default();
                now.len() == tunnels.len()
                    && now.iter().zip(&tunnels).all(|(now, before)| match sa {
                        "ike" => now.initiator_spi != before.initiator_spi,
                        _ => now.esp_spi != before.esp_spi,
                    })
            });
            assert_eq!(places(&now), places(&tunnels));
            tunnels = now;
        }
    }
    tunnels
}

/// Settings of a connection whose SAs have short lives.
const SHORT: &str = "rekey_time = 3s
    rand_time = 0s
    over_time = 30s
    children {
        NAME {
            rekey_time = 2s
            rand_time = 0s
            life_time = 30s
        }
    }";

/// Gives clients' own tunnels short lives.
fn short_at_client(lab: &Lab, number: u32) {
    let name = format!("tun{number:02}");
    let settings = format!("connections {{ {name} {{ {} }} }}", SHORT.replace("NAME", &name));
    lab.configure("swanctl", &[&format!("CL{number:02}")], &settings);
}

/// Gives the tunnels of clients short lives at the backends.
fn short_at_backends(lab: &Lab, numbers: impl Iterator<Item = u32>) {
    let connections = numbers.map(|number| {
        let short = SHORT.replace("NAME", "vpn-concentrator");
        format!(
            "short{number:02} : connections.vpn-concentrator {{ remote {{ id = tun{number:02} }} {short} }}\n"
        )
    });
    let settings = format!("connections {{\n{}}}", connections.collect::<String>());
    lab.configure("swanctl", &lab.names("TEIP"), &settings);
}

/// The IKE SAs that were seen from a tunnel's endpoint: those that the client began, and those that the backend began.
fn generations(seen: &Seen, tunnel: &Tunnel) -> (usize, usize) {
    let of_endpoint = |ike: &&crate::wire::Ike| {
        ike.from.iter().any(|(address, port)| format!("{address}:{port}") == tunnel.endpoint)
    };
    let (by_client, by_backend): (Vec<_>, Vec<_>) =
        seen.ike.values().filter(of_endpoint).partition(|ike| ike.by_client);
    (by_client.len(), by_backend.len())
}

/// Nothing was lost on the way, and every tunnel is still where it was, with all that it has sent since.
fn assert_all_stayed(lab: &Lab, wire: Wire, tunnels: &[Tunnel], pings: &[Ping]) {
    await_answers(pings, 20);
    assert_none_lost(pings);
    assert_eq!(places(&lab.tunnels()), places(tunnels));
    lab.assert_nothing_dropped();
    let seen = wire.end();
    seen.assert_whole();
    seen.assert_endpoints_whole();
}

#[test]
fn root_lab_tunnels_rekeyed_by_either_side_stay_at_their_backends() {
    let lab = Lab::up(6, "");
    // Two clients rekey, two are rekeyed by their backends, and two have it both ways, sometimes at the same moment.
    [1, 2, 5, 6].into_iter().for_each(|number| short_at_client(&lab, number));
    short_at_backends(&lab, 3..=6);
    let wire = Wire::tap(&lab);
    let tunnels = lab.tunnels_up();
    let pings = lab.ping(&tunnels);
    await_that("all SAs are rekeyed a few times", || {
        let seen = wire.seen();
        let generations: Vec<_> = tunnels.iter().map(|tunnel| generations(&seen, tunnel)).collect();
        generations[..2].iter().all(|(by_client, _)| *by_client >= 4)
            && generations[2..4].iter().all(|(_, by_backend)| *by_backend >= 3)
            && generations[4..].iter().all(|(by_client, by_backend)| by_client + by_backend >= 4)
            && seen.esp.len() >= 5 * tunnels.len()
    });
    assert_all_stayed(&lab, wire, &tunnels, &pings);
}

/// A client that authenticates anew begins an IKE SA as if it were another client, beside the one that it has: from the
/// same endpoint, so that its ESP in UDP could not be told from that of the first.
#[test]
fn root_lab_tunnels_authenticated_anew_stay_at_their_backends() {
    let lab = Lab::up(4, "");
    lab.configure("strongswan", &lab.names("CL"), "charon { make_before_break = yes }");
    for number in 1..=4 {
        let settings = format!(
            "connections {{ tun{number:02} {{ reauth_time = 3s\n over_time = 30s\n rand_time = 0s }} }}"
        );
        lab.configure("swanctl", &[&format!("CL{number:02}")], &settings);
    }
    let wire = Wire::tap(&lab);
    let tunnels = lab.tunnels_up();
    let pings = lab.ping(&tunnels);
    await_that("all tunnels are authenticated anew a few times", || {
        let seen = wire.seen();
        tunnels.iter().all(|tunnel| generations(&seen, tunnel).0 >= 4)
    });
    assert_all_stayed(&lab, wire, &tunnels, &pings);
}
