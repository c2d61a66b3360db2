Set-StrictMode -Version Latest

BeforeAll {
    . (Join-Path -Path $PSScriptRoot -ChildPath 'standins.ps1')
    Import-StandIn 'Get-VM', 'Get-VMHardDiskDrive', 'Get-VHD', 'Mount-VHD', 'Optimize-VHD', 'Dismount-VHD', 'Get-ScheduledTask', 'Stop-ScheduledTask', 'Unregister-ScheduledTask'
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

Describe 'start.ps1' {
    BeforeAll { Enter-AdministratorRole }
    AfterAll { Exit-AdministratorRole }

    BeforeEach {
        Reset-StandIn
        $folder = Join-Path -Path $TestDrive -ChildPath ([guid]::NewGuid())
        New-Item -ItemType Directory -Path $folder | Out-Null
        Copy-Item -LiteralPath (Join-Path -Path $Root -ChildPath 'start.ps1') -Destination $folder
    }

    It 'does not say that there is no task when the task scheduler fails' {
        $global:StandIn.Faults['Get-ScheduledTask'] = 1
        $result = Invoke-Script "$folder/start.ps1" @{ Uninstall = $true }
        $result.Thrown | Should -BeLike 'Get-ScheduledTask failed*'
        $result.Output | Should -Not -BeLike '*There is no scheduled task*'
    }

    It 'says that there is no task, where there is none' {
        $result = Invoke-Script "$folder/start.ps1" @{ Uninstall = $true }
        $result.Thrown | Should -Be ''
        $result.Output | Should -BeLike '*There is no scheduled task*'
    }

    It 'as a task gives the pool a LOG_DIR where .env has <Text>' -Skip:([System.IO.Path]::DirectorySeparatorChar -eq '\') -ForEach @(
        @{ Text = 'LOG_DIR= # none'; Given = $true }
        @{ Text = 'LOG_DIR=""'; Given = $true }
        @{ Text = 'log_dir=elsewhere'; Given = $true }
        @{ Text = "LOG_DIR=elsewhere`nLOG_DIR="; Given = $true }
        @{ Text = "LOG_DIR=`nLOG_DIR=elsewhere"; Given = $false }
        @{ Text = 'export LOG_DIR="else where" # there'; Given = $false }
        @{ Text = 'LOG_DIR=a#b'; Given = $false }
    ) {
        [System.IO.File]::WriteAllText("$folder/.env", "$Text`n")
        [System.IO.File]::WriteAllText("$folder/hyperv-runner-pool", "#!/bin/sh`necho `"logs: `$LOG_DIR`"`n")
        & chmod +x "$folder/hyperv-runner-pool"
        $before = $env:LOG_DIR
        $env:LOG_DIR = ''
        $place = Get-Location
        try {
            $result = Invoke-Script "$folder/start.ps1" @{ Task = $true }
        } finally {
            $env:LOG_DIR = $before
            Set-Location -LiteralPath $place
        }
        $result.Thrown | Should -Be ''
        $expected = 'logs: '
        if ($Given) { $expected += "$folder/logs" }
        $result.Output | Should -Be $expected
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
