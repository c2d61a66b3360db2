//! What tells this machine from all others.

/// The id that the system was given when it was installed, which clones of one
/// disk share, and the computer's name. Empty where it cannot be found out.
#[cfg(windows)]
pub(super) fn id_and_name() -> [String; 2] {
    use crate::registry::text;
    [
        text(r"SOFTWARE\Microsoft\Cryptography", "MachineGuid"),
        text(r"SYSTEM\CurrentControlSet\Control\ComputerName\ActiveComputerName", "ComputerName"),
    ]
    .map(Option::unwrap_or_default)
}

/// As on Windows: <https://www.freedesktop.org/software/systemd/man/latest/machine-id.html>
#[cfg(not(windows))]
pub(super) fn id_and_name() -> [String; 2] {
    ["/etc/machine-id", "/proc/sys/kernel/hostname"]
        .map(|file| std::fs::read_to_string(file).unwrap_or_default().trim().to_owned())
}
