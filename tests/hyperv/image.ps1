# The image, and real jobs in VMs of it: on one of GitHub's hosted Windows machines, which is
# thrown away afterwards, as administrator. It prepares the machine by bootstrap.ps1, builds and
# places the minimal image by packer\rebuild.ps1, and runs the pool as its service. GitHub is
# tests/fake-github.mjs, from which GitHub's own runner in the VMs takes its jobs.
#   .\tests\hyperv\image.ps1          needs target\release\hyperv-runner-pool.exe
#   ./tests/hyperv/image.ps1 -Fake    the same steps over the simulated host in FAKE_HYPERV, on
#                                     Linux: Packer is a stand-in, the pool a plain process, and
#                                     what is only about Windows and its network is left out
# With RUNNER_POOL_PAT in the environment the pool also serves GITHUB_REPOSITORY at GitHub, under
# the label pool-GITHUB_RUN_ID, until it has run one job.
# Runs under Windows PowerShell 5.1 and PowerShell 7.
param(
    [switch]$Fake,
    # For the pool. Unset: on the drive with the most room.
    [string]$Folder = '',
    # For logs and pictures.
    [string]$Artifacts = (Join-Path -Path ([System.IO.Path]::GetTempPath()) -ChildPath 'runner-pool-image'),
    [int]$Port = 8080,
    # How long the image may take to build, a VM to boot, and anything else, in seconds.
    [int]$BuildSeconds = 12600,
    [int]$BootSeconds = 1200,
    [int]$Patience = 300
)
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

$Root = Split-Path -Path (Split-Path -Path $PSScriptRoot -Parent) -Parent
. (Join-Path -Path $PSScriptRoot -ChildPath 'common.ps1')
$FreeGB = 60
if ($Fake) {
    Enter-FakeHost
    $FreeGB = 1
}
# GitHub's own in a step of a workflow, which would go before .env.
[Environment]::SetEnvironmentVariable('GITHUB_API_URL', $null)
if ($Folder -eq '') {
    $drive = [System.IO.DriveInfo]::GetDrives() | Where-Object { $_.IsReady -and [string]$_.DriveType -eq 'Fixed' } | Sort-Object -Property AvailableFreeSpace -Descending | Select-Object -First 1
    $Folder = Join-Path -Path $drive.RootDirectory.FullName -ChildPath 'runner-pool'
}
New-Item -Path $Folder, $Artifacts -ItemType Directory -Force | Out-Null
# What the pool's folder holds on a user's host.
foreach ($part in 'packer', 'bootstrap.ps1', 'start.ps1', '.env.example', 'src/hypervisor/scripts', 'tests/first-host.ps1') {
    $parent = Split-Path -Path (Join-Path -Path $Folder -ChildPath $part) -Parent
    New-Item -Path $parent -ItemType Directory -Force | Out-Null
    Copy-Item -LiteralPath (Join-Path -Path $Root -ChildPath $part) -Destination $parent -Recurse -Force
}
Copy-Item -Path (Join-Path -Path $Root -ChildPath 'target/release/hyperv-runner-pool*') -Include 'hyperv-runner-pool.exe', 'hyperv-runner-pool' -Destination $Folder
. (Join-Path -Path $Folder -ChildPath 'packer/common.ps1')
. (Join-Path -Path $Folder -ChildPath 'src/hypervisor/scripts/key-values.ps1')

$Service = 'hyperv-runner-pool'
$Pat = 'ghp_0123456789abcdefghijABCDEFGHIJ012345'
$Logs = Join-Path -Path $Folder -ChildPath 'logs'
$Binary = Find-Binary
if ($Binary -eq '') {
    throw 'There is no target\release\hyperv-runner-pool.exe. Build it with: cargo build --release'
}
$script:gitHub = $null
$script:pool = $null
$script:times = [ordered]@{}

# ---- Programs

# Takes a picture of each VM that is on, which replaces the one before. It may fail: a VM may
# just go.
function Save-Screen {
    foreach ($vm in @(Get-VM | Where-Object { [string]$_.State -eq 'Running' })) {
        try {
            & (Join-Path -Path $PSScriptRoot -ChildPath 'screen.ps1') -VMName $vm.Name -Path (Join-Path -Path $Artifacts -ChildPath "screen-$($vm.Name).png")
        } catch {
            Write-Host "    no picture of $($vm.Name): $($_.Exception.Message)"
        }
    }
}

# Runs one of the pool's scripts as a user does, in a PowerShell of its own, and shows its lines
# as they come. Returns them and the exit code. OnLine gets each line, and the seconds so far.
function Invoke-Script([string]$Name, [string]$Call, [int]$Seconds, [scriptblock]$OnLine = { }) {
    $lines = @('$ErrorActionPreference = ''Stop''')
    if ($Fake) {
        $lines += ". '$(Join-Path -Path $PSScriptRoot -ChildPath 'common.ps1')'", 'Enter-FakeHost'
        # What packer\rebuild.ps1 asks of github.com.
        $lines += 'function Invoke-RestMethod { if ("$args" -notlike "*api.github.com*") { return (Microsoft.PowerShell.Utility\Invoke-RestMethod @args) }',
        '[pscustomobject]@{ tag_name = "v2.336.0"; body = "<!-- BEGIN SHA win-x64 -->$("a" * 64)<!-- END SHA win-x64 -->" } }'
    }
    $lines += "& '$Folder/$Call", 'exit $LASTEXITCODE'
    $file = Join-Path -Path $Artifacts -ChildPath "$Name.ps1"
    [System.IO.File]::WriteAllLines($file, [string[]]$lines)
    $output = Join-Path -Path $Artifacts -ChildPath $Name
    $process = Start-Program (Get-Process -Id $PID).Path @('-NoProfile', '-NonInteractive', '-ExecutionPolicy', 'Bypass', '-File', "`"$file`"") $output
    $clock = [System.Diagnostics.Stopwatch]::StartNew()
    $pictures = 0
    $shown = 0
    do {
        $isOver = $process.WaitForExit(200)
        if ($isOver) {
            $process.WaitForExit()
        }
        $all = @((Get-ProgramOutput $output) -split '\n')
        # The last line may not be whole yet.
        for (; $shown -lt $all.Count - [int](-not $isOver); $shown++) {
            Write-Host "    $($all[$shown])"
            & $OnLine $all[$shown] $clock.Elapsed.TotalSeconds
        }
        # A build that hangs takes its VM away when it gives up.
        if ($clock.Elapsed.TotalSeconds -gt 300 * ($pictures + 1)) {
            $pictures++
            Save-Screen
        }
        if (-not $isOver -and $clock.Elapsed.TotalSeconds -gt $Seconds) {
            Save-Screen
            Stop-Process -Id $process.Id -Force
            throw "$Name does not end within $Seconds seconds."
        }
    } while (-not $isOver)
    return @{ ExitCode = $process.ExitCode; Lines = $all }
}

function Start-Pool {
    if (-not $Fake) {
        $started = Invoke-Script 'start' 'start.ps1'' -Install' $Patience
        if ($started.ExitCode -ne 0) {
            throw "start.ps1 -Install ended with exit code $($started.ExitCode)."
        }
        return
    }
    Push-Location -LiteralPath $Folder
    $script:pool = Start-Program $Binary @() (Join-Path -Path $Artifacts -ChildPath 'pool')
    Pop-Location
}

function Stop-Pool {
    if (-not $Fake) {
        & $Binary service stop | ForEach-Object { Write-Host "    $_" }
        if ($LASTEXITCODE -ne 0) {
            throw "``service stop`` ended with exit code $LASTEXITCODE."
        }
        return
    }
    & '/bin/kill' -INT $script:pool.Id
    if (-not $script:pool.WaitForExit(1000 * $Patience)) {
        throw "The pool does not stop within $Patience seconds."
    }
    if ($script:pool.ExitCode -ne 0) {
        throw "The pool stopped with exit code $($script:pool.ExitCode)."
    }
}

# ---- What is seen

# What the pool says of itself; nothing while it does not listen.
function Get-PoolStatus {
    try {
        return (Invoke-RestMethod -Uri "http://127.0.0.1:$Port/api/status" -UseBasicParsing -TimeoutSec 60)
    } catch {
        return $null
    }
}

# Waits until as many slots are ready, with VMs other than these incarnations.
function Wait-Ready([int]$Ready, [string[]]$Old, [int]$Seconds) {
    try {
        Wait-Until "Not $Ready VMs are ready, new where one ended," $Seconds {
            if ($null -ne $script:pool -and $script:pool.HasExited) {
                throw "The pool ended with exit code $($script:pool.ExitCode)."
            }
            $status = Get-PoolStatus
            $null -ne $status -and @($status.slots | Where-Object { $_.state -eq 'ready' -and $Old -notcontains $_.incarnation }).Count -eq $Ready
        } | Out-Null
    } catch {
        $status = Get-PoolStatus
        if ($null -eq $status) {
            throw "$($_.Exception.Message) (the pool does not listen)"
        }
        $slots = $status.slots | ForEach-Object { "$($_.slot) $($_.state) $($_.guest_stage) $($_.guest_error) $($_.reason)".Trim() }
        throw "$($_.Exception.Message) (slots: $($slots -join '; '))"
    }
}

function Get-Incarnation {
    return @((Get-PoolStatus).slots | ForEach-Object { $_.incarnation })
}

# ---- Jobs

# Windows' own PowerShell in the image; PowerShell 7 where the guests are played.
$Shell = 'powershell'
if ($Fake) {
    $Shell = 'pwsh'
}

# Queues a job that runs a script, in which @{...} stands for the values. Returns its id.
function Add-Job([string]$Text, $Values) {
    $json = (ConvertTo-Json -InputObject $Values -Depth 4 -Compress).Replace("'", "''")
    $body = ConvertTo-Json -InputObject @{ script = "`$given = ConvertFrom-Json '$json'`n$Text"; shell = $Shell } -Compress
    return (Invoke-RestMethod -Method Post -Uri "$($script:gitHub.Url)/-/jobs" -Body $body -UseBasicParsing -TimeoutSec 60).id
}

function Get-Job([int]$Id) {
    return (Invoke-RestMethod -Uri "$($script:gitHub.Url)/-/jobs" -UseBasicParsing -TimeoutSec 60 | ForEach-Object { $_ } | Where-Object { $_.id -eq $Id })
}

# Waits for what a job has to say.
function Wait-Report([int]$Id) {
    Wait-Until "Job $Id says nothing" $Patience { (Get-Job $Id).report }
}

function Wait-Success([int]$Id) {
    $job = Wait-Until "Job $Id does not end" $Patience {
        $now = Get-Job $Id
        if ($now.state -eq 'completed') { $now }
    }
    if ($job.result -ne 'succeeded') {
        throw "Job $Id on $($job.runner) ended as $($job.result)."
    }
    # Only the runner's hook in the VM names the job: there are no webhooks here.
    Wait-Until "The hook did not report job ${Id}: the log does not name it" $Patience { @(Get-LogLine $Logs "*build of acme/app, run $Id*").Count -gt 0 } | Out-Null
    return $job
}

# What jobs share: telling the stand-in for GitHub, and looking whether a port is reached.
$JobTools = @'
$ErrorActionPreference = 'Stop'
function Send-Report($Report) {
    Invoke-RestMethod -Method Post -Uri "$($given.gitHub)/-/jobs/$env:GITHUB_RUN_ID" -Body (ConvertTo-Json -InputObject $Report -Compress) -UseBasicParsing | Out-Null
}
function Test-Port([string]$Name, [int]$Port) {
    $family = [System.Net.Sockets.AddressFamily]::InterNetwork
    if ($Name.Contains(':')) { $family = [System.Net.Sockets.AddressFamily]::InterNetworkV6 }
    $client = [System.Net.Sockets.TcpClient]::new($family)
    try { return $client.ConnectAsync($Name, $Port).Wait(8000) } catch { return $false } finally { $client.Dispose() }
}
$uri = [uri]$given.gitHub
$client = [System.Net.Sockets.TcpClient]::new([System.Net.Sockets.AddressFamily]::InterNetwork)
$client.Connect($uri.Host, $uri.Port)
$address = [string]$client.Client.LocalEndPoint.Address
$client.Dispose()

'@

# Opens a port, tells it, and waits until the job after it is over.
$ListenerJob = $JobTools + @'
$listener = [System.Net.Sockets.TcpListener]::new([System.Net.IPAddress]::Any, 0)
$listener.Start()
$port = $listener.LocalEndpoint.Port
if ($env:OS -eq 'Windows_NT') { New-NetFirewallRule -DisplayName 'listener' -Direction Inbound -Action Allow -Protocol TCP -LocalPort $port | Out-Null }
Send-Report @{ address = $address; port = $port; reachesItself = (Test-Port $address $port) }
$next = [int]$env:GITHUB_RUN_ID + 1
for ($i = 0; $i -lt 600; $i++) {
    $job = Invoke-RestMethod -Uri "$($given.gitHub)/-/jobs" -UseBasicParsing | ForEach-Object { $_ } | Where-Object { $_.id -eq $next }
    if ($job -and $job.state -eq 'completed') { exit 0 }
    Start-Sleep -Seconds 1
}
exit 1
'@

# Tells what it reaches.
$LookJob = $JobTools + @'
$reached = @{}
foreach ($target in $given.targets) {
    $reached[$target.what] = if ($target.port -eq 0) {
        try { @([System.Net.Dns]::GetHostAddresses($target.name)).Count -gt 0 } catch { $false }
    } else {
        Test-Port $target.name $target.port
    }
}
Send-Report @{ address = $address; computer = [Environment]::MachineName; windows = [string][Environment]::OSVersion; reached = $reached }
'@

# The times that the pool's log names, of one kind.
function Get-LoggedTime([string]$Pattern) {
    return (@(Get-LogLine $Logs '*' | ForEach-Object { if ($_ -match $Pattern) { $Matches.time } }) -join ', ')
}

# ---- The steps

$passed = $false
$script:hostPort = $null
try {
    Invoke-Step 'The machine has what it takes' { Assert-Machine 4 16 $FreeGB $Folder }

    if (-not $Fake) {
        Invoke-Step 'Docker gives up the one NAT of the host' { Remove-DockerNetwork }

        Invoke-Step 'bootstrap.ps1 prepares the host, and installs nothing the second time' {
            # At first with its own .env.
            foreach ($time in 'first', 'second') {
                $result = Invoke-Script "bootstrap-$time" 'bootstrap.ps1''' 3600
                if ($result.ExitCode -ne 0) {
                    throw "bootstrap.ps1 ended with exit code $($result.ExitCode)."
                }
            }
            $again = @($result.Lines | Where-Object { $_ -match '^\[done\]' -and $_ -notmatch 'the firewall rule' })
            if ($again.Count -gt 0) {
                throw "The second run did again: $($again -join '; ')"
            }
            # For this process, and what it starts.
            $machine = [Environment]::GetEnvironmentVariable('Path', 'Machine')
            $env:Path = "$env:Path;$machine"
        }
    }
    Invoke-Step 'Settings' {
        if ($Fake) {
            Set-Setting -Name 'VM_SWITCH' -Value 'Runners'
        }
        $settings = [ordered]@{
            GITHUB_PAT = $Pat; GITHUB_ORG = 'acme'; WEBHOOK_SECRET = New-RandomPassword; PORT = $Port; POOL_SIZE = 2
            VM_MEMORY_MB = 3072; BOOT_TIMEOUT = $BootSeconds; LOG_DIR = 'logs'; LOG_LEVEL = 'debug'
            VM_TEMPLATE_PATH = 'vms/templates/runner-template.vhdx'; VM_STORAGE_PATH = 'vms/storage'
        }
        if ($Fake) {
            $settings['POLL_SECONDS'] = 2
        }
        foreach ($name in $settings.Keys) {
            Set-Setting -Name $name -Value ([string]$settings[$name])
        }
        New-Item -Path (Get-StoragePath), (Split-Path -Path (Get-TemplatePath) -Parent) -ItemType Directory -Force | Out-Null
        "$($settings.Count) settings in .env"
    }
    $switchName = Get-Setting -Name 'VM_SWITCH'
    $onSwitch = Get-SwitchAddress -SwitchName $switchName
    $hostAddress = [string]$onSwitch.IPAddress

    Invoke-Step 'Packer builds the image, and a VM of it boots before it is placed' {
        $env:PACKER_CACHE_DIR = Join-Path -Path $Folder -ChildPath 'packer_cache'
        $temp = New-Item -Path (Join-Path -Path $Folder -ChildPath 'temp') -ItemType Directory -Force
        $values = Join-Path -Path $Artifacts -ChildPath 'image.pkrvars.hcl'
        [System.IO.File]::WriteAllText($values, "temp_path = $(ConvertTo-Json -InputObject $temp.FullName)`n")
        $clock = [System.Diagnostics.Stopwatch]::StartNew()
        $result = Invoke-Script 'rebuild' "packer/rebuild.ps1' -SkipUpdates -VarFile '$values'" $BuildSeconds {
            param($Line, $Seconds)
            if ($Line -like '*Connected to WinRM!*') { $script:times['from the build''s start to WinRM'] = '{0:0} s' -f $Seconds }
            if ($Line -like '*The guest answers:*') { $script:times['from the build''s start to the guest''s answer'] = '{0:0} s' -f $Seconds }
        }
        if ($result.ExitCode -ne 0) {
            throw "rebuild.ps1 ended with exit code $($result.ExitCode)."
        }
        if (-not $script:times.Contains('from the build''s start to the guest''s answer') -or -not $script:times.Contains('from the build''s start to WinRM')) {
            throw 'Its log tells of no connection by WinRM, or of no guest that answered.'
        }
        $script:times['the build'] = '{0:0} s' -f $clock.Elapsed.TotalSeconds
        "the template has $([Math]::Round((Get-Item -LiteralPath (Get-TemplatePath)).Length / 1GB, 1)) GB"
    }

    Invoke-Step 'A stand-in for GitHub, and a port of the host that no VM is to reach' {
        if (-not $Fake) {
            $env:FAKE_GITHUB_ADDRESS = $hostAddress
        }
        $script:gitHub = Start-FakeGitHub $Pat (Join-Path -Path $Artifacts -ChildPath 'github')
        $gitHubPort = ([uri]$script:gitHub.Url).Port
        Set-Setting -Name 'GITHUB_API_URL' -Value $script:gitHub.Url
        $script:hostPort = [System.Net.Sockets.TcpListener]::new([System.Net.IPAddress]::Any, 0)
        $script:hostPort.Start()
        if (-not $Fake) {
            Set-Setting -Name 'VM_ALLOW' -Value "${hostAddress}:$gitHubPort"
            # Both pass the firewall: for the second the walls alone are in the way.
            $prefix = Get-Prefix $hostAddress $onSwitch.PrefixLength
            New-NetFirewallRule -DisplayName 'image.ps1' -Direction Inbound -Action Allow -Protocol TCP -LocalPort $gitHubPort, $script:hostPort.LocalEndpoint.Port -RemoteAddress $prefix -Profile Any -ErrorAction Stop | Out-Null
        }
        "GitHub is at ${hostAddress}:$gitHubPort; $($script:hostPort.LocalEndpoint.Port) is another port of the host"
    }

    Invoke-Step 'The pool starts, VMs boot, their runners listen' {
        $clock = [System.Diagnostics.Stopwatch]::StartNew()
        Start-Pool
        Wait-Ready 2 @() $BootSeconds
        $script:times['from the pool''s start to two ready VMs'] = '{0:0.0} s' -f $clock.Elapsed.TotalSeconds
        Wait-Until 'Not both runners are online' $Patience {
            @(Invoke-RestMethod -Uri "$($script:gitHub.Url)/-/online" -UseBasicParsing -TimeoutSec 60 | ForEach-Object { $_ }).Count -eq 2
        } | Out-Null
        Get-LogLine $Logs '*: ready after *'
    }

    Invoke-Step 'first-host.ps1 finds nothing that differs' {
        if (-not $Fake) {
            # So that the monitor has taken the JIT configurations back.
            Start-Sleep -Seconds 130
        }
        $result = Invoke-Script 'first-host' 'tests/first-host.ps1''' $Patience
        if ($result.ExitCode -ne 0) {
            throw "It ended with exit code $($result.ExitCode)."
        }
    }

    Invoke-Step 'A job looks around' {
        $old = Get-Incarnation
        $values = Get-HostValue
        $given = @(Get-VM | Where-Object { $_.Name -like 'runner-*' } | ForEach-Object { $values[([string]$_.Id).ToUpperInvariant()].RunnerPoolAddress })
        $common = "http://${hostAddress}:$(([uri]$script:gitHub.Url).Port)"
        $listening = Add-Job $ListenerJob @{ gitHub = $common }
        $sibling = Wait-Report $listening
        # What is looked at, and whether it is reached behind walls, which the simulated host has not.
        $targets = @(
            @{ what = 'the pool''s port'; name = $hostAddress; port = $Port; wanted = $true }
            @{ what = 'another port of the host'; name = $hostAddress; port = $script:hostPort.LocalEndpoint.Port; wanted = [bool]$Fake }
            @{ what = 'a port of the other VM'; name = $sibling.address; port = $sibling.port; wanted = [bool]$Fake }
        )
        if (-not $Fake) {
            $targets += @(
                @{ what = 'DNS'; name = 'github.com'; port = 0; wanted = $true }
                @{ what = 'the internet'; name = 'api.github.com'; port = 443; wanted = $true }
                @{ what = 'the metadata of the cloud'; name = '169.254.169.254'; port = 80; wanted = $false }
                @{ what = 'Azure''s host'; name = '168.63.129.16'; port = 80; wanted = $false }
                @{ what = 'the internet by IPv6'; name = '2606:4700:4700::1111'; port = 443; wanted = $false }
            )
        }
        $looking = Add-Job $LookJob @{ gitHub = $common; targets = $targets }
        $report = Wait-Report $looking
        Wait-Success $looking | Out-Null
        Wait-Success $listening | Out-Null
        $clock = [System.Diagnostics.Stopwatch]::StartNew()
        if (-not $sibling.reachesItself) {
            throw 'The other VM does not reach its own port, so it proves nothing that this one does not.'
        }
        if (-not $Fake) {
            foreach ($address in $sibling.address, $report.address) {
                if ($given -notcontains $address) {
                    throw "A VM has the address $address; the key-values name $($given -join ', ')."
                }
            }
        }
        "on $($report.computer) ($($report.windows)), $($report.address)"
        foreach ($target in $targets) {
            $reached = [bool]$report.reached.($target.what)
            $line = "$($target.what) ($($target.name)): $(@('not reached', 'reached')[[int]$reached])"
            if ($reached -ne $target.wanted) {
                throw "A job finds $line."
            }
            $line
        }
        Wait-Ready 2 $old $BootSeconds
        $script:times['from the end of two jobs to their replacements'] = '{0:0.0} s' -f $clock.Elapsed.TotalSeconds
        Get-LogLine $Logs '*: ended after *'
    }

    Invoke-Step 'A second job, on a VM that replaced one' {
        $old = Get-Incarnation
        $id = Add-Job 'Write-Output "hello from $env:RUNNER_NAME"' @{}
        $job = Wait-Success $id
        $clock = [System.Diagnostics.Stopwatch]::StartNew()
        $slot = @($old | Where-Object { $job.runner -like "*$_" })
        if ($slot.Count -ne 1) {
            throw "The job ran on $($job.runner), which is none of $($old -join ', ')."
        }
        Wait-Ready 2 $slot $BootSeconds
        $script:times['from the end of a job to the replacement'] = '{0:0.0} s' -f $clock.Elapsed.TotalSeconds
        "on $($job.runner)"
    }

    if (-not $Fake) {
        Invoke-Step 'A job that restarts Windows ends its VM' {
            $old = Get-Incarnation
            $id = Add-Job '& shutdown.exe /r /t 0; Start-Sleep -Seconds 600' @{}
            $job = Wait-Until 'No runner takes the job' $Patience {
                $now = Get-Job $id
                if ($now.runner) { $now }
            }
            Wait-Ready 2 @($old | Where-Object { $job.runner -like "*$_" }) ($BootSeconds + $Patience)
            Get-LogLine $Logs "*: ended after *run $id*"
        }
    }

    Invoke-Step 'The pool stops, and its VMs retire' {
        Stop-Pool
        $left = @(Get-VM | Where-Object { $_.Name -like 'runner-*' }).Count + @(Get-ChildItem -LiteralPath (Get-StoragePath) -Filter '*.vhdx' -File).Count
        if ($left -gt 0) {
            throw "$left VMs and disks are left."
        }
        $retired = @(Get-LogLine $Logs '*ended without a job: it retired*')
        if ($retired.Count -lt 2) {
            throw "$($retired.Count) of 2 idle VMs obeyed when they were asked to retire."
        }
        $retired
    }

    if ([string]$env:RUNNER_POOL_PAT -eq '') {
        Invoke-Step 'GitHub itself: skipped, since RUNNER_POOL_PAT is not set' { Add-Summary '*GitHub itself: skipped, since no environment of this repository gives a token.*' }
    } else {
        Invoke-Step 'A job of this repository, from GitHub itself' {
            $owner, $repository = $env:GITHUB_REPOSITORY -split '/'
            $settings = [ordered]@{
                GITHUB_PAT = $env:RUNNER_POOL_PAT; GITHUB_ORG = $owner; GITHUB_REPO = $repository; POOL_SIZE = 1
                RUNNER_LABELS = "self-hosted,Windows,X64,pool-$env:GITHUB_RUN_ID"
            }
            if (-not $Fake) {
                $settings['GITHUB_API_URL'] = 'https://api.github.com'
            }
            foreach ($name in $settings.Keys) {
                Set-Setting -Name $name -Value ([string]$settings[$name])
            }
            $id = 0
            if ($Fake) {
                $id = Add-Job 'Write-Output hello' @{}
            }
            Start-Pool
            # The workflow's own job waits for this label since the run began.
            Wait-Until 'The pool runs no job of this repository' ($BootSeconds + $Patience) {
                $status = Get-PoolStatus
                $null -ne $status -and $status.jobs_completed -ge 1
            } | Out-Null
            if ($id -ne 0) {
                Wait-Success $id | Out-Null
            }
            Wait-Ready 1 @() $BootSeconds
            Stop-Pool
            @(Get-LogLine $Logs '*: ended after *')[-1]
        }
    }

    Invoke-Step 'Uninstalled, and no secret is in the log' {
        if (-not $Fake) {
            & $Binary service uninstall | ForEach-Object { "$_" }
            if ($LASTEXITCODE -ne 0 -or @(Get-Service -Name $Service -ErrorAction SilentlyContinue).Count -gt 0) {
                throw 'The service is still there.'
            }
        }
        # The last is how JIT configurations begin.
        $secrets = [ordered]@{ 'a token' = $Pat; 'RUNNER_POOL_PAT' = $env:RUNNER_POOL_PAT; 'WEBHOOK_SECRET' = Get-Setting -Name 'WEBHOOK_SECRET'; 'a JIT configuration' = 'eyIucnVubmVy' }
        foreach ($what in $secrets.Keys) {
            $secret = [string]$secrets[$what]
            if ($secret -ne '' -and @(Get-LogLine $Logs '*' | Where-Object { $_.Contains($secret) }).Count -gt 0) {
                throw "The log has $what."
            }
        }
        $script:times['VMs made in'] = Get-LoggedTime ': made in (?<time>[\d.]+( min \d+)? s)'
        $script:times['VMs ready after'] = Get-LoggedTime ': ready after (?<time>[\d.]+( min \d+)? s)'
        $script:times['VMs destroyed in'] = Get-LoggedTime ': destroyed in (?<time>[\d.]+( min \d+)? s)'
        $table = @($script:times.Keys | ForEach-Object { "| $_ | $($script:times[$_]) |" })
        Add-Summary (@('### The image, and jobs in VMs of it', '', '| what | time |', '|---|---|') + $table)
        $table
    }
    $passed = $true
} finally {
    if (-not $passed) {
        Save-Screen
    }
    foreach ($file in @(Get-ChildItem -Path "$Logs/*.log*" -File -ErrorAction SilentlyContinue)) {
        Copy-Item -LiteralPath $file.FullName -Destination $Artifacts -Force
    }
    if ($null -ne $script:pool -and -not $script:pool.HasExited) {
        $script:pool.Kill()
    }
    if ($null -ne $script:gitHub) {
        $script:gitHub.Process.Kill()
    }
    Write-Host "Logs and pictures are in $Artifacts."
}
