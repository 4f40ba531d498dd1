//! Answers to a probe, and how far apart two of them are.
//!
//! Dense labels tell most, so a teacher that offers them is probed for these. Of another, what the run asks
//! for is compared: of top-k labels the probabilities that are there; of draws how many are others, since the
//! same seed draws the same from the same model; of hidden states the values.

use std::collections::BTreeMap;

use stillhouse_proto::{LabelBatch, SoftLabels, decode, v1::LabelResponse};

/// Largest difference in a probability between replicas. Bit-identical on CPU; devices of other
/// kinds order their sums differently.
const PROBABILITY: f32 = 1e-3;
/// The same of labels whose dtype may be bf16: what rounding to it, up or down, adds.
const ROUNDED: f32 = 5e-3;
/// Largest difference between hidden states, as a part of the largest of their row.
const STATE: f32 = 1e-2;
/// Largest part of the draws that are others; one draw may be, however few there are.
const DRAWS: f32 = 0.05;

/// What a teacher has answered to a probe.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Seen {
    /// Probabilities, `[rows, classes]`.
    Dense(Vec<f32>),
    /// Of each row the probabilities of the classes that are named, and of all the rest.
    Named(Vec<(BTreeMap<u32, f32>, f32)>),
    /// Of each row how often each class was drawn.
    Drawn(Vec<BTreeMap<u32, u32>>),
    /// Hidden states, `[rows, width]`.
    States(usize, Vec<f32>),
}

/// How far apart two answers are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Apart {
    pub(super) difference: f32,
    /// Of what.
    pub(super) of: &'static str,
    pub(super) allowed: f32,
}

impl Seen {
    /// Rows that have labels, of so many classes.
    pub(super) fn rows(&self, classes: usize) -> usize {
        match self {
            Self::Dense(values) => values.len() / classes.max(1),
            Self::Named(rows) => rows.len(),
            Self::Drawn(rows) => rows.len(),
            Self::States(width, values) => values.len() / width.max(&1),
        }
    }

    /// Whether another answer can be compared: what a client may have can change while a run lasts.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }

    /// The labels in an answer; none if they cannot be decoded, or not compared.
    pub(super) fn of(response: &LabelResponse) -> Option<Self> {
        let [labels] = response.labels.as_slice() else { return None };
        let LabelBatch { rows, labels, .. } = decode(labels).ok()?;
        match labels {
            SoftLabels::Dense { values, .. } => {
                Some(Self::Dense(values.iter().map(|value| value.exp()).collect()))
            }
            SoftLabels::TopK { k, ids, log_probabilities, log_tail_mass } => {
                let named = ids.chunks(k).zip(log_probabilities.chunks(k)).zip(log_tail_mass);
                let row = |((ids, values), rest): ((&[u32], &[f32]), f32)| {
                    let probabilities = values.iter().map(|value| value.exp());
                    (ids.iter().copied().zip(probabilities).collect(), rest.exp())
                };
                Some(Self::Named(named.map(row).collect()))
            }
            SoftLabels::Sampled { distinct, ids, counts, .. } => {
                let mut drawn = ids.into_iter().zip(counts);
                let row = |&distinct: &u16| drawn.by_ref().take(distinct.into()).collect();
                Some(Self::Drawn(distinct.iter().map(row).collect()))
            }
            SoftLabels::Hidden { width, states } => {
                (states.len() == rows * width).then_some(Self::States(width, states))
            }
            // No run asks for them.
            SoftLabels::Ids { .. } => None,
        }
    }

    /// How far apart this and another answer to the same probe are.
    pub(super) fn apart(&self, other: &Self) -> Apart {
        let probability = "in a probability";
        let (difference, of, allowed) = match (self, other) {
            (Self::Dense(own), Self::Dense(other)) if own.len() == other.len() => {
                let pairs = own.iter().zip(other);
                (pairs.map(|(a, b)| (a - b).abs()).fold(0.0, worse), probability, PROBABILITY)
            }
            (Self::Named(own), Self::Named(other)) if own.len() == other.len() => {
                let rows = own.iter().zip(other).map(|(own, other)| between(own, other));
                (rows.fold(0.0, worse), probability, ROUNDED)
            }
            (Self::Drawn(own), Self::Drawn(other)) if own.len() == other.len() => {
                let draws =
                    |rows: &[BTreeMap<u32, u32>]| rows.iter().flat_map(BTreeMap::values).sum();
                let all: u32 = u32::max(draws(own), draws(other)).max(1);
                let pairs = || own.iter().zip(other);
                let gone: u32 = pairs().map(|(own, other)| moved(own, other)).sum();
                let come: u32 = pairs().map(|(own, other)| moved(other, own)).sum();
                let part = gone.max(come) as f32 / all as f32;
                (part, "of its draws", DRAWS.max(1.0 / all as f32))
            }
            (Self::States(own, values), Self::States(width, others))
                if own == width && values.len() == others.len() =>
            {
                let rows = values.chunks(*width).zip(others.chunks(*width));
                let of = "of the largest hidden state of a row";
                (rows.map(|(own, other)| of_largest(own, other)).fold(0.0, worse), of, STATE)
            }
            _ => (1.0, "of its labels", 0.0),
        };
        Apart { difference, of, allowed }
    }
}

/// The larger of two differences; what is not a number is the largest.
fn worse(most: f32, next: f32) -> f32 {
    if next <= most { most } else { next }
}

/// The largest difference between the probabilities of a row. A class that only one of them names has no more
/// in the other than the least that is named there.
fn between(
    (own, rest): &(BTreeMap<u32, f32>, f32),
    (other, other_rest): &(BTreeMap<u32, f32>, f32),
) -> f32 {
    let least = |row: &BTreeMap<u32, f32>| row.values().copied().fold(1.0, f32::min);
    let one_way = |a: &BTreeMap<u32, f32>, b: &BTreeMap<u32, f32>| {
        let apart = |(id, p): (&u32, &f32)| match b.get(id) {
            Some(q) => (p - q).abs(),
            None => (p - least(b)).max(0.0),
        };
        a.iter().map(apart).fold(0.0, worse)
    };
    [one_way(own, other), one_way(other, own)].into_iter().fold((rest - other_rest).abs(), worse)
}

/// Draws of a row that are others.
fn moved(own: &BTreeMap<u32, u32>, other: &BTreeMap<u32, u32>) -> u32 {
    let gone =
        |(id, count): (&u32, &u32)| count.saturating_sub(other.get(id).copied().unwrap_or(0));
    own.iter().map(gone).sum()
}

/// The largest difference of a row's values, as a part of the largest of them.
fn of_largest(own: &[f32], other: &[f32]) -> f32 {
    let largest =
        own.iter().chain(other).fold(f32::MIN_POSITIVE, |most, value| most.max(value.abs()));
    own.iter().zip(other).map(|(a, b)| (a - b).abs() / largest).fold(0.0, worse)
}

#[cfg(test)]
mod tests {
    use stillhouse_proto::{encode, v1::DType};

    use super::*;

    fn seen(rows: usize, labels: SoftLabels) -> Seen {
        // Hidden states have none.
        let temperature = if matches!(labels, SoftLabels::Hidden { .. }) { 0.0 } else { 1.0 };
        let batch = LabelBatch { temperature, rows, classes: 4, labels };
        let labels = vec![encode(&batch, DType::F32).unwrap()];
        Seen::of(&LabelResponse { labels, ..LabelResponse::default() }).unwrap()
    }

    fn passes(apart: Apart) -> bool {
        apart.difference <= apart.allowed
    }

    fn top(ids: &[u32], probabilities: &[f32]) -> Seen {
        let log_probabilities = probabilities.iter().map(|p: &f32| p.ln()).collect();
        let rest: f32 = 1.0 - probabilities.iter().sum::<f32>();
        let log_tail_mass = vec![rest.ln()];
        let k = ids.len();
        seen(1, SoftLabels::TopK { k, ids: ids.to_vec(), log_probabilities, log_tail_mass })
    }

    #[test]
    fn the_most_probable_classes_are_compared_and_a_tie_may_fall_either_way() {
        let own = top(&[1, 2], &[0.5, 0.25]);
        assert_eq!(own.apart(&own).difference, 0.0);
        assert!(passes(own.apart(&top(&[1, 2], &[0.501, 0.249]))));
        assert!(passes(own.apart(&top(&[1, 3], &[0.5, 0.249]))), "3 has as much as 2");
        let far = own.apart(&top(&[1, 2], &[0.52, 0.25]));
        assert!(!passes(far) && (far.difference - 0.02).abs() < 1e-4, "{far:?}");
        assert!(!passes(own.apart(&top(&[0, 2], &[0.5, 0.25]))), "another class");
        assert!(!passes(top(&[0], &[0.5]).apart(&top(&[0], &[0.4]))));
    }

    #[test]
    fn of_draws_few_may_be_others() {
        let draw = |counts: &[(u32, u32)]| {
            let (ids, counts): (Vec<u32>, Vec<u32>) = counts.iter().copied().unzip();
            let draws = counts.iter().sum();
            let distinct = vec![ids.len() as u16];
            seen(1, SoftLabels::Sampled { draws, distinct, ids, counts })
        };
        let own = draw(&[(0, 30), (2, 10)]);
        assert_eq!(own.apart(&own).difference, 0.0);
        assert!(passes(own.apart(&draw(&[(0, 29), (1, 1), (2, 10)]))));
        assert!(!passes(own.apart(&draw(&[(0, 20), (2, 20)]))));
        assert!(passes(draw(&[(0, 1)]).apart(&draw(&[(1, 1)]))), "one draw tells nothing");
        assert!(!passes(draw(&[(0, 20)]).apart(&draw(&[(0, 40)]))), "of another number");
        assert!(!passes(draw(&[(0, 40)]).apart(&draw(&[(0, 20)]))));
    }

    #[test]
    fn dense_labels_and_states_are_compared_value_by_value() {
        let dense = |p: [f32; 4]| {
            let kind = stillhouse_proto::v1::DenseKind::LogProbabilities;
            seen(1, SoftLabels::Dense { kind, values: p.map(f32::ln).to_vec() })
        };
        let own = dense([0.1, 0.2, 0.3, 0.4]);
        assert!(passes(own.apart(&dense([0.1, 0.2, 0.3005, 0.3995]))));
        assert!(!passes(own.apart(&dense([0.1, 0.2, 0.31, 0.39]))));
        let states = |values: &[f32]| {
            seen(1, SoftLabels::Hidden { width: values.len(), states: values.to_vec() })
        };
        let own = states(&[10.0, 0.01]);
        assert!(passes(own.apart(&states(&[10.0, 0.05]))));
        assert!(!passes(own.apart(&states(&[10.0, 0.5]))));
        assert!(!passes(own.apart(&states(&[10.0]))), "of another width");
        assert!(!passes(own.apart(&Seen::Dense(vec![f32::NAN]))));
        assert!(!passes(Seen::Dense(vec![f32::NAN]).apart(&Seen::Dense(vec![0.5]))));
    }
}
