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
    let mut outcomes = Vec::new();
    for recipe in recipes::all(asked) {
        match one(recipe, asked.silent, stop.clone()).await? {
            outcome if outcome.finished => outcomes.push(outcome),
            _ => return Ok(None),
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    Comparison::new(asked, &outcomes, seconds).map(Some)
}

async fn one(recipe: Recipe, silent: bool, stop: watch::Receiver<bool>) -> Result<Outcome, Error> {
    train::run(recipe, Existing::Replace, progress::observer(silent), stop).await
}
