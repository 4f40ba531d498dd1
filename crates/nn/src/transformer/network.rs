//! A transformer in training.

use std::collections::BTreeMap;

use super::body::{Body, Tape, Tokens, TopTape};
use super::config::{NormKind, Spec, Task, TransformerConfig};
use super::pass::Pass;
use super::text_model::{first_positions, rows};
use super::weights::{Fresh, Projection, Source as _, Values as _};
use crate::error::{ModelError, TrainError};
use crate::io::Tensors;
use crate::kernel::precision::Precision;
use crate::layers::{Parameter, SharedGradient};
use crate::loss::{Gradients, LossConfig, LossSums, OutputLayer, SoftLabels, argmax, fused_loss};
use crate::rng::Philox;

/// Weights as variables.
#[derive(Debug)]
pub(crate) struct TextNetwork {
    spec: Spec,
    body: Body<Projection, Parameter>,
    /// The output projection; none where it is the embedding.
    head: Option<Projection>,
}

/// The rows that labels are about, on their way to the output projection.
pub(crate) struct Chosen {
    /// Positions among the packed ids.
    positions: Vec<usize>,
    /// What the output projection sees, [rows, d].
    hidden: Vec<f32>,
    top: TopTape,
    tape: Tape,
}

impl TextNetwork {
    /// Random weights from `rng`.
    pub(crate) fn new(config: &TransformerConfig, rng: &mut Philox) -> Result<Self, ModelError> {
        let spec = config.spec();
        let one = match spec.norm {
            NormKind::Rms { offset } => 1.0 - offset,
            NormKind::Layer => 1.0,
        };
        let mut source = Fresh { rng, std: spec.initializer_range, one };
        let body = Body::new(&mut source, spec)?;
        let (shape, bias) = match spec.task {
            Task::LanguageModel { tied: true, .. } => (None, false),
            Task::LanguageModel { tied: false, .. } => (Some([spec.vocab, spec.hidden]), false),
            Task::Classification { labels, .. } => (Some([labels, spec.hidden]), true),
        };
        let name = spec.top_names().head;
        let head = shape.map(|shape| source.product(name, shape, bias)).transpose()?;
        Ok(Self { spec: spec.clone(), body, head })
    }

    /// Every parameter, in order of name.
    pub(crate) fn parameters(&self) -> Vec<&Parameter> {
        let head = self.head.iter().flat_map(Projection::parameters);
        let all = self.body.parameters().chain(head);
        let sorted: BTreeMap<&str, &Parameter> = all.map(|p| (p.name(), p)).collect();
        sorted.into_values().collect()
    }

    /// A copy of every weight.
    pub(crate) fn tensors(&self) -> Result<Tensors, ModelError> {
        let of = |p: &Parameter| Ok((p.name().to_owned(), (p.shape().to_vec(), p.values()?)));
        self.parameters().into_iter().map(of).collect()
    }

    /// Overwrites every weight that `tensors` names.
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
        Ok(())
    }

    /// The forward pass up to the output projection of the positions `labelled`; of a classifier, of
    /// every sequence, and `labelled` plays no part.
    pub(crate) fn forward(
        &self,
        tokens: &Tokens<'_>,
        labelled: &[usize],
        pass: &Pass,
    ) -> Result<Chosen, ModelError> {
        let (x, tape) = self.body.forward(tokens, None, pass)?;
        let positions: Vec<usize> = match self.spec.task {
            Task::LanguageModel { .. } => labelled.to_vec(),
            Task::Classification { .. } => first_positions(&tokens.layout).collect(),
        };
        let x = rows(&x, self.spec.hidden, positions.iter().copied());
        let (hidden, top) = self.body.top(x, pass)?;
        Ok(Chosen { positions, hidden, top, tape })
    }

    /// Sums of the loss of [`Self::forward`], without gradients.
    pub(crate) fn measure(
        &self,
        chosen: &Chosen,
        classes: usize,
        hard: Option<&[u32]>,
        soft: Option<&SoftLabels<'_>>,
        config: &LossConfig,
    ) -> Result<LossSums, TrainError> {
        Ok(self.with_output(classes, Precision::F32, |output| {
            fused_loss(&chosen.hidden, output, hard, soft, config, 1.0, None)
        })??)
    }

    /// The most probable class of every row of [`Self::forward`], of few classes.
    pub(crate) fn most_probable(
        &self,
        chosen: &Chosen,
        classes: usize,
    ) -> Result<Vec<u32>, ModelError> {
        self.with_output(classes, Precision::F32, |output| {
            let logits = output.logits(&chosen.hidden);
            logits.chunks_exact(classes).map(|row| argmax(row) as u32).collect()
        })
    }

    /// Sums of the loss of [`Self::forward`], after adding its gradients, over `denominator`, to those
    /// of all parameters. After an error they are of no use.
    pub(crate) fn backward(
        &self,
        tokens: &Tokens<'_>,
        chosen: Chosen,
        labels: (usize, Option<&[u32]>, Option<&SoftLabels<'_>>),
        config: &LossConfig,
        denominator: f64,
        pass: &Pass,
    ) -> Result<LossSums, TrainError> {
        let (classes, hard, soft) = labels;
        let Chosen { positions, hidden, top, tape } = chosen;
        let mut to_hidden = vec![0.0; hidden.len()];
        let (weight, bias) = self.head_gradients();
        let gradients = Gradients { hidden: &mut to_hidden, weight, bias };
        let sums = self.with_output(classes, pass.precision, |output| {
            fused_loss(&hidden, output, hard, soft, config, denominator, Some(gradients))
        })??;
        let to_rows = self.body.top_backward(&top, to_hidden, pass)?;
        let d = self.spec.hidden;
        let mut grad = vec![0.0; tokens.ids.len() * d];
        for (row, &position) in to_rows.chunks_exact(d).zip(&positions) {
            grad[position * d..][..d].copy_from_slice(row);
        }
        self.body.backward(tokens, tape, grad, pass)?;
        Ok(sums)
    }

    fn head_gradients(&self) -> (&SharedGradient, Option<&SharedGradient>) {
        match &self.head {
            Some(head) => (head.weight.gradient(), head.bias.as_ref().map(Parameter::gradient)),
            None => (self.body.embedding().gradient(), None),
        }
    }

    /// Calls `body` with the output projection, of which the first `classes` rows count.
    fn with_output<R>(
        &self,
        classes: usize,
        precision: Precision,
        body: impl FnOnce(OutputLayer<'_>) -> R,
    ) -> Result<R, ModelError> {
        let width = self.spec.hidden;
        let softcap = match self.spec.task {
            Task::LanguageModel { softcap, .. } => softcap.map(|cap| cap as f32),
            Task::Classification { .. } => None,
        };
        let run = |weight: &[f32], bias: Option<&[f32]>| {
            body(OutputLayer { weight, bias, softcap, width, classes, precision })
        };
        match &self.head {
            None => self.body.embedding().with(|weight| run(weight, None)),
            Some(Projection { weight, bias: None }) => weight.with(|weight| run(weight, None)),
            Some(Projection { weight, bias: Some(bias) }) => {
                weight.with(|weight| bias.with(|bias| run(weight, Some(bias))))?
            }
        }
    }
}
