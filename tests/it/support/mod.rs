//! What the tests share: fakes of the systems outside, the pool over them, an HTTP client, and how to wait.

pub mod delivery;
pub mod fake_github;
pub mod fake_guest;
pub mod fake_host;
#[cfg(unix)]
pub mod host_pool;
pub mod http;
pub mod mock_pool;
pub mod process;

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Waits until something holds, and fails the test if it does not within four minutes: more than a machine with much
/// else to do needs.
#[track_caller]
pub fn wait_until(what: &str, holds: impl FnMut() -> bool) {
    wait_until_or(holds, || what.to_owned());
}

/// As [`wait_until`], for what takes more to explain.
#[track_caller]
pub fn wait_until_or(mut holds: impl FnMut() -> bool, explain: impl FnOnce() -> String) {
    let began = Instant::now();
    while !holds() {
        if began.elapsed() > Duration::from_secs(240) {
            panic!("waited in vain: {}", explain());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A port that nobody has. It is below the range from which systems give ports
/// to connections and to whoever asks for any, so that none of those takes it
/// while a pool is down between two starts.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(97) % 20_000;
    for _ in 0..1000 {
        let port = 10_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        let port = u16::try_from(port).unwrap();
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
}

/// The next of a fixed sequence of numbers that looks random.
pub fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 16
}
