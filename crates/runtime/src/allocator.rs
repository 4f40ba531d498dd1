//! How the binaries' allocator is set.
//!
//! A training step allocates and frees the same large buffers again and again. An allocator that
//! gives freed pages back to the kernel pays for them with page faults, about a third of the step.

/// `mi_option_purge_delay` of mimalloc.h, the same in mimalloc 2 and 3; the bindings do not name it.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Lets mimalloc keep the pages that were freed. Call it first in a `main` whose global allocator
/// is mimalloc; elsewhere it changes nothing.
#[allow(unsafe_code)]
pub fn keep_freed_pages() {
    // SAFETY: `mi_option_set` stores a number in mimalloc's table of options, which is there from
    // the start of the process; the option's index is within that table.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
}
