//! What a run asks its teachers for, and the requests that ask it.

use std::time::Duration;

use stillhouse_nn::Divergence;
use stillhouse_proto::{
    LabelBatch, SoftLabels, limits,
    v1::{
        DType, DenseEncoding, DenseKind, Encoding, EncodingKind, EnsembleRule, HiddenEncoding,
        LabelRequest, LabelStreamRequest, SampledEncoding, Task, Tensor, TopKEncoding,
        encoding::Kind, label_request::Inputs, label_stream_request::Action,
    },
};

use super::gate::PROBE_ROWS;
use crate::recipe::{
    Recipe,
    teacher::{self, DenseValues, EncodingName, LabelType, TeacherSection},
};

/// Bytes of a message with a piece of a head, at most.
const HEAD_PIECE: u64 = 2 << 20;

/// The rows of one request, and which request of the run it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Position in the run, from 0: answers are handed on in this order.
    pub index: u64,
    /// What to label: rows of features, in an element type that the teacher takes, or sequences.
    pub inputs: Inputs,
    /// Number of labels.
    pub rows: usize,
    /// Temperature of the labels, that of the rows' epoch.
    pub temperature: f32,
    /// Seed of the teacher's draws; plays a part in `sampled` only. The same whenever this request
    /// is sent, now or after a resumption.
    pub seed: u64,
    /// Whether one replica labels all of it, as rows that do not come again are in no cache. Otherwise
    /// each row goes to its own replica, but for draws, which depend on its place in the request.
    pub whole: bool,
}

/// What every request of a run asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Name for the teacher's fairness and quotas.
    pub client: String,
    /// Temperature of the labels that a teacher is probed with, the recipe's first.
    pub probe_temperature: f32,
    /// The encoding; the seed of draws is filled in for each request.
    pub encoding: Kind,
    /// How the distributions of several models become one; UNSPECIFIED: as the teacher does it.
    pub ensemble: EnsembleRule,
    /// What the rows are.
    pub input: WantedInput,
    /// Classes, or words.
    pub classes: usize,
    /// Labels in the largest request.
    pub request_rows: usize,
    /// Time that a request may take.
    pub timeout: Duration,
}

/// What the student sends, which a teacher must take.
#[derive(Clone, Debug, PartialEq)]
pub enum WantedInput {
    /// Rows of features, each with a label.
    Features {
        /// Elements per row.
        width: usize,
    },
    /// Token sequences.
    Sequences {
        /// Whether each has one label, of a classifier; otherwise some of its positions have.
        classified: bool,
        /// SHA-256 of the student's tokenizer.
        tokenizer_sha256: [u8; 32],
        /// Tokens in the longest sequence.
        longest: usize,
        /// Sequences in the largest request.
        request_sequences: usize,
        /// Tokens in the largest request.
        request_tokens: usize,
    },
}

impl WantedInput {
    /// What kind of a teacher labels it.
    pub(super) fn task(&self) -> Task {
        match self {
            Self::Features { .. } | Self::Sequences { classified: true, .. } => {
                Task::Classification
            }
            Self::Sequences { classified: false, .. } => Task::LanguageModel,
        }
    }
}

impl Wanted {
    /// What a recipe asks its teacher for.
    pub fn new(recipe: &Recipe, teacher: &TeacherSection) -> Self {
        let batch = recipe.train.batch_size;
        Self {
            client: teacher.client.clone(),
            probe_temperature: recipe.loss.temperature as f32,
            encoding: encoding_of(teacher, recipe.loss.divergence),
            ensemble: rule_of(teacher),
            input: WantedInput::Features { width: recipe.student.input_width() },
            classes: recipe.student.classes(),
            request_rows: teacher.request_rows.unwrap_or(batch).min(batch),
            timeout: Duration::from_millis(teacher.timeout_ms.into()),
        }
    }

    /// The encoding's name on the wire.
    pub fn encoding_kind(&self) -> EncodingKind {
        match self.encoding {
            Kind::Dense(_) => EncodingKind::Dense,
            Kind::TopK(_) => EncodingKind::TopK,
            Kind::Ids(_) => EncodingKind::Ids,
            Kind::Sampled(_) => EncodingKind::Sampled,
            Kind::Hidden(_) => EncodingKind::Hidden,
        }
    }

    /// Bytes of the longest answer to expect of a teacher: labels, a probe's, or a piece of its head.
    pub(super) fn answer_bytes(&self, hidden_size: u32) -> u64 {
        let temperature = self.probe_temperature;
        let nothing = || Inputs::Features(Tensor::default());
        let labels = self.request_as(0, nothing(), temperature, self.encoding.clone());
        let probe = self.dense_request(nothing());
        [(labels, self.request_rows as u64), (probe, PROBE_ROWS.into())]
            .iter()
            .filter_map(|(request, rows)| {
                limits::response_bytes(request, *rows, self.classes as u32, hidden_size)
            })
            .fold(HEAD_PIECE, u64::max)
    }

    /// Checks that labels are those of a request for `rows` rows at a temperature; otherwise names
    /// the first thing that differs. Labels of another temperature or encoding would train all the
    /// same, to other weights.
    pub(crate) fn check(
        &self,
        rows: usize,
        temperature: f32,
        batch: &LabelBatch,
    ) -> Result<(), String> {
        let classes = self.classes;
        let temperature = if self.depends_on_temperature() { temperature } else { 0.0 };
        if (batch.rows, batch.classes) != (rows, classes) {
            return Err(format!(
                "it labels {} rows of {} classes, expected {rows} of {classes}",
                batch.rows, batch.classes
            ));
        }
        if batch.temperature != temperature {
            return Err(format!("temperature is {}, expected {temperature}", batch.temperature));
        }
        let (found, expected) = (describe_labels(&batch.labels), describe_kind(&self.encoding));
        if found != expected {
            return Err(format!("the labels are {found}, expected {expected}"));
        }
        Ok(())
    }

    /// Whether the same rows have other labels at another temperature; those of labels that do not
    /// is stated as 0.
    pub(crate) fn depends_on_temperature(&self) -> bool {
        !matches!(&self.encoding, Kind::Hidden(_)) && !self.wants_logits()
    }

    /// Whether the labels are logits, which only some rules leave of an ensemble.
    pub(super) fn wants_logits(&self) -> bool {
        matches!(&self.encoding, Kind::Dense(dense) if dense.kind() == DenseKind::Logits)
    }

    /// A request for some inputs of a job, under the number `id`.
    pub(super) fn request(&self, id: u64, job: &Job, inputs: Inputs) -> LabelRequest {
        let kind = match self.encoding.clone() {
            Kind::Sampled(sampled) => Kind::Sampled(SampledEncoding { seed: job.seed, ..sampled }),
            kind => kind,
        };
        self.request_as(id, inputs, job.temperature, kind)
    }

    /// A request for dense log-probabilities, whatever the run's encoding is.
    pub(super) fn dense_request(&self, inputs: Inputs) -> LabelRequest {
        let dense =
            DenseEncoding { kind: DenseKind::LogProbabilities.into(), dtype: DType::F32.into() };
        self.request_as(0, inputs, self.probe_temperature, Kind::Dense(dense))
    }

    /// A request for what the run asks for.
    pub(super) fn probe_request(&self, inputs: Inputs) -> LabelRequest {
        self.request_as(0, inputs, self.probe_temperature, self.encoding.clone())
    }

    fn request_as(&self, id: u64, inputs: Inputs, temperature: f32, kind: Kind) -> LabelRequest {
        LabelRequest {
            id,
            client: self.client.clone(),
            inputs: Some(inputs),
            temperatures: vec![temperature],
            encoding: Some(Encoding { kind: Some(kind) }),
            timeout_ms: u32::try_from(self.timeout.as_millis()).unwrap_or(u32::MAX),
            ensemble_rule: self.ensemble.into(),
            traceparent: String::new(),
        }
    }
}

/// An encoding in words, with everything that an answer shares with its request.
fn describe_kind(kind: &Kind) -> String {
    match kind {
        Kind::Dense(dense) => describe_dense(dense.kind()),
        Kind::TopK(top_k) => format!("the top {}", top_k.k),
        Kind::Ids(ids) => format!("of {} named ids a row", ids.ids_per_row),
        Kind::Sampled(sampled) => format!("{} draws a row", sampled.draws),
        Kind::Hidden(_) => "hidden states".to_owned(),
    }
}

/// As [`describe_kind`], of labels that came.
fn describe_labels(labels: &SoftLabels) -> String {
    match labels {
        SoftLabels::Dense { kind, .. } => describe_dense(*kind),
        SoftLabels::TopK { k, .. } => format!("the top {k}"),
        SoftLabels::Ids { ids_per_row, .. } => format!("of {ids_per_row} named ids a row"),
        SoftLabels::Sampled { draws, .. } => format!("{draws} draws a row"),
        SoftLabels::Hidden { .. } => "hidden states".to_owned(),
    }
}

fn describe_dense(kind: DenseKind) -> String {
    let kind = match kind {
        DenseKind::Logits => "logits",
        DenseKind::Probabilities => "probabilities",
        DenseKind::LogProbabilities | DenseKind::Unspecified => "log-probabilities",
    };
    format!("dense {kind}")
}

/// A request as a message of a stream.
pub(crate) fn on_stream(request: LabelRequest) -> LabelStreamRequest {
    LabelStreamRequest { action: Some(Action::Label(request)) }
}

/// The rule of an ensemble, as requests name it.
pub(crate) fn rule_of(teacher: &TeacherSection) -> EnsembleRule {
    match teacher.ensemble {
        None => EnsembleRule::Unspecified,
        Some(teacher::EnsembleRule::Arithmetic) => EnsembleRule::Arithmetic,
        Some(teacher::EnsembleRule::Geometric) => EnsembleRule::Geometric,
    }
}

/// The encoding that a section asks for, for a loss of that divergence.
pub(crate) fn encoding_of(teacher: &TeacherSection, divergence: Divergence) -> Kind {
    let encoding = teacher.encoding();
    let dtype = match encoding.dtype {
        LabelType::F32 => DType::F32,
        LabelType::F16 => DType::F16,
        LabelType::Bf16 => DType::Bf16,
    };
    let dtype = dtype.into();
    match encoding.kind {
        EncodingName::Dense => {
            let kind = match encoding.dense_values(divergence) {
                DenseValues::Logits => DenseKind::Logits,
                DenseValues::LogProbabilities => DenseKind::LogProbabilities,
            };
            Kind::Dense(DenseEncoding { kind: kind.into(), dtype })
        }
        EncodingName::TopK => Kind::TopK(TopKEncoding { k: encoding.k.unwrap_or_default(), dtype }),
        EncodingName::Sampled => {
            Kind::Sampled(SampledEncoding { draws: encoding.draws.unwrap_or_default(), seed: 0 })
        }
        EncodingName::Hidden => Kind::Hidden(HiddenEncoding { dtype }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(encoding: Kind) -> Wanted {
        Wanted {
            client: String::new(),
            probe_temperature: 1.0,
            encoding,
            ensemble: EnsembleRule::Geometric,
            input: WantedInput::Features { width: 1 },
            classes: 2,
            request_rows: 1,
            timeout: Duration::from_secs(1),
        }
    }

    fn dense(kind: DenseKind) -> Kind {
        Kind::Dense(DenseEncoding { kind: kind.into(), dtype: 0 })
    }

    fn batch(temperature: f32, labels: SoftLabels) -> LabelBatch {
        LabelBatch { temperature, rows: 1, classes: 2, labels }
    }

    fn labels(kind: DenseKind) -> SoftLabels {
        SoftLabels::Dense { kind, values: vec![-0.5, -0.5] }
    }

    fn top_k(k: usize) -> SoftLabels {
        let (ids, log_probabilities) = (vec![0; k], vec![-1.0; k]);
        SoftLabels::TopK { k, ids, log_probabilities, log_tail_mass: vec![-1.0] }
    }

    #[test]
    fn what_was_asked_for_passes() {
        for (kind, temperature) in [
            (DenseKind::LogProbabilities, 4.0),
            (DenseKind::Probabilities, 4.0),
            (DenseKind::Logits, 0.0),
        ] {
            let wanted = wanted(dense(kind));
            assert_eq!(wanted.check(1, 4.0, &batch(temperature, labels(kind))), Ok(()));
        }
        let wanted = wanted(Kind::TopK(TopKEncoding { k: 1, dtype: 0 }));
        assert_eq!(wanted.check(1, 4.0, &batch(4.0, top_k(1))), Ok(()));
    }

    #[test]
    fn every_request_names_the_rule() {
        let wanted = wanted(dense(DenseKind::LogProbabilities));
        let job = Job {
            index: 0,
            inputs: Inputs::Features(Tensor::default()),
            rows: 1,
            temperature: 4.0,
            seed: 0,
            whole: true,
        };
        let request = wanted.request(1, &job, job.inputs.clone());
        assert_eq!(request.ensemble_rule(), EnsembleRule::Geometric);
        // That of the job's epoch.
        assert_eq!(request.temperatures, [4.0]);
        let probe = wanted.dense_request(Inputs::Features(Tensor::default()));
        assert_eq!(probe.ensemble_rule(), EnsembleRule::Geometric);
    }

    #[test]
    fn what_was_not_asked_for_is_named() {
        let logs = DenseKind::LogProbabilities;
        for (encoding, answer, rows, expected) in [
            (dense(logs), batch(1.0, labels(logs)), 1, "temperature is 1, expected 4"),
            (
                dense(DenseKind::Logits),
                batch(4.0, labels(DenseKind::Logits)),
                1,
                "temperature is 4, expected 0",
            ),
            (
                dense(logs),
                batch(4.0, labels(DenseKind::Probabilities)),
                1,
                "the labels are dense probabilities, expected dense log-probabilities",
            ),
            (
                Kind::TopK(TopKEncoding { k: 2, dtype: 0 }),
                batch(4.0, top_k(1)),
                1,
                "the labels are the top 1, expected the top 2",
            ),
            (
                Kind::Sampled(SampledEncoding { draws: 7, seed: 0 }),
                batch(4.0, labels(logs)),
                1,
                "dense log-probabilities, expected 7 draws a row",
            ),
            (dense(logs), batch(4.0, labels(logs)), 2, "1 rows of 2 classes, expected 2 of 2"),
        ] {
            let error = wanted(encoding).check(rows, 4.0, &answer).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
