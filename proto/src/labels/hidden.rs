//! The hidden state before the output projection.

use super::{CodecError, Extent, SoftLabels, check, refuse};
use crate::v1::{DType, HiddenLabels};

const STATES: &str = "hidden.states";

pub(super) fn check(width: usize, states: &[f32], extent: Extent) -> Result<(), CodecError> {
    // Without rows there are no bytes to back a width.
    if width == 0 || u32::try_from(width).is_err() {
        return Err(refuse("hidden.width", width, "1 to 2^32 - 1"));
    }
    check::length(STATES, states.len(), extent.rows, width)?;
    check::values(STATES, states, "finite", f32::is_finite)
}

pub(super) fn encode(
    width: usize,
    states: &[f32],
    extent: Extent,
    dtype: DType,
) -> Result<HiddenLabels, CodecError> {
    let states = check::to_tensor(STATES, states, dtype, &[extent.rows, width])?;
    Ok(HiddenLabels { states })
}

pub(super) fn decode(hidden: &HiddenLabels, extent: Extent) -> Result<SoftLabels, CodecError> {
    let view = check::tensor(STATES, hidden.states.as_ref())?;
    let shape = [extent.rows, view.width()];
    view.expect_shape(&shape).map_err(|error| CodecError::Tensor { field: STATES, error })?;
    Ok(SoftLabels::Hidden { width: view.width(), states: view.to_f32() })
}
