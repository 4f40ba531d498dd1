//! The shell around the pipeline: moves requests and answers between it and the connections.

mod events;
mod sending;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use stillhouse_nn::Philox;
use stillhouse_runtime::{
    clock,
    traces::{Context as Trace, Role, Span},
};

use stillhouse_proto::{
    LabelBatch,
    checksum::RequestSum,
    decode,
    v1::{
        LabelResponse, LabelStreamRequest, LabelStreamResponse, StudentReport, encoding::Kind,
        label_stream_request::Action, label_stream_response::Result as Answer,
    },
};
use tokio::{sync::mpsc, task::JoinSet};
use tonic::Code;

use super::{
    ClientError, Job, Labelled,
    connection::{Connection, Event, Happened},
    gate::{Address, Gate},
    jobs::{Jobs, Next},
    join::join,
    kept::{Kept, Key},
    pipeline::{Limits, Pipeline, Sending},
    refusals::{By, OTHERS_MAY_COME, Others, Refusals},
    replica::{InFlight, Live, Record, Replica},
    router,
    status::{self, Verdict, judge_code},
    units,
    wanted::on_stream,
};
use crate::recipe::teacher::OnTeacherLoss;

/// How long the first replica waits for the others.
const SETTLE: Duration = Duration::from_secs(1);
/// An answer that takes no longer than this is not late.
const LATE_AT_LEAST: Duration = Duration::from_secs(2);
/// The same before any answer has come.
const LATE_AT_FIRST: Duration = Duration::from_secs(10);

/// For a last report to be on its way.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// A job, and what is known of its units.
#[derive(Debug)]
struct Held {
    job: Job,
    /// Labels of every unit.
    labels: Vec<usize>,
    /// Whether all of it goes to one replica.
    whole: bool,
    /// What its units' labels are kept under; empty: they are not.
    keys: Vec<Key>,
    /// Of every unit's content, once they are shared out.
    hashes: OnceLock<Vec<u64>>,
    /// What its parts were refused with.
    refusals: Refusals,
}

/// A run's requests, from the jobs that ask for labels to the labels in order.
pub(super) struct Driver<I> {
    jobs: Jobs<I>,
    gate: Arc<Gate>,
    pipeline: Pipeline<Held, LabelBatch>,
    events: mpsc::Receiver<Event>,
    /// How the run is going, for the teachers.
    reports: mpsc::Receiver<StudentReport>,
    /// Makes the connections to endpoints.
    connect: Box<dyn FnMut(usize, Address) -> Connection + Send>,
    /// Endpoints, by number: those that there are, and those that have been until not long ago.
    endpoints: Vec<Replica>,
    /// No more goes in than there is room for jobs.
    out: mpsc::UnboundedSender<Result<Labelled, ClientError>>,
    /// Labels for rows that come again.
    kept: Kept,
    /// The tasks of the connections, which end with the driver.
    connections: JoinSet<()>,
    on_loss: OnTeacherLoss,
    /// Whether jobs are handed on without labels, for want of a teacher.
    lost: bool,
    /// Whether a teacher has been connected.
    connected: bool,
    /// Until then nothing is sent but once every replica has had its first try: what the first of
    /// them is asked for alone is in no other's cache.
    settles: Instant,
    /// The longest that an answer has taken of late; none before the first.
    slowest: Option<Duration>,
    last_failure: String,
}

impl<I: Iterator<Item = Job> + Send> Driver<I> {
    pub(super) fn new(
        jobs: Jobs<I>,
        gate: Arc<Gate>,
        addresses: Vec<Address>,
        connect: Box<dyn FnMut(usize, Address) -> Connection + Send>,
        (pipeline, on_loss, kept_bytes): (Limits, OnTeacherLoss, usize),
        (events, reports, jitter): (mpsc::Receiver<Event>, mpsc::Receiver<StudentReport>, Philox),
        out: mpsc::UnboundedSender<Result<Labelled, ClientError>>,
    ) -> Self {
        let mut driver = Self {
            jobs,
            gate,
            pipeline: Pipeline::new(pipeline, jitter),
            events,
            reports,
            connect,
            endpoints: Vec::new(),
            out,
            kept: Kept::new(kept_bytes),
            connections: JoinSet::new(),
            on_loss,
            lost: false,
            connected: false,
            settles: clock::now() + SETTLE,
            slowest: None,
            last_failure: "no teacher has answered yet".to_owned(),
        };
        driver.endpoints_are(addresses);
        driver
    }

    /// Connects to those that are new and retires those that are gone.
    fn endpoints_are(&mut self, addresses: Vec<Address>) {
        let mut stay = BTreeSet::new();
        for address in addresses {
            let known = self.endpoints.iter().position(|replica| {
                // One that was let go, or refused, and went, is another when it comes back.
                replica.name == address.name && (replica.task.is_some() || !replica.retired)
            });
            let now = clock::now();
            let number = known
                // The place of one that is long gone: what it still had to say has been heard.
                .or_else(|| self.endpoints.iter().position(|replica| replica.is_long_gone(now)))
                .unwrap_or(self.endpoints.len());
            stay.insert(number);
            let hash = router::name_hash(&address.known_as);
            if known.is_some() {
                // What was a name's only address may be one of several now, or the other way round: all
                // students must come to the same.
                self.endpoints[number].hash = hash;
            } else {
                let name = address.name.clone();
                let connection = (self.connect)(number, address);
                let task = Some(self.connections.spawn(connection.keep()));
                let (tried, failures, retired, live) = (false, 0, false, None);
                let (record, gone) = (Record::default(), None);
                let replica =
                    Replica { name, hash, task, tried, failures, retired, gone, record, live };
                match self.endpoints.get_mut(number) {
                    Some(place) => *place = replica,
                    None => self.endpoints.push(replica),
                }
            }
        }
        for (number, replica) in self.endpoints.iter_mut().enumerate() {
            let retired = !stay.contains(&number);
            if retired && !replica.retired {
                tracing::info!(teacher = replica.name, "its name stands for this teacher no more");
            }
            replica.retired = retired;
            if retired && replica.task.is_none() {
                replica.gone.get_or_insert(clock::now());
            }
        }
    }

    /// Runs until every job is handed on, the receiver is gone, or the run cannot go on; the error
    /// is then the last thing handed on.
    pub(super) async fn run(mut self) {
        let driven = self.drive().await;
        for live in self.endpoints.iter_mut().filter_map(|replica| replica.live.as_mut()) {
            live.give_up("the run ended before its answer");
        }
        if let Err(error) = driven {
            let _ = self.out.send(Err(error));
        }
        // That was all of them; the run goes on for as long as somebody reports how.
        self.out = mpsc::unbounded_channel().0;
        let mut told = false;
        while let Some(report) = self.reports.recv().await {
            while self.events.try_recv().is_ok() {}
            self.tell(&report);
            told = true;
        }
        if told {
            tokio::time::sleep(LAST_WORDS).await;
        }
        self.connections.shutdown().await;
    }

    async fn drive(&mut self) -> Result<(), ClientError> {
        let mut more = true;
        let timer = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(timer);
        // What it is set to; none once it has gone off.
        let mut alarm: Option<Instant> = None;
        loop {
            // What has arrived counts, however long this process was stopped meanwhile.
            while let Ok(event) = self.events.try_recv() {
                self.on(event)?;
            }
            let now = clock::now();
            while more {
                match self.jobs.next() {
                    Next::Job(job) => self.push(*job, now),
                    Next::NotYet => break,
                    Next::End => more = false,
                }
            }
            self.give_up_overdue(now);
            self.without_teachers(now)?;
            self.ask_elsewhere(now);
            self.send_ready(now);
            let is_wanted = self.deliver()?;
            if !is_wanted || (!more && self.pipeline.is_empty()) {
                return Ok(());
            }
            self.let_go();
            // What an ended connection leaves behind goes once it is asked for.
            while self.connections.try_join_next().is_some() {}

            let settles = (now < self.settles).then_some(self.settles);
            let wake = self.pipeline.next_wake(now).into_iter().chain(settles).min();
            // Set only to go off earlier. Otherwise it goes off for nothing, now and then, rather than be
            // set at every answer.
            if let Some(wake) = wake.filter(|wake| alarm.is_none_or(|alarm| *wake < alarm)) {
                let after = wake.saturating_duration_since(now);
                timer.as_mut().reset(tokio::time::Instant::now() + after);
                alarm = Some(wake);
            }
            tokio::select! {
                () = self.out.closed() => return Ok(()),
                job = self.jobs.wait(), if more => match job {
                    Some(job) => self.push(job, clock::now()),
                    None => more = false,
                },
                Some(event) = self.events.recv() => self.on(event)?,
                Some(report) = self.reports.recv() => self.tell(&report),
                () = &mut timer, if alarm.is_some() => alarm = None,
            }
        }
    }

    fn push(&mut self, job: Job, now: Instant) {
        let labels = units::labels(&job.inputs, job.rows);
        // Draws depend on the place of a row in its request; a request must ask for some label.
        let drawn = matches!(self.gate.wanted.encoding, Kind::Sampled(_));
        let whole = job.whole || drawn || labels.contains(&0);
        let count = labels.len() as u32;
        let wanted = &self.gate.wanted;
        let temperature = if wanted.depends_on_temperature() { job.temperature } else { 0.0 };
        let (mut keys, mut known) = (Vec::new(), None);
        if self.kept.is_on() && !whole {
            keys = units::contents(&job.inputs);
            known = self.kept.take(&keys, &labels, temperature);
        }
        let (hashes, refusals) = (OnceLock::new(), Refusals::default());
        let held = Held { job, labels, whole, keys, hashes, refusals };
        self.pipeline.push(held, count, known, now);
    }

    /// Hands on the labels of the next jobs; without them if teachers are lost. False if nobody takes them.
    fn deliver(&mut self) -> Result<bool, ClientError> {
        loop {
            let labelled = match self.pipeline.deliver() {
                Some((held, parts)) => {
                    let batch = join(parts, &held.labels).ok_or_else(|| ClientError::Answer {
                        endpoint: "all".to_owned(),
                        request: describe(&held.job),
                        reason: "its parts do not go together".to_owned(),
                    })?;
                    self.kept.keep(&held.keys, &held.labels, &batch);
                    Labelled { index: held.job.index, batch: Some(batch) }
                }
                None if self.lost => match self.pipeline.abandon() {
                    Some(held) => Labelled { index: held.job.index, batch: None },
                    None => return Ok(true),
                },
                None => return Ok(true),
            };
            if self.out.send(Ok(labelled)).is_err() {
                return Ok(false);
            }
        }
    }

    /// Decides what to do when no teacher answers.
    fn without_teachers(&mut self, now: Instant) -> Result<(), ClientError> {
        // A stream may end and be opened again; one that cannot be is gone.
        let gone = |of: &Replica| of.live.is_none() && (of.task.is_none() || of.failures > 1);
        let wanted = !self.pipeline.is_empty() && !self.pipeline.can_deliver();
        if self.on_loss == OnTeacherLoss::Fail
            && self.connected
            && wanted
            && self.endpoints.iter().filter(|of| !of.retired).all(gone)
        {
            return Err(ClientError::Lost { last: self.last_failure.clone() });
        }
        match self.pipeline.given_up(now) {
            Some(waited) if self.on_loss != OnTeacherLoss::HardLabels => {
                Err(ClientError::Unreachable {
                    seconds: waited.as_secs_f64(),
                    last: self.last_failure.clone(),
                })
            }
            Some(waited) => {
                if !self.lost {
                    let (seconds, last) = (waited.as_secs_f64(), &self.last_failure);
                    tracing::warn!(seconds, last, "no labels; going on with hard labels alone");
                }
                self.lost = true;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

fn describe(job: &Job) -> String {
    format!("request {} ({} rows)", job.index, job.rows)
}
