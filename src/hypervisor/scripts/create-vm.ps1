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
$MiB = 1048576

. (Join-Path -Path $PSScriptRoot -ChildPath 'key-values.ps1')

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
    # Not by their names, which anyone may change; and the Default Switch's is hidden.
    $devices = @(Get-VMNetworkAdapter -ManagementOS -SwitchName $SwitchName | ForEach-Object { [string]$_.DeviceId })
    # -ErrorAction: functions of modules, which do not see this script's
    # $ErrorActionPreference.
    $adapters = @(Get-NetAdapter -IncludeHidden -ErrorAction Stop | Where-Object { $devices -contains $_.DeviceID } | ForEach-Object { $_.InterfaceIndex })
    $all = @(Get-NetIPAddress -AddressFamily IPv4 -ErrorAction Stop | Where-Object { $adapters -contains $_.InterfaceIndex } | ForEach-Object { [string]$_.IPAddress })
    if ($all.Count -eq 0) {
        throw "This host has no IPv4 address on the virtual switch '$SwitchName'. Give it one, or set ORCHESTRATOR_IP."
    }
    # 169.254.x.x is what Windows takes when nothing gave it an address.
    $given = @($all | Where-Object { -not $_.StartsWith('169.254.') })
    if ($given.Count -gt 0) {
        return $given[0]
    }
    return $all[0]
}

# Attaches the values to the VM, and reads them back to be sure that they took.
function Add-KvpItem($Vm, $Values) {
    $id = ([string]$Vm.Id).ToUpperInvariant()
    $system = Get-HyperVInstance 'Msvm_ComputerSystem' "Name = '$id'"
    if ($null -eq $system) {
        throw "Hyper-V's management interface does not know the new VM ($id)."
    }
    Invoke-KvpMethod 'AddKvpItems' $system $Values 30
    $stored = (Get-HostValue)[$id]
    foreach ($name in $Values.Keys) {
        if ($null -eq $stored -or -not $stored.ContainsKey($name) -or $stored[$name] -cne $Values[$name]) {
            throw "Hyper-V accepted the key-value item $name but does not hold it."
        }
    }
}

function Get-SystemSetting($Vm) {
    $id = ([string]$Vm.Id).ToUpperInvariant()
    # Without those of checkpoints.
    $filter = "VirtualSystemIdentifier = '$id' AND VirtualSystemType = 'Microsoft:Hyper-V:System:Realized'"
    return (Get-HyperVInstance 'Msvm_VirtualSystemSettingData' $filter)
}

# A VM whose worker process dies stays off: by default Hyper-V would start it
# again, with a disk that has been used. Set-VM has no parameter for that.
# https://learn.microsoft.com/en-us/windows/win32/hyperv_v2/msvm-virtualsystemsettingdata
function Disable-AutomaticRecovery($Vm) {
    $none = [uint16]2
    $setting = Get-SystemSetting $Vm
    if ($null -eq $setting) {
        throw 'Hyper-V does not know the settings of the new VM.'
    }
    $setting.CimInstanceProperties['AutomaticRecoveryAction'].Value = $none
    Invoke-ManagementService 'ModifySystemSettings' @{ SystemSettings = (ConvertTo-EmbeddedInstance $setting) } 30
    if ((Get-SystemSetting $Vm).AutomaticRecoveryAction -ne $none) {
        throw 'Hyper-V accepted that the VM is not to be started again after a failure, but does not hold it.'
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
    Disable-AutomaticRecovery $script:vm
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
