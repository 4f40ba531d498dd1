//! Spans as an OpenTelemetry collector gets them: a student's request, the teacher's answer to it, and the
//! batch that it rode in, of real processes. Needs the feature `otlp`.

#![allow(clippy::panic, clippy::unwrap_used, missing_docs)]

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use stillhouse_tests::{
    client, models,
    process::{Teacher, UNCACHED},
    student::{Student, finish},
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

/// A span, and the service that sent it.
type Sent = (String, Span);

/// Takes spans, as a collector does.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Sent>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of in request.into_inner().resource_spans {
            let service = of.resource.map(|resource| text(&resource.attributes, "service.name"));
            let spans = of.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let sent = spans.map(|span| (service.clone().unwrap(), span));
            self.0.lock().unwrap().extend(sent);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn start() -> (Self, SocketAddr) {
        let collector = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = TraceServiceServer::new(collector.clone());
        let server = Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (collector, address)
    }

    fn take(&self) -> Vec<Sent> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> &'a Value {
    let of = attributes.iter().find(|attribute| attribute.key == key);
    of.unwrap_or_else(|| panic!("no {key} in {attributes:?}"))
        .value
        .as_ref()
        .unwrap()
        .value
        .as_ref()
        .unwrap()
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    match value(attributes, key) {
        Value::StringValue(text) => text.clone(),
        other => panic!("{key}: {other:?}"),
    }
}

fn number(span: &Span, key: &str) -> i64 {
    match value(&span.attributes, key) {
        Value::IntValue(number) => *number,
        other => panic!("{key}: {other:?}"),
    }
}

/// The spans of a name, by their id, all of one service and one kind.
fn spans<'a>(
    sent: &'a [Sent],
    name: &str,
    service: &str,
    kind: SpanKind,
) -> HashMap<&'a [u8], &'a Span> {
    let named = sent.iter().filter(|(_, span)| span.name == name);
    named
        .map(|(from, span)| {
            assert_eq!((from.as_str(), span.kind()), (service, kind), "{span:?}");
            (span.span_id.as_slice(), span)
        })
        .collect()
}

fn links(span: &Span) -> Vec<&[u8]> {
    span.links.iter().map(|link| link.span_id.as_slice()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_students_request_is_followed_to_the_batch_that_it_rode_in() {
    let (collector, address) = Collector::start().await;
    let endpoint = format!("http://{address}");
    let folder = tempfile::tempdir().unwrap();
    models::write_mlp(folder.path(), 784, &[8], 10, 1);
    let mut teacher = Teacher::start(folder.path(), &["--traces-endpoint", &endpoint]);
    let sections = format!(
        "student = {{ model_type = \"mlp\", input_size = 784, hidden_sizes = [8], num_labels = 10 }}\n\
         loss = {{ alpha = 0.9, temperature = 4.0 }}\n{}[train]\nepochs = 1\nbatch_size = 20\n",
        teacher.section()
    );
    let student = Student::new(folder.path(), "student", 100, &sections);
    let traced = ["--traces-endpoint", &endpoint];
    finish(student.start(&traced));
    teacher.terminate();
    assert!(teacher.wait().success());

    let sent = collector.take();
    let requests = spans(&sent, "request", "student-worker", SpanKind::Client);
    let answers = spans(&sent, "label", "teacher-server", SpanKind::Server);
    let encodes = spans(&sent, "encode", "teacher-server", SpanKind::Internal);
    let batches = spans(&sent, "batch", "teacher-server", SpanKind::Internal);
    assert_eq!(requests.len(), 5);
    for request in requests.values() {
        assert!(request.parent_span_id.is_empty(), "{request:?}");
        assert_eq!(number(request, "stillhouse.units"), 20);
        let mut within = answers.values().filter(|of| of.parent_span_id == request.span_id);
        let answer = within.next().unwrap();
        assert!(within.next().is_none(), "two answers to {request:?}");
        assert_eq!(answer.trace_id, request.trace_id);
        assert_eq!(number(answer, "stillhouse.rows"), 20);
        // A row that the teacher was probed with is known to it.
        assert!(number(answer, "stillhouse.cached_rows") < 20);
        let encode = encodes.values().find(|of| of.parent_span_id == answer.span_id).unwrap();
        assert_eq!(encode.trace_id, request.trace_id);
        // Each to the other.
        let [batch] = links(answer)[..] else { panic!("{answer:?}") };
        let batch = batches[batch];
        assert!(links(batch).contains(&answer.span_id.as_slice()), "{batch:?}");
        let during = answer.start_time_unix_nano..=answer.end_time_unix_nano;
        assert!(during.contains(&batch.start_time_unix_nano), "{batch:?} of {answer:?}");
    }
    let rows: i64 = batches.values().map(|batch| number(batch, "stillhouse.rows")).sum();
    // Those of the probe at connecting, too.
    assert!(rows >= 100, "{rows}");
    assert!(batches.values().flat_map(|batch| links(batch)).all(|of| answers.contains_key(of)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_says_whether_it_is_traced_and_a_refusal_is_a_failed_span() {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const PARENT: &str = "b7ad6b7169203331";
    let (collector, address) = Collector::start().await;
    let endpoint = format!("traces.endpoint=http://{address}");
    let folder = tempfile::tempdir().unwrap();
    models::write_mlp(folder.path(), 4, &[8], 5, 1);
    let mut teacher =
        Teacher::start(folder.path(), &[&["--set", &endpoint], &UNCACHED[..]].concat());
    let mut client = client::connect(teacher.address()).await;
    let mut ask = async |id: u64, width: usize, traceparent: &str| {
        let mut request = Request::new(client::request(id, &[0.5; 12], width));
        request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
        client.label(request).await
    };
    let traceparent = |flags: &str| format!("00-{TRACE}-{PARENT}-{flags}");
    ask(1, 4, &traceparent("00")).await.unwrap();
    ask(2, 4, "no traceparent at all").await.unwrap();
    ask(3, 4, &traceparent("01")).await.unwrap();
    let refused = ask(4, 3, &traceparent("01")).await.unwrap_err();
    teacher.terminate();
    assert!(teacher.wait().success());

    let sent = collector.take();
    let mut answers = spans(&sent, "label", "teacher-server", SpanKind::Server);
    // What cannot be read asks for nothing: a trace of its own.
    let own = answers.iter().find(|(_, span)| span.parent_span_id.is_empty());
    let own = *own.unwrap().0;
    assert_ne!(hex(&answers.remove(own).unwrap().trace_id), TRACE);
    for answer in answers.values() {
        assert_eq!(hex(&answer.trace_id), TRACE);
        assert_eq!(hex(&answer.parent_span_id), PARENT);
    }
    let failed =
        |span: &&Span| span.status.as_ref().is_some_and(|of| of.code() == StatusCode::Error);
    let (bad, good): (Vec<&Span>, Vec<&Span>) = answers.into_values().partition(failed);
    let ([bad], [good]) = (&bad[..], &good[..]) else { panic!("{sent:?}") };
    let said = &bad.status.as_ref().unwrap().message;
    assert!(refused.message().contains("features") && said.contains("features"), "{said}");
    // A batch is recorded as its requests are: that of the first is not.
    let batches = spans(&sent, "batch", "teacher-server", SpanKind::Internal);
    let linked: Vec<&[u8]> = batches.values().flat_map(|batch| links(batch)).collect();
    assert_eq!(linked.len(), 2);
    assert!(linked.contains(&own) && linked.contains(&good.span_id.as_slice()));
    assert!(batches.contains_key(links(good)[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_linked_to_all_its_requests_and_strangers_leave_no_span() {
    const REQUESTS: u64 = 200;
    let (collector, address) = Collector::start().await;
    let endpoint = format!("http://{address}");
    let folder = tempfile::tempdir().unwrap();
    models::write_mlp(folder.path(), 4, &[8], 5, 1);
    let list = folder.path().join("clients.toml");
    let (token, hash) = teacher_server::new_token().unwrap();
    std::fs::write(&list, format!("[clients.known]\ntokens = [{hash:?}]\n")).unwrap();
    let list = list.display().to_string();
    let arguments = ["--traces-endpoint", &endpoint, "--access-file", &list];
    let batching =
        ["--set", "batching.max_wait_us=1000000", "--set", "limits.max_stream_in_flight=256"];
    let mut teacher =
        Teacher::start(folder.path(), &[&arguments[..], &batching[..], &UNCACHED].concat());
    let mut client = client::connect(teacher.address()).await;
    client.label(client::request(1, &[0.5; 4], 4)).await.unwrap_err();

    let (send, requests) = tokio::sync::mpsc::channel(REQUESTS as usize);
    for id in 0..REQUESTS {
        send.send(client::on_stream(client::request(id, &[0.5; 4], 4))).await.unwrap();
    }
    drop(send);
    let mut call = Request::new(tokio_stream::wrappers::ReceiverStream::new(requests));
    call.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    let mut labels = client.label_stream(call).await.unwrap().into_inner();
    while labels.message().await.unwrap().is_some() {}
    teacher.terminate();
    assert!(teacher.wait().success());

    let sent = collector.take();
    let answers = spans(&sent, "label", "teacher-server", SpanKind::Server);
    assert_eq!(answers.len() as u64, REQUESTS);
    let batches = spans(&sent, "batch", "teacher-server", SpanKind::Internal);
    let largest = batches.values().map(|batch| links(batch).len()).max().unwrap();
    // More than the SDK keeps of itself.
    assert!(largest > 128, "{largest}");
    let linked =
        batches.values().flat_map(|batch| links(batch)).collect::<std::collections::HashSet<_>>();
    assert!(linked.len() as u64 == REQUESTS && linked.iter().all(|of| answers.contains_key(of)));
}

/// One that refuses connections, and one that takes them and says nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_not_there_holds_nothing_up() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    holds_nothing_up("http://127.0.0.1:1").await;
    holds_nothing_up(&format!("http://{}", silent.local_addr().unwrap())).await;
}

async fn holds_nothing_up(endpoint: &str) {
    let folder = tempfile::tempdir().unwrap();
    models::write_mlp(folder.path(), 4, &[8], 5, 1);
    let mut teacher = Teacher::start(folder.path(), &["--traces-endpoint", endpoint]);
    let mut client = client::connect(teacher.address()).await;
    for id in 0..20 {
        client.label(client::request(id, &[0.5; 12], 4)).await.unwrap();
    }
    let stopping = std::time::Instant::now();
    teacher.terminate();
    assert!(teacher.wait().success());
    let log = teacher.log();
    let told = ["opentelemetry", "the last spans may be lost"].map(|words| log.contains(words));
    assert!(told.contains(&true), "nothing is said of {endpoint}:\n{log}");
    // Nothing but the last spans waits here: some seconds, with room for a busy machine.
    assert!(stopping.elapsed() < Duration::from_secs(30));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
