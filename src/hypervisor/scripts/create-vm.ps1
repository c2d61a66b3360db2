# Makes one VM on a disk of its own and starts it.
# Standard input: one JSON object. Standard output: one line,
# {"ok":true,"url":...} or {"ok":false,"error":...,"at":...}.
# If a step fails, what the earlier steps made is removed before the answer.
# Runs under Windows PowerShell 5.1 and PowerShell 7.

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
$WarningPreference = 'SilentlyContinue'
# Nobody is there to answer a question.
$ConfirmPreference = 'None'

# The integration service "Key-Value Pair Exchange". Its name is translated on
# a localised host; the end of its id is the same everywhere.
$KvpServiceId = '2A34B1C2-FD73-4043-8A5B-DD2159BC743F'
$Virtualization = 'root\virtualization\v2'
$MiB = 1048576

$script:step = 'input'
$script:vm = $null
$script:diskIsOurs = $false
$script:url = ''

function Read-Request {
    # Not [Console]::In: Windows PowerShell decodes that with the OEM code page.
    $utf8 = [System.Text.UTF8Encoding]::new($false)
    $reader = [System.IO.StreamReader]::new([Console]::OpenStandardInput(), $utf8)
    $text = $reader.ReadToEnd()
    return (ConvertFrom-Json -InputObject $text)
}

function Write-Answer($Answer) {
    $line = (ConvertTo-Json -InputObject $Answer -Depth 5 -Compress) + "`n"
    $bytes = [System.Text.UTF8Encoding]::new($false).GetBytes($line)
    $stdout = [Console]::OpenStandardOutput()
    $stdout.Write($bytes, 0, $bytes.Length)
    $stdout.Flush()
}

function Get-OneLine($ErrorRecord) {
    return ([string]$ErrorRecord.Exception.Message -replace '\s+', ' ').Trim()
}

# The host's own address on the switch, which is where its VMs reach it.
function Get-SwitchAddress($SwitchName) {
    $alias = "vEthernet ($SwitchName)"
    # -ErrorAction: a function of a module, which does not see this script's
    # $ErrorActionPreference.
    $all = @(Get-NetIPAddress -AddressFamily IPv4 -ErrorAction Stop | Where-Object { $_.InterfaceAlias -eq $alias } | ForEach-Object { [string]$_.IPAddress })
    if ($all.Count -eq 0) {
        throw "This host has no IPv4 address on '$alias'. Give it one, or set ORCHESTRATOR_IP."
    }
    # 169.254.x.x is what Windows takes when nothing gave it an address.
    $given = @($all | Where-Object { -not $_.StartsWith('169.254.') })
    if ($given.Count -gt 0) {
        return $given[0]
    }
    return $all[0]
}

# An instance of Msvm_KvpExchangeDataItem in the XML (CIM DTD 2.0) in which
# Hyper-V takes embedded instances. Source 0: from the host.
function Get-KvpItemXml($Name, $Value) {
    $safeName = [System.Security.SecurityElement]::Escape($Name)
    $safeValue = [System.Security.SecurityElement]::Escape($Value)
    return '<INSTANCE CLASSNAME="Msvm_KvpExchangeDataItem">' +
    '<PROPERTY NAME="Name" TYPE="string"><VALUE>' + $safeName + '</VALUE></PROPERTY>' +
    '<PROPERTY NAME="Data" TYPE="string"><VALUE>' + $safeValue + '</VALUE></PROPERTY>' +
    '<PROPERTY NAME="Source" TYPE="uint16"><VALUE>0</VALUE></PROPERTY>' +
    '</INSTANCE>'
}

# Name and value of an item, from that XML.
function Read-KvpItemXml($Text) {
    $found = @{ Name = ''; Data = '' }
    $document = [System.Xml.XmlDocument]::new()
    $document.LoadXml([string]$Text)
    foreach ($property in $document.DocumentElement.SelectNodes('PROPERTY')) {
        $key = $property.GetAttribute('NAME')
        if ($found.ContainsKey($key)) {
            $found[$key] = $property.InnerText
        }
    }
    return $found
}

function Wait-HyperVJob($Result) {
    if ($Result.ReturnValue -eq 0) {
        return
    }
    # 4096: the work goes on in a job.
    if ($Result.ReturnValue -ne 4096) {
        throw "Hyper-V refused the key-value items (AddKvpItems returned $($Result.ReturnValue))."
    }
    $clock = [System.Diagnostics.Stopwatch]::StartNew()
    while ($true) {
        $job = Get-CimInstance -InputObject $Result.Job
        # JobState: up to 6 it is under way, 7 is completed, above that failed;
        # 32768 is completed with warnings.
        if ($job.JobState -eq 7 -or $job.JobState -eq 32768) {
            return
        }
        if ($job.JobState -gt 6) {
            throw "Hyper-V could not store the key-value items: $($job.ErrorDescription)"
        }
        if ($clock.Elapsed.TotalSeconds -gt 30) {
            throw 'Hyper-V did not store the key-value items within 30 seconds.'
        }
        Start-Sleep -Milliseconds 100
    }
}

# Attaches the values to the VM, and reads them back to be sure that they took.
function Add-KvpItem($Vm, $Values) {
    $id = ([string]$Vm.Id).ToUpperInvariant()
    $service = Get-CimInstance -Namespace $Virtualization -ClassName Msvm_VirtualSystemManagementService
    $system = Get-CimInstance -Namespace $Virtualization -ClassName Msvm_ComputerSystem -Filter "Name = '$id'"
    if ($null -eq $system) {
        throw "Hyper-V's management interface does not know the new VM ($id)."
    }
    $items = @($Values.Keys | ForEach-Object { Get-KvpItemXml $_ $Values[$_] })
    $arguments = @{ TargetSystem = $system; DataItems = [string[]]$items }
    $result = Invoke-CimMethod -InputObject $service -MethodName AddKvpItems -Arguments $arguments
    Wait-HyperVJob $result

    $stored = @{}
    $settings = Get-CimInstance -Namespace $Virtualization -ClassName Msvm_KvpExchangeComponentSettingData |
        Where-Object { $_.InstanceID -like "Microsoft:$id\*" }
    foreach ($setting in $settings) {
        foreach ($text in $setting.HostExchangeItems) {
            $item = Read-KvpItemXml $text
            $stored[$item.Name] = $item.Data
        }
    }
    foreach ($name in $Values.Keys) {
        # The value is not named: one of them is the VM's secret.
        if (-not $stored.ContainsKey($name) -or $stored[$name] -cne $Values[$name]) {
            throw "Hyper-V accepted the key-value item $name but does not hold it."
        }
    }
}

function New-RunnerVM($Request) {
    $template = [string]$Request.templatePath
    $disk = [string]$Request.diskPath

    $script:step = 'template'
    if (-not (Test-Path -LiteralPath $template -PathType Leaf)) {
        throw "The template '$template' does not exist. Build it with Packer, or set VM_TEMPLATE_PATH."
    }
    try {
        $format = [string](Get-VHD -Path $template).VhdFormat
    } catch {
        throw "The template '$template' cannot be read as a VHDX: $(Get-OneLine $_)"
    }
    if ($format -ne 'VHDX' -or [System.IO.Path]::GetExtension($template) -ne '.vhdx') {
        throw "The template '$template' is not a VHDX. Convert it with Convert-VHD."
    }
    # Whatever writes to the template breaks every disk that is based on it.
    $templateFile = Get-Item -LiteralPath $template
    if (-not $templateFile.IsReadOnly) {
        $templateFile.IsReadOnly = $true
    }

    $script:step = 'disk'
    $folder = [System.IO.Path]::GetDirectoryName($disk)
    if (-not (Test-Path -LiteralPath $folder -PathType Container)) {
        New-Item -Path $folder -ItemType Directory -Force
    }
    if (Test-Path -LiteralPath $disk) {
        throw "The disk '$disk' exists already, and a disk is never used twice."
    }
    $script:diskIsOurs = $true
    if ($Request.diskMode -eq 'copy') {
        Copy-Item -LiteralPath $template -Destination $disk
        (Get-Item -LiteralPath $disk).IsReadOnly = $false
    } else {
        New-VHD -Path $disk -ParentPath $template -Differencing
    }

    $script:step = 'vm'
    $switches = @(Get-VMSwitch | ForEach-Object { [string]$_.Name })
    if ($switches -notcontains $Request.switch) {
        $known = 'has none'
        if ($switches.Count -gt 0) {
            $known = 'has: ' + ($switches -join ', ')
        }
        throw "There is no virtual switch '$($Request.switch)'; this host $known. Set VM_SWITCH to one that exists."
    }
    $memory = [int64]$Request.memoryMB * $MiB
    $script:vm = New-VM -Name $Request.name -Generation 2 -MemoryStartupBytes $memory -VHDPath $disk -BootDevice VHD -SwitchName $Request.switch

    # As early as can be: a pool that finds the VM must see whose it is.
    $script:step = 'notes'
    Set-VM -VM $script:vm -Notes $Request.notes

    $script:step = 'settings'
    # Off when the host shuts down: a job that was cut off cannot go on after
    # the host's restart, and saving would reserve a file of the memory's size.
    # The next start of the pool finds the VM off and replaces it.
    Set-VM -VM $script:vm -CheckpointType Disabled -AutomaticCheckpointsEnabled $false -AutomaticStartAction Nothing -AutomaticStopAction TurnOff
    if ([int64]$Request.memoryMaximumMB -gt 0) {
        $most = [int64]$Request.memoryMaximumMB * $MiB
        Set-VMMemory -VM $script:vm -DynamicMemoryEnabled $true -StartupBytes $memory -MinimumBytes $memory -MaximumBytes $most
    } else {
        Set-VMMemory -VM $script:vm -DynamicMemoryEnabled $false -StartupBytes $memory
    }
    Set-VMProcessor -VM $script:vm -Count $Request.cpuCount -ExposeVirtualizationExtensions ([bool]$Request.nestedVirtualization)
    if ($Request.secureBootTemplate -eq 'off') {
        Set-VMFirmware -VM $script:vm -EnableSecureBoot Off
    } else {
        Set-VMFirmware -VM $script:vm -EnableSecureBoot On -SecureBootTemplate $Request.secureBootTemplate
    }
    $kvp = @(Get-VMIntegrationService -VM $script:vm | Where-Object { $_.Id -like "*$KvpServiceId*" })
    if ($kvp.Count -eq 0) {
        throw 'The new VM has no key-value pair exchange service.'
    }
    if (-not $kvp[0].Enabled) {
        Enable-VMIntegrationService -VMIntegrationService $kvp[0]
    }

    $script:step = 'key-values'
    $address = [string]$Request.host
    if ($address -eq '') {
        $address = Get-SwitchAddress $Request.switch
    }
    if ($address.Contains(':')) {
        $address = "[$address]"
    }
    $script:url = "http://${address}:$($Request.port)"
    $values = @{
        RunnerPoolUrl      = $script:url
        RunnerPoolVmName   = [string]$Request.name
        RunnerPoolVmSecret = [string]$Request.secret
    }
    # A value may have 1,023 characters.
    $jitConfig = [string]$Request.jitConfig
    if ($jitConfig -ne '') {
        $parts = 0
        for ($start = 0; $start -lt $jitConfig.Length; $start += 900) {
            $parts++
            $values["RunnerPoolJitConfig$parts"] = $jitConfig.Substring($start, [Math]::Min(900, $jitConfig.Length - $start))
        }
        $values['RunnerPoolJitConfigParts'] = [string]$parts
    }
    Add-KvpItem $script:vm $values

    $script:step = 'start'
    Start-VM -VM $script:vm
}

# Removes what New-RunnerVM made so far.
function Undo-RunnerVM($Request) {
    $made = @()
    if ($null -ne $script:vm) {
        $made = @(Get-VM | Where-Object { $_.Id -eq $script:vm.Id })
    } elseif ($script:diskIsOurs) {
        # New-VM can fail after it made the VM. The disk tells.
        $made = @(Get-VM | Where-Object { @($_.HardDrives | ForEach-Object { $_.Path }) -contains $Request.diskPath })
    }
    foreach ($vm in $made) {
        if ([string]$vm.State -ne 'Off') {
            Stop-VM -VM $vm -TurnOff -Force
        }
        Remove-VM -VM $vm -Force
    }
    if ($script:diskIsOurs) {
        $left = 20
        while (Test-Path -LiteralPath $Request.diskPath) {
            try {
                Remove-Item -LiteralPath $Request.diskPath -Force
            } catch {
                # Hyper-V lets go of a disk a moment after its VM is gone.
                $left = $left - 1
                if ($left -eq 0) {
                    throw
                }
                Start-Sleep -Milliseconds 500
            }
        }
    }
}

$request = $null
try {
    $request = Read-Request
    # Whatever the cmdlets print, nothing but the answer may reach standard output.
    New-RunnerVM $request *> $null
    $answer = [ordered]@{ ok = $true; url = $script:url }
} catch {
    $problem = Get-OneLine $_
    try {
        if ($null -ne $request) {
            Undo-RunnerVM $request *> $null
        }
    } catch {
        $problem = "$problem (what was made could not be removed: $(Get-OneLine $_))"
    }
    $answer = [ordered]@{ ok = $false; error = $problem; at = $script:step }
}
Write-Answer $answer
