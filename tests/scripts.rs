//! Every PowerShell file of the repository parses, and calls only cmdlets that
//! exist, as their documentation says, on Server 2019, 2022 and 2025. Nothing
//! here runs them, so this is what stands between a slip and a broken host.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/powershell_checker.rs"]
mod powershell_checker;

use powershell_checker::Checker;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

fn checker() -> &'static Checker {
    static CHECKER: OnceLock<Checker> = OnceLock::new();
    CHECKER.get_or_init(read_data)
}

fn read_data() -> Checker {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    Checker::new(
        &fs::read_to_string(data.join("cmdlets.json")).unwrap(),
        &fs::read_to_string(data.join("core-cmdlets.txt")).unwrap(),
    )
}

fn powershell_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && name != ".git" && name != "tests" && !path.is_symlink() {
                powershell_files(&path, found);
            }
        } else if name.ends_with(".ps1") || name.ends_with(".psm1") {
            found.push(path);
        }
    }
}

/// The names of the files that a script takes functions from: `. (Join-Path ... 'checks.ps1')`.
fn dot_sourced(source: &str) -> Vec<String> {
    let lines = source.lines().filter_map(|line| line.trim().strip_prefix(". "));
    lines
        .flat_map(|line| line.split(['\'', '"', '/', '\\']))
        .filter(|part| part.ends_with(".ps1"))
        .map(str::to_owned)
        .collect()
}

/// What the checker says of some lines of a script that begins as it must.
fn faults(lines: &str) -> Vec<String> {
    let script = format!("Set-StrictMode -Version Latest\n$ErrorActionPreference = 'Stop'\n{lines}\n");
    checker().check(&script, &[], false)
}

#[track_caller]
fn found(lines: &str, what: &str) {
    let faults = faults(lines);
    assert!(
        faults.iter().any(|f| f.contains(what)),
        "{what:?} is not among the faults of {lines:?}: {faults:#?}"
    );
}

#[track_caller]
fn clean(lines: &str) {
    assert_eq!(faults(lines), Vec::<String>::new(), "{lines}");
}

#[test]
fn every_script_of_the_repository_is_sound() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    powershell_files(root, &mut files);
    for script in ["create-vm", "destroy-vm", "list-vms", "check-host"] {
        let path = root.join(format!("src/hypervisor/scripts/{script}.ps1"));
        assert!(files.contains(&path), "{} was not found", path.display());
    }
    let checker = checker();
    let mut report = String::new();
    for file in &files {
        let source = fs::read_to_string(file).unwrap();
        let sourced = dot_sourced(&source);
        let neighbours: Vec<String> = files
            .iter()
            .filter(|other| sourced.iter().any(|name| other.ends_with(name)))
            .flat_map(|other| checker.functions(&fs::read_to_string(other).unwrap()))
            .collect();
        let pester = file.to_string_lossy().ends_with(".Tests.ps1");
        for fault in checker.check(&source, &neighbours, pester) {
            report += &format!("{} {fault}\n", file.strip_prefix(root).unwrap().display());
        }
    }
    assert!(report.is_empty(), "\n{report}");
}

/// Spoils one word after another of a script: each must be missed.
#[test]
fn no_command_of_the_pools_own_scripts_escapes_the_checker() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/hypervisor/scripts");
    let mut files = Vec::new();
    powershell_files(&root, &mut files);
    let mut spoiled = 0;
    for file in files {
        let source = fs::read_to_string(&file).unwrap();
        let mut seen = HashSet::new();
        for (start, word) in words_that_name_a_command_or_parameter(&source) {
            if !seen.insert(word) {
                continue;
            }
            let mut changed = source.clone();
            changed.insert_str(start + word.len(), "Zz");
            assert_ne!(
                checker().check(&changed, &[], false),
                Vec::<String>::new(),
                "{word}Zz at byte {start}"
            );
            spoiled += 1;
        }
    }
    assert!(spoiled > 80, "{spoiled}");
}

/// `Get-VM` and `-Force`, but neither operators (`-eq`, always in lower case) nor comments.
fn words_that_name_a_command_or_parameter(source: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut line_start = 0;
    for line in source.split_inclusive('\n') {
        let code =
            if line.trim_start().starts_with(['#', '\'']) || line.contains("throw") { "" } else { line };
        let mut at = 0;
        for word in code.split_inclusive(|c: char| !c.is_ascii_alphanumeric() && c != '-') {
            let name = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric() && c != '-');
            let (before, after) = name.split_once('-').unwrap_or(("", ""));
            let capital = |s: &str| s.starts_with(|c: char| c.is_ascii_uppercase());
            if name != "Hyper-V"
                && capital(after)
                && (before.is_empty() || capital(before))
                && !line.contains(&format!("function {name}"))
            {
                found.push((line_start + at, name));
            }
            at += word.len();
        }
        line_start += line.len();
    }
    found
}

#[test]
fn a_sound_script_has_no_faults() {
    clean("$vm = New-VM -Name 'a' -Generation 2 -MemoryStartupBytes 1024 -VHDPath 'b' -SwitchName 'c'");
    clean("Get-VM | Where-Object { $_.Id } | ForEach-Object { Stop-VM -VM $_ -TurnOff -Force }");
    clean("$from = 'a'\nCopy-Item $from 'b' -Force");
    clean("$program = 'a.exe'\n& $program --version");
    clean("git log --oneline 2>&1");
}

#[test]
fn a_misspelt_cmdlet_is_found() {
    found("Get-VMs", "there is no cmdlet Get-VMs");
    found(
        "if ($true) { foreach ($a in 1) { Remove-VirtualMachine -VM $a } }",
        "no cmdlet Remove-VirtualMachine",
    );
    found("$x = @(Get-VmSwich)", "there is no cmdlet Get-VmSwich");
}

#[test]
fn an_alias_is_found() {
    found("Get-VM | % { $_.Name }", "alias");
    found("gci -Path $x", "gci is an alias");
    found("Get-VM | where { $_.Id }", "where is an alias");
}

#[test]
fn a_wrong_parameter_is_found() {
    found("Set-VM -VM $vm -Note 'x'", "Set-VM has no parameter -Note on Server 2019");
    found("New-VHD -Path a -Parent b -Differencing", "New-VHD has no parameter -Parent");
    found("Remove-Item -LiteralPath a -Recursive", "Remove-Item has no parameter -Recursive");
    found("ConvertTo-Json -InputObject $x -AsArray", "no parameter -AsArray");
}

#[test]
fn a_parameter_of_a_later_windows_only_is_found() {
    let faults = faults("New-VM -Name a -GuestStateIsolationType Disabled -NoVHD");
    assert!(faults.iter().any(|f| f.contains("-GuestStateIsolationType on Server 2019")), "{faults:#?}");
    assert!(!faults.iter().any(|f| f.contains("on Server 2025")), "{faults:#?}");
}

#[test]
fn a_mix_of_two_parameter_sets_is_found() {
    found("Start-VM -VM $vm -Name 'a'", "Start-VM has no parameter set with all of -vm -name");
    found("New-VHD -Path a -ParentPath b -Fixed", "no parameter set with all of -path -parentpath -fixed");
    found("Remove-Item -LiteralPath a -Path b", "no parameter set with all of");
}

#[test]
fn a_value_that_is_not_accepted_is_found() {
    found(
        "Set-VM -VM $vm -AutomaticStopAction PowerOff",
        "does not accept PowerOff for -AutomaticStopAction",
    );
    found("Set-VM -VM $vm -CheckpointType 'None'", "does not accept None for -CheckpointType");
    found("Get-VMSwitch -SwitchType Internal,Local", "does not accept Local for -SwitchType");
    found("Get-Item -LiteralPath a -ErrorAction Silently", "does not accept Silently for -ErrorAction");
    found("Set-VMProcessor -VM $vm -Count two", "-Count of Set-VMProcessor takes a Int64, not two");
    found("Set-VM -VM $vm -AutomaticCheckpointsEnabled Off", "takes a Boolean, not Off");
}

#[test]
fn a_missing_mandatory_parameter_is_found() {
    found("New-VHD -ParentPath a -Differencing", "New-VHD lacks its mandatory parameter -Path");
    found("Stop-VM -TurnOff", "Stop-VM lacks its mandatory parameter");
    found("Join-Path $a", "Join-Path lacks its mandatory parameter -ChildPath");
    clean("Get-VM | Stop-VM -TurnOff");
}

#[test]
fn a_parameter_without_its_value_or_given_twice_is_found() {
    found("New-VM -Name -NoVHD", "-Name of New-VM needs a value");
    found("Remove-VM -VM $a -VM $b", "-VM is given to Remove-VM twice");
}

#[test]
fn an_argument_without_a_name_is_found_where_positions_are_not_known() {
    found("Start-VM $vm", "Start-VM has an argument without a parameter's name");
    found("Join-Path a b c", "Join-Path does not take 3 arguments");
}

#[test]
fn a_splatted_table_counts_like_written_parameters() {
    clean("$disk = @{ Path = 'a'; ParentPath = 'b' }\nNew-VHD @disk -Differencing");
    found("$disk = @{ Path = 'a'; Parent = 'b' }\nNew-VHD @disk -Differencing", "no parameter -Parent");
    found("$disk = @{ Path = 'a' }\n$disk.Fixed = $true\nNew-VHD @disk -ParentPath b", "no parameter set");
    found("$vm = @{ CheckpointType = 'Never' }\nSet-VM -Name a @vm", "does not accept Never");
}

#[test]
fn the_scripts_own_functions_are_checked_too() {
    clean("function Add-Two($Left, $Right) { }\nAdd-Two 1 -Right 2");
    found("function Add-Two($Left, $Right) { }\nAdd-Two -Lift 1", "Add-Two has no parameter -Lift");
    found("function Add-Two($Left, $Right) { }\nAdd-Two 1 2 3", "Add-Two does not take 3");
    found(
        "function Save-It { param([Parameter(Mandatory)][string]$Path, [switch]$Force) }\nSave-It -Force",
        "Save-It lacks its mandatory parameter -Path",
    );
    found(
        "function Set-It { param([ValidateSet('on', 'off')]$To) }\nSet-It -To open",
        "does not accept open",
    );
}

#[test]
fn a_script_that_does_not_parse_is_found() {
    found("if ($x { Get-VM }", "does not parse");
    found("function Broken {", "does not parse");
}

#[test]
fn a_script_without_strict_mode_is_found() {
    let faults = checker().check("$ErrorActionPreference = 'Stop'\nGet-VM\n", &[], false);
    assert!(faults.iter().any(|f| f.contains("must begin with")), "{faults:#?}");
}

#[test]
fn letters_that_windows_powershell_would_misread_are_found() {
    found("$x = 'caf\u{e9}'", "is not ASCII");
}

#[test]
fn variables_that_belong_to_powershell_are_found() {
    found("$all = @($input)", "$input");
    found("foreach ($host in 1, 2) { }", "$host is PowerShell's own");
    found("$matches = 1", "$matches is PowerShell's own");
    found("function A($args) { }", "$args is PowerShell's own");
    clean("if ('b' -match 'a') { $y = $matches[0] }");
}

#[test]
fn what_only_powershell_7_understands_is_found() {
    found("git fetch && git pull", "do not exist in Windows PowerShell");
    found("$a = $b ?? 1", "does not parse");
    found("$a = $b ? 1 : 2", "does not parse");
    found("$a = $b?.Name", "does not parse");
}

#[test]
fn a_variable_that_nothing_assigns_is_found() {
    found("$count = 1\nGet-Item -LiteralPath $cuont", "$cuont is never assigned");
    found("\"on $IsWindows\"", "$iswindows is never assigned");
    found("\"${nobody}:1\"", "$nobody is never assigned");
    clean(
        "$script:step = 'a'\nforeach ($a in 1) { \"$a $step ${env:TEMP} $PSScriptRoot\" }\nfunction B($c) { $c }",
    );
}
