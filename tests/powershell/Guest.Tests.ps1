Set-StrictMode -Version Latest

BeforeAll {
    . (Join-Path -Path $PSScriptRoot -ChildPath 'standins.ps1')
    $network = 'Get-NetAdapter', 'Set-NetIPInterface', 'Get-NetIPAddress', 'New-NetIPAddress', 'Get-NetRoute', 'New-NetRoute', 'Set-DnsClientServerAddress'
    $registry = 'Get-Item', 'New-Item', 'Set-ItemProperty', 'Remove-ItemProperty'
    Import-StandIn ($network + $registry + 'Get-Process', 'Start-Sleep')
    function global:shutdown.exe { $global:StandIn.Calls.Add("shutdown.exe $args") }

    # COM's task scheduler. A member that is to fail is a fault of that name.
    function global:Invoke-Scheduler([string]$Member, $Answer) {
        $global:StandIn.Calls.Add("scheduler $Member")
        if ([int]$global:StandIn.Faults[$Member] -gt 0) {
            $global:StandIn.Faults[$Member] -= 1
            throw "$Member failed, as it was told to."
        }
        return $Answer
    }
    function global:New-Object {
        param([string]$TypeName, [object[]]$ArgumentList, [string]$ComObject)
        if (-not $ComObject) { return Microsoft.PowerShell.Utility\New-Object @PSBoundParameters }
        $scheduler = [pscustomobject]@{ Path = $ComObject }
        $members = @{
            Connect   = { Invoke-Scheduler 'Connect' $null }
            GetFolder = { param($Path) Invoke-Scheduler "GetFolder $Path" $this }
            GetTask   = { param($Name) Invoke-Scheduler "GetTask $Name" $this }
            Run       = { Invoke-Scheduler 'Run' $null }
        }
        foreach ($name in $members.Keys) { Add-Member -InputObject $scheduler -MemberType ScriptMethod -Name $name -Value $members[$name] }
        Add-Member -InputObject $scheduler -MemberType ScriptProperty -Name 'State' -Value {
            Invoke-Scheduler 'State' $null | Out-Null
            $global:StandIn.Looks++
            if ($global:StandIn.Looks -le $global:StandIn.RunsFor) { 4 } else { 3 }
        }
        Add-Member -InputObject $scheduler -MemberType NoteProperty -Name 'LastTaskResult' -Value -2147023511
        return Invoke-Scheduler "New-Object $ComObject" $scheduler
    }
    $supervise = Join-Path -Path $Root -ChildPath 'packer/guest/supervise.ps1'
}

AfterAll {
    Remove-Module -Name StandIns
    'shutdown.exe', 'New-Object', 'Invoke-Scheduler' | ForEach-Object { Remove-Item -Path "function:global:$_" }
    Remove-Variable -Name StandIn -Scope Global
}

Describe 'supervise.ps1' -Skip:([System.IO.Path]::DirectorySeparatorChar -eq '\') {
    BeforeEach {
        Reset-StandIn
        $disk = "$TestDrive/$([guid]::NewGuid())"
        [System.IO.Directory]::CreateDirectory("$disk/actions-runner") | Out-Null
        New-PSDrive -Name C -PSProvider FileSystem -Root $disk -Scope Global | Out-Null
        # The registry: what the host told, and what the guest tells it.
        New-PSDrive -Name HKLM -PSProvider FileSystem -Root $disk -Scope Global | Out-Null
        $global:StandIn.Values = @{ RunnerPoolVmSecret = 's' }
        $global:StandIn.Told = @{}
        $global:StandIn.Looks = 0
        # The runner's task ends after so many looks at it; a job runs during some of them.
        $global:StandIn.RunsFor = 8
        $global:StandIn.Answers = @{
            'Get-Item'            = {
                $key = [pscustomobject]@{ Values = $global:StandIn.Values }
                Add-Member -InputObject $key -MemberType ScriptMethod -Name 'GetValue' -Value { param($Name) $this.Values[$Name] } -PassThru
            }
            'Set-ItemProperty'    = { param($Bound) $global:StandIn.Told[$Bound.Name] = $Bound.Value }
            'Remove-ItemProperty' = { param($Bound) $global:StandIn.Told.Remove([string]$Bound.Name) }
            'Get-Process'         = { if ($global:StandIn.Looks -in 4..6) { [pscustomobject]@{ ProcessName = 'Runner.Worker' } } }
            'Get-NetAdapter'      = { [pscustomobject]@{ Name = 'Ethernet'; ifIndex = 7 } }
        }
        $address = @{ RunnerPoolAddress = '10.9.0.5'; RunnerPoolPrefixLength = '24'; RunnerPoolGateway = '10.9.0.1'; RunnerPoolDnsServers = '1.1.1.1,8.8.8.8' }
        $calls = { param($Pattern) @($global:StandIn.Calls | Where-Object { $_ -like $Pattern }) }
        # What was told under one name, in order.
        $told = { param($Name) @(& $calls "Set-ItemProperty*-Name $Name *" | ForEach-Object { ($_ -split ' -Value ')[1] }) }
    }
    AfterEach {
        Remove-PSDrive -Name C, HKLM -Scope Global
    }

    It 'powers the VM off once the task has ended' {
        (Invoke-Script $supervise).Thrown | Should -Be ''
        $global:StandIn.Looks | Should -Be 9
        & $calls 'scheduler *' | Select-Object -First 5 | Should -Be @(
            'scheduler New-Object Schedule.Service', 'scheduler Connect', 'scheduler GetFolder \', 'scheduler GetTask runner-pool-guest', 'scheduler Run'
        )
        $global:StandIn.Calls | Should -Contain 'shutdown.exe /s /f /t 0'
    }

    It 'powers the VM off at once when it has been started before' {
        [System.IO.File]::WriteAllText("$disk/actions-runner/pool-started", '')
        (Invoke-Script $supervise).Thrown | Should -Be ''
        & $calls 'scheduler *' | Should -BeNullOrEmpty
        $global:StandIn.Told.RunnerPoolError | Should -Be 'this VM has been started before'
        $global:StandIn.Calls | Should -Contain 'shutdown.exe /s /f /t 0'
    }

    It 'leaves the VM on while the task scheduler fails under a running job' {
        $global:StandIn.Faults['State'] = 100
        (Invoke-Script $supervise).Thrown | Should -Be ''
        $off = $global:StandIn.Calls.IndexOf('shutdown.exe /s /f /t 0')
        # 100 failures, 8 looks at a running task, 1 at an ended one.
        @($global:StandIn.Calls.GetRange(0, $off) | Where-Object { $_ -eq 'scheduler State' }).Count | Should -Be 109
    }

    It 'powers the VM off when the task scheduler never answers again' {
        $global:StandIn.Faults['State'] = 100000
        (Invoke-Script $supervise).Thrown | Should -Be ''
        $global:StandIn.Calls | Should -Contain 'shutdown.exe /s /f /t 0'
    }

    It 'powers the VM off when the task cannot be started, once the host may have heard why' {
        $global:StandIn.Faults['Run'] = 1
        (Invoke-Script $supervise).Thrown | Should -Be ''
        & $calls 'scheduler State' | Should -BeNullOrEmpty
        $global:StandIn.Told.RunnerPoolError | Should -BeLike '*Run failed, as it was told to.*'
        $heard = $global:StandIn.Calls.IndexOf('Start-Sleep -Seconds 60')
        $heard | Should -BeGreaterThan 0
        $global:StandIn.Calls.IndexOf('shutdown.exe /s /f /t 0') | Should -BeGreaterThan $heard
    }

    It 'says so when the task does not run, as when its account may not log on' {
        $supervise = "$TestDrive/supervise.ps1"
        $text = [System.IO.File]::ReadAllText("$Root/packer/guest/supervise.ps1")
        [System.IO.File]::WriteAllText($supervise, $text.Replace('$StartSeconds = 60', '$StartSeconds = 0'))
        $global:StandIn.RunsFor = 0
        (Invoke-Script $supervise).Thrown | Should -Be ''
        $global:StandIn.Told.RunnerPoolError | Should -Be 'the task runner-pool-guest does not start: the scheduler says 0x80070569'
        $global:StandIn.Calls | Should -Contain 'shutdown.exe /s /f /t 0'
    }

    It 'tells the host the stage, what failed and whether a job runs' {
        [System.IO.File]::WriteAllText("$disk/actions-runner/pool-stage.txt", "listening for a job`nx")
        [System.IO.File]::WriteAllText("$disk/actions-runner/pool-error.txt", "one`ttwo" + 'x' * 1000)
        (Invoke-Script $supervise).Thrown | Should -Be ''
        & $told 'RunnerPoolStage' | Should -Be 'listening for a job', 'running a job', 'listening for a job'
        & $told 'RunnerPoolWorker' | Should -Be '0', '1', '0'
        $global:StandIn.Told.RunnerPoolError.Length | Should -Be 200
        $global:StandIn.Told.RunnerPoolError | Should -BeLike 'one twoxxx*'
        & $calls 'Set-ItemProperty*' | ForEach-Object { $_ | Should -BeLike '*-LiteralPath HKLM:\SOFTWARE\Microsoft\Virtual Machine\Guest *-Type String*' }
    }

    It 'sets a fixed address before the runner starts, once' {
        $global:StandIn.Values += $address
        (Invoke-Script $supervise).Thrown | Should -Be ''
        $calls = @($global:StandIn.Calls)
        $run = $calls.IndexOf('scheduler Run')
        $expected = @(
            'Set-NetIPInterface -AddressFamily IPv4 -Dhcp Disabled -InterfaceIndex 7'
            'New-NetIPAddress -InterfaceIndex 7 -IPAddress 10.9.0.5 -PrefixLength 24'
            'New-NetRoute -DestinationPrefix 0.0.0.0/0 -InterfaceIndex 7 -NextHop 10.9.0.1'
            'Set-DnsClientServerAddress -InterfaceIndex 7 -ServerAddresses 1.1.1.1 8.8.8.8'
        )
        foreach ($call in $expected) {
            $calls.IndexOf($call) | Should -BeIn (0..$run) -Because $call
            @($calls | Where-Object { $_ -eq $call }).Count | Should -Be 1
        }
    }

    It 'keeps an address and a route that are set' {
        $global:StandIn.Values += $address
        $global:StandIn.Answers['Get-NetIPAddress'] = { [pscustomobject]@{ IPAddress = '10.9.0.5' } }
        $global:StandIn.Answers['Get-NetRoute'] = { [pscustomobject]@{ NextHop = '10.9.0.1' } }
        (Invoke-Script $supervise).Thrown | Should -Be ''
        & $calls 'New-Net*' | Should -BeNullOrEmpty
        & $calls 'Set-DnsClientServerAddress*' | Should -Not -BeNullOrEmpty
    }

    It 'leaves the network alone where the host gave no address' {
        (Invoke-Script $supervise).Thrown | Should -Be ''
        & $calls '*-Net*' | Should -BeNullOrEmpty
    }

    It 'sets an address whose values come late' {
        $global:StandIn.Answers['Get-NetIPAddress'] = { $global:StandIn.Calls.Add("look $($global:StandIn.Looks)") }
        $global:StandIn.Values['RunnerPoolVmSecret'] = $null
        # They come while it waits for the host's values.
        $global:StandIn.Answers['Start-Sleep'] = { $global:StandIn.Values = @{ RunnerPoolVmSecret = 's' } + $address }
        (Invoke-Script $supervise).Thrown | Should -Be ''
        & $calls 'New-NetIPAddress*' | Should -Not -BeNullOrEmpty
    }

    It 'ends no job when <_> fails a few times, and makes up for it' -ForEach @(
        'Get-NetAdapter', 'Set-NetIPInterface', 'Get-NetIPAddress', 'New-NetIPAddress', 'Get-NetRoute', 'New-NetRoute', 'Set-DnsClientServerAddress'
        'Get-Item', 'New-Item', 'Set-ItemProperty', 'Remove-ItemProperty', 'Get-Process'
    ) {
        $global:StandIn.Values += $address
        $global:StandIn.Faults[$_] = 5
        (Invoke-Script $supervise).Thrown | Should -Be ''
        $global:StandIn.Looks | Should -Be 9
        & $calls 'Set-DnsClientServerAddress*' | Should -Not -BeNullOrEmpty
        $global:StandIn.Told.RunnerPoolWorker | Should -Be '0'
        $global:StandIn.Told.ContainsKey('RunnerPoolError') | Should -BeFalse
        $global:StandIn.Calls | Should -Contain 'shutdown.exe /s /f /t 0'
    }

    It 'does not call a job over that it cannot see' {
        # It fails from the first look at the job on.
        $global:StandIn.Answers['Get-Process'] = {
            if ($global:StandIn.Looks -ge 5) { throw 'failed' }
            if ($global:StandIn.Looks -eq 4) { [pscustomobject]@{ ProcessName = 'Runner.Worker' } }
        }
        (Invoke-Script $supervise).Thrown | Should -Be ''
        & $told 'RunnerPoolWorker' | Should -Be '0', '1'
    }
}

Describe 'pool.ps1' {
    BeforeEach {
        Copy-Item -LiteralPath (Join-Path -Path $Root -ChildPath 'packer/guest/pool.ps1') -Destination $TestDrive
        Copy-Item -LiteralPath (Join-Path -Path $Root -ChildPath 'packer/guest/job-started.ps1') -Destination $TestDrive
        Set-Content -LiteralPath "$TestDrive/image.json" -Value '{"runner_version": "2.338.0", "built": "2026-01-01", "windows_evaluation_end": null}'
        $listener = [System.Net.Sockets.TcpListener]::new([System.Net.IPAddress]::Loopback, 0)
        $listener.Start()
        $pool = @{ Url = "http://127.0.0.1:$($listener.LocalEndpoint.Port)"; VmName = 'runner-1'; Secret = 's' }
        # Answers one request with these bytes, and keeps the connection.
        $serve = {
            param($Listener, $Text)
            $client = $Listener.AcceptTcpClient()
            $stream = $client.GetStream()
            $stream.Read([byte[]]::new(4096), 0, 4096) | Out-Null
            $bytes = [System.Text.Encoding]::UTF8.GetBytes($Text)
            $stream.Write($bytes, 0, $bytes.Length)
            $client
        }
        $server = [powershell]::Create()
        . "$TestDrive/pool.ps1"
    }
    AfterEach {
        $listener.Stop()
        $server.Dispose()
    }

    It 'gives up on an answer whose body never ends' {
        $script:RequestMilliseconds = 500
        $server.AddScript($serve).AddArgument($listener).AddArgument("HTTP/1.1 200 OK`r`nContent-Length: 9`r`n`r`n{").BeginInvoke() | Out-Null
        $watch = [System.Diagnostics.Stopwatch]::StartNew()
        (Get-RunnerConfig -Pool $pool).Status | Should -Be 0
        # HttpClient's own limit is 100 s.
        $watch.Elapsed.TotalSeconds | Should -BeLessThan 90
    }

    It 'reads JSON as UTF-8, also where the answer names no charset' {
        $server.AddScript($serve).AddArgument($listener).AddArgument("HTTP/1.1 200 OK`r`nContent-Type: application/json`r`nContent-Length: 4`r`n`r`n`"$([char]0xFC)`"").BeginInvoke() | Out-Null
        $answer = Get-RunnerConfig -Pool $pool
        $answer.Status | Should -Be 200
        $answer.Body | Should -Be "`"$([char]0xFC)`""
    }

    It 'gives the status of a refusal, and 0 where nobody listens' {
        $server.AddScript($serve).AddArgument($listener).AddArgument("HTTP/1.1 409 Conflict`r`nContent-Length: 1`r`n`r`nx").BeginInvoke() | Out-Null
        (Get-RunnerConfig -Pool $pool).Status | Should -Be 409
        $listener.Stop()
        (Get-RunnerConfig -Pool $pool).Status | Should -Be 0
    }

    It 'job-started.ps1 says whether the pool took its report, status <Status>' -ForEach @(
        @{ Status = 200; Said = 'Reported the start of this job to the runner pool.' }
        @{ Status = 503; Said = 'Could not report the start of this job to the runner pool: status 503.' }
    ) {
        Add-Content -LiteralPath "$TestDrive/pool.ps1" -Value @(
            'function Get-PoolIdentity { return @{ Url = ''x''; VmName = ''x''; Secret = ''x'' } }'
            "function Invoke-PoolRequest { return @{ Status = $Status; Body = '' } }"
        )
        $result = Invoke-Script "$TestDrive/job-started.ps1"
        $result.Output | Should -Be $Said
        $result.ExitCode | Should -Be 0
    }
}
