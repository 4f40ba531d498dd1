//! The multilayer perceptron: its graph for training.

use candle_core::{Device, Tensor};

use super::config::MlpConfig;
use crate::error::ModelError;
use crate::layers::{Linear, Parameter, dropout};
use crate::rng::Philox;

/// Linear layers with ReLU and, in training, dropout between them.
#[derive(Clone, Debug)]
pub struct Mlp {
    config: MlpConfig,
    layers: Vec<Linear>,
}

impl Mlp {
    /// Random weights, drawn layer by layer, each weight before its bias.
    ///
    /// # Errors
    ///
    /// If candle refuses to make the variables.
    pub fn new(config: &MlpConfig, rng: &mut Philox) -> Result<Self, ModelError> {
        let layers = config
            .layer_sizes()
            .enumerate()
            .map(|(i, (inputs, outputs))| Linear::new(&format!("layers.{i}"), inputs, outputs, rng))
            .collect::<Result<_, _>>()?;
        Ok(Self { config: config.clone(), layers })
    }

    /// Every parameter, layer by layer.
    pub fn parameters(&self) -> Vec<&Parameter> {
        self.layers.iter().flat_map(|layer| [layer.weight(), layer.bias()]).collect()
    }

    /// Logits [rows, classes] of `input` [rows, input_size] as a graph, with dropout from `rng`.
    ///
    /// # Errors
    ///
    /// If `input` does not hold `rows` rows, or a feature is not finite once it is normalised.
    pub fn forward(
        &self,
        input: &[f32],
        rows: usize,
        rng: &mut Philox,
    ) -> Result<Tensor, ModelError> {
        let input = self.config.normalize(input);
        if let Some(i) = input.iter().position(|x| !x.is_finite()) {
            let (row, feature) = (i / self.config.input_size, i % self.config.input_size);
            return Err(ModelError::NonFiniteInput { row, feature, value: input[i] });
        }
        let mut x = Tensor::from_vec(input, (rows, self.config.input_size), &Device::Cpu)?;
        x = dropout(&x, self.config.input_dropout, rng)?;
        let last = self.layers.len() - 1;
        for (i, layer) in self.layers.iter().enumerate() {
            if i > 0 {
                x = dropout(&x, self.config.dropout, rng)?;
            }
            x = layer.forward(&x, i < last)?;
        }
        Ok(x)
    }
}
