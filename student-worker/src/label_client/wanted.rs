//! What a run asks its teachers for, and the requests that ask it.

use std::time::Duration;

use stillhouse_nn::Divergence;
use stillhouse_proto::v1::{
    DType, DenseEncoding, DenseKind, Encoding, EncodingKind, HiddenEncoding, LabelRequest,
    LabelStreamRequest, SampledEncoding, Tensor, TopKEncoding, encoding::Kind,
    label_request::Inputs, label_stream_request::Action,
};

use crate::recipe::{
    Recipe,
    teacher::{EncodingName, LabelType, TeacherSection},
};

/// The rows of one request, and which request of the run it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Position in the run, from 0: answers are handed on in this order.
    pub index: u64,
    /// The rows, `[rows, width]`, in an element type that the teacher takes.
    pub features: Tensor,
    /// Number of rows.
    pub rows: usize,
    /// Seed of the teacher's draws; plays a part in `sampled` only. The same whenever this request
    /// is sent, now or after a resumption.
    pub seed: u64,
}

/// What every request of a run asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Name for the teacher's fairness and quotas.
    pub client: String,
    /// Temperature of the labels.
    pub temperature: f32,
    /// The encoding; the seed of draws is filled in for each request.
    pub encoding: Kind,
    /// Elements per row.
    pub input_width: usize,
    /// Classes.
    pub classes: usize,
    /// Rows in the largest request.
    pub request_rows: usize,
    /// Time that a request may take.
    pub timeout: Duration,
}

impl Wanted {
    /// What a recipe asks its teacher for.
    pub fn new(recipe: &Recipe, teacher: &TeacherSection) -> Self {
        let batch = recipe.train.batch_size;
        Self {
            client: teacher.client.clone(),
            temperature: recipe.loss.temperature as f32,
            encoding: kind(recipe, teacher),
            input_width: recipe.student.input_width(),
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

    /// A request for a job, under the number `id`.
    pub(super) fn request(&self, id: u64, job: &Job) -> LabelRequest {
        let kind = match self.encoding.clone() {
            Kind::Sampled(sampled) => Kind::Sampled(SampledEncoding { seed: job.seed, ..sampled }),
            kind => kind,
        };
        self.request_as(id, job.features.clone(), kind)
    }

    /// A request for dense log-probabilities, whatever the run's encoding is.
    pub(super) fn dense_request(&self, features: Tensor) -> LabelRequest {
        let dense =
            DenseEncoding { kind: DenseKind::LogProbabilities.into(), dtype: DType::F32.into() };
        self.request_as(0, features, Kind::Dense(dense))
    }

    fn request_as(&self, id: u64, features: Tensor, kind: Kind) -> LabelRequest {
        LabelRequest {
            id,
            client: self.client.clone(),
            inputs: Some(Inputs::Features(features)),
            temperatures: vec![self.temperature],
            encoding: Some(Encoding { kind: Some(kind) }),
            timeout_ms: u32::try_from(self.timeout.as_millis()).unwrap_or(u32::MAX),
        }
    }
}

/// A request as a message of a stream.
pub(super) fn on_stream(request: LabelRequest) -> LabelStreamRequest {
    LabelStreamRequest { action: Some(Action::Label(request)) }
}

fn kind(recipe: &Recipe, teacher: &TeacherSection) -> Kind {
    let encoding = &teacher.encoding;
    let dtype = match encoding.dtype {
        LabelType::F32 => DType::F32,
        LabelType::F16 => DType::F16,
        LabelType::Bf16 => DType::Bf16,
    };
    let dtype = dtype.into();
    match encoding.kind {
        EncodingName::Dense => {
            // A comparison of logits needs them; all other losses read probabilities at T.
            let kind = if recipe.loss.divergence == Divergence::LogitMse {
                DenseKind::Logits
            } else {
                DenseKind::LogProbabilities
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
