//! What clients see of a slow, failing or dying device: deadlines, cancellation, lost devices and
//! rows without a finite output, over real loopback gRPC.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    sync::{Mutex, PoisonError},
    time::Duration,
};

use stillhouse_nn::{Head, Inference, ModelError};
use stillhouse_proto::v1::{
    CancelRequest, DType, DenseEncoding, DenseKind, Encoding, LabelRequest, LabelStreamRequest,
    Tensor, encoding::Kind, label_request::Inputs, label_stream_request::Action,
    label_stream_response::Result as Answer, teacher_service_client::TeacherServiceClient,
};
use teacher_server::{Server, Settings, model::Model};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, transport::Channel};

/// A model of one feature and two classes, (x, -x), NaN above 100, that waits for a permit before
/// each batch.
struct Gated {
    permits: Mutex<Receiver<()>>,
    rows_run: AtomicUsize,
    panics: bool,
}

impl Gated {
    fn new(panics: bool) -> (Arc<Self>, Sender<()>) {
        let (permit, permits) = channel();
        let model = Self { permits: Mutex::new(permits), rows_run: AtomicUsize::new(0), panics };
        (Arc::new(model), permit)
    }
}

impl Model for Gated {
    fn input_width(&self) -> usize {
        1
    }

    fn classes(&self) -> usize {
        2
    }

    fn hidden_size(&self) -> usize {
        1
    }

    fn rescale_factor(&self) -> f64 {
        1.0
    }

    fn fingerprint(&self) -> [u8; 32] {
        [7; 32]
    }

    fn infer(&self, input: &[f32], rows: usize) -> Result<Inference, ModelError> {
        // An error means that the test let go of the gate: run on.
        let _ = self.permits.lock().unwrap_or_else(PoisonError::into_inner).recv();
        assert!(!self.panics, "as the test wants it");
        self.rows_run.fetch_add(rows, Ordering::SeqCst);
        let logits =
            input.iter().flat_map(|x| [if *x > 100.0 { f32::NAN } else { *x }, -x]).collect();
        Ok(Inference { logits, hidden: input.to_vec() })
    }

    fn head(&self) -> Head {
        Head { weight: vec![1.0, -1.0], bias: None, classes: 2, hidden_size: 1 }
    }
}

type Client = TeacherServiceClient<Channel>;

async fn serve(model: Arc<Gated>) -> (Client, teacher_server::Running) {
    let mut settings = Settings::embedded("gated");
    settings.drain.limit_seconds = 5.0;
    let running = Server::bind_model(settings, model).await.unwrap().spawn();
    let client = Client::connect(format!("http://{}", running.address())).await.unwrap();
    (client, running)
}

fn request(id: u64, rows: &[f32]) -> LabelRequest {
    let features = Tensor::from_f32(rows, DType::F32, &[rows.len(), 1]).unwrap();
    let dense = DenseEncoding { kind: DenseKind::Logits.into(), dtype: 0 };
    LabelRequest {
        id,
        client: String::new(),
        inputs: Some(Inputs::Features(features)),
        temperatures: vec![1.0],
        encoding: Some(Encoding { kind: Some(Kind::Dense(dense)) }),
        timeout_ms: 0,
    }
}

fn label(request: LabelRequest) -> LabelStreamRequest {
    LabelStreamRequest { action: Some(Action::Label(request)) }
}

/// Polls until the device has taken the first request, so that the next one has to queue.
async fn queued_behind(client: &mut Client, first: LabelRequest) -> tokio::task::JoinHandle<Code> {
    let mut own = client.clone();
    let busy = tokio::spawn(async move {
        own.label(first).await.map_or_else(|status| status.code(), |_| Code::Ok)
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    busy
}

#[tokio::test(flavor = "multi_thread")]
async fn work_past_its_deadline_is_told_so_and_never_run() {
    let (model, permit) = Gated::new(false);
    let (mut client, running) = serve(Arc::clone(&model)).await;
    let busy = queued_behind(&mut client, request(1, &[1.0])).await;

    // One deadline in the request, one as the call's grpc-timeout.
    let own = LabelRequest { timeout_ms: 50, ..request(2, &[2.0, 2.0]) };
    let mut other = client.clone();
    let own = tokio::spawn(async move { other.label(own).await });
    let mut call = tonic::Request::new(request(3, &[3.0, 3.0]));
    call.set_timeout(Duration::from_millis(50));
    let called = client.label(call).await.unwrap_err();
    // The client's own timer runs as well, and may be first to speak.
    assert!(matches!(called.code(), Code::DeadlineExceeded | Code::Cancelled), "{called:?}");

    permit.send(()).unwrap();
    assert_eq!(busy.await.unwrap(), Code::Ok);
    assert_eq!(own.await.unwrap().unwrap_err().code(), Code::DeadlineExceeded);
    permit.send(()).unwrap();
    client.label(request(4, &[4.0])).await.unwrap();
    assert_eq!(model.rows_run.load(Ordering::SeqCst), 2, "only the first and the last were run");
    drop(permit);
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_or_abandoned_request_leaves_the_queue() {
    let (model, permit) = Gated::new(false);
    let (mut client, running) = serve(Arc::clone(&model)).await;
    let busy = queued_behind(&mut client, request(1, &[1.0])).await;

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
    tokio::time::sleep(Duration::from_millis(50)).await;
    abandoned.abort();
    tokio::time::sleep(Duration::from_millis(50)).await;

    permit.send(()).unwrap();
    permit.send(()).unwrap();
    assert_eq!(busy.await.unwrap(), Code::Ok);
    send.send(label(request(4, &[4.0]))).await.unwrap();
    let answer = answers.message().await.unwrap().unwrap();
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
    let (mut client, running) = serve(model).await;
    let address = format!("http://{}", running.address());
    for _ in 0..3 {
        let status = client.label(request(1, &[1.0])).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    }
    let channel = tonic::transport::Endpoint::from_shared(address).unwrap().connect().await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.unwrap());
    let check = tonic_health::pb::HealthCheckRequest { service: String::new() };
    let mut watch = health.watch(check).await.unwrap().into_inner();
    while watch.message().await.unwrap().unwrap().status != 2 {}
    let status = client.label(request(2, &[1.0])).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    running.shutdown().await.unwrap();
}
