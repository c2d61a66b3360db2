# Starts the pool in this window; Ctrl+C stops it. Passes on its exit code.
#   .\start.ps1              checks the host, then runs the pool
#   .\start.ps1 -Install     installs the pool as a Windows service and starts it
#   .\start.ps1 -Uninstall   stops that service in order and removes it, and offers to remove its VMs
# Runs under Windows PowerShell 5.1 and PowerShell 7.
[CmdletBinding(DefaultParameterSetName = 'Run')]
param(
    [Parameter(ParameterSetName = 'Install', Mandatory)][switch]$Install,
    [Parameter(ParameterSetName = 'Uninstall', Mandatory)][switch]$Uninstall
)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
. (Join-Path -Path $PSScriptRoot -ChildPath 'packer/common.ps1')

$binary = Find-Binary
if ($binary -eq '') {
    Stop-WithMessage "There is no hyperv-runner-pool.exe in $PSScriptRoot or its target\release. Take it from a release's archive, or build it in a clone: cargo build --release"
}
if ($Uninstall) {
    & $binary service uninstall
    $removed = $LASTEXITCODE
    Set-Location -LiteralPath $PSScriptRoot
    if ($removed -eq 0 -and (Test-Path -LiteralPath '.env' -PathType Leaf)) {
        # VMs with a job go on. This lists what is left of the pool, and asks before it removes anything.
        & $binary cleanup
        $removed = $LASTEXITCODE
    }
    exit $removed
}
$envFile = Get-FullPath -Path '.env'
if (-not (Test-Path -LiteralPath $envFile -PathType Leaf)) {
    if ((Get-Setting -Name 'GITHUB_ORG') -eq '' -and (Get-Setting -Name 'USE_MOCK') -eq '') {
        Stop-WithMessage "There is no $envFile. Make it with .\bootstrap.ps1, or copy .env.example, and fill it in."
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
