//! The memory that a peer can make of a message is within the stated factors, and the bytes of an
//! honest answer within the stated bound.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;
mod counting;

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;
use stillhouse_proto::{
    LabelBatch, SoftLabels, encode,
    limits::{
        DESCRIBE_MEMORY_PER_BYTE, MAX_DESCRIBE_BYTES, MAX_ERROR_BYTES, MAX_MEMBERS, MAX_NAME_BYTES,
        MAX_ROW_ERROR_BYTES, REQUEST_MEMORY_PER_BYTE, RESPONSE_MEMORY_PER_BYTE, describe_memory,
        request_bytes_within, request_memory, response_bytes, response_bytes_within,
        response_memory,
    },
    v1::{self, encoding::Kind, label_stream_response::Result as Answer},
};

/// One more than a power of two: the last element makes a vector grow, which is when it holds most.
const MANY: usize = (1 << 14) + 1;

/// A field of bytes or of a message, as it travels.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    prost::encode_length_delimiter(content.len(), &mut out).unwrap();
    out.extend_from_slice(content);
    out
}

/// Memory held for each byte of a message; a message that does not decode holds some too.
fn per_byte<M: Message + Default>(message: Vec<u8>, bound: fn(u64) -> u64) -> f64 {
    let message = Bytes::from(message);
    let (decoded, held) = counting::most_held(|| M::decode(message.clone()));
    drop(decoded);
    let bytes = message.len();
    assert!(held as u64 <= bound(bytes as u64), "{held} bytes for a message of {bytes}");
    held as f64 / bytes as f64
}

/// The worst is as bad as the factor says, so the factor promises no less than can be had.
fn assert_tight(worst: f64, factor: u64) {
    assert!(worst > 0.95 * factor as f64, "the worst is {worst}, the factor {factor}");
}

#[test]
fn requests_stay_within_their_factor() {
    let features = |content: &[u8]| field(3, content);
    let sequences = |content: &[u8]| field(4, content);
    let messages = [
        features(&field(2, &[0; MANY])),
        features(&[0x10, 0].repeat(MANY)),
        sequences(&field(1, &[0; MANY])),
        sequences(&[0x08, 0].repeat(MANY)),
        field(5, &[0; 4 * MANY]),
        field(6, &field(1, &[])).repeat(MANY),
        // One input after the other: the last holds.
        [features(&[]), sequences(&[])].concat().repeat(MANY),
    ];
    let mut worst = 0.0_f64;
    for message in messages {
        let in_stream = field(1, &message);
        worst = worst.max(per_byte::<v1::LabelRequest>(message, request_memory));
        worst = worst.max(per_byte::<v1::LabelStreamRequest>(in_stream, request_memory));
    }
    assert_tight(worst, REQUEST_MEMORY_PER_BYTE);
}

#[test]
fn responses_stay_within_their_factor() {
    let labels = |content: &[u8]| field(3, content);
    let mut messages = vec![labels(&[]).repeat(MANY), field(4, &[]).repeat(MANY)];
    for payload in 4..=8 {
        messages.push(labels(&field(payload, &[])).repeat(MANY));
        // With a tensor of one dimension, in whichever fields are tensors.
        for tensor in 1..=4 {
            let shaped = field(payload, &field(tensor, &field(2, &[1])));
            messages.push(labels(&shaped).repeat(MANY));
        }
        // And one whose shape is the whole message.
        messages.push(labels(&field(payload, &field(1, &field(2, &[0; MANY])))));
        messages.push(labels(&field(payload, &field(2, &field(2, &[0; MANY])))));
    }
    messages.push(labels(&[field(4, &[]), field(5, &[])].concat().repeat(MANY)));
    let mut worst = 0.0_f64;
    for message in messages {
        let in_stream = field(2, &message);
        worst = worst.max(per_byte::<v1::LabelResponse>(message, response_memory));
        worst = worst.max(per_byte::<v1::LabelStreamResponse>(in_stream, response_memory));
    }
    assert_tight(worst, RESPONSE_MEMORY_PER_BYTE);
}

#[test]
fn descriptions_and_heads_stay_within_their_factors() {
    let features = |content: &[u8]| field(4, &field(1, content));
    let messages = [
        field(8, &[0; MANY]),
        [0x40, 0].repeat(MANY),
        features(&field(2, &[0; MANY])),
        field(11, &[]).repeat(MANY),
        field(13, &[]).repeat(MANY),
    ];
    let worst = messages
        .into_iter()
        .map(|message| per_byte::<v1::DescribeResponse>(message, describe_memory))
        .fold(0.0, f64::max);
    assert_tight(worst, DESCRIBE_MEMORY_PER_BYTE);
    per_byte::<v1::FetchHeadResponse>(field(2, &[0; MANY]), response_memory);
}

/// The largest description that keeps the contract, with every number at its longest.
#[test]
fn an_honest_description_fits() {
    let name = "x".repeat(MAX_NAME_BYTES);
    let fingerprint = Bytes::from(vec![1; 32]);
    let member = v1::EnsembleMember { name: name.clone(), fingerprint: fingerprint.clone() };
    let rule = v1::RuleFingerprint { rule: 2, fingerprint: fingerprint.clone() };
    let (tokenizer_sha256, most) = (fingerprint.clone(), u32::MAX);
    let sequences = v1::SequenceSignature { max_length: most, tokenizer_sha256 };
    let description = v1::DescribeResponse {
        name,
        fingerprint,
        task: 2,
        input: Some(v1::InputSignature {
            kind: Some(v1::input_signature::Kind::Sequences(sequences)),
        }),
        classes: most,
        hidden_size: most,
        limits: Some(v1::ServerLimits {
            max_rows: most,
            max_tokens: most,
            max_message_bytes: u64::MAX,
            max_temperatures: most,
            max_stream_in_flight: most,
            max_draws: u64::MAX,
        }),
        encodings: vec![1, 2, 3, 4, 5],
        compute_dtype: 3,
        server_version: "x".repeat(64),
        members: vec![member; MAX_MEMBERS],
        default_rule: 2,
        rule_fingerprints: vec![rule; 2],
        takes_reports: true,
    };
    assert!(description.encoded_len() as u64 <= MAX_DESCRIBE_BYTES);
}

#[test]
fn a_limit_that_is_chosen_by_memory_keeps_to_it() {
    for memory in [0, 5000, 1 << 20, 1 << 30] {
        let (request, response) = (request_bytes_within(memory), response_bytes_within(memory));
        assert!(request == 0 || request_memory(request) + request <= memory);
        assert!(response == 0 || response_memory(response) + response <= memory);
    }
    assert!(response_bytes_within(1 << 30) > 15 << 20, "1 GiB is enough for 15 MiB");
    assert_eq!(response_memory(u64::MAX), u64::MAX);
}

/// The request that a batch answers, at that many temperatures.
fn request(batch: &LabelBatch, dtype: v1::DType, times: usize) -> v1::LabelRequest {
    let dtype = dtype.into();
    let kind = match &batch.labels {
        SoftLabels::Dense { kind, .. } => {
            Kind::Dense(v1::DenseEncoding { kind: (*kind).into(), dtype })
        }
        SoftLabels::TopK { k, .. } => Kind::TopK(v1::TopKEncoding { k: *k as u32, dtype }),
        SoftLabels::Ids { ids_per_row, .. } => {
            let ids_per_row = *ids_per_row as u32;
            Kind::Ids(v1::IdsEncoding { ids_per_row, ids: Bytes::new(), dtype })
        }
        SoftLabels::Sampled { draws, .. } => {
            Kind::Sampled(v1::SampledEncoding { draws: *draws, seed: 0 })
        }
        SoftLabels::Hidden { .. } => Kind::Hidden(v1::HiddenEncoding { dtype }),
    };
    v1::LabelRequest {
        temperatures: vec![1.0; times],
        encoding: Some(v1::Encoding { kind: Some(kind) }),
        ..Default::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is in a message, valid or not, the factors hold.
    #[test]
    fn noise_stays_within_the_factors(
        noise in prop::collection::vec(prop_oneof![0_u8..0x50, any::<u8>()], 0..2000),
    ) {
        per_byte::<v1::LabelRequest>(noise.clone(), request_memory);
        per_byte::<v1::LabelStreamRequest>(noise.clone(), request_memory);
        per_byte::<v1::LabelResponse>(noise.clone(), response_memory);
        per_byte::<v1::LabelStreamResponse>(noise, response_memory);
    }

    /// The largest answer that keeps the contract, with every number at its longest, an error for
    /// each row beside its labels, fits in the stated bound.
    #[test]
    fn an_honest_answer_fits(
        batch in common::batch(),
        dtype in common::dtype(),
        times in 1_usize..=8,
    ) {
        let width = match &batch.labels {
            SoftLabels::Hidden { width, .. } => *width as u32,
            _ => 7,
        };
        let request = request(&batch, dtype, times);
        let bound = response_bytes(&request, batch.rows as u64, batch.classes as u32, width).unwrap();
        let sent = if batch.temperature == 0.0 { 1 } else { times };
        let most = u64::MAX;
        let error = v1::RowError { row: u32::MAX, message: "x".repeat(MAX_ROW_ERROR_BYTES) };
        let response = v1::LabelResponse {
            id: most,
            fingerprint: vec![1; 32].into(),
            labels: vec![encode(&batch, dtype).unwrap(); sent],
            row_errors: vec![error; batch.rows],
            cached_rows: u32::MAX,
            checksum: u64::MAX,
            timing: Some(v1::Timing { queue_us: most, compute_us: most, encode_us: most }),
        };
        let result = Some(Answer::Response(response));
        let answer = v1::LabelStreamResponse { id: most, result };
        prop_assert!(answer.encoded_len() as u64 <= bound, "{} of {bound}", answer.encoded_len());
        let message = "x".repeat(MAX_ERROR_BYTES);
        let error = v1::LabelError { code: 8, message, retry_after_ms: u32::MAX };
        let answer = v1::LabelStreamResponse { id: most, result: Some(Answer::Error(error)) };
        prop_assert!(answer.encoded_len() as u64 <= bound);
    }
}
