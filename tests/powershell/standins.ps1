# Stand-ins for cmdlets of Windows, for tests that run a script in their own process. Each
# has the parameters of the real cmdlet, so a wrong one fails. $StandIn holds a test's wishes:
#   Answers   what a cmdlet does: its name to a script block, which gets the call's parameters
#   Faults    how many calls of a cmdlet fail: its name to a number
#   Calls     the calls so far, one line each
# Dot-source this in BeforeAll.

Set-StrictMode -Version Latest
. (Join-Path -Path $PSScriptRoot -ChildPath 'syntax.ps1')

$Root = Split-Path -Path (Split-Path -Path $PSScriptRoot -Parent) -Parent
$global:StandIn = @{}

function Reset-StandIn {
    $global:StandIn.Answers = @{}
    $global:StandIn.Faults = @{}
    $global:StandIn.Calls = [System.Collections.Generic.List[string]]::new()
}

# Defines the stand-ins in a module, as the real ones are. Those made of functions, like
# the task scheduler's, do not see the $ErrorActionPreference of the script that calls
# them; compiled ones do.
function Import-StandIn([string[]]$Name) {
    $text = foreach ($one in $Name) {
        $syntax = Get-Syntax $one
        if (-not $syntax) {
            throw "Nothing tells the parameters of $one."
        }
        Format-SyntaxFunction $syntax 'Invoke-StandIn $PSCmdlet $PSBoundParameters'
    }
    $body = {
        function Invoke-StandIn($Cmdlet, $Bound) {
            $name = $Cmdlet.MyInvocation.MyCommand.Name
            $words = @($Bound.Keys | Where-Object { $_ -ne 'ErrorAction' } | Sort-Object | ForEach-Object { "-$_ $($Bound[$_])" })
            $global:StandIn.Calls.Add((@($name) + $words) -join ' ')
            try {
                if ([int]$global:StandIn.Faults[$name] -gt 0) {
                    $global:StandIn.Faults[$name] -= 1
                    throw "$name failed, as it was told to."
                }
                if ($global:StandIn.Answers.ContainsKey($name)) {
                    & $global:StandIn.Answers[$name] $Bound
                }
            } catch {
                $isFunction = $name -match '@FunctionNames@'
                if (-not $isFunction -and -not $Bound.ContainsKey('ErrorAction') -and [string]$Cmdlet.SessionState.PSVariable.GetValue('ErrorActionPreference') -eq 'Stop') {
                    $Cmdlet.ThrowTerminatingError($_)
                }
                $Cmdlet.WriteError($_)
            }
        }
    }
    $source = [scriptblock]::Create($body.ToString().Replace('@FunctionNames@', $FunctionNames) + "`n" + ($text -join "`n") + "`nExport-ModuleMember -Function *-*")
    New-Module -Name 'StandIns' -ScriptBlock $source | Import-Module -Global -DisableNameChecking -Force
}

# Calls a script as Packer and other scripts do, with `&`: what it wrote, its exit code
# and the error that ended it, if one did. Errors that end nothing are not shown.
function Invoke-Script([string]$Path, [hashtable]$Parameters = @{}) {
    $global:LASTEXITCODE = 0
    $thrown = ''
    $output = try {
        & $Path @Parameters 2>$null 3>&1 6>&1
    } catch {
        $thrown = $_.Exception.Message
    }
    return @{ Output = (@($output) -join "`n"); Thrown = $thrown; ExitCode = $global:LASTEXITCODE }
}

# The user is an administrator, on systems that have no such users too.
class AdministratorIdentity {
    [object] $User = @{ Value = 'S-1-5-21-1-2-3-1001' }
    static [object] GetCurrent() { return [AdministratorIdentity]::new() }
}
class AdministratorPrincipal {
    AdministratorPrincipal([object]$Identity) { }
    [bool] IsInRole([object]$Role) { return $true }
}
function Enter-AdministratorRole {
    $accelerators = [psobject].Assembly.GetType('System.Management.Automation.TypeAccelerators')
    $accelerators::Add('System.Security.Principal.WindowsIdentity', [AdministratorIdentity])
    $accelerators::Add('System.Security.Principal.WindowsPrincipal', [AdministratorPrincipal])
    # What a script before has used PowerShell finds without asking these again.
    [psobject].Assembly.GetType('System.Management.Automation.Language.TypeCache').GetField('s_cache', 'NonPublic, Static').GetValue($null).Clear()
}
function Exit-AdministratorRole {
    $accelerators = [psobject].Assembly.GetType('System.Management.Automation.TypeAccelerators')
    $accelerators::Remove('System.Security.Principal.WindowsIdentity') | Out-Null
    $accelerators::Remove('System.Security.Principal.WindowsPrincipal') | Out-Null
}
