//! The folder of a run.
//!
//! ```text
//! recipe.toml                          the recipe as it was run, every default written out
//! identity.json                        the values that a resumed run must share
//! metrics.jsonl                        one line per step and per test
//! tensorboard/events.out.tfevents.*    the same, for TensorBoard
//! checkpoints/step-N/                  what a resumed run goes on from
//! model.safetensors, config.json       the trained student
//! report.md, plot.svg                  for a person
//! outcome.json                         how it ended, once it has
//! run.lock                             locked while a run is at work here
//! ```

pub(crate) mod append;
mod checkpoint;
mod claim;
pub(crate) mod crc32c;
pub(crate) mod lock;
pub mod metrics;
pub mod report;
mod tensorboard;

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf, absolute},
};

pub use checkpoint::{Checkpoint, Checkpoints, Position};
pub use claim::Claim;
use lock::Lock;
use metrics::{MetricsLog, Record};
use serde::Serialize;
use tensorboard::EventFile;

use crate::recipe::{
    Recipe,
    identity::{Difference, Identity},
};

const RECIPE: &str = "recipe.toml";
const METRICS: &str = "metrics.jsonl";
const OUTCOME: &str = "outcome.json";
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
    /// The run to go on with, or its checkpoint, was made with other values.
    #[error("{} belongs to another recipe", folder.display())]
    OtherRecipe {
        /// The folder of the checkpoint, or of the run where that has none.
        folder: PathBuf,
        /// The first value that differs.
        source: Difference,
    },
    /// There are checkpoints, and none can be gone on from.
    #[error(
        "none of the checkpoints in {} can be read, and none was touched; the newest: {}: {reason}",
        folder.display(),
        newest.display()
    )]
    Unreadable {
        /// The folder of all of them.
        folder: PathBuf,
        /// The newest one's.
        newest: PathBuf,
        /// What is wrong with that.
        reason: String,
    },
    /// What the run was started with cannot be read.
    #[error("{}: not what a run is started with", file.display())]
    Identity {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Another process is at work there.
    #[error(
        "output.dir: another run is at work in {}; wait for its end or name another folder \
         (--set output.dir=PATH)", folder.display()
    )]
    Busy {
        /// The folder.
        folder: PathBuf,
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
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}

/// What a run's folder needs to know of a recipe.
pub trait RunRecipe: Serialize + Clone {
    /// Checkpoints to keep.
    fn keep_checkpoints(&self) -> usize;
    /// Says where the results go.
    fn set_output(&mut self, folder: PathBuf);
}

impl RunRecipe for Recipe {
    fn keep_checkpoints(&self) -> usize {
        self.train.keep_checkpoints
    }

    fn set_output(&mut self, folder: PathBuf) {
        self.output.dir = Some(folder);
    }
}

/// What to do about a run that is in the folder already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Leave it alone, and do not start.
    Refuse,
    /// Go on from its newest checkpoint, or start anew where it has none. Records of steps that are
    /// taken again are written again; nothing else of it is removed.
    Resume,
    /// Start anew.
    Replace,
}

/// A run's folder, open for writing and locked.
#[derive(Debug)]
pub struct RunFolder {
    folder: PathBuf,
    checkpoints: Checkpoints,
    metrics: MetricsLog,
    events: EventFile,
    _lock: Lock,
}

impl RunFolder {
    /// Opens a folder, makes it where it is missing, writes the recipe and the identity, and cuts
    /// the records back to where the run goes on. Returns the checkpoint to go on from.
    ///
    /// # Errors
    /// As [`Claim::take`], or if the folder cannot be written.
    pub fn open(
        claim: Claim,
        recipe: &impl RunRecipe,
        identity: &Identity,
    ) -> Result<(Self, Option<Checkpoint>), RunError> {
        let (folder, existing) = (claim.folder.clone(), claim.existing);
        let board = folder.join("tensorboard");
        fs::create_dir_all(&board).map_err(|source| RunError::io(&board, source))?;
        let (lock, mut checkpoint) = claim.enter(identity)?;
        let checkpoints = Checkpoints::open(&folder, recipe.keep_checkpoints())?;
        if existing == Existing::Replace {
            checkpoints.clear()?;
        }
        remove_file(&folder.join(OUTCOME))?;
        put_json(&folder.join(claim::IDENTITY), identity)?;
        write_recipe(&folder, recipe)?;
        let position = checkpoint.as_ref().map(|checkpoint| &checkpoint.position);
        let (metrics, events) =
            position.map_or((0, 0), |position| (position.metrics_bytes, position.events_bytes));
        let mut run = Self {
            metrics: MetricsLog::open(&folder.join(METRICS), metrics)?,
            events: EventFile::open(&board.join(EVENTS), events)?,
            checkpoints,
            folder,
            _lock: lock,
        };
        if let Some(checkpoint) = &mut checkpoint {
            // A log that was started anew is shorter than the checkpoint says.
            let lengths = (run.metrics.sync()?, run.events.sync()?);
            if lengths != (metrics, events) {
                let position = &mut checkpoint.position;
                (position.metrics_bytes, position.events_bytes) = lengths;
                run.checkpoints.amend(checkpoint)?;
            }
        }
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
                values.extend(step.alpha.map(|alpha| ("train/alpha", alpha)));
                values.extend(step.temperature.map(|t| ("train/temperature", t)));
                self.events.scalars(step.step, &values)
            }
            Record::Validation(validation) => {
                let quality = match validation.accuracy_percent() {
                    Some(accuracy) => ("validation/accuracy_percent", accuracy),
                    None => ("validation/perplexity", validation.perplexity()),
                };
                let mut values = vec![("validation/loss", validation.loss), quality];
                values.extend(validation.teacher_kl.map(|kl| ("validation/teacher_kl", kl)));
                let agreement = validation.teacher_agreement_percent;
                values.extend(agreement.map(|part| ("validation/teacher_agreement_percent", part)));
                self.events.scalars(validation.step, &values)
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

    /// Writes down how the run ended, last of all.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn finish(&self, outcome: &impl Serialize) -> Result<(), RunError> {
        put_json(&self.folder.join(OUTCOME), outcome)
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

/// Writes the recipe, with the folder that it goes to written out, so that it can be run again from
/// anywhere.
fn write_recipe(folder: &Path, recipe: &impl RunRecipe) -> Result<(), RunError> {
    let mut recipe = recipe.clone();
    let folder_itself = absolute(folder).map_err(|source| RunError::io(folder, source))?;
    recipe.set_output(folder_itself);
    let text = toml::to_string_pretty(&recipe).map_err(RunError::Recipe)?;
    let path = folder.join(RECIPE);
    fs::write(&path, text).map_err(|source| RunError::io(&path, source))
}

/// Writes a value as JSON: the file holds it whole, or is as it was.
pub(crate) fn put_json(path: &Path, value: &impl Serialize) -> Result<(), RunError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(RunError::Encode)?;
    text.push(b'\n');
    let partial = path.with_added_extension("partial");
    let put = || {
        let mut file = File::create(&partial)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    put().map_err(|source| RunError::io(path, source))
}

/// Removes a file, if it is there.
fn remove_file(path: &Path) -> Result<(), RunError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(RunError::io(path, source)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{recipe::recipe_for_tests, run_folder::metrics::tests::step};

    fn open(folder: &Path, existing: Existing) -> Result<RunFolder, RunError> {
        let (recipe, identity) = (recipe_for_tests(), Identity::default());
        let claim = Claim::take(folder, existing, &identity)?;
        RunFolder::open(claim, &recipe, &identity).map(|(run, _)| run)
    }

    /// The next process must not take the length of a log that is gone for that of the new one.
    #[test]
    fn a_log_that_was_started_anew_is_cut_back_to_its_own_length() {
        let folder = tempfile::tempdir().unwrap();
        let record = |run: &mut RunFolder, steps: std::ops::RangeInclusive<u64>| {
            steps.for_each(|number| run.record(&step(number, 1.0)).unwrap());
        };
        let mut run = open(folder.path(), Existing::Refuse).unwrap();
        record(&mut run, 1..=3);
        run.checkpoint(3, &Identity::default(), |_| Ok::<_, RunError>(())).unwrap();
        drop(run);
        fs::remove_file(folder.path().join(METRICS)).unwrap();
        for last in [8, 5] {
            let mut run = open(folder.path(), Existing::Resume).unwrap();
            record(&mut run, 4..=last);
            let found = run.records().unwrap();
            assert_eq!(found, (4..=last).map(|number| step(number, 1.0)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_resolved_recipe_says_where_its_results_go() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("run");
        open(&folder, Existing::Refuse).unwrap();
        let text = fs::read_to_string(folder.join(RECIPE)).unwrap();
        let read: Recipe = toml::from_str(&text).unwrap();
        assert_eq!(read.output.dir, Some(folder));
    }

    #[test]
    fn any_trace_of_a_run_occupies_a_folder() {
        for file in [RECIPE, METRICS, claim::IDENTITY, "checkpoints/step-000000003/state"] {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, []).unwrap();
            let error = open(folder.path(), Existing::Refuse).unwrap_err();
            assert!(matches!(error, RunError::Occupied { .. }), "{error}");
        }
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("notes.txt"), []).unwrap();
        open(folder.path(), Existing::Refuse).unwrap();
    }
}
