//! Invariants 4 and 5: what other clients may get while a request waits.
//!
//! Notation as on the crate's page: `w` weights, `C` a client's largest request, `S_i` what the
//! waiting request's own client launches in the time that is looked at, the request included, `B`
//! the batch budget. Sums are in exact integers.
//!
//! Together the others get no more than the sum of what each may get, and it holds by itself where
//! each is held to its own. The tighter bound on a newcomer's total is checked as such.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Violation;
use super::ledger::{Ledger, Pending};
use crate::{Config, Ticket, Time};

/// What is known of a client, from its first request or weight on.
#[derive(Debug)]
struct Client {
    name: Arc<str>,
    /// w.
    weight: u64,
    /// C.
    largest: u64,
    /// Whether some of its work was withdrawn.
    withdrew: bool,
    /// Cost launched so far.
    launched: u64,
}

/// Cost that each client, by index, had launched at some moment; nothing where it was not known.
type Snapshot = Vec<u64>;

#[derive(Debug)]
pub(super) struct Fairness {
    quantum: u64,
    budget: u64,
    age_guard: Time,
    grouping: bool,
    default_weight: u32,
    index: HashMap<Arc<str>, usize>,
    clients: Vec<Client>,
    /// As it was when the request was admitted.
    at_admission: BTreeMap<Ticket, Snapshot>,
    /// As it was when the request was first seen overdue, and the cost of its client's requests
    /// that may go before it, itself included.
    at_overdue: BTreeMap<Ticket, (Snapshot, u64)>,
    /// As it was when a request of a newcomer was admitted; the newcomer, and the head start that it
    /// had before it.
    at_head_start: BTreeMap<Ticket, (Snapshot, usize, u64)>,
}

impl Fairness {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            quantum: config.quantum(),
            budget: config.max_batch_cost,
            age_guard: config.age_guard,
            grouping: config.max_length_ratio.is_finite(),
            default_weight: config.default_weight,
            index: HashMap::new(),
            clients: Vec::new(),
            at_admission: BTreeMap::new(),
            at_overdue: BTreeMap::new(),
            at_head_start: BTreeMap::new(),
        }
    }

    pub(super) fn set_weight(&mut self, client: &str, weight: u32) {
        let client = self.client(&client.into());
        self.clients[client].weight = weight.into();
    }

    /// `head_start`: of its client, where that has not used it yet.
    pub(super) fn admitted(&mut self, ticket: Ticket, pending: &Pending, head_start: Option<u64>) {
        let client = self.client(&pending.client);
        self.clients[client].largest = self.clients[client].largest.max(pending.cost);
        if !self.grouping {
            self.at_admission.insert(ticket, self.snapshot());
            if let Some(head_start) = head_start {
                self.at_head_start.insert(ticket, (self.snapshot(), client, head_start));
            }
        }
    }

    pub(super) fn withdrawn(&mut self, ticket: Ticket, pending: &Pending) {
        self.at_admission.remove(&ticket);
        self.at_overdue.remove(&ticket);
        let client = self.client(&pending.client);
        // What went by behind the withdrawn request now waits for a turn.
        self.at_head_start.retain(|_, (_, newcomer, _)| *newcomer != client);
        self.clients[client].withdrew = true;
    }

    /// Looks for requests that became overdue. To be called before the batch that was formed at
    /// `now` is gone through.
    pub(super) fn note_overdue(&mut self, now: Time, ledger: &Ledger) {
        // What is overdue was due before all that is not, so among these is all that may go first.
        let mut overdue: HashMap<&str, Vec<(Time, Ticket, u64)>> = HashMap::new();
        for (ticket, pending) in ledger.pending() {
            if now < pending.overdue_at(self.age_guard) {
                break;
            }
            let due = pending.due(self.age_guard);
            overdue.entry(&pending.client).or_default().push((due, ticket, pending.cost));
        }
        for mut requests in overdue.into_values() {
            requests.sort_unstable();
            let mut before = 0;
            for (_, ticket, cost) in requests {
                before += cost;
                if !self.at_overdue.contains_key(&ticket) {
                    self.at_overdue.insert(ticket, (self.snapshot(), before));
                }
            }
        }
    }

    /// To be called for each request of a batch, in its order.
    pub(super) fn launched(&mut self, ticket: Ticket, pending: &Pending) -> Result<(), Violation> {
        let client = self.client(&pending.client);
        let mine = &mut self.clients[client];
        mine.launched += pending.cost;
        let (largest, withdrew) = (mine.largest, mine.withdrew);
        if let Some(since) = self.at_admission.remove(&ticket) {
            // w_j / w_i * S_i + 2 * quantum * w_j + C_j
            let own_slack = if withdrew { largest } else { 0 };
            self.check(ticket, client, "since admission", &since, own_slack, |other| {
                2 * self.quantum * other.weight + other.largest
            })?;
        }
        if let Some((since, _, head_start)) = self.at_head_start.remove(&ticket) {
            // B - S_i, where the head start pays for S_i.
            let mine = self.launched_since(&since, client);
            let others = self.others_since(&since, client);
            if mine <= head_start && others + mine > self.budget {
                let (client, bound) = (pending.client.clone(), self.budget - mine);
                return Err(Violation::NewcomerHeldUp { ticket, client, launched: others, bound });
            }
        }
        if let Some((since, bound)) = self.at_overdue.remove(&ticket) {
            let launched = self.launched_since(&since, client);
            if launched > bound {
                return Err(Violation::Starved { ticket, launched, bound });
            }
            // w_j / w_i * (S_i + C_i) + (B + 3 * quantum) * w_j: as above, but j may start with
            // the most credit that passing over lets it keep.
            self.check(ticket, client, "overdue", &since, largest, |other| {
                (self.budget + 3 * self.quantum) * other.weight
            })?;
        }
        Ok(())
    }

    fn check(
        &self,
        ticket: Ticket,
        client: usize,
        what: &'static str,
        since: &Snapshot,
        own_slack: u64,
        slack: impl Fn(&Client) -> u64,
    ) -> Result<(), Violation> {
        let mine = &self.clients[client];
        let own = self.launched_since(since, client) + own_slack;
        for (index, other) in self.clients.iter().enumerate() {
            let launched = self.launched_since(since, index);
            let bound = own * other.weight / mine.weight + slack(other);
            if index != client && launched > bound {
                let (client, other) = (mine.name.clone(), other.name.clone());
                return Err(Violation::Unfair { ticket, client, what, other, launched, bound });
            }
        }
        Ok(())
    }

    fn launched_since(&self, since: &Snapshot, client: usize) -> u64 {
        self.clients[client].launched - since.get(client).copied().unwrap_or_default()
    }

    /// Cost that all but one client launched.
    fn others_since(&self, since: &Snapshot, client: usize) -> u64 {
        let all = (0..self.clients.len()).map(|index| self.launched_since(since, index));
        all.sum::<u64>() - self.launched_since(since, client)
    }

    fn snapshot(&self) -> Snapshot {
        self.clients.iter().map(|client| client.launched).collect()
    }

    fn client(&mut self, name: &Arc<str>) -> usize {
        if let Some(&index) = self.index.get(name) {
            return index;
        }
        self.index.insert(name.clone(), self.clients.len());
        self.clients.push(Client {
            name: name.clone(),
            weight: self.default_weight.into(),
            largest: 0,
            withdrew: false,
            launched: 0,
        });
        self.clients.len() - 1
    }
}
