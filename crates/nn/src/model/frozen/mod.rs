//! Models that do not change any more: their forward passes in a fixed order.

mod image;
mod lenet;
mod mlp;
mod resnet;

use lenet::FrozenLeNet;
use mlp::FrozenMlp;
use resnet::FrozenResNet;

use super::classifier::Inference;
use super::config::ModelConfig;
use crate::error::ModelError;
use crate::io::Tensors;

/// Any architecture, its weights arranged for inference.
#[derive(Clone, Debug)]
pub(crate) enum Frozen {
    Mlp(FrozenMlp),
    LeNet(FrozenLeNet),
    ResNet(FrozenResNet),
}

impl Frozen {
    /// Arranges the tensors that `config` asks for.
    ///
    /// # Errors
    ///
    /// [`ModelError::Layer`] for the first one that is missing or of another shape.
    pub(crate) fn new(config: &ModelConfig, tensors: &Tensors) -> Result<Self, ModelError> {
        Ok(match config {
            ModelConfig::Mlp(config) => Self::Mlp(FrozenMlp::new(config, tensors)?),
            ModelConfig::LeNet(config) => Self::LeNet(FrozenLeNet::new(config, tensors)?),
            ModelConfig::ResNet(config) => Self::ResNet(FrozenResNet::new(config, tensors)?),
        })
    }

    /// Logits and hidden states of `input` [rows, input_width]. A row that has an element which is
    /// not finite, on its way in or out, is NaN throughout.
    ///
    /// # Errors
    ///
    /// [`ModelError::Size`] if `input` does not hold `rows` rows.
    pub(crate) fn infer(&self, input: &[f32], rows: usize) -> Result<Inference, ModelError> {
        match self {
            Self::Mlp(model) => model.infer(input, rows),
            Self::LeNet(model) => model.infer(input, rows),
            Self::ResNet(model) => model.infer(input, rows),
        }
    }
}

/// The elements of a tensor of that name and shape.
pub(super) fn values<'a>(
    tensors: &'a Tensors,
    name: &str,
    expected: &[usize],
) -> Result<&'a [f32], ModelError> {
    match tensors.get(name) {
        Some((shape, values))
            if shape == expected && values.len() == expected.iter().product::<usize>() =>
        {
            Ok(values)
        }
        _ => Err(ModelError::Layer { tensor: name.to_owned(), expected: expected.to_vec() }),
    }
}

/// Checks that `input` holds `rows` rows of `width`.
fn check_size(input: &[f32], rows: usize, width: usize) -> Result<(), ModelError> {
    if rows.checked_mul(width) == Some(input.len()) {
        return Ok(());
    }
    let expected = format!("{rows} rows of {width}");
    Err(ModelError::Size { field: "input", found: input.len(), expected })
}
