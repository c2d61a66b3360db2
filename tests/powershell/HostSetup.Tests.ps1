Set-StrictMode -Version Latest

BeforeAll {
    . (Join-Path -Path $PSScriptRoot -ChildPath 'standins.ps1')
    Import-StandIn @(
        'Get-CimInstance', 'Get-Item', 'Set-ItemProperty', 'Start-Sleep', 'Get-AuthenticodeSignature', 'Start-Process', 'Expand-Archive'
        'Get-VM', 'New-VM', 'Set-VM', 'Set-VMProcessor', 'Set-VMFirmware', 'Start-VM', 'Stop-VM', 'Remove-VM'
        'Get-VMHardDiskDrive', 'Get-VHD', 'New-VHD', 'Mount-VHD', 'Optimize-VHD', 'Dismount-VHD'
        'Get-VMSwitch', 'New-VMSwitch', 'Get-VMNetworkAdapter', 'Get-NetAdapter', 'Get-NetIPAddress', 'New-NetIPAddress'
        'Get-NetRoute', 'Get-NetNat', 'New-NetNat', 'Get-DnsClientServerAddress', 'Get-NetIPInterface'
        'Get-NetFirewallRule', 'New-NetFirewallRule', 'Remove-NetFirewallRule', 'Get-MpPreference', 'Add-MpPreference'
    )
    function global:dism.exe {
        $global:LASTEXITCODE = $global:StandIn.Dism[0]
        $global:StandIn.Dism = @($global:StandIn.Dism | Select-Object -Skip 1) + 0
        'State : ' + $global:StandIn.Feature
    }
    function global:icacls.exe {
        $global:StandIn.Calls.Add("icacls.exe $args")
        $global:LASTEXITCODE = [int]$global:StandIn.Faults['icacls.exe']
    }
    # In French, as on a French Windows.
    function global:powercfg.exe {
        $global:LASTEXITCODE = 0
        if ($args[0] -eq '/query') {
            'Parametres possibles maximum : 0xffffffff'
            "Index actuel du parametre de courant alternatif : 0x{0:x8}" -f $global:StandIn.Sleep[$args[3]]
            'Index actuel du parametre de courant continu : 0x00000384'
        } else {
            $global:StandIn.Calls.Add("powercfg.exe $args")
            $global:StandIn.Sleep[@{ 'standby-timeout-ac' = 'STANDBYIDLE'; 'hibernate-timeout-ac' = 'HIBERNATEIDLE' }[$args[1]]] = $args[2]
        }
    }
    function global:Invoke-WebRequest {
        $global:StandIn.Calls.Add('Invoke-WebRequest')
        & $global:StandIn.Answers['Invoke-WebRequest'] ($args -join ' ')
    }
    # Those in which installers look for their folders are Windows' own, which other tests need.
    $programs = 'ProgramFiles', 'ProgramFiles(x86)', 'USERPROFILE'
    $variables = @('VM_TEMPLATE_PATH', 'VM_STORAGE_PATH', 'VM_SWITCH', 'Path', 'PATH') + $programs
    $before = @{}
    $variables | ForEach-Object { $before[$_] = [Environment]::GetEnvironmentVariable($_) }
    Enter-AdministratorRole

    # A folder of the pool with these of its files.
    function New-PoolFolder([string[]]$File) {
        $folder = Join-Path -Path $TestDrive -ChildPath ([guid]::NewGuid())
        New-Item -ItemType Directory -Path "$folder/packer" | Out-Null
        foreach ($one in @($File) + 'packer/common.ps1') { Copy-Item -LiteralPath "$Root/$one" -Destination "$folder/$one" }
        $env:VM_TEMPLATE_PATH = "$folder/templates/t.vhdx"
        $env:VM_STORAGE_PATH = "$folder/storage"
        return $folder
    }

    # A host with these virtual switches, whose adapters an administrator has renamed, and an address on each.
    function Set-HostNetwork([hashtable]$Switch) {
        $global:StandIn.Switches = [System.Collections.Generic.List[string]]::new()
        $global:StandIn.Addresses = [System.Collections.Generic.List[object]]::new()
        $global:StandIn.Nats = [System.Collections.Generic.List[object]]::new()
        $global:StandIn.Rules = @{}
        $global:StandIn.Routes = @('0.0.0.0/0', '192.0.2.0/24')
        $global:StandIn.Addresses.Add([pscustomobject]@{ InterfaceIndex = 1; IPAddress = '192.0.2.7'; PrefixLength = 24 })
        foreach ($name in @($Switch.Keys)) {
            $global:StandIn.Switches.Add($name)
            $address, $length = $Switch[$name].Split('/')
            $global:StandIn.Addresses.Add([pscustomobject]@{ InterfaceIndex = 10 + $global:StandIn.Switches.Count; IPAddress = $address; PrefixLength = $length })
        }
        $global:StandIn.Answers['Get-VMSwitch'] = { $global:StandIn.Switches | ForEach-Object { [pscustomobject]@{ Name = $_ } } }
        $global:StandIn.Answers['New-VMSwitch'] = { param($Bound) $global:StandIn.Switches.Add($Bound.Name) }
        $global:StandIn.Answers['Get-VMNetworkAdapter'] = {
            for ($i = 0; $i -lt $global:StandIn.Switches.Count; $i++) {
                [pscustomobject]@{ SwitchName = $global:StandIn.Switches[$i]; DeviceId = "{$($i + 11)}" }
            }
        }
        $global:StandIn.Answers['Get-NetAdapter'] = {
            1..20 | ForEach-Object { [pscustomobject]@{ ifIndex = $_; DeviceID = "{$_}"; Name = "Renamed $_" } }
        }
        $global:StandIn.Answers['Get-NetIPAddress'] = { $global:StandIn.Addresses }
        $global:StandIn.Answers['New-NetIPAddress'] = {
            param($Bound)
            $global:StandIn.Addresses.Add([pscustomobject]@{ InterfaceIndex = $Bound.InterfaceIndex; IPAddress = $Bound.IPAddress; PrefixLength = $Bound.PrefixLength })
        }
        $global:StandIn.Answers['Get-NetRoute'] = { $global:StandIn.Routes | ForEach-Object { [pscustomobject]@{ DestinationPrefix = $_ } } }
        $global:StandIn.Answers['Get-NetNat'] = { $global:StandIn.Nats }
        $global:StandIn.Answers['New-NetNat'] = {
            param($Bound)
            $global:StandIn.Nats.Add([pscustomobject]@{ Name = $Bound.Name; InternalIPInterfaceAddressPrefix = $Bound.InternalIPInterfaceAddressPrefix })
        }
    }

    function Get-ChangingCall {
        return @($global:StandIn.Calls | Where-Object { $_ -match '^(New|Set|Add|Remove|Start|Stop)-|^powercfg' -and $_ -notmatch '^Start-Sleep|-NetFirewallRule' })
    }
}

AfterAll {
    Exit-AdministratorRole
    $variables | ForEach-Object { [Environment]::SetEnvironmentVariable($_, $before[$_]) }
    Remove-Module -Name StandIns
    'dism.exe', 'icacls.exe', 'powercfg.exe', 'Invoke-WebRequest' | ForEach-Object { Remove-Item -Path "function:global:$_" }
    Remove-Variable -Name StandIn -Scope Global
}

Describe 'common.ps1' {
    BeforeEach {
        Reset-StandIn
        $folder = New-PoolFolder
        . "$folder/packer/common.ps1"
    }

    It 'reads a setting as the pool does: <Text>' -ForEach @(
        @{ Text = 'VM_CPU_COUNT=3'; Value = '3' }
        @{ Text = 'export VM_CPU_COUNT = 3 # text'; Value = '3' }
        @{ Text = 'VM_CPU_COUNT="a # b" # text'; Value = 'a # b' }
        @{ Text = "VM_CPU_COUNT='a `"b'"; Value = 'a "b' }
        @{ Text = 'VM_CPU_COUNT=a#b'; Value = 'a#b' }
        @{ Text = 'VM_CPU_COUNT= # text'; Value = 'by default' }
        @{ Text = 'VM_CPU_COUNT=""'; Value = 'by default' }
        @{ Text = 'vm_cpu_count=3'; Value = 'by default' }
        @{ Text = '# VM_CPU_COUNT=3'; Value = 'by default' }
        @{ Text = 'MY_VM_CPU_COUNT=3'; Value = 'by default' }
        @{ Text = "VM_CPU_COUNT=1`nVM_CPU_COUNT=3"; Value = '3' }
        @{ Text = "VM_CPU_COUNT=3`nVM_CPU_COUNT="; Value = 'by default' }
    ) {
        [System.IO.File]::WriteAllText("$folder/.env", "$Text`n")
        Get-Setting -Name 'VM_CPU_COUNT' -Default 'by default' | Should -Be $Value
    }

    It 'takes a setting of the environment first' {
        [System.IO.File]::WriteAllText("$folder/.env", "VM_SWITCH=file`n")
        $env:VM_SWITCH = 'environment'
        Get-Setting -Name 'VM_SWITCH' | Should -Be 'environment'
        $env:VM_SWITCH = ' '
        Get-Setting -Name 'VM_SWITCH' | Should -Be 'file'
        $env:VM_SWITCH = ''
    }

    It 'writes a setting and keeps the other lines' {
        [System.IO.File]::WriteAllText("$folder/.env", "A=1 # x`nVM_SWITCH=old`nvm_switch=other`n")
        Set-Setting -Name 'VM_SWITCH' -Value 'O''Brien # 2'
        [System.IO.File]::ReadAllLines("$folder/.env") | Should -Be 'A=1 # x', 'vm_switch=other', 'VM_SWITCH="O''Brien # 2"'
        Get-Setting -Name 'VM_SWITCH' | Should -Be 'O''Brien # 2'
    }

    It 'knows the network of an address, and whether two networks overlap' {
        Get-Prefix '172.30.1.7' 23 | Should -Be '172.30.0.0/23'
        Get-Prefix '255.255.255.255' 8 | Should -Be '255.0.0.0/8'
        Test-PrefixOverlap '172.30.1.0/24' '172.16.0.0/12' | Should -BeTrue
        Test-PrefixOverlap '172.16.0.0/12' '172.30.1.0/24' | Should -BeTrue
        Test-PrefixOverlap '172.30.0.0/24' '172.30.1.0/24' | Should -BeFalse
        Test-PrefixOverlap '0.0.0.0/0' '203.0.113.0/24' | Should -BeTrue
    }

    It 'tries a download again, and gives up in the end' {
        $global:StandIn.Fails = 2
        $global:StandIn.Answers['Invoke-WebRequest'] = {
            if ($global:StandIn.Fails-- -gt 0) { throw 'The network failed.' }
            [System.IO.File]::WriteAllText("$folder/x", 'x')
        }
        Save-Download -Uri 'https://example.com/x' -Path "$folder/x" -Sha256 (Get-FileHash -InputStream ([System.IO.MemoryStream]::new([byte[]]@(120)))).Hash
        @($global:StandIn.Calls -eq 'Invoke-WebRequest').Count | Should -Be 3
        $global:StandIn.Fails = 99
        { Save-Download -Uri 'https://example.com/x' -Path "$folder/x" -Sha256 'A' } | Should -Throw 'The network failed.'
    }

    It 'refuses a download with another SHA-256, or <Status> by <Subject>' -ForEach @(
        @{ Status = 'NotSigned'; Subject = ''; Says = '*not validly signed (NotSigned)*' }
        @{ Status = 'Valid'; Subject = 'CN=x, O=Somebody'; Says = '*signed by CN=x, O=Somebody, not by Good Company*' }
        @{ Status = 'Valid'; Subject = 'CN=x, O=Good Company'; Says = '' }
    ) {
        $global:StandIn.Answers['Invoke-WebRequest'] = { [System.IO.File]::WriteAllText("$folder/x", 'x') }
        { Save-Download -Uri 'https://example.com/x' -Path "$folder/x" -Sha256 'A' } | Should -Throw 'The SHA-256 of*'
        $signature = [pscustomobject]@{ Status = $Status; SignerCertificate = [pscustomobject]@{ Subject = $Subject } }
        $global:StandIn.Answers['Get-AuthenticodeSignature'] = { $signature }
        $download = { Save-Download -Uri 'https://example.com/x' -Path "$folder/x" -Signer 'Good Company' }
        if ($Says) { $download | Should -Throw $Says } else { & $download }
    }
}

Describe 'bootstrap.ps1' {
    BeforeEach {
        Reset-StandIn
        $folder = New-PoolFolder 'bootstrap.ps1', '.env.example'
        $env:VM_SWITCH = ''
        $env:Path = 'x'
        $global:StandIn.Dism = @(0)
        $global:StandIn.Feature = 'Enabled'
        $global:StandIn.Sleep = @{ STANDBYIDLE = 1800; HIBERNATEIDLE = 0 }
        $global:StandIn.Exclusions = @()
        $global:StandIn.ProductType = 3
        $global:StandIn.Key = [pscustomobject]@{ Path = 'C:\New' }
        Add-Member -InputObject $global:StandIn.Key -MemberType ScriptMethod -Name 'GetValue' -Value { param($Name, $Default, $Options) $this.Path }
        $global:StandIn.Answers = @{
            'Get-Item'               = { $global:StandIn.Key }
            'Get-CimInstance'        = { [pscustomobject]@{ ProductType = $global:StandIn.ProductType } }
            'Get-MpPreference'       = { [pscustomobject]@{ ExclusionPath = $global:StandIn.Exclusions } }
            'Add-MpPreference'       = { param($Bound) $global:StandIn.Exclusions += $Bound.ExclusionPath }
            'Get-NetFirewallRule'    = { $global:StandIn.Rules.Values }
            'New-NetFirewallRule'    = {
                param($Bound)
                if ($global:StandIn.Rules.ContainsKey($Bound.Name)) { throw 'Cannot create a file when that file already exists.' }
                $global:StandIn.Rules[$Bound.Name] = [pscustomobject]$Bound
            }
            'Remove-NetFirewallRule' = { param($Bound) $global:StandIn.Rules.Remove([string]$Bound.Name) }
        }
        Set-HostNetwork @{}
        $bootstrap = { Invoke-Script "$folder/bootstrap.ps1" @{ HostOnly = $true } }
        $setting = { param($Name) @([System.IO.File]::ReadAllLines("$folder/.env") | Where-Object { $_ -cmatch "^$Name=" }) }
    }
    AfterEach {
        [Environment]::SetEnvironmentVariable('Path', $before.Path)
        $env:PATH = $before.PATH
    }

    It 'asks for the reboot that a step wants though a later one fails, and finds what the registry has in PATH' {
        $global:StandIn.Dism = 0, 3010, 87
        $global:StandIn.Feature = 'Disabled'
        $result = & $bootstrap
        $result.Thrown | Should -Be ''
        $result.ExitCode | Should -Be 1
        $result.Output | Should -BeLike '*REBOOT*'
        $env:Path | Should -Be 'x;C:\New'
    }

    It 'leaves switch and firewall alone until Hyper-V has started' {
        $global:StandIn.Feature = 'Enable Pending'
        $result = & $bootstrap
        $result.ExitCode | Should -Be 0
        $result.Output | Should -BeLike '*REBOOT this machine now*'
        @($global:StandIn.Calls | Where-Object { $_ -like 'Get-VMSwitch*' -or $_ -like '*FirewallRule*' }).Count | Should -Be 0
    }

    It 'makes a switch with NAT on Windows Server, and lets its network alone reach the program' {
        $result = & $bootstrap
        $result.ExitCode | Should -Be 0 -Because $result.Output
        $global:StandIn.Switches | Should -Be 'Runners'
        $global:StandIn.Addresses[-1] | Should -BeLike '*InterfaceIndex=11; IPAddress=172.30.0.1; PrefixLength=23*'
        $global:StandIn.Nats[0].InternalIPInterfaceAddressPrefix | Should -Be '172.30.0.0/23'
        & $setting 'VM_SWITCH' | Should -Be 'VM_SWITCH="Runners"'
        & $setting 'WEBHOOK_SECRET' | Should -Match '=\S{40,}$'
        $rule = $global:StandIn.Rules['hyperv-runner-pool']
        $rule.RemoteAddress | Should -Be '172.30.0.0/23'
        $rule.LocalPort | Should -Be '8080'
        $rule.Program | Should -BeLike "$folder*hyperv-runner-pool.exe"
        $rule.PSObject.Properties.Name | Should -Not -Contain 'InterfaceAlias'
        # Windows Server neither sleeps nor scans disks of VMs.
        @($global:StandIn.Calls | Where-Object { $_ -match 'powercfg|-Mp' }).Count | Should -Be 0
    }

    It 'lets ordinary users read its folder but not change it, and not read .env' {
        (& $bootstrap).ExitCode | Should -Be 0
        $calls = @($global:StandIn.Calls -like 'icacls.exe *')
        $calls[0] | Should -Match ([regex]::Escape("icacls.exe $folder /inheritance:r /grant:r *S-1-5-18:(OI)(CI)F *S-1-5-32-544:(OI)(CI)F *") + '\S+:\(OI\)\(CI\)F \*S-1-5-32-545:\(OI\)\(CI\)RX /Q')
        $calls[1] | Should -Match ([regex]::Escape("icacls.exe $([System.IO.Path]::GetFullPath("$folder/.env")) /inheritance:r /grant:r *S-1-5-18:F *S-1-5-32-544:F *") + '\S+:F /Q')
    }

    It 'says so when access rights cannot be narrowed' {
        $global:StandIn.Faults['icacls.exe'] = 5
        $result = & $bootstrap
        $result.ExitCode | Should -Be 0
        $result.Output | Should -BeLike "*The access rights of $folder could not be narrowed (icacls.exe: exit code 5)*"
        $result.Output | Should -BeLike '*.env could not be narrowed*It will hold secrets*'
    }

    It 'changes nothing when it runs again, and names the program that was built since' {
        & $bootstrap
        $written = [System.IO.File]::ReadAllText("$folder/.env")
        $global:StandIn.Calls.Clear()
        [System.IO.File]::WriteAllText("$folder/hyperv-runner-pool.exe", '')
        $result = & $bootstrap
        $result.ExitCode | Should -Be 0
        Get-ChangingCall | Should -BeNullOrEmpty
        [System.IO.File]::ReadAllText("$folder/.env") | Should -Be $written
        $global:StandIn.Rules.Count | Should -Be 1
        $global:StandIn.Rules['hyperv-runner-pool'].Program | Should -Be ([System.IO.Path]::GetFullPath("$folder/hyperv-runner-pool.exe"))
    }

    It 'ends when <_> fails, and finishes the work when it runs again' -ForEach @(
        'Get-CimInstance', 'Get-VMSwitch', 'New-VMSwitch', 'Get-VMNetworkAdapter', 'Get-NetAdapter', 'Get-NetIPAddress', 'New-NetIPAddress'
        'Get-NetRoute', 'Get-NetNat', 'New-NetNat', 'New-NetFirewallRule'
    ) {
        $global:StandIn.Faults[$_] = 1
        $result = & $bootstrap
        $result.ExitCode | Should -Be 1
        $result.Output | Should -BeLike "*$_ failed, as it was told to*"
        $result = & $bootstrap
        $result.ExitCode | Should -Be 0 -Because $result.Output
        $global:StandIn.Switches | Should -Be 'Runners'
        $global:StandIn.Nats[0].InternalIPInterfaceAddressPrefix | Should -Be '172.30.0.0/23'
        @($global:StandIn.Addresses | Where-Object { $_.IPAddress -eq '172.30.0.1' }).Count | Should -Be 1
        $global:StandIn.Rules['hyperv-runner-pool'].RemoteAddress | Should -Be '172.30.0.0/23'
    }

    It 'ends when Remove-NetFirewallRule fails' {
        & $bootstrap
        $global:StandIn.Faults['Remove-NetFirewallRule'] = 1
        (& $bootstrap).ExitCode | Should -Be 1
    }

    It 'names another NAT, and makes nothing' {
        $global:StandIn.Nats.Add([pscustomobject]@{ Name = 'Lab'; InternalIPInterfaceAddressPrefix = '192.168.7.0/24' })
        $result = & $bootstrap
        $result.ExitCode | Should -Be 1
        $result.Output | Should -BeLike "*The NAT 'Lab' for 192.168.7.0/24 is in the way*"
        Get-ChangingCall | Should -BeNullOrEmpty
        & $setting 'VM_SWITCH' | Should -BeNullOrEmpty
    }

    It 'names Docker''s network, and makes nothing' {
        Set-HostNetwork @{ nat = '172.18.0.1/20' }
        $result = & $bootstrap
        $result.ExitCode | Should -Be 1
        $result.Output | Should -BeLike "*Docker's network 'nat' is in the way*"
        Get-ChangingCall | Should -BeNullOrEmpty
    }

    It 'takes a network that the host neither has nor routes' {
        $global:StandIn.Routes = '0.0.0.0/0', '172.16.0.0/12'
        $global:StandIn.Addresses.Add([pscustomobject]@{ InterfaceIndex = 2; IPAddress = '10.213.1.9'; PrefixLength = 24 })
        (& $bootstrap).ExitCode | Should -Be 0
        $global:StandIn.Nats[0].InternalIPInterfaceAddressPrefix | Should -Be '10.86.214.0/23'
    }

    It 'says so when no private network is free' {
        $global:StandIn.Routes = '10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16'
        $result = & $bootstrap
        $result.ExitCode | Should -Be 1
        $result.Output | Should -BeLike '*None of the private networks*'
        $global:StandIn.Nats.Count | Should -Be 0
    }

    It 'keeps the switch of VM_SWITCH, also behind another NAT' {
        Set-HostNetwork @{ Lab = '192.168.7.1/24' }
        $global:StandIn.Nats.Add([pscustomobject]@{ Name = 'Lab'; InternalIPInterfaceAddressPrefix = '192.168.7.0/24' })
        [System.IO.File]::WriteAllText("$folder/.env", "VM_SWITCH=Lab`nPORT=9000`n")
        (& $bootstrap).ExitCode | Should -Be 0
        Get-ChangingCall | Should -BeNullOrEmpty
        $global:StandIn.Rules['hyperv-runner-pool'].RemoteAddress | Should -Be '192.168.7.0/24'
        $global:StandIn.Rules['hyperv-runner-pool'].LocalPort | Should -Be '9000'
    }

    It 'names a VM_SWITCH that is not there' {
        Set-HostNetwork @{ Lan = '192.168.7.1/24' }
        [System.IO.File]::WriteAllText("$folder/.env", "VM_SWITCH=Lam`n")
        $result = & $bootstrap
        $result.ExitCode | Should -Be 1
        $result.Output | Should -BeLike "*VM_SWITCH names the virtual switch 'Lam', which is not there*(Lan)*"
    }

    It 'keeps Windows 11 awake, tells Defender, and lets every address of the Default Switch in' {
        $global:StandIn.ProductType = 1
        Set-HostNetwork @{ 'Default Switch' = '172.28.144.1/20' }
        $result = & $bootstrap
        $result.ExitCode | Should -Be 0 -Because $result.Output
        $templates, $storage = 'templates', 'storage' | ForEach-Object { [System.IO.Path]::GetFullPath("$folder/$_") }
        Get-ChangingCall | Should -Be 'powercfg.exe /change standby-timeout-ac 0', "Add-MpPreference -ExclusionPath $templates $storage"
        $result.Output | Should -BeLike "*Defender no longer scans $templates and $storage*"
        $global:StandIn.Rules['hyperv-runner-pool'].RemoteAddress | Should -Be '172.16.0.0/12'
        & $setting 'VM_SWITCH' | Should -BeNullOrEmpty

        $global:StandIn.Calls.Clear()
        (& $bootstrap).ExitCode | Should -Be 0
        Get-ChangingCall | Should -BeNullOrEmpty
    }

    It 'goes on without Defender when <_> fails' -ForEach 'Get-MpPreference', 'Add-MpPreference' {
        $global:StandIn.ProductType = 1
        Set-HostNetwork @{ 'Default Switch' = '172.28.144.1/20' }
        $global:StandIn.Faults[$_] = 1
        $result = & $bootstrap
        $result.ExitCode | Should -Be 0
        $result.Output | Should -BeLike '*If a virus scanner runs here*'
    }

    It 'asks for a reboot while Windows 11 has no Default Switch' {
        $global:StandIn.ProductType = 1
        $result = & $bootstrap
        $result.ExitCode | Should -Be 1
        $result.Output | Should -BeLike "*no virtual switch 'Default Switch'*reboot*"
    }
}

Describe 'bootstrap.ps1, with what builds the pool and its images' {
    BeforeEach {
        Reset-StandIn
        $folder = New-PoolFolder 'bootstrap.ps1', '.env.example', 'Cargo.toml'
        $env:VM_SWITCH = ''
        # No git, cargo or packer is found there.
        $env:Path = ''
        $env:PATH = ''
        $programs | ForEach-Object { [Environment]::SetEnvironmentVariable($_, "$folder/$_") }
        $global:StandIn.Dism = @(0)
        $global:StandIn.Feature = 'Enabled'
        $global:StandIn.ProductType = 3
        $global:StandIn.MachinePath = '%SystemRoot%\system32'
        $global:StandIn.Key = [pscustomobject]@{}
        Add-Member -InputObject $global:StandIn.Key -MemberType ScriptMethod -Name 'GetValue' -Value { param($Name, $Default, $Options) $global:StandIn.MachinePath }
        $global:StandIn.Hash = (Get-FileHash -InputStream ([System.IO.MemoryStream]::new([byte[]]@(120)))).Hash.ToLowerInvariant()
        $global:StandIn.Codes = @{}
        $global:StandIn.Answers = @{
            'Get-Item'                  = { $global:StandIn.Key }
            'Set-ItemProperty'          = { param($Bound) $global:StandIn.MachinePath = $Bound.Value }
            'Get-CimInstance'           = { [pscustomobject]@{ ProductType = $global:StandIn.ProductType } }
            'Get-AuthenticodeSignature' = { [pscustomobject]@{ Status = 'Valid'; SignerCertificate = [pscustomobject]@{ Subject = 'CN=x, O=Microsoft Corporation' } } }
            'Invoke-WebRequest'         = { param($Words) $Words -match '-OutFile:? (?<path>\S+)' | Out-Null; [System.IO.File]::WriteAllText($Matches.path, 'x') }
            'Start-Process'             = {
                param($Bound)
                if ($Bound.FilePath -like '*adksetup.exe') {
                    $path = "$env:ProgramFiles(x86)/Windows Kits\10\Assessment and Deployment Kit\Deployment Tools\amd64\Oscdimg/oscdimg.exe".Replace('\', '/')
                    New-Item -ItemType File -Force -Path $path | Out-Null
                }
                [pscustomobject]@{ ExitCode = [int]$global:StandIn.Codes[[System.IO.Path]::GetFileName($Bound.FilePath)] }
            }
        }
        Set-HostNetwork @{}
        function global:Invoke-RestMethod {
            $address = "$args"
            if ($address -like '*git-for-windows*') {
                [pscustomobject]@{ assets = @([pscustomobject]@{ name = 'Git-2.50.0-64-bit.exe'; browser_download_url = 'https://example.com/git'; digest = "sha256:$($global:StandIn.Hash)" }) }
            } elseif ($address -like '*packer/latest*') {
                [pscustomobject]@{ version = '1.14.0' }
            } elseif ($address -like '*SHA256SUMS*') {
                "$('0' * 64)  packer_1.14.0_linux_amd64.zip`n$($global:StandIn.Hash)  packer_1.14.0_windows_amd64.zip`n"
            } else {
                "$($global:StandIn.Hash) *rustup-init.exe`n"
            }
        }
    }
    AfterEach {
        [Environment]::SetEnvironmentVariable('Path', $before.Path)
        $env:PATH = $before.PATH
        $programs | ForEach-Object { [Environment]::SetEnvironmentVariable($_, $before[$_]) }
        Remove-Item -Path function:global:Invoke-RestMethod
    }

    It 'installs each, with its folder at the end of PATH' {
        $result = Invoke-Script "$folder/bootstrap.ps1"
        $result.ExitCode | Should -Be 0 -Because $result.Output
        $started = @($global:StandIn.Calls -like 'Start-Process*' | ForEach-Object { [regex]::Match($_, '[\w-]+\.exe').Value })
        $started | Should -Be 'git-setup.exe', 'vs_BuildTools.exe', 'rustup-init.exe', 'adksetup.exe'
        $global:StandIn.MachinePath | Should -BeLike "%SystemRoot%\system32;*Git*cmd;*Packer;*Oscdimg"
        $result.Output | Should -BeLike '*PATH has a new folder*'
        $result.Output | Should -BeLike '*No reboot is needed*'
    }

    It 'installs what builds images alone where there is nothing to build the pool from, as in a release' {
        Remove-Item -LiteralPath "$folder/Cargo.toml"
        $result = Invoke-Script "$folder/bootstrap.ps1"
        $result.ExitCode | Should -Be 0 -Because $result.Output
        $started = @($global:StandIn.Calls -like 'Start-Process*' | ForEach-Object { [regex]::Match($_, '[\w-]+\.exe').Value })
        $started | Should -Be 'adksetup.exe'
        $global:StandIn.MachinePath | Should -BeLike '%SystemRoot%\system32;*Packer;*Oscdimg'
    }

    It 'asks for a reboot after an installer that wants one (exit code <_>)' -ForEach 3010, 1641 {
        $global:StandIn.Codes['vs_BuildTools.exe'] = $_
        $result = Invoke-Script "$folder/bootstrap.ps1"
        $result.ExitCode | Should -Be 0 -Because $result.Output
        $result.Output | Should -BeLike '*REBOOT this machine now*'
    }

    It 'ends when <_> fails' -ForEach 'git-setup.exe', 'vs_BuildTools.exe', 'rustup-init.exe', 'adksetup.exe' {
        $global:StandIn.Codes[$_] = 1603
        $result = Invoke-Script "$folder/bootstrap.ps1"
        $result.ExitCode | Should -Be 1
        $result.Output | Should -BeLike "*$_ ended with exit code 1603*"
    }

    It 'runs nothing that is not what was published' {
        $global:StandIn.Hash = '0' * 64
        $result = Invoke-Script "$folder/bootstrap.ps1"
        $result.ExitCode | Should -Be 1
        $result.Output | Should -BeLike '*The SHA-256 of https://example.com/git is*nothing of it was used*'
        @($global:StandIn.Calls -like 'Start-Process*').Count | Should -Be 0
    }
}

Describe 'place-template.ps1' {
    BeforeEach {
        Reset-StandIn
        $env:VM_SWITCH = 'Lan'
        $folder = New-PoolFolder 'packer/place-template.ps1'
        $template = "$folder/templates/t.vhdx"
        $parameters = @{ TemplatePath = $template; StoragePath = "$folder/storage" }
        New-Item -ItemType Directory -Path "$folder/templates", "$folder/storage" | Out-Null
        foreach ($image in 'old', 'new') {
            $disks = "$folder/packer/output-$image/Virtual Hard Disks"
            New-Item -ItemType Directory -Path $disks | Out-Null
            Set-Content -LiteralPath "$disks/$image.vhdx" -Value $image
        }
        (Get-ChildItem -LiteralPath "$folder/packer/output-old/Virtual Hard Disks").LastWriteTimeUtc = [datetime]'2020-01-01'
        $image = "$folder/packer/output-new/Virtual Hard Disks/new.vhdx"

        $global:StandIn.Vm = $null
        $global:StandIn.Guest = @{ RunnerPoolStage = 'waits for the pool''s values' }
        $global:StandIn.Heartbeat = 'OkApplicationsUnknown'
        $global:StandIn.Parents = @{}
        $global:StandIn.Answers = @{
            'Get-VM'           = { if ($global:StandIn.Vm) { $global:StandIn.Vm } }
            'New-VHD'          = {
                param($Bound)
                if (-not $Bound.ParentPath.EndsWith('.vhdx') -or -not [System.IO.File]::Exists($Bound.ParentPath)) { throw 'That is no parent.' }
                [System.IO.File]::WriteAllText($Bound.Path, '')
            }
            'Get-VHD'          = { param($Bound) [pscustomobject]@{ ParentPath = $global:StandIn.Parents[[System.IO.Path]::GetFileName($Bound.Path)] } }
            'New-VM'           = {
                param($Bound)
                $global:StandIn.Vm = [pscustomobject]@{ Id = [guid]::NewGuid(); Name = $Bound.Name; State = 'Off'; Heartbeat = ''; Disk = $Bound.VHDPath }
                $global:StandIn.Vm
            }
            'Start-VM'         = { $global:StandIn.Vm.State = 'Running'; $global:StandIn.Vm.Heartbeat = $global:StandIn.Heartbeat }
            'Stop-VM'          = { $global:StandIn.Vm.State = 'Off' }
            'Remove-VM'        = {
                if ($global:StandIn.Vm.State -ne 'Off') { throw 'The VM is on.' }
                $global:StandIn.Vm = $null
            }
            'Get-CimInstance'  = {
                param($Bound)
                if ($Bound.Filter -cne "SystemName = '$(([string]$global:StandIn.Vm.Id).ToUpperInvariant())'") { return }
                $items = @(foreach ($name in $global:StandIn.Guest.Keys) {
                    '<INSTANCE CLASSNAME="Msvm_KvpExchangeDataItem"><PROPERTY NAME="Caption" TYPE="string"><VALUE>x</VALUE></PROPERTY>' +
                    "<PROPERTY NAME=`"Data`" TYPE=`"string`"><VALUE>$($global:StandIn.Guest[$name])</VALUE></PROPERTY><PROPERTY NAME=`"Description`" TYPE=`"string`"></PROPERTY>" +
                    "<PROPERTY NAME=`"Name`" TYPE=`"string`"><VALUE>$name</VALUE></PROPERTY></INSTANCE>"
                })
                [pscustomobject]@{ GuestExchangeItems = $items }
            }
            'Set-ItemProperty' = { param($Bound) [System.IO.FileInfo]::new($Bound.LiteralPath).IsReadOnly = $Bound.Value }
        }
        $place = { param([hashtable]$More = @{}) Invoke-Script "$folder/packer/place-template.ps1" ($parameters + $More) }
        # Nothing of the check is left.
        $isClean = { $null -eq $global:StandIn.Vm -and @(Get-ChildItem -LiteralPath "$folder/templates" | Where-Object { $_.Name -like '*check*' -or $_.Name -like '*incoming*' }).Count -eq 0 }
    }

    It 'boots a VM of the newest image on the pool''s switch, and places it read-only' {
        $result = & $place
        $result.Thrown | Should -Be ''
        Get-Content -LiteralPath $template | Should -Be 'new'
        [System.IO.FileInfo]::new($template).IsReadOnly | Should -BeTrue
        @($global:StandIn.Calls -like 'Mount-VHD*-NoDriveLetter True*-ReadOnly True').Count | Should -Be 1
        @($global:StandIn.Calls -like 'Dismount-VHD*').Count | Should -Be 1
        @($global:StandIn.Calls -like 'New-VM *-SwitchName Lan*').Count | Should -Be 1
        $result.Output | Should -BeLike "*The guest answers: waits for the pool's values*"
        & $isClean | Should -BeTrue
    }

    It 'says so when there is no image' {
        Remove-Item -Path "$folder/packer/output-*" -Recurse
        (& $place).Thrown | Should -BeLike 'There is no built image*'
    }

    It 'leaves template and image as they are when <_> fails' -ForEach @(
        'Mount-VHD', 'Optimize-VHD', 'Dismount-VHD', 'New-VHD', 'New-VM', 'Set-VM', 'Set-VMProcessor', 'Set-VMFirmware', 'Start-VM', 'Get-CimInstance'
    ) {
        Set-Content -LiteralPath $template -Value 'before'
        $global:StandIn.Faults[$_] = 1
        (& $place).Thrown | Should -BeLike "$_ failed*"
        Get-Content -LiteralPath $template | Should -Be 'before'
        Get-Content -LiteralPath $image | Should -Be 'new'
        [System.IO.FileInfo]::new($image).IsReadOnly | Should -BeFalse
        & $isClean | Should -BeTrue

        (& $place).Thrown | Should -Be ''
        Get-Content -LiteralPath $template | Should -Be 'new'
        Get-Content -LiteralPath "$template.previous" | Should -Be 'before'
    }

    It 'places nothing when <_> fails' -ForEach 'Get-VM', 'Get-VMHardDiskDrive', 'Get-VHD' {
        Set-Content -LiteralPath $template -Value 'before'
        Set-Content -LiteralPath "$folder/storage/a.vhdx" -Value 'vm'
        $global:StandIn.Vm = [pscustomobject]@{ Id = [guid]::NewGuid(); Name = 'runner-1'; State = 'Off'; Heartbeat = '' }
        $global:StandIn.Faults[$_] = 1
        (& $place).Thrown | Should -BeLike "$_ failed*"
        Get-Content -LiteralPath $template | Should -Be 'before'
        [System.IO.File]::Exists($image) | Should -BeTrue
    }

    It 'tries again to remove the VM of the check when <_> fails' -ForEach 'Stop-VM', 'Remove-VM' {
        $global:StandIn.Faults[$_] = 2
        (& $place).Thrown | Should -Be ''
        Get-Content -LiteralPath $template | Should -Be 'new'
        & $isClean | Should -BeTrue
    }

    It 'keeps old templates when it cannot look for disks that depend on them' {
        Set-Content -LiteralPath $template -Value 'before'
        Set-Content -LiteralPath "$folder/templates/t-20250101-000000.vhdx" -Value 'old'
        Set-Content -LiteralPath "$folder/storage/a.vhdx" -Value 'vm'
        $env:VM_TEMPLATE_PATH = ''
        $global:StandIn.Faults['Get-VHD'] = 1
        $result = & $place @{ NewName = $true }
        $result.Thrown | Should -Be ''
        $result.Output | Should -BeLike '*Old templates were not deleted: Get-VHD failed*'
        [System.IO.File]::Exists("$folder/templates/t-20250101-000000.vhdx") | Should -BeTrue
    }

    It 'does not place an image whose guest <Case>' -ForEach @(
        @{ Case = 'says nothing'; Guest = @{ IntegrationServicesVersion = '10.0' }; Heartbeat = 'OkApplicationsUnknown'; Says = 'The runner of the image did not start within 0 seconds (heartbeat: OkApplicationsUnknown, stage: ).' }
        @{ Case = 'starts no runner'; Guest = @{ RunnerPoolStage = 'starting'; RunnerPoolError = 'It broke.' }; Heartbeat = 'OkApplicationsUnknown'; Says = '*did not start within 0 seconds (*, stage: starting). It broke.' }
        @{ Case = 'has no heartbeat'; Guest = @{ RunnerPoolStage = 'x'; RunnerPoolError = 'It broke.' }; Heartbeat = 'NoContact'; Says = '*heartbeat: NoContact, stage: x). It broke.' }
        @{ Case = 'powers off'; Guest = @{}; Heartbeat = 'off'; Says = '*powered off before its runner started.' }
    ) {
        $script = "$folder/packer/place-template.ps1"
        [System.IO.File]::WriteAllText($script, [System.IO.File]::ReadAllText($script).Replace('$BootSeconds = 600', '$BootSeconds = 0'))
        $global:StandIn.Guest = $Guest
        $global:StandIn.Heartbeat = $Heartbeat
        if ($Heartbeat -eq 'off') { $global:StandIn.Answers['Start-VM'] = { } }
        (& $place).Thrown | Should -BeLike $Says
        [System.IO.File]::Exists($template) | Should -BeFalse
        [System.IO.File]::Exists($image) | Should -BeTrue
        & $isClean | Should -BeTrue
    }

    It 'removes what a run that was killed has left of its check' {
        $global:StandIn.Vm = [pscustomobject]@{ Id = [guid]::NewGuid(); Name = 'hyperv-runner-pool-template-check'; State = 'Running'; Heartbeat = '' }
        Set-Content -LiteralPath "$folder/templates/t.incoming.check.vhdx" -Value 'left'
        (& $place).Thrown | Should -Be ''
        & $isClean | Should -BeTrue
    }

    It 'refuses while a disk depends on the template' {
        Set-Content -LiteralPath $template -Value 'before'
        Set-Content -LiteralPath "$folder/storage/a.vhdx" -Value 'vm'
        $global:StandIn.Parents['a.vhdx'] = [System.IO.Path]::GetFullPath($template)
        (& $place).Thrown | Should -BeLike '*is in use by 1 disk(s)*a.vhdx*'
        Get-Content -LiteralPath $template | Should -Be 'before'
        [System.IO.File]::Exists($image) | Should -BeTrue
    }

    It 'places under a new name, and deletes older templates that no disk depends on' {
        $env:VM_TEMPLATE_PATH = ''
        $present = "$folder/templates/t-20260101-000000.vhdx"
        $names = 't.vhdx', 't-20250101-000000.vhdx', 't-20250202-000000.vhdx', 't-20260101-000000.vhdx', 't-mine.vhdx', 'u-20250101-000000.vhdx'
        foreach ($name in $names) { Set-Content -LiteralPath "$folder/templates/$name" -Value $name }
        Set-Content -LiteralPath "$folder/storage/a.vhdx" -Value 'vm'
        $global:StandIn.Parents['a.vhdx'] = [System.IO.Path]::GetFullPath("$folder/templates/t-20250202-000000.vhdx")
        [System.IO.File]::WriteAllText("$folder/.env", "VM_TEMPLATE_PATH='$present'`n")
        $parameters.Remove('TemplatePath')
        $result = & $place @{ NewName = $true }
        $result.Thrown | Should -Be ''
        [System.IO.File]::ReadAllText("$folder/.env") -match 'VM_TEMPLATE_PATH="(?<path>[^"]+)"' | Should -BeTrue
        $placed = $Matches.path
        Get-Content -LiteralPath $placed | Should -Be 'new'
        $left = @(Get-ChildItem -LiteralPath "$folder/templates" | ForEach-Object { $_.Name } | Where-Object { $_ -ne [System.IO.Path]::GetFileName($placed) } | Sort-Object)
        $left | Should -Be 't-20250202-000000.vhdx', 't-20260101-000000.vhdx', 't-mine.vhdx', 'u-20250101-000000.vhdx'
    }
}

Describe 'rebuild.ps1' -Skip:([System.IO.Path]::DirectorySeparatorChar -eq '\') {
    BeforeEach {
        Reset-StandIn
        $folder = New-PoolFolder 'packer/rebuild.ps1'
        Set-HostNetwork @{ 'Default Switch' = '172.28.144.1/20'; Runners = '172.30.0.1/23' }
        $env:VM_SWITCH = 'Runners'
        [System.IO.File]::WriteAllText("$folder/packer/place-template.ps1", 'param($Image, [switch]$NewName) "placed $Image $NewName"')
        New-Item -ItemType Directory -Path "$folder/bin" | Out-Null
        [System.IO.File]::WriteAllText("$folder/bin/packer", "#!/bin/sh`necho `"packer `$*`"`n")
        & chmod +x "$folder/bin/packer"
        $env:PATH = "$folder/bin:$($before.PATH)"
        function global:Invoke-RestMethod {
            $global:StandIn.Calls.Add('Invoke-RestMethod')
            if ([int]$global:StandIn.Faults['Invoke-RestMethod']-- -gt 0) { throw 'The network failed.' }
            [pscustomobject]@{ tag_name = 'v2.400.1'; body = '<!-- BEGIN SHA win-x64 -->' + ('a' * 64) + '<!-- END SHA win-x64 -->' }
        }
        $global:StandIn.Answers['Get-NetIPInterface'] = {
            [pscustomobject]@{ InterfaceIndex = 3; InterfaceMetric = 35 }
            [pscustomobject]@{ InterfaceIndex = 2; InterfaceMetric = 25 }
        }
        $global:StandIn.Answers['Get-DnsClientServerAddress'] = {
            # Of an adapter without a cable.
            [pscustomobject]@{ InterfaceIndex = 1; ServerAddresses = @('198.51.100.53') }
            [pscustomobject]@{ InterfaceIndex = 3; ServerAddresses = @('127.0.0.1', '192.0.2.53') }
            [pscustomobject]@{ InterfaceIndex = 2; ServerAddresses = @('192.0.2.53', '192.0.2.54') }
        }
        $nat = [pscustomobject]@{ Name = 'Runners'; InternalIPInterfaceAddressPrefix = '172.30.0.0/23' }
        $global:StandIn.Nats.Add($nat)
        $rebuild = { param([hashtable]$More = @{}) Invoke-Script "$folder/packer/rebuild.ps1" $More }
    }
    AfterEach {
        $env:PATH = $before.PATH
        Remove-Item -Path function:global:Invoke-RestMethod
    }

    It 'builds with the newest runner and places the image' {
        $global:StandIn.Faults['Invoke-RestMethod'] = 2
        $result = & $rebuild @{ NewName = $true }
        $result.ExitCode | Should -Be 0 -Because $result.Output
        $result.Output | Should -BeLike "*packer init .*packer build *runner_version=2.400.1*runner_sha256=$('a' * 64)*install_updates=true*placed *windows-runner.vhdx True*"
    }

    It 'gives Packer''s VM the last address of a switch with NAT' {
        (& $rebuild).Output | Should -BeLike '*-var switch_name=Runners -var build_address=172.30.1.254/23 -var build_gateway=172.30.0.1 -var build_dns_servers=192.0.2.53,192.0.2.54,172.30.0.1*'
    }

    It 'names public resolvers too where the host asks itself' {
        $global:StandIn.Answers['Get-DnsClientServerAddress'] = { [pscustomobject]@{ InterfaceIndex = 2; ServerAddresses = @('127.0.0.1') } }
        (& $rebuild).Output | Should -BeLike '*build_dns_servers=172.30.0.1,1.1.1.1,8.8.8.8*'
    }

    It 'gives Packer arguments that it accepts' {
        $tools = $env:TOOLS
        if (-not $tools) { $tools = Join-Path -Path $Root -ChildPath '../shared' }
        # Packer itself, which validates what it would build. Two flags are for a build only.
        [System.IO.File]::WriteAllText("$folder/bin/packer", @"
#!/bin/sh
[ `$1 = init ] && exit 0
shift 3
cd '$Root/packer' && exec '$(& "$tools/packer/install")' validate "`$@"
"@)
        [System.IO.File]::WriteAllText("$folder/mine.pkrvars.hcl", 'build_cpus = 4')
        $result = & $rebuild @{ Template = 'windows-runner-enhanced'; VarFile = "$folder/mine.pkrvars.hcl"; SkipUpdates = $true }
        $result.Output | Should -BeLike '*The configuration is valid.*placed*'
        [System.IO.File]::WriteAllText("$folder/mine.pkrvars.hcl", 'build_cpus = "many"')
        (& $rebuild @{ VarFile = "$folder/mine.pkrvars.hcl" }).ExitCode | Should -Be 1
    }

    It 'leaves the address to DHCP on another switch' {
        $result = & $rebuild @{ SwitchName = 'Default Switch' }
        $result.ExitCode | Should -Be 0
        $result.Output | Should -BeLike '*-var switch_name=Default Switch*'
        $result.Output | Should -Not -BeLike '*build_address*'
    }

    It 'refuses a switch that is missing, before Packer makes one' {
        $env:VM_SWITCH = 'Lam'
        $result = & $rebuild
        $result.ExitCode | Should -Be 1
        $result.Output | Should -BeLike "*There is no virtual switch 'Lam'*"
        $result.Output | Should -Not -BeLike '*packer init*'
    }

    It 'ends when <_> fails' -ForEach 'Get-VMSwitch', 'Get-VMNetworkAdapter', 'Get-NetAdapter', 'Get-NetIPAddress', 'Get-NetNat', 'Get-DnsClientServerAddress', 'Get-NetIPInterface', 'Invoke-RestMethod' {
        $global:StandIn.Faults[$_] = 9
        $result = & $rebuild
        $result.ExitCode | Should -Be 1
        $result.Output | Should -BeLike '*Failed: *'
        $result.Output | Should -Not -BeLike '*placed*'
    }

    It 'does not place an image that Packer did not finish' {
        [System.IO.File]::WriteAllText("$folder/bin/packer", "#!/bin/sh`n[ `$1 = init ]`n")
        $result = & $rebuild
        $result.ExitCode | Should -Be 1
        $result.Output | Should -BeLike '*packer build ended with exit code 1*'
        $result.Output | Should -Not -BeLike '*placed*'
    }
}
