# Switches the containers of Windows on, which Docker needs. Takes effect with the
# next restart; Docker itself is one of the packages of tools.json.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

& dism.exe /Online /Enable-Feature /FeatureName:Containers /All /NoRestart /Quiet
# 3010: done, restart wanted. Packer would take it for a failure of this script.
if ($LASTEXITCODE -notin 0, 3010) { throw "dism.exe ended with exit code $LASTEXITCODE." }
exit 0
