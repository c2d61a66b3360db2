# Removes one VM that the pool made, and its disk, from whatever state they are in.
# Standard input: one JSON object. Standard output: one line, {"ok":true} or
# {"ok":false,"error":...,"at":...}. Succeeds when nothing is there.
# Runs under Windows PowerShell 5.1 and PowerShell 7.

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

. (Join-Path -Path $PSScriptRoot -ChildPath 'request.ps1')
. (Join-Path -Path $PSScriptRoot -ChildPath 'ownership.ps1')

$script:step = 'input'

# How long Hyper-V may take over each step, in seconds: turning a VM off, the same
# after its worker process was ended, removing it, deleting a disk.
$script:patience = 0

# The VM as it is now, or nothing. (Get-VM -Id fails for one that is gone.)
function Get-Now($Id) {
    return (Get-VM | Where-Object { $_.Id -eq $Id })
}

# Ends the process in which the VM runs, without asking Hyper-V's service. Returns
# what came of it, for an error. (Since Windows 10 1809 and Windows Server 2019.)
function Stop-WorkerProcess($Id) {
    $start = [System.Diagnostics.ProcessStartInfo]::new()
    $start.FileName = Join-Path -Path $env:SystemRoot -ChildPath 'System32' | Join-Path -ChildPath 'hcsdiag.exe'
    $start.Arguments = 'kill ' + ([string]$Id).ToUpperInvariant()
    $start.UseShellExecute = $false
    $start.CreateNoWindow = $true
    # Standard output is for the answer.
    $start.RedirectStandardOutput = $true
    $start.RedirectStandardError = $true
    try {
        $process = [System.Diagnostics.Process]::Start($start)
        if (-not $process.WaitForExit(10000)) {
            return 'hcsdiag.exe kill did not end'
        }
        return "hcsdiag.exe kill ended with exit code $($process.ExitCode)"
    } catch {
        return "hcsdiag.exe cannot be run: $(Get-OneLine $_)"
    }
}

function Stop-RunnerVM($Id) {
    $clock = [System.Diagnostics.Stopwatch]::StartNew()
    $killed = ''
    $job = $null
    $problem = ''
    while ($true) {
        $vm = Get-Now $Id
        if ($null -eq $vm) {
            return
        }
        $state = [string]$vm.State
        if ($state -like 'Off*') {
            return
        }
        if ($clock.Elapsed.TotalSeconds -gt $script:patience) {
            $problem = "The VM '$($vm.Name)' could not be turned off, it is still '$state'. $problem".TrimEnd()
            if ($killed -ne '') {
                throw "$problem ($killed)"
            }
            $killed = Stop-WorkerProcess $Id
            $job = $null
            $clock.Restart()
        }
        try {
            if ($state -like '*Saved*') {
                Remove-VMSavedState -VM $vm
            } elseif ($null -eq $job) {
                # As a job: of a VM that hangs in Stopping, this may not return.
                $job = Stop-VM -VM $vm -TurnOff -Force -AsJob
            } elseif ($null -ne (Wait-Job -Job $job -Timeout 1)) {
                $done = $job
                $job = $null
                Receive-Job -Job $done
            }
        } catch {
            # A VM that is starting, saving or stopping refuses for a while.
            $problem = Get-OneLine $_
        }
        Start-Sleep -Milliseconds 100
    }
}

function Remove-RunnerVM($Id) {
    $clock = [System.Diagnostics.Stopwatch]::StartNew()
    while ($true) {
        $vm = Get-Now $Id
        if ($null -eq $vm) {
            return
        }
        $problem = 'it is still there'
        try {
            Remove-VM -VM $vm -Force
        } catch {
            $problem = Get-OneLine $_
        }
        if ($null -eq (Get-Now $Id)) {
            return
        }
        if ($clock.Elapsed.TotalSeconds -gt $script:patience) {
            throw "The VM '$($vm.Name)' could not be removed within $script:patience seconds: $problem"
        }
        Start-Sleep -Milliseconds 500
    }
}

# Deletes a file, waiting while something still holds it.
function Remove-Disk($Path) {
    $clock = [System.Diagnostics.Stopwatch]::StartNew()
    while (Test-Path -LiteralPath $Path) {
        $problem = 'it is still there'
        try {
            Remove-Item -LiteralPath $Path -Force
        } catch {
            $problem = Get-OneLine $_
        }
        if (-not (Test-Path -LiteralPath $Path)) {
            return
        }
        if ($clock.Elapsed.TotalSeconds -gt $script:patience) {
            throw "The disk '$Path' could not be deleted within $script:patience seconds: $problem"
        }
        Start-Sleep -Milliseconds 500
    }
}

function Remove-Everything($Request) {
    $script:step = 'find'
    $script:patience = [double]$Request.patience
    $disk = [string]$Request.diskPath
    $folder = [System.IO.Path]::GetDirectoryName($disk)
    $base = [System.IO.Path]::GetFileNameWithoutExtension($disk)
    # The one guard between a wrong request and a file that is not the pool's.
    if ($base -ne "$($Request.name)-$($Request.incarnation)" -or [System.IO.Path]::GetExtension($disk) -ne '.vhdx') {
        throw "'$disk' is not the disk of $($Request.name), incarnation $($Request.incarnation), so nothing was touched."
    }
    $ids = @(Get-VM | Where-Object { Test-PoolVM $_ $Request } | ForEach-Object { $_.Id })

    $script:step = 'stop'
    foreach ($id in $ids) {
        Stop-RunnerVM $id
    }

    $script:step = 'remove'
    foreach ($id in $ids) {
        Remove-RunnerVM $id
    }

    $script:step = 'disk'
    if (Test-Path -LiteralPath $folder -PathType Container) {
        # A checkpoint that somebody took by hand leaves a disk on our disk;
        # a backup leaves its notes of what has changed.
        $others = @(Get-ChildItem -LiteralPath $folder -File | Where-Object {
            $_.Name.StartsWith($base, [System.StringComparison]::OrdinalIgnoreCase) -and
            @('.avhdx', '.rct', '.mrt') -contains $_.Extension
        })
        foreach ($file in $others) {
            Remove-Disk $file.FullName
        }
        Remove-Disk $disk
    }
}

try {
    $request = Read-Request
    # Whatever the cmdlets print, nothing but the answer may reach standard output.
    Remove-Everything $request *> $null
    $answer = [ordered]@{ ok = $true }
} catch {
    $answer = [ordered]@{ ok = $false; error = (Get-OneLine $_); at = $script:step }
}
Write-Answer $answer
