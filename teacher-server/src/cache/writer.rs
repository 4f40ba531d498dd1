//! The thread that writes the tier on disk, and what it and those who read tell each other.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::Receiver,
    },
    time::{Duration, Instant},
};

use tracing::warn;

use super::{
    Key,
    store::{Store, is_damage},
};
use crate::{metrics as names, output::Output};

/// What a row takes beside its output, in memory.
const OVERHEAD: usize = 128;
/// Between two warnings about the disk.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// What the writer is told.
pub(super) enum Message {
    Rows(Vec<(Key, Output)>),
    /// The file of that generation is damaged.
    Damaged(u64),
    Close,
}

/// What readers and the writer tell each other.
#[derive(Default)]
pub(super) struct Shared {
    /// Grows when the file is started anew.
    pub(super) generation: AtomicU64,
    /// Bytes of outputs that wait for the writer.
    pub(super) waiting: AtomicUsize,
    /// Set while the writer has been told of damage and has not dealt with it.
    pub(super) damaged: AtomicBool,
    /// Bytes of the file that rows take.
    pub(super) used: AtomicU64,
}

/// The thread that writes.
pub(super) struct Writer {
    pub(super) file: PathBuf,
    pub(super) bytes: u64,
    /// None: the file could not be started anew, and nothing is written any more.
    pub(super) store: Option<Store>,
    pub(super) shared: Arc<Shared>,
    pub(super) complaint: Complaint,
}

impl Writer {
    pub(super) fn run(mut self, messages: &Receiver<Message>) {
        for message in messages {
            match message {
                Message::Rows(rows) => {
                    self.write(&rows);
                    self.shared.waiting.fetch_sub(size(&rows), Ordering::SeqCst);
                }
                Message::Damaged(generation) => {
                    self.shared.damaged.store(false, Ordering::SeqCst);
                    if generation == self.shared.generation.load(Ordering::SeqCst) {
                        self.start_anew();
                    }
                }
                Message::Close => return,
            }
        }
    }

    fn write(&mut self, rows: &[(Key, Output)]) {
        let Some(store) = &mut self.store else { return skipped("failed", rows.len()) };
        match store.write(rows) {
            Ok(left_out) => skipped("full", left_out),
            Err(error) => {
                skipped("failed", rows.len());
                if is_damage(&error) {
                    warn!(file = %self.file.display(), %error, "the cache's disk tier is damaged");
                    self.start_anew();
                } else {
                    self.complaint.make("the cache's disk tier cannot be written", &error);
                }
            }
        }
        self.gauge();
    }

    fn start_anew(&mut self) {
        metrics::counter!(names::CACHE_CORRUPT).increment(1);
        // Closed before its file goes.
        self.store = None;
        let store = Store::anew(&self.file, self.bytes);
        self.shared.generation.fetch_add(1, Ordering::SeqCst);
        match store {
            Ok(store) => self.store = Some(store),
            Err(error) => warn!(%error, "the cache's disk tier is off: it cannot be started anew"),
        }
        self.gauge();
    }

    pub(super) fn gauge(&self) {
        let bytes = self.store.as_ref().map_or(0, Store::used_bytes);
        metrics::gauge!(names::CACHE_BYTES, "tier" => "disk").set(bytes as f64);
        self.shared.used.store(u64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
    }
}

/// What rows take in memory until they are written.
pub(super) fn size(rows: &[(Key, Output)]) -> usize {
    rows.iter().map(|(_, output)| size_of_val::<[f32]>(output) + OVERHEAD).sum()
}

/// Counts rows that are not written.
pub(super) fn skipped(reason: &'static str, rows: usize) {
    metrics::counter!(names::CACHE_UNWRITTEN, "reason" => reason).increment(rows as u64);
}

/// A warning that is not repeated more often than it is read.
#[derive(Default)]
pub(super) struct Complaint(Mutex<Option<Instant>>);

impl Complaint {
    pub(super) fn make(&self, what: &'static str, error: &rusqlite::Error) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() > WARN_EVERY) {
            *last = Some(Instant::now());
            warn!(%error, "{what}");
        }
    }
}
