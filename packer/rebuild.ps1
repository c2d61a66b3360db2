<#
.SYNOPSIS
Builds a new image with the newest runner and the newest Windows updates, and places it.

.DESCRIPTION
GitHub gives no jobs to a runner that is more than 30 days behind the newest, and
evaluation Windows ends after 180 days. This script is fit for a monthly scheduled task:
it asks nobody, it ends with a non-zero exit code where anything failed, and the template
in use stays as it is until the new image is complete and a VM of it has booted. Its log
is logs\rebuild-image.log. With GITHUB_TOKEN in the environment it asks GitHub for the newest
runner by that token; any token will do.

Run it as an administrator, on the host.

.EXAMPLE
.\packer\rebuild.ps1 -Template windows-runner-enhanced -NewName
#>
[CmdletBinding()]
param(
    [ValidateSet('windows-runner', 'windows-runner-enhanced')]
    [string] $Template = 'windows-runner',
    # A .pkrvars.hcl file with your values of the variables.
    [string] $VarFile = '',
    # The virtual switch of the VM that builds. Unset: VM_SWITCH from the environment or .env.
    [string] $SwitchName = '',
    # Place the image under a new name, so that running VMs are no obstacle.
    [switch] $NewName,
    # Leave Windows as it is on the ISO.
    [switch] $SkipUpdates
)
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
. (Join-Path -Path $PSScriptRoot -ChildPath 'common.ps1')

# Returns the newest runner's version, and the SHA-256 that its release notes list.
function Get-NewestRunner {
    # Without a token GitHub answers an address that many share only now and then.
    $headers = @{}
    if ($env:GITHUB_TOKEN) { $headers['Authorization'] = "Bearer $env:GITHUB_TOKEN" }
    $release = Invoke-WithRetry { Invoke-RestMethod -Uri 'https://api.github.com/repos/actions/runner/releases/latest' -Headers $headers -UseBasicParsing -TimeoutSec 60 }
    $version = $release.tag_name.TrimStart('v')
    # https://github.com/actions/runner/blob/main/releaseNote.md
    $pattern = '<!-- BEGIN SHA win-x64 -->(?<hash>[0-9a-fA-F]{64})<!-- END SHA win-x64 -->'
    if ($release.body -notmatch $pattern) { throw "The release notes of runner $version list no SHA-256 for win-x64." }
    return @{ Version = $version; Sha256 = $Matches.hash }
}

# Returns the values of Packer's variables for this switch.
function Get-NetworkArgument {
    param([Parameter(Mandatory)] [string] $SwitchName)
    $switches = @(Get-VMSwitch | ForEach-Object { [string] $_.Name })
    # Packer would make one without any way to the internet, and wait for two hours.
    if ($switches -notcontains $SwitchName) {
        throw "There is no virtual switch '$SwitchName' (there is: $($switches -join ', ')). Run bootstrap.ps1, which makes one on Windows Server, or name another with VM_SWITCH or -SwitchName."
    }
    '-var', "switch_name=$SwitchName"

    # Behind a NAT of this host nothing gives addresses to VMs: Windows' NAT has no DHCP
    # and no DNS server. The Default Switch does not show among these.
    $gateway = Get-SwitchAddress -SwitchName $SwitchName
    if ($null -eq $gateway) { return }
    $prefix = Get-Prefix $gateway.IPAddress $gateway.PrefixLength
    $nats = @(Get-NetNat -ErrorAction Stop | Where-Object { Test-PrefixOverlap $prefix ([string] $_.InternalIPInterfaceAddressPrefix) })
    if ($nats.Count -eq 0) { return }
    # The last address of the network: the pool counts from the first.
    $network, $length = $prefix.Split('/')
    $last = (ConvertTo-AddressNumber $network) + [long] [Math]::Pow(2, 32 - $length) - 2
    # As the pool's VMs have them: those of the connected adapters, the preferred adapter's first.
    $known = @(Get-DnsClientServerAddress -AddressFamily IPv4 -ErrorAction Stop)
    $resolvers = @(foreach ($interface in @(Get-NetIPInterface -AddressFamily IPv4 -ConnectionState Connected -ErrorAction Stop | Sort-Object -Property InterfaceMetric)) {
        $known | Where-Object { $_.InterfaceIndex -eq $interface.InterfaceIndex } | ForEach-Object { $_.ServerAddresses }
    })
    # A server on this host itself is at its address on the switch, if it listens there.
    $isOwn = @($resolvers | Where-Object { $_ -notlike '127.*' }).Count -eq 0
    $resolvers = @($resolvers | ForEach-Object { if ($_ -like '127.*') { [string] $gateway.IPAddress } else { [string] $_ } } | Select-Object -Unique -First 4)
    if ($isOwn) { $resolvers += '1.1.1.1', '8.8.8.8' }
    '-var', "build_address=$(ConvertFrom-AddressNumber $last)/$length"
    '-var', "build_gateway=$($gateway.IPAddress)"
    '-var', "build_dns_servers=$($resolvers -join ',')"
}

function Invoke-Packer {
    param([string[]] $Arguments)
    # Packer writes its warnings to its error stream.
    $ErrorActionPreference = 'Continue'
    & packer @Arguments 2>&1 | ForEach-Object { Write-Host "$_" }
    $exitCode = $LASTEXITCODE
    if ($exitCode -ne 0) { throw "packer $($Arguments[0]) ended with exit code $exitCode." }
}

$logs = Join-Path (Split-Path -Parent $PSScriptRoot) 'logs'
New-Item -ItemType Directory -Force -Path $logs | Out-Null
Start-Transcript -Path (Join-Path $logs 'rebuild-image.log') | Out-Null
$place = Get-Location
$exitCode = 1
try {
    # While relative paths still count from the caller's folder.
    if ($VarFile) { $VarFile = (Resolve-Path -LiteralPath $VarFile).ProviderPath }
    Set-Location -LiteralPath $PSScriptRoot
    if (-not (Test-Elevated)) { throw 'Run this in an elevated PowerShell (Run as administrator).' }
    if (-not $SwitchName) { $SwitchName = Get-Setting -Name 'VM_SWITCH' -Default 'Default Switch' }
    $network = Get-NetworkArgument -SwitchName $SwitchName
    Get-Command -Name packer -CommandType Application | Out-Null
    $runner = Get-NewestRunner
    Write-Host "The newest runner is $($runner.Version)."

    $updates = 'true'
    if ($SkipUpdates) { $updates = 'false' }
    $arguments = @(
        'build', '-force', '-color=false', "-only=hyperv-iso.$Template"
        '-var', "runner_version=$($runner.Version)"
        '-var', "runner_sha256=$($runner.Sha256)"
        '-var', "install_updates=$updates"
    ) + $network
    if ($VarFile) { $arguments += "-var-file=$VarFile" }
    Invoke-Packer -Arguments 'init', '.'
    Invoke-Packer -Arguments ($arguments + '.')

    $image = Join-Path $PSScriptRoot "output-$Template\Virtual Hard Disks\$Template.vhdx"
    & (Join-Path $PSScriptRoot 'place-template.ps1') -Image $image -NewName:$NewName | ForEach-Object { Write-Host "$_" }
    $exitCode = 0
} catch {
    Write-Host "Failed: $($_.Exception.Message)"
} finally {
    Set-Location -LiteralPath $place
    Stop-Transcript | Out-Null
}
exit $exitCode
