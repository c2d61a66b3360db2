# Runs tests with Pester 5: those of this folder, or those of one file.
#   pwsh -File tests/powershell/pester.ps1 -Path tests/powershell/Lint.Tests.ps1
# Exit code 1 if one fails, or if there is none.
param([string]$Path = '')

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

if ($Path -eq '') {
    # Each file in a process of its own: what one puts in place of cmdlets is not there for the next.
    $codes = @(foreach ($file in Get-ChildItem -LiteralPath $PSScriptRoot -Filter '*.Tests.ps1' -File) {
        & (Get-Process -Id $PID).Path -NoProfile -NonInteractive -File $PSCommandPath -Path $file.FullName | Out-Host
        $LASTEXITCODE
    })
    exit [int]($codes.Count -eq 0 -or @($codes -ne 0).Count -gt 0)
}

# Windows brings a Pester 3, and hosted machines some other, which PowerShell would take.
Import-Module -Name Pester -MinimumVersion 5.5 -MaximumVersion 5.99
$configuration = New-PesterConfiguration
$configuration.Run.Path = $Path
$configuration.Run.PassThru = $true
$result = Invoke-Pester -Configuration $configuration
# Some files are for Linux alone, and skipped elsewhere.
if ($result.Result -ne 'Passed' -or $result.PassedCount + $result.SkippedCount -eq 0) {
    Write-Host "Pester: a test of $Path failed, or there was none."
    exit 1
}
exit 0
