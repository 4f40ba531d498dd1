//! Which loss, and with what weights.

use serde::{Deserialize, Serialize};

use super::target::SoftTarget;
use crate::error::LossError;

/// How far apart teacher p and student q are, both at temperature T.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Divergence {
    /// KL(p || q).
    #[default]
    ForwardKl,
    /// -sum p log q (Hinton et al., 2015): the gradient of [`Self::ForwardKl`], the value higher
    /// by the teacher's entropy.
    CrossEntropy,
    /// KL(q || p) (MiniLLM: Gu et al., 2024).
    ReverseKl,
    /// beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q (generalised
    /// Jensen-Shannon of GKD: Agarwal et al., 2024).
    JensenShannon {
        /// Weight of the teacher, in (0, 1).
        beta: f64,
    },
    /// KL(p || lambda p + (1 - lambda) q) (DistiLLM: Ko et al., 2024).
    SkewKl {
        /// Share of the teacher in the mixture, in [0, 1); 0 is [`Self::ForwardKl`].
        lambda: f64,
    },
    /// Half the sum of |p - q|.
    TotalVariation,
    /// Mean over classes of ((z_student - z_teacher) / T)^2 (Bucila et al., 2006): with the factor
    /// T^2 the loss is PyTorch's `mse_loss` of the logits at any T. For zero-mean logits it is
    /// twice what T^2 KL(p || q) tends to as T grows.
    LogitMse,
}

impl Divergence {
    /// Name as in configuration files.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ForwardKl => "forward_kl",
            Self::CrossEntropy => "cross_entropy",
            Self::ReverseKl => "reverse_kl",
            Self::JensenShannon { .. } => "jensen_shannon",
            Self::SkewKl { .. } => "skew_kl",
            Self::TotalVariation => "total_variation",
            Self::LogitMse => "logit_mse",
        }
    }

    /// Whether it has a meaning on labels like `target`.
    pub(super) fn supports(&self, target: &SoftTarget) -> Result<(), LossError> {
        let refuse = |reason| {
            let (divergence, encoding) = (self.name(), target.encoding());
            Err(LossError::Unsupported { divergence, encoding, reason })
        };
        match (self, target) {
            (Self::LogitMse, SoftTarget::Logits(_)) => Ok(()),
            (Self::LogitMse, _) => refuse("it compares logits; ask for dense logits"),
            (Self::ForwardKl | Self::CrossEntropy, SoftTarget::Sampled { .. }) => Ok(()),
            (_, SoftTarget::Sampled { .. }) => refuse(
                "draws estimate sums weighted by p only, without bias for forward_kl and \
                 cross_entropy; ask for dense or top_k labels",
            ),
            _ => Ok(()),
        }
    }
}

/// What to compare on top-k labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TopKForm {
    /// The k classes and the mass of all others as one more outcome.
    #[default]
    TailBucket,
    /// The k classes alone, each side renormalised over them. Biased: the student is free to put
    /// any mass on the other classes, and its ratios among the k are all that is learnt.
    Renormalized,
}

/// The whole loss: `(1 - alpha) * CE + alpha * T^2 * divergence`, or with weights that need not sum
/// to 1, `hard_weight * CE + soft_weight * T^2 * divergence`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossConfig {
    /// Weight of the distillation term, in [0, 1]; 1 - alpha is that of the hard labels.
    pub alpha: f64,
    /// Weight of the hard labels instead of 1 - alpha, finite and not negative.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hard_weight: Option<f64>,
    /// Weight of the distillation term instead of alpha, finite and not negative.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soft_weight: Option<f64>,
    /// T, finite and above 0; that of the labels.
    pub temperature: f64,
    /// Between teacher and student.
    pub divergence: Divergence,
    /// On top-k labels.
    pub top_k_form: TopKForm,
}

impl Default for LossConfig {
    /// alpha 0.9, T 4, KL(p || q).
    fn default() -> Self {
        Self {
            alpha: 0.9,
            hard_weight: None,
            soft_weight: None,
            temperature: 4.0,
            divergence: Divergence::default(),
            top_k_form: TopKForm::default(),
        }
    }
}

impl LossConfig {
    /// Weights of the hard labels and of the distillation term.
    pub fn weights(&self) -> (f64, f64) {
        (self.hard_weight.unwrap_or(1.0 - self.alpha), self.soft_weight.unwrap_or(self.alpha))
    }

    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`LossError::Config`], naming the field, its value and the accepted range.
    pub fn validate(&self) -> Result<(), LossError> {
        let check = |field, value: f64, fits: bool, expected| {
            if fits { Ok(()) } else { Err(LossError::Config { field, value, expected }) }
        };
        let t = self.temperature;
        check("alpha", self.alpha, (0.0..=1.0).contains(&self.alpha), "0 to 1")?;
        for (field, weight) in
            [("hard_weight", self.hard_weight), ("soft_weight", self.soft_weight)]
        {
            let weight = weight.unwrap_or_default();
            let fits = weight.is_finite() && weight >= 0.0;
            check(field, weight, fits, "a finite number, 0 or more")?;
        }
        if self.weights() == (0.0, 0.0) {
            let field = if self.soft_weight.is_some() { "soft_weight" } else { "hard_weight" };
            check(field, 0.0, false, "above 0 where the other weight is 0")?;
        }
        check("temperature", t, t.is_finite() && t > 0.0, "a finite number above 0")?;
        match self.divergence {
            Divergence::JensenShannon { beta } => {
                check("beta", beta, beta > 0.0 && beta < 1.0, "above 0 and below 1")
            }
            Divergence::SkewKl { lambda } => {
                check("lambda", lambda, (0.0..1.0).contains(&lambda), "0 or more and below 1")
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_name_field_value_and_range() {
        let base = LossConfig::default();
        assert!(base.validate().is_ok());
        for alpha in [-0.1, 1.1, f64::NAN] {
            let error = LossConfig { alpha, ..base }.validate().unwrap_err().to_string();
            assert_eq!(error, format!("alpha is {alpha}; expected 0 to 1"));
        }
        for weight in [-0.5, f64::NAN, f64::INFINITY] {
            for (field, config) in [
                ("hard_weight", LossConfig { hard_weight: Some(weight), ..base }),
                ("soft_weight", LossConfig { soft_weight: Some(weight), ..base }),
            ] {
                let error = config.validate().unwrap_err().to_string();
                let expected = "expected a finite number, 0 or more";
                assert_eq!(error, format!("{field} is {weight}; {expected}"));
            }
        }
        let nothing = LossConfig { hard_weight: Some(0.0), alpha: 0.0, ..base };
        let error = nothing.validate().unwrap_err().to_string();
        assert_eq!(error, "hard_weight is 0; expected above 0 where the other weight is 0");
        for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = LossConfig { temperature, ..base }.validate().unwrap_err().to_string();
            assert_eq!(
                error,
                format!("temperature is {temperature}; expected a finite number above 0")
            );
        }
        for beta in [0.0, 1.0, f64::NAN] {
            let divergence = Divergence::JensenShannon { beta };
            let error = LossConfig { divergence, ..base }.validate().unwrap_err().to_string();
            assert_eq!(error, format!("beta is {beta}; expected above 0 and below 1"));
        }
        for lambda in [-0.1, 1.0, f64::NAN] {
            let divergence = Divergence::SkewKl { lambda };
            let error = LossConfig { divergence, ..base }.validate().unwrap_err().to_string();
            assert_eq!(error, format!("lambda is {lambda}; expected 0 or more and below 1"));
        }
    }

    #[test]
    fn weights_stand_in_for_alpha_one_by_one() {
        let base = LossConfig { alpha: 0.25, ..LossConfig::default() };
        assert_eq!(base.weights(), (0.75, 0.25));
        assert_eq!(LossConfig { hard_weight: Some(3.0), ..base }.weights(), (3.0, 0.25));
        assert_eq!(LossConfig { soft_weight: Some(2.0), ..base }.weights(), (0.75, 2.0));
    }

    #[test]
    fn names_are_those_of_configuration_files() {
        let all = [
            Divergence::ForwardKl,
            Divergence::CrossEntropy,
            Divergence::ReverseKl,
            Divergence::JensenShannon { beta: 0.5 },
            Divergence::SkewKl { lambda: 0.1 },
            Divergence::TotalVariation,
            Divergence::LogitMse,
        ];
        for divergence in all {
            let json = serde_json::to_value(divergence).unwrap();
            assert_eq!(json["kind"], divergence.name());
            assert_eq!(serde_json::from_value::<Divergence>(json).unwrap(), divergence);
        }
        assert!(serde_json::from_str::<LossConfig>(r#"{"alhpa": 1}"#).is_err());
        assert_eq!(serde_json::from_str::<LossConfig>("{}").unwrap(), LossConfig::default());
    }
}
