//! Labels as they came to labels as the loss takes them.

use stillhouse_nn::{ModelError, PackedHead, SoftTarget};
use stillhouse_proto::{LabelBatch, SoftLabels, v1::DenseKind};

/// Why labels cannot be trained on.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The answers of one batch are in several encodings, or in one that was not asked for.
    #[error("the labels of a batch are {found}, expected {expected}")]
    Mixed {
        /// What came.
        found: &'static str,
        /// What was expected.
        expected: &'static str,
    },
    /// Hidden states and the head do not fit together.
    #[error("logits cannot be rebuilt from hidden states")]
    Head(#[from] ModelError),
}

/// Joins the labels of one batch's requests, in order. `head` is needed for hidden states only.
///
/// # Errors
/// If they are not in one encoding, or hidden states come without a head that fits.
pub fn soft_target(
    parts: impl IntoIterator<Item = LabelBatch>,
    head: Option<&PackedHead>,
) -> Result<SoftTarget, TargetError> {
    let mut joined: Option<SoftTarget> = None;
    for part in parts {
        let part = convert(part.labels, head)?;
        match &mut joined {
            None => joined = Some(part),
            Some(joined) => append(joined, part)?,
        }
    }
    joined.ok_or(TargetError::Mixed { found: "missing", expected: "those of one request or more" })
}

fn convert(labels: SoftLabels, head: Option<&PackedHead>) -> Result<SoftTarget, TargetError> {
    Ok(match labels {
        SoftLabels::Dense { kind, values } => match kind {
            DenseKind::Logits => SoftTarget::Logits(values),
            DenseKind::Probabilities => SoftTarget::Probabilities(values),
            DenseKind::LogProbabilities | DenseKind::Unspecified => {
                SoftTarget::LogProbabilities(values)
            }
        },
        SoftLabels::TopK { k, ids, log_probabilities, log_tail_mass } => {
            SoftTarget::TopK { k, ids, log_probabilities, log_tail_mass }
        }
        SoftLabels::Sampled { draws, distinct, ids, counts } => SoftTarget::Sampled {
            draws,
            distinct: distinct.into_iter().map(u32::from).collect(),
            ids,
            counts,
        },
        SoftLabels::Hidden { states, .. } => {
            let head = head.ok_or(TargetError::Mixed {
                found: "hidden states",
                expected: "labels that need no head",
            })?;
            SoftTarget::Logits(head.logits(&states)?)
        }
        SoftLabels::Ids { .. } => {
            return Err(TargetError::Mixed {
                found: "of named ids",
                expected: "in an encoding of the recipe",
            });
        }
    })
}

fn append(joined: &mut SoftTarget, part: SoftTarget) -> Result<(), TargetError> {
    let (found, expected) = (part.encoding(), joined.encoding());
    match (joined, part) {
        (SoftTarget::LogProbabilities(all), SoftTarget::LogProbabilities(more))
        | (SoftTarget::Probabilities(all), SoftTarget::Probabilities(more))
        | (SoftTarget::Logits(all), SoftTarget::Logits(more)) => all.extend(more),
        (
            SoftTarget::TopK { k, ids, log_probabilities, log_tail_mass },
            SoftTarget::TopK { k: same, ids: i, log_probabilities: p, log_tail_mass: t },
        ) if *k == same => {
            ids.extend(i);
            log_probabilities.extend(p);
            log_tail_mass.extend(t);
        }
        (
            SoftTarget::Sampled { draws, distinct, ids, counts },
            SoftTarget::Sampled { draws: same, distinct: d, ids: i, counts: c },
        ) if *draws == same => {
            distinct.extend(d);
            ids.extend(i);
            counts.extend(c);
        }
        _ => return Err(TargetError::Mixed { found, expected }),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use stillhouse_nn::Head;

    use super::*;

    fn batch(rows: usize, labels: SoftLabels) -> LabelBatch {
        LabelBatch { temperature: 1.0, rows, classes: 2, labels }
    }

    fn sampled(id: u32) -> LabelBatch {
        let (ids, counts) = (vec![id], vec![3]);
        batch(1, SoftLabels::Sampled { draws: 3, distinct: vec![1], ids, counts })
    }

    fn dense(values: Vec<f32>) -> LabelBatch {
        batch(values.len() / 2, SoftLabels::Dense { kind: DenseKind::LogProbabilities, values })
    }

    #[test]
    fn parts_are_joined_in_order() {
        let target = soft_target([dense(vec![-1.0, -2.0]), dense(vec![-3.0, -4.0])], None).unwrap();
        assert_eq!(target, SoftTarget::LogProbabilities(vec![-1.0, -2.0, -3.0, -4.0]));
        let target = soft_target([sampled(0), sampled(1)], None).unwrap();
        let expected = SoftTarget::Sampled {
            draws: 3,
            distinct: vec![1, 1],
            ids: vec![0, 1],
            counts: vec![3, 3],
        };
        assert_eq!(target, expected);
    }

    #[test]
    fn hidden_states_become_logits() {
        let states = vec![1.0, 2.0];
        let hidden = batch(1, SoftLabels::Hidden { width: 2, states });
        let head = Head {
            weight: vec![1.0, 0.0, 0.0, 1.0],
            bias: Some(vec![0.5, 0.0]),
            classes: 2,
            hidden_size: 2,
            softcap: None,
        };
        let target = soft_target([hidden.clone()], Some(&head.pack().unwrap())).unwrap();
        assert_eq!(target, SoftTarget::Logits(vec![1.5, 2.0]));
        assert!(soft_target([hidden], None).is_err());
    }

    #[test]
    fn encodings_are_not_mixed() {
        assert!(soft_target([sampled(0), dense(vec![-1.0, -2.0])], None).is_err());
        assert!(soft_target([], None).is_err());
    }
}
