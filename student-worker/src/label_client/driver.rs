//! The shell around the pipeline: moves requests and answers between it and the connections.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use stillhouse_nn::Philox;
use stillhouse_runtime::clock;

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
    replica::{InFlight, Live, Replica},
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
    /// What it was refused with last: a refusal that is repeated is believed, one that is not may be
    /// of what became of the request on the way.
    refusal: Mutex<Option<(u32, String)>>,
}

impl Held {
    /// Notes a refusal of the part that begins with a unit; whether it was refused so before.
    fn refused_again(&self, first: u32, words: &str) -> bool {
        let mut last = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        let refusal = (first, words.to_owned());
        let again = last.as_ref() == Some(&refusal);
        *last = Some(refusal);
        again
    }
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
    /// Every endpoint that there has been, by number.
    endpoints: Vec<Replica>,
    out: mpsc::Sender<Result<Labelled, ClientError>>,
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
        out: mpsc::Sender<Result<Labelled, ClientError>>,
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
            let number = known.unwrap_or(self.endpoints.len());
            stay.insert(number);
            if known.is_none() {
                let (name, hash) = (address.name.clone(), router::name_hash(&address.known_as));
                let connection = (self.connect)(number, address);
                let task = Some(self.connections.spawn(connection.keep()));
                let (tried, failures, retired, live) = (false, 0, false, None);
                let replica = Replica { name, hash, task, tried, failures, retired, live };
                self.endpoints.push(replica);
            }
        }
        for (number, replica) in self.endpoints.iter_mut().enumerate() {
            let retired = !stay.contains(&number);
            if retired && !replica.retired {
                tracing::info!(teacher = replica.name, "its name stands for this teacher no more");
            }
            replica.retired = retired;
        }
    }

    /// Runs until every job is handed on, the receiver is gone, or the run cannot go on; the error
    /// is then the last thing handed on.
    pub(super) async fn run(mut self) {
        if let Err(error) = self.drive().await {
            let _ = self.out.send(Err(error)).await;
        }
        // That was all of them; the run goes on for as long as somebody reports how.
        self.out = mpsc::channel(1).0;
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
        loop {
            // What has arrived counts, however long this process was stopped meanwhile.
            while let Ok(event) = self.events.try_recv() {
                self.on(event)?;
            }
            let now = clock::now();
            while more && self.pipeline.has_room() {
                match self.jobs.next() {
                    Next::Job(job) => self.push(*job, now),
                    Next::NotYet => break,
                    Next::End => more = false,
                }
            }
            if !more && self.pipeline.is_empty() {
                return Ok(());
            }
            self.give_up_overdue(now);
            self.without_teachers(now)?;
            self.ask_elsewhere(now);
            self.send_ready(now);
            self.let_go();

            let settles = (now < self.settles).then_some(self.settles);
            let wake = self.pipeline.next_wake(now).into_iter().chain(settles).min();
            let idle = Duration::from_secs(3600);
            let wake = wake.map_or(idle, |wake| wake.saturating_duration_since(now));
            let out = self.out.clone();
            let deliverable = self.lost || self.pipeline.can_deliver();
            tokio::select! {
                permit = out.reserve(), if deliverable && !self.pipeline.is_empty() => {
                    let Ok(permit) = permit else { return Ok(()) };
                    if let Some(labelled) = self.deliver()? {
                        permit.send(Ok(labelled));
                    }
                }
                () = out.closed() => return Ok(()),
                job = self.jobs.wait(), if more && self.pipeline.has_room() => match job {
                    Some(job) => self.push(job, clock::now()),
                    None => more = false,
                },
                Some(event) = self.events.recv() => self.on(event)?,
                Some(report) = self.reports.recv() => self.tell(&report),
                () = tokio::time::sleep(wake) => {}
            }
        }
    }

    /// Passes on how the run is going, to those who want to know and have room.
    fn tell(&self, report: &StudentReport) {
        for live in self.endpoints.iter().filter_map(|replica| replica.live.as_ref()) {
            // Room for every request that the teacher may have comes first.
            let link = &live.link;
            let room = link.requests.capacity() + live.in_flight.len() > link.capacity;
            if link.takes_reports && room {
                let client = self.gate.wanted.client.clone();
                let action = Some(Action::Report(StudentReport { client, ..report.clone() }));
                drop(live.link.requests.try_send(LabelStreamRequest { action }));
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
        let (hashes, refusal) = (OnceLock::new(), Mutex::default());
        let held = Held { job, labels, whole, keys, hashes, refusal };
        self.pipeline.push(held, count, known, now);
    }

    /// The next job's labels; without them if teachers are lost.
    fn deliver(&mut self) -> Result<Option<Labelled>, ClientError> {
        if let Some((held, parts)) = self.pipeline.deliver() {
            let index = held.job.index;
            let batch = join(parts, &held.labels).ok_or_else(|| ClientError::Answer {
                endpoint: "all".to_owned(),
                request: describe(&held.job),
                reason: "its parts do not go together".to_owned(),
            })?;
            self.kept.keep(&held.keys, &held.labels, &batch);
            return Ok(Some(Labelled { index, batch: Some(batch) }));
        }
        if !self.lost {
            return Ok(None);
        }
        let without = |held: Held| Labelled { index: held.job.index, batch: None };
        Ok(self.pipeline.abandon().map(without))
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

    fn on(&mut self, event: Event) -> Result<(), ClientError> {
        let now = clock::now();
        let event = match event {
            Event::Endpoints(addresses) => {
                self.endpoints_are(addresses);
                return Ok(());
            }
            Event::Of(endpoint, event) if self.endpoints[endpoint].task.is_some() => {
                (endpoint, event)
            }
            // Sent before its endpoint was refused.
            Event::Of(..) => return Ok(()),
        };
        let (endpoint, event) = event;
        let replica = &mut self.endpoints[endpoint];
        replica.tried = true;
        match event {
            Happened::Up(link) => {
                tracing::info!(teacher = replica.name, "teacher connected");
                let in_flight = HashMap::new();
                replica.failures = 0;
                replica.live = Some(Live { link, in_flight, serving: true, suspect: false });
                self.connected = true;
                Ok(())
            }
            Happened::Answer(answer) => self.answer(endpoint, answer, now),
            Happened::Serving(serving) => {
                if let Some(live) = &mut replica.live {
                    if live.serving != serving {
                        tracing::info!(teacher = replica.name, serving, "teacher's health");
                    }
                    live.serving = serving;
                }
                Ok(())
            }
            Happened::Down(reason) => {
                replica.failures = replica.failures.saturating_add(1);
                if let Some(reason) = reason {
                    tracing::warn!(reason, "teacher not connected; trying again");
                    self.last_failure = reason;
                }
                self.drop_link(endpoint, now);
                Ok(())
            }
            Happened::Refused(error) => self.refuse(endpoint, error, now),
        }
    }

    fn answer(
        &mut self,
        endpoint: usize,
        answer: LabelStreamResponse,
        now: Instant,
    ) -> Result<(), ClientError> {
        let replica = &mut self.endpoints[endpoint];
        let (mut asked, mut has_checksums) = (None, false);
        if let Some(live) = &mut replica.live {
            live.suspect = false;
            asked = live.in_flight.remove(&answer.id);
            has_checksums = live.link.has_checksums;
        }
        // Only of this stream: nothing else answers here, unless it was changed on the way.
        let Some(InFlight { sent, sum, .. }) = asked else { return Ok(()) };
        // The slowest fades, so that one slow answer is forgotten after some hundred others.
        let took = now.saturating_duration_since(sent);
        self.slowest = Some(self.slowest.unwrap_or_default().mul_f64(0.99).max(took));
        if matches!(answer.result, Some(Answer::Response(_))) && std::mem::take(&mut self.lost) {
            tracing::info!(teacher = replica.name, "labels again");
            self.pipeline.heard(now);
        }
        let request = answer.id;
        // The request may have been given up; its answer came all the same.
        let Some((held, units)) = self.pipeline.job(request) else { return Ok(()) };
        let name = replica.name.clone();
        let (job, described) = (&held.job, describe(&held.job));
        let first = units.first().copied().unwrap_or(0);
        let rows = units.iter().map(|&unit| held.labels[unit as usize]).sum();
        match answer.result {
            Some(Answer::Response(response)) => {
                let checked = sum.agrees(&response);
                if checked == Some(false) || (checked.is_none() && has_checksums) {
                    self.last_failure =
                        format!("{name}: {described}: the answer was changed on the way");
                    tracing::warn!(reason = self.last_failure, "trying again");
                    self.pipeline.failed(request, Duration::ZERO, now);
                    return Ok(());
                }
                match self.labels((&name, &described), job, rows, &response) {
                    Ok(batch) => {
                        self.pipeline.answered(request, batch, now);
                        Ok(())
                    }
                    // Another model stands at this address now; the others are as they were.
                    Err(error @ ClientError::Fingerprint { .. }) => {
                        self.refuse(endpoint, error, now)
                    }
                    Err(error) => Err(error),
                }
            }
            Some(Answer::Error(error)) => {
                let code = Code::from_i32(error.code);
                let after = Duration::from_millis(error.retry_after_ms.into());
                let words = format!("{}: {}", status::name(code), error.message);
                match judge_code(code, after) {
                    Verdict::Retry(after) => {
                        tracing::debug!(teacher = name, request = described, words, "trying again");
                        self.last_failure = format!("{name}: {described}: {words}");
                        self.pipeline.failed(request, after, now);
                        Ok(())
                    }
                    Verdict::Final if held.refused_again(first, &words) => {
                        Err(ClientError::Refused {
                            endpoint: name,
                            request: described,
                            code: status::name(code),
                            message: error.message,
                        })
                    }
                    Verdict::Final => {
                        tracing::warn!(teacher = name, request = described, words, "asking again");
                        self.pipeline.failed(request, Duration::ZERO, now);
                        Ok(())
                    }
                }
            }
            None => {
                let reason = "it holds neither labels nor an error".to_owned();
                if held.refused_again(first, &reason) {
                    let (endpoint, request) = (name, described);
                    return Err(ClientError::Answer { endpoint, request, reason });
                }
                self.pipeline.failed(request, Duration::ZERO, now);
                Ok(())
            }
        }
    }

    /// Checks an answer of `rows` labels against its request and decodes it.
    fn labels(
        &self,
        (endpoint, request): (&str, &str),
        job: &Job,
        rows: usize,
        response: &LabelResponse,
    ) -> Result<LabelBatch, ClientError> {
        self.gate.same_fingerprint(endpoint, &response.fingerprint)?;
        let unusable = |reason: String| ClientError::Answer {
            endpoint: endpoint.to_owned(),
            request: request.to_owned(),
            reason,
        };
        if let Some(first) = response.row_errors.first() {
            let count = response.row_errors.len();
            let (row, message) = (first.row, &first.message);
            return Err(unusable(format!("{count} rows have no label; row {row}: {message}")));
        }
        let [labels] = response.labels.as_slice() else {
            let found = response.labels.len();
            return Err(unusable(format!("it has labels of {found} temperatures, expected 1")));
        };
        let batch = decode(labels).map_err(|error| unusable(error.to_string()))?;
        self.gate.wanted.check(rows, job.temperature, &batch).map_err(unusable)?;
        Ok(batch)
    }

    /// Replicas that work may go to: those that are well, or else those that are not.
    fn replicas(&self) -> Vec<router::Replica> {
        let open = |well: bool| -> Vec<router::Replica> {
            let replicas = self.endpoints.iter().enumerate();
            replicas
                .filter_map(|(endpoint, replica)| {
                    let live = replica.live.as_ref()?;
                    let is_well = replica.is_well();
                    let room = live.link.capacity.saturating_sub(live.in_flight.len());
                    let (hash, load) = (replica.hash, live.load());
                    (is_well == well).then_some(router::Replica { endpoint, hash, load, room })
                })
                .collect()
        };
        let well = open(true);
        if well.is_empty() { open(false) } else { well }
    }

    /// Sends what can be sent, each unit to its replica.
    fn send_ready(&mut self, now: Instant) {
        if now < self.settles && self.endpoints.iter().any(|replica| !replica.tried) {
            return;
        }
        self.settles = now;
        loop {
            let replicas = self.replicas();
            let late_after = self.late_after();
            let sending = self.pipeline.send(now, late_after, |held, units| {
                let first = held.job.index;
                if held.whole || replicas.len() < 2 {
                    let whole = router::whole(&replicas, first);
                    return whole.map(|endpoint| (endpoint, units.to_vec())).into_iter().collect();
                }
                let hashes = held.hashes.get_or_init(|| units::hashes(&held.job.inputs));
                let hash = |&unit: &u32| (unit, hashes[unit as usize]);
                router::share(&replicas, &units.iter().map(hash).collect::<Vec<_>>())
            });
            if sending.is_empty() {
                return;
            }
            for sending in sending {
                self.transmit(&sending, now);
            }
        }
    }

    /// How long an answer may take before it is late: far longer than any has of late.
    fn late_after(&self) -> Duration {
        let timeout = self.pipeline.timeout();
        let late = self.slowest.map_or(LATE_AT_FIRST, |slowest| (slowest * 4).max(LATE_AT_LEAST));
        late.min(timeout)
    }

    /// Notes who is late, and asks others for what they owe.
    fn ask_elsewhere(&mut self, now: Instant) {
        for endpoint in self.pipeline.late(now) {
            let others = self.endpoints.iter().enumerate();
            if !others.into_iter().any(|(at, of)| at != endpoint && of.is_well()) {
                continue;
            }
            let replica = &mut self.endpoints[endpoint];
            if let Some(live) = replica.live.as_mut().filter(|live| !live.suspect) {
                tracing::warn!(teacher = replica.name, "answers are late; asking others");
                live.suspect = true;
                self.pipeline.all_late(endpoint, now);
            }
        }
        loop {
            let replicas = self.replicas();
            let sending = self.pipeline.send_late(now, |held, units, late| {
                let others: Vec<router::Replica> =
                    replicas.iter().filter(|replica| replica.endpoint != late).cloned().collect();
                let hashes = held.hashes.get().map_or(&[][..], Vec::as_slice);
                let hash = units.first().and_then(|&unit| hashes.get(unit as usize));
                router::whole(&others, *hash.unwrap_or(&held.job.index))
            });
            let Some(sending) = sending else { return };
            self.transmit(&sending, now);
        }
    }

    fn transmit(&mut self, sending: &Sending, now: Instant) {
        let Sending { request, endpoint, units } = sending;
        let Some((held, _)) = self.pipeline.job(*request) else { return };
        let inputs = match units.len() == held.labels.len() {
            true => held.job.inputs.clone(),
            false => units::some(&held.job.inputs, units),
        };
        let message = self.gate.wanted.request(*request, &held.job, inputs);
        let Some(live) = &mut self.endpoints[*endpoint].live else { return };
        let sum = RequestSum::new(&message);
        live.in_flight.insert(*request, InFlight { sent: now, units: units.len(), sum });
        let message = on_stream(message);
        if live.link.requests.try_send(message).is_err() {
            // The stream has ended; word of it is on its way.
            self.drop_link(*endpoint, now);
        }
    }

    /// A teacher that has not even said that it is late is not there: its stream is closed, and
    /// what was in flight on it goes elsewhere.
    fn give_up_overdue(&mut self, now: Instant) {
        let waited = self.pipeline.timeout();
        // Of requests that were answered elsewhere meanwhile, too: who owes an answer for so long is
        // connected to anew, and shows by the probe whether it is there.
        let owes = |replica: &Replica| {
            let mut requests = replica.live.iter().flat_map(|live| live.in_flight.values());
            requests.any(|request| now.saturating_duration_since(request.sent) >= waited)
        };
        let mut overdue = self.pipeline.overdue(now);
        overdue.extend((0..self.endpoints.len()).filter(|&at| owes(&self.endpoints[at])));
        for endpoint in overdue {
            let name = &self.endpoints[endpoint].name;
            self.last_failure = format!("{name}: no answer within {waited:?}");
            tracing::warn!(reason = self.last_failure, "teacher given up; connecting anew");
            self.drop_link(endpoint, now);
        }
    }

    /// Leaves retired endpoints that owe no answer.
    fn let_go(&mut self) {
        if !self.endpoints.iter().any(|replica| !replica.retired && replica.live.is_some()) {
            // Better one that is about to go than none.
            return;
        }
        for replica in self.endpoints.iter_mut().filter(|replica| replica.retired) {
            if replica.live.as_ref().is_none_or(|live| live.in_flight.is_empty())
                && let Some(task) = replica.task.take()
            {
                task.abort();
                replica.live = None;
            }
        }
    }

    /// Leaves an endpoint for good. The run ends with its error when no other is left.
    fn refuse(
        &mut self,
        endpoint: usize,
        error: ClientError,
        now: Instant,
    ) -> Result<(), ClientError> {
        if let Some(task) = self.endpoints[endpoint].task.take() {
            task.abort();
        }
        self.drop_link(endpoint, now);
        if self.endpoints.iter().all(|replica| replica.task.is_none()) {
            return Err(error);
        }
        tracing::error!(%error, "teacher refused; going on with the others");
        self.last_failure = error.to_string();
        Ok(())
    }

    /// Closes the stream to an endpoint; what was in flight on it goes elsewhere.
    fn drop_link(&mut self, endpoint: usize, now: Instant) {
        self.endpoints[endpoint].live = None;
        self.pipeline.lost(endpoint, now);
    }
}

fn describe(job: &Job) -> String {
    format!("request {} ({} rows)", job.index, job.rows)
}
