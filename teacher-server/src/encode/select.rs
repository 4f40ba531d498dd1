//! Which classes of a row travel, and the mass of those that do not.

use std::cmp::Ordering;

use stillhouse_nn::softmax::{largest, sum_of_exp};

/// The `k` classes of a row that have the largest values (logits, or what orders them), largest first;
/// equal values by id.
pub(super) fn top_k<V: Copy>(
    values: &[V],
    compare: impl Fn(&V, &V) -> Ordering,
    k: usize,
) -> Vec<u32> {
    let k = k.min(values.len());
    if k == 0 {
        return Vec::new();
    }
    let order = |a: &u32, b: &u32| {
        compare(&values[*b as usize], &values[*a as usize]).then_with(|| a.cmp(b))
    };
    // What may be among them: cut back to k whenever there are twice as many, after which only larger
    // values than the least of these can be.
    let room = 2 * k + 64;
    let mut kept: Vec<u32> = Vec::with_capacity(room.min(values.len()));
    let mut least: Option<V> = None;
    for (id, value) in (0_u32..).zip(values) {
        if least.as_ref().is_none_or(|least| compare(value, least).is_gt()) {
            kept.push(id);
            if kept.len() == room {
                kept.select_nth_unstable_by(k - 1, order);
                kept.truncate(k);
                least = Some(values[kept[k - 1] as usize]);
            }
        }
    }
    if kept.len() > k {
        kept.select_nth_unstable_by(k - 1, order);
        kept.truncate(k);
    }
    kept.sort_unstable_by(order);
    kept
}

/// log of the mass of the classes of a row that are not in `ids`; -infinity where there are none.
pub(super) fn log_mass_beside(log_probabilities: &[f64], ids: &[u32]) -> f64 {
    let mut ids: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
    ids.sort_unstable();
    ids.dedup();
    // What is between them, and behind the last.
    let starts = std::iter::once(0).chain(ids.iter().map(|id| id + 1));
    let ends = ids.iter().copied().chain([log_probabilities.len()]);
    let parts = starts.zip(ends).map(|(start, end)| &log_probabilities[start..end]);
    let largest = parts.clone().filter_map(largest).fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY {
        return largest;
    }
    (largest + parts.map(|part| sum_of_exp(part, largest)).sum::<f64>().ln()).min(0.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The k first are what a full stable sort by descending logit gives.
        #[test]
        fn top_k_is_the_head_of_a_full_sort(
            logits in prop::collection::vec((-9_i8..9).prop_map(f32::from), 1..400),
            k in 0_usize..40,
        ) {
            let mut sorted: Vec<u32> = (0..logits.len() as u32).collect();
            sorted.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
            sorted.truncate(k);
            prop_assert_eq!(top_k(&logits, f32::total_cmp, k), sorted);
        }
    }

    #[test]
    fn the_mass_of_the_others_and_of_none() {
        let log_probabilities = [0.5_f64.ln(), 0.3_f64.ln(), 0.2_f64.ln()];
        let tail = log_mass_beside(&log_probabilities, &[1]);
        assert!((tail.exp() - 0.7).abs() < 1e-15);
        let tail = log_mass_beside(&log_probabilities, &[2, 0, 2]);
        assert!((tail.exp() - 0.3).abs() < 1e-15);
        assert!(log_mass_beside(&log_probabilities, &[]).exp() > 1.0 - 1e-15);
        assert_eq!(log_mass_beside(&log_probabilities, &[0, 1, 2]), f64::NEG_INFINITY);
    }
}
