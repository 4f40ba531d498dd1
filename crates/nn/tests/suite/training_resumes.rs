//! A trainer restored from a saved state ends with the bytes of the one that was not interrupted.

use std::path::Path;

use proptest::prelude::*;
use stillhouse_nn::{
    Batch, LossConfig, OptimizerConfig, ScheduleConfig, ScheduleKind, Trainer, TrainerConfig,
};

use crate::support::{small_batch, small_trainer};

const STEPS: u64 = 8;

/// The last one's learning rate is another at every step, on both sides of the end of warm-up.
fn configs() -> [TrainerConfig; 3] {
    let sgd = OptimizerConfig::Sgd { momentum: 0.9, nesterov: true, weight_decay: 1e-3 };
    let schedule = ScheduleConfig {
        learning_rate: 1e-2,
        warmup_steps: 3,
        kind: ScheduleKind::Cosine,
        min_learning_rate: 1e-4,
    };
    [
        small_trainer(7),
        TrainerConfig { optimizer: sgd, max_norm: Some(0.5), ..small_trainer(7) },
        TrainerConfig { schedule, total_steps: STEPS, ..small_trainer(7) },
    ]
}

fn advance(trainer: &mut Trainer, to: u64) {
    while trainer.steps_done() < to {
        let rows = 5 + (trainer.steps_done() % 3) as usize;
        let (input, hard, soft) = small_batch(trainer.steps_done(), rows);
        let batch = Batch { input: &input, rows, hard: Some(&hard), soft: Some(&soft) };
        trainer.step(&batch, &LossConfig::default()).unwrap();
    }
}

fn bytes(trainer: &Trainer) -> [Vec<u8>; 3] {
    let dir = tempfile::tempdir().unwrap();
    trainer.save_state(dir.path()).unwrap();
    ["model.safetensors", "optimizer.safetensors", "trainer.json"]
        .map(|file| std::fs::read(dir.path().join(file)).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(18))]

    #[test]
    fn from_any_step(stop in 0..=STEPS, which in 0usize..3) {
        let config = configs()[which].clone();
        let mut whole = Trainer::new(config.clone()).unwrap();
        advance(&mut whole, STEPS);
        let dir = tempfile::tempdir().unwrap();
        let mut killed = Trainer::new(config.clone()).unwrap();
        advance(&mut killed, stop);
        killed.save_state(dir.path()).unwrap();
        advance(&mut killed, stop + 1);
        drop(killed);
        let mut resumed = Trainer::new(config).unwrap();
        resumed.load_state(dir.path()).unwrap();
        prop_assert_eq!(resumed.steps_done(), stop);
        advance(&mut resumed, STEPS);
        prop_assert_eq!(bytes(&resumed), bytes(&whole));
    }
}

/// The learning rate of a step that a resumed trainer takes is that of the uninterrupted run.
#[test]
fn the_schedule_goes_on() {
    let [.., config] = configs();
    let rates = |trainer: &mut Trainer| -> Vec<f64> {
        let (input, hard, soft) = small_batch(0, 4);
        let batch = Batch { input: &input, rows: 4, hard: Some(&hard), soft: Some(&soft) };
        let mut step = || trainer.step(&batch, &LossConfig::default()).unwrap().learning_rate;
        (0..3).map(|_| step()).collect()
    };
    for stop in [1, 2, 5] {
        let dir = tempfile::tempdir().unwrap();
        saved(dir.path(), config.clone(), stop);
        let mut resumed = Trainer::new(config.clone()).unwrap();
        resumed.load_state(dir.path()).unwrap();
        let expected: Vec<f64> =
            (stop..stop + 3).map(|step| config.schedule.lr(step, STEPS)).collect();
        assert_ne!(expected[0], expected[2]);
        assert_eq!(rates(&mut resumed), expected);
    }
}

fn saved(dir: &Path, config: TrainerConfig, steps: u64) {
    let mut trainer = Trainer::new(config).unwrap();
    advance(&mut trainer, steps);
    trainer.save_state(dir).unwrap();
}

#[test]
fn a_state_of_another_configuration_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let [adamw, sgd, _] = configs();
    saved(dir.path(), adamw.clone(), 1);
    let refusal = |config: TrainerConfig| {
        Trainer::new(config).unwrap().load_state(dir.path()).unwrap_err().to_string()
    };
    let error = refusal(TrainerConfig { seed: 8, ..adamw.clone() });
    assert!(error.contains("seed = 7; this run has seed = 8"), "{error}");
    let error = refusal(TrainerConfig { clip_norm: None, ..adamw.clone() });
    assert!(error.contains("clip_norm = 1.0; this run has clip_norm = null"), "{error}");
    let error = refusal(TrainerConfig { max_norm: Some(2.0), ..adamw.clone() });
    assert!(error.contains("max_norm = null; this run has max_norm = 2.0"), "{error}");
    let error = refusal(TrainerConfig { max_norm: None, ..sgd });
    assert!(error.contains("optimizer.beta1 = 0.9"), "{error}");
    let mut other = adamw;
    let stillhouse_nn::ModelConfig::Mlp(model) = &mut other.model else { unreachable!() };
    model.hidden_sizes[1] = 17;
    assert!(refusal(other).contains("model.hidden_sizes = [24,16]"));
}

#[test]
fn files_of_two_saves_are_not_one_state() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [config, ..] = configs();
    saved(old.path(), config.clone(), 1);
    saved(new.path(), config.clone(), 2);
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let kept = std::fs::read(new.path().join(file)).unwrap();
        std::fs::copy(old.path().join(file), new.path().join(file)).unwrap();
        let mut trainer = Trainer::new(config.clone()).unwrap();
        let before = bytes(&trainer);
        let error = trainer.load_state(new.path()).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains("SHA-256"), "{error}");
        assert_eq!(bytes(&trainer), before);
        std::fs::write(new.path().join(file), kept).unwrap();
    }
    assert!(Trainer::new(config).unwrap().load_state(new.path()).is_ok());
}

#[test]
fn a_missing_state_names_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let error = Trainer::new(small_trainer(0)).unwrap().load_state(dir.path()).unwrap_err();
    assert!(error.to_string().contains("trainer.json"), "{error}");
}
