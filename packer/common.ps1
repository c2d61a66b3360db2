# What the scripts of the host and of the image share. The host's (bootstrap.ps1, start.ps1,
# packer\place-template.ps1, packer\rebuild.ps1) read it here. Packer puts it into
# C:\runner-pool-build for the image's, which is why it is in this folder.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

# The progress display makes downloads several times slower in 5.1.
$ProgressPreference = 'SilentlyContinue'
# Windows PowerShell on older hosts does not offer TLS 1.2 of itself.
[System.Net.ServicePointManager]::SecurityProtocol = [System.Net.ServicePointManager]::SecurityProtocol -bor [System.Net.SecurityProtocolType]::Tls12

# Whether an installer wants Windows to be restarted.
$script:restartNeeded = $false

# --- The host ---

function Stop-WithMessage {
    param([Parameter(Mandatory)] [string] $Message)
    Write-Host $Message
    exit 1
}

function Test-Elevated {
    $identity = [System.Security.Principal.WindowsIdentity]::GetCurrent()
    $principal = [System.Security.Principal.WindowsPrincipal]::new($identity)
    return $principal.IsInRole([System.Security.Principal.WindowsBuiltInRole]::Administrator)
}

# Relative paths count from the pool's folder, where .env is.
function Get-FullPath {
    param([Parameter(Mandatory)] [string] $Path)
    return [System.IO.Path]::GetFullPath([System.IO.Path]::Combine((Split-Path -Path $PSScriptRoot -Parent), $Path))
}

# Returns the pool's program, or '' if it was not built.
function Find-Binary {
    foreach ($folder in '', 'target/release/') {
        foreach ($name in 'hyperv-runner-pool.exe', 'hyperv-runner-pool') {
            $path = Get-FullPath -Path "$folder$name"
            if (Test-Path -LiteralPath $path -PathType Leaf) { return $path }
        }
    }
    return ''
}

# Returns a setting as the pool reads it: from the environment, else from .env.
function Get-Setting {
    param([Parameter(Mandatory)] [string] $Name, [string] $Default = '')
    $value = ([string] [Environment]::GetEnvironmentVariable($Name)).Trim()
    $file = Get-FullPath -Path '.env'
    if ($value -eq '' -and (Test-Path -LiteralPath $file -PathType Leaf)) {
        # In quotes: what stands between them. Else: up to a blank and a #. Names match by
        # case, and of two lines the last counts.
        $pattern = '^\s*(export\s+)?' + $Name + '\s*=(\s*"(?<value>[^"]*)"|\s*''(?<value>[^'']*)''|(?<value>.*?)(\s#.*)?$)'
        foreach ($line in [System.IO.File]::ReadAllLines($file)) {
            $found = [regex]::Match($line, $pattern)
            if ($found.Success) { $value = $found.Groups['value'].Value.Trim() }
        }
    }
    if ($value -eq '') { return $Default }
    return $value
}

# Writes a setting into .env, and keeps all other lines.
function Set-Setting {
    param([Parameter(Mandatory)] [string] $Name, [Parameter(Mandatory)] [string] $Value)
    $file = Get-FullPath -Path '.env'
    $lines = @()
    if (Test-Path -LiteralPath $file -PathType Leaf) {
        $lines = @([System.IO.File]::ReadAllLines($file) | Where-Object { $_ -cnotmatch "^\s*(export\s+)?$Name\s*=" })
    }
    # Quotes keep blanks and #; a backslash is just a backslash in them. Double ones, since
    # a path may hold a single one.
    $lines += "$Name=`"$Value`""
    # Over what is there, in one piece: a pool that runs may read it at any moment.
    $bytes = [System.Text.UTF8Encoding]::new($false).GetBytes(($lines -join [Environment]::NewLine) + [Environment]::NewLine)
    $stream = [System.IO.FileStream]::new($file, 'OpenOrCreate', 'Write', 'ReadWrite')
    try {
        $stream.Write($bytes, 0, $bytes.Length)
        $stream.SetLength($bytes.Length)
    } finally {
        $stream.Dispose()
    }
    if ([Environment]::GetEnvironmentVariable($Name)) {
        Write-Warning "$Name is also set in the environment, which overrides .env. Change it there."
    }
}

function Get-TemplatePath {
    return Get-FullPath -Path (Get-Setting -Name 'VM_TEMPLATE_PATH' -Default 'vms\templates\runner-template.vhdx')
}

function Get-StoragePath {
    return Get-FullPath -Path (Get-Setting -Name 'VM_STORAGE_PATH' -Default 'vms\storage')
}

# Returns the indexes of the host's own network adapters on a virtual switch.
function Get-SwitchInterface {
    param([Parameter(Mandatory)] [string] $SwitchName)
    # By the adapter's id, since people rename adapters. -ErrorAction on functions of
    # modules: they do not see this script's $ErrorActionPreference.
    $ids = @(Get-VMNetworkAdapter -ManagementOS | Where-Object { $_.SwitchName -eq $SwitchName } | ForEach-Object { [string] $_.DeviceId })
    Get-NetAdapter -IncludeHidden -ErrorAction Stop | Where-Object { $ids -contains [string] $_.DeviceID } | ForEach-Object { $_.ifIndex }
}

# Returns the host's own IPv4 address on a virtual switch, with its PrefixLength, or
# nothing. 169.254.x.x, which Windows takes when nothing gave it an address, is none.
function Get-SwitchAddress {
    param([Parameter(Mandatory)] [string] $SwitchName)
    $indexes = @(Get-SwitchInterface -SwitchName $SwitchName)
    Get-NetIPAddress -AddressFamily IPv4 -ErrorAction Stop |
        Where-Object { $indexes -contains $_.InterfaceIndex -and $_.IPAddress -notlike '169.254.*' } | Select-Object -First 1
}

# An IPv4 address as a number.
function ConvertTo-AddressNumber {
    param([Parameter(Mandatory)] [string] $Address)
    $number = [long] 0
    foreach ($byte in [System.Net.IPAddress]::Parse($Address).GetAddressBytes()) { $number = $number * 256 + $byte }
    return $number
}

function ConvertFrom-AddressNumber {
    param([Parameter(Mandatory)] [long] $Number)
    return @(24, 16, 8, 0 | ForEach-Object { ($Number -shr $_) -band 255 }) -join '.'
}

# 172.30.1.7 and 23: 172.30.0.0/23.
function Get-Prefix {
    param([Parameter(Mandatory)] [string] $Address, [Parameter(Mandatory)] [int] $Length)
    $number = ((ConvertTo-AddressNumber $Address) -shr (32 - $Length)) -shl (32 - $Length)
    return "$(ConvertFrom-AddressNumber $number)/$Length"
}

# Whether two prefixes have an address in common.
function Test-PrefixOverlap {
    param([Parameter(Mandatory)] [string] $One, [Parameter(Mandatory)] [string] $Other)
    $first, $second = foreach ($prefix in $One, $Other) {
        $address, $length = $prefix.Split('/')
        @{ Number = ConvertTo-AddressNumber $address; Length = [int] $length }
    }
    $shift = 32 - [Math]::Min($first.Length, $second.Length)
    return ($first.Number -shr $shift) -eq ($second.Number -shr $shift)
}

# --- The host and the image ---

# Runs what the network may fail, up to five times.
function Invoke-WithRetry {
    param([Parameter(Mandatory)] [scriptblock] $Action)
    for ($try = 1; $true; $try++) {
        try {
            return & $Action
        } catch {
            if ($try -ge 5) { throw }
            Write-Host "$($_.Exception.Message) Trying again."
            Start-Sleep -Seconds (10 * $try)
        }
    }
}

# Downloads a file and checks it: against a SHA-256, or that it carries a valid
# signature of the named company.
function Save-Download {
    param(
        [Parameter(Mandatory)] [string] $Uri,
        [Parameter(Mandatory)] [string] $Path,
        [string] $Sha256,
        [string] $Signer
    )
    if (-not $Sha256 -and -not $Signer) { throw "No SHA-256 and no signer to check $Uri against." }
    Invoke-WithRetry { Invoke-WebRequest -Uri $Uri -OutFile $Path -UseBasicParsing -TimeoutSec 1800 }
    if ($Sha256) {
        $hash = (Get-FileHash -LiteralPath $Path -Algorithm SHA256).Hash
        if ($hash -ne $Sha256) { throw "The SHA-256 of $Uri is $hash, not $Sha256; nothing of it was used." }
    }
    if ($Signer) {
        $signature = Get-AuthenticodeSignature -LiteralPath $Path
        if ([string] $signature.Status -ne 'Valid') { throw "$Uri is not validly signed ($($signature.Status)); nothing of it was run." }
        if ($signature.SignerCertificate.Subject -notlike "*O=*$Signer*") {
            throw "$Uri is signed by $($signature.SignerCertificate.Subject), not by $Signer; nothing of it was run."
        }
    }
}

# Downloads the installer of Rust.
function Save-Rustup {
    param([Parameter(Mandatory)] [string] $Path)
    $address = 'https://static.rust-lang.org/rustup/dist/x86_64-pc-windows-msvc/rustup-init.exe'
    # One line: the hash, and the name of the file.
    $published = [string] (Invoke-WithRetry { Invoke-RestMethod -Uri "$address.sha256" -UseBasicParsing -TimeoutSec 60 })
    Save-Download -Uri $address -Path $Path -Sha256 @($published.Trim() -split '\s+')[0]
}

# Runs an installer that has windows of its own, and waits for it. 3010 and 1641: done,
# restart wanted.
function Invoke-Installer {
    param([Parameter(Mandatory)] [string] $Path, [string[]] $Arguments)
    $process = Start-Process -FilePath $Path -ArgumentList $Arguments -Wait -PassThru
    if ($process.ExitCode -notin 0, 1641, 3010) { throw "$Path ended with exit code $($process.ExitCode)." }
    if ($process.ExitCode -ne 0) { $script:restartNeeded = $true }
}

# Puts a folder at the front of the machine's PATH, or at its end, and of this session's.
function Add-MachinePath {
    param([Parameter(Mandatory)] [string] $Folder, [switch] $Last)
    $join = { param($Path) if ($Last) { $Path.TrimEnd(';') + ';' + $Folder } else { "$Folder;$Path" } }
    # Through the registry, because %VARIABLES% in the value must stay as they are.
    $key = 'HKLM:\SYSTEM\CurrentControlSet\Control\Session Manager\Environment'
    $value = [string] (Get-Item -LiteralPath $key).GetValue('Path', '', 'DoNotExpandEnvironmentNames')
    if ($value.Split(';') -notcontains $Folder) {
        Set-ItemProperty -LiteralPath $key -Name Path -Value (& $join $value) -Type ExpandString
        # A registry write tells nobody; clearing a variable that is not set makes .NET
        # broadcast WM_SETTINGCHANGE, so that new windows from Explorer see the folder.
        [Environment]::SetEnvironmentVariable('HYPERV_RUNNER_POOL', $null, 'User')
    }
    if ("$env:Path".Split(';') -notcontains $Folder) { $env:Path = & $join "$env:Path" }
}

# A password that nobody knows: 32 random bytes. The end satisfies any password policy.
function New-RandomPassword {
    $bytes = [byte[]]::new(32)
    $generator = [System.Security.Cryptography.RandomNumberGenerator]::Create()
    $generator.GetBytes($bytes)
    $generator.Dispose()
    return [Convert]::ToBase64String($bytes) + 'aA1!'
}

# --- The image ---

# Runs a program, shows its output, throws unless its exit code is one of those that
# mean success.
function Invoke-Program {
    param(
        [Parameter(Mandatory)] [string] $Path,
        [string[]] $Arguments = @(),
        [int[]] $Success = @(0, 1641, 3010)
    )
    # Looked up first: a program that is missing must throw, and not leave the exit code
    # of the one before.
    $program = (Get-Command -Name $Path -CommandType Application | Select-Object -First 1).Source
    # What a program writes to its error stream is not an error of ours.
    $ErrorActionPreference = 'Continue'
    & $program @Arguments 2>&1 | ForEach-Object { Write-Output "$_" }
    $exitCode = $LASTEXITCODE
    # Packer takes the last exit code for that of the whole script, also where the script
    # has caught what this throws.
    $global:LASTEXITCODE = 0
    if ($exitCode -notin $Success) { throw "$Path ended with exit code $exitCode." }
}

function Set-MachineVariable {
    param([Parameter(Mandatory)] [string] $Name, [Parameter(Mandatory)] [string] $Value)
    [Environment]::SetEnvironmentVariable($Name, $Value, 'Machine')
    Set-Item -Path "Env:$Name" -Value $Value
}
