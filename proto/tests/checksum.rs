//! A checksum changes with whatever changes in a request or its answer, and with nothing else.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use proptest::prelude::*;
use prost::Message as _;
use stillhouse_proto::{
    checksum::RequestSum,
    encode,
    v1::{
        DType, DenseEncoding, DenseKind, DenseLabels, Encoding, HiddenEncoding, HiddenLabels,
        IdsEncoding, IdsLabels, LabelRequest, LabelResponse, Labels, RowError, SampledEncoding,
        SampledLabels, Sequences, Tensor, TopKEncoding, TopKLabels, encoding::Kind,
        label_request::Inputs, labels::Payload,
    },
};

fn features() -> Inputs {
    Inputs::Features(Tensor::from_f32(&[1.0, 2.0, 3.0, 4.0], DType::F32, &[2, 2]).unwrap())
}

fn request(inputs: Inputs, kind: Kind) -> LabelRequest {
    LabelRequest {
        id: 7,
        client: "student".to_owned(),
        inputs: Some(inputs),
        temperatures: vec![1.0, 4.0],
        encoding: Some(Encoding { kind: Some(kind) }),
        timeout_ms: 100,
        ensemble_rule: 1,
        traceparent: String::new(),
    }
}

/// Of the fixture, in its order: requests and the payloads of their answers.
fn cases() -> Vec<(&'static str, LabelRequest, Payload)> {
    let rows = [vec![1, 2, 3], vec![4]];
    let marks = [true, false, true, true];
    let sequences = || Inputs::Sequences(Sequences::pack(&rows, Some(&marks)).unwrap());
    let ids = stillhouse_proto::request::pack_ids(&[1, 2]);
    let f32s = |values: &[f32], shape: &[usize]| {
        Some(Tensor::from_f32(values, DType::F32, shape).unwrap())
    };
    let dense = DenseEncoding { kind: DenseKind::Logits.into(), dtype: 1 };
    vec![
        (
            "dense",
            request(features(), Kind::Dense(dense)),
            Payload::Dense(DenseLabels { kind: 3, values: f32s(&[0.5, -1.0], &[1, 2]) }.into()),
        ),
        (
            "top_k",
            request(sequences(), Kind::TopK(TopKEncoding { k: 1, dtype: 2 })),
            Payload::TopK(
                TopKLabels {
                    k: 1,
                    packed_ids: vec![1].into(),
                    log_probabilities: f32s(&[-0.5], &[1, 1]),
                    log_tail_mass: f32s(&[-1.0], &[1]),
                }
                .into(),
            ),
        ),
        (
            "ids",
            request(features(), Kind::Ids(IdsEncoding { ids_per_row: 1, ids, dtype: 3 })),
            Payload::Ids(
                IdsLabels {
                    log_probabilities: f32s(&[-0.5], &[1, 1]),
                    log_tail_mass: f32s(&[-1.0], &[1]),
                }
                .into(),
            ),
        ),
        (
            "sampled",
            request(features(), Kind::Sampled(SampledEncoding { draws: 9, seed: 1 << 40 })),
            Payload::Sampled(
                SampledLabels {
                    draws: 9,
                    distinct: vec![1, 0].into(),
                    packed_ids: vec![1].into(),
                    packed_counts: vec![9].into(),
                }
                .into(),
            ),
        ),
        (
            "hidden",
            request(sequences(), Kind::Hidden(HiddenEncoding { dtype: 3 })),
            Payload::Hidden(HiddenLabels { states: f32s(&[0.5, -1.0], &[1, 2]) }.into()),
        ),
    ]
}

/// As another implementation of XXH64 has it, from the comment of `Checksum` alone.
#[test]
fn the_sum_is_that_of_the_parts_in_the_contract() {
    let sums = include_str!("fixtures/checksums.txt");
    assert_eq!(sums.lines().count(), cases().len());
    for ((name, request, payload), line) in cases().into_iter().zip(sums.lines()) {
        let labels = Labels { temperature: 4.0, rows: 1, classes: 2, payload: Some(payload) };
        let error = RowError { row: 1, message: "not finite".to_owned() };
        let response = LabelResponse {
            fingerprint: vec![9; 3].into(),
            labels: vec![labels],
            row_errors: vec![error],
            ..LabelResponse::default()
        };
        let sum = RequestSum::new(&request).of_response(&response);
        assert_eq!(format!("{name} {sum:016x}"), line);
    }
}

proptest! {
    /// Any bit that is flipped on the way, either way: the answer is not decoded, is the same, or is
    /// told from the one that was sent.
    #[test]
    fn a_flipped_bit_is_noticed(
        batch in common::batch(),
        which in 0_usize..5,
        at in any::<prop::sample::Index>(),
        bit in 0..8_u32,
        of_request in any::<bool>(),
    ) {
        let request = cases().swap_remove(which).1;
        let Ok(labels) = encode(&batch, DType::F32) else { return Ok(()) };
        let error = RowError { row: 1, message: "not finite".to_owned() };
        let mut response = LabelResponse {
            id: 7,
            fingerprint: vec![3; 32].into(),
            labels: vec![labels],
            row_errors: vec![error],
            ..LabelResponse::default()
        };
        let sum = RequestSum::new(&request);
        response.checksum = sum.of_response(&response);
        prop_assert_eq!(sum.agrees(&response), Some(true));
        let decoded = LabelResponse::decode(&response.encode_to_vec()[..]).unwrap();
        prop_assert_eq!(sum.agrees(&decoded), Some(true));

        let message = if of_request { request.encode_to_vec() } else { response.encode_to_vec() };
        let mut flipped = message.clone();
        flipped[at.index(message.len())] ^= 1_u8 << bit;
        if of_request {
            let Ok(read) = LabelRequest::decode(&flipped[..]) else { return Ok(()) };
            let same = read == request || read.encode_to_vec() == message;
            let as_read = RequestSum::new(&read).of_response(&response);
            prop_assert!(same || as_read != response.checksum, "{read:?}");
        } else {
            let Ok(read) = LabelResponse::decode(&flipped[..]) else { return Ok(()) };
            let (a, b) = (&read, &response);
            let same = a.labels == b.labels && a.row_errors == b.row_errors;
            let same = same && a.fingerprint == b.fingerprint;
            prop_assert!(same || sum.agrees(&read) != Some(true), "{read:?}");
        }
    }
}
