//! What a student makes of every way in which a request can fail.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use student_worker::{
    label_client::ClientError,
    run_folder::Existing,
    train::{Error, Outcome},
};
use tokio::net::TcpListener;
use tonic::{Code, Status};

use crate::{
    fake_teacher::{Fake, Fault, serve_fake},
    support::{Bench, endpoints, run},
};

/// Trains with a teacher that fails in these ways.
async fn train(bench: &Bench, name: &str, fake: &Arc<Fake>) -> Result<Outcome, Error> {
    train_with(bench, name, fake, "").await
}

/// As [`train`], with more in the recipe's `[teacher]`.
async fn train_with(
    bench: &Bench,
    name: &str,
    fake: &Arc<Fake>,
    more: &str,
) -> Result<Outcome, Error> {
    let address = serve_fake(Arc::clone(fake)).await;
    run(bench.recipe(name, &endpoints(&[address], more)), Existing::Refuse).await
}

async fn survives(faults: Vec<Fault>) -> Arc<Fake> {
    survives_with("", faults).await
}

async fn survives_with(more: &str, faults: Vec<Fault>) -> Arc<Fake> {
    let bench = Bench::new();
    train(&bench, "whole", &Arc::new(Fake::new())).await.unwrap();
    let fake = Arc::new(Fake::with(faults));
    train_with(&bench, "tried", &fake, more).await.unwrap();
    assert_eq!(bench.weights("tried"), bench.weights("whole"));
    fake
}

/// A teacher that says the same twice is believed.
async fn fails(fault: Fault) -> String {
    let bench = Bench::new();
    // As many as it is asked, however often that is.
    let faults = vec![fault; 10_000];
    let error = train(&bench, "tried", &Arc::new(Fake::with(faults))).await.unwrap_err();
    assert_eq!(error.exit_code(), 1, "{error}");
    error.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_in_any_order_are_used_in_theirs() {
    let fake = survives(vec![Fault::Late, Fault::Late, Fault::Late]).await;
    assert_eq!(fake.requests.load(Ordering::Relaxed), 32);
    assert_eq!(fake.streams.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_passes_by_itself_is_asked_again() {
    let fake = survives(vec![
        Fault::Error(Code::Unavailable, 0),
        Fault::Error(Code::DeadlineExceeded, 0),
        Fault::Error(Code::ResourceExhausted, 20),
    ])
    .await;
    assert_eq!(fake.requests.load(Ordering::Relaxed), 35);
    assert_eq!(fake.streams.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_teacher_is_left_alone_for_as_long_as_it_asks() {
    let start = Instant::now();
    survives(vec![Fault::Error(Code::ResourceExhausted, 700)]).await;
    assert!(start.elapsed() >= Duration::from_millis(700));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_teacher_that_falls_silent_is_given_up_and_asked_again() {
    let fake = survives_with("timeout_ms = 400", vec![Fault::Silence]).await;
    // On a slow machine it may be late once more.
    assert!(fake.streams.load(Ordering::Relaxed) >= 2);
}

/// A listener that accepts and never says anything.
async fn silent() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok(connection) = listener.accept().await {
            held.push(connection);
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_teacher_that_is_silent_from_the_start_costs_no_more_than_the_budget() {
    let bench = Bench::new();
    let mut recipe = bench.recipe("silent", &endpoints(&[silent().await], ""));
    recipe.teacher.as_mut().unwrap().retry.max_elapsed_seconds = 1.0;
    let start = Instant::now();
    let error = run(recipe, Existing::Refuse).await.unwrap_err();
    // Without a budget 30 s for the request, or 20 s for a ping that nobody answers.
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    assert!(matches!(error, Error::Labels(ClientError::Unreachable { .. })), "{error}");
    assert_eq!(error.exit_code(), 75);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_replica_does_not_keep_a_run_from_starting() {
    let bench = Bench::new();
    let addresses = [silent().await, serve_fake(Arc::new(Fake::new())).await];
    for (name, seconds, more) in [
        // Less than the 5 s that the silent one is waited for: the other must not be given up with it.
        // Labels that come later than that, on a slow machine, are the next one's matter.
        ("connected", 4.0, "on_teacher_loss = \"hard-labels\""),
        // Less than the silent one takes to fail: labels must not wait for that.
        ("labelled", 10.0, ""),
    ] {
        let mut recipe = bench.recipe(name, &endpoints(&addresses, more));
        recipe.teacher.as_mut().unwrap().retry.max_elapsed_seconds = seconds;
        assert!(run(recipe, Existing::Refuse).await.unwrap().finished, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_gives_up_says_what_failed() {
    let bench = Bench::new();
    let address = serve_fake(Arc::new(Fake::with(vec![Fault::Silence; 100]))).await;
    // An answer is waited for 3 s. What is left of the budget is too short for the next try to connect to
    // fail in another way.
    let mut recipe = bench.recipe("mute", &endpoints(&[address], "timeout_ms = 2000"));
    recipe.teacher.as_mut().unwrap().retry.max_elapsed_seconds = 5.0;
    let error = run(recipe, Existing::Refuse).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("no answer within"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_ends_is_opened_again() {
    let fake = survives(vec![Fault::Late, Fault::End(Status::unavailable("draining"))]).await;
    assert_eq!(fake.streams.load(Ordering::Relaxed), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_fail_again_ends_the_run_and_names_the_request() {
    for code in [Code::InvalidArgument, Code::Internal, Code::Cancelled] {
        let error = fails(Fault::Error(code, 0)).await;
        // Of those under way the first to be refused twice.
        assert!(
            error.contains(": request ") && error.contains(" (16 rows) was refused"),
            "{error}"
        );
        assert!(error.contains("as told"), "{error}");
    }
    let error = fails(Fault::End(Status::permission_denied("not you"))).await;
    assert!(error.contains("PERMISSION_DENIED: not you"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_cannot_be_used_end_the_run() {
    let error = fails(Fault::Row).await;
    // Of those under way the first to be answered so twice.
    assert!(
        error.contains("answer to request ")
            && error.contains(
                " (16 rows) cannot be used: 1 of its rows without a label; row 3: not finite"
            ),
        "{error}"
    );
    let error = fails(Fault::Fingerprint).await;
    assert!(error.contains("0101") && error.contains("0909"), "{error}");
    let error = fails(Fault::Garbage).await;
    assert!(error.contains("cannot be used"), "{error}");
    let error = fails(Fault::Temperature).await;
    assert!(error.contains("temperature is 1, expected 4"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_teacher_that_does_not_suit_the_recipe_is_refused() {
    let bench = Bench::new();
    let address = serve_fake(Arc::new(Fake::new())).await;
    for (more, expected) in [
        ("encoding = { kind = \"top_k\", k = 2 }", "encodings is [Dense], expected TopK"),
        ("request_rows = 300", "limits.max_rows is 100, expected 128 or more"),
    ] {
        let mut recipe = bench.recipe("unsuited", &endpoints(&[address], more));
        recipe.train.batch_size = 128;
        let error = run(recipe, Existing::Refuse).await.unwrap_err();
        assert!(matches!(error, Error::Labels(ClientError::Unsuitable { .. })), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(error.exit_code(), 64);
    }
}

/// The teacher answers the first request after the second: one that is not asked ahead waits for it
/// until its time is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_prefetch_a_batch_is_asked_for_when_it_is_needed() {
    let bench = Bench::new();
    train(&bench, "whole", &Arc::new(Fake::new())).await.unwrap();
    let fake = Arc::new(Fake::with(vec![Fault::Late]));
    let address = serve_fake(Arc::clone(&fake)).await;
    let section = endpoints(&[address], "timeout_ms = 100\nprefetch = 0");
    run(bench.recipe("waited", &section), Existing::Refuse).await.unwrap();
    assert_eq!(bench.weights("waited"), bench.weights("whole"));
    // And others, where the machine is slow.
    assert!(fake.requests.load(Ordering::Relaxed) > 32, "the first was asked for again");
}
