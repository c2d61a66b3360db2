# How the pool calls a script: one JSON object on standard input, one line of JSON on
# standard output, and nobody there to answer a question. Dot-sourced by those that it runs.
# Runs under Windows PowerShell 5.1 and PowerShell 7.

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
$WarningPreference = 'SilentlyContinue'
$ConfirmPreference = 'None'

function Read-Request {
    # Not [Console]::In: Windows PowerShell decodes that with the OEM code page.
    $utf8 = [System.Text.UTF8Encoding]::new($false)
    $reader = [System.IO.StreamReader]::new([Console]::OpenStandardInput(), $utf8)
    $text = $reader.ReadToEnd()
    return (ConvertFrom-Json -InputObject $text)
}

function Write-Answer($Answer) {
    $line = (ConvertTo-Json -InputObject $Answer -Depth 5 -Compress) + "`n"
    $bytes = [System.Text.UTF8Encoding]::new($false).GetBytes($line)
    $stdout = [Console]::OpenStandardOutput()
    $stdout.Write($bytes, 0, $bytes.Length)
    $stdout.Flush()
}

function Get-OneLine($ErrorRecord) {
    return ([string]$ErrorRecord.Exception.Message -replace '\s+', ' ').Trim()
}
