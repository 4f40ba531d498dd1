//! The units of a request: rows of features, or sequences. What replicas share the work by.

use std::ops::Range;

use stillhouse_proto::{
    request::SequencesView,
    v1::{Sequences, Tensor, label_request::Inputs},
};
use twox_hash::{XxHash3_128, XxHash64};

/// Hashes of every unit's content, which decide the replica that is asked for its labels: the same
/// for the same row in every process, so that all students ask the same replica for it and its cache
/// holds what the others' do not.
pub(super) fn hashes(inputs: &Inputs) -> Vec<u64> {
    let hash = |bytes: &[u8]| XxHash64::oneshot(0, bytes);
    match inputs {
        Inputs::Features(tensor) => rows_of(tensor).map(|row| hash(&tensor.data[row])).collect(),
        Inputs::Sequences(sequences) => tokens_of(sequences)
            .map(|tokens| hash(&sequences.token_ids[4 * tokens.start..4 * tokens.end]))
            .collect(),
    }
}

/// What every unit's labels are known by: 128 bits of its content and of the positions that ask for a
/// label. Two of some billions of rows are the same with a probability of about 10^-20.
pub(super) fn contents(inputs: &Inputs) -> Vec<u128> {
    match inputs {
        Inputs::Features(tensor) => {
            rows_of(tensor).map(|row| XxHash3_128::oneshot(&tensor.data[row])).collect()
        }
        Inputs::Sequences(sequences) => {
            let mask = &sequences.label_mask;
            let of = |tokens: Range<usize>| {
                // Where the ids end and the marks begin.
                let mut bytes = (tokens.len() as u64).to_le_bytes().to_vec();
                bytes.extend(&sequences.token_ids[4 * tokens.start..4 * tokens.end]);
                if !mask.is_empty() {
                    bytes.extend(tokens.map(|at| mask[at / 8] >> (at % 8) & 1));
                }
                XxHash3_128::oneshot(&bytes)
            };
            tokens_of(sequences).map(of).collect()
        }
    }
}

/// Number of units.
pub(super) fn count(inputs: &Inputs) -> usize {
    match inputs {
        Inputs::Features(tensor) => tensor.shape.first().map_or(0, |rows| *rows as usize),
        Inputs::Sequences(sequences) => sequences.lengths.len(),
    }
}

/// Labels of every unit, where `inputs` ask for `labels` of them: one each of features and of what is
/// classified, otherwise those of a sequence's marked positions.
pub(super) fn labels(inputs: &Inputs, labels: usize) -> Vec<usize> {
    let units = count(inputs);
    match inputs {
        Inputs::Sequences(sequences) if labels != units || !sequences.label_mask.is_empty() => {
            match SequencesView::new(sequences, u32::MAX) {
                Ok(view) => tokens_of(sequences)
                    .map(|tokens| tokens.filter(|&at| view.is_labelled(at)).count())
                    .collect(),
                // Requests are made here, and are what they should be.
                Err(_) => vec![1; units],
            }
        }
        _ => vec![1; units],
    }
}

/// Some of the units, in their order there.
pub(super) fn some(inputs: &Inputs, units: &[u32]) -> Inputs {
    match inputs {
        Inputs::Features(tensor) => {
            let rows: Vec<Range<usize>> = rows_of(tensor).collect();
            let data: Vec<u8> = units
                .iter()
                .flat_map(|&unit| &tensor.data[rows[unit as usize].clone()])
                .copied()
                .collect();
            let mut shape = tensor.shape.clone();
            if let Some(rows) = shape.first_mut() {
                *rows = units.len() as u64;
            }
            Inputs::Features(Tensor { dtype: tensor.dtype, shape, data: data.into() })
        }
        Inputs::Sequences(sequences) => {
            let all: Vec<Range<usize>> = tokens_of(sequences).collect();
            let mut ids = Vec::new();
            let mut marks = Vec::new();
            let mask = &sequences.label_mask;
            for &unit in units {
                let tokens = all[unit as usize].clone();
                ids.extend_from_slice(&sequences.token_ids[4 * tokens.start..4 * tokens.end]);
                if !mask.is_empty() {
                    marks.extend(tokens.map(|at| mask[at / 8] >> (at % 8) & 1));
                }
            }
            let byte = |bits: &[u8]| bits.iter().rev().fold(0, |byte, bit| byte << 1 | bit);
            let mask: Vec<u8> = marks.chunks(8).map(byte).collect();
            Inputs::Sequences(Sequences {
                lengths: units.iter().map(|&unit| sequences.lengths[unit as usize]).collect(),
                token_ids: ids.into(),
                label_mask: mask.into(),
            })
        }
    }
}

/// Bytes of every row.
fn rows_of(tensor: &Tensor) -> impl Iterator<Item = Range<usize>> + use<> {
    let rows = tensor.shape.first().map_or(0, |rows| *rows as usize);
    let bytes = tensor.data.len() / rows.max(1);
    (0..rows).map(move |row| row * bytes..(row + 1) * bytes)
}

/// Positions of every sequence among the packed ids.
fn tokens_of(sequences: &Sequences) -> impl Iterator<Item = Range<usize>> + '_ {
    sequences.lengths.iter().scan(0, |end, length| {
        let start = *end;
        *end += *length as usize;
        Some(start..*end)
    })
}

#[cfg(test)]
mod tests {
    use stillhouse_proto::v1::DType;

    use super::*;

    fn features() -> Inputs {
        let data = vec![0, 1, 2, 3, 4, 5, 0, 1];
        Inputs::Features(Tensor { dtype: DType::U8.into(), shape: vec![4, 2], data: data.into() })
    }

    #[test]
    fn rows_are_told_apart_by_content_and_taken_out() {
        let inputs = features();
        let hashes = hashes(&inputs);
        assert_eq!(hashes[0], hashes[3]);
        assert_ne!(hashes[0], hashes[1]);
        assert_eq!(hashes[1], XxHash64::oneshot(0, &[2, 3]), "the same in every process");
        assert_eq!((count(&inputs), labels(&inputs, 4)), (4, vec![1; 4]));
        let Inputs::Features(taken) = some(&inputs, &[2, 0]) else { panic!() };
        assert_eq!((taken.shape, &taken.data[..]), (vec![2, 2], &[4, 5, 0, 1][..]));
    }

    #[test]
    fn sequences_take_their_marks_with_them() {
        let marks = [true, false, true, false, true, true, false, true, true, true];
        let rows = [vec![1, 2, 3], vec![4, 5], vec![1, 2, 3, 9, 9]];
        let inputs = Inputs::Sequences(Sequences::pack(&rows, Some(&marks)).unwrap());
        assert_eq!(labels(&inputs, 7), [2, 1, 4]);
        let expected = Sequences::pack(
            &[vec![1, 2, 3, 9, 9], vec![1, 2, 3]],
            Some(&[true, false, true, true, true, true, false, true]),
        );
        assert_eq!(some(&inputs, &[2, 0]), Inputs::Sequences(expected.unwrap()));

        let all = Inputs::Sequences(Sequences::pack(&rows, None).unwrap());
        assert_eq!(labels(&all, 10), [3, 2, 5], "of a language model, every position");
        assert_eq!(labels(&all, 3), [1, 1, 1], "of a classifier");
        let expected = Sequences::pack(&[vec![4, 5]], None).unwrap();
        assert_eq!(some(&all, &[1]), Inputs::Sequences(expected));
        assert_eq!(hashes(&all)[1], hashes(&some(&all, &[1]))[0]);
    }
}
