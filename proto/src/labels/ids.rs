//! Classes that the client named, and the mass of the rest.

use super::{CodecError, Extent, SoftLabels, check};
use crate::v1::{DType, IdsLabels};

const LOG_PROBABILITIES: &str = "ids.log_probabilities";
const LOG_TAIL_MASS: &str = "ids.log_tail_mass";

pub(super) fn check(
    ids_per_row: usize,
    log_probabilities: &[f32],
    log_tail_mass: &[f32],
    extent: Extent,
) -> Result<(), CodecError> {
    check::per_row("ids.ids_per_row", ids_per_row, extent)?;
    check::length(LOG_PROBABILITIES, log_probabilities.len(), extent.rows, ids_per_row)?;
    check::length(LOG_TAIL_MASS, log_tail_mass.len(), extent.rows, 1)?;
    check::log_probabilities(LOG_PROBABILITIES, log_probabilities)?;
    check::log_tail_mass(LOG_TAIL_MASS, log_tail_mass, ids_per_row == extent.vocabulary())
}

pub(super) fn encode(
    ids_per_row: usize,
    log_probabilities: &[f32],
    log_tail_mass: &[f32],
    extent: Extent,
    dtype: DType,
) -> Result<IdsLabels, CodecError> {
    let shape = [extent.rows, ids_per_row];
    Ok(IdsLabels {
        log_probabilities: check::log_to_tensor(
            LOG_PROBABILITIES,
            log_probabilities,
            dtype,
            &shape,
        )?,
        log_tail_mass: check::log_to_tensor(
            LOG_TAIL_MASS,
            log_tail_mass,
            DType::F32,
            &[extent.rows],
        )?,
    })
}

pub(super) fn decode(ids: &IdsLabels, extent: Extent) -> Result<SoftLabels, CodecError> {
    let view = check::tensor(LOG_PROBABILITIES, ids.log_probabilities.as_ref())?;
    let ids_per_row = view.width();
    view.expect_shape(&[extent.rows, ids_per_row])
        .map_err(|error| CodecError::Tensor { field: LOG_PROBABILITIES, error })?;
    Ok(SoftLabels::Ids {
        ids_per_row,
        log_probabilities: view.to_f32(),
        log_tail_mass: check::tail_values(LOG_TAIL_MASS, ids.log_tail_mass.as_ref(), extent.rows)?,
    })
}
