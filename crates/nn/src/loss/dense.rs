//! One row against a label for every class.

use super::config::Divergence;
use super::mse::mean_squared;
use super::outcomes::{divergence, log_softmax, soften, through_softmax};
use super::target::normalize;
use crate::error::LossError;

/// D of student logits `u` (divided by T) against log-probabilities over all classes; its
/// derivative by each u in `grad`.
pub(super) fn against_log_probabilities(
    row: usize,
    kind: Divergence,
    u: &[f64],
    mut log_p: Vec<f64>,
    grad: &mut [f64],
) -> Result<f64, LossError> {
    normalize(row, &mut log_p)?;
    let log_q = log_softmax(u);
    let value = divergence(kind, &log_p, &log_q, grad);
    through_softmax(grad, &log_q);
    Ok(value)
}

/// The same of student logits `z` against teacher logits, both at T = 1: `temperature` divides
/// them here.
pub(super) fn against_logits(
    row: usize,
    kind: Divergence,
    temperature: f64,
    z: &[f64],
    teacher: &[f32],
    grad: &mut [f64],
) -> Result<f64, LossError> {
    if let Some(z) = teacher.iter().find(|z| !z.is_finite()) {
        let (field, value, expected) = ("teacher logit", f64::from(*z), "a finite number".into());
        return Err(LossError::Row { field, row, value, expected });
    }
    let teacher: Vec<f64> = teacher.iter().map(|&z| f64::from(z)).collect();
    if kind == Divergence::LogitMse {
        // The one divergence that sees a shift of all logits.
        let over = |z: &[f64]| z.iter().map(|z| z / temperature).collect::<Vec<f64>>();
        return Ok(mean_squared(&over(z), &over(&teacher), grad));
    }
    let log_p = log_softmax(&soften(&teacher, temperature));
    against_log_probabilities(row, kind, &soften(z, temperature), log_p, grad)
}
