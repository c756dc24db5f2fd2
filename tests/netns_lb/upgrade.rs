//! Upgrades in place while tens of thousands of packets a second go through: none is lost, repeated or overtaken, and no
//! session moves.

use std::thread;
use std::time::{Duration, Instant};

use crate::lab::{Family, Network};
use crate::stream::{self, End, Receivers, Report, Running};

/// Packets of ESP a second that are sent, and those that an upgrade has to bear.
const PACE: u64 = 60_000;
const WANTED: f64 = 50_000.0;

/// How long a stream goes on with nothing happening: what is lost then is the test's own.
const CONTROL: Duration = Duration::from_secs(1);

/// Upgrades of one stream, and the pause between two.
const UPGRADES: usize = 8;
const PAUSE: Duration = Duration::from_millis(150);

/// How often all of it is tried on a machine that is too busy for the pace. No try may lose anything.
const ROUNDS: usize = 3;

#[test]
fn root_upgrades_in_drv_mode_lose_nothing() {
    upgrades_lose_nothing("--mode drv", &numbered());
}

#[test]
fn root_upgrades_in_skb_mode_lose_nothing() {
    upgrades_lose_nothing("--mode skb", &numbered());
}

#[test]
fn root_upgrades_lose_nothing_of_tunnels_behind_one_address() {
    let ends: Vec<End> = (1..=10).map(End::behind_nat).collect();
    upgrades_lose_nothing("--mode drv --affinity tunnel", &ends);
}

/// Clients of both families, with an address each.
fn numbered() -> Vec<End> {
    let of = |family| (1..=5).map(move |number| End::numbered(family, number));
    Family::BOTH.into_iter().flat_map(of).collect()
}

fn upgrades_lose_nothing(options: &str, ends: &[End]) {
    let network = Network::new();
    network.attach(options);
    let backends = stream::establish(&network, ends);

    let (sender, places) = stream::both_ways(&network, ends, &backends);
    let running = Running::start(sender, Receivers::of(&network), PACE);
    thread::sleep(CONTROL);
    let (control, sender, receivers) = running.finish(0);
    assert_whole(&control, &places);

    let before = network.lab.sessions();
    let (mut control, mut ends_of_stream) = (control, Some((sender, receivers)));
    for round in 1..=ROUNDS {
        let programs = network.lab.program_ids();
        let (sender, receivers) = ends_of_stream.take().expect("each round gives them back");
        let running = Running::start(sender, receivers, PACE);
        let start = Instant::now();
        for number in 1..=UPGRADES {
            // A new rate is seen in the status: the programs have been replaced indeed.
            let rate = 20_000 + round * UPGRADES + number;
            network.attach(&format!("--replace --start-rate {rate} {options}"));
            assert_eq!(network.lab.status()["start_rate"], rate);
            thread::sleep(PAUSE);
        }
        let elapsed = start.elapsed();
        let (report, sender, receivers) = running.finish(control.sent);
        assert_whole(&report, &places);
        println!(
            "{options}: {UPGRADES} upgrades in {elapsed:.1?} lost none of {} packets, {:.0} a second, {:.0} without upgrades",
            report.sent - control.sent,
            report.rate,
            control.rate
        );
        assert!(
            network.lab.program_ids().iter().all(|id| !programs.contains(id)),
            "no program is an old one"
        );
        if report.rate >= WANTED {
            break;
        }
        // A machine that is slow, or busy with other tests, says nothing of upgrades.
        let running = Running::start(sender, receivers, PACE);
        thread::sleep(CONTROL);
        let (again, sender, receivers) = running.finish(report.sent);
        assert_whole(&again, &places);
        let is_able = control.rate.min(again.rate) >= WANTED;
        assert!(round < ROUNDS || !is_able, "only {:.0} packets a second", report.rate);
        (control, ends_of_stream) = (again, Some((sender, receivers)));
    }

    let placed = |sessions: &[serde_json::Value]| {
        let mut rows: Vec<String> = sessions
            .iter()
            .map(|row| format!("{} {} {} {}", row["client"], row["spi"], row["backend"], row["state"]))
            .collect();
        rows.sort();
        rows
    };
    assert_eq!(placed(&network.lab.sessions()), placed(&before), "no session moves");
    assert_eq!(network.lab.verdict("stateless"), 0);
    assert_eq!(network.lab.verdict("no_backend"), 0);
}

#[track_caller]
fn assert_whole(report: &Report, places: &[usize]) {
    for (flow, place) in report.flows.iter().zip(places) {
        assert_eq!(flow.whole(), *place);
    }
}
