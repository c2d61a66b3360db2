//! A pool with its HTTP server in the test's process, over the mock: simulated
//! VMs and a simulated GitHub, in which everything takes milliseconds.
//!
//! The tests reach what is inside of the program through this file only.

use super::delivery::{self, LABELS};
use super::fake_guest::FakeGuest;
use super::http::{self, Connection, Response};
use super::wait_until;
use hyperv_runner_pool::config::{Config, GitHubConfig, Intake, MockTiming, PoolConfig, Source};
use hyperv_runner_pool::github::queue::JobQueue;
use hyperv_runner_pool::github::{GitHub, Runner};
use hyperv_runner_pool::http::server::{self, Limits, Request, Server};
use hyperv_runner_pool::http::{Api, JobListener};
use hyperv_runner_pool::hypervisor::{Error, Examination, Hypervisor, Inventory, VmId, VmSpec, VmWrite};
use hyperv_runner_pool::pool::slot::types::{Instance, SlotSnapshot};
pub use hyperv_runner_pool::pool::slot::types::{Phase, Stop};
use hyperv_runner_pool::secret::{Keys, Secret};
use hyperv_runner_pool::sim::github::MockGitHub;
use hyperv_runner_pool::sim::hypervisor::{Faults, MockHypervisor};
use hyperv_runner_pool::workers::{Pool, STOP_LIMIT};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub const SECRET: &str = "test-webhook-secret";
/// How the incarnations of this pool's VMs begin.
pub const TAG: &str = "7a9e0001";

fn usual() -> Config {
    Source::new([], std::env::temp_dir()).load_with(b"USE_MOCK=true").unwrap().config
}

pub fn settings(size: u32, warm: u32) -> PoolConfig {
    let poll = Duration::from_millis(20);
    PoolConfig { size, warm, poll, max_concurrent_creates: size, ..usual().pool }
}

/// JIT runners of the organization `octo`.
pub fn github_config() -> GitHubConfig {
    GitHubConfig { org: "octo".into(), labels: LABELS.map(String::from).to_vec(), ..usual().github }
}

/// A simulated GitHub for the pool at `url`.
pub fn mock_github(url: &str, keys: &Keys) -> Arc<MockGitHub> {
    let GitHubConfig { labels, .. } = &github_config();
    Arc::new(MockGitHub::new(github_config().scope(), labels, format!("{url}/webhook"), keys.clone()))
}

/// How one pool sees the simulated host: that it stops keeps no later pool from making VMs.
struct HostOfOnePool(Arc<MockHypervisor>);

impl Hypervisor for HostOfOnePool {
    fn create(&self, vm: &VmSpec) -> Result<(), Error> {
        self.0.create(vm)
    }

    fn destroy(&self, vm: &VmId) -> Result<(), Error> {
        self.0.destroy(vm)
    }

    fn keep(&self, vm: &VmId) -> Result<(), Error> {
        self.0.keep(vm)
    }

    fn examine(&self, vm: &VmId) -> Result<Examination, Error> {
        self.0.examine(vm)
    }

    fn list(&self, writes: &[VmWrite]) -> Result<Inventory, Error> {
        self.0.list(writes)
    }

    fn fingerprint(&self) -> Option<String> {
        self.0.fingerprint()
    }

    fn stop_creating(&self) {}
}

/// The simulated VMs and GitHub, which outlive a pool.
pub struct MockWorld {
    github: Arc<MockGitHub>,
    hypervisor: Arc<MockHypervisor>,
    listener: TcpListener,
    gives_jobs: bool,
    queue: Option<Arc<dyn JobQueue>>,
}

impl MockWorld {
    pub fn new() -> MockWorld {
        MockWorld::with_jobs_of(Duration::from_millis(20))
    }

    /// Everything takes no time, but for jobs.
    pub fn with_jobs_of(job: Duration) -> MockWorld {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let github = mock_github(&url, &Keys::new(&Secret::new(SECRET)));
        let timing = MockTiming { create: Duration::ZERO, boot: Duration::ZERO, job };
        let hypervisor = Arc::new(MockHypervisor::new(timing, url, Some(Arc::clone(&github))));
        MockWorld { github, hypervisor, listener, gives_jobs: true, queue: None }
    }

    pub fn with_endless_jobs() -> MockWorld {
        MockWorld::with_jobs_of(Duration::from_secs(3600))
    }

    /// Its GitHub gives no job to any runner.
    pub fn without_jobs() -> MockWorld {
        MockWorld { gives_jobs: false, ..MockWorld::new() }
    }

    /// Its pools learn of jobs from this queue of a scale set, and of none by webhooks.
    pub fn with_queue(queue: impl JobQueue + 'static) -> MockWorld {
        MockWorld { queue: Some(Arc::new(queue)), ..MockWorld::without_jobs() }
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

    /// The failed VM that is kept.
    pub fn kept(&self) -> Vec<VmId> {
        self.hypervisor.list(&[]).unwrap().kept
    }

    pub fn power_off(&self, vm_name: &str) {
        assert!(self.hypervisor.power_off(vm_name), "no VM {vm_name}");
    }

    /// Puts another template in the place of the present one.
    pub fn replace_template(&self) {
        self.hypervisor.set_faults(Faults { template_replaced: true, ..Faults::default() });
    }

    pub fn set_free_bytes(&self, free_bytes: u64) {
        self.hypervisor.set_faults(Faults { free_bytes: Some(free_bytes), ..Faults::default() });
    }

    /// Registers a runner with GitHub, and returns its id.
    pub fn register(&self, name: &str) -> u64 {
        self.github.register(name).unwrap().runner_id.unwrap()
    }

    /// The runners that GitHub has.
    pub fn runners(&self) -> Vec<Runner> {
        self.github.runners().unwrap()
    }

    pub fn start(&self, settings: PoolConfig) -> MockPool {
        self.start_with_logs(settings, None)
    }

    pub fn start_with_logs(&self, settings: PoolConfig, log_dir: Option<&Path>) -> MockPool {
        let keys = Keys::new(&Secret::new(SECRET));
        let intake = if self.queue.is_some() { Intake::ScaleSet } else { Intake::Webhook };
        let github = GitHubConfig { intake, ..github_config() };
        let hypervisor = Arc::new(HostOfOnePool(self.hypervisor.clone()));
        let identity = (TAG.to_owned(), "test".to_owned());
        let pool = Pool::start(
            &settings,
            &github,
            identity,
            (self.github.clone(), self.queue.clone()),
            hypervisor,
            keys.clone(),
            log_dir,
        )
        .unwrap();
        let pool = Arc::new(pool);
        let jobs = self.github.clone();
        let listener: Box<JobListener> = Box::new(move |action, job, labels| match action {
            "queued" => jobs.offer(job, labels.to_vec()),
            _ => jobs.withdraw(job),
        });
        let listener = self.gives_jobs.then_some(listener);
        let api = Api::new(pool.clone(), keys.clone(), github, listener);
        let listener = self.listener.try_clone().unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = server::serve(
            listener,
            Limits::default(),
            Arc::new(move |request: &Request| api.answer(request)),
        )
        .unwrap();
        MockPool { pool, url, keys, server }
    }
}

/// The running pool.
pub struct MockPool {
    pool: Arc<Pool>,
    pub url: String,
    pub keys: Keys,
    server: Server,
}

impl MockPool {
    /// Every slot, in order.
    pub fn slots(&self) -> Vec<SlotSnapshot> {
        self.pool.snapshot().slots
    }

    /// A slot, counted from 1.
    pub fn slot(&self, number: u32) -> SlotSnapshot {
        self.slots().swap_remove(number as usize - 1)
    }

    pub fn phase(&self, number: u32) -> Phase {
        self.slot(number).phase
    }

    /// The first slot in this phase.
    pub fn slot_in(&self, phase: Phase) -> SlotSnapshot {
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

    /// The VM that a slot has.
    pub fn instance(&self, number: u32) -> Instance {
        self.slot(number).instance.expect("a VM")
    }

    pub fn incarnation(&self, number: u32) -> Option<String> {
        Some(self.slot(number).instance?.vm.incarnation)
    }

    /// The secret of the VM that a slot has.
    pub fn vm_secret(&self, number: u32) -> String {
        let vm = self.instance(number).vm;
        self.keys.vm_secret(&vm.name, &vm.incarnation).expose().to_string()
    }

    /// The guest of the VM that a slot has.
    pub fn guest(&self, number: u32) -> FakeGuest {
        FakeGuest::new(&self.url, &self.instance(number).vm.name, &self.vm_secret(number))
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
        self.stop_within(stop, STOP_LIMIT);
    }

    pub fn stop_within(self, stop: Stop, limit: Duration) {
        self.pool.stop(stop);
        assert!(self.pool.join(limit), "it stops in time");
        self.server.stop();
    }
}
