//! The backward pass of the query heads that share a head of keys: weights are computed again from
//! the scores and their log sums (Dao et al., 2022, "FlashAttention", appendix B).

use std::ops::Range;

use super::{Heads, Scores};
use crate::kernel::dropout::Mask;
use crate::kernel::gemm::{Matrix, matmul_serial};
use crate::kernel::math::{exp, tanh};

/// Queries whose scores are held at once.
const BLOCK: usize = 64;

/// One sequence's query heads of one key head, as in the forward pass; lengths as there.
pub(super) struct Operands<'a> {
    pub(super) heads: Heads,
    pub(super) scores: Scores,
    /// And the number of the first weight.
    pub(super) mask: Option<(Mask, u64)>,
    pub(super) q: &'a [f32],
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
    pub(super) out: &'a [f32],
    pub(super) log_sums: &'a [f32],
    pub(super) grad: &'a [f32],
}

impl Operands<'_> {
    pub(super) fn run(&self, to_q: &mut [f32], to_k: &mut [f32], to_v: &mut [f32]) {
        let width = self.heads.width;
        let length = self.k.len() / width;
        for head in 0..self.heads.group() {
            for first in (0..length).step_by(BLOCK) {
                let n = BLOCK.min(length - first);
                let rows = (head * length + first) * width..(head * length + first + n) * width;
                let start = self.scores.visible(first, length).start;
                let end = self.scores.visible(first + n - 1, length).end;
                let seen = start * width..end * width;
                let span = end - start;
                let (q, grad) = (&self.q[rows.clone()], &self.grad[rows.clone()]);
                let (k, v) = (&self.k[seen.clone()], &self.v[seen.clone()]);
                let queries = Matrix::new(q, n, width);
                let grads = Matrix::new(grad, n, width);
                let keys = Matrix::new(k, span, width);

                let mut weights = vec![0.0; n * span];
                matmul_serial(&mut weights, false, queries, keys.t());
                let mut to_scores = vec![0.0; n * span];
                matmul_serial(&mut to_scores, false, grads, Matrix::new(v, span, width).t());
                let dropped = self.dropped(head * length + first, n, start..end);
                let drop = |values: &mut [f32]| {
                    values.iter_mut().zip(&dropped).for_each(|(value, factor)| *value *= factor);
                };
                drop(&mut to_scores);
                pulp::Arch::new().dispatch(Soften {
                    scores: &self.scores,
                    position: first,
                    start,
                    keys: length,
                    out: &self.out[rows.clone()],
                    grad,
                    log_sums: &self.log_sums[head * length + first..][..n],
                    weights: &mut weights,
                    to_scores: &mut to_scores,
                });
                drop(&mut weights);
                let weights = Matrix::new(&weights, n, span);
                let to_scores = Matrix::new(&to_scores, n, span);
                matmul_serial(&mut to_v[seen.clone()], true, weights.t(), grads);
                matmul_serial(&mut to_k[seen], true, to_scores.t(), queries);
                matmul_serial(&mut to_q[rows], false, to_scores, keys);
            }
        }
    }

    /// What the forward pass multiplied weights by, [queries, keys], from query `first` of the group on;
    /// empty where it dropped none.
    fn dropped(&self, first: usize, queries: usize, keys: Range<usize>) -> Vec<f32> {
        let Some((mask, number)) = self.mask else { return vec![] };
        let all = self.k.len() / self.heads.width;
        let mut factors = vec![1.0; queries * keys.len()];
        for (query, row) in (first..).zip(factors.chunks_exact_mut(keys.len())) {
            mask.apply_from(number + (query * all + keys.start) as u64, row);
        }
        factors
    }
}

/// Raw scores to weights, and the gradients of weights to those of raw scores.
struct Soften<'a> {
    scores: &'a Scores,
    /// Of the first row.
    position: usize,
    /// Key of the first column.
    start: usize,
    keys: usize,
    /// [rows, width].
    out: &'a [f32],
    grad: &'a [f32],
    log_sums: &'a [f32],
    /// [rows, columns].
    weights: &'a mut [f32],
    to_scores: &'a mut [f32],
}

impl pulp::WithSimd for Soften<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        let rows = self.log_sums.len();
        let (columns, width) = (self.weights.len() / rows, self.out.len() / rows);
        let pairs = self.weights.chunks_exact_mut(columns);
        for (row, (weights, to_scores)) in
            pairs.zip(self.to_scores.chunks_exact_mut(columns)).enumerate()
        {
            let visible = self.scores.visible(self.position + row, self.keys);
            let visible = visible.start - self.start..visible.end - self.start;
            for hidden in [0..visible.start, visible.end..columns] {
                weights[hidden.clone()].fill(0.0);
                to_scores[hidden].fill(0.0);
            }
            let out = &self.out[row * width..][..width];
            let grad = &self.grad[row * width..][..width];
            // The gradient along the softmax's sum.
            let along = out.iter().zip(grad).map(|(&o, &g)| f64::from(o) * f64::from(g));
            let along = along.sum::<f64>() as f32;
            let log_sum = self.log_sums[row];
            let scale = self.scores.scale;
            let seen = weights[visible.clone()].iter_mut().zip(&mut to_scores[visible]);
            match self.scores.softcap {
                None => {
                    for (weight, slope) in seen {
                        *weight = exp(*weight * scale - log_sum);
                        *slope = *weight * (*slope - along) * scale;
                    }
                }
                Some(cap) => {
                    for (weight, slope) in seen {
                        let t = tanh(*weight * scale / cap);
                        *weight = exp(cap * t - log_sum);
                        *slope = *weight * (*slope - along) * (1.0 - t * t) * scale;
                    }
                }
            }
        }
    }
}
