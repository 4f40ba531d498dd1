//! What a trainer does.

use serde::{Deserialize, Serialize};

use crate::error::ModelError;
use crate::model::ModelConfig;
use crate::optim::{FITS, OptimizerConfig, ScheduleConfig, fits};

/// A model and how to train it. Losses come with each step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainerConfig {
    /// Architecture.
    pub model: ModelConfig,
    /// How weights follow gradients.
    pub optimizer: OptimizerConfig,
    /// Learning rate.
    pub schedule: ScheduleConfig,
    /// Steps of the whole run, at least 1; the schedule ends there.
    pub total_steps: u64,
    /// Longest gradient, as a norm over all parameters, above 0; none: no limit.
    pub clip_norm: Option<f64>,
    /// Longest row of a weight, as an L2 norm, above 0: a unit whose incoming weights are longer after
    /// an update has them scaled back (Srivastava et al., 2014, section 5.1). None: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_norm: Option<f64>,
    /// Of initial weights and of dropout.
    pub seed: u64,
}

impl TrainerConfig {
    /// AdamW at a constant 0.001 without clipping, seed 0.
    pub fn new(model: ModelConfig, total_steps: u64) -> Self {
        Self {
            model,
            optimizer: OptimizerConfig::default(),
            schedule: ScheduleConfig::default(),
            total_steps,
            clip_norm: None,
            max_norm: None,
            seed: 0,
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`ModelError::Config`], naming the field, its value and the accepted range.
    pub fn validate(&self) -> Result<(), ModelError> {
        self.model.validate()?;
        self.optimizer.validate()?;
        self.schedule.validate()?;
        let refuse = |field: &str, value: String, expected: &str| {
            let (field, expected) = (field.to_owned(), expected.to_owned());
            Err(ModelError::Config { field, value, expected })
        };
        self.schedule.validate_steps(self.total_steps)?;
        for (field, norm) in [("clip_norm", self.clip_norm), ("max_norm", self.max_norm)] {
            if let Some(norm) = norm.filter(|&norm| !fits(norm)) {
                return refuse(field, norm.to_string(), &format!("{FITS}, or none"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::MlpConfig;

    #[test]
    fn faults_are_named() {
        let base = TrainerConfig::new(ModelConfig::Mlp(MlpConfig::new(2, vec![], 2)), 5);
        assert!(base.validate().is_ok());
        for clip_norm in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e39] {
            let config = TrainerConfig { clip_norm: Some(clip_norm), ..base.clone() };
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(&format!("clip_norm is {clip_norm}")), "{error}");
            let config = TrainerConfig { max_norm: Some(clip_norm), ..base.clone() };
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(&format!("max_norm is {clip_norm}")), "{error}");
        }
        for warmup_steps in [5, 6, u64::MAX] {
            let schedule = ScheduleConfig { warmup_steps, ..base.schedule };
            let config = TrainerConfig { schedule, ..base.clone() };
            let error = config.validate().unwrap_err().to_string();
            let expected = "expected 0 to 4, below the 5 steps of the run";
            assert_eq!(error, format!("schedule.warmup_steps is {warmup_steps}; {expected}"));
        }
        let schedule = ScheduleConfig { warmup_steps: 4, ..base.schedule };
        assert!(TrainerConfig { schedule, ..base.clone() }.validate().is_ok());
        let error = TrainerConfig { total_steps: 0, ..base }.validate().unwrap_err().to_string();
        assert!(error.contains("total_steps is 0"), "{error}");
    }
}
