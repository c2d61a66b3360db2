//! `POST /webhook` with any body, event and signature: an answer of the ones
//! that there are, and 200 or 400 only for the right signature.
#![no_main]

use hyperv_runner_pool::config::{MockTiming, PoolConfig, Source};
use hyperv_runner_pool::http::Api;
use hyperv_runner_pool::http::server::{self, Limits, Request};
use hyperv_runner_pool::pool::slot::types::Phase;
use hyperv_runner_pool::secret::{Keys, Secret};
use hyperv_runner_pool::sim::github::MockGitHub;
use hyperv_runner_pool::sim::hypervisor::{Faults, MockHypervisor};
use hyperv_runner_pool::workers::Pool;
use libfuzzer_sys::fuzz_target;
use std::io::{Read, Write};
use std::net::{self, TcpListener, TcpStream};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// A pool with one silent simulated VM, and its HTTP server.
struct Running {
    keys: Keys,
    server: server::Server,
}

static SERVER: LazyLock<Running> = LazyLock::new(|| {
    let keys = Keys::new(&Secret::new("fuzz"));
    let source = Source::new([], std::env::temp_dir());
    let usual = source.load_with(b"USE_MOCK=true").expect("nothing else is required").config;
    let github_config = usual.github;
    let github = MockGitHub::new(github_config.scope(), &github_config.labels, String::new(), keys.clone());
    let timing = MockTiming { create: Duration::ZERO, boot: Duration::ZERO, job: Duration::ZERO };
    let hypervisor = Arc::new(MockHypervisor::new(timing, String::new(), None));
    hypervisor.set_faults(Faults { dead_guests: u32::MAX, ..Faults::default() });
    let day = Duration::from_secs(86_400);
    let settings = PoolConfig { size: 1, warm: 1, boot_timeout: day, poll: day, ..usual.pool };
    let identity = ("7a9e0001".into(), "fuzz".into());
    let pool = Pool::start(&settings, &github_config, identity, (Arc::new(github), None), hypervisor, keys.clone(), None);
    let pool = Arc::new(pool.expect("threads"));
    while pool.snapshot().count(Phase::Booting) != 1 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let api = Api::new(pool.clone(), keys.clone(), github_config, None);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let answer = Arc::new(move |request: &Request| api.answer(request));
    let server = server::serve(listener, Limits::default(), answer).expect("threads");
    Running { keys, server }
});

/// Sends `bytes` and nothing more, and answers with the status of every answer.
fn exchange(bytes: &[u8]) -> Vec<u16> {
    let mut stream = TcpStream::connect(SERVER.server.local_addr()).expect("the server accepts");
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

fuzz_target!(|input: (bool, u64, &[u8], &[u8], &[u8])| {
    let (right, delivery, event, signature, body) = input;
    let value =
        |bytes: &[u8]| -> Vec<u8> { bytes.iter().filter(|b| (b' '..127).contains(*b)).copied().collect() };
    let right_one = SERVER.keys.sign_webhook(body).into_bytes();
    let signature = if right { right_one.clone() } else { value(signature) };
    let is_right = signature.trim_ascii() == right_one;
    let mut request = b"POST /webhook HTTP/1.1\r\nHost: h\r\nX-Hub-Signature-256: ".to_vec();
    request.extend_from_slice(&signature);
    if !event.is_empty() {
        request.extend_from_slice(b"\r\nX-GitHub-Event: ");
        request.extend_from_slice(&value(event));
    }
    request
        .extend_from_slice(format!("\r\nX-GitHub-Delivery: {delivery}\r\nConnection: close\r\n").as_bytes());
    request.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
    if request.len() > 16 * 1024 {
        return;
    }
    request.extend_from_slice(body);
    let answer = exchange(&request);
    match answer.first().copied() {
        Some(200 | 400) => assert!(is_right, "taken without the right signature"),
        Some(401) => assert!(!is_right, "the right signature is refused"),
        other => panic!("{other:?}"),
    }
    assert_eq!(answer.len(), 1);
});
