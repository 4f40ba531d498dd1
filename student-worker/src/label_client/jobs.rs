//! What a client is asked for: known beforehand, or coming as it goes.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};

use super::Job;

/// Where jobs come from.
pub(super) enum Jobs<I> {
    /// They are known, and taken as long as there is room.
    Planned(I),
    /// They are known, and each is taken when its labels are waited for.
    Awaited(I, Arc<Semaphore>),
    /// They come when somebody has them.
    Demanded(mpsc::Receiver<Job>),
}

/// The next job, if there is one already.
pub(super) enum Next {
    Job(Box<Job>),
    NotYet,
    End,
}

impl<I: Iterator<Item = Job>> Jobs<I> {
    pub(super) fn next(&mut self) -> Next {
        match self {
            Self::Planned(jobs) => jobs.next().map_or(Next::End, |job| Next::Job(Box::new(job))),
            Self::Awaited(jobs, waited_for) => match waited_for.try_acquire() {
                Ok(one) => {
                    one.forget();
                    jobs.next().map_or(Next::End, |job| Next::Job(Box::new(job)))
                }
                Err(_) => Next::NotYet,
            },
            Self::Demanded(jobs) => match jobs.try_recv() {
                Ok(job) => Next::Job(Box::new(job)),
                Err(mpsc::error::TryRecvError::Empty) => Next::NotYet,
                Err(mpsc::error::TryRecvError::Disconnected) => Next::End,
            },
        }
    }

    /// Waits for a job that is demanded; none when there will be no more. For ever where they are
    /// planned.
    pub(super) async fn wait(&mut self) -> Option<Job> {
        match self {
            Self::Planned(_) => std::future::pending().await,
            Self::Awaited(jobs, waited_for) => match waited_for.acquire().await {
                Ok(one) => {
                    one.forget();
                    jobs.next()
                }
                Err(_) => None,
            },
            Self::Demanded(jobs) => jobs.recv().await,
        }
    }
}
