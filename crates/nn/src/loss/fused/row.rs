//! What all kinds of rows share.

use crate::kernel::math::exp;
use crate::loss::target::RowTarget;

/// Sums are in f32 within a piece of a row, and in f64 over pieces.
pub(super) const PIECE: usize = 1024;
pub(super) const LANES: usize = 16;

/// Terms of one row's loss.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Terms {
    /// -log q\[y\] at T = 1.
    pub(super) hard: f64,
    /// T^2 times the divergence.
    pub(super) soft: f64,
    /// Whether both sides have the same most probable class.
    pub(super) agrees: bool,
}

/// The largest element, NaN left out.
#[inline(always)]
pub(super) fn largest(z: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = z.as_chunks::<LANES>();
    for block in blocks {
        for (lane, &z) in lanes.iter_mut().zip(block) {
            *lane = if z > *lane { z } else { *lane };
        }
    }
    let all = lanes.into_iter().chain(rest.iter().copied());
    all.fold(f32::NEG_INFINITY, |max, z| if z > max { z } else { max })
}

/// The sum of f(i) over a row of `n`, f giving sixteen terms or, at the end, one at a time.
macro_rules! sum {
    ($z:expr, |$x:ident| $term:expr) => {{
        let mut total = 0f64;
        for piece in $z.chunks(PIECE) {
            let mut lanes = [0f32; LANES];
            let (blocks, rest) = piece.as_chunks::<LANES>();
            for block in blocks {
                for (lane, &$x) in lanes.iter_mut().zip(block) {
                    *lane += $term;
                }
            }
            for (lane, &$x) in lanes.iter_mut().zip(rest) {
                *lane += $term;
            }
            total += lanes.iter().map(|&x| f64::from(x)).sum::<f64>();
        }
        total
    }};
}
pub(super) use sum;

/// The sum of exp((z - max) * inverse_t).
#[inline(always)]
pub(super) fn sum_exp(z: &[f32], max: f32, inverse_t: f32) -> f64 {
    sum!(z, |x| exp((x - max) * inverse_t))
}

/// Index of the first of the largest.
pub(crate) fn argmax(z: &[f32]) -> usize {
    let max = largest(z);
    z.iter().position(|&z| z == max).unwrap_or(0)
}

/// The teacher's most probable class, where the labels tell it.
pub(super) fn argmax_of(target: &RowTarget<'_>) -> Option<usize> {
    match target {
        RowTarget::LogProbabilities(row)
        | RowTarget::Probabilities(row)
        | RowTarget::Logits(row) => Some(argmax(row)),
        RowTarget::TopK { ids, log_probabilities, .. } => {
            ids.get(argmax(log_probabilities)).map(|&id| id as usize)
        }
        RowTarget::Sampled { .. } => None,
    }
}

/// Cross-entropy with the hard label alone: `z` becomes its gradient times `scale`. Without a label,
/// zeros.
pub(super) fn hard_only(z: &mut [f32], hard: Option<usize>, scale: f64) -> Terms {
    let Some(class) = hard else {
        z.fill(0.0);
        return Terms::default();
    };
    let mut terms = Terms::default();
    pulp::Arch::new().dispatch(HardOnly { z, class, scale: scale as f32, terms: &mut terms });
    terms
}

struct HardOnly<'a> {
    z: &'a mut [f32],
    class: usize,
    scale: f32,
    terms: &'a mut Terms,
}

impl pulp::WithSimd for HardOnly<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        let Self { z, class, scale, terms } = self;
        let max = largest(z);
        let log_sum = sum_exp(z, max, 1.0).ln();
        terms.hard = log_sum - (f64::from(z[class]) - f64::from(max));
        if scale == 0.0 {
            z.fill(0.0);
            return;
        }
        let log_sum = log_sum as f32;
        z.iter_mut().for_each(|z| *z = scale * exp((*z - max) - log_sum));
        z[class] -= scale;
    }
}
