//! Why a request was not admitted.

use crate::Time;

/// A request was not admitted. Costs are in the caller's unit (rows or tokens).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No batch could hold it: the request itself is at fault.
    #[error("cost is {cost}; accepted: 1 to {max}")]
    CostOutOfRange {
        /// Of the request.
        cost: u64,
        /// [`Config::max_batch_cost`](crate::Config::max_batch_cost).
        max: u64,
    },
    /// All clients together have too much queued.
    #[error("the queue is full: {queued} queued, and {cost} more would exceed {limit}")]
    QueueFull {
        /// Of the request.
        cost: u64,
        /// By all clients.
        queued: u64,
        /// What this client may fill the queue up to.
        limit: u64,
        /// When there should be room; `None` before the first batch was measured.
        retry_after: Option<Time>,
    },
    /// This client has too much queued.
    #[error("this client has {queued} queued, and {cost} more would exceed its limit of {limit}")]
    ClientFull {
        /// Of the request.
        cost: u64,
        /// By this client.
        queued: u64,
        /// `max_client_cost`, or the client's share of a queue that is more than half full.
        limit: u64,
        /// When there should be room; `None` before the first batch was measured.
        retry_after: Option<Time>,
    },
    /// Too many other clients have work queued.
    #[error("{clients} clients have work queued, the most that are accepted")]
    TooManyClients {
        /// [`Config::max_clients`](crate::Config::max_clients).
        clients: usize,
        /// When one of them should be through; `None` before the first batch was measured.
        retry_after: Option<Time>,
    },
    /// Its deadline had passed when it arrived.
    #[error("the deadline had passed on arrival")]
    Expired,
    /// No new work is taken; another replica can answer.
    #[error("draining: no new work is taken")]
    Draining,
}

impl Refusal {
    /// When the same request may be admitted, where waiting helps and the service rate is known.
    pub fn retry_after(&self) -> Option<Time> {
        match *self {
            Self::QueueFull { retry_after, .. }
            | Self::ClientFull { retry_after, .. }
            | Self::TooManyClients { retry_after, .. } => retry_after,
            Self::CostOutOfRange { .. } | Self::Expired | Self::Draining => None,
        }
    }
}
