//! Locks that a dead thread does not spoil.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, also after a thread died with the lock: every change under a lock of
/// this program is one step, so what it guards is whole.
pub(crate) fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
