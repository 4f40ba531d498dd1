//! Labels that are kept for when their rows come again: in the next epoch nobody is asked for them.
//!
//! Rows are known by their content. What came first is kept, up to a bound in bytes, and nothing makes way:
//! rows come in a new order in every epoch, and the one that was used last is the last to come again. Labels
//! of another temperature than the last that was asked for go: a schedule does not come back to them.

use std::collections::HashMap;

use stillhouse_proto::{LabelBatch, SoftLabels};

use super::{
    join::{Reader, emptied},
    pipeline::Answered,
};

/// Bytes of labels in one piece, about: pieces are not moved when more come.
const PIECE: usize = 1 << 20;
/// What a unit costs beside its labels: its entry in the table, which is up to half empty.
const OVERHEAD: usize = 128;

/// What a unit's labels are known by: a hash of its content.
pub(super) type Key = u128;

/// Labels of units.
#[derive(Debug)]
pub(super) struct Kept {
    /// Bytes that may be kept; 0: none.
    most: usize,
    /// That of all of them.
    temperature: f32,
    bytes: usize,
    places: HashMap<Key, Place>,
    pieces: Vec<LabelBatch>,
    piece_bytes: usize,
}

/// Where a unit's labels lie.
#[derive(Clone, Copy, Debug)]
struct Place {
    piece: u32,
    row: u32,
    rows: u32,
}

impl Kept {
    pub(super) fn new(most: usize) -> Self {
        let (places, pieces) = (HashMap::new(), Vec::new());
        Self { most, temperature: 0.0, bytes: 0, places, pieces, piece_bytes: 0 }
    }

    /// Whether any are kept at all.
    pub(super) fn is_on(&self) -> bool {
        self.most > 0
    }

    /// The labels of those units that are known, as of an answer at a temperature, where unit `u` has
    /// `labels[u]` of them; none if none are.
    pub(super) fn take(
        &mut self,
        keys: &[Key],
        labels: &[usize],
        temperature: f32,
    ) -> Option<Answered<LabelBatch>> {
        if temperature.to_bits() != self.temperature.to_bits() {
            *self = Self { temperature, ..Self::new(self.most) };
        }
        let mut units = Vec::new();
        let mut all: Option<LabelBatch> = None;
        let mut rows = 0;
        for (unit, (key, &count)) in keys.iter().zip(labels).enumerate() {
            let known = self.places.get(key).filter(|place| place.rows as usize == count);
            let Some(place) = known else { continue };
            let piece = self.pieces.get(place.piece as usize)?;
            let batch = all.get_or_insert_with(|| LabelBatch {
                temperature,
                rows: 0,
                classes: piece.classes,
                labels: emptied(&piece.labels),
            });
            // Draws are never kept: rows of one piece are where they are counted to be.
            let reader = Reader::new(piece);
            let own = place.row..place.row + place.rows;
            own.clone().try_for_each(|row| reader.append(row as usize, &mut batch.labels))?;
            rows += own.len();
            units.push(unit as u32);
        }
        let mut batch = all?;
        batch.rows = rows;
        Some((units, batch))
    }

    /// Keeps the labels of units that are not known yet, where unit `u` has `labels[u]` of them, as
    /// long as there is room.
    pub(super) fn keep(&mut self, keys: &[Key], labels: &[usize], batch: &LabelBatch) {
        if batch.temperature.to_bits() != self.temperature.to_bits() {
            return;
        }
        let row_bytes = bytes(&batch.labels) / batch.rows.max(1);
        let reader = Reader::new(batch);
        let mut next = 0;
        for (&key, &rows) in keys.iter().zip(labels) {
            let first = next;
            next += rows;
            let more = rows * row_bytes + OVERHEAD;
            if self.bytes + more > self.most || self.places.contains_key(&key) {
                continue;
            }
            if self.pieces.is_empty() || self.piece_bytes >= PIECE {
                // A vector that has grown has room for as much again.
                if let Some(full) = self.pieces.last_mut() {
                    shrink(&mut full.labels);
                }
                let labels = emptied(&batch.labels);
                self.pieces.push(LabelBatch { rows: 0, labels, ..*batch });
                self.piece_bytes = 0;
            }
            let number = self.pieces.len() - 1;
            let Some(piece) = self.pieces.last_mut() else { return };
            let row = piece.rows as u32;
            let copied = (first..next).try_for_each(|row| reader.append(row, &mut piece.labels));
            if copied.is_none() {
                // Labels of another kind than those before: a run has one kind.
                return;
            }
            piece.rows += rows;
            self.piece_bytes += rows * row_bytes;
            self.bytes += more;
            self.places.insert(key, Place { piece: number as u32, row, rows: rows as u32 });
        }
    }
}

/// Bytes of labels in memory.
fn bytes(labels: &SoftLabels) -> usize {
    4 * match labels {
        SoftLabels::Dense { values, .. } => values.len(),
        SoftLabels::TopK { ids, log_probabilities, log_tail_mass, .. } => {
            ids.len() + log_probabilities.len() + log_tail_mass.len()
        }
        SoftLabels::Ids { log_probabilities, log_tail_mass, .. } => {
            log_probabilities.len() + log_tail_mass.len()
        }
        SoftLabels::Sampled { distinct, ids, counts, .. } => {
            distinct.len() + ids.len() + counts.len()
        }
        SoftLabels::Hidden { states, .. } => states.len(),
    }
}

/// Gives back what labels do not take.
fn shrink(labels: &mut SoftLabels) {
    match labels {
        SoftLabels::Dense { values, .. } => values.shrink_to_fit(),
        SoftLabels::TopK { ids, log_probabilities, log_tail_mass, .. } => {
            ids.shrink_to_fit();
            log_probabilities.shrink_to_fit();
            log_tail_mass.shrink_to_fit();
        }
        SoftLabels::Ids { log_probabilities, log_tail_mass, .. } => {
            log_probabilities.shrink_to_fit();
            log_tail_mass.shrink_to_fit();
        }
        SoftLabels::Sampled { distinct, ids, counts, .. } => {
            distinct.shrink_to_fit();
            ids.shrink_to_fit();
            counts.shrink_to_fit();
        }
        SoftLabels::Hidden { states, .. } => states.shrink_to_fit(),
    }
}

#[cfg(test)]
mod tests {
    use stillhouse_proto::v1::DenseKind;

    use super::*;

    fn batch(values: &[f32]) -> LabelBatch {
        let (kind, values) = (DenseKind::LogProbabilities, values.to_vec());
        let rows = values.len() / 2;
        LabelBatch {
            temperature: 2.0,
            rows,
            classes: 2,
            labels: SoftLabels::Dense { kind, values },
        }
    }

    /// What is kept of units with a label each.
    fn found(kept: &mut Kept, keys: &[Key]) -> Option<Answered<LabelBatch>> {
        kept.take(keys, &vec![1; keys.len()], 2.0)
    }

    #[test]
    fn what_is_known_comes_back_in_the_order_it_is_asked_for() {
        let mut kept = Kept::new(1 << 20);
        assert_eq!(found(&mut kept, &[1]), None);
        // Unit 8 has two rows.
        kept.keep(&[7, 8, 9], &[1, 2, 1], &batch(&[7., 7.5, 8., 8.5, 8.2, 8.7, 9., 9.5]));
        let (units, labels) = kept.take(&[9, 1, 8], &[1, 1, 2], 2.0).unwrap();
        assert_eq!(units, [0, 2]);
        assert_eq!(labels, batch(&[9., 9.5, 8., 8.5, 8.2, 8.7]));
        // With another number of labels it is another unit.
        assert_eq!(kept.take(&[8], &[1], 2.0), None);
        // What came first stays.
        kept.keep(&[9], &[1], &batch(&[0., 0.]));
        assert_eq!(found(&mut kept, &[9]).unwrap().1, batch(&[9., 9.5]));
        // At another temperature they are others, and these go; what comes late is not kept.
        assert_eq!(kept.take(&[9], &[1], 1.0), None);
        kept.keep(&[9], &[1], &batch(&[9., 9.5]));
        assert_eq!((kept.bytes, kept.pieces.len()), (0, 0));
        assert_eq!(found(&mut kept, &[9]), None);
    }

    #[test]
    fn no_more_is_kept_than_there_is_room_for() {
        let room = 10 * (8 + OVERHEAD);
        let mut kept = Kept::new(room);
        assert_eq!(found(&mut kept, &[0]), None);
        for content in 0..100 {
            kept.keep(&[content], &[1], &batch(&[content as f32, 0.]));
        }
        let known = (0..100).filter(|&content| found(&mut kept, &[content]).is_some());
        assert_eq!(known.collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
        assert!(kept.bytes <= room);
        assert!(!Kept::new(0).is_on());
    }

    #[test]
    fn pieces_are_as_good_as_one() {
        let mut kept = Kept::new(usize::MAX);
        assert_eq!(found(&mut kept, &[0]), None);
        let count = 3 * PIECE / 8;
        for content in 0..count {
            kept.keep(&[content as u128], &[1], &batch(&[content as f32, 1.]));
        }
        assert!(kept.pieces.len() > 2);
        for content in (0..count).step_by(997) {
            let labels = found(&mut kept, &[content as u128]).unwrap().1;
            assert_eq!(labels, batch(&[content as f32, 1.]));
        }
    }
}
