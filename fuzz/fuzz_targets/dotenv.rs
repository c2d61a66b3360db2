//! A `.env` of any bytes is read, its faults have lines of their own and no
//! part of a value, and its settings are either loaded or refused with a reason.
#![no_main]

use hyperv_runner_pool::config::{Source, dotenv};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let parsed = dotenv::parse(bytes);
    let lines = bytes.len() + 1;
    for entry in &parsed.entries {
        assert!((1..=lines).contains(&entry.line));
        assert!(!entry.name.is_empty() && !entry.value.expose().contains('\n'));
    }
    for fault in &parsed.faults {
        assert!((1..=lines).contains(&fault.line) && !fault.problem.is_empty());
    }
    match Source::new([], std::env::temp_dir()).load_with(bytes) {
        Ok(loaded) => assert!(loaded.config.pool.size >= 1),
        Err(faults) => assert!(!faults.to_string().is_empty()),
    }
});
