//! The device thread: takes a batch, runs every model on it, hands every request its rows.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Instant,
};

use stillhouse_batcher::Batch;
use stillhouse_nn::TokenBatch;
use tokio::sync::watch;
use tracing::{error, warn};

use crate::{
    encode::{Computed, Forward, States},
    ensemble::{Ensemble, Input},
    error::ServeError,
    metrics as names,
    scheduler::{Done, Job, JobInput, Scheduler},
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

fn run(ensemble: &Arc<Ensemble>, scheduler: &Scheduler, batch: Batch<Job>) {
    let reason = batch.reason.as_str();
    let (waits, mut jobs): (Vec<_>, Vec<_>) =
        batch.items.into_iter().map(|item| (item.waited, item.payload)).unzip();
    let rows: usize = jobs.iter().map(|job: &Job| job.rows).sum();
    let cost = jobs.iter().map(|job| job.input.cost(job.rows)).sum();
    let input = join(&mut jobs);

    let start = Instant::now();
    let outputs = ensemble.infer(&match &input {
        JobInput::Features(values) => Input::Features { values, rows },
        JobInput::Tokens { ids, lengths, labelled } => {
            Input::Tokens { batch: TokenBatch { ids, lengths }, labelled }
        }
    });
    let compute = start.elapsed();
    scheduler.completed(cost, compute);
    metrics::counter!(names::BATCHES, "reason" => reason).increment(1);
    metrics::histogram!(names::BATCH_ROWS).record(rows as f64);
    if let JobInput::Tokens { ids, .. } = &input {
        metrics::histogram!(names::BATCH_TOKENS).record(ids.len() as f64);
    }
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
    let mut states: Vec<&[f32]> = outputs.states.iter().map(Vec::as_slice).collect();
    let mut hidden = &outputs.hidden[..];
    let (members, classes, width) = (ensemble.len(), ensemble.classes(), ensemble.hidden_size());
    for (job, queue) in jobs.into_iter().zip(waits) {
        metrics::histogram!(names::QUEUE_WAIT).record(queue);
        let own_rows = job.rows;
        let computed = if states.is_empty() {
            let mut own = Vec::with_capacity(members * own_rows * classes);
            for member in &mut logits {
                own.extend_from_slice(take(member, own_rows * classes));
            }
            let own_hidden = take(&mut hidden, own_rows * width);
            let kept = if job.needs_hidden { own_hidden } else { &[] };
            Computed::Logits(Forward {
                rows: own_rows,
                members,
                logits: own,
                hidden: kept.to_vec(),
            })
        } else {
            let members = outputs.states.iter().zip(&mut states);
            let members = members.map(|(all, rest)| {
                let width = all.len() / rows.max(1);
                take(rest, own_rows * width).to_vec()
            });
            Computed::States(States {
                rows: own_rows,
                members: members.collect(),
                ensemble: Arc::clone(ensemble),
            })
        };
        job.answer(Ok(Done { computed, queue, compute }));
    }
}

/// The inputs of all jobs, one after the other. All are of one kind: what the models accept.
fn join(jobs: &mut [Job]) -> JobInput {
    // Alone in its batch: no copy.
    if let [job] = jobs {
        return std::mem::replace(&mut job.input, JobInput::Features(Vec::new()));
    }
    let (mut values, mut all_ids) = (Vec::new(), Vec::new());
    let (mut all_lengths, mut all_labelled) = (Vec::new(), Vec::new());
    for job in &*jobs {
        match &job.input {
            JobInput::Features(own) => values.extend_from_slice(own),
            JobInput::Tokens { ids, lengths, labelled } => {
                let first = all_ids.len();
                all_labelled.extend(labelled.iter().map(|position| first + position));
                all_ids.extend_from_slice(ids);
                all_lengths.extend_from_slice(lengths);
            }
        }
    }
    match all_ids.is_empty() {
        true => JobInput::Features(values),
        false => JobInput::Tokens { ids: all_ids, lengths: all_lengths, labelled: all_labelled },
    }
}

/// Splits the first `count` values off.
fn take<'a>(values: &mut &'a [f32], count: usize) -> &'a [f32] {
    let (head, rest) = values.split_at(count);
    *values = rest;
    head
}
