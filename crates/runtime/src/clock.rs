//! The time: the machine's or, where a simulation runs its own, the simulation's.

use std::time::Instant;

/// Now, as tokio's timers have it.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
