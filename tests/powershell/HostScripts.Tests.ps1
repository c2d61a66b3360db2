Set-StrictMode -Version Latest

BeforeAll {
    . (Join-Path -Path $PSScriptRoot -ChildPath 'standins.ps1')
}

Describe 'start.ps1' -Skip:([System.IO.Path]::DirectorySeparatorChar -eq '\') {
    BeforeEach {
        $folder = Join-Path -Path $TestDrive -ChildPath ([guid]::NewGuid())
        New-Item -ItemType Directory -Path "$folder/packer" | Out-Null
        Copy-Item -LiteralPath "$Root/start.ps1" -Destination $folder
        Copy-Item -LiteralPath "$Root/packer/common.ps1" -Destination "$folder/packer"
        Set-Content -LiteralPath "$folder/.env" -Value 'USE_MOCK=true'
        $place = Get-Location

        # A pool that writes down how it is called. A call whose words are in `fails` gives that code.
        function Set-Pool([hashtable]$Fails = @{}) {
            $lines = @('#!/bin/sh', "echo `"pool `$*`"")
            $lines += @($Fails.Keys | ForEach-Object { "[ `"`$*`" = '$_' ] && exit $($Fails[$_])" })
            [System.IO.File]::WriteAllText("$folder/hyperv-runner-pool", (@($lines + 'exit 0') -join "`n") + "`n")
            & chmod +x "$folder/hyperv-runner-pool"
        }
    }
    AfterEach { Set-Location -LiteralPath $place }

    It 'checks the host, then runs the pool and passes on its exit code' {
        Set-Pool @{ '' = 7 }
        $result = Invoke-Script "$folder/start.ps1"
        $result.Output | Should -Be "pool check`npool "
        $result.ExitCode | Should -Be 7
    }

    It 'does not run the pool where the check finds faults' {
        Set-Pool @{ 'check' = 1 }
        $result = Invoke-Script "$folder/start.ps1"
        $result.Output | Should -Be 'pool check'
        $result.ExitCode | Should -Be 1
    }

    It 'installs the service for its own folder and starts it, though the check finds faults that may pass' {
        Set-Pool @{ 'check' = 1 }
        $result = Invoke-Script "$folder/start.ps1" @{ Install = $true }
        $result.Output | Should -Be "pool check`npool service install --folder $folder`npool service start"
        $result.ExitCode | Should -Be 0
    }

    It 'installs no service with wrong settings' {
        Set-Pool @{ 'check' = 2 }
        $result = Invoke-Script "$folder/start.ps1" @{ Install = $true }
        $result.Output | Should -Be 'pool check'
        $result.ExitCode | Should -Be 2
    }

    It 'starts no service that could not be installed' {
        Set-Pool @{ "service install --folder $folder" = 1 }
        $result = Invoke-Script "$folder/start.ps1" @{ Install = $true }
        $result.Output | Should -Not -BeLike '*service start*'
        $result.ExitCode | Should -Be 1
    }

    It 'removes the service, without settings too' {
        Remove-Item -Force -LiteralPath "$folder/.env"
        Set-Pool
        $result = Invoke-Script "$folder/start.ps1" @{ Uninstall = $true }
        $result.Output | Should -Be 'pool service uninstall'
        $result.ExitCode | Should -Be 0
    }

    It 'offers to remove what is left of the pool' {
        Set-Pool @{ 'cleanup' = 1 }
        $result = Invoke-Script "$folder/start.ps1" @{ Uninstall = $true }
        $result.Output | Should -Be "pool service uninstall`npool cleanup"
        $result.ExitCode | Should -Be 1
    }

    It 'removes nothing of a pool whose service is still there' {
        Set-Pool @{ 'service uninstall' = 1 }
        $result = Invoke-Script "$folder/start.ps1" @{ Uninstall = $true }
        $result.Output | Should -Be 'pool service uninstall'
        $result.ExitCode | Should -Be 1
    }

    It 'says what is missing' {
        $result = Invoke-Script "$folder/start.ps1"
        $result.Output | Should -BeLike '*There is no hyperv-runner-pool.exe*'
        Set-Pool
        Remove-Item -Force -LiteralPath "$folder/.env"
        $result = Invoke-Script "$folder/start.ps1" @{ Install = $true }
        $result.Output | Should -BeLike "*There is no $folder/.env*"
        $result.ExitCode | Should -Be 1
    }
}
