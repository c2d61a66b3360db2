# Fails the build unless the image can do what it promises: each tool of tools.json
# answers, the runner has the wanted version, the guest is in place, enough is free.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
. 'C:\runner-pool-build\common.ps1'

# What installers have added to the machine's PATH, and nothing that only this account has.
$env:Path = [Environment]::GetEnvironmentVariable('Path', 'Machine')
$faults = @()

$tools = ConvertFrom-Json -InputObject (Get-Content -LiteralPath 'C:\runner-pool-build\tools.json' -Raw)
foreach ($check in $tools.checks) {
    try {
        $words = $check.Split(' ')
        Invoke-Program -Path $words[0] -Arguments @($words | Select-Object -Skip 1) -Success 0
    } catch {
        $faults += "$check failed: $($_.Exception.Message)"
    }
}

$version = & 'C:\actions-runner\bin\Runner.Listener.exe' --version
if ("$version" -ne $env:RUNNER_VERSION) { $faults += "The runner has version $version, not $env:RUNNER_VERSION." }

foreach ($file in 'pool.ps1', 'listener.ps1', 'start-runner.ps1', 'job-started.ps1', 'supervise.ps1', 'image.json') {
    if (-not (Test-Path -LiteralPath "C:\runner-pool-guest\$file")) { $faults += "C:\runner-pool-guest\$file is missing." }
}
foreach ($task in 'runner-pool-guest', 'runner-pool-supervise') {
    if (-not (Get-ScheduledTask -TaskName $task -ErrorAction SilentlyContinue)) { $faults += "The task $task is missing." }
}

$free = [Math]::Floor((Get-Volume -DriveLetter C -ErrorAction Stop).SizeRemaining / (1024 * 1024 * 1024))
Write-Output "$free GB are free."
if ($free -lt [int] $env:FREE_GB_WANTED) { $faults += "Only $free GB are free, $env:FREE_GB_WANTED are wanted." }

if ($faults.Count -gt 0) { throw ($faults -join ' ') }
# seal.ps1 wants to see this: Packer takes a lost connection for a success now and then.
New-Item -ItemType File -Force -Path 'C:\runner-pool-build\checked' | Out-Null
