//! A run that is told to stop before it has taken a step.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use stillhouse_proto::v1::EncodingKind;
use student_worker::{run_folder::Existing, train::Outcome};
use tokio::sync::watch;

use crate::{
    fake_teacher::{Fake, serve_fake},
    support::{Bench, endpoints, run_watched, serve},
};

const HIDDEN: &str = "encoding = { kind = \"hidden\" }\ntimeout_ms = 60000";

/// Runs until the teacher is asked for its output projection, and tells the run to stop then.
async fn stop_at_the_head(bench: &Bench) -> Outcome {
    let stuck = Arc::new(Fake { encodings: vec![EncodingKind::Hidden], ..Fake::new() });
    let address = serve_fake(Arc::clone(&stuck)).await;
    let mut recipe = bench.recipe("cut", &endpoints(&[address], HIDDEN));
    // Who does not heed the stop waits for the head that long.
    recipe.teacher.as_mut().unwrap().retry.max_elapsed_seconds = 60.0;
    let (stop, stopping) = watch::channel(false);
    let running = tokio::spawn(run_watched(recipe, Existing::Resume, stopping, |_| {}));
    stuck.head_asked.notified().await;
    let told = Instant::now();
    stop.send_replace(true);
    let outcome = running.await.unwrap().unwrap();
    assert!(told.elapsed() < Duration::from_secs(30), "{:?}", told.elapsed());
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
