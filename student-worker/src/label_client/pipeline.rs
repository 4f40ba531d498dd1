//! Requests in flight: which to send, which to send again, which to hand on.
//!
//! No input, output or clock: time and what arrived are arguments. A job has units (rows, sequences)
//! that may be asked for in parts, at several endpoints. Invariants, under any sequence of failures:
//! every job is handed on once, whole, in the order in which it was taken; no unit is asked for twice at
//! one time, but once more, elsewhere, where an answer is late. How many jobs there are is not its matter.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use stillhouse_nn::Philox;

use super::{backoff::Backoff, retry_budget::RetryBudget};

/// How a pipeline works.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Time that a request may take.
    pub(super) timeout: Duration,
    /// Time without any answer, while at least one is wanted, after which to give up.
    pub(super) budget: Duration,
    /// Pauses between tries.
    pub(super) backoff: Backoff,
}

/// Jobs `J` that are answered by `A`, part by part.
#[derive(Debug)]
pub(super) struct Pipeline<J, A> {
    limits: Limits,
    /// In the order of delivery; the first has position `first`.
    slots: VecDeque<Slot<J, A>>,
    first: u64,
    /// The part of every request that may still be answered.
    sent: HashMap<u64, Place>,
    next_request: u64,
    last_answer: Option<Instant>,
    retries: RetryBudget,
    jitter: Philox,
}

/// A part of a job: the job's position, and which of its parts.
#[derive(Clone, Copy, Debug)]
struct Place {
    position: u64,
    part: usize,
}

#[derive(Debug)]
struct Slot<J, A> {
    job: J,
    taken: Instant,
    failures: u32,
    /// Each unit is in one of them.
    parts: Vec<Part<A>>,
}

#[derive(Debug)]
struct Part<A> {
    units: Vec<u32>,
    state: State<A>,
}

#[derive(Debug)]
enum State<A> {
    Waiting {
        not_before: Instant,
    },
    Sent {
        tries: Vec<Try>,
        /// When its answer is late; none: it has been asked for elsewhere.
        late_at: Option<Instant>,
    },
    Answered(A),
}

#[derive(Clone, Copy, Debug)]
struct Try {
    endpoint: usize,
    request: u64,
    deadline: Instant,
    /// How long its answer may take before it is late.
    late_after: Duration,
}

/// An answer, and the units that it is of.
pub(super) type Answered<A> = (Vec<u32>, A);

/// A request to send.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sending {
    /// New for every try.
    pub(super) request: u64,
    pub(super) endpoint: usize,
    pub(super) units: Vec<u32>,
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
            retries: RetryBudget::default(),
            jitter,
        }
    }

    /// Time that a request may take.
    pub(super) fn timeout(&self) -> Duration {
        self.limits.timeout
    }

    /// Longest time without any label.
    pub(super) fn budget(&self) -> Duration {
        self.limits.budget
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Takes a job of so many units, some of which may be answered already.
    pub(super) fn push(&mut self, job: J, units: u32, answered: Option<Answered<A>>, now: Instant) {
        let mut parts = Vec::new();
        let mut left: Vec<u32> = (0..units).collect();
        if let Some((units, answer)) = answered {
            let own: HashSet<u32> = units.iter().copied().collect();
            left.retain(|unit| !own.contains(unit));
            parts.push(Part { units, state: State::Answered(answer) });
        }
        if !left.is_empty() || parts.is_empty() {
            parts.push(Part { units: left, state: State::Waiting { not_before: now } });
        }
        self.slots.push_back(Slot { job, taken: now, failures: 0, parts });
    }

    /// The next requests to send: the first part that is ready, shared out by `route`, which gets
    /// the job and the units and says which go where; what it leaves out waits. An answer that takes
    /// longer than `late_after` is late. Empty if nothing is ready, or nobody takes it.
    pub(super) fn send(
        &mut self,
        now: Instant,
        late_after: Duration,
        route: impl FnOnce(&J, &[u32]) -> Vec<(usize, Vec<u32>)>,
    ) -> Vec<Sending> {
        let ready = self.slots.iter().enumerate().find_map(|(offset, slot)| {
            let part = slot.parts.iter().position(|part| part.is_ready(now))?;
            Some((offset, part))
        });
        let Some((offset, part)) = ready else { return Vec::new() };
        let slot = &mut self.slots[offset];
        let groups = route(&slot.job, &slot.parts[part].units);
        let mut groups = groups.into_iter();
        let Some(first) = groups.next() else { return Vec::new() };
        let mut sending = Vec::new();
        let mut left = std::mem::take(&mut slot.parts[part].units);
        let mut assigned = HashSet::new();
        for (number, (endpoint, units)) in std::iter::once(first).chain(groups).enumerate() {
            assigned.extend(units.iter().copied());
            let request = self.next_request;
            self.next_request += 1;
            self.retries.sent();
            let deadline = now + self.limits.timeout;
            let tries = vec![Try { endpoint, request, deadline, late_after }];
            let state = State::Sent { tries, late_at: Some(now + late_after) };
            let own = Part { units: units.clone(), state };
            let at = if number == 0 { part } else { slot.parts.len() };
            if number == 0 {
                slot.parts[part] = own;
            } else {
                slot.parts.push(own);
            }
            self.sent.insert(request, Place { position: self.first + offset as u64, part: at });
            sending.push(Sending { request, endpoint, units });
        }
        left.retain(|unit| !assigned.contains(unit));
        if !left.is_empty() {
            let state = State::Waiting { not_before: now };
            slot.parts.push(Part { units: left, state });
        }
        sending
    }

    /// Asks for a part whose answer is late once more, elsewhere: `route` gets the job, its units and
    /// the endpoint that is late, and says which. None if none is late, if nobody takes it, or if
    /// there have been too many already.
    pub(super) fn send_late(
        &mut self,
        now: Instant,
        route: impl Fn(&J, &[u32], usize) -> Option<usize>,
    ) -> Option<Sending> {
        for (offset, slot) in self.slots.iter_mut().enumerate() {
            for (number, part) in slot.parts.iter_mut().enumerate() {
                let State::Sent { tries, late_at } = &mut part.state else { continue };
                let [first] = tries[..] else { continue };
                if late_at.is_none_or(|late_at| late_at > now) {
                    continue;
                }
                let Some(endpoint) = route(&slot.job, &part.units, first.endpoint) else {
                    continue;
                };
                if !self.retries.take() {
                    return None;
                }
                let request = self.next_request;
                self.next_request += 1;
                let (deadline, late_after) = (now + self.limits.timeout, first.late_after);
                tries.push(Try { endpoint, request, deadline, late_after });
                *late_at = None;
                let position = self.first + offset as u64;
                self.sent.insert(request, Place { position, part: number });
                return Some(Sending { request, endpoint, units: part.units.clone() });
            }
        }
        None
    }

    /// Endpoints that have not answered a request that is late by now, each once.
    pub(super) fn late(&self, now: Instant) -> BTreeSet<usize> {
        self.tries()
            .filter(|(_, late_at)| late_at.is_some_and(|late_at| late_at <= now))
            .map(|(at, _)| at.endpoint)
            .collect()
    }

    /// Notes that whatever an endpoint has been sent is late.
    pub(super) fn all_late(&mut self, endpoint: usize, now: Instant) {
        for part in self.slots.iter_mut().flat_map(|slot| &mut slot.parts) {
            if let State::Sent { tries, late_at: Some(late_at) } = &mut part.state
                && tries.iter().any(|at| at.endpoint == endpoint)
            {
                *late_at = now.min(*late_at);
            }
        }
    }

    /// The job of a request that is in flight, and the units that it asks for.
    pub(super) fn job(&self, request: u64) -> Option<(&J, &[u32])> {
        let Place { position, part } = self.sent.get(&request)?;
        let slot = self.slots.get((position - self.first) as usize)?;
        Some((&slot.job, &slot.parts.get(*part)?.units))
    }

    /// Takes the answer to a request. One that came after its request was given up, or was answered
    /// elsewhere, is dropped.
    pub(super) fn answered(&mut self, request: u64, answer: A, now: Instant) {
        let Some((_, part)) = self.settle(request) else { return };
        let state = std::mem::replace(&mut part.state, State::Answered(answer));
        self.last_answer = Some(now);
        if let State::Sent { tries, .. } = state {
            for other in tries {
                self.sent.remove(&other.request);
            }
        }
    }

    /// Notes that a request failed; its units are asked for again after a pause, `after` at the
    /// least, unless they are under way elsewhere.
    pub(super) fn failed(&mut self, request: u64, after: Duration, now: Instant) {
        let (backoff, mut jitter) = (self.limits.backoff, self.jitter.clone());
        if let Some((failures, part)) = self.settle(request)
            && part.give_up(|at| at.request == request, now)
        {
            *failures = failures.saturating_add(1);
            let pause = backoff.pause(*failures, &mut jitter).max(after);
            part.state = State::Waiting { not_before: now + pause };
        }
        self.jitter = jitter;
    }

    /// Notes that a connection is gone: what was in flight on it can be sent at once elsewhere, or,
    /// where there were too many retries of late, after a pause.
    pub(super) fn lost(&mut self, endpoint: usize, now: Instant) {
        let pause = self.limits.backoff.pause(1, &mut self.jitter);
        for part in self.slots.iter_mut().flat_map(|slot| &mut slot.parts) {
            let State::Sent { tries, .. } = &part.state else { continue };
            for lost in tries.iter().filter(|at| at.endpoint == endpoint) {
                self.sent.remove(&lost.request);
            }
            if tries.iter().any(|at| at.endpoint == endpoint)
                && part.give_up(|at| at.endpoint == endpoint, now)
                && !self.retries.take()
            {
                part.state = State::Waiting { not_before: now + pause };
            }
        }
    }

    /// Endpoints that have a request whose time is over, each once.
    pub(super) fn overdue(&self, now: Instant) -> BTreeSet<usize> {
        self.tries().filter(|(at, _)| at.deadline <= now).map(|(at, _)| at.endpoint).collect()
    }

    /// All tries under way, and when their answers are late.
    fn tries(&self) -> impl Iterator<Item = (Try, Option<Instant>)> + '_ {
        let parts = self.slots.iter().flat_map(|slot| &slot.parts);
        parts.flat_map(|part| {
            let (tries, late_at) = match &part.state {
                State::Sent { tries, late_at } => (&tries[..], *late_at),
                _ => (&[][..], None),
            };
            tries.iter().map(move |at| (*at, late_at))
        })
    }

    /// Whether the next job in order is answered, all of it.
    pub(super) fn can_deliver(&self) -> bool {
        self.slots.front().is_some_and(Slot::is_answered)
    }

    /// Hands on the next job in order, if it is answered: the answers, and the units that each is of.
    pub(super) fn deliver(&mut self) -> Option<(J, Vec<Answered<A>>)> {
        if !self.can_deliver() {
            return None;
        }
        let slot = self.slots.pop_front()?;
        self.first += 1;
        let answers = slot.parts.into_iter().filter_map(|part| match part.state {
            State::Answered(answer) => Some((part.units, answer)),
            State::Waiting { .. } | State::Sent { .. } => None,
        });
        Some((slot.job, answers.collect()))
    }

    /// Hands on the next job in order without its answer, which is not waited for any more.
    pub(super) fn abandon(&mut self) -> Option<J> {
        let slot = self.slots.pop_front()?;
        let position = self.first;
        self.first += 1;
        self.sent.retain(|_, place| place.position != position);
        Some(slot.job)
    }

    /// Notes that a teacher answers, whatever it answers.
    pub(super) fn heard(&mut self, now: Instant) {
        self.last_answer = Some(now);
    }

    /// How long no answer has come although one was wanted, if that is too long.
    pub(super) fn given_up(&self, now: Instant) -> Option<Duration> {
        let since = self.wanted_since()?;
        let waited = now.saturating_duration_since(since);
        (waited >= self.limits.budget).then_some(waited)
    }

    /// The next time at which something is to be done although nothing arrived.
    pub(super) fn next_wake(&self, now: Instant) -> Option<Instant> {
        let parts = self.slots.iter().flat_map(|slot| &slot.parts);
        let waiting = parts.filter_map(|part| match part.state {
            State::Waiting { not_before } => (not_before > now).then_some(not_before),
            _ => None,
        });
        let deadlines = self.tries().map(|(at, _)| at.deadline);
        let late = self.tries().filter_map(|(_, late_at)| late_at.filter(|at| *at > now));
        let give_up = self.wanted_since().and_then(|since| since.checked_add(self.limits.budget));
        // Past it there is nothing more to wait for.
        let give_up = give_up.filter(|give_up| *give_up > now);
        waiting.chain(deadlines).chain(late).chain(give_up).min()
    }

    /// Since when an answer is wanted and none has come.
    fn wanted_since(&self) -> Option<Instant> {
        let open = self.slots.iter().filter(|slot| !slot.is_answered());
        let oldest = open.map(|slot| slot.taken).min()?;
        Some(self.last_answer.map_or(oldest, |last| last.max(oldest)))
    }

    /// Takes a request off those that may be answered; its job's failures and its part.
    fn settle(&mut self, request: u64) -> Option<(&mut u32, &mut Part<A>)> {
        let Place { position, part } = self.sent.remove(&request)?;
        let slot = self.slots.get_mut((position - self.first) as usize)?;
        Some((&mut slot.failures, slot.parts.get_mut(part)?))
    }
}

impl<J, A> Slot<J, A> {
    fn is_answered(&self) -> bool {
        self.parts.iter().all(|part| matches!(part.state, State::Answered(_)))
    }
}

impl<A> Part<A> {
    fn is_ready(&self, now: Instant) -> bool {
        matches!(self.state, State::Waiting { not_before } if not_before <= now)
    }

    /// Drops the tries that `gone` says are over; whether none is left, and it waits to be sent.
    fn give_up(&mut self, gone: impl Fn(&Try) -> bool, now: Instant) -> bool {
        let State::Sent { tries, late_at } = &mut self.state else { return false };
        tries.retain(|at| !gone(at));
        let Some(left) = tries.first() else {
            self.state = State::Waiting { not_before: now };
            return true;
        };
        // The one that is left may be late in its turn.
        late_at.get_or_insert(now + left.late_after);
        false
    }
}

#[cfg(test)]
mod tests;
