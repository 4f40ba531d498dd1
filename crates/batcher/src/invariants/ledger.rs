//! What was admitted and has no outcome yet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Violation;
use crate::{Request, Ticket, Time};

/// An admitted request, as the caller described it.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) client: Arc<str>,
    pub(super) cost: u64,
    pub(super) deadline: Option<Time>,
    pub(super) admitted: Time,
}

impl Pending {
    pub(super) fn new<T>(now: Time, request: &Request<T>) -> Self {
        Self {
            client: request.client.clone(),
            cost: request.cost,
            deadline: request.deadline,
            admitted: now,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    pending: BTreeMap<Ticket, Pending>,
    latest: Option<Ticket>,
}

impl Ledger {
    pub(super) fn admitted(&mut self, ticket: Ticket, pending: Pending) -> Result<(), Violation> {
        if self.latest.is_some_and(|latest| ticket <= latest) {
            return Err(Violation::TicketReused { ticket });
        }
        self.latest = Some(ticket);
        self.pending.insert(ticket, pending);
        Ok(())
    }

    /// Takes note of an outcome.
    pub(super) fn settle(&mut self, ticket: Ticket) -> Result<Pending, Violation> {
        self.pending
            .remove(&ticket)
            .ok_or(Violation::SecondOutcome { ticket })
    }

    pub(super) fn pending(&self) -> impl Iterator<Item = (Ticket, &Pending)> {
        self.pending
            .iter()
            .map(|(&ticket, pending)| (ticket, pending))
    }

    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn oldest(&self) -> Option<Time> {
        self.pending.values().map(|pending| pending.admitted).min()
    }

    /// Cost, requests, clients and the first deadline of what is pending.
    pub(super) fn accounts(&self) -> (u64, usize, usize, Option<Time>) {
        let all = || self.pending.values();
        let clients: BTreeSet<_> = all().map(|pending| &pending.client).collect();
        let deadline = all().filter_map(|pending| pending.deadline).min();
        (
            all().map(|pending| pending.cost).sum(),
            self.pending.len(),
            clients.len(),
            deadline,
        )
    }
}
