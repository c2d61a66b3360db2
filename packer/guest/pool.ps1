# What the guest's scripts share: who this VM is, and the three requests to the
# pool. Dot-sourced by start-runner.ps1 and job-started.ps1.
#
# The image knows neither the pool nor its own name. The host gives each VM its
# values through Hyper-V's key-value exchange, which Windows shows in the registry.
#
# The pool's side of the requests:
#   GET  {url}/api/runner-config/{vmName}    the runner's configuration, as JSON
#   POST {url}/api/runner-started/{vmName}   a job has started
#   POST {url}/api/runner-complete/{vmName}  the runner has ended
# each with `Authorization: Bearer {proof}` and this User-Agent, from which the
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

# Returns one of the values that the host gave this VM, or $null.
function Get-HostValue {
    param([string] $Name)
    $key = Get-Item -LiteralPath $script:ValuesKey -ErrorAction SilentlyContinue
    if ($null -ne $key) { return $key.GetValue($Name) }
}

# Returns who this VM is, or $null while the values are not all there.
function Get-PoolIdentity {
    $url = Get-HostValue 'RunnerPoolUrl'
    $vmName = Get-HostValue 'RunnerPoolVmName'
    $secret = Get-HostValue 'RunnerPoolVmSecret'
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

# Returns what proves to the pool that this VM sends a request. It is good for one route
# of one VM, so that a listener on the virtual switch learns nothing about the others.
function Get-Proof {
    param([string] $Secret, [string] $Method, [string] $Path)
    $hmac = [System.Security.Cryptography.HMACSHA256]::new([System.Text.Encoding]::ASCII.GetBytes($Secret))
    $hash = $hmac.ComputeHash([System.Text.Encoding]::ASCII.GetBytes("$Method $Path"))
    $hmac.Dispose()
    return -join ($hash | ForEach-Object { $_.ToString('x2') })
}

# Sends one request. Returns the status (0 where no answer came) and the body of a good
# answer. By HttpClient, whose limit here holds for the whole answer: that of
# Invoke-WebRequest ends with the head in PowerShell 7. And JSON is UTF-8, which
# Invoke-WebRequest in 5.1 reads as Latin-1.
function Invoke-PoolRequest {
    param([hashtable] $Pool, [string] $Method, [string] $Route, [hashtable] $Body)
    $path = "/api/$Route/$($Pool.VmName)"
    $client = [System.Net.Http.HttpClient]::new()
    try {
        $request = [System.Net.Http.HttpRequestMessage]::new([System.Net.Http.HttpMethod]::new($Method), "$($Pool.Url)$path")
        $proof = Get-Proof -Secret $Pool.Secret -Method $Method -Path $path
        $request.Headers.TryAddWithoutValidation('Authorization', "Bearer $proof") | Out-Null
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
    return Invoke-PoolRequest -Pool $Pool -Method 'GET' -Route 'runner-config'
}

function Send-RunnerStarted {
    param([hashtable] $Pool, [string] $RunId, [string] $Job, [string] $Repository)
    $body = @{ run_id = $RunId; job = $Job; repository = $Repository }
    return Invoke-PoolRequest -Pool $Pool -Method 'POST' -Route 'runner-started' -Body $body
}

function Send-RunnerComplete {
    param([hashtable] $Pool, [int] $ExitCode)
    $body = @{ exit_code = $ExitCode }
    return Invoke-PoolRequest -Pool $Pool -Method 'POST' -Route 'runner-complete' -Body $body
}
