//! Dropout of values by their number, so that the backward pass finds the mask again without keeping it.

use rayon::prelude::*;

use super::parallel::PIECE;
use crate::rng::Philox;

/// What becomes of a value with a random word: 0 where the word is below `threshold`, `scale` times the
/// value elsewhere.
pub(crate) struct Rule {
    pub(crate) threshold: u64,
    pub(crate) scale: f64,
}

impl Rule {
    /// For a rate that is at least 0 and below 1.
    pub(crate) fn new(rate: f32) -> Self {
        let rate = f64::from(rate);
        Self { threshold: (rate * 4_294_967_296.0) as u64, scale: 1.0 / (1.0 - rate) }
    }
}

/// Sets each value to 0 with probability `rate` and multiplies the others by 1 / (1 - rate) (Srivastava
/// et al., 2014). Word i of the stream decides on value i.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Mask {
    pub(crate) seed: u64,
    pub(crate) stream: u64,
    /// At least 0 and below 1.
    pub(crate) rate: f32,
}

impl Mask {
    /// Applies to values of which the first is number `first`.
    pub(crate) fn apply_from(&self, first: u64, values: &mut [f32]) {
        let Rule { threshold, scale } = Rule::new(self.rate);
        let scale = scale as f32;
        let mut words = Philox::new(self.seed, self.stream);
        words.seek(first);
        for value in values {
            let keep = u64::from(words.next_u32()) >= threshold;
            *value = if keep { *value * scale } else { 0.0 };
        }
    }

    /// Applies to values of which the first is number 0, on all threads.
    pub(crate) fn apply(&self, values: &mut [f32]) {
        let pieces = values.par_chunks_mut(PIECE).enumerate();
        pieces.for_each(|(at, piece)| self.apply_from((at * PIECE) as u64, piece));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_expected_share_and_scales_it_wherever_it_begins() {
        let mask = Mask { seed: 3, stream: 7, rate: 0.2 };
        let mut all = vec![1.0; 2 * PIECE + 5];
        mask.apply(&mut all);
        let kept = all.iter().filter(|&&x| x != 0.0).count() as f64 / all.len() as f64;
        assert!((0.79..0.81).contains(&kept), "{kept}");
        assert!(all.iter().all(|&x| x == 0.0 || x == 1.25));
        for first in [0, 1, 6, PIECE - 2, PIECE + 3] {
            let mut some = [1.0; 50];
            mask.apply_from(first as u64, &mut some);
            assert_eq!(some, all[first..first + 50]);
        }
        let mut other = vec![1.0; 1000];
        Mask { stream: 8, ..mask }.apply(&mut other);
        assert_ne!(other, all[..1000]);
    }
}
