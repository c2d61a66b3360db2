# The versions that the templates need, and the settings. README.md explains them.

packer {
  required_version = ">= 1.9.0"

  required_plugins {
    hyperv = {
      version = ">= 1.1.3"
      source  = "github.com/hashicorp/hyperv"
    }
  }
}

variable "windows" {
  description = "The Windows to install: server-2022, server-2025 or windows-11 (Enterprise)."
  type        = string
  default     = "server-2022"

  validation {
    condition     = contains(["server-2022", "server-2025", "windows-11"], var.windows)
    error_message = "The variable windows must be server-2022, server-2025 or windows-11."
  }
}

variable "iso_url" {
  description = "Another installation ISO: an address or a path. Empty: the evaluation ISO of the chosen Windows. Set iso_checksum with it."
  type        = string
  default     = ""
}

variable "iso_checksum" {
  description = "SHA-256 of the ISO as sha256:<64 hex digits> (Get-FileHash prints it). Empty: the one of the evaluation ISO."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^(sha256:[0-9a-fA-F]{64})?$", var.iso_checksum))
    error_message = "The variable iso_checksum must be sha256: and 64 hex digits."
  }
}

variable "image_name" {
  description = "The edition on the ISO, by name. `dism /Get-WimInfo /WimFile:D:\\sources\\install.wim` lists them. Empty: Standard with desktop, or Windows 11 Enterprise Evaluation."
  type        = string
  default     = ""
}

variable "locale" {
  description = "Language and region of Windows. The ISO must hold that language; default: English."
  type        = string
  default     = "en-US"
}

variable "time_zone" {
  description = "Time zone of Windows, as `tzutil /l` names it. GitHub's own runners use UTC."
  type        = string
  default     = "UTC"
}

variable "product_key" {
  description = "Product key of a licensed ISO that asks for one during the installation. Empty: none."
  type        = string
  default     = ""
  sensitive   = true

  validation {
    condition     = can(regex("^(([0-9A-Z]{5}-){4}[0-9A-Z]{5})?$", var.product_key))
    error_message = "The variable product_key must be five groups of five letters and digits, joined by hyphens."
  }
}

variable "switch_name" {
  description = "The Hyper-V switch of the VM during the build. It must lead to the internet. rebuild.ps1 gives that of the pool."
  type        = string
  default     = "Default Switch"
}

variable "build_address" {
  description = "IPv4 address of the VM during the build, with its prefix length: 172.30.1.254/23. Empty: from DHCP. rebuild.ps1 gives one where the switch has NAT and no DHCP."
  type        = string
  default     = ""

  validation {
    condition     = var.build_address == "" || can(cidrhost(var.build_address, 0))
    error_message = "The variable build_address must be like 172.30.1.254/23."
  }
}

variable "build_gateway" {
  description = "With build_address: the address of the host on the switch."
  type        = string
  default     = ""
}

variable "build_dns_servers" {
  description = "With build_address: addresses of DNS servers, separated by commas."
  type        = string
  default     = "1.1.1.1,8.8.8.8"
}

variable "build_cpus" {
  description = "Processors of the VM during the build."
  type        = number
  default     = 4
}

variable "build_memory_mb" {
  description = "Memory of the VM during the build, in MB."
  type        = number
  default     = 6144
}

variable "temp_path" {
  description = "Where the VM lives during the build. Empty: %TEMP%. The drive needs room for the whole disk of the image."
  type        = string
  default     = ""
}

variable "headless" {
  description = "Whether to build without opening the console of the VM."
  type        = bool
  default     = true
}

variable "install_updates" {
  description = "Whether to install Windows updates. Adds 30 to 90 minutes. rebuild.ps1 switches it on."
  type        = bool
  default     = false
}

variable "runner_version" {
  description = "Version of the GitHub Actions runner. GitHub refuses runners more than 30 days behind the newest."
  type        = string
  default     = "2.338.0"

  validation {
    condition     = can(regex("^\\d+\\.\\d+\\.\\d+$", var.runner_version))
    error_message = "The variable runner_version must be like 2.338.0, without a leading v."
  }
}

# As listed in https://github.com/actions/runner/releases for this version.
variable "runner_sha256" {
  description = "SHA-256 of actions-runner-win-x64-<runner_version>.zip, as its release notes list it. Change it together with runner_version."
  type        = string
  default     = "f48e0750a21812bca5f82de5f7f5aeae71abee647fab5a582f1742d07eba455f"

  validation {
    condition     = can(regex("^[0-9a-fA-F]{64}$", var.runner_sha256))
    error_message = "The variable runner_sha256 must have 64 hex digits."
  }
}

variable "runner_is_administrator" {
  description = "Whether jobs run as an administrator of their VM, as on GitHub's own runners, or as an ordinary user."
  type        = bool
  default     = true
}

locals {
  # Evaluation ISOs of https://www.microsoft.com/en-us/evalcenter (180 days for
  # Server, 90 for Windows 11). The SHA-256 of a newer one: Get-FileHash.
  windows = {
    "server-2022" = {
      iso_url      = "https://software-static.download.prss.microsoft.com/sg/download/888969d5-f34g-4e03-ac9d-1f9786c66749/SERVER_EVAL_x64FRE_en-us.iso"
      iso_checksum = "sha256:3e4fa6d8507b554856fc9ca6079cc402df11a8b79344871669f0251535255325"
      image_name   = "Windows Server 2022 SERVERSTANDARD"
    }
    "server-2025" = {
      iso_url      = "https://software-static.download.prss.microsoft.com/dbazure/998969d5-f34g-4e03-ac9d-1f9786c66749/26100.32230.260111-0550.lt_release_svc_refresh_SERVER_EVAL_x64FRE_en-us.iso"
      iso_checksum = "sha256:7b052573ba7894c9924e3e87ba732ccd354d18cb75a883efa9b900ea125bfd51"
      image_name   = "Windows Server 2025 SERVERSTANDARD"
    }
    "windows-11" = {
      iso_url      = "https://software-static.download.prss.microsoft.com/dbazure/888969d5-f34g-4e03-ac9d-1f9786c66749/26200.6584.250915-1905.25h2_ge_release_svc_refresh_CLIENTENTERPRISEEVAL_OEMRET_x64FRE_en-us.iso"
      iso_checksum = "sha256:a61adeab895ef5a4db436e0a7011c92a2ff17bb0357f58b13bbc4062e535e7b9"
      image_name   = "Windows 11 Enterprise Evaluation"
    }
  }

  # With a default, so that an unknown name gives one error: that of the variable's rule.
  evaluation = lookup(local.windows, var.windows, local.windows["server-2022"])

  iso_url      = var.iso_url != "" ? var.iso_url : local.evaluation.iso_url
  iso_checksum = var.iso_checksum != "" ? var.iso_checksum : local.evaluation.iso_checksum
  image_name   = var.image_name != "" ? var.image_name : local.evaluation.image_name
}
