//! An allocator that counts what each thread asks it for.

#![allow(dead_code, unsafe_code, reason = "each test uses its own part")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

struct Counting;

thread_local! {
    /// In all: freed memory is not taken off again.
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
    /// Held now. A thread may free what another one allocated, so it may be below 0.
    static HELD: Cell<isize> = const { Cell::new(0) };
    /// The most that was held since the last reset.
    static MOST_HELD: Cell<isize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator as it is; the counts are beside it, in cells
// that need neither allocation nor a destructor. `realloc` is the provided one, which makes a new
// allocation before it frees the old: as much as any allocator may hold at once.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.set(ALLOCATED.get() + layout.size());
        let held = HELD.get() + layout.size() as isize;
        HELD.set(held);
        MOST_HELD.set(MOST_HELD.get().max(held));
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.set(HELD.get() - layout.size() as isize);
        // SAFETY: as above; `pointer` came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What `work` returns, and the bytes it allocates in all.
pub(crate) fn allocated<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = ALLOCATED.get();
    let result = work();
    (result, ALLOCATED.get() - before)
}

/// What `work` returns, and the most bytes beyond those held before that it holds at once.
pub(crate) fn most_held<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    MOST_HELD.set(before);
    let result = work();
    (result, (MOST_HELD.get() - before).max(0) as usize)
}

/// The allocator does count: otherwise bounds on it would hold of anything.
#[test]
fn allocations_are_counted() {
    let work = || {
        for _ in 0..10 {
            drop(std::hint::black_box(vec![0_u8; 1000]));
        }
    };
    let ((), all) = allocated(work);
    assert!((10_000..11_000).contains(&all), "{all}");
    let ((), most) = most_held(work);
    assert!((1000..2000).contains(&most), "{most}");
}
