//! A run that is told to stop before it has taken a step.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use stillhouse_proto::v1::{
    DescribeRequest, DescribeResponse, EncodingKind, FetchHeadRequest, FetchHeadResponse,
    LabelRequest, LabelResponse, LabelStreamRequest, LabelStreamResponse, teacher_service_server,
};
use student_worker::{run_folder::Existing, train::Outcome};
use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    fake_teacher::describe,
    support::{Bench, endpoints, run_watched, serve},
};

const HIDDEN: &str = "encoding = { kind = \"hidden\" }\ntimeout_ms = 60000";

/// A teacher that never gives its output projection.
struct Stuck {
    asked: Arc<Notify>,
}

#[tonic::async_trait]
impl teacher_service_server::TeacherService for Stuck {
    type LabelStreamStream = ReceiverStream<Result<LabelStreamResponse, Status>>;
    type FetchHeadStream = ReceiverStream<Result<FetchHeadResponse, Status>>;

    async fn describe(
        &self,
        _request: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        Ok(Response::new(describe(EncodingKind::Hidden)))
    }

    async fn label(
        &self,
        _request: Request<LabelRequest>,
    ) -> Result<Response<LabelResponse>, Status> {
        std::future::pending().await
    }

    async fn label_stream(
        &self,
        _request: Request<Streaming<LabelStreamRequest>>,
    ) -> Result<Response<Self::LabelStreamStream>, Status> {
        std::future::pending().await
    }

    async fn fetch_head(
        &self,
        _request: Request<FetchHeadRequest>,
    ) -> Result<Response<Self::FetchHeadStream>, Status> {
        self.asked.notify_one();
        std::future::pending().await
    }
}

async fn serve_stuck() -> (SocketAddr, Arc<Notify>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(Notify::new());
    let service =
        teacher_service_server::TeacherServiceServer::new(Stuck { asked: Arc::clone(&asked) });
    let router = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    (address, asked)
}

/// Runs until the teacher is asked for its output projection, and tells the run to stop then.
async fn stop_at_the_head(bench: &Bench) -> Outcome {
    let (address, asked) = serve_stuck().await;
    let recipe = bench.recipe("cut", &endpoints(&[address], HIDDEN));
    let (stop, stopping) = watch::channel(false);
    let running = tokio::spawn(run_watched(recipe, Existing::Resume, stopping, |_| {}));
    asked.notified().await;
    let told = Instant::now();
    stop.send_replace(true);
    let outcome = running.await.unwrap().unwrap();
    assert!(told.elapsed() < Duration::from_secs(5), "{:?}", told.elapsed());
    assert!(!outcome.finished && outcome.report.is_none());
    outcome
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_head_is_not_waited_for_and_what_is_reported_is_there() {
    let bench = Bench::new();
    let outcome = stop_at_the_head(&bench).await;
    assert_eq!((outcome.steps, outcome.checkpoint), (0, None));

    // With steps done before, those are what the run goes on from.
    let teacher = serve(bench.teacher(1), 0).await;
    let recipe = bench.recipe("cut", &endpoints(&[teacher.address()], HIDDEN));
    let (stop, stopping) = watch::channel(false);
    let at = move |step| {
        if step == 7 {
            stop.send_replace(true);
        }
    };
    let before = run_watched(recipe, Existing::Resume, stopping, at).await.unwrap();
    assert!(before.steps >= 7);
    let outcome = stop_at_the_head(&bench).await;
    assert_eq!((outcome.steps, outcome.checkpoint), (before.steps, before.checkpoint));
    teacher.shutdown().await.unwrap();
}
