//! Random label batches that keep every rule of the contract.

#![allow(dead_code, reason = "each test uses its own part")]

use std::collections::BTreeSet;

use bytes::Bytes;
use proptest::prelude::*;
use stillhouse_proto::{
    LabelBatch, SoftLabels,
    v1::{self, DenseKind, labels::Payload},
};

/// Kinds of payload that [`batch`] draws from: three of dense labels and the other four.
const KINDS: usize = 7;

/// Any valid batch: up to 5 rows, none included; up to 40 classes, or a vocabulary of any size where
/// the payload does not grow with it.
pub(crate) fn batch() -> impl Strategy<Value = LabelBatch> {
    let few = 1_usize..=40;
    let many = prop_oneof![Just(151_936_usize), Just(u32::MAX as usize), 1..=u32::MAX as usize];
    (0..KINDS, 0_usize..=5, few, many, 1_usize..=40, any::<bool>(), any::<u64>()).prop_map(
        |(kind, rows, few, many, per_row, large, seed)| {
            let classes = if large && kind > 2 { many } else { few };
            let mut numbers = Numbers(seed);
            let labels = labels(kind, rows, classes, per_row.min(classes), &mut numbers);
            let timeless = matches!(
                labels,
                SoftLabels::Hidden { .. } | SoftLabels::Dense { kind: DenseKind::Logits, .. }
            );
            let temperature = if timeless { 0.0 } else { 0.05 + 20.0 * numbers.fraction() };
            LabelBatch { temperature, rows, classes, labels }
        },
    )
}

/// The rule of the contract that a batch breaks, if any. Written from the comments of `teacher.proto`
/// and one value at a time, so that it shares no code and no mistake with the codec.
pub(crate) fn broken_rule(batch: &LabelBatch) -> Option<String> {
    let LabelBatch { temperature, rows, classes, labels } = batch;
    let mut broken = Vec::new();
    let mut rule = |holds: bool, text: &str| {
        if !holds {
            broken.push(text.to_owned());
        }
    };
    // For rounding, as the contract allows it.
    let above = 2_f32.powi(-13);
    let log_p = |values: &[f32]| values.iter().all(|value| !value.is_nan() && *value <= above);
    let tail = |values: &[f32], named: usize| {
        let nothing_left = named == *classes;
        let all_of_it = values.iter().all(|value| *value == f32::NEG_INFINITY);
        values.len() == *rows && log_p(values) && (!nothing_left || all_of_it)
    };
    rule((1..1 << 32).contains(classes), "classes are 1 to 2^32 - 1");
    rule(*rows < 1 << 32, "rows are below 2^32");
    let mut timeless = false;
    match labels {
        SoftLabels::Dense { kind, values } => {
            rule(values.len() == rows * classes, "dense: V values a row");
            rule(*kind != DenseKind::Unspecified, "dense: the kind is set");
            timeless = *kind == DenseKind::Logits;
            let in_range = match kind {
                DenseKind::Logits => values.iter().all(|value| value.abs() < f32::INFINITY),
                DenseKind::Probabilities => {
                    values.iter().all(|value| *value >= 0.0 && *value <= 1.0 + above)
                }
                _ => log_p(values),
            };
            rule(in_range, "dense: values in their range");
        }
        SoftLabels::TopK { k, ids, log_probabilities, log_tail_mass } => {
            rule(*k >= 1 && k <= classes, "top_k: k is 1 to V");
            rule(ids.len() == rows * k, "top_k: k ids a row");
            rule(log_probabilities.len() == rows * k, "top_k: k log-probabilities a row");
            rule(log_p(log_probabilities), "top_k: log-probabilities");
            rule(tail(log_tail_mass, *k), "top_k: tail mass");
            for row in 0..*rows {
                let of_row = row * k..(row + 1) * k;
                let ids = &ids[of_row.clone()];
                rule(ids.iter().all(|id| (*id as usize) < *classes), "top_k: ids below V");
                let distinct: BTreeSet<_> = ids.iter().collect();
                rule(distinct.len() == ids.len(), "top_k: no id twice");
                let ranked = log_probabilities[of_row].is_sorted_by(|left, right| left >= right);
                rule(ranked, "top_k: most probable first");
            }
        }
        SoftLabels::Ids { ids_per_row, log_probabilities, log_tail_mass } => {
            rule(*ids_per_row >= 1 && ids_per_row <= classes, "ids: 1 to V a row");
            let values = log_probabilities.len();
            rule(values == rows * ids_per_row, "ids: a log-probability for each");
            rule(log_p(log_probabilities), "ids: log-probabilities");
            rule(tail(log_tail_mass, *ids_per_row), "ids: tail mass");
        }
        SoftLabels::Sampled { draws, distinct, ids, counts } => {
            rule((1..=65_535).contains(draws), "sampled: 1 to 65535 draws");
            rule(distinct.len() == *rows, "sampled: a number of distinct ids for each row");
            let sum: usize = distinct.iter().map(|distinct| usize::from(*distinct)).sum();
            rule(ids.len() == sum && counts.len() == sum, "sampled: ids and counts for each");
            let mut start = 0;
            for distinct in distinct.iter().map(|distinct| usize::from(*distinct)) {
                let of_row = start..start + distinct;
                start += distinct;
                let most = (*draws as usize).min(*classes);
                rule((1..=most).contains(&distinct), "sampled: 1 to min(N, V) distinct ids");
                let (ids, counts) = (&ids[of_row.clone()], &counts[of_row]);
                rule(ids.iter().all(|id| (*id as usize) < *classes), "sampled: ids below V");
                rule(ids.is_sorted_by(|left, right| left < right), "sampled: ids ascending");
                rule(counts.iter().all(|count| *count >= 1), "sampled: counts of 1 or more");
                let drawn: u64 = counts.iter().map(|count| u64::from(*count)).sum();
                rule(drawn == u64::from(*draws), "sampled: N draws in all");
            }
        }
        SoftLabels::Hidden { width, states } => {
            timeless = true;
            rule((1..1 << 32).contains(width), "hidden: a width of 1 to 2^32 - 1");
            rule(states.len() == rows * width, "hidden: a state for each row");
            rule(states.iter().all(|value| value.abs() < f32::INFINITY), "hidden: finite");
        }
    }
    let in_range = if timeless {
        *temperature == 0.0
    } else {
        *temperature > 0.0 && *temperature < f32::INFINITY
    };
    rule(in_range, "temperature");
    broken.into_iter().next()
}

/// Any element type that labels may travel as.
pub(crate) fn dtype() -> impl Strategy<Value = v1::DType> {
    prop_oneof![Just(v1::DType::F32), Just(v1::DType::F16), Just(v1::DType::Bf16)]
}

/// Every field of the payload that holds bytes.
pub(crate) fn byte_fields(labels: &mut v1::Labels) -> Vec<&mut Bytes> {
    fn data(tensor: &mut Option<v1::Tensor>) -> &mut Bytes {
        &mut tensor.as_mut().unwrap().data
    }
    match labels.payload.as_mut().unwrap() {
        Payload::Dense(dense) => vec![data(&mut dense.values)],
        Payload::TopK(top_k) => vec![
            &mut top_k.packed_ids,
            data(&mut top_k.log_probabilities),
            data(&mut top_k.log_tail_mass),
        ],
        Payload::Ids(ids) => vec![data(&mut ids.log_probabilities), data(&mut ids.log_tail_mass)],
        Payload::Sampled(sampled) => {
            vec![&mut sampled.distinct, &mut sampled.packed_ids, &mut sampled.packed_counts]
        }
        Payload::Hidden(hidden) => vec![data(&mut hidden.states)],
    }
}

fn labels(
    kind: usize,
    rows: usize,
    classes: usize,
    per_row: usize,
    numbers: &mut Numbers,
) -> SoftLabels {
    match kind {
        0 => SoftLabels::Dense {
            kind: DenseKind::LogProbabilities,
            values: numbers.many(rows * classes, Numbers::log_probability),
        },
        1 => SoftLabels::Dense {
            kind: DenseKind::Probabilities,
            values: numbers.many(rows * classes, Numbers::fraction),
        },
        2 => SoftLabels::Dense {
            kind: DenseKind::Logits,
            values: numbers.many(rows * classes, Numbers::logit),
        },
        3 => {
            let mut ids = Vec::new();
            let mut log_probabilities = Vec::new();
            for _ in 0..rows {
                ids.extend(numbers.distinct(per_row, classes));
                let mut row = numbers.many(per_row, Numbers::log_probability);
                row.sort_by(|left, right| right.total_cmp(left));
                log_probabilities.extend(row);
            }
            let log_tail_mass = numbers.tail(rows, per_row == classes);
            SoftLabels::TopK { k: per_row, ids, log_probabilities, log_tail_mass }
        }
        4 => SoftLabels::Ids {
            ids_per_row: per_row,
            log_probabilities: numbers.many(rows * per_row, Numbers::log_probability),
            log_tail_mass: numbers.tail(rows, per_row == classes),
        },
        5 => {
            let most = if numbers.below(2) == 0 { 100 } else { 65_535 };
            let draws = 1 + numbers.below(most);
            let (mut distinct, mut ids, mut counts) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..rows {
                let most = per_row.min(draws as usize);
                let row = 1 + numbers.below(most as u32) as usize;
                distinct.push(row as u16);
                let mut row_ids = numbers.distinct(row, classes);
                row_ids.sort_unstable();
                ids.extend(row_ids);
                // N drawn once each, and what is left over in one of the places.
                let mut row_counts = vec![1; row];
                let place = numbers.below(row as u32) as usize;
                row_counts[place] += draws - row as u32;
                counts.extend(row_counts);
            }
            SoftLabels::Sampled { draws, distinct, ids, counts }
        }
        _ => SoftLabels::Hidden {
            width: per_row,
            states: numbers.many(rows * per_row, Numbers::logit),
        },
    }
}

/// A stream of numbers from one seed (SplitMix64).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, below: u32) -> u32 {
        (self.next() % u64::from(below)) as u32
    }

    /// 0 to 1, both included.
    fn fraction(&mut self) -> f32 {
        self.below(1 << 24) as f32 / ((1 << 24) - 1) as f32
    }

    /// Mostly -20 to 0; at times 0 itself, of either sign, -infinity, or a magnitude that narrow types denormalise.
    fn log_probability(&mut self) -> f32 {
        match self.below(10) {
            0 if self.below(2) == 0 => -0.0,
            0 => 0.0,
            1 => f32::NEG_INFINITY,
            2 => -1e-6 * self.fraction(),
            _ => -20.0 * self.fraction(),
        }
    }

    /// Of either sign, from the smallest magnitudes to nearly the largest that all types hold.
    fn logit(&mut self) -> f32 {
        if self.below(16) == 0 {
            return if self.below(2) == 0 { 0.0 } else { -0.0 };
        }
        let magnitude = 10_f32.powi(self.below(13) as i32 - 8) * self.fraction();
        if self.below(2) == 0 { magnitude } else { -magnitude }
    }

    fn tail(&mut self, rows: usize, nothing_left: bool) -> Vec<f32> {
        self.many(rows, |numbers| match nothing_left {
            true => f32::NEG_INFINITY,
            false => numbers.log_probability(),
        })
    }

    fn distinct(&mut self, count: usize, below: usize) -> Vec<u32> {
        let mut ids = BTreeSet::new();
        let mut order = Vec::new();
        while order.len() < count {
            let id = self.below(below as u32);
            if ids.insert(id) {
                order.push(id);
            }
        }
        order
    }

    fn many<T>(&mut self, count: usize, draw: impl Fn(&mut Self) -> T) -> Vec<T> {
        (0..count).map(|_| draw(self)).collect()
    }
}
