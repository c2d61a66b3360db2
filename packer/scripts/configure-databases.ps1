# Stops PostgreSQL and MySQL and keeps them from starting with Windows: a job that wants
# one starts its service. Both take local connections without a password, since whoever
# can connect owns the VM anyway, and so no password stands anywhere.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

foreach ($pattern in 'postgresql*', 'mysql*') {
    $services = @(Get-Service -Name $pattern)
    if ($services.Count -eq 0) { throw "No service is named $pattern." }
    foreach ($service in $services) {
        Stop-Service -Name $service.Name -Force
        Set-Service -Name $service.Name -StartupType Manual
    }
}

# Only the lines for this machine's own addresses; the others stay as they are.
$files = @(Get-ChildItem -Path 'C:\Program Files\PostgreSQL\*\data\pg_hba.conf')
if ($files.Count -eq 0) { throw 'PostgreSQL has no pg_hba.conf.' }
foreach ($file in $files) {
    $lines = Get-Content -LiteralPath $file.FullName
    $lines = $lines -replace '^(host\s+all\s+all\s+(127\.0\.0\.1/32|::1/128)\s+)\S+\s*$', '$1trust'
    Set-Content -LiteralPath $file.FullName -Value $lines -Encoding Ascii
}
