//! A pool with one silent simulated VM, and its HTTP server, for the targets
//! that send it something.

use hyperv_runner_pool::config::{GitHubConfig, PoolConfig, RegistrationMode, Shutdown};
use hyperv_runner_pool::http::Api;
use hyperv_runner_pool::http::gate::{self, Gate, Limits, Request};
use hyperv_runner_pool::pool::slot::types::Phase;
use hyperv_runner_pool::secret::{Keys, Secret};
use hyperv_runner_pool::sim::github::MockGitHub;
use hyperv_runner_pool::sim::hypervisor::{Faults, MockHypervisor, Timing};
use hyperv_runner_pool::workers::Pool;
use std::io::{Read, Write};
use std::net::{self, TcpListener, TcpStream};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

pub struct Server {
    #[allow(dead_code)]
    pub pool: Arc<Pool>,
    #[allow(dead_code)]
    pub keys: Keys,
    gate: Gate,
}

pub static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let keys = Keys::new(&Secret::new("fuzz"));
    let github_config = GitHubConfig {
        api_url: "https://api.github.com".into(),
        pat: None,
        org: "octo".into(),
        repo: None,
        registration: RegistrationMode::Jit,
        runner_group: "Default".into(),
        labels: vec!["windows".into()],
    };
    let github = MockGitHub::new(github_config.scope(), &github_config.labels, String::new(), keys.clone());
    let timing = Timing { create: Duration::ZERO, boot: Duration::ZERO, job: Duration::ZERO };
    let hypervisor = Arc::new(MockHypervisor::new(timing, String::new(), None));
    hypervisor.set_faults(Faults { dead_guests: u32::MAX, ..Faults::default() });
    let day = Duration::from_secs(86_400);
    let settings = PoolConfig {
        name_prefix: "runner-".into(),
        size: 1,
        warm: 1,
        boot_timeout: day,
        job_timeout: day,
        poll: day,
        shutdown: Shutdown::Keep,
        surplus_after: day,
        max_idle: day,
        min_free_bytes: 0,
        max_concurrent_creates: 1,
    };
    let identity = ("7a9e0001".into(), "fuzz".into());
    let pool = Pool::start(&settings, &github_config, identity, Arc::new(github), hypervisor, keys.clone());
    let pool = Arc::new(pool.expect("threads"));
    while pool.snapshot().count(Phase::Booting) != 1 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let api = Api::new(pool.clone(), keys.clone(), github_config, None);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let answer = Arc::new(move |request: &Request| api.answer(request));
    let gate = gate::serve(listener, Limits::default(), answer).expect("threads");
    Server { pool, keys, gate }
});

/// Sends `bytes` and nothing more, and answers with the status of every answer.
pub fn exchange(bytes: &[u8]) -> Vec<u16> {
    let mut stream = TcpStream::connect(SERVER.gate.local_addr()).expect("the server accepts");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket");
    // The server may have refused the first part already.
    _ = stream.write_all(bytes);
    _ = stream.shutdown(net::Shutdown::Write);
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        // After a refusal, what was not read resets the connection.
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "after {answer:?}");
        return Vec::new();
    }
    statuses(&answer)
}

/// The status of every answer, which must be whole. No answer here is to HEAD, but for those without a body.
fn statuses(mut answers: &[u8]) -> Vec<u16> {
    let mut statuses = Vec::new();
    while !answers.is_empty() {
        let end = answers.windows(4).position(|w| w == b"\r\n\r\n").expect("a whole head") + 4;
        let head = std::str::from_utf8(&answers[..end]).expect("a head of text");
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
        statuses.push(status.and_then(|s| s.parse().ok()).expect("a status"));
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "))
            .map_or(0, |n| n.parse::<usize>().expect("a length"));
        answers = &answers[end..];
        // An answer to HEAD names the length of a body that does not follow.
        if answers.len() >= length && !answers.starts_with(b"HTTP/1.1 ") {
            answers = &answers[length..];
        } else {
            assert!(answers.is_empty() || answers.starts_with(b"HTTP/1.1 "), "cut short");
        }
    }
    statuses
}
