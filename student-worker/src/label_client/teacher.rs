//! What a teacher says of itself, held against what the run needs.

use stillhouse_proto::v1::{
    DType, DescribeResponse, EncodingKind, EnsembleRule, RuleFingerprint, ServerLimits, Task,
    input_signature::Kind,
};

use super::{ClientError, Wanted, WantedInput};
use crate::recipe::identity::hex;

/// Longest message that is sent to a teacher, whatever it says of itself.
const MAX_MESSAGE_BYTES: u64 = 1 << 30;
/// A fingerprint's length, in bytes.
const FINGERPRINT_BYTES: usize = 32;

/// A teacher that suits the run.
#[derive(Clone, Debug, PartialEq)]
pub struct Teacher {
    /// Its model's name, for people.
    pub name: String,
    /// SHA-256 over everything that decides its labels, the run's rule for an ensemble among it.
    pub fingerprint: Vec<u8>,
    /// Width of its hidden state.
    pub hidden_size: usize,
    /// Whether rows can be sent as bytes, which it rescales itself.
    pub takes_bytes: bool,
    /// Whether it answers with dense labels, which it is then probed for.
    pub(crate) offers_dense: bool,
    /// Longest message that it takes.
    pub(super) max_message_bytes: usize,
    /// Longest answer that an honest teacher gives.
    pub(super) max_answer_bytes: usize,
    /// Requests in flight on one stream.
    pub(super) max_in_flight: usize,
    /// Whether it wants to know how the run is going.
    pub(super) takes_reports: bool,
}

impl Teacher {
    /// Checks a description.
    ///
    /// # Errors
    /// [`ClientError::Unsuitable`], naming the first thing that does not fit the run.
    pub(super) fn suited(
        endpoint: &str,
        description: DescribeResponse,
        wanted: &Wanted,
    ) -> Result<Self, ClientError> {
        let unsuitable = |field, found: String, expected: String| ClientError::Unsuitable {
            endpoint: endpoint.to_owned(),
            field,
            found,
            expected,
        };
        let (task, wanted_task) = (description.task(), wanted.input.task());
        if task != wanted_task {
            return Err(unsuitable("task", format!("{task:?}"), format!("{wanted_task:?}")));
        }
        let fingerprint = match wanted.ensemble {
            EnsembleRule::Unspecified => &description.fingerprint,
            rule => {
                // A teacher that lists none ignores the rule that it is asked for.
                let listed = description.rule_fingerprints.iter();
                let Some(found) = listed.clone().find(|listed| listed.rule() == rule) else {
                    let rules: Vec<EnsembleRule> = listed.map(RuleFingerprint::rule).collect();
                    let expected = format!("{rule:?} among the rules, as teacher.ensemble");
                    return Err(unsuitable("rule_fingerprints", format!("{rules:?}"), expected));
                };
                &found.fingerprint
            }
        };
        let length = fingerprint.len();
        if length != FINGERPRINT_BYTES {
            let expected = format!("{FINGERPRINT_BYTES} bytes");
            return Err(unsuitable("fingerprint", format!("{length} bytes"), expected));
        }
        let fingerprint = fingerprint.to_vec();
        if description.classes as usize != wanted.classes {
            let whose = match wanted_task {
                Task::LanguageModel => "the words of the student's tokenizer",
                Task::Classification | Task::Unspecified => "the student's num_labels",
            };
            let expected = format!("{}, {whose}", wanted.classes);
            return Err(unsuitable("classes", description.classes.to_string(), expected));
        }
        let encodings: Vec<EncodingKind> = description.encodings().collect();
        let kind = wanted.encoding_kind();
        let members = description.members.len();
        if !encodings.contains(&kind) {
            let mut expected = format!("{kind:?} among them");
            if kind == EncodingKind::Hidden && members > 1 {
                expected += &format!(": an ensemble of {members} models has no one hidden state");
            }
            return Err(unsuitable("encodings", format!("{encodings:?}"), expected));
        }
        let rule = match wanted.ensemble {
            EnsembleRule::Unspecified => description.default_rule(),
            rule => rule,
        };
        if wanted.wants_logits() && members > 1 && rule == EnsembleRule::Arithmetic {
            let expected = format!(
                "Geometric for logits of an ensemble of {members} models (teacher.ensemble)"
            );
            return Err(unsuitable("the rule", format!("{rule:?}"), expected));
        }
        let limits = description.limits.unwrap_or_default();
        let hidden_size = description.hidden_size as usize;
        let input = description.input.as_ref().and_then(|input| input.kind.as_ref());
        let (takes_bytes, bytes) = match (&wanted.input, input) {
            (&WantedInput::Features { width }, Some(Kind::Features(features))) => {
                if (limits.max_rows as usize) < wanted.request_rows {
                    let expected =
                        format!("{} or more, as teacher.request_rows", wanted.request_rows);
                    return Err(unsuitable(
                        "limits.max_rows",
                        limits.max_rows.to_string(),
                        expected,
                    ));
                }
                if features.width != width as u64 {
                    let expected = format!("{width}, the student's input_size");
                    return Err(unsuitable("features.width", features.width.to_string(), expected));
                }
                let dtypes: Vec<DType> = features.dtypes().collect();
                let takes_bytes = dtypes.contains(&DType::U8);
                if !takes_bytes && !dtypes.contains(&DType::F32) {
                    let expected = "U8 or F32".into();
                    return Err(unsuitable("features.dtypes", format!("{dtypes:?}"), expected));
                }
                let element = if takes_bytes { 1 } else { size_of::<f32>() };
                (takes_bytes, wanted.request_rows.saturating_mul(width).saturating_mul(element))
            }
            (
                WantedInput::Sequences {
                    classified: _,
                    tokenizer_sha256,
                    longest,
                    request_sequences,
                    request_tokens,
                },
                Some(Kind::Sequences(sequences)),
            ) => {
                if *sequences.tokenizer_sha256 != *tokenizer_sha256 {
                    let expected = format!("{}, the student's", hex(tokenizer_sha256));
                    let found = hex(&sequences.tokenizer_sha256);
                    return Err(unsuitable("tokenizer_sha256", found, expected));
                }
                let counts = [
                    (
                        "sequences.max_length",
                        sequences.max_length,
                        *longest,
                        "data.sequence_length",
                    ),
                    (
                        "limits.max_rows",
                        limits.max_rows,
                        *request_sequences,
                        "a request's sequences; fewer are in one with a smaller \
                         train.micro_batch_tokens",
                    ),
                    (
                        "limits.max_tokens",
                        limits.max_tokens,
                        *request_tokens,
                        "train.micro_batch_tokens",
                    ),
                ];
                for (field, found, least, whose) in counts {
                    if (found as usize) < least {
                        let expected = format!("{least} or more, as {whose}");
                        return Err(unsuitable(field, found.to_string(), expected));
                    }
                }
                // Ids, lengths and marks.
                let bytes = request_tokens.saturating_mul(5).saturating_add(5 * request_sequences);
                (false, bytes)
            }
            (WantedInput::Features { .. }, _) => {
                return Err(unsuitable("input", "not features".into(), "features".into()));
            }
            (WantedInput::Sequences { .. }, _) => {
                return Err(unsuitable("input", "not sequences".into(), "sequences".into()));
            }
        };
        // With room for all that is not rows.
        let bytes = bytes.saturating_add(1024) as u64;
        if bytes > limits.max_message_bytes {
            let expected = match wanted.input {
                WantedInput::Features { .. } => format!(
                    "{bytes} or more for {} rows; fewer fit as teacher.request_rows",
                    wanted.request_rows
                ),
                WantedInput::Sequences { .. } => {
                    format!(
                        "{bytes} or more; less is needed with a smaller train.micro_batch_tokens"
                    )
                }
            };
            let found = limits.max_message_bytes.to_string();
            return Err(unsuitable("limits.max_message_bytes", found, expected));
        }
        let answer = wanted.answer_bytes(description.hidden_size);
        let most = limits.max_message_bytes;
        if matches!(wanted.input, WantedInput::Sequences { .. }) && answer > most {
            let expected = format!(
                "{answer} or more, {} labels; less is needed with a smaller \
                 train.micro_batch_tokens, or other teacher.encoding",
                wanted.request_rows
            );
            return Err(unsuitable("limits.max_message_bytes", most.to_string(), expected));
        }
        Ok(Self {
            name: description.name,
            fingerprint,
            hidden_size,
            takes_reports: description.takes_reports,
            takes_bytes,
            offers_dense: encodings.contains(&EncodingKind::Dense),
            max_message_bytes: message_bytes(&limits),
            max_answer_bytes: answer_bytes(wanted, description.hidden_size),
            max_in_flight: (limits.max_stream_in_flight as usize).clamp(1, 1 << 16),
        })
    }
}

/// Bytes of one request: what the teacher says, within bounds that suit this process.
fn message_bytes(limits: &ServerLimits) -> usize {
    limits.max_message_bytes.clamp(1 << 16, MAX_MESSAGE_BYTES) as usize
}

/// Bytes of one answer: what was asked for, by the sizes that the teacher says it has, within
/// bounds that suit this process.
fn answer_bytes(wanted: &Wanted, hidden_size: u32) -> usize {
    wanted.answer_bytes(hidden_size).min(MAX_MESSAGE_BYTES) as usize
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use stillhouse_proto::v1::{
        DenseEncoding, DenseKind, EnsembleMember, FeatureSignature, HiddenEncoding, InputSignature,
        TopKEncoding, encoding,
    };

    use super::*;

    fn wanted() -> Wanted {
        Wanted {
            client: String::new(),
            probe_temperature: 4.0,
            encoding: encoding::Kind::TopK(TopKEncoding { k: 2, dtype: DType::F32.into() }),
            ensemble: EnsembleRule::Unspecified,
            input: WantedInput::Features { width: 784 },
            classes: 10,
            request_rows: 128,
            timeout: Duration::from_secs(1),
        }
    }

    fn description() -> DescribeResponse {
        let features =
            FeatureSignature { width: 784, dtypes: vec![DType::U8.into(), DType::F32.into()] };
        DescribeResponse {
            fingerprint: vec![7; 32].into(),
            task: Task::Classification.into(),
            classes: 10,
            input: Some(InputSignature { kind: Some(Kind::Features(features)) }),
            limits: Some(ServerLimits {
                max_rows: 128,
                max_message_bytes: u64::MAX,
                max_stream_in_flight: 0,
                ..ServerLimits::default()
            }),
            encodings: vec![EncodingKind::TopK.into()],
            ..DescribeResponse::default()
        }
    }

    #[test]
    fn limits_are_kept_within_bounds() {
        let teacher = Teacher::suited("t", description(), &wanted()).unwrap();
        assert!(teacher.takes_bytes && !teacher.offers_dense);
        assert_eq!(teacher.max_message_bytes as u64, MAX_MESSAGE_BYTES);
        assert_eq!(teacher.max_in_flight, 1);
    }

    /// Two models under the arithmetic mean, unless asked otherwise.
    fn ensemble() -> DescribeResponse {
        let rule = |rule: EnsembleRule, fingerprint: u8| RuleFingerprint {
            rule: rule.into(),
            fingerprint: vec![fingerprint; 32].into(),
        };
        DescribeResponse {
            members: vec![EnsembleMember::default(); 2],
            default_rule: EnsembleRule::Arithmetic.into(),
            rule_fingerprints: vec![
                rule(EnsembleRule::Arithmetic, 7),
                rule(EnsembleRule::Geometric, 8),
            ],
            encodings: vec![EncodingKind::TopK.into(), EncodingKind::Dense.into()],
            ..description()
        }
    }

    #[test]
    fn the_fingerprint_is_that_of_the_rule() {
        for (rule, expected) in [
            (EnsembleRule::Unspecified, 7),
            (EnsembleRule::Arithmetic, 7),
            (EnsembleRule::Geometric, 8),
        ] {
            let wanted = Wanted { ensemble: rule, ..wanted() };
            let teacher = Teacher::suited("t", ensemble(), &wanted).unwrap();
            assert_eq!(teacher.fingerprint, [expected; 32]);
        }
    }

    #[test]
    fn what_an_ensemble_lacks_is_named_at_once() {
        let refused = |wanted: Wanted, description| {
            Teacher::suited("t", description, &wanted).unwrap_err().to_string()
        };
        let geometric = || Wanted { ensemble: EnsembleRule::Geometric, ..wanted() };
        // A teacher that knows no rules.
        let error = refused(geometric(), description());
        assert!(error.contains("rule_fingerprints is [], expected Geometric among"), "{error}");
        let mut short = ensemble();
        short.rule_fingerprints[1].fingerprint = vec![8].into();
        let error = refused(geometric(), short);
        assert!(error.contains("fingerprint is 1 bytes, expected 32 bytes"), "{error}");

        let hidden = encoding::Kind::Hidden(HiddenEncoding::default());
        let error = refused(Wanted { encoding: hidden, ..geometric() }, ensemble());
        assert!(error.contains("Hidden among them: an ensemble of 2 models has no"), "{error}");

        let logits = DenseEncoding { kind: DenseKind::Logits.into(), dtype: 0 };
        let logits = |wanted| Wanted { encoding: encoding::Kind::Dense(logits), ..wanted };
        let error = refused(logits(wanted()), ensemble());
        assert!(error.contains("the rule is Arithmetic, expected Geometric for logits"), "{error}");
        assert!(Teacher::suited("t", ensemble(), &logits(geometric())).is_ok());
    }

    #[test]
    fn what_does_not_fit_is_named() {
        type Change = fn(&mut DescribeResponse);
        let cases: [(Change, &str); 9] = [
            (
                |d| d.limits.as_mut().unwrap().max_message_bytes = 65_536,
                "limits.max_message_bytes is 65536, expected 101376 or more for 128 rows",
            ),
            (|d| d.task = Task::LanguageModel.into(), "task is LanguageModel"),
            (|d| d.fingerprint = vec![1].into(), "fingerprint is 1 bytes, expected 32 bytes"),
            (|d| d.classes = 100, "classes is 100, expected 10, the student's num_labels"),
            (|d| d.encodings.clear(), "encodings is [], expected TopK among them"),
            (|d| d.limits = None, "limits.max_rows is 0, expected 128 or more"),
            (|d| d.input = None, "input is not features"),
            (
                |d| {
                    let features = FeatureSignature { width: 3, dtypes: vec![DType::U8.into()] };
                    d.input = Some(InputSignature { kind: Some(Kind::Features(features)) });
                },
                "features.width is 3, expected 784, the student's input_size",
            ),
            (
                |d| {
                    let features = FeatureSignature { width: 784, dtypes: Vec::new() };
                    d.input = Some(InputSignature { kind: Some(Kind::Features(features)) });
                },
                "features.dtypes is [], expected U8 or F32",
            ),
        ];
        for (change, expected) in cases {
            let mut description = description();
            change(&mut description);
            let error = Teacher::suited("http://t:1", description, &wanted()).unwrap_err();
            let error = error.to_string();
            assert!(
                error.starts_with("teacher http://t:1: ") && error.contains(expected),
                "{error}"
            );
        }
    }
}
