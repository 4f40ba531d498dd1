//! Connections that have lasted long enough are ended without a loss.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use stillhouse_proto::v1::label_stream_response::Result as Answer;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::gated::{Gated, label, request, serve_with};

const AGE: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_age_answers_what_it_has_and_ends() {
    let (model, permit) = Gated::new(false);
    let (mut client, running) = serve_with(Arc::clone(&model), |settings| {
        settings.limits.max_connection_age_seconds = AGE.as_secs_f64();
    })
    .await;
    let begun = Instant::now();
    let (send, requests) = tokio::sync::mpsc::channel(8);
    let stream = client.label_stream(ReceiverStream::new(requests)).await.unwrap();
    let mut answers = stream.into_inner();
    send.send(label(request(1, &[1.0]))).await.unwrap();
    model.has_taken(1).await;
    // The device is held up until long after the stream has come of age.
    tokio::time::sleep(AGE + AGE / 2).await;
    permit.send(()).unwrap();
    let answer = answers.message().await.unwrap().unwrap();
    assert!(matches!(answer.result, Some(Answer::Response(_))), "{answer:?}");
    let status = answers.message().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("has reached its age"), "{status:?}");
    assert!(begun.elapsed() < Duration::from_secs(20));

    // Another connection is welcome.
    drop(permit);
    let mut client =
        crate::gated::Client::connect(format!("http://{}", running.address())).await.unwrap();
    client.label(request(2, &[2.0])).await.unwrap();
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_not_answered_in_time_is_dropped() {
    let (model, permit) = Gated::new(false);
    let (mut client, running) = serve_with(Arc::clone(&model), |settings| {
        settings.limits.max_connection_age_seconds = AGE.as_secs_f64();
        settings.limits.connection_grace_seconds = 0.2;
    })
    .await;
    let requests = tokio_stream::iter([label(request(1, &[1.0]))]);
    let open = tokio_stream::StreamExt::chain(requests, tokio_stream::pending());
    let mut answers = client.label_stream(open).await.unwrap().into_inner();
    let ended = tokio::time::timeout(Duration::from_secs(20), answers.message()).await.unwrap();
    assert_eq!(ended.unwrap_err().code(), Code::Unavailable);
    drop(permit);
    running.shutdown().await.unwrap();
}
