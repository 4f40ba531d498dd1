//! A teacher that goes away, and comes back, stays away, or comes back as another.

use std::time::{Duration, Instant};

use student_worker::{
    label_client::ClientError,
    run_folder::Existing,
    train::{Error, Outcome},
};
use tokio::sync::{mpsc, watch};

use crate::support::{
    Bench, endpoints, own_port, run, run_watched, serve, slow_step, step_records,
};

/// Starts a run, and shuts its teacher down after some steps.
async fn lose_teacher(
    bench: &Bench,
    more: &str,
    then: impl AsyncFnOnce(u16),
) -> Result<Outcome, Error> {
    let (_held, address) = own_port();
    let teacher = serve(bench.teacher(1), address.port()).await;
    let mut recipe = bench.recipe("lost", &endpoints(&[address], more));
    if let Some(section) = &mut recipe.teacher {
        section.prefetch = 2;
        section.retry.max_elapsed_seconds = if more.contains("client") { 2.0 } else { 20.0 };
    }
    if more.contains("hard-labels") {
        // Long enough for what comes after the loss.
        recipe.train.epochs = 40;
    }
    let (reached, mut steps) = mpsc::unbounded_channel();
    let (_running, stop) = watch::channel(false);
    let running = tokio::spawn(run_watched(recipe, Existing::Refuse, stop, move |step| {
        let _ = reached.send(step);
        slow_step();
    }));
    while steps.recv().await.is_some_and(|step| step < 7) {}
    teacher.shutdown().await.unwrap();
    then(address.port()).await;
    running.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_teacher_that_comes_back_changes_nothing() {
    let bench = Bench::new();
    let teacher = serve(bench.teacher(1), 0).await;
    let section = endpoints(&[teacher.address()], "");
    run(bench.recipe("whole", &section), Existing::Refuse).await.unwrap();
    teacher.shutdown().await.unwrap();

    let mut again = None;
    let outcome = lose_teacher(&bench, "", async |port| {
        tokio::time::sleep(Duration::from_millis(300)).await;
        again = Some(serve(bench.teacher(1), port).await);
    });
    let outcome = outcome.await.unwrap();
    assert!(outcome.finished);
    assert_eq!(bench.weights("lost"), bench.weights("whole"));
    again.unwrap().shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_teacher_that_comes_back_as_another_is_refused() {
    let bench = Bench::new();
    let mut again = None;
    let outcome = lose_teacher(&bench, "", async |port| {
        again = Some(serve(bench.teacher(2), port).await);
    });
    let error = outcome.await.unwrap_err();
    let Error::Broken(interrupted) = &error else {
        panic!("{error}");
    };
    assert!(interrupted.step >= 7 && interrupted.checkpoint.join("checkpoint.json").is_file());
    let Error::Labels(ClientError::Fingerprint { found, expected, .. }) = &interrupted.source
    else {
        panic!("{error}");
    };
    let words = error.to_string();
    for fingerprint in [found, expected] {
        let hex: String = fingerprint.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(hex.len() == 64 && words.contains(&hex), "{words}");
    }
    assert_eq!(error.exit_code(), 1);
    again.unwrap().shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_teacher_that_stays_away_suspends_the_run() {
    let bench = Bench::new();
    let error = lose_teacher(&bench, "client = \"hasty\"", async |_| {}).await.unwrap_err();
    assert_eq!(error.exit_code(), 75);
    let Error::Suspended(suspended) = &error else {
        panic!("{error}");
    };
    assert!(suspended.step >= 7 && suspended.checkpoint.join("checkpoint.json").is_file());
    assert!(error.to_string().contains("no labels for"), "{error}");

    // Once it is there again the run goes on, and ends as if nothing had happened.
    let teacher = serve(bench.teacher(1), 0).await;
    let section = endpoints(&[teacher.address()], "");
    run(bench.recipe("whole", &section), Existing::Refuse).await.unwrap();
    run(bench.recipe("lost", &section), Existing::Resume).await.unwrap();
    assert_eq!(bench.weights("lost"), bench.weights("whole"));
    teacher.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_shall_fail_ends_as_soon_as_its_teacher_is_gone() {
    let bench = Bench::new();
    let mut begun = None;
    let more = "on_teacher_loss = \"fail\"";
    let outcome = lose_teacher(&bench, more, async |_| begun = Some(Instant::now())).await;
    let error = outcome.unwrap_err();
    assert_eq!(error.exit_code(), 75, "{error}");
    assert!(begun.unwrap().elapsed() < Duration::from_secs(10), "{:?}", begun.unwrap().elapsed());
    assert!(bench.path().join("runs/lost/checkpoints").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_goes_on_alone_says_how_long_it_did() {
    let bench = Bench::new();
    // A client's name keeps the patience short.
    let more = "client = \"alone\"\non_teacher_loss = \"hard-labels\"";
    let outcome = lose_teacher(&bench, more, async |_| {}).await.unwrap();
    assert!(outcome.finished);
    let steps = step_records(&bench.path().join("runs/lost"));
    let alone: Vec<_> = steps.iter().filter(|step| step.without_teacher).collect();
    assert_eq!(outcome.steps_without_teacher, alone.len() as u64);
    assert!(alone.len() > 10, "{} of {}", alone.len(), steps.len());
    for step in &steps {
        assert_eq!(step.soft_loss.is_none(), step.without_teacher, "{step:?}");
        let hard = step.hard_loss.unwrap();
        assert!(!step.without_teacher || (step.loss - hard).abs() < 1e-9, "{step:?}");
    }
    let report = std::fs::read_to_string(outcome.report.unwrap()).unwrap();
    assert!(report.contains("steps on hard labels alone, for want of the teacher"), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_teacher_that_comes_back_ends_the_time_alone() {
    let bench = Bench::new();
    let mut again = None;
    let more = "client = \"alone\"\non_teacher_loss = \"hard-labels\"";
    let outcome = lose_teacher(&bench, more, async |port| {
        // Longer than the patience.
        tokio::time::sleep(Duration::from_millis(2300)).await;
        again = Some(serve(bench.teacher(1), port).await);
    });
    let outcome = outcome.await.unwrap();
    let steps = step_records(&bench.path().join("runs/lost"));
    let first = steps.iter().position(|step| step.without_teacher).unwrap();
    let later = steps[first..].iter().filter(|step| !step.without_teacher).count();
    assert!(later > 0, "labels came again");
    assert_eq!(outcome.steps_without_teacher as usize + later + first, steps.len());
    again.unwrap().shutdown().await.unwrap();
}
