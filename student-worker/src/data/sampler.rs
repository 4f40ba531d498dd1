//! In which order rows are trained on.

use std::num::NonZeroU64;

use stillhouse_nn::Philox;

use super::DataError;
use crate::random;

/// A shuffled order of rows that can be entered at any step: the permutation of an epoch depends
/// on the seed and the epoch's number only, never on what was drawn before.
#[derive(Clone, Debug)]
pub struct Sampler {
    seed: u64,
    rows: u32,
    batch_size: NonZeroU64,
    /// The epoch whose order is at hand, and the order.
    current: Option<(u64, Vec<u32>)>,
}

/// One step's rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The step it belongs to, counted from 0 over the whole run.
    pub step: u64,
    /// The rows; the last batch of an epoch may be short.
    pub rows: Vec<u32>,
}

impl Sampler {
    /// Shuffles `rows` rows into batches of `batch_size`.
    ///
    /// # Errors
    /// If there is no row, more than 2^32 - 1 of them, or the batch size is 0.
    pub fn new(seed: u64, rows: usize, batch_size: usize) -> Result<Self, DataError> {
        let refused = |field: &str, found: usize, expected: &str| DataError::Mismatch {
            field: field.into(),
            found: found.to_string(),
            expected: expected.into(),
        };
        let count = u32::try_from(rows)
            .ok()
            .filter(|rows| *rows > 0)
            .ok_or_else(|| refused("rows to train on", rows, "1 to 4294967295"))?;
        let batch_size = NonZeroU64::new(batch_size as u64)
            .ok_or_else(|| refused("train.batch_size", batch_size, "1 or more"))?;
        Ok(Self { seed, rows: count, batch_size, current: None })
    }

    /// Steps in an epoch; the last may be short.
    pub fn steps_per_epoch(&self) -> u64 {
        u64::from(self.rows).div_ceil(self.batch_size.get())
    }

    /// The rows of a step. Free within an epoch, one shuffle where a new one is entered.
    pub fn batch(&mut self, step: u64) -> Batch {
        let epoch = step / self.steps_per_epoch();
        let start = (step % self.steps_per_epoch() * self.batch_size.get()) as usize;
        let order = match self.current.take() {
            Some((at, order)) if at == epoch => order,
            _ => Philox::new(self.seed, random::shuffle(epoch)).permutation(self.rows),
        };
        let end = order.len().min(start + self.batch_size.get() as usize);
        let rows = order[start..end].to_vec();
        self.current = Some((epoch, order));
        Batch { step, rows }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn epoch(sampler: &mut Sampler, epoch: u64) -> Vec<u32> {
        let steps = sampler.steps_per_epoch();
        (epoch * steps..(epoch + 1) * steps).flat_map(|step| sampler.batch(step).rows).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Every epoch visits every row once.
        #[test]
        fn an_epoch_is_a_permutation(seed: u64, rows in 1_usize..200, batch in 1_usize..70) {
            let mut sampler = Sampler::new(seed, rows, batch).unwrap();
            for number in 0..3 {
                let mut visited = epoch(&mut sampler, number);
                visited.sort_unstable();
                prop_assert_eq!(visited, (0..rows as u32).collect::<Vec<_>>());
            }
        }

        /// A step's rows do not depend on the steps taken before it.
        #[test]
        fn any_step_can_be_entered_directly(seed: u64, step in 0_u64..50) {
            let mut walked = Sampler::new(seed, 37, 5).unwrap();
            (0..step).for_each(|step| drop(walked.batch(step)));
            let mut entered = Sampler::new(seed, 37, 5).unwrap();
            prop_assert_eq!(walked.batch(step), entered.batch(step));
        }
    }

    #[test]
    fn epochs_and_seeds_differ_in_order() {
        let mut sampler = Sampler::new(1, 100, 10).unwrap();
        let first = epoch(&mut sampler, 0);
        assert_ne!(first, epoch(&mut sampler, 1));
        assert_ne!(first, epoch(&mut Sampler::new(2, 100, 10).unwrap(), 0));
    }

    #[test]
    fn nothing_to_shuffle_is_an_error() {
        let error = Sampler::new(1, 0, 8).unwrap_err().to_string();
        assert_eq!(error, "rows to train on is 0, expected 1 to 4294967295");
        let error = Sampler::new(1, 8, 0).unwrap_err().to_string();
        assert_eq!(error, "train.batch_size is 0, expected 1 or more");
    }
}
