//! `config.json`: what a model is, without its weights.

pub(crate) mod check;
mod lenet;
mod mlp;
mod resnet;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use lenet::LeNetConfig;
pub use mlp::{Activation, MlpConfig};
pub(crate) use resnet::BlockShape;
pub use resnet::ResNetConfig;

use super::CONFIG_FILE;
use crate::error::ModelError;
use crate::io::write_atomic;

/// What an architecture says of itself.
trait Architecture {
    /// Features of one row.
    fn input_width(&self) -> usize;
    /// Channels, height and width, where a row is an image.
    fn image_shape(&self) -> Option<[usize; 3]>;
    /// Classes V.
    fn classes(&self) -> usize;
    /// Width d of what the output projection sees.
    fn hidden_size(&self) -> usize;
    /// What u8 input is multiplied by.
    fn rescale_factor(&self) -> f64;
    /// Name and shape of every tensor.
    fn tensors(&self) -> BTreeMap<String, Vec<usize>>;
    /// Name of the output projection: `{head}.weight` and `{head}.bias`.
    fn head(&self) -> String;
    /// Checks every field.
    fn validate(&self) -> Result<(), ModelError>;
}

fn default_rescale_factor() -> f64 {
    1.0 / 255.0
}

/// Any model that this crate knows, told apart by `model_type`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "model_type")]
pub enum ModelConfig {
    /// `"mlp"`.
    #[serde(rename = "mlp")]
    Mlp(MlpConfig),
    /// `"lenet"`.
    #[serde(rename = "lenet")]
    LeNet(LeNetConfig),
    /// `"cifar_resnet"`.
    #[serde(rename = "cifar_resnet")]
    ResNet(ResNetConfig),
}

/// Every `model_type`, for error messages.
const MODEL_TYPES: &[&str] = &["mlp", "lenet", "cifar_resnet"];

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
        config.validate().map_err(|error| error.in_file(&path))?;
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
        self.architecture().validate()
    }

    fn architecture(&self) -> &dyn Architecture {
        match self {
            Self::Mlp(config) => config,
            Self::LeNet(config) => config,
            Self::ResNet(config) => config,
        }
    }

    /// Features of one row.
    pub fn input_width(&self) -> usize {
        self.architecture().input_width()
    }

    /// Channels, height and width of one row, whose features are whole planes, channel by channel;
    /// none for a model that takes any features.
    pub fn image_shape(&self) -> Option<[usize; 3]> {
        self.architecture().image_shape()
    }

    /// Classes V.
    pub fn classes(&self) -> usize {
        self.architecture().classes()
    }

    /// Width d of what the output projection sees.
    pub fn hidden_size(&self) -> usize {
        self.architecture().hidden_size()
    }

    /// What u8 input is multiplied by.
    pub fn rescale_factor(&self) -> f64 {
        self.architecture().rescale_factor()
    }

    /// Name and shape of every tensor in `model.safetensors`.
    pub fn tensors(&self) -> BTreeMap<String, Vec<usize>> {
        self.architecture().tensors()
    }

    /// Name of the output projection: tensors `{head}.weight` [classes, hidden_size] and
    /// `{head}.bias` \[classes\].
    pub(crate) fn head(&self) -> String {
        self.architecture().head()
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
