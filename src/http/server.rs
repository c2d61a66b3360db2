//! `tiny_http` behind the guard: its requests become calls of
//! a handler, and the handler's replies its responses.
//!
//! A few threads take turns in `tiny_http::Server::recv()`, and none of them
//! ever waits for a client. A request whose body is here and whose client takes its
//! answers is handled at once, on the same thread. Any other is handed to a
//! thread of its own, at most one for a connection: a client that sends half a
//! body, or does not read, holds up nobody but itself.

use super::guard::{Connection, Guard, join};
use crate::sync::unpoisoned;
use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, Cursor, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tiny_http::{Header, Response, StatusCode};

pub use tiny_http::Method;

/// Bodies up to this many bytes must come within [`Limits::request_deadline`]
/// and are not counted against [`Limits::body_memory`].
pub const SMALL_BODY: usize = 64 * 1024;

/// Bodies up to this many bytes are read by `tiny_http` before it gives a request away.
const READ_AHEAD: usize = 1024;

/// By how much the memory of a chunked body grows at a time.
const CHUNKS: usize = 1024 * 1024;

/// How many requests a client may send before it has the answer to the first.
const MOST_PIPELINED: usize = 64;

/// How many threads wait for requests.
const RECEIVERS: usize = 4;

/// What a client may use. [`Limits::default`] is what the program runs with.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at the same time. Each has two threads of the guard, one of
    /// `tiny_http` and at most one of the server. On Windows, as many again may be ending.
    pub max_connections: usize,
    /// Connections at the same time from one address other than loopback (one network of 64 bits in IPv6).
    pub connections_per_peer: usize,
    /// How many bytes of a request `tiny_http` may get before its handler asks
    /// for more: the head and a small body. A head that is longer is never answered.
    pub request_bytes: usize,
    /// The longest body, in bytes. Above: 413.
    pub body_bytes: usize,
    /// All large bodies (above [`SMALL_BODY`]) in memory together, in bytes.
    /// Above: 503 with `Retry-After`.
    pub body_memory: usize,
    /// From a request's first byte to its answer's, with a small body; also the
    /// time that a client may take to read its answer.
    pub request_deadline: Duration,
    /// From a request's first byte to its answer's, with a large body.
    pub body_deadline: Duration,
    /// How long a connection may stay open between requests.
    pub idle: Duration,
    /// How long [`Server::stop`] lets handlers and answers in flight finish.
    pub stop_grace: Duration,
}

impl Default for Limits {
    /// 256 connections, 32 from one address, 96 KiB of a request, bodies of 25 MiB (GitHub's own
    /// cap on a webhook's payload), 64 MiB for large bodies together, 10 s for a
    /// request, 30 s for a large one, 60 s idle, 5 s to stop.
    ///
    /// <https://docs.github.com/en/webhooks/webhook-events-and-payloads#payload-cap>
    fn default() -> Limits {
        Limits {
            max_connections: 256,
            connections_per_peer: 32,
            request_bytes: SMALL_BODY + 32 * 1024,
            body_bytes: 25 * 1024 * 1024,
            body_memory: 64 * 1024 * 1024,
            request_deadline: Duration::from_secs(10),
            body_deadline: Duration::from_secs(30),
            idle: Duration::from_secs(60),
            stop_grace: Duration::from_secs(5),
        }
    }
}

/// A whole request.
#[derive(Debug)]
pub struct Request<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path as it was sent: not percent-decoded, without the query.
    pub path: &'a str,
    /// The header fields.
    pub headers: Headers<'a>,
    /// The body, with chunked coding removed. Empty if there is none.
    pub body: &'a [u8],
    /// The client's address.
    pub peer: SocketAddr,
}

/// The header fields of a request, in the order in which they came.
#[derive(Clone, Copy)]
pub struct Headers<'a>(&'a [Header]);

impl<'a> Headers<'a> {
    /// The value of the first field of this name, in whatever case.
    pub fn get(&self, name: &'static str) -> Option<&'a str> {
        self.all(name).next()
    }

    /// The values of all fields of this name, in whatever case.
    fn all(&self, name: &'static str) -> impl Iterator<Item = &'a str> + use<'a> {
        self.0.iter().filter(move |field| field.field.equiv(name)).map(|field| field.value.as_str())
    }

    /// The names, as they were sent.
    pub fn names(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.0.iter().map(|field| field.field.as_str().as_str())
    }
}

/// Names only: values may be secret.
impl std::fmt::Debug for Headers<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status code, 200 to 599.
    pub status: u16,
    /// The media type of the body.
    pub content_type: &'static str,
    /// The body. Not sent in answer to HEAD.
    pub body: Cow<'static, [u8]>,
    /// More header fields, in ASCII.
    pub headers: Vec<(&'static str, &'static str)>,
}

impl Reply {
    /// Plain text, UTF-8.
    pub fn text(status: u16, body: impl Into<Cow<'static, str>>) -> Reply {
        Reply::new(status, "text/plain; charset=utf-8", body)
    }

    /// A JSON text.
    pub fn json(status: u16, body: impl Into<Cow<'static, str>>) -> Reply {
        Reply::new(status, "application/json; charset=utf-8", body)
    }

    /// Text of any media type.
    pub fn new(status: u16, content_type: &'static str, body: impl Into<Cow<'static, str>>) -> Reply {
        let body = match body.into() {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        };
        Reply { status, content_type, body, headers: Vec::new() }
    }

    /// A picture.
    pub fn png(body: Vec<u8>) -> Reply {
        Reply { status: 200, content_type: "image/png", body: body.into(), headers: Vec::new() }
    }

    /// The same with one more header field.
    pub fn with_header(mut self, name: &'static str, value: &'static str) -> Reply {
        self.headers.push((name, value));
        self
    }

    fn response(self) -> Response<Cursor<Vec<u8>>> {
        let body = self.body.into_owned();
        let length = body.len();
        let fields = [("Content-Type", self.content_type), ("Server", "hyperv-runner-pool")];
        let headers = fields.into_iter().chain(self.headers);
        let headers = headers.filter_map(|(name, value)| Header::from_bytes(name, value).ok()).collect();
        Response::new(StatusCode(self.status), headers, Cursor::new(body), Some(length), None)
            .with_chunked_threshold(usize::MAX)
    }
}

/// What answers requests. It must not wait for anything slow.
pub type Handler = dyn Fn(&Request<'_>) -> Reply + Send + Sync;

/// The requests of one connection. They are answered one after the other.
#[derive(Default)]
pub(super) struct Requests {
    busy: bool,
    waiting: VecDeque<tiny_http::Request>,
}

/// A running server. Dropping it stops it.
pub struct Server {
    service: Arc<Service>,
    receivers: Mutex<Vec<JoinHandle<()>>>,
}

/// What the server's threads share.
struct Service {
    guard: Arc<Guard>,
    limits: Limits,
    handler: Arc<Handler>,
    /// Where `tiny_http` listens, kept for when it has to be made anew.
    inner: TcpListener,
    server: Mutex<Arc<tiny_http::Server>>,
    /// Held by the thread that waits in `recv()`.
    turn: Mutex<()>,
    stopping: AtomicBool,
    /// The bytes counted against [`Limits::body_memory`].
    body_memory: AtomicUsize,
    /// One unread body at a time, since `tiny_http` sets memory aside to drop it.
    discarding: Mutex<()>,
}

/// Serves `listener` until [`Server::stop`].
///
/// # Errors
/// When no port on loopback can be had, or a thread cannot be started.
pub fn serve(listener: TcpListener, limits: Limits, handler: Arc<Handler>) -> io::Result<Server> {
    let inner = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let server = Mutex::new(Arc::new(tiny_server(&inner)?));
    let guard = Guard::start(listener, inner.local_addr()?, limits.clone())?;
    let service = Arc::new(Service {
        guard,
        limits,
        handler,
        inner,
        server,
        turn: Mutex::new(()),
        stopping: AtomicBool::new(false),
        body_memory: AtomicUsize::new(0),
        discarding: Mutex::new(()),
    });
    // Made first, so that a thread that cannot be started stops the others.
    let running = Server { service: Arc::clone(&service), receivers: Mutex::default() };
    for _ in 0..RECEIVERS {
        let service = Arc::clone(&service);
        let receiver = thread::Builder::new().name("http".into()).spawn(move || service.receive())?;
        unpoisoned(&running.receivers).push(receiver);
    }
    Ok(running)
}

fn tiny_server(listener: &TcpListener) -> io::Result<tiny_http::Server> {
    tiny_http::Server::from_listener(listener.try_clone()?, None).map_err(io::Error::other)
}

impl Server {
    /// The address that is listened on.
    pub fn local_addr(&self) -> SocketAddr {
        self.service.guard.listens_on()
    }

    /// How many connections are open now, those being closed included.
    pub fn connections(&self) -> usize {
        self.service.guard.connections()
    }

    /// How many bytes of large bodies are in memory now.
    pub fn body_memory(&self) -> usize {
        self.service.body_memory.load(Ordering::Relaxed)
    }

    /// Stops: no more connections are accepted, waiting ones and requests that
    /// are not complete are cut, handlers and answers in flight get
    /// [`Limits::stop_grace`] to finish. A second call does nothing.
    pub fn stop(&self) {
        self.service.guard.stop();
        self.service.stopping.store(true, Ordering::SeqCst);
        unpoisoned(&self.service.server).unblock();
        for receiver in std::mem::take(&mut *unpoisoned(&self.receivers)) {
            join(receiver, self.service.limits.stop_grace);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.local_addr()).finish_non_exhaustive()
    }
}

impl Service {
    fn receive(self: &Arc<Self>) {
        loop {
            // One at a time, so that a client's requests stay in their order.
            let turn = unpoisoned(&self.turn);
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
            let server = Arc::clone(&unpoisoned(&self.server));
            match server.recv() {
                Ok(request) => {
                    let next = self.queue(request);
                    drop(turn);
                    if let Some((connection, request)) = next {
                        self.take(connection, request);
                    }
                }
                Err(_) if self.stopping.load(Ordering::SeqCst) => return,
                Err(error) => self.renew(&error),
            }
        }
    }

    /// Replaces a `tiny_http` that has stopped accepting, which it does after any error and says once.
    fn renew(&self, error: &io::Error) {
        log::warn!("HTTP: the server no longer accepted connections ({error}) and is started again");
        while !self.stopping.load(Ordering::SeqCst) {
            match tiny_server(&self.inner) {
                Ok(new) => {
                    *unpoisoned(&self.server) = Arc::new(new);
                    return self.guard.cut_all();
                }
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Puts a request behind those that its client sent before. Gives it back if it is to be handled now.
    fn queue(&self, request: tiny_http::Request) -> Option<(Arc<Connection>, tiny_http::Request)> {
        let connection = request.remote_addr().and_then(|inner| self.guard.connection(inner.port()));
        let Some(connection) = connection else {
            // Not through the guard, so not dropped either: there an unread body could end the program (LengthWatch).
            std::mem::forget(request);
            return None;
        };
        connection.seen();
        let mut requests = unpoisoned(&connection.requests);
        let is_too_much = requests.waiting.len() >= MOST_PIPELINED;
        if is_too_much || connection.is_finished() {
            drop(requests);
            if is_too_much {
                connection.cut();
            }
            drop(self.writer_of(request));
            return None;
        }
        if requests.busy {
            requests.waiting.push_back(request);
            return None;
        }
        requests.busy = true;
        drop(requests);
        Some((connection, request))
    }

    /// Handles a request now, or on a thread of its own if that may take its time.
    fn take(self: &Arc<Self>, connection: Arc<Connection>, request: tiny_http::Request) {
        let is_here = request.body_length().unwrap_or(0) <= READ_AHEAD
            && !request
                .headers()
                .iter()
                .any(|f| f.field.equiv("Transfer-Encoding") || f.field.equiv("Expect"));
        let next = if is_here && connection.takes_answers() {
            self.answer(&connection, request);
            self.next(&connection)
        } else {
            Some(request)
        };
        let Some(request) = next else { return };
        let (service, cut) = (Arc::clone(self), Arc::clone(&connection));
        let started = thread::Builder::new().name("http-request".into()).spawn(move || {
            let mut next = Some(request);
            while let Some(request) = next {
                service.answer(&connection, request);
                next = service.next(&connection);
            }
        });
        if started.is_err() {
            cut.cut();
        }
    }

    /// The connection's next request, if it has sent one already and that is still to be served.
    fn next(&self, connection: &Connection) -> Option<tiny_http::Request> {
        connection.answered(&self.limits);
        loop {
            let mut requests = unpoisoned(&connection.requests);
            let Some(request) = requests.waiting.pop_front() else {
                requests.busy = false;
                return None;
            };
            drop(requests);
            if !connection.is_finished() {
                return Some(request);
            }
            drop(self.writer_of(request));
        }
    }

    fn answer(&self, connection: &Connection, mut request: tiny_http::Request) {
        let mut memory = Memory { service: self, connection, bytes: 0 };
        match self.body(&mut memory, &mut request) {
            Ok(body) => {
                connection.handling();
                let reply = (self.handler)(&Request {
                    method: request.method(),
                    path: request.url().split('?').next().unwrap_or_default(),
                    headers: Headers(request.headers()),
                    body: &body,
                    peer: connection.peer,
                });
                // Fails only if the client is gone, which is nobody's loss.
                _ = request.respond(reply.response());
            }
            Err(refusal) => {
                // What follows a body that was not read can't be told from a request.
                connection.finish();
                let (version, is_head) = (request.http_version().clone(), *request.method() == Method::Head);
                let mut writer = self.writer_of(request);
                let response = refusal.response();
                _ = response
                    .raw_print(&mut writer, version, &[], is_head, None)
                    .and_then(|()| writer.flush());
            }
        }
    }

    /// Drops a request with what is unread of its body.
    fn writer_of(&self, request: tiny_http::Request) -> Box<dyn io::Write + Send> {
        let _one_at_a_time = unpoisoned(&self.discarding);
        request.into_writer()
    }

    /// Reads a request's body. `tiny_http` leaves it there when a handler does
    /// not, and would take an unread chunked one for the next request.
    fn body(&self, memory: &mut Memory<'_>, request: &mut tiny_http::Request) -> Result<Vec<u8>, Reply> {
        let declared = declared_length(Headers(request.headers()))?;
        let most = self.limits.body_bytes;
        if declared.is_some_and(|length| length > most) {
            return Err(Reply::text(413, "The request's body is too large"));
        }
        let mut room = SMALL_BODY;
        if let Some(length @ SMALL_BODY..) = declared {
            memory.reserve(length + 1 - room)?;
            room = length + 1;
        }
        let mut body = Vec::with_capacity(declared.map_or(0, |length| length + 1));
        loop {
            let rest = (room - body.len()) as u64;
            if request.as_reader().take(rest).read_to_end(&mut body).is_err() {
                return Err(Reply::text(400, "The request's body is malformed"));
            }
            if body.len() > most {
                return Err(Reply::text(413, "The request's body is too large"));
            }
            if body.len() < room {
                break;
            }
            memory.reserve(CHUNKS)?;
            body.reserve_exact(CHUNKS);
            room += CHUNKS;
        }
        if declared.is_some_and(|length| body.len() < length) {
            return Err(Reply::text(400, "The request's body is shorter than its Content-Length"));
        }
        Ok(body)
    }
}

/// The memory of one large body, given back when it is dropped.
struct Memory<'a> {
    service: &'a Service,
    connection: &'a Connection,
    bytes: usize,
}

impl Memory<'_> {
    /// Sets memory aside for `more` bytes, and lets the client send them.
    fn reserve(&mut self, more: usize) -> Result<(), Reply> {
        let Service { limits, body_memory, guard, .. } = self.service;
        let fits = |taken: usize| taken.checked_add(more).filter(|total| *total <= limits.body_memory);
        let mut patience = 20;
        while body_memory.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_err() {
            patience -= 1;
            if patience == 0 || !guard.take_memory_for(self.connection) {
                let reply = Reply::text(503, "Too many large requests at once: try again later");
                return Err(reply.with_header("Retry-After", "1"));
            }
        }
        self.bytes += more;
        self.connection.held.fetch_add(more, Ordering::Relaxed);
        // The sizes of chunks are sent too, and do not stay in memory.
        self.connection.grant(2 * more);
        Ok(())
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        self.connection.held.fetch_sub(self.bytes, Ordering::Relaxed);
        self.service.body_memory.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// How long the body is; `None` if it is chunked. Whatever two readers could
/// read differently is refused: a proxy in front must not see other requests than we do.
/// <https://www.rfc-editor.org/rfc/rfc9112#section-6.3>
fn declared_length(headers: Headers<'_>) -> Result<Option<usize>, Reply> {
    let coding = headers.get("Transfer-Encoding");
    let length = headers.get("Content-Length");
    let is_repeated =
        headers.all("Content-Length").count() > 1 || headers.all("Transfer-Encoding").count() > 1;
    if is_repeated || (coding.is_some() && length.is_some()) {
        return Err(Reply::text(400, "The length of the request's body is given twice"));
    }
    if headers.all("Connection").any(|value| value.to_ascii_lowercase().contains("upgrade")) {
        // `tiny_http` would read to the end of the connection.
        return Err(Reply::text(501, "No other protocol can be spoken here"));
    }
    match (coding, length) {
        (Some(coding), _) if coding.eq_ignore_ascii_case("chunked") => Ok(None),
        (Some(_), _) => Err(Reply::text(501, "The only known Transfer-Encoding is chunked")),
        (None, None) => Ok(Some(0)),
        (None, Some(length)) => match length.parse() {
            Ok(number) if length.bytes().all(|byte| byte.is_ascii_digit()) => Ok(Some(number)),
            _ => Err(Reply::text(400, "Content-Length is not a number")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpStream;
    use std::time::Instant;

    fn start() -> Server {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        serve(listener, Limits::default(), Arc::new(|_| Reply::text(200, "OK"))).unwrap()
    }

    fn ask(address: SocketAddr) -> TcpStream {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        stream
    }

    fn is_answered(mut stream: TcpStream) -> bool {
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).is_ok() && &answer == b"HTTP/1.1 200"
    }

    #[test]
    fn what_does_not_come_through_the_guard_is_not_answered() {
        let server = start();
        let around = ask(server.service.inner.local_addr().unwrap());
        around.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        assert!(!is_answered(around));
        assert!(is_answered(ask(server.local_addr())));
    }

    #[test]
    fn an_accept_that_fails_does_not_leave_the_server_deaf() {
        let server = start();
        assert!(is_answered(ask(server.local_addr())));
        // The next accept() has nothing to take and fails at once.
        server.service.inner.set_nonblocking(true).unwrap();
        drop(ask(server.local_addr()));
        let old = Arc::clone(&unpoisoned(&server.service.server));
        let began = Instant::now();
        while Arc::ptr_eq(&old, &unpoisoned(&server.service.server)) {
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "accept() did not fail: this test tests nothing"
            );
            thread::sleep(Duration::from_millis(1));
        }
        server.service.inner.set_nonblocking(false).unwrap();
        while !is_answered(ask(server.local_addr())) {
            assert!(began.elapsed() < Duration::from_secs(20), "the server is deaf");
        }
    }
}
