//! What is in a folder before a run starts in it, and whether the run may.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

use super::{
    Existing, METRICS, OUTCOME, RECIPE, RunError,
    checkpoint::{Checkpoint, Checkpoints},
    lock::Lock,
    report::REPORT,
};
use crate::recipe::identity::{Difference, Identity};

/// What decides the weights of the run in a folder, from its start on.
pub(super) const IDENTITY: &str = "identity.json";
/// Without it a run has not ended, whatever it says.
const MODEL: &str = "model.safetensors";

/// A folder that a run may start in. Locked where it is there already; it is not made for a run
/// that may not start after all.
#[derive(Debug)]
pub struct Claim {
    pub(super) folder: PathBuf,
    pub(super) existing: Existing,
    lock: Option<Lock>,
    found: Found,
}

impl Claim {
    /// Looks at what is there. The teacher need not be known yet: its part in `identity` is left
    /// out of the comparison.
    ///
    /// # Errors
    /// If another run is at work in the folder, it holds a run that must not be touched or that
    /// belongs to another recipe, or none of its checkpoints can be read.
    pub fn take(folder: &Path, existing: Existing, identity: &Identity) -> Result<Self, RunError> {
        let lock = if folder.is_dir() { Some(Lock::take(folder)?) } else { None };
        let found = Found::look(folder, existing)?;
        found.belongs_to(folder, |there| identity.same_but_for_teacher(there))?;
        Ok(Self { folder: folder.to_owned(), existing, lock, found })
    }

    /// The checkpoint to go on from.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.found.checkpoint.as_ref()
    }

    /// How the run in the folder ended, if it did and left everything that it should.
    pub fn outcome<T: DeserializeOwned>(&self) -> Option<T> {
        let there = [MODEL, REPORT].iter().all(|file| self.folder.join(file).is_file());
        let text = fs::read(self.folder.join(OUTCOME)).ok()?;
        serde_json::from_slice(&text).ok().filter(|_| there)
    }

    /// The lock and the checkpoint, once the folder is there and the whole identity is known.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub(super) fn enter(self, identity: &Identity) -> Result<(Lock, Option<Checkpoint>), RunError> {
        let (lock, found) = match self.lock {
            Some(lock) => (lock, self.found),
            // Somebody may have been here meanwhile.
            None => (Lock::take(&self.folder)?, Found::look(&self.folder, self.existing)?),
        };
        found.belongs_to(&self.folder, |there| identity.same_as(there))?;
        Ok((lock, found.checkpoint))
    }
}

/// What a run would go on from.
#[derive(Debug, Default)]
struct Found {
    checkpoint: Option<Checkpoint>,
    /// Of a run that has no checkpoint.
    identity: Option<Identity>,
}

impl Found {
    fn look(folder: &Path, existing: Existing) -> Result<Self, RunError> {
        let checkpoints = Checkpoints::at(folder);
        match existing {
            Existing::Refuse => {
                let files = [RECIPE, IDENTITY, METRICS];
                let occupied = files.iter().any(|file| folder.join(file).exists());
                if occupied || !checkpoints.is_empty()? {
                    return Err(RunError::Occupied { folder: folder.to_owned() });
                }
                Ok(Self::default())
            }
            Existing::Replace => Ok(Self::default()),
            Existing::Resume => match checkpoints.newest()? {
                Some(checkpoint) => Ok(Self { checkpoint: Some(checkpoint), identity: None }),
                None => Ok(Self { checkpoint: None, identity: read_identity(folder)? }),
            },
        }
    }

    fn belongs_to(
        &self,
        folder: &Path,
        same: impl Fn(&Identity) -> Result<(), Difference>,
    ) -> Result<(), RunError> {
        let (folder, identity) = match self {
            Self { checkpoint: Some(Checkpoint { folder, position }), .. } => {
                (folder.as_path(), &position.identity)
            }
            Self { identity: Some(identity), .. } => (folder, identity),
            Self { .. } => return Ok(()),
        };
        same(identity).map_err(|source| RunError::OtherRecipe { folder: folder.to_owned(), source })
    }
}

/// The identity of a run that has no checkpoint; none where there is no run.
fn read_identity(folder: &Path) -> Result<Option<Identity>, RunError> {
    let path = folder.join(IDENTITY);
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| RunError::Identity { file: path, source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RunError::io(&path, source)),
    }
}
