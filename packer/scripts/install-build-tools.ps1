# Installs the Visual Studio Build Tools with the C++ and the .NET workload.
# https://learn.microsoft.com/en-us/visualstudio/install/workload-component-id-vs-build-tools
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
. 'C:\runner-pool-build\common.ps1'

$installer = 'C:\runner-pool-build\vs_buildtools.exe'
Save-Download -Uri 'https://aka.ms/vs/17/release/vs_buildtools.exe' -Path $installer -Signer 'Microsoft Corporation'
Invoke-Installer -Path $installer -Arguments @(
    '--quiet', '--wait', '--norestart', '--nocache', '--includeRecommended'
    '--add', 'Microsoft.VisualStudio.Workload.VCTools'
    '--add', 'Microsoft.VisualStudio.Workload.ManagedDesktopBuildTools'
)
Remove-Item -LiteralPath $installer

# What setup-msbuild and cmake ask for the installation.
$vswhere = 'C:\Program Files (x86)\Microsoft Visual Studio\Installer\vswhere.exe'
$found = & $vswhere -products '*' -requires Microsoft.VisualStudio.Component.VC.Tools.x86.x64 -property installationPath
if (-not $found) { throw 'vswhere.exe finds no C++ build tools.' }
Write-Output "Build Tools are in $found."
