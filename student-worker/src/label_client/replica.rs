//! What the driver knows of an endpoint: whether it takes work, and what it owes.

use std::{collections::HashMap, time::Instant};

use stillhouse_proto::checksum::RequestSum;
use stillhouse_runtime::traces::Span;
use tokio::task::AbortHandle;

use super::connection::Link;

/// An endpoint.
#[derive(Debug)]
pub(super) struct Replica {
    pub(super) name: String,
    pub(super) hash: u64,
    /// None of one that was refused.
    pub(super) task: Option<AbortHandle>,
    /// Whether it has been connected to, or has failed to be.
    pub(super) tried: bool,
    /// Failures since it was connected, its end the first of them.
    pub(super) failures: u32,
    /// Its name stands for it no more: it gets no work, and goes when it has answered what it has.
    pub(super) retired: bool,
    /// Its open stream.
    pub(super) live: Option<Live>,
}

impl Replica {
    /// Whether it should be given work.
    pub(super) fn is_well(&self) -> bool {
        let live = self.live.as_ref();
        !self.retired && live.is_some_and(|live| live.serving && !live.suspect)
    }
}

/// An open stream and its load.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) link: Link,
    /// Its requests, by their numbers.
    pub(super) in_flight: HashMap<u64, InFlight>,
    /// What it last said of its health.
    pub(super) serving: bool,
    /// It owes an answer that is late. It gets no work until it has answered something.
    pub(super) suspect: bool,
}

/// A request that an endpoint has been sent.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) sent: Instant,
    pub(super) units: usize,
    pub(super) sum: RequestSum,
    /// Ends with it, answered or not.
    pub(super) span: Span,
}

impl Live {
    pub(super) fn load(&self) -> usize {
        self.in_flight.values().map(|request| request.units).sum()
    }
}
