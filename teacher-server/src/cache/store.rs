//! The SQLite file of the disk tier, as its one writer sees it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, ErrorCode, OptionalExtension as _, Transaction, params};

use super::{Key, entry};
use crate::{metrics as names, output::Output};

const PAGE: i64 = 4096;
/// Most of the bound that SQLite's log of changes may take, which are not in the file yet.
const LOG_BYTES: i64 = 64 << 20;
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
    /// Pages that the log may take, and one transaction half of them: all of it is in the log at first.
    log_pages: i64,
    file: PathBuf,
    /// Rows that came while it was full.
    came_when_full: u64,
}

/// Where a key's row lies.
pub(super) fn id(key: &Key) -> i64 {
    let (first, _) = key.0.split_first_chunk().unwrap_or((&[0; 8], &[]));
    i64::from_le_bytes(*first)
}

/// Whether the file is not what SQLite has written. The statements here are right: one that is called
/// wrong (SQLITE_ERROR), or a write that the file does not allow, is of a file whose header or tables
/// are not what they were.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    use ErrorCode::{DatabaseCorrupt, NotADatabase, ReadOnly, Unknown};
    let code = error.sqlite_error_code();
    matches!(code, Some(DatabaseCorrupt | NotADatabase | ReadOnly | Unknown))
        || matches!(error, rusqlite::Error::SqlInputError { .. })
}

/// Trusts nothing in the file, not even that SQLite has written it.
pub(super) fn distrust(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)
}

impl Store {
    /// Opens the file, or makes it. One that is damaged, or larger than the bound, is started anew.
    pub(super) fn open(file: &Path, bytes: u64) -> rusqlite::Result<Self> {
        let opened = Self::try_open(file, bytes).and_then(|store| {
            let fits = store.used_pages()? <= store.most_pages;
            Ok((store, fits))
        });
        match opened {
            Ok((store, true)) => Ok(store),
            Ok((store, false)) => {
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
                    let text = format!("{} cannot be removed: {error}", file.display());
                    return Err(failure(rusqlite::ffi::SQLITE_IOERR_DELETE, text));
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
        distrust(&connection)?;
        // The log outlives a kill; the file itself is never half-written.
        let mode = connection
            .pragma_update_and_check(None, "journal_mode", "wal", |row| row.get::<_, String>(0))?;
        if mode != "wal" {
            let text = "the file system cannot hold SQLite's write-ahead log".to_owned();
            return Err(failure(rusqlite::ffi::SQLITE_CANTOPEN, text));
        }
        connection.pragma_update(None, "synchronous", "normal")?;
        connection.pragma_update(None, "journal_size_limit", log / 2)?;
        connection.pragma_update(None, "wal_autocheckpoint", log / PAGE / 4)?;
        connection.pragma_update(None, "max_page_count", pages)?;
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, entry BLOB NOT NULL)",
        )?;
        Ok(Self {
            connection,
            most_pages: pages.saturating_sub(SLACK_PAGES),
            log_pages: log / PAGE,
            file: file.to_owned(),
            came_when_full: 0,
        })
    }

    /// Bytes that rows take, in whole pages.
    pub(super) fn used_bytes(&self) -> i64 {
        self.used_pages().unwrap_or(0) * PAGE
    }

    /// Brings the log into the file where readers have kept it from starting over.
    fn shorten_log(&self) -> rusqlite::Result<()> {
        let mut log = self.file.as_os_str().to_owned();
        log.push("-wal");
        let bytes = fs::metadata(&log).map_or(0, |file| file.len());
        if bytes > (self.log_pages * PAGE / 2).unsigned_abs() {
            // It answers whether readers are in the way, which is no failure.
            self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        }
        Ok(())
    }

    fn used_pages(&self) -> rusqlite::Result<i64> {
        used_pages(&self.connection)
    }

    /// Writes rows; how many were left out because the file is full.
    pub(super) fn write(&mut self, rows: &[(Key, Output)]) -> rusqlite::Result<usize> {
        let mut left_out = 0;
        let mut rest = rows;
        while !rest.is_empty() {
            let mut pages = 0;
            let within = rest.iter().take_while(|(_, output)| {
                // Rows lie in random order: each changes a page, and now and then one above it.
                pages += size_of_val::<[f32]>(output) as i64 / PAGE + 2;
                pages <= self.log_pages / 2
            });
            let Some((now, later)) = rest.split_at_checked(within.count()) else { break };
            if now.is_empty() {
                // One row that the log has no room for.
                left_out += 1;
                rest = &rest[1..];
                continue;
            }
            let transaction = self.connection.transaction()?;
            for (key, output) in now {
                let entry = entry::encode(key, output);
                let pages = entry.len() as i64 / PAGE + SLACK_PAGES;
                if pages > self.most_pages / 2 {
                    // It would take the place of nearly all others.
                    left_out += 1;
                    continue;
                }
                // One that is there, damaged or without what is asked for now, is not taken for a new one.
                let is_there = entry.len() <= length_at(&transaction, id(key))?;
                if !is_there && used_pages(&transaction)? + pages > self.most_pages {
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
            self.shorten_log()?;
            rest = later;
        }
        Ok(left_out)
    }
}

fn failure(code: i32, text: String) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), Some(text))
}

fn used_pages(connection: &Connection) -> rusqlite::Result<i64> {
    let count = |query| connection.prepare_cached(query)?.query_row([], |row| row.get::<_, i64>(0));
    Ok(count("PRAGMA page_count")? - count("PRAGMA freelist_count")?)
}

/// Bytes of the entry at a place; 0: there is none.
fn length_at(transaction: &Transaction<'_>, at: i64) -> rusqlite::Result<usize> {
    let mut length = transaction.prepare_cached("SELECT length(entry) FROM rows WHERE id = ?1")?;
    let found = length.query_row([at], |row| row.get::<_, Option<i64>>(0)).optional()?.flatten();
    Ok(found.and_then(|length| usize::try_from(length).ok()).unwrap_or(0))
}

/// Removes rows that lie next to a place, so that as many bytes are free; whether there are so many.
fn make_room(transaction: &Transaction<'_>, at: i64, bytes: usize) -> rusqlite::Result<bool> {
    let mut next = transaction
        .prepare_cached("SELECT id, length(entry) FROM rows WHERE id >= ?1 ORDER BY id LIMIT 1")?;
    let mut remove = transaction.prepare_cached("DELETE FROM rows WHERE id = ?1")?;
    let mut found: Vec<i64> = Vec::new();
    let mut free = 0;
    let mut from = Some(at);
    while free < bytes && found.len() < MOST_REMOVED {
        let Some(first) = from else { break };
        let row = next.query_row([first], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?)));
        match row.optional()? {
            // All the way round.
            Some((id, _)) if found.first() == Some(&id) => break,
            Some((id, length)) => {
                found.push(id);
                free += usize::try_from(length).unwrap_or(0);
                from = Some(id.checked_add(1).unwrap_or(i64::MIN));
            }
            // Past the last: on from the first.
            None if first > i64::MIN => from = Some(i64::MIN),
            None => break,
        }
    }
    let enough = free >= bytes;
    if enough {
        found.into_iter().try_for_each(|id| remove.execute([id]).map(drop))?;
    }
    Ok(enough)
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

    /// Small rows of a large batch, each on a page of its own, all in one call.
    #[test]
    fn a_large_batch_of_small_rows_keeps_to_the_bound_at_every_moment() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(&folder.path().join("rows.sqlite"), BOUND).unwrap();
        store.write(&rows(0..60_000, 10)).unwrap();
        let most = store.log_pages * PAGE;
        // Autocheckpoints let it grow to a part of its share, and one transaction beyond.
        let log = fs::metadata(folder.path().join("rows.sqlite-wal")).unwrap().len();
        assert!(log <= most as u64, "{log} of {most}");
        assert!(on_disk(folder.path()) <= BOUND);
    }

    /// A full file leaves most of what comes out, but not what it has already: that was damaged.
    #[test]
    fn a_damaged_row_of_a_full_file_is_mended() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(&folder.path().join("rows.sqlite"), 4 << 20).unwrap();
        let mut last = 0;
        while store.write(&rows(last..last + 100, 700)).unwrap() == 0 {
            last += 100;
        }
        let damage = "UPDATE rows SET entry = zeroblob(length(entry)) WHERE id = ?1";
        for number in 0..5 {
            store.connection.execute(damage, [id(&key(number))]).unwrap();
            assert!(!holds(&store, number));
        }
        assert_eq!(store.write(&rows(0..5, 700)).unwrap(), 0);
        assert!((0..5).all(|number| holds(&store, number)));
    }

    #[test]
    fn a_row_that_can_never_fit_removes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(&folder.path().join("rows.sqlite"), BOUND).unwrap();
        store.write(&rows(0..100, 10)).unwrap();
        for _ in 0..2 * TAKEN_WHEN_FULL {
            assert_eq!(store.write(&rows(1000..1001, 5 << 20)).unwrap(), 1);
        }
        assert!((0..100).all(|number| holds(&store, number)));
    }

    /// Whatever of the header is damaged: the file is started anew, or works as it is.
    #[test]
    fn a_damaged_header_never_keeps_a_server_from_starting() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rows.sqlite");
        let mut store = Store::open(&file, BOUND).unwrap();
        store.write(&rows(0..50, 10)).unwrap();
        drop(store);
        let whole = fs::read(&file).unwrap();
        for at in (0..100).chain(whole.len().min(3900)..whole.len().min(4096)) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x15;
            fs::write(&file, bytes).unwrap();
            let mut store = Store::open(&file, BOUND).unwrap();
            if let Err(error) = store.write(&rows(50..60, 10)) {
                assert!(is_damage(&error), "byte {at}: {error}");
            }
        }
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
