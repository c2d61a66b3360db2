//! What several test files share.
#![allow(dead_code, reason = "no test file uses all of it")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod fake_github;
pub mod guest;
pub mod http;
pub mod mock_pool;
pub mod process;
pub mod standin;
#[cfg(unix)]
pub mod whole_pool;

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
