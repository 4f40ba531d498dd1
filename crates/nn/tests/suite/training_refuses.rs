//! A step that cannot be taken is an error, and leaves everything as it was.

use stillhouse_nn::{
    Batch, LossConfig, MlpConfig, ModelConfig, OptimizerConfig, ScheduleConfig, SoftTarget,
    TrainError, Trainer, TrainerConfig,
};

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
    let with = |i: usize, x: f32| {
        let mut input = input.clone();
        input[i] = x;
        input
    };
    let (nan, inf) = (with(13, f32::NAN), with(47, f32::NEG_INFINITY));
    // Finite, until the model divides it by a standard deviation of 0.5.
    let overflow = with(24, f32::MAX);
    let huge = vec![1e38; input.len()];
    let short = SoftTarget::Logits(vec![0.0; 3]);
    let cases = [
        (Batch { rows: 3, ..good }, "input has 48 elements; expected 3 rows of 12"),
        (Batch { rows: 0, input: &[], ..good }, "at least 1 row"),
        (Batch { hard: Some(&hard[..2]), ..good }, "hard labels has 2"),
        (Batch { hard: Some(&[9; 4]), ..good }, "hard label of row 0 is 9"),
        (Batch { soft: Some(&short), ..good }, "soft labels has 3"),
        (Batch { soft: None, ..good }, "soft labels have the weight"),
        (Batch { input: &nan, ..good }, "feature 1 of row 1 is NaN once normalised"),
        (Batch { input: &inf, ..good }, "feature 11 of row 3 is -inf once normalised"),
        (Batch { input: &overflow, ..good }, "feature 0 of row 2 is inf once normalised"),
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
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
        input[12] = bad;
        assert_eq!(refusal(&input, 4, &hard), "the logits of row 1 are not finite");
    }
}

/// A linear model of one feature, whose gradient is as large as that feature.
fn linear(optimizer: OptimizerConfig, learning_rate: f64) -> Trainer {
    let model = ModelConfig::Mlp(MlpConfig::new(1, vec![], 2));
    let schedule = ScheduleConfig { learning_rate, ..ScheduleConfig::default() };
    Trainer::new(TrainerConfig { optimizer, schedule, ..TrainerConfig::new(model, 9) }).unwrap()
}

/// T multiplies the gradient, so it can overflow where the logits and the loss do not.
#[test]
fn a_gradient_that_is_not_finite() {
    let mut trainer = linear(OptimizerConfig::default(), 1e-3);
    let before = state(&trainer);
    // The student is certain of one class or of the other; the teacher of none.
    let soft = SoftTarget::Logits(vec![0.0; 2]);
    let config = LossConfig { alpha: 1.0, temperature: 1e3, ..LossConfig::default() };
    for x in [3e38, -3e38] {
        let batch = Batch { input: &[x], rows: 1, hard: None, soft: Some(&soft) };
        let error = trainer.step(&batch, &config).unwrap_err();
        assert!(matches!(error, TrainError::NonFiniteGradient { step: 0, .. }), "{error}");
        let words = "step 0: the gradient's norm is inf; expected a finite norm";
        assert_eq!(error.to_string(), words);
        assert!(state(&trainer) == before);
    }
}

/// What the optimizer makes of finite numbers can still overflow: the step says so, nothing
/// broken is written, and a saved state is the way on.
#[test]
fn an_update_that_overflows() {
    let sgd = OptimizerConfig::Sgd { momentum: 0.9, nesterov: false, weight_decay: 3e38 };
    let adamw =
        |weight_decay| OptimizerConfig::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay };
    // The weights; the weights by decay; the mean of squares, with weights that stay finite.
    for (optimizer, rate, x) in
        [(sgd, 3e38, 1.0), (adamw(3e38), 3e38, 1.0), (adamw(0.0), 1e-3, 1e30)]
    {
        let mut trainer = linear(optimizer, rate);
        let dir = tempfile::tempdir().unwrap();
        trainer.save_state(dir.path()).unwrap();
        let before = state(&trainer);
        let config = LossConfig { alpha: 0.0, ..LossConfig::default() };
        let mut step = |x: f32| {
            // One of the two labels is wrong.
            let (input, hard) = ([x, x], [0, 1]);
            let batch = Batch { input: &input, rows: 2, hard: Some(&hard), soft: None };
            trainer.step(&batch, &config)
        };
        let error = step(x).unwrap_err();
        assert!(matches!(error, TrainError::NonFiniteUpdate { step: 0, .. }), "{error}");
        assert!(error.to_string().contains("layers.0."), "{error}");
        assert!(step(0.5).is_err());
        let other = tempfile::tempdir().unwrap();
        let error = trainer.save_state(other.path()).unwrap_err().to_string();
        assert!(error.contains("safetensors: tensor ") && error.contains("layers.0."), "{error}");
        assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 0);
        if x == 1.0 {
            let error = trainer.save_model(other.path()).unwrap_err().to_string();
            assert!(error.contains("model.safetensors: tensor layers.0."), "{error}");
            assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 0);
        }
        trainer.load_state(dir.path()).unwrap();
        assert!(state(&trainer) == before);
    }
}
