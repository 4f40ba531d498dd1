//! Requests in flight: which to send, which to send again, which to hand on.
//!
//! No input, output or clock: time and what arrived are arguments. Invariants, under any sequence
//! of failures: every job is handed on once, in the order in which it was taken; no more than
//! `window` jobs are held; no request is sent while an earlier one for the same job may still be
//! answered on the same connection.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::{Duration, Instant},
};

use stillhouse_nn::Philox;

use super::backoff::Backoff;

/// How a pipeline works.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Jobs held, from when they are taken until they are handed on.
    pub(super) window: usize,
    /// Time that a request may take.
    pub(super) timeout: Duration,
    /// Time without any answer, while at least one is wanted, after which to give up.
    pub(super) budget: Duration,
    /// Pauses between tries.
    pub(super) backoff: Backoff,
}

/// Jobs `J` that are answered by `A`.
#[derive(Debug)]
pub(super) struct Pipeline<J, A> {
    limits: Limits,
    /// In the order of delivery; the first has position `first`.
    slots: VecDeque<Slot<J, A>>,
    first: u64,
    /// Position of the job of every request that may still be answered.
    sent: HashMap<u64, u64>,
    next_request: u64,
    last_answer: Option<Instant>,
    jitter: Philox,
}

#[derive(Debug)]
struct Slot<J, A> {
    job: J,
    taken: Instant,
    failures: u32,
    state: State<A>,
}

#[derive(Debug)]
enum State<A> {
    Waiting { not_before: Instant },
    Sent { endpoint: usize, request: u64, deadline: Instant },
    Answered(A),
}

impl<J, A> Pipeline<J, A> {
    pub(super) fn new(limits: Limits, jitter: Philox) -> Self {
        Self {
            limits,
            slots: VecDeque::new(),
            first: 0,
            sent: HashMap::new(),
            next_request: 0,
            last_answer: None,
            jitter,
        }
    }

    /// Time that a request may take.
    pub(super) fn timeout(&self) -> Duration {
        self.limits.timeout
    }

    /// Whether another job can be taken.
    pub(super) fn has_room(&self) -> bool {
        self.slots.len() < self.limits.window
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Takes a job.
    pub(super) fn push(&mut self, job: J, now: Instant) {
        let state = State::Waiting { not_before: now };
        self.slots.push_back(Slot { job, taken: now, failures: 0, state });
    }

    /// Whether [`Pipeline::send`] would return a request.
    pub(super) fn has_ready(&self, now: Instant) -> bool {
        self.slots.iter().any(|slot| slot.is_ready(now))
    }

    /// The next request to send, over the connection to `endpoint`: its number, new for every
    /// try, and its job.
    pub(super) fn send(&mut self, endpoint: usize, now: Instant) -> Option<(u64, &J)> {
        let (offset, slot) =
            self.slots.iter_mut().enumerate().find(|(_, slot)| slot.is_ready(now))?;
        let request = self.next_request;
        self.next_request += 1;
        let deadline = now + self.limits.timeout;
        slot.state = State::Sent { endpoint, request, deadline };
        self.sent.insert(request, self.first + offset as u64);
        Some((request, &slot.job))
    }

    /// The job of a request that is in flight.
    pub(super) fn job(&self, request: u64) -> Option<&J> {
        let position = self.sent.get(&request)?;
        Some(&self.slots.get((position - self.first) as usize)?.job)
    }

    /// Takes the answer to a request. One that came after its request was given up is dropped.
    pub(super) fn answered(&mut self, request: u64, answer: A, now: Instant) {
        if let Some(slot) = self.settle(request) {
            slot.state = State::Answered(answer);
            self.last_answer = Some(now);
        }
    }

    /// Notes that a request failed; its job is sent again after a pause, `after` at the least.
    pub(super) fn failed(&mut self, request: u64, after: Duration, now: Instant) {
        let (backoff, mut jitter) = (self.limits.backoff, self.jitter.clone());
        if let Some(slot) = self.settle(request) {
            slot.failures = slot.failures.saturating_add(1);
            let pause = backoff.pause(slot.failures, &mut jitter).max(after);
            slot.state = State::Waiting { not_before: now + pause };
        }
        self.jitter = jitter;
    }

    /// Notes that a connection is gone: what was in flight on it can be sent at once elsewhere.
    pub(super) fn lost(&mut self, endpoint: usize, now: Instant) {
        for slot in &mut self.slots {
            if let State::Sent { endpoint: at, request, .. } = slot.state
                && at == endpoint
            {
                self.sent.remove(&request);
                slot.state = State::Waiting { not_before: now };
            }
        }
    }

    /// Endpoints that have a request whose time is over, each once.
    pub(super) fn overdue(&self, now: Instant) -> BTreeSet<usize> {
        let late = |slot: &Slot<J, A>| match slot.state {
            State::Sent { endpoint, deadline, .. } if deadline <= now => Some(endpoint),
            _ => None,
        };
        self.slots.iter().filter_map(late).collect()
    }

    /// Whether the next job in order is answered.
    pub(super) fn can_deliver(&self) -> bool {
        matches!(self.slots.front(), Some(Slot { state: State::Answered(_), .. }))
    }

    /// Hands on the next job in order, if it is answered.
    pub(super) fn deliver(&mut self) -> Option<(J, A)> {
        if !self.can_deliver() {
            return None;
        }
        let slot = self.slots.pop_front()?;
        self.first += 1;
        match slot.state {
            State::Answered(answer) => Some((slot.job, answer)),
            State::Waiting { .. } | State::Sent { .. } => None,
        }
    }

    /// How long no answer has come although one was wanted, if that is too long.
    pub(super) fn given_up(&self, now: Instant) -> Option<Duration> {
        let since = self.wanted_since()?;
        let waited = now.saturating_duration_since(since);
        (waited >= self.limits.budget).then_some(waited)
    }

    /// The next time at which something is to be done although nothing arrived.
    pub(super) fn next_wake(&self, now: Instant) -> Option<Instant> {
        let own = self.slots.iter().filter_map(|slot| match slot.state {
            State::Waiting { not_before } => (not_before > now).then_some(not_before),
            State::Sent { deadline, .. } => Some(deadline),
            State::Answered(_) => None,
        });
        let give_up = self.wanted_since().and_then(|since| since.checked_add(self.limits.budget));
        own.chain(give_up).min()
    }

    /// Since when an answer is wanted and none has come.
    fn wanted_since(&self) -> Option<Instant> {
        let open = |slot: &&Slot<J, A>| !matches!(slot.state, State::Answered(_));
        let oldest = self.slots.iter().filter(open).map(|slot| slot.taken).min()?;
        Some(self.last_answer.map_or(oldest, |last| last.max(oldest)))
    }

    fn settle(&mut self, request: u64) -> Option<&mut Slot<J, A>> {
        let position = self.sent.remove(&request)?;
        self.slots.get_mut((position - self.first) as usize)
    }
}

impl<J, A> Slot<J, A> {
    fn is_ready(&self, now: Instant) -> bool {
        matches!(self.state, State::Waiting { not_before } if not_before <= now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);
    const BUDGET: Duration = Duration::from_secs(60);

    fn pipeline(window: usize) -> Pipeline<u64, u64> {
        let backoff = Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(2) };
        let limits = Limits { window, timeout: TIMEOUT, budget: BUDGET, backoff };
        Pipeline::new(limits, Philox::new(1, 0))
    }

    #[test]
    fn answers_are_handed_on_in_order() {
        let (mut pipeline, now) = (pipeline(3), Instant::now());
        (0..3).for_each(|job| pipeline.push(job, now));
        assert!(!pipeline.has_room());
        let requests: Vec<u64> =
            (0..3).map(|_| pipeline.send(0, now).map(|(request, _)| request).unwrap()).collect();
        pipeline.answered(requests[2], 20, now);
        pipeline.answered(requests[1], 10, now);
        assert_eq!(pipeline.deliver(), None);
        pipeline.answered(requests[0], 0, now);
        let delivered: Vec<_> = std::iter::from_fn(|| pipeline.deliver()).collect();
        assert_eq!(delivered, [(0, 0), (1, 10), (2, 20)]);
        assert!(pipeline.is_empty() && pipeline.next_wake(now).is_none());
    }

    #[test]
    fn a_failed_request_waits_as_long_as_the_teacher_asks() {
        let (mut pipeline, now) = (pipeline(1), Instant::now());
        pipeline.push(7, now);
        let (request, _) = pipeline.send(0, now).unwrap();
        pipeline.failed(request, Duration::from_secs(5), now);
        assert!(!pipeline.has_ready(now + Duration::from_secs(4)));
        let wake = pipeline.next_wake(now).unwrap();
        assert_eq!(wake, now + Duration::from_secs(5));
        assert_ne!(pipeline.send(0, wake).unwrap().0, request);
    }

    #[test]
    fn a_lost_connection_frees_its_requests_at_once_and_late_answers_are_dropped() {
        let (mut pipeline, now) = (pipeline(2), Instant::now());
        (0..2).for_each(|job| pipeline.push(job, now));
        let (first, _) = pipeline.send(0, now).unwrap();
        let (second, _) = pipeline.send(1, now).unwrap();
        pipeline.lost(0, now);
        pipeline.answered(first, 99, now);
        pipeline.answered(second, 11, now);
        assert!(!pipeline.can_deliver());
        let (again, job) = pipeline.send(1, now).unwrap();
        assert_eq!(*job, 0);
        pipeline.answered(again, 1, now);
        assert_eq!(pipeline.deliver(), Some((0, 1)));
        assert_eq!(pipeline.deliver(), Some((1, 11)));
    }

    #[test]
    fn an_overdue_request_names_its_endpoint() {
        let (mut pipeline, now) = (pipeline(1), Instant::now());
        pipeline.push(0, now);
        pipeline.send(3, now).unwrap();
        assert!(pipeline.overdue(now + TIMEOUT / 2).is_empty());
        assert_eq!(pipeline.overdue(now + TIMEOUT), BTreeSet::from([3]));
        assert_eq!(pipeline.next_wake(now), Some(now + TIMEOUT));
    }

    #[test]
    fn the_budget_counts_from_the_last_answer_and_only_while_one_is_wanted() {
        let (mut pipeline, start) = (pipeline(2), Instant::now());
        assert_eq!(pipeline.given_up(start + 9 * BUDGET), None);
        (0..2).for_each(|job| pipeline.push(job, start));
        let later = start + BUDGET / 2;
        let (request, _) = pipeline.send(0, start).unwrap();
        pipeline.answered(request, 0, later);
        assert_eq!(pipeline.given_up(start + BUDGET), None);
        assert_eq!(pipeline.given_up(later + BUDGET), Some(BUDGET));
        let (request, _) = pipeline.send(0, later).unwrap();
        pipeline.answered(request, 0, later);
        assert_eq!(pipeline.given_up(later + 9 * BUDGET), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever fails, is lost, or is answered in whatever order: every job is handed on once,
        /// in order, and the window is never exceeded.
        #[test]
        fn every_job_is_handed_on_once_and_in_order(
            window in 1_usize..6,
            events in prop::collection::vec((0_u8..8, any::<prop::sample::Index>()), 1..300),
        ) {
            let (mut pipeline, mut now) = (pipeline(window), Instant::now());
            let (mut taken, mut delivered) = (0, Vec::new());
            let mut in_flight: Vec<u64> = Vec::new();
            for (event, index) in events {
                match event {
                    0 | 1 if pipeline.has_room() => {
                        pipeline.push(taken, now);
                        taken += 1;
                    }
                    2 | 3 => in_flight.extend(pipeline.send(index.index(2), now).map(|sent| sent.0)),
                    4 | 5 if !in_flight.is_empty() => {
                        let request = in_flight.swap_remove(index.index(in_flight.len()));
                        if let Some(job) = pipeline.job(request).copied() {
                            pipeline.answered(request, job * 10, now);
                        }
                    }
                    6 if !in_flight.is_empty() => {
                        let request = in_flight[index.index(in_flight.len())];
                        pipeline.failed(request, Duration::ZERO, now);
                    }
                    7 => pipeline.lost(index.index(2), now),
                    _ => now += Duration::from_millis(50),
                }
                prop_assert!(pipeline.slots.len() <= window);
                delivered.extend(std::iter::from_fn(|| pipeline.deliver()));
            }
            now += Duration::from_secs(5);
            pipeline.lost(0, now);
            pipeline.lost(1, now);
            while let Some((request, job)) = pipeline.send(0, now) {
                let answer = *job * 10;
                pipeline.answered(request, answer, now);
            }
            delivered.extend(std::iter::from_fn(|| pipeline.deliver()));
            let expected: Vec<_> = (0..taken).map(|job| (job, job * 10)).collect();
            prop_assert_eq!(delivered, expected);
        }
    }
}
