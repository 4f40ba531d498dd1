//! A run: from a recipe to a trained student.
//!
//! * [`run`]: sets everything up, trains, writes the report; start here.
//! * `plan`: data, steps and requests, before anything starts.
//! * `source`: a teacher, or the labels that were captured of one.
//! * `labels`: the labels of one batch after another.
//! * `session`: the training loop.

pub(crate) mod embedded;
mod error;
mod labels;
mod meter;
mod plan;
pub(crate) mod saving;
mod session;
mod source;
mod teacher;

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use serde::{Deserialize, Serialize};
use session::{Ended, Session};
use source::Source;
use stillhouse_nn::{Trainer, TrainerConfig};
use tokio::{sync::watch, task::spawn_blocking};

pub(crate) use embedded::Room;
pub use error::{Error, Interrupted};
pub(crate) use meter::Meter;
pub(crate) use plan::Plan;
pub(crate) use teacher::Teacher;

use crate::{
    progress::Observer,
    recipe::{Change, Recipe, identity::Identity},
    run_folder::{
        Claim, Existing, RunFolder,
        metrics::{Record, TestRecord},
        report::{REPORT, Report, since},
    },
};

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The recipe's name.
    pub name: String,
    /// Whether the student is trained; otherwise the run was told to stop.
    pub finished: bool,
    /// Steps done, by the runs that this one goes on from too.
    pub steps: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// The last test, of the trained student.
    pub test: Option<TestRecord>,
    /// Wall-clock time of this process's part, in seconds.
    pub seconds: f64,
    /// Rows trained on per second, tests and checkpoints left out.
    pub examples_per_second: f64,
    /// Part of that time that was spent waiting for labels.
    pub stall_fraction: f64,
    /// Steps taken on hard labels alone because no teacher answered, by the runs that this one goes on
    /// from too.
    #[serde(default)]
    pub steps_without_teacher: u64,
    /// The teacher's fingerprint, hexadecimal.
    pub teacher: Option<String>,
    /// The run's folder.
    pub folder: PathBuf,
    /// The newest checkpoint, which holds all those steps; none if no step was taken yet.
    pub checkpoint: Option<PathBuf>,
    /// The report.
    pub report: Option<PathBuf>,
}

/// Runs a recipe. Ends early, with a checkpoint of what was done, when `stop` turns true. A run that
/// was trained to the end before is not run again: its outcome is returned, and no teacher is asked.
///
/// # Errors
/// If anything that the recipe names cannot be used, no teacher answers for too long, or a step
/// fails. What was saved before stays.
pub async fn run(
    mut recipe: Recipe,
    existing: Existing,
    observer: Box<dyn Observer>,
    mut stop: watch::Receiver<bool>,
) -> Result<Outcome, Error> {
    let begun = Instant::now();
    let reading = recipe.clone();
    let (plan, data_sha256) = spawn_blocking(move || {
        let plan = Plan::read(&reading)?;
        let sha256 = plan.train.sha256();
        Ok::<_, Error>((plan, sha256))
    })
    .await??;
    let capture = source::capture(&mut recipe, &plan, data_sha256)?;
    let config = TrainerConfig {
        model: recipe.student.clone(),
        optimizer: recipe.optimizer,
        schedule: recipe.schedule,
        total_steps: plan.total_steps,
        clip_norm: recipe.train.clip_norm,
        max_norm: recipe.train.max_norm,
        seed: recipe.seed,
    };
    // Before anything is connected or written: what depends on the data's size, too.
    config.validate().map_err(Error::Recipe)?;

    let identify = |teacher: Option<&[u8]>| Identity::new(&recipe, data_sha256, teacher);
    let claim = Claim::take(&output_folder(&recipe), existing, &identify(None))?;
    let stopped = Outcome::before_training(&recipe, &plan, &claim);
    let trained = stopped.steps == plan.total_steps;
    if trained && let Some(outcome) = claim.outcome::<Outcome>() {
        let report = outcome.report.and(Some(stopped.folder.join(REPORT)));
        return Ok(Outcome {
            folder: stopped.folder,
            checkpoint: stopped.checkpoint,
            report,
            ..outcome
        });
    }

    // A student that is trained needs no labels any more.
    let source = match &recipe.teacher {
        Some(section) if !trained => {
            let opening = Box::pin(Source::open(&recipe, section, &plan, capture));
            match unless(&mut stop, opening).await {
                Some(opened) => Some(opened?),
                None => return Ok(Outcome { seconds: begun.elapsed().as_secs_f64(), ..stopped }),
            }
        }
        _ => None,
    };
    let identity = match claim.checkpoint().filter(|_| trained) {
        Some(checkpoint) => checkpoint.position.identity.clone(),
        None => identify(source.as_ref().map(Source::fingerprint)),
    };
    let (run, checkpoint) = RunFolder::open(claim, &recipe, &identity)?;

    let mut trainer = Trainer::new(config)?;
    if let Some(checkpoint) = &checkpoint {
        trainer.load_state(&checkpoint.folder)?;
    }
    let begins_at = trainer.steps_done();
    let (labels, server) = match source {
        None => (None, None),
        Some(source) => {
            let (labels, server) = source.labels(&recipe, &plan, begins_at)?;
            (Some(labels), server)
        }
    };
    let total_steps = plan.total_steps;
    let fingerprint = identity.teacher().map(str::to_owned);
    let session = Session {
        recipe: recipe.clone(),
        plan,
        trainer,
        run,
        identity,
        labels,
        observer,
        stop,
        meter: Meter::new(),
    };
    let ended = spawn_blocking(move || session.train()).await?;
    let closed = match server {
        Some(server) => server.shutdown().await,
        None => Ok(()),
    };
    // What the training says comes before what its teacher says.
    let Ended { steps, test, checkpoint, mut run, meter } = ended?;
    closed?;
    let mut outcome = Outcome {
        name: recipe.name.clone(),
        finished: steps == total_steps,
        steps,
        total_steps,
        test,
        seconds: begun.elapsed().as_secs_f64(),
        examples_per_second: meter.mean_examples_per_second(),
        stall_fraction: meter.stall_fraction(),
        steps_without_teacher: steps_without_teacher(&run.records()?),
        teacher: fingerprint,
        folder: run.path().to_owned(),
        checkpoint: Some(checkpoint),
        report: None,
    };
    if outcome.finished {
        outcome.report = Some(report(&recipe, &outcome, begins_at, &mut run)?);
        run.finish(&outcome)?;
    }
    Ok(outcome)
}

/// What `work` comes to; none if told to stop first.
pub(crate) async fn unless<T>(
    stop: &mut watch::Receiver<bool>,
    work: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        done = work => Some(done),
        Ok(_) = stop.wait_for(|stop| *stop) => None,
    }
}

/// Steps among records that were taken without a teacher's labels.
pub(crate) fn steps_without_teacher(records: &[Record]) -> u64 {
    let without = |record: &&Record| matches!(record, Record::Step(step) if step.without_teacher);
    records.iter().filter(without).count() as u64
}

/// A report's line about steps without a teacher, where there were any.
pub(crate) fn without_teacher(steps: u64) -> Option<(String, String)> {
    (steps > 0).then(|| {
        ("steps on hard labels alone, for want of the teacher".to_owned(), steps.to_string())
    })
}

impl Outcome {
    /// Of a run that is told to stop before it trains: what earlier ones left.
    fn before_training(recipe: &Recipe, plan: &Plan, claim: &Claim) -> Self {
        let checkpoint = claim.checkpoint();
        Self {
            name: recipe.name.clone(),
            finished: false,
            steps: checkpoint.map_or(0, |checkpoint| checkpoint.position.step),
            total_steps: plan.total_steps,
            test: None,
            seconds: 0.0,
            examples_per_second: 0.0,
            stall_fraction: 0.0,
            steps_without_teacher: 0,
            teacher: None,
            folder: output_folder(recipe),
            checkpoint: checkpoint.map(|checkpoint| checkpoint.folder.clone()),
            report: None,
        }
    }
}

/// Where a recipe's results go.
pub fn output_folder(recipe: &Recipe) -> PathBuf {
    let default = || Path::new("runs").join(&recipe.name);
    recipe.output.dir.clone().unwrap_or_else(default)
}

/// What was minimised, with what changed over the epochs.
fn loss_in_words(recipe: &Recipe) -> String {
    let (loss, schedule) = (&recipe.loss, &recipe.loss_schedule);
    let range = |from: f64, change: &Option<Change>| {
        change.as_ref().map_or(from.to_string(), |change| change.words(from))
    };
    let weight = |weight: Option<f64>, otherwise: &str| {
        weight.map_or(otherwise.to_owned(), |weight| weight.to_string())
    };
    let mut words = format!(
        "{} CE + {} T² {}",
        weight(loss.hard_weight, "(1 - α)"),
        weight(loss.soft_weight, "α"),
        loss.divergence.name(),
    );
    if loss.hard_weight.is_none() || loss.soft_weight.is_none() {
        words += &format!("; α = {}", range(loss.alpha, &schedule.alpha));
    }
    words += &format!("; T = {}", range(loss.temperature, &schedule.temperature));
    if schedule.start_epoch > 1 {
        words += &format!("; hard labels alone before epoch {}", schedule.start_epoch);
    }
    words
}

/// Writes the report of a run that this process took on after `begins_at` steps.
fn report(
    recipe: &Recipe,
    outcome: &Outcome,
    begins_at: u64,
    run: &mut RunFolder,
) -> Result<PathBuf, Error> {
    let since = |what: &str| since(what, begins_at);
    let parameters: usize =
        recipe.student.tensors().values().map(|shape| shape.iter().product::<usize>()).sum();
    let mut facts = vec![
        ("parameters of the student".to_owned(), parameters.to_string()),
        ("steps".to_owned(), outcome.steps.to_string()),
        ("batch size".to_owned(), recipe.train.batch_size.to_string()),
        (since("examples per second"), format!("{:.0}", outcome.examples_per_second)),
        (since("seconds"), format!("{:.1}", outcome.seconds)),
    ];
    match &outcome.teacher {
        None => facts.push(("labels".to_owned(), "hard labels only".to_owned())),
        Some(fingerprint) => {
            facts.push(("loss".to_owned(), loss_in_words(recipe)));
            facts.push(("teacher".to_owned(), format!("`{fingerprint}`")));
            let waiting = format!("{:.1} %", 100.0 * outcome.stall_fraction);
            facts.push((since("time spent waiting for the teacher"), waiting));
            facts.extend(without_teacher(outcome.steps_without_teacher));
        }
    }
    if let Some(test) = &outcome.test {
        let words = format!("{:.2} %, {} errors", test.accuracy_percent(), test.errors);
        facts.push(("test accuracy".to_owned(), words));
    }
    let report = Report {
        title: recipe.name.clone(),
        summary: String::new(),
        facts,
        runs: vec![("student".to_owned(), run.records()?)],
    };
    Ok(report.write(run.path())?)
}
