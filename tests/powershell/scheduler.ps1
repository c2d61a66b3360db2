# COM's task scheduler with one task, whose Run calls $Start, which returns a process.
# Dot-sourced by those that play a VM.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

function New-Scheduler([scriptblock]$Start) {
    $registered = [pscustomobject]@{ Start = $Start; Process = $null; LastTaskResult = 0 }
    $registered | Add-Member -MemberType ScriptProperty -Name 'State' -Value { if ($null -ne $this.Process -and -not $this.Process.HasExited) { 4 } else { 3 } }
    $registered | Add-Member -MemberType ScriptMethod -Name 'Run' -Value { $this.Process = & $this.Start }
    $folder = [pscustomobject]@{ Task = $registered } | Add-Member -MemberType ScriptMethod -Name 'GetTask' -Value { $this.Task } -PassThru
    $scheduler = [pscustomobject]@{ Folder = $folder } | Add-Member -MemberType ScriptMethod -Name 'GetFolder' -Value { $this.Folder } -PassThru
    return ($scheduler | Add-Member -MemberType ScriptMethod -Name 'Connect' -Value { } -PassThru)
}
