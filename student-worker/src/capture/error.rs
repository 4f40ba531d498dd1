//! Why labels cannot be captured, or a capture cannot be trained on.

use std::path::{Path, PathBuf};

use crate::{recipe::RecipeError, run_folder::RunError};

/// Why labels cannot be captured, or a capture cannot be trained on.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file system refused.
    #[error(transparent)]
    Io(#[from] RunError),
    /// The recipe has no labels to capture, or what the capture fills in does not go with the rest.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// Another process writes there.
    #[error(
        "--out: another capture is at work in {}; wait for its end or name another folder",
        folder.display()
    )]
    Busy {
        /// The folder.
        folder: PathBuf,
    },
    /// A capture is there already.
    #[error(
        "--out: {} holds a capture already; go on with it (--resume) or name another folder",
        folder.display()
    )]
    Occupied {
        /// The folder.
        folder: PathBuf,
    },
    /// Something else is there.
    #[error(
        "--out: {} is no capture and not empty (there is {found:?}); name another folder",
        folder.display()
    )]
    Foreign {
        /// The folder.
        folder: PathBuf,
        /// Something in it.
        found: String,
    },
    /// What is in the folder was captured with other values.
    #[error("{key} is {wanted}, but the capture in {} was made with {captured}", folder.display())]
    Mismatch {
        /// The folder.
        folder: PathBuf,
        /// The key of the recipe, or what follows from several of them.
        key: String,
        /// The value now.
        wanted: String,
        /// The capture's.
        captured: String,
    },
    /// The folder is not there, or holds no capture.
    #[error("teacher.dir: {} is no capture: {reason}", folder.display())]
    Missing {
        /// The folder.
        folder: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The capture was not made to its end.
    #[error(
        "teacher.dir: the capture in {} is incomplete; finish it first (student-worker capture \
         --resume)",
        folder.display()
    )]
    Incomplete {
        /// The folder.
        folder: PathBuf,
    },
    /// A file does not hold what was written.
    #[error("{}: damaged: {reason}", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Labels came that cannot be stored as they are.
    #[error("request {request}: its labels cannot be stored: {reason}")]
    Unstorable {
        /// Which request.
        request: u64,
        /// Why.
        reason: String,
    },
}

impl CaptureError {
    pub(super) fn damaged(file: &Path, reason: impl Into<String>) -> Self {
        Self::Damaged { file: file.to_owned(), reason: reason.into() }
    }
}
