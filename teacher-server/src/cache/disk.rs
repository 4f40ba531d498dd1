//! The tier on disk: an SQLite file that outlives the process and never grows beyond its bound.
//!
//! One table, `rows(id, entry)`: `id` is the first 8 bytes of a key, so that rows lie in random
//! order, and `entry` is what [`super::entry`] makes. Two keys that share an `id` take turns.
//!
//! A full tier takes one in 16 of the rows that come, in the place of those that lie
//! next to it: rows chosen at random. So a data set larger than the tier keeps most of what is there
//! from epoch to epoch, where the least recently used would have gone just before it is asked for
//! again.
//!
//! Labels never wait for the disk: a row that the writer has no time for is not written. Whatever is
//! wrong with the file, the row counts as a miss; a file that SQLite calls damaged is started anew.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::Ordering,
        mpsc::{self, Sender},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, OptionalExtension as _};
use stillhouse_runtime::lock::FileLock;
use tracing::{info, warn};

use super::{
    Key,
    entry::{self, Unusable},
    store::{Store, distrust, id, is_damage},
    writer::{Complaint, Message, Shared, Writer, size, skipped},
};
use crate::{hex::hex, metrics as names, output::Output};

/// Outputs that may wait for the writer; what comes beyond it is not written.
const WAITING_BYTES: usize = 64 << 20;
/// The same that the writer is given at a time, beyond the last of them.
const MESSAGE_BYTES: usize = 4 << 20;
/// Connections that read; more requests than that at once open more, and close them.
const READERS_KEPT: usize = 8;
/// How long a reader waits for the writer.
const BUSY: Duration = Duration::from_secs(2);

/// Why the disk tier could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The folder cannot be made, read or written.
    #[error("cache.disk_dir: {}: {source}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another server has it.
    #[error(
        "cache.disk_dir: {} is in use by another process; each teacher server needs its own",
        folder.display()
    )]
    Busy {
        /// The folder.
        folder: PathBuf,
    },
    /// SQLite cannot work there.
    #[error("cache.disk_dir: {}: {source}", file.display())]
    Database {
        /// The file.
        file: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
}

/// An open tier. Readers are whoever asks; one thread writes.
pub(crate) struct Disk {
    file: PathBuf,
    /// Connections for reading, each with the generation of the file that it reads.
    readers: Mutex<Vec<(u64, Connection)>>,
    queue: Sender<Message>,
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
    complaint: Complaint,
    _lock: FileLock,
}

impl Disk {
    /// Opens the tier of one teacher in a folder, which is made where it is missing. What other
    /// teachers have left there is removed.
    pub(crate) fn open(folder: &Path, bytes: u64, fingerprint: &[u8]) -> Result<Self, DiskError> {
        let failed = |source| DiskError::Folder { folder: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(failed)?;
        let lock = FileLock::take(&folder.join("cache.lock")).map_err(failed)?;
        let lock = lock.ok_or_else(|| DiskError::Busy { folder: folder.to_owned() })?;
        let teacher: String = hex(&fingerprint[..fingerprint.len().min(8)]);
        let name = format!("rows-{}-{teacher}.sqlite", env!("CARGO_PKG_VERSION"));
        remove_others(folder, &name).map_err(failed)?;
        let file = folder.join(name);
        let store = Store::open(&file, bytes)
            .map_err(|source| DiskError::Database { file: file.clone(), source })?;
        info!(file = %file.display(), bytes = store.used_bytes(), "the cache's disk tier is open");

        let (queue, messages) = mpsc::channel();
        let shared = Arc::new(Shared::default());
        let writer = Writer {
            file: file.clone(),
            bytes,
            store: Some(store),
            shared: Arc::clone(&shared),
            complaint: Complaint::default(),
        };
        writer.gauge();
        let writer = thread::Builder::new()
            .name("cache-writer".to_owned())
            .spawn(move || writer.run(&messages))
            .map_err(failed)?;
        Ok(Self {
            file,
            readers: Mutex::default(),
            queue,
            shared,
            writer: Mutex::new(Some(writer)),
            complaint: Complaint::default(),
            _lock: lock,
        })
    }

    /// The outputs of keys that are there; of those that it comes to while `go_on`, which it asks after each,
    /// says so. Blocks.
    pub(crate) fn read(&self, keys: &[Key], go_on: impl Fn() -> bool) -> Vec<Option<Output>> {
        let mut outputs = vec![None; keys.len()];
        let generation = self.shared.generation.load(Ordering::SeqCst);
        let result = self.reader(generation).and_then(|connection| {
            {
                let mut select =
                    connection.prepare_cached("SELECT entry FROM rows WHERE id = ?1")?;
                for (key, output) in keys.iter().zip(&mut outputs) {
                    *output = select
                        .query_row([id(key)], |row| Ok(decode(key, row.get_ref(0)?.as_blob().ok())))
                        .optional()?
                        .flatten();
                    if !go_on() {
                        break;
                    }
                }
            }
            Ok(connection)
        });
        match result {
            Ok(connection) => {
                let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
                if readers.len() < READERS_KEPT {
                    readers.push((generation, connection));
                }
            }
            Err(error) if is_damage(&error) => self.tell_of_damage(generation, &error),
            Err(error) => self.complaint.make("the cache's disk tier cannot be read", &error),
        }
        outputs
    }

    fn reader(&self, generation: u64) -> rusqlite::Result<Connection> {
        {
            let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
            // Those of an earlier generation read a file that is gone.
            readers.retain(|(of, _)| *of == generation);
            if let Some((_, connection)) = readers.pop() {
                return Ok(connection);
            }
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.file, flags)?;
        connection.busy_timeout(BUSY)?;
        distrust(&connection)?;
        Ok(connection)
    }

    fn tell_of_damage(&self, generation: u64, error: &rusqlite::Error) {
        if !self.shared.damaged.swap(true, Ordering::SeqCst) {
            warn!(file = %self.file.display(), %error, "the cache's disk tier is damaged");
            drop(self.queue.send(Message::Damaged(generation)));
        }
    }

    /// Has outputs written, if the writer has time.
    pub(crate) fn write(&self, mut rows: Vec<(Key, Output)>) {
        while !rows.is_empty() {
            let mut bytes = 0;
            let fits = rows.iter().take_while(|row| {
                let before = bytes;
                bytes += size(std::slice::from_ref(row));
                before < MESSAGE_BYTES
            });
            let rest = rows.split_off(fits.count());
            self.write_some(std::mem::replace(&mut rows, rest));
        }
    }

    fn write_some(&self, rows: Vec<(Key, Output)>) {
        let bytes = size(&rows);
        let waiting = self.shared.waiting.fetch_add(bytes, Ordering::SeqCst);
        if waiting + bytes > WAITING_BYTES {
            self.shared.waiting.fetch_sub(bytes, Ordering::SeqCst);
            skipped("behind", rows.len());
        } else {
            // An error means that the tier is closed.
            drop(self.queue.send(Message::Rows(rows)));
        }
    }

    /// Bytes on the disk.
    pub(crate) fn bytes(&self) -> u64 {
        self.shared.used.load(Ordering::Relaxed)
    }

    /// Writes what is still to be written, and ends the writer. Blocks.
    pub(crate) fn close(&self) {
        // The last connection to close takes the log into the file, and only the writer's can.
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        drop(self.queue.send(Message::Close));
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            drop(writer.join());
        }
    }
}

fn decode(key: &Key, entry: Option<&[u8]>) -> Option<Output> {
    match entry::decode(key, entry.unwrap_or_default()) {
        Ok(output) => Some(output.into()),
        Err(Unusable::OtherKey) => None,
        Err(Unusable::Corrupt) => {
            metrics::counter!(names::CACHE_CORRUPT).increment(1);
            None
        }
    }
}

/// Whether a file is one that a tier has made: `rows-VERSION-FINGERPRINT.sqlite`, or beside it.
fn is_tier(name: &str) -> bool {
    let Some((stem, suffix)) = name.split_once(".sqlite") else { return false };
    let teacher = stem.strip_prefix("rows-").and_then(|stem| stem.rsplit_once('-'));
    let hex = |text: &str| text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    teacher.is_some_and(|(_, teacher)| hex(teacher))
        && ["", "-wal", "-shm", "-journal"].contains(&suffix)
}

/// Removes the tiers of other teachers and versions from a folder.
fn remove_others(folder: &Path, own: &str) -> io::Result<()> {
    for file in fs::read_dir(folder)? {
        let file = file?;
        let name = file.file_name();
        let name = name.to_string_lossy();
        if is_tier(&name) && !name.starts_with(own) && file.file_type()?.is_file() {
            info!(file = %file.path().display(), "removing another teacher's cache");
            fs::remove_file(file.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const BYTES: u64 = 32 << 20;

    fn key(number: u8) -> Key {
        Key([number; 32])
    }

    fn open(folder: &Path) -> Disk {
        Disk::open(folder, BYTES, &[1; 32]).unwrap()
    }

    /// Waits until the writer has nothing left.
    fn settle(disk: &Disk) {
        while disk.shared.waiting.load(Ordering::SeqCst) > 0 {
            thread::yield_now();
        }
    }

    #[test]
    fn what_was_written_is_read_by_the_next_process_and_another_teachers_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let disk = open(folder.path());
        disk.write(vec![(key(1), vec![1.5, -2.0].into()), (key(2), vec![].into())]);
        disk.close();
        drop(disk);
        let disk = open(folder.path());
        let found = disk.read(&[key(2), key(3), key(1)], || true);
        let found: Vec<Option<&[f32]>> = found.iter().map(Option::as_deref).collect();
        assert_eq!(found, [Some(&[][..]), None, Some(&[1.5, -2.0])]);
        disk.close();
        drop(disk);
        let other = Disk::open(folder.path(), BYTES, &[2; 32]).unwrap();
        assert_eq!(other.read(&[key(1)], || true), [None]);
        other.close();
        drop(other);
        let again = open(folder.path());
        assert_eq!(again.read(&[key(1)], || true), [None]);
        again.close();
    }

    #[test]
    fn what_nobody_waits_for_is_not_read_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let disk = open(folder.path());
        disk.write((1..5).map(|number| (key(number), vec![1.0].into())).collect());
        settle(&disk);
        let asked = std::cell::Cell::new(0);
        let go_on = || {
            asked.set(asked.get() + 1);
            asked.get() < 2
        };
        let found = disk.read(&[key(1), key(2), key(3), key(4)], go_on);
        let found: Vec<bool> = found.iter().map(Option::is_some).collect();
        assert_eq!((found, asked.get()), (vec![true, true, false, false], 2));
        disk.close();
    }

    #[test]
    fn only_what_a_tier_has_made_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let own = ["rows-2024.sqlite", "rows-export.sqlite.bak", "rows-x-0123456789abcdeg.sqlite"];
        let other =
            ["rows-0.0.1-0123456789abcdef.sqlite", "rows-0.0.1-0123456789abcdef.sqlite-wal"];
        own.iter().chain(&other).for_each(|name| fs::write(folder.path().join(name), "").unwrap());
        fs::create_dir(folder.path().join("rows-1-0123456789abcdef.sqlite")).unwrap();
        open(folder.path()).close();
        assert!(own.iter().all(|name| folder.path().join(name).exists()));
        assert!(other.iter().all(|name| !folder.path().join(name).exists()));
    }

    /// The file is overwritten under an open tier: rows are misses, and after that it works again.
    #[test]
    fn a_file_that_is_damaged_while_it_is_open_is_started_anew() {
        let folder = tempfile::tempdir().unwrap();
        let disk = open(folder.path());
        for number in 0..200 {
            disk.write(vec![(key(number), vec![f32::from(number); 1000].into())]);
        }
        settle(&disk);
        assert!(disk.read(&[key(0), key(100)], || true).iter().all(Option::is_some));
        // Connections of their own see what is on the disk by then.
        disk.readers.lock().unwrap().clear();
        for suffix in ["", "-wal"] {
            let path = PathBuf::from(format!("{}{suffix}", disk.file.display()));
            let length = fs::metadata(&path).unwrap().len() as usize;
            let mut bytes = fs::read(&path).unwrap();
            bytes[..length].iter_mut().for_each(|byte| *byte ^= 0x5a);
            fs::write(&path, bytes).unwrap();
        }
        let keys: Vec<Key> = (0..200).map(key).collect();
        let generation = || disk.shared.generation.load(Ordering::SeqCst);
        let begun = Instant::now();
        while generation() == 0 {
            assert!(begun.elapsed() < Duration::from_secs(30), "damage is noticed");
            let found = disk.read(&keys, || true);
            for (number, output) in found.iter().enumerate() {
                assert!(output.as_ref().is_none_or(|output| output[0] == number as f32));
            }
            disk.write(vec![(key(201), vec![1.0].into())]);
            thread::yield_now();
        }
        disk.write(vec![(key(7), vec![7.0].into())]);
        settle(&disk);
        assert_eq!(disk.read(&[key(7)], || true)[0].as_deref(), Some(&[7.0][..]));
        disk.close();
    }

    /// A process that is killed loses what was not written, and nothing else.
    #[test]
    fn a_copy_of_the_files_at_any_moment_is_a_whole_cache() {
        let (folder, copies) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let disk = open(folder.path());
        let mut found = 0;
        for round in 0..20_u8 {
            for number in 0..10 {
                let number = round * 10 + number;
                disk.write(vec![(key(number), vec![f32::from(number); 300].into())]);
            }
            let copy = copies.path().join(round.to_string());
            fs::create_dir(&copy).unwrap();
            // What a kill leaves: the log as it is. The index of the log is made again.
            for suffix in ["-wal", ""] {
                let name = format!("{}{suffix}", disk.file.file_name().unwrap().to_str().unwrap());
                fs::copy(folder.path().join(&name), copy.join(&name)).unwrap();
            }
            let copied = open(&copy);
            let keys: Vec<Key> = (0..200).map(key).collect();
            for (number, output) in copied.read(&keys, || true).into_iter().enumerate() {
                let Some(output) = output else { continue };
                assert_eq!(output[..], vec![number as f32; 300]);
                found += 1;
            }
            copied.close();
        }
        assert!(found > 0);
        disk.close();
    }
}
