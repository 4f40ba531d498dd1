//! The learning rate over the steps of a run.

use serde::{Deserialize, Serialize};

use super::config::{FITS, fits};
use crate::error::ModelError;

/// Shape of the curve after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Stays at `learning_rate`.
    #[default]
    Constant,
    /// Half a cosine down to `min_learning_rate` (Loshchilov and Hutter, 2017, without restarts).
    Cosine,
    /// A straight line down to `min_learning_rate`.
    Linear,
}

/// The learning rate: a linear rise over `warmup_steps`, then `kind`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    /// The highest rate, reached at the end of warm-up; above 0.
    pub learning_rate: f64,
    /// Steps of warm-up; the first has `learning_rate / warmup_steps`. Fewer than the run has.
    pub warmup_steps: u64,
    /// After warm-up.
    pub kind: ScheduleKind,
    /// What `cosine` and `linear` end at; 0 to `learning_rate`.
    pub min_learning_rate: f64,
}

impl Default for ScheduleConfig {
    /// 0.001 throughout.
    fn default() -> Self {
        Self {
            learning_rate: 1e-3,
            warmup_steps: 0,
            kind: ScheduleKind::Constant,
            min_learning_rate: 0.0,
        }
    }
}

impl ScheduleConfig {
    /// Learning rate of step `step` (the first is 0) of `total`. Steps past the end keep the last
    /// rate.
    pub fn lr(&self, step: u64, total: u64) -> f64 {
        if step < self.warmup_steps {
            return self.learning_rate * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let decaying = total.saturating_sub(self.warmup_steps).max(1) as f64;
        let progress = ((step - self.warmup_steps) as f64 / decaying).min(1.0);
        let share = match self.kind {
            ScheduleKind::Constant => return self.learning_rate,
            ScheduleKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            ScheduleKind::Linear => 1.0 - progress,
        };
        self.min_learning_rate + (self.learning_rate - self.min_learning_rate) * share
    }

    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`ModelError::Config`], naming the field, its value and the accepted range.
    pub fn validate(&self) -> Result<(), ModelError> {
        let (rate, min) = (self.learning_rate, self.min_learning_rate);
        let refuse = |field: &str, value: f64, expected: String| {
            let field = format!("schedule.{field}");
            Err(ModelError::Config { field, value: format!("{value:?}"), expected })
        };
        if !fits(rate) {
            return refuse("learning_rate", rate, FITS.to_owned());
        }
        if !(0.0..=rate).contains(&min) {
            return refuse("min_learning_rate", min, format!("0 to the learning_rate, {rate}"));
        }
        Ok(())
    }

    /// Checks that a run of `total_steps` has any, and warm-up is over before they are.
    ///
    /// # Errors
    ///
    /// [`ModelError::Config`], naming the field, its value and the accepted range.
    pub(crate) fn validate_steps(&self, total_steps: u64) -> Result<(), ModelError> {
        let refuse = |field: &str, value: u64, expected: String| {
            let (field, value) = (field.to_owned(), value.to_string());
            Err(ModelError::Config { field, value, expected })
        };
        if total_steps == 0 {
            return refuse("total_steps", 0, "at least 1".to_owned());
        }
        let warmup = self.warmup_steps;
        if warmup >= total_steps {
            // The learning rate would never be reached, and there would be nothing to decay.
            let most = total_steps - 1;
            let expected = format!("0 to {most}, below the {total_steps} steps of the run");
            return refuse("schedule.warmup_steps", warmup, expected);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(kind: ScheduleKind) -> Vec<f64> {
        let schedule =
            ScheduleConfig { learning_rate: 1.0, warmup_steps: 4, kind, min_learning_rate: 0.2 };
        (0..14).map(|step| schedule.lr(step, 12)).collect()
    }

    #[test]
    fn rises_then_follows_its_kind() {
        for kind in [ScheduleKind::Constant, ScheduleKind::Cosine, ScheduleKind::Linear] {
            assert_eq!(rates(kind)[..5], [0.25, 0.5, 0.75, 1.0, 1.0]);
        }
        assert_eq!(rates(ScheduleKind::Constant)[13], 1.0);
        let linear = rates(ScheduleKind::Linear);
        assert!((linear[8] - 0.6).abs() < 1e-15 && (linear[11] - 0.3).abs() < 1e-15);
        let cosine = rates(ScheduleKind::Cosine);
        assert!((cosine[8] - 0.6).abs() < 1e-15);
        let expected = 0.2 + 0.4 * (1.0 + (std::f64::consts::PI / 4.0).cos());
        assert!((cosine[6] - expected).abs() < 1e-15);
        assert_eq!((linear[12], linear[13]), (0.2, 0.2));
    }

    #[test]
    fn a_run_shorter_than_its_warm_up_never_divides_by_zero() {
        let schedule = ScheduleConfig { warmup_steps: 10, ..ScheduleConfig::default() };
        assert!((0..20).all(|step| schedule.lr(step, 5).is_finite()));
    }

    #[test]
    fn faults_are_named() {
        let base = ScheduleConfig::default();
        for learning_rate in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e39, 1e-60] {
            let error = ScheduleConfig { learning_rate, ..base }.validate().unwrap_err();
            let error = error.to_string();
            assert!(error.contains("schedule.learning_rate is"), "{error}");
            assert!(error.contains("expected above 0 and at most 3.4e38"), "{error}");
        }
        let error = ScheduleConfig { min_learning_rate: 1.0, ..base }.validate().unwrap_err();
        assert!(error.to_string().contains("min_learning_rate is 1.0; expected 0 to"), "{error}");
    }
}
