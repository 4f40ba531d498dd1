//! Operands in the order that the product reads them.

use rayon::prelude::*;

use super::bits;
use crate::kernel::gemm::Matrix;

/// Pairs that are turned around at once.
const BLOCK: usize = 64;

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
        panels.par_chunks_mut(pairs).enumerate().for_each(|(group, panel)| {
            pulp::Arch::new().dispatch(Panel { matrix, first: group * L, panel });
        });
    }
    panels
}

/// One group of rows.
struct Panel<'a, const L: usize> {
    matrix: Matrix<'a, f32>,
    first: usize,
    panel: &'a mut [[u32; L]],
}

impl<const L: usize> pulp::WithSimd for Panel<'_, L> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        let Self { matrix, first, panel } = self;
        let count = L.min(matrix.rows() - first);
        let (data, transposed) = matrix.stored();
        if transposed {
            // A column lies together.
            let m = matrix.rows();
            for (lanes, columns) in panel.iter_mut().zip(data.chunks(2 * m)) {
                let (a, b) = columns.split_at(m);
                let a = &a[first..][..count];
                if b.is_empty() {
                    lanes.iter_mut().zip(a).for_each(|(lane, &a)| *lane = pair(a, 0.0));
                } else {
                    let b = &b[first..][..count];
                    let both = lanes.iter_mut().zip(a).zip(b);
                    both.for_each(|((lane, &a), &b)| *lane = pair(a, b));
                }
            }
            return;
        }
        // A row does: a block of the panel stays in the nearest cache while all rows are written to it.
        let k = matrix.columns();
        let rows = &data[first * k..][..count * k];
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
