# Installs Rust for all accounts. rustup would put it into the profile of the build's.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
. 'C:\runner-pool-build\common.ps1'

$installer = 'C:\runner-pool-build\rustup-init.exe'
Save-Rustup -Path $installer

Set-MachineVariable -Name 'RUSTUP_HOME' -Value 'C:\rust\rustup'
Set-MachineVariable -Name 'CARGO_HOME' -Value 'C:\rust\cargo'
Invoke-Program -Path $installer -Arguments '-y', '--no-modify-path', '--default-toolchain', 'stable', '--profile', 'default'
Remove-Item -LiteralPath $installer
Add-MachinePath -Folder 'C:\rust\cargo\bin'

# Jobs add targets and components, and cargo keeps its downloads here.
Invoke-Program -Path 'icacls.exe' -Arguments 'C:\rust', '/grant', '*S-1-5-32-545:(OI)(CI)M', '/T', '/C', '/Q'
