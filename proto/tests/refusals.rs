//! Labels that break a rule are refused with the field, its value and the accepted range, by the
//! side that would send them and by the side that receives them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use stillhouse_proto::{
    LabelBatch, SoftLabels, bits, decode, encode,
    v1::{self, DType, DenseKind, Tensor, labels::Payload},
};

const INFINITY: f32 = f32::INFINITY;

fn dense(kind: DenseKind, values: &[f32]) -> LabelBatch {
    let temperature = if kind == DenseKind::Logits { 0.0 } else { 2.0 };
    let labels = SoftLabels::Dense { kind, values: values.to_vec() };
    LabelBatch { temperature, rows: 1, classes: values.len(), labels }
}

/// One row over 5 classes.
fn top_k(ids: &[u32], log_probabilities: &[f32], log_tail_mass: f32) -> LabelBatch {
    let labels = SoftLabels::TopK {
        k: ids.len(),
        ids: ids.to_vec(),
        log_probabilities: log_probabilities.to_vec(),
        log_tail_mass: vec![log_tail_mass],
    };
    LabelBatch { temperature: 2.0, rows: 1, classes: 5, labels }
}

/// One row over 5 classes.
fn ids(log_probabilities: &[f32], log_tail_mass: f32) -> LabelBatch {
    let labels = SoftLabels::Ids {
        ids_per_row: log_probabilities.len(),
        log_probabilities: log_probabilities.to_vec(),
        log_tail_mass: vec![log_tail_mass],
    };
    LabelBatch { temperature: 2.0, rows: 1, classes: 5, labels }
}

/// One row over 5 classes.
fn sampled(draws: u32, ids: &[u32], counts: &[u32]) -> LabelBatch {
    let labels = SoftLabels::Sampled {
        draws,
        distinct: vec![ids.len() as u16],
        ids: ids.to_vec(),
        counts: counts.to_vec(),
    };
    LabelBatch { temperature: 2.0, rows: 1, classes: 5, labels }
}

fn hidden(states: &[f32]) -> LabelBatch {
    let labels = SoftLabels::Hidden { width: states.len(), states: states.to_vec() };
    LabelBatch { temperature: 0.0, rows: 1, classes: 5, labels }
}

fn at(temperature: f32, mut batch: LabelBatch) -> LabelBatch {
    batch.temperature = temperature;
    batch
}

/// The message that a careless sender would make: no rule is checked.
fn careless(batch: &LabelBatch) -> v1::Labels {
    let tensor = |values: &[f32], shape: &[usize]| {
        let shape = shape.iter().map(|size| *size as u64).collect();
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Some(Tensor { dtype: DType::F32.into(), shape, data: data.into() })
    };
    let pack = |values: &[u32], range: u32| {
        // Out of range as they may be, as long as they fit in the width of that range.
        bits::pack(values, 1 << bits::id_bits(range)).unwrap().into()
    };
    let payload = match &batch.labels {
        SoftLabels::Dense { kind, values } => Payload::Dense(Box::new(v1::DenseLabels {
            kind: (*kind).into(),
            values: tensor(values, &[batch.rows, batch.classes]),
        })),
        SoftLabels::TopK { k, ids, log_probabilities, log_tail_mass } => {
            Payload::TopK(Box::new(v1::TopKLabels {
                k: *k as u32,
                packed_ids: pack(ids, batch.classes as u32),
                log_probabilities: tensor(log_probabilities, &[batch.rows, *k]),
                log_tail_mass: tensor(log_tail_mass, &[batch.rows]),
            }))
        }
        SoftLabels::Ids { ids_per_row, log_probabilities, log_tail_mass } => {
            Payload::Ids(Box::new(v1::IdsLabels {
                log_probabilities: tensor(log_probabilities, &[batch.rows, *ids_per_row]),
                log_tail_mass: tensor(log_tail_mass, &[batch.rows]),
            }))
        }
        SoftLabels::Sampled { draws, distinct, ids, counts } => {
            Payload::Sampled(Box::new(v1::SampledLabels {
                draws: *draws,
                distinct: distinct.iter().flat_map(|row| row.to_le_bytes()).collect(),
                packed_ids: pack(ids, batch.classes as u32),
                packed_counts: pack(counts, draws + 1),
            }))
        }
        SoftLabels::Hidden { width, states } => Payload::Hidden(Box::new(v1::HiddenLabels {
            states: tensor(states, &[batch.rows, *width]),
        })),
    };
    let (rows, classes) = (batch.rows as u32, batch.classes as u32);
    v1::Labels { temperature: batch.temperature, rows, classes, payload: Some(payload) }
}

/// The careless sender is only careless: what it makes of valid batches is what `encode` makes.
#[test]
fn valid_batches_pass() {
    for batch in [
        dense(DenseKind::LogProbabilities, &[0.0, -INFINITY]),
        dense(DenseKind::Probabilities, &[0.25, 0.75]),
        dense(DenseKind::Logits, &[1e4, -1e4]),
        top_k(&[3, 0], &[-0.5, -0.5], -2.0),
        top_k(&[4, 3, 2, 1, 0], &[-0.1, -2.0, -3.0, -4.0, -INFINITY], -INFINITY),
        ids(&[-0.5, -3.0], -1.0),
        sampled(7, &[0, 4], &[6, 1]),
        hidden(&[0.5, -0.25]),
    ] {
        assert_eq!(common::broken_rule(&batch), None);
        assert_eq!(encode(&batch, DType::F32), Ok(careless(&batch)));
        assert_eq!(decode(&careless(&batch)), Ok(batch));
    }
}

#[test]
fn both_sides_refuse_what_breaks_a_rule() {
    let log_p = || dense(DenseKind::LogProbabilities, &[-0.1, -3.0]);
    let cases = [
        (at(0.0, log_p()), "temperature is 0; must be finite and above 0"),
        (at(-1.0, log_p()), "temperature is -1; must be finite and above 0"),
        (at(f32::NAN, log_p()), "temperature is NaN; must be finite and above 0"),
        (at(INFINITY, log_p()), "temperature is inf; must be finite and above 0"),
        (at(1.0, dense(DenseKind::Logits, &[1.0])), "temperature is 1; must be 0 for logits"),
        (at(f32::NAN, hidden(&[1.0])), "temperature is NaN; must be 0 for hidden states"),
        (
            dense(DenseKind::LogProbabilities, &[-1.0, f32::NAN]),
            "dense.values[1] is NaN; must be at most 0",
        ),
        (dense(DenseKind::LogProbabilities, &[0.01]), "dense.values[0] is 0.01; must be at most 0"),
        (dense(DenseKind::Probabilities, &[-0.5]), "dense.values[0] is -0.5; must be 0 to 1"),
        (dense(DenseKind::Probabilities, &[1.5]), "dense.values[0] is 1.5; must be 0 to 1"),
        (dense(DenseKind::Logits, &[-INFINITY]), "dense.values[0] is -inf; must be finite"),
        (dense(DenseKind::Unspecified, &[0.0]), "dense.kind is unspecified; must be set"),
        (hidden(&[INFINITY]), "hidden.states[0] is inf; must be finite"),
        (
            top_k(&[1, 1], &[-0.1, -3.0], -4.0),
            "top_k.packed_ids of row 0 is 1 twice; must be distinct",
        ),
        (
            top_k(&[1, 2], &[-3.0, -0.1], -4.0),
            "top_k.log_probabilities[0, 1] is -0.1; must be at most the -3 before it",
        ),
        (
            top_k(&[1, 2], &[0.5, -0.1], -4.0),
            "top_k.log_probabilities[0] is 0.5; must be at most 0",
        ),
        (top_k(&[1], &[-0.1], f32::NAN), "top_k.log_tail_mass[0] is NaN; must be at most 0"),
        (
            top_k(&[0, 1, 2, 3, 4], &[-1.6; 5], -9.0),
            "top_k.log_tail_mass[0] is -9; must be -infinity where a row holds all classes",
        ),
        (ids(&[0.5], -1.0), "ids.log_probabilities[0] is 0.5; must be at most 0"),
        (ids(&[-1.6; 6], -1.0), "ids.ids_per_row is 6; must be 1 to the 5 classes"),
        (sampled(65_536, &[1], &[65_536]), "sampled.draws is 65536; must be 1 to 65535"),
        (sampled(1, &[1, 2], &[1, 0]), "sampled.distinct[0] is 2; must be 1 to 1"),
        (
            sampled(9, &[2, 1], &[8, 1]),
            "sampled.packed_ids of row 0 is 2 before 1; must be ascending",
        ),
        (
            sampled(9, &[1, 1], &[8, 1]),
            "sampled.packed_ids of row 0 is 1 before 1; must be ascending",
        ),
        (sampled(9, &[1, 2], &[9, 0]), "sampled.packed_counts of row 0 is 0; must be at least 1"),
        (
            sampled(9, &[1, 2], &[7, 1]),
            "sum of sampled.packed_counts of row 0 is 8; must be the 9 draws",
        ),
    ];
    for (batch, expected) in cases {
        assert!(common::broken_rule(&batch).is_some(), "the rules by themselves: {expected}");
        assert_eq!(encode(&batch, DType::F32).unwrap_err().to_string(), expected, "encode");
        assert_eq!(decode(&careless(&batch)).unwrap_err().to_string(), expected, "decode");
    }
}

/// An id past the classes is found while packing and unpacking, so the two say it in their words.
#[test]
fn ids_past_the_classes_are_refused() {
    for batch in [top_k(&[5], &[-0.1], -4.0), sampled(1, &[5], &[1])] {
        assert!(common::broken_rule(&batch).is_some());
        for error in
            [encode(&batch, DType::F32).unwrap_err(), decode(&careless(&batch)).unwrap_err()]
        {
            assert!(error.to_string().ends_with("value 0 is 5; must be below 5"), "{error}");
        }
    }
}

/// Rounded to a narrow type, a finite value would become infinite: refused, not sent.
#[test]
fn what_a_narrow_type_cannot_hold_is_refused() {
    let logits = dense(DenseKind::Logits, &[0.0, 1e5]);
    assert_eq!(
        encode(&logits, DType::F16).unwrap_err().to_string(),
        "dense.values.data[1] is 100000; must be finite and, as f16, at most 65519.996 in magnitude"
    );
    assert!(encode(&logits, DType::Bf16).is_ok());
    assert_eq!(
        encode(&logits, DType::U8).unwrap_err().to_string(),
        "dense.values.dtype is u8; must be f32, f16 or bf16"
    );
}

/// Arrays of a batch that disagree about its size are refused before anything is written.
#[test]
fn lengths_that_disagree_are_refused() {
    let mut batch = top_k(&[1, 2], &[-0.1, -3.0], -4.0);
    batch.rows = 2;
    assert_eq!(
        encode(&batch, DType::F32).unwrap_err().to_string(),
        "top_k.packed_ids has 2 elements; must have 4"
    );
    let mut batch = hidden(&[1.0]);
    batch.rows = usize::MAX;
    assert_eq!(
        encode(&batch, DType::F32).unwrap_err().to_string(),
        format!("rows is {}; must be below 2^32", usize::MAX)
    );
}

/// Without rows no byte backs the width of a hidden state, so it is held to what the contract can say
/// of one.
#[test]
fn a_width_that_no_hidden_state_has_is_refused() {
    for width in [0, 1 << 32, 1 << 60] {
        let labels = SoftLabels::Hidden { width, states: Vec::new() };
        let batch = LabelBatch { temperature: 0.0, rows: 0, classes: 5, labels };
        let sent = encode(&batch, DType::F32);
        let expected = format!("hidden.width is {width}; must be 1 to 2^32 - 1");
        assert_eq!(sent.unwrap_err().to_string(), expected);
        if width > 0 {
            assert_eq!(decode(&careless(&batch)).unwrap_err().to_string(), expected);
        }
    }
    let labels = SoftLabels::Hidden { width: (1 << 32) - 1, states: Vec::new() };
    let batch = LabelBatch { temperature: 0.0, rows: 0, classes: 5, labels };
    assert_eq!(decode(&encode(&batch, DType::F32).unwrap()), Ok(batch));
}

/// What only a message can get wrong: parts missing, of another type, or of another shape.
#[test]
fn malformed_messages_are_refused() {
    type Alter = fn(&mut v1::Labels);
    let of_top_k = |alter: fn(&mut v1::TopKLabels)| {
        let mut labels = careless(&top_k(&[3, 0], &[-0.5, -0.5], -2.0));
        let Some(Payload::TopK(payload)) = &mut labels.payload else { unreachable!() };
        alter(payload);
        decode(&labels).unwrap_err().to_string()
    };
    let of_dense = |alter: Alter| {
        let mut labels = careless(&dense(DenseKind::Logits, &[1.0, 2.0]));
        alter(&mut labels);
        decode(&labels).unwrap_err().to_string()
    };
    assert_eq!(of_dense(|labels| labels.payload = None), "payload is missing");
    assert_eq!(of_dense(|labels| labels.classes = 0), "classes is 0; must be 1 to 2^32 - 1");
    assert_eq!(of_dense(|labels| labels.rows = 7), "dense.values.shape is [1, 2]; must be [7, 2]");
    assert_eq!(
        of_dense(|labels| labels.payload = Some(Payload::Dense(Box::default()))),
        "dense.values is missing"
    );
    assert_eq!(of_top_k(|top_k| top_k.k = 0), "top_k.k is 0; must be 1 to the 5 classes");
    assert_eq!(of_top_k(|top_k| top_k.k = 6), "top_k.k is 6; must be 1 to the 5 classes");
    assert_eq!(of_top_k(|top_k| top_k.log_tail_mass = None), "top_k.log_tail_mass is missing");
    assert_eq!(
        of_top_k(|top_k| {
            top_k.log_tail_mass = Tensor::from_f32(&[-2.0], DType::F16, &[1]).ok();
        }),
        "top_k.log_tail_mass.dtype is f16; must be f32"
    );
    assert_eq!(
        of_top_k(|top_k| top_k.log_probabilities = Tensor::from_u8(vec![0, 0], &[1, 2]).ok()),
        "top_k.log_probabilities.dtype is u8; must be f32, f16 or bf16"
    );
    assert_eq!(
        of_top_k(|top_k| top_k.packed_ids = vec![0b11_000_011].into()),
        "top_k.packed_ids has bits set after its last value; they must be 0"
    );
    let mut labels = careless(&sampled(7, &[0, 4], &[6, 1]));
    labels.rows = 2;
    assert_eq!(
        decode(&labels).unwrap_err().to_string(),
        "length of sampled.distinct is 2 bytes; must be 2 for each of the 2 rows"
    );
}
