//! `cleanup`: removes all that the pool has made, while it does not run.

use super::{Done, PROGRAM, print};
use crate::app::{self, Failure};
use crate::config::{Intake, Loaded};
use crate::control;
use crate::github::client::Client;
use crate::github::scope::Scope;
use crate::github::{Error, GitHub, Removal};
use crate::hypervisor::hyperv::HyperV;
use crate::hypervisor::{Hypervisor, Power, identity};
use crate::pool::Rules;
use crate::pool::orphans::orphan_vms;
use crate::pool::recovery::union;
use crate::pool::slot::types::OrphanVm;
use crate::vm_key;
use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;

/// A registration of the pool.
struct Registration {
    scope: Scope,
    id: u64,
    name: String,
}

pub(super) fn cleanup(Loaded { config, .. }: Loaded, yes: bool) -> Done {
    if config.mock {
        return Ok(print(
            "USE_MOCK is set: simulated VMs end with their pool, so nothing is left of them.\n",
        ));
    }
    let storage = &config.hyperv.storage_path;
    let failed = |why: crate::hypervisor::Error| Failure::Failed(why.to_string());
    let powershell = app::powershell().map_err(Failure::Failed)?;
    let lock = app::lock_storage(storage, "stop it first, with `hyperv-runner-pool stop`")
        .map_err(Failure::Failed)?;
    let hyperv = HyperV::new(config.hyperv.clone(), powershell).map_err(failed)?;
    // Twice, since a list can leave a VM out.
    let inventory = union(hyperv.list(&[]).map_err(failed)?, hyperv.list(&[]).map_err(failed)?);
    let mut vms = orphan_vms(&inventory, &HashSet::new());
    let kept = inventory.kept.into_iter();
    vms.extend(kept.map(|vm| OrphanVm { vm, notes: None, power: Some(Power::Off) }));
    vms.sort_by(|a, b| a.vm.name.cmp(&b.vm.name));
    let rules = Rules::new(&config.pool, &config.github, identity::pool_tag(storage).map_err(failed)?);
    let github = Client::new(&config.github, Box::new(|| None));
    let mut left = 0;
    let registrations = match github.as_ref().map(|github| registrations(github, &rules, &vms)) {
        Some(Err(why)) => {
            left += 1;
            print(&format!("Registrations are left, since GitHub does not list them: {why}\n"));
            Vec::new()
        }
        found => found.and_then(Result::ok).unwrap_or_default(),
    };
    let by_queue = github.as_ref().filter(|_| config.github.intake == Intake::ScaleSet);
    let scale_set = by_queue.and_then(|github| match github.present_scale_set() {
        Ok(id) => id.map(|id| (github, id)),
        Err(Error::Refused(why)) => {
            print(&format!("No runner scale set is removed: {why}\n"));
            None
        }
        Err(why) => {
            left += 1;
            print(&format!("The runner scale set may be left: {why}\n"));
            None
        }
    });
    let name = format!("the runner scale set {}", config.github.scale_set);
    if vms.is_empty() && registrations.is_empty() && scale_set.is_none() && left == 0 {
        forget(storage, lock);
        return Ok(print("Nothing of this pool is left.\n"));
    }
    let mut list = format!("Of the pool with VM_STORAGE_PATH {} there are:\n", storage.display());
    for vm in &vms {
        list.push_str(&format!("  {}\n", described(vm)));
    }
    for Registration { scope, name, .. } in &registrations {
        list.push_str(&format!("  the registration {name} of the {scope}\n"));
    }
    if scale_set.is_some() {
        list.push_str(&format!("  {name}\n"));
    }
    print(&list);
    if !yes && !is_confirmed() {
        return Ok(print("Nothing is removed.\n"));
    }
    let mut tell = |what: String, removed: Result<(), String>| match removed {
        Ok(()) => drop(print(&format!("removed: {what}\n"))),
        Err(why) => {
            left += 1;
            print(&format!("left: {what}: {why}\n"));
        }
    };
    for vm in &vms {
        tell(named(vm), hyperv.destroy(&vm.vm).map_err(|why| why.to_string()));
    }
    for Registration { scope, id, name } in registrations {
        let Some(github) = &github else { break };
        let removed = match github.remove(&scope, id) {
            Ok(Removal::Busy) => Err("GitHub still takes its job for running, for some minutes".into()),
            removed => removed.map(drop).map_err(|why| why.to_string()),
        };
        tell(format!("the registration {name}"), removed);
    }
    if let Some((github, id)) = scale_set {
        tell(name, github.delete_scale_set(id).map_err(|why| why.to_string()));
    }
    if left > 0 {
        return Err(Failure::Failed(format!("not all could be removed: run `{PROGRAM} cleanup` again")));
    }
    forget(storage, lock);
    Ok(print("Nothing of this pool is left.\n"))
}

/// The registrations with this pool's tag, and those that the Notes of its VMs name.
fn registrations(github: &Client, rules: &Rules, vms: &[OrphanVm]) -> Result<Vec<Registration>, String> {
    let listed = github.runners().map_err(|why| why.to_string())?;
    let own = listed.into_iter().filter(|runner| rules.owns_runner(&runner.name));
    let own = own.map(|runner| Registration { scope: rules.scope.clone(), id: runner.id, name: runner.name });
    // All of the pool's own scope are in the list.
    let elsewhere = vms.iter().filter_map(|vm| vm.notes.as_ref()).filter(|notes| notes.scope != rules.scope);
    let elsewhere = elsewhere.filter_map(|notes| {
        let (scope, name) = (notes.scope.clone(), notes.runner_name.clone());
        Some(Registration { scope, id: notes.runner_id?, name })
    });
    Ok(own.chain(elsewhere).collect())
}

fn named(vm: &OrphanVm) -> String {
    match vm.power {
        Some(_) => format!("the VM {}", vm.vm),
        None => format!("the disk {}", vm.vm.disk_file_name()),
    }
}

fn described(vm: &OrphanVm) -> String {
    let had_job = vm.notes.as_ref().is_some_and(|notes| notes.job_started.is_some());
    let state = match vm.may_have_job() {
        true if had_job => ", which runs a job",
        true => ", which is on",
        false => "",
    };
    format!("{}{state}", named(vm))
}

/// Whether the user says so. Nothing is not yes.
fn is_confirmed() -> bool {
    print("Remove all of this? Jobs that run fail. [y/N] ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes" | "Yes")
}

/// Removes what the pool keeps for itself in its storage folder.
fn forget(storage: &Path, lock: fs::File) {
    let control = control::path(storage, false);
    for folder in control.parent().into_iter().chain([&*vm_key::folder(storage)]) {
        let _ = fs::remove_dir_all(folder);
    }
    // While it is locked, so that it is no other pool's.
    let _ = fs::remove_file(storage.join(app::LOCK));
    drop(lock);
}
