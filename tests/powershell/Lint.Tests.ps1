Set-StrictMode -Version Latest

BeforeDiscovery {
    $root = Split-Path -Path (Split-Path -Path $PSScriptRoot -Parent) -Parent
    # What hosts and their VMs run: the other tests run here.
    $scripts = @(Get-ChildItem -LiteralPath $root, "$root/tests" -Filter '*.ps1' -File) +
    @(Get-ChildItem -LiteralPath "$root/src", "$root/packer", "$root/tests/hyperv" -Filter '*.ps1' -File -Recurse)
    $names = @($scripts | ForEach-Object { $_.FullName.Substring($root.Length + 1).Replace('\', '/') })
}

BeforeAll {
    . (Join-Path -Path $PSScriptRoot -ChildPath 'lint.ps1')
    $root = Split-Path -Path (Split-Path -Path $PSScriptRoot -Parent) -Parent
    $opening = "Set-StrictMode -Version Latest`n`$ErrorActionPreference = 'Stop'`n"
    $settings = Join-Path -Path $PSScriptRoot -ChildPath 'analyzer.psd1'

    # The scripts that a script dot-sources, wherever in the repository they are.
    function Get-Neighbor([string]$Text) {
        foreach ($match in [regex]::Matches($Text, '(?m)^\s*\. .*?(?<name>[\w-]+\.ps1)')) {
            Get-ChildItem -LiteralPath "$root/src", "$root/packer", "$root/tests/hyperv" -Filter $match.Groups['name'].Value -File -Recurse | ForEach-Object { [System.IO.File]::ReadAllText($_.FullName) }
            Get-ChildItem -LiteralPath $root -Filter $match.Groups['name'].Value -File | ForEach-Object { [System.IO.File]::ReadAllText($_.FullName) }
        }
    }
}

Describe 'every script' {
    It '<_> has no fault' -ForEach $names {
        $text = [System.IO.File]::ReadAllText("$root/$_")
        Get-LintFault $text @(Get-Neighbor $text) | Should -BeNullOrEmpty
    }

    # Spoils the name of each command, then the first parameter of each, the second, and so on.
    It '<_> has no command and no parameter that is not looked at' -ForEach $names {
        $text = [System.IO.File]::ReadAllText("$root/$_")
        $neighbors = @(Get-Neighbor $text)
        $parsed = [System.Management.Automation.Language.Parser]::ParseInput($text, [ref]$null, [ref]$null)
        $all = $parsed.FindAll({ param($Node) $Node -is [System.Management.Automation.Language.CommandAst] }, $true)
        $commands = @($all | Where-Object { $_.GetCommandName() -and $_.GetCommandName() -notmatch '[\\/]' })
        $commands.Count | Should -BeGreaterThan 1
        for ($i = 0; $commands.Count -gt 0; $i++) {
            $words = @(foreach ($command in $commands) {
                if ($i -eq 0) {
                    @{ Text = $command.GetCommandName(); Line = $command.Extent.StartLineNumber; End = $command.CommandElements[0].Extent.EndOffset }
                } elseif ($command.GetCommandName() -notin $Programs -and $command.GetCommandName() -notlike '*.exe') {
                    $command.CommandElements | Where-Object { $_ -is [System.Management.Automation.Language.CommandParameterAst] } | Select-Object -Skip ($i - 1) -First 1 | ForEach-Object {
                        @{ Text = $_.ParameterName; Line = $command.Extent.StartLineNumber; End = $_.Extent.StartOffset + 1 + $_.ParameterName.Length }
                    }
                }
            })
            if ($words.Count -eq 0) { break }
            $spoiled = $text
            foreach ($word in @($words | Sort-Object -Property { $_.End } -Descending)) {
                $spoiled = $spoiled.Insert($word.End, 'Zz')
            }
            $faults = @(Get-LintFault $spoiled $neighbors)
            foreach ($word in $words) {
                $faults -like "line $($word.Line): *$($word.Text)Zz*" | Should -Not -BeNullOrEmpty -Because "$($word.Text)Zz in line $($word.Line) is wrong"
            }
        }
    }
}

Describe 'a script' {
    It 'may hold <_>' -ForEach @(
        '$vm = New-VM -Name ''a'' -Generation 2 -MemoryStartupBytes 1024 -VHDPath ''b'' -SwitchName ''c'''
        'Get-VM | Where-Object { $_.Id } | ForEach-Object { Stop-VM -VM $_ -TurnOff -Force }'
        'Get-VM | Stop-VM -TurnOff'
        '$from = ''a''; Copy-Item $from ''b'' -Force'
        '$program = ''a.exe''; & $program --version'
        'git.exe log --oneline 2>&1'
        '$disk = @{ Path = ''a''; ParentPath = ''b'' }; New-VHD @disk -Differencing'
        'function Add-Two($Left, $Right) { }; Add-Two 1 -Right 2'
        'if (''b'' -match ''a'') { $y = $Matches[0] }'
        '$script:step = ''a''; foreach ($a in 1) { "$a $step ${env:TEMP} $PSScriptRoot" }; function B($c) { $c }'
    ) {
        Get-LintFault "$opening$_" | Should -BeNullOrEmpty
    }

    It 'may not hold <Text>' -ForEach @(
        # Cmdlets that do not exist.
        @{ Text = 'Get-VMs'; Fault = 'there is no cmdlet Get-VMs; if Windows has it*' }
        @{ Text = 'if ($true) { foreach ($a in 1) { Remove-VirtualMachine -VM $a } }'; Fault = 'there is no cmdlet Remove-VirtualMachine*' }
        @{ Text = '$x = @(Get-VmSwich)'; Fault = 'there is no cmdlet Get-VmSwich*' }
        # Aliases.
        @{ Text = 'Get-VM | % { $_.Name }'; Fault = '% is an alias*' }
        @{ Text = 'gci -Path a'; Fault = 'gci is an alias*' }
        @{ Text = 'Get-VM | where { $_.Id }'; Fault = 'where is an alias*' }
        # Parameters that do not exist, on every Windows Server, in both PowerShells, or in full.
        @{ Text = 'Set-VM -Name a -Note x'; Fault = 'Set-VM has no parameter -Note' }
        @{ Text = 'New-VHD -Path a -Parents b -Differencing'; Fault = 'New-VHD has no parameter -Parents' }
        @{ Text = 'Remove-Item -LiteralPath a -Recursive'; Fault = 'Remove-Item has no parameter -Recursive' }
        @{ Text = 'ConvertTo-Json -InputObject 1 -AsArray'; Fault = 'ConvertTo-Json has no parameter -AsArray' }
        @{ Text = 'ConvertFrom-Json -InputObject 1 -AsHashtable'; Fault = 'ConvertFrom-Json has no parameter -AsHashtable' }
        @{ Text = 'New-VM -Name a -GuestStateIsolationType Disabled -NoVHD'; Fault = 'New-VM has no parameter -GuestStateIsolationType' }
        # Parameters of different sets.
        @{ Text = 'Start-VM -VM $null -Name a'; Fault = 'Start-VM: Parameter set cannot be resolved*' }
        @{ Text = 'New-VHD -Path a -ParentPath b -Fixed'; Fault = 'New-VHD: Parameter set cannot be resolved*' }
        @{ Text = 'Remove-Item -LiteralPath a -Path b'; Fault = 'Remove-Item: Parameter set cannot be resolved*' }
        # Values that are not accepted.
        @{ Text = 'Set-VM -Name a -AutomaticStopAction PowerOff'; Fault = 'Set-VM: *''AutomaticStopAction''*"PowerOff"*' }
        @{ Text = 'Set-VM -Name a -CheckpointType ''None'''; Fault = 'Set-VM: *''CheckpointType''*"None"*' }
        @{ Text = 'Get-VMSwitch -SwitchType Internal, Local'; Fault = 'Get-VMSwitch: *''SwitchType''*"Local"*' }
        @{ Text = 'Get-Item -LiteralPath a -ErrorAction Silently'; Fault = 'Get-Item: -ErrorAction cannot be Silently' }
        @{ Text = 'Get-FileHash -LiteralPath a -Algorithm SHA3'; Fault = 'Get-FileHash: *''Algorithm''*"SHA3"*' }
        @{ Text = 'Set-VMProcessor -VMName a -Count two'; Fault = 'Set-VMProcessor: *''Count''*"two"*' }
        @{ Text = 'Set-VM -Name a -AutomaticCheckpointsEnabled Off'; Fault = 'Set-VM: *''AutomaticCheckpointsEnabled''*' }
        # Parameters that are missing, without a value, or there twice.
        @{ Text = 'New-VHD -ParentPath a -Differencing'; Fault = 'New-VHD: *missing mandatory parameters: Path*' }
        @{ Text = 'Stop-VM -TurnOff'; Fault = 'Stop-VM: *missing mandatory parameters*' }
        @{ Text = 'Join-Path a'; Fault = 'Join-Path: *missing mandatory parameters: ChildPath*' }
        @{ Text = 'New-VM -Name -NoVHD'; Fault = 'New-VM: Missing an argument for parameter ''Name''*' }
        @{ Text = 'Remove-VM -Name a -Name b'; Fault = 'Remove-VM: *''Name'' is specified more than once*' }
        # Arguments by position, where there is none.
        @{ Text = 'Start-VM a'; Fault = 'Start-VM: A positional parameter cannot be found*' }
        @{ Text = 'Join-Path a b c'; Fault = 'Join-Path: A positional parameter cannot be found*' }
        # Errors that end nothing.
        @{ Text = 'Get-NetAdapter -Name a'; Fault = 'Get-NetAdapter goes on after an error without -ErrorAction Stop*' }
        # Tables that are splatted.
        @{ Text = '$disk = @{ Path = ''a''; Parents = ''b'' }; New-VHD @disk -Differencing'; Fault = 'New-VHD: *''Parents''*' }
        @{ Text = '$disk = @{ Path = ''a'' }; $disk.Fixed = $true; New-VHD @disk -ParentPath b'; Fault = 'New-VHD: Parameter set cannot*' }
        @{ Text = '$disk = @{ Path = ''a'' }; $disk[''Fixed''] = $true; New-VHD @disk -ParentPath b'; Fault = 'New-VHD: Parameter set cannot*' }
        @{ Text = '$vm = @{ CheckpointType = ''Never'' }; Set-VM -Name a @vm'; Fault = 'Set-VM: *''CheckpointType''*' }
        # The script's own functions.
        @{ Text = 'function Add-Two($Left, $Right) { }; Add-Two -Lift 1'; Fault = 'Add-Two has no parameter -Lift' }
        @{ Text = 'function Add-Two($Left, $Right) { }; Add-Two 1 2 3'; Fault = 'Add-Two: A positional parameter cannot be found*' }
        @{ Text = 'function Save-It { param([Parameter(Mandatory)][string]$Path, [switch]$Force) }; Save-It -Force'; Fault = 'Save-It: *missing mandatory parameters: Path*' }
        @{ Text = 'function Set-It { param([ValidateSet(''on'', ''off'')]$To) }; Set-It -To open'; Fault = 'Set-It: *''To''*"open"*' }
        # What does not parse, or not in Windows PowerShell.
        @{ Text = 'if ($true { Get-VM }'; Fault = 'does not parse*' }
        @{ Text = 'function Broken {'; Fault = 'does not parse*' }
        @{ Text = '$x = ''caf' + [char]0xE9 + ''''; Fault = '*is not ASCII*' }
        @{ Text = 'git.exe fetch && git.exe pull'; Fault = '*pipeline chain*' }
        @{ Text = '$a = 1 ?? 1'; Fault = '*null-coalescing*' }
        @{ Text = '$a = 1; $a ??= 1'; Fault = '*null-conditional*' }
        @{ Text = '$a = 1 ? 1 : 2'; Fault = '*ternary*' }
        @{ Text = '$a = 1; $a?.Name'; Fault = '$a? is never assigned' }
        @{ Text = '$a = 1; ${a}?.Name'; Fault = '*null-conditional*' }
        @{ Text = '$a = 1; ${a}?[0]'; Fault = '?`[ does not exist in Windows PowerShell' }
        # Variables: PowerShell's own, and those that nothing assigns.
        @{ Text = '$all = @($input)'; Fault = '$input makes PowerShell itself read*' }
        @{ Text = 'foreach ($host in 1, 2) { }'; Fault = '*''host'' cannot be assigned*' }
        @{ Text = '$matches = 1'; Fault = '*''matches'' is an automatic variable*' }
        @{ Text = 'function A($args) { }'; Fault = '*''args'' is an automatic variable*' }
        @{ Text = '$count = 1; Get-Item -LiteralPath $cuont'; Fault = '$cuont is never assigned' }
        @{ Text = '"on $IsWindows"'; Fault = '$IsWindows is never assigned' }
        @{ Text = '"${nobody}:1"'; Fault = '${nobody} is never assigned' }
    ) {
        $faults = @(Get-LintFault "$opening$Text" | ForEach-Object { $_ -replace '^line 3: ', '' })
        if (-not ($faults -like $Fault)) {
            $faults += @(Invoke-ScriptAnalyzer -ScriptDefinition "$opening$Text" -Settings $settings | ForEach-Object { $_.Message })
        }
        @($faults | Where-Object { $_ -like $Fault }).Count | Should -BeGreaterThan 0 -Because "the faults found are: $($faults -join '; ')"
    }

    It 'begins with strict mode' {
        Get-LintFault "`$ErrorActionPreference = 'Stop'`nGet-VM`n" | Should -BeLike '*must begin with*'
    }
}
