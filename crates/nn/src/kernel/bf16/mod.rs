//! Matrix products of operands rounded to bfloat16, with sums in f32: what mixed precision computes
//! (Micikevicius et al., 2018, "Mixed Precision Training").
//!
//! Where the processor multiplies pairs of bf16 (AVX512-BF16), at twice the rate of f32; elsewhere
//! rounded values are multiplied in f32. Products of two bf16 are exact in f32, so that both differ by
//! the rounding of sums alone, and by numbers too small to be normal, which the processor takes as 0. The
//! split over threads never divides a sum.

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod pack;
#[cfg(test)]
mod tests;

use half::bf16;
use rayon::prelude::*;

use super::gemm::{Matrix, matmul};
use super::parallel::PIECE;

/// A right operand, arranged once for repeated products.
#[derive(Debug)]
pub(crate) struct Right(Arranged);

#[derive(Debug)]
enum Arranged {
    /// For the processor's own instruction.
    #[cfg(target_arch = "x86_64")]
    Packed(avx512::Right),
    Rounded(Rounded),
}

impl Right {
    /// Rounds and arranges.
    pub(crate) fn new(matrix: Matrix<'_, f32>) -> Self {
        #[cfg(target_arch = "x86_64")]
        if avx512::available() {
            return Self(Arranged::Packed(avx512::Right::new(matrix)));
        }
        Self(Arranged::Rounded(Rounded::new(matrix)))
    }

    /// `out = left * self`, or `out += left * self` where `accumulate`; `out` is row-major.
    pub(crate) fn multiply(&self, out: &mut [f32], accumulate: bool, left: Matrix<'_, f32>) {
        match &self.0 {
            #[cfg(target_arch = "x86_64")]
            Arranged::Packed(right) => right.multiply(out, accumulate, left),
            Arranged::Rounded(right) => {
                matmul(out, accumulate, Rounded::new(left).matrix(), right.matrix());
            }
        }
    }
}

/// Elements as they were stored, rounded.
#[derive(Debug)]
struct Rounded {
    values: Vec<f32>,
    rows: usize,
    columns: usize,
    /// Whether columns lie together instead of rows.
    transposed: bool,
}

impl Rounded {
    fn new(matrix: Matrix<'_, f32>) -> Self {
        let (data, transposed) = matrix.stored();
        let mut values = data.to_vec();
        round(&mut values);
        Self { values, rows: matrix.rows(), columns: matrix.columns(), transposed }
    }

    fn matrix(&self) -> Matrix<'_, f32> {
        match self.transposed {
            false => Matrix::new(&self.values, self.rows, self.columns),
            true => Matrix::new(&self.values, self.columns, self.rows).t(),
        }
    }
}

/// The bf16 nearest to `x`, ties to even, in the lower half; NaN stays NaN.
#[inline(always)]
fn bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let up = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    if x.is_nan() { (bits >> 16) | 0x40 } else { up }
}

/// Rounds in place.
pub(crate) fn round(values: &mut [f32]) {
    let piece = |values: &mut [f32]| pulp::Arch::new().dispatch(Round(values));
    values.par_chunks_mut(PIECE).for_each(piece);
}

struct Round<'a>(&'a mut [f32]);

impl pulp::WithSimd for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        self.0.iter_mut().for_each(|x| *x = f32::from_bits(bits(*x) << 16));
    }
}

/// The upper halves of values that [`round`] has been over.
pub(crate) fn narrow(values: &[f32]) -> Vec<bf16> {
    let upper = |x: &f32| bf16::from_bits((x.to_bits() >> 16) as u16);
    values.par_iter().with_min_len(PIECE).map(upper).collect()
}

/// As f32.
pub(crate) fn widen(values: &[bf16]) -> Vec<f32> {
    let wide = |x: &bf16| f32::from_bits(u32::from(x.to_bits()) << 16);
    values.par_iter().with_min_len(PIECE).map(wide).collect()
}
