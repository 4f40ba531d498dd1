//! What a capture cannot serve.

use std::fs;

use student_worker::run_folder::Existing;

use super::{capture, capture_some, captured, embedded, files, folder, load};
use crate::support::{Bench, run};

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
