# Opens WinRM over HTTPS for Packer. Runs once, at the first logon, from the CD with
# the answer file. seal.ps1 closes it again.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

# WinRM refuses to be set up on a public network, and every new network is one.
for ($try = 0; $try -lt 60; $try++) {
    $profiles = @(Get-NetConnectionProfile -ErrorAction SilentlyContinue)
    if ($profiles.Count -gt 0) { break }
    Start-Sleep -Seconds 2
}
$profiles | Set-NetConnectionProfile -NetworkCategory Private -ErrorAction Stop

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
