//! Whether this host can run the pool: facts from `check-host.ps1`, turned
//! into findings that a person can act on.

use super::NOT_WINDOWS;
use super::identity::{mac_address, pool_tag};
use super::powershell::{PowerShell, Script};
use crate::config::{DiskMode, HyperVConfig, Isolation, PoolConfig};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::fmt;

/// What is set aside for each VM when disks are differencing: what a job
/// writes. GitHub's own runners promise 14 GB of free space to a job; most
/// jobs need far less.
const ALLOWANCE_PER_VM: u64 = 10 << 30;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// The pool can start, but may not work.
    Warning,
    /// No VM can be made.
    Fault,
}

/// One thing found out about the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// One sentence, with what to do if there is something to fix.
    pub text: String,
}

impl Finding {
    /// A finding that is as it should be.
    pub fn ok(text: impl Into<String>) -> Finding {
        Finding { severity: Severity::Ok, text: text.into() }
    }

    /// A finding that may keep the pool from working.
    pub fn warning(text: impl Into<String>) -> Finding {
        Finding { severity: Severity::Warning, text: text.into() }
    }

    /// A finding that keeps the pool from working.
    pub fn fault(text: impl Into<String>) -> Finding {
        Finding { severity: Severity::Fault, text: text.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Ok => "ok",
            Severity::Warning => "warning",
            Severity::Fault => "fault",
        };
        write!(f, "{severity:7}  {}", self.text)
    }
}

/// Checks the host. If it cannot even be checked, that is the one finding.
pub fn run(powershell: &PowerShell, settings: &HyperVConfig, pool: &PoolConfig) -> Vec<Finding> {
    let request = json!({
        "templatePath": settings.template_path.to_string_lossy(),
        "storagePath": settings.storage_path.to_string_lossy(),
        "switch": settings.switch,
        "host": settings.host(),
        "port": settings.port,
    });
    match powershell.run(Script::CHECK_HOST, &request, &[], None) {
        Ok(facts) => findings(&facts, settings, pool),
        Err(error) => vec![Finding::fault(match powershell.forbidding_policy() {
            Some(policy) => format!(
                "Group policy lets PowerShell run no script of the pool's ({policy}): have its execution policy \
                 set to RemoteSigned for this host."
            ),
            None => format!("The host cannot be checked: {error}"),
        })],
    }
}

/// The answer of `check-host.ps1`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HostFacts {
    /// The name and version of Windows; empty elsewhere.
    windows: String,
    elevated: bool,
    hyper_v_module: bool,
    /// `Running`, `Stopped` or another state of a service, or `missing`.
    hyper_v_service: String,
    /// `missing`, `unreadable`, `not-vhdx` or `ok`.
    template: String,
    template_bytes: u64,
    template_read_only: bool,
    /// `missing` or `ok`.
    storage: String,
    free_bytes: u64,
    switches: Vec<String>,
    switch_address: String,
    /// `Private`, `Internal`, `External` or `unknown`.
    switch_type: String,
    /// Whether a NAT of this host serves the switch; `None` if unknown.
    own_switch: Option<bool>,
    /// The MAC addresses that Hyper-V gives, 12 hex digits each; empty if unknown.
    mac_minimum: String,
    mac_maximum: String,
    /// Whether the hypervisor runs; `None` if unknown.
    hypervisor_present: Option<bool>,
    /// `allowed`, `blocked`, `off` or `unknown`.
    firewall: String,
    /// The host's memory; `None` if unknown.
    memory_bytes: Option<u64>,
    /// The host's logical processors; `None` if unknown.
    processors: Option<u32>,
}

fn findings(facts: &HostFacts, settings: &HyperVConfig, pool: &PoolConfig) -> Vec<Finding> {
    if facts.windows.is_empty() {
        return vec![Finding::fault(NOT_WINDOWS)];
    }
    let mut findings = vec![Finding::ok(format!("The host runs {}.", facts.windows))];
    findings.push(rights(facts));
    findings.extend(hyper_v(facts));
    findings.push(template(facts, settings));
    findings.extend(storage(facts, settings, pool));
    findings.extend(memory(facts, settings, pool));
    findings.extend(processors(facts, settings));
    // Without Hyper-V there are no switches to be found.
    if facts.hyper_v_module {
        findings.extend(switch(facts, settings));
        findings.extend(mac_range(facts, settings, pool));
    }
    findings.push(firewall(facts, settings));
    findings
}

fn rights(facts: &HostFacts) -> Finding {
    if facts.elevated {
        return Finding::ok("The pool runs as administrator.");
    }
    // Without rights Hyper-V does not refuse, but shows nothing.
    if facts.switches.is_empty() {
        return Finding::fault(
            "The pool does not run as administrator and Hyper-V shows it nothing: \
             start it from an elevated PowerShell.",
        );
    }
    Finding::warning(
        "The pool does not run as administrator: start it from an elevated PowerShell, \
         or make sure that its account is in the group Hyper-V Administrators and may write to the storage folder.",
    )
}

fn hyper_v(facts: &HostFacts) -> Vec<Finding> {
    let module = if facts.hyper_v_module {
        Finding::ok("The Hyper-V module for Windows PowerShell is installed.")
    } else {
        Finding::fault(
            "The Hyper-V module for Windows PowerShell is missing: run bootstrap.ps1 as administrator, \
             which enables Hyper-V with its management tools, and restart the host if it says so.",
        )
    };
    let service = match facts.hyper_v_service.as_str() {
        "Running" => Finding::ok("The Hyper-V service (vmms) is running."),
        "missing" => Finding::fault(
            "The Hyper-V service (vmms) is not installed: run bootstrap.ps1 as administrator, \
             which enables Hyper-V, and restart the host.",
        ),
        state => Finding::fault(format!(
            "The Hyper-V service (vmms) is not running but {state}: run `Start-Service vmms` as administrator."
        )),
    };
    let hypervisor = (facts.hypervisor_present == Some(false)).then(|| {
        Finding::fault(
            "The hypervisor does not run, so no VM can start: turn on virtualization in the firmware, run \
             `bcdedit /set hypervisorlaunchtype auto` as administrator, and restart the host.",
        )
    });
    [module, service].into_iter().chain(hypervisor).collect()
}

fn template(facts: &HostFacts, settings: &HyperVConfig) -> Finding {
    let path = settings.template_path.display();
    match facts.template.as_str() {
        "ok" if facts.template_read_only => Finding::ok(format!(
            "The template {path} is a VHDX of {} and read-only.",
            gib(facts.template_bytes)
        )),
        "ok" => Finding::ok(format!(
            "The template {path} is a VHDX of {}; the first VM's creation will mark it read-only.",
            gib(facts.template_bytes)
        )),
        "missing" => Finding::fault(format!(
            "The template {path} is missing: build it with Packer as the README says, \
             or set VM_TEMPLATE_PATH to where it is."
        )),
        "not-vhdx" => Finding::fault(format!(
            "The template {path} is not a VHDX file: set VM_TEMPLATE_PATH to the .vhdx that Packer has built."
        )),
        state => Finding::fault(format!(
            "The template {path} cannot be read ({state}): give the pool's account read access to it, \
             and stop any VM that uses the file itself."
        )),
    }
}

fn storage(facts: &HostFacts, settings: &HyperVConfig, pool: &PoolConfig) -> Vec<Finding> {
    let path = settings.storage_path.display();
    if facts.storage != "ok" {
        return vec![Finding::fault(format!(
            "The storage folder {path} is missing: create it, or set VM_STORAGE_PATH to one that exists."
        ))];
    }
    let (per_vm, what) = match settings.disk_mode {
        DiskMode::Differencing => (ALLOWANCE_PER_VM, "for what its job writes"),
        DiskMode::Copy => (facts.template_bytes, "for its copy of the template"),
    };
    let floor = pool.min_free_bytes;
    let needed = per_vm.saturating_mul(pool.size.into()).saturating_add(floor);
    let minimum = format!("MIN_FREE_GB={}", floor >> 30);
    let count = format!("POOL_SIZE={}, {} per VM {what}, {minimum}", pool.size, gib(per_vm));
    let free = gib(facts.free_bytes);
    // Never a fault: disks that a former run has left may be what takes the
    // space, and only a pool that starts can adopt or remove them.
    let space = if facts.free_bytes < floor {
        Finding::warning(format!(
            "The volume of the storage folder {path} has {free} free, less than {minimum}, so no VM is made: \
             free some space, lower MIN_FREE_GB, or set VM_STORAGE_PATH to another volume."
        ))
    } else if facts.free_bytes >= needed {
        Finding::ok(format!("The volume of the storage folder {path} has {free} free ({count})."))
    } else {
        Finding::warning(format!(
            "The volume of the storage folder {path} has {free} free, but {} may be needed ({count}): \
             free some space, lower POOL_SIZE, or set VM_STORAGE_PATH to another volume.",
            gib(needed)
        ))
    };
    vec![Finding::ok(format!("The storage folder {path} is there.")), space]
}

fn memory(facts: &HostFacts, settings: &HyperVConfig, pool: &PoolConfig) -> Option<Finding> {
    let (setting, per_vm) = match settings.memory_max_mb {
        Some(maximum) => ("VM_MEMORY_MAX_MB", maximum),
        None => ("VM_MEMORY_MB", settings.memory_mb),
    };
    let total = facts.memory_bytes?;
    let needed = (per_vm << 20).saturating_mul(pool.size.into());
    let count = format!("POOL_SIZE={}, {setting}={per_vm}", pool.size);
    // All of it would leave nothing for Windows.
    Some(if needed < total {
        Finding::ok(format!(
            "The host has {} of memory, and all VMs take at most {} ({count}).",
            gib(total),
            gib(needed)
        ))
    } else {
        Finding::warning(format!(
            "The host has {} of memory, but all VMs together may take {} ({count}), and Windows needs some too: \
             lower POOL_SIZE or {setting}.",
            gib(total),
            gib(needed)
        ))
    })
}

fn processors(facts: &HostFacts, settings: &HyperVConfig) -> Option<Finding> {
    let (there, wanted) = (facts.processors?, settings.cpu_count);
    Some(if wanted <= there {
        Finding::ok(format!("The host has {there} logical processors (VM_CPU_COUNT={wanted})."))
    } else {
        Finding::warning(format!(
            "VM_CPU_COUNT={wanted}, but the host has only {there} logical processors, \
             and Hyper-V may not start such a VM: set VM_CPU_COUNT to {there} or less."
        ))
    })
}

fn switch(facts: &HostFacts, settings: &HyperVConfig) -> Vec<Finding> {
    let name = &settings.switch;
    // Hyper-V finds switches without regard to case.
    if !facts.switches.iter().any(|switch| switch.to_lowercase() == name.to_lowercase()) {
        let fix = if facts.switches.is_empty() {
            "there is none; make one in Hyper-V Manager or with New-VMSwitch".to_owned()
        } else {
            format!("set VM_SWITCH to one that exists ({})", facts.switches.join(", "))
        };
        return vec![Finding::fault(format!("The virtual switch '{name}' does not exist: {fix}."))];
    }
    let address = match (settings.orchestrator_ip, facts.switch_address.as_str()) {
        (Some(ip), _) => Finding::ok(format!("VMs are told to reach the pool at {ip} (ORCHESTRATOR_IP).")),
        (None, "") => Finding::fault(format!(
            "The host has no IPv4 address on the virtual switch '{name}': set ORCHESTRATOR_IP to an address \
             at which VMs reach this host, or let the host share the switch (an internal switch or the Default Switch)."
        )),
        (None, address) => {
            Finding::ok(format!("VMs reach the pool at {address}, the host's address on the switch."))
        }
    };
    // The Default Switch has a NAT that Get-NetNat does not show.
    let bare = facts.own_switch == Some(false)
        && facts.switch_type == "Internal"
        && !name.eq_ignore_ascii_case("Default Switch");
    let switch = if bare {
        Finding::warning(format!(
            "The virtual switch '{name}' is internal, and no NAT of this host serves it (Get-NetNat), so VMs may have \
             no address and no way to GitHub: make one with New-NetNat, or set VM_SWITCH to another switch."
        ))
    } else {
        Finding::ok(format!("The virtual switch '{name}' exists."))
    };
    vec![switch, address, walls(facts, settings)]
}

fn walls(facts: &HostFacts, settings: &HyperVConfig) -> Finding {
    let (isolation, on) = match settings.isolation {
        Isolation::Auto => ("auto", facts.own_switch == Some(true)),
        Isolation::On => ("on", true),
        Isolation::Off => ("off", false),
    };
    Finding::ok(if on {
        format!("VMs are walled off from each other, this host and its networks (VM_ISOLATION={isolation}).")
    } else {
        format!("VMs are not walled off (VM_ISOLATION={isolation}): jobs reach whatever the switch reaches.")
    })
}

fn mac_range(facts: &HostFacts, settings: &HyperVConfig, pool: &PoolConfig) -> Option<Finding> {
    let tag = pool_tag(&settings.storage_path).ok()?;
    let given = facts.mac_minimum.to_uppercase()..=facts.mac_maximum.to_uppercase();
    let (slot, mac) =
        (1..=pool.size).map(|slot| (slot, mac_address(&tag, slot))).find(|(_, mac)| given.contains(mac))?;
    Some(Finding::warning(format!(
        "Hyper-V may give {mac}, the MAC address of slot {slot}, to another VM: let it give addresses that begin with \
         00155D again (Set-VMHost -MacAddressMinimum, -MacAddressMaximum)."
    )))
}

fn firewall(facts: &HostFacts, settings: &HyperVConfig) -> Finding {
    let port = settings.port;
    match facts.firewall.as_str() {
        "allowed" => Finding::ok(format!("The firewall lets VMs reach port {port}.")),
        "off" => Finding::ok(format!("The firewall is off, so VMs can reach port {port}.")),
        // As far as the rules tell; other software can have its own.
        "blocked" => Finding::warning(format!(
            "No firewall rule lets VMs reach port {port}, so they may not get their configuration: \
             run bootstrap.ps1 as administrator, which adds a rule for this port."
        )),
        _ => Finding::warning(format!(
            "Whether the firewall lets VMs reach port {port} could not be found out: \
             if VMs stay in booting, run bootstrap.ps1 as administrator, which adds a rule for this port."
        )),
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / (1_u64 << 30) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;
    use serde_json::Value;

    fn settings() -> HyperVConfig {
        let source = Source::new([], std::env::current_dir().unwrap());
        let usual = source.load_with(b"USE_MOCK=true").unwrap().config.hyperv;
        HyperVConfig { template_path: r"C:\p\t.vhdx".into(), storage_path: r"C:\p\storage".into(), ..usual }
    }

    fn pool() -> PoolConfig {
        PoolConfig { size: 4, min_free_bytes: 10 << 30, ..PoolConfig::default() }
    }

    fn good_reply() -> Value {
        serde_json::json!({
            "ok": true, "windows": "Windows Server 2022", "elevated": true, "hyperVModule": true,
            "hyperVService": "Running", "template": "ok", "templateBytes": 21474836480_u64,
            "templateReadOnly": true, "storage": "ok", "freeBytes": 107374182400_u64,
            "switches": ["Default Switch", "LAN"], "switchAddress": "172.20.0.1", "firewall": "allowed",
            "switchType": "Internal", "ownSwitch": false, "macMinimum": "00155D000700", "macMaximum": "00155D0007FF",
            "hypervisorPresent": true,
            "memoryBytes": 34359738368_u64, "processors": 8,
        })
    }

    fn good() -> HostFacts {
        serde_json::from_value(good_reply()).unwrap()
    }

    /// The findings that are not Ok.
    fn complaints(facts: &HostFacts, settings: &HyperVConfig) -> Vec<Finding> {
        findings(facts, settings, &pool())
            .into_iter()
            .filter(|finding| finding.severity != Severity::Ok)
            .collect()
    }

    /// What one wrong fact leads to: exactly one complaint.
    fn complaint(spoil: impl FnOnce(&mut HostFacts, &mut HyperVConfig)) -> Finding {
        let (mut facts, mut settings) = (good(), settings());
        spoil(&mut facts, &mut settings);
        let mut complaints = complaints(&facts, &settings);
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        complaints.remove(0)
    }

    fn is(finding: Finding, severity: Severity, words: &[&str]) {
        assert_eq!(finding.severity, severity, "{finding}");
        for word in words {
            assert!(finding.text.contains(word), "{word} in {finding}");
        }
    }

    #[test]
    fn a_good_host_has_no_complaints() {
        assert_eq!(complaints(&good(), &settings()), []);
        assert_eq!(findings(&good(), &settings(), &pool()).len(), 13);
    }

    #[test]
    fn elsewhere_than_on_windows_the_only_finding_is_that() {
        let facts = HostFacts { windows: String::new(), elevated: false, ..good() };
        let all = findings(&facts, &settings(), &pool());
        assert_eq!(all, [Finding::fault(NOT_WINDOWS)]);
        assert!(all[0].text.contains("USE_MOCK=true"));
    }

    #[test]
    fn without_rights_the_pool_is_told_to_run_elevated() {
        is(complaint(|f, _| f.elevated = false), Severity::Warning, &["elevated", "Hyper-V Administrators"]);
        let facts = HostFacts { elevated: false, switches: Vec::new(), ..good() };
        is(complaints(&facts, &settings()).remove(0), Severity::Fault, &["elevated"]);
    }

    #[test]
    fn hyper_v_that_is_not_there_or_not_running_is_a_fault() {
        is(complaint(|f, _| f.hyper_v_module = false), Severity::Fault, &["module", "bootstrap.ps1"]);
        is(complaint(|f, _| f.hyper_v_service = "missing".into()), Severity::Fault, &["bootstrap.ps1"]);
        is(
            complaint(|f, _| f.hyper_v_service = "Stopped".into()),
            Severity::Fault,
            &["Stopped", "Start-Service vmms"],
        );
    }

    #[test]
    fn a_template_that_cannot_serve_is_a_fault_that_names_it() {
        for (state, word) in
            [("missing", "VM_TEMPLATE_PATH"), ("not-vhdx", "VHDX"), ("unreadable", "read access")]
        {
            is(complaint(|f, _| f.template = state.into()), Severity::Fault, &[word, r"C:\p\t.vhdx"]);
        }
    }

    #[test]
    fn a_template_that_is_not_read_only_yet_is_fine() {
        assert_eq!(complaints(&HostFacts { template_read_only: false, ..good() }, &settings()), []);
    }

    #[test]
    fn a_missing_storage_folder_is_a_fault() {
        is(
            complaint(|f, _| f.storage = "missing".into()),
            Severity::Fault,
            &[r"C:\p\storage", "VM_STORAGE_PATH"],
        );
    }

    #[test]
    fn too_little_space_for_the_whole_pool_is_a_warning() {
        is(
            complaint(|f, _| f.free_bytes = (50 << 30) - 1),
            Severity::Warning,
            &["50.0 GiB", "POOL_SIZE=4", "MIN_FREE_GB=10"],
        );
        assert_eq!(complaints(&HostFacts { free_bytes: 50 << 30, ..good() }, &settings()), []);
        let copy = HyperVConfig { disk_mode: DiskMode::Copy, ..settings() };
        let less = HostFacts { free_bytes: 89 << 30, ..good() };
        is(complaints(&less, &copy).remove(0), Severity::Warning, &["90.0 GiB", "copy"]);
    }

    #[test]
    fn space_below_the_floor_is_said_to_stop_the_pool() {
        is(
            complaint(|f, _| f.free_bytes = (10 << 30) - 1),
            Severity::Warning,
            &["less than MIN_FREE_GB=10", "no VM is made", "free some space"],
        );
    }

    #[test]
    fn vms_that_take_more_memory_than_the_host_has_are_a_warning() {
        is(
            complaint(|f, _| f.memory_bytes = Some(16 << 30)),
            Severity::Warning,
            &["16.0 GiB", "POOL_SIZE=4", "VM_MEMORY_MB=4096"],
        );
        is(
            complaint(|_, s| s.memory_max_mb = Some(16384)),
            Severity::Warning,
            &["32.0 GiB", "64.0 GiB", "VM_MEMORY_MAX_MB=16384"],
        );
    }

    #[test]
    fn a_vm_with_more_processors_than_the_host_is_a_warning() {
        is(complaint(|_, s| s.cpu_count = 9), Severity::Warning, &["VM_CPU_COUNT=9", "8 logical"]);
        assert_eq!(complaints(&good(), &HyperVConfig { cpu_count: 8, ..settings() }), []);
    }

    #[test]
    fn of_memory_and_processors_that_are_not_known_nothing_is_said() {
        let mut reply = good_reply();
        reply.as_object_mut().unwrap().retain(|fact, _| {
            !["memoryBytes", "processors", "hypervisorPresent", "ownSwitch"].contains(&fact.as_str())
        });
        let facts: HostFacts = serde_json::from_value(reply).unwrap();
        assert_eq!(complaints(&facts, &settings()), []);
        assert_eq!(findings(&facts, &settings(), &pool()).len(), 11);
    }

    #[test]
    fn an_unknown_switch_is_a_fault_that_names_those_there_are() {
        is(complaint(|_, s| s.switch = "Wan".into()), Severity::Fault, &["'Wan'", "Default Switch, LAN"]);
        is(complaint(|f, _| f.switches.clear()), Severity::Fault, &["New-VMSwitch"]);
        let facts = HostFacts { own_switch: Some(true), ..good() };
        assert_eq!(complaints(&facts, &HyperVConfig { switch: "lan".into(), ..settings() }), []);
    }

    #[test]
    fn a_host_without_an_address_on_the_switch_needs_orchestrator_ip() {
        is(complaint(|f, _| f.switch_address.clear()), Severity::Fault, &["ORCHESTRATOR_IP"]);
        let told = HyperVConfig { orchestrator_ip: Some("10.0.0.1".parse().unwrap()), ..settings() };
        assert_eq!(complaints(&HostFacts { switch_address: String::new(), ..good() }, &told), []);
    }

    #[test]
    fn an_internal_switch_without_nat_is_a_warning_unless_windows_made_it() {
        let own = |switch: &str| HyperVConfig { switch: switch.into(), ..settings() };
        is(complaints(&good(), &own("LAN")).remove(0), Severity::Warning, &["'LAN'", "New-NetNat"]);
        assert_eq!(complaints(&HostFacts { own_switch: Some(true), ..good() }, &own("LAN")), []);
        assert_eq!(complaints(&HostFacts { switch_type: "External".into(), ..good() }, &own("LAN")), []);
    }

    #[test]
    fn whether_vms_are_walled_off_is_told() {
        for (isolation, own, words) in [
            (Isolation::Auto, Some(true), "walled off from each other"),
            (Isolation::On, Some(false), "walled off from each other"),
            (Isolation::Auto, Some(false), "not walled off (VM_ISOLATION=auto)"),
            (Isolation::Auto, None, "not walled off (VM_ISOLATION=auto)"),
            (Isolation::Off, Some(true), "not walled off (VM_ISOLATION=off)"),
        ] {
            let facts = HostFacts { own_switch: own, ..good() };
            let told = walls(&facts, &HyperVConfig { isolation, ..settings() }).text;
            assert!(told.contains(words), "{told}");
        }
    }

    #[test]
    fn a_hypervisor_that_does_not_run_is_a_fault() {
        is(complaint(|f, _| f.hypervisor_present = Some(false)), Severity::Fault, &["firmware", "bcdedit"]);
    }

    #[test]
    fn a_host_that_may_give_a_slots_mac_address_away_is_a_warning() {
        let spoil = |f: &mut HostFacts, _: &mut HyperVConfig| {
            (f.mac_minimum, f.mac_maximum) = ("0A0000000000".into(), "0AFFFFFFFFFF".into());
        };
        is(complaint(spoil), Severity::Warning, &["slot 1", "00155D"]);
    }

    #[test]
    fn a_closed_or_unknown_firewall_is_a_warning() {
        for state in ["blocked", "unknown", "?"] {
            is(complaint(|f, _| f.firewall = state.into()), Severity::Warning, &["8080", "bootstrap.ps1"]);
        }
        assert_eq!(complaints(&HostFacts { firewall: "off".into(), ..good() }, &settings()), []);
    }
}
