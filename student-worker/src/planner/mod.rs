//! `student-worker plan`: what a recipe needs of its teachers, from a few seconds of each alone.
//!
//! The student is trained on hard labels alone for a moment, in a folder that goes afterwards; the teacher is
//! asked for labels of random rows, which no cache holds. Both do here what they will do there: on another
//! machine the figures are others.

mod needs;
mod teacher;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use clap::Args;
use needs::{Measured, Needs};
use stillhouse_proto::v1::encoding::Kind;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::{
    cli::Failure,
    data::Augment,
    flags::number,
    label_client::encoding_of,
    progress::{Event, Observer},
    recipe::{
        self, Invalid, LossSchedule, RecipeError, TeacherSection, hard_only, teacher::TeacherKind,
    },
    run_folder::{Existing, RunError},
    text, train,
};

/// What is to be planned.
#[derive(Debug, Args)]
pub(crate) struct PlanArguments {
    /// The recipe.
    recipe: PathBuf,
    /// Change a value of the recipe, as of train.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Students of this recipe that train at the same time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    students: u32,
    /// How long each is measured, in seconds.
    #[arg(long, default_value_t = 3.0, value_parser = number(0.5..=600.0))]
    seconds: f64,
    /// Print the figures as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A student that is trained for a moment.
#[derive(Clone, Copy, Debug, Default)]
struct Watched {
    /// Rows, or sequences, of an epoch.
    rows: usize,
    /// When its first step was over.
    first: Option<Instant>,
    steps: u64,
}

/// Stops the run after a while.
struct Watch {
    seen: Arc<Mutex<Watched>>,
    enough: Duration,
    stop: watch::Sender<bool>,
}

impl Observer for Watch {
    fn on(&mut self, event: &Event<'_>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Started { rows, .. } => seen.rows = *rows,
            Event::Step(_) => {
                seen.steps += 1;
                let first = *seen.first.get_or_insert_with(Instant::now);
                if first.elapsed() >= self.enough {
                    self.stop.send_replace(true);
                }
            }
            _ => {}
        }
    }
}

/// Measures and plans.
///
/// # Errors
/// If the recipe cannot be run, or its teacher does not answer.
pub(crate) async fn run(arguments: &PlanArguments) -> Result<Needs, Failure> {
    let (mut table, folder) = recipe::read(&arguments.recipe, &arguments.set)?;
    let is_text = text::recipe::is_text(&table);
    // Where the run itself would write is not touched.
    let scratch = scratch()?;
    let output = toml::Value::String(scratch.path().join("run").display().to_string());
    let section = table.entry("output").or_insert_with(|| toml::Value::Table(toml::Table::new()));
    if let toml::Value::Table(section) = section {
        section.insert("dir".to_owned(), output);
    }
    let enough = Duration::from_secs_f64(arguments.seconds);
    let seen: Arc<Mutex<Watched>> = Arc::default();
    let (stop, stopping) = watch::channel(false);
    let observer = Box::new(Watch { seen: Arc::clone(&seen), enough, stop });

    let (section, asks, rate, per_step, rows_again) = if is_text {
        let full = text::recipe::from_table(table, folder)?;
        let section = taught(full.teacher.clone())?;
        let micro = full.train.micro_batch_tokens();
        let length = full.data.sequence_length;
        let asks = teacher::Asks {
            rows: (micro / length).max(1),
            tokens: length,
            kind: encoding_of(&section, full.loss.divergence),
            temperature: full.loss.temperature as f32,
        };
        let mut alone = full.clone();
        (alone.teacher, alone.on_policy) = (None, None);
        alone.loss = hard_only(&full.loss);
        alone.train.steps = u64::MAX >> 16;
        alone.train.eval_every_steps = u64::MAX >> 16;
        alone.train.checkpoint_every_steps = 0;
        let outcome = Box::pin(text::run(alone, Existing::Refuse, observer, stopping)).await?;
        let again = full.on_policy.is_none();
        (section, asks, outcome.tokens_per_second, full.train.batch_tokens, again)
    } else {
        let full = recipe::from_table(table, folder)?;
        let section = taught(full.teacher.clone())?;
        let batch = full.train.batch_size;
        let asks = teacher::Asks {
            rows: section.request_rows.unwrap_or(batch).min(batch),
            tokens: 0,
            kind: encoding_of(&section, full.loss.divergence),
            temperature: full.loss.temperature as f32,
        };
        let mut alone = full.clone();
        alone.teacher = None;
        (alone.loss, alone.loss_schedule) = (hard_only(&full.loss), LossSchedule::default());
        alone.train.epochs = 1_000_000;
        alone.train.eval_every = 1_000_000;
        alone.train.checkpoint_every_steps = 0;
        let outcome = train::run(alone, Existing::Refuse, observer, stopping).await?;
        let augmented = full.data.augment != Augment::default();
        let again = full.train.epochs > 1 && !augmented;
        (section, asks, outcome.examples_per_second, batch, again)
    };
    let watched = *seen.lock().unwrap_or_else(PoisonError::into_inner);
    drop(scratch);

    let teacher = teacher::measure(&section, &asks, enough).await?;
    Ok(Needs::of(&Measured {
        students: arguments.students,
        is_text,
        student_per_second: rate,
        per_step,
        epoch_rows: watched.rows,
        units_per_row: asks.tokens.max(1),
        prefetch: section.prefetch,
        kept_bytes: section.kept_bytes,
        rows_again,
        // Others are drawn in every epoch.
        labels_again: rows_again && !matches!(asks.kind, Kind::Sampled(_)),
        teacher,
    }))
}

/// The section about the teacher, of a recipe that has one to ask.
fn taught(section: Option<TeacherSection>) -> Result<TeacherSection, RecipeError> {
    match section {
        Some(section) if section.kind != TeacherKind::Captured => Ok(section),
        found => Err(RecipeError::Invalid(Invalid {
            key: "teacher.kind".to_owned(),
            value: found.map_or("no [teacher]", |_| "\"captured\"").to_owned(),
            expected: "\"endpoints\" or \"embedded\": there is nothing to plan otherwise"
                .to_owned(),
        })),
    }
}

/// A folder of this process alone that goes when it is dropped.
fn scratch() -> Result<TempDir, train::Error> {
    let made = tempfile::Builder::new().prefix("stillhouse-plan-").tempdir();
    Ok(made.map_err(|source| RunError::io(&std::env::temp_dir(), source))?)
}
