//! Work over equal pieces of slices, on all threads where it is worth it.

use rayon::prelude::*;

/// Elements a thread takes at once; below it a piece of work is not split. A fixed number: pieces
/// never depend on how many threads there are.
pub(crate) const PIECE: usize = 1 << 15;

/// The sum over pieces of `term`, added in order: the same for any number of threads.
pub(crate) fn ordered_sum(data: &[f32], term: impl Fn(&[f32]) -> f64 + Send + Sync) -> f64 {
    if data.len() <= PIECE {
        return term(data);
    }
    let terms: Vec<f64> = data.par_chunks(PIECE).map(term).collect();
    terms.into_iter().sum()
}

/// The sum of squares in f64, in sixteen interleaved partial sums (one vector register's worth of
/// f32, whatever the machine has).
pub(crate) fn sum_of_squares(data: &[f32]) -> f64 {
    ordered_sum(data, |piece| pulp::Arch::new().dispatch(SumOfSquares(piece)))
}

/// A `WithSimd` of its own: a closure is not always inlined where the vector instructions are.
struct SumOfSquares<'a>(&'a [f32]);

impl pulp::WithSimd for SumOfSquares<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> f64 {
        const LANES: usize = 16;
        let mut lanes = [0f64; LANES];
        let (blocks, rest) = self.0.as_chunks::<LANES>();
        for block in blocks {
            for (lane, &x) in lanes.iter_mut().zip(block) {
                let x = f64::from(x);
                *lane += x * x;
            }
        }
        let mut sum = lanes.iter().sum();
        for &x in rest {
            sum += f64::from(x) * f64::from(x);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_every_element_once() {
        for n in [0, 1, 15, 16, 17, PIECE - 1, PIECE, 3 * PIECE + 5] {
            let data: Vec<f32> = (0..n).map(|i| (i % 7) as f32).collect();
            let expected: f64 = data.iter().map(|&x| f64::from(x * x)).sum();
            assert_eq!(sum_of_squares(&data), expected, "{n}");
        }
    }
}
