# Installs Rust for all accounts. rustup would put it into the profile of the build's.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
. 'C:\runner-pool-build\common.ps1'

$address = 'https://static.rust-lang.org/rustup/dist/x86_64-pc-windows-msvc/rustup-init.exe'
$installer = 'C:\runner-pool-build\rustup-init.exe'
# One line: the hash, and the name of the file.
$published = Invoke-RestMethod -Uri "$address.sha256" -UseBasicParsing
$hash = @($published.Trim() -split '\s+')[0]
Save-Download -Uri $address -Path $installer -Sha256 $hash

Set-MachineVariable -Name 'RUSTUP_HOME' -Value 'C:\rust\rustup'
Set-MachineVariable -Name 'CARGO_HOME' -Value 'C:\rust\cargo'
Invoke-Program -Path $installer -Arguments '-y', '--no-modify-path', '--default-toolchain', 'stable', '--profile', 'default'
Remove-Item -LiteralPath $installer
Add-MachinePath -Folder 'C:\rust\cargo\bin'

# Jobs add targets and components, and cargo keeps its downloads here.
Invoke-Program -Path 'icacls.exe' -Arguments 'C:\rust', '/grant', '*S-1-5-32-545:(OI)(CI)M', '/T', '/C', '/Q'
