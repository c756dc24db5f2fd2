//! `lb attach --affinity tunnel` on the real thing: strongSwan clients behind one NAT address, four strongSwan backends.
//! Every packet that arrives at the backends is looked at: all of a tunnel's have to arrive at one.

#[path = "../common/mod.rs"]
mod common;

mod backends;
mod lab;
mod moves;
mod rekey;
mod starts;
mod wire;

use std::collections::BTreeSet;

use lab::{Lab, Tunnel, assert_none_lost, await_answers, await_that, places, spread};
use wire::{Seen, Wire};

/// What the wire says of a tunnel is what its ends say: its IKE and its ESP were seen at its backend, and nowhere else.
#[track_caller]
fn assert_seen_at_home(tunnels: &[Tunnel], seen: &Seen) {
    for tunnel in tunnels {
        let home = BTreeSet::from([tunnel.backend]);
        assert_eq!(seen.ike[&tunnel.initiator_spi].at, home, "{tunnel:?}");
        assert_eq!(seen.esp[&tunnel.esp_spi].at, home, "{tunnel:?}");
    }
}

/// `lb session list` has a row for each tunnel, that names its backend and the address and port it comes from.
#[track_caller]
fn assert_listed(lab: &Lab, tunnels: &[Tunnel]) {
    let sessions = lab.lb_json("session list");
    let sessions = sessions.as_array().expect("a list");
    for tunnel in tunnels {
        let spi = format!("{:#018x}", tunnel.initiator_spi);
        let row = sessions.iter().find(|session| session["spi"] == spi.as_str());
        let row = row.unwrap_or_else(|| panic!("no session of {tunnel:?} in {sessions:?}"));
        assert_eq!(row["backend"], format!("eth{}", tunnel.backend + 2), "{row}");
        assert_eq!(row["state"], "established", "{row}");
        assert_eq!(row["client"], tunnel.endpoint.as_str(), "{row}");
    }
}

#[track_caller]
fn clients_behind_one_address(clients: u32, mode: &str) -> (Lab, Wire, Vec<Tunnel>) {
    let lab = Lab::up(clients, &format!("--mode {mode}"));
    let wire = Wire::tap(&lab);
    let tunnels = lab.tunnels_up();
    lab.script(&["tunnels", "ping", "--at-once"]);
    assert_eq!(tunnels.len(), clients as usize);
    assert!(tunnels.iter().all(|tunnel| tunnel.endpoint.starts_with("192.0.0.1:")), "{tunnels:?}");
    (lab, wire, tunnels)
}

#[test]
fn root_lab_two_clients_behind_a_nat_have_two_backends() {
    for mode in ["drv", "skb"] {
        let (lab, wire, tunnels) = clients_behind_one_address(2, mode);
        assert_ne!(tunnels[0].backend, tunnels[1].backend, "{tunnels:?}");
        assert_listed(&lab, &tunnels);
        lab.assert_nothing_dropped();
        let seen = wire.end();
        seen.assert_whole();
        assert_seen_at_home(&tunnels, &seen);
    }
}

#[test]
fn root_lab_twenty_clients_behind_a_nat_use_all_backends_and_none_is_lost() {
    let (lab, wire, tunnels) = clients_behind_one_address(20, "drv");
    assert_eq!(spread(&tunnels), [5, 5, 5, 5], "{tunnels:?}");
    assert_seen_at_home(&tunnels, &wire.seen());
    assert_listed(&lab, &tunnels);

    // Rekeying of everything, begun by the clients and then by the backends, under traffic.
    let pings = lab.ping(&tunnels);
    await_answers(&pings, 1);
    let after = rekey::rekey_all(&lab);
    await_answers(&pings, 20);
    assert_eq!(wire.seen().ike.len(), 3 * tunnels.len(), "{:?}", wire.seen().ike);
    assert_seen_at_home(&after, &wire.seen());
    assert_listed(&lab, &after);
    assert_none_lost(&pings);

    // Four of them move out of the NAT.
    for tunnel in &tunnels[..4] {
        moves::leave_nat(&lab, tunnel);
    }
    await_that("the backends know the new addresses", || {
        lab.tunnels_now()
            .is_ok_and(|now| now[..4].iter().all(|tunnel| !tunnel.endpoint.starts_with("192.0.0.1:")))
    });
    await_answers(&pings, 20);
    assert_none_lost(&pings[4..]);
    assert_eq!(places(&lab.tunnels()), places(&tunnels));
    lab.assert_nothing_dropped();
    let seen = wire.end();
    seen.assert_whole();
    seen.assert_endpoints_whole();
}
