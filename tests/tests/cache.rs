//! What a teacher computed outlives it, however it ends, and is never computed twice.

#![allow(clippy::panic, clippy::unwrap_used, missing_docs)]

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use stillhouse_proto::v1::{
    DType, DenseEncoding, DenseKind, LabelRequest, LabelResponse, encoding::Kind, labels::Payload,
};
use stillhouse_tests::{
    client, models,
    process::{Teacher, pause},
};
use tempfile::TempDir;

const WIDTH: usize = 4;
const ROWS: usize = 500;

/// A folder with a model, and one in it for the cache.
fn place() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    models::write_mlp(folder.path(), WIDTH, &[8], 5, 1);
    let cache = folder.path().join("cache");
    (folder, cache)
}

async fn ask(address: SocketAddr) -> LabelResponse {
    let rows: Vec<f32> = (0..ROWS * WIDTH).map(|at| at as f32 / 100.0).collect();
    let mut client = client::connect(address).await;
    // As they are kept.
    let kind = DenseKind::Logits.into();
    let dense = Kind::Dense(DenseEncoding { kind, dtype: DType::F32.into() });
    let encoding = client::encoding(dense);
    let request = LabelRequest { encoding, ..client::request(1, &rows, WIDTH) };
    client.label(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_killed_teacher_comes_back_with_what_it_had_computed() {
    let (folder, cache) = place();
    let arguments = ["--cache-dir", cache.to_str().unwrap()];
    let mut teacher = Teacher::start(folder.path(), &arguments);
    let first = ask(teacher.address()).await;
    assert_eq!(teacher.metric("stillhouse_teacher_forward_rows_total"), ROWS as f64);
    // The writer is a moment behind.
    let written = || teacher.metric("stillhouse_teacher_cache_bytes{tier=\"disk\"}");
    while written() < (ROWS * 5 * 4) as f64 {
        pause(Duration::from_millis(10));
    }
    let second = Teacher::command("127.0.0.1:0".parse().unwrap(), folder.path(), &arguments);
    let refused = { second }.output().unwrap();
    assert_eq!(refused.status.code(), Some(75), "the folder is another server's");
    teacher.kill();

    let teacher = Teacher::start(folder.path(), &arguments);
    let again = ask(teacher.address()).await;
    assert_eq!(again.labels, first.labels, "the same bytes");
    assert_eq!(again.cached_rows as usize, ROWS);
    assert_eq!(teacher.metric("stillhouse_teacher_forward_rows_total"), 0.0);
    let from_disk = teacher.metric("stillhouse_teacher_cache_rows_total{source=\"disk\"}");
    assert_eq!(from_disk, ROWS as f64);
    assert_eq!(teacher.metric("stillhouse_teacher_cache_corrupt_total"), 0.0);
}

#[tokio::test]
async fn a_damaged_entry_is_counted_and_computed_anew() {
    let (folder, cache) = place();
    let arguments = ["--cache-dir", cache.to_str().unwrap()];
    let mut teacher = Teacher::start(folder.path(), &arguments);
    let first = ask(teacher.address()).await;
    teacher.terminate();
    assert!(teacher.wait().success());

    // One bit of what is kept of the first row, wherever that is.
    let Some(Payload::Dense(dense)) = &first.labels[0].payload else { panic!("{first:?}") };
    let row = &dense.values.as_ref().unwrap().data[..5 * 4];
    let mut damaged = 0;
    for file in std::fs::read_dir(&cache).unwrap() {
        let file = file.unwrap().path();
        let mut bytes = std::fs::read(&file).unwrap();
        let places: Vec<usize> =
            (0..bytes.len()).filter(|&at| bytes[at..].starts_with(row)).collect();
        places.iter().for_each(|&at| bytes[at] ^= 1);
        damaged += places.len();
        std::fs::write(&file, bytes).unwrap();
    }
    assert!(damaged > 0, "the row is nowhere");

    let teacher = Teacher::start(folder.path(), &arguments);
    let again = ask(teacher.address()).await;
    assert_eq!(again.labels, first.labels, "the same bytes");
    assert_eq!(again.cached_rows as usize, ROWS - 1);
    assert_eq!(teacher.metric("stillhouse_teacher_cache_corrupt_total"), 1.0);
    assert_eq!(teacher.metric("stillhouse_teacher_forward_rows_total"), 1.0);
}
