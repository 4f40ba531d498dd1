//! The folder of a capture that is being made: who may write there, and where to go on.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use stillhouse_nn::Head;

use super::{
    CaptureError,
    block::Block,
    block::Found,
    files::{Hashed, LABELS},
    head,
    manifest::{MANIFEST, Manifest},
    requests::Requests,
};
use crate::run_folder::{Existing, RunError, append::AppendFile, lock::Lock};

const LOCK: &str = "capture.lock";
/// Bytes that a power failure may cost, at most.
const SYNC_EVERY: u64 = 64 << 20;

/// What is in a folder before labels are captured into it. Locked where it is there already; it is
/// not made for a capture that may not start after all.
#[derive(Debug)]
pub(super) struct Claim {
    folder: PathBuf,
    existing: Existing,
    lock: Option<Lock>,
    found: Option<Manifest>,
}

impl Claim {
    /// Looks at what is there. The teacher need not be known yet.
    ///
    /// # Errors
    /// If another process writes there, or something is there that must not be touched or that
    /// belongs to another recipe.
    pub(super) fn take(
        folder: &Path,
        existing: Existing,
        wanted: &Manifest,
    ) -> Result<Self, CaptureError> {
        // Nothing is written into a folder that is not for a capture, or whose capture is complete.
        let mut found = look(folder, existing)?;
        let complete = found.as_ref().is_some_and(|found| found.complete);
        let lock = if folder.is_dir() && !complete { Some(lock(folder)?) } else { None };
        if lock.is_some() {
            // Somebody may have been here meanwhile.
            found = look(folder, existing)?;
        }
        if let Some(found) = &found {
            wanted.goes_on(found, folder, false)?;
        }
        Ok(Self { folder: folder.to_owned(), existing, lock, found })
    }

    /// The capture in the folder, if it was made to its end.
    pub(super) fn complete(&self) -> Option<&Manifest> {
        self.found.as_ref().filter(|found| found.complete)
    }

    /// Begins, or goes on: writes the manifest and the head, and cuts off what a process that died
    /// left half-written.
    ///
    /// # Errors
    /// As [`Self::take`], if the labels there are damaged, or the folder cannot be written.
    pub(super) fn enter(
        self,
        wanted: Manifest,
        head: Option<&Head>,
        requests: &mut Requests,
    ) -> Result<Folder, CaptureError> {
        let folder = self.folder;
        fs::create_dir_all(&folder).map_err(|source| RunError::io(&folder, source))?;
        let (lock, found) = match self.lock {
            Some(lock) => (lock, self.found),
            // Somebody may have been here meanwhile.
            None => (lock(&folder)?, look(&folder, self.existing)?),
        };
        if let Some(found) = &found {
            wanted.goes_on(found, &folder, true)?;
        }
        wanted.write(&folder)?;
        let file = folder.join(MANIFEST);
        if let Some(head) = head {
            head::write(&folder, head).map_err(|error| {
                CaptureError::damaged(&folder.join(head::HEAD), error.to_string())
            })?;
        }
        let layout = wanted.layout().map_err(|reason| CaptureError::damaged(&file, reason))?;
        let (done, length) = if found.is_some() && folder.join(LABELS).exists() {
            whole_blocks(&folder, requests)?
        } else {
            (0, 0)
        };
        let labels = AppendFile::open(&folder.join(LABELS), length)?;
        Ok(Folder {
            path: folder,
            manifest: wanted,
            layout,
            labels,
            bytes: length,
            synced: length,
            done,
            _lock: lock,
        })
    }
}

fn lock(folder: &Path) -> Result<Lock, CaptureError> {
    let lock = Lock::of_file(&folder.join(LOCK))?;
    lock.ok_or_else(|| CaptureError::Busy { folder: folder.to_owned() })
}

/// The capture in a folder, to go on with; none where there is nothing.
fn look(folder: &Path, existing: Existing) -> Result<Option<Manifest>, CaptureError> {
    let found = Manifest::read(folder)?;
    if found.is_some() {
        let occupied = || CaptureError::Occupied { folder: folder.to_owned() };
        return if existing == Existing::Resume { Ok(found) } else { Err(occupied()) };
    }
    let failed = |source| RunError::io(folder, source);
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source).into()),
    };
    for entry in entries {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        // What a process leaves that died before it had written its manifest.
        let own = name == LOCK || name == format!("{MANIFEST}.partial");
        if !own {
            return Err(CaptureError::Foreign { folder: folder.to_owned(), found: name });
        }
    }
    Ok(None)
}

/// How many requests are answered in the file, and where it is whole to.
fn whole_blocks(folder: &Path, requests: &mut Requests) -> Result<(u64, u64), CaptureError> {
    let mut file = Hashed::open(folder, LABELS)?;
    let path = folder.join(LABELS);
    let mut done = 0;
    loop {
        let at = file.at();
        match file.block()? {
            Found::Block(block) => {
                let place = requests.place(done).filter(|place| {
                    place.epoch == block.epoch && requests.rows(*place) == block.rows
                });
                if place.is_none() {
                    let reason = format!("its rows at {at} are not those of request {done}");
                    return Err(CaptureError::damaged(&path, reason));
                }
                done += 1;
            }
            Found::End => return Ok((done, at)),
            Found::Torn => {
                tracing::warn!(file = %path.display(), at, "a torn end is cut off");
                return Ok((done, at));
            }
            Found::Damaged(reason) => {
                return Err(CaptureError::damaged(&path, format!("{reason}, at {at}")));
            }
        }
    }
}

/// A folder that labels are captured into, locked.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    manifest: Manifest,
    layout: super::record::Layout,
    labels: AppendFile,
    bytes: u64,
    synced: u64,
    done: u64,
    _lock: Lock,
}

impl Folder {
    /// Requests whose labels are stored.
    pub(super) fn done(&self) -> u64 {
        self.done
    }

    /// Bytes of `labels.bin`.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Stores the labels of the next request.
    ///
    /// # Errors
    /// If they are not what can be stored as it is, or cannot be written.
    pub(super) fn store(
        &mut self,
        epoch: u32,
        rows: Vec<u32>,
        batch: stillhouse_proto::LabelBatch,
    ) -> Result<(), CaptureError> {
        let request = self.done;
        let unstorable = |reason| CaptureError::Unstorable { request, reason };
        let mut records = Vec::new();
        self.layout.append(batch, &mut records).map_err(unstorable)?;
        let bytes = Block { epoch, rows, records }.to_bytes().map_err(unstorable)?;
        self.labels.write(&bytes)?;
        self.bytes += bytes.len() as u64;
        self.done += 1;
        if self.bytes - self.synced >= SYNC_EVERY {
            self.synced = self.labels.sync()?;
        }
        Ok(())
    }

    /// Puts what there is on the disk, to go on from.
    pub(super) fn pause(&mut self) -> Result<(), CaptureError> {
        self.synced = self.labels.sync()?;
        Ok(())
    }

    /// Writes down that all is there, last of all.
    pub(super) fn finish(mut self) -> Result<Manifest, CaptureError> {
        self.pause()?;
        let with_head = self.manifest.teacher.hidden_size.is_some();
        for name in [LABELS].into_iter().chain(with_head.then_some(head::HEAD)) {
            let facts = Hashed::open(&self.path, name)?.facts()?;
            self.manifest.files.insert(name.to_owned(), facts);
        }
        self.manifest.complete = true;
        self.manifest.write(&self.path)?;
        Ok(self.manifest)
    }
}
