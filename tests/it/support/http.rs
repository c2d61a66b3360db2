//! A bare HTTP/1.1 client, which can also send what no polite client would.

use serde_json::Value;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

/// How long it waits for the server.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// One connection. What is written to it is sent as it is.
pub struct Connection {
    pub stream: TcpStream,
    host: String,
    unread: Vec<u8>,
}

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Response {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.body))
    }
}

/// Sends one request on a connection of its own, with an address such as
/// `http://host:port`. `None` if the server cannot be reached or does not answer.
pub fn try_request(
    url: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Option<Response> {
    Connection::try_open(url).ok()?.try_request(method, path, headers, body).ok()
}

/// Sends these bytes, and returns all that the server says until it closes.
pub fn talk(url: &str, bytes: impl AsRef<[u8]>) -> String {
    let mut connection = Connection::open(url);
    connection.write_all(bytes.as_ref()).unwrap();
    connection.read_to_end()
}

/// The status of an answer that was read to its end.
#[track_caller]
pub fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).unwrap_or_else(|| panic!("no answer: {answer:?}")).parse().unwrap()
}

impl Connection {
    pub fn open(url: &str) -> Connection {
        Connection::try_open(url).unwrap()
    }

    fn try_open(url: &str) -> io::Result<Connection> {
        Ok(Connection::over(TcpStream::connect(url.trim_start_matches("http://"))?))
    }

    /// Speaks HTTP on a stream.
    pub fn over(stream: TcpStream) -> Connection {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(READ_TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(READ_TIMEOUT)).unwrap();
        let host = stream.peer_addr().unwrap().to_string();
        Connection { stream, host, unread: Vec::new() }
    }

    pub fn get(&mut self, path: &str) -> Response {
        self.request("GET", path, &[], b"")
    }

    pub fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.try_request(method, path, headers, body).unwrap()
    }

    fn try_request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.host);
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        self.write_all(&[request.as_bytes(), body].concat())?;
        self.try_read()
    }

    /// Reads one answer.
    #[track_caller]
    pub fn read(&mut self) -> Response {
        self.try_read().unwrap()
    }

    fn try_read(&mut self) -> io::Result<Response> {
        let end = loop {
            if let Some(at) = self.unread.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            self.more()?;
        };
        let head = String::from_utf8(self.unread[..end].to_vec()).unwrap();
        let length = head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .map_or(0, |(_, value)| value.trim().parse::<usize>().unwrap());
        while self.unread.len() < end + length {
            self.more()?;
        }
        let body = String::from_utf8_lossy(&self.unread[end..end + length]).into_owned();
        self.unread.drain(..end + length);
        Ok(Response { status: status(&head), head, body })
    }

    fn more(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let read = self.stream.read(&mut buffer)?;
        self.unread.extend_from_slice(&buffer[..read]);
        if read > 0 {
            return Ok(());
        }
        let said = format!("closed after {:?}", String::from_utf8_lossy(&self.unread));
        Err(io::Error::new(ErrorKind::UnexpectedEof, said))
    }

    /// Everything that the server says until it closes. A reset after the answer is an answer, too.
    pub fn read_to_end(mut self) -> String {
        _ = self.stream.read_to_end(&mut self.unread);
        String::from_utf8_lossy(&self.unread).into_owned()
    }

    /// Sends no more, and still reads.
    pub fn hang_up(&self) {
        _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Waits for the server to close; says how long that took.
    #[track_caller]
    pub fn time_to_close(&mut self) -> Duration {
        let began = Instant::now();
        while matches!(self.stream.read(&mut [0; 4096]), Ok(1..)) {}
        let took = began.elapsed();
        assert!(took < READ_TIMEOUT, "never closed");
        took
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
