# Makes what a release consists of, in a folder: the archive for Windows, checksums.txt
# over all that is in the folder, and with -Tag notes.md, from CHANGELOG.md.
#   .github/release.ps1 -Binary PATH -Output FOLDER [-Tag vVERSION]
# Needs git. Runs under Windows PowerShell 5.1 and PowerShell 7, on Windows and elsewhere.
param(
    [Parameter(Mandatory)] [string] $Binary,
    [Parameter(Mandatory)] [string] $Output,
    # The tag of the release. It must name the version in Cargo.toml.
    [string] $Tag = ''
)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
Add-Type -AssemblyName System.IO.Compression
Add-Type -AssemblyName System.IO.Compression.FileSystem

$root = Split-Path -Path $PSScriptRoot -Parent
# What the README links to is in the archive too.
$contents = 'README.md', 'LICENSE', 'CHANGELOG.md', 'CONTRIBUTING.md', 'SECURITY.md', '.env.example', 'bootstrap.ps1', 'start.ps1', 'docs', 'packer'
# For a host's first days: docs/first-host.md.
$contents += 'tests/first-host.ps1'

function Get-Version {
    $manifest = [System.IO.File]::ReadAllText((Join-Path -Path $root -ChildPath 'Cargo.toml'))
    $found = [regex]::Match($manifest, '(?m)^version = "(?<version>[^"]+)"')
    if (-not $found.Success) {
        throw 'Cargo.toml has no version.'
    }
    return $found.Groups['version'].Value
}

# Returns the text below a version's heading in CHANGELOG.md.
function Get-Note([string]$Version) {
    $log = [System.IO.File]::ReadAllText((Join-Path -Path $root -ChildPath 'CHANGELOG.md'))
    $found = [regex]::Match($log, '(?ms)^## \[' + [regex]::Escape($Version) + '\][^\n]*\n(?<text>.*?)(?=^## \[|\z)')
    if (-not $found.Success -or $found.Groups['text'].Value.Trim() -eq '') {
        throw "CHANGELOG.md has no section [$Version], or nothing in it. Write one before you release."
    }
    return $found.Groups['text'].Value.Trim()
}

# Compress-Archive of Windows PowerShell 5.1 leaves out hidden files and may write backslashes.
function New-Archive([string]$Path) {
    $files = @(& git -C $root ls-files -- $contents)
    if ($LASTEXITCODE -ne 0) {
        throw 'git cannot list the files of the archive.'
    }
    foreach ($name in $contents) {
        if (@($files | Where-Object { $_ -eq $name -or $_.StartsWith("$name/") }).Count -eq 0) {
            throw "$name is not in the repository, and the archive must have it."
        }
    }
    $archive = [System.IO.Compression.ZipFile]::Open($Path, [System.IO.Compression.ZipArchiveMode]::Create)
    try {
        [void][System.IO.Compression.ZipFileExtensions]::CreateEntryFromFile($archive, $Binary, 'hyperv-runner-pool.exe')
        foreach ($file in $files) {
            [void][System.IO.Compression.ZipFileExtensions]::CreateEntryFromFile($archive, (Join-Path -Path $root -ChildPath $file), $file)
        }
    } finally {
        $archive.Dispose()
    }
}

$version = Get-Version
$note = ''
if ($Tag -ne '') {
    if ($Tag -cne "v$version") {
        throw "The tag is $Tag, but Cargo.toml has version $version. Tag v$version, or change Cargo.toml."
    }
    $note = Get-Note $version
}
# .NET has a current folder of its own.
$Binary = (Resolve-Path -LiteralPath $Binary).ProviderPath
$Output = (New-Item -ItemType Directory -Force -Path $Output).FullName
$name = "hyperv-runner-pool_${version}_windows_amd64.zip"
$path = Join-Path -Path $Output -ChildPath $name
if (Test-Path -LiteralPath $path) {
    Remove-Item -LiteralPath $path
}
New-Archive $path
$sums = @(Get-ChildItem -LiteralPath $Output -File | Where-Object { $_.Name -notin 'checksums.txt', 'notes.md' } | Sort-Object -Property Name | ForEach-Object {
    (Get-FileHash -LiteralPath $_.FullName -Algorithm SHA256).Hash.ToLowerInvariant() + '  ' + $_.Name + "`n"
})
[System.IO.File]::WriteAllText((Join-Path -Path $Output -ChildPath 'checksums.txt'), -join $sums)
if ($Tag -ne '') {
    [System.IO.File]::WriteAllText((Join-Path -Path $Output -ChildPath 'notes.md'), "$note`n")
}
Write-Host $path
