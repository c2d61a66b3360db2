Set-StrictMode -Version Latest

BeforeAll {
    . (Join-Path -Path $PSScriptRoot -ChildPath 'standins.ps1')

    # Puts a file below a folder, with the folders between.
    function Set-File([string]$Path, [string]$Text) {
        New-Item -ItemType Directory -Force -Path (Split-Path -Path $Path -Parent) | Out-Null
        [System.IO.File]::WriteAllText($Path, $Text)
    }
}

Describe 'release.ps1' {
    BeforeEach {
        $repository = Join-Path -Path $TestDrive -ChildPath ([guid]::NewGuid())
        $output = "$repository-dist"
        New-Item -ItemType Directory -Path "$repository/.github" | Out-Null
        Copy-Item -LiteralPath "$Root/.github/release.ps1" -Destination "$repository/.github/release.ps1"
        'README.md', 'LICENSE', 'CONTRIBUTING.md', 'SECURITY.md', '.env.example', 'bootstrap.ps1', 'start.ps1', 'docs/a.md', 'packer/scripts/b.ps1', 'tests/first-host.ps1' |
            ForEach-Object { Set-File "$repository/$_" $_ }
        Set-File "$repository/Cargo.toml" "[package]`nname = `"hyperv-runner-pool`"`nversion = `"1.2.3`"`n[dependencies]`nserde = `"1`"`n"
        Set-File "$repository/CHANGELOG.md" "# Changelog`n`n## [Unreleased]`n`nLater.`n`n## [1.2.3] - 2027-01-02`n`n### Added`n`n- A thing.`n`n## [1.2.2]`n`nOld.`n"
        Set-File "$repository/target/the.exe" 'MZ'
        & git -C $repository init --quiet
        & git -C $repository add README.md LICENSE CHANGELOG.md CONTRIBUTING.md SECURITY.md .env.example bootstrap.ps1 start.ps1 docs packer tests
        # It lies in packer/, but not in the repository.
        Set-File "$repository/packer/secrets.pkrvars.hcl" 'password'
        $release = @{ Binary = "$repository/target/the.exe"; Output = $output }
    }

    It 'archives the program and what the repository has for it, and nothing else' {
        (Invoke-Script "$repository/.github/release.ps1" $release).Thrown | Should -Be ''
        [System.IO.Compression.ZipFile]::ExtractToDirectory("$output/hyperv-runner-pool_1.2.3_windows_amd64.zip", "$repository-read")
        $found = @(Get-ChildItem -LiteralPath "$repository-read" -Recurse -File -Force | ForEach-Object { $_.FullName.Substring("$repository-read/".Length).Replace('\', '/') })
        $wanted = 'hyperv-runner-pool.exe', 'README.md', 'LICENSE', 'CHANGELOG.md', 'CONTRIBUTING.md', 'SECURITY.md', '.env.example', 'bootstrap.ps1', 'start.ps1', 'docs/a.md', 'packer/scripts/b.ps1', 'tests/first-host.ps1'
        @($found | Sort-Object) | Should -Be @($wanted | Sort-Object)
        Get-Content -LiteralPath "$repository-read/hyperv-runner-pool.exe" | Should -Be 'MZ'
        Test-Path -LiteralPath "$output/notes.md" | Should -Be $false
    }

    It 'writes the checksum of each file, also of those that were there' {
        Set-File "$output/sbom.cdx.json" '{}'
        (Invoke-Script "$repository/.github/release.ps1" $release).Thrown | Should -Be ''
        # Made anew, it is the same: its own checksum is not in it.
        (Invoke-Script "$repository/.github/release.ps1" $release).Thrown | Should -Be ''
        $lines = @([System.IO.File]::ReadAllText("$output/checksums.txt").TrimEnd("`n").Split("`n"))
        @($lines | ForEach-Object { $_.Substring(66) }) | Should -Be 'hyperv-runner-pool_1.2.3_windows_amd64.zip', 'sbom.cdx.json'
        foreach ($line in $lines) {
            $line.Substring(0, 64) | Should -Be (Get-FileHash -LiteralPath "$output/$($line.Substring(66))").Hash
        }
    }

    It 'writes the notes of the version that is tagged' {
        (Invoke-Script "$repository/.github/release.ps1" ($release + @{ Tag = 'v1.2.3' })).Thrown | Should -Be ''
        [System.IO.File]::ReadAllText("$output/notes.md") | Should -Be "### Added`n`n- A thing.`n"
    }

    It 'refuses the tag of another version' {
        $result = Invoke-Script "$repository/.github/release.ps1" ($release + @{ Tag = 'v1.2.4' })
        $result.Thrown | Should -BeLike '*The tag is v1.2.4, but Cargo.toml has version 1.2.3*'
        Test-Path -LiteralPath $output | Should -Be $false
    }

    It 'refuses a version of which the changelog tells nothing' {
        Set-File "$repository/CHANGELOG.md" "## [1.2.3]`n`n## [1.2.2]`n`nOld.`n"
        $result = Invoke-Script "$repository/.github/release.ps1" ($release + @{ Tag = 'v1.2.3' })
        $result.Thrown | Should -BeLike '*CHANGELOG.md has no section*1.2.3*'
    }

    It 'refuses to leave something out' {
        & git -C $repository rm --quiet --cached -r docs
        $result = Invoke-Script "$repository/.github/release.ps1" $release
        $result.Thrown | Should -BeLike '*docs is not in the repository*'
    }
}
