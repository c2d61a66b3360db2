# Removes what the build leaves behind, and overwrites the free space with zeros, so
# that the disk's file can be compacted.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
. 'C:\runner-pool-build\common.ps1'

# Superseded parts of Windows. The updates cannot be uninstalled afterwards.
Invoke-Program -Path 'dism.exe' -Arguments '/Online', '/Cleanup-Image', '/StartComponentCleanup', '/ResetBase', '/Quiet'

Stop-Service -Name wuauserv -Force -ErrorAction SilentlyContinue
$folders = @(
    'C:\Windows\SoftwareDistribution\Download\*'
    'C:\Windows\Temp\*'
    'C:\Windows\Panther\*'
    'C:\ProgramData\chocolatey\lib-bad\*'
    "$env:LOCALAPPDATA\Temp\*"
)
foreach ($folder in $folders) {
    # Packer's own files (packer-*, script-*) are still needed; seal.ps1 removes them.
    Get-ChildItem -Path $folder -Force -Exclude 'packer-*', 'script-*' -ErrorAction SilentlyContinue | Remove-Item -Recurse -Force -ErrorAction SilentlyContinue
}
# Setup's copy of the answer file, though Windows has struck the passwords from it.
Remove-Item -Path 'C:\Windows\System32\Sysprep\unattend.xml', 'C:\unattend.xml' -Force -ErrorAction SilentlyContinue

$file = 'C:\zeros.tmp'
$megabyte = 1024 * 1024
$zeros = New-Object byte[] (16 * $megabyte)
$drive = New-Object System.IO.DriveInfo 'C'
$stream = [System.IO.File]::Create($file)
try {
    while ($drive.AvailableFreeSpace -gt 512 * $megabyte) { $stream.Write($zeros, 0, $zeros.Length) }
} finally {
    $stream.Dispose()
    Remove-Item -LiteralPath $file
}
Optimize-Volume -DriveLetter C -ReTrim -ErrorAction Stop
