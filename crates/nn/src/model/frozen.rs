//! A perceptron that does not change any more: its forward pass in a fixed order.

use super::classifier::Inference;
use super::config::MlpConfig;
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
    /// Packs the tensors that `config` asks for; their shapes must have been checked.
    pub(crate) fn new(config: &MlpConfig, tensors: &Tensors) -> Self {
        let values = |name: String| tensors.get(&name).map(|(_, values)| values.as_slice());
        let layers = config.layer_sizes().enumerate().filter_map(|(i, (inputs, outputs))| {
            let weight = values(format!("layers.{i}.weight"))?;
            Some(PackedLinear::new(weight, values(format!("layers.{i}.bias")), outputs, inputs))
        });
        Self { config: config.clone(), layers: layers.collect() }
    }

    /// Logits and hidden states of `rows` rows.
    pub(crate) fn infer(&self, input: &[f32], rows: usize) -> Result<Inference, ModelError> {
        let width = self.config.input_size;
        if rows.checked_mul(width) != Some(input.len()) {
            let expected = format!("{rows} rows of {width}");
            return Err(ModelError::Size { field: "input", found: input.len(), expected });
        }
        let mut hidden = self.config.normalize(input);
        let mut logits = Vec::new();
        for (i, layer) in self.layers.iter().enumerate() {
            if i + 1 < self.layers.len() {
                hidden = layer.apply(&hidden, true);
            } else {
                logits = layer.apply(&hidden, false);
            }
        }
        Ok(Inference { logits, hidden })
    }
}
