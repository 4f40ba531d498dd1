//! The device thread: takes a batch, runs every model on it, hands every request its rows.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Instant,
};

use stillhouse_batcher::Batch;
use tokio::sync::watch;
use tracing::{error, warn};

use crate::{
    encode::Forward,
    ensemble::Ensemble,
    error::ServeError,
    metrics as names,
    scheduler::{Done, Job, Scheduler},
};

/// A device that fails this many batches in a row by a panic is lost.
const PANICS_UNTIL_LOST: u32 = 3;

/// Starts the device thread. It ends when the scheduler is closed and empty, or when the device is
/// lost, which it then tells through `lost`.
pub(crate) fn spawn(
    ensemble: Arc<Ensemble>,
    scheduler: Arc<Scheduler>,
    lost: watch::Sender<bool>,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("device".to_owned()).spawn(move || {
        let _mourner = Mourner { scheduler: Arc::clone(&scheduler), lost };
        let mut panics = 0;
        while let Some(batch) = scheduler.next_batch() {
            // A model takes its input by reference and is not changed, and every request of the
            // batch is answered below: nothing half-done outlives a panic.
            if catch_unwind(AssertUnwindSafe(|| run(&ensemble, &scheduler, batch))).is_ok() {
                panics = 0;
                continue;
            }
            panics += 1;
            metrics::counter!(names::DEVICE_PANICS).increment(1);
            error!(panics, "the device thread panicked; its batch is lost");
            if panics == PANICS_UNTIL_LOST {
                // Its end tells that the device is lost.
                resume_unwind(Box::new("too many panics"));
            }
        }
    })
}

/// Held by the device thread: however it ends by a panic, nobody waits for it in vain.
struct Mourner {
    scheduler: Arc<Scheduler>,
    lost: watch::Sender<bool>,
}

impl Drop for Mourner {
    fn drop(&mut self) {
        if thread::panicking() {
            self.scheduler.lose_device();
            self.lost.send_replace(true);
            fail_the_rest(&self.scheduler);
        }
    }
}

/// Answers everything that still waits; nothing new is admitted by now.
fn fail_the_rest(scheduler: &Scheduler) {
    scheduler.close();
    while let Some(batch) = scheduler.next_batch() {
        for item in batch.items {
            item.payload.answer(Err(ServeError::DeviceLost("it panicked".to_owned())));
        }
    }
}

fn run(ensemble: &Ensemble, scheduler: &Scheduler, batch: Batch<Job>) {
    let reason = batch.reason.as_str();
    let (waits, mut jobs): (Vec<_>, Vec<_>) =
        batch.items.into_iter().map(|item| (item.waited, item.payload)).unzip();
    let rows: usize = jobs.iter().map(|job: &Job| job.rows).sum();
    let input = match jobs.as_mut_slice() {
        // Alone in its batch: no copy.
        [job] => std::mem::take(&mut job.input),
        jobs => jobs.iter().flat_map(|job| job.input.iter().copied()).collect(),
    };

    let start = Instant::now();
    let outputs = ensemble.infer(&input, rows);
    let compute = start.elapsed();
    scheduler.completed(rows, compute);
    metrics::counter!(names::BATCHES, "reason" => reason).increment(1);
    metrics::histogram!(names::BATCH_ROWS).record(rows as f64);
    metrics::histogram!(names::FORWARD).record(compute);

    let outputs = match outputs {
        Ok(outputs) => outputs,
        Err(error) => {
            warn!(%error, rows, "a forward pass failed");
            for job in jobs {
                job.answer(Err(error.clone()));
            }
            return;
        }
    };
    let mut logits: Vec<&[f32]> = outputs.logits.iter().map(Vec::as_slice).collect();
    let mut hidden = &outputs.hidden[..];
    let (members, classes, width) = (ensemble.len(), ensemble.classes(), ensemble.hidden_size());
    for (job, queue) in jobs.into_iter().zip(waits) {
        metrics::histogram!(names::QUEUE_WAIT).record(queue);
        let rows = job.rows;
        let mut own = Vec::with_capacity(members * rows * classes);
        for member in &mut logits {
            own.extend_from_slice(take(member, rows * classes));
        }
        let states = take(&mut hidden, rows * width);
        let kept = if job.needs_hidden { states } else { &[] };
        let forward = Forward { rows, members, logits: own, hidden: kept.to_vec() };
        job.answer(Ok(Done { forward, queue, compute }));
    }
}

/// Splits the first `count` values off.
fn take<'a>(values: &mut &'a [f32], count: usize) -> &'a [f32] {
    let (head, rest) = values.split_at(count);
    *values = rest;
    head
}
