//! What several test files share.

pub mod fake_github;
pub mod fake_guest;
pub mod fake_host;
#[cfg(unix)]
pub mod host_pool;
pub mod http;
pub mod mock_pool;
pub mod process;

use std::time::{Duration, Instant};

/// Waits until something holds, and fails the test if it does not within a minute.
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(60), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
