# The host's VMs, and which of them a request is about. Dot-sourced by create-vm.ps1, destroy-vm.ps1,
# examine-vm.ps1, list-vms.ps1 and template-access.ps1.
# Runs under Windows PowerShell 5.1 and PowerShell 7.

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

# Of a VM that vanishes meanwhile Get-VM can say that it is not found.
function Get-EveryVM {
    try {
        return @(Get-VM)
    } catch {
        return @(Get-VM)
    }
}

function Get-NormalPath($Path) {
    return ([string]$Path).Replace('/', '\').TrimEnd('\')
}

# Ordinal, as Windows compares names: -eq would take more for the same.
function Test-SamePath($One, $Other) {
    return [string]::Equals((Get-NormalPath $One), (Get-NormalPath $Other), [System.StringComparison]::OrdinalIgnoreCase)
}

# The mark of a pool in Notes; nothing if they hold none: no JSON, or somebody's own words.
function Read-Mark($Notes) {
    try {
        $mark = ConvertFrom-Json -InputObject ([string]$Notes)
        if ($null -ne $mark -and $mark.pool -is [string] -and $mark.incarnation -is [string]) {
            return $mark
        }
    } catch {
        return $null
    }
    return $null
}

# The incarnation of a failed VM of this pool that is kept for inspection; of any other nothing.
function Get-KeptIncarnation($Vm, $Request) {
    $mark = Read-Mark $Vm.Notes
    if ($null -ne $mark -and @($mark.PSObject.Properties.Name) -contains 'kept' -and $mark.kept -is [bool] -and $mark.kept -and (Test-SamePath $mark.pool $Request.pool)) {
        return [string]$mark.incarnation
    }
    return ''
}

function Get-DiskPath($Vm) {
    try {
        return @($Vm.HardDrives | ForEach-Object { [string]$_.Path })
    } catch {
        # The VM went away under our eyes.
        return @()
    }
}

# Ours is a VM with our mark, or one of our name on our disk that never came
# to bear a mark. No other, whatever it is called. A failed VM that is kept is
# its slot's no more, and answers to the name failed-<incarnation> alone. The pool decides the
# same way, by owned_by in identity.rs; tests/data/ownership.json holds both to it.
function Test-PoolVM($Vm, $Request) {
    $mark = Read-Mark $Vm.Notes
    if ($null -ne $mark) {
        $isKept = (Get-KeptIncarnation $Vm $Request) -ne ''
        return ((Test-SamePath $mark.pool $Request.pool) -and $mark.incarnation -ceq $Request.incarnation -and $isKept -eq ($Request.name -ceq "failed-$($mark.incarnation)"))
    }
    $file = [string]"\$($Request.name)-$($Request.incarnation).vhdx"
    $disks = @(Get-DiskPath $Vm | Where-Object {
        (Test-SamePath $_ $Request.diskPath) -and
        (Get-NormalPath $_).EndsWith($file, [System.StringComparison]::Ordinal)
    })
    return ($Vm.Name -ceq $Request.name -and $disks.Count -gt 0)
}
