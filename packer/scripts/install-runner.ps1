# Installs the GitHub Actions runner, of the version and SHA-256 that the template
# names, to C:\actions-runner, and makes the tool cache where GitHub's own runners
# have it.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
. 'C:\runner-pool-build\common.ps1'

$version = $env:RUNNER_VERSION
$zip = 'C:\runner-pool-build\actions-runner.zip'
Save-Download -Uri "https://github.com/actions/runner/releases/download/v$version/actions-runner-win-x64-$version.zip" -Path $zip -Sha256 $env:RUNNER_SHA256

New-Item -ItemType Directory -Force -Path 'C:\actions-runner', 'C:\hostedtoolcache\windows' | Out-Null
Expand-Archive -LiteralPath $zip -DestinationPath 'C:\actions-runner' -Force
Remove-Item -LiteralPath $zip

# The first name is the runner's, the second that of older setup actions.
Set-MachineVariable -Name 'RUNNER_TOOL_CACHE' -Value 'C:\hostedtoolcache\windows'
Set-MachineVariable -Name 'AGENT_TOOLSDIRECTORY' -Value 'C:\hostedtoolcache\windows'

# The runner reads .env of its folder when it starts.
Set-Content -LiteralPath 'C:\actions-runner\.env' -Encoding Ascii -Value @(
    'ACTIONS_RUNNER_HOOK_JOB_STARTED=C:\runner-pool-guest\job-started.ps1'
)
