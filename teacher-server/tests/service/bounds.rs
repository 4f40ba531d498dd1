//! A client that asks for more than its bounds is told when to come back, and takes nothing from
//! the others.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use stillhouse_proto::v1::{
    CancelRequest, LabelRequest, LabelResponse, LabelStreamRequest, label_stream_request::Action,
    label_stream_response::Result as Answer,
};
use teacher_server::Settings;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt as _;

use crate::gated::{Client, Gated, bind, label, request, serve_with};

/// Bytes that the tests' clients may hold, and all of them together.
const CLIENT_BYTES: u64 = 1 << 20;
const ALL_BYTES: u64 = 3 << 19;
/// What a client of HTTP/2 says that has nothing to ask: the preface, and empty SETTINGS.
pub(crate) const IDLE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

pub(crate) fn from(client: &str, request: LabelRequest) -> LabelRequest {
    LabelRequest { client: client.to_owned(), ..request }
}

/// The refusal's text, after its code and its time to try again.
pub(crate) fn refusal(status: &Status) -> String {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let info = status.get_details_retry_info().unwrap();
    assert!(info.retry_delay.is_some_and(|delay| !delay.is_zero()), "{info:?}");
    status.message().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_with_a_time_to_try_again() {
    let (model, permit) = Gated::new(false);
    let (mut client, running) = serve_with(Arc::clone(&model), |settings| {
        settings.limits.max_rows = 4;
        settings.batching.max_batch_rows = 4;
        settings.batching.max_queue_rows = 4;
        settings.batching.max_client_rows = 4;
    })
    .await;
    let four = [1.0; 4];
    // One with the device, one that waits.
    let mut waiting = Vec::new();
    for id in 0..2 {
        let (client, request) = (client.clone(), from("a", request(id, &four)));
        waiting.push(tokio::spawn(until_admitted(client, request)));
        model.has_taken(1).await;
    }
    // Until the second is in the queue, there is room: what finds it leaves again.
    let refused = loop {
        let short = LabelRequest { timeout_ms: 20, ..from("b", request(9, &four)) };
        let status = client.label(short).await.unwrap_err();
        if status.code() != Code::DeadlineExceeded {
            break status;
        }
    };
    assert!(refusal(&refused).contains("queue"), "{refused:?}");

    let (send, requests) = tokio::sync::mpsc::channel(8);
    let mut answers =
        client.label_stream(ReceiverStream::new(requests)).await.unwrap().into_inner();
    send.send(label(from("b", request(5, &four)))).await.unwrap();
    let answer = answers.message().await.unwrap().unwrap();
    let Some(Answer::Error(error)) = answer.result else { panic!("{answer:?}") };
    assert_eq!((answer.id, error.code), (5, Code::ResourceExhausted as i32));
    assert!(error.retry_after_ms > 0);

    drop(permit);
    for waiting in waiting {
        waiting.await.unwrap();
    }
    send.send(label(from("b", request(6, &four)))).await.unwrap();
    let answer = answers.message().await.unwrap().unwrap();
    assert!(matches!(answer.result, Some(Answer::Response(_))), "there is room again: {answer:?}");
    drop((send, answers));
    running.shutdown().await.unwrap();
}

/// As many are in flight as may be, and none of them can end: cancelling one is what makes room.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_still_takes_cancellations() {
    let (model, permit) = Gated::new(false);
    let (mut client, running) = serve_with(Arc::clone(&model), |settings| {
        settings.limits.max_stream_in_flight = 2;
    })
    .await;
    let (send, requests) = tokio::sync::mpsc::channel(8);
    let mut answers =
        client.label_stream(ReceiverStream::new(requests)).await.unwrap().into_inner();
    send.send(label(request(1, &[1.0]))).await.unwrap();
    model.has_taken(1).await;
    send.send(label(request(2, &[1.0]))).await.unwrap();
    let cancel = Action::Cancel(CancelRequest { id: 2 });
    send.send(LabelStreamRequest { action: Some(cancel) }).await.unwrap();
    let answer = answers.message().await.unwrap().unwrap();
    let Some(Answer::Error(error)) = answer.result else { panic!("{answer:?}") };
    assert_eq!((answer.id, error.code), (2, Code::Cancelled as i32));
    // What comes when it is full waits, and is answered.
    for id in 3..6 {
        send.send(label(request(id, &[1.0]))).await.unwrap();
    }
    drop(permit);
    let mut ids = Vec::new();
    for _ in 0..4 {
        let answer = answers.message().await.unwrap().unwrap();
        assert!(matches!(answer.result, Some(Answer::Response(_))), "{answer:?}");
        ids.push(answer.id);
    }
    ids.sort_unstable();
    assert_eq!(ids, [1, 3, 4, 5]);
    drop((send, answers));
    running.shutdown().await.unwrap();
}

/// Asks until there is room, then waits for the answer.
async fn until_admitted(mut client: Client, request: LabelRequest) {
    while let Err(status) = client.label(request.clone()).await {
        refusal(&status);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A connection on which few bytes of a stream travel before they are read.
pub(crate) async fn channel(address: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    endpoint.initial_stream_window_size(65_535).tcp_nodelay(true).connect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_a_client_does_not_read_are_bounded_and_others_are_served() {
    let (model, permit) = Gated::new(false);
    let (mut client, running) = serve_with(Arc::clone(&model), |settings| {
        many_rows(settings);
        settings.limits.held_bytes = ALL_BYTES;
        settings.limits.client_held_bytes = CLIENT_BYTES;
    })
    .await;
    let mut lazy = Client::new(channel(running.address()).await);
    let (send, requests) = tokio::sync::mpsc::channel(8);
    let mut answers = lazy.label_stream(ReceiverStream::new(requests)).await.unwrap().into_inner();
    // Each holds 204 kB, 64 kB of it the answer, of which the connection takes one or two.
    for id in 0..4 {
        send.send(label(from("lazy", request(id, &[1.0; 1000])))).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(permit);
    while model.rows_run.load(Ordering::SeqCst) < 4 * 1000 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Two thirds of the client's bytes: there would be room if the device's work were all that counted.
    let most_of = |client, id| from(client, request(id, &[1.0; 3500]));
    for _ in 0..20 {
        let refused = client.label(most_of("lazy", 1)).await.unwrap_err();
        let text = refusal(&refused);
        assert!(text.contains(&format!("of {CLIENT_BYTES} bytes")), "{text}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    client.label(most_of("prompt", 2)).await.unwrap();

    drop(send);
    let mut ids = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        assert!(matches!(answer.result, Some(Answer::Response(_))), "{answer:?}");
        ids.push(answer.id);
    }
    ids.sort_unstable();
    assert_eq!(ids, [0, 1, 2, 3]);
    client.label(most_of("lazy", 3)).await.unwrap();
    running.shutdown().await.unwrap();
}

fn many_rows(settings: &mut Settings) {
    const ROWS: u32 = 1 << 17;
    settings.limits.max_rows = ROWS;
    settings.batching.max_batch_rows = ROWS;
    settings.batching.max_queue_rows = 2 * ROWS;
    settings.batching.max_client_rows = ROWS;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unary_answer_counts_until_it_is_read_too() {
    let (model, permit) = Gated::new(false);
    drop(permit);
    let (mut client, running) = serve_with(model, |settings| {
        many_rows(settings);
        settings.limits.client_held_bytes = 5 * CLIENT_BYTES;
    })
    .await;
    // One answer of 1.3 MB that holds 4.1 MB; the call is made as a stream, to read it later.
    let large = || from("lazy", request(1, &[1.0; 20_000]));
    let mut raw = tonic::client::Grpc::new(channel(running.address()).await);
    raw.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/distill.v1.TeacherService/Label");
    let codec = tonic_prost::ProstCodec::<LabelRequest, LabelResponse>::default();
    let answer = raw.server_streaming(tonic::Request::new(large()), path, codec).await.unwrap();
    for _ in 0..20 {
        refusal(&client.label(large()).await.unwrap_err());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut answer = answer.into_inner();
    assert_eq!(answer.message().await.unwrap().unwrap().labels[0].rows, 20_000);
    drop(answer);
    client.label(large()).await.unwrap();
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_waits_for_a_client_that_reads_slowly() {
    let (model, permit) = Gated::new(false);
    drop(permit);
    let (_client, running) = serve_with(Arc::clone(&model), |settings| {
        many_rows(settings);
        // Longer than the answer takes to be read on a slow machine, after the 3 s below.
        settings.drain.limit_seconds = 60.0;
    })
    .await;
    let mut lazy = Client::new(channel(running.address()).await);
    let (send, requests) = tokio::sync::mpsc::channel(8);
    let mut answers = lazy.label_stream(ReceiverStream::new(requests)).await.unwrap().into_inner();
    // One answer of 3.2 MB: the connection could buffer it whole, and nothing would be left to wait
    // for.
    send.send(label(request(1, &[1.0; 50_000]))).await.unwrap();
    while model.rows_run.load(Ordering::SeqCst) < 50_000 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let drained = tokio::spawn(running.shutdown());
    // Longer than connections get to deliver what they buffer.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!drained.is_finished(), "the answer has not been read");
    let answer = answers.message().await.unwrap().unwrap();
    assert!(matches!(answer.result, Some(Answer::Response(_))), "{answer:?}");
    drop((send, answers));
    drained.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_could_never_be_held_is_invalid() {
    let (model, permit) = Gated::new(false);
    drop(permit);
    let (mut client, running) = serve_with(model, |settings| {
        many_rows(settings);
        settings.limits.held_bytes = ALL_BYTES;
        settings.limits.client_held_bytes = CLIENT_BYTES;
    })
    .await;
    let status = client.label(request(1, &vec![1.0; 1 << 17])).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("limits.client_held_bytes"), "{status:?}");
    client.label(request(2, &[1.0])).await.unwrap();
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_are_closed_and_those_that_are_there_stay() {
    let (model, permit) = Gated::new(false);
    drop(permit);
    let (mut client, running) =
        serve_with(model, |settings| settings.limits.max_connections = 1).await;
    client.label(request(1, &[1.0])).await.unwrap();
    let refused = match Client::connect(format!("http://{}", running.address())).await {
        Ok(mut second) => second.label(request(2, &[1.0])).await.is_err(),
        Err(_) => true,
    };
    assert!(refused);
    client.label(request(3, &[1.0])).await.unwrap();
    drop(client);
    // The place is free when the server has seen it.
    for _ in 0..200 {
        if let Ok(mut next) = Client::connect(format!("http://{}", running.address())).await
            && next.label(request(4, &[1.0])).await.is_ok()
        {
            running.shutdown().await.unwrap();
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the place does not become free");
}

/// Whether a new connection is answered.
async fn is_answered(address: SocketAddr, id: u64) -> bool {
    match Client::connect(format!("http://{address}")).await {
        Ok(mut client) => client.label(request(id, &[1.0])).await.is_ok(),
        Err(_) => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_host_has_only_so_many_of_the_connections() {
    let (model, permit) = Gated::new(false);
    drop(permit);
    let (mut client, running) =
        serve_with(model, |settings| settings.limits.max_host_connections = 2).await;
    client.label(request(1, &[1.0])).await.unwrap();
    let mut second = Client::connect(format!("http://{}", running.address())).await.unwrap();
    second.label(request(2, &[1.0])).await.unwrap();
    assert!(!is_answered(running.address(), 3).await);
    client.label(request(4, &[1.0])).await.unwrap();
    drop(second);
    for _ in 0..200 {
        if is_answered(running.address(), 5).await {
            running.shutdown().await.unwrap();
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the place does not become free");
}

/// Who begins to speak HTTP/2 and goes no further has no place, and who speaks something else is told to go.
#[tokio::test(flavor = "multi_thread")]
async fn a_place_is_for_those_that_speak_http_2() {
    let (model, permit) = Gated::new(false);
    drop(permit);
    let server = bind(model, |settings| settings.limits.max_connections = 1).await;
    let running = server.spawn();
    let mut silent = TcpStream::connect(running.address()).await.unwrap();
    silent.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    let mut other = TcpStream::connect(running.address()).await.unwrap();
    other.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let closed = tokio::time::timeout(Duration::from_secs(20), other.read(&mut [0; 64])).await;
    // Reset, where what it had sent was not read.
    assert!(matches!(closed.unwrap(), Ok(0) | Err(_)));
    assert!(is_answered(running.address(), 1).await);
    drop(silent);
    running.shutdown().await.unwrap();
}

/// Connections that are kept open to the health port keep no probe out.
#[tokio::test(flavor = "multi_thread")]
async fn a_probe_takes_the_place_of_the_oldest_connection() {
    let (model, permit) = Gated::new(false);
    drop(permit);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = bind(model, |settings| settings.health_listen = Some(free)).await;
    let running = server.spawn();
    let mut idle = Vec::new();
    for _ in 0..64 {
        let mut stream = TcpStream::connect(free).await.unwrap();
        stream.write_all(IDLE).await.unwrap();
        // Its own SETTINGS: it has its place.
        stream.read_exact(&mut [0; 9]).await.unwrap();
        idle.push(stream);
    }
    let channel = Endpoint::from_shared(format!("http://{free}")).unwrap();
    let mut probe = HealthClient::new(channel.connect().await.unwrap());
    let asked = HealthCheckRequest { service: String::new() };
    let answer = tokio::time::timeout(Duration::from_secs(20), probe.check(asked)).await.unwrap();
    assert_eq!(answer.unwrap().into_inner().status(), ServingStatus::Serving);
    let mut rest = Vec::new();
    let ended = idle[0].read_to_end(&mut rest);
    assert!(tokio::time::timeout(Duration::from_secs(20), ended).await.is_ok(), "the oldest went");
    let stays = idle[63].read_to_end(&mut rest);
    assert!(tokio::time::timeout(Duration::from_millis(100), stays).await.is_err());
    running.shutdown().await.unwrap();
}
