Set-StrictMode -Version Latest

BeforeAll {
    . (Join-Path -Path $PSScriptRoot -ChildPath 'standins.ps1')
    Import-StandIn @(
        'Get-CimInstance', 'Get-Acl', 'Get-WinEvent', 'Get-Service', 'Get-ItemProperty', 'Invoke-RestMethod', 'Get-VM', 'Get-VMFirmware'
        'Get-VMNetworkAdapter', 'Get-VMNetworkAdapterExtendedAcl', 'Get-NetAdapter', 'Get-NetIPAddress', 'Get-NetNat'
    )
    function global:powercfg.exe { 'Current AC: 0x{0:x8}, current DC: 0x00000384' -f $global:StandIn.Sleep }
    Enter-AdministratorRole

    # What Get-Acl gives for a file on which these have rights.
    function New-AccessList([string[]]$Holder) {
        $list = [pscustomobject]@{ Rules = @($Holder | ForEach-Object { [pscustomobject]@{ IdentityReference = $_ } }) }
        return ($list | Add-Member -MemberType ScriptMethod -Name 'GetAccessRules' -Value { $this.Rules } -PassThru)
    }

    # A VM of a slot as the pool makes it, walled off and with the address of its slot.
    function Add-SlotVm([int]$Slot, [string]$State) {
        $incarnation = "00000000000000a$Slot"
        $disk = "$folder/vms/storage/runner-$Slot-$incarnation.vhdx"
        [System.IO.File]::WriteAllText($disk, 'vhdxfile')
        $id = [guid]::NewGuid()
        $denied = @(
            '0.0.0.0/8', '10.0.0.0/8', '100.64.0.0/10', '127.0.0.0/8', '169.254.0.0/16', '172.16.0.0/12', '192.168.0.0/16'
            '224.0.0.0/4', '240.0.0.0/4', '168.63.129.16/32', '::/0', 'ANY'
        )
        $rules = foreach ($direction in 'Outbound', 'Inbound') {
            [pscustomobject]@{ Direction = $direction; Weight = 65000; Action = 'Allow'; RemoteIPAddress = '172.30.0.1' }
            for ($i = 0; $i -lt $denied.Count; $i++) {
                [pscustomobject]@{ Direction = $direction; Weight = 64000 - $i; Action = 'Deny'; RemoteIPAddress = $denied[$i] }
            }
        }
        $global:StandIn.Vms.Add([pscustomobject]@{
            Id = $id; Name = "runner-$Slot"; Notes = "{`"pool`":`"x`",`"slot`":$Slot,`"incarnation`":`"$incarnation`"}"
            HardDrives = @([pscustomobject]@{ Path = $disk })
            Generation = 2; MemoryStartup = 2048MB; MemoryMaximum = 0; DynamicMemoryEnabled = $false; ProcessorCount = 3
            CheckpointType = 'Disabled'; AutomaticCheckpointsEnabled = $false; AutomaticStartAction = 'Nothing'; AutomaticStopAction = 'TurnOff'
            Recovery = [uint16]2
            Firmware = [pscustomobject]@{ SecureBoot = 'On'; SecureBootTemplate = 'MicrosoftWindows' }
            Values = @{ RunnerPoolUrl = 'http://172.30.0.1:8080'; RunnerPoolAddress = "172.30.0.$(9 + $Slot)" }
            Rules = @($rules)
            Adapter = [pscustomobject]@{
                VMId = $id; SwitchName = 'Runners'; IPAddresses = @("172.30.0.$(9 + $Slot)", 'fe80::1')
                MacAddressSpoofing = 'Off'; DhcpGuard = 'On'; RouterGuard = 'On'
            }
        })
        $stage = @{ ready = 'listening for a job'; running = 'running a job' }[$State]
        $global:StandIn.Status.slots += [pscustomobject]@{
            slot = $Slot; state = $State; for_seconds = 300; vm = "runner-$Slot"; incarnation = $incarnation; guest_stage = $stage
        }
    }

    # Runs the script: the lines of a kind, and its exit code.
    function Invoke-Look {
        $result = Invoke-Script "$folder/tests/first-host.ps1"
        $result.Thrown | Should -Be ''
        $result.Lines = @($result.Output -split "`n")
        $result.Differs = @($result.Lines | Where-Object { $_ -like 'differs *' })
        return $result
    }
}

AfterAll {
    Exit-AdministratorRole
    Remove-Module -Name StandIns
    Remove-Item -Path function:global:powercfg.exe
    Remove-Variable -Name StandIn -Scope Global
}

Describe 'first-host.ps1' -Skip:([System.IO.Path]::DirectorySeparatorChar -eq '\') {
    BeforeEach {
        Reset-StandIn
        $folder = Join-Path -Path $TestDrive -ChildPath ([guid]::NewGuid())
        foreach ($one in 'tests/first-host.ps1', 'packer/common.ps1') {
            New-Item -ItemType Directory -Force -Path (Split-Path -Path "$folder/$one" -Parent) | Out-Null
            Copy-Item -LiteralPath "$Root/$one" -Destination "$folder/$one"
        }
        'vms/templates', 'vms/storage', 'logs' | ForEach-Object { New-Item -ItemType Directory -Path "$folder/$_" | Out-Null }
        [System.IO.File]::WriteAllLines("$folder/.env", @(
            'VM_SWITCH=Runners', 'PORT=8081', 'POOL_SIZE=2', 'VM_MEMORY_MB=2048', 'VM_CPU_COUNT=3', 'LOG_DIR=logs'
            'VM_TEMPLATE_PATH=vms/templates/t.vhdx', 'VM_STORAGE_PATH=vms/storage'
        ))
        $template = "$folder/vms/templates/t.vhdx"
        [System.IO.File]::WriteAllText($template, 'vhdxfile')
        Set-ItemProperty -LiteralPath $template -Name IsReadOnly -Value $true
        [System.IO.File]::WriteAllLines("$folder/logs/rebuild-image.log", @('The guest answers: waiting for the host'))
        [System.IO.File]::WriteAllLines("$folder/logs/hyperv-runner-pool.log", @(
            'INFO  the scripts are in C:\Windows\TEMP\hyperv-runner-pool-1', 'INFO  runner-1 (a1): made in 6.4 s', 'INFO  runner-2 (a2): made in 12 s'
            'INFO  runner-2 (a2): adopted', 'INFO  runner-1 (a0): ended without a job: it retired: a newer template'
            'WARN  runner-1 (a0): hcsdiag.exe kill'
        ))
        # The pool's program, whose `check` says this.
        function Set-Check([string]$Text, [int]$Code) {
            [System.IO.File]::WriteAllText("$folder/hyperv-runner-pool", "#!/bin/sh`n[ `"`$*`" = check ] || exit 9`ncat <<'END'`n$Text`nEND`nexit $Code`n")
            & chmod +x "$folder/hyperv-runner-pool"
        }
        Set-Check "ok       The host runs.`nwarning  Little memory." 0

        $global:StandIn.ProductType = 3
        $global:StandIn.Sleep = 0
        $global:StandIn.Events = @()
        $global:StandIn.Nats = @('172.30.0.0/23')
        $global:StandIn.HostAddress = '172.30.0.1'
        $global:StandIn.ServiceState = [pscustomobject]@{ Status = 'Running'; StartType = 'Automatic' }
        $global:StandIn.NonCrash = 1
        $global:StandIn.Actions = @(1, 5000, 1, 30000, 1, 300000)
        $global:StandIn.EventTypes = 7
        $global:StandIn.TemplateHolders = @('S-1-5-18', 'S-1-5-32-544', 'S-1-5-83-1-1-2')
        $global:StandIn.ScriptHolders = @('S-1-5-18', 'S-1-5-32-544', 'S-1-3-4')
        $global:StandIn.Vms = [System.Collections.Generic.List[object]]::new()
        $global:StandIn.Status = [pscustomobject]@{
            status = 'healthy'; ready = 1; running = 1; creating = 0; destroying = 0; slots = @()
            image = [pscustomobject]@{ runner_version = '2.336.0'; newest_runner_version = '2.336.0'; warnings = @() }
        }
        $global:StandIn.Answers = @{
            'Get-CimInstance'                 = {
                param($Bound)
                if ($Bound.ClassName -eq 'Win32_OperatingSystem') {
                    return [pscustomobject]@{ ProductType = $global:StandIn.ProductType }
                }
                foreach ($vm in $global:StandIn.Vms) {
                    $id = ([string]$vm.Id).ToUpperInvariant()
                    if ($Bound.ClassName -eq 'Msvm_VirtualSystemSettingData') {
                        if ($Bound.Filter -like "*'$id'*") { [pscustomobject]@{ AutomaticRecoveryAction = $vm.Recovery } }
                    } else {
                        $items = $vm.Values.Keys | ForEach-Object { "<INSTANCE><PROPERTY NAME=`"Name`"><VALUE>$_</VALUE></PROPERTY><PROPERTY NAME=`"Data`"><VALUE>$($vm.Values[$_])</VALUE></PROPERTY></INSTANCE>" }
                        [pscustomobject]@{ InstanceID = "Microsoft:$id\x"; HostExchangeItems = @($items) }
                    }
                }
            }
            'Get-Acl'                         = {
                param($Bound)
                if ($Bound.LiteralPath -like '*.vhdx') { New-AccessList $global:StandIn.TemplateHolders } else { New-AccessList $global:StandIn.ScriptHolders }
            }
            'Get-WinEvent'                    = {
                if (@($global:StandIn.Events).Count -eq 0) {
                    throw [System.Management.Automation.ErrorRecord]::new([exception]::new('No events were found.'), 'NoMatchingEventsFound', 'ObjectNotFound', $null)
                }
                $global:StandIn.Events
            }
            'Get-Service'                     = { $global:StandIn.ServiceState }
            'Get-ItemProperty'                = {
                param($Bound)
                if ($Bound.LiteralPath -like '*EventLog*') { return [pscustomobject]@{ TypesSupported = $global:StandIn.EventTypes } }
                $numbers = @(3600, 0, 0, 3, 20) + $global:StandIn.Actions
                [pscustomobject]@{ FailureActions = [byte[]]@($numbers | ForEach-Object { [System.BitConverter]::GetBytes([uint32]$_) }); FailureActionsOnNonCrashFailures = $global:StandIn.NonCrash }
            }
            'Invoke-RestMethod'               = {
                param($Bound)
                if ($Bound.Uri -ne 'http://localhost:8081/api/status') { throw "Nothing listens at $($Bound.Uri)." }
                $global:StandIn.Status
            }
            'Get-VM'                          = { $global:StandIn.Vms }
            'Get-VMFirmware'                  = { param($Bound) $Bound.VM[0].Firmware }
            'Get-VMNetworkAdapter'            = {
                param($Bound)
                if ($Bound.ContainsKey('VM')) { $Bound.VM[0].Adapter } else { [pscustomobject]@{ SwitchName = 'Runners'; DeviceId = '{1}' } }
            }
            'Get-VMNetworkAdapterExtendedAcl' = { param($Bound) ($global:StandIn.Vms | Where-Object { $_.Id -eq $Bound.VMNetworkAdapter[0].VMId }).Rules }
            'Get-NetAdapter'                  = { [pscustomobject]@{ ifIndex = 11; DeviceID = '{1}' } }
            'Get-NetIPAddress'                = { [pscustomobject]@{ InterfaceIndex = 11; IPAddress = $global:StandIn.HostAddress; PrefixLength = 23 } }
            'Get-NetNat'                      = { $global:StandIn.Nats | ForEach-Object { [pscustomobject]@{ InternalIPInterfaceAddressPrefix = $_ } } }
        }
        Add-SlotVm 1 'ready'
        Add-SlotVm 2 'running'
    }

    It 'finds nothing on a host that is right, and changes nothing' {
        $before = Get-ChildItem -LiteralPath $folder -Recurse -File | ForEach-Object { "$($_.FullName) $($_.Length) $($_.LastWriteTimeUtc.Ticks) $($_.IsReadOnly)" }
        $result = Invoke-Look
        $result.Differs | Should -BeNullOrEmpty
        $result.ExitCode | Should -Be 0
        @($result.Lines | Where-Object { $_ -like 'not seen *' }) | Should -Be 'not seen  the host does not fall asleep: Windows Server does not'
        $result.Lines[-1] | Should -Be "$($result.Lines.Count - 2) ok, 0 differ, 1 not seen"
        $result.Lines | Should -Contain 'ok        every setting of runner-1 took: Generation 2, MemoryStartup 2048 MB, DynamicMemoryEnabled False, ProcessorCount 3, Switch Runners, CheckpointType Disabled, AutomaticCheckpointsEnabled False, AutomaticStartAction Nothing, AutomaticStopAction TurnOff'
        $result.Lines | Should -Contain 'ok        making VMs, with their walls, does not take long: a median of 12 s for 2 VMs'
        $result.Lines | Should -Contain 'ok        runner-2 has the fixed address of its slot: 172.30.0.11'
        $global:StandIn.Calls -match '^(Set|New|Add|Remove|Start|Stop)-' | Should -BeNullOrEmpty
        Get-ChildItem -LiteralPath $folder -Recurse -File | ForEach-Object { "$($_.FullName) $($_.Length) $($_.LastWriteTimeUtc.Ticks) $($_.IsReadOnly)" } | Should -Be $before
    }

    It 'says what has not happened yet' {
        [System.IO.File]::WriteAllText("$folder/logs/hyperv-runner-pool.log", '')
        Remove-Item -LiteralPath "$folder/logs/rebuild-image.log"
        $global:StandIn.Status.slots | ForEach-Object { $_.for_seconds = 5 }
        $global:StandIn.ServiceState = @()
        $result = Invoke-Look
        $result.Differs | Should -BeNullOrEmpty
        $result.ExitCode | Should -Be 0
        foreach ($what in 'its scripts are nobody', 'an idle VM obeys', 'a VM of the image boots', 'the service is installed', 'the JIT configuration of runner-1') {
            $result.Lines -like "not seen  $what*" | Should -Not -BeNullOrEmpty -Because $what
        }
    }

    It 'looks for walls where there are to be some' {
        Add-Content -LiteralPath "$folder/.env" -Value 'VM_ISOLATION=off'
        $global:StandIn.Vms | ForEach-Object { $_.Rules = @() }
        (Invoke-Look).Lines | Should -Contain "not seen  the walls of runner-1: VM_ISOLATION=off makes none on the switch 'Runners'"
        Add-Content -LiteralPath "$folder/.env" -Value 'VM_ISOLATION=on'
        (Invoke-Look).Differs | Should -HaveCount 2
    }

    It 'sees on Windows 10 and 11 whether the host sleeps' {
        $global:StandIn.ProductType = 1
        (Invoke-Look).Lines | Should -Contain 'ok        the host does not fall asleep: STANDBYIDLE 0x00000000, HIBERNATEIDLE 0x00000000'
        $global:StandIn.Sleep = 1800
        (Invoke-Look).Differs | Should -BeLike 'differs   the host does not fall asleep: STANDBYIDLE 0x00000708*'
    }

    It 'names <Line>' -ForEach @(
        @{ Plant = { Set-Check "fault    The port is closed." 1 }; Line = 'the pool''s own check: fault    The port is closed.; 0 warning(s); it should be without a fault' }
        @{ Plant = { Set-Check 'Bad settings.' 2 }; Line = 'the pool''s own check: exit code 2; Bad settings.*' }
        @{ Plant = { Remove-Item -LiteralPath "$folder/hyperv-runner-pool" }; Line = 'the pool''s own check: it cannot be looked at: There is no hyperv-runner-pool.exe*' }
        @{ Plant = { $global:StandIn.Nats = @('172.28.0.0/16') }; Line = 'the switch has NAT, and the host its first address: NAT for 172.28.0.0/16; the host is 172.30.0.1; it should be NAT for 172.30.0.0/23; the host 172.30.0.1' }
        @{ Plant = { $global:StandIn.HostAddress = '172.30.0.9' }; Line = 'the switch has NAT, and the host its first address: *the host is 172.30.0.9; it should be *the host 172.30.0.1' }
        @{ Plant = { $global:StandIn.Faults['Get-NetNat'] = 1 }; Line = 'the switch has NAT, and the host its first address: it cannot be looked at: *' }
        @{ Plant = { $global:StandIn.Events = @([pscustomobject]@{ TimeCreated = 'noon'; Message = 'A rule was refused.' }) }; Line = 'the switch takes the rules without complaint: 1 errors in its event log, the last at noon: A rule was refused.; it should be 0 errors' }
        @{ Plant = { Set-ItemProperty -LiteralPath $template -Name IsReadOnly -Value $false }; Line = 'the template stays read-only: IsReadOnly False; it should be IsReadOnly True' }
        @{ Plant = { $global:StandIn.TemplateHolders = @(1..20 | ForEach-Object { "S-1-5-83-1-$_" }) }; Line = 'the template''s access list does not grow: 20 entries of VMs, of which the host has 2; it should be at most 19' }
        @{ Plant = { $global:StandIn.ServiceState = [pscustomobject]@{ Status = 'Stopped'; StartType = 'Manual' } }; Line = 'the service is installed and started: Stopped, start type Manual; it should be Running, start type Automatic' }
        @{ Plant = { $global:StandIn.Actions = @(1, 5000, 0, 30000) }; Line = 'Windows starts the service again after a failure: after 5 s, never; it should be after 5 s, 30 s, 300 s' }
        @{ Plant = { $global:StandIn.NonCrash = 0 }; Line = 'Windows starts the service again after an exit with an error: FailureActionsOnNonCrashFailures 0*' }
        @{ Plant = { $global:StandIn.EventTypes = 4 }; Line = 'the event log knows the service: TypesSupported 4; it should be TypesSupported 7' }
        @{ Plant = { $global:StandIn.ScriptHolders += 'S-1-5-11' }; Line = 'its scripts are nobody else''s to write: S-1-3-4 S-1-5-11 S-1-5-18 S-1-5-32-544; it should be S-1-3-4 S-1-5-18 S-1-5-32-544' }
        @{ Plant = { Add-Content -LiteralPath "$folder/logs/hyperv-runner-pool.log" -Value 'INFO  runner-1 (a3): made in 2 min 5 s', 'INFO  runner-1 (a4): made in 3 min 1 s' }; Line = 'making VMs, with their walls, does not take long: a median of 125 s for 4 VMs; it should be seconds*' }
        @{ Plant = { Add-Content -LiteralPath "$folder/.env" -Value 'PORT=8099' }; Line = 'the pool answers: http://localhost:8099/api/status: Nothing listens*' }
        @{ Plant = { $global:StandIn.Status.status = 'degraded' }; Line = 'the pool answers: degraded; it should be healthy' }
        @{ Plant = { $global:StandIn.Status.ready = 0 }; Line = 'key-values reach the guests: 0 VMs are ready, 1 run a job; it should be 1 ready' }
        @{ Plant = { $global:StandIn.Status.image.warnings = @('Rebuild it.') }; Line = 'the runner''s version is known: *Rebuild it.; it should be without a warning' }
        @{ Plant = { [System.IO.File]::WriteAllText("$folder/vms/storage/runner-1-old.vhdx", '') }; Line = 'no disk stays locked or is left over: runner-1-old.vhdx belongs to no VM, 3 disks; it should be one for each VM' }
        @{ Plant = { $global:StandIn.Vms[0].Notes = '' }; Line = 'the VM of slot 1: no VM''s Notes hold its incarnation 00000000000000a1; it should be runner-1' }
        @{ Plant = { $global:StandIn.Vms[0].Generation = 1 }; Line = 'every setting of runner-1 took: Generation 1; it should be Generation 2' }
        @{ Plant = { $global:StandIn.Vms[1].MemoryStartup = 1GB }; Line = 'every setting of runner-2 took: MemoryStartup 1024 MB; it should be MemoryStartup 2048 MB' }
        @{ Plant = { Add-Content -LiteralPath "$folder/.env" -Value 'VM_MEMORY_MAX_MB=4096'; $global:StandIn.Vms[1].DynamicMemoryEnabled = $true; $global:StandIn.Vms[1].MemoryMaximum = 4096MB }; Line = 'every setting of runner-1 took: DynamicMemoryEnabled False, MemoryMaximum 0 MB; it should be DynamicMemoryEnabled True, MemoryMaximum 4096 MB' }
        @{ Plant = { $global:StandIn.Vms[0].AutomaticStopAction = 'Save'; $global:StandIn.Vms[0].CheckpointType = 'Standard' }; Line = 'every setting of runner-1 took: CheckpointType Standard, AutomaticStopAction Save; it should be CheckpointType Disabled, AutomaticStopAction TurnOff' }
        @{ Plant = { $global:StandIn.Vms[0].Adapter.SwitchName = '' }; Line = 'every setting of runner-1 took: Switch ; it should be Switch Runners' }
        @{ Plant = { $global:StandIn.Vms[0].Recovery = 3 }; Line = 'runner-1 is not started again if its worker process dies: AutomaticRecoveryAction 3; it should be AutomaticRecoveryAction 2' }
        @{ Plant = { $global:StandIn.Vms[0].Firmware.SecureBoot = 'Off' }; Line = 'Secure Boot of runner-1: Off, MicrosoftWindows; it should be On, MicrosoftWindows' }
        @{ Plant = { $global:StandIn.Status.slots[1].guest_stage = $null }; Line = 'the word of runner-2''s guest arrives: guest_stage ; it should be guest_stage running a job' }
        @{ Plant = { $global:StandIn.Vms[0].Values['RunnerPoolJitConfig1'] = 'x' }; Line = 'the JIT configuration of runner-1 is taken back: 1 values of it are left; it should be 0 values of it are left' }
        @{ Plant = { $global:StandIn.Vms[0].Adapter.IPAddresses = @('169.254.1.2', 'fe80::1') }; Line = 'runner-1 has the fixed address of its slot: 169.254.1.2; it should be 172.30.0.10' }
        @{ Plant = { $global:StandIn.Vms[0].Rules = @($global:StandIn.Vms[0].Rules | Where-Object { $_.RemoteIPAddress -ne '10.0.0.0/8' -or $_.Direction -eq 'Inbound' }) }; Line = 'the walls of runner-1: no rule denies 10.0.0.0/8 Outbound; 25 rules; it should be what SECURITY.md lists' }
        @{ Plant = { ($global:StandIn.Vms[0].Rules | Where-Object { $_.RemoteIPAddress -eq 'ANY' })[1].Weight = 65001 }; Line = 'the walls of runner-1: the last rule Inbound does not deny all*' }
        @{ Plant = { $global:StandIn.Vms[0].Adapter.DhcpGuard = 'Off' }; Line = 'the walls of runner-1: MacAddressSpoofing Off, DhcpGuard Off, RouterGuard On; 26 rules*' }
    ) {
        & $Plant
        $result = Invoke-Look
        $result.ExitCode | Should -Be 1
        $result.Differs | Should -HaveCount 1 -Because ($result.Differs -join "`n")
        $result.Differs[0] | Should -BeLike "differs   $($Line -replace '\[|\]', '`$0')"
        $result.Lines[-1] | Should -BeLike '*, 1 differ, *'
    }
}
