//! What can be served.

use std::{path::Path, sync::Arc};

use stillhouse_nn::{AnyConfig, Classifier, Head, Inference, ModelError, TextModel};

/// A loaded model: a pure function from rows of features to logits and hidden states.
///
/// The results of a row must not depend on the other rows of the batch, bit for bit on CPU.
pub trait Model: Send + Sync + 'static {
    /// Elements per input row.
    fn input_width(&self) -> usize;
    /// Classes, V.
    fn classes(&self) -> usize;
    /// Width d of the hidden state before the output projection.
    fn hidden_size(&self) -> usize;
    /// Channels, height and width of an input row; none for a model that takes any features.
    fn image_shape(&self) -> Option<[usize; 3]> {
        None
    }
    /// What U8 features are multiplied by.
    fn rescale_factor(&self) -> f64;
    /// SHA-256 over weights, configuration and compute dtype.
    fn fingerprint(&self) -> [u8; 32];
    /// The forward pass. `input` is `[rows, input_width]`.
    ///
    /// # Errors
    /// If the forward pass fails; the whole batch fails with it.
    fn infer(&self, input: &[f32], rows: usize) -> Result<Inference, ModelError>;
    /// The output projection.
    fn head(&self) -> Head;
}

impl Model for Classifier {
    fn input_width(&self) -> usize {
        Self::input_width(self)
    }

    fn classes(&self) -> usize {
        Self::classes(self)
    }

    fn hidden_size(&self) -> usize {
        Self::hidden_size(self)
    }

    fn image_shape(&self) -> Option<[usize; 3]> {
        self.config().image_shape()
    }

    fn rescale_factor(&self) -> f64 {
        Self::rescale_factor(self)
    }

    fn fingerprint(&self) -> [u8; 32] {
        Self::fingerprint(self)
    }

    fn infer(&self, input: &[f32], rows: usize) -> Result<Inference, ModelError> {
        Self::infer(self, input, rows)
    }

    fn head(&self) -> Head {
        Self::head(self)
    }
}

/// A model, by what it takes.
#[derive(Clone)]
pub enum AnyModel {
    /// Rows of features.
    Features(Arc<dyn Model>),
    /// Token sequences.
    Text(Arc<TextModel>),
}

impl From<Arc<dyn Model>> for AnyModel {
    fn from(model: Arc<dyn Model>) -> Self {
        Self::Features(model)
    }
}

impl From<Arc<TextModel>> for AnyModel {
    fn from(model: Arc<TextModel>) -> Self {
        Self::Text(model)
    }
}

impl AnyModel {
    /// Classes, or words, V.
    pub fn classes(&self) -> usize {
        match self {
            Self::Features(model) => model.classes(),
            Self::Text(model) => model.classes(),
        }
    }

    /// Width d of the hidden state before the output projection.
    pub fn hidden_size(&self) -> usize {
        match self {
            Self::Features(model) => model.hidden_size(),
            Self::Text(model) => model.config().hidden_size(),
        }
    }

    /// SHA-256 over weights, configuration and compute dtype.
    pub fn fingerprint(&self) -> [u8; 32] {
        match self {
            Self::Features(model) => model.fingerprint(),
            Self::Text(model) => model.fingerprint(),
        }
    }

    /// The output projection.
    pub fn head(&self) -> Head {
        match self {
            Self::Features(model) => model.head(),
            Self::Text(model) => model.head().clone(),
        }
    }
}

/// Reads what the model of a folder is, without its weights.
///
/// # Errors
/// If its configuration is missing or describes no model.
pub fn read_config(folder: &Path) -> Result<AnyConfig, ModelError> {
    AnyConfig::load(folder)
}

/// Loads the model of a folder.
///
/// # Errors
/// If a file is missing or does not hold the model that its configuration describes.
pub fn load(folder: &Path) -> Result<AnyModel, ModelError> {
    Ok(match AnyConfig::load(folder)? {
        AnyConfig::Features(_) => AnyModel::Features(Arc::new(Classifier::load(folder)?)),
        AnyConfig::Text(_) => AnyModel::Text(Arc::new(TextModel::load(folder)?)),
    })
}
