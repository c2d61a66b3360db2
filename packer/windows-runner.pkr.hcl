# The minimal image: Git, Node.js, Python, .NET SDK, 7-Zip, PowerShell 7 and the
# runner, on a disk of 30 GB.
#
#   packer init .
#   packer build -only=hyperv-iso.windows-runner .

build {
  source "source.hyperv-iso.windows" {
    name             = "windows-runner"
    vm_name          = "windows-runner"
    disk_size        = 30720
    output_directory = "${path.root}/output-windows-runner"
  }

  provisioner "powershell" {
    elevated_user     = local.build_user
    elevated_password = local.build_password
    environment_vars  = local.script_environment
    scripts = [
      "${path.root}/scripts/prepare-windows.ps1",
      "${path.root}/scripts/update-windows.ps1",
    ]
  }

  provisioner "windows-restart" {
    restart_timeout = "60m"
  }

  # Once more: some updates are offered only after others.
  provisioner "powershell" {
    elevated_user     = local.build_user
    elevated_password = local.build_password
    environment_vars  = local.script_environment
    script            = "${path.root}/scripts/update-windows.ps1"
  }

  provisioner "windows-restart" {
    restart_timeout = "60m"
  }

  provisioner "file" {
    sources = [
      "${path.root}/scripts/common.ps1",
      "${path.root}/scripts/seal.ps1",
    ]
    destination = "C:/runner-pool-build/"
  }

  provisioner "file" {
    source      = "${path.root}/tools/minimal.json"
    destination = "C:/runner-pool-build/tools.json"
  }

  provisioner "file" {
    sources = [
      "${path.root}/guest/pool.ps1",
      "${path.root}/guest/start-runner.ps1",
      "${path.root}/guest/job-started.ps1",
      "${path.root}/guest/supervise.ps1",
    ]
    destination = "C:/runner-pool-guest/"
  }

  provisioner "powershell" {
    elevated_user     = local.build_user
    elevated_password = local.build_password
    environment_vars  = local.script_environment
    scripts = [
      "${path.root}/scripts/install-chocolatey.ps1",
      "${path.root}/scripts/install-tools.ps1",
      "${path.root}/scripts/install-runner.ps1",
    ]
  }

  provisioner "windows-restart" {
    restart_timeout = "30m"
  }

  # No restart from here on: install-guest.ps1 makes the image a runner, and a
  # runner without a pool powers off.
  provisioner "powershell" {
    elevated_user     = local.build_user
    elevated_password = local.build_password
    environment_vars  = concat(local.script_environment, ["FREE_GB_WANTED=8"])
    scripts = [
      "${path.root}/scripts/install-guest.ps1",
      "${path.root}/scripts/record-image.ps1",
      "${path.root}/scripts/clean-up.ps1",
      "${path.root}/scripts/check-image.ps1",
      "${path.root}/scripts/prepare-seal.ps1",
    ]
  }
}
