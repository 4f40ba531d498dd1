//! What was admitted and has no outcome yet.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::Violation;
use crate::{Request, Ticket, Time};

/// An admitted request, as the caller described it.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) client: Arc<str>,
    pub(super) cost: u64,
    pub(super) length: u32,
    pub(super) deadline: Option<Time>,
    pub(super) admitted: Time,
}

impl Pending {
    pub(super) fn new<T>(now: Time, request: &Request<T>) -> Self {
        Self {
            client: request.client.clone(),
            cost: request.cost,
            length: request.length,
            deadline: request.deadline,
            admitted: now,
        }
    }

    /// When it is overdue.
    pub(super) fn overdue_at(&self, age_guard: Time) -> Time {
        self.admitted.saturating_add(age_guard)
    }

    /// What its client's requests are launched in order of.
    pub(super) fn due(&self, age_guard: Time) -> Time {
        let overdue_at = self.overdue_at(age_guard);
        self.deadline.map_or(overdue_at, |deadline| deadline.min(overdue_at))
    }
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    pending: BTreeMap<Ticket, Pending>,
    latest: Option<Ticket>,
    cost: u64,
    /// Requests pending of each client that has any.
    clients: HashMap<Arc<str>, usize>,
    deadlines: BTreeSet<(Time, Ticket)>,
}

impl Ledger {
    pub(super) fn admitted(&mut self, ticket: Ticket, pending: Pending) -> Result<(), Violation> {
        if self.latest.is_some_and(|latest| ticket <= latest) {
            return Err(Violation::TicketReused { ticket });
        }
        self.latest = Some(ticket);
        self.cost += pending.cost;
        *self.clients.entry(pending.client.clone()).or_default() += 1;
        self.deadlines.extend(pending.deadline.map(|deadline| (deadline, ticket)));
        self.pending.insert(ticket, pending);
        Ok(())
    }

    /// Takes note of an outcome.
    pub(super) fn settle(&mut self, ticket: Ticket) -> Result<Pending, Violation> {
        let pending = self.pending.remove(&ticket).ok_or(Violation::SecondOutcome { ticket })?;
        self.cost -= pending.cost;
        if let Some(deadline) = pending.deadline {
            self.deadlines.remove(&(deadline, ticket));
        }
        if let Some(requests) = self.clients.get_mut(&pending.client) {
            *requests -= 1;
            if *requests == 0 {
                self.clients.remove(&pending.client);
            }
        }
        Ok(pending)
    }

    pub(super) fn pending(&self) -> impl Iterator<Item = (Ticket, &Pending)> {
        self.pending.iter().map(|(&ticket, pending)| (ticket, pending))
    }

    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    /// When the oldest pending request was admitted.
    pub(super) fn oldest(&self) -> Option<Time> {
        self.pending.first_key_value().map(|(_, pending)| pending.admitted)
    }

    /// Cost, requests, clients and the first deadline of what is pending.
    pub(super) fn accounts(&self) -> (u64, usize, usize, Option<Time>) {
        let deadline = self.deadlines.first().map(|&(deadline, _)| deadline);
        (self.cost, self.pending.len(), self.clients.len(), deadline)
    }
}
