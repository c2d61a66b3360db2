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

$TaskName = 'hyperv-runner-pool'

function Stop-WithWord([string]$Word) {
    Write-Host $Word
    exit 1
}

function Find-Binary {
    foreach ($folder in $PSScriptRoot, (Join-Path -Path $PSScriptRoot -ChildPath 'target/release')) {
        foreach ($name in 'hyperv-runner-pool.exe', 'hyperv-runner-pool') {
            $path = Join-Path -Path $folder -ChildPath $name
            if (Test-Path -LiteralPath $path -PathType Leaf) {
                # With one kind of separator, as Windows writes the path of a process.
                return [System.IO.Path]::GetFullPath($path)
            }
        }
    }
    return ''
}

function Test-Elevated {
    $identity = [System.Security.Principal.WindowsIdentity]::GetCurrent()
    $principal = [System.Security.Principal.WindowsPrincipal]::new($identity)
    return $principal.IsInRole([System.Security.Principal.WindowsBuiltInRole]::Administrator)
}

# Whether a setting is given, in the environment or in .env. Never its value.
function Test-Setting([string]$Name) {
    if ([string][System.Environment]::GetEnvironmentVariable($Name) -ne '') {
        return $true
    }
    $file = Join-Path -Path $PSScriptRoot -ChildPath '.env'
    if (-not (Test-Path -LiteralPath $file -PathType Leaf)) {
        return $false
    }
    # Names match by case and the last line counts, as for the pool. Neither empty
    # quotes nor a comment alone is a value.
    $pattern = '^\s*(export\s+)?' + [regex]::Escape($Name) + '\s*=(?<value>.*)$'
    $given = $false
    foreach ($line in [System.IO.File]::ReadAllLines($file)) {
        $found = [regex]::Match($line, $pattern)
        if ($found.Success) {
            $given = $found.Groups['value'].Value -notmatch '^\s*(""|'''')?\s*(\s#.*)?$'
        }
    }
    return $given
}

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
        Stop-WithWord 'Removing the scheduled task needs an elevated PowerShell (Run as administrator).'
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
    Stop-WithWord "There is no hyperv-runner-pool.exe in $PSScriptRoot or its target\release. Build it: cargo build --release"
}
$envFile = Join-Path -Path $PSScriptRoot -ChildPath '.env'
if (-not (Test-Path -LiteralPath $envFile -PathType Leaf)) {
    if (-not (Test-Setting 'GITHUB_ORG') -and -not (Test-Setting 'USE_MOCK')) {
        Stop-WithWord "There is no $envFile. Make it with .\bootstrap.ps1, or copy .env.example, and fill it in."
    }
}
Set-Location -LiteralPath $PSScriptRoot

if ($Install) {
    if (-not (Test-Elevated)) {
        Stop-WithWord 'Making the scheduled task needs an elevated PowerShell (Run as administrator).'
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
    if (-not (Test-Setting 'LOG_DIR')) {
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
