# What the simulated host keeps of a VM: one JSON file for each, in the folder
# "vms" below the simulated host's. Dot-sourced by the module and by the checks.

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

function New-FakeRecord([string]$Name, [string]$State, [string]$Notes, [string]$Disk) {
    $disks = @()
    if ($Disk -ne '') {
        $disks = @($Disk)
    }
    return [pscustomobject]@{
        id                   = [guid]::NewGuid().ToString()
        name                 = $Name
        state                = $State
        notes                = $Notes
        uptime               = 0
        disks                = $disks
        switchName           = ''
        generation           = 1
        bootDevice           = ''
        memory               = 0
        dynamicMemory        = $true
        memoryMinimum        = 0
        memoryMaximum        = 0
        processors           = 1
        nested               = $false
        secureBoot           = 'On'
        secureBootTemplate   = 'MicrosoftWindows'
        checkpoints          = 'Standard'
        automaticCheckpoints = $true
        startAction          = 'StartIfRunning'
        stopAction           = 'Save'
        kvpEnabled           = $false
        hostItems            = @()
        macAddress           = ''
        macSpoofing          = 'On'
        dhcpGuard            = 'Off'
        routerGuard          = 'Off'
        # The extended ACLs: direction, weight, action, local and remote address and port, protocol.
        acls                 = @()
        # How Hyper-V takes Stop-VM: 'refuses', 'hangs' or, if empty, well.
        stuck                = ''
    }
}

function Save-FakeRecord([string]$Folder, $Record) {
    $vms = Join-Path -Path $Folder -ChildPath 'vms'
    New-Item -Path $vms -ItemType Directory -Force | Out-Null
    $path = Join-Path -Path $vms -ChildPath ([string]$Record.id + '.json')
    [System.IO.File]::WriteAllText($path, (ConvertTo-Json -InputObject $Record -Depth 5))
}

# Every VM of the simulated host. Wrap the call in @( ): one VM is no array.
function Read-FakeRecord([string]$Folder) {
    $vms = Join-Path -Path $Folder -ChildPath 'vms'
    if (-not (Test-Path -LiteralPath $vms)) {
        return
    }
    foreach ($file in @(Get-ChildItem -LiteralPath $vms -File | Sort-Object -Property Name)) {
        ConvertFrom-Json -InputObject ([System.IO.File]::ReadAllText($file.FullName))
    }
}
