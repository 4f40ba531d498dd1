//! What a model's directory holds, by its `model_type`.

use std::path::Path;

use super::{CONFIG_FILE, ModelConfig};
use crate::error::ModelError;
use crate::transformer::TransformerConfig;

/// A configuration of any kind of model.
#[derive(Clone, Debug, PartialEq)]
pub enum AnyConfig {
    /// A classifier of feature rows.
    Features(ModelConfig),
    /// A transformer over token sequences.
    Text(TransformerConfig),
}

#[derive(serde::Deserialize)]
struct Kind {
    model_type: Option<String>,
}

impl AnyConfig {
    /// Reads and validates `config.json` in `dir`.
    ///
    /// # Errors
    ///
    /// As [`ModelConfig::load`] and [`TransformerConfig::load`]; a `model_type` that is not known is
    /// told with those of both.
    pub fn load(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join(CONFIG_FILE);
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ModelError::Io { path: path.clone(), source })?;
        let kind: Kind = serde_json::from_str(&text)
            .map_err(|source| ModelError::Json { path: path.clone(), source })?;
        if kind.model_type.as_deref().is_some_and(TransformerConfig::supports) {
            return TransformerConfig::parse(&path, &text).map(Self::Text);
        }
        match ModelConfig::load(dir) {
            Ok(config) => Ok(Self::Features(config)),
            Err(ModelError::UnknownModelType { path, found, supported }) => {
                let supported = format!("{supported}, {}", TransformerConfig::supported());
                Err(ModelError::UnknownModelType { path, found, supported })
            }
            Err(error) => Err(error),
        }
    }
}
