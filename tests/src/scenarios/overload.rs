//! `overload`: 64 streaming clients against one teacher whose queue holds a tenth of their load.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
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

use super::{Figures, UNCACHED, progress};
use crate::{client, models, process::Teacher};

const CLIENTS: usize = 64;
/// What a client has in flight at any time.
const REQUESTS: usize = 16;
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
    other_errors: AtomicU64,
    unary_refused: AtomicU64,
    unary_without_retry: AtomicU64,
}

pub(super) fn run(seconds: Option<f64>, _: Option<&str>) -> Figures {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.unwrap().block_on(measure(Duration::from_secs_f64(seconds.unwrap_or(60.0))))
}

async fn measure(time: Duration) -> Figures {
    let folder = tempfile::tempdir().unwrap();
    models::write_mlp(folder.path(), WIDTH, &[1200, 1200], 10, 1);
    let queue = format!("batching.max_queue_rows={QUEUE}");
    let batch = "batching.max_batch_rows=256";
    let teacher = Teacher::start(
        folder.path(),
        &["--set", &queue, "--set", batch, "--set", "limits.max_rows=256", "--set", UNCACHED],
    );
    let counts = Arc::new(Counts::default());
    let stop = Arc::new(AtomicBool::new(false));
    let rows: Vec<Arc<AtomicU64>> = (0..CLIENTS).map(|_| Arc::default()).collect();
    let clients: Vec<_> = rows
        .iter()
        .enumerate()
        .map(|(index, rows)| {
            let (address, name) = (teacher.address(), format!("client-{index}"));
            let (rows, counts, stop) = (Arc::clone(rows), Arc::clone(&counts), Arc::clone(&stop));
            tokio::spawn(async move { stream(address, &name, &rows, &counts, &stop).await })
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
    let done: Vec<f64> = rows.iter().map(|rows| rows.load(Ordering::Relaxed) as f64).collect();
    let elapsed = start.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    drop(prober.await);
    for client in clients {
        drop(tokio::time::timeout(Duration::from_secs(5), client).await);
    }
    let panics = teacher.metric("stillhouse_teacher_device_panics_total");
    let mut figures = report(&counts, &resident, &done, elapsed);
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
    figures.add("jain_index", total * total / (CLIENTS as f64 * squares));
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
        late as f64 <= middle as f64 * 1.02,
        "resident memory grew by more than 2 % from the second third to the last",
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
        timeout_ms: 0,
        ensemble_rule: 0,
    }
}

/// Keeps `REQUESTS` in flight on one stream; one that is refused waits as told and goes again.
async fn stream(
    address: SocketAddr,
    name: &str,
    rows: &AtomicU64,
    counts: &Arc<Counts>,
    stop: &AtomicBool,
) {
    let mut client = client::connect(address).await;
    // Never more than `REQUESTS` messages: what bounds it is the loop below.
    let (send, requests) = mpsc::unbounded_channel();
    for id in 0..REQUESTS as u64 {
        drop(send.send(client::on_stream(label_request(id, name, ROWS))));
    }
    let stream = client.label_stream(UnboundedReceiverStream::new(requests)).await;
    let mut answers = stream.unwrap().into_inner();
    while let Ok(Some(answer)) = answers.message().await {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let mut wait = Duration::ZERO;
        match answer.result {
            Some(Answer::Response(_)) => {
                rows.fetch_add(ROWS as u64, Ordering::Relaxed);
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
        if wait.is_zero() {
            drop(send.send(again));
        } else {
            let send = send.clone();
            tokio::spawn(async move {
                tokio::time::sleep(wait).await;
                drop(send.send(again));
            });
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
