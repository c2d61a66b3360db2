# Starts the pool in this window; Ctrl+C stops it. Passes on its exit code.
#   .\start.ps1              checks the host, then runs the pool
#   .\start.ps1 -Install     makes a scheduled task that runs the pool from boot on
#   .\start.ps1 -Uninstall   stops and removes that task
# Runs under Windows PowerShell 5.1 and PowerShell 7.
[CmdletBinding(DefaultParameterSetName = 'Run')]
param(
    [Parameter(ParameterSetName = 'Install', Mandatory)][switch]$Install,
    [Parameter(ParameterSetName = 'Uninstall', Mandatory)][switch]$Uninstall,
    # How the scheduled task calls this script: no window, and the pool is
    # started again when it fails.
    [Parameter(ParameterSetName = 'Task', Mandatory)][switch]$Task
)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
. (Join-Path -Path $PSScriptRoot -ChildPath 'packer/common.ps1')

$TaskName = 'hyperv-runner-pool'

function Get-PoolTask {
    return @(Get-ScheduledTask -ErrorAction Stop | Where-Object { $_.TaskName -eq $TaskName -and $_.TaskPath -eq '\' })
}

function Install-PoolTask {
    $argument = "-NoProfile -NonInteractive -ExecutionPolicy Bypass -File `"$PSCommandPath`" -Task"
    $powershell = Join-Path -Path $env:SystemRoot -ChildPath 'System32\WindowsPowerShell\v1.0\powershell.exe'
    # -ErrorAction on these: they are functions of a module, which do not see
    # this script's $ErrorActionPreference.
    $action = New-ScheduledTaskAction -Execute $powershell -Argument $argument -WorkingDirectory $PSScriptRoot -ErrorAction Stop
    $trigger = New-ScheduledTaskTrigger -AtStartup -ErrorAction Stop
    $principal = New-ScheduledTaskPrincipal -UserId 'SYSTEM' -LogonType ServiceAccount -RunLevel Highest -ErrorAction Stop
    # A zero time limit is none. The pool's own failures are seen to below, in
    # the task's script; the restart is for that script itself (255 is the most).
    $settings = New-ScheduledTaskSettingsSet -ExecutionTimeLimit ([timespan]::Zero) -RestartCount 255 -RestartInterval ([timespan]::FromMinutes(1)) -MultipleInstances IgnoreNew -AllowStartIfOnBatteries -DontStopIfGoingOnBatteries -StartWhenAvailable -ErrorAction Stop
    Register-ScheduledTask -TaskName $TaskName -Action $action -Trigger $trigger -Principal $principal -Settings $settings -Description 'Keeps the pool of GitHub Actions runner VMs' -Force -ErrorAction Stop | Out-Null
    Start-ScheduledTask -TaskName $TaskName -ErrorAction Stop
}

if ($Uninstall) {
    if (-not (Test-Elevated)) {
        Stop-WithMessage 'Removing the scheduled task needs an elevated PowerShell (Run as administrator).'
    }
    if (@(Get-PoolTask).Count -eq 0) {
        Write-Host "There is no scheduled task '$TaskName'."
        exit 0
    }
    Stop-ScheduledTask -TaskName $TaskName -ErrorAction Stop
    Unregister-ScheduledTask -TaskName $TaskName -Confirm:$false -ErrorAction Stop
    # Windows ends the task's own process only, not the pool that it started.
    # Session 0 is that of tasks: a pool in somebody's window goes on.
    $binary = Find-Binary
    foreach ($process in @(Get-Process -Name 'hyperv-runner-pool' -ErrorAction SilentlyContinue)) {
        if ($process.SessionId -eq 0 -and $process.Path -eq $binary) {
            Stop-Process -Id $process.Id -Force
        }
    }
    Write-Host "The scheduled task '$TaskName' is stopped and removed. VMs that it left are taken over or removed by the pool's next start."
    exit 0
}

$binary = Find-Binary
if ($binary -eq '') {
    Stop-WithMessage "There is no hyperv-runner-pool.exe in $PSScriptRoot or its target\release. Build it: cargo build --release"
}
$envFile = Get-FullPath -Path '.env'
if (-not (Test-Path -LiteralPath $envFile -PathType Leaf)) {
    if ((Get-Setting -Name 'GITHUB_ORG') -eq '' -and (Get-Setting -Name 'USE_MOCK') -eq '') {
        Stop-WithMessage "There is no $envFile. Make it with .\bootstrap.ps1, or copy .env.example, and fill it in."
    }
}
Set-Location -LiteralPath $PSScriptRoot

if ($Install) {
    if (-not (Test-Elevated)) {
        Stop-WithMessage 'Making the scheduled task needs an elevated PowerShell (Run as administrator).'
    }
    & $binary check
    if ($LASTEXITCODE -ne 0) {
        Write-Host 'The check found faults, so no scheduled task was made.'
        exit $LASTEXITCODE
    }
    Install-PoolTask
    Write-Host "The scheduled task '$TaskName' runs the pool now, and from every boot on."
    Write-Host "It runs as SYSTEM: let nobody but administrators write to $PSScriptRoot."
    exit 0
}

if ($Task) {
    $logs = Join-Path -Path $PSScriptRoot -ChildPath 'logs'
    New-Item -Path $logs -ItemType Directory -Force | Out-Null
    # Nobody sees what a task prints.
    if ((Get-Setting -Name 'LOG_DIR') -eq '') {
        $env:LOG_DIR = $logs
    }
    $pause = 10
    while ($true) {
        $began = [System.Diagnostics.Stopwatch]::StartNew()
        # The pool's own log says why it ended. What the check says of settings
        # and host stands beside it, since a pool with faulty settings has no log.
        $checked = Start-Process -FilePath $binary -ArgumentList 'check' -WorkingDirectory $PSScriptRoot -NoNewWindow -Wait -PassThru -RedirectStandardOutput (Join-Path -Path $logs -ChildPath 'check.log') -RedirectStandardError (Join-Path -Path $logs -ChildPath 'check-errors.log')
        $code = $checked.ExitCode
        if ($code -eq 0) {
            & $binary
            $code = $LASTEXITCODE
            # It was asked to stop.
            if ($code -eq 0) {
                exit 0
            }
        }
        if ($began.Elapsed.TotalMinutes -gt 10) {
            $pause = 10
        }
        Start-Sleep -Seconds $pause
        $pause = [Math]::Min($pause * 2, 300)
    }
}

& $binary check
if ($LASTEXITCODE -ne 0) {
    exit $LASTEXITCODE
}
# Alone in its statement, so that Ctrl+C reaches the pool and PowerShell waits
# for it to end in order.
& $binary
exit $LASTEXITCODE
