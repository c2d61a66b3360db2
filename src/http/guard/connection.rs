//! One client's connection: what it is doing, how much of it is forwarded, and
//! the two copies.

use super::length_watch::LengthWatch;
use crate::http::server::{Limits, Requests};
use crate::sync::unpoisoned;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How many bytes are copied at a time.
const BUFFER: usize = 16 * 1024;

/// How long the last answer stays readable for a client that still sends: a
/// socket that is closed with unread bytes resets the connection, and the
/// client may never see its answer.
/// <https://www.rfc-editor.org/rfc/rfc9112#section-9.6>
pub(super) const LINGER: Duration = Duration::from_secs(2);

/// How many bytes of a refused request are received and forgotten for the same reason.
const FORGOTTEN: usize = 32 * 1024 * 1024;

/// How long an answer may stay untaken before its connection may be cut for a
/// new one, in microseconds.
pub(super) const SLOW: u64 = 250_000;

/// One client's connection.
pub(in crate::http) struct Connection {
    /// The client's address.
    pub(in crate::http) peer: SocketAddr,
    /// How many bytes of its request's body are in memory, beyond those that everyone may have.
    pub(in crate::http) held: AtomicUsize,
    /// Its requests that are being answered.
    pub(in crate::http) requests: Mutex<Requests>,
    pub(super) client: TcpStream,
    pub(super) inner: TcpStream,
    /// Whom it counts for, see `owner_of`.
    pub(super) owner: u128,
    pub(super) epoch: Instant,
    pub(super) state: AtomicU64,
    /// An answer is being written to the client.
    pub(super) writing: AtomicBool,
    /// `tiny_http` has given a request of it to a handler.
    pub(super) seen: AtomicBool,
    pub(super) allowance: Mutex<Allowance>,
    pub(super) granted: Condvar,
}

/// How much of a request is forwarded.
pub(super) struct Allowance {
    pub(super) used: usize,
    pub(super) most: usize,
    /// Nothing more is: what follows can't be trusted.
    pub(super) finished: bool,
}

/// What a connection is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
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

/// What a connection is doing, and since when, in microseconds after the guard's epoch.
#[derive(Clone, Copy)]
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) since: u64,
}

impl State {
    pub(super) fn word(self) -> u64 {
        self.since << 3 | self.phase as u64
    }

    pub(super) fn of(word: u64) -> State {
        use Phase::{Answer, Closing, Cut, Handling, Idle, LargeRequest, Request};
        let phases = [Idle, Request, LargeRequest, Handling, Answer, Closing, Cut, Cut];
        State { phase: phases[(word & 7) as usize], since: word >> 3 }
    }

    pub(super) fn may_be_evicted(self, now: u64) -> bool {
        match self.phase {
            Phase::Idle | Phase::Request | Phase::LargeRequest | Phase::Closing => true,
            Phase::Answer => now.saturating_sub(self.since) >= SLOW,
            Phase::Handling | Phase::Cut => false,
        }
    }
}

impl Connection {
    pub(super) fn state(&self) -> State {
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
    pub(in crate::http) fn handling(&self) {
        self.change(|_| Some(Phase::Handling));
    }

    /// A request of it has come out of `tiny_http`.
    pub(in crate::http) fn seen(&self) {
        self.seen.store(true, Ordering::Relaxed);
    }

    /// Whether its client takes its answers, so that to write one cannot block for long.
    pub(in crate::http) fn takes_answers(&self) -> bool {
        !self.writing.load(Ordering::SeqCst)
    }

    /// Lets the client send `more` bytes of its request, and gives it the longer deadline.
    pub(in crate::http) fn grant(&self, more: usize) {
        unpoisoned(&self.allowance).most += more;
        self.change(|state| (state.phase == Phase::Request).then_some(Phase::LargeRequest));
        self.granted.notify_all();
    }

    /// A request of it is answered: the next one may be as long as the first.
    pub(in crate::http) fn answered(&self, limits: &Limits) {
        let mut allowance = unpoisoned(&self.allowance);
        (allowance.used, allowance.most) = (0, limits.request_bytes);
        drop(allowance);
        self.granted.notify_all();
    }

    /// Nothing that the client sends from now on is forwarded. `tiny_http` then closes after its last answer.
    pub(in crate::http) fn finish(&self) {
        unpoisoned(&self.allowance).finished = true;
        _ = self.inner.shutdown(Shutdown::Write);
        self.granted.notify_all();
    }

    /// Whether [`Connection::finish`] was called, or it was cut.
    pub(in crate::http) fn is_finished(&self) -> bool {
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
    pub(super) fn cut_if(&self, word: u64) -> bool {
        let cut = State { phase: Phase::Cut, since: 0 }.word();
        let won = self.state.compare_exchange(word, cut, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if won {
            self.cut();
        }
        won
    }

    /// Cuts the connection, whatever it is doing.
    pub(in crate::http) fn cut(&self) {
        self.state.store(State { phase: Phase::Cut, since: 0 }.word(), Ordering::SeqCst);
        _ = self.client.shutdown(Shutdown::Both);
        _ = self.inner.shutdown(Shutdown::Write);
        self.granted.notify_all();
    }

    /// Copies what the client sends, until it is done or has sent its last request.
    pub(super) fn copy_requests(&self) {
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

    /// Copies the answers, until `tiny_http` closes. Until then a request of
    /// this connection may still come out of it, whatever happened to its client.
    pub(super) fn copy_answers(&self) {
        let mut buffer = [0; BUFFER];
        if self.deliver(&mut buffer) {
            self.change(|_| Some(Phase::Closing));
            _ = self.client.shutdown(Shutdown::Write);
            return;
        }
        self.cut();
        while match (&self.inner).read(&mut buffer) {
            Ok(received) => received > 0,
            Err(error) => {
                matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut)
            }
        } {}
    }

    /// False if the client is gone or was cut.
    fn deliver(&self, buffer: &mut [u8]) -> bool {
        while let Some(received) = self.receive(&self.inner, buffer) {
            if received == 0 {
                return true;
            }
            self.writing.store(true, Ordering::SeqCst);
            let sent =
                self.change(|_| Some(Phase::Answer)) && (&self.client).write_all(&buffer[..received]).is_ok();
            self.writing.store(false, Ordering::SeqCst);
            if !sent {
                return false;
            }
            self.change(|state| (state.phase == Phase::Answer).then_some(Phase::Idle));
        }
        false
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

pub(super) fn micros(epoch: Instant) -> u64 {
    u64::try_from(epoch.elapsed().as_micros()).unwrap_or(u64::MAX)
}

pub(super) fn wait<'a, T>(signal: &Condvar, guard: MutexGuard<'a, T>, most: Duration) -> MutexGuard<'a, T> {
    signal.wait_timeout(guard, most).unwrap_or_else(PoisonError::into_inner).0
}
