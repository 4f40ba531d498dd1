//! The product with AVX512-BF16: a register of 16 sums takes the products of 16 pairs at once.

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_set1_epi32,
    _mm512_setzero_ps, _mm512_storeu_ps,
};

use rayon::prelude::*;

use super::pack::pack;
use crate::kernel::gemm::Matrix;

/// Rows of the left operand that are multiplied at once.
const ROWS: usize = 12;
/// Columns of the right one: two registers of 16 sums. With those of all rows, 24 of 32 registers.
const COLUMNS: usize = 32;
/// Pairs that are added up before the sums go to memory: so many of a panel's stay in the nearest cache.
const DEPTH: usize = 128;
/// Tiles of rows that share what is loaded of the right operand.
const TILES: usize = 8;

/// Whether this processor has the instruction.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")
}

/// A right operand, rounded, in groups of columns.
#[derive(Debug)]
pub(super) struct Right {
    /// For each group, [pairs of rows, COLUMNS].
    panels: Vec<[u32; COLUMNS]>,
    rows: usize,
    columns: usize,
}

/// A piece of the result: some rows, and of each the same columns.
struct Piece<'a> {
    rows: Vec<&'a mut [f32]>,
    /// Tiles of these rows.
    left: &'a [[u32; ROWS]],
    /// Groups of these columns.
    right: &'a [[u32; COLUMNS]],
}

impl Right {
    /// Only where [`available`].
    pub(super) fn new(matrix: Matrix<'_, f32>) -> Self {
        assert!(available(), "a processor with AVX512-BF16");
        Self { panels: pack(matrix.t()), rows: matrix.rows(), columns: matrix.columns() }
    }

    /// `out = left * self`, or `out += left * self` where `accumulate`.
    pub(super) fn multiply(&self, out: &mut [f32], accumulate: bool, left: Matrix<'_, f32>) {
        let &Self { ref panels, rows, columns } = self;
        assert_eq!(left.columns(), rows, "inner dimensions");
        let m = left.rows();
        assert_eq!(Some(out.len()), m.checked_mul(columns), "a {m} x {columns} product");
        if rows == 0 && !accumulate {
            out.fill(0.0);
        }
        if rows == 0 || out.is_empty() {
            return;
        }
        let pairs = rows.div_ceil(2);
        let left = pack(left);
        // Bands of rows and, where these are few, parts of the columns: a few pieces for each thread.
        let bands = (left.len() / pairs).div_ceil(TILES);
        let parts = (4 * rayon::current_num_threads()).div_ceil(bands);
        let groups = columns.div_ceil(COLUMNS).div_ceil(parts);
        let mut pieces = vec![];
        let tiles = left.chunks(TILES * pairs);
        for (out, left) in out.chunks_mut(TILES * ROWS * columns).zip(tiles) {
            let mut rest: Vec<&mut [f32]> = out.chunks_mut(columns).collect();
            for right in panels.chunks(groups * pairs) {
                let mut rows = vec![];
                for row in &mut rest {
                    let width = row.len().min(groups * COLUMNS);
                    let (part, others) = std::mem::take(row).split_at_mut(width);
                    rows.push(part);
                    *row = others;
                }
                pieces.push(Piece { rows, left, right });
            }
        }
        pieces.into_par_iter().for_each(|piece| piece.compute(pairs, accumulate));
    }
}

impl Piece<'_> {
    fn compute(mut self, pairs: usize, accumulate: bool) {
        for start in (0..pairs).step_by(DEPTH) {
            let depth = DEPTH.min(pairs - start);
            let add = accumulate || start > 0;
            for (group, panel) in self.right.chunks_exact(pairs).enumerate() {
                let panel = &panel[start..][..depth];
                let first = group * COLUMNS;
                let tiles = self.rows.chunks_mut(ROWS).zip(self.left.chunks_exact(pairs));
                for (rows, tile) in tiles {
                    // SAFETY: a `Right` is only made where the processor has the instructions.
                    #[allow(unsafe_code)]
                    unsafe {
                        product(&tile[start..][..depth], panel, rows, first, add);
                    }
                }
            }
        }
    }
}

/// Of a tile and a panel: to the columns from `first` on of up to `ROWS` rows, or added to them.
#[target_feature(enable = "avx512f,avx512bf16")]
#[allow(clippy::needless_range_loop)]
fn product(
    tile: &[[u32; ROWS]],
    panel: &[[u32; COLUMNS]],
    out: &mut [&mut [f32]],
    first: usize,
    add: bool,
) {
    let mut sums: [[__m512; 2]; ROWS] = [[_mm512_setzero_ps(); 2]; ROWS];
    for (rows, columns) in tile.iter().zip(panel) {
        let columns = [load(&columns[..16]), load(&columns[16..])];
        for r in 0..ROWS {
            let row = pairs(_mm512_set1_epi32(rows[r] as i32));
            for c in 0..2 {
                sums[r][c] = _mm512_dpbf16_ps(sums[r][c], row, columns[c]);
            }
        }
    }
    let mut stored = [[0.0; 16]; 2 * ROWS];
    for r in 0..ROWS {
        for c in 0..2 {
            // SAFETY: there are 16 elements, and the store needs no alignment.
            #[allow(unsafe_code)]
            unsafe {
                _mm512_storeu_ps(stored[2 * r + c].as_mut_ptr(), sums[r][c]);
            }
        }
    }
    for (row, sums) in out.iter_mut().zip(stored.chunks_exact(2)) {
        let row = &mut row[first..];
        if let Some(row) = row.first_chunk_mut::<COLUMNS>() {
            put(row, sums.as_flattened(), add);
        } else {
            put(row, sums.as_flattened(), add);
        }
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn put(out: &mut [f32], sums: &[f32], add: bool) {
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = if add { *out + sum } else { *sum };
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn load(words: &[u32]) -> __m512bh {
    assert_eq!(words.len(), 16, "words of a register");
    // SAFETY: there are 16 words, and the load needs no alignment.
    #[allow(unsafe_code)]
    pairs(unsafe { _mm512_loadu_si512(words.as_ptr().cast()) })
}

#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn pairs(words: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits without invalid values.
    #[allow(unsafe_code)]
    unsafe {
        std::mem::transmute(words)
    }
}
