<#
.SYNOPSIS
Puts a built image in place as the pool's template.

.DESCRIPTION
Takes the newest .vhdx that Packer has built, compacts it, moves it to VM_TEMPLATE_PATH
and marks it read-only. The template that was there is kept beside it as
<name>.previous.

The disks of VMs are differences from the template and become worthless when it
changes. While any disk depends on the template, the script therefore refuses, unless
it may place the image under a new name (-NewName): it then points VM_TEMPLATE_PATH in
.env to that, and the pool takes it at its next start. VMs that already run keep the old
file.

Run it as an administrator, on the host.

.EXAMPLE
.\packer\place-template.ps1

.EXAMPLE
.\packer\place-template.ps1 -NewName
#>
[CmdletBinding()]
param(
    # The image. Unset: the newest .vhdx below packer\output-*.
    [string] $Image = '',
    # The template. Unset: VM_TEMPLATE_PATH from the environment or .env.
    [string] $TemplatePath = '',
    # Where the VMs' disks are. Unset: VM_STORAGE_PATH from the environment or .env.
    [string] $StoragePath = '',
    # Place the image under a new name beside the template, and point .env to it.
    [switch] $NewName
)
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

$Root = Split-Path -Parent $PSScriptRoot
$EnvFile = Join-Path $Root '.env'

# Returns a setting as the pool would see it: from the environment, else from .env.
function Get-Setting {
    param([string] $Name, [string] $Default)
    $value = [Environment]::GetEnvironmentVariable($Name)
    if ($value) { return $value }
    if (Test-Path -LiteralPath $EnvFile) {
        foreach ($line in Get-Content -LiteralPath $EnvFile -Encoding UTF8) {
            if ($line -notmatch "^\s*(export\s+)?$Name\s*=(?<text>.*)$") { continue }
            $value = $Matches.text
            # In quotes: what stands between them. Else: up to a comment. The last line counts.
            if ($value -match '^\s*(["''])(?<text>.*?)\1') { $value = $Matches.text } else { $value = ($value -replace '\s#.*$', '').Trim() }
        }
    }
    if ($value) { return $value }
    return $Default
}

# Relative paths count from the pool's folder, where .env is.
function Get-FullPath {
    param([string] $Path)
    return [System.IO.Path]::GetFullPath([System.IO.Path]::Combine($Root, $Path))
}

# Returns the disks whose parent is the template: those of the host's VMs, and those in
# the pool's storage folder.
function Get-DependentDisk {
    param([string] $Template, [string] $Storage)
    $paths = @(Get-VM | Get-VMHardDiskDrive | ForEach-Object { $_.Path })
    if (Test-Path -LiteralPath $Storage) {
        $paths += @(Get-ChildItem -LiteralPath $Storage -Filter '*.*vhdx' | ForEach-Object { $_.FullName })
    }
    foreach ($path in $paths | Sort-Object -Unique) {
        if (-not $path) { continue }
        if ($path -eq $Template) { $path; continue }
        if (-not (Test-Path -LiteralPath $path)) { continue }
        if ((Get-VHD -Path $path).ParentPath -eq $Template) { $path }
    }
}

function Assert-TemplateUnused {
    $dependent = @(Get-DependentDisk -Template $TemplatePath -Storage $StoragePath)
    if ($dependent.Count -gt 0) {
        throw "$TemplatePath is in use by $($dependent.Count) disk(s), the first is $($dependent[0]). Stop the pool with SHUTDOWN=destroy, or place the image under a new name with -NewName."
    }
}

# Writes one setting into .env, keeping all other lines.
function Set-EnvFileSetting {
    param([string] $Name, [string] $Value)
    $lines = @()
    if (Test-Path -LiteralPath $EnvFile) {
        $lines = @(Get-Content -LiteralPath $EnvFile -Encoding UTF8 | Where-Object { $_ -notmatch "^\s*(export\s+)?$Name\s*=" })
    }
    # Quotes keep blanks and #; a backslash is just a backslash in them. Double ones, since
    # a path may hold a single one.
    $lines += "$Name=`"$Value`""
    # Not with Set-Content, which gives UTF-8 a byte order mark.
    [System.IO.File]::WriteAllLines($EnvFile, [string[]] $lines)
}

if (-not $TemplatePath) { $TemplatePath = Get-Setting -Name 'VM_TEMPLATE_PATH' -Default 'vms\templates\runner-template.vhdx' }
if (-not $StoragePath) { $StoragePath = Get-Setting -Name 'VM_STORAGE_PATH' -Default 'vms\storage' }
$TemplatePath = Get-FullPath -Path $TemplatePath
$StoragePath = Get-FullPath -Path $StoragePath

if ($Image) {
    $Image = Get-FullPath -Path $Image
} else {
    # In two steps: with a wildcard, -Filter and -Recurse together never enter the folders.
    $built = Get-ChildItem -Path (Join-Path $PSScriptRoot 'output-*') -Directory |
        Get-ChildItem -Filter '*.vhdx' -Recurse -File |
        Sort-Object -Property LastWriteTimeUtc -Descending | Select-Object -First 1
    if (-not $built) { throw "There is no built image below $PSScriptRoot\output-*. Build one with: packer build -only=hyperv-iso.windows-runner ." }
    $Image = $built.FullName
}

$target = $TemplatePath
if ($NewName) {
    # The date goes behind the plain name, also when the present one has a date already.
    $name = [System.IO.Path]::GetFileNameWithoutExtension($TemplatePath) -replace '-\d{8}-\d{6}$', ''
    $stamp = [DateTime]::Now.ToString('yyyyMMdd-HHmmss')
    $target = Join-Path (Split-Path -Parent $TemplatePath) "$name-$stamp.vhdx"
} else {
    Assert-TemplateUnused
}

Write-Output "Compacting $Image"
Mount-VHD -Path $Image -ReadOnly
try {
    Optimize-VHD -Path $Image -Mode Full
} finally {
    Dismount-VHD -Path $Image
}

# First beside the target, which may take minutes on another drive; then renamed, which
# takes no time.
New-Item -ItemType Directory -Force -Path (Split-Path -Parent $target) | Out-Null
$incoming = "$target.incoming"
if (Test-Path -LiteralPath $incoming) { Remove-Item -LiteralPath $incoming -Force }
Move-Item -LiteralPath $Image -Destination $incoming
Set-ItemProperty -LiteralPath $incoming -Name IsReadOnly -Value $true

$previous = "$target.previous"
$hadTemplate = Test-Path -LiteralPath $target
$movedTemplate = $false
try {
    # Again, since compacting and moving took a while, and a running pool makes VMs.
    if (-not $NewName) { Assert-TemplateUnused }
    if ($hadTemplate) {
        if (Test-Path -LiteralPath $previous) { Remove-Item -LiteralPath $previous -Force }
        Move-Item -LiteralPath $target -Destination $previous -Force
        $movedTemplate = $true
    }
    Move-Item -LiteralPath $incoming -Destination $target -Force
} catch {
    # As it was before, so that the script can be run again.
    if ($movedTemplate) { Move-Item -LiteralPath $previous -Destination $target -Force }
    Set-ItemProperty -LiteralPath $incoming -Name IsReadOnly -Value $false
    Move-Item -LiteralPath $incoming -Destination $Image
    throw
}
Write-Output "Placed $target"
if ($hadTemplate) { Write-Output "Kept the one before as $previous" }

if ($NewName) {
    Set-EnvFileSetting -Name 'VM_TEMPLATE_PATH' -Value $target
    Write-Output "Pointed VM_TEMPLATE_PATH in $EnvFile to it. Restart the pool to use it."
    if ([Environment]::GetEnvironmentVariable('VM_TEMPLATE_PATH')) {
        Write-Warning 'VM_TEMPLATE_PATH is also set in the environment, which comes before .env. Change it there.'
    }
    Write-Output "Delete $TemplatePath when no VM uses it any longer."
}
