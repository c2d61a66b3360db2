//! The HTTP server: requests as strict as behind a proxy they must be, and
//! limits that hold against clients that mean harm.

use crate::support::http::{self, Connection, Response, status};
use crate::support::wait_until;
use hyperv_runner_pool::http::server::{self, Limits, Reply, Request, Server};
use std::io::Write;
#[cfg(target_os = "linux")]
use std::net::{IpAddr, Ipv4Addr};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

const MIB: usize = 1024 * 1024;
/// How long a handler waits for its test.
const HANDLER_WAIT: Duration = Duration::from_secs(60);
/// What a limit of less than a second takes at most, on a machine with much else to do.
const SOON: Duration = Duration::from_secs(30);

/// Answers with what it was given, one fact per line.
fn echo(request: &Request<'_>) -> Reply {
    let body = match request.path {
        "/length" => format!("{}\n", request.body.len()),
        "/large" => "x".repeat(MIB),
        _ => format!("{} {} {}\n", request.method, request.path, String::from_utf8_lossy(request.body)),
    };
    Reply::text(200, body)
}

fn start(limits: Limits) -> Server {
    start_with(limits, echo)
}

fn start_with(limits: Limits, handler: impl Fn(&Request<'_>) -> Reply + Send + Sync + 'static) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    server::serve(listener, limits, Arc::new(handler)).unwrap()
}

/// A server whose handler says when it begins with `/slow`, and then waits to be told to go on.
fn start_with_slow(limits: Limits) -> (Server, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (entered, running) = mpsc::channel();
    let (release, released) = mpsc::channel();
    let released = std::sync::Mutex::new(released);
    let server = start_with(limits, move |request| {
        if request.path == "/slow" {
            entered.send(()).unwrap();
            _ = released.lock().unwrap().recv_timeout(HANDLER_WAIT);
        }
        echo(request)
    });
    (server, running, release)
}

/// Short deadlines that a busy machine still meets where they must not pass.
fn brisk() -> Limits {
    Limits {
        request_deadline: Duration::from_millis(400),
        body_deadline: Duration::from_millis(900),
        idle: Duration::from_millis(400),
        ..Limits::default()
    }
}

fn url(server: &Server) -> String {
    format!("http://{}", server.local_addr())
}

fn connect(server: &Server) -> Connection {
    Connection::open(&url(server))
}

fn talk(server: &Server, request: impl AsRef<[u8]>) -> String {
    http::talk(&url(server), request)
}

/// A connection from another address of this machine. All of 127.0.0.0/8 is
/// this machine's on Linux and Windows; std cannot bind a client socket.
#[cfg(target_os = "linux")]
fn connect_from(server: &Server, from: Ipv4Addr) -> Connection {
    use std::os::fd::FromRawFd;
    let address = |ip: Ipv4Addr, port: u16| libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) },
        sin_zero: [0; 8],
    };
    let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    let (here, there) = (address(from, 0), address(Ipv4Addr::LOCALHOST, server.local_addr().port()));
    // SAFETY: the addresses are valid for the calls, and the descriptor is
    // owned by the stream from its creation on.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        assert!(socket >= 0);
        let stream = TcpStream::from_raw_fd(socket);
        assert_eq!(libc::bind(socket, (&raw const here).cast(), length), 0);
        assert_eq!(libc::connect(socket, (&raw const there).cast(), length), 0);
        Connection::over(stream)
    }
}

/// The status in answer to a request that ends the connection.
fn status_of(server: &Server, request: impl AsRef<[u8]>) -> u16 {
    status(&talk(server, request))
}

/// The threads of one server, by the name that they carry.
#[cfg(target_os = "linux")]
fn threads_of(port: u16) -> usize {
    let name = format!("http-{port}\n");
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter(|t| std::fs::read_to_string(t.as_ref().unwrap().path().join("comm")).is_ok_and(|n| n == name))
        .count()
}

// Requests and answers.

#[test]
fn a_request_reaches_the_handler_as_it_was_sent() {
    let (facts, heard) = mpsc::channel();
    let server = start_with(Limits::default(), move |request| {
        let names: Vec<String> = request.headers.names().map(str::to_owned).collect();
        let value = request.headers.get("X-ONE").unwrap().to_owned();
        facts.send((request.method.to_string(), request.body.to_vec(), value, names, request.peer)).unwrap();
        echo(request)
    });
    let mut stream = connect(&server);
    stream
        .write_all(
            b"POST /a%20b?c=d?e HTTP/1.1\r\nHost: h\r\nx-one: y z \r\nContent-Length: 4\r\n\r\n\0\xff\r\n",
        )
        .unwrap();
    let Response { status, head, body } = stream.read();
    assert_eq!(status, 200);
    assert!(body.starts_with("POST /a%20b "), "{body}");
    assert!(head.contains("Content-Type: text/plain; charset=utf-8\r\n"), "{head}");
    let (method, body, value, names, peer) = heard.recv().unwrap();
    assert_eq!((method.as_str(), body.as_slice(), value.as_str()), ("POST", &b"\0\xff\r\n"[..], "y z"));
    assert_eq!(names, ["Host", "x-one", "Content-Length"]);
    assert_eq!(peer, stream.stream.local_addr().unwrap(), "the client's address, not the guard's");
}

#[test]
fn a_reply_carries_its_status_type_and_headers() {
    let server = start_with(Limits::default(), |_| Reply::json(404, "{}").with_header("X-Good", "yes"));
    let Response { status, head, body } = connect(&server).get("/");
    assert_eq!((status, body.as_str()), (404, "{}"));
    assert!(head.starts_with("HTTP/1.1 404 Not Found\r\n"), "{head}");
    assert!(head.contains("Content-Type: application/json; charset=utf-8\r\n"), "{head}");
    assert!(head.contains("X-Good: yes\r\n"), "{head}");
}

#[test]
fn an_answer_of_any_size_has_a_length_and_none_to_head_has_a_body() {
    let server = start(Limits::default());
    assert_eq!(connect(&server).get("/large").body.len(), MIB);
    let answer = talk(&server, "HEAD /large HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    assert!(answer.contains("Content-Length: 1048576\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "a body after HEAD");
}

/// `tiny_http` leaves the second of two connections that come at once in a queue, see `Guard::nudge`.
#[test]
fn of_many_connections_that_come_at_once_none_waits_for_another_to_end() {
    let server = start(Limits::default());
    for round in 0..5 {
        let mut clients: Vec<Connection> = (0..40).map(|_| connect(&server)).collect();
        for client in &mut clients {
            client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        }
        for client in &mut clients {
            // Less than the idle limit.
            client.stream.set_read_timeout(Some(SOON)).unwrap();
            assert_eq!(client.read().status, 200, "round {round}");
        }
    }
}

#[test]
fn a_connection_serves_many_requests_until_one_says_close() {
    let server = start(Limits::default());
    let mut stream = connect(&server);
    for n in 0..50 {
        let Response { status, body, .. } = stream.get(&format!("/{n}"));
        assert_eq!((status, body), (200, format!("GET /{n} \n")));
    }
    assert_eq!(server.connections(), 1);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: foo, CLOSE\r\n\r\n").unwrap();
    assert_eq!(stream.read().status, 200);
    stream.time_to_close();
    drop(stream);
    wait_until("the connection is gone", || server.connections() == 0);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = start(Limits::default());
    let mut stream = connect(&server);
    let mut requests = String::new();
    for n in 0..60 {
        match n % 3 {
            0 => requests += &format!("GET /{n} HTTP/1.1\r\nHost: h\r\n\r\n"),
            1 => requests += &format!("POST /{n} HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"),
            _ => {
                requests += &format!("POST /{n} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
                requests += "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n";
            }
        }
    }
    let mut sender = stream.stream.try_clone().unwrap();
    let sender = thread::spawn(move || sender.write_all(requests.as_bytes()).unwrap());
    for n in 0..60 {
        let Response { status, body, .. } = stream.read();
        let expected = if n % 3 == 0 { format!("GET /{n} \n") } else { format!("POST /{n} hello\n") };
        assert_eq!((status, body), (200, expected));
    }
    sender.join().unwrap();
}

#[test]
fn a_request_may_come_in_pieces_of_any_size() {
    let server = start(Limits::default());
    let whole = b"POST /p HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n5;a=b\r\nhello\r\n6 ;x\r\n world\r\n0\r\n\r\nGET /next HTTP/1.1\r\nHost: h\r\n\r\n";
    for size in [1, 2, 3, 7, 50, 99, whole.len()] {
        let mut stream = connect(&server);
        for piece in whole.chunks(size) {
            stream.write_all(piece).unwrap();
        }
        assert_eq!(stream.read().body, "POST /p hello world\n", "pieces of {size}");
        assert_eq!(stream.read().body, "GET /next \n", "pieces of {size}");
    }
}

#[test]
fn bodies_of_every_size_up_to_the_cap_arrive_whole_in_both_codings() {
    let server = start_with(Limits { body_bytes: MIB, ..Limits::default() }, |request| {
        let sum =
            request.body.iter().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
        Reply::text(200, format!("{} {sum}", request.body.len()))
    });
    let mut stream = connect(&server);
    for length in [0, 1, 4000, 4096, 5000, 65_536, 65_537, 300_000, MIB] {
        let body: Vec<u8> = (0..length).map(|n| (n * 7 % 251) as u8).collect();
        let sum = body.iter().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
        write!(stream, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n").unwrap();
        stream.write_all(&body).unwrap();
        assert_eq!(stream.read().body, format!("{length} {sum}"));
        stream.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        for chunk in body.chunks(50_021) {
            write!(stream, "{:X}\r\n", chunk.len()).unwrap();
            stream.write_all(chunk).unwrap();
            stream.write_all(b"\r\n").unwrap();
        }
        stream.write_all(b"0\r\n\r\n").unwrap();
        assert_eq!(stream.read().body, format!("{length} {sum}"), "chunked");
    }
    wait_until("the memory of large bodies is given back", || server.body_memory() == 0);
}

#[test]
fn expect_100_continue_is_answered_before_the_body_is_sent() {
    let server = start(Limits { body_bytes: 1000, ..Limits::default() });
    let mut stream = connect(&server);
    for framing in ["Content-Length: 2", "Transfer-Encoding: chunked"] {
        write!(stream, "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-Continue\r\n{framing}\r\n\r\n").unwrap();
        assert_eq!(stream.read().status, 100);
        stream.write_all(if framing.starts_with('C') { b"ab" } else { b"2\r\nab\r\n0\r\n\r\n" }).unwrap();
        assert_eq!(stream.read().body, "POST / ab\n");
    }
    // No invitation where the body is not wanted, or where it is unknown.
    let large = "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1001\r\n\r\n";
    assert_eq!(status_of(&server, large), 413);
    assert_eq!(status_of(&server, "POST / HTTP/1.1\r\nHost: h\r\nExpect: cake\r\n\r\n"), 417);
}

// Refusals.

#[test]
fn what_two_readers_could_read_differently_is_refused_and_what_follows_is_not_served() {
    let called = Arc::new(AtomicUsize::new(0));
    let calls = Arc::clone(&called);
    let server = start_with(Limits::default(), move |request| {
        calls.fetch_add(1, Ordering::SeqCst);
        echo(request)
    });
    let large = format!("Content-Length: 2000\r\nContent-Length: 9\r\n\r\n{}", "x".repeat(2000));
    for (what, rest, expected) in [
        ("length with sign", "Content-Length: +1\r\n\r\na", 400),
        ("negative length", "Content-Length: -1\r\n\r\na", 400),
        ("hex length", "Content-Length: 0x1\r\n\r\na", 400),
        ("empty length", "Content-Length:\r\n\r\n", 400),
        ("list of lengths", "Content-Length: 1, 1\r\n\r\na", 400),
        ("two lengths", "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        ("two lengths of a large body", &large, 400),
        ("length and chunked", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("chunked twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("gzip", "Transfer-Encoding: gzip\r\n\r\n", 501),
        ("gzip, chunked", "Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
        ("upgrade", "Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nab", 501),
        ("no chunk size", "Transfer-Encoding: chunked\r\n\r\n\r\n\r\n", 400),
        ("negative chunk size", "Transfer-Encoding: chunked\r\n\r\n-2\r\na\r\n0\r\n\r\n", 400),
        ("chunk too short", "Transfer-Encoding: chunked\r\n\r\n2\r\na\r\n0\r\n\r\n", 400),
        ("chunk too long", "Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n", 400),
        ("space before colon", "Host : h\r\n\r\n", 400),
    ] {
        let smuggled = "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n".repeat(3);
        let answer = talk(&server, format!("POST / HTTP/1.1\r\nHost: h\r\n{rest}{smuggled}"));
        assert_eq!(status(&answer), expected, "{what}: {answer}");
        assert_eq!(called.load(Ordering::SeqCst), 0, "{what}: a handler ran");
    }
}

/// `tiny_http` would set the memory aside when it drops the request, see `LengthWatch`.
#[test]
fn a_body_that_claims_to_be_longer_than_memory_ends_its_own_connection_only() {
    let server = start(Limits::default());
    let mut other = connect(&server);
    assert_eq!(other.get("/").status, 200);
    for length in ["100000000", "100000000000000", "9223372036854775807", "18446744073709551615"] {
        let answer =
            talk(&server, format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\nabc"));
        assert_eq!(answer, "", "{length}");
    }
    assert_eq!(other.get("/").status, 200);
}

#[test]
fn a_head_without_an_end_takes_no_more_than_a_requests_share() {
    let server = start(brisk());
    let mut stream = connect(&server);
    stream.stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    let mut sent = 0;
    while stream.write_all(&b"X-More: and more\r\n".repeat(1000)).is_ok() {
        sent += 18_000;
        assert!(sent < 100 * MIB, "it goes on and on");
    }
    wait_until("it is cut", || server.connections() == 0);
}

#[test]
fn who_sends_many_requests_and_reads_no_answer_is_cut_and_holds_up_nobody() {
    let (server, running, release) = start_with_slow(Limits::default());
    let mut greedy = connect(&server);
    greedy.write_all(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    running.recv_timeout(HANDLER_WAIT).unwrap();
    _ = greedy.write_all("GET / HTTP/1.1\r\nHost: h\r\n\r\n".repeat(2000).as_bytes());
    greedy.time_to_close();
    assert_eq!(connect(&server).get("/").status, 200);
    release.send(()).unwrap();
}

#[test]
fn half_sent_bodies_hold_up_nobody() {
    // Which would end the wait, too.
    let server = start(Limits { request_deadline: 3 * SOON, ..Limits::default() });
    let half_sent: Vec<Connection> = (0..20)
        .map(|_| {
            let mut stream = connect(&server);
            stream.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5000\r\n\r\nabc").unwrap();
            stream
        })
        .collect();
    for _ in 0..20 {
        let began = Instant::now();
        assert_eq!(connect(&server).get("/health").status, 200);
        assert!(began.elapsed() < SOON, "held up for {:?}", began.elapsed());
    }
    drop(half_sent);
}

#[test]
fn a_body_over_the_limit_is_413_and_the_client_sees_it_while_sending() {
    let server = start(Limits { body_bytes: MIB, ..Limits::default() });
    let head =
        |framing: &str| format!("POST /length HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{framing}\r\n\r\n");
    let mut fits = head(&format!("Content-Length: {MIB}")).into_bytes();
    fits.resize(fits.len() + MIB, b'x');
    assert!(talk(&server, fits).ends_with("\r\n\r\n1048576\n"));
    // Declared too long: answered although nothing of it was sent.
    assert_eq!(status_of(&server, head(&format!("Content-Length: {}", MIB + 1))), 413);
    assert_eq!(status_of(&server, head("Content-Length: 99999999")), 413);
    // A client that sends all of it before it reads.
    let mut sent = head(&format!("Content-Length: {}", MIB + 1)).into_bytes();
    sent.resize(sent.len() + MIB + 1, b'x');
    assert_eq!(status_of(&server, sent), 413);
    // Chunked: in many that are too many.
    let many = format!("10000\r\n{}\r\n", "x".repeat(0x10000)).repeat(17);
    assert_eq!(status_of(&server, head("Transfer-Encoding: chunked") + &many), 413);
    wait_until("all memory is given back", || server.body_memory() == 0);
}

#[test]
fn large_bodies_together_are_bounded_and_small_ones_still_served() {
    let server = start(Limits { body_memory: 2 * MIB, ..Limits::default() });
    let mut first = connect(&server);
    write!(first, "POST /length HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", 2 * MIB).unwrap();
    first.write_all(&vec![b'x'; 2 * MIB - 1]).unwrap();
    wait_until("the first body fills the budget", || server.body_memory() > MIB);
    let mut second =
        format!("POST /length HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", 2 * MIB).into_bytes();
    second.resize(second.len() + 2 * MIB, b'x');
    let refusal = talk(&server, second);
    assert_eq!(status(&refusal), 503);
    assert!(refusal.contains("Retry-After: 1\r\n"), "{refusal}");
    assert!(server.body_memory() <= 2 * MIB);
    let mut small = connect(&server);
    write!(small, "POST /length HTTP/1.1\r\nHost: h\r\nContent-Length: 60000\r\n\r\n{}", "x".repeat(60_000))
        .unwrap();
    assert_eq!(small.read().body, "60000\n");
    first.write_all(b"x").unwrap();
    assert_eq!(first.read().body, "2097152\n");
    wait_until("all memory is given back", || server.body_memory() == 0);
}

#[cfg(target_os = "linux")]
#[test]
fn one_peers_half_sent_large_bodies_do_not_take_the_memory_from_another() {
    let server = start(Limits { body_memory: 4 * MIB, ..Limits::default() });
    let head = format!("POST /length HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", 2 * MIB);
    let hoarders: Vec<Connection> = (0..2)
        .map(|_| {
            let mut stream = connect_from(&server, Ipv4Addr::new(127, 0, 0, 2));
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(&vec![b'x'; 2 * MIB - 1]).unwrap();
            stream
        })
        .collect();
    wait_until("the budget is taken", || server.body_memory() > 3 * MIB);
    let mut stream = connect(&server);
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&vec![b'x'; 2 * MIB]).unwrap();
    assert_eq!(stream.read().body, "2097152\n");
    drop(hoarders);
}

// Time.

#[test]
fn a_connection_that_sends_nothing_is_cut_and_the_server_answers_on() {
    let server = start(Limits { idle: Duration::from_secs(2), ..Limits::default() });
    let mut silent = connect(&server);
    let mut used = connect(&server);
    assert_eq!(used.get("/").status, 200);
    assert!(silent.time_to_close() < SOON);
    assert!(used.time_to_close() < SOON);
    wait_until("all are gone", || server.connections() == 0);
    // Idle for longer than the limit.
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(connect(&server).get("/").status, 200);
}

#[test]
fn a_half_sent_request_is_cut_wherever_it_stops() {
    let server = start(brisk());
    let head = "POST / HTTP/1.1\r\nHost: h\r\n";
    for part in [
        "G".to_owned(),
        head.to_owned(),
        format!("{head}Content-Length: 10\r\n\r\nabc"),
        format!("{head}Content-Length: 1000000\r\n\r\nabc"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n5"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n100000\r\nabc"),
    ] {
        let mut stream = connect(&server);
        stream.write_all(part.as_bytes()).unwrap();
        assert!(stream.time_to_close() < SOON, "{part}");
    }
    wait_until("all are gone", || server.connections() == 0);
}

#[test]
fn a_client_that_trickles_is_cut_in_spite_of_its_progress() {
    let server = start(Limits { idle: Duration::from_secs(60), ..brisk() });
    let head = "POST / HTTP/1.1\r\nHost: h\r\n";
    for (begin, trickle) in [
        (head.to_owned(), "X: y\r\n"),
        (format!("{head}Content-Length: 1000\r\n\r\n"), "x"),
        (format!("{head}Transfer-Encoding: chunked\r\n\r\n"), "1\r\nx\r\n"),
        (format!("{head}Content-Length: 1000000\r\n\r\n"), "x"),
    ] {
        let mut stream = connect(&server);
        let start = Instant::now();
        stream.write_all(begin.as_bytes()).unwrap();
        let mut writer = stream.stream.try_clone().unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&done);
        let trickler = thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) && writer.write_all(trickle.as_bytes()).is_ok() {
                thread::sleep(Duration::from_millis(40));
            }
        });
        stream.time_to_close();
        done.store(true, Ordering::SeqCst);
        let took = start.elapsed();
        trickler.join().unwrap();
        assert!(took >= Duration::from_millis(380), "{begin}: cut after {took:?}");
        assert!(took < SOON, "{begin}: cut after {took:?}");
    }
}

#[test]
fn a_large_body_may_take_longer_than_a_small_one() {
    // Within the first the server must see that the body is large.
    let server = start(Limits {
        request_deadline: Duration::from_secs(5),
        body_deadline: Duration::from_secs(120),
        ..Limits::default()
    });
    let mut stream = connect(&server);
    stream.write_all(b"POST /length HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n").unwrap();
    for _ in 0..10 {
        thread::sleep(Duration::from_millis(600));
        stream.write_all(&[b'x'; 10_000]).unwrap();
    }
    assert_eq!(stream.read().body, "100000\n");
}

#[test]
fn a_client_that_never_reads_its_answers_is_cut() {
    let (asked, asks) = mpsc::channel();
    let server = start_with(brisk(), move |request| {
        _ = asked.send(());
        echo(request)
    });
    let mut stream = connect(&server);
    stream.write_all("GET /large HTTP/1.1\r\nHost: h\r\n\r\n".repeat(50).as_bytes()).unwrap();
    asks.recv_timeout(HANDLER_WAIT).expect("a handler has its request");
    wait_until("it is cut", || server.connections() == 0);
}

// Room.

#[test]
fn health_answers_while_more_half_sent_requests_are_open_than_there_are_places() {
    let limits = Limits { max_connections: 16, request_deadline: 10 * SOON, ..Limits::default() };
    let places = limits.max_connections;
    // Those being cut on Windows need a moment to end.
    let most = if cfg!(windows) { 2 * places } else { places };
    let server = start(limits);
    let mut half_sent = Vec::new();
    for _ in 0..10 * places {
        let mut stream = connect(&server);
        // The server may already have given its place to the next one.
        _ = stream.write_all(b"POST /webhook HTTP/1.1\r\nHost: h\r\n");
        half_sent.push(stream);
        assert_eq!(connect(&server).get("/health").status, 200);
        assert!(server.connections() <= most, "{} connections", server.connections());
    }
    // The last /health has left, everything else is taken.
    assert!(server.connections() >= places - 1, "{} connections", server.connections());
    // A connection gives its place back a moment before its thread ends.
    #[cfg(target_os = "linux")]
    wait_until("two threads for each place", || threads_of(server.local_addr().port()) <= 2 * most + 2);
    drop(half_sent);
    wait_until("all are gone", || server.connections() == 0);
    #[cfg(target_os = "linux")]
    wait_until("only the server's own threads are left", || threads_of(server.local_addr().port()) == 2);
}

#[cfg(target_os = "linux")]
#[test]
fn a_flood_from_one_address_takes_places_from_that_address_only() {
    let server = start(Limits { max_connections: 8, ..Limits::default() });
    let mut other = connect_from(&server, Ipv4Addr::new(127, 0, 0, 2));
    assert_eq!(other.get("/before").status, 200);
    let mut flood = Vec::new();
    for _ in 0..100 {
        let mut stream = connect_from(&server, Ipv4Addr::new(127, 0, 0, 3));
        _ = stream.write_all(b"GET /");
        flood.push(stream);
    }
    // It has waited for longer than any connection of the flood, and yet stays.
    assert_eq!(other.get("/after").status, 200);
    let mut third = connect_from(&server, Ipv4Addr::new(127, 0, 0, 4));
    assert_eq!(third.get("/new").status, 200);
    assert!(server.connections() <= 8);
    assert_eq!(other.stream.local_addr().unwrap().ip(), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)));
}

/// An address of this machine that is not loopback, which is exempt.
#[cfg(target_os = "linux")]
fn own_address() -> IpAddr {
    // Sends nothing: it only asks which address would be used.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("192.0.2.1:9").expect("a network");
    socket.local_addr().unwrap().ip()
}

#[cfg(target_os = "linux")]
#[test]
fn one_address_has_only_so_many_connections_and_loopback_is_exempt() {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let limits = Limits { connections_per_peer: 3, ..Limits::default() };
    let server = server::serve(listener, limits, Arc::new(echo)).unwrap();
    let of = |ip: IpAddr| {
        let mut open: Vec<Connection> = Vec::new();
        for _ in 0..8 {
            let mut connection = Connection::open(&format!("http://{ip}:{port}"));
            assert_eq!(connection.get("/").status, 200);
            open.push(connection);
        }
        open
    };
    let outside = of(own_address());
    wait_until("the oldest have made room", || server.connections() == 3);
    let inside = of(IpAddr::V4(Ipv4Addr::LOCALHOST));
    assert_eq!(server.connections(), 3 + 8);
    drop((outside, inside));
}

#[test]
fn a_connection_whose_handler_runs_keeps_its_place() {
    let (server, running, release) = start_with_slow(Limits { max_connections: 2, ..Limits::default() });
    let mut slow = connect(&server);
    slow.write_all(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    running.recv_timeout(HANDLER_WAIT).unwrap();
    for n in 0..20 {
        assert_eq!(connect(&server).get(&format!("/{n}")).status, 200);
    }
    release.send(()).unwrap();
    assert_eq!(slow.read().body, "GET /slow \n");
}

#[test]
fn the_longest_waiting_connection_goes_first() {
    let server = start(Limits { max_connections: 2, ..Limits::default() });
    let mut oldest = connect(&server);
    wait_until("the server has it", || server.connections() == 1);
    let mut newer = connect(&server);
    assert_eq!(newer.get("/").status, 200);
    assert_eq!(connect(&server).get("/").status, 200);
    oldest.time_to_close();
    assert_eq!(newer.get("/").status, 200, "the newer one stays");
}

// The end.

#[test]
fn stop_cuts_what_waits_and_finishes_what_is_answered() {
    let limits = Limits { stop_grace: HANDLER_WAIT, ..Limits::default() };
    let (server, running, release) = start_with_slow(limits);
    let address: SocketAddr = server.local_addr();
    let mut idle = connect(&server);
    assert_eq!(idle.get("/").status, 200);
    let mut half_sent = connect(&server);
    half_sent.write_all(b"GET /").unwrap();
    let mut slow = connect(&server);
    slow.write_all(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    running.recv_timeout(HANDLER_WAIT).unwrap();
    let stopper = thread::spawn(move || {
        server.stop();
        server
    });
    idle.time_to_close();
    half_sent.time_to_close();
    release.send(()).unwrap();
    let Response { status, body, .. } = slow.read();
    assert_eq!((status, body.as_str()), (200, "GET /slow \n"));
    slow.time_to_close();
    drop(slow);
    let server = stopper.join().unwrap();
    assert_eq!(server.connections(), 0);
    #[cfg(target_os = "linux")]
    wait_until("no threads are left", || threads_of(address.port()) == 0);
    assert!(TcpStream::connect(address).is_err(), "still accepts after stop");
    server.stop();
}

#[test]
fn stop_does_not_wait_for_a_handler_for_ever() {
    let limits = Limits { stop_grace: Duration::from_millis(100), ..Limits::default() };
    let (server, running, release) = start_with_slow(limits);
    let mut stuck = connect(&server);
    stuck.write_all(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    running.recv_timeout(HANDLER_WAIT).unwrap();
    let start = Instant::now();
    server.stop();
    assert!(start.elapsed() < SOON, "stopped after {:?}", start.elapsed());
    drop(release);
}
