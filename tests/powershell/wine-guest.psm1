# What a VM's Windows has and Wine lacks: the task scheduler, and turning the machine off.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

. (Join-Path -Path $PSScriptRoot -ChildPath 'scheduler.ps1')

function New-Object {
    [CmdletBinding()]
    param([Parameter(Mandatory)][string]$ComObject)
    if ($ComObject -ne 'Schedule.Service') {
        throw "There is no $ComObject."
    }
    return (New-Scheduler {
        # By its path: the search for a program hangs.
        $powershell = Join-Path -Path $env:SystemRoot -ChildPath 'System32\WindowsPowerShell\v1.0\powershell.exe'
        $arguments = '-NoProfile', '-NonInteractive', '-ExecutionPolicy', 'Bypass', '-File', 'C:\runner-pool-guest\start-runner.ps1'
        Start-Process -FilePath $powershell -ArgumentList $arguments -PassThru
    })
}

function shutdown.exe {
    if ("$args" -ne '/s /f /t 0') {
        throw "This does not turn the machine off: $args"
    }
    [System.IO.File]::WriteAllText('C:\turned-off', '')
    [System.Environment]::Exit(0)
}
