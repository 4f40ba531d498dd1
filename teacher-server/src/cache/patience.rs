//! How long requests wait for the disk.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use stillhouse_runtime::clock;
use tracing::warn;

/// How long a request waits for the disk before it queues without; no more than a quarter of the time that
/// it has.
pub(super) const LIMIT: Duration = Duration::from_secs(2);
/// For how long nothing is looked up on a disk that hangs.
const LEFT_ALONE: Duration = Duration::from_secs(30);

/// What is known of the disk's lookups.
#[derive(Debug, Default)]
pub(super) struct Patience(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    under_way: usize,
    /// When the disk answered last, or was asked first since it had nothing to do.
    heard: Option<Instant>,
    /// Until then it is not asked.
    left_alone: Option<Instant>,
}

/// A lookup, from when it begins to wait for its turn until the disk has answered it.
pub(super) struct Lookup(Arc<Patience>);

impl Patience {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a lookup, and says how long it may take; none while the disk hangs.
    pub(super) fn begin(self: &Arc<Self>, deadline: Option<Instant>) -> Option<(Lookup, Duration)> {
        let now = clock::now();
        let mut state = self.lock();
        if state.left_alone.is_some_and(|until| now < until) {
            return None;
        }
        if state.under_way == 0 {
            state.heard = Some(now);
        }
        state.under_way += 1;
        let left = deadline.map(|deadline| deadline.saturating_duration_since(now) / 4);
        Some((Lookup(Arc::clone(self)), left.map_or(LIMIT, |left| left.min(LIMIT))))
    }

    /// Notes that the disk has answered.
    pub(super) fn heard(&self) {
        self.lock().heard = Some(clock::now());
    }

    /// Notes that a lookup was not waited for any longer. If the disk has not answered any for long, it is
    /// left alone.
    pub(super) fn given_up(&self) {
        let now = clock::now();
        let mut state = self.lock();
        let is_silent = state.heard.is_some_and(|at| now.saturating_duration_since(at) >= LIMIT);
        if is_silent && state.left_alone.is_none_or(|until| until <= now) {
            state.left_alone = now.checked_add(LEFT_ALONE);
            warn!("the cache's disk tier does not answer; it is left alone for a while");
        }
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        self.0.lock().under_way -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As if the disk had answered that long ago.
    fn silent_for(patience: &Patience, time: Duration) {
        patience.lock().heard = clock::now().checked_sub(time);
    }

    #[test]
    fn a_disk_that_answers_nobody_is_left_alone_for_a_while() {
        let patience = Arc::new(Patience::default());
        let soon = clock::now() + Duration::from_secs(1);
        let (stuck, time) = patience.begin(Some(soon)).unwrap();
        assert!(time <= Duration::from_millis(250), "{time:?}");
        patience.given_up();
        assert_eq!(patience.begin(None).unwrap().1, LIMIT, "it may only be busy");

        silent_for(&patience, LIMIT);
        let (other, _) = patience.begin(Some(soon)).unwrap();
        drop(other);
        patience.given_up();
        assert!(patience.begin(None).is_none());
        patience.lock().left_alone = Some(clock::now());
        // One that hangs still: whoever gives up first says so, however little time it had.
        drop(patience.begin(Some(soon)).unwrap());
        patience.given_up();
        assert!(patience.begin(None).is_none());

        patience.lock().left_alone = Some(clock::now());
        patience.heard();
        drop(stuck);
        patience.given_up();
        assert!(patience.begin(None).is_some());
    }

    #[test]
    fn a_disk_that_had_nothing_to_do_has_not_been_silent() {
        let patience = Arc::new(Patience::default());
        silent_for(&patience, 10 * LIMIT);
        let lookup = patience.begin(None);
        patience.given_up();
        assert!(patience.begin(None).is_some());
        drop(lookup);
    }
}
