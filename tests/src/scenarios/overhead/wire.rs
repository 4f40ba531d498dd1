//! Dense labels over loopback gRPC, in bytes per second, beside a raw TCP copy in the same run.

use std::time::Instant;

use stillhouse_proto::v1::{
    DenseEncoding, DenseKind, LabelRequest, encoding::Kind, label_stream_response::Result as Answer,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    super::{median, progress},
    Figures,
};
use crate::{client, models, process::Teacher};

/// A vocabulary wide enough for the labels, not the requests, to be what travels.
const CLASSES: usize = 16_384;
const WIDTH: usize = 16;
const ROWS: usize = 32;
const IN_FLIGHT: usize = 4;
const ROUNDS: usize = 5;
/// Bytes that one `write` of the raw copy hands over.
const CHUNK: usize = 1 << 20;

pub(super) async fn measure(seconds: f64, figures: &mut Figures) {
    let folder = tempfile::tempdir().unwrap();
    models::write_mlp(folder.path(), WIDTH, &[16], CLASSES, 1);
    let teacher = Teacher::start(folder.path(), &[]);
    let kinds = [("logits", DenseKind::Logits), ("log_probabilities", DenseKind::LogProbabilities)];
    let mut rates = vec![Vec::new(); kinds.len()];
    let mut raw = Vec::new();
    let time = seconds / 8.0;
    for round in 0..ROUNDS {
        progress(&format!("wire: round {} of {ROUNDS}", round + 1));
        raw.push(copy(time).await);
        for ((_, kind), rates) in kinds.iter().zip(&mut rates) {
            rates.push(labels(&teacher, *kind, time).await);
        }
    }
    progress("");
    let raw = median(&raw);
    figures.add("raw_tcp_bytes_per_second", raw);
    for ((name, _), rates) in kinds.iter().zip(&rates) {
        figures.add(format!("dense_{name}_bytes_per_second"), median(rates));
        figures.add(format!("dense_{name}_over_raw_tcp"), median(rates) / raw);
    }
}

/// Bytes of labels per second on one stream.
async fn labels(teacher: &Teacher, kind: DenseKind, seconds: f64) -> f64 {
    let mut client = client::connect(teacher.address()).await;
    let encoding = DenseEncoding { kind: kind.into(), dtype: 0 };
    let request = |id| LabelRequest {
        encoding: client::encoding(Kind::Dense(encoding)),
        ..client::request(id, &[0.5; ROWS * WIDTH], WIDTH)
    };
    let (send, requests) = mpsc::channel(IN_FLIGHT);
    for id in 0..IN_FLIGHT as u64 {
        send.send(client::on_stream(request(id))).await.unwrap();
    }
    let stream = client.label_stream(ReceiverStream::new(requests)).await;
    let mut answers = stream.unwrap().into_inner();
    // The first answer warms both sides up.
    let first = answers.message().await.unwrap().unwrap();
    send.send(client::on_stream(request(first.id))).await.unwrap();
    let (start, mut bytes) = (Instant::now(), 0);
    while start.elapsed().as_secs_f64() < seconds {
        let answer = answers.message().await.unwrap().unwrap();
        assert!(matches!(answer.result, Some(Answer::Response(_))), "{answer:?}");
        bytes += ROWS * CLASSES * 4;
        send.send(client::on_stream(request(answer.id))).await.unwrap();
    }
    bytes as f64 / start.elapsed().as_secs_f64()
}

/// Bytes per second that one thread writes to a loopback socket and another reads from it.
async fn copy(seconds: f64) -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let writer = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let chunk = vec![1_u8; CHUNK];
            // Ends when the reader has had enough.
            while stream.write_all(&chunk).await.is_ok() {}
        });
    });
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut chunk = vec![0; CHUNK];
    let (start, mut bytes) = (Instant::now(), 0);
    while start.elapsed().as_secs_f64() < seconds {
        bytes += stream.read(&mut chunk).await.unwrap();
    }
    let rate = bytes as f64 / start.elapsed().as_secs_f64();
    drop(stream);
    writer.join().unwrap();
    rate
}
