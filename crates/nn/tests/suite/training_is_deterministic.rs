//! The same configuration and batches give the same bytes.

use stillhouse_nn::{LossConfig, Trainer};

use crate::support::{small_batch, small_trainer};
use stillhouse_nn::Batch;

fn train(seed: u64) -> (Vec<u8>, Vec<u64>) {
    let mut trainer = Trainer::new(small_trainer(seed)).unwrap();
    let mut losses = vec![];
    for step in 0..6 {
        let (input, hard, soft) = small_batch(step, 9);
        let batch = Batch { input: &input, rows: 9, hard: Some(&hard), soft: Some(&soft) };
        let report = trainer.step(&batch, &LossConfig::default()).unwrap();
        losses.push(report.loss.to_bits());
    }
    let dir = tempfile::tempdir().unwrap();
    trainer.save_model(dir.path()).unwrap();
    (std::fs::read(dir.path().join("model.safetensors")).unwrap(), losses)
}

#[test]
fn same_seed_same_bytes_and_another_seed_others() {
    let first = train(3);
    assert_eq!(first, train(3));
    assert_ne!(first, train(4));
}

/// As PyTorch starts `nn.Linear`: U(-b, b) with b the inverse root of the inputs.
#[test]
fn initial_weights_fill_their_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let trainer = Trainer::new(small_trainer(5)).unwrap();
    trainer.save_model(dir.path()).unwrap();
    let head = stillhouse_nn::Classifier::load(dir.path()).unwrap().head();
    let largest = head.weight.iter().fold(0f32, |max, w| max.max(w.abs()));
    assert!((0.2..=0.25).contains(&largest), "{largest}");
}
