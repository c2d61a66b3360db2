# Makes this VM a runner for one job: learns who it is, fetches its configuration,
# runs the runner, reports that it has ended. Runs as the runner's account, in a
# task that supervise.ps1 starts; when this script ends, however it ends,
# supervise.ps1 powers the VM off.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

$RunnerFolder = 'C:\actions-runner'
$LogFile = 'C:\actions-runner\pool-guest.log'

# How long to wait for each step, in seconds. The pool's own limits are shorter;
# these only keep a VM that the pool has lost from running for ever.
$IdentitySeconds = 300
$ConfigSeconds = 900
$CompleteSeconds = 300
$ConfigureSeconds = 300
$RunnerSeconds = 20 * 24 * 3600 # a job may take five days, and a runner may wait long for one

. (Join-Path $PSScriptRoot 'pool.ps1')

# Appends one line to the log. Never give it a secret, a token or a body.
function Write-GuestLog {
    param([string] $Message)
    $line = '{0} {1}' -f [DateTime]::UtcNow.ToString('yyyy-MM-ddTHH:mm:ssZ'), $Message
    try { Add-Content -LiteralPath $LogFile -Value $line -Encoding UTF8 } catch { Write-Warning $line }
}

function Wait-PoolIdentity {
    $watch = [System.Diagnostics.Stopwatch]::StartNew()
    while ($watch.Elapsed.TotalSeconds -lt $IdentitySeconds) {
        $pool = Get-PoolIdentity
        if ($null -ne $pool) { return $pool }
        Start-Sleep -Seconds 1
    }
    throw "the host gave no RunnerPool values within $IdentitySeconds seconds"
}

function Wait-RunnerConfig {
    param([hashtable] $Pool)
    $watch = [System.Diagnostics.Stopwatch]::StartNew()
    $delay = 2
    while ($true) {
        $answer = Get-RunnerConfig -Pool $Pool
        if ($answer.Status -eq 200) { return ConvertFrom-Json -InputObject $answer.Body }
        # 401: not the secret of a present VM. 404: no such VM. 409: a job already
        # runs on it. Waiting changes none of them.
        if ($answer.Status -in 401, 404, 409) { throw "the pool refused the configuration with status $($answer.Status)" }
        if ($watch.Elapsed.TotalSeconds -ge $ConfigSeconds) { throw "no configuration within $ConfigSeconds seconds, last status $($answer.Status)" }
        Write-GuestLog "no configuration yet, status $($answer.Status); next try in $delay s"
        Start-Sleep -Seconds $delay
        $delay = [Math]::Min(30, $delay * 2)
    }
}

# Runs a .cmd of the runner and returns its exit code. One that takes too long is left
# alone: the VM is powered off next.
function Invoke-RunnerScript {
    param([string] $Name, [int] $Seconds)
    $process = Start-Process -FilePath (Join-Path $RunnerFolder $Name) -WorkingDirectory $RunnerFolder -NoNewWindow -PassThru
    # Windows PowerShell forgets the exit code unless the handle was read before.
    $process.Handle | Out-Null
    if (-not $process.WaitForExit($Seconds * 1000)) {
        Write-GuestLog "$Name did not end within $Seconds seconds"
        return 1460 # ERROR_TIMEOUT
    }
    return $process.ExitCode
}

# Runs the runner until its one job is done. The runner takes each argument and flag
# also from an environment variable ACTIONS_RUNNER_INPUT_<NAME>, which it removes
# before it starts a job: so no token stands on a command line, and cmd.exe parses no
# value. This is `run.cmd --jitconfig`, or `config.cmd --unattended --ephemeral
# --disableupdate --replace ...` and then `run.cmd`.
# https://github.com/actions/runner/blob/main/src/Runner.Listener/CommandSettings.cs
function Invoke-Runner {
    param([psobject] $Config)
    if ($Config.registration -eq 'jit') {
        $env:ACTIONS_RUNNER_INPUT_JITCONFIG = $Config.token
        return Invoke-RunnerScript -Name 'run.cmd' -Seconds $RunnerSeconds
    }
    foreach ($flag in 'UNATTENDED', 'EPHEMERAL', 'DISABLEUPDATE', 'REPLACE') {
        Set-Item -Path "Env:ACTIONS_RUNNER_INPUT_$flag" -Value 'true'
    }
    $env:ACTIONS_RUNNER_INPUT_TOKEN = $Config.token
    $env:ACTIONS_RUNNER_INPUT_URL = $Config.url
    $env:ACTIONS_RUNNER_INPUT_NAME = $Config.name
    $env:ACTIONS_RUNNER_INPUT_LABELS = $Config.labels
    # A repository has no runner groups.
    if (-not $Config.repository -and $Config.runner_group) { $env:ACTIONS_RUNNER_INPUT_RUNNERGROUP = $Config.runner_group }
    $exitCode = Invoke-RunnerScript -Name 'config.cmd' -Seconds $ConfigureSeconds
    Remove-Item -Path 'Env:ACTIONS_RUNNER_INPUT_*'
    if ($exitCode -ne 0) { throw "config.cmd ended with exit code $exitCode" }
    return Invoke-RunnerScript -Name 'run.cmd' -Seconds $RunnerSeconds
}

function Send-Completion {
    param([hashtable] $Pool, [int] $ExitCode)
    $watch = [System.Diagnostics.Stopwatch]::StartNew()
    $delay = 2
    while ($true) {
        $answer = Send-RunnerComplete -Pool $Pool -ExitCode $ExitCode
        Write-GuestLog "reported completion with exit code $ExitCode, status $($answer.Status)"
        # 401 and 404: the pool has given this VM up already.
        if ($answer.Status -in 200, 401, 404) { return }
        if ($watch.Elapsed.TotalSeconds -ge $CompleteSeconds) { return }
        Start-Sleep -Seconds $delay
        $delay = [Math]::Min(30, $delay * 2)
    }
}

$pool = $null
$exitCode = 1
try {
    Write-GuestLog 'waiting for the values of the host'
    $pool = Wait-PoolIdentity
    Write-GuestLog "this is $($pool.VmName), its pool is $($pool.Url)"
    $config = Wait-RunnerConfig -Pool $pool
    Write-GuestLog "starting runner $($config.name), registration $($config.registration)"
    $exitCode = Invoke-Runner -Config $config
    Write-GuestLog "the runner ended with exit code $exitCode"
} catch {
    Write-GuestLog "failed: $($_.Exception.Message)"
}
try {
    if ($null -ne $pool) { Send-Completion -Pool $pool -ExitCode $exitCode }
} catch {
    Write-GuestLog "could not report: $($_.Exception.Message)"
}
Write-GuestLog 'done; the VM will be powered off'
