//! The log: one line per record, as text or JSON, to standard error or to a file for each day. A service's
//! warnings and errors also go to Windows' event log.
//!
//! One thread writes it. Every other thread formats its line and puts it into
//! a bounded queue without ever waiting, so a reader that stalls (text selected
//! in a console, a pipe that nobody reads, a slow disk) cannot stop the pool.
//! Lines that find the queue full are dropped, and the log says how many.

use crate::config::{LogConfig, LogFormat};
use crate::date;
use crate::repeats::Allowance;
use crossbeam_channel::{Receiver, Sender, bounded};
use log::kv::{self, Key, Value, VisitSource};
use log::{Level, LevelFilter, Log, Metadata, Record};
use serde::ser::{Serialize, SerializeMap, Serializer};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The log file's name in `LOG_DIR`. That of an earlier day has the day before its ending,
/// `hyperv-runner-pool.2026-01-31.log`, and a number where there is more than one.
pub const FILE_NAME: &str = "hyperv-runner-pool.log";

/// What the names of all log files begin and end with.
const NAME_PARTS: (&str, &str) = ("hyperv-runner-pool.", ".log");

/// A log file that has this many bytes is followed by another of the same day.
const FILE_BYTES: u64 = 10 * 1024 * 1024;

/// How many earlier files are kept at most, whatever their days.
const FILES_KEPT: usize = 100;

/// How long a file that could not be put aside grows before the next try.
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
pub fn start(config: &LogConfig) -> Result<Guard, String> {
    let dir = config.dir.as_deref();
    let out: Box<dyn Write + Send> = match dir {
        Some(dir) => {
            let files = DailyFiles::open(dir, FILE_BYTES, config.keep_days, SystemTime::now());
            Box::new(files.map_err(|err| unusable(dir, &err))?)
        }
        None => Box::new(io::stderr()),
    };
    #[cfg(windows)]
    let events = config.event_log.then_some(crate::event_log::write as WriteEvent);
    #[cfg(not(windows))]
    let events = None;
    let logger = QueueLogger::start(config.level, config.format, out, events, QUEUE_LINES)
        .map_err(|err| format!("The thread that writes the log could not be started: {err}."))?;
    log::set_boxed_logger(Box::new(logger)).map_err(|err| format!("Logging could not be started: {err}."))?;
    log::set_max_level(config.level);
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

/// Writes a warning or an error to the event log.
type WriteEvent = fn(Level, &str);

enum Entry {
    /// A line, and its level and message if it is for the event log too.
    Line(String, Option<(Level, String)>),
    /// Answered once everything before it is written.
    Flush(Sender<()>),
}

struct QueueLogger {
    filter: env_logger::Logger,
    format: LogFormat,
    queue: Sender<Entry>,
    dropped: Arc<AtomicU32>,
    has_events: bool,
}

impl QueueLogger {
    fn start(
        level: LevelFilter,
        format: LogFormat,
        out: Box<dyn Write + Send>,
        events: Option<WriteEvent>,
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
        let thread = thread::Builder::new().name("log".into());
        thread.spawn(move || write(&entries, &counted, format, out, events))?;
        Ok(QueueLogger { filter, format, queue, dropped, has_events: events.is_some() })
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
            let is_event = self.has_events && record.level() <= Level::Warn;
            let event = is_event.then(|| (record.level(), record.args().to_string()));
            if self.queue.try_send(Entry::Line(line, event)).is_err() {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn flush(&self) {
        self.flush_within(FLUSH_PATIENCE);
    }
}

/// The thread that writes. Ends with the last sender.
fn write(
    entries: &Receiver<Entry>,
    dropped: &AtomicU32,
    format: LogFormat,
    mut out: Box<dyn Write + Send>,
    events: Option<WriteEvent>,
) {
    let mut told: Option<Instant> = None;
    let started = Instant::now();
    let mut allowance = Allowance::new(0);
    for entry in entries {
        if let Entry::Line(line, event) = &entry {
            // A line that cannot be written has nowhere else to go.
            let _ = out.write_all(line.as_bytes());
            if let (Some(write_event), Some((level, message))) = (events, event) {
                match allowance.take(started.elapsed().as_millis() as i64) {
                    Some(0) => write_event(*level, message),
                    Some(withheld) => {
                        write_event(
                            *level,
                            &format!("{message} ({withheld} more before it are in the log only)"),
                        );
                    }
                    None => {}
                }
            }
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

/// A record as one JSON object: when, what, and the record's own fields.
struct JsonRecord<'a, 'b> {
    time: String,
    record: &'a Record<'b>,
}

impl Serialize for JsonRecord<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("time", &self.time)?;
        map.serialize_entry("level", self.record.level().as_str())?;
        map.serialize_entry("thread", thread::current().name().unwrap_or(""))?;
        map.serialize_entry("message", &self.record.args().to_string())?;
        // Writing to a String cannot fail.
        let _ = self.record.key_values().visit(&mut JsonFields(&mut map));
        map.end()
    }
}

struct JsonFields<'a, M>(&'a mut M);

impl<'kvs, M: SerializeMap> VisitSource<'kvs> for JsonFields<'_, M> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        let entry = match value.to_u64() {
            Some(number) => self.0.serialize_entry(key.as_str(), &number),
            None => self.0.serialize_entry(key.as_str(), &value.to_string()),
        };
        entry.map_err(|_| kv::Error::msg("a field cannot be written"))
    }
}

fn line(format: LogFormat, time: SystemTime, record: &Record) -> String {
    let time = date::timestamp(time);
    let mut line = match format {
        // What comes from outside must not look like a line of its own.
        LogFormat::Text => {
            format!("{time} {:<5} {}", record.level(), record.args()).replace(char::is_control, " ")
        }
        LogFormat::Json => serde_json::to_string(&JsonRecord { time, record }).unwrap_or_default(),
    };
    line.push('\n');
    line
}

/// A file for each day, of which the earlier ones are kept for a while. Days are those of UTC, as the
/// times in the log are.
#[derive(Debug)]
struct DailyFiles {
    dir: PathBuf,
    file: File,
    written: u64,
    /// The day of what was written.
    day: i64,
    limit: u64,
    keep_days: i64,
    /// After a file could not be put aside: when to try again.
    retry_at: Option<SystemTime>,
}

impl DailyFiles {
    fn open(dir: &Path, limit: u64, keep_days: u32, now: SystemTime) -> io::Result<DailyFiles> {
        fs::create_dir_all(dir)?;
        let file = append(&dir.join(FILE_NAME))?;
        let metadata = file.metadata()?;
        let last_written = if metadata.len() > 0 { metadata.modified().unwrap_or(now) } else { now };
        let (day, written) = (date::days_since_1970(last_written), metadata.len());
        let dir = dir.to_owned();
        let files =
            DailyFiles { dir, file, written, day, limit, keep_days: keep_days.into(), retry_at: None };
        files.remove_old(date::days_since_1970(now));
        Ok(files)
    }

    fn write_at(&mut self, now: SystemTime, line: &[u8]) -> io::Result<()> {
        let today = date::days_since_1970(now);
        let is_over = today != self.day || self.written >= self.limit;
        if is_over && self.retry_at.is_none_or(|at| now >= at) {
            // On failure (somebody holds the file open) it grows.
            self.retry_at = self.begin_next(today).err().map(|_| now + ROTATION_RETRY);
        }
        self.file.write_all(line)?;
        self.written += line.len() as u64;
        Ok(())
    }

    /// Puts the present file aside, under a name of its own, and begins the next.
    fn begin_next(&mut self, today: i64) -> io::Result<()> {
        if self.written > 0 {
            let path = self.dir.join(FILE_NAME);
            match fs::rename(&path, self.free_name()) {
                // One that is gone is put aside.
                Err(err) if err.kind() != ErrorKind::NotFound => return Err(err),
                _ => {}
            }
            fs::create_dir_all(&self.dir)?;
            self.file = append(&path)?;
            self.written = self.file.metadata()?.len();
        }
        self.day = today;
        self.remove_old(today);
        Ok(())
    }

    /// The name after that of the day's last file: never that of one that was removed, so that they
    /// stay in order.
    fn free_name(&self) -> PathBuf {
        let of_the_day = |((day, number), _)| (day == self.day).then_some(number);
        let number = self.earlier_files().into_iter().filter_map(of_the_day).max().unwrap_or(0) + 1;
        let seconds = u64::try_from(self.day * 86_400).unwrap_or(0);
        let time = date::timestamp(UNIX_EPOCH + Duration::from_secs(seconds));
        let (begin, end) = NAME_PARTS;
        let number = if number == 1 { String::new() } else { format!(".{number}") };
        self.dir.join(format!("{begin}{}{number}{end}", &time[..10]))
    }

    /// Removes the files of days long past, and the oldest of too many.
    fn remove_old(&self, today: i64) {
        let mut files = self.earlier_files();
        files.sort_unstable_by(|a, b| b.cmp(a));
        for (at, ((day, _), path)) in files.iter().enumerate() {
            if at >= FILES_KEPT || today - day > self.keep_days {
                // One that is held open is tried again with the next.
                let _ = fs::remove_file(path);
            }
        }
    }

    /// The files that were put aside, with day and number.
    fn earlier_files(&self) -> Vec<((i64, u32), PathBuf)> {
        let file = |entry: io::Result<fs::DirEntry>| {
            let entry = entry.ok().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))?;
            Some((day_and_number(entry.file_name().to_str()?)?, entry.path()))
        };
        fs::read_dir(&self.dir).map(|entries| entries.filter_map(file).collect()).unwrap_or_default()
    }
}

/// The day and the number in the name of an earlier file. `None` if it is no such name.
fn day_and_number(name: &str) -> Option<(i64, u32)> {
    let between = name.strip_prefix(NAME_PARTS.0)?.strip_suffix(NAME_PARTS.1)?;
    let (day, rest) = between.split_at_checked(10)?;
    let number = if rest.is_empty() { 1 } else { rest.strip_prefix('.')?.parse().ok()? };
    Some((date::parse_day(day)?, number))
}

impl Write for DailyFiles {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_at(SystemTime::now(), line)?;
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
    use std::sync::Mutex;

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

    #[test]
    fn what_a_record_is_about_is_in_fields_of_its_json() {
        let fields = [("slot", Value::from(3u32)), ("job", Value::from("a\nb"))];
        let record = Record::builder().args(format_args!("x")).key_values(&fields).build();
        let json: serde_json::Value =
            serde_json::from_str(&line(LogFormat::Json, UNIX_EPOCH, &record)).unwrap();
        assert_eq!((&json["slot"], &json["job"]), (&3.into(), &"a\nb".into()));
        assert_eq!(line(LogFormat::Text, UNIX_EPOCH, &record), "1970-01-01T00:00:00.000Z INFO  x\n");
    }

    #[test]
    fn warnings_and_errors_go_to_the_event_log_in_bounds() {
        static EVENTS: Mutex<Vec<(Level, String)>> = Mutex::new(Vec::new());
        fn event(level: Level, text: &str) {
            EVENTS.lock().unwrap().push((level, text.into()));
        }
        let out = Box::new(io::sink());
        let logger = QueueLogger::start(LevelFilter::Info, LogFormat::Text, out, Some(event), 1000).unwrap();
        let log = |level, text: &str| {
            let record = &mut Record::builder();
            logger
                .log(&record.target("hyperv_runner_pool").level(level).args(format_args!("{text}")).build());
        };
        log(Level::Error, "broken");
        (0..100).for_each(|number| {
            log(Level::Info, "all is well");
            log(Level::Warn, &number.to_string());
        });
        assert!(logger.flush_within(Duration::from_secs(30)));
        let events = EVENTS.lock().unwrap();
        assert_eq!(events[0], (Level::Error, "broken".into()));
        assert_eq!(events.last(), Some(&(Level::Warn, "18".into())));
        assert_eq!(events.len(), 20);
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
        let logger = QueueLogger::start(LevelFilter::Info, LogFormat::Text, reader, None, capacity).unwrap();
        (logger, resume, read)
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

        /// The file of which this is between the name's beginning and its ending.
        fn log(&self, between: &str) -> PathBuf {
            self.0.join(format!("hyperv-runner-pool{between}.log"))
        }

        fn read(&self, between: &str) -> String {
            fs::read_to_string(self.log(between)).unwrap()
        }

        /// What is between in each file's name, in order.
        fn files(&self) -> Vec<String> {
            let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
            let mut names: Vec<_> =
                fs::read_dir(&self.0).unwrap().map(|entry| name(entry.unwrap())).collect();
            names.sort();
            let between = |name: &str| {
                name.trim_start_matches("hyperv-runner-pool").trim_end_matches(".log").to_owned()
            };
            names.iter().map(|name| between(name)).collect()
        }

        /// A file that somebody holds open without delete sharing cannot be renamed; nor can a
        /// file be renamed to a folder.
        fn block(&self, between: &str) {
            fs::create_dir_all(self.log(between).join("in the way")).unwrap();
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    /// So many days after 2026-01-30, and seconds.
    fn day(days: u64, seconds: u64) -> SystemTime {
        let first = date::parse_day("2026-01-30").unwrap() as u64;
        UNIX_EPOCH + Duration::from_secs((first + days) * 86_400 + seconds)
    }

    fn open(folder: &Folder, limit: u64) -> DailyFiles {
        DailyFiles::open(&folder.0, limit, 14, day(0, 0)).unwrap()
    }

    #[test]
    fn each_day_has_a_file_and_those_of_the_last_days_are_kept() {
        let folder = Folder::new("days");
        fs::write(folder.0.join("hyperv-runner-pool.2026-notes.log"), "mine").unwrap();
        fs::write(folder.0.join("another.2020-01-01.log"), "mine").unwrap();
        let mut log = open(&folder, FILE_BYTES);
        for (days, line) in [(0, "a"), (0, "b"), (1, "c"), (3, "d")] {
            log.write_at(day(days, 80_000), line.as_bytes()).unwrap();
        }
        assert_eq!((folder.read(".2026-01-30"), folder.read(".2026-01-31")), ("ab".into(), "c".into()));
        assert_eq!(folder.read(""), "d", "the day without a line has no file");

        log.write_at(day(15, 0), b"e").unwrap();
        let foreign = ["another.2020-01-01", ".2026-notes"];
        assert_eq!(folder.files(), [foreign[0], ".2026-01-31", ".2026-02-02", foreign[1], ""]);
    }

    #[test]
    fn a_start_goes_on_with_the_file_of_today_and_puts_aside_that_of_an_earlier_day() {
        let folder = Folder::new("restart");
        let start = |now, line: &str| {
            let mut log = DailyFiles::open(&folder.0, FILE_BYTES, 14, now).unwrap();
            log.write_at(now, line.as_bytes()).unwrap();
            // Windows notes a time of its own when who has written closes the file.
            drop(log);
            let file = File::options().append(true).open(folder.log("")).unwrap();
            file.set_modified(now).unwrap();
        };
        start(day(0, 5), "a");
        start(day(0, 9), "b");
        assert_eq!(folder.read(""), "ab");
        start(day(1, 0), "c");
        assert_eq!((folder.read(".2026-01-30"), folder.read("")), ("ab".into(), "c".into()));
    }

    #[test]
    fn a_full_file_is_followed_by_another_of_the_day_and_a_hundred_are_kept() {
        let folder = Folder::new("full");
        let mut log = open(&folder, 1);
        for number in 0..FILES_KEPT + 12 {
            log.write_at(day(0, 0), format!("{number}").as_bytes()).unwrap();
        }
        assert_eq!(folder.files().len(), FILES_KEPT + 1);
        assert_eq!(folder.read(""), "111");
        assert_eq!(folder.read(".2026-01-30.111"), "110");
        assert_eq!(folder.read(".2026-01-30.12"), "11", "the oldest");
    }

    #[test]
    fn a_file_that_cannot_be_renamed_grows_and_is_tried_again_a_minute_later() {
        let folder = Folder::new("held");
        let mut log = open(&folder, FILE_BYTES);
        log.write_at(day(0, 0), b"a").unwrap();
        folder.block(".2026-01-30");
        log.write_at(day(1, 0), b"b").unwrap();
        fs::remove_dir_all(folder.log(".2026-01-30")).unwrap();
        log.write_at(day(1, 59), b"c").unwrap();
        assert_eq!(folder.read(""), "abc");
        log.write_at(day(1, 60), b"d").unwrap();
        assert_eq!((folder.read(".2026-01-30"), folder.read("")), ("abc".into(), "d".into()));
    }

    #[test]
    fn a_folder_that_was_deleted_is_made_again_with_the_next_file() {
        let folder = Folder::new("deleted");
        let mut log = open(&folder, FILE_BYTES);
        log.write_at(day(0, 0), b"a").unwrap();
        if fs::remove_dir_all(&folder.0).is_err() {
            // Windows deletes no folder with an open file.
            return;
        }
        log.write_at(day(1, 0), b"b").unwrap();
        assert_eq!(folder.read(""), "b");
    }

    #[test]
    fn an_unusable_folder_is_an_error_that_says_how_to_fix_it() {
        let folder = Folder::new("unusable");
        let file = folder.log("");
        fs::write(&file, "").unwrap();
        for dir in [file.clone(), file.join("logs")] {
            let why = unusable(&dir, &DailyFiles::open(&dir, 1, 14, day(0, 0)).unwrap_err());
            let dir = dir.display();
            assert_eq!(
                why,
                format!("LOG_DIR: {dir} is not a folder, because a file is in the way; choose another path.")
            );
        }
    }
}
