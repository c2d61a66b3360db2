//! The connections of the HTTP server: HTTP/1 as strict as a server behind a
//! proxy must be, and limits that hold against clients that mean harm.

use crate::support::http::{self, Connection, Response, status};
use crate::support::wait_until;
use hyperv_runner_pool::http::gate::{self, Gate, Limits, Reply, Request};
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

/// Answers with what it was given, one fact per line.
fn echo(request: &Request<'_>) -> Reply {
    let body = match request.path {
        "/length" => format!("{}\n", request.body.len()),
        "/large" => "x".repeat(MIB),
        _ => format!(
            "{} {} {:?} {}\n",
            request.method,
            request.path,
            request.query,
            String::from_utf8_lossy(request.body)
        ),
    };
    Reply::text(200, body)
}

fn start(limits: Limits) -> Gate {
    start_with(limits, echo)
}

fn start_with(limits: Limits, handler: impl Fn(&Request<'_>) -> Reply + Send + Sync + 'static) -> Gate {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    gate::serve(listener, limits, Arc::new(handler)).unwrap()
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

fn url(gate: &Gate) -> String {
    format!("http://{}", gate.local_addr())
}

fn connect(gate: &Gate) -> Connection {
    Connection::open(&url(gate))
}

fn talk(gate: &Gate, request: impl AsRef<[u8]>) -> String {
    http::talk(&url(gate), request)
}

/// A connection from another address of this machine. All of 127.0.0.0/8 is
/// this machine's on Linux and Windows; std cannot bind a client socket.
#[cfg(target_os = "linux")]
fn connect_from(gate: &Gate, from: Ipv4Addr) -> Connection {
    use std::os::fd::FromRawFd;
    let address = |ip: Ipv4Addr, port: u16| libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) },
        sin_zero: [0; 8],
    };
    let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    let (here, there) = (address(from, 0), address(Ipv4Addr::LOCALHOST, gate.local_addr().port()));
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
fn status_of(gate: &Gate, request: impl AsRef<[u8]>) -> u16 {
    status(&talk(gate, request))
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
    let gate = start_with(Limits::default(), move |request| {
        let mut all: Vec<_> = request.headers.all("x-many").map(<[u8]>::to_vec).collect();
        all.push(request.headers.get("X-ONE").unwrap().to_vec());
        let repeated = (request.headers.is_repeated("X-Many"), request.headers.is_repeated("x-one"));
        let names: Vec<String> = request.headers.iter().map(|(name, _)| name.to_owned()).collect();
        facts
            .send((request.method.to_string(), request.body.to_vec(), all, repeated, names, request.peer))
            .unwrap();
        echo(request)
    });
    let mut stream = connect(&gate);
    stream
        .write_all(b"POST /a%20b?c=d?e HTTP/1.1\r\nHost: h\r\nX-Many: 1\r\nx-one: \xff \r\nX-many: 2\r\nContent-Length: 4\r\n\r\n\0\xff\r\n")
        .unwrap();
    let Response { status, head, body } = stream.read();
    assert_eq!(status, 200);
    assert!(body.starts_with("POST /a%20b Some(\"c=d?e\") "), "{body}");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n"), "{head}");
    assert!(!head.contains("Server") && !head.contains("Connection"), "{head}");
    let (method, body, values, repeated, names, peer) = heard.recv().unwrap();
    assert_eq!((method.as_str(), body.as_slice()), ("POST", &b"\0\xff\r\n"[..]));
    assert_eq!(values, [b"1".to_vec(), b"2".to_vec(), b"\xff".to_vec()]);
    assert_eq!(repeated, (true, false));
    assert_eq!(names, ["Host", "X-Many", "x-one", "X-many", "Content-Length"]);
    assert_eq!(peer, stream.stream.local_addr().unwrap());
}

#[test]
fn a_reply_carries_its_status_type_and_headers_but_none_that_break_out() {
    let gate = start_with(Limits::default(), |_| {
        Reply::json(404, "{}").with_header("X-Good", "yes").with_header("X-Bad", "a\r\nX-Evil: b")
    });
    let Response { status, head, body } = connect(&gate).get("/");
    assert_eq!((status, body.as_str()), (404, "{}"));
    assert!(head.starts_with("HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\n"), "{head}");
    assert!(
        head.contains("X-Good: yes\r\n") && !head.contains("X-Evil") && !head.contains("X-Bad"),
        "{head}"
    );
}

#[test]
fn head_and_204_have_no_body() {
    let gate = start_with(Limits::default(), |request| match request.path {
        "/204" => Reply::text(204, "never sent"),
        _ => echo(request),
    });
    let answer = talk(&gate, "HEAD /large HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    assert!(answer.contains("Content-Length: 1048576\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "a body after HEAD");
    let answer = talk(&gate, "GET /204 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 204 No Content\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(!answer.contains("Content-Length"), "{answer}");
}

#[test]
fn a_connection_serves_many_requests_until_one_says_close() {
    let gate = start(Limits::default());
    let mut stream = connect(&gate);
    for n in 0..50 {
        let Response { status, body, .. } = stream.get(&format!("/{n}"));
        assert_eq!((status, body), (200, format!("GET /{n} None \n")));
    }
    assert_eq!(gate.connections(), 1);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: foo, CLOSE\r\n\r\n").unwrap();
    let head = stream.read().head;
    assert!(head.contains("Connection: close\r\n"), "{head}");
    stream.time_to_close();
    drop(stream);
    wait_until("the connection is gone", || gate.connections() == 0);
}

#[test]
fn http_1_0_closes_unless_asked_to_stay() {
    let gate = start(Limits::default());
    let answer = talk(&gate, "GET /old HTTP/1.0\r\n\r\n");
    assert!(answer.contains("Connection: close\r\n") && answer.ends_with("GET /old None \n"), "{answer}");
    let mut stream = connect(&gate);
    for _ in 0..2 {
        stream.write_all(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").unwrap();
        let Response { status, head, .. } = stream.read();
        assert_eq!(status, 200);
        assert!(head.contains("Connection: keep-alive\r\n"), "{head}");
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let gate = start(Limits::default());
    let mut stream = connect(&gate);
    let mut requests = String::new();
    for n in 0..500 {
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
    for n in 0..500 {
        let Response { status, body, .. } = stream.read();
        let expected =
            if n % 3 == 0 { format!("GET /{n} None \n") } else { format!("POST /{n} None hello\n") };
        assert_eq!((status, body), (200, expected));
    }
    sender.join().unwrap();
}

#[test]
fn a_request_may_come_in_pieces_of_any_size() {
    let gate = start(Limits::default());
    let whole = b"\r\nPOST /p HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n5;a=b\r\nhello\r\n6 ;x\r\n world\r\n0\r\nT: v\r\n\r\nGET /next HTTP/1.1\r\nHost: h\r\n\r\n";
    for size in [1, 2, 3, 7, 50, 99, whole.len()] {
        let mut stream = connect(&gate);
        for piece in whole.chunks(size) {
            stream.write_all(piece).unwrap();
        }
        assert_eq!(stream.read().body, "POST /p None hello world\n", "pieces of {size}");
        assert_eq!(stream.read().body, "GET /next None \n", "pieces of {size}");
    }
}

#[test]
fn bodies_of_every_size_up_to_the_cap_arrive_whole_in_both_codings() {
    let gate = start_with(Limits { body_bytes: MIB, ..Limits::default() }, |request| {
        let sum =
            request.body.iter().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
        Reply::text(200, format!("{} {sum}", request.body.len()))
    });
    let mut stream = connect(&gate);
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
    assert_eq!(gate.body_memory(), 0, "memory of large bodies is given back");
}

#[test]
fn expect_100_continue_is_answered_before_the_body_is_sent() {
    let gate = start(Limits { body_bytes: 1000, ..Limits::default() });
    let mut stream = connect(&gate);
    for framing in ["Content-Length: 2", "Transfer-Encoding: chunked"] {
        write!(stream, "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-Continue\r\n{framing}\r\n\r\n").unwrap();
        let Response { status, head, .. } = stream.read();
        assert_eq!((status, head.as_str()), (100, "HTTP/1.1 100 Continue\r\n\r\n"));
        stream.write_all(if framing.starts_with('C') { b"ab" } else { b"2\r\nab\r\n0\r\n\r\n" }).unwrap();
        assert_eq!(stream.read().body, "POST / None ab\n");
    }
    // No invitation where the body is not wanted, or where it is unknown.
    let large = "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1001\r\n\r\n";
    assert_eq!(status_of(&gate, large), 413);
    assert_eq!(status_of(&gate, "POST / HTTP/1.1\r\nHost: h\r\nExpect: cake\r\n\r\n"), 417);
}

#[test]
fn targets_of_all_forms_are_understood() {
    let gate = start(Limits::default());
    for (request_line, seen) in [
        ("GET /a/b", "GET /a/b None"),
        ("GET /a?", "GET /a Some(\"\")"),
        ("GET //a", "GET //a None"),
        ("GET /\u{e9}", "GET /\u{e9} None"),
        ("GET http://h/a?b", "GET /a Some(\"b\")"),
        ("GET HTTPS://h:1/", "GET / None"),
        ("GET http://h", "GET / None"),
        ("GET http://h?q=/", "GET / Some(\"q=/\")"),
        ("OPTIONS *", "OPTIONS * None"),
        ("BREW /pot", "BREW /pot None"),
    ] {
        let answer = talk(&gate, format!("{request_line} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"));
        assert!(answer.ends_with(&format!("\r\n\r\n{seen} \n")), "{request_line}: {answer}");
    }
}

// Refusals.

#[test]
fn malformed_requests_are_refused_and_end_the_connection() {
    let called = Arc::new(AtomicUsize::new(0));
    let calls = Arc::clone(&called);
    let gate = start_with(Limits::default(), move |request| {
        calls.fetch_add(1, Ordering::SeqCst);
        echo(request)
    });
    let chunked = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    let cases: Vec<(&str, Vec<u8>, u16)> = vec![
        ("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00".to_vec(), 400),
        ("no version", b"GET /\r\n\r\n".to_vec(), 400),
        ("odd version", b"GET / HTTP/x\r\nHost: h\r\n\r\n".to_vec(), 400),
        ("two spaces", b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(), 400),
        ("path not UTF-8", b"GET /\xff\xfe HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(), 400),
        ("relative target", b"GET a HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(), 400),
        ("other scheme", b"GET ftp://h/a HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(), 400),
        ("no authority", b"GET http:///a HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(), 400),
        ("fragment", b"GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(), 400),
        ("asterisk with GET", b"GET * HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(), 400),
        ("CONNECT", b"CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(), 400),
        ("no Host", b"GET / HTTP/1.1\r\n\r\n".to_vec(), 400),
        ("two Hosts", b"GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n".to_vec(), 400),
        ("space before colon", b"GET / HTTP/1.1\r\nHost : h\r\n\r\n".to_vec(), 400),
        ("folded field", b"GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n".to_vec(), 400),
        ("NUL in a field", b"GET / HTTP/1.1\r\nHost: h\r\nA: \0\r\n\r\n".to_vec(), 400),
        ("CR in a field", b"GET / HTTP/1.1\r\nHost: h\r\nA: b\rc\r\n\r\n".to_vec(), 400),
        ("length with sign", b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\na".to_vec(), 400),
        ("negative length", b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\na".to_vec(), 400),
        ("hex length", b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0x1\r\n\r\na".to_vec(), 400),
        ("empty length", b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\n".to_vec(), 400),
        ("list of lengths", b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1, 1\r\n\r\na".to_vec(), 400),
        (
            "two lengths",
            b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab".to_vec(),
            400,
        ),
        (
            "length and chunked",
            b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(),
            400,
        ),
        (
            "chunked twice",
            b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                .to_vec(),
            400,
        ),
        ("chunked in 1.0", b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(), 400),
        ("gzip", b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n".to_vec(), 501),
        ("gzip, chunked", b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n".to_vec(), 501),
        ("obscured chunked", b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: \x0bchunked\r\n\r\n".to_vec(), 400),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), 505),
        ("HTTP/1.2", b"GET / HTTP/1.2\r\nHost: h\r\n\r\n".to_vec(), 505),
        ("HTTP/0.9", b"GET / HTTP/0.9\r\nHost: h\r\n\r\n".to_vec(), 505),
        ("no chunk size", format!("{chunked}\r\n\r\n").into_bytes(), 400),
        ("chunk size with extension only", format!("{chunked};a\r\n\r\n").into_bytes(), 400),
        ("chunk size with sign", format!("{chunked}+1\r\na\r\n0\r\n\r\n").into_bytes(), 400),
        ("negative chunk size", format!("{chunked}-2\r\na\r\n0\r\n\r\n").into_bytes(), 400),
        ("chunk size with prefix", format!("{chunked}0x1\r\na\r\n0\r\n\r\n").into_bytes(), 400),
        ("chunk size overflows", format!("{chunked}10000000000000001\r\na\r\n").into_bytes(), 400),
        ("chunk too short", format!("{chunked}2\r\na\r\n0\r\n\r\n").into_bytes(), 400),
        ("chunk too long", format!("{chunked}1\r\nab\r\n0\r\n\r\n").into_bytes(), 400),
        ("chunk line ends with LF", format!("{chunked}1\na\r\n0\r\n\r\n").into_bytes(), 400),
        ("endless chunk extension", format!("{chunked}1;{}", "a".repeat(1000)).into_bytes(), 400),
        ("malformed trailer", format!("{chunked}0\r\nno colon\r\n\r\n").into_bytes(), 400),
    ];
    for (what, request, expected) in cases {
        // What follows must never be taken for a request.
        let mut bytes = request.clone();
        if expected != 400 || !what.contains("endless") {
            bytes.extend_from_slice(b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n");
        }
        let answer = talk(&gate, bytes);
        assert_eq!(status(&answer), expected, "{what}: {answer}");
        assert!(answer.contains("Connection: close\r\n"), "{what}: {answer}");
        assert_eq!(
            answer.matches("HTTP/1.1 ").count(),
            1 + answer.matches("and HTTP/1.1 are").count(),
            "{what}"
        );
    }
    assert_eq!(called.load(Ordering::SeqCst), 0, "a handler ran for a malformed request");
}

#[test]
fn a_version_that_comes_in_pieces_is_still_named_wrong() {
    let gate = start(Limits::default());
    let mut stream = connect(&gate);
    for byte in b"GET / HTTP/3.0\r\n" {
        stream.write_all(&[*byte]).unwrap();
    }
    stream.write_all(b"\r\n").unwrap();
    assert_eq!(status(&stream.read_to_end()), 505);
}

#[test]
fn equal_lengths_given_twice_count_once() {
    let gate = start(Limits::default());
    let request =
        "POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 2\r\ncontent-length: 2\r\n\r\nab";
    assert!(talk(&gate, request).ends_with("POST / None ab\n"));
}

#[test]
fn a_head_over_the_limit_is_431() {
    let gate = start(Limits { head_bytes: 2000, ..Limits::default() });
    let of = |length: usize| {
        let start = "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nX: ";
        format!("{start}{}\r\n\r\n", "x".repeat(length - start.len() - 4))
    };
    assert_eq!(status_of(&gate, of(2000)), 200);
    assert_eq!(status_of(&gate, of(2001)), 431);
    assert_eq!(status_of(&gate, of(100_000)), 431);
    assert_eq!(status_of(&gate, format!("GET /{}", "x".repeat(5000))), 431, "without an end");
    let many = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "A: b\r\n".repeat(200));
    assert_eq!(status_of(&gate, many), 431);
}

#[test]
fn a_body_over_the_limit_is_413_and_the_client_sees_it_while_sending() {
    let gate = start(Limits { body_bytes: MIB, ..Limits::default() });
    let head =
        |framing: &str| format!("POST /length HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{framing}\r\n\r\n");
    let mut fits = head(&format!("Content-Length: {MIB}")).into_bytes();
    fits.resize(fits.len() + MIB, b'x');
    assert!(talk(&gate, fits).ends_with("\r\n\r\n1048576\n"));
    // Declared too long: answered although nothing of it was sent.
    assert_eq!(status_of(&gate, head(&format!("Content-Length: {}", MIB + 1))), 413);
    assert_eq!(status_of(&gate, head("Content-Length: 99999999999999999999999999")), 413);
    // A client that sends all of it before it reads.
    let mut sent = head(&format!("Content-Length: {}", MIB + 1)).into_bytes();
    sent.resize(sent.len() + MIB + 1, b'x');
    assert_eq!(status_of(&gate, sent), 413);
    // Chunked: in one chunk that is too large, and in many that are too many.
    assert_eq!(status_of(&gate, head("Transfer-Encoding: chunked") + "100001\r\n"), 413);
    assert_eq!(status_of(&gate, head("Transfer-Encoding: chunked") + "ffffffffffffffff\r\n"), 413);
    let many = format!("10000\r\n{}\r\n", "x".repeat(0x10000)).repeat(17);
    assert_eq!(status_of(&gate, head("Transfer-Encoding: chunked") + &many), 413);
    assert_eq!(gate.body_memory(), 0);
}

#[test]
fn large_bodies_together_are_bounded_and_small_ones_still_served() {
    let gate = start(Limits { body_memory: 2 * MIB, ..Limits::default() });
    let mut first = connect(&gate);
    write!(first, "POST /length HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", 2 * MIB).unwrap();
    first.write_all(&vec![b'x'; 2 * MIB - 1]).unwrap();
    wait_until("the first body fills the budget", || gate.body_memory() > MIB);
    let mut second =
        format!("POST /length HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", 2 * MIB).into_bytes();
    second.resize(second.len() + 2 * MIB, b'x');
    let refusal = talk(&gate, second);
    assert_eq!(status(&refusal), 503);
    assert!(refusal.contains("Retry-After: 1\r\n"), "{refusal}");
    assert!(gate.body_memory() <= 2 * MIB);
    let mut small = connect(&gate);
    write!(small, "POST /length HTTP/1.1\r\nHost: h\r\nContent-Length: 60000\r\n\r\n{}", "x".repeat(60_000))
        .unwrap();
    assert_eq!(small.read().body, "60000\n");
    first.write_all(b"x").unwrap();
    assert_eq!(first.read().body, "2097152\n");
    wait_until("all memory is given back", || gate.body_memory() == 0);
}

#[cfg(target_os = "linux")]
#[test]
fn one_peers_half_sent_large_bodies_do_not_take_the_memory_from_another() {
    let gate = start(Limits { body_memory: 4 * MIB, ..Limits::default() });
    let head = format!("POST /length HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", 2 * MIB);
    let hoarders: Vec<Connection> = (0..2)
        .map(|_| {
            let mut stream = connect_from(&gate, Ipv4Addr::new(127, 0, 0, 2));
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(&vec![b'x'; 2 * MIB - 1]).unwrap();
            stream
        })
        .collect();
    wait_until("the budget is taken", || gate.body_memory() > 3 * MIB);
    let mut stream = connect(&gate);
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&vec![b'x'; 2 * MIB]).unwrap();
    assert_eq!(stream.read().body, "2097152\n");
    drop(hoarders);
}

// Time.

#[test]
fn a_connection_that_sends_nothing_is_cut_and_the_server_answers_on() {
    let gate = start(brisk());
    let mut silent = connect(&gate);
    let mut used = connect(&gate);
    assert_eq!(used.get("/").status, 200);
    assert!(silent.time_to_close() < Duration::from_secs(5));
    assert!(used.time_to_close() < Duration::from_secs(5));
    wait_until("all are gone", || gate.connections() == 0);
    // Idle for longer than any limit.
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(connect(&gate).get("/").status, 200);
}

#[test]
fn a_half_sent_request_is_cut_wherever_it_stops() {
    let gate = start(brisk());
    let head = "POST / HTTP/1.1\r\nHost: h\r\n";
    for part in [
        "G".to_owned(),
        head.to_owned(),
        format!("{head}Content-Length: 10\r\n\r\nabc"),
        format!("{head}Content-Length: 1000000\r\n\r\nabc"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n5"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n100000\r\nabc"),
    ] {
        let mut stream = connect(&gate);
        stream.write_all(part.as_bytes()).unwrap();
        assert!(stream.time_to_close() < Duration::from_secs(5), "{part}");
    }
    wait_until("all are gone", || gate.connections() == 0);
}

#[test]
fn a_client_that_trickles_is_cut_in_spite_of_its_progress() {
    let gate = start(Limits { idle: Duration::from_secs(60), ..brisk() });
    let head = "POST / HTTP/1.1\r\nHost: h\r\n";
    for (begin, trickle) in [
        (head.to_owned(), "X: y\r\n"),
        (format!("{head}Content-Length: 1000\r\n\r\n"), "x"),
        (format!("{head}Transfer-Encoding: chunked\r\n\r\n"), "1\r\nx\r\n"),
        (format!("{head}Content-Length: 1000000\r\n\r\n"), "x"),
    ] {
        let mut stream = connect(&gate);
        stream.write_all(begin.as_bytes()).unwrap();
        let start = Instant::now();
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
        assert!(took < Duration::from_secs(5), "{begin}: cut after {took:?}");
    }
}

#[test]
fn a_large_body_may_take_longer_than_a_small_one() {
    let gate = start(Limits {
        request_deadline: Duration::from_millis(200),
        body_deadline: Duration::from_secs(60),
        ..Limits::default()
    });
    let mut stream = connect(&gate);
    stream.write_all(b"POST /length HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n").unwrap();
    for _ in 0..10 {
        thread::sleep(Duration::from_millis(80));
        stream.write_all(&[b'x'; 10_000]).unwrap();
    }
    assert_eq!(stream.read().body, "100000\n");
}

#[test]
fn a_client_that_never_reads_its_answers_is_cut() {
    let gate = start(brisk());
    let mut stream = connect(&gate);
    stream.write_all("GET /large HTTP/1.1\r\nHost: h\r\n\r\n".repeat(50).as_bytes()).unwrap();
    wait_until("it is connected", || gate.connections() == 1);
    wait_until("it is cut", || gate.connections() == 0);
}

// Room.

#[test]
fn health_answers_while_more_half_sent_requests_are_open_than_there_are_places() {
    let limits = Limits { max_connections: 16, ..Limits::default() };
    let places = limits.max_connections;
    // Those being cut on Windows need a moment to end.
    let most = if cfg!(windows) { 2 * places } else { places };
    let gate = start(limits);
    let mut half_sent = Vec::new();
    for _ in 0..10 * places {
        let mut stream = connect(&gate);
        // The server may already have given its place to the next one.
        _ = stream.write_all(b"POST /webhook HTTP/1.1\r\nHost: h\r\n");
        half_sent.push(stream);
        assert_eq!(connect(&gate).get("/health").status, 200);
        assert!(gate.connections() <= most, "{} connections", gate.connections());
    }
    // The last /health has left, everything else is taken.
    assert!(gate.connections() >= places - 1, "{} connections", gate.connections());
    // A connection gives its place back a moment before its thread ends.
    #[cfg(target_os = "linux")]
    wait_until("one thread for each place", || threads_of(gate.local_addr().port()) <= most + 2);
    drop(half_sent);
    wait_until("all are gone", || gate.connections() == 0);
    #[cfg(target_os = "linux")]
    wait_until("only the server's own threads are left", || threads_of(gate.local_addr().port()) == 2);
}

#[cfg(target_os = "linux")]
#[test]
fn a_flood_from_one_address_takes_places_from_that_address_only() {
    let gate = start(Limits { max_connections: 8, ..Limits::default() });
    let mut other = connect_from(&gate, Ipv4Addr::new(127, 0, 0, 2));
    assert_eq!(other.get("/before").status, 200);
    let mut flood = Vec::new();
    for _ in 0..100 {
        let mut stream = connect_from(&gate, Ipv4Addr::new(127, 0, 0, 3));
        _ = stream.write_all(b"GET /");
        flood.push(stream);
    }
    // It has waited for longer than any connection of the flood, and yet stays.
    assert_eq!(other.get("/after").status, 200);
    let mut third = connect_from(&gate, Ipv4Addr::new(127, 0, 0, 4));
    assert_eq!(third.get("/new").status, 200);
    assert!(gate.connections() <= 8);
    assert_eq!(other.stream.local_addr().unwrap().ip(), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)));
}

#[test]
fn a_connection_whose_handler_runs_keeps_its_place() {
    let (entered, running) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let gate = start_with(Limits { max_connections: 2, ..Limits::default() }, move |request| {
        if request.path == "/slow" {
            entered.send(()).unwrap();
            released.lock().unwrap().recv_timeout(HANDLER_WAIT).unwrap();
        }
        echo(request)
    });
    let mut slow = connect(&gate);
    slow.write_all(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    running.recv_timeout(HANDLER_WAIT).unwrap();
    for n in 0..20 {
        assert_eq!(connect(&gate).get(&format!("/{n}")).status, 200);
    }
    release.send(()).unwrap();
    assert_eq!(slow.read().body, "GET /slow None \n");
}

#[test]
fn the_longest_waiting_connection_goes_first() {
    let gate = start(Limits { max_connections: 2, ..Limits::default() });
    let mut oldest = connect(&gate);
    assert_eq!(oldest.get("/").status, 200);
    thread::sleep(Duration::from_millis(5));
    let mut newer = connect(&gate);
    assert_eq!(newer.get("/").status, 200);
    assert_eq!(connect(&gate).get("/").status, 200);
    oldest.time_to_close();
    assert_eq!(newer.get("/").status, 200, "the newer one stays");
}

// The end.

#[test]
fn stop_cuts_what_waits_and_finishes_what_is_answered() {
    let (entered, running) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let gate = start_with(Limits::default(), move |request| {
        if request.path == "/slow" {
            entered.send(()).unwrap();
            released.lock().unwrap().recv_timeout(HANDLER_WAIT).unwrap();
        }
        echo(request)
    });
    let address: SocketAddr = gate.local_addr();
    let mut idle = connect(&gate);
    assert_eq!(idle.get("/").status, 200);
    let mut half_sent = connect(&gate);
    half_sent.write_all(b"GET /").unwrap();
    let mut slow = connect(&gate);
    slow.write_all(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    running.recv_timeout(HANDLER_WAIT).unwrap();
    let stopper = thread::spawn(move || {
        gate.stop();
        gate
    });
    idle.time_to_close();
    half_sent.time_to_close();
    release.send(()).unwrap();
    let Response { status, head, body } = slow.read();
    assert_eq!((status, body.as_str()), (200, "GET /slow None \n"));
    assert!(head.contains("Connection: close\r\n"), "{head}");
    drop(slow);
    let gate = stopper.join().unwrap();
    assert_eq!(gate.connections(), 0);
    #[cfg(target_os = "linux")]
    wait_until("no threads are left", || threads_of(address.port()) == 0);
    assert!(TcpStream::connect(address).is_err(), "still accepts after stop");
    gate.stop();
}

#[test]
fn stop_does_not_wait_for_a_handler_for_ever() {
    let (entered, running) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let limits = Limits { stop_grace: Duration::from_millis(100), ..Limits::default() };
    let gate = start_with(limits, move |request| {
        entered.send(()).unwrap();
        _ = released.lock().unwrap().recv_timeout(HANDLER_WAIT);
        echo(request)
    });
    let mut stuck = connect(&gate);
    stuck.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    running.recv_timeout(HANDLER_WAIT).unwrap();
    let start = Instant::now();
    gate.stop();
    assert!(start.elapsed() < Duration::from_secs(5), "stopped after {:?}", start.elapsed());
    drop(release);
}
