//! The program itself, as a process in production mode, over a simulated
//! Hyper-V host and a fake GitHub, with the guests that run in its VMs.

use super::fake_github::{FakeGitHub, TOKEN};
use super::fake_host::{Guest, Standin};
use hyperv_runner_pool::hypervisor::Notes;
use hyperv_runner_pool::secret::{Keys, Secret};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub const WEBHOOK_SECRET: &str = "a-webhook-secret-of-these-tests";

/// The labels that the pool gives to its runners.
const LABELS: [&str; 4] = ["self-hosted", "Windows", "X64", "ephemeral"];

/// Waits until something holds. A machine that builds at the same time can take long for anything.
#[track_caller]
pub fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(40);
    while !holds() {
        assert!(Instant::now() < limit, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// How the pool learns of a job's start and end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// By GitHub's webhook.
    Webhook,
    /// By the guest's callback.
    Callback,
    /// By nobody: it has to look.
    Silence,
}

/// Everything around the pool, which outlives its process.
pub struct World {
    pub standin: Arc<Standin>,
    pub github: Arc<FakeGitHub>,
    keys: Keys,
    port: AtomicU16,
    shared: Arc<Shared>,
    guests: Option<JoinHandle<()>>,
}

/// What the guests' thread shares with the test.
#[derive(Default)]
struct Shared {
    over: AtomicBool,
    /// Whether VMs that have not booted yet stay so.
    asleep: AtomicBool,
    /// The most VMs of the pool that were seen at one time.
    most_vms: AtomicUsize,
    /// Whether two VMs of the pool were seen to bear one name.
    twins: AtomicBool,
    secrets: Mutex<HashSet<String>>,
}

impl World {
    pub fn new() -> World {
        let standin = Arc::new(Standin::new());
        let github = Arc::new(FakeGitHub::start());
        let shared = Arc::new(Shared::default());
        let mut guests = Guests {
            standin: Arc::clone(&standin),
            github: Arc::clone(&github),
            shared: Arc::clone(&shared),
            runners: HashMap::new(),
        };
        let thread = std::thread::spawn(move || guests.live());
        let keys = Keys::new(&Secret::new(WEBHOOK_SECRET));
        World { standin, github, keys, port: AtomicU16::new(free_port()), shared, guests: Some(thread) }
    }

    /// The command that starts the pool, with these settings besides what it needs.
    pub fn command(&self, settings: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hyperv-runner-pool"));
        command
            .current_dir(self.standin.folder())
            .env_clear()
            .envs(self.standin.env())
            .env("TMPDIR", std::env::temp_dir())
            .env("GITHUB_API_URL", self.github.url())
            .env("GITHUB_PAT", TOKEN)
            .env("GITHUB_ORG", "acme")
            .env("WEBHOOK_SECRET", WEBHOOK_SECRET)
            .env("PORT", self.port.load(Ordering::Relaxed).to_string())
            .env("POOL_SIZE", "2")
            .env("POLL_SECONDS", "1")
            .env("LOG_LEVEL", "debug")
            .envs(settings.iter().copied())
            .stdin(Stdio::null());
        command
    }

    /// Starts the pool, and waits until it answers.
    pub fn start(&self, settings: &[(&str, &str)]) -> Process {
        for _ in 0..20 {
            let mut process = self.spawn(settings);
            wait("the pool answers, or ends", || process.health().is_some() || process.ended().is_some());
            if process.ended().is_none() {
                return process;
            }
            let log = process.log();
            assert!(log.contains("is in use by another program"), "the pool has ended: {log}");
            // Somebody was faster. (VMs that were told the old port are on their own then.)
            self.port.store(free_port(), Ordering::Relaxed);
        }
        panic!("every port is taken");
    }

    /// Starts the pool, and waits for nothing.
    pub fn spawn(&self, settings: &[(&str, &str)]) -> Process {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let log = self.standin.folder().join(format!("pool-{}.log", COUNT.fetch_add(1, Ordering::Relaxed)));
        let child = self
            .command(settings)
            .stdout(File::create(log.with_extension("out")).unwrap())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let url = format!("http://127.0.0.1:{}", self.port.load(Ordering::Relaxed));
        Process { child, url, log, reaped: false }
    }

    /// The VMs on the host that this pool made, as their Notes or disks say.
    pub fn vms(&self) -> Vec<super::fake_host::host::Vm> {
        of_the_pool(&self.standin)
    }

    /// The disks in the storage folder.
    pub fn disks(&self) -> Vec<String> {
        self.standin.disks().into_iter().filter(|name| name.ends_with(".vhdx")).collect()
    }

    /// The Notes of a VM.
    pub fn notes(&self, vm: &str) -> Notes {
        serde_json::from_str(&self.standin.vm(vm).notes).unwrap()
    }

    /// Which incarnation of a VM is there; `None` if there is none with Notes.
    pub fn incarnation(&self, vm: &str) -> Option<String> {
        let vms = self.vms();
        let notes = &vms.iter().find(|there| there.name == vm)?.notes;
        Some(serde_json::from_str::<Notes>(notes).ok()?.incarnation)
    }

    /// From now on VMs boot no further than to their guest, which does nothing.
    pub fn guests_sleep(&self, asleep: bool) {
        self.shared.asleep.store(asleep, Ordering::SeqCst);
    }

    /// The most VMs of the pool that were seen at one time.
    pub fn most_vms(&self) -> usize {
        self.shared.most_vms.load(Ordering::SeqCst)
    }

    /// Counts anew.
    pub fn forget_most_vms(&self) {
        self.shared.most_vms.store(0, Ordering::SeqCst);
    }

    /// The secret of every VM that has been seen.
    pub fn vm_secrets(&self) -> HashSet<String> {
        self.shared.secrets.lock().unwrap().clone()
    }

    /// A runner of the pool gets a job.
    pub fn start_job(&self, process: &Process, vm: &str, job: u64, news: News) {
        let notes = self.notes(vm);
        self.github.change_runner(&notes.runner_name, |runner| runner.busy = true);
        match news {
            News::Webhook => self.webhook(process, "in_progress", job, &notes),
            News::Callback => {
                let body = json!({"run_id": 1, "job": "build", "repository": "acme/widgets"});
                assert_eq!(self.guest(vm).report_started(&body.to_string()).0, 200);
            }
            News::Silence => {}
        }
    }

    /// The job has ended: its ephemeral runner is gone from GitHub, and its guest powers off.
    pub fn end_job(&self, process: &Process, vm: &str, job: u64, news: News) {
        let notes = self.notes(vm);
        let guest = self.guest(vm);
        let id = self.github.runners().into_iter().find(|r| r.name == notes.runner_name).unwrap().id;
        self.github.forget_runner(id);
        let notes = Notes { runner_id: Some(id), ..notes };
        match news {
            News::Webhook => self.webhook(process, "completed", job, &notes),
            News::Callback => assert_eq!(guest.report_complete(), (200, "OK".into())),
            News::Silence => {}
        }
        // The pool may have destroyed it already.
        self.standin.change_vm(vm, |there| {
            if there.notes.contains(&notes.incarnation) {
                there.state = "Off".into();
                there.started = 0;
            }
        });
    }

    pub fn guest(&self, vm: &str) -> Guest {
        self.standin.guest(vm)
    }

    fn webhook(&self, process: &Process, action: &str, job: u64, notes: &Notes) {
        let runner_id = notes.runner_id.unwrap_or_else(|| {
            self.github.runners().into_iter().find(|r| r.name == notes.runner_name).unwrap().id
        });
        let body = json!({
            "action": action,
            "workflow_job": {"id": job, "labels": LABELS, "runner_id": runner_id, "runner_name": notes.runner_name},
            "repository": {"name": "widgets"},
        })
        .to_string();
        self.deliver(process, &format!("{action}-{job}"), &body);
    }

    fn deliver(&self, process: &Process, delivery: &str, body: &str) {
        let headers = [
            ("X-GitHub-Event", "workflow_job"),
            ("X-GitHub-Delivery", delivery),
            ("X-Hub-Signature-256", &self.keys.sign_webhook(body.as_bytes())),
        ];
        let (status, answer) = process.request("POST", "/webhook", &headers, body);
        assert_eq!((status, &*answer), (200, "OK"));
    }

    /// A job waits for a runner.
    pub fn queue_job(&self, process: &Process, job: u64) {
        let body =
            json!({"action": "queued", "workflow_job": {"id": job, "labels": LABELS, "runner_id": null}});
        self.deliver(process, &format!("queued-{job}"), &body.to_string());
    }

    /// Waits until the pool is whole: as many VMs as it has slots, each with a
    /// guest that waits for a job or has one, and no VM, disk or registration
    /// besides. `foreign` of GitHub's runners are not the pool's.
    #[track_caller]
    pub fn wait_until_whole(&self, process: &Process, size: usize, foreign: usize) {
        let serving = || {
            let Some((200, health)) = process.health() else { return false };
            health["ready"].as_u64().unwrap() + health["running"].as_u64().unwrap() == size as u64
                && health["vms"] == size as u64
        };
        let whole = || {
            let vms = self.vms();
            let runners = self.github.runners();
            let registered = vms.iter().all(|vm| {
                let Ok(notes) = serde_json::from_str::<Notes>(&vm.notes) else { return false };
                let is_its = |id: u64, name: &str| {
                    notes.runner_id.map_or(notes.runner_name == name, |noted| noted == id)
                };
                vm.state == "Running" && runners.iter().any(|r| r.online && is_its(r.id, &r.name))
            });
            let mut disks: Vec<String> =
                vms.iter().map(|vm| vm.disks[0].file_name().unwrap().to_str().unwrap().to_owned()).collect();
            disks.sort();
            serving()
                && registered
                && vms.len() == size
                && disks == self.disks()
                && runners.len() == size + foreign
        };
        let limit = Instant::now() + Duration::from_secs(40);
        while !whole() {
            if Instant::now() > limit {
                panic!(
                    "not whole:\nstatus {}\nVMs {:#?}\ndisks {:?}\nrunners {:?}",
                    process.status(),
                    self.vms(),
                    self.disks(),
                    self.github.runners()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(self.most_vms() <= size, "{} VMs at one time", self.most_vms());
        assert!(!self.shared.twins.load(Ordering::SeqCst), "two VMs of one name at one time");
    }

    /// That nothing of the pool is left on the host or at GitHub.
    #[track_caller]
    pub fn assert_empty(&self) {
        assert_eq!(self.vms().len(), 0, "{:?}", self.vms());
        assert_eq!(self.disks(), [""; 0]);
        assert!(self.github.runners().is_empty(), "{:?}", self.github.runners());
    }

    /// How often a script has been run so far.
    pub fn runs(&self, script: &str) -> usize {
        self.standin.invocations().iter().filter(|run| run.script == script).count()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        let ended = self.guests.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

fn of_the_pool(standin: &Standin) -> Vec<super::fake_host::host::Vm> {
    let storage = standin.storage();
    let ours = |vm: &super::fake_host::host::Vm| {
        serde_json::from_str::<Notes>(&vm.notes).map_or_else(
            |_| vm.disks.iter().any(|disk| disk.parent() == Some(&storage)),
            |notes| Path::new(&notes.pool) == storage,
        )
    };
    standin.vms().into_iter().filter(ours).collect()
}

/// The guests of all VMs, and what GitHub sees of their runners.
struct Guests {
    standin: Arc<Standin>,
    github: Arc<FakeGitHub>,
    shared: Arc<Shared>,
    /// Of each VM, by Hyper-V's id, that has its configuration: its runner.
    runners: HashMap<u64, u64>,
}

impl Guests {
    fn live(&mut self) {
        while !self.shared.over.load(Ordering::SeqCst) {
            self.round();
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn round(&mut self) {
        let vms = of_the_pool(&self.standin);
        self.shared.most_vms.fetch_max(vms.len(), Ordering::SeqCst);
        let names: HashSet<&str> = vms.iter().map(|vm| vm.name.as_str()).collect();
        self.shared.twins.fetch_or(names.len() < vms.len(), Ordering::SeqCst);

        // A runner is cut off with its VM.
        self.runners.retain(|id, runner| {
            let on = vms.iter().any(|vm| vm.id == *id && vm.state == "Running");
            if !on {
                self.github.change_runner_if_there(*runner, |r| (r.online, r.busy) = (false, false));
            }
            on
        });
        for vm in &vms {
            let Some(secret) = vm.kvp.get("RunnerPoolVmSecret") else { continue };
            self.shared.secrets.lock().unwrap().insert(secret.clone());
            let asleep = self.shared.asleep.load(Ordering::SeqCst);
            if vm.state != "Running" || self.runners.contains_key(&vm.id) || asleep {
                continue;
            }
            let guest = Guest {
                url: vm.kvp["RunnerPoolUrl"].clone(),
                name: vm.kvp["RunnerPoolVmName"].clone(),
                secret: secret.clone(),
            };
            if let (200, config) = guest.fetch_config() {
                let config: Value = serde_json::from_str(&config).unwrap();
                let name = config["name"].as_str().unwrap();
                let runner = if config["registration"] == "token" {
                    self.github.register_itself(name, &LABELS)
                } else {
                    serde_json::from_str::<Notes>(&vm.notes).unwrap().runner_id.unwrap()
                };
                self.github.change_runner_if_there(runner, |r| r.online = true);
                self.runners.insert(vm.id, runner);
            }
        }
    }
}

/// The running program. Killed when dropped.
pub struct Process {
    child: Child,
    pub url: String,
    log: PathBuf,
    reaped: bool,
}

impl Process {
    pub fn pid(&self) -> u32 {
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

    /// `GET /health`; `None` if it does not answer.
    pub fn health(&self) -> Option<(u16, Value)> {
        let (status, body) = self.try_request("GET", "/health", &[], "")?;
        Some((status, serde_json::from_str(&body).unwrap()))
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.get("/api/status")).unwrap()
    }

    pub fn get(&self, path: &str) -> String {
        let (status, body) = self.request("GET", path, &[], "");
        assert_eq!(status, 200, "{path}: {body}");
        body
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
        wait(&format!("{vm} is {state}"), || self.state(vm) == state);
    }

    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
        self.try_request(method, path, headers, body).expect("the pool answers")
    }

    fn try_request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Option<(u16, String)> {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(10)))
            .http_status_as_error(false)
            .proxy(None)
            .build()
            .into();
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = if method == "GET" {
            agent.run(request.body(()).unwrap())
        } else {
            agent.run(request.body(body.to_owned()).unwrap())
        };
        let mut answer = answer.ok()?;
        Some((answer.status().as_u16(), answer.body_mut().read_to_string().ok()?))
    }

    /// Its exit code, if it has ended (-1 if a signal ended it).
    pub fn ended(&mut self) -> Option<i32> {
        let status = self.child.try_wait().unwrap()?;
        self.reaped = true;
        Some(status.code().unwrap_or(-1))
    }

    /// Waits for its end; answers with the exit code.
    #[track_caller]
    pub fn wait(&mut self) -> i32 {
        wait("the pool ends", || self.ended().is_some());
        self.ended().unwrap()
    }

    /// Ctrl+C.
    pub fn interrupt(&self) {
        self.signal(libc::SIGINT);
    }

    /// What a service manager sends.
    pub fn terminate(&self) {
        self.signal(libc::SIGTERM);
    }

    /// `kill -9`: nothing is told, nothing is tidied.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        self.child.wait().unwrap();
        self.reaped = true;
    }

    /// Ctrl+C, and the end of it: an exit code of 0.
    #[track_caller]
    pub fn stop(mut self) {
        self.interrupt();
        assert_eq!(self.wait(), 0, "{}", self.log());
    }

    fn signal(&self, signal: i32) {
        // SAFETY: the process is our child and has not been waited for, so its id is its own.
        assert!(!self.reaped && unsafe { libc::kill(self.child.id() as i32, signal) } == 0);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.log());
        }
    }
}

/// A port that nobody has. From below the range from which systems give ports
/// to connections and to whoever asks for any: so that none of those takes it
/// while a pool is down between two starts.
pub fn free_port() -> u16 {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let first = std::process::id() as usize * 97;
    for _ in 0..1000 {
        let port = 10_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        let port = u16::try_from(port).unwrap();
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
}
