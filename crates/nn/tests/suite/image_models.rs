//! What holds of perceptrons holds of image models: batches, resumption and failed steps.

use stillhouse_nn::io::{Tensors, read_tensors, write_tensors};
use stillhouse_nn::model::WEIGHTS_FILE;
use stillhouse_nn::{
    Batch, Classifier, LeNetConfig, LossConfig, ModelConfig, Philox, ResNetConfig, SoftTarget,
    Trainer, TrainerConfig,
};

use crate::support::{normals32, read_model};

/// Sizes that fill no block of channels and no tile of pixels.
pub(crate) fn models() -> [ModelConfig; 2] {
    let lenet = LeNetConfig {
        image_size: 14,
        conv_channels: vec![5, 18],
        hidden_sizes: vec![11],
        dropout: 0.2,
        image_mean: vec![0.2],
        image_std: vec![0.7],
        ..LeNetConfig::new(6)
    };
    let resnet = ResNetConfig {
        image_size: 11,
        hidden_sizes: vec![6, 20],
        image_mean: vec![0.1, 0.2, 0.3],
        ..ResNetConfig::new(vec![1, 2], 6)
    };
    [ModelConfig::LeNet(lenet), ModelConfig::ResNet(resnet)]
}

/// One step on rows of its own.
pub(crate) fn step(trainer: &mut Trainer) {
    let (rows, width) = (19, trainer.config().model.input_width());
    let mut rng = Philox::new(88, 100 + trainer.steps_done());
    let input = normals32(&mut rng, rows * width);
    let hard: Vec<u32> = (0..rows).map(|_| rng.below(6)).collect();
    let soft = SoftTarget::Logits(normals32(&mut rng, rows * 6));
    let batch = Batch { input: &input, rows, hard: Some(&hard), soft: Some(&soft) };
    trainer.step(&batch, &LossConfig::default()).unwrap();
}

fn trainer(model: ModelConfig) -> Trainer {
    Trainer::new(TrainerConfig::new(model, 6)).unwrap()
}

#[test]
fn a_resumed_run_ends_with_the_same_weights_and_statistics() {
    for model in models() {
        let mut whole = trainer(model.clone());
        (0..6).for_each(|_| step(&mut whole));
        for stop in [1, 4] {
            let dir = tempfile::tempdir().unwrap();
            let mut killed = trainer(model.clone());
            (0..stop).for_each(|_| step(&mut killed));
            killed.save_state(dir.path()).unwrap();
            step(&mut killed);
            let mut resumed = trainer(model.clone());
            resumed.load_state(dir.path()).unwrap();
            (stop..6).for_each(|_| step(&mut resumed));
            assert_eq!(read_model(&resumed), read_model(&whole));
        }
    }
}

#[test]
fn a_row_is_answered_alike_alone_and_in_any_batch() {
    for model in models() {
        let width = model.input_width();
        let mut trained = trainer(model);
        (0..3).for_each(|_| step(&mut trained));
        let dir = tempfile::tempdir().unwrap();
        trained.save_model(dir.path()).unwrap();
        let teacher = Classifier::load(dir.path()).unwrap();
        let mut input = normals32(&mut Philox::new(89, 0), 9 * width);
        // In a corner, which pooling may not reach.
        input[5 * width - 1] = f32::INFINITY;
        let all = teacher.infer(&input, 9).unwrap();
        for (row, features) in input.chunks_exact(width).enumerate() {
            let alone = teacher.infer(features, 1).unwrap();
            let logits = &all.logits[row * 6..][..6];
            if row == 4 {
                assert!(logits.iter().chain(&alone.logits).all(|z| z.is_nan()));
                assert!(alone.hidden.iter().all(|h| h.is_nan()));
                continue;
            }
            assert!(logits.iter().all(|z| z.is_finite()));
            assert_eq!(alone.logits, logits);
        }
        assert_eq!(teacher.infer(&[], 0).unwrap().logits, [0.0; 0]);
        let error = teacher.infer(&input, 8).unwrap_err().to_string();
        assert!(error.contains(&format!("expected 8 rows of {width}")), "{error}");
    }
}

/// Neither in normalising nor in a sum that pooling passes over.
#[test]
fn an_overflow_is_no_answer() {
    let config = LeNetConfig {
        image_size: 4,
        conv_channels: vec![1],
        kernel_size: 1,
        conv_padding: vec![0],
        hidden_sizes: vec![],
        ..LeNetConfig::new(2)
    };
    let tensors = |weight: f32| {
        Tensors::from([
            ("conv1.weight".to_owned(), (vec![1, 1, 1, 1], vec![weight])),
            ("conv1.bias".to_owned(), (vec![1], vec![0.0])),
            ("fc1.weight".to_owned(), (vec![2, 4], vec![0.5; 8])),
            ("fc1.bias".to_owned(), (vec![2], vec![0.1; 2])),
        ])
    };
    for (weight, image_std) in [(4.0, vec![]), (1.0, vec![1e-30])] {
        let model = ModelConfig::LeNet(LeNetConfig { image_std, ..config.clone() });
        let dir = tempfile::tempdir().unwrap();
        model.save(dir.path()).unwrap();
        write_tensors(&dir.path().join(WEIGHTS_FILE), &tensors(weight)).unwrap();
        let teacher = Classifier::load(dir.path()).unwrap();
        let mut input = vec![1e-31; 32];
        input[5] = -3e38;
        let inference = teacher.infer(&input, 2).unwrap();
        assert!(inference.logits[..2].iter().all(|z| z.is_nan()), "{inference:?}");
        assert!(inference.hidden[..4].iter().all(|h| h.is_nan()), "{inference:?}");
        assert!(inference.logits[2..].iter().all(|z| z.is_finite()), "{inference:?}");
    }
}

#[test]
fn a_variance_below_zero_is_refused() {
    let [_, resnet] = models();
    let dir = tempfile::tempdir().unwrap();
    trainer(resnet.clone()).save_model(dir.path()).unwrap();
    let file = dir.path().join(WEIGHTS_FILE);
    let mut tensors = read_tensors(&file, &resnet.tensors()).unwrap();
    tensors.get_mut("layer2.0.bn1.running_var").unwrap().1[3] = -0.5;
    write_tensors(&file, &tensors).unwrap();
    let error = Classifier::load(dir.path()).unwrap_err().to_string();
    let expected = "tensor layer2.0.bn1.running_var holds -0.5 at element 3; expected 0 or more";
    assert_eq!(error, expected);
}

/// The convolution's output is finite, and its variance is not: normalised it is a constant, which no
/// loss shows.
#[test]
fn statistics_that_overflow_are_told() {
    let [_, ModelConfig::ResNet(resnet)] = models() else { unreachable!() };
    let model = ModelConfig::ResNet(ResNetConfig { image_std: vec![1e-25; 3], ..resnet });
    let mut trainer = trainer(model);
    let before = read_model(&trainer);
    let input = normals32(&mut Philox::new(90, 0), 4 * trainer.config().model.input_width());
    let batch = Batch { input: &input, rows: 4, hard: Some(&[0, 1, 2, 3]), soft: None };
    let hard_only = LossConfig { alpha: 0.0, ..LossConfig::default() };
    let error = trainer.step(&batch, &hard_only).unwrap_err().to_string();
    assert!(error.contains("mean or variance of bn1 is not finite"), "{error}");
    assert_eq!(read_model(&trainer), before);
}

#[test]
fn a_step_that_fails_changes_nothing() {
    for model in models() {
        let width = model.input_width();
        let mut trainer = trainer(model);
        step(&mut trainer);
        let before = read_model(&trainer);
        let hard_only = LossConfig { alpha: 0.0, ..LossConfig::default() };
        for (bad, word) in [(f32::NAN, "row 1"), (f32::MAX, "finite")] {
            let mut input = vec![0.5; 2 * width];
            input[width..].fill(bad);
            let batch = Batch { input: &input, rows: 2, hard: Some(&[0, 1]), soft: None };
            let error = trainer.step(&batch, &hard_only).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(read_model(&trainer), before);
        assert_eq!(trainer.steps_done(), 1);
    }
}

#[test]
fn statistics_of_a_batch_are_not_those_of_inference() {
    let [_, resnet] = models();
    let mut trainer = trainer(resnet);
    let before = read_model(&trainer);
    assert!(before["bn1.running_mean"].1.iter().all(|&m| m == 0.0));
    assert!(before["bn1.running_var"].1.iter().all(|&v| v == 1.0));
    step(&mut trainer);
    let after = read_model(&trainer);
    assert!(after["bn1.running_mean"].1.iter().any(|&m| m != 0.0));
}
