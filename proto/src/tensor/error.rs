//! What can be wrong with a tensor.

/// What is wrong with a tensor. The text starts with the name of the tensor's field, so that a
/// caller can put the path of the tensor itself in front.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TensorError {
    /// The element type is not set, not known, or not accepted here.
    #[error("dtype is {value}; must be {accepted}")]
    DType {
        /// Name of the type, or its number where it has no name.
        value: String,
        /// What is accepted.
        accepted: &'static str,
    },
    /// The wrong number of dimensions.
    #[error("shape has {rank} dimensions; must have {accepted}")]
    Rank {
        /// How many there are.
        rank: usize,
        /// What is accepted.
        accepted: &'static str,
    },
    /// An empty dimension.
    #[error("shape[{index}] is 0; must be at least 1")]
    EmptyDimension {
        /// Which dimension.
        index: usize,
    },
    /// A shape whose size in bytes no machine can address.
    #[error("shape is {shape:?}; its elements must be fewer than 2^63 bytes")]
    Overflow {
        /// The shape.
        shape: Vec<u64>,
    },
    /// Another shape than the context asks for.
    #[error("shape is {shape:?}; must be {expected:?}")]
    Shape {
        /// The shape.
        shape: Vec<u64>,
        /// The shape that is asked for.
        expected: Vec<u64>,
    },
    /// Too few bytes, or too many.
    #[error("data has {bytes} bytes; {dtype} of shape {shape:?} needs exactly {expected}")]
    Length {
        /// Bytes there are.
        bytes: usize,
        /// Bytes there should be.
        expected: usize,
        /// Name of the element type.
        dtype: &'static str,
        /// The shape.
        shape: Vec<u64>,
    },
    /// Values to write that do not fill the shape, or overfill it.
    #[error("data has {values} values; shape {shape:?} needs exactly {expected}")]
    Count {
        /// Values there are.
        values: usize,
        /// Values there should be.
        expected: usize,
        /// The shape.
        shape: Vec<u64>,
    },
    /// A value that the element type cannot hold.
    #[error(
        "data[{index}] is {value}; must be finite and, as {dtype}, at most {largest} in magnitude"
    )]
    Value {
        /// Position of the value, over all dimensions.
        index: usize,
        /// The value.
        value: f32,
        /// Name of the element type.
        dtype: &'static str,
        /// Largest magnitude that the element type holds.
        largest: f32,
    },
}
