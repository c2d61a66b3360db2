# The checks of checks.ps1 for Pester 5, beside each other: each waits for a process of its own.

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

BeforeDiscovery {
    . (Join-Path -Path $PSScriptRoot -ChildPath 'checks.ps1')
    $names = @((Get-Check).Keys)
}

Describe 'The scripts of the pool' {
    BeforeAll {
        . (Join-Path -Path $PSScriptRoot -ChildPath 'checks.ps1')
        $script = Join-Path -Path $PSScriptRoot -ChildPath 'checks.ps1'
        $faults = [System.Collections.Concurrent.ConcurrentDictionary[string, string]]::new()
        (Get-Check).Keys | ForEach-Object -ThrottleLimit ([System.Environment]::ProcessorCount) -Parallel {
            $name = $_
            . $using:script
            try {
                Invoke-Check $name
                ($using:faults)[$name] = ''
            } catch {
                ($using:faults)[$name] = "$($_.Exception.Message)`n$($_.ScriptStackTrace)"
            }
        }
    }

    It '<_>' -ForEach $names {
        $faults[$_] | Should -BeExactly ''
    }
}
