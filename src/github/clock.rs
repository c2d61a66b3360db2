//! The clock of the GitHub client.

use std::time::{Duration, Instant, SystemTime};

/// What the client needs of time, so that tests need not wait. As it is, the
/// machine's own.
pub trait Clock: Send + Sync {
    /// Time for measuring: never goes back.
    fn now(&self) -> Instant {
        Instant::now()
    }

    /// Time of day, which may be set by hand: for comparing with GitHub's and for showing.
    fn utc(&self) -> SystemTime {
        SystemTime::now()
    }

    /// Waits.
    fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// The clock of the machine.
pub(super) struct SystemClock;

impl Clock for SystemClock {}
