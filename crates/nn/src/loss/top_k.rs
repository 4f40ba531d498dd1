//! One row against log-probabilities of k classes and the mass of the rest.

use super::config::{Divergence, TopKForm};
use super::outcomes::{divergence, log_softmax, log_sum_exp, max_and_log_sum, through_softmax};
use super::target::{check_ids, normalize};
use crate::error::LossError;

/// What is known of one row's teacher.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) ids: &'a [u32],
    pub(super) log_probabilities: &'a [f32],
    pub(super) log_tail_mass: f32,
}

/// D of student logits `u` (divided by T); its derivative by each u in `grad`.
pub(super) fn against(
    row: usize,
    kind: Divergence,
    form: TopKForm,
    u: &[f64],
    known: Known<'_>,
    grad: &mut [f64],
) -> Result<f64, LossError> {
    check_ids(row, known.ids, u.len())?;
    let mut log_p: Vec<f64> = known.log_probabilities.iter().map(|&x| f64::from(x)).collect();
    log_p.push(f64::from(known.log_tail_mass));
    normalize(row, &mut log_p)?;
    if known.ids.len() == u.len() {
        // No class is left for a tail, so the ids must hold all the mass.
        log_p.pop();
        normalize(row, &mut log_p)?;
    }
    match form {
        TopKForm::TailBucket => Ok(with_tail(kind, u, known.ids, &log_p, grad)),
        TopKForm::Renormalized => {
            log_p.truncate(known.ids.len());
            renormalized(row, kind, u, known.ids, &log_p, grad)
        }
    }
}

/// Over k + 1 outcomes, `log_p` ending with the tail; over k where k = V.
fn with_tail(kind: Divergence, u: &[f64], ids: &[u32], log_p: &[f64], grad: &mut [f64]) -> f64 {
    let k = ids.len();
    let outcomes = log_p.len();
    let log_q = log_softmax(u);
    let mut outcome_of = vec![k; u.len()];
    for (outcome, &id) in ids.iter().enumerate() {
        outcome_of[id as usize] = outcome;
    }
    let others = log_q.iter().zip(&outcome_of).filter(|(_, outcome)| **outcome == k);
    let (largest, log_sum) = max_and_log_sum(others.map(|(log_q, _)| *log_q));
    let mut student: Vec<f64> = ids.iter().map(|&id| log_q[id as usize]).collect();
    student.push(largest + log_sum);
    let mut by_outcome = vec![0.0; outcomes];
    let value = divergence(kind, log_p, &student[..outcomes], &mut by_outcome);
    // log q_tail moves with a class in it by that class's share of the tail.
    for ((grad, log_q), &outcome) in grad.iter_mut().zip(&log_q).zip(&outcome_of) {
        let share = if outcome == k { ((log_q - largest) - log_sum).exp() } else { 1.0 };
        *grad = by_outcome[outcome] * share;
    }
    through_softmax(grad, &log_q);
    value
}

/// Over the k classes, each side scaled to sum to 1 over them.
fn renormalized(
    row: usize,
    kind: Divergence,
    u: &[f64],
    ids: &[u32],
    log_p: &[f64],
    grad: &mut [f64],
) -> Result<f64, LossError> {
    let log_mass = log_sum_exp(log_p.iter().copied());
    if log_mass == f64::NEG_INFINITY {
        let expected = "above 0, to renormalise".to_owned();
        let field = "probability mass of the soft label's ids";
        return Err(LossError::Row { field, row, value: 0.0, expected });
    }
    let log_p: Vec<f64> = log_p.iter().map(|log_p| log_p - log_mass).collect();
    let chosen: Vec<f64> = ids.iter().map(|&id| u[id as usize]).collect();
    let log_q = log_softmax(&chosen);
    let mut by_outcome = vec![0.0; ids.len()];
    let value = divergence(kind, &log_p, &log_q, &mut by_outcome);
    through_softmax(&mut by_outcome, &log_q);
    grad.fill(0.0);
    for (&id, slope) in ids.iter().zip(by_outcome) {
        grad[id as usize] = slope;
    }
    Ok(value)
}
