//! What a person wants to see of a server: the queue, the last batches, the cache, clients and their
//! shares, and the curves of the students that are trained.
//!
//! Everything is of the last ten seconds or so, and bounded. It is counted apart from the metrics, which
//! are for machines and must not have a series for every client.

mod runs;
mod window;

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use runs::{Run, Runs};
use serde::Serialize;
use stillhouse_proto::v1::StudentReport;
use stillhouse_runtime::clock;
use window::Window;

use crate::{hex::hex, metrics as names, service::Core};

/// Batches that are shown.
const BATCHES: usize = 60;
/// Clients that are remembered.
const CLIENTS: usize = 1024;
/// A client that has asked for nothing for so long is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// How often the metric of the device is set.
const EVERY: Duration = Duration::from_secs(1);

/// The page that shows it.
pub const PAGE: &str = include_str!("page.html");

/// A forward pass.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct BatchSeen {
    /// Labels.
    pub(crate) rows: usize,
    /// In the queue's unit: rows, or tokens.
    pub(crate) cost: u64,
    /// Of the largest batch.
    pub(crate) fill: f64,
    /// Why it did not wait for more.
    pub(crate) reason: &'static str,
    /// Of the request that waited longest, in milliseconds.
    pub(crate) waited_ms: f64,
    pub(crate) forward_ms: f64,
}

/// What is remembered.
#[derive(Debug)]
pub(crate) struct Board {
    begun: Instant,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    clients: HashMap<Arc<str>, Client>,
    batches: VecDeque<BatchSeen>,
    runs: Runs,
    /// Seconds of the device, counted until the time beside them where a forward pass is under way.
    busy: Window,
    busy_since: Option<Instant>,
    rows: Window,
    cached: Window,
}

#[derive(Debug)]
struct Client {
    rows: Window,
    refused: Window,
    total_rows: u64,
    last: Instant,
}

impl Board {
    pub(crate) fn new() -> Self {
        let now = clock::now();
        let window = || Window::new(now);
        let seen = Seen {
            clients: HashMap::new(),
            batches: VecDeque::new(),
            runs: Runs::default(),
            busy: window(),
            busy_since: None,
            rows: window(),
            cached: window(),
        };
        Self { begun: now, seen: Mutex::new(seen) }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        // Sums and lists that one statement each keeps right.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a request that was answered, and how many of its rows were not computed for it.
    pub(crate) fn answered(&self, client: &Arc<str>, rows: usize, cached: usize) {
        let now = clock::now();
        let mut seen = self.lock();
        seen.rows.add(now, rows as f64);
        seen.cached.add(now, cached as f64);
        if let Some(own) = seen.client(client, now) {
            own.rows.add(now, rows as f64);
            own.total_rows += rows as u64;
        }
    }

    /// Notes a request that was told to come back.
    pub(crate) fn refused(&self, client: &Arc<str>) {
        let now = clock::now();
        if let Some(own) = self.lock().client(client, now) {
            own.refused.add(now, 1.0);
        }
    }

    /// Notes a forward pass.
    pub(crate) fn batch(&self, batch: BatchSeen) {
        let mut seen = self.lock();
        if seen.batches.len() == BATCHES {
            seen.batches.pop_front();
        }
        seen.batches.push_back(batch);
    }

    /// Counts the device as busy until dropped.
    pub(crate) fn busy(&self) -> Busy<'_> {
        self.lock().busy_since = Some(clock::now());
        Busy(self)
    }

    /// Keeps the metric of how busy the device is, until dropped.
    pub(crate) async fn gauge_device(&self) {
        loop {
            tokio::time::sleep(EVERY).await;
            let busy = self.lock().busy_fraction(clock::now());
            metrics::gauge!(names::DEVICE_BUSY).set(busy);
        }
    }

    /// Notes what a student says of its run.
    pub(crate) fn report(&self, client: &Arc<str>, report: StudentReport) {
        let taken = self.lock().runs.take(client, report, clock::now());
        let result = if taken { "taken" } else { "invalid" };
        metrics::counter!(names::REPORTS, "result" => result).increment(1);
    }
}

/// A forward pass under way.
pub(crate) struct Busy<'a>(&'a Board);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut seen = self.0.lock();
        seen.count_busy(clock::now());
        seen.busy_since = None;
    }
}

impl Seen {
    /// Counts the time of a forward pass that has not been counted.
    fn count_busy(&mut self, now: Instant) {
        if let Some(since) = &mut self.busy_since {
            self.busy.add(now, now.saturating_duration_since(*since).as_secs_f64());
            *since = now;
        }
    }

    /// Part of the last seconds in which the device was busy.
    fn busy_fraction(&mut self, now: Instant) -> f64 {
        self.count_busy(now);
        self.busy.rate(now).min(1.0)
    }

    /// What is remembered of a client; none if there are too many.
    fn client(&mut self, name: &Arc<str>, now: Instant) -> Option<&mut Client> {
        if !self.clients.contains_key(name) {
            if self.clients.len() >= CLIENTS {
                self.clients.retain(|_, own| now.saturating_duration_since(own.last) < FORGOTTEN);
            }
            if self.clients.len() >= CLIENTS {
                return None;
            }
            let (rows, refused) = (Window::new(now), Window::new(now));
            let own = Client { rows, refused, total_rows: 0, last: now };
            self.clients.insert(Arc::clone(name), own);
        }
        let own = self.clients.get_mut(name)?;
        own.last = now;
        Some(own)
    }
}

/// Everything, as JSON has it.
#[derive(Debug, Serialize)]
struct Snapshot {
    name: String,
    fingerprint: String,
    version: &'static str,
    /// `serving`, `draining` or `device lost`.
    state: &'static str,
    uptime_seconds: f64,
    unit: &'static str,
    queue: Queue,
    device: DeviceSeen,
    rows_per_second: f64,
    cached_fraction: f64,
    cache: CacheSeen,
    clients: Vec<ClientSeen>,
    batches: Vec<BatchSeen>,
    runs: Vec<Run>,
    peers: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Queue {
    cost: u64,
    clients: usize,
    held_bytes: u64,
}

#[derive(Debug, Serialize)]
struct DeviceSeen {
    busy_fraction: f64,
    mean_fill: f64,
}

#[derive(Debug, Serialize)]
struct CacheSeen {
    enabled: bool,
    memory_bytes: u64,
    entries: u64,
    /// Null: nothing is kept on a disk.
    disk_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
struct ClientSeen {
    name: String,
    weight: u32,
    rows_per_second: f64,
    /// Of the rows of all clients.
    share: f64,
    refused_per_second: f64,
    queued: u64,
    total_rows: u64,
    seconds_ago: f64,
}

/// What there is to see, as JSON.
pub(crate) fn json(core: &Core, peers: &[String]) -> String {
    let now = clock::now();
    let (cost, waiting) = core.scheduler.waiting();
    let waiting: HashMap<Arc<str>, u64> = waiting.into_iter().collect();
    let mut seen = core.status.lock();
    let rows = seen.rows.rate(now);
    let cached = seen.cached.rate(now);
    // Each over its own time: one that came a moment ago is not measured by what was before it.
    let all: f64 = seen.clients.values_mut().map(|own| own.rows.rate(now)).sum();
    let mut clients: Vec<ClientSeen> = Vec::new();
    for (name, own) in &mut seen.clients {
        let queued = waiting.get(name).copied().unwrap_or(0);
        let rate = own.rows.rate(now);
        clients.push(ClientSeen {
            name: name.to_string(),
            weight: core.quotas.of(name).weight,
            rows_per_second: rate,
            share: if all > 0.0 { rate / all } else { 0.0 },
            refused_per_second: own.refused.rate(now),
            queued,
            total_rows: own.total_rows,
            seconds_ago: now.saturating_duration_since(own.last).as_secs_f64(),
        });
    }
    clients.sort_by(|a, b| b.share.total_cmp(&a.share).then_with(|| a.name.cmp(&b.name)));
    clients.truncate(100);
    let (busy, runs) = (seen.busy_fraction(now), seen.runs.list(now));
    let batches: Vec<BatchSeen> = seen.batches.iter().cloned().collect();
    // Batches and answers must not wait for what follows.
    drop(seen);
    let fill: f64 = batches.iter().map(|batch| batch.fill).sum();
    let fingerprint = core.fingerprint(core.contract.default_rule);
    let (memory_bytes, entries) = core.cache.size();
    let snapshot = Snapshot {
        name: core.name.clone(),
        fingerprint: hex(&fingerprint),
        version: env!("CARGO_PKG_VERSION"),
        state: match (core.scheduler.is_lost(), *core.draining.borrow()) {
            (true, _) => "device lost",
            (_, true) => "draining",
            _ => "serving",
        },
        uptime_seconds: now.saturating_duration_since(core.status.begun).as_secs_f64(),
        unit: if core.contract.takes_tokens() { "tokens" } else { "rows" },
        queue: Queue { cost, clients: waiting.len(), held_bytes: core.ledger.held() },
        device: DeviceSeen { busy_fraction: busy, mean_fill: fill / batches.len().max(1) as f64 },
        rows_per_second: rows,
        cached_fraction: if rows > 0.0 { cached / rows } else { 0.0 },
        cache: CacheSeen {
            enabled: core.cache.keyer().is_some(),
            memory_bytes,
            entries,
            disk_bytes: core.cache.disk_bytes(),
        },
        clients,
        batches,
        runs,
        peers: peers.to_vec(),
    };
    // Numbers and names.
    serde_json::to_string(&snapshot).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pass of half a minute, looked at every second, and the next right behind it.
    #[test]
    fn the_device_is_busy_while_a_long_pass_is_under_way() {
        let board = Board::new();
        let at = |seconds: u64| board.begun + Duration::from_secs(seconds);
        let mut seen = board.lock();
        seen.busy_since = Some(at(1));
        for second in 2..30 {
            let busy = seen.busy_fraction(at(second));
            assert!(second < 12 || (busy - 1.0).abs() < 1e-9, "{busy} after {second} s");
        }
        seen.count_busy(at(30));
        seen.busy_since = None;
        assert!(seen.busy_fraction(at(35)) < 0.7);
        assert_eq!(seen.busy_fraction(at(50)), 0.0);
    }

    #[test]
    fn a_pass_that_panics_is_over() {
        let board = Board::new();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _busy = board.busy();
            panic!("as the test wants it");
        }));
        assert!(panicked.is_err() && board.lock().busy_since.is_none());
    }
}
