//! Soft labels from teachers, in order, whatever happens to the teachers.
//!
//! ```text
//! jobs (room) -> pipeline (retry, order) -> router -> connections (one per replica) -> teachers
//! ```
//!
//! * [`LabelClient`]: connects and hands out labels; start here.
//! * [`Wanted`], [`Job`]: what is asked for.
//! * [`Teacher`], `gate`: who may answer. Every connection, the first and each later one, is
//!   described, compared by fingerprint, and probed.
//! * [`Credentials`]: the run's token and certificates.
//! * `resolve`: the addresses that endpoints stand for, looked up again while the run lasts.
//! * `router`: which replica labels which row; `units` and `join`: a request in parts, and its parts
//!   as one.
//! * `kept`: labels of rows that come again.
//! * `pipeline`: which request to send, to send again, to hand on; without I/O or a clock.
//! * `connection`, `replica`, `jobs`, `driver`: the shell around it.
//! * `status`: which failures pass by themselves; the others are a [`ClientError`].
//! * [`soft_target`]: labels as the loss takes them.

mod backoff;
mod connection;
mod credentials;
mod dial;
mod driver;
mod error;
mod gate;
mod head;
mod jobs;
mod join;
mod kept;
mod pipeline;
mod probe;
mod refusals;
mod replica;
mod resolve;
mod retry_budget;
mod router;
mod status;
mod target;
mod teacher;
mod tries;
mod units;
mod wanted;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use connection::Connection;
use connection::Event;
use driver::Driver;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use gate::{Address, Closed, Gate, Opened};
use jobs::{Jobs, Room};
use pipeline::Limits;
use resolve::Endpoints;
use stillhouse_nn::{Head, Philox};
use stillhouse_proto::{LabelBatch, v1::StudentReport};
use tokio::sync::{Semaphore, mpsc};
use tries::Tries;

pub use credentials::Credentials;
pub(crate) use credentials::is_here;
pub use dial::{Dial, Wire};
pub use error::ClientError;
pub(crate) use gate::Line;
pub use gate::{PROBE_ROWS, Probe};
pub use resolve::Names;
pub(crate) use status::name as code_name;
pub use target::{TargetError, soft_target};
pub use teacher::Teacher;
pub use tries::Patience;
pub use wanted::{Job, Wanted, WantedInput};
pub(crate) use wanted::{encoding_of, on_stream, rule_of};

use crate::{
    random,
    recipe::teacher::{OnTeacherLoss, TeacherSection},
};

/// Once a teacher is there, the others get this long to show whether they are the same.
const OTHERS_GRACE: Duration = Duration::from_secs(5);
/// Between two reports of how a run is going.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Answers between the connections and the driver.
const EVENTS: usize = 64;

/// The labels of one job.
#[derive(Clone, Debug, PartialEq)]
pub struct Labelled {
    /// The job's position in the run.
    pub index: u64,
    /// Labels of all its rows; none if no teacher answered and the run goes on without
    /// ([`OnTeacherLoss::HardLabels`]).
    pub batch: Option<LabelBatch>,
}

impl Labelled {
    /// The labels, for those who cannot do without.
    ///
    /// # Errors
    /// If there are none.
    pub(crate) fn labels(self) -> Result<LabelBatch, ClientError> {
        self.batch.ok_or(ClientError::Ended)
    }
}

/// Where a run's teachers are, and how they are come by.
#[derive(Clone, Debug)]
pub struct Teachers {
    /// Their addresses, or names that stand for several.
    pub endpoints: Vec<String>,
    /// What names stand for.
    pub names: Names,
    /// Shown to all of them.
    pub credentials: Credentials,
    /// How connections are made; none: by the system's sockets.
    pub dial: Option<Dial>,
}

impl Teachers {
    /// Those at some endpoints, for whoever comes.
    pub fn at(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            names: Names::of_system(),
            credentials: Credentials::default(),
            dial: None,
        }
    }

    /// Those of a recipe.
    pub fn of(section: &TeacherSection) -> Self {
        Self { credentials: Credentials::of(section), ..Self::at(section.endpoints.clone()) }
    }
}

/// A run's access to its teachers.
#[derive(Debug)]
pub struct LabelClient {
    gate: Arc<Gate>,
    endpoints: Endpoints,
    /// What they stood for last.
    addresses: Vec<Address>,
    first: Opened,
    first_address: usize,
    patience: Patience,
}

impl LabelClient {
    /// Connects to all teachers at once, and returns when one has passed the gate and the others
    /// have had a few seconds, so that one that must be refused is refused before the run; one that
    /// is not there now may come later.
    ///
    /// # Errors
    /// If an address is none, a file of the credentials cannot be used, a teacher does not suit the run, two of them differ, or none is
    /// there for as long as `patience` allows.
    pub async fn connect(
        teachers: &Teachers,
        wanted: Wanted,
        probe: Probe,
        patience: Patience,
    ) -> Result<Self, ClientError> {
        let Teachers { endpoints, names, credentials, dial } = teachers.clone();
        credentials.check(&endpoints)?;
        let mut endpoints = Endpoints::parse(&endpoints, names)?;
        let gate = Gate::new(wanted, (credentials, dial), probe);
        let mut tries = Tries::new(patience);
        // Why the try before failed: the last may have too little time to find out.
        let mut why = None;
        let (addresses, (first_address, first)) = loop {
            let (addresses, failure) = endpoints.resolve().await;
            let opened = match failure {
                Some(closed) if addresses.is_empty() => Err(closed),
                _ => Box::pin(open_any(&gate, &addresses, tries.left(), why.take())).await,
            };
            match opened {
                Ok(opened) => break (addresses, opened),
                Err(closed) => {
                    if let Closed::ForNow { reason, .. } = &closed {
                        why = Some(reason.clone());
                    }
                    tries.pause(closed).await?;
                }
            }
        };
        Ok(Self { gate: Arc::new(gate), endpoints, addresses, first, first_address, patience })
    }

    /// Keeps no labels: no row comes again.
    pub(crate) fn keep_none(&mut self) {
        self.patience.kept_bytes = 0;
    }

    /// Ends rather than goes on without labels.
    pub(crate) fn must_have_labels(&mut self) {
        if self.patience.on_loss == OnTeacherLoss::HardLabels {
            self.patience.on_loss = OnTeacherLoss::Wait;
        }
    }

    /// The teacher that all labels will come from.
    pub fn teacher(&self) -> &Teacher {
        &self.first.teacher
    }

    /// Fetches the teacher's output projection, for labels that are hidden states, from whichever
    /// endpoint gives it.
    ///
    /// # Errors
    /// If it does not come within the patience for it, or is not what it should be.
    pub async fn fetch_head(&self) -> Result<Head, ClientError> {
        let mut tries = Tries::new(self.patience);
        let mut opened = Some(self.first.clone());
        let mut number = self.first_address;
        let mut refusal = None;
        loop {
            let address = &self.addresses[number];
            let fetched = self.fetch_head_from(address, opened.take(), tries.left());
            match tries.within(fetched).await {
                Ok(head) => return Ok(head),
                // It may be of what became of a piece on the way. Said again, it is believed.
                Err(Closed::ForGood(error)) if refusal.is_none() => {
                    tries.pause(Closed::for_now(refusal.insert(error.to_string()).clone())).await?;
                }
                Err(closed) => tries.pause(closed).await?,
            }
            number = (number + 1) % self.addresses.len();
        }
    }

    /// One try at one endpoint, over the connection that is open or one of its own.
    async fn fetch_head_from(
        &self,
        address: &Address,
        opened: Option<Opened>,
        limit: Duration,
    ) -> Result<Head, Closed> {
        let Opened { mut client, teacher, .. } = match opened {
            Some(opened) => opened,
            None => self.gate.open(address).await?,
        };
        head::fetch(&self.gate, &address.name, (&mut client, &teacher), limit).await
    }

    /// Asks for the labels of all jobs, ahead of their use unless the patience's window is 0, and hands
    /// them on in the order of the jobs. Must be called within a tokio runtime.
    pub fn labels<I>(self, jobs: I) -> OrderedLabels
    where
        I: Iterator<Item = Job> + Send + 'static,
    {
        let ahead = self.patience.window;
        self.drive(Jobs::planned(jobs, ahead))
    }

    /// As [`Self::labels`], for jobs that are not known before they are sent: on-policy samples, say.
    /// Dropping the sender ends the labels.
    pub fn on_demand(mut self) -> (mpsc::Sender<Job>, OrderedLabels) {
        self.keep_none();
        let ahead = self.patience.window.clamp(1, Semaphore::MAX_PERMITS);
        let (sender, jobs) = mpsc::channel(ahead);
        (sender, self.drive(Jobs::<std::iter::Empty<Job>>::demanded(jobs, ahead)))
    }

    fn drive<I>(self, (jobs, room): (Jobs<I>, Room)) -> OrderedLabels
    where
        I: Iterator<Item = Job> + Send + 'static,
    {
        let patience = self.patience;
        let (send_events, events) = mpsc::channel(EVENTS);
        let limits = Limits {
            timeout: patient(self.gate.wanted.timeout),
            budget: patience.budget,
            backoff: patience.backoff(),
        };
        let (gate, told) = (Arc::clone(&self.gate), send_events.clone());
        let connect = move |endpoint: usize, address| Connection {
            endpoint,
            address,
            gate: Arc::clone(&gate),
            backoff: patience.backoff(),
            jitter: Philox::new(patience.seed, random::JITTER + 1 + endpoint as u64),
            events: told.clone(),
        };
        let (out, answers) = mpsc::unbounded_channel();
        let (report, reports) = mpsc::channel(1);
        let jitter = Philox::new(patience.seed, random::JITTER);
        let driver = Driver::new(
            jobs,
            self.gate,
            self.addresses,
            Box::new(connect),
            (limits, patience.on_loss, patience.kept_bytes),
            (events, reports, jitter),
            out,
        );
        if self.endpoints.may_change() {
            tokio::spawn(look_again(self.endpoints, send_events));
        }
        // It ends when nobody takes its labels and reports any more.
        tokio::spawn(driver.run());
        OrderedLabels { answers, room, report, reported: None }
    }
}

/// Tells the driver what the names of endpoints stand for, again and again. A name that cannot be
/// resolved for the moment changes nothing.
async fn look_again(mut endpoints: Endpoints, events: mpsc::Sender<Event>) {
    loop {
        tokio::select! {
            () = events.closed() => return,
            () = tokio::time::sleep(endpoints.names.every) => {}
        }
        let (addresses, failure) = endpoints.resolve().await;
        if let Some(failure) = failure {
            tracing::debug!(?failure, "a teacher's name cannot be resolved");
        }
        // A name that stands for nothing for a moment is no reason to leave everybody.
        if !addresses.is_empty() && events.send(Event::Endpoints(addresses)).await.is_err() {
            return;
        }
    }
}

/// Connects to one endpoint, for who speaks with it without a gate: of several addresses, to one in turn by
/// a number.
pub(crate) async fn connect_line(
    endpoint: &str,
    credentials: &Credentials,
    number: usize,
) -> Result<Line, ClientError> {
    let given = [endpoint.to_owned()];
    let endpoints = Endpoints::parse(&given, Names::of_system())?;
    let unreachable = |last: String| ClientError::Unreachable { seconds: 0.0, last };
    credentials.check(&given)?;
    endpoints.connect_one(credentials, number).await.map_err(unreachable)
}

/// How long to wait here for a request that the teacher drops after `timeout`: long enough for the
/// teacher to say so itself, since giving a connection up costs everything in flight on it.
fn patient(timeout: Duration) -> Duration {
    timeout + (timeout / 4).max(Duration::from_secs(1))
}

/// Tries all addresses at once, for at most `limit`, and returns the first that passed the gate with
/// its number. The others are waited for no longer than a connection may take. Where none says why it does
/// not pass, it is for what it was `before`.
async fn open_any(
    gate: &Gate,
    addresses: &[Address],
    limit: Duration,
    before: Option<String>,
) -> Result<(usize, Opened), Closed> {
    let mut opening: FuturesUnordered<_> = addresses
        .iter()
        .enumerate()
        .map(|(number, address)| async move { (number, gate.open(address).await) })
        .collect();
    let mut found = None;
    let silent = || format!("no teacher has answered within {limit:?}");
    let mut last = Closed::for_now(before.unwrap_or_else(silent));
    let begun = tokio::time::Instant::now();
    let time = tokio::time::sleep(limit);
    tokio::pin!(time);
    loop {
        let next = tokio::select! {
            next = opening.next() => next,
            () = &mut time => None,
        };
        match next {
            Some((number, Ok(opened))) if found.is_none() => {
                found = Some((number, opened));
                let grace = begun.elapsed() + OTHERS_GRACE;
                time.as_mut().reset(begun + grace.min(limit));
            }
            Some((_, Ok(_))) => {}
            Some((_, Err(Closed::ForNow { reason, after }))) => {
                tracing::warn!(reason, "teacher not connected");
                last = Closed::ForNow { reason, after };
            }
            Some((_, Err(refused))) => return Err(refused),
            None => return found.ok_or(last),
        }
    }
}

/// Labels in the order of their jobs. Dropped, it ends the requests in flight.
#[derive(Debug)]
pub struct OrderedLabels {
    answers: mpsc::UnboundedReceiver<Result<Labelled, ClientError>>,
    room: Room,
    /// For the teachers: how the run is going.
    report: mpsc::Sender<StudentReport>,
    reported: Option<Instant>,
}

impl OrderedLabels {
    /// The labels of the next job; none after the last, and after an error.
    pub async fn next(&mut self) -> Option<Result<Labelled, ClientError>> {
        self.room.wait();
        let next = self.answers.recv().await;
        self.room.used();
        next
    }
}

impl OrderedLabels {
    /// Says that so many will be waited for now, one after the other.
    pub(crate) fn will_take(&mut self, jobs: usize) {
        self.room.will_take(jobs);
    }
}

impl OrderedLabels {
    /// Tells the teachers how the run is going, once a second and after the last step, if they are there
    /// and have room.
    pub fn report(&mut self, report: impl FnOnce() -> StudentReport, last: bool) {
        let now = Instant::now();
        if last || self.reported.is_none_or(|at| now.duration_since(at) >= REPORT_EVERY) {
            self.reported = Some(now);
            // One that finds no room is not missed.
            drop(self.report.try_send(report()));
        }
    }
}
