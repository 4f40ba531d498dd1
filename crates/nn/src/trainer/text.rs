//! Training a transformer: micro-batches add up to one step.

use std::path::Path;

use serde::Serialize;

use super::state::{Restored, Snapshot, config_json, make_dir};
use crate::error::{LossError, ModelError, StateError, TrainError};
use crate::io::{Tensors, write_tensors};
use crate::kernel::precision::Precision;
use crate::layers::Parameter;
use crate::loss::{Divergence, LossConfig, LossSums, SoftLabels};
use crate::model::{WEIGHTS_FILE, hash_model};
use crate::optim::{
    FITS, Optimizer, OptimizerConfig, ScheduleConfig, Update, clip_scale, fits, global_norm,
};
use crate::rng::Philox;
use crate::transformer::{
    Keep, Masks, Pass, TextModel, TextNetwork, TokenBatch, TokenizerInfo, TransformerConfig,
    check_positions, checked, read_weights,
};

/// Streams of the seed that initial weights and the seeds of dropout are drawn from; a caller's own
/// random numbers belong in streams from 16 on.
const INIT_STREAM: u64 = 0;
const DROPOUT_STREAM: u64 = 1;

/// A transformer and how to train it. Losses come with each batch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TextTrainerConfig {
    /// Architecture.
    pub model: TransformerConfig,
    /// Of a language model: the words that labels are about, the first of the vocabulary; the others
    /// are padding, which gets neither mass nor gradient. None: all of them.
    pub vocabulary: Option<usize>,
    /// How weights follow gradients.
    pub optimizer: OptimizerConfig,
    /// Whether the optimizer's weight decay applies to norms and biases too, and not only to matrices.
    pub decay_vectors: bool,
    /// Learning rate.
    pub schedule: ScheduleConfig,
    /// Steps of the whole run, at least 1; the schedule ends there.
    pub total_steps: u64,
    /// Longest gradient, as a norm over all parameters, above 0; none: no limit.
    pub clip_norm: Option<f64>,
    /// Of initial weights and of dropout.
    pub seed: u64,
    /// Of matrix products. Labels that a teacher's hidden states stand for are exact either way, and so is
    /// [`TextTrainer::measure`].
    #[serde(skip_serializing_if = "Precision::is_f32")]
    pub precision: Precision,
    /// Keeps only the input of every block and computes the rest again in the backward pass: less
    /// memory, about a third more time, the same bytes.
    #[serde(skip)]
    pub checkpoint_activations: bool,
}

impl TextTrainerConfig {
    /// AdamW at a constant 0.001 without clipping, seed 0.
    pub fn new(model: TransformerConfig, total_steps: u64) -> Self {
        Self {
            model,
            vocabulary: None,
            optimizer: OptimizerConfig::default(),
            decay_vectors: false,
            schedule: ScheduleConfig::default(),
            total_steps,
            clip_norm: None,
            seed: 0,
            precision: Precision::F32,
            checkpoint_activations: false,
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`ModelError::Config`], naming the field, its value and the accepted range.
    pub fn validate(&self) -> Result<(), ModelError> {
        let refuse = |field: &str, value: String, expected: &str| {
            let (field, expected) = (field.to_owned(), expected.to_owned());
            Err(ModelError::Config { field, value, expected })
        };
        self.optimizer.validate()?;
        self.schedule.validate()?;
        self.schedule.validate_steps(self.total_steps)?;
        let classes = self.model.classes();
        if let Some(found) = self.vocabulary.filter(|found| !(1..=classes).contains(found)) {
            return refuse("vocabulary", found.to_string(), &format!("1 to {classes}"));
        }
        if let Some(norm) = self.clip_norm.filter(|&norm| !fits(norm)) {
            return refuse("clip_norm", norm.to_string(), &format!("{FITS}, or none"));
        }
        Ok(())
    }

    fn classes(&self) -> usize {
        self.vocabulary.unwrap_or(self.model.classes())
    }
}

/// Sequences and the labels of some of their positions; of a classifier, of each sequence.
#[derive(Clone, Copy, Debug)]
pub struct TextBatch<'a> {
    /// The sequences.
    pub tokens: TokenBatch<'a>,
    /// Of a language model: the positions that have labels, ascending among the packed ids, at least
    /// one. Of a classifier it plays no part.
    pub labelled: &'a [usize],
    /// The next token of each labelled position, or the class of each sequence.
    pub hard: Option<&'a [u32]>,
    /// The teacher's labels of the same.
    pub soft: Option<SoftLabels<'a>>,
}

/// What an update did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdateReport {
    /// Norm of the gradient over all parameters, before clipping.
    pub grad_norm: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
}

/// How near the student is to labels it is not trained on, as sums over rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Agreement {
    /// -log q\[y\], where there are hard labels.
    pub hard: Option<f64>,
    /// KL(p || q) at T = 1, where there are soft labels.
    pub kl: Option<f64>,
    /// Of a classifier: rows whose most probable class is their hard label.
    pub correct: Option<usize>,
    /// Rows where both have the same most probable class.
    pub agreeing: usize,
    /// Rows.
    pub rows: usize,
}

/// A transformer in training.
#[derive(Debug)]
pub struct TextTrainer {
    config: TextTrainerConfig,
    network: TextNetwork,
    optimizer: Optimizer,
    /// Whether gradients have been added up since the last update.
    accumulated: bool,
    /// Batches that they are of.
    parts: u64,
}

impl TextTrainer {
    /// A model with random weights, as transformers starts it: matrices of a normal distribution,
    /// biases 0, norms the identity.
    ///
    /// # Errors
    ///
    /// [`ModelError::Config`], naming the field, its value and the accepted range.
    pub fn new(config: TextTrainerConfig) -> Result<Self, ModelError> {
        config.validate()?;
        let network = TextNetwork::new(&config.model, &mut Philox::new(config.seed, INIT_STREAM))?;
        let decays = |p: &Parameter| config.decay_vectors || p.shape().len() > 1;
        let optimizer = Optimizer::with_decay(config.optimizer, &network.parameters(), decays);
        Ok(Self { config, network, optimizer, accumulated: false, parts: 0 })
    }

    /// Takes over the weights in `dir`, of the same architecture.
    ///
    /// # Errors
    ///
    /// A [`ModelError`] that names the file, the tensor, what was found and what was expected.
    pub fn load_weights(&mut self, dir: &Path) -> Result<(), ModelError> {
        let tensors = read_weights(dir, &self.config.model)?;
        self.network.set_tensors(&tensors)
    }

    /// Takes over some layers of the model in `dir`, and all that is not in a layer: this trainer's
    /// model is that one's [`TransformerConfig::with_layers`] of the same.
    ///
    /// # Errors
    ///
    /// As [`Self::load_weights`], and [`ModelError::Config`] for a layer that it does not have.
    pub fn load_layers(&mut self, dir: &Path, keep: &[usize]) -> Result<(), ModelError> {
        let source = TransformerConfig::load(dir)?;
        if source.with_layers(keep)?.tensors() != self.config.model.tensors() {
            let (found, expected) = (format!("{keep:?}"), "layers of a model of this shape");
            let field = "layers".to_owned();
            return Err(ModelError::Config { field, value: found, expected: expected.to_owned() });
        }
        let mut tensors = read_weights(dir, &source)?;
        let mut chosen = Tensors::new();
        for (number, &layer) in keep.iter().enumerate() {
            let (from, to) = (source.layer_prefix(layer), source.layer_prefix(number));
            let own = tensors.extract_if(.., |name, _| name.starts_with(&from));
            chosen
                .extend(own.map(|(name, tensor)| (format!("{to}{}", &name[from.len()..]), tensor)));
        }
        // What is left belongs to no layer, or to one that is left out.
        let shapes = self.config.model.tensors();
        let known = |name: &String| shapes.contains_key(name) && !chosen.contains_key(name);
        let others: Tensors = tensors.into_iter().filter(|(name, _)| known(name)).collect();
        chosen.extend(others);
        self.network.set_tensors(&chosen)
    }

    /// What the trainer does.
    pub fn config(&self) -> &TextTrainerConfig {
        &self.config
    }

    /// Number of weights; a tied one counts once.
    pub fn parameters(&self) -> usize {
        let counts =
            self.network.parameters().into_iter().map(|p| p.shape().iter().product::<usize>());
        counts.sum()
    }

    /// SHA-256 over the weights as they are.
    ///
    /// # Errors
    ///
    /// If a weight cannot be read.
    pub fn weights_sha256(&self) -> Result<[u8; 32], ModelError> {
        Ok(hash_model(b"weights", &self.network.tensors()?))
    }

    /// Steps taken.
    pub fn steps_done(&self) -> u64 {
        self.optimizer.steps()
    }

    /// Adds the gradients of one micro-batch to those since the last [`Self::update`]. `denominator`
    /// is the number of labels of the whole step: with it, the same step comes out however the batch
    /// is cut, but for dropout, of which each micro-batch of a step has its own: what `config.json` asks
    /// for. After an error nothing of the step under way counts: begin it again.
    ///
    /// # Errors
    ///
    /// A [`TrainError`] for a batch that does not fit the model or the loss, and for a loss that is not
    /// finite.
    pub fn accumulate(
        &mut self,
        batch: &TextBatch<'_>,
        config: &LossConfig,
        denominator: f64,
    ) -> Result<LossSums, TrainError> {
        let result = self.add_gradients(batch, config, denominator);
        if result.is_err() {
            self.accumulated = false;
        }
        result
    }

    fn add_gradients(
        &mut self,
        batch: &TextBatch<'_>,
        config: &LossConfig,
        denominator: f64,
    ) -> Result<LossSums, TrainError> {
        if !(denominator.is_finite() && denominator > 0.0) {
            let expected = "a finite number above 0";
            let error = LossError::Config { field: "denominator", value: denominator, expected };
            return Err(error.into());
        }
        let tokens = checked(&self.config.model, &batch.tokens)?;
        check_positions(&self.config.model, batch.labelled, batch.tokens.ids.len())?;
        if !self.accumulated {
            self.network.parameters().iter().for_each(|p| p.clear_gradient());
            self.accumulated = true;
            self.parts = 0;
        }
        let pass = self.pass();
        self.parts += 1;
        let chosen = self.network.forward(&tokens, batch.labelled, &pass)?;
        let labels = (self.config.classes(), batch.hard, batch.soft.as_ref());
        let sums = self.network.backward(&tokens, chosen, labels, config, denominator, &pass)?;
        let value = sums.parts(config, denominator).total;
        if !value.is_finite() {
            return Err(TrainError::NonFiniteLoss { step: self.steps_done(), value });
        }
        Ok(sums)
    }

    /// How the next batch is computed.
    fn pass(&self) -> Pass {
        let rates = self.config.model.spec().dropout;
        let dropout = rates.any().then(|| {
            // Two words each, for 2^46 steps of 2^17 parts.
            let place = self.steps_done().wrapping_shl(17).wrapping_add(self.parts);
            let mut seeds = Philox::new(self.config.seed, DROPOUT_STREAM);
            seeds.seek(place.wrapping_mul(2));
            Masks { seed: seeds.next_u64(), rates }
        });
        let keep = if self.config.checkpoint_activations { Keep::Inputs } else { Keep::All };
        Pass { keep, precision: self.config.precision, dropout }
    }

    /// The gradient that has been added up since the last [`Self::update`], by the names and shapes of
    /// the weights.
    pub fn gradient(&self) -> Tensors {
        let of = |p: &Parameter| {
            let values = if self.accumulated && p.has_gradient() {
                p.gradient_values()
            } else {
                vec![0.0; p.shape().iter().product()]
            };
            (p.name().to_owned(), (p.shape().to_vec(), values))
        };
        self.network.parameters().into_iter().map(of).collect()
    }

    /// Forgets the gradient that has been added up.
    pub fn forget_gradient(&mut self) {
        self.accumulated = false;
    }

    /// Changes the weights by the gradients that have been added up. After
    /// [`TrainError::NonFiniteUpdate`] the trainer is of no use until [`Self::load_state`]; after any
    /// other error everything is as it was before the step.
    ///
    /// # Errors
    ///
    /// A [`TrainError`] for a gradient or an update that is not finite, or where nothing has been
    /// added up.
    pub fn update(&mut self) -> Result<UpdateReport, TrainError> {
        let step = self.steps_done();
        let parameters = self.network.parameters();
        if !std::mem::take(&mut self.accumulated) {
            let parameter = parameters.first().map_or_else(String::new, |p| p.name().to_owned());
            return Err(TrainError::NoGradient { parameter });
        }
        if let Some(missing) = parameters.iter().find(|p| !p.has_gradient()) {
            return Err(TrainError::NoGradient { parameter: missing.name().to_owned() });
        }
        let grad_norm = global_norm(&parameters);
        if !grad_norm.is_finite() {
            return Err(TrainError::NonFiniteGradient { step, value: grad_norm });
        }
        let learning_rate = self.config.schedule.lr(step, self.config.total_steps);
        let scale = clip_scale(grad_norm, self.config.clip_norm);
        if let Update::NonFinite { parameter } =
            self.optimizer.step(&parameters, learning_rate, scale)?
        {
            return Err(TrainError::NonFiniteUpdate { step, parameter });
        }
        Ok(UpdateReport { grad_norm, learning_rate })
    }

    /// The student as it is, for inference. A copy: later steps do not change it.
    ///
    /// # Errors
    ///
    /// If a weight cannot be read.
    pub fn frozen(&self, tokenizer: Option<TokenizerInfo>) -> Result<TextModel, ModelError> {
        let config = self.config.model.clone();
        TextModel::from_tensors(config, &self.network.tensors()?, tokenizer)
    }

    /// Compares with labels, without training: cross-entropy with the hard ones and, at T = 1, the
    /// divergence KL(p || q) from the soft ones, whose log-probabilities must be those at T = 1.
    ///
    /// # Errors
    ///
    /// A [`TrainError`] for a batch that does not fit the model.
    pub fn measure(&self, batch: &TextBatch<'_>) -> Result<Agreement, TrainError> {
        let tokens = checked(&self.config.model, &batch.tokens)?;
        check_positions(&self.config.model, batch.labelled, batch.tokens.ids.len())?;
        let chosen = self.network.forward(&tokens, batch.labelled, &Pass::INFERENCE)?;
        let weight = |given: bool| Some(f64::from(u8::from(given)));
        let config = LossConfig {
            hard_weight: weight(batch.hard.is_some()),
            soft_weight: weight(batch.soft.is_some()),
            temperature: 1.0,
            divergence: Divergence::ForwardKl,
            ..LossConfig::default()
        };
        let (classes, soft) = (self.config.classes(), batch.soft.as_ref());
        let sums = self.network.measure(&chosen, classes, batch.hard, soft, &config)?;
        let LossSums { hard, soft: kl, agreeing, rows } = sums;
        let correct = match batch.hard.filter(|_| !self.config.model.is_language_model()) {
            None => None,
            Some(hard) => {
                let found = self.network.most_probable(&chosen, classes)?;
                Some(found.iter().zip(hard).filter(|(found, hard)| found == hard).count())
            }
        };
        Ok(Agreement { hard, kl, correct, agreeing, rows })
    }

    /// Writes `config.json` and `model.safetensors` into `dir`, which is made if need be: a Hugging
    /// Face directory, but for the tokenizer. Equal models give equal bytes.
    ///
    /// # Errors
    ///
    /// [`ModelError::NonFiniteWeight`] after an update that overflowed, or [`ModelError::Io`].
    pub fn save_model(&self, dir: &Path) -> Result<(), ModelError> {
        make_dir(dir)?;
        write_tensors(&dir.join(WEIGHTS_FILE), &self.network.tensors()?)?;
        self.config.model.of_f32_weights().save(dir)
    }

    /// Writes all that [`Self::load_state`] needs into `dir`, as
    /// [`Trainer::save_state`](super::Trainer::save_state) does. Gradients that wait for an update are
    /// not in it.
    ///
    /// # Errors
    ///
    /// [`ModelError::NonFiniteWeight`] after an update that overflowed, or [`ModelError::Io`].
    pub fn save_state(&self, dir: &Path) -> Result<(), StateError> {
        let snapshot = Snapshot {
            config: config_json(dir, &self.config)?,
            weights: &self.network.tensors()?,
            optimizer: &self.optimizer,
            dropout_position: 0,
        };
        snapshot.save(dir)
    }

    /// Goes on from the state in `dir`: the following steps give the bytes that the trainer which
    /// saved it would have given. After an error the trainer is as it was.
    ///
    /// # Errors
    ///
    /// [`StateError::OtherConfiguration`] if it was saved under another configuration,
    /// [`StateError::Mixed`] if its files are not of one save, or why a file cannot be read.
    pub fn load_state(&mut self, dir: &Path) -> Result<(), StateError> {
        let config = config_json(dir, &self.config)?;
        let shapes = self.config.model.tensors();
        let restored = Restored::load(dir, &config, &shapes, &self.optimizer)?;
        self.network.set_tensors(&restored.weights)?;
        self.optimizer = restored.optimizer;
        self.accumulated = false;
        Ok(())
    }
}
