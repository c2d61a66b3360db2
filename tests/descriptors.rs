//! The HTTP server survives running out of file descriptors. In a test binary
//! of its own, because the limit is the whole process's.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use hyperv_runner_pool::http::server::{self, Limits, Reply, Request, Server};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

static WARNINGS: AtomicUsize = AtomicUsize::new(0);

struct CountWarnings;

impl log::Log for CountWarnings {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) && record.args().to_string().contains("cannot take a connection") {
            WARNINGS.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn flush(&self) {}
}

fn connect(server: &Server) -> TcpStream {
    connect_with(socket(), server)
}

/// A socket that has its descriptor already, for when there are no more.
fn socket() -> OwnedFd {
    // SAFETY: the descriptor is new and has no other owner.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        assert!(socket >= 0);
        OwnedFd::from_raw_fd(socket)
    }
}

fn connect_with(socket: OwnedFd, server: &Server) -> TcpStream {
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: server.local_addr().port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
        sin_zero: [0; 8],
    };
    let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: the address is valid for the call.
    let connected = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) };
    assert_eq!(connected, 0);
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn ask(stream: &mut TcpStream, path: &str) {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
}

fn is_answered(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).is_ok() && &answer == b"HTTP/1.1 200"
}

/// Takes every descriptor that the process may still have.
fn take_all_descriptors() -> Vec<File> {
    let mut taken = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        taken.push(file);
    }
    taken
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn processor_time() -> Duration {
    // SAFETY: a plain call on a local structure.
    unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        assert_eq!(libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time), 0);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }
}

/// One test, because both halves use up the same descriptors.
#[test]
fn the_server_survives_running_out_of_descriptors_and_getting_them_back() {
    log::set_logger(&CountWarnings).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    // SAFETY: a plain call on a local structure.
    unsafe {
        let limit = libc::rlimit { rlim_cur: 256, rlim_max: 256 };
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
    }
    let (entered, running) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let handler = move |request: &Request<'_>| {
        if request.path == "/slow" {
            entered.send(()).unwrap();
            released.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        }
        Reply::text(200, "OK")
    };
    let server =
        server::serve(TcpListener::bind("127.0.0.1:0").unwrap(), Limits::default(), Arc::new(handler))
            .unwrap();

    let before = descriptors();
    // Connections that wait give their descriptors to new ones: all of these together are too many.
    let mut open = Vec::new();
    for n in 0..100 {
        let mut stream = connect(&server);
        ask(&mut stream, "/");
        assert!(is_answered(&mut stream), "connection {n}");
        open.push(stream);
    }
    drop(open);
    let start = Instant::now();
    // Whatever is closed later would let the newcomer in.
    while server.connections() > 0 || descriptors() > before {
        assert!(start.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(1));
    }

    // With none that waits, a newcomer waits until there are descriptors again,
    // and the server neither ends nor spins.
    let mut slow = connect(&server);
    ask(&mut slow, "/slow");
    running.recv_timeout(PATIENCE).unwrap();
    let sockets = [socket(), socket()];
    let taken = take_all_descriptors();
    let [mut perhaps, mut waiting] = sockets.map(|socket| connect_with(socket, &server));
    ask(&mut perhaps, "/slow");
    ask(&mut waiting, "/");
    waiting.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
    let before = processor_time();
    assert!(!is_answered(&mut waiting), "the descriptors were not exhausted: this test tests nothing");
    let spent = processor_time() - before;
    assert!(spent < Duration::from_millis(300), "{spent:?} of processor time while waiting");
    assert_eq!(WARNINGS.load(Ordering::SeqCst), 1, "one line for a burst of errors");
    drop(taken);
    waiting.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(is_answered(&mut waiting), "after descriptors were free again");
    let mut fresh = connect(&server);
    ask(&mut fresh, "/");
    assert!(is_answered(&mut fresh));
    for mut slow in [slow, perhaps] {
        release.send(()).unwrap();
        assert!(is_answered(&mut slow), "what was running when they ran out");
    }
}
