//! The output projection, for clients that rebuild logits from hidden states.

use crate::error::ModelError;
use crate::kernel::activation;
use crate::kernel::packed::PackedLinear;

/// `logits = hidden * weight^T + bias`, and where there is a cap, `cap * tanh(logits / cap)` of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// [classes, hidden_size], row-major.
    pub weight: Vec<f32>,
    /// \[classes\].
    pub bias: Option<Vec<f32>>,
    /// V.
    pub classes: usize,
    /// d.
    pub hidden_size: usize,
    /// What logits stay within, above 0 (Gemma 2); none: they are left as they are.
    pub softcap: Option<f32>,
}

impl Head {
    /// Arranges the weights for repeated use, which takes about as long as the logits of a few rows.
    ///
    /// # Errors
    ///
    /// [`ModelError::Size`] if the weight or the bias is not as long as the sizes say.
    pub fn pack(&self) -> Result<PackedHead, ModelError> {
        let (v, d) = (self.classes, self.hidden_size);
        let weights = self.weight.len();
        let fits = v > 0 && d > 0 && v.checked_mul(d) == Some(weights);
        check("head weight", weights, fits, format!("{v} x {d}"))?;
        if let Some(bias) = &self.bias {
            check("head bias", bias.len(), bias.len() == v, v.to_string())?;
        }
        let layer = PackedLinear::new(&self.weight, self.bias.as_deref(), v, d);
        Ok(PackedHead { layer, hidden_size: d, softcap: self.softcap })
    }

    /// [`PackedHead::logits`] of a head that is packed for this one call.
    ///
    /// # Errors
    ///
    /// [`ModelError::Size`] if the weight, the bias or `hidden` is not as long as the sizes say.
    pub fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>, ModelError> {
        self.pack()?.logits(hidden)
    }
}

/// A [`Head`] whose weights are arranged once, for any number of batches.
#[derive(Clone, Debug)]
pub struct PackedHead {
    layer: PackedLinear,
    /// d.
    hidden_size: usize,
    softcap: Option<f32>,
}

impl PackedHead {
    /// V.
    pub fn classes(&self) -> usize {
        self.layer.outputs()
    }

    /// d.
    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    /// [rows, hidden_size] to [rows, classes]. From f32 hidden states of a classifier these are
    /// its logits bit for bit: both compute every element in the same order.
    ///
    /// # Errors
    ///
    /// [`ModelError::Size`] if `hidden` does not hold whole rows.
    pub fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>, ModelError> {
        let (found, d) = (hidden.len(), self.hidden_size);
        check("hidden", found, found.is_multiple_of(d), format!("a multiple of {d}"))?;
        let mut logits = self.layer.apply(hidden, false);
        if let Some(cap) = self.softcap {
            activation::cap(&mut logits, cap);
        }
        Ok(logits)
    }
}

fn check(
    field: &'static str,
    found: usize,
    fits: bool,
    expected: String,
) -> Result<(), ModelError> {
    if fits { Ok(()) } else { Err(ModelError::Size { field, found, expected }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn projects_and_adds_the_bias() {
        let head = Head {
            weight: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            bias: Some(vec![0.5, 0.0, -0.5]),
            classes: 3,
            hidden_size: 2,
            softcap: None,
        };
        assert_eq!(head.logits(&[1.0, 1.0, 0.0, 2.0]).unwrap(), [3.5, 7.0, 10.5, 4.5, 8.0, 11.5]);
        assert_eq!(head.logits(&[]).unwrap(), [0.0; 0]);
        let packed = head.pack().unwrap();
        for hidden in [&[1.0, 1.0, 0.0, 2.0][..], &[-0.3, 7.5], &[]] {
            assert_eq!(packed.logits(hidden).unwrap(), head.logits(hidden).unwrap());
        }
        let error = packed.logits(&[0.0; 3]).unwrap_err().to_string();
        assert_eq!(error, "hidden has 3 elements; expected a multiple of 2");
    }

    #[test]
    fn sizes_that_do_not_fit_are_errors() {
        let head =
            Head { weight: vec![0.0; 6], bias: None, classes: 3, hidden_size: 2, softcap: None };
        for (head, word) in [
            (head.clone(), "hidden has 3"),
            (Head { hidden_size: 0, ..head.clone() }, "head weight has 6"),
            (Head { classes: usize::MAX, ..head.clone() }, "head weight has 6"),
            (Head { bias: Some(vec![0.0; 2]), ..head }, "head bias has 2"),
        ] {
            let error = head.logits(&[0.0; 3]).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
