//! Which optimizer, with what constants.

use serde::{Deserialize, Serialize};

use crate::error::ModelError;

/// An optimizer, with PyTorch's names and defaults. Weight decay applies to every parameter.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum OptimizerConfig {
    /// Stochastic gradient descent, with momentum where that is above 0 (`torch.optim.SGD`).
    Sgd {
        /// In [0, 1).
        #[serde(default)]
        momentum: f64,
        /// Look ahead by one momentum step; needs momentum.
        #[serde(default)]
        nesterov: bool,
        /// Added to the gradient as a multiple of the weight; 0 or more.
        #[serde(default)]
        weight_decay: f64,
    },
    /// Adam with decoupled weight decay (Loshchilov and Hutter, 2019; `torch.optim.AdamW`).
    AdamW {
        /// Decay of the mean of gradients, in [0, 1).
        #[serde(default = "default_beta1")]
        beta1: f64,
        /// Decay of the mean of squares, in [0, 1).
        #[serde(default = "default_beta2")]
        beta2: f64,
        /// Added to the root of the mean of squares; above 0.
        #[serde(default = "default_eps")]
        eps: f64,
        /// Share of a weight, times the learning rate, that a step takes away; 0 or more.
        #[serde(default = "default_decay")]
        weight_decay: f64,
    },
}

fn default_beta1() -> f64 {
    0.9
}

fn default_beta2() -> f64 {
    0.999
}

fn default_eps() -> f64 {
    1e-8
}

fn default_decay() -> f64 {
    0.01
}

impl Default for OptimizerConfig {
    /// AdamW as PyTorch has it.
    fn default() -> Self {
        Self::AdamW {
            beta1: default_beta1(),
            beta2: default_beta2(),
            eps: default_eps(),
            weight_decay: default_decay(),
        }
    }
}

/// What [`fits`] accepts, in words.
pub(crate) const FITS: &str = "above 0 and at most 3.4e38, also as an f32";

/// Whether `x` is finite and above 0 as the f32 that weights are changed with.
pub(crate) fn fits(x: f64) -> bool {
    let x = x as f32;
    x.is_finite() && x > 0.0
}

impl OptimizerConfig {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`ModelError::Config`], naming the field, its value and the accepted range.
    pub fn validate(&self) -> Result<(), ModelError> {
        let check = |field: &str, value: f64, fits: bool, expected: &str| {
            if fits {
                return Ok(());
            }
            let (field, value) = (format!("optimizer.{field}"), format!("{value:?}"));
            Err(ModelError::Config { field, value, expected: expected.to_owned() })
        };
        let below_one = |field, x: f64| {
            let fits = (0.0..1.0).contains(&x) && (x as f32) < 1.0;
            check(field, x, fits, "0 or more and below 1, also as an f32")
        };
        let decay =
            |x: f64| check("weight_decay", x, x == 0.0 || fits(x), &format!("0, or {FITS}"));
        match *self {
            Self::Sgd { momentum, nesterov, weight_decay } => {
                below_one("momentum", momentum)?;
                let fits = !nesterov || momentum > 0.0;
                check("momentum", momentum, fits, "above 0 for nesterov")?;
                decay(weight_decay)
            }
            Self::AdamW { beta1, beta2, eps, weight_decay } => {
                below_one("beta1", beta1)?;
                below_one("beta2", beta2)?;
                check("eps", eps, fits(eps), FITS)?;
                decay(weight_decay)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_partial_tables() {
        let read = |text| serde_json::from_str::<OptimizerConfig>(text);
        assert_eq!(read(r#"{"kind": "adamw"}"#).unwrap(), OptimizerConfig::default());
        let sgd = OptimizerConfig::Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.0 };
        let text = r#"{"kind": "sgd", "momentum": 0.9, "nesterov": true}"#;
        assert_eq!(read(text).unwrap(), sgd);
        assert!(read(r#"{"kind": "sgd", "beta1": 0.9}"#).is_err());
        assert!(read(r#"{"kind": "lion"}"#).unwrap_err().to_string().contains("adamw"));
    }

    #[test]
    fn faults_are_named() {
        let adamw = |beta1, eps, weight_decay| OptimizerConfig::AdamW {
            beta1,
            beta2: 0.999,
            eps,
            weight_decay,
        };
        let sgd =
            |momentum, nesterov| OptimizerConfig::Sgd { momentum, nesterov, weight_decay: 0.0 };
        for (config, words) in [
            (adamw(1.0, 1e-8, 0.0), "optimizer.beta1 is 1"),
            (adamw(0.9, 0.0, 0.0), "optimizer.eps is 0.0; expected above 0 and at most 3.4e38"),
            // A gradient of 0 over a root of 0 would be NaN.
            (adamw(0.9, 1e-50, 0.0), "optimizer.eps is 1e-50;"),
            (adamw(0.9, 1e39, 0.0), "optimizer.eps is 1e39;"),
            (adamw(0.9, 1e-8, -1.0), "optimizer.weight_decay is -1.0; expected 0, or above 0"),
            (adamw(0.9, 1e-8, 1e39), "optimizer.weight_decay is 1e39;"),
            (adamw(0.9, 1e-8, f64::NAN), "optimizer.weight_decay is NaN"),
            (adamw(f64::NAN, 1e-8, 0.0), "optimizer.beta1 is NaN"),
            (sgd(-0.5, false), "optimizer.momentum is -0.5"),
            (sgd(0.0, true), "above 0 for nesterov"),
        ] {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!(OptimizerConfig::default().validate().is_ok());
    }
}
