# Removes one VM that the pool made, and its disk, from whatever state they are in. With "keep"
# it turns the VM off and keeps it for inspection instead of the one that was kept before.
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
    return (Get-EveryVM | Where-Object { $_.Id -eq $Id })
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

# Deletes a disk, by its folder and its name without an extension, and what others left of it.
function Remove-DiskSet([string]$Folder, [string]$Base) {
    # A checkpoint that somebody took by hand leaves a disk on our disk;
    # a backup leaves its notes of what has changed.
    $others = @(Get-ChildItem -LiteralPath $Folder -File | Where-Object {
        $_.Name.StartsWith($Base, [System.StringComparison]::OrdinalIgnoreCase) -and
        @('.avhdx', '.rct', '.mrt') -contains $_.Extension
    })
    foreach ($file in $others) {
        Remove-Disk $file.FullName
    }
    Remove-Disk (Join-Path -Path $Folder -ChildPath "$Base.vhdx")
}

# Removes these VMs and disks, one after another.
function Remove-Everything($Ids, [string]$Folder, $Bases) {
    $script:step = 'stop'
    foreach ($id in $Ids) {
        Stop-RunnerVM $id
    }

    $script:step = 'remove'
    foreach ($id in $Ids) {
        Remove-RunnerVM $id
    }

    $script:step = 'disk'
    if (Test-Path -LiteralPath $Folder -PathType Container) {
        foreach ($base in $Bases) {
            Remove-DiskSet $Folder $base
        }
    }
}

# The disk of a failed VM that is kept still bears the name that its VM had before.
function Get-KeptBase([string]$Folder, [string]$Incarnation) {
    if (Test-Path -LiteralPath $Folder -PathType Container) {
        Get-ChildItem -LiteralPath $Folder -File | Where-Object { $_.Name.EndsWith("-$Incarnation.vhdx", [System.StringComparison]::Ordinal) } | ForEach-Object { $_.BaseName }
    }
}

# Turns the VM off and marks it as kept, once no other is.
function Save-FailedVM($Request, $Vms, [string]$Folder) {
    $marked = @($Vms | Where-Object { $null -ne (Read-Mark $_.Notes) })
    if ($marked.Count -ne 1) {
        throw "$($Request.name), incarnation $($Request.incarnation), is not there with its Notes, so it is not kept."
    }
    $id = $marked[0].Id
    foreach ($kept in @(Get-EveryVM | Where-Object { (Get-KeptIncarnation $_ $Request) -ne '' })) {
        Remove-Everything @($kept.Id) $Folder @(Get-KeptBase $Folder (Get-KeptIncarnation $kept $Request))
    }
    $script:step = 'stop'
    Stop-RunnerVM $id
    $script:step = 'keep'
    $vm = Get-Now $id
    $mark = Read-Mark $vm.Notes
    Add-Member -InputObject $mark -NotePropertyName 'kept' -NotePropertyValue $true -Force
    Set-VM -VM $vm -NewVMName "failed-$($Request.incarnation)" -Notes (ConvertTo-Json -InputObject $mark -Depth 5 -Compress)
}

function Invoke-Request($Request) {
    $script:step = 'find'
    $script:patience = [double]$Request.patience
    $disk = [string]$Request.diskPath
    $folder = [System.IO.Path]::GetDirectoryName($disk)
    $base = [System.IO.Path]::GetFileNameWithoutExtension($disk)
    # The one guard between a wrong request and a file that is not the pool's.
    if ($base -ne "$($Request.name)-$($Request.incarnation)" -or [System.IO.Path]::GetExtension($disk) -ne '.vhdx') {
        throw "'$disk' is not the disk of $($Request.name), incarnation $($Request.incarnation), so nothing was touched."
    }
    $all = @(Get-EveryVM)
    $vms = @($all | Where-Object { Test-PoolVM $_ $Request })
    $isKept = @($all | Where-Object { (Get-KeptIncarnation $_ $Request) -ceq $Request.incarnation }).Count -gt 0
    if ($isKept -and $vms.Count -eq 0) {
        # It was kept, and its disk with it.
        return
    }
    if ($Request.keep) {
        Save-FailedVM $Request $vms $folder
        return
    }
    $bases = @($base)
    if ($isKept) {
        $bases = @(Get-KeptBase $folder $Request.incarnation)
    }
    Remove-Everything @($vms | ForEach-Object { $_.Id }) $folder $bases
}

try {
    $request = Read-Request
    # Whatever the cmdlets print, nothing but the answer may reach standard output.
    Invoke-Request $request *> $null
    $answer = [ordered]@{ ok = $true }
} catch {
    $answer = [ordered]@{ ok = $false; error = (Get-OneLine $_); at = $script:step }
}
Write-Answer $answer
