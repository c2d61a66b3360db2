# What the build's scripts share. Packer puts it into C:\runner-pool-build.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

$ProgressPreference = 'SilentlyContinue'
[System.Net.ServicePointManager]::SecurityProtocol = [System.Net.SecurityProtocolType]::Tls12

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
    for ($try = 1; $true; $try++) {
        try {
            Invoke-WebRequest -Uri $Uri -OutFile $Path -UseBasicParsing -TimeoutSec 1800
            break
        } catch {
            if ($try -ge 5) { throw }
            Write-Output "Download of $Uri failed: $($_.Exception.Message) Trying again."
            Start-Sleep -Seconds (10 * $try)
        }
    }
    if ($Sha256) {
        $hash = (Get-FileHash -LiteralPath $Path -Algorithm SHA256).Hash
        if ($hash -ne $Sha256) { throw "The SHA-256 of $Uri is $hash, not $Sha256." }
    }
    if ($Signer) {
        $signature = Get-AuthenticodeSignature -LiteralPath $Path
        if ($signature.Status -ne 'Valid') { throw "The signature of $Uri is not valid: $($signature.StatusMessage)" }
        if ($signature.SignerCertificate.Subject -notlike "*O=*$Signer*") {
            throw "$Uri is signed by $($signature.SignerCertificate.Subject), not by $Signer."
        }
    }
}

# Runs a program, shows its output, throws unless its exit code is one of those that
# mean success. 3010 and 1641: done, restart wanted.
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

# Runs an installer that has windows of its own, and waits for it.
function Invoke-Installer {
    param([Parameter(Mandatory)] [string] $Path, [string[]] $Arguments)
    $process = Start-Process -FilePath $Path -ArgumentList $Arguments -Wait -PassThru
    if ($process.ExitCode -notin 0, 1641, 3010) { throw "$Path ended with exit code $($process.ExitCode)." }
}

# Puts a folder at the front of the machine's PATH, and of this session's.
function Add-MachinePath {
    param([Parameter(Mandatory)] [string] $Folder)
    # Through the registry, because %VARIABLES% in the value must stay as they are.
    $key = 'HKLM:\SYSTEM\CurrentControlSet\Control\Session Manager\Environment'
    $path = [string] (Get-Item -LiteralPath $key).GetValue('Path', '', 'DoNotExpandEnvironmentNames')
    if ($path.Split(';') -notcontains $Folder) {
        Set-ItemProperty -LiteralPath $key -Name Path -Value "$Folder;$path" -Type ExpandString
    }
    $env:Path = "$Folder;$env:Path"
}

function Set-MachineVariable {
    param([Parameter(Mandatory)] [string] $Name, [Parameter(Mandatory)] [string] $Value)
    [Environment]::SetEnvironmentVariable($Name, $Value, 'Machine')
    Set-Item -Path "Env:$Name" -Value $Value
}

# Takes over what installers have added to the machine's PATH.
function Update-SessionPath {
    $env:Path = [Environment]::GetEnvironmentVariable('Path', 'Machine')
}

# A password that nobody knows: 32 random bytes. The end satisfies any password policy.
function New-RandomPassword {
    $bytes = New-Object byte[] 32
    $generator = [System.Security.Cryptography.RandomNumberGenerator]::Create()
    $generator.GetBytes($bytes)
    $generator.Dispose()
    return [Convert]::ToBase64String($bytes) + 'aA1!'
}
