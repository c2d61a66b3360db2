Set-StrictMode -Version Latest

BeforeAll {
    . (Join-Path -Path $PSScriptRoot -ChildPath 'standins.ps1')
    Import-StandIn 'Get-VM', 'Get-VMHardDiskDrive', 'Get-VHD', 'Mount-VHD', 'Optimize-VHD', 'Dismount-VHD'
}

AfterAll {
    Remove-Module -Name StandIns
    Remove-Variable -Name StandIn -Scope Global
}

Describe 'place-template.ps1' {
    BeforeEach {
        Reset-StandIn
        $folder = Join-Path -Path $TestDrive -ChildPath ([guid]::NewGuid())
        New-Item -ItemType Directory -Path "$folder/packer" | Out-Null
        Copy-Item -LiteralPath (Join-Path -Path $Root -ChildPath 'packer/place-template.ps1') -Destination "$folder/packer"
        $template = "$folder/templates/t.vhdx"
        $parameters = @{ TemplatePath = $template; StoragePath = "$folder/storage" }
    }

    It 'finds the newest image that Packer built, and places it read-only' {
        foreach ($image in 'old', 'new') {
            $disks = "$folder/packer/output-$image/Virtual Hard Disks"
            New-Item -ItemType Directory -Path $disks | Out-Null
            Set-Content -LiteralPath "$disks/$image.vhdx" -Value $image
        }
        (Get-Item -LiteralPath "$folder/packer/output-old/Virtual Hard Disks/old.vhdx").LastWriteTimeUtc = [datetime]'2020-01-01'
        (Invoke-Script "$folder/packer/place-template.ps1" $parameters).Thrown | Should -Be ''
        Get-Content -LiteralPath $template | Should -Be 'new'
        (Get-Item -LiteralPath $template).IsReadOnly | Should -BeTrue
        @($global:StandIn.Calls | Where-Object { $_ -like 'Dismount-VHD*' }).Count | Should -Be 1
    }

    It 'says so when there is no image' {
        (Invoke-Script "$folder/packer/place-template.ps1" $parameters).Thrown | Should -BeLike 'There is no built image*'
    }
}

Describe 'start.ps1' -Skip:([System.IO.Path]::DirectorySeparatorChar -eq '\') {
    BeforeEach {
        $folder = Join-Path -Path $TestDrive -ChildPath ([guid]::NewGuid())
        New-Item -ItemType Directory -Path $folder | Out-Null
        Copy-Item -LiteralPath (Join-Path -Path $Root -ChildPath 'start.ps1') -Destination $folder
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

Describe 'bootstrap.ps1' {
    BeforeAll {
        Import-StandIn 'Get-Item', 'Set-ItemProperty'
        Enter-AdministratorRole
        # One feature wants a reboot, the next one fails.
        $global:DismCodes = @()
        function global:dism.exe {
            $global:LASTEXITCODE = $global:DismCodes[0]
            $global:DismCodes = @($global:DismCodes | Select-Object -Skip 1)
            'State : Disabled'
        }
        $path = $env:Path
    }
    AfterAll {
        Exit-AdministratorRole
        $env:Path = $path
        Remove-Item -Path function:global:dism.exe
        Remove-Variable -Name DismCodes -Scope Global
    }

    It 'asks for the reboot that a step wants though a later one fails, and finds what the registry has in PATH' {
        Reset-StandIn
        $global:DismCodes = 0, 3010, 87
        $env:Path = 'x'
        $global:StandIn.Answers['Get-Item'] = {
            $key = [pscustomobject]@{ Path = 'C:\New' }
            Add-Member -InputObject $key -MemberType ScriptMethod -Name 'GetValue' -Value { param($Name, $Default, $Options) $this.Path }
            $key
        }
        $result = Invoke-Script (Join-Path -Path $Root -ChildPath 'bootstrap.ps1')
        $result.Thrown | Should -Be ''
        $result.ExitCode | Should -Be 1
        $result.Output | Should -BeLike '*REBOOT*'
        $env:Path | Should -Be 'x;C:\New'
    }
}
