//! The data that a student trains and is tested on.
//!
//! * [`idx`]: the file format.
//! * [`Dataset`]: labelled rows, kept as bytes.
//! * [`mnist`]: which files make up the dataset.
//! * [`subset`]: a small, class-balanced part of it.
//! * [`Sampler`]: the order of a run, seekable to any step.

mod dataset;
pub mod idx;
pub mod mnist;
mod sampler;
pub mod subset;

pub use dataset::{DataError, Dataset};
pub use sampler::{Batch, Sampler};

#[cfg(test)]
pub(crate) use dataset::tests::sample as dataset_for_tests;
