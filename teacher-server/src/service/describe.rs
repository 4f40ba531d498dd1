//! `Describe`.

use stillhouse_proto::v1::{
    DType, DescribeResponse, EncodingKind, EnsembleRule, FeatureSignature, InputSignature,
    RuleFingerprint, ServerLimits, Task, input_signature::Kind,
};

use super::Core;
use crate::{
    ensemble::Rule,
    validate::{FEATURE_DTYPES, MAX_DRAWS},
};

pub(super) fn describe(core: &Core) -> DescribeResponse {
    let contract = &core.contract;
    let dtypes = FEATURE_DTYPES.iter().map(|dtype| *dtype as i32).collect();
    let features = FeatureSignature { width: contract.input_width as u64, dtypes };
    let mut encodings =
        vec![EncodingKind::Dense, EncodingKind::TopK, EncodingKind::Ids, EncodingKind::Sampled];
    if core.ensemble.only().is_some() {
        encodings.push(EncodingKind::Hidden);
    }
    let rules = Rule::ALL.into_iter().map(|rule| RuleFingerprint {
        rule: EnsembleRule::from(rule).into(),
        fingerprint: core.fingerprint(rule),
    });
    DescribeResponse {
        name: core.name.clone(),
        fingerprint: core.fingerprint(contract.default_rule),
        task: Task::Classification.into(),
        input: Some(InputSignature { kind: Some(Kind::Features(features)) }),
        classes: contract.classes as u32,
        hidden_size: contract.hidden_size as u32,
        limits: Some(ServerLimits {
            max_rows: contract.limits.max_rows,
            max_tokens: 0,
            max_message_bytes: contract.limits.max_message_bytes.into(),
            max_temperatures: contract.limits.max_temperatures,
            max_stream_in_flight: contract.limits.max_stream_in_flight,
            max_draws: MAX_DRAWS as u64,
        }),
        encodings: encodings.into_iter().map(Into::into).collect(),
        compute_dtype: DType::F32.into(),
        server_version: env!("CARGO_PKG_VERSION").to_owned(),
        members: core.ensemble.describe(),
        default_rule: EnsembleRule::from(contract.default_rule).into(),
        rule_fingerprints: rules.collect(),
    }
}
