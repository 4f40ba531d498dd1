//! Training of transformers in mixed precision, and with dropout.

use std::path::Path;

use stillhouse_nn::io::{Tensors, write_tensors};
use stillhouse_nn::{
    LossConfig, Philox, Precision, SoftLabels, SoftTarget, TextBatch, TextTrainer,
    TextTrainerConfig, TokenBatch, TransformerConfig,
};

const QWEN: &str = r#"{"model_type": "qwen3", "vocab_size": 61, "hidden_size": 32, "head_dim": 8,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2,
    "attention_dropout": 0.2}"#;
const BERT: &str = r#"{"model_type": "bert", "vocab_size": 61, "hidden_size": 32, "num_labels": 5,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "initializer_range": 0.2, "hidden_dropout_prob": 0.2,
    "attention_probs_dropout_prob": 0.3, "classifier_dropout": 0.4}"#;
const DISTILBERT: &str = r#"{"model_type": "distilbert", "vocab_size": 61, "dim": 32,
    "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64,
    "num_labels": 5, "initializer_range": 0.2, "dropout": 0.2, "attention_dropout": 0.3,
    "seq_classif_dropout": 0.4}"#;

fn roberta() -> String {
    BERT.replace("\"bert\"", "\"roberta\"")
}

/// Without dropout.
fn plain(json: &str) -> String {
    let mut config: serde_json::Map<_, _> = serde_json::from_str(json).unwrap();
    config.iter_mut().filter(|(key, _)| key.contains("dropout")).for_each(|(_, p)| *p = 0.into());
    serde_json::to_string(&config).unwrap()
}

fn config(json: &str) -> TextTrainerConfig {
    let model = TransformerConfig::from_json(serde_json::from_str(json).unwrap()).unwrap();
    let mut config = TextTrainerConfig::new(model, 30);
    config.schedule.learning_rate = 3e-3;
    config
}

/// Some sequences, and labels of all that can have one.
struct Data {
    ids: Vec<u32>,
    labelled: Vec<usize>,
    hard: Vec<u32>,
    soft: SoftTarget,
}

const LENGTHS: [u32; 3] = [17, 1, 30];

impl Data {
    fn new(trainer: &TextTrainer) -> Self {
        let mut rng = Philox::new(4, 20);
        let tokens = LENGTHS.iter().sum::<u32>() as usize;
        let (classes, words) = (trainer.config().model.classes(), 61);
        let rows = if classes == words { tokens } else { LENGTHS.len() };
        Self {
            ids: (0..tokens).map(|_| rng.below(words as u32)).collect(),
            labelled: (0..tokens).collect(),
            hard: (0..rows).map(|_| rng.below(classes as u32)).collect(),
            soft: SoftTarget::Logits((0..rows * classes).map(|_| rng.normal() as f32).collect()),
        }
    }

    fn batch(&self) -> TextBatch<'_> {
        TextBatch {
            tokens: TokenBatch { ids: &self.ids, lengths: &LENGTHS },
            labelled: &self.labelled,
            hard: Some(&self.hard),
            soft: Some(SoftLabels::Target(&self.soft)),
        }
    }

    fn rows(&self) -> f64 {
        self.hard.len() as f64
    }

    /// The loss; its gradient is added.
    fn loss(&self, trainer: &mut TextTrainer) -> f64 {
        let loss = LossConfig { alpha: 0.6, temperature: 2.0, ..LossConfig::default() };
        let sums = trainer.accumulate(&self.batch(), &loss, self.rows()).unwrap();
        sums.parts(&loss, self.rows()).total
    }

    fn step(&self, trainer: &mut TextTrainer) -> f64 {
        let loss = self.loss(trainer);
        trainer.update().unwrap();
        loss
    }
}

fn norm(x: impl Iterator<Item = f32>) -> f64 {
    x.map(|x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

fn all(tensors: &Tensors) -> impl Iterator<Item = f32> {
    tensors.values().flat_map(|(_, values)| values.iter().copied())
}

#[test]
fn mixed_precision_follows_f32() {
    for json in [QWEN.to_owned(), BERT.to_owned(), roberta(), DISTILBERT.to_owned()] {
        let json = plain(&json);
        let [mut exact, mut mixed] = [Precision::F32, Precision::Bf16]
            .map(|precision| TextTrainer::new(TextTrainerConfig { precision, ..config(&json) }))
            .map(Result::unwrap);
        let data = Data::new(&exact);
        data.loss(&mut exact);
        data.loss(&mut mixed);
        let (expected, found) = (exact.gradient(), mixed.gradient());
        for (name, (_, expected)) in &expected {
            let found = &found[name].1;
            let off = norm(found.iter().zip(expected).map(|(a, b)| a - b));
            let size = norm(expected.iter().copied());
            // Keys' biases have no gradient but rounding.
            let nothing = name.contains("k_lin.bias") || name.contains("key.bias");
            assert!(nothing || off < 0.05 * size, "{name}: {off} of {size}");
        }
        let off = norm(all(&found).zip(all(&expected)).map(|(a, b)| a - b));
        let size = norm(all(&expected));
        assert!(off > 1e-4 * size && off < 0.02 * size, "{json}: {off} of {size}");
        exact.forget_gradient();
        mixed.forget_gradient();
        let mut learnt = vec![];
        for step in 0..20 {
            let (expected, found) = (data.step(&mut exact), data.step(&mut mixed));
            let off = (found - expected).abs();
            assert!(off < 0.02 * expected.max(1.0), "{json}: step {step}: {found} {expected}");
            learnt.push(found);
        }
        assert!(learnt[19] < 0.7 * learnt[0], "{json}: {learnt:?}");
        // What is measured is the model as it will be served.
        let measured = mixed.measure(&data.batch()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        mixed.save_model(dir.path()).unwrap();
        exact.load_weights(dir.path()).unwrap();
        assert_eq!(measured, exact.measure(&data.batch()).unwrap());
    }
}

/// Computed again or kept, in one go or resumed: the same bytes, with whatever is dropped or rounded.
#[test]
fn checkpointing_and_resuming_change_no_bit() {
    for json in [QWEN.to_owned(), BERT.to_owned(), roberta(), DISTILBERT.to_owned()] {
        for precision in [Precision::F32, Precision::Bf16] {
            let trainer = |checkpoint_activations| {
                let config = config(&json);
                TextTrainer::new(TextTrainerConfig { precision, checkpoint_activations, ..config })
                    .unwrap()
            };
            let mut whole = trainer(false);
            let data = Data::new(&whole);
            // Two parts a step: each drops what is its own.
            let step = |trainer: &mut TextTrainer| {
                data.loss(trainer);
                data.step(trainer)
            };
            let losses: Vec<f64> = (0..4).map(|_| step(&mut whole)).collect();
            let mut first = trainer(true);
            let mut found: Vec<f64> = (0..2).map(|_| step(&mut first)).collect();
            let dir = tempfile::tempdir().unwrap();
            first.save_state(dir.path()).unwrap();
            let mut second = trainer(true);
            second.load_state(dir.path()).unwrap();
            // A step that was given up begins again as if it had not been.
            data.loss(&mut second);
            second.forget_gradient();
            found.extend((0..2).map(|_| step(&mut second)));
            assert_eq!(found, losses, "{json}");
            assert_eq!(second.weights_sha256().unwrap(), whole.weights_sha256().unwrap());
        }
    }
}

fn weights(trainer: &TextTrainer, dir: &Path) -> Tensors {
    trainer.save_model(dir).unwrap();
    let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8]| data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let tensors = file.tensors().into_iter();
    tensors.map(|(name, view)| (name, (view.shape().to_vec(), values(view.data())))).collect()
}

/// Bytes of a few steps in mixed precision with dropout, for any number of threads.
pub(crate) fn bytes_of_a_few_steps() -> Vec<u8> {
    let mut bytes = vec![];
    for json in [QWEN, BERT] {
        let wide = json.replace("\"hidden_size\": 32", "\"hidden_size\": 128");
        let config = TextTrainerConfig { precision: Precision::Bf16, ..config(&wide) };
        let mut trainer = TextTrainer::new(config).unwrap();
        let data = Data::new(&trainer);
        (0..3).for_each(|_| bytes.extend(data.step(&mut trainer).to_le_bytes()));
        bytes.extend(trainer.weights_sha256().unwrap());
    }
    bytes
}

/// The loss along the gradient, with the same values dropped.
#[test]
fn the_gradient_is_that_of_what_was_not_dropped() {
    for json in [QWEN.to_owned(), BERT.to_owned(), roberta(), DISTILBERT.to_owned()] {
        let mut trainer = TextTrainer::new(config(&json)).unwrap();
        let data = Data::new(&trainer);
        let dropped = data.loss(&mut trainer);
        let gradient = trainer.gradient();
        let slope = norm(all(&gradient));
        let another = data.loss(&mut trainer);
        assert_ne!(another, dropped, "{json}: another part of the step drops the same");
        trainer.forget_gradient();
        let dir = tempfile::tempdir().unwrap();
        let start = weights(&trainer, dir.path());
        let mut at = |by: f64| {
            let mut moved = start.clone();
            for (name, (_, values)) in &mut moved {
                let gradient = &gradient[name].1;
                let along = values.iter_mut().zip(gradient);
                along.for_each(|(w, g)| *w += (by / slope * f64::from(*g)) as f32);
            }
            write_tensors(&dir.path().join("model.safetensors"), &moved).unwrap();
            trainer.load_weights(dir.path()).unwrap();
            let loss = data.loss(&mut trainer);
            trainer.forget_gradient();
            loss
        };
        let h = 2e-3;
        let numeric = (at(h) - at(-h)) / (2.0 * h);
        assert!((numeric - slope).abs() < 2e-3 * slope, "{json}: {numeric}, not {slope}");
        // Nothing is dropped where nothing is learnt.
        let exact = TextTrainer::new(config(&plain(&json))).unwrap();
        let own = TextTrainer::new(config(&json)).unwrap();
        assert_eq!(own.measure(&data.batch()).unwrap(), exact.measure(&data.batch()).unwrap());
    }
}

#[test]
fn probabilities_out_of_range_are_refused_by_name() {
    for (key, json) in [
        ("attention_dropout", QWEN),
        ("hidden_dropout_prob", BERT),
        ("attention_probs_dropout_prob", BERT),
        ("classifier_dropout", BERT),
        ("seq_classif_dropout", DISTILBERT),
        ("dropout", DISTILBERT),
    ] {
        for (value, accepted) in [("1.0", false), ("-0.1", false), ("0.0", true), ("null", true)] {
            let mut config: serde_json::Map<_, _> = serde_json::from_str(json).unwrap();
            config.insert(key.to_owned(), serde_json::from_str(value).unwrap());
            let result = TransformerConfig::from_json(config);
            assert_eq!(result.is_ok(), accepted, "{key} {value}");
            if let Err(error) = result {
                let error = error.to_string();
                let expected = "expected at least 0 and below 1";
                assert!(error.contains(key) && error.contains(expected), "{error}");
            }
        }
    }
}
