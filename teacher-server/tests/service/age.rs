//! Connections that have lasted long enough are ended without a loss.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use stillhouse_proto::v1::label_stream_response::Result as Answer;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    bounds::IDLE,
    gated::{Gated, label, request, serve_with},
};

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

/// Waits until a connection is told to go (GOAWAY; RFC 9113, section 6.8).
async fn is_told_to_go(stream: &mut TcpStream) {
    loop {
        let mut header = [0; 9];
        stream.read_exact(&mut header).await.unwrap();
        if header[3] == 7 {
            return;
        }
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        stream.read_exact(&mut vec![0; length as usize]).await.unwrap();
    }
}

/// How long clients that came together stay until they are told to go, in order.
async fn stays(address: SocketAddr, clients: usize) -> Vec<Duration> {
    let connected = (0..clients).map(|_| async {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(IDLE).await.unwrap();
        let told = is_told_to_go(&mut stream);
        tokio::time::timeout(Duration::from_secs(30), told).await.unwrap();
        begun.elapsed()
    });
    let mut stays = futures_util::future::join_all(connected).await;
    stays.sort();
    stays
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_came_together_do_not_go_together() {
    let (model, permit) = Gated::new(false);
    drop(permit);
    let age = Duration::from_secs(4);
    let (client, running) = serve_with(model, |settings| {
        settings.limits.max_connection_age_seconds = age.as_secs_f64();
    })
    .await;
    let stays = stays(running.address(), 40).await;
    let (first, last) = (stays[0], stays[stays.len() - 1]);
    assert!(first >= age.mul_f64(0.8), "{first:?}");
    // Of eight moments in 400 ms; that 40 have all the same one is no accident.
    assert!(last - first >= Duration::from_millis(40), "{first:?} to {last:?}");
    drop(client);
    running.shutdown().await.unwrap();
}

/// A health watch has no end of its own.
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_end_by_itself_is_ended() {
    let (model, permit) = Gated::new(false);
    drop(permit);
    let (_client, running) = serve_with(model, |settings| {
        settings.limits.max_connection_age_seconds = AGE.as_secs_f64();
        settings.limits.connection_grace_seconds = 0.1;
    })
    .await;
    let channel = Endpoint::from_shared(format!("http://{}", running.address())).unwrap();
    let mut health = HealthClient::new(channel.connect().await.unwrap());
    let asked = HealthCheckRequest { service: String::new() };
    let mut watch = health.watch(asked).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().is_some());
    let next = tokio::time::timeout(Duration::from_secs(20), watch.message()).await;
    assert!(next.unwrap().is_err(), "it is ended");
    running.shutdown().await.unwrap();
}
