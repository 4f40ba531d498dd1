//! The training loop. It runs on a thread of its own; labels are fetched meanwhile.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use stillhouse_nn::{Batch, Evaluation, Trainer};
use tokio::sync::watch;

use super::{
    Error,
    labels::{BatchLabels, Wants},
    meter::Meter,
    plan::Plan,
    saving,
};
use crate::{
    metrics,
    progress::{Event, Observer},
    recipe::{Change, Recipe, hard_only, identity::Identity},
    run_folder::{
        Checkpoint, RunFolder,
        metrics::{Record, StepRecord, TestRecord},
    },
};

/// Rows that are tested at once, which bounds the memory for their hidden states.
const TEST_ROWS: usize = 2_000;

/// Everything that a run needs, once it is set up.
pub(super) struct Session {
    pub(super) recipe: Recipe,
    pub(super) plan: Plan,
    pub(super) trainer: Trainer,
    pub(super) run: RunFolder,
    pub(super) identity: Identity,
    /// None: hard labels only.
    pub(super) labels: Option<BatchLabels>,
    pub(super) observer: Box<dyn Observer>,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) meter: Meter,
}

/// How a session ended.
pub(super) struct Ended {
    /// Steps done, by earlier processes too.
    pub(super) steps: u64,
    /// The last test; none if the session was told to stop.
    pub(super) test: Option<TestRecord>,
    /// The checkpoint at the last of the steps.
    pub(super) checkpoint: PathBuf,
    pub(super) run: RunFolder,
    pub(super) meter: Meter,
}

impl Session {
    /// Trains to the end, or until told to stop. Either leaves a checkpoint, and so does a session
    /// that gets no labels any more.
    pub(super) fn train(mut self) -> Result<Ended, Error> {
        let (start, total) = (self.trainer.steps_done(), self.plan.total_steps);
        self.observer.on(&Event::Started {
            name: &self.recipe.name,
            done: start,
            steps: total,
            rows: self.plan.train.len(),
            unit: "examples",
            teacher: self.labels.is_some(),
        });
        metrics::begin(start, total);
        let mut test = None;
        for step in start..total {
            if *self.stop.borrow() || !self.step(step)? {
                let checkpoint = self.checkpoint()?;
                return Ok(self.end(None, checkpoint));
            }
            let done = step + 1;
            if done % self.plan.steps_per_epoch == 0 {
                let epoch = done / self.plan.steps_per_epoch;
                if done == total || epoch.is_multiple_of(self.recipe.train.eval_every.into()) {
                    test = Some(self.test(done, epoch)?);
                }
            }
            let every = self.recipe.train.checkpoint_every_steps;
            if every > 0 && done.is_multiple_of(every) && done < total {
                self.checkpoint()?;
            }
        }
        let test = match test {
            Some(test) => test,
            None => self.last_test()?,
        };
        let checkpoint = self.checkpoint()?;
        self.trainer.save_model(self.run.path())?;
        Ok(self.end(Some(test), checkpoint))
    }

    /// Takes one step; false if the run was told to stop before its labels came.
    fn step(&mut self, step: u64) -> Result<bool, Error> {
        let began = Instant::now();
        let rows = self.plan.sampler.batch(step).rows;
        let mut waited = Duration::ZERO;
        let epoch = step / self.plan.steps_per_epoch + 1;
        let distils = self.recipe.distils(epoch);
        let mut loss = self.recipe.loss_at(epoch);
        let soft = match self.labels.as_mut().filter(|_| distils) {
            None => None,
            Some(labels) => {
                let temperature = loss.temperature as f32;
                let wants = Wants { rows: &rows, epoch, temperature };
                match labels.take(wants, &mut self.stop) {
                    Ok(Some((soft, time))) => {
                        waited = time;
                        soft
                    }
                    Ok(None) => return Ok(false),
                    Err(error) => return Err(self.interrupt(error)?),
                }
            }
        };
        let without_teacher = distils && self.labels.is_some() && soft.is_none();
        if without_teacher {
            loss = hard_only(&loss);
        }
        let factor = self.recipe.student.rescale_factor();
        let input = self.plan.view(step).gather_f32(&rows, factor);
        let hard = self.plan.train.gather_labels(&rows);
        let batch =
            Batch { input: &input, rows: rows.len(), hard: hard.as_deref(), soft: soft.as_ref() };
        let report = self.trainer.step(&batch, &loss)?;
        self.meter.step(began, waited, rows.len());

        let schedule = &self.recipe.loss_schedule;
        let changes = |change: &Option<Change>| distils && change.is_some();
        let record = StepRecord {
            step: step + 1,
            epoch,
            loss: report.loss,
            hard_loss: report.hard_loss,
            soft_loss: report.soft_loss,
            alpha: changes(&schedule.alpha).then_some(loss.alpha),
            temperature: changes(&schedule.temperature).then_some(loss.temperature),
            without_teacher,
            grad_norm: report.grad_norm,
            learning_rate: report.learning_rate,
            examples_per_second: self.meter.examples_per_second(),
            stall_fraction: self.meter.stall_fraction(),
        };
        self.observer.on(&Event::Step(&record));
        metrics::step(&record, (began.elapsed(), waited), self.plan.total_steps);
        if let Some(BatchLabels::Asked(asked)) = &mut self.labels {
            let (name, total) = (&self.recipe.name, self.plan.total_steps);
            asked.labels.report(|| record.report(name, total), record.step == total);
        }
        self.run.record(&Record::Step(record))?;
        Ok(true)
    }

    fn test(&mut self, step: u64, epoch: u64) -> Result<TestRecord, Error> {
        let _timed = metrics::Phase::begin("evaluate");
        let data = &self.plan.test;
        let factor = self.recipe.student.rescale_factor();
        let all: Vec<u32> = (0..data.len() as u32).collect();
        let mut sum = Evaluation { loss: 0.0, errors: 0, rows: 0 };
        for rows in all.chunks(TEST_ROWS) {
            let input = data.gather_f32(rows, factor);
            // Rows to test on have labels.
            let labels = data.gather_labels(rows).unwrap_or_default();
            let part = self.trainer.evaluate(&input, rows.len(), &labels)?;
            sum.loss += part.loss * part.rows as f64;
            sum.errors += part.errors;
            sum.rows += part.rows;
        }
        let record = TestRecord {
            step,
            epoch,
            loss: sum.loss / sum.rows as f64,
            errors: sum.errors as u64,
            rows: sum.rows as u64,
        };
        self.observer.on(&Event::Tested(&record));
        self.run.record(&Record::Test(record.clone()))?;
        Ok(record)
    }

    fn checkpoint(&mut self) -> Result<Checkpoint, Error> {
        let _timed = metrics::Phase::begin("checkpoint");
        let (step, trainer) = (self.trainer.steps_done(), &self.trainer);
        let place = (&mut self.run, &self.identity);
        saving::checkpoint(place, &mut *self.observer, step, |folder| trainer.save_state(folder))
    }

    /// The test of a student that was trained to the end before: as it was recorded, or once more.
    fn last_test(&mut self) -> Result<TestRecord, Error> {
        let step = self.trainer.steps_done();
        let recorded = self.run.records()?.into_iter().rev().find_map(|record| match record {
            Record::Test(test) if test.step == step => Some(test),
            _ => None,
        });
        match recorded {
            Some(test) => Ok(test),
            None => self.test(step, self.recipe.train.epochs.into()),
        }
    }

    /// Saves what there is when labels cannot be had, for another try or to go on from by hand.
    fn interrupt(&mut self, source: Error) -> Result<Error, Error> {
        let saved = self.checkpoint();
        saving::interrupted(saved, &mut *self.observer, source)
    }

    fn end(mut self, test: Option<TestRecord>, checkpoint: Checkpoint) -> Ended {
        let steps = self.trainer.steps_done();
        self.observer.on(&Event::Ended { step: steps });
        Ended { steps, test, checkpoint: checkpoint.folder, run: self.run, meter: self.meter }
    }
}
