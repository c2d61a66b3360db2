//! Any bytes on a connection: answers that are whole, no panic of a handler,
//! and nothing changed, since no signature or secret can be right.
#![no_main]

#[path = "../server.rs"]
mod server;

use hyperv_runner_pool::pool::slot::types::Phase;
use libfuzzer_sys::fuzz_target;
use server::{SERVER, exchange};

fuzz_target!(|bytes: &[u8]| {
    for status in exchange(bytes) {
        assert!((100..=599).contains(&status), "{status}");
        assert_ne!(status, 500);
    }
    let snapshot = SERVER.pool.snapshot();
    assert_eq!((snapshot.count(Phase::Booting), snapshot.jobs_waiting), (1, 0));
});
