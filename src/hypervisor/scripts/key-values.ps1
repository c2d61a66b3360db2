# Hyper-V's management service, and the key-values that a VM exchanges with its
# host through it. Dot-sourced by create-vm.ps1, list-vms.ps1 and screen.ps1.
# Runs under Windows PowerShell 5.1 and PowerShell 7.
# No value is ever part of an error: some are secrets.

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

$Virtualization = 'root\virtualization\v2'

# The instances of one of Hyper-V's classes.
function Get-HyperVInstance([string]$Class, [string]$Filter) {
    $which = @{}
    if ($Filter -ne '') {
        $which['Filter'] = $Filter
    }
    return (Get-CimInstance -Namespace $Virtualization -ClassName $Class @which)
}

# The text of an instance, in which Hyper-V takes embedded ones: CIM's XML, as
# UTF-16. The serializer is the one of the CIM cmdlets themselves.
function ConvertTo-EmbeddedInstance($Instance) {
    $serializer = [Microsoft.Management.Infrastructure.Serialization.CimSerializer]::Create()
    $options = [Microsoft.Management.Infrastructure.Serialization.InstanceSerializationOptions]::None
    return [System.Text.Encoding]::Unicode.GetString($serializer.Serialize($Instance, $options))
}

# Calls a method of the service, and waits until Hyper-V has done it.
# https://learn.microsoft.com/en-us/windows/win32/hyperv_v2/msvm-virtualsystemmanagementservice
function Invoke-ManagementService([string]$Method, [hashtable]$Arguments, [int]$Seconds) {
    $service = Get-HyperVInstance 'Msvm_VirtualSystemManagementService'
    $result = Invoke-CimMethod -InputObject $service -MethodName $Method -Arguments $Arguments
    if ($result.ReturnValue -eq 0) {
        return
    }
    # 4096: the work goes on in a job.
    if ($result.ReturnValue -ne 4096) {
        throw "Hyper-V refused a call ($Method returned $($result.ReturnValue))."
    }
    $clock = [System.Diagnostics.Stopwatch]::StartNew()
    while ($true) {
        $job = Get-CimInstance -InputObject $result.Job
        # JobState: up to 6 it is under way, 7 is completed, above that failed;
        # 32768 is completed with warnings.
        if ($job.JobState -eq 7 -or $job.JobState -eq 32768) {
            return
        }
        if ($job.JobState -gt 6) {
            throw "Hyper-V could not do what it was asked for ($Method failed with error $($job.ErrorCode))."
        }
        if ($clock.Elapsed.TotalSeconds -gt $Seconds) {
            throw "Hyper-V did not do what it was asked for within $Seconds seconds ($Method)."
        }
        Start-Sleep -Milliseconds 100
    }
}

# AddKvpItems or RemoveKvpItems, for all these names and values at once. Hyper-V
# takes at most 128 items, adds none that is there, and removes none that is not.
function Invoke-KvpMethod([string]$Method, $System, [hashtable]$Values, [int]$Seconds) {
    $class = Get-CimClass -Namespace $Virtualization -ClassName Msvm_KvpExchangeDataItem
    $items = @(foreach ($name in $Values.Keys) {
        # Source 0: the host.
        $properties = @{ Name = [string]$name; Data = [string]$Values[$name]; Source = [uint16]0 }
        ConvertTo-EmbeddedInstance (New-CimInstance -CimClass $class -Property $properties -ClientOnly)
    })
    Invoke-ManagementService $Method @{ TargetSystem = $System; DataItems = [string[]]$items } $Seconds
}

# The values in a list of embedded instances, by name.
function Read-KvpItem($Texts) {
    $values = @{}
    foreach ($text in $Texts) {
        $document = [System.Xml.XmlDocument]::new()
        $document.XmlResolver = $null
        $document.LoadXml([string]$text)
        $item = @{ Name = ''; Data = '' }
        foreach ($property in $document.DocumentElement.SelectNodes('PROPERTY')) {
            $item[$property.GetAttribute('NAME')] = $property.InnerText
        }
        $values[$item.Name] = $item.Data
    }
    return $values
}

# What the host has attached to its VMs: their ids, in upper case, to names and values.
function Get-HostValue {
    $found = @{}
    foreach ($setting in @(Get-HyperVInstance 'Msvm_KvpExchangeComponentSettingData')) {
        # Microsoft:GUID\..., and once that of the class's definition.
        if ($setting.InstanceID -match '^Microsoft:([0-9A-Fa-f-]{36})\\') {
            $found[$matches[1].ToUpperInvariant()] = Read-KvpItem $setting.HostExchangeItems
        }
    }
    return $found
}
