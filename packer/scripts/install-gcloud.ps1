# Installs the Google Cloud CLI for all accounts.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
. 'C:\runner-pool-build\common.ps1'

$installer = 'C:\runner-pool-build\GoogleCloudSDKInstaller.exe'
Save-Download -Uri 'https://dl.google.com/dl/cloudsdk/channels/rapid/GoogleCloudSDKInstaller.exe' -Path $installer -Signer 'Google LLC'
Invoke-Installer -Path $installer -Arguments '/S', '/allusers', '/noreporting'
Remove-Item -LiteralPath $installer
Add-MachinePath -Folder 'C:\Program Files (x86)\Google\Cloud SDK\google-cloud-sdk\bin'
