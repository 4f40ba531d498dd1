//! Every supported family against Hugging Face transformers, from `fixtures/make_text_models.py`:
//! logits, loss, every gradient and a training run. The models come and go as files, so that names,
//! layouts and defaults are those of transformers too.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::SafeTensors;
use stillhouse_nn::io::{Tensors, write_tensors};
use stillhouse_nn::{
    LossConfig, OptimizerConfig, SoftLabels, SoftTarget, TextBatch, TextModel, TextTrainer,
    TextTrainerConfig, TokenBatch, TransformerConfig,
};

#[derive(serde::Deserialize)]
struct Fixtures {
    settings: Settings,
    configs: BTreeMap<String, serde_json::Value>,
}

#[derive(serde::Deserialize)]
struct Settings {
    steps: u64,
    alpha: f64,
    temperature: f64,
    learning_rate: f64,
    weight_decay: f64,
    lengths: Vec<u32>,
}

/// One model of the file.
struct Model {
    name: String,
    tensors: Tensors,
}

impl Model {
    fn values(&self, name: &str) -> &[f32] {
        &self.tensors[name].1
    }

    fn whole(&self, name: &str) -> Vec<u32> {
        self.values(name).iter().map(|&x| x as u32).collect()
    }

    fn part(&self, prefix: &str) -> Tensors {
        let own = |(name, tensor): (&String, &(Vec<usize>, Vec<f32>))| {
            Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()))
        };
        self.tensors.iter().filter_map(own).collect()
    }
}

fn fixtures() -> (Settings, Vec<(Model, String)>) {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures"));
    let text = std::fs::read_to_string(folder.join("text_models.json")).unwrap();
    let Fixtures { settings, configs } = serde_json::from_str(&text).unwrap();
    let bytes = std::fs::read(folder.join("text_models.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let models = configs.into_iter().map(|(name, config)| {
        let own = file.tensors().into_iter().filter_map(|(key, view)| {
            let key = key.strip_prefix(&format!("{name}/"))?.to_owned();
            let values = view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
            Some((key, (view.shape().to_vec(), values.collect())))
        });
        (Model { tensors: own.collect(), name }, config.to_string())
    });
    (settings, models.collect())
}

/// A directory as transformers writes it; with `shards`, in several files.
fn write(dir: &Path, config: &str, tensors: &Tensors, shards: usize) {
    std::fs::write(dir.join("config.json"), config).unwrap();
    if shards == 1 {
        return write_tensors(&dir.join("model.safetensors"), tensors).unwrap();
    }
    let mut map = BTreeMap::new();
    for shard in 0..shards {
        let file = format!("model-{:05}-of-{shards:05}.safetensors", shard + 1);
        let own = tensors.iter().enumerate().filter(|(i, _)| i % shards == shard);
        let own: Tensors = own.map(|(_, (name, tensor))| (name.clone(), tensor.clone())).collect();
        map.extend(own.keys().map(|name| (name.clone(), file.clone())));
        write_tensors(&dir.join(file), &own).unwrap();
    }
    let index = serde_json::json!({ "metadata": { "total_size": 0 }, "weight_map": map });
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

/// Largest difference, over the largest magnitude expected; or over 1e-2 where that is more: the bias
/// of keys moves no softmax, and its gradient is nothing but rounding.
fn distance(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(1e-2f32, |max, x| max.max(x.abs()));
    let pairs = found.iter().zip(expected);
    pairs.fold(0f32, |max, (a, b)| max.max((a - b).abs())) / largest
}

#[test]
fn logits_gradients_and_training() {
    let (settings, models) = fixtures();
    assert_eq!(models.len(), 10);
    for (i, (model, config)) in models.iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let before = model.part("before/");
        write(dir.path(), config, &before, 1 + i % 3);
        check(model, dir.path(), &settings, &before, i % 2 == 1);
    }
}

fn check(
    model: &Model,
    dir: &Path,
    settings: &Settings,
    before: &Tensors,
    checkpoint_activations: bool,
) {
    let name = &model.name;
    let (ids, labels) = (model.whole("ids"), model.whole("labels"));
    let labelled: Vec<usize> = model.whole("labelled").iter().map(|&at| at as usize).collect();
    let tokens = TokenBatch { ids: &ids, lengths: &settings.lengths };

    let frozen = TextModel::load(dir).unwrap();
    let hidden = frozen.hidden(&tokens, Some(&labelled)).unwrap();
    let logits = frozen.packed_head().logits(&hidden).unwrap();
    for (found, expected) in logits.iter().zip(model.values("logits")) {
        assert!((found - expected).abs() < 2e-5, "{name}: logit {found}, expected {expected}");
    }
    assert_eq!(logits.len(), model.values("logits").len());

    let loss = LossConfig {
        alpha: settings.alpha,
        temperature: settings.temperature,
        ..LossConfig::default()
    };
    let optimizer = OptimizerConfig::AdamW {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: settings.weight_decay,
    };
    let config = TransformerConfig::load(dir).unwrap();
    let shapes: BTreeMap<_, _> =
        before.iter().map(|(name, (shape, _))| (name.clone(), shape.clone())).collect();
    assert_eq!(config.tensors(), shapes, "{name}");
    let mut config = TextTrainerConfig::new(config, settings.steps);
    config.optimizer = optimizer;
    config.schedule.learning_rate = settings.learning_rate;
    config.checkpoint_activations = checkpoint_activations;
    let mut trainer = TextTrainer::new(config).unwrap();
    trainer.load_weights(dir).unwrap();
    let soft = SoftTarget::Logits(model.values("teacher").to_vec());
    let batch = TextBatch {
        tokens,
        labelled: &labelled,
        hard: Some(&labels),
        soft: Some(SoftLabels::Target(&soft)),
    };
    let rows = labels.len() as f64;
    for (step, &expected) in model.values("losses").iter().enumerate() {
        let sums = trainer.accumulate(&batch, &loss, rows).unwrap();
        let found = sums.parts(&loss, rows).total;
        let off = (found - f64::from(expected)).abs();
        let most = if step == 0 { 1e-5 } else { 1e-4 };
        assert!(off < most, "{name}: loss {found} at step {step}, expected {expected}");
        if step == 0 {
            for (key, (shape, found)) in trainer.gradient() {
                let (expected_shape, expected) = &model.tensors[&format!("gradient/{key}")];
                assert_eq!(&shape, expected_shape, "{name} {key}");
                let off = distance(&found, expected);
                assert!(off < 2e-5, "{name}: gradient of {key} is off by {off}");
            }
        }
        trainer.update().unwrap();
    }
    // What was trained is read again as it was written, and not the shards that lie there still.
    trainer.save_model(dir).unwrap();
    let trained = TextModel::load(dir).unwrap();
    assert_ne!(trained.fingerprint(), frozen.fingerprint());
    let hidden = trained.hidden(&tokens, Some(&labelled)).unwrap();
    let again = trained.packed_head().logits(&hidden).unwrap();
    assert!(distance(&again, &logits) > 1e-3, "{name}: it has not learnt");
}

/// The last of two layers is that layer, under a new number.
#[test]
fn a_student_of_some_layers_has_their_weights() {
    let (_, models) = fixtures();
    for (model, config) in &models {
        let dir = tempfile::tempdir().unwrap();
        let before = model.part("before/");
        write(dir.path(), config, &before, 1);
        let whole = TransformerConfig::load(dir.path()).unwrap();
        let name = &model.name;
        for keep in [&[][..], &[2], &[1, 0], &[0, 0]] {
            let error = whole.with_layers(keep).unwrap_err().to_string();
            assert!(error.contains("expected some of the layers 0 to 1, ascending"), "{error}");
        }
        let last = whole.with_layers(&[1]).unwrap();
        let mut trainer = TextTrainer::new(TextTrainerConfig::new(last, 1)).unwrap();
        trainer.load_layers(dir.path(), &[1]).unwrap();
        let out = tempfile::tempdir().unwrap();
        trainer.save_model(out.path()).unwrap();
        let written = std::fs::read(out.path().join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&written).unwrap();
        for (key, view) in file.tensors() {
            // The fixtures' models have two layers: the last one's names are those of the first.
            let source = key.replace("layers.0.", "layers.1.").replace("layer.0.", "layer.1.");
            let found: Vec<f32> =
                view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            assert_eq!(found, before[&source].1, "{name}: {key}");
        }
        // A window stays with its layer.
        let text = std::fs::read_to_string(out.path().join("config.json")).unwrap();
        let sliding = text.contains("sliding_attention\"\n");
        assert_eq!(sliding, ["qwen2"].contains(&name.as_str()), "{name}: {text}");
    }
}
