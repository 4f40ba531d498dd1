//! Tensors from plain numbers.

use bytes::Bytes;

use super::{TensorError, TensorView, measure};
use crate::{
    dtype::{extend_from_f32, first_refused},
    v1::{DType, Tensor},
};

impl Tensor {
    /// A tensor of `values`, rounded to `dtype` (`F32`, `F16` or `BF16`).
    ///
    /// # Errors
    ///
    /// If `shape` is not valid or not that of `values`; if a value is not finite, or would not be
    /// after rounding; if `dtype` is another type.
    pub fn from_f32(values: &[f32], dtype: DType, shape: &[usize]) -> Result<Self, TensorError> {
        if shape.first() == Some(&0) {
            return Err(TensorError::EmptyDimension { index: 0 });
        }
        Self::with_any_rows(values, dtype, shape, false)
    }

    /// A tensor of bytes.
    ///
    /// # Errors
    ///
    /// If `shape` is not valid or not that of `values`.
    pub fn from_u8(values: impl Into<Bytes>, shape: &[usize]) -> Result<Self, TensorError> {
        let tensor = Self {
            dtype: DType::U8.into(),
            shape: shape.iter().map(|size| *size as u64).collect(),
            data: values.into(),
        };
        TensorView::new(&tensor)?;
        Ok(tensor)
    }

    /// As [`Tensor::from_f32`], with a first dimension that may be 0 and, where `log_probabilities`,
    /// values that may be -infinity.
    pub(crate) fn with_any_rows(
        values: &[f32],
        dtype: DType,
        shape: &[usize],
        log_probabilities: bool,
    ) -> Result<Self, TensorError> {
        let Some(largest) = dtype.largest() else {
            let value = dtype.name().to_owned();
            return Err(TensorError::DType { value, accepted: "f32, f16 or bf16" });
        };
        let shape: Vec<u64> = shape.iter().map(|size| *size as u64).collect();
        let (expected, _) = measure(&shape)?;
        if values.len() != expected {
            return Err(TensorError::Count { values: values.len(), expected, shape });
        }
        let representable = |value: f32| {
            (value.abs() <= largest) | (log_probabilities & (value == f32::NEG_INFINITY))
        };
        if let Some(index) = first_refused(values, representable) {
            let (value, dtype) = (values[index], dtype.name());
            return Err(TensorError::Value { index, value, dtype, largest });
        }
        let mut data = Vec::new();
        extend_from_f32(&mut data, dtype, values);
        Ok(Self { dtype: dtype.into(), shape, data: data.into() })
    }
}
