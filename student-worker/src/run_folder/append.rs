//! A file that only grows, and that can be cut back to a length known to be whole.

use std::{
    fs::{File, OpenOptions},
    io::{Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use super::RunError;

/// A file, written at its end. Each write is with the operating system when it returns, for those
/// who follow the file.
#[derive(Debug)]
pub(crate) struct AppendFile {
    path: PathBuf,
    file: File,
    length: u64,
}

impl AppendFile {
    /// Opens the file and cuts it to `length` bytes: 0 starts it anew, what a checkpoint recorded
    /// drops what was written after that checkpoint. A file that has less than that, or is gone, is
    /// started anew, with a warning: nothing is trained on what is in it.
    pub(crate) fn open(path: &Path, length: u64) -> Result<Self, RunError> {
        let failed = |source| RunError::io(path, source);
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        let found = file.metadata().map_err(failed)?.len();
        let length = if found < length {
            let file = path.display();
            tracing::warn!(%file, found, expected = length, "shorter than at the checkpoint; started anew");
            0
        } else {
            length
        };
        file.set_len(length).map_err(failed)?;
        file.seek(SeekFrom::Start(length)).map_err(failed)?;
        Ok(Self { path: path.to_owned(), file, length })
    }

    /// Whether nothing is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Appends bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), RunError> {
        self.file.write_all(bytes).map_err(|source| RunError::io(&self.path, source))?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Puts everything on the disk and returns the length.
    pub(crate) fn sync(&mut self) -> Result<u64, RunError> {
        self.file.sync_data().map_err(|source| RunError::io(&self.path, source))?;
        Ok(self.length)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_follows_the_recorded_length_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut file = AppendFile::open(&path, 0).unwrap();
        file.write(b"one\n").unwrap();
        let length = file.sync().unwrap();
        file.write(b"two\n").unwrap();
        file.sync().unwrap();
        let mut file = AppendFile::open(&path, length).unwrap();
        file.write(b"three\n").unwrap();
        file.sync().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\nthree\n");
    }

    #[test]
    fn a_file_that_is_shorter_or_gone_is_started_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        for there in [Some("one\n"), None] {
            match there {
                Some(text) => fs::write(&path, text).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let mut file = AppendFile::open(&path, 100).unwrap();
            assert!(file.is_empty());
            file.write(b"two\n").unwrap();
            assert_eq!(file.sync().unwrap(), 4);
            assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
        }
    }
}
