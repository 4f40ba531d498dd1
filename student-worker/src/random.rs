//! Which stream of the random generator belongs to what.
//!
//! A stream is chosen by a number; two uses of one number under one seed would be correlated. The
//! upper 16 bits name the use, the lower 48 count (epochs, steps). The model's own initialisation
//! and dropout use streams with the upper bits 0.

const USE_SHIFT: u32 = 48;
const COUNT_MASK: u64 = (1 << USE_SHIFT) - 1;

/// Which rows a subset of the training set takes.
pub(crate) const SUBSET: u64 = 1 << USE_SHIFT;
/// Jitter of retries: what it draws changes when something is sent, never what is answered.
pub(crate) const JITTER: u64 = 4 << USE_SHIFT;

/// The order of rows in an epoch.
pub(crate) fn shuffle(epoch: u64) -> u64 {
    2 << USE_SHIFT | epoch & COUNT_MASK
}

/// The seeds of the draws that the teacher makes for a request, counted over the whole run.
pub(crate) fn teacher_draws(request: u64) -> u64 {
    3 << USE_SHIFT | request & COUNT_MASK
}
