# Runs PSScriptAnalyzer over every script that git knows or is about to know.
# Exit code 1 if it finds something.

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

Set-Location -LiteralPath (Split-Path -Path (Split-Path -Path $PSScriptRoot -Parent) -Parent)
$scripts = @(& git ls-files --cached --others --exclude-standard '*.ps1' '*.psm1' | Where-Object { Test-Path -LiteralPath $_ })
if ($scripts.Count -eq 0) {
    throw 'git lists no script'
}
$found = @(foreach ($script in $scripts) {
    for ($try = 1; $true; $try++) {
        try {
            Invoke-ScriptAnalyzer -Path $script -Settings tests/powershell/analyzer.psd1
            break
        } catch {
            # Its rules run at once and get in the way of each other now and then, in several ways.
            if ($try -ge 5) { throw }
            Write-Host "PSScriptAnalyzer crashed on $script; trying again: $($_.Exception.Message)"
        }
    }
})
# The tests share variables between script blocks, which this rule does not know.
$found = @($found | Where-Object { -not ($_.ScriptPath -match '[\\/]tests[\\/]powershell[\\/]' -and $_.RuleName -eq 'PSUseDeclaredVarsMoreThanAssignments') })
$found | ForEach-Object { Write-Host "$($_.ScriptPath):$($_.Line): $($_.RuleName): $($_.Message)" }
Write-Host "PSScriptAnalyzer: $($scripts.Count) files, $($found.Count) findings"
if ($found.Count -gt 0) {
    exit 1
}
exit 0
