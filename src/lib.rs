//! A fixed pool of Hyper-V VMs as ephemeral GitHub Actions runners: each VM
//! registers with GitHub, runs exactly one job, is destroyed, and is replaced
//! by a fresh one.
//!
//! | module | what it is |
//! |---|---|
//! | [`app`] | the parts put together: what `main` runs |
//! | [`pool`] | slots, their threads, the monitor; [`pool::slot`] and [`pool::book`] decide, without I/O |
//! | [`http`] | webhooks from GitHub, calls from the VMs, health; [`http::gate`] owns the connections |
//! | [`github`] | the REST client, and a simulated GitHub |
//! | [`hypervisor`] | Hyper-V through PowerShell, the check of the host, and simulated VMs |
//! | [`config`] | the settings |
//! | [`secret`] | values that are never shown, and the keys made from them |
//! | [`logging`], [`repeats`], [`date`] | the log, what keeps it from being flooded, and the little that is needed of a calendar |
//!
//! Dependencies between the modules point one way:
//! `main -> app -> http, pool -> github, hypervisor -> config, secret`.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod app;
pub mod config;
pub mod date;
pub mod github;
pub mod http;
pub mod hypervisor;
pub mod logging;
pub mod pool;
pub mod repeats;
pub mod secret;
pub mod sim;
pub mod workers;
