//! The one number which, added to the logits of some classes, leaves the fewest errors.
//!
//! A student that was never shown a class learns it from its teacher all but for how likely it is;
//! an offset to that class's logit mends this (Hinton et al., "Distilling the knowledge in a neural
//! network", 2015, section 3).

/// What decides a row between the named classes and all others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Duel {
    /// The best logit of the others less the best of the named: with a larger offset a named class
    /// wins, with a smaller one another.
    pub(super) threshold: f64,
    /// Whether a named class wins at the threshold itself: it has the lower number.
    pub(super) named_wins_ties: bool,
    /// Whether the best named class is the row's.
    pub(super) named_is_right: bool,
    /// Whether the best of the others is.
    pub(super) other_is_right: bool,
}

impl Duel {
    /// Whether a named class wins with this offset.
    pub(super) fn named_wins(&self, offset: f64) -> bool {
        offset > self.threshold || offset == self.threshold && self.named_wins_ties
    }

    fn is_wrong(&self, offset: f64) -> bool {
        !if self.named_wins(offset) { self.named_is_right } else { self.other_is_right }
    }
}

/// An offset, and how many rows are wrong with it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Best {
    pub(super) offset: f64,
    pub(super) errors: usize,
}

/// Rows that are wrong with an offset.
pub(super) fn errors(duels: &[Duel], offset: f64) -> usize {
    duels.iter().filter(|duel| duel.is_wrong(offset)).count()
}

/// The offset with the fewest errors over all real numbers, by a sweep over the sorted thresholds.
/// Errors are constant between two of them: of each such interval 0 stands for it if it lies within,
/// else its middle (1 beyond the last threshold, where there is no other). A threshold itself is
/// taken only where it has fewer errors than every interval. Of equals, the smallest magnitude, then
/// the smaller number.
pub(super) fn best(duels: &[Duel]) -> Best {
    let mut sorted: Vec<&Duel> = duels.iter().collect();
    sorted.sort_unstable_by(|a, b| a.threshold.total_cmp(&b.threshold));
    // Below all thresholds the others win every row.
    let mut wrong = duels.iter().filter(|duel| !duel.other_is_right).count();
    let mut below = f64::NEG_INFINITY;
    let (mut interval, mut point) = (None, None);
    // -0.0 and 0.0 are one threshold.
    for equal in sorted.chunk_by(|a, b| a.threshold == b.threshold) {
        let at = equal[0].threshold;
        consider(&mut interval, within(below, at), wrong);
        let flips = |ties: bool| {
            let won = equal.iter().filter(move |duel| duel.named_wins_ties == ties);
            won.fold(0_isize, |sum, duel| {
                sum + isize::from(duel.other_is_right) - isize::from(duel.named_is_right)
            })
        };
        wrong = wrong.saturating_add_signed(flips(true));
        consider(&mut point, Some(at), wrong);
        wrong = wrong.saturating_add_signed(flips(false));
        below = at;
    }
    consider(&mut interval, within(below, f64::INFINITY), wrong);
    let best = match (interval, point) {
        (Some(interval), Some(point)) if point.errors < interval.errors => Some(point),
        (interval, point) => interval.or(point),
    };
    best.unwrap_or(Best { offset: 0.0, errors: wrong })
}

/// What stands for an open interval; none where no number lies within.
fn within(low: f64, high: f64) -> Option<f64> {
    let middle = match (low.is_finite(), high.is_finite()) {
        (true, true) => low / 2.0 + high / 2.0,
        (true, false) => low + 1.0,
        (false, true) => high - 1.0,
        (false, false) => 0.0,
    };
    let inside = |offset: &f64| low < *offset && *offset < high;
    Some(0.0).filter(inside).or(Some(middle).filter(inside))
}

fn consider(best: &mut Option<Best>, offset: Option<f64>, errors: usize) {
    let Some(offset) = offset else { return };
    let better = best.is_none_or(|best| {
        let rank = |best: Best| (best.errors, best.offset.abs());
        rank(Best { offset, errors }) < rank(best)
    });
    if better {
        *best = Some(Best { offset, errors });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn duel(threshold: f64, ties: bool, named_is_right: bool, other_is_right: bool) -> Duel {
        Duel { threshold, named_wins_ties: ties, named_is_right, other_is_right }
    }

    fn some_duel() -> impl Strategy<Value = Duel> {
        (-6_i32..=6, any::<bool>(), 0..3).prop_map(|(threshold, ties, right)| {
            duel(f64::from(threshold) / 2.0, ties, right == 0, right == 1)
        })
    }

    proptest! {
        /// Thresholds are multiples of 1/2: those and what lies half-way between are all that there
        /// is to tell apart.
        #[test]
        fn no_offset_has_fewer_errors(duels in prop::collection::vec(some_duel(), 0..25)) {
            let found = best(&duels);
            prop_assert_eq!(errors(&duels, found.offset), found.errors);
            let grid = (-16..=16).map(|quarters| f64::from(quarters) / 4.0);
            let fewest = grid.clone().map(|offset| errors(&duels, offset)).min();
            prop_assert_eq!(fewest, Some(found.errors));
            // 0 is the smallest of all, wherever it is as good and no threshold.
            let is_threshold = duels.iter().any(|duel| duel.threshold == 0.0);
            if errors(&duels, 0.0) == found.errors && !is_threshold {
                prop_assert_eq!(found.offset, 0.0);
            }
        }
    }

    #[test]
    fn a_class_that_is_never_given_is_raised() {
        // Named rows that lose by 1 and by 3, and one of another class that would be lost at 2.
        let duels = [
            duel(1.0, false, true, false),
            duel(3.0, false, true, false),
            duel(2.0, false, false, true),
            duel(9.0, false, false, true),
        ];
        assert_eq!(errors(&duels, 0.0), 2);
        // (1, 2) has one error, and so has (3, 9): the nearer one.
        assert_eq!(best(&duels), Best { offset: 1.5, errors: 1 });
        assert_eq!(best(&duels[..2]), Best { offset: 4.0, errors: 0 });
        assert_eq!(best(&[]), Best { offset: 0.0, errors: 0 });
        assert_eq!(best(&[duel(-2.0, true, false, true)]), Best { offset: -3.0, errors: 0 });
    }

    #[test]
    fn a_threshold_is_taken_only_where_nothing_else_is_as_good() {
        // Right at the threshold only: one row is to be won there, the other to be lost.
        let duels = [duel(1.0, true, true, false), duel(1.0, false, false, true)];
        assert_eq!(best(&duels), Best { offset: 1.0, errors: 0 });
        assert_eq!(best(&[duel(1.0, true, true, false)]), Best { offset: 2.0, errors: 0 });
    }

    #[test]
    fn thresholds_next_to_each_other_and_far_apart_are_no_trouble() {
        let next = 1.0_f64.next_up();
        let duels = [duel(1.0, true, true, false), duel(next, false, false, true)];
        let found = best(&duels);
        assert_eq!((found.errors, errors(&duels, found.offset)), (0, 0));
        let far = [duel(-6e38, false, false, true), duel(6e38, false, true, false)];
        let found = best(&far);
        assert_eq!(errors(&far, found.offset), found.errors);
    }
}
