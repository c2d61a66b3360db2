# Lists every VM of the host, the disks in the storage folder, and the bytes
# that are free on its volume ("freeBytes", left out where that is unknown).
# Standard input: one JSON object. Standard output: one line,
# {"ok":true,"vms":[...],"disks":[...],"freeBytes":...} or
# {"ok":false,"error":...,"at":...}.
# Runs under Windows PowerShell 5.1 and PowerShell 7.

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
$WarningPreference = 'SilentlyContinue'

$script:step = 'input'
# Lists, not arrays: a list of one stays a list in JSON.
$script:vms = [System.Collections.Generic.List[object]]::new()
$script:disks = [System.Collections.Generic.List[object]]::new()
$script:freeBytes = $null

function Read-Request {
    # Not [Console]::In: Windows PowerShell decodes that with the OEM code page.
    $utf8 = [System.Text.UTF8Encoding]::new($false)
    $reader = [System.IO.StreamReader]::new([Console]::OpenStandardInput(), $utf8)
    $text = $reader.ReadToEnd()
    return (ConvertFrom-Json -InputObject $text)
}

function Write-Answer($Answer) {
    $line = (ConvertTo-Json -InputObject $Answer -Depth 5 -Compress) + "`n"
    $bytes = [System.Text.UTF8Encoding]::new($false).GetBytes($line)
    $stdout = [Console]::OpenStandardOutput()
    $stdout.Write($bytes, 0, $bytes.Length)
    $stdout.Flush()
}

function Get-OneLine($ErrorRecord) {
    return ([string]$ErrorRecord.Exception.Message -replace '\s+', ' ').Trim()
}

# The bytes free on a folder's volume, as its drive tells. Below a mount point
# or a link the drive's number would be another volume's, so there is none.
function Get-FreeSpace($Path) {
    for ($folder = Get-Item -LiteralPath $Path -Force; $null -ne $folder.Parent; $folder = $folder.Parent) {
        if ($folder.Attributes -band [System.IO.FileAttributes]::ReparsePoint) {
            return $null
        }
    }
    return [int64][System.IO.DriveInfo]::new($folder.FullName).AvailableFreeSpace
}

function Get-Inventory($Request) {
    $script:step = 'vms'
    foreach ($vm in @(Get-VM)) {
        try {
            $paths = [System.Collections.Generic.List[object]]::new()
            foreach ($drive in @($vm.HardDrives)) {
                # A drive without a disk has no path.
                if ([string]$drive.Path -ne '') {
                    $paths.Add([string]$drive.Path)
                }
            }
            $facts = [ordered]@{
                name          = [string]$vm.Name
                state         = [string]$vm.State
                uptimeSeconds = [int64][Math]::Floor($vm.Uptime.TotalSeconds)
                notes         = [string]$vm.Notes
                disks         = $paths
            }
        } catch {
            # A VM that cannot be looked at has just gone, and is not there
            # any more; one that is still there is a failure.
            $id = $vm.Id
            if ($null -eq (Get-VM | Where-Object { $_.Id -eq $id })) {
                continue
            }
            throw
        }
        $script:vms.Add($facts)
    }

    $script:step = 'disks'
    if (Test-Path -LiteralPath $Request.storagePath -PathType Container) {
        foreach ($file in @(Get-ChildItem -LiteralPath $Request.storagePath -File)) {
            if ($file.Extension -eq '.vhdx' -or $file.Extension -eq '.avhdx') {
                $script:disks.Add([string]$file.Name)
            }
        }
    }

    try {
        $script:freeBytes = Get-FreeSpace $Request.storagePath
    } catch {
        # A network share has no such number, and the list is useful without it.
        Write-Verbose -Message (Get-OneLine $_)
    }
}

try {
    $request = Read-Request
    # Whatever the cmdlets print, nothing but the answer may reach standard output.
    Get-Inventory $request *> $null
    $answer = [ordered]@{ ok = $true; vms = $script:vms; disks = $script:disks }
    if ($null -ne $script:freeBytes) {
        $answer['freeBytes'] = $script:freeBytes
    }
} catch {
    $answer = [ordered]@{ ok = $false; error = (Get-OneLine $_); at = $script:step }
}
Write-Answer $answer
