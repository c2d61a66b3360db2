# Runs as SYSTEM when the VM starts: sets the VM's address if the host gave one, starts
# the task of start-runner.ps1, tells the host how it goes, and powers the VM off once
# the task has ended. A task of its own, so that the VM ends in any case: when the
# runner's account may not shut down, when a job kills the runner and all around it,
# when the guest's script breaks. No failed call here ends a job.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

$GuestTask = 'runner-pool-guest'
$HostKey = 'HKLM:\SOFTWARE\Microsoft\Virtual Machine\External' # what the host tells the VM
$GuestKey = 'HKLM:\SOFTWARE\Microsoft\Virtual Machine\Guest' # what the VM tells the host
# What start-runner.ps1 writes.
$StartedFile = 'C:\actions-runner\pool-started'
$StageFile = 'C:\actions-runner\pool-stage.txt'
$ErrorFile = 'C:\actions-runner\pool-error.txt'

$ValuesSeconds = 30 # start-runner.ps1 waits on, and an address that comes later is set then
$StartSeconds = 60
$RunSeconds = 21 * 24 * 3600 # longer than all waits of start-runner.ps1 together
$ListenSeconds = 60 # for the host to hear why no job came
$MaxFailures = 150 # in a row: five minutes without an answer from the task scheduler
$MaxTold = 200 # characters; a job can write into the files

$script:task = $null
$script:failures = 0
$script:told = @{}
$script:ownError = ''
$script:worker = '0'
$script:addressIsSet = $false

# Writes one value for the host, or removes it, if it has changed.
# https://learn.microsoft.com/en-us/previous-versions/windows/it-pro/windows-server-2012-r2-and-2012/dn798287(v=ws.11)
function Set-Told {
    param([string] $Name, [string] $Value)
    if ($script:told[$Name] -eq $Value) { return }
    if (-not (Test-Path -LiteralPath $GuestKey)) { New-Item -Path $GuestKey -Force | Out-Null }
    if ($Value) {
        Set-ItemProperty -LiteralPath $GuestKey -Name $Name -Value $Value -Type String
    } else {
        Remove-ItemProperty -LiteralPath $GuestKey -Name $Name -ErrorAction SilentlyContinue
    }
    $script:told[$Name] = $Value
}

# Returns what start-runner.ps1 has written into a file, as one short line.
function Read-Line {
    param([string] $Path)
    if (-not (Test-Path -LiteralPath $Path)) { return '' }
    $text = [string] (Get-Content -LiteralPath $Path -TotalCount 1 -Encoding UTF8)
    $text = $text -replace '[^\u0020-\u007E\u00A0-\uFFFD]', ' '
    return $text.Substring(0, [Math]::Min($MaxTold, $text.Length))
}

# Tells the host what the guest does, what failed last and whether a job runs. What
# cannot be found out stays as it was told.
function Send-Word {
    try {
        # With a wildcard, since a name that no process has would be an error.
        $workers = @(Get-Process -Name 'Runner.Worker*' -ErrorAction Stop)
        $script:worker = [string] [int] ($workers.Count -gt 0)
    } catch {
        Write-Warning $_.Exception.Message
    }
    try {
        Set-Told -Name 'RunnerPoolWorker' -Value $script:worker
        $stage = Read-Line -Path $StageFile
        if (-not $stage) { $stage = 'starting' }
        if ($script:worker -eq '1') { $stage = 'running a job' }
        Set-Told -Name 'RunnerPoolStage' -Value $stage
        $failed = Read-Line -Path $ErrorFile
        if (-not $failed) { $failed = $script:ownError }
        Set-Told -Name 'RunnerPoolError' -Value $failed
    } catch {
        Write-Warning $_.Exception.Message
    }
}

# Sets the fixed address that the host gave, if it gave one. May be called again: what is
# set stays.
function Set-FixedAddress {
    if ($script:addressIsSet) { return }
    try {
        $values = Get-Item -LiteralPath $HostKey
        $address = $values.GetValue('RunnerPoolAddress')
        $prefixLength = $values.GetValue('RunnerPoolPrefixLength')
        $gateway = $values.GetValue('RunnerPoolGateway')
        $dnsServers = ([string] $values.GetValue('RunnerPoolDnsServers')).Split(',')
        if (-not $address -or -not $prefixLength -or -not $gateway -or -not $dnsServers[0]) { return }

        # -ErrorAction on each: they are functions of modules, which do not see this
        # script's $ErrorActionPreference.
        $adapter = Get-NetAdapter -Physical -ErrorAction Stop | Select-Object -First 1
        if ($null -eq $adapter) { throw 'the VM has no network adapter' }
        $index = $adapter.ifIndex
        Set-NetIPInterface -InterfaceIndex $index -AddressFamily IPv4 -Dhcp Disabled -ErrorAction Stop
        $present = @(Get-NetIPAddress -InterfaceIndex $index -AddressFamily IPv4 -ErrorAction SilentlyContinue)
        if (@($present | Where-Object { $_.IPAddress -eq $address }).Count -eq 0) {
            New-NetIPAddress -InterfaceIndex $index -IPAddress $address -PrefixLength $prefixLength -ErrorAction Stop | Out-Null
        }
        $routes = @(Get-NetRoute -InterfaceIndex $index -DestinationPrefix '0.0.0.0/0' -ErrorAction SilentlyContinue)
        if (@($routes | Where-Object { $_.NextHop -eq $gateway }).Count -eq 0) {
            New-NetRoute -InterfaceIndex $index -DestinationPrefix '0.0.0.0/0' -NextHop $gateway -ErrorAction Stop | Out-Null
        }
        Set-DnsClientServerAddress -InterfaceIndex $index -ServerAddresses $dnsServers -ErrorAction Stop
        $script:addressIsSet = $true
        $script:ownError = ''
    } catch {
        $script:ownError = "the address cannot be set: $($_.Exception.Message)"
        Write-Warning $script:ownError
    }
}

# Whether the host has given its values.
function Test-Value {
    try {
        return [bool] (Get-Item -LiteralPath $HostKey).GetValue('RunnerPoolVmSecret')
    } catch {
        return $false
    }
}

# The task, by COM: the scheduler's cmdlets ask WMI each time, which costs a job more.
# https://learn.microsoft.com/en-us/windows/win32/taskschd/registeredtask
function Get-GuestTask {
    if ($null -eq $script:task) {
        $service = New-Object -ComObject 'Schedule.Service'
        $service.Connect() | Out-Null
        $script:task = $service.GetFolder('\').GetTask($GuestTask)
    }
    return $script:task
}

# Whether the task is queued (2) or runs (4). A failed look, after which PowerShell may
# show the state as 0 instead of throwing, says nothing about the job that may be
# running: the task counts as one that runs, until too many have failed in a row.
function Test-GuestRunning {
    try {
        $state = [int] (Get-GuestTask).State
        if ($state -eq 0) { throw 'the state of the guest''s task is unknown' }
        $script:failures = 0
        return $state -in 2, 4
    } catch {
        $script:task = $null
        $script:failures++
        if ($script:failures -ge $MaxFailures) { throw }
        Write-Warning $_.Exception.Message
        return $true
    }
}

try {
    if (Test-Path -LiteralPath $StartedFile) { throw 'this VM has been started before' }
    Send-Word
    $watch = [System.Diagnostics.Stopwatch]::StartNew()
    while (-not (Test-Value) -and $watch.Elapsed.TotalSeconds -lt $ValuesSeconds) { Start-Sleep -Seconds 1 }
    Set-FixedAddress
    (Get-GuestTask).Run($null) | Out-Null
    $watch.Restart()
    $started = Test-GuestRunning
    while (-not $started -and $watch.Elapsed.TotalSeconds -lt $StartSeconds) {
        Start-Sleep -Milliseconds 500
        $started = Test-GuestRunning
    }
    # One that was over before it was seen has left its stage.
    if (-not $started -and -not (Test-Path -LiteralPath $StageFile)) {
        throw ('the task {0} does not start: the scheduler says 0x{1:X8}' -f $GuestTask, [int] (Get-GuestTask).LastTaskResult)
    }
    while ((Test-GuestRunning) -and $watch.Elapsed.TotalSeconds -lt $RunSeconds) {
        Set-FixedAddress
        Send-Word
        Start-Sleep -Seconds 2
    }
    Send-Word
} catch {
    $script:ownError = $_.Exception.Message
    Write-Warning $script:ownError
    Send-Word
}
try {
    # The host listens every half minute, and hears nothing of a VM that is off.
    if ($script:told['RunnerPoolError'] -and -not (Test-Path -LiteralPath $StartedFile)) { Start-Sleep -Seconds $ListenSeconds }
} catch {
    Write-Warning $_.Exception.Message
}

# Asked again, since Windows refuses while it is still starting or installing.
for ($try = 0; $try -lt 60; $try++) {
    & shutdown.exe /s /f /t 0
    Start-Sleep -Seconds 10
}
