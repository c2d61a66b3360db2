# The host's network, as far as VMs on a virtual switch have to do with it.
# Dot-sourced by create-vm.ps1 and check-host.ps1.
# Runs under Windows PowerShell 5.1 and PowerShell 7.

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

function Get-AddressNumber($Address) {
    $bytes = [System.Net.IPAddress]::Parse($Address).GetAddressBytes()
    [array]::Reverse($bytes)
    return [int64][System.BitConverter]::ToUInt32($bytes, 0)
}

# Whether an IPv4 prefix, such as 10.0.0.0/8, covers an address or another prefix.
function Test-Prefix($Prefix, $Other) {
    $base, $length = $Prefix -split '/'
    $address, $bits = ("$Other/32" -split '/')[0, 1]
    $shift = 32 - [int]$length
    return [int]$bits -ge [int]$length -and ((Get-AddressNumber $base) -shr $shift) -eq ((Get-AddressNumber $address) -shr $shift)
}

# The host's own IPv4 address on the switch, with its prefix, or nothing. 169.254.x.x, which
# Windows takes when nothing gave it an address, is none.
function Get-SwitchAddress($SwitchName) {
    # Not by their names, which anyone may change; and the Default Switch's is hidden.
    $devices = @(Get-VMNetworkAdapter -ManagementOS -SwitchName $SwitchName | ForEach-Object { [string]$_.DeviceId })
    # -ErrorAction on functions of modules: they do not see this script's $ErrorActionPreference.
    $adapters = @(Get-NetAdapter -IncludeHidden -ErrorAction Stop | Where-Object { $devices -contains $_.DeviceID } | ForEach-Object { $_.InterfaceIndex })
    $own = @(Get-NetIPAddress -AddressFamily IPv4 -ErrorAction Stop | Where-Object { $adapters -contains $_.InterfaceIndex })
    return ($own | Where-Object { $_.IPAddress -notlike '169.254.*' } | Select-Object -First 1)
}

# Whether the switch is the pool's own: a NAT of this host serves the network
# in which the host's address on it lies.
function Test-OwnSwitch($Address) {
    $nats = @(Get-NetNat -ErrorAction Stop | ForEach-Object { [string]$_.InternalIPInterfaceAddressPrefix })
    return @($nats | Where-Object { $_ -ne '' -and (Test-Prefix $_ $Address) }).Count -gt 0
}
