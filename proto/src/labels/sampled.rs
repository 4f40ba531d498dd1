//! Draws from p with replacement: the distinct ids of each row, and how often each was drawn.

use super::{CodecError, Extent, SoftLabels, check, refuse};
use crate::{bits, dtype, v1::SampledLabels};

const DISTINCT: &str = "sampled.distinct";
const IDS: &str = "sampled.packed_ids";
const COUNTS: &str = "sampled.packed_counts";

pub(super) fn check(
    draws: u32,
    distinct: &[u16],
    ids: &[u32],
    counts: &[u32],
    extent: Extent,
) -> Result<(), CodecError> {
    let total = check_distinct(draws, distinct, extent)?;
    check::length(IDS, ids.len(), 1, total)?;
    check::length(COUNTS, counts.len(), 1, total)?;

    let (mut ids, mut counts) = (ids, counts);
    for (row, distinct) in distinct.iter().enumerate() {
        let (row_ids, row_counts);
        (row_ids, ids) = ids.split_at(usize::from(*distinct));
        (row_counts, counts) = counts.split_at(usize::from(*distinct));
        if let Some([left, right]) = row_ids.array_windows().find(|[left, right]| left >= right) {
            let value = format!("{left} before {right}");
            return Err(refuse(format!("{IDS} of row {row}"), value, "ascending"));
        }
        if row_counts.contains(&0) {
            return Err(refuse(format!("{COUNTS} of row {row}"), 0, "at least 1"));
        }
        let sum: u64 = row_counts.iter().copied().map(u64::from).sum();
        if sum != u64::from(draws) {
            let accepted = format!("the {draws} draws");
            return Err(refuse(format!("sum of {COUNTS} of row {row}"), sum, accepted));
        }
    }
    Ok(())
}

/// Checks the number of draws and of distinct ids; their sum.
fn check_distinct(draws: u32, distinct: &[u16], extent: Extent) -> Result<usize, CodecError> {
    if draws == 0 || draws > u32::from(u16::MAX) {
        return Err(refuse("sampled.draws", draws, "1 to 65535"));
    }
    check::length(DISTINCT, distinct.len(), extent.rows, 1)?;
    let most = draws.min(extent.classes);
    let valid = |distinct: &u16| *distinct > 0 && u32::from(*distinct) <= most;
    if let Some(row) = distinct.iter().position(|distinct| !valid(distinct)) {
        let field = format!("{DISTINCT}[{row}]");
        return Err(refuse(field, distinct[row], format!("1 to {most}")));
    }
    Ok(distinct.iter().copied().map(usize::from).sum())
}

pub(super) fn encode(
    draws: u32,
    distinct: &[u16],
    ids: &[u32],
    counts: &[u32],
    extent: Extent,
) -> Result<SampledLabels, CodecError> {
    let pack = |field, values, below| {
        bits::pack(values, below).map_err(|error| CodecError::Bits { field, error })
    };
    Ok(SampledLabels {
        draws,
        distinct: dtype::u16_to_bytes(distinct).into(),
        packed_ids: pack(IDS, ids, extent.classes)?.into(),
        packed_counts: pack(COUNTS, counts, draws + 1)?.into(),
    })
}

pub(super) fn decode(sampled: &SampledLabels, extent: Extent) -> Result<SoftLabels, CodecError> {
    let bytes = sampled.distinct.len();
    if bytes as u128 != extent.rows as u128 * 2 {
        let accepted = format!("2 for each of the {} rows", extent.rows);
        return Err(refuse(format!("length of {DISTINCT}"), format!("{bytes} bytes"), accepted));
    }
    let draws = sampled.draws;
    let distinct = dtype::u16_from_bytes(&sampled.distinct);
    let total = check_distinct(draws, &distinct, extent)?;
    let unpack = |field, packed, below| {
        bits::unpack(packed, total, below).map_err(|error| CodecError::Bits { field, error })
    };
    let ids = unpack(IDS, &sampled.packed_ids, extent.classes)?;
    // A count is at most N: `check_distinct` has bounded it.
    let counts = unpack(COUNTS, &sampled.packed_counts, draws + 1)?;
    Ok(SoftLabels::Sampled { draws, distinct, ids, counts })
}
