<#
.SYNOPSIS
Puts a built image in place as the pool's template.

.DESCRIPTION
Takes the newest .vhdx that Packer has built, compacts it, moves it beside
VM_TEMPLATE_PATH and marks it read-only. Then it boots a VM on it, on the switch of the
pool's VMs, and waits until the guest in it says that it runs. Only then the image becomes
the template. The template that was there is kept beside it as <name>.previous.

The disks of VMs are differences from the template and become worthless when it
changes. While any disk depends on the template, the script therefore refuses, unless
it may place the image under a new name (-NewName): it then points VM_TEMPLATE_PATH in
.env to that, and the pool takes it for the next VM that it makes. VMs that already run
keep the old file. Of the older ones the script deletes those that no disk depends on;
it keeps the one before.

Run it as an administrator, on the host.

.EXAMPLE
.\packer\place-template.ps1

.EXAMPLE
.\packer\place-template.ps1 -NewName
#>
[CmdletBinding()]
param(
    # The image. Unset: the newest .vhdx below packer\output-*.
    [string] $Image = '',
    # The template. Unset: VM_TEMPLATE_PATH from the environment or .env.
    [string] $TemplatePath = '',
    # Where the VMs' disks are. Unset: VM_STORAGE_PATH from the environment or .env.
    [string] $StoragePath = '',
    # Place the image under a new name beside the template, and point .env to it.
    [switch] $NewName
)
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

. (Join-Path -Path $PSScriptRoot -ChildPath 'common.ps1')

# How long a VM of the new image may take until its guest says something.
$BootSeconds = 600
$CheckVmName = 'hyperv-runner-pool-template-check'

# Returns the disks whose parent is the template: those of the host's VMs, and those in
# the pool's storage folder.
function Get-DependentDisk {
    param([string] $Template, [string] $Storage)
    $paths = @(Get-VM | Get-VMHardDiskDrive | ForEach-Object { $_.Path })
    if (Test-Path -LiteralPath $Storage) {
        $paths += @(Get-ChildItem -LiteralPath $Storage | Where-Object { $_.Name -like '*.*vhdx' } | ForEach-Object { $_.FullName })
    }
    foreach ($path in $paths | Sort-Object -Unique) {
        if (-not $path) { continue }
        if ($path -eq $Template) { $path; continue }
        if (-not (Test-Path -LiteralPath $path)) { continue }
        if ((Get-VHD -Path $path).ParentPath -eq $Template) { $path }
    }
}

function Assert-TemplateUnused {
    $dependent = @(Get-DependentDisk -Template $TemplatePath -Storage $StoragePath)
    if ($dependent.Count -gt 0) {
        throw "$TemplatePath is in use by $($dependent.Count) disk(s), the first is $($dependent[0]). Stop the pool with SHUTDOWN=destroy, or place the image under a new name with -NewName."
    }
}

# Name to value: what a guest has written into its key-values.
function Get-GuestValue {
    param([Parameter(Mandatory)] $Vm)
    $values = @{}
    $id = ([string] $Vm.Id).ToUpperInvariant()
    # https://learn.microsoft.com/en-us/windows/win32/hyperv_v2/msvm-kvpexchangecomponent
    $component = Get-CimInstance -Namespace 'root\virtualization\v2' -ClassName Msvm_KvpExchangeComponent -Filter "SystemName = '$id'"
    foreach ($text in @($component | ForEach-Object { $_.GuestExchangeItems })) {
        $item = [xml] $text
        $name = $item.SelectSingleNode('//PROPERTY[@NAME="Name"]/VALUE')
        $data = $item.SelectSingleNode('//PROPERTY[@NAME="Data"]/VALUE')
        if ($name -and $data) { $values[$name.InnerText] = $data.InnerText }
    }
    return $values
}

# Waits until the VM's heartbeat is there and start-runner.ps1 has told its stage. The
# stage before that is supervise.ps1's word, and says nothing of the runner's account.
function Wait-Guest {
    param([Parameter(Mandatory)] $Vm)
    $watch = [System.Diagnostics.Stopwatch]::StartNew()
    $fault = ''
    while ($true) {
        $present = @(Get-VM | Where-Object { $_.Id -eq $Vm.Id })
        if ($present.Count -eq 0) { throw 'The VM that was to check the image is gone.' }
        $values = Get-GuestValue -Vm $Vm
        # OkApplicationsHealthy and its like; the name is not translated.
        $heartbeat = [string] $present[0].Heartbeat
        $stage = [string] $values['RunnerPoolStage']
        if ($stage -notin '', 'starting' -and $heartbeat -like 'Ok*') { return $stage }
        # The guest's words are gone once the VM is off: $fault is the last that was heard.
        if ([string] $present[0].State -eq 'Off') { throw "The VM that was to check the image powered off before its runner started. $fault".Trim() }
        $fault = [string] $values['RunnerPoolError']
        if ($watch.Elapsed.TotalSeconds -gt $BootSeconds) {
            throw "The runner of the image did not start within $BootSeconds seconds (heartbeat: $heartbeat, stage: $stage). $fault".Trim()
        }
        Start-Sleep -Seconds 2
    }
}

# Removes the VM that checks an image, and its disk.
function Remove-CheckVm {
    param([Parameter(Mandatory)] [string] $Disk)
    for ($try = 1; $true; $try++) {
        try {
            foreach ($vm in @(Get-VM | Where-Object { $_.Name -eq $CheckVmName })) {
                if ([string] $vm.State -ne 'Off') { Stop-VM -VM $vm -TurnOff -Force }
                Remove-VM -VM $vm -Force
            }
            # Hyper-V lets go of it a moment after its VM is gone.
            if (Test-Path -LiteralPath $Disk) { Remove-Item -LiteralPath $Disk -Force }
            return
        } catch {
            if ($try -ge 20) { throw }
            Start-Sleep -Milliseconds 500
        }
    }
}

# Boots a VM of the image, without the values that the pool gives its VMs, and waits for
# its guest.
function Test-Image {
    param([Parameter(Mandatory)] [string] $Path)
    $disk = [System.IO.Path]::ChangeExtension($Path, '.check.vhdx')
    $switchName = Get-Setting -Name 'VM_SWITCH' -Default 'Default Switch'
    $secureBoot = Get-Setting -Name 'VM_SECURE_BOOT' -Default 'MicrosoftWindows'
    # What a run that was killed has left.
    Remove-CheckVm -Disk $disk
    try {
        New-VHD -Path $disk -ParentPath $Path -Differencing | Out-Null
        $vm = New-VM -Name $CheckVmName -Generation 2 -MemoryStartupBytes ([long] (Get-Setting -Name 'VM_MEMORY_MB' -Default '4096') * 1048576) -VHDPath $disk -BootDevice VHD -SwitchName $switchName
        Set-VM -VM $vm -Notes 'Checks a new template of hyperv-runner-pool. place-template.ps1 removes it.' -CheckpointType Disabled -AutomaticCheckpointsEnabled $false -AutomaticStartAction Nothing -AutomaticStopAction TurnOff
        Set-VMProcessor -VM $vm -Count ([long] (Get-Setting -Name 'VM_CPU_COUNT' -Default '2'))
        if ($secureBoot -eq 'off') {
            Set-VMFirmware -VM $vm -EnableSecureBoot Off
        } else {
            Set-VMFirmware -VM $vm -EnableSecureBoot On -SecureBootTemplate $secureBoot
        }
        Start-VM -VM $vm
        Write-Output "Booting a VM of it; its guest has $($BootSeconds / 60) minutes to answer"
        Write-Output "The guest answers: $(Wait-Guest -Vm $vm)"
    } finally {
        Remove-CheckVm -Disk $disk
    }
}

# Deletes templates that earlier runs with -NewName have placed, unless a disk depends on
# them.
function Remove-OldTemplate {
    param([Parameter(Mandatory)] [string[]] $Keep)
    $name = [System.IO.Path]::GetFileNameWithoutExtension($Keep[0]) -replace '-\d{8}-\d{6}$', ''
    foreach ($file in @(Get-ChildItem -LiteralPath (Split-Path -Parent $Keep[0]) -File)) {
        if ($file.Name -notmatch "^$([regex]::Escape($name))(-\d{8}-\d{6})?\.vhdx$" -or $Keep -contains $file.FullName) { continue }
        if (@(Get-DependentDisk -Template $file.FullName -Storage $StoragePath).Count -gt 0) { continue }
        Remove-Item -LiteralPath $file.FullName -Force
        Write-Output "Deleted $($file.FullName), which no disk depends on"
    }
}

if (-not (Test-Elevated)) { throw 'Run this in an elevated PowerShell (Run as administrator).' }
$TemplatePath = if ($TemplatePath) { Get-FullPath -Path $TemplatePath } else { Get-TemplatePath }
$StoragePath = if ($StoragePath) { Get-FullPath -Path $StoragePath } else { Get-StoragePath }

if ($Image) {
    $Image = Get-FullPath -Path $Image
} else {
    # In two steps: with a wildcard, -Filter and -Recurse together never enter the folders.
    $built = Get-ChildItem -Path (Join-Path $PSScriptRoot 'output-*') -Directory |
        Get-ChildItem -Filter '*.vhdx' -Recurse -File |
        Sort-Object -Property LastWriteTimeUtc -Descending | Select-Object -First 1
    if (-not $built) { throw "There is no built image below $PSScriptRoot\output-*. Build one with: packer build -only=hyperv-iso.windows-runner ." }
    $Image = $built.FullName
}

$target = $TemplatePath
if ($NewName) {
    # The date goes behind the plain name, also when the present one has a date already.
    $name = [System.IO.Path]::GetFileNameWithoutExtension($TemplatePath) -replace '-\d{8}-\d{6}$', ''
    $stamp = [DateTime]::Now.ToString('yyyyMMdd-HHmmss')
    $target = Join-Path (Split-Path -Parent $TemplatePath) "$name-$stamp.vhdx"
} else {
    Assert-TemplateUnused
}

Write-Output "Compacting $Image"
# Without a drive letter, nothing opens the disk while it is mounted.
Mount-VHD -Path $Image -ReadOnly -NoDriveLetter
try {
    Optimize-VHD -Path $Image -Mode Full
} finally {
    Dismount-VHD -Path $Image
}

# First beside the target, which may take minutes on another drive; then renamed, which
# takes no time.
New-Item -ItemType Directory -Force -Path (Split-Path -Parent $target) | Out-Null
$incoming = [System.IO.Path]::ChangeExtension($target, '.incoming.vhdx')
if (Test-Path -LiteralPath $incoming) { Remove-Item -LiteralPath $incoming -Force }
Move-Item -LiteralPath $Image -Destination $incoming
Set-ItemProperty -LiteralPath $incoming -Name IsReadOnly -Value $true

$previous = "$target.previous"
$hadTemplate = Test-Path -LiteralPath $target
$movedTemplate = $false
try {
    Test-Image -Path $incoming
    # Again, since all this took a while, and a running pool makes VMs.
    if (-not $NewName) { Assert-TemplateUnused }
    if ($hadTemplate) {
        if (Test-Path -LiteralPath $previous) { Remove-Item -LiteralPath $previous -Force }
        Move-Item -LiteralPath $target -Destination $previous -Force
        $movedTemplate = $true
    }
    Move-Item -LiteralPath $incoming -Destination $target -Force
} catch {
    # As it was before, so that the script can be run again.
    if ($movedTemplate) { Move-Item -LiteralPath $previous -Destination $target -Force }
    Set-ItemProperty -LiteralPath $incoming -Name IsReadOnly -Value $false
    Move-Item -LiteralPath $incoming -Destination $Image
    throw
}
Write-Output "Placed $target"
if ($hadTemplate) { Write-Output "Kept the one before as $previous" }

if ($NewName) {
    Set-Setting -Name 'VM_TEMPLATE_PATH' -Value $target
    Write-Output "Pointed VM_TEMPLATE_PATH in .env to it. The pool takes it for the next VM that it makes."
    # The image is in place: what fails from here on fails nothing.
    try {
        Remove-OldTemplate -Keep $target, $TemplatePath
    } catch {
        Write-Warning "Old templates were not deleted: $($_.Exception.Message)"
    }
}
