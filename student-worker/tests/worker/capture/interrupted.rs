//! A capture that is cut short goes on, and ends the same.

use std::fs;

use student_worker::run_folder::Existing;

use super::{SCHEDULE, capture, capture_some, embedded, files, folder, load};
use crate::support::{Bench, endpoints, own_port, serve};

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
        assert!(!foreign.join("capture.lock").exists());
    }
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
    let (_held, address) = own_port();
    let teacher = serve(bench.teacher(1), address.port()).await;
    let section = endpoints(&[address], "request_rows = 1");
    let recipe = load(&bench, "c", &section, &[]);
    let there = folder(&bench, "c");
    capture_some(recipe.clone(), &there, 10).await;
    teacher.shutdown().await.unwrap();
    let before = fs::read(there.join("labels.bin")).unwrap();
    // Nobody comes: there is nothing to be patient for.
    let hasty = load(&bench, "c", &section, &["teacher.retry.max_elapsed_seconds=0.5"]);
    let error = capture(hasty, &there, Existing::Resume).await.unwrap_err();
    assert_eq!(error.exit_code(), 75, "{error}");
    assert_eq!(fs::read(there.join("labels.bin")).unwrap(), before);
    let teacher = serve(bench.teacher(1), address.port()).await;
    assert!(capture(recipe, &there, Existing::Resume).await.unwrap().finished);
    teacher.shutdown().await.unwrap();
}
