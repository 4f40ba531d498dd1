//! Every variable of every model receives a gradient that is not zero.

use stillhouse_nn::loss::loss;
use stillhouse_nn::model::Mlp;
use stillhouse_nn::{
    Batch, LeNetConfig, LossConfig, MlpConfig, ModelConfig, OptimizerConfig, Philox, ResNetConfig,
    Trainer, TrainerConfig,
};

use crate::support::{normals32, read_model};

/// A step without one is an error of the trainer; here each must also move its variable.
#[test]
fn image_models() {
    for model in [
        ModelConfig::LeNet(LeNetConfig::new(10)),
        ModelConfig::ResNet(ResNetConfig::new(vec![1, 1, 1], 10)),
    ] {
        let (rows, width) = (9, model.input_width());
        let optimizer = OptimizerConfig::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };
        let config = TrainerConfig { optimizer, ..TrainerConfig::new(model, 1) };
        let mut trainer = Trainer::new(config).unwrap();
        let before = read_model(&trainer);
        let input = normals32(&mut Philox::new(43, 0), rows * width);
        let hard: Vec<u32> = (0..rows as u32).collect();
        let batch = Batch { input: &input, rows, hard: Some(&hard), soft: None };
        trainer.step(&batch, &LossConfig { alpha: 0.0, ..LossConfig::default() }).unwrap();
        let after = read_model(&trainer);
        for (name, values) in &before {
            assert_ne!(values, &after[name], "{name}");
        }
    }
}

#[test]
fn mlp() {
    for hidden_sizes in [vec![], vec![8], vec![8, 7, 6]] {
        let config = MlpConfig { dropout: 0.1, ..MlpConfig::new(5, hidden_sizes, 4) };
        let mut rng = Philox::new(41, 0);
        let model = Mlp::new(&config, &mut rng).unwrap();
        let input = normals32(&mut rng, 32 * 5);
        let hard: Vec<u32> = (0..32).map(|i| i % 4).collect();
        let config = LossConfig { alpha: 0.0, ..LossConfig::default() };
        let logits = model.forward(&input, 32, &mut rng).unwrap();
        let (scalar, _) = loss(&logits, Some(&hard), None, &config).unwrap();
        let parameters = model.parameters();
        parameters.iter().for_each(|p| p.clear_gradient());
        let mut store = scalar.backward().unwrap();
        for parameter in parameters {
            assert!(parameter.collect_gradient(&mut store).unwrap(), "{}", parameter.name());
            let gradient = parameter.gradient_values();
            assert!(gradient.iter().any(|&g| g != 0.0), "{}", parameter.name());
            assert!(gradient.iter().all(|g| g.is_finite()), "{}", parameter.name());
        }
    }
}

/// Pre-activations of every hidden unit for one row, in f64.
fn before_relu(model: &Mlp, sizes: &[(usize, usize)], row: &[f32]) -> Vec<f64> {
    let parameters = model.parameters();
    let values = |name: String| {
        let parameter = parameters.iter().find(|p| p.name() == name).unwrap();
        parameter.values().unwrap().into_iter().map(f64::from).collect::<Vec<f64>>()
    };
    let mut x: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
    let mut all = vec![];
    for (i, &(inputs, outputs)) in sizes.iter().enumerate() {
        let weight = values(format!("layers.{i}.weight"));
        let bias = values(format!("layers.{i}.bias"));
        assert_eq!((weight.len(), bias.len(), x.len()), (inputs * outputs, outputs, inputs));
        let sums = weight
            .chunks_exact(inputs)
            .zip(bias)
            .map(|(weight, bias)| bias + weight.iter().zip(&x).map(|(w, x)| w * x).sum::<f64>());
        let sums: Vec<f64> = sums.collect();
        x = sums.iter().map(|sum| sum.max(0.0)).collect();
        all.extend(sums);
    }
    all
}

/// Rows that no weight moved by [`STEP`] brings to the kink of a ReLU.
fn smooth_rows(model: &Mlp, sizes: &[(usize, usize)], rng: &mut Philox, rows: usize) -> Vec<f32> {
    let mut input = vec![];
    while input.len() < rows * sizes[0].0 {
        let row = normals32(rng, sizes[0].0);
        let smooth = before_relu(model, sizes, &row).iter().all(|sum| sum.abs() > 6.0 * STEP);
        if smooth && row.iter().all(|x| x.abs() < 3.0) {
            input.extend(row);
        }
    }
    input
}

/// Of a weight, in the central differences below.
const STEP: f64 = 1e-2;

/// The whole model's gradient against central differences. The step leaves an error of its square
/// times the third derivative, some 1e-5; rounding of the f32 logits by 1e-7 adds as much again.
#[test]
fn the_mlp_gradient_is_that_of_its_loss() {
    const ROWS: usize = 16;
    let mut rng = Philox::new(42, 0);
    let model = Mlp::new(&MlpConfig::new(6, vec![9, 8], 3), &mut rng).unwrap();
    let input = smooth_rows(&model, &[(6, 9), (9, 8)], &mut rng, ROWS);
    let hard: Vec<u32> = (0..ROWS as u32).map(|i| i % 3).collect();
    let config = LossConfig { alpha: 0.0, ..LossConfig::default() };
    let run = || {
        let logits = model.forward(&input, ROWS, &mut Philox::new(0, 0)).unwrap();
        loss(&logits, Some(&hard), None, &config).unwrap()
    };
    let parameters = model.parameters();
    parameters.iter().for_each(|p| p.clear_gradient());
    let mut store = run().0.backward().unwrap();
    let mut checked = 0;
    for parameter in parameters {
        assert!(parameter.collect_gradient(&mut store).unwrap());
        let gradient = parameter.gradient_values();
        let values = parameter.values().unwrap();
        assert_eq!(gradient.len(), values.len());
        for (i, &found) in gradient.iter().enumerate() {
            let at = |step: f64| {
                let mut moved = values.clone();
                moved[i] += step as f32;
                parameter.set(&moved).unwrap();
                (f64::from(moved[i]), run().1.total)
            };
            let ((above, high), (below, low)) = (at(STEP), at(-STEP));
            let expected = (high - low) / (above - below);
            parameter.set(&values).unwrap();
            let error = (f64::from(found) - expected).abs();
            let tolerance = 1e-4 + 1e-2 * expected.abs();
            assert!(error < tolerance, "{} {i}: {found} {expected}", parameter.name());
            checked += 1;
        }
    }
    assert_eq!(checked, 7 * 9 + 10 * 8 + 9 * 3);
}
