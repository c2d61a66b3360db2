# Prepares this Windows machine for the pool, as administrator. Each step that
# is done already is skipped, so it can be run again at any time:
#   Hyper-V; in a clone of the repository, what builds the pool: Git and Rust with
#   its linker; Packer and oscdimg, with which Packer makes ISO images; this folder,
#   which ordinary users may read but not change; .env; the folders of the template
#   and of the VMs' disks; on Windows 10 and 11, no sleep and no scans of VMs' disks;
#   on Windows Server, a virtual switch with NAT; the firewall rule.
#   .\bootstrap.ps1              everything
#   .\bootstrap.ps1 -HostOnly    only what running the pool needs: nothing that
#                                builds the pool or its images
# Runs under Windows PowerShell 5.1 and PowerShell 7. Needs no winget.
param([switch]$HostOnly)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
. (Join-Path -Path $PSScriptRoot -ChildPath 'packer/common.ps1')

$FirewallRule = 'hyperv-runner-pool'
# The switch that this script makes on Windows Server, and its NAT.
$PoolSwitch = 'Runners'
# A release's archive has the program, and nothing to build it from.
$isClone = Test-Path -LiteralPath (Get-FullPath -Path 'Cargo.toml') -PathType Leaf
$script:hints = [System.Collections.Generic.List[string]]::new()

function Write-Done([string]$What) {
    Write-Host "[done]    $What"
}

function Write-There([string]$What) {
    Write-Host "[skipped] $What"
}

function Write-Doing([string]$What) {
    Write-Host "[...]     $What"
}

function Get-DownloadPath([string]$Name) {
    return (Join-Path -Path $script:downloads -ChildPath $Name)
}

function Test-Program([string]$Name) {
    return @(Get-Command -Name $Name -CommandType Application -ErrorAction SilentlyContinue).Count -gt 0
}

# Takes over what was added to the machine's PATH since this window was opened, so
# that a program which an earlier run installed is found.
function Update-SessionPath {
    $key = 'HKLM:\SYSTEM\CurrentControlSet\Control\Session Manager\Environment'
    $machine = [string](Get-Item -LiteralPath $key).GetValue('Path', '')
    foreach ($folder in @($machine -split ';')) {
        if ($folder -ne '' -and @($env:Path -split ';') -notcontains $folder) {
            $env:Path = $env:Path.TrimEnd(';') + ';' + $folder
        }
    }
}

function Add-ToPath([string]$Folder) {
    Add-MachinePath -Folder $Folder -Last
    $script:hints.Add("PATH has a new folder, $Folder. Windows that are open already do not see it: open a new one (and reboot for services and scheduled tasks).")
}

function Enable-HyperVFeature([string]$Feature) {
    # /English: what DISM prints is translated otherwise.
    $text = (& dism.exe /English /Online /Get-FeatureInfo "/FeatureName:$Feature") -join "`n"
    if ($LASTEXITCODE -ne 0) {
        throw "This Windows has no feature $Feature. Hyper-V needs Windows Server, or Windows 10 or 11 Pro, Enterprise or Education."
    }
    if ($text -match 'State : Enabled') {
        Write-There "Windows feature $Feature is enabled"
        return
    }
    if ($text -match 'State : Enable Pending') {
        $script:restartNeeded = $true
        Write-There "Windows feature $Feature is enabled after the next reboot"
        return
    }
    Write-Doing "enabling the Windows feature $Feature"
    & dism.exe /Online /Enable-Feature "/FeatureName:$Feature" /All /NoRestart /Quiet | Out-Null
    if ($LASTEXITCODE -eq 3010) {
        $script:restartNeeded = $true
    } elseif ($LASTEXITCODE -ne 0) {
        throw "DISM could not enable $Feature (exit code $LASTEXITCODE). C:\Windows\Logs\DISM\dism.log says why."
    }
    Write-Done "Windows feature $Feature"
}

function Install-Git {
    if (Test-Program 'git.exe') {
        Write-There 'Git is installed'
        return
    }
    Write-Doing 'installing Git'
    $release = Invoke-WithRetry { Invoke-RestMethod -Uri 'https://api.github.com/repos/git-for-windows/git/releases/latest' -UseBasicParsing -TimeoutSec 60 }
    $assets = @($release.assets | Where-Object { $_.name -match '^Git-[0-9.]+-64-bit\.exe$' })
    if ($assets.Count -eq 0) {
        throw 'The newest release of Git for Windows has no 64-bit installer. Install Git by hand from https://gitforwindows.org.'
    }
    $digest = [string]$assets[0].digest
    if (-not $digest.StartsWith('sha256:')) {
        throw 'The newest release of Git for Windows lists no SHA-256. Install Git by hand from https://gitforwindows.org.'
    }
    $installer = Get-DownloadPath 'git-setup.exe'
    Save-Download -Uri $assets[0].browser_download_url -Path $installer -Sha256 $digest.Substring(7)
    Invoke-Installer -Path $installer -Arguments '/VERYSILENT', '/NORESTART', '/NOCANCEL', '/SP-', '/SUPPRESSMSGBOXES'
    Add-ToPath (Join-Path -Path $env:ProgramFiles -ChildPath 'Git\cmd')
    Write-Done 'Git'
}

# Rust for Windows links with Microsoft's linker.
function Install-Linker {
    $vswhere = Join-Path -Path ${env:ProgramFiles(x86)} -ChildPath 'Microsoft Visual Studio\Installer\vswhere.exe'
    if (Test-Path -LiteralPath $vswhere -PathType Leaf) {
        $found = (& $vswhere -products '*' -latest -requires Microsoft.VisualStudio.Component.VC.Tools.x86.x64 -property installationPath) -join ''
        if ($found -ne '') {
            Write-There "the C++ build tools are installed ($found)"
            return
        }
    }
    Write-Doing 'installing the Visual Studio C++ build tools (some gigabytes, some minutes)'
    $installer = Get-DownloadPath 'vs_BuildTools.exe'
    Save-Download -Uri 'https://aka.ms/vs/17/release/vs_BuildTools.exe' -Path $installer -Signer 'Microsoft Corporation'
    Invoke-Installer -Path $installer -Arguments '--quiet', '--wait', '--norestart', '--nocache', '--add', 'Microsoft.VisualStudio.Workload.VCTools', '--includeRecommended'
    Write-Done 'the C++ build tools'
}

function Install-Rust {
    $bin = Join-Path -Path $env:USERPROFILE -ChildPath '.cargo\bin'
    if ((Test-Program 'cargo.exe') -or (Test-Path -LiteralPath (Join-Path -Path $bin -ChildPath 'cargo.exe') -PathType Leaf)) {
        Write-There 'Rust is installed'
        return
    }
    Write-Doing 'installing Rust'
    $installer = Get-DownloadPath 'rustup-init.exe'
    Save-Rustup -Path $installer
    Invoke-Installer -Path $installer -Arguments '-y', '--profile', 'minimal', '--default-toolchain', 'stable'
    # rustup puts its folder into the user's PATH; this is for this process.
    $env:Path = $env:Path.TrimEnd(';') + ';' + $bin
    Write-Done 'Rust'
}

function Install-Packer {
    if (Test-Program 'packer.exe') {
        Write-There 'Packer is installed'
        return
    }
    Write-Doing 'installing Packer'
    $release = Invoke-WithRetry { Invoke-RestMethod -Uri 'https://api.releases.hashicorp.com/v1/releases/packer/latest' -UseBasicParsing -TimeoutSec 60 }
    $version = [string]$release.version
    $name = "packer_${version}_windows_amd64.zip"
    $base = "https://releases.hashicorp.com/packer/$version"
    $sums = [string](Invoke-WithRetry { Invoke-RestMethod -Uri "$base/packer_${version}_SHA256SUMS" -UseBasicParsing -TimeoutSec 60 })
    $line = @($sums -split '\r?\n' | Where-Object { $_.EndsWith("  $name") })
    if ($line.Count -ne 1) {
        throw "The list of checksums of Packer $version does not name $name."
    }
    $archive = Get-DownloadPath $name
    Save-Download -Uri "$base/$name" -Path $archive -Sha256 @($line[0] -split '\s+')[0]
    $folder = Join-Path -Path $env:ProgramFiles -ChildPath 'Packer'
    Expand-Archive -LiteralPath $archive -DestinationPath $folder -Force
    Add-ToPath $folder
    Write-Done "Packer $version"
}

# Packer's Hyper-V builder makes the CD with the answer file by oscdimg, a part
# of the Windows ADK's Deployment Tools.
function Install-Oscdimg {
    $folder = Join-Path -Path ${env:ProgramFiles(x86)} -ChildPath 'Windows Kits\10\Assessment and Deployment Kit\Deployment Tools\amd64\Oscdimg'
    $program = Join-Path -Path $folder -ChildPath 'oscdimg.exe'
    if ((Test-Program 'oscdimg.exe') -or (Test-Program 'xorriso.exe') -or (Test-Program 'mkisofs.exe')) {
        Write-There 'a program that makes ISO images is installed'
        return
    }
    if (-not (Test-Path -LiteralPath $program -PathType Leaf)) {
        Write-Doing 'installing oscdimg (Windows ADK, Deployment Tools)'
        # The Windows ADK of December 2024 (10.1.26100).
        $installer = Get-DownloadPath 'adksetup.exe'
        Save-Download -Uri 'https://go.microsoft.com/fwlink/?linkid=2289980' -Path $installer -Signer 'Microsoft Corporation'
        Invoke-Installer -Path $installer -Arguments '/quiet', '/norestart', '/ceip', 'off', '/features', 'OptionId.DeploymentTools'
        if (-not (Test-Path -LiteralPath $program -PathType Leaf)) {
            throw "The Windows ADK was installed, but there is no $program."
        }
    }
    Add-ToPath $folder
    Write-Done 'oscdimg'
}

function New-Folder([string]$Path) {
    if (Test-Path -LiteralPath $Path -PathType Container) {
        Write-There "the folder $Path is there"
        return
    }
    New-Item -Path $Path -ItemType Directory -Force | Out-Null
    Write-Done "the folder $Path"
}

# Gives SYSTEM, administrators and this user all rights to a file or folder, others what $Others
# says, and nobody anything by inheritance. By ids, since the names are translated.
function Set-Access([string]$Path, [string]$Right, [string[]]$Others, [string]$Hint) {
    $user = [System.Security.Principal.WindowsIdentity]::GetCurrent().User.Value
    $grants = @('S-1-5-18', 'S-1-5-32-544', $user | ForEach-Object { "*${_}:$Right" }) + $Others
    & icacls.exe $Path /inheritance:r /grant:r @grants /Q | Out-Null
    if ($LASTEXITCODE -ne 0) {
        $script:hints.Add("The access rights of $Path could not be narrowed (icacls.exe: exit code $LASTEXITCODE). $Hint")
        return
    }
    Write-Done "the access rights of $Path"
}

# A folder below C:\ is open to every user of this machine, and the service runs the program in
# this one as LocalSystem.
function Protect-Folder {
    if ($PSScriptRoot -eq [System.IO.Path]::GetPathRoot($PSScriptRoot)) {
        throw "$PSScriptRoot is a whole drive. Put the pool into a folder of its own, and run this script there."
    }
    Set-Access $PSScriptRoot '(OI)(CI)F' @('*S-1-5-32-545:(OI)(CI)RX') 'Let nobody but administrators change what is in it: the service runs it as LocalSystem.'
}

function New-EnvFile {
    if (Test-Path -LiteralPath $script:envFile -PathType Leaf) {
        Write-There '.env is there'
        return
    }
    $example = Join-Path -Path $PSScriptRoot -ChildPath '.env.example'
    if (-not (Test-Path -LiteralPath $example -PathType Leaf)) {
        throw "There is no $example to make .env from."
    }
    $secret = New-RandomPassword
    $written = $false
    $lines = [System.Collections.Generic.List[string]]::new()
    foreach ($line in [System.IO.File]::ReadAllLines($example)) {
        if (-not $written -and $line -match '^\s*#?\s*WEBHOOK_SECRET\s*=') {
            $lines.Add("WEBHOOK_SECRET=$secret")
            $written = $true
        } else {
            $lines.Add($line)
        }
    }
    if (-not $written) {
        $lines.Add("WEBHOOK_SECRET=$secret")
    }
    # Before the secrets are in it.
    [System.IO.File]::WriteAllText($script:envFile, '')
    Set-Access $script:envFile 'F' @() 'It will hold secrets, so see to it by hand.'
    [System.IO.File]::WriteAllLines($script:envFile, $lines)
    $script:hints.Add("Fill in $($script:envFile): GITHUB_PAT (or a GitHub App, see docs\github-app.md) and GITHUB_ORG at least. Its WEBHOOK_SECRET was generated; enter the same one in GitHub's webhook settings, or set INTAKE=scaleset, which needs no webhook (docs\scale-sets.md).")
    Write-Done '.env, with a generated WEBHOOK_SECRET'
}

# Windows 10 and 11 fall asleep under the pool, with its VMs.
function Disable-Sleep {
    foreach ($timeout in @{ Setting = 'STANDBYIDLE'; Name = 'standby-timeout-ac' }, @{ Setting = 'HIBERNATEIDLE'; Name = 'hibernate-timeout-ac' }) {
        # The words are translated. The last number but one is the time on mains power.
        $text = (& powercfg.exe /query SCHEME_CURRENT SUB_SLEEP $timeout.Setting) -join "`n"
        $numbers = [regex]::Matches($text, '0x[0-9a-fA-F]{8}')
        if ($numbers.Count -ge 2 -and $numbers[$numbers.Count - 2].Value -eq '0x00000000') {
            Write-There "this PC has no $($timeout.Name)"
            continue
        }
        & powercfg.exe /change $timeout.Name 0
        if ($LASTEXITCODE -ne 0) {
            throw "powercfg.exe could not set $($timeout.Name) to 0 (exit code $LASTEXITCODE)."
        }
        Write-Done "no $($timeout.Name): this PC does not sleep by itself on mains power"
    }
}

# On Windows 10 and 11, Defender scans the disks of VMs: that is slow, and keeps Hyper-V
# from deleting them. Windows Server leaves them out by itself.
function Add-DefenderExclusion {
    $folders = @((Split-Path -Path (Get-TemplatePath) -Parent), (Get-StoragePath))
    # -ErrorAction on functions of modules: they do not see this script's $ErrorActionPreference.
    try {
        $there = @((Get-MpPreference -ErrorAction Stop).ExclusionPath)
        $missing = @($folders | Where-Object { $there -notcontains $_ })
        if ($missing.Count -eq 0) {
            Write-There 'Defender does not scan the folders of the template and the VMs'
            return
        }
        Add-MpPreference -ExclusionPath $missing -ErrorAction Stop
    } catch {
        Write-There "no exclusions in Defender: $($_.Exception.Message)"
        $script:hints.Add("If a virus scanner runs here, make it leave out $($folders -join ' and '): scans slow VMs down and keep their disks from being deleted.")
        return
    }
    Write-Done "Defender does not scan $($missing -join ' and ')"
    $script:hints.Add("Defender no longer scans $($missing -join ' and '). Only disks of VMs belong there. To undo it: Remove-MpPreference -ExclusionPath '$($missing -join "', '")'")
}

function Assert-NoOtherNat($Nats, [string[]]$Switches) {
    $way = 'Windows has one NAT for a host. Name a virtual switch that leads to the internet in VM_SWITCH in .env (an external one, or that of this NAT)'
    foreach ($nat in $Nats) {
        throw "The NAT '$($nat.Name)' for $($nat.InternalIPInterfaceAddressPrefix) is in the way of one for the VMs. $way, or remove the NAT if nothing needs it (Remove-NetNat -Name '$($nat.Name)'), and run this script again."
    }
    # Docker's does not show in Get-NetNat.
    if ($Switches -contains 'nat') {
        throw "Docker's network 'nat' is in the way of a NAT for the VMs. $way, or remove Docker's network if nothing needs it, and run this script again."
    }
}

# A private network that nothing on this host uses or has a route to. It has room for
# POOL_SIZE at its most, which is 256.
function Find-FreePrefix {
    $used = @(Get-NetIPAddress -AddressFamily IPv4 -ErrorAction Stop | ForEach-Object { Get-Prefix $_.IPAddress $_.PrefixLength })
    $used += @(Get-NetRoute -AddressFamily IPv4 -ErrorAction Stop | ForEach-Object { [string]$_.DestinationPrefix } | Where-Object { $_ -ne '0.0.0.0/0' })
    $candidates = '172.30.0.0/23', '172.29.214.0/23', '10.213.0.0/23', '10.86.214.0/23', '192.168.214.0/23'
    foreach ($prefix in $candidates) {
        if (@($used | Where-Object { Test-PrefixOverlap $_ $prefix }).Count -eq 0) {
            return $prefix
        }
    }
    throw "None of the private networks $($candidates -join ', ') is free on this host. Make the virtual switch by hand, as docs\operating.md says, and name it in VM_SWITCH in .env."
}

# The index of the host's adapter on a switch, which appears a moment after the switch.
function Wait-SwitchInterface([string]$SwitchName) {
    for ($try = 0; $try -lt 30; $try++) {
        $found = @(Get-SwitchInterface -SwitchName $SwitchName)
        if ($found.Count -gt 0) {
            return $found[0]
        }
        Start-Sleep -Seconds 1
    }
    throw "This host has no network adapter on the virtual switch '$SwitchName'. If it is an internal switch, remove it (Remove-VMSwitch -Name '$SwitchName') and run this script again."
}

# An internal switch with NAT: VMs reach the internet, nothing from outside reaches them.
# It has no DHCP server: the pool gives each VM its address.
function Add-NatSwitch([string[]]$Switches) {
    $nats = @(Get-NetNat -ErrorAction Stop)
    $own = @($nats | Where-Object { $_.Name -eq $PoolSwitch })
    if ($own.Count -eq 0) {
        Assert-NoOtherNat $nats $Switches
    }
    $isNew = $Switches -notcontains $PoolSwitch
    if ($isNew) {
        New-VMSwitch -Name $PoolSwitch -SwitchType Internal | Out-Null
    }
    $index = Wait-SwitchInterface $PoolSwitch
    $address = Get-SwitchAddress -SwitchName $PoolSwitch
    if ($null -ne $address) {
        $prefix = Get-Prefix $address.IPAddress $address.PrefixLength
    } else {
        $prefix = Find-FreePrefix
        if ($own.Count -gt 0) {
            $prefix = [string]$own[0].InternalIPInterfaceAddressPrefix
        }
        $network, $length = $prefix.Split('/')
        $first = ConvertFrom-AddressNumber ((ConvertTo-AddressNumber $network) + 1)
        New-NetIPAddress -InterfaceIndex $index -IPAddress $first -PrefixLength $length -ErrorAction Stop | Out-Null
    }
    if ($own.Count -eq 0) {
        New-NetNat -Name $PoolSwitch -InternalIPInterfaceAddressPrefix $prefix -ErrorAction Stop | Out-Null
    } elseif ([string]$own[0].InternalIPInterfaceAddressPrefix -ne $prefix) {
        throw "The NAT '$PoolSwitch' is for $($own[0].InternalIPInterfaceAddressPrefix), but its switch has an address in $prefix. Remove the NAT (Remove-NetNat -Name '$PoolSwitch') and run this script again."
    }
    if ($isNew -or $null -eq $address -or $own.Count -eq 0) {
        Write-Done "the virtual switch '$PoolSwitch' with NAT for $prefix"
    } else {
        Write-There "the virtual switch '$PoolSwitch' with NAT for $prefix is there"
    }
    if ((Get-Setting -Name 'VM_SWITCH') -eq '') {
        Set-Setting -Name 'VM_SWITCH' -Value $PoolSwitch
        Write-Done "VM_SWITCH=$PoolSwitch in .env"
    }
}

# Windows 10 and 11 have a Default Switch, Windows Server has none.
function Add-Switch {
    $switches = @(Get-VMSwitch | ForEach-Object { [string]$_.Name })
    $name = Get-Setting -Name 'VM_SWITCH'
    if ($name -eq $PoolSwitch -or ($name -eq '' -and -not $script:isClient -and $switches -notcontains 'Default Switch')) {
        Add-NatSwitch $switches
        return
    }
    if ($name -eq '') {
        $name = 'Default Switch'
    }
    if ($switches -contains $name) {
        Write-There "the virtual switch '$name' is there"
    } elseif ($name -eq 'Default Switch' -and $script:isClient) {
        throw "There is no virtual switch 'Default Switch'. Windows makes it when Hyper-V starts: reboot, and run this script again."
    } else {
        throw "VM_SWITCH names the virtual switch '$name', which is not there. Make it, or name one that is there ($($switches -join ', ')). On Windows Server, this script makes one if .env has no VM_SWITCH."
    }
}

# Lets VMs on the switch, and nobody else, reach the pool's port. By program and
# addresses, because a rule for an adapter is dead after a reboot: Windows makes the
# adapter of the Default Switch anew each time. Made anew in any case, since Windows
# returns addresses in another form than it was given.
function Add-FirewallRule {
    $port = Get-Setting -Name 'PORT' -Default '8080'
    $switchName = Get-Setting -Name 'VM_SWITCH' -Default 'Default Switch'
    $address = Get-SwitchAddress -SwitchName $switchName
    if ($null -eq $address) {
        throw "This host has no IPv4 address on the virtual switch '$switchName', so no firewall rule was made. Give it one, and run this script again."
    }
    $remote = Get-Prefix $address.IPAddress $address.PrefixLength
    # At each boot, Windows takes another part of this network for the Default Switch.
    if ($switchName -eq 'Default Switch' -and (Test-PrefixOverlap $remote '172.16.0.0/12')) {
        $remote = '172.16.0.0/12'
    }
    $program = Find-Binary
    if ($program -eq '') {
        $program = Join-Path -Path $PSScriptRoot -ChildPath 'hyperv-runner-pool.exe'
        if ($isClone -and -not $HostOnly) {
            $program = Join-Path -Path $PSScriptRoot -ChildPath 'target\release\hyperv-runner-pool.exe'
        }
        $script:hints.Add("The firewall rule is for $program, which is not there yet. If you put it elsewhere, run this script again.")
    }
    # -ErrorAction on functions of modules: they do not see this script's $ErrorActionPreference.
    if (@(Get-NetFirewallRule -Name $FirewallRule -ErrorAction SilentlyContinue).Count -gt 0) {
        Remove-NetFirewallRule -Name $FirewallRule -ErrorAction Stop
    }
    New-NetFirewallRule -Name $FirewallRule -DisplayName 'hyperv-runner-pool: callbacks of its VMs' -Direction Inbound -Action Allow -Protocol TCP -LocalPort $port -Program $program -RemoteAddress $remote -Profile Any -ErrorAction Stop | Out-Null
    Write-Done "the firewall rule: $remote may reach port $port of $program"
}

if (-not (Test-Elevated)) {
    Stop-WithMessage 'Run this in an elevated PowerShell (Run as administrator).'
}
$script:envFile = Get-FullPath -Path '.env'
$script:downloads = Join-Path -Path ([System.IO.Path]::GetTempPath()) -ChildPath ('runner-pool-' + [guid]::NewGuid().ToString())
New-Item -Path $script:downloads -ItemType Directory -Force | Out-Null
$failed = $false
try {
    Update-SessionPath
    # 1: Windows 10 and 11. https://learn.microsoft.com/en-us/windows/win32/cimwin32prov/win32-operatingsystem
    $script:isClient = (Get-CimInstance -ClassName Win32_OperatingSystem).ProductType -eq 1
    Enable-HyperVFeature 'Microsoft-Hyper-V'
    Enable-HyperVFeature 'Microsoft-Hyper-V-Management-PowerShell'
    $hyperVWaits = $script:restartNeeded
    if (-not $HostOnly) {
        if ($isClone) {
            Install-Git
            Install-Linker
            Install-Rust
        }
        Install-Packer
        Install-Oscdimg
    }
    Protect-Folder
    New-EnvFile
    New-Folder (Split-Path -Path (Get-TemplatePath) -Parent)
    New-Folder (Get-StoragePath)
    if ($script:isClient) {
        Disable-Sleep
        Add-DefenderExclusion
    }
    if ($hyperVWaits) {
        Write-There 'no virtual switch and no firewall rule yet: Hyper-V starts with the next reboot'
    } else {
        Add-Switch
        Add-FirewallRule
    }
} catch {
    Write-Host "[failed]  $($_.Exception.Message)"
    Write-Host 'Fix that and run this script again; what is done already is skipped.'
    $failed = $true
} finally {
    Remove-Item -LiteralPath $script:downloads -Recurse -Force -ErrorAction SilentlyContinue
}

# After a failure too: what was done before it still wants them.
foreach ($hint in $script:hints) {
    Write-Host "* $hint"
}
if ($failed) {
    if ($script:restartNeeded) {
        Write-Host 'REBOOT this machine as well.'
    }
    exit 1
}
if ($script:restartNeeded) {
    Write-Host 'REBOOT this machine now, and run this script once more after it.'
} else {
    Write-Host 'No reboot is needed.'
}
exit 0
