//! Which invariant broke, and how.

use std::sync::Arc;

use crate::{Refusal, Ticket, Time};

/// An invariant that does not hold. The numbers are those of the [module](super)'s list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message says what its fields are")]
pub enum Violation {
    /// Invariant 1.
    #[error("{ticket:?} was given out twice")]
    TicketReused { ticket: Ticket },
    /// Invariant 1.
    #[error("{ticket:?} got an outcome, but was not queued")]
    SecondOutcome { ticket: Ticket },
    /// Invariant 1.
    #[error("{requests} requests got no outcome")]
    NoOutcome { requests: usize },
    /// Invariant 1.
    #[error(
        "{ticket:?} was launched as (client, cost, length, deadline, waited) {claimed}; was admitted as {admitted}"
    )]
    Altered { ticket: Ticket, claimed: String, admitted: String },
    /// Invariant 2.
    #[error("a batch of {items} requests costs {sum}, says {claimed}; the budget is {budget}")]
    BatchCost { items: usize, sum: u64, claimed: u64, budget: u64 },
    /// Invariant 3.
    #[error("{ticket:?} was launched at {now:?}, past its deadline {deadline:?}")]
    RanExpired { ticket: Ticket, now: Time, deadline: Time },
    /// Invariant 3.
    #[error("{ticket:?} was dropped at {now:?}, before its deadline")]
    ExpiredEarly { ticket: Ticket, now: Time },
    /// Invariant 4.
    #[error(
        "while {ticket:?} of newcomer {client} waited, others launched {launched}, bound {bound}"
    )]
    NewcomerHeldUp { ticket: Ticket, client: Arc<str>, launched: u64, bound: u64 },
    /// Invariants 4 and 5.
    #[error(
        "while {ticket:?} of {client} waited {what}, {other} launched {launched}, bound {bound}"
    )]
    Unfair {
        ticket: Ticket,
        client: Arc<str>,
        what: &'static str,
        other: Arc<str>,
        launched: u64,
        bound: u64,
    },
    /// Invariant 5.
    #[error("{ticket:?} was overdue, and its own client launched {launched} first, bound {bound}")]
    Starved { ticket: Ticket, launched: u64, bound: u64 },
    /// Invariant 6.
    #[error("{client} has work due at {left:?} queued, and launched some due at {launched:?}")]
    Order { client: Arc<str>, left: Time, launched: Time },
    /// Invariant 7.
    #[error("a batch holds lengths {shortest} and {longest}")]
    LengthsApart { shortest: u32, longest: u32 },
    /// Invariant 8.
    #[error("nothing was launched at {now:?}, with work due; told to wait until {until:?}")]
    Idled { now: Time, until: Option<Time> },
    /// Invariant 9.
    #[error("(cost, requests, clients, first deadline) are {claimed}, should be {expected}")]
    Accounts { claimed: String, expected: String },
    /// Invariant 10.
    #[error("retry_after of {refusal:?}")]
    RetryAfter { refusal: Refusal },
}
