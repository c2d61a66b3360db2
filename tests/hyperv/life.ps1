# The pool's whole life on a real Hyper-V: on one of GitHub's hosted Windows machines, which is
# thrown away afterwards, as administrator. The pool runs as its service in this repository's
# folder. Its VMs have empty disks, so they stay at their firmware's screen, and this script plays
# their guests from the host's side: it reads the key-values that the pool attached, and calls the
# pool as the image's scripts do. GitHub is tests/fake-github.mjs.
#   .\tests\hyperv\life.ps1           needs target\release\hyperv-runner-pool.exe
#   ./tests/hyperv/life.ps1 -Fake     the same steps over the simulated host in FAKE_HYPERV, on
#                                     Linux: the pool is a plain process, and what is only about
#                                     Windows is left out
# Runs under Windows PowerShell 5.1 and PowerShell 7.
param(
    [switch]$Fake,
    # How many VMs come and go in a row.
    [int]$Cycles = 20,
    # BOOT_TIMEOUT, in seconds, in the step that waits for its end.
    [int]$BootTimeout = 120,
    # How long anything may take, in seconds.
    [int]$Patience = 180,
    [int]$Port = 8080
)
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

$Root = Split-Path -Path (Split-Path -Path $PSScriptRoot -Parent) -Parent
. (Join-Path -Path $PSScriptRoot -ChildPath 'common.ps1')
. (Join-Path -Path $Root -ChildPath 'packer/common.ps1')
if ($Fake) {
    # Before a script that names the types of which it has its own is read.
    Enter-FakeHost
}
. (Join-Path -Path $Root -ChildPath 'src/hypervisor/scripts/key-values.ps1')
. (Join-Path -Path $Root -ChildPath 'src/hypervisor/scripts/template-access.ps1')

$Service = 'hyperv-runner-pool'
$Pat = 'ghp_0123456789abcdefghijABCDEFGHIJ012345'
$Address = "http://127.0.0.1:$Port"
$Template = Get-FullPath -Path 'vms/templates/runner-template.vhdx'
$NewTemplate = Get-FullPath -Path 'vms/templates/runner-template-2.vhdx'
$Storage = Get-FullPath -Path 'vms/storage'
$Logs = Get-FullPath -Path 'logs'
# What programs print.
$Work = Get-FullPath -Path 'logs/life'
New-Item -Path $Work -ItemType Directory -Force | Out-Null
# A job of GitHub Actions has it, and what is in the environment goes before .env.
[Environment]::SetEnvironmentVariable('GITHUB_API_URL', $null)
# Where the pool looks for .env.
Set-Location -LiteralPath $Root

# ---- The pool

$script:runs = 0
$script:process = $null

# Runs one of the pool's commands to its end: its exit code and what it printed.
function Invoke-Pool([string[]]$Words, [scriptblock]$Meanwhile = { }) {
    $script:runs = $script:runs + 1
    $output = Join-Path -Path $Work -ChildPath "command-$script:runs"
    $process = Start-Program $Binary $Words $output
    Wait-Until "``$Words`` does not end" 300 {
        & $Meanwhile
        $process.HasExited
    } | Out-Null
    $process.WaitForExit()
    return @{ ExitCode = $process.ExitCode; Text = (Get-ProgramOutput $output) }
}

# The same, which must succeed: what it printed.
function Invoke-Service([string[]]$Words, [scriptblock]$Meanwhile = { }) {
    $result = Invoke-Pool (@('service') + $Words) $Meanwhile
    if ($result.ExitCode -ne 0) {
        throw "``service $Words`` ended with exit code $($result.ExitCode): $($result.Text)"
    }
    return $result.Text
}

function Start-Pool {
    if (-not $Fake) {
        return (Invoke-Service 'start')
    }
    $script:runs = $script:runs + 1
    $script:process = Start-Program $Binary @() (Join-Path -Path $Work -ChildPath "pool-$script:runs")
}

# Stops the pool in order, and plays the guests meanwhile: idle ones are asked to retire.
function Stop-Pool {
    if (-not $Fake) {
        return (Invoke-Service 'stop' { Invoke-GuestRound | Out-Null })
    }
    & '/bin/kill' -INT $script:process.Id
    Wait-Until 'The pool does not stop' 240 {
        Invoke-GuestRound | Out-Null
        $script:process.HasExited
    } | Out-Null
    if ($script:process.ExitCode -ne 0) {
        throw "The pool stopped with exit code $($script:process.ExitCode)."
    }
}

# Ends the pool's process and with it, as a job object does on Windows, its PowerShell.
function Stop-PoolProcess {
    if ($Fake) {
        $script:process.Kill($true)
        $script:process.WaitForExit()
    } else {
        $id = [int](Get-CimInstance -ClassName Win32_Service -Filter "Name = '$Service'").ProcessId
        Stop-Process -Id $id -Force
    }
}

# What the pool says of itself; nothing while it does not listen.
function Get-PoolStatus {
    try {
        return (Invoke-RestMethod -Uri "$Address/api/status" -UseBasicParsing -TimeoutSec 60)
    } catch {
        return $null
    }
}

function Get-Slot([int]$Number) {
    $status = Get-PoolStatus
    if ($null -ne $status) {
        return ($status.slots | Where-Object { $_.slot -eq $Number })
    }
}

# ---- GitHub

function Invoke-GitHub([string]$Method, [string]$Path) {
    return (Invoke-RestMethod -Method $Method -Uri "$($script:gitHub.Url)/-/$Path" -UseBasicParsing -TimeoutSec 60)
}

# The names of all runners. (Invoke-RestMethod gives a list as one object.)
function Get-RunnerName {
    return @(Invoke-GitHub 'Get' 'runners' | ForEach-Object { $_ })
}

# ---- The guests

# What the image's own script sends to the pool.
$guestModule = New-Module -Name Guest -ArgumentList $Root, $Work -ScriptBlock {
    param($Root, $Work)
    . (Join-Path -Path $Root -ChildPath 'packer/guest/pool.ps1')
    $script:ImageFile = Join-Path -Path $Work -ChildPath 'image.json'
    # An answer that comes too late would be a guest that says nothing.
    $script:RequestMilliseconds = 100000
    Export-ModuleMember -Function Get-RunnerConfig, Send-RunnerStarted, Send-RunnerComplete
}
Import-Module -ModuleInfo $guestModule
[System.IO.File]::WriteAllText((Join-Path -Path $Work -ChildPath 'image.json'), '{"runner_version":"2.328.0","built":"2026-11-01","windows_evaluation_end":null}')

# The guests that were answered: the ids of their VMs, in upper case, to what they know.
$script:guests = @{}
# The guest of this VM, by name or id, says nothing.
$script:silent = ''
# How many VMs that are on were asked to retire at one time, at most.
$script:retiring = 0
# Whether Hyper-V changes the key-values of a VM that is on while no system in it takes them.
$script:takesWrites = $true

function Get-PoolVM {
    return @(Get-VM | Where-Object { $_.Name -like 'runner-*' })
}

# Whether a VM's guest knows by now that it is to retire. Where no key-value reaches a VM without a
# system, the pool's log stands for it.
function Test-Asked($Vm, $Values) {
    if ($script:takesWrites -or [string]$Vm.Notes -eq '') {
        return ($null -ne $Values -and $Values.ContainsKey('RunnerPoolRetire'))
    }
    $incarnation = (ConvertFrom-Json -InputObject $Vm.Notes).incarnation
    return (@(Get-LogLine $Logs "* $($Vm.Name) ($incarnation): asked to retire*").Count -gt 0)
}

# Lets each VM do what its guest would do now.
function Invoke-GuestRound {
    $hostValues = Get-HostValue
    $on = @(Get-PoolVM | Where-Object { [string]$_.State -eq 'Running' })
    foreach ($guest in $script:guests.Values) {
        $guest.IsOver = $guest.IsOver -or @($on | Where-Object { $_.Id -eq $guest.Vm.Id }).Count -eq 0
    }
    $asked = @($on | Where-Object { Test-Asked $_ $hostValues[([string]$_.Id).ToUpperInvariant()] })
    $script:retiring = [Math]::Max($script:retiring, $asked.Count)
    foreach ($vm in @($on | Where-Object { $script:silent -notin $_.Name, [string]$_.Id })) {
        $id = ([string]$vm.Id).ToUpperInvariant()
        $values = $hostValues[$id]
        if ($null -eq $values -or -not $values.ContainsKey('RunnerPoolVmSecret')) {
            continue
        }
        if (-not $script:guests.ContainsKey($id)) {
            Join-Guest $vm $id $values
        } elseif (@($asked | Where-Object { $_.Id -eq $vm.Id }).Count -gt 0 -and -not $script:guests[$id].HasJob -and -not $script:guests[$id].IsOver) {
            Send-RunnerComplete -Pool $script:guests[$id].Pool -ExitCode 0 | Out-Null
            $script:guests[$id].IsOver = $true
            $script:guests[$id].Retired = $true
        }
    }
}

# Fetches the configuration, with which the runner goes online.
function Join-Guest($Vm, [string]$Id, $Values) {
    $guest = @{
        Pool    = @{ Url = $Values['RunnerPoolUrl']; VmName = $Values['RunnerPoolVmName']; Secret = $Values['RunnerPoolVmSecret'] }
        Vm      = $Vm
        Id      = $Id
        Name    = ''
        HasJob  = $false
        IsOver  = $false
        Retired = $false
    }
    $answer = Get-RunnerConfig -Pool $guest.Pool
    # 503: the creation has not ended yet.
    if ($answer.Status -eq 503 -or $answer.Status -eq 0) {
        return
    }
    if ($answer.Status -ne 200) {
        throw "The pool answers $($answer.Status) to the guest of $($Vm.Name)."
    }
    $guest.Name = (ConvertFrom-Json -InputObject $answer.Body).name
    Invoke-GitHub 'Post' "runners/$($guest.Name)?online=true" | Out-Null
    $script:guests[$Id] = $guest
}

function Start-GuestJob($Guest, [string]$Run) {
    $answer = Send-RunnerStarted -Pool $Guest.Pool -RunId $Run -Job 'build' -Repository 'acme/app'
    if ($answer.Status -ne 200) {
        throw "The pool answers $($answer.Status) to the start of a job on $($Guest.Pool.VmName)."
    }
    $Guest.HasJob = $true
    Invoke-GitHub 'Post' "runners/$($Guest.Name)?online=true&busy=true" | Out-Null
}

# The listener ends. With its job, GitHub forgets the runner.
function Complete-Guest($Guest) {
    if ($Guest.HasJob) {
        Invoke-GitHub 'Delete' "runners/$($Guest.Name)" | Out-Null
    }
    $answer = Send-RunnerComplete -Pool $Guest.Pool -ExitCode 0
    if ($answer.Status -ne 200) {
        throw "The pool answers $($answer.Status) to the end of the runner on $($Guest.Pool.VmName)."
    }
    $Guest.IsOver = $true
}

# The guest in a slot, once it was answered.
function Get-Guest([int]$Slot) {
    return ($script:guests.Values | Where-Object { $_.Pool.VmName -eq "runner-$Slot" -and -not $_.IsOver })
}

# Plays the guests until $Find, which gets the pool's status, finds something.
function Wait-Pool([string]$Fault, [scriptblock]$Find, [int]$Limit = $Patience) {
    try {
        return (Wait-Until $Fault $Limit {
            Invoke-GuestRound | Out-Null
            $status = Get-PoolStatus
            if ($null -ne $status) {
                & $Find $status
            }
        })
    } catch {
        $status = Get-PoolStatus
        $slots = 'the pool does not listen'
        if ($null -ne $status) {
            $slots = @($status.slots | ForEach-Object { "$($_.slot) $($_.state) $($_.incarnation) $($_.reason)".Trim() }) -join '; '
        }
        throw "$($_.Exception.Message) (slots: $slots)"
    }
}

# Waits until both slots are ready, with VMs other than these incarnations.
function Wait-Ready([string[]]$Old = @()) {
    Wait-Pool 'Not both slots have a ready VM, and a new one where one ended,' {
        param($Status)
        @($Status.slots | Where-Object { $_.state -eq 'ready' -and $Old -notcontains $_.incarnation }).Count -eq 2
    } | Out-Null
}

# ---- What is found

# Compares what was found with what was asked for, and returns a line for each.
function Compare-Found([string]$What, $Pairs) {
    $wrong = [System.Collections.Generic.List[string]]::new()
    foreach ($name in @($Pairs.Keys)) {
        $found, $wanted = $Pairs[$name]
        if ([string]$found -ne [string]$wanted) {
            $wrong.Add("$name is '$found', not '$wanted'")
        }
    }
    if ($wrong.Count -gt 0) {
        throw "${What}: $($wrong -join '; ')."
    }
    return "${What}: $(@($Pairs.Keys | ForEach-Object { "$_ $($Pairs[$_][0])" }) -join ', ')"
}

# The runner's name in the JIT configuration that a VM got by key-values.
function Get-JitRunnerName($Values) {
    $text = ''
    for ($part = 1; $part -le [int]$Values['RunnerPoolJitConfigParts']; $part++) {
        $text += $Values["RunnerPoolJitConfig$part"]
    }
    $utf8 = [System.Text.Encoding]::UTF8
    $files = ConvertFrom-Json -InputObject $utf8.GetString([Convert]::FromBase64String($text))
    return (ConvertFrom-Json -InputObject $utf8.GetString([Convert]::FromBase64String($files.'.runner'))).AgentName
}

# Reads back everything that a creation sets.
function Assert-Creation($Slot) {
    $vm = Get-VM -Name $Slot.vm
    $id = ([string]$vm.Id).ToUpperInvariant()
    $values = (Get-HostValue)[$id]
    $notes = ConvertFrom-Json -InputObject $vm.Notes
    $adapter = Get-VMNetworkAdapter -VM $vm
    $firmware = Get-VMFirmware -VM $vm
    $disk = Get-VHD -Path @($vm.HardDrives)[0].Path
    $system = Get-HyperVInstance 'Msvm_VirtualSystemSettingData' "VirtualSystemIdentifier = '$id' AND VirtualSystemType = 'Microsoft:Hyper-V:System:Realized'"
    $address = Get-SwitchAddress -SwitchName $switchName
    Compare-Found "$($vm.Name), settings" ([ordered]@{
        State                       = $vm.State, 'Running'
        Generation                  = $vm.Generation, 2
        MemoryStartup               = $vm.MemoryStartup, 536870912
        DynamicMemoryEnabled        = $vm.DynamicMemoryEnabled, $false
        ProcessorCount              = $vm.ProcessorCount, 1
        Nested                      = (Get-VMProcessor -VM $vm).ExposeVirtualizationExtensions, $false
        SecureBoot                  = $firmware.SecureBoot, 'On'
        SecureBootTemplate          = $firmware.SecureBootTemplate, 'MicrosoftWindows'
        CheckpointType              = $vm.CheckpointType, 'Disabled'
        AutomaticCheckpointsEnabled = $vm.AutomaticCheckpointsEnabled, $false
        AutomaticStartAction        = $vm.AutomaticStartAction, 'Nothing'
        AutomaticStopAction         = $vm.AutomaticStopAction, 'TurnOff'
        AutomaticRecoveryAction     = $system.AutomaticRecoveryAction, 2
        Disks                       = @($vm.HardDrives).Count, 1
        Disk                        = (Split-Path -Path $disk.Path -Leaf), "$($vm.Name)-$($Slot.incarnation).vhdx"
        Template                    = $disk.ParentPath, $Template
    })
    Compare-Found "$($vm.Name), Notes" ([ordered]@{
        slot        = $notes.slot, $Slot.slot
        incarnation = $notes.incarnation, $Slot.incarnation
        runner_id   = $notes.runner_id, $Slot.runner_id
    })
    $parts = [int]$values['RunnerPoolJitConfigParts']
    $longest = @(1..$parts | ForEach-Object { $values["RunnerPoolJitConfig$_"].Length } | Sort-Object)[-1]
    Compare-Found "$($vm.Name), key-values" ([ordered]@{
        RunnerPoolUrl          = $values['RunnerPoolUrl'], "http://$($address.IPAddress):$Port"
        RunnerPoolVmName       = $values['RunnerPoolVmName'], $vm.Name
        RunnerPoolGateway      = $values['RunnerPoolGateway'], $address.IPAddress
        RunnerPoolPrefixLength = $values['RunnerPoolPrefixLength'], $address.PrefixLength
        'Several parts'        = ($parts -gt 1), $true
        'Longest part'         = $longest, 900
        'JIT configuration of' = (Get-JitRunnerName $values), $Slot.runner
    })
    Compare-Found "$($vm.Name), adapter" ([ordered]@{
        SwitchName         = $adapter.SwitchName, $switchName
        Connected          = $adapter.Connected, $true
        MacAddress         = ([string]$adapter.MacAddress).Substring(0, 2), '0A'
        MacAddressSpoofing = $adapter.MacAddressSpoofing, 'Off'
        DhcpGuard          = $adapter.DhcpGuard, 'On'
        RouterGuard        = $adapter.RouterGuard, 'On'
    })
    Assert-Wall $vm $adapter $address.IPAddress $values['RunnerPoolAddress']
}

# The rules that wall the VM off, in the order in which the switch takes them.
function Assert-Wall($Vm, $Adapter, [string]$HostAddress, [string]$VmAddress) {
    $rules = @(Get-VMNetworkAdapterExtendedAcl -VMNetworkAdapter $Adapter | Sort-Object -Property Weight -Descending)
    foreach ($direction in 'Outbound', 'Inbound') {
        $own = @($rules | Where-Object { [string]$_.Direction -eq $direction })
        $texts = @($own | ForEach-Object { "$($_.Action) $($_.Protocol) $($_.LocalIPAddress) $($_.RemoteIPAddress) $($_.RemotePort)" })
        if ($own.Count -eq 0) {
            throw "$($Vm.Name) has no rules ($direction)."
        }
        $denied = @($own | Where-Object { [string]$_.Action -eq 'Deny' } | ForEach-Object { [string]$_.RemoteIPAddress })
        $wanted = '10.0.0.0/8', '100.64.0.0/10', '169.254.0.0/16', '172.16.0.0/12', '192.168.0.0/16', '::/0'
        $missing = @($wanted | Where-Object { $denied -notcontains $_ })
        $first = "$($own[0].Action) $($own[0].LocalIPAddress) $($own[0].RemoteIPAddress) $($own[0].RemotePort)"
        $last = "$($own[-1].Action) $($own[-1].RemoteIPAddress)"
        if ($first -ne "Allow $VmAddress $HostAddress $Port" -or $missing.Count -gt 0 -or $last -ne 'Deny ANY') {
            throw "$($Vm.Name), rules of the adapter, ${direction}: $($missing -join ', ') not denied, or the wrong first or last one: $($texts -join '; ')."
        }
        "$($Vm.Name), rules, ${direction}: $($own.Count), the first allows $($own[0].RemoteIPAddress):$($own[0].RemotePort), the last denies all"
    }
}

# Errors that the virtual switch has reported since then.
function Get-SwitchError([datetime]$Since) {
    # Events that are not there are an error, a provider that is not there too.
    $filter = @{ ProviderName = 'Microsoft-Windows-Hyper-V-VmSwitch'; Level = 1, 2; StartTime = $Since }
    try {
        return @(Get-WinEvent -FilterHashtable $filter -ErrorAction Stop | ForEach-Object { "$($_.Id): $($_.Message)" })
    } catch {
        if ($_.FullyQualifiedErrorId -notlike 'NoMatchingEventsFound*') {
            throw
        }
        return @()
    }
}

# How many entries the access list of a file has, with two lines that are none.
function Get-AccessCount([string]$Path) {
    return @(& icacls.exe $Path).Count
}

# The disks in the storage folder, each of which a VM that is on must hold.
function Assert-Disk {
    $held = @(Get-PoolVM | Where-Object { [string]$_.State -eq 'Running' } | ForEach-Object { $_.HardDrives } | ForEach-Object { Split-Path -Path $_.Path -Leaf })
    $disks = @(Get-ChildItem -LiteralPath $Storage -Filter '*.vhdx' -File | ForEach-Object { $_.Name })
    $left = @($disks | Where-Object { $held -notcontains $_ })
    if ($left.Count -gt 0 -or $disks.Count -ne 2) {
        throw "There are $($disks.Count) disks, not 2; no VM holds: $($left -join ', ')."
    }
    return "2 disks, each of a VM that is on: $($disks -join ', ')"
}

# ---- The life

# How long the pool's PowerShell took, by script, and how many processes a VM's life has cost.
function Get-Summary {
    $lines = @(
        '| script | processes | shortest | mean | longest |'
        '|---|---|---|---|---|'
    )
    $all = 0
    foreach ($name in 'create-vm', 'list-vms', 'destroy-vm', 'check-host') {
        $times = @(Get-LogLine $Logs "*$name took * ms" | ForEach-Object { [int](($_ -split ' ')[-2]) })
        if ($times.Count -eq 0) {
            throw "The log does not say how long $name took."
        }
        $all = $all + $times.Count
        $found = $times | Measure-Object -Minimum -Average -Maximum
        $lines += '| {0} | {1} | {2:0.0} s | {3:0.0} s | {4:0.0} s |' -f $name, $times.Count, ($found.Minimum / 1000), ($found.Average / 1000), ($found.Maximum / 1000)
    }
    $lives = @(Get-LogLine $Logs '*: made in *').Count
    $lines + @('', ('{0} VMs were made: {1:0.0} PowerShell processes for each life, at a look every 2 s.' -f $lives, ($all / $lives)))
}

function Set-Setup($Settings) {
    foreach ($name in @($Settings.Keys)) {
        Set-Setting -Name $name -Value $Settings[$name]
    }
}

try {
    Invoke-Step 'The machine' {
        # For each VM, what check sets aside for its job.
        Assert-Machine 2 4 22 $Root
    }

    if (-not $Fake) {
        Invoke-Step 'Docker''s network is out of the way' { Remove-DockerNetwork }

        Invoke-Step 'bootstrap.ps1 makes the pool''s switch, and changes nothing when it runs again' {
            $bootstrap = Join-Path -Path $Root -ChildPath 'bootstrap.ps1'
            $powershell = (Get-Process -Id $PID).Path
            foreach ($run in 'first', 'second') {
                $output = Join-Path -Path $Work -ChildPath "bootstrap-$run"
                $process = Start-Program $powershell @('-NoProfile', '-ExecutionPolicy', 'Bypass', '-File', "`"$bootstrap`"", '-HostOnly') $output
                $process.WaitForExit()
                $text = Get-ProgramOutput $output
                "the $run run:"
                $text -split '\n'
                if ($process.ExitCode -ne 0) {
                    throw "bootstrap.ps1 ended with exit code $($process.ExitCode)."
                }
            }
            # The rule of the firewall is made anew each time.
            $again = @($text -split '\n' | Where-Object { $_ -like '`[done`]*' -and $_ -notlike '*firewall rule*' })
            if ($again.Count -gt 0) {
                throw "The second run did again: $($again -join '; ')"
            }
            $nats = @(Get-NetNat -ErrorAction Stop)
            if ($nats.Count -ne 1 -or (Get-Setting -Name 'VM_SWITCH') -ne 'Runners') {
                throw "There are $($nats.Count) NATs, and VM_SWITCH is '$(Get-Setting -Name 'VM_SWITCH')', not Runners."
            }
            $address = Get-SwitchAddress -SwitchName 'Runners'
            "the NAT '$($nats[0].Name)' for $($nats[0].InternalIPInterfaceAddressPrefix); the host has $($address.IPAddress)/$($address.PrefixLength)"
        }
    }

    Invoke-Step 'Settings, an empty template, and a stand-in for GitHub' {
        $script:gitHub = Start-FakeGitHub $Pat (Join-Path -Path $Work -ChildPath 'github')
        if ($Fake) {
            Set-Setup ([ordered]@{ WEBHOOK_SECRET = 'a-webhook-secret'; VM_SWITCH = 'Runners'; LOG_DIR = 'logs' })
        }
        Set-Setup ([ordered]@{
            GITHUB_PAT       = $Pat
            GITHUB_ORG       = 'acme'
            GITHUB_API_URL   = $script:gitHub.Url
            USE_MOCK         = 'false'
            PORT             = [string]$Port
            POOL_SIZE        = '2'
            VM_MEMORY_MB     = '512'
            VM_CPU_COUNT     = '1'
            VM_TEMPLATE_PATH = $Template
            VM_STORAGE_PATH  = $Storage
            MIN_FREE_GB      = '1'
            # Until the step that waits for its end.
            BOOT_TIMEOUT     = [string][Math]::Max($BootTimeout, $Patience)
            POLL_SECONDS     = '2'
            LOG_LEVEL        = 'debug'
        })
        New-Item -Path (Split-Path -Path $Template -Parent), $Storage -ItemType Directory -Force | Out-Null
        New-VHD -Path $Template -SizeBytes 64MB -Dynamic | Out-Null
        $script:firstAccess = Get-AccessCount $Template
        "$Template, GitHub at $($script:gitHub.Url)"
    }
    $switchName = Get-Setting -Name 'VM_SWITCH'
    $binary = Find-Binary
    if ($binary -eq '') {
        throw 'There is no target\release\hyperv-runner-pool: run `cargo build --release` first.'
    }

    Invoke-Step '`check` is all green' {
        $result = Invoke-Pool 'check'
        $lines = @($result.Text -split '\n')
        $lines
        $others = @($lines | Where-Object { $_ -notlike 'ok *' })
        if ($result.ExitCode -ne 0 -or $others.Count -gt 0) {
            throw "exit code $($result.ExitCode); not green: $($others -join ' ')"
        }
    }

    Invoke-Step 'The pool starts' {
        if (-not $Fake) {
            Invoke-Service 'install'
        }
        Start-Pool
        Wait-Until 'The pool does not listen' $Patience {
            if ($Fake -and $script:process.HasExited) {
                throw "The pool ended with exit code $($script:process.ExitCode)."
            }
            Get-PoolStatus
        } | Out-Null
        "it listens on port $Port"
    }

    Invoke-Step 'Two VMs are made, and every setting is read back' {
        $began = Get-Date
        $status = Wait-Until 'Two VMs are not booting' $Patience {
            $now = Get-PoolStatus
            if ($null -ne $now -and @($now.slots | Where-Object { $_.state -eq 'booting' }).Count -eq 2) { $now }
        }
        foreach ($slot in $status.slots) {
            Assert-Creation $slot
        }
        $errors = @(Get-SwitchError $began)
        if ($errors.Count -gt 0) {
            throw "The virtual switch has reported errors: $($errors -join '; ')"
        }
        'no error event of the virtual switch'
    }

    Invoke-Step 'Whether key-values reach a VM without a system' {
        $vm = @(Get-PoolVM)[0]
        $system = Get-HyperVInstance 'Msvm_ComputerSystem' "Name = '$(([string]$vm.Id).ToUpperInvariant())'"
        try {
            Invoke-KvpMethod 'AddKvpItems' $system @{ Probe = '1' } 30
            'they do'
        } catch {
            # Anything but Hyper-V's own no is a fault.
            if ($_.Exception.Message -notlike 'Hyper-V *AddKvpItems *') {
                throw
            }
            $script:takesWrites = $false
            $told = "They do not: $($_.Exception.Message) What the pool writes to a VM that is on is shown by the workflow *image* alone."
            Add-Summary $told
            $told
        }
    }

    Invoke-Step 'Their guests get their configuration, and the JIT configuration is taken back' {
        Wait-Ready
        if (-not $script:takesWrites) {
            return 'not seen: no key-value of theirs can be removed'
        }
        Wait-Pool 'The key-values still hold the JIT configuration' {
            $values = Get-HostValue
            @(Get-PoolVM | Where-Object { @($values[([string]$_.Id).ToUpperInvariant()].Keys) -like 'RunnerPoolJitConfig*' }).Count -eq 0
        } | Out-Null
        foreach ($number in 1, 2) {
            "runner-${number}: $((Get-Guest $number).Name), ready"
        }
        'no RunnerPoolJitConfig is left in their key-values'
    }

    Invoke-Step 'A job runs, and its VM is replaced' {
        $slot = Get-Slot 1
        $guest = Get-Guest 1
        Start-GuestJob $guest '4711'
        $running = Wait-Pool 'The job is not seen' { param($Status) $Status.slots | Where-Object { $_.slot -eq 1 -and $_.state -eq 'running' } }
        "job $($running.job.name) of $($running.job.repository), run $($running.job.run_id)"
        Complete-Guest $guest
        Wait-Ready $slot.incarnation
        "$($slot.incarnation) is replaced by $((Get-Slot 1).incarnation)"
        Assert-Disk
    }

    Invoke-Step 'A VM that powers off is replaced' {
        $slot = Get-Slot 2
        $guest = Get-Guest 2
        $guest.IsOver = $true
        Stop-VM -VM $guest.Vm -TurnOff -Force
        Wait-Ready $slot.incarnation
        "$($slot.incarnation) is replaced by $((Get-Slot 2).incarnation)"
    }

    Invoke-Step "$Cycles VMs come and go: no longer access list of the template, no locked disk" {
        # As if many VMs had come and gone already.
        $gone = @(1..20 | ForEach-Object { "*S-1-5-83-1-0-0-0-${_}:(R)" })
        & icacls.exe $Template '/grant' @gone | Out-Null
        if ($LASTEXITCODE -ne 0) {
            throw "icacls.exe ended with exit code $LASTEXITCODE."
        }
        for ($cycle = 0; $cycle -lt $Cycles; $cycle += 2) {
            $old = @((Get-PoolStatus).slots | ForEach-Object { $_.incarnation })
            foreach ($number in 1, 2) {
                $guest = Get-Guest $number
                Start-GuestJob $guest ([string](5000 + $cycle + $number))
                Complete-Guest $guest
            }
            Wait-Ready $old
        }
        $count = Get-AccessCount $Template
        # An entry for each VM that is on, one for all VMs, one for worker processes as such, and
        # those of fewer than 16 VMs that are gone.
        if ($count -gt $script:firstAccess + 2 + 1 + 1 + 15) {
            throw "The template's access list had $script:firstAccess lines and has $count."
        }
        "the template's access list: $script:firstAccess lines before, $count now"
        Assert-Disk
    }

    Invoke-Step 'A newer template is taken: the VMs are asked to retire by key-value, one at a time' {
        $old = @((Get-PoolStatus).slots | ForEach-Object { $_.incarnation })
        $asked = @($script:guests.Values | Where-Object { -not $_.IsOver })
        $script:retiring = 0
        New-VHD -Path $NewTemplate -SizeBytes 64MB -Dynamic | Out-Null
        Set-Setting -Name 'VM_TEMPLATE_PATH' -Value $NewTemplate
        Wait-Ready $old
        foreach ($guest in $asked) {
            if (-not $guest.Retired) {
                throw "$($guest.Name) was replaced without having been asked to retire."
            }
            "$($guest.Name) was asked to retire, and ended"
        }
        if ($script:retiring -ne 1) {
            throw "$script:retiring VMs were asked to retire at one time, not 1."
        }
        foreach ($vm in @(Get-PoolVM)) {
            $parent = (Get-VHD -Path @($vm.HardDrives)[0].Path).ParentPath
            if ($parent -ne $NewTemplate) {
                throw "The disk of $($vm.Name) is based on $parent."
            }
        }
        "both disks are based on $NewTemplate"
    }

    Invoke-Step 'A stop with a job on: the idle VM retires, the other is adopted by the next start' {
        $slot = Get-Slot 1
        $other = Get-Slot 2
        $guest = Get-Guest 1
        Start-GuestJob $guest '4712'
        Wait-Pool 'The job''s start is not in the VM''s Notes' { (Get-VM -Name 'runner-1').Notes -match '"job_started":\s*\d' } | Out-Null
        Stop-Pool
        $left = @(Get-PoolVM | ForEach-Object { $_.Name })
        if ([string]$left -ne 'runner-1' -or (Get-RunnerName) -contains $other.runner) {
            throw "The VMs $left are left, and GitHub's runners $(Get-RunnerName)."
        }
        "stopped: $($slot.runner) runs on, $($other.runner) is gone here and at GitHub"
        Start-Pool
        $adopted = Wait-Pool 'The VM with the job is not adopted' { param($Status) $Status.slots | Where-Object { $_.slot -eq 1 -and $_.state -eq 'running' } }
        if ($adopted.incarnation -ne $slot.incarnation) {
            throw "Slot 1 has $($adopted.incarnation), not $($slot.incarnation)."
        }
        'adopted with its job'
        Complete-Guest $guest
        Wait-Ready $slot.incarnation
        "$($slot.incarnation) is replaced by $((Get-Slot 1).incarnation)"
    }

    Invoke-Step 'Killed in the middle of a creation: what is left is cleared' {
        $began = Get-Date
        $kept = Get-Slot 2
        # For the step after this one.
        Set-Setting -Name 'KEEP_FAILED' -Value '1'
        Set-Setting -Name 'BOOT_TIMEOUT' -Value ([string]$BootTimeout)
        $hold = ''
        if ($Fake) {
            $hold = Join-Path -Path $env:FAKE_HYPERV -ChildPath 'hold-New-VM'
            [System.IO.File]::WriteAllText($hold, '')
        }
        # Where nothing holds it, the creation can be over before it was seen.
        for ($try = 1; $true; $try++) {
            $guest = Get-Guest 1
            Start-GuestJob $guest "480$try"
            Complete-Guest $guest
            $half = Wait-Until 'No VM is being made' $Patience {
                Get-PoolVM | Where-Object { $_.Name -eq 'runner-1' -and $_.Id -ne $guest.Vm.Id }
            }
            if ([string]$half.State -eq 'Off') {
                Stop-PoolProcess
                break
            }
            if ($try -eq 5) {
                throw 'No VM was seen while it was being made.'
            }
            Wait-Ready
        }
        "killed while $($half.Name) ($($half.Id)) was being made, Notes '$($half.Notes)'"
        if ($Fake) {
            [System.IO.File]::Delete($hold)
            Start-Pool
        }
        $disk = [string]@($half.HardDrives)[0].Path
        Wait-Ready
        if (@(Get-PoolVM | Where-Object { $_.Id -eq $half.Id }).Count -gt 0 -or (Test-Path -LiteralPath $disk)) {
            throw "The VM $($half.Id) or its disk $disk is still there."
        }
        if ((Get-Slot 2).incarnation -ne $kept.incarnation) {
            throw "Slot 2 has $((Get-Slot 2).incarnation), not $($kept.incarnation), which was on."
        }
        "the VM and its disk are gone, $($kept.incarnation) was adopted"
        Assert-Disk
        if (-not $Fake) {
            # 7031: a service ended, and is started again.
            $entry = @(Get-WinEvent -FilterHashtable @{ ProviderName = 'Service Control Manager'; Id = 7031; StartTime = $began } -ErrorAction Stop | Where-Object { $_.Message -like '*Hyper-V runner pool*' })
            if ($entry.Count -eq 0) {
                throw 'The event log does not say that the service ended.'
            }
            "Windows started it again: $($entry[0].Message)"
        }
    }

    Invoke-Step "A VM whose guest says nothing ends after BOOT_TIMEOUT ($BootTimeout s), shows its screen and is kept" {
        $script:silent = 'runner-1'
        $guest = Get-Guest 1
        Start-GuestJob $guest '4713'
        Complete-Guest $guest
        $slot = Wait-Pool 'No VM is booting' { param($Status) $Status.slots | Where-Object { $_.slot -eq 1 -and $_.state -eq 'booting' } }
        $script:silent = [string](Get-VM -Name $slot.vm).Id
        Wait-Pool 'BOOT_TIMEOUT does not end it' { @(Get-LogLine $Logs "*$($slot.incarnation)): ended before its guest fetched*BOOT_TIMEOUT*").Count -gt 0 } ($BootTimeout + $Patience) | Out-Null
        Get-LogLine $Logs "*$($slot.incarnation)): ended before*"
        $failure = Wait-Pool 'No picture of its screen is kept' {
            param($Status)
            $Status.failures | Where-Object { $_.incarnation -eq $slot.incarnation -and $null -ne $_.picture }
        }
        $png = [System.IO.File]::ReadAllBytes((Get-FullPath -Path "logs/$($failure.picture)"))
        if ([System.BitConverter]::ToString($png, 0, 8) -ne '89-50-4E-47-0D-0A-1A-0A') {
            throw "$($failure.picture) is no PNG."
        }
        # Big-endian numbers below 65536.
        "logs/$($failure.picture): $($png[18] * 256 + $png[19]) x $($png[22] * 256 + $png[23]) pixels"
        Wait-Pool 'It is not kept' {
            @(Get-VM | Where-Object { $_.Name -eq "failed-$($slot.incarnation)" -and [string]$_.State -eq 'Off' }).Count -eq 1
        } | Out-Null
        "kept as failed-$($slot.incarnation)"
        Wait-Ready $slot.incarnation
        # By now also the registration of the VM that was never finished.
        Wait-Pool 'GitHub does not have just the runners of the two VMs' { @(Get-RunnerName).Count -eq 2 } ($BootTimeout + $Patience) | Out-Null
        "GitHub's runners: $(Get-RunnerName)"
    }

    Invoke-Step 'An ordered stop, after which cleanup removes the VM that was kept' {
        Stop-Pool
        $removed = Invoke-Pool 'cleanup', '--yes'
        if ($removed.ExitCode -ne 0 -or @(Get-VM | Where-Object { $_.Name -like 'failed-*' }).Count -gt 0) {
            throw "cleanup does not remove the VM that was kept: $($removed.Text)"
        }
        $removed.Text
        $vms = @(Get-PoolVM)
        $disks = @(Get-ChildItem -LiteralPath $Storage -Filter '*.vhdx' -File)
        $names = @(Get-RunnerName)
        if ($vms.Count + $disks.Count + $names.Count -gt 0) {
            throw "$($vms.Count) VMs, $($disks.Count) disks and $($names.Count) runners are left."
        }
        'no VM, no disk and no runner at GitHub is left'
    }

    if (-not $Fake) {
        Invoke-Step 'A service that was stopped stays stopped, and wrong settings stand in the event log' {
            # Longer than the second restart after a failure would wait.
            Start-Sleep -Seconds 45
            if ([string](Get-Service -Name $Service).Status -ne 'Stopped') {
                throw "After an ordered stop it is $((Get-Service -Name $Service).Status)."
            }
            'still stopped after 45 s'
            $began = Get-Date
            Set-Setting -Name 'USE_MOCK' -Value 'perhaps'
            $result = Invoke-Pool 'service', 'start'
            if ($result.ExitCode -eq 0) {
                throw 'It starts with USE_MOCK=perhaps.'
            }
            $messages = @(Get-WinEvent -FilterHashtable @{ ProviderName = $Service; StartTime = $began } -ErrorAction Stop | ForEach-Object { [string]$_.Message })
            if (@($messages -like '*USE_MOCK*perhaps*').Count -eq 0) {
                throw "The event log says: $($messages -join '; ')"
            }
            "the event log: $($messages[0])"
            Start-Sleep -Seconds 45
            if ([string](Get-Service -Name $Service).Status -ne 'Stopped') {
                throw 'Windows has started it again.'
            }
            'and nothing started it again'
            Set-Setting -Name 'USE_MOCK' -Value 'false'
        }

        Invoke-Step 'Uninstall leaves nothing' {
            Invoke-Service 'start'
            Wait-Ready
            Invoke-Service 'uninstall' { Invoke-GuestRound | Out-Null }
            $key = 'HKLM:\SYSTEM\CurrentControlSet\Services'
            $left = @(
                @(Get-PoolVM) | ForEach-Object { "the VM $($_.Name)" }
                Get-ChildItem -LiteralPath $Storage -Filter '*.vhdx' -File | ForEach-Object { "the disk $($_.Name)" }
                Get-RunnerName | ForEach-Object { "the runner $_" }
                Get-Service -Name $Service -ErrorAction SilentlyContinue | ForEach-Object { "the service $($_.Name)" }
                "$key\$Service", "$key\EventLog\Application\$Service" | Where-Object { Test-Path -LiteralPath $_ }
            )
            if ($left.Count -gt 0) {
                throw "It leaves $($left -join ', ')."
            }
            'no service, no event source, no VM, no disk, no runner at GitHub'
        }

        # What template-access.ps1 relies on.
        Invoke-Step 'A VM starts without an entry of its own, if the template''s access list lets all VMs read it' {
            $disk = Join-Path -Path $Work -ChildPath 'by-hand.vhdx'
            New-VHD -Path $disk -ParentPath $Template -Differencing | Out-Null
            $vm = New-VM -Name 'by-hand' -Generation 2 -MemoryStartupBytes 512MB -VHDPath $disk
            & icacls.exe $Template '/grant' "*${AllVms}:(R)" '/remove:g' "*$(Get-VmSid $vm.Id)"
            Start-VM -VM $vm
            Stop-VM -VM $vm -TurnOff -Force
            Remove-VM -VM $vm -Force
            Remove-Item -LiteralPath $disk
        }
    }

    Invoke-Step '`cleanup` finds nothing to remove' {
        $result = Invoke-Pool 'cleanup'
        $result.Text
        if ($result.ExitCode -ne 0 -or $result.Text -notlike '*Nothing of this pool is left.') {
            throw "``cleanup`` ended with exit code $($result.ExitCode)."
        }
    }

    Invoke-Step 'No invariant was broken, and no secret is in the log' {
        $unwanted = @{ 'a broken invariant' = 'an invariant does not hold'; GITHUB_PAT = $Pat; WEBHOOK_SECRET = (Get-Setting -Name 'WEBHOOK_SECRET') }
        foreach ($what in $unwanted.Keys) {
            if (@(Get-LogLine $Logs "*$($unwanted[$what])*").Count -gt 0) {
                throw "The log has $what."
            }
        }
        $numbers = @(Get-Summary)
        Add-Summary (@('### The pool on Hyper-V', '') + $numbers)
        $numbers
    }
} catch {
    if (-not $Fake) {
        Save-EventLog (Join-Path -Path $Work -ChildPath 'events.txt')
    }
    throw
} finally {
    if ($null -ne $script:process -and -not $script:process.HasExited) {
        $script:process.Kill($true)
    }
    if ($null -ne (Get-Variable -Name gitHub -Scope Script -ErrorAction SilentlyContinue)) {
        $script:gitHub.Process.Kill()
    }
}
