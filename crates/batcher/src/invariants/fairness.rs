//! Invariants 4 and 5: what other clients may get while a request waits.
//!
//! Notation as on the crate's page: `w` weights, `C` a client's largest request, `S_i` what the
//! waiting request's own client launches in the time that is looked at, the request included, `B`
//! the batch budget. Sums are in exact integers.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Violation;
use super::ledger::{Ledger, Pending};
use crate::{Config, Ticket, Time};

/// Cost that each client has launched so far.
type Launched = BTreeMap<Arc<str>, u64>;

#[derive(Debug)]
pub(super) struct Fairness {
    quantum: u64,
    budget: u64,
    age_guard: Time,
    grouping: bool,
    default_weight: u32,
    weights: BTreeMap<Arc<str>, u32>,
    /// C.
    largest: BTreeMap<Arc<str>, u64>,
    /// Whether the client's order changed while it waited: work was withdrawn, or overtaken by
    /// overdue work.
    reordered: BTreeMap<Arc<str>, bool>,
    launched: Launched,
    /// As it was when the request was admitted.
    at_admission: BTreeMap<Ticket, Launched>,
    /// As it was when the request was first seen overdue, and the cost of its client's requests
    /// that may go before it, itself included.
    at_overdue: BTreeMap<Ticket, (Launched, u64)>,
}

impl Fairness {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            quantum: config.quantum(),
            budget: config.max_batch_cost,
            age_guard: config.age_guard,
            grouping: config.max_length_ratio.is_finite(),
            default_weight: config.default_weight,
            weights: BTreeMap::new(),
            largest: BTreeMap::new(),
            reordered: BTreeMap::new(),
            launched: Launched::new(),
            at_admission: BTreeMap::new(),
            at_overdue: BTreeMap::new(),
        }
    }

    pub(super) fn set_weight(&mut self, client: &str, weight: u32) {
        self.weights.insert(client.into(), weight);
    }

    pub(super) fn admitted(&mut self, ticket: Ticket, pending: &Pending) {
        let largest = self.largest.entry(pending.client.clone()).or_default();
        *largest = pending.cost.max(*largest);
        if !self.grouping {
            self.at_admission.insert(ticket, self.launched.clone());
        }
    }

    pub(super) fn withdrawn(&mut self, ticket: Ticket, pending: &Pending) {
        self.at_admission.remove(&ticket);
        self.at_overdue.remove(&ticket);
        self.reordered.insert(pending.client.clone(), true);
    }

    /// Looks for requests without a deadline that became overdue. To be called before the batch
    /// that was formed at `now` is gone through.
    pub(super) fn note_overdue(&mut self, now: Time, ledger: &Ledger) {
        let mut before: Launched = BTreeMap::new();
        for (ticket, pending) in ledger
            .pending()
            .filter(|(_, pending)| pending.deadline.is_none())
        {
            let before = before.entry(pending.client.clone()).or_default();
            *before += pending.cost;
            if now.saturating_sub(pending.admitted) >= self.age_guard {
                let now = || (self.launched.clone(), *before);
                self.at_overdue.entry(ticket).or_insert_with(now);
            }
        }
    }

    /// To be called for each request of a batch, in its order.
    pub(super) fn launched(
        &mut self,
        now: Time,
        ticket: Ticket,
        pending: &Pending,
    ) -> Result<(), Violation> {
        let client = &pending.client;
        *self.launched.entry(client.clone()).or_default() += pending.cost;
        let overdue = now.saturating_sub(pending.admitted) >= self.age_guard;
        if overdue && pending.deadline.is_none() {
            self.reordered.insert(client.clone(), true);
        }
        let own_slack = match self.reordered.get(client) {
            Some(true) => self.largest(client),
            _ => 0,
        };
        if let Some(since) = self.at_admission.remove(&ticket) {
            // w_j / w_i * S_i + 2 * quantum * w_j + C_j
            self.check(
                ticket,
                client,
                "since admission",
                &since,
                own_slack,
                |other| 2 * self.quantum * self.weight(other) + self.largest(other),
            )?;
        }
        if let Some((since, bound)) = self.at_overdue.remove(&ticket) {
            let launched = self.launched_since(&since, client);
            if launched > bound {
                return Err(Violation::Starved {
                    ticket,
                    launched,
                    bound,
                });
            }
            // w_j / w_i * (S_i + C_i) + (B + 3 * quantum) * w_j: as above, but j may start with
            // the most credit that passing over lets it keep.
            self.check(
                ticket,
                client,
                "overdue",
                &since,
                self.largest(client),
                |other| (self.budget + 3 * self.quantum) * self.weight(other),
            )?;
        }
        Ok(())
    }

    fn check(
        &self,
        ticket: Ticket,
        client: &Arc<str>,
        what: &'static str,
        since: &Launched,
        own_slack: u64,
        slack: impl Fn(&Arc<str>) -> u64,
    ) -> Result<(), Violation> {
        let own = self.launched_since(since, client) + own_slack;
        for other in self.launched.keys().filter(|other| *other != client) {
            let launched = self.launched_since(since, other);
            let bound = own * self.weight(other) / self.weight(client) + slack(other);
            if launched > bound {
                let (client, other) = (client.clone(), other.clone());
                return Err(Violation::Unfair {
                    ticket,
                    client,
                    what,
                    other,
                    launched,
                    bound,
                });
            }
        }
        Ok(())
    }

    fn launched_since(&self, since: &Launched, client: &Arc<str>) -> u64 {
        let total = |at: &Launched| at.get(client).copied().unwrap_or_default();
        total(&self.launched) - total(since)
    }

    fn weight(&self, client: &Arc<str>) -> u64 {
        self.weights
            .get(client)
            .copied()
            .unwrap_or(self.default_weight)
            .into()
    }

    fn largest(&self, client: &Arc<str>) -> u64 {
        self.largest.get(client).copied().unwrap_or_default()
    }
}
