# Registers the task that seals the image and powers the VM off. The template's
# shutdown_command starts it.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

# seal.ps1 must know the build's account, and a task inherits no environment.
Set-Content -LiteralPath 'C:\runner-pool-build\build-user.txt' -Encoding Ascii -Value $env:BUILD_USER

# -ErrorAction on each: they are functions of a module, which do not see this script's
# $ErrorActionPreference.
$action = New-ScheduledTaskAction -Execute 'powershell.exe' -Argument '-NoProfile -NonInteractive -ExecutionPolicy Bypass -File C:\runner-pool-build\seal.ps1' -ErrorAction Stop
$system = New-ScheduledTaskPrincipal -UserId 'SYSTEM' -LogonType ServiceAccount -RunLevel Highest -ErrorAction Stop
Register-ScheduledTask -TaskName 'runner-pool-seal' -Action $action -Principal $system -Force -ErrorAction Stop | Out-Null
