# Keeps the access list of the template from growing with each VM. Dot-sourced by create-vm.ps1.
# Runs under Windows PowerShell 5.1 and PowerShell 7.
#
# Hyper-V gives each VM an entry of its own in the access lists of its disk and of what that is
# based on, and the entry can outlive the VM. With some 2,000 of them a list is full (64 KB),
# and no VM starts any more: https://github.com/microsoft/WSL/issues/4126
#
# Whoever changes a list reads it, and writes it whole. There is no lock: an entry that Hyper-V
# adds in between, for a VM that another process is making, is lost. Therefore the list that
# is written here always lets the group of all VMs read the template, which is all that a VM
# does with it. Whatever entry is lost, of whichever pool and on whichever node of a cluster, its
# VM still starts. (hcsshim shares disks among VMs in this way: HcsGrantVmGroupAccess.)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

. (Join-Path -Path $PSScriptRoot -ChildPath 'ownership.ps1')

# NT VIRTUAL MACHINE\Virtual Machines, to which every VM's worker process belongs.
$AllVms = 'S-1-5-83-0'
# Another group, of VMs without Hyper-V's service. It looks like a VM.
# https://github.com/microsoft/hcsshim, sidVmGroup
$NoVm = 'S-1-5-83-1-3166535780-1122986932-343720105-43916321'
# The list is left alone until so many entries are of VMs that are gone.
$MostGone = 16

# The account that a VM runs as: its id's 16 bytes, as four numbers.
function Get-VmSid($Id) {
    $bytes = ([guid]$Id).ToByteArray()
    $numbers = 0, 4, 8, 12 | ForEach-Object { [System.BitConverter]::ToUInt32($bytes, $_) }
    return "S-1-5-83-1-$($numbers -join '-')"
}

# Removes the entries of VMs that are gone, if they are many.
function Clear-TemplateAccess([string]$Template) {
    $section = [System.Security.AccessControl.AccessControlSections]::Access
    $list = Get-Acl -LiteralPath $Template
    $text = $list.GetSecurityDescriptorSddlForm($section)
    # Not inherited, and allowing something: as Hyper-V adds them.
    $entries = @([regex]::Matches($text, '\(A;;[^;()]*;;;(?<sid>S-1-5-83-1(-\d+){4})\)'))
    if ($entries.Count -lt $MostGone) {
        return
    }
    # Asked after the list was read: a VM that has an entry in it is there by now.
    $known = @($NoVm) + @(Get-EveryVM | ForEach-Object { Get-VmSid $_.Id })
    $gone = @($entries | Where-Object { $known -notcontains $_.Groups['sid'].Value })
    if ($gone.Count -lt $MostGone) {
        return
    }
    $group = "(A;;FR;;;$AllVms)"
    if (-not $text.Contains($group)) {
        $text = $text.Insert($gone[0].Index, $group)
    }
    foreach ($entry in $gone) {
        $text = $text.Replace($entry.Value, '')
    }
    $list.SetSecurityDescriptorSddlForm($text, $section)
    Set-Acl -LiteralPath $Template -AclObject $list
}
