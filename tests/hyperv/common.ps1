# What the scripts of this folder share: they drive the pool on one of GitHub's hosted Windows
# machines, which have Hyper-V, and on the simulated host of tests/powershell. Dot-source this.
# Runs under Windows PowerShell 5.1 and PowerShell 7.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

$ProgressPreference = 'SilentlyContinue'
$GiB = 1073741824

# Writes lines of Markdown to the summary of the workflow's job, where there is one.
function Add-Summary([string[]]$Lines) {
    if ([string]$env:GITHUB_STEP_SUMMARY -ne '') {
        [System.IO.File]::AppendAllText($env:GITHUB_STEP_SUMMARY, ($Lines -join "`n") + "`n")
    }
}

# Runs one step, with what it found below its name. A step that throws ends the script.
function Invoke-Step([string]$Name, [scriptblock]$Do) {
    Write-Host "=== $Name"
    $clock = [System.Diagnostics.Stopwatch]::StartNew()
    try {
        & $Do | ForEach-Object { Write-Host "    $_" }
    } catch {
        Write-Host "FAILED: $Name, after $([int]$clock.Elapsed.TotalSeconds) s: $($_.Exception.Message)"
        Write-Host $_.ScriptStackTrace
        Add-Summary "**$Name**: failed: $($_.Exception.Message)"
        throw
    }
    Write-Host ('    ({0:0.0} s)' -f $clock.Elapsed.TotalSeconds)
}

# Tries until something other than nothing or $false comes, which it returns. $What completes
# the sentence "... within N seconds".
function Wait-Until([string]$What, [int]$Seconds, [scriptblock]$Look) {
    $clock = [System.Diagnostics.Stopwatch]::StartNew()
    while ($true) {
        $found = & $Look
        if ($found) {
            return $found
        }
        if ($clock.Elapsed.TotalSeconds -gt $Seconds) {
            throw "$What within $Seconds seconds."
        }
        Start-Sleep -Milliseconds 200
    }
}

# What a machine lacks for Hyper-V's VMs, each as the rest of a sentence that begins with "This
# machine". $Folder: where the disks will be.
function Get-MissingResource([int]$Processors, [int]$MemoryGB, [int]$FreeGB, [string]$Folder) {
    $computer = Get-CimInstance -ClassName Win32_ComputerSystem
    $free = [System.IO.DriveInfo]::new([System.IO.Path]::GetPathRoot($Folder)).AvailableFreeSpace
    if ($computer.NumberOfLogicalProcessors -lt $Processors) {
        "has $($computer.NumberOfLogicalProcessors) processors, not $Processors"
    }
    # A machine that is sold with 16 GB has a little less.
    if ($computer.TotalPhysicalMemory -lt ($MemoryGB - 1) * $GiB) {
        'has {0:0.0} GB of memory, not {1}' -f ($computer.TotalPhysicalMemory / $GiB), $MemoryGB
    }
    if ($free -lt $FreeGB * $GiB) {
        'has {0:0.0} GB free for {1}, not {2}' -f ($free / $GiB), $Folder, $FreeGB
    }
    if (-not $computer.HypervisorPresent) {
        'runs no hypervisor (HypervisorPresent), so it has no nested virtualization'
    }
    if (@(Get-Module -Name Hyper-V -ListAvailable).Count -eq 0) {
        'has no PowerShell module Hyper-V'
    }
    if (@(Get-Service -Name vmms -ErrorAction SilentlyContinue | Where-Object { [string]$_.Status -eq 'Running' }).Count -eq 0) {
        'has no running Hyper-V service (vmms)'
    }
}

# Throws one sentence that says all that the machine lacks; else returns what it has.
function Assert-Machine([int]$Processors, [int]$MemoryGB, [int]$FreeGB, [string]$Folder) {
    $missing = @(Get-MissingResource $Processors $MemoryGB $FreeGB $Folder)
    if ($missing.Count -gt 0) {
        throw "This machine $($missing -join ', and ')."
    }
    $computer = Get-CimInstance -ClassName Win32_ComputerSystem
    $system = Get-CimInstance -ClassName Win32_OperatingSystem
    $free = [System.IO.DriveInfo]::new([System.IO.Path]::GetPathRoot($Folder)).AvailableFreeSpace
    return '{0}; {1} processors, {2:0.0} GB of memory, {3:0.0} GB free for {4}; the hypervisor runs' -f $system.Caption,
    $computer.NumberOfLogicalProcessors, ($computer.TotalPhysicalMemory / $GiB), ($free / $GiB), $Folder
}

# Windows has one NAT for a host, and the hosted images give it to Docker. Only for a machine
# that is thrown away afterwards: containers have no network after it.
# https://learn.microsoft.com/en-us/powershell/module/hostnetworkingservice/
function Remove-DockerNetwork {
    foreach ($service in @(Get-Service -Name docker -ErrorAction SilentlyContinue)) {
        # Or its next start would make the network anew.
        Set-Service -Name $service.Name -StartupType Disabled
        Stop-Service -Name $service.Name -Force
        "the service $($service.Name) is stopped"
    }
    foreach ($network in @(Get-HnsNetwork -ErrorAction Stop | Where-Object { $_.Name -eq 'nat' })) {
        Remove-HnsNetwork -InputObjects $network -ErrorAction Stop
        "the network $($network.Name) is removed"
    }
    Wait-Until 'Docker''s NAT is not gone' 60 {
        $switches = @(Get-VMSwitch | Where-Object { $_.Name -eq 'nat' })
        $nats = @(Get-NetNat -ErrorAction Stop)
        $switches.Count + $nats.Count -eq 0
    } | Out-Null
    'no NAT is left'
}

# From here on the simulated host, in the folder FAKE_HYPERV, answers for Hyper-V.
function Enter-FakeHost {
    $modules = Join-Path -Path (Split-Path -Path $PSScriptRoot -Parent) -ChildPath 'powershell/modules'
    $env:PSModulePath = $modules + [System.IO.Path]::PathSeparator + $env:PSModulePath
    Import-Module -Name (Join-Path -Path $modules -ChildPath 'Hyper-V/Hyper-V.psd1') -DisableNameChecking -Global
}

# Starts a program beside this script, and returns its process. What it prints goes to the
# files $Output.out and $Output.err. An argument with blanks must bring its own quotes.
function Start-Program([string]$Path, [string[]]$Arguments, [string]$Output) {
    $how = @{ FilePath = $Path; RedirectStandardOutput = "$Output.out"; RedirectStandardError = "$Output.err" }
    if ($Arguments.Count -gt 0) {
        $how.ArgumentList = $Arguments
    }
    $process = Start-Process @how -PassThru
    # Or Windows PowerShell would not know the exit code.
    $process.Handle | Out-Null
    return $process
}

# The text of a file that a program may have open for writing.
function Read-OpenFile([string]$Path) {
    $file = [System.IO.FileStream]::new($Path, 'Open', 'Read', 'ReadWrite, Delete')
    try {
        return [System.IO.StreamReader]::new($file).ReadToEnd()
    } finally {
        $file.Dispose()
    }
}

# The lines of the pool's log, in this folder, that are like this. A day's end begins a new file.
function Get-LogLine([string]$Folder, [string]$Like) {
    foreach ($path in @(Get-ChildItem -LiteralPath $Folder -Filter 'hyperv-runner-pool*.log' -File | Sort-Object -Property LastWriteTime | ForEach-Object { $_.FullName })) {
        @((Read-OpenFile $path) -split '\r?\n' | Where-Object { $_ -like $Like })
    }
}

# What a program that Start-Program started has printed so far.
function Get-ProgramOutput([string]$Output) {
    $text = foreach ($path in "$Output.out", "$Output.err") { Read-OpenFile $path }
    return (($text -join '') -replace '\r', '').Trim()
}

# The tests' stand-in for GitHub, which serves the organization acme. Its process, and its address.
function Start-FakeGitHub([string]$Pat, [string]$Output) {
    $script = Join-Path -Path (Split-Path -Path $PSScriptRoot -Parent) -ChildPath 'fake-github.mjs'
    $node = (Get-Command -Name node -CommandType Application | Select-Object -First 1).Source
    $process = Start-Program $node @("`"$script`"", $Pat) $Output
    $port = Wait-Until 'The stand-in for GitHub does not start' 240 { Get-ProgramOutput $Output }
    return @{ Process = $process; Url = "http://127.0.0.1:$port" }
}

# What Windows' event logs have on Hyper-V, its switch and services, for whoever reads a failure.
function Save-EventLog([string]$Path) {
    $logs = 'Microsoft-Windows-Hyper-V-VMMS-Admin', 'Microsoft-Windows-Hyper-V-Worker-Admin', 'Microsoft-Windows-Hyper-V-VmSwitch-Operational', 'System', 'Application'
    $lines = foreach ($name in $logs) {
        "== $name"
        try {
            Get-WinEvent -LogName $name -MaxEvents 200 -ErrorAction Stop |
                ForEach-Object { "$($_.TimeCreated.ToString('s')) $($_.LevelDisplayName) $($_.ProviderName) $($_.Id): $($_.Message)" }
        } catch {
            $_.Exception.Message
        }
    }
    [System.IO.File]::WriteAllLines($Path, [string[]]@($lines))
}
