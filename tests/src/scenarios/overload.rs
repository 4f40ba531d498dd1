//! `overload`: 500 streaming clients against one teacher whose queue holds a tenth of their load, and
//! one more that asks for a tenth of what each of them does.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use stillhouse_proto::v1::{
    DType, DenseEncoding, LabelRequest, Tensor, encoding::Kind, label_request::Inputs,
    label_stream_response::Result as Answer,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::{Figures, progress};
use crate::{
    client, models,
    process::{Teacher, UNCACHED},
};

const CLIENTS: usize = 500;
/// What a client has in flight at any time.
const REQUESTS: usize = 20;
/// The same of the light client.
const LIGHT_REQUESTS: usize = 2;
/// How long a client waits for an answer.
const DEADLINE: Duration = Duration::from_secs(15);
const ROWS: usize = 32;
const WIDTH: usize = 784;
/// Rows of all clients in flight, and the tenth of it that may wait.
const LOAD: usize = CLIENTS * REQUESTS * ROWS;
const QUEUE: usize = LOAD / 10;

/// What the clients saw, together.
#[derive(Default)]
struct Counts {
    refused: AtomicU64,
    without_retry: AtomicU64,
    /// Admitted, and dropped by their deadline.
    expired: AtomicU64,
    /// Of these, sent when every client had been there for a deadline.
    expired_later: AtomicU64,
    /// Clients that are there, and since when all of them are.
    connected: AtomicU64,
    all_there: OnceLock<Instant>,
    other_errors: AtomicU64,
    /// How long admitted requests took, in milliseconds: one counter for each.
    latencies: Latencies,
    unary_refused: AtomicU64,
    unary_without_retry: AtomicU64,
}

/// A count for each millisecond up to twice the deadline.
struct Latencies(Vec<AtomicU64>);

impl Default for Latencies {
    fn default() -> Self {
        Self((0..2 * DEADLINE.as_millis()).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Latencies {
    fn record(&self, took: Duration) {
        let at = (took.as_millis() as usize).min(self.0.len() - 1);
        self.0[at].fetch_add(1, Ordering::Relaxed);
    }

    /// The milliseconds that this part of the answers took at most.
    fn quantile(&self, part: f64) -> u64 {
        let counts: Vec<u64> = self.0.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let wanted = part * counts.iter().sum::<u64>() as f64;
        let mut seen = 0;
        let reached = |count: &u64| {
            seen += count;
            seen as f64 >= wanted
        };
        counts.iter().position(reached).unwrap_or(0) as u64
    }
}

pub(super) fn run(seconds: Option<f64>, _: Option<&str>) -> Figures {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.unwrap().block_on(measure(Duration::from_secs_f64(seconds.unwrap_or(120.0))))
}

async fn measure(time: Duration) -> Figures {
    let folder = tempfile::tempdir().unwrap();
    models::write_mlp(folder.path(), WIDTH, &[1200, 1200], 10, 1);
    let queue = format!("batching.max_queue_rows={QUEUE}");
    let batch = "batching.max_batch_rows=256";
    let teacher = Teacher::start(
        folder.path(),
        &[
            "--set",
            &queue,
            "--set",
            batch,
            "--set",
            "limits.max_rows=256",
            UNCACHED[0],
            UNCACHED[1],
        ],
    );
    let counts = Arc::new(Counts::default());
    let stop = Arc::new(AtomicBool::new(false));
    // The last is the light client.
    let rows: Vec<Arc<AtomicU64>> = (0..=CLIENTS).map(|_| Arc::default()).collect();
    let clients: Vec<_> = rows
        .iter()
        .enumerate()
        .map(|(index, rows)| {
            let (address, name) = (teacher.address(), format!("client-{index}"));
            let requests = if index == CLIENTS { LIGHT_REQUESTS } else { REQUESTS };
            let (rows, counts, stop) = (Arc::clone(rows), Arc::clone(&counts), Arc::clone(&stop));
            tokio::spawn(async move {
                stream(address, (&name, requests), &rows, &counts, &stop).await;
            })
        })
        .collect();
    let prober = {
        let (address, counts, stop) = (teacher.address(), Arc::clone(&counts), Arc::clone(&stop));
        tokio::spawn(async move { probe(address, &counts, &stop).await })
    };

    let start = Instant::now();
    let mut resident = Vec::new();
    let mut most_queued = 0.0_f64;
    while start.elapsed() < time {
        tokio::time::sleep(Duration::from_millis(500)).await;
        resident.push(teacher.resident_bytes());
        most_queued = most_queued.max(teacher.metric("stillhouse_teacher_queue_rows"));
        progress(&format!("{:.0} of {:.0} s", start.elapsed().as_secs_f64(), time.as_secs_f64()));
    }
    progress("");
    let mut done: Vec<f64> = rows.iter().map(|rows| rows.load(Ordering::Relaxed) as f64).collect();
    let light = done.pop().unwrap_or_default();
    let elapsed = start.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    drop(prober.await);
    for client in clients {
        drop(tokio::time::timeout(Duration::from_secs(5), client).await);
    }
    let panics = teacher.metric("stillhouse_teacher_device_panics_total");
    let mut figures = report(&counts, &resident, &done, elapsed);
    let light = light * CLIENTS as f64 / done.iter().sum::<f64>();
    figures.add("light_client_share_of_fair", light);
    figures.require(light >= 0.9, "a client with a tenth of the load lost its fair share");
    figures.add("most_rows_queued", most_queued);
    figures.add("panics", panics);
    figures.require(most_queued <= QUEUE as f64, "more was queued than the bound allows");
    figures.require(panics == 0.0, "the device thread panicked");
    figures
}

fn report(counts: &Counts, resident: &[u64], done: &[f64], elapsed: f64) -> Figures {
    let total: f64 = done.iter().sum();
    let fair = total / CLIENTS as f64;
    let least = done.iter().copied().fold(f64::INFINITY, f64::min) / fair;
    let most = done.iter().copied().fold(0.0, f64::max) / fair;
    let squares: f64 = done.iter().map(|rows| rows * rows).sum();
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    // The first third fills queues, buffers and the allocator's pools.
    let peaks: Vec<u64> = resident
        .chunks(resident.len().div_ceil(3).max(1))
        .map(|third| third.iter().copied().max().unwrap_or(0))
        .collect();
    let &[early, middle, late] = peaks.as_slice() else { panic!("too short to tell: {peaks:?}") };

    let mut figures = Figures::default();
    figures.add("clients", CLIENTS);
    figures.add("rows_in_flight", LOAD);
    figures.add("queue_rows", QUEUE);
    figures.add("seconds", elapsed);
    figures.add("rows_per_second", total / elapsed);
    figures.add("least_share_of_fair", least);
    figures.add("most_share_of_fair", most);
    let jain = total * total / (CLIENTS as f64 * squares);
    figures.add("jain_index", jain);
    figures.require(jain >= 0.95, "the clients' shares are not equal");
    let (p50, p99) = (counts.latencies.quantile(0.5), counts.latencies.quantile(0.99));
    figures.add("admitted_p50_ms", p50);
    figures.add("admitted_p99_ms", p99);
    figures.require(counts.all_there.get().is_some(), "a client did not connect");
    // While clients are still coming, those that are there queue more than their later share of the
    // device: some of that expires, and counts with the time that it took.
    let later = read(&counts.expired_later);
    figures.add("expired", read(&counts.expired));
    figures.add("expired_after_the_start", later);
    let within = u128::from(p99) < DEADLINE.as_millis() && later == 0;
    figures.require(within, "admitted work was not done by its deadline");
    figures.add("refused", read(&counts.refused));
    figures.add("refused_without_retry", read(&counts.without_retry));
    figures.add("unary_refused", read(&counts.unary_refused));
    figures.add("unary_refused_without_retry_info", read(&counts.unary_without_retry));
    figures.add("other_errors", read(&counts.other_errors));
    figures.add("resident_mib_first_third", mib(early));
    figures.add("resident_mib_second_third", mib(middle));
    figures.add("resident_mib_last_third", mib(late));

    figures.require(read(&counts.refused) > 0, "nothing was refused: no overload");
    figures.require(read(&counts.unary_refused) > 0, "no unary call was refused");
    figures.require(
        read(&counts.without_retry) + read(&counts.unary_without_retry) == 0,
        "a refusal did not say when to try again",
    );
    figures.require(read(&counts.other_errors) == 0, "errors other than RESOURCE_EXHAUSTED");
    figures.require(least >= 0.5, "a client got less than half of its fair share");
    figures.require(most <= 2.0, "a client got more than twice its fair share");
    figures.require(
        late as f64 <= early.max(middle) as f64 * 1.02,
        "resident memory in the last third was more than 2 % above what it was before",
    );
    figures
}

fn label_request(id: u64, client: &str, rows: usize) -> LabelRequest {
    let pixels = vec![(id % 251) as u8; rows * WIDTH];
    LabelRequest {
        id,
        client: client.to_owned(),
        inputs: Some(Inputs::Features(Tensor {
            dtype: DType::U8.into(),
            shape: vec![rows as u64, WIDTH as u64],
            data: pixels.into(),
        })),
        temperatures: vec![4.0],
        encoding: client::encoding(Kind::Dense(DenseEncoding::default())),
        timeout_ms: DEADLINE.as_millis() as u32,
        ensemble_rule: 0,
        traceparent: String::new(),
    }
}

/// Keeps requests in flight on one stream; one that is refused waits as told and goes again.
async fn stream(
    address: SocketAddr,
    (name, in_flight): (&str, usize),
    rows: &AtomicU64,
    counts: &Arc<Counts>,
    stop: &AtomicBool,
) {
    let mut client = client::connect(address).await;
    // Never more messages than are in flight: what bounds it is the loop below.
    let (send, requests) = mpsc::unbounded_channel();
    let sent: Arc<Vec<Mutex<Instant>>> =
        Arc::new((0..in_flight).map(|_| Mutex::new(Instant::now())).collect());
    for id in 0..in_flight as u64 {
        drop(send.send(client::on_stream(label_request(id, name, ROWS))));
    }
    let stream = client.label_stream(UnboundedReceiverStream::new(requests)).await;
    let mut answers = stream.unwrap().into_inner();
    if counts.connected.fetch_add(1, Ordering::Relaxed) == CLIENTS as u64 {
        let _ = counts.all_there.set(Instant::now());
    }
    while let Ok(Some(answer)) = answers.message().await {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let mut wait = Duration::ZERO;
        match answer.result {
            Some(Answer::Response(_)) => {
                rows.fetch_add(ROWS as u64, Ordering::Relaxed);
                counts.latencies.record(sent[answer.id as usize].lock().unwrap().elapsed());
            }
            Some(Answer::Error(error)) if error.code == Code::DeadlineExceeded as i32 => {
                let sent = *sent[answer.id as usize].lock().unwrap();
                counts.latencies.record(sent.elapsed());
                counts.expired.fetch_add(1, Ordering::Relaxed);
                if counts.all_there.get().is_some_and(|all| sent > *all + DEADLINE) {
                    counts.expired_later.fetch_add(1, Ordering::Relaxed);
                }
            }
            Some(Answer::Error(error)) if error.code == Code::ResourceExhausted as i32 => {
                counts.refused.fetch_add(1, Ordering::Relaxed);
                if error.retry_after_ms == 0 {
                    counts.without_retry.fetch_add(1, Ordering::Relaxed);
                }
                wait = Duration::from_millis(error.retry_after_ms.into());
            }
            _ => {
                counts.other_errors.fetch_add(1, Ordering::Relaxed);
            }
        }
        let again = client::on_stream(label_request(answer.id, name, ROWS));
        let (send, sent) = (send.clone(), Arc::clone(&sent));
        let send_again = async move {
            tokio::time::sleep(wait).await;
            *sent[answer.id as usize].lock().unwrap() = Instant::now();
            drop(send.send(again));
        };
        if wait.is_zero() {
            send_again.await;
        } else {
            tokio::spawn(send_again);
        }
    }
    // The server ended the stream, or the connection broke.
    counts.other_errors.fetch_add(1, Ordering::Relaxed);
}

/// Unary calls beside the streams: their refusals carry `google.rpc.RetryInfo`.
async fn probe(address: SocketAddr, counts: &Counts, stop: &AtomicBool) {
    let mut client = client::connect(address).await;
    for id in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // As one of the busy clients, so that it meets that client's share of the queue too.
        match client.label(label_request(id, &format!("client-{}", id % 64), 256)).await {
            Ok(_) => {}
            Err(status) if status.code() == Code::ResourceExhausted => {
                counts.unary_refused.fetch_add(1, Ordering::Relaxed);
                let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
                if retry.is_none_or(|delay| delay.is_zero()) {
                    counts.unary_without_retry.fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(_) => {
                counts.other_errors.fetch_add(1, Ordering::Relaxed);
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
