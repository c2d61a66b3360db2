# A simulated Hyper-V host whose VMs boot the image's own scripts and GitHub's own runner.
# Sourced after lib.sh.

# What a host's host.json needs at least.
plain_host='{ "service": "Running", "switches": ["Default Switch"],
  "addresses": [{ "adapter": "Default Switch", "alias": "vEthernet (Default Switch)", "ip": "127.0.0.1" }],
  "firewall": { "enabled": "False", "rules": [] } }'

# make_fake_host FOLDER HOST_JSON: makes the host in FOLDER/host, puts a `powershell` that works on
# it on the PATH, and sets $pwsh.
make_fake_host() {
  local folder="$1" root
  root="$(realpath "$ci/..")"
  pwsh="$("$tools/pwsh/install")"
  export FAKE_HYPERV="$folder/host"
  mkdir -p "$FAKE_HYPERV/vms" "$folder/bin"
  printf '%s' "$2" >"$FAKE_HYPERV/host.json"
  ln -s "$pwsh" "$folder/bin/pwsh"
  cat >"$folder/bin/powershell" <<SH
#!/bin/sh
for script; do :; done
exec '$pwsh' -NoProfile -NonInteractive -File '$root/tests/powershell/host.ps1' "\$script"
SH
  chmod +x "$folder/bin/powershell"
  export PATH="$folder/bin:$PATH"
}

# start_fake_vms FOLDER: from here on the host's VMs boot. Sets $vms, the process that sees to it.
start_fake_vms() {
  local folder="$1" root image="$1/image"
  root="$(realpath "$ci/..")"
  # What a VM has on its disk. The runner's programs bear their Windows names.
  mkdir -p "$image"
  cp -r "$root/packer/guest" "$image/runner-pool-guest"
  echo '{"runner_version": "2.336.0", "built": "2026-11-01", "windows_evaluation_end": null}' >"$image/runner-pool-guest/image.json"
  # Linux interrupts a process by a signal.
  printf '\nfunction Send-Interrupt { & kill -INT $args[1].Id }\n' >>"$image/runner-pool-guest/listener.ps1"
  tar -xJf "$tools/runner/runner.tar.xz" -C "$image"
  cat >"$image/actions-runner/bin/Runner.Listener.exe" <<SH
#!/bin/sh
disk="\$(realpath "\$(dirname "\$0")/../..")"
export DOTNET_ROOT='$(dirname "$pwsh")' DOTNET_SYSTEM_GLOBALIZATION_INVARIANT=1 RUNNER_ALLOW_RUNASROOT=1
export ACTIONS_RUNNER_HOOK_JOB_STARTED="\$disk/job-started.sh"
exec "\$disk/actions-runner/bin/Runner.Listener" "\$@"
SH
  cat >"$image/job-started.sh" <<SH
#!/bin/sh
disk="\$(realpath "\$(dirname "\$0")")"
exec '$pwsh' -NoProfile -NonInteractive -File '$root/tests/powershell/guest.ps1' -Id "\$(basename "\$disk")" -Disk "\$disk" -Task 'C:\\runner-pool-guest\\job-started.ps1'
SH
  chmod +x "$image/actions-runner/bin/Runner.Listener.exe" "$image/job-started.sh"
  cat >"$folder/bin/boot" <<SH
#!/bin/sh
trap 'kill -9 0' TERM
cp -r '$image' "\$2"
# A shell lets what it starts beside itself ignore interrupts, by which an idle listener is ended.
env --default-signal=INT '$pwsh' -NoProfile -NonInteractive -File '$root/tests/powershell/guest.ps1' -Id "\$1" -Disk "\$2" &
wait
SH
  chmod +x "$folder/bin/boot"
  node "$root/tests/fake-vms.mjs" "$FAKE_HYPERV" boot &
  vms=$!
}
