//! Attention of one sequence: scores, softmax and the weighted sum of values (Vaswani et al., 2017),
//! a block of queries at a time, so that no matrix of all scores is ever held.
//!
//! The forward pass computes every element in one order that depends on nothing but the position in
//! the sequence: what other sequences are in the batch, how many threads there are and whether the
//! keys came from a cache cannot change a bit.

mod backward;
mod forward;
#[cfg(test)]
mod tests;

use rayon::prelude::*;

use super::dropout::Mask;
use super::rope::{Layout, split, split_mut};

/// What a query sees, and how scores are scaled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scores {
    /// What products of queries and keys are multiplied by.
    pub(crate) scale: f32,
    /// Then s becomes `cap * tanh(s / cap)`.
    pub(crate) softcap: Option<f32>,
    /// Only keys at the query's own position and before.
    pub(crate) causal: bool,
    /// Only that many positions, the query's own included; the later ones too where not causal.
    pub(crate) window: Option<usize>,
}

impl Scores {
    /// The keys, of `keys` in all, that the query at `position` sees.
    fn visible(&self, position: usize, keys: usize) -> std::ops::Range<usize> {
        let start = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let end = match (self.causal, self.window) {
            (true, _) => position + 1,
            (false, Some(window)) => position.saturating_add(window),
            (false, None) => keys,
        };
        start..end.min(keys)
    }
}

/// Sizes of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heads {
    /// Of queries.
    pub(crate) queries: usize,
    /// Of keys and values: a divisor of `queries`.
    pub(crate) keys: usize,
    /// Elements of a head.
    pub(crate) width: usize,
}

impl Heads {
    /// Query heads that share a head of keys.
    fn group(&self) -> usize {
        self.queries / self.keys
    }
}

/// What attention gives, both for each sequence and head of queries.
#[derive(Debug)]
pub(crate) struct Attended {
    /// `[queries, length, width]` for each sequence.
    pub(crate) out: Vec<f32>,
    /// `[queries, length]` for each sequence: log sum exp of the scores.
    pub(crate) log_sums: Vec<f32>,
}

/// `q` is `[queries, length, width]` for each sequence; `keys` and `values` hold, for each sequence and
/// each of its key heads, `[past + length, width]`. `mask` drops weights, numbered as `[queries, length,
/// past + length]` for each sequence; the log sums are those of all scores.
pub(crate) fn attend(
    layout: &Layout,
    heads: Heads,
    scores: Scores,
    mask: Option<Mask>,
    q: &[f32],
    keys: &[&[f32]],
    values: &[&[f32]],
) -> Attended {
    let per_token = heads.queries * heads.width;
    let mut out = vec![0.0; q.len()];
    let mut log_sums = vec![0.0; layout.tokens() * heads.queries];
    let q = split(q, layout, heads.keys, per_token);
    let outs = split_mut(&mut out, layout, heads.keys, per_token);
    let sums = split_mut(&mut log_sums, layout, heads.keys, heads.queries);
    let firsts = first_weights(heads, &q, keys);
    let tasks = q.into_par_iter().zip(outs).zip(sums).enumerate();
    tasks.for_each(|(task, ((q, out), log_sums))| {
        let (keys, values, width) = (keys[task], values[task], heads.width);
        let mask = mask.map(|mask| (mask, firsts[task]));
        let job = forward::Group { heads, scores, mask, q, keys, values, out, log_sums, width };
        pulp::Arch::new().dispatch(job);
    });
    Attended { out, log_sums }
}

/// Number of the first weight of each sequence and key head.
fn first_weights(heads: Heads, q: &[&[f32]], keys: &[&[f32]]) -> Vec<u64> {
    let count = |(q, keys): (&&[f32], &&[f32])| {
        (q.len() / heads.width) as u64 * (keys.len() / heads.width) as u64
    };
    let sizes = q.iter().zip(keys).map(count);
    let sum = |next: &mut u64, size: u64| Some(std::mem::replace(next, *next + size));
    sizes.scan(0, sum).collect()
}

/// Gradients by queries, keys and values, in the order that these have.
#[derive(Debug)]
pub(crate) struct AttentionGradients {
    pub(crate) q: Vec<f32>,
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
}

/// From `grad`, that of [`Attended::out`], for whole sequences: `k` and `v` are
/// `[keys, length, width]` for each.
pub(crate) fn backward(
    layout: &Layout,
    heads: Heads,
    scores: Scores,
    mask: Option<Mask>,
    [q, k, v]: [&[f32]; 3],
    attended: &Attended,
    grad: &[f32],
) -> AttentionGradients {
    let (q_width, k_width) = (heads.queries * heads.width, heads.keys * heads.width);
    let mut to_q = vec![0.0; q.len()];
    let (mut to_k, mut to_v) = (vec![0.0; k.len()], vec![0.0; v.len()]);
    let by_queries = |x| split(x, layout, heads.keys, q_width);
    let by_keys = |x| split(x, layout, heads.keys, k_width);
    let (q, out, grad) = (by_queries(q), by_queries(&attended.out), by_queries(grad));
    let (k, v) = (by_keys(k), by_keys(v));
    let sums = split(&attended.log_sums, layout, heads.keys, heads.queries);
    let firsts = first_weights(heads, &q, &k);
    let grads = split_mut(&mut to_q, layout, heads.keys, q_width)
        .into_par_iter()
        .zip(split_mut(&mut to_k, layout, heads.keys, k_width))
        .zip(split_mut(&mut to_v, layout, heads.keys, k_width));
    grads.enumerate().for_each(|(task, ((to_q, to_k), to_v))| {
        let operands = backward::Operands {
            heads,
            scores,
            mask: mask.map(|mask| (mask, firsts[task])),
            q: q[task],
            k: k[task],
            v: v[task],
            out: out[task],
            log_sums: sums[task],
            grad: grad[task],
        };
        operands.run(to_q, to_k, to_v);
    });
    AttentionGradients { q: to_q, k: to_k, v: to_v }
}
