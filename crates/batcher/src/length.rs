//! Which lengths go together in a batch.
//!
//! Lengths fall into geometric classes, four to the configured ratio, and a batch spans at most
//! four neighbouring classes. So two lengths in a batch are never further apart than the ratio, two
//! within its 3/4th power are never kept apart, and the lookup in a client's queue touches a fixed
//! number of classes.

/// Classes that a batch may span.
const SPAN: i64 = 4;

/// Index of a class of similar lengths.
pub(crate) type LengthClass = i64;

/// Puts lengths into classes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lengths {
    /// Classes per unit of ln(length). Infinite: every length is a class of its own. 0: all in one.
    per_ln: f64,
}

impl Lengths {
    /// `max_ratio` is 1 or more, or infinite.
    pub(crate) fn new(max_ratio: f64) -> Self {
        Self { per_ln: SPAN as f64 / max_ratio.ln() }
    }

    pub(crate) fn class(self, length: u32) -> LengthClass {
        let length = length.max(1);
        if self.per_ln.is_infinite() {
            // A span apart, so that no two share a batch.
            return i64::from(length) * SPAN;
        }
        (f64::from(length).ln() * self.per_ln).floor() as i64
    }
}

/// The classes that a batch holds so far; what may join follows from them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    shortest: LengthClass,
    longest: LengthClass,
}

impl Window {
    pub(crate) fn around(class: LengthClass) -> Self {
        Self { shortest: class, longest: class }
    }

    /// Lowest and highest class that may join.
    pub(crate) fn bounds(self) -> (LengthClass, LengthClass) {
        (self.longest - (SPAN - 1), self.shortest + (SPAN - 1))
    }

    pub(crate) fn admits(self, class: LengthClass) -> bool {
        let (low, high) = self.bounds();
        low <= class && class <= high
    }

    /// Takes a class in. One that is not admitted (it joined by its age) changes nothing.
    pub(crate) fn join(&mut self, class: LengthClass) {
        if self.admits(class) {
            self.shortest = self.shortest.min(class);
            self.longest = self.longest.max(class);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn together(ratio: f64, a: u32, b: u32) -> bool {
        let lengths = Lengths::new(ratio);
        Window::around(lengths.class(a)).admits(lengths.class(b))
    }

    #[test]
    fn a_ratio_of_one_keeps_different_lengths_apart() {
        assert!(together(1.0, 7, 7));
        assert!(!together(1.0, 7, 8));
        assert!(!together(1.0, u32::MAX - 1, u32::MAX));
    }

    #[test]
    fn an_infinite_ratio_keeps_nothing_apart() {
        assert!(together(f64::INFINITY, 1, u32::MAX));
        assert!(together(f64::INFINITY, 0, 1));
    }

    #[test]
    fn neighbours_across_a_power_of_the_ratio_go_together() {
        assert!(together(2.0, 127, 128));
        assert!(!together(2.0, 64, 129));
    }

    proptest! {
        /// Whatever joined a window, longest over shortest is within the ratio; and lengths within
        /// its 3/4th power are always admitted.
        #[test]
        fn a_window_never_spans_more_than_the_ratio(
            ratio in 1.01f64..8.0,
            first in 1u32..100_000,
            others in prop::collection::vec(1u32..100_000, 0..20),
        ) {
            let lengths = Lengths::new(ratio);
            let mut window = Window::around(lengths.class(first));
            let mut members = vec![first];
            for other in others {
                let class = lengths.class(other);
                let gap = f64::from(other.max(first)) / f64::from(other.min(first));
                if members.len() == 1 && gap <= ratio.powf(0.75) * (1.0 - 1e-9) {
                    prop_assert!(window.admits(class));
                }
                if window.admits(class) {
                    window.join(class);
                    members.push(other);
                }
            }
            let longest = f64::from(*members.iter().max().unwrap());
            let shortest = f64::from(*members.iter().min().unwrap());
            prop_assert!(longest / shortest <= ratio * (1.0 + 1e-9));
        }
    }
}
