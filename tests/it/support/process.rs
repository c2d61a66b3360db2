//! The program as a process of its own, as its users run it.

use hyperv_runner_pool::secret::{Keys, Secret};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// A running pool of simulated VMs. Killed when dropped.
pub struct Process {
    child: Child,
    pub url: String,
    pub keys: Keys,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    folder: PathBuf,
}

impl Process {
    /// Starts the program on a free port, with these settings more, and waits until it listens.
    /// It says so at `LOG_LEVEL` info, which is the default.
    pub fn start(settings: &[(&str, &str)]) -> Process {
        let mut pool = Process::spawn(settings);
        let mut lines = BufReader::new(pool.child.stderr.take().unwrap());
        let mut heard = String::new();
        while pool.url.is_empty() {
            let before = heard.len();
            assert!(lines.read_line(&mut heard).unwrap() > 0, "it ended: {heard}");
            if let Some((_, address)) = heard[before..].split_once("listening on ") {
                pool.url = format!("http://{}", address.trim());
            }
        }
        pool.follow(heard, lines);
        pool
    }

    /// Starts the program on this port of these settings, and waits until it answers: for when it logs nothing.
    pub fn start_at(settings: &[(&str, &str)], port: &str) -> Process {
        let mut pool = Process::spawn(settings);
        let lines = BufReader::new(pool.child.stderr.take().unwrap());
        pool.follow(String::new(), lines);
        let address = format!("127.0.0.1:{port}");
        super::wait_until("it listens", || std::net::TcpStream::connect(&address).is_ok());
        pool.url = format!("http://{address}");
        pool
    }

    fn spawn(settings: &[(&str, &str)]) -> Process {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // A folder without a .env.
        let folder = std::env::temp_dir().join(format!("pool-process-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_hyperv-runner-pool"));
        command.current_dir(&folder).env_clear();
        // Without it, Windows gives a process no sockets.
        command.envs(std::env::vars().filter(|(name, _)| name.eq_ignore_ascii_case("SystemRoot")));
        command.envs([("USE_MOCK", "true"), ("PORT", "0"), ("BIND", "127.0.0.1")]);
        command.envs(settings.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let keys = Keys::new(&Secret::new("mock-secret"));
        Process { child, url: String::new(), keys, log: Arc::default(), reader: None, folder }
    }

    /// Keeps what it logs, which must be read or it would block.
    fn follow(&mut self, heard: String, lines: BufReader<ChildStderr>) {
        *self.log.lock().unwrap() = heard;
        let log = Arc::clone(&self.log);
        self.reader = Some(std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                *log.lock().unwrap() += &(line + "\n");
            }
        }));
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn connect(&self) -> super::http::Connection {
        super::http::Connection::open(&self.url)
    }

    pub fn get(&self, path: &str) -> super::http::Response {
        self.connect().request("GET", path, &[], b"")
    }

    pub fn health(&self) -> Value {
        serde_json::from_str(&self.get("/health").body).unwrap()
    }

    /// What `/api/status` says of a slot, counted from 1.
    pub fn slot(&self, number: usize) -> Value {
        let status: Value = serde_json::from_str(&self.get("/api/status").body).unwrap();
        status["slots"][number - 1].clone()
    }

    /// The secret of the VM that a slot has.
    pub fn vm_secret(&self, number: usize) -> String {
        let slot = self.slot(number);
        let text = |key: &str| slot[key].as_str().expect("a VM").to_owned();
        self.keys.vm_secret(&text("vm"), &text("incarnation")).expose().to_owned()
    }

    /// A number of `/proc/PID/status`: `Threads`, or `VmRSS` in KiB.
    #[cfg(target_os = "linux")]
    pub fn fact(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Ends it and answers with all that it has logged.
    pub fn kill(mut self) -> String {
        assert!(self.is_alive(), "it has ended by itself: {}", self.log());
        self.end();
        self.log()
    }

    fn end(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            _ = reader.join();
        }
        _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}
