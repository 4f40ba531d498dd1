//! Matrix products of operands rounded to bfloat16, with sums in f32: what mixed precision computes
//! (Micikevicius et al., 2018, "Mixed Precision Training").
//!
//! Where the processor multiplies pairs of bf16 (AVX512-BF16), at twice the rate of f32; elsewhere
//! rounded values are multiplied in f32. Products of two bf16 are exact in f32, so that both differ by
//! the rounding of sums alone. The split over threads never divides a sum.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod pack;
#[cfg(test)]
mod tests;

use half::bf16;
use rayon::prelude::*;

use super::gemm::{Matrix, matmul};
use super::parallel::PIECE;
use pack::{COLUMNS, pack};

/// A right operand, arranged once for repeated products.
#[derive(Debug)]
pub(crate) enum Right {
    /// Columns in pairs of rows, for the processor's own instruction.
    #[cfg(target_arch = "x86_64")]
    Packed { panels: Vec<[u32; COLUMNS]>, rows: usize, columns: usize },
    /// Row-major, rounded.
    Rounded { values: Vec<f32>, rows: usize, columns: usize },
}

impl Right {
    /// Rounds and arranges.
    pub(crate) fn new(matrix: Matrix<'_, f32>) -> Self {
        let (rows, columns) = (matrix.rows(), matrix.columns());
        #[cfg(target_arch = "x86_64")]
        if avx512::available() {
            return Self::Packed { panels: pack(matrix.t()), rows, columns };
        }
        Self::Rounded { values: rounded(matrix), rows, columns }
    }

    /// `out = left * self`, or `out += left * self` where `accumulate`; `out` is row-major.
    pub(crate) fn multiply(&self, out: &mut [f32], accumulate: bool, left: Matrix<'_, f32>) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Packed { panels, rows, columns } => {
                assert_eq!(left.columns(), *rows, "inner dimensions");
                let m = left.rows();
                assert_eq!(Some(out.len()), m.checked_mul(*columns), "a {m} x {columns} product");
                if !accumulate {
                    out.fill(0.0);
                }
                avx512::add_product(out, *columns, &pack(left), panels, rows.div_ceil(2));
            }
            Self::Rounded { values, rows, columns } => {
                let (m, k) = (left.rows(), left.columns());
                let left = rounded(left);
                let right = Matrix::new(values, *rows, *columns);
                matmul(out, accumulate, Matrix::new(&left, m, k), right);
            }
        }
    }
}

/// Rounds in place, ties to even.
pub(crate) fn round(values: &mut [f32]) {
    let piece = |values: &mut [f32]| pulp::Arch::new().dispatch(Round(values));
    values.par_chunks_mut(PIECE).for_each(piece);
}

struct Round<'a>(&'a mut [f32]);

impl pulp::WithSimd for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        self.0.iter_mut().for_each(|x| *x = f32::from_bits(pack::bits(*x) << 16));
    }
}

/// The upper halves of values that [`round`] has been over.
pub(crate) fn narrow(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|x| bf16::from_bits((x.to_bits() >> 16) as u16)).collect()
}

/// As f32.
pub(crate) fn widen(values: &[bf16]) -> Vec<f32> {
    values.iter().map(|x| f32::from_bits(u32::from(x.to_bits()) << 16)).collect()
}

/// A row-major copy, rounded.
fn rounded(matrix: Matrix<'_, f32>) -> Vec<f32> {
    let mut values = matrix.to_row_major();
    round(&mut values);
    values
}
