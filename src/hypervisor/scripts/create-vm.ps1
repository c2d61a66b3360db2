# Makes one VM on a disk of its own and starts it.
# Standard input: one JSON object. Standard output: one line,
# {"ok":true,"url":...} or {"ok":false,"error":...,"at":...}. What did not keep the VM from being
# made, but should be known, is in "warning" besides.
# If a step fails, what the earlier steps made is removed before the answer.
# Runs under Windows PowerShell 5.1 and PowerShell 7.

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

# The integration service "Key-Value Pair Exchange". Its name is translated on
# a localized host; the end of its id is the same everywhere.
$KvpServiceId = '2A34B1C2-FD73-4043-8A5B-DD2159BC743F'
$MiB = 1048576
# What a walled-off VM does not reach: private, shared, local, multicast and
# reserved networks, Azure's host, and all of IPv6.
$WalledOff = @(
    '0.0.0.0/8', '10.0.0.0/8', '100.64.0.0/10', '127.0.0.0/8', '169.254.0.0/16', '172.16.0.0/12', '192.168.0.0/16',
    '224.0.0.0/4', '240.0.0.0/4', '168.63.129.16/32', '::/0'
)

. (Join-Path -Path $PSScriptRoot -ChildPath 'request.ps1')
. (Join-Path -Path $PSScriptRoot -ChildPath 'ownership.ps1')
. (Join-Path -Path $PSScriptRoot -ChildPath 'key-values.ps1')
. (Join-Path -Path $PSScriptRoot -ChildPath 'network.ps1')
. (Join-Path -Path $PSScriptRoot -ChildPath 'template-access.ps1')

$script:step = 'input'
$script:vm = $null
$script:diskIsOurs = $false
$script:url = ''
$script:warning = ''

# The fixed address of a slot in the network on the pool's own switch: slot 1 has
# the tenth. Those below are for the host and for whoever else is there.
function Get-SlotAddress($OnSwitch, $Slot) {
    $size = [int64]1 -shl (32 - $OnSwitch.PrefixLength)
    $taken = Get-AddressNumber $OnSwitch.IPAddress
    $network = $taken - $taken % $size
    $number = $network + 9 + $Slot
    if ($network + 9 -lt $taken -and $taken -le $number) {
        $number = $number + 1
    }
    # The last one is for broadcasts.
    if ($number -ge $network + $size - 1) {
        throw "The network of $($OnSwitch.IPAddress)/$($OnSwitch.PrefixLength) has no address for slot $Slot. Lower POOL_SIZE, or give the host's adapter on the switch, and its NAT, a shorter prefix."
    }
    $bytes = [System.BitConverter]::GetBytes([uint32]$number)
    [array]::Reverse($bytes)
    return [string][System.Net.IPAddress]::new($bytes)
}

# The DNS servers of the host's connected adapters, the preferred adapter's first.
# A server on the host itself is at its address on the switch.
function Get-DnsServer($HostAddress) {
    $connected = @(Get-NetIPInterface -AddressFamily IPv4 -ConnectionState Connected -ErrorAction Stop | Sort-Object -Property InterfaceMetric)
    $known = @(Get-DnsClientServerAddress -AddressFamily IPv4 -ErrorAction Stop)
    $servers = @(foreach ($interface in $connected) {
        $known | Where-Object { $_.InterfaceIndex -eq $interface.InterfaceIndex } | ForEach-Object { $_.ServerAddresses }
    })
    $servers = @($servers | ForEach-Object { if ($_ -like '127.*') { $HostAddress } else { [string]$_ } } | Where-Object { $_ })
    return @($servers | Select-Object -Unique -First 4)
}

# What the host's addresses and routes add to the list above: a LAN with public
# addresses, or a VPN. A prefix of less than 8 bits is a way to the internet.
function Get-HostPrefix {
    $own = @(Get-NetIPAddress -AddressFamily IPv4 -ErrorAction Stop | ForEach-Object { "$($_.IPAddress)/32" })
    $routed = @(Get-NetRoute -AddressFamily IPv4 -ErrorAction Stop | ForEach-Object { [string]$_.DestinationPrefix })
    $known = @($WalledOff | Where-Object { $_ -notlike '*:*' })
    # The shortest first: most others lie in one of them.
    foreach ($prefix in @($routed + $own | Sort-Object -Property { [int]($_ -split '/')[1] })) {
        $covered = @($known | Where-Object { Test-Prefix $_ $prefix }).Count -gt 0
        if ([int]($prefix -split '/')[1] -ge 8 -and -not $covered) {
            $known += $prefix
            $prefix
        }
    }
}

# The rules that wall a VM off, for both directions. Without state, so each
# direction needs its own; addresses and ports are as the VM sees them. Of the
# rules that fit a packet, the one with the highest weight counts; if none fits, it passes.
#   $Reachable   address:port pairs that the VM may reach over TCP
#   $Dns         addresses of DNS servers
#   $DhcpServer  whence the VM gets its address; empty if it has a fixed one
#   $Denied      prefixes that it does not reach
#   $VmAddress   its fixed address, from which alone it may send; or empty
function Get-WallRule($Reachable, $Dns, $DhcpServer, $Denied, $VmAddress) {
    $local = 'ANY'
    if ($VmAddress -ne '') {
        $local = $VmAddress
    }
    foreach ($direction in 'Outbound', 'Inbound') {
        $rules = @(
            foreach ($pair in $Reachable) {
                $address, $port = $pair -split ':'
                @{ Action = 'Allow'; Match = @{ LocalIPAddress = $local; RemoteIPAddress = $address; RemotePort = $port; Protocol = 'TCP' } }
            }
            foreach ($address in $Dns) {
                foreach ($protocol in 'UDP', 'TCP') {
                    @{ Action = 'Allow'; Match = @{ LocalIPAddress = $local; RemoteIPAddress = $address; RemotePort = '53'; Protocol = $protocol } }
                }
            }
            if ($DhcpServer -ne '') {
                $servers = @($DhcpServer)
                if ($direction -eq 'Outbound') {
                    $servers = @('255.255.255.255') + $servers
                }
                foreach ($address in $servers) {
                    @{ Action = 'Allow'; Match = @{ RemoteIPAddress = $address; LocalPort = '68'; RemotePort = '67'; Protocol = 'UDP' } }
                }
            }
            foreach ($prefix in $Denied) {
                @{ Action = 'Deny'; Match = @{ RemoteIPAddress = $prefix } }
            }
            if ($VmAddress -ne '') {
                @{ Action = 'Allow'; Match = @{ LocalIPAddress = $local; RemoteIPAddress = '0.0.0.0/0' } }
                @{ Action = 'Deny'; Match = @{} }
            }
        )
        # The highest that Hyper-V takes is 65535.
        $weight = 65000
        foreach ($rule in $rules) {
            $rule['Direction'] = $direction
            $rule['Weight'] = $weight
            $weight = $weight - 1
            $rule
        }
    }
}

# Makes the rules on the VM's adapter, and reads them back to be sure that they took.
function Set-Wall($Vm, $Adapter, $Rules) {
    Set-VMNetworkAdapter -VMNetworkAdapter $Adapter -MacAddressSpoofing Off -DhcpGuard On -RouterGuard On
    foreach ($rule in $Rules) {
        $match = $rule.Match
        Add-VMNetworkAdapterExtendedAcl -VMNetworkAdapter $Adapter -Stateful $false -Action $rule.Action -Direction $rule.Direction -Weight $rule.Weight @match
    }
    $now = Get-VMNetworkAdapter -VM $Vm
    $guards = "$($now.MacAddressSpoofing) $($now.DhcpGuard) $($now.RouterGuard)"
    $made = @(Get-VMNetworkAdapterExtendedAcl -VMNetworkAdapter $now | ForEach-Object { "$($_.Direction) $($_.Weight) $($_.Action)" })
    $missing = @($Rules | Where-Object { $made -notcontains "$($_.Direction) $($_.Weight) $($_.Action)" })
    if ($guards -ne 'Off On On' -or $missing.Count -gt 0) {
        throw "Hyper-V accepted the rules that wall the VM off but does not hold them all ($($missing.Count) of $($Rules.Count) are missing)."
    }
}

# The address:port pairs, with addresses in place of names.
function Resolve-Endpoint($Endpoints) {
    foreach ($endpoint in $Endpoints) {
        $name, $port = $endpoint -split ':'
        try {
            $addresses = @([System.Net.Dns]::GetHostAddresses($name) | Where-Object { [string]$_.AddressFamily -eq 'InterNetwork' })
        } catch {
            throw "The address of $name, which VMs must reach, could not be found: $(Get-OneLine $_)"
        }
        $addresses | ForEach-Object { "${_}:$port" }
    }
}

# Sets up the VM's network. Returns the address at which it reaches the pool, and
# the key-values by which the guest learns its own address, if it has a fixed one.
function Set-Network($Vm, $Request) {
    $adapter = Get-VMNetworkAdapter -VM $Vm
    Set-VMNetworkAdapter -VMNetworkAdapter $adapter -StaticMacAddress $Request.macAddress | Out-Null

    $onSwitch = Get-SwitchAddress $Request.switch
    $hostAddress = ''
    $isOwn = $false
    if ($null -ne $onSwitch) {
        $hostAddress = [string]$onSwitch.IPAddress
        $isOwn = Test-OwnSwitch $hostAddress
    }
    $poolAddress = [string]$Request.host
    if ($poolAddress -eq '') {
        $poolAddress = $hostAddress
    }
    if ($poolAddress -eq '') {
        throw "This host has no IPv4 address on the switch '$($Request.switch)'. Give it one, or set ORCHESTRATOR_IP."
    }
    $isWalledOff = $Request.isolation -eq 'on' -or ($Request.isolation -eq 'auto' -and $isOwn)
    $dns = @()
    if ($isOwn -or $isWalledOff) {
        $dns = @(Get-DnsServer $hostAddress)
    }
    # A switch of the pool's own has no DHCP server, unless the host has that role:
    # then the VMs get their addresses from it.
    $values = @{}
    $vmAddress = ''
    $dhcp = @(Get-Service -Name DHCPServer -ErrorAction SilentlyContinue | Where-Object { [string]$_.Status -eq 'Running' })
    if ($isOwn -and $dhcp.Count -eq 0) {
        if ($dns.Count -eq 0) {
            throw 'This host has no IPv4 DNS server that VMs could use. Set one on its network adapter.'
        }
        $vmAddress = Get-SlotAddress $onSwitch ([int64]$Request.slot)
        $values = @{
            RunnerPoolAddress      = $vmAddress
            RunnerPoolPrefixLength = [string]$onSwitch.PrefixLength
            RunnerPoolGateway      = $hostAddress
            RunnerPoolDnsServers   = $dns -join ','
        }
    }
    if ($isWalledOff) {
        $dhcpServer = ''
        if ($vmAddress -eq '') {
            $dns = @(@($hostAddress) + $dns | Where-Object { $_ } | Select-Object -Unique)
            # On an internal switch only the host can be the DHCP server.
            $dhcpServer = '0.0.0.0/0'
            if ([string](Get-VMSwitch -Name $Request.switch).SwitchType -eq 'Internal') {
                $dhcpServer = $hostAddress
            }
        }
        $reachable = @("${poolAddress}:$($Request.port)") + @(Resolve-Endpoint $Request.allow)
        Set-Wall $Vm $adapter @(Get-WallRule $reachable $dns $dhcpServer ($WalledOff + @(Get-HostPrefix)) $vmAddress) | Out-Null
    }
    return @{ PoolAddress = $poolAddress; Values = $values }
}

# Attaches the values to the VM, and reads them back to be sure that they took.
function Add-KvpItem($Vm, $Values) {
    $id = ([string]$Vm.Id).ToUpperInvariant()
    $system = Get-HyperVInstance 'Msvm_ComputerSystem' "Name = '$id'"
    if ($null -eq $system) {
        throw "Hyper-V's management interface does not know the new VM ($id)."
    }
    Invoke-KvpMethod 'AddKvpItems' $system $Values 30
    $stored = (Get-HostValue)[$id]
    foreach ($name in $Values.Keys) {
        if ($null -eq $stored -or -not $stored.ContainsKey($name) -or $stored[$name] -cne $Values[$name]) {
            throw "Hyper-V accepted the key-value item $name but does not hold it."
        }
    }
}

function Get-SystemSetting($Vm) {
    $id = ([string]$Vm.Id).ToUpperInvariant()
    # Without those of checkpoints.
    $filter = "VirtualSystemIdentifier = '$id' AND VirtualSystemType = 'Microsoft:Hyper-V:System:Realized'"
    return (Get-HyperVInstance 'Msvm_VirtualSystemSettingData' $filter)
}

# A VM whose worker process dies stays off: by default Hyper-V would start it
# again, with a disk that has been used. Set-VM has no parameter for that.
# https://learn.microsoft.com/en-us/windows/win32/hyperv_v2/msvm-virtualsystemsettingdata
function Disable-AutomaticRecovery($Vm) {
    $none = [uint16]2
    $setting = Get-SystemSetting $Vm
    if ($null -eq $setting) {
        throw 'Hyper-V does not know the settings of the new VM.'
    }
    $setting.CimInstanceProperties['AutomaticRecoveryAction'].Value = $none
    Invoke-ManagementService 'ModifySystemSettings' @{ SystemSettings = (ConvertTo-EmbeddedInstance $setting) } 30
    if ((Get-SystemSetting $Vm).AutomaticRecoveryAction -ne $none) {
        throw 'Hyper-V accepted that the VM is not to be started again after a failure, but does not hold it.'
    }
}

function New-RunnerVM($Request) {
    $template = [string]$Request.templatePath
    $disk = [string]$Request.diskPath

    $script:step = 'template'
    if (-not (Test-Path -LiteralPath $template -PathType Leaf)) {
        throw "The template '$template' does not exist. Build it with Packer, or set VM_TEMPLATE_PATH."
    }
    try {
        $format = [string](Get-VHD -Path $template).VhdFormat
    } catch {
        throw "The template '$template' cannot be read as a VHDX: $(Get-OneLine $_)"
    }
    if ($format -ne 'VHDX' -or [System.IO.Path]::GetExtension($template) -ne '.vhdx') {
        throw "The template '$template' is not a VHDX. Convert it with Convert-VHD."
    }
    # Whatever writes to the template breaks every disk that is based on it.
    $templateFile = Get-Item -LiteralPath $template
    if (-not $templateFile.IsReadOnly) {
        $templateFile.IsReadOnly = $true
    }

    $script:step = 'disk'
    $folder = [System.IO.Path]::GetDirectoryName($disk)
    if (-not (Test-Path -LiteralPath $folder -PathType Container)) {
        New-Item -Path $folder -ItemType Directory -Force
    }
    if (Test-Path -LiteralPath $disk) {
        throw "The disk '$disk' exists already, and a disk is never used twice."
    }
    $script:diskIsOurs = $true
    if ($Request.diskMode -eq 'copy') {
        Copy-Item -LiteralPath $template -Destination $disk
        (Get-Item -LiteralPath $disk).IsReadOnly = $false
    } else {
        try {
            Clear-TemplateAccess $template
        } catch {
            $script:warning = "Entries of VMs that are gone could not be removed from the access list of the template, which no VM can use once it is full: $(Get-OneLine $_)"
        }
        New-VHD -Path $disk -ParentPath $template -Differencing
    }

    $script:step = 'vm'
    $switches = @(Get-VMSwitch | ForEach-Object { [string]$_.Name })
    if ($switches -notcontains $Request.switch) {
        $known = 'has none'
        if ($switches.Count -gt 0) {
            $known = 'has: ' + ($switches -join ', ')
        }
        throw "There is no virtual switch '$($Request.switch)'; this host $known. Set VM_SWITCH to one that exists."
    }
    $memory = [int64]$Request.memoryMB * $MiB
    $script:vm = New-VM -Name $Request.name -Generation 2 -MemoryStartupBytes $memory -VHDPath $disk -BootDevice VHD -SwitchName $Request.switch

    # As early as can be: a pool that finds the VM must see whose it is.
    $script:step = 'notes'
    Set-VM -VM $script:vm -Notes $Request.notes

    $script:step = 'settings'
    # Off when the host shuts down: a job that was cut off cannot go on after
    # the host's restart, and saving would reserve a file of the memory's size.
    # The next start of the pool finds the VM off and replaces it.
    Set-VM -VM $script:vm -CheckpointType Disabled -AutomaticCheckpointsEnabled $false -AutomaticStartAction Nothing -AutomaticStopAction TurnOff
    Disable-AutomaticRecovery $script:vm
    if ([int64]$Request.memoryMaximumMB -gt 0) {
        $most = [int64]$Request.memoryMaximumMB * $MiB
        Set-VMMemory -VM $script:vm -DynamicMemoryEnabled $true -StartupBytes $memory -MinimumBytes $memory -MaximumBytes $most
    } else {
        Set-VMMemory -VM $script:vm -DynamicMemoryEnabled $false -StartupBytes $memory
    }
    Set-VMProcessor -VM $script:vm -Count $Request.cpuCount -ExposeVirtualizationExtensions ([bool]$Request.nestedVirtualization)
    if ($Request.secureBootTemplate -eq 'off') {
        Set-VMFirmware -VM $script:vm -EnableSecureBoot Off
    } else {
        Set-VMFirmware -VM $script:vm -EnableSecureBoot On -SecureBootTemplate $Request.secureBootTemplate
    }
    $kvp = @(Get-VMIntegrationService -VM $script:vm | Where-Object { $_.Id -like "*$KvpServiceId*" })
    if ($kvp.Count -eq 0) {
        throw 'The new VM has no key-value pair exchange service.'
    }
    if (-not $kvp[0].Enabled) {
        Enable-VMIntegrationService -VMIntegrationService $kvp[0]
    }

    $script:step = 'network'
    $network = Set-Network $script:vm $Request

    $script:step = 'key-values'
    $address = [string]$network.PoolAddress
    if ($address.Contains(':')) {
        $address = "[$address]"
    }
    $script:url = "http://${address}:$($Request.port)"
    $values = $network.Values
    $values['RunnerPoolUrl'] = $script:url
    $values['RunnerPoolVmName'] = [string]$Request.name
    $values['RunnerPoolVmSecret'] = [string]$Request.secret
    # A value may have 1,023 characters.
    $jitConfig = [string]$Request.jitConfig
    if ($jitConfig -ne '') {
        $parts = 0
        for ($start = 0; $start -lt $jitConfig.Length; $start += 900) {
            $parts++
            $values["RunnerPoolJitConfig$parts"] = $jitConfig.Substring($start, [Math]::Min(900, $jitConfig.Length - $start))
        }
        $values['RunnerPoolJitConfigParts'] = [string]$parts
    }
    Add-KvpItem $script:vm $values

    $script:step = 'start'
    Start-VM -VM $script:vm
}

# Removes what New-RunnerVM made so far.
function Undo-RunnerVM($Request) {
    $made = @()
    if ($null -ne $script:vm) {
        $made = @(Get-EveryVM | Where-Object { $_.Id -eq $script:vm.Id })
    } elseif ($script:diskIsOurs) {
        # New-VM can fail after it made the VM. The disk tells.
        $made = @(Get-EveryVM | Where-Object { @($_.HardDrives | ForEach-Object { $_.Path }) -contains $Request.diskPath })
    }
    foreach ($vm in $made) {
        if ([string]$vm.State -ne 'Off') {
            Stop-VM -VM $vm -TurnOff -Force
        }
        Remove-VM -VM $vm -Force
    }
    if ($script:diskIsOurs) {
        $left = 20
        while (Test-Path -LiteralPath $Request.diskPath) {
            try {
                Remove-Item -LiteralPath $Request.diskPath -Force
            } catch {
                # Hyper-V lets go of a disk a moment after its VM is gone.
                $left = $left - 1
                if ($left -eq 0) {
                    throw
                }
                Start-Sleep -Milliseconds 500
            }
        }
    }
}

$request = $null
try {
    $request = Read-Request
    # Whatever the cmdlets print, nothing but the answer may reach standard output.
    New-RunnerVM $request *> $null
    $answer = [ordered]@{ ok = $true; url = $script:url }
    if ($script:warning -ne '') {
        $answer['warning'] = $script:warning
    }
} catch {
    $problem = Get-OneLine $_
    try {
        if ($null -ne $request) {
            Undo-RunnerVM $request *> $null
        }
    } catch {
        $problem = "$problem (what was made could not be removed: $(Get-OneLine $_))"
    }
    $answer = [ordered]@{ ok = $false; error = $problem; at = $script:step }
}
Write-Answer $answer
