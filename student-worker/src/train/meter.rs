//! How fast a run is, and how much of its time it waits.

use std::time::{Duration, Instant};

/// Time over which the speed is averaged.
const WINDOW: Duration = Duration::from_secs(2);

/// Counts rows and waiting. Tests and checkpoints are left out of all of it.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    examples: u64,
    waited: Duration,
    worked: Duration,
    window_start: Duration,
    window_examples: u64,
    speed: Option<f64>,
}

impl Meter {
    pub(crate) fn new() -> Self {
        Self {
            examples: 0,
            waited: Duration::ZERO,
            worked: Duration::ZERO,
            window_start: Duration::ZERO,
            window_examples: 0,
            speed: None,
        }
    }

    /// Notes a step: when it began, how long it waited for labels, how many rows it had.
    pub(crate) fn step(&mut self, began: Instant, waited: Duration, rows: usize) {
        self.add(began.elapsed(), waited, rows as u64);
    }

    fn add(&mut self, took: Duration, waited: Duration, rows: u64) {
        self.waited += waited;
        self.worked += took.saturating_sub(waited);
        self.examples += rows;
        self.window_examples += rows;
        let window = self.total() - self.window_start;
        if window >= WINDOW {
            self.speed = Some(self.window_examples as f64 / window.as_secs_f64());
            (self.window_start, self.window_examples) = (self.total(), 0);
        }
    }

    /// Rows per second over the last seconds.
    pub(crate) fn examples_per_second(&self) -> f64 {
        self.speed.unwrap_or_else(|| self.mean_examples_per_second())
    }

    /// Rows per second since the start.
    pub(crate) fn mean_examples_per_second(&self) -> f64 {
        self.examples as f64 / self.total().as_secs_f64().max(1e-9)
    }

    /// Part of the time that was spent waiting for labels.
    pub(crate) fn stall_fraction(&self) -> f64 {
        self.waited.as_secs_f64() / self.total().as_secs_f64().max(1e-9)
    }

    fn total(&self) -> Duration {
        self.waited + self.worked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_follows_the_last_seconds_and_waiting_the_whole() {
        let mut meter = Meter::new();
        assert_eq!((meter.examples_per_second(), meter.stall_fraction()), (0.0, 0.0));
        let second = Duration::from_secs(1);
        meter.add(second, second / 4, 100);
        assert!((meter.examples_per_second() - 100.0).abs() < 1e-9);
        meter.add(second, second / 4, 100);
        for _ in 0..2 {
            meter.add(second, Duration::ZERO, 500);
        }
        assert!((meter.examples_per_second() - 500.0).abs() < 1e-9);
        assert!((meter.mean_examples_per_second() - 300.0).abs() < 1e-9);
        assert!((meter.stall_fraction() - 0.125).abs() < 1e-9);
    }
}
