//! Rotary positions, and the two orders that heads come in: `[tokens, heads * width]` as linear layers
//! have it, and for each sequence `[heads, length, width]` as attention reads it.

use std::ops::Range;

use rayon::prelude::*;

use super::parallel::PIECE;

/// Sequences one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Tokens of each.
    pub(crate) lengths: Vec<usize>,
    /// Tokens that each has behind it already: the position of its first one here.
    pub(crate) past: Vec<usize>,
}

impl Layout {
    /// Whole sequences.
    pub(crate) fn whole(lengths: Vec<usize>) -> Self {
        let past = vec![0; lengths.len()];
        Self { lengths, past }
    }

    pub(crate) fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Positions that sine and cosine are needed at.
    pub(crate) fn positions(&self) -> Range<usize> {
        let ends = self.lengths.iter().zip(&self.past).map(|(length, past)| length + past);
        self.past.iter().min().copied().unwrap_or(0)..ends.max().unwrap_or(0)
    }
}

/// Cosines and sines of every angle.
#[derive(Debug)]
pub(crate) struct Rotation {
    /// [positions, half].
    cosines: Vec<f32>,
    sines: Vec<f32>,
    half: usize,
    /// The first position that is here.
    first: usize,
}

impl Rotation {
    /// Of some positions; results are multiplied by `scale`.
    pub(crate) fn new(inverse_frequencies: &[f32], scale: f32, positions: Range<usize>) -> Self {
        let (half, first) = (inverse_frequencies.len(), positions.start);
        let count = positions.len() * half;
        let (mut cosines, mut sines) = (vec![0.0; count], vec![0.0; count]);
        for (at, position) in positions.enumerate() {
            for (i, &frequency) in inverse_frequencies.iter().enumerate() {
                // The angle in f32, as transformers computes it; its functions exactly.
                let angle = f64::from(position as f32 * frequency);
                cosines[at * half + i] = angle.cos() as f32 * scale;
                sines[at * half + i] = angle.sin() as f32 * scale;
            }
        }
        Self { cosines, sines, half, first }
    }

    /// Turns one head of one token, forwards or (`sign` -1) backwards: the transpose.
    #[inline(always)]
    fn turn(&self, position: usize, sign: f32, x: &[f32], out: &mut [f32]) {
        let at = (position - self.first) * self.half;
        let (cosines, sines) = (&self.cosines[at..][..self.half], &self.sines[at..][..self.half]);
        let (first, second) = x.split_at(self.half);
        let (out_first, out_second) = out.split_at_mut(self.half);
        for i in 0..self.half {
            let (c, s) = (cosines[i], sign * sines[i]);
            out_first[i] = first[i] * c - second[i] * s;
            out_second[i] = second[i] * c + first[i] * s;
        }
    }
}

/// Splits what belongs to all sequences, `per_token` elements each, into one slice for each
/// sequence's `parts` equal parts.
pub(crate) fn split_mut<'a, T>(
    mut data: &'a mut [T],
    layout: &Layout,
    parts: usize,
    per_token: usize,
) -> Vec<&'a mut [T]> {
    let mut all = Vec::with_capacity(layout.lengths.len() * parts);
    for length in &layout.lengths {
        for _ in 0..parts {
            let (part, rest) = data.split_at_mut(length * per_token / parts);
            all.push(part);
            data = rest;
        }
    }
    all
}

/// The same of a shared slice.
pub(crate) fn split<'a, T>(
    mut data: &'a [T],
    layout: &Layout,
    parts: usize,
    per_token: usize,
) -> Vec<&'a [T]> {
    let mut all = Vec::with_capacity(layout.lengths.len() * parts);
    for length in &layout.lengths {
        for _ in 0..parts {
            let (part, rest) = data.split_at(length * per_token / parts);
            all.push(part);
            data = rest;
        }
    }
    all
}

/// `[tokens, heads * width]` to heads of sequences, rotated where there is a rotation.
pub(crate) fn to_heads(
    x: &[f32],
    layout: &Layout,
    heads: usize,
    width: usize,
    rotation: Option<&Rotation>,
) -> Vec<f32> {
    let per_token = heads * width;
    let mut out = vec![0.0; x.len()];
    let sequences = split(x, layout, 1, per_token);
    let mut tasks = split_mut(&mut out, layout, heads, per_token);
    tasks.par_iter_mut().enumerate().with_min_len(min_tasks(x.len(), layout, heads)).for_each(
        |(task, out)| {
            let (sequence, head) = (task / heads, task % heads);
            let (x, past) = (sequences[sequence], layout.past[sequence]);
            for (i, out) in out.chunks_exact_mut(width).enumerate() {
                let x = &x[i * per_token + head * width..][..width];
                match rotation {
                    Some(rotation) => rotation.turn(past + i, 1.0, x, out),
                    None => out.copy_from_slice(x),
                }
            }
        },
    );
    out
}

/// Heads of sequences to `[tokens, heads * width]`, rotated back where there is a rotation.
pub(crate) fn from_heads(
    x: &[f32],
    layout: &Layout,
    heads: usize,
    width: usize,
    rotation: Option<&Rotation>,
) -> Vec<f32> {
    let per_token = heads * width;
    let mut out = vec![0.0; x.len()];
    let parts = split(x, layout, heads, per_token);
    let tasks = split_mut(&mut out, layout, 1, per_token);
    for (sequence, out) in tasks.into_iter().enumerate() {
        let (heads_of, past) = (&parts[sequence * heads..][..heads], layout.past[sequence]);
        let tokens = (PIECE / per_token).max(1);
        out.par_chunks_mut(tokens * per_token).enumerate().for_each(|(piece, out)| {
            for (i, out) in out.chunks_exact_mut(per_token).enumerate() {
                let token = piece * tokens + i;
                for (out, head) in out.chunks_exact_mut(width).zip(heads_of) {
                    let x = &head[token * width..][..width];
                    match rotation {
                        Some(rotation) => rotation.turn(past + token, -1.0, x, out),
                        None => out.copy_from_slice(x),
                    }
                }
            }
        });
    }
    out
}

/// How many (sequence, head) pairs are worth a thread.
fn min_tasks(elements: usize, layout: &Layout, heads: usize) -> usize {
    let tasks = (layout.lengths.len() * heads).max(1);
    (PIECE / (elements / tasks).max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_by_hand() {
        let rotation = Rotation::new(&[0.5, 0.25], 2.0, 0..4);
        let layout = Layout { lengths: vec![1], past: vec![3] };
        let found = to_heads(&[1.0, 2.0, 3.0, 4.0], &layout, 1, 4, Some(&rotation));
        let (a, b) = (1.5f32, 0.75f32);
        let expected = [
            2.0 * (a.cos() - 3.0 * a.sin()),
            2.0 * (2.0 * b.cos() - 4.0 * b.sin()),
            2.0 * (3.0 * a.cos() + a.sin()),
            2.0 * (4.0 * b.cos() + 2.0 * b.sin()),
        ];
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
    }

    #[test]
    fn there_and_back_is_the_identity() {
        let layout = Layout { lengths: vec![3, 1, 70], past: vec![0, 5, 2] };
        let (heads, width) = (3, 4);
        let x: Vec<f32> = (0..layout.tokens() * heads * width).map(|i| (i % 97) as f32).collect();
        let rotation = Rotation::new(&[1.0, 0.3], 1.0, layout.positions());
        let plain = to_heads(&x, &layout, heads, width, None);
        // Sequence 1 begins at token 3; its second head at the 4 elements behind its first.
        assert_eq!(
            plain[(3 * heads + 1) * width..][..width],
            x[3 * heads * width + width..][..width]
        );
        // Head 1 of token 2 of the first sequence.
        assert_eq!(plain[(3 + 2) * width..][..width], x[(2 * heads + 1) * width..][..width]);
        assert_eq!(from_heads(&plain, &layout, heads, width, None), x);
        let turned = to_heads(&x, &layout, heads, width, Some(&rotation));
        assert_ne!(turned, plain);
        let back = from_heads(&turned, &layout, heads, width, Some(&rotation));
        assert!(back.iter().zip(&x).all(|(a, b)| (a - b).abs() < 1e-4));
    }
}
