//! What every schedule must satisfy, written once.
//!
//! [`Checked`] is a [`Batcher`] that is watched: it takes the same calls and returns a
//! [`Violation`] as soon as an answer breaks one of these:
//!
//! 1. Every admitted request gets exactly one outcome: launched, expired or cancelled; and it is
//!    launched as it was admitted.
//! 2. A batch is not empty, and its cost is the sum of its requests' and within the budget.
//! 3. Expired work never runs: no launched request's deadline is `now` or earlier. Nothing expires
//!    early.
//! 4. While a request is queued, no other client gets more than its fair share plus the bound of
//!    the [crate]'s page; and while one that its client's head start pays for is queued, all others
//!    together get less than a batch (without length grouping).
//! 5. Nothing starves: once a request is overdue, with a deadline or without, only requests of its
//!    client that were queued then and due before it go first, and other clients get no more than
//!    their share plus a bound, under length grouping too.
//! 6. A client's requests are launched in the order that they are due in: at the deadline, or when
//!    overdue if that is earlier (without length grouping).
//! 7. Lengths in a batch are within the ratio, but for overdue requests.
//! 8. The device does not idle: once the oldest request has waited `max_wait`, a batch is launched.
//! 9. The accounts (cost, requests, clients) are those of what was admitted and has no outcome yet.
//! 10. `retry_after` is there once a batch was measured, and between 1 ms and 1 minute.
//!
//! It remembers everything it saw: for tests and simulations, of this crate and of what is built on
//! it, not for production.

mod batches;
mod fairness;
mod ledger;
mod violation;

use crate::{Batcher, Config, ConfigError, Expired, Formed, Forming, Refusal, Request};
use crate::{Ticket, Time, WeightError};

use fairness::Fairness;
use ledger::{Ledger, Pending};

pub use violation::Violation;

/// A watched [`Batcher`]. See the [module](self) for what is checked.
#[derive(Debug)]
pub struct Checked<T> {
    batcher: Batcher<T>,
    config: Config,
    ledger: Ledger,
    fairness: Fairness,
    measured: bool,
}

impl<T> Checked<T> {
    /// As [`Batcher::new`].
    ///
    /// # Errors
    ///
    /// A field of `config` is out of range.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        Ok(Self {
            batcher: Batcher::new(config.clone())?,
            fairness: Fairness::new(&config),
            config,
            ledger: Ledger::default(),
            measured: false,
        })
    }

    /// The scheduler that is watched.
    pub fn batcher(&self) -> &Batcher<T> {
        &self.batcher
    }

    /// As [`Batcher::set_weight`]. Call it before the client's first request: the bounds of
    /// requests in the queue are not followed through a change of weight.
    ///
    /// # Errors
    ///
    /// As [`Batcher::set_weight`].
    pub fn set_weight(&mut self, client: &str, weight: u32) -> Result<(), WeightError> {
        self.batcher.set_weight(client, weight)?;
        self.fairness.set_weight(client, weight);
        Ok(())
    }

    /// As [`Batcher::admit`].
    ///
    /// # Errors
    ///
    /// Invariants 1, 9 and 10.
    pub fn admit(
        &mut self,
        now: Time,
        request: Request<T>,
    ) -> Result<Result<Ticket, (Refusal, T)>, Violation> {
        let pending = Pending::new(now, &request);
        let answer = self.batcher.admit(now, request);
        match &answer {
            Ok(ticket) => {
                let head_start = self.batcher.head_start(&pending.client);
                self.fairness.admitted(*ticket, &pending, head_start);
                self.ledger.admitted(*ticket, pending)?;
            }
            Err((refusal, _)) => self.check_retry_after(refusal)?,
        }
        self.check_accounts()?;
        Ok(answer)
    }

    /// As [`Batcher::cancel`].
    ///
    /// # Errors
    ///
    /// Invariants 1 and 9.
    pub fn cancel(&mut self, ticket: Ticket) -> Result<Option<T>, Violation> {
        let payload = self.batcher.cancel(ticket);
        if payload.is_some() {
            let pending = self.ledger.settle(ticket)?;
            self.fairness.withdrawn(ticket, &pending);
        }
        self.check_accounts()?;
        Ok(payload)
    }

    /// As [`Batcher::expire`].
    ///
    /// # Errors
    ///
    /// Invariants 1, 3 and 9.
    pub fn expire(&mut self, now: Time) -> Result<Vec<Expired<T>>, Violation> {
        let expired = self.batcher.expire(now);
        self.settle_expired(now, &expired)?;
        self.check_accounts()?;
        Ok(expired)
    }

    /// As [`Batcher::form`].
    ///
    /// # Errors
    ///
    /// All invariants but 10.
    pub fn form(&mut self, now: Time) -> Result<Formed<T>, Violation> {
        let formed = self.batcher.form(now);
        self.settle_expired(now, &formed.expired)?;
        match &formed.decision {
            Forming::Launch(batch) => {
                self.fairness.note_overdue(now, &self.ledger);
                let mut members = Vec::new();
                for item in &batch.items {
                    let pending = self.ledger.settle(item.ticket)?;
                    batches::check_item(now, item, &pending)?;
                    self.fairness.launched(item.ticket, &pending)?;
                    members.push((item.ticket, pending));
                }
                batches::check(&self.config, now, batch.cost, &members)?;
                if self.config.max_length_ratio.is_infinite() {
                    batches::check_order(&self.config, &members, &self.ledger)?;
                }
            }
            Forming::Wait(until) => {
                let latest = self.ledger.oldest();
                // A wait of Time::MAX is a valid one.
                let latest = latest.map(|time| time.saturating_add(self.config.max_wait));
                if latest.is_none_or(|latest| latest <= now || *until > latest) {
                    return Err(Violation::Idled { now, until: Some(*until) });
                }
            }
            Forming::Idle => {
                if self.ledger.oldest().is_some() {
                    return Err(Violation::Idled { now, until: None });
                }
            }
        }
        self.check_accounts()?;
        Ok(formed)
    }

    /// As [`Batcher::completed`].
    pub fn completed(&mut self, cost: u64, took: Time) {
        self.measured |= cost > 0 && took > Time::ZERO;
        self.batcher.completed(cost, cost, took);
    }

    /// As [`Batcher::drain`].
    pub fn drain(&mut self) {
        self.batcher.drain();
    }

    /// To be called at the end.
    ///
    /// # Errors
    ///
    /// A request has no outcome (invariant 1).
    pub fn finish(&self) -> Result<(), Violation> {
        match self.ledger.len() {
            0 => Ok(()),
            requests => Err(Violation::NoOutcome { requests }),
        }
    }

    fn settle_expired(&mut self, now: Time, expired: &[Expired<T>]) -> Result<(), Violation> {
        for item in expired {
            if item.deadline > now {
                return Err(Violation::ExpiredEarly { ticket: item.ticket, now });
            }
            let pending = self.ledger.settle(item.ticket)?;
            self.fairness.withdrawn(item.ticket, &pending);
        }
        Ok(())
    }

    fn check_retry_after(&self, refusal: &Refusal) -> Result<(), Violation> {
        let waiting_helps = matches!(
            refusal,
            Refusal::QueueFull { .. } | Refusal::ClientFull { .. } | Refusal::TooManyClients { .. }
        );
        let sane = match refusal.retry_after() {
            None => !(waiting_helps && self.measured),
            Some(time) => {
                waiting_helps && (Time::from_millis(1)..=Time::from_secs(60)).contains(&time)
            }
        };
        if sane { Ok(()) } else { Err(Violation::RetryAfter { refusal: refusal.clone() }) }
    }

    fn check_accounts(&self) -> Result<(), Violation> {
        let claimed = (
            self.batcher.queued_cost(),
            self.batcher.queued_items(),
            self.batcher.clients(),
            self.batcher.next_deadline(),
        );
        let expected = self.ledger.accounts();
        if claimed == expected {
            return Ok(());
        }
        Err(Violation::Accounts {
            claimed: format!("{claimed:?}"),
            expected: format!("{expected:?}"),
        })
    }
}
