//! How hard to try.

use std::time::{Duration, Instant};

use stillhouse_nn::Philox;
use stillhouse_runtime::clock;

use super::{ClientError, backoff::Backoff, gate::Closed};
use crate::{
    random,
    recipe::teacher::{OnTeacherLoss, TeacherSection},
};

/// How far to ask ahead, and how long to go on without an answer.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Requests asked for ahead of the one that is used, at least, and half as many more at most; 0: each
    /// when it is waited for.
    pub window: usize,
    /// Longest time without any label.
    pub budget: Duration,
    /// First pause between tries.
    pub initial: Duration,
    /// Longest pause between tries.
    pub max: Duration,
    /// Seed of the pauses' jitter, another in every process.
    pub seed: u64,
    /// What happens when `budget` is spent.
    pub on_loss: OnTeacherLoss,
    /// Bytes of labels that are kept for when their rows come again; 0: none.
    pub kept_bytes: usize,
}

impl Patience {
    /// Of a recipe's teacher, where a batch is cut into `requests_per_batch` requests.
    pub fn new(teacher: &TeacherSection, requests_per_batch: usize) -> Self {
        Self {
            window: teacher.prefetch.saturating_mul(requests_per_batch),
            budget: teacher.retry.max_elapsed(),
            initial: Duration::from_millis(teacher.retry.initial_ms),
            max: Duration::from_millis(teacher.retry.max_ms),
            seed: random::entropy(),
            on_loss: teacher.on_teacher_loss,
            kept_bytes: usize::try_from(teacher.kept_bytes).unwrap_or(usize::MAX),
        }
    }

    pub(super) fn backoff(&self) -> Backoff {
        Backoff { initial: self.initial, max: self.max }
    }
}

/// Failures in a row of something that is tried again until its budget is spent.
pub(super) struct Tries {
    patience: Patience,
    jitter: Philox,
    start: Instant,
    failures: u32,
}

impl Tries {
    pub(super) fn new(patience: Patience) -> Self {
        Self {
            patience,
            jitter: Philox::new(patience.seed, random::JITTER),
            start: clock::now(),
            failures: 0,
        }
    }

    fn elapsed(&self) -> Duration {
        clock::now().saturating_duration_since(self.start)
    }

    /// Time that is left for tries.
    pub(super) fn left(&self) -> Duration {
        self.patience.budget.saturating_sub(self.elapsed())
    }

    /// Waits for a try, no longer than the budget lasts.
    pub(super) async fn within<T>(
        &self,
        attempt: impl Future<Output = Result<T, Closed>>,
    ) -> Result<T, Closed> {
        let left = self.left();
        // Connecting takes kilobytes of state, once or twice a run.
        tokio::time::timeout(left, Box::pin(attempt))
            .await
            .unwrap_or_else(|_| Err(Closed::for_now(format!("no answer within {left:?}"))))
    }

    /// Waits before the next try, or says why there is none.
    pub(super) async fn pause(&mut self, closed: Closed) -> Result<(), ClientError> {
        let (last, after) = match closed {
            Closed::ForGood(error) => return Err(error),
            Closed::ForNow { reason, after } => (reason, after),
        };
        self.failures = self.failures.saturating_add(1);
        let pause = self.patience.backoff().pause(self.failures, &mut self.jitter).max(after);
        if self.elapsed() + pause >= self.patience.budget {
            let seconds = self.elapsed().as_secs_f64();
            return Err(ClientError::Unreachable { seconds, last });
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }
}
