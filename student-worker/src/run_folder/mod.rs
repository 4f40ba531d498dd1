//! The folder of a run.
//!
//! ```text
//! recipe.toml                          the recipe as it was run, every default written out
//! metrics.jsonl                        one line per step and per test
//! tensorboard/events.out.tfevents.*    the same, for TensorBoard
//! checkpoints/step-N/                  what a resumed run goes on from
//! model.safetensors, config.json       the trained student
//! report.md, plot.svg                  for a person
//! ```

mod append;
mod checkpoint;
mod crc32c;
pub mod metrics;
pub mod report;
mod tensorboard;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub use checkpoint::{Checkpoint, Checkpoints, Position};
use metrics::{MetricsLog, Record};
use tensorboard::EventFile;

use crate::recipe::{
    Recipe,
    identity::{Difference, Identity},
};

const RECIPE: &str = "recipe.toml";
const METRICS: &str = "metrics.jsonl";
const EVENTS: &str = "events.out.tfevents.stillhouse";

/// Why a run's folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The file system refused.
    #[error("{}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line of the metrics is none.
    #[error("{}: line {line} is no record of a run", file.display())]
    Record {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A record or a manifest cannot be written as JSON.
    #[error("cannot be written as JSON")]
    Encode(#[source] serde_json::Error),
    /// The recipe cannot be written as TOML.
    #[error("the recipe cannot be written as TOML")]
    Recipe(#[source] toml::ser::Error),
    /// The checkpoint to go on from was made by a run with other values.
    #[error("{} belongs to another recipe", folder.display())]
    OtherRecipe {
        /// The checkpoint's folder.
        folder: PathBuf,
        /// The first value that differs.
        source: Difference,
    },
    /// A run is there already.
    #[error(
        "output.dir: {} holds a run already; go on with it (--resume) or name another folder \
         (--set output.dir=PATH)", folder.display()
    )]
    Occupied {
        /// The folder.
        folder: PathBuf,
    },
}

impl RunError {
    fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}

/// What to do about a run that is in the folder already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Leave it alone, and do not start.
    Refuse,
    /// Go on from its newest checkpoint, or start anew where it has none.
    Resume,
    /// Start anew.
    Replace,
}

/// A run's folder, open for writing.
#[derive(Debug)]
pub struct RunFolder {
    folder: PathBuf,
    checkpoints: Checkpoints,
    metrics: MetricsLog,
    events: EventFile,
}

impl RunFolder {
    /// Opens the folder, makes it where it is missing, writes the recipe, and cuts the records back
    /// to where the run goes on. Returns the checkpoint to go on from.
    ///
    /// # Errors
    /// If the folder holds a run that must not be touched, its newest checkpoint has another
    /// identity, or it cannot be written.
    pub fn open(
        folder: &Path,
        recipe: &Recipe,
        identity: &Identity,
        existing: Existing,
    ) -> Result<(Self, Option<Checkpoint>), RunError> {
        if existing == Existing::Refuse && folder.join(RECIPE).exists() {
            return Err(RunError::Occupied { folder: folder.to_owned() });
        }
        let board = folder.join("tensorboard");
        fs::create_dir_all(&board).map_err(|source| RunError::io(&board, source))?;
        let keep = recipe.train.keep_checkpoints;
        let checkpoints = Checkpoints::open(folder.join("checkpoints"), keep)?;
        let checkpoint = match existing {
            Existing::Resume => checkpoints.newest()?,
            Existing::Refuse | Existing::Replace => None,
        };
        let (metrics, events) = match &checkpoint {
            Some(Checkpoint { folder, position }) => {
                let other = |source| RunError::OtherRecipe { folder: folder.clone(), source };
                identity.same_as(&position.identity).map_err(other)?;
                (position.metrics_bytes, position.events_bytes)
            }
            None => {
                checkpoints.clear()?;
                (0, 0)
            }
        };
        write_recipe(&folder.join(RECIPE), recipe)?;
        let run = Self {
            metrics: MetricsLog::open(&folder.join(METRICS), metrics)?,
            events: EventFile::open(&board.join(EVENTS), events)?,
            checkpoints,
            folder: folder.to_owned(),
        };
        Ok((run, checkpoint))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Records what was measured, for programs and for TensorBoard.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn record(&mut self, record: &Record) -> Result<(), RunError> {
        self.metrics.append(record)?;
        match record {
            Record::Step(step) => {
                let mut values = vec![
                    ("train/loss", step.loss),
                    ("train/gradient_norm", step.grad_norm),
                    ("train/learning_rate", step.learning_rate),
                    ("train/examples_per_second", step.examples_per_second),
                    ("train/teacher_stall_fraction", step.stall_fraction),
                ];
                values.extend(step.hard_loss.map(|loss| ("train/hard_loss", loss)));
                values.extend(step.soft_loss.map(|loss| ("train/soft_loss", loss)));
                self.events.scalars(step.step, &values)
            }
            Record::Test(test) => {
                let accuracy = test.accuracy_percent();
                let values = [("test/loss", test.loss), ("test/accuracy_percent", accuracy)];
                self.events.scalars(test.step, &values)
            }
        }
    }

    /// Writes a checkpoint; `write` puts the trainer's state into the folder it is given.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn checkpoint<E: From<RunError>>(
        &mut self,
        step: u64,
        identity: &Identity,
        write: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<Checkpoint, E> {
        let position = Position {
            step,
            identity: identity.clone(),
            metrics_bytes: self.metrics.sync()?,
            events_bytes: self.events.sync()?,
        };
        self.checkpoints.save(position, write)
    }

    /// Puts the records on the disk and reads them all, those of before a resumption too.
    ///
    /// # Errors
    /// If they cannot be written or read.
    pub fn records(&mut self) -> Result<Vec<Record>, RunError> {
        self.metrics.sync()?;
        self.events.sync()?;
        metrics::read(&self.folder.join(METRICS))
    }
}

fn write_recipe(path: &Path, recipe: &Recipe) -> Result<(), RunError> {
    let text = toml::to_string_pretty(recipe).map_err(RunError::Recipe)?;
    fs::write(path, text).map_err(|source| RunError::io(path, source))
}
