//! The C library's allocator: few arenas, and memory given back to the kernel.

/// Return what the allocator keeps of a burst (`malloc_trim(0)`). Takes tens of microseconds; for idle moments.
pub fn trim() {
    // SAFETY: malloc_trim may be called at any time by any thread; it takes the allocator's own locks.
    unsafe { libc::malloc_trim(0) };
}

/// Let the allocator make at most `arenas` arenas: each thread that contends for the heap gets one of its own,
/// up to eight per processor, and what is freed in one is of no use to the others. To be called before
/// threads are started; arenas that exist stay. `false` when the allocator refuses.
pub fn limit_arenas(arenas: u16) -> bool {
    // SAFETY: mallopt takes two integers and touches only the allocator's own state, which it locks.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, i32::from(arenas)) == 1 }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_allocator_takes_both() {
        assert!(super::limit_arenas(2));
        drop(vec![vec![1u8; 4096]; 4096]);
        super::trim();
    }
}
