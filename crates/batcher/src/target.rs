//! Batches and queues as large as a target latency allows.
//!
//! A request that comes just after a launch waits for that batch and then rides in the next, so the
//! largest batch is one that takes half of the target; and what waits beside it must be through in the
//! other half. How long a batch takes is fitted as `a + b * cost` over recent batches; a factor on top
//! follows the batches that took longer all the same, down by a tenth for each and up by a hundredth
//! for each other (as D. Crankshaw et al., "Clipper", NSDI 2017, section 4.3.1, do with the size itself).

use crate::Time;

/// Share of the past that a new batch leaves standing.
const KEEP: f64 = 0.97;
/// Batches before the fit is believed.
const LEAST: u32 = 8;
/// Least part of the fitted size.
const LEAST_FACTOR: f64 = 0.05;
/// Batches whose costs vary less than this, as the square of deviation over mean, say nothing of others.
const ALIKE: f64 = 1e-3;

/// Follows how long batches take, and says how large they may be.
#[derive(Clone, Debug)]
pub(crate) struct LatencyTarget {
    target: f64,
    seen: u32,
    /// Sums over batches, each fading: weight, cost, seconds, cost^2, cost * seconds.
    sums: [f64; 5],
    factor: f64,
}

/// What recent batches say of the time that one takes.
enum Fit {
    /// `a + b * cost`, both 0 or more.
    Line(f64, f64),
    /// They were all of about this cost and took this long.
    Alike(f64, f64),
}

impl LatencyTarget {
    /// None for a target of 0.
    pub(crate) fn new(target: Time) -> Option<Self> {
        let target = target.as_secs_f64();
        (target > 0.0).then_some(Self { target, seen: 0, sums: [0.0; 5], factor: 1.0 })
    }

    /// Takes note of a batch.
    pub(crate) fn observe(&mut self, cost: u64, took: Time) {
        // One that had to be larger than it may be says nothing of those that need not.
        let allowed = cost <= self.batch_cost(u64::MAX);
        let (cost, seconds) = (cost as f64, took.as_secs_f64());
        let new = [1.0, cost, seconds, cost * cost, cost * seconds];
        for (sum, new) in self.sums.iter_mut().zip(new) {
            *sum = *sum * KEEP + new;
        }
        self.seen = self.seen.saturating_add(1);
        if allowed {
            self.factor = match seconds > self.target / 2.0 {
                true => (self.factor * 0.9).max(LEAST_FACTOR),
                false => (self.factor + 0.01).min(1.0),
            };
        }
    }

    /// None before enough was seen.
    fn fit(&self) -> Option<Fit> {
        let [weight, cost, seconds, squares, products] = self.sums;
        if self.seen < LEAST || seconds <= 0.0 || cost <= 0.0 {
            return None;
        }
        let spread = weight * squares - cost * cost;
        if spread <= ALIKE * cost * cost {
            return Some(Fit::Alike(cost / weight, seconds / weight));
        }
        let slope = ((weight * products - cost * seconds) / spread).max(0.0);
        let base = (seconds - slope * cost) / weight;
        Some(match base >= 0.0 {
            true => Fit::Line(base, slope),
            false => Fit::Line(0.0, seconds / cost),
        })
    }

    /// The largest cost of a batch, 1 to `most`.
    pub(crate) fn batch_cost(&self, most: u64) -> u64 {
        let half = self.target / 2.0;
        let cost = match self.fit() {
            None => return most,
            // How much of their time is the same for a batch of any size cannot be told. In proportion is
            // safe, and one more tells.
            Some(Fit::Alike(cost, took)) if self.factor == 1.0 => {
                (cost * half / took).max(if took <= half { cost + 1.0 } else { 1.0 })
            }
            Some(Fit::Alike(cost, took)) => self.factor * cost * half / took,
            // No batch is small enough. Smaller ones than this would cost more than they gain.
            Some(Fit::Line(base, slope)) if base >= half => base / slope.max(1e-12),
            Some(Fit::Line(base, slope)) => self.factor * (half - base) / slope.max(1e-12),
        };
        (cost.min(most as f64) as u64).clamp(1, most)
    }

    /// The largest cost that may wait, `batch` to `most`, where batches cost `batch`.
    pub(crate) fn queue_cost(&self, batch: u64, most: u64) -> u64 {
        let takes = match self.fit() {
            None => return most,
            Some(Fit::Alike(cost, took)) => took * (batch as f64 / cost).max(1.0),
            Some(Fit::Line(base, slope)) => base + slope * batch as f64,
        };
        let batches = (self.target / takes.max(1e-9) - 1.0).floor().max(1.0);
        ((batches * batch as f64).min(most as f64) as u64).clamp(batch.min(most), most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: f64) -> Time {
        Time::from_secs_f64(milliseconds / 1e3)
    }

    #[test]
    fn nothing_is_bounded_without_a_target_or_a_measurement() {
        assert!(LatencyTarget::new(Time::ZERO).is_none());
        let mut target = LatencyTarget::new(ms(20.0)).unwrap();
        target.observe(100, ms(500.0));
        assert_eq!((target.batch_cost(1024), target.queue_cost(1024, 9999)), (1024, 9999));
    }

    /// 1 ms and 20 us a row: 10 ms are 450 rows.
    #[test]
    fn half_of_the_target_is_a_batch_and_the_other_half_may_wait() {
        let mut target = LatencyTarget::new(ms(20.0)).unwrap();
        for cost in (10..400).cycle().step_by(7).take(200) {
            target.observe(cost, ms(1.0 + 0.02 * cost as f64));
        }
        let batch = target.batch_cost(1024);
        assert!((440..=450).contains(&batch), "{batch}");
        assert_eq!(target.queue_cost(batch, 1 << 20), batch);
        assert_eq!(target.batch_cost(64), 64);
    }

    #[test]
    fn batches_of_one_size_and_a_device_that_slows_down_are_followed() {
        let mut target = LatencyTarget::new(ms(20.0)).unwrap();
        for _ in 0..100 {
            target.observe(100, ms(5.0));
        }
        assert!((199..=200).contains(&target.batch_cost(1024)));
        for _ in 0..300 {
            let cost = target.batch_cost(1024);
            target.observe(cost, ms(0.2 * cost as f64));
        }
        let batch = target.batch_cost(1024);
        assert!((30..=100).contains(&batch), "{batch}");
    }

    /// 8 ms whatever the cost: a batch of 1 says nothing of one of 1,024.
    #[test]
    fn batches_that_are_all_alike_grow_until_more_can_be_told() {
        let mut target = LatencyTarget::new(ms(20.0)).unwrap();
        for _ in 0..50 {
            target.observe(1, ms(8.0));
        }
        let mut cost = 1;
        for _ in 0..200 {
            cost = target.batch_cost(1024);
            assert!(target.queue_cost(cost, 1 << 16) >= cost);
            target.observe(cost, ms(8.0 + 0.001 * cost as f64));
        }
        assert_eq!(cost, 1024);
    }

    #[test]
    fn a_target_that_nothing_can_meet_does_not_make_it_worse() {
        let mut target = LatencyTarget::new(ms(20.0)).unwrap();
        for cost in (1..200).cycle().take(400) {
            target.observe(cost, ms(11.0 + 0.1 * cost as f64));
        }
        let batch = target.batch_cost(1024);
        assert!((105..=115).contains(&batch), "{batch}: twice the least time that a batch takes");
        assert_eq!(target.queue_cost(batch, 1 << 16), batch);
    }

    #[test]
    fn batches_that_had_to_be_larger_do_not_shrink_the_others() {
        let mut target = LatencyTarget::new(ms(20.0)).unwrap();
        for cost in [100, 400, 1024].into_iter().cycle().take(300) {
            target.observe(cost, ms(1.0 + 0.02 * cost as f64));
        }
        let batch = target.batch_cost(1024);
        assert!((440..=450).contains(&batch), "{batch}");
    }
}
