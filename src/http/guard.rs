//! What stands before `tiny_http`: how many connections there are, how long a
//! client may take, how many bytes it may send, and who is cut when all places
//! are taken.
//!
//! The port can be reached from VMs that run untrusted jobs, and `tiny_http`
//! 0.12 sets no time-out and no limit. So it listens on a port of its own on
//! the loopback interface, and for each connection from outside the guard opens
//! one to it. Two threads copy the bytes, one for each direction. A table maps
//! the port of the inner connection to the client, so that handlers know whom
//! they serve; what reaches `tiny_http` in any other way is refused.
//!
//! The guard does not parse HTTP. A request begins with the first byte after an
//! answer, and is over with the answer's first byte: that is enough for
//! deadlines. A client's bytes are forwarded up to [`Limits::request_bytes`];
//! more must be granted by the handler, which knows how long the body is and
//! whether there is memory for it. The one thing it does read is how long a body
//! claims to be, see [`LengthWatch`].
//!
//! What a connection is doing, and since when, is one atomic word ([`State`]),
//! changed by compare-and-swap. To cut a connection is to mark that word and to
//! shut both sockets down, which wakes their threads everywhere but on Windows
//! (<https://github.com/rust-lang/rust/issues/121594>): there a thread waits
//! with a timed `peek`, which loses nothing when it times out, and looks at the
//! word in between.

use super::server::{Limits, Requests, unpoisoned};
use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How many bytes are copied at a time.
const BUFFER: usize = 16 * 1024;

/// The virtual size of a thread's stack. Only touched pages cost memory.
const STACK: usize = 128 * 1024;

/// How long the last answer stays readable for a client that still sends: a
/// socket that is closed with unread bytes resets the connection, and the
/// client may never see its answer.
/// <https://www.rfc-editor.org/rfc/rfc9112#section-9.6>
const LINGER: Duration = Duration::from_secs(2);

/// How many bytes of a refused request are received and forgotten for the same reason.
const FORGOTTEN: usize = 32 * 1024 * 1024;

/// How long an answer may stay untaken before its connection may be cut for a
/// new one, in microseconds.
const SLOW: u64 = 250_000;

/// How long a thread on Windows waits for bytes before it looks whether its connection was cut.
const WINDOWS_TICK: Duration = Duration::from_millis(100);

/// How long a request may be in `tiny_http` unseen before [`Guard::nudge`].
const UNSEEN: Duration = Duration::from_millis(50);

/// How many file descriptors must be free before a connection is let in:
/// `tiny_http` clones the accepted socket, and panics when it cannot.
const SPARE_DESCRIPTORS: usize = 48;

/// Who is let in, and who is cut.
pub(super) struct Guard {
    limits: Limits,
    listens_on: SocketAddr,
    /// Where `tiny_http` listens.
    inner: SocketAddr,
    thread_name: String,
    /// The zero of all times in [`State`].
    epoch: Instant,
    stopping: AtomicBool,
    /// All open connections, by the port of their inner side.
    table: Mutex<Table>,
    /// Told when a connection has left the table.
    left: Condvar,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

type Table = HashMap<u16, Arc<Connection>>;

/// One client's connection.
pub(super) struct Connection {
    /// The client's address.
    pub(super) peer: SocketAddr,
    /// How many bytes of its request's body are in memory, beyond those that everyone may have.
    pub(super) held: AtomicUsize,
    /// Its requests that are being answered.
    pub(super) requests: Mutex<Requests>,
    client: TcpStream,
    inner: TcpStream,
    /// Whom it counts for, see [`owner_of`].
    owner: u128,
    epoch: Instant,
    state: AtomicU64,
    /// An answer is being written to the client.
    writing: AtomicBool,
    /// `tiny_http` has given a request of it to a handler.
    seen: AtomicBool,
    allowance: Mutex<Allowance>,
    granted: Condvar,
}

/// How much of a request is forwarded.
struct Allowance {
    used: usize,
    most: usize,
    /// Nothing more is: what follows can't be trusted.
    finished: bool,
}

/// What a connection is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// It waits for a request's first byte.
    Idle,
    /// It sends a request.
    Request,
    /// It sends a request with a large body.
    LargeRequest,
    /// The request is whole, and its handler runs.
    Handling,
    /// It is sent an answer.
    Answer,
    /// It was sent its last answer.
    Closing,
    /// It was cut; its threads are about to end.
    Cut,
}

/// What a connection is doing, and since when, in microseconds after [`Guard::epoch`].
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
            1 => Phase::Request,
            2 => Phase::LargeRequest,
            3 => Phase::Handling,
            4 => Phase::Answer,
            5 => Phase::Closing,
            _ => Phase::Cut,
        };
        State { phase, since: word >> 3 }
    }

    fn may_be_evicted(self, now: u64) -> bool {
        match self.phase {
            Phase::Idle | Phase::Request | Phase::LargeRequest | Phase::Closing => true,
            Phase::Answer => now.saturating_sub(self.since) >= SLOW,
            Phase::Handling | Phase::Cut => false,
        }
    }
}

impl Connection {
    fn state(&self) -> State {
        State::of(self.state.load(Ordering::SeqCst))
    }

    /// Changes what it is doing, unless it was cut or `next` says no. Answers whether it was not cut.
    fn change(&self, next: impl Fn(State) -> Option<Phase>) -> bool {
        let change = |word| {
            let state = State::of(word);
            if state.phase == Phase::Cut {
                return None;
            }
            let phase = next(state)?;
            // A request's time runs on from its first byte.
            let goes_on = matches!(phase, Phase::LargeRequest | Phase::Handling);
            let since = if goes_on { state.since } else { micros(self.epoch) };
            Some(State { phase, since }.word())
        };
        _ = self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, change);
        self.state().phase != Phase::Cut
    }

    /// A handler has its whole request, and from now on it is not cut until its answer is sent.
    pub(super) fn handling(&self) {
        self.change(|_| Some(Phase::Handling));
    }

    /// A request of it has come out of `tiny_http`.
    pub(super) fn seen(&self) {
        self.seen.store(true, Ordering::Relaxed);
    }

    /// Whether its client takes its answers, so that to write one cannot block for long.
    pub(super) fn takes_answers(&self) -> bool {
        !self.writing.load(Ordering::SeqCst)
    }

    /// Lets the client send `more` bytes of its request, and gives it the longer deadline.
    pub(super) fn grant(&self, more: usize) {
        unpoisoned(&self.allowance).most += more;
        self.change(|state| (state.phase == Phase::Request).then_some(Phase::LargeRequest));
        self.granted.notify_all();
    }

    /// A request of it is answered: the next one may be as long as the first.
    pub(super) fn answered(&self, limits: &Limits) {
        let mut allowance = unpoisoned(&self.allowance);
        (allowance.used, allowance.most) = (0, limits.request_bytes);
        drop(allowance);
        self.granted.notify_all();
    }

    /// Nothing that the client sends from now on is forwarded. `tiny_http` then closes after its last answer.
    pub(super) fn finish(&self) {
        unpoisoned(&self.allowance).finished = true;
        _ = self.inner.shutdown(Shutdown::Write);
        self.granted.notify_all();
    }

    /// Whether [`Connection::finish`] was called, or it was cut.
    pub(super) fn is_finished(&self) -> bool {
        self.state().phase == Phase::Cut || unpoisoned(&self.allowance).finished
    }

    /// Waits until `bytes` more may be forwarded. False if nothing is any more.
    fn may_forward(&self, bytes: usize) -> bool {
        let mut allowance = unpoisoned(&self.allowance);
        while allowance.used + bytes > allowance.most && !allowance.finished {
            if self.state().phase == Phase::Cut {
                return false;
            }
            allowance = wait(&self.granted, allowance, Duration::from_millis(250));
        }
        allowance.used += bytes;
        !allowance.finished
    }

    /// Cuts the connection, unless its state is no longer `word`.
    fn cut_if(&self, word: u64) -> bool {
        let cut = State { phase: Phase::Cut, since: 0 }.word();
        let won = self.state.compare_exchange(word, cut, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if won {
            self.cut();
        }
        won
    }

    /// Cuts the connection, whatever it is doing.
    pub(super) fn cut(&self) {
        self.state.store(State { phase: Phase::Cut, since: 0 }.word(), Ordering::SeqCst);
        _ = self.client.shutdown(Shutdown::Both);
        _ = self.inner.shutdown(Shutdown::Both);
        self.granted.notify_all();
    }

    /// Copies what the client sends, until it is done or has sent its last request.
    fn copy_requests(&self) {
        let mut buffer = [0; BUFFER];
        let mut watch = LengthWatch::Name(0);
        let (mut forwards, mut forgotten) = (true, 0);
        while let Some(received @ 1..) = self.receive(&self.client, &mut buffer) {
            let bytes = &buffer[..received];
            if !watch.allows(bytes) {
                return self.cut();
            }
            self.change(|state| matches!(state.phase, Phase::Idle | Phase::Answer).then_some(Phase::Request));
            forwards = forwards && self.may_forward(received) && (&self.inner).write_all(bytes).is_ok();
            if !forwards {
                forgotten += received;
                if forgotten > FORGOTTEN {
                    return self.cut();
                }
            }
        }
        _ = self.inner.shutdown(Shutdown::Write);
    }

    /// Copies the answers, until `tiny_http` closes.
    fn copy_answers(&self) {
        let mut buffer = [0; BUFFER];
        while let Some(received @ 1..) = self.receive(&self.inner, &mut buffer) {
            self.writing.store(true, Ordering::SeqCst);
            let sent =
                self.change(|_| Some(Phase::Answer)) && (&self.client).write_all(&buffer[..received]).is_ok();
            self.writing.store(false, Ordering::SeqCst);
            if !sent {
                return self.cut();
            }
            self.change(|state| (state.phase == Phase::Answer).then_some(Phase::Idle));
        }
        self.change(|_| Some(Phase::Closing));
        _ = self.client.shutdown(Shutdown::Write);
    }

    /// Receives at least one byte, or 0 at the end. `None` when the connection is no more.
    fn receive(&self, mut stream: &TcpStream, room: &mut [u8]) -> Option<usize> {
        while self.state().phase != Phase::Cut {
            let received = if cfg!(windows) {
                stream.peek(&mut [0]).and_then(|_| stream.read(room))
            } else {
                stream.read(room)
            };
            match received.map_err(|error| error.kind()) {
                Ok(received) => return Some(received),
                Err(ErrorKind::Interrupted) => {}
                Err(ErrorKind::WouldBlock | ErrorKind::TimedOut) if cfg!(windows) => {}
                Err(_) => return None,
            }
        }
        None
    }
}

/// Watches for a body that claims to be 100 MB or longer. When a request is
/// given up, `tiny_http` sets aside as many bytes as its body lacks: one header
/// field could end the program (`EqualReader::drop`, tiny_http 0.12). So no such
/// field passes; real limits are the handler's.
enum LengthWatch {
    /// So much of a line is the field's name.
    Name(usize),
    /// It is, and so many digits of its value have come.
    Digits(usize),
    Elsewhere,
}

impl LengthWatch {
    const NAME: &[u8] = b"content-length:";
    const MOST_DIGITS: usize = 8;

    fn allows(&mut self, bytes: &[u8]) -> bool {
        let is_space = |byte: u8| byte.is_ascii_whitespace() || byte == b'\x0b';
        for &byte in bytes {
            *self = match *self {
                _ if byte == b'\n' => LengthWatch::Name(0),
                LengthWatch::Elsewhere => continue,
                LengthWatch::Name(0) if is_space(byte) => continue,
                LengthWatch::Name(at) if byte.eq_ignore_ascii_case(&LengthWatch::NAME[at]) => {
                    match at + 1 == LengthWatch::NAME.len() {
                        true => LengthWatch::Digits(0),
                        false => LengthWatch::Name(at + 1),
                    }
                }
                LengthWatch::Digits(0) if is_space(byte) || b"+0".contains(&byte) => continue,
                LengthWatch::Digits(LengthWatch::MOST_DIGITS) if byte.is_ascii_digit() => return false,
                LengthWatch::Digits(digits) if byte.is_ascii_digit() => LengthWatch::Digits(digits + 1),
                _ => LengthWatch::Elsewhere,
            };
        }
        true
    }
}

impl Guard {
    /// Lets clients of `listener` through to `inner`.
    ///
    /// # Errors
    /// When the listener has no address, or a thread cannot be started.
    pub(super) fn start(listener: TcpListener, inner: SocketAddr, limits: Limits) -> io::Result<Arc<Guard>> {
        listener.set_nonblocking(false)?;
        let listens_on = listener.local_addr()?;
        let guard = Arc::new(Guard {
            limits,
            listens_on,
            inner,
            // Short enough for the 15 characters that Linux shows of a thread's name.
            thread_name: format!("http-{}", listens_on.port()),
            epoch: Instant::now(),
            stopping: AtomicBool::new(false),
            table: Mutex::default(),
            left: Condvar::new(),
            threads: Mutex::default(),
        });
        let watched = Arc::clone(&guard);
        let reaper = guard.thread().spawn(move || watched.reap())?;
        let wake = reaper.thread().clone();
        unpoisoned(&guard.threads).push(reaper);
        let accepting = Arc::clone(&guard);
        match guard.thread().spawn(move || accepting.accept(&listener, &wake)) {
            Ok(acceptor) => unpoisoned(&guard.threads).push(acceptor),
            Err(error) => {
                guard.stop();
                return Err(error);
            }
        }
        Ok(guard)
    }

    fn thread(&self) -> thread::Builder {
        thread::Builder::new().name(self.thread_name.clone()).stack_size(STACK)
    }

    fn now(&self) -> u64 {
        micros(self.epoch)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        unpoisoned(&self.table)
    }

    /// Where clients connect.
    pub(super) fn listens_on(&self) -> SocketAddr {
        self.listens_on
    }

    /// How many connections are open, those being closed included.
    pub(super) fn connections(&self) -> usize {
        self.table().len()
    }

    /// Whose connection came from this port; `None` if it did not come through the guard.
    pub(super) fn connection(&self, inner_port: u16) -> Option<Arc<Connection>> {
        self.table().get(&inner_port).cloned()
    }

    /// Cuts every connection: `tiny_http` has forgotten them.
    pub(super) fn cut_all(&self) {
        self.table().values().for_each(|connection| connection.cut());
    }

    /// The accept loop. Whatever accept() says, it goes on.
    fn accept(self: &Arc<Self>, listener: &TcpListener, reaper: &thread::Thread) {
        let mut trouble = Trouble::default();
        while !self.stopping.load(Ordering::SeqCst) {
            let accepted = listener.accept();
            // Who comes when there are none waits here.
            while let Err(error) = spare_descriptors(listener) {
                if self.stopping.load(Ordering::SeqCst) {
                    return;
                }
                self.free_descriptors();
                thread::sleep(trouble.met(&error));
            }
            match accepted.and_then(|(client, peer)| self.admit(client, peer)) {
                Ok(()) => trouble.pause = Duration::ZERO,
                Err(error) => thread::sleep(trouble.met(&error)),
            }
            reaper.unpark();
        }
    }

    /// Cuts a connection that waits, but none that has only just come.
    fn free_descriptors(&self) {
        let now = self.now();
        let is_stale = |c: &Connection| now.saturating_sub(c.state().since) > SLOW;
        self.cut_one(&self.table(), |c| usize::from(is_stale(c)), |_| true);
    }

    /// Starts the threads of a new connection, after making room for it.
    /// Refuses it, by closing it, when there is no room to be made.
    fn admit(self: &Arc<Self>, client: TcpStream, peer: SocketAddr) -> io::Result<()> {
        if self.stopping.load(Ordering::SeqCst) || !self.make_room(peer) {
            return Ok(());
        }
        let prepare = |stream: &TcpStream| {
            stream.set_nodelay(true)?;
            if cfg!(windows) {
                stream.set_read_timeout(Some(WINDOWS_TICK))?;
            }
            // On Windows, this is also what ends a blocked write.
            stream.set_write_timeout(Some(self.limits.request_deadline.max(Duration::from_millis(1))))
        };
        // A failure here means that the client is gone already.
        if prepare(&client).is_err() {
            return Ok(());
        }
        let inner = TcpStream::connect_timeout(&self.inner, Duration::from_secs(1))?;
        prepare(&inner)?;
        let port = inner.local_addr()?.port();
        let connection = Arc::new(Connection {
            peer,
            held: AtomicUsize::new(0),
            requests: Mutex::default(),
            client,
            inner,
            owner: owner_of(peer.ip()),
            epoch: self.epoch,
            state: AtomicU64::new(State { phase: Phase::Idle, since: self.now() }.word()),
            writing: AtomicBool::new(false),
            seen: AtomicBool::new(false),
            allowance: Mutex::new(Allowance { used: 0, most: self.limits.request_bytes, finished: false }),
            granted: Condvar::new(),
        });
        self.table().insert(port, Arc::clone(&connection));
        // Given up by the second of its threads to end, or by a failed start.
        let place = Arc::new(Place { guard: Arc::clone(self), port, connection });
        for copy in [Connection::copy_requests, Connection::copy_answers] {
            let place = Arc::clone(&place);
            let started = self.thread().spawn(move || copy(&place.connection));
            if let Err(error) = started {
                self.table().get(&port).inspect(|connection| connection.cut());
                return Err(error);
            }
        }
        Ok(())
    }

    /// Makes room for a connection from `peer`. Loopback is exempt from the
    /// limit for one peer: every webhook through a tunnel comes from there.
    fn make_room(&self, peer: SocketAddr) -> bool {
        let most = self.limits.max_connections.max(1);
        // A cut connection's threads end in microseconds, but on Windows only
        // at their next tick: there, as many again may be ending.
        let room = if cfg!(windows) { most * 2 } else { most };
        let owner = owner_of(peer.ip());
        let is_limited = !peer.ip().to_canonical().is_loopback();
        let patience = Instant::now() + WINDOWS_TICK * 5;
        let mut table = self.table();
        loop {
            let live = |of: &dyn Fn(&Connection) -> bool| {
                table.values().filter(|c| c.state().phase != Phase::Cut && of(c)).count()
            };
            let own_are_full = is_limited && live(&|c| c.owner == owner) >= self.limits.connections_per_peer;
            let made_room = match own_are_full {
                true => self.cut_one(&table, |_| 1, |c| c.owner == owner),
                false => live(&|_| true) < most || self.cut_one(&table, |_| 1, |_| true),
            };
            if made_room && table.len() < room {
                return true;
            }
            if Instant::now() >= patience {
                log::debug!("HTTP: all connections are busy; one from {} is refused", peer.ip());
                return false;
            }
            table = wait(&self.left, table, Duration::from_millis(10));
        }
    }

    /// Cuts the longest waiting connection of the peer that has the most
    /// weight, of those that `may` be cut. Answers whether there was one.
    fn cut_one(
        &self,
        table: &Table,
        weight: impl Fn(&Connection) -> usize,
        may: impl Fn(&Connection) -> bool,
    ) -> bool {
        let now = self.now();
        let mut totals: HashMap<u128, usize> = HashMap::new();
        for connection in table.values().filter(|c| c.state().phase != Phase::Cut) {
            *totals.entry(connection.owner).or_default() += weight(connection);
        }
        // Each round ends in a cut, or has lost a race against a connection that made progress.
        for _ in 0..8 {
            let victim = table
                .values()
                .map(|connection| (connection, connection.state.load(Ordering::SeqCst)))
                .filter(|(c, word)| State::of(*word).may_be_evicted(now) && weight(c) > 0 && may(c))
                .max_by_key(|(c, word)| (totals.get(&c.owner), now.saturating_sub(State::of(*word).since)));
            match victim {
                None => return false,
                Some((connection, word)) if connection.cut_if(word) => return true,
                Some(_) => {}
            }
        }
        false
    }

    /// Takes memory for large bodies from the peer that holds the most, unless
    /// that is `connection`'s own. Answers whether there was some to take.
    pub(super) fn take_memory_for(&self, connection: &Connection) -> bool {
        let held = |c: &Connection| c.held.load(Ordering::Relaxed);
        let table = self.table();
        let own: usize = table.values().filter(|c| c.owner == connection.owner).map(|c| held(c)).sum();
        let taken = self.cut_one(&table, held, |c| c.owner != connection.owner && held(c) > own);
        if taken {
            drop(wait(&self.left, table, Duration::from_millis(50)));
        }
        taken
    }

    /// When a state ends unless something happens; `None` for never.
    fn deadline(&self, state: State) -> Option<u64> {
        let allowed = match state.phase {
            Phase::Idle => self.limits.idle,
            Phase::Request | Phase::Answer => self.limits.request_deadline,
            Phase::LargeRequest => self.limits.body_deadline,
            Phase::Closing => LINGER.min(self.limits.request_deadline),
            Phase::Handling | Phase::Cut => return None,
        };
        Some(state.since.saturating_add(u64::try_from(allowed.as_micros()).unwrap_or(u64::MAX)))
    }

    /// Cuts connections whose deadline has passed.
    fn reap(&self) {
        let shortest = self.limits.idle.min(self.limits.request_deadline).min(self.limits.body_deadline) / 4;
        let tick = shortest.clamp(Duration::from_millis(1), Duration::from_secs(1));
        let mut pause = tick;
        while !self.stopping.load(Ordering::SeqCst) || self.connections() > 0 {
            thread::park_timeout(pause);
            let now = self.now();
            let mut unseen = 0;
            for connection in self.table().values() {
                let word = connection.state.load(Ordering::SeqCst);
                let state = State::of(word);
                if self.deadline(state).is_some_and(|deadline| deadline <= now) {
                    connection.cut_if(word);
                } else if state.phase == Phase::Request && !connection.seen.load(Ordering::Relaxed) {
                    unseen += 1;
                }
            }
            if unseen > 0 {
                self.nudge();
            }
            pause = if unseen > 0 { UNSEEN.min(tick) } else { tick };
        }
    }

    /// Makes `tiny_http` look at its queue of new connections. Its pool of
    /// threads counts a thread as free until it has woken up, so of two
    /// connections that come at once, one may be left in the queue until some
    /// other ends (`TaskPool::spawn`, tiny_http 0.12). A connection that comes
    /// and goes frees it.
    fn nudge(&self) {
        drop(TcpStream::connect_timeout(&self.inner, UNSEEN));
    }

    /// Stops: no more connections are accepted, those that wait or are not
    /// complete are cut, handlers and answers get [`Limits::stop_grace`].
    pub(super) fn stop(&self) {
        if self.stopping.swap(true, Ordering::SeqCst) {
            return;
        }
        // A blocked accept() has no portable way out but a connection.
        let wake = SocketAddr::new(loopback_of(self.listens_on.ip()), self.listens_on.port());
        drop(TcpStream::connect_timeout(&wake, Duration::from_millis(100)));
        let forced = Instant::now() + self.limits.stop_grace;
        let mut table = self.table();
        while !table.is_empty() && Instant::now() < forced + self.limits.stop_grace {
            for connection in table.values() {
                let word = connection.state.load(Ordering::SeqCst);
                match State::of(word).phase {
                    Phase::Idle | Phase::Request | Phase::LargeRequest => _ = connection.cut_if(word),
                    _ if Instant::now() >= forced => connection.cut(),
                    _ => connection.finish(),
                }
            }
            table = wait(&self.left, table, Duration::from_millis(20));
        }
        drop(table);
        for thread in std::mem::take(&mut *unpoisoned(&self.threads)) {
            thread.thread().unpark();
            join(thread, Duration::from_secs(1));
        }
    }
}

/// A connection's place in the table, for as long as one of its threads lives.
struct Place {
    guard: Arc<Guard>,
    port: u16,
    connection: Arc<Connection>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.guard.table().remove(&self.port);
        self.guard.left.notify_all();
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

/// # Errors
/// When there are not enough free descriptors for one more connection. On Windows there are always.
fn spare_descriptors(listener: &TcpListener) -> io::Result<()> {
    let spare = if cfg!(unix) { SPARE_DESCRIPTORS } else { 0 };
    (0..spare).map(|_| listener.try_clone()).collect::<io::Result<Vec<_>>>().map(drop)
}

/// Whom a connection counts for: an IPv4 address, or an IPv6 network of 64
/// bits, since one machine has all of its addresses at will.
fn owner_of(ip: IpAddr) -> u128 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip) >> 64 << 64 | 1 << 63,
    }
}

fn loopback_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

/// Joins a thread that should end; leaves one that does not, since waiting for it could take forever.
pub(super) fn join(thread: JoinHandle<()>, patience: Duration) {
    let until = Instant::now() + patience;
    while !thread.is_finished() && Instant::now() < until {
        thread::sleep(Duration::from_millis(1));
    }
    if thread.is_finished() {
        _ = thread.join();
    } else {
        log::warn!("HTTP: a thread did not end in time and is left behind");
    }
}

fn micros(epoch: Instant) -> u64 {
    u64::try_from(epoch.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn wait<'a, T>(signal: &Condvar, guard: MutexGuard<'a, T>, most: Duration) -> MutexGuard<'a, T> {
    signal.wait_timeout(guard, most).unwrap_or_else(PoisonError::into_inner).0
}

#[cfg(test)]
mod tests {
    use super::LengthWatch;

    fn passes(text: &str, piece: usize) -> bool {
        let mut watch = LengthWatch::Name(0);
        text.as_bytes().chunks(piece).all(|bytes| watch.allows(bytes))
    }

    #[test]
    fn a_length_of_100_mb_does_not_pass_however_it_is_written_and_cut() {
        for field in [
            "Content-Length: 100000000",
            "content-LENGTH:99999999999999999999999",
            "Content-Length:\t +00000000000000123456789",
            "  Content-Length: 123456789",
            "\x0bContent-Length:\x0b\x0c123456789",
        ] {
            for piece in [1, 2, 3, 7, 1000] {
                assert!(!passes(&format!("POST / HTTP/1.1\r\nHost: h\r\n{field}\r\n\r\n"), piece), "{field}");
            }
        }
    }

    #[test]
    fn everything_else_passes() {
        for text in [
            "POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 0000000000000012\r\nX-Job: 123456789012\r\n\r\n",
            "POST / HTTP/1.1\r\nX-Content-Length: 123456789012\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 40\r\n\r\n{\"title\":\"Content-Length: 123456789012\"}",
        ] {
            assert!(passes(text, 5), "{text}");
        }
    }
}
