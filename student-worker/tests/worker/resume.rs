//! A run that was stopped and goes on ends as one that was not.

use std::{fs, path::PathBuf};

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
        Record::Test(_) | Record::Validation(_) => None,
    };
    records.unwrap().iter().filter_map(step).collect()
}

/// The checkpoints of a run, oldest first.
fn checkpoints(bench: &Bench, name: &str) -> Vec<PathBuf> {
    let folder = bench.path().join("runs").join(name).join("checkpoints");
    let mut found: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
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
    fs::remove_file(checkpoints(&bench, "cut").last().unwrap().join("checkpoint.json")).unwrap();
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
    assert_eq!(cause, "train.batch_size is 8, but the run was started with 16");
    assert_eq!(fs::read(bench.path().join("runs/cut/metrics.jsonl")).unwrap(), before);

    // Without --resume nothing of it is touched either.
    let error = run(bench.recipe("cut", ""), Existing::Refuse).await.unwrap_err();
    assert!(error.to_string().contains("holds a run already"), "{error}");
    assert_eq!(error.exit_code(), 64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkpoints_that_cannot_be_read_are_kept_and_the_run_is_refused() {
    let bench = Bench::new();
    stop_after(&bench, "cut", "", 12).await;
    let there = checkpoints(&bench, "cut");
    let metrics = bench.path().join("runs/cut/metrics.jsonl");
    let before = fs::read(&metrics).unwrap();
    for checkpoint in &there {
        let manifest = checkpoint.join("checkpoint.json");
        let text = fs::read_to_string(&manifest).unwrap();
        fs::write(&manifest, text.replace("\"format\": 1", "\"format\": 2")).unwrap();
    }
    let error = run(bench.recipe("cut", ""), Existing::Resume).await.unwrap_err();
    assert_eq!(error.exit_code(), 64);
    let newest = there.last().unwrap().display();
    let expected = format!("{newest}: checkpoint.json: format is 2, expected 1");
    assert!(error.to_string().contains(&expected), "{error}");
    assert_eq!(checkpoints(&bench, "cut"), there);
    assert_eq!(fs::read(&metrics).unwrap(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_recipe_is_refused_before_the_first_checkpoint_too() {
    let bench = Bench::new();
    run(bench.recipe("whole", ""), Existing::Refuse).await.unwrap();
    // As a process leaves it that is killed before its first checkpoint.
    stop_after(&bench, "cut", "", 3).await;
    fs::remove_dir_all(bench.path().join("runs/cut/checkpoints")).unwrap();
    let mut other = bench.recipe("cut", "");
    other.train.batch_size = 8;
    let error = run(other, Existing::Resume).await.unwrap_err();
    assert_eq!(error.exit_code(), 64);
    assert!(error.to_string().ends_with("runs/cut belongs to another recipe"), "{error}");
    assert_eq!(steps(&bench, "cut"), [1, 2, 3]);

    run(bench.recipe("cut", ""), Existing::Resume).await.unwrap();
    assert_eq!(bench.weights("cut"), bench.weights("whole"));
    assert_eq!(steps(&bench, "cut"), (1..=32).collect::<Vec<u64>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_done_is_not_run_again_and_needs_no_teacher() {
    let bench = Bench::new();
    let teacher = serve(bench.teacher(1), 0).await;
    let section = endpoints(&[teacher.address()], "");
    let mut recipe = bench.recipe("done", &section);
    recipe.train.checkpoint_every_steps = 0;
    let outcome = run(recipe.clone(), Existing::Refuse).await.unwrap();
    teacher.shutdown().await.unwrap();
    let last = checkpoints(&bench, "done");
    assert_eq!(outcome.checkpoint.as_ref(), last.last());
    assert!(last.last().unwrap().ends_with("step-000000032"));
    let (weights, folder) = (bench.weights("done"), bench.path().join("runs/done"));
    let report = fs::read(folder.join("report.md")).unwrap();

    assert_eq!(run(recipe.clone(), Existing::Resume).await.unwrap(), outcome);
    assert_eq!(fs::read(folder.join("report.md")).unwrap(), report);
    let mut other = recipe.clone();
    other.loss.alpha = 0.5;
    let error = run(other, Existing::Resume).await.unwrap_err();
    assert_eq!(error.exit_code(), 64, "{error}");

    // What a process leaves that is killed after the last checkpoint is completed from it.
    for file in ["outcome.json", "model.safetensors"] {
        fs::remove_file(folder.join(file)).unwrap();
        let again = run(recipe.clone(), Existing::Resume).await.unwrap();
        assert!(again.finished && again.teacher == outcome.teacher, "{file}");
        assert_eq!((&again.test, &again.checkpoint), (&outcome.test, &outcome.checkpoint));
        assert_eq!(bench.weights("done"), weights);
        assert_eq!(steps(&bench, "done"), (1..=32).collect::<Vec<u64>>());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_gone_does_not_keep_a_run_from_going_on() {
    let bench = Bench::new();
    run(bench.recipe("whole", ""), Existing::Refuse).await.unwrap();
    stop_after(&bench, "cut", "", 12).await;
    let folder = bench.path().join("runs/cut");
    fs::remove_dir_all(folder.join("tensorboard")).unwrap();
    fs::remove_file(folder.join("metrics.jsonl")).unwrap();
    run(bench.recipe("cut", ""), Existing::Resume).await.unwrap();
    assert_eq!(bench.weights("cut"), bench.weights("whole"));
    let recorded = steps(&bench, "cut");
    assert!(recorded[0] > 12 && recorded.ends_with(&[31, 32]), "{recorded:?}");
    assert!(fs::read_dir(folder.join("tensorboard")).unwrap().next().is_some());
    let report = fs::read_to_string(folder.join("report.md")).unwrap();
    assert!(report.contains("| seconds, since the run was resumed at step "), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_runs_are_never_at_work_in_one_folder() {
    let bench = Bench::new();
    let (reached, mut started) = tokio::sync::mpsc::unbounded_channel();
    let (stop, stopping) = watch::channel(false);
    let first = tokio::spawn(run_watched(
        bench.recipe("shared", ""),
        Existing::Refuse,
        stopping,
        move |step| {
            let _ = reached.send(step);
            crate::support::slow_step();
        },
    ));
    started.recv().await.unwrap();
    for existing in [Existing::Refuse, Existing::Resume, Existing::Replace] {
        let error = run(bench.recipe("shared", ""), existing).await.unwrap_err();
        assert_eq!(error.exit_code(), 75, "{existing:?}: {error}");
        assert!(error.to_string().contains("another run is at work in"), "{error}");
    }
    stop.send_replace(true);
    assert!(!first.await.unwrap().unwrap().finished);
    assert!(run(bench.recipe("shared", ""), Existing::Resume).await.unwrap().finished);
}
