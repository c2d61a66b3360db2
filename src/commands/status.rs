//! `status`: the running pool as a table.

use super::client::Client;
use super::{Done, Given, JSON, WATCH, print};
use crate::text::{one_line, time};
use serde_json::Value;
use std::fmt::Write;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

const WATCH_EVERY: Duration = Duration::from_secs(2);

/// How many of the VMs that failed last are shown.
const FAILURES_SHOWN: usize = 5;

/// How many characters of a text from outside are shown.
const MOST: usize = 300;

pub(super) fn perform(given: &Given) -> Done {
    let escapes = terminal_takes_escapes();
    let colors = escapes && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let watch = given.has(&WATCH);
    loop {
        let pool = Client::find()?;
        let text = if given.has(&JSON) {
            pool.status_text()? + "\n"
        } else {
            table(&pool.status()?, pool.url(), colors)
        };
        // The cursor goes home, and what is below goes.
        let over = if watch && escapes { "\x1b[H\x1b[J" } else { "" };
        let printed = print(&format!("{over}{text}"));
        if !watch || printed != ExitCode::SUCCESS {
            return Ok(printed);
        }
        thread::sleep(WATCH_EVERY);
    }
}

/// Whether standard output is a terminal that understands escape sequences.
fn terminal_takes_escapes() -> bool {
    io::stdout().is_terminal()
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
        && takes_escapes()
}

#[cfg(not(windows))]
fn takes_escapes() -> bool {
    true
}

/// A console of Windows takes them once it is told.
/// <https://learn.microsoft.com/en-us/windows/console/console-virtual-terminal-sequences>
#[cfg(windows)]
fn takes_escapes() -> bool {
    use windows_sys::Win32::System::Console::{
        ENABLE_VIRTUAL_TERMINAL_PROCESSING, GetConsoleMode, GetStdHandle, STD_OUTPUT_HANDLE, SetConsoleMode,
    };
    let mut mode = 0;
    // SAFETY: `mode` outlives the calls, which fail for a handle that is no console's.
    unsafe {
        let output = GetStdHandle(STD_OUTPUT_HANDLE);
        GetConsoleMode(output, &raw mut mode) != 0
            && SetConsoleMode(output, mode | ENABLE_VIRTUAL_TERMINAL_PROCESSING) != 0
    }
}

const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const BLUE: &str = "34";

/// The table of a pool's `/api/status`.
fn table(status: &Value, url: &str, colors: bool) -> String {
    let paint = |text: String, color: &str| if colors { format!("\x1b[{color}m{text}\x1b[0m") } else { text };
    let name = status["status"].as_str().unwrap_or("unknown");
    let color = match name {
        "healthy" => GREEN,
        "degraded" => RED,
        _ => YELLOW,
    };
    let number = |key: &str| status[key].as_u64().unwrap_or(0);
    let mut out = format!(
        "{}: {} VMs, {} ready, {} running, POOL_SIZE {}, {} jobs waiting ({url})\n",
        paint(name.into(), color),
        number("vms"),
        number("ready"),
        number("running"),
        number("size"),
        number("jobs_waiting")
    );
    out.extend(queue(&status["queue"]));
    let notes = [&status["reasons"], &status["image"]["warnings"]];
    let notes = notes.into_iter().flat_map(|notes| notes.as_array().into_iter().flatten());
    for note in notes.chain([&status["github_error"], &status["hypervisor_error"]]).filter_map(Value::as_str)
    {
        let _ = writeln!(out, "  {}", one_line(note, MOST));
    }
    let heads = ["SLOT", "VM", "STATE", "FOR", ""].map(String::from);
    let rows: Vec<_> = status["slots"].as_array().into_iter().flatten().map(row).collect();
    let width = |at: usize| rows.iter().chain([&heads]).map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths = [0, 1, 2, 3].map(width);
    for row in [&heads].into_iter().chain(&rows) {
        let [slot, vm, state, since, about] = row;
        let color = match state.as_str() {
            "ready" => GREEN,
            "running" => BLUE,
            "STATE" => "1",
            _ => YELLOW,
        };
        let state = paint(format!("{state:0$}", widths[2]), color);
        let line =
            format!("{slot:>0$}  {vm:1$}  {state}  {since:>2$}  {about}", widths[0], widths[1], widths[3]);
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{}", line.trim_end());
    }
    let of_vms = status["failures"].as_array().into_iter().flatten().filter_map(failed_vm);
    let failed: Vec<String> = of_vms.take(FAILURES_SHOWN).collect();
    if !failed.is_empty() {
        let _ = writeln!(out, "\n{}", paint("VMs that failed".into(), "1"));
    }
    for line in failed {
        let _ = writeln!(out, "  {line}");
    }
    out
}

/// A scale set's queue, where there is one: whether it is open, and GitHub's count of its jobs.
fn queue(queue: &Value) -> Option<String> {
    let text = |key: &str| Some(one_line(queue[key].as_str()?, MOST));
    let open = text("connected_since").map_or("not connected".into(), |at| format!("connected since {at}"));
    let message = text("last_message_at").map_or("no message yet".into(), |at| format!("last message {at}"));
    let jobs = |key: &str| queue[key].as_u64().unwrap_or(0);
    let (name, assigned, running) = (text("name")?, jobs("assigned"), jobs("running"));
    let error = text("error").map_or(String::new(), |error| format!("; its queue {error}"));
    Some(format!(
        "  scale set {name}: {open}, {message}, {assigned} jobs assigned, {running} running{error}\n"
    ))
}

/// A failure of a VM: when, which, why, and what was seen of it.
fn failed_vm(failure: &Value) -> Option<String> {
    let text = |key: &str| Some(one_line(failure[key].as_str()?, MOST));
    let mut line = format!("{} {} ({}): {}", text("at")?, text("vm")?, text("incarnation")?, text("reason")?);
    for (what, key) in
        [("its guest", "guest_stage"), ("its last error", "guest_error"), ("its screen", "picture")]
    {
        line.extend(text(key).map(|seen| format!("; {what}: {seen}")));
    }
    Some(line)
}

/// A slot: its number, its VM, its state, since when, and what is to be said of it.
fn row(slot: &Value) -> [String; 5] {
    let shown = |value: &Value| match value {
        Value::String(text) => Some(one_line(text, MOST)),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    // Whole seconds are all that the pool tells.
    let seconds = |value: &Value| value.as_i64().map(|seconds| time(seconds * 1000).replace(".0 s", " s"));
    let mut about = Vec::new();
    let job = &slot["job"];
    if !job.is_null() {
        let mut text = shown(&job["name"]).unwrap_or_else(|| "a job".into());
        text.extend(shown(&job["repository"]).map(|repository| format!(" of {repository}")));
        text.extend(shown(&job["run_id"]).map(|run| format!(", run {run}")));
        text.extend(seconds(&job["for_seconds"]).map(|time| format!(", for {time}")));
        about.push(text);
    }
    about.extend(shown(&slot["retiring"]).map(|why| format!("retires: {why}")));
    if slot["paused"] == true {
        about.push("paused by Hyper-V".into());
    }
    let serves = matches!(slot["state"].as_str(), Some("ready" | "running"));
    if let Some(reason) = shown(&slot["reason"]).filter(|_| !serves) {
        let failures = slot["failures"].as_u64().unwrap_or(0);
        about.push(if failures > 1 { format!("failed {failures} times: {reason}") } else { reason });
    }
    about.extend(shown(&slot["guest_error"]).map(|error| format!("its guest: {error}")));
    let text = |key: &str| shown(&slot[key]).unwrap_or_else(|| "-".into());
    let since = seconds(&slot["for_seconds"]).unwrap_or_default();
    [text("slot"), text("vm"), text("state"), since, about.join("; ")]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status() -> Value {
        json!({
            "status": "degraded", "vms": 2, "ready": 1, "running": 1, "size": 3, "jobs_waiting": 0,
            "reasons": ["GitHub refuses the token"], "github_error": "401 Bad credentials",
            "slots": [
                {"slot": 1, "vm": "runner-1", "state": "ready", "for_seconds": 90, "retiring": "the pool stops"},
                {"slot": 2, "vm": "runner-2", "state": "running", "for_seconds": 5, "failures": 0, "reason": null,
                 "job": {"name": "build\u{1b}[31m", "repository": "octo/app", "run_id": 4711, "for_seconds": 7500}},
                {"slot": 10, "vm": null, "state": "empty", "for_seconds": 12, "failures": 3, "reason": "no template"},
            ],
        })
    }

    #[test]
    fn each_slot_is_a_row_with_its_job_or_its_failure() {
        let shown = table(&status(), "http://127.0.0.1:8080", false);
        assert_eq!(
            shown,
            "degraded: 2 VMs, 1 ready, 1 running, POOL_SIZE 3, 0 jobs waiting (http://127.0.0.1:8080)
  GitHub refuses the token
  401 Bad credentials
SLOT  VM        STATE           FOR
   1  runner-1  ready    1 min 30 s  retires: the pool stops
   2  runner-2  running         5 s  build\u{fffd}[31m of octo/app, run 4711, for 2 h 5 min
  10  -         empty          12 s  failed 3 times: no template
"
        );
    }

    #[test]
    fn a_scale_sets_queue_is_one_line_with_its_error() {
        let line = |queue: Value| {
            let mut pool = status();
            pool["queue"] = queue;
            let shown = table(&pool, "u", false);
            let (head, _) = shown.split_once("SLOT").unwrap();
            head.lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
        };
        let told = ["  GitHub refuses the token", "  401 Bad credentials"];
        assert_eq!(line(Value::Null), told, "no line where there is no queue");
        let at = |second: u8| format!("2026-11-30T12:46:{second}.000Z");
        let open = json!({"name": "win", "connected_since": at(40), "last_message_at": at(41), "assigned": 3,
            "running": 2, "error": null});
        let shown = "  scale set win: connected since 2026-11-30T12:46:40.000Z, last message \
                     2026-11-30T12:46:41.000Z, 3 jobs assigned, 2 running";
        assert_eq!(line(open), [shown, told[0], told[1]]);
        let closed = json!({"name": "win", "connected_since": null, "last_message_at": null, "assigned": 0,
            "running": 0, "error": "cannot be read: no\nroute"});
        let shown = "  scale set win: not connected, no message yet, 0 jobs assigned, 0 running; its queue cannot \
                     be read: no route";
        assert_eq!(line(closed), [shown, told[0], told[1]]);
    }

    #[test]
    fn the_vms_that_failed_last_come_below_with_what_was_seen_of_them() {
        let failure = |incarnation| {
            json!({"at": "2026-11-30T12:46:40.000Z", "vm": "runner-1", "incarnation": incarnation, "reason": "did not boot",
                "guest_stage": "fetching", "guest_error": "no\nroute", "picture": "failed-vms/ab.png"})
        };
        let mut pool = status();
        pool["failures"] = vec![failure(Value::Null), failure("ab".into()), failure("ab".into())].into();
        let shown = table(&pool, "u", false);
        let (_, below) = shown.split_once("\nVMs that failed\n").unwrap();
        let line = "  2026-11-30T12:46:40.000Z runner-1 (ab): did not boot; its guest: fetching; its last error: no route; \
                    its screen: failed-vms/ab.png\n";
        assert_eq!(below, line.repeat(2));
    }

    #[test]
    fn colors_change_nothing_but_colors() {
        let mut colored = table(&status(), "u", true);
        assert!(colored.contains("\x1b[32mready"), "{colored}");
        for color in [RED, GREEN, YELLOW, BLUE, "1", "0"] {
            colored = colored.replace(&format!("\x1b[{color}m"), "");
        }
        assert_eq!(colored, table(&status(), "u", false));
    }
}
