//! How good the model is.

use super::Trainer;
use crate::error::ModelError;
use crate::loss::hard_cross_entropy;
use crate::model::Frozen;

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
    /// Runs `input` [rows, input_width] without dropout, normalised by running statistics, and
    /// compares with `hard` \[rows\]. A row's logits do not depend on the others.
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
        if rows == 0 || hard.len() != rows {
            let (found, expected) = (hard.len(), format!("{rows} rows, at least 1"));
            return Err(ModelError::Size { field: "hard labels", found, expected });
        }
        let network = Frozen::new(&self.config.model, &self.model.tensors()?)?;
        let logits = network.infer(input, rows)?.logits;
        evaluate_logits(&logits, self.config.model.classes(), hard)
    }
}

/// Compares `logits` [rows, classes] with `labels` \[rows\], in f64.
///
/// # Errors
///
/// [`ModelError::Size`] for no rows or sizes that do not fit, [`ModelError::HardLabel`] for a label
/// that is not a class, [`ModelError::NonFiniteLogits`] for the first row that holds NaN or
/// infinity.
pub fn evaluate_logits(
    logits: &[f32],
    classes: usize,
    labels: &[u32],
) -> Result<Evaluation, ModelError> {
    let rows = labels.len();
    if logits.is_empty() || rows.checked_mul(classes) != Some(logits.len()) {
        let expected = format!("{rows} rows of {classes}, at least 1 of each");
        return Err(ModelError::Size { field: "logits", found: logits.len(), expected });
    }
    if let Some(row) = labels.iter().position(|&label| label as usize >= classes) {
        return Err(ModelError::HardLabel { row, label: labels[row], classes });
    }
    let (mut sum, mut errors) = (0.0, 0);
    for (row, (logits, &label)) in logits.chunks_exact(classes).zip(labels).enumerate() {
        if logits.iter().any(|z| !z.is_finite()) {
            return Err(ModelError::NonFiniteLogits { row });
        }
        let label = label as usize;
        let logits: Vec<f64> = logits.iter().map(|&z| f64::from(z)).collect();
        sum += hard_cross_entropy(&logits, label).0;
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        errors += usize::from(logits.iter().position(|&z| z == max) != Some(label));
    }
    Ok(Evaluation { loss: sum / rows as f64, errors, rows })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_and_errors_are_counted() {
        let found = evaluate_logits(&[2.0, 0.5, 0.0, 0.0, 1.0, 3.0], 2, &[1, 0, 1]).unwrap();
        let expected = (1.5f64.exp().ln_1p() + 2f64.ln() + (-2f64).exp().ln_1p()) / 3.0;
        assert!((found.loss - expected).abs() < 1e-15, "{found:?}");
        // Of the two equal logits the first counts.
        assert_eq!((found.errors, found.rows), (1, 3));
    }

    /// The difference of these logits is beyond f32.
    #[test]
    fn a_large_loss_is_its_value() {
        let found = evaluate_logits(&[3e38, -3e38], 2, &[1]).unwrap();
        assert_eq!(found, Evaluation { loss: 2.0 * f64::from(3e38f32), errors: 1, rows: 1 });
    }

    #[test]
    fn faults_are_named() {
        let refusal = |logits: &[f32], classes, labels: &[u32]| {
            evaluate_logits(logits, classes, labels).unwrap_err().to_string()
        };
        for (logits, classes, labels) in [
            (&[0.0; 4][..], 2, &[0][..]),
            (&[], 2, &[]),
            (&[], 0, &[0]),
            (&[0.0], usize::MAX, &[0; 2]),
        ] {
            let error = refusal(logits, classes, labels);
            assert!(error.contains(&format!("logits has {} elements", logits.len())), "{error}");
        }
        assert_eq!(refusal(&[0.0; 4], 2, &[1, 2]), "hard label of row 1 is 2; expected 0 to 1");
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = refusal(&[0.0, 1.0, bad, 0.0], 2, &[0, 1]);
            assert_eq!(error, "the logits of row 1 are not finite");
        }
    }
}
