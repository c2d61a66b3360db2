# Names each JDK as GitHub's own runners do: JAVA_HOME_<version>_X64, and JAVA_HOME for
# the one that jobs get unless they choose.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
. 'C:\runner-pool-build\common.ps1'

$default = '17'
foreach ($folder in Get-ChildItem -Path 'C:\Program Files\Eclipse Adoptium' -Directory -Filter 'jdk-*') {
    $version = $folder.Name.Substring('jdk-'.Length).Split('.')[0]
    Set-MachineVariable -Name "JAVA_HOME_${version}_X64" -Value $folder.FullName
    if ($version -eq $default) {
        Set-MachineVariable -Name 'JAVA_HOME' -Value $folder.FullName
        Add-MachinePath -Folder (Join-Path $folder.FullName 'bin')
    }
}
if (-not $env:JAVA_HOME) { throw "JDK $default is not installed." }
