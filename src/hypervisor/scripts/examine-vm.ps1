# Finds out what can be seen of one VM of the pool from outside: for how long it has been
# running, its IP addresses, and its screen as a PNG in base64. Changes nothing.
# Standard input: one JSON object. Standard output: one line,
# {"ok":true,"uptimeSeconds":...,"addresses":[...],"picture":"...","missing":[...]} or
# {"ok":false,"error":...,"at":...}. What cannot be had is left out, with the reason among "missing".
# Runs under Windows PowerShell 5.1 and PowerShell 7.

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

. (Join-Path -Path $PSScriptRoot -ChildPath 'request.ps1')
. (Join-Path -Path $PSScriptRoot -ChildPath 'ownership.ps1')
. (Join-Path -Path $PSScriptRoot -ChildPath 'screen.ps1')

$script:step = 'input'
$script:facts = [ordered]@{ ok = $true }
# Lists, not arrays: a list of one stays a list in JSON.
$script:missing = [System.Collections.Generic.List[object]]::new()

# Adds a fact, or why it cannot be had.
function Add-Fact([string]$Name, [string]$What, [scriptblock]$Find) {
    try {
        $script:facts[$Name] = & $Find
    } catch {
        $script:missing.Add("${What}: $(Get-OneLine $_)")
    }
}

function Find-Everything($Request) {
    $script:step = 'find'
    $vm = @(Get-EveryVM | Where-Object { Test-PoolVM $_ $Request }) | Select-Object -First 1
    if ($null -eq $vm) {
        throw "$($Request.name), incarnation $($Request.incarnation), is not there."
    }
    $script:step = 'examine'
    Add-Fact 'uptimeSeconds' 'the uptime' { [int64][Math]::Floor($vm.Uptime.TotalSeconds) }
    Add-Fact 'addresses' 'the addresses' {
        $addresses = [System.Collections.Generic.List[object]]::new()
        foreach ($adapter in @(Get-VMNetworkAdapter -VM $vm)) {
            foreach ($address in @($adapter.IPAddresses)) {
                $addresses.Add([string]$address)
            }
        }
        , $addresses
    }
    Add-Fact 'picture' 'the screen' { [System.Convert]::ToBase64String((Get-ScreenPicture $vm.Id)) }
}

try {
    $request = Read-Request
    # Whatever the cmdlets print, nothing but the answer may reach standard output.
    Find-Everything $request *> $null
    $answer = $script:facts
    $answer['missing'] = $script:missing
} catch {
    $answer = [ordered]@{ ok = $false; error = (Get-OneLine $_); at = $script:step }
}
Write-Answer $answer
