# Installs what Windows Update offers, where INSTALL_UPDATES is true. One round; the
# template restarts Windows after it and runs it a second time.
# https://learn.microsoft.com/en-us/windows/win32/wua_sdk/searching--downloading--and-installing-updates
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

if ($env:INSTALL_UPDATES -ne 'true') {
    Write-Output 'Windows updates are not wanted.'
    exit 0
}

$session = New-Object -ComObject Microsoft.Update.Session
$found = $session.CreateUpdateSearcher().Search("IsInstalled=0 and Type='Software' and IsHidden=0")
$wanted = New-Object -ComObject Microsoft.Update.UpdateColl
foreach ($update in $found.Updates) {
    if ($update.InstallationBehavior.CanRequestUserInput) { continue }
    if (-not $update.EulaAccepted) { $update.AcceptEula() }
    Write-Output $update.Title
    $wanted.Add($update) | Out-Null
}
if ($wanted.Count -eq 0) {
    Write-Output 'No update is missing.'
    exit 0
}

$downloader = $session.CreateUpdateDownloader()
$downloader.Updates = $wanted
$downloader.Download() | Out-Null
$installer = $session.CreateUpdateInstaller()
$installer.Updates = $wanted
# Result codes: 2 done, 3 done with errors, 4 failed, 5 aborted.
$result = $installer.Install().ResultCode
Write-Output "Installed $($wanted.Count) updates, result $result."
if ($result -notin 2, 3) { throw "Windows Update failed with result $result." }
