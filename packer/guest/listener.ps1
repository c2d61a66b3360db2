# GitHub's runner: how it is registered, and how its listener is started, started again
# and asked to end. Dot-sourced by start-runner.ps1. Sources of what is said of it here:
# https://github.com/actions/runner/blob/main/src/Runner.Listener/Runner.cs
# https://github.com/actions/runner/blob/main/src/Misc/layoutroot/run-helper.cmd.template
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

. (Join-Path $PSScriptRoot 'pool.ps1')

$RunnerFolder = 'C:\actions-runner'
$LogFile = 'C:\actions-runner\pool-guest.log'
# What supervise.ps1 tells the host of this script.
$StageFile = 'C:\actions-runner\pool-stage.txt'
$ErrorFile = 'C:\actions-runner\pool-error.txt'

# In seconds.
$ConfigureSeconds = 300
$RunnerSeconds = 20 * 24 * 3600 # a job may take five days, and a runner may wait long for one
$UpdateSeconds = 120
$InterruptSeconds = 30

$MaxRetries = 5 # after exit code 2
$MaxUpdates = 3
$script:runnerWatch = [System.Diagnostics.Stopwatch]::StartNew()

# Appends one line to the log. Never give it a secret, a token or a body.
function Write-GuestLog {
    param([string] $Message)
    $line = '{0} {1}' -f [DateTime]::UtcNow.ToString('yyyy-MM-ddTHH:mm:ssZ'), $Message
    try { Add-Content -LiteralPath $LogFile -Value $line -Encoding UTF8 } catch { Write-Warning $line }
}

# Says, in a few words, what this VM does now.
function Set-GuestStage {
    param([string] $Stage)
    Write-GuestLog $Stage
    try { Set-Content -LiteralPath $StageFile -Value $Stage -Encoding UTF8 } catch { Write-Warning $_.Exception.Message }
}

# Says what failed.
function Set-GuestError {
    param([string] $Message)
    Write-GuestLog "failed: $Message"
    try { Set-Content -LiteralPath $ErrorFile -Value $Message -Encoding UTF8 } catch { Write-Warning $_.Exception.Message }
}

function ConvertFrom-Base64 {
    param([string] $Text)
    return [System.Text.Encoding]::UTF8.GetString([Convert]::FromBase64String($Text))
}

function ConvertTo-Base64 {
    param([string] $Text)
    return [Convert]::ToBase64String([System.Text.Encoding]::UTF8.GetBytes($Text))
}

# Returns the runner's JIT configuration, or $null while its parts are not all there and
# whole. It is base64 of a JSON object with the runner's files, each in base64. The
# setting that is added to its file .runner makes the listener ask GitHub for no updates;
# if GitHub has set it too, the later one counts, which is GitHub's.
function Get-JitConfig {
    $count = [string] (Get-HostValue 'RunnerPoolJitConfigParts')
    if ($count -notmatch '^[1-9][0-9]?$') { return $null }
    $parts = @(for ($i = 1; $i -le [int] $count; $i++) { Get-HostValue "RunnerPoolJitConfig$i" })
    if (@($parts | Where-Object { $_ }).Count -ne [int] $count) { return $null }
    try {
        $files = ConvertFrom-Base64 (-join $parts)
        $file = [string] (ConvertFrom-Json -InputObject $files).'.runner'
        $settings = ConvertFrom-Base64 $file
        ConvertFrom-Json -InputObject $settings | Out-Null
    } catch {
        # What it says may hold a piece of the configuration.
        return $null
    }
    if ($settings.StartsWith('{"')) { $settings = '{"DisableUpdate":true,' + $settings.Substring(1) }
    $changed = $files.Replace($file, (ConvertTo-Base64 $settings))
    return ConvertTo-Base64 $changed
}

# Registers the runner with the pool's token. config.cmd takes each argument and flag
# also from an environment variable ACTIONS_RUNNER_INPUT_<NAME>, so that no token stands
# on a command line and cmd.exe parses no value. This is
# `config.cmd --unattended --ephemeral --disableupdate --replace ...`.
# https://github.com/actions/runner/blob/main/src/Runner.Listener/CommandSettings.cs
function Register-Runner {
    param([psobject] $Config)
    foreach ($flag in 'UNATTENDED', 'EPHEMERAL', 'DISABLEUPDATE', 'REPLACE') {
        Set-Item -Path "Env:ACTIONS_RUNNER_INPUT_$flag" -Value 'true'
    }
    $env:ACTIONS_RUNNER_INPUT_TOKEN = $Config.token
    $env:ACTIONS_RUNNER_INPUT_URL = $Config.url
    $env:ACTIONS_RUNNER_INPUT_NAME = $Config.name
    $env:ACTIONS_RUNNER_INPUT_LABELS = $Config.labels
    # A repository has no runner groups.
    if (-not $Config.repository -and $Config.runner_group) { $env:ACTIONS_RUNNER_INPUT_RUNNERGROUP = $Config.runner_group }
    try {
        $process = Start-Process -FilePath (Join-Path $RunnerFolder 'config.cmd') -WorkingDirectory $RunnerFolder -NoNewWindow -PassThru
    } finally {
        Remove-Item -Path 'Env:ACTIONS_RUNNER_INPUT_*'
    }
    # Windows PowerShell forgets the exit code unless the handle was read before.
    $process.Handle | Out-Null
    if (-not $process.WaitForExit($ConfigureSeconds * 1000)) { throw "config.cmd did not end within $ConfigureSeconds seconds" }
    if ($process.ExitCode -ne 0) { throw "config.cmd ended with exit code $($process.ExitCode)" }
}

# Whether a job has begun here. A Worker writes its log as soon as it runs, and none is
# older than this VM. A failed look counts as a job.
function Test-WorkerStarted {
    try {
        if (Test-Path -Path (Join-Path $RunnerFolder '_diag\Worker_*.log')) { return $true }
        # With a wildcard, since a name that no process has would be an error.
        return @(Get-Process -Name 'Runner.Worker*').Count -gt 0
    } catch {
        Write-GuestLog "cannot see whether a job runs: $($_.Exception.Message)"
        return $true
    }
}

# Whether the host has asked this VM to retire and it can, since no job has begun here.
function Test-Retiring {
    try {
        if ((Get-HostValue 'RunnerPoolRetire') -ne '1') { return $false }
    } catch {
        return $false
    }
    return -not (Test-WorkerStarted)
}

# Sends Ctrl+C to the listener, as GitHub's own service does. It reaches every process
# of this console, so this one ignores it. (Not with Add-Type, which runs a compiler.)
# https://learn.microsoft.com/en-us/windows/console/generateconsolectrlevent
function Send-Interrupt {
    param([System.Diagnostics.Process] $Process)
    $name = [System.Reflection.AssemblyName]::new('RunnerPool')
    $module = [System.Reflection.Emit.AssemblyBuilder]::DefineDynamicAssembly($name, 'Run').DefineDynamicModule('RunnerPool')
    $type = $module.DefineType('Console', 'Public')
    $methods = @{ SetConsoleCtrlHandler = [type[]] ([IntPtr], [bool]); GenerateConsoleCtrlEvent = [type[]] ([uint32], [uint32]) }
    foreach ($method in $methods.Keys) {
        $defined = $type.DefinePInvokeMethod($method, 'kernel32.dll', 'Public, Static, PinvokeImpl', 'Standard', [bool], $methods[$method], 'Winapi', 'Auto')
        $defined.SetImplementationFlags('PreserveSig')
    }
    $console = $type.CreateType()
    if (-not $console::SetConsoleCtrlHandler([IntPtr]::Zero, $true) -or -not $console::GenerateConsoleCtrlEvent(0, 0)) { throw 'Windows does not send Ctrl+C' }
}

# Ends an idle listener. Interrupted, it deletes its session at GitHub and exits with 0
# at once. One that does not is killed, unless a job has reached it meanwhile.
function Stop-IdleListener {
    param([System.Diagnostics.Process] $Process)
    Set-GuestStage 'retiring'
    try {
        Send-Interrupt -Process $Process
    } catch {
        Write-GuestLog "cannot interrupt the listener: $($_.Exception.Message)"
    }
    if ($Process.WaitForExit($InterruptSeconds * 1000) -or (Test-WorkerStarted)) { return }
    Write-GuestLog 'the listener does not end by itself and is killed'
    try { $Process.Kill() } catch { Write-GuestLog "cannot kill the listener: $($_.Exception.Message)" }
}

# Runs the listener once and returns its exit code. The JIT configuration is in its
# environment alone: on a command line each process of the VM could read it.
function Invoke-Listener {
    param([string] $JitConfig)
    if ($JitConfig) { $env:ACTIONS_RUNNER_INPUT_JITCONFIG = $JitConfig }
    try {
        $process = Start-Process -FilePath (Join-Path $RunnerFolder 'bin\Runner.Listener.exe') -ArgumentList 'run' -WorkingDirectory $RunnerFolder -NoNewWindow -PassThru
    } finally {
        Remove-Item -Path 'Env:ACTIONS_RUNNER_INPUT_*'
    }
    # Windows PowerShell forgets the exit code unless the handle was read before.
    $process.Handle | Out-Null
    $stopped = $false
    while (-not $process.WaitForExit(1000)) {
        if ($script:runnerWatch.Elapsed.TotalSeconds -ge $RunnerSeconds) {
            Write-GuestLog "the listener did not end within $RunnerSeconds seconds"
            return 1460 # ERROR_TIMEOUT; the VM is powered off next
        }
        if (-not $stopped -and (Test-Retiring)) {
            $stopped = $true
            Stop-IdleListener -Process $process
        }
    }
    return $process.ExitCode
}

# Waits until the runner's update script, which outlives the listener, has put the new
# version into place: it writes this file at its end.
function Wait-RunnerUpdate {
    Set-GuestStage 'updating the runner'
    $flag = Join-Path $RunnerFolder 'update.finished'
    $watch = [System.Diagnostics.Stopwatch]::StartNew()
    while ($watch.Elapsed.TotalSeconds -lt $UpdateSeconds) {
        if (Test-Path -LiteralPath $flag) {
            Remove-Item -LiteralPath $flag -ErrorAction SilentlyContinue
            return
        }
        Start-Sleep -Seconds 1
    }
    Write-GuestLog "the runner's update did not end within $UpdateSeconds seconds"
}

# Runs the runner until its one job is done or it can get none, and returns the
# listener's exit code. Only the first launch gets the JIT configuration: it writes the
# runner's files, and Windows lets no second one write over them, since they are hidden.
#   0 done   1 not let in   2 may be tried again   3, 4 updated itself   5 session conflict
#   7 GitHub no longer accepts this version; without the variable it would be 1
function Invoke-Runner {
    param([string] $JitConfig)
    $env:ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE = '1'
    $retries = 0
    $updates = 0
    while ($true) {
        Set-GuestStage 'listening for a job'
        $exitCode = Invoke-Listener -JitConfig $JitConfig
        $JitConfig = ''
        Write-GuestLog "the listener ended with exit code $exitCode"
        if ($exitCode -eq 2 -and $retries -lt $MaxRetries) {
            $retries++
            Set-GuestStage 'waiting to start the listener again'
            Start-Sleep -Seconds ([Math]::Min(60, 5 * [Math]::Pow(2, $retries - 1)))
        } elseif ($exitCode -in 3, 4 -and $updates -lt $MaxUpdates) {
            $updates++
            Wait-RunnerUpdate
        } else {
            return $exitCode
        }
        if (Test-Retiring) { return $exitCode }
    }
}
