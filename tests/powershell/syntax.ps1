# What the documentation says of cmdlets' parameters, as functions that take just
# those parameters. Dot-sourced by standins.ps1.

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

# Those that take a parameter from the pipeline, which no source below tells.
$FromPipeline = @{
    'ForEach-Object'                 = 'InputObject'
    'Where-Object'                   = 'InputObject'
    'Select-Object'                  = 'InputObject'
    'Sort-Object'                    = 'InputObject'
    'Out-Null'                       = 'InputObject'
    'ConvertFrom-Json'               = 'InputObject'
    'ConvertTo-Json'                 = 'InputObject'
    'Get-ChildItem'                  = 'LiteralPath'
    'Remove-Item'                    = 'LiteralPath'
    'Set-NetConnectionProfile'       = 'InputObject'
    'Get-VMHardDiskDrive'            = 'VM'
    'Stop-VM'                        = 'VM'
    'Get-NetFirewallPortFilter'      = 'AssociatedNetFirewallRule'
    'Get-NetFirewallInterfaceFilter' = 'AssociatedNetFirewallRule'
}

# Cmdlets that are functions of a module. They do not see the $ErrorActionPreference of a script.
$FunctionNames = '-(ScheduledTask|Net[A-Z]|Hns[A-Z]|Dns[A-Z]|Mp[A-Z]|Volume$)'

# What the provider of the registry adds, and values that no source below lists.
$MoreParameters = @{ 'Set-ItemProperty' = 'Type' }
$MoreValues = @{
    'Set-Service StartupType' = @('Boot', 'System', 'Automatic', 'Manual', 'Disabled')
    'New-Item ItemType'       = @('File', 'Directory', 'SymbolicLink', 'Junction', 'HardLink')
}

# PowerShell's own words for types; others are objects.
$KnownTypes = @{
    string = 'string'; bool = 'bool'; boolean = 'bool'; int = 'int'; int32 = 'int'; int64 = 'long'; long = 'long'
    uint16 = 'uint16'; uint32 = 'uint32'; uint64 = 'uint64'; byte = 'byte'; double = 'double'; guid = 'guid'; uri = 'uri'
    timespan = 'timespan'; datetime = 'datetime'; hashtable = 'hashtable'; securestring = 'securestring'
    scriptblock = 'scriptblock'; switch = 'switch'
}

function ConvertTo-KnownType([string]$Type) {
    $base = $Type.TrimEnd('[', ']')
    $known = 'object'
    if ($KnownTypes.ContainsKey($base)) {
        $known = $KnownTypes[$base]
    }
    if ($Type.EndsWith('[]')) {
        $known += '[]'
    }
    return $known
}

# What is known of a cmdlet's parameters; $null if nothing is.
$Sources = @{}
function Get-Syntax([string]$Name) {
    if ($Sources.Count -eq 0) {
        $path = Join-Path -Path $PSScriptRoot -ChildPath '../data/cmdlets.json'
        $Sources.Documented = (ConvertFrom-Json -InputObject ([System.IO.File]::ReadAllText($path))).cmdlets
        $Sources.Profile51 = Get-Profile51
    }
    if ($Sources.Documented.PSObject.Properties[$Name]) {
        $syntax = Get-DocumentedSyntax $Name $Sources.Documented.$Name
    } elseif ($Sources.Profile51.ContainsKey($Name)) {
        $syntax = Get-Syntax51 $Name $Sources.Profile51
    } else {
        return $null
    }
    foreach ($set in @($syntax.Sets | Where-Object { $MoreParameters.ContainsKey($Name) })) {
        $set[$MoreParameters[$Name]] = @{ Type = 'object'; Mandatory = $false; Position = -1 }
    }
    foreach ($key in @($MoreValues.Keys | Where-Object { $_.StartsWith("$Name ") })) {
        $syntax.Values[$key.Substring($Name.Length + 1)] = $MoreValues[$key]
    }
    return $syntax
}

# Microsoft's pages on Windows' modules, for Server 2019, 2022 and 2025, from
# cmdlets.json. A parameter counts only if all three have it. (A mandatory switch
# named after the cmdlet's noun is a mistake of whoever read the pages.)
function Get-DocumentedSyntax([string]$Name, $Documented) {
    $versions = @($Documented.versions.PSObject.Properties.Value)
    $oldest = $versions[0]
    $sets = foreach ($set in $oldest.sets) {
        $parameters = [ordered]@{}
        foreach ($parameter in $set.PSObject.Properties) {
            $isMistake = $parameter.Value -eq 'switch required'
            $isEverywhere = @($versions | Where-Object { @($_.sets | ForEach-Object { $_.PSObject.Properties.Name }) -contains $parameter.Name }).Count -eq $versions.Count
            if ($isEverywhere -and -not $isMistake) {
                $parameters[$parameter.Name] = @{
                    Type      = ConvertTo-KnownType ($parameter.Value -replace ' required$', '')
                    Mandatory = $parameter.Value.EndsWith(' required')
                    Position  = -1
                }
            }
        }
        , $parameters
    }
    $aliases = @{}
    if ($oldest.PSObject.Properties['aliases']) {
        $oldest.aliases.PSObject.Properties | ForEach-Object { $aliases[$_.Name] = @($_.Value) }
    }
    $values = @{}
    if ($oldest.PSObject.Properties['values']) {
        $oldest.values.PSObject.Properties | ForEach-Object { $values[$_.Name] = @($_.Value) }
    }
    return @{ Name = $Name; Sets = @($sets); Aliases = $aliases; Values = $values }
}

# What Get-Command -Syntax prints under Windows PowerShell 5.1, as PSScriptAnalyzer
# holds it for its rules of compatibility.
function Get-Profile51 {
    $module = Get-Module -Name PSScriptAnalyzer -ListAvailable | Select-Object -First 1
    $path = Join-Path -Path $module.ModuleBase -ChildPath 'Settings/desktop-5.1.14393.206-windows.json'
    $all = @{}
    foreach ($one in (ConvertFrom-Json -InputObject ([System.IO.File]::ReadAllText($path))).Modules) {
        foreach ($command in @($one.ExportedCommands)) {
            if ($null -ne $command -and $command.ParameterSets) {
                $all[$command.Name] = $command.ParameterSets
            }
        }
    }
    return $all
}

function Get-Syntax51([string]$Name, $Profile51) {
    $pattern = '\[\[-(?<optional>\w+)\] <(?<type>[^>]+)>\]|\[-(?<positional>\w+)\] <(?<type>[^>]+)>|\[-(?<named>\w+) <(?<type>[^>]+)>\]|(?<!\S)-(?<required>\w+)( <(?<type>[^>]+)>)?|\[-(?<named>\w+)\]'
    $sets = foreach ($text in @($Profile51[$Name] -split '\[<CommonParameters>\]')) {
        $parameters = [ordered]@{}
        $position = 0
        foreach ($match in [regex]::Matches($text, $pattern)) {
            $group = @('optional', 'positional', 'named', 'required' | Where-Object { $match.Groups[$_].Success })[0]
            $type = 'switch'
            if ($match.Groups['type'].Success) {
                $type = ConvertTo-KnownType $match.Groups['type'].Value
            }
            $parameters[$match.Groups[$group].Value] = @{ Type = $type; Mandatory = $group -in 'positional', 'required'; Position = -1 }
            if ($group -in 'optional', 'positional') {
                $parameters[$match.Groups[$group].Value].Position = $position
                $position += 1
            }
        }
        # After the last [<CommonParameters>] comes nothing.
        if ($text.Trim() -ne '' -or $Profile51[$Name] -match '^\s*\[<CommonParameters>\]\s*$') {
            , $parameters
        }
    }
    return @{ Name = $Name; Sets = @($sets); Aliases = @{}; Values = @{} }
}

# The text of a function with these parameters and this body. Types: those that its parameters may
# have; others are objects.
function Format-SyntaxFunction($Syntax, [string]$Body, [string[]]$Types = @($KnownTypes.Values | ForEach-Object { $_; "$_[]" })) {
    $name = $Syntax.Name
    $hasSets = @($Syntax.Sets).Count -gt 1
    $all = [ordered]@{}
    $asksBack = $false
    for ($i = 0; $i -lt @($Syntax.Sets).Count; $i++) {
        foreach ($parameter in @($Syntax.Sets[$i].Keys)) {
            if ($parameter -in 'Confirm', 'WhatIf') {
                $asksBack = $true
                continue
            }
            # No function may have a parameter of this name.
            if ($parameter -eq 'PSEdition') {
                continue
            }
            if (-not $all.Contains($parameter)) {
                $all[$parameter] = @{}
            }
            $all[$parameter][$i] = $Syntax.Sets[$i][$parameter]
        }
    }
    # The pages give some aliases to two parameters, which PowerShell refuses.
    $seen = [System.Collections.Generic.HashSet[string]]::new([System.StringComparer]::OrdinalIgnoreCase)
    $lines = @(foreach ($parameter in @($all.Keys)) {
        $attributes = @(foreach ($i in @($all[$parameter].Keys | Sort-Object)) {
            $facts = $all[$parameter][$i]
            $words = @(
                if ($hasSets) { "ParameterSetName = '$i'" }
                if ($facts.Mandatory) { 'Mandatory' }
                if ($facts.Position -ge 0) { "Position = $($facts.Position)" }
                if ($FromPipeline[$name] -eq $parameter) {
                    if ($parameter -eq 'LiteralPath') { 'ValueFromPipelineByPropertyName' } else { 'ValueFromPipeline' }
                }
            )
            if ($words.Count -gt 0) { '[Parameter(' + ($words -join ', ') + ')]' }
        })
        # The same in every set: said once.
        if ($hasSets -and $all[$parameter].Count -eq @($Syntax.Sets).Count) {
            $plain = @($attributes | ForEach-Object { $_ -replace "ParameterSetName = '\d+'(, )?", '' } | Sort-Object -Unique)
            if ($plain.Count -eq 1) {
                $attributes = @($plain | Where-Object { $_ -ne '[Parameter()]' })
            }
        }
        $aliases = @($Syntax.Aliases[$parameter] | Where-Object { $_ -and -not $all.Contains($_) -and $seen.Add($_) })
        if ($parameter -eq 'LiteralPath') { $aliases += 'PSPath' }
        if ($aliases.Count -gt 0) { $attributes += "[Alias('" + ($aliases -join "', '") + "')]" }
        $values = @($Syntax.Values[$parameter] | Where-Object { $_ })
        if ($values.Count -gt 0) { $attributes += "[ValidateSet('" + ($values -join "', '") + "')]" }
        $type = @($all[$parameter].Values)[0].Type
        if ($type -notin $Types) { $type = 'object' }
        "        $($attributes -join '')[$type]`$$parameter"
    })
    $binding = @(
        if ($asksBack) { 'SupportsShouldProcess' }
        if ($hasSets) { "DefaultParameterSetName = '0'" }
        'PositionalBinding = $false'
    )
    return "function $name {`n    [CmdletBinding($($binding -join ', '))]`n    param(`n$($lines -join ",`n")`n    )`n    process {`n        $Body`n    }`n}"
}
