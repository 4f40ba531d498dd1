//! Token sequences: packed by a client, checked by a server.

use std::{iter, ops::Range};

use super::byte_length;
use crate::{
    dtype::{first_refused, u32_from_bytes, u32_to_bytes},
    labels::{CodecError, refuse},
    v1::Sequences,
};

impl Sequences {
    /// Packs rows of token ids. `labelled` has one entry for each position of the rows taken
    /// together; `None` labels all of them.
    ///
    /// # Errors
    ///
    /// If `labelled` has another length.
    pub fn pack<R: AsRef<[u32]>>(
        rows: &[R],
        labelled: Option<&[bool]>,
    ) -> Result<Self, CodecError> {
        let tokens: usize = rows.iter().map(|row| row.as_ref().len()).sum();
        if let Some(labelled) = labelled
            && labelled.len() != tokens
        {
            let accepted = format!("the {tokens} of the rows together");
            return Err(refuse("number of positions in `labelled`", labelled.len(), accepted));
        }
        let rows = rows.iter().map(AsRef::as_ref);
        let mut token_ids = Vec::new();
        rows.clone().for_each(|row| token_ids.extend(u32_to_bytes(row)));
        let mask = |positions: &[bool]| -> Vec<u8> {
            let byte = |bits: &[bool]| {
                bits.iter().rev().fold(0, |byte, labelled| byte << 1 | u8::from(*labelled))
            };
            positions.chunks(8).map(byte).collect()
        };
        Ok(Self {
            // A row past 2^32 tokens does not fit in a message; the server sees it as a mismatch.
            lengths: rows.map(|row| u32::try_from(row.len()).unwrap_or(u32::MAX)).collect(),
            token_ids: token_ids.into(),
            label_mask: labelled.map(mask).unwrap_or_default().into(),
        })
    }
}

/// [`Sequences`] whose lengths, ids and mask agree. Borrows the message; copies no ids.
#[derive(Debug, Clone)]
pub struct SequencesView<'a> {
    message: &'a Sequences,
    /// Where each row starts in the packed ids, and where the last one ends: rows + 1 of them.
    starts: Vec<usize>,
    labelled: usize,
}

impl<'a> SequencesView<'a> {
    /// Checks `sequences`: at least one row; no row empty; as many ids as the lengths add up to,
    /// each below `vocabulary`; a mask that is empty or has a bit for each position, at least one of
    /// them set, and no bit after the last.
    ///
    /// The limits of one server (`ServerLimits`, `SequenceSignature.max_length`) are not checked
    /// here.
    ///
    /// # Errors
    ///
    /// [`CodecError`] for the first thing that is wrong.
    pub fn new(sequences: &'a Sequences, vocabulary: u32) -> Result<Self, CodecError> {
        let lengths = &sequences.lengths;
        if lengths.is_empty() {
            return Err(refuse("lengths", "empty", "of at least 1 row"));
        }
        if let Some(row) = lengths.iter().position(|length| *length == 0) {
            return Err(refuse(format!("lengths[{row}]"), 0, "at least 1"));
        }
        // At most 2^31 rows of at most 2^32 tokens each: no overflow in 64 bits.
        let tokens: u64 = lengths.iter().copied().map(u64::from).sum();
        let bytes = sequences.token_ids.len();
        byte_length("token_ids", bytes, u128::from(tokens) * 4, "4 for each token of `lengths`")?;

        let positions = bytes / 4;
        let mask = &sequences.label_mask;
        let labelled = if mask.is_empty() {
            positions
        } else {
            let of = "1 bit for each token of `lengths`, or empty";
            byte_length("label_mask", mask.len(), positions.div_ceil(8) as u128, of)?;
            let used = positions % 8;
            if let (1.., Some(last)) = (used, mask.last())
                && last >> used != 0
            {
                let value = "set past the last token";
                return Err(refuse("label_mask", value, "0 in its unused bits"));
            }
            mask.iter().map(|byte| byte.count_ones() as usize).sum()
        };
        if labelled == 0 {
            return Err(refuse("label_mask", "0 throughout", "set for at least 1 token"));
        }
        let below = |word: &[u8; 4]| u32::from_le_bytes(*word) < vocabulary;
        let words = sequences.token_ids.as_chunks().0;
        if let Some(index) = first_refused(words, |word| below(&word)) {
            let id = u32::from_le_bytes(words[index]);
            let accepted = format!("below the vocabulary's {vocabulary}");
            return Err(refuse(format!("token_ids[{index}]"), id, accepted));
        }
        let ends = lengths.iter().scan(0, |end, length| {
            *end += *length as usize;
            Some(*end)
        });
        let starts = iter::once(0).chain(ends).collect();
        Ok(Self { message: sequences, starts, labelled })
    }

    /// Number of rows, at least 1.
    pub fn rows(&self) -> usize {
        self.message.lengths.len()
    }

    /// Tokens in each row, each at least 1.
    pub fn lengths(&self) -> &'a [u32] {
        &self.message.lengths
    }

    /// Tokens in all rows together.
    pub fn tokens(&self) -> usize {
        self.message.token_ids.len() / 4
    }

    /// Positions to label in all rows together, at least 1: the rows that the labels will have.
    pub fn labelled_positions(&self) -> usize {
        self.labelled
    }

    /// Positions of one row among the packed ids; `None` past the last row.
    pub fn row(&self, row: usize) -> Option<Range<usize>> {
        match self.starts.get(row..)? {
            [start, end, ..] => Some(*start..*end),
            _ => None,
        }
    }

    /// Token ids of all rows, packed.
    pub fn token_ids(&self) -> Vec<u32> {
        u32_from_bytes(&self.message.token_ids)
    }

    /// Token ids of one row as they are on the wire, 4 bytes each; `None` past the last row.
    pub fn row_bytes(&self, row: usize) -> Option<&'a [u8]> {
        let Range { start, end } = self.row(row)?;
        self.message.token_ids.get(4 * start..4 * end)
    }

    /// Whether a position among the packed ids is to be labelled; `false` past the last.
    pub fn is_labelled(&self, position: usize) -> bool {
        let mask = &self.message.label_mask;
        let bit = |byte: &u8| byte >> (position % 8) & 1 == 1;
        position < self.tokens() && (mask.is_empty() || mask.get(position / 8).is_some_and(bit))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::request::pack_ids;

    const VOCABULARY: u32 = 100;

    fn refusal(alter: impl Fn(&mut Sequences)) -> String {
        let labelled = [true, false, false, true, false];
        let mut sequences =
            Sequences::pack(&[vec![7, 8, 9], vec![1, 99]], Some(&labelled)).unwrap();
        alter(&mut sequences);
        SequencesView::new(&sequences, VOCABULARY).unwrap_err().to_string()
    }

    #[test]
    fn a_view_finds_rows_and_labelled_positions() {
        let labelled = [true, false, false, true, false];
        let sequences = Sequences::pack(&[vec![7, 8, 9], vec![1, 99]], Some(&labelled)).unwrap();
        assert_eq!(*sequences.label_mask, [0b0000_1001]);
        let view = SequencesView::new(&sequences, VOCABULARY).unwrap();
        assert_eq!((view.rows(), view.tokens(), view.labelled_positions()), (2, 5, 2));
        assert_eq!(view.lengths(), [3, 2]);
        assert_eq!(view.token_ids(), [7, 8, 9, 1, 99]);
        assert_eq!(view.row(1), Some(3..5));
        assert_eq!(view.row_bytes(1), Some(&[1, 0, 0, 0, 99, 0, 0, 0][..]));
        assert_eq!(view.row(2), None);
        assert_eq!(view.row_bytes(usize::MAX), None);
        let marks: Vec<_> = (0..6).map(|position| view.is_labelled(position)).collect();
        assert_eq!(marks, [true, false, false, true, false, false]);
    }

    /// Padded to whole bytes, a mask that is too short would pass for one that leaves positions out.
    #[test]
    fn marks_that_are_not_one_for_each_position_are_refused() {
        let rows = [vec![7, 8, 9], vec![1, 99]];
        for marks in [0, 4, 6, 8] {
            let error = Sequences::pack(&rows, Some(&vec![true; marks])).unwrap_err();
            let expected = format!(
                "number of positions in `labelled` is {marks}; must be the 5 of the rows together"
            );
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn no_mask_labels_every_position() {
        let sequences = Sequences::pack(&[[1, 2, 3]], None).unwrap();
        let view = SequencesView::new(&sequences, VOCABULARY).unwrap();
        assert_eq!(view.labelled_positions(), 3);
        assert!(view.is_labelled(2) && !view.is_labelled(3));
    }

    #[test]
    fn malformed_sequences_are_refused() {
        type Alter = fn(&mut Sequences);
        let cases: [(&str, Alter); 9] = [
            ("lengths is empty; must be of at least 1 row", |s| {
                s.lengths.clear();
            }),
            ("lengths[1] is 0; must be at least 1", |s| {
                s.lengths = vec![5, 0];
            }),
            ("length of token_ids is 20 bytes; must be 24: 4 for each token of `lengths`", |s| {
                s.lengths = vec![3, 3];
            }),
            (
                "length of token_ids is 20 bytes; must be 51539607540: 4 for each token of `lengths`",
                |s| s.lengths = vec![u32::MAX; 3],
            ),
            ("length of token_ids is 19 bytes; must be 20: 4 for each token of `lengths`", |s| {
                s.token_ids.truncate(19);
            }),
            ("token_ids[1] is 100; must be below the vocabulary's 100", |s| {
                s.token_ids = pack_ids(&[0, 100, 0, 0, 0]);
            }),
            (
                "length of label_mask is 2 bytes; must be 1: 1 bit for each token of `lengths`, or \
                 empty",
                |s| s.label_mask = vec![1, 0].into(),
            ),
            ("label_mask is set past the last token; must be 0 in its unused bits", |s| {
                s.label_mask = vec![0b0010_0001].into();
            }),
            ("label_mask is 0 throughout; must be set for at least 1 token", |s| {
                s.label_mask = vec![0].into();
            }),
        ];
        for (expected, alter) in cases {
            assert_eq!(refusal(alter), expected);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        /// A view gives back what was packed, mask included.
        #[test]
        fn round_trip(
            rows in prop::collection::vec(prop::collection::vec(0..VOCABULARY, 1..20), 1..6),
            mask in prop::collection::vec(any::<bool>(), 100),
        ) {
            let tokens = rows.concat();
            let mut labelled = mask[..tokens.len()].to_vec();
            labelled[0] = true;
            let sequences = Sequences::pack(&rows, Some(&labelled)).unwrap();
            let view = SequencesView::new(&sequences, VOCABULARY).unwrap();
            for (index, row) in rows.iter().enumerate() {
                prop_assert_eq!(&view.token_ids()[view.row(index).unwrap()], &row[..]);
            }
            let marks: Vec<_> = (0..tokens.len()).map(|at| view.is_labelled(at)).collect();
            prop_assert_eq!(labelled.iter().filter(|mark| **mark).count(), view.labelled_positions());
            prop_assert_eq!(marks, labelled);
        }
    }
}
