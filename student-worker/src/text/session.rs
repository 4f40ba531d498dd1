//! The training loop. It runs on a thread of its own; labels are fetched meanwhile.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use stillhouse_nn::{PackedHead, Philox, SoftLabels, SoftTarget, TextBatch, TextTrainer};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
};

use super::{
    on_policy::{self, is_on_policy},
    packing::{MOST_SEQUENCES, Order, Packed, groups},
    prepared::Prepared,
    recipe::{OnPolicySection, TextRecipe},
    teacher::{TextLabels, job},
};
use crate::{
    label_client::{ClientError, Job, Labelled, OrderedLabels, TargetError},
    metrics,
    progress::{Event, Observer},
    random,
    recipe::{hard_only, identity::Identity},
    run_folder::{
        Checkpoint, RunFolder,
        metrics::{Record, StepRecord, ValidationRecord},
    },
    train::{Error, Meter, saving, unless},
};

/// Labels of a run that are asked for ahead.
pub(super) struct AskedLabels {
    pub(super) labels: OrderedLabels,
    /// Those of what the student writes: where to send it, and what comes back.
    pub(super) demanded: Option<(mpsc::Sender<Job>, OrderedLabels)>,
    pub(super) runtime: Handle,
}

/// Everything that a run needs, once it is set up.
pub(super) struct TextSession {
    pub(super) recipe: TextRecipe,
    pub(super) data: Arc<Prepared>,
    pub(super) order: Order,
    pub(super) trainer: TextTrainer,
    pub(super) run: RunFolder,
    pub(super) identity: Identity,
    /// None: the text alone.
    pub(super) labels: Option<AskedLabels>,
    /// For labels that are hidden states.
    pub(super) head: Option<PackedHead>,
    /// The teacher's labels of the first validation batches: hidden states or, of a classifier,
    /// log-probabilities at T = 1.
    pub(super) compared: Vec<Vec<f32>>,
    pub(super) observer: Box<dyn Observer>,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) meter: Meter,
}

/// How a session ended.
pub(super) struct Ended {
    pub(super) steps: u64,
    pub(super) validation: Option<ValidationRecord>,
    pub(super) checkpoint: PathBuf,
    pub(super) run: RunFolder,
    pub(super) meter: Meter,
}

impl TextSession {
    /// Trains to the end, or until told to stop. Either leaves a checkpoint, and so does a session
    /// that gets no labels any more.
    pub(super) fn train(mut self) -> Result<Ended, Error> {
        let (start, total) = (self.trainer.steps_done(), self.recipe.train.steps);
        self.observer.on(&Event::Started {
            name: &self.recipe.name,
            done: start,
            steps: total,
            rows: self.order.len(),
            unit: "tokens",
            teacher: self.labels.is_some(),
        });
        metrics::begin(start, total);
        let mut validation = None;
        for step in start..total {
            if *self.stop.borrow() || !self.step(step)? {
                let checkpoint = self.checkpoint()?;
                return Ok(self.end(None, checkpoint));
            }
            let done = step + 1;
            if done == total || done.is_multiple_of(self.recipe.train.eval_every_steps) {
                validation = Some(self.validate(done)?);
            }
            let every = self.recipe.train.checkpoint_every_steps;
            if every > 0 && done.is_multiple_of(every) && done < total {
                self.checkpoint()?;
            }
        }
        let validation = match validation {
            Some(validation) => validation,
            None => self.last_validation()?,
        };
        let checkpoint = self.checkpoint()?;
        self.trainer.save_model(self.run.path())?;
        super::student::copy_tokenizer(self.data.tokenizer.path(), self.run.path())?;
        Ok(self.end(Some(validation), checkpoint))
    }

    /// Takes one step; false if the run was told to stop before its labels came.
    fn step(&mut self, step: u64) -> Result<bool, Error> {
        let began = Instant::now();
        let data = Arc::clone(&self.data);
        let (epoch, chosen) = self.order.step(step);
        let micro = self.recipe.train.micro_batch_tokens();
        let section = self.recipe.on_policy.clone();
        let section = section.filter(|_| is_on_policy(&self.recipe, step));
        let own = section.is_some();
        let parts: Vec<Packed> = match section {
            None => groups(&data.sequences, chosen, micro)
                .map(|group| Packed::new(&data.corpora.train, &data.sequences, group))
                .collect(),
            Some(section) => {
                let chosen = chosen.to_vec();
                self.written(&data, &section, step, &chosen)?
            }
        };
        // What the student wrote has no hard labels.
        let mut loss = self.recipe.loss;
        if own {
            (loss.soft_weight, loss.hard_weight) = (Some(loss.weights().1), Some(0.0));
        }
        let labels: usize = parts.iter().map(|part| part.labelled.len()).sum();
        let (mut sums, mut waited, mut tokens) = (None, Duration::ZERO, 0);
        let (mut total, mut without_teacher) = (0.0, false);
        for (at, part) in parts.iter().enumerate() {
            let waiting = Instant::now();
            let asked =
                if own { self.labels_of(part, step << 16 | at as u64) } else { self.soft_labels() };
            let soft = match asked? {
                Asked::Stopped => return Ok(false),
                Asked::None => None,
                Asked::Lost => {
                    without_teacher = true;
                    None
                }
                Asked::Labels(labels) => Some(labels),
            };
            let loss = match (&soft, &self.labels) {
                (None, Some(_)) => hard_only(&loss),
                _ => loss,
            };
            waited += waiting.elapsed();
            let soft =
                soft.as_ref().map(|labels| as_soft(labels, self.head.as_ref())).transpose()?;
            let batch = TextBatch {
                tokens: part.tokens(),
                labelled: &part.labelled,
                hard: (!own).then_some(&part.hard),
                soft,
            };
            let own = self.trainer.accumulate(&batch, &loss, labels as f64)?;
            tokens += part.ids.len();
            total += own.parts(&loss, labels as f64).total;
            match &mut sums {
                None => sums = Some(own),
                Some(sums) => sums.add(&own),
            }
        }
        let report = self.trainer.update()?;
        self.meter.step(began, waited, tokens);
        let sums = sums.unwrap_or_default().parts(&loss, labels as f64);
        let record = StepRecord {
            step: step + 1,
            epoch: epoch + 1,
            loss: total,
            hard_loss: sums.hard,
            soft_loss: sums.soft,
            alpha: None,
            temperature: None,
            without_teacher,
            grad_norm: report.grad_norm,
            learning_rate: report.learning_rate,
            examples_per_second: self.meter.examples_per_second(),
            stall_fraction: self.meter.stall_fraction(),
        };
        self.observer.on(&Event::Step(&record));
        metrics::step(&record, (began.elapsed(), waited), self.recipe.train.steps);
        if let Some(asked) = &mut self.labels {
            let (name, total) = (&self.recipe.name, self.recipe.train.steps);
            asked.labels.report(|| record.report(name, total), record.step == total);
        }
        self.run.record(&Record::Step(record))?;
        Ok(true)
    }

    /// What the student writes after the prompts of a step's sequences, in micro-batches.
    fn written(
        &self,
        data: &Prepared,
        section: &OnPolicySection,
        step: u64,
        chosen: &[u32],
    ) -> Result<Vec<Packed>, Error> {
        let student = self.trainer.frozen(Some(data.tokenizer.info()))?;
        let from = (&data.corpora.train, &*data.sequences);
        let micro = self.recipe.train.micro_batch_tokens();
        // By the longest that a continuation can be: what a request may hold is known beforehand.
        let longest = self.recipe.data.sequence_length;
        chosen
            .chunks((micro / longest).clamp(1, MOST_SEQUENCES))
            .enumerate()
            .map(|(part, group)| {
                let what = (group, data.tokenizer.stop());
                let at = (step, part);
                Ok(on_policy::sample(&student, &self.recipe, section, from, what, at)?)
            })
            .collect()
    }

    /// The teacher's labels of what the student wrote.
    fn labels_of(&mut self, part: &Packed, index: u64) -> Result<Asked, Error> {
        let Some(AskedLabels { demanded: Some((sender, labels)), runtime, .. }) = &mut self.labels
        else {
            return Ok(Asked::None);
        };
        let seed = Philox::new(self.recipe.seed, random::teacher_draws(index)).next_u64();
        let job = job(index, part, self.recipe.loss.temperature as f32, seed);
        let answer = async {
            // A client that has ended says why.
            let _ = sender.send(job).await;
            labels.next().await
        };
        match runtime.block_on(unless(&mut self.stop, answer)) {
            None => Ok(Asked::Stopped),
            Some(answer) => self.asked(answer),
        }
    }

    /// The teacher's labels of the next micro-batch.
    fn soft_labels(&mut self) -> Result<Asked, Error> {
        let Some(asked) = &mut self.labels else { return Ok(Asked::None) };
        let next = unless(&mut self.stop, asked.labels.next());
        match asked.runtime.block_on(next) {
            None => Ok(Asked::Stopped),
            Some(answer) => self.asked(answer),
        }
    }

    fn asked(&mut self, answer: Option<Result<Labelled, ClientError>>) -> Result<Asked, Error> {
        match answer.unwrap_or(Err(ClientError::Ended)) {
            Ok(Labelled { batch: Some(batch), .. }) => Ok(Asked::Labels(TextLabels::new(batch)?)),
            Ok(Labelled { batch: None, .. }) => Ok(Asked::Lost),
            Err(error) => Err(self.interrupt(error.into())?),
        }
    }

    fn validate(&mut self, step: u64) -> Result<ValidationRecord, Error> {
        let _timed = metrics::Phase::begin("evaluate");
        let (mut loss, mut labels) = (0.0, 0);
        let (mut kl, mut agreeing, mut compared, mut correct) = (0.0, 0, 0, None);
        for (at, part) in self.data.validation.iter().enumerate() {
            let target;
            let soft = match (self.compared.get(at), &self.head) {
                (Some(values), _) if part.classified => {
                    target = SoftTarget::LogProbabilities(values.clone());
                    Some(SoftLabels::Target(&target))
                }
                (Some(states), Some(head)) => Some(SoftLabels::Hidden { states, head }),
                _ => None,
            };
            let batch = TextBatch {
                tokens: part.tokens(),
                labelled: &part.labelled,
                hard: Some(&part.hard),
                soft,
            };
            let found = self.trainer.measure(&batch)?;
            loss += found.hard.unwrap_or_default();
            labels += found.rows;
            if let Some(own) = found.correct {
                correct = Some(correct.unwrap_or(0) + own as u64);
            }
            if let Some(own) = found.kl {
                kl += own;
                agreeing += found.agreeing;
                compared += found.rows;
            }
        }
        let over = |sum: f64| (compared > 0).then(|| sum / compared as f64);
        let record = ValidationRecord {
            step,
            loss: loss / labels as f64,
            labels: labels as u64,
            correct,
            teacher_kl: over(kl),
            teacher_agreement_percent: over(100.0 * agreeing as f64),
        };
        self.observer.on(&Event::Validated(&record));
        self.run.record(&Record::Validation(record.clone()))?;
        Ok(record)
    }

    fn checkpoint(&mut self) -> Result<Checkpoint, Error> {
        let _timed = metrics::Phase::begin("checkpoint");
        let (step, trainer) = (self.trainer.steps_done(), &self.trainer);
        let place = (&mut self.run, &self.identity);
        saving::checkpoint(place, &mut *self.observer, step, |folder| trainer.save_state(folder))
    }

    /// The validation of a student that was trained to the end before: as it was recorded, or once
    /// more.
    fn last_validation(&mut self) -> Result<ValidationRecord, Error> {
        let step = self.trainer.steps_done();
        let recorded = self.run.records()?.into_iter().rev().find_map(|record| match record {
            Record::Validation(validation) if validation.step == step => Some(validation),
            _ => None,
        });
        match recorded {
            Some(validation) => Ok(validation),
            None => self.validate(step),
        }
    }

    /// Saves what there is when labels cannot be had, for another try or to go on from by hand.
    fn interrupt(&mut self, source: Error) -> Result<Error, Error> {
        let saved = self.checkpoint();
        saving::interrupted(saved, &mut *self.observer, source)
    }

    fn end(mut self, validation: Option<ValidationRecord>, checkpoint: Checkpoint) -> Ended {
        let steps = self.trainer.steps_done();
        self.observer.on(&Event::Ended { step: steps });
        Ended { steps, validation, checkpoint: checkpoint.folder, run: self.run, meter: self.meter }
    }
}

/// What came of waiting for labels.
enum Asked {
    /// There is no teacher.
    None,
    /// The run was told to stop.
    Stopped,
    /// No teacher answers, and the run goes on without.
    Lost,
    Labels(TextLabels),
}

/// Labels as the trainer takes them.
fn as_soft<'a>(
    labels: &'a TextLabels,
    head: Option<&'a PackedHead>,
) -> Result<SoftLabels<'a>, Error> {
    match (labels, head) {
        (TextLabels::Target(target), _) => Ok(SoftLabels::Target(target)),
        (TextLabels::Hidden(states), Some(head)) => Ok(SoftLabels::Hidden { states, head }),
        (TextLabels::Hidden(_), None) => {
            let expected = "labels that need no head";
            Err(Error::Target(TargetError::Mixed { found: "hidden states", expected }))
        }
    }
}
