//! The labels of one batch after another, for a thread that computes.

use std::time::{Duration, Instant};

use stillhouse_nn::{PackedHead, SoftTarget};
use stillhouse_proto::LabelBatch;
use tokio::{runtime::Handle, sync::watch};

use super::{Error, unless};
use crate::{
    capture::Replay,
    label_client::{ClientError, OrderedLabels, soft_target},
};

/// Where the labels of a run come from.
pub(super) enum BatchLabels {
    /// From a teacher, which is asked.
    Asked(AskedLabels),
    /// From a folder that they were captured into.
    Captured(Box<Replay>),
}

/// The rows of a batch, and when they are trained on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wants<'a> {
    pub(super) rows: &'a [u32],
    /// The epoch, from 1.
    pub(super) epoch: u64,
    /// The temperature of its loss.
    pub(super) temperature: f32,
}

impl BatchLabels {
    /// Waits for the labels of the next batch and tells how long it waited. None if the run was told
    /// to stop meanwhile; no labels if no teacher gives any and the run goes on without. Not to be
    /// called from an async task.
    pub(super) fn take(
        &mut self,
        wants: Wants<'_>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<Option<(Option<SoftTarget>, Duration)>, Error> {
        match self {
            Self::Asked(labels) => labels.take(wants.rows.len(), stop),
            Self::Captured(replay) => {
                let began = Instant::now();
                let labels = replay.take(wants.rows, wants.epoch, wants.temperature)?;
                Ok(Some((Some(labels), began.elapsed())))
            }
        }
    }
}

/// Labels that are asked for ahead, batch by batch.
pub(super) struct AskedLabels {
    pub(super) labels: OrderedLabels,
    /// For hidden states.
    pub(super) head: Option<PackedHead>,
    /// Rows in a request; a batch takes as many requests as it needs.
    pub(super) request_rows: usize,
    pub(super) runtime: Handle,
}

impl AskedLabels {
    /// What the student computes of the labels is its own work, and no waiting.
    fn take(
        &mut self,
        rows: usize,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<Option<(Option<SoftTarget>, Duration)>, Error> {
        let began = Instant::now();
        let mut parts = Vec::new();
        let requests = rows.div_ceil(self.request_rows);
        self.labels.will_take(requests);
        for _ in 0..requests {
            match self.runtime.block_on(unless(stop, self.labels.next())) {
                None => return Ok(None),
                Some(Some(part)) => parts.push(part?.batch),
                Some(None) => {
                    return Err(Error::Labels(ClientError::Ended));
                }
            }
        }
        let waited = began.elapsed();
        // All of the batch or nothing: its rows are weighed alike.
        let parts: Option<Vec<LabelBatch>> = parts.into_iter().collect();
        let soft = parts.map(|parts| soft_target(parts, self.head.as_ref())).transpose()?;
        Ok(Some((soft, waited)))
    }
}
