# Starts the pool in this window; Ctrl+C stops it. Passes on its exit code.
#   .\start.ps1              checks the host, then runs the pool
#   .\start.ps1 -Install     installs the pool as a Windows service and starts it
#   .\start.ps1 -Uninstall   stops that service in order and removes it
# Runs under Windows PowerShell 5.1 and PowerShell 7.
[CmdletBinding(DefaultParameterSetName = 'Run')]
param(
    [Parameter(ParameterSetName = 'Install', Mandatory)][switch]$Install,
    [Parameter(ParameterSetName = 'Uninstall', Mandatory)][switch]$Uninstall
)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

function Stop-WithWord([string]$Word) {
    Write-Host $Word
    exit 1
}

function Find-Binary {
    foreach ($folder in $PSScriptRoot, (Join-Path -Path $PSScriptRoot -ChildPath 'target/release')) {
        foreach ($name in 'hyperv-runner-pool.exe', 'hyperv-runner-pool') {
            $path = Join-Path -Path $folder -ChildPath $name
            if (Test-Path -LiteralPath $path -PathType Leaf) {
                return $path
            }
        }
    }
    return ''
}

$binary = Find-Binary
if ($binary -eq '') {
    Stop-WithWord "There is no hyperv-runner-pool.exe in $PSScriptRoot or its target\release. Build it: cargo build --release"
}
if ($Uninstall) {
    & $binary service uninstall
    exit $LASTEXITCODE
}
$envFile = Join-Path -Path $PSScriptRoot -ChildPath '.env'
if (-not (Test-Path -LiteralPath $envFile -PathType Leaf)) {
    if ([string]$env:GITHUB_ORG -eq '' -and [string]$env:USE_MOCK -eq '') {
        Stop-WithWord "There is no $envFile. Make it with .\bootstrap.ps1, or copy .env.example, and fill it in."
    }
}
Set-Location -LiteralPath $PSScriptRoot

& $binary check
$checked = $LASTEXITCODE
if ($Install) {
    # Wrong settings stop the service too. What else the check finds may be over soon, and the
    # pool waits for it.
    if ($checked -eq 2) {
        exit $checked
    }
    & $binary service install --folder $PSScriptRoot
    if ($LASTEXITCODE -eq 0) {
        & $binary service start
    }
    exit $LASTEXITCODE
}
if ($checked -ne 0) {
    exit $checked
}
# Alone in its statement, so that Ctrl+C reaches the pool and PowerShell waits
# for it to end in order.
& $binary
exit $LASTEXITCODE
