Set-StrictMode -Version Latest

BeforeAll {
    . (Join-Path -Path $PSScriptRoot -ChildPath 'standins.ps1')
    Import-StandIn 'Get-ScheduledTask', 'Start-ScheduledTask', 'Start-Sleep'
    $global:LeftRuns = 0
    function global:shutdown.exe { $global:StandIn.Calls.Add("shutdown.exe $args") }
    $supervise = Join-Path -Path $Root -ChildPath 'packer/guest/supervise.ps1'
}

AfterAll {
    Remove-Module -Name StandIns
    Remove-Item -Path function:global:shutdown.exe
    Remove-Variable -Name LeftRuns, StandIn -Scope Global
}

Describe 'supervise.ps1' {
    BeforeEach {
        Reset-StandIn
        # The runner's task ends after four looks at it.
        $global:LeftRuns = 4
        $global:StandIn.Answers['Get-ScheduledTask'] = {
            $state = 'Ready'
            if ($global:LeftRuns -gt 0) { $state = 'Running' }
            $global:LeftRuns--
            [pscustomobject]@{ State = $state }
        }
    }

    It 'powers the VM off once the task has ended' {
        (Invoke-Script $supervise).Thrown | Should -Be ''
        $global:LeftRuns | Should -BeLessThan 0
        $global:StandIn.Calls | Should -Contain 'shutdown.exe /s /f /t 0'
    }

    It 'leaves the VM on while the task scheduler fails under a running job' {
        $global:StandIn.Faults['Get-ScheduledTask'] = 100
        (Invoke-Script $supervise).Thrown | Should -Be ''
        $off = $global:StandIn.Calls.IndexOf('shutdown.exe /s /f /t 0')
        # 100 failures, 4 looks at a running task, 1 at an ended one.
        $looks = @($global:StandIn.Calls.GetRange(0, $off) | Where-Object { $_ -like 'Get-ScheduledTask*' })
        $looks.Count | Should -BeGreaterThan 104
    }

    It 'powers the VM off when the task scheduler never answers again' {
        $global:StandIn.Faults['Get-ScheduledTask'] = 100000
        (Invoke-Script $supervise).Thrown | Should -Be ''
        $global:StandIn.Calls | Should -Contain 'shutdown.exe /s /f /t 0'
    }

    It 'powers the VM off when the task cannot be started' {
        $global:StandIn.Faults['Start-ScheduledTask'] = 1
        (Invoke-Script $supervise).Thrown | Should -Be ''
        @($global:StandIn.Calls | Where-Object { $_ -like 'Get-ScheduledTask*' }).Count | Should -Be 0
        $global:StandIn.Calls | Should -Contain 'shutdown.exe /s /f /t 0'
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
        $watch.Elapsed.TotalSeconds | Should -BeLessThan 10
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
