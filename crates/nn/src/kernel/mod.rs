//! Arithmetic on slices, below autograd: what layers, models and optimizers are made of.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod batch_norm;
pub(crate) mod bf16;
pub(crate) mod conv;
pub(crate) mod dropout;
pub(crate) mod gemm;
pub(crate) mod math;
pub(crate) mod norm;
pub(crate) mod packed;
pub(crate) mod parallel;
pub(crate) mod pool;
pub(crate) mod precision;
pub(crate) mod real;
pub(crate) mod rope;
pub(crate) mod storage;
