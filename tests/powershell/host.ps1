# Runs one of the pool's scripts as the pool does, but on the simulated host:
#   pwsh -NoProfile -NonInteractive -File host.ps1 <script>
# Standard input and output are the script's own. -Call: with `&`, so that functions of
# modules do not see its $ErrorActionPreference.
param([Parameter(Mandatory)][string]$Path, [switch]$Call)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

$modules = Join-Path -Path $PSScriptRoot -ChildPath 'modules'
$env:PSModulePath = $modules + [System.IO.Path]::PathSeparator + $env:PSModulePath
$manifest = Join-Path -Path (Join-Path -Path $modules -ChildPath 'Hyper-V') -ChildPath 'Hyper-V.psd1'
# Imported by hand: a function then goes before a cmdlet of the same name, on
# Windows too, where the real modules are.
Import-Module -Name $manifest -DisableNameChecking
if ($Call) {
    $ErrorActionPreference = 'Continue'
    & $Path
} else {
    # As -File does.
    . $Path
}
