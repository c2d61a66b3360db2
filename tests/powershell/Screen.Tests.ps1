Set-StrictMode -Version Latest

BeforeAll {
    $root = Split-Path -Path (Split-Path -Path $PSScriptRoot -Parent) -Parent
    . (Join-Path -Path $PSScriptRoot -ChildPath 'modules/Hyper-V/Record.ps1')
    $env:FAKE_HYPERV = Join-Path -Path $TestDrive -ChildPath 'host'
    New-Item -ItemType Directory -Path $env:FAKE_HYPERV | Out-Null
    [System.IO.File]::WriteAllText("$env:FAKE_HYPERV/host.json", '{}')
    Save-FakeRecord $env:FAKE_HYPERV (New-FakeRecord 'on' 'Running' '' '')
    Save-FakeRecord $env:FAKE_HYPERV (New-FakeRecord 'off' 'Off' '' '')
    Import-Module -Name (Join-Path -Path $PSScriptRoot -ChildPath 'modules/Hyper-V/Hyper-V.psd1') -DisableNameChecking
    $picture = Join-Path -Path $TestDrive -ChildPath 'screen.png'

    # Reads a PNG by what its standard says, checksums too, with Python's own zlib: size, type and pixels.
    $reader = Join-Path -Path $TestDrive -ChildPath 'read.py'
    Set-Content -LiteralPath $reader -Value @'
import struct, sys, zlib
data = open(sys.argv[1], "rb").read()
assert data[:8] == b"\x89PNG\r\n\x1a\n"
at, chunks = 8, {}
while at < len(data):
    size, kind = struct.unpack(">I4s", data[at:at + 8])
    body = data[at + 8:at + 8 + size]
    assert struct.unpack(">I", data[at + 8 + size:at + 12 + size])[0] == zlib.crc32(kind + body), kind
    chunks[kind], at = body, at + 12 + size
width, height, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
rows = zlib.decompress(chunks[b"IDAT"])
assert len(rows) == height * (1 + 3 * width) and list(chunks)[-1] == b"IEND"
row = lambda y: rows[y * (1 + 3 * width):(y + 1) * (1 + 3 * width)]
print(width, height, *rest, *("%s*%d" % (row(y)[1:4].hex(), row(y)[1:].count(row(y)[1:4])) for y in range(4)), row(0)[0])
'@
}

AfterAll {
    Remove-Module -Name Hyper-V
    $env:FAKE_HYPERV = ''
}

Describe 'screen.ps1' -Skip:([System.IO.Path]::DirectorySeparatorChar -eq '\') {
    It 'writes what a VM shows as a PNG' {
        & "$root/tests/hyperv/screen.ps1" -VMName 'on' -Path $picture
        & python3 $reader $picture | Should -Be '64 48 8 2 0 0 0 ff0000*64 00ff00*64 0000ff*64 ff0000*64 0'
    }

    It 'says that a VM that is off shows nothing' {
        { & "$root/tests/hyperv/screen.ps1" -VMName 'off' -Path $picture } | Should -Throw 'it shows nothing*'
    }
}
