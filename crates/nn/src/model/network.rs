//! Any architecture in training.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::config::ModelConfig;
use super::{LeNet, Mlp, ResNet};
use crate::error::ModelError;
use crate::io::Tensors;
use crate::layers::Parameter;
use crate::layers::image::RunningUpdate;
use crate::rng::Philox;

/// A model with its weights as variables.
#[derive(Debug)]
pub(crate) enum Network {
    Mlp(Mlp),
    LeNet(LeNet),
    ResNet(ResNet),
}

/// What a forward pass in training gives.
#[derive(Debug)]
pub(crate) struct Forward {
    /// [rows, classes], as a graph.
    pub(crate) logits: Tensor,
    /// To be committed once the step is taken.
    pub(crate) running: Vec<RunningUpdate>,
}

impl Network {
    /// Random weights from `rng`.
    pub(crate) fn new(config: &ModelConfig, rng: &mut Philox) -> Result<Self, ModelError> {
        Ok(match config {
            ModelConfig::Mlp(config) => Self::Mlp(Mlp::new(config, rng)?),
            ModelConfig::LeNet(config) => Self::LeNet(LeNet::new(config, rng)?),
            ModelConfig::ResNet(config) => Self::ResNet(ResNet::new(config, rng)?),
        })
    }

    /// Every parameter, in order of name.
    pub(crate) fn parameters(&self) -> Vec<&Parameter> {
        let all = match self {
            Self::Mlp(model) => model.parameters(),
            Self::LeNet(model) => model.parameters(),
            Self::ResNet(model) => model.parameters(),
        };
        let sorted: BTreeMap<&str, &Parameter> = all.into_iter().map(|p| (p.name(), p)).collect();
        sorted.into_values().collect()
    }

    /// Logits of `input` [rows, input_width], with whatever is random from `rng`.
    ///
    /// # Errors
    ///
    /// [`ModelError::NonFiniteInput`], or what candle refuses.
    pub(crate) fn forward(
        &self,
        input: &[f32],
        rows: usize,
        rng: &mut Philox,
    ) -> Result<Forward, ModelError> {
        let (logits, running) = match self {
            Self::Mlp(model) => (model.forward(input, rows, rng)?, vec![]),
            Self::LeNet(model) => {
                check_finite(input, rows)?;
                (model.forward(input, rows, rng)?, vec![])
            }
            Self::ResNet(model) => {
                check_finite(input, rows)?;
                model.forward(input, rows)?
            }
        };
        Ok(Forward { logits, running })
    }

    /// A copy of every weight and running statistic.
    pub(crate) fn tensors(&self) -> Result<Tensors, ModelError> {
        let mut tensors = match self {
            Self::Mlp(_) | Self::LeNet(_) => Tensors::new(),
            Self::ResNet(model) => model.buffers(),
        };
        for p in self.parameters() {
            tensors.insert(p.name().to_owned(), (p.shape().to_vec(), p.values()?));
        }
        Ok(tensors)
    }

    /// Overwrites every weight and running statistic that `tensors` names.
    ///
    /// # Errors
    ///
    /// If a tensor has another number of elements.
    pub(crate) fn set_tensors(&self, tensors: &Tensors) -> Result<(), ModelError> {
        for parameter in self.parameters() {
            if let Some((_, values)) = tensors.get(parameter.name()) {
                parameter.set(values)?;
            }
        }
        if let Self::ResNet(model) = self {
            model.set_buffers(tensors)?;
        }
        Ok(())
    }
}

/// Names the first feature that is not finite; normalising by a finite mean and standard deviation
/// makes no other so, short of an overflow, which the loss notices.
fn check_finite(input: &[f32], rows: usize) -> Result<(), ModelError> {
    match input.iter().position(|x| !x.is_finite()) {
        Some(i) => {
            let width = input.len() / rows.max(1);
            let (row, feature) = (i / width.max(1), i % width.max(1));
            Err(ModelError::NonFiniteInput { row, feature, value: input[i] })
        }
        None => Ok(()),
    }
}
