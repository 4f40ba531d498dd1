//! The shell around the pipeline: moves requests and answers between it and the connections.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use stillhouse_proto::{
    LabelBatch, decode,
    v1::{LabelResponse, LabelStreamResponse, label_stream_response::Result as Answer},
};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};
use tonic::Code;

use super::{
    ClientError, Job, Labelled,
    connection::{Event, Link},
    gate::Gate,
    pipeline::Pipeline,
    status::{self, Verdict, judge_code},
    wanted::on_stream,
};

/// Where jobs come from.
pub(super) enum Jobs<I> {
    /// They are known, and taken as long as there is room.
    Planned(I),
    /// They come when somebody has them.
    Demanded(mpsc::Receiver<Job>),
}

/// The next job, if there is one already.
enum Next {
    Job(Box<Job>),
    NotYet,
    End,
}

impl<I: Iterator<Item = Job>> Jobs<I> {
    fn next(&mut self) -> Next {
        match self {
            Self::Planned(jobs) => jobs.next().map_or(Next::End, |job| Next::Job(Box::new(job))),
            Self::Demanded(jobs) => match jobs.try_recv() {
                Ok(job) => Next::Job(Box::new(job)),
                Err(mpsc::error::TryRecvError::Empty) => Next::NotYet,
                Err(mpsc::error::TryRecvError::Disconnected) => Next::End,
            },
        }
    }

    /// Waits for a job that is demanded; none when there will be no more. For ever where they are
    /// planned.
    async fn wait(&mut self) -> Option<Job> {
        match self {
            Self::Planned(_) => std::future::pending().await,
            Self::Demanded(jobs) => jobs.recv().await,
        }
    }
}

/// A run's requests, from the jobs that ask for labels to the labels in order.
pub(super) struct Driver<I> {
    jobs: Jobs<I>,
    gate: Arc<Gate>,
    names: Vec<String>,
    pipeline: Pipeline<Job, LabelBatch>,
    events: mpsc::Receiver<Event>,
    /// The task of each endpoint; none of one that was refused.
    tasks: Vec<Option<AbortHandle>>,
    out: mpsc::Sender<Result<Labelled, ClientError>>,
    /// The tasks of the connections, which end with the driver.
    connections: JoinSet<()>,
    /// Open streams, by endpoint.
    links: Vec<Option<Live>>,
    next_endpoint: usize,
    last_failure: String,
}

/// An open stream and its load.
#[derive(Debug)]
struct Live {
    link: Link,
    in_flight: usize,
}

impl<I: Iterator<Item = Job> + Send> Driver<I> {
    pub(super) fn new(
        jobs: Jobs<I>,
        gate: Arc<Gate>,
        endpoints: Vec<(String, AbortHandle)>,
        pipeline: Pipeline<Job, LabelBatch>,
        (events, connections): (mpsc::Receiver<Event>, JoinSet<()>),
        out: mpsc::Sender<Result<Labelled, ClientError>>,
    ) -> Self {
        let links = endpoints.iter().map(|_| None).collect();
        let (names, tasks) = endpoints.into_iter().map(|(name, task)| (name, Some(task))).unzip();
        Self {
            jobs,
            gate,
            names,
            pipeline,
            events,
            tasks,
            out,
            connections,
            links,
            next_endpoint: 0,
            last_failure: "no teacher has answered yet".to_owned(),
        }
    }

    /// Runs until every job is handed on, the receiver is gone, or the run cannot go on; the error
    /// is then the last thing handed on.
    pub(super) async fn run(mut self) {
        if let Err(error) = self.drive().await {
            let _ = self.out.send(Err(error)).await;
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
            let now = Instant::now();
            while more && self.pipeline.has_room() {
                match self.jobs.next() {
                    Next::Job(job) => self.pipeline.push(*job, now),
                    Next::NotYet => break,
                    Next::End => more = false,
                }
            }
            if !more && self.pipeline.is_empty() {
                return Ok(());
            }
            self.give_up_overdue(now);
            if let Some(waited) = self.pipeline.given_up(now) {
                return Err(ClientError::Unreachable {
                    seconds: waited.as_secs_f64(),
                    last: self.last_failure.clone(),
                });
            }
            self.send_ready(now);

            let wake = self.pipeline.next_wake(now);
            let idle = Duration::from_secs(3600);
            let wake = wake.map_or(idle, |wake| wake.saturating_duration_since(now));
            let out = self.out.clone();
            tokio::select! {
                permit = out.reserve(), if self.pipeline.can_deliver() => {
                    let Ok(permit) = permit else { return Ok(()) };
                    if let Some((job, batch)) = self.pipeline.deliver() {
                        permit.send(Ok(Labelled { index: job.index, batch }));
                    }
                }
                () = out.closed() => return Ok(()),
                job = self.jobs.wait(), if more && self.pipeline.has_room() => match job {
                    Some(job) => self.pipeline.push(job, Instant::now()),
                    None => more = false,
                },
                Some(event) = self.events.recv() => self.on(event)?,
                () = tokio::time::sleep(wake) => {}
            }
        }
    }

    fn on(&mut self, event: Event) -> Result<(), ClientError> {
        let now = Instant::now();
        if self.tasks[event.endpoint()].is_none() {
            // Sent before its endpoint was refused.
            return Ok(());
        }
        match event {
            Event::Up { endpoint, link } => {
                tracing::info!(teacher = self.names[endpoint], "teacher connected");
                self.links[endpoint] = Some(Live { link, in_flight: 0 });
                Ok(())
            }
            Event::Answer { endpoint, answer } => self.answer(endpoint, answer, now),
            Event::Down { endpoint, reason } => {
                if let Some(reason) = reason {
                    tracing::warn!(reason, "teacher not connected; trying again");
                    self.last_failure = reason;
                }
                self.drop_link(endpoint, now);
                Ok(())
            }
            Event::Refused { endpoint, error } => self.refuse(endpoint, error, now),
        }
    }

    fn answer(
        &mut self,
        endpoint: usize,
        answer: LabelStreamResponse,
        now: Instant,
    ) -> Result<(), ClientError> {
        if let Some(live) = &mut self.links[endpoint] {
            live.in_flight = live.in_flight.saturating_sub(1);
        }
        let request = answer.id;
        // The request may have been given up; its answer came all the same.
        let Some(job) = self.pipeline.job(request) else { return Ok(()) };
        let name = self.names[endpoint].clone();
        let described = format!("request {} ({} rows)", job.index, job.rows);
        match answer.result {
            Some(Answer::Response(response)) => {
                match self.labels(&name, &described, job, &response) {
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
                    Verdict::Final => Err(ClientError::Refused {
                        endpoint: name,
                        request: described,
                        code: status::name(code),
                        message: error.message,
                    }),
                }
            }
            None => Err(ClientError::Answer {
                endpoint: name,
                request: described,
                reason: "it holds neither labels nor an error".to_owned(),
            }),
        }
    }

    /// Checks an answer against its request and decodes it.
    fn labels(
        &self,
        endpoint: &str,
        request: &str,
        job: &Job,
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
        self.gate.wanted.check(job.rows, job.temperature, &batch).map_err(unusable)?;
        Ok(batch)
    }

    /// Sends what can be sent, to the open streams in turn.
    fn send_ready(&mut self, now: Instant) {
        while self.pipeline.has_ready(now) {
            let Some(endpoint) = self.free_endpoint() else { return };
            let Some((request, job)) = self.pipeline.send(endpoint, now) else { return };
            let message = on_stream(self.gate.wanted.request(request, job));
            let Some(live) = &mut self.links[endpoint] else { return };
            live.in_flight += 1;
            if live.link.requests.try_send(message).is_err() {
                // The stream has ended; word of it is on its way.
                self.drop_link(endpoint, now);
            }
        }
    }

    fn free_endpoint(&mut self) -> Option<usize> {
        let count = self.links.len();
        let turn = self.next_endpoint;
        let free = |endpoint: &usize| {
            self.links[*endpoint].as_ref().is_some_and(|live| live.in_flight < live.link.capacity)
        };
        let endpoint = (turn..turn + count).map(|at| at % count).find(free)?;
        self.next_endpoint = endpoint + 1;
        Some(endpoint)
    }

    /// A teacher that has not even said that it is late is not there: its stream is closed, and
    /// what was in flight on it goes elsewhere.
    fn give_up_overdue(&mut self, now: Instant) {
        for endpoint in self.pipeline.overdue(now) {
            let waited = self.pipeline.timeout();
            self.last_failure = format!("{}: no answer within {waited:?}", self.names[endpoint]);
            tracing::warn!(reason = self.last_failure, "teacher given up; connecting anew");
            self.drop_link(endpoint, now);
        }
    }

    /// Leaves an endpoint for good. The run ends with its error when no other is left.
    fn refuse(
        &mut self,
        endpoint: usize,
        error: ClientError,
        now: Instant,
    ) -> Result<(), ClientError> {
        if let Some(task) = self.tasks[endpoint].take() {
            task.abort();
        }
        self.drop_link(endpoint, now);
        if self.tasks.iter().all(Option::is_none) {
            return Err(error);
        }
        tracing::error!(%error, "teacher refused; going on with the others");
        self.last_failure = error.to_string();
        Ok(())
    }

    /// Closes the stream to an endpoint; what was in flight on it goes elsewhere.
    fn drop_link(&mut self, endpoint: usize, now: Instant) {
        self.links[endpoint] = None;
        self.pipeline.lost(endpoint, now);
    }
}
