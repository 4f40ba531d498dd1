//! A model that waits for the test, and requests for it.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use stillhouse_nn::{Head, Inference, ModelError};
use stillhouse_proto::v1::{
    DType, DenseEncoding, DenseKind, Encoding, LabelRequest, LabelStreamRequest, Tensor,
    encoding::Kind, label_request::Inputs, label_stream_request::Action,
    teacher_service_client::TeacherServiceClient,
};
use teacher_server::{Server, Settings, ensemble::Ensemble, model::Model};
use tonic::transport::Channel;

pub(crate) const CLASSES: usize = 16;

/// A model of one feature, with logits x, -x, -x, ... and the first NaN above 100, that waits for a permit before
/// each batch, and in it for each row.
pub(crate) struct Gated {
    permits: Mutex<Receiver<()>>,
    /// Batches that the device has taken.
    entered: AtomicUsize,
    pub(crate) rows_run: AtomicUsize,
    /// Rows of each batch, in order.
    pub(crate) batches: Mutex<Vec<usize>>,
    row_time: Duration,
    panics: bool,
}

impl Gated {
    pub(crate) fn new(panics: bool) -> (Arc<Self>, Sender<()>) {
        let (permit, permits) = channel();
        let model = Self {
            permits: Mutex::new(permits),
            entered: AtomicUsize::new(0),
            rows_run: AtomicUsize::new(0),
            batches: Mutex::default(),
            row_time: Duration::ZERO,
            panics,
        };
        (Arc::new(model), permit)
    }

    /// One that needs no permits, and that time for a row.
    pub(crate) fn slow(row_time: Duration) -> Arc<Self> {
        let (model, _) = Self::new(false);
        let model = Arc::into_inner(model).unwrap();
        Arc::new(Self { row_time, ..model })
    }

    /// Waits until the device has taken that many batches.
    pub(crate) async fn has_taken(&self, batches: usize) {
        while self.entered.load(Ordering::SeqCst) < batches {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Model for Gated {
    fn input_width(&self) -> usize {
        1
    }

    fn classes(&self) -> usize {
        CLASSES
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

    #[expect(clippy::disallowed_methods, reason = "the device thread serves no other task")]
    fn infer(&self, input: &[f32], rows: usize) -> Result<Inference, ModelError> {
        self.entered.fetch_add(1, Ordering::SeqCst);
        // An error means that the test let go of the gate: run on.
        let _ = self.permits.lock().unwrap_or_else(PoisonError::into_inner).recv();
        assert!(!self.panics, "as the test wants it");
        std::thread::sleep(self.row_time * rows as u32);
        self.batches.lock().unwrap().push(rows);
        self.rows_run.fetch_add(rows, Ordering::SeqCst);
        let mut logits = Vec::with_capacity(rows * CLASSES);
        for x in input {
            logits.push(if *x > 100.0 { f32::NAN } else { *x });
            logits.extend([-x; CLASSES - 1]);
        }
        Ok(Inference { logits, hidden: input.to_vec() })
    }

    fn head(&self) -> Head {
        let mut weight = vec![-1.0; CLASSES];
        weight[0] = 1.0;
        Head { weight, bias: None, classes: CLASSES, hidden_size: 1, softcap: None }
    }
}

pub(crate) type Client = TeacherServiceClient<Channel>;

pub(crate) async fn serve(model: Arc<Gated>) -> (Client, teacher_server::Running) {
    serve_with(model, |_| {}).await
}

pub(crate) async fn serve_with(
    model: Arc<Gated>,
    change: impl FnOnce(&mut Settings),
) -> (Client, teacher_server::Running) {
    let running = bind(model, change).await.spawn();
    let client = Client::connect(format!("http://{}", running.address())).await.unwrap();
    (client, running)
}

/// A server that is still to be spawned.
pub(crate) async fn bind(model: Arc<Gated>, change: impl FnOnce(&mut Settings)) -> Server {
    let mut settings = Settings::embedded("gated");
    settings.drain.limit_seconds = 5.0;
    // Most tests count forward passes of equal rows.
    settings.cache.enabled = false;
    change(&mut settings);
    let ensemble = Ensemble::new([(PathBuf::from("gated"), model as Arc<dyn Model>)]).unwrap();
    Server::bind_ensemble(settings, ensemble).await.unwrap()
}

/// Asks for the logits of rows.
pub(crate) fn request(id: u64, rows: &[f32]) -> LabelRequest {
    let features = Tensor::from_f32(rows, DType::F32, &[rows.len(), 1]).unwrap();
    let dense = DenseEncoding { kind: DenseKind::Logits.into(), dtype: 0 };
    LabelRequest {
        id,
        client: String::new(),
        inputs: Some(Inputs::Features(features)),
        temperatures: vec![1.0],
        encoding: Some(Encoding { kind: Some(Kind::Dense(dense)) }),
        timeout_ms: 0,
        ensemble_rule: 0,
        traceparent: String::new(),
    }
}

/// A request as a stream carries it.
pub(crate) fn label(request: LabelRequest) -> LabelStreamRequest {
    LabelStreamRequest { action: Some(Action::Label(request)) }
}
