//! Which classes of a row travel, and the mass of those that do not.

use std::cmp::Ordering;

use super::soften::log_sum_exp;

/// Orders the classes of a row by their values (logits, or what orders them), largest first; equal
/// values by id. The `k` first of the result are the top k in that order; the others follow in no
/// particular order.
pub(super) fn top_k<V>(values: &[V], compare: impl Fn(&V, &V) -> Ordering, k: usize) -> Vec<u32> {
    let mut ids: Vec<u32> = (0_u32..).take(values.len()).collect();
    let order = |a: &u32, b: &u32| {
        compare(&values[*b as usize], &values[*a as usize]).then_with(|| a.cmp(b))
    };
    if k < ids.len() {
        ids.select_nth_unstable_by(k, order);
    }
    let k = k.min(ids.len());
    ids[..k].sort_unstable_by(order);
    ids
}

/// log of the mass of the classes in `others`; -infinity where there are none.
pub(super) fn log_mass(log_probabilities: &[f64], others: &[u32]) -> f64 {
    log_sum_exp(others.iter().map(|&id| log_probabilities[id as usize])).min(0.0)
}

/// The classes of a row that are not in `ids`, ascending.
pub(super) fn complement(classes: usize, ids: &[u32]) -> Vec<u32> {
    let mut named = vec![false; classes];
    for &id in ids {
        named[id as usize] = true;
    }
    (0_u32..).zip(named).filter(|(_, named)| !named).map(|(id, _)| id).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The k first are what a full stable sort by descending logit gives.
        #[test]
        fn top_k_is_the_head_of_a_full_sort(
            logits in prop::collection::vec((-3_i8..3).prop_map(f32::from), 1..40),
            k in 1_usize..40,
        ) {
            let k = k.min(logits.len());
            let mut sorted: Vec<u32> = (0..logits.len() as u32).collect();
            sorted.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
            let got = top_k(&logits, f32::total_cmp, k);
            prop_assert_eq!(&got[..k], &sorted[..k]);
            let mut all = got;
            all.sort_unstable();
            prop_assert_eq!(all, (0..logits.len() as u32).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_mass_of_the_others_and_of_none() {
        let log_probabilities = [0.5_f64.ln(), 0.3_f64.ln(), 0.2_f64.ln()];
        let tail = log_mass(&log_probabilities, &complement(3, &[1]));
        assert!((tail.exp() - 0.7).abs() < 1e-15);
        assert_eq!(log_mass(&log_probabilities, &complement(3, &[0, 1, 2])), f64::NEG_INFINITY);
    }
}
