<#
.SYNOPSIS
Looks at a host on which the pool runs, and says where it differs from docs\first-host.md.

.DESCRIPTION
Changes nothing. Writes one line for each finding: "ok", "differs" or "not seen", what was
found, and where it differs what should be. "not seen" is what this host does not have, or
what has not happened yet. The exit code is 0 if nothing differs.

Run it as an administrator, in the pool's folder, with the pool running. A VM in each state is
best: some idle ones, and one with a job.

.EXAMPLE
powershell -ExecutionPolicy Bypass -File .\tests\first-host.ps1
#>
[CmdletBinding()]
param()
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
. (Join-Path -Path $PSScriptRoot -ChildPath '../packer/common.ps1')

$ServiceName = 'hyperv-runner-pool'
# What no walled-off VM reaches, as SECURITY.md says.
$WalledOff = @(
    '0.0.0.0/8', '10.0.0.0/8', '100.64.0.0/10', '127.0.0.0/8', '169.254.0.0/16', '172.16.0.0/12', '192.168.0.0/16'
    '224.0.0.0/4', '240.0.0.0/4', '168.63.129.16/32', '::/0'
)
$script:count = @{ 'ok' = 0; 'differs' = 0; 'not seen' = 0 }

function Write-Finding([string]$Kind, [string]$What, [string]$Text) {
    $script:count[$Kind]++
    Write-Host ('{0,-9} {1}: {2}' -f $Kind, $What, $Text)
}

function Write-Unseen([string]$What, [string]$Why) {
    Write-Finding 'not seen' $What $Why
}

function Write-Judged([string]$What, [bool]$IsRight, [string]$Found, [string]$Wanted) {
    if ($IsRight) {
        Write-Finding 'ok' $What $Found
    } else {
        Write-Finding 'differs' $What "$Found; it should be $Wanted"
    }
}

function Write-Compared([string]$What, [string]$Found, [string]$Wanted) {
    Write-Judged $What ($Found -eq $Wanted) $Found $Wanted
}

# Compares several values at once, and names those that are not as they should be.
function Write-AllCompared([string]$What, $Pairs) {
    $wrong = @($Pairs.Keys | Where-Object { [string]$Pairs[$_][0] -ne [string]$Pairs[$_][1] })
    $found = @(if ($wrong.Count -gt 0) { $wrong } else { $Pairs.Keys }) | ForEach-Object { "$_ $($Pairs[$_][0])" }
    $wanted = $wrong | ForEach-Object { "$_ $($Pairs[$_][1])" }
    Write-Judged $What ($wrong.Count -eq 0) ($found -join ', ') ($wanted -join ', ')
}

# What cannot be looked at as docs\first-host.md says differs too.
function Find-Out([string]$What, [scriptblock]$Look) {
    try {
        & $Look
    } catch {
        Write-Finding 'differs' $What "it cannot be looked at: $($_.Exception.Message)"
    }
}

# What the host has attached to its VMs: their ids, in upper case, to names and values.
function Get-HostValue {
    $found = @{}
    foreach ($setting in @(Get-CimInstance -Namespace 'root\virtualization\v2' -ClassName Msvm_KvpExchangeComponentSettingData)) {
        # Microsoft:GUID\..., and once that of the class's definition.
        if ($setting.InstanceID -notmatch '^Microsoft:(?<id>[0-9A-Fa-f-]{36})\\') { continue }
        $values = @{}
        foreach ($item in @($setting.HostExchangeItems | ForEach-Object { [xml]$_ })) {
            $values[$item.SelectSingleNode('//PROPERTY[@NAME="Name"]').InnerText] = $item.SelectSingleNode('//PROPERTY[@NAME="Data"]').InnerText
        }
        $found[$Matches.id.ToUpperInvariant()] = $values
    }
    return $found
}

# The ids of those who have rights to a file or a folder.
function Get-Holder([string]$Path) {
    $rules = (Get-Acl -LiteralPath $Path).GetAccessRules($true, $true, [System.Security.Principal.SecurityIdentifier])
    $rules | ForEach-Object { [string]$_.IdentityReference } | Sort-Object -Unique
}

function Show-Host {
    $what = 'the pool''s own check'
    Find-Out $what {
        $binary = Find-Binary
        if ($binary -eq '') {
            throw "There is no hyperv-runner-pool.exe in $(Get-FullPath -Path '.')."
        }
        # What the program writes to its error stream is not an error of ours.
        $ErrorActionPreference = 'Continue'
        $lines = @(& $binary check 2>&1 | ForEach-Object { "$_" })
        $exitCode = $LASTEXITCODE
        $ErrorActionPreference = 'Stop'
        $faults = @($lines | Where-Object { $_ -match '^\s*fault' } | ForEach-Object { $_.Trim() })
        $warnings = @($lines | Where-Object { $_ -match '^\s*warning' })
        if ($faults.Count -eq 0 -and $exitCode -ne 0) {
            $faults = @("exit code $exitCode; $($lines -join ' ')")
        }
        Write-Judged $what ($faults.Count -eq 0) (@($faults + "$($warnings.Count) warning(s)") -join '; ') 'without a fault'
    }

    $isClient = (Get-CimInstance -ClassName Win32_OperatingSystem).ProductType -eq 1
    $what = 'the switch has NAT, and the host its first address'
    if ($isClient) {
        Write-Unseen $what 'Windows 10 and 11 have the Default Switch'
    } else {
        Find-Out $what {
            $address = Get-SwitchAddress -SwitchName $SwitchName
            if ($null -eq $address) {
                throw "The host has no IPv4 address on the switch '$SwitchName'."
            }
            $prefix = Get-Prefix $address.IPAddress $address.PrefixLength
            $first = ConvertFrom-AddressNumber ((ConvertTo-AddressNumber $prefix.Split('/')[0]) + 1)
            $nats = @(Get-NetNat -ErrorAction Stop | ForEach-Object { [string]$_.InternalIPInterfaceAddressPrefix })
            Write-Judged $what ($nats -contains $prefix -and $address.IPAddress -eq $first) "NAT for $($nats -join ', '); the host is $($address.IPAddress)" "NAT for $prefix; the host $first"
        }
    }

    $what = 'the host does not fall asleep'
    if ($isClient) {
        Find-Out $what {
            $minutes = foreach ($setting in 'STANDBYIDLE', 'HIBERNATEIDLE') {
                $text = (& powercfg.exe /query SCHEME_CURRENT SUB_SLEEP $setting) -join "`n"
                # The words are translated. The last number but one is the time on mains power.
                $numbers = [regex]::Matches($text, '0x[0-9a-fA-F]{8}')
                "$setting $($numbers[$numbers.Count - 2].Value)"
            }
            Write-Compared $what ($minutes -join ', ') 'STANDBYIDLE 0x00000000, HIBERNATEIDLE 0x00000000'
        }
    } else {
        Write-Unseen $what 'Windows Server does not'
    }

    $what = 'the switch takes the rules without complaint'
    Find-Out $what {
        # What the switch complained of before is none of the pool's.
        $since = @(Get-Process -Name 'hyperv-runner-pool' -ErrorAction SilentlyContinue | ForEach-Object { $_.StartTime } | Sort-Object) + (Get-Date).AddDays(-1)
        $errors = @()
        try {
            $errors = @(Get-WinEvent -FilterHashtable @{ LogName = 'Microsoft-Windows-Hyper-V-VmSwitch-Operational'; Level = 1, 2; StartTime = $since[0] } -MaxEvents 50)
        } catch {
            if ($_.FullyQualifiedErrorId -notlike 'NoMatchingEventsFound*') { throw }
        }
        $last = @($errors | Select-Object -First 1 | ForEach-Object { ", the last at $($_.TimeCreated): $($_.Message)" })
        Write-Judged $what ($errors.Count -eq 0) "$($errors.Count) errors in its event log$last" '0 errors'
    }
}

function Show-Image {
    $template = Get-TemplatePath
    $what = 'the template stays read-only'
    Find-Out $what { Write-Compared $what "IsReadOnly $((Get-Item -LiteralPath $template).IsReadOnly)" 'IsReadOnly True' }

    # An entry for each VM that uses it, those of fewer than 16 that are gone, which creations leave,
    # and those of VMs that went since.
    $what = 'the template''s access list does not grow'
    Find-Out $what {
        $vms = @(Get-VM).Count
        $entries = @(Get-Holder $template | Where-Object { $_ -like 'S-1-5-83-1-*' }).Count
        $most = $vms + 15 + [int](Get-Setting -Name 'POOL_SIZE' -Default '4')
        Write-Judged $what ($entries -le $most) "$entries entries of VMs, of which the host has $vms" "at most $most"
    }

    $what = 'a VM of the image boots before it is published'
    $log = Get-FullPath -Path 'logs/rebuild-image.log'
    $answers = @()
    if (Test-Path -LiteralPath $log -PathType Leaf) {
        $answers = @([System.IO.File]::ReadAllLines($log) | Where-Object { $_ -match '^The guest answers: ' })
    }
    if ($answers.Count -eq 0) {
        Write-Unseen $what "the log in $folder tells of none"
    } else {
        Write-Finding 'ok' $what $answers[0]
    }
}

function Show-Service {
    $what = 'the service is installed and started'
    $services = @(Get-Service -Name $ServiceName -ErrorAction SilentlyContinue)
    if ($services.Count -eq 0) {
        Write-Unseen $what 'it is not installed'
        return
    }
    Write-Compared $what "$($services[0].Status), start type $($services[0].StartType)" 'Running, start type Automatic'

    $key = "HKLM:\SYSTEM\CurrentControlSet\Services\$ServiceName"
    $what = 'Windows starts the service again after a failure'
    Find-Out $what {
        $values = Get-ItemProperty -LiteralPath $key
        # SERVICE_FAILURE_ACTIONS with offsets in place of pointers: 20 bytes, then for each
        # action its type (1: restart) and its delay in milliseconds.
        $bytes = [byte[]]$values.FailureActions
        $delays = for ($i = 20; $i + 8 -le $bytes.Count; $i += 8) {
            if ([System.BitConverter]::ToUInt32($bytes, $i) -eq 1) {
                "$([System.BitConverter]::ToUInt32($bytes, $i + 4) / 1000) s"
            } else {
                'never'
            }
        }
        Write-Compared $what "after $($delays -join ', ')" 'after 5 s, 30 s, 300 s'
    }
    $what = 'Windows starts the service again after an exit with an error'
    Find-Out $what { Write-Compared $what "FailureActionsOnNonCrashFailures $((Get-ItemProperty -LiteralPath $key).FailureActionsOnNonCrashFailures)" 'FailureActionsOnNonCrashFailures 1' }
    $what = 'the event log knows the service'
    Find-Out $what {
        $source = Get-ItemProperty -LiteralPath "HKLM:\SYSTEM\CurrentControlSet\Services\EventLog\Application\$ServiceName"
        Write-Compared $what "TypesSupported $($source.TypesSupported)" 'TypesSupported 7'
    }
}

# What the pool's log tells of.
function Show-Log {
    $folder = Get-FullPath -Path (Get-Setting -Name 'LOG_DIR' -Default 'logs')
    # A day's end begins a new file.
    $files = @(Get-ChildItem -Path (Join-Path -Path $folder -ChildPath 'hyperv-runner-pool*.log') -File | Sort-Object -Property LastWriteTime)
    $lines = @(foreach ($file in $files) {
        $stream = [System.IO.File]::Open($file.FullName, 'Open', 'Read', 'ReadWrite,Delete')
        $reader = [System.IO.StreamReader]::new($stream)
        $reader.ReadToEnd() -split '\r?\n'
        $reader.Dispose()
    })

    $what = 'its scripts are nobody else''s to write'
    $told = @($lines | Where-Object { $_ -match 'the scripts are in (?<folder>.*)$' })
    if ($told.Count -eq 0) {
        Write-Unseen $what "the log in $folder does not name their folder"
    } else {
        Find-Out $what {
            $told[-1] -match 'the scripts are in (?<folder>.*?)"?\}?$' | Out-Null
            # SYSTEM, administrators, OWNER RIGHTS.
            Write-Compared $what ((Get-Holder $Matches.folder) -join ' ') 'S-1-3-4 S-1-5-18 S-1-5-32-544'
        }
    }

    $what = 'making VMs, with their walls, does not take long'
    $seconds = @($lines | ForEach-Object {
        if ($_ -match ': made in ((?<minutes>\d+) min )?(?<seconds>[\d.]+) s') {
            60 * [double]('0' + $Matches['minutes']) + [double]::Parse($Matches['seconds'], [cultureinfo]::InvariantCulture)
        }
    } | Sort-Object)
    if ($seconds.Count -eq 0) {
        Write-Unseen $what "the log in $folder tells of none"
    } else {
        $median = $seconds[[int][Math]::Floor($seconds.Count / 2)]
        Write-Judged $what ($median -le 120) "a median of $median s for $($seconds.Count) VMs" 'seconds, at most two minutes'
    }

    $signs = [ordered]@{
        'an idle VM obeys *retire*'                = 'it retired'
        'a VM with a job outlives a stop'          = ': adopted'
        'a VM that hangs while it stops is killed' = 'hcsdiag.exe kill'
    }
    foreach ($sign in $signs.Keys) {
        $seen = @($lines | Where-Object { $_.Contains($signs[$sign]) }).Count
        if ($seen -eq 0) {
            Write-Unseen $sign "the log in $folder has no line with '$($signs[$sign])'"
        } else {
            Write-Finding 'ok' $sign "$seen line(s) of the log say '$($signs[$sign])'"
        }
    }
}

# One VM of the pool, which is that of a slot.
function Show-Vm($Vm, $Slot, $HostValues) {
    $name = $Vm.Name
    $memory = [long](Get-Setting -Name 'VM_MEMORY_MB' -Default '4096')
    $most = [long](Get-Setting -Name 'VM_MEMORY_MAX_MB' -Default '0')
    Find-Out "every setting of $name took" {
        $pairs = [ordered]@{
            Generation                  = $Vm.Generation, 2
            MemoryStartup               = "$($Vm.MemoryStartup / 1MB) MB", "$memory MB"
            DynamicMemoryEnabled        = $Vm.DynamicMemoryEnabled, ($most -gt 0)
            ProcessorCount              = $Vm.ProcessorCount, (Get-Setting -Name 'VM_CPU_COUNT' -Default '2')
            Switch                      = (Get-VMNetworkAdapter -VM $Vm).SwitchName, $SwitchName
            CheckpointType              = $Vm.CheckpointType, 'Disabled'
            AutomaticCheckpointsEnabled = $Vm.AutomaticCheckpointsEnabled, $false
            AutomaticStartAction        = $Vm.AutomaticStartAction, 'Nothing'
            AutomaticStopAction         = $Vm.AutomaticStopAction, 'TurnOff'
        }
        if ($most -gt 0) {
            $pairs['MemoryMaximum'] = "$($Vm.MemoryMaximum / 1MB) MB", "$most MB"
        }
        Write-AllCompared "every setting of $name took" $pairs
    }

    $id = ([string]$Vm.Id).ToUpperInvariant()
    $what = "$name is not started again if its worker process dies"
    Find-Out $what {
        $setting = Get-CimInstance -Namespace 'root\virtualization\v2' -ClassName Msvm_VirtualSystemSettingData -Filter "VirtualSystemIdentifier = '$id' AND VirtualSystemType = 'Microsoft:Hyper-V:System:Realized'"
        Write-Compared $what "AutomaticRecoveryAction $($setting.AutomaticRecoveryAction)" 'AutomaticRecoveryAction 2'
    }

    $what = "Secure Boot of $name"
    Find-Out $what {
        $template = Get-Setting -Name 'VM_SECURE_BOOT' -Default 'MicrosoftWindows'
        $firmware = Get-VMFirmware -VM $Vm
        if ($template -eq 'off') {
            Write-Compared $what $firmware.SecureBoot 'Off'
        } else {
            Write-Compared $what "$($firmware.SecureBoot), $($firmware.SecureBootTemplate)" "On, $template"
        }
    }

    $what = "the word of $name's guest arrives"
    $stage = @{ ready = 'listening for a job'; running = 'running a job' }[$Slot.state]
    if ($null -eq $stage -or $Slot.for_seconds -lt $Settled) {
        Write-Unseen $what "it is $($Slot.state) for $($Slot.for_seconds) s"
    } else {
        Write-Compared $what "guest_stage $($Slot.guest_stage)" "guest_stage $stage"
    }

    $values = $HostValues[$id]
    if ($null -eq $values) {
        $values = @{}
    }
    $what = "the JIT configuration of $name is taken back"
    if ($null -eq $stage -or $Slot.for_seconds -lt $Settled) {
        Write-Unseen $what "it is $($Slot.state) for $($Slot.for_seconds) s"
    } else {
        $left = @($values.Keys | Where-Object { $_ -like 'RunnerPoolJitConfig*' }).Count
        Write-Compared $what "$left values of it are left" '0 values of it are left'
    }

    $what = "$name has the fixed address of its slot"
    if (-not $values.ContainsKey('RunnerPoolAddress')) {
        Write-Unseen $what 'it has its address from DHCP'
    } elseif ($null -eq $stage) {
        Write-Unseen $what "it is $($Slot.state)"
    } else {
        Find-Out $what {
            $addresses = @((Get-VMNetworkAdapter -VM $Vm).IPAddresses | Where-Object { $_ -notlike '*:*' })
            Write-Compared $what ($addresses -join ', ') $values.RunnerPoolAddress
        }
    }
    Show-Wall $Vm $values.ContainsKey('RunnerPoolAddress')
}

function Show-Wall($Vm, [bool]$HasFixedAddress) {
    $what = "the walls of $($Vm.Name)"
    $isolation = Get-Setting -Name 'VM_ISOLATION' -Default 'auto'
    Find-Out $what {
        $address = Get-SwitchAddress -SwitchName $SwitchName
        $isOwn = $null -ne $address -and @(Get-NetNat -ErrorAction Stop | Where-Object { Test-PrefixOverlap "$($address.IPAddress)/32" ([string]$_.InternalIPInterfaceAddressPrefix) }).Count -gt 0
        if ($isolation -eq 'off' -or ($isolation -eq 'auto' -and -not $isOwn)) {
            Write-Unseen $what "VM_ISOLATION=$isolation makes none on the switch '$SwitchName'"
            return
        }
        $adapter = Get-VMNetworkAdapter -VM $Vm
        $rules = @(Get-VMNetworkAdapterExtendedAcl -VMNetworkAdapter $adapter)
        $faults = @()
        $guards = "MacAddressSpoofing $($adapter.MacAddressSpoofing), DhcpGuard $($adapter.DhcpGuard), RouterGuard $($adapter.RouterGuard)"
        if ($guards -ne 'MacAddressSpoofing Off, DhcpGuard On, RouterGuard On') {
            $faults += $guards
        }
        foreach ($direction in 'Outbound', 'Inbound') {
            $way = @($rules | Where-Object { [string]$_.Direction -eq $direction } | Sort-Object -Property Weight -Descending)
            $denied = @($way | Where-Object { [string]$_.Action -eq 'Deny' } | ForEach-Object { [string]$_.RemoteIPAddress })
            $faults += @($WalledOff | Where-Object { $denied -notcontains $_ } | ForEach-Object { "no rule denies $_ $direction" })
            if ($HasFixedAddress -and ($denied.Count -eq 0 -or [string]$way[-1].Action -ne 'Deny' -or [string]$way[-1].RemoteIPAddress -ne 'ANY')) {
                $faults += "the last rule $direction does not deny all"
            }
        }
        Write-Judged $what ($faults.Count -eq 0) (@($faults + "$($rules.Count) rules") -join '; ') 'what SECURITY.md lists'
    }
}

function Show-Pool {
    $port = Get-Setting -Name 'PORT' -Default '8080'
    $what = 'the pool answers'
    try {
        $status = Invoke-RestMethod -Uri "http://localhost:$port/api/status" -UseBasicParsing -TimeoutSec 20
    } catch {
        Write-Finding 'differs' $what "http://localhost:$port/api/status: $($_.Exception.Message); it should be the status of a pool that runs"
        return
    }
    $size = [int](Get-Setting -Name 'POOL_SIZE' -Default '4')
    $warm = [int](Get-Setting -Name 'POOL_WARM' -Default ([string]$size))
    $wanted = [Math]::Min($warm, $size - $status.running)
    Write-Judged $what ($status.status -eq 'healthy') $status.status 'healthy'
    Write-Judged 'key-values reach the guests' ($status.ready -ge $wanted) "$($status.ready) VMs are ready, $($status.running) run a job" "$wanted ready"

    $what = 'the runner''s version is known'
    if ([string]$status.image.runner_version -eq '') {
        Write-Unseen $what 'no guest has told it yet'
    } else {
        Write-Judged $what (@($status.image.warnings).Count -eq 0) "$($status.image.runner_version) in the image, $($status.image.newest_runner_version) at GitHub $($status.image.warnings -join ' ')".Trim() 'without a warning'
    }

    $storage = Get-StoragePath
    $what = 'no disk stays locked or is left over'
    $used = @(Get-VM | ForEach-Object { $_.HardDrives } | ForEach-Object { [string]$_.Path })
    # The pool removes a VM before its disk.
    $isQuiet = $status.creating + $status.destroying -eq 0
    $left = @(Get-ChildItem -LiteralPath $storage -Filter '*.vhdx' -File | Where-Object { $used -notcontains $_.FullName } | ForEach-Object { $_.Name })
    if ($left.Count -gt 0 -and -not $isQuiet) {
        Write-Unseen $what 'VMs are being made or destroyed just now'
    } else {
        Write-Judged $what ($left.Count -eq 0) (@(@($left | ForEach-Object { "$_ belongs to no VM" }) + "$(@(Get-ChildItem -LiteralPath $storage -Filter '*.vhdx' -File).Count) disks") -join ', ') 'one for each VM'
    }

    $hostValues = Get-HostValue
    $vms = @{}
    foreach ($vm in @(Get-VM)) {
        if ([string]$vm.Notes -match '"incarnation"\s*:\s*"(?<incarnation>[0-9a-f]+)"') {
            $vms[$Matches.incarnation] = $vm
        }
    }
    $slots = @($status.slots | Where-Object { $_.state -in 'booting', 'ready', 'running' })
    if ($slots.Count -eq 0) {
        Write-Unseen 'the VMs' 'the pool has none just now'
    }
    foreach ($slot in $slots) {
        if ($vms.ContainsKey([string]$slot.incarnation)) {
            Show-Vm $vms[[string]$slot.incarnation] $slot $hostValues
        } else {
            Write-Finding 'differs' "the VM of slot $($slot.slot)" "no VM's Notes hold its incarnation $($slot.incarnation); it should be $($slot.vm)"
        }
    }
}

if (-not (Test-Elevated)) {
    Stop-WithMessage 'Run this in an elevated PowerShell (Run as administrator).'
}
$SwitchName = Get-Setting -Name 'VM_SWITCH' -Default 'Default Switch'
# How long a state must have lasted, in seconds, before what the monitor does about it counts.
$Settled = 120
$place = Get-Location
try {
    Set-Location -LiteralPath (Get-FullPath -Path '.')
    Show-Host
    Show-Image
    Show-Service
    Show-Log
    Show-Pool
} finally {
    Set-Location -LiteralPath $place
}
Write-Host "$($script:count['ok']) ok, $($script:count['differs']) differ, $($script:count['not seen']) not seen"
if ($script:count['differs'] -gt 0) {
    exit 1
}
exit 0
