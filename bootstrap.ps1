# Prepares this Windows machine for the pool, as administrator. Each step that
# is done already is skipped, so it can be run again at any time:
#   Hyper-V; Git; Rust with its linker; Packer; oscdimg, with which Packer makes
#   ISO images; the folders vms\templates and vms\storage; .env; the firewall rule.
#   .\bootstrap.ps1              everything
#   .\bootstrap.ps1 -HostOnly    only what running the pool needs: no Git, Rust,
#                                Packer, oscdimg (for a binary and a template
#                                that were built elsewhere)
# Runs under Windows PowerShell 5.1 and PowerShell 7. Needs no winget.
param([switch]$HostOnly)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
# The progress display makes downloads several times slower in 5.1.
$ProgressPreference = 'SilentlyContinue'

$FirewallRule = 'hyperv-runner-pool'
$EnvironmentKey = 'HKLM:\SYSTEM\CurrentControlSet\Control\Session Manager\Environment'
$script:rebootNeeded = $false
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

function Test-Elevated {
    $identity = [System.Security.Principal.WindowsIdentity]::GetCurrent()
    $principal = [System.Security.Principal.WindowsPrincipal]::new($identity)
    return $principal.IsInRole([System.Security.Principal.WindowsBuiltInRole]::Administrator)
}

# Gets a file into the temporary folder, and gives back its path.
function Get-Download([string]$Address, [string]$Name) {
    $path = Join-Path -Path $script:downloads -ChildPath $Name
    Invoke-WebRequest -Uri $Address -OutFile $path -UseBasicParsing
    return $path
}

# Signer: the organization in the certificate.
function Assert-Signature([string]$Path, [string]$Signer) {
    $signature = Get-AuthenticodeSignature -LiteralPath $Path
    if ([string]$signature.Status -ne 'Valid') {
        throw "The download $Path is not validly signed ($($signature.Status)); nothing of it was run."
    }
    if ($signature.SignerCertificate.Subject -notlike "*O=*$Signer*") {
        throw "The download $Path is signed by $($signature.SignerCertificate.Subject), not by $Signer; nothing of it was run."
    }
}

function Assert-Hash([string]$Path, [string]$Expected) {
    $actual = (Get-FileHash -LiteralPath $Path -Algorithm SHA256).Hash
    if ($actual -ne $Expected) {
        throw "The download $Path has the SHA-256 $actual, not $Expected; nothing of it was used."
    }
}

function Invoke-Installer([string]$Path, [string[]]$Arguments) {
    $process = Start-Process -FilePath $Path -ArgumentList $Arguments -Wait -PassThru
    if ($process.ExitCode -eq 3010) {
        $script:rebootNeeded = $true
    } elseif ($process.ExitCode -ne 0) {
        throw "$Path failed with exit code $($process.ExitCode)."
    }
}

function Test-Program([string]$Name) {
    return @(Get-Command -Name $Name -CommandType Application -ErrorAction SilentlyContinue).Count -gt 0
}

# Takes over what was added to the machine's PATH since this window was opened, so
# that a program which an earlier run installed is found.
function Update-SessionPath {
    $machine = [string](Get-Item -LiteralPath $EnvironmentKey).GetValue('Path', '')
    foreach ($folder in @($machine -split ';')) {
        if ($folder -ne '' -and @($env:Path -split ';') -notcontains $folder) {
            $env:Path = $env:Path.TrimEnd(';') + ';' + $folder
        }
    }
}

# Adds a folder to the machine's PATH, and to this process's. Through the
# registry, because %VARIABLES% in the value must stay as they are.
function Add-ToPath([string]$Folder) {
    $value = [string](Get-Item -LiteralPath $EnvironmentKey).GetValue('Path', '', 'DoNotExpandEnvironmentNames')
    if (@($value -split ';') -notcontains $Folder) {
        Set-ItemProperty -LiteralPath $EnvironmentKey -Name Path -Value ($value.TrimEnd(';') + ';' + $Folder) -Type ExpandString
        # A registry write tells nobody; clearing a variable that is not set makes .NET
        # broadcast WM_SETTINGCHANGE, so that new windows from Explorer see the folder.
        [System.Environment]::SetEnvironmentVariable('HYPERV_RUNNER_POOL', $null, 'User')
        $script:hints.Add("PATH has a new folder, $Folder. Windows that are open already do not see it: open a new one (and reboot for scheduled tasks).")
    }
    if (@($env:Path -split ';') -notcontains $Folder) {
        $env:Path = $env:Path.TrimEnd(';') + ';' + $Folder
    }
}

# A setting's value from the environment or .env, or what it is by default.
function Get-Setting([string]$Name, [string]$Default) {
    $value = [string][System.Environment]::GetEnvironmentVariable($Name)
    if ($value -ne '') {
        return $value
    }
    if (Test-Path -LiteralPath $script:envFile -PathType Leaf) {
        # In quotes: what stands between them. Else: up to a blank and a #.
        $pattern = '^\s*(export\s+)?' + [regex]::Escape($Name) + '\s*=(\s*"(?<value>[^"]*)"|\s*''(?<value>[^'']*)''|(?<value>.*?)(\s#.*)?$)'
        foreach ($line in [System.IO.File]::ReadAllLines($script:envFile)) {
            $found = [regex]::Match($line, $pattern)
            if ($found.Success) {
                # Of two lines the last counts.
                $value = $found.Groups['value'].Value.Trim()
            }
        }
    }
    if ($value -ne '') {
        return $value
    }
    return $Default
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
        $script:rebootNeeded = $true
        Write-There "Windows feature $Feature is enabled after the next reboot"
        return
    }
    Write-Doing "enabling the Windows feature $Feature"
    & dism.exe /Online /Enable-Feature "/FeatureName:$Feature" /All /NoRestart /Quiet | Out-Null
    if ($LASTEXITCODE -eq 3010) {
        $script:rebootNeeded = $true
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
    $release = Invoke-RestMethod -Uri 'https://api.github.com/repos/git-for-windows/git/releases/latest' -UseBasicParsing
    $assets = @($release.assets | Where-Object { $_.name -match '^Git-[0-9.]+-64-bit\.exe$' })
    if ($assets.Count -eq 0) {
        throw 'The newest release of Git for Windows has no 64-bit installer. Install Git by hand from https://gitforwindows.org.'
    }
    $installer = Get-Download $assets[0].browser_download_url 'git-setup.exe'
    $digest = [string]$assets[0].digest
    if (-not $digest.StartsWith('sha256:')) {
        throw 'The newest release of Git for Windows lists no SHA-256. Install Git by hand from https://gitforwindows.org.'
    }
    Assert-Hash $installer ($digest.Substring(7))
    Invoke-Installer $installer @('/VERYSILENT', '/NORESTART', '/NOCANCEL', '/SP-', '/SUPPRESSMSGBOXES')
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
    $installer = Get-Download 'https://aka.ms/vs/17/release/vs_BuildTools.exe' 'vs_BuildTools.exe'
    Assert-Signature $installer 'Microsoft Corporation'
    Invoke-Installer $installer @('--quiet', '--wait', '--norestart', '--nocache', '--add', 'Microsoft.VisualStudio.Workload.VCTools', '--includeRecommended')
    Write-Done 'the C++ build tools'
}

function Install-Rust {
    $bin = Join-Path -Path $env:USERPROFILE -ChildPath '.cargo\bin'
    if ((Test-Program 'cargo.exe') -or (Test-Path -LiteralPath (Join-Path -Path $bin -ChildPath 'cargo.exe') -PathType Leaf)) {
        Write-There 'Rust is installed'
        return
    }
    Write-Doing 'installing Rust'
    $base = 'https://static.rust-lang.org/rustup/dist/x86_64-pc-windows-msvc/rustup-init.exe'
    $installer = Get-Download $base 'rustup-init.exe'
    $sums = [System.IO.File]::ReadAllText((Get-Download "$base.sha256" 'rustup-init.exe.sha256'))
    Assert-Hash $installer @($sums.Trim() -split '\s+')[0]
    Invoke-Installer $installer @('-y', '--profile', 'minimal', '--default-toolchain', 'stable')
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
    $release = Invoke-RestMethod -Uri 'https://api.releases.hashicorp.com/v1/releases/packer/latest' -UseBasicParsing
    $version = [string]$release.version
    $name = "packer_${version}_windows_amd64.zip"
    $base = "https://releases.hashicorp.com/packer/$version"
    $archive = Get-Download "$base/$name" $name
    $sums = [System.IO.File]::ReadAllLines((Get-Download "$base/packer_${version}_SHA256SUMS" 'packer_SHA256SUMS'))
    $line = @($sums | Where-Object { $_.EndsWith("  $name") })
    if ($line.Count -ne 1) {
        throw "The list of checksums of Packer $version does not name $name."
    }
    Assert-Hash $archive @($line[0] -split '\s+')[0]
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
        $installer = Get-Download 'https://go.microsoft.com/fwlink/?linkid=2289980' 'adksetup.exe'
        Assert-Signature $installer 'Microsoft Corporation'
        Invoke-Installer $installer @('/quiet', '/norestart', '/ceip', 'off', '/features', 'OptionId.DeploymentTools')
        if (-not (Test-Path -LiteralPath $program -PathType Leaf)) {
            throw "The Windows ADK was installed, but there is no $program."
        }
    }
    Add-ToPath $folder
    Write-Done 'oscdimg'
}

function New-Folder([string]$Name) {
    $path = Join-Path -Path $PSScriptRoot -ChildPath $Name
    if (Test-Path -LiteralPath $path -PathType Container) {
        Write-There "the folder $path is there"
        return
    }
    New-Item -Path $path -ItemType Directory -Force | Out-Null
    Write-Done "the folder $path"
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
    $bytes = [byte[]]::new(32)
    $generator = [System.Security.Cryptography.RandomNumberGenerator]::Create()
    $generator.GetBytes($bytes)
    $generator.Dispose()
    $secret = [System.BitConverter]::ToString($bytes).Replace('-', '').ToLowerInvariant()
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
    # Before the secrets are in it: only SYSTEM, administrators and this user may
    # read it. By their ids, since the names are translated.
    [System.IO.File]::WriteAllText($script:envFile, '')
    $user = [System.Security.Principal.WindowsIdentity]::GetCurrent().User.Value
    & icacls.exe $script:envFile /inheritance:r /grant:r '*S-1-5-18:F' '*S-1-5-32-544:F' "*${user}:F" /Q | Out-Null
    if ($LASTEXITCODE -ne 0) {
        $script:hints.Add("The access rights of $($script:envFile) could not be narrowed; it will hold secrets, so see to it by hand.")
    }
    [System.IO.File]::WriteAllLines($script:envFile, $lines)
    $script:hints.Add("Fill in $($script:envFile): GITHUB_PAT and GITHUB_ORG at least. Its WEBHOOK_SECRET was generated; enter the same one in GitHub's webhook settings.")
    Write-Done '.env, with a generated WEBHOOK_SECRET'
}

# Lets VMs on the switch, and nobody else, reach the pool's port.
function Add-FirewallRule {
    $port = Get-Setting 'PORT' '8080'
    $switchName = Get-Setting 'VM_SWITCH' 'Default Switch'
    $alias = "vEthernet ($switchName)"
    # -ErrorAction on these: they are functions of a module, which do not see
    # this script's $ErrorActionPreference.
    $adapters = @(Get-NetIPAddress -AddressFamily IPv4 -ErrorAction Stop | Where-Object { $_.InterfaceAlias -eq $alias })
    if ($adapters.Count -eq 0) {
        Write-There "no firewall rule yet, since there is no adapter '$alias'"
        $script:hints.Add("Run this script again when the virtual switch '$switchName' is there (after the reboot, if one is due). Windows Server has no Default Switch: make an internal switch with NAT and DHCP, or an external one, and name it in VM_SWITCH.")
        return
    }
    $old = @(Get-NetFirewallRule -Name $FirewallRule -ErrorAction SilentlyContinue)
    if ($old.Count -gt 0) {
        $oldPort = @(Get-NetFirewallPortFilter -AssociatedNetFirewallRule $old[0] -ErrorAction Stop)[0]
        $oldAdapter = @(Get-NetFirewallInterfaceFilter -AssociatedNetFirewallRule $old[0] -ErrorAction Stop)[0]
        if ([string]$oldPort.LocalPort -eq $port -and [string]$oldAdapter.InterfaceAlias -eq $alias) {
            Write-There "the firewall rule for port $port on '$alias' is there"
            return
        }
        Remove-NetFirewallRule -Name $FirewallRule -ErrorAction Stop
    }
    New-NetFirewallRule -Name $FirewallRule -DisplayName 'hyperv-runner-pool: callbacks of its VMs' -Direction Inbound -Action Allow -Protocol TCP -LocalPort $port -InterfaceAlias $alias -Profile Any -ErrorAction Stop | Out-Null
    Write-Done "the firewall rule for port $port on '$alias'"
}

if (-not (Test-Elevated)) {
    Write-Host 'Run this in an elevated PowerShell (Run as administrator).'
    exit 1
}
# Windows PowerShell on older hosts does not offer TLS 1.2 of itself.
[System.Net.ServicePointManager]::SecurityProtocol = [System.Net.ServicePointManager]::SecurityProtocol -bor [System.Net.SecurityProtocolType]::Tls12

$script:envFile = Join-Path -Path $PSScriptRoot -ChildPath '.env'
$script:downloads = Join-Path -Path ([System.IO.Path]::GetTempPath()) -ChildPath ('runner-pool-' + [guid]::NewGuid().ToString())
New-Item -Path $script:downloads -ItemType Directory -Force | Out-Null
$failed = $false
try {
    Update-SessionPath
    Enable-HyperVFeature 'Microsoft-Hyper-V'
    Enable-HyperVFeature 'Microsoft-Hyper-V-Management-PowerShell'
    if (-not $HostOnly) {
        Install-Git
        Install-Linker
        Install-Rust
        Install-Packer
        Install-Oscdimg
    }
    New-Folder 'vms\templates'
    New-Folder 'vms\storage'
    New-EnvFile
    Add-FirewallRule
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
    if ($script:rebootNeeded) {
        Write-Host 'REBOOT this machine as well.'
    }
    exit 1
}
if ($script:rebootNeeded) {
    Write-Host 'REBOOT this machine now, and run this script once more after it.'
} else {
    Write-Host 'No reboot is needed.'
}
exit 0
