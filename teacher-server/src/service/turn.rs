//! Work that waits for its turn, and for no longer than its client does.

use std::{sync::Arc, time::Instant};

use stillhouse_runtime::clock;
use tokio::task::{self, JoinSet};

use super::Core;
use crate::{error::ServeError, metrics as names};

impl Core {
    /// Runs something that keeps a core busy, when it is the client's turn, unless who waits goes before.
    pub(super) async fn in_turn<T: Send + 'static>(
        &self,
        (client, cost): (Arc<str>, u64),
        deadline: Option<Instant>,
        work: impl FnOnce() -> Result<T, ServeError> + Send + 'static,
    ) -> Result<T, ServeError> {
        let (turns, asked) = (Arc::clone(&self.encoders), clock::now());
        // A task of its own: a stream whose client does not read polls none of its answers, and a turn that
        // one of them were given would be nobody's for as long.
        let mut task = JoinSet::new();
        task.spawn(in_time(deadline, async move {
            let turn = turns.take(&client, cost).await;
            metrics::histogram!(names::ENCODE_WAIT)
                .record(clock::now().saturating_duration_since(asked));
            let worked = task::spawn_blocking(move || {
                let _turn = turn;
                work()
            });
            worked.await.unwrap_or_else(|error| Err(ServeError::Forward(error.to_string())))
        }));
        let ended = task.join_next().await.unwrap_or(Ok(Err(ServeError::Cancelled)));
        ended.unwrap_or_else(|error| Err(ServeError::Forward(error.to_string())))
    }
}

/// Waits for a result, no longer than the client does.
pub(super) async fn in_time<T>(
    deadline: Option<Instant>,
    result: impl Future<Output = Result<T, ServeError>>,
) -> Result<T, ServeError> {
    match deadline {
        None => result.await,
        Some(deadline) => tokio::time::timeout_at(deadline.into(), result)
            .await
            .unwrap_or(Err(ServeError::Deadline)),
    }
}
