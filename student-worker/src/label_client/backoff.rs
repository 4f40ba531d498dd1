//! How long to wait before another try.

use std::time::Duration;

use stillhouse_nn::Philox;

/// Pauses that double from `initial` to `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Backoff {
    pub(super) initial: Duration,
    pub(super) max: Duration,
}

impl Backoff {
    /// The pause after `failures` failures in a row, 1 or more: between a half and the whole of the
    /// doubled pause, so that many students do not come back in the same moment.
    pub(super) fn pause(&self, failures: u32, jitter: &mut Philox) -> Duration {
        let doublings = failures.saturating_sub(1).min(30);
        let whole = self.initial.saturating_mul(1 << doublings).min(self.max);
        whole.mul_f64(0.5 + 0.5 * jitter.next_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_are_spread() {
        let backoff = Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(1) };
        let mut jitter = Philox::new(1, 0);
        for (failures, whole) in [(1, 100), (2, 200), (3, 400), (4, 800), (5, 1000), (99, 1000)] {
            let whole = Duration::from_millis(whole);
            let pauses: Vec<_> = (0..50).map(|_| backoff.pause(failures, &mut jitter)).collect();
            assert!(pauses.iter().all(|pause| (whole / 2..=whole).contains(pause)), "{pauses:?}");
            assert!(pauses.iter().max() > pauses.iter().min());
        }
    }
}
