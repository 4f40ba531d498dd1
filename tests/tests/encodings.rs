//! All encodings tell the same of the same rows, over the wire.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::collections::HashMap;

use stillhouse_nn::{Head, Philox};
use stillhouse_proto::{
    LabelBatch, SoftLabels, decode, dtype,
    v1::{
        DType, DenseEncoding, DenseKind, FetchHeadRequest, HiddenEncoding, IdsEncoding,
        LabelRequest, SampledEncoding, TopKEncoding, encoding::Kind,
    },
};
use stillhouse_tests::{
    client::{self, Client},
    models,
    process::Teacher,
};

const WIDTH: usize = 6;
const CLASSES: usize = 11;
const ROWS: usize = 7;
const TEMPERATURES: [f32; 3] = [0.5, 1.0, 20.0];

fn rows() -> Vec<f32> {
    let mut random = Philox::new(5, 0);
    (0..ROWS * WIDTH).map(|_| 4.0 * random.normal() as f32).collect()
}

/// The labels at each temperature.
async fn ask(client: &mut Client, kind: Kind) -> Vec<LabelBatch> {
    let request = LabelRequest {
        temperatures: TEMPERATURES.to_vec(),
        encoding: client::encoding(kind),
        ..client::request(1, &rows(), WIDTH)
    };
    let response = client.label(request).await.unwrap().into_inner();
    assert!(response.row_errors.is_empty());
    response.labels.iter().map(|labels| decode(labels).unwrap()).collect()
}

async fn dense(client: &mut Client, kind: DenseKind) -> Vec<Vec<f32>> {
    let dense = DenseEncoding { kind: kind.into(), dtype: DType::F32.into() };
    let labels = ask(client, Kind::Dense(dense)).await;
    labels
        .into_iter()
        .map(|batch| match batch.labels {
            SoftLabels::Dense { values, .. } => values,
            other => panic!("{other:?}"),
        })
        .collect()
}

/// log(1 - sum(exp(x))) of what was not named.
fn log_rest(named: impl Iterator<Item = f32>) -> f64 {
    (1.0 - named.map(|x| f64::from(x).exp()).sum::<f64>()).ln()
}

fn close(found: f32, expected: f64, what: &str) {
    let expected = expected as f32;
    // f32 log-probabilities of what was named make a sum near 1: what is left is known to 1e-6.
    let difference = (found.exp() - expected.exp()).abs();
    assert!(difference < 1e-6, "{what}: {found}, expected {expected}");
}

async fn teacher() -> (Teacher, Client, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    models::write_mlp(folder.path(), WIDTH, &[16], CLASSES, 4);
    let teacher = Teacher::start(folder.path(), &[]);
    let client = client::connect(teacher.address()).await;
    (teacher, client, folder)
}

#[tokio::test]
async fn dense_kinds_are_the_softmax_of_the_logits_at_each_temperature() {
    let (_teacher, mut client, _folder) = teacher().await;
    let logits = dense(&mut client, DenseKind::Logits).await;
    assert_eq!(logits.len(), 1, "logits do not depend on the temperature: they are sent once");
    let logs = dense(&mut client, DenseKind::LogProbabilities).await;
    let probabilities = dense(&mut client, DenseKind::Probabilities).await;
    for (at, temperature) in TEMPERATURES.into_iter().enumerate() {
        for row in 0..ROWS {
            let row = row * CLASSES..(row + 1) * CLASSES;
            let scaled = logits[0][row.clone()].iter().map(|z| f64::from(*z / temperature));
            let mass: f64 = scaled.clone().map(f64::exp).sum();
            for ((x, log), p) in scaled.zip(&logs[at][row.clone()]).zip(&probabilities[at][row]) {
                let expected = x - mass.ln();
                assert!((f64::from(*log) - expected).abs() < 2e-6 * expected.abs().max(1.0));
                assert!((f64::from(*p) - expected.exp()).abs() < 1e-6);
            }
        }
    }
}

#[tokio::test]
async fn ids_and_top_k_are_the_dense_values_and_the_mass_of_the_rest() {
    let (_teacher, mut client, _folder) = teacher().await;
    let dense = dense(&mut client, DenseKind::LogProbabilities).await;

    // Other ids for each row, in no order of probability.
    let named: Vec<[u32; 3]> =
        (0..ROWS as u32).map(|row| [row % 11, (row + 5) % 11, (row * 3 + 1) % 11]).collect();
    let named: Vec<[u32; 3]> = named
        .into_iter()
        .map(|[a, b, c]| [a, b, if c == a || c == b { (a + 1) % 11 } else { c }])
        .collect();
    let flat: Vec<u32> = named.iter().flatten().copied().collect();
    let ids = stillhouse_proto::request::pack_ids(&flat);
    let labels = ask(&mut client, Kind::Ids(IdsEncoding { ids_per_row: 3, ids, dtype: 0 })).await;
    for (dense, batch) in dense.iter().zip(labels) {
        let SoftLabels::Ids { log_probabilities, log_tail_mass, .. } = batch.labels else {
            panic!("not ids")
        };
        for (row, ids) in named.iter().enumerate() {
            let found = &log_probabilities[row * 3..][..3];
            let expected = ids.map(|id| dense[row * CLASSES + id as usize]);
            assert_eq!(found, expected, "row {row}");
            close(log_tail_mass[row], log_rest(expected.into_iter()), "tail");
        }
    }

    let labels = ask(&mut client, Kind::TopK(TopKEncoding { k: 4, dtype: 0 })).await;
    for (dense, batch) in dense.iter().zip(labels) {
        let SoftLabels::TopK { ids, log_probabilities, log_tail_mass, .. } = batch.labels else {
            panic!("not top_k")
        };
        for row in 0..ROWS {
            let all = &dense[row * CLASSES..][..CLASSES];
            let mut sorted = all.to_vec();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let (ids, values) = (&ids[row * 4..][..4], &log_probabilities[row * 4..][..4]);
            assert_eq!(values, &sorted[..4]);
            assert!(ids.iter().zip(values).all(|(id, value)| all[*id as usize] == *value));
            close(log_tail_mass[row], log_rest(values.iter().copied()), "tail");
        }
    }
}

#[tokio::test]
async fn draws_are_seeded_and_follow_the_distribution() {
    let (_teacher, mut client, _folder) = teacher().await;
    let dense = dense(&mut client, DenseKind::Probabilities).await;
    let draws = 20_000;
    let sampled = |seed| Kind::Sampled(SampledEncoding { draws, seed });
    let labels = ask(&mut client, sampled(7)).await;
    assert_eq!(labels, ask(&mut client, sampled(7)).await);
    assert_ne!(labels, ask(&mut client, sampled(8)).await);
    for (dense, batch) in dense.iter().zip(labels) {
        let SoftLabels::Sampled { distinct, ids, counts, .. } = batch.labels else {
            panic!("not sampled")
        };
        let mut drawn = ids.into_iter().zip(counts);
        for (row, distinct) in distinct.into_iter().enumerate() {
            let counts: HashMap<u32, u32> = drawn.by_ref().take(distinct.into()).collect();
            assert_eq!(counts.values().sum::<u32>(), draws);
            for class in 0..CLASSES {
                let p = f64::from(dense[row * CLASSES + class]);
                let count = f64::from(counts.get(&(class as u32)).copied().unwrap_or(0));
                // Six standard deviations; the seed is fixed, so this cannot flicker.
                let slack = 6.0 * (f64::from(draws) * p * (1.0 - p)).sqrt() + 1.0;
                assert!((count - f64::from(draws) * p).abs() < slack, "{count} of {p}");
            }
        }
    }
}

#[tokio::test]
async fn hidden_states_and_the_head_rebuild_the_logits() {
    let (_teacher, mut client, _folder) = teacher().await;
    let logits = dense(&mut client, DenseKind::Logits).await.remove(0);
    let request = FetchHeadRequest { dtype: DType::F32.into() };
    let mut pieces = client.fetch_head(request).await.unwrap().into_inner();
    let (mut bytes, mut shape, mut has_bias) = (Vec::new(), Vec::new(), false);
    while let Some(piece) = pieces.message().await.unwrap() {
        assert_eq!(piece.offset, bytes.len() as u64);
        bytes.extend_from_slice(&piece.data);
        (shape, has_bias) = (piece.weight_shape, piece.has_bias);
    }
    assert_eq!(shape, [CLASSES as u64, 16]);
    let mut weight = dtype::to_f32(DType::F32, &bytes);
    let bias = has_bias.then(|| weight.split_off(CLASSES * 16));
    let head = Head { weight, bias, classes: CLASSES, hidden_size: 16, softcap: None };

    let hidden = ask(&mut client, Kind::Hidden(HiddenEncoding { dtype: 0 })).await;
    let [LabelBatch { labels: SoftLabels::Hidden { width: 16, states }, .. }] = hidden.as_slice()
    else {
        panic!("{hidden:?}")
    };
    let rebuilt = head.logits(states).unwrap();
    for (a, b) in rebuilt.iter().zip(&logits) {
        assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{a} {b}");
    }
    assert_eq!(rebuilt.len(), logits.len());
}
