//! The SQLite file of the disk tier, as its one writer sees it.

use std::{fs, io, path::Path};

use rusqlite::{Connection, ErrorCode, OptionalExtension as _, Transaction, params};

use super::{Key, entry};
use crate::{metrics as names, output::Output};

const PAGE: i64 = 4096;
/// Most of the bound that SQLite's log of changes may take, which are not in the file yet.
const LOG_BYTES: i64 = 64 << 20;
/// Most of one transaction, beyond its last row: all of it is in the log at first.
const TRANSACTION_BYTES: usize = 4 << 20;
/// Pages that a row may take beside its own bytes, where tables grow.
const SLACK_PAGES: i64 = 16;
/// A full file takes one in so many of the rows that come.
const TAKEN_WHEN_FULL: u64 = 16;
/// Rows that make room for one, at most: it may be larger than they are.
const MOST_REMOVED: usize = 256;

/// An open file.
pub(super) struct Store {
    connection: Connection,
    /// Pages that rows may take.
    most_pages: i64,
    /// Rows that came while it was full.
    came_when_full: u64,
}

/// Where a key's row lies.
pub(super) fn id(key: &Key) -> i64 {
    let (first, _) = key.0.split_first_chunk().unwrap_or((&[0; 8], &[]));
    i64::from_le_bytes(*first)
}

/// Whether the file is not what SQLite has written.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

impl Store {
    /// Opens the file, or makes it. One that is damaged, or larger than the bound, is started anew.
    pub(super) fn open(file: &Path, bytes: u64) -> rusqlite::Result<Self> {
        match Self::try_open(file, bytes) {
            Ok(store) if store.used_pages()? <= store.most_pages => Ok(store),
            Ok(store) => {
                tracing::info!(file = %file.display(), "a cache larger than cache.disk_bytes is dropped");
                drop(store);
                Self::anew(file, bytes)
            }
            Err(error) if is_damage(&error) => {
                tracing::warn!(file = %file.display(), %error, "a damaged cache is dropped");
                metrics::counter!(names::CACHE_CORRUPT).increment(1);
                Self::anew(file, bytes)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes the file, in the place of what is there.
    pub(super) fn anew(file: &Path, bytes: u64) -> rusqlite::Result<Self> {
        for suffix in ["", "-wal", "-shm"] {
            let mut path = file.as_os_str().to_owned();
            path.push(suffix);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    let text = Some(format!("{} cannot be removed: {error}", file.display()));
                    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_DELETE);
                    return Err(rusqlite::Error::SqliteFailure(code, text));
                }
                _ => {}
            }
        }
        Self::try_open(file, bytes)
    }

    fn try_open(file: &Path, bytes: u64) -> rusqlite::Result<Self> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        let log = LOG_BYTES.min(bytes / 4);
        let pages = (bytes - log) / PAGE;
        let connection = Connection::open(file)?;
        connection.pragma_update(None, "page_size", PAGE)?;
        // The log outlives a kill; the file itself is never half-written.
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "normal")?;
        connection.pragma_update(None, "journal_size_limit", log / 2)?;
        connection.pragma_update(None, "max_page_count", pages)?;
        // Nothing in the file is trusted, not even that SQLite has written it.
        connection.pragma_update(None, "trusted_schema", false)?;
        connection.pragma_update(None, "cell_size_check", true)?;
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, entry BLOB NOT NULL)",
        )?;
        Ok(Self { connection, most_pages: pages.saturating_sub(SLACK_PAGES), came_when_full: 0 })
    }

    /// Bytes that rows take, in whole pages.
    pub(super) fn used_bytes(&self) -> i64 {
        self.used_pages().unwrap_or(0) * PAGE
    }

    fn used_pages(&self) -> rusqlite::Result<i64> {
        used_pages(&self.connection)
    }

    /// Writes rows; how many were left out because the file is full.
    pub(super) fn write(&mut self, rows: &[(Key, Output)]) -> rusqlite::Result<usize> {
        let mut left_out = 0;
        let mut rest = rows;
        while !rest.is_empty() {
            let mut bytes = 0;
            let within = rest.iter().take_while(|(_, output)| {
                let before = bytes;
                bytes += size_of_val::<[f32]>(output);
                before < TRANSACTION_BYTES
            });
            let (now, later) = rest.split_at(within.count());
            let transaction = self.connection.transaction()?;
            for (key, output) in now {
                let entry = entry::encode(key, output);
                let pages = entry.len() as i64 / PAGE + SLACK_PAGES;
                if used_pages(&transaction)? + pages > self.most_pages {
                    self.came_when_full += 1;
                    let taken = self.came_when_full.is_multiple_of(TAKEN_WHEN_FULL);
                    if !taken || !make_room(&transaction, id(key), entry.len())? {
                        left_out += 1;
                        continue;
                    }
                }
                transaction
                    .prepare_cached("INSERT OR REPLACE INTO rows (id, entry) VALUES (?1, ?2)")?
                    .execute(params![id(key), entry])?;
            }
            transaction.commit()?;
            rest = later;
        }
        Ok(left_out)
    }
}

fn used_pages(connection: &Connection) -> rusqlite::Result<i64> {
    let count = |query| connection.prepare_cached(query)?.query_row([], |row| row.get::<_, i64>(0));
    Ok(count("PRAGMA page_count")? - count("PRAGMA freelist_count")?)
}

/// Removes rows that lie next to a place, until as many bytes are free; whether they are.
fn make_room(transaction: &Transaction<'_>, at: i64, bytes: usize) -> rusqlite::Result<bool> {
    let mut next = transaction
        .prepare_cached("SELECT id, length(entry) FROM rows WHERE id >= ?1 ORDER BY id LIMIT 1")?;
    let mut remove = transaction.prepare_cached("DELETE FROM rows WHERE id = ?1")?;
    let mut free = 0;
    let mut from = at;
    for _ in 0..MOST_REMOVED {
        if free >= bytes {
            return Ok(true);
        }
        let row = next.query_row([from], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?)));
        match row.optional()? {
            Some((id, length)) => {
                remove.execute([id])?;
                free += usize::try_from(length).unwrap_or(0);
                from = id;
            }
            // Past the last: on from the first, once.
            None if from > i64::MIN => from = i64::MIN,
            None => break,
        }
    }
    Ok(free >= bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: u64 = 16 << 20;

    fn key(number: u32) -> Key {
        use sha2::{Digest as _, Sha256};
        Key(Sha256::digest(number.to_le_bytes()).into())
    }

    fn rows(numbers: std::ops::Range<u32>, values: usize) -> Vec<(Key, Output)> {
        numbers.map(|number| (key(number), vec![number as f32; values].into())).collect()
    }

    fn holds(store: &Store, number: u32) -> bool {
        let query = "SELECT entry FROM rows WHERE id = ?1";
        let entry = store
            .connection
            .query_row(query, [id(&key(number))], |row| row.get::<_, Vec<u8>>(0))
            .optional()
            .unwrap();
        entry.is_some_and(|entry| entry::decode(&key(number), &entry).is_ok())
    }

    /// Bytes of the file and what lies beside it.
    fn on_disk(folder: &Path) -> u64 {
        let files = fs::read_dir(folder).unwrap();
        files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
    }

    #[test]
    fn a_full_file_stays_within_its_bound_and_keeps_most_of_what_it_has() {
        for values in [10, 700, 50_000] {
            let folder = tempfile::tempdir().unwrap();
            let mut store = Store::open(&folder.path().join("rows.sqlite"), BOUND).unwrap();
            let step = if values > 10_000 { 4 } else { 500 };
            let mut left_out = 0;
            let mut last = 0;
            while left_out == 0 {
                left_out = store.write(&rows(last..last + step, values)).unwrap();
                last += step;
            }
            let before: Vec<u32> = (0..last).filter(|&number| holds(&store, number)).collect();
            assert!(store.used_bytes() as u64 > BOUND / 3, "{} used", store.used_bytes());
            // As many again.
            let again = last..2 * last;
            for first in again.clone().step_by(step as usize) {
                store.write(&rows(first..first + step, values)).unwrap();
                assert!(on_disk(folder.path()) <= BOUND, "{values}: {}", on_disk(folder.path()));
            }
            let kept = before.iter().filter(|&&number| holds(&store, number)).count();
            let new = again.filter(|&number| holds(&store, number)).count();
            assert!(kept * 10 >= before.len() * 8, "{values}: {kept} of {}", before.len());
            assert!(new > 0, "{values}: a full file still takes some");
        }
    }

    #[test]
    fn a_file_that_is_none_or_too_large_is_started_anew() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rows.sqlite");
        fs::write(&file, vec![7; 100_000]).unwrap();
        let mut store = Store::open(&file, BOUND).unwrap();
        store.write(&rows(0..20_000, 100)).unwrap();
        drop(store);
        let store = Store::open(&file, BOUND).unwrap();
        assert!(holds(&store, 19_999), "it outlives its connection");
        drop(store);
        let smaller = Store::open(&file, 4 << 20).unwrap();
        assert!(!holds(&smaller, 19_999));
        assert!(on_disk(folder.path()) < 4 << 20);
    }
}
