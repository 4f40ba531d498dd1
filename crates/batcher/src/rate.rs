//! How fast the device works, as measured from its batches.

use crate::Time;

/// Share of the past that a new batch leaves standing: half of it is gone after about 5 batches.
const KEEP: f64 = 0.875;
/// A client that waits less gains nothing, and a device this fast has room again at once.
const SHORTEST: Time = Time::from_millis(1);
/// A longer estimate says nothing: by then the load has changed.
const LONGEST: Time = Time::from_secs(60);

/// Cost per second of device time, over recent batches. Cost and time are averaged apart, so that
/// long batches count for more than short ones.
#[derive(Debug, Default)]
pub(crate) struct ServiceRate {
    cost: f64,
    seconds: f64,
}

impl ServiceRate {
    pub(crate) fn observe(&mut self, cost: u64, took: Time) {
        self.cost = self.cost * KEEP + cost as f64;
        self.seconds = self.seconds * KEEP + took.as_secs_f64();
    }

    /// Time in which `share` (0 to 1] of the device serves `cost`: 1 ms to 1 minute. `None` before
    /// anything was measured.
    pub(crate) fn time_for(&self, cost: u64, share: f64) -> Option<Time> {
        if self.cost <= 0.0 || self.seconds <= 0.0 {
            return None;
        }
        let seconds = cost as f64 * self.seconds / (self.cost * share);
        let time = Time::try_from_secs_f64(seconds).unwrap_or(LONGEST);
        Some(time.clamp(SHORTEST, LONGEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_promised_before_the_first_batch() {
        let mut rate = ServiceRate::default();
        assert_eq!(rate.time_for(10, 1.0), None);
        rate.observe(0, Time::from_millis(3));
        assert_eq!(rate.time_for(10, 1.0), None);
    }

    #[test]
    fn a_steady_device_is_measured_exactly() {
        let mut rate = ServiceRate::default();
        for _ in 0..20 {
            rate.observe(100, Time::from_millis(50));
        }
        let close = |time: Option<Time>, seconds: f64| {
            let difference = time.unwrap().as_secs_f64() - seconds;
            assert!(difference.abs() < 1e-6, "{time:?} is not {seconds} s");
        };
        close(rate.time_for(1000, 1.0), 0.5);
        close(rate.time_for(1000, 0.25), 2.0);
    }

    #[test]
    fn it_follows_a_device_that_slows_down() {
        let mut rate = ServiceRate::default();
        for _ in 0..50 {
            rate.observe(100, Time::from_millis(10));
        }
        for _ in 0..20 {
            rate.observe(100, Time::from_millis(100));
        }
        let estimate = rate.time_for(100, 1.0).unwrap();
        assert!(estimate > Time::from_millis(90), "{estimate:?}");
    }

    #[test]
    fn extremes_are_clamped() {
        let mut rate = ServiceRate::default();
        rate.observe(1, Time::from_secs(1000));
        assert_eq!(rate.time_for(u64::MAX, 1e-9), Some(LONGEST));
        let mut fast = ServiceRate::default();
        fast.observe(1 << 40, Time::from_nanos(1));
        assert_eq!(fast.time_for(1, 1.0), Some(SHORTEST));
    }
}
