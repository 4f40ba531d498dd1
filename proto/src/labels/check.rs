//! The rules that several encodings share.

use super::{CodecError, Extent, SoftLabels, refuse};
use crate::{
    dtype::first_refused,
    tensor::TensorView,
    v1::{DType, DenseKind, Tensor},
};

/// How far a log-probability may lie above 0, and a probability above 1.
///
/// A softmax whose sum was rounded can exceed 1 by a little. 2^-13 is representable in every label
/// type, so that rounding to one never carries a value across this bound.
pub const LOG_PROBABILITY_SLACK: f32 = 1.0 / 8192.0;

pub(super) fn classes(extent: Extent) -> Result<(), CodecError> {
    if extent.classes == 0 {
        return Err(refuse("classes", 0, "1 to 2^32 - 1"));
    }
    Ok(())
}

/// 0 exactly where the temperature plays no part.
pub(super) fn temperature(temperature: f32, labels: &SoftLabels) -> Result<(), CodecError> {
    let (valid, accepted) = match labels {
        SoftLabels::Dense { kind: DenseKind::Logits, .. } => (temperature == 0.0, "0 for logits"),
        SoftLabels::Hidden { .. } => (temperature == 0.0, "0 for hidden states"),
        _ => (temperature.is_finite() && temperature > 0.0, "finite and above 0"),
    };
    if valid { Ok(()) } else { Err(refuse("temperature", temperature, accepted)) }
}

/// That a number of classes per row is 1 to V.
pub(super) fn per_row(
    field: &'static str,
    per_row: usize,
    extent: Extent,
) -> Result<(), CodecError> {
    if per_row == 0 || per_row > extent.vocabulary() {
        return Err(refuse(field, per_row, format!("1 to the {} classes", extent.classes)));
    }
    Ok(())
}

/// That an array has `rows * per_row` elements.
pub(super) fn length(
    field: &'static str,
    len: usize,
    rows: usize,
    per_row: usize,
) -> Result<(), CodecError> {
    let expected = rows as u128 * per_row as u128;
    if len as u128 == expected {
        return Ok(());
    }
    Err(CodecError::Length { field, len, expected })
}

/// That every value is accepted.
pub(super) fn values(
    field: &str,
    values: &[f32],
    accepted: &str,
    accept: impl Fn(f32) -> bool,
) -> Result<(), CodecError> {
    match first_refused(values, accept) {
        None => Ok(()),
        Some(index) => Err(refuse(format!("{field}[{index}]"), values[index], accepted)),
    }
}

/// That values can be log-probabilities: up to 0, -infinity included, and not NaN.
pub(super) fn log_probabilities(field: &str, log_p: &[f32]) -> Result<(), CodecError> {
    values(field, log_p, "at most 0", |value| value <= LOG_PROBABILITY_SLACK)
}

/// That values can be the log of the mass of what a row leaves out, of which there may be nothing.
pub(super) fn log_tail_mass(
    field: &str,
    log_mass: &[f32],
    nothing_left: bool,
) -> Result<(), CodecError> {
    if nothing_left {
        let accepted = "-infinity where a row holds all classes";
        return values(field, log_mass, accepted, |value| value == f32::NEG_INFINITY);
    }
    log_probabilities(field, log_mass)
}

/// The first id found twice in `row`, with `sorted` as working space.
pub(crate) fn duplicate(row: &[u32], sorted: &mut Vec<u32>) -> Option<u32> {
    sorted.clear();
    sorted.extend_from_slice(row);
    sorted.sort_unstable();
    sorted.array_windows().find(|[left, right]| left == right).map(|[id, _]| *id)
}

/// A tensor of labels that must be there, of any shape; element types that labels do not use are
/// refused.
pub(super) fn tensor<'a>(
    field: &'static str,
    tensor: Option<&'a Tensor>,
) -> Result<TensorView<'a>, CodecError> {
    let tensor = tensor.ok_or(CodecError::Missing { field })?;
    let view =
        TensorView::with_any_rows(tensor).map_err(|error| CodecError::Tensor { field, error })?;
    if view.dtype() == DType::U8 {
        return Err(refuse(format!("{field}.dtype"), "u8", "f32, f16 or bf16"));
    }
    Ok(view)
}

/// The values of a tensor that must have the given shape.
pub(super) fn tensor_values(
    field: &'static str,
    message: Option<&Tensor>,
    shape: &[usize],
) -> Result<Vec<f32>, CodecError> {
    let view = tensor(field, message)?;
    view.expect_shape(shape).map_err(|error| CodecError::Tensor { field, error })?;
    Ok(view.to_f32())
}

/// The log tail mass of `rows` rows, which always travels as `f32`.
pub(super) fn tail_values(
    field: &'static str,
    message: Option<&Tensor>,
    rows: usize,
) -> Result<Vec<f32>, CodecError> {
    let dtype = tensor(field, message)?.dtype();
    if dtype != DType::F32 {
        return Err(refuse(format!("{field}.dtype"), dtype.name(), "f32"));
    }
    tensor_values(field, message, &[rows])
}

/// A tensor of finite values.
pub(super) fn to_tensor(
    field: &'static str,
    values: &[f32],
    dtype: DType,
    shape: &[usize],
) -> Result<Option<Tensor>, CodecError> {
    Tensor::with_any_rows(values, dtype, shape, false)
        .map(Some)
        .map_err(|error| CodecError::Tensor { field, error })
}

/// A tensor of log-probabilities, where p = 0 is -infinity.
pub(super) fn log_to_tensor(
    field: &'static str,
    values: &[f32],
    dtype: DType,
    shape: &[usize],
) -> Result<Option<Tensor>, CodecError> {
    Tensor::with_any_rows(values, dtype, shape, true)
        .map(Some)
        .map_err(|error| CodecError::Tensor { field, error })
}
