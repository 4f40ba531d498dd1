//! What the scheduler promises, over random schedules and in simulated time. The promises
//! themselves are written in `stillhouse_batcher::invariants`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod admission;
mod fairness;
mod flooding;
mod latency;
mod outcomes;
mod schedule;
mod starvation;
mod waiting;
