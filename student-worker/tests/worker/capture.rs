//! Labels that are captured and replayed: the same student, without a teacher.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use student_worker::{
    capture::{self, Outcome},
    progress::{Event, Observer, Silent},
    recipe::{self, Recipe},
    run_folder::Existing,
    train::{self, Error},
};
use tokio::sync::watch;

use crate::{
    fake_teacher::{Fake, serve_fake},
    support::{BINARY, Bench, endpoints, refused, run, run_watched, serve, text, worker},
};

fn load(bench: &Bench, name: &str, teacher: &str, set: &[&str]) -> Recipe {
    let set: Vec<String> = set.iter().map(|&set| set.to_owned()).collect();
    recipe::load(&bench.write_recipe(name, teacher), &set).unwrap()
}

fn embedded(bench: &Bench, more: &str) -> String {
    format!("[teacher]\nkind = \"embedded\"\nmodel = \"{}\"\n{more}", bench.teacher(1).display())
}

fn captured(folder: &Path, more: &str) -> String {
    format!("[teacher]\nkind = \"captured\"\ndir = \"{}\"\n{more}", folder.display())
}

fn folder(bench: &Bench, name: &str) -> PathBuf {
    bench.path().join("captures").join(name)
}

async fn capture(recipe: Recipe, folder: &Path, existing: Existing) -> Result<Outcome, Error> {
    let (_running, stop) = watch::channel(false);
    capture::run(recipe, folder, existing, Box::new(Silent), stop).await
}

/// Captures until so many requests are stored, in all.
async fn capture_some(recipe: Recipe, folder: &Path, requests: u64) -> Outcome {
    struct StopAt(u64, watch::Sender<bool>);
    impl Observer for StopAt {
        fn on(&mut self, event: &Event<'_>) {
            if let Event::Captured { requests, .. } = event
                && *requests == self.0
            {
                self.1.send_replace(true);
            }
        }
    }
    let (stop, stopping) = watch::channel(false);
    let at = Box::new(StopAt(requests, stop));
    capture::run(recipe, folder, Existing::Resume, at, stopping).await.unwrap()
}

/// Every file of a folder.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

/// Captures the labels of a recipe, and trains it with its teacher and with the capture.
async fn both_ways(bench: &Bench, name: &str, more: &str, set: &[&str]) -> Outcome {
    let folder = folder(bench, name);
    let live = embedded(bench, more);
    let outcome = capture(load(bench, name, &live, set), &folder, Existing::Refuse).await.unwrap();
    assert!(outcome.finished, "{name}");
    run(load(bench, name, &live, set), Existing::Refuse).await.unwrap();
    let again = format!("{name}-again");
    // The encoding is the capture's.
    let replayed = run(load(bench, &again, &captured(&folder, ""), set), Existing::Refuse).await;
    assert_eq!(replayed.unwrap().teacher, outcome.teacher, "{name}");
    assert!(bench.weights(name) == bench.weights(&again), "{name}: other weights");
    outcome
}

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

const SCHEDULE: [&str; 3] = [
    "loss.temperature=8.0",
    "loss_schedule.start_epoch=2",
    "loss_schedule.temperature={kind=\"steps\", steps=[{epoch=3, value=2.7}, {epoch=4, value=8.0}]}",
];

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capture_that_was_cut_anywhere_ends_with_the_same_bytes() {
    let bench = Bench::new();
    for (name, more, set) in [
        ("sampled", "encoding = { kind = \"sampled\", draws = 6 }\nrequest_rows = 5", &[][..]),
        ("hidden", "encoding = { kind = \"hidden\", dtype = \"bf16\" }", &[]),
        ("dense", "request_rows = 7", &SCHEDULE[..]),
    ] {
        let recipe = load(&bench, name, &embedded(&bench, more), set);
        let whole = folder(&bench, name);
        let outcome = capture(recipe.clone(), &whole, Existing::Refuse).await.unwrap();
        let (expected, total) = (files(&whole), outcome.total_requests);

        // Told to stop.
        let cut = folder(&bench, &format!("{name}-stopped"));
        for at in [1, total / 2, total / 2 + 1] {
            let outcome = capture_some(recipe.clone(), &cut, at).await;
            assert!(!outcome.finished && outcome.requests == at, "{name}: {outcome:?}");
            assert_eq!(outcome.bytes_per_row, None);
        }
        let outcome = capture(recipe.clone(), &cut, Existing::Resume).await.unwrap();
        assert!(outcome.finished && files(&cut) == expected, "{name}");

        // Killed: whatever of the labels had been written, and what a system that lost its power
        // makes of the end.
        let labels = fs::read(whole.join("labels.bin")).unwrap();
        let manifest = {
            let some = folder(&bench, &format!("{name}-some"));
            capture_some(recipe.clone(), &some, 1).await;
            fs::read(some.join("capture.json")).unwrap()
        };
        let killed = folder(&bench, &format!("{name}-killed"));
        let first = 20 + u32::from_le_bytes(labels[8..12].try_into().unwrap()) as usize * 4;
        let last = labels.len();
        for (length, zeros, flip) in [
            (0, 0, None),
            (19, 0, None),
            (20, 0, None),
            (21, 0, None),
            (first, 0, None),
            (first + 1, 0, None),
            (last / 2, 0, None),
            (last - 5, 0, None),
            (last - 1, 0, None),
            (last, 0, None),
            (last, 7, None),
            (last, 4096, None),
            (last, 0, Some(last - 1)),
        ] {
            let mut bytes = labels[..length].to_vec();
            bytes.resize(length + zeros, 0);
            if let Some(at) = flip {
                bytes[at] ^= 1;
            }
            let _ = fs::remove_dir_all(&killed);
            fs::create_dir_all(&killed).unwrap();
            fs::write(killed.join("capture.json"), &manifest).unwrap();
            fs::write(killed.join("labels.bin"), bytes).unwrap();
            capture(recipe.clone(), &killed, Existing::Resume).await.unwrap();
            assert!(files(&killed) == expected, "{name}: cut at {length} of {last}");
        }
        // Before the manifest, and between it and the labels.
        for left in [&["capture.lock", "capture.json.partial"][..], &["capture.json"]] {
            fs::remove_dir_all(&killed).unwrap();
            fs::create_dir_all(&killed).unwrap();
            for file in left {
                fs::write(killed.join(file), &manifest).unwrap();
            }
            fs::write(killed.join("capture.lock"), "").unwrap();
            capture(recipe.clone(), &killed, Existing::Resume).await.unwrap();
            assert!(files(&killed) == expected, "{name}: {left:?}");
        }
        // What cannot come of a kill is not gone on from.
        let mut bytes = labels.clone();
        bytes[first + 1] ^= 1;
        fs::write(killed.join("labels.bin"), bytes).unwrap();
        fs::write(killed.join("capture.json"), &manifest).unwrap();
        let error = capture(recipe, &killed, Existing::Resume).await.unwrap_err();
        assert_eq!(error.exit_code(), 64);
        assert!(error.to_string().contains("labels.bin: damaged: a block's checksum"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capture_of_something_else_is_not_gone_on_with() {
    let bench = Bench::new();
    let there = folder(&bench, "cut");
    let live = embedded(&bench, "");
    capture_some(load(&bench, "cut", &live, &[]), &there, 3).await;
    let before = files(&there);
    let top_k = embedded(&bench, "encoding = { kind = \"top_k\", k = 2 }");
    for (teacher, set, expected) in [
        (&live, "seed=8", "seed is 8, but the capture in "),
        (&live, "train.batch_size=8", "train.batch_size is 8, but the capture in "),
        (&live, "loss.temperature=2.0", "loss.temperature (of each part) is [2.0], but "),
        (&live, "data.train_rows=60", "data (rows to train on) is 60, but the capture in "),
        (&live, "data.augment={flip=true}", "data.augment.flip is true, but the capture in "),
        (&top_k, "seed=7", "teacher.encoding.kind is \"top_k\", but the capture in "),
        (&live.replace("teacher-1", "teacher-2"), "seed=7", "teacher (fingerprint) is "),
    ] {
        let recipe = load(&bench, "cut", teacher, &[set]);
        let error = capture(recipe, &there, Existing::Resume).await.unwrap_err();
        assert_eq!(error.exit_code(), 64, "{set}");
        assert!(error.to_string().starts_with(expected), "{set}: {error}");
    }
    let recipe = load(&bench, "cut", &live, &[]);
    let error = capture(recipe.clone(), &there, Existing::Refuse).await.unwrap_err();
    assert!(error.to_string().contains("holds a capture already"), "{error}");
    assert!(files(&there) == before);
    // How the loss weighs labels, or where the student goes, plays no part in them.
    let same = load(&bench, "same", &live, &["loss.alpha=0.5", "train.clip_norm=1.0"]);
    assert!(capture(same, &there, Existing::Resume).await.unwrap().finished);

    let foreign = bench.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.tex"), "").unwrap();
    for existing in [Existing::Refuse, Existing::Resume] {
        let error = capture(recipe.clone(), &foreign, existing).await.unwrap_err();
        assert!(error.to_string().contains("not empty (there is \"thesis.tex\")"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recipe_that_asks_for_other_labels_is_refused() {
    let bench = Bench::new();
    let live = embedded(&bench, "request_rows = 5");
    let there = folder(&bench, "c");
    capture(load(&bench, "c", &live, &[]), &there, Existing::Refuse).await.unwrap();
    let sampled = embedded(&bench, "encoding = { kind = \"sampled\", draws = 6 }");
    let draws = folder(&bench, "draws");
    capture(load(&bench, "draws", &sampled, &[]), &draws, Existing::Refuse).await.unwrap();
    let cut = folder(&bench, "cut");
    capture_some(load(&bench, "cut", &live, &[]), &cut, 3).await;

    let write = |name: &str, images: &str, change: fn(&mut Vec<u8>)| {
        let mut bytes = fs::read(bench.path().join(images)).unwrap();
        change(&mut bytes);
        fs::write(bench.path().join(name), bytes).unwrap();
    };
    write("other-images", "train-images-idx3-ubyte", |bytes| bytes[100] ^= 1);
    let cases = [
        (
            &there,
            "",
            "loss.temperature=2.0",
            "loss.temperature is 2 in epoch 1, but the capture in",
        ),
        (&there, "", "data.train_images=other-images", "data (SHA-256 of the training rows) is \""),
        (&there, "", "data.train_rows=60", "data (rows to train on) is 60, but the capture in"),
        (&there, "", "student.num_labels=4", "student.num_labels is 4, but the capture in"),
        (
            &there,
            "encoding = { kind = \"top_k\", k = 2 }",
            "seed=7",
            "teacher.encoding.kind is \"top_k\", but the capture in",
        ),
        (
            &there,
            "encoding = { dtype = \"bf16\" }",
            "seed=7",
            "teacher.encoding.dtype is \"bf16\", but the capture in",
        ),
        (&there, "ensemble = \"geometric\"", "seed=7", "teacher.ensemble is \"geometric\", but"),
        (
            &there,
            "",
            "loss.divergence={kind=\"logit_mse\"}",
            "teacher.encoding.values is \"logits\", but the capture in",
        ),
        (&draws, "", "seed=8", "seed is 8, but the capture in"),
        (&draws, "", "train.batch_size=8", "train.batch_size is 8, but the capture in"),
        (&draws, "request_rows = 5", "seed=7", "teacher.request_rows is 5, but the capture in"),
        (&draws, "", "train.epochs=5", "train.epochs is such that epoch 5 needs labels"),
        (&draws, "", "loss.temperature=2.0", "loss.temperature is 2 in epoch 1, but the capture"),
        (
            &draws,
            "",
            "loss.divergence={kind=\"reverse_kl\"}",
            "loss.divergence: reverse_kl is not accepted, expected forward_kl or cross_entropy",
        ),
        (&cut, "", "seed=7", "teacher.dir: the capture in "),
        (&bench.path().join("none"), "", "seed=7", "none is no capture: it has no capture.json"),
    ];
    for (folder, more, set, expected) in cases {
        let recipe = load(&bench, "refused", &captured(folder, more), &[set]);
        let error = run(recipe, Existing::Refuse).await.unwrap_err();
        assert_eq!(error.exit_code(), 64, "{set}: {error}");
        assert!(error.to_string().contains(expected), "{set}: {error}");
        assert!(!bench.path().join("runs/refused").exists(), "{set}");
    }
    // What decides no dense label may be other than it was.
    let set = ["seed=8", "train.batch_size=9", "train.epochs=2", "loss.alpha=0.5"];
    let recipe = load(&bench, "free", &captured(&there, "request_rows = 3"), &set);
    assert!(run(recipe, Existing::Refuse).await.unwrap().finished);
}

/// Whatever byte of a capture is another one: the run ends as it would have, or names the file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_byte_is_never_trained_on() {
    let bench = Bench::new();
    let hidden = "encoding = { kind = \"hidden\" }";
    let there = folder(&bench, "hidden");
    let set = ["train.epochs=1"];
    let recipe = load(&bench, "hidden", &embedded(&bench, hidden), &set);
    capture(recipe, &there, Existing::Refuse).await.unwrap();
    let recipe = load(&bench, "replayed", &captured(&there, ""), &set);
    run(recipe.clone(), Existing::Refuse).await.unwrap();
    let expected = bench.weights("replayed");
    let mut random = stillhouse_nn::Philox::new(1, 0);
    for (name, bytes) in files(&there) {
        let path = there.join(&name);
        if name == "capture.lock" {
            continue;
        }
        // Changed, cut, and gone.
        for turn in 0..40 {
            let mut other = bytes.clone();
            let at = random.below(bytes.len() as u32) as usize;
            if turn % 4 == 3 {
                other.truncate(at);
            } else {
                other[at] ^= 1 << (turn % 8);
            }
            fs::write(&path, other).unwrap();
            match run(recipe.clone(), Existing::Replace).await {
                // A name, a space, or a length that plays no part.
                Ok(_) => assert!(name == "capture.json" && bench.weights("replayed") == expected),
                Err(error) => {
                    let text = error.to_string();
                    let named = text.contains(&name) || name == "capture.json";
                    assert!(named && error.exit_code() == 64, "{name} {at}: {text}");
                }
            }
        }
        fs::remove_file(&path).unwrap();
        let error = run(recipe.clone(), Existing::Replace).await.unwrap_err().to_string();
        assert!(error.contains(&name), "{error}");
        fs::write(&path, bytes).unwrap();
    }
    // A manifest that goes with other labels than those of the data.
    let labels = there.join("labels.bin");
    let bytes = fs::read(&labels).unwrap();
    let manifest = fs::read_to_string(there.join("capture.json")).unwrap();
    let half = bytes.len() / 2;
    let (first, _) = bytes.split_at(half);
    fs::write(&labels, first).unwrap();
    let length = format!("\"bytes\": {}", bytes.len());
    assert!(manifest.contains(&length), "{manifest}");
    fs::write(there.join("capture.json"), manifest.replace(&length, &format!("\"bytes\": {half}")))
        .unwrap();
    let error = run(recipe, Existing::Replace).await.unwrap_err().to_string();
    assert!(error.contains("labels.bin: damaged: it ends within a block"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_is_one_captures_at_a_time() {
    let bench = Bench::new();
    let recipe = load(&bench, "c", &embedded(&bench, ""), &[]);
    let there = folder(&bench, "c");
    capture_some(recipe.clone(), &there, 2).await;
    let lock = fs::File::options().write(true).open(there.join("capture.lock")).unwrap();
    lock.lock().unwrap();
    let error = capture(recipe, &there, Existing::Resume).await.unwrap_err();
    assert_eq!(error.exit_code(), 75);
    assert!(error.to_string().contains("another capture is at work in"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_teacher_that_is_lost_costs_nothing_that_was_stored() {
    let bench = Bench::new();
    let teacher = serve(bench.teacher(1), 0).await;
    let patience = "retry = { max_elapsed_seconds = 0.5, initial_ms = 5, max_ms = 50 }";
    let section = format!(
        "[teacher]\nkind = \"endpoints\"\nendpoints = [\"http://{}\"]\n{patience}\n\
         request_rows = 1",
        teacher.address()
    );
    let recipe = load(&bench, "c", &section, &[]);
    let there = folder(&bench, "c");
    capture_some(recipe.clone(), &there, 10).await;
    let port = teacher.address().port();
    teacher.shutdown().await.unwrap();
    let before = fs::read(there.join("labels.bin")).unwrap();
    let error = capture(recipe.clone(), &there, Existing::Resume).await.unwrap_err();
    assert_eq!(error.exit_code(), 75, "{error}");
    assert_eq!(fs::read(there.join("labels.bin")).unwrap(), before);
    let teacher = serve(bench.teacher(1), port).await;
    assert!(capture(recipe, &there, Existing::Resume).await.unwrap().finished);
    teacher.shutdown().await.unwrap();
}

#[test]
fn the_command_captures_and_says_how_large_labels_are() {
    let bench = Bench::new();
    let file = bench.write_recipe("c", &embedded(&bench, "request_rows = 8"));
    let out = bench.path().join("out");
    let arguments = ["capture", text(&file), "--out", text(&out)];
    let output = worker(&arguments);
    let words = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // 24 bytes for each 8 rows, 4 and 12 for each.
    assert!(
        words.starts_with("c: labels of 120 rows: 2280 bytes, 19.0 a label, after "),
        "{words}"
    );
    assert!(String::from_utf8(output.stderr).unwrap().contains("15 requests for 120 labels"));
    refused(&arguments, 64, "holds a capture already");

    let output = worker(&[&arguments[..], &["--resume", "--json"]].concat());
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&value["bytes_per_row"], &value["finished"]), (&19.0.into(), &true.into()));
    assert!(output.stderr.is_empty());
    // A capture that is complete is checked.
    let labels = out.join("labels.bin");
    let mut bytes = fs::read(&labels).unwrap();
    bytes[30] ^= 1;
    fs::write(&labels, bytes).unwrap();
    refused(&[&arguments[..], &["--resume"]].concat(), 64, "labels.bin: damaged");

    let default = std::process::Command::new(BINARY)
        .args(&arguments[..2])
        .current_dir(bench.path())
        .output()
        .unwrap();
    assert!(default.status.success());
    assert!(bench.path().join("captures/c/capture.json").is_file());

    let hard = bench.write_recipe("hard", "");
    refused(&["capture", text(&hard)], 64, "teacher: no section is not accepted, expected one");
    let replayed = bench.write_recipe("replayed", &captured(&out, ""));
    refused(&["capture", text(&replayed)], 64, "teacher.kind: \"captured\" is not accepted");
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
