//! Weights of the clients that have one of their own.

use std::collections::HashMap;
use std::sync::Arc;

/// Largest weight.
pub const MAX_WEIGHT: u32 = 1 << 16;
/// Most clients with a weight of their own.
pub const MAX_WEIGHTED_CLIENTS: usize = 1 << 16;

/// A weight that was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WeightError {
    /// Not a weight.
    #[error("weight is {weight}; accepted: 1 to {MAX_WEIGHT}")]
    OutOfRange {
        /// What was given.
        weight: u32,
    },
    /// The table is full.
    #[error(
        "{MAX_WEIGHTED_CLIENTS} clients have a weight of their own, the most that are accepted"
    )]
    TooMany,
}

/// A bounded table; whoever is not in it has the default.
#[derive(Debug)]
pub(crate) struct Weights {
    default: u32,
    own: HashMap<Arc<str>, u32>,
}

impl Weights {
    pub(crate) fn new(default: u32) -> Self {
        Self { default, own: HashMap::new() }
    }

    pub(crate) fn get(&self, client: &str) -> u32 {
        self.own.get(client).copied().unwrap_or(self.default)
    }

    pub(crate) fn set(&mut self, client: &str, weight: u32) -> Result<(), WeightError> {
        if !(1..=MAX_WEIGHT).contains(&weight) {
            return Err(WeightError::OutOfRange { weight });
        }
        if weight == self.default {
            self.own.remove(client);
        } else if let Some(own) = self.own.get_mut(client) {
            *own = weight;
        } else if self.own.len() < MAX_WEIGHTED_CLIENTS {
            self.own.insert(client.into(), weight);
        } else {
            return Err(WeightError::TooMany);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_bounded_and_the_default_takes_no_room() {
        let mut weights = Weights::new(2);
        for i in 0..MAX_WEIGHTED_CLIENTS {
            weights.set(&i.to_string(), 3).unwrap();
        }
        assert_eq!(weights.set("one more", 3), Err(WeightError::TooMany));
        assert_eq!(weights.set("7", 4), Ok(()), "known clients can still change");
        weights.set("7", 2).unwrap();
        assert_eq!(weights.get("7"), 2);
        assert_eq!(weights.set("one more", 3), Ok(()), "the default gave its place back");
    }

    #[test]
    fn a_weight_of_zero_is_refused() {
        let mut weights = Weights::new(1);
        assert_eq!(weights.set("a", 0), Err(WeightError::OutOfRange { weight: 0 }));
        let above = MAX_WEIGHT + 1;
        assert_eq!(weights.set("a", above), Err(WeightError::OutOfRange { weight: above }));
        assert_eq!(weights.get("a"), 1);
    }
}
