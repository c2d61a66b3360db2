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
//! claims to be, see [`length_watch`].
//!
//! What a connection is doing, and since when, is one atomic word ([`State`]),
//! changed by compare-and-swap. To cut a connection is to mark that word and to
//! shut both sockets down, which wakes their threads everywhere but on Windows
//! (<https://github.com/rust-lang/rust/issues/121594>): there a thread waits
//! with a timed `peek`, which loses nothing when it times out, and looks at the
//! word in between.

mod connection;
mod length_watch;

pub(super) use connection::Connection;

use super::server::Limits;
use crate::sync::unpoisoned;
use connection::{Allowance, LINGER, Phase, SLOW, State, micros, wait};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The virtual size of a thread's stack. Only touched pages cost memory.
const STACK: usize = 128 * 1024;

/// How long a thread on Windows waits for bytes before it looks whether its connection was cut. Windows makes
/// half a second of less.
const WINDOWS_TICK: Duration = Duration::from_millis(500);

/// How long a connection waits for one that was cut to leave its place.
const MAKES_ROOM: Duration = Duration::from_secs(2);

/// How often [`Guard::nudge`] is called while a connection may be in `tiny_http`'s queue.
const NUDGE_EVERY: Duration = Duration::from_millis(50);

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
        let patience = Instant::now() + MAKES_ROOM;
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
                }
                let may_be_queued = matches!(state.phase, Phase::Request | Phase::Cut);
                unseen += usize::from(may_be_queued && !connection.seen.load(Ordering::Relaxed));
            }
            if unseen > 0 {
                self.nudge();
            }
            pause = if unseen > 0 { NUDGE_EVERY.min(tick) } else { tick };
        }
    }

    /// Makes `tiny_http` look at its queue of new connections. Its pool of
    /// threads counts a thread as free until it has woken up, so of two
    /// connections that come at once, one may be left in the queue until some
    /// other ends (`TaskPool::spawn`, tiny_http 0.12). A connection that comes
    /// and goes frees it.
    fn nudge(&self) {
        drop(TcpStream::connect_timeout(&self.inner, NUDGE_EVERY));
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
