# What template-access.ps1 writes into the template's access list.
Set-StrictMode -Version Latest

BeforeAll {
    . (Join-Path -Path $PSScriptRoot -ChildPath '../../src/hypervisor/scripts/template-access.ps1')

    function Get-Acl {
        param([string]$LiteralPath)
        $LiteralPath | Should -Be 'template.vhdx'
        $list = [pscustomobject]@{ Text = $script:text }
        $list | Add-Member -MemberType ScriptMethod -Name 'GetSecurityDescriptorSddlForm' -Value {
            $args | Should -Be 'Access'
            $this.Text
        }
        $list | Add-Member -MemberType ScriptMethod -Name 'SetSecurityDescriptorSddlForm' -Value {
            $args[1] | Should -Be 'Access'
            $this.Text = $args[0]
        }
        return $list
    }
    function Set-Acl {
        param([string]$LiteralPath, $AclObject)
        $LiteralPath | Should -Be 'template.vhdx'
        $script:text = $AclObject.Text
    }
    function Get-VM { [pscustomobject]@{ Id = [guid]'d9e0eb0a-5b37-508e-9173-67e9ade83acf' } }

    # From an event of Hyper-V's worker process that names both the VM's id and its account.
    $live = '(A;;FR;;;S-1-5-83-1-3655396106-1351506743-3915871121-3476744365)'
    $gone = -join (1..16 | ForEach-Object { "(A;;FR;;;S-1-5-83-1-1-2-3-$_)" })
}

Describe 'the entries of VMs in the template''s access list' {
    It 'are removed of VMs that are gone, and in their place all VMs may read' {
        $script:text = "D:PAI(A;;FA;;;SY)$live$gone(A;ID;FA;;;BA)"
        Clear-TemplateAccess 'template.vhdx'
        $script:text | Should -BeExactly "D:PAI(A;;FA;;;SY)$live(A;;FR;;;S-1-5-83-0)(A;ID;FA;;;BA)"
    }

    It 'are removed again, however much the VMs may do, and the group stays as it is' {
        $script:text = "D:AI(A;;FR;;;S-1-5-83-0)$($gone.Replace('FR', '0x1200a9'))$live"
        Clear-TemplateAccess 'template.vhdx'
        $script:text | Should -BeExactly "D:AI(A;;FR;;;S-1-5-83-0)$live"
    }

    It 'are removed from a list that is full' {
        $script:text = "D:AI$(-join (1..1999 | ForEach-Object { "(A;;FR;;;S-1-5-83-1-1-2-3-$_)" }))"
        Clear-TemplateAccess 'template.vhdx'
        $script:text | Should -BeExactly 'D:AI(A;;FR;;;S-1-5-83-0)'
    }

    It 'stay: <Name>' -ForEach @(
        @{ Name = 'fewer than 16 of VMs that are gone'; Text = '(A;;FR;;;S-1-5-83-1-1-2-3-16)'; With = '' }
        @{ Name = 'those that deny'; Text = '(A;;'; With = '(D;;' }
        @{ Name = 'inherited ones'; Text = '(A;;'; With = '(A;ID;' }
        @{ Name = 'other accounts'; Text = '-83-1-'; With = '-80-1-' }
    ) {
        $script:text = "D:AI$live$($gone.Replace($Text, $With))"
        $before = $script:text
        Clear-TemplateAccess 'template.vhdx'
        $script:text | Should -BeExactly $before
    }

    It 'stay if they only look like a VM, or let worker processes as such read' {
        $others = '(A;;FR;;;S-1-5-83-1-3166535780-1122986932-343720105-43916321)(A;;FR;;;S-1-15-3-1024-2268835264-3721307629-241982045-173645152-1490879176-104643441-2915960892-1612460704)'
        $script:text = "D:AI$others$gone"
        Clear-TemplateAccess 'template.vhdx'
        $script:text | Should -BeExactly "D:AI$others(A;;FR;;;S-1-5-83-0)"
    }
}
