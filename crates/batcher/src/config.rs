//! The bounds of a scheduler.

use crate::Time;
use crate::weights::MAX_WEIGHT;

/// Largest value of the cost bounds: far above any queue, far below where sums would overflow.
const MAX_COST: u64 = 1 << 40;
/// Largest value of `max_clients`.
const MAX_CLIENTS: usize = 1 << 20;

/// Bounds and preferences. Cost is counted in rows or tokens, as the caller likes, but in one unit.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The cost of a batch never exceeds it, and so neither does that of a request. 1 to 2^40.
    pub max_batch_cost: u64,
    /// Cost that may be queued (admitted and not yet launched) by all clients together;
    /// `max_batch_cost` to 2^40. The last eighth, or room for one batch where that is more, is for
    /// clients that have nothing queued, so that a few busy clients cannot lock others out. Make it
    /// twice `max_batch_cost` or more: in a smaller queue that room is what remains beside a batch,
    /// and a client whose requests are larger waits until the others' work is through.
    pub max_queue_cost: u64,
    /// Cost that one client may have queued; `max_batch_cost` to 2^40. In the upper half of the
    /// queue a client is also held to its weighted share of it.
    pub max_client_cost: u64,
    /// Clients that may have work queued at the same time; 1 to 2^20. A client with nothing queued
    /// takes no memory.
    pub max_clients: usize,
    /// How long a batch that is not full may wait for company, counted from the admission of the
    /// oldest request; zero: launch whenever the device is free.
    pub max_wait: Time,
    /// Longest time from a request's admission to the end of its batch that batches and the queue are
    /// sized for, as measured batches suggest; zero: none. A request that is larger than that runs
    /// alone. At least twice `max_wait`.
    pub target_latency: Time,
    /// Longest over shortest within a batch; 1 or more, infinite for no grouping. Lengths within
    /// `max_length_ratio^(3/4)` of each other always go together; up to the ratio they may.
    pub max_length_ratio: f64,
    /// A request older than this joins a batch whatever its length. Within its client a request is
    /// due at its deadline, or when it is older than this if that is earlier or it has none; the
    /// first due goes first. Set it above what a request usually waits: once older work is overdue,
    /// an urgent request of the same client goes behind it.
    pub age_guard: Time,
    /// Weight of a client that was given none; 1 to 65,536.
    pub default_weight: u32,
}

impl Default for Config {
    /// A classifier's: batches of 1,024 rows, no waiting, no length grouping.
    fn default() -> Self {
        Self {
            max_batch_cost: 1024,
            max_queue_cost: 16 * 1024,
            max_client_cost: 8 * 1024,
            max_clients: 1024,
            max_wait: Time::ZERO,
            target_latency: Time::ZERO,
            max_length_ratio: f64::INFINITY,
            age_guard: Time::from_secs(1),
            default_weight: 1,
        }
    }
}

impl Config {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// The first field that is out of its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        within("max_batch_cost", self.max_batch_cost, 1, MAX_COST)?;
        within("max_queue_cost", self.max_queue_cost, self.max_batch_cost, MAX_COST)?;
        within("max_client_cost", self.max_client_cost, self.max_batch_cost, MAX_COST)?;
        within("max_clients", self.max_clients, 1, MAX_CLIENTS)?;
        within("default_weight", self.default_weight, 1, MAX_WEIGHT)?;
        let target = self.target_latency;
        if target > Time::ZERO && target < self.max_wait.saturating_mul(2) {
            return Err(ConfigError {
                field: "target_latency",
                value: format!("{target:?}"),
                accepted: format!("0, or at least twice the {:?} of max_wait", self.max_wait),
            });
        }
        if self.max_length_ratio.is_nan() || self.max_length_ratio < 1.0 {
            return Err(ConfigError {
                field: "max_length_ratio",
                value: self.max_length_ratio.to_string(),
                accepted: "1 or more, or infinity".to_owned(),
            });
        }
        Ok(())
    }

    /// Cost up to which clients that have work queued may fill the queue, where it may hold `most`.
    pub(crate) fn busy_queue_cost(&self, most: u64) -> u64 {
        if most < self.max_queue_cost {
            return most - most / 8;
        }
        let beside_a_batch = self.max_queue_cost - self.max_batch_cost;
        let reserve = self.max_batch_cost.min(beside_a_batch).max(self.max_queue_cost / 8);
        self.max_queue_cost - reserve
    }

    /// Credit that a client of weight 1 gains in a round: small enough for a batch to span many
    /// rounds, large enough for rounds not to cost more than the work they hand out.
    pub(crate) fn quantum(&self) -> u64 {
        (self.max_batch_cost / 64).max(1)
    }

    /// Most credit that a client of weight 1 may hold: one batch beside the grant of its turn.
    pub(crate) fn credit_cap(&self) -> u64 {
        self.max_batch_cost + self.quantum()
    }
}

fn within<N>(field: &'static str, value: N, low: N, high: N) -> Result<(), ConfigError>
where
    N: Copy + PartialOrd + std::fmt::Display,
{
    if low <= value && value <= high {
        return Ok(());
    }
    Err(ConfigError { field, value: value.to_string(), accepted: format!("{low} to {high}") })
}

/// A field of [`Config`] that is out of range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}; accepted: {accepted}")]
pub struct ConfigError {
    /// Name of the field.
    pub field: &'static str,
    /// What it was.
    pub value: String,
    /// What it may be.
    pub accepted: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid() {
        assert_eq!(Config::default().validate(), Ok(()));
    }

    #[test]
    fn every_field_is_checked_and_named() {
        let ok = Config::default();
        let bad = [
            ("max_batch_cost", Config { max_batch_cost: 0, ..ok.clone() }),
            ("max_queue_cost", Config { max_queue_cost: 1023, ..ok.clone() }),
            ("max_client_cost", Config { max_client_cost: 1 << 41, ..ok.clone() }),
            ("max_clients", Config { max_clients: 0, ..ok.clone() }),
            ("default_weight", Config { default_weight: 0, ..ok.clone() }),
            (
                "target_latency",
                Config {
                    target_latency: Time::from_millis(1),
                    max_wait: Time::from_millis(1),
                    ..ok.clone()
                },
            ),
            ("max_length_ratio", Config { max_length_ratio: 0.5, ..ok.clone() }),
            ("max_length_ratio", Config { max_length_ratio: f64::NAN, ..ok.clone() }),
        ];
        for (field, config) in bad {
            assert_eq!(config.validate().unwrap_err().field, field);
        }
        let error = Config { max_queue_cost: 7, ..ok }.validate().unwrap_err();
        assert_eq!(error.to_string(), "max_queue_cost is 7; accepted: 1024 to 1099511627776");
    }
}
