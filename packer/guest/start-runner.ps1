# Makes this VM a runner for one job: learns who it is, fetches its configuration,
# runs the runner, reports that it has ended. Runs as the runner's account, in a
# task that supervise.ps1 starts; when this script ends, however it ends,
# supervise.ps1 powers the VM off.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

# How long to wait for each step, in seconds. The pool's own limits are shorter;
# these only keep a VM that the pool has lost from running for ever.
$ValuesSeconds = 300
$ConfigSeconds = 900
$CompleteSeconds = 300

# While this file is there, a boot of this VM is not its first: supervise.ps1 powers it
# off, so that no second job runs after one that has restarted Windows.
$StartedFile = 'C:\actions-runner\pool-started'

. (Join-Path $PSScriptRoot 'pool.ps1')
. (Join-Path $PSScriptRoot 'listener.ps1')

# Returns what a script block reads, once that is more than nothing.
function Wait-Value {
    param([string] $What, [scriptblock] $Read)
    $watch = [System.Diagnostics.Stopwatch]::StartNew()
    $why = ''
    while ($watch.Elapsed.TotalSeconds -lt $ValuesSeconds) {
        try {
            $value = & $Read
            if ($null -ne $value) { return $value }
        } catch {
            $why = ": $($_.Exception.Message)"
        }
        Start-Sleep -Seconds 1
    }
    throw "the host gave no $What within $ValuesSeconds seconds$why"
}

function Wait-RunnerConfig {
    param([hashtable] $Pool)
    $watch = [System.Diagnostics.Stopwatch]::StartNew()
    $delay = 2
    while ($true) {
        $answer = Get-RunnerConfig -Pool $Pool
        if ($answer.Status -eq 200) {
            # What the parser says may hold the token.
            try { return ConvertFrom-Json -InputObject $answer.Body } catch { throw 'the pool''s answer is not JSON' }
        }
        # 401: not a present VM. 404: no such VM. 409: it was configured before, or a
        # job already runs on it. Waiting changes none of them.
        if ($answer.Status -in 401, 404, 409) { throw "the pool refused the configuration with status $($answer.Status)" }
        if ($watch.Elapsed.TotalSeconds -ge $ConfigSeconds) { throw "no configuration within $ConfigSeconds seconds, last status $($answer.Status)" }
        Write-GuestLog "no configuration yet, status $($answer.Status); next try in $delay s"
        Start-Sleep -Seconds $delay
        $delay = [Math]::Min(30, $delay * 2)
    }
}

function Send-Completion {
    param([hashtable] $Pool, [int] $ExitCode)
    $watch = [System.Diagnostics.Stopwatch]::StartNew()
    $delay = 2
    while ($true) {
        $answer = Send-RunnerComplete -Pool $Pool -ExitCode $ExitCode
        Write-GuestLog "reported the end with exit code $ExitCode, status $($answer.Status)"
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
    Set-GuestStage 'waiting for the values of the host'
    $pool = Wait-Value 'RunnerPool values' { Get-PoolIdentity }
    # Read now: the host removes it once the pool has answered.
    $jitConfig = $null
    if (Get-HostValue 'RunnerPoolJitConfigParts') { $jitConfig = Wait-Value 'whole JIT configuration' { Get-JitConfig } }
    Write-GuestLog "this is $($pool.VmName), its pool is $($pool.Url)"
    Set-GuestStage 'waiting for the pool'
    $config = Wait-RunnerConfig -Pool $pool
    Write-GuestLog "runner $($config.name), registration $($config.registration)"
    if ($config.registration -ne 'jit') {
        Set-GuestStage 'registering the runner'
        Register-Runner -Config $config
        $jitConfig = $null
    } elseif ($null -eq $jitConfig) {
        $jitConfig = Wait-Value 'JIT configuration' { Get-JitConfig }
    }
    New-Item -ItemType File -Path $StartedFile | Out-Null
    $exitCode = Invoke-Runner -JitConfig $jitConfig
    if ($exitCode -ne 0) { Set-GuestError "the listener ended with exit code $exitCode" }
} catch {
    Set-GuestError $_.Exception.Message
}
try {
    if ($null -ne $pool) {
        Set-GuestStage 'reporting the end'
        Send-Completion -Pool $pool -ExitCode $exitCode
    }
} catch {
    Write-GuestLog "could not report: $($_.Exception.Message)"
}
Set-GuestStage 'done'
