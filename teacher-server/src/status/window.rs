//! What happened in the last seconds.

use std::time::{Duration, Instant};

/// Seconds that are counted; the one under way is not yet.
const SECONDS: usize = 10;

/// A sum over the last whole seconds.
#[derive(Clone, Debug)]
pub(super) struct Window {
    begun: Instant,
    /// By second, modulo its length; the last is under way.
    sums: [f64; SECONDS + 1],
    second: u64,
}

impl Window {
    pub(super) fn new(now: Instant) -> Self {
        Self { begun: now, sums: [0.0; SECONDS + 1], second: 0 }
    }

    fn turn(&mut self, now: Instant) {
        let second = now.saturating_duration_since(self.begun).as_secs();
        let passed = second.saturating_sub(self.second).min(SECONDS as u64 + 1);
        for at in 0..passed {
            let slot = (self.second + 1 + at) % (SECONDS as u64 + 1);
            self.sums[slot as usize] = 0.0;
        }
        // Longer than all of it: every slot is empty, whichever is first.
        self.second = self.second.max(second);
        if passed > SECONDS as u64 {
            self.sums = [0.0; SECONDS + 1];
        }
    }

    pub(super) fn add(&mut self, now: Instant, amount: f64) {
        self.turn(now);
        self.sums[(self.second % (SECONDS as u64 + 1)) as usize] += amount;
    }

    /// The sum for each second.
    pub(super) fn rate(&mut self, now: Instant) -> f64 {
        self.turn(now);
        let current = (self.second % (SECONDS as u64 + 1)) as usize;
        let all: f64 = self.sums.iter().sum();
        let whole = Duration::from_secs(self.second.min(SECONDS as u64));
        (all - self.sums[current]) / whole.as_secs_f64().max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_whole_seconds() {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut window = Window::new(start);
        window.add(at(0.5), 10.0);
        assert_eq!(window.rate(at(0.9)), 0.0, "no second is over");
        assert_eq!(window.rate(at(1.1)), 10.0);
        window.add(at(1.5), 30.0);
        assert_eq!(window.rate(at(2.0)), 20.0);
        for tick in 20..400 {
            window.add(at(f64::from(tick) / 10.0), 1.0);
        }
        let rate = window.rate(at(40.0));
        assert!((9.0..=11.0).contains(&rate), "{rate}");
        assert_eq!(window.rate(at(55.0)), 0.0);
        window.add(at(1000.0), 5.0);
        assert_eq!(window.rate(at(1001.0)), 0.5);
    }
}
