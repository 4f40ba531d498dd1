//! What a label costs on the wire, and how far the gradient that it gives is from that of dense labels:
//! every encoding, on real text, a real teacher and a student on its way to it.
//!
//! The measure is that of Random Sampling KD (arXiv 2503.16870, table 2): the angle between the two
//! gradients by all of the student's weights, and the ratio of their norms.

use std::path::Path;

use prost::Message as _;
use stillhouse_nn::{
    LossConfig, PackedHead, SoftLabels, TextBatch, TextModel, TextTrainer, TextTrainerConfig,
    TopKForm, TransformerConfig,
};
use stillhouse_proto::{
    decode,
    v1::{
        DType, DenseEncoding, HiddenEncoding, LabelRequest, SampledEncoding, TopKEncoding,
        encoding::Kind, label_request::Inputs,
    },
};
use student_worker::{
    label_client::soft_target,
    text::{
        corpus::{Corpora, TextTokenizer},
        packing::{Packed, groups, sequences},
        recipe::TextRecipe,
    },
};

use super::{Figures, Options, progress};
use crate::{client, process::Teacher};

/// Tokens of one request: dense labels of a few thousand words must fit in a message.
const REQUEST_TOKENS: usize = 1024;
/// Tokens whose gradients are compared.
const TOKENS: usize = 8192;

/// An encoding, its name and the form of its loss.
fn kinds() -> Vec<(&'static str, Kind, TopKForm)> {
    let (f32, bf16) = (DType::F32.into(), DType::Bf16.into());
    let top = |k| Kind::TopK(TopKEncoding { k, dtype: bf16 });
    let sampled = |draws| Kind::Sampled(SampledEncoding { draws, seed: 1 });
    let (tail, alone) = (TopKForm::TailBucket, TopKForm::Renormalized);
    vec![
        ("dense f32", Kind::Dense(DenseEncoding { kind: 0, dtype: f32 }), tail),
        ("dense bf16", Kind::Dense(DenseEncoding { kind: 0, dtype: bf16 }), tail),
        ("top 12, tail as one class", top(12), tail),
        ("top 50, tail as one class", top(50), tail),
        ("top 300, tail as one class", top(300), tail),
        ("top 12 alone, renormalised", top(12), alone),
        ("top 50 alone, renormalised", top(50), alone),
        ("top 300 alone, renormalised", top(300), alone),
        ("sampled 12", sampled(12), tail),
        ("sampled 50", sampled(50), tail),
        ("hidden bf16", Kind::Hidden(HiddenEncoding { dtype: bf16 }), tail),
        ("hidden f32", Kind::Hidden(HiddenEncoding { dtype: f32 }), tail),
    ]
}

pub(super) fn run(options: &Options) -> Figures {
    let mut figures = Figures::default();
    let (Some(teacher), Some(student), Some(recipe)) =
        (&options.teacher, &options.student, &options.recipe)
    else {
        let needed = "--teacher DIR, --student DIR and --recipe FILE (whose text it is)";
        figures.require(false, format!("this scenario needs {needed}"));
        return figures;
    };
    let text = std::fs::read_to_string(recipe).expect("the recipe can be read");
    let folder = recipe.parent().unwrap_or(Path::new("."));
    let recipe = text.parse().expect("the recipe is TOML");
    let recipe = student_worker::text::recipe::from_table(recipe, folder).expect("a text recipe");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(measure(teacher, student, &recipe, &mut figures));
    figures
}

async fn measure(teacher: &Path, student: &Path, recipe: &TextRecipe, figures: &mut Figures) {
    let (parts, words) = text(recipe);
    let model = TransformerConfig::load(student).expect("a student's configuration");
    let mut config = TextTrainerConfig::new(model, 1);
    config.vocabulary = Some(words);
    let mut trainer = TextTrainer::new(config).expect("a trainer");
    trainer.load_weights(student).expect("the student's weights");
    let head = TextModel::load(teacher).expect("the teacher").head().pack().expect("a head");
    let server = Teacher::start(teacher, &[]);
    let mut client = client::connect(server.address()).await;
    let labels: usize = parts.iter().map(|part| part.labelled.len()).sum();
    figures.add("labels", labels);
    figures.add("words", words);

    let mut reference: Vec<f64> = vec![];
    for (name, kind, top_k_form) in kinds() {
        progress(&format!("label gradients: {name}"));
        let loss = LossConfig { alpha: 1.0, temperature: 1.0, top_k_form, ..LossConfig::default() };
        let mut bytes = 0;
        for (id, part) in (0..).zip(&parts) {
            // Draws of every request are its own.
            let kind = match kind.clone() {
                Kind::Sampled(sampled) => {
                    Kind::Sampled(SampledEncoding { seed: id + 1, ..sampled })
                }
                kind => kind,
            };
            let request = LabelRequest {
                inputs: Some(Inputs::Sequences(part.to_wire())),
                encoding: client::encoding(kind),
                ..client::request(id, &[0.0], 1)
            };
            let response = client.label(request).await.expect("labels").into_inner();
            bytes += response.encoded_len();
            let batch = decode(&response.labels[0]).expect("labels that decode");
            step(&mut trainer, part, batch, &head, &loss, labels);
        }
        let gradient: Vec<f64> =
            trainer.gradient().into_values().flat_map(|(_, g)| g).map(f64::from).collect();
        // The weights stay as they are; the next encoding begins anew.
        trainer.forget_gradient();
        if reference.is_empty() {
            reference.clone_from(&gradient);
        }
        let (angle, ratio) = apart(&gradient, &reference);
        figures.add(format!("{name}: bytes per label"), bytes as f64 / labels as f64);
        figures.add(format!("{name}: degrees"), angle);
        figures.add(format!("{name}: norm ratio"), ratio);
    }
    progress("");
}

/// The first tokens to validate on, in requests, and the words of their tokenizer.
fn text(recipe: &TextRecipe) -> (Vec<Packed>, usize) {
    let path = recipe.data.tokenizer.as_ref().expect("data.tokenizer");
    let tokenizer = TextTokenizer::load(&recipe.data, path).expect("a tokenizer");
    let cache = tempfile::tempdir().expect("a folder");
    let corpora = Corpora::read(&recipe.data, &tokenizer, None, cache.path()).expect("text");
    let all = sequences(&corpora.validation, recipe.data.sequence_length);
    let order: Vec<u32> = (0..all.len() as u32).collect();
    let mut tokens = 0;
    let parts = groups(&all, &order, REQUEST_TOKENS)
        .map(|group| Packed::new(&corpora.validation, &all, group))
        .take_while(|part| {
            tokens += part.ids.len();
            tokens <= TOKENS
        });
    (parts.collect(), tokenizer.info().size)
}

/// Adds the gradient of one request's labels.
fn step(
    trainer: &mut TextTrainer,
    part: &Packed,
    batch: stillhouse_proto::LabelBatch,
    head: &PackedHead,
    loss: &LossConfig,
    labels: usize,
) {
    let (target, states);
    let soft = match batch.labels {
        stillhouse_proto::SoftLabels::Hidden { states: own, .. } => {
            states = own;
            SoftLabels::Hidden { states: &states, head }
        }
        _ => {
            target = soft_target([batch], None).expect("labels for the loss");
            SoftLabels::Target(&target)
        }
    };
    let batch = TextBatch {
        tokens: part.tokens(),
        labelled: &part.labelled,
        hard: Some(&part.hard),
        soft: Some(soft),
    };
    trainer.accumulate(&batch, loss, labels as f64).expect("a gradient");
}

/// Degrees between two vectors, and the ratio of their lengths.
fn apart(found: &[f64], expected: &[f64]) -> (f64, f64) {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (own, other) = (dot(found, found).sqrt(), dot(expected, expected).sqrt());
    let cosine = (dot(found, expected) / (own * other)).clamp(-1.0, 1.0);
    (cosine.acos().to_degrees(), own / other)
}
