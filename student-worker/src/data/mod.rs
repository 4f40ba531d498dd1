//! The data that a student trains and is tested on.
//!
//! * [`Dataset`]: images, kept as bytes, and their labels.
//! * [`read`]: one from what a recipe says of it; [`Fit`]: what a model asks of it.
//! * Formats: [`mnist`] (on [`idx`] files), `cifar`, `folder` and `parquet` (on encoded `image`s).
//! * [`Filter`]: which rows are trained on; [`subset`]: a part of them.
//! * [`View`]: how an epoch shows them.
//! * [`Sampler`]: the order of a run, seekable to any step.

mod augment;
mod cifar;
mod dataset;
mod file;
mod filter;
mod folder;
pub mod idx;
mod image;
pub mod mnist;
mod parquet;
mod sampler;
mod source;
mod split;
pub mod subset;

pub use augment::{Augment, View};
pub(crate) use dataset::request_rows;
pub use dataset::{DataError, Dataset, Fit};
pub use file::{Fault, FileError};
pub use filter::Filter;
pub(crate) use parquet::{Cell, read_texts};
pub use sampler::{Batch, Sampler};
pub use source::read;
pub use split::Split;

#[cfg(test)]
pub(crate) use dataset::tests::{
    images as images_for_tests, sample as dataset_for_tests, unlabelled as unlabelled_for_tests,
};
#[cfg(test)]
pub(crate) use parquet::tests::of_texts as parquet_of_texts;
