//! One row against a label for every class.

use super::config::Divergence;
use super::mse::mean_squared;
use super::outcomes::{divergence, log_softmax, through_softmax};
use super::target::check_mass;
use crate::error::LossError;

/// D of student logits `u` (divided by T) against log-probabilities over all classes; its
/// derivative by each u in `grad`.
pub(super) fn against_log_probabilities(
    row: usize,
    kind: Divergence,
    u: &[f64],
    log_p: &[f64],
    grad: &mut [f64],
) -> Result<f64, LossError> {
    check_mass(row, log_p)?;
    let log_q = log_softmax(u);
    let value = divergence(kind, log_p, &log_q, grad);
    through_softmax(grad, &log_q);
    Ok(value)
}

/// The same against teacher logits at T = 1, which `temperature` divides.
pub(super) fn against_logits(
    row: usize,
    kind: Divergence,
    temperature: f64,
    u: &[f64],
    teacher: &[f32],
    grad: &mut [f64],
) -> Result<f64, LossError> {
    if let Some(z) = teacher.iter().find(|z| !z.is_finite()) {
        let (field, value, expected) = ("teacher logit", f64::from(*z), "a finite number".into());
        return Err(LossError::Row { field, row, value, expected });
    }
    let teacher: Vec<f64> = teacher.iter().map(|&z| f64::from(z) / temperature).collect();
    if kind == Divergence::LogitMse {
        return Ok(mean_squared(u, &teacher, grad));
    }
    against_log_probabilities(row, kind, u, &log_softmax(&teacher), grad)
}
