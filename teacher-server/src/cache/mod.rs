//! Labels computed once: what the models made of a row, for everybody who asks for that row.
//!
//! ```text
//! request -> memory -> disk -> (others' forward passes | its own) -> memory, disk, all who wait
//! ```
//!
//! * [`key`]: what two rows must have in common to share an output.
//! * [`memory`]: the tier that is asked first, bounded in bytes.
//! * [`disk`]: the tier that outlives the process, bounded in bytes; [`store`]: its file; [`entry`]:
//!   one row of it; [`patience`]: how long it is waited for.
//!
//! An output is cached before temperature, ensemble rule and encoding are applied, so that these
//! never cause a second forward pass. Concurrent requests for one row share the first forward pass
//! that is run for it; see [`crate::gathering`].

mod disk;
mod entry;
mod key;
mod memory;
mod patience;
mod store;
mod writer;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use disk::Disk;
use memory::Memory;
use patience::Patience;
use stillhouse_runtime::traces::Context as Trace;
use tokio::task;

pub use disk::DiskError;
pub(crate) use entry::fuzzed as fuzzed_entry;
pub(crate) use key::{Key, Keyer};

use crate::{
    gathering::{Gathering, Source},
    held::Held,
    metrics as names,
    output::{Layout, Output},
    settings::Cache as Settings,
    turns::{Leaves, Turns},
};

/// Requests that look rows up on the disk at one time.
pub(crate) const LOOKUPS: usize = 4;
/// Requests and, of each, the unit that waits, by the key of that unit.
type Waiting = HashMap<Key, Vec<(Arc<Gathering>, usize)>>;

/// What is known of rows, and who waits for those that are not.
pub(crate) struct RowCache {
    layout: Layout,
    /// None: nothing is shared.
    keyer: Option<Keyer>,
    memory: Memory,
    disk: Option<Arc<Disk>>,
    /// With the disk.
    patience: Arc<Patience>,
    waiting: Mutex<Waiting>,
    /// Set once a request has asked for the hidden states of a classifier: from then on they are
    /// kept with the logits.
    keeps_hidden: AtomicBool,
}

impl RowCache {
    /// The cache of one teacher, which `fingerprint` tells from any other.
    ///
    /// # Errors
    /// If the disk tier's folder cannot be used.
    pub(crate) fn open(
        settings: &Settings,
        fingerprint: &[u8],
        layout: Layout,
    ) -> Result<Self, DiskError> {
        let disk = match &settings.disk_dir {
            Some(folder) if settings.enabled => {
                Some(Arc::new(Disk::open(folder, settings.disk_bytes, fingerprint)?))
            }
            _ => None,
        };
        let memory_bytes = if settings.enabled { settings.memory_bytes } else { 0 };
        Ok(Self {
            layout,
            keyer: settings.enabled.then(|| Keyer::new(fingerprint)),
            memory: Memory::new(memory_bytes),
            disk,
            patience: Arc::default(),
            waiting: Mutex::default(),
            keeps_hidden: AtomicBool::new(false),
        })
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What makes the keys of rows; none where they are not shared.
    pub(crate) fn keyer(&self) -> Option<&Keyer> {
        self.keyer.as_ref()
    }

    pub(crate) fn has_disk(&self) -> bool {
        self.disk.is_some()
    }

    /// Whether the hidden states of a classifier are kept with its logits.
    pub(crate) fn keeps_hidden(&self) -> bool {
        self.keeps_hidden.load(Ordering::SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Entries are pushed and removed whole.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The output of a key in memory, if it serves the request.
    fn in_memory(&self, key: &Key, needs_hidden: bool) -> Option<Output> {
        self.memory.get(key).filter(|output| self.layout.serves(output, needs_hidden))
    }

    /// Gives a request what is in memory; the units that are missing then.
    pub(crate) fn find(&self, gathering: &Arc<Gathering>) -> Vec<usize> {
        let mut missing = Vec::new();
        let found: Vec<_> = (0..gathering.units.len())
            .filter_map(|unit| {
                let output = self.known(gathering, unit);
                if output.is_none() {
                    missing.push(unit);
                }
                Some((unit, output?))
            })
            .collect();
        gathering.fill(found, Source::Memory);
        missing
    }

    fn known(&self, gathering: &Gathering, unit: usize) -> Option<Output> {
        let wanted = &gathering.units[unit];
        if wanted.labels == 0 {
            return Some(Output::from([]));
        }
        self.in_memory(wanted.key.as_ref()?, gathering.needs_hidden)
    }

    /// Gives a request what is in memory by now, and has it wait for the rest; the units that it
    /// must queue for.
    pub(crate) fn register(&self, gathering: &Arc<Gathering>) -> Vec<usize> {
        if gathering.needs_hidden {
            self.keeps_hidden.store(true, Ordering::SeqCst);
        }
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        {
            // Under the lock: `complete` puts an output into memory before it takes this lock, so
            // that one is found here or is told to whoever waits.
            let mut waiting = self.lock();
            for unit in gathering.missing() {
                match self.known(gathering, unit) {
                    Some(output) => found.push((unit, output)),
                    None => {
                        missing.push(unit);
                        if let Some(key) = gathering.units[unit].key {
                            let waiters = waiting.entry(key).or_default();
                            waiters.push((Arc::clone(gathering), unit));
                        }
                    }
                }
            }
        }
        gathering.fill(found, Source::Memory);
        missing
    }

    /// Looks on the disk for what a request misses. What is there comes into memory, too.
    /// What is asked with is the request's; `turns` are those of lookups.
    pub(crate) async fn fetch(
        &self,
        gathering: &Arc<Gathering>,
        (client, deadline, held): (&Arc<str>, Option<Instant>, &Arc<Held>),
        turns: &Arc<Turns>,
    ) {
        let Some(disk) = &self.disk else { return };
        let Some((lookup, time)) = self.patience.begin(deadline) else { return };
        let wanted: Vec<(usize, Key)> = gathering
            .missing()
            .into_iter()
            .filter_map(|unit| Some((unit, gathering.units[unit].key?)))
            .collect();
        let keys: Vec<Key> = wanted.iter().map(|&(_, key)| key).collect();
        let (disk, patience) = (Arc::clone(disk), Arc::clone(&self.patience));
        let read = async {
            let turn = turns.take(client, keys.len() as u64).await;
            if gathering.is_over() {
                return None;
            }
            // Goes on to the row that it is at, whoever has given it up.
            let leaves = Leaves::default();
            let (gone, held) = (Arc::clone(&leaves.0), Arc::clone(held));
            let read = task::spawn_blocking(move || {
                let _under_way = (turn, lookup, held);
                disk.read(&keys, || {
                    patience.heard();
                    !gone.load(Ordering::Relaxed)
                })
            });
            read.await.ok()
        };
        // A disk that hangs keeps a few threads busy, and no request for longer than this.
        let read = tokio::time::timeout(time, read).await;
        if read.is_err() {
            self.patience.given_up();
        }
        let read = read.ok().flatten();
        let found: Vec<_> = wanted
            .into_iter()
            .zip(read.unwrap_or_default())
            .filter_map(|((unit, key), output)| {
                let output = output?;
                if !self.layout.fits(&output, gathering.units[unit].labels) {
                    // Its checksum is right, and yet it is no output of this teacher.
                    metrics::counter!(names::CACHE_CORRUPT).increment(1);
                    return None;
                }
                let serves = self.layout.serves(&output, gathering.needs_hidden);
                serves.then_some((unit, key, output))
            })
            .collect();
        for (_, key, output) in &found {
            self.memory.insert(*key, Output::clone(output));
        }
        gathering.fill(found.into_iter().map(|(unit, _, output)| (unit, output)), Source::Disk);
        self.gauge();
    }

    /// Keeps what a batch has computed, and gives it to all who wait for it.
    pub(crate) fn complete(&self, outputs: &[(Key, Output)], batch: &Trace) {
        // What is not finite is told, and computed again if it is asked for again.
        let finite = |output: &Output| output.iter().all(|value| value.is_finite());
        let kept: Vec<(Key, Output)> =
            outputs.iter().filter(|(_, output)| finite(output)).cloned().collect();
        for (key, output) in &kept {
            self.memory.insert(*key, Output::clone(output));
        }
        let mut waiters = Vec::new();
        {
            let mut waiting = self.lock();
            for (key, output) in outputs {
                let Some(waited) = waiting.remove(key) else { continue };
                let (served, rest): (Vec<_>, Vec<_>) = waited
                    .into_iter()
                    .partition(|(gathering, _)| self.layout.serves(output, gathering.needs_hidden));
                if !rest.is_empty() {
                    // They came after the launch; their own forward pass is still to come.
                    waiting.insert(*key, rest);
                }
                let output = |(gathering, unit)| (gathering, unit, Output::clone(output));
                waiters.extend(served.into_iter().map(output));
            }
        }
        waiters.sort_by_key(|(gathering, ..)| Arc::as_ptr(gathering));
        let mut waiters = waiters.into_iter().peekable();
        while let Some((gathering, unit, output)) = waiters.next() {
            let mut own = vec![(unit, output)];
            while let Some((_, unit, output)) =
                waiters.next_if(|(next, ..)| Arc::ptr_eq(next, &gathering))
            {
                own.push((unit, output));
            }
            gathering.rides(batch);
            gathering.fill(own, Source::Shared);
        }
        if let Some(disk) = &self.disk {
            disk.write(kept);
        }
        self.gauge();
    }

    /// Forgets that a request waits.
    pub(crate) fn leave(&self, gathering: &Arc<Gathering>) {
        let missing = gathering.missing();
        if missing.is_empty() {
            return;
        }
        // Each once: a request may ask for one row many times.
        let keys: HashSet<Key> =
            missing.into_iter().filter_map(|unit| gathering.units[unit].key).collect();
        let mut waiting = self.lock();
        for key in keys {
            if let Some(waiters) = waiting.get_mut(&key) {
                waiters.retain(|(other, _)| !Arc::ptr_eq(other, gathering));
                if waiters.is_empty() {
                    waiting.remove(&key);
                }
            }
        }
    }

    /// Bytes and rows in memory.
    pub(crate) fn size(&self) -> (u64, u64) {
        (self.memory.bytes(), self.memory.len() as u64)
    }

    /// Bytes on the disk, where there is that tier.
    pub(crate) fn disk_bytes(&self) -> Option<u64> {
        self.disk.as_ref().map(|disk| disk.bytes())
    }

    fn gauge(&self) {
        metrics::gauge!(names::CACHE_BYTES, "tier" => "memory").set(self.memory.bytes() as f64);
        metrics::gauge!(names::CACHE_ENTRIES).set(self.memory.len() as f64);
    }

    /// Writes what is still to be written. Blocks.
    pub(crate) fn close(&self) {
        if let Some(disk) = &self.disk {
            disk.close();
        }
    }
}

#[cfg(test)]
mod tests;
