//! How much CPU cgroups use at a moment: the difference between two readings.
//!
//! Nobody reads in the background. Each reading that somebody asks for is compared with the last one that is at least
//! [`WINDOW`] old; those in between get the last answer again, so that several clients do not shorten each other's window
//! to nothing. What was never read before is compared with its own beginning, when it had used nothing.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Shortest time between two readings that are compared, in nanoseconds.
const WINDOW: i64 = 1_000_000_000;

/// A reading as old as this is of a cgroup that is gone, or that nobody asks for; in nanoseconds.
const FORGOTTEN: i64 = 600 * 1_000_000_000;

/// Below so many readings nobody looks for forgotten ones.
const FEW: usize = 64;

#[derive(Clone, Copy)]
struct Reading {
    at: i64,
    cpu_ns: u64,
    rate: u64,
}

#[derive(Default)]
struct Readings {
    by_cgroup: HashMap<String, Reading>,
    /// How many there may be before forgotten ones are looked for.
    sweep_at: usize,
}

/// The last reading of each cgroup.
#[derive(Default)]
pub(crate) struct Rates(Mutex<Readings>);

impl Rates {
    /// Nanoseconds of CPU time per second that a cgroup uses, which has used `cpu_ns` at the time `at` and nothing at
    /// `began` (times in nanoseconds since the epoch).
    pub(crate) fn of(&self, cgroup: &str, began: i64, at: i64, cpu_ns: u64) -> u64 {
        let mut readings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        readings.sweep(at);
        let before = match readings.by_cgroup.get(cgroup) {
            // less than before: the cgroup was made anew
            Some(last) if last.cpu_ns <= cpu_ns && last.at <= at => *last,
            _ => Reading { at: began.min(at - WINDOW), cpu_ns: 0, rate: 0 },
        };
        if at - before.at < WINDOW {
            return before.rate;
        }
        let used = u128::from(cpu_ns - before.cpu_ns);
        let rate = used * 1_000_000_000 / u128::from((at - before.at).unsigned_abs());
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        readings.by_cgroup.insert(cgroup.to_owned(), Reading { at, cpu_ns, rate });
        rate
    }
}

impl Readings {
    fn sweep(&mut self, now: i64) {
        if self.by_cgroup.len() < self.sweep_at.max(FEW) {
            return;
        }
        self.by_cgroup.retain(|_, reading| now - reading.at < FORGOTTEN);
        self.sweep_at = self.by_cgroup.len() * 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: i64 = 1_000_000_000;

    #[test]
    fn the_first_answer_is_the_mean_since_the_beginning() {
        let rates = Rates::default();
        assert_eq!(rates.of("/a", 10 * S, 14 * S, 2_000_000_000), 500_000_000);
    }

    #[test]
    fn later_ones_are_the_difference_of_two_readings() {
        let rates = Rates::default();
        rates.of("/a", 0, 100 * S, 1_000_000_000);
        assert_eq!(rates.of("/a", 0, 110 * S, 6_000_000_000), 500_000_000);
        // a second client that asks at once does not make the window tiny
        assert_eq!(rates.of("/a", 0, 110 * S + 1_000, 6_000_000_500), 500_000_000);
        assert_eq!(rates.of("/a", 0, 120 * S, 6_000_000_500), 50);
    }

    #[test]
    fn a_cgroup_made_anew_and_a_clock_set_back_are_no_negative_rates() {
        let rates = Rates::default();
        rates.of("/a", 0, 100 * S, 9_000_000_000);
        assert_eq!(rates.of("/a", 108 * S, 110 * S, 1_000_000_000), 500_000_000);
        assert_eq!(rates.of("/a", 108 * S, 50 * S, 1_000_000_000), 1_000_000_000);
    }

    #[test]
    fn the_forgotten_are_swept() {
        let rates = Rates::default();
        for n in 0..200 {
            rates.of(&format!("/{n}"), 0, n * 60 * S, 1);
        }
        assert!(rates.0.lock().unwrap().by_cgroup.len() <= FEW + 1);
    }
}
