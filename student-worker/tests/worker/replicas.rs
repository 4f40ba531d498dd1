//! Several endpoints: one may go, all must be the same.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex, atomic::Ordering},
    time::{Duration, Instant},
};

use stillhouse_proto::v1::{
    DType, EncodingKind, Tensor, label_request::Inputs, teacher_service_server::SERVICE_NAME,
};
use student_worker::{
    label_client::{
        ClientError, Job, LabelClient, Names, OrderedLabels, Patience, Probe, Teachers, Wanted,
    },
    run_folder::Existing,
    train::Error,
};
use tokio::sync::{mpsc, watch};
use tonic::Code;
use tonic_health::ServingStatus;

use crate::{
    fake_teacher::{Fake, Fault, serve_fake, serve_fake_with_health},
    support::{Bench, CLASSES, SIDE, endpoints, keeping, run, run_watched, serve, slow_step},
};

/// Requests that are under way at a time, at most: a default `prefetch` of 4, and half as many more.
const UNDER_WAY: u32 = 6;

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

/// Where dense labels may not be had, those that the run asks for are compared.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_liar_is_found_without_dense_labels() {
    let bench = Bench::new();
    let top_k = EncodingKind::TopK;
    let fake = |bias, encodings| Arc::new(Fake { bias, encodings, ..Fake::new() });
    let honest = serve_fake(fake(0.0, vec![top_k])).await;
    let other = serve_fake(fake(0.0, vec![top_k])).await;
    let liar = serve_fake(fake(0.1, vec![top_k])).await;
    let top = "encoding = { kind = \"top_k\", k = 1 }\n";
    let both = endpoints(&[honest, other], top);
    run(bench.recipe("same", &both), Existing::Refuse).await.unwrap();
    let both = endpoints(&[honest, liar], top);
    let error = run(bench.recipe("mixed", &both), Existing::Refuse).await.unwrap_err();
    assert!(matches!(error, Error::Labels(ClientError::Disagrees { .. })), "{error}");
    assert!(error.to_string().contains(" in a probability, expected at most 0.005"), "{error}");
    // Who may be asked for dense labels, since what a client may have was changed, is not compared with who may not.
    let dense = serve_fake(fake(0.0, vec![EncodingKind::Dense, top_k])).await;
    let both = endpoints(&[honest, dense], top);
    run(bench.recipe("other", &both), Existing::Refuse).await.unwrap();
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
    assert!((1..=UNDER_WAY).contains(&changed.requests.load(Ordering::Relaxed)));
    assert_eq!(bench.weights("left"), bench.weights("whole"));
    assert_eq!(changed.streams.load(Ordering::Relaxed), 1, "it was asked again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_only_fails_is_set_aside_and_one_that_refuses_alone_is_not_believed() {
    let bench = Bench::new();
    let first = serve_fake(Arc::new(Fake::new())).await;
    run(bench.recipe("whole", &endpoints(&[first], "")), Existing::Refuse).await.unwrap();
    for (name, fault) in [
        ("internal", Fault::Error(Code::Internal, 0)),
        ("lost", Fault::Error(Code::Unavailable, 0)),
        ("not-finite", Fault::Row),
        ("garbage", Fault::Garbage),
        ("nothing", Fault::Nothing),
        ("changed", Fault::Changed),
    ] {
        let sick = Arc::new(Fake { sums: true, ..Fake::with(vec![fault; 10_000]) });
        let second = serve_fake(Arc::clone(&sick)).await;
        let both = endpoints(&[first, second], "");
        run(bench.recipe(name, &both), Existing::Refuse).await.unwrap();
        assert_eq!(bench.weights(name), bench.weights("whole"));
        // What is under way to it at one time; it is not asked again and again.
        let asked = sick.requests.load(Ordering::Relaxed);
        assert!((1..=30).contains(&asked), "{name}: {asked}");
    }
}

/// The one that is left fails for as long as the other is away: its word alone ends no run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_replica_refuses_alone_waits_for_others_that_may_come_back() {
    let bench = Bench::new();
    let first = serve_fake(Arc::new(Fake::new())).await;
    run(bench.recipe("whole", &endpoints(&[first], "")), Existing::Refuse).await.unwrap();

    for (name, fault) in [("internal", Fault::Error(Code::Internal, 0)), ("row", Fault::Row)] {
        let sick = Arc::new(Fake::with(vec![fault; 10_000]));
        let second = serve_fake(Arc::clone(&sick)).await;
        let (third, health) = serve_fake_with_health(Arc::new(Fake::new())).await;
        let say = |status| health.set_service_status(SERVICE_NAME, status);
        say(ServingStatus::NotServing).await;
        let recipe = bench.recipe(name, &endpoints(&[second, third], ""));
        let running = tokio::spawn(run(recipe, Existing::Refuse));
        // More than twice for each request that is under way at one time.
        while sick.requests.load(Ordering::Relaxed) < 20 && !running.is_finished() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        say(ServingStatus::Serving).await;
        let outcome = running.await.unwrap();
        assert!(outcome.unwrap_or_else(|error| panic!("{name}: {error}")).finished);
        assert_eq!(bench.weights(name), bench.weights("whole"));
    }
}

/// Its stream stays open and it would answer; it only says that it should not be asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_says_it_is_not_serving_is_not_asked_until_it_says_otherwise() {
    let bench = Bench::new();
    let recipe = |name: &str, both: &str| {
        let mut recipe = bench.recipe(name, both);
        recipe.train.epochs = 60;
        recipe
    };
    let first = serve_fake(Arc::new(Fake::new())).await;
    let whole = recipe("whole", &endpoints(&[first], ""));
    run(whole, Existing::Refuse).await.unwrap();

    let moody = Arc::new(Fake::new());
    let (second, health) = serve_fake_with_health(Arc::clone(&moody)).await;
    let say = |status| health.set_service_status(SERVICE_NAME, status);
    say(ServingStatus::Serving).await;
    let asked = || moody.requests.load(Ordering::Relaxed);
    let (reached, mut steps) = mpsc::unbounded_channel();
    let (_running, stop) = watch::channel(false);
    let both = recipe("moody", &endpoints(&[first, second], ""));
    let running = tokio::spawn(run_watched(both, Existing::Refuse, stop, move |step| {
        let _ = reached.send(step);
        slow_step();
    }));
    let mut step = async || steps.recv().await.expect("the run is longer than that");
    while asked() < 5 {
        step().await;
    }
    say(ServingStatus::NotServing).await;
    let told = step().await;
    while step().await < told + 20 {}
    let before = asked();
    while step().await < told + 100 {}
    assert_eq!(asked(), before, "it is not serving");
    say(ServingStatus::Serving).await;
    while asked() < before + 5 {
        step().await;
    }
    assert!(running.await.unwrap().unwrap().finished);
    assert_eq!(bench.weights("moody"), bench.weights("whole"));
    assert_eq!(moody.streams.load(Ordering::Relaxed), 1, "its stream was open all the time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_that_all_replicas_repeat_is_believed() {
    let bench = Bench::new();
    for (name, fault, expected) in [
        (
            "refused",
            Fault::Error(Code::InvalidArgument, 0),
            "was refused: INVALID_ARGUMENT: as told",
        ),
        ("not-finite", Fault::Row, "row 3: not finite"),
    ] {
        let sick = || Arc::new(Fake::with(vec![fault.clone(); 10_000]));
        let both = [serve_fake(sick()).await, serve_fake(sick()).await];
        let error = run(bench.recipe(name, &endpoints(&both, "")), Existing::Refuse).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// Rows of one request and none of the next: the pixels of the fake teachers' rows tell them apart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_row_is_asked_of_one_replica_in_every_epoch() {
    let bench = Bench::new();
    let fakes = [Arc::new(Fake::new()), Arc::new(Fake::new())];
    let first = serve_fake(Arc::clone(&fakes[0])).await;
    run(bench.recipe("whole", &endpoints(&[first], "")), Existing::Refuse).await.unwrap();
    fakes[0].rows.lock().unwrap().clear();

    let second = serve_fake(Arc::clone(&fakes[1])).await;
    let both = endpoints(&[first, second], "");
    run(bench.recipe("shared", &both), Existing::Refuse).await.unwrap();
    assert_eq!(bench.weights("shared"), bench.weights("whole"));
    let [one, other] = fakes.map(|fake| std::mem::take(&mut *fake.rows.lock().unwrap()));
    let all: usize = one.values().chain(other.values()).sum();
    assert_eq!(all, 4 * 120, "4 epochs of 120 rows, each asked for once");
    assert!(one.len() > 30 && other.len() > 30, "{} and {}", one.len(), other.len());
    let shared = one.keys().filter(|row| other.contains_key(*row)).count();
    // Some go elsewhere while one of them is slow. Shared out without regard to the row, 105 would.
    assert!(shared <= 60, "{shared} rows were asked of both");
}

/// As many as there is room for: the bytes of one row's labels, and what it costs to find them again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_come_again_are_not_asked_for_again() {
    let bench = Bench::new();
    let fake = Arc::new(Fake::new());
    let address = serve_fake(Arc::clone(&fake)).await;
    let asked = || fake.rows.lock().unwrap().drain().map(|(_, times)| times).sum::<usize>();
    run(bench.recipe("asked", &endpoints(&[address], "")), Existing::Refuse).await.unwrap();
    assert_eq!(asked(), 4 * 120);
    let row = 4 * CLASSES as usize + 128;
    // Nothing is asked for ahead: a row of the next epoch might be before its labels are there.
    let ahead = "prefetch = 0";
    for (name, room, expected) in [("half", 60 * row, 120 + 3 * 60), ("all", 1 << 20, 120)] {
        let recipe = bench.recipe(name, &keeping(room, &[address], ahead));
        run(recipe, Existing::Refuse).await.unwrap();
        assert_eq!(asked(), expected, "{name}");
        assert_eq!(bench.weights(name), bench.weights("asked"), "{name}");
    }
    // At another temperature they have other labels.
    let schedule =
        "[loss_schedule.temperature]\nkind = \"steps\"\nsteps = [{ epoch = 3, value = 2.0 }]";
    for (name, room, expected) in [("changed-asked", 0, 4 * 120), ("changed", 1 << 20, 2 * 120)] {
        let section = format!("{}\n{schedule}", keeping(room, &[address], ahead));
        run(bench.recipe(name, &section), Existing::Refuse).await.unwrap();
        assert_eq!(asked(), expected, "{name}");
    }
    assert_eq!(bench.weights("changed"), bench.weights("changed-asked"));
    assert_ne!(bench.weights("changed"), bench.weights("all"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_silent_replica_owes_is_asked_of_the_others_long_before_its_time_is_over() {
    let bench = Bench::new();
    let steady = Arc::new(Fake::new());
    let first = serve_fake(Arc::clone(&steady)).await;
    run(bench.recipe("whole", &endpoints(&[first], "")), Existing::Refuse).await.unwrap();

    let silent = Arc::new(Fake::with(vec![Fault::Silence; 1000]));
    let second = serve_fake(Arc::clone(&silent)).await;
    let both = endpoints(&[first, second], "timeout_ms = 60000");
    let begun = Instant::now();
    run(bench.recipe("late", &both), Existing::Refuse).await.unwrap();
    assert_eq!(bench.weights("late"), bench.weights("whole"));
    let asked = silent.requests.load(Ordering::Relaxed);
    assert!(
        (1..=UNDER_WAY).contains(&asked),
        "{asked} requests went to a replica that does not answer"
    );
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

/// Endless rows' labels, 256 different ones, one row a request, from whatever a name stands for.
async fn labels_of_a_name(
    bench: &Bench,
    stands_for: &Arc<Mutex<Vec<SocketAddr>>>,
) -> OrderedLabels {
    let looked_up = Arc::clone(stands_for);
    let names = Names::new(
        move |host, port| {
            assert_eq!((host.as_str(), port), ("teachers", 7070));
            std::future::ready(Ok(looked_up.lock().unwrap().clone()))
        },
        Duration::from_millis(20),
    );
    let first = stands_for.lock().unwrap()[0];
    let recipe = bench.recipe("named", &endpoints(&[first], "prefetch = 2"));
    let section = recipe.teacher.clone().unwrap();
    let wanted = Wanted::new(&recipe, &section);
    let features = |row: u8| {
        let data = vec![row; (SIDE * SIDE) as usize].into();
        let shape = vec![1, (SIDE * SIDE).into()];
        Inputs::Features(Tensor { dtype: DType::U8.into(), shape, data })
    };
    let probe = Probe { inputs: features(1), floats: None, rows: 1 };
    let endpoints = vec!["http://teachers:7070".to_owned()];
    let teachers = Teachers { names, ..Teachers::at(endpoints) };
    let patience = Patience::new(&section, 1);
    let client = LabelClient::connect(&teachers, wanted, probe, patience).await.unwrap();
    let temperature = recipe.loss.temperature as f32;
    client.labels((0..u64::MAX).map(move |index| Job {
        index,
        inputs: features(index as u8),
        rows: 1,
        temperature,
        seed: 0,
        whole: false,
    }))
}

/// A name stands for one teacher, then for another, while the labels of a run are under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_comes_to_stand_for_another_replica_moves_the_work() {
    let bench = Bench::new();
    let fakes = [Arc::new(Fake::new()), Arc::new(Fake::new())];
    let first = serve_fake(Arc::clone(&fakes[0])).await;
    let second = serve_fake(Arc::clone(&fakes[1])).await;
    let stands_for = Arc::new(Mutex::new(vec![first]));
    let mut labels = labels_of_a_name(&bench, &stands_for).await;
    let mut next = 0;
    let mut take = async |labels: &mut OrderedLabels| {
        let labelled = labels.next().await.unwrap().unwrap();
        assert_eq!(labelled.index, next);
        next += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    for _ in 0..20 {
        take(&mut labels).await;
    }
    let asked = |of: usize| fakes[of].requests.load(Ordering::Relaxed);
    assert_eq!(asked(1), 0);
    *stands_for.lock().unwrap() = vec![second];
    while asked(1) < 20 {
        take(&mut labels).await;
    }
    let before = asked(0);
    for _ in 0..50 {
        take(&mut labels).await;
    }
    assert_eq!(asked(0), before, "the replica that is gone is asked for nothing");
    // Both: the rows are shared out.
    *stands_for.lock().unwrap() = vec![first, second];
    while asked(0) < before + 20 {
        take(&mut labels).await;
    }
}

/// One that was there when a name stood for a single replica, and one that came later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn students_agree_on_a_rows_replica_whenever_they_came() {
    let bench = Bench::new();
    let fakes = [Arc::new(Fake::new()), Arc::new(Fake::new())];
    let first = serve_fake(Arc::clone(&fakes[0])).await;
    let second = serve_fake(Arc::clone(&fakes[1])).await;
    let stands_for = Arc::new(Mutex::new(vec![first]));
    let mut early = labels_of_a_name(&bench, &stands_for).await;
    early.next().await.unwrap().unwrap();
    *stands_for.lock().unwrap() = vec![first, second];
    while fakes[1].requests.load(Ordering::Relaxed) == 0 {
        early.next().await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut late = labels_of_a_name(&bench, &stands_for).await;
    for labels in [&mut early, &mut late] {
        for _ in 0..40 {
            labels.next().await.unwrap().unwrap();
        }
    }
    // The rows that each replica is asked for by one of them, all of them more than once.
    let mut homes = Vec::new();
    for labels in [&mut early, &mut late] {
        fakes.iter().for_each(|fake| fake.rows.lock().unwrap().clear());
        for _ in 0..600 {
            labels.next().await.unwrap().unwrap();
        }
        let rows = |fake: &Arc<Fake>| {
            fake.rows.lock().unwrap().keys().map(|row| row[0]).collect::<BTreeSet<u8>>()
        };
        homes.push(fakes.iter().map(rows).collect::<Vec<_>>());
    }
    assert!(homes[0].iter().all(|rows| rows.len() > 64), "{homes:?}");
    assert_eq!(homes[0], homes[1]);
}

/// One request of the second replica is lost, and nothing else: it is connected to anew, and asked again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_lost_one_request_is_asked_again_after_a_while() {
    let bench = Bench::new();
    let first = serve_fake(Arc::new(Fake::new())).await;
    let forgetful = Arc::new(Fake::with(vec![Fault::Silence]));
    let second = serve_fake(Arc::clone(&forgetful)).await;
    let mut recipe = bench.recipe("forgotten", &endpoints(&[first, second], "timeout_ms = 2000"));
    recipe.train.epochs = 60;
    let (_running, stop) = watch::channel(false);
    let asked = Arc::clone(&forgetful);
    let outcome = run_watched(recipe, Existing::Refuse, stop, move |_| {
        slow_step();
        let _ = asked.streams.load(Ordering::Relaxed);
    });
    assert!(outcome.await.unwrap().finished);
    // On a slow machine more often than for the one that was lost.
    assert!(forgetful.streams.load(Ordering::Relaxed) >= 2, "it was connected to anew");
    let asked = forgetful.requests.load(Ordering::Relaxed);
    assert!(asked > 50, "{asked} requests went to it");
}

/// Rolling out a server that knows checksums: the old ones' answers count as before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_with_and_without_checksums_work_together() {
    let bench = Bench::new();
    let fakes = [false, true].map(|sums| Arc::new(Fake { sums, ..Fake::new() }));
    let first = serve_fake(Arc::clone(&fakes[0])).await;
    run(bench.recipe("whole", &endpoints(&[first], "")), Existing::Refuse).await.unwrap();
    let second = serve_fake(Arc::clone(&fakes[1])).await;
    let both = endpoints(&[first, second], "");
    run(bench.recipe("mixed", &both), Existing::Refuse).await.unwrap();
    assert_eq!(bench.weights("mixed"), bench.weights("whole"));
    assert!(fakes.iter().all(|fake| fake.requests.load(Ordering::Relaxed) > 0));
}

/// An answer that is another request's, or whose checksum was changed, is asked for again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_was_changed_on_the_way_is_asked_for_again() {
    let bench = Bench::new();
    let fake = Arc::new(Fake { sums: true, ..Fake::new() });
    let first = serve_fake(Arc::clone(&fake)).await;
    run(bench.recipe("whole", &endpoints(&[first], "")), Existing::Refuse).await.unwrap();
    let changed = Arc::new(Fake { sums: true, ..Fake::with(vec![Fault::Changed; 3]) });
    let second = serve_fake(Arc::clone(&changed)).await;
    run(bench.recipe("changed", &endpoints(&[second], "")), Existing::Refuse).await.unwrap();
    assert_eq!(bench.weights("changed"), bench.weights("whole"));
    assert_eq!(changed.requests.load(Ordering::Relaxed), 32 + 3);
}
