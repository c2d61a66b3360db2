# Runs every check, without Pester:
#   pwsh -File tests/powershell/run.ps1
#   powershell.exe -ExecutionPolicy Bypass -File tests\powershell\run.ps1
# Stops at the first that fails, with exit code 1.
# -Name: only the checks whose name is like this.
param([string]$Name = '*')

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

. (Join-Path -Path $PSScriptRoot -ChildPath 'checks.ps1')

$passed = 0
foreach ($check in @((Get-Check).Keys)) {
    if (-not ($check -like $Name)) {
        continue
    }
    try {
        Invoke-Check $check
    } catch {
        Write-Host "FAILED  $check"
        Write-Host "        $($_.Exception.Message)"
        Write-Host $_.ScriptStackTrace
        Write-Host "$passed passed, 1 failed"
        exit 1
    }
    $passed = $passed + 1
    Write-Host "ok      $check"
}
if ($passed -eq 0) {
    Write-Host "There is no check whose name is like '$Name'."
    exit 1
}
Write-Host "$passed passed, 0 failed"
exit 0
