//! The labels of one batch after another, for a thread that computes.

use std::time::{Duration, Instant};

use stillhouse_nn::{PackedHead, SoftTarget};
use tokio::{runtime::Handle, sync::watch};

use super::Error;
use crate::label_client::{ClientError, OrderedLabels, soft_target};

/// Labels that are asked for ahead, batch by batch.
pub(super) struct BatchLabels {
    pub(super) labels: OrderedLabels,
    /// For hidden states.
    pub(super) head: Option<PackedHead>,
    /// Rows in a request; a batch takes as many requests as it needs.
    pub(super) request_rows: usize,
    pub(super) runtime: Handle,
}

impl BatchLabels {
    /// Waits for the labels of the next batch, of `rows` rows, and tells how long it waited: what
    /// the student computes of them is its own work. None if the run was told to stop meanwhile.
    /// Not to be called from an async task.
    pub(super) fn take(
        &mut self,
        rows: usize,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<Option<(SoftTarget, Duration)>, Error> {
        let began = Instant::now();
        let mut parts = Vec::new();
        for _ in 0..rows.div_ceil(self.request_rows) {
            let part = self.runtime.block_on(async {
                tokio::select! {
                    part = self.labels.next() => Some(part),
                    _ = stop.wait_for(|stop| *stop) => None,
                }
            });
            match part {
                None => return Ok(None),
                Some(Some(part)) => parts.push(part?.batch),
                Some(None) => {
                    return Err(Error::Labels(ClientError::Ended));
                }
            }
        }
        let waited = began.elapsed();
        Ok(Some((soft_target(parts, self.head.as_ref())?, waited)))
    }
}
