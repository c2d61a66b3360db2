# Writes down how old the image is, for the guest to report: when it was built, its
# runner's version and, on an evaluation edition, when Windows ends.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
. 'C:\runner-pool-build\common.ps1'

$windows = Get-ItemProperty -Path 'HKLM:\SOFTWARE\Microsoft\Windows NT\CurrentVersion'
$end = ''
if ($windows.EditionID -like '*Eval*') {
    # 180 days for Windows Server, 90 for Windows 11, from the installation on.
    $days = 90
    if ($windows.InstallationType -like 'Server*') { $days = 180 }
    $installed = [DateTimeOffset]::FromUnixTimeSeconds($windows.InstallDate).UtcDateTime
    $end = $installed.AddDays($days).ToString('yyyy-MM-dd')

    # An evaluation must be activated within ten days of its installation. It usually
    # does so by itself; asked here, since a clone may live too briefly for it.
    try {
        Invoke-Program -Path 'cscript.exe' -Arguments '//NoLogo', 'C:\Windows\System32\slmgr.vbs', '/ato'
    } catch {
        Write-Warning "Windows is not activated: $($_.Exception.Message)"
    }
}

$image = [ordered]@{
    built                  = [DateTime]::UtcNow.ToString('yyyy-MM-dd')
    runner_version         = $env:RUNNER_VERSION
    windows_evaluation_end = $end
}
Set-Content -LiteralPath 'C:\runner-pool-guest\image.json' -Encoding Ascii -Value (ConvertTo-Json -InputObject $image -Compress)
