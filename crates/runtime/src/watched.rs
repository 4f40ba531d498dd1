//! Files that are read again when they change: certificates, lists of clients.
//!
//! They are compared by content and not by time, so that a mounted Secret that is swapped by a link,
//! or a file that is put back as it was, is seen as what it is. A change counts when two looks have seen the
//! same, so that a file that is being written is not taken for a short one. What cannot be read or used
//! leaves things as they are, so a certificate whose key has not been written yet changes nothing.

use std::{
    fs::File,
    hash::{BuildHasher as _, RandomState},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use crate::config::ConfigError;

/// Bytes that one file may have.
const MAX_BYTES: u64 = 16 << 20;

/// Makes a value of the contents of files.
type Make<T> = dyn Fn(&[Vec<u8>]) -> Result<T, ConfigError> + Send + Sync;

/// A value that is made of files, as they were last fit for it.
pub struct Watched<T> {
    files: Vec<PathBuf>,
    make: Box<Make<T>>,
    current: RwLock<Arc<T>>,
    seen: Mutex<Seen>,
    hasher: RandomState,
}

/// Hashes of the contents, or of why they cannot be read.
#[derive(Debug)]
struct Seen {
    /// What was taken last, or refused.
    taken: u64,
    /// What the last look saw.
    last: u64,
}

/// What a look at the files came to.
#[derive(Debug)]
pub enum Look {
    /// They are as they were when they were taken last, or have changed since the last look and may go on
    /// doing so.
    Same,
    /// They have changed, and so has the value.
    Changed,
    /// They have changed to what cannot be used; the value stays.
    Refused(ConfigError),
}

impl<T> std::fmt::Debug for Watched<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Neither contents nor what is made of them: they may be secret.
        formatter.debug_struct("Watched").field("files", &self.files).finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> Watched<T> {
    /// Reads the files and makes the value of them, in the order that they are given in.
    ///
    /// # Errors
    /// If a file cannot be read, is larger than 16 MiB, or `make` refuses the contents.
    pub fn open(
        files: Vec<PathBuf>,
        make: impl Fn(&[Vec<u8>]) -> Result<T, ConfigError> + Send + Sync + 'static,
    ) -> Result<Self, ConfigError> {
        let hasher = RandomState::new();
        let contents = read(&files)?;
        let taken = hasher.hash_one(&contents);
        let seen = Seen { taken, last: taken };
        let current = RwLock::new(Arc::new(make(&contents)?));
        Ok(Self { files, make: Box::new(make), current, seen: Mutex::new(seen), hasher })
    }

    /// The value.
    pub fn current(&self) -> Arc<T> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the files again.
    pub fn look(&self) -> Look {
        let read = read(&self.files);
        let now = match &read {
            Ok(contents) => self.hasher.hash_one(contents),
            Err(error) => self.hasher.hash_one(error.to_string()),
        };
        {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let steady = std::mem::replace(&mut seen.last, now) == now;
            if seen.taken == now || !steady {
                return Look::Same;
            }
            seen.taken = now;
        }
        match read.and_then(|contents| (self.make)(&contents)) {
            Ok(value) => {
                let value = Arc::new(value);
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = value;
                Look::Changed
            }
            Err(error) => Look::Refused(error),
        }
    }

    /// Looks again and again, and tells of every look that saw a change. Runs until dropped.
    pub async fn watch(self: Arc<Self>, every: Duration, told: impl Fn(Result<(), ConfigError>)) {
        loop {
            tokio::time::sleep(every).await;
            let own = Arc::clone(&self);
            // A file system that hangs keeps a thread of its own.
            match tokio::task::spawn_blocking(move || own.look()).await {
                Ok(Look::Changed) => told(Ok(())),
                Ok(Look::Refused(error)) => told(Err(error)),
                Ok(Look::Same) => {}
                // The process is ending.
                Err(_) => return,
            }
        }
    }
}

fn read(files: &[PathBuf]) -> Result<Vec<Vec<u8>>, ConfigError> {
    files.iter().map(|file| read_bounded(file)).collect()
}

/// Reads a small file.
///
/// # Errors
/// If it cannot be read or is larger than 16 MiB; the file is named.
pub fn read_bounded(file: &Path) -> Result<Vec<u8>, ConfigError> {
    let mut contents = Vec::new();
    let read =
        File::open(file).and_then(|opened| opened.take(MAX_BYTES + 1).read_to_end(&mut contents));
    let read = read.and_then(|bytes| match bytes as u64 > MAX_BYTES {
        true => Err(io::Error::other(format!("it has more than {MAX_BYTES} bytes"))),
        false => Ok(()),
    });
    read.map_err(|source| ConfigError::Read { file: file.display().to_string(), source })?;
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// The number in a file.
    fn number(file: &Path) -> Result<Watched<u32>, ConfigError> {
        Watched::open(vec![file.to_owned()], |contents| {
            let text = String::from_utf8_lossy(&contents[0]);
            text.trim().parse().map_err(|_| ConfigError::Value {
                key: "number".to_owned(),
                reason: format!("is {text:?}"),
            })
        })
    }

    #[test]
    fn what_changes_is_taken_and_what_cannot_be_used_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("number");
        assert!(number(&file).unwrap_err().to_string().contains("number: cannot be read"));
        fs::write(&file, "x").unwrap();
        assert_eq!(number(&file).unwrap_err().to_string(), "number: is \"x\"");

        fs::write(&file, "1").unwrap();
        let watched = number(&file).unwrap();
        assert!(matches!(watched.look(), Look::Same));
        // As it is being written, then as it is.
        for half in ["2", "23", ""] {
            fs::write(&file, half).unwrap();
            assert!(matches!(watched.look(), Look::Same));
        }
        fs::write(&file, "2").unwrap();
        assert!(matches!(watched.look(), Look::Same));
        assert!(matches!(watched.look(), Look::Changed));
        assert_eq!(*watched.current(), 2);
        // Each fault is told of once.
        let twice = || {
            assert!(matches!(watched.look(), Look::Same));
            watched.look()
        };
        fs::write(&file, "half").unwrap();
        assert!(matches!(twice(), Look::Refused(_)));
        assert!(matches!(watched.look(), Look::Same));
        fs::remove_file(&file).unwrap();
        assert!(matches!(twice(), Look::Refused(ConfigError::Read { .. })));
        assert!(matches!(watched.look(), Look::Same));
        assert_eq!(*watched.current(), 2);
        fs::write(&file, "3").unwrap();
        assert!(matches!(twice(), Look::Changed));
        assert_eq!(*watched.current(), 3);
    }

    #[test]
    fn a_file_without_an_end_is_refused() {
        let endless = Watched::open(vec!["/dev/zero".into()], |_| Ok(()));
        assert!(endless.unwrap_err().to_string().contains("more than 16777216 bytes"));
    }
}
