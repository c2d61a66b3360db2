# Makes the image a runner: the runner's account, what it may touch, and the two tasks
# that begin when the VM starts. The files of the guest are in place already.
Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
. 'C:\runner-pool-build\common.ps1'

$account = 'runner'
$administrator = $env:RUNNER_IS_ADMINISTRATOR -eq 'true'

# Only the task knows this password, and Windows keeps it. It must not expire: Windows
# Server asks for a new one after 42 days.
$password = New-RandomPassword
$secure = ConvertTo-SecureString -String $password -AsPlainText -Force
New-LocalUser -Name $account -Password $secure -PasswordNeverExpires -UserMayNotChangePassword -Description 'Runs the jobs of GitHub Actions' | Out-Null
Add-LocalGroupMember -SID 'S-1-5-32-545' -Member $account -ErrorAction SilentlyContinue # Users
if ($administrator) {
    Add-LocalGroupMember -SID 'S-1-5-32-544' -Member $account # Administrators
} else {
    # Performance Log Users: the group of ordinary users that may log on as a batch
    # job, which a task without anyone logged on is.
    Add-LocalGroupMember -SID 'S-1-5-32-559' -Member $account
}
if (Get-LocalGroup -Name 'docker-users' -ErrorAction SilentlyContinue) {
    Add-LocalGroupMember -Group 'docker-users' -Member $account
}

# The runner writes its settings and its work beside its programs, and setup actions
# write into the tool cache. The guest's scripts it may only read.
foreach ($folder in 'C:\actions-runner', 'C:\hostedtoolcache') {
    Invoke-Program -Path 'icacls.exe' -Arguments $folder, '/grant', "${account}:(OI)(CI)M", '/T', '/C', '/Q'
}
Invoke-Program -Path 'icacls.exe' -Arguments 'C:\runner-pool-guest', '/inheritance:r', '/grant', '*S-1-5-18:(OI)(CI)F', '*S-1-5-32-544:(OI)(CI)F', '*S-1-5-32-545:(OI)(CI)RX'

# Tasks end after three days and run at low priority unless told otherwise. -ErrorAction
# on each: they are functions of a module, which do not see this script's
# $ErrorActionPreference.
$settings = New-ScheduledTaskSettingsSet -ExecutionTimeLimit ([TimeSpan]::Zero) -Priority 4 -AllowStartIfOnBatteries -DontStopIfGoingOnBatteries -ErrorAction Stop
$powershell = '-NoProfile -NonInteractive -ExecutionPolicy Bypass -File'

$level = 'Limited'
if ($administrator) { $level = 'Highest' }
$action = New-ScheduledTaskAction -Execute 'powershell.exe' -Argument "$powershell C:\runner-pool-guest\start-runner.ps1" -ErrorAction Stop
Register-ScheduledTask -TaskName 'runner-pool-guest' -Action $action -Settings $settings -User $account -Password $password -RunLevel $level -Force -ErrorAction Stop | Out-Null

$action = New-ScheduledTaskAction -Execute 'powershell.exe' -Argument "$powershell C:\runner-pool-guest\supervise.ps1" -ErrorAction Stop
$trigger = New-ScheduledTaskTrigger -AtStartup -ErrorAction Stop
$system = New-ScheduledTaskPrincipal -UserId 'SYSTEM' -LogonType ServiceAccount -RunLevel Highest -ErrorAction Stop
Register-ScheduledTask -TaskName 'runner-pool-supervise' -Action $action -Trigger $trigger -Settings $settings -Principal $system -Force -ErrorAction Stop | Out-Null
