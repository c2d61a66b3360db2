//! A fixed pool of Hyper-V VMs as ephemeral GitHub Actions runners: each VM
//! registers with GitHub, runs exactly one job, is destroyed, and is replaced
//! by a fresh one.
//!
//! Dependencies between the modules point one way:
//! `main -> http, pool -> github, hypervisor -> config, secret`.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod app;
pub mod config;
pub mod date;
pub mod dotenv;
pub mod github;
pub mod http;
pub mod hypervisor;
pub mod logging;
pub mod pool;
pub mod secret;
