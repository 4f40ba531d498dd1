//! An optimizer and what it remembers of each parameter.

use std::collections::BTreeMap;
use std::path::Path;

use super::adamw::AdamWStep;
use super::config::OptimizerConfig;
use super::sgd::SgdStep;
use crate::error::ModelError;
use crate::io::Tensors;
use crate::layers::{Parameter, lock};

/// Changes parameters in place, by the gradients that their buffers hold.
#[derive(Clone, Debug)]
pub(crate) struct Optimizer {
    config: OptimizerConfig,
    /// Steps taken.
    steps: u64,
    /// In the order of the parameters.
    memory: Vec<Memory>,
}

/// What one step wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Update {
    /// Finite numbers.
    Finite,
    /// NaN or infinity, in this parameter first or in what is remembered of it.
    NonFinite {
        /// Its name.
        parameter: String,
    },
}

/// What is remembered of one parameter.
#[derive(Clone, Debug)]
struct Memory {
    parameter: String,
    shape: Vec<usize>,
    /// Whether the optimizer's weight decay applies to it.
    decays: bool,
    /// SGD's momentum buffer or AdamW's mean of gradients.
    first: Vec<f32>,
    /// AdamW's mean of squares; empty for SGD.
    second: Vec<f32>,
}

impl Optimizer {
    /// An optimizer of these parameters that has taken no step.
    pub(crate) fn new(config: OptimizerConfig, parameters: &[&Parameter]) -> Self {
        Self::with_decay(config, parameters, |_| true)
    }

    /// [`Self::new`], with weight decay of those parameters only that `decays` says.
    pub(crate) fn with_decay(
        config: OptimizerConfig,
        parameters: &[&Parameter],
        decays: impl Fn(&Parameter) -> bool,
    ) -> Self {
        let has_second = matches!(config, OptimizerConfig::AdamW { .. });
        let memory = parameters.iter().map(|p| {
            let count = p.shape().iter().product();
            Memory {
                parameter: p.name().to_owned(),
                shape: p.shape().to_vec(),
                decays: decays(p),
                first: vec![0.0; count],
                second: vec![0.0; if has_second { count } else { 0 }],
            }
        });
        Self { config, steps: 0, memory: memory.collect() }
    }

    /// Names of the two kinds of state, those that PyTorch has for them.
    fn kinds(&self) -> (&'static str, Option<&'static str>) {
        match self.config {
            OptimizerConfig::Sgd { .. } => ("momentum_buffer", None),
            OptimizerConfig::AdamW { .. } => ("exp_avg", Some("exp_avg_sq")),
        }
    }

    /// Steps taken.
    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    /// A copy of what is remembered: `momentum_buffer.{parameter}`, or `exp_avg.{parameter}` and
    /// `exp_avg_sq.{parameter}`.
    pub(crate) fn state(&self) -> Tensors {
        let (first, second) = self.kinds();
        let mut state = Tensors::new();
        for m in &self.memory {
            let mut insert = |kind: &str, values: &[f32]| {
                let name = format!("{kind}.{}", m.parameter);
                state.insert(name, (m.shape.clone(), values.to_vec()));
            };
            insert(first, &m.first);
            if let Some(second) = second {
                insert(second, &m.second);
            }
        }
        state
    }

    /// Name and shape of every tensor of [`Self::state`].
    pub(crate) fn state_shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let (first, second) = self.kinds();
        let kinds: Vec<&str> = std::iter::once(first).chain(second).collect();
        let of = |m: &Memory| {
            let names = kinds.iter().map(|kind| format!("{kind}.{}", m.parameter));
            names.map(|name| (name, m.shape.clone())).collect::<Vec<_>>()
        };
        self.memory.iter().flat_map(of).collect()
    }

    /// This optimizer after `steps` steps, with a state that [`Self::state`] gave. `path` is where
    /// that was read from.
    ///
    /// # Errors
    ///
    /// [`ModelError::MissingTensor`] or [`ModelError::WrongShape`].
    pub(crate) fn restored(
        &self,
        path: &Path,
        steps: u64,
        mut state: Tensors,
    ) -> Result<Self, ModelError> {
        let (first, second) = self.kinds();
        let mut take = |kind: &str, m: &Memory| {
            let (tensor, expected) = (format!("{kind}.{}", m.parameter), m.shape.clone());
            let path = path.to_owned();
            match state.remove(&tensor) {
                None => Err(ModelError::MissingTensor { path, tensor, expected }),
                Some((found, values)) if found != expected || values.len() != m.first.len() => {
                    Err(ModelError::WrongShape { path, tensor, found, expected })
                }
                Some((_, values)) => Ok(values),
            }
        };
        let memory = self.memory.iter().map(|m| {
            Ok(Memory {
                parameter: m.parameter.clone(),
                shape: m.shape.clone(),
                decays: m.decays,
                first: take(first, m)?,
                second: second.map_or(Ok(vec![]), |second| take(second, m))?,
            })
        });
        let memory = memory.collect::<Result<_, ModelError>>()?;
        Ok(Self { config: self.config, steps, memory })
    }

    /// One step at `learning_rate`, by the gradients of the last backward pass times
    /// `gradient_scale`. `parameters` are those that the optimizer was made for.
    ///
    /// # Errors
    ///
    /// If a parameter cannot be written.
    pub(crate) fn step(
        &mut self,
        parameters: &[&Parameter],
        learning_rate: f64,
        gradient_scale: f64,
    ) -> Result<Update, ModelError> {
        self.steps += 1;
        let mut update = Update::Finite;
        for (parameter, m) in parameters.iter().zip(&mut self.memory) {
            let gradient = lock(parameter.gradient());
            let gradient = gradient.values();
            let mut finite = true;
            let decayed = |rate: f64| if m.decays { rate } else { 0.0 };
            match self.config {
                OptimizerConfig::Sgd { momentum, nesterov, weight_decay } => {
                    let weight_decay = decayed(weight_decay);
                    let step =
                        SgdStep { learning_rate, momentum, nesterov, weight_decay, gradient_scale };
                    parameter.update(|x| finite = step.apply(x, gradient, &mut m.first))?;
                }
                OptimizerConfig::AdamW { beta1, beta2, eps, weight_decay } => {
                    let step = AdamWStep {
                        learning_rate,
                        beta1,
                        beta2,
                        eps,
                        weight_decay: decayed(weight_decay),
                        step: self.steps,
                        gradient_scale,
                    };
                    let (first, second) = (&mut m.first, &mut m.second);
                    parameter.update(|x| finite = step.apply(x, gradient, first, second))?;
                }
            }
            if !finite && update == Update::Finite {
                update = Update::NonFinite { parameter: m.parameter.clone() };
            }
        }
        Ok(update)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restored_optimizer_goes_on_exactly() {
        let sgd = OptimizerConfig::Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.01 };
        for config in [sgd, OptimizerConfig::default()] {
            let run = |restart: bool| {
                let p = Parameter::new("p", vec![1.0, -2.0, 0.5], &[3]).unwrap();
                let mut optimizer = Optimizer::new(config, &[&p]);
                for step in 0..6 {
                    if restart && step == 3 {
                        let (steps, state) = (optimizer.steps(), optimizer.state());
                        optimizer = Optimizer::new(config, &[&p]);
                        let shapes = optimizer.state_shapes();
                        assert!(shapes.keys().eq(state.keys()));
                        let path = Path::new("o.safetensors");
                        optimizer = optimizer.restored(path, steps, state).unwrap();
                    }
                    p.clear_gradient();
                    lock(p.gradient()).add(&[0.1, step as f32, -0.3]);
                    optimizer.step(&[&p], 0.1, 1.0).unwrap();
                }
                p.values().unwrap()
            };
            assert_eq!(run(false), run(true));
        }
    }

    #[test]
    fn a_state_that_does_not_fit_is_refused_by_name() {
        let sgd = OptimizerConfig::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 };
        for config in [sgd, OptimizerConfig::default()] {
            let p = Parameter::new("p", vec![1.0, -2.0, 0.5], &[3]).unwrap();
            let optimizer = Optimizer::new(config, &[&p]);
            for name in optimizer.state_shapes().keys() {
                let refusal = |change: &dyn Fn(&mut Tensors)| {
                    let mut state = optimizer.state();
                    change(&mut state);
                    let restored = optimizer.restored(Path::new("o.safetensors"), 1, state);
                    restored.unwrap_err().to_string()
                };
                let missing = refusal(&|state| drop(state.remove(name)));
                assert!(missing.contains(&format!("o.safetensors: tensor {name} is missing")));
                for (shape, count) in [(vec![2], 2), (vec![3], 2), (vec![1, 3], 3)] {
                    let error = refusal(&|state| {
                        state.insert(name.clone(), (shape.clone(), vec![0.0; count]));
                    });
                    assert!(error.contains(&format!("tensor {name} has shape")), "{error}");
                }
            }
        }
    }
}
