//! The input of a request in units: what a forward pass can leave out because its output is known.

use crate::cache::Key;

/// A row of features, or a sequence of tokens.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Unit {
    /// What its output is shared under; none: it is not shared.
    pub(crate) key: Option<Key>,
    /// Labels that it asks for: 1, or the labelled positions of a language model's sequence.
    pub(crate) labels: usize,
}

/// The input of several units, as the models take it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum JobInput {
    Features {
        /// Elements of a row.
        width: usize,
        /// `[rows, width]`.
        values: Vec<f32>,
    },
    Tokens {
        /// Of all sequences.
        ids: Vec<u32>,
        /// Tokens of each sequence.
        lengths: Vec<u32>,
        /// Positions to label among the ids, ascending; empty where every sequence has one label.
        labelled: Vec<usize>,
    },
}

impl JobInput {
    /// What it costs the device: rows of features, or tokens.
    pub(crate) fn cost(&self) -> u64 {
        match self {
            Self::Features { width, values } => (values.len() / (*width).max(1)) as u64,
            Self::Tokens { ids, .. } => ids.len() as u64,
        }
    }

    /// The same kind of input without any unit.
    pub(crate) fn emptied(&self) -> Self {
        match self {
            Self::Features { width, .. } => Self::Features { width: *width, values: Vec::new() },
            Self::Tokens { .. } => {
                Self::Tokens { ids: Vec::new(), lengths: Vec::new(), labelled: Vec::new() }
            }
        }
    }

    /// Adds those units of `other`, an input of the same kind, that `keep` has a mark for.
    pub(crate) fn extend(&mut self, other: &Self, keep: &[bool]) {
        let kept = keep.iter().enumerate().filter_map(|(unit, keep)| keep.then_some(unit));
        match (self, other) {
            (Self::Features { values, .. }, Self::Features { width, values: from }) => {
                kept.for_each(|row| values.extend_from_slice(&from[row * width..][..*width]));
            }
            (
                Self::Tokens { ids, lengths, labelled },
                Self::Tokens { ids: from, lengths: from_lengths, labelled: from_labelled },
            ) => {
                let (mut start, mut marks) = (0, &from_labelled[..]);
                for (&length, keep) in from_lengths.iter().zip(keep) {
                    let end = start + length as usize;
                    let (own, rest) = marks.split_at(marks.partition_point(|&at| at < end));
                    marks = rest;
                    if *keep {
                        let first = ids.len();
                        labelled.extend(own.iter().map(|at| first + at - start));
                        ids.extend_from_slice(&from[start..end]);
                        lengths.push(length);
                    }
                    start = end;
                }
            }
            // A teacher takes one kind of input.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_left_out_leave_the_others_in_order() {
        let from = JobInput::Features { width: 2, values: vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0] };
        assert_eq!(from.cost(), 3);
        let mut all = from.emptied();
        all.extend(&from, &[true, false, true]);
        all.extend(&from, &[false, true, false]);
        let values = vec![0.0, 1.0, 4.0, 5.0, 2.0, 3.0];
        assert_eq!(all, JobInput::Features { width: 2, values });
    }

    #[test]
    fn sequences_take_their_labelled_positions_with_them() {
        let from = JobInput::Tokens {
            ids: vec![10, 11, 12, 20, 30, 31],
            lengths: vec![3, 1, 2],
            labelled: vec![1, 2, 3, 5],
        };
        assert_eq!(from.cost(), 6);
        let mut all = from.emptied();
        all.extend(&from, &[false, false, true]);
        all.extend(&from, &[true, true, false]);
        let expected = JobInput::Tokens {
            ids: vec![30, 31, 10, 11, 12, 20],
            lengths: vec![2, 3, 1],
            labelled: vec![1, 3, 4, 5],
        };
        assert_eq!(all, expected);
        let classified =
            JobInput::Tokens { ids: vec![1, 2, 3], lengths: vec![1, 2], labelled: vec![] };
        let mut one = classified.emptied();
        one.extend(&classified, &[false, true]);
        assert_eq!(one, JobInput::Tokens { ids: vec![2, 3], lengths: vec![2], labelled: vec![] });
    }
}
