# start-runner.ps1 with GitHub's own runner, before a stand-in for the pool and one for
# GitHub's service. TOOLS names the folder that holds both runner and service.
Set-StrictMode -Version Latest

BeforeAll {
    . (Join-Path -Path $PSScriptRoot -ChildPath 'standins.ps1')
    Import-StandIn 'Get-Item', 'Add-Content', 'Set-Content', 'Get-Process'
    $tools = $env:TOOLS
    if (-not $tools) { throw 'TOOLS must name the folder with GitHub''s runner: see .ci/lib.sh' }
    $runner = "$TestDrive/runner"
    New-Item -ItemType Directory -Path $runner | Out-Null
    & tar -xJf "$tools/runner/runner.tar.xz" -C $runner
    # The Windows name of the listener. It needs the .NET that PowerShell has.
    [System.IO.File]::WriteAllText("$runner/actions-runner/bin/Runner.Listener.exe", @"
#!/bin/sh
export DOTNET_ROOT='$(Split-Path -Path $PSHOME -Parent)' DOTNET_SYSTEM_GLOBALIZATION_INVARIANT=1 RUNNER_ALLOW_RUNASROOT=1
echo "`$ACTIONS_RUNNER_INPUT_JITCONFIG" >> "`$(dirname "`$0")/../launches.txt"
exec "`$(dirname "`$0")/Runner.Listener" "`$@"
"@)
    & chmod +x "$runner/actions-runner/bin/Runner.Listener.exe"
    $package = "$TestDrive/package.tar.gz"
    & tar -czf $package -C "$runner/actions-runner" .

    # Below the range from which systems give ports to connections and to whoever asks for any.
    function Get-FreePort {
        while ($true) {
            $port = Get-Random -Minimum 10000 -Maximum 32000
            $listener = [System.Net.Sockets.TcpListener]::new([System.Net.IPAddress]::Any, $port)
            try {
                $listener.Start()
                return $port
            } catch [System.Net.Sockets.SocketException] {
                continue
            } finally {
                $listener.Stop()
            }
        }
    }

    # Answers the guest's requests until it is closed: each with the first of the answers
    # for its route, or the last that is left. Notes what was asked.
    $serve = {
        param($Listener, $Answers, $Asked)
        while ($Listener.IsListening) {
            try { $context = $Listener.GetContext() } catch { return }
            $route = $context.Request.Url.Segments[2].TrimEnd('/')
            $reader = [System.IO.StreamReader]::new($context.Request.InputStream)
            $Asked.Add("$route $($reader.ReadToEnd())".Trim())
            $answer = $Answers[$route][0]
            if ($Answers[$route].Count -gt 1) { $Answers[$route].RemoveAt(0) }
            $context.Response.StatusCode = $answer.Status
            $bytes = [System.Text.Encoding]::UTF8.GetBytes($answer.Body)
            $context.Response.Close($bytes, $true)
        }
    }

    # Gives the VM a JIT configuration in parts, as the host does.
    function Set-JitConfig([string]$Text) {
        $parts = @([regex]::Matches($Text, '.{1,900}').Value)
        $global:StandIn.Values['RunnerPoolJitConfigParts'] = "$($parts.Count)"
        for ($i = 0; $i -lt $parts.Count; $i++) { $global:StandIn.Values["RunnerPoolJitConfig$($i + 1)"] = $parts[$i] }
    }
    function ConvertTo-Base64([string]$Text) { [Convert]::ToBase64String([System.Text.Encoding]::UTF8.GetBytes($Text)) }

    # A listener of ours, in place of GitHub's: it ends with the next of these exit codes.
    function Set-ListenerStub([int[]]$ExitCode) {
        Set-JitConfig (ConvertTo-Base64 ('{".runner":"' + (ConvertTo-Base64 '{"AgentId":1}') + '",".credentials":"' + ('e30=' * 200) + '"}'))
        [System.IO.File]::WriteAllLines("$disk/actions-runner/exit-codes.txt", @($ExitCode | ForEach-Object { "$_" }))
        [System.IO.File]::WriteAllText("$disk/actions-runner/bin/Runner.Listener.exe", @'
#!/bin/sh
cd "$(dirname "$0")/.."
echo "$ACTIONS_RUNNER_INPUT_JITCONFIG" >> launches.txt
code=$(head -1 exit-codes.txt)
sed -i 1d exit-codes.txt
exit $code
'@)
    }

    # Starts the stand-in for GitHub's service, and gives the VM a JIT configuration for it.
    function Start-GitHub([string]$Mode) {
        $port = Get-FreePort
        $node = 'node'
        $global:StandIn.ServiceLog = "$disk/service.log"
        $env:JOB = "$tools/runner/job.json"
        $env:PKG = $package
        $env:POLL = '500'
        $script:service = Start-Process -FilePath $node -ArgumentList "$tools/runner/fake-service.mjs", $port, "$disk/service.log", $Mode -PassThru -RedirectStandardOutput "$disk/service.txt"
        Set-JitConfig (& $node "$tools/runner/fake-service.mjs" jit $port)
        $script:servicePort = $port
        while (-not (Test-Connection -TargetName '127.0.0.1' -TcpPort $port -Quiet)) { Microsoft.PowerShell.Utility\Start-Sleep -Milliseconds 50 }
    }
}

AfterAll {
    Remove-Module -Name StandIns
    Remove-Variable -Name StandIn -Scope Global
    'JOB', 'PKG', 'POLL', 'ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE' | ForEach-Object { [System.Environment]::SetEnvironmentVariable($_, $null) }
}

Describe 'start-runner.ps1' -Skip:([System.IO.Path]::DirectorySeparatorChar -eq '\') {
    BeforeEach {
        Reset-StandIn
        $disk = "$TestDrive/$([guid]::NewGuid())"
        New-Item -ItemType Directory -Path $disk | Out-Null
        & /bin/cp -r "$runner/actions-runner" "$Root/packer/guest" $disk
        [System.IO.File]::WriteAllText("$disk/guest/image.json", '{"runner_version": "2.336.0", "built": "2026-01-01", "windows_evaluation_end": null}')
        # Linux interrupts a process by a signal. It may take its time on a busy machine.
        [System.IO.File]::AppendAllText("$disk/guest/listener.ps1", "`nfunction Send-Interrupt { & kill -INT `$args[1].Id }`n`$InterruptSeconds = 300`n`$script:RequestMilliseconds = 300000`n")
        New-PSDrive -Name C -PSProvider FileSystem -Root $disk -Scope Global | Out-Null
        $port = Get-FreePort
        $answers = @{
            'runner-config'   = [System.Collections.Generic.List[object]]@(@{ Status = 200; Body = '{"token": "", "name": "runner-1", "registration": "jit", "repository": ""}' })
            'runner-complete' = [System.Collections.Generic.List[object]]@(@{ Status = 200; Body = 'OK' })
        }
        $asked = [System.Collections.Generic.List[string]]::new()
        $listener = [System.Net.HttpListener]::new()
        $listener.Prefixes.Add("http://127.0.0.1:$port/")
        $listener.Start()
        $server = [powershell]::Create().AddScript($serve).AddArgument($listener).AddArgument($answers).AddArgument($asked)
        $server.BeginInvoke() | Out-Null
        $global:StandIn.Values = @{ RunnerPoolUrl = "http://127.0.0.1:$port"; RunnerPoolVmName = 'runner-1'; RunnerPoolVmSecret = 's' }
        $global:StandIn.Answers['Get-Item'] = {
            param($Bound)
            $key = [pscustomobject]@{ Path = $Bound.LiteralPath }
            Add-Member -InputObject $key -MemberType ScriptMethod -Name 'GetValue' -Value {
                param($Name)
                $value = $global:StandIn.Values[$Name]
                if ($value -is [scriptblock]) { & $value } else { $value }
            } -PassThru
        }
        foreach ($name in 'Add-Content', 'Set-Content', 'Get-Process') {
            $global:StandIn.Answers[$name] = [scriptblock]::Create("param(`$Bound) Microsoft.PowerShell.Management\$name @Bound")
        }
        # Nothing waits, but as long as it takes others to run.
        function global:Start-Sleep { Microsoft.PowerShell.Utility\Start-Sleep -Milliseconds 20 }
        $script:service = $null
        $run = { Invoke-Script 'C:\guest\start-runner.ps1' }
        $launches = { @(Get-Content -LiteralPath "$disk/actions-runner/launches.txt") }
    }
    AfterEach {
        if ($null -ne $script:service) { $script:service.Kill() }
        $listener.Close()
        $server.Dispose()
        Remove-Item -Path function:global:Start-Sleep
        Remove-PSDrive -Name C -Scope Global
        # It must not outlive its launch.
        $env:ACTIONS_RUNNER_INPUT_JITCONFIG | Should -BeNullOrEmpty
    }

    It 'runs a job and reports its end' {
        Start-GitHub 'job'
        (& $run).Thrown | Should -Be ''
        $asked | Should -Be 'runner-config', 'runner-complete {"exit_code":0}'
        $log = Get-Content -LiteralPath "$disk/service.log" -Raw
        $log | Should -BeLike '*"url":"/run/completejob"*succeeded*'
        # It asks GitHub for no updates.
        $log | Should -BeLike '*/message?*disableUpdate=true*'
        Test-Path -LiteralPath "$disk/actions-runner/pool-started" | Should -BeTrue
    }

    It 'starts the listener again after an update, the new version and without the JIT configuration' {
        Start-GitHub 'update'
        # GitHub removes the registration of the second one.
        $global:StandIn.Values['RunnerPoolRetire'] = {
            if (@(& $launches).Count -eq 2) { Invoke-RestMethod -Uri "http://127.0.0.1:$servicePort/control" -Method Post -Body '{"mode":"notfound"}' | Out-Null }
            return ''
        }
        (& $run).Thrown | Should -Be ''
        $asked | Should -Be 'runner-config', 'runner-complete {"exit_code":0}'
        $log = Get-Content -LiteralPath "$disk/actions-runner/pool-guest.log"
        @($log | Where-Object { $_ -like '*listener ended with exit code*' } | ForEach-Object { $_.Split(' ')[-1] }) | Should -Be '4', '0'
        (Get-Item -LiteralPath "$disk/actions-runner/bin") | Should -Not -BeNullOrEmpty
        [System.IO.Directory]::Exists("$disk/actions-runner/bin.2.999.0") | Should -BeTrue
        (& $launches)[0] | Should -Not -BeNullOrEmpty
        (& $launches)[1] | Should -BeNullOrEmpty
    }

    It 'reports exit code <ExitCode> when GitHub <Why>' -ForEach @(
        @{ Mode = 'tooold'; Why = 'no longer accepts the version'; ExitCode = 7 }
        @{ Mode = 'notfound'; Why = 'has removed the registration'; ExitCode = 0 }
        @{ Mode = 'unauth'; Why = 'does not let it in'; ExitCode = 1 }
    ) {
        Start-GitHub $Mode
        (& $run).Thrown | Should -Be ''
        $asked | Should -Be 'runner-config', "runner-complete {`"exit_code`":$ExitCode}"
        @(& $launches).Count | Should -Be 1
    }

    It 'ends an idle listener when the host asks the VM to retire' {
        Start-GitHub 'ok'
        $global:StandIn.Values['RunnerPoolRetire'] = { if ((Get-Content -LiteralPath $global:StandIn.ServiceLog -Raw) -like '*/message*') { '1' } }
        (& $run).Thrown | Should -Be ''
        $asked | Should -Be 'runner-config', 'runner-complete {"exit_code":0}'
        Get-Content -LiteralPath "$disk/service.log" -Raw | Should -BeLike '*"m":"DELETE","url":"/session*'
    }

    It 'lets a job end before it obeys' {
        Start-GitHub 'job'
        $global:StandIn.Values['RunnerPoolRetire'] = { if ([System.IO.Directory]::GetFiles("$disk/actions-runner/_diag", 'Worker_*').Count -gt 0) { '1' } }
        (& $run).Thrown | Should -Be ''
        Get-Content -LiteralPath "$disk/service.log" -Raw | Should -BeLike '*"url":"/run/completejob"*succeeded*'
        Get-Content -LiteralPath "$disk/actions-runner/pool-guest.log" -Raw | Should -Not -BeLike '*retiring*'
    }

    It 'kills an idle listener that cannot be interrupted' {
        Set-ListenerStub
        [System.IO.File]::WriteAllText("$disk/actions-runner/bin/Runner.Listener.exe", "#!/bin/sh`ntrap '' INT`n: > '$disk/trapped'`nexec sleep 600`n")
        $global:StandIn.Values['RunnerPoolRetire'] = { if ([System.IO.File]::Exists("$disk/trapped")) { '1' } }
        [System.IO.File]::AppendAllText("$disk/guest/listener.ps1", "`n`$InterruptSeconds = 1`n")
        (& $run).Thrown | Should -Be ''
        $asked[-1] | Should -Be 'runner-complete {"exit_code":137}'
    }

    It 'starts the listener again after exit code 2, up to five times' {
        Set-ListenerStub 2, 2, 5
        (& $run).Thrown | Should -Be ''
        $asked[-1] | Should -Be 'runner-complete {"exit_code":5}'
        @(& $launches | Where-Object { $_ }).Count | Should -Be 1
        @(& $launches).Count | Should -Be 3
        [System.IO.File]::Delete("$disk/actions-runner/pool-started")
        Set-ListenerStub 2, 2, 2, 2, 2, 2, 0
        (& $run).Thrown | Should -Be ''
        $asked[-1] | Should -Be 'runner-complete {"exit_code":2}'
    }

    It 'ends after exit code <_>' -ForEach 0, 1, 5, 7 {
        Set-ListenerStub $_, 100
        (& $run).Thrown | Should -Be ''
        $asked[-1] | Should -Be "runner-complete {`"exit_code`":$_}"
        Test-Path -LiteralPath "$disk/actions-runner/pool-error.txt" | Should -Be ($_ -ne 0)
    }

    It 'with a token, registers the runner by config.cmd' {
        Set-ListenerStub 0
        $global:StandIn.Values.Remove('RunnerPoolJitConfigParts')
        $answers['runner-config'][0].Body = '{"token": "t0ken", "url": "https://github.com/o", "name": "runner-1", "labels": "a,b", "registration": "token", "repository": "", "runner_group": "Default"}'
        [System.IO.File]::WriteAllText("$disk/actions-runner/config.cmd", "#!/bin/sh`nenv | grep ACTIONS_RUNNER_INPUT | sort > config.txt`n")
        & chmod +x "$disk/actions-runner/config.cmd"
        (& $run).Thrown | Should -Be ''
        $asked[-1] | Should -Be 'runner-complete {"exit_code":0}'
        $given = Get-Content -LiteralPath "$disk/actions-runner/config.txt"
        $given | Should -Contain 'ACTIONS_RUNNER_INPUT_TOKEN=t0ken'
        $given | Should -Contain 'ACTIONS_RUNNER_INPUT_EPHEMERAL=true'
        & $launches | Should -Be ''
    }

    It 'starts no listener when the pool answers <_>' -ForEach 401, 404, 409 {
        Set-ListenerStub 0
        $answers['runner-config'].Insert(0, @{ Status = 503; Body = '' })
        $answers['runner-config'][1].Status = $_
        (& $run).Thrown | Should -Be ''
        $asked | Should -Be 'runner-config', 'runner-config', 'runner-complete {"exit_code":1}'
        Test-Path -LiteralPath "$disk/actions-runner/launches.txt" | Should -BeFalse
    }

    It 'starts no listener without <Without>' -ForEach @(
        @{ Without = 'an answer of the pool'; Change = { $answers['runner-config'][0].Status = 503 } }
        @{ Without = 'one of the parts'; Change = { $global:StandIn.Values.Remove('RunnerPoolJitConfig2') } }
        @{ Without = 'a JIT configuration that is base64'; Change = { $global:StandIn.Values['RunnerPoolJitConfig1'] = '!' } }
        @{ Without = 'a JIT configuration that is JSON'; Change = { Set-JitConfig (ConvertTo-Base64 'x') } }
        @{ Without = 'a marker on the disk'; Change = { [System.IO.Directory]::CreateDirectory("$disk/actions-runner/pool-started") } }
    ) {
        Set-ListenerStub 0
        $script = "$disk/guest/start-runner.ps1"
        [System.IO.File]::WriteAllText($script, ([System.IO.File]::ReadAllText($script) -replace '(?m)^\$(Values|Config)Seconds = \d+', '$$$1Seconds = 1'))
        & $Change
        (& $run).Thrown | Should -Be ''
        Test-Path -LiteralPath "$disk/actions-runner/launches.txt" | Should -BeFalse
        $asked[-1] | Should -Be 'runner-complete {"exit_code":1}'
        Get-Content -LiteralPath "$disk/actions-runner/pool-error.txt" | Should -Not -BeNullOrEmpty
    }

    It 'goes on when the host''s values cannot be read <_> times' -ForEach 1, 4, 7 {
        Set-ListenerStub 0
        $global:StandIn.Faults['Get-Item'] = $_
        (& $run).Thrown | Should -Be ''
        $asked[-1] | Should -Be 'runner-complete {"exit_code":0}'
    }

    It 'lets a job end though <_> fails all the time' -ForEach 'Add-Content', 'Set-Content', 'Get-Process' {
        Set-ListenerStub
        [System.IO.File]::WriteAllText("$disk/actions-runner/bin/Runner.Listener.exe", "#!/bin/sh`nsleep 3`n")
        $global:StandIn.Values['RunnerPoolRetire'] = '1'
        $global:StandIn.Faults[$_] = 1000
        $global:StandIn.Answers['Get-Process'] = { 'a Worker' }
        (& $run).Thrown | Should -Be ''
        $asked[-1] | Should -Be 'runner-complete {"exit_code":0}'
    }

    It 'reports the end until the pool takes it' {
        Set-ListenerStub 0
        0..2 | ForEach-Object { $answers['runner-complete'].Insert(0, @{ Status = 503; Body = '' }) }
        (& $run).Thrown | Should -Be ''
        @($asked | Where-Object { $_ -like 'runner-complete*' }).Count | Should -Be 4
    }
}
