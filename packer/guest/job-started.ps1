# The runner's job-started hook (ACTIONS_RUNNER_HOOK_JOB_STARTED): tells the pool
# which job has started. A hook that fails would fail the job, and a slow one delays
# it, so this one makes a single short request and ends with 0 whatever happened.
# https://docs.github.com/en/actions/hosting-your-own-runners/managing-self-hosted-runners/running-scripts-before-or-after-a-job
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

try {
    . (Join-Path $PSScriptRoot 'pool.ps1')
    $pool = Get-PoolIdentity
    if ($null -ne $pool) {
        $answer = Send-RunnerStarted -Pool $pool -RunId $env:GITHUB_RUN_ID -Job $env:GITHUB_JOB -Repository $env:GITHUB_REPOSITORY
        if ($answer.Status -eq 200) {
            Write-Output 'Reported the start of this job to the runner pool.'
        } else {
            Write-Output "Could not report the start of this job to the runner pool: status $($answer.Status)."
        }
    }
} catch {
    Write-Output "Could not report the start of this job to the runner pool: $($_.Exception.Message)"
}
exit 0
