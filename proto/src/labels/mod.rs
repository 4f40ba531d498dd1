//! Soft labels as plain numbers, to and from [`Labels`], in all five encodings.
//!
//! [`encode`] and [`decode`] hold labels to the same rules, so that neither side can pass on what
//! the contract does not allow: no NaN, no id out of range or twice in a row, no probability above
//! 1, no length that disagrees with another. [`decode`] checks every length before it allocates;
//! what it allocates is bounded by the bytes that arrived.
//!
//! One file per encoding; `check.rs` holds the rules that several share.

mod check;
mod dense;
mod error;
mod hidden;
mod ids;
mod sampled;
mod top_k;

pub use check::LOG_PROBABILITY_SLACK;
pub(crate) use check::duplicate;
pub use error::CodecError;
pub(crate) use error::refuse;

use crate::v1::{DType, DenseKind, Labels, labels::Payload};

/// Soft labels of one batch at one temperature, as numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelBatch {
    /// The temperature, finite and positive; 0 where it plays no part (logits, hidden states).
    pub temperature: f32,
    /// Rows that have a label. May be 0: every row of the request was refused on its own.
    pub rows: usize,
    /// Number of classes or size of the vocabulary, V; at least 1.
    pub classes: usize,
    /// The labels.
    pub labels: SoftLabels,
}

/// The labels of a batch in one of the encodings. All arrays are row-major; logarithms are natural.
#[derive(Debug, Clone, PartialEq)]
pub enum SoftLabels {
    /// All V values of each row.
    Dense {
        /// What the values are; not `Unspecified`.
        kind: DenseKind,
        /// `[rows, V]`. Logits and probabilities are finite; log-probabilities may be -infinity.
        values: Vec<f32>,
    },
    /// The k most probable classes of each row, and the mass of the rest.
    TopK {
        /// Classes per row, 1 to V.
        k: usize,
        /// `[rows, k]`, each below V, most probable first, none twice in a row.
        ids: Vec<u32>,
        /// `[rows, k]`: log p of each id, descending within a row.
        log_probabilities: Vec<f32>,
        /// `[rows]`: log of the mass of the other V - k classes; -infinity where k = V.
        log_tail_mass: Vec<f32>,
    },
    /// Classes that the client named, and the mass of the rest. The ids are the request's.
    Ids {
        /// Ids per row, 1 to V.
        ids_per_row: usize,
        /// `[rows, ids_per_row]`: log p of each id asked for.
        log_probabilities: Vec<f32>,
        /// `[rows]`: log of the mass of all other classes; -infinity where `ids_per_row` = V.
        log_tail_mass: Vec<f32>,
    },
    /// Draws from p: the distinct ids of each row, and how often each was drawn.
    Sampled {
        /// Draws per row, N, 1 to 65,535.
        draws: u32,
        /// `[rows]`: distinct ids, 1 to min(N, V).
        distinct: Vec<u16>,
        /// `[sum(distinct)]`, each below V, ascending within a row.
        ids: Vec<u32>,
        /// `[sum(distinct)]`, each at least 1; N in all for each row.
        counts: Vec<u32>,
    },
    /// The hidden state before the output projection.
    Hidden {
        /// Width of the hidden state, d; 1 to 2^32 - 1.
        width: usize,
        /// `[rows, d]`, finite.
        states: Vec<f32>,
    },
}

/// The sizes that every part of a payload must agree with.
#[derive(Clone, Copy)]
struct Extent {
    rows: usize,
    classes: u32,
}

impl Extent {
    /// V as a length.
    fn vocabulary(self) -> usize {
        self.classes as usize
    }
}

/// Encodes a batch. Values travel as `dtype` (`Unspecified`: `F32`), rounded to nearest even; the
/// tail mass always as `F32`, and sampled labels as whole numbers, whatever `dtype` is.
///
/// # Errors
///
/// If the batch breaks a rule of [`LabelBatch`] or [`SoftLabels`], or holds a finite value that
/// `dtype` cannot (a logit of 1e5 as `F16`, say).
pub fn encode(batch: &LabelBatch, dtype: DType) -> Result<Labels, CodecError> {
    let dtype = if dtype == DType::Unspecified { DType::F32 } else { dtype };
    let narrow = |value: usize, field, accepted| {
        u32::try_from(value).map_err(|_| refuse(field, value, accepted))
    };
    let rows = narrow(batch.rows, "rows", "below 2^32")?;
    let classes = narrow(batch.classes, "classes", "1 to 2^32 - 1")?;
    let extent = Extent { rows: batch.rows, classes };
    batch.check(extent)?;
    let payload = match &batch.labels {
        SoftLabels::Dense { kind, values } => {
            Payload::Dense(dense::encode(*kind, values, extent, dtype)?.into())
        }
        SoftLabels::TopK { k, ids, log_probabilities, log_tail_mass } => Payload::TopK(
            top_k::encode(*k, ids, log_probabilities, log_tail_mass, extent, dtype)?.into(),
        ),
        SoftLabels::Ids { ids_per_row, log_probabilities, log_tail_mass } => Payload::Ids(
            ids::encode(*ids_per_row, log_probabilities, log_tail_mass, extent, dtype)?.into(),
        ),
        SoftLabels::Sampled { draws, distinct, ids, counts } => {
            Payload::Sampled(sampled::encode(*draws, distinct, ids, counts, extent)?.into())
        }
        SoftLabels::Hidden { width, states } => {
            Payload::Hidden(hidden::encode(*width, states, extent, dtype)?.into())
        }
    };
    Ok(Labels { temperature: batch.temperature, rows, classes, payload: Some(payload) })
}

/// Decodes a message, widening values to `f32`.
///
/// # Errors
///
/// If the message breaks a rule of [`LabelBatch`] or [`SoftLabels`], or any of its lengths disagrees
/// with another.
pub fn decode(labels: &Labels) -> Result<LabelBatch, CodecError> {
    let extent = Extent { rows: labels.rows as usize, classes: labels.classes };
    check::classes(extent)?;
    let decoded = match &labels.payload {
        None => return Err(CodecError::Missing { field: "payload" }),
        Some(Payload::Dense(dense)) => dense::decode(dense, extent),
        Some(Payload::TopK(top_k)) => top_k::decode(top_k, extent),
        Some(Payload::Ids(ids)) => ids::decode(ids, extent),
        Some(Payload::Sampled(sampled)) => sampled::decode(sampled, extent),
        Some(Payload::Hidden(hidden)) => hidden::decode(hidden, extent),
    }?;
    let batch = LabelBatch {
        temperature: labels.temperature,
        rows: extent.rows,
        classes: extent.vocabulary(),
        labels: decoded,
    };
    batch.check(extent)?;
    Ok(batch)
}

impl LabelBatch {
    /// The rules on lengths and values, for both directions.
    fn check(&self, extent: Extent) -> Result<(), CodecError> {
        check::classes(extent)?;
        check::temperature(self.temperature, &self.labels)?;
        match &self.labels {
            SoftLabels::Dense { kind, values } => dense::check(*kind, values, extent),
            SoftLabels::TopK { k, ids, log_probabilities, log_tail_mass } => {
                top_k::check(*k, ids, log_probabilities, log_tail_mass, extent)
            }
            SoftLabels::Ids { ids_per_row, log_probabilities, log_tail_mass } => {
                ids::check(*ids_per_row, log_probabilities, log_tail_mass, extent)
            }
            SoftLabels::Sampled { draws, distinct, ids, counts } => {
                sampled::check(*draws, distinct, ids, counts, extent)
            }
            SoftLabels::Hidden { width, states } => hidden::check(*width, states, extent),
        }
    }
}
