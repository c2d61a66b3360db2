# Checks what a script calls, without running it: that each command exists, and that its
# parameters are those of one parameter set of the documentation. Dot-sourced by Commands.Tests.ps1.
#
# Stricter than PowerShell where that costs nothing: no aliases, no abbreviated parameters, no
# positional arguments to cmdlets of Windows' modules (whose positions the data does not have).

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

. (Join-Path -Path $PSScriptRoot -ChildPath 'syntax.ps1')

$CommonParameters = [System.Management.Automation.Cmdlet]::CommonParameters
$Programs = 'bcdedit.exe', 'cargo', 'cmd.exe', 'dism.exe', 'docker', 'git', 'icacls.exe', 'packer', 'powercfg.exe', 'rustup', 'sc.exe', 'shutdown.exe', 'winget'
# Assigned by PowerShell itself, in 5.1 and 7.
$Automatic = '_', 'args', 'ConfirmPreference', 'DebugPreference', 'Error', 'ErrorActionPreference', 'ExecutionContext', 'false', 'Global', 'InformationPreference', 'input', 'LASTEXITCODE', 'matches', 'MyInvocation', 'null', 'PID', 'ProgressPreference', 'PSBoundParameters', 'PSCmdlet', 'PSCommandPath', 'PSItem', 'PSNativeCommandUseErrorActionPreference', 'PSScriptRoot', 'PSVersionTable', 'StackTrace', 'this', 'true', 'VerbosePreference', 'WarningPreference'

# What is documented of commands: a table of those seen so far, and where the others are read from.
function Open-Documentation([string]$DataFolder) {
    $core = @{}
    foreach ($line in [System.IO.File]::ReadAllLines((Join-Path -Path $DataFolder -ChildPath 'core-cmdlets.txt'))) {
        if ($line -match '^(?<name>[A-Z]\w+-\w+)(?<rest>.*)$') {
            $core[$Matches['name']] = [string]$core[$Matches['name']] + $Matches['rest'] + ' [<CommonParameters>]'
        }
    }
    $windows = ConvertFrom-Json -InputObject ([System.IO.File]::ReadAllText((Join-Path -Path $DataFolder -ChildPath 'cmdlets.json')))
    return @{ Core = $core; Windows = $windows; Seen = @{} }
}

# A command's syntax, in the form of Get-Syntax51; $null where there is no such command.
function Find-Syntax($Documentation, [string]$Name) {
    if (-not $Documentation.Seen.ContainsKey($Name)) {
        $syntax = $null
        if ($Documentation.Core.ContainsKey($Name)) {
            # -Algorithm {SHA1 | SHA256}: the accepted values.
            $values = @{}
            foreach ($choice in [regex]::Matches($Documentation.Core[$Name], '-(\w+)\]? \{([^}]+)\}')) {
                $values[$choice.Groups[1].Value] = $choice.Groups[2].Value -split '\s*\|\s*'
            }
            $syntax = Get-Syntax51 $Name @{ $Name = $Documentation.Core[$Name] -replace '\{[^}]+\}', '<string>' }
            $syntax.Values = $values
        } elseif ($Documentation.Windows.cmdlets.PSObject.Properties[$Name]) {
            $syntax = Get-DocumentedSyntax $Name $Documentation.Windows
        }
        $Documentation.Seen[$Name] = $syntax
    }
    return $Documentation.Seen[$Name]
}

# The same form, of a function in a script.
function ConvertTo-Syntax([System.Management.Automation.Language.FunctionDefinitionAst]$Function) {
    $set = [ordered]@{}
    $values = @{}
    $parameters = @($Function.Parameters)
    if ($null -ne $Function.Body.ParamBlock) {
        $parameters = @($Function.Body.ParamBlock.Parameters)
    }
    foreach ($parameter in @($parameters | Where-Object { $null -ne $_ })) {
        $name = $parameter.Name.VariablePath.UserPath
        $set[$name] = @{ Type = $parameter.StaticType.Name; Mandatory = $false; Position = $set.Count }
        if ($parameter.StaticType -eq [switch]) {
            $set[$name] = @{ Type = 'switch'; Mandatory = $false; Position = -1 }
        }
        foreach ($attribute in @($parameter.Attributes | Where-Object { $_ -is [System.Management.Automation.Language.AttributeAst] })) {
            if ($attribute.TypeName.Name -eq 'Parameter') {
                $set[$name].Mandatory = @($attribute.NamedArguments | Where-Object { $_.ArgumentName -eq 'Mandatory' }).Count -gt 0
            } elseif ($attribute.TypeName.Name -eq 'ValidateSet') {
                $values[$name] = @($attribute.PositionalArguments | ForEach-Object { $_.Value })
            }
        }
    }
    return @{ Name = $Function.Name; Sets = @(, $set); Aliases = @{}; Values = $values }
}

# What a command is given: names and constants, and how many arguments without a name.
function Read-Argument($Command, $Syntax, $Splatted) {
    $known = @($Syntax.Sets | ForEach-Object { $_.Keys }) + $CommonParameters
    $given = [ordered]@{}
    $positional = 0
    $pending = ''
    $faults = foreach ($element in @($Command.CommandElements | Select-Object -Skip 1)) {
        $pairs = @()
        if ($element -is [System.Management.Automation.Language.CommandParameterAst]) {
            $pairs = @(, @($element.ParameterName, $element.Argument))
        } elseif ($element -is [System.Management.Automation.Language.VariableExpressionAst] -and $element.Splatted) {
            $pairs = @($Splatted[$element.VariablePath.UserPath])
        } elseif ($pending -ne '') {
            $given[$pending] = $element
        } else {
            $positional++
        }
        if ($pairs.Count -gt 0 -and $pending -ne '') {
            "-$pending needs a value"
        }
        $pending = ''
        foreach ($pair in @($pairs | Where-Object { $null -ne $_ })) {
            $name = "$($known | Where-Object { $_ -eq $pair[0] } | Select-Object -First 1)"
            if ($name -eq '') {
                $name = "$($Syntax.Aliases.Keys | Where-Object { @($Syntax.Aliases[$_]) -contains $pair[0] } | Select-Object -First 1)"
            }
            if ($name -eq '') {
                "there is no parameter -$($pair[0])"
                continue
            }
            if ($given.Contains($name)) {
                "-$name is given twice"
            }
            $given[$name] = $pair[1]
            $isSwitch = $name -in 'Verbose', 'Debug' -or @($Syntax.Sets | Where-Object { $_.Contains($name) -and $_[$name].Type -eq 'switch' }).Count -gt 0
            if ($null -eq $pair[1] -and -not $isSwitch) {
                $pending = $name
            }
        }
    }
    if ($pending -ne '') {
        $faults = @($faults) + "-$pending needs a value"
    }
    return @{ Given = $given; Positional = $positional; Faults = @($faults | Where-Object { $_ }) }
}

# What is wrong with a constant as a parameter's value; '' if nothing.
function Test-Constant($Name, $Value, $Syntax) {
    if ($Name -like '*Action' -and $Name -in $CommonParameters) {
        $accepted = [enum]::GetNames([System.Management.Automation.ActionPreference])
    } else {
        $accepted = @($Syntax.Values[$Name] + $MoreValues["$($Syntax.Name) $Name"] | Where-Object { $_ })
    }
    $type = "$($Syntax.Sets | Where-Object { $_.Contains($Name) } | ForEach-Object { $_[$Name].Type } | Select-Object -First 1)"
    $constants = if ($Value -is [System.Management.Automation.Language.ArrayLiteralAst]) { $Value.Elements } else { $Value }
    foreach ($constant in @($constants | Where-Object { $_ -is [System.Management.Automation.Language.ConstantExpressionAst] })) {
        $text = [string]$constant.Value
        if ($accepted.Count -gt 0 -and $accepted -notcontains $text) {
            return "-$Name does not accept $text"
        }
        $number = 0
        if ($type -match '^(int|int32|long|int64|u?int\d+)$' -and $constant.Value -is [string] -and -not [int64]::TryParse($text, [ref]$number)) {
            return "-$Name takes a number, not $text"
        }
        if ($type -in 'bool', 'boolean' -and $constant.Value -is [string]) {
            return "-$Name takes a Boolean, not $text"
        }
    }
    return ''
}

function Test-Command($Command, $Syntax, $Splatted) {
    $read = Read-Argument $Command $Syntax $Splatted
    if ($read.Faults.Count -gt 0) {
        return $read.Faults
    }
    foreach ($name in $read.Given.Keys) {
        $fault = Test-Constant $name $read.Given[$name] $Syntax
        if ($fault -ne '') {
            return $fault
        }
    }
    $named = @($read.Given.Keys | Where-Object { $_ -notin $CommonParameters })
    $fitting = @($Syntax.Sets | Where-Object { $set = $_; @($named | Where-Object { -not $set.Contains($_) }).Count -eq 0 })
    if ($fitting.Count -eq 0) {
        return "no parameter set has all of -$($named -join ' -')"
    }
    # A pipeline can give what is mandatory.
    $isFed = $Command.Parent -is [System.Management.Automation.Language.PipelineAst] -and $Command.Parent.PipelineElements[0] -ne $Command
    $reason = ''
    foreach ($set in $fitting) {
        $free = @($set.Keys | Where-Object { $set[$_].Position -ge 0 -and $named -notcontains $_ } | Sort-Object { $set[$_].Position })
        if ($read.Positional -gt $free.Count) {
            $reason = "it takes no $($read.Positional) arguments without a parameter's name"
            continue
        }
        $taken = $named + @($free | Select-Object -First $read.Positional)
        $missing = @($set.Keys | Where-Object { $set[$_].Mandatory -and $taken -notcontains $_ })
        if ($missing.Count -eq 0 -or ($isFed -and $missing.Count -eq 1)) {
            return
        }
        $reason = "it lacks its mandatory parameter -$($missing -join ', -')"
    }
    return $reason
}

# The entries of the hash tables that a script splats: a variable's name to pairs of name and value.
function Get-SplattedPair($Ast) {
    $tables = @{}
    foreach ($assignment in $Ast.FindAll({ $args[0] -is [System.Management.Automation.Language.AssignmentStatementAst] }, $true)) {
        $left = $assignment.Left
        $right = $assignment.Right
        if ($right -is [System.Management.Automation.Language.CommandExpressionAst]) {
            $right = $right.Expression
        }
        if ($left -is [System.Management.Automation.Language.VariableExpressionAst] -and $right -is [System.Management.Automation.Language.HashtableAst]) {
            $tables[$left.VariablePath.UserPath] = @($right.KeyValuePairs | ForEach-Object { , @([string]$_.Item1.Value, $_.Item2.PipelineElements[0].Expression) })
        } elseif ($left -is [System.Management.Automation.Language.MemberExpressionAst] -and $left.Expression -is [System.Management.Automation.Language.VariableExpressionAst]) {
            $table = $left.Expression.VariablePath.UserPath
            if ($tables.ContainsKey($table)) {
                $tables[$table] += , @([string]$left.Member.Value, $right)
            }
        }
    }
    return $tables
}

# Everything wrong with a script. $Outside: the functions that it takes from other files.
function Get-ScriptFault([string]$Source, $Documentation, $Outside = @()) {
    $tokens = $null
    $errors = $null
    $ast = [System.Management.Automation.Language.Parser]::ParseInput($Source, [ref]$tokens, [ref]$errors)
    if (@($errors).Count -gt 0) {
        return @($errors | ForEach-Object { "line $($_.Extent.StartLineNumber): does not parse: $($_.Message)" })
    }
    $functions = @{}
    foreach ($function in @($Outside | Where-Object { $_ }) + @($ast.FindAll({ $args[0] -is [System.Management.Automation.Language.FunctionDefinitionAst] }, $true))) {
        $functions[($function.Name -replace '^global:', '')] = ConvertTo-Syntax $function
    }
    $splatted = Get-SplattedPair $ast
    foreach ($command in $ast.FindAll({ $args[0] -is [System.Management.Automation.Language.CommandAst] }, $true)) {
        $name = $command.GetCommandName()
        # `& $program` and `. (Join-Path ...)` name nothing that is known here.
        if ([string]$name -eq '' -or $command.InvocationOperator -ne 'Unknown' -or $name -in $Programs) {
            continue
        }
        $syntax = $functions[$name]
        if ($null -eq $syntax) {
            $syntax = Find-Syntax $Documentation $name
        }
        if ($null -eq $syntax) {
            "line $($command.Extent.StartLineNumber): there is no command $name"
        } else {
            Test-Command $command $syntax $splatted | Where-Object { $_ } | ForEach-Object { "line $($command.Extent.StartLineNumber): ${name}: $_" }
        }
    }
    Find-Unassigned $ast
    if ($Source -match '[^\x00-\x7F]') {
        'a letter is not ASCII, which Windows PowerShell would misread'
    }
}

# Variables that nothing assigns, $input, and PowerShell's own variables that something assigns.
function Find-Unassigned($Ast) {
    $assigned = @($Ast.FindAll({ $args[0] -is [System.Management.Automation.Language.AssignmentStatementAst] }, $true) |
            ForEach-Object { $_.Left.FindAll({ $args[0] -is [System.Management.Automation.Language.VariableExpressionAst] }, $false) })
    $assigned += @($Ast.FindAll({ $args[0] -is [System.Management.Automation.Language.ForEachStatementAst] }, $true) | ForEach-Object { $_.Variable })
    $assigned += @($Ast.FindAll({ $args[0] -is [System.Management.Automation.Language.ParameterAst] }, $true) | ForEach-Object { $_.Name })
    $names = @($assigned | ForEach-Object { $_.VariablePath.UserPath -replace '^(script|global|local|private):', '' })
    foreach ($name in @($names | Where-Object { $_ -in 'args', 'error', 'foreach', 'home', 'host', 'input', 'matches', 'PID', 'profile', 'PSHOME', 'switch', 'this' })) {
        "`$$name is PowerShell's own variable"
    }
    foreach ($variable in $Ast.FindAll({ $args[0] -is [System.Management.Automation.Language.VariableExpressionAst] }, $true)) {
        $name = $variable.VariablePath.UserPath -replace '^(script|global|local|private):', ''
        if ($name -eq 'input') {
            "line $($variable.Extent.StartLineNumber): `$input reads standard input wrongly"
        } elseif (-not $variable.VariablePath.IsDriveQualified -and $name -notin $names -and $name -notin $Automatic) {
            "line $($variable.Extent.StartLineNumber): `$$name is never assigned"
        }
    }
}
