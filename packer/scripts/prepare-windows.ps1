# Settings that every runner image has, and the folders that the build uses.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

New-Item -ItemType Directory -Force -Path 'C:\runner-pool-build', 'C:\runner-pool-guest' | Out-Null

# Jobs run scripts that they write themselves. Windows 11 would refuse all scripts.
# (Set-ExecutionPolicy fails in a process that was started with another policy.)
Set-ItemProperty -Path 'HKLM:\SOFTWARE\Microsoft\PowerShell\1\ShellIds\Microsoft.PowerShell' -Name ExecutionPolicy -Value 'RemoteSigned' -Type String

# Build trees are deep.
Set-ItemProperty -Path 'HKLM:\SYSTEM\CurrentControlSet\Control\FileSystem' -Name LongPathsEnabled -Value 1 -Type DWord

# A VM that lives for one job neither sleeps nor updates itself.
& powercfg.exe /setactive SCHEME_MIN
& powercfg.exe /change standby-timeout-ac 0
& powercfg.exe /hibernate off
$updatePolicy = 'HKLM:\SOFTWARE\Policies\Microsoft\Windows\WindowsUpdate\AU'
New-Item -Path $updatePolicy -Force | Out-Null
Set-ItemProperty -Path $updatePolicy -Name NoAutoUpdate -Value 1 -Type DWord

# Scanning slows the build down; seal.ps1 switches it on again. Windows 11 may refuse.
try {
    Set-MpPreference -DisableRealtimeMonitoring $true
} catch {
    Write-Output "Defender stays on during the build: $($_.Exception.Message)"
}

# Packer would take the exit code of powercfg.exe for that of this script.
exit 0
