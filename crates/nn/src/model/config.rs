//! `config.json`: what a model is, without its weights.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::CONFIG_FILE;
use crate::error::ModelError;
use crate::io::write_atomic;

/// Largest width of a layer, and most layers: bounds what a configuration file can make the
/// process allocate to about what a machine can hold.
const MAX_WIDTH: usize = 1 << 24;
const MAX_PARAMETERS: usize = 1 << 33;

/// Nonlinearity between layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// max(0, x).
    #[default]
    Relu,
}

/// A multilayer perceptron: `num_labels` logits from `input_size` features.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MlpConfig {
    /// Features of one row.
    pub input_size: usize,
    /// Width of each hidden layer, first to last; none: a linear classifier.
    #[serde(default)]
    pub hidden_sizes: Vec<usize>,
    /// Classes.
    pub num_labels: usize,
    /// After each hidden layer.
    #[serde(default)]
    pub hidden_act: Activation,
    /// Probability that a hidden unit is dropped in training, in [0, 1).
    #[serde(default)]
    pub dropout: f32,
    /// Probability that a feature is dropped in training, in [0, 1).
    #[serde(default)]
    pub input_dropout: f32,
    /// What u8 input is multiplied by before it reaches the model; the caller does so.
    #[serde(default = "default_rescale_factor")]
    pub rescale_factor: f64,
    /// Subtracted from every (rescaled) feature by the model itself.
    #[serde(default)]
    pub image_mean: f32,
    /// What the model then divides by.
    #[serde(default = "default_image_std")]
    pub image_std: f32,
}

fn default_rescale_factor() -> f64 {
    1.0 / 255.0
}

fn default_image_std() -> f32 {
    1.0
}

impl MlpConfig {
    /// A perceptron of these widths with every other field at its default.
    pub fn new(input_size: usize, hidden_sizes: Vec<usize>, num_labels: usize) -> Self {
        Self {
            input_size,
            hidden_sizes,
            num_labels,
            hidden_act: Activation::Relu,
            dropout: 0.0,
            input_dropout: 0.0,
            rescale_factor: default_rescale_factor(),
            image_mean: 0.0,
            image_std: default_image_std(),
        }
    }

    /// (inputs, outputs) of each linear layer, first to last.
    pub(crate) fn layer_sizes(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let inputs = std::iter::once(self.input_size).chain(self.hidden_sizes.iter().copied());
        inputs.zip(self.hidden_sizes.iter().copied().chain([self.num_labels]))
    }

    /// Name and shape of every tensor.
    pub(crate) fn tensors(&self) -> BTreeMap<String, Vec<usize>> {
        self.layer_sizes()
            .enumerate()
            .flat_map(|(i, (inputs, outputs))| {
                [
                    (format!("layers.{i}.weight"), vec![outputs, inputs]),
                    (format!("layers.{i}.bias"), vec![outputs]),
                ]
            })
            .collect()
    }

    /// (x - mean) / std of every feature.
    pub(crate) fn normalize(&self, input: &[f32]) -> Vec<f32> {
        if (self.image_mean, self.image_std) == (0.0, 1.0) {
            return input.to_vec();
        }
        input.iter().map(|x| (x - self.image_mean) / self.image_std).collect()
    }

    fn validate(&self) -> Result<(), ModelError> {
        let refuse = |field: &str, value: &dyn std::fmt::Display, expected: &str| {
            Err(ModelError::Config {
                field: field.to_owned(),
                value: value.to_string(),
                expected: expected.to_owned(),
            })
        };
        let width = format!("1 to {MAX_WIDTH}");
        if !(1..=MAX_WIDTH).contains(&self.input_size) {
            return refuse("input_size", &self.input_size, &width);
        }
        for (i, size) in self.hidden_sizes.iter().enumerate() {
            if !(1..=MAX_WIDTH).contains(size) {
                return refuse(&format!("hidden_sizes[{i}]"), size, &width);
            }
        }
        if !(2..=MAX_WIDTH).contains(&self.num_labels) {
            return refuse("num_labels", &self.num_labels, &format!("2 to {MAX_WIDTH}"));
        }
        let parameters = self.layer_sizes().fold(0usize, |sum, (inputs, outputs)| {
            sum.saturating_add(outputs.saturating_mul(inputs.saturating_add(1)))
        });
        if parameters > MAX_PARAMETERS {
            return refuse(
                "number of parameters",
                &parameters,
                &format!("at most {MAX_PARAMETERS}"),
            );
        }
        for (field, p) in [("dropout", self.dropout), ("input_dropout", self.input_dropout)] {
            if !(0.0..1.0).contains(&p) {
                return refuse(field, &p, "0 or more and below 1");
            }
        }
        if !(self.rescale_factor.is_finite() && self.rescale_factor > 0.0) {
            return refuse("rescale_factor", &self.rescale_factor, "a finite number above 0");
        }
        if !self.image_mean.is_finite() {
            return refuse("image_mean", &self.image_mean, "a finite number");
        }
        if !(self.image_std.is_finite() && self.image_std > 0.0) {
            return refuse("image_std", &self.image_std, "a finite number above 0");
        }
        Ok(())
    }
}

/// Any model that this crate knows, told apart by `model_type`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "model_type", rename_all = "lowercase")]
pub enum ModelConfig {
    /// `"mlp"`.
    Mlp(MlpConfig),
}

/// Every `model_type`, for error messages.
const MODEL_TYPES: &[&str] = &["mlp"];

impl ModelConfig {
    /// Reads and validates `config.json` in `dir`. Keys that this crate does not use are ignored:
    /// other tools keep theirs in the same file.
    ///
    /// # Errors
    ///
    /// [`ModelError::Io`], [`ModelError::Json`], [`ModelError::UnknownModelType`] or
    /// [`ModelError::ConfigFile`].
    pub fn load(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join(CONFIG_FILE);
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ModelError::Io { path: path.clone(), source })?;
        let json = |source| ModelError::Json { path: path.clone(), source };
        let value: serde_json::Value = serde_json::from_str(&text).map_err(json)?;
        if let Some(found) = value.get("model_type").and_then(serde_json::Value::as_str)
            && !MODEL_TYPES.contains(&found)
        {
            let (found, supported) = (found.to_owned(), MODEL_TYPES.join(", "));
            return Err(ModelError::UnknownModelType { path, found, supported });
        }
        let config: Self = serde_json::from_value(value).map_err(json)?;
        config.validate().map_err(|error| match error {
            ModelError::Config { field, value, expected } => {
                ModelError::ConfigFile { path, field, value, expected }
            }
            other => other,
        })?;
        Ok(config)
    }

    /// Writes `config.json` in `dir`, with every field. Equal configurations give equal bytes.
    ///
    /// # Errors
    ///
    /// As [`write_atomic`].
    pub fn save(&self, dir: &Path) -> Result<(), ModelError> {
        let path = dir.join(CONFIG_FILE);
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|source| ModelError::Json { path: path.clone(), source })?;
        text.push(b'\n');
        write_atomic(&path, &text)
    }

    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`ModelError::Config`], naming the field, its value and the accepted range.
    pub fn validate(&self) -> Result<(), ModelError> {
        match self {
            Self::Mlp(config) => config.validate(),
        }
    }

    /// Features of one row.
    pub fn input_width(&self) -> usize {
        match self {
            Self::Mlp(config) => config.input_size,
        }
    }

    /// Channels, height and width of one row, whose features are whole planes, channel by channel;
    /// none for a model that takes any features.
    pub fn image_shape(&self) -> Option<[usize; 3]> {
        match self {
            Self::Mlp(_) => None,
        }
    }

    /// Classes V.
    pub fn classes(&self) -> usize {
        match self {
            Self::Mlp(config) => config.num_labels,
        }
    }

    /// Width d of what the output projection sees.
    pub fn hidden_size(&self) -> usize {
        match self {
            Self::Mlp(config) => config.hidden_sizes.last().copied().unwrap_or(config.input_size),
        }
    }

    /// What u8 input is multiplied by.
    pub fn rescale_factor(&self) -> f64 {
        match self {
            Self::Mlp(config) => config.rescale_factor,
        }
    }

    /// Name and shape of every tensor in `model.safetensors`.
    pub fn tensors(&self) -> BTreeMap<String, Vec<usize>> {
        match self {
            Self::Mlp(config) => config.tensors(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<ModelConfig, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(CONFIG_FILE), text).unwrap();
        ModelConfig::load(dir.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_fill_in_and_foreign_keys_are_ignored() {
        let text = r#"{"model_type": "mlp", "input_size": 784, "hidden_sizes": [1200, 1200],
            "num_labels": 10, "transformers_version": "5"}"#;
        let config = load(text).unwrap();
        assert_eq!(config, ModelConfig::Mlp(MlpConfig::new(784, vec![1200, 1200], 10)));
        assert_eq!((config.input_width(), config.classes()), (784, 10));
        assert_eq!((config.hidden_size(), config.rescale_factor()), (1200, 1.0 / 255.0));
        assert_eq!(config.tensors()["layers.2.weight"], [10, 1200]);
        assert_eq!(config.tensors().len(), 6);
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let config = ModelConfig::Mlp(MlpConfig {
            dropout: 0.1,
            image_mean: 0.13,
            image_std: 0.3,
            ..MlpConfig::new(3, vec![], 2)
        });
        config.save(dir.path()).unwrap();
        assert_eq!(ModelConfig::load(dir.path()).unwrap(), config);
        assert_eq!(config.hidden_size(), 3);
    }

    #[test]
    fn faults_are_named() {
        let cases = [
            (r#"{"model_type": "bert"}"#, &["\"bert\"", "supported: mlp"][..]),
            (r#"{"input_size": 3}"#, &["model_type"]),
            (r#"{"model_type": "mlp", "num_labels": 2}"#, &["input_size"]),
            (r#"{"model_type": "mlp", "input_size": 0, "num_labels": 2}"#, &["input_size is 0"]),
            (
                r#"{"model_type": "mlp", "input_size": 3, "num_labels": 1}"#,
                &["num_labels is 1", "2"],
            ),
            (
                r#"{"model_type": "mlp", "input_size": 3, "num_labels": 2, "hidden_sizes": [4, 0]}"#,
                &["hidden_sizes[1] is 0"],
            ),
            (
                r#"{"model_type": "mlp", "input_size": 3, "num_labels": 2, "dropout": 1.0}"#,
                &["dropout is 1", "below 1"],
            ),
            (
                r#"{"model_type": "mlp", "input_size": 3, "num_labels": 2, "image_std": 0}"#,
                &["image_std is 0"],
            ),
            (
                r#"{"model_type": "mlp", "input_size": 3, "num_labels": 2, "hidden_act": "gelu"}"#,
                &["gelu", "relu"],
            ),
            (
                r#"{"model_type": "mlp", "input_size": 16777216, "num_labels": 16777216}"#,
                &["number of parameters"],
            ),
            ("{", &[CONFIG_FILE]),
        ];
        for (text, words) in cases {
            let error = load(text).unwrap_err();
            assert!(error.contains(CONFIG_FILE), "{error}");
            for word in words {
                assert!(error.contains(word), "{error} lacks {word}");
            }
        }
    }
}
