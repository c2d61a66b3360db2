//! The program under load, and against clients that mean harm: the real
//! binary, with its real limits, over real sockets. What single requests are
//! refused, and every deadline and limit by itself, is in `http_server`,
//! `webhook` and `routes`.

use crate::support::delivery::{deliver, workflow_job};
#[cfg(target_os = "linux")]
use crate::support::http::Connection;
use crate::support::http::{self, status};
use crate::support::process::Process;
use crate::support::{random, wait_until};
use std::io::Write;
use std::time::{Duration, Instant};

const MIB: usize = 1024 * 1024;

/// One slot that never gets beyond making its VM, so that nothing but the test changes anything.
const INERT: [(&str, &str); 2] = [("POOL_SIZE", "1"), ("MOCK_CREATE_SECONDS", "3600")];

/// One VM that waits for a job.
const ONE_READY: [(&str, &str); 3] = [("POOL_SIZE", "1"), ("MOCK_BOOT_SECONDS", "0"), ("POLL_SECONDS", "1")];

fn one_ready() -> Process {
    let pool = Process::start_mock(&ONE_READY);
    wait_until("a VM is ready", || pool.health()["ready"] == 1);
    pool
}

/// An event of a job of this number, on another pool's runner.
fn event(action: &str, job: u64, runner: u64) -> String {
    workflow_job(action, job, (runner > 0).then_some((runner, "other")))
}

/// A signed delivery, as bytes to send.
fn delivery(pool: &Process, id: &str, body: &str) -> Vec<u8> {
    let signature = pool.keys.sign_webhook(body.as_bytes());
    format!(
        "POST /webhook HTTP/1.1\r\nHost: h\r\nX-Hub-Signature-256: {signature}\r\nX-GitHub-Delivery: {id}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Sends all at once, and reads until the server closes.
fn talk(pool: &Process, request: &[u8]) -> String {
    let mut connection = pool.connect();
    // What is refused may be cut before it is sent.
    _ = connection.write_all(request);
    connection.hang_up();
    connection.read_to_end()
}

#[cfg(target_os = "linux")]
fn allow_many_descriptors() {
    // SAFETY: plain calls on a local structure.
    unsafe {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        limit.rlim_cur = limit.rlim_max.min(20_000).max(limit.rlim_cur);
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
    }
}

/// A fixed order that looks like none.
fn shuffle<T>(items: &mut [T], mut seed: u64) {
    for i in (1..items.len()).rev() {
        items.swap(i, random(&mut seed) as usize % (i + 1));
    }
}

/// What must hold after an attack: the pool is as it was, and nothing broke inside.
fn assert_unmoved(mut pool: Process, before: &serde_json::Value) {
    assert_eq!(pool.slot(1)["incarnation"], before["incarnation"], "the VM was replaced");
    assert_eq!(pool.slot(1)["state"], before["state"]);
    assert_eq!(pool.health()["jobs_waiting"], 0);
    pool.kill();
    let log = pool.log();
    assert!(!log.contains("panicked"), "{log}");
    assert!(!log.contains("mock-secret"), "{log}");
}

#[test]
fn a_burst_of_10_000_deliveries_in_any_order_and_again_has_one_outcome() {
    let mut pool = Process::start_mock(&INERT);
    // 4,000 jobs wait for a runner; 2,000 were run by runners of another pool.
    let mut events: Vec<String> = (1..=4_000).map(|job| event("queued", job, 0)).collect();
    for job in 4_001..=6_000 {
        events.push(event("queued", job, 0));
        events.push(event("in_progress", job, job + 9_000_000));
        events.push(event("completed", job, job + 9_000_000));
    }
    assert_eq!(events.len(), 10_000);
    for round in ["first", "again"] {
        shuffle(&mut events, 7 + round.len() as u64);
        std::thread::scope(|scope| {
            for (thread, share) in events.chunks(events.len() / 50).enumerate() {
                let pool = &pool;
                scope.spawn(move || {
                    let mut connection = pool.connect();
                    for (i, body) in share.iter().enumerate() {
                        let delivery = format!("{round}-{thread}-{i}");
                        let answer = deliver(&mut connection, &pool.keys, &delivery, body);
                        assert_eq!((answer.status, &*answer.body), (200, "OK"));
                    }
                });
            }
        });
        assert_eq!(pool.health()["jobs_waiting"], 4_000, "{round}");
    }
    pool.kill();
    let log = pool.log();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn a_delivery_replayed_on_many_connections_at_once_counts_once() {
    let mut pool = Process::start_mock(&INERT);
    for round in 0..20 {
        let message = delivery(&pool, &format!("same-{round}"), &event("queued", 100 + round, 0));
        let answers: Vec<String> = std::thread::scope(|scope| {
            let replays: Vec<_> = (0..32)
                .map(|_| {
                    scope.spawn(|| {
                        let mut connection = pool.connect();
                        connection.write_all(&message).unwrap();
                        connection.read().body
                    })
                })
                .collect();
            replays.into_iter().map(|replay| replay.join().unwrap()).collect()
        });
        assert_eq!(answers.iter().filter(|answer| *answer == "OK").count(), 1, "{answers:?}");
        assert_eq!(pool.health()["jobs_waiting"], round + 1);
    }
    pool.kill();
}

#[cfg(target_os = "linux")]
#[test]
fn three_thousand_half_sent_requests_are_cut_in_time_and_do_not_pile_up() {
    const CLIENTS: usize = 3_000;
    /// The longest that the pool waits for a request, and time for a busy machine. Idle connections may stay for a minute.
    const LIMIT: Duration = Duration::from_secs(10 + 40);
    allow_many_descriptors();
    let pool = one_ready();
    let before = pool.slot(1);
    let (threads, memory) = (pool.fact("Threads"), pool.fact("VmRSS"));

    let mut times = Vec::new();
    let mut ask_for_health = || {
        let began = Instant::now();
        assert_eq!(pool.get("/health").status, 200);
        times.push(began.elapsed());
    };
    let halves: [&[u8]; 4] = [
        b"",
        b"POST /webhook HTTP/1.1\r\nHost: h\r\nX-Hub-Signature-256: sha256=",
        b"POST /webhook HTTP/1.1\r\nHost: h\r\nContent-Length: 26214400\r\n\r\n{\"action\":",
        b"POST /api/runner-complete/runner-1 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    ];
    let mut most_threads = 0;
    let mut flood = |ask_for_health: &mut dyn FnMut()| {
        let mut clients: Vec<Connection> = Vec::new();
        for n in 0..CLIENTS {
            let mut client = pool.connect();
            // Its place may have gone to the next one already.
            _ = client.write_all(halves[n % halves.len()]);
            clients.push(client);
            if n % 30 == 0 {
                ask_for_health();
                most_threads = most_threads.max(pool.fact("Threads"));
            }
        }
        clients
    };
    let clients = flood(&mut ask_for_health);
    let began = Instant::now();
    for client in &clients {
        client.stream.set_nonblocking(true).unwrap();
    }
    let is_open = |client: &Connection| {
        let answer = client.stream.peek(&mut [0]);
        matches!(answer, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    };
    // The first half-sent kind has sent nothing, and an idle connection may stay for longer.
    let half_sent = |clients: &[Connection]| {
        let sent: Vec<&Connection> = clients.iter().skip(1).step_by(2).collect();
        sent.into_iter().filter(|client| is_open(client)).count()
    };
    assert!(half_sent(&clients) > 0, "none is open: this test tests nothing");
    while half_sent(&clients) > 0 {
        assert!(began.elapsed() < LIMIT, "{} are still open", half_sent(&clients));
        ask_for_health();
        std::thread::sleep(Duration::from_millis(50));
    }
    let took = began.elapsed();
    drop(clients);
    wait_until("its threads are gone", || pool.fact("Threads") <= threads + 1);
    let memory_after = pool.fact("VmRSS");
    // glibc keeps the stacks of ended threads (at most 40 MiB) and their heaps for the next ones, so memory is back
    // to where it was but for what 256 threads have touched of those; and the same once more takes no more.
    drop(flood(&mut ask_for_health));
    wait_until("its threads are gone", || pool.fact("Threads") <= threads + 1);
    let memory_again = pool.fact("VmRSS");

    times.sort();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    println!(
        "{} answers of /health: median {median:?}, worst {worst:?}; at most {most_threads} threads; cut after {took:?}; {memory} KiB before, {memory_after} KiB after, {memory_again} KiB after the next",
        times.len()
    );
    // The median, since tests share the machine. Who waits for others to be cut waits for seconds.
    assert!(median < Duration::from_secs(1), "{median:?}");
    // For each connection two of the guard, one of the server, and one of tiny_http, whose threads outlive theirs by 5 s.
    assert!(most_threads <= threads + 5 * 256, "{most_threads} threads");
    assert!(memory_after <= memory + 12 * 1024, "{memory} KiB before, {memory_after} KiB after");
    assert!(
        memory_again <= memory_after + 2 * 1024,
        "{memory_after} KiB after, {memory_again} KiB after the next"
    );
    assert_unmoved(pool, &before);
}

#[cfg(target_os = "linux")]
#[test]
fn clients_that_leave_before_their_answer_leave_nothing_behind() {
    let pool = one_ready();
    let before = pool.slot(1);
    let threads = pool.fact("Threads");
    let body = "x".repeat(2_000);
    let request = format!("POST /webhook HTTP/1.1\r\nHost: h\r\nContent-Length: 2000\r\n\r\n{body}");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let mut client = pool.connect();
                    client.write_all(request.repeat(3).as_bytes()).unwrap();
                }
            });
        }
    });
    wait_until("their threads are gone", || pool.fact("Threads") <= threads + 1);
    assert_unmoved(pool, &before);
}

#[test]
fn what_never_ends_is_refused_or_cut() {
    let pool = one_ready();
    let before = pool.slot(1);
    std::thread::scope(|scope| {
        // Endless, as fast as it goes: refused as soon as it is too much.
        let endless = [(
            "POST /webhook HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
            format!("10000\r\n{}\r\n", "x".repeat(65_536)),
            413,
        )];
        for (begin, more, expected) in endless {
            let pool = &pool;
            scope.spawn(move || {
                let mut stream = pool.connect();
                stream.write_all(begin.as_bytes()).unwrap();
                let mut sent = 0;
                while stream.write_all(more.as_bytes()).is_ok() && sent < 200 * MIB {
                    sent += more.len();
                }
                assert!(sent < 200 * MIB, "{begin:?} may go on for ever");
                // Who sends on regardless may lose the answer to a reset.
                let answer = stream.read_to_end();
                assert!(answer.is_empty() || status(&answer) == expected, "{begin:?}: {answer}");
            });
        }
        // Endless, a byte at a time: cut, for all its progress, at the deadline of 10 s.
        scope.spawn(|| {
            let mut stream = pool.connect();
            let began = Instant::now();
            stream.write_all(b"POST /webhook HTTP/1.1\r\nHost: h\r\n").unwrap();
            // Slow enough for 10 s of it to stay under the limits for headers.
            while stream.write_all(b"X: y\r\n").is_ok() {
                assert!(began.elapsed() < Duration::from_secs(40), "it is not cut");
                std::thread::sleep(Duration::from_millis(250));
            }
            assert!(began.elapsed() > Duration::from_secs(9), "after {:?}", began.elapsed());
        });
    });
    assert_unmoved(pool, &before);
}

#[test]
fn a_body_of_25_mib_is_taken_and_one_byte_more_is_not() {
    let mut pool = Process::start_mock(&INERT);
    let message = |length: usize| {
        let mut body = event("queued", 5, 0);
        body.insert_str(1, &format!(r#""padding":"{}","#, "x".repeat(length - body.len() - 13)));
        assert_eq!(body.len(), length);
        delivery(&pool, "large", &body)
    };
    let mut fits = pool.connect();
    fits.write_all(&message(25 * MIB)).unwrap();
    let answer = fits.read();
    assert_eq!((answer.status, &*answer.body), (200, "OK"));
    assert_eq!(pool.health()["jobs_waiting"], 1);
    #[cfg(target_os = "linux")]
    wait_until("its memory is given back", || pool.fact("VmRSS") < 16 * 1024);
    assert_eq!(status(&http::talk(&pool.url, message(25 * MIB + 1))), 413);
    pool.kill();
}

#[test]
fn nonsense_gets_an_answer_that_says_so_and_moves_nothing() {
    let pool = one_ready();
    let before = pool.slot(1);
    let signature = pool.keys.sign_webhook(b"{}");
    let chunked = |chunks: &str| {
        format!(
            "POST /webhook HTTP/1.1\r\nHost: h\r\nConnection: close\r\nX-Hub-Signature-256: {signature}\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"
        )
        .into_bytes()
    };
    let mut noise = vec![0; 100_000];
    let mut seed = 1u64;
    noise.fill_with(|| (random(&mut seed) >> 32) as u8);
    let cases: Vec<(&str, Vec<u8>, u16)> = vec![
        ("chunks that are right, of a body that is none", chunked("1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"), 400),
        ("noise for chunks", [chunked(""), noise.clone()].concat(), 400),
    ];
    for (what, request, expected) in cases {
        let answer = talk(&pool, &request);
        assert_eq!(status(&answer), expected, "{what}: {answer}");
    }
    // What is not ASCII is not answered at all.
    for (what, request) in [
        ("a VM's name", &b"GET /api/runner-config/\xc3\x28 HTTP/1.1\r\nHost: h\r\n\r\n"[..]),
        ("a signature", b"POST /webhook HTTP/1.1\r\nHost: h\r\nX-Hub-Signature-256: sha256=\xff\r\nContent-Length: 2\r\n\r\n{}"),
        ("a secret", b"POST /api/runner-complete/runner-1 HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer \xff\r\n\r\n"),
    ] {
        assert_eq!(talk(&pool, request), "", "{what}");
    }
    // Every beginning of the noise, each for itself.
    for piece in noise.chunks(997) {
        let answer = talk(&pool, piece);
        assert!(answer.is_empty() || status(&answer) == 400, "{answer}");
    }
    assert_unmoved(pool, &before);
}

#[test]
fn http_1_0_and_pipelining_work_for_every_route() {
    let mut pool = one_ready();
    let bearer = pool.guest(1).bearer("GET", "/api/runner-config/runner-1");
    for path in ["/health", "/metrics", "/api/status"] {
        let answer = talk(&pool, format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes());
        assert_eq!(status(&answer), 200, "{path}");
    }
    let body = event("waiting", 1, 0);
    let old = String::from_utf8(delivery(&pool, "old", &body)).unwrap().replace("HTTP/1.1", "HTTP/1.0");
    assert!(talk(&pool, old.as_bytes()).ends_with("\r\n\r\nOK"));

    // One write with deliveries, a VM's question, a refusal and health, over and over: answered in this order.
    let config =
        format!("GET /api/runner-config/runner-1 HTTP/1.1\r\nHost: h\r\nAuthorization: {bearer}\r\n\r\n");
    let wrong = "POST /api/runner-complete/runner-1 HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}";
    let health = "GET /health HTTP/1.1\r\nHost: h\r\n\r\n";
    let mut all = Vec::new();
    for n in 0..15 {
        all.extend(delivery(&pool, &format!("pipelined-{n}"), &body));
        all.extend([config.as_bytes(), wrong.as_bytes(), health.as_bytes()].concat());
    }
    let mut connection = pool.connect();
    connection.write_all(&all).unwrap();
    for n in 0..15 {
        let answers = [connection.read(), connection.read(), connection.read(), connection.read()];
        assert_eq!(answers.each_ref().map(|a| a.status), [200, 200, 401, 200], "round {n}");
        assert_eq!(answers[0].body, "OK");
        assert!(answers[1].body.contains("\"registration\":\"jit\""), "{}", answers[1].body);
        assert!(answers[3].body.contains("\"ready\":1"), "{}", answers[3].body);
    }
    pool.kill();
}
