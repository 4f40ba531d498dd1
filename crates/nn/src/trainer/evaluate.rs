//! How good the model is.

use super::Trainer;
use crate::error::ModelError;
use crate::model::{FrozenMlp, ModelConfig};

/// Figures over a labelled set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean cross-entropy with the labels, in nats.
    pub loss: f64,
    /// Rows whose most probable class is another; of equal logits the first counts.
    pub errors: usize,
    /// Rows evaluated.
    pub rows: usize,
}

impl Trainer {
    /// Runs `input` [rows, input_width] without dropout and compares with `hard` \[rows\]. A row's
    /// logits do not depend on the others.
    ///
    /// # Errors
    ///
    /// [`ModelError::Size`] or [`ModelError::HardLabel`] for input and labels that do not fit,
    /// [`ModelError::NonFiniteLogits`] where the model gives no answer.
    pub fn evaluate(
        &self,
        input: &[f32],
        rows: usize,
        hard: &[u32],
    ) -> Result<Evaluation, ModelError> {
        let classes = self.config.model.classes();
        if rows == 0 || hard.len() != rows {
            let (found, expected) = (hard.len(), format!("{rows} rows, at least 1"));
            return Err(ModelError::Size { field: "hard labels", found, expected });
        }
        if let Some(row) = hard.iter().position(|&label| label as usize >= classes) {
            return Err(ModelError::HardLabel { row, label: hard[row], classes });
        }
        let ModelConfig::Mlp(config) = &self.config.model;
        let logits = FrozenMlp::new(config, &self.model.tensors()?).infer(input, rows)?.logits;
        let mut sum = 0.0;
        let mut errors = 0;
        for (row, (logits, &label)) in logits.chunks_exact(classes).zip(hard).enumerate() {
            if logits.iter().any(|z| !z.is_finite()) {
                return Err(ModelError::NonFiniteLogits { row });
            }
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mass: f64 = logits.iter().map(|z| f64::from(z - max).exp()).sum();
            sum += mass.ln() - f64::from(logits[label as usize] - max);
            let best = logits.iter().position(|&z| z == max);
            errors += usize::from(best != Some(label as usize));
        }
        Ok(Evaluation { loss: sum / rows as f64, errors, rows })
    }
}
