//! The multilayer perceptron's configuration.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Architecture, check, default_rescale_factor};
use crate::error::ModelError;

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

    /// (x - mean) / std of every feature.
    pub(crate) fn normalize(&self, input: &[f32]) -> Vec<f32> {
        if (self.image_mean, self.image_std) == (0.0, 1.0) {
            return input.to_vec();
        }
        input.iter().map(|x| (x - self.image_mean) / self.image_std).collect()
    }
}

impl Architecture for MlpConfig {
    fn input_width(&self) -> usize {
        self.input_size
    }

    fn image_shape(&self) -> Option<[usize; 3]> {
        None
    }

    fn classes(&self) -> usize {
        self.num_labels
    }

    fn hidden_size(&self) -> usize {
        self.hidden_sizes.last().copied().unwrap_or(self.input_size)
    }

    fn rescale_factor(&self) -> f64 {
        self.rescale_factor
    }

    fn tensors(&self) -> BTreeMap<String, Vec<usize>> {
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

    fn head(&self) -> String {
        format!("layers.{}", self.hidden_sizes.len())
    }

    fn validate(&self) -> Result<(), ModelError> {
        check::size("input_size", self.input_size, 1)?;
        for (i, &size) in self.hidden_sizes.iter().enumerate() {
            check::size(&format!("hidden_sizes[{i}]"), size, 1)?;
        }
        check::size("num_labels", self.num_labels, 2)?;
        check::parameters(
            self.layer_sizes()
                .map(|(inputs, outputs)| outputs.saturating_mul(inputs.saturating_add(1))),
        )?;
        check::dropout("dropout", self.dropout)?;
        check::dropout("input_dropout", self.input_dropout)?;
        check::rescale_factor(self.rescale_factor)?;
        check::mean("image_mean", self.image_mean)?;
        check::std("image_std", self.image_std)
    }
}
