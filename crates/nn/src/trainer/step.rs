//! One optimisation step.

use crate::error::{ModelError, TrainError};
use crate::layers::Parameter;
use crate::layers::image::RunningUpdate;
use crate::loss::{LossConfig, SoftTarget, loss};
use crate::model::{Forward, Network};
use crate::optim::{Optimizer, Update, clip_scale, global_norm, limit_rows};
use crate::rng::Philox;
use crate::trainer::TrainerConfig;

/// Streams of the seed; a caller's own random numbers belong in streams from 16 on.
const INIT_STREAM: u64 = 0;
const DROPOUT_STREAM: u64 = 1;

/// What one step learns from.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// [rows, input_width], rescaled where it was u8.
    pub input: &'a [f32],
    /// At least 1.
    pub rows: usize,
    /// Class of each row, \[rows\]; needed where hard labels have a weight.
    pub hard: Option<&'a [u32]>,
    /// The teacher's labels; needed where they have a weight.
    pub soft: Option<&'a SoftTarget>,
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// `hard_loss` and `soft_loss` by their weights, mean over rows.
    pub loss: f64,
    /// Cross-entropy with the hard labels, where there are any.
    pub hard_loss: Option<f64>,
    /// T^2 times the divergence from the soft labels, where there are any.
    pub soft_loss: Option<f64>,
    /// Norm of the gradient over all parameters, before clipping.
    pub grad_norm: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
}

/// A model in training.
#[derive(Debug)]
pub struct Trainer {
    pub(super) config: TrainerConfig,
    pub(super) model: Network,
    pub(super) optimizer: Optimizer,
    /// Dropout masks.
    pub(super) rng: Philox,
}

impl Trainer {
    /// A model with random weights, drawn from the seed as each architecture has them.
    ///
    /// # Errors
    ///
    /// [`ModelError::Config`], naming the field, its value and the accepted range.
    pub fn new(config: TrainerConfig) -> Result<Self, ModelError> {
        config.validate()?;
        let model = Network::new(&config.model, &mut Philox::new(config.seed, INIT_STREAM))?;
        let optimizer = Optimizer::new(config.optimizer, &model.parameters());
        let rng = Philox::new(config.seed, DROPOUT_STREAM);
        Ok(Self { config, model, optimizer, rng })
    }

    /// What the trainer does.
    pub fn config(&self) -> &TrainerConfig {
        &self.config
    }

    /// Steps taken.
    pub fn steps_done(&self) -> u64 {
        self.optimizer.steps()
    }

    /// Forward, loss, backward, clipping and update. After an error everything is as it was before;
    /// only after [`TrainError::NonFiniteUpdate`] is the trainer of no use until
    /// [`Self::load_state`].
    ///
    /// # Errors
    ///
    /// A [`TrainError`] for a batch that does not fit the model or the loss, and for a feature, a
    /// loss, a gradient or an update that is not finite.
    pub fn step(
        &mut self,
        batch: &Batch<'_>,
        config: &LossConfig,
    ) -> Result<StepReport, TrainError> {
        let width = self.config.model.input_width();
        if batch.rows == 0 || batch.rows.checked_mul(width) != Some(batch.input.len()) {
            let expected = format!("{} rows of {width}, at least 1 row", batch.rows);
            let found = batch.input.len();
            return Err(ModelError::Size { field: "input", found, expected }.into());
        }
        let step = self.steps_done();
        let mut rng = self.rng.clone();
        let Forward { logits, running } = self.model.forward(batch.input, batch.rows, &mut rng)?;
        let (scalar, parts) = loss(&logits, batch.hard, batch.soft, config)?;
        if !parts.total.is_finite() {
            return Err(TrainError::NonFiniteLoss { step, value: parts.total });
        }
        let parameters = self.model.parameters();
        backward(&scalar, &parameters)?;
        let grad_norm = global_norm(&parameters);
        if !grad_norm.is_finite() {
            return Err(TrainError::NonFiniteGradient { step, value: grad_norm });
        }
        let learning_rate = self.config.schedule.lr(step, self.config.total_steps);
        if let Some(layer) = running.iter().find(|update| !update.is_finite()) {
            let layer = layer.name().to_owned();
            return Err(TrainError::NonFiniteStatistics { step, layer });
        }
        let scale = clip_scale(grad_norm, self.config.clip_norm);
        let update = self.optimizer.step(&parameters, learning_rate, scale)?;
        if let Some(max) = self.config.max_norm {
            limit_rows(&parameters, max)?;
        }
        self.rng = rng;
        running.into_iter().for_each(RunningUpdate::commit);
        if let Update::NonFinite { parameter } = update {
            return Err(TrainError::NonFiniteUpdate { step, parameter });
        }
        Ok(StepReport {
            loss: parts.total,
            hard_loss: parts.hard,
            soft_loss: parts.soft,
            grad_norm,
            learning_rate,
        })
    }
}

/// Fills the gradient of every parameter.
fn backward(scalar: &candle_core::Tensor, parameters: &[&Parameter]) -> Result<(), TrainError> {
    parameters.iter().for_each(|p| p.clear_gradient());
    let mut store = scalar.backward()?;
    for parameter in parameters {
        if !parameter.collect_gradient(&mut store)? {
            return Err(TrainError::NoGradient { parameter: parameter.name().to_owned() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_outside_the_graph_is_named() {
        let p = |name| Parameter::new(name, vec![1.0, 2.0], &[2]);
        let (used, unused) = (p("used").unwrap(), p("unused").unwrap());
        let scalar = used.tensor().sum_all().unwrap();
        assert!(backward(&scalar, &[&used]).is_ok());
        let error = backward(&scalar, &[&used, &unused]).unwrap_err();
        assert!(matches!(error, TrainError::NoGradient { .. }));
        assert_eq!(error.to_string(), "variable unused received no gradient");
    }
}
