//! Who must be refused, and is: each with what its client sees.

use std::{io::Write as _, net::TcpStream, time::Duration};

use stillhouse_proto::v1::{
    DType, DescribeRequest, EncodingKind, FetchHeadRequest, HiddenEncoding, LabelRequest,
    LabelStreamResponse, TopKEncoding, encoding::Kind, label_stream_response::Result as Answer,
    teacher_service_client::TeacherServiceClient,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{CLASSES, Client, Place, SEEN, SERVER, Shows, WIDTH, rotation::wait_until};
use crate::{
    client::{encoding, on_stream, request},
    pki::Authority,
    process::Teacher,
    scenarios::Figures,
};

/// Connections that begin a handshake and say no more.
const STALLED: usize = 600;

pub(super) async fn run(figures: &mut Figures) {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let (token, hash) = teacher_server::new_token().unwrap();
    let list = |with_d: bool| {
        let d = "[clients.d]\ncertificates = [\"d.students\"]\n";
        format!(
            "[clients.a]\ncertificates = [\"a.students\"]\n\
             [clients.b]\ncertificates = [\"b.students\"]\nencodings = [\"top_k\"]\nmax_classes = 3\n\
             [clients.c]\ntokens = [\"{hash}\"]\n\
             [clients.e]\ncertificates = [\"e.students\"]\nteachers = [\"another\"]\n{}",
            if with_d { d } else { "" }
        )
    };
    let place = Place::new(&ours, &list(true));
    let health = ["--health-listen", "127.0.0.1:0", "--set", "log.level=trace"];
    let strict = place.serve("required", &health);
    let open = place.serve("optional", &["--set", "log.level=trace"]);
    let shows = |pair| Shows { ca: ours.pem.clone(), pair, token: None };
    let with = |name: &str| shows(Some(ours.client(name)));
    let bearer = |token: &str| Shows { token: Some(token.to_owned()), ..shows(None) };
    let mut checks = Checks { figures, seen: 0 };

    // The handshake.
    checks.unconnected("no certificate", describe(&strict, &shows(None)).await);
    let stranger = shows(Some(theirs.client("a.students")));
    checks.unconnected("wrong authority", describe(&strict, &stranger).await);
    checks
        .unconnected("wrong authority, where none need be shown", describe(&open, &stranger).await);
    let expired = shows(Some(ours.expired_client("a.students")));
    checks.unconnected("expired", describe(&strict, &expired).await);
    let server = shows(Some(ours.server("a.students")));
    checks.unconnected("a server's certificate as a client's", describe(&strict, &server).await);
    let doubting = Shows { ca: theirs.pem.clone(), ..with("a.students") };
    checks.unconnected("a server of another authority", describe(&strict, &doubting).await);
    let other = with("a.students").connect_as(strict.address(), "another.test").await;
    checks.holds("a server of another name", other.is_err());
    let plain = TeacherServiceClient::connect(format!("http://{}", strict.address())).await;
    let plain = match plain {
        Ok(mut client) => client.describe(DescribeRequest {}).await.is_err(),
        Err(_) => true,
    };
    checks.holds("plaintext to the encrypted port", plain);
    let (a, c) = (with("a.students"), bearer(&token));
    let both = describe(&strict, &a).await.is_ok() && describe(&open, &c).await.is_ok();
    checks.holds("clients of the list are let in", both);

    // Who it is.
    let unknown = describe(&strict, &with("nobody.students")).await;
    checks.code("a certificate that is not in the list", unknown, Code::Unauthenticated);
    for (name, shows) in [
        ("neither token nor certificate", shows(None)),
        ("a wrong token", bearer("stillhouse_0000")),
        ("the hash for the token", bearer(&hash)),
        (
            "a wrong token beside a good certificate",
            Shows { token: Some("wrong".to_owned()), ..with("a.students") },
        ),
    ] {
        let mut client = shows.client(open.address()).await.unwrap();
        checks.code(
            &format!("{name}: Describe"),
            describe(&open, &shows).await,
            Code::Unauthenticated,
        );
        let labelled = client.label(dense(1)).await;
        checks.code(&format!("{name}: Label"), labelled, Code::Unauthenticated);
        let (_requests, outbound) = mpsc::channel(1);
        let stream = client.label_stream(ReceiverStream::new(outbound)).await;
        checks.code(&format!("{name}: LabelStream"), stream, Code::Unauthenticated);
        let head = client.fetch_head(FetchHeadRequest::default()).await;
        checks.code(&format!("{name}: FetchHead"), head, Code::Unauthenticated);
        let line = shows.connect(open.address()).await.unwrap();
        let health = HealthClient::new(line).check(HealthCheckRequest::default()).await;
        checks.code(&format!("{name}: health on the same port"), health, Code::Unauthenticated);
    }

    // What it may ask for.
    let elsewhere = describe(&strict, &with("e.students")).await;
    checks.code("a client of another teacher", elsewhere, Code::PermissionDenied);
    let mut b = with("b.students").client(strict.address()).await.unwrap();
    let offered = b.describe(DescribeRequest {}).await.unwrap().into_inner().encodings;
    checks.holds("only its encodings are offered", offered == [EncodingKind::TopK as i32]);
    let of = |kind| LabelRequest { encoding: encoding(kind), ..dense(1) };
    let top = |k| of(Kind::TopK(TopKEncoding { k, dtype: DType::F32.into() }));
    checks.code("an encoding it may not have", b.label(dense(1)).await, Code::PermissionDenied);
    let hidden = b.label(of(Kind::Hidden(HiddenEncoding { dtype: DType::F32.into() }))).await;
    checks.code("hidden states it may not have", hidden, Code::PermissionDenied);
    checks.code("more classes than it may have", b.label(top(4)).await, Code::PermissionDenied);
    let head = b.fetch_head(FetchHeadRequest { dtype: DType::F32.into() }).await;
    checks.code("the head without hidden states", head, Code::PermissionDenied);
    checks.holds("what it may have", b.label(top(3)).await.is_ok());
    let (requests, mut answers) = stream(&mut b).await;
    requests.send(on_stream(dense(7))).await.unwrap();
    let refused = answer(&mut answers).await.unwrap();
    let code = match refused.result {
        Some(Answer::Error(error)) => Code::from_i32(error.code),
        _ => Code::Ok,
    };
    checks.holds("an encoding it may not have, on a stream", code == Code::PermissionDenied);
    requests.send(on_stream(top(3))).await.unwrap();
    let labelled = answer(&mut answers).await.unwrap().result;
    checks.holds("the stream goes on", matches!(labelled, Some(Answer::Response(_))));

    // Revoked by removal.
    let d = with("d.students");
    let mut client = d.client(strict.address()).await.unwrap();
    let (requests, mut answers) = stream(&mut client).await;
    requests.send(on_stream(dense(1))).await.unwrap();
    checks.holds("before it is revoked", answer(&mut answers).await.is_ok());
    place.list(&list(false));
    tokio::time::sleep(SEEN).await;
    let done = "stillhouse_teacher_reloads_total{file=\"access\",result=\"done\"}";
    wait_until(|| strict.metric(done) >= 1.0).await;
    drop(requests.send(on_stream(dense(2))).await);
    checks.code("revoked, on its open stream", answer(&mut answers).await, Code::Unauthenticated);
    checks.code("revoked, anew", describe(&strict, &d).await, Code::Unauthenticated);
    place.list("[clients.a]\ncertificates = 3");
    tokio::time::sleep(SEEN).await;
    let failed = "stillhouse_teacher_reloads_total{file=\"access\",result=\"failed\"}";
    wait_until(|| strict.metric(failed) >= 1.0).await;
    let a = describe(&strict, &with("a.students")).await;
    checks.holds("a list that cannot be read changes nothing", a.is_ok());
    checks.holds("and is counted", strict.metric(failed) == 1.0);

    // Who says nothing, or nonsense.
    let stalled: Vec<TcpStream> =
        (0..STALLED).map(|_| TcpStream::connect(strict.address()).unwrap()).collect();
    for (number, mut stream) in stalled.iter().enumerate() {
        let junk = [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 2, 0, 1], &[0xff; 64]];
        drop(stream.write_all(junk[number % 3]));
    }
    let begun = tokio::time::Instant::now();
    let a = with("a.students").client(strict.address()).await;
    checks.holds("a newcomer beside stalled handshakes", a.is_ok());
    checks.figures.add("connected_beside_stalled_ms", begun.elapsed().as_secs_f64() * 1e3);
    drop(stalled);

    // Probes have no certificate.
    let probe = format!("http://{}", health_address(&strict));
    let channel = Endpoint::from_shared(probe.clone()).unwrap().connect().await.unwrap();
    let mut client = HealthClient::new(channel);
    let status = client.check(HealthCheckRequest::default()).await.unwrap().into_inner().status();
    checks.holds("health in plaintext", status == ServingStatus::Serving);
    let mut client = TeacherServiceClient::connect(probe).await.unwrap();
    let nothing = client.label(dense(1)).await;
    checks.code("labels in plaintext", nothing, Code::Unimplemented);

    // The logs, as wordy as they get.
    let keys = std::fs::read_to_string(place.path().join("server.key")).unwrap();
    let secret = keys.lines().nth(1).unwrap();
    for (name, teacher) in [("required", &strict), ("optional", &open)] {
        let log = teacher.log();
        checks.holds(&format!("{name}: it logs at all"), log.len() > 10_000);
        for (what, secret) in [("token", token.as_str()), ("hash", &hash[7..]), ("key", secret)] {
            checks.holds(&format!("{name}: no {what} in the log"), !log.contains(secret));
        }
    }
    let seen = checks.seen;
    figures.add("refusals_checked", seen as u64);
}

/// Notes what held.
struct Checks<'a> {
    figures: &'a mut Figures,
    seen: usize,
}

impl Checks<'_> {
    fn holds(&mut self, what: &str, holds: bool) {
        self.seen += 1;
        self.figures.require(holds, format!("{what}: it does not hold"));
    }

    /// A call that a status must have ended.
    fn code<T>(&mut self, what: &str, result: Result<T, Status>, expected: Code) {
        self.seen += 1;
        let found = result.map_or_else(|status| status.code(), |_| Code::Ok);
        let text = format!("{what}: the status is {found:?}, expected {expected:?}");
        self.figures.require(found == expected, text);
    }

    /// A call that must not have come as far as the service.
    fn unconnected<T>(&mut self, what: &str, result: Result<T, Status>) {
        self.seen += 1;
        let ended = result.is_err_and(|status| std::error::Error::source(&status).is_some());
        self.figures.require(ended, format!("{what}: there is a connection"));
    }
}

fn dense(id: u64) -> LabelRequest {
    request(id, &[0.5; WIDTH], WIDTH)
}

/// Asks what the teacher is; a connection that fails is an error with a source.
async fn describe(teacher: &Teacher, shows: &Shows) -> Result<(), Status> {
    let mut client = match shows.client(teacher.address()).await {
        Ok(client) => client,
        Err(error) => return Err(Status::from_error(Box::new(error))),
    };
    let described = client.describe(DescribeRequest {}).await?.into_inner();
    assert_eq!(described.classes as usize, CLASSES);
    Ok(())
}

type Requests = mpsc::Sender<stillhouse_proto::v1::LabelStreamRequest>;

async fn stream(client: &mut Client) -> (Requests, Streaming<LabelStreamResponse>) {
    let (requests, outbound) = mpsc::channel(4);
    let answers = client.label_stream(ReceiverStream::new(outbound)).await.unwrap();
    (requests, answers.into_inner())
}

/// The next answer, or the status that ends the stream.
async fn answer(
    answers: &mut Streaming<LabelStreamResponse>,
) -> Result<LabelStreamResponse, Status> {
    let next = tokio::time::timeout(Duration::from_secs(20), answers.message()).await;
    next.expect("an answer in time")?.ok_or_else(|| Status::ok("the stream is over"))
}

/// Where a teacher answers probes, as it has logged it.
fn health_address(teacher: &Teacher) -> String {
    let log = teacher.log();
    let event = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let found = event.into_iter().find(|event| event["message"] == "health");
    let found = found.unwrap_or_else(|| panic!("no health listener of {SERVER} in\n{log}"));
    found["address"].as_str().unwrap().to_owned()
}
