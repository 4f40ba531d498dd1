//! A limit to the length of each unit's incoming weights.

use rayon::prelude::*;

use crate::error::ModelError;
use crate::kernel::parallel::sum_of_squares;
use crate::layers::Parameter;

/// Scales every row of a weight (a unit's, or an output channel's, incoming weights) whose L2 norm
/// exceeds `max` back to it (Srivastava et al., 2014, section 5.1). Parameters of one dimension, biases
/// and the like, are left alone.
///
/// # Errors
///
/// If a parameter cannot be written.
pub(crate) fn limit_rows(parameters: &[&Parameter], max: f64) -> Result<(), ModelError> {
    for parameter in parameters {
        let &[rows, _, ..] = parameter.shape() else { continue };
        parameter.update(|values| {
            let width = values.len() / rows.max(1);
            values.par_chunks_mut(width.max(1)).for_each(|row| {
                let norm = sum_of_squares(row).sqrt();
                if norm > max {
                    let scale = max / norm;
                    row.iter_mut().for_each(|w| *w = (f64::from(*w) * scale) as f32);
                }
            });
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rows_that_are_too_long_are_scaled() {
        let weight = vec![3.0, 4.0, 0.3, 0.4, -6.0, 8.0];
        let matrix = Parameter::new("w", weight.clone(), &[3, 2]).unwrap();
        let bias = Parameter::new("b", weight.clone(), &[6]).unwrap();
        let filters = Parameter::new("c", weight.clone(), &[1, 2, 3, 1]).unwrap();
        limit_rows(&[&matrix, &bias, &filters], 2.0).unwrap();
        let close = |found: Vec<f32>, expected: &[f64]| {
            for (found, expected) in found.iter().zip(expected) {
                assert!((f64::from(*found) - expected).abs() < 1e-6, "{found} {expected}");
            }
        };
        close(matrix.values().unwrap(), &[1.2, 1.6, 0.3, 0.4, -1.2, 1.6]);
        assert_eq!(bias.values().unwrap(), weight);
        let length = weight.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>().sqrt();
        let scaled: Vec<f64> = weight.iter().map(|&w| 2.0 * f64::from(w) / length).collect();
        close(filters.values().unwrap(), &scaled);
    }

    #[test]
    fn nothing_that_is_not_finite_is_hidden() {
        let p = Parameter::new("w", vec![f32::INFINITY, 1.0, f32::NAN, 1.0], &[2, 2]).unwrap();
        limit_rows(&[&p], 1.0).unwrap();
        let values = p.values().unwrap();
        assert!(!values[0].is_finite() && !values[2].is_finite(), "{values:?}");
    }
}
