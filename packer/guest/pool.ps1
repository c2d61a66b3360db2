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

Add-Type -AssemblyName System.Net.Http

# Without this, .NET announces each body with `Expect: 100-continue` and waits.
[System.Net.ServicePointManager]::Expect100Continue = $false

$script:ValuesKey = 'HKLM:\SOFTWARE\Microsoft\Virtual Machine\External'
$script:RequestMilliseconds = 15000
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

# Sends one request. Returns the status (0 where no answer came) and the body of a good
# answer. By HttpClient, whose limit here holds for the whole answer: that of
# Invoke-WebRequest ends with the head in PowerShell 7. And JSON is UTF-8, which
# Invoke-WebRequest in 5.1 reads as Latin-1.
function Invoke-PoolRequest {
    param([string] $Method, [string] $Uri, [string] $Secret, [hashtable] $Body)
    $client = [System.Net.Http.HttpClient]::new()
    try {
        $request = [System.Net.Http.HttpRequestMessage]::new([System.Net.Http.HttpMethod]::new($Method), $Uri)
        $request.Headers.TryAddWithoutValidation('Authorization', "Bearer $Secret") | Out-Null
        $request.Headers.TryAddWithoutValidation('User-Agent', (Get-GuestUserAgent)) | Out-Null
        if ($null -ne $Body) {
            $bytes = [System.Text.Encoding]::UTF8.GetBytes((ConvertTo-Json -InputObject $Body -Compress))
            $request.Content = [System.Net.Http.ByteArrayContent]::new($bytes)
            $request.Content.Headers.ContentType = [System.Net.Http.Headers.MediaTypeHeaderValue]::new('application/json')
        }
        $sending = $client.SendAsync($request)
        if (-not $sending.Wait($script:RequestMilliseconds)) { return @{ Status = 0; Body = '' } }
        $answer = $sending.Result
        $content = ''
        if ($answer.IsSuccessStatusCode) { $content = [System.Text.Encoding]::UTF8.GetString($answer.Content.ReadAsByteArrayAsync().Result) }
        return @{ Status = [int] $answer.StatusCode; Body = $content }
    } catch [System.AggregateException], [System.Management.Automation.MethodInvocationException] {
        return @{ Status = 0; Body = '' }
    } finally {
        # Ends a request that took too long.
        $client.Dispose()
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
