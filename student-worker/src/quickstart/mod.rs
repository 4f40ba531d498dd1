//! The whole, small: a teacher is trained, served over gRPC, and distilled into a student, beside
//! the same student without it.
//!
//! The student sees a small, class-balanced part of the training set. There, hard labels alone say
//! little of what lies between the classes, and the teacher, which saw all of it, says more.

mod comparison;
mod recipes;

use std::{path::PathBuf, time::Instant};

pub use comparison::{Comparison, Figures};
use tokio::sync::watch;

use crate::{
    progress,
    recipe::Recipe,
    run_folder::Existing,
    train::{self, Error, Outcome},
};

/// What to compare, and where.
#[derive(Clone, Debug)]
pub struct Quickstart {
    /// Seed of everything random.
    pub seed: u64,
    /// Folder with MNIST's idx files.
    pub data: PathBuf,
    /// Where results go.
    pub output: PathBuf,
    /// Whether to show no progress.
    pub silent: bool,
    /// How much of it.
    pub size: Size,
}

/// How much is trained, and on how much. The default is what the command runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Rows that the teacher is trained on; none: all.
    pub teacher_rows: Option<usize>,
    /// Its passes over them.
    pub teacher_epochs: u32,
    /// Rows that the students are trained on.
    pub student_rows: usize,
    /// Their passes over them.
    pub student_epochs: u32,
}

impl Default for Size {
    fn default() -> Self {
        Self { teacher_rows: None, teacher_epochs: 5, student_rows: 1_000, student_epochs: 100 }
    }
}

/// Trains the teacher and both students, and writes the report. None if told to stop.
///
/// # Errors
/// If the data is not there, or a run fails.
pub async fn run(
    asked: &Quickstart,
    stop: watch::Receiver<bool>,
) -> Result<Option<Comparison>, Error> {
    let begun = Instant::now();
    let [teacher, hard, distilled] = recipes::all(asked);
    let Some(teacher) = one(teacher, asked.silent, &stop).await? else { return Ok(None) };
    let Some(hard) = one(hard, asked.silent, &stop).await? else { return Ok(None) };
    let Some(distilled) = one(distilled, asked.silent, &stop).await? else { return Ok(None) };
    let seconds = begun.elapsed().as_secs_f64();
    Comparison::new(asked, &[teacher, hard, distilled], seconds).map(Some)
}

/// One of the runs, to its end; none if told to stop.
async fn one(
    recipe: Recipe,
    silent: bool,
    stop: &watch::Receiver<bool>,
) -> Result<Option<Outcome>, Error> {
    let observer = progress::observer(silent);
    let outcome = train::run(recipe, Existing::Replace, observer, stop.clone()).await?;
    Ok(outcome.finished.then_some(outcome))
}
