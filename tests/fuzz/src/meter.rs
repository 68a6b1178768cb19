//! Counts what a thread allocates, so that a reader that takes too much is seen.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

struct Meter;

#[global_allocator]
static METER: Meter = Meter;

thread_local! {
    /// Bytes that this thread has and that it had at most since the last [`peak`] began.
    static BYTES: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

fn add(bytes: isize) {
    // A thread that is ending allocates uncounted.
    let _ = BYTES.try_with(|cell| {
        let (now, most) = cell.get();
        cell.set((now + bytes, most.max(now + bytes)));
    });
}

#[allow(unsafe_code)]
// SAFETY: everything is done by the system's allocator; this one only counts.
unsafe impl GlobalAlloc for Meter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size().cast_signed());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size().cast_signed());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        add(-layout.size().cast_signed());
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Old and new may be there together for a moment.
        add(size.cast_signed());
        add(-layout.size().cast_signed());
        unsafe { System.realloc(at, layout, size) }
    }
}

/// What `work` gives, and how many bytes more than before this thread had meanwhile.
pub fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let (before, _) = BYTES.get();
    BYTES.set((before, before));
    let done = work();
    let (_, most) = BYTES.get();
    (done, (most - before).max(0).cast_unsigned())
}

/// Runs `work`, which may have so many bytes more than before meanwhile.
///
/// # Panics
/// If it has more.
#[track_caller]
pub fn within<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let (done, most) = peak(work);
    assert!(most <= bytes, "{most} bytes allocated, {bytes} allowed");
    done
}
