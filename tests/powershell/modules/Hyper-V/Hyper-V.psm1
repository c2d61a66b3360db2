# A simulated Hyper-V host: functions with the names and parameters of the real
# cmdlets, as far as the pool's scripts use them, and the few cmdlets of other
# modules that PowerShell has on Windows only.
#
# The host lives in the folder that the environment variable FAKE_HYPERV names:
#   host.json    switches, addresses, service, firewall; the checks write it
#   vms/ID.json  one file for each VM, see Record.ps1
#   calls.log    the names of the functions called, in order
#   hold-New-VM  while this file is there, New-VM does not return from the VM that it has made
# FAKE_HYPERV_FAULT makes calls fail: "New-VHD" always, "Stop-VM:2" the first
# two times, "Set-VM#2" only the second; several with commas. "New-VM-after" fails
# when the work is done.

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

. (Join-Path -Path $PSScriptRoot -ChildPath 'Record.ps1')

$KvpServiceId = '2A34B1C2-FD73-4043-8A5B-DD2159BC743F'

function Get-FakeFolder {
    if ([string]$env:FAKE_HYPERV -eq '') {
        throw 'FAKE_HYPERV is not set.'
    }
    return $env:FAKE_HYPERV
}

function Get-FakeHost {
    $path = Join-Path -Path (Get-FakeFolder) -ChildPath 'host.json'
    return (ConvertFrom-Json -InputObject ([System.IO.File]::ReadAllText($path)))
}

# A fact of the host that host.json need not have.
function Get-HostFact([string]$Name) {
    $facts = Get-FakeHost
    if ($facts.PSObject.Properties[$Name]) {
        return $facts.$Name
    }
}

function Test-Fault([string]$Command) {
    foreach ($fault in @(([string]$env:FAKE_HYPERV_FAULT) -split ',')) {
        $name, $call = $fault -split '#'
        if ($name -eq $Command -and $call) {
            $calls = [System.IO.File]::ReadAllLines((Join-Path -Path (Get-FakeFolder) -ChildPath 'calls.log'))
            return @($calls | Where-Object { $_ -eq $Command }).Count -eq [int]$call
        }
        $parts = @($fault -split ':')
        if ($parts[0] -ne $Command) {
            continue
        }
        if ($parts.Count -eq 1) {
            return $true
        }
        $counter = Join-Path -Path (Get-FakeFolder) -ChildPath "fault-$Command.count"
        $times = 0
        if (Test-Path -LiteralPath $counter) {
            $times = [int]([System.IO.File]::ReadAllText($counter).Trim())
        }
        if ($times -lt [int]$parts[1]) {
            [System.IO.File]::WriteAllText($counter, [string]($times + 1))
            return $true
        }
    }
    return $false
}

# Notes the call, and fails if it was told to.
function Enter-Call([string]$Command) {
    $log = Join-Path -Path (Get-FakeFolder) -ChildPath 'calls.log'
    Invoke-OnFile { [System.IO.File]::AppendAllText($log, $Command + "`n") }
    if (Test-Fault $Command) {
        throw "$Command failed, as it was told to."
    }
}

function Find-FakeRecord($VM) {
    $id = ([string]$VM.Id).ToLowerInvariant()
    $found = @(Read-FakeRecord (Get-FakeFolder) | Where-Object { $_.id -eq $id })
    if ($found.Count -eq 0) {
        throw "Hyper-V was unable to find the virtual machine $id."
    }
    return $found[0]
}

function Update-FakeRecord($VM, $Changes) {
    $id = (Find-FakeRecord $VM).id
    Edit-FakeRecord (Get-FakeFolder) $id {
        param($Record)
        foreach ($key in @($Changes.Keys)) {
            $Record.$key = $Changes[$key]
        }
    }
}

function Get-FakeUptime($Record) {
    $ticks = [int64]([double]$Record.uptime * [timespan]::TicksPerSecond)
    if ($Record.started -gt 0) {
        $ticks += [datetime]::UtcNow.Ticks - $Record.started
    }
    return [timespan]::FromTicks($ticks)
}

# What Get-VM gives for a VM.
function ConvertTo-FakeVM($Record) {
    $drives = @($Record.disks | ForEach-Object { [pscustomobject]@{ Path = [string]$_ } })
    $vm = [pscustomobject]@{
        Id                          = [guid]$Record.id
        Name                        = [string]$Record.name
        State                       = [string]$Record.state
        Notes                       = [string]$Record.notes
        Uptime                      = (Get-FakeUptime $Record)
        HardDrives                  = $drives
        Generation                  = [int]$Record.generation
        MemoryStartup               = [int64]$Record.memory
        MemoryMaximum               = [int64]$Record.memoryMaximum
        DynamicMemoryEnabled        = [bool]$Record.dynamicMemory
        ProcessorCount              = [int64]$Record.processors
        CheckpointType              = [string]$Record.checkpoints
        AutomaticCheckpointsEnabled = [bool]$Record.automaticCheckpoints
        AutomaticStartAction        = [string]$Record.startAction
        AutomaticStopAction         = [string]$Record.stopAction
        Heartbeat                   = $(if ($Record.heartbeat -eq 2) { 'OkApplicationsHealthy' } else { 'NoContact' })
    }
    if ($Record.broken) {
        # What PowerShell gives for properties that throw.
        $vm.HardDrives = $null
        $vm.Notes = $null
    }
    return $vm
}

function Get-VM {
    [CmdletBinding()]
    param([string]$Name)
    Enter-Call 'Get-VM'
    $found = @(Read-FakeRecord (Get-FakeFolder) | Where-Object { $Name -eq '' -or $_.name -eq $Name })
    if ($Name -ne '' -and $found.Count -eq 0) {
        throw "Hyper-V was unable to find a virtual machine with name `"$Name`"."
    }
    foreach ($record in $found) {
        ConvertTo-FakeVM $record
    }
}

function New-VM {
    [CmdletBinding()]
    param(
        [Parameter(Mandatory)][string]$Name,
        [int]$Generation = 1,
        [int64]$MemoryStartupBytes,
        [string]$VHDPath,
        [ValidateSet('Floppy', 'CD', 'IDE', 'LegacyNetworkAdapter', 'NetworkAdapter', 'VHD')][string]$BootDevice,
        [string]$SwitchName
    )
    Enter-Call 'New-VM'
    if (-not (Test-Path -LiteralPath $VHDPath)) {
        throw "The disk $VHDPath does not exist."
    }
    $users = @(Read-FakeRecord (Get-FakeFolder) | Where-Object { @($_.disks) -contains $VHDPath })
    if ($users.Count -gt 0) {
        throw "The disk $VHDPath is in use."
    }
    $record = New-FakeRecord $Name 'Off' '' $VHDPath
    $record.generation = $Generation
    $record.memory = $MemoryStartupBytes
    $record.bootDevice = $BootDevice
    $record.switchName = $SwitchName
    Save-FakeRecord (Get-FakeFolder) $record
    while (Test-Path -LiteralPath (Join-Path -Path (Get-FakeFolder) -ChildPath 'hold-New-VM')) {
        [System.Threading.Thread]::Sleep(20)
    }
    Enter-Call 'New-VM-after'
    return (ConvertTo-FakeVM $record)
}

function Set-VM {
    [CmdletBinding()]
    param(
        [Parameter(Mandatory)]$VM,
        [string]$NewVMName,
        [string]$Notes,
        [ValidateSet('Disabled', 'Production', 'ProductionOnly', 'Standard')][string]$CheckpointType,
        [bool]$AutomaticCheckpointsEnabled,
        [ValidateSet('Nothing', 'StartIfRunning', 'Start')][string]$AutomaticStartAction,
        [ValidateSet('TurnOff', 'Save', 'ShutDown')][string]$AutomaticStopAction
    )
    Enter-Call 'Set-VM'
    $changes = @{}
    if ($PSBoundParameters.ContainsKey('NewVMName')) {
        $changes['name'] = $NewVMName
    }
    if ($PSBoundParameters.ContainsKey('Notes')) {
        $changes['notes'] = $Notes
    }
    if ($PSBoundParameters.ContainsKey('CheckpointType')) {
        $changes['checkpoints'] = $CheckpointType
    }
    if ($PSBoundParameters.ContainsKey('AutomaticCheckpointsEnabled')) {
        $changes['automaticCheckpoints'] = $AutomaticCheckpointsEnabled
    }
    if ($PSBoundParameters.ContainsKey('AutomaticStartAction') -and -not (Test-Fault 'StartActionLost')) {
        $changes['startAction'] = $AutomaticStartAction
    }
    if ($PSBoundParameters.ContainsKey('AutomaticStopAction')) {
        $changes['stopAction'] = $AutomaticStopAction
    }
    Update-FakeRecord $VM $changes
}

function Set-VMMemory {
    [CmdletBinding()]
    param(
        [Parameter(Mandatory)]$VM,
        [bool]$DynamicMemoryEnabled,
        [int64]$StartupBytes,
        [int64]$MinimumBytes,
        [int64]$MaximumBytes
    )
    Enter-Call 'Set-VMMemory'
    Update-FakeRecord $VM @{
        dynamicMemory = $DynamicMemoryEnabled
        memory        = $StartupBytes
        memoryMinimum = $MinimumBytes
        memoryMaximum = $MaximumBytes
    }
}

function Set-VMProcessor {
    [CmdletBinding()]
    param([Parameter(Mandatory)]$VM, [int64]$Count, [bool]$ExposeVirtualizationExtensions)
    Enter-Call 'Set-VMProcessor'
    Update-FakeRecord $VM @{ processors = $Count; nested = $ExposeVirtualizationExtensions }
}

function Set-VMFirmware {
    [CmdletBinding()]
    param(
        [Parameter(Mandatory)]$VM,
        [ValidateSet('On', 'Off')][string]$EnableSecureBoot,
        [string]$SecureBootTemplate = ''
    )
    Enter-Call 'Set-VMFirmware'
    Update-FakeRecord $VM @{ secureBoot = $EnableSecureBoot; secureBootTemplate = $SecureBootTemplate }
}

function Get-VMProcessor {
    [CmdletBinding()]
    param([Parameter(Mandatory)]$VM)
    Enter-Call 'Get-VMProcessor'
    $record = Find-FakeRecord $VM
    [pscustomobject]@{ Count = [int64]$record.processors; ExposeVirtualizationExtensions = [bool]$record.nested }
}

function Get-VMFirmware {
    [CmdletBinding()]
    param([Parameter(Mandatory)]$VM)
    Enter-Call 'Get-VMFirmware'
    $record = Find-FakeRecord $VM
    [pscustomobject]@{ SecureBoot = [string]$record.secureBoot; SecureBootTemplate = [string]$record.secureBootTemplate }
}

# With the names of a German host: the scripts must not go by the name.
function Get-VMIntegrationService {
    [CmdletBinding()]
    param([Parameter(Mandatory)]$VM)
    Enter-Call 'Get-VMIntegrationService'
    $record = Find-FakeRecord $VM
    [pscustomobject]@{
        Name    = 'Takt'
        Id      = "Microsoft:$($record.id)\84EAAE65-2F2E-45F5-9BB5-0E857DC8EB47"
        VMId    = [guid]$record.id
        Enabled = $true
    }
    [pscustomobject]@{
        Name    = 'Austausch von Schluesselwertpaaren'
        Id      = "Microsoft:$($record.id)\$KvpServiceId"
        VMId    = [guid]$record.id
        Enabled = [bool]$record.kvpEnabled
    }
}

function Enable-VMIntegrationService {
    [CmdletBinding()]
    param([Parameter(Mandatory)]$VMIntegrationService)
    Enter-Call 'Enable-VMIntegrationService'
    if ($VMIntegrationService.Id -like "*$KvpServiceId") {
        Update-FakeRecord ([pscustomobject]@{ Id = $VMIntegrationService.VMId }) @{ kvpEnabled = $true }
    }
}

# Which accounts of VMs may read which disks: an empty file for each pair, named after both.
function Get-FakeAccess([string]$Path) {
    $access = Join-Path -Path (Get-FakeFolder) -ChildPath 'access'
    if (Test-Path -LiteralPath $access) {
        Get-ChildItem -LiteralPath $access -File -Filter "$(Split-Path -Path $Path -Leaf) *" | ForEach-Object { ($_.Name -split ' ')[-1] }
    }
}

function Get-FakeAccessFile([string]$Path, [string]$Sid) {
    $access = Join-Path -Path (Get-FakeFolder) -ChildPath 'access'
    return (Join-Path -Path $access -ChildPath "$(Split-Path -Path $Path -Leaf) $Sid")
}

function Add-FakeAccess([string]$Path, [string]$Sid) {
    $file = Get-FakeAccessFile $Path $Sid
    New-Item -Path (Split-Path -Path $file -Parent) -ItemType Directory -Force | Out-Null
    [System.IO.File]::WriteAllText($file, '')
}

# As it shows a file's access list: a line for each entry, and two more. Or it adds entries.
function icacls.exe {
    Enter-Call 'icacls.exe'
    if ($args.Count -gt 1) {
        $path = $args[0]
        $args | Select-Object -Skip 2 | ForEach-Object { Add-FakeAccess $path ($_ -replace '^\*|:\(R\)$') }
    } else {
        "$($args[0]) NT AUTHORITY\SYSTEM:(I)(F)"
        Get-FakeAccess $args[0] | ForEach-Object { "    ${_}:(R)" }
        ''
    }
    $global:LASTEXITCODE = 0
    'Successfully processed 1 files; Failed processing 0 files'
}

function Start-VM {
    [CmdletBinding()]
    param([Parameter(Mandatory)]$VM)
    Enter-Call 'Start-VM'
    Update-FakeRecord $VM @{ state = 'Running'; started = [datetime]::UtcNow.Ticks }
    # Its worker process gets access to its disks, and to what they are based on.
    # Nothing takes it away again.
    foreach ($disk in @((Find-FakeRecord $VM).disks)) {
        if ([System.IO.File]::ReadAllText($disk) -match '^vhdxfile child of (?<parent>.+)') {
            Add-FakeAccess $matches['parent'] (Get-FakeSid $VM.Id)
        }
    }
    Enter-Call 'Start-VM-after'
}

# As a job it fails as a job does: when it is received.
function Stop-VM {
    [CmdletBinding()]
    param([Parameter(Mandatory)]$VM, [switch]$TurnOff, [switch]$Force, [switch]$AsJob)
    $problem = ''
    $seconds = 0
    try {
        Enter-Call 'Stop-VM'
        $record = Find-FakeRecord $VM
        if ($record.stuck -ne '') {
            Update-FakeRecord $VM @{ state = 'Stopping' }
            if ($record.stuck -eq 'hangs') {
                $seconds = 600
            }
        }
        if ($record.stuck -eq 'refuses' -or $record.state -eq 'Saved') {
            throw 'The operation cannot be performed while the virtual machine is in its current state.'
        }
        if ($record.stuck -eq '') {
            Update-FakeRecord $VM @{ state = 'Off'; uptime = 0; started = 0 }
        }
    } catch {
        $problem = $_.Exception.Message
    }
    if ($AsJob) {
        $start = 'Start-Job'
        # Quicker. And PowerShell's host under Wine has no program for a job.
        $module = Join-Path -Path $PSHOME -ChildPath 'Modules/Microsoft.PowerShell.ThreadJob/Microsoft.PowerShell.ThreadJob.psd1'
        if (Test-Path -LiteralPath $module) {
            Import-Module -Name $module
            $start = 'Start-ThreadJob'
        }
        & $start -ScriptBlock {
            Start-Sleep -Seconds $using:seconds
            if ($using:problem -ne '') {
                throw $using:problem
            }
        }
    } elseif ($problem -ne '') {
        throw $problem
    } else {
        Start-Sleep -Seconds $seconds
    }
}

function Remove-VMSavedState {
    [CmdletBinding()]
    param([Parameter(Mandatory)]$VM)
    Enter-Call 'Remove-VMSavedState'
    Update-FakeRecord $VM @{ state = 'Off'; uptime = 0; started = 0 }
}

function Remove-VM {
    [CmdletBinding()]
    param([Parameter(Mandatory)]$VM, [switch]$Force)
    Enter-Call 'Remove-VM'
    $record = Find-FakeRecord $VM
    if ($record.state -ne 'Off') {
        throw 'The operation cannot be performed while the virtual machine is in its current state.'
    }
    Remove-FakeRecord (Get-FakeFolder) $record.id
}

function New-VHD {
    [CmdletBinding()]
    param(
        [Parameter(Mandatory)][string]$Path,
        [Parameter(ParameterSetName = 'Child', Mandatory)][string]$ParentPath,
        [Parameter(ParameterSetName = 'Child')][switch]$Differencing,
        [Parameter(ParameterSetName = 'Empty', Mandatory)][uint64]$SizeBytes,
        [Parameter(ParameterSetName = 'Empty')][switch]$Dynamic
    )
    Enter-Call 'New-VHD'
    if ($SizeBytes -gt 0) {
        [System.IO.File]::WriteAllText($Path, "vhdxfile $SizeBytes")
        return [pscustomobject]@{ Path = $Path; VhdFormat = 'VHDX'; ParentPath = '' }
    }
    if (-not (Test-Path -LiteralPath $ParentPath)) {
        throw "The parent $ParentPath does not exist."
    }
    [System.IO.File]::WriteAllText($Path, "vhdxfile child of $ParentPath")
    return [pscustomobject]@{ Path = $Path; VhdFormat = 'VHDX'; ParentPath = $ParentPath }
}

function Get-VHD {
    [CmdletBinding()]
    param([Parameter(Mandatory)][string]$Path)
    Enter-Call 'Get-VHD'
    $text = [System.IO.File]::ReadAllText($Path)
    if ($text.StartsWith('vhdxfile')) {
        $parent = ''
        if ($text -match '^vhdxfile child of (?<parent>.+)') {
            $parent = $matches['parent']
        }
        return [pscustomobject]@{ Path = $Path; VhdFormat = 'VHDX'; ParentPath = $parent }
    }
    if ($text.StartsWith('conectix')) {
        return [pscustomobject]@{ Path = $Path; VhdFormat = 'VHD' }
    }
    throw "Getting the mounted storage instance for the path '$Path' failed. The file or directory is corrupted and unreadable."
}

function Get-VMSwitch {
    [CmdletBinding()]
    param([string]$Name)
    Enter-Call 'Get-VMSwitch'
    foreach ($one in @((Get-FakeHost).switches)) {
        if ($Name -eq '' -or $Name -eq $one) {
            $type = 'Internal'
            if (@(Get-HostFact 'external') -contains $one) {
                $type = 'External'
            }
            [pscustomobject]@{ Name = [string]$one; SwitchType = $type }
        }
    }
}

function Set-VMNetworkAdapter {
    [CmdletBinding()]
    param(
        [Parameter(Mandatory)]$VMNetworkAdapter,
        [ValidatePattern('^[0-9A-F]{12}$')][string]$StaticMacAddress,
        [ValidateSet('On', 'Off')][string]$MacAddressSpoofing,
        [ValidateSet('On', 'Off')][string]$DhcpGuard,
        [ValidateSet('On', 'Off')][string]$RouterGuard
    )
    Enter-Call 'Set-VMNetworkAdapter'
    $changes = @{}
    if ($PSBoundParameters.ContainsKey('StaticMacAddress')) {
        $changes['macAddress'] = $StaticMacAddress
    }
    if ($PSBoundParameters.ContainsKey('MacAddressSpoofing')) {
        $changes['macSpoofing'] = $MacAddressSpoofing
        $changes['routerGuard'] = $RouterGuard
        if (-not (Test-Fault 'GuardLost')) {
            $changes['dhcpGuard'] = $DhcpGuard
        }
    }
    Update-FakeRecord ([pscustomobject]@{ Id = $VMNetworkAdapter.VMId }) $changes
}

function Add-VMNetworkAdapterExtendedAcl {
    [CmdletBinding()]
    param(
        [Parameter(Mandatory)]$VMNetworkAdapter,
        [Parameter(Mandatory)][ValidateSet('Allow', 'Deny')][string]$Action,
        [Parameter(Mandatory)][ValidateSet('Inbound', 'Outbound')][string]$Direction,
        [string]$LocalIPAddress = 'ANY',
        [string]$RemoteIPAddress = 'ANY',
        [string]$LocalPort = 'ANY',
        [string]$RemotePort = 'ANY',
        [string]$Protocol = 'ANY',
        [Parameter(Mandatory)][int]$Weight,
        [bool]$Stateful
    )
    Enter-Call 'Add-VMNetworkAdapterExtendedAcl'
    $record = Find-FakeRecord ([pscustomobject]@{ Id = $VMNetworkAdapter.VMId })
    # The switch refuses the last two only when it applies them, and tells nobody.
    if ($record.state -ne 'Off' -or $Stateful -or $Weight -gt 65535 -or $Weight -lt 1) {
        throw 'The rule would have no effect.'
    }
    if (@($record.acls | Where-Object { $_.direction -eq $Direction -and $_.weight -eq $Weight }).Count -gt 0) {
        throw 'There is a rule of this weight and direction.'
    }
    if (Test-Fault 'AclLost') {
        return
    }
    $acl = [pscustomobject]@{
        direction = $Direction; weight = $Weight; action = $Action; local = $LocalIPAddress; remote = $RemoteIPAddress
        localPort = $LocalPort; remotePort = $RemotePort; protocol = $Protocol
    }
    Update-FakeRecord ([pscustomobject]@{ Id = $VMNetworkAdapter.VMId }) @{ acls = @($record.acls) + $acl }
}

function Get-VMNetworkAdapterExtendedAcl {
    [CmdletBinding()]
    param([Parameter(Mandatory)]$VMNetworkAdapter)
    Enter-Call 'Get-VMNetworkAdapterExtendedAcl'
    foreach ($acl in @((Find-FakeRecord ([pscustomobject]@{ Id = $VMNetworkAdapter.VMId })).acls)) {
        [pscustomobject]@{
            Direction = $acl.direction; Weight = $acl.weight; Action = $acl.action; Protocol = $acl.protocol; Stateful = $false
            LocalIPAddress = $acl.local; RemoteIPAddress = $acl.remote; LocalPort = $acl.localPort; RemotePort = $acl.remotePort
        }
    }
}

# As host.json has them under "dns": adapter, metric, servers.
function Get-NetIPInterface {
    [CmdletBinding()]
    param([string]$AddressFamily, [ValidateSet('Connected', 'Disconnected')][string]$ConnectionState)
    Enter-Call 'Get-NetIPInterface'
    foreach ($one in @(Get-HostFact 'dns' | Where-Object { $ConnectionState -ne 'Connected' -or $_.adapter -ne 'Unplugged' })) {
        [pscustomobject]@{ InterfaceIndex = (Get-FakeIndex $one.adapter); InterfaceMetric = $one.metric }
    }
}

function Get-DnsClientServerAddress {
    [CmdletBinding()]
    param([string]$AddressFamily)
    Enter-Call 'Get-DnsClientServerAddress'
    foreach ($one in @(Get-HostFact 'dns')) {
        [pscustomobject]@{ InterfaceIndex = (Get-FakeIndex $one.adapter); ServerAddresses = [string[]]@($one.servers) }
    }
}

function Get-NetRoute {
    [CmdletBinding()]
    param([string]$AddressFamily)
    Enter-Call 'Get-NetRoute'
    foreach ($prefix in @(Get-HostFact 'routes')) {
        [pscustomobject]@{ DestinationPrefix = [string]$prefix }
    }
}

function Get-NetNat {
    [CmdletBinding()]
    param()
    Enter-Call 'Get-NetNat'
    foreach ($prefix in @(Get-HostFact 'nats')) {
        [pscustomobject]@{ Name = 'Runners'; InternalIPInterfaceAddressPrefix = [string]$prefix }
    }
}

function Get-NetIPAddress {
    [CmdletBinding()]
    param([string]$AddressFamily)
    Enter-Call 'Get-NetIPAddress'
    foreach ($address in @((Get-FakeHost).addresses)) {
        [pscustomobject]@{
            InterfaceAlias = [string]$address.alias
            InterfaceIndex = (Get-FakeIndex $address.adapter)
            IPAddress      = [string]$address.ip
            PrefixLength   = [byte]24
        }
    }
}

# The host's adapters: these, and one for each switch, under the switch's name.
function Get-FakeAdapter {
    return @('Ethernet', 'Wi-Fi', 'Unplugged') + @((Get-FakeHost).switches)
}

function Get-FakeIndex([string]$Adapter) {
    return 10 + [array]::IndexOf(@(Get-FakeAdapter), $Adapter)
}

function Get-NetAdapter {
    [CmdletBinding()]
    param([switch]$IncludeHidden)
    Enter-Call 'Get-NetAdapter'
    foreach ($name in @(Get-FakeAdapter)) {
        # As on Windows 10 and 11.
        if ($IncludeHidden -or $name -ne 'Default Switch') {
            [pscustomobject]@{ DeviceID = "{adapter of $name}"; InterfaceIndex = (Get-FakeIndex $name); ifIndex = (Get-FakeIndex $name) }
        }
    }
}

# Of a VM, or of the host itself.
function Get-VMNetworkAdapter {
    [CmdletBinding()]
    param([Parameter(ParameterSetName = 'VM', Mandatory)]$VM, [Parameter(ParameterSetName = 'Host', Mandatory)][switch]$ManagementOS, [Parameter(ParameterSetName = 'Host')][string]$SwitchName)
    Enter-Call 'Get-VMNetworkAdapter'
    if (-not $ManagementOS) {
        $record = Find-FakeRecord $VM
        return [pscustomobject]@{
            VMId               = [guid]$record.id
            Name               = 'Netzwerkkarte'
            SwitchName         = [string]$record.switchName
            Connected          = $record.switchName -ne ''
            MacAddress         = [string]$record.macAddress
            IPAddresses        = [string[]]@($record.addresses)
            MacAddressSpoofing = [string]$record.macSpoofing
            DhcpGuard          = [string]$record.dhcpGuard
            RouterGuard        = [string]$record.routerGuard
        }
    }
    foreach ($name in @((Get-FakeHost).switches)) {
        if ($SwitchName -eq '' -or $name -eq $SwitchName) {
            [pscustomobject]@{ SwitchName = $name; DeviceId = "{ADAPTER of $name}" }
        }
    }
}

# The user is an administrator, on systems that have none too.
class FakeIdentity {
    static [object] GetCurrent() { return [FakeIdentity]::new() }
}
class FakePrincipal {
    FakePrincipal([object]$Identity) { }
    [bool] IsInRole([object]$Role) { return $true }
}
if ([string]$env:FAKE_HYPERV -ne '' -and (Get-HostFact 'administrator')) {
    $accelerators = [psobject].Assembly.GetType('System.Management.Automation.TypeAccelerators')
    $accelerators::Add('System.Security.Principal.WindowsIdentity', [FakeIdentity])
    $accelerators::Add('System.Security.Principal.WindowsPrincipal', [FakePrincipal])
}

# An instance of a CIM class: its properties can be read as such, and read and
# set in CimInstanceProperties. Set as such, they would be read-only.
function New-FakeInstance([string]$Class, $Properties) {
    $instance = [pscustomobject]@{ Class = $Class; CimInstanceProperties = @{} }
    foreach ($name in @($Properties.Keys)) {
        $instance.CimInstanceProperties[$name] = [pscustomobject]@{ Value = $Properties[$name] }
        $getter = [scriptblock]::Create("`$this.CimInstanceProperties['$name'].Value")
        Add-Member -InputObject $instance -MemberType ScriptProperty -Name $name -Value $getter
    }
    return $instance
}

# What stands in for CIM's serializer, which PowerShell has on Windows only.
class FakeCimSerializer {
    static [object] Create() {
        return [FakeCimSerializer]::new()
    }
    [byte[]] Serialize([object]$Instance, [object]$Options) {
        Enter-Call 'Serialize'
        $text = '<INSTANCE CLASSNAME="' + $Instance.Class + '">'
        foreach ($name in $Instance.CimInstanceProperties.Keys) {
            $value = $Instance.CimInstanceProperties[$name].Value
            $type = 'string'
            if ($value -isnot [string]) {
                $type = $value.GetType().Name.ToLowerInvariant()
            }
            $text += '<PROPERTY NAME="' + $name + '" TYPE="' + $type + '"><VALUE>' + [System.Security.SecurityElement]::Escape([string]$value) + '</VALUE></PROPERTY>'
        }
        return [System.Text.Encoding]::Unicode.GetBytes($text + '</INSTANCE>')
    }
}
enum FakeCimSerializerOptions { None }
$accelerators = [psobject].Assembly.GetType('System.Management.Automation.TypeAccelerators')
$accelerators::Add('Microsoft.Management.Infrastructure.Serialization.CimSerializer', [FakeCimSerializer])
$accelerators::Add('Microsoft.Management.Infrastructure.Serialization.InstanceSerializationOptions', [FakeCimSerializerOptions])

# The properties of an embedded instance of a class.
function Read-EmbeddedInstance([string]$Text, [string]$Class) {
    $document = [System.Xml.XmlDocument]::new()
    $document.LoadXml($Text)
    if ($document.DocumentElement.GetAttribute('CLASSNAME') -ne $Class) {
        throw "This is no $Class."
    }
    $values = @{}
    foreach ($property in $document.DocumentElement.SelectNodes('PROPERTY')) {
        $values[$property.GetAttribute('NAME')] = $property.GetAttribute('TYPE') + ' ' + $property.InnerText
    }
    return $values
}

# How Hyper-V gives an item back: with more properties than it was given.
function ConvertTo-FakeItem([string]$Name, [string]$Data) {
    $item = '<INSTANCE CLASSNAME="Msvm_KvpExchangeDataItem"><PROPERTY NAME="Caption" TYPE="string"><VALUE>Key-Value Pair Exchange Data Item</VALUE></PROPERTY>'
    foreach ($pair in @('Name', $Name), @('Data', $Data)) {
        $item += '<PROPERTY NAME="' + $pair[0] + '" TYPE="string"><VALUE>' + [System.Security.SecurityElement]::Escape($pair[1]) + '</VALUE></PROPERTY>'
    }
    return $item + '<PROPERTY NAME="Source" TYPE="uint16"><VALUE>0</VALUE></PROPERTY></INSTANCE>'
}

function ConvertTo-FakeItemList($Items) {
    return @(foreach ($item in @($Items.PSObject.Properties)) { ConvertTo-FakeItem $item.Name $item.Value })
}

function Get-CimClass {
    [CmdletBinding()]
    param([string]$ClassName, [string]$Namespace)
    Enter-Call 'Get-CimClass'
    if ($Namespace -ne 'root\virtualization\v2') {
        throw "There is no class $ClassName in the namespace $Namespace."
    }
    return [pscustomobject]@{ CimClassName = $ClassName }
}

function New-CimInstance {
    [CmdletBinding()]
    param([Parameter(Mandatory)]$CimClass, [System.Collections.IDictionary]$Property, [Parameter(Mandatory)][switch]$ClientOnly)
    Enter-Call 'New-CimInstance'
    return (New-FakeInstance $CimClass.CimClassName $Property)
}

function Get-CimInstance {
    [CmdletBinding()]
    param([string]$ClassName, [string]$Namespace, [string]$Filter, $InputObject)
    if ($null -ne $InputObject) {
        Enter-Call 'Get-CimInstance'
        # A job: under way at the first look, done at the second.
        $InputObject.Looks = $InputObject.Looks + 1
        $state = 4
        if ($InputObject.Looks -ge 2) {
            $state = 7
            if ($InputObject.Fails -or (Test-Fault 'Job')) {
                $state = 10
            }
        }
        return [pscustomobject]@{ JobState = $state; ErrorCode = 32773 }
    }
    Enter-Call "Get-CimInstance $ClassName"
    if ($ClassName -eq 'Win32_OperatingSystem') {
        return [pscustomobject]@{ Caption = 'Simulated Windows Server'; ProductType = [uint32]3 }
    }
    if ($ClassName -eq 'Win32_ComputerSystem') {
        return [pscustomobject]@{ TotalPhysicalMemory = [uint64]34359738368; NumberOfLogicalProcessors = [uint32]8; HypervisorPresent = $true }
    }
    if ($Namespace -ne 'root\virtualization\v2') {
        throw "There is no class $ClassName in the namespace $Namespace."
    }
    if ($ClassName -eq 'Msvm_VirtualSystemManagementService') {
        return [pscustomobject]@{ Name = 'vmms' }
    }
    if ($ClassName -eq 'Msvm_KvpExchangeComponentSettingData') {
        # The one of the definition comes first, and belongs to no VM.
        [pscustomobject]@{ InstanceID = "Microsoft:Definition\$KvpServiceId\Default"; HostExchangeItems = $null }
    }
    foreach ($record in @(Read-FakeRecord (Get-FakeFolder))) {
        $id = ([string]$record.id).ToUpperInvariant()
        switch ($ClassName) {
            'Msvm_ComputerSystem' {
                if ($Filter -eq '' -or $Filter -eq "Name = '$id'") {
                    [pscustomobject]@{ Name = $id }
                }
            }
            'Msvm_VirtualSystemSettingData' {
                if ($Filter -eq "VirtualSystemIdentifier = '$id' AND VirtualSystemType = 'Microsoft:Hyper-V:System:Realized'") {
                    New-FakeInstance $ClassName @{ InstanceID = "Microsoft:$id"; AutomaticRecoveryAction = [uint16]$record.recoveryAction }
                }
            }
            'Msvm_KvpExchangeComponentSettingData' {
                [pscustomobject]@{ InstanceID = "Microsoft:$id\$KvpServiceId"; HostExchangeItems = (ConvertTo-FakeItemList $record.hostItems) }
            }
            'Msvm_HeartbeatComponent' {
                [pscustomobject]@{ SystemName = $id; OperationalStatus = [uint16[]]@($record.heartbeat) }
            }
            'Msvm_VideoHead' {
                if ($Filter -eq "SystemName = '$id'" -and $record.state -eq 'Running') {
                    [pscustomobject]@{ SystemName = $id; CurrentHorizontalResolution = [uint32]64; CurrentVerticalResolution = [uint32]48 }
                }
            }
            'Msvm_KvpExchangeComponent' {
                if ($Filter -notin '', "SystemName = '$id'") { continue }
                [pscustomobject]@{ SystemName = $id; GuestExchangeItems = (ConvertTo-FakeItemList $record.guestItems) }
            }
            default {
                throw "There is no class $ClassName in the simulated host."
            }
        }
    }
}

function Invoke-CimMethod {
    [CmdletBinding()]
    param($InputObject, [string]$MethodName, [System.Collections.IDictionary]$Arguments)
    Enter-Call $MethodName
    if ($InputObject.Name -ne 'vmms') {
        throw "The simulated host has no method $MethodName there."
    }
    $job = [pscustomobject]@{ Looks = 0; Fails = $false }
    if ($MethodName -eq 'GetVirtualSystemThumbnailImage') {
        # In RGB 565: a red line, a green one and a blue one, and so on.
        $colors = [uint16]0xF800, [uint16]0x07E0, [uint16]0x001F
        $bytes = [byte[]]@(for ($y = 0; $y -lt $Arguments['HeightPixels']; $y++) {
            for ($x = 0; $x -lt $Arguments['WidthPixels']; $x++) { [System.BitConverter]::GetBytes($colors[$y % 3]) }
        })
        return [pscustomobject]@{ ReturnValue = 0; Job = $null; ImageData = $bytes }
    }
    if ($MethodName -eq 'ModifySystemSettings') {
        $setting = Read-EmbeddedInstance $Arguments['SystemSettings'] 'Msvm_VirtualSystemSettingData'
        $vm = [pscustomobject]@{ Id = $setting['InstanceID'] -replace '^string Microsoft:', '' }
        if (-not (Test-Fault 'SettingLost')) {
            Update-FakeRecord $vm @{ recoveryAction = [int]($setting['AutomaticRecoveryAction'] -replace '^uint16 ', '') }
        }
        return [pscustomobject]@{ ReturnValue = 0; Job = $null }
    }
    if ($MethodName -ne 'AddKvpItems' -and $MethodName -ne 'RemoveKvpItems') {
        throw "The simulated host has no method $MethodName there."
    }
    $vm = [pscustomobject]@{ Id = $Arguments['TargetSystem'].Name }
    $record = Find-FakeRecord $vm
    $items = $record.hostItems
    $job.Fails = $record.state -eq 'Running' -and (Test-Fault 'KvpNeedsGuest')
    foreach ($text in @($Arguments['DataItems'])) {
        $item = Read-EmbeddedInstance $text 'Msvm_KvpExchangeDataItem'
        if ($item['Source'] -ne 'uint16 0') {
            return [pscustomobject]@{ ReturnValue = 32773; Job = $null }
        }
        $name = $item['Name'].Substring(7)
        $data = $item['Data'].Substring(7)
        $isThere = $null -ne $items.PSObject.Properties[$name]
        if ($MethodName -eq 'AddKvpItems') {
            $job.Fails = $job.Fails -or $isThere -or $data.Length -gt 1023
            Add-Member -InputObject $items -NotePropertyName $name -NotePropertyValue $data -Force
        } else {
            $job.Fails = $job.Fails -or -not $isThere
            $items.PSObject.Properties.Remove($name)
        }
    }
    if (-not $job.Fails -and -not (Test-Fault 'KvpLost')) {
        Update-FakeRecord $vm @{ hostItems = $items }
    }
    return [pscustomobject]@{ ReturnValue = 4096; Job = $job }
}

function Get-Service {
    [CmdletBinding()]
    param([string]$Name)
    Enter-Call 'Get-Service'
    $status = [string](Get-FakeHost).service
    if ($Name -eq 'DHCPServer') {
        $status = [string](Get-HostFact 'dhcpService')
    } elseif ($Name -ne 'vmms') {
        return
    }
    if ($status -ne '') {
        [pscustomobject]@{ Name = $Name; Status = $status }
    }
}

# Of the events that host.json has, those of a provider or its log. As the real one, it fails where there is none.
function Get-WinEvent {
    [CmdletBinding()]
    param([hashtable]$FilterHashtable, [int]$MaxEvents = [int]::MaxValue)
    Enter-Call 'Get-WinEvent'
    $wanted = @($FilterHashtable['ProviderName'], $FilterHashtable['LogName'])
    $found = @(Get-HostFact 'events' | Where-Object { $null -ne $_ -and ($_.ProviderName -in $wanted -or "$($_.ProviderName)-Operational" -in $wanted) } | Select-Object -First $MaxEvents)
    if ($found.Count -eq 0) {
        Write-Error -Message 'No events were found that match the specified selection criteria.' -ErrorId 'NoMatchingEventsFound,Microsoft.PowerShell.Commands.GetWinEventCommand'
    }
    $found | Write-Output
}

function Get-NetConnectionProfile {
    [CmdletBinding()]
    param()
    Enter-Call 'Get-NetConnectionProfile'
    [pscustomobject]@{ InterfaceAlias = 'Ethernet'; NetworkCategory = 'Private' }
}

function Get-NetFirewallProfile {
    [CmdletBinding()]
    param([string]$PolicyStore)
    Enter-Call 'Get-NetFirewallProfile'
    $enabled = [string](Get-FakeHost).firewall.enabled
    foreach ($name in 'Domain', 'Private', 'Public') {
        [pscustomobject]@{ Name = $name; Enabled = $enabled; DefaultInboundAction = 'NotConfigured' }
    }
}

function Get-NetFirewallRule {
    [CmdletBinding()]
    param([string]$PolicyStore, [string]$Direction, [string]$Enabled)
    Enter-Call 'Get-NetFirewallRule'
    foreach ($rule in @((Get-FakeHost).firewall.rules)) {
        [pscustomobject]@{ InstanceID = [string]$rule.id; Action = [string]$rule.action; Profile = [string]$rule.profile }
    }
}

function Get-NetFirewallPortFilter {
    [CmdletBinding()]
    param([string]$PolicyStore)
    Enter-Call 'Get-NetFirewallPortFilter'
    foreach ($rule in @((Get-FakeHost).firewall.rules)) {
        [pscustomobject]@{ InstanceID = [string]$rule.id; Protocol = [string]$rule.protocol; LocalPort = $rule.port }
    }
}

function Get-NetFirewallApplicationFilter {
    [CmdletBinding()]
    param([string]$PolicyStore)
    Enter-Call 'Get-NetFirewallApplicationFilter'
    foreach ($rule in @((Get-FakeHost).firewall.rules)) {
        [pscustomobject]@{ InstanceID = [string]$rule.id; Program = [string]$rule.program; Package = $null }
    }
}

function Get-NetFirewallInterfaceFilter {
    [CmdletBinding()]
    param([string]$PolicyStore)
    Enter-Call 'Get-NetFirewallInterfaceFilter'
    foreach ($rule in @((Get-FakeHost).firewall.rules)) {
        [pscustomobject]@{ InstanceID = [string]$rule.id; InterfaceAlias = [string]$rule.adapter }
    }
}

function Get-NetFirewallAddressFilter {
    [CmdletBinding()]
    param([string]$PolicyStore)
    Enter-Call 'Get-NetFirewallAddressFilter'
    foreach ($rule in @((Get-FakeHost).firewall.rules)) {
        [pscustomobject]@{ InstanceID = [string]$rule.id; RemoteAddress = $rule.remote }
    }
}

function Get-VMHost {
    [CmdletBinding()]
    param()
    Enter-Call 'Get-VMHost'
    return [pscustomobject]@{ MacAddressMinimum = '00155D000700'; MacAddressMaximum = '00155D0007FF' }
}

function Get-NetFirewallServiceFilter {
    [CmdletBinding()]
    param([string]$PolicyStore)
    Enter-Call 'Get-NetFirewallServiceFilter'
    foreach ($rule in @((Get-FakeHost).firewall.rules)) {
        [pscustomobject]@{ InstanceID = [string]$rule.id; Service = [string]$rule.service }
    }
}

# The real one, but for disks that a VM holds and for faults.
function Remove-Item {
    [CmdletBinding()]
    param([Parameter(Mandatory)][string]$LiteralPath, [switch]$Force)
    Enter-Call 'Remove-Item'
    $users = @(Read-FakeRecord (Get-FakeFolder) | Where-Object { @($_.disks) -contains $LiteralPath })
    if ($users.Count -gt 0) {
        throw "The process cannot access the file '$LiteralPath' because it is being used by another process."
    }
    Microsoft.PowerShell.Management\Remove-Item -LiteralPath $LiteralPath -Force:$Force
}

# ---- What packer/place-template.ps1 and tests/first-host.ps1 ask too

# A disk that is mounted is as it is.
function Mount-VHD {
    [CmdletBinding()]
    param([Parameter(Mandatory)][string]$Path, [switch]$ReadOnly, [switch]$NoDriveLetter)
    Enter-Call 'Mount-VHD'
}

function Optimize-VHD {
    [CmdletBinding()]
    param([Parameter(Mandatory)][string]$Path, [string]$Mode)
    Enter-Call 'Optimize-VHD'
}

function Dismount-VHD {
    [CmdletBinding()]
    param([Parameter(Mandatory)][string]$Path)
    Enter-Call 'Dismount-VHD'
}

function Get-VMHardDiskDrive {
    [CmdletBinding()]
    param([Parameter(Mandatory, ValueFromPipeline)]$VM)
    process {
        Enter-Call 'Get-VMHardDiskDrive'
        $VM.HardDrives
    }
}

# SYSTEM, administrators and the owner; and of a template the VMs that have used it.
function Get-Acl {
    [CmdletBinding()]
    param([Parameter(Mandatory)][string]$LiteralPath)
    Enter-Call 'Get-Acl'
    $vms = @(Get-FakeAccess $LiteralPath)
    $list = [pscustomobject]@{
        Rules = @(@('S-1-5-18', 'S-1-5-32-544', 'S-1-3-4') + $vms | ForEach-Object { [pscustomobject]@{ IdentityReference = $_ } })
        Text  = 'D:AI' + (-join ($vms | ForEach-Object { "(A;;FR;;;$_)" })) + '(A;ID;FA;;;SY)(A;ID;FA;;;BA)(A;ID;FA;;;OW)'
    }
    $list | Add-Member -MemberType ScriptMethod -Name 'GetAccessRules' -Value { $this.Rules }
    $list | Add-Member -MemberType ScriptMethod -Name 'GetSecurityDescriptorSddlForm' -Value { $this.Text }
    $list | Add-Member -MemberType ScriptMethod -Name 'SetSecurityDescriptorSddlForm' -Value { $this.Text = $args[0] }
    return $list
}

# Writes the whole list: who has been added since it was read is gone.
function Set-Acl {
    [CmdletBinding()]
    param([Parameter(Mandatory)][string]$LiteralPath, [Parameter(Mandatory)]$AclObject)
    Enter-Call 'Set-Acl'
    $sids = @([regex]::Matches($AclObject.Text, '\(A;;FR;;;(?<sid>[^)]*)\)') | ForEach-Object { $_.Groups['sid'].Value })
    foreach ($sid in @(Get-FakeAccess $LiteralPath | Where-Object { $sids -notcontains $_ })) {
        [System.IO.File]::Delete((Get-FakeAccessFile $LiteralPath $sid))
    }
    $sids | ForEach-Object { Add-FakeAccess $LiteralPath $_ }
}
