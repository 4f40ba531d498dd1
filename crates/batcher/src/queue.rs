//! The queued requests of one client, in the order in which it would have them run.

use std::collections::{BTreeMap, BTreeSet};

use crate::length::{LengthClass, Window};
use crate::{Ticket, Time};

/// Earliest due first, then order of admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    due: Time,
    ticket: Ticket,
}

/// What choosing needs to know of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Queued {
    pub(crate) ticket: Ticket,
    pub(crate) cost: u64,
    pub(crate) class: LengthClass,
    pub(crate) deadline: Option<Time>,
    pub(crate) admitted: Time,
    /// From this moment on it joins any batch: it has waited for the age guard.
    pub(crate) overdue_at: Time,
}

impl Queued {
    /// One order for work with and without a deadline: a request is due at its deadline, or when it
    /// is overdue if that is earlier. So what is admitted later than the age guard allows never
    /// goes first, and neither kind of work can hold the other back without end.
    fn rank(&self) -> Rank {
        let due = self.deadline.map_or(self.overdue_at, |at| at.min(self.overdue_at));
        Rank { due, ticket: self.ticket }
    }

    fn overdue(&self, now: Time) -> bool {
        now >= self.overdue_at
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

    /// What this client would run next if lengths did not matter. Whatever is overdue was due
    /// before all that is not.
    pub(crate) fn head(&self) -> Option<&Queued> {
        self.by_rank.first_key_value().map(|(_, request)| request)
    }

    /// What this client would run next in a batch that holds the lengths of `window` (`None`: an
    /// empty batch). `None` where no request of this client may join.
    pub(crate) fn pick(&self, now: Time, window: Option<Window>) -> Option<&Queued> {
        let head = self.head()?;
        match window {
            Some(window) if !window.admits(head.class) && !head.overdue(now) => {
                self.first_within(window)
            }
            _ => Some(head),
        }
    }

    fn first_within(&self, window: Window) -> Option<&Queued> {
        let lowest = Rank { due: Time::ZERO, ticket: Ticket(0) };
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
            overdue_at: seconds(ticket) + GUARD,
        }
    }

    fn drain(queue: &mut ClientQueue, now: Time, window: Option<Window>) -> Vec<u64> {
        let mut order = Vec::new();
        while let Some(&next) = queue.pick(now, window) {
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

    /// Without a deadline 1 is due at 11 and 3 at 13; the guard makes 2 due at 12, long before its
    /// deadline, and leaves the deadline of 4 as it is.
    #[test]
    fn the_guard_bounds_work_with_and_without_a_deadline_alike() {
        let mut queue = ClientQueue::default();
        for (ticket, deadline) in [(1, None), (2, Some(1000)), (3, None), (4, Some(12))] {
            queue.insert(request(ticket, 1, deadline));
        }
        assert_eq!(drain(&mut queue, seconds(5), None), [1, 2, 4, 3]);
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
