//! A student of captured labels is the student of their teacher.

use std::{fs, sync::Arc};

use student_worker::{run_folder::Existing, train};
use tokio::sync::watch;

use super::{SCHEDULE, both_ways, capture, captured, embedded, folder, load};
use crate::{
    fake_teacher::{Fake, serve_fake},
    support::{Bench, endpoints, run, run_watched},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_encoding_gives_the_students_of_its_teacher() {
    let bench = Bench::new();
    let mut weights = Vec::new();
    for (kind, bytes) in [
        ("kind = \"dense\"", [12, 6, 6]),
        ("kind = \"dense\", values = \"logits\"", [12, 6, 6]),
        ("kind = \"top_k\", k = 2", [1 + 8 + 4, 1 + 4 + 4, 1 + 4 + 4]),
        ("kind = \"hidden\"", [48, 24, 24]),
    ] {
        for (dtype, bytes) in ["f32", "f16", "bf16"].into_iter().zip(bytes) {
            let name = format!("run-{}", weights.len());
            // Requests of 5, 5, 5 and 1 rows; a batch of 8 rows ends the epoch.
            let more = format!("encoding = {{ {kind}, dtype = \"{dtype}\" }}\nrequest_rows = 5");
            let outcome = both_ways(&bench, &name, &more, &[]).await;
            let requests = 7 * 4 + 2;
            assert_eq!((outcome.total_requests, outcome.requests), (requests, requests), "{more}");
            assert_eq!((outcome.rows, outcome.labels_per_row), (120, 1), "{more}");
            // 24 bytes of each block, 4 of each row, and the labels.
            let expected = requests * 24 + 120 * (4 + bytes);
            assert_eq!(outcome.bytes, expected, "{more}");
            let mean = outcome.bytes_per_row.unwrap();
            assert!((mean - expected as f64 / 120.0).abs() < 1e-9);
            weights.push(bench.weights(&name));
        }
    }
    // The element type is that of the labels that are trained on.
    for of_kind in weights.chunks(3) {
        assert!(of_kind[0] != of_kind[1] && of_kind[0] != of_kind[2] && of_kind[1] != of_kind[2]);
    }
    // Logits and f32 hidden states are the same numbers.
    assert_eq!(weights[3], weights[9]);

    let sampled = "encoding = { kind = \"sampled\", draws = 6 }\nrequest_rows = 5";
    let outcome = both_ways(&bench, "sampled", sampled, &[]).await;
    assert_eq!((outcome.total_requests, outcome.labels_per_row), (4 * 30, 4));
    // 1 to 3 distinct ids of 2 bits, counts of 3 bits.
    let mean = outcome.bytes_per_row.unwrap();
    assert!((4.0 + 2.0 + 2.0..=4.0 + 2.0 + 1.0 + 2.0 + 24.0 / 4.0).contains(&mean), "{mean}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn temperatures_are_captured_once_each_from_the_start_of_distillation_on() {
    let bench = Bench::new();
    let fake = Arc::new(Fake::new());
    let teacher = endpoints(&[serve_fake(Arc::clone(&fake)).await], "");
    let there = folder(&bench, "asked");
    capture(load(&bench, "asked", &teacher, &SCHEDULE), &there, Existing::Refuse).await.unwrap();
    // Epochs of 8 requests: the second and the third; the fourth has the second's labels.
    assert_eq!(*fake.temperatures.lock().unwrap(), [[8.0; 8], [2.7; 8]].concat());

    for (name, more, labels) in [
        ("dense", "", 2),
        ("logits", "encoding = { kind = \"dense\", values = \"logits\" }", 1),
        ("hidden", "encoding = { kind = \"hidden\" }", 1),
        ("top_k", "encoding = { kind = \"top_k\", k = 2 }", 2),
        ("sampled", "encoding = { kind = \"sampled\", draws = 6 }", 3),
    ] {
        let outcome = both_ways(&bench, name, more, &SCHEDULE).await;
        assert_eq!(outcome.labels_per_row, labels, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moved_images_have_labels_of_their_own_in_every_epoch() {
    let bench = Bench::new();
    let set = ["data.augment={shift=1, flip=true}"];
    let outcome = both_ways(&bench, "moved", "", &set).await;
    assert_eq!(outcome.labels_per_row, 4);
    // More epochs than there are labels of; and views of another seed.
    let moved = captured(&folder(&bench, "moved"), "");
    for (more, expected) in [
        ("train.epochs=5", "train.epochs is such that epoch 5 needs labels, but the capture in"),
        ("seed=8", "seed is 8, but the capture in"),
        ("data.augment={shift=1}", "data.augment.flip is false, but the capture in"),
    ] {
        let recipe = load(&bench, "other", &moved, &[set[0], more]);
        let error = run(recipe, Existing::Refuse).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_capture_of_logits_serves_every_loss() {
    let bench = Bench::new();
    let logits = "encoding = { kind = \"dense\", values = \"logits\" }";
    let there = folder(&bench, "logits");
    let recipe = load(&bench, "logits", &embedded(&bench, logits), &[]);
    capture(recipe, &there, Existing::Refuse).await.unwrap();
    for (name, more, set) in [
        ("warm", logits, &["loss.temperature=9.0", "seed=3", "train.batch_size=7"][..]),
        ("reverse", logits, &["loss.divergence={kind=\"reverse_kl\"}"]),
        ("variation", logits, &["loss.divergence={kind=\"total_variation\"}"]),
        ("matching", "", &["loss.divergence={kind=\"logit_mse\"}", "train.epochs=5"]),
    ] {
        run(load(&bench, name, &embedded(&bench, more), set), Existing::Refuse).await.unwrap();
        let again = format!("{name}-again");
        let recipe = load(&bench, &again, &captured(&there, ""), set);
        run(recipe, Existing::Refuse).await.unwrap();
        assert!(bench.weights(name) == bench.weights(&again), "{name}: other weights");
    }
    // A loss that compares logits asks for them by itself: the same labels.
    let set = ["loss.divergence={kind=\"logit_mse\"}"];
    let recipe = load(&bench, "logits", &embedded(&bench, ""), &set);
    assert!(capture(recipe, &there, Existing::Resume).await.unwrap().finished);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_changes_between_teacher_and_capture_at_any_step() {
    let bench = Bench::new();
    for more in ["", "encoding = { kind = \"sampled\", draws = 6 }\nrequest_rows = 5"] {
        let whole = format!("whole-{}", more.len());
        let there = folder(&bench, &whole);
        let live = embedded(&bench, more);
        both_ways(&bench, &whole, more, &[]).await;
        let replayed = captured(&there, "");
        for (number, teachers) in
            [[&live, &replayed, &live], [&replayed, &live, &replayed]].into_iter().enumerate()
        {
            let name = format!("{whole}-{number}");
            for (teacher, at) in teachers.into_iter().zip([5, 20, u64::MAX]) {
                let (stop, stopping) = watch::channel(false);
                let watch = move |step| {
                    if step == at {
                        stop.send_replace(true);
                    }
                };
                let recipe = load(&bench, &name, teacher, &[]);
                run_watched(recipe, Existing::Resume, stopping, watch).await.unwrap();
            }
            assert!(bench.weights(&name) == bench.weights(&whole), "{name}: other weights");
        }
        // And not to the labels of another teacher.
        let other = live.replace("teacher-1", "teacher-2");
        let name = format!("{whole}-other");
        let there = folder(&bench, &name);
        capture(load(&bench, &name, &other, &[]), &there, Existing::Refuse).await.unwrap();
        let (stop, stopping) = watch::channel(false);
        let watch = move |step| {
            if step == 5 {
                stop.send_replace(true);
            }
        };
        let recipe = load(&bench, &name, &live, &[]);
        run_watched(recipe, Existing::Refuse, stopping, watch).await.unwrap();
        let recipe = load(&bench, &name, &captured(&there, ""), &[]);
        let error = run(recipe, Existing::Resume).await.unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.starts_with("teacher (fingerprint) is "), "{cause}");
    }
}

/// The outcome of a run that is done, without labels.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_done_needs_no_labels_any_more() {
    let bench = Bench::new();
    let there = folder(&bench, "c");
    let live = load(&bench, "c", &embedded(&bench, ""), &[]);
    capture(live, &there, Existing::Refuse).await.unwrap();
    let recipe = load(&bench, "run", &captured(&there, ""), &[]);
    let before: train::Outcome = run(recipe.clone(), Existing::Refuse).await.unwrap();
    fs::remove_file(there.join("labels.bin")).unwrap();
    assert_eq!(run(recipe, Existing::Resume).await.unwrap(), before);
}
