//! The forward pass of the query heads that share a head of keys.

use super::{Heads, Scores};
use crate::kernel::dropout::Mask;
use crate::kernel::math::{exp, tanh};

/// Keys, or elements of a value, computed at once.
const LANES: usize = 16;
/// Queries computed at once.
const ROWS: usize = 6;
/// Queries whose scores are held at once.
const BLOCK: usize = 8 * ROWS;

/// One sequence's query heads of one key head.
pub(super) struct Group<'a> {
    pub(super) heads: Heads,
    pub(super) scores: Scores,
    /// And the number of the first weight.
    pub(super) mask: Option<(Mask, u64)>,
    /// [group, length, width].
    pub(super) q: &'a [f32],
    /// [past + length, width].
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
    /// [group, length, width].
    pub(super) out: &'a mut [f32],
    /// [group, length].
    pub(super) log_sums: &'a mut [f32],
    pub(super) width: usize,
}

impl pulp::WithSimd for Group<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        match LANES / S::F32_LANES {
            1 => self.run::<S, 1>(simd),
            2 => self.run::<S, 2>(simd),
            4 => self.run::<S, 4>(simd),
            _ => self.run::<S, LANES>(simd),
        }
    }
}

impl Group<'_> {
    #[inline(always)]
    fn run<S: pulp::Simd, const R: usize>(self, simd: S) {
        let Self { heads, scores, mask, q, keys, values, out, log_sums, width } = self;
        let count = keys.len() / width;
        let length = q.len() / (heads.group() * width);
        let past = count - length;
        let key_panels = transposed(keys, width);
        let value_panels = by_dimension(values, width);
        let columns = count.next_multiple_of(LANES);
        let mut weights = vec![0.0; BLOCK * columns];
        let rows = q.chunks_exact(length * width).zip(out.chunks_exact_mut(length * width));
        let heads = rows.zip(log_sums.chunks_exact_mut(length)).enumerate();
        for (head, ((q, out), log_sums)) in heads {
            let blocks = q.chunks(BLOCK * width).zip(out.chunks_mut(BLOCK * width));
            for (block, ((q, out), sums)) in blocks.zip(log_sums.chunks_mut(BLOCK)).enumerate() {
                let first = past + block * BLOCK;
                let n = sums.len();
                // The keys that any of these queries sees, in whole groups.
                let start = scores.visible(first, count).start / LANES * LANES;
                let end = scores.visible(first + n - 1, count).end;
                let panels = start / LANES..end.div_ceil(LANES);
                for at in (0..n).step_by(ROWS) {
                    let rows = tile(q, width, at, n);
                    for panel in panels.clone() {
                        let weights_of = &key_panels[panel * width..][..width];
                        let products = product::<S, R>(simd, rows, weights_of);
                        for (row, products) in (at..n.min(at + ROWS)).zip(&products) {
                            let to = row * columns + panel * LANES;
                            weights[to..][..LANES].copy_from_slice(products);
                        }
                    }
                }
                let span = start..panels.end * LANES;
                for (at, sum) in sums.iter_mut().enumerate() {
                    let visible = scores.visible(first + at, count);
                    let visible = visible.start - start..visible.end - start;
                    let row = &mut weights[at * columns..][span.clone()];
                    *sum = soften(&scores, row, visible.clone());
                    if let Some((mask, number)) = mask {
                        let query = head * length + first - past + at;
                        let number = number + (query * count + start + visible.start) as u64;
                        mask.apply_from(number, &mut row[visible]);
                    }
                }
                for at in (0..n).step_by(ROWS) {
                    // All columns of the span: beyond the visible ones weights are zeros.
                    let length = span.end.min(count) - span.start;
                    let rows = std::array::from_fn(|r| {
                        let row = (at + r).min(n - 1);
                        &weights[row * columns + span.start..][..length]
                    });
                    for (group, panel) in value_panels.chunks_exact(count).enumerate() {
                        let panel = &panel[span.start..][..length];
                        let sums = product::<S, R>(simd, rows, panel);
                        let start = group * LANES;
                        let filled = LANES.min(width - start);
                        for (row, sums) in (at..n.min(at + ROWS)).zip(&sums) {
                            out[row * width + start..][..filled].copy_from_slice(&sums[..filled]);
                        }
                    }
                }
            }
        }
    }
}

/// Rows `at` to `at + ROWS` of `n`; the last one again where there are fewer.
#[inline(always)]
fn tile(q: &[f32], width: usize, at: usize, n: usize) -> [&[f32]; ROWS] {
    std::array::from_fn(|r| &q[(at + r).min(n - 1) * width..][..width])
}

/// For each group of keys [width, LANES], the last group filled up with zeros.
#[inline(always)]
fn transposed(keys: &[f32], width: usize) -> Vec<[f32; LANES]> {
    let groups = (keys.len() / width).div_ceil(LANES);
    let mut panels = vec![[0.0; LANES]; groups * width];
    for (key, row) in keys.chunks_exact(width).enumerate() {
        let panel = &mut panels[key / LANES * width..][..width];
        for (lanes, &x) in panel.iter_mut().zip(row) {
            lanes[key % LANES] = x;
        }
    }
    panels
}

/// For each group of dimensions [keys, LANES], the last group filled up with zeros.
#[inline(always)]
fn by_dimension(values: &[f32], width: usize) -> Vec<[f32; LANES]> {
    let count = values.len() / width;
    let mut panels = vec![[0.0; LANES]; width.div_ceil(LANES) * count];
    for (key, row) in values.chunks_exact(width).enumerate() {
        for (group, part) in row.chunks(LANES).enumerate() {
            panels[group * count + key][..part.len()].copy_from_slice(part);
        }
    }
    panels
}

/// Scores of a row to weights that sum to 1 over `visible` and are 0 elsewhere; log sum exp of the
/// scores.
#[inline(always)]
fn soften(scores: &Scores, row: &mut [f32], visible: std::ops::Range<usize>) -> f32 {
    let (before, rest) = row.split_at_mut(visible.start);
    let (seen, after) = rest.split_at_mut(visible.end - visible.start);
    before.fill(0.0);
    after.fill(0.0);
    match scores.softcap {
        None => seen.iter_mut().for_each(|s| *s *= scores.scale),
        Some(cap) => seen.iter_mut().for_each(|s| *s = cap * tanh(*s * scores.scale / cap)),
    }
    // Not `max`, which drops NaN: a NaN makes the whole row NaN below, by its own weight.
    let mut largest = [f32::NEG_INFINITY; LANES];
    let (blocks, tail) = seen.as_chunks::<LANES>();
    for block in blocks {
        for (largest, &s) in largest.iter_mut().zip(block) {
            *largest = if s > *largest { s } else { *largest };
        }
    }
    let max = largest.into_iter().chain(tail.iter().copied());
    let max = max.fold(f32::NEG_INFINITY, |max, s| if s > max { s } else { max });
    for s in seen.iter_mut() {
        *s = exp(*s - max);
    }
    // In lanes of the whole row, so that the order depends on a key's position alone.
    let mut lanes = [0f32; LANES];
    let (blocks, tail) = row.as_chunks::<LANES>();
    for block in blocks {
        lanes.iter_mut().zip(block).for_each(|(lane, &x)| *lane += x);
    }
    debug_assert!(tail.is_empty(), "rows come in whole groups of keys");
    let sum: f64 = lanes.iter().map(|&x| f64::from(x)).sum();
    let scale = (1.0 / sum) as f32;
    row.iter_mut().for_each(|x| *x *= scale);
    (f64::from(max) + sum.ln()) as f32
}

/// Products of rows with one panel: each element a chain of fused multiply-adds in ascending order.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
fn product<S: pulp::Simd, const R: usize>(
    simd: S,
    rows: [&[f32]; ROWS],
    panel: &[[f32; LANES]],
) -> [[f32; LANES]; ROWS] {
    let mut sums = [[simd.splat_f32s(0.0); R]; ROWS];
    let n = panel.len();
    let rows: [&[f32]; ROWS] = std::array::from_fn(|r| &rows[r][..n]);
    for i in 0..n {
        let weights = S::as_simd_f32s(&panel[i]).0;
        for r in 0..ROWS {
            let x = simd.splat_f32s(rows[r][i]);
            for c in 0..R {
                sums[r][c] = simd.mul_add_f32s(x, weights[c], sums[r][c]);
            }
        }
    }
    let mut out = [[0.0; LANES]; ROWS];
    for r in 0..ROWS {
        for c in 0..R {
            S::as_mut_simd_f32s(&mut out[r]).0[c] = sums[r][c];
        }
    }
    out
}
