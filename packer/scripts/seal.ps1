# The last step: closes every door that the build has opened, then powers off. Runs as
# SYSTEM in a task of its own, since it cuts Packer's connection. Where a step fails the
# VM stays on, so that Packer gives up instead of keeping an open image.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
. 'C:\runner-pool-build\common.ps1'

if (-not (Test-Path -LiteralPath 'C:\runner-pool-build\checked')) { throw 'check-image.ps1 did not run to its end.' }

# Defender, without what slows builds most.
try {
    Set-MpPreference -DisableRealtimeMonitoring $false -ErrorAction Stop
    Add-MpPreference -ExclusionPath 'C:\actions-runner', 'C:\hostedtoolcache' -ErrorAction Stop
} catch {
    # Absent on some editions; where it is there it must be on.
    if (Get-Service -Name WinDefend -ErrorAction SilentlyContinue) { throw }
}

# The build's accounts: passwords that nobody knows, and locked. The built-in
# administrator is the one whose SID ends with 500, whatever its name.
$buildUser = Get-Content -LiteralPath 'C:\runner-pool-build\build-user.txt'
$accounts = @(Get-LocalUser | Where-Object { $_.Name -eq $buildUser -or $_.SID.Value -like '*-500' })
if ($accounts.Count -ne 2) { throw "Expected the accounts $buildUser and Administrator, found $($accounts.Count)." }
foreach ($account in $accounts) {
    $password = ConvertTo-SecureString -String (New-RandomPassword) -AsPlainText -Force
    Set-LocalUser -Name $account.Name -Password $password
    Disable-LocalUser -Name $account.Name
}

# No automatic logon.
$winlogon = 'HKLM:\SOFTWARE\Microsoft\Windows NT\CurrentVersion\Winlogon'
Set-ItemProperty -Path $winlogon -Name AutoAdminLogon -Value '0' -Type String
foreach ($name in 'DefaultPassword', 'DefaultUserName', 'AutoLogonCount') {
    Remove-ItemProperty -Path $winlogon -Name $name -ErrorAction SilentlyContinue
}

# WinRM as it was: off, without its listener, certificate and firewall rule.
Set-Service -Name WinRM -StartupType Disabled
Remove-NetFirewallRule -Name 'runner-pool-build-winrm' -ErrorAction Stop
Set-Item -Path 'WSMan:\localhost\Service\Auth\Basic' -Value $false -Force
Remove-WSManInstance -ResourceURI 'winrm/config/Listener' -SelectorSet @{ Address = '*'; Transport = 'HTTPS' }
Get-ChildItem -Path 'Cert:\LocalMachine\My' | Where-Object { $_.Subject -eq 'CN=packer' } | Remove-Item -Force
Set-ItemProperty -Path 'HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Policies\System' -Name LocalAccountTokenFilterPolicy -Value 0 -Type DWord
Stop-Service -Name WinRM -Force

# The address that enable-winrm.ps1 set, if it did: the image's VMs get theirs from DHCP
# or from the pool. Setting DHCP leaves a gateway in place.
foreach ($address in @(Get-NetIPAddress -AddressFamily IPv4 -PrefixOrigin Manual -ErrorAction SilentlyContinue | Where-Object { $_.IPAddress -notlike '127.*' })) {
    $index = $address.InterfaceIndex
    Remove-NetRoute -InterfaceIndex $index -DestinationPrefix '0.0.0.0/0' -Confirm:$false -ErrorAction SilentlyContinue
    Remove-NetIPAddress -InterfaceIndex $index -IPAddress $address.IPAddress -Confirm:$false -ErrorAction Stop
    Set-NetIPInterface -InterfaceIndex $index -AddressFamily IPv4 -Dhcp Enabled -ErrorAction Stop
    Set-DnsClientServerAddress -InterfaceIndex $index -ResetServerAddresses -ErrorAction Stop
}

# What Packer and this build have left.
Remove-Item -Path 'C:\Windows\Temp\*' -Recurse -Force -ErrorAction SilentlyContinue
Unregister-ScheduledTask -TaskName 'runner-pool-seal' -Confirm:$false -ErrorAction Stop
Remove-Item -LiteralPath 'C:\runner-pool-build' -Recurse -Force -ErrorAction SilentlyContinue
& shutdown.exe /s /f /t 0
