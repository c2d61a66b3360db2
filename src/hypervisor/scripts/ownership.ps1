# Which VM of the host a request is about. Dot-sourced by destroy-vm.ps1 and examine-vm.ps1.
# Runs under Windows PowerShell 5.1 and PowerShell 7.

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

function Get-NormalPath($Path) {
    return ([string]$Path).Replace('/', '\').TrimEnd('\')
}

# Ordinal, as Windows compares names: -eq would take more for the same.
function Test-SamePath($One, $Other) {
    return [string]::Equals((Get-NormalPath $One), (Get-NormalPath $Other), [System.StringComparison]::OrdinalIgnoreCase)
}

# Whose mark these Notes are: 'ours' (this pool, this incarnation), 'other'
# (another pool's or incarnation's), or 'none'.
function Get-MarkOwner($Notes, $Request) {
    try {
        $mark = ConvertFrom-Json -InputObject ([string]$Notes)
        if ($null -eq $mark) {
            return 'none'
        }
        if ($mark.pool -isnot [string] -or $mark.incarnation -isnot [string]) {
            return 'none'
        }
        if ((Test-SamePath $mark.pool $Request.pool) -and $mark.incarnation -ceq $Request.incarnation) {
            return 'ours'
        }
        return 'other'
    } catch {
        # No JSON, or JSON without these two: somebody's own words.
        return 'none'
    }
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
# to bear a mark. No other, whatever it is called. The pool decides the same
# way, by owned_by in identity.rs; tests/data/ownership.json holds both to it.
function Test-PoolVM($Vm, $Request) {
    $owner = Get-MarkOwner $Vm.Notes $Request
    if ($owner -ne 'none') {
        return ($owner -eq 'ours')
    }
    $file = [string]"\$($Request.name)-$($Request.incarnation).vhdx"
    $disks = @(Get-DiskPath $Vm | Where-Object {
        (Test-SamePath $_ $Request.diskPath) -and
        (Get-NormalPath $_).EndsWith($file, [System.StringComparison]::Ordinal)
    })
    return ($Vm.Name -ceq $Request.name -and $disks.Count -gt 0)
}
