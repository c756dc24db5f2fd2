//! A million spoofed IKE starts from random sources while ten tunnels carry traffic both ways: no tunnel loses a packet, and
//! none moves.

use std::thread;
use std::time::{Duration, Instant};

use crate::common::packet::{self, Ike};
use crate::lab::{Family, Network};
use crate::stream::{self, End, Receivers, Running};

/// Starts of a flood, by the family of their sources.
const STARTS: [(Family, u64); 2] = [(Family::V4, 900_000), (Family::V6, 100_000)];

/// Packets a second of the tunnels, both ways together.
const PACE: u64 = 20_000;

/// A start rate that no flood of this test reaches.
const UNLIMITED: &str = "--start-rate 10000000";

#[test]
fn root_a_flood_costs_no_tunnel_a_packet() {
    flood("", None, &numbered());
}

#[test]
fn root_a_flood_of_sessions_costs_no_tunnel_a_packet() {
    flood(UNLIMITED, None, &numbered());
}

#[test]
fn root_a_flood_of_sessions_in_a_small_table_costs_no_tunnel_a_packet() {
    flood(UNLIMITED, Some(16), &numbered());
}

#[test]
fn root_a_flood_costs_no_tunnel_behind_one_address_a_packet() {
    flood("--affinity tunnel", None, &behind_nat());
}

#[test]
fn root_a_flood_of_sessions_costs_no_tunnel_behind_one_address_a_packet() {
    flood(&format!("--affinity tunnel {UNLIMITED}"), None, &behind_nat());
}

#[test]
fn root_a_flood_of_sessions_in_a_small_table_costs_no_tunnel_behind_one_address_a_packet() {
    flood(&format!("--affinity tunnel {UNLIMITED}"), Some(16), &behind_nat());
}

fn numbered() -> Vec<End> {
    let of = |family| (1..=5).map(move |number| End::numbered(family, number));
    Family::BOTH.into_iter().flat_map(of).collect()
}

fn behind_nat() -> Vec<End> {
    (1..=10).map(End::behind_nat).collect()
}

fn flood(options: &str, max_sessions: Option<u32>, ends: &[End]) {
    let mut network = Network::new();
    network.lab.max_sessions = max_sessions.unwrap_or(131_072);
    network.attach(options);
    let backends = stream::establish(&network, ends);
    let (sender, places) = stream::both_ways(&network, ends, &backends);
    let running = Running::start(sender, Receivers::of(&network), PACE);
    let (since, mut made) = (Instant::now(), 0);
    for (family, count) in STARTS {
        let source = family.client(10);
        let start = packet::ike(source, Ike::init(0));
        let arrived = running.receivers().flood(&network.client, &start, count);
        // Its fate is the balancer's affair, but none may be lost on the way: then less would be shown than is said.
        assert_eq!(arrived, count, "starts are forwarded, whatever becomes of their sessions");
        made += count;
    }
    let took = since.elapsed();
    // What the flood has left behind must do no harm either.
    thread::sleep(Duration::from_millis(300));
    let (report, ..) = running.finish(0);
    println!(
        "{options} --max-sessions {}: {made} starts in {took:.1?}, and none of {} packets of tunnels lost; {} new, {} stateless",
        network.lab.max_sessions,
        report.sent,
        network.lab.verdict("new"),
        network.lab.verdict("stateless"),
    );
    // Each flow has come out where it did before, so no tunnel has moved.
    for (flow, place) in report.flows.iter().zip(&places) {
        assert_eq!(flow.whole(), *place);
    }
    assert_eq!(network.lab.status()["established"], ends.len(), "no start is proven");
    assert_eq!(network.lab.verdict("no_backend"), 0);
    assert_eq!(network.lab.verdict("malformed"), 0);
}
