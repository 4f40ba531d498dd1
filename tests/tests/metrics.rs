//! Every metric of the catalogue shows before the first request, and counts what happens once.

#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    time::Duration,
};

use stillhouse_runtime::telemetry::Metric;
use stillhouse_tests::{
    client, models,
    process::{Teacher, UNCACHED, scrape},
    student::Student,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

#[tokio::test]
async fn metrics_show_before_the_first_request_and_count_after_it() {
    let folder = tempfile::tempdir().unwrap();
    models::write_mlp(folder.path(), 4, &[8], 5, 1);
    let teacher = Teacher::start(folder.path(), &[]);
    let text = teacher.metrics();
    starts_as(&text, teacher_server::metrics::CATALOGUE);
    // The line that names the address comes a moment before.
    wait_for(&teacher, "stillhouse_teacher_serving", 1.0).await;

    let mut client = client::connect(teacher.address()).await;
    client.label(client::request(1, &[0.0; 12], 4)).await.unwrap();
    assert_eq!(teacher.metric("stillhouse_teacher_rows_total{encoding=\"dense\"}"), 3.0);
    let batches = "stillhouse_teacher_batches_total{reason=\"waited\"}";
    assert_eq!(teacher.metric(batches), 1.0);
    assert_eq!(teacher.metric("stillhouse_teacher_batch_rows_count"), 1.0);
    assert!(teacher.metric("stillhouse_teacher_label_bytes_total{encoding=\"dense\"}") >= 60.0);
    is_the_catalogue(&teacher.metrics(), teacher_server::metrics::CATALOGUE);
}

/// Whether text for Prometheus holds every metric of a catalogue, each series at 0, and no other.
fn starts_as(text: &str, catalogue: &[Metric]) {
    is_the_catalogue(text, catalogue);
    for metric in catalogue {
        for labels in metric.series {
            let series = labels.iter().map(|(key, value)| format!("{key}=\"{value}\""));
            let series = format!("{}{{{}}} 0", metric.name, series.collect::<Vec<_>>().join(","));
            assert!(text.contains(&series), "{series}\n{text}");
        }
    }
}

/// Whether text for Prometheus holds every metric of a catalogue, and no other.
fn is_the_catalogue(text: &str, catalogue: &[Metric]) {
    for part in ["HELP", "TYPE"] {
        let told: BTreeSet<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# ")?.strip_prefix(part)?.split(' ').nth(1))
            .collect();
        let known: BTreeSet<&str> = catalogue.iter().map(|metric| metric.name).collect();
        assert_eq!(told, known, "{text}");
    }
}

#[test]
fn a_student_shows_its_catalogue_while_it_trains() {
    let folder = tempfile::tempdir().unwrap();
    models::write_mlp(folder.path(), 784, &[8], 10, 1);
    let teacher = Teacher::start(folder.path(), &[]);
    let sections = format!(
        "student = {{ model_type = \"mlp\", input_size = 784, hidden_sizes = [8], num_labels = 10 }}\n\
         loss = {{ alpha = 0.9, temperature = 4.0 }}\n{}[train]\nepochs = 1000000\nbatch_size = 20\n",
        teacher.section()
    );
    let student = Student::new(folder.path(), "student", 100, &sections);
    let arguments = ["--metrics-listen", "127.0.0.1:0", "--log", "info"];
    let mut training = student.start(&arguments);
    let mut log = BufReader::new(training.stderr.take().unwrap()).lines();
    let line = log.find(|line| line.as_ref().unwrap().contains("metrics")).unwrap().unwrap();
    let address = line.split("address=").nth(1).unwrap().trim();
    student.wait_for_step(&mut training, 1);
    let text = scrape(address.parse().unwrap());
    is_the_catalogue(&text, student_worker::metrics::CATALOGUE);
    let steps = text.lines().find_map(|line| line.strip_prefix("stillhouse_student_steps "));
    assert!(steps.unwrap().parse::<f64>().unwrap() >= 1.0, "{text}");
    let waited = "stillhouse_student_phase_seconds_count{phase=\"wait\"} ";
    let waited = text.lines().find_map(|line| line.strip_prefix(waited));
    assert!(waited.unwrap().parse::<f64>().unwrap() >= 1.0, "{text}");
    drop((training.kill(), training.wait()));
}

/// Waits, without a limit of its own, until a series has a value.
async fn wait_for(teacher: &Teacher, series: &str, value: f64) {
    while teacher.metric(series) != value {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn every_request_is_counted_once_although_its_client_goes_away() {
    const WIDTH: usize = 64;
    const REQUESTS: u64 = 20;
    let folder = tempfile::tempdir().unwrap();
    models::write_mlp(folder.path(), WIDTH, &[1024, 1024], 5, 1);
    let teacher = Teacher::start(folder.path(), &UNCACHED);
    let mut client = client::connect(teacher.address()).await;
    let (send, requests) = mpsc::channel(64);
    let rows = vec![0.5; 512 * WIDTH];
    for id in 0..REQUESTS {
        send.send(client::on_stream(client::request(id, &rows, WIDTH))).await.unwrap();
    }
    let stream = client.label_stream(ReceiverStream::new(requests)).await.unwrap();
    let mut answers = stream.into_inner();
    assert_eq!(teacher.metric("stillhouse_teacher_open_streams"), 1.0);
    answers.message().await.unwrap().unwrap();
    let queued = || teacher.metric("stillhouse_teacher_queue_rows");
    while counted(&teacher) + queued() / 512.0 < REQUESTS as f64 - 2.0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop((send, answers));
    wait_for(&teacher, "stillhouse_teacher_open_streams", 0.0).await;
    wait_for(&teacher, "stillhouse_teacher_queue_rows", 0.0).await;
    wait_for(&teacher, "stillhouse_teacher_held_bytes", 0.0).await;
    assert_eq!(counted(&teacher), REQUESTS as f64);
}

/// Requests counted so far, of every outcome.
fn counted(teacher: &Teacher) -> f64 {
    let text = teacher.metrics();
    let series = text.lines().filter(|line| line.starts_with("stillhouse_teacher_requests_total{"));
    series.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}
