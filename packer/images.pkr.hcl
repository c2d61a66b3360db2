# The two images, and the steps that build them.
#
#   packer init .
#   packer build -only=hyperv-iso.windows-runner .
#   packer build -only=hyperv-iso.windows-runner-enhanced .

locals {
  # What differs between the images: the size of the disk, how much of it must be free
  # at the end, the list in tools/, and the scripts that only this image runs (those for
  # Windows features come before the first restart).
  images = {
    "windows-runner" = {
      disk_gb          = var.windows == "windows-11" ? 64 : 30 # Setup of Windows 11 wants 52
      free_gb          = 8
      tools            = "minimal.json"
      windows_features = []
      scripts          = []
    }
    "windows-runner-enhanced" = {
      disk_gb          = 75
      free_gb          = 14
      tools            = "enhanced.json"
      windows_features = ["install-containers.ps1"]
      scripts = [
        "install-build-tools.ps1",
        "install-tool-cache.ps1",
        "install-rust.ps1",
        "install-gcloud.ps1",
        "configure-java.ps1",
        "configure-databases.ps1",
      ]
    }
  }

  # An administrator that exists during the build only; seal.ps1 locks it.
  build_user = "packer"

  # Values reach the scripts as environment variables, never as script text.
  script_environment = [
    "INSTALL_UPDATES=${var.install_updates}",
    "RUNNER_VERSION=${var.runner_version}",
    "RUNNER_SHA256=${var.runner_sha256}",
    "RUNNER_IS_ADMINISTRATOR=${var.runner_is_administrator}",
    "BUILD_USER=${local.build_user}",
  ]

  # abspath: templatefile takes a relative path from this folder, not from where Packer
  # runs. The values go into XML.
  answer_file = templatefile("${abspath(path.root)}/autounattend.pkrtpl.xml", {
    for name, value in {
      image_name     = local.image_name
      locale         = var.locale
      time_zone      = var.time_zone
      build_user     = local.build_user
      build_password = local.build_password
      product_key    = var.product_key
    } : name => replace(replace(value, "&", "&amp;"), "<", "&lt;")
  })

  # The CD's files that differ from build to build. enable-winrm.ps1 takes its VM's address
  # from network.json; without it, DHCP gives one.
  answers = merge(
    { "autounattend.xml" = local.answer_file },
    var.build_address == "" ? {} : { "network.json" = jsonencode({
      address     = var.build_address
      gateway     = var.build_gateway
      dns_servers = split(",", var.build_dns_servers)
    }) },
  )
}

# A new one for each build, known to nobody afterwards. The prefix has the capital
# letter and the symbol that Windows' password policy requires.
local "build_password" {
  expression = "Build-${uuidv4()}"
  sensitive  = true
}

source "hyperv-iso" "windows" {
  iso_url      = local.iso_url
  iso_checksum = local.iso_checksum

  # Generation 2 has no floppy drive, so the answer file is on a CD. Packer makes it
  # with oscdimg (part of the Windows ADK), xorriso or mkisofs.
  cd_label   = "answers"
  cd_files   = ["${path.root}/scripts/enable-winrm.ps1"]
  cd_content = local.answers

  generation           = 2
  enable_secure_boot   = true
  secure_boot_template = "MicrosoftWindows" # Hyper-V's name: Packer takes any
  cpus                 = var.build_cpus
  memory               = var.build_memory_mb
  switch_name          = var.switch_name
  temp_path            = var.temp_path
  headless             = var.headless

  # For "Press any key to boot from CD", as long as the prompt may be shown.
  boot_wait    = "-1s"
  boot_command = ["a<wait>a<wait>a<wait>a<wait>a<wait>a<wait>a<wait>a<wait>a<wait>a"]

  communicator   = "winrm"
  winrm_username = local.build_user
  winrm_password = local.build_password
  winrm_use_ssl  = true
  winrm_insecure = true # the certificate is the VM's own
  winrm_timeout  = "2h"

  # Only the disk is wanted: <output_directory>/Virtual Hard Disks/<vm_name>.vhdx
  skip_export = true

  # seal.ps1 closes WinRM and powers off. It runs as a scheduled task, because it must
  # outlive the connection. If it fails, the VM stays on, and the build fails rather
  # than leave an unsealed image.
  shutdown_command = "schtasks.exe /run /tn runner-pool-seal"
  shutdown_timeout = "20m"
}

build {
  dynamic "source" {
    for_each = local.images
    iterator = image
    labels   = ["source.hyperv-iso.windows"]
    content {
      name             = image.key
      vm_name          = image.key
      disk_size        = image.value.disk_gb * 1024
      output_directory = "${path.root}/output-${image.key}"
    }
  }

  provisioner "powershell" {
    elevated_user     = local.build_user
    elevated_password = local.build_password
    environment_vars  = local.script_environment
    scripts = formatlist("${path.root}/scripts/%s", concat(
      ["prepare-windows.ps1"],
      local.images[source.name].windows_features,
      ["update-windows.ps1"],
    ))
  }

  provisioner "windows-restart" {
    restart_timeout = "60m"
  }

  # Again: some updates are offered only after others.
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
      "${path.root}/common.ps1",
      "${path.root}/scripts/seal.ps1",
    ]
    destination = "C:/runner-pool-build/"
  }

  provisioner "file" {
    source      = "${path.root}/tools/${local.images[source.name].tools}"
    destination = "C:/runner-pool-build/tools.json"
  }

  provisioner "file" {
    sources = [
      "${path.root}/guest/pool.ps1",
      "${path.root}/guest/listener.ps1",
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
    scripts = formatlist("${path.root}/scripts/%s", concat(
      ["install-chocolatey.ps1", "install-tools.ps1", "install-runner.ps1"],
      local.images[source.name].scripts,
    ))
  }

  provisioner "windows-restart" {
    restart_timeout = "30m"
  }

  # No restart from here on: install-guest.ps1 makes the image a runner, and a
  # runner without a pool powers off.
  provisioner "powershell" {
    elevated_user     = local.build_user
    elevated_password = local.build_password
    environment_vars  = concat(local.script_environment, ["FREE_GB_WANTED=${local.images[source.name].free_gb}"])
    scripts = [
      "${path.root}/scripts/install-guest.ps1",
      "${path.root}/scripts/record-image.ps1",
      "${path.root}/scripts/clean-up.ps1",
      "${path.root}/scripts/check-image.ps1",
      "${path.root}/scripts/prepare-seal.ps1",
    ]
  }
}
