//! The thin shell around the batcher: a lock, a condition for the device thread, and a future for
//! each admitted request.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use stillhouse_batcher::{Batch, Batcher, Config, ConfigError, Formed, Forming, Request, Ticket};
use tokio::sync::oneshot;

use crate::{encode::Computed, error::ServeError, metrics as names, settings::Bounds};

/// How long a client's dated work may go before its work without a deadline: longer than a full
/// queue takes on a device that keeps up with its clients at all.
const AGE_GUARD: Duration = Duration::from_secs(30);

/// What one request asks labels for.
#[derive(Debug, PartialEq)]
pub(crate) enum JobInput {
    /// `[rows, width]`.
    Features(Vec<f32>),
    Tokens {
        /// Of all sequences.
        ids: Vec<u32>,
        /// Tokens of each sequence.
        lengths: Vec<u32>,
        /// Positions to label among the ids, ascending; empty where every sequence has one label.
        labelled: Vec<usize>,
    },
}

impl JobInput {
    /// What it costs the device, of `rows` labels: rows of features, or tokens.
    pub(crate) fn cost(&self, rows: usize) -> u64 {
        match self {
            Self::Features(_) => rows as u64,
            Self::Tokens { ids, .. } => ids.len() as u64,
        }
    }
}

/// One request, waiting for the device.
pub(crate) struct Job {
    pub(crate) input: JobInput,
    /// Labels that it asks for.
    pub(crate) rows: usize,
    /// Whether the request needs the hidden states too.
    pub(crate) needs_hidden: bool,
    reply: oneshot::Sender<Result<Done, ServeError>>,
}

impl Job {
    /// Answers the request. One whose client went away is dropped.
    pub(crate) fn answer(self, result: Result<Done, ServeError>) {
        drop(self.reply.send(result));
    }
}

/// What a request gets back from the device.
pub(crate) struct Done {
    pub(crate) computed: Computed,
    pub(crate) queue: Duration,
    pub(crate) compute: Duration,
}

/// Requests go in on one side, batches come out on the other.
pub(crate) struct Scheduler {
    /// Owned by whoever holds the lock for a few microseconds: requests to enter and leave, the
    /// device thread to take a batch.
    batcher: Mutex<Batcher<Job>>,
    /// Told when there may be something new for the device thread.
    changed: Condvar,
    /// The batcher's time counts from here.
    epoch: Instant,
    /// Set once, when the device thread should end.
    closed: AtomicBool,
    /// Set once, when the device can no longer compute.
    lost: AtomicBool,
}

impl Scheduler {
    pub(crate) fn new(bounds: &Bounds) -> Result<Self, ConfigError> {
        let batcher = Batcher::new(Config {
            max_batch_cost: bounds.max_batch.into(),
            max_queue_cost: bounds.max_queue.into(),
            max_client_cost: bounds.max_client.into(),
            max_clients: bounds.max_clients as usize,
            max_wait: Duration::from_micros(bounds.max_wait_us.into()),
            age_guard: AGE_GUARD,
            ..Config::default()
        })?;
        Ok(Self {
            batcher: Mutex::new(batcher),
            changed: Condvar::new(),
            epoch: Instant::now(),
            closed: AtomicBool::new(false),
            lost: AtomicBool::new(false),
        })
    }

    /// Admits a request, or says why not.
    pub(crate) fn submit(
        self: &Arc<Self>,
        client: Arc<str>,
        (input, rows): (JobInput, usize),
        needs_hidden: bool,
        deadline: Option<Instant>,
    ) -> Result<Pending, ServeError> {
        let (reply, result) = oneshot::channel();
        let ticket = {
            let mut batcher = self.lock();
            // Under the lock: the batcher's time never goes back.
            let now = self.epoch.elapsed();
            // Under the lock: what is admitted before it turns true, the lost device still answers.
            if self.lost.load(Ordering::Acquire) {
                return Err(ServeError::DeviceLost("it panicked".to_owned()));
            }
            // What nobody waits for any more makes room, although a batch is running.
            for expired in batcher.expire(now) {
                expired.payload.answer(Err(ServeError::Deadline));
            }
            let ticket = batcher
                .admit(
                    now,
                    Request {
                        client,
                        cost: input.cost(rows),
                        // Sequences are packed: those of other lengths cost nothing.
                        length: 1,
                        deadline: deadline.map(|at| at.saturating_duration_since(self.epoch)),
                        payload: Job { input, rows, needs_hidden, reply },
                    },
                )
                .map_err(|(refusal, _)| ServeError::from(refusal))?;
            gauge_queue(&batcher);
            ticket
        };
        self.changed.notify_one();
        Ok(Pending { scheduler: Arc::clone(self), ticket, result, answered: false })
    }

    /// Takes a request out that has not been launched; it is answered with CANCELLED.
    pub(crate) fn cancel(&self, ticket: Ticket) {
        if let Some(job) = self.take_out(ticket) {
            job.answer(Err(ServeError::Cancelled));
        }
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
            let now = self.epoch.elapsed();
            let Formed { decision, expired } = batcher.form(now);
            for expired in expired {
                expired.payload.answer(Err(ServeError::Deadline));
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
    pub(crate) fn completed(&self, cost: u64, took: Duration) {
        self.lock().completed(cost, took);
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

    fn lock(&self) -> MutexGuard<'_, Batcher<Job>> {
        // The batcher's own methods leave it consistent, and nothing else runs under the lock.
        self.batcher.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn gauge_queue(batcher: &Batcher<Job>) {
    metrics::gauge!(names::QUEUE_ROWS).set(batcher.queued_cost() as f64);
    metrics::gauge!(names::QUEUE_CLIENTS).set(batcher.clients() as f64);
}

/// An admitted request. Dropped before its answer, it leaves the queue.
pub(crate) struct Pending {
    scheduler: Arc<Scheduler>,
    ticket: Ticket,
    result: oneshot::Receiver<Result<Done, ServeError>>,
    answered: bool,
}

impl Pending {
    pub(crate) fn ticket(&self) -> Ticket {
        self.ticket
    }
}

impl Future for Pending {
    type Output = Result<Done, ServeError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.result).poll(context));
        self.answered = true;
        // The job was dropped unanswered: the device thread panicked with it.
        Poll::Ready(
            answer
                .unwrap_or_else(|_| Err(ServeError::DeviceLost("it dropped the batch".to_owned()))),
        )
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.answered {
            drop(self.scheduler.take_out(self.ticket));
        }
    }
}
