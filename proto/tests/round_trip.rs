//! What is encoded comes back: exactly as `f32`, to the nearest value of a narrower type otherwise,
//! and in no more bytes than the contract says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use proptest::prelude::*;
use stillhouse_proto::{LabelBatch, SoftLabels, decode, encode, v1};

/// The batch without its rounded values, and those values.
fn split(mut batch: LabelBatch) -> (LabelBatch, Vec<f32>) {
    let values = match &mut batch.labels {
        SoftLabels::Dense { values, .. } => std::mem::take(values),
        SoftLabels::TopK { log_probabilities, .. } | SoftLabels::Ids { log_probabilities, .. } => {
            std::mem::take(log_probabilities)
        }
        SoftLabels::Sampled { .. } => Vec::new(),
        SoftLabels::Hidden { states, .. } => std::mem::take(states),
    };
    (batch, values)
}

/// Every number of a batch as bits, so that 0 and -0 differ.
fn bits(batch: &LabelBatch) -> Vec<u32> {
    let floats: Vec<&[f32]> = match &batch.labels {
        SoftLabels::Dense { values, .. } => vec![values],
        SoftLabels::TopK { log_probabilities, log_tail_mass, .. }
        | SoftLabels::Ids { log_probabilities, log_tail_mass, .. } => {
            vec![log_probabilities, log_tail_mass]
        }
        SoftLabels::Sampled { .. } => Vec::new(),
        SoftLabels::Hidden { states, .. } => vec![states],
    };
    [&[batch.temperature]]
        .into_iter()
        .map(|one| &one[..])
        .chain(floats)
        .flatten()
        .map(|value| value.to_bits())
        .collect()
}

/// Distance between neighbouring values of `dtype` around `value`: its unit in the last place.
fn unit_in_last_place(dtype: v1::DType, value: f32) -> f64 {
    let (least_exponent, fraction_bits) = match dtype {
        v1::DType::F16 => (-14, 10),
        v1::DType::Bf16 => (-126, 7),
        _ => (-126, 23),
    };
    let exponent = (value.to_bits() >> 23 & 0xff) as i32 - 127;
    f64::powi(2.0, exponent.max(least_exponent) - fraction_bits)
}

/// Bits of an id by definition: the smallest b of at least 1 with 2^b >= classes.
fn bits_by_definition(classes: usize) -> usize {
    (1..).find(|bits| 1_u128 << bits >= classes as u128).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// As `f32`, the decoded batch equals the encoded one, bit for bit.
    #[test]
    fn f32_is_exact(batch in common::batch()) {
        let wire = encode(&batch, v1::DType::F32).unwrap();
        let decoded = decode(&wire).unwrap();
        prop_assert_eq!(bits(&decoded), bits(&batch));
        prop_assert_eq!(decoded, batch);
    }

    /// As any type, each value moves by at most half a unit in its last place, and nothing else
    /// (ids, counts, tail mass, sizes) moves at all.
    #[test]
    fn narrow_types_round_to_nearest(batch in common::batch(), dtype in common::dtype()) {
        let wire = encode(&batch, dtype).unwrap();
        let (decoded, decoded_values) = split(decode(&wire).unwrap());
        let (expected, expected_values) = split(batch);
        prop_assert_eq!(bits(&decoded), bits(&expected));
        prop_assert_eq!(decoded, expected);
        prop_assert_eq!(decoded_values.len(), expected_values.len());
        for (decoded, expected) in decoded_values.iter().zip(&expected_values) {
            let distance = (f64::from(*decoded) - f64::from(*expected)).abs();
            let near = distance <= unit_in_last_place(dtype, *decoded) / 2.0;
            prop_assert!(near || decoded == expected, "{decoded} for {expected} as {dtype:?}");
            // What rounds to 0 keeps its sign.
            prop_assert_eq!(decoded.is_sign_negative(), expected.is_sign_negative());
        }
    }

    /// Each field holds exactly the bytes that the contract's comments give for it.
    #[test]
    fn lengths_follow_the_formulas(batch in common::batch(), dtype in common::dtype()) {
        let mut wire = encode(&batch, dtype).unwrap();
        let size = dtype.size().unwrap();
        let id_bits = bits_by_definition(batch.classes);
        let rows = batch.rows;
        let expected = match &batch.labels {
            SoftLabels::Dense { .. } => vec![rows * batch.classes * size],
            SoftLabels::TopK { k, .. } => {
                vec![(rows * k * id_bits).div_ceil(8), rows * k * size, rows * 4]
            }
            SoftLabels::Ids { ids_per_row, .. } => vec![rows * ids_per_row * size, rows * 4],
            SoftLabels::Sampled { draws, ids, .. } => {
                let count_bits = bits_by_definition(*draws as usize + 1);
                vec![
                    rows * 2,
                    (ids.len() * id_bits).div_ceil(8),
                    (ids.len() * count_bits).div_ceil(8),
                ]
            }
            SoftLabels::Hidden { width, .. } => vec![rows * width * size],
        };
        let lengths: Vec<_> = common::byte_fields(&mut wire).iter().map(|data| data.len()).collect();
        prop_assert_eq!(lengths, expected);
    }
}

/// A type that is left open in a request is `f32`.
#[test]
fn an_open_type_is_f32() {
    let batch = LabelBatch {
        temperature: 0.0,
        rows: 1,
        classes: 3,
        labels: SoftLabels::Hidden { width: 2, states: vec![0.1, -0.7] },
    };
    let open = encode(&batch, v1::DType::Unspecified).unwrap();
    assert_eq!(open, encode(&batch, v1::DType::F32).unwrap());
}
