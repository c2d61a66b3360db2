# Plays a VM of the simulated host on Linux: boots the image's own scripts in it.
#   pwsh -NoProfile -File guest.ps1 -Id VM -Disk FOLDER
# FOLDER is the VM's drive C:, with runner-pool-guest and actions-runner as in the image.
# Only what Linux lacks is replaced: the registry, the network, the task scheduler, shutdown.exe.
# -Task: what the task scheduler starts, instead of a boot.
param(
    [Parameter(Mandatory)][string]$Id,
    [Parameter(Mandatory)][string]$Disk,
    [string]$Task = ''
)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

. (Join-Path -Path $PSScriptRoot -ChildPath 'modules/Hyper-V/Record.ps1')
. (Join-Path -Path $PSScriptRoot -ChildPath 'scheduler.ps1')
New-PSDrive -Name C -PSProvider FileSystem -Root $Disk -Scope Global | Out-Null
$global:Machine = @{
    Id     = $Id
    Disk   = $Disk
    Script = $PSCommandPath
    Folder = $env:FAKE_HYPERV
    Record = { Read-FakeRecord $global:Machine.Folder | Where-Object { $_.id -eq $global:Machine.Id } }
    Change = {
        param($Change)
        Edit-FakeRecord $global:Machine.Folder $global:Machine.Id $Change
    }
}

# ---- The registry: what the host tells the VM, and the VM the host

function global:Get-Item {
    [CmdletBinding()]
    param([string]$LiteralPath)
    if ($LiteralPath -notlike 'HKLM:*') {
        return (Microsoft.PowerShell.Management\Get-Item -LiteralPath $LiteralPath)
    }
    $key = [pscustomobject]@{ Items = (& $global:Machine.Record).hostItems }
    Add-Member -InputObject $key -MemberType ScriptMethod -Name 'GetValue' -Value {
        param($Name)
        $item = $this.Items.PSObject.Properties[$Name]
        if ($null -eq $item) { return $null }
        return $item.Value
    }
    return $key
}

function global:Test-Path {
    [CmdletBinding()]
    [OutputType([bool])]
    param([string]$LiteralPath, [string]$Path)
    if ($LiteralPath -like 'HKLM:*') {
        return $true
    }
    return (Microsoft.PowerShell.Management\Test-Path @PSBoundParameters)
}

function global:Set-ItemProperty {
    [CmdletBinding()]
    param([string]$LiteralPath, [string]$Name, [string]$Value, [string]$Type)
    if ($Type -ne 'String' -or -not $LiteralPath.EndsWith('\Guest')) {
        throw "Nothing but text goes to the host, and only below Guest: $LiteralPath $Name"
    }
    $item = @{ Name = $Name; Value = $Value }
    & $global:Machine.Change { param($Record) Add-Member -InputObject $Record.guestItems -NotePropertyName $item.Name -NotePropertyValue $item.Value -Force }
}

function global:Remove-ItemProperty {
    [CmdletBinding()]
    param([string]$LiteralPath, [string]$Name)
    if (-not $LiteralPath.EndsWith('\Guest')) {
        throw "The VM removes nothing but its own words: $LiteralPath $Name"
    }
    & $global:Machine.Change { param($Record) $Record.guestItems.PSObject.Properties.Remove($Name) }
}

# ---- The network: one adapter, without an address until the guest sets one

function global:Get-NetAdapter {
    [CmdletBinding()]
    param([switch]$Physical)
    [pscustomobject]@{ Name = 'Ethernet'; ifIndex = 7; Physical = $Physical }
}

function global:Set-NetIPInterface {
    [CmdletBinding()]
    param([int]$InterfaceIndex, [string]$AddressFamily, [string]$Dhcp)
}

function global:Get-NetIPAddress {
    [CmdletBinding()]
    param([int]$InterfaceIndex, [string]$AddressFamily)
    (& $global:Machine.Record).addresses | Where-Object { $_ } | ForEach-Object { [pscustomobject]@{ IPAddress = $_ } }
}

function global:New-NetIPAddress {
    [CmdletBinding()]
    param([int]$InterfaceIndex, [string]$IPAddress, [int]$PrefixLength)
    $address = $IPAddress
    & $global:Machine.Change { param($Record) $Record.addresses = @($address) }
}

function global:Get-NetRoute {
    [CmdletBinding()]
    param([int]$InterfaceIndex, [string]$DestinationPrefix)
}

function global:New-NetRoute {
    [CmdletBinding()]
    param([int]$InterfaceIndex, [string]$DestinationPrefix, [string]$NextHop)
}

function global:Set-DnsClientServerAddress {
    [CmdletBinding()]
    param([int]$InterfaceIndex, [string[]]$ServerAddresses)
}

# ---- Processes: other VMs' are not seen, and a task is one

function global:Get-Process {
    [CmdletBinding()]
    param([string]$Name)
    Microsoft.PowerShell.Management\Get-Process -Name $Name | Where-Object { [string]$_.Path -like "$($global:Machine.Disk)/*" }
}

function global:New-Object {
    [CmdletBinding()]
    param([Parameter(Mandatory)][string]$ComObject)
    if ($ComObject -ne 'Schedule.Service') {
        throw "There is no $ComObject."
    }
    return (New-Scheduler {
        $arguments = '-NoProfile', '-NonInteractive', '-File', $global:Machine.Script, '-Id', $global:Machine.Id, '-Disk', $global:Machine.Disk, '-Task', 'C:\runner-pool-guest\start-runner.ps1'
        Start-Process -FilePath 'pwsh' -ArgumentList $arguments -PassThru
    })
}

function global:shutdown.exe {
    & $global:Machine.Change { param($Record) $Record.state = 'Off' }
    [System.Environment]::Exit(0)
}

if ($Task -ne '') {
    & $Task
    exit 0
}
# Its integration services are there.
& $global:Machine.Change { param($Record) $Record.heartbeat = 2 }
& 'C:\runner-pool-guest\supervise.ps1'
