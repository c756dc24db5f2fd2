//! Backends that come and go under traffic, and tunnels that find their backend without any table.

use std::collections::BTreeSet;

use crate::lab::{BACKENDS, Lab, Tunnel, assert_none_lost, await_answers, await_that, places, spread};
use crate::rekey::rekey_all;
use crate::wire::Wire;

/// The backend that comes and goes here: its place, its name, and its node.
const GONE: usize = 1;
const GONE_NAME: &str = "eth3";
const GONE_NODE: &str = "TEIP2";

/// Tunnels by whether they are at the backend that goes, and those that are not.
fn divide(tunnels: &[Tunnel]) -> (Vec<&Tunnel>, Vec<&Tunnel>) {
    tunnels.iter().partition(|tunnel| tunnel.backend == GONE)
}

/// Waits until all tunnels are up and none of them at the backend that is gone.
#[track_caller]
fn await_elsewhere(lab: &Lab) -> Vec<Tunnel> {
    let elsewhere = |tunnels: &[Tunnel]| tunnels.iter().all(|tunnel| tunnel.backend != GONE);
    await_that("the tunnels are up elsewhere", || lab.tunnels_now().is_ok_and(|now| elsewhere(&now)));
    lab.tunnels()
}

/// The tunnels of other backends are where they were, and nothing of them was seen elsewhere.
#[track_caller]
fn assert_others_stayed(others: &[&Tunnel], now: &[Tunnel], wire: &Wire) {
    let now = places(now);
    let seen = wire.seen();
    for tunnel in others {
        assert_eq!(now[tunnel.name.as_str()], tunnel.backend, "{tunnel:?}");
        let home = BTreeSet::from([tunnel.backend]);
        assert_eq!(seen.ike[&tunnel.initiator_spi].at, home, "{tunnel:?}");
        assert_eq!(seen.esp[&tunnel.esp_spi].at, home, "{tunnel:?}");
    }
}

#[test]
fn root_lab_clients_of_a_backend_that_is_taken_down_start_elsewhere() {
    let lab = Lab::up(8, "--on-down rehash");
    let wire = Wire::tap(&lab);
    let tunnels = lab.tunnels_up();
    assert_eq!(spread(&tunnels), [2; BACKENDS], "{tunnels:?}");
    let (theirs, others) = divide(&tunnels);
    let pings = lab.ping(&tunnels);
    let undisturbed = lab.ping(others.iter().copied());
    await_answers(&pings, 5);

    lab.node(GONE_NODE).sh("kill -KILL $(cat /run/charon.pid)");
    lab.lb(&format!("backend down {GONE_NAME}"));
    let now = await_elsewhere(&lab);
    await_answers(&pings, 20);
    assert_others_stayed(&others, &now, &wire);
    assert_none_lost(&undisturbed);
    for tunnel in theirs {
        assert_ne!(places(&now)[tunnel.name.as_str()], GONE);
    }

    // What is down gets nothing, and what comes back takes nobody's tunnels.
    wire.forget();
    await_answers(&pings, 20);
    let at_gone = |wire: &Wire| wire.seen().endpoints.values().any(|flow| flow.at.contains(&GONE));
    assert!(!at_gone(&wire), "{:?}", wire.seen());
    lab.configure("strongswan", &[GONE_NODE], "");
    lab.lb(&format!("backend activate {GONE_NAME}"));
    await_answers(&pings, 20);
    assert!(!at_gone(&wire), "{:?}", wire.seen());
    assert_eq!(places(&lab.tunnels()), places(&now));
    let seen = wire.end();
    seen.assert_whole();
    seen.assert_endpoints_whole();
}

/// Nobody says that it is gone: the balancer finds that it answers nothing.
#[test]
fn root_lab_clients_of_a_backend_that_falls_silent_start_elsewhere() {
    let lab = Lab::up(4, "--on-down rehash --down-after 1s");
    let wire = Wire::tap(&lab);
    let tunnels = lab.tunnels_up();
    assert_eq!(spread(&tunnels), [1; BACKENDS], "{tunnels:?}");
    let (_, others) = divide(&tunnels);
    let pings = lab.ping(&tunnels);
    let undisturbed = lab.ping(others.iter().copied());
    await_answers(&pings, 5);

    // Everything that it would send is dropped, so it is not even there for ARP.
    lab.node(GONE_NODE).sh(
        "printf '%s\n' 'table netdev mute {' 'chain out { type filter hook egress device eth1 priority 0; policy drop; }' '}' |
            nft -f -",
    );
    let now = await_elsewhere(&lab);
    await_answers(&pings, 20);
    assert_others_stayed(&others, &now, &wire);
    assert_none_lost(&undisturbed);
}

#[test]
fn root_lab_new_tunnels_avoid_a_drained_backend_and_old_ones_stay() {
    let lab = Lab::up(12, "");
    let wire = Wire::tap(&lab);
    let first = lab.first_tunnels_up(8);
    assert_eq!(spread(&first), [2; BACKENDS], "{first:?}");
    let (theirs, others) = divide(&first);
    let pings = lab.ping(&first);
    let undisturbed = lab.ping(others.iter().copied());
    await_answers(&pings, 5);

    lab.lb(&format!("backend drain {GONE_NAME}"));
    // An old tunnel is rekeyed where it is.
    let name = &theirs[0].name;
    lab.node(&theirs[0].node).sh(&format!("swanctl --rekey --child {name} && swanctl --rekey --ike {name}"));
    let all = lab.tunnels_up();
    assert_eq!(places(&all[..8]), places(&first));
    assert!(all[8..].iter().all(|tunnel| tunnel.backend != GONE), "{all:?}");
    await_answers(&pings, 20);
    assert_none_lost(&pings);
    lab.assert_nothing_dropped();
    wire.seen().assert_whole();
    wire.seen().assert_endpoints_whole();

    // One that ends and begins again is a new one.
    drop(pings);
    let name = &theirs[0].name;
    lab.node(&theirs[0].node)
        .sh(&format!("swanctl --terminate --ike {name} && swanctl --initiate --child {name}"));
    let now = lab.tunnels();
    assert_ne!(places(&now)[name.as_str()], GONE);
    assert_eq!(places(&now)[theirs[1].name.as_str()], GONE);

    // With it, the other one's session goes, and its client finds that out by itself.
    let error = lab.lb_fails(&format!("backend remove {GONE_NAME}"));
    assert!(error.contains("--force"), "{error}");
    lab.lb(&format!("backend remove {GONE_NAME} --force"));
    let now = await_elsewhere(&lab);
    assert_others_stayed(&others, &now, &wire);
    assert_none_lost(&undisturbed);
    lab.script(&["tunnels", "ping", "--at-once"]);
}

/// Backends put their labels into the SPIs that they choose, so that a balancer without any memory finds them.
#[test]
fn root_lab_labelled_tunnels_outlive_the_tables() {
    let lab = Lab::up(8, "--spi-shard 4");
    for (number, node) in (2..).zip(lab.names("TEIP")) {
        lab.configure("strongswan", &[node], &lab.lb(&format!("backend strongswan eth{number}")));
    }
    let wire = Wire::tap(&lab);
    let tunnels = lab.tunnels_up();
    assert_eq!(spread(&tunnels), [2; BACKENDS], "{tunnels:?}");
    lab.script(&["tunnels", "ping", "--at-once"]);
    let label_of = |tunnel: &Tunnel| tunnel.esp_spi >> 28;
    let mut labels = [None; BACKENDS];
    for tunnel in &tunnels {
        let label = *labels[tunnel.backend].get_or_insert(label_of(tunnel));
        assert_eq!(label_of(tunnel), label, "{tunnels:?}");
    }
    assert_eq!(labels.iter().collect::<BTreeSet<_>>().len(), BACKENDS, "{labels:?}");

    lab.lb("detach");
    lab.attach("--spi-shard 4");
    assert_eq!(lab.lb_json("session list").as_array().map(Vec::len), Some(0));
    lab.script(&["tunnels", "ping", "--at-once"]);
    let now = lab.tunnels();
    assert_eq!(places(&now), places(&tunnels));
    for (now, before) in now.iter().zip(&tunnels) {
        assert_eq!((now.initiator_spi, now.esp_spi), (before.initiator_spi, before.esp_spi));
    }

    // They go on: rekeyed by either side, by way of this balancer that never saw them begin.
    let pings = lab.ping(&tunnels);
    await_answers(&pings, 5);
    assert_eq!(places(&rekey_all(&lab)), places(&tunnels));
    await_answers(&pings, 20);
    assert_none_lost(&pings);
    lab.assert_nothing_dropped();
    let labels = lab.lb_json("stats");
    assert_eq!(labels["labels"]["disagree"]["packets"], 0, "{labels}");
    let seen = wire.end();
    seen.assert_whole();
    seen.assert_endpoints_whole();
}
