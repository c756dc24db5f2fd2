//! What a packet costs with more backends, and while starts flood the session table.

use std::mem::MaybeUninit;

use ::lb::lb::datapath::{Affinity, Policy, Settings};
use ::lb::lb::skeleton::types::lb_verdict;

use crate::many_clients::{Templates, Walker};
use crate::{Base, Bench, Line, balancer, count, median, nanoseconds};

/// How many clients have a session, in the tables of this file: as many as the caches hold with all that they point to.
const CLIENTS: u32 = 1_000;

/// The floors, side by side with what a round of each table measures.
struct Floors {
    empty: Vec<f64>,
    redirect: Vec<f64>,
}

impl Floors {
    fn new() -> Self {
        Self { empty: Vec::new(), redirect: Vec::new() }
    }

    /// Measures both, and returns what the walk adds to all that is measured through it.
    fn measure(&mut self, bench: &Bench, walker: &mut Walker<'_>, templates: &Templates) -> f64 {
        let frame = templates.esp.frame();
        let empty = nanoseconds(&bench.empty, frame, crate::REPEAT);
        self.empty.push(empty);
        self.redirect.push(nanoseconds(&bench.redirect, frame, crate::REPEAT));
        walker.random(&bench.empty, &templates.init, CLIENTS) - empty
    }

    fn lines(self) -> Vec<Line> {
        vec![
            Line::new("empty program", median(self.empty), None),
            Line::new("bare bpf_redirect_map", median(self.redirect), None),
        ]
    }
}

/// The cost against the number of backends.
pub fn backends(bench: &Bench) {
    let mut storage = MaybeUninit::uninit();
    let mut walker = Walker::new(&mut storage, false);
    let templates = Templates::new(Affinity::Address, false);
    let numbers = [4, 64, 512];
    // Clients beyond those that have a session make new ones in turn.
    let new_per_round = 50_000 / bench.rounds as u32;
    let loaded = [Policy::RoundRobin, Policy::Maglev].map(|policy| {
        numbers.map(|number| {
            let settings =
                Settings { policy, max_sessions: 200_000, start_rate: 10_000_000, ..Settings::default() };
            let loaded = balancer(&settings, number);
            walker.establish(&loaded, &templates, CLIENTS);
            loaded
        })
    });
    let [in_turn, by_hash] = &loaded;
    const KINDS: [&str; 5] =
        ["established ESP", "established IKE", "unknown ESP", "new, round-robin", "new, maglev"];
    let mut times = vec![vec![Vec::new(); numbers.len()]; KINDS.len()];
    let mut floors = Floors::new();
    let mut next_new = CLIENTS;
    for _ in 0..bench.rounds {
        let walk = floors.measure(bench, &mut walker, &templates);
        for index in 0..numbers.len() {
            let loaded = &in_turn[index];
            let program = &loaded.client;
            times[0][index].push(walker.random(program, &templates.esp, CLIENTS) - walk);
            times[1][index].push(walker.random(program, &templates.auth, CLIENTS) - walk);
            // Few of all addresses there are have a session.
            times[2][index].push(walker.random(program, &templates.esp, u32::MAX) - walk);
            for (kind, loaded) in [(3, loaded), (4, &by_hash[index])] {
                let before = count(loaded, lb_verdict::LB_NEW);
                let time = walker.in_turn(&loaded.client, &templates.init, next_new, new_per_round);
                let new = count(loaded, lb_verdict::LB_NEW) - before;
                assert_eq!(new, u64::from(new_per_round), "not every start got a session");
                times[kind][index].push(time - walk);
            }
        }
        next_new += new_per_round;
    }
    let mut lines = floors.lines();
    const FEW: [&str; 5] = [
        "established ESP, 4 backends",
        "established IKE, 4 backends",
        "unknown ESP, 4 backends",
        "new, round-robin, 4 backends",
        "new, maglev, 4 backends",
    ];
    for ((kind, few), times) in KINDS.iter().zip(FEW).zip(times) {
        for (number, times) in numbers.iter().zip(times) {
            // No slower, as far as can be told: a nanosecond more or less is noise.
            let target = (*number > 4).then_some((Base::Line(few), 1.05));
            lines.push(Line::new(format!("{kind}, {number} backends"), median(times), target));
        }
    }
    crate::print(&format!("IPv4, random clients out of {CLIENTS} that have a session"), &lines);
}

/// The cost under a flood of starts from random sources.
pub fn flood(bench: &Bench) {
    /// Starts of each flood before anything is measured: several times what the table holds.
    const STARTS: u32 = 1_000_000;
    let mut storage = MaybeUninit::uninit();
    let mut walker = Walker::new(&mut storage, false);
    let affinities = [Affinity::Address, Affinity::Tunnel];
    let templates = affinities.map(|affinity| Templates::new(affinity, false));
    let mut lines = None;
    for (affinity, templates) in affinities.into_iter().zip(&templates) {
        let settings =
            |start_rate| Settings { affinity, max_sessions: 16_384, start_rate, ..Settings::default() };
        // One that knows its clients alone, one that is flooded with all starts let in, one that holds them to the rate.
        let [calm, open, held] =
            [10_000_000, 10_000_000, 20_000].map(|start_rate| balancer(&settings(start_rate), 4));
        for loaded in [&calm, &open] {
            walker.establish(loaded, templates, CLIENTS);
        }
        for loaded in [&open, &held] {
            walker.in_turn(&loaded.client, &templates.init, CLIENTS, STARTS);
        }
        let mut next = CLIENTS + STARTS;
        let mut floors = Floors::new();
        let mut times = vec![Vec::new(); 5];
        for _ in 0..bench.rounds {
            let walk = floors.measure(bench, &mut walker, templates);
            times[0].push(walker.random(&calm.client, &templates.esp, CLIENTS) - walk);
            times[1].push(walker.random(&open.client, &templates.esp, CLIENTS) - walk);
            times[2].push(walker.random(&open.client, &templates.in_udp, CLIENTS) - walk);
            times[3].push(walker.in_turn(&open.client, &templates.init, next, crate::REPEAT) - walk);
            times[4].push(walker.in_turn(&held.client, &templates.init, next, crate::REPEAT) - walk);
            next += crate::REPEAT;
        }
        let names = [
            "established ESP, no flood",
            "established ESP, table full of starts",
            "established ESP in UDP, the same",
            "start, table full of starts",
            "start, over the rate",
        ];
        let lines = lines.get_or_insert_with(|| floors.lines());
        for (name, times) in names.iter().zip(times) {
            lines.push(Line::new(format!("{affinity}: {name}"), median(times), None));
        }
    }
    crate::print(
        &format!("IPv4, {CLIENTS} sessions and a flood of starts from sources that never come again"),
        &lines.expect("something is measured"),
    );
}
