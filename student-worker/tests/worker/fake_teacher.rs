//! A teacher that fails on demand.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use stillhouse_proto::{
    LabelBatch, SoftLabels,
    checksum::RequestSum,
    encode,
    v1::{
        self, DType, DenseKind, DescribeRequest, DescribeResponse, EncodingKind, FeatureSignature,
        FetchHeadRequest, FetchHeadResponse, InputSignature, LabelError, LabelRequest,
        LabelResponse, LabelStreamRequest, LabelStreamResponse, RowError, ServerLimits, Task,
        encoding::Kind, input_signature, label_request::Inputs, label_stream_request::Action,
        label_stream_response::Result as Answer, teacher_service_server,
    },
};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_health::server::HealthReporter;

use crate::support::{CLASSES, SIDE};

pub(crate) const FINGERPRINT: [u8; 32] = [9; 32];
/// Width of its hidden states.
const HIDDEN: u32 = 12;

/// What happens to a request of a stream.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// It is answered with an error.
    Error(Code, u32),
    /// It is never answered.
    Silence,
    /// It is answered after the next one.
    Late,
    /// One of its rows has no label.
    Row,
    /// Its answer has another fingerprint.
    Fingerprint,
    /// Its answer is for another temperature.
    Temperature,
    /// One of its labels is another than was sent.
    Changed,
    /// Its answer cannot be decoded.
    Garbage,
    /// Its answer is neither labels nor an error.
    Nothing,
    /// The stream ends.
    End(Status),
}

/// A teacher whose labels depend on the first pixel of each row, and that meets the requests of
/// its streams with faults, in order; then with none. Its output projection never comes.
pub(crate) struct Fake {
    pub(crate) faults: Mutex<VecDeque<Fault>>,
    /// Added to the first logit: another model under the same fingerprint.
    pub(crate) bias: f32,
    /// Whether its answers have checksums.
    pub(crate) sums: bool,
    /// Those that it offers.
    pub(crate) encodings: Vec<EncodingKind>,
    /// Told when its output projection is asked for.
    pub(crate) head_asked: Notify,
    pub(crate) requests: AtomicU32,
    /// The temperatures that its streams were asked for, in order.
    pub(crate) temperatures: Mutex<Vec<f32>>,
    pub(crate) streams: AtomicU32,
    /// How often its streams were asked for each row.
    pub(crate) rows: Mutex<HashMap<Vec<u8>, usize>>,
}

impl Fake {
    pub(crate) fn new() -> Self {
        Self::with(Vec::new())
    }

    pub(crate) fn with(faults: Vec<Fault>) -> Self {
        Self {
            faults: Mutex::new(faults.into()),
            bias: 0.0,
            sums: false,
            encodings: vec![EncodingKind::Dense],
            head_asked: Notify::new(),
            requests: AtomicU32::new(0),
            temperatures: Mutex::new(Vec::new()),
            streams: AtomicU32::new(0),
            rows: Mutex::default(),
        }
    }

    fn labels(&self, request: &LabelRequest) -> LabelResponse {
        let Some(Inputs::Features(features)) = &request.inputs else {
            panic!("a student sends features");
        };
        let rows = features.shape[0] as usize;
        let width = features.data.len() / rows;
        let values = features.data.chunks(width).flat_map(|row| {
            let logits = [f32::from(row[0]) / 64.0 + self.bias, 1.0, 0.0];
            let mass = logits.iter().map(|z| z.exp()).sum::<f32>().ln();
            logits.map(|z| z - mass)
        });
        let values: Vec<f32> = values.collect();
        let asked = request.encoding.as_ref().and_then(|encoding| encoding.kind.as_ref());
        let labels = match asked {
            Some(Kind::Hidden(_)) => {
                let width = HIDDEN as usize;
                SoftLabels::Hidden { width, states: vec![1.0; rows * width] }
            }
            Some(Kind::TopK(_)) => SoftLabels::TopK {
                k: 1,
                ids: vec![0; rows],
                log_probabilities: values.chunks(3).map(|row| row[0]).collect(),
                log_tail_mass: values
                    .chunks(3)
                    .map(|row| (row[1].exp() + row[2].exp()).ln())
                    .collect(),
            },
            _ => SoftLabels::Dense { kind: DenseKind::LogProbabilities, values },
        };
        // Hidden states have none.
        let has_none = matches!(labels, SoftLabels::Hidden { .. });
        let temperature = if has_none { 0.0 } else { request.temperatures[0] };
        let batch = LabelBatch { temperature, rows, classes: CLASSES as usize, labels };
        let mut response = LabelResponse {
            id: request.id,
            fingerprint: FINGERPRINT.to_vec().into(),
            labels: vec![encode(&batch, DType::F32).unwrap()],
            ..LabelResponse::default()
        };
        if self.sums {
            response.checksum = RequestSum::new(request).of_response(&response);
        }
        response
    }
}

/// Serves it for as long as the test lasts.
pub(crate) async fn serve_fake(fake: Arc<Fake>) -> SocketAddr {
    serve_fake_with_health(fake).await.0
}

/// The same, with what its health service is told.
pub(crate) async fn serve_fake_with_health(fake: Arc<Fake>) -> (SocketAddr, HealthReporter) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (health, health_service) = tonic_health::server::health_reporter();
    let service = teacher_service_server::TeacherServiceServer::new(Shared(fake));
    let router = tonic::transport::Server::builder().add_service(service);
    let router = router.add_service(health_service);
    tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    (address, health)
}

struct Shared(Arc<Fake>);

#[tonic::async_trait]
impl teacher_service_server::TeacherService for Shared {
    type LabelStreamStream = ReceiverStream<Result<LabelStreamResponse, Status>>;
    type FetchHeadStream = ReceiverStream<Result<FetchHeadResponse, Status>>;

    async fn describe(
        &self,
        _request: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        let features =
            FeatureSignature { width: (SIDE * SIDE).into(), dtypes: vec![DType::U8.into()] };
        Ok(Response::new(DescribeResponse {
            name: "fake".into(),
            fingerprint: FINGERPRINT.to_vec().into(),
            task: Task::Classification.into(),
            input: Some(InputSignature { kind: Some(input_signature::Kind::Features(features)) }),
            classes: CLASSES,
            hidden_size: HIDDEN,
            limits: Some(ServerLimits {
                max_rows: 100,
                max_message_bytes: 1 << 20,
                max_temperatures: 1,
                max_stream_in_flight: 8,
                ..ServerLimits::default()
            }),
            encodings: self.0.encodings.iter().map(|&kind| kind.into()).collect(),
            ..DescribeResponse::default()
        }))
    }

    async fn label(
        &self,
        request: Request<LabelRequest>,
    ) -> Result<Response<LabelResponse>, Status> {
        Ok(Response::new(self.0.labels(request.get_ref())))
    }

    async fn label_stream(
        &self,
        request: Request<Streaming<LabelStreamRequest>>,
    ) -> Result<Response<Self::LabelStreamStream>, Status> {
        self.0.streams.fetch_add(1, Ordering::Relaxed);
        let (out, answers) = mpsc::channel(8);
        let fake = Arc::clone(&self.0);
        let mut inbound = request.into_inner();
        tokio::spawn(async move {
            let mut late = Vec::new();
            while let Ok(Some(LabelStreamRequest { action: Some(Action::Label(request)) })) =
                inbound.message().await
            {
                fake.requests.fetch_add(1, Ordering::Relaxed);
                fake.temperatures.lock().unwrap().push(request.temperatures[0]);
                if let Some(Inputs::Features(features)) = &request.inputs {
                    let width = (SIDE * SIDE) as usize;
                    let mut rows = fake.rows.lock().unwrap();
                    for row in features.data.chunks(width) {
                        *rows.entry(row.to_vec()).or_default() += 1;
                    }
                }
                let fault = fake.faults.lock().unwrap().pop_front();
                let mut response = fake.labels(&request);
                let answer = match fault {
                    None => Answer::Response(response),
                    Some(Fault::Error(code, retry_after_ms)) => Answer::Error(LabelError {
                        code: code as i32,
                        message: "as told".into(),
                        retry_after_ms,
                    }),
                    Some(Fault::Silence) => continue,
                    Some(Fault::Nothing) => {
                        let nothing = LabelStreamResponse { id: request.id, result: None };
                        let _ = out.send(Ok(nothing)).await;
                        continue;
                    }
                    Some(Fault::Late) => {
                        late.push(message(request.id, Answer::Response(response)));
                        continue;
                    }
                    Some(Fault::Row) => {
                        let message = "not finite".to_owned();
                        response.row_errors.push(RowError { row: 3, message });
                        Answer::Response(response)
                    }
                    Some(Fault::Fingerprint) => {
                        response.fingerprint = vec![1; 32].into();
                        Answer::Response(response)
                    }
                    Some(Fault::Changed) => {
                        if let Some(v1::labels::Payload::Dense(dense)) =
                            &mut response.labels[0].payload
                        {
                            let values = dense.values.as_mut().unwrap();
                            let mut data = values.data.to_vec();
                            data[2] ^= 1;
                            values.data = data.into();
                        }
                        Answer::Response(response)
                    }
                    Some(Fault::Temperature) => {
                        response.labels[0].temperature = 1.0;
                        Answer::Response(response)
                    }
                    Some(Fault::Garbage) => {
                        if let Some(v1::labels::Payload::Dense(dense)) =
                            &mut response.labels[0].payload
                        {
                            dense.values = None;
                        }
                        Answer::Response(response)
                    }
                    Some(Fault::End(status)) => {
                        let _ = out.send(Err(status)).await;
                        return;
                    }
                };
                let _ = out.send(Ok(message(request.id, answer))).await;
                for answer in late.drain(..) {
                    let _ = out.send(Ok(answer)).await;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn fetch_head(
        &self,
        _request: Request<FetchHeadRequest>,
    ) -> Result<Response<Self::FetchHeadStream>, Status> {
        self.0.head_asked.notify_one();
        std::future::pending().await
    }
}

fn message(id: u64, answer: Answer) -> LabelStreamResponse {
    LabelStreamResponse { id, result: Some(answer) }
}
