//! One client: a stream, and times at which its requests are due.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use prost::Message as _;
use stillhouse_nn::Philox;
use stillhouse_proto::v1::{
    DType, DescribeRequest, Encoding, LabelRequest, LabelStreamResponse, Sequences, Task, Tensor,
    encoding::Kind, input_signature, label_request::Inputs,
    label_stream_response::Result as Answer, teacher_service_client::TeacherServiceClient,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};

use super::figures::{Answers, Outcome};
use crate::label_client::{ClientError, Credentials, Line, code_name, connect_line, on_stream};

/// Requests that may wait for the stream to take them; past it they count as not sent.
const WAITING: usize = 1 << 14;
/// Bytes of a message, either way.
const MAX_MESSAGE: usize = 256 << 20;

/// What a teacher's cache takes of a row beside its output.
const CACHED_OVERHEAD: u64 = 128;

/// What a client asks for.
pub(crate) struct Asks {
    pub(crate) name: String,
    pub(crate) rows: u32,
    pub(crate) tokens: u32,
    pub(crate) distinct: u64,
    pub(crate) kind: Kind,
    pub(crate) temperature: f32,
    pub(crate) timeout: Duration,
    /// Requests a second.
    pub(crate) rate: f64,
    /// Of the rows' contents.
    pub(crate) rows_seed: u64,
    /// Of the times.
    pub(crate) seed: u64,
    /// Which of the clients it is.
    pub(crate) number: usize,
}

/// What a teacher takes.
enum Takes {
    /// Rows of so many values, as bytes or as f32.
    Features { width: usize, dtype: DType },
    /// Sequences of ids below a bound.
    Sequences { vocabulary: u32 },
}

/// What a teacher is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) classes: u32,
    pub(crate) hidden_size: u32,
    /// Requests on one stream.
    pub(crate) in_flight: u32,
    /// Labels of a row: of a language model, one for each token of a sequence.
    pub(crate) labels_per_row: u32,
    /// What the teacher's cache keeps of a row, in bytes; none: it does not tell.
    pub(crate) cached_bytes: Option<u64>,
}

/// A connected client.
pub(crate) struct Client {
    asks: Asks,
    takes: Takes,
    pub(crate) shape: Shape,
    client: TeacherServiceClient<Line>,
    /// Requests that have been made by [`Client::closed`].
    asked: u64,
}

impl Client {
    pub(crate) async fn connect(
        teacher: &str,
        credentials: &Credentials,
        asks: Asks,
    ) -> Result<Self, ClientError> {
        let line = connect_line(teacher, credentials, asks.number).await?;
        let mut client = TeacherServiceClient::new(line)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let mut request = Request::new(DescribeRequest {});
        request.set_timeout(asks.timeout);
        let described = client.describe(request).await;
        let described = described.map_err(|status| refused(teacher, "Describe", &status))?;
        let described = described.into_inner();
        let every_token = described.task() == Task::LanguageModel;
        let labels_per_row = if every_token { asks.tokens.max(1) } else { 1 };
        // Logits of each member, or hidden states of every token, whose width an ensemble does not tell.
        let members = described.members.len().max(1) as u64;
        let values = match (every_token, u64::from(described.hidden_size)) {
            (true, 0) => None,
            (true, width) => Some(u64::from(labels_per_row) * width),
            // Once a classifier's were asked for, they are kept beside the logits.
            (false, width) => {
                let hidden = if matches!(asks.kind, Kind::Hidden(_)) { width } else { 0 };
                Some(members.saturating_mul(described.classes.into()).saturating_add(hidden))
            }
        };
        let shape = Shape {
            labels_per_row,
            cached_bytes: values
                .map(|values| values.saturating_mul(4).saturating_add(CACHED_OVERHEAD)),
            classes: described.classes,
            hidden_size: described.hidden_size,
            in_flight: described.limits.unwrap_or_default().max_stream_in_flight.max(1),
        };
        let takes = match described.input.and_then(|input| input.kind) {
            Some(input_signature::Kind::Features(features)) => {
                let bytes = features.dtypes().any(|dtype| dtype == DType::U8);
                let dtype = if bytes { DType::U8 } else { DType::F32 };
                Takes::Features { width: features.width as usize, dtype }
            }
            Some(input_signature::Kind::Sequences(_)) => {
                Takes::Sequences { vocabulary: described.classes.max(1) }
            }
            None => {
                return Err(ClientError::Unsuitable {
                    endpoint: teacher.to_owned(),
                    field: "input",
                    found: "not set".to_owned(),
                    expected: "features or sequences".to_owned(),
                });
            }
        };
        // Before anything is made of that size.
        let values = match takes {
            Takes::Features { width, dtype: DType::U8 } => width as u64,
            Takes::Features { width, .. } => (width as u64).saturating_mul(4),
            Takes::Sequences { .. } => 4 * u64::from(asks.tokens),
        };
        let bytes = values.saturating_mul(asks.rows.into());
        if bytes > MAX_MESSAGE as u64 {
            return Err(ClientError::Unsuitable {
                endpoint: teacher.to_owned(),
                field: "rows",
                found: format!("{}, {bytes} bytes with what this teacher takes of each", asks.rows),
                expected: format!("at most {MAX_MESSAGE} bytes in a request"),
            });
        }
        let mut own = Self { asks, takes, shape, client, asked: 0 };
        // What is refused now would be refused a thousand times.
        let mut request = Request::new(own.request(u64::MAX));
        request.set_timeout(own.asks.timeout);
        match own.client.label(request).await {
            Err(status) if status.code() != Code::ResourceExhausted => {
                Err(refused(teacher, "a request", &status))
            }
            _ => Ok(own),
        }
    }

    /// The request of a number.
    fn request(&self, number: u64) -> LabelRequest {
        let Asks { rows, tokens, distinct, temperature, .. } = self.asks;
        let content = if distinct > 0 { number % distinct } else { number };
        let mut random = Philox::new(self.asks.rows_seed, content);
        let inputs = match self.takes {
            Takes::Features { width, dtype } => {
                let count = rows as usize * width;
                let shape = vec![rows.into(), width as u64];
                let mut data = Vec::new();
                match dtype {
                    DType::U8 => {
                        while data.len() < count {
                            data.extend(random.next_u64().to_le_bytes());
                        }
                        data.truncate(count);
                    }
                    _ => {
                        for _ in 0..count {
                            let value = (random.next_u64() >> 40) as f32 / (1 << 24) as f32;
                            data.extend(value.to_le_bytes());
                        }
                    }
                }
                Inputs::Features(Tensor { dtype: dtype.into(), shape, data: data.into() })
            }
            Takes::Sequences { vocabulary } => {
                let ids = rows as usize * tokens as usize;
                let mut data = Vec::with_capacity(ids * 4);
                for _ in 0..ids {
                    let id = (random.next_u64() % u64::from(vocabulary)) as u32;
                    data.extend(id.to_le_bytes());
                }
                Inputs::Sequences(Sequences {
                    lengths: vec![tokens; rows as usize],
                    token_ids: data.into(),
                    label_mask: Vec::new().into(),
                })
            }
        };
        LabelRequest {
            id: number,
            client: self.asks.name.clone(),
            inputs: Some(inputs),
            temperatures: vec![temperature],
            encoding: Some(Encoding { kind: Some(self.asks.kind.clone()) }),
            timeout_ms: u32::try_from(self.asks.timeout.as_millis()).unwrap_or(u32::MAX),
            ensemble_rule: 0,
            traceparent: String::new(),
        }
    }

    /// Asks from `begin` to `until`, and counts what was due from `from` on. Requests are made in one task
    /// and answers read in another: neither waits for the other.
    pub(super) async fn run(
        mut self,
        (begin, from, until): (Instant, Instant, Instant),
        mut stop: watch::Receiver<bool>,
    ) -> Answers {
        let (requests, outbound) = mpsc::channel(WAITING);
        let stream = self.client.label_stream(ReceiverStream::new(outbound)).await;
        let open: Arc<Mutex<Open>> = Arc::default();
        // Whether no more requests will be sent.
        let over = Arc::new(AtomicBool::new(false));
        let (ended, mut ending) = watch::channel(false);
        let reading = {
            let (open, over) = (Arc::clone(&open), Arc::clone(&over));
            tokio::spawn(async move {
                let mut answers = Answers::of_client();
                match stream {
                    Ok(stream) => {
                        let of = (&*open, &*over);
                        read(stream.into_inner(), of, (from, until), &mut answers).await;
                    }
                    Err(status) => answers.ended(&status),
                }
                ended.send_replace(true);
                answers
            })
        };

        let mut made = Answers::default();
        let mut times = Philox::new(self.asks.seed, 0);
        let (mut due, mut number) = (begin, 0);
        while due < until {
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
            let counts = due >= from;
            let request = on_stream(self.request(number));
            let now = Instant::now();
            made.lag = made.lag.max(now.duration_since(due));
            lock(&open).insert(number, due);
            // A stream that has ended, or that takes no more, leaves its requests unsent.
            if requests.try_send(request).is_err() {
                lock(&open).remove(&number);
                made.unsent += u64::from(counts);
            }
            made.due += u64::from(counts);
            number += 1;
            // Of a Poisson process.
            let uniform = ((times.next_u64() >> 11) as f64 + 1.0) / (1_u64 << 53) as f64;
            due += Duration::from_secs_f64((-uniform.ln() / self.asks.rate).min(1e6));
        }
        // Answers of what was due last come later.
        let end = Instant::now() + self.asks.timeout;
        while !lock(&open).is_empty() && !*ending.borrow() && !*stop.borrow() {
            tokio::select! {
                _ = ending.wait_for(|ended| *ended) => break,
                _ = stop.wait_for(|stop| *stop) => break,
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
            if Instant::now() >= end {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
        drop(requests);
        // What never came took at least until now.
        let missing: Vec<Instant> = lock(&open).drain().map(|(_, due)| due).collect();
        for due in missing.into_iter().filter(|due| *due >= from) {
            made.record(due.elapsed(), Outcome::Missing);
        }
        let read = tokio::time::timeout(Duration::from_secs(1), reading).await;
        // A reader that the teacher keeps waiting has said what it will.
        if let Ok(Ok(read)) = read {
            made.add(read);
        } else {
            made.add(Answers::of_client());
        }
        made
    }
}

/// When the requests under way were due.
type Open = HashMap<u64, Instant>;

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    // One call each changes it.
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads answers until there are no more.
async fn read(
    mut inbound: Streaming<LabelStreamResponse>,
    (open, over): (&Mutex<Open>, &AtomicBool),
    (from, until): (Instant, Instant),
    answers: &mut Answers,
) {
    loop {
        match inbound.message().await {
            Ok(Some(message)) => {
                let Some(due) = lock(open).remove(&message.id) else { continue };
                let now = Instant::now();
                let outcome = outcome(&message);
                if (from..=until).contains(&now) {
                    answers.arrived(&outcome);
                }
                if due >= from {
                    answers.record(now.duration_since(due), outcome);
                }
            }
            Ok(None) => {
                // After the requests, as it should, or before.
                if !over.load(Ordering::Relaxed) {
                    answers.ended(&Status::unavailable("the teacher closed the stream"));
                }
                return;
            }
            Err(status) => return answers.ended(&status),
        }
    }
}

/// What a client that waits for answers has seen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Closed {
    pub(crate) answers: u64,
    pub(crate) refused: u64,
    pub(crate) took: Duration,
    /// Of the answers, and of the requests.
    pub(crate) bytes: u64,
    pub(crate) input_bytes: u64,
}

impl Client {
    /// Keeps so many requests under way for a while: what the teacher can do, and no measure of latency
    /// but with one.
    pub(crate) async fn closed(
        &mut self,
        window: usize,
        enough: Duration,
    ) -> Result<Closed, ClientError> {
        let (requests, outbound) = mpsc::channel(window);
        let failed = |status: &Status| refused("the teacher", "LabelStream", status);
        let stream = self.client.label_stream(ReceiverStream::new(outbound)).await;
        let mut inbound = stream.map_err(|status| failed(&status))?.into_inner();
        let window = window.min(self.shape.in_flight as usize);
        let mut seen = Closed::default();
        let begun = Instant::now();
        let (mut under_way, mut refusal) = (0, None);
        while begun.elapsed() < enough || seen.answers == 0 {
            if let Some(words) = refusal.take_if(|_| begun.elapsed() > enough + self.asks.timeout) {
                let words: String = words;
                return Err(failed(&Status::resource_exhausted(words)));
            }
            while under_way < window {
                let request = self.request(self.asked);
                self.asked += 1;
                seen.input_bytes += request.encoded_len() as u64;
                // There is room for as many.
                drop(requests.try_send(on_stream(request)));
                under_way += 1;
            }
            let patience = self.asks.timeout;
            let message = tokio::time::timeout(patience, inbound.message()).await;
            let message = message.unwrap_or_else(|_| {
                Err(Status::deadline_exceeded(format!("no answer within {patience:?}")))
            });
            let message = message.map_err(|status| failed(&status))?;
            let Some(message) = message else {
                return Err(failed(&Status::unavailable("the stream ended")));
            };
            under_way -= 1;
            match &message.result {
                Some(Answer::Response(_)) => {
                    seen.answers += 1;
                    seen.bytes += message.encoded_len() as u64;
                }
                Some(Answer::Error(error)) if error.code == Code::ResourceExhausted as i32 => {
                    seen.refused += 1;
                    refusal = Some(error.message.clone());
                    if under_way == 0 {
                        let pause = Duration::from_millis(error.retry_after_ms.max(1).into());
                        tokio::time::sleep(pause.min(Duration::from_secs(1))).await;
                    }
                }
                Some(Answer::Error(error)) => {
                    let code = Code::from_i32(error.code);
                    return Err(failed(&Status::new(code, error.message.clone())));
                }
                None => {}
            }
        }
        seen.took = begun.elapsed();
        let all = seen.answers + seen.refused + under_way as u64;
        seen.input_bytes = (seen.input_bytes as f64 * seen.answers as f64 / all as f64) as u64;
        Ok(seen)
    }
}

/// What became of a request.
fn outcome(message: &LabelStreamResponse) -> Outcome {
    match &message.result {
        Some(Answer::Response(response)) => {
            let timing = response.timing.unwrap_or_default();
            Outcome::Labelled {
                bytes: message.encoded_len() as u64,
                cached: response.cached_rows.into(),
                server: [timing.queue_us, timing.compute_us, timing.encode_us],
            }
        }
        Some(Answer::Error(error)) if error.code == Code::ResourceExhausted as i32 => {
            Outcome::Refused
        }
        _ => Outcome::Failed,
    }
}

fn refused(endpoint: &str, request: &str, status: &Status) -> ClientError {
    ClientError::Refused {
        endpoint: endpoint.to_owned(),
        request: request.to_owned(),
        code: code_name(status.code()),
        message: status.message().to_owned(),
    }
}
