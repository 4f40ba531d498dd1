//! The answers to the parts of a request, put together as one.

use stillhouse_proto::{LabelBatch, SoftLabels};

use super::pipeline::Answered;

/// An answer, and the units that it is of, by their place in the request.
pub(super) type Part = Answered<LabelBatch>;

/// The labels of a request's units, in order, where unit `u` has `labels[u]` of them; none if the
/// parts are not of the same kind, or are not all of it.
pub(super) fn join(parts: Vec<Part>, labels: &[usize]) -> Option<LabelBatch> {
    let whole = |part: &Part| part.0.iter().copied().eq(0..labels.len() as u32);
    if parts.len() == 1 && whole(&parts[0]) {
        return parts.into_iter().next().map(|(_, batch)| batch);
    }
    // Where every unit's rows lie.
    let mut places = vec![None; labels.len()];
    for (number, (units, batch)) in parts.iter().enumerate() {
        let mut row = 0;
        for &unit in units {
            *places.get_mut(unit as usize)? = Some((number, row));
            row += labels[unit as usize];
        }
        (row == batch.rows).then_some(())?;
    }
    let readers: Vec<Reader<'_>> = parts.iter().map(|(_, batch)| Reader::new(batch)).collect();
    let first = &parts.first()?.1;
    let mut all = emptied(&first.labels);
    let mut rows = 0;
    for (place, &count) in places.into_iter().zip(labels) {
        let (part, row) = place?;
        (row..row + count).try_for_each(|row| readers[part].append(row, &mut all))?;
        rows += count;
    }
    let (temperature, classes) = (first.temperature, first.classes);
    Some(LabelBatch { temperature, rows, classes, labels: all })
}

/// The same encoding without rows.
pub(super) fn emptied(labels: &SoftLabels) -> SoftLabels {
    match labels {
        SoftLabels::Dense { kind, .. } => SoftLabels::Dense { kind: *kind, values: Vec::new() },
        SoftLabels::TopK { k, .. } => SoftLabels::TopK {
            k: *k,
            ids: Vec::new(),
            log_probabilities: Vec::new(),
            log_tail_mass: Vec::new(),
        },
        SoftLabels::Ids { ids_per_row, .. } => SoftLabels::Ids {
            ids_per_row: *ids_per_row,
            log_probabilities: Vec::new(),
            log_tail_mass: Vec::new(),
        },
        SoftLabels::Sampled { draws, .. } => SoftLabels::Sampled {
            draws: *draws,
            distinct: Vec::new(),
            ids: Vec::new(),
            counts: Vec::new(),
        },
        SoftLabels::Hidden { width, .. } => {
            SoftLabels::Hidden { width: *width, states: Vec::new() }
        }
    }
}

/// Reads rows of a batch.
pub(super) struct Reader<'a> {
    batch: &'a LabelBatch,
    /// Of draws: where each row starts.
    starts: Vec<usize>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(batch: &'a LabelBatch) -> Self {
        let starts = match &batch.labels {
            SoftLabels::Sampled { distinct, .. } => distinct
                .iter()
                .scan(0, |end, distinct| {
                    let start = *end;
                    *end += usize::from(*distinct);
                    Some(start)
                })
                .collect(),
            _ => Vec::new(),
        };
        Self { batch, starts }
    }

    /// Adds a row to labels of the same kind; none of another.
    pub(super) fn append(&self, row: usize, all: &mut SoftLabels) -> Option<()> {
        fn take<T: Copy>(all: &mut Vec<T>, from: &[T], row: usize, width: usize) -> Option<()> {
            all.extend_from_slice(from.get(row * width..(row + 1) * width)?);
            Some(())
        }
        match (all, &self.batch.labels) {
            (SoftLabels::Dense { kind, values }, SoftLabels::Dense { kind: own, values: from })
                if kind == own =>
            {
                take(values, from, row, self.batch.classes)
            }
            (
                SoftLabels::TopK { k, ids, log_probabilities, log_tail_mass },
                SoftLabels::TopK {
                    k: own,
                    ids: from_ids,
                    log_probabilities: from,
                    log_tail_mass: from_tails,
                },
            ) if k == own => {
                take(ids, from_ids, row, *k)?;
                take(log_probabilities, from, row, *k)?;
                take(log_tail_mass, from_tails, row, 1)
            }
            (
                SoftLabels::Ids { ids_per_row, log_probabilities, log_tail_mass },
                SoftLabels::Ids {
                    ids_per_row: own,
                    log_probabilities: from,
                    log_tail_mass: from_tails,
                },
            ) if ids_per_row == own => {
                take(log_probabilities, from, row, *own)?;
                take(log_tail_mass, from_tails, row, 1)
            }
            (
                SoftLabels::Sampled { draws, distinct, ids, counts },
                SoftLabels::Sampled {
                    draws: own,
                    distinct: from_distinct,
                    ids: from_ids,
                    counts: from_counts,
                },
            ) if draws == own => {
                take(distinct, from_distinct, row, 1)?;
                let start = *self.starts.get(row)?;
                let end = start + usize::from(from_distinct[row]);
                ids.extend_from_slice(from_ids.get(start..end)?);
                counts.extend_from_slice(from_counts.get(start..end)?);
                Some(())
            }
            (
                SoftLabels::Hidden { width, states },
                SoftLabels::Hidden { width: own, states: from },
            ) if width == own => take(states, from, row, *own),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use stillhouse_proto::v1::DenseKind;

    use super::*;

    const ROWS: [usize; 4] = [2, 1, 0, 1];

    /// Labels of numbered rows, in every encoding.
    fn batches(rows: &[u32]) -> Vec<LabelBatch> {
        let values = |width: u32| -> Vec<f32> {
            rows.iter().flat_map(|row| (0..width).map(move |at| (row * 10 + at) as f32)).collect()
        };
        let ids: Vec<u32> = rows.iter().flat_map(|row| [row * 2, row * 2 + 1]).collect();
        // As many distinct ids as the row's number and one.
        let drawn = |offset: u32| -> Vec<u32> {
            rows.iter().flat_map(|row| (0..=*row).map(move |at| row * 7 + at + offset)).collect()
        };
        let kind = DenseKind::Logits;
        let labels = [
            SoftLabels::Dense { kind, values: values(3) },
            SoftLabels::TopK { k: 2, ids, log_probabilities: values(2), log_tail_mass: values(1) },
            SoftLabels::Ids {
                ids_per_row: 2,
                log_probabilities: values(2),
                log_tail_mass: values(1),
            },
            SoftLabels::Sampled {
                draws: 9,
                distinct: rows.iter().map(|row| *row as u16 + 1).collect(),
                ids: drawn(0),
                counts: drawn(1),
            },
            SoftLabels::Hidden { width: 4, states: values(4) },
        ];
        let batch = |labels| LabelBatch { temperature: 2.0, rows: rows.len(), classes: 3, labels };
        labels.into_iter().map(batch).collect()
    }

    #[test]
    fn parts_in_any_order_are_the_whole() {
        // Rows 0 and 1 are of unit 0, row 2 of unit 1, row 3 of unit 3.
        let parts = [(vec![3, 0], batches(&[3, 0, 1])), (vec![2, 1], batches(&[2]))];
        for (encoding, whole) in batches(&[0, 1, 2, 3]).into_iter().enumerate() {
            let parts: Vec<Part> = parts
                .iter()
                .map(|(units, batches)| (units.clone(), batches[encoding].clone()))
                .collect();
            assert_eq!(join(parts.clone(), &ROWS), Some(whole.clone()));
            assert_eq!(join(parts[..1].to_vec(), &ROWS), None, "a part is missing");
            assert_eq!(join(vec![(vec![0, 1, 2, 3], whole.clone())], &ROWS), Some(whole));
        }
        let [dense, top_k, ..] = &batches(&[0, 1, 2])[..] else { panic!() };
        let mixed = vec![(vec![0, 1], dense.clone()), (vec![2, 3], top_k.clone())];
        assert_eq!(join(mixed, &[1; 4]), None);
    }
}
