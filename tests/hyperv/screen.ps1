<#
.SYNOPSIS
Writes a picture of a VM's screen, as a PNG.

.DESCRIPTION
For whoever wants to know where a VM without a network hangs. Run it as an administrator.

.EXAMPLE
.\tests\hyperv\screen.ps1 -VMName runner-1 -Path runner-1.png
#>
[CmdletBinding()]
param(
    [Parameter(Mandatory)] [string] $VMName,
    [Parameter(Mandatory)] [string] $Path
)
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
. (Join-Path -Path $PSScriptRoot -ChildPath '../../src/hypervisor/scripts/screen.ps1')

$picture = Get-ScreenPicture (Get-VM -Name $VMName).Id
[System.IO.File]::WriteAllBytes($ExecutionContext.SessionState.Path.GetUnresolvedProviderPathFromPSPath($Path), $picture)
