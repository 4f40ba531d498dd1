//! The image models against PyTorch, from `tests/fixtures/make_models.py`.

use std::collections::BTreeMap;

use safetensors::SafeTensors;

use super::config::{LeNetConfig, ModelConfig, ResNetConfig};
use super::{Forward, Frozen, Network};
use crate::io::Tensors;
use crate::layers::image::RunningUpdate;
use crate::loss::{LossConfig, loss};
use crate::rng::Philox;

const ROWS: usize = 11;
const RATE: f32 = 0.1;

/// One model's part of the file: shape and values by name.
fn fixture(model: &str) -> Tensors {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/models.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let own = file.tensors().into_iter().filter_map(|(name, view)| {
        let name = name.strip_prefix(&format!("{model}/"))?.to_owned();
        let values = view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Some((name, (view.shape().to_vec(), values)))
    });
    own.collect()
}

fn part(tensors: &Tensors, prefix: &str) -> Tensors {
    let own = |(name, tensor): (&String, &(Vec<usize>, Vec<f32>))| {
        Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()))
    };
    tensors.iter().filter_map(own).collect()
}

/// Largest difference, over the largest magnitude expected.
fn distance(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(1e-3f32, |max, x| max.max(x.abs()));
    let pairs = found.iter().zip(expected);
    pairs.fold(0f32, |max, (a, b)| max.max((a - b).abs())) / largest
}

fn check(name: &str, config: &ModelConfig) {
    config.validate().unwrap();
    let fixture = fixture(name);
    let before = part(&fixture, "before/");
    let shapes: BTreeMap<_, _> =
        before.iter().map(|(name, (shape, _))| (name.clone(), shape.clone())).collect();
    assert_eq!(shapes, config.tensors());

    let network = Network::new(config, &mut Philox::new(0, 0)).unwrap();
    network.set_tensors(&before).unwrap();
    assert_eq!(network.tensors().unwrap(), before);
    let inputs = fixture["input"].1.chunks_exact(ROWS * config.input_width());
    let labels = fixture["labels"].1.chunks_exact(ROWS);
    let hard_only = LossConfig { alpha: 0.0, ..LossConfig::default() };
    for (step, (input, labels)) in inputs.clone().zip(labels).enumerate() {
        let labels: Vec<u32> = labels.iter().map(|&y| y as u32).collect();
        let Forward { logits, running } =
            network.forward(input, ROWS, &mut Philox::new(0, 1)).unwrap();
        let (scalar, parts) = loss(&logits, Some(&labels), None, &hard_only).unwrap();
        let expected = fixture["losses"].1[step];
        assert!((parts.total as f32 - expected).abs() < 1e-5, "{name} {step}: {parts:?}");
        let parameters = network.parameters();
        parameters.iter().for_each(|p| p.clear_gradient());
        let mut store = scalar.backward().unwrap();
        for p in parameters {
            assert!(p.collect_gradient(&mut store).unwrap());
            let gradient = p.gradient_values();
            if step == 0 {
                let expected = &fixture[&format!("gradient/{}", p.name())].1;
                let off = distance(&gradient, expected);
                assert!(off < 2e-5, "{name}: gradient of {} is off by {off}", p.name());
            }
            p.update(|values| {
                values.iter_mut().zip(&gradient).for_each(|(w, g)| *w -= RATE * g);
            })
            .unwrap();
        }
        running.into_iter().for_each(RunningUpdate::commit);
    }
    let after = network.tensors().unwrap();
    assert!(part(&fixture, "after/").keys().eq(after.keys()));
    for (key, (_, expected)) in part(&fixture, "after/") {
        let off = distance(&after[&key].1, &expected);
        assert!(off < 5e-5, "{name}: {key} after training is off by {off}");
    }
    let input = inputs.clone().next().unwrap();
    let frozen = Frozen::new(config, &after).unwrap();
    let off = distance(&frozen.infer(input, ROWS).unwrap().logits, &fixture["logits"].1);
    assert!(off < 5e-5, "{name}: logits in evaluation are off by {off}");
}

#[test]
fn lenet() {
    let config = LeNetConfig {
        num_channels: 2,
        image_size: 12,
        conv_channels: vec![5, 19],
        kernel_size: 3,
        conv_padding: vec![1, 0],
        hidden_sizes: vec![9],
        ..LeNetConfig::new(5)
    };
    check("lenet", &ModelConfig::LeNet(config));
}

#[test]
fn resnet() {
    let config = ResNetConfig {
        image_size: 9,
        hidden_sizes: vec![6, 10, 18],
        ..ResNetConfig::new(vec![1, 2, 1], 5)
    };
    check("resnet", &ModelConfig::ResNet(config));
}
