//! Whatever a script writes, and whatever the Notes of the host's VMs hold: it
//! is read without a panic, a VM of another pool or without this pool's mark is
//! never taken for this pool's, and a secret is not shown.
#![no_main]

use hyperv_runner_pool::config::{HyperVConfig, Source};
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
    let source = Source::new([], "/p".into());
    let usual = source.load_with(b"USE_MOCK=true").expect("nothing else is required").config.hyperv;
    let settings = HyperVConfig { storage_path: POOL.into(), ..usual };
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
        "unwritten": [],
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
