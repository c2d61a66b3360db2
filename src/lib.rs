//! A fixed pool of Hyper-V VMs as ephemeral GitHub Actions runners: each VM
//! registers with GitHub, runs exactly one job, is destroyed, and is replaced
//! by a fresh one.
//!
//! | module | what it is |
//! |---|---|
//! | [`commands`] | the command line: the table of commands, and what each does |
//! | [`service`] | the pool as a Windows service |
//! | [`app`] | the parts put together: what `commands` and the service run |
//! | [`http`] | webhooks from GitHub, calls from the VMs, health; [`http::server`] speaks HTTP |
//! | [`workers`] | the threads around the pool's state: one per slot, and the monitor |
//! | [`pool`] | what decides, without I/O, threads or a clock |
//! | [`sim`] | the simulated GitHub and VMs of `USE_MOCK`, the tests and the benches |
//! | [`hypervisor`] | Hyper-V through PowerShell, and the check of the host |
//! | [`github`] | the REST client |
//! | [`config`] | the settings |
//! | [`control`] | the file by which a command finds the running pool |
//! | [`secret`], [`vm_key`], [`private_key`] | values that are never shown, and the keys made from them; the pool's own key; that of a GitHub App |
//! | [`logging`], `event_log`, [`repeats`] | the log, Windows' own, and what keeps both from being flooded |
//! | [`date`], `text`, `registry`, `private_folder` | the little that is needed of a calendar; text from outside as it may be shown; values in Windows' registry; a folder that others cannot open |
//!
//! Dependencies between the modules point one way:
//! `main -> commands -> service -> app -> http -> workers -> pool, sim -> hypervisor -> github -> config -> secret, private_key, date`.
//! See `docs/ARCHITECTURE.md`.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod app;
pub mod commands;
pub mod config;
pub mod control;
pub mod date;
#[cfg(windows)]
mod event_log;
pub mod github;
pub mod http;
pub mod hypervisor;
pub mod logging;
pub mod pool;
mod private_folder;
pub mod private_key;
#[cfg(windows)]
mod registry;
pub mod repeats;
pub mod secret;
pub mod service;
pub mod sim;
mod sync;
mod text;
pub mod vm_key;
pub mod workers;
