//! The program itself, as a process in production mode, over a fake Hyper-V
//! host and a fake GitHub, with the fake guests that run in its VMs.

use super::delivery::{self, LABELS};
use super::fake_github::{FakeGitHub, TOKEN, jit_config_for};
use super::fake_guest::FakeGuest;
use super::fake_host::host::Vm;
use super::fake_host::{FakeHost, guest_of, jit_config_of};
use super::process::{Process, command};
use super::{free_port, wait_until_or};
use hyperv_runner_pool::hypervisor::Notes;
use hyperv_runner_pool::secret::{Keys, Secret};
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

pub const WEBHOOK_SECRET: &str = "a-webhook-secret-of-these-tests";

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
pub struct HostWorld {
    pub host: Arc<FakeHost>,
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
    /// Runners whose end is the test's affair, by GitHub's id: their guests say nothing of it.
    ended_by_test: Mutex<HashSet<u64>>,
}

impl HostWorld {
    pub fn new() -> HostWorld {
        let host = Arc::new(FakeHost::new());
        let github = Arc::new(FakeGitHub::start());
        let shared = Arc::new(Shared::default());
        let mut guests = Guests {
            host: Arc::clone(&host),
            github: Arc::clone(&github),
            shared: Arc::clone(&shared),
            runners: HashMap::new(),
        };
        let thread = std::thread::spawn(move || guests.live());
        let keys = Keys::new(&Secret::new(WEBHOOK_SECRET));
        HostWorld { host, github, keys, port: AtomicU16::new(free_port()), shared, guests: Some(thread) }
    }

    /// The command that starts the pool, with these settings besides what it needs.
    pub fn command(&self, settings: &[(&str, &str)]) -> Command {
        let github = self.github.url();
        let mut command = command(
            self.host.folder(),
            &[
                ("GITHUB_API_URL", &github),
                ("GITHUB_PAT", TOKEN),
                ("GITHUB_ORG", "acme"),
                ("WEBHOOK_SECRET", WEBHOOK_SECRET),
                ("PORT", &self.port.load(Ordering::Relaxed).to_string()),
                ("POOL_SIZE", "2"),
                ("POLL_SECONDS", "1"),
                ("LOG_LEVEL", "debug"),
            ],
        );
        command.envs(self.host.env()).envs(settings.iter().copied());
        command
    }

    /// Starts the pool, and waits until it answers. (If it gets another port than
    /// before, VMs that were told the old one are on their own.)
    pub fn start(&self, settings: &[(&str, &str)]) -> Process {
        Process::start(&self.port, || self.command(settings), self.keys.clone(), self.host.folder())
    }

    /// Starts the pool, and waits for nothing.
    pub fn spawn(&self, settings: &[(&str, &str)]) -> Process {
        Process::spawn(self.command(settings), self.keys.clone(), self.host.folder())
    }

    /// The VMs on the host that this pool made, as their Notes or disks say.
    pub fn vms(&self) -> Vec<Vm> {
        of_the_pool(&self.host)
    }

    /// The disks in the storage folder.
    pub fn disks(&self) -> Vec<String> {
        self.host.disks().into_iter().filter(|name| name.ends_with(".vhdx")).collect()
    }

    /// The Notes of a VM.
    pub fn notes(&self, vm: &str) -> Notes {
        notes_of(&self.host.vm(vm)).unwrap()
    }

    /// Which incarnation of a VM is there; `None` if there is none with Notes.
    pub fn incarnation(&self, vm: &str) -> Option<String> {
        Some(notes_of(self.vms().iter().find(|there| there.name == vm)?)?.incarnation)
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
                assert_eq!(self.guest(vm).report_started().status, 200);
            }
            News::Silence => {}
        }
    }

    /// The job has ended: its ephemeral runner is gone from GitHub, and its guest tells of it or not and powers off.
    pub fn end_job(&self, process: &Process, vm: &str, job: u64, news: News) {
        let notes = self.notes(vm);
        let guest = self.guest(vm);
        let id = self.github.runners().into_iter().find(|r| r.name == notes.runner_name).unwrap().id;
        self.shared.ended_by_test.lock().unwrap().insert(id);
        self.github.forget_runner(id);
        let notes = Notes { runner_id: Some(id), ..notes };
        match news {
            News::Webhook => self.webhook(process, "completed", job, &notes),
            News::Callback => assert_eq!(guest.report_complete().body, "OK"),
            News::Silence => {}
        }
        // The pool may have destroyed it already.
        self.host.change_vm(vm, |there| {
            if there.notes.contains(&notes.incarnation) {
                there.state = "Off".into();
                there.started = 0;
            }
        });
    }

    pub fn guest(&self, vm: &str) -> FakeGuest {
        self.host.guest(vm)
    }

    fn webhook(&self, process: &Process, action: &str, job: u64, notes: &Notes) {
        let runner_id = notes.runner_id.unwrap_or_else(|| {
            self.github.runners().into_iter().find(|r| r.name == notes.runner_name).unwrap().id
        });
        let body = delivery::workflow_job(action, job, Some((runner_id, &notes.runner_name)));
        self.deliver(process, &format!("{action}-{job}"), &body);
    }

    fn deliver(&self, process: &Process, delivery: &str, body: &str) {
        let answer = delivery::deliver(&mut process.connect(), &self.keys, delivery, body);
        assert_eq!((answer.status, &*answer.body), (200, "OK"));
    }

    /// A job waits for a runner.
    pub fn queue_job(&self, process: &Process, job: u64) {
        self.deliver(process, &format!("queued-{job}"), &delivery::workflow_job("queued", job, None));
    }

    /// Waits until the pool is whole: as many VMs as it has slots, each with a
    /// guest that waits for a job or has one, and no VM, disk or registration
    /// that is online besides. (Registrations without a VM go later, after `BOOT_TIMEOUT`.)
    #[track_caller]
    pub fn wait_until_whole(&self, process: &Process, size: usize) {
        let serving = || {
            let health = process.get("/health");
            let (status, health) = (health.status, health.json());
            status == 200
                && health["ready"].as_u64().unwrap() + health["running"].as_u64().unwrap() == size as u64
                && health["vms"] == size as u64
        };
        let whole = || {
            let vms = self.vms();
            let runners = self.github.runners();
            let registered = vms.iter().all(|vm| {
                let Some(notes) = notes_of(vm) else { return false };
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
                && runners.iter().filter(|runner| runner.online).count() == size
        };
        wait_until_or(whole, || {
            format!(
                "the pool is whole:\nstatus {}\nVMs {:#?}\ndisks {:?}\nrunners {:?}",
                process.status(),
                self.vms(),
                self.disks(),
                self.github.runners()
            )
        });
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
        self.host.invocations().iter().filter(|run| run.script == script).count()
    }
}

impl Drop for HostWorld {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        let ended = self.guests.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

fn notes_of(vm: &Vm) -> Option<Notes> {
    serde_json::from_str(&vm.notes).ok()
}

fn of_the_pool(host: &FakeHost) -> Vec<Vm> {
    let storage = host.storage();
    let ours = |vm: &Vm| {
        notes_of(vm).map_or_else(
            || vm.disks.iter().any(|disk| disk.parent() == Some(&storage)),
            |notes| Path::new(&notes.pool) == storage,
        )
    };
    host.vms().into_iter().filter(ours).collect()
}

/// The guests of all VMs, and what GitHub sees of their runners.
struct Guests {
    host: Arc<FakeHost>,
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
        let vms = of_the_pool(&self.host);
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
        let registered: HashSet<u64> = self.github.runners().iter().map(|runner| runner.id).collect();
        for vm in &vms {
            let Some(guest) = guest_of(vm) else { continue };
            self.shared.secrets.lock().unwrap().insert(guest.secret.clone());
            if vm.state != "Running" {
                continue;
            }
            match self.runners.get(&vm.id) {
                Some(runner) => {
                    let ended_by_test = self.shared.ended_by_test.lock().unwrap().contains(runner);
                    if !registered.contains(runner) && !ended_by_test {
                        // A listener whose registration is gone ends.
                        guest.report_complete();
                        self.host.power_off_vm(vm.id);
                    }
                }
                None if self.shared.asleep.load(Ordering::SeqCst) => {}
                None => self.boot(vm, &guest),
            }
        }
    }

    fn boot(&mut self, vm: &Vm, guest: &FakeGuest) {
        let jit_config = jit_config_of(vm);
        let config = guest.fetch_config();
        if config.status == 409 {
            return self.host.power_off_vm(vm.id);
        }
        if config.status == 200 {
            let config: Value = serde_json::from_str(&config.body).unwrap();
            let name = config["name"].as_str().unwrap();
            let runner = if config["registration"] == "token" {
                self.github.register_itself(name, &LABELS)
            } else {
                let runner = notes_of(vm).unwrap().runner_id.unwrap();
                assert_eq!(config["token"], "");
                assert_eq!(jit_config, Some(jit_config_for(runner)));
                runner
            };
            self.github.change_runner_if_there(runner, |r| r.online = true);
            self.runners.insert(vm.id, runner);
        }
    }
}
