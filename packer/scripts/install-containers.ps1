# Switches the containers of Windows on, which Docker needs. Takes effect with the
# next restart; Docker itself is one of the packages of tools.json.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

Enable-WindowsOptionalFeature -Online -FeatureName Containers -All -NoRestart | Out-Null
