//! Checkpoints: whole or not there.
//!
//! A checkpoint is written into a folder with a temporary name, put on the disk, and renamed; one
//! that goes is renamed before it is removed. A run that is killed in between leaves a temporary
//! folder, which the next one removes.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{RunError, put_json};
use crate::recipe::identity::Identity;

const MANIFEST: &str = "checkpoint.json";
const FORMAT: u32 = 1;

/// Where a run stands, beside the trainer's own state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Steps done: the cursor in the data, too, since a step's rows follow from its number.
    pub step: u64,
    /// What decides the weights; a run that goes on from here must have the same.
    pub identity: Identity,
    /// Length of `metrics.jsonl` at this step, in bytes.
    pub metrics_bytes: u64,
    /// Length of the TensorBoard event file at this step, in bytes.
    pub events_bytes: u64,
}

/// The manifest file, written last.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    #[serde(flatten)]
    position: Position,
    /// Length of every other file of the checkpoint, in bytes.
    files: BTreeMap<String, u64>,
}

/// A complete checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Its folder, with the trainer's state.
    pub folder: PathBuf,
    /// Where the run stood.
    pub position: Position,
}

/// The checkpoints of a run.
#[derive(Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    keep: usize,
}

impl Checkpoints {
    /// The checkpoints of the run in a folder, to be looked at.
    pub(super) fn at(run: &Path) -> Self {
        Self { folder: run.join("checkpoints"), keep: usize::MAX }
    }

    /// The checkpoints of the run in a folder, to be written. Their own folder is made where it is
    /// missing, and half-written ones are removed.
    pub(super) fn open(run: &Path, keep: usize) -> Result<Self, RunError> {
        let checkpoints = Self { keep, ..Self::at(run) };
        let folder = &checkpoints.folder;
        fs::create_dir_all(folder).map_err(|source| RunError::io(folder, source))?;
        for (name, path) in checkpoints.entries()? {
            if name.starts_with('.') {
                fs::remove_dir_all(&path).map_err(|source| RunError::io(&path, source))?;
            }
        }
        Ok(checkpoints)
    }

    /// Whether there is none, readable or not.
    pub(super) fn is_empty(&self) -> Result<bool, RunError> {
        Ok(self.steps()?.is_empty())
    }

    /// Removes all of them, for a run that replaces another.
    pub(super) fn clear(&self) -> Result<(), RunError> {
        self.steps()?.iter().try_for_each(|(_, path)| self.remove(path))
    }

    /// Writes a checkpoint; `write` puts the trainer's state into the folder it is given. The
    /// oldest are removed beyond those to keep.
    ///
    /// # Errors
    /// If anything cannot be written. What was there before stays.
    pub fn save<E: From<RunError>>(
        &self,
        position: Position,
        write: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<Checkpoint, E> {
        let name = format!("step-{:09}", position.step);
        let partial = self.folder.join(format!(".{name}"));
        let folder = self.folder.join(name);
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| RunError::io(&path, source)
        };
        if read(&folder).is_ok_and(|there| there == position) {
            // Saved before, and resumed from without a step since: it must not be away for a moment.
            return Ok(Checkpoint { folder, position });
        }
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(failed(&partial))?;
        }
        fs::create_dir(&partial).map_err(failed(&partial))?;
        write(&partial)?;

        let manifest = Manifest {
            format: FORMAT,
            files: lengths(&partial).map_err(failed(&partial))?,
            position,
        };
        let text = serde_json::to_vec_pretty(&manifest).map_err(RunError::Encode)?;
        fs::write(partial.join(MANIFEST), text).map_err(failed(&partial))?;
        sync_all(&partial).map_err(failed(&partial))?;
        if folder.exists() {
            // One that cannot be read, or whose logs were of another length.
            self.remove(&folder)?;
        }
        fs::rename(&partial, &folder).map_err(failed(&folder))?;
        sync(&self.folder).map_err(failed(&self.folder))?;
        self.prune(manifest.position.step)?;
        Ok(Checkpoint { folder, position: manifest.position })
    }

    /// Writes down a checkpoint's position again, after the lengths of the logs have changed.
    pub(super) fn amend(&self, checkpoint: &Checkpoint) -> Result<(), RunError> {
        let Checkpoint { folder, position } = checkpoint;
        let unreadable = |reason| RunError::Unreadable {
            folder: self.folder.clone(),
            newest: folder.clone(),
            reason,
        };
        let manifest = manifest(folder).map_err(unreadable)?;
        put_json(&folder.join(MANIFEST), &Manifest { position: position.clone(), ..manifest })
    }

    /// The newest complete checkpoint. Others are passed over, with a warning.
    ///
    /// # Errors
    /// If the folder cannot be read, or there are checkpoints and none of them is complete.
    pub fn newest(&self) -> Result<Option<Checkpoint>, RunError> {
        let mut unreadable = None;
        for (_, folder) in self.steps()?.into_iter().rev() {
            match read(&folder) {
                Ok(position) => return Ok(Some(Checkpoint { folder, position })),
                Err(reason) => {
                    tracing::warn!(checkpoint = %folder.display(), %reason, "checkpoint passed over");
                    unreadable.get_or_insert((folder, reason));
                }
            }
        }
        match unreadable {
            None => Ok(None),
            Some((newest, reason)) => {
                Err(RunError::Unreadable { folder: self.folder.clone(), newest, reason })
            }
        }
    }

    /// Removes the oldest of those up to `step` beyond those to keep. Later ones, which the run
    /// could not go on from, are left alone: they must not push out what it can.
    fn prune(&self, step: u64) -> Result<(), RunError> {
        let mut steps = self.steps()?;
        steps.retain(|(found, _)| *found <= step);
        let surplus = steps.len().saturating_sub(self.keep);
        steps.iter().take(surplus).try_for_each(|(_, path)| self.remove(path))
    }

    /// Removes a checkpoint: it is there whole, or not at all.
    fn remove(&self, path: &Path) -> Result<(), RunError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let gone = self.folder.join(format!(".gone-{name}"));
        let moved = fs::rename(path, &gone).and_then(|()| fs::remove_dir_all(&gone));
        moved.map_err(|source| RunError::io(path, source))
    }

    /// Step and folder of every checkpoint, oldest first.
    fn steps(&self) -> Result<Vec<(u64, PathBuf)>, RunError> {
        let step = |name: &str| name.strip_prefix("step-")?.parse().ok();
        let entries = self.entries()?;
        let mut steps: Vec<(u64, PathBuf)> =
            entries.into_iter().filter_map(|(name, path)| Some((step(&name)?, path))).collect();
        steps.sort();
        Ok(steps)
    }

    fn entries(&self) -> Result<Vec<(String, PathBuf)>, RunError> {
        let failed = |source| RunError::io(&self.folder, source);
        let mut entries = Vec::new();
        let listed = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(entries),
            listed => listed.map_err(failed)?,
        };
        for entry in listed {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_dir() {
                entries.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
            }
        }
        Ok(entries)
    }
}

/// Reads a checkpoint's manifest.
fn manifest(folder: &Path) -> Result<Manifest, String> {
    let text = fs::read(folder.join(MANIFEST)).map_err(|error| format!("{MANIFEST}: {error}"))?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|error| format!("{MANIFEST}: {error}"))?;
    if manifest.format != FORMAT {
        return Err(format!("{MANIFEST}: format is {}, expected {FORMAT}", manifest.format));
    }
    Ok(manifest)
}

/// Reads where a checkpoint stands and checks that its files are there in full.
fn read(folder: &Path) -> Result<Position, String> {
    let manifest = manifest(folder)?;
    for (name, expected) in &manifest.files {
        let found = fs::metadata(folder.join(name)).map_or(0, |file| file.len());
        if found != *expected {
            return Err(format!("{name} has {found} bytes, expected {expected}"));
        }
    }
    Ok(manifest.position)
}

fn lengths(folder: &Path) -> io::Result<BTreeMap<String, u64>> {
    fs::read_dir(folder)?
        .map(|entry| {
            let entry = entry?;
            Ok((entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len()))
        })
        .collect()
}

fn sync_all(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        sync(&entry?.path())?;
    }
    sync(folder)
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(step: u64) -> Position {
        Position {
            step,
            identity: Identity::default(),
            metrics_bytes: 10 * step,
            events_bytes: step,
        }
    }

    fn open(folder: &Path) -> Checkpoints {
        Checkpoints::open(folder, 2).unwrap()
    }

    fn save(checkpoints: &Checkpoints, step: u64) -> Checkpoint {
        let write = |folder: &Path| {
            fs::write(folder.join("state"), format!("state {step}"))
                .map_err(|source| RunError::io(folder, source))
        };
        checkpoints.save(position(step), write).unwrap()
    }

    #[test]
    fn the_newest_comes_back_and_old_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = open(folder.path());
        assert_eq!(checkpoints.newest().unwrap(), None);
        let saved: Vec<_> = [5, 10, 100].map(|step| save(&checkpoints, step)).into();
        let found = checkpoints.newest().unwrap().unwrap();
        assert_eq!(found, saved[2]);
        assert_eq!(found.position, position(100));
        assert_eq!(fs::read_to_string(found.folder.join("state")).unwrap(), "state 100");
        let kept: Vec<u64> = checkpoints.steps().unwrap().iter().map(|(step, _)| *step).collect();
        assert_eq!(kept, [10, 100]);
    }

    #[test]
    fn half_written_ones_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = open(folder.path());
        save(&checkpoints, 1);
        let cut = save(&checkpoints, 2);
        fs::write(cut.folder.join("state"), "st").unwrap();
        assert_eq!(checkpoints.newest().unwrap().unwrap().position.step, 1);
        fs::remove_file(cut.folder.join(MANIFEST)).unwrap();
        assert_eq!(checkpoints.newest().unwrap().unwrap().position.step, 1);

        let half = folder.path().join("checkpoints/.step-000000003");
        fs::create_dir(&half).unwrap();
        let reopened = open(folder.path());
        assert!(!half.exists());
        assert_eq!(reopened.newest().unwrap().unwrap().position.step, 1);
    }

    #[test]
    fn where_none_can_be_read_the_newest_ones_reason_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = open(folder.path());
        save(&checkpoints, 1);
        let newest = save(&checkpoints, 2).folder;
        fs::write(folder.path().join("checkpoints/step-000000001/state"), "").unwrap();
        let manifest = newest.join(MANIFEST);
        let later =
            fs::read_to_string(&manifest).unwrap().replace("\"format\": 1", "\"format\": 9");
        fs::write(&manifest, later).unwrap();
        let error = checkpoints.newest().unwrap_err().to_string();
        assert!(error.contains("step-000000002: checkpoint.json: format is 9"), "{error}");
        assert!(newest.exists() && !checkpoints.is_empty().unwrap());
    }

    #[test]
    fn a_later_one_that_cannot_be_read_does_not_push_out_what_can() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(folder.path(), 1).unwrap();
        let later = save(&checkpoints, 9).folder;
        fs::remove_file(later.join(MANIFEST)).unwrap();
        for step in [5, 6] {
            save(&checkpoints, step);
            assert_eq!(checkpoints.newest().unwrap().unwrap().position.step, step);
        }
        assert_eq!(checkpoints.steps().unwrap().len(), 2);
        save(&checkpoints, 9);
        assert_eq!(checkpoints.newest().unwrap().unwrap().position.step, 9);
        assert_eq!(checkpoints.steps().unwrap().len(), 1);
    }

    #[test]
    fn a_write_that_fails_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = open(folder.path());
        save(&checkpoints, 1);
        let refused = |path: &Path| Err(RunError::io(path, io::Error::other("disk full")));
        assert!(checkpoints.save(position(2), refused).is_err());
        assert_eq!(checkpoints.newest().unwrap().unwrap().position.step, 1);
    }

    #[test]
    fn the_same_step_can_be_saved_again() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = open(folder.path());
        save(&checkpoints, 7);
        save(&checkpoints, 7);
        assert_eq!(checkpoints.newest().unwrap().unwrap().position.step, 7);
    }
}
