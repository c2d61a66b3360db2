<#
.SYNOPSIS
Builds a new image with the newest runner and the newest Windows updates, and places it.

.DESCRIPTION
GitHub gives no jobs to a runner that is more than 30 days behind the newest, and
evaluation Windows ends after 180 days. This script is fit for a monthly scheduled task:
it asks nobody, it ends with a non-zero exit code where anything failed, and the template
in use stays as it is until the new image is complete. Its log is logs\rebuild-image.log.

Run it as an administrator, on the host.

.EXAMPLE
.\packer\rebuild.ps1 -Template windows-runner-enhanced -NewName
#>
[CmdletBinding()]
param(
    [ValidateSet('windows-runner', 'windows-runner-enhanced')]
    [string] $Template = 'windows-runner',
    # A .pkrvars.hcl file with your values of the variables.
    [string] $VarFile = '',
    # Place the image under a new name, so that running VMs are no obstacle.
    [switch] $NewName,
    # Leave Windows as it is on the ISO.
    [switch] $SkipUpdates
)
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

$ProgressPreference = 'SilentlyContinue'
[System.Net.ServicePointManager]::SecurityProtocol = [System.Net.SecurityProtocolType]::Tls12

# Returns the newest runner's version, and the SHA-256 that its release notes list.
function Get-NewestRunner {
    $release = Invoke-RestMethod -Uri 'https://api.github.com/repos/actions/runner/releases/latest' -UseBasicParsing -TimeoutSec 60
    $version = $release.tag_name.TrimStart('v')
    # https://github.com/actions/runner/blob/main/releaseNote.md
    $pattern = '<!-- BEGIN SHA win-x64 -->(?<hash>[0-9a-fA-F]{64})<!-- END SHA win-x64 -->'
    if ($release.body -notmatch $pattern) { throw "The release notes of runner $version list no SHA-256 for win-x64." }
    return @{ Version = $version; Sha256 = $Matches.hash }
}

function Invoke-Packer {
    param([string[]] $Arguments)
    # Packer writes its warnings to its error stream.
    $ErrorActionPreference = 'Continue'
    & packer @Arguments 2>&1 | ForEach-Object { Write-Host "$_" }
    $exitCode = $LASTEXITCODE
    if ($exitCode -ne 0) { throw "packer $($Arguments[0]) ended with exit code $exitCode." }
}

$logs = Join-Path (Split-Path -Parent $PSScriptRoot) 'logs'
New-Item -ItemType Directory -Force -Path $logs | Out-Null
Start-Transcript -Path (Join-Path $logs 'rebuild-image.log') | Out-Null
$place = Get-Location
$exitCode = 1
try {
    # While relative paths still count from the caller's folder.
    if ($VarFile) { $VarFile = (Resolve-Path -LiteralPath $VarFile).ProviderPath }
    Set-Location -LiteralPath $PSScriptRoot
    Get-Command -Name packer -CommandType Application | Out-Null
    $runner = Get-NewestRunner
    Write-Host "The newest runner is $($runner.Version)."

    $updates = 'true'
    if ($SkipUpdates) { $updates = 'false' }
    $arguments = @(
        'build', '-force', '-color=false', "-only=hyperv-iso.$Template"
        '-var', "runner_version=$($runner.Version)"
        '-var', "runner_sha256=$($runner.Sha256)"
        '-var', "install_updates=$updates"
    )
    if ($VarFile) { $arguments += "-var-file=$VarFile" }
    Invoke-Packer -Arguments 'init', '.'
    Invoke-Packer -Arguments ($arguments + '.')

    $image = Join-Path $PSScriptRoot "output-$Template\Virtual Hard Disks\$Template.vhdx"
    & (Join-Path $PSScriptRoot 'place-template.ps1') -Image $image -NewName:$NewName | ForEach-Object { Write-Host "$_" }
    $exitCode = 0
} catch {
    Write-Host "Failed: $($_.Exception.Message)"
} finally {
    Set-Location -LiteralPath $place
    Stop-Transcript | Out-Null
}
exit $exitCode
