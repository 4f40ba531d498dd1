//! One run at a time in a folder.

use std::path::Path;

use stillhouse_runtime::lock::FileLock;

use super::RunError;

/// The lock on a folder.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: FileLock,
}

impl Lock {
    /// Takes that of a run.
    ///
    /// # Errors
    /// [`RunError::Busy`] if another run has it.
    pub(super) fn take(folder: &Path) -> Result<Self, RunError> {
        let lock = Self::of_file(&folder.join("run.lock"))?;
        lock.ok_or_else(|| RunError::Busy { folder: folder.to_owned() })
    }

    /// Takes the lock on a file, which is made where it is missing; none if another process has it.
    ///
    /// # Errors
    /// If the file system refuses.
    pub(crate) fn of_file(path: &Path) -> Result<Option<Self>, RunError> {
        let lock = FileLock::take(path).map_err(|source| RunError::io(path, source))?;
        Ok(lock.map(|file| Self { _file: file }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_one_runs_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let held = Lock::take(folder.path()).unwrap();
        assert!(matches!(Lock::take(folder.path()), Err(RunError::Busy { .. })));
        drop(held);
        Lock::take(folder.path()).unwrap();
    }
}
