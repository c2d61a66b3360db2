# The same checks for Pester 5: Invoke-Pester -Path tests/powershell

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

BeforeDiscovery {
    . (Join-Path -Path $PSScriptRoot -ChildPath 'checks.ps1')
    $names = @((Get-Check).Keys)
}

Describe 'The scripts of the pool' {
    BeforeAll {
        . (Join-Path -Path $PSScriptRoot -ChildPath 'checks.ps1')
    }

    It '<_>' -ForEach $names {
        Invoke-Check $_
    }
}
