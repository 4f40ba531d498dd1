//! A message that was cut short is refused. One whose bytes were altered on their way is refused, or
//! decodes to labels that keep every rule: another value within its range is as valid as the one
//! that was sent, and the format has no checksum to tell them apart (the transport has). Neither
//! panics, or claims memory that its bytes do not back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;
mod counting;

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message as _;
use stillhouse_proto::{LabelBatch, SoftLabels, decode, encode, v1};

/// Bytes that decoding may allocate for each byte of a message. An id of a single bit becomes 4
/// bytes, which is 32 times; the rest is room for how vectors grow.
const PER_BYTE: usize = 64;
/// And for a message as such, whatever its length: the text of an error.
const PER_MESSAGE: usize = 4096;

/// Decodes a message as a client would, and checks that the memory it took is in proportion.
fn decode_within_bounds(message: &Bytes) -> Option<LabelBatch> {
    let (decoded, allocated) = counting::allocated(|| {
        v1::Labels::decode(message.clone()).ok().map(|labels| decode(&labels))
    });
    let bound = PER_BYTE * message.len() + PER_MESSAGE;
    assert!(allocated <= bound, "{allocated} bytes for a message of {}", message.len());
    decoded?.ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Any field of bytes, cut at any point or one byte too long, is refused.
    #[test]
    fn a_field_of_another_length_is_refused(batch in common::batch(), dtype in common::dtype()) {
        let wire = encode(&batch, dtype).unwrap();
        for field in 0..common::byte_fields(&mut wire.clone()).len() {
            let whole = common::byte_fields(&mut wire.clone())[field].clone();
            let mut longer = whole.to_vec();
            longer.push(0);
            let cut = (0..whole.len()).map(|end| whole.slice(..end));
            for other in cut.chain([longer.into()]) {
                let mut altered = wire.clone();
                *common::byte_fields(&mut altered)[field] = other;
                prop_assert!(decode(&altered).is_err(), "field {field} of {altered:?}");
            }
        }
    }

    /// The whole message, cut at any point, is refused: the payload is its last field and never
    /// empty, so that a cut leaves it out or short of its declared length.
    #[test]
    fn a_message_cut_short_is_refused(batch in common::batch(), dtype in common::dtype()) {
        let message = Bytes::from(encode(&batch, dtype).unwrap().encode_to_vec());
        prop_assert!(decode_within_bounds(&message).is_some());
        for end in 0..message.len() {
            let decoded = decode_within_bounds(&message.slice(..end));
            prop_assert_eq!(decoded, None, "cut at {} of {}", end, message.len());
        }
    }

    /// A message with any bytes altered is refused or decodes to a valid batch, by rules that are
    /// written down apart from the codec.
    #[test]
    fn an_altered_message_is_handled(
        batch in common::batch(),
        dtype in common::dtype(),
        seed in any::<u64>(),
    ) {
        let message = encode(&batch, dtype).unwrap().encode_to_vec();
        let mut numbers = common::Numbers(seed);
        for _ in 0..50 {
            let mut altered = message.clone();
            for _ in 0..=numbers.below(4) {
                // The declared sizes are near the start, so that part is hit more often.
                let reach = if numbers.below(2) == 0 { altered.len().min(24) } else { altered.len() };
                let place = numbers.below(reach as u32) as usize;
                altered[place] = numbers.next() as u8;
            }
            if let Some(batch) = decode_within_bounds(&altered.into()) {
                prop_assert_eq!(common::broken_rule(&batch), None, "{:?}", batch);
            }
        }
    }

    /// Bytes that were never a message.
    #[test]
    fn noise_is_handled(noise in prop::collection::vec(any::<u8>(), 0..300)) {
        decode_within_bounds(&noise.into());
    }
}

/// Where ids and counts take one bit each, labels outgrow their message the most. Long enough that
/// the allowance for a message as such plays no part.
#[test]
fn the_densest_messages_stay_in_proportion() {
    let rows = 100_000;
    let sampled = SoftLabels::Sampled {
        draws: 1,
        distinct: vec![1; rows],
        ids: vec![1; rows],
        counts: vec![1; rows],
    };
    let top_k = SoftLabels::TopK {
        k: 2,
        ids: [0, 1].repeat(rows),
        log_probabilities: vec![-0.5; 2 * rows],
        log_tail_mass: vec![f32::NEG_INFINITY; rows],
    };
    for labels in [sampled, top_k] {
        let batch = LabelBatch { temperature: 1.0, rows, classes: 2, labels };
        let message = encode(&batch, v1::DType::Bf16).unwrap().encode_to_vec();
        assert_eq!(decode_within_bounds(&message.into()), Some(batch));
    }
}

/// A few bytes that declare as much as the fields can say, in every encoding.
#[test]
fn declared_sizes_claim_no_memory() {
    use v1::labels::Payload;
    let tensor = |shape: &[u64]| {
        let dtype = v1::DType::F32.into();
        Some(v1::Tensor { dtype, shape: shape.to_vec(), data: Bytes::new() })
    };
    let most = u64::from(u32::MAX);
    let payloads = [
        Payload::Dense(Box::new(v1::DenseLabels {
            kind: v1::DenseKind::LogProbabilities.into(),
            values: tensor(&[most, most]),
        })),
        Payload::TopK(Box::new(v1::TopKLabels {
            k: u32::MAX,
            log_probabilities: tensor(&[most, most]),
            log_tail_mass: tensor(&[most]),
            ..Default::default()
        })),
        Payload::TopK(Box::new(v1::TopKLabels {
            k: 1,
            log_probabilities: tensor(&[most, 1]),
            log_tail_mass: tensor(&[most]),
            ..Default::default()
        })),
        Payload::Ids(Box::new(v1::IdsLabels {
            log_probabilities: tensor(&[most, 1]),
            log_tail_mass: tensor(&[most]),
        })),
        Payload::Sampled(Box::new(v1::SampledLabels { draws: 65_535, ..Default::default() })),
        Payload::Sampled(Box::new(v1::SampledLabels {
            draws: 65_535,
            distinct: vec![0xff; 64].into(),
            ..Default::default()
        })),
        Payload::Hidden(Box::new(v1::HiddenLabels { states: tensor(&[most, u64::MAX]) })),
        Payload::Hidden(Box::new(v1::HiddenLabels { states: tensor(&[u64::MAX; 8]) })),
    ];
    for payload in payloads {
        for rows in [32, u32::MAX] {
            let timeless = matches!(payload, Payload::Hidden(_));
            let labels = v1::Labels {
                temperature: if timeless { 0.0 } else { 1.0 },
                rows,
                classes: u32::MAX,
                payload: Some(payload.clone()),
            };
            assert_eq!(decode_within_bounds(&labels.encode_to_vec().into()), None, "{labels:?}");
        }
    }
}
