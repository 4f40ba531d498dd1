//! `config.json` of Hugging Face transformers.
//!
//! The file is kept as it came, for export; what decides the numbers is read out of it into a
//! [`Spec`]. Families that share a design differ only in keys, defaults and tensor names.

mod decoder;
mod encoder;
mod reader;
mod rope;
mod spec;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use reader::Reader;
pub(crate) use spec::{Activation, Family, LayerSpec, NormKind, Placement, Rope, Spec, Task};

use crate::error::ModelError;
use crate::io::write_atomic;
use crate::model::CONFIG_FILE;
use crate::model::check;

/// Every `model_type`, for error messages.
const MODEL_TYPES: &[&str] = &[
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "bert",
    "distilbert",
    "roberta",
];

/// Blocks, heads and the width of a head, at most.
const MAX_LAYERS: usize = 1024;
const MAX_HEADS: usize = 4096;
const MAX_SEGMENTS: usize = 1 << 16;
const MAX_HEAD_DIM: usize = 1024;

/// A transformer of one of the supported families. As JSON it is its `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TransformerConfig {
    /// The whole file.
    #[serde(flatten)]
    raw: Map<String, Value>,
    #[serde(skip)]
    spec: Spec,
}

impl TransformerConfig {
    /// Whether `model_type` is one of this module's.
    pub fn supports(model_type: &str) -> bool {
        MODEL_TYPES.contains(&model_type)
    }

    /// Every `model_type`, comma-separated.
    pub fn supported() -> String {
        MODEL_TYPES.join(", ")
    }

    /// Reads and validates `config.json` in `dir`. Keys that are absent have the default that
    /// transformers gives them; those that decide nothing here are kept and written back.
    ///
    /// # Errors
    ///
    /// [`ModelError::Io`], [`ModelError::Json`], [`ModelError::UnknownModelType`] or
    /// [`ModelError::ConfigFile`].
    pub fn load(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join(CONFIG_FILE);
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ModelError::Io { path: path.clone(), source })?;
        Self::parse(&path, &text)
    }

    /// [`Self::load`] of a file's text; `path` only names it.
    ///
    /// # Errors
    ///
    /// [`ModelError::Json`], [`ModelError::UnknownModelType`] or [`ModelError::ConfigFile`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ModelError> {
        let json = |source| ModelError::Json { path: path.to_owned(), source };
        let raw: Map<String, Value> = serde_json::from_str(text).map_err(json)?;
        if let Some(found) = raw.get("model_type").and_then(Value::as_str)
            && !Self::supports(found)
        {
            return Err(ModelError::UnknownModelType {
                path: path.to_owned(),
                found: found.to_owned(),
                supported: Self::supported(),
            });
        }
        Self::from_json(raw).map_err(|error| error.in_file(path))
    }

    /// Of a file's keys and values.
    ///
    /// # Errors
    ///
    /// [`ModelError::Config`], naming the key, its value and the accepted range.
    pub fn from_json(raw: Map<String, Value>) -> Result<Self, ModelError> {
        let reader = Reader::new(&raw);
        let spec = match reader.text("model_type")? {
            Some("bert") => encoder::bert(&reader),
            Some("roberta") => encoder::roberta(&reader),
            Some("distilbert") => encoder::distilbert(&reader),
            Some("llama") => decoder::llama(&reader),
            Some("mistral") => decoder::mistral(&reader),
            Some("qwen2") => decoder::qwen2(&reader),
            Some("qwen3") => decoder::qwen3(&reader),
            Some("gemma2") => decoder::gemma2(&reader),
            Some("gemma3_text") => decoder::gemma3(&reader),
            _ => Err(reader.fault("model_type", &format!("one of {}", MODEL_TYPES.join(", ")))),
        }?;
        validate(&spec)?;
        Ok(Self { raw, spec })
    }

    /// The same model with some of its layers, numbered from 0, ascending.
    ///
    /// # Errors
    ///
    /// [`ModelError::Config`] for a layer that it does not have, or none.
    pub fn with_layers(&self, keep: &[usize]) -> Result<Self, ModelError> {
        let count = self.spec.layers.len();
        let ascending = keep.is_sorted_by(|a, b| a < b);
        if !ascending || keep.is_empty() || keep.iter().any(|&layer| layer >= count) {
            let expected = format!("some of the layers 0 to {}, ascending", count.max(1) - 1);
            check::refuse("layers", format!("{keep:?}"), &expected)?;
        }
        let mut raw = self.raw.clone();
        let key =
            if self.spec.family == Family::DistilBert { "n_layers" } else { "num_hidden_layers" };
        raw.insert(key.to_owned(), keep.len().into());
        // Layers differ: which is which must not follow from their new numbers.
        if raw.contains_key("layer_types") || self.spec.layers.iter().any(|l| l.window.is_some()) {
            let kind = |&layer: &usize| match self.spec.layers[layer].window {
                Some(_) => "sliding_attention",
                None => "full_attention",
            };
            let every_slides = self.raw.get("model_type").is_some_and(|kind| kind == "mistral");
            if !every_slides {
                raw.insert("layer_types".to_owned(), keep.iter().map(kind).collect());
            }
        }
        Self::from_json(raw)
    }

    /// What the tensors of a layer begin with.
    pub(crate) fn layer_prefix(&self, layer: usize) -> String {
        match self.spec.family {
            Family::Llama | Family::Gemma => format!("model.layers.{layer}."),
            Family::Bert => format!("bert.encoder.layer.{layer}."),
            Family::Roberta => format!("roberta.encoder.layer.{layer}."),
            Family::DistilBert => format!("distilbert.transformer.layer.{layer}."),
        }
    }

    /// The file of a model whose weights are written in f32, with the class that transformers loads it
    /// as.
    pub(crate) fn of_f32_weights(&self) -> Self {
        let mut config = self.clone();
        for key in ["dtype", "torch_dtype"] {
            if let Some(dtype) = config.raw.get_mut(key) {
                *dtype = "float32".into();
            }
        }
        let class = match self.raw.get("model_type").and_then(Value::as_str) {
            Some("llama") => "LlamaForCausalLM",
            Some("mistral") => "MistralForCausalLM",
            Some("qwen2") => "Qwen2ForCausalLM",
            Some("qwen3") => "Qwen3ForCausalLM",
            Some("gemma2") => "Gemma2ForCausalLM",
            Some("gemma3_text") => "Gemma3ForCausalLM",
            Some("bert") => "BertForSequenceClassification",
            Some("roberta") => "RobertaForSequenceClassification",
            _ => "DistilBertForSequenceClassification",
        };
        config.raw.entry("architectures").or_insert_with(|| vec![class].into());
        config
    }

    /// Writes `config.json` in `dir`: every key that was read.
    ///
    /// # Errors
    ///
    /// As [`write_atomic`].
    pub fn save(&self, dir: &Path) -> Result<(), ModelError> {
        let path = dir.join(CONFIG_FILE);
        let mut text = serde_json::to_vec_pretty(&self.raw)
            .map_err(|source| ModelError::Json { path: path.clone(), source })?;
        text.push(b'\n');
        write_atomic(&path, &text)
    }

    /// Name and shape of every tensor of the model's file.
    pub fn tensors(&self) -> BTreeMap<String, Vec<usize>> {
        self.spec.tensors()
    }

    pub(crate) fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The whole file.
    pub fn json(&self) -> &Map<String, Value> {
        &self.raw
    }

    /// Vocabulary V of a language model, classes of a classifier.
    pub fn classes(&self) -> usize {
        self.spec.classes()
    }

    /// Whether there is a label at every position instead of one for each sequence.
    pub fn is_language_model(&self) -> bool {
        matches!(self.spec.task, Task::LanguageModel { .. })
    }

    /// Rows of the token embedding: every token id is below it.
    pub fn vocabulary(&self) -> usize {
        self.spec.vocab
    }

    /// Tokens that a sequence may have.
    pub fn max_length(&self) -> usize {
        self.spec.max_positions
    }

    /// Width d of what the output projection sees.
    pub fn hidden_size(&self) -> usize {
        self.spec.hidden
    }
}

/// Bounds that all families share; afterwards no product of sizes overflows.
fn validate(spec: &Spec) -> Result<(), ModelError> {
    check::size("vocab_size", spec.vocab, 1)?;
    check::size("hidden_size", spec.hidden, 1)?;
    check::size("intermediate_size", spec.intermediate, 1)?;
    check::within("num_hidden_layers", spec.layers.len(), 0..=MAX_LAYERS)?;
    check::within("num_attention_heads", spec.heads, 1..=MAX_HEADS)?;
    check::within("num_key_value_heads", spec.kv_heads, 1..=spec.heads)?;
    if !spec.heads.is_multiple_of(spec.kv_heads) {
        let expected = format!("a divisor of the {} heads", spec.heads);
        check::refuse("num_key_value_heads", spec.kv_heads, &expected)?;
    }
    check::within("head_dim", spec.head_dim, 1..=MAX_HEAD_DIM)?;
    if !spec.ropes.is_empty() && !spec.head_dim.is_multiple_of(2) {
        check::refuse("head_dim", spec.head_dim, "an even number: its halves are rotated")?;
    }
    check::size("max_position_embeddings", spec.max_positions, 1)?;
    if let Task::Classification { labels, .. } = spec.task {
        check::size("number of labels", labels, 2)?;
    }
    let block = [
        (spec.hidden, spec.q_width()),
        (spec.hidden, 2 * spec.kv_width()),
        (spec.q_width(), spec.hidden),
        (spec.hidden, if spec.gated { 3 } else { 2 } * spec.intermediate),
    ];
    let block: usize =
        block.iter().map(|(a, b)| a.saturating_mul(*b)).fold(0, usize::saturating_add);
    let mut tables = spec.vocab.saturating_mul(2);
    if let Some(learned) = &spec.learned {
        check::within("type_vocab_size", learned.segments, 0..=MAX_SEGMENTS)?;
        tables = tables.saturating_add(spec.max_positions).saturating_add(learned.segments);
    }
    if let Task::Classification { labels, .. } = spec.task {
        // The layer before the classifier, and the classifier.
        tables = tables.saturating_add(spec.hidden).saturating_add(labels);
    }
    check::parameters(
        [tables.saturating_mul(spec.hidden), block.saturating_mul(spec.layers.len())].into_iter(),
    )
}

#[cfg(test)]
mod tests;
