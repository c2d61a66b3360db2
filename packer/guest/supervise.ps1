# Runs as SYSTEM when the VM starts: starts the task of start-runner.ps1, waits until
# it has ended, powers the VM off. A task of its own, so that the VM ends in any case:
# when the runner's account may not shut down, when a job kills the runner and all
# around it, when the guest's script breaks.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

$GuestTask = 'runner-pool-guest'
$StartSeconds = 60
$RunSeconds = 21 * 24 * 3600 # longer than all waits of start-runner.ps1 together
$MaxFailures = 150 # in a row: five minutes without an answer from the task scheduler
$script:failures = 0

# A failed call says nothing about the job that may be running, so it is 'Unknown'.
function Get-GuestState {
    try {
        $state = [string] (Get-ScheduledTask -TaskName $GuestTask -ErrorAction Stop).State
        $script:failures = 0
        return $state
    } catch {
        $script:failures++
        if ($script:failures -ge $MaxFailures) { throw }
        Write-Warning $_.Exception.Message
        return 'Unknown'
    }
}

try {
    Start-ScheduledTask -TaskName $GuestTask -ErrorAction Stop
    $watch = [System.Diagnostics.Stopwatch]::StartNew()
    while ((Get-GuestState) -notin 'Running', 'Queued' -and $watch.Elapsed.TotalSeconds -lt $StartSeconds) { Start-Sleep -Milliseconds 500 }
    while ((Get-GuestState) -in 'Running', 'Queued', 'Unknown' -and $watch.Elapsed.TotalSeconds -lt $RunSeconds) { Start-Sleep -Seconds 2 }
} catch {
    Write-Warning $_.Exception.Message
}

# Asked again, since Windows refuses while it is still starting or installing.
for ($try = 0; $try -lt 60; $try++) {
    & shutdown.exe /s /f /t 0
    Start-Sleep -Seconds 10
}
