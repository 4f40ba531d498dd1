//! What a `main` sets first, for speed.

use std::{env, time::Duration};

/// `mi_option_purge_delay` of mimalloc.h, the same in mimalloc 2 and 3; the bindings do not name it.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Threads of candle's own pool.
const CANDLE_THREADS: &str = "CANDLE_NUM_THREADS";

/// Lets mimalloc keep the pages that were freed for a time, or for good, where it is the global
/// allocator.
///
/// A training step allocates and frees the same large buffers again and again. An allocator that
/// gives freed pages back to the kernel at once pays for them with page faults, about a third of the
/// step. A server gives them back once its load has changed.
#[allow(unsafe_code)]
pub fn keep_freed_pages(time: Option<Duration>) {
    let milliseconds = time.map_or(-1, |time| i64::try_from(time.as_millis()).unwrap_or(i64::MAX));
    // SAFETY: `mi_option_set` stores a number in mimalloc's table of options, which is there from
    // the start of the process; the option's index is within that table.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, milliseconds as _) };
}

/// Has the kernel back this process with pages of 4 KiB alone, where it would use huge ones
/// (`prctl(2)`, `PR_SET_THP_DISABLE`).
///
/// mimalloc asks for huge pages, and the kernel makes them of 2 MiB that are used here and there, minutes
/// after they were: a server's memory rises by half, in steps, although it holds no more than before. To be
/// called first in `main`. Where the kernel refuses, all stays as it is.
#[cfg_attr(target_os = "linux", allow(unsafe_code))]
pub fn no_huge_pages() {
    #[cfg(target_os = "linux")]
    // SAFETY: with these arguments prctl reads and writes no memory of this process.
    unsafe {
        libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0);
    }
}

/// Gives candle's own thread pool a single thread, unless the environment says otherwise.
///
/// The work is in this project's kernels, which have a pool of their own; candle's only adds small
/// gradients, and its threads spin while they wait for one another, on cores that others need.
///
/// To be called first in `main`, while the process has one thread.
#[allow(unsafe_code)]
pub fn quiet_candle_threads() {
    if env::var_os(CANDLE_THREADS).is_none() {
        // SAFETY: no other thread runs yet, so none reads the environment at the same time.
        unsafe { env::set_var(CANDLE_THREADS, "1") };
    }
}
