//! Operands in the order that the product reads them.

use rayon::prelude::*;

use super::bits;
use crate::kernel::gemm::Matrix;

/// Pairs that are turned around at once.
const BLOCK: usize = 64;
/// Groups of rows that are packed together.
const GROUPS: usize = 8;
/// Rows of so many groups, at most.
const MOST: usize = GROUPS * 32;

#[inline(always)]
fn pair(first: f32, second: f32) -> u32 {
    bits(first) | bits(second) << 16
}

/// For each `L` rows of `matrix`, [columns / 2, L]: two neighbouring elements of a row in one word. The
/// last group and the last pair are filled up with zeros.
pub(super) fn pack<const L: usize>(matrix: Matrix<'_, f32>) -> Vec<[u32; L]> {
    let pairs = matrix.columns().div_ceil(2);
    let mut panels = vec![[0; L]; matrix.rows().div_ceil(L) * pairs];
    if pairs > 0 {
        panels.par_chunks_mut(GROUPS * pairs).enumerate().for_each(|(part, panels)| {
            let first = part * GROUPS * L;
            pulp::Arch::new().dispatch(Part { matrix, first, panels, pairs });
        });
    }
    panels
}

/// Some groups of rows.
struct Part<'a, const L: usize> {
    matrix: Matrix<'a, f32>,
    first: usize,
    panels: &'a mut [[u32; L]],
    pairs: usize,
}

impl<const L: usize> pulp::WithSimd for Part<'_, L> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        match self.matrix.stored() {
            (data, false) => self.of_rows(data),
            (data, true) => self.of_columns(data),
        }
    }
}

impl<const L: usize> Part<'_, L> {
    /// Where a row lies together: a block of a panel stays in the nearest cache while all rows are
    /// written to it.
    #[inline(always)]
    fn of_rows(self, data: &[f32]) {
        let (k, all) = (self.matrix.columns(), self.matrix.rows());
        for (group, panel) in self.panels.chunks_exact_mut(self.pairs).enumerate() {
            let first = self.first + group * L;
            let rows = &data[first * k..all.min(first + L) * k];
            for (block, panel) in panel.chunks_mut(BLOCK).enumerate() {
                let start = 2 * BLOCK * block;
                for (lane, row) in rows.chunks_exact(k).enumerate() {
                    let (whole, rest) = row[start..k.min(start + 2 * BLOCK)].as_chunks::<2>();
                    let mut words = [0; BLOCK];
                    for (word, &[a, b]) in words.iter_mut().zip(whole) {
                        *word = pair(a, b);
                    }
                    if let [last] = rest {
                        words[whole.len()] = pair(*last, 0.0);
                    }
                    panel.iter_mut().zip(words).for_each(|(lanes, word)| lanes[lane] = word);
                }
            }
        }
    }

    /// Where a column does: two of them at once, over all groups.
    #[inline(always)]
    fn of_columns(self, data: &[f32]) {
        let m = self.matrix.rows();
        let count = (self.panels.len() / self.pairs * L).min(m - self.first);
        let zeros = [0.0; MOST];
        let mut words = [0; MOST];
        for (at, columns) in data.chunks(2 * m).enumerate() {
            let (a, b) = columns.split_at(m);
            let a = &a[self.first..][..count];
            let b = if b.is_empty() { &zeros[..count] } else { &b[self.first..][..count] };
            for ((word, &a), &b) in words.iter_mut().zip(a).zip(b) {
                *word = pair(a, b);
            }
            let groups = self.panels.chunks_exact_mut(self.pairs);
            for (panel, lanes) in groups.zip(words.as_chunks::<L>().0) {
                panel[at] = *lanes;
            }
        }
    }
}
