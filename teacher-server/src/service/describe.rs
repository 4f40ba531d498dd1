//! `Describe`.

use bytes::Bytes;
use stillhouse_proto::v1::{
    DType, DescribeResponse, EncodingKind, EnsembleRule, FeatureSignature, InputSignature,
    RuleFingerprint, SequenceSignature, ServerLimits, Task, input_signature::Kind,
};

use super::Core;
use crate::{
    access::{Client, EncodingName},
    ensemble::{Accepts, Rule},
    validate::{FEATURE_DTYPES, MAX_DRAWS},
};

/// What a teacher says of itself to a client, none where there is no list of them.
pub(super) fn describe(core: &Core, client: Option<&Client>) -> DescribeResponse {
    let contract = &core.contract;
    let (input, task, max_tokens) = match &contract.accepts {
        &Accepts::Features { width, .. } => {
            let dtypes = FEATURE_DTYPES.iter().map(|dtype| *dtype as i32).collect();
            let features = FeatureSignature { width: width as u64, dtypes };
            (Kind::Features(features), Task::Classification, 0)
        }
        Accepts::Sequences { max_length, tokenizer, every_position, .. } => {
            let max_tokens = contract.limits.max_tokens;
            let sequences = SequenceSignature {
                max_length: max_tokens.min(u32::try_from(*max_length).unwrap_or(u32::MAX)),
                tokenizer_sha256: Bytes::copy_from_slice(tokenizer),
            };
            let task = if *every_position { Task::LanguageModel } else { Task::Classification };
            (Kind::Sequences(sequences), task, max_tokens)
        }
    };
    let encodings = EncodingName::ALL.into_iter().filter(|&encoding| {
        let there = encoding != EncodingName::Hidden || core.ensemble.only().is_some();
        there && client.is_none_or(|client| client.may_have(encoding))
    });
    let rules = Rule::ALL.into_iter().map(|rule| RuleFingerprint {
        rule: EnsembleRule::from(rule).into(),
        fingerprint: core.fingerprint(rule),
    });
    DescribeResponse {
        name: core.name.clone(),
        fingerprint: core.fingerprint(contract.default_rule),
        task: task.into(),
        input: Some(InputSignature { kind: Some(input) }),
        classes: contract.classes as u32,
        hidden_size: contract.hidden_size as u32,
        limits: Some(ServerLimits {
            max_rows: contract.limits.max_rows,
            max_tokens,
            max_message_bytes: contract.limits.max_message_bytes.into(),
            max_temperatures: contract.limits.max_temperatures,
            max_stream_in_flight: contract.limits.max_stream_in_flight,
            max_draws: MAX_DRAWS as u64,
        }),
        encodings: encodings.map(|encoding| EncodingKind::from(encoding).into()).collect(),
        compute_dtype: DType::F32.into(),
        server_version: env!("CARGO_PKG_VERSION").to_owned(),
        members: core.ensemble.describe(),
        default_rule: EnsembleRule::from(contract.default_rule).into(),
        rule_fingerprints: rules.collect(),
        takes_reports: true,
    }
}

impl From<EncodingName> for EncodingKind {
    fn from(name: EncodingName) -> Self {
        match name {
            EncodingName::Dense => Self::Dense,
            EncodingName::TopK => Self::TopK,
            EncodingName::Ids => Self::Ids,
            EncodingName::Sampled => Self::Sampled,
            EncodingName::Hidden => Self::Hidden,
        }
    }
}
