//! The k most probable classes of each row, and the mass of the rest.

use super::{
    CodecError, Extent, SoftLabels,
    check::{self, duplicate},
    refuse,
};
use crate::{
    bits,
    v1::{DType, TopKLabels},
};

const K: &str = "top_k.k";
const IDS: &str = "top_k.packed_ids";
const LOG_PROBABILITIES: &str = "top_k.log_probabilities";
const LOG_TAIL_MASS: &str = "top_k.log_tail_mass";

pub(super) fn check(
    k: usize,
    ids: &[u32],
    log_probabilities: &[f32],
    log_tail_mass: &[f32],
    extent: Extent,
) -> Result<(), CodecError> {
    check::per_row(K, k, extent)?;
    check::length(IDS, ids.len(), extent.rows, k)?;
    check::length(LOG_PROBABILITIES, log_probabilities.len(), extent.rows, k)?;
    check::length(LOG_TAIL_MASS, log_tail_mass.len(), extent.rows, 1)?;
    check::log_probabilities(LOG_PROBABILITIES, log_probabilities)?;
    check::log_tail_mass(LOG_TAIL_MASS, log_tail_mass, k == extent.vocabulary())?;

    let mut sorted = Vec::new();
    for (row, (ids, log_p)) in ids.chunks(k).zip(log_probabilities.chunks(k)).enumerate() {
        if let Some(id) = duplicate(ids, &mut sorted) {
            return Err(refuse(format!("{IDS} of row {row}"), format!("{id} twice"), "distinct"));
        }
        if let Some(rank) = log_p.array_windows().position(|[higher, lower]| lower > higher) {
            let accepted = format!("at most the {} before it", log_p[rank]);
            let field = format!("{LOG_PROBABILITIES}[{row}, {}]", rank + 1);
            return Err(refuse(field, log_p[rank + 1], accepted));
        }
    }
    Ok(())
}

pub(super) fn encode(
    k: usize,
    ids: &[u32],
    log_probabilities: &[f32],
    log_tail_mass: &[f32],
    extent: Extent,
    dtype: DType,
) -> Result<TopKLabels, CodecError> {
    let packed_ids = bits::pack(ids, extent.classes)
        .map_err(|error| CodecError::Bits { field: IDS, error })?
        .into();
    let shape = [extent.rows, k];
    Ok(TopKLabels {
        k: u32::try_from(k).map_err(|_| refuse(K, k, "below 2^32"))?,
        packed_ids,
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

pub(super) fn decode(top_k: &TopKLabels, extent: Extent) -> Result<SoftLabels, CodecError> {
    let k = top_k.k as usize;
    check::per_row(K, k, extent)?;
    // The values come first: their shape backs `rows * k` with bytes.
    let log_probabilities = check::tensor_values(
        LOG_PROBABILITIES,
        top_k.log_probabilities.as_ref(),
        &[extent.rows, k],
    )?;
    let ids = bits::unpack(&top_k.packed_ids, log_probabilities.len(), extent.classes)
        .map_err(|error| CodecError::Bits { field: IDS, error })?;
    let log_tail_mass =
        check::tail_values(LOG_TAIL_MASS, top_k.log_tail_mass.as_ref(), extent.rows)?;
    Ok(SoftLabels::TopK { k, ids, log_probabilities, log_tail_mass })
}
