//! An optimizer and what it remembers of each parameter.

use std::collections::BTreeMap;

use super::adamw::AdamWStep;
use super::config::OptimizerConfig;
use super::sgd::SgdStep;
use crate::error::ModelError;
use crate::io::Tensors;
use crate::layers::{Parameter, lock};

/// Changes parameters in place, by the gradients that their buffers hold.
#[derive(Clone, Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    /// Steps taken.
    steps: u64,
    /// In the order of the parameters.
    memory: Vec<Memory>,
}

/// What is remembered of one parameter.
#[derive(Clone, Debug)]
struct Memory {
    parameter: String,
    shape: Vec<usize>,
    /// SGD's momentum buffer or AdamW's mean of gradients.
    first: Vec<f32>,
    /// AdamW's mean of squares; empty for SGD.
    second: Vec<f32>,
}

impl Optimizer {
    /// An optimizer of these parameters that has taken no step.
    pub fn new(config: OptimizerConfig, parameters: &[&Parameter]) -> Self {
        let has_second = matches!(config, OptimizerConfig::AdamW { .. });
        let memory = parameters.iter().map(|p| {
            let count = p.shape().iter().product();
            Memory {
                parameter: p.name().to_owned(),
                shape: p.shape().to_vec(),
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
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// A copy of what is remembered: `momentum_buffer.{parameter}`, or `exp_avg.{parameter}` and
    /// `exp_avg_sq.{parameter}`.
    pub fn state(&self) -> Tensors {
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
    pub fn state_shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let (first, second) = self.kinds();
        let kinds: Vec<&str> = std::iter::once(first).chain(second).collect();
        let of = |m: &Memory| {
            let names = kinds.iter().map(|kind| format!("{kind}.{}", m.parameter));
            names.map(|name| (name, m.shape.clone())).collect::<Vec<_>>()
        };
        self.memory.iter().flat_map(of).collect()
    }

    /// Goes on from a state that [`Self::state`] gave after `steps` steps, in these shapes.
    pub fn restore(&mut self, steps: u64, mut state: Tensors) {
        let (first, second) = self.kinds();
        self.steps = steps;
        for m in &mut self.memory {
            let mut take = |kind: &str| state.remove(&format!("{kind}.{}", m.parameter));
            if let Some((_, values)) = take(first) {
                m.first = values;
            }
            if let Some((_, values)) = second.and_then(take) {
                m.second = values;
            }
        }
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
    ) -> Result<(), ModelError> {
        self.steps += 1;
        for (parameter, m) in parameters.iter().zip(&mut self.memory) {
            let gradient = lock(parameter.gradient());
            let gradient = gradient.values();
            match self.config {
                OptimizerConfig::Sgd { momentum, nesterov, weight_decay } => {
                    let step =
                        SgdStep { learning_rate, momentum, nesterov, weight_decay, gradient_scale };
                    parameter.update(|x| step.apply(x, gradient, &mut m.first))?;
                }
                OptimizerConfig::AdamW { beta1, beta2, eps, weight_decay } => {
                    let step = AdamWStep {
                        learning_rate,
                        beta1,
                        beta2,
                        eps,
                        weight_decay,
                        step: self.steps,
                        gradient_scale,
                    };
                    parameter.update(|x| step.apply(x, gradient, &mut m.first, &mut m.second))?;
                }
            }
        }
        Ok(())
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
                        optimizer.restore(steps, state);
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
}
