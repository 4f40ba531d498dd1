//! What became of admitted requests.

use std::sync::Arc;

use crate::{Ticket, Time};

/// What [`Batcher::form`](crate::Batcher::form) found.
#[derive(Debug)]
#[must_use = "holds launched and expired work that somebody waits for"]
pub struct Formed<T> {
    /// What to do with the device.
    pub decision: Forming<T>,
    /// Requests whose deadline had passed; no longer queued, and not in the batch.
    pub expired: Vec<Expired<T>>,
}

/// What to do with a free device.
#[derive(Debug)]
pub enum Forming<T> {
    /// Run this batch now. It holds at least one request.
    Launch(Batch<T>),
    /// Ask again at this moment, or after the next admission.
    Wait(Time),
    /// Nothing is queued: ask again after the next admission.
    Idle,
}

/// Requests that run together.
#[derive(Debug)]
pub struct Batch<T> {
    /// In the order they were chosen. Never empty.
    pub items: Vec<Launched<T>>,
    /// Sum of their costs, at most [`Config::max_batch_cost`](crate::Config::max_batch_cost).
    pub cost: u64,
    /// Why it did not wait longer.
    pub reason: LaunchReason,
}

/// Why a batch was launched when it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LaunchReason {
    /// A batch's worth of work was queued.
    Full,
    /// The oldest request had waited [`Config::max_wait`](crate::Config::max_wait).
    Waited,
    /// Waiting on would have outlived a deadline.
    Deadline,
    /// Draining: no company would have come.
    Draining,
}

impl LaunchReason {
    /// A short name for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Waited => "waited",
            Self::Deadline => "deadline",
            Self::Draining => "draining",
        }
    }
}

/// A request that runs now.
#[derive(Debug)]
pub struct Launched<T> {
    /// From its admission.
    pub ticket: Ticket,
    /// Whose it is.
    pub client: Arc<str>,
    /// Rows or tokens.
    pub cost: u64,
    /// What grouping went by.
    pub length: u32,
    /// After this moment nobody needs the result.
    pub deadline: Option<Time>,
    /// Time from admission to launch.
    pub waited: Time,
    /// The caller's.
    pub payload: T,
}

/// A request whose deadline passed while it was queued.
#[derive(Debug)]
pub struct Expired<T> {
    /// From its admission.
    pub ticket: Ticket,
    /// Whose it is.
    pub client: Arc<str>,
    /// Rows or tokens.
    pub cost: u64,
    /// The deadline that passed.
    pub deadline: Time,
    /// Time from admission until it was dropped.
    pub waited: Time,
    /// The caller's.
    pub payload: T,
}
