//! Arithmetic on slices, below autograd: what layers, models and optimizers are made of.

pub(crate) mod batch_norm;
pub(crate) mod conv;
pub(crate) mod gemm;
pub(crate) mod packed;
pub(crate) mod parallel;
pub(crate) mod pool;
pub(crate) mod real;
pub(crate) mod storage;
