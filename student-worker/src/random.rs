//! Which stream of the random generator belongs to what.
//!
//! A stream is chosen by a number; two uses of one number under one seed would be correlated. The
//! upper 16 bits name the use, the lower 48 count (epochs, steps). The model's own initialisation
//! and dropout use streams with the upper bits 0.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

const USE_SHIFT: u32 = 48;
const COUNT_MASK: u64 = (1 << USE_SHIFT) - 1;

/// Which rows a subset of the training set takes.
pub(crate) const SUBSET: u64 = 1 << USE_SHIFT;
/// Jitter of retries, under a seed from [`entropy`]: it decides when something is sent, never what
/// is answered.
pub(crate) const JITTER: u64 = 4 << USE_SHIFT;

/// A seed that differs in every process, for what the results do not depend on: students of one
/// sweep share a recipe's seed, and must not come back to a teacher in the same moment.
pub(crate) fn entropy() -> u64 {
    // The standard library keys its hash maps from the operating system's generator.
    RandomState::new().build_hasher().finish()
}

/// The order of rows in an epoch.
pub(crate) fn shuffle(epoch: u64) -> u64 {
    2 << USE_SHIFT | epoch & COUNT_MASK
}

/// The seeds of the draws that the teacher makes for a request, counted over the whole run.
pub(crate) fn teacher_draws(request: u64) -> u64 {
    3 << USE_SHIFT | request & COUNT_MASK
}

/// Whether a step is on samples of the student's own, and how these are drawn.
pub(crate) fn on_policy(step: u64) -> u64 {
    6 << USE_SHIFT | step & COUNT_MASK
}

/// What is done to the images of an epoch; each row has words of its own in it.
pub(crate) fn augment(epoch: u64) -> u64 {
    5 << USE_SHIFT | epoch & COUNT_MASK
}
