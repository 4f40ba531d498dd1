//! A recipe for a language model, or for a classifier of texts: as one for a classifier of rows, with text
//! in the place of rows, and steps of a token budget in the place of epochs.

mod check;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use check::check;

use serde::{Deserialize, Serialize};
use stillhouse_nn::{LossConfig, OptimizerConfig, Precision, Sampling, ScheduleConfig};
use stillhouse_runtime::config;
use toml::Table;

use crate::recipe::{
    OutputSection, RecipeError, TeacherSection, loss_weights, resolve, resolve_credentials, strict,
};

/// A whole recipe. Paths are relative to the recipe's file as written, and absolute once loaded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextRecipe {
    /// Name of the run, for people: in the report, in the progress, in the default output folder.
    pub name: String,
    /// Seed of everything random: initial weights, order of sequences, the teacher's draws.
    #[serde(default)]
    pub seed: u64,
    /// What to train and validate on.
    pub data: TextData,
    /// The model to train.
    pub student: StudentSection,
    /// Where soft labels come from; without it the student learns from the text only.
    pub teacher: Option<TeacherSection>,
    /// Steps on samples of the student's own; absent: none.
    pub on_policy: Option<OnPolicySection>,
    /// How hard and soft labels are combined.
    #[serde(default, with = "loss_weights")]
    pub loss: LossConfig,
    /// How gradients become updates.
    #[serde(default, deserialize_with = "strict::section")]
    pub optimizer: OptimizerConfig,
    /// The learning rate over the run.
    #[serde(default, deserialize_with = "strict::section")]
    pub schedule: ScheduleConfig,
    /// How long and in which pieces.
    #[serde(default)]
    pub train: TextTrain,
    /// Where results go.
    #[serde(default)]
    pub output: OutputSection,
}

/// Format of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TextFormat {
    /// Plain text: one document a file, or several between separators.
    Text,
    /// One JSON object a line.
    Jsonl,
    /// Parquet files, compressed by Snappy or not.
    Parquet,
    /// A table whose first line names the columns, which tabs separate; nothing is quoted.
    Tsv,
}

/// What happens to a document that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFault {
    /// The run ends, naming file and line.
    Error,
    /// It is passed over, and counted.
    Skip,
}

/// What happens to a document that is longer than a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLong {
    /// It becomes several sequences, each token predicted once.
    Split,
    /// What is beyond a sequence is left out.
    Truncate,
    /// It is passed over, and counted.
    Skip,
    /// The run ends, naming file and line.
    Error,
}

/// What to train and validate on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextData {
    /// Format of the files.
    pub format: TextFormat,
    /// Files to train on, in order.
    pub train_files: Vec<PathBuf>,
    /// Files to validate on, in order.
    #[serde(default)]
    pub validation_files: Vec<PathBuf>,
    /// In the place of files: the last part of the documents, or of the text where it is one document;
    /// above 0 and below 1.
    pub validation_fraction: Option<f64>,
    /// `tokenizer.json`, or a folder with one; absent: that of the student's folder.
    pub tokenizer: Option<PathBuf>,
    /// Tokens of the longest sequence.
    pub sequence_length: usize,
    /// Of `text`: what stands between two documents; absent: a file is one.
    pub separator: Option<String>,
    /// Unless `format` is `text`: the key, or column, of the text; absent: `text`.
    pub text_field: Option<String>,
    /// The same, in the place of `text_field`: the key, or column, of the prompt.
    pub prompt_field: Option<String>,
    /// The key of the completion that follows the prompt.
    pub completion_field: Option<String>,
    /// Beside `text_field`: the key, or column, of a text's class, by number from 0 or by its name in the
    /// student's `id2label`. With it the student is a classifier, of one sequence a text, around which the
    /// tokenizer puts its special tokens.
    pub label_field: Option<String>,
    /// Of `jsonl`, in the place of `text_field`: the key of a conversation, a list of objects with
    /// `role` and `content`, which the tokenizer's chat template turns into text.
    pub messages_field: Option<String>,
    /// File with a chat template in the place of the tokenizer's.
    pub chat_template: Option<PathBuf>,
    /// Whether only completions, or what the assistant says, are learnt, and not what is before them.
    /// Absent: only those.
    pub completions_only: Option<bool>,
    /// Special token before every document; absent: none.
    pub begin: Option<String>,
    /// Special token behind every document, which is learnt; absent: none.
    pub end: Option<String>,
    /// Unless `format` is `text`: what is no document: not JSON, no object, or without the keys; a line with
    /// another number of columns; or with a label that is no class. Absent: an error.
    pub on_malformed: Option<OnFault>,
    /// Documents that are not UTF-8.
    #[serde(default = "error")]
    pub on_invalid_utf8: OnFault,
    /// Documents without a token to learn.
    #[serde(default = "skip")]
    pub on_empty: OnFault,
    /// Documents that are longer than a sequence. Absent: `split`; of a classifier, `truncate`.
    pub on_long: Option<OnLong>,
    /// A part of the sequences to train on, above 0 and at most 1, the same for the same seed; of a
    /// classifier, as many of each class as there are. Absent: all.
    pub fraction: Option<f64>,
    /// `[index, count]`: of each epoch's order only every count-th sequence, from the index on, so that
    /// `count` runs share an epoch; absent: all.
    pub shard: Option<[u32; 2]>,
    /// Folder where tokens and the teacher's output projection are kept; absent: `cache` beside the
    /// run's folder.
    pub cache_dir: Option<PathBuf>,
}

impl TextData {
    /// The key, or column, of the text.
    pub fn text_field(&self) -> &str {
        self.text_field.as_deref().unwrap_or("text")
    }

    /// Whether only completions, or what the assistant says, are learnt.
    pub fn completions_only(&self) -> bool {
        self.completions_only.unwrap_or(true)
    }

    /// Whether the student is a classifier.
    pub fn classifies(&self) -> bool {
        self.label_field.is_some()
    }

    /// What happens to documents that are longer than a sequence.
    pub fn on_long(&self) -> OnLong {
        let default = if self.classifies() { OnLong::Truncate } else { OnLong::Split };
        self.on_long.unwrap_or(default)
    }

    /// What happens to what is no document.
    pub fn on_malformed(&self) -> OnFault {
        self.on_malformed.unwrap_or(OnFault::Error)
    }
}

fn error() -> OnFault {
    OnFault::Error
}

fn skip() -> OnFault {
    OnFault::Skip
}

/// The model to train: exactly one of the three.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StudentSection {
    /// From scratch: a `config.json` of Hugging Face's.
    pub config: Option<PathBuf>,
    /// From a Hugging Face folder: architecture and weights.
    pub model: Option<PathBuf>,
    /// From some layers of a Hugging Face folder's model, usually the teacher's.
    pub layers_of: Option<PathBuf>,
    /// Of `layers_of`: which layers are kept, by number from 0, ascending.
    pub keep_layers: Vec<usize>,
}

/// Steps on what the student itself writes (GKD: Agarwal et al., 2024, "On-Policy Distillation of Language
/// Models"): it continues prompts of the text, and the teacher's labels of those very tokens are all that
/// is learnt, by `loss.divergence` at `loss.temperature`, with the weight of soft labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnPolicySection {
    /// Probability that a step is one of these (lambda), above 0 and at most 1. The seed and the step's
    /// number decide.
    pub fraction: f64,
    /// Tokens of a continuation, at most.
    pub max_new_tokens: usize,
    /// Tokens of a sequence that are the prompt, where the data say of none what it is: elsewhere it is
    /// what stands before the first token that is learnt.
    pub prompt_tokens: usize,
    /// Of the student's samples; 0: its most probable tokens.
    #[serde(default = "one")]
    pub temperature: f64,
    /// Mass that the student's samples are taken from, above 0 and at most 1.
    #[serde(default = "one")]
    pub top_p: f64,
}

fn one() -> f64 {
    1.0
}

impl OnPolicySection {
    /// How the student is sampled.
    pub fn sampling(&self, seed: u64) -> Sampling {
        Sampling { temperature: self.temperature, top_p: self.top_p, seed }
    }
}

/// How long and in which pieces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TextTrain {
    /// Optimisation steps.
    pub steps: u64,
    /// Tokens of a step, at most: whole sequences up to it.
    pub batch_tokens: usize,
    /// Tokens that are computed at once, and asked of the teacher in one request; absent: a whole
    /// step's. The step is the same but for rounding; where labels are drawn, the student writes or has
    /// dropout, the draws are others.
    pub micro_batch_tokens: Option<usize>,
    /// Steps between two validations; the last step is always validated.
    pub eval_every_steps: u64,
    /// Tokens to validate on, the first ones; of a classifier, of texts evenly spread; absent: all.
    pub eval_tokens: Option<usize>,
    /// Of them, tokens whose labels are asked of the teacher too, to be compared; 0: none. Of a
    /// classifier, unless 0, all that is validated is compared.
    pub agreement_tokens: usize,
    /// Steps between two checkpoints; 0: only at the end, which always leaves one, early or not.
    pub checkpoint_every_steps: u64,
    /// Checkpoints to keep, newest first.
    pub keep_checkpoints: usize,
    /// Largest L2 norm of the gradient over all parameters; 0: not clipped.
    pub clip_norm: f64,
    /// Whether weight decay applies to norms and biases too, and not only to matrices.
    pub decay_vectors: bool,
    /// Whether activations are computed again in the backward pass instead of kept: less memory, more
    /// time, the same weights.
    pub checkpoint_activations: bool,
    /// Of the layers' products: `f32`, or `bf16` for mixed precision, in which activations take up to half
    /// the memory, too. Validation is in f32.
    pub precision: Precision,
}

impl Default for TextTrain {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch_tokens: 4096,
            micro_batch_tokens: None,
            eval_every_steps: 100,
            eval_tokens: None,
            agreement_tokens: 4096,
            checkpoint_every_steps: 500,
            keep_checkpoints: 2,
            clip_norm: 1.0,
            decay_vectors: false,
            checkpoint_activations: false,
            precision: Precision::F32,
        }
    }
}

impl TextTrain {
    /// Largest L2 norm of the gradient, where it is clipped.
    pub fn clip_norm(&self) -> Option<f64> {
        Some(self.clip_norm).filter(|norm| *norm != 0.0)
    }

    /// Tokens that are computed at once.
    pub fn micro_batch_tokens(&self) -> usize {
        self.micro_batch_tokens.unwrap_or(self.batch_tokens)
    }
}

/// Keys that no recipe for images has.
const TEXT_KEYS: [&str; 9] = [
    "sequence_length",
    "tokenizer",
    "validation_fraction",
    "text_field",
    "prompt_field",
    "completion_field",
    "messages_field",
    "label_field",
    "separator",
];

/// Whether a recipe's table is one for text.
pub fn is_text(table: &Table) -> bool {
    let Some(data) = table.get("data") else { return false };
    let format = data.get("format").and_then(toml::Value::as_str);
    // Parquet files hold images, too.
    matches!(format, Some("text" | "jsonl" | "tsv"))
        || TEXT_KEYS.iter().any(|key| data.get(key).is_some())
}

/// Makes a recipe of what a file in `folder` would hold.
///
/// # Errors
/// If anything about it is not accepted; nothing else has been opened or created by then.
pub fn from_table(table: Table, folder: &Path) -> Result<TextRecipe, RecipeError> {
    let mut recipe: TextRecipe = config::read(table)?;
    if let Some(teacher) = &mut recipe.teacher {
        teacher.encoding.get_or_insert_default();
    }
    resolve_paths(&mut recipe, folder)?;
    check(&recipe)?;
    Ok(recipe)
}

fn resolve_paths(recipe: &mut TextRecipe, folder: &Path) -> Result<(), RecipeError> {
    let (data, student) = (&mut recipe.data, &mut recipe.student);
    let mut paths = vec![
        ("data.train_files", data.train_files.as_mut_slice()),
        ("data.validation_files", data.validation_files.as_mut_slice()),
        ("data.tokenizer", data.tokenizer.as_mut_slice()),
        ("data.cache_dir", data.cache_dir.as_mut_slice()),
        ("data.chat_template", data.chat_template.as_mut_slice()),
        ("student.config", student.config.as_mut_slice()),
        ("student.model", student.model.as_mut_slice()),
        ("student.layers_of", student.layers_of.as_mut_slice()),
        ("output.dir", recipe.output.dir.as_mut_slice()),
    ];
    if let Some(teacher) = &mut recipe.teacher {
        paths.push(("teacher.model", teacher.model.as_mut_slice()));
        paths.push(("teacher.models", teacher.models.as_mut_slice()));
        paths.push(("teacher.dir", teacher.dir.as_mut_slice()));
    }
    for (key, list) in paths {
        for path in list {
            resolve(key, path, folder)?;
        }
    }
    if let Some(teacher) = &mut recipe.teacher {
        resolve_credentials(teacher, folder)?;
    }
    Ok(())
}
