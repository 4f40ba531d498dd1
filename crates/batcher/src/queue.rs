//! The queued requests of one client, in the order in which it would have them run.

use std::collections::{BTreeMap, BTreeSet};

use crate::length::{LengthClass, Window};
use crate::{Ticket, Time};

/// Earliest deadline first, then order of admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// [`UNDATED`] where there is none.
    deadline: Time,
    ticket: Ticket,
}

/// Ranks requests without a deadline behind all others.
const UNDATED: Time = Time::MAX;

/// What choosing needs to know of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Queued {
    pub(crate) ticket: Ticket,
    pub(crate) cost: u64,
    pub(crate) class: LengthClass,
    pub(crate) deadline: Option<Time>,
    pub(crate) admitted: Time,
}

impl Queued {
    fn rank(&self) -> Rank {
        Rank { deadline: self.deadline.unwrap_or(UNDATED), ticket: self.ticket }
    }
}

/// Every operation takes O(log n) of the client's queue.
#[derive(Debug, Default)]
pub(crate) struct ClientQueue {
    by_rank: BTreeMap<Rank, Queued>,
    by_class: BTreeSet<(LengthClass, Rank)>,
    cost: u64,
}

impl ClientQueue {
    /// Cost of all that is queued.
    pub(crate) fn cost(&self) -> u64 {
        self.cost
    }

    pub(crate) fn len(&self) -> usize {
        self.by_rank.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_rank.is_empty()
    }

    pub(crate) fn insert(&mut self, request: Queued) {
        let rank = request.rank();
        self.by_class.insert((request.class, rank));
        if self.by_rank.insert(rank, request).is_none() {
            self.cost += request.cost;
        }
    }

    pub(crate) fn remove(&mut self, request: &Queued) {
        let rank = request.rank();
        self.by_class.remove(&(request.class, rank));
        if let Some(removed) = self.by_rank.remove(&rank) {
            self.cost -= removed.cost;
        }
    }

    /// What this client would run next if lengths did not matter: its oldest request without a
    /// deadline once that is `age_guard` old, otherwise the one with the earliest deadline.
    pub(crate) fn head(&self, now: Time, age_guard: Time) -> Option<&Queued> {
        let undated = Rank { deadline: UNDATED, ticket: Ticket(0) };
        let (_, oldest_undated) = self.by_rank.range(undated..).next().unzip();
        oldest_undated
            .filter(|request| overdue(request, now, age_guard))
            .or_else(|| self.by_rank.first_key_value().map(|(_, request)| request))
    }

    /// What this client would run next in a batch that holds the lengths of `window` (`None`: an
    /// empty batch). `None` where no request of this client may join.
    pub(crate) fn pick(
        &self,
        now: Time,
        age_guard: Time,
        window: Option<Window>,
    ) -> Option<&Queued> {
        let head = self.head(now, age_guard)?;
        match window {
            Some(window) if !window.admits(head.class) && !overdue(head, now, age_guard) => {
                self.first_within(window)
            }
            _ => Some(head),
        }
    }

    fn first_within(&self, window: Window) -> Option<&Queued> {
        let lowest = Rank { deadline: Time::ZERO, ticket: Ticket(0) };
        let (mut class, last) = window.bounds();
        let mut first: Option<Rank> = None;
        // A window spans at most seven classes.
        while class <= last {
            let Some(&(found, rank)) = self.by_class.range((class, lowest)..).next() else {
                break;
            };
            if found > last {
                break;
            }
            first = Some(first.map_or(rank, |first| first.min(rank)));
            class = found + 1;
        }
        self.by_rank.get(&first?)
    }
}

fn overdue(request: &Queued, now: Time, age_guard: Time) -> bool {
    now.saturating_sub(request.admitted) >= age_guard
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::length::Lengths;

    const GUARD: Time = Time::from_secs(10);

    fn seconds(seconds: u64) -> Time {
        Time::from_secs(seconds)
    }

    fn request(ticket: u64, length: u32, deadline: Option<u64>) -> Queued {
        Queued {
            ticket: Ticket(ticket),
            cost: 1,
            class: Lengths::new(2.0).class(length),
            deadline: deadline.map(seconds),
            admitted: seconds(ticket),
        }
    }

    fn drain(queue: &mut ClientQueue, now: Time, window: Option<Window>) -> Vec<u64> {
        let mut order = Vec::new();
        while let Some(&next) = queue.pick(now, GUARD, window) {
            queue.remove(&next);
            order.push(next.ticket.0);
        }
        order
    }

    #[test]
    fn the_earliest_deadline_goes_first_and_none_goes_last() {
        let mut queue = ClientQueue::default();
        for (ticket, deadline) in [(1, None), (2, Some(9)), (3, Some(5)), (4, None), (5, Some(9))] {
            queue.insert(request(ticket, 1, deadline));
        }
        assert_eq!(queue.cost(), 5);
        assert_eq!(drain(&mut queue, seconds(5), None), [3, 2, 5, 1, 4]);
        assert_eq!((queue.cost(), queue.len()), (0, 0));
    }

    #[test]
    fn work_without_a_deadline_goes_first_once_overdue() {
        let mut queue = ClientQueue::default();
        for (ticket, deadline) in [(1, None), (2, Some(30)), (3, None)] {
            queue.insert(request(ticket, 1, deadline));
        }
        assert_eq!(drain(&mut queue, seconds(11), None), [1, 2, 3]);
    }

    #[test]
    fn only_similar_lengths_join_until_a_request_is_overdue() {
        let window = Some(Window::around(Lengths::new(2.0).class(100)));
        let mut queue = ClientQueue::default();
        for (ticket, length) in [(1, 500), (2, 110), (3, 20), (4, 90), (5, 150)] {
            queue.insert(request(ticket, length, None));
        }
        assert_eq!(drain(&mut queue, seconds(5), window), [2, 4, 5]);
        assert_eq!(drain(&mut queue, seconds(11), window), [1], "3 is not overdue yet");
        assert_eq!(queue.len(), 1);
    }
}
