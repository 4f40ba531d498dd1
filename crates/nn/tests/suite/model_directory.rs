//! A model directory that is not one: the error names file, tensor, found and expected.

use std::path::Path;

use stillhouse_nn::{Classifier, MlpConfig, ModelConfig, ModelError, Trainer, TrainerConfig};

fn trainer(seed: u64) -> Trainer {
    let model = ModelConfig::Mlp(MlpConfig::new(3, vec![4], 2));
    Trainer::new(TrainerConfig { seed, ..TrainerConfig::new(model, 1) }).unwrap()
}

/// Loads a saved model after `change` has had its way with the directory.
fn load(change: impl FnOnce(&Path)) -> Result<Classifier, ModelError> {
    let dir = tempfile::tempdir().unwrap();
    trainer(0).save_model(dir.path()).unwrap();
    change(dir.path());
    Classifier::load(dir.path())
}

#[track_caller]
fn refused(change: impl FnOnce(&Path), words: &[&str]) {
    let error = load(change).unwrap_err().to_string();
    for word in words {
        assert!(error.contains(word), "{error:?} lacks {word:?}");
    }
}

fn config(dir: &Path, from: &str, to: &str) {
    let path = dir.join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn what_was_saved_is_loaded() {
    let classifier = load(|_| ()).unwrap();
    assert_eq!(*classifier.config(), ModelConfig::Mlp(MlpConfig::new(3, vec![4], 2)));
    assert_eq!(classifier.rescale_factor(), 1.0 / 255.0);
    assert_eq!(classifier.fingerprint(), load(|_| ()).unwrap().fingerprint());
}

#[test]
fn another_seed_has_another_fingerprint() {
    let dir = tempfile::tempdir().unwrap();
    trainer(1).save_model(dir.path()).unwrap();
    let other = Classifier::load(dir.path()).unwrap();
    assert_ne!(other.fingerprint(), load(|_| ()).unwrap().fingerprint());
}

#[test]
fn missing_files() {
    refused(|dir| std::fs::remove_file(dir.join("config.json")).unwrap(), &["config.json"]);
    let weights = "model.safetensors";
    refused(|dir| std::fs::remove_file(dir.join(weights)).unwrap(), &[weights]);
}

#[test]
fn missing_unexpected_and_misshapen_tensors() {
    // What the file lacks or has too much of, seen from a configuration that was changed.
    refused(
        |dir| config(dir, "\"hidden_sizes\": [\n    4\n  ]", "\"hidden_sizes\": [4, 2]"),
        &["model.safetensors", "layers.2.bias is missing", "expected shape [2]"],
    );
    refused(
        |dir| config(dir, "\"hidden_sizes\": [\n    4\n  ]", "\"hidden_sizes\": []"),
        &["model.safetensors", "layers.1.", "unexpected", "layers.0.bias, layers.0.weight"],
    );
    refused(
        |dir| config(dir, "\"input_size\": 3", "\"input_size\": 5"),
        &["layers.0.weight has shape [4, 3]", "expected [4, 5]"],
    );
}

#[test]
fn truncated_weights() {
    for keep in [0, 7, 40, 200] {
        refused(
            |dir| {
                let path = dir.join("model.safetensors");
                let bytes = std::fs::read(&path).unwrap();
                std::fs::write(path, &bytes[..keep]).unwrap();
            },
            &["model.safetensors", &format!("({keep} bytes)")],
        );
    }
}

#[test]
fn nan_weights() {
    refused(
        |dir| {
            let path = dir.join("model.safetensors");
            let mut bytes = std::fs::read(&path).unwrap();
            let end = bytes.len();
            bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
            std::fs::write(path, bytes).unwrap();
        },
        &["model.safetensors", "layers.1.weight holds NaN at element 7", "finite"],
    );
}

#[test]
fn unknown_architecture() {
    refused(|dir| config(dir, "\"mlp\"", "\"gpt9\""), &["config.json", "\"gpt9\"", "mlp"]);
}
