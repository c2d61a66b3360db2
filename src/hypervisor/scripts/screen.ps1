# A VM's screen, as a PNG. Needs no .NET library for images. Dot-sourced by examine-vm.ps1.
# Runs under Windows PowerShell 5.1 and PowerShell 7.

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

. (Join-Path -Path $PSScriptRoot -ChildPath 'key-values.ps1')

# The checksum of PNG's chunks: https://www.w3.org/TR/png/#D-CRCAppendix
$CrcTable = [long[]]@(for ($n = 0; $n -lt 256; $n++) {
    $c = [long]$n
    for ($k = 0; $k -lt 8; $k++) {
        if ($c -band 1) { $c = 0xEDB88320L -bxor ($c -shr 1) } else { $c = $c -shr 1 }
    }
    $c
})

function Get-BigEndian([long]$Number) {
    return [byte[]]@(24, 16, 8, 0 | ForEach-Object { ($Number -shr $_) -band 255 })
}

function Write-Chunk([System.IO.Stream]$Stream, [string]$Type, [byte[]]$Data) {
    $body = [System.Text.Encoding]::ASCII.GetBytes($Type) + $Data
    $crc = 0xFFFFFFFFL
    foreach ($byte in $body) {
        $crc = $CrcTable[($crc -bxor $byte) -band 255] -bxor ($crc -shr 8)
    }
    foreach ($part in (Get-BigEndian $Data.Length), $body, (Get-BigEndian ($crc -bxor 0xFFFFFFFFL))) {
        $Stream.Write($part, 0, $part.Length)
    }
}

# The lines of a PNG, each after a 0 for "not filtered", from RGB 565: five bits of red, six of
# green and five of blue in two bytes, the lower first.
function ConvertFrom-Rgb565([byte[]]$Pixels, [int]$Width, [int]$Height) {
    $lines = [byte[]]::new($Height * (1 + 3 * $Width))
    $from = 0
    $to = 0
    for ($y = 0; $y -lt $Height; $y++) {
        $to++
        for ($x = 0; $x -lt $Width; $x++) {
            $low = $Pixels[$from]
            $high = $Pixels[$from + 1]
            $from += 2
            $lines[$to] = ($high -band 0xF8) -bor ($high -shr 5)
            $green = (($high -band 7) -shl 5) -bor (($low -band 0xE0) -shr 3)
            $lines[$to + 1] = $green -bor ($green -shr 6)
            $lines[$to + 2] = (($low -band 0x1F) -shl 3) -bor (($low -band 0x1F) -shr 2)
            $to += 3
        }
    }
    return , $lines
}

# As zlib writes it: two bytes, the deflated data, and the sum of https://www.rfc-editor.org/rfc/rfc1950
function Compress-Zlib([byte[]]$Data) {
    $stream = [System.IO.MemoryStream]::new()
    $stream.Write([byte[]]@(0x78, 0x9C), 0, 2)
    $deflate = [System.IO.Compression.DeflateStream]::new($stream, [System.IO.Compression.CompressionMode]::Compress, $true)
    $deflate.Write($Data, 0, $Data.Length)
    $deflate.Dispose()
    $a = 1L
    $b = 0L
    foreach ($byte in $Data) {
        $a += $byte
        if ($a -ge 65521) { $a -= 65521 }
        $b += $a
        if ($b -ge 65521) { $b -= 65521 }
    }
    $sum = Get-BigEndian ($b * 65536 + $a)
    $stream.Write($sum, 0, 4)
    return , $stream.ToArray()
}

# What the VM with this id shows at this moment, in the size that it shows it, as the bytes of a
# PNG. Also at its firmware's screen, and without anybody at the host's; of a running VM only.
# https://learn.microsoft.com/en-us/windows/win32/hyperv_v2/getvirtualsystemthumbnailimage-msvm-virtualsystemmanagementservice
function Get-ScreenPicture($Id) {
    $guid = ([string]$Id).ToUpperInvariant()
    $head = @(Get-HyperVInstance 'Msvm_VideoHead' "SystemName = '$guid'")
    if ($head.Count -eq 0) {
        throw 'it shows nothing, so it is off or has no display.'
    }
    $width = [uint16]$head[0].CurrentHorizontalResolution
    $height = [uint16]$head[0].CurrentVerticalResolution
    $setting = Get-HyperVInstance 'Msvm_VirtualSystemSettingData' "VirtualSystemIdentifier = '$guid' AND VirtualSystemType = 'Microsoft:Hyper-V:System:Realized'"
    $service = Get-HyperVInstance 'Msvm_VirtualSystemManagementService'
    $answer = Invoke-CimMethod -InputObject $service -MethodName GetVirtualSystemThumbnailImage -Arguments @{ TargetSystem = $setting; WidthPixels = $width; HeightPixels = $height }
    $pixels = [byte[]]@($answer.ImageData)
    if ($answer.ReturnValue -ne 0 -or $width -eq 0 -or $pixels.Length -lt 2 * $width * $height) {
        throw "Hyper-V gives no picture of it (GetVirtualSystemThumbnailImage returned $($answer.ReturnValue) and $($pixels.Length) bytes for $width x $height)."
    }
    $png = [System.IO.MemoryStream]::new()
    $png.Write([byte[]]@(0x89, 0x50, 0x4E, 0x47, 0x0D, 0x0A, 0x1A, 0x0A), 0, 8)
    # Eight bits each of red, green and blue.
    Write-Chunk $png 'IHDR' ((Get-BigEndian $width) + (Get-BigEndian $height) + [byte[]]@(8, 2, 0, 0, 0))
    Write-Chunk $png 'IDAT' (Compress-Zlib (ConvertFrom-Rgb565 $pixels $width $height))
    Write-Chunk $png 'IEND' ([byte[]]@())
    return , $png.ToArray()
}
