//! What tells this machine from all others.

/// The id that the system was given when it was installed, which clones of one
/// disk share, and the computer's name. Empty where it cannot be found out.
#[cfg(windows)]
pub(super) fn id_and_name() -> [String; 2] {
    [
        registry(r"SOFTWARE\Microsoft\Cryptography", "MachineGuid"),
        registry(r"SYSTEM\CurrentControlSet\Control\ComputerName\ActiveComputerName", "ComputerName"),
    ]
}

/// As on Windows: <https://www.freedesktop.org/software/systemd/man/latest/machine-id.html>
#[cfg(not(windows))]
pub(super) fn id_and_name() -> [String; 2] {
    ["/etc/machine-id", "/proc/sys/kernel/hostname"]
        .map(|file| std::fs::read_to_string(file).unwrap_or_default().trim().to_owned())
}

/// A text under `HKEY_LOCAL_MACHINE`; empty if it is not there.
///
/// <https://learn.microsoft.com/en-us/windows/win32/api/winreg/nf-winreg-reggetvaluew>
#[cfg(windows)]
fn registry(key: &str, value: &str) -> String {
    use windows_sys::Win32::System::Registry::{HKEY_LOCAL_MACHINE, RRF_RT_REG_SZ, RegGetValueW};

    let wide = |text: &str| text.encode_utf16().chain([0]).collect::<Vec<u16>>();
    let (key, value) = (wide(key), wide(value));
    // Far more than a GUID or a computer's name has.
    let mut text = [0_u16; 256];
    let mut bytes = size_of_val(&text) as u32;
    // SAFETY: both names end with NUL; `bytes` is the size of `text`, and no
    // more than that is written to it.
    let status = unsafe {
        RegGetValueW(
            HKEY_LOCAL_MACHINE,
            key.as_ptr(),
            value.as_ptr(),
            RRF_RT_REG_SZ,
            std::ptr::null_mut(),
            text.as_mut_ptr().cast(),
            &raw mut bytes,
        )
    };
    if status != 0 {
        return String::new();
    }
    let length = text.iter().position(|&unit| unit == 0).unwrap_or(text.len());
    String::from_utf16_lossy(&text[..length])
}
