//! Simulated VMs for `USE_MOCK=true`, whose guests speak the real protocol
//! over real HTTP: they fetch their configuration, run the job that the
//! simulated GitHub gives them, report, and power off.

use super::github::MockGitHub;
use crate::hypervisor::{Error, Heartbeat, Hypervisor, Inventory, Notes, Power, Vm, VmId, VmSpec, VmWrite};
use crate::secret::Secret;
use serde::Deserialize;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long things take in the simulation.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Making a VM.
    pub create: Duration,
    /// A VM's start, until its guest asks for its configuration.
    pub boot: Duration,
    /// A job.
    pub job: Duration,
}

/// A host whose VMs are threads.
pub struct MockHypervisor {
    timing: Timing,
    pool_url: String,
    /// Absent when runners are registered with the real GitHub: then a guest
    /// only fetches its configuration and stays until it is destroyed.
    github: Option<Arc<MockGitHub>>,
    vms: Mutex<Vec<Arc<SimulatedVm>>>,
    faults: Mutex<Faults>,
}

/// What shall go wrong, for tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// So many creations fail from now on.
    pub failing_creates: u32,
    /// So many destructions fail from now on.
    pub failing_destroys: u32,
    /// So many VMs never boot from now on.
    pub dead_guests: u32,
    /// So many lists leave out the VMs, but not their disks.
    pub lists_without_vms: u32,
}

struct SimulatedVm {
    id: VmId,
    notes: Notes,
    secret: Secret,
    started: Instant,
    /// Whether it is off.
    off: Mutex<bool>,
    powered_off: Condvar,
}

impl SimulatedVm {
    /// Lets time pass inside the VM. Returns whether it is still on.
    fn run(&self, time: Duration) -> bool {
        let off = self.off.lock().unwrap_or_else(PoisonError::into_inner);
        let (off, _) = self
            .powered_off
            .wait_timeout_while(off, time, |off| !*off)
            .unwrap_or_else(PoisonError::into_inner);
        !*off
    }

    fn is_off(&self) -> bool {
        *self.off.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn power_off(&self) {
        *self.off.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.powered_off.notify_all();
    }
}

impl MockHypervisor {
    /// A host without VMs, whose guests reach the pool at `pool_url`.
    pub fn new(timing: Timing, pool_url: String, github: Option<Arc<MockGitHub>>) -> MockHypervisor {
        MockHypervisor { timing, pool_url, github, vms: Mutex::default(), faults: Mutex::default() }
    }

    /// Says what shall go wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }

    /// Powers a VM off, as a crash of its guest would. Returns whether there is one.
    pub fn power_off(&self, vm_name: &str) -> bool {
        let vms = self.lock();
        let vm = vms.iter().find(|vm| vm.id.name == vm_name);
        vm.inspect(|vm| vm.power_off()).is_some()
    }

    /// Makes a VM disappear, as somebody at the host's console might. Returns whether there was one.
    pub fn lose(&self, vm_name: &str) -> bool {
        let mut vms = self.lock();
        let Some(i) = vms.iter().position(|vm| vm.id.name == vm_name) else { return false };
        vms.remove(i).power_off();
        true
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<SimulatedVm>>> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn strikes(&self, fault: impl Fn(&mut Faults) -> &mut u32) -> bool {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let left = fault(&mut faults);
        let strikes = *left > 0;
        *left = left.saturating_sub(1);
        strikes
    }
}

impl Hypervisor for MockHypervisor {
    fn create(&self, spec: &VmSpec) -> Result<(), Error> {
        std::thread::sleep(self.timing.create);
        if self.strikes(|faults| &mut faults.failing_creates) {
            return Err(Error("a simulated fault: the VM could not be made".into()));
        }
        let vm = Arc::new(SimulatedVm {
            id: spec.id.clone(),
            notes: spec.notes.clone(),
            secret: spec.secret.clone(),
            started: Instant::now(),
            off: Mutex::new(false),
            powered_off: Condvar::new(),
        });
        self.lock().push(Arc::clone(&vm));
        if self.strikes(|faults| &mut faults.dead_guests) {
            return Ok(());
        }
        let guest =
            Guest { vm, timing: self.timing, pool_url: self.pool_url.clone(), github: self.github.clone() };
        std::thread::Builder::new()
            .name(format!("guest-{}", spec.id.name))
            .stack_size(256 * 1024)
            .spawn(move || guest.run())
            .map_err(|error| Error(format!("cannot start a simulated guest: {error}")))?;
        Ok(())
    }

    fn destroy(&self, vm: &VmId) -> Result<(), Error> {
        if self.strikes(|faults| &mut faults.failing_destroys) {
            return Err(Error("a simulated fault: the VM could not be destroyed".into()));
        }
        self.lock().retain(|simulated| {
            let stays = simulated.id != *vm;
            if !stays {
                simulated.power_off();
            }
            stays
        });
        Ok(())
    }

    fn fingerprint(&self) -> Option<String> {
        None
    }

    fn stop_creating(&self) {}

    fn list(&self, _writes: &[VmWrite]) -> Result<Inventory, Error> {
        let leave_out = self.strikes(|faults| &mut faults.lists_without_vms);
        let vms = self.lock();
        Ok(Inventory {
            vms: vms
                .iter()
                .filter(|_| !leave_out)
                .map(|vm| Vm {
                    id: vm.id.clone(),
                    power: if vm.is_off() { Power::Off } else { Power::On },
                    uptime: vm.started.elapsed(),
                    heartbeat: Heartbeat::Unknown,
                    guest: None,
                    notes: Some(vm.notes.clone()),
                })
                .collect(),
            disks: vms.iter().map(|vm| vm.id.clone()).collect(),
            free_bytes: None,
        })
    }
}

impl fmt::Debug for MockHypervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MockHypervisor").field("timing", &self.timing).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct GuestConfig {
    token: String,
}

struct Guest {
    vm: Arc<SimulatedVm>,
    timing: Timing,
    pool_url: String,
    github: Option<Arc<MockGitHub>>,
}

impl Guest {
    /// From power-on to power-off.
    fn run(&self) {
        if self.vm.run(self.timing.boot)
            && let Some(config) = self.fetch_config()
        {
            match &self.github {
                Some(github) => self.work(github, &config.token),
                None => while self.vm.run(Duration::from_secs(3600)) {},
            }
        }
        self.vm.power_off();
    }

    /// What `run.cmd --jitconfig` does, and the report after it.
    fn work(&self, github: &MockGitHub, token: &str) {
        let Some(runner_id) = github.connect(token) else { return };
        let job_id = loop {
            if self.vm.is_off() {
                github.disconnect(runner_id);
                return;
            }
            if let Some(job_id) = github.take_job(runner_id, Duration::from_millis(200)) {
                break job_id;
            }
        };
        github.deliver("in_progress", job_id, runner_id);
        self.post(
            "runner-started",
            &format!(r#"{{"run_id":"{job_id}","job":"simulated","repository":"simulated"}}"#),
        );
        if !self.vm.run(self.timing.job) {
            github.disconnect(runner_id);
            return;
        }
        github.end_job(runner_id);
        for _ in 0..5 {
            if self.post("runner-complete", r#"{"exit_code":0}"#) || !self.vm.run(Duration::from_millis(500))
            {
                break;
            }
        }
        github.deliver("completed", job_id, runner_id);
    }

    fn fetch_config(&self) -> Option<GuestConfig> {
        let url = format!("{}/api/runner-config/{}", self.pool_url, self.vm.id.name);
        while !self.vm.is_off() {
            let answer = loopback_agent().get(&url).header("Authorization", self.bearer()).call();
            match answer {
                Ok(mut answer) if answer.status() == 200 => return answer.body_mut().read_json().ok(),
                Ok(answer) if answer.status().is_client_error() => return None,
                // The pool may be busy, or not yet listening.
                _ => self.vm.run(Duration::from_millis(500)),
            };
        }
        None
    }

    /// Returns whether the pool has taken it.
    fn post(&self, what: &str, body: &str) -> bool {
        let url = format!("{}/api/{what}/{}", self.pool_url, self.vm.id.name);
        let request = loopback_agent().post(&url).header("Authorization", self.bearer());
        request.content_type("application/json").send(body).is_ok_and(|answer| answer.status() == 200)
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.vm.secret.expose())
    }
}

/// An HTTP client for this host alone.
pub(crate) fn loopback_agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(10)))
        .http_status_as_error(false)
        .proxy(None)
        .build()
        .into()
}
