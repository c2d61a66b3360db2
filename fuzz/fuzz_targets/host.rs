//! Whatever a script writes, and whatever the Notes of the host's VMs hold: it
//! is read without a panic, a VM of another pool or without this pool's mark is
//! never taken for this pool's, and a secret is not shown.
#![no_main]

use hyperv_runner_pool::config::{DiskMode, HyperVConfig};
use hyperv_runner_pool::hypervisor::VmId;
use hyperv_runner_pool::hypervisor::hyperv::HyperV;
use hyperv_runner_pool::hypervisor::powershell::PowerShell;
use hyperv_runner_pool::hypervisor::powershell::reply::quote;
use hyperv_runner_pool::secret::Secret;
use libfuzzer_sys::fuzz_target;
use serde_json::json;
use std::sync::{Arc, LazyLock};

const POOL: &str = "/p/vms/storage";

static HYPERV: LazyLock<HyperV> = LazyLock::new(|| {
    let settings = HyperVConfig {
        template_path: "/p/vms/template.vhdx".into(),
        storage_path: POOL.into(),
        disk_mode: DiskMode::Differencing,
        memory_mb: 4096,
        memory_max_mb: None,
        cpu_count: 2,
        switch: "Default Switch".into(),
        secure_boot: "MicrosoftWindows".into(),
        nested_virtualization: false,
        orchestrator_ip: None,
        port: 8080,
    };
    let powershell = PowerShell::new("/bin/false".into()).expect("the scripts can be written");
    HyperV::new(settings, Arc::new(powershell)).expect("the paths are Unicode")
});

fuzz_target!(|input: (&str, &str, &str, &str)| {
    let (output, name, notes, disk) = input;
    let secret = Secret::new("0123456789abcdef0123456789abcdef");
    let shown = quote(&secret.redact(&format!("{output}{}{notes}", secret.expose())));
    assert!(!shown.contains(secret.expose()));
    _ = HYPERV.inventory_of(output);

    let list = json!({
        "ok": true,
        "vms": [{"name": name, "state": "Running", "uptimeSeconds": 1, "notes": notes, "disks": [disk]}],
        "disks": [disk],
    });
    let inventory = HYPERV.inventory_of(&list.to_string()).expect("the list is as agreed");
    for vm in inventory.vms {
        assert_eq!(vm.id.name, name);
        assert_eq!(VmId::from_disk_file_name(&vm.id.disk_file_name()), Some(vm.id));
        match vm.notes {
            Some(notes) => assert_eq!(notes.pool.trim_end_matches('/'), POOL),
            None => assert!(disk.starts_with(POOL) || notes.contains("pool")),
        }
    }
    for vm in inventory.disks {
        assert_eq!(vm.disk_file_name(), disk);
    }
});
