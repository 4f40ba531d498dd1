//! Files that a dataset is read from: why one cannot be used, and how one is opened.

use std::{
    fmt::Display,
    fs::File,
    io::{BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
};

use flate2::bufread::MultiGzDecoder;

use super::DataError;

/// First two bytes of a gzip stream (RFC 1952, section 2.3.1).
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Why a file cannot be used. Names the file, the field, what was found and what is accepted.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be opened, read or decompressed.
    #[error("{}: cannot be read", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A field has a value that is not accepted.
    #[error("{}: {fault}", file.display())]
    Field {
        /// The file.
        file: PathBuf,
        /// The field, its value, and what is accepted.
        fault: Fault,
    },
}

/// A value within a file that is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {found}, expected {expected}")]
pub struct Fault {
    /// The field; of one row, its number too.
    pub field: String,
    /// Its value.
    pub found: String,
    /// What is accepted.
    pub expected: String,
}

impl Fault {
    /// Of a field.
    pub(super) fn new(
        field: impl Into<String>,
        found: impl Display,
        expected: impl Into<String>,
    ) -> Self {
        Self { field: field.into(), found: found.to_string(), expected: expected.into() }
    }

    /// The same fault in one row of a file, counted from 0.
    pub(super) fn of_row(self, row: usize) -> Self {
        Self { field: format!("{} of row {row}", self.field), ..self }
    }

    /// The same fault, of a file.
    pub(super) fn in_file(self, file: &Path) -> FileError {
        FileError::Field { file: file.to_owned(), fault: self }
    }
}

impl FileError {
    /// For `map_err` on what reads `file`.
    pub(super) fn reading(file: &Path) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::Read { file: file.to_owned(), source }
    }
}

/// Finds a file in a folder, with or without `.gz`.
pub(super) fn find(folder: &Path, name: &'static str) -> Result<PathBuf, DataError> {
    [folder.join(name), folder.join(format!("{name}.gz"))]
        .into_iter()
        .find(|file| file.is_file())
        .ok_or_else(|| DataError::Missing { folder: folder.to_owned(), name })
}

/// Opens a file, plain or gzip-compressed; which of the two is seen from the first bytes, not from
/// the name.
pub(super) fn open(file: &Path) -> Result<Box<dyn Read>, FileError> {
    let failed = FileError::reading(file);
    let mut reader = BufReader::new(File::open(file).map_err(&failed)?);
    if reader.fill_buf().map_err(&failed)?.starts_with(&GZIP_MAGIC) {
        // The decoder of several members refuses what follows the first and is not gzip.
        Ok(Box::new(MultiGzDecoder::new(reader)))
    } else {
        Ok(Box::new(reader))
    }
}
