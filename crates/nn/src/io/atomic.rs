//! Files that are either the old ones or the new ones.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use crate::error::ModelError;

/// Replaces `path` by `bytes`: writes a temporary file beside it, flushes it to disk, renames it
/// over `path` and flushes the directory. A reader, or a machine that lost power, sees the old
/// file or the new one and never part of one.
///
/// # Errors
///
/// [`ModelError::Io`], naming the file; the temporary file is then gone again.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = Path::new(&temporary);
    let written = (|| {
        let mut file = File::create(temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(temporary, path)?;
        match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => File::open(parent)?.sync_all(),
            None => File::open(".")?.sync_all(),
        }
    })();
    written.map_err(|source| {
        // The write has failed already; that the leftover cannot be removed either adds nothing.
        let _ = std::fs::remove_file(temporary);
        ModelError::Io { path: path.to_owned(), source }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_a_file_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failure_names_the_file_and_cleans_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        std::fs::create_dir_all(path.join("x")).unwrap();
        let error = write_atomic(&path, b"one").unwrap_err();
        assert!(error.to_string().contains("taken"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
