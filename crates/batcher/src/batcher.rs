//! Admission, cancellation and expiry: what is queued, and the accounting of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::drr::{Account, ClientId, Ring};
use crate::length::Lengths;
use crate::queue::{ClientQueue, Queued};
use crate::rate::ServiceRate;
use crate::target::LatencyTarget;
use crate::weights::Weights;
use crate::{Config, ConfigError, Expired, Refusal, Request, Ticket, Time, WeightError};

/// Queues requests and forms batches. See the [crate] for what it promises.
///
/// Every operation on a request takes O(log n) of what is queued. [`form`](Batcher::form) takes that
/// for each request it launches, and for each client with work queued in each round that the batch
/// spans. A round that launches nothing is followed by one that does, or that ends the batch, so
/// there are at most 2 m + 2 rounds in a batch of m requests: few where clients are many, since a
/// round then hands out much of the batch, and few where requests are large.
#[derive(Debug)]
pub struct Batcher<T> {
    pub(crate) config: Config,
    pub(crate) lengths: Lengths,
    pub(crate) weights: Weights,
    pub(crate) rate: ServiceRate,
    pub(crate) draining: bool,
    /// Cost in other queues that goes first, where there is a target latency.
    pub(crate) ahead: u64,
    /// Where there is a target latency.
    pub(crate) target: Option<LatencyTarget>,
    next_ticket: u64,
    ticket_step: u64,
    next_client: u64,
    queued_cost: u64,
    /// Sum of the weights of `clients`.
    queued_weight: u64,
    /// By ticket, so the oldest is first.
    entries: BTreeMap<Ticket, Entry<T>>,
    deadlines: BTreeSet<(Time, Ticket)>,
    /// Only clients with work queued.
    pub(crate) clients: HashMap<ClientId, Client>,
    names: HashMap<Arc<str>, ClientId>,
    pub(crate) ring: Ring,
}

/// An admitted request.
#[derive(Debug)]
pub(crate) struct Entry<T> {
    pub(crate) client: ClientId,
    pub(crate) name: Arc<str>,
    pub(crate) length: u32,
    pub(crate) queued: Queued,
    pub(crate) payload: T,
}

/// A client with work queued.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) name: Arc<str>,
    pub(crate) queue: ClientQueue,
    pub(crate) account: Account,
}

/// One client's part of the queue, for metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientStats {
    /// Its name.
    pub client: Arc<str>,
    /// Its weight.
    pub weight: u32,
    /// Requests queued; at least 1.
    pub queued_items: usize,
    /// Their cost.
    pub queued_cost: u64,
}

impl<T> Batcher<T> {
    /// An empty scheduler.
    ///
    /// # Errors
    ///
    /// A field of `config` is out of range.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        Self::numbered(config, 0, 1)
    }

    /// As [`Batcher::new`], with tickets that are `first` modulo `step`.
    pub(crate) fn numbered(config: Config, first: u64, step: u64) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self {
            ahead: 0,
            target: LatencyTarget::new(config.target_latency),
            lengths: Lengths::new(config.max_length_ratio),
            weights: Weights::new(config.default_weight),
            config,
            rate: ServiceRate::default(),
            draining: false,
            next_ticket: first,
            ticket_step: step,
            next_client: 0,
            queued_cost: 0,
            queued_weight: 0,
            entries: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            clients: HashMap::new(),
            names: HashMap::new(),
            ring: Ring::default(),
        })
    }

    /// Gives a client a weight of its own, from now on: its share of the device is proportional.
    ///
    /// # Errors
    ///
    /// The weight is 0 or above [`MAX_WEIGHT`](crate::MAX_WEIGHT), or the table of weights is full.
    pub fn set_weight(&mut self, client: &str, weight: u32) -> Result<(), WeightError> {
        self.weights.set(client, weight)?;
        if let Some(client) = self.names.get(client).and_then(|id| self.clients.get_mut(id)) {
            self.queued_weight -= u64::from(client.account.weight);
            self.queued_weight += u64::from(weight);
            client.account.weight = weight;
        }
        Ok(())
    }

    /// Queues a request.
    ///
    /// # Errors
    ///
    /// Why it was not queued, with its payload.
    pub fn admit(&mut self, now: Time, request: Request<T>) -> Result<Ticket, (Refusal, T)> {
        if let Some(refusal) = self.refusal(now, &request) {
            return Err((refusal, request.payload));
        }
        let Request { client: name, cost, length, deadline, payload } = request;
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += self.ticket_step;
        let class = self.lengths.class(length);
        let overdue_at = now.saturating_add(self.config.age_guard);
        let queued = Queued { ticket, cost, class, deadline, admitted: now, overdue_at };
        let client = self.client_id(&name);
        if let Some(client) = self.clients.get_mut(&client) {
            client.queue.insert(queued);
        }
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, ticket));
        }
        self.queued_cost += cost;
        self.entries.insert(ticket, Entry { client, name, length, queued, payload });
        Ok(ticket)
    }

    /// Drops a queued request and returns its payload. `None` where the ticket was launched, has
    /// expired or was cancelled before.
    pub fn cancel(&mut self, ticket: Ticket) -> Option<T> {
        self.take(ticket).map(|entry| entry.payload)
    }

    /// Drops and returns every queued request whose deadline is `now` or earlier.
    pub fn expire(&mut self, now: Time) -> Vec<Expired<T>> {
        let mut expired = Vec::new();
        while let Some(&(deadline, ticket)) = self.deadlines.first()
            && deadline <= now
        {
            let Some(entry) = self.take(ticket) else {
                break;
            };
            expired.push(Expired {
                ticket,
                client: entry.name,
                cost: entry.queued.cost,
                deadline,
                waited: now.saturating_sub(entry.queued.admitted),
                payload: entry.payload,
            });
        }
        expired
    }

    /// Tells that a batch of `cost` kept the device busy for `took`: what the `retry_after` of a
    /// [`Refusal`] is estimated from. Of that, `ran` was computed, which a target latency goes by; the
    /// rest was equal to that, or known by then.
    pub fn completed(&mut self, cost: u64, ran: u64, took: Time) {
        self.rate.observe(cost, took);
        if let Some(target) = &mut self.target {
            target.observe(ran, took);
        }
    }

    /// What a batch may cost.
    pub(crate) fn room(&self) -> u64 {
        let most = self.config.max_batch_cost;
        self.target.as_ref().map_or(most, |target| target.batch_cost(most))
    }

    /// What may wait.
    fn queue_cost(&self) -> u64 {
        let most = self.config.max_queue_cost;
        self.target.as_ref().map_or(most, |target| target.queue_cost(self.room(), most))
    }

    /// Admits nothing from now on. What is queued still runs, without waiting for company.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Cost admitted and not yet launched, by all clients.
    pub fn queued_cost(&self) -> u64 {
        self.queued_cost
    }

    /// Requests admitted and not yet launched.
    pub fn queued_items(&self) -> usize {
        self.entries.len()
    }

    /// Clients with work queued.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The clients with work queued, in no particular order.
    pub fn client_stats(&self) -> impl Iterator<Item = ClientStats> + '_ {
        self.clients.values().map(|client| ClientStats {
            client: client.name.clone(),
            weight: client.account.weight,
            queued_items: client.queue.len(),
            queued_cost: client.queue.cost(),
        })
    }

    /// The earliest deadline in the queue: when [`expire`](Batcher::expire) has something to drop.
    pub fn next_deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// Credit that the client of that name will be given ahead of everyone's turn, for want of any
    /// work queued before.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn head_start(&self, client: &str) -> Option<u64> {
        let client = self.clients.get(self.names.get(client)?)?;
        client.account.head_start()
    }

    /// When the oldest queued request was admitted.
    pub(crate) fn oldest(&self) -> Option<Time> {
        self.entries.first_key_value().map(|(_, entry)| entry.queued.admitted)
    }

    /// Takes a request out of the queue, with all accounting of it; its client too, if that was its
    /// last.
    pub(crate) fn take(&mut self, ticket: Ticket) -> Option<Entry<T>> {
        let entry = self.entries.remove(&ticket)?;
        self.queued_cost -= entry.queued.cost;
        if let Some(deadline) = entry.queued.deadline {
            self.deadlines.remove(&(deadline, ticket));
        }
        if let Some(client) = self.clients.get_mut(&entry.client) {
            client.queue.remove(&entry.queued);
            if client.queue.is_empty() {
                self.ring.leave(&client.name, &client.account);
                self.queued_weight -= u64::from(client.account.weight);
                self.names.remove(&entry.name);
                self.clients.remove(&entry.client);
            }
        }
        Some(entry)
    }

    /// The client of that name, made if it has nothing queued.
    fn client_id(&mut self, name: &Arc<str>) -> ClientId {
        if let Some(&id) = self.names.get(name) {
            return id;
        }
        let id = ClientId(self.next_client);
        self.next_client += 1;
        let weight = self.weights.get(name);
        let (quantum, budget) = (self.config.quantum(), self.config.max_batch_cost);
        let account = self.ring.join(id, name, weight, quantum, budget);
        self.queued_weight += u64::from(weight);
        self.names.insert(name.clone(), id);
        let client = Client { name: name.clone(), queue: ClientQueue::default(), account };
        self.clients.insert(id, client);
        id
    }

    fn refusal(&self, now: Time, request: &Request<T>) -> Option<Refusal> {
        let Config { max_batch_cost: max, max_clients, .. } = self.config;
        let most = self.queue_cost();
        let cost = request.cost;
        if !(1..=max).contains(&cost) {
            return Some(Refusal::CostOutOfRange { cost, max });
        }
        if self.draining {
            return Some(Refusal::Draining);
        }
        if request.deadline.is_some_and(|deadline| deadline <= now) {
            return Some(Refusal::Expired);
        }
        let client = self.names.get(&request.client).and_then(|id| self.clients.get(id));
        let queued = self.queued_cost;
        let Some(client) = client else {
            if self.clients.len() >= max_clients {
                let retry_after = self.rate.time_for(queued, 1.0);
                return Some(Refusal::TooManyClients { clients: max_clients, retry_after });
            }
            // One that is larger than what a target lets wait comes in all the same, where small ones
            // would.
            let charged = if self.target.is_some() { cost.min((most / 8).max(1)) } else { cost };
            return self.queue_refusal(charged, most);
        };
        self.client_refusal(client, cost, most)
            .or_else(|| self.queue_refusal(cost, self.config.busy_queue_cost(most)))
    }

    fn queue_refusal(&self, cost: u64, limit: u64) -> Option<Refusal> {
        let queued = self.queued_cost + self.ahead;
        let excess = (queued + cost).saturating_sub(limit);
        (excess > 0).then(|| {
            let retry_after = self.rate.time_for(excess, 1.0);
            Refusal::QueueFull { cost, queued, limit, retry_after }
        })
    }

    /// In the upper half of the queue a client with work queued may hold no more than its share.
    fn client_refusal(&self, client: &Client, cost: u64, max_queue_cost: u64) -> Option<Refusal> {
        let Config { max_client_cost, .. } = self.config;
        let share = f64::from(client.account.weight) / self.queued_weight as f64;
        let mut limit = max_client_cost;
        if self.queued_cost + cost > max_queue_cost / 2 {
            limit = limit.min((max_queue_cost as f64 * share) as u64);
        }
        let queued = client.queue.cost();
        let excess = (queued + cost).saturating_sub(limit);
        (excess > 0).then(|| {
            let retry_after = self.rate.time_for(excess, share);
            Refusal::ClientFull { cost, queued, limit, retry_after }
        })
    }
}
