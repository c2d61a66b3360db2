//! What the pool costs, in one table: `cargo bench`. Takes less than a minute.
//!
//! Where it can, it runs the program as its users do, as a process of its own
//! with simulated VMs (which are threads of that process, one each, and an
//! HTTP client in each: they count in its memory).
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../tests/it/support/mod.rs"]
#[allow(dead_code, reason = "the benches use a part of what the tests share")]
mod support;

use hyperv_runner_pool::config::{MockTiming, PoolConfig};
use hyperv_runner_pool::date;
use hyperv_runner_pool::http::Api;
use hyperv_runner_pool::http::server::{self, Limits, Request, Server};
use hyperv_runner_pool::hypervisor::{Error, Examination, Hypervisor, Inventory, VmId, VmSpec};
use hyperv_runner_pool::pool::slot::types::{Phase, Stop};
use hyperv_runner_pool::secret::{Keys, Secret};
use hyperv_runner_pool::sim::hypervisor::{Faults, MockHypervisor};
use hyperv_runner_pool::workers::{Pool, STOP_LIMIT};
use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::fake_guest::FakeGuest;
use support::mock_pool::{SECRET, TAG, github_config, mock_github, settings};
use support::process::Process;
use support::wait_until;

const BODY: &str = r#"{"action":"queued","workflow_job":{"id":2832853555,"run_id":940463255,"labels":["self-hosted","windows"],"runner_id":null,"runner_name":null},"repository":{"name":"hello-world"}}"#;

fn main() {
    if !std::env::args().any(|arg| arg == "--bench") {
        println!("run it with `cargo bench`: built without optimisation it says nothing");
        return;
    }
    println!("hyperv-runner-pool {}, {}", env!("CARGO_PKG_VERSION"), today());
    println!("{}\n", machine());
    row("what", "result", "how");
    row("---", "---", "---");
    webhooks();
    signature();
    callback();
    size();
    start_up();
    monitor();
    all_ready();
}

fn row(what: &str, result: &str, how: &str) {
    println!("| {what:<42} | {result:<44} | {how} |");
}

fn today() -> String {
    let now = date::timestamp(std::time::SystemTime::now());
    now.split('T').next().unwrap_or_default().to_owned()
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("");
    let model = model.trim_start_matches([' ', '\t', ':']);
    format!("{} {}, {cores} cores {model}", std::env::consts::OS, std::env::consts::ARCH)
}

/// The value below which this share of the times lies.
fn percentile(times: &mut [Duration], share: f64) -> Duration {
    times.sort();
    times[((times.len() - 1) as f64 * share) as usize]
}

fn micros(time: Duration) -> String {
    format!("{:.0} µs", time.as_secs_f64() * 1e6)
}

fn p50_p99(times: &mut [Duration]) -> String {
    format!("p50 {}, p99 {}", micros(percentile(times, 0.5)), micros(percentile(times, 0.99)))
}

/// Signed deliveries, from socket to the pool's book and back.
fn webhooks() {
    const CONNECTIONS: usize = 32;
    const TIME: Duration = Duration::from_secs(5);
    let inert = [("POOL_SIZE", "1"), ("MOCK_CREATE_SECONDS", "86400")];
    let pool = quiet(&inert);
    let signature = pool.keys.sign_webhook(BODY.as_bytes());
    let began = Instant::now();
    let clients: Vec<_> = (0..CONNECTIONS)
        .map(|client| {
            let (signature, address) = (signature.clone(), pool.url.trim_start_matches("http://").to_owned());
            std::thread::spawn(move || {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.set_nodelay(true).unwrap();
                let mut times = Vec::new();
                let mut answer = [0; 512];
                while began.elapsed() < TIME {
                    let id = client << 32 | times.len();
                    let request = format!(
                        "POST /webhook HTTP/1.1\r\nHost: h\r\nX-GitHub-Event: workflow_job\r\nX-GitHub-Delivery: {id}\r\nX-Hub-Signature-256: {signature}\r\nContent-Length: {}\r\n\r\n{BODY}",
                        BODY.len()
                    );
                    let sent = Instant::now();
                    stream.write_all(request.as_bytes()).unwrap();
                    let length = stream.read(&mut answer).unwrap();
                    times.push(sent.elapsed());
                    assert!(answer[..length].ends_with(b"\r\n\r\nOK"));
                }
                times
            })
        })
        .collect();
    let mut times: Vec<Duration> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
    let rate = times.len() as f64 / began.elapsed().as_secs_f64();
    row(
        "webhook, from socket to pool",
        &format!("{rate:.0}/s, {}", p50_p99(&mut times)),
        "32 kept-alive connections; the clients share the cores",
    );
}

/// A process that logs nothing, not even where it listens.
fn quiet(settings: &[(&str, &str)]) -> Process {
    Process::start_mock(&[settings, &[("LOG_LEVEL", "error")]].concat())
}

/// What a delivery costs apart from HTTP and the pool.
fn signature() {
    #[derive(serde::Deserialize)]
    struct Delivery {
        action: String,
        workflow_job: Job,
    }
    #[derive(serde::Deserialize)]
    struct Job {
        id: u64,
        labels: Vec<String>,
        runner_id: Option<u64>,
        runner_name: Option<String>,
    }
    const COUNT: u32 = 200_000;
    let keys = Keys::new(&Secret::new(SECRET));
    let signature = keys.sign_webhook(BODY.as_bytes());
    let began = Instant::now();
    for _ in 0..COUNT {
        assert!(keys.webhook_signature_is_valid(black_box(BODY.as_bytes()), black_box(signature.as_bytes())));
    }
    let verified = began.elapsed() / COUNT;
    let began = Instant::now();
    for _ in 0..COUNT {
        let Delivery { action, workflow_job } =
            serde_json::from_slice(black_box(BODY.as_bytes())).expect("the payload is right");
        let Job { id, labels, runner_id, runner_name } = workflow_job;
        black_box((action, id, labels, runner_id, runner_name));
    }
    let parsed = began.elapsed() / COUNT;
    row(
        "webhook, signature and JSON alone",
        &format!("{} ns + {} ns", verified.as_nanos(), parsed.as_nanos()),
        &format!("{} bytes, one thread", BODY.len()),
    );
}

/// Simulated VMs that say when they are asked for.
struct Watched {
    hypervisor: Arc<MockHypervisor>,
    destroys: Mutex<Sender<Instant>>,
    lists: Mutex<Sender<Instant>>,
}

impl Hypervisor for Watched {
    fn create(&self, vm: &VmSpec) -> Result<(), Error> {
        self.hypervisor.create(vm)
    }

    fn destroy(&self, vm: &VmId) -> Result<(), Error> {
        _ = self.destroys.lock().unwrap().send(Instant::now());
        self.hypervisor.destroy(vm)
    }

    fn keep(&self, vm: &VmId) -> Result<(), Error> {
        self.hypervisor.keep(vm)
    }

    fn examine(&self, vm: &VmId) -> Result<Examination, Error> {
        self.hypervisor.examine(vm)
    }

    fn list(&self, writes: &[hyperv_runner_pool::hypervisor::VmWrite]) -> Result<Inventory, Error> {
        _ = self.lists.lock().unwrap().send(Instant::now());
        self.hypervisor.list(writes)
    }

    fn fingerprint(&self) -> Option<String> {
        self.hypervisor.fingerprint()
    }

    fn stop_creating(&self) {
        self.hypervisor.stop_creating();
    }
}

/// A pool in this process whose guests are silent.
struct Inside {
    pool: Arc<Pool>,
    url: String,
    keys: Keys,
    destroys: Receiver<Instant>,
    lists: Receiver<Instant>,
    server: Server,
}

fn inside(slots: u32, poll: Duration) -> Inside {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let keys = Keys::new(&Secret::new(SECRET));
    let github = mock_github(&url, &keys);
    let timing = MockTiming { create: Duration::ZERO, boot: Duration::ZERO, job: Duration::ZERO };
    let hypervisor = Arc::new(MockHypervisor::new(timing, url.clone(), Some(github.clone())));
    hypervisor.set_faults(Faults { dead_guests: u32::MAX, ..Faults::default() });
    let ((destroys, destroyed), (lists, listed)) = (channel(), channel());
    let watched = Watched { hypervisor, destroys: Mutex::new(destroys), lists: Mutex::new(lists) };
    let rules = PoolConfig { poll, ..settings(slots, slots) };
    let identity = (TAG.to_owned(), "bench".to_owned());
    let pool = Pool::start(
        &rules,
        &github_config(),
        identity,
        (github, None),
        Arc::new(watched),
        keys.clone(),
        None,
    );
    let pool = Arc::new(pool.unwrap());
    let api = Api::new(pool.clone(), keys.clone(), github_config(), None);
    let answer = Arc::new(move |request: &Request| api.answer(request));
    let server = server::serve(listener, Limits::default(), answer).unwrap();
    wait_until("the VMs boot", || pool.snapshot().count(Phase::Booting) == slots as usize);
    Inside { pool, url, keys, destroys: destroyed, lists: listed, server }
}

impl Inside {
    fn stop(self) {
        self.pool.stop(Stop::Destroy);
        assert!(self.pool.join(STOP_LIMIT));
        self.server.stop();
    }
}

/// From a guest's runner-complete to the moment when its VM is being destroyed.
fn callback() {
    const ROUNDS: usize = 500;
    let inside = inside(1, Duration::from_secs(3600));
    let mut connection = support::http::Connection::open(&inside.url);
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let vm = loop {
            let slot = &inside.pool.snapshot().slots[0];
            match &slot.instance {
                Some(instance) if slot.phase == Phase::Booting => break instance.vm.clone(),
                _ => std::thread::sleep(Duration::from_micros(200)),
            }
        };
        let secret = inside.keys.vm_secret(&vm.name, &vm.incarnation);
        let guest = FakeGuest::new(&inside.url, &vm.name, secret.expose());
        assert_eq!((guest.fetch_config().status, guest.report_started().status), (200, 200));
        // A VM that ends without a job is no use, and the next one would be a while in coming.
        wait_until("the job runs", || inside.pool.snapshot().count(Phase::Running) == 1);
        let path = "/api/runner-complete/runner-1";
        let headers = [("Authorization", &*guest.bearer("POST", path))];
        let sent = Instant::now();
        assert_eq!(connection.request("POST", path, &headers, b"{}").status, 200);
        times.push(inside.destroys.recv().unwrap().saturating_duration_since(sent));
    }
    row(
        "complete callback until its VM is destroyed",
        &p50_p99(&mut times),
        "from the request's first byte to the start of the destroying",
    );
    inside.stop();
}

#[cfg(target_os = "linux")]
fn size() {
    for slots in ["4", "16", "64", "256"] {
        let count: usize = slots.parse().unwrap();
        let pool = Process::start_mock(&[
            ("POOL_SIZE", slots),
            ("MOCK_CREATE_SECONDS", "0"),
            ("MOCK_BOOT_SECONDS", "0"),
        ]);
        wait_until("all are ready", || pool.health()["ready"] == count);
        std::thread::sleep(Duration::from_millis(500));
        let threads = pool.fact("Threads");
        let guests = std::fs::read_dir(format!("/proc/{}/task", pool.id()))
            .unwrap()
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .filter(|name| name.starts_with("guest-"))
            .count();
        row(
            &format!("memory and threads with {slots} slots"),
            &format!("{:.1} MiB, {} threads", pool.fact("VmRSS") as f64 / 1024.0, threads as usize - guests),
            &format!("resident; the {guests} simulated guests are in the memory, not in the threads"),
        );
    }
}

#[cfg(not(target_os = "linux"))]
fn size() {
    row("memory and threads", "not measured", "needs Linux's /proc");
}

/// Starts the program and reads its log until so many of its lines contain a text; says how long that took.
fn time_until(settings: &[(&str, &str)], said: &str, slots: usize) -> Duration {
    let began = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_hyperv-runner-pool"))
        .envs([("USE_MOCK", "true"), ("PORT", "0"), ("BIND", "127.0.0.1")])
        .envs(settings.iter().copied())
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let seen = lines.filter(|line| line.contains(said)).take(slots).count();
    let took = began.elapsed();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(seen, slots);
    took
}

fn start_up() {
    let settings = [("POOL_SIZE", "4"), ("MOCK_CREATE_SECONDS", "0")];
    let mut times: Vec<Duration> = (0..20).map(|_| time_until(&settings, ": made in ", 1)).collect();
    row(
        "start until the first VM is made",
        &format!("{:.1} ms", percentile(&mut times, 0.5).as_secs_f64() * 1e3),
        "median of 20, simulated VMs that are made in no time",
    );
}

/// The monitor's work, apart from what Hyper-V and GitHub take to answer.
fn monitor() {
    // The shortest pause between two rounds that there is.
    const POLL: Duration = Duration::from_secs(1);
    let inside = inside(256, POLL);
    while inside.lists.try_recv().is_ok() {}
    let began = inside.lists.recv().unwrap();
    let mut ends: Vec<Instant> = (0..10).map(|_| inside.lists.recv().unwrap()).collect();
    let mut before = began;
    let mut times: Vec<Duration> = ends
        .drain(..)
        .map(|end| {
            let time = (end - before).saturating_sub(POLL);
            before = end;
            time
        })
        .collect();
    row(
        "a round of the monitor with 256 VMs",
        &p50_p99(&mut times),
        "without what Hyper-V and GitHub take to list them",
    );
    inside.stop();
}

fn all_ready() {
    let boot = [("POOL_SIZE", "4"), ("MOCK_BOOT_SECONDS", "15"), ("MOCK_CREATE_SECONDS", "0")];
    let took = time_until(&boot, ": ready after ", 4);
    row(
        "start until all of 4 VMs are ready",
        &format!("{:.3} s", took.as_secs_f64()),
        "simulated VMs that boot in 15 s",
    );
}
