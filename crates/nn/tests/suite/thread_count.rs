//! The number of threads changes no bit, neither of training nor of inference.

use std::process::Command;

use sha2::{Digest as _, Sha256};
use stillhouse_nn::{
    Batch, Classifier, LossConfig, MlpConfig, ModelConfig, Philox, SoftTarget, Trainer,
    TrainerConfig,
};

use crate::support::{normals32, read_model};
use crate::{image_models, text_training};

/// Set in the processes that the test starts.
const CHILD: &str = "STILLHOUSE_THREAD_COUNT_CHILD";

/// A digest of a few steps of a model large enough for products to be split over threads, and of
/// what it then says.
fn digest() -> String {
    let model =
        ModelConfig::Mlp(MlpConfig { dropout: 0.1, ..MlpConfig::new(300, vec![257, 193], 10) });
    let config = TrainerConfig { max_norm: Some(0.5), ..TrainerConfig::new(model, 4) };
    let mut trainer = Trainer::new(config).unwrap();
    let mut rng = Philox::new(71, 0);
    for _ in 0..4 {
        let input = normals32(&mut rng, 96 * 300);
        let soft = SoftTarget::Logits(normals32(&mut rng, 96 * 10));
        let batch = Batch { input: &input, rows: 96, hard: None, soft: Some(&soft) };
        let config = LossConfig { alpha: 1.0, ..LossConfig::default() };
        trainer.step(&batch, &config).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    trainer.save_state(dir.path()).unwrap();
    trainer.save_model(dir.path()).unwrap();
    let mut hash = Sha256::new();
    for file in ["model.safetensors", "optimizer.safetensors"] {
        hash.update(std::fs::read(dir.path().join(file)).unwrap());
    }
    for model in image_models::models() {
        let mut trainer = Trainer::new(TrainerConfig::new(model, 2)).unwrap();
        (0..2).for_each(|_| image_models::step(&mut trainer));
        for (_, values) in read_model(&trainer).values() {
            values.iter().for_each(|w| hash.update(w.to_le_bytes()));
        }
    }
    hash.update(text_training::bytes_of_a_few_steps());
    let input = normals32(&mut rng, 50 * 300);
    let logits = Classifier::load(dir.path()).unwrap().infer(&input, 50).unwrap().logits;
    logits.iter().for_each(|z| hash.update(z.to_le_bytes()));
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn changes_nothing() {
    if std::env::var_os(CHILD).is_some() {
        println!("digest={}", digest());
        return;
    }
    let of = |threads: &str| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "thread_count::changes_nothing", "--nocapture"])
            .env(CHILD, "1")
            .env("RAYON_NUM_THREADS", threads)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let found = text.lines().find_map(|line| line.split("digest=").nth(1));
        found.unwrap_or_else(|| panic!("no digest in {text}")).to_owned()
    };
    let one = of("1");
    assert_eq!(one.len(), 64);
    for threads in ["2", "3", "5"] {
        assert_eq!(of(threads), one, "{threads} threads");
    }
}
