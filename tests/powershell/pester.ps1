# Runs tests with Pester 5: those of this folder, or those of one file.
#   pwsh -File tests/powershell/pester.ps1 -Path tests/powershell/Lint.Tests.ps1
# Exit code 1 if one fails, or if there is none.
param([string]$Path = $PSScriptRoot)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

# Windows brings a Pester 3, which PowerShell would take.
Import-Module -Name Pester -MinimumVersion 5.5
$configuration = New-PesterConfiguration
$configuration.Run.Path = $Path
$configuration.Run.PassThru = $true
$result = Invoke-Pester -Configuration $configuration
if ($result.Result -ne 'Passed' -or $result.PassedCount -eq 0) {
    Write-Host "Pester: a test of $Path failed, or there was none."
    exit 1
}
exit 0
