# Opens WinRM over HTTPS for Packer. Runs once, at the first logon, from the CD with
# the answer file. seal.ps1 closes it again.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

# For whoever looks at the console, or at the disk of a build that failed.
Start-Transcript -Path 'C:\Windows\Temp\enable-winrm.log' -Append | Out-Null

# The address that the template gives this VM, where nothing else gives it one.
# -ErrorAction on functions of modules: they do not see this script's $ErrorActionPreference.
$file = Join-Path -Path $PSScriptRoot -ChildPath 'network.json'
if (Test-Path -LiteralPath $file -PathType Leaf) {
    $network = ConvertFrom-Json -InputObject ([System.IO.File]::ReadAllText($file))
    for ($try = 1; $true; $try++) {
        $adapters = @(Get-NetAdapter -ErrorAction Stop | Where-Object { [string] $_.Status -eq 'Up' })
        if ($adapters.Count -gt 0) { break }
        if ($try -ge 60) { throw 'No network adapter is up.' }
        Start-Sleep -Seconds 2
    }
    $index = $adapters[0].ifIndex
    $address, $prefixLength = $network.address.Split('/')
    $there = @(Get-NetIPAddress -InterfaceIndex $index -AddressFamily IPv4 -ErrorAction SilentlyContinue | Where-Object { $_.IPAddress -eq $address })
    if ($there.Count -eq 0) {
        New-NetIPAddress -InterfaceIndex $index -IPAddress $address -PrefixLength $prefixLength -DefaultGateway $network.gateway -ErrorAction Stop | Out-Null
    }
    Set-DnsClientServerAddress -InterfaceIndex $index -ServerAddresses $network.dns_servers -ErrorAction Stop
}

# WinRM refuses to be set up on a public network, and every new network is one. While
# Windows still identifies it, it cannot be changed, or becomes public again.
for ($try = 1; $true; $try++) {
    try {
        $profiles = @(Get-NetConnectionProfile -ErrorAction Stop)
        $public = @($profiles | Where-Object { [string] $_.NetworkCategory -eq 'Public' })
        if ($profiles.Count -gt 0 -and $public.Count -eq 0) { break }
        $public | Set-NetConnectionProfile -NetworkCategory Private -ErrorAction Stop
        if ($try -ge 60) { throw 'There is no network, or it stays public.' }
    } catch {
        if ($try -ge 60) { throw }
        Write-Output "$($_.Exception.Message) Trying again."
    }
    Start-Sleep -Seconds 2
}

# Without this, a local administrator is not one over the network.
Set-ItemProperty -Path 'HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Policies\System' -Name LocalAccountTokenFilterPolicy -Value 1 -Type DWord

Set-Service -Name WinRM -StartupType Automatic
Start-Service -Name WinRM
$certificate = New-SelfSignedCertificate -DnsName 'packer' -CertStoreLocation 'Cert:\LocalMachine\My'
$selectors = @{ Address = '*'; Transport = 'HTTPS' }
$values = @{ Hostname = 'packer'; CertificateThumbprint = $certificate.Thumbprint }
New-WSManInstance -ResourceURI 'winrm/config/Listener' -SelectorSet $selectors -ValueSet $values | Out-Null
Set-Item -Path 'WSMan:\localhost\Service\Auth\Basic' -Value $true -Force
Set-Item -Path 'WSMan:\localhost\Shell\MaxMemoryPerShellMB' -Value 2048 -Force
Set-Item -Path 'WSMan:\localhost\MaxTimeoutms' -Value 7200000 -Force

# Last: Packer begins as soon as this port answers.
New-NetFirewallRule -Name 'runner-pool-build-winrm' -DisplayName 'WinRM for the image build' -Direction Inbound -Protocol TCP -LocalPort 5986 -Action Allow -ErrorAction Stop | Out-Null
