//! The simulated world behind `USE_MOCK=true`, the tests and the benches: a
//! GitHub that hands out jobs, and VMs whose guests speak the real protocol.

pub mod github;
pub mod hypervisor;

use std::time::Duration;

/// An HTTP client for this host alone.
fn loopback_agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(10)))
        .http_status_as_error(false)
        .proxy(None)
        .build()
        .into()
}
