//! A request that waits for the outputs of its units, whoever computes them.
//!
//! A unit's output may be in the cache, may come with another request's forward pass, or is computed
//! for this one. Each request queues in its own name for what is missing: it does not depend on the
//! turn, the deadline or the end of another that asked for the same rows first. It is answered as
//! soon as nothing is missing.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use stillhouse_batcher::Ticket;
use stillhouse_runtime::traces::Context as Trace;
use tokio::sync::oneshot;

use crate::{
    cache::RowCache, error::ServeError, held::Held, metrics as names, output::Output, rows::Rows,
    scheduler::Scheduler, turns::Turns, units::Unit,
};

/// Where the output of a unit came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The cache's memory.
    Memory,
    /// The cache's disk.
    Disk,
    /// A forward pass for another request, or for an equal unit of this one.
    Shared,
    /// A forward pass for this unit.
    Computed,
}

impl Source {
    const ALL: [Self; 4] = [Self::Memory, Self::Disk, Self::Shared, Self::Computed];

    /// The value of the metrics' label `source`.
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Shared => "shared",
            Self::Computed => "computed",
        }
    }
}

/// What a request gets back.
#[derive(Debug)]
pub(crate) struct Done {
    /// Of all its units, in their order.
    pub(crate) outputs: Vec<Output>,
    /// From admission to the launch of its forward pass; zero where it had none.
    pub(crate) queue: Duration,
    /// Of that forward pass.
    pub(crate) compute: Duration,
    /// Labels of units that no forward pass was run for.
    pub(crate) cached: usize,
    /// The batches that its outputs came with.
    pub(crate) batches: Vec<Trace>,
}

/// A request's units and what is known of them.
#[derive(Debug)]
pub(crate) struct Gathering {
    pub(crate) units: Vec<Unit>,
    pub(crate) needs_hidden: bool,
    /// The request's span.
    pub(crate) trace: Trace,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    found: Vec<Option<(Output, Source)>>,
    /// Those of `found` that are none.
    missing: usize,
    /// Units that this request's own forward pass runs.
    own: Vec<bool>,
    queue: Duration,
    compute: Duration,
    batches: Vec<Trace>,
    place: Place,
    /// Gone once the request is answered.
    reply: Option<oneshot::Sender<Result<Done, ServeError>>>,
}

/// How far a request has come on its way to the device.
#[derive(Clone, Copy, Debug)]
enum Place {
    Before,
    Queued(Ticket),
    Launched,
}

impl Gathering {
    pub(crate) fn new(
        units: Vec<Unit>,
        needs_hidden: bool,
        trace: Trace,
    ) -> (Arc<Self>, oneshot::Receiver<Result<Done, ServeError>>) {
        let (reply, answer) = oneshot::channel();
        let state = State {
            found: vec![None; units.len()],
            missing: units.len(),
            own: vec![false; units.len()],
            queue: Duration::ZERO,
            compute: Duration::ZERO,
            batches: Vec::new(),
            place: Place::Before,
            reply: Some(reply),
        };
        (Arc::new(Self { units, needs_hidden, trace, state: Mutex::new(state) }), answer)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change below is whole before anything in it could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The units whose output is not known, ascending.
    pub(crate) fn missing(&self) -> Vec<usize> {
        let state = self.lock();
        (0..state.found.len()).filter(|&unit| state.found[unit].is_none()).collect()
    }

    /// Whether the request has its answer, of whatever kind.
    pub(crate) fn is_over(&self) -> bool {
        self.lock().reply.is_none()
    }

    /// Takes outputs that were found, and answers the request when they were the last.
    pub(crate) fn fill(&self, outputs: impl IntoIterator<Item = (usize, Output)>, from: Source) {
        let mut state = self.lock();
        for (unit, output) in outputs {
            let from = if state.own[unit] { Source::Computed } else { from };
            // Those of a request that has its answer are gone.
            if let Some(slot @ None) = state.found.get_mut(unit) {
                *slot = Some((output, from));
                state.missing -= 1;
            }
        }
        if state.missing == 0 && state.reply.is_some() {
            self.complete(&mut state);
        }
    }

    fn complete(&self, state: &mut State) {
        let mut counts = [0; Source::ALL.len()];
        let (mut outputs, mut cached) = (Vec::with_capacity(self.units.len()), 0);
        for (found, unit) in state.found.drain(..).zip(&self.units) {
            // None is missing.
            let Some((output, source)) = found else { continue };
            // What has no label is known to everybody.
            counts[source as usize] += u64::from(unit.labels > 0);
            cached += if source == Source::Computed { 0 } else { unit.labels };
            outputs.push(output);
        }
        for (source, count) in Source::ALL.into_iter().zip(counts) {
            metrics::counter!(names::CACHE_ROWS, "source" => source.name()).increment(count);
        }
        let (queue, compute) = (state.queue, state.compute);
        let batches = std::mem::take(&mut state.batches);
        answer(state, Ok(Done { outputs, queue, compute, cached, batches }));
    }

    /// Ends the request without labels, unless it is over.
    pub(crate) fn fail(&self, error: ServeError) {
        answer(&mut self.lock(), Err(error));
    }

    /// Notes the request's place in the queue.
    pub(crate) fn queued(&self, ticket: Ticket) {
        self.lock().place = Place::Queued(ticket);
    }

    /// Notes that it leaves the queue; those of `units` that are still missing, which the forward
    /// pass must be run for unless another unit of the batch has the same key.
    pub(crate) fn launch(&self, units: &[usize]) -> Vec<bool> {
        let mut state = self.lock();
        state.place = Place::Launched;
        units.iter().map(|&unit| matches!(state.found.get(unit), Some(None))).collect()
    }

    /// Notes what a forward pass that was run for some of its units took.
    pub(crate) fn computed(
        &self,
        units: impl IntoIterator<Item = usize>,
        queue: Duration,
        compute: Duration,
    ) {
        let mut state = self.lock();
        (state.queue, state.compute) = (queue, compute);
        units.into_iter().for_each(|unit| state.own[unit] = true);
    }

    /// Notes a batch that outputs for it come with.
    pub(crate) fn rides(&self, batch: &Trace) {
        if batch.is_none() {
            return;
        }
        let mut state = self.lock();
        if state.batches.last() != Some(batch) {
            state.batches.push(batch.clone());
        }
    }

    fn place(&self) -> Place {
        self.lock().place
    }

    /// Gives up its place in the queue, and waits for nobody's forward pass any more.
    fn leave(self: &Arc<Self>, cache: &RowCache, scheduler: &Scheduler) {
        if let Place::Queued(ticket) = self.place() {
            scheduler.withdraw(ticket);
        }
        cache.leave(self);
    }
}

fn answer(state: &mut State, result: Result<Done, ServeError>) {
    if let Some(reply) = state.reply.take() {
        // An error means that its client went away.
        drop(reply.send(result));
    }
}

/// The answer to an admitted request. Dropped before it is there, the request leaves the queue.
pub(crate) struct Pending {
    gathering: Arc<Gathering>,
    answer: oneshot::Receiver<Result<Done, ServeError>>,
    cache: Arc<RowCache>,
    scheduler: Arc<Scheduler>,
}

/// Takes a request out that has not been launched.
#[derive(Clone)]
pub(crate) struct Canceller {
    gathering: Arc<Gathering>,
    scheduler: Arc<Scheduler>,
}

impl Pending {
    /// Finds what is known of a request's units and queues for the rest.
    pub(crate) fn start(
        (units, needs_hidden, trace): (Vec<Unit>, bool, Trace),
        cache: &Arc<RowCache>,
        (scheduler, lookups): (&Arc<Scheduler>, &Arc<Turns>),
        admission: Admission,
    ) -> Result<Self, ServeError> {
        let (gathering, answer) = Gathering::new(units, needs_hidden, trace);
        let pending = Self {
            gathering: Arc::clone(&gathering),
            answer,
            cache: Arc::clone(cache),
            scheduler: Arc::clone(scheduler),
        };
        if cache.has_disk() {
            if !cache.find(&gathering).is_empty() {
                let (cache, scheduler) = (Arc::clone(cache), Arc::clone(scheduler));
                let lookups = Arc::clone(lookups);
                let input = admission.input.detached();
                let admission = Admission { input, ..admission };
                tokio::spawn(async move {
                    let mut unfinished = Unfinished(Some(Arc::clone(&gathering)));
                    let Admission { client, deadline, held, .. } = &admission;
                    cache.fetch(&gathering, (client, *deadline, held), &lookups).await;
                    if let Err(error) = admission.admit(&gathering, &cache, &scheduler) {
                        gathering.fail(error);
                    }
                    unfinished.0 = None;
                });
            }
        } else {
            admission.admit(&gathering, cache, scheduler)?;
        }
        Ok(pending)
    }

    pub(crate) fn canceller(&self) -> Canceller {
        Canceller { gathering: Arc::clone(&self.gathering), scheduler: Arc::clone(&self.scheduler) }
    }
}

impl Canceller {
    /// Answers the request with CANCELLED, unless it has been launched.
    pub(crate) fn cancel(&self) {
        match self.gathering.place() {
            // It will not enter the queue.
            Place::Before => self.gathering.fail(ServeError::Cancelled),
            Place::Queued(ticket) => self.scheduler.cancel(ticket),
            Place::Launched => {}
        }
    }
}

/// A request on its way to the queue. Dropped there, it has its answer.
struct Unfinished(Option<Arc<Gathering>>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(gathering) = &self.0 {
            gathering.fail(ServeError::Forward("the cache could not be asked".to_owned()));
        }
    }
}

/// What a request needs to enter the queue.
pub(crate) struct Admission {
    pub(crate) client: Arc<str>,
    pub(crate) deadline: Option<Instant>,
    /// What the input of its units is made of.
    pub(crate) input: Rows,
    /// What the request holds in memory, for as long as it is on its way.
    pub(crate) held: Arc<Held>,
}

impl Admission {
    /// Queues for the units that are not known and not to be had from the cache.
    fn admit(
        self,
        gathering: &Arc<Gathering>,
        cache: &RowCache,
        scheduler: &Scheduler,
    ) -> Result<(), ServeError> {
        let _held = self.held;
        if gathering.is_over() {
            return Ok(());
        }
        let missing = cache.register(gathering);
        let result = if missing.is_empty() {
            Ok(())
        } else {
            self.input.of(&missing).and_then(|input| {
                scheduler.submit(self.client, (input, missing), gathering, self.deadline)
            })
        };
        if gathering.is_over() {
            // Its client went away, or others had what it needs, before its place was noted.
            gathering.leave(cache, scheduler);
        }
        result
    }
}

impl Future for Pending {
    type Output = Result<Done, ServeError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.answer).poll(context));
        // The sender is in the gathering, which this holds: it is not dropped unused.
        Poll::Ready(answer.unwrap_or(Err(ServeError::Cancelled)))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // Nothing comes after this: neither an answer nor, from a lookup under way, an admission.
        self.gathering.fail(ServeError::Cancelled);
        self.gathering.leave(&self.cache, &self.scheduler);
    }
}
