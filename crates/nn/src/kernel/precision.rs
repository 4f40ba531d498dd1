//! The numbers that matrix products are computed in.

use half::bf16;
use serde::{Deserialize, Serialize};

use super::bf16 as mixed;
use super::gemm::{Matrix, matmul};

/// The numbers that the linear layers of training are computed in. Weights, their gradients, the residual
/// stream, norms, attention, softmax and losses are f32 either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32 throughout.
    #[default]
    F32,
    /// Mixed precision (Micikevicius et al., 2018): the operands of the layers' products, and what is kept
    /// inside blocks for the backward pass, are rounded to bf16 (8 bits of mantissa, ties to even); sums
    /// are f32. There is no loss scale, for bf16 has the exponents of f32. Activations take up to half
    /// the memory, against two copies of the output projection in bf16; faster where the processor has
    /// AVX512-BF16.
    Bf16,
}

impl Precision {
    /// Whether it is [`Self::F32`].
    pub fn is_f32(&self) -> bool {
        *self == Self::F32
    }

    /// `out = lhs * rhs`, or `out += lhs * rhs` where `accumulate`; `out` is row-major.
    pub(crate) fn multiply(
        self,
        out: &mut [f32],
        accumulate: bool,
        lhs: Matrix<'_, f32>,
        rhs: Matrix<'_, f32>,
    ) {
        self.right(rhs).multiply(out, accumulate, lhs);
    }

    /// Arranges a right operand for several products.
    pub(crate) fn right(self, rhs: Matrix<'_, f32>) -> Right<'_> {
        match self {
            Self::F32 => Right::F32(rhs),
            Self::Bf16 => Right::Bf16(mixed::Right::new(rhs)),
        }
    }

    /// Makes of values what products would make of them.
    pub(crate) fn round(self, values: &mut [f32]) {
        if self == Self::Bf16 {
            mixed::round(values);
        }
    }

    /// Stores values that [`Self::round`] has been over, without loss.
    pub(crate) fn store(self, values: Vec<f32>) -> Stored {
        match self {
            Self::F32 => Stored::F32(values),
            Self::Bf16 => Stored::Bf16(mixed::narrow(&values)),
        }
    }
}

/// The right operand of products.
pub(crate) enum Right<'a> {
    F32(Matrix<'a, f32>),
    Bf16(mixed::Right),
}

impl Right<'_> {
    /// `out = left * self`, or `out += left * self` where `accumulate`; `out` is row-major.
    pub(crate) fn multiply(&self, out: &mut [f32], accumulate: bool, left: Matrix<'_, f32>) {
        match self {
            Self::F32(right) => matmul(out, accumulate, left, *right),
            Self::Bf16(right) => right.multiply(out, accumulate, left),
        }
    }
}

/// Values that wait for the backward pass.
#[derive(Debug)]
pub(crate) enum Stored {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Stored {
    /// The values that were stored.
    pub(crate) fn take(self) -> Vec<f32> {
        match self {
            Self::F32(values) => values,
            Self::Bf16(values) => mixed::widen(&values),
        }
    }
}
