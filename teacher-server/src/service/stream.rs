//! `LabelStream`: pipelined requests, answered as they finish.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{
    StreamExt as _,
    stream::{FuturesUnordered, Stream},
};
use stillhouse_proto::v1::{
    CancelRequest, LabelRequest, LabelStreamRequest, LabelStreamResponse,
    label_stream_request::Action, label_stream_response::Result as Outcome,
};
use stillhouse_runtime::traces::Context as Trace;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{Answered, Core, Submitted, count_bytes, count_failure, taken::Keep};
use crate::{access::Caller, error::ServeError, gathering::Canceller, metrics as names};

/// Answers that wait for the connection. Beyond it the stream stops taking requests, so a client
/// that does not read holds no more here than its requests in flight; the ledger bounds what those
/// hold, over all streams.
const ANSWERS_WAITING: usize = 4;

/// A message for the client, and what it keeps until the connection has taken it.
pub(crate) type Answer = (Result<LabelStreamResponse, Status>, Option<Keep>);

/// What the stream's client sees: a bounded channel, written by the stream's own task.
pub(super) fn open(
    core: Arc<Core>,
    caller: Caller,
    deadline: Option<Instant>,
    inbound: Streaming<LabelStreamRequest>,
) -> ReceiverStream<Answer> {
    let (out, answers) = mpsc::channel(ANSWERS_WAITING);
    let counted = OpenStream::new();
    tokio::spawn(async move {
        let _counted = counted;
        let grace = core.contract.limits.connection_grace_seconds;
        let grace = Duration::try_from_secs_f64(grace).unwrap_or(Duration::ZERO);
        let end = tokio::select! {
            end = serve(&core, &caller, deadline, inbound, &out) => end,
            () = elapsed(core.age.map(|age| age + grace)) => Some(of_age()),
        };
        if let Some(end) = end {
            // A client that does not read need not know.
            drop(tokio::time::timeout(grace, out.send((Err(end), None))).await);
        }
    });
    ReceiverStream::new(answers)
}

/// A stream in the gauge of open ones, however its task ends.
struct OpenStream;

impl OpenStream {
    fn new() -> Self {
        metrics::gauge!(names::STREAMS).increment(1.0);
        Self
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        metrics::gauge!(names::STREAMS).decrement(1.0);
    }
}

/// Serves one stream and returns the status that it ends with; none: OK, or the client is gone.
async fn serve(
    core: &Core,
    caller: &Caller,
    deadline: Option<Instant>,
    mut inbound: impl Stream<Item = Result<LabelStreamRequest, Status>> + Unpin,
    out: &mpsc::Sender<Answer>,
) -> Option<Status> {
    let most = core.contract.limits.max_stream_in_flight as usize;
    let mut draining = core.draining.clone();
    let mut in_flight: HashMap<u64, Canceller> = HashMap::new();
    let mut answers = FuturesUnordered::new();
    let mut end = None;
    let mut reading = true;
    // A request that came when as many were in flight as may be. Nothing is read behind it, but all that
    // comes before: cancellations, above all.
    let mut parked: Option<LabelRequest> = None;
    let aged = elapsed(core.age.map(jittered));
    tokio::pin!(aged);
    while reading || !answers.is_empty() {
        if !reading {
            // It is not answered here; its client asks elsewhere.
            parked = None;
        }
        if answers.len() < most
            && let Some(request) = parked.take()
        {
            let id = request.id;
            match admit(core, caller, deadline, request, &in_flight) {
                Ok(submitted) => {
                    in_flight.insert(id, submitted.canceller());
                    answers.push(async move { (id, core.finish(submitted).await) });
                }
                // It is not the client that it was when the stream began.
                Err(error @ ServeError::Unauthenticated { .. }) => {
                    reading = false;
                    end = Some(Status::from(error));
                }
                Err(error) => {
                    if send(out, id, Err(error)).await.is_err() {
                        return None;
                    }
                }
            }
            continue;
        }
        tokio::select! {
            Some((id, result)) = answers.next(), if !answers.is_empty() => {
                in_flight.remove(&id);
                if send(out, id, result).await.is_err() {
                    return None;
                }
            }
            message = inbound.next(), if reading && parked.is_none() => match message {
                None => reading = false,
                Some(Err(status)) => {
                    // A frame that cannot be read. What was admitted before it is still answered.
                    reading = false;
                    end = Some(status);
                }
                Some(Ok(LabelStreamRequest { action: Some(Action::Cancel(cancel)) })) => {
                    drop_batch(&in_flight, &cancel);
                }
                Some(Ok(LabelStreamRequest { action: Some(Action::Report(report)) })) => {
                    // What it says counts only as long as it is who it was.
                    if let Ok(client) = core.access.identify(caller) {
                        let name = caller.name(client.as_deref(), report.client.clone());
                        core.status.report(&name, report);
                    }
                }
                Some(Ok(LabelStreamRequest { action })) => {
                    parked = Some(match action {
                        Some(Action::Label(request)) => request,
                        _ => LabelRequest::default(),
                    });
                }
            },
            () = &mut aged, if reading => {
                reading = false;
                end = Some(of_age());
            }
            () = turned(&mut draining), if reading => {
                reading = false;
                end = Some(Status::from(ServeError::Draining));
            }
            () = out.closed() => return None,
        }
    }
    end
}

/// Admits a request of a stream, where its id is not in flight.
fn admit(
    core: &Core,
    caller: &Caller,
    deadline: Option<Instant>,
    request: LabelRequest,
    in_flight: &HashMap<u64, Canceller>,
) -> Result<Submitted, ServeError> {
    count_bytes(&request);
    if in_flight.contains_key(&request.id) {
        let expected = "an id that is not in flight on this stream";
        let error = ServeError::invalid("id", request.id, expected);
        count_failure(&error);
        return Err(error);
    }
    let trace = Trace::of(&request.traceparent);
    core.submit(request, caller, deadline, &trace)
}

fn of_age() -> Status {
    Status::unavailable("the connection has reached its age; connect anew")
}

/// Waits for a time; none: for ever.
async fn elapsed(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Nine tenths of a time and a part of the last, at random.
fn jittered(age: Duration) -> Duration {
    let random = RandomState::new().hash_one(age);
    age.mul_f64(0.9 + 0.1 * random as f64 / u64::MAX as f64)
}

/// Waits until the flag is set, or nobody is left to set it.
async fn turned(flag: &mut watch::Receiver<bool>) {
    drop(flag.wait_for(|set| *set).await);
}

fn drop_batch(in_flight: &HashMap<u64, Canceller>, cancel: &CancelRequest) {
    if let Some(canceller) = in_flight.get(&cancel.id) {
        canceller.cancel();
    }
}

async fn send(
    out: &mpsc::Sender<Answer>,
    id: u64,
    result: Answered,
) -> Result<(), mpsc::error::SendError<Answer>> {
    let (outcome, keep) = match result {
        Ok((response, keep)) => (Outcome::Response(response), Some(keep)),
        Err(error) => {
            pace(&error).await;
            (Outcome::Error(error.to_label_error()), None)
        }
    };
    out.send((Ok(LabelStreamResponse { id, result: Some(outcome) }), keep)).await
}

/// A client that sends again at once, whatever it is told, would spend the server's time on
/// refusals: each refused request costs its stream a moment.
async fn pace(error: &ServeError) {
    if matches!(error, ServeError::Exhausted { .. }) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
