//! A file is taken for a VM's disk only if the VM would have named it so.
#![no_main]

use hyperv_runner_pool::hypervisor::VmId;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|name: &str| {
    if let Some(vm) = VmId::from_disk_file_name(name) {
        assert_eq!(vm.disk_file_name(), name);
        assert!(!vm.name.is_empty() && vm.incarnation.len() == 16);
    }
});
