# Writes to VMs what the pool has for them ("writes"), then lists every VM of
# the host, the disks in the storage folder, and the bytes that are free on its
# volume ("freeBytes", left out where that is unknown).
# Standard input: one JSON object. Standard output: one line,
# {"ok":true,"vms":[...],"disks":[...],"freeBytes":...,"unwritten":[...]} or
# {"ok":false,"error":...,"at":...}.
# A write that fails is among "unwritten" and fails no list.
# Runs under Windows PowerShell 5.1 and PowerShell 7.

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

. (Join-Path -Path $PSScriptRoot -ChildPath 'request.ps1')
. (Join-Path -Path $PSScriptRoot -ChildPath 'ownership.ps1')
. (Join-Path -Path $PSScriptRoot -ChildPath 'key-values.ps1')

# How much of a list's time writes may take. What is not written is due again.
$SecondsToWrite = 15
$SecondsPerWrite = 10

$script:step = 'input'
# Lists, not arrays: a list of one stays a list in JSON.
$script:vms = [System.Collections.Generic.List[object]]::new()
$script:disks = [System.Collections.Generic.List[object]]::new()
$script:freeBytes = $null
$script:unwritten = [System.Collections.Generic.List[object]]::new()
# Whether VMs hold a JIT configuration, by id. Known of those that were asked.
$script:holdsJitConfig = @{}

# The bytes free on a folder's volume, as its drive tells. Below a mount point
# or a link the drive's number would be another volume's, so there is none.
function Get-FreeSpace($Path) {
    for ($folder = Get-Item -LiteralPath $Path -Force; $null -ne $folder.Parent; $folder = $folder.Parent) {
        if ($folder.Attributes -band [System.IO.FileAttributes]::ReparsePoint) {
            return $null
        }
    }
    return [int64][System.IO.DriveInfo]::new($folder.FullName).AvailableFreeSpace
}

# The uptime at which the job began, for the VM's Notes.
function Write-JobStart($Vm, $Mark, [int64]$Uptime) {
    Add-Member -InputObject $Mark -NotePropertyName 'job_started' -NotePropertyValue $Uptime -Force
    Set-VM -VM $Vm -Notes (ConvertTo-Json -InputObject $Mark -Depth 5 -Compress)
}

# By key-values: the wish that the guest retire, and the removal of the JIT
# configuration, which the guest has.
function Write-KeyValue($Vm, $Write, $Systems, $HostValues) {
    $id = ([string]$Vm.Id).ToUpperInvariant()
    $system = $Systems[$id]
    $values = $HostValues[$id]
    if ($null -eq $system -or $null -eq $values) {
        throw 'Hyper-V does not tell what its key-values are.'
    }
    if ($Write.retire -and -not $values.ContainsKey('RunnerPoolRetire')) {
        Invoke-KvpMethod 'AddKvpItems' $system @{ RunnerPoolRetire = '1' } $SecondsPerWrite
    }
    $parts = @{}
    foreach ($name in $values.Keys) {
        if ($name -like 'RunnerPoolJitConfig*') {
            $parts[$name] = ''
        }
    }
    $script:holdsJitConfig[$id] = $parts.Count -gt 0
    if ($Write.forgetJitConfig -and $parts.Count -gt 0) {
        Invoke-KvpMethod 'RemoveKvpItems' $system $parts $SecondsPerWrite
        $script:holdsJitConfig[$id] = $false
    }
}

# Notes a write's failure.
function Invoke-Write($Write, [scriptblock]$Do) {
    try {
        & $Do
    } catch {
        $script:unwritten.Add("$($Write.name): $(Get-OneLine $_)")
    }
}

# Each to the VM whose Notes bear its incarnation at this moment, and to no other.
function Write-ToVM($Writes) {
    $clock = [System.Diagnostics.Stopwatch]::StartNew()
    $systems = @{}
    $hostValues = @{}
    $byKeyValue = @($Writes | Where-Object { $_.retire -or $_.forgetJitConfig })
    $canKeyValue = $byKeyValue.Count -gt 0
    if ($canKeyValue) {
        try {
            foreach ($system in @(Get-HyperVInstance 'Msvm_ComputerSystem')) {
                $systems[([string]$system.Name).ToUpperInvariant()] = $system
            }
            $hostValues = Get-HostValue
        } catch {
            $canKeyValue = $false
            $script:unwritten.Add("key-values: $(Get-OneLine $_)")
        }
    }
    foreach ($vm in @(Get-EveryVM)) {
        $mark = Read-Mark $vm.Notes
        if ($null -eq $mark) {
            continue
        }
        foreach ($write in @($Writes | Where-Object { $_.name -eq $vm.Name -and $_.incarnation -eq $mark.incarnation })) {
            if ($clock.Elapsed.TotalSeconds -gt $SecondsToWrite) {
                $script:unwritten.Add("$($write.name): no time is left in this round")
                continue
            }
            if ($null -ne $write.jobStarted) {
                Invoke-Write $write { Write-JobStart $vm $mark $write.jobStarted }
            }
            if ($canKeyValue -and ($write.retire -or $write.forgetJitConfig)) {
                Invoke-Write $write { Write-KeyValue $vm $write $systems $hostValues }
            }
        }
    }
}

# How the guests are, for all VMs in one query each: ids in upper case to
# Hyper-V's heartbeat, and to what a guest says of itself. Without these facts
# a guest counts as one that cannot be heard.
# https://learn.microsoft.com/en-us/windows/win32/hyperv_v2/msvm-heartbeatcomponent
# https://learn.microsoft.com/en-us/windows/win32/hyperv_v2/msvm-kvpexchangecomponent
function Get-Heartbeat {
    $found = @{}
    foreach ($component in @(Get-HyperVInstance 'Msvm_HeartbeatComponent')) {
        $heartbeat = 'unknown'
        # The first is the status: 2 and 3 are well, 13 is that it answers no more.
        switch (@($component.OperationalStatus)[0]) {
            2 { $heartbeat = 'ok' }
            3 { $heartbeat = 'ok' }
            13 { $heartbeat = 'lost' }
        }
        $found[([string]$component.SystemName).ToUpperInvariant()] = $heartbeat
    }
    return $found
}

function Get-GuestWord {
    $found = @{}
    foreach ($component in @(Get-HyperVInstance 'Msvm_KvpExchangeComponent')) {
        try {
            $values = Read-KvpItem $component.GuestExchangeItems
        } catch {
            # What one guest writes takes no other its word.
            Write-Verbose -Message (Get-OneLine $_)
            continue
        }
        if ($values.ContainsKey('RunnerPoolStage') -and $values.ContainsKey('RunnerPoolWorker')) {
            $found[([string]$component.SystemName).ToUpperInvariant()] = [ordered]@{
                stage     = $values['RunnerPoolStage']
                lastError = $values['RunnerPoolError']
                worker    = $values['RunnerPoolWorker'] -eq '1'
            }
        }
    }
    return $found
}

# The facts by id, or none.
function Find-Fact([scriptblock]$Find) {
    try {
        return (& $Find)
    } catch {
        Write-Verbose -Message (Get-OneLine $_)
        return @{}
    }
}

function Get-VMFact($Vm) {
    # PowerShell gives $null for a property that throws, and says nothing.
    if ($null -eq $Vm.State -or $null -eq $Vm.Uptime -or $null -eq $Vm.HardDrives) {
        throw "The VM '$($Vm.Name)' cannot be looked at."
    }
    $paths = [System.Collections.Generic.List[object]]::new()
    foreach ($drive in @($Vm.HardDrives)) {
        # A drive without a disk has no path.
        if ([string]$drive.Path -ne '') {
            $paths.Add([string]$drive.Path)
        }
    }
    return [ordered]@{
        name          = [string]$Vm.Name
        state         = [string]$Vm.State
        uptimeSeconds = [int64][Math]::Floor($Vm.Uptime.TotalSeconds)
        notes         = [string]$Vm.Notes
        disks         = $paths
    }
}

# Whether a VM of this name may be the pool's: it has a disk in the storage folder, or is one
# that is kept, whose disk bears another name.
function Test-PoolName([string]$StoragePath, [string]$Name) {
    if ($Name -like 'failed-*') {
        return $true
    }
    if (-not (Test-Path -LiteralPath $StoragePath -PathType Container)) {
        return $false
    }
    $prefix = [System.Management.Automation.WildcardPattern]::Escape("$Name-")
    return @(Get-ChildItem -LiteralPath $StoragePath -File | Where-Object { $_.Name -like "$prefix*.vhdx" }).Count -gt 0
}

function Get-Inventory($Request) {
    $writes = @($Request.writes)
    if ($writes.Count -gt 0) {
        $script:step = 'writes'
        Write-ToVM $writes
    }

    $script:step = 'vms'
    $vms = @(Get-EveryVM)
    $heartbeats = Find-Fact { Get-Heartbeat }
    $words = Find-Fact { Get-GuestWord }
    foreach ($vm in $vms) {
        try {
            $facts = Get-VMFact $vm
        } catch {
            # A VM that cannot be looked at may just have gone, and is not there
            # any more. One that is still there and may be the pool's is a failure;
            # somebody else's must not keep the pool from its own.
            $id = $vm.Id
            if ($null -eq (Get-EveryVM | Where-Object { $_.Id -eq $id })) {
                continue
            }
            if (Test-PoolName $Request.storagePath $vm.Name) {
                throw
            }
            $facts = [ordered]@{ name = [string]$vm.Name; state = 'Other'; uptimeSeconds = 0; notes = ''; disks = @() }
        }
        $id = ([string]$vm.Id).ToUpperInvariant()
        foreach ($known in @(@('heartbeat', $heartbeats), @('guest', $words), @('holdsJitConfig', $script:holdsJitConfig))) {
            if ($known[1].ContainsKey($id)) {
                $facts[$known[0]] = $known[1][$id]
            }
        }
        $script:vms.Add($facts)
    }

    $script:step = 'disks'
    if (Test-Path -LiteralPath $Request.storagePath -PathType Container) {
        foreach ($file in @(Get-ChildItem -LiteralPath $Request.storagePath -File)) {
            if ($file.Extension -eq '.vhdx' -or $file.Extension -eq '.avhdx') {
                $script:disks.Add([string]$file.Name)
            }
        }
    }

    try {
        $script:freeBytes = Get-FreeSpace $Request.storagePath
    } catch {
        # A network share has no such number, and the list is useful without it.
        Write-Verbose -Message (Get-OneLine $_)
    }
}

try {
    $request = Read-Request
    # Whatever the cmdlets print, nothing but the answer may reach standard output.
    Get-Inventory $request *> $null
    $answer = [ordered]@{ ok = $true; vms = $script:vms; disks = $script:disks; unwritten = $script:unwritten }
    if ($null -ne $script:freeBytes) {
        $answer['freeBytes'] = $script:freeBytes
    }
} catch {
    $answer = [ordered]@{ ok = $false; error = (Get-OneLine $_); at = $script:step }
}
Write-Answer $answer
