Set-StrictMode -Version Latest

BeforeDiscovery {
    $root = Split-Path -Path (Split-Path -Path $PSScriptRoot -Parent) -Parent
    $files = @(Get-ChildItem -Path $root -Filter '*.ps1' -File)
    $files += @('src', 'packer' | ForEach-Object { Get-ChildItem -Path (Join-Path -Path $root -ChildPath $_) -Filter '*.ps1' -File -Recurse })
    $scripts = @($files | ForEach-Object { @{ Path = $_.FullName; Name = $_.FullName.Substring($root.Length + 1) -replace '\\', '/' } })
}

BeforeAll {
    . (Join-Path -Path $PSScriptRoot -ChildPath 'commands.ps1')
    $root = Split-Path -Path (Split-Path -Path $PSScriptRoot -Parent) -Parent
    $documentation = Open-Documentation (Join-Path -Path $root -ChildPath 'tests/data')

    function Get-Fault([string]$Lines) {
        return @(Get-ScriptFault "Set-StrictMode -Version Latest`n`$ErrorActionPreference = 'Stop'`n$Lines`n" $documentation)
    }

    # The functions of the files that a script dot-sources, wherever they lie.
    function Get-OutsideFunction([string]$Source) {
        foreach ($line in @($Source -split '\r?\n' | Where-Object { $_.TrimStart().StartsWith('. ') })) {
            foreach ($name in @([regex]::Matches($line, '[\w-]+\.ps1') | ForEach-Object { $_.Value })) {
                foreach ($file in @(Get-ChildItem -Path $root -Filter $name -File) + @(Get-ChildItem -Path (Join-Path -Path $root -ChildPath 'packer') -Filter $name -File -Recurse)) {
                    $ast = [System.Management.Automation.Language.Parser]::ParseFile($file.FullName, [ref]$null, [ref]$null)
                    $ast.FindAll({ $args[0] -is [System.Management.Automation.Language.FunctionDefinitionAst] }, $true)
                }
            }
        }
    }
}

Describe 'Every script of the repository' {
    It '<Name> calls commands as they are documented' -ForEach $scripts {
        $source = [System.IO.File]::ReadAllText($Path)
        Get-ScriptFault $source $documentation (Get-OutsideFunction $source) | Should -BeNullOrEmpty
        $source | Should -Match '(?m)^Set-StrictMode -Version Latest\r?$'
        $source | Should -Match "(?m)^\`$ErrorActionPreference = 'Stop'\r?`$"
    }

    It 'would be refused with any one of its commands or parameters spoiled' {
        $spoiled = 0
        foreach ($script in 'create-vm', 'destroy-vm', 'list-vms', 'check-host') {
            $source = [System.IO.File]::ReadAllText((Join-Path -Path $root -ChildPath "src/hypervisor/scripts/$script.ps1"))
            $tokens = $null
            $ast = [System.Management.Automation.Language.Parser]::ParseInput($source, [ref]$tokens, [ref]$null)
            $commands = @($ast.FindAll({ $args[0] -is [System.Management.Automation.Language.CommandAst] -and $args[0].InvocationOperator -eq 'Unknown' }, $true))
            foreach ($word in @($commands | ForEach-Object { $_.CommandElements | Where-Object { $_ -is [System.Management.Automation.Language.CommandParameterAst] } }) + @($commands | ForEach-Object { $_.CommandElements[0] }) | Sort-Object -Property { $_.Extent.Text } -Unique) {
                # The line alone, so that each try is short.
                $command = $word.Parent
                $at = $word.Extent.EndOffset - $command.Extent.StartOffset
                if ($word -is [System.Management.Automation.Language.CommandParameterAst]) {
                    $at = $word.Extent.StartOffset - $command.Extent.StartOffset + 1 + $word.ParameterName.Length
                }
                $faults = Get-ScriptFault $command.Extent.Text.Insert($at, 'Zz') $documentation @($ast.FindAll({ $args[0] -is [System.Management.Automation.Language.FunctionDefinitionAst] }, $true))
                @($faults | Where-Object { $_ -like '*Zz*' }).Count | Should -Be 1 -Because "$($word.Extent.Text)Zz is not known"
                $spoiled++
            }
        }
        $spoiled | Should -BeGreaterThan 80
    }
}

Describe 'A fault in a script' {
    It 'is none in <Lines>' -ForEach @(
        @{ Lines = '$vm = New-VM -Name a -Generation 2 -MemoryStartupBytes 1024 -VHDPath b -SwitchName c; $vm' }
        @{ Lines = 'Get-VM | Where-Object { $_.Id } | ForEach-Object { Stop-VM -VM $_ -TurnOff -Force }' }
        @{ Lines = '$from = 1; Copy-Item $from b -Force' }
        @{ Lines = '$program = 1; & $program --version' }
        @{ Lines = 'git log --oneline 2>&1' }
        @{ Lines = 'Get-VM | Stop-VM -TurnOff' }
        @{ Lines = '$disk = @{ Path = 1; ParentPath = 2 }; New-VHD @disk -Differencing' }
        @{ Lines = 'function Add-Two($Left, $Right) { $Left + $Right }; Add-Two 1 -Right 2' }
        @{ Lines = 'if (1 -match 2) { $y = $matches[0]; $y }' }
        @{ Lines = '$script:step = 1; foreach ($a in 1) { "$a $step ${env:TEMP} $PSScriptRoot" }; function Set-B($c) { $c }' }
    ) {
        Get-Fault $Lines | Should -BeNullOrEmpty
    }

    It 'is found in <Lines>: <Fault>' -ForEach @(
        @{ Lines = 'Get-VMs'; Fault = 'there is no command Get-VMs' }
        @{ Lines = 'if ($true) { foreach ($a in 1) { Remove-VirtualMachine -VM $a } }'; Fault = 'no command Remove-VirtualMachine' }
        @{ Lines = '$x = @(Get-VmSwich); $x'; Fault = 'there is no command Get-VmSwich' }
        @{ Lines = 'Get-VM | % { $_.Name }'; Fault = 'there is no command %' }
        @{ Lines = 'gci -Path a'; Fault = 'there is no command gci' }
        @{ Lines = 'Get-VM | where { $_.Id }'; Fault = 'there is no command where' }
        @{ Lines = 'Set-VM -VM 1 -Note x'; Fault = 'Set-VM: there is no parameter -Note' }
        @{ Lines = 'New-VHD -Path a -Parent b -Differencing'; Fault = 'New-VHD: there is no parameter -Parent' }
        @{ Lines = 'Remove-Item -LiteralPath a -Recursive'; Fault = 'Remove-Item: there is no parameter -Recursive' }
        @{ Lines = 'ConvertTo-Json -InputObject 1 -AsArray'; Fault = 'there is no parameter -AsArray' }
        @{ Lines = 'New-VM -Name a -GuestStateIsolationType Disabled -NoVHD'; Fault = 'there is no parameter -GuestStateIsolationType' }
        @{ Lines = 'Start-VM -VM 1 -Name a'; Fault = 'Start-VM: no parameter set has all of -VM -Name' }
        @{ Lines = 'New-VHD -Path a -ParentPath b -Fixed'; Fault = 'no parameter set has all of -Path -ParentPath -Fixed' }
        @{ Lines = 'Remove-Item -LiteralPath a -Path b'; Fault = 'no parameter set has all of' }
        @{ Lines = 'Set-VM -VM 1 -AutomaticStopAction PowerOff'; Fault = '-AutomaticStopAction does not accept PowerOff' }
        @{ Lines = "Set-VM -VM 1 -CheckpointType 'None'"; Fault = '-CheckpointType does not accept None' }
        @{ Lines = 'Get-VMSwitch -SwitchType Internal,Local'; Fault = '-SwitchType does not accept Local' }
        @{ Lines = 'Get-Item -LiteralPath a -ErrorAction Silently'; Fault = '-ErrorAction does not accept Silently' }
        @{ Lines = 'Get-FileHash -LiteralPath a -Algorithm SHA3'; Fault = '-Algorithm does not accept SHA3' }
        @{ Lines = 'Set-VMProcessor -VM 1 -Count two'; Fault = '-Count takes a number, not two' }
        @{ Lines = 'Set-VM -VM 1 -AutomaticCheckpointsEnabled Off'; Fault = '-AutomaticCheckpointsEnabled takes a Boolean, not Off' }
        @{ Lines = 'New-VHD -ParentPath a -Differencing'; Fault = 'it lacks its mandatory parameter -Path' }
        @{ Lines = 'Stop-VM -TurnOff'; Fault = 'it lacks its mandatory parameter' }
        @{ Lines = 'Join-Path a'; Fault = 'it lacks its mandatory parameter -ChildPath' }
        @{ Lines = 'New-VM -Name -NoVHD'; Fault = 'New-VM: -Name needs a value' }
        @{ Lines = 'Remove-VM -VM 1 -VM 2'; Fault = '-VM is given twice' }
        @{ Lines = '$vm = 1; Start-VM $vm'; Fault = 'Start-VM: it takes no 1 arguments without' }
        @{ Lines = 'Join-Path a b c'; Fault = 'Join-Path: it takes no 3 arguments' }
        @{ Lines = '$disk = @{ Path = 1; Parent = 2 }; New-VHD @disk -Differencing'; Fault = 'there is no parameter -Parent' }
        @{ Lines = '$disk = @{ Path = 1 }; $disk.Fixed = $true; New-VHD @disk -ParentPath b'; Fault = 'no parameter set' }
        @{ Lines = "`$vm = @{ CheckpointType = 'Never' }; Set-VM -Name a @vm"; Fault = 'does not accept Never' }
        @{ Lines = 'function Add-Two($Left, $Right) { $Left + $Right }; Add-Two -Lift 1'; Fault = 'Add-Two: there is no parameter -Lift' }
        @{ Lines = 'function Add-Two($Left, $Right) { $Left + $Right }; Add-Two 1 2 3'; Fault = 'Add-Two: it takes no 3 arguments' }
        @{ Lines = 'function Save-It { param([Parameter(Mandatory)][string]$Path, [switch]$Force) "$Path $Force" }; Save-It -Force'; Fault = 'Save-It: it lacks its mandatory parameter -Path' }
        @{ Lines = "function Set-It { param([ValidateSet('on', 'off')]`$To) `$To }; Set-It -To open"; Fault = '-To does not accept open' }
        @{ Lines = 'if ($x { Get-VM }'; Fault = 'does not parse' }
        @{ Lines = 'function Broken {'; Fault = 'does not parse' }
        @{ Lines = "`$x = 'caf$([char]0xE9)'; `$x"; Fault = 'is not ASCII' }
        @{ Lines = '$all = @($input); $all'; Fault = '$input' }
        @{ Lines = 'foreach ($host in 1, 2) { }'; Fault = '$host is PowerShell''s own' }
        @{ Lines = '$matches = 1'; Fault = '$matches is PowerShell''s own' }
        @{ Lines = 'function Set-A($args) { }'; Fault = '$args is PowerShell''s own' }
        @{ Lines = '$count = 1; Get-Item -LiteralPath $cuont; $count'; Fault = '$cuont is never assigned' }
        @{ Lines = '"on $IsWindows"'; Fault = '$IsWindows is never assigned' }
        @{ Lines = '"${nobody}:1"'; Fault = '$nobody is never assigned' }
    ) {
        $found = Get-Fault $Lines
        @($found | Where-Object { $_.Contains($Fault) }).Count | Should -BeGreaterThan 0 -Because "it found: $($found -join '; ')"
    }

    # What only PowerShell 7 reads is found by PSScriptAnalyzer, with the repository's settings.
    It 'is found by PSScriptAnalyzer in <_>' -ForEach '$a = 1; $b = $a ?? 1; $b', 'git fetch && git pull', '$a = 1; $a ? 1 : 2', '$a = 1; ${a}?.Name' {
        $settings = Join-Path -Path $PSScriptRoot -ChildPath 'analyzer.psd1'
        (Invoke-ScriptAnalyzer -ScriptDefinition $_ -Settings $settings).RuleName | Should -Contain 'PSUseCompatibleSyntax'
    }
}
