//! A step that cannot be taken is an error, and leaves everything as it was.

use stillhouse_nn::{Batch, LossConfig, SoftTarget, Trainer};

use crate::support::{small_batch, small_trainer};

fn state(trainer: &Trainer) -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    trainer.save_state(dir.path()).unwrap();
    let files = ["model.safetensors", "optimizer.safetensors", "trainer.json"];
    files.map(|file| std::fs::read(dir.path().join(file)).unwrap()).to_vec()
}

#[test]
fn bad_batches() {
    let mut trainer = Trainer::new(small_trainer(1)).unwrap();
    let (input, hard, soft) = small_batch(0, 4);
    let good = Batch { input: &input, rows: 4, hard: Some(&hard), soft: Some(&soft) };
    trainer.step(&good, &LossConfig::default()).unwrap();
    let before = state(&trainer);
    let mut nan = input.clone();
    nan[13] = f32::NAN;
    let huge = vec![1e38; input.len()];
    let short = SoftTarget::Logits(vec![0.0; 3]);
    let cases = [
        (Batch { rows: 3, ..good }, "input has 48 elements; expected 3 rows of 12"),
        (Batch { rows: 0, input: &[], ..good }, "at least 1 row"),
        (Batch { hard: Some(&hard[..2]), ..good }, "hard labels has 2"),
        (Batch { hard: Some(&[9; 4]), ..good }, "hard label of row 0 is 9"),
        (Batch { soft: Some(&short), ..good }, "soft labels has 3"),
        (Batch { soft: None, ..good }, "needs soft labels"),
        (Batch { input: &nan, ..good }, "step 1: the loss is NaN"),
        (Batch { input: &huge, ..good }, "step 1: the loss is NaN"),
    ];
    for (batch, words) in cases {
        let error = trainer.step(&batch, &LossConfig::default()).unwrap_err().to_string();
        assert!(error.contains(words), "{error:?} lacks {words:?}");
        assert!(state(&trainer) == before, "{words}");
    }
    let config = LossConfig { temperature: 0.0, ..LossConfig::default() };
    let error = trainer.step(&good, &config).unwrap_err().to_string();
    assert!(error.contains("temperature is 0"), "{error}");
    assert!(state(&trainer) == before);
}

#[test]
fn bad_evaluations() {
    let trainer = Trainer::new(small_trainer(1)).unwrap();
    let (mut input, hard, _) = small_batch(0, 4);
    let refusal = |input: &[f32], rows, hard: &[u32]| {
        trainer.evaluate(input, rows, hard).unwrap_err().to_string()
    };
    assert!(refusal(&input, 3, &hard[..3]).contains("input has 48"));
    assert!(refusal(&input, 4, &hard[..3]).contains("hard labels has 3"));
    assert!(refusal(&[], 0, &[]).contains("at least 1"));
    assert_eq!(refusal(&input, 4, &[0, 0, 5, 0]), "hard label of row 2 is 5; expected 0 to 4");
    input[12] = f32::NAN;
    assert_eq!(refusal(&input, 4, &hard), "the logits of row 1 are not finite");
}
