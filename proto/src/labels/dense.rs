//! All V values of each row.

use super::{
    CodecError, Extent, SoftLabels,
    check::{self, LOG_PROBABILITY_SLACK},
    refuse,
};
use crate::v1::{DType, DenseKind, DenseLabels};

const VALUES: &str = "dense.values";

pub(super) fn check(kind: DenseKind, values: &[f32], extent: Extent) -> Result<(), CodecError> {
    check::length(VALUES, values.len(), extent.rows, extent.vocabulary())?;
    match kind {
        DenseKind::Unspecified => Err(refuse("dense.kind", "unspecified", "set")),
        DenseKind::LogProbabilities => check::log_probabilities(VALUES, values),
        DenseKind::Probabilities => check::values(VALUES, values, "0 to 1", |value| {
            (0.0..=1.0 + LOG_PROBABILITY_SLACK).contains(&value)
        }),
        DenseKind::Logits => check::values(VALUES, values, "finite", f32::is_finite),
    }
}

pub(super) fn encode(
    kind: DenseKind,
    values: &[f32],
    extent: Extent,
    dtype: DType,
) -> Result<DenseLabels, CodecError> {
    let shape = [extent.rows, extent.vocabulary()];
    let values = match kind {
        DenseKind::LogProbabilities => check::log_to_tensor(VALUES, values, dtype, &shape),
        _ => check::to_tensor(VALUES, values, dtype, &shape),
    }?;
    Ok(DenseLabels { kind: kind.into(), values })
}

pub(super) fn decode(dense: &DenseLabels, extent: Extent) -> Result<SoftLabels, CodecError> {
    let kind = DenseKind::try_from(dense.kind)
        .map_err(|_| refuse("dense.kind", dense.kind, "a known kind"))?;
    let shape = [extent.rows, extent.vocabulary()];
    let values = check::tensor_values(VALUES, dense.values.as_ref(), &shape)?;
    Ok(SoftLabels::Dense { kind, values })
}
