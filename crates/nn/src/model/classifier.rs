//! Inference: the teacher's side.

use std::path::Path;

use super::WEIGHTS_FILE;
use super::config::ModelConfig;
use super::fingerprint::fingerprint;
use super::frozen::{Frozen, values};
use super::head::Head;
use crate::error::ModelError;
use crate::io::read_tensors;

/// What the model says about a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Inference {
    /// [rows, classes].
    pub logits: Vec<f32>,
    /// [rows, hidden_size]: the last hidden state after its activation, which [`Head::logits`]
    /// turns into the logits. The normalised input of a perceptron without hidden layers.
    pub hidden: Vec<f32>,
}

/// A trained classifier, read-only.
///
/// A row's result is bit for bit the same whatever batch it is in, at whatever place, on however
/// many threads and with whatever vector registers: every element is one chain of fused
/// multiply-adds in a fixed order.
#[derive(Clone, Debug)]
pub struct Classifier {
    config: ModelConfig,
    network: Frozen,
    head: Head,
    parameters: usize,
    fingerprint: [u8; 32],
}

impl Classifier {
    /// Reads `config.json` and `model.safetensors` in `dir`.
    ///
    /// # Errors
    ///
    /// A [`ModelError`] that names the file, the field or tensor, what was found and what was
    /// expected.
    pub fn load(dir: &Path) -> Result<Self, ModelError> {
        let config = ModelConfig::load(dir)?;
        let tensors = read_tensors(&dir.join(WEIGHTS_FILE), &config.tensors())?;
        let (classes, hidden_size) = (config.classes(), config.hidden_size());
        let name = config.head();
        let weight = values(&tensors, &format!("{name}.weight"), &[classes, hidden_size])?;
        let bias = values(&tensors, &format!("{name}.bias"), &[classes])?;
        let head = Head {
            weight: weight.to_vec(),
            bias: Some(bias.to_vec()),
            classes,
            hidden_size,
            softcap: None,
        };
        Ok(Self {
            network: Frozen::new(&config, &tensors)?,
            head,
            parameters: tensors.values().map(|(_, values)| values.len()).sum(),
            fingerprint: fingerprint(&config, &tensors),
            config,
        })
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Features of one row.
    pub fn input_width(&self) -> usize {
        self.config.input_width()
    }

    /// Classes V.
    pub fn classes(&self) -> usize {
        self.config.classes()
    }

    /// Width d of [`Inference::hidden`].
    pub fn hidden_size(&self) -> usize {
        self.config.hidden_size()
    }

    /// What u8 input is to be multiplied by before [`Self::infer`].
    pub fn rescale_factor(&self) -> f64 {
        self.config.rescale_factor()
    }

    /// Number of weights, running statistics of normalisations among them.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// SHA-256 over configuration, compute dtype and every tensor: equal fingerprints, equal
    /// labels.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// Logits and hidden states of `input` [rows, input_width], rescaled where it was u8.
    /// Features that are not finite once normalised, or so large that a sum overflows, make logits
    /// and hidden state of their own row NaN, and touch no other row.
    ///
    /// # Errors
    ///
    /// [`ModelError::Size`] if `input` does not hold `rows` rows.
    pub fn infer(&self, input: &[f32], rows: usize) -> Result<Inference, ModelError> {
        self.network.infer(input, rows)
    }

    /// The output projection.
    pub fn head(&self) -> Head {
        self.head.clone()
    }
}
