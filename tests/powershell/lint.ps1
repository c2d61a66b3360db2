# What PSScriptAnalyzer does not find in a script: commands that do not exist or are not called as
# documented, variables that nothing assigns, and what Windows PowerShell 5.1 would misread.
# The rules are stricter than PowerShell where that costs nothing: no aliases, no abbreviated
# parameters, no arguments by position to the cmdlets of Windows' modules.

using namespace System.Management.Automation.Language

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
. (Join-Path -Path $PSScriptRoot -ChildPath 'syntax.ps1')

# Programs without .exe in their name. Any other word without a hyphen is an alias, or misspelled.
$Programs = @('packer')

# Variables that a script may read without having assigned them, in 5.1 and 7.
$GivenVariables = @(
    '$', '?', '^', '_', 'args', 'ConfirmPreference', 'DebugPreference', 'Error', 'ErrorActionPreference', 'ExecutionContext', 'false'
    'HOME', 'Host', 'InformationPreference', 'LASTEXITCODE', 'Matches', 'MyInvocation', 'null', 'OFS', 'OutputEncoding', 'PID'
    'ProgressPreference', 'PSBoundParameters', 'PSCmdlet', 'PSCommandPath', 'PSHOME', 'PSItem', 'PSScriptRoot', 'PSVersionTable'
    'PWD', 'this', 'true', 'VerbosePreference', 'WarningPreference'
)

# The types of which constants are checked. $true converts to each of them, and stands for what is no constant.
$CheckedTypes = @('string', 'bool', 'switch', 'int', 'long', 'uint16', 'uint32', 'uint64', 'double') | ForEach-Object { $_; "$_[]" }

# Parameters of PowerShell's own cmdlets that it has on Windows alone.
$WindowsOnly = @('ComObject', 'Type')

$KnownCommands = @{}
$KnownFaults = @{}
$Binder = [powershell]::Create([initialsessionstate]::Create())
$Binder.Runspace.SessionStateProxy.LanguageMode = 'FullLanguage'

# A cmdlet's parameters, as far as both Windows PowerShell 5.1 and this PowerShell have them; $null
# if nothing is known of it.
function Get-CmdletSyntax([string]$Name) {
    if (-not $KnownCommands.ContainsKey($Name)) {
        $syntax = Get-Syntax $Name
        $here = @(Get-Command -Name $Name -CommandType Cmdlet -ErrorAction Ignore)
        if ($syntax -and $here.Count -gt 0) {
            $common = @($here[0].Parameters.Values | ForEach-Object { $_.Name; $_.Aliases }) + $WindowsOnly
            foreach ($set in $syntax.Sets) {
                @($set.Keys) | Where-Object { $_ -notin $common } | ForEach-Object { $set.Remove($_) }
            }
            foreach ($parameter in $here[0].Parameters.Values) {
                $values = @($parameter.Attributes | Where-Object { $_ -is [System.Management.Automation.ValidateSetAttribute] } | ForEach-Object { $_.ValidValues })
                if ($values.Count -gt 0) { $syntax.Values[$parameter.Name] = $values }
                $isPiped = @($parameter.Attributes | Where-Object { $_ -is [Parameter] -and $_.ValueFromPipeline }).Count -gt 0
                if ($isPiped -and -not $FromPipeline.ContainsKey($Name)) { $FromPipeline[$Name] = $parameter.Name }
            }
        }
        $KnownCommands[$Name] = $syntax
    }
    return $KnownCommands[$Name]
}

function Get-FunctionSyntax($Definition) {
    $text = $Definition.Extent.Text
    if ($KnownCommands.ContainsKey($text)) {
        return $KnownCommands[$text]
    }
    $list = @($Definition.Parameters)
    if ($Definition.Body.ParamBlock) {
        $list = @($Definition.Body.ParamBlock.Parameters)
    }
    $set = [ordered]@{}
    $values = @{}
    foreach ($parameter in @($list | Where-Object { $_ })) {
        $name = $parameter.Name.VariablePath.UserPath
        $constraints = @($parameter.Attributes | Where-Object { $_ -is [TypeConstraintAst] } | ForEach-Object { ConvertTo-KnownType $_.TypeName.FullName })
        $attributes = @($parameter.Attributes | Where-Object { $_ -is [AttributeAst] })
        $set[$name] = @{
            Type      = @($constraints + 'object')[0]
            Mandatory = @($attributes | Where-Object { $_.NamedArguments | Where-Object { $_.ArgumentName -eq 'Mandatory' -and $_.Argument.Extent.Text -ne '$false' } }).Count -gt 0
            Position  = $set.Count
        }
        if ($constraints -contains 'switch') {
            $set[$name].Position = -1
        }
        $values[$name] = @($attributes | Where-Object { $_.TypeName.Name -eq 'ValidateSet' } | ForEach-Object { $_.PositionalArguments.Value })
    }
    $KnownCommands[$text] = @{ Name = $Definition.Name; Sets = @($set); Aliases = @{}; Values = $values }
    return $KnownCommands[$text]
}

# A function with a command's parameters, in which $true stands for any argument that is not known.
function Get-BoundFunction($Syntax) {
    if (-not $Syntax.ContainsKey('Function')) {
        $values = @{}
        $Syntax.Values.Keys | Where-Object { $Syntax.Values[$_] } | ForEach-Object { $values[$_] = @($Syntax.Values[$_]) + 'True' }
        $Syntax.Function = Format-SyntaxFunction @{ Name = $Syntax.Name; Sets = $Syntax.Sets; Aliases = $Syntax.Aliases; Values = $values } '' $CheckedTypes
    }
    return $Syntax.Function
}

# An argument as it can be bound without running the script.
function Get-BoundText($Ast) {
    if ($Ast -is [StringConstantExpressionAst]) { return "'$($Ast.Value.Replace("'", "''"))'" }
    if ($Ast -is [ConstantExpressionAst] -or $Ast.Extent.Text -in '$true', '$false') { return $Ast.Extent.Text }
    if ($Ast -is [ScriptBlockExpressionAst]) { return '{ }' }
    if ($Ast -is [HashtableAst]) { return '@{ }' }
    if ($Ast -is [ArrayLiteralAst]) { return (@($Ast.Elements | ForEach-Object { Get-BoundText $_ }) -join ', ') }
    return '$true'
}

# The arguments that a splatted variable stands for, by what was last assigned to it and to its keys
# before; $null if that is no literal table.
function Get-SplattedText($Variable, $Script) {
    $words = $null
    foreach ($assignment in $Script.FindAll({ param($Node) $Node -is [AssignmentStatementAst] }, $true)) {
        if ($assignment.Extent.StartOffset -ge $Variable.Extent.StartOffset) { break }
        $value = $assignment.Right
        if ($value -is [CommandExpressionAst]) { $value = $value.Expression }
        $target, $key = $assignment.Left, $null
        if ($target -is [MemberExpressionAst]) { $target, $key = $target.Expression, $target.Member }
        if ($target -is [IndexExpressionAst]) { $target, $key = $target.Target, $target.Index }
        if ($target.Extent.Text -ne "`$$($Variable.VariablePath.UserPath)") { continue }
        if ($key -and $null -eq $words) { continue }
        if ($key) {
            $words += @("-$($key.Value):$(Get-BoundText $value)")
        } elseif ($value -is [HashtableAst]) {
            $words = @($value.KeyValuePairs | ForEach-Object {
                $one = $_.Item2.PipelineElements
                "-$($_.Item1.Value):$(Get-BoundText $one[0].Expression)"
            })
        } else {
            $words = $null
        }
    }
    return $words
}

# What is wrong with one command, or nothing.
function Get-CallFault($Command, $Script, $Functions) {
    $name = $Command.GetCommandName()
    if (-not $name -or $name -match '[\\/]|\.exe$' -or $name -in $Programs) {
        return
    }
    $syntax = $Functions[$name]
    if (-not $syntax) {
        $syntax = Get-CmdletSyntax $name
    }
    if (-not $syntax -and $name -like '*-*') {
        return "there is no cmdlet $name; if Windows has it, add it to tests/data/cmdlets.json from its page (see tests/data/README.md)"
    } elseif (-not $syntax) {
        return "$name is an alias, or a program without .exe"
    }
    # PowerShell takes the first letters of a parameter or of an action for the whole.
    $full = @($syntax.Sets | ForEach-Object { $_.Keys }) + @($syntax.Aliases.Values | ForEach-Object { $_ }) + @([System.Management.Automation.Cmdlet]::CommonParameters)
    $elements = @($Command.CommandElements | Select-Object -Skip 1)
    $faults = @(for ($i = 0; $i -lt $elements.Count; $i++) {
        if ($elements[$i] -isnot [CommandParameterAst]) {
            continue
        }
        $parameter = $elements[$i].ParameterName
        if ($parameter -notin $full) {
            "$name has no parameter -$parameter"
        } elseif ($parameter -in 'ErrorAction', 'WarningAction', 'InformationAction' -and $i + 1 -lt $elements.Count) {
            $action = $elements[$i + 1]
            if ($action -is [StringConstantExpressionAst] -and $action.Value -notin [enum]::GetNames([System.Management.Automation.ActionPreference])) {
                "${name}: -$parameter cannot be $($action.Value)"
            }
        }
    })
    if (-not $Functions[$name] -and $name -match $FunctionNames -and -not ($elements | Where-Object { $_ -is [CommandParameterAst] -and $_.ParameterName -eq 'ErrorAction' })) {
        $faults += "$name goes on after an error without -ErrorAction Stop: it is a function of a module"
    }
    if ($faults.Count -gt 0) {
        return $faults
    }
    $words = @(foreach ($element in $elements) {
        if ($element -is [CommandParameterAst]) {
            if ($element.Argument) { "-$($element.ParameterName):$(Get-BoundText $element.Argument)" } else { "-$($element.ParameterName)" }
        } elseif ($element -is [VariableExpressionAst] -and $element.Splatted) {
            $splatted = Get-SplattedText $element $Script
            if ($null -eq $splatted) { return }
            $splatted
        } else {
            Get-BoundText $element
        }
    })
    $call = "$name $($words -join ' ')"
    if ($Command.Parent -is [PipelineAst] -and $Command.Parent.PipelineElements[0] -ne $Command) {
        $call = "[pscustomobject]@{ PSPath = 'x' } | $call"
    }
    $text = "$(Get-BoundFunction $syntax)`n$call"
    if (-not $KnownFaults.ContainsKey($text)) {
        $Binder.Commands.Clear()
        $Binder.Streams.ClearStreams()
        try {
            $Binder.AddScript($text, $true).Invoke() | Out-Null
            $KnownFaults[$text] = $Binder.Streams.Error | ForEach-Object { "${name}: $($_.Exception.Message)" }
        } catch {
            $KnownFaults[$text] = "${name}: $($_.Exception.InnerException.Message)"
        }
    }
    return $KnownFaults[$text]
}

function Test-Assigned($Variable) {
    for ($node = $Variable; $node.Parent; $node = $node.Parent) {
        $parent = $node.Parent
        if ($parent -is [AssignmentStatementAst]) { return $parent.Left -eq $node }
        if ($parent -is [ForEachStatementAst]) { return $parent.Variable -eq $node }
        if ($parent -is [ParameterAst]) { return $parent.Name -eq $node }
        # $x.y = 1 and $x[0] = 1 do not assign $x.
        if ($parent -isnot [ArrayLiteralAst] -and $parent -isnot [AttributedExpressionAst]) { return $false }
    }
    return $false
}

# Everything wrong with one script, each as "line N: what". Neighbors: the texts of the scripts that it dot-sources.
function Get-LintFault([string]$Text, [string[]]$Neighbors = @()) {
    $errors = $null
    $script = [Parser]::ParseInput($Text, [ref]$null, [ref]$errors)
    $scripts = @($script) + @($Neighbors | ForEach-Object { [Parser]::ParseInput($_, [ref]$null, [ref]$null) })
    $functions = @{}
    $assigned = [System.Collections.Generic.HashSet[string]]::new([string[]]$GivenVariables, [System.StringComparer]::OrdinalIgnoreCase)
    foreach ($one in $scripts) {
        foreach ($node in $one.FindAll({ $true }, $true)) {
            if ($node -is [FunctionDefinitionAst]) {
                $functions[$node.Name] = Get-FunctionSyntax $node
            } elseif ($node -is [VariableExpressionAst] -and (Test-Assigned $node)) {
                $assigned.Add(($node.VariablePath.UserPath -replace '^\w+:', '')) | Out-Null
            }
        }
    }

    $errors | ForEach-Object { "line $($_.Extent.StartLineNumber): does not parse: $($_.Message)" }
    $number = 0
    foreach ($line in ($Text -split "`n")) {
        $number++
        if ($line -match '[^\x00-\x7F]') { "line ${number}: '$($Matches[0])' is not ASCII, which Windows PowerShell reads as ANSI" }
    }
    $opening = @($script.EndBlock.Statements | Select-Object -First 2 | ForEach-Object { $_.Extent.Text }) -join "`n"
    if ($opening -ne "Set-StrictMode -Version Latest`n`$ErrorActionPreference = 'Stop'") {
        'line 1: must begin with Set-StrictMode -Version Latest and $ErrorActionPreference = ''Stop'''
    }
    foreach ($node in $script.FindAll({ $true }, $true)) {
        $faults = if ($node -is [CommandAst]) {
            Get-CallFault $node $script $functions
        } elseif ($node -is [IndexExpressionAst] -and $node.PSObject.Properties['NullConditional'] -and $node.NullConditional) {
            '?[ does not exist in Windows PowerShell'
        } elseif ($node -isnot [VariableExpressionAst]) {
            continue
        } elseif ($node.VariablePath.UserPath -eq 'input') {
            '$input makes PowerShell itself read standard input'
        } elseif (-not $node.VariablePath.IsDriveQualified -and -not $assigned.Contains(($node.VariablePath.UserPath -replace '^\w+:', ''))) {
            "$($node.Extent.Text) is never assigned"
        }
        $faults | ForEach-Object { "line $($node.Extent.StartLineNumber): $_" }
    }
}
