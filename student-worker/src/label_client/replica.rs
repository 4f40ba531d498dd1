//! What the driver knows of an endpoint: whether it takes work, and what it owes.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use stillhouse_proto::checksum::RequestSum;
use stillhouse_runtime::traces::Span;
use tokio::task::AbortHandle;

use super::connection::Link;

/// Failures in a row after which a replica is set aside.
const FAILURES_IN_A_ROW: u32 = 3;
/// For how long the first time, and twice as long each further time.
const SET_ASIDE: Duration = Duration::from_secs(5);
const SET_ASIDE_AT_MOST: Duration = Duration::from_secs(60);
/// After this time nothing is heard any more of a connection that was ended.
const LAST_HEARD: Duration = Duration::from_secs(60);

/// What a replica has answered of late.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// Failures since it last gave labels, or was set aside.
    in_a_row: u32,
    /// How often it has been set aside since it last gave labels.
    times: u32,
    /// Until then it gets no work that another can take.
    aside_until: Option<Instant>,
}

impl Record {
    /// Notes that it has given labels.
    pub(super) fn labelled(&mut self) {
        *self = Self::default();
    }

    /// Notes that it has answered with a failure; for how long it is set aside, if it is now.
    pub(super) fn failed(&mut self, now: Instant) -> Option<Duration> {
        self.in_a_row += 1;
        if self.in_a_row < FAILURES_IN_A_ROW {
            return None;
        }
        let time = SET_ASIDE.saturating_mul(1 << self.times.min(8)).min(SET_ASIDE_AT_MOST);
        self.in_a_row = 0;
        self.times = self.times.saturating_add(1);
        self.aside_until = now.checked_add(time);
        Some(time)
    }
}

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
    /// Since when it is not connected to any more, having retired.
    pub(super) gone: Option<Instant>,
    /// What it has answered of late.
    pub(super) record: Record,
    /// Its open stream.
    pub(super) live: Option<Live>,
}

impl Replica {
    /// Whether nothing is to be heard of it any more.
    pub(super) fn is_long_gone(&self, now: Instant) -> bool {
        self.retired && self.gone.is_some_and(|at| now.saturating_duration_since(at) > LAST_HEARD)
    }

    /// Whether it should be given work.
    pub(super) fn is_well(&self, now: Instant) -> bool {
        let live = self.live.as_ref();
        let is_aside = self.record.aside_until.is_some_and(|until| now < until);
        !self.retired && !is_aside && live.is_some_and(|live| live.serving && !live.suspect)
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
    /// Its requests are not waited for any more.
    pub(super) fn give_up(&mut self, why: &'static str) {
        self.in_flight.drain().for_each(|(_, mut request)| request.span.failed(&why));
    }

    pub(super) fn load(&self) -> usize {
        self.in_flight.values().map(|request| request.units).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its place is for another then; one that may come back, or has just gone, keeps it.
    #[test]
    fn only_who_has_retired_and_was_let_go_long_ago_is_long_gone() {
        let now = Instant::now();
        let mut replica = Replica {
            name: "http://a".to_owned(),
            hash: 1,
            task: None,
            tried: true,
            failures: 0,
            retired: true,
            gone: None,
            record: Record::default(),
            live: None,
        };
        assert!(!replica.is_long_gone(now + 2 * LAST_HEARD), "it is not gone");
        replica.gone = Some(now);
        assert!(!replica.is_long_gone(now + LAST_HEARD));
        assert!(replica.is_long_gone(now + 2 * LAST_HEARD));
        replica.retired = false;
        assert!(!replica.is_long_gone(now + 2 * LAST_HEARD));
    }

    #[test]
    fn who_fails_three_times_in_a_row_is_set_aside_ever_longer() {
        let now = Instant::now();
        let mut record = Record::default();
        assert_eq!([record.failed(now), record.failed(now)], [None, None]);
        record.labelled();
        for seconds in [5, 10, 20, 40, 60, 60] {
            assert_eq!([record.failed(now), record.failed(now)], [None, None]);
            assert_eq!(record.failed(now), Some(Duration::from_secs(seconds)));
            assert_eq!(record.aside_until, Some(now + Duration::from_secs(seconds)));
        }
        record.labelled();
        assert!(record.aside_until.is_none());
    }
}
