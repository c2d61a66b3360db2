Set-StrictMode -Version Latest

BeforeAll {
    . (Join-Path -Path $PSScriptRoot -ChildPath 'standins.ps1')
    Import-StandIn 'Get-ScheduledTask', 'Stop-ScheduledTask', 'Unregister-ScheduledTask'
}

AfterAll {
    Remove-Module -Name StandIns
    Remove-Variable -Name StandIn -Scope Global
}

Describe 'start.ps1' {
    BeforeAll { Enter-AdministratorRole }
    AfterAll { Exit-AdministratorRole }

    BeforeEach {
        Reset-StandIn
        $folder = Join-Path -Path $TestDrive -ChildPath ([guid]::NewGuid())
        New-Item -ItemType Directory -Path "$folder/packer" | Out-Null
        Copy-Item -LiteralPath "$Root/start.ps1" -Destination $folder
        Copy-Item -LiteralPath "$Root/packer/common.ps1" -Destination "$folder/packer"
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
