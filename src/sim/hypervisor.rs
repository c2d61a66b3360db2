//! Simulated VMs for `USE_MOCK=true`, whose guests speak the real protocol
//! over real HTTP: they fetch their configuration, run the job that the
//! simulated GitHub gives them, report, and power off. They retire when asked.

use super::github::MockGitHub;
use crate::config::MockTiming;
use crate::control::loopback_agent;
use crate::hypervisor::{
    Error, Examination, GuestWord, Heartbeat, Hypervisor, Inventory, Notes, Power, Vm, VmId, VmSpec, VmWrite,
};
use crate::secret::{Secret, vm_proof};
use crate::sync::unpoisoned;
use serde::Deserialize;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What every simulated VM shows: 4 by 3 pixels of blue.
const SCREEN: &[u8] = include_bytes!("screen.png");

/// A host whose VMs are threads.
pub struct MockHypervisor {
    timing: MockTiming,
    pool_url: String,
    /// Absent when runners are registered with the real GitHub: then a guest
    /// only fetches its configuration and stays until it is destroyed.
    github: Option<Arc<MockGitHub>>,
    host: Mutex<Host>,
    creating_stopped: Condvar,
}

#[derive(Default)]
struct Host {
    vms: Vec<Arc<SimulatedVm>>,
    /// The failed VM that is kept.
    kept: Option<VmId>,
    faults: Faults,
    stops_creating: bool,
}

/// What is odd about the host, or shall go wrong, for tests.
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
    /// The template is not the one it was.
    pub template_replaced: bool,
    /// So many bytes are free for the VMs' disks. `None` for plenty.
    pub free_bytes: Option<u64>,
}

impl MockHypervisor {
    /// A host without VMs, whose guests reach the pool at `pool_url`.
    pub fn new(timing: MockTiming, pool_url: String, github: Option<Arc<MockGitHub>>) -> MockHypervisor {
        let (host, creating_stopped) = Default::default();
        MockHypervisor { timing, pool_url, github, host, creating_stopped }
    }

    /// Says what shall go wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.host().faults = faults;
    }

    /// Powers a VM off, as a crash of its guest would. Returns whether there is one.
    pub fn power_off(&self, vm_name: &str) -> bool {
        let host = self.host();
        let vm = host.vms.iter().find(|vm| vm.id.name == vm_name);
        vm.inspect(|vm| vm.power_off()).is_some()
    }

    fn host(&self) -> MutexGuard<'_, Host> {
        unpoisoned(&self.host)
    }
}

/// Counts a fault down. Returns whether it strikes.
fn strikes(left: &mut u32) -> bool {
    let strikes = *left > 0;
    *left = left.saturating_sub(1);
    strikes
}

impl Hypervisor for MockHypervisor {
    fn create(&self, spec: &VmSpec) -> Result<(), Error> {
        let (mut host, _) = self
            .creating_stopped
            .wait_timeout_while(self.host(), self.timing.create, |host| !host.stops_creating)
            .unwrap_or_else(PoisonError::into_inner);
        if host.stops_creating {
            return Err(Error("the pool stops: no VM is made".into()));
        }
        if strikes(&mut host.faults.failing_creates) {
            return Err(Error("a simulated fault: the VM could not be made".into()));
        }
        let vm = Arc::new(SimulatedVm {
            id: spec.id.clone(),
            secret: spec.secret.clone(),
            timing: self.timing.clone(),
            pool_url: self.pool_url.clone(),
            github: self.github.clone(),
            started: Instant::now(),
            state: Mutex::new(VmState::new(spec)),
            changed: Condvar::new(),
        });
        host.vms.push(Arc::clone(&vm));
        if strikes(&mut host.faults.dead_guests) {
            return Ok(());
        }
        std::thread::Builder::new()
            .name(format!("guest-{}", spec.id.name))
            .stack_size(256 * 1024)
            .spawn(move || vm.run())
            .map_err(|error| Error(format!("cannot start a simulated guest: {error}")))?;
        Ok(())
    }

    fn destroy(&self, vm: &VmId) -> Result<(), Error> {
        let mut host = self.host();
        if strikes(&mut host.faults.failing_destroys) {
            return Err(Error("a simulated fault: the VM could not be destroyed".into()));
        }
        host.vms.iter().filter(|simulated| simulated.id == *vm).for_each(|simulated| simulated.power_off());
        host.vms.retain(|simulated| simulated.id != *vm);
        Ok(())
    }

    fn keep(&self, vm: &VmId) -> Result<(), Error> {
        self.destroy(vm)?;
        let VmId { incarnation, .. } = vm.clone();
        self.host().kept = Some(VmId { name: format!("failed-{incarnation}"), incarnation });
        Ok(())
    }

    fn examine(&self, vm: &VmId) -> Result<Examination, Error> {
        let host = self.host();
        let Some(vm) = host.vms.iter().find(|simulated| simulated.id == *vm) else {
            return Err(Error(format!("{vm} is not there")));
        };
        Ok(Examination {
            uptime: Some(vm.started.elapsed()),
            addresses: vec!["192.0.2.1".into()],
            picture: Some(SCREEN.into()),
            missing: None,
        })
    }

    fn fingerprint(&self) -> Option<String> {
        let replaced = self.host().faults.template_replaced;
        Some(if replaced { "another template" } else { "template" }.into())
    }

    fn stop_creating(&self) {
        self.host().stops_creating = true;
        self.creating_stopped.notify_all();
    }

    fn list(&self, writes: &[VmWrite]) -> Result<Inventory, Error> {
        let mut host = self.host();
        for write in writes {
            host.vms.iter().filter(|vm| vm.id == write.vm).for_each(|vm| vm.write(write));
        }
        let leave_out = strikes(&mut host.faults.lists_without_vms);
        Ok(Inventory {
            vms: host.vms.iter().filter(|_| !leave_out).map(|vm| vm.listed()).collect(),
            disks: host.vms.iter().map(|vm| vm.id.clone()).collect(),
            kept: host.kept.iter().cloned().collect(),
            free_bytes: Some(host.faults.free_bytes.unwrap_or(1 << 40)),
        })
    }
}

/// A VM and its guest, which is a thread.
struct SimulatedVm {
    id: VmId,
    secret: Secret,
    timing: MockTiming,
    pool_url: String,
    github: Option<Arc<MockGitHub>>,
    started: Instant,
    state: Mutex<VmState>,
    changed: Condvar,
}

struct VmState {
    notes: Notes,
    /// In its key-values, until the pool removes it.
    jit_config: Option<Secret>,
    off: bool,
    booted: bool,
    /// Its Worker runs, or has run.
    worker: bool,
    had_worker: bool,
    told_to_retire: bool,
}

impl VmState {
    fn new(spec: &VmSpec) -> VmState {
        VmState {
            notes: spec.notes.clone(),
            jit_config: spec.jit_config.clone(),
            off: false,
            booted: false,
            worker: false,
            had_worker: false,
            told_to_retire: false,
        }
    }
}

/// What a guest reads of its configuration.
#[derive(Deserialize)]
struct GuestConfig {
    token: String,
    name: String,
}

impl SimulatedVm {
    fn state(&self) -> MutexGuard<'_, VmState> {
        unpoisoned(&self.state)
    }

    // --- what the host does ---

    fn power_off(&self) {
        self.state().off = true;
        self.changed.notify_all();
    }

    fn write(&self, write: &VmWrite) {
        let mut state = self.state();
        state.notes.job_started = write.job_started.or(state.notes.job_started);
        state.told_to_retire |= write.retire;
        if write.forget_jit_config {
            state.jit_config = None;
        }
    }

    fn listed(&self) -> Vm {
        let state = self.state();
        Vm {
            id: self.id.clone(),
            power: if state.off { Power::Off } else { Power::On },
            uptime: if state.off { Duration::ZERO } else { self.started.elapsed() },
            heartbeat: if state.booted && !state.off { Heartbeat::Ok } else { Heartbeat::Unknown },
            guest: state.booted.then(|| GuestWord {
                stage: if state.worker { "running a job" } else { "listening" }.into(),
                last_error: None,
                worker: state.worker,
            }),
            holds_jit_config: Some(state.jit_config.is_some()),
            notes: Some(state.notes.clone()),
        }
    }

    // --- what the guest does ---

    /// From power-on to power-off.
    fn run(&self) {
        if self.passes(self.timing.boot) {
            self.state().booted = true;
        }
        // Read first: once it has its configuration, the pool removes it.
        let jit_config = self.state().jit_config.clone();
        if let Some(config) = self.fetch_config() {
            match &self.github {
                Some(github) => {
                    let credential = jit_config.unwrap_or(Secret::new(config.token));
                    self.work(github, &config.name, &credential);
                }
                None => {
                    while self.passes(Duration::from_millis(200)) && !self.retires() {}
                    self.report_end();
                }
            }
        }
        self.power_off();
    }

    /// Lets time pass inside the VM. Returns whether it is still on.
    fn passes(&self, time: Duration) -> bool {
        let (state, _) = self
            .changed
            .wait_timeout_while(self.state(), time, |state| !state.off)
            .unwrap_or_else(PoisonError::into_inner);
        !state.off
    }

    /// Whether its idle listener is to end.
    fn retires(&self) -> bool {
        let state = self.state();
        state.told_to_retire && !state.had_worker
    }

    /// What `run.cmd --jitconfig` does, and the report after it.
    fn work(&self, github: &MockGitHub, runner_name: &str, credential: &Secret) {
        let Some(runner_id) = github.connect(credential.expose()) else { return };
        let job_id = loop {
            if self.state().off || !github.is_registered(runner_id) || self.retires() {
                github.disconnect(runner_id);
                return self.report_end();
            }
            if let Some(job_id) = github.take_job(runner_id, Duration::from_millis(200)) {
                break job_id;
            }
        };
        (self.state().worker, self.state().had_worker) = (true, true);
        github.deliver("in_progress", job_id, runner_id, runner_name);
        self.post(
            "runner-started",
            &format!(r#"{{"run_id":"{job_id}","job":"simulated","repository":"simulated"}}"#),
        );
        if !self.passes(self.timing.job) {
            return github.disconnect(runner_id);
        }
        github.end_job(runner_id);
        self.state().worker = false;
        self.report_end();
        github.deliver("completed", job_id, runner_id, runner_name);
    }

    fn report_end(&self) {
        for _ in 0..5 {
            let told = || self.post("runner-complete", r#"{"exit_code":0}"#);
            if self.state().off || told() || !self.passes(Duration::from_millis(500)) {
                break;
            }
        }
    }

    fn fetch_config(&self) -> Option<GuestConfig> {
        while !self.state().off {
            let path = self.path("runner-config");
            let request = loopback_agent()
                .get(self.pool_url.clone() + &path)
                .header("Authorization", self.bearer("GET", &path));
            match request.call() {
                Ok(mut answer) if answer.status() == 200 => return answer.body_mut().read_json().ok(),
                Ok(answer) if answer.status().is_client_error() => return None,
                // The pool may be busy, or not yet listening.
                _ => self.passes(Duration::from_millis(500)),
            };
        }
        None
    }

    /// Returns whether the pool has taken it.
    fn post(&self, what: &str, body: &str) -> bool {
        let path = self.path(what);
        let request = loopback_agent()
            .post(self.pool_url.clone() + &path)
            .header("Authorization", self.bearer("POST", &path));
        request.content_type("application/json").send(body).is_ok_and(|answer| answer.status() == 200)
    }

    fn path(&self, what: &str) -> String {
        format!("/api/{what}/{}", self.id.name)
    }

    fn bearer(&self, method: &str, path: &str) -> String {
        format!("Bearer {}", vm_proof(&self.secret, method, path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::github::scope::Scope;

    fn host(create: Duration) -> MockHypervisor {
        let timing = MockTiming { create, boot: Duration::ZERO, job: Duration::ZERO };
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
        VmSpec { id, notes, secret: Secret::new("s"), jit_config: None }
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
        host.set_faults(Faults { template_replaced: true, ..Faults::default() });
        assert_ne!(host.fingerprint(), before);
    }
}
