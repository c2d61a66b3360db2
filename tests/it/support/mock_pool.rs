//! A whole pool with its HTTP server over simulated VMs and a simulated
//! GitHub, in which everything takes milliseconds.

use super::wait_until;
use hyperv_runner_pool::http::gate::{self, Gate, Limits, Request};
use hyperv_runner_pool::http::{Api, RunnerFacts};
use hyperv_runner_pool::pool::slot::{Phase, Stop, View};
use hyperv_runner_pool::pool::{Pool, Settings, Snapshot};
use hyperv_runner_pool::secret::{Keys, Secret};
use hyperv_runner_pool::sim::github::MockGitHub;
use hyperv_runner_pool::sim::hypervisor::{MockHypervisor, Timing};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

pub const SECRET: &str = "test-webhook-secret";

/// The simulated world, which outlives a pool.
pub struct World {
    pub github: Arc<MockGitHub>,
    pub hypervisor: Arc<MockHypervisor>,
    listener: TcpListener,
}

pub struct MockPool {
    pub pool: Arc<Pool>,
    pub url: String,
    pub keys: Keys,
    gate: Gate,
}

pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.body))
    }
}

pub fn labels() -> Vec<String> {
    ["self-hosted", "Windows", "X64", "ephemeral"].map(String::from).to_vec()
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
        identity: "test".into(),
    }
}

/// Everything at once, but for jobs, which take `job`.
pub fn world_with_jobs_of(job: Duration) -> World {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let github =
        Arc::new(MockGitHub::new(&labels(), format!("{url}/webhook"), Keys::new(&Secret::new(SECRET))));
    let timing = Timing { create: Duration::ZERO, boot: Duration::ZERO, job };
    let hypervisor = Arc::new(MockHypervisor::new(timing, url, Some(Arc::clone(&github))));
    World { github, hypervisor, listener }
}

pub fn world() -> World {
    world_with_jobs_of(Duration::from_millis(20))
}

impl World {
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
        let gate =
            gate::serve(listener, Limits::default(), Arc::new(move |request: &Request| api.answer(request)))
                .unwrap();
        MockPool { pool, url, keys, gate }
    }
}

impl MockPool {
    pub fn snapshot(&self) -> Snapshot {
        self.pool.snapshot()
    }

    pub fn slot(&self, number: u32) -> View {
        self.snapshot().slots[number as usize - 1].clone()
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
        wait_until(&format!("{count} slots {}", phase.name()), || self.snapshot().count(phase) == count);
    }

    pub fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = agent().get(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        answer(request.call())
    }

    pub fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = agent().post(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        answer(request.send(body))
    }

    /// A `workflow_job` delivery, signed as GitHub would.
    pub fn deliver(&self, delivery: &str, body: &str) -> Answer {
        let signature = self.keys.sign_webhook(body.as_bytes());
        let headers = [
            ("X-Hub-Signature-256", &*signature),
            ("X-GitHub-Event", "workflow_job"),
            ("X-GitHub-Delivery", delivery),
        ];
        self.post("/webhook", &headers, body.as_bytes())
    }

    pub fn queue_job(&self, job_id: u64) -> Answer {
        let body = format!(
            r#"{{"action":"queued","workflow_job":{{"id":{job_id},"labels":["self-hosted","windows"],"runner_id":null}}}}"#
        );
        self.deliver(&format!("queued-{job_id}"), &body)
    }

    pub fn stop(self, stop: Stop) {
        self.pool.stop(stop);
        self.pool.join();
        self.gate.stop();
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(10)))
        .http_status_as_error(false)
        .proxy(None)
        .build()
        .into()
}

fn answer(result: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Answer {
    let mut response = result.expect("an answer");
    Answer { status: response.status().as_u16(), body: response.body_mut().read_to_string().unwrap() }
}
