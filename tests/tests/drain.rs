//! SIGTERM: NOT_SERVING, finish what was admitted, close streams, exit 0 within the limit even with
//! idle streams open.

#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    path::Path,
    time::{Duration, Instant},
};

use stillhouse_proto::v1::{LabelRequest, label_stream_response::Result as Answer};
use stillhouse_tests::{client, models, process::Teacher};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

const WIDTH: usize = 64;

#[tokio::test]
async fn a_terminated_server_answers_what_it_admitted_and_exits_in_time() {
    let folder = tempfile::tempdir().unwrap();
    models::write_mlp(folder.path(), WIDTH, &[512, 512], 10, 1);
    let mut teacher = Teacher::start(
        folder.path(),
        &["--set", "drain.limit_seconds=10", "--set", "cache.enabled=false"],
    );
    let mut client = client::connect(teacher.address()).await;

    // One stream with work in flight, one that stays idle.
    let (work, requests) = mpsc::channel(64);
    let mut answers =
        client.label_stream(ReceiverStream::new(requests)).await.unwrap().into_inner();
    let (idle, nothing) = mpsc::channel(1);
    let mut silence = client.label_stream(ReceiverStream::new(nothing)).await.unwrap().into_inner();
    let rows = vec![0.25; 1024 * WIDTH];
    for id in 0..12 {
        work.send(client::on_stream(client::request(id, &rows, WIDTH))).await.unwrap();
    }
    let first = answers.message().await.unwrap().unwrap();
    assert!(matches!(first.result, Some(Answer::Response(_))));

    // All are admitted when all but those of one batch are queued or answered.
    let admitted = || {
        teacher.metric("stillhouse_teacher_queue_rows")
            + teacher.metric("stillhouse_teacher_rows_total{encoding=\"dense\"}")
    };
    while admitted() < 11.0 * 1024.0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    teacher.terminate();
    let told = Instant::now();
    let mut answered = 1;
    let end = loop {
        match answers.message().await {
            Ok(Some(answer)) => match answer.result.unwrap() {
                Answer::Response(_) => answered += 1,
                Answer::Error(error) => assert_eq!(error.code, Code::Unavailable as i32),
            },
            Ok(None) => break None,
            Err(status) => break Some(status),
        }
    };
    assert!(answered >= 11, "only {answered} of what was admitted were answered");
    assert_eq!(end.expect("a draining server says so").code(), Code::Unavailable);
    assert_eq!(silence.message().await.unwrap_err().code(), Code::Unavailable);

    let status = tokio::task::spawn_blocking(move || teacher.wait()).await.unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(told.elapsed() < Duration::from_secs(10), "{:?}", told.elapsed());
    drop((work, idle));
}

#[tokio::test]
async fn health_turns_and_an_idle_health_watch_does_not_hold_the_exit_up() {
    let folder = tempfile::tempdir().unwrap();
    models::write_mlp(folder.path(), 4, &[8], 5, 1);
    let mut teacher = Teacher::start(
        folder.path(),
        &["--set", "drain.limit_seconds=10", "--set", "cache.enabled=false"],
    );
    let channel = tonic::transport::Endpoint::from_shared(teacher.url()).unwrap();
    let mut health =
        tonic_health::pb::health_client::HealthClient::new(channel.connect().await.unwrap());
    for service in ["", "distill.v1.TeacherService"] {
        let request = tonic_health::pb::HealthCheckRequest { service: service.to_owned() };
        let mut watch = health.watch(request).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status, 1, "SERVING");
        if !service.is_empty() {
            teacher.terminate();
            let told = Instant::now();
            assert_eq!(watch.message().await.unwrap().unwrap().status, 2, "NOT_SERVING");
            let status = tokio::task::spawn_blocking(move || teacher.wait()).await.unwrap();
            assert_eq!(status.code(), Some(0));
            assert!(told.elapsed() < Duration::from_secs(10), "{:?}", told.elapsed());
            break;
        }
    }
}

/// A teacher with seconds of work on any machine in its queue: 64 * 1024 rows of 4 million weights
/// each. The stream must be held for as long as the work shall stay.
async fn with_work(folder: &Path, limit: &str) -> (Teacher, impl Sized) {
    models::write_mlp(folder, WIDTH, &[2048, 2048], 10, 1);
    let teacher = Teacher::start(folder, &["--set", limit, "--set", "cache.enabled=false"]);
    let mut client = client::connect(teacher.address()).await;
    let (work, requests) = mpsc::channel(64);
    let mut answers =
        client.label_stream(ReceiverStream::new(requests)).await.unwrap().into_inner();
    let rows = vec![0.25; 1024 * WIDTH];
    for id in 0..64 {
        let request = client::request(id, &rows, WIDTH);
        let request = LabelRequest { client: format!("client-{}", id % 8), ..request };
        work.send(client::on_stream(request)).await.unwrap();
    }
    answers.message().await.unwrap().unwrap();
    (teacher, (work, answers))
}

#[tokio::test]
async fn the_limit_holds_even_with_work_left() {
    let folder = tempfile::tempdir().unwrap();
    let (mut teacher, _work) = with_work(folder.path(), "drain.limit_seconds=0.2").await;
    teacher.terminate();
    let told = Instant::now();
    let status = tokio::task::spawn_blocking(move || {
        let status = teacher.wait();
        assert!(teacher.log().contains("the drain limit passed with work left"));
        status
    });
    assert_eq!(status.await.unwrap().code(), Some(0));
    // The limit, and what a loaded machine takes to end a process.
    assert!(told.elapsed() < Duration::from_secs(5), "{:?}", told.elapsed());
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (mut teacher, _work) = with_work(folder.path(), "drain.limit_seconds=600").await;
    teacher.terminate();
    while !teacher.log().contains("draining") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    teacher.terminate();
    let status = tokio::task::spawn_blocking(move || teacher.wait()).await.unwrap();
    assert_eq!(status.code(), Some(130));
}
