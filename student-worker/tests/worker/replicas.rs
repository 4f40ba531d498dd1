//! Several endpoints: one may go, all must be the same.

use std::sync::{Arc, atomic::Ordering};

use student_worker::{label_client::ClientError, run_folder::Existing, train::Error};
use tokio::sync::{mpsc, watch};

use crate::{
    fake_teacher::{Fake, Fault, serve_fake},
    support::{Bench, endpoints, run, run_watched, serve, slow_step},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_goes_on_with_the_replica_that_is_left() {
    let bench = Bench::new();
    let (first, second) = (serve(bench.teacher(1), 0).await, serve(bench.teacher(1), 0).await);
    let both = endpoints(&[first.address(), second.address()], "");
    run(bench.recipe("whole", &both), Existing::Refuse).await.unwrap();

    let (reached, mut steps) = mpsc::unbounded_channel();
    let (_running, stop) = watch::channel(false);
    let recipe = bench.recipe("lost", &both);
    let running = tokio::spawn(run_watched(recipe, Existing::Refuse, stop, move |step| {
        let _ = reached.send(step);
        slow_step();
    }));
    while steps.recv().await.is_some_and(|step| step < 7) {}
    first.shutdown().await.unwrap();
    assert!(running.await.unwrap().unwrap().finished);
    assert_eq!(bench.weights("lost"), bench.weights("whole"));
    second.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_of_different_models_are_refused_before_the_run() {
    let bench = Bench::new();
    let (first, second) = (serve(bench.teacher(1), 0).await, serve(bench.teacher(2), 0).await);
    let both = endpoints(&[first.address(), second.address()], "");
    let error = run(bench.recipe("mixed", &both), Existing::Refuse).await.unwrap_err();
    assert!(matches!(error, Error::Labels(ClientError::Fingerprint { .. })), "{error}");
    assert!(!bench.path().join("runs/mixed").exists());
    first.shutdown().await.unwrap();
    second.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_claims_to_be_the_same_and_is_not_is_refused() {
    let bench = Bench::new();
    let honest = serve_fake(Arc::new(Fake::new())).await;
    let liar = serve_fake(Arc::new(Fake { bias: 1.0, ..Fake::new() })).await;
    let both = endpoints(&[honest, liar], "");
    let error = run(bench.recipe("mixed", &both), Existing::Refuse).await.unwrap_err();
    assert!(matches!(error, Error::Labels(ClientError::Disagrees { .. })), "{error}");
    for address in [honest, liar] {
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_becomes_another_teacher_is_left_and_the_run_goes_on() {
    let bench = Bench::new();
    let steady = Arc::new(Fake::new());
    let first = serve_fake(Arc::clone(&steady)).await;
    run(bench.recipe("whole", &endpoints(&[first], "")), Existing::Refuse).await.unwrap();

    let changed = Arc::new(Fake::with(vec![Fault::Fingerprint]));
    let second = serve_fake(Arc::clone(&changed)).await;
    let both = endpoints(&[first, second], "");
    // Long enough for the second to be asked.
    let (_running, stop) = watch::channel(false);
    let asked = Arc::clone(&changed);
    let outcome = run_watched(bench.recipe("left", &both), Existing::Refuse, stop, move |_| {
        for _ in 0..20 {
            if asked.requests.load(Ordering::Relaxed) == 0 {
                slow_step();
            }
        }
    });
    assert!(outcome.await.unwrap().finished);
    // Its answers came with the first of the requests that were under way to it.
    assert!((1..=4).contains(&changed.requests.load(Ordering::Relaxed)));
    assert_eq!(bench.weights("left"), bench.weights("whole"));
    assert_eq!(changed.streams.load(Ordering::Relaxed), 1, "it was asked again");
}
