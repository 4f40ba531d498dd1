//! A perceptron that does not change any more: its forward pass in a fixed order.

use super::super::classifier::Inference;
use super::super::config::MlpConfig;
use super::{check_size, values};
use crate::error::ModelError;
use crate::io::Tensors;
use crate::kernel::packed::PackedLinear;

/// The weights of an [`MlpConfig`], arranged for [`PackedLinear::apply`].
#[derive(Clone, Debug)]
pub(crate) struct FrozenMlp {
    config: MlpConfig,
    layers: Vec<PackedLinear>,
}

impl FrozenMlp {
    /// Packs the tensors that `config` asks for.
    ///
    /// # Errors
    ///
    /// [`ModelError::Layer`] for the first one that is missing or of another shape.
    pub(crate) fn new(config: &MlpConfig, tensors: &Tensors) -> Result<Self, ModelError> {
        let pack = |(i, (inputs, outputs))| {
            let weight = values(tensors, &format!("layers.{i}.weight"), &[outputs, inputs])?;
            let bias = values(tensors, &format!("layers.{i}.bias"), &[outputs])?;
            Ok(PackedLinear::new(weight, Some(bias), outputs, inputs))
        };
        let layers =
            config.layer_sizes().enumerate().map(pack).collect::<Result<_, ModelError>>()?;
        Ok(Self { config: config.clone(), layers })
    }

    /// Logits and hidden states of `rows` rows. A row whose logits are not all finite is NaN
    /// throughout. That takes in every row whose features are not finite once normalised, and every
    /// row that overflows in a hidden layer: each element of a layer's output has all of its input
    /// as terms, and what is not finite passes the ReLU.
    pub(crate) fn infer(&self, input: &[f32], rows: usize) -> Result<Inference, ModelError> {
        check_size(input, rows, self.config.input_size)?;
        let mut hidden = self.config.normalize(input);
        let mut logits = Vec::new();
        for (i, layer) in self.layers.iter().enumerate() {
            if i + 1 < self.layers.len() {
                hidden = layer.apply(&hidden, true);
            } else {
                logits = layer.apply(&hidden, false);
            }
        }
        let (classes, width) = (self.config.num_labels, hidden.len() / rows.max(1));
        for (row, logits) in logits.chunks_exact_mut(classes).enumerate() {
            if logits.iter().any(|z| !z.is_finite()) {
                logits.fill(f32::NAN);
                hidden[row * width..][..width].fill(f32::NAN);
            }
        }
        Ok(Inference { logits, hidden })
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::config::ModelConfig;
    use super::*;

    #[test]
    fn a_layer_that_lacks_a_tensor_is_an_error() {
        let config = MlpConfig::new(3, vec![4], 2);
        let whole: Tensors = ModelConfig::Mlp(config.clone())
            .tensors()
            .into_iter()
            .map(|(name, shape)| {
                let count = shape.iter().product();
                (name, (shape, vec![0.5; count]))
            })
            .collect();
        assert!(FrozenMlp::new(&config, &whole).is_ok());
        for (name, (shape, _)) in &whole {
            let mut missing = whole.clone();
            missing.remove(name);
            let mut short = whole.clone();
            short.insert(name.clone(), (shape.clone(), vec![0.5]));
            let mut misshapen = whole.clone();
            misshapen.insert(name.clone(), (vec![1], vec![0.5]));
            for tensors in [missing, short, misshapen] {
                let error = FrozenMlp::new(&config, &tensors).unwrap_err().to_string();
                assert_eq!(
                    error,
                    format!("tensor {name} does not fit the model; expected shape {shape:?}")
                );
            }
        }
    }
}
