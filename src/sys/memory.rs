//! Giving memory back to the kernel.

/// Return what the allocator keeps of a burst (`malloc_trim(0)`). Takes tens of microseconds; for idle moments.
pub fn trim() {
    // SAFETY: malloc_trim may be called at any time by any thread; it takes the allocator's own locks.
    unsafe { libc::malloc_trim(0) };
}
