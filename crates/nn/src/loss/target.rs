//! Soft labels of one batch, in any encoding.

use crate::error::LossError;

/// How far the probabilities of a row may sum from 1: what bf16 makes of them, and no more, so that
/// logits passed for log-probabilities are noticed.
pub(super) const MASS_TOLERANCE: f64 = 0.05;

/// A teacher's labels for all rows of a batch, row-major, at the temperature of the loss. A row's
/// probabilities need to sum to 1 only within 5 %, as half precision leaves them: the loss scales
/// them.
#[derive(Clone, Debug, PartialEq)]
pub enum SoftTarget {
    /// log p_T, [rows, V].
    LogProbabilities(Vec<f32>),
    /// p_T, [rows, V].
    Probabilities(Vec<f32>),
    /// z before any temperature, [rows, V].
    Logits(Vec<f32>),
    /// k classes a row: the most probable, or those that the client named.
    TopK {
        /// Classes a row, 1 to V.
        k: usize,
        /// [rows, k], no class twice within a row.
        ids: Vec<u32>,
        /// log p_T of each, [rows, k].
        log_probabilities: Vec<f32>,
        /// log of the mass of the other V - k classes, \[rows\]; -inf where k = V.
        log_tail_mass: Vec<f32>,
    },
    /// Draws from p_T with replacement (Random Sampling KD, arXiv 2503.16870). The loss is
    /// `-sum (count / N) log q_T`, whose expectation is the cross-entropy of p_T and q_T: value
    /// and gradient are unbiased for [`CrossEntropy`](super::Divergence::CrossEntropy). For
    /// [`ForwardKl`](super::Divergence::ForwardKl) the gradient is too, and the value lacks the
    /// constant `sum p_T log p_T`, the teacher's negative entropy, which draws do not tell.
    Sampled {
        /// N.
        draws: u32,
        /// Distinct classes of each row, \[rows\].
        distinct: Vec<u32>,
        /// Those classes, row after row.
        ids: Vec<u32>,
        /// How often each was drawn; N in all for each row.
        counts: Vec<u32>,
    },
}

/// One row of a [`SoftTarget`].
#[derive(Clone, Copy)]
pub(super) enum RowTarget<'a> {
    LogProbabilities(&'a [f32]),
    Probabilities(&'a [f32]),
    Logits(&'a [f32]),
    TopK { ids: &'a [u32], log_probabilities: &'a [f32], log_tail_mass: f32 },
    Sampled { draws: u32, ids: &'a [u32], counts: &'a [u32] },
}

impl SoftTarget {
    /// Name of the encoding, for messages.
    pub fn encoding(&self) -> &'static str {
        match self {
            Self::LogProbabilities(_) => "dense log-probability",
            Self::Probabilities(_) => "dense probability",
            Self::Logits(_) => "dense logit",
            Self::TopK { .. } => "top_k",
            Self::Sampled { .. } => "sampled",
        }
    }

    /// Splits the labels into `rows` rows over `classes` classes, after checking every length.
    pub(super) fn rows(
        &self,
        rows: usize,
        classes: usize,
    ) -> Result<Vec<RowTarget<'_>>, LossError> {
        let check = |field, found: usize, expected: usize| {
            if found == expected { Ok(()) } else { Err(LossError::Size { field, found, expected }) }
        };
        let dense =
            |values: &'_ Vec<f32>| check("soft labels", values.len(), rows.saturating_mul(classes));
        Ok(match self {
            Self::LogProbabilities(values) => {
                dense(values)?;
                values.chunks_exact(classes).map(RowTarget::LogProbabilities).collect()
            }
            Self::Probabilities(values) => {
                dense(values)?;
                values.chunks_exact(classes).map(RowTarget::Probabilities).collect()
            }
            Self::Logits(values) => {
                dense(values)?;
                values.chunks_exact(classes).map(RowTarget::Logits).collect()
            }
            Self::TopK { k, ids, log_probabilities, log_tail_mass } => {
                let value = *k as f64;
                if !(1..=classes).contains(k) {
                    let expected = "1 to the number of classes";
                    return Err(LossError::Config { field: "k", value, expected });
                }
                check("top_k ids", ids.len(), rows.saturating_mul(*k))?;
                check("top_k log_probabilities", log_probabilities.len(), ids.len())?;
                check("top_k log_tail_mass", log_tail_mass.len(), rows)?;
                ids.chunks_exact(*k)
                    .zip(log_probabilities.chunks_exact(*k))
                    .zip(log_tail_mass)
                    .map(|((ids, log_probabilities), &log_tail_mass)| RowTarget::TopK {
                        ids,
                        log_probabilities,
                        log_tail_mass,
                    })
                    .collect()
            }
            Self::Sampled { draws, distinct, ids, counts } => {
                check("sampled distinct", distinct.len(), rows)?;
                check("sampled counts", counts.len(), ids.len())?;
                let total: u64 = distinct.iter().map(|&n| u64::from(n)).sum();
                let total = usize::try_from(total).unwrap_or(usize::MAX);
                check("sampled ids", ids.len(), total)?;
                let (mut ids, mut counts) = (ids.as_slice(), counts.as_slice());
                let mut take = |n: &u32| {
                    let (row_ids, row_counts);
                    (row_ids, ids) = ids.split_at(*n as usize);
                    (row_counts, counts) = counts.split_at(*n as usize);
                    RowTarget::Sampled { draws: *draws, ids: row_ids, counts: row_counts }
                };
                distinct.iter().map(&mut take).collect()
            }
        })
    }
}

/// Checks that log-probabilities are numbers (or -inf) that sum to 1 but for rounding, and takes
/// the rounding away: unless both sides have the same mass, a divergence can be negative, and is
/// not 0 at a match.
pub(super) fn normalize(row: usize, log_p: &mut [f64]) -> Result<(), LossError> {
    let mass: f64 = log_p.iter().map(|log_p| log_p.exp()).sum();
    if (mass - 1.0).abs() <= MASS_TOLERANCE {
        let log_mass = mass.ln();
        log_p.iter_mut().for_each(|log_p| *log_p -= log_mass);
        return Ok(());
    }
    let expected = format!("1 within {MASS_TOLERANCE}");
    Err(LossError::Row { field: "probability mass of the soft label", row, value: mass, expected })
}

/// Checks that every id is a class, and none comes twice.
pub(super) fn check_ids(row: usize, ids: &[u32], classes: usize) -> Result<(), LossError> {
    let fault = |id: u32, expected: String| {
        Err(LossError::Row { field: "soft label id", row, value: f64::from(id), expected })
    };
    if let Some(&id) = ids.iter().find(|&&id| id as usize >= classes) {
        return fault(id, format!("0 to {}", classes - 1));
    }
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    match sorted.array_windows().find(|[a, b]| a == b) {
        Some([id, _]) => fault(*id, "each id once".to_owned()),
        None => Ok(()),
    }
}
