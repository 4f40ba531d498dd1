//! Why labels cannot be encoded or decoded, and requests not packed or unpacked.

use std::fmt::Display;

use crate::{bits::BitsError, tensor::TensorError};

/// Why labels cannot be encoded or decoded, or ids and sequences of a request not packed or
/// unpacked. Fields are named by their path from the message at hand.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CodecError {
    /// A part that must be there is not.
    #[error("{field} is missing")]
    Missing {
        /// The part.
        field: &'static str,
    },
    /// A number outside its range, or one that disagrees with another.
    #[error("{field} is {value}; must be {accepted}")]
    Field {
        /// The field, with an index where it is an array.
        field: String,
        /// What it holds.
        value: String,
        /// What it may hold.
        accepted: String,
    },
    /// An array of the wrong length.
    #[error("{field} has {len} elements; must have {expected}")]
    Length {
        /// The array.
        field: &'static str,
        /// Elements there are.
        len: usize,
        /// Elements there should be.
        expected: u128,
    },
    /// A tensor that is not well formed, or not of the shape that the other fields ask for.
    #[error("{field}.{error}")]
    Tensor {
        /// The tensor.
        field: &'static str,
        /// What is wrong with it.
        error: TensorError,
    },
    /// Packed values that are not well formed.
    #[error("{field} {error}")]
    Bits {
        /// The packed field.
        field: &'static str,
        /// What is wrong with it.
        error: BitsError,
    },
}

/// A [`CodecError::Field`].
pub(crate) fn refuse(
    field: impl Into<String>,
    value: impl Display,
    accepted: impl Into<String>,
) -> CodecError {
    CodecError::Field { field: field.into(), value: value.to_string(), accepted: accepted.into() }
}
