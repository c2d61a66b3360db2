//! `check`: the settings, the host and GitHub.

use super::{Done, FAILED, print};
use crate::app;
use crate::config::Loaded;
use crate::hypervisor::host_check::{Finding, Severity};
use std::process::ExitCode;

pub(super) fn check(Loaded { config, warnings }: Loaded, json: bool) -> Done {
    let mut findings: Vec<Finding> = warnings.into_iter().map(Finding::warning).collect();
    findings.extend(app::check(&config));
    let text = if json {
        serde_json::json!({ "findings": findings }).to_string() + "\n"
    } else {
        findings.iter().map(|finding| format!("{finding}\n")).collect()
    };
    let printed = print(&text);
    let faults = findings.iter().any(|finding| finding.severity == Severity::Fault);
    Ok(if faults { ExitCode::from(FAILED) } else { printed })
}
