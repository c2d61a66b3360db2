//! Values under `HKEY_LOCAL_MACHINE`.
//!
//! <https://learn.microsoft.com/en-us/windows/win32/api/winreg/>

use std::io;
use windows_sys::Win32::System::Registry::{
    HKEY_LOCAL_MACHINE, REG_DWORD, REG_EXPAND_SZ, REG_SZ, REG_VALUE_TYPE, RRF_RT_REG_SZ, RegDeleteTreeW,
    RegGetValueW, RegSetKeyValueW,
};

/// A text with the NUL that ends it in Windows' functions.
pub(crate) fn wide(text: &str) -> Vec<u16> {
    text.encode_utf16().chain([0]).collect()
}

/// A text, if it is there and readable.
pub(crate) fn text(key: &str, value: &str) -> Option<String> {
    let (key, value) = (wide(key), wide(value));
    // More than a path has.
    let mut text = vec![0_u16; 0x8000];
    let mut bytes = (2 * text.len()) as u32;
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
    let length = text.iter().position(|&unit| unit == 0).unwrap_or(text.len());
    (status == 0).then(|| String::from_utf16_lossy(&text[..length]))
}

/// Writes a text; makes the key if it is not there.
pub(crate) fn set_text(key: &str, value: &str, text: &str) -> io::Result<()> {
    set(key, value, REG_SZ, &utf16(text))
}

/// Writes a path with variables in it, which the reader resolves.
pub(crate) fn set_expandable(key: &str, value: &str, path: &str) -> io::Result<()> {
    set(key, value, REG_EXPAND_SZ, &utf16(path))
}

fn utf16(text: &str) -> Vec<u8> {
    wide(text).iter().flat_map(|unit| unit.to_le_bytes()).collect()
}

/// Writes a number; makes the key if it is not there.
pub(crate) fn set_number(key: &str, value: &str, number: u32) -> io::Result<()> {
    set(key, value, REG_DWORD, &number.to_le_bytes())
}

fn set(key: &str, value: &str, kind: REG_VALUE_TYPE, bytes: &[u8]) -> io::Result<()> {
    let (key, value) = (wide(key), wide(value));
    // SAFETY: both names end with NUL, and `bytes` can be read for the given length.
    let status = unsafe {
        RegSetKeyValueW(
            HKEY_LOCAL_MACHINE,
            key.as_ptr(),
            value.as_ptr(),
            kind,
            bytes.as_ptr().cast(),
            bytes.len() as u32,
        )
    };
    done(status)
}

/// Deletes a key with all that is in it.
pub(crate) fn delete(key: &str) -> io::Result<()> {
    let key = wide(key);
    // SAFETY: the name ends with NUL.
    done(unsafe { RegDeleteTreeW(HKEY_LOCAL_MACHINE, key.as_ptr()) })
}

fn done(status: u32) -> io::Result<()> {
    if status == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(status as i32)) }
}
