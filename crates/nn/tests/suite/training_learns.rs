//! Training does what it is for: every loss pulls the student to its teacher.

use stillhouse_nn::{
    Batch, Divergence, LossConfig, MlpConfig, ModelConfig, OptimizerConfig, Philox, ScheduleConfig,
    SoftTarget, Trainer, TrainerConfig,
};

use crate::support::{DIVERGENCES, log_softmax, normals32, top_k};

const ROWS: usize = 32;
const CLASSES: usize = 5;

fn student(optimizer: OptimizerConfig, learning_rate: f64) -> Trainer {
    let model = ModelConfig::Mlp(MlpConfig::new(8, vec![32], CLASSES));
    let schedule = ScheduleConfig { learning_rate, ..ScheduleConfig::default() };
    Trainer::new(TrainerConfig { optimizer, schedule, ..TrainerConfig::new(model, 150) }).unwrap()
}

#[test]
fn every_divergence_pulls_to_the_teacher() {
    let mut rng = Philox::new(61, 0);
    let input = normals32(&mut rng, ROWS * 8);
    let teacher = normals32(&mut rng, ROWS * CLASSES);
    let exact: Vec<f64> = teacher.iter().map(|&z| f64::from(z)).collect();
    let dense = SoftTarget::Logits(teacher);
    let sparse = top_k(&log_softmax(&exact, CLASSES, 1.0), CLASSES, 3);
    for divergence in DIVERGENCES {
        for soft in [&dense, &sparse] {
            if divergence == Divergence::LogitMse && soft == &sparse {
                continue;
            }
            let config =
                LossConfig { alpha: 1.0, temperature: 1.0, divergence, ..LossConfig::default() };
            let mut trainer = student(OptimizerConfig::default(), 1e-2);
            let batch = Batch { input: &input, rows: ROWS, hard: None, soft: Some(soft) };
            let losses: Vec<f64> =
                (0..150).map(|_| trainer.step(&batch, &config).unwrap().loss).collect();
            let (first, last) = (losses[0], losses[149]);
            // The cross-entropy cannot fall below the teacher's own entropy.
            let share = if divergence == Divergence::CrossEntropy { 0.9 } else { 0.2 };
            assert!(last < share * first, "{divergence:?} {}: {first} {last}", soft.encoding());
        }
    }
}

#[test]
fn hard_labels_are_fitted_by_both_optimizers() {
    let mut rng = Philox::new(62, 0);
    let input = normals32(&mut rng, ROWS * 8);
    let hard: Vec<u32> = (0..ROWS).map(|_| rng.below(CLASSES as u32)).collect();
    let sgd = OptimizerConfig::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 };
    for (optimizer, rate) in [(OptimizerConfig::default(), 1e-2), (sgd, 0.1)] {
        let mut trainer = student(optimizer, rate);
        let before = trainer.evaluate(&input, ROWS, &hard).unwrap();
        let batch = Batch { input: &input, rows: ROWS, hard: Some(&hard), soft: None };
        let config = LossConfig { alpha: 0.0, ..LossConfig::default() };
        let first = trainer.step(&batch, &config).unwrap();
        assert!((first.loss - before.loss).abs() < 1e-6, "{first:?} {before:?}");
        for _ in 1..150 {
            trainer.step(&batch, &config).unwrap();
        }
        let after = trainer.evaluate(&input, ROWS, &hard).unwrap();
        assert_eq!((after.errors, after.rows), (0, ROWS));
        assert!(before.errors > 15 && after.loss < 0.1 * before.loss, "{before:?} {after:?}");
    }
}

#[test]
fn clipping_bounds_what_a_step_moves() {
    let sgd = OptimizerConfig::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };
    let mut rng = Philox::new(63, 0);
    let input = normals32(&mut rng, ROWS * 8);
    let hard: Vec<u32> = (0..ROWS).map(|_| rng.below(CLASSES as u32)).collect();
    let batch = Batch { input: &input, rows: ROWS, hard: Some(&hard), soft: None };
    let config = LossConfig { alpha: 0.0, ..LossConfig::default() };
    let moved = |clip_norm| {
        let base = student(sgd, 1.0).config().clone();
        let mut trainer = Trainer::new(TrainerConfig { clip_norm, ..base }).unwrap();
        let read = |trainer: &Trainer| {
            let dir = tempfile::tempdir().unwrap();
            trainer.save_model(dir.path()).unwrap();
            let path = dir.path().join("model.safetensors");
            let shapes = trainer.config().model.tensors();
            stillhouse_nn::io::read_tensors(&path, &shapes).unwrap()
        };
        let before = read(&trainer);
        let report = trainer.step(&batch, &config).unwrap();
        let after = read(&trainer);
        let pairs = before.values().zip(after.values()).flat_map(|(a, b)| a.1.iter().zip(&b.1));
        let squares: f64 = pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum();
        (squares.sqrt(), report.grad_norm)
    };
    let (free, norm) = moved(None);
    assert!((free - norm).abs() < 1e-5 * norm, "{free} {norm}");
    let (clipped, same) = moved(Some(0.01));
    assert!((clipped - 0.01).abs() < 1e-6 && same == norm, "{clipped}");
}
