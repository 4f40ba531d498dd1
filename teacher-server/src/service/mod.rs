//! The rpcs of `distill.v1.TeacherService`.
//!
//! [`Core`] is what all of them share; [`stream`] is `LabelStream`, [`head`] is `FetchHead`,
//! [`deadline`] reads the `grpc-timeout` of a call, [`turn`] has large answers made in
//! turns, and [`taken`] counts an answer as held until the connection has it.

mod deadline;
mod describe;
mod head;
mod stream;
mod taken;
mod turn;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use stillhouse_proto::checksum::RequestSum;
use stillhouse_proto::v1::{
    DescribeRequest, DescribeResponse, FetchHeadRequest, LabelRequest, LabelResponse,
    LabelStreamRequest, Timing, teacher_service_server::TeacherService,
};
use stillhouse_runtime::{
    clock,
    traces::{Context as Trace, Role, Span},
};
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    access::{self, Access, Caller},
    cache::RowCache,
    encode::{self, Computed, Encoding, Wanted},
    ensemble::{Ensemble, Rule},
    error::ServeError,
    gathering::{Admission, Canceller, Done, Pending},
    held::{Held, Ledger},
    metrics as names,
    quota::Quotas,
    rows::Rows,
    scheduler::Scheduler,
    status::Board,
    turns::{Leaves, Turns},
    validate::Contract,
};

pub(crate) use head::Heads;
pub(crate) use taken::slice_body;
use taken::{Keep, Taken};
use turn::in_time;

/// Encoding more values than this leaves the async threads, and waits for its turn.
const VALUES_ENCODED_INLINE: usize = 1 << 16;

/// What all rpcs share. Lives as long as the server.
pub(crate) struct Core {
    pub(crate) name: String,
    pub(crate) contract: Arc<Contract>,
    pub(crate) ensemble: Arc<Ensemble>,
    pub(crate) cache: Arc<RowCache>,
    pub(crate) scheduler: Arc<Scheduler>,
    /// Turns to encode large answers: as many at a time as there are cores.
    pub(crate) encoders: Arc<Turns>,
    /// Turns to look rows up on the disk.
    pub(crate) lookups: Arc<Turns>,
    /// Who may ask, and for what.
    pub(crate) access: Arc<Access>,
    /// What people look at.
    pub(crate) status: Arc<Board>,
    /// What all requests hold in memory.
    pub(crate) ledger: Arc<Ledger>,
    /// What each client may ask for.
    pub(crate) quotas: Arc<Quotas>,
    /// How long a connection may last.
    pub(crate) age: Option<Duration>,
    /// `FetchHead`'s answers, made once for each element type.
    pub(crate) heads: Heads,
    /// Becomes true when the server drains.
    pub(crate) draining: watch::Receiver<bool>,
    /// Held by every call and stream until its last answer is handed to the connection.
    pub(crate) open: Arc<()>,
}

/// A request that the scheduler has admitted, and its end.
struct Submitted {
    work: Work,
    counted: Counted,
}

/// What is left to do for a request.
struct Work {
    id: u64,
    /// Of the request, as it was read.
    sum: RequestSum,
    rule: Rule,
    /// Labels that it asks for, at each temperature.
    rows: usize,
    /// What it takes of a quota.
    cost: u64,
    encoding: Encoding,
    temperatures: Vec<f32>,
    held: Arc<Held>,
    deadline: Option<Instant>,
    pending: Pending,
    client: Arc<str>,
}

/// The answer to a request, and what it keeps until it is taken.
type Answered = Result<(LabelResponse, Keep), ServeError>;

impl Core {
    /// What labels under a rule are told apart by.
    pub(crate) fn fingerprint(&self, rule: Rule) -> Bytes {
        self.ensemble.fingerprint(rule).clone()
    }

    /// Validates, admits and counts a request. `deadline` is the call's.
    fn submit(
        &self,
        request: LabelRequest,
        caller: &Caller,
        deadline: Option<Instant>,
        trace: &Trace,
    ) -> Result<Submitted, ServeError> {
        let mut span = Span::default();
        match self.admit(request, caller, deadline, (trace, &mut span)) {
            Ok(work) => Ok(Submitted { work, counted: Counted { ended: false, span } }),
            Err(error) => {
                count_failure(&error);
                span.failed(&error);
                Err(error)
            }
        }
    }

    fn admit(
        &self,
        request: LabelRequest,
        caller: &Caller,
        deadline: Option<Instant>,
        (trace, span): (&Trace, &mut Span),
    ) -> Result<Work, ServeError> {
        let listed = self.access.identify(caller)?;
        *span = Span::begin("label", Role::Server, trace, []);
        let sum = RequestSum::new(&request);
        let accepted = self.contract.accept(request)?;
        let own = accepted.timeout.and_then(|timeout| clock::now().checked_add(timeout));
        if let Some(client) = &listed {
            client.may_label(&accepted.encoding)?;
        }
        let client = caller.name(listed.as_deref(), accepted.client);
        span.word("stillhouse.client", &client);
        span.word("stillhouse.encoding", accepted.encoding.name());
        span.number("stillhouse.rows", accepted.rows as u64);
        let note = |error: &ServeError| {
            if matches!(error, ServeError::Exhausted { .. }) {
                self.status.refused(&client);
            }
        };
        let deadline = deadline.into_iter().chain(own).min();
        let under_way = self.quotas.take(&client, accepted.cost, clock::now());
        let under_way = under_way.inspect_err(note)?;
        let note = |error: &ServeError| {
            note(error);
            self.give_back(&client, accepted.cost, error);
        };
        let held = self.ledger.take(&client, accepted.bytes).inspect_err(note)?;
        let held = Arc::new(held.with(under_way));
        let units = self.contract.units(&accepted.input, self.cache.keyer())?;
        let admission = Admission {
            client: Arc::clone(&client),
            deadline,
            input: Rows { contract: Arc::clone(&self.contract), input: accepted.input },
            held: Arc::clone(&held),
        };
        let units = (units, accepted.encoding.needs_hidden(), span.context());
        let pending =
            Pending::start(units, &self.cache, (&self.scheduler, &self.lookups), admission);
        let pending = pending.inspect_err(note)?;
        Ok(Work {
            id: accepted.id,
            sum,
            rule: accepted.rule,
            rows: accepted.rows,
            cost: accepted.cost,
            encoding: accepted.encoding,
            temperatures: accepted.temperatures,
            held,
            deadline,
            pending,
            client,
        })
    }

    /// Waits for the device, no longer than the client does, then encodes.
    async fn finish(&self, Submitted { work, mut counted }: Submitted) -> Answered {
        let (client, cost) = (Arc::clone(&work.client), work.cost);
        let result = self.answer(work, &mut counted.span).await;
        if let Err(error @ ServeError::Exhausted { .. }) = &result {
            self.status.refused(&client);
            self.give_back(&client, cost, error);
        }
        counted.end(&result);
        result
    }

    async fn answer(&self, work: Work, span: &mut Span) -> Answered {
        let Work { id, sum, rule, rows, encoding, temperatures, held, deadline, .. } = work;
        let (pending, client) = (work.pending, work.client);
        let done = in_time(deadline, pending).await?;
        done.batches.iter().for_each(|batch| span.link(batch));
        let mut encoding_span = Span::begin("encode", Role::Internal, &span.context(), []);
        let fingerprint = self.fingerprint(rule);
        let layout = self.cache.layout();
        let needs_hidden = encoding.needs_hidden();
        let values = layout.work(&done.outputs, needs_hidden, self.contract.classes);
        let values = encoding.work(values, rows, temperatures.len());
        let (cache, ensemble) = (Arc::clone(&self.cache), Arc::clone(&self.ensemble));
        let leaves = Leaves::default();
        let wanted = Wanted { until: deadline, gone: Arc::clone(&leaves.0) };
        // What is held goes along: the work goes on for a moment even if nobody waits for it any more.
        let encode = move || {
            wanted.check()?;
            let asked = Asked { id, sum, rule, encoding, temperatures, wanted };
            let computed = cache.layout().gather(&done.outputs, needs_hidden, &ensemble);
            let response = respond(asked, fingerprint, (&done, &computed))?;
            Ok((response, held))
        };
        let encoded = if values <= VALUES_ENCODED_INLINE {
            encode()
        } else {
            let cost = layout.turn(values, needs_hidden);
            self.in_turn((Arc::clone(&client), cost), deadline, encode).await
        };
        if let Err(error) = &encoded {
            encoding_span.failed(error);
        }
        encoding_span.end();
        let (response, held) = encoded?;
        span.number("stillhouse.cached_rows", response.cached_rows.into());
        if let Some(timing) = &response.timing {
            span.number("stillhouse.queue_us", timing.queue_us);
            span.number("stillhouse.compute_us", timing.compute_us);
        }
        self.status.answered(&client, rows, response.cached_rows as usize);
        self.count_client(&client, rows);
        Ok((response, Keep::new(held, &self.open)))
    }

    async fn label(
        &self,
        request: LabelRequest,
        caller: &Caller,
        deadline: Option<Instant>,
        trace: &Trace,
    ) -> Answered {
        count_bytes(&request);
        self.finish(self.submit(request, caller, deadline, trace)?).await
    }
}

impl Core {
    /// A request that was told to come back is not charged to the client's quota.
    fn give_back(&self, client: &Arc<str>, cost: u64, error: &ServeError) {
        if matches!(error, ServeError::Exhausted { .. }) {
            self.quotas.give_back(client, cost);
        }
    }

    /// Counts rows of clients that the operator has named; all others' together, so that nobody makes
    /// series by making names up.
    fn count_client(&self, client: &Arc<str>, rows: usize) {
        let named = self.quotas.is_named(client) || self.access.is_listed();
        let client = if named { Arc::clone(client) } else { Arc::from("other") };
        let client: metrics::SharedString = metrics::SharedString::from_shared(client);
        metrics::counter!(names::CLIENT_ROWS, "client" => client).increment(rows as u64);
    }
}

impl Submitted {
    fn canceller(&self) -> Canceller {
        self.work.pending.canceller()
    }
}

/// What a response must be.
struct Asked {
    id: u64,
    sum: RequestSum,
    rule: Rule,
    encoding: Encoding,
    temperatures: Vec<f32>,
    wanted: Wanted,
}

fn respond(
    asked: Asked,
    fingerprint: Bytes,
    (done, computed): (&Done, &Computed),
) -> Result<LabelResponse, ServeError> {
    let start = clock::now();
    let Asked { id, sum, rule, encoding, temperatures, wanted } = asked;
    let (labels, row_errors) = encode::encode(computed, rule, &encoding, &temperatures, &wanted)?;
    wanted.check()?;
    let took = clock::now().saturating_duration_since(start);

    metrics::histogram!(names::ENCODE).record(took);
    let rows = computed.rows() - row_errors.len();
    metrics::counter!(names::ROWS_LABELLED, "encoding" => encoding.name()).increment(rows as u64);
    metrics::counter!(names::ROW_ERRORS).increment(row_errors.len() as u64);
    let bytes: usize = labels.iter().map(prost::Message::encoded_len).sum();
    metrics::counter!(names::LABEL_BYTES, "encoding" => encoding.name()).increment(bytes as u64);

    let mut response = LabelResponse {
        id,
        fingerprint,
        labels,
        row_errors,
        cached_rows: u32::try_from(done.cached).unwrap_or(u32::MAX),
        timing: Some(Timing {
            queue_us: microseconds(done.queue),
            compute_us: microseconds(done.compute),
            encode_us: microseconds(took),
        }),
        checksum: 0,
    };
    response.checksum = sum.of_response(&response);
    Ok(response)
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// What asks: as the request says, or else the call.
fn trace_of(request: &Request<LabelRequest>) -> Trace {
    let own = Trace::of(&request.get_ref().traceparent);
    let of_call = request.metadata().get("traceparent").filter(|_| own.is_none());
    of_call.and_then(|text| text.to_str().ok()).map_or(own, Trace::of)
}

/// Counts an admitted request once, whatever becomes of it: one whose client goes away is
/// cancelled.
#[derive(Debug)]
struct Counted {
    ended: bool,
    span: Span,
}

impl Counted {
    fn end(mut self, result: &Answered) {
        self.ended = true;
        match result {
            Ok(_) => count_outcome("labelled"),
            Err(error) => {
                count_failure(error);
                self.span.failed(error);
            }
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if !self.ended {
            count_outcome(ServeError::Cancelled.outcome());
            if !std::thread::panicking() {
                self.span.failed(&ServeError::Cancelled);
            }
        }
    }
}

/// Counts a request as it came.
fn count_bytes(request: &LabelRequest) {
    metrics::counter!(names::REQUEST_BYTES).increment(prost::Message::encoded_len(request) as u64);
}

fn count_outcome(outcome: &'static str) {
    metrics::counter!(names::REQUESTS, "outcome" => outcome).increment(1);
}

/// Counts a request that gets no labels.
fn count_failure(error: &ServeError) {
    count_outcome(error.outcome());
    count_refusal(error);
}

/// Counts a call that was denied, or told to come back.
fn count_refusal(error: &ServeError) {
    access::count_denial(error);
    if let ServeError::Exhausted { reason, .. } = error {
        metrics::counter!(names::REFUSED, "reason" => *reason).increment(1);
    }
}

/// The service as tonic knows it.
#[derive(Clone)]
pub(crate) struct Teacher(pub(crate) Arc<Core>);

#[tonic::async_trait]
impl TeacherService for Teacher {
    type LabelStreamStream = Taken<ReceiverStream<stream::Answer>>;
    type FetchHeadStream = Taken<head::Pieces>;

    async fn describe(
        &self,
        request: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        let client = self.0.access.identify(&Caller::of(&request))?;
        Ok(Response::new(describe::describe(&self.0, client.as_deref())))
    }

    async fn label(
        &self,
        request: Request<LabelRequest>,
    ) -> Result<Response<LabelResponse>, Status> {
        let _open = Arc::clone(&self.0.open);
        let deadline = deadline::of(request.metadata()).inspect_err(count_failure)?;
        let caller = Caller::of(&request);
        let trace = trace_of(&request);
        let (answer, keep) = self.0.label(request.into_inner(), &caller, deadline, &trace).await?;
        let mut response = Response::new(answer);
        response.extensions_mut().insert(keep);
        Ok(response)
    }

    async fn label_stream(
        &self,
        request: Request<Streaming<LabelStreamRequest>>,
    ) -> Result<Response<Self::LabelStreamStream>, Status> {
        let deadline = deadline::of(request.metadata())?;
        let caller = Caller::of(&request);
        let open = Arc::clone(&self.0.open);
        let answers = stream::open(Arc::clone(&self.0), caller, deadline, request.into_inner());
        Ok(Response::new(Taken::new(answers, open)))
    }

    async fn fetch_head(
        &self,
        request: Request<FetchHeadRequest>,
    ) -> Result<Response<Self::FetchHeadStream>, Status> {
        let open = Arc::clone(&self.0.open);
        let caller = Caller::of(&request);
        let deadline = deadline::of(request.metadata())?;
        let core = Arc::clone(&self.0);
        let pieces = head::pieces(core, &caller, deadline, request.get_ref()).await;
        let pieces = pieces.inspect_err(count_refusal)?;
        Ok(Response::new(Taken::new(pieces, open)))
    }
}

/// The service with the message limits of the settings.
pub(crate) fn server(
    core: Arc<Core>,
) -> stillhouse_proto::v1::teacher_service_server::TeacherServiceServer<Teacher> {
    let most = core.contract.limits.max_message_bytes as usize;
    stillhouse_proto::v1::teacher_service_server::TeacherServiceServer::new(Teacher(core))
        .max_decoding_message_size(most)
        .max_encoding_message_size(most)
}
