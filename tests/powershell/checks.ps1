# The checks of the pool's scripts on a simulated Hyper-V host, for run.ps1 and
# for Pester. Each script runs in a process of its own, as the pool runs it:
# a request in on standard input, one line of JSON out.
# Works in Windows PowerShell 5.1 and PowerShell 7, on Windows and on Linux.

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

. (Join-Path -Path (Join-Path -Path (Join-Path -Path $PSScriptRoot -ChildPath 'modules') -ChildPath 'Hyper-V') -ChildPath 'Record.ps1')

function Assert-True($Condition, [string]$What) {
    if (-not $Condition) {
        throw $What
    }
}

function Assert-Equal($Actual, $Expected, [string]$What) {
    if ([string]$Actual -cne [string]$Expected) {
        throw "${What}: expected '$Expected', found '$Actual'"
    }
}

function Assert-Like($Actual, [string]$Pattern, [string]$What) {
    if (-not ([string]$Actual -like $Pattern)) {
        throw "${What}: expected something like '$Pattern', found '$Actual'"
    }
}

# The PowerShell that runs these checks, to start another of the same kind.
function Get-PowerShellPath {
    foreach ($name in 'pwsh', 'pwsh.exe', 'powershell.exe') {
        $path = Join-Path -Path $PSHOME -ChildPath $name
        if (Test-Path -LiteralPath $path -PathType Leaf) {
            return $path
        }
    }
    return 'pwsh'
}

# A new simulated host: a template, a storage folder, two switches. The space
# in the folder's name is on purpose.
function New-FakeHost {
    $folder = Join-Path -Path ([System.IO.Path]::GetTempPath()) -ChildPath ('runner pool ' + [guid]::NewGuid().ToString())
    $templates = Join-Path -Path $folder -ChildPath 'templates'
    $storage = Join-Path -Path $folder -ChildPath 'storage'
    New-Item -Path $templates -ItemType Directory -Force | Out-Null
    New-Item -Path $storage -ItemType Directory -Force | Out-Null
    $fake = [pscustomobject]@{
        Folder   = $folder
        Storage  = $storage
        Template = Join-Path -Path $templates -ChildPath 'runner-template.vhdx'
    }
    [System.IO.File]::WriteAllText($fake.Template, 'vhdxfile the template')
    Set-FakeHost $fake @{}
    return $fake
}

function Set-FakeHost($Fake, $Changes) {
    $facts = @{
        service   = 'Running'
        switches  = @('Default Switch', 'Lan')
        addresses = @(
            @{ adapter = 'Ethernet'; alias = 'Ethernet'; ip = '10.0.0.7' },
            @{ adapter = 'Default Switch'; alias = 'vEthernet (Default Switch)'; ip = '169.254.9.9' },
            @{ adapter = 'Default Switch'; alias = 'vEthernet (Default Switch)'; ip = '172.20.0.1' }
        )
        firewall  = @{ enabled = 'True'; rules = @() }
        dns       = @(
            @{ adapter = 'Default Switch'; metric = 5000; servers = @() }, @{ adapter = 'Unplugged'; metric = 1; servers = @('10.9.9.9') },
            @{ adapter = 'Wi-Fi'; metric = 35; servers = @('8.8.8.8', '10.0.0.53') }, @{ adapter = 'Ethernet'; metric = 25; servers = @('10.0.0.53') }
        )
        routes    = @('0.0.0.0/0', '10.0.0.0/24', '10.0.0.7/32', '127.0.0.0/8', '224.0.0.0/4', '255.255.255.255/32')
        nats      = @()
        external  = @('Lan')
    }
    foreach ($key in @($Changes.Keys)) {
        $facts[$key] = $Changes[$key]
    }
    $path = Join-Path -Path $Fake.Folder -ChildPath 'host.json'
    [System.IO.File]::WriteAllText($path, (ConvertTo-Json -InputObject $facts -Depth 6))
}

function Remove-FakeHost($Fake) {
    foreach ($file in @(Get-ChildItem -LiteralPath $Fake.Folder -Recurse -File)) {
        $file.IsReadOnly = $false
    }
    # On Windows a file stays for a moment while a virus scanner reads it.
    Invoke-OnFile { Remove-Item -LiteralPath $Fake.Folder -Recurse -Force }
}

# The VMs on the simulated host. Wrap the call in @( ).
function Get-FakeVM($Fake) {
    Read-FakeRecord $Fake.Folder
}

function Add-FakeVM($Fake, [string]$Name, [string]$State, [string]$Notes, [string]$Disk) {
    if ($Disk -ne '') {
        [System.IO.File]::WriteAllText($Disk, 'vhdxfile a disk')
    }
    Save-FakeRecord $Fake.Folder (New-FakeRecord $Name $State $Notes $Disk)
}

# How often a function of the simulated host was called.
function Get-CallCount($Fake, [string]$Command) {
    $path = Join-Path -Path $Fake.Folder -ChildPath 'calls.log'
    if (-not (Test-Path -LiteralPath $path)) {
        return 0
    }
    return @([System.IO.File]::ReadAllLines($path) | Where-Object { $_ -eq $Command }).Count
}

# Sends a text to a script and gives back the line that it answers. The script is run as by
# -File, or, where a call fails, with `&`, which is harder on it.
function Invoke-ScriptText($Fake, [string]$Script, [string]$Text, [string]$Fault) {
    $root = Split-Path -Path (Split-Path -Path $PSScriptRoot -Parent) -Parent
    $file = Join-Path -Path $root -ChildPath "src/hypervisor/scripts/$Script.ps1"
    $runner = Join-Path -Path $PSScriptRoot -ChildPath 'host.ps1'
    $utf8 = [System.Text.UTF8Encoding]::new($false)

    $start = [System.Diagnostics.ProcessStartInfo]::new()
    # Not by $env: checks run beside each other.
    $start.EnvironmentVariables['FAKE_HYPERV'] = $Fake.Folder
    $start.EnvironmentVariables['FAKE_HYPERV_FAULT'] = $Fault
    $start.FileName = Get-PowerShellPath
    $start.Arguments = "-NoProfile -NonInteractive -ExecutionPolicy Bypass -File `"$runner`" `"$file`""
    if ($Fault -ne '') {
        $start.Arguments += ' -Call'
    }
    $start.UseShellExecute = $false
    $start.CreateNoWindow = $true
    $start.RedirectStandardInput = $true
    $start.RedirectStandardOutput = $true
    $start.RedirectStandardError = $true
    $start.StandardOutputEncoding = $utf8
    $process = [System.Diagnostics.Process]::Start($start)
    $errors = $process.StandardError.ReadToEndAsync()
    $bytes = $utf8.GetBytes($Text)
    $process.StandardInput.BaseStream.Write($bytes, 0, $bytes.Length)
    $process.StandardInput.Close()
    $output = $process.StandardOutput.ReadToEnd()
    $process.WaitForExit()

    $all = "$Script wrote '$output' and, as errors, '$($errors.Result)'"
    Assert-Equal $process.ExitCode 0 "$Script's exit code ($all)"
    Assert-True ($output.EndsWith("`n")) "$Script did not end its line: $all"
    $lines = @($output.TrimEnd() -split "`n")
    Assert-Equal $lines.Count 1 "the lines that $Script wrote ($all)"
    return $lines[0].Trim()
}

# Sends a request to a script and gives back its answer.
function Invoke-PoolScript($Fake, [string]$Script, $Request, [string]$Fault) {
    $text = ConvertTo-Json -InputObject $Request -Depth 5 -Compress
    return (ConvertFrom-Json -InputObject (Invoke-ScriptText $Fake $Script $text $Fault))
}

function Assert-Success($Answer) {
    if (-not $Answer.ok) {
        throw "the script failed at '$($Answer.at)': $($Answer.error)"
    }
}

function Assert-Failure($Answer, [string]$At, [string]$ErrorPattern) {
    Assert-True (-not $Answer.ok) 'the script should have failed, and did not'
    Assert-Equal $Answer.at $At "the step of '$($Answer.error)'"
    Assert-Like $Answer.error $ErrorPattern 'the error'
}

# The pool's mark, as it stands in a VM's Notes.
function Get-Mark($Fake, [string]$Incarnation) {
    $mark = [ordered]@{
        pool        = $Fake.Storage
        slot        = 1
        incarnation = $Incarnation
        runner_name = 'runner-1'
        runner_id   = 7
        created     = 1700000000
    }
    return (ConvertTo-Json -InputObject $mark -Compress)
}

function Get-DiskPath($Fake, [string]$Incarnation) {
    return (Join-Path -Path $Fake.Storage -ChildPath "runner-1-$Incarnation.vhdx")
}

# A path of tests/data/ownership.json on the simulated host.
function Get-StoragePath($Fake, [string]$Path) {
    $storage = [string]$Fake.Storage
    return $Path.Replace('{storage}', $storage).Replace('{STORAGE}', $storage.ToUpperInvariant()).Replace('{storage/}', $storage.Replace('\', '/'))
}

function Get-CreateRequest($Fake, $Changes) {
    $request = @{
        'name'                 = 'runner-1'
        'incarnation'          = '0123456789abcdef'
        'notes'                = Get-Mark $Fake '0123456789abcdef'
        'templatePath'         = $Fake.Template
        'diskPath'             = Get-DiskPath $Fake '0123456789abcdef'
        'diskMode'             = 'differencing'
        'memoryMB'             = 4096
        'memoryMaximumMB'      = 0
        'cpuCount'             = 2
        'switch'               = 'Default Switch'
        'slot'                 = 1
        'macAddress'           = '0A0123456789'
        'isolation'            = 'auto'
        'allow'                = @()
        'secureBootTemplate'   = 'MicrosoftWindows'
        'nestedVirtualization' = $false
        'host'                 = ''
        'port'                 = 8080
        'secret'               = 'f00dfeed'
        'jitConfig'            = ''
    }
    foreach ($key in @($Changes.Keys)) {
        $request[$key] = $Changes[$key]
    }
    return $request
}

function Get-DestroyRequest($Fake) {
    return @{
        name        = 'runner-1'
        incarnation = '0123456789abcdef'
        pool        = $Fake.Storage
        diskPath    = Get-DiskPath $Fake '0123456789abcdef'
        patience    = 300
        keep        = $false
    }
}

# A failed VM that is kept, with its disk.
function Add-KeptVM($Fake, [string]$Incarnation) {
    $mark = ConvertFrom-Json -InputObject (Get-Mark $Fake $Incarnation)
    Add-Member -InputObject $mark -NotePropertyName 'kept' -NotePropertyValue $true
    Add-FakeVM $Fake "failed-$Incarnation" 'Off' (ConvertTo-Json -InputObject $mark -Compress) (Get-DiskPath $Fake $Incarnation)
}

# Entries for VMs in the template's access list.
function Add-TemplateAccess($Fake, $Sids) {
    $access = Join-Path -Path $Fake.Folder -ChildPath 'access'
    New-Item -Path $access -ItemType Directory -Force | Out-Null
    $Sids | ForEach-Object { [System.IO.File]::WriteAllText((Join-Path -Path $access -ChildPath "runner-template.vhdx $_"), '') }
}

function Get-TemplateAccess($Fake) {
    Get-ChildItem -LiteralPath (Join-Path -Path $Fake.Folder -ChildPath 'access') | ForEach-Object { ($_.Name -split ' ')[-1] }
}

# A VM that has been on for ten minutes.
function Add-BootingVM($Fake) {
    $record = New-FakeRecord 'runner-1' 'Running' (Get-Mark $Fake '0123456789abcdef') ''
    $record.uptime = 600
    $record.addresses = @('172.20.0.9', 'fe80::1')
    Save-FakeRecord $Fake.Folder $record
}

# The size of a PNG of one chunk of pixels, and the color at which each of its first lines begins.
function Get-PngColor([byte[]]$Png) {
    $length = ([int]$Png[33] -shl 24) + ([int]$Png[34] -shl 16) + ([int]$Png[35] -shl 8) + [int]$Png[36]
    Assert-Equal ([System.Text.Encoding]::ASCII.GetString($Png, 37, 4)) 'IDAT' 'the second chunk'
    # Without the two bytes of zlib at the beginning, and its sum at the end.
    $packed = [System.IO.MemoryStream]::new($Png, 43, $length - 6)
    $lines = [System.IO.MemoryStream]::new()
    [System.IO.Compression.DeflateStream]::new($packed, [System.IO.Compression.CompressionMode]::Decompress).CopyTo($lines)
    $bytes = $lines.ToArray()
    $width = [int]$Png[19]
    $height = [int]$Png[23]
    Assert-Equal $bytes.Length ($height * (1 + 3 * $width)) 'the bytes of the lines'
    $colors = for ($y = 0; $y -lt 3; $y++) {
        $at = $y * (1 + 3 * $width) + 1
        '{0:X2}{1:X2}{2:X2}' -f $bytes[$at], $bytes[$at + 1], $bytes[$at + 2]
    }
    return "$width x ${height}: $colors"
}

# A VM that hangs or refuses when it is stopped, until hcsdiag.exe kills it, if
# there is one and it helps.
function Add-StuckVM($Fake, [string]$Stuck, [string]$Hcsdiag) {
    $record = New-FakeRecord 'runner-1' 'Running' (Get-Mark $Fake '0123456789abcdef') (Get-DiskPath $Fake '0123456789abcdef')
    $record.stuck = $Stuck
    [System.IO.File]::WriteAllText($record.disks[0], 'vhdxfile a disk')
    Save-FakeRecord $Fake.Folder $record
    $env:SystemRoot = $Fake.Folder
    if ($Hcsdiag -eq '') {
        return
    }
    $folder = Join-Path -Path $Fake.Folder -ChildPath 'System32'
    New-Item -Path $folder -ItemType Directory | Out-Null
    $program = Join-Path -Path $folder -ChildPath 'hcsdiag.exe'
    $text = "#!/bin/sh`
echo `"hcsdiag.exe `$*`" >> '$($Fake.Folder)/calls.log'`n"
    if ($Hcsdiag -eq 'helps') {
        $text += "sed -i 's/`"stuck`": `".*`"/`"stuck`": `"`"/' '$($Fake.Folder)/vms/$($record.id).json'`n"
    } else {
        $text += "exit 7`n"
    }
    [System.IO.File]::WriteAllText($program, $text)
    & chmod +x $program
    return ([string]$record.id).ToUpperInvariant()
}

function Get-CheckRequest($Fake) {
    return @{
        'templatePath' = $Fake.Template
        'storagePath'  = $Fake.Storage
        'switch'       = 'Default Switch'
        'host'         = ''
        'port'         = 8080
    }
}

# What no walled-off VM reaches.
function Get-WalledOff {
    '0.0.0.0/8', '10.0.0.0/8', '100.64.0.0/10', '127.0.0.0/8', '169.254.0.0/16', '172.16.0.0/12', '192.168.0.0/16', '224.0.0.0/4', '240.0.0.0/4', '168.63.129.16/32', '::/0'
}

# A rule in one line: action, protocol, local and remote address with port.
function Format-Acl($Acl) {
    return "$($Acl.action) $($Acl.protocol) $($Acl.local):$($Acl.localPort) $($Acl.remote):$($Acl.remotePort)"
}

# The rules of one direction, as the VM's switch weighs them.
function Assert-Wall($Vm, [string]$Direction, $Expected) {
    $acls = @($Vm.acls | Where-Object { $_.direction -eq $Direction } | Sort-Object -Property weight -Descending)
    Assert-Equal (@($acls | ForEach-Object { Format-Acl $_ }) -join "`n") ($Expected -join "`n") "the rules, $Direction"
}

# A VM of the pool that holds a JIT configuration in two parts.
function Add-WrittenVM($Fake, [string]$Name, [string]$Incarnation) {
    Add-FakeVM $Fake $Name 'Running' (Get-Mark $Fake $Incarnation) ''
    $record = @(Get-FakeVM $Fake | Where-Object { $_.notes -like "*$Incarnation*" })[0]
    $record.hostItems = @{
        RunnerPoolVmSecret = 'f00dfeed'; RunnerPoolJitConfigParts = '2'; RunnerPoolJitConfig1 = 'eyJqaXQ'; RunnerPoolJitConfig2 = 'b'
    }
    Save-FakeRecord $Fake.Folder $record
}

function Get-ListRequest($Fake, $Writes) {
    return @{ storagePath = $Fake.Storage; writes = @($Writes) }
}

# What is written into a VM: when its job began, and the names of its key-values.
function Get-Written($Fake, [string]$Incarnation) {
    $record = @(Get-FakeVM $Fake | Where-Object { $_.notes -like "*$Incarnation*" })[0]
    $mark = ConvertFrom-Json -InputObject $record.notes
    $started = 'none'
    if (@($mark.PSObject.Properties.Name) -contains 'job_started') {
        $started = $mark.job_started
    }
    return "$started " + (@($record.hostItems.PSObject.Properties.Name | Sort-Object) -join ' ')
}

# Nothing of the pool's is left, and what was there before still is.
function Assert-NothingLeft($Fake, [int]$Others) {
    Assert-Equal @(Get-FakeVM $Fake).Count $Others 'the VMs left'
    $disks = @(Get-ChildItem -LiteralPath $Fake.Storage -File | Where-Object { $_.Name -like 'runner-1-0123456789abcdef*' })
    Assert-Equal $disks.Count 0 'the disks left'
}

# The value of a key-value item of a VM.
function Get-HostItem($Vm, [string]$Name) {
    $item = $Vm.hostItems.PSObject.Properties[$Name]
    if ($null -eq $item) {
        return ''
    }
    return $item.Value
}

function Get-GuestRequestsPath {
    $tests = Split-Path -Path $PSScriptRoot -Parent
    return Join-Path -Path (Join-Path -Path $tests -ChildPath 'data') -ChildPath 'guest-requests.json'
}

# Copies pool.ps1 of the image to the fake host's folder, with the file that it
# expects beside it.
function Copy-GuestScript($Fake, $Image) {
    $root = Split-Path -Path (Split-Path -Path $PSScriptRoot -Parent) -Parent
    $source = Join-Path -Path (Join-Path -Path (Join-Path -Path $root -ChildPath 'packer') -ChildPath 'guest') -ChildPath 'pool.ps1'
    Copy-Item -LiteralPath $source -Destination $Fake.Folder -Force
    $json = ConvertTo-Json -InputObject $Image
    [System.IO.File]::WriteAllText((Join-Path -Path $Fake.Folder -ChildPath 'image.json'), $json)
}

# The names and values of a JSON object in one line, in order of the names.
function Get-FlatBody($Body) {
    if ($null -eq $Body) {
        return ''
    }
    $pairs = @($Body.PSObject.Properties | ForEach-Object { "$($_.Name)=$($_.Value.GetType().Name -replace 'Int64', 'Int32'):$($_.Value)" })
    return ($pairs | Sort-Object) -join ';'
}

# Runs a piece of script with pool.ps1 of the image and the identity $pool, and
# returns the requests that it sent, which were all answered with 200.
function Get-SentGuestRequest($Fake, $Guest, [int]$Count, [scriptblock]$Send) {
    Copy-GuestScript $Fake $Guest.image
    $listener = [System.Net.Sockets.TcpListener]::new([System.Net.IPAddress]::Loopback, 0)
    $listener.Start()
    $server = [powershell]::Create().AddScript($ServeGuestRequests).AddArgument($listener).AddArgument($Count)
    try {
        $serving = $server.BeginInvoke()
        . (Join-Path -Path $Fake.Folder -ChildPath 'pool.ps1')
        $pool = @{
            Url    = "http://127.0.0.1:$($listener.LocalEndpoint.Port)"
            VmName = $Guest.vm_name
            Secret = $Guest.secret
        }
        foreach ($answer in @(. $Send)) {
            Assert-Equal $answer.Status 200 'the status that the script saw'
            Assert-Equal $answer.Body 'OK' 'the body that the script saw'
        }
        if (-not $serving.AsyncWaitHandle.WaitOne(100000)) {
            throw "the script sent fewer than $Count requests"
        }
        return @($server.EndInvoke($serving))
    } finally {
        $listener.Stop()
        $server.Dispose()
    }
}

# Answers so many requests, each on a connection of its own, and returns what was asked.
$ServeGuestRequests = {
    param($Listener, $Count)
    for ($i = 0; $i -lt $Count; $i++) {
        $client = $Listener.AcceptTcpClient()
        $stream = $client.GetStream()
        # One character for each byte, so that Content-Length counts both.
        $reader = [System.IO.StreamReader]::new($stream, [System.Text.Encoding]::GetEncoding('iso-8859-1'))
        $first = $reader.ReadLine().Split(' ')
        $headers = @{}
        while ($line = $reader.ReadLine()) {
            $name, $value = $line -split ': ', 2
            $headers[$name] = $value
        }
        $body = ''
        while ($body.Length -lt [int]$headers['Content-Length']) {
            $body += [char]$reader.Read()
        }
        $answer = [System.Text.Encoding]::ASCII.GetBytes("HTTP/1.1 200 OK`r`nContent-Length: 2`r`nConnection: close`r`n`r`nOK")
        $stream.Write($answer, 0, $answer.Length)
        $client.Dispose()
        $json = $null
        if ($body) {
            $json = ConvertFrom-Json -InputObject $body
        }
        [pscustomobject]@{
            method        = $first[0]
            path          = $first[1]
            authorization = $headers['Authorization']
            user_agent    = $headers['User-Agent']
            content_type  = $headers['Content-Type']
            body          = $json
        }
    }
}

# Every check: its name and what it does with a new simulated host. One that
# needs more than the host has it beside it, as Data. (Not as a closure: those
# do not see the functions of this file.)
function Get-Check {
    $checks = [ordered]@{}

    $checks['create makes a VM as asked, and starts it'] = {
        param($Fake)
        $answer = Invoke-PoolScript $Fake 'create-vm' (Get-CreateRequest $Fake @{}) ''
        Assert-Success $answer
        Assert-Equal $answer.url 'http://172.20.0.1:8080' 'the URL'
        $vms = @(Get-FakeVM $Fake)
        Assert-Equal $vms.Count 1 'the number of VMs'
        $vm = $vms[0]
        Assert-Equal $vm.name 'runner-1' 'the name'
        Assert-Equal $vm.state 'Running' 'the state'
        Assert-Equal $vm.notes (Get-Mark $Fake '0123456789abcdef') 'the Notes'
        Assert-Equal $vm.generation 2 'the generation'
        Assert-Equal $vm.memory 4294967296 'the memory'
        Assert-Equal $vm.dynamicMemory $false 'dynamic memory'
        Assert-Equal $vm.processors 2 'the processors'
        Assert-Equal $vm.nested $false 'nested virtualization'
        Assert-Equal $vm.switchName 'Default Switch' 'the switch'
        Assert-Equal $vm.macAddress '0A0123456789' 'the MAC address'
        Assert-Equal (Get-HostItem $vm 'RunnerPoolAddress') '' 'the address for the guest, which it gets by DHCP'
        Assert-Equal $vm.secureBoot 'On' 'secure boot'
        Assert-Equal $vm.secureBootTemplate 'MicrosoftWindows' 'the secure boot template'
        Assert-Equal $vm.checkpoints 'Disabled' 'checkpoints'
        Assert-Equal $vm.automaticCheckpoints $false 'automatic checkpoints'
        Assert-Equal $vm.startAction 'Nothing' 'the start action'
        Assert-Equal $vm.stopAction 'TurnOff' 'the stop action'
        Assert-Equal $vm.recoveryAction 2 'the recovery action'
        Assert-Equal $vm.kvpEnabled $true 'the key-value pair exchange service'
        Assert-Equal (Get-HostItem $vm 'RunnerPoolUrl') 'http://172.20.0.1:8080' 'the URL for the guest'
        Assert-Equal (Get-HostItem $vm 'RunnerPoolVmName') 'runner-1' 'the name for the guest'
        Assert-Equal (Get-HostItem $vm 'RunnerPoolVmSecret') 'f00dfeed' 'the secret for the guest'
        $disk = Get-DiskPath $Fake '0123456789abcdef'
        Assert-Equal @($vm.disks).Count 1 'the number of disks'
        Assert-Equal @($vm.disks)[0] $disk 'the disk'
        Assert-Like ([System.IO.File]::ReadAllText($disk)) "vhdxfile child of *runner-template.vhdx" 'the disk'
    }

    $checks['create gives the guest the JIT configuration in parts'] = {
        param($Fake)
        $jitConfig = ('0123456789' * 90) + ('abcdefghij' * 90) + 'end='
        Assert-Success (Invoke-PoolScript $Fake 'create-vm' (Get-CreateRequest $Fake @{ 'jitConfig' = $jitConfig }) '')
        $vm = @(Get-FakeVM $Fake)[0]
        Assert-Equal @($vm.hostItems.PSObject.Properties).Count 7 'the number of items'
        Assert-Equal (Get-HostItem $vm 'RunnerPoolJitConfigParts') '3' 'the number of parts'
        $parts = @(1..3 | ForEach-Object { Get-HostItem $vm "RunnerPoolJitConfig$_" })
        Assert-Equal $parts[0].Length 900 'the length of a part'
        Assert-Equal ($parts -join '') $jitConfig 'the JIT configuration'
        Assert-Equal (Get-CallCount $Fake 'AddKvpItems') 1 'the calls of AddKvpItems'
    }

    $checks['create makes the template read-only'] = {
        param($Fake)
        Assert-Equal (Get-Item -LiteralPath $Fake.Template).IsReadOnly $false 'read-only before'
        Assert-Success (Invoke-PoolScript $Fake 'create-vm' (Get-CreateRequest $Fake @{}) '')
        Assert-Equal (Get-Item -LiteralPath $Fake.Template).IsReadOnly $true 'read-only after'
    }

    $checks['create can copy the template, and the copy can be written to'] = {
        param($Fake)
        (Get-Item -LiteralPath $Fake.Template).IsReadOnly = $true
        Assert-Success (Invoke-PoolScript $Fake 'create-vm' (Get-CreateRequest $Fake @{ 'diskMode' = 'copy' }) '')
        $disk = Get-DiskPath $Fake '0123456789abcdef'
        Assert-Equal ([System.IO.File]::ReadAllText($disk)) 'vhdxfile the template' 'the disk'
        Assert-Equal (Get-Item -LiteralPath $disk).IsReadOnly $false 'read-only'
        Assert-Equal (Get-CallCount $Fake 'New-VHD') 0 'the calls of New-VHD'
    }

    $checks['create removes the entries of VMs that are gone from the template''s access list, once they are many'] = {
        param($Fake)
        Add-FakeVM $Fake 'somebody''s' 'Running' '' ''
        $live = Get-FakeSid @(Get-FakeVM $Fake)[0].id
        Add-TemplateAccess $Fake (@(1..15 | ForEach-Object { "S-1-5-83-1-0-0-0-$_" }) + $live)
        Assert-Success (Invoke-PoolScript $Fake 'create-vm' (Get-CreateRequest $Fake @{}) '')
        Assert-Equal (Get-CallCount $Fake 'Set-Acl') 0 'the calls of Set-Acl for 15 entries'
        Assert-Equal @(Get-TemplateAccess $Fake).Count 17 'the entries, with that of the new VM'

        $next = @{ 'name' = 'runner-2'; 'diskPath' = Join-Path -Path $Fake.Storage -ChildPath 'runner-2-a.vhdx' }
        Add-TemplateAccess $Fake @('S-1-5-83-1-0-0-0-16')
        Assert-Success (Invoke-PoolScript $Fake 'create-vm' (Get-CreateRequest $Fake $next) '')
        $expected = @('S-1-5-83-0') + @(Get-FakeVM $Fake | ForEach-Object { Get-FakeSid $_.id })
        Assert-Equal (@(Get-TemplateAccess $Fake | Sort-Object) -join ' ') (@($expected | Sort-Object) -join ' ') 'all VMs as a group, and those that are there'
    }

    $checks['create warns of a template''s access list that it cannot clear, and makes the VM all the same'] = {
        param($Fake)
        foreach ($fault in 'Get-Acl', 'Get-VM', 'Set-Acl') {
            $id = [guid]::NewGuid().ToString('N').Substring(0, 16)
            Add-TemplateAccess $Fake @(1..16 | ForEach-Object { "S-1-5-83-1-0-0-0-$_" })
            [System.IO.File]::Delete((Join-Path -Path $Fake.Folder -ChildPath 'calls.log'))
            $answer = Invoke-PoolScript $Fake 'create-vm' (Get-CreateRequest $Fake @{ 'diskPath' = Get-DiskPath $Fake $id }) $fault
            Assert-Success $answer
            Assert-Like $answer.warning "*access list*$fault failed, as it was told to." 'the warning'
        }
    }

    $checks['create looks at no access list for a VM with a copy of the template'] = {
        param($Fake)
        Assert-Success (Invoke-PoolScript $Fake 'create-vm' (Get-CreateRequest $Fake @{ 'diskMode' = 'copy' }) '')
        Assert-Equal (Get-CallCount $Fake 'Get-Acl') 0 'the calls of Get-Acl'
    }

    $checks['create takes dynamic memory, nested virtualization and no secure boot'] = {
        param($Fake)
        $changes = @{ 'memoryMaximumMB' = 8192; 'nestedVirtualization' = $true; 'secureBootTemplate' = 'off' }
        Assert-Success (Invoke-PoolScript $Fake 'create-vm' (Get-CreateRequest $Fake $changes) '')
        $vm = @(Get-FakeVM $Fake)[0]
        Assert-Equal $vm.dynamicMemory $true 'dynamic memory'
        Assert-Equal $vm.memory 4294967296 'the startup memory'
        Assert-Equal $vm.memoryMinimum 4294967296 'the least memory'
        Assert-Equal $vm.memoryMaximum 8589934592 'the most memory'
        Assert-Equal $vm.nested $true 'nested virtualization'
        Assert-Equal $vm.secureBoot 'Off' 'secure boot'
    }

    $checks['create uses the address that it is given'] = {
        param($Fake)
        $answer = Invoke-PoolScript $Fake 'create-vm' (Get-CreateRequest $Fake @{ 'host' = 'fd00::1'; 'switch' = 'Lan' }) ''
        Assert-Success $answer
        Assert-Equal $answer.url 'http://[fd00::1]:8080' 'the URL'
        Assert-Equal (Get-HostItem @(Get-FakeVM $Fake)[0] 'RunnerPoolUrl') 'http://[fd00::1]:8080' 'the URL for the guest'
    }

    $checks['create makes the storage folder if it is missing'] = {
        param($Fake)
        Remove-Item -LiteralPath $Fake.Storage -Recurse -Force
        Assert-Success (Invoke-PoolScript $Fake 'create-vm' (Get-CreateRequest $Fake @{}) '')
        Assert-True (Test-Path -LiteralPath (Get-DiskPath $Fake '0123456789abcdef')) 'there is no disk'
    }

    $checks['create keeps letters beyond ASCII and XML characters as they are'] = {
        param($Fake)
        $notes = '{"runner_name":"caf' + [char]0x00E9 + ' ' + [char]0x65E5 + '"}'
        $request = Get-CreateRequest $Fake @{ 'notes' = $notes; 'secret' = '<a&"b''c>' }
        Assert-Success (Invoke-PoolScript $Fake 'create-vm' $request '')
        $vm = @(Get-FakeVM $Fake)[0]
        Assert-Equal $vm.notes $notes 'the Notes'
        Assert-Equal (Get-HostItem $vm 'RunnerPoolVmSecret') '<a&"b''c>' 'the secret'
    }

    $checks['create refuses a template that is missing or no VHDX'] = {
        param($Fake)
        $request = Get-CreateRequest $Fake @{ 'templatePath' = $Fake.Template + '.gone.vhdx' }
        Assert-Failure (Invoke-PoolScript $Fake 'create-vm' $request '') 'template' '*does not exist*VM_TEMPLATE_PATH*'
        [System.IO.File]::WriteAllText($Fake.Template, 'conectix')
        Assert-Failure (Invoke-PoolScript $Fake 'create-vm' (Get-CreateRequest $Fake @{}) '') 'template' '*is not a VHDX*'
        [System.IO.File]::WriteAllText($Fake.Template, 'not a disk')
        Assert-Failure (Invoke-PoolScript $Fake 'create-vm' (Get-CreateRequest $Fake @{}) '') 'template' '*cannot be read as a VHDX*'
        Assert-NothingLeft $Fake 0
    }

    $checks['create names the switches that exist when its own is missing'] = {
        param($Fake)
        $request = Get-CreateRequest $Fake @{ 'switch' = 'Nat' }
        Assert-Failure (Invoke-PoolScript $Fake 'create-vm' $request '') 'vm' "*'Nat'*Default Switch, Lan*VM_SWITCH*"
        Assert-NothingLeft $Fake 0
        Set-FakeHost $Fake @{ switches = @() }
        Assert-Failure (Invoke-PoolScript $Fake 'create-vm' $request '') 'vm' "*'Nat'*has none*"
    }

    $checks['create finds the address of an adapter under any name'] = {
        param($Fake)
        $renamed = @{ adapter = 'Default Switch'; alias = 'Runners'; ip = '172.20.0.9' }
        $other = @{ adapter = 'Lan'; alias = 'vEthernet (Default Switch)'; ip = '10.0.0.8' }
        Set-FakeHost $Fake @{ addresses = @($other, $renamed) }
        $answer = Invoke-PoolScript $Fake 'create-vm' (Get-CreateRequest $Fake @{}) ''
        Assert-Success $answer
        Assert-Equal $answer.url 'http://172.20.0.9:8080' 'the URL'
    }

    $checks['create fails when the host has no address on the switch'] = {
        param($Fake)
        $request = Get-CreateRequest $Fake @{ 'switch' = 'Lan' }
        Assert-Failure (Invoke-PoolScript $Fake 'create-vm' $request '') 'network' "*'Lan'*ORCHESTRATOR_IP*"
        Assert-NothingLeft $Fake 0
    }

    $checks['create walls a VM off from all but the pool, DNS, DHCP, what is allowed and the internet'] = {
        param($Fake)
        $request = Get-CreateRequest $Fake @{ 'isolation' = 'on'; 'allow' = @('192.168.1.20:8443', 'localhost:443') }
        Assert-Success (Invoke-PoolScript $Fake 'create-vm' $request '')
        $vm = @(Get-FakeVM $Fake)[0]
        Assert-Equal "$($vm.macSpoofing) $($vm.dhcpGuard) $($vm.routerGuard)" 'Off On On' 'MAC spoofing, DHCP guard and router guard'
        $both = @(
            'Allow TCP ANY:ANY 172.20.0.1:8080', 'Allow TCP ANY:ANY 192.168.1.20:8443', 'Allow TCP ANY:ANY 127.0.0.1:443',
            'Allow UDP ANY:ANY 172.20.0.1:53', 'Allow TCP ANY:ANY 172.20.0.1:53', 'Allow UDP ANY:ANY 10.0.0.53:53',
            'Allow TCP ANY:ANY 10.0.0.53:53', 'Allow UDP ANY:ANY 8.8.8.8:53', 'Allow TCP ANY:ANY 8.8.8.8:53'
        )
        $denied = @(Get-WalledOff | ForEach-Object { "Deny ANY ANY:ANY ${_}:ANY" })
        Assert-Wall $vm 'Outbound' ($both + 'Allow UDP ANY:68 255.255.255.255:67' + 'Allow UDP ANY:68 172.20.0.1:67' + $denied)
        Assert-Wall $vm 'Inbound' ($both + 'Allow UDP ANY:68 172.20.0.1:67' + $denied)
    }

    $checks['create walls no VM off unless told to, or the switch is its own'] = {
        param($Fake)
        $cases = @(
            @('auto', @(), $false), @('off', @('172.20.0.0/20'), $false), @('auto', @('192.168.0.0/16'), $false),
            @('auto', @('192.168.0.0/16', '172.20.0.0/20'), $true), @('on', @(), $true)
        )
        for ($i = 0; $i -lt $cases.Count; $i++) {
            Set-FakeHost $Fake @{ nats = $cases[$i][1] }
            $request = Get-CreateRequest $Fake @{ 'isolation' = $cases[$i][0]; 'name' = "runner-$i"; 'diskPath' = Join-Path -Path $Fake.Storage -ChildPath "runner-$i.vhdx" }
            Assert-Success (Invoke-PoolScript $Fake 'create-vm' $request '')
            $vm = @(Get-FakeVM $Fake | Where-Object { $_.name -eq "runner-$i" })[0]
            Assert-Equal (@($vm.acls).Count -gt 0) $cases[$i][2] "whether VM_ISOLATION=$($cases[$i][0]) with NAT for '$($cases[$i][1])' walls a VM off"
        }
    }

    $checks['create walls a VM off from networks with public addresses that the host reaches itself'] = {
        param($Fake)
        $addresses = @(
            @{ adapter = 'Default Switch'; alias = 'x'; ip = '172.20.0.1' }, @{ adapter = 'Ethernet'; alias = 'y'; ip = '203.0.113.7' },
            @{ adapter = 'Wi-Fi'; alias = 'z'; ip = '198.51.100.9' }
        )
        # With the two halves of the internet, as VPNs have them.
        $routes = @('0.0.0.0/0', '0.0.0.0/1', '128.0.0.0/1', '203.0.113.7/32', '203.0.113.0/24', '10.8.0.0/16', '25.0.0.0/8')
        Set-FakeHost $Fake @{ addresses = $addresses; routes = $routes }
        Assert-Success (Invoke-PoolScript $Fake 'create-vm' (Get-CreateRequest $Fake @{ 'isolation' = 'on' }) '')
        $denied = @(@(Get-FakeVM $Fake)[0].acls | Where-Object { $_.action -eq 'Deny' -and $_.direction -eq 'Inbound' } | ForEach-Object { $_.remote })
        $added = @($denied | Where-Object { @(Get-WalledOff) -notcontains $_ })
        Assert-Equal ($added -join ', ') '25.0.0.0/8, 203.0.113.0/24, 198.51.100.9/32' 'what the host adds'
    }

    $checks['create gives a VM on the pool''s own switch a fixed address, and lets it send from no other'] = {
        param($Fake)
        Set-FakeHost $Fake @{ nats = @('172.20.0.0/16') }
        Assert-Success (Invoke-PoolScript $Fake 'create-vm' (Get-CreateRequest $Fake @{ 'slot' = 3 }) '')
        $vm = @(Get-FakeVM $Fake)[0]
        Assert-Equal (Get-HostItem $vm 'RunnerPoolAddress') '172.20.0.12' 'the address'
        Assert-Equal (Get-HostItem $vm 'RunnerPoolPrefixLength') '24' 'the length of the prefix'
        Assert-Equal (Get-HostItem $vm 'RunnerPoolGateway') '172.20.0.1' 'the gateway'
        Assert-Equal (Get-HostItem $vm 'RunnerPoolDnsServers') '10.0.0.53,8.8.8.8' 'the DNS servers'
        $rules = @(
            'Allow TCP 172.20.0.12:ANY 172.20.0.1:8080',
            'Allow UDP 172.20.0.12:ANY 10.0.0.53:53', 'Allow TCP 172.20.0.12:ANY 10.0.0.53:53',
            'Allow UDP 172.20.0.12:ANY 8.8.8.8:53', 'Allow TCP 172.20.0.12:ANY 8.8.8.8:53'
        )
        $rules += @(Get-WalledOff | ForEach-Object { "Deny ANY ANY:ANY ${_}:ANY" })
        $rules += 'Allow ANY 172.20.0.12:ANY 0.0.0.0/0:ANY', 'Deny ANY ANY:ANY ANY:ANY'
        Assert-Wall $vm 'Outbound' $rules
        Assert-Wall $vm 'Inbound' $rules
    }

    $checks['create leaves the addresses to the DHCP server of the host, if it has one'] = {
        param($Fake)
        Set-FakeHost $Fake @{ nats = @('172.20.0.0/24'); dhcpService = 'Running' }
        Assert-Success (Invoke-PoolScript $Fake 'create-vm' (Get-CreateRequest $Fake @{}) '')
        $vm = @(Get-FakeVM $Fake)[0]
        Assert-Equal (Get-HostItem $vm 'RunnerPoolAddress') '' 'the address'
        $ways = @($vm.acls | Where-Object { $_.localPort -eq '68' } | ForEach-Object { "$($_.direction) $(Format-Acl $_)" }) -join ', '
        Assert-Equal $ways 'Outbound Allow UDP ANY:68 255.255.255.255:67, Outbound Allow UDP ANY:68 172.20.0.1:67, Inbound Allow UDP ANY:68 172.20.0.1:67' 'the ways to the DHCP server'
    }

    $checks['create gives no address twice, and says when there is none'] = {
        param($Fake)
        $dns = @(@{ adapter = 'Ethernet'; metric = 1; servers = @('127.0.0.1') })
        $cases = @(
            @('172.20.0.1', 246, '*no address for slot 246*POOL_SIZE*'), @('172.20.0.11', 1, '172.20.0.10'),
            @('172.20.0.11', 2, '172.20.0.12'), @('172.20.0.254', 244, '172.20.0.253')
        )
        foreach ($case in $cases) {
            Set-FakeHost $Fake @{ nats = @('172.20.0.0/24'); dns = $dns; addresses = @(@{ adapter = 'Default Switch'; alias = 'x'; ip = $case[0] }) }
            $disk = Join-Path -Path $Fake.Storage -ChildPath "runner-$($case[1]).vhdx"
            $request = Get-CreateRequest $Fake @{ 'slot' = $case[1]; 'name' = "runner-$($case[1])"; 'diskPath' = $disk }
            $answer = Invoke-PoolScript $Fake 'create-vm' $request ''
            if ($case[2] -like '*slot*') {
                Assert-Failure $answer 'network' $case[2]
                continue
            }
            Assert-Success $answer
            $vm = @(Get-FakeVM $Fake | Where-Object { $_.name -eq $request['name'] })[0]
            Assert-Equal (Get-HostItem $vm 'RunnerPoolAddress') $case[2] "the address of slot $($case[1]) beside a host at $($case[0])"
            Assert-Equal (Get-HostItem $vm 'RunnerPoolDnsServers') $case[0] 'the DNS server, which runs on the host'
        }
    }

    $checks['create fails without a DNS server for a fixed address'] = {
        param($Fake)
        Set-FakeHost $Fake @{ nats = @('172.20.0.0/24'); dns = @() }
        Assert-Failure (Invoke-PoolScript $Fake 'create-vm' (Get-CreateRequest $Fake @{}) '') 'network' '*DNS server*'
        Assert-NothingLeft $Fake 0
    }

    $checks['create lets a walled-off VM get its address from any DHCP server of a LAN'] = {
        param($Fake)
        Assert-Success (Invoke-PoolScript $Fake 'create-vm' (Get-CreateRequest $Fake @{ 'isolation' = 'on'; 'switch' = 'Lan'; 'host' = '10.0.0.7' }) '')
        $acls = @(@(Get-FakeVM $Fake)[0].acls | Where-Object { $_.direction -eq 'Inbound' })
        Assert-Equal (Format-Acl $acls[0]) 'Allow TCP ANY:ANY 10.0.0.7:8080' 'the way to the pool'
        Assert-Equal (@($acls | Where-Object { $_.localPort -eq '68' } | ForEach-Object { Format-Acl $_ }) -join ', ') 'Allow UDP ANY:68 0.0.0.0/0:67' 'the way from the DHCP server'
    }

    $checks['create fails when the name of a GitHub that VMs must reach is not known'] = {
        param($Fake)
        $request = Get-CreateRequest $Fake @{ 'isolation' = 'on'; 'allow' = @('no-such-host.invalid:443') }
        Assert-Failure (Invoke-PoolScript $Fake 'create-vm' $request '') 'network' '*no-such-host.invalid*'
        Assert-NothingLeft $Fake 0
    }

    $checks['create never uses or deletes a disk that is there already'] = {
        param($Fake)
        $disk = Get-DiskPath $Fake '0123456789abcdef'
        [System.IO.File]::WriteAllText($disk, 'vhdxfile of another')
        Assert-Failure (Invoke-PoolScript $Fake 'create-vm' (Get-CreateRequest $Fake @{}) '') 'disk' '*exists already*'
        Assert-Equal ([System.IO.File]::ReadAllText($disk)) 'vhdxfile of another' 'the disk'
        Assert-Equal @(Get-FakeVM $Fake).Count 0 'the VMs'
    }

    # Each call in turn, and what only seems to have been done.
    $faults = [ordered]@{
        'Get-VHD'                                              = 'template'
        'New-VHD'                                              = 'disk'
        'Get-VMSwitch'                                         = 'vm'
        'New-VM'                                               = 'vm'
        'New-VM-after'                                         = 'vm'
        'Set-VM'                                               = 'notes'
        'Get-CimInstance Msvm_VirtualSystemSettingData'        = 'settings'
        'Serialize'                                            = 'settings'
        'Get-CimInstance Msvm_VirtualSystemManagementService'  = 'settings'
        'ModifySystemSettings'                                 = 'settings'
        'SettingLost'                                          = 'settings'
        'Set-VMMemory'                                         = 'settings'
        'Set-VMProcessor'                                      = 'settings'
        'Set-VMFirmware'                                       = 'settings'
        'Get-VMIntegrationService'                             = 'settings'
        'Enable-VMIntegrationService'                          = 'settings'
        'Get-VMNetworkAdapter'                                 = 'network'
        'Set-VMNetworkAdapter'                                 = 'network'
        'Get-NetAdapter'                                       = 'network'
        'Get-NetIPAddress'                                     = 'network'
        'Get-NetNat'                                           = 'network'
        'Get-Service'                                          = 'network'
        'Get-NetIPInterface'                                   = 'network'
        'Get-DnsClientServerAddress'                           = 'network'
        'Get-NetRoute'                                         = 'network'
        'Add-VMNetworkAdapterExtendedAcl'                      = 'network'
        'AclLost:1'                                            = 'network'
        'GuardLost'                                            = 'network'
        'Get-VMNetworkAdapterExtendedAcl'                      = 'network'
        'Get-CimInstance Msvm_ComputerSystem'                  = 'key-values'
        'Get-CimClass'                                         = 'key-values'
        'New-CimInstance'                                      = 'key-values'
        'AddKvpItems'                                          = 'key-values'
        'Get-CimInstance'                                      = 'key-values'
        'Job'                                                  = 'key-values'
        'KvpLost'                                              = 'key-values'
        'Get-CimInstance Msvm_KvpExchangeComponentSettingData' = 'key-values'
        'Start-VM'                                             = 'start'
        'Start-VM-after'                                       = 'start'
        # Again, at the last call.
        'Get-VMSwitch#2'                                       = 'network'
        'Get-VMNetworkAdapter#3'                               = 'network'
        'Set-VMNetworkAdapter#2'                               = 'network'
        'Get-NetIPAddress#2'                                   = 'network'
        'Add-VMNetworkAdapterExtendedAcl#39'                   = 'network'
        'Set-VM#2'                                             = 'settings'
        'Get-CimInstance Msvm_VirtualSystemSettingData#2'      = 'settings'
        'Get-CimInstance#2'                                    = 'key-values'
        'Get-CimInstance Msvm_VirtualSystemManagementService#2' = 'key-values'
        'New-CimInstance#5'                                    = 'key-values'
        'Serialize#6'                                          = 'key-values'
    }
    $checks['create makes no call but those whose failure is checked'] = @{ Data = $faults; Body = {
        param($Fake, $Data)
        Assert-Success (Invoke-PoolScript $Fake 'create-vm' (Get-CreateRequest $Fake @{ 'jitConfig' = 'eyJqaXQ'; 'isolation' = 'on' }) '')
        $calls = [System.IO.File]::ReadAllLines((Join-Path -Path $Fake.Folder -ChildPath 'calls.log'))
        # With a failing Get-Acl the VM is made all the same: that is checked above.
        foreach ($call in @($calls | Where-Object { $_ -ne 'Get-Acl' } | Group-Object)) {
            Assert-True $Data.Contains($call.Name) "nothing checks what happens when $($call.Name) fails"
            if ($call.Count -gt 1) {
                Assert-True $Data.Contains("$($call.Name)#$($call.Count)") "nothing checks what happens when the last $($call.Name) fails"
            }
        }
    }
    }
    foreach ($fault in @($faults.Keys)) {
        $at = $faults[$fault]
        $checks["create undoes everything when $fault fails"] = @{ Data = @($fault, $at); Body = {
            param($Fake, $Data)
            Add-FakeVM $Fake 'runner-1' 'Running' 'mine, hands off' (Join-Path -Path $Fake.Folder -ChildPath 'other.vhdx')
            $answer = Invoke-PoolScript $Fake 'create-vm' (Get-CreateRequest $Fake @{ 'jitConfig' = 'eyJqaXQ'; 'isolation' = 'on' }) $Data[0]
            Assert-Failure $answer $Data[1] '*'
            foreach ($secret in 'f00dfeed', 'eyJqaXQ') {
                Assert-True (-not $answer.error.Contains($secret)) 'the error holds a secret'
            }
            Assert-NothingLeft $Fake 1
            Assert-Equal @(Get-FakeVM $Fake)[0].notes 'mine, hands off' 'the other VM'
            Assert-Equal @(Get-FakeVM $Fake)[0].state 'Running' 'the other VM'
        }
        }
    }

    $checks['destroy succeeds when nothing is there'] = {
        param($Fake)
        Assert-Success (Invoke-PoolScript $Fake 'destroy-vm' (Get-DestroyRequest $Fake) '')
        Remove-Item -LiteralPath $Fake.Storage -Recurse -Force
        Assert-Success (Invoke-PoolScript $Fake 'destroy-vm' (Get-DestroyRequest $Fake) '')
    }

    foreach ($state in 'Running', 'Off', 'Saved', 'Paused', 'Starting', 'Stopping') {
        $checks["destroy removes a VM that is $state, and its disk"] = @{ Data = $state; Body = {
            param($Fake, $Data)
            Add-FakeVM $Fake 'runner-1' $Data (Get-Mark $Fake '0123456789abcdef') (Get-DiskPath $Fake '0123456789abcdef')
            Assert-Success (Invoke-PoolScript $Fake 'destroy-vm' (Get-DestroyRequest $Fake) '')
            Assert-NothingLeft $Fake 0
        }
        }
    }

    foreach ($fault in 'Get-VM#1', 'Get-VM#2', 'Get-VM#3', 'Get-VM#4', 'Get-VM#5', 'Stop-VM#1', 'Remove-VM#1', 'Remove-Item#1') {
        $checks["destroy tries again when $fault fails"] = @{ Data = $fault; Body = {
            param($Fake, $Data)
            Add-FakeVM $Fake 'runner-1' 'Running' (Get-Mark $Fake '0123456789abcdef') (Get-DiskPath $Fake '0123456789abcdef')
            Assert-Success (Invoke-PoolScript $Fake 'destroy-vm' (Get-DestroyRequest $Fake) $Data)
            Assert-NothingLeft $Fake 0
        }
        }
    }

    $checks['destroy says so when Hyper-V does not answer, and can be called again'] = {
        param($Fake)
        Add-FakeVM $Fake 'runner-1' 'Running' (Get-Mark $Fake '0123456789abcdef') (Get-DiskPath $Fake '0123456789abcdef')
        Assert-Failure (Invoke-PoolScript $Fake 'destroy-vm' (Get-DestroyRequest $Fake) 'Get-VM') 'find' '*Get-VM failed*'
        Assert-Success (Invoke-PoolScript $Fake 'destroy-vm' (Get-DestroyRequest $Fake) '')
        Assert-NothingLeft $Fake 0
    }

    $checks['destroy waits for a VM that cannot be stopped yet and a disk that is locked'] = {
        param($Fake)
        Add-FakeVM $Fake 'runner-1' 'Running' (Get-Mark $Fake '0123456789abcdef') (Get-DiskPath $Fake '0123456789abcdef')
        Assert-Success (Invoke-PoolScript $Fake 'destroy-vm' (Get-DestroyRequest $Fake) 'Stop-VM:2,Remove-VM:1,Remove-Item:2')
        Assert-NothingLeft $Fake 0
        Assert-Equal (Get-CallCount $Fake 'Stop-VM') 3 'the calls of Stop-VM'
        Assert-Equal (Get-CallCount $Fake 'Remove-Item') 3 'the calls of Remove-Item'
    }

    # Where hcsdiag.exe can be a shell script.
    if ([string][System.Environment]::OSVersion.Platform -ne 'Win32NT') {
        foreach ($stuck in 'refuses', 'hangs') {
            $checks["destroy kills a VM whose stop $stuck, once, and removes it"] = @{ Data = $stuck; Body = {
                param($Fake, $Data)
                $id = Add-StuckVM $Fake $Data 'helps'
                $request = Get-DestroyRequest $Fake
                $request['patience'] = 3
                Assert-Success (Invoke-PoolScript $Fake 'destroy-vm' $request '')
                Assert-Equal (Get-CallCount $Fake "hcsdiag.exe kill $id") 1 'the calls of hcsdiag'
                Assert-NothingLeft $Fake 0
            }
            }
        }
        $cases = @{ 'does not help' = '*exit code 7*'; '' = '*hcsdiag.exe cannot be run*' }
        foreach ($hcsdiag in @($cases.Keys)) {
            $checks["destroy fails while a VM stays in Stopping, with hcsdiag '$hcsdiag'"] = @{ Data = @($hcsdiag, $cases[$hcsdiag]); Body = {
                param($Fake, $Data)
                Add-StuckVM $Fake 'hangs' $Data[0] | Out-Null
                $request = Get-DestroyRequest $Fake
                $request['patience'] = 1
                $answer = Invoke-PoolScript $Fake 'destroy-vm' $request ''
                Assert-Failure $answer 'stop' "*'runner-1'*still 'Stopping'*"
                Assert-Like $answer.error $Data[1] 'what came of hcsdiag'
                Assert-Equal @(Get-FakeVM $Fake).Count 1 'the VMs left'
                Assert-True (Test-Path -LiteralPath (Get-DiskPath $Fake '0123456789abcdef')) 'the disk is gone'
            }
            }
        }
    }

    $checks['destroy removes a VM that was cut off before it was marked'] = {
        param($Fake)
        Add-FakeVM $Fake 'runner-1' 'Off' '' (Get-DiskPath $Fake '0123456789abcdef')
        Assert-Success (Invoke-PoolScript $Fake 'destroy-vm' (Get-DestroyRequest $Fake) '')
        Assert-NothingLeft $Fake 0
    }

    $checks['destroy removes a VM without its disk, and a disk without its VM'] = {
        param($Fake)
        Add-FakeVM $Fake 'runner-1' 'Running' (Get-Mark $Fake '0123456789abcdef') ''
        Assert-Success (Invoke-PoolScript $Fake 'destroy-vm' (Get-DestroyRequest $Fake) '')
        Assert-NothingLeft $Fake 0
        [System.IO.File]::WriteAllText((Get-DiskPath $Fake '0123456789abcdef'), 'vhdxfile')
        Assert-Success (Invoke-PoolScript $Fake 'destroy-vm' (Get-DestroyRequest $Fake) '')
        Assert-NothingLeft $Fake 0
    }

    $checks['destroy removes what checkpoints and backups left of the disk too'] = {
        param($Fake)
        Add-FakeVM $Fake 'runner-1' 'Off' (Get-Mark $Fake '0123456789abcdef') (Get-DiskPath $Fake '0123456789abcdef')
        foreach ($end in '_5B1D2F0A.avhdx', '-AutoRecovery.avhdx', '.vhdx.rct', '.vhdx.mrt') {
            $path = Join-Path -Path $Fake.Storage -ChildPath ('runner-1-0123456789abcdef' + $end)
            [System.IO.File]::WriteAllText($path, 'vhdxfile')
        }
        $copy = Join-Path -Path $Fake.Storage -ChildPath 'runner-2-0123456789abcdef_5B1D2F0A.avhdx'
        [System.IO.File]::WriteAllText($copy, 'vhdxfile')
        Assert-Success (Invoke-PoolScript $Fake 'destroy-vm' (Get-DestroyRequest $Fake) '')
        Assert-NothingLeft $Fake 0
        Assert-True (Test-Path -LiteralPath $copy) 'the disk of another VM is gone'
    }

    $checks['destroy touches no other VM and no other disk'] = {
        param($Fake)
        $later = Get-DiskPath $Fake 'fedcba9876543210'
        $own = Join-Path -Path $Fake.Folder -ChildPath 'own.vhdx'
        Add-FakeVM $Fake 'runner-1' 'Running' (Get-Mark $Fake 'fedcba9876543210') $later
        Add-FakeVM $Fake 'runner-1' 'Running' 'somebody else made this' $own
        Add-FakeVM $Fake 'runner-1' 'Running' '{"pool":"elsewhere","incarnation":"0123456789abcdef"}' ''
        Add-FakeVM $Fake 'runner-1' 'Running' '{"slot":1}' ''
        Add-FakeVM $Fake 'runner-1' 'Running' '' ''
        Assert-Success (Invoke-PoolScript $Fake 'destroy-vm' (Get-DestroyRequest $Fake) '')
        Assert-Equal @(Get-FakeVM $Fake | Where-Object { $_.state -eq 'Running' }).Count 5 'the VMs left'
        Assert-True (Test-Path -LiteralPath $later) 'the disk of the later VM is gone'
        Assert-True (Test-Path -LiteralPath $own) 'the disk of the other VM is gone'
    }

    # The cases to which the pool itself is held too, by identity.rs.
    $cases = [System.IO.File]::ReadAllText((Join-Path -Path (Split-Path -Path $PSScriptRoot -Parent) -ChildPath 'data/ownership.json'))
    foreach ($case in @(ConvertFrom-Json -InputObject $cases | ForEach-Object { $_ })) {
        $checks["destroy knows whose a VM is: $($case.about)"] = @{ Data = $case; Body = {
            param($Fake, $Data)
            $notes = $Data.notes
            if ($notes -isnot [string]) {
                if (@($notes.PSObject.Properties.Name) -contains 'pool' -and $notes.pool -is [string]) {
                    $notes.pool = Get-StoragePath $Fake $notes.pool
                }
                $notes = ConvertTo-Json -InputObject $notes -Compress
            }
            $record = New-FakeRecord $Data.name 'Off' $notes ''
            $record.disks = @($Data.disks | ForEach-Object { Get-StoragePath $Fake $_ })
            Save-FakeRecord $Fake.Folder $record
            Assert-Success (Invoke-PoolScript $Fake 'destroy-vm' (Get-DestroyRequest $Fake) '')
            Assert-Equal (@(Get-FakeVM $Fake).Count -eq 0) $Data.ours 'whether the VM was removed'
        }
        }
    }

    $checks['destroy refuses a disk that does not bear the name of the VM'] = {
        param($Fake)
        $request = Get-DestroyRequest $Fake
        $request['diskPath'] = $Fake.Template
        Assert-Failure (Invoke-PoolScript $Fake 'destroy-vm' $request '') 'find' '*nothing was touched*'
        Assert-True (Test-Path -LiteralPath $Fake.Template) 'the template is gone'
    }

    $checks['keep turns a failed VM off, marks it, and removes the one that was kept before'] = {
        param($Fake)
        Add-KeptVM $Fake 'fedcba9876543210'
        Add-FakeVM $Fake 'failed-00000000000000aa' 'Off' '{"pool":"/elsewhere","incarnation":"00000000000000aa","kept":true}' ''
        Add-FakeVM $Fake 'runner-1' 'Running' (Get-Mark $Fake '0123456789abcdef') (Get-DiskPath $Fake '0123456789abcdef')
        $request = Get-DestroyRequest $Fake
        $request.keep = $true
        Assert-Success (Invoke-PoolScript $Fake 'destroy-vm' $request '')
        $vms = @(Get-FakeVM $Fake | Sort-Object -Property name)
        Assert-Equal ($vms.name -join ' ') 'failed-00000000000000aa failed-0123456789abcdef' 'the VMs left'
        Assert-Equal $vms[1].state 'Off' 'the state of the one that is kept'
        $mark = ConvertFrom-Json -InputObject $vms[1].notes
        Assert-Equal "$($mark.kept) $($mark.incarnation) $($mark.runner_name)" 'True 0123456789abcdef runner-1' 'its Notes'
        Assert-Equal ((Get-ChildItem -LiteralPath $Fake.Storage).Name -join ' ') 'runner-1-0123456789abcdef.vhdx' 'the disks left'

        # As after an answer that was lost: the pool destroys the VM under the name that it had.
        Assert-Success (Invoke-PoolScript $Fake 'destroy-vm' $request '')
        Assert-Success (Invoke-PoolScript $Fake 'destroy-vm' (Get-DestroyRequest $Fake) '')
        Assert-Equal @(Get-FakeVM $Fake).Count 2 'the VMs left'
        Assert-True (Test-Path -LiteralPath (Get-DiskPath $Fake '0123456789abcdef')) 'the disk of the kept VM is gone'
    }

    $checks['destroy removes a kept VM under the name that it has now'] = {
        param($Fake)
        Add-KeptVM $Fake '0123456789abcdef'
        Add-FakeVM $Fake 'runner-1' 'Running' (Get-Mark $Fake 'fedcba9876543210') (Get-DiskPath $Fake 'fedcba9876543210')
        $request = Get-DestroyRequest $Fake
        $request.name = 'failed-0123456789abcdef'
        $request.diskPath = Join-Path -Path $Fake.Storage -ChildPath 'failed-0123456789abcdef-0123456789abcdef.vhdx'
        Assert-Success (Invoke-PoolScript $Fake 'destroy-vm' $request '')
        Assert-Equal (@(Get-FakeVM $Fake).name -join ' ') 'runner-1' 'the VMs left'
        Assert-Equal ((Get-ChildItem -LiteralPath $Fake.Storage).Name -join ' ') 'runner-1-fedcba9876543210.vhdx' 'the disks left'
    }

    foreach ($fault in @{ 'Get-VM' = 'find'; 'Remove-VM' = 'remove'; 'Set-VM' = 'keep' }.GetEnumerator()) {
        $checks["keep says so when $($fault.Key) fails, and destroy removes the VM then"] = @{ Data = @($fault.Key, $fault.Value); Body = {
            param($Fake, $Data)
            Add-KeptVM $Fake 'fedcba9876543210'
            Add-FakeVM $Fake 'runner-1' 'Running' (Get-Mark $Fake '0123456789abcdef') (Get-DiskPath $Fake '0123456789abcdef')
            $request = Get-DestroyRequest $Fake
            $request.keep = $true
            $request.patience = 1
            Assert-Failure (Invoke-PoolScript $Fake 'destroy-vm' $request $Data[0]) $Data[1] '*'
            Assert-Success (Invoke-PoolScript $Fake 'destroy-vm' (Get-DestroyRequest $Fake) '')
            Assert-True (@(Get-FakeVM $Fake | Where-Object { $_.name -ne 'failed-fedcba9876543210' }).Count -eq 0) 'the VM is still there'
            Assert-True (-not (Test-Path -LiteralPath (Get-DiskPath $Fake '0123456789abcdef'))) 'its disk is still there'
        }
        }
    }

    $checks['keep keeps no VM that is not there'] = {
        param($Fake)
        $request = Get-DestroyRequest $Fake
        $request.keep = $true
        Assert-Failure (Invoke-PoolScript $Fake 'destroy-vm' $request '') 'find' '*is not there*'
    }

    $checks['list fails when a VM that may be a kept one cannot be looked at'] = {
        param($Fake)
        Add-KeptVM $Fake '0123456789abcdef'
        $record = @(Get-FakeVM $Fake)[0]
        $record.broken = $true
        Save-FakeRecord $Fake.Folder $record
        $answer = Invoke-PoolScript $Fake 'list-vms' @{ storagePath = $Fake.Storage; writes = @() } ''
        Assert-Failure $answer 'vms' '*cannot be looked at*'
    }

    $checks['examine finds how long a VM has been on, its addresses and its screen'] = {
        param($Fake)
        Add-FakeVM $Fake 'runner-1' 'Running' (Get-Mark $Fake 'fedcba9876543210') ''
        Add-BootingVM $Fake
        $answer = Invoke-PoolScript $Fake 'examine-vm' (Get-DestroyRequest $Fake) ''
        Assert-Success $answer
        Assert-Equal $answer.uptimeSeconds 600 'the uptime'
        Assert-Equal ($answer.addresses -join ' ') '172.20.0.9 fe80::1' 'the addresses'
        Assert-Equal @($answer.missing).Count 0 'what is missing'
        Assert-Equal (Get-PngColor ([System.Convert]::FromBase64String($answer.picture))) '64 x 48: FF0000 00FF00 0000FF' 'the picture'
        Assert-Equal @(Get-FakeVM $Fake | Where-Object { $_.state -eq 'Running' }).Count 2 'the VMs that go on'
    }

    $parts = @{
        'Get-VMNetworkAdapter'                                = @('addresses', 'the addresses: *')
        'Get-CimInstance Msvm_VideoHead'                      = @('picture', 'the screen: *')
        'Get-CimInstance Msvm_VirtualSystemSettingData'       = @('picture', 'the screen: *')
        'Get-CimInstance Msvm_VirtualSystemManagementService' = @('picture', 'the screen: *')
        'GetVirtualSystemThumbnailImage'                      = @('picture', 'the screen: *')
    }
    foreach ($fault in @($parts.Keys)) {
        $checks["examine leaves out what $fault would tell, and says why"] = @{ Data = @($fault, $parts[$fault][0], $parts[$fault][1]); Body = {
            param($Fake, $Data)
            Add-BootingVM $Fake
            $answer = Invoke-PoolScript $Fake 'examine-vm' (Get-DestroyRequest $Fake) $Data[0]
            Assert-Success $answer
            foreach ($name in 'uptimeSeconds', 'addresses', 'picture') {
                Assert-Equal (@($answer.PSObject.Properties.Name) -contains $name) ($name -ne $Data[1]) "whether there is $name"
            }
            Assert-Equal @($answer.missing).Count 1 'what is missing'
            Assert-Like $answer.missing[0] $Data[2] 'what is missing'
        }
        }
    }

    $checks['examine tells of a VM that is off that it shows nothing'] = {
        param($Fake)
        Add-FakeVM $Fake 'runner-1' 'Off' (Get-Mark $Fake '0123456789abcdef') ''
        $answer = Invoke-PoolScript $Fake 'examine-vm' (Get-DestroyRequest $Fake) ''
        Assert-Success $answer
        Assert-Like $answer.missing[0] 'the screen: it shows nothing*' 'what is missing'
    }

    $checks['examine fails for a VM that is not there, and when Get-VM does'] = {
        param($Fake)
        Add-FakeVM $Fake 'runner-1' 'Running' (Get-Mark $Fake 'fedcba9876543210') ''
        Assert-Failure (Invoke-PoolScript $Fake 'examine-vm' (Get-DestroyRequest $Fake) '') 'find' '*is not there*'
        Assert-Failure (Invoke-PoolScript $Fake 'examine-vm' (Get-DestroyRequest $Fake) 'Get-VM') 'find' '*Get-VM failed*'
    }

    $checks['list of nothing is two empty lists'] = {
        param($Fake)
        $text = Invoke-ScriptText $Fake 'list-vms' (ConvertTo-Json -InputObject @{ storagePath = $Fake.Storage; writes = @() } -Compress) ''
        Assert-Like $text '{"ok":true,"vms":`[`],"disks":`[`],"unwritten":`[`],"freeBytes":*}' 'the answer'
        Assert-True ((ConvertFrom-Json -InputObject $text).freeBytes -gt 0) 'no free space was found'
        $gone = $Fake.Storage + ' gone'
        $text = Invoke-ScriptText $Fake 'list-vms' (ConvertTo-Json -InputObject @{ storagePath = $gone; writes = @() } -Compress) ''
        Assert-Equal $text '{"ok":true,"vms":[],"disks":[],"unwritten":[]}' 'the answer without a folder'
    }

    $checks['list tells no free space of a folder that is a link to elsewhere'] = {
        param($Fake)
        $link = Join-Path -Path $Fake.Folder -ChildPath 'link'
        $kind = 'SymbolicLink'
        if ([string][System.Environment]::OSVersion.Platform -eq 'Win32NT') {
            # Windows lets anyone make these.
            $kind = 'Junction'
        }
        New-Item -Path $link -ItemType $kind -Value $Fake.Storage | Out-Null
        $text = Invoke-ScriptText $Fake 'list-vms' (ConvertTo-Json -InputObject @{ storagePath = $link; writes = @() } -Compress) ''
        [System.IO.Directory]::Delete($link)
        Assert-Equal $text '{"ok":true,"vms":[],"disks":[],"unwritten":[]}' 'the answer'
    }

    $checks['list of one VM with one disk is still lists'] = {
        param($Fake)
        Assert-Success (Invoke-PoolScript $Fake 'create-vm' (Get-CreateRequest $Fake @{}) '')
        $text = Invoke-ScriptText $Fake 'list-vms' (ConvertTo-Json -InputObject @{ storagePath = $Fake.Storage; writes = @() } -Compress) ''
        Assert-Like $text '{"ok":true,"vms":`[{"name":"runner-1","state":"Running","uptimeSeconds":*,"notes":"{*","disks":`["*"`],"heartbeat":"unknown"}`],"disks":`["runner-1-0123456789abcdef.vhdx"`],"unwritten":`[`],"freeBytes":*}' 'the answer'
        $vm = @((ConvertFrom-Json -InputObject $text).vms)[0]
        Assert-Equal $vm.notes (Get-Mark $Fake '0123456789abcdef') 'the Notes'
        Assert-Equal @($vm.disks)[0] (Get-DiskPath $Fake '0123456789abcdef') 'the disk'
    }

    $checks['list tells of every VM and disk, whosever they are'] = {
        param($Fake)
        Add-FakeVM $Fake 'web' 'Saved' 'my web server' ''
        Add-FakeVM $Fake 'runner-1' 'Off' '' (Get-DiskPath $Fake '0123456789abcdef')
        foreach ($name in 'notes.txt', 'left.avhdx', 'other.vhdx') {
            [System.IO.File]::WriteAllText((Join-Path -Path $Fake.Storage -ChildPath $name), 'x')
        }
        $answer = Invoke-PoolScript $Fake 'list-vms' @{ storagePath = $Fake.Storage; writes = @() } ''
        Assert-Success $answer
        $names = @($answer.vms | ForEach-Object { $_.name + ' ' + $_.state } | Sort-Object)
        Assert-Equal ($names -join ', ') 'runner-1 Off, web Saved' 'the VMs'
        $web = @($answer.vms | Where-Object { $_.name -eq 'web' })[0]
        Assert-Equal $web.notes 'my web server' 'the Notes'
        Assert-Equal @($web.disks).Count 0 'the disks of a VM without one'
        $disks = @($answer.disks | Sort-Object)
        Assert-Equal ($disks -join ', ') 'left.avhdx, other.vhdx, runner-1-0123456789abcdef.vhdx' 'the disks'
    }

    $checks['list tells how the guests are'] = {
        param($Fake)
        $guests = [ordered]@{
            'a' = @(2, @{ RunnerPoolStage = 'running'; RunnerPoolWorker = '1' })
            'b' = @(3, @{ RunnerPoolStage = 'a<b&"c"'; RunnerPoolWorker = '0'; RunnerPoolError = 'it broke' })
            'c' = @(12, @{ RunnerPoolStage = 'starting' })
            'd' = @(13, @{ Another = 'value' })
            # XML has no such character.
            'e' = @(2, @{ RunnerPoolStage = [string][char]1; RunnerPoolWorker = '0' })
        }
        foreach ($name in $guests.Keys) {
            Add-FakeVM $Fake $name 'Running' '' ''
            $record = @(Get-FakeVM $Fake | Where-Object { $_.name -eq $name })[0]
            $record.heartbeat = $guests[$name][0]
            $record.guestItems = $guests[$name][1]
            Save-FakeRecord $Fake.Folder $record
        }
        $answer = Invoke-PoolScript $Fake 'list-vms' (Get-ListRequest $Fake @()) ''
        Assert-Success $answer
        $told = @($answer.vms | Sort-Object -Property name | ForEach-Object {
            $word = 'nothing'
            if (@($_.PSObject.Properties.Name) -contains 'guest') {
                $word = ConvertTo-Json -InputObject $_.guest -Compress
            }
            "$($_.name) $($_.heartbeat) $word"
        })
        Assert-Equal $told[0] 'a ok {"stage":"running","lastError":null,"worker":true}' 'the first'
        Assert-Equal $told[1] 'b ok {"stage":"a<b&\"c\"","lastError":"it broke","worker":false}' 'the second'
        Assert-Equal $told[2] 'c unknown nothing' 'the third'
        Assert-Equal $told[3] 'd lost nothing' 'the fourth'
        Assert-Equal $told[4] 'e ok nothing' 'the fifth'
    }

    foreach ($class in 'Msvm_HeartbeatComponent', 'Msvm_KvpExchangeComponent') {
        $checks["list does without what $class tells"] = @{ Data = $class; Body = {
            param($Fake, $Data)
            Add-FakeVM $Fake 'runner-1' 'Running' '' ''
            $answer = Invoke-PoolScript $Fake 'list-vms' (Get-ListRequest $Fake @()) "Get-CimInstance $Data"
            Assert-Success $answer
            Assert-Equal @($answer.vms).Count 1 'the VMs'
            $told = @($answer.vms[0].PSObject.Properties.Name)
            Assert-Equal ($told -contains 'heartbeat') ($Data -ne 'Msvm_HeartbeatComponent') 'the heartbeat'
        }
        }
    }

    $first = '0123456789abcdef'
    $second = 'fedcba9876543210'
    $untouched = 'none RunnerPoolJitConfig1 RunnerPoolJitConfig2 RunnerPoolJitConfigParts RunnerPoolVmSecret'
    $writes = @(
        @{ name = 'runner-1'; incarnation = $first; jobStarted = 77; retire = $true; forgetJitConfig = $true },
        @{ name = 'runner-2'; incarnation = $second; jobStarted = 99; retire = $true; forgetJitConfig = $true }
    )

    $checks['list writes to the VMs of those names and incarnations alone'] = @{ Data = @($writes[0], $first, $second, $untouched); Body = {
        param($Fake, $Data)
        $write, $first, $second, $untouched = $Data
        Add-WrittenVM $Fake 'runner-1' $first
        Add-WrittenVM $Fake 'runner-1' $second
        Add-FakeVM $Fake 'runner-1' 'Running' 'not JSON' ''
        Add-FakeVM $Fake 'runner-1' 'Running' '' ''
        $copy = @{ name = 'copy'; incarnation = $second; jobStarted = 77; retire = $true; forgetJitConfig = $true }
        $answer = Invoke-PoolScript $Fake 'list-vms' (Get-ListRequest $Fake @($write, $copy)) ''
        Assert-Success $answer
        Assert-Equal @($answer.unwritten).Count 0 'what was not written'
        Assert-Equal (Get-Written $Fake $first) '77 RunnerPoolRetire RunnerPoolVmSecret' 'the first VM'
        Assert-Equal (Get-Written $Fake $second) $untouched 'the second VM'
        $vm = @($answer.vms | Where-Object { $_.notes -like "*$first*" })[0]
        Assert-Equal $vm.holdsJitConfig $false 'whether it holds a JIT configuration'
        Assert-Like $vm.notes '*"runner_id":7*"job_started":77*' 'the Notes in the answer'
        foreach ($call in 'AddKvpItems', 'RemoveKvpItems', 'Get-CimInstance Msvm_ComputerSystem', 'Get-CimInstance Msvm_KvpExchangeComponentSettingData') {
            Assert-Equal (Get-CallCount $Fake $call) 1 "the calls of $call"
        }

        # All of it again: it is there already.
        $answer = Invoke-PoolScript $Fake 'list-vms' (Get-ListRequest $Fake @($write)) ''
        Assert-Success $answer
        Assert-Equal @($answer.unwritten).Count 0 'what was not written'
        Assert-Equal (Get-CallCount $Fake 'AddKvpItems') 1 'the calls of AddKvpItems'
    }
    }

    # Each call in turn: its first call fails, and what it does not concern is written.
    $faults = [ordered]@{
        'Get-CimInstance Msvm_ComputerSystem'                  = 'neither'
        'Get-CimInstance Msvm_KvpExchangeComponentSettingData' = 'neither'
        'Get-CimClass'                                         = 'second'
        'New-CimInstance'                                      = 'second'
        'Serialize'                                            = 'second'
        'Get-CimInstance Msvm_VirtualSystemManagementService'  = 'second'
        'AddKvpItems'                                          = 'second'
        'Get-CimInstance'                                      = 'second'
        'Job'                                                  = 'second'
        'RemoveKvpItems'                                       = 'second'
        'Set-VM'                                               = 'both'
    }
    foreach ($fault in @($faults.Keys)) {
        $checks["list goes on when $fault fails as it writes"] = @{ Data = @($fault, $faults[$fault], $writes, $first, $second); Body = {
            param($Fake, $Data)
            $fault, $who, $writes, $first, $second = $Data
            Add-WrittenVM $Fake 'runner-1' $first
            Add-WrittenVM $Fake 'runner-2' $second
            $answer = Invoke-PoolScript $Fake 'list-vms' (Get-ListRequest $Fake $writes) "${fault}:1"
            Assert-Success $answer
            Assert-Equal @($answer.vms).Count 2 'the VMs'
            Assert-Equal @($answer.unwritten).Count 1 'what was not written'
            foreach ($secret in 'f00dfeed', 'eyJqaXQ') {
                Assert-True (-not ([string]$answer.unwritten).Contains($secret)) 'an error holds a secret'
            }
            $written = @($answer.vms | Where-Object { (Get-Written $Fake (ConvertFrom-Json -InputObject $_.notes).incarnation) -match '^\S+ RunnerPoolRetire RunnerPoolVmSecret$' })
            $expected = @{ neither = 0; second = 1; both = 2 }
            Assert-Equal $written.Count $expected[$who] 'the VMs whose key-values are written'
            $started = @($answer.vms | Where-Object { $_.notes -like '*"job_started":*' })
            Assert-Equal $started.Count ([int]($fault -eq 'Set-VM') * -1 + 2) 'the VMs whose Notes are written'
            # The rest is due again.
            $answer = Invoke-PoolScript $Fake 'list-vms' (Get-ListRequest $Fake $writes) ''
            Assert-Equal @($answer.unwritten).Count 0 'what was not written then'
            Assert-Equal (Get-Written $Fake $first) '77 RunnerPoolRetire RunnerPoolVmSecret' 'the first VM'
            Assert-Equal (Get-Written $Fake $second) '99 RunnerPoolRetire RunnerPoolVmSecret' 'the second VM'
        }
        }
    }

    $checks['list looks again when a VM vanishes meanwhile'] = {
        param($Fake)
        Add-FakeVM $Fake 'runner-1' 'Running' '' ''
        $answer = Invoke-PoolScript $Fake 'list-vms' (Get-ListRequest $Fake @()) 'Get-VM:1'
        Assert-Success $answer
        Assert-Equal @($answer.vms).Count 1 'the VMs'
    }

    $checks['list tells of a VM that cannot be looked at, unless it may be the pool''s'] = {
        param($Fake)
        Add-FakeVM $Fake 'runner-1' 'Running' (Get-Mark $Fake '0123456789abcdef') (Get-DiskPath $Fake '0123456789abcdef')
        Add-FakeVM $Fake 'web' 'Running' '' ''
        foreach ($broken in 'web', 'runner-1') {
            $record = @(Get-FakeVM $Fake | Where-Object { $_.name -eq $broken })[0]
            $record.broken = $true
            Save-FakeRecord $Fake.Folder $record
            $answer = Invoke-PoolScript $Fake 'list-vms' (Get-ListRequest $Fake @()) ''
            if ($broken -eq 'web') {
                Assert-Success $answer
                $names = @($answer.vms | ForEach-Object { "$($_.name) $($_.state) $(@($_.disks).Count)" } | Sort-Object)
                Assert-Equal ($names -join ', ') 'runner-1 Running 1, web Other 0' 'the VMs'
            } else {
                Assert-Failure $answer 'vms' '*cannot be looked at*'
            }
        }
    }

    $checks['list says so when Hyper-V does not answer'] = {
        param($Fake)
        Assert-Failure (Invoke-PoolScript $Fake 'list-vms' @{ storagePath = $Fake.Storage; writes = @() } 'Get-VM') 'vms' '*Get-VM failed*'
    }

    $checks['check-host finds the facts of a good host'] = {
        param($Fake)
        (Get-Item -LiteralPath $Fake.Template).IsReadOnly = $true
        $answer = Invoke-PoolScript $Fake 'check-host' (Get-CheckRequest $Fake) ''
        Assert-Success $answer
        Assert-Equal $answer.windows 'Simulated Windows Server' 'Windows'
        Assert-Equal $answer.hyperVModule $true 'the module'
        Assert-Equal $answer.hyperVService 'Running' 'the service'
        Assert-Equal $answer.template 'ok' 'the template'
        Assert-Equal $answer.templateBytes 21 'the size of the template'
        Assert-Equal $answer.templateReadOnly $true 'read-only'
        Assert-Equal $answer.storage 'ok' 'the storage folder'
        Assert-True ($answer.freeBytes -gt 0) 'no free space was found'
        Assert-Equal (@($answer.switches) -join ', ') 'Default Switch, Lan' 'the switches'
        Assert-Equal $answer.switchAddress '172.20.0.1' 'the address'
        Assert-Equal $answer.firewall 'blocked' 'the firewall'
        Assert-Equal $answer.memoryBytes 34359738368 'the memory'
        Assert-Equal $answer.processors 8 'the processors'
        Assert-Equal $answer.hypervisorPresent $true 'whether the hypervisor runs'
        Assert-Equal $answer.switchType 'Internal' 'the kind of switch'
        Assert-Equal $answer.ownSwitch $false 'whether the switch is the pool''s own'
        Assert-Equal "$($answer.macMinimum) $($answer.macMaximum)" '00155D000700 00155D0007FF' 'the MAC addresses that Hyper-V gives'
        Set-FakeHost $Fake @{ nats = @('172.20.0.0/20') }
        Assert-Equal (Invoke-PoolScript $Fake 'check-host' (Get-CheckRequest $Fake) '').ownSwitch $true 'whether a switch with a NAT is the pool''s own'
    }

    $checks['check-host leaves out memory and processors that it cannot find out'] = {
        param($Fake)
        $answer = Invoke-PoolScript $Fake 'check-host' (Get-CheckRequest $Fake) 'Get-CimInstance Win32_ComputerSystem'
        Assert-Success $answer
        $names = @($answer.PSObject.Properties | ForEach-Object { $_.Name })
        Assert-True (-not ($names -contains 'memoryBytes')) 'there is a fact about memory'
        Assert-True (-not ($names -contains 'processors')) 'there is a fact about processors'
        Assert-Equal $answer.windows 'Simulated Windows Server' 'Windows'
    }

    $checks['check-host leaves out only what a failing call would have told'] = {
        param($Fake)
        $told = @{
            'Get-CimInstance Win32_OperatingSystem' = 'windows'
            'Get-CimInstance Win32_ComputerSystem'  = 'memoryBytes, processors, hypervisorPresent'
            'Get-Service'                           = 'hyperVService'
            'Get-VMHost'                            = 'macMinimum, macMaximum'
            'Get-VMSwitch'                          = 'switches, switchType'
            'Get-VMNetworkAdapter'                  = 'switchAddress, ownSwitch'
            'Get-NetAdapter'                        = 'switchAddress, ownSwitch'
            'Get-NetIPAddress'                      = 'switchAddress, ownSwitch'
            'Get-NetNat'                            = 'ownSwitch'
        }
        $good = Invoke-PoolScript $Fake 'check-host' (Get-CheckRequest $Fake) ''
        $calls = [System.IO.File]::ReadAllLines((Join-Path -Path $Fake.Folder -ChildPath 'calls.log'))
        foreach ($call in @($calls | Sort-Object -Unique)) {
            $answer = Invoke-PoolScript $Fake 'check-host' (Get-CheckRequest $Fake) $call
            Assert-Success $answer
            $changed = @($good.PSObject.Properties | Where-Object { $_.Name -ne 'freeBytes' } | Where-Object {
                $fact = $answer.PSObject.Properties[$_.Name]
                $null -eq $fact -or (ConvertTo-Json -InputObject $fact.Value -Compress) -ne (ConvertTo-Json -InputObject $_.Value -Compress)
            } | ForEach-Object { $_.Name })
            $expected = 'firewall'
            if ($told.ContainsKey($call)) {
                $expected = $told[$call]
            }
            Assert-Equal ($changed -join ', ') $expected "the facts that $call would have told"
        }
    }

    $checks['check-host finds what is missing'] = {
        param($Fake)
        Set-FakeHost $Fake @{ service = ''; switches = @('Lan'); addresses = @() }
        Remove-Item -LiteralPath $Fake.Storage -Recurse -Force
        $request = Get-CheckRequest $Fake
        $request['templatePath'] = $Fake.Template + ' gone'
        $text = Invoke-ScriptText $Fake 'check-host' (ConvertTo-Json -InputObject $request -Compress) ''
        Assert-Like $text '*"switches":`["Lan"`]*' 'the answer'
        $answer = ConvertFrom-Json -InputObject $text
        Assert-Success $answer
        Assert-Equal $answer.hyperVService 'missing' 'the service'
        Assert-Equal $answer.template 'missing' 'the template'
        Assert-Equal $answer.storage 'missing' 'the storage folder'
        Assert-Equal $answer.switchAddress '' 'the address'
        [System.IO.File]::WriteAllText($Fake.Template, 'conectix and more')
        $answer = Invoke-PoolScript $Fake 'check-host' (Get-CheckRequest $Fake) 'Get-VMSwitch,Get-NetFirewallRule'
        Assert-Equal $answer.template 'not-vhdx' 'the template'
        Assert-Equal @($answer.switches).Count 0 'the switches'
        Assert-Equal $answer.firewall 'unknown' 'the firewall'
    }

    $rule = @{
        id = 'r1'; action = 'Allow'; profile = 'Any'; protocol = 'TCP'; port = '8080'
        program = 'Any'; adapter = 'vEthernet (Default Switch)'; service = 'Any'; remote = 'Any'
    }
    $cases = @(
        @('allowed', 'a rule for the port', @{}),
        @('allowed', 'a rule for a range with the port', @{ port = '8000-9000'; adapter = 'Any' }),
        @('allowed', 'a rule for all ports', @{ port = 'Any'; protocol = 'Any' }),
        @('blocked', 'a rule for another port', @{ port = '8081' }),
        @('blocked', 'a rule for another adapter', @{ adapter = 'Ethernet' }),
        @('blocked', 'a rule for an adapter that is gone', @{ adapter = '' }),
        @('allowed', 'a rule for the network of the switch', @{ adapter = 'Any'; remote = '172.20.0.0/255.255.240.0' }),
        @('allowed', 'a rule for that network among others', @{ adapter = 'Any'; remote = @('10.0.0.0/8', '172.16.0.0/12') }),
        @('allowed', 'a rule for a range with the host on the switch', @{ remote = '172.20.0.0-172.20.0.255' }),
        @('allowed', 'a rule for the local subnet', @{ remote = 'LocalSubnet' }),
        @('blocked', 'a rule for the network that the switch had before', @{ adapter = 'Any'; remote = '172.20.32.0/255.255.240.0' }),
        @('blocked', 'a rule for one other address', @{ remote = @('fe80::/64', '192.0.2.10') }),
        @('blocked', 'a rule for another program', @{ program = 'C:\other.exe' }),
        @('blocked', 'a rule for a service', @{ service = 'wuauserv' }),
        @('blocked', 'a rule for another kind of network', @{ profile = 'Domain, Private' }),
        @('blocked', 'a rule that blocks', @{ action = 'Block' })
    )
    foreach ($case in $cases) {
        $expected = $case[0]
        $one = $rule.Clone()
        foreach ($key in @($case[2].Keys)) {
            $one[$key] = $case[2][$key]
        }
        $checks["check-host sees that $($case[1]) leaves the port $expected"] = @{ Data = @($one, $expected); Body = {
            param($Fake, $Data)
            Set-FakeHost $Fake @{ firewall = @{ enabled = 'True'; rules = @($Data[0]) } }
            $answer = Invoke-PoolScript $Fake 'check-host' (Get-CheckRequest $Fake) ''
            Assert-Success $answer
            Assert-Equal $answer.firewall $Data[1] 'the firewall'
        }
        }
    }

    $checks['check-host sees that the firewall is off'] = {
        param($Fake)
        Set-FakeHost $Fake @{ firewall = @{ enabled = 'False'; rules = @() } }
        $answer = Invoke-PoolScript $Fake 'check-host' (Get-CheckRequest $Fake) ''
        Assert-Equal $answer.firewall 'off' 'the firewall'
    }

    foreach ($file in 'create-vm', 'destroy-vm', 'examine-vm', 'list-vms', 'check-host') {
        $checks["$file answers a request that it cannot read"] = @{ Data = $file; Body = {
            param($Fake, $Data)
            $answer = ConvertFrom-Json -InputObject (Invoke-ScriptText $Fake $Data 'this is no JSON' '')
            Assert-Failure $answer 'input' '*'
        }
        }
    }

    $checks['the guest sends the requests that the fake guest of the tests sends'] = {
        param($Fake)
        $expected = ConvertFrom-Json -InputObject ([System.IO.File]::ReadAllText((Get-GuestRequestsPath)))
        $names = 'fetch_config', 'report_started', 'report_complete'
        $sent = @(Get-SentGuestRequest $Fake $expected.guest $names.Count {
            Get-RunnerConfig -Pool $pool
            Send-RunnerStarted -Pool $pool -RunId '42' -Job 'build' -Repository 'acme/widgets'
            Send-RunnerComplete -Pool $pool -ExitCode 0
        })
        for ($i = 0; $i -lt $names.Count; $i++) {
            $name = $names[$i]
            foreach ($part in 'method', 'path', 'authorization', 'user_agent', 'content_type') {
                Assert-Equal $sent[$i].$part $expected.requests.$name.$part "$name, $part"
            }
            Assert-Equal (Get-FlatBody $sent[$i].body) (Get-FlatBody $expected.requests.$name.body) "$name, body"
        }
        # No evaluation edition.
        $expected.guest.image.windows_evaluation_end = $null
        $sent = @(Get-SentGuestRequest $Fake $expected.guest 1 { Get-RunnerConfig -Pool $pool })
        Assert-Equal $sent[0].user_agent $expected.user_agent_without_evaluation_end 'the User-Agent'
    }

    $checks['the guest learns who it is from the values of its host, once they are all there'] = {
        param($Fake)
        $values = @{ RunnerPoolUrl = 'http://172.20.0.1:8080/'; RunnerPoolVmName = 'runner-1' }
        $asked = @{ Path = '' }
        # The registry, where Windows shows the values in a guest.
        function Get-Item($LiteralPath) {
            $asked.Path = $LiteralPath
            $key = [pscustomobject]@{ Values = $values }
            Add-Member -InputObject $key -MemberType ScriptMethod -Name 'GetValue' -Value { param($Name) $this.Values[$Name] }
            return $key
        }
        Copy-GuestScript $Fake @{}
        . (Join-Path -Path $Fake.Folder -ChildPath 'pool.ps1')
        Assert-True ($null -eq (Get-PoolIdentity)) 'a guest without its secret knows who it is'
        $values.RunnerPoolVmSecret = 'f00dfeed'
        $identity = Get-PoolIdentity
        Assert-Equal $asked.Path 'HKLM:\SOFTWARE\Microsoft\Virtual Machine\External' 'the place of the values'
        Assert-Equal $identity.Url 'http://172.20.0.1:8080' 'the URL'
        Assert-Equal $identity.VmName 'runner-1' 'the name'
        Assert-Equal $identity.Secret 'f00dfeed' 'the secret'
    }

    return $checks
}

# Runs one check on a new simulated host. Throws if it fails.
function Invoke-Check([string]$Name) {
    $check = (Get-Check)[$Name]
    $fake = New-FakeHost
    try {
        if ($check -is [scriptblock]) {
            & $check $fake
        } else {
            & $check.Body $fake $check.Data
        }
    } finally {
        Remove-FakeHost $fake
    }
}
