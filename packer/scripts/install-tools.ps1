# Installs the packages of tools.json with Chocolatey.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
. 'C:\runner-pool-build\common.ps1'

$choco = 'C:\ProgramData\chocolatey\bin\choco.exe'
$tools = ConvertFrom-Json -InputObject (Get-Content -LiteralPath 'C:\runner-pool-build\tools.json' -Raw)
foreach ($package in $tools.packages) {
    # The package's name, and what further arguments `choco install` shall get.
    $arguments = @('install') + @($package) + @('--yes', '--no-progress', '--limit-output')
    for ($try = 1; $true; $try++) {
        try {
            Invoke-Program -Path $choco -Arguments $arguments
            break
        } catch {
            if ($try -ge 3) { throw "Package $($package[0]): $($_.Exception.Message)" }
            Write-Output "Package $($package[0]) failed; trying again."
            Start-Sleep -Seconds 30
        }
    }
}

# Bash of Git, which steps with `shell: bash` use. Windows has a bash.exe of its own,
# that of WSL, which must not come first.
Add-MachinePath -Folder 'C:\Program Files\Git\bin'
