# Looks at the host before the first VM is made, and changes nothing.
# Standard input: one JSON object. Standard output: one line of raw facts,
# {"ok":true,...}; what they mean is the caller's business. A fact that cannot
# be found out takes the value that means so: "", "unknown", 0, false. Only
# memoryBytes and processors are then left out.
# Runs under Windows PowerShell 5.1 and PowerShell 7.

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
$WarningPreference = 'SilentlyContinue'

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
    firewall         = 'unknown'
}

function Read-Request {
    # Not [Console]::In: Windows PowerShell decodes that with the OEM code page.
    $utf8 = [System.Text.UTF8Encoding]::new($false)
    $reader = [System.IO.StreamReader]::new([Console]::OpenStandardInput(), $utf8)
    $text = $reader.ReadToEnd()
    return (ConvertFrom-Json -InputObject $text)
}

function Write-Answer($Answer) {
    $line = (ConvertTo-Json -InputObject $Answer -Depth 5 -Compress) + "`n"
    $bytes = [System.Text.UTF8Encoding]::new($false).GetBytes($line)
    $stdout = [Console]::OpenStandardOutput()
    $stdout.Write($bytes, 0, $bytes.Length)
    $stdout.Flush()
}

function Get-OneLine($ErrorRecord) {
    return ([string]$ErrorRecord.Exception.Message -replace '\s+', ' ').Trim()
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

# What the firewall's rules say of the port on the switch's adapter, as far as
# rules tell: what a rule says of remote addresses and users is not weighed.
function Get-FirewallState($SwitchName, $Port) {
    $alias = "vEthernet ($SwitchName)"
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
        $covers = @($aliases | Where-Object { $_ -eq 'Any' -or $_ -eq '' -or $alias -like $_ })
        if ($aliases.Count -gt 0 -and $covers.Count -eq 0) {
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
        }
    }
    Find-Fact {
        $alias = "vEthernet ($($Request.switch))"
        $all = @(Get-NetIPAddress -AddressFamily IPv4 -ErrorAction Stop | Where-Object { $_.InterfaceAlias -eq $alias } | ForEach-Object { [string]$_.IPAddress })
        # 169.254.x.x is what Windows takes when nothing gave it an address.
        $given = @($all | Where-Object { -not $_.StartsWith('169.254.') }) + $all
        if ($given.Count -gt 0) {
            $facts.switchAddress = $given[0]
        }
    }
    Find-Fact {
        $facts.firewall = Get-FirewallState $Request.switch ([int]$Request.port)
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
