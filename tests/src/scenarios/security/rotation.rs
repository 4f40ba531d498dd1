//! Everything is replaced again and again while clients connect, ask and stream: no call fails.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use stillhouse_proto::v1::label_stream_response::Result as Answer;
use stillhouse_runtime::exit;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Place, SEEN, SERVER, Shows, WIDTH};
use crate::{
    client::{on_stream, request},
    pki::{Authority, begin_of, replace},
    process::{Teacher, signal, wait},
    scenarios::{Figures, progress},
    student::Student,
};

/// Clients that make a connection for every call.
const CALLERS: usize = 4;
/// Clients that ask on over one stream.
const STREAMS: usize = 2;

/// What clients show at the moment, and what became of their calls.
struct Clients {
    address: SocketAddr,
    shows: Mutex<Shows>,
    stop: AtomicBool,
    calls: AtomicU64,
    streamed: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Clients {
    fn shows(&self) -> Shows {
        self.shows.lock().unwrap().clone()
    }

    fn failed(&self, what: String) {
        self.failures.lock().unwrap().push(what);
    }

    async fn call(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            match self.shows().client(self.address).await {
                Ok(mut client) => match client.label(request(1, &[0.5; WIDTH], WIDTH)).await {
                    Ok(_) => drop(self.calls.fetch_add(1, Ordering::Relaxed)),
                    Err(status) => self.failed(status.to_string()),
                },
                Err(error) => self.failed(format!("{error:?}")),
            }
        }
    }

    async fn stream(&self) {
        let mut client = self.shows().client(self.address).await.unwrap();
        let (requests, outbound) = mpsc::channel(1);
        let mut answers =
            client.label_stream(ReceiverStream::new(outbound)).await.unwrap().into_inner();
        let mut id = 0;
        while !self.stop.load(Ordering::Relaxed) {
            id += 1;
            drop(requests.send(on_stream(request(id, &[0.5; WIDTH], WIDTH))).await);
            match answers.message().await.map(|answer| answer.and_then(|answer| answer.result)) {
                Ok(Some(Answer::Response(_))) => {
                    self.streamed.fetch_add(1, Ordering::Relaxed);
                }
                other => {
                    self.failed(format!("a stream: {other:?}"));
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

pub(super) async fn run(figures: &mut Figures, seconds: f64) {
    let mut authority = Authority::new("first");
    let (mut token, mut hash) = teacher_server::new_token().unwrap();
    let list = |hashes: &[&str]| {
        format!(
            "[clients.a]\ncertificates = [\"a.students\"]\n[clients.s]\ntokens = {hashes:?}\n\
             encodings = [\"top_k\"]\nmax_classes = 3\n"
        )
    };
    let place = Place::new(&authority, &list(&[&hash]));
    let server = place.serve("optional", &["--set", "limits.max_connection_age_seconds=1"]);
    let long = place.serve("required", &[]);
    let shows = Shows {
        ca: authority.pem.clone(),
        pair: Some(authority.client("a.students")),
        token: None,
    };
    let clients = |address| {
        Arc::new(Clients {
            address,
            shows: Mutex::new(shows.clone()),
            stop: AtomicBool::new(false),
            calls: AtomicU64::new(0),
            streamed: AtomicU64::new(0),
            failures: Mutex::default(),
        })
    };
    // New connections all the time, and streams that outlive every certificate.
    let (anew, lasting) = (clients(server.address()), clients(long.address()));
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..CALLERS {
        let own = Arc::clone(&anew);
        running.spawn(async move { own.call().await });
    }
    for _ in 0..STREAMS {
        let own = Arc::clone(&lasting);
        running.spawn(async move { own.stream().await });
    }

    // A student that is known by its token, and comes anew every second.
    let files = place.path();
    replace(&files.join("ca.crt"), &authority.pem);
    replace(&files.join("token"), &token);
    let student = student(&place, server.address());
    let mut training = student.start(&[]);
    student.wait_for_step(&mut training, 1);
    let mut steps = 0;

    let begun = Instant::now();
    let (mut rounds, mut secrets) = (0, Vec::new());
    while begun.elapsed().as_secs_f64() < seconds {
        progress(&format!("security: rotation, {:.0} s", begun.elapsed().as_secs_f64()));
        let next = Authority::new("next");
        let (next_token, next_hash) = teacher_server::new_token().unwrap();
        // First both are good on both sides, then the new one is shown, then the old one goes.
        let before = read_again(&server);
        let both = format!("{}{}", authority.pem, next.pem);
        place.authorities(&both);
        place.list(&list(&[&hash, &next_hash]));
        replace(&files.join("ca.crt"), &both);
        anew.shows.lock().unwrap().ca.clone_from(&both);
        settle().await;
        wait_until(|| has_read_all(&server, before)).await;
        // Each is good for a year longer, so that they can be told apart.
        let until = 2100 + rounds;
        let pair = next.server_until(SERVER, until);
        // The certificate comes before its key.
        replace(&files.join("server.crt"), &pair.cert);
        tokio::time::sleep(Duration::from_millis(150)).await;
        replace(&files.join("server.key"), &pair.key);
        replace(&files.join("token"), &next_token);
        anew.shows.lock().unwrap().pair = Some(next.client("a.students"));
        settle().await;
        let expires =
            || server.metric("stillhouse_teacher_tls_certificate_expires_timestamp_seconds");
        let is_new = |expires: f64| (expires - begin_of(until)).abs() < 0.5;
        wait_until(|| is_new(expires())).await;
        let expires = expires();
        figures.require(
            is_new(expires),
            format!("the certificate in use expires at {expires}, not with the year {until}"),
        );
        let before = read_again(&server);
        place.authorities(&next.pem);
        place.list(&list(&[&next_hash]));
        replace(&files.join("ca.crt"), &next.pem);
        anew.shows.lock().unwrap().ca.clone_from(&next.pem);
        settle().await;
        wait_until(|| has_read_all(&server, before)).await;
        secrets.push(token);
        (authority, token, hash) = (next, next_token, next_hash);
        rounds += 1;
        wait_until(|| student.last_step() > steps).await;
        let reached = student.last_step();
        figures.require(reached > steps, format!("the student stands at step {steps}"));
        steps = reached;
    }
    // What cannot be used is told, and changes nothing.
    for (file, name) in [("access", "clients.toml"), ("tls", "server.crt")] {
        let unusable = format!("stillhouse_teacher_file_unusable{{file=\"{file}\"}}");
        let good = std::fs::read_to_string(files.join(name)).unwrap();
        figures
            .require(server.metric(&unusable) == 0.0, format!("{name} is good, but not said so"));
        replace(&files.join(name), "neither a list nor a certificate");
        settle().await;
        wait_until(|| server.metric(&unusable) == 1.0).await;
        figures.require(
            server.metric(&unusable) == 1.0,
            format!("{name} is unusable, but not said so"),
        );
        replace(&files.join(name), &good);
        settle().await;
        wait_until(|| server.metric(&unusable) == 0.0).await;
        figures.require(server.metric(&unusable) == 0.0, format!("{name} is good again"));
    }
    drop(authority);
    secrets.push(token);
    for clients in [&anew, &lasting] {
        clients.stop.store(true, Ordering::Relaxed);
    }
    while running.join_next().await.is_some() {}
    progress("");
    signal(training.id(), "TERM");
    let ended = wait(&mut training).code();
    let resumable = Some(i32::from(exit::TERMINATED));
    figures.require(ended == resumable, format!("the student ended with {ended:?}"));
    let calls = anew.calls.load(Ordering::Relaxed);
    let streamed = lasting.streamed.load(Ordering::Relaxed);
    let failures =
        [&anew, &lasting].map(|clients| clients.failures.lock().unwrap().clone()).concat();
    figures.add("rotations", rounds);
    figures.add("calls_on_new_connections", calls);
    figures.add("calls_on_lasting_streams", streamed);
    figures.add("failed_calls", failures.len() as u64);
    figures.add("student_steps", steps);
    let reloads = "stillhouse_teacher_reloads_total{file=\"tls\",result=\"done\"}";
    figures.add("certificates_read_again", server.metric(reloads));
    let mut told = vec![server.log(), server.metrics()];
    read_all(&files.join("student"), &mut told);
    figures.add("run_files_searched", told.len() as u64 - 2);
    let tells = told.iter().any(|text| secrets.iter().any(|secret| text.contains(secret)));
    figures.require(!tells, "a token is in a log, in metrics or in the run's folder");
    figures.require(failures.is_empty(), format!("calls failed: {:?}", failures.first()));
    figures.require(calls > 0 && streamed > 0, "nobody has called");
    let seen = server.metric(reloads) >= f64::from(rounds);
    figures.require(seen, "not every rotation was seen");
}

/// The files of a folder and of those in it, as far as they are text.
fn read_all(folder: &Path, texts: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_all(&path, texts);
        } else {
            texts.push(String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned());
        }
    }
}

/// Until everybody has seen what has changed.
async fn settle() {
    tokio::time::sleep(SEEN + Duration::from_millis(500)).await;
}

/// Waits for what should hold by now, and on a slow machine a while later. Whoever needs it to hold looks
/// again.
pub(super) async fn wait_until(holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() && begun.elapsed() < Duration::from_secs(60) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How often a teacher has read its certificates and its list of clients again, and taken them.
fn read_again(server: &Teacher) -> [f64; 2] {
    ["tls", "access"].map(|file| {
        let series = "stillhouse_teacher_reloads_total";
        server.metric(&format!("{series}{{file=\"{file}\",result=\"done\"}}"))
    })
}

/// Whether it has done both since.
fn has_read_all(server: &Teacher, before: [f64; 2]) -> bool {
    read_again(server).iter().zip(before).all(|(now, before)| *now > before)
}

/// One that trains until it is told to stop.
fn student(place: &Place, teacher: SocketAddr) -> Student {
    let at = |name: &str| place.path().join(name);
    let sections = format!(
        "student = {{ model_type = \"mlp\", input_size = 784, hidden_sizes = [16], num_labels = 10 }}\n\
         loss = {{ alpha = 0.9, temperature = 4.0 }}\n\
         [teacher]\nkind = \"endpoints\"\nendpoints = [\"https://{teacher}\"]\ntoken_file = {:?}\nkept_bytes = 0\n\
         encoding = {{ kind = \"top_k\", k = 3 }}\n\
         tls = {{ ca = {:?}, server_name = {SERVER:?} }}\n\
         [train]\nepochs = 1000000\nbatch_size = 32\neval_every = 1000000\n",
        at("token"),
        at("ca.crt"),
    );
    Student::new(place.path(), "student", 320, &sections)
}
