//! Checkpoints: whole or not there.
//!
//! A checkpoint is written into a folder with a temporary name, put on the disk, and renamed. A
//! run that is killed in between leaves a temporary folder, which the next one removes.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::RunError;
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
    /// The checkpoints in `folder`, which is made where it is missing. Half-written ones are
    /// removed.
    pub(super) fn open(folder: PathBuf, keep: usize) -> Result<Self, RunError> {
        fs::create_dir_all(&folder).map_err(|source| RunError::io(&folder, source))?;
        let checkpoints = Self { folder, keep };
        for (name, path) in checkpoints.entries()? {
            if name.starts_with('.') {
                fs::remove_dir_all(&path).map_err(|source| RunError::io(&path, source))?;
            }
        }
        Ok(checkpoints)
    }

    /// Removes all of them, for a run that starts anew.
    pub(super) fn clear(&self) -> Result<(), RunError> {
        for (_, path) in self.steps()? {
            fs::remove_dir_all(&path).map_err(|source| RunError::io(&path, source))?;
        }
        Ok(())
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
            // Incomplete, or of a run that this one replaces.
            fs::remove_dir_all(&folder).map_err(failed(&folder))?;
        }
        fs::rename(&partial, &folder).map_err(failed(&folder))?;
        sync(&self.folder).map_err(failed(&self.folder))?;
        self.prune()?;
        Ok(Checkpoint { folder, position: manifest.position })
    }

    /// The newest complete checkpoint. Incomplete ones are passed over, with a warning.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn newest(&self) -> Result<Option<Checkpoint>, RunError> {
        for (_, folder) in self.steps()?.into_iter().rev() {
            match read(&folder) {
                Ok(position) => return Ok(Some(Checkpoint { folder, position })),
                Err(reason) => {
                    tracing::warn!(checkpoint = %folder.display(), %reason, "checkpoint passed over");
                }
            }
        }
        Ok(None)
    }

    fn prune(&self) -> Result<(), RunError> {
        let steps = self.steps()?;
        let surplus = steps.len().saturating_sub(self.keep);
        for (_, path) in steps.into_iter().take(surplus) {
            fs::remove_dir_all(&path).map_err(|source| RunError::io(&path, source))?;
        }
        Ok(())
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
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_dir() {
                entries.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
            }
        }
        Ok(entries)
    }
}

/// Reads a checkpoint's manifest and checks that its files are there in full.
fn read(folder: &Path) -> Result<Position, String> {
    let text = fs::read(folder.join(MANIFEST)).map_err(|error| format!("{MANIFEST}: {error}"))?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|error| format!("{MANIFEST}: {error}"))?;
    if manifest.format != FORMAT {
        return Err(format!("{MANIFEST}: format is {}, expected {FORMAT}", manifest.format));
    }
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
        Checkpoints::open(folder.to_owned(), 2).unwrap()
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

        fs::create_dir(folder.path().join(".step-000000003")).unwrap();
        let reopened = open(folder.path());
        assert!(!folder.path().join(".step-000000003").exists());
        assert_eq!(reopened.newest().unwrap().unwrap().position.step, 1);
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
