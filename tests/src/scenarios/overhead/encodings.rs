//! Wire bytes and CPU time of a row, by encoding, for MNIST's 10 classes, for 1,000, and for the 151,936 words
//! of Qwen.

use std::time::{Duration, Instant};

use prost::Message as _;
use stillhouse_proto::{
    decode,
    v1::{
        DType, DenseEncoding, Encoding, HiddenEncoding, IdsEncoding, LabelRequest, SampledEncoding,
        Tensor, TopKEncoding, encoding::Kind, label_request::Inputs,
    },
};

use super::{super::progress, Figures};
use crate::{
    client, models,
    process::{Teacher, UNCACHED},
};

/// Rows of a request: of many classes, as many as fit into an answer.
fn rows_of(classes: usize) -> usize {
    if classes > 1000 { 4 } else { 128 }
}

const WIDTH: usize = 784;

/// The five encodings as a student of so many classes would ask for them.
fn kinds(classes: usize) -> Vec<(&'static str, Kind)> {
    let ids: Vec<u32> =
        (0..rows_of(classes) as u32).flat_map(|row| [row % 5, 5 + row % 5]).collect();
    let ids = stillhouse_proto::request::pack_ids(&ids);
    let k = if classes > 10 { 50 } else { 3 };
    let (f32, bf16) = (DType::F32.into(), DType::Bf16.into());
    vec![
        ("dense_f32", Kind::Dense(DenseEncoding { kind: 0, dtype: f32 })),
        ("dense_bf16", Kind::Dense(DenseEncoding { kind: 0, dtype: bf16 })),
        (
            if k == 3 { "top_3_bf16" } else { "top_50_bf16" },
            Kind::TopK(TopKEncoding { k, dtype: bf16 }),
        ),
        ("ids_2_f32", Kind::Ids(IdsEncoding { ids_per_row: 2, ids, dtype: f32 })),
        ("sampled_12", Kind::Sampled(SampledEncoding { draws: 12, seed: 1 })),
        ("hidden_bf16", Kind::Hidden(HiddenEncoding { dtype: bf16 })),
    ]
}

pub(super) async fn measure(seconds: f64, figures: &mut Figures) {
    for (classes, hidden) in [(10, 64), (1000, 64), (151_936, 64)] {
        let folder = tempfile::tempdir().unwrap();
        // A small hidden layer, so that the forward pass does not hide what the encoding costs.
        models::write_mlp(folder.path(), WIDTH, &[hidden], classes, 1);
        let teacher = Teacher::start(folder.path(), &UNCACHED);
        for (name, kind) in kinds(classes) {
            let prefix = format!("{classes}_classes_{name}");
            progress(&format!("encodings: {prefix}"));
            let encoding = client::encoding(kind);
            let rows = rows_of(classes);
            row_cost(&teacher, &prefix, (rows, encoding), seconds / 4.0, figures).await;
        }
        progress("");
    }
}

async fn row_cost(
    teacher: &Teacher,
    prefix: &str,
    (request_rows, encoding): (usize, Option<Encoding>),
    seconds: f64,
    figures: &mut Figures,
) {
    let pixels: Vec<u8> = (0..request_rows * WIDTH).map(|i| (i * 7 % 256) as u8).collect();
    let request = LabelRequest {
        id: 1,
        client: "acceptance".to_owned(),
        inputs: Some(Inputs::Features(Tensor::from_u8(pixels, &[request_rows, WIDTH]).unwrap())),
        temperatures: vec![4.0],
        encoding,
        timeout_ms: 0,
        ensemble_rule: 0,
        traceparent: String::new(),
    };
    let mut client = client::connect(teacher.address()).await;
    let reply = client.label(request.clone()).await.unwrap().into_inner();
    let (before, start) = (teacher.cpu_time(), Instant::now());
    let (mut rows, mut decoding) = (0, Duration::ZERO);
    while start.elapsed().as_secs_f64() < seconds {
        let reply = client.label(request.clone()).await.unwrap().into_inner();
        let begun = Instant::now();
        std::hint::black_box(decode(&reply.labels[0]).unwrap());
        decoding += begun.elapsed();
        rows += request_rows;
    }
    let microseconds = |time: Duration| time.as_secs_f64() * 1e6 / rows as f64;
    let labels: usize = reply.labels.iter().map(prost::Message::encoded_len).sum();
    figures.add(format!("{prefix}_label_bytes_per_row"), labels as f64 / request_rows as f64);
    figures.add(
        format!("{prefix}_reply_bytes_per_row"),
        reply.encoded_len() as f64 / request_rows as f64,
    );
    figures.add(
        format!("{prefix}_server_cpu_us_per_row"),
        microseconds(teacher.cpu_time().saturating_sub(before)),
    );
    figures.add(format!("{prefix}_decode_us_per_row"), microseconds(decoding));
}
