//! One run at a time in a folder.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    path::Path,
};

use super::RunError;

/// ENOLCK: what a network file system without its lock service answers.
const NO_LOCKS: i32 = 37;

/// The lock on a folder: held until dropped, and let go by the system when the process ends,
/// however it ends. The file stays; it means nothing by itself.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
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
        let failed = |source| RunError::io(path, source);
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(source))
                if source.kind() == io::ErrorKind::Unsupported
                    || source.raw_os_error() == Some(NO_LOCKS) =>
            {
                tracing::warn!(file = %path.display(), "the file system has no locks");
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        Ok(Some(Self { _file: file }))
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
