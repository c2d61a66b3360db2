//! What the program does, seen from outside: one module per behavior.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod commands;
mod failed_vms;
mod fake_guest;
mod github_app;
mod github_client;
mod guest_calls;
// On Windows the program runs PowerShell from the system's folder only, where no test can put a stand-in.
#[cfg(unix)]
mod host;
mod hostile_clients;
mod http_server;
mod hyperv;
mod lifecycle;
mod metrics;
mod queue_shown;
mod restart;
mod routes;
mod scale_set;
mod settings;
mod status;
#[cfg_attr(not(unix), allow(dead_code, reason = "the tests of the host use some of it alone"))]
mod support;
mod webhook;
