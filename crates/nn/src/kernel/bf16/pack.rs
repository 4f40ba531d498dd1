//! Operands in the order that the product reads them.

use rayon::prelude::*;

use crate::kernel::gemm::Matrix;

/// Rows of the left operand that are multiplied at once.
pub(super) const ROWS: usize = 12;
/// Columns of the right one: two registers of 16 sums. With those of all rows, 24 of 32 registers.
pub(super) const COLUMNS: usize = 32;
/// Pairs that are turned around at once.
const BLOCK: usize = 64;

/// The bf16 nearest to `x`, ties to even, in the lower half; NaN stays NaN.
#[inline(always)]
pub(super) fn bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let up = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    if x.is_nan() { (bits >> 16) | 0x40 } else { up }
}

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
        match matrix.stored() {
            // A row lies together.
            (data, false) => {
                let k = matrix.columns();
                let rows = data[first * k..][..count * k].chunks_exact(k);
                for (lane, row) in rows.enumerate() {
                    let blocks = panel.chunks_mut(BLOCK).zip(row.chunks(2 * BLOCK));
                    for (panel, row) in blocks {
                        let mut words = [0; BLOCK];
                        let (whole, rest) = row.as_chunks::<2>();
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
            // A column does.
            (data, true) => {
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
            }
        }
    }
}
