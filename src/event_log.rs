//! Windows' event log, where administrators look first.
//!
//! <https://learn.microsoft.com/en-us/windows/win32/eventlog/event-logging>

use crate::registry;
use log::Level;
use windows_sys::Win32::System::EventLog::{
    DeregisterEventSource, EVENTLOG_ERROR_TYPE, EVENTLOG_WARNING_TYPE, RegisterEventSourceW, ReportEventW,
};

/// The source of the pool's events, which `service install` registers.
const SOURCE: &str = "hyperv-runner-pool";

/// An event's text may have 31,839 characters.
/// <https://learn.microsoft.com/en-us/windows/win32/api/winbase/nf-winbase-reporteventw>
const EVENT_UNITS: usize = 31_000;

/// Writes all of this text as a warning or, at [`Level::Error`], as an error. What cannot be written has
/// nowhere else to go.
pub(crate) fn write(level: Level, text: &str) {
    let kind = if level == Level::Error { EVENTLOG_ERROR_TYPE } else { EVENTLOG_WARNING_TYPE };
    let source = registry::wide(SOURCE);
    let mut text: Vec<u16> = text.encode_utf16().filter(|&unit| unit != 0).take(EVENT_UNITS).collect();
    text.push(0);
    // SAFETY: both texts end with NUL and outlive the calls; a handle that is null is not used.
    unsafe {
        let log = RegisterEventSourceW(std::ptr::null(), source.as_ptr());
        if !log.is_null() {
            let texts = [text.as_ptr()];
            let (no_user, no_data) = (std::ptr::null_mut(), std::ptr::null());
            ReportEventW(log, kind, 0, 1, no_user, 1, 0, texts.as_ptr(), no_data);
            DeregisterEventSource(log);
        }
    }
}
