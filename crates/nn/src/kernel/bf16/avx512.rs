//! The product with AVX512-BF16: a register of 16 sums takes the products of 16 pairs at once.

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_set1_epi32,
    _mm512_setzero_ps, _mm512_storeu_ps,
};

use rayon::prelude::*;

use super::pack::{COLUMNS, ROWS};

/// Pairs that are added up before the sums go to memory: so many of a panel's stay in the nearest cache.
const DEPTH: usize = 128;
/// Tiles of rows that share what is loaded of the right operand.
const TILES: usize = 8;

/// Whether this processor has the instruction.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")
}

/// Adds to `out` [rows, columns], row-major, the product of packed operands, each with `pairs` pairs.
/// Only where [`available`].
pub(super) fn add_product(
    out: &mut [f32],
    columns: usize,
    left: &[[u32; ROWS]],
    right: &[[u32; COLUMNS]],
    pairs: usize,
) {
    if pairs == 0 || columns == 0 {
        return;
    }
    let tiles = left.len() / pairs;
    let share = tiles.div_ceil(4 * rayon::current_num_threads()).clamp(1, TILES);
    let bands = out.par_chunks_mut(share * ROWS * columns).zip(left.par_chunks(share * pairs));
    bands.for_each(|(out, left)| {
        for start in (0..pairs).step_by(DEPTH) {
            let depth = DEPTH.min(pairs - start);
            for (group, panel) in right.chunks_exact(pairs).enumerate() {
                let panel = &panel[start..][..depth];
                let first = group * COLUMNS;
                let width = COLUMNS.min(columns - first);
                let rows = out.chunks_mut(ROWS * columns);
                for (out, tile) in rows.zip(left.chunks_exact(pairs)) {
                    let mut sums = [[0.0; COLUMNS]; ROWS];
                    // SAFETY: the caller has checked `available`.
                    #[allow(unsafe_code)]
                    unsafe {
                        product(&tile[start..][..depth], panel, &mut sums);
                    }
                    for (out, sums) in out.chunks_exact_mut(columns).zip(&sums) {
                        let out = &mut out[first..][..width];
                        out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                    }
                }
            }
        }
    });
}

#[target_feature(enable = "avx512f,avx512bf16")]
#[allow(clippy::needless_range_loop)]
fn product(tile: &[[u32; ROWS]], panel: &[[u32; COLUMNS]], out: &mut [[f32; COLUMNS]; ROWS]) {
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
    for r in 0..ROWS {
        for (c, out) in out[r].chunks_exact_mut(16).enumerate() {
            // SAFETY: `out` holds 16 elements, and the store needs no alignment.
            #[allow(unsafe_code)]
            unsafe {
                _mm512_storeu_ps(out.as_mut_ptr(), sums[r][c]);
            }
        }
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
