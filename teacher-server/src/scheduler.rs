//! The thin shell around the batcher: a lock, and a condition for the device thread.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use stillhouse_batcher::{
    Batch, Config, ConfigError, Formed, Forming, Prioritised, Request, Ticket,
};
use stillhouse_runtime::clock;

use crate::{
    error::ServeError,
    gathering::Gathering,
    metrics as names,
    settings::{Bounds, ClientSettings},
    units::JobInput,
};

/// How long a client's dated work may go before its work without a deadline: longer than a full
/// queue takes on a device that keeps up with its clients at all.
const AGE_GUARD: Duration = Duration::from_secs(30);

/// One request's units that nobody had the outputs of when it was admitted, waiting for the device.
/// Dropped without an answer, it says that the device is lost.
pub(crate) struct Job {
    pub(crate) gathering: Arc<Gathering>,
    /// Its units, by their place in `gathering`.
    pub(crate) units: Vec<usize>,
    /// Their input.
    pub(crate) input: JobInput,
}

impl Job {
    /// Ends the request without labels, unless it has its answer.
    pub(crate) fn fail(self, error: ServeError) {
        self.gathering.fail(error);
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // The device thread panicked with it. Any other has its answer, or is withdrawn.
        self.gathering.fail(ServeError::DeviceLost("it dropped the batch".to_owned()));
    }
}

/// Gives clients their weights and priorities.
pub(crate) fn give_shares<T>(queue: &mut Prioritised<T>, own: &BTreeMap<String, ClientSettings>) {
    for (client, own) in own {
        // Settings keep to the table's bounds.
        let _ = queue.set_weight(client, own.weight);
        queue.set_priority(client, own.priority.into());
    }
}

/// Requests go in on one side, batches come out on the other.
pub(crate) struct Scheduler {
    /// Owned by whoever holds the lock for a few microseconds: requests to enter and leave, the
    /// device thread to take a batch.
    batcher: Mutex<Prioritised<Job>>,
    /// Told when there may be something new for the device thread.
    changed: Condvar,
    most: u64,
    /// The batcher's time counts from here.
    epoch: Instant,
    /// Set once, when the device thread should end.
    closed: AtomicBool,
    /// Set once, when the device can no longer compute.
    lost: AtomicBool,
}

impl Scheduler {
    /// `own` are the shares of clients that have some of their own.
    pub(crate) fn new(
        bounds: &Bounds,
        default: &ClientSettings,
        own: &BTreeMap<String, ClientSettings>,
    ) -> Result<Self, ConfigError> {
        let config = Config {
            max_batch_cost: bounds.max_batch.into(),
            max_queue_cost: bounds.max_queue.into(),
            max_client_cost: bounds.max_client.into(),
            max_clients: bounds.max_clients as usize,
            max_wait: Duration::from_micros(bounds.max_wait_us.into()),
            target_latency: bounds.target_latency,
            age_guard: AGE_GUARD,
            default_weight: default.weight,
            ..Config::default()
        };
        let mut batcher = Prioritised::new(&config, default.priority.into())?;
        give_shares(&mut batcher, own);
        Ok(Self {
            batcher: Mutex::new(batcher),
            changed: Condvar::new(),
            most: bounds.max_batch.into(),
            epoch: clock::now(),
            closed: AtomicBool::new(false),
            lost: AtomicBool::new(false),
        })
    }

    /// Admits a request for some of its units, or says why not.
    pub(crate) fn submit(
        &self,
        client: Arc<str>,
        (input, units): (JobInput, Vec<usize>),
        gathering: &Arc<Gathering>,
        deadline: Option<Instant>,
    ) -> Result<(), ServeError> {
        {
            let mut batcher = self.lock();
            // Under the lock: the batcher's time never goes back.
            let now = self.now();
            // Under the lock: what is admitted before it turns true, the lost device still answers.
            if self.lost.load(Ordering::Acquire) {
                return Err(ServeError::DeviceLost("it panicked".to_owned()));
            }
            // What nobody waits for any more makes room, although a batch is running.
            for expired in batcher.expire(now) {
                expired.payload.fail(ServeError::Deadline);
            }
            let request = Request {
                client,
                cost: input.cost(),
                // Sequences are packed: those of other lengths cost nothing.
                length: 1,
                deadline: deadline.map(|at| at.saturating_duration_since(self.epoch)),
                payload: Job { gathering: Arc::clone(gathering), units, input },
            };
            let ticket = batcher.admit(now, request).map_err(|(refusal, job)| {
                let error = ServeError::from(refusal);
                job.fail(error.clone());
                error
            })?;
            gathering.queued(ticket);
            gauge_queue(&batcher);
        }
        self.changed.notify_one();
        Ok(())
    }

    /// Takes a request out that has not been launched; it is answered with CANCELLED.
    pub(crate) fn cancel(&self, ticket: Ticket) {
        if let Some(job) = self.take_out(ticket) {
            job.fail(ServeError::Cancelled);
        }
    }

    /// Takes a request out that has its answer, or needs none; nothing if it has been launched.
    pub(crate) fn withdraw(&self, ticket: Ticket) {
        drop(self.take_out(ticket));
    }

    fn take_out(&self, ticket: Ticket) -> Option<Job> {
        let mut batcher = self.lock();
        let job = batcher.cancel(ticket);
        gauge_queue(&batcher);
        job
    }

    /// Waits for the next batch; none when the scheduler is closed. For the device thread.
    pub(crate) fn next_batch(&self) -> Option<Batch<Job>> {
        let mut batcher = self.lock();
        loop {
            let now = self.now();
            let Formed { decision, expired } = batcher.form(now);
            for expired in expired {
                expired.payload.fail(ServeError::Deadline);
            }
            gauge_queue(&batcher);
            batcher = match decision {
                Forming::Launch(batch) => return Some(batch),
                Forming::Wait(at) => {
                    // At least a moment, so that rounding cannot turn the wait into a spin.
                    let wait = at.saturating_sub(now).max(Duration::from_micros(20));
                    let woken = self.changed.wait_timeout(batcher, wait);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                Forming::Idle if self.closed.load(Ordering::Acquire) => return None,
                Forming::Idle => self.changed.wait(batcher).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Tells how long a batch took, for the estimate behind `RetryInfo`.
    pub(crate) fn completed(&self, cost: u64, ran: u64, took: Duration) {
        self.lock().completed(cost, ran, took);
    }

    /// Whether nothing can be computed any more.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// What a batch may cost at most.
    pub(crate) fn most(&self) -> u64 {
        self.most
    }

    /// What waits: its cost, and each client's.
    pub(crate) fn waiting(&self) -> (u64, Vec<(Arc<str>, u64)>) {
        let batcher = self.lock();
        let clients = batcher.client_stats().map(|own| (own.client, own.queued_cost)).collect();
        (batcher.queued_cost(), clients)
    }

    /// From now on nothing is admitted; what was admitted still runs.
    pub(crate) fn drain(&self) {
        self.lock().drain();
        // A batch that waits for company need not any more.
        self.changed.notify_all();
    }

    /// Ends the device thread once nothing waits.
    pub(crate) fn close(&self) {
        // Under the lock, so that the device thread is either before its check or in its wait.
        let _batcher = self.lock();
        self.closed.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// From now on requests are answered with UNAVAILABLE.
    pub(crate) fn lose_device(&self) {
        let _batcher = self.lock();
        self.lost.store(true, Ordering::Release);
    }

    /// The next batch, if one is due.
    pub(crate) fn try_batch(&self) -> Option<Batch<Job>> {
        let mut batcher = self.lock();
        let Formed { decision, expired } = batcher.form(self.now());
        expired.into_iter().for_each(|expired| expired.payload.fail(ServeError::Deadline));
        match decision {
            Forming::Launch(batch) => Some(batch),
            _ => None,
        }
    }

    /// The batcher's time.
    fn now(&self) -> Duration {
        clock::now().saturating_duration_since(self.epoch)
    }

    fn lock(&self) -> MutexGuard<'_, Prioritised<Job>> {
        // The batcher's own methods leave it consistent, and nothing else runs under the lock.
        self.batcher.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn gauge_queue(batcher: &Prioritised<Job>) {
    metrics::gauge!(names::QUEUE_ROWS).set(batcher.queued_cost() as f64);
    metrics::gauge!(names::QUEUE_CLIENTS).set(batcher.clients() as f64);
}
