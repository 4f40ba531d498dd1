//! One row against draws from the teacher.

use super::outcomes::{log_softmax, through_softmax};
use super::target::check_ids;
use crate::error::LossError;

/// `-sum (count / draws) log q` of student logits `u` (divided by T); its derivative by each u in
/// `grad`.
pub(super) fn against(
    row: usize,
    u: &[f64],
    draws: u32,
    ids: &[u32],
    counts: &[u32],
    grad: &mut [f64],
) -> Result<f64, LossError> {
    check_ids(row, ids, u.len())?;
    let total: u64 = counts.iter().map(|&count| u64::from(count)).sum();
    if total != u64::from(draws) || draws == 0 {
        let (field, value) = ("sum of the soft label's counts", total as f64);
        let expected = format!("the number of draws, {draws}, and at least 1");
        return Err(LossError::Row { field, row, value, expected });
    }
    let log_q = log_softmax(u);
    grad.fill(0.0);
    let mut value = 0.0;
    for (&id, &count) in ids.iter().zip(counts) {
        let frequency = f64::from(count) / f64::from(draws);
        grad[id as usize] = -frequency;
        value -= frequency * log_q[id as usize];
    }
    through_softmax(grad, &log_q);
    Ok(value)
}
