//! One run at a time in a folder.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    path::Path,
};

use super::RunError;

/// ENOLCK: what a network file system without its lock service answers.
const NO_LOCKS: i32 = 37;
const LOCK: &str = "run.lock";

/// The lock on a folder: held until dropped, and let go by the system when the process ends,
/// however it ends. The file stays; it means nothing by itself.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes it.
    ///
    /// # Errors
    /// [`RunError::Busy`] if another run has it.
    pub(super) fn take(folder: &Path) -> Result<Self, RunError> {
        let path = folder.join(LOCK);
        let failed = |source| RunError::io(&path, source);
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(RunError::Busy { folder: folder.to_owned() });
            }
            Err(TryLockError::Error(source))
                if source.kind() == io::ErrorKind::Unsupported
                    || source.raw_os_error() == Some(NO_LOCKS) =>
            {
                tracing::warn!(file = %path.display(), "the file system has no locks");
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        Ok(Self { _file: file })
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
