//! The section of a recipe about the teacher.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use stillhouse_nn::Divergence;

/// Where a teacher runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TeacherKind {
    /// In this process, from a model directory, asked over the loopback interface.
    Embedded,
    /// One or more servers with the same model.
    Endpoints,
    /// Nowhere any more: its labels were captured into a folder.
    Captured,
}

/// Where soft labels come from, and how they are asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherSection {
    /// Where the teacher runs.
    pub kind: TeacherKind,
    /// Of an embedded teacher: its model directory.
    #[serde(default)]
    pub model: Option<PathBuf>,
    /// Of an embedded teacher, in place of `model`: the directories of models that answer as one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<PathBuf>,
    /// How the distributions of several models become one; absent: as the teacher does it for those
    /// who do not say. Plays no part with one model.
    #[serde(default)]
    pub ensemble: Option<EnsembleRule>,
    /// Of a captured teacher: the folder of its labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// Of teachers elsewhere: their addresses, such as `http://teacher-0:50051`.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// Of teachers that ask for a token: the file that holds it. It is read for every connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Of teachers with `https` addresses: certificates. They are read for every connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TeacherTls>,
    /// Name that the server's fairness and quotas go by; empty: the peer's address.
    #[serde(default)]
    pub client: String,
    /// What the labels travel as; absent: the default, or what labels were captured in.
    #[serde(default)]
    pub encoding: Option<EncodingSection>,
    /// Rows per request; absent: a whole batch.
    #[serde(default)]
    pub request_rows: Option<usize>,
    /// Batches that are asked for ahead of the one that is trained on, at least: up to half as many more are,
    /// so that several are asked for at a time. 0: each when it is needed.
    #[serde(default = "default_prefetch")]
    pub prefetch: usize,
    /// Bytes of labels that the student keeps for when their rows come again, in the next epoch, 0 to
    /// 2^50; 0: it asks anew. Draws, and rows that are augmented anew, are never kept.
    #[serde(default = "default_kept_bytes")]
    pub kept_bytes: u64,
    /// Time a request may take, in milliseconds, before it is sent again.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u32,
    /// How failures that may pass are retried.
    #[serde(default)]
    pub retry: RetrySection,
    /// What the run does when no teacher answers.
    #[serde(default)]
    pub on_teacher_loss: OnTeacherLoss,
}

/// Certificates, in PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TeacherTls {
    /// Authorities that may vouch for teachers; absent: the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Of mutual TLS: the student's certificate, and those up to its authority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// Of mutual TLS: its private key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// Name that the teachers' certificates must have; absent: the host of the endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// Send the token to `http` addresses elsewhere, where whoever is on the way can read it.
    pub allow_plaintext_token: bool,
}

/// What a run does when no teacher answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnTeacherLoss {
    /// Waits for `retry.max_elapsed_seconds`, then ends with a checkpoint.
    #[default]
    Wait,
    /// Ends with a checkpoint as soon as no teacher is connected.
    Fail,
    /// Waits for `retry.max_elapsed_seconds`, then goes on with hard labels alone until a teacher
    /// answers again. Such steps are counted and shown; the weights depend on when it happens.
    HardLabels,
}

impl TeacherSection {
    /// A teacher with every other value at its default.
    pub fn new(kind: TeacherKind) -> Self {
        Self {
            kind,
            model: None,
            models: Vec::new(),
            ensemble: None,
            dir: None,
            endpoints: Vec::new(),
            token_file: None,
            tls: None,
            client: String::new(),
            encoding: None,
            request_rows: None,
            prefetch: default_prefetch(),
            kept_bytes: default_kept_bytes(),
            timeout_ms: default_timeout_ms(),
            retry: RetrySection::default(),
            on_teacher_loss: OnTeacherLoss::default(),
        }
    }

    /// What the labels travel as, the default where nothing is said.
    pub fn encoding(&self) -> EncodingSection {
        self.encoding.clone().unwrap_or_default()
    }

    /// Of an embedded teacher: the directories of its models, in order.
    pub fn folders(&self) -> Vec<PathBuf> {
        self.model.iter().chain(&self.models).cloned().collect()
    }
}

fn default_prefetch() -> usize {
    4
}

fn default_kept_bytes() -> u64 {
    256 << 20
}

fn default_timeout_ms() -> u32 {
    30_000
}

/// How the distributions of an ensemble's models become one (Hinton et al. 2015, arXiv 1503.02531,
/// sections 1 and 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum EnsembleRule {
    /// The mean of the models' probabilities at the temperature.
    #[default]
    Arithmetic,
    /// The softmax at the temperature of the mean of the models' logits.
    Geometric,
}

/// An encoding by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum EncodingName {
    /// All classes of each row.
    #[default]
    Dense,
    /// The `k` most probable classes of each row, and the mass of the rest.
    TopK,
    /// `draws` draws from the teacher's distribution.
    Sampled,
    /// The hidden state before the output projection; logits are rebuilt here.
    Hidden,
}

/// Element type of the numbers in a label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LabelType {
    /// IEEE 754 binary32.
    #[default]
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
}

/// What a dense label holds of each class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DenseValues {
    /// Log-probabilities at the temperature of the loss, which the teacher applies.
    #[default]
    LogProbabilities,
    /// Logits: the student applies the temperature, so that the same labels serve all of them.
    Logits,
}

/// What the labels travel as.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EncodingSection {
    /// Which encoding.
    pub kind: EncodingName,
    /// Element type; plays no part in `sampled`.
    pub dtype: LabelType,
    /// Of `dense`: what they hold; absent: logits where the loss compares logits, otherwise
    /// log-probabilities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values: Option<DenseValues>,
    /// Of `top_k`: classes per row.
    pub k: Option<u32>,
    /// Of `sampled`: draws per row.
    pub draws: Option<u32>,
}

impl EncodingSection {
    /// What dense labels hold for a student that compares them by a divergence.
    pub fn dense_values(&self, divergence: Divergence) -> DenseValues {
        match self.values {
            None if divergence == Divergence::LogitMse => DenseValues::Logits,
            values => values.unwrap_or_default(),
        }
    }

    /// The same in one way of writing it: `values` says logits wherever the labels are logits, and
    /// nothing otherwise.
    pub fn explicit(&self, divergence: Divergence) -> Self {
        let dense = self.kind == EncodingName::Dense;
        let values = self.dense_values(divergence);
        Self {
            values: Some(values).filter(|values| dense && *values == DenseValues::Logits),
            ..self.clone()
        }
    }

    /// The same in one way of writing it, the one of recipes that only follow the loss: `values` says
    /// logits where they are not what the loss asks for by itself.
    pub fn implicit(&self, divergence: Divergence) -> Self {
        let explicit = self.explicit(divergence);
        let values = explicit.values.filter(|_| divergence != Divergence::LogitMse);
        Self { values, ..explicit }
    }
}

/// How failures that may pass are retried: after a pause that doubles from `initial_ms` to
/// `max_ms`, with jitter, until no label has come for `max_elapsed_seconds`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetrySection {
    /// Longest time without any label, in seconds, before the run gives up.
    pub max_elapsed_seconds: f64,
    /// First pause, in milliseconds.
    pub initial_ms: u64,
    /// Longest pause, in milliseconds.
    pub max_ms: u64,
}

impl Default for RetrySection {
    fn default() -> Self {
        Self { max_elapsed_seconds: 120.0, initial_ms: 50, max_ms: 5_000 }
    }
}

impl RetrySection {
    /// Longest time without any label. Clamped to what a clock can add.
    pub fn max_elapsed(&self) -> Duration {
        Duration::try_from_secs_f64(self.max_elapsed_seconds).unwrap_or(Duration::MAX)
    }
}
