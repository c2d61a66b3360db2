//! A pool with its HTTP server in the test's process, over the mock: simulated
//! VMs and a simulated GitHub, in which everything takes milliseconds.
//!
//! The tests reach what is inside of the program through this file only.

use super::delivery::{self, LABELS};
use super::http::{self, Connection, Response};
use super::wait_until;
use hyperv_runner_pool::github::{GitHub, Removal, Runner};
use hyperv_runner_pool::http::gate::{self, Gate, Limits, Request};
use hyperv_runner_pool::http::{Api, RunnerFacts};
use hyperv_runner_pool::hypervisor::{Hypervisor, Notes, VmId, VmSpec};
use hyperv_runner_pool::pool::slot::View;
pub use hyperv_runner_pool::pool::slot::{Phase, Stop};
use hyperv_runner_pool::pool::{Pool, Settings};
use hyperv_runner_pool::secret::{Keys, Secret};
use hyperv_runner_pool::sim::github::MockGitHub;
use hyperv_runner_pool::sim::hypervisor::{Faults, MockHypervisor, Timing};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

pub const SECRET: &str = "test-webhook-secret";
const IDENTITY: &str = "test";

pub fn labels() -> Vec<String> {
    LABELS.map(String::from).to_vec()
}

pub fn settings(size: u32, warm: u32) -> Settings {
    Settings {
        name_prefix: "runner-".into(),
        size,
        warm,
        labels: labels(),
        boot_timeout: Duration::from_secs(600),
        job_timeout: Duration::from_secs(21_600),
        poll: Duration::from_millis(20),
        jit: true,
        identity: IDENTITY.into(),
    }
}

/// The simulated VMs and GitHub, which outlive a pool.
pub struct MockWorld {
    github: Arc<MockGitHub>,
    hypervisor: Arc<MockHypervisor>,
    listener: TcpListener,
}

impl MockWorld {
    pub fn new() -> MockWorld {
        MockWorld::with_jobs_of(Duration::from_millis(20))
    }

    /// Everything takes no time, but for jobs.
    pub fn with_jobs_of(job: Duration) -> MockWorld {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let github =
            Arc::new(MockGitHub::new(&labels(), format!("{url}/webhook"), Keys::new(&Secret::new(SECRET))));
        let timing = Timing { create: Duration::ZERO, boot: Duration::ZERO, job };
        let hypervisor = Arc::new(MockHypervisor::new(timing, url, Some(Arc::clone(&github))));
        MockWorld { github, hypervisor, listener }
    }

    pub fn with_endless_jobs() -> MockWorld {
        MockWorld::with_jobs_of(Duration::from_secs(3600))
    }

    /// Its guests do nothing, so that a test can speak for them.
    pub fn with_silent_guests() -> MockWorld {
        let world = MockWorld::new();
        world.hypervisor.set_faults(Faults { dead_guests: u32::MAX, ..Faults::default() });
        world
    }

    pub fn fail_creates(&self, times: u32) {
        self.hypervisor.set_faults(Faults { failing_creates: times, ..Faults::default() });
    }

    pub fn fail_destroys(&self, times: u32) {
        self.hypervisor.set_faults(Faults { failing_destroys: times, ..Faults::default() });
    }

    /// The next so many lists leave every VM out.
    pub fn leave_vms_out_of_lists(&self, times: u32) {
        self.hypervisor.set_faults(Faults { lists_without_vms: times, ..Faults::default() });
    }

    /// The VMs that are there.
    pub fn vms(&self) -> Vec<VmId> {
        self.hypervisor.list(&[]).unwrap().vms.into_iter().map(|vm| vm.id).collect()
    }

    pub fn power_off(&self, vm_name: &str) {
        assert!(self.hypervisor.power_off(vm_name), "no VM {vm_name}");
    }

    pub fn lose(&self, vm_name: &str) {
        assert!(self.hypervisor.lose(vm_name), "no VM {vm_name}");
    }

    /// Makes a VM as a pool of earlier would have.
    pub fn create_vm(&self, vm_name: &str, runner_id: u64) -> VmId {
        let id = VmId { name: vm_name.into(), incarnation: "00ff00ff00ff00ff".into() };
        let notes = Notes {
            pool: IDENTITY.into(),
            slot: 1,
            incarnation: id.incarnation.clone(),
            scope: self.github.scope().clone(),
            runner_name: vm_name.into(),
            runner_id: Some(runner_id),
            fingerprint: None,
            created: 0,
            job_started: None,
        };
        self.hypervisor.create(&VmSpec { id: id.clone(), notes, secret: Secret::new("wrong") }).unwrap();
        id
    }

    /// Registers a runner with GitHub, and returns its id.
    pub fn register(&self, name: &str) -> u64 {
        self.github.register(name).unwrap().runner_id.unwrap()
    }

    pub fn remove_runner(&self, id: u64) {
        assert_eq!(self.github.remove(self.github.scope(), id), Ok(Removal::Removed));
    }

    /// The runners that GitHub has.
    pub fn runners(&self) -> Vec<Runner> {
        self.github.runners().unwrap()
    }

    pub fn runner(&self, name: &str) -> Option<Runner> {
        self.runners().into_iter().find(|runner| runner.name == name)
    }

    pub fn start(&self, settings: Settings) -> MockPool {
        let keys = Keys::new(&Secret::new(SECRET));
        let pool = Pool::start(settings, self.github.clone(), self.hypervisor.clone(), keys.clone()).unwrap();
        let pool = Arc::new(pool);
        let facts = RunnerFacts {
            organization: "octo".into(),
            repository: None,
            labels: labels(),
            registration: "jit",
            url: "https://github.com/octo".into(),
            runner_group: "Default".into(),
        };
        let api = Api::new(pool.clone(), keys.clone(), facts, Some(self.github.clone()));
        let listener = self.listener.try_clone().unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server =
            gate::serve(listener, Limits::default(), Arc::new(move |request: &Request| api.answer(request)))
                .unwrap();
        MockPool { pool, url, keys, server }
    }
}

/// The running pool.
pub struct MockPool {
    pool: Arc<Pool>,
    pub url: String,
    pub keys: Keys,
    server: Gate,
}

impl MockPool {
    /// Every slot, in order.
    pub fn slots(&self) -> Vec<View> {
        self.pool.snapshot().slots
    }

    /// A slot, counted from 1.
    pub fn slot(&self, number: u32) -> View {
        self.slots().swap_remove(number as usize - 1)
    }

    pub fn phase(&self, number: u32) -> Phase {
        self.slot(number).phase
    }

    /// The first slot in this phase.
    pub fn slot_in(&self, phase: Phase) -> View {
        self.slots().into_iter().find(|slot| slot.phase == phase).unwrap()
    }

    pub fn count(&self, phase: Phase) -> usize {
        self.pool.snapshot().count(phase)
    }

    pub fn jobs_waiting(&self) -> usize {
        self.pool.snapshot().jobs_waiting
    }

    pub fn jobs_completed(&self) -> u64 {
        self.slots().iter().map(|slot| slot.jobs_completed).sum()
    }

    /// Why the pool is not well, if it is not.
    pub fn reason(&self) -> Option<String> {
        self.pool.snapshot().reason().map(str::to_owned)
    }

    pub fn incarnation(&self, number: u32) -> Option<String> {
        Some(self.slot(number).made?.vm.incarnation)
    }

    /// The secret of the VM that a slot has.
    pub fn vm_secret(&self, number: u32) -> String {
        let vm = self.slot(number).made.expect("a VM").vm;
        self.keys.vm_secret(&vm.name, &vm.incarnation).expose().to_string()
    }

    #[track_caller]
    pub fn wait_for(&self, phase: Phase, count: usize) {
        wait_until(&format!("{count} slots {}", phase.name()), || self.count(phase) == count);
    }

    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        http::try_request(&self.url, method, path, headers, body).expect("an answer")
    }

    pub fn get(&self, path: &str) -> Response {
        self.request("GET", path, &[], b"")
    }

    /// A `workflow_job` delivery, signed as GitHub would.
    pub fn deliver(&self, delivery: &str, body: &str) -> Response {
        delivery::deliver(&mut Connection::open(&self.url), &self.keys, delivery, body)
    }

    pub fn queue_job(&self, job: u64) -> Response {
        self.deliver(&format!("queued-{job}"), &delivery::workflow_job("queued", job, None))
    }

    pub fn stop(self, stop: Stop) {
        self.pool.stop(stop);
        self.pool.join();
        self.server.stop();
    }
}
