//! The loss of a batch and its gradient by the logits, in one pass.

use rayon::prelude::*;

use super::config::LossConfig;
use super::outcomes::soften;
use super::target::{RowTarget, SoftTarget};
use super::{ce, dense, sampled, top_k};
use crate::error::LossError;
use crate::kernel::parallel::PIECE;
use crate::kernel::real::Real;

/// Value of a loss and of its terms; means over rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossParts {
    /// `hard` and `soft` by their weights, as [`LossConfig::weights`] gives them.
    pub total: f64,
    /// Cross-entropy with the hard labels, where there are any.
    pub hard: Option<f64>,
    /// T^2 times the divergence from the soft labels, where there are any.
    pub soft: Option<f64>,
}

/// Loss of `logits` [rows, classes], and its derivative by each of them.
pub(super) fn evaluate<T: Real>(
    logits: &[T],
    rows: usize,
    classes: usize,
    hard: Option<&[u32]>,
    soft: Option<&SoftTarget>,
    config: &LossConfig,
) -> Result<(LossParts, Vec<T>), LossError> {
    config.validate()?;
    if rows == 0 || classes == 0 {
        let expected = rows.max(1).saturating_mul(classes.max(1));
        return Err(LossError::Size { field: "logits", found: logits.len(), expected });
    }
    let (hard_weight, soft_weight) = config.weights();
    for (missing, weight, found) in
        [("hard", hard_weight, hard.is_some()), ("soft", soft_weight, soft.is_some())]
    {
        if weight > 0.0 && !found {
            return Err(LossError::MissingLabels { weight, missing });
        }
    }
    if let Some(hard) = hard {
        check_hard(hard, rows, classes)?;
    }
    let targets = match soft {
        Some(soft) => {
            config.divergence.supports(soft)?;
            Some(soft.rows(rows, classes)?)
        }
        None => None,
    };
    let squared = config.temperature * config.temperature;
    let mut gradient = vec![T::zero(); rows * classes];
    let terms: Vec<Result<(f64, f64), LossError>> = gradient
        .par_chunks_mut(classes)
        .zip(logits.par_chunks(classes))
        .enumerate()
        .with_min_len((PIECE / classes).max(1))
        .map(|(row, (gradient, logits))| {
            let z: Vec<f64> = logits.iter().map(|z| z.to_f64()).collect();
            let mut sum = vec![0.0; classes];
            let mut term = (0.0, 0.0);
            if let Some(hard) = hard {
                let (value, slopes) = ce::hard(&z, hard[row] as usize);
                term.0 = value;
                add_scaled(&mut sum, hard_weight, &slopes);
            }
            if let Some(targets) = &targets {
                let (value, slopes) = distill(row, &z, targets[row], config)?;
                term.1 = squared * value;
                // d/dz of T^2 D(z / T) is T times D's derivative by z / T.
                add_scaled(&mut sum, soft_weight * config.temperature, &slopes);
            }
            for (gradient, sum) in gradient.iter_mut().zip(sum) {
                *gradient = T::from_f64(sum / rows as f64);
            }
            Ok(term)
        })
        .collect();
    // Of several rows that are refused, the first is the one that is named.
    let terms: Vec<(f64, f64)> = terms.into_iter().collect::<Result<_, _>>()?;
    let mean = |term: fn(&(f64, f64)) -> f64| terms.iter().map(term).sum::<f64>() / rows as f64;
    let hard = hard.map(|_| mean(|term| term.0));
    let soft = targets.map(|_| mean(|term| term.1));
    Ok((LossParts::new(hard, soft, config), gradient))
}

impl LossParts {
    /// Means over rows, and their sum by the weights of `config`.
    pub(super) fn new(hard: Option<f64>, soft: Option<f64>, config: &LossConfig) -> Self {
        // A term of weight 0 must not turn the sum into NaN.
        let weighted = |weight: f64, term: Option<f64>| match term {
            Some(term) if weight > 0.0 => weight * term,
            _ => 0.0,
        };
        let (hard_weight, soft_weight) = config.weights();
        let total = weighted(hard_weight, hard) + weighted(soft_weight, soft);
        Self { total, hard, soft }
    }
}

pub(super) fn check_hard(hard: &[u32], rows: usize, classes: usize) -> Result<(), LossError> {
    if hard.len() != rows {
        return Err(LossError::Size { field: "hard labels", found: hard.len(), expected: rows });
    }
    match hard.iter().position(|&label| label as usize >= classes) {
        Some(row) => Err(LossError::Row {
            field: "hard label",
            row,
            value: f64::from(hard[row]),
            expected: format!("0 to {}", classes - 1),
        }),
        None => Ok(()),
    }
}

fn add_scaled(sum: &mut [f64], weight: f64, terms: &[f64]) {
    if weight > 0.0 {
        sum.iter_mut().zip(terms).for_each(|(sum, term)| *sum += weight * term);
    }
}

/// D of one row at T, and its derivative by each logit divided by T.
pub(super) fn distill(
    row: usize,
    z: &[f64],
    target: RowTarget<'_>,
    config: &LossConfig,
) -> Result<(f64, Vec<f64>), LossError> {
    let (t, kind) = (config.temperature, config.divergence);
    let u = soften(z, t);
    let mut grad = vec![0.0; u.len()];
    let value = match target {
        RowTarget::LogProbabilities(labels) => {
            let log_p = labels.iter().map(|&x| f64::from(x)).collect();
            dense::against_log_probabilities(row, kind, &u, log_p, &mut grad)
        }
        RowTarget::Probabilities(labels) => {
            let log_p = labels.iter().map(|&x| f64::from(x).ln()).collect();
            dense::against_log_probabilities(row, kind, &u, log_p, &mut grad)
        }
        RowTarget::Logits(labels) => dense::against_logits(row, kind, t, z, labels, &mut grad),
        RowTarget::TopK { ids, log_probabilities, log_tail_mass } => {
            let known = top_k::Known { ids, log_probabilities, log_tail_mass };
            top_k::against(row, kind, config.top_k_form, &u, known, &mut grad)
        }
        RowTarget::Sampled { draws, ids, counts } => {
            sampled::against(row, &u, draws, ids, counts, &mut grad)
        }
    }?;
    Ok((value, grad))
}
