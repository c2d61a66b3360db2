# What the guest's scripts share: who this VM is, and the three requests to the
# pool. Dot-sourced by start-runner.ps1 and job-started.ps1.
#
# The image knows neither the pool nor its own name. The host gives each VM three
# values through Hyper-V's key-value exchange, which Windows shows in the registry.
#
# The pool's side of the requests:
#   GET  {url}/api/runner-config/{vmName}    the runner's configuration, as JSON
#   POST {url}/api/runner-started/{vmName}   a job has started
#   POST {url}/api/runner-complete/{vmName}  the runner has ended
# each with `Authorization: Bearer {secret}` and this User-Agent, from which the
# pool learns how old the image is (the last part on evaluation editions only):
#   hyperv-runner-pool-guest/1 runner/<version> image/<yyyy-mm-dd> windows-evaluation/<yyyy-mm-dd>
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

# Windows PowerShell draws the progress of each request otherwise, which is slow.
$ProgressPreference = 'SilentlyContinue'

# Without this, .NET announces each body with `Expect: 100-continue` and waits.
[System.Net.ServicePointManager]::Expect100Continue = $false

$script:ValuesKey = 'HKLM:\SOFTWARE\Microsoft\Virtual Machine\External'
$script:ImageFile = Join-Path $PSScriptRoot 'image.json'

# Returns who this VM is, or $null while the values are not all there.
function Get-PoolIdentity {
    $key = Get-Item -LiteralPath $script:ValuesKey -ErrorAction SilentlyContinue
    if ($null -eq $key) { return $null }
    $url = $key.GetValue('RunnerPoolUrl')
    $vmName = $key.GetValue('RunnerPoolVmName')
    $secret = $key.GetValue('RunnerPoolVmSecret')
    if (-not $url -or -not $vmName -or -not $secret) { return $null }
    return @{ Url = $url.TrimEnd('/'); VmName = $vmName; Secret = $secret }
}

# Returns the User-Agent, made from what record-image.ps1 wrote into the image.
function Get-GuestUserAgent {
    $image = Get-Content -LiteralPath $script:ImageFile -Raw | ConvertFrom-Json
    $agent = "hyperv-runner-pool-guest/1 runner/$($image.runner_version) image/$($image.built)"
    if ($image.windows_evaluation_end) { $agent += " windows-evaluation/$($image.windows_evaluation_end)" }
    return $agent
}

# Sends one request. Returns the status (0 where no answer came) and the body.
function Invoke-PoolRequest {
    param([string] $Method, [string] $Uri, [string] $Secret, [hashtable] $Body)
    $request = @{
        Method          = $Method
        Uri             = $Uri
        Headers         = @{ Authorization = "Bearer $Secret" }
        UserAgent       = Get-GuestUserAgent
        TimeoutSec      = 15
        UseBasicParsing = $true
    }
    if ($null -ne $Body) {
        $request.ContentType = 'application/json'
        # As bytes, since Windows PowerShell would send a string as Latin-1.
        $request.Body = [System.Text.Encoding]::UTF8.GetBytes((ConvertTo-Json -InputObject $Body -Compress))
    }
    try {
        $answer = Invoke-WebRequest @request
        $content = $answer.Content
        if ($content -is [byte[]]) { $content = [System.Text.Encoding]::UTF8.GetString($content) }
        return @{ Status = [int] $answer.StatusCode; Body = [string] $content }
    } catch {
        # A refusal (4xx, 5xx) is an exception with an answer in it; a connection
        # that fails is one without.
        $property = $_.Exception.PSObject.Properties['Response']
        if ($null -eq $property -or $null -eq $property.Value) { return @{ Status = 0; Body = '' } }
        return @{ Status = [int] $property.Value.StatusCode; Body = '' }
    }
}

function Get-RunnerConfig {
    param([hashtable] $Pool)
    return Invoke-PoolRequest -Method 'GET' -Uri "$($Pool.Url)/api/runner-config/$($Pool.VmName)" -Secret $Pool.Secret
}

function Send-RunnerStarted {
    param([hashtable] $Pool, [string] $RunId, [string] $Job, [string] $Repository)
    $body = @{ run_id = $RunId; job = $Job; repository = $Repository }
    return Invoke-PoolRequest -Method 'POST' -Uri "$($Pool.Url)/api/runner-started/$($Pool.VmName)" -Secret $Pool.Secret -Body $body
}

function Send-RunnerComplete {
    param([hashtable] $Pool, [int] $ExitCode)
    $body = @{ exit_code = $ExitCode }
    return Invoke-PoolRequest -Method 'POST' -Uri "$($Pool.Url)/api/runner-complete/$($Pool.VmName)" -Secret $Pool.Secret -Body $body
}
