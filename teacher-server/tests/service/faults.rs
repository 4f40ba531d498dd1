//! What clients see of a slow, failing or dying device: deadlines, cancellation, lost devices and
//! rows without a finite output.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use stillhouse_proto::v1::{
    CancelRequest, LabelRequest, LabelStreamRequest, label_stream_request::Action,
    label_stream_response::Result as Answer,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::{
    gated::{Client, Gated, bind, label, request, serve},
    shares::queue_holds,
};

/// Far longer than any deadline here.
const PATIENCE: Duration = Duration::from_secs(20);

/// Sends a request and waits until the device has taken it, so that the next one has to queue.
async fn queued_behind(
    model: &Gated,
    client: &mut Client,
    first: LabelRequest,
) -> tokio::task::JoinHandle<Code> {
    let mut own = client.clone();
    let busy = tokio::spawn(async move {
        own.label(first).await.map_or_else(|status| status.code(), |_| Code::Ok)
    });
    model.has_taken(1).await;
    busy
}

#[tokio::test(flavor = "multi_thread")]
async fn work_past_its_deadline_is_told_so_and_never_run() {
    let (model, permit) = Gated::new(false);
    let (mut client, running) = serve(Arc::clone(&model)).await;
    let busy = queued_behind(&model, &mut client, request(1, &[1.0])).await;

    // One deadline in the request, one as the call's grpc-timeout, one on a stream: each is told
    // while the device is still busy.
    let own = LabelRequest { timeout_ms: 50, ..request(2, &[2.0, 2.0]) };
    let mut call = tonic::Request::new(request(3, &[3.0, 3.0]));
    call.set_timeout(Duration::from_millis(50));
    let (mut one, mut other) = (client.clone(), client.clone());
    let both = async { tokio::join!(one.label(own.clone()), other.label(call)) };
    let (owned, called) = tokio::time::timeout(PATIENCE, both).await.unwrap();
    assert_eq!(owned.unwrap_err().code(), Code::DeadlineExceeded);
    // The client's own timer runs as well, and may be first to speak on a slow machine.
    let called = called.unwrap_err();
    assert!(matches!(called.code(), Code::DeadlineExceeded | Code::Cancelled), "{called:?}");
    let items = tokio_stream::iter([label(own)]);
    let mut answers = client.label_stream(items).await.unwrap().into_inner();
    let answer = tokio::time::timeout(PATIENCE, answers.message()).await.unwrap();
    let answer = answer.unwrap().unwrap();
    let Some(Answer::Error(error)) = answer.result else { panic!("{answer:?}") };
    assert_eq!(error.code, Code::DeadlineExceeded as i32, "{error:?}");

    permit.send(()).unwrap();
    assert_eq!(busy.await.unwrap(), Code::Ok);
    permit.send(()).unwrap();
    client.label(request(4, &[4.0])).await.unwrap();
    assert_eq!(model.rows_run.load(Ordering::SeqCst), 2, "only the first and the last were run");
    drop(permit);
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_or_abandoned_request_leaves_the_queue() {
    let (model, permit) = Gated::new(false);
    let server = bind(Arc::clone(&model), |_| {}).await;
    let (status, running) = (server.status(), server.spawn());
    let mut client = Client::connect(format!("http://{}", running.address())).await.unwrap();
    let busy = queued_behind(&model, &mut client, request(1, &[1.0])).await;

    let (send, requests) = tokio::sync::mpsc::channel(8);
    let mut answers =
        client.label_stream(ReceiverStream::new(requests)).await.unwrap().into_inner();
    send.send(label(request(2, &[2.0, 2.0]))).await.unwrap();
    let cancel = |id| LabelStreamRequest { action: Some(Action::Cancel(CancelRequest { id })) };
    send.send(cancel(99)).await.unwrap();
    send.send(cancel(2)).await.unwrap();
    let answer = answers.message().await.unwrap().unwrap();
    assert_eq!(answer.id, 2);
    assert!(
        matches!(answer.result, Some(Answer::Error(error)) if error.code == Code::Cancelled as i32)
    );

    // A call whose client goes away.
    let mut other = client.clone();
    let abandoned = tokio::spawn(async move { other.label(request(3, &[3.0, 3.0])).await });
    queue_holds(2, &status).await;
    abandoned.abort();
    queue_holds(0, &status).await;

    permit.send(()).unwrap();
    permit.send(()).unwrap();
    assert_eq!(busy.await.unwrap(), Code::Ok);
    send.send(label(request(4, &[4.0]))).await.unwrap();
    let answer = tokio::time::timeout(PATIENCE, answers.message()).await.unwrap();
    let answer = answer.unwrap().unwrap();
    assert!(matches!(answer.result, Some(Answer::Response(_))), "the stream goes on");
    assert_eq!(model.rows_run.load(Ordering::SeqCst), 2);
    drop(permit);
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_without_a_finite_output_is_an_error_of_that_row() {
    let (model, permit) = Gated::new(false);
    let (mut client, running) = serve(model).await;
    drop(permit);
    let rows = [1.0, 101.0, 3.0, 200.0];
    let response = client.label(request(1, &rows)).await.unwrap().into_inner();
    let failed: Vec<u32> = response.row_errors.iter().map(|error| error.row).collect();
    assert_eq!(failed, [1, 3]);
    assert_eq!(response.labels[0].rows, 2);
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_keeps_panicking_is_lost_and_health_says_so() {
    let (model, permit) = Gated::new(true);
    drop(permit);
    let server = bind(model, |_| {}).await;
    let page = server.status();
    let running = server.spawn();
    let address = format!("http://{}", running.address());
    let mut client = Client::connect(address.clone()).await.unwrap();
    let says = |state: &str| page().contains(&format!("\"state\":\"{state}\","));
    assert!(says("serving"), "{}", page());
    for _ in 0..3 {
        let status = client.label(request(1, &[1.0])).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    }
    let channel = tonic::transport::Endpoint::from_shared(address).unwrap().connect().await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.unwrap());
    let check = tonic_health::pb::HealthCheckRequest { service: String::new() };
    let mut watch = health.watch(check).await.unwrap().into_inner();
    while watch.message().await.unwrap().unwrap().status != 2 {}
    assert!(says("device lost"), "{}", page());
    let status = client.label(request(2, &[1.0])).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    running.shutdown().await.unwrap();
}
