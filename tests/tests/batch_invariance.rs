//! Labels are bit-identical whatever batch a row rides in: alone, among others of its request, or
//! in a batch that the server formed of several clients' requests.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::collections::HashMap;

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use stillhouse_nn::Philox;
use stillhouse_proto::v1::{
    DType, DenseEncoding, HiddenEncoding, LabelRequest, encoding::Kind,
    label_stream_response::Result as Answer, labels::Payload,
};
use stillhouse_tests::{
    client::{self, Client},
    models,
    process::Teacher,
};

const WIDTH: usize = 37;
const POOL: usize = 40;

fn pool() -> Vec<Vec<f32>> {
    let mut random = Philox::new(3, 0);
    (0..POOL).map(|_| (0..WIDTH).map(|_| random.normal() as f32).collect()).collect()
}

fn request(id: u64, rows: &[usize], pool: &[Vec<f32>], hidden: bool) -> LabelRequest {
    let values: Vec<f32> = rows.iter().flat_map(|&row| pool[row].iter().copied()).collect();
    let kind = if hidden {
        Kind::Hidden(HiddenEncoding::default())
    } else {
        Kind::Dense(DenseEncoding::default())
    };
    LabelRequest {
        temperatures: vec![1.0, 3.0],
        encoding: client::encoding(kind),
        client: format!("client-{}", id % 3),
        ..client::request(id, &values, WIDTH)
    }
}

/// Bytes of the labels of each row, over all temperatures.
fn rows_of(response: &stillhouse_proto::v1::LabelResponse) -> Vec<Vec<u8>> {
    let mut rows = vec![Vec::new(); response.labels[0].rows as usize];
    for labels in &response.labels {
        let tensor = match labels.payload.as_ref().unwrap() {
            Payload::Dense(dense) => dense.values.as_ref().unwrap(),
            Payload::Hidden(hidden) => hidden.states.as_ref().unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(tensor.dtype, DType::F32 as i32);
        let bytes = tensor.data.len() / rows.len();
        for (row, chunk) in rows.iter_mut().zip(tensor.data.chunks(bytes)) {
            row.extend_from_slice(chunk);
        }
    }
    rows
}

async fn all_at_once(
    mut client: Client,
    requests: Vec<LabelRequest>,
) -> HashMap<u64, Vec<Vec<u8>>> {
    let items: Vec<_> = requests.into_iter().map(client::on_stream).collect();
    let mut answers = client.label_stream(tokio_stream::iter(items)).await.unwrap().into_inner();
    let mut by_id = HashMap::new();
    while let Some(answer) = answers.message().await.unwrap() {
        match answer.result.unwrap() {
            Answer::Response(response) => by_id.insert(answer.id, rows_of(&response)),
            Answer::Error(error) => panic!("{error:?}"),
        };
    }
    by_id
}

#[test]
fn a_rows_labels_do_not_depend_on_its_batch() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    models::write_mlp(folder.path(), WIDTH, &[129, 65], 11, 9);
    let teacher = Teacher::start(
        folder.path(),
        &["--set", "batching.max_wait_us=500", "--set", "cache.enabled=false"],
    );
    let mut client = runtime.block_on(client::connect(teacher.address()));
    let pool = pool();

    for hidden in [false, true] {
        let alone: Vec<Vec<u8>> = (0..POOL)
            .map(|row| {
                let request = request(0, &[row], &pool, hidden);
                let response = runtime.block_on(client.label(request)).unwrap().into_inner();
                rows_of(&response).remove(0)
            })
            .collect();
        let compositions = prop::collection::vec(prop::collection::vec(0..POOL, 1..70), 1..12);
        let mut runner = TestRunner::new(Config { cases: 12, ..Config::default() });
        runner
            .run(&compositions, |compositions| {
                let requests = compositions.iter().zip(1..);
                let requests =
                    requests.map(|(rows, id)| request(id, rows, &pool, hidden)).collect();
                let got = runtime.block_on(all_at_once(client.clone(), requests));
                for (rows, id) in compositions.iter().zip(1_u64..) {
                    for (&row, bytes) in rows.iter().zip(&got[&id]) {
                        prop_assert_eq!(bytes, &alone[row], "row {}", row);
                    }
                }
                Ok(())
            })
            .unwrap();
    }
    let batches: f64 = ["full", "waited", "deadline"]
        .iter()
        .map(|why| teacher.metric(&format!("stillhouse_teacher_batches_total{{reason=\"{why}\"}}")))
        .sum();
    let requests = teacher.metric("stillhouse_teacher_requests_total{outcome=\"labelled\"}");
    assert!(batches < requests, "no batch held more than one request: nothing was tested");
}
