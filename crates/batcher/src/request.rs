//! What a client asks for.

use std::sync::Arc;

use crate::Time;

/// Work to schedule. It is not divided: all of it rides in one batch.
#[derive(Clone, Debug)]
pub struct Request<T> {
    /// Whose it is: the unit of fairness and of quotas. Where names are not authenticated a client
    /// can take several shares by using several names.
    pub client: Arc<str>,
    /// Rows or tokens, 1 to [`Config::max_batch_cost`](crate::Config::max_batch_cost).
    pub cost: u64,
    /// What grouping goes by, for example tokens per row; 1 where it plays no part. 0 counts as 1.
    pub length: u32,
    /// From this moment on it is not worth running. `None`: no limit.
    pub deadline: Option<Time>,
    /// Whatever the caller needs to run and answer it.
    pub payload: T,
}

impl<T> Request<T> {
    /// Work of length 1, without a deadline.
    pub fn new(client: impl Into<Arc<str>>, cost: u64, payload: T) -> Self {
        Self { client: client.into(), cost, length: 1, deadline: None, payload }
    }
}

/// Names an admitted request. Later admissions have greater tickets; none is used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub(crate) u64);
