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
        # When it was turned on, in ticks; counts beside uptime.
        started              = 0
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
        recoveryAction       = 3
        hostItems            = [pscustomobject]@{}
        macAddress           = ''
        macSpoofing          = 'On'
        dhcpGuard            = 'Off'
        routerGuard          = 'Off'
        # The extended ACLs: direction, weight, action, local and remote address and port, protocol.
        acls                 = @()
        guestItems           = [pscustomobject]@{}
        # What its guest has set.
        addresses            = @()
        # 2 well, 12 not yet heard, 13 heard no more.
        heartbeat            = 12
        # Its configuration cannot be read.
        broken               = $false
        # How Hyper-V takes Stop-VM: 'refuses', 'hangs' or, if empty, well.
        stuck                = ''
    }
}

# The account of a VM, from its id's digits.
function Get-FakeSid([string]$Id) {
    $digits = $Id.Replace('-', '')
    $order = @(0, 2, 4, 6), @(12, 14, 8, 10), @(22, 20, 18, 16), @(30, 28, 26, 24)
    $numbers = $order | ForEach-Object { [System.Convert]::ToUInt32(-join ($_ | ForEach-Object { $digits.Substring($_, 2) }), 16) }
    return "S-1-5-83-1-$($numbers -join '-')"
}

# On Windows a file that another process has open just then cannot be had.
function Invoke-OnFile([scriptblock]$Do) {
    for ($try = 1; $true; $try++) {
        try {
            return (& $Do)
        } catch [System.IO.FileNotFoundException] {
            throw
        } catch [System.IO.IOException], [System.UnauthorizedAccessException] {
            if ($try -eq 20000) {
                throw
            }
            [System.Threading.Thread]::Sleep(5)
        }
    }
}

# Writes aside and then replaces, since others read meanwhile.
function Save-FakeRecord([string]$Folder, $Record) {
    $vms = Join-Path -Path $Folder -ChildPath 'vms'
    New-Item -Path $vms -ItemType Directory -Force | Out-Null
    $path = Join-Path -Path $vms -ChildPath ([string]$Record.id + '.json')
    $aside = "$path.$PID"
    [System.IO.File]::WriteAllText($aside, (ConvertTo-Json -InputObject $Record -Depth 5))
    # Move-Item would remove the other first, and under Wine so would Replace.
    if ($PSVersionTable.PSVersion.Major -ge 7) {
        Invoke-OnFile { [System.IO.File]::Move($aside, $path, $true) }
    } elseif (Test-Path -LiteralPath $path) {
        Invoke-OnFile { [System.IO.File]::Replace($aside, $path, [NullString]::Value) }
    } else {
        [System.IO.File]::Move($aside, $path)
    }
}

# Calls $Do with the path of one record. One process at a time.
function Invoke-OnRecord([string]$Folder, [string]$Id, [scriptblock]$Do) {
    $path = Join-Path -Path (Join-Path -Path $Folder -ChildPath 'vms') -ChildPath "$Id.json"
    $lock = Invoke-OnFile { [System.IO.File]::Open("$path.lock", 'OpenOrCreate', 'ReadWrite', 'None') }
    try {
        & $Do $path
    } finally {
        $lock.Dispose()
    }
}

# Changes one record: reads it, calls $Change with it, writes it.
function Edit-FakeRecord([string]$Folder, [string]$Id, [scriptblock]$Change) {
    Invoke-OnRecord $Folder $Id {
        param($Path)
        $record = ConvertFrom-Json -InputObject (Invoke-OnFile { [System.IO.File]::ReadAllText($Path) })
        & $Change $record
        Save-FakeRecord $Folder $record
    }
}

# Not while another changes it, who would make it anew.
function Remove-FakeRecord([string]$Folder, [string]$Id) {
    Invoke-OnRecord $Folder $Id {
        param($Path)
        Invoke-OnFile { [System.IO.File]::Delete($Path) }
    }
}

# Every VM of the simulated host. Wrap the call in @( ): one VM is no array.
function Read-FakeRecord([string]$Folder) {
    $vms = Join-Path -Path $Folder -ChildPath 'vms'
    if (-not (Test-Path -LiteralPath $vms)) {
        return
    }
    foreach ($file in @(Get-ChildItem -LiteralPath $vms -Filter '*.json' -File | Sort-Object -Property Name)) {
        # It may go at any time.
        try {
            $text = Invoke-OnFile { [System.IO.File]::ReadAllText($file.FullName) }
        } catch [System.IO.FileNotFoundException] {
            continue
        }
        $record = ConvertFrom-Json -InputObject $text
        # A guest that the lock does not hold says what it changes in a file of its own.
        $said = [System.IO.Path]::ChangeExtension($file.FullName, 'guest')
        if (Test-Path -LiteralPath $said) {
            foreach ($one in (ConvertFrom-Json -InputObject ([System.IO.File]::ReadAllText($said))).PSObject.Properties) {
                $record.$($one.Name) = $one.Value
            }
        }
        $record
    }
}
