# Looks at the host before the first VM is made, and changes nothing.
# Standard input: one JSON object. Standard output: one line of raw facts,
# {"ok":true,...}; what they mean is the caller's business. A fact that cannot
# be found out takes the value that means so: "", "unknown", 0, false, or is left
# out: memoryBytes, processors, hypervisorPresent, ownSwitch.
# Runs under Windows PowerShell 5.1 and PowerShell 7.

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

. (Join-Path -Path $PSScriptRoot -ChildPath 'request.ps1')
. (Join-Path -Path $PSScriptRoot -ChildPath 'network.ps1')

$script:step = 'input'
$script:facts = [ordered]@{
    ok               = $true
    windows          = ''
    elevated         = $false
    hyperVModule     = $false
    hyperVService    = 'missing'
    template         = 'missing'
    templateBytes    = [int64]0
    templateReadOnly = $false
    storage          = 'missing'
    freeBytes        = [int64]0
    # A list, not an array: a list of one stays a list in JSON.
    switches         = [System.Collections.Generic.List[object]]::new()
    switchAddress    = ''
    switchType       = 'unknown'
    macMinimum       = ''
    macMaximum       = ''
    firewall         = 'unknown'
}

# Runs one look; a look that fails leaves its fact as it was.
function Find-Fact([scriptblock]$Look) {
    try {
        & $Look
    } catch {
        Write-Verbose -Message (Get-OneLine $_)
    }
}

function Get-TemplateState($Path) {
    if (-not (Test-Path -LiteralPath $Path -PathType Leaf)) {
        return 'missing'
    }
    try {
        $file = [System.IO.File]::Open($Path, 'Open', 'Read', 'ReadWrite')
    } catch {
        return 'unreadable'
    }
    try {
        # Every VHDX begins with these eight letters.
        $head = [byte[]]::new(8)
        $count = $file.Read($head, 0, 8)
        if ($count -eq 8 -and [System.Text.Encoding]::ASCII.GetString($head) -ceq 'vhdxfile') {
            return 'ok'
        }
        return 'not-vhdx'
    } finally {
        $file.Dispose()
    }
}

# Whether a port filter covers the TCP port. Its LocalPort is 'Any', a number,
# a range, or an array of these.
function Test-PortFilter($Filter, $Port) {
    $protocol = [string]$Filter.Protocol
    if ($protocol -ne 'TCP' -and $protocol -ne 'Any') {
        return $false
    }
    foreach ($entry in @($Filter.LocalPort)) {
        $text = [string]$entry
        if ($text -eq 'Any' -or $text -eq '' -or $text -eq [string]$Port) {
            return $true
        }
        $ends = @($text -split '-')
        if ($ends.Count -eq 2 -and $ends[0] -match '^\d+$' -and $ends[1] -match '^\d+$') {
            if ([int]$ends[0] -le $Port -and $Port -le [int]$ends[1]) {
                return $true
            }
        }
    }
    return $false
}

# Whether an address filter covers an address on the same network as the host's
# own: 'Any', 'LocalSubnet', an address, a prefix with its length or mask, or a range.
function Test-AddressFilter($Filter, $Address) {
    foreach ($entry in @($Filter.RemoteAddress)) {
        $text = [string]$entry
        if ($text -eq 'Any' -or $text -eq '' -or $text -eq 'LocalSubnet') {
            return $true
        }
        if ($text -notmatch '^(?<first>[\d.]+)((?<sign>[-/])(?<second>[\d.]+))?$') {
            continue
        }
        $first = Get-AddressNumber $Matches['first']
        $number = Get-AddressNumber $Address
        $second = $Matches['second']
        if ($null -eq $second) {
            $covers = $number -eq $first
        } elseif ($Matches['sign'] -eq '-') {
            $covers = $first -le $number -and $number -le (Get-AddressNumber $second)
        } elseif ($second.Contains('.')) {
            $mask = Get-AddressNumber $second
            $covers = ($number -band $mask) -eq ($first -band $mask)
        } else {
            $covers = Test-Prefix $text $Address
        }
        if ($covers) {
            return $true
        }
    }
    return $false
}

# What the firewall's rules say of the port on the switch's adapter, as far as
# rules tell: what a rule says of users is not weighed. A rule for an adapter that
# is gone has no adapter any more, which is not the same as 'Any'.
function Get-FirewallState($SwitchName, $OnSwitch, $Port) {
    $alias = "vEthernet ($SwitchName)"
    $address = '0.0.0.0'
    if ($null -ne $OnSwitch) {
        $alias = [string]$OnSwitch.InterfaceAlias
        $address = [string]$OnSwitch.IPAddress
    }
    # An adapter without a known network, like the Default Switch's, is public.
    $category = 'Public'
    $connection = @(Get-NetConnectionProfile -ErrorAction SilentlyContinue | Where-Object { $_.InterfaceAlias -eq $alias })
    if ($connection.Count -gt 0) {
        $category = [string]$connection[0].NetworkCategory
    }
    if ($category -eq 'DomainAuthenticated') {
        $category = 'Domain'
    }
    # -ErrorAction on every one of these: they are functions of a module, which
    # do not see this script's $ErrorActionPreference.
    # ActiveStore: what is in force, whichever policy it came from.
    $profiles = @(Get-NetFirewallProfile -PolicyStore ActiveStore -ErrorAction Stop | Where-Object { $_.Name -eq $category })
    if ($profiles.Count -eq 0) {
        return 'unknown'
    }
    if ([string]$profiles[0].Enabled -eq 'False') {
        return 'off'
    }

    # One query for each kind of filter and a join by id: asking rule by rule
    # takes minutes.
    $ports = @{}
    foreach ($filter in @(Get-NetFirewallPortFilter -PolicyStore ActiveStore -ErrorAction Stop)) {
        if (Test-PortFilter $filter $Port) {
            $ports[[string]$filter.InstanceID] = $true
        }
    }
    $foreign = @{}
    foreach ($filter in @(Get-NetFirewallApplicationFilter -PolicyStore ActiveStore -ErrorAction Stop)) {
        $program = [string]$filter.Program
        $package = [string]$filter.Package
        $ours = $program -eq 'Any' -or $program -eq '' -or $program -like '*\hyperv-runner-pool.exe'
        if (-not $ours -or ($package -ne '' -and $package -ne 'Any')) {
            $foreign[[string]$filter.InstanceID] = $true
        }
    }
    foreach ($filter in @(Get-NetFirewallInterfaceFilter -PolicyStore ActiveStore -ErrorAction Stop)) {
        $aliases = @($filter.InterfaceAlias | ForEach-Object { [string]$_ })
        $covers = @($aliases | Where-Object { $_ -eq 'Any' -or ($_ -ne '' -and $alias -like $_) })
        if ($covers.Count -eq 0) {
            $foreign[[string]$filter.InstanceID] = $true
        }
    }
    foreach ($filter in @(Get-NetFirewallAddressFilter -PolicyStore ActiveStore -ErrorAction Stop)) {
        if (-not (Test-AddressFilter $filter $address)) {
            $foreign[[string]$filter.InstanceID] = $true
        }
    }
    # A service's rule (every Windows service has one) opens no port for us.
    foreach ($filter in @(Get-NetFirewallServiceFilter -PolicyStore ActiveStore -ErrorAction Stop)) {
        $service = [string]$filter.Service
        if ($service -ne '' -and $service -ne 'Any') {
            $foreign[[string]$filter.InstanceID] = $true
        }
    }

    $allowed = [string]$profiles[0].DefaultInboundAction -eq 'Allow'
    foreach ($rule in @(Get-NetFirewallRule -PolicyStore ActiveStore -Direction Inbound -Enabled True -ErrorAction Stop)) {
        $id = [string]$rule.InstanceID
        $on = @(([string]$rule.Profile -split ',') | ForEach-Object { $_.Trim() })
        if (-not ($on -contains 'Any' -or $on -contains $category)) {
            continue
        }
        if (-not $ports.ContainsKey($id) -or $foreign.ContainsKey($id)) {
            continue
        }
        # Of two rules, the one that blocks wins.
        if ([string]$rule.Action -eq 'Block') {
            return 'blocked'
        }
        if ([string]$rule.Action -eq 'Allow') {
            $allowed = $true
        }
    }
    if ($allowed) {
        return 'allowed'
    }
    return 'blocked'
}

function Get-FactList($Request) {
    $script:step = 'host'
    $facts = $script:facts
    Find-Fact {
        $system = [System.Environment]::OSVersion
        if ([string]$system.Platform -eq 'Win32NT') {
            $facts.windows = $system.VersionString
        }
        # The name that people know, where WMI is in order.
        $facts.windows = [string](Get-CimInstance -ClassName Win32_OperatingSystem).Caption
    }
    Find-Fact {
        $computer = Get-CimInstance -ClassName Win32_ComputerSystem
        $facts['memoryBytes'] = [int64]$computer.TotalPhysicalMemory
        $facts['processors'] = [int]$computer.NumberOfLogicalProcessors
        $facts['hypervisorPresent'] = [bool]$computer.HypervisorPresent
    }
    Find-Fact {
        $identity = [System.Security.Principal.WindowsIdentity]::GetCurrent()
        $principal = [System.Security.Principal.WindowsPrincipal]::new($identity)
        $facts.elevated = $principal.IsInRole([System.Security.Principal.WindowsBuiltInRole]::Administrator)
    }
    Find-Fact {
        $facts.hyperVModule = @(Get-Module -Name Hyper-V -ListAvailable).Count -gt 0
    }
    Find-Fact {
        $service = @(Get-Service -Name vmms -ErrorAction SilentlyContinue)
        if ($service.Count -gt 0) {
            $facts.hyperVService = 'Stopped'
            if ([string]$service[0].Status -eq 'Running') {
                $facts.hyperVService = 'Running'
            }
        }
    }
    Find-Fact {
        $facts.template = Get-TemplateState $Request.templatePath
        if ($facts.template -ne 'missing') {
            $file = Get-Item -LiteralPath $Request.templatePath
            $facts.templateBytes = [int64]$file.Length
            $facts.templateReadOnly = [bool]$file.IsReadOnly
        }
    }
    Find-Fact {
        if (Test-Path -LiteralPath $Request.storagePath -PathType Container) {
            $facts.storage = 'ok'
        }
        $root = [System.IO.Path]::GetPathRoot([string]$Request.storagePath)
        $facts.freeBytes = [int64][System.IO.DriveInfo]::new($root).AvailableFreeSpace
    }
    Find-Fact {
        foreach ($one in @(Get-VMSwitch)) {
            $facts.switches.Add([string]$one.Name)
            if ($one.Name -eq $Request.switch) {
                $facts.switchType = [string]$one.SwitchType
            }
        }
    }
    $script:onSwitch = $null
    Find-Fact {
        $script:onSwitch = Get-SwitchAddress $Request.switch
        if ($null -ne $script:onSwitch) {
            $facts.switchAddress = [string]$script:onSwitch.IPAddress
            $facts['ownSwitch'] = Test-OwnSwitch $facts.switchAddress
        }
    }
    Find-Fact {
        $vmHost = Get-VMHost
        $facts.macMinimum = [string]$vmHost.MacAddressMinimum
        $facts.macMaximum = [string]$vmHost.MacAddressMaximum
    }
    Find-Fact {
        $facts.firewall = Get-FirewallState $Request.switch $script:onSwitch ([int]$Request.port)
    }
}

try {
    $request = Read-Request
    # Whatever the cmdlets print, nothing but the answer may reach standard output.
    Get-FactList $request *> $null
    $answer = $script:facts
} catch {
    $answer = [ordered]@{ ok = $false; error = (Get-OneLine $_); at = $script:step }
}
Write-Answer $answer
