# Installs Chocolatey, which installs the tools. Each of its packages carries the
# SHA-256 of what it downloads.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
. 'C:\runner-pool-build\common.ps1'

$script = 'C:\runner-pool-build\install-chocolatey-upstream.ps1'
Save-Download -Uri 'https://community.chocolatey.org/install.ps1' -Path $script -Signer 'Chocolatey Software'
# In a process of its own: it was not written for strict mode.
Invoke-Program -Path 'powershell.exe' -Arguments '-NoProfile', '-ExecutionPolicy', 'Bypass', '-File', $script
