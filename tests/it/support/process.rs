//! The program as a process of its own, as its users run it.

use super::fake_guest::FakeGuest;
use super::http::{self, Connection, Response};
use super::{free_port, wait_until};
use hyperv_runner_pool::secret::{Keys, Secret};
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

/// The program with these settings and no others, in this folder.
pub fn command(folder: &Path, settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hyperv-runner-pool"));
    command.current_dir(folder).env_clear();
    // Without it, Windows gives a process no sockets.
    command.envs(std::env::vars().filter(|(name, _)| name.eq_ignore_ascii_case("SystemRoot")));
    command.env("TMPDIR", std::env::temp_dir());
    command.envs(settings.iter().copied()).stdin(Stdio::null());
    command
}

/// What a command has said, and its exit code.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Runs a command to its end.
pub fn said(command: &mut Command) -> Said {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().expect("no signal has ended it");
    Said { code, out: text(output.stdout), err: text(output.stderr) }
}

/// The running program. Killed when dropped.
pub struct Process {
    child: Child,
    pub url: String,
    pub keys: Keys,
    log: PathBuf,
    exit_code: Option<i32>,
    own_folder: Option<PathBuf>,
}

impl Process {
    /// Starts the program with simulated VMs, and waits until it answers.
    pub fn start_mock(settings: &[(&str, &str)]) -> Process {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // A folder of its own: one with a .env, here an empty one.
        let folder = std::env::temp_dir().join(format!("pool-process-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(".env"), "").unwrap();
        let port = AtomicU16::new(free_port());
        let mock = || {
            let mut command = command(&folder, &[("USE_MOCK", "true"), ("BIND", "127.0.0.1")]);
            command.env("PORT", port.load(Ordering::Relaxed).to_string()).envs(settings.iter().copied());
            command
        };
        let keys = Keys::new(&Secret::new("mock-secret"));
        let mut process = Process::start(&port, mock, keys, &folder);
        process.own_folder = Some(folder);
        process
    }

    /// Starts the program, and waits until it answers. The port changes if another
    /// program takes it first.
    pub fn start(port: &AtomicU16, command: impl Fn() -> Command, keys: Keys, log_folder: &Path) -> Process {
        for _ in 0..20 {
            let mut process = Process::spawn(command(), keys.clone(), log_folder);
            wait_until("the pool answers, or ends", || {
                process.ended().is_some() || process.try_get("/health").is_some()
            });
            if process.ended().is_none() {
                return process;
            }
            let log = process.log();
            assert!(log.contains("is in use by another program"), "the pool has ended: {log}");
            port.store(free_port(), Ordering::Relaxed);
        }
        panic!("every port is taken");
    }

    /// Starts the program, and waits for nothing.
    pub fn spawn(mut command: Command, keys: Keys, log_folder: &Path) -> Process {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let log = log_folder.join(format!("pool-{}.log", COUNT.fetch_add(1, Ordering::Relaxed)));
        let port = command.get_envs().find(|(name, _)| *name == "PORT").unwrap().1.unwrap();
        let url = format!("http://127.0.0.1:{}", port.to_str().unwrap());
        let child = command
            .stdout(File::create(log.with_extension("out")).unwrap())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Process { child, url, keys, log, exit_code: None, own_folder: None }
    }

    /// What a command to a pool with simulated VMs says.
    pub fn command(&self, words: &[&str]) -> Said {
        said(command(self.folder(), &[("USE_MOCK", "true")]).args(words))
    }

    /// Where a pool with simulated VMs was started.
    pub fn folder(&self) -> &Path {
        self.own_folder.as_ref().expect("its VMs are simulated")
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has written to standard error.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Everything it has written to standard output.
    pub fn output(&self) -> String {
        fs::read_to_string(self.log.with_extension("out")).unwrap()
    }

    pub fn connect(&self) -> Connection {
        Connection::open(&self.url)
    }

    /// `None` if it does not answer.
    pub fn try_get(&self, path: &str) -> Option<Response> {
        http::try_request(&self.url, "GET", path, &[], b"")
    }

    pub fn get(&self, path: &str) -> Response {
        self.try_get(path).expect("the pool answers")
    }

    pub fn health(&self) -> Value {
        self.get("/health").json()
    }

    pub fn status(&self) -> Value {
        self.get("/api/status").json()
    }

    /// What `/api/status` says of a slot, counted from 1.
    pub fn slot(&self, number: usize) -> Value {
        self.status()["slots"][number - 1].clone()
    }

    /// The state of the slot with this VM name.
    pub fn state(&self, vm: &str) -> String {
        let status = self.status();
        let slots = status["slots"].as_array().unwrap();
        let slot = slots.iter().find(|slot| slot["vm"] == vm);
        slot.map_or("empty", |slot| slot["state"].as_str().unwrap()).to_owned()
    }

    #[track_caller]
    pub fn wait_for_state(&self, vm: &str, state: &str) {
        wait_until(&format!("{vm} is {state}"), || self.state(vm) == state);
    }

    /// The secret of the VM that a slot has.
    pub fn vm_secret(&self, number: usize) -> String {
        let slot = self.slot(number);
        let text = |key: &str| slot[key].as_str().expect("a VM").to_owned();
        self.keys.vm_secret(&text("vm"), &text("incarnation")).expose().to_owned()
    }

    /// The guest of the VM that a slot has.
    pub fn guest(&self, number: usize) -> FakeGuest {
        FakeGuest::new(&self.url, self.slot(number)["vm"].as_str().unwrap(), &self.vm_secret(number))
    }

    /// A number of `/proc/PID/status`: `Threads`, or `VmRSS` in KiB.
    #[cfg(target_os = "linux")]
    pub fn fact(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Its exit code, if it has ended (-1 if a signal ended it).
    pub fn ended(&mut self) -> Option<i32> {
        if let Some(status) = self.child.try_wait().unwrap() {
            self.exit_code = Some(status.code().unwrap_or(-1));
        }
        self.exit_code
    }

    /// Waits for its end; answers with the exit code.
    #[track_caller]
    pub fn wait(&mut self) -> i32 {
        wait_until("the pool ends", || self.ended().is_some());
        self.ended().unwrap()
    }

    /// Ends it at once: nothing is told, nothing is tidied.
    #[track_caller]
    pub fn kill(&mut self) {
        assert_eq!(self.ended(), None, "it has ended by itself: {}", self.log());
        self.child.kill().unwrap();
        self.wait();
    }

    /// Ctrl+C.
    #[cfg(unix)]
    pub fn interrupt(&self) {
        self.signal(libc::SIGINT);
    }

    /// What a service manager sends.
    #[cfg(unix)]
    pub fn terminate(&self) {
        self.signal(libc::SIGTERM);
    }

    /// Ctrl+C, and the end of it: an exit code of 0.
    #[cfg(unix)]
    #[track_caller]
    pub fn stop(mut self) {
        self.interrupt();
        assert_eq!(self.wait(), 0, "{}", self.log());
    }

    #[cfg(unix)]
    fn signal(&self, signal: i32) {
        // SAFETY: the process is our child and has not been waited for, so its id is its own.
        assert!(self.exit_code.is_none() && unsafe { libc::kill(self.id() as i32, signal) } == 0);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.exit_code.is_none() {
            _ = self.child.kill();
            _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.log());
        }
        if let Some(folder) = &self.own_folder {
            _ = fs::remove_dir_all(folder);
        }
    }
}

/// Waits until a process is dead.
pub fn wait_until_dead(pid: u32) {
    assert!(is_alive(std::process::id()), "this system tells who is alive");
    wait_until("the process is dead", || !is_alive(pid));
}

/// Whether a process is alive (a zombie is not).
#[cfg(target_os = "linux")]
fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Whether a process is alive.
#[cfg(all(unix, not(target_os = "linux")))]
fn is_alive(pid: u32) -> bool {
    std::process::Command::new("kill").args(["-0", &pid.to_string()]).status().unwrap().success()
}

/// Whether a process is alive.
#[cfg(windows)]
fn is_alive(pid: u32) -> bool {
    use windows_sys::Win32::Foundation::{CloseHandle, STILL_ACTIVE};
    use windows_sys::Win32::System::Threading::{
        GetExitCodeProcess, OpenProcess, PROCESS_QUERY_LIMITED_INFORMATION,
    };
    // SAFETY: the handle is checked and closed; `code` outlives the call.
    unsafe {
        let process = OpenProcess(PROCESS_QUERY_LIMITED_INFORMATION, 0, pid);
        if process.is_null() {
            return false;
        }
        let mut code = 0;
        let asked = GetExitCodeProcess(process, &mut code) != 0;
        CloseHandle(process);
        asked && code == STILL_ACTIVE as u32
    }
}
