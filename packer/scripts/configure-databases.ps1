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
# One character for each byte: a comment may be in any encoding.
$bytewise = [System.Text.Encoding]::GetEncoding('iso-8859-1')
foreach ($file in $files) {
    $text = $bytewise.GetString([System.IO.File]::ReadAllBytes($file.FullName))
    $text = $text -replace '(?m)^(host[ \t]+all[ \t]+all[ \t]+(127\.0\.0\.1/32|::1/128)[ \t]+)\S+(?=[ \t]*\r?$)', '$1trust'
    [System.IO.File]::WriteAllBytes($file.FullName, $bytewise.GetBytes($text))
}
