//! One process at a time in a folder.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    path::Path,
};

/// ENOLCK: what a network file system without its lock service answers.
const NO_LOCKS: i32 = 37;

/// The lock on a file: held until dropped, and let go by the system when the process ends, however
/// it ends. The file stays; it means nothing by itself.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
}

impl FileLock {
    /// Takes the lock on a file, which is made where it is missing; none if another process has it.
    /// Where the file system has no locks there is nothing to take, and a warning.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn take(path: &Path) -> io::Result<Option<Self>> {
        let file = OpenOptions::new().create(true).write(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(source))
                if source.kind() == io::ErrorKind::Unsupported
                    || source.raw_os_error() == Some(NO_LOCKS) =>
            {
                tracing::warn!(file = %path.display(), "the file system has no locks");
            }
            Err(TryLockError::Error(source)) => return Err(source),
        }
        Ok(Some(Self { _file: file }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_locked_until_the_lock_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let held = FileLock::take(&path).unwrap().unwrap();
        assert!(FileLock::take(&path).unwrap().is_none());
        drop(held);
        assert!(FileLock::take(&path).unwrap().is_some());
        assert!(FileLock::take(&folder.path().join("none/lock")).is_err());
    }
}
