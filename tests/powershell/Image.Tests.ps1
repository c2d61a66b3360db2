Set-StrictMode -Version Latest

BeforeAll {
    . (Join-Path -Path $PSScriptRoot -ChildPath 'standins.ps1')
    Import-StandIn @(
        'New-ScheduledTaskAction', 'New-ScheduledTaskPrincipal', 'New-ScheduledTaskSettingsSet', 'New-ScheduledTaskTrigger'
        'Register-ScheduledTask', 'Unregister-ScheduledTask', 'Get-ScheduledTask', 'Get-NetConnectionProfile'
        'Set-NetConnectionProfile', 'New-NetFirewallRule', 'Remove-NetFirewallRule', 'Set-MpPreference', 'Add-MpPreference'
        'Get-Service', 'Set-Service', 'Start-Service', 'Stop-Service', 'New-LocalUser', 'Get-LocalUser', 'Set-LocalUser'
        'Disable-LocalUser', 'Get-LocalGroup', 'Add-LocalGroupMember', 'New-SelfSignedCertificate', 'New-WSManInstance'
        'Get-NetAdapter', 'Get-NetIPAddress', 'New-NetIPAddress', 'Remove-NetIPAddress', 'Remove-NetRoute', 'Set-NetIPInterface'
        'Set-DnsClientServerAddress', 'Start-Transcript', 'Remove-WSManInstance', 'Get-Volume', 'Set-Item', 'Set-ItemProperty', 'Remove-ItemProperty', 'Start-Sleep', 'Get-ChildItem'
    )
    function global:shutdown.exe { $global:StandIn.Calls.Add("shutdown.exe $args") }
    $scripts = Join-Path -Path $Root -ChildPath 'packer/scripts'
    $variables = 'PATH', 'BUILD_USER', 'RUNNER_VERSION', 'FREE_GB_WANTED', 'RUNNER_IS_ADMINISTRATOR'
    $before = @{}
    $variables | ForEach-Object { $before[$_] = [System.Environment]::GetEnvironmentVariable($_) }

    # A program of Windows that only succeeds, and prints a text.
    function Add-Program([string]$Path, [string]$Text = '') {
        [System.IO.File]::WriteAllText($Path, "#!/bin/sh`necho '$Text'`n")
        & chmod +x $Path
    }
}

AfterAll {
    $variables | ForEach-Object { [System.Environment]::SetEnvironmentVariable($_, $before[$_]) }
    Remove-Module -Name StandIns
    Remove-Item -Path function:global:shutdown.exe
    Remove-Variable -Name StandIn -Scope Global
}

Describe 'the image''s scripts' -Skip:([System.IO.Path]::DirectorySeparatorChar -eq '\') {
    BeforeEach {
        Reset-StandIn
        # The image's drive C: is a folder.
        $disk = Join-Path -Path $TestDrive -ChildPath ([guid]::NewGuid())
        foreach ($folder in 'runner-pool-build', 'runner-pool-guest', 'actions-runner/bin', 'Windows/Temp', 'bin') {
            New-Item -ItemType Directory -Force -Path "$disk/$folder" | Out-Null
        }
        Copy-Item -LiteralPath "$Root/packer/common.ps1" -Destination "$disk/runner-pool-build"
        New-PSDrive -Name C -PSProvider FileSystem -Root $disk -Scope Global | Out-Null
        Add-Program "$disk/bin/icacls.exe"
        $env:PATH = "$disk/bin:$($before.PATH)"
        $env:BUILD_USER = 'packer'
        $env:RUNNER_IS_ADMINISTRATOR = 'false'

        # What enable-winrm.ps1 opens.
        $global:StandIn.Open = @{}
        $global:StandIn.Category = 'Public'
        $global:StandIn.Address = $null
        $certificate = "$disk/certificate"
        $global:StandIn.Answers = @{
            'New-ScheduledTaskAction'   = { param($Bound) [pscustomobject]@{ Argument = $Bound.Argument } }
            'New-ScheduledTaskTrigger'  = { [pscustomobject]@{ Kind = 'Trigger' } }
            'New-ScheduledTaskPrincipal' = { [pscustomobject]@{ Kind = 'Principal' } }
            'New-ScheduledTaskSettingsSet' = { [pscustomobject]@{ Kind = 'Settings' } }
            'Register-ScheduledTask'    = { param($Bound) $global:StandIn["Task $($Bound.TaskName)"] = $Bound }
            'Get-ScheduledTask'         = { [pscustomobject]@{ State = 'Ready' } }
            'Get-NetConnectionProfile'  = { [pscustomobject]@{ Name = 'Network'; NetworkCategory = $global:StandIn.Category } }
            'Set-NetConnectionProfile'  = { param($Bound) $global:StandIn.Category = $Bound.NetworkCategory }
            'Get-NetAdapter'            = {
                [pscustomobject]@{ ifIndex = 3; Status = 'Disconnected' }
                [pscustomobject]@{ ifIndex = 4; Status = 'Up' }
            }
            'Get-NetIPAddress'          = { if ($global:StandIn.Address) { $global:StandIn.Address } }
            'New-NetIPAddress'          = { param($Bound) $global:StandIn.Address = [pscustomobject]@{ InterfaceIndex = $Bound.InterfaceIndex; IPAddress = $Bound.IPAddress } }
            'Remove-NetIPAddress'       = { $global:StandIn.Address = $null }
            'Get-Service'               = { [pscustomobject]@{ Name = 'WinDefend' } }
            'Get-LocalUser'             = {
                [pscustomobject]@{ Name = 'packer'; SID = [pscustomobject]@{ Value = 'S-1-5-21-1-2-3-1001' } }
                [pscustomobject]@{ Name = 'Chief'; SID = [pscustomobject]@{ Value = 'S-1-5-21-1-2-3-500' } }
                [pscustomobject]@{ Name = 'Guest'; SID = [pscustomobject]@{ Value = 'S-1-5-21-1-2-3-501' } }
            }
            'New-SelfSignedCertificate' = {
                [System.IO.File]::WriteAllText($certificate, '')
                $global:StandIn.Open['certificate'] = 'CN=' + @($args[0].DnsName)[0]
                [pscustomobject]@{ Thumbprint = '0123' }
            }
            'Get-ChildItem'             = {
                if ([System.IO.File]::Exists($certificate)) { [pscustomobject]@{ Subject = $global:StandIn.Open['certificate']; PSPath = $certificate } }
            }
            'New-NetFirewallRule'       = { param($Bound) $global:StandIn.Open["rule $($Bound.Name)"] = $true }
            'Remove-NetFirewallRule'    = { param($Bound) $global:StandIn.Open.Remove("rule $($Bound.Name)") }
            'New-WSManInstance'         = { param($Bound) $global:StandIn.Open["listener $($Bound.SelectorSet.Transport)"] = $true }
            'Remove-WSManInstance'      = { param($Bound) $global:StandIn.Open.Remove("listener $($Bound.SelectorSet.Transport)") }
            'Set-Service'               = { param($Bound) $global:StandIn.Open["start of $($Bound.Name)"] = $Bound.StartupType -ne 'Disabled' }
            'Start-Service'             = { param($Bound) $global:StandIn.Open["service $($Bound.Name)"] = $true }
            'Stop-Service'              = { param($Bound) $global:StandIn.Open.Remove("service $($Bound.Name)") }
            'Set-Item'                  = { param($Bound) $global:StandIn.Open["$($Bound.Path)"] = $Bound.Value }
            'Set-ItemProperty'          = { param($Bound) $global:StandIn.Open["$($Bound.Name)"] = $Bound.Value }
            'Get-Volume'                = { [pscustomobject]@{ SizeRemaining = 20GB } }
        }
        # The limits of WinRM say nothing while it is off.
        $stillOpen = {
            $global:StandIn.Open.Keys | Where-Object { $_ -notmatch 'MaxMemory|MaxTimeout|certificate' -and "$($global:StandIn.Open[$_])" -notin '0', 'False' }
            if ([System.IO.File]::Exists($certificate)) { 'certificate' }
        }
        $wasOff = { @($global:StandIn.Calls | Where-Object { $_ -like 'shutdown.exe*' }).Count -gt 0 }
        $prepareSeal = {
            [System.IO.File]::WriteAllText("$disk/runner-pool-build/checked", '')
            [System.IO.File]::WriteAllText("$disk/runner-pool-build/build-user.txt", "packer`n")
        }
    }
    AfterEach {
        Remove-PSDrive -Name C -Scope Global
    }

    It 'seal.ps1 undoes what enable-winrm.ps1 opens, then powers off' {
        (Invoke-Script "$scripts/enable-winrm.ps1").Thrown | Should -Be ''
        @(& $stillOpen).Count | Should -BeGreaterThan 5
        & $prepareSeal
        (Invoke-Script "$scripts/seal.ps1").Thrown | Should -Be ''
        @(& $stillOpen) | Should -BeNullOrEmpty
        $global:StandIn.Calls[-1] | Should -Be 'shutdown.exe /s /f /t 0'
        $locked = @($global:StandIn.Calls | Where-Object { $_ -like 'Disable-LocalUser*' })
        $locked | Should -Be @('Disable-LocalUser -Name packer', 'Disable-LocalUser -Name Chief')
    }

    It 'seal.ps1 refuses an image that was not checked' {
        & $prepareSeal
        [System.IO.File]::Delete("$disk/runner-pool-build/checked")
        (Invoke-Script "$scripts/seal.ps1").Thrown | Should -BeLike '*check-image.ps1 did not run to its end*'
        $global:StandIn.Calls.Count | Should -Be 0
    }

    It 'seal.ps1 leaves the VM on when <_> fails' -ForEach @(
        'Set-MpPreference', 'Add-MpPreference', 'Get-LocalUser', 'Set-LocalUser', 'Disable-LocalUser', 'Set-ItemProperty', 'Set-Service'
        'Remove-NetFirewallRule', 'Set-Item', 'Remove-WSManInstance', 'Get-ChildItem', 'Stop-Service', 'Unregister-ScheduledTask'
    ) {
        & $prepareSeal
        $global:StandIn.Faults[$_] = 1
        (Invoke-Script "$scripts/seal.ps1").Thrown | Should -BeLike "$_ failed*"
        & $wasOff | Should -BeFalse
    }

    It 'seal.ps1 does without Defender where Windows has none' {
        & $prepareSeal
        $global:StandIn.Faults['Set-MpPreference'] = 1
        $global:StandIn.Answers['Get-Service'] = { }
        (Invoke-Script "$scripts/seal.ps1").Thrown | Should -Be ''
        & $wasOff | Should -BeTrue
    }

    It 'enable-winrm.ps1 sets the network to private until it stays so' {
        $global:StandIn.Looks = 0
        $global:StandIn.Answers['Get-NetConnectionProfile'] = {
            $global:StandIn.Looks++
            # None at first; then Windows goes on identifying it.
            if ($global:StandIn.Looks -in 2, 3) { $global:StandIn.Category = 'Public' }
            if ($global:StandIn.Looks -gt 1) { [pscustomobject]@{ Name = 'Network'; NetworkCategory = $global:StandIn.Category } }
        }
        $global:StandIn.Faults['Set-NetConnectionProfile'] = 1
        (Invoke-Script "$scripts/enable-winrm.ps1").Thrown | Should -Be ''
        $global:StandIn.Category | Should -Be 'Private'
        @($global:StandIn.Calls -like 'Set-NetConnectionProfile*').Count | Should -Be 2
        $global:StandIn.Calls[0] | Should -BeLike 'Start-Transcript*C:\Windows\Temp\enable-winrm.log'
    }

    It 'enable-winrm.ps1 gives up on a network that stays public' {
        $global:StandIn.Answers['Set-NetConnectionProfile'] = { }
        (Invoke-Script "$scripts/enable-winrm.ps1").Thrown | Should -BeLike '*stays public*'
        @($global:StandIn.Calls -like 'New-NetFirewallRule*').Count | Should -Be 0
    }

    It 'enable-winrm.ps1 takes the address of the CD, seal.ps1 takes it away again' {
        Copy-Item -LiteralPath "$scripts/enable-winrm.ps1" -Destination $disk
        [System.IO.File]::WriteAllText("$disk/network.json", '{"address":"172.30.1.254/23","dns_servers":["192.0.2.53","192.0.2.54"],"gateway":"172.30.0.1"}')
        (Invoke-Script "$disk/enable-winrm.ps1").Thrown | Should -Be ''
        $global:StandIn.Calls -like 'New-NetIPAddress*' | Should -Be 'New-NetIPAddress -DefaultGateway 172.30.0.1 -InterfaceIndex 4 -IPAddress 172.30.1.254 -PrefixLength 23'
        $global:StandIn.Calls -like 'Set-Dns*' | Should -Be 'Set-DnsClientServerAddress -InterfaceIndex 4 -ServerAddresses 192.0.2.53 192.0.2.54'
        # By hand, after it failed further on.
        (Invoke-Script "$disk/enable-winrm.ps1").Thrown | Should -Be ''
        @($global:StandIn.Calls -like 'New-NetIPAddress*').Count | Should -Be 1

        & $prepareSeal
        $global:StandIn.Calls.Clear()
        (Invoke-Script "$scripts/seal.ps1").Thrown | Should -Be ''
        $global:StandIn.Address | Should -BeNullOrEmpty
        $global:StandIn.Calls -like '*-Net[IR]*' -notlike 'Get-*' | Should -Be @(
            'Remove-NetRoute -Confirm False -DestinationPrefix 0.0.0.0/0 -InterfaceIndex 4'
            'Remove-NetIPAddress -Confirm False -InterfaceIndex 4 -IPAddress 172.30.1.254'
            'Set-NetIPInterface -AddressFamily IPv4 -Dhcp Enabled -InterfaceIndex 4'
        )
        $global:StandIn.Calls -like 'Set-Dns*' | Should -Be 'Set-DnsClientServerAddress -InterfaceIndex 4 -ResetServerAddresses True'
    }

    It 'enable-winrm.ps1 ends when <_> fails with an address on the CD' -ForEach 'Get-NetAdapter', 'New-NetIPAddress', 'Set-DnsClientServerAddress' {
        Copy-Item -LiteralPath "$scripts/enable-winrm.ps1" -Destination $disk
        [System.IO.File]::WriteAllText("$disk/network.json", '{"address":"172.30.1.254/23","dns_servers":["192.0.2.53"],"gateway":"172.30.0.1"}')
        $global:StandIn.Faults[$_] = 1
        (Invoke-Script "$disk/enable-winrm.ps1").Thrown | Should -BeLike "$_ failed*"
    }

    It 'seal.ps1 leaves the VM on when <_> fails with an address to take away' -ForEach 'Remove-NetIPAddress', 'Set-NetIPInterface', 'Set-DnsClientServerAddress' {
        & $prepareSeal
        $global:StandIn.Address = [pscustomobject]@{ InterfaceIndex = 4; IPAddress = '172.30.1.254' }
        $global:StandIn.Faults[$_] = 1
        (Invoke-Script "$scripts/seal.ps1").Thrown | Should -BeLike "$_ failed*"
        & $wasOff | Should -BeFalse
    }

    It 'enable-winrm.ps1 ends when <_> fails' -ForEach @(
        'Get-NetConnectionProfile', 'Set-NetConnectionProfile', 'Set-ItemProperty', 'Set-Service', 'Start-Service', 'New-SelfSignedCertificate'
        'New-WSManInstance', 'Set-Item', 'New-NetFirewallRule'
    ) {
        $global:StandIn.Faults[$_] = 99
        (Invoke-Script "$scripts/enable-winrm.ps1").Thrown | Should -BeLike "$_ failed*"
    }

    It 'prepare-seal.ps1 registers the task that the template''s shutdown_command starts' {
        $template = [System.IO.File]::ReadAllText("$Root/packer/images.pkr.hcl")
        $template -match 'shutdown_command\s*=\s*"schtasks.exe /run /tn (?<task>[^"]+)"' | Should -BeTrue
        $name = $Matches.task
        (Invoke-Script "$scripts/prepare-seal.ps1").Thrown | Should -Be ''
        $global:StandIn["Task $name"].Action.Argument | Should -BeLike '*-File C:\runner-pool-build\seal.ps1'
        Get-Content -LiteralPath "$disk/runner-pool-build/build-user.txt" | Should -Be 'packer'
    }

    It 'prepare-seal.ps1 ends when <_> fails' -ForEach 'New-ScheduledTaskAction', 'New-ScheduledTaskPrincipal', 'Register-ScheduledTask' {
        $global:StandIn.Faults[$_] = 1
        (Invoke-Script "$scripts/prepare-seal.ps1").Thrown | Should -BeLike "$_ failed*"
    }

    It 'install-guest.ps1 registers both tasks' {
        (Invoke-Script "$scripts/install-guest.ps1").Thrown | Should -Be ''
        $global:StandIn['Task runner-pool-guest'].Action.Argument | Should -BeLike '*start-runner.ps1'
        $global:StandIn['Task runner-pool-supervise'].Action.Argument | Should -BeLike '*supervise.ps1'
    }

    It 'install-guest.ps1 ends when <_> fails' -ForEach @(
        'New-LocalUser', 'New-ScheduledTaskSettingsSet', 'New-ScheduledTaskAction', 'Register-ScheduledTask'
        'New-ScheduledTaskTrigger', 'New-ScheduledTaskPrincipal'
    ) {
        $global:StandIn.Faults[$_] = 1
        (Invoke-Script "$scripts/install-guest.ps1").Thrown | Should -BeLike "$_ failed*"
    }

    It 'check-image.ps1 marks the image only where <Fault> is missing: <Marked>' -ForEach @(
        @{ Fault = 'nothing'; Marked = $true }
        @{ Fault = 'tool'; Marked = $false }
        @{ Fault = 'runner'; Marked = $false }
        @{ Fault = 'file'; Marked = $false }
        @{ Fault = 'task'; Marked = $false }
        @{ Fault = 'space'; Marked = $false }
    ) {
        $tool = 'icacls.exe'
        if ($Fault -eq 'tool') { $tool = 'no-such-tool.exe' }
        [System.IO.File]::WriteAllText("$disk/runner-pool-build/tools.json", "{`"checks`": [`"$tool --version`"]}")
        foreach ($file in 'pool.ps1', 'listener.ps1', 'start-runner.ps1', 'job-started.ps1', 'supervise.ps1', 'image.json') {
            [System.IO.File]::WriteAllText("$disk/runner-pool-guest/$file", '')
        }
        if ($Fault -eq 'file') { [System.IO.File]::Delete("$disk/runner-pool-guest/image.json") }
        Add-Program "$disk/actions-runner/bin/Runner.Listener.exe" '2.338.0'
        $env:RUNNER_VERSION = '2.338.0'
        if ($Fault -eq 'runner') { $env:RUNNER_VERSION = '2.339.0' }
        $env:FREE_GB_WANTED = '20'
        if ($Fault -eq 'space') { $env:FREE_GB_WANTED = '21' }
        if ($Fault -eq 'task') { $global:StandIn.Faults['Get-ScheduledTask'] = 1 }
        $result = Invoke-Script "$scripts/check-image.ps1"
        [System.IO.File]::Exists("$disk/runner-pool-build/checked") | Should -Be $Marked
        ($result.Thrown -eq '') | Should -Be $Marked
    }

    It 'configure-databases.ps1 changes only the lines for this machine''s own addresses' {
        $file = "$disk/pg_hba.conf"
        $encoding = [System.Text.Encoding]::GetEncoding('iso-8859-1')
        $comment = "# Gr$([char]0xFC)`$e`r`n# $([char]0xC3)$([char]0xA9)`n"
        $lines = "host  all  all  {0}  {1}`r`n"
        $others = "local all all scram-sha-256`r`nhost replication all 127.0.0.1/32 scram-sha-256`r`n"
        [System.IO.File]::WriteAllText($file, $comment + ($lines -f '127.0.0.1/32', 'scram-sha-256') + ($lines -f '10.0.0.0/8', 'md5') + ($lines -f '::1/128', 'md5') + $others, $encoding)
        $global:StandIn.Answers['Get-ChildItem'] = { [pscustomobject]@{ FullName = $file } }
        (Invoke-Script "$scripts/configure-databases.ps1").Thrown | Should -Be ''
        $expected = $comment + ($lines -f '127.0.0.1/32', 'trust') + ($lines -f '10.0.0.0/8', 'md5') + ($lines -f '::1/128', 'trust') + $others
        [System.IO.File]::ReadAllText($file, $encoding) | Should -BeExactly $expected
        $global:StandIn.Calls | Should -Contain 'Set-Service -Name WinDefend -StartupType Manual'
    }

    It 'configure-databases.ps1 ends when <_> fails' -ForEach 'Get-Service', 'Stop-Service', 'Set-Service', 'Get-ChildItem' {
        $global:StandIn.Faults[$_] = 1
        (Invoke-Script "$scripts/configure-databases.ps1").Thrown | Should -BeLike "$_ failed*"
    }

    It 'Save-Download downloads nothing that it could not check' {
        . 'C:\runner-pool-build\common.ps1'
        { Save-Download -Uri 'http://127.0.0.1:1/x' -Path "$disk/x" } | Should -Throw 'No SHA-256 and no signer*'
    }
}
