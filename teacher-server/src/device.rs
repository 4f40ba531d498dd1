//! The device thread: takes a batch, runs every model on it, hands every row to those who wait for it.

use std::{
    collections::HashSet,
    io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Instant,
};

use stillhouse_batcher::Batch;
use stillhouse_nn::TokenBatch;
use stillhouse_runtime::traces::{Context, Role, Span};
use tokio::sync::watch;
use tracing::{error, warn};

use crate::{
    cache::RowCache,
    ensemble::{Ensemble, Input, Outputs},
    error::ServeError,
    gathering::Source,
    metrics as names,
    output::Output,
    scheduler::{Job, Scheduler},
    status::{BatchSeen, Board},
    units::JobInput,
};

/// A device that fails this many batches in a row by a panic is lost.
const PANICS_UNTIL_LOST: u32 = 3;

/// Starts the device thread. It ends when the scheduler is closed and empty, or when the device is
/// lost, which it then tells through `lost`.
pub(crate) fn spawn(
    ensemble: Arc<Ensemble>,
    (cache, scheduler, status): (Arc<RowCache>, Arc<Scheduler>, Arc<Board>),
    lost: watch::Sender<bool>,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("device".to_owned()).spawn(move || {
        let _mourner = Mourner { scheduler: Arc::clone(&scheduler), lost };
        let mut panics = 0;
        while let Some(batch) = scheduler.next_batch() {
            // A model takes its input by reference and is not changed, and every request of the
            // batch is answered below: nothing half-done outlives a panic.
            if catch_unwind(AssertUnwindSafe(|| {
                run(&ensemble, (&cache, &scheduler, &status), batch);
            }))
            .is_ok()
            {
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
            item.payload.fail(ServeError::DeviceLost("it panicked".to_owned()));
        }
    }
}

pub(crate) fn run(
    ensemble: &Ensemble,
    (cache, scheduler, status): (&RowCache, &Scheduler, &Board),
    batch: Batch<Job>,
) {
    let (reason, batch_cost) = (batch.reason.as_str(), batch.cost);
    let (waits, mut jobs): (Vec<_>, Vec<_>) =
        batch.items.into_iter().map(|item| (item.waited, item.payload)).unzip();
    waits.iter().for_each(|wait| metrics::histogram!(names::QUEUE_WAIT).record(*wait));
    let Plan { input, places } = Plan::of(&mut jobs);
    if places.is_empty() {
        // Others' forward passes have answered all of them, a moment ago.
        return;
    }

    let asked = jobs.iter().map(|job| &job.gathering.trace);
    let mut span = Span::begin("batch", Role::Internal, &Context::default(), asked);
    let (start, busy) = (Instant::now(), status.busy());
    let rows = places.iter().map(|place| place.labels).sum();
    let outputs = ensemble.infer(&match &input {
        JobInput::Features { values, .. } => Input::Features { values, rows },
        JobInput::Tokens { ids, lengths, labelled } => {
            Input::Tokens { batch: TokenBatch { ids, lengths }, labelled }
        }
    });
    let compute = start.elapsed();
    drop(busy);
    span.number("stillhouse.rows", rows as u64);
    span.number("stillhouse.cost", batch_cost);
    span.word("stillhouse.reason", reason);
    // In the queue's unit: what is shared takes no time of its own.
    scheduler.completed(batch_cost, input.cost(), compute);
    metrics::counter!(names::BATCHES, "reason" => reason).increment(1);
    metrics::counter!(names::FORWARD_ROWS).increment(places.len() as u64);
    metrics::histogram!(names::BATCH_ROWS).record(rows as f64);
    if let JobInput::Tokens { ids, .. } = &input {
        metrics::histogram!(names::BATCH_TOKENS).record(ids.len() as f64);
    }
    metrics::histogram!(names::FORWARD).record(compute);
    let fill = batch_cost as f64 / scheduler.most().max(1) as f64;
    metrics::histogram!(names::BATCH_FILL).record(fill);
    let longest = waits.iter().max().copied().unwrap_or_default();
    status.batch(BatchSeen {
        rows,
        cost: batch_cost,
        fill,
        reason,
        waited_ms: longest.as_secs_f64() * 1e3,
        forward_ms: compute.as_secs_f64() * 1e3,
    });

    let outputs = match outputs {
        Ok(outputs) => split(&outputs, &places, cache.keeps_hidden()),
        Err(error) => {
            warn!(%error, rows, "a forward pass failed");
            span.failed(&error);
            jobs.into_iter().for_each(|job| job.fail(error.clone()));
            return;
        }
    };
    let batch = span.context();
    for own in places.chunk_by(|a, b| a.job == b.job) {
        let job = own[0].job;
        jobs[job].gathering.computed(own.iter().map(|place| place.unit), waits[job], compute);
    }
    let mut shared = Vec::new();
    for (place, output) in places.iter().zip(outputs) {
        let gathering = &jobs[place.job].gathering;
        match gathering.units[place.unit].key {
            Some(key) => shared.push((key, output)),
            None => {
                gathering.rides(&batch);
                gathering.fill([(place.unit, output)], Source::Computed);
            }
        }
    }
    cache.complete(&shared, &batch);
}

/// What a batch runs: each unit that is missing, and of those with the same key the first.
struct Plan {
    input: JobInput,
    /// Of every unit of `input`, in its order: those of one job together.
    places: Vec<Place>,
}

/// Whose a unit is.
struct Place {
    /// In the batch.
    job: usize,
    /// In the job's request.
    unit: usize,
    labels: usize,
}

impl Plan {
    /// Of a batch, which holds at least one job.
    fn of(jobs: &mut [Job]) -> Self {
        let (mut places, mut seen) = (Vec::new(), HashSet::new());
        let mut keep = Vec::with_capacity(jobs.len());
        for (number, job) in jobs.iter().enumerate() {
            let mut own = job.gathering.launch(&job.units);
            for (keep, &unit) in own.iter_mut().zip(&job.units) {
                let wanted = &job.gathering.units[unit];
                *keep &= wanted.key.is_none_or(|key| seen.insert(key));
                if *keep {
                    places.push(Place { job: number, unit, labels: wanted.labels });
                }
            }
            keep.push(own);
        }
        let mut input = jobs[0].input.emptied();
        match (jobs, &keep[..]) {
            // Alone in its batch, and all of it: no copy.
            ([job], [keep]) if keep.iter().all(|keep| *keep) => {
                std::mem::swap(&mut input, &mut job.input);
            }
            (jobs, keep) => {
                jobs.iter().zip(keep).for_each(|(job, keep)| input.extend(&job.input, keep));
            }
        }
        Self { input, places }
    }
}

/// The outputs of units, in their order.
fn split(outputs: &Outputs, places: &[Place], keeps_hidden: bool) -> Vec<Output> {
    let rows: usize = places.iter().map(|place| place.labels).sum();
    // Of each member, and of a classifier's hidden states.
    let hidden = if keeps_hidden { &outputs.hidden[..] } else { &[] };
    let parts: Vec<(&[f32], usize)> = outputs
        .logits
        .iter()
        .chain(&outputs.states)
        .map(Vec::as_slice)
        .chain([hidden])
        .map(|part| (part, part.len() / rows.max(1)))
        .collect();
    let width: usize = parts.iter().map(|(_, width)| width).sum();
    let mut first = 0;
    let output = |place: &Place| {
        let own = first..first + place.labels;
        first = own.end;
        if let [(only, width), (_, 0)] = parts[..] {
            return Output::from(&only[own.start * width..own.end * width]);
        }
        let mut values = Vec::with_capacity(own.len() * width);
        for (part, width) in &parts {
            values.extend_from_slice(&part[own.start * width..own.end * width]);
        }
        values.into()
    };
    places.iter().map(output).collect()
}
