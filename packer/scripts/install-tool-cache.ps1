# Fills the tool cache, from which setup-python, setup-node and setup-go take their
# versions, with the packages that those actions use themselves.
# https://github.com/actions/python-versions (and node-versions, go-versions)
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
. 'C:\runner-pool-build\common.ps1'

$env:RUNNER_TOOL_CACHE = 'C:\hostedtoolcache\windows'
$env:AGENT_TOOLSDIRECTORY = 'C:\hostedtoolcache\windows'

$tools = ConvertFrom-Json -InputObject (Get-Content -LiteralPath 'C:\runner-pool-build\tools.json' -Raw)
foreach ($wanted in $tools.toolCache) {
    $address = "https://raw.githubusercontent.com/actions/$($wanted.tool)-versions/main/versions-manifest.json"
    $manifest = Invoke-WithRetry { Invoke-RestMethod -Uri $address -UseBasicParsing -TimeoutSec 60 }
    foreach ($version in $wanted.versions) {
        # The manifest begins with the newest.
        $release = $manifest | Where-Object { $_.stable -and $_.version -like "$version.*" } | Select-Object -First 1
        if (-not $release) { throw "No stable $($wanted.tool) $version in its manifest." }
        $file = $release.files | Where-Object { $_.platform -eq 'win32' -and $_.arch -eq 'x64' } | Select-Object -First 1
        if (-not $file) { throw "$($wanted.tool) $($release.version) has no package for Windows." }

        Write-Output "$($wanted.tool) $($release.version)"
        $archive = "C:\runner-pool-build\$($file.filename)"
        $folder = "C:\runner-pool-build\$($wanted.tool)-$($release.version)"
        # The manifests name no checksum; the address is GitHub's, over TLS.
        Invoke-WithRetry { Invoke-WebRequest -Uri $file.download_url -OutFile $archive -UseBasicParsing -TimeoutSec 1800 }
        Invoke-Program -Path 'C:\Program Files\7-Zip\7z.exe' -Arguments 'x', $archive, "-o$folder", '-y', '-bso0'

        # In a process of its own: it was not written for strict mode, and it expects to
        # run in its folder.
        Push-Location -LiteralPath $folder
        Invoke-Program -Path 'powershell.exe' -Arguments '-NoProfile', '-ExecutionPolicy', 'Bypass', '-File', '.\setup.ps1'
        Pop-Location
        Remove-Item -LiteralPath $archive, $folder -Recurse -Force

        $installed = "C:\hostedtoolcache\windows\$($wanted.tool)\$($release.version)\x64"
        if (-not (Test-Path -LiteralPath $installed)) { throw "$installed is missing." }
        # The one that jobs get unless they choose. Python beside the cache would be in the
        # way of the cache's: their installers take each other for the same product.
        if ($version -eq $wanted.onPath) {
            Add-MachinePath -Folder $installed
            if ($wanted.tool -eq 'python') { Add-MachinePath -Folder "$installed\Scripts" }
        }
    }
}
