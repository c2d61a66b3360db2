# What tests/hyperv/common.ps1 does on a hosted machine before the pool's life there.
Set-StrictMode -Version Latest

BeforeAll {
    . (Join-Path -Path $PSScriptRoot -ChildPath 'standins.ps1')
    . (Join-Path -Path $Root -ChildPath 'tests/hyperv/common.ps1')
    Import-StandIn @('Get-CimInstance', 'Get-Module', 'Get-Service', 'Set-Service', 'Stop-Service', 'Get-HnsNetwork', 'Remove-HnsNetwork', 'Get-VMSwitch', 'Get-NetNat', 'Start-Sleep')
}

Describe 'a hosted machine' {
    BeforeEach {
        Reset-StandIn
        $global:StandIn.Computer = [pscustomobject]@{ NumberOfLogicalProcessors = 4; TotalPhysicalMemory = 17175674880; HypervisorPresent = $true; Caption = 'Windows Server 2025' }
        $global:StandIn.Modules = @('Hyper-V')
        $global:StandIn.State = 'Running'
        $global:StandIn.Answers['Get-CimInstance'] = { $global:StandIn.Computer }
        $global:StandIn.Answers['Get-Module'] = { $global:StandIn.Modules }
        $global:StandIn.Answers['Get-Service'] = { param($Bound) [pscustomobject]@{ Name = $Bound.Name; Status = $global:StandIn.State } }
    }

    It 'that has all is told' {
        Assert-Machine 2 16 0 $TestDrive | Should -BeLike 'Windows Server 2025; 4 processors, 16.0 GB of memory, * GB free for *; the hypervisor runs'
    }

    It 'that lacks something is refused in one sentence, which names it' {
        $global:StandIn.Computer.NumberOfLogicalProcessors = 1
        $global:StandIn.Computer.TotalPhysicalMemory = 8589934592
        $global:StandIn.Computer.HypervisorPresent = $false
        $global:StandIn.Modules = @()
        $global:StandIn.State = 'Stopped'
        { Assert-Machine 2 16 1000000 $TestDrive } | Should -Throw ('This machine has 1 processors, not 2, and has 8.0 GB of memory, not 16, and has * GB free for *, not 1000000, ' +
            'and runs no hypervisor (HypervisorPresent), so it has no nested virtualization, and has no PowerShell module Hyper-V, and has no running Hyper-V service (vmms).')
    }
}

Describe 'Docker''s network' {
    BeforeEach {
        Reset-StandIn
        $global:StandIn.Networks = [System.Collections.Generic.List[string]]@('nat', 'Default Switch')
        $global:StandIn.Answers['Get-Service'] = { [pscustomobject]@{ Name = 'docker'; Status = 'Running' } }
        $global:StandIn.Answers['Get-HnsNetwork'] = { $global:StandIn.Networks | ForEach-Object { [pscustomobject]@{ Name = $_ } } }
        $global:StandIn.Answers['Remove-HnsNetwork'] = { param($Bound) $global:StandIn.Networks.Remove($Bound.InputObjects.Name) | Out-Null }
        $global:StandIn.Answers['Get-VMSwitch'] = { $global:StandIn.Networks | ForEach-Object { [pscustomobject]@{ Name = $_ } } }
        $global:StandIn.Answers['Get-NetNat'] = { }
    }

    It 'is removed, stays away, and no other is touched' {
        Remove-DockerNetwork | Should -Be 'the service docker is stopped', 'the network nat is removed', 'no NAT is left'
        $global:StandIn.Networks | Should -Be 'Default Switch'
        $changes = @($global:StandIn.Calls | Where-Object { $_ -match '^(Set|Stop|Remove)-' })
        $changes[0] | Should -Be 'Set-Service -Name docker -StartupType Disabled'
        $changes[1] | Should -Be 'Stop-Service -Force True -Name docker'
        $changes.Count | Should -Be 3
    }

    It 'may be missing' {
        $global:StandIn.Answers['Get-Service'] = { }
        $global:StandIn.Networks.Clear()
        Remove-DockerNetwork | Should -Be 'no NAT is left'
    }

    It 'that cannot be removed is an error' {
        $global:StandIn.Faults['Remove-HnsNetwork'] = 1
        { Remove-DockerNetwork } | Should -Throw 'Remove-HnsNetwork failed, as it was told to.'
    }
}

Describe 'a step' {
    It 'that fails says so in the job''s summary, and ends the script' {
        $env:GITHUB_STEP_SUMMARY = "$TestDrive/summary"
        try {
            (Invoke-Step 'first' { 'found' } 6>&1) -join ' ' | Should -BeLike '=== first * found *'
            { Invoke-Step 'second' { throw 'the reason' } 6>$null } | Should -Throw 'the reason'
            [System.IO.File]::ReadAllText("$TestDrive/summary") | Should -Be "**second**: failed: the reason`n"
        } finally {
            $env:GITHUB_STEP_SUMMARY = ''
        }
    }

    It 'that waits in vain says for what, and how long' {
        { Wait-Until 'The port is not open' 0 { $false } } | Should -Throw 'The port is not open within 0 seconds.'
    }
}
