//! The connections of the HTTP server: who may connect, how long a client may
//! take, how much it may send.
//!
//! The port is reachable from VMs that run untrusted jobs, so everything here
//! is bounded: connections, threads, heads, bodies, memory, time.
//!
//! Why not `tiny_http::Server`: its threads and heads are unbounded, it sets no
//! time-outs, it does not give access to the accepted sockets, any error from
//! `accept` leaves it deaf, and it answers 39,000 small signed webhooks a
//! second where 51,000 are wanted. So `tiny_http` gives the vocabulary
//! ([`Method`], [`StatusCode`]), `httparse` reads the head, and the accept loop
//! and the connection loop are here. The answer's head is written here too:
//! `Response::raw_print` always adds a `Server` field, always drops
//! `Connection`, and turns to chunked coding from 32 KiB on.
//!
//! How it works:
//! - One thread accepts. One blocking thread serves one connection. One thread,
//!   the reaper, cuts the connections whose deadline has passed.
//! - What a connection is doing, and since when, is one atomic word (`State`).
//!   Its thread and whoever wants to cut it both change the word by
//!   compare-and-swap, so a connection is never cut once its handler runs.
//! - To cut is to mark the word and to shut the socket down, which wakes a
//!   blocked read everywhere but on Windows
//!   (<https://github.com/rust-lang/rust/issues/121594>). There a thread waits
//!   for data with a timed `peek`, which loses nothing when it times out, and
//!   looks at the word in between.
//! - When all places are taken, a new connection takes the place of the
//!   longest waiting one of the peer that holds the most.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub use tiny_http::{Method, StatusCode};

/// Bodies up to this many bytes must come within [`Limits::request_deadline`]
/// and are not counted against [`Limits::body_memory`].
pub const SMALL_BODY: usize = 64 * 1024;

/// The size of a connection's buffer while it waits for a request.
const IDLE_BUFFER: usize = 4 * 1024;

/// A buffer doubles in size until it grows by this many bytes at a time.
const GROWTH: usize = 4 * 1024 * 1024;

/// The virtual size of a connection's stack. Only touched pages cost memory.
const STACK: usize = 256 * 1024;

/// More header fields than this are refused with 431.
const MAX_FIELDS: usize = 100;

/// The longest line that may announce a chunk, extensions included.
const CHUNK_LINE: usize = 256;

/// How long a refused or last answer is kept readable for a client that still
/// sends, before the connection is closed.
const LINGER: Duration = Duration::from_secs(2);

/// A write that has been blocked for longer than this, in microseconds, shows a
/// client that does not read: its connection may be cut for a new one.
const SLOW_WRITE: u64 = 250_000;

/// When descriptors run out, connections that have waited for longer than this,
/// in microseconds, are cut.
const STALE: u64 = 250_000;

/// How long a thread on Windows waits for data before it looks whether its
/// connection was cut.
const WINDOWS_TICK: Duration = Duration::from_millis(100);

/// What a client may use. [`Limits::default`] is what the program runs with.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections served at the same time, each with a thread of its own.
    /// On Windows, as many again may be ending.
    pub max_connections: usize,
    /// The longest head (request line and header fields), in bytes. Above: 431.
    pub head_bytes: usize,
    /// The longest body, in bytes. Above: 413.
    pub body_bytes: usize,
    /// All large bodies (above [`SMALL_BODY`]) in memory together, in bytes.
    /// Above: 503 with `Retry-After`.
    pub body_memory: usize,
    /// From a request's first byte to its last, for the head and a small body;
    /// also the time that a client may take to read its answer.
    pub request_deadline: Duration,
    /// From a request's first byte to its last, with a large body.
    pub body_deadline: Duration,
    /// How long a connection may stay open between requests.
    pub idle: Duration,
    /// How long [`Gate::stop`] lets handlers and answers in flight finish.
    pub stop_grace: Duration,
}

impl Default for Limits {
    /// 256 connections, heads of 16 KiB, bodies of 25 MiB (GitHub's own cap on
    /// a webhook payload), 64 MiB for large bodies together, 10 s for a request,
    /// 30 s for a large one, 60 s idle, 5 s to stop.
    fn default() -> Limits {
        Limits {
            max_connections: 256,
            head_bytes: 16 * 1024,
            body_bytes: 25 * 1024 * 1024,
            body_memory: 64 * 1024 * 1024,
            request_deadline: Duration::from_secs(10),
            body_deadline: Duration::from_secs(30),
            idle: Duration::from_secs(60),
            stop_grace: Duration::from_secs(5),
        }
    }
}

/// A complete request.
#[derive(Debug)]
pub struct Request<'a> {
    /// The method.
    pub method: Method,
    /// The target's path as it was sent: not percent-decoded, without the
    /// query. `*` for `OPTIONS *`.
    pub path: &'a str,
    /// What follows the first `?` of the target, as it was sent.
    pub query: Option<&'a str>,
    /// The header fields.
    pub headers: Headers<'a>,
    /// The body, with chunked coding removed. Empty if there is none.
    pub body: &'a [u8],
    /// The other end of the connection.
    pub peer: SocketAddr,
}

/// The header fields of a request, in the order in which they came.
#[derive(Clone, Copy)]
pub struct Headers<'a> {
    head: &'a [u8],
    fields: &'a [Field],
}

impl<'a> Headers<'a> {
    /// The value of the first field of this name, in whatever case.
    pub fn get(&self, name: &str) -> Option<&'a [u8]> {
        self.all(name).next()
    }

    /// The values of all fields of this name, in whatever case.
    pub fn all<'n>(&self, name: &'n str) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        self.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Whether more than one field has this name: a request that means two
    /// things to two readers.
    pub fn is_repeated(&self, name: &str) -> bool {
        self.all(name).nth(1).is_some()
    }

    /// All fields: names as they were sent, and values without the white space
    /// around them. Values may hold any byte but control characters.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + use<'a> {
        let head = self.head;
        self.fields.iter().map(move |field| {
            let name = std::str::from_utf8(&head[field.name.clone()]).unwrap_or_default();
            (name, &head[field.value.clone()])
        })
    }
}

/// Names only: values may be secret.
impl std::fmt::Debug for Headers<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter().map(|(name, _)| name)).finish()
    }
}

/// The answer to a request. `Content-Length` and `Connection` are added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status code, 200 to 599.
    pub status: u16,
    /// The media type of the body.
    pub content_type: &'static str,
    /// The body. Not sent in answer to HEAD, nor with 204 and 304.
    pub body: Cow<'static, [u8]>,
    /// More header fields. One whose value holds a control character is left
    /// out.
    pub headers: Vec<(&'static str, Cow<'static, str>)>,
}

impl Reply {
    /// Plain text, UTF-8.
    pub fn text(status: u16, body: impl Into<Cow<'static, str>>) -> Reply {
        Reply::new(status, "text/plain; charset=utf-8", body)
    }

    /// A JSON text.
    pub fn json(status: u16, body: impl Into<Cow<'static, str>>) -> Reply {
        Reply::new(status, "application/json", body)
    }

    /// Text of any media type.
    pub fn new(status: u16, content_type: &'static str, body: impl Into<Cow<'static, str>>) -> Reply {
        let body = match body.into() {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        };
        Reply { status, content_type, body, headers: Vec::new() }
    }

    /// The same with one more header field.
    pub fn with_header(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }
}

/// What answers requests. It runs on the connection's thread and must not wait
/// for anything slow: its connection keeps its place while it runs.
pub type Handler = dyn Fn(&Request<'_>) -> Reply + Send + Sync;

/// A running server. Dropping it stops it.
pub struct Gate {
    shared: Arc<Shared>,
    address: SocketAddr,
    acceptor: Mutex<Option<JoinHandle<()>>>,
    reaper: Mutex<Option<JoinHandle<()>>>,
}

/// Serves `listener` until [`Gate::stop`].
///
/// # Errors
/// When the listener has no address, or the two threads that every server
/// needs cannot be started.
pub fn serve(listener: TcpListener, limits: Limits, handler: Arc<Handler>) -> io::Result<Gate> {
    let address = listener.local_addr()?;
    listener.set_nonblocking(false)?;
    let shared = Arc::new(Shared {
        // Short enough for the 15 characters that Linux shows of a thread's name.
        thread_name: format!("http-{}", address.port()),
        limits,
        handler,
        epoch: Instant::now(),
        stopping: AtomicBool::new(false),
        stopped: AtomicBool::new(false),
        body_memory: AtomicUsize::new(0),
        table: Mutex::new(HashMap::new()),
        left: Condvar::new(),
        threads: Mutex::new(Vec::new()),
    });
    let start = |task: Task| {
        let shared = Arc::clone(&shared);
        let name = shared.thread_name.clone();
        thread::Builder::new().name(name).stack_size(STACK).spawn(move || task(&shared))
    };
    let reaper = start(Box::new(|shared| reap(shared)))?;
    let acceptor = match start(Box::new(move |shared| accept(shared, &listener))) {
        Ok(acceptor) => acceptor,
        Err(error) => {
            shared.stopped.store(true, Ordering::SeqCst);
            reaper.thread().unpark();
            return Err(error);
        }
    };
    Ok(Gate { shared, address, acceptor: Mutex::new(Some(acceptor)), reaper: Mutex::new(Some(reaper)) })
}

impl Gate {
    /// The address that is listened on.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// How many connections are open now, those being closed included.
    pub fn connections(&self) -> usize {
        self.shared.table().len()
    }

    /// How many bytes of large bodies are in memory now.
    pub fn body_memory(&self) -> usize {
        self.shared.body_memory.load(Ordering::Relaxed)
    }

    /// Stops: no more connections are accepted, waiting ones and requests that
    /// are not complete are cut, handlers and answers in flight get
    /// [`Limits::stop_grace`] to finish, all threads are joined. A second call
    /// does nothing.
    pub fn stop(&self) {
        let shared = &self.shared;
        let Some(acceptor) = unpoisoned(&self.acceptor).take() else { return };
        shared.stopping.store(true, Ordering::SeqCst);
        // A blocked accept() has no portable way out but a connection.
        let wake = SocketAddr::new(loopback_of(self.address.ip()), self.address.port());
        let patience = Instant::now() + shared.limits.stop_grace;
        while !acceptor.is_finished() && Instant::now() < patience {
            drop(TcpStream::connect_timeout(&wake, Duration::from_millis(100)));
            thread::sleep(Duration::from_millis(2));
        }
        join(acceptor, "accepts connections");

        let forced = Instant::now() + shared.limits.stop_grace;
        let given_up = forced + shared.limits.stop_grace;
        let mut table = shared.table();
        while !table.is_empty() && Instant::now() < given_up {
            for conn in table.values() {
                let word = conn.word();
                match State::of(word).phase {
                    Phase::Idle | Phase::Head | Phase::Body => _ = conn.cut(word),
                    _ if Instant::now() >= forced => conn.force(),
                    _ => {}
                }
            }
            table = wait(&shared.left, table, Duration::from_millis(20));
        }
        drop(table);
        for thread in std::mem::take(&mut *unpoisoned(&shared.threads)) {
            let last_steps = Instant::now() + Duration::from_millis(200);
            while !thread.is_finished() && Instant::now() < last_steps {
                thread::sleep(Duration::from_millis(1));
            }
            join(thread, "serves a connection");
        }
        shared.stopped.store(true, Ordering::SeqCst);
        if let Some(reaper) = unpoisoned(&self.reaper).take() {
            reaper.thread().unpark();
            _ = reaper.join();
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.stop();
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Joins a thread that should have ended; leaves one that has not, since
/// waiting for it could take for ever.
fn join(thread: JoinHandle<()>, task: &str) {
    if thread.is_finished() {
        _ = thread.join();
    } else {
        log::warn!("HTTP: a thread that {task} did not end in time and is left behind");
    }
}

fn loopback_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

/// What all threads of one server share.
struct Shared {
    limits: Limits,
    handler: Arc<Handler>,
    thread_name: String,
    /// The zero of all times in `State`.
    epoch: Instant,
    /// No new connections, no new requests.
    stopping: AtomicBool,
    /// All connections are gone; the reaper may go too.
    stopped: AtomicBool,
    /// The bytes counted against [`Limits::body_memory`].
    body_memory: AtomicUsize,
    table: Mutex<Table>,
    /// Signalled when a connection has left the table.
    left: Condvar,
    /// All connection threads that have not been joined.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What one of the server's two own threads does.
type Task = Box<dyn FnOnce(&Arc<Shared>) + Send>;

/// All open connections, by a number of their own.
type Table = HashMap<u64, Arc<Conn>>;

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        unpoisoned(&self.table)
    }

    /// When a state ends unless something happens; `None` for never.
    fn deadline(&self, state: State) -> Option<u64> {
        let allowed = match state.phase {
            Phase::Idle => self.limits.idle,
            Phase::Head | Phase::Writing => self.limits.request_deadline,
            Phase::Body => self.limits.body_deadline,
            Phase::Lingering => LINGER.min(self.limits.request_deadline),
            Phase::Handling | Phase::Cut => return None,
        };
        Some(state.since.saturating_add(u64::try_from(allowed.as_micros()).unwrap_or(u64::MAX)))
    }

    /// Cuts the longest waiting connection of the peer with the most weight
    /// that has one to cut, and says whether there was one. Nothing is cut for
    /// a `spared` peer that has the most weight itself.
    fn cut_one(&self, table: &Table, weight: impl Fn(&Conn) -> usize, spared: Option<u128>) -> bool {
        let now = self.now();
        let mut totals: HashMap<u128, usize> = HashMap::new();
        for conn in table.values() {
            if State::of(conn.word()).phase != Phase::Cut {
                *totals.entry(conn.owner).or_default() += weight(conn);
            }
        }
        if let Some(spared) = spared
            && totals.get(&spared) == totals.values().max()
        {
            return false;
        }
        // Each round ends in a cut, or has lost a race against a connection
        // that made progress and is no longer the one to cut.
        for _ in 0..8 {
            let victim = table
                .values()
                .map(|conn| (conn, conn.word()))
                .filter(|(conn, word)| State::of(*word).may_be_evicted(now) && weight(conn) > 0)
                .filter(|(conn, _)| spared != Some(conn.owner))
                .max_by_key(|(conn, word)| {
                    (totals.get(&conn.owner), now.saturating_sub(State::of(*word).since))
                });
            match victim {
                None => return false,
                Some((conn, word)) if conn.cut(word) => return true,
                Some(_) => {}
            }
        }
        false
    }

    /// Counts `more` bytes of a large body. When there is no room, takes it
    /// from the peer that holds the most; `false` when that is `conn`'s own.
    fn reserve(&self, conn: &Conn, more: usize) -> bool {
        let patience = Instant::now() + Duration::from_millis(250);
        loop {
            let counted = self.body_memory.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                taken.checked_add(more).filter(|total| *total <= self.limits.body_memory)
            });
            if counted.is_ok() {
                conn.held.fetch_add(more, Ordering::Relaxed);
                return true;
            }
            let table = self.table();
            let cut = self.cut_one(&table, |conn| conn.held.load(Ordering::Relaxed), Some(conn.owner));
            if !cut || Instant::now() >= patience {
                return false;
            }
            drop(wait(&self.left, table, Duration::from_millis(50)));
        }
    }

    /// Gives back all that `conn` holds but `kept` bytes.
    fn release(&self, conn: &Conn, kept: usize) {
        let held = conn.held.load(Ordering::Relaxed);
        conn.held.store(held.min(kept), Ordering::Relaxed);
        self.body_memory.fetch_sub(held.saturating_sub(kept), Ordering::Relaxed);
    }
}

/// One open connection, as other threads see it.
struct Conn {
    stream: TcpStream,
    peer: SocketAddr,
    /// Whom the connection counts for, see [`owner_of`].
    owner: u128,
    state: AtomicU64,
    /// Its share of [`Shared::body_memory`].
    held: AtomicUsize,
}

impl Conn {
    fn word(&self) -> u64 {
        self.state.load(Ordering::SeqCst)
    }

    /// Cuts the connection, unless its state is no longer `word`.
    fn cut(&self, word: u64) -> bool {
        let cut = State { phase: Phase::Cut, since: State::of(word).since }.word();
        let won = self.state.compare_exchange(word, cut, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if won {
            _ = self.stream.shutdown(Shutdown::Both);
        }
        won
    }

    /// Cuts the connection, whatever it is doing.
    fn force(&self) {
        self.state.store(State { phase: Phase::Cut, since: 0 }.word(), Ordering::SeqCst);
        _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// What a connection is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// It waits for a request's first byte.
    Idle,
    /// It receives a head or a small body.
    Head,
    /// It receives a large body.
    Body,
    /// Its handler runs.
    Handling,
    /// It sends an answer.
    Writing,
    /// It has sent its last answer and waits for the client to close.
    Lingering,
    /// It was cut; its thread is about to end.
    Cut,
}

/// What a connection is doing, and since when: in microseconds after
/// [`Shared::epoch`], for `Head` and `Body` of the request's first byte.
#[derive(Clone, Copy)]
struct State {
    phase: Phase,
    since: u64,
}

impl State {
    fn word(self) -> u64 {
        self.since << 3 | self.phase as u64
    }

    fn of(word: u64) -> State {
        let phase = match word & 7 {
            0 => Phase::Idle,
            1 => Phase::Head,
            2 => Phase::Body,
            3 => Phase::Handling,
            4 => Phase::Writing,
            5 => Phase::Lingering,
            _ => Phase::Cut,
        };
        State { phase, since: word >> 3 }
    }

    fn may_be_evicted(self, now: u64) -> bool {
        match self.phase {
            Phase::Idle | Phase::Head | Phase::Body | Phase::Lingering => true,
            Phase::Writing => now.saturating_sub(self.since) >= SLOW_WRITE,
            Phase::Handling | Phase::Cut => false,
        }
    }
}

/// Whom a connection counts for: an IPv4 address, or an IPv6 network of 64
/// bits, since one machine has all of its addresses at will.
fn owner_of(ip: IpAddr) -> u128 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip) >> 64 << 64 | 1 << 63,
    }
}

/// The accept loop. Whatever accept() says, it goes on.
fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    let mut next_id = 0;
    let mut trouble = Trouble::default();
    while !shared.stopping.load(Ordering::SeqCst) {
        let started = match listener.accept() {
            Ok(_) if shared.stopping.load(Ordering::SeqCst) => break,
            Ok((stream, peer)) => {
                next_id += 1;
                admit(shared, next_id, stream, peer)
            }
            Err(error) => Err(error),
        };
        match started {
            Ok(()) => trouble.pause = Duration::ZERO,
            Err(error) => {
                if is_out_of_descriptors(&error) {
                    // A waiting connection gives its descriptor to a new one:
                    // but not one that has only just come.
                    let now = shared.now();
                    let is_stale = |conn: &Conn| now.saturating_sub(State::of(conn.word()).since) > STALE;
                    shared.cut_one(&shared.table(), |conn| usize::from(is_stale(conn)), None);
                }
                thread::sleep(trouble.met(&error));
            }
        }
    }
}

/// Errors of the accept loop: logged once per burst, each followed by a pause.
#[derive(Default)]
struct Trouble {
    last: Option<Instant>,
    pause: Duration,
}

impl Trouble {
    /// Errors within this time of each other are one burst.
    const BURST: Duration = Duration::from_secs(10);

    fn met(&mut self, error: &io::Error) -> Duration {
        if self.last.is_none_or(|last| last.elapsed() > Trouble::BURST) {
            log::warn!(
                "HTTP: cannot take a connection: {error}. The server goes on; more of these are not logged"
            );
        }
        self.last = Some(Instant::now());
        self.pause = (self.pause * 2).clamp(Duration::from_millis(5), Duration::from_millis(200));
        self.pause
    }
}

/// EMFILE and ENFILE on Unix, WSAEMFILE on Windows.
fn is_out_of_descriptors(error: &io::Error) -> bool {
    match error.raw_os_error() {
        Some(code) if cfg!(windows) => code == 10024,
        Some(code) => code == 23 || code == 24,
        None => false,
    }
}

/// Starts the thread of a new connection, after making room for it. Refuses it
/// (by closing it) when there is no room to be made.
///
/// # Errors
/// When its thread cannot be started.
fn admit(shared: &Arc<Shared>, id: u64, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    let most = shared.limits.max_connections.max(1);
    let mut table = shared.table();
    // Shutting a socket down wakes its thread in microseconds, but on Windows
    // only at its next tick: there, as many again may be ending.
    let room = if cfg!(windows) { most * 2 } else { most };
    let patience = Instant::now() + WINDOWS_TICK * 5;
    while table.len() >= most {
        let live = table.values().filter(|conn| State::of(conn.word()).phase != Phase::Cut).count();
        let made_room = live < most || shared.cut_one(&table, |_| 1, None);
        if made_room && table.len() < room {
            break;
        }
        if Instant::now() >= patience {
            log::debug!("HTTP: all {most} connections are busy; one from {} is refused", peer.ip());
            return Ok(());
        }
        table = wait(&shared.left, table, Duration::from_millis(10));
    }
    // A failure here means that the client is gone already.
    if prepare(&stream, &shared.limits).is_err() {
        return Ok(());
    }
    let conn = Arc::new(Conn {
        stream,
        peer,
        owner: owner_of(peer.ip()),
        state: AtomicU64::new(State { phase: Phase::Idle, since: shared.now() }.word()),
        held: AtomicUsize::new(0),
    });
    table.insert(id, Arc::clone(&conn));
    drop(table);
    // Leaves the table when it is dropped: by the thread, or by a failed spawn.
    let place = Place { shared: Arc::clone(shared), id, conn };
    let thread = thread::Builder::new()
        .name(shared.thread_name.clone())
        .stack_size(STACK)
        .spawn(move || Connection::new(place).run())?;
    let mut threads = unpoisoned(&shared.threads);
    threads.retain(|thread| !thread.is_finished());
    threads.push(thread);
    Ok(())
}

/// Sets what a socket keeps for its whole life. Deadlines are not among it: see
/// [`reap`]. A read time-out would make the kernel set a timer at each read, so
/// there is one only on Windows, where shutting down does not wake a read.
fn prepare(stream: &TcpStream, limits: &Limits) -> io::Result<()> {
    stream.set_nodelay(true)?;
    if cfg!(windows) {
        stream.set_read_timeout(Some(WINDOWS_TICK))?;
    }
    // On Windows, this is also what ends a blocked write.
    stream.set_write_timeout(Some(limits.request_deadline.max(Duration::from_millis(1))))
}

/// Cuts connections whose deadline has passed.
fn reap(shared: &Shared) {
    let shortest = shared.limits.idle.min(shared.limits.request_deadline).min(shared.limits.body_deadline);
    let tick = (shortest / 4).clamp(Duration::from_millis(1), Duration::from_secs(1));
    while !shared.stopped.load(Ordering::SeqCst) {
        thread::park_timeout(tick);
        let now = shared.now();
        for conn in shared.table().values() {
            let word = conn.word();
            if shared.deadline(State::of(word)).is_some_and(|deadline| deadline <= now) {
                conn.cut(word);
            }
        }
        // An ended thread keeps its stack until its handle is gone. While
        // stopping, the handles are needed for joining.
        if !shared.stopping.load(Ordering::SeqCst) {
            unpoisoned(&shared.threads).retain(|thread| !thread.is_finished());
        }
    }
}

/// A connection's place in the table, for as long as its thread lives.
struct Place {
    shared: Arc<Shared>,
    id: u64,
    conn: Arc<Conn>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.release(&self.conn, 0);
        self.shared.table().remove(&self.id);
        self.shared.left.notify_all();
    }
}

/// Why a connection ends.
enum End {
    /// The client is gone, or was cut: there is nobody to answer.
    Gone,
    /// The request cannot be served, and what follows it cannot be trusted.
    Refused(Reply),
}

fn refused(status: u16, why: &'static str) -> End {
    End::Refused(Reply::text(status, why))
}

/// A connection as its own thread sees it.
struct Connection {
    place: Place,
    /// What this thread last wrote to [`Conn::state`].
    word: u64,
    /// Received bytes are `buffer[start..end]`.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// The fields of the present request's head.
    fields: Vec<Field>,
    /// The answer, so that it leaves in one write.
    answer: Vec<u8>,
}

impl Connection {
    fn new(place: Place) -> Connection {
        let word = place.conn.word();
        // A connection cut before its first step must see that at its next.
        let word = State { phase: Phase::Idle, since: State::of(word).since }.word();
        Connection {
            place,
            word,
            buffer: vec![0; IDLE_BUFFER],
            start: 0,
            end: 0,
            fields: Vec::new(),
            answer: Vec::new(),
        }
    }

    fn run(mut self) {
        let end = loop {
            match self.exchange() {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(End::Gone) => break Err(End::Gone),
                Err(End::Refused(reply)) => break self.refuse(&reply),
            }
        };
        if end.is_ok() {
            _ = self.linger();
        }
    }

    /// One request and its answer; says whether another may follow.
    fn exchange(&mut self) -> Result<bool, End> {
        let head = self.read_head()?;
        let body = self.read_body(&head)?;
        // Whole, so from here on it is answered. Handling has no deadline, so no
        // need to ask for the time.
        self.change(State { phase: Phase::Handling, ..State::of(self.word) })?;
        let text = &self.buffer[self.start..self.start + head.length];
        let request = Request {
            method: head.method,
            // The parser has made sure that the target is UTF-8.
            path: std::str::from_utf8(&text[head.path]).unwrap_or_default(),
            query: head.query.map(|query| std::str::from_utf8(&text[query]).unwrap_or_default()),
            headers: Headers { head: text, fields: &self.fields },
            body: &self.buffer[body.content],
            peer: self.place.conn.peer,
        };
        let without_body = request.method == Method::Head;
        let reply = (self.place.shared.handler)(&request);
        let keep_alive = head.keep_alive && !self.place.shared.stopping.load(Ordering::SeqCst);
        let connection = match (head.minor_version, keep_alive) {
            (1, true) => None,
            (_, true) => Some("keep-alive"),
            (_, false) => Some("close"),
        };
        self.start = body.rest;
        self.shrink();
        self.write(&reply, connection, without_body)?;
        if keep_alive {
            self.enter(Phase::Idle)?;
        }
        Ok(keep_alive)
    }

    /// Changes the state, with the time; fails when the connection was cut.
    fn enter(&mut self, phase: Phase) -> Result<(), End> {
        self.change(State { phase, since: self.place.shared.now() })
    }

    fn change(&mut self, state: State) -> Result<(), End> {
        let word = state.word();
        match self.place.conn.state.compare_exchange(self.word, word, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => {
                self.word = word;
                Ok(())
            }
            Err(_) => Err(End::Gone),
        }
    }

    fn read_head(&mut self) -> Result<Head, End> {
        let limit = self.place.shared.limits.head_bytes;
        let mut seen: usize = 0;
        loop {
            let received = &self.buffer[self.start..self.end];
            // Parsing at each received byte would let a client buy much work
            // for little: once at first, to refuse nonsense at once, and then
            // when there is a blank line.
            let worth_parsing =
                !received.is_empty() && (seen == 0 || has_blank_line(&received[seen.saturating_sub(3)..]));
            if worth_parsing && let Some(head) = parse_head(received, &mut self.fields)? {
                if head.length > limit {
                    return Err(refused(431, HEAD_TOO_LARGE));
                }
                return Ok(head);
            }
            seen = received.len();
            if seen >= limit {
                return Err(refused(431, HEAD_TOO_LARGE));
            }
            self.compact();
            if self.end == self.buffer.len() {
                self.grow((2 * self.end).min(limit + SMALL_BODY))?;
            }
            self.fill()?;
        }
    }

    /// Receives the body behind `head`. Afterwards the head starts at
    /// `self.start` as before.
    fn read_body(&mut self, head: &Head) -> Result<Body, End> {
        let limit = self.place.shared.limits.body_bytes;
        let length = match head.framing {
            Framing::Length(length) => usize::try_from(length).unwrap_or(usize::MAX),
            Framing::Chunked => {
                self.compact();
                self.invite(head)?;
                return self.read_chunks(head.length);
            }
        };
        if length > limit {
            return Err(refused(413, BODY_TOO_LARGE));
        }
        let mut content = self.start + head.length..self.start + head.length + length;
        if content.end > self.end {
            self.compact();
            content = head.length..head.length + length;
            self.invite(head)?;
            self.expect_body_of(length)?;
            while self.end < content.end {
                if self.end == self.buffer.len() {
                    self.grow((self.end + self.end.min(GROWTH)).min(content.end))?;
                }
                self.fill()?;
            }
        }
        Ok(Body { rest: content.end, content })
    }

    /// Receives a chunked body and leaves it in one piece behind the head.
    /// <https://www.rfc-editor.org/rfc/rfc9112#section-7.1>
    fn read_chunks(&mut self, head_length: usize) -> Result<Body, End> {
        let limits = &self.place.shared.limits;
        let (body_limit, trailer_limit) = (limits.body_bytes, limits.head_bytes);
        // The decoded body is buffer[head_length..body]; what is still to be
        // decoded is buffer[raw..end].
        let (mut body, mut raw) = (head_length, head_length);
        loop {
            let line = self.read_line(body, &mut raw, CHUNK_LINE)?;
            let size = chunk_size(&self.buffer[line]).ok_or_else(|| refused(400, "Malformed chunk\n"))?;
            if size == 0 {
                break;
            }
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            let total = size.saturating_add(body - head_length);
            if total > body_limit {
                return Err(refused(413, BODY_TOO_LARGE));
            }
            self.expect_body_of(total)?;
            let mut missing = size;
            while missing > 0 {
                let here = missing.min(self.end - raw);
                self.buffer.copy_within(raw..raw + here, body);
                (raw, body, missing) = (raw + here, body + here, missing - here);
                if missing > 0 {
                    self.fill_raw(body, &mut raw)?;
                }
            }
            if !self.read_line(body, &mut raw, 2)?.is_empty() {
                return Err(refused(400, "Malformed chunk\n"));
            }
        }
        // Trailer fields are checked and forgotten.
        let mut trailer = 0;
        loop {
            let line = self.read_line(body, &mut raw, trailer_limit - trailer)?;
            if line.is_empty() {
                return Ok(Body { content: head_length..body, rest: raw });
            }
            trailer += line.len() + 2;
            let mut field = self.buffer[line].to_vec();
            field.extend_from_slice(b"\r\n\r\n");
            if httparse::parse_headers(&field, &mut [httparse::EMPTY_HEADER; 1]).is_err() {
                return Err(refused(400, "Malformed trailer\n"));
            }
        }
    }

    /// The next line of the undecoded bytes, without its CRLF, which counts
    /// against `limit`. Lines end with CRLF and nothing else.
    fn read_line(&mut self, body: usize, raw: &mut usize, limit: usize) -> Result<Range<usize>, End> {
        let mut seen = 0;
        loop {
            let received = &self.buffer[*raw..self.end];
            let newline = received[seen..].iter().position(|byte| *byte == b'\n').map(|at| seen + at);
            if newline.map_or(received.len(), |at| at + 1) > limit {
                return Err(refused(400, "A line of the chunked body is too long\n"));
            }
            if let Some(newline) = newline {
                let line = *raw..(*raw + newline).saturating_sub(1);
                if newline == 0 || self.buffer[line.end] != b'\r' {
                    return Err(refused(400, "A line of the chunked body does not end with CRLF\n"));
                }
                *raw += newline + 1;
                return Ok(line);
            }
            seen = received.len();
            self.fill_raw(body, raw)?;
        }
    }

    /// Receives more undecoded bytes, closing the gap before them first.
    fn fill_raw(&mut self, body: usize, raw: &mut usize) -> Result<(), End> {
        self.buffer.copy_within(*raw..self.end, body);
        self.end -= *raw - body;
        *raw = body;
        if self.end == self.buffer.len() {
            self.grow(self.end + self.end.min(GROWTH))?;
        }
        self.fill()
    }

    /// Gives a large body the longer deadline, from the same first byte.
    fn expect_body_of(&mut self, length: usize) -> Result<(), End> {
        if length > SMALL_BODY {
            if State::of(self.word).phase == Phase::Idle {
                self.enter(Phase::Head)?;
            }
            self.change(State { phase: Phase::Body, ..State::of(self.word) })?;
        }
        Ok(())
    }

    /// Answers `Expect: 100-continue`, unless the body is on its way already.
    fn invite(&mut self, head: &Head) -> Result<(), End> {
        if head.expects_continue && self.end == self.start + head.length {
            let mut stream = &self.place.conn.stream;
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").map_err(|_| End::Gone)?;
        }
        Ok(())
    }

    /// Moves the received bytes to the front of the buffer.
    fn compact(&mut self) {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }

    /// Makes the buffer `size` bytes long.
    fn grow(&mut self, size: usize) -> Result<(), End> {
        let shared = &self.place.shared;
        let held = self.place.conn.held.load(Ordering::Relaxed);
        let more = counted(&shared.limits, size).saturating_sub(held);
        if more > 0 && !shared.reserve(&self.place.conn, more) {
            let reply = Reply::text(503, "Too many large requests at once; try again later\n");
            return Err(End::Refused(reply.with_header("Retry-After", "1")));
        }
        self.buffer.reserve_exact(size - self.buffer.len());
        self.buffer.resize(size, 0);
        Ok(())
    }

    /// Gives back the memory of a large request.
    fn shrink(&mut self) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.buffer.len() > 4 * IDLE_BUFFER {
            self.compact();
            self.buffer.truncate(self.end.max(IDLE_BUFFER));
            self.buffer.shrink_to_fit();
            let shared = &self.place.shared;
            shared.release(&self.place.conn, counted(&shared.limits, self.buffer.len()));
        }
    }

    /// Receives at least one byte. A request's time runs from the moment when
    /// the first of its bytes are here and others are not; one that is whole at
    /// once costs no look at the clock.
    fn fill(&mut self) -> Result<(), End> {
        if self.end > self.start && State::of(self.word).phase == Phase::Idle {
            self.enter(Phase::Head)?;
        }
        let room = self.end..self.buffer.len();
        let received = receive(&self.place.conn, &mut self.buffer[room])?;
        self.end += received;
        Ok(())
    }

    fn write(&mut self, reply: &Reply, connection: Option<&str>, without_body: bool) -> Result<(), End> {
        self.answer.clear();
        compose(&mut self.answer, reply, connection, without_body);
        self.enter(Phase::Writing)?;
        let sent = (&self.place.conn.stream).write_all(&self.answer);
        if self.answer.capacity() > 4 * IDLE_BUFFER {
            self.answer = Vec::new();
        }
        sent.map_err(|_| End::Gone)
    }

    fn refuse(&mut self, reply: &Reply) -> Result<(), End> {
        self.start = self.end;
        self.shrink();
        self.write(reply, Some("close"), false)
    }

    /// Closes without losing the answer: a socket closed with unread data
    /// resets the connection, and the client may never see what was sent.
    /// <https://www.rfc-editor.org/rfc/rfc9112#section-9.6>
    fn linger(&mut self) -> Result<(), End> {
        self.enter(Phase::Lingering)?;
        self.place.conn.stream.shutdown(Shutdown::Write).map_err(|_| End::Gone)?;
        let limits = &self.place.shared.limits;
        let mut allowance = limits.body_bytes + limits.head_bytes;
        while allowance > 0 {
            let received = receive(&self.place.conn, &mut self.buffer)?;
            allowance = allowance.saturating_sub(received);
        }
        Ok(())
    }
}

/// How much of a buffer of this size counts against [`Limits::body_memory`]:
/// not the head, a small body and some slack.
fn counted(limits: &Limits, size: usize) -> usize {
    size.saturating_sub(2 * SMALL_BODY + limits.head_bytes)
}

/// Receives at least one byte into `room`, which must not be empty.
fn receive(conn: &Conn, room: &mut [u8]) -> Result<usize, End> {
    let mut stream = &conn.stream;
    loop {
        let received = if cfg!(windows) {
            stream.peek(&mut [0]).and_then(|_| stream.read(room))
        } else {
            stream.read(room)
        };
        match received {
            Ok(0) => return Err(End::Gone),
            Ok(received) => return Ok(received),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error)
                if cfg!(windows)
                    && matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
                    && State::of(conn.word()).phase != Phase::Cut => {}
            Err(_) => return Err(End::Gone),
        }
    }
}

const HEAD_TOO_LARGE: &str = "The request's head is too large\n";
const BODY_TOO_LARGE: &str = "The request's body is too large\n";

/// Where a request's body is in the buffer, and where what follows it starts.
struct Body {
    content: Range<usize>,
    rest: usize,
}

/// A request's head. Positions are relative to its first byte.
struct Head {
    method: Method,
    path: Range<usize>,
    query: Option<Range<usize>>,
    minor_version: u8,
    length: usize,
    framing: Framing,
    keep_alive: bool,
    expects_continue: bool,
}

/// How a request's body is delimited.
#[derive(Clone, Copy)]
enum Framing {
    Length(u64),
    Chunked,
}

/// The positions of one header field in the head.
#[derive(Clone, Debug)]
struct Field {
    name: Range<usize>,
    value: Range<usize>,
}

/// Whether a line feed is followed by an empty line.
fn has_blank_line(bytes: &[u8]) -> bool {
    bytes.windows(2).any(|pair| pair == b"\n\n") || bytes.windows(3).any(|three| three == b"\n\r\n")
}

/// Reads the head at the front of `bytes`; `None` when there must be more.
fn parse_head(bytes: &[u8], fields: &mut Vec<Field>) -> Result<Option<Head>, End> {
    let mut space = [const { std::mem::MaybeUninit::uninit() }; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    let length = match request.parse_with_uninit_headers(bytes, &mut space) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(refused(431, "Too many header fields\n")),
        Err(httparse::Error::Version) => return wrong_version(bytes),
        Err(_) => return Err(refused(400, "Malformed request\n")),
    };
    let (Some(method), Some(target), Some(minor_version)) = (request.method, request.path, request.version)
    else {
        return Err(refused(400, "Malformed request\n"));
    };
    let place = |part: &[u8]| {
        let start = part.as_ptr() as usize - bytes.as_ptr() as usize;
        start..start + part.len()
    };
    fields.clear();
    fields.extend(
        request.headers.iter().map(|h| Field { name: place(h.name.as_bytes()), value: place(h.value) }),
    );
    let method: Method = method.parse().map_err(|()| refused(400, "Malformed request\n"))?;
    let (path, query) = split_target(&method, target).ok_or_else(|| refused(400, "Malformed target\n"))?;
    // An absolute target without a path means "/", which then is a slash of its scheme.
    let path = match path {
        "" => target.find('/').map(|slash| place(&target.as_bytes()[slash..=slash])),
        path => Some(place(path.as_bytes())),
    };
    let headers = Headers { head: bytes, fields };

    match headers.all("Host").count() {
        1 => {}
        0 if minor_version == 0 => {}
        0 => return Err(refused(400, "The Host header is missing\n")),
        _ => return Err(refused(400, "More than one Host header\n")),
    }
    let expects_continue = match headers.get("Expect") {
        Some(value) if value.eq_ignore_ascii_case(b"100-continue") => minor_version == 1,
        Some(_) => return Err(refused(417, "Unknown expectation\n")),
        None => false,
    };
    Ok(Some(Head {
        method,
        path: path.unwrap_or_default(),
        query: query.map(|query| place(query.as_bytes())),
        minor_version,
        length,
        framing: framing(headers, minor_version)?,
        keep_alive: if minor_version == 0 {
            lists(headers, "Connection", "keep-alive") && !lists(headers, "Connection", "close")
        } else {
            !lists(headers, "Connection", "close")
        },
        expects_continue,
    }))
}

/// 505 for a version that is well formed, 400 for what is none.
fn wrong_version(bytes: &[u8]) -> Result<Option<Head>, End> {
    // Clients may send empty lines first; the parser has skipped them.
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(0);
    let Some(line) =
        bytes[start..].split_inclusive(|byte| *byte == b'\n').next().filter(|l| l.ends_with(b"\n"))
    else {
        return Ok(None);
    };
    match line.trim_ascii_end() {
        [.., b' ', b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Err(refused(505, "Only HTTP/1.0 and HTTP/1.1 are spoken here\n"))
        }
        _ => Err(refused(400, "Malformed request\n")),
    }
}

/// The path and the query of a request's target; the path is empty for an
/// absolute target without one.
/// <https://www.rfc-editor.org/rfc/rfc9112#section-3.2>
fn split_target<'a>(method: &Method, target: &'a str) -> Option<(&'a str, Option<&'a str>)> {
    if target.contains('#') {
        return None;
    }
    if target == "*" {
        return (*method == Method::Options).then_some((target, None));
    }
    let local = if target.starts_with('/') {
        target
    } else {
        let (scheme, rest) = target.split_once("://")?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return None;
        }
        let authority = rest.find(['/', '?']).unwrap_or(rest.len());
        if authority == 0 {
            return None;
        }
        &rest[authority..]
    };
    match local.split_once('?') {
        Some((path, query)) => Some((path, Some(query))),
        None => Some((local, None)),
    }
}

/// How the body is delimited. Whatever two readers could read differently is
/// refused: a proxy in front must not see other requests than we do.
/// <https://www.rfc-editor.org/rfc/rfc9112#section-6.3>
fn framing(headers: Headers<'_>, minor_version: u8) -> Result<Framing, End> {
    let length = headers.get("Content-Length");
    if let Some(coding) = headers.get("Transfer-Encoding") {
        if length.is_some() {
            return Err(refused(400, "Both Transfer-Encoding and Content-Length\n"));
        }
        if minor_version == 0 || headers.is_repeated("Transfer-Encoding") {
            return Err(refused(400, "Ambiguous Transfer-Encoding\n"));
        }
        if coding.eq_ignore_ascii_case(b"chunked") {
            return Ok(Framing::Chunked);
        }
        return Err(refused(501, "Only chunked is known as a Transfer-Encoding\n"));
    }
    let Some(length) = length else { return Ok(Framing::Length(0)) };
    if headers.all("Content-Length").any(|other| other != length) {
        return Err(refused(400, "Content-Length headers that differ\n"));
    }
    if length.is_empty() || !length.iter().all(u8::is_ascii_digit) {
        return Err(refused(400, "Malformed Content-Length\n"));
    }
    // More digits than fit are still a number, only too large a one.
    let number =
        length.iter().try_fold(0u64, |n, digit| n.checked_mul(10)?.checked_add(u64::from(digit - b'0')));
    Ok(Framing::Length(number.unwrap_or(u64::MAX)))
}

/// Whether a comma-separated header lists `token`.
fn lists(headers: Headers<'_>, name: &str, token: &str) -> bool {
    headers
        .all(name)
        .flat_map(|value| value.split(|byte| *byte == b','))
        .any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// The size on a chunk's first line: hex digits, then nothing or extensions.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (digits, rest) = line.split_at(digits);
    let rest = rest.trim_ascii_start();
    if digits.is_empty() || digits.len() > 16 || !(rest.is_empty() || rest[0] == b';') {
        return None;
    }
    if rest.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// Writes an answer, head and body.
fn compose(answer: &mut Vec<u8>, reply: &Reply, connection: Option<&str>, without_body: bool) {
    let bodiless = matches!(reply.status, 204 | 304);
    let status = StatusCode(reply.status);
    let mut put = |parts: [&str; 4]| parts.iter().for_each(|part| answer.extend_from_slice(part.as_bytes()));
    // Formatted by hand: this is the hot path, and core::fmt is not fast.
    put(["HTTP/1.1 ", decimal(&mut [0; 20], reply.status.into()), " ", status.default_reason_phrase()]);
    if !bodiless {
        put(["\r\nContent-Type: ", reply.content_type, "\r\nContent-Length: ", ""]);
        put([decimal(&mut [0; 20], reply.body.len()), "", "", ""]);
    }
    if let Some(connection) = connection {
        put(["\r\nConnection: ", connection, "", ""]);
    }
    for (name, value) in &reply.headers {
        if !value.bytes().any(|byte| byte.is_ascii_control()) {
            put(["\r\n", name, ": ", value]);
        }
    }
    put(["\r\n\r\n", "", "", ""]);
    if !bodiless && !without_body {
        answer.extend_from_slice(&reply.body);
    }
}

/// `number` in decimal digits, written to the end of `digits`.
fn decimal(digits: &mut [u8; 20], mut number: usize) -> &str {
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return std::str::from_utf8(&digits[start..]).unwrap_or_default();
        }
    }
}

/// Locks, also after a thread died with the lock: every change under it is one
/// step, so what it guards is whole.
fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait<'a, T>(signal: &Condvar, guard: MutexGuard<'a, T>, most: Duration) -> MutexGuard<'a, T> {
    signal.wait_timeout(guard, most).unwrap_or_else(PoisonError::into_inner).0
}
