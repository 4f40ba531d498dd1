//! How many retries are too many.

/// Retries that each request pays for.
const PER_REQUEST: f64 = 0.2;
/// Retries that are there at the start, and at most.
const MOST: f64 = 20.0;

/// Retries that are not paused for are a fifth of all requests at most, and a few: a teacher that
/// is slow under load is not asked for ever more.
#[derive(Clone, Copy, Debug)]
pub(super) struct RetryBudget(f64);

impl Default for RetryBudget {
    fn default() -> Self {
        Self(MOST)
    }
}

impl RetryBudget {
    /// Notes a request that is sent.
    pub(super) fn sent(&mut self) {
        self.0 = (self.0 + PER_REQUEST).min(MOST);
    }

    /// Takes a retry, if there is one.
    pub(super) fn take(&mut self) -> bool {
        let there = self.0 >= 1.0;
        if there {
            self.0 -= 1.0;
        }
        there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_fifth_of_requests() {
        let mut budget = RetryBudget::default();
        assert_eq!((0..100).filter(|_| budget.take()).count(), 20);
        let retries = (0..1000).filter(|_| {
            budget.sent();
            budget.take()
        });
        assert!((195..=200).contains(&retries.count()));
        (0..1000).for_each(|_| budget.sent());
        assert_eq!((0..100).filter(|_| budget.take()).count(), 20);
    }
}
