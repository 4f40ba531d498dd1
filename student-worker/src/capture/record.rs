//! The label of one row as bytes, and back.
//!
//! A record holds the bytes of the wire and nothing beside them: the sizes are the same for all rows
//! and stand in the manifest.
//!
//! | encoding | record |
//! |---|---|
//! | `dense` | V values |
//! | `top_k` | k ids at ceil(log2 V) bits, padded to whole bytes; k values; the log tail mass, f32 |
//! | `sampled` | distinct ids n, u16; n ids at ceil(log2 V) bits; n counts at ceil(log2 (N + 1)) bits; each padded |
//! | `hidden` | d values |

use bytes::Bytes;
use stillhouse_proto::{
    LabelBatch, SoftLabels, bits, decode, encode,
    v1::{
        DType, DenseKind, DenseLabels, HiddenLabels, Labels, SampledLabels, Tensor, TopKLabels,
        labels::Payload,
    },
};

use crate::recipe::teacher::{DenseValues, EncodingName, EncodingSection, LabelType};

/// How the records of a capture are laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    classes: u32,
    form: Form,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    Dense { kind: DenseKind, dtype: DType },
    TopK { k: u32, dtype: DType },
    Sampled { draws: u32 },
    Hidden { width: u32, dtype: DType },
}

impl Layout {
    /// Of an encoding as [`EncodingSection::explicit`] writes it.
    ///
    /// # Errors
    /// Says which size is missing or outside its range.
    pub(super) fn new(
        encoding: &EncodingSection,
        classes: usize,
        hidden_size: Option<usize>,
    ) -> Result<Self, String> {
        let dtype = match encoding.dtype {
            LabelType::F32 => DType::F32,
            LabelType::F16 => DType::F16,
            LabelType::Bf16 => DType::Bf16,
        };
        let within = |field: &str, value: Option<u64>, most: u64| match value {
            Some(value) if (1..=most).contains(&value) => Ok(value as u32),
            Some(value) => Err(format!("{field} is {value}, expected 1 to {most}")),
            None => Err(format!("{field} is missing, expected 1 to {most}")),
        };
        let classes = within("classes", Some(classes as u64), 1 << 16)?;
        let form = match encoding.kind {
            EncodingName::Dense => Form::Dense {
                kind: match encoding.values.unwrap_or_default() {
                    DenseValues::LogProbabilities => DenseKind::LogProbabilities,
                    DenseValues::Logits => DenseKind::Logits,
                },
                dtype,
            },
            EncodingName::TopK => {
                let k = within("encoding.k", encoding.k.map(u64::from), classes.into())?;
                Form::TopK { k, dtype }
            }
            EncodingName::Sampled => {
                let draws = within("encoding.draws", encoding.draws.map(u64::from), 65_535)?;
                Form::Sampled { draws }
            }
            EncodingName::Hidden => {
                let width = within("hidden_size", hidden_size.map(|size| size as u64), 1 << 24)?;
                Form::Hidden { width, dtype }
            }
        };
        Ok(Self { classes, form })
    }

    /// Appends the records of all rows of a batch, which must be what was asked for.
    ///
    /// # Errors
    /// If its labels are not numbers of the element type that was asked for: stored, they would not
    /// come back as they are.
    pub(super) fn append(&self, batch: LabelBatch, records: &mut Vec<u8>) -> Result<(), String> {
        let temperature = batch.temperature;
        for row in rows(batch) {
            let labels = encode(&row, self.dtype()).map_err(|error| error.to_string())?;
            let before = records.len();
            append_payload(&labels, records);
            let back = self.decode_one(&records[before..], temperature)?;
            if back != row {
                return Err(format!("they are not {}, as was asked for", self.dtype().name()));
            }
        }
        Ok(())
    }

    /// The length of the record that `bytes` begin with, in bytes; none if they are too few to tell.
    pub(super) fn length(&self, bytes: &[u8]) -> Option<usize> {
        let packed = |count: u32, below: u32| bits::packed_len(count as usize, below) as usize;
        Some(match self.form {
            Form::Dense { dtype, .. } => self.classes as usize * size(dtype),
            Form::Hidden { width, dtype } => width as usize * size(dtype),
            Form::TopK { k, dtype } => packed(k, self.classes) + k as usize * size(dtype) + 4,
            Form::Sampled { draws } => {
                let distinct = u16::from_le_bytes(*bytes.first_chunk()?).into();
                2 + packed(distinct, self.classes) + packed(distinct, draws + 1)
            }
        })
    }

    /// The labels of records, in order, as the teacher's answer was decoded. `temperature`: that of
    /// the labels, 0 where it plays no part.
    ///
    /// # Errors
    /// If a record has another length than it should, or breaks a rule of the labels.
    pub(super) fn decode<'a>(
        &self,
        records: impl IntoIterator<Item = &'a [u8]>,
        temperature: f32,
    ) -> Result<LabelBatch, String> {
        let mut joined: Option<LabelBatch> = None;
        for record in records {
            let row = self.decode_one(record, temperature)?;
            match &mut joined {
                None => joined = Some(row),
                Some(joined) => join(joined, row)?,
            }
        }
        joined.ok_or_else(|| "no row".to_owned())
    }

    fn decode_one(&self, record: &[u8], temperature: f32) -> Result<LabelBatch, String> {
        let (found, expected) = (record.len(), self.length(record));
        if expected != Some(found) {
            let expected = expected.unwrap_or(2);
            return Err(format!("a record of {found} bytes, expected {expected}"));
        }
        let part = |bytes: &[u8]| Bytes::copy_from_slice(bytes);
        let tensor = |dtype: DType, width: Option<u32>, bytes: &[u8]| {
            let shape = [1].into_iter().chain(width.map(u64::from)).collect();
            Some(Tensor { dtype: dtype.into(), shape, data: part(bytes) })
        };
        let payload = match self.form {
            Form::Dense { kind, dtype } => {
                let values = tensor(dtype, Some(self.classes), record);
                Payload::Dense(DenseLabels { kind: kind.into(), values }.into())
            }
            Form::Hidden { width, dtype } => {
                Payload::Hidden(HiddenLabels { states: tensor(dtype, Some(width), record) }.into())
            }
            Form::TopK { k, dtype } => {
                let ids = bits::packed_len(k as usize, self.classes) as usize;
                let (ids, rest) = record.split_at(ids);
                let (values, tail) = rest.split_at(k as usize * size(dtype));
                let labels = TopKLabels {
                    k,
                    packed_ids: part(ids),
                    log_probabilities: tensor(dtype, Some(k), values),
                    log_tail_mass: tensor(DType::F32, None, tail),
                };
                Payload::TopK(labels.into())
            }
            Form::Sampled { draws } => {
                let (distinct, rest) = record.split_at(2);
                let count = u16::from_le_bytes([distinct[0], distinct[1]]);
                let ids = bits::packed_len(count.into(), self.classes) as usize;
                let (ids, counts) = rest.split_at(ids);
                let labels = SampledLabels {
                    draws,
                    distinct: part(distinct),
                    packed_ids: part(ids),
                    packed_counts: part(counts),
                };
                Payload::Sampled(labels.into())
            }
        };
        let labels = Labels { temperature, rows: 1, classes: self.classes, payload: Some(payload) };
        decode(&labels).map_err(|error| error.to_string())
    }

    fn dtype(&self) -> DType {
        match self.form {
            Form::Dense { dtype, .. } | Form::TopK { dtype, .. } | Form::Hidden { dtype, .. } => {
                dtype
            }
            // Whole numbers.
            Form::Sampled { .. } => DType::F32,
        }
    }
}

/// Bytes of a value.
fn size(dtype: DType) -> usize {
    match dtype {
        DType::F16 | DType::Bf16 => 2,
        _ => 4,
    }
}

fn append_payload(labels: &Labels, records: &mut Vec<u8>) {
    let mut tensor = |tensor: &Option<Tensor>| {
        tensor.iter().for_each(|tensor| records.extend_from_slice(&tensor.data));
    };
    match &labels.payload {
        Some(Payload::Dense(dense)) => tensor(&dense.values),
        Some(Payload::Hidden(hidden)) => tensor(&hidden.states),
        Some(Payload::TopK(top_k)) => {
            records.extend_from_slice(&top_k.packed_ids);
            for part in [&top_k.log_probabilities, &top_k.log_tail_mass] {
                part.iter().for_each(|tensor| records.extend_from_slice(&tensor.data));
            }
        }
        Some(Payload::Sampled(sampled)) => {
            for part in [&sampled.distinct, &sampled.packed_ids, &sampled.packed_counts] {
                records.extend_from_slice(part);
            }
        }
        Some(Payload::Ids(_)) | None => {}
    }
}

/// A batch row by row. Its lengths agree with each other, as [`decode`] has checked.
fn rows(batch: LabelBatch) -> Vec<LabelBatch> {
    let LabelBatch { temperature, rows, classes, labels } = batch;
    let row = |labels| LabelBatch { temperature, rows: 1, classes, labels };
    let chunks = |values: Vec<f32>, width: usize| {
        values.chunks(width.max(1)).map(<[f32]>::to_vec).collect::<Vec<_>>()
    };
    match labels {
        SoftLabels::Dense { kind, values } => chunks(values, classes)
            .into_iter()
            .map(|values| row(SoftLabels::Dense { kind, values }))
            .collect(),
        SoftLabels::Hidden { width, states } => chunks(states, width)
            .into_iter()
            .map(|states| row(SoftLabels::Hidden { width, states }))
            .collect(),
        SoftLabels::TopK { k, ids, log_probabilities, log_tail_mass } => ids
            .chunks(k.max(1))
            .zip(log_probabilities.chunks(k.max(1)))
            .zip(log_tail_mass)
            .map(|((ids, log_p), tail)| {
                row(SoftLabels::TopK {
                    k,
                    ids: ids.to_vec(),
                    log_probabilities: log_p.to_vec(),
                    log_tail_mass: vec![tail],
                })
            })
            .collect(),
        SoftLabels::Sampled { draws, distinct, ids, counts } => {
            let (mut ids, mut counts) = (ids.into_iter(), counts.into_iter());
            let one = |distinct: u16| {
                row(SoftLabels::Sampled {
                    draws,
                    distinct: vec![distinct],
                    ids: ids.by_ref().take(distinct.into()).collect(),
                    counts: counts.by_ref().take(distinct.into()).collect(),
                })
            };
            distinct.into_iter().map(one).collect()
        }
        // Nobody asks for them; the one row that is not 1 is refused by the encoder.
        labels @ SoftLabels::Ids { .. } => {
            vec![LabelBatch { temperature, rows, classes, labels }]
        }
    }
}

/// Appends a row to rows of the same layout.
fn join(joined: &mut LabelBatch, row: LabelBatch) -> Result<(), String> {
    joined.rows += row.rows;
    match (&mut joined.labels, row.labels) {
        (SoftLabels::Dense { values, .. }, SoftLabels::Dense { values: more, .. }) => {
            values.extend(more);
        }
        (SoftLabels::Hidden { states, .. }, SoftLabels::Hidden { states: more, .. }) => {
            states.extend(more);
        }
        (
            SoftLabels::TopK { ids, log_probabilities, log_tail_mass, .. },
            SoftLabels::TopK { ids: i, log_probabilities: p, log_tail_mass: t, .. },
        ) => {
            ids.extend(i);
            log_probabilities.extend(p);
            log_tail_mass.extend(t);
        }
        (
            SoftLabels::Sampled { distinct, ids, counts, .. },
            SoftLabels::Sampled { distinct: d, ids: i, counts: c, .. },
        ) => {
            distinct.extend(d);
            ids.extend(i);
            counts.extend(c);
        }
        _ => return Err("records of two encodings".to_owned()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn section(kind: EncodingName, dtype: LabelType) -> EncodingSection {
        let (k, draws) = match kind {
            EncodingName::TopK => (Some(3), None),
            EncodingName::Sampled => (None, Some(7)),
            _ => (None, None),
        };
        EncodingSection { kind, dtype, values: None, k, draws }
    }

    fn layout(kind: EncodingName, dtype: LabelType) -> Layout {
        Layout::new(&section(kind, dtype), 5, Some(4)).unwrap()
    }

    const KINDS: [EncodingName; 4] =
        [EncodingName::Dense, EncodingName::TopK, EncodingName::Sampled, EncodingName::Hidden];
    const DTYPES: [LabelType; 3] = [LabelType::F32, LabelType::F16, LabelType::Bf16];

    /// Two rows of five classes, of numbers that every element type holds.
    fn batch(kind: EncodingName) -> LabelBatch {
        let labels = match kind {
            EncodingName::Dense => SoftLabels::Dense {
                kind: DenseKind::LogProbabilities,
                values: (0..10).map(|i| -0.25 * i as f32).collect(),
            },
            EncodingName::TopK => SoftLabels::TopK {
                k: 3,
                ids: vec![4, 0, 2, 1, 3, 0],
                log_probabilities: vec![-0.5, -1.0, -2.0, -0.75, -0.75, f32::NEG_INFINITY],
                // f32 whatever the element type of the others is.
                log_tail_mass: vec![-3.3, -4.7],
            },
            EncodingName::Sampled => SoftLabels::Sampled {
                draws: 7,
                distinct: vec![2, 1],
                ids: vec![0, 4, 3],
                counts: vec![6, 1, 7],
            },
            EncodingName::Hidden => SoftLabels::Hidden {
                width: 4,
                states: vec![0.0, -1.5, 2.0, 0.25, 3.0, -0.0, 1.0, -8.0],
            },
        };
        let temperature = if kind == EncodingName::Hidden { 0.0 } else { 4.0 };
        LabelBatch { temperature, rows: 2, classes: 5, labels }
    }

    fn cut<'a>(layout: &Layout, mut records: &'a [u8]) -> Vec<&'a [u8]> {
        let mut found = Vec::new();
        while !records.is_empty() {
            let (record, rest) = records.split_at(layout.length(records).unwrap());
            found.push(record);
            records = rest;
        }
        found
    }

    #[test]
    fn every_encoding_comes_back_as_it_was_in_as_few_bytes_as_stated() {
        for (kind, bytes) in [
            (EncodingName::Dense, [20, 10, 10]),
            // 9 bits of ids, three values, the tail.
            (EncodingName::TopK, [2 + 12 + 4, 2 + 6 + 4, 2 + 6 + 4]),
            // Two ids and counts of 3 bits each.
            (EncodingName::Sampled, [2 + 1 + 1; 3]),
            (EncodingName::Hidden, [16, 8, 8]),
        ] {
            for (dtype, bytes) in DTYPES.into_iter().zip(bytes) {
                let (layout, batch) = (layout(kind, dtype), batch(kind));
                let mut records = Vec::new();
                layout.append(batch.clone(), &mut records).unwrap();
                let records = cut(&layout, &records);
                assert_eq!(records[0].len(), bytes, "{kind:?} {dtype:?}");
                let back = layout.decode(records.iter().copied(), batch.temperature).unwrap();
                assert_eq!(back, batch, "{kind:?} {dtype:?}");
                let row = layout.decode([records[1]], batch.temperature).unwrap();
                assert_eq!(row, rows(batch)[1], "{kind:?} {dtype:?}");
            }
        }
    }

    #[test]
    fn numbers_of_another_type_are_not_rounded_without_a_word() {
        let mut batch = batch(EncodingName::Dense);
        let SoftLabels::Dense { values, .. } = &mut batch.labels else { panic!() };
        values[3] = -0.1;
        let append = |dtype| layout(EncodingName::Dense, dtype).append(batch.clone(), &mut vec![]);
        assert_eq!(append(LabelType::F32), Ok(()));
        assert_eq!(append(LabelType::Bf16).unwrap_err(), "they are not bf16, as was asked for");
    }

    #[test]
    fn sizes_that_are_missing_or_outside_their_range_are_named() {
        let new = |change: fn(&mut EncodingSection), kind, hidden| {
            let mut section = section(kind, LabelType::F32);
            change(&mut section);
            Layout::new(&section, 5, hidden).unwrap_err()
        };
        let error = new(|section| section.k = Some(6), EncodingName::TopK, None);
        assert_eq!(error, "encoding.k is 6, expected 1 to 5");
        let error = new(|section| section.draws = None, EncodingName::Sampled, None);
        assert_eq!(error, "encoding.draws is missing, expected 1 to 65535");
        let error = new(|_| {}, EncodingName::Hidden, None);
        assert_eq!(error, "hidden_size is missing, expected 1 to 16777216");
        assert!(Layout::new(&EncodingSection::default(), 0, None).is_err());
    }

    proptest! {
        /// Whatever is in a file: labels that keep the rules, or an error.
        #[test]
        fn any_bytes_are_labels_or_an_error(
            bytes in proptest::collection::vec(any::<u8>(), 0..40),
            kind in 0..4_usize,
            dtype in 0..3_usize,
        ) {
            let layout = layout(KINDS[kind], DTYPES[dtype]);
            let temperature = if KINDS[kind] == EncodingName::Hidden { 0.0 } else { 4.0 };
            let first = layout.length(&bytes).map(|length| &bytes[..length.min(bytes.len())]);
            for record in [Some(bytes.as_slice()), first].into_iter().flatten() {
                if let Ok(batch) = layout.decode([record], temperature) {
                    let mut again = Vec::new();
                    layout.append(batch, &mut again).unwrap();
                    prop_assert_eq!(again, record);
                }
            }
        }
    }
}
