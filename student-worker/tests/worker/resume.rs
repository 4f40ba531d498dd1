//! A run that was stopped and goes on ends as one that was not.

use std::fs;

use student_worker::run_folder::{
    Existing,
    metrics::{self, Record},
};
use tokio::sync::watch;

use crate::support::{Bench, endpoints, run, run_watched, serve};

fn steps(bench: &Bench, name: &str) -> Vec<u64> {
    let records = metrics::read(&bench.path().join("runs").join(name).join("metrics.jsonl"));
    let step = |record: &Record| match record {
        Record::Step(step) => Some(step.step),
        Record::Test(_) => None,
    };
    records.unwrap().iter().filter_map(step).collect()
}

/// Stops a run after `step` steps.
async fn stop_after(bench: &Bench, name: &str, teacher: &str, step: u64) {
    let (stop, stopping) = watch::channel(false);
    let recipe = bench.recipe(name, teacher);
    let at = move |done| {
        if done == step {
            stop.send_replace(true);
        }
    };
    let outcome = run_watched(recipe, Existing::Resume, stopping, at).await.unwrap();
    assert!(!outcome.finished);
    assert!(outcome.steps >= step && outcome.report.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_run_goes_on_to_the_same_bytes() {
    let bench = Bench::new();
    let teacher = serve(bench.teacher(1), 0).await;
    let section = endpoints(&[teacher.address()], "encoding = { kind = \"sampled\", draws = 9 }");
    for labels in ["", section.as_str()] {
        let whole = format!("whole-{}", labels.len());
        let cut = format!("cut-{}", labels.len());
        run(bench.recipe(&whole, labels), Existing::Refuse).await.unwrap();
        stop_after(&bench, &cut, labels, 3).await;
        stop_after(&bench, &cut, labels, 17).await;
        let outcome = run(bench.recipe(&cut, labels), Existing::Resume).await.unwrap();
        assert!(outcome.finished);
        assert_eq!(bench.weights(&cut), bench.weights(&whole));
        assert_eq!(steps(&bench, &cut), (1..=32).collect::<Vec<u64>>());
    }
    teacher.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_followed_the_newest_checkpoint_is_done_again() {
    let bench = Bench::new();
    run(bench.recipe("whole", ""), Existing::Refuse).await.unwrap();
    stop_after(&bench, "cut", "", 12).await;
    // As a killed process leaves it: no checkpoint at its last step, records past the one before,
    // and a checkpoint half-written.
    let folder = bench.path().join("runs/cut");
    let mut checkpoints: Vec<_> = fs::read_dir(folder.join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    checkpoints.sort();
    fs::remove_file(checkpoints.last().unwrap().join("checkpoint.json")).unwrap();
    fs::create_dir(folder.join("checkpoints/.step-000000013")).unwrap();
    let outcome = run(bench.recipe("cut", ""), Existing::Resume).await.unwrap();
    assert!(outcome.finished);
    assert_eq!(bench.weights("cut"), bench.weights("whole"));
    assert_eq!(steps(&bench, "cut"), (1..=32).collect::<Vec<u64>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_of_another_recipe_is_refused_and_kept() {
    let bench = Bench::new();
    stop_after(&bench, "cut", "", 6).await;
    let before = fs::read(bench.path().join("runs/cut/metrics.jsonl")).unwrap();
    let mut other = bench.recipe("cut", "");
    other.train.batch_size = 8;
    let error = run(other, Existing::Resume).await.unwrap_err();
    assert_eq!(error.exit_code(), 64);
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(cause, "train.batch_size is 8, but the checkpoint was made with 16");
    assert_eq!(fs::read(bench.path().join("runs/cut/metrics.jsonl")).unwrap(), before);

    // Without --resume nothing of it is touched either.
    let error = run(bench.recipe("cut", ""), Existing::Refuse).await.unwrap_err();
    assert!(error.to_string().contains("holds a run already"), "{error}");
    assert_eq!(error.exit_code(), 64);
}
