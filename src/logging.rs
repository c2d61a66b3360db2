//! The log: one line a record, as text or JSON, to standard error or to files
//! that are rotated, so that a pool that nobody looks after never fills its disk.

use crate::config::LogFormat;
use crate::date;
use env_logger::{Builder, Target, WriteStyle};
use log::{LevelFilter, Record};
use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The log file's name in `LOG_DIR`. Older ones end in `.1` (the newest of them), `.2` and so on.
pub const FILE_NAME: &str = "hyperv-runner-pool.log";

/// A log file is rotated when it reaches this many bytes.
const FILE_BYTES: u64 = 10 * 1024 * 1024;

/// How many rotated files are kept.
const FILES_KEPT: u32 = 5;

/// Starts logging. Without a folder, to standard error.
///
/// # Errors
/// When the folder or the file in it cannot be made.
pub fn start(level: LevelFilter, format: LogFormat, dir: Option<&Path>) -> io::Result<()> {
    let mut builder = Builder::new();
    // Libraries (TLS, HTTP) tell much that concerns nobody but their authors.
    builder.filter_level(level.min(LevelFilter::Warn)).filter_module("hyperv_runner_pool", level);
    builder.write_style(WriteStyle::Never);
    builder.format(move |out, record| {
        let line = line(format, SystemTime::now(), record);
        out.write_all(line.as_bytes())
    });
    if let Some(dir) = dir {
        builder.target(Target::Pipe(Box::new(RotatingFile::open(dir, FILE_BYTES)?)));
    }
    builder.try_init().map_err(io::Error::other)
}

#[derive(Serialize)]
struct JsonRecord<'a> {
    time: String,
    level: &'a str,
    thread: &'a str,
    message: String,
}

fn line(format: LogFormat, time: SystemTime, record: &Record) -> String {
    let time = date::timestamp(time);
    let message = record.args().to_string();
    match format {
        LogFormat::Text => {
            let mut line = format!("{time} {:<5} ", record.level());
            // What comes from outside must not look like a line of its own.
            line.extend(message.chars().map(|c| if c.is_control() { ' ' } else { c }));
            line.push('\n');
            line
        }
        LogFormat::Json => {
            let thread = std::thread::current();
            let thread = thread.name().unwrap_or("");
            let record = JsonRecord { time, level: record.level().as_str(), thread, message };
            let mut line = serde_json::to_string(&record).unwrap_or_default();
            line.push('\n');
            line
        }
    }
}

/// A file that gives way to a new one when it is full.
#[derive(Debug)]
struct RotatingFile {
    path: PathBuf,
    file: File,
    written: u64,
    limit: u64,
}

impl RotatingFile {
    fn open(dir: &Path, limit: u64) -> io::Result<RotatingFile> {
        fs::create_dir_all(dir)?;
        let path = dir.join(FILE_NAME);
        let file = append(&path)?;
        let written = file.metadata()?.len();
        Ok(RotatingFile { path, file, written, limit })
    }

    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |number: u32| self.path.with_file_name(format!("{FILE_NAME}.{number}"));
        for number in (1..FILES_KEPT).rev() {
            // A gap in the row is no reason to stop.
            let _ = fs::rename(numbered(number), numbered(number + 1));
        }
        fs::rename(&self.path, numbered(1))?;
        self.file = append(&self.path)?;
        self.written = 0;
        Ok(())
    }
}

impl Write for RotatingFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // A file that cannot be rotated (somebody has it open) grows on, and is tried again at the next line.
        if self.written >= self.limit {
            let _ = self.rotate();
        }
        self.file.write_all(line)?;
        self.written += line.len() as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::Level;

    fn written(format: LogFormat, message: &str) -> String {
        let time = std::time::UNIX_EPOCH;
        line(format, time, &Record::builder().level(Level::Info).args(format_args!("{message}")).build())
    }

    #[test]
    fn a_message_with_a_line_break_stays_one_line() {
        assert_eq!(written(LogFormat::Text, "a\nb"), "1970-01-01T00:00:00.000Z INFO  a b\n");
        let json: serde_json::Value = serde_json::from_str(&written(LogFormat::Json, "a\n\"b\"")).unwrap();
        assert_eq!(json["message"], "a\n\"b\"");
        assert_eq!(json["level"], "INFO");
    }

    #[test]
    fn a_full_file_gives_way_and_only_so_many_are_kept() {
        let dir = std::env::temp_dir().join(format!("log-rotation-{}", std::process::id()));
        let mut log = RotatingFile::open(&dir, 10).unwrap();
        for i in 0..20 {
            log.write_all(format!("line {i:>5}\n").as_bytes()).unwrap();
        }
        let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|f| f.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names.len(), 1 + FILES_KEPT as usize, "{names:?}");
        assert_eq!(fs::read_to_string(dir.join(FILE_NAME)).unwrap(), "line    19\n");
        assert_eq!(fs::read_to_string(dir.join(format!("{FILE_NAME}.1"))).unwrap(), "line    18\n");
        fs::remove_dir_all(dir).unwrap();
    }
}
