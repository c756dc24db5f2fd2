//! Who gets the next client, decided ahead: the tables that the datapath only looks up.
//!
//! Two tables are made from the same backends. The *ring* holds them in the order of their turns, for
//! `round-robin`. The *hash slots* are Maglev's lookup table (Eisenbud et al., "Maglev: A Fast and Reliable
//! Software Network Load Balancer", NSDI 2016, section 3.4), for policy `maglev` and for all that arrives without a session.

use std::hash::Hasher;
use std::mem::offset_of;
use std::sync::atomic::Ordering;
use std::time::Duration;

use siphasher::sip::SipHasher13;

use super::datapath::Maps;
use super::skeleton::types::{self, lb_limits};
use crate::kernel::table::{SharedWords, TableError};
use crate::kernel::value::MapValue;

/// The number of hash slots, a prime.
pub const HASH_SLOTS: u32 = lb_limits::LB_HASH_SLOTS.0;

/// The greatest weight of a backend.
pub const WEIGHT_MAX: u32 = lb_limits::LB_WEIGHT_MAX.0;

/// How long a packet that has begun with one half of the tables may go on with it. A packet takes microseconds; a CPU that
/// the host of a virtual machine has taken away may be gone for milliseconds.
pub const SETTLE: Duration = Duration::from_millis(10);

/// What a slot has that is nobody's.
const NOBODY: u32 = lb_limits::LB_BACKENDS_MAX.0;

/// Writes both tables into the half that no packet reads, and makes that the one that is read. Packets meet either all of the
/// old tables or all of the new ones. The half that was left may be written again after [`SETTLE`].
///
/// # Errors
///
/// What the kernel says about the maps; then the old tables stay.
pub fn swap_in(maps: &Maps, ring: &[u32], hash_slots: &[u32]) -> Result<(), TableError> {
    let half = 1 - maps.runtime()?.schedule.half.min(1);
    maps.ring.set_from(half * lb_limits::LB_RING_MAX.0, ring)?;
    let nobody = [NOBODY; HASH_SLOTS as usize];
    let hash_slots = if hash_slots.is_empty() { &nobody } else { hash_slots };
    maps.hash_slots.set_from(half * HASH_SLOTS, hash_slots)?;

    let schedule = types::lb_schedule { half, ring_slots: ring.len() as u32 };
    let word = u64::from_bytes(schedule.as_bytes()).expect("the kernel reads a schedule as one word");
    let runtime = SharedWords::new(&maps.runtime)?;
    runtime.words()[offset_of!(types::lb_runtime, schedule) / size_of::<u64>()]
        .store(word, Ordering::Release);
    Ok(())
}

/// What a schedule needs to know of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Index of the backend in the datapath's map.
    pub index: u32,
    pub name: String,
    /// 0 to [`WEIGHT_MAX`]; 0 takes no new clients.
    pub weight: u32,
}

/// The backends' indexes in the order of their turns, each as often as its weight asks for, spread as evenly
/// as can be (smooth weighted round-robin). Equal weights give one turn each, in the order of `candidates`.
pub fn ring(candidates: &[Candidate]) -> Vec<u32> {
    let divisor = candidates.iter().map(|candidate| candidate.weight).fold(0, gcd).max(1);
    let weights: Vec<i64> =
        candidates.iter().map(|candidate| i64::from(candidate.weight / divisor)).collect();
    let total: i64 = weights.iter().sum();
    let mut credit = vec![0i64; candidates.len()];
    let mut turns = Vec::with_capacity(total as usize);
    for _ in 0..total {
        for (credit, weight) in credit.iter_mut().zip(&weights) {
            *credit += weight;
        }
        // The first of the greatest, so that equal weights keep their order.
        let next =
            (0..credit.len()).rev().max_by_key(|&i| credit[i]).expect("a positive total has candidates");
        credit[next] -= total;
        turns.push(candidates[next].index);
    }
    turns
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The backend's index for each of [`HASH_SLOTS`] values of the consistent hash; empty where no backend has a
/// weight. Depends on names and weights alone, so every balancer with the same backends sends a client the same way.
pub fn hash_slots(candidates: &[Candidate]) -> Vec<u32> {
    let mut takers: Vec<Taker> =
        candidates.iter().filter(|candidate| candidate.weight > 0).map(Taker::new).collect();
    takers.sort_by(|a, b| a.name.cmp(b.name));
    let Some(heaviest) = takers.iter().map(|taker| taker.weight).max() else { return Vec::new() };

    let mut slots = vec![None; HASH_SLOTS as usize];
    let mut left = slots.len();
    while left > 0 {
        for taker in &mut takers {
            // A backend of half the greatest weight takes a slot every other round.
            taker.credit += taker.weight;
            if taker.credit < heaviest {
                continue;
            }
            taker.credit -= heaviest;
            while slots[taker.next as usize].is_some() {
                taker.advance();
            }
            slots[taker.next as usize] = Some(taker.index);
            left -= 1;
            if left == 0 {
                break;
            }
        }
    }
    slots.into_iter().flatten().collect()
}

/// A backend going through its own permutation of the slots.
struct Taker<'a> {
    index: u32,
    name: &'a str,
    weight: u32,
    credit: u32,
    next: u32,
    skip: u32,
}

impl<'a> Taker<'a> {
    fn new(candidate: &'a Candidate) -> Self {
        // SipHash with fixed keys: the same on every machine and in every build.
        let hash = |key| {
            let mut hasher = SipHasher13::new_with_keys(0, key);
            hasher.write(candidate.name.as_bytes());
            hasher.finish()
        };
        Self {
            index: candidate.index,
            name: &candidate.name,
            weight: candidate.weight,
            credit: 0,
            next: (hash(0) % u64::from(HASH_SLOTS)) as u32,
            skip: (hash(1) % u64::from(HASH_SLOTS - 1)) as u32 + 1,
        }
    }

    fn advance(&mut self) {
        self.next = (self.next + self.skip) % HASH_SLOTS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(weights: &[u32]) -> Vec<Candidate> {
        let named =
            |(index, &weight)| Candidate { index: index as u32, name: format!("eth{}", index + 2), weight };
        weights.iter().enumerate().map(named).collect()
    }

    fn share(slots: &[u32], index: u32) -> f64 {
        slots.iter().filter(|&&slot| slot == index).count() as f64 / slots.len() as f64
    }

    #[test]
    fn equal_weights_take_turns_in_order() {
        assert_eq!(ring(&candidates(&[1, 1, 1, 1])), [0, 1, 2, 3]);
        assert_eq!(ring(&candidates(&[7, 7])), [0, 1]);
    }

    #[test]
    fn greater_weights_take_more_turns_and_spread_them() {
        assert_eq!(ring(&candidates(&[5, 1, 1])), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(ring(&candidates(&[2, 0, 4])), [2, 0, 2]);
    }

    #[test]
    fn nobody_has_a_turn_without_weight() {
        assert!(ring(&candidates(&[0, 0])).is_empty());
        assert!(hash_slots(&candidates(&[0, 0])).is_empty());
        assert!(ring(&[]).is_empty() && hash_slots(&[]).is_empty());
    }

    #[test]
    fn the_ring_of_the_most_backends_fits_its_map() {
        let mut all: Vec<u32> = vec![WEIGHT_MAX; lb_limits::LB_BACKENDS_MAX.0 as usize];
        all[0] = WEIGHT_MAX - 1;
        assert!(ring(&candidates(&all[..64])).len() <= lb_limits::LB_RING_MAX.0 as usize);
        assert!(all.len() as u32 * WEIGHT_MAX <= lb_limits::LB_RING_MAX.0);
    }

    #[test]
    fn hash_slots_follow_weights() {
        let slots = hash_slots(&candidates(&[1, 2, 4, 0]));
        assert_eq!(slots.len(), HASH_SLOTS as usize);
        for (index, wanted) in [(0, 1.0 / 7.0), (1, 2.0 / 7.0), (2, 4.0 / 7.0), (3, 0.0)] {
            assert!((share(&slots, index) - wanted).abs() < 0.001, "{index}: {}", share(&slots, index));
        }
    }

    #[test]
    fn hash_slots_depend_on_names_not_on_order() {
        let here = candidates(&[1, 2, 3]);
        let mut there = here.clone();
        there.reverse();
        assert_eq!(hash_slots(&here), hash_slots(&there));
    }

    /// Ideally, only the share of the one that leaves moves.
    #[test]
    fn a_backend_that_leaves_moves_little_but_its_own() {
        for count in [2, 3, 4, 8, 16, 64, 512] {
            let equal = vec![1; count];
            let some: Vec<u32> = (0..count as u32).map(|index| 1 + index % 5).collect();
            let any: Vec<u32> = (0..count as u32).map(|index| 1 + index * 89 % WEIGHT_MAX).collect();
            for weights in [equal, some, any] {
                let all = candidates(&weights);
                let before = hash_slots(&all);
                let total: u32 = weights.iter().sum();
                for leaver in [0, count / 2, count - 1] {
                    let rest: Vec<Candidate> =
                        all.iter().filter(|other| other.index as usize != leaver).cloned().collect();
                    let after = hash_slots(&rest);
                    let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
                    let moved = moved as f64 / f64::from(HASH_SLOTS);
                    let ideal = f64::from(weights[leaver]) / f64::from(total);
                    assert!((moved - ideal).abs() < 0.02, "{count} backends: {moved} moved, not {ideal}");
                }
            }
        }
    }
}
