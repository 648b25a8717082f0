//! Memory that was freed and that the C library keeps for later: a trainer whose passes take hundreds of megabytes gives it back before
//! something else needs room.

/// Gives freed memory back to the system, where the C library is glibc. Takes a few milliseconds; what is allocated next costs page faults.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: touches free memory only; glibc locks its arenas (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}
