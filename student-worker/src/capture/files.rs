//! Reading the files of a capture: their hashes, and the blocks of `labels.bin`.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use super::{
    CaptureError,
    block::{self, Block, Found},
    manifest::{FileFacts, Manifest},
};
use crate::{recipe::identity::hex, run_folder::RunError};

/// The file of labels.
pub(super) const LABELS: &str = "labels.bin";

/// A file that is read from its beginning to its end, and hashed on the way.
#[derive(Debug)]
pub(super) struct Hashed {
    path: PathBuf,
    file: BufReader<File>,
    hash: Sha256,
    length: u64,
    at: u64,
}

impl Hashed {
    /// Opens a file of a capture's folder.
    pub(super) fn open(folder: &Path, name: &str) -> Result<Self, CaptureError> {
        let path = folder.join(name);
        let opened = File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
        match opened {
            Ok((length, file)) => {
                let file = BufReader::with_capacity(1 << 20, file);
                Ok(Self { path, file, hash: Sha256::new(), length, at: 0 })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(CaptureError::damaged(&path, "it is missing"))
            }
            Err(source) => Err(RunError::io(&path, source).into()),
        }
    }

    /// Where the next block begins.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// The next block, or what is there instead.
    pub(super) fn block(&mut self) -> Result<Found, CaptureError> {
        let before = self.at;
        let found = block::read(self, self.length - before);
        found.map_err(|source| RunError::io(&self.path, source).into())
    }

    /// Reads on to the end, and compares the whole with what it must be.
    ///
    /// # Errors
    /// If it is something else.
    pub(super) fn finish(self, expected: &FileFacts) -> Result<(), CaptureError> {
        let path = self.path.clone();
        let found = self.facts()?;
        if found.bytes != expected.bytes {
            let reason = format!("{} bytes, expected {}", found.bytes, expected.bytes);
            return Err(CaptureError::damaged(&path, reason));
        }
        if found.sha256 != expected.sha256 {
            let reason = format!("its SHA-256 is {}, expected {}", found.sha256, expected.sha256);
            return Err(CaptureError::damaged(&path, reason));
        }
        Ok(())
    }

    /// Reads on to the end; length and hash of the whole.
    pub(super) fn facts(mut self) -> Result<FileFacts, CaptureError> {
        let read = io::copy(&mut self, &mut io::sink());
        read.map_err(|source| RunError::io(&self.path, source))?;
        Ok(FileFacts { bytes: self.at, sha256: hex(&self.hash.finalize()) })
    }
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.at += count as u64;
        Ok(count)
    }
}

/// Checks that the files of a complete capture are those that it was made with; with `labels`, is
/// shown every block of them with its place.
///
/// # Errors
/// Names the file that is something else, and says what is wrong with it.
pub(super) fn verify(
    folder: &Path,
    manifest: &Manifest,
    mut see: impl FnMut(u64, &Block) -> Result<(), String>,
) -> Result<(), CaptureError> {
    for (name, facts) in &manifest.files {
        // A name is a file's in this folder, whoever wrote the manifest.
        if Path::new(name).components().count() != 1 || name.starts_with('.') {
            let file = folder.join(super::manifest::MANIFEST);
            return Err(CaptureError::damaged(&file, format!("files has {name:?}")));
        }
        let mut file = Hashed::open(folder, name)?;
        if name == LABELS {
            let damaged = |reason: String| CaptureError::damaged(&folder.join(LABELS), reason);
            loop {
                let at = file.at();
                match file.block()? {
                    Found::Block(block) => see(at, &block).map_err(damaged)?,
                    Found::End => break,
                    Found::Torn => return Err(damaged(format!("it ends within a block at {at}"))),
                    Found::Damaged(reason) => return Err(damaged(format!("{reason}, at {at}"))),
                }
            }
        }
        file.finish(facts)?;
    }
    Ok(())
}
