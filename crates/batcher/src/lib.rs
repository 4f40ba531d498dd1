//! Decides which queued requests ride in the teacher's next batch.
//!
//! The device runs one batch at a time. Requests of many clients queue in a [`Batcher`], which
//! bounds what waits (by cost: rows or tokens), shares the device between clients by weight,
//! respects deadlines and puts sequences of similar length together. It has no clock, no thread
//! and no I/O: time is an argument, decisions are return values, and the shell around it owns
//! sockets and the device. The same calls in the same order give the same decisions.
//!
//! | part | what it holds |
//! |---|---|
//! | [`Config`] | the bounds, checked once |
//! | [`Batcher`] | admission, cancellation, expiry, forming |
//! | [`Prioritised`] | clients of three priorities, a [`Batcher`] for each |
//! | [`Refusal`] | why a request was not admitted, and when to try again |
//! | [`Formed`], [`Batch`] | what [`Batcher::form`] decided |
//! | `invariants` | what every schedule must satisfy, checked while it runs |
//! | `sim` | a simulated device and clients, in simulated time |
//!
//! The last two are for tests and simulations, and there with the feature `testing` only.
//!
//! # The life of a request
//!
//! [`Batcher::admit`] returns a [`Ticket`] or hands the payload back with a [`Refusal`]. Every
//! ticket then gets exactly one outcome: it is launched (in [`Batch::items`]), it expires (returned
//! by [`Batcher::expire`] or in [`Formed::expired`]), or it is cancelled ([`Batcher::cancel`]
//! returns the payload). A batch has no members until it is launched: up to that moment a more
//! urgent arrival may still take a place, and cancelled or expired work still leaves.
//!
//! # Fairness
//!
//! Clients share the device by deficit round robin (M. Shreedhar and G. Varghese, "Efficient Fair
//! Queueing using Deficit Round Robin", SIGCOMM 1995). In every round each client with queued work
//! gains `quantum * weight` of credit and launches what its credit pays for; the rest is kept for
//! the next round, and lost when its queue empties. The quantum is 1/64 of a batch, so a batch
//! usually spans many rounds and carries work of everyone who waits.
//!
//! The bound, tested in `tests/scheduler/fairness.rs`: take a request of client *i*, and let `S_i`
//! be the cost that *i* launches from its admission to its own launch, itself included. In that
//! time any other client *j* launches at most
//!
//! ```text
//! (w_j / w_i) * S_i  +  2 * quantum * w_j  +  C_j
//! ```
//!
//! with `w` the weights and `C_j` the cost of *j*'s largest request: *j*'s fair share, and less
//! than a batch beside it for weights up to 16 and `C_j` up to half a batch. Proof: grants go
//! round by round, so *j* has at most one more than *i*, whose head start (below) is not counted;
//! before its last grant *i* had not yet spent all it was given, so it had at most
//! `S_i / (quantum * w_i) + 1` grants; and *j* cannot spend more than its grants and what it had
//! left, which is less than `C_j`. Where *i* itself withdraws work (cancelled, expired), `S_i`
//! grows by `C_i`.
//!
//! All others together launch at most the sum of this over those that launch anything: their fair
//! share, and on top of it up to a request of each. The latter does not shrink to one batch. Where
//! 63 clients hold a full batch each, their credit matures in the same round, and that round lasts
//! 63 batches; what a client comes to ask for in it, and what its next grant would pay for, waits.
//!
//! What does not wait is a newcomer's first quantum. A client whose queue was empty has a **head
//! start**: `quantum * weight` of credit ahead of everyone's turn in the round under way (or the
//! next, if none is). While a request is queued for which `S_i` is within the head start, all others
//! *together* launch at most
//!
//! ```text
//! max_batch_cost  -  S_i
//! ```
//!
//! so that it rides in the next batch, if *i* withdraws nothing meanwhile. Proof: those with a head
//! start go first in every batch, and what they were given in a round comes to a batch at most, so
//! all of them fit in the next. A
//! client that had a grant in the round, leaves and comes back within it has no second one, so
//! coming and going gains nothing. Once a round's head starts are given out, newcomers have their
//! turn in the next round: ever new names cannot keep a round from its end. (Both bounds are those
//! without length grouping.)
//!
//! Within a client the first due goes first. A request is due at its deadline, or when it is older
//! than [`Config::age_guard`] if that comes earlier or it has no deadline. So a near deadline goes
//! before work that can wait, and nothing goes before a request for longer than the guard but what
//! was due before it: a client's stream of urgent work cannot starve its other work, with deadlines
//! or without, and a flood without deadlines cannot starve the dated. What the order cannot do is
//! make up for a backlog: where a client queues more than the device does for it within the guard,
//! its older work is due before a deadline that comes now, and that may expire.
//!
//! # A target latency
//!
//! With [`Config::target_latency`] batches and what may wait are kept as small as a request needs that
//! comes at the worst moment, just after a launch: the target is then held for whatever is admitted,
//! and the rest is refused. See `target.rs`.
//!
//! # Similar lengths together
//!
//! The first request of a batch fixes which lengths may join it ([`Config::max_length_ratio`]). A
//! client none of whose requests fit is passed over: it keeps gaining credit, up to one batch times
//! its weight, and leads a later batch, first passed over first. A request older than the age
//! guard joins any batch.
//!
//! # Example
//!
//! ```
//! use std::time::Duration;
//! use stillhouse_batcher::{Batcher, Config, Forming, Request};
//!
//! let config = Config { max_batch_cost: 64, max_wait: Duration::from_millis(2), ..Config::default() };
//! let mut batcher = Batcher::new(config)?;
//! let start = Duration::ZERO;
//! let ticket = batcher
//!     .admit(start, Request::new("student-1", 32, "32 rows"))
//!     .map_err(|(refusal, _payload)| refusal)?;
//!
//! // Half a batch: worth waiting a little for company.
//! let Forming::Wait(until) = batcher.form(start).decision else { unreachable!() };
//! assert_eq!(until, Duration::from_millis(2));
//!
//! // Nobody came.
//! let Forming::Launch(batch) = batcher.form(until).decision else { unreachable!() };
//! assert_eq!(batch.items[0].ticket, ticket);
//! batcher.completed(batch.cost, batch.cost, Duration::from_millis(5));
//! assert!(batcher.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod batcher;
mod config;
mod drr;
mod forming;
#[cfg(any(test, feature = "testing"))]
pub mod invariants;
mod length;
mod outcome;
mod priorities;
mod queue;
mod rate;
mod refusal;
mod request;
#[cfg(any(test, feature = "testing"))]
pub mod sim;
mod target;
mod weights;

pub use batcher::{Batcher, ClientStats};
pub use config::{Config, ConfigError};
pub use outcome::{Batch, Expired, Formed, Forming, LaunchReason, Launched};
pub use priorities::{PASSED_OVER, Prioritised, Priority};
pub use refusal::Refusal;
pub use request::{Request, Ticket};
pub use weights::{MAX_WEIGHT, MAX_WEIGHTED_CLIENTS, WeightError};

/// A moment, as the time since an epoch that the caller chooses. Never goes back between calls.
pub type Time = std::time::Duration;
