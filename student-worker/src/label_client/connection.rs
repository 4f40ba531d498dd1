//! One endpoint: connected, streamed to, and connected again, for as long as the run lasts.

use std::{sync::Arc, time::Duration};

use stillhouse_nn::Philox;
use stillhouse_proto::v1::{
    LabelStreamRequest, LabelStreamResponse, teacher_service_server::SERVICE_NAME,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{
    ClientError,
    backoff::Backoff,
    gate::{Address, Client, Closed, Gate, Line, Opened, closed},
    status::words,
};

/// What the driver is told.
#[derive(Debug)]
pub(super) enum Event {
    /// What happened at an endpoint.
    Of(usize, Happened),
    /// What the names of endpoints stand for now.
    Endpoints(Vec<Address>),
}

/// What a connection tells.
#[derive(Debug)]
pub(super) enum Happened {
    /// A stream is open.
    Up(Link),
    /// An answer arrived.
    Answer(LabelStreamResponse),
    /// The teacher says that it takes work, or that it is about to go.
    Serving(bool),
    /// There is no stream, or no more; another try follows. No reason where the driver itself gave
    /// the stream up.
    Down(Option<String>),
    /// There never will be.
    Refused(ClientError),
}

/// How a stream ended.
enum Ended {
    /// As the gate or the teacher has it.
    Closed(Closed),
    /// The driver hung up.
    GivenUp,
}

/// The driver's end of an open stream. Dropped, it closes the stream at once.
#[derive(Debug)]
pub(super) struct Link {
    /// Requests go in here.
    pub(super) requests: mpsc::Sender<LabelStreamRequest>,
    /// Requests that may be in flight.
    pub(super) capacity: usize,
    /// Whether its answers come with checksums.
    pub(super) has_checksums: bool,
    /// Whether it wants to know how the run is going.
    pub(super) takes_reports: bool,
    _open: oneshot::Sender<()>,
}

/// Keeps one endpoint connected and passes its answers on, until the driver is gone or the teacher
/// is refused.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) endpoint: usize,
    pub(super) address: Address,
    pub(super) gate: Arc<Gate>,
    pub(super) backoff: Backoff,
    pub(super) jitter: Philox,
    pub(super) events: mpsc::Sender<Event>,
}

impl Connection {
    pub(super) async fn keep(mut self) {
        let mut failures = 0;
        let mut refusal = None;
        let endpoint = self.endpoint;
        loop {
            let (reason, after) = match self.serve(&mut failures).await {
                Ended::Closed(Closed::ForNow { reason, after }) => (Some(reason), after),
                Ended::GivenUp => (None, Duration::ZERO),
                // It may have been refused for what became of a message on the way. Said again, with no
                // answer in between, it is believed.
                Ended::Closed(Closed::ForGood(error))
                    if failures == 0 || refusal.as_ref() != Some(&error.to_string()) =>
                {
                    (Some(refusal.insert(error.to_string()).clone()), Duration::ZERO)
                }
                Ended::Closed(Closed::ForGood(error)) => {
                    let _ = self.events.send(Event::Of(endpoint, Happened::Refused(error))).await;
                    return;
                }
            };
            if self.events.send(Event::Of(endpoint, Happened::Down(reason))).await.is_err() {
                return;
            }
            failures = failures.saturating_add(1);
            sleep(self.backoff.pause(failures, &mut self.jitter).max(after)).await;
        }
    }

    /// Opens a stream and passes answers on until it ends. `failures` starts anew at an answer.
    async fn serve(&self, failures: &mut u32) -> Ended {
        let Opened { client, teacher, line, has_checksums } =
            match self.gate.open(&self.address).await {
                Ok(opened) => opened,
                Err(closed) => return Ended::Closed(closed),
            };
        let capacity = teacher.max_in_flight;
        // And a report.
        let (requests, outbound) = mpsc::channel(capacity + 1);
        let mut inbound = match self.open_stream(client, outbound).await {
            Ok(inbound) => inbound,
            Err(closed) => return Ended::Closed(closed),
        };
        let (open, mut hung_up) = oneshot::channel();
        let takes_reports = teacher.takes_reports;
        let link = Link { requests, capacity, has_checksums, takes_reports, _open: open };
        let endpoint = self.endpoint;
        if self.events.send(Event::Of(endpoint, Happened::Up(link))).await.is_err() {
            return Ended::GivenUp;
        }
        // Ends with this stream.
        let mut watching = JoinSet::new();
        watching.spawn(watch_health(line, endpoint, self.events.clone()));
        loop {
            let message = tokio::select! {
                // First: hanging up makes the teacher end the stream, too.
                biased;
                _ = &mut hung_up => return Ended::GivenUp,
                message = inbound.message() => message,
            };
            match message {
                Ok(Some(answer)) => {
                    *failures = 0;
                    let answer = Event::Of(endpoint, Happened::Answer(answer));
                    if self.events.send(answer).await.is_err() {
                        return Ended::GivenUp;
                    }
                }
                Ok(None) => {
                    let reason = format!("{}: the stream ended", self.address.name);
                    return Ended::Closed(Closed::for_now(reason));
                }
                Err(status) => {
                    tracing::debug!(status = words(&status), "stream ended");
                    return Ended::Closed(closed(&self.address.name, "the stream", &status));
                }
            }
        }
    }

    async fn open_stream(
        &self,
        mut client: Client,
        outbound: mpsc::Receiver<LabelStreamRequest>,
    ) -> Result<Streaming<LabelStreamResponse>, Closed> {
        // The stream lasts as long as the run, so it has no deadline itself; its requests have.
        let opening = client.label_stream(ReceiverStream::new(outbound));
        let limit: Duration = self.gate.wanted.timeout;
        match timeout(limit, opening).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(closed(&self.address.name, "LabelStream", &status)),
            Err(_) => {
                let name = &self.address.name;
                Err(Closed::for_now(format!("{name}: LabelStream: not open within {limit:?}")))
            }
        }
    }
}

/// Passes on what a teacher says of its health, until it says nothing any more. One that offers no
/// such service is taken to be well for as long as its stream is open.
async fn watch_health(line: Line, endpoint: usize, events: mpsc::Sender<Event>) {
    let request = HealthCheckRequest { service: SERVICE_NAME.to_owned() };
    let Ok(watch) = HealthClient::new(line).watch(request).await else { return };
    let mut watch = watch.into_inner();
    while let Ok(Some(response)) = watch.message().await {
        // A server that knows no such service may say so here, which says nothing of its health.
        let serving = response.status() != ServingStatus::NotServing;
        if events.send(Event::Of(endpoint, Happened::Serving(serving))).await.is_err() {
            return;
        }
    }
}
