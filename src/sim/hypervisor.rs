//! Simulated VMs for `USE_MOCK=true`, whose guests speak the real protocol
//! over real HTTP: they fetch their configuration, run the job that the
//! simulated GitHub gives them, report, and power off. They retire when asked.

use super::github::MockGitHub;
use super::loopback_agent;
use crate::hypervisor::{
    Error, GuestWord, Heartbeat, Hypervisor, Inventory, Notes, Power, Vm, VmId, VmSpec, VmWrite,
};
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
    host: Mutex<Host>,
    stop_creating: (Mutex<bool>, Condvar),
}

/// What a test can set of the host.
#[derive(Clone, Debug)]
struct Host {
    template: String,
    free_bytes: u64,
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
    notes: Mutex<Notes>,
    secret: Secret,
    started: Instant,
    guest: Mutex<GuestState>,
    changed: Condvar,
}

#[derive(Default)]
struct GuestState {
    off: bool,
    booted: bool,
    /// Its Worker runs, or has run.
    worker: bool,
    had_worker: bool,
    told_to_retire: bool,
}

impl SimulatedVm {
    /// Lets time pass inside the VM. Returns whether it is still on.
    fn run(&self, time: Duration) -> bool {
        let guest = self.guest();
        let (guest, _) = self
            .changed
            .wait_timeout_while(guest, time, |guest| !guest.off)
            .unwrap_or_else(PoisonError::into_inner);
        !guest.off
    }

    fn guest(&self) -> MutexGuard<'_, GuestState> {
        self.guest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_off(&self) -> bool {
        self.guest().off
    }

    /// Whether its idle listener is to end.
    fn retires(&self) -> bool {
        let guest = self.guest();
        guest.told_to_retire && !guest.had_worker
    }

    fn power_off(&self) {
        self.guest().off = true;
        self.changed.notify_all();
    }

    /// What the host writes to it.
    fn write(&self, write: &VmWrite) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.job_started = write.job_started.or(notes.job_started);
        self.guest().told_to_retire |= write.retire;
    }

    fn listed(&self) -> Vm {
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let guest = self.guest();
        Vm {
            id: self.id.clone(),
            power: if guest.off { Power::Off } else { Power::On },
            uptime: if guest.off { Duration::ZERO } else { self.started.elapsed() },
            heartbeat: if guest.booted && !guest.off { Heartbeat::Ok } else { Heartbeat::Unknown },
            guest: guest.booted.then(|| GuestWord {
                stage: if guest.worker { "running a job" } else { "listening" }.into(),
                last_error: None,
                worker: guest.worker,
            }),
            notes: Some(notes),
        }
    }
}

impl MockHypervisor {
    /// A host without VMs, whose guests reach the pool at `pool_url`.
    pub fn new(timing: Timing, pool_url: String, github: Option<Arc<MockGitHub>>) -> MockHypervisor {
        MockHypervisor {
            timing,
            pool_url,
            github,
            vms: Mutex::default(),
            faults: Mutex::default(),
            host: Mutex::new(Host { template: "template".into(), free_bytes: 1 << 40 }),
            stop_creating: Default::default(),
        }
    }

    /// Puts another template in the place of the present one.
    pub fn set_template(&self, name: &str) {
        self.host().template = name.into();
    }

    /// Leaves so much room for the VMs' disks.
    pub fn set_free_bytes(&self, free_bytes: u64) {
        self.host().free_bytes = free_bytes;
    }

    fn host(&self) -> MutexGuard<'_, Host> {
        self.host.lock().unwrap_or_else(PoisonError::into_inner)
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
        let (stop, stopped) = &self.stop_creating;
        let stop = stop.lock().unwrap_or_else(PoisonError::into_inner);
        let (stop, _) = stopped
            .wait_timeout_while(stop, self.timing.create, |stop| !*stop)
            .unwrap_or_else(PoisonError::into_inner);
        if *stop {
            return Err(Error("the pool stops: no VM is made".into()));
        }
        drop(stop);
        if self.strikes(|faults| &mut faults.failing_creates) {
            return Err(Error("a simulated fault: the VM could not be made".into()));
        }
        let vm = Arc::new(SimulatedVm {
            id: spec.id.clone(),
            notes: Mutex::new(spec.notes.clone()),
            secret: spec.secret.clone(),
            started: Instant::now(),
            guest: Mutex::default(),
            changed: Condvar::new(),
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
        Some(self.host().template.clone())
    }

    fn stop_creating(&self) {
        let (stop, stopped) = &self.stop_creating;
        *stop.lock().unwrap_or_else(PoisonError::into_inner) = true;
        stopped.notify_all();
    }

    fn list(&self, writes: &[VmWrite]) -> Result<Inventory, Error> {
        let leave_out = self.strikes(|faults| &mut faults.lists_without_vms);
        let vms = self.lock();
        for write in writes {
            vms.iter().filter(|vm| vm.id == write.vm).for_each(|vm| vm.write(write));
        }
        Ok(Inventory {
            vms: vms.iter().filter(|_| !leave_out).map(|vm| vm.listed()).collect(),
            disks: vms.iter().map(|vm| vm.id.clone()).collect(),
            free_bytes: Some(self.host().free_bytes),
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
    name: String,
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
        if self.vm.run(self.timing.boot) {
            self.vm.guest().booted = true;
        }
        if let Some(config) = self.fetch_config() {
            match &self.github {
                Some(github) => self.work(github, &config),
                None => {
                    while self.vm.run(Duration::from_millis(200)) && !self.vm.retires() {}
                    self.report_end();
                }
            }
        }
        self.vm.power_off();
    }

    /// What `run.cmd --jitconfig` does, and the report after it.
    fn work(&self, github: &MockGitHub, config: &GuestConfig) {
        let Some(runner_id) = github.connect(&config.token) else { return };
        let job_id = loop {
            if self.vm.is_off() || !github.is_registered(runner_id) || self.vm.retires() {
                github.disconnect(runner_id);
                self.report_end();
                return;
            }
            if let Some(job_id) = github.take_job(runner_id, Duration::from_millis(200)) {
                break job_id;
            }
        };
        (self.vm.guest().worker, self.vm.guest().had_worker) = (true, true);
        github.deliver("in_progress", job_id, runner_id, &config.name);
        self.post(
            "runner-started",
            &format!(r#"{{"run_id":"{job_id}","job":"simulated","repository":"simulated"}}"#),
        );
        if !self.vm.run(self.timing.job) {
            github.disconnect(runner_id);
            return;
        }
        github.end_job(runner_id);
        self.vm.guest().worker = false;
        self.report_end();
        github.deliver("completed", job_id, runner_id, &config.name);
    }

    fn report_end(&self) {
        for _ in 0..5 {
            if self.vm.is_off() {
                break;
            }
            if self.post("runner-complete", r#"{"exit_code":0}"#) || !self.vm.run(Duration::from_millis(500))
            {
                break;
            }
        }
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
#[cfg(test)]
mod tests {
    use super::*;
    use crate::github::scope::Scope;

    fn host(create: Duration) -> MockHypervisor {
        let timing = Timing { create, boot: Duration::ZERO, job: Duration::ZERO };
        let host = MockHypervisor::new(timing, String::new(), None);
        host.set_faults(Faults { dead_guests: u32::MAX, ..Faults::default() });
        host
    }

    fn spec(incarnation: &str) -> VmSpec {
        let id = VmId { name: "runner-1".into(), incarnation: incarnation.into() };
        let notes = Notes {
            pool: "/p".into(),
            slot: 1,
            incarnation: incarnation.into(),
            scope: Scope { api_url: "mock".into(), owner: "mock-org".into(), repository: None },
            runner_name: "runner-1".into(),
            runner_id: None,
            fingerprint: None,
            created: 1,
            job_started: None,
        };
        VmSpec { id, notes, secret: Secret::new("s") }
    }

    #[test]
    fn what_is_written_goes_to_that_incarnation_alone_and_is_listed() {
        let host = host(Duration::ZERO);
        let (first, second) = (spec("00000000000000aa"), spec("00000000000000bb"));
        host.create(&first).unwrap();
        host.create(&second).unwrap();
        let write =
            VmWrite { vm: first.id.clone(), job_started: Some(7), retire: false, forget_jit_config: true };
        host.list(std::slice::from_ref(&write)).unwrap();
        host.list(&[VmWrite { job_started: None, ..write }]).unwrap();
        let job_started = |id: &VmId| {
            let vms = host.list(&[]).unwrap().vms;
            vms.into_iter().find(|vm| vm.id == *id).unwrap().notes.unwrap().job_started
        };
        assert_eq!((job_started(&first.id), job_started(&second.id)), (Some(7), None));
    }

    #[test]
    fn a_stop_cuts_off_a_creation_and_lets_none_begin() {
        let host = host(Duration::from_secs(3600));
        std::thread::scope(|scope| {
            let creation = scope.spawn(|| host.create(&spec("00000000000000aa")));
            host.stop_creating();
            assert!(creation.join().unwrap().is_err());
        });
        assert!(host.create(&spec("00000000000000bb")).is_err());
        assert_eq!(host.list(&[]).unwrap().vms, []);
    }

    #[test]
    fn a_vm_that_is_off_has_no_uptime_and_a_new_template_another_fingerprint() {
        let host = host(Duration::ZERO);
        host.create(&spec("00000000000000aa")).unwrap();
        assert!(host.power_off("runner-1"));
        let vm = host.list(&[]).unwrap().vms.remove(0);
        assert_eq!((vm.power, vm.uptime), (Power::Off, Duration::ZERO));
        let before = host.fingerprint();
        host.set_template("newer");
        assert_ne!(host.fingerprint(), before);
    }
}
