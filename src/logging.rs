//! The log: one line per record, as text or JSON, to standard error or to rotated files.
//!
//! One thread writes it. Every other thread formats its line and puts it into
//! a bounded queue without ever waiting, so a reader that stalls (text selected
//! in a console, a pipe that nobody reads, a slow disk) cannot stop the pool.
//! Lines that find the queue full are dropped, and the log says how many.

use crate::config::LogFormat;
use crate::date;
use crossbeam_channel::{Receiver, Sender, bounded};
use log::{Level, LevelFilter, Log, Metadata, Record};
use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// The log file's name in `LOG_DIR`. Older files end in `.1` (the newest of them), `.2` and so on.
pub const FILE_NAME: &str = "hyperv-runner-pool.log";

/// A log file is rotated when it reaches this many bytes.
const FILE_BYTES: u64 = 10 * 1024 * 1024;

/// How many rotated files are kept.
const FILES_KEPT: u32 = 5;

/// How long a file that could not be rotated grows before the next try.
const ROTATION_RETRY: Duration = Duration::from_secs(60);

/// How many lines can wait to be written.
const QUEUE_LINES: usize = 8192;

/// How long a flush waits for a reader that stalls.
const FLUSH_PATIENCE: Duration = Duration::from_secs(2);

/// A queue that stays full reports its dropped lines this often.
const DROPS_TOLD_EVERY: Duration = Duration::from_secs(1);

/// Starts logging. Without a folder, to standard error.
///
/// Lines are written a moment after they are logged: keep the guard until the
/// end, and call `log::logger().flush()` before `std::process::exit`.
///
/// # Errors
/// One sentence for the user, when no log can be written in the folder, when
/// the thread that writes cannot be started, or when logging was started before.
pub fn start(level: LevelFilter, format: LogFormat, dir: Option<&Path>) -> Result<Guard, String> {
    let out: Box<dyn Write + Send> = match dir {
        Some(dir) => Box::new(RotatingFile::open(dir, FILE_BYTES).map_err(|err| unusable(dir, &err))?),
        None => Box::new(io::stderr()),
    };
    let logger = QueueLogger::start(level, format, out, QUEUE_LINES)
        .map_err(|err| format!("The thread that writes the log could not be started: {err}."))?;
    log::set_boxed_logger(Box::new(logger)).map_err(|err| format!("Logging could not be started: {err}."))?;
    log::set_max_level(level);
    Ok(Guard {
        #[cfg(windows)]
        _console: dir.is_none().then(console::QuickEditOff::new).flatten(),
    })
}

fn unusable(dir: &Path, err: &io::Error) -> String {
    let dir = dir.display();
    match err.kind() {
        ErrorKind::AlreadyExists | ErrorKind::NotADirectory => {
            format!("LOG_DIR: {dir} is not a folder, because a file is in the way; choose another path.")
        }
        ErrorKind::PermissionDenied => {
            format!(
                "LOG_DIR: no permission to write in {dir}; grant it to this account or choose another folder."
            )
        }
        _ => format!("LOG_DIR: no log can be written in {dir} ({err}); choose another folder."),
    }
}

/// Logging, while it lives. Dropping it waits up to two seconds for the lines that are still queued.
#[must_use]
#[derive(Debug)]
pub struct Guard {
    #[cfg(windows)]
    _console: Option<console::QuickEditOff>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        log::logger().flush();
    }
}

enum Entry {
    Line(String),
    /// Answered once everything before it is written.
    Flush(Sender<()>),
}

struct QueueLogger {
    filter: env_logger::Logger,
    format: LogFormat,
    queue: Sender<Entry>,
    dropped: Arc<AtomicU32>,
}

impl QueueLogger {
    fn start(
        level: LevelFilter,
        format: LogFormat,
        out: Box<dyn Write + Send>,
        capacity: usize,
    ) -> io::Result<QueueLogger> {
        // What libraries (TLS, HTTP) log below a warning interests only their authors.
        let filter = env_logger::Builder::new()
            .filter_level(level.min(LevelFilter::Warn))
            .filter_module("hyperv_runner_pool", level)
            .build();
        let (queue, entries) = bounded(capacity);
        let dropped = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&dropped);
        thread::Builder::new().name("log".into()).spawn(move || write(&entries, &counted, format, out))?;
        Ok(QueueLogger { filter, format, queue, dropped })
    }

    /// Waits until everything logged before is written. False if that took too long.
    fn flush_within(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let (done, written) = bounded(1);
        self.queue.send_deadline(Entry::Flush(done), deadline).is_ok()
            && written.recv_deadline(deadline).is_ok()
    }
}

impl Log for QueueLogger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record) {
        if self.filter.matches(record) {
            let line = line(self.format, SystemTime::now(), record);
            if self.queue.try_send(Entry::Line(line)).is_err() {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn flush(&self) {
        self.flush_within(FLUSH_PATIENCE);
    }
}

/// The thread that writes. Ends with the last sender.
fn write(entries: &Receiver<Entry>, dropped: &AtomicU32, format: LogFormat, mut out: Box<dyn Write + Send>) {
    let mut told: Option<Instant> = None;
    for entry in entries {
        // A line that cannot be written has nowhere else to go.
        if let Entry::Line(line) = &entry {
            let _ = out.write_all(line.as_bytes());
        }
        if entries.is_empty() || told.is_none_or(|at| at.elapsed() >= DROPS_TOLD_EVERY) {
            let lost = dropped.swap(0, Ordering::Relaxed);
            if lost > 0 {
                told = Some(Instant::now());
                let lines = if lost == 1 { "line was" } else { "lines were" };
                let text = format_args!("{lost} log {lines} dropped: whoever reads the log is too slow");
                let notice = Record::builder().level(Level::Warn).args(text).build();
                let _ = out.write_all(line(format, SystemTime::now(), &notice).as_bytes());
            }
        }
        if let Entry::Flush(done) = entry {
            let _ = out.flush();
            // Whoever asked may have given up.
            let _ = done.send(());
        }
    }
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
    let mut line = match format {
        // What comes from outside must not look like a line of its own.
        LogFormat::Text => format!("{time} {:<5} {message}", record.level()).replace(char::is_control, " "),
        LogFormat::Json => {
            let thread = thread::current();
            let thread = thread.name().unwrap_or("");
            let record = JsonRecord { time, level: record.level().as_str(), thread, message };
            serde_json::to_string(&record).unwrap_or_default()
        }
    };
    line.push('\n');
    line
}

/// A file that is renamed, and followed by a new one, when it is full.
#[derive(Debug)]
struct RotatingFile {
    path: PathBuf,
    file: File,
    written: u64,
    limit: u64,
    /// After a failed rotation: when to try again.
    retry_at: Option<Instant>,
}

impl RotatingFile {
    fn open(dir: &Path, limit: u64) -> io::Result<RotatingFile> {
        fs::create_dir_all(dir)?;
        let path = dir.join(FILE_NAME);
        let file = append(&path)?;
        let written = file.metadata()?.len();
        Ok(RotatingFile { path, file, written, limit, retry_at: None })
    }

    fn write_at(&mut self, now: Instant, line: &[u8]) -> io::Result<()> {
        if self.written >= self.limit && self.retry_at.is_none_or(|at| now >= at) {
            // On failure (somebody holds a file open) the present file grows.
            self.retry_at = self.rotate().err().map(|_| now + ROTATION_RETRY);
        }
        self.file.write_all(line)?;
        self.written += line.len() as u64;
        Ok(())
    }

    /// No step overwrites a file that has not moved on: the present file leaves
    /// first, as number 0, and the older ones make room from the oldest down.
    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |number: u32| self.path.with_file_name(format!("{FILE_NAME}.{number}"));
        // A number 0 is what a rotation left that did not get to its end.
        if !numbered(0).is_file() {
            fs::rename(&self.path, numbered(0))?;
        }
        self.file = append(&self.path)?;
        self.written = self.file.metadata()?.len();
        for number in (0..FILES_KEPT).rev() {
            match fs::rename(numbered(number), numbered(number + 1)) {
                Err(err) if err.kind() != ErrorKind::NotFound => return Err(err),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Write for RotatingFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_at(Instant::now(), line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

#[cfg(windows)]
mod console {
    use std::fs::{File, OpenOptions};
    use std::os::windows::io::AsRawHandle;
    use windows_sys::Win32::System::Console::{
        CONSOLE_MODE, ENABLE_EXTENDED_FLAGS, ENABLE_QUICK_EDIT_MODE, GetConsoleMode, SetConsoleMode,
    };

    /// While it lives, a click into the console's window selects no text: a
    /// selection stops all output. The mode belongs to the window, so it is set back at the end.
    /// <https://learn.microsoft.com/windows/console/setconsolemode>
    #[derive(Debug)]
    pub(super) struct QuickEditOff {
        input: File,
        before: CONSOLE_MODE,
    }

    impl QuickEditOff {
        /// Nothing where no console is attached.
        pub(super) fn new() -> Option<QuickEditOff> {
            // By this name the console is found even if standard input is redirected.
            let input = OpenOptions::new().read(true).write(true).open("CONIN$").ok()?;
            let mut before = 0;
            // SAFETY: `input` is open and `before` can be written, both for the whole call.
            if unsafe { GetConsoleMode(input.as_raw_handle(), &mut before) } == 0 {
                return None;
            }
            let console = QuickEditOff { input, before };
            console.set(before & !ENABLE_QUICK_EDIT_MODE);
            Some(console)
        }

        fn set(&self, mode: CONSOLE_MODE) {
            // SAFETY: `self.input` is open for the whole call, which takes no pointer.
            unsafe { SetConsoleMode(self.input.as_raw_handle(), mode | ENABLE_EXTENDED_FLAGS) };
        }
    }

    impl Drop for QuickEditOff {
        fn drop(&mut self) {
            self.set(self.before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(format: LogFormat, message: &str) -> String {
        let time = std::time::UNIX_EPOCH;
        line(format, time, &Record::builder().level(Level::Info).args(format_args!("{message}")).build())
    }

    #[test]
    fn a_message_with_a_line_break_stays_one_line() {
        assert_eq!(written(LogFormat::Text, "a\nb"), "1970-01-01T00:00:00.000Z INFO  a b\n");
        let json = written(LogFormat::Json, "a\n\"b\"");
        assert_eq!(json.matches('\n').count(), 1);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["time"], "1970-01-01T00:00:00.000Z");
        assert_eq!(json["level"], "INFO");
        assert_eq!(json["thread"], thread::current().name().unwrap());
        assert_eq!(json["message"], "a\n\"b\"");
    }

    /// A reader that passes each line on, and then stalls until the other end of `stalled` is dropped.
    struct Reader {
        stalled: Receiver<()>,
        lines: Sender<String>,
    }

    impl Write for Reader {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.lines.send(String::from_utf8(line.to_vec()).unwrap());
            let _ = self.stalled.recv();
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logger(capacity: usize) -> (QueueLogger, Sender<()>, Receiver<String>) {
        let (resume, stalled) = bounded(0);
        let (lines, read) = crossbeam_channel::unbounded();
        let reader = Box::new(Reader { stalled, lines });
        (QueueLogger::start(LevelFilter::Info, LogFormat::Text, reader, capacity).unwrap(), resume, read)
    }

    fn info(logger: &QueueLogger, target: &str, number: u32) {
        let text = format_args!("line {number}");
        logger.log(&Record::builder().level(Level::Info).target(target).args(text).build());
    }

    #[test]
    fn a_reader_that_stalls_stops_no_thread_and_is_told_what_was_dropped() {
        let (logger, resume, read) = logger(100);
        info(&logger, "hyperv_runner_pool", 0);
        let first = read.recv_timeout(Duration::from_secs(30)).expect("the first line is written");
        let (done, logged) = bounded(1);
        thread::spawn(move || {
            (1..=1000).for_each(|number| info(&logger, "hyperv_runner_pool", number));
            done.send(logger).unwrap();
        });
        let logger = logged.recv_timeout(Duration::from_secs(30)).expect("a thread waits for the reader");
        assert!(!logger.flush_within(Duration::from_millis(1)), "a flush must not wait forever either");

        drop(resume);
        assert!(logger.flush_within(Duration::from_secs(30)));
        let lines: Vec<_> = std::iter::once(first).chain(read.try_iter()).collect();
        assert_eq!(lines.len(), 102);
        assert!(lines[0].ends_with("INFO  line 0\n"));
        assert!(lines[1].ends_with("WARN  900 log lines were dropped: whoever reads the log is too slow\n"));
        assert!(lines[2].ends_with("INFO  line 1\n"));
        assert!(lines[101].ends_with("INFO  line 100\n"));
    }

    #[test]
    fn a_flush_waits_for_what_is_queued() {
        let (logger, resume, read) = logger(100);
        (0..50).for_each(|number| info(&logger, "hyperv_runner_pool::pool", number));
        info(&logger, "rustls", 50);
        drop(resume);
        assert!(logger.flush_within(Duration::from_secs(30)));
        assert_eq!(read.len(), 50, "all of the pool's lines, and no library's below a warning");
    }

    /// A folder of its own for a test, gone at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("logging-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Folder(path)
        }

        fn log(&self, ending: &str) -> PathBuf {
            self.0.join(format!("{FILE_NAME}{ending}"))
        }

        fn read(&self, ending: &str) -> String {
            fs::read_to_string(self.log(ending)).unwrap()
        }

        /// A file that somebody holds open without delete sharing can be
        /// neither renamed nor replaced; nor can a file be renamed to a folder.
        fn block(&self, ending: &str) {
            fs::create_dir_all(self.log(ending).join("in the way")).unwrap();
        }

        fn unblock(&self, ending: &str) {
            fs::remove_dir_all(self.log(ending)).unwrap();
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    /// A log of which every line fills a file.
    fn full_after_a_line(folder: &Folder) -> RotatingFile {
        RotatingFile::open(&folder.0, 1).unwrap()
    }

    #[test]
    fn a_full_file_is_followed_by_a_new_one_and_five_old_ones_are_kept() {
        let folder = Folder::new("rotation");
        let mut log = full_after_a_line(&folder);
        for number in 0..20 {
            log.write_all(format!("{number}").as_bytes()).unwrap();
        }
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1 + FILES_KEPT as usize);
        assert_eq!(folder.read(""), "19");
        assert_eq!(folder.read(".1"), "18");
        assert_eq!(folder.read(".5"), "14");
    }

    #[test]
    fn a_file_that_cannot_be_renamed_grows_costs_no_older_one_and_is_tried_again_a_minute_later() {
        let folder = Folder::new("held");
        let now = Instant::now();
        let mut log = full_after_a_line(&folder);
        for line in ["a", "b", "c"] {
            log.write_at(now, line.as_bytes()).unwrap();
        }
        folder.block(".0");
        for line in ["d", "e", "f"] {
            log.write_at(now, line.as_bytes()).unwrap();
        }
        folder.unblock(".0");
        log.write_at(now + ROTATION_RETRY - Duration::from_millis(1), b"g").unwrap();
        assert_eq!(
            (folder.read(""), folder.read(".1"), folder.read(".2")),
            ("cdefg".into(), "b".into(), "a".into())
        );

        log.write_at(now + ROTATION_RETRY, b"h").unwrap();
        assert_eq!(
            (folder.read(""), folder.read(".1"), folder.read(".2")),
            ("h".into(), "cdefg".into(), "b".into())
        );
    }

    #[test]
    fn an_older_file_that_is_held_open_is_never_replaced_by_a_newer_one() {
        let folder = Folder::new("older-held");
        let now = Instant::now();
        let mut log = full_after_a_line(&folder);
        for line in ["a", "b", "c", "d", "e"] {
            log.write_at(now, line.as_bytes()).unwrap();
        }
        folder.block(".5");
        for line in ["f", "g"] {
            log.write_at(now, line.as_bytes()).unwrap();
        }
        let older = |endings: [&str; 4]| endings.map(|ending| folder.read(ending)).concat();
        assert_eq!(older([".1", ".2", ".3", ".4"]), "dcba");
        assert_eq!((folder.read(""), folder.read(".0")), ("fg".into(), "e".into()));

        folder.unblock(".5");
        log.write_at(now + ROTATION_RETRY, b"h").unwrap();
        assert_eq!(older([".1", ".2", ".3", ".4"]), "edcb");
        log.write_at(now + ROTATION_RETRY, b"i").unwrap();
        assert_eq!(
            (folder.read(""), folder.read(".1"), folder.read(".5")),
            ("i".into(), "fgh".into(), "b".into())
        );
    }

    #[test]
    fn an_unusable_folder_is_an_error_that_says_how_to_fix_it() {
        let folder = Folder::new("unusable");
        let file = folder.log("");
        fs::write(&file, "").unwrap();
        for dir in [file.clone(), file.join("logs")] {
            let why = unusable(&dir, &RotatingFile::open(&dir, 1).unwrap_err());
            let dir = dir.display();
            assert_eq!(
                why,
                format!("LOG_DIR: {dir} is not a folder, because a file is in the way; choose another path.")
            );
        }
    }
}
