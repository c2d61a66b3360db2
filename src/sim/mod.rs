//! The simulated world behind `USE_MOCK=true`, the tests and the benches: a
//! GitHub that hands out jobs, and VMs whose guests speak the real protocol.

pub mod github;
pub mod hypervisor;
